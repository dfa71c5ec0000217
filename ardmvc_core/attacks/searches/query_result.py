"""What an attack that only asks a model for outputs gives back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ardmvc_core.types import Views


@dataclass(frozen=True, kw_only=True)
class QueryResult:
    """What a search without gradients found for B samples."""

    views: Views
    """V × (B, *shape_v), inside the budget: the flipped point where there is one, else the best that was found. The
    model has been asked about every one of them, except of samples that were given up."""
    flipped: Tensor
    """(B,) bool: the returned point is in another cluster."""
    queries: Tensor
    """(B,) int64, how often the model was asked about the sample; a flipped sample is asked about no more."""
    best_loss: Tensor
    """(B,) largest value of what the search raises; −∞ where it has found nothing."""


def may_arrive(before: Tensor, now: Tensor, looks_left: float) -> Tensor:
    """(B,) bool: whether a distance that only falls gets to 0 in the looks that are left, at its pace since the last.

    Searches slow down, so this is kind to the search. Nothing is hoped for where no distance was found at all (∞).

    Args:   before, now: (B,) distances ≥ 0 at the last look and at this one.
    """
    return now <= (before - now).nan_to_num(nan=0.0, posinf=torch.inf) * looks_left


def check_counts(**counts: int) -> None:
    """Raises: ValueError naming the first of them that is not positive."""
    for name, count in counts.items():
        if not count >= 1:
            raise ValueError(f"{name} must be ≥ 1, got {count}")
