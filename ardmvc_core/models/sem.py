"""SEM: autoencoders whose views are contrasted pairwise, each pair weighed by how much its two views say alike.

Source: Xu et al., "Self-Weighted Contrastive Learning among Multiple Views for Mitigating Representation
Degeneration", NeurIPS 2023; schedule and defaults are those of the AR-DMVC baseline (NoisyMNIST), whose own network is
not published. No source says what of this network an attack is to shift. Chosen here: C^v is z^v, which the contrast
aligns and every row of which has length 1; C is all z^v side by side, which is what k-means clusters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ardmvc_core.adam import Adam
from ardmvc_core.batching import in_batches
from ardmvc_core.losses.contrastive import unit_rows
from ardmvc_core.losses.reconstruction import ReconstructionMode, corrupted, mean_squared_error
from ardmvc_core.losses.sem import info_nce, pscl, rince
from ardmvc_core.losses.view_weights import cmi_weights, jsd_weights, mmd_weights, view_clusters
from ardmvc_core.models.simvc import adam
from ardmvc_core.networks.decoders import Decoder
from ardmvc_core.networks.encoders import Encoder
from ardmvc_core.networks.kmeans import CALIBRATION_BATCH, KMeansHead, calibrate_kmeans
from ardmvc_core.ranges import (
    ExtraEpochs,
    LearningRate,
    Positive,
    PositiveShare,
    Range,
    Repeats,
    Temperature,
    Weight,
    Width,
    check_values,
)
from ardmvc_core.seeding import derive_seed
from ardmvc_core.types import EmbeddingOutput, Method, Stage, StageObjective, StepContext, Views, ViewShapes

Contrast = Literal["infonce", "pscl", "rince"]
Measure = Literal["cmi", "jsd", "mmd"]


@dataclass(frozen=True, kw_only=True)
class SEMConfig:
    """SEM."""

    name: Literal["sem"] = "sem"
    """Which model this configures."""
    hidden_widths: tuple[Width, Width, Width] = (500, 500, 2000)
    """Widths of the encoders' hidden layers, each ≥ 1; the decoders have them the other way round."""
    feature_width: Width = 512
    """Width of the features h^v, which the decoders start from, ≥ 1."""
    latent_width: Width = 128
    """Width of the latents z^v, ≥ 1."""
    learning_rate: LearningRate = 3e-4
    """Adam's learning rate, > 0."""
    renew_optimizer: bool = True
    """Whether Adam is made anew for every contrastive epoch (published: yes, its moments are thrown away)."""
    warmup_epochs: ExtraEpochs = 100
    """Epochs of reconstruction alone, before the trial's epochs and not among them, ≥ 0."""
    rounds: Repeats = 3
    """Rounds that the trial's epochs are split into, ≥ 1; each begins with new view weights."""
    contrast: Contrast = "infonce"
    """Loss of a pair of views."""
    temperature: Temperature = 1.0
    """Divides the inner products in `infonce`; no unit, > 0."""
    pscl_squared_radius: Positive = 3.0
    """Squared length that `pscl` shortens longer rows to, > 0; rows of this network have length 1."""
    rince_temperature: Temperature = 0.5
    """Divides the inner products in `rince`; no unit, > 0."""
    rince_strength: Positive = 0.001
    """λ of `rince`, > 0."""
    rince_q: PositiveShare = 0.5
    """q of `rince`, in (0, 1]."""
    measure: Measure = "cmi"
    """What the view weights are read from: clusters in common (`cmi`), or how near the features are (`jsd`, `mmd`)."""
    kmeans_restarts: Repeats = 100
    """Initialisations of the k-means behind `cmi`, ≥ 1. As published: seconds per view and round."""
    mmd_samples: Annotated[int, Range(2, 100_000)] = 2000
    """Samples, the first ones, that `mmd` compares, ≥ 2."""
    reconstruction: ReconstructionMode = "ae"
    """What the decoders reconstruct from: clean views, noisy ones (`dae`), or partly masked ones (`mae`)."""
    reconstruction_weight: Weight = 1.0
    """Λ ≥ 0: weight of the reconstruction beside the contrast; the warm-up has weight 1."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class SEMOutput(EmbeddingOutput):
    """Output of SEM; `view_latents` are z^v, `consensus` and `embedding` are (B, V·D): all of them side by side."""

    features: tuple[Tensor, ...]
    """V × (B, F): h^v, what the encoders return and the decoders start from."""


class SEMNetwork(nn.Module):
    """Per view an encoder, a decoder and a projection, all without normalisation layers; k-means on the latents."""

    def __init__(self, config: SEMConfig, view_shapes: ViewShapes, n_clusters: int) -> None:
        super().__init__()
        if len(view_shapes) < 2:
            raise ValueError(f"view_shapes must name at least two views, got {view_shapes}")
        features, latent = config.feature_width, config.latent_width
        sizes = [torch.Size(shape).numel() for shape in view_shapes]
        there = [(size, *config.hidden_widths, features) for size in sizes]
        self.encoders = nn.ModuleList(Encoder(_dense(widths), features) for widths in there)
        self.decoders = nn.ModuleList(
            Decoder(_dense(widths[::-1]).append(nn.Unflatten(1, shape)), (features,))
            for widths, shape in zip(there, view_shapes, strict=True)
        )
        self.projections = nn.ModuleList(nn.Linear(features, latent) for _ in view_shapes)
        self.head = KMeansHead(len(view_shapes) * latent, n_clusters)
        # Until it is fitted, centroids of the embeddings' own length: to far ones all samples are equally far, up to
        # rounding.
        self.head.centroids /= latent**0.5
        self.view_weights: Tensor
        self.register_buffer("view_weights", torch.ones(len(view_shapes), len(view_shapes)))

    def features(self, views: Views) -> tuple[Tensor, ...]:
        """h^v: V × (B, *shape_v) → V × (B, F).

        Raises: ValueError if the number of views is not that of the encoders.
        """
        if len(views) != len(self.encoders):
            raise ValueError(f"views must be {len(self.encoders)} tensors, one per encoder, got {len(views)}")
        return tuple(encoder(view.flatten(1)) for encoder, view in zip(self.encoders, views, strict=True))

    def project(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """z^v, rows of length 1: V × (B, F) → V × (B, D)."""
        return tuple(unit_rows(project(h)) for project, h in zip(self.projections, features, strict=True))

    def encode(self, views: Views) -> tuple[Tensor, ...]:
        """z^v: V × (B, *shape_v) → V × (B, D)."""
        return self.project(self.features(views))

    def reconstruct(self, features: tuple[Tensor, ...]) -> Views:
        """What the decoders make of h^v, not bounded to [0, 1]: V × (B, F) → V × (B, *shape_v)."""
        return tuple(decoder(h) for decoder, h in zip(self.decoders, features, strict=True))

    def forward(self, views: Views) -> SEMOutput:
        """V × (B, *shape_v) → output."""
        features = self.features(views)
        latents = self.project(features)
        embedding = torch.cat(latents, dim=1)
        logits = self.head(embedding)
        return SEMOutput(
            view_latents=latents,
            consensus=embedding,
            logits=logits,
            assignments=logits.softmax(dim=1),
            embedding=embedding,
            features=features,
        )


def _dense(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers through these widths, ReLU between them and none at the end."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def build(config: SEMConfig, view_shapes: ViewShapes, n_clusters: int) -> SEMNetwork:
    """Network for these views, which may differ in shape.

    Raises: ValueError if there are fewer than two views or n_clusters < 2.
    """
    return SEMNetwork(config, view_shapes, n_clusters)


def _pair_loss(config: SEMConfig, first: Tensor, second: Tensor) -> Tensor:
    if config.contrast == "infonce":
        return info_nce(first, second, config.temperature)
    if config.contrast == "pscl":
        return pscl(first, second, config.pscl_squared_radius)
    return rince(first, second, temperature=config.rince_temperature, strength=config.rince_strength, q=config.rince_q)


def contrast_terms(config: SEMConfig, latents: tuple[Tensor, ...], view_weights: Tensor) -> dict[str, Tensor]:
    """Weighted contrast over all ordered pairs of views, each view with itself included.

    Args:   latents: V × (B, D), rows of length 1. view_weights: (V, V).
    Returns: `contrast_v_w` for v ≤ w. The losses are symmetric, so one term stands for (v, w) and (w, v), with both
        their weights.
    Raises: ValueError if B < 2.
    """
    both = view_weights + view_weights.T.triu(diagonal=1)
    pairs = combinations_with_replacement(range(len(latents)), 2)
    return {f"contrast_{v}_{w}": both[v, w] * _pair_loss(config, latents[v], latents[w]) for v, w in pairs}


def reconstruction_terms(views: Views, reconstructions: Views, weight: float = 1.0) -> dict[str, Tensor]:
    """`reconstruction_v`: weighted mean squared error of every view."""
    pairs = enumerate(zip(reconstructions, views, strict=True))
    return {f"reconstruction_{v}": weight * mean_squared_error(made, view) for v, (made, view) in pairs}


@torch.no_grad()
def renew_view_weights(
    config: SEMConfig, model: SEMNetwork, views: Views, seed: int, *, of: Literal["features", "latents"]
) -> None:
    """Puts new weights W_vw into the buffer `view_weights`, from the features h^v or the latents z^v of all samples."""
    compute = model.features if of == "features" else model.encode
    batches = in_batches(views, CALIBRATION_BATCH)
    rows = tuple(torch.cat(parts) for parts in zip(*(compute(batch) for batch in batches), strict=True))
    if config.measure == "jsd":
        weights = jsd_weights(rows)
    elif config.measure == "mmd":
        weights = mmd_weights(rows, config.mmd_samples)
    else:
        n_clusters = len(model.head.centroids)
        weights = cmi_weights(
            [
                view_clusters(view.cpu().numpy(), n_clusters, derive_seed(seed, "view", v), config.kmeans_restarts)
                for v, view in enumerate(rows)
            ]
        )
    model.view_weights.copy_(weights)


def stages(config: SEMConfig, epochs: int) -> tuple[Stage, ...]:
    """`warmup`, where it has epochs, and the rounds `contrast_1`, `contrast_2`, … over `epochs` epochs.

    The rounds are as even as can be, longer ones first; there are no more of them than epochs. The first takes its
    view weights from the features h^v, the others from the latents z^v.
    """

    def optimizer(model: nn.Module) -> Adam:
        return adam(model, config.learning_rate)

    def warmup_terms(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        assert isinstance(model, SEMNetwork)
        seen = corrupted(views, config.reconstruction, step.generator)
        return reconstruction_terms(views, model.reconstruct(model.features(seen)))

    def terms(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        assert isinstance(model, SEMNetwork)
        features = model.features(views)
        contrast = contrast_terms(config, model.project(features), model.view_weights)
        if config.reconstruction != "ae":
            # The contrast compares clean views; only what the decoders start from is corrupted.
            features = model.features(corrupted(views, config.reconstruction, step.generator))
        errors = reconstruction_terms(views, model.reconstruct(features), config.reconstruction_weight)
        return {**contrast, **errors}

    warmup = StageObjective(terms=warmup_terms, optimizer=optimizer)
    objective = StageObjective(terms=terms, optimizer=optimizer, passes=1 if config.reconstruction == "ae" else 2)
    n_rounds = max(1, min(config.rounds, epochs))
    rounds = tuple(
        Stage(
            name=f"contrast_{i + 1}",
            epochs=epochs // n_rounds + (i < epochs % n_rounds),
            objectives=(objective,),
            prepare=_prepare(config, "latents" if i else "features"),
            renew_optimizers=config.renew_optimizer,
        )
        for i in range(n_rounds)
    )
    if not config.warmup_epochs:
        return rounds
    return (Stage(name="warmup", epochs=config.warmup_epochs, objectives=(warmup,)), *rounds)


def _prepare(config: SEMConfig, of: Literal["features", "latents"]) -> Callable[[nn.Module, Views, int], None]:
    def prepare(model: nn.Module, views: Views, seed: int) -> None:
        assert isinstance(model, SEMNetwork)
        renew_view_weights(config, model, views, seed, of=of)

    return prepare


SEM = Method(config=SEMConfig, build=build, stages=stages, calibrate=calibrate_kmeans)
