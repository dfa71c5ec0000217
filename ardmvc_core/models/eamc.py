"""EAMC: attention fuses the views, discriminators make their latents alike, DDC's head clusters.

Source: Zhou and Shen, "End-to-End Adversarial-Attention Network for Multi-Modal Clustering", CVPR 2020, in the form of
the AR-DMVC baselines. As published, the term `ddc2_flipped` grows with the batch size and `attention` with its square:
their weight against the other terms holds for one batch size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ardmvc_core.adam import Adam
from ardmvc_core.batching import in_batches
from ardmvc_core.losses.alignment import attention_alignment, discriminator_loss, generator_loss
from ardmvc_core.losses.ddc import cluster_orthogonality, gaussian_kernel, separation, simplex_corners
from ardmvc_core.models.simvc import DDCOutput, HeadConfig
from ardmvc_core.networks.encoders import Encoder, build_encoders
from ardmvc_core.networks.heads import ClusteringHead
from ardmvc_core.networks.kmeans import CALIBRATION_BATCH
from ardmvc_core.ranges import LearningRate, Temperature, Weight
from ardmvc_core.types import Method, Stage, StageObjective, StepContext, Views, ViewShapes

InferenceAttention = Literal["frozen", "batch"]

_BETAS = (0.95, 0.999)
_DISCRIMINATOR_BETAS = (0.5, 0.999)


@dataclass(frozen=True, kw_only=True)
class EAMCConfig(HeadConfig):
    """EAMC."""

    name: Literal["eamc"] = "eamc"
    """Which model this configures."""
    learning_rate: LearningRate = 1e-5
    """Adam's learning rate of encoders and clustering head, > 0."""
    attention_learning_rate: LearningRate = 1e-4
    """The same optimizer's learning rate of the attention layers, > 0."""
    discriminator_learning_rate: LearningRate = 1e-3
    """Learning rate of the discriminators' own Adam, > 0. Their loss has no weight: Adam would cancel it."""
    attention_weight: Weight = 1.0
    """Weight of the distance between the fused kernel and those of the views, ≥ 0."""
    generator_weight: Weight = 10.0
    """Weight of the encoders' side of the game against the discriminators, ≥ 0."""
    attention_temperature: Temperature = 10.0
    """τ > 0: divides the sigmoids before the softmax, so two views' weights differ by a factor of e^(1/τ) at most."""
    attention: InferenceAttention = "frozen"
    """Weights in inference mode. `frozen`: the mean over the clean training samples, fixed at calibration, so that an
    assignment depends on its own sample only. `batch`: the mean over the batch, as in training (paper and published
    code); then the samples of a batch decide about each other's clusters."""


@dataclass(frozen=True, kw_only=True)
class EAMCOutput(DDCOutput):
    """Output of EAMC: `fused` is the mean of the view latents under `attention`."""

    attention: Tensor
    """(V,): weight of every view, the same for the whole batch; sums to 1."""


