"""A user's own views from an .npz file.

The file holds `view_0 … view_{V-1}` with V ≥ 2, each (N, D) or (N, C, H, W), numbers in [0, 1], row i of each the same
sample; and `labels` (N,), integers ≥ 0 of any numbering, or `n_clusters`, one integer, or both.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ardmvc_core.data.dataset import (
    DataError,
    FloatArray,
    IndexArray,
    Part,
    Protocol,
    Source,
    count_faults,
    cut_parts,
)
from ardmvc_core.data.reading import file_fault, fitted, one_line, read_archive, reading, shown_path
from ardmvc_core.places import expanded

if TYPE_CHECKING:
    from ardmvc_core.data.config import DatasetConfig

_VIEW = "view_"
_SHOWN = 12
"""Names of arrays that a message lists."""


def load_npz(config: DatasetConfig, protocol: Protocol) -> dict[str, Part]:
    """The parts of a user's file.

    Raises: DataError listing every fault with file, key and value.
    """
    views, labels, n_clusters, faults = _read(config)
    if faults:
        raise DataError("; ".join(faults))
    return cut_parts(config, protocol, views, labels, n_clusters)


def check_npz(config: DatasetConfig) -> list[str]:
    """Every fault that `load_npz` would meet; reads the whole file, since NaN can be anywhere."""
    return _read(config)[3]


def _read(config: DatasetConfig) -> tuple[list[FloatArray], IndexArray | None, int, list[str]]:
    """Views, labels from 0, K, and the faults (then the rest is not to be used)."""
    try:
        path, arrays, unread = _arrays(config.path or "")
    except DataError as error:
        return [], None, 0, [str(error)]
    where = shown_path(path)
    faults = [f"{where}: {one_line(key)} cannot be read: {reason}" for key, reason in unread.items()]
    names = arrays.keys() | unread
    if not names:
        return [], None, 0, [f"{where}: holds no arrays"]
    if fault := _numbering_fault(names):
        faults.append(f"{where}: {fault}")
    views = {key: array for number in range(len(names)) if (array := arrays.get(key := f"{_VIEW}{number}")) is not None}
    for key, view in views.items():
        faults += [f"{where}: {key} {fault}" for fault in _view_faults(view)]
    lengths = {key: len(view) for key, view in views.items() if view.ndim}
    if len(set(lengths.values())) > 1:
        faults.append(f"{where}: views must have one common length, got {_listed(lengths)}")
    classes, labels, label_faults = _labels(arrays.get("labels"), lengths)
    n_clusters, count_fault = _n_clusters(arrays.get("n_clusters"), classes, "labels" in names, lengths)
    faults += [f"{where}: {fault}" for fault in [*label_faults, *count_fault]]
    if not faults:
        faults += [f"{where}: {fault}" for fault in count_faults(config, len(views["view_0"]))]
    if faults:
        return [], None, 0, fitted(faults)
    return [view.astype(np.float32) for view in views.values()], labels, n_clusters, []


def _arrays(given: str) -> tuple[Path, dict[str, NDArray[Any]], dict[str, str]]:
    """The file, its arrays, and by name why the others cannot be read. Raises: DataError if nothing can be."""
    with reading(given):
        path = Path(expanded(given))
        if fault := file_fault(path):
            raise DataError(f"{shown_path(path)}: {fault} (dataset.path)")
        with path.open("rb") as stream:
            return path, *read_archive(stream)


def _numbering_fault(names: Collection[str]) -> str | None:
    """What is wrong with the numbers of the views, in any digits that Unicode has."""
    numbered = {name for name in names if name.startswith(_VIEW) and name.removeprefix(_VIEW).isnumeric()}
    if len(numbered) >= 2 and numbered == {f"{_VIEW}{number}" for number in range(len(numbered))}:
        return None
    listed = [one_line(name) for name in sorted(names)]
    more = [f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else []
    found = ", ".join([*listed[:_SHOWN], *more])
    return f"at least two views are needed, numbered view_0, view_1, … without a gap, got {found}"


def _view_faults(view: NDArray[Any]) -> list[str]:
    if view.dtype.kind not in "fiu":
        return [f"must hold real numbers, got dtype {one_line(view.dtype)}"]
    if view.ndim not in (2, 4) or 0 in view.shape:
        return [f"must be of shape (N, D) or (N, C, H, W) and not empty, got {one_line(view.shape)}"]
    if view.min() >= 0 and view.max() <= 1:  # neither holds where a value is NaN
        return []
    faults = []
    bad = ~np.isfinite(view)
    if bad.any():
        faults.append(f"must be finite, got {_first(view, bad)}")
    with np.errstate(invalid="ignore"):
        outside = ((view < 0) | (view > 1)) & ~bad
    if outside.any():
        faults.append(f"must lie in [0, 1], got {_first(view, outside)}")
    return faults


def _first(view: NDArray[Any], mask: NDArray[np.bool_]) -> str:
    position = tuple(int(index) for index in np.unravel_index(int(mask.argmax()), mask.shape))
    return f"{view[position]} at {list(position)} ({int(mask.sum())} of {view.size} values)"


def _labels(labels: NDArray[Any] | None, lengths: dict[str, int]) -> tuple[int | None, IndexArray | None, list[str]]:
    """Number of classes, labels re-indexed from 0, and the faults."""
    if labels is None:
        return None, None, []
    faults = []
    if labels.ndim != 1 or (lengths and len(labels) not in lengths.values()):
        faults.append(f"labels must be one per sample ({_listed(lengths)}), got shape {one_line(labels.shape)}")
    if labels.dtype.kind not in "iu":
        first = labels.flat[:3].tolist()
        faults.append(f"labels must be integers, got dtype {one_line(labels.dtype)} (first values {one_line(first)})")
    elif labels.size and labels.min() < 0:
        faults.append(f"labels must be ≥ 0, got {labels.min()} at {int(np.argmin(labels))}")
    if faults:
        return None, None, faults
    classes, indices = np.unique(labels, return_inverse=True)
    return len(classes), indices.astype(np.int64), []


def _n_clusters(
    given: NDArray[Any] | None, classes: int | None, labelled: bool, lengths: dict[str, int]
) -> tuple[int, list[str]]:
    """K, from the file or else from the labels, and the fault if there is one."""
    if given is None:
        if classes is None:
            # Faulty labels are reported already, and K cannot be told from them.
            return 0, [] if labelled else ["n_clusters (one integer) must be given where there are no labels"]
        return classes, [] if classes >= 2 else [f"labels must hold at least two classes, got {classes}"]
    least, most = max(2, classes or 0), max(lengths.values(), default=0)
    if given.dtype.kind not in "iu" or given.size != 1 or not given.item() >= least:
        values = given.item() if given.size == 1 else given.flat[:3].tolist()
        more = f" and {given.size - 3} more" if given.size > 3 else ""
        return 0, [
            f"n_clusters must be one integer ≥ {least}, got {one_line(values)}{more} of dtype {one_line(given.dtype)}"
        ]
    if most and given.item() > most:
        return 0, [f"n_clusters must be ≤ {most}, the number of samples, got {given.item()}"]
    return int(given.item()), []


def _listed(lengths: dict[str, int]) -> str:
    listed = [f"{key}: {length}" for key, length in lengths.items()]
    return ", ".join([*listed[:_SHOWN], *([f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else [])])


NPZ = Source(
    load=load_npz,
    check=check_npz,
    fields=frozenset({"path"}),
    eps=0.10,
    eps_grid=(0.01, 0.02, 0.05, 0.10, 0.20),
)
