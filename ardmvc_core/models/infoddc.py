"""InfoDDC: SiMVC on soft-maxed view latents, aligned by maximising the mutual information between views.

Source: Trosten et al., "On the Effects of Self-supervision and Contrastive Alignment in Deep Multi-view Clustering",
CVPR 2023, in the form of the AR-DMVC baselines. Differs from the published code in the view pairs: information is
maximised between different views, while that code also pairs each view but the last with itself, which aligns nothing
(a view informs about itself) and favours some views. `pairs="published"` restores it.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ardmvc_core.losses.mutual_information import InformationPairs, mutual_information_terms
from ardmvc_core.models.simvc import FusedClustering, HeadConfig, adam, calibrate, clustering_terms, looks
from ardmvc_core.networks.encoders import build_encoders
from ardmvc_core.ranges import ExtraEpochs, Weight
from ardmvc_core.types import Method, Stage, StageObjective, StepContext, Terms, Views, ViewShapes


@dataclass(frozen=True, kw_only=True)
class InfoDDCConfig(HeadConfig):
    """InfoDDC."""

    name: Literal["infoddc"] = "infoddc"
    """Which model this configures."""
    mutual_information_weight: Weight = 0.1
    """Weight of the mutual-information loss in the main training, ≥ 0; pre-training has weight 1."""
    entropy_weight: Weight = 9.0
    """α ≥ 0: weight of the marginals' entropies against the mutual information."""
    pairs: InformationPairs = "all"
    """`all`: every pair of different views (paper); `published`: with the self-pairs of all views but the last."""
    pretrain_epochs: ExtraEpochs = 0
    """Epochs of the mutual-information loss alone before the main training, ≥ 0; published: 20 on PatchedMNIST, 0 on
    NoisyMNIST and NoisyFashion."""


class SoftmaxClustering(FusedClustering):
    """SiMVC's network whose view latents are distributions over features; fusion, attacks and losses see only them."""

    def encode(self, views: Views) -> tuple[Tensor, ...]:
        """V × (B, *shape) → V × (B, D), rows sum to 1.

        Raises: ValueError if the number of views is not that of the encoders.
        """
        return tuple(latent.softmax(dim=1) for latent in super().encode(views))


def build(config: InfoDDCConfig, view_shapes: ViewShapes, n_clusters: int) -> SoftmaxClustering:
    """Network for these views.

    Raises: ValueError if an encoder does not fit a view, latent widths differ, or n_clusters < 2.
    """
    encoders = build_encoders(config.encoder, view_shapes, config.dense_widths)
    return SoftmaxClustering(encoders, n_clusters, mute_dead_units=config.mute_dead_units)


def stages(config: InfoDDCConfig, epochs: int) -> tuple[Stage, ...]:
    """`pretrain`, left out with `pretrain_epochs` 0, and `train`; each begins with a fresh Adam."""

    def information(latents: tuple[Tensor, ...], weight: float) -> dict[str, Tensor]:
        terms = mutual_information_terms(latents, entropy_weight=config.entropy_weight, pairs=config.pairs)
        return {name: weight * value for name, value in terms.items()}

    def pretrain(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        assert isinstance(model, SoftmaxClustering)
        return information(model.encode(views), 1.0)

    def train(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        output = model(views)
        return {
            **clustering_terms(output),
            **information(output.view_latents, config.mutual_information_weight),
        }

    def stage(name: str, length: int, terms: Terms) -> Stage:
        objective = StageObjective(terms=terms, optimizer=lambda model: adam(model, config.learning_rate))
        return Stage(name=name, epochs=length, objectives=(objective,))

    main = stage("train", epochs, train)
    return (stage("pretrain", config.pretrain_epochs, pretrain), main) if config.pretrain_epochs else (main,)


INFODDC = Method(config=InfoDDCConfig, build=build, stages=stages, calibrate=calibrate, looks=looks)
