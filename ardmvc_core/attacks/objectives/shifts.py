"""What attacks raise: shifts of a model's representations, its contrastive loss, or its assignment error.

All of them are label-free: the reference is the model's own output on the clean views.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ardmvc_core.losses.contrastive import mean_contrast
from ardmvc_core.types import ModelOutput, Views

Distance = Literal["squared_mean", "norm_sum"]
"""How a shift is measured: mean squared L2 distance (slides), or half the L2 distances summed (published code)."""

ObjectiveName = Literal["features", "contrastive", "assignment"]


def shift(clean: Tensor, attacked: Tensor, distance: Distance) -> Tensor:
    """How far one representation moved over a batch.

    Args: clean, attacked: (B, …), compared sample by sample. distance: see `Distance`.
    Returns: scalar ≥ 0.
    Source: Huang et al. 2024 (AR-DMVC): E‖·‖² in the paper's attack losses; ½ Σ‖·‖ in its code.
    """
    difference = (attacked - clean).flatten(1)
    if distance == "squared_mean":
        return difference.square().sum(1).mean()
    return 0.5 * torch.linalg.vector_norm(difference, dim=1).sum()


def complementarity_shift(clean: ModelOutput, attacked: ModelOutput, distance: Distance) -> Tensor:
    """L_a-com: shift of the view latents C^v, summed over views. Returns: scalar ≥ 0."""
    pairs = zip(clean.view_latents, attacked.view_latents, strict=True)
    return torch.stack([shift(before, after, distance) for before, after in pairs]).sum()


def consistency_shift(clean: ModelOutput, attacked: ModelOutput, distance: Distance) -> Tensor:
    """L_a-con: shift of the consensus C. Returns: scalar ≥ 0."""
    return shift(clean.consensus, attacked.consensus, distance)


def latent_spread(latents: Tensor) -> Tensor:
    """Mean squared L2 distance between different samples, the natural unit of a squared shift.

    Args: latents: (B, D). Returns: scalar; 1 where it would be 0 (a single sample, or all equal).
    """
    if len(latents) < 2:
        return latents.new_ones(())
    # The mean over pairs i ≠ j is twice the unbiased variance, without the B × B matrix.
    distance = 2 * latents.var(dim=0).sum()
    return torch.where(distance > 0, distance, torch.ones_like(distance))


def features_objective(model: nn.Module, clean_views: Views) -> Callable[[Views], Tensor]:
    """Squared shift of every view latent and of the consensus, each in units of its `latent_spread`.

    Args: clean_views: V × (B, *shape_v), the reference.
    Returns: function from attacked views to (B,) values ≥ 0.
    """
    with torch.no_grad():
        clean = model(clean_views)
        references = [(latents.flatten(1), latent_spread(latents.flatten(1))) for latents in _latents(clean)]

    def value(views: Views) -> Tensor:
        attacked = _latents(model(views))
        return torch.stack(
            [
                (latents.flatten(1) - reference).square().sum(1) / unit
                for latents, (reference, unit) in zip(attacked, references, strict=True)
            ]
        ).sum(0)

    return value


def contrastive_objective(model: nn.Module, temperature: float) -> Callable[[Views], Tensor]:
    """The contrastive loss between the latents of a sample, over all view pairs.

    Samples of a batch are each other's negatives, so there is no value per sample.
    Returns: function from attacked views to a scalar, the mean over pairs; needs at least two samples.
    """

    def value(views: Views) -> Tensor:
        latents = model.encode(views)  # type: ignore[operator]
        return mean_contrast(tuple(latent.flatten(1) for latent in latents), temperature)

    return value


def assignment_objective(model: nn.Module, clean_views: Views) -> Callable[[Views], Tensor]:
    """Cross-entropy of the attacked logits to the model's own clean clusters.

    Read from logits: a saturated softmax would hide the gradient.
    Returns: function from attacked views to (B,) values ≥ 0.
    """
    with torch.no_grad():
        clusters = model(clean_views).logits.argmax(1)

    def value(views: Views) -> Tensor:
        return F.cross_entropy(model(views).logits, clusters, reduction="none")

    return value


def _latents(output: ModelOutput) -> tuple[Tensor, ...]:
    return (*output.view_latents, output.consensus)
