"""Multi-VAE: per view a continuous latent, for all views one categorical latent that becomes the cluster.

Source: Xu et al., "Multi-VAE: Learning Disentangled View-common and View-peculiar Visual Representations for Multi-view
Clustering", ICCV 2021, in the layout of the AR-DMVC baselines: one encoder and decoder per view, k-means on
concat(c, s^1, …, s^V). The balance of the loss is the paper's, see `kl_scale` and `discrete_capacity`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ardmvc_core.losses.vae import (
    capacity,
    categorical_kl,
    clipped_bce,
    gaussian_kl,
    gaussian_sample,
    gumbel_softmax,
    straight_through_one_hot,
)
from ardmvc_core.models.simvc import NetworkConfig, adam
from ardmvc_core.networks.decoders import Decoder, build_decoder
from ardmvc_core.networks.encoders import Encoder, build_encoders
from ardmvc_core.networks.kmeans import KMeansHead, calibrate_kmeans
from ardmvc_core.ranges import LearningRate, Range, Temperature, Weight, Width
from ardmvc_core.types import EmbeddingOutput, Method, Stage, StageObjective, StepContext, Views, ViewShapes

KLScale = Literal["original", "port"]
DiscreteCapacity = Literal["continuous", "log_k"]


@dataclass(frozen=True, kw_only=True)
class MultiVAEConfig(NetworkConfig):
    """Multi-VAE."""

    name: Literal["multi_vae"] = "multi_vae"
    """Which model this configures."""
    learning_rate: LearningRate = 5e-4
    """Adam's learning rate, > 0."""
    hidden_width: Width = 256
    """Width of the layers between features and latents, both ways; ≥ 1."""
    latent_width: Width = 10
    """Z: width of every view's continuous latent, ≥ 1."""
    gumbel_temperature: Temperature = 0.67
    """Of the relaxed categorical samples; no unit, > 0."""
    continuous_weight: Weight = 30.0
    """β ≥ 0: weight of every continuous latent's distance to its capacity."""
    discrete_weight: Weight = 30.0
    """γ ≥ 0: weight of the categorical latent's distance to its capacity."""
    continuous_capacity: Weight = 5.0
    """Largest divergence that is asked of a continuous latent, nats, ≥ 0."""
    capacity_steps: Annotated[int, Range(1, 10**9)] = 25_000
    """Optimizer steps until the continuous capacity is reached, ≥ 1."""
    kl_scale: KLScale = "original"
    """What is divided by P_v, the number of values of view v. `original`: every view's whole loss, so that relative to
    the summed reconstruction error divergences have their weights; `port` (the published baseline): the divergences
    only, which makes them P_v times weaker than that, and the discrete one V times weaker still."""
    discrete_capacity: DiscreteCapacity = "continuous"
    """How the categorical latent's capacity grows, up to log K either way. `continuous` (original): by as much a step
    as the continuous one; `log_k` (the published baseline): over all of `capacity_steps`."""


@dataclass(frozen=True, kw_only=True)
class MultiVAEOutput(EmbeddingOutput):
    """Output of Multi-VAE; `consensus` is α, the categorical latent's distribution, as the published attack has it."""

    means: tuple[Tensor, ...]
    """V × (B, Z)."""
    log_vars: tuple[Tensor, ...]
    """V × (B, Z)."""
    continuous: tuple[Tensor, ...]
    """V × (B, Z): s^v, samples in training mode and the means in inference mode."""
    discrete: Tensor
    """(B, K): c, relaxed samples of α in training mode and one-hot in inference mode; rows sum to 1."""


@dataclass(frozen=True, kw_only=True)
class LatentNoise:
    """What one pass in training mode draws."""

    normal: tuple[Tensor, ...]
    """V × (B, Z), standard normal."""
    uniform: Tensor
    """(B, K) in [0, 1)."""


