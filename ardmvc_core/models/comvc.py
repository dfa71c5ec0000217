"""CoMVC: SiMVC's network and loss, with a contrastive term that aligns the views' latents.

Source: Trosten et al., "Reconsidering Representation Alignment for Multi-View Clustering", CVPR 2021, in the form of
the AR-DMVC baselines: every other sample of the batch is a negative, and the temperature is apart from the weight.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ardmvc_core.losses.contrastive import contrastive_terms
from ardmvc_core.models.simvc import (
    DDCOutput,
    FusedClustering,
    HeadConfig,
    adam,
    build,
    calibrate,
    clustering_terms,
    looks,
)
from ardmvc_core.ranges import Temperature, Weight
from ardmvc_core.types import Method, Stage, StageObjective, StepContext, Views


@dataclass(frozen=True, kw_only=True)
class ContrastConfig(HeadConfig):
    """CoMVC's loss on top of SiMVC's network."""

    contrastive_weight: Weight = 0.1
    """Weight of the contrastive loss, ≥ 0."""
    temperature: Temperature = 0.1
    """Divides the cosine similarities; no unit, > 0."""
    adaptive_weight: bool = True
    """Whether the contrastive loss is also weighed by the smallest fusion share."""


@dataclass(frozen=True, kw_only=True)
class CoMVCConfig(ContrastConfig):
    """CoMVC."""

    name: Literal["comvc"] = "comvc"
    """Which model this configures."""


def aligned_clustering_terms(config: ContrastConfig, output: DDCOutput, fusion_weights: Tensor) -> dict[str, Tensor]:
    """CoMVC's loss: `ddc1`, `ddc2`, `ddc3` and a weighted `contrast_s_t` per pair of views."""
    contrast = contrastive_terms(
        output.view_latents,
        fusion_weights,
        temperature=config.temperature,
        adaptive_weight=config.adaptive_weight,
    )
    weighted = {name: config.contrastive_weight * value for name, value in contrast.items()}
    return {**clustering_terms(output), **weighted}


def stages(config: CoMVCConfig, epochs: int) -> tuple[Stage, ...]:
    """One stage of `epochs` epochs."""

    def terms(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        assert isinstance(model, FusedClustering)
        return aligned_clustering_terms(config, model(views), model.fusion.weights)

    objective = StageObjective(terms=terms, optimizer=lambda model: adam(model, config.learning_rate))
    return (Stage(name="train", epochs=epochs, objectives=(objective,)),)


COMVC = Method(config=CoMVCConfig, build=build, stages=stages, calibrate=calibrate, looks=looks)
