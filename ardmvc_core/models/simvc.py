"""SiMVC: encoders, weighted fusion and DDC's clustering head; the smallest of the models.

Source: Trosten et al., "Reconsidering Representation Alignment for Multi-View Clustering", CVPR 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ardmvc_core.adam import Adam
from ardmvc_core.batching import in_batches
from ardmvc_core.losses.ddc import ddc_terms
from ardmvc_core.networks.encoders import Encoder, EncoderKind, build_encoders
from ardmvc_core.networks.heads import ClusteringHead, WeightedMean
from ardmvc_core.networks.kmeans import CALIBRATION_BATCH
from ardmvc_core.ranges import LearningRate, Width, check_values
from ardmvc_core.types import Method, ModelOutput, Stage, StageObjective, StepContext, Views, ViewShapes


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What a network and its optimizer need; models add to it."""

    encoder: EncoderKind = "auto"
    """Encoder of every view; `auto` goes by the view's shape."""
    dense_widths: tuple[Width, Width] = (256, 128)
    """Hidden and latent width of dense encoders, each ≥ 1; other encoders do not read it."""
    learning_rate: LearningRate = 1e-3
    """Adam's learning rate, > 0."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class HeadConfig(NetworkConfig):
    """What a network with DDC's clustering head needs besides."""

    mute_dead_units: bool = False
    """Whether hidden units of the clustering head that are off on all training samples are held off in inference mode
    too, where an attack could turn them on (`networks.ClusteringHead`); no source has it."""


@dataclass(frozen=True, kw_only=True)
class SiMVCConfig(HeadConfig):
    """SiMVC."""

    name: Literal["simvc"] = "simvc"
    """Which model this configures."""


@dataclass(frozen=True, kw_only=True)
class DDCOutput(ModelOutput):
    """Output of a network with a clustering head; `consensus` is the head's hidden layer H."""

    fused: Tensor
    """(B, D): weighted mean of the view latents."""


class FusedClustering(nn.Module):
    """Network of SiMVC, CoMVC and AR-DMVC(-AM)."""

    def __init__(self, encoders: Sequence[Encoder], n_clusters: int, *, mute_dead_units: bool = False) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.fusion = WeightedMean(len(encoders))
        self.head = ClusteringHead(encoders[0].out_features, n_clusters, mute_dead_units=mute_dead_units)

    def encode(self, views: Views) -> tuple[Tensor, ...]:
        """Latents of the views, V × (B, D): V × (B, *shape) → V × (B, D).

        Raises: ValueError if the number of views is not that of the encoders.
        """
        if len(views) != len(self.encoders):
            raise ValueError(f"views must be {len(self.encoders)} tensors, one per encoder, got {len(views)}")
        return tuple(encoder(view) for encoder, view in zip(self.encoders, views, strict=True))

    def cluster(self, latents: tuple[Tensor, ...]) -> DDCOutput:
        """Everything that follows the encoders: V × (B, D) → output."""
        fused = self.fusion(latents)
        hidden, logits = self.head(fused)
        return DDCOutput(
            view_latents=latents,
            consensus=hidden,
            logits=logits,
            assignments=logits.softmax(dim=1),
            fused=fused,
        )

    def forward(self, views: Views) -> DDCOutput:
        """V × (B, *shape) → output."""
        return self.cluster(self.encode(views))


def build(config: HeadConfig, view_shapes: ViewShapes, n_clusters: int) -> FusedClustering:
    """Network for these views.

    Raises: ValueError if an encoder does not fit a view, latent widths differ, or n_clusters < 2.
    """
    encoders = build_encoders(config.encoder, view_shapes, config.dense_widths)
    return FusedClustering(encoders, n_clusters, mute_dead_units=config.mute_dead_units)


@torch.no_grad()
def calibrate(model: nn.Module, views: Views, seed: int) -> None:
    """Finds the head's dead units on V × (N, *shape_v), where they are to be muted."""
    assert isinstance(model, FusedClustering)
    if model.head.alive is not None:
        fused = [model.fusion(model.encode(batch)) for batch in in_batches(views, CALIBRATION_BATCH)]
        model.head.find_dead_units(torch.cat(fused))


def looks(config: HeadConfig) -> int:
    """How often `calibrate` passes over the training views."""
    return int(config.mute_dead_units)


def adam(model: nn.Module, learning_rate: float) -> Adam:
    """Adam over all parameters with the usual betas and no weight decay."""
    return Adam([(model.parameters(), learning_rate)])


def clustering_terms(output: DDCOutput) -> dict[str, Tensor]:
    """SiMVC's loss: `ddc1`, `ddc2`, `ddc3`, each with weight 1."""
    return ddc_terms(output.consensus, output.assignments)


def stages(config: SiMVCConfig, epochs: int) -> tuple[Stage, ...]:
    """One stage of `epochs` epochs."""

    def terms(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        return clustering_terms(model(views))

    objective = StageObjective(terms=terms, optimizer=lambda model: adam(model, config.learning_rate))
    return (Stage(name="train", epochs=epochs, objectives=(objective,)),)


SIMVC = Method(config=SiMVCConfig, build=build, stages=stages, calibrate=calibrate, looks=looks)