class MultiVAE(nn.Module):
    """Encoders, latents, decoders and a k-means head; nothing is shared between the views but α."""

    def __init__(
        self,
        encoders: Sequence[Encoder],
        decoders: Sequence[Decoder],
        n_clusters: int,
        *,
        hidden_width: int,
        latent_width: int,
        temperature: float,
    ) -> None:
        super().__init__()
        n_views = len(encoders)
        self.head = KMeansHead(n_clusters + n_views * latent_width, n_clusters)
        self.encoders = nn.ModuleList(encoders)
        self.features_to_hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(encoder.out_features, hidden_width), nn.ReLU(inplace=True)) for encoder in encoders
        )
        self.mean_transforms = nn.ModuleList(nn.Linear(hidden_width, latent_width) for _ in encoders)
        self.log_var_transforms = nn.ModuleList(nn.Linear(hidden_width, latent_width) for _ in encoders)
        self.alpha_transform = nn.Sequential(nn.Linear(n_views * hidden_width, n_clusters), nn.Softmax(dim=1))
        self.latents_to_features = nn.ModuleList(
            nn.Sequential(
                nn.Linear(latent_width + n_clusters, hidden_width),
                nn.ReLU(inplace=True),
                nn.Linear(hidden_width, encoder.out_features),
                nn.ReLU(inplace=True),
            )
            for encoder in encoders
        )
        self.decoders = nn.ModuleList(decoders)
        self.n_clusters = n_clusters
        self.latent_width = latent_width
        self.temperature = temperature

    def encode(self, views: Views) -> tuple[Tensor, ...]:
        """Flattened encoder outputs: V × (B, *shape_v) → V × (B, D_v).

        Raises: ValueError if the number of views is not that of the encoders.
        """
        if len(views) != len(self.encoders):
            raise ValueError(f"views must be {len(self.encoders)} tensors, one per encoder, got {len(views)}")
        return tuple(encoder(view) for encoder, view in zip(self.encoders, views, strict=True))

    def draw(self, views: Views, generator: torch.Generator | None = None) -> LatentNoise:
        """Noise for a pass of these views, from `generator` or, without one, from torch's global stream."""
        like = views[0]
        normal = [like.new_empty(len(like), self.latent_width).normal_(generator=generator) for _ in views]
        uniform = like.new_empty(len(like), self.n_clusters).uniform_(generator=generator)
        return LatentNoise(normal=tuple(normal), uniform=uniform)

    def infer(self, views: Views, noise: LatentNoise | None) -> MultiVAEOutput:
        """Latents and clusters of the views; without noise latents are means and one-hot codes."""
        features = self.encode(views)
        hidden = [layer(feature) for layer, feature in zip(self.features_to_hidden, features, strict=True)]
        means = tuple(layer(h) for layer, h in zip(self.mean_transforms, hidden, strict=True))
        log_vars = tuple(layer(h) for layer, h in zip(self.log_var_transforms, hidden, strict=True))
        alpha = self.alpha_transform(torch.cat(hidden, dim=1))
        if noise is None:
            continuous, discrete = means, straight_through_one_hot(alpha)
        else:
            continuous = tuple(gaussian_sample(*each) for each in zip(means, log_vars, noise.normal, strict=True))
            discrete = gumbel_softmax(alpha, noise.uniform, self.temperature)
        embedding = torch.cat((discrete, *continuous), dim=1)
        logits = self.head(embedding)
        return MultiVAEOutput(
            view_latents=features,
            consensus=alpha,
            logits=logits,
            assignments=logits.softmax(dim=1),
            embedding=embedding,
            means=means,
            log_vars=log_vars,
            continuous=continuous,
            discrete=discrete,
        )

    def forward(self, views: Views, generator: torch.Generator | None = None) -> MultiVAEOutput:
        """V × (B, *shape_v) → output.

        In training mode latents are samples, drawn as in `draw`. In inference mode they are means and the one-hot of
        argmax α. That code is constant almost everywhere, so its gradient is set to the gradient of α
        (straight-through): otherwise an attack on the assignments could not see the view-common latent, and a model
        that clusters by it would seem robust without being so.
        """
        return self.infer(views, self.draw(views, generator) if self.training else None)

    def reconstruct(self, output: MultiVAEOutput) -> Views:
        """Views decoded from the output's latents: V × (B, *shape_v) in [0, 1]."""
        return tuple(
            decoder(layers(torch.cat((latent, output.discrete), dim=1)))
            for decoder, layers, latent in zip(self.decoders, self.latents_to_features, output.continuous, strict=True)
        )


