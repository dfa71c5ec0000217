"""What an attack that only asks a model for outputs gives back."""

from dataclasses import dataclass

from torch import Tensor

from ardmvc_core.types import Views


@dataclass(frozen=True, kw_only=True)
class QueryResult:
    """What a search without gradients found for B samples."""

    views: Views
    """V × (B, *shape_v), inside the budget: the flipped point where there is one, else the best that was found. The
    model has been asked about every one of them."""
    flipped: Tensor
    """(B,) bool: the returned point is in another cluster."""
    queries: Tensor
    """(B,) int64, how often the model was asked about the sample; a flipped sample is asked about no more."""
    best_loss: Tensor
    """(B,) largest value of what the search raises; −∞ where it has found nothing."""


def check_counts(**counts: int) -> None:
    """Raises: ValueError naming the first of them that is not positive."""
    for name, count in counts.items():
        if not count >= 1:
            raise ValueError(f"{name} must be ≥ 1, got {count}")