class _Layers(nn.Module):
    """Layers in a row, under the name that they have in the published network."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, rows: Tensor) -> Tensor:
        return self.layers(rows)


class Attention(nn.Module):
    """Weights of the views for every sample: three linear maps (nothing in between), sigmoid, softmax(· / τ)."""

    def __init__(self, n_views: int, latent_features: int, temperature: float) -> None:
        super().__init__()
        self.mlp = _Layers(nn.Linear(n_views * latent_features, 100), nn.Linear(100, 50))
        self.output_layer = nn.Linear(50, n_views)
        self.temperature = temperature

    def forward(self, latents: tuple[Tensor, ...]) -> Tensor:
        """V × (B, D) → (B, V), rows sum to 1."""
        scores = self.output_layer(self.mlp(torch.cat(latents, dim=1))).sigmoid()
        return (scores / self.temperature).softmax(dim=1)


class LatentDiscriminator(nn.Module):
    """Tells latents of the first view (score 1) from those of another view (score 0)."""

    def __init__(self, latent_features: int) -> None:
        super().__init__()
        widths = (latent_features, 256, 256, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2, inplace=True)]
        self.mlp = _Layers(*layers)
        self.output_layer = nn.Sequential(nn.Linear(widths[-1], 1))

    def forward(self, latents: Tensor) -> Tensor:
        """(B, D) → (B,) logits; the score is their sigmoid."""
        return self.output_layer(self.mlp(latents)).squeeze(dim=1)


class AttentiveClustering(nn.Module):
    """EAMC's network. Its discriminators take part in training only."""

    def __init__(
        self,
        encoders: Sequence[Encoder],
        n_clusters: int,
        temperature: float,
        inference_attention: InferenceAttention,
        *,
        mute_dead_units: bool = False,
    ) -> None:
        super().__init__()
        n_views, features = len(encoders), encoders[0].out_features
        self.encoders = nn.ModuleList(encoders)
        self.attention = Attention(n_views, features, temperature)
        self.discriminators = nn.ModuleList(LatentDiscriminator(features) for _ in encoders[1:])
        self.head = ClusteringHead(features, n_clusters, mute_dead_units=mute_dead_units)
        self.inference_attention = inference_attention
        self.mean_attention: Tensor
        self.register_buffer("mean_attention", torch.full((n_views,), 1 / n_views))

    def encode(self, views: Views) -> tuple[Tensor, ...]:
        """Latents of the views: V × (B, *shape) → V × (B, D).

        Raises: ValueError if the number of views is not that of the encoders.
        """
        if len(views) != len(self.encoders):
            raise ValueError(f"views must be {len(self.encoders)} tensors, one per encoder, got {len(views)}")
        return tuple(encoder(view) for encoder, view in zip(self.encoders, views, strict=True))

    def view_weights(self, latents: tuple[Tensor, ...]) -> Tensor:
        """Weights of the fusion, V × (B, D) → (V,): the batch's mean, or frozen ones in inference mode if so built."""
        if not self.training and self.inference_attention == "frozen":
            return self.mean_attention
        return self.attention(latents).mean(dim=0)

    def fuse(self, latents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Weights (V,) and the mean of the latents under them: V × (B, D) → (B, D)."""
        weights = self.view_weights(latents)
        return weights, torch.stack([w * latent for w, latent in zip(weights, latents, strict=True)]).sum(dim=0)

    def discriminate(self, latents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Logits of discriminator i for view 0 and for view i + 1: V × (B, D) → two of (V − 1, B)."""
        first = [discriminator(latents[0]) for discriminator in self.discriminators]
        other = [discriminator(z) for discriminator, z in zip(self.discriminators, latents[1:], strict=True)]
        return torch.stack(first), torch.stack(other)

    def forward(self, views: Views) -> EAMCOutput:
        """V × (B, *shape) → output."""
        latents = self.encode(views)
        weights, fused = self.fuse(latents)
        hidden, logits = self.head(fused)
        return EAMCOutput(
            view_latents=latents,
            consensus=hidden,
            logits=logits,
            assignments=logits.softmax(dim=1),
            fused=fused,
            attention=weights,
        )


def build(config: EAMCConfig, view_shapes: ViewShapes, n_clusters: int) -> AttentiveClustering:
    """Network for these views.

    Raises: ValueError if an encoder does not fit a view, latent widths differ, or n_clusters < 2.
    """
    encoders = build_encoders(config.encoder, view_shapes, config.dense_widths)
    return AttentiveClustering(
        encoders,
        n_clusters,
        config.attention_temperature,
        config.attention,
        mute_dead_units=config.mute_dead_units,
    )


def encoder_terms(config: EAMCConfig, model: AttentiveClustering, output: EAMCOutput) -> dict[str, Tensor]:
    """What encoders, attention and head minimise: `ddc1`, `ddc2_flipped`, `ddc3`, `attention` and `generator`.

    The first view's encoder is the game's standard: `generator` does not reach it.
    """
    kernel = gaussian_kernel(output.consensus)
    aligned = attention_alignment(output.fused, output.view_latents, output.attention)
    _, other = model.discriminate(output.view_latents)
    return {
        "ddc1": separation(output.assignments, kernel),
        "ddc2_flipped": cluster_orthogonality(output.assignments),
        "ddc3": simplex_corners(output.assignments, kernel),
        "attention": config.attention_weight * aligned,
        "generator": config.generator_weight * generator_loss(other),
    }


def discriminator_terms(model: AttentiveClustering, latents: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What the discriminators minimise: `discriminator`. latents: V × (B, D)."""
    return {"discriminator": discriminator_loss(*model.discriminate(latents))}


def encoder_optimizer(config: EAMCConfig, model: nn.Module) -> Adam:
    """Adam over encoders, head and attention."""
    assert isinstance(model, AttentiveClustering)
    encoders_and_head = [*model.encoders.parameters(), *model.head.parameters()]
    groups = [
        (encoders_and_head, config.learning_rate),
        (list(model.attention.parameters()), config.attention_learning_rate),
    ]
    return Adam(groups, _BETAS)


def discriminator_optimizer(config: EAMCConfig, model: nn.Module) -> Adam:
    """Adam over the discriminators."""
    assert isinstance(model, AttentiveClustering)
    return Adam([(model.discriminators.parameters(), config.discriminator_learning_rate)], _DISCRIMINATOR_BETAS)


def stages(config: EAMCConfig, epochs: int) -> tuple[Stage, ...]:
    """One stage of `epochs` epochs; in every step the encoders move first, then the discriminators."""

    def for_encoders(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        assert isinstance(model, AttentiveClustering)
        return encoder_terms(config, model, model(views))

    def for_discriminators(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        assert isinstance(model, AttentiveClustering)
        # A second pass of the whole network, because as published all running statistics move with it; no gradient is
        # needed beyond the latents.
        with torch.no_grad():
            output = model(views)
        return discriminator_terms(model, output.view_latents)

    objectives = (
        StageObjective(terms=for_encoders, optimizer=lambda model: encoder_optimizer(config, model)),
        StageObjective(
            terms=for_discriminators,
            optimizer=lambda model: discriminator_optimizer(config, model),
            passes=0,
            passes_without_gradient=1,
        ),
    )
    return (Stage(name="train", epochs=epochs, objectives=objectives),)


@torch.no_grad()
def calibrate(model: nn.Module, views: Views, seed: int) -> None:
    """Sets the frozen attention to the mean over these samples, V × (N, *shape_v), in the model's present mode, and
    finds the head's dead units, where they are to be muted."""
    assert isinstance(model, AttentiveClustering)
    total = torch.zeros_like(model.mean_attention, dtype=torch.float64)
    for batch in in_batches(views, CALIBRATION_BATCH):
        total += model.attention(model.encode(batch)).double().sum(dim=0)
    model.mean_attention.copy_(total / len(views[0]))
    if model.head.alive is not None:
        fused = [model.fuse(model.encode(batch))[1] for batch in in_batches(views, CALIBRATION_BATCH)]
        model.head.find_dead_units(torch.cat(fused))


EAMC = Method(
    config=EAMCConfig,
    build=build,
    stages=stages,
    calibrate=calibrate,
    looks=lambda config: 1 + config.mute_dead_units,
)