def build(config: MultiVAEConfig, view_shapes: ViewShapes, n_clusters: int) -> MultiVAE:
    """Network for these views; their shapes may differ, the widths of their latents not (attacks compare them).

    Raises: ValueError if an encoder does not fit a view, latent widths differ, or n_clusters < 2.
    """
    return MultiVAE(
        build_encoders(config.encoder, view_shapes, config.dense_widths),
        [build_decoder(config.encoder, shape, config.dense_widths, sigmoid=True) for shape in view_shapes],
        n_clusters,
        hidden_width=config.hidden_width,
        latent_width=config.latent_width,
        temperature=config.gumbel_temperature,
    )


def capacities(config: MultiVAEConfig, step: int, n_clusters: int) -> tuple[float, float]:
    """Continuous and discrete capacity in a step, nats. Args: step: counted from 1."""
    rate = config.continuous_capacity / config.capacity_steps
    largest = math.log(n_clusters)
    discrete_rate = rate if config.discrete_capacity == "continuous" else largest / config.capacity_steps
    return (
        capacity(step, rate=rate, maximum=config.continuous_capacity),
        capacity(step, rate=discrete_rate, maximum=largest),
    )


def vae_terms(
    config: MultiVAEConfig, output: MultiVAEOutput, views: Views, reconstructions: Views, step: int
) -> dict[str, Tensor]:
    """Multi-VAE's loss: weighted `continuous_v` and `reconstruction_v` per view, and `discrete`.

    Args:   views, reconstructions: V × (B, *shape_v) in [0, 1]. step: counted from 1.
    Returns: with kl_scale `original`, the sum over views of
        (P_v·BCE_v + β |C_s − KL_v| + γ |C_c − KL|) / P_v; with `port`, the sum over views of
        P_v·BCE_v + β |C_s − KL_v| / P_v, plus γ V |C_c − KL| / Σ P_v.
    """
    sizes = [view[0].numel() for view in views]
    continuous_capacity, discrete_capacity = capacities(config, step, output.consensus.shape[1])
    original = config.kl_scale == "original"
    terms = {}
    for v, size in enumerate(sizes):
        distance = (continuous_capacity - gaussian_kl(output.means[v], output.log_vars[v])).abs()
        terms[f"continuous_{v}"] = config.continuous_weight / size * distance
    share = sum(1 / size for size in sizes) if original else len(sizes) / sum(sizes)
    distance = (discrete_capacity - categorical_kl(output.consensus)).abs()
    terms["discrete"] = config.discrete_weight * share * distance
    for v, size in enumerate(sizes):
        error = clipped_bce(reconstructions[v], views[v])
        terms[f"reconstruction_{v}"] = error if original else size * error
    return terms


def stages(config: MultiVAEConfig, epochs: int) -> tuple[Stage, ...]:
    """One stage of `epochs` epochs."""

    def terms(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        assert isinstance(model, MultiVAE)
        output = model(views, step.generator)
        return vae_terms(config, output, views, model.reconstruct(output), step.step + 1)

    objective = StageObjective(terms=terms, optimizer=lambda model: adam(model, config.learning_rate))
    return (Stage(name="train", epochs=epochs, objectives=(objective,)),)


MULTI_VAE = Method(config=MultiVAEConfig, build=build, stages=stages, calibrate=calibrate_kmeans)
