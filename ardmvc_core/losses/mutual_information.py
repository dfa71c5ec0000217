"""Mutual information between the views' latents, read as distributions over their features, as InfoDDC uses it."""

from typing import Literal

import torch
from torch import Tensor

from ardmvc_core.losses.contrastive import view_pairs

InformationPairs = Literal["all", "published"]


def joint_distribution(first: Tensor, second: Tensor) -> Tensor:
    """Symmetric joint distribution of two views' features, averaged over the batch.

    Args:   first, second: (B, D) ≥ 0, row i of both is the same sample; rows usually sum to 1.
    Returns: (D, D) ≥ 0, symmetric, sums to 1. One matrix product: memory grows with D², not with B·D².
    Raises: ValueError if the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"first and second must have the same shape (B, D), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    joint = first.T @ second
    joint = (joint + joint.T) / 2
    return joint / joint.sum()


def mutual_information_loss(first: Tensor, second: Tensor, entropy_weight: float, floor: float = 1e-9) -> Tensor:
    """−[I + α(H₁ + H₂)]: low where the views inform about each other and use all features alike.

    Args:   first, second: (B, D) ≥ 0, rows sum to 1. entropy_weight: α ≥ 0. floor: > 0; smaller entries of joint and
            marginals are replaced by it and then have no gradient.
    Returns: scalar, nats, ≥ −(2α + 1)·ln D up to the floor.
    Raises: ValueError if the shapes differ.
    Source: Lin et al. 2021 (COMPLETER); Trosten et al. 2023 (InfoDDC).
    """
    joint = joint_distribution(first, second)
    marginal = _at_least(joint.sum(dim=1), floor)
    joint = _at_least(joint, floor)
    # The joint is symmetric: both marginals are one vector, and so are the floored joint's row and column sums.
    return 2 * (entropy_weight + 1) * (joint.sum(dim=1) * marginal.log()).sum() - (joint * joint.log()).sum()


def _at_least(values: Tensor, floor: float) -> Tensor:
    return torch.where(values < floor, floor, values)


def information_pairs(n_views: int, choice: InformationPairs = "all") -> tuple[tuple[int, int], ...]:
    """View pairs (u, v): `all` is every pair of different views, u < v; `published` adds the self-pairs (u, u) of all
    views but the last."""
    if choice == "all":
        return view_pairs(n_views)
    return tuple((u, v) for u in range(n_views - 1) for v in range(u, n_views))


def mutual_information_terms(
    latents: tuple[Tensor, ...], *, entropy_weight: float, pairs: InformationPairs
) -> dict[str, Tensor]:
    """The loss of every pair; their sum, not their mean, is the method's.

    Args:   latents: V × (B, D) ≥ 0, rows sum to 1. entropy_weight: α ≥ 0. pairs: see `information_pairs`.
    Returns: scalars `mutual_information_0_1`, …
    Raises: ValueError as `mutual_information_loss`.
    """
    return {
        f"mutual_information_{u}_{v}": mutual_information_loss(latents[u], latents[v], entropy_weight)
        for u, v in information_pairs(len(latents), pairs)
    }
