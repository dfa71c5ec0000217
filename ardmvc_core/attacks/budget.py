"""The threat model as a value: how far each view may be moved, and the projection that enforces it."""

from dataclasses import dataclass

import torch

from ardmvc_core.types import Views


@dataclass(frozen=True, kw_only=True)
class AttackBudget:
    """L∞ ball around the clean views, intersected with the range of valid inputs."""

    eps: float | tuple[float, ...]
    """Largest change of an input value, > 0 and at most the width of `bounds`; one for all views or one per view."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest valid input value."""
    attacked_views: tuple[int, ...] | None = None
    """Indices of the views that may be moved; None means all."""

    def __post_init__(self) -> None:
        lower, upper = self.bounds
        if not lower < upper:
            raise ValueError(f"bounds must be (lower, upper) with lower < upper, got {self.bounds}")
        entries = self.eps if isinstance(self.eps, tuple) else (self.eps,)
        if not entries or not all(0 < eps <= upper - lower for eps in entries):
            raise ValueError(f"eps must be in (0, {upper - lower:g}], got {self.eps}")
        if self.attacked_views is not None:
            views = self.attacked_views
            if not views or len(set(views)) != len(views) or min(views) < 0:
                raise ValueError(f"attacked_views must be distinct indices ≥ 0, at least one, got {views}")

    def eps_per_view(self, n_views: int) -> tuple[float, ...]:
        """ε of each of `n_views` views, 0 for one that is not attacked.

        Raises: ValueError if the budget names another number of views or a view that does not exist.
        """
        eps = self.eps if isinstance(self.eps, tuple) else (self.eps,) * n_views
        if len(eps) != n_views:
            raise ValueError(f"eps must be one number or {n_views} (one per view), got {self.eps}")
        if self.attacked_views is None:
            return eps
        if max(self.attacked_views) >= n_views:
            raise ValueError(f"attacked_views must be below the number of views {n_views}, got {self.attacked_views}")
        return tuple(e if v in self.attacked_views else 0.0 for v, e in enumerate(eps))


def limits(clean: Views, budget: AttackBudget) -> tuple[Views, Views]:
    """Smallest and largest allowed value of every input: the ε-ball intersected with the bounds.

    Args:   clean: V × (B, *shape), inside the bounds.
    Returns: two tuples of V × (B, *shape). For a view that is not attacked both are the clean view itself.
    """
    lower, upper = budget.bounds
    eps = budget.eps_per_view(len(clean))
    lows = tuple((x - e).clamp_(min=lower) if e > 0 else x for x, e in zip(clean, eps, strict=True))
    highs = tuple((x + e).clamp_(max=upper) if e > 0 else x for x, e in zip(clean, eps, strict=True))
    return lows, highs


def project(clean: Views, attacked: Views, budget: AttackBudget) -> Views:
    """Nearest views that the budget allows.

    Args:   clean, attacked: V × (B, *shape), same shapes; clean inside the bounds.
    Returns: V × (B, *shape): every value within ε of the clean one and inside the bounds; views that are not
        attacked come back clean. NaN stays NaN.
    Raises: ValueError if the shapes differ.
    """
    if [x.shape for x in clean] != [x.shape for x in attacked]:
        raise ValueError(f"attacked views must have the clean shapes {_shapes(clean)}, got {_shapes(attacked)}")
    eps = budget.eps_per_view(len(clean))
    lows, highs = limits(clean, budget)
    return tuple(
        torch.clamp(moved, low, high) if e > 0 else x
        for x, moved, low, high, e in zip(clean, attacked, lows, highs, eps, strict=True)
    )


def _shapes(views: Views) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in views]
