"""AECoDDC: CoMVC's network and loss with a decoder per view, pre-trained as aligned autoencoders.

Source: Trosten et al., "On the Effects of Self-supervision and Contrastive Alignment in Deep Multi-view Clustering",
CVPR 2023, in the form and with the epochs of the AR-DMVC baselines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ardmvc_core.losses.contrastive import contrastive_terms
from ardmvc_core.losses.reconstruction import mean_squared_error
from ardmvc_core.models.comvc import ContrastConfig
from ardmvc_core.models.simvc import FusedClustering, adam, calibrate, clustering_terms, looks
from ardmvc_core.networks.decoders import Decoder, build_decoder
from ardmvc_core.networks.encoders import Encoder, build_encoders
from ardmvc_core.ranges import ExtraEpochs, Weight
from ardmvc_core.types import Method, Stage, StageObjective, StepContext, Terms, Views, ViewShapes


@dataclass(frozen=True, kw_only=True)
class AECoDDCConfig(ContrastConfig):
    """AECoDDC."""

    name: Literal["aecoddc"] = "aecoddc"
    """Which model this configures."""
    adaptive_weight: bool = False
    """Whether the contrastive loss is also weighed by the smallest fusion share; here it is not."""
    reconstruction_weight: Weight = 1.0
    """Weight of every view's reconstruction error, ≥ 0."""
    pretrain_epochs: ExtraEpochs = 20
    """Epochs of contrast and reconstruction alone before the main training, ≥ 0."""


class AutoencodedClustering(FusedClustering):
    """SiMVC's network and a decoder per view; a forward pass does not decode."""

    def __init__(
        self, encoders: Sequence[Encoder], decoders: Sequence[Decoder], n_clusters: int, *, mute_dead_units: bool
    ) -> None:
        super().__init__(encoders, n_clusters, mute_dead_units=mute_dead_units)
        self.decoders = nn.ModuleList(decoders)

    def reconstruct(self, latents: tuple[Tensor, ...]) -> Views:
        """V × (B, D) → V × (B, *shape_v); images in [0, 1], vectors unbounded."""
        return tuple(decoder(latent) for decoder, latent in zip(self.decoders, latents, strict=True))


def build(config: AECoDDCConfig, view_shapes: ViewShapes, n_clusters: int) -> AutoencodedClustering:
    """Network for these views.

    Raises: ValueError if an encoder does not fit a view, latent widths differ, or n_clusters < 2.
    """
    encoders = build_encoders(config.encoder, view_shapes, config.dense_widths)
    decoders = [build_decoder(config.encoder, shape, config.dense_widths) for shape in view_shapes]
    return AutoencodedClustering(encoders, decoders, n_clusters, mute_dead_units=config.mute_dead_units)


def autoencoder_terms(
    config: AECoDDCConfig, model: AutoencodedClustering, latents: tuple[Tensor, ...], views: Views
) -> dict[str, Tensor]:
    """Weighted `contrast_s_t` per pair of views and `reconstruction_v` per view; the whole loss of pre-training."""
    contrast = contrastive_terms(
        latents,
        model.fusion.weights,
        temperature=config.temperature,
        adaptive_weight=config.adaptive_weight,
    )
    terms = {name: config.contrastive_weight * value for name, value in contrast.items()}
    for v, (decoded, view) in enumerate(zip(model.reconstruct(latents), views, strict=True)):
        terms[f"reconstruction_{v}"] = config.reconstruction_weight * mean_squared_error(decoded, view)
    return terms


def stages(config: AECoDDCConfig, epochs: int) -> tuple[Stage, ...]:
    """`pretrain`, left out with `pretrain_epochs` 0, and `train`; each begins with a fresh Adam."""

    def pretrain(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        assert isinstance(model, AutoencodedClustering)
        return autoencoder_terms(config, model, model.encode(views), views)

    def train(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        assert isinstance(model, AutoencodedClustering)
        output = model(views)
        return {**clustering_terms(output), **autoencoder_terms(config, model, output.view_latents, views)}

    def stage(name: str, length: int, terms: Terms) -> Stage:
        objective = StageObjective(terms=terms, optimizer=lambda model: adam(model, config.learning_rate))
        return Stage(name=name, epochs=length, objectives=(objective,))

    main = stage("train", epochs, train)
    return (stage("pretrain", config.pretrain_epochs, pretrain), main) if config.pretrain_epochs else (main,)


AECODDC = Method(config=AECoDDCConfig, build=build, stages=stages, calibrate=calibrate, looks=looks)
