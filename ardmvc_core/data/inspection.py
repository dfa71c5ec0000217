"""What a user's file holds, and what a study will make of it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from ardmvc_core.data.arrays import Contents
from ardmvc_core.data.dataset import Protocol, part_rows
from ardmvc_core.data.reading import one_line
from ardmvc_core.data.scaling import Array, Scale
from ardmvc_core.data.user_file import Orientation, UserData, read_and_fit

if TYPE_CHECKING:
    from ardmvc_core.data.config import DatasetConfig

_PROTOCOLS: tuple[Protocol, ...] = ("strict", "official")


@dataclass(frozen=True)
class ViewFacts:
    """One view, as it is and as it becomes."""

    name: str
    shape: tuple[int, ...]
    """(N, D) or (N, C, H, W)."""
    dtype: str
    sparse: bool
    least: float
    most: float
    zeros: float
    """Share of values that are 0."""
    scale: Scale
    left_out: int
    """Features that do not vary in the training part."""
    clipped: float
    """Share of values, over all parts but training, beyond what the training part holds."""
    reach: str
    """How far the ε that was asked for goes."""


@dataclass(frozen=True)
class Inspection:
    """A file that a study can be run on."""

    kind: str
    """In words: `MATLAB 5`."""
    orientation: Orientation
    samples: int
    n_clusters: int
    label_name: str | None
    class_sizes: dict[int, int]
    """The file's own number of each class → its samples; empty without labels."""
    views: tuple[ViewFacts, ...]
    duplicates: tuple[tuple[int, ...], ...]
    """Rows, from 0, that are equal in every view, two or more in each group."""
    across_parts: int
    """Groups with rows in different parts of the strict protocol."""
    parts: dict[str, dict[str, int]]
    """Protocol → part → its samples."""
    absent: dict[str, int]
    """Part of the strict protocol → classes of which it has no sample; parts that have all are left out."""


def inspect_file(config: DatasetConfig, eps: float) -> Inspection:
    """Everything that is to be known of a file before a study starts.

    Args: eps: L∞ radius that is shown in the data's own units.
    Raises: DataError listing every fault.
    """
    data, scaling = read_and_fit(config)
    rows = {protocol: part_rows(config, protocol, len(data)) for protocol in _PROTOCOLS}
    strict = rows["strict"]
    others = np.concatenate([own for part, own in strict.items() if part != "train"])
    views = []
    for (name, view), fit in zip(data.views.items(), scaling, strict=True):
        scaled, clipped = fit.with_clipped(view[others])
        views.append(
            ViewFacts(
                name=name,
                shape=tuple(map(int, view.shape)),
                dtype=str(view.dtype),
                sparse=scipy.sparse.issparse(view),
                least=float(view.min()),
                most=float(view.max()),
                zeros=1 - _nonzero(view) / float(np.prod(view.shape)),
                scale=fit.kind,
                left_out=0 if fit.kept is None else fit.shape[0] - len(fit.kept),
                clipped=clipped / scaled.size,
                reach=fit.reach(eps),
            )
        )
    groups = duplicates(data)
    place = {int(row): part for part, own in strict.items() for row in own}
    return Inspection(
        kind=data.contents.kind,
        orientation=data.orientation,
        samples=len(data),
        n_clusters=data.n_clusters,
        label_name=data.label_name,
        class_sizes={}
        if data.labels is None
        else dict(zip(data.classes, map(int, np.bincount(data.labels)), strict=True)),
        views=tuple(views),
        duplicates=groups,
        across_parts=sum(len({place.get(row) for row in group} - {None}) > 1 for group in groups),
        parts={protocol: {part: len(own) for part, own in parts.items()} for protocol, parts in rows.items()},
        absent=_absent(data, strict),
    )


def duplicates(data: UserData) -> tuple[tuple[int, ...], ...]:
    """Groups of rows, from 0, that are equal in every view."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    digests = [hashlib.blake2b(digest_size=16) for _ in range(len(data))]
    for view in data.views.values():
        for digest, content in zip(digests, _rows(view), strict=True):
            digest.update(content)
    for number, digest in enumerate(digests):
        groups[digest.digest()].append(number)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def held(contents: Contents) -> list[tuple[str, str]]:
    """Every array of a file: its name, and its shape and type in words."""
    found = [(one_line(name), _described(value)) for name, value in contents.values.items()]
    return found + [(one_line(name), f"cannot be read: {reason}") for name, reason in contents.unread.items()]


def _described(value: Any) -> str:
    if isinstance(value, list):
        members = list(dict.fromkeys(map(_described, value)))
        return f"cell of {len(value)}: {', '.join(members[:6])}{', …' if len(members) > 6 else ''}"
    if value.dtype.names is not None:
        return f"struct with {one_line(', '.join(value.dtype.names))}"
    if value.dtype.kind in "US":
        return "text"
    sparse = "sparse " if scipy.sparse.issparse(value) else ""
    return f"{' × '.join(map(str, value.shape)) or 'one number'}, {sparse}{value.dtype}"


def _nonzero(view: Array) -> int:
    return int(view.count_nonzero() if scipy.sparse.issparse(view) else np.count_nonzero(view))


def _rows(view: Array) -> list[bytes]:
    """The bytes of each row, equal for equal rows."""
    if not scipy.sparse.issparse(view):
        # 0 and −0 are one number and two patterns of bits.
        return [row.tobytes() for row in view + np.zeros(1, dtype=view.dtype)]
    tidy = view.copy()
    tidy.sum_duplicates()
    tidy.eliminate_zeros()
    ends = zip(tidy.indptr[:-1], tidy.indptr[1:], strict=True)
    return [tidy.indices[a:b].tobytes() + tidy.data[a:b].tobytes() for a, b in ends]


def _absent(data: UserData, parts: dict[str, Any]) -> dict[str, int]:
    if data.labels is None:
        return {}
    missing = {part: len(data.classes) - len(np.unique(data.labels[rows])) for part, rows in parts.items()}
    return {part: count for part, count in missing.items() if count}
