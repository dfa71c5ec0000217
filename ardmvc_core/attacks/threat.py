"""The threat model as a value: how far each view may be moved, and the projection that enforces it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ardmvc_core.types import Views

Norm = Literal["linf", "l2"]

MOST_COMPARED = 500
"""Samples of which `sample_distances` measures every pair, at most."""


@dataclass(frozen=True, kw_only=True)
class Threat:
    """A ball around each clean view, intersected with the range of valid inputs; training and evaluation read it."""

    norm: Norm = "linf"
    """What ε limits in each view: `linf` the largest change of a value, `l2` the Euclidean length of the change."""
    eps: float | tuple[float, ...]
    """Radius in the data's units, for all views or one per view; > 0, finite, in L∞ at most the width of `bounds`."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest valid input value."""
    attacked_views: tuple[int, ...] | None = None
    """Indices of the views that may be moved; None means all."""

    def __post_init__(self) -> None:
        lower, upper = self.bounds
        if not lower < upper:
            raise ValueError(f"bounds must be (lower, upper) with lower < upper, got {self.bounds}")
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {self.norm!r}")
        entries = self.eps if isinstance(self.eps, tuple) else (self.eps,)
        if not entries or not all(0 < eps < math.inf for eps in entries):
            raise ValueError(f"eps must be > 0 and finite, got {self.eps}")
        if self.norm == "linf" and max(entries) > upper - lower:
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


def limits(clean: Views, budget: Threat) -> tuple[Views, Views]:
    """Smallest and largest allowed value of each input: ± ε in both norms, intersected with the bounds.

    Args:   clean: V × (B, *shape), inside the bounds.
    Returns: two tuples of V × (B, *shape). For a view that is not attacked both are the clean view itself.
    """
    lower, upper = budget.bounds
    eps = budget.eps_per_view(len(clean))
    lows = tuple((x - e).clamp_(min=lower) if e > 0 else x for x, e in zip(clean, eps, strict=True))
    highs = tuple((x + e).clamp_(max=upper) if e > 0 else x for x, e in zip(clean, eps, strict=True))
    return lows, highs


def project(clean: Views, attacked: Views, budget: Threat) -> Views:
    """Views that the budget allows, near the attacked ones; in L∞ the nearest.

    Args:   clean, attacked: V × (B, *shape), same shapes; clean inside the bounds.
    Returns: V × (B, *shape): within ε of the clean views and inside the bounds; views that are not attacked come back
        clean. NaN stays NaN.
    Raises: ValueError if the shapes differ.
    """
    if [x.shape for x in clean] != [x.shape for x in attacked]:
        raise ValueError(f"attacked views must have the clean shapes {_shapes(clean)}, got {_shapes(attacked)}")
    eps = budget.eps_per_view(len(clean))
    lows, highs = limits(clean, budget)
    return tuple(
        project_view(x, moved, low, high, e if budget.norm == "l2" else None) if e > 0 else x
        for x, moved, low, high, e in zip(clean, attacked, lows, highs, eps, strict=True)
    )


def project_view(clean: Tensor, moved: Tensor, low: Tensor, high: Tensor, radius: float | None) -> Tensor:
    """One attacked view inside its budget.

    Args: all (B, *shape); low, high: of `limits`. radius: of an L2 ball, None for L∞, where `low` and `high` say all.
    """
    if radius is not None:
        change = moved - clean
        length = change.flatten(1).norm(dim=1).clamp(min=radius)
        # Bounds last: the clean view is inside them, so that clipping only shortens a change.
        moved = clean + change * per_row(radius / length, change)
    return torch.clamp(moved, low, high)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """(B, *shape) the step of length 1 in that norm along which a linear function rises most; 0 where it is flat."""
    return gradient.sign() if norm == "linf" else unit_length(gradient)


def unit_length(values: Tensor) -> Tensor:
    """(B, *shape) each row divided by its Euclidean length; rows of zeros stay."""
    # Divided by the largest entry first, or squares of tiny gradients would vanish.
    largest = values.flatten(1).abs().amax(1)
    scaled = values / per_row(largest.where(largest > 0, 1.0), values)
    length = scaled.flatten(1).norm(dim=1)
    return scaled / per_row(length.where(length > 0, 1.0), values)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(B,) numbers in a shape that multiplies the rows of `like`, (B, *shape)."""
    return values.view(-1, *(1,) * (like.dim() - 1))


def sample_distances(views: Views) -> tuple[float, ...]:
    """Per view the median Euclidean distance between two samples, over all pairs of the first `MOST_COMPARED`.

    Args: views: V × (N, *shape_v). Returns: V numbers ≥ 0, in the data's units; 0 for a single sample.
    """
    found = []
    for view in views:
        rows = view[:MOST_COMPARED].flatten(1)
        found.append(float(torch.pdist(rows).quantile(0.5)) if len(rows) > 1 else 0.0)
    return tuple(found)


def l2_threat(
    share: float | tuple[float, ...], distances: Sequence[float], attacked_views: tuple[int, ...] | None = None
) -> Threat:
    """The L2 budget whose radii are shares of the distances between samples.

    Args:   share: > 0, for all views or one per view. distances: V numbers, of `sample_distances`. attacked_views: as
            in `Threat`; a view in which samples do not differ (distance 0) is left out.
    Raises: ValueError if no view is left, or as `Threat` and `eps_per_view`.
    """
    shares = Threat(norm="l2", eps=share, attacked_views=attacked_views).eps_per_view(len(distances))
    radii = tuple(e * d for e, d in zip(shares, distances, strict=True))
    if not any(radii):
        raise ValueError("eps has no size in L2: the median distance between samples is 0 in every attacked view")
    # A budget has a radius > 0 for each view; of those that are not attacked it is not read.
    attacked = tuple(v for v, radius in enumerate(radii) if radius > 0)
    return Threat(norm="l2", eps=tuple(radius or 1.0 for radius in radii), attacked_views=attacked)


def _shapes(views: Views) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in views]
