"""The three contrastive losses of SEM. Each is the same when its two arguments change places.

Source: Xu et al., "Self-Weighted Contrastive Learning among Multiple Views for Mitigating Representation
Degeneration", NeurIPS 2023.
"""

import math

import torch
from torch import Tensor


def info_nce(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    """InfoNCE: cross-entropy of finding a sample's row of the other view among all other rows of both views.

    Args:   first, second: (B, D), taken as they are (SEM passes rows of length 1). temperature: > 0, divides the inner
            products.
    Returns: scalar ≥ 0, nats, mean over the 2B rows; each has one positive and 2B − 2 negatives, which do not include
        the row itself.
    Raises: ValueError if the shapes differ or B < 2 (no negatives).
    Source: van den Oord et al. 2018; Chen et al. 2020.
    """
    positive, others = _log_similarities(first, second, temperature)
    return (others - positive).mean()


def rince(
    first: Tensor, second: Tensor, *, temperature: float = 0.5, strength: float = 0.001, q: float = 0.5
) -> Tensor:
    """RINCE: InfoNCE's positives and negatives under a symmetric loss, which bears false positives better.

    Args:   first, second, temperature: as in `info_nce`. strength: λ > 0, weight of the negatives. q: in (0, 1].
    Returns: scalar, mean over the 2B rows of (λ(p + n))^q/q − p^q/q, with p = exp(similarity of the positive) and n the
        sum of exp over the negatives.
    Raises: ValueError as `info_nce`.
    Source: Chuang et al. 2022 (RINCE).
    """
    positive, others = _log_similarities(first, second, temperature)
    return (torch.exp(q * (math.log(strength) + others)) - torch.exp(q * positive)).mean() / q


def pscl(first: Tensor, second: Tensor, squared_radius: float = 3.0) -> Tensor:
    """PSCL: spectral contrastive loss of rows that are first drawn back into a ball.

    Args:   first, second: (B, D). squared_radius: > 0; longer rows are shortened to its root, with gradient.
    Returns: scalar: −2 times the mean inner product of a sample's two rows, plus the mean squared inner product between
        rows of different samples.
    Raises: ValueError as `info_nce`.
    Source: HaoChen et al. 2021 (spectral contrastive loss).
    """
    samples = _checked(first, second)
    inner = _into_ball(first, squared_radius) @ _into_ball(second, squared_radius).T
    # The diagonal is masked, not subtracted: its entries are the largest.
    same = torch.eye(samples, dtype=torch.bool, device=inner.device)
    negatives = inner.square().masked_fill(same, 0).sum() / (samples * (samples - 1))
    return negatives - 2 * inner.diagonal().mean()


def _log_similarities(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Per row of both views, (2B,) each: similarity of its positive, and log Σ exp over all rows but itself."""
    samples = _checked(first, second)
    rows = torch.cat([first, second])
    similarity = rows @ rows.T / temperature
    # −1e9, not −∞: finite, and exactly no weight in the sum.
    itself = torch.eye(2 * samples, dtype=torch.bool, device=rows.device)
    others = similarity.masked_fill(itself, -1e9).logsumexp(dim=1)
    positive = similarity.diagonal(samples)
    return torch.cat([positive, positive]), others


def _into_ball(rows: Tensor, squared_radius: float) -> Tensor:
    radius = math.sqrt(squared_radius)
    return rows * (radius / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=radius))


def _checked(first: Tensor, second: Tensor) -> int:
    if first.shape != second.shape or first.shape[0] < 2:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"first and second must have the same shape (B, D) with B ≥ 2, got {shapes}")
    return first.shape[0]
