"""A user's own views from an .npz file.

The file holds `view_0 … view_{V-1}` with V ≥ 2, each (N, D) or (N, C, H, W), numbers in [0, 1] up to rounding, row i of
each the same sample; and `labels` (N,), integers ≥ 0 of any numbering, or `n_clusters`, one integer, or both. Views may
have another name before their number, and be numbered from 1 or with zeros in front (`view_01`, `X1`): see
`_view_keys`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
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

logger = logging.getLogger(__name__)

ROUNDING = 1e-6
"""How far outside [0, 1] a value may lie: scaling in float32 leaves as much. It is clipped, with a note."""
_VIEW = "view"
_SHOWN = 12
"""Names of arrays that a message lists."""
_NUMBER = re.compile(r"[0-9]{1,9}")


def load_npz(config: DatasetConfig, protocol: Protocol) -> dict[str, Part]:
    """The parts of a user's file, its values clipped to [0, 1]; a note in the log says how many were outside.

    Raises: DataError listing every fault with file, key and value.
    """
    views, labels, n_clusters, faults = _read(config)
    if faults:
        raise DataError("; ".join(faults))
    for number, view in enumerate(views):
        clipped = np.clip(view, 0, 1)
        if outside := int((clipped != view).sum()):
            where, most = f"{shown_path(config.path)}: {_VIEW}_{number}", np.abs(clipped - view).max()
            logger.warning("%s: %d values were up to %.1e outside [0, 1] and are clipped to it", where, outside, most)
            views[number] = clipped
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
    keys, fault = _view_keys(names)
    if fault:
        faults.append(f"{where}: {fault}, got {_some(map(one_line, sorted(names)))}")
    views = {key: arrays[key] for key in keys if key in arrays}
    for key, view in views.items():
        faults += [f"{where}: {key} {fault}" for fault in _view_faults(view)]
    lengths = {key: len(view) for key, view in views.items() if view.ndim}
    if len(set(lengths.values())) > 1:
        faults.append(f"{where}: views must have one common length, got {_listed(lengths)}")
    classes, labels, label_faults = _labels(arrays.get("labels"), lengths)
    n_clusters, count_fault = _n_clusters(arrays.get("n_clusters"), classes, "labels" in names, lengths)
    faults += [f"{where}: {fault}" for fault in [*label_faults, *count_fault]]
    if not faults:
        faults += [f"{where}: {fault}" for fault in count_faults(config, len(views[keys[0]]))]
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


def _view_keys(names: Collection[str]) -> tuple[list[str], str | None]:
    """The names that are those of views, in order of their numbers, and what is wrong with them.

    Views are the arrays called `view_<number>`, or, where there is none, the only ones that share another name before
    their number. Names that differ in case, or in `_`, `-`, `.` and spaces before the number, are one name in two
    spellings, so that no view is left out for its spelling. Numbers begin at 0 or 1 and have no gap: a gap is a view
    that is missing.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        stem = _stem(name)
        if stem != name and name not in ("labels", "n_clusters"):
            groups.setdefault(stem.casefold().rstrip("_-. "), []).append(name)
    candidates = {stem: found for stem, found in groups.items() if stem == _VIEW} or {
        stem: found for stem, found in groups.items() if len(found) > 1
    }
    if len(candidates) > 1:
        some = _some(sorted(one_line(min(found)) for found in candidates.values()))
        return [], f"views must be numbered view_0, view_1, …: {some} all begin a numbered list"
    numbered = sorted((_number(name), name) for found in candidates.values() for name in found)
    keys, numbers = [name for _, name in numbered], [number for number, _ in numbered]
    if len({_stem(name) for name in keys}) > 1:
        return keys, "views must have one name before their number, like view_0, view_1, …"
    if twice := [keys[i : i + 2] for i in range(len(keys) - 1) if numbers[i] == numbers[i + 1] >= 0]:
        return keys, f"{' and '.join(map(one_line, twice[0]))} have one number"
    if len(keys) < 2 or numbers[0] not in (0, 1) or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return keys, "at least two views are needed, numbered view_0, view_1, … without a gap from 0 or 1"
    return keys, None


def _stem(name: str) -> str:
    """A name without the number at its end, in any digits that Unicode has."""
    return name.rstrip("".join(filter(str.isnumeric, set(name))))


def _number(name: str) -> int:
    """The number at the end of a name; −1 for one that no view has."""
    digits = name.removeprefix(_stem(name))
    return int(digits) if _NUMBER.fullmatch(digits) else -1


def _view_faults(view: NDArray[Any]) -> list[str]:
    if view.dtype.kind not in "fiu":
        return [f"must hold real numbers, got dtype {one_line(view.dtype)}"]
    if view.ndim not in (2, 4) or 0 in view.shape:
        return [f"must be of shape (N, D) or (N, C, H, W) and not empty, got {one_line(view.shape)}"]
    if view.min() >= -ROUNDING and view.max() <= 1 + ROUNDING:  # neither holds where a value is NaN
        return []
    faults = []
    bad = ~np.isfinite(view)
    if bad.any():
        faults.append(f"must be finite, got {_first(view, bad)}")
    with np.errstate(invalid="ignore"):
        outside = ((view < -ROUNDING) | (view > 1 + ROUNDING)) & ~bad
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
    return _some(f"{key}: {length}" for key, length in lengths.items())


def _some(entries: Iterable[str]) -> str:
    """The first of a list, and how many more there are."""
    listed = list(entries)
    return ", ".join([*listed[:_SHOWN], *([f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else [])])


NPZ = Source(
    load=load_npz,
    check=check_npz,
    fields=frozenset({"path"}),
    eps=0.10,
    eps_grid=(0.01, 0.02, 0.05, 0.10, 0.20),
)
