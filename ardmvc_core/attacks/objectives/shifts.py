"""How far an attack moves a model's representations from where they are on clean views; no labels."""

from typing import Literal

import torch
from torch import Tensor

from ardmvc_core.types import ModelOutput

Distance = Literal["squared_mean", "norm_sum"]
"""How a shift is measured: mean squared L2 distance (slides), or half the L2 distances summed (published code)."""


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
