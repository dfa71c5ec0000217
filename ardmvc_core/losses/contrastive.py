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
    """Rows divided by their Euclidean norm, (…, B, D) → the same. A row of zeros stays zero, with a finite gradient."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Contrastive loss of a view pair: the two latents of a sample attract, all others of both views repel.

    Args:   first, second: (…, B, D) latents, any scale (normalised here); batches of the same size may be stacked
            before. temperature: > 0.
    Returns: (…), each ≥ 0, nats: mean over the B anchors of the first view plus the same over those of the second.
        Each anchor has one positive and 2B − 2 negatives.
    Raises: ValueError if the shapes differ or B < 2 (no negatives).
    Source: Chen et al. 2020 (SimCLR), Eq. 1, twice its mean over anchors; Trosten et al. 2021 (CoMVC).
    """
    if first.shape != second.shape or first.shape[-2] < 2:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"first and second must have the same shape (…, B, D) with B ≥ 2, got {shapes}")
    *stacked, samples, _ = first.shape
    rows = unit_rows(torch.cat([first, second], dim=-2)).reshape(-1, 2 * samples, first.shape[-1])
    # −1e9, not −∞: finite, and exactly no weight in any softmax.
    itself = rows.new_full((2 * samples,), -1e9).diag()
    logits = torch.baddbmm(itself, rows, rows.mT, alpha=1 / temperature)
    positives = torch.arange(2 * samples, device=rows.device).roll(samples).repeat(len(rows))
    losses = cross_entropy(logits.flatten(0, 1), positives, reduction="none")
    return 2 * losses.view(*stacked, 2 * samples).mean(dim=-1)


def contrastive_terms(
    latents: tuple[Tensor, ...], fusion_weights: Tensor, *, temperature: float, adaptive_weight: bool
) -> dict[str, Tensor]:
    """The contrastive loss of every view pair, weighted so that the sum is a mean over pairs.

    Args:   latents: V × (…, B, D). fusion_weights: (V,), before their softmax. temperature: > 0. adaptive_weight: also
            weigh by the smallest fusion share (a constant for differentiation), so that a view that the fusion
            ignores is not aligned with by force.
    Returns: `contrast_0_1`, `contrast_0_2`, … (…), each times 2/(V(V−1)) and, if adaptive, the smallest share.
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
    return sum(losses[1:], losses[0]) / (2 * len(losses))
