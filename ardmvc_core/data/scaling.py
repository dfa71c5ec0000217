"""Scaling of a user's views to [0, 1], fitted on the training part, and what ε is in the data's own units.

Attacks know one box, [0, 1], and one ε per view. Each view fills that box with what its training part holds: `minmax`
each feature by itself, every other kind by one least and one largest value of the whole scaled view. What lies beyond
them in other parts is clipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.utils.sparsefuncs import mean_variance_axis

from ardmvc_core.data.dataset import DataError, FloatArray, IndexArray

Scale = Literal["none", "minmax", "standard", "unit_norm", "tfidf"]
Array = Any
"""A view as a file has it: (N, D), an array or a `csr_array`, or (N, C, H, W)."""

ROUNDING = 1e-6
"""How far outside [0, 1] a value of a view that is not scaled may lie: scaling in float32 leaves as much."""
_CHUNK = 2048
"""Rows that are dense and in double precision at a time."""
_UNITS: dict[str, str] = {
    "none": "in the view's own units",
    "minmax": "of each feature's range",
    "standard": "standard deviations of each feature",
    "unit_norm": "of a sample whose length is 1",
    "tfidf": "of a tf-idf sample whose length is 1",
}


@dataclass(frozen=True, kw_only=True)
class ViewScaling:
    """How raw samples of one view become what a model sees; plain arrays, so that a checkpoint can hold them."""

    kind: Scale
    shape: tuple[int, ...]
    """Of a raw sample: (D,) or (C, H, W)."""
    kept: IndexArray | None = None
    """(M,) features that vary in the training part, the others being left out; None: all."""
    weights: NDArray[np.float64] | None = None
    """(M,) inverse document frequencies of `tfidf`."""
    low: NDArray[np.float64]
    """() or (M,): what becomes 0."""
    width: NDArray[np.float64]
    """() or (M,): low + width becomes 1."""
    unit: float
    """Width of the box in the kind's unit: ε times it is how far an attack may go."""

    def __post_init__(self) -> None:
        features = self.shape[0] if self.kept is None else len(self.kept)
        arrays = [self.low, self.width, *(() if self.weights is None else (self.weights,))]
        if self.kind not in get_args(Scale) or len(self.shape) not in (1, 3):
            raise ValueError(f"scaling must be a {', '.join(get_args(Scale))} of vectors or images")
        if self.kept is not None and not (features and self.kept.min() >= 0 and self.kept.max() < self.shape[0]):
            raise ValueError(f"kept features must lie in 0..{self.shape[0] - 1}")
        if any(array.shape not in ((), (features,)) or not np.isfinite(array).all() for array in arrays):
            raise ValueError(f"low, width and weights must be finite numbers, one or {features}")
        if not ((self.width > 0).all() and self.unit > 0):
            raise ValueError("width and unit must be > 0")

    @property
    def view_shape(self) -> tuple[int, ...]:
        """Of a scaled sample."""
        return self.shape if self.kept is None else (len(self.kept),)

    def apply(self, view: Array) -> FloatArray:
        """Raw samples as a model takes them.

        Args: view: (N, *shape), dense or sparse. Returns: (N, *view_shape) float32 in [0, 1].
        Raises: DataError for samples of another shape.
        """
        return self.with_clipped(view)[0]

    def with_clipped(self, view: Array) -> tuple[FloatArray, int]:
        """As `apply`, and how many values lay outside [0, 1] and were clipped."""
        if view.shape[1:] != self.shape:
            raise DataError(f"samples must be of shape {self.shape}, got {view.shape[1:]}")
        scaled = np.empty((view.shape[0], *self.view_shape), dtype=np.float32)
        clipped = 0
        for start, block in self._normed(view):
            block -= self.low
            block /= self.width
            clipped += int(((block < 0) | (block > 1)).sum())
            np.clip(block, 0, 1, out=scaled[start : start + len(block)], casting="same_kind")
        return scaled, clipped

    def reach(self, eps: float) -> str:
        """How far an L∞ ε goes, in words: "0.05 of each feature's range: 0.3 … 12 as stored"."""
        steps = np.unique(eps * self.width)
        stored = f": {steps[0]:.3g} … {steps[-1]:.3g} as stored" if self.kind in ("minmax", "standard") else ""
        return f"{eps * self.unit:.3g} {_UNITS[self.kind]}{stored}"

    def _normed(self, view: Array) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Blocks of rows, dense and in double precision, before the box; each with the number of its first row."""
        for start in range(0, view.shape[0], _CHUNK):
            block = _dense(view[start : start + _CHUNK])
            if self.kept is not None:
                block = block[:, self.kept]
            if self.weights is not None:
                block = block * self.weights
            if self.kind in ("unit_norm", "tfidf"):
                lengths = np.sqrt(np.square(block).sum(axis=tuple(range(1, block.ndim)), keepdims=True))
                block = block / np.where(lengths > 0, lengths, 1)
            yield start, block


Scaling = tuple[ViewScaling, ...]
"""One per view."""


def fit_view(kind: Scale, view: Array) -> ViewScaling:
    """The scaling of one view.

    `none` leaves a view alone that lies in [0, 1]; another one fills the box with its own range, features keeping
    their proportions. All other kinds leave out the features of a vector view that do not vary: these have no range
    that ε could be a share of, and a network never learns what they would mean. Images have one range, mean and
    deviation for all pixels.

    Args:   view: (N, D) or (N, C, H, W) of the training part, finite.
    Raises: ValueError if nothing varies, or `tfidf` is asked of images or of negative numbers.
    """
    shape = tuple(int(length) for length in view.shape[1:])
    vectors = len(shape) == 1
    least, most = _extremes(view)
    low, high = float(least.min()), float(most.max())
    if kind == "none" and low >= -ROUNDING and high <= 1 + ROUNDING:
        return ViewScaling(kind=kind, shape=shape, low=np.array(0.0), width=np.array(1.0), unit=1.0)
    if not high > low or not np.any(most > least):
        raise ValueError("does not vary in the training part: nothing can be scaled")
    if kind == "tfidf" and (not vectors or low < 0):
        raise ValueError(f"tfidf needs counts ≥ 0 in vectors, got {f'{low:g}' if vectors else f'images {shape}'}")
    kept = np.flatnonzero(most > least) if vectors and kind != "none" else None
    if kept is not None:
        kept, least, most = (None if len(kept) == shape[0] else kept), least[kept], most[kept]
    if kind == "minmax":
        return ViewScaling(kind=kind, shape=shape, kept=kept, low=least, width=most - least, unit=1.0)
    if kind == "standard":
        return _standard(view, kept, least, most, shape)
    weights = None
    if kind == "tfidf":
        documents = np.asarray((view > 0).sum(axis=0), dtype=np.float64).ravel()
        documents = documents if kept is None else documents[kept]
        weights = np.log((1 + view.shape[0]) / (1 + documents)) + 1
    whole = ViewScaling(
        kind=kind, shape=shape, kept=kept, weights=weights, low=np.array(0.0), width=np.array(1.0), unit=1.0
    )
    ends = [(float(block.min()), float(block.max())) for _, block in whole._normed(view)]
    low, high = min(end for end, _ in ends), max(end for _, end in ends)
    if not high > low:
        raise ValueError(f"does not vary in the training part after {kind}: nothing can be scaled")
    return replace(whole, low=np.array(low), width=np.array(high - low), unit=high - low)


def scaling_arrays(scaling: Scaling) -> dict[str, NDArray[Any]]:
    """Everything of a scaling as arrays by name, for an .npz that needs no pickle."""
    arrays: dict[str, NDArray[Any]] = {}
    for number, view in enumerate(scaling):
        fields = {name: getattr(view, name) for name in ("kind", "shape", "kept", "weights", "low", "width", "unit")}
        arrays |= {f"scaling/{number}/{name}": np.asarray(value) for name, value in fields.items() if value is not None}
    return arrays


def scaling_from(arrays: Mapping[str, NDArray[Any]]) -> Scaling:
    """What `scaling_arrays` was given; further arrays are ignored.

    Raises: ValueError or KeyError if they are damaged or of something else.
    """
    views: list[ViewScaling] = []
    while f"scaling/{len(views)}/kind" in arrays:
        mark = f"scaling/{len(views)}/"
        fields = {name.removeprefix(mark): array for name, array in arrays.items() if name.startswith(mark)}
        views.append(
            ViewScaling(
                kind=fields["kind"].item(),
                shape=tuple(fields["shape"].astype(np.int64).tolist()),
                kept=fields["kept"].astype(np.int64) if "kept" in fields else None,
                weights=fields["weights"].astype(np.float64) if "weights" in fields else None,
                low=fields["low"].astype(np.float64),
                width=fields["width"].astype(np.float64),
                unit=float(fields["unit"]),
            )
        )
    return tuple(views)


def scaled(scaling: Scaling, views: Sequence[Array]) -> list[FloatArray]:
    """Raw views as a model takes them: V × (N, *view_shape) float32 in [0, 1].

    Raises: DataError if they are not the views that the scaling is of, with both shapes.
    """
    if [view.shape[1:] for view in views] != [view.shape for view in scaling]:
        wanted, got = [view.shape for view in scaling], [view.shape[1:] for view in views]
        raise DataError(f"views must have samples of shapes {wanted}, got {got}")
    return [view_scaling.apply(view) for view_scaling, view in zip(scaling, views, strict=True)]


def _standard(
    view: Array, kept: IndexArray | None, least: NDArray[Any], most: NDArray[Any], shape: tuple[int, ...]
) -> ViewScaling:
    """Each feature less its mean, over its standard deviation, in a box that holds them all."""
    if scipy.sparse.issparse(view):
        mean, variance = mean_variance_axis(view.astype(np.float64), axis=0)
        spread = np.sqrt(variance)
    else:
        axis = 0 if len(shape) == 1 else None
        mean, spread = np.mean(view, axis=axis, dtype=np.float64), np.std(view, axis=axis, dtype=np.float64)
    if kept is not None:
        mean, spread = mean[kept], spread[kept]
    low, high = float(((least - mean) / spread).min()), float(((most - mean) / spread).max())
    return ViewScaling(
        kind="standard",
        shape=shape,
        kept=kept,
        low=np.asarray(mean + low * spread),
        width=np.asarray((high - low) * spread),
        unit=high - low,
    )


def _extremes(view: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(D,) least and largest value of each feature; () of images, over all pixels."""
    ends = (view.min(axis=0), view.max(axis=0)) if view.ndim == 2 else (view.min(), view.max())
    if scipy.sparse.issparse(view):
        ends = tuple(end.toarray().ravel() for end in ends)
    return np.asarray(ends[0], dtype=np.float64), np.asarray(ends[1], dtype=np.float64)


def _dense(view: Array) -> NDArray[np.float64]:
    dense = view.toarray() if scipy.sparse.issparse(view) else view
    return np.array(dense, dtype=np.float64)
