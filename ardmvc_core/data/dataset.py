"""What a data set is, before and after it is read, and how its rows are shuffled and cut into parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ardmvc_core.errors import UserError
from ardmvc_core.types import Views, ViewShapes

if TYPE_CHECKING:  # a config knows the sources, and these how they are read
    from ardmvc_core.data.config import DatasetConfig
    from ardmvc_core.data.scaling import Scaling

Protocol = Literal["official", "strict"]

IndexArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

MIN_SAMPLES = 10
"""Fewer rows would leave a part empty, the smallest being a tenth."""

OFFICIAL_CUTS = {"train": 50, "attack": 100}
STRICT_CUTS = {"train": 50, "tune": 60, "attacker": 80, "score": 100}
"""Per part, where it ends, in per cent of the shuffle."""


class DataError(UserError, ValueError):
    """Data that cannot be used; the message names the file or array, what was found and what is allowed."""


@dataclass(frozen=True)
class MultiViewDataset:
    """Views of the same samples, with their classes where they are known.

    Raises: ValueError if the views or the labels differ in length, or there is no view.
    """

    name: str
    views: Views
    """V × (N, C, H, W) or (N, D), float32 in [0, 1]."""
    labels: Tensor | None
    """(N,) int64 in 0..K-1; None: only label-free metrics can be computed."""
    n_clusters: int
    """K; also of a part that happens to lack a class."""
    scaling: Scaling = ()
    """How raw views of a user's file became these, one per view, and how new ones do; empty for other data sets."""

    def __post_init__(self) -> None:
        lengths = {len(view) for view in self.views} | ({len(self.labels)} if self.labels is not None else set())
        if len(lengths) != 1:
            raise ValueError(f"views and labels must have one common length, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.views[0])

    @property
    def view_shapes(self) -> ViewShapes:
        """Shape of one sample in each view."""
        return tuple(tuple(view.shape[1:]) for view in self.views)

    def to(self, device: torch.device | str) -> MultiViewDataset:
        """The same data on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, views=tuple(view.to(device) for view in self.views), labels=labels)

    def subset(self, indices: Tensor | Sequence[int]) -> MultiViewDataset:
        """The rows that `indices` names, (M,) integers, in that order; K stays."""
        rows = torch.as_tensor(indices, dtype=torch.int64, device=self.views[0].device)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, views=tuple(view[rows] for view in self.views), labels=labels)


@dataclass(frozen=True)
class Part:
    """A named part of a data set, and which rows it holds."""

    data: MultiViewDataset
    indices: Tensor
    """(N,) int64: each sample's row in the source collection, after the choice of classes and before the shuffle."""
    digest: str
    """SHA-256, in hex, of the content: views, labels and number of clusters, whatever file they came from."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """All that is known of a data set before it is read: one entry of `DATASETS`."""

    load: Callable[[DatasetConfig, Protocol], dict[str, Part]]
    """Reads the data and cuts it into the protocol's parts; raises DataError."""
    check: Callable[[DatasetConfig], list[str]]
    """Every fault that `load` would meet, without its work; [] if there is none."""
    fields: frozenset[str]
    """Fields of `DatasetConfig` that mean something for it beyond `name`, `samples` and the seeds."""
    eps: float
    """L∞ radius of the evaluation, in (0, 1]."""
    eps_grid: tuple[float, ...]
    """Radii of the ε curve."""
    strict_cuts: Mapping[str, int] = field(default_factory=lambda: STRICT_CUTS)
    """Per part of the strict protocol, where it ends, in per cent of the shuffle."""
    supervised: Mapping[float, float] = field(default_factory=dict)
    """ε → robust ACC of supervised adversarial training, where it is known: no clustering is better."""


def shuffled_rows(config: DatasetConfig, count: int) -> IndexArray:
    """The first `config.samples` row numbers of the published shuffle of `count` rows.

    Raises: DataError if there are not enough rows.
    Source: AR-DMVC's loader: a choice without replacement from NumPy's legacy generator.
    """
    faults = count_faults(config, count)
    if faults:
        raise DataError("; ".join(faults))
    seed = config.seed if config.shuffle_seed is None else config.shuffle_seed
    order = np.random.RandomState(seed).permutation(count)
    return order[: config.samples].astype(np.int64)


def count_faults(config: DatasetConfig, count: int) -> list[str]:
    """What is wrong with a collection of `count` rows for this config; [] if nothing."""
    if count < MIN_SAMPLES:
        return [f"{config.name}: {count} samples found, at least {MIN_SAMPLES} are needed so that no part is empty"]
    if config.samples is not None and config.samples > count:
        return [f"{config.name}: samples must be ≤ {count}, the number of samples there are, got {config.samples}"]
    return []


def part_rows(config: DatasetConfig, protocol: Protocol, count: int) -> dict[str, IndexArray]:
    """Row numbers of each part: consecutive stretches of the shuffle.

    Returns: official: train, attack (halves); strict: train, tune, attacker, score (50/10/20/20 per cent, and
        50/20/15/15 for noisy_digits, whose tenth would be too small to rank trials by).
    Raises: ValueError on another protocol; DataError if there are not enough rows.
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol must be official or strict, got {protocol!r}")
    order = shuffled_rows(config, count)
    parts: dict[str, IndexArray] = {}
    start = 0
    for part, percent in (OFFICIAL_CUTS if protocol == "official" else config.source.strict_cuts).items():
        end = len(order) * percent // 100
        parts[part] = order[start:end]
        start = end
    return parts


def make_part(
    name: str,
    views: Sequence[FloatArray],
    labels: IndexArray | None,
    n_clusters: int,
    rows: IndexArray,
    scaling: Scaling = (),
) -> Part:
    """Wraps the arrays of one part, already in its order, its row numbers, and how its views were scaled."""
    data = MultiViewDataset(
        name=name,
        views=tuple(torch.from_numpy(np.ascontiguousarray(view)) for view in views),
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        n_clusters=n_clusters,
        scaling=scaling,
    )
    return Part(data=data, indices=torch.from_numpy(rows.astype(np.int64)), digest=content_digest(data))


def content_digest(data: MultiViewDataset) -> str:
    """SHA-256, in hex, of the number of clusters, and of type, shape and bytes of each view and the labels."""
    found = hashlib.sha256(f"{data.n_clusters}".encode())
    for tensor in (*data.views, *(() if data.labels is None else (data.labels,))):
        array = tensor.numpy()
        found.update(f"|{array.dtype.name}{array.shape}|".encode())
        found.update(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).data)
    return found.hexdigest()


def cut_parts(
    config: DatasetConfig,
    protocol: Protocol,
    views: Sequence[FloatArray],
    labels: IndexArray | None,
    n_clusters: int,
    scaling: Scaling = (),
) -> dict[str, Part]:
    """Cuts views whose rows belong together already (no pairing to draw) into the protocol's parts."""
    parts: dict[str, Part] = {}
    for part, rows in part_rows(config, protocol, len(views[0])).items():
        own = None if labels is None else labels[rows]
        parts[part] = make_part(config.name, [view[rows] for view in views], own, n_clusters, rows, scaling)
    return parts
