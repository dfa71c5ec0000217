"""The types that data, models, attacks and the trainer share, and the shape legend.

V views, N samples, B batch, K clusters, D latent dimension, C H W channels and image size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Views = tuple[Tensor, ...]
"""V × (B, *shape_v), float32 in [0, 1]: one tensor per view, row i of each is the same sample."""

ViewShapes = tuple[tuple[int, ...], ...]
"""Shape of one sample in each view, without the batch axis: (C, H, W) for images, (D,) for vectors."""

Perturb = Callable[[nn.Module, Views], Views]
"""A finished attack, trained or not: (model, clean views) → attacked views of the same shapes."""


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """What an attack may shift and a metric may read, the same for every model."""

    view_latents: tuple[Tensor, ...]
    """V × (B, D_v): C^v of the paper, one latent per view."""
    consensus: Tensor
    """(B, D): C of the paper, the representation that the assignments are read from."""
    logits: Tensor
    """(B, K): before the softmax, so that attacks do not meet a saturated one."""
    assignments: Tensor
    """(B, K): soft assignments, rows sum to 1."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingOutput(ModelOutput):
    """Output of a model whose clusters are found by k-means: logits are read from its frozen centroids."""

    embedding: Tensor
    """(B, F): what k-means clusters."""


class Optimizer(Protocol):
    """What the trainer asks of an optimizer: `ardmvc_core.adam.Adam` and those of torch have it."""

    @property
    def state(self) -> Mapping[Tensor, Any]:
        """What is remembered of each parameter, by name."""

    def step(self) -> Any:
        """Moves the parameters along their gradients."""

    def state_dict(self) -> dict[str, Any]:
        """All that further steps depend on, of tensors and plain types only."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Where training stands, and the random stream of the step."""

    epoch: int
    """Counted from 0 over all stages."""
    step: int
    """Optimizer steps done before this one, over all stages."""
    generator: torch.Generator
    """The stream of all that a step draws: inner attacks, sampled latents, noise; lives on the model's device."""


Terms = Callable[[nn.Module, Views, StepContext], dict[str, Tensor]]
"""Weighted, named loss terms of one batch; their sum is minimised."""


@dataclass(frozen=True, kw_only=True)
class StageObjective:
    """One optimizer step per batch: what is minimised, and over which parameters."""

    terms: Terms
    optimizer: Callable[[nn.Module], Optimizer]
    passes: int = 1
    """Passes of a batch through the network, each differentiated, that `terms` takes; read by cost estimates only."""
    passes_without_gradient: int = 0
    """Further passes that are not differentiated."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training with the same objectives; methods differ by their list of stages."""

    name: str
    epochs: int
    objectives: tuple[StageObjective, ...]
    prepare: Callable[[nn.Module, Views, int], None] | None = None
    """Called once when the stage begins, with the training views and a seed of its own; what it computes goes into a
    module buffer, so that a checkpoint carries it."""
    renew_optimizers: bool = False
    """Whether every epoch, and not only the stage, begins with fresh optimizers."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the paper's table."""

    config: type
    """Frozen dataclass with `name: Literal[…]`."""
    build: Callable[[Any, ViewShapes, int], nn.Module]
    """(config, view_shapes, n_clusters) → network."""
    stages: Callable[[Any, int], tuple[Stage, ...]]
    """(config, epochs) → what the trainer runs; `epochs` are those of the main training, pre-training has its own."""
    calibrate: Callable[[nn.Module, Views, int], None] | None = None
    """(model in inference mode, clean training views, seed): fits what an assignment needs besides trained weights,
    such as centroids, into buffers. `training.calibrate` runs it before an evaluation; training never reads it."""
    looks: Callable[[Any], int] = lambda config: 1
    """(config) → how often `calibrate` passes over the training views."""
    defence: tuple[str, ...] = ()
    """Fields of the config that weigh the defence against attacks; empty for a method without one."""

    def plain(self, config: Any) -> Any:
        """The config with the defence switched off: all its weights are 0."""
        return replace(config, **dict.fromkeys(self.defence, 0.0))
