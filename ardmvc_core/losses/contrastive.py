"""Contrastive alignment of the views' latents, as CoMVC uses it."""

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

PairChoice = Literal["all", "first"]


def view_pairs(n_views: int, choice: PairChoice = "all") -> tuple[tuple[int, int], ...]:
    """Unordered pairs (s, t), s < t, of `n_views` views; `first` is views 0 and 1 only."""
    return ((0, 1),) if choice == "first" else tuple(combinations(range(n_views), 2))


def unit_rows(rows: Tensor) -> Tensor:
    """Rows divided by their Euclidean norm, (B, D) → (B, D). A row of zeros stays zero, with a finite gradient."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Contrastive loss of a view pair: the two latents of a sample attract, all others of both views repel.

    Args:   first, second: (B, D) latents, any scale (normalised here). temperature: > 0.
    Returns: scalar ≥ 0, nats: mean over the B anchors of the first view plus the same over those of the second. Each
        anchor has one positive and 2B − 2 negatives.
    Raises: ValueError if the shapes differ or B < 2 (no negatives).
    Source: Chen et al. 2020 (SimCLR), Eq. 1, twice its mean over anchors; Trosten et al. 2021 (CoMVC).
    """
    if first.shape != second.shape or first.shape[0] < 2:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"first and second must have the same shape (B, D) with B ≥ 2, got {shapes}")
    return _pair_loss(unit_rows(first), unit_rows(second), temperature)


def _pair_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """`nt_xent` of rows that have length 1."""
    across = first @ second.T / temperature
    same = torch.eye(first.shape[0], dtype=torch.bool, device=first.device)
    # −1e9, not −∞: finite, and exactly no weight in any softmax.
    within_first = (first @ first.T / temperature).masked_fill(same, -1e9)
    within_second = (second @ second.T / temperature).masked_fill(same, -1e9)
    positives = torch.arange(first.shape[0], device=first.device)
    return cross_entropy(torch.cat([across, within_first], dim=1), positives) + cross_entropy(
        torch.cat([across.T, within_second], dim=1), positives
    )


def contrastive_terms(
    latents: tuple[Tensor, ...], fusion_weights: Tensor, *, temperature: float, adaptive_weight: bool
) -> dict[str, Tensor]:
    """The contrastive loss of every view pair, weighted so that the sum is a mean over pairs.

    Args:   latents: V × (B, D). fusion_weights: (V,), before their softmax. temperature: > 0. adaptive_weight: also
            weigh by the smallest fusion share (a constant for differentiation), so that a view that the fusion
            ignores is not aligned with by force.
    Returns: scalars `contrast_0_1`, `contrast_0_2`, … each times 2/(V(V−1)) and, if adaptive, the smallest share.
    Raises: ValueError as `nt_xent`.
    Source: Trosten et al. 2021 (CoMVC), Sec. 4.
    """
    pairs = view_pairs(len(latents))
    weight = fusion_weights.detach().softmax(dim=0).min() if adaptive_weight else 1.0
    return {f"contrast_{s}_{t}": weight / len(pairs) * nt_xent(latents[s], latents[t], temperature) for s, t in pairs}


def mean_contrast(latents: tuple[Tensor, ...], temperature: float, pairs: PairChoice = "all") -> Tensor:
    """Contrastive loss per anchor, averaged over view pairs: what AR-DMVC's inner maximisation raises.

    Args:   latents: V × (B, D). temperature: > 0. pairs: `all`, or `first` for views 0 and 1 (the published code).
    Returns: scalar ≥ 0, nats per anchor.
    Raises: ValueError as `nt_xent`.
    """
    chosen = view_pairs(len(latents), pairs)
    losses = [nt_xent(latents[s], latents[t], temperature) for s, t in chosen]
    return torch.stack(losses).mean() / 2
