"""A user's own views from an .npz file.

The file holds `view_0 … view_{V-1}` with V ≥ 2, each (N, D) or (N, C, H, W), numbers in [0, 1], row i of each the same
sample; and `labels` (N,), integers ≥ 0 of any numbering, or `n_clusters`, one integer, or both.
"""

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ardmvc_core.data.dataset import (
    DataError,
    DatasetConfig,
    FloatArray,
    IndexArray,
    Part,
    Protocol,
    count_faults,
    cut_parts,
)

_VIEW = re.compile(r"view_(\d+)")
_UNREADABLE = (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises on damaged members; ValueError also on arrays of objects, which would need pickle."""


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
    path = Path(config.path or "").expanduser()
    arrays, faults, unread = _arrays(path)
    if not arrays:
        return [], None, 0, faults
    numbers = sorted(int(match[1]) for key in arrays | unread if (match := _VIEW.fullmatch(key)))
    if numbers != list(range(len(numbers))) or len(numbers) < 2:
        found = ", ".join(sorted(arrays | unread))
        faults.append(f"{path}: at least two views are needed, numbered view_0, view_1, … without a gap, got {found}")
    views = {key: arrays[key] for key in (f"view_{number}" for number in numbers) if key in arrays}
    for key, view in views.items():
        faults += [f"{path}: {key} {fault}" for fault in _view_faults(view)]
    lengths = {key: len(view) for key, view in views.items() if view.ndim}
    if len(set(lengths.values())) > 1:
        faults.append(f"{path}: views must have one common length, got {_listed(lengths)}")
    classes, labels, label_faults = _labels(arrays.get("labels"), lengths)
    n_clusters, count_fault = _n_clusters(arrays.get("n_clusters"), classes, "labels" in arrays | unread)
    faults += [f"{path}: {fault}" for fault in [*label_faults, *count_fault]]
    if not faults:
        faults += [f"{path}: {fault}" for fault in count_faults(config, len(views["view_0"]))]
    if faults:
        return [], None, 0, faults
    return [view.astype(np.float32) for view in views.values()], labels, n_clusters, []


def _arrays(path: Path) -> tuple[dict[str, NDArray[Any]], list[str], dict[str, None]]:
    """The arrays of a file, what could not be read, and the keys that it stands under."""
    if not path.is_file():
        return {}, [f"{path}: no such file (dataset.path)"], {}
    if not zipfile.is_zipfile(path):
        return {}, [f"{path}: is no .npz file (an archive written by numpy.savez)"], {}
    arrays: dict[str, NDArray[Any]] = {}
    faults: list[str] = []
    unread: dict[str, None] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                try:
                    array = archive[key]
                    if not isinstance(array, np.ndarray):
                        raise ValueError("not an array in NumPy's format")
                    arrays[key] = array
                except _UNREADABLE as error:
                    unread[key] = None
                    faults.append(f"{path}: {key} cannot be read: {error}")
    except _UNREADABLE as error:
        return {}, [f"{path}: cannot be read: {error}"], {}
    if not arrays and not faults:
        faults.append(f"{path}: holds no arrays")
    return arrays, faults, unread


def _view_faults(view: NDArray[Any]) -> list[str]:
    if view.dtype.kind not in "fiu":
        return [f"must hold real numbers, got dtype {view.dtype}"]
    if view.ndim not in (2, 4) or 0 in view.shape:
        return [f"must be of shape (N, D) or (N, C, H, W) and not empty, got {view.shape}"]
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
    position = tuple(int(index[0]) for index in np.nonzero(mask))
    return f"{view[position]} at {list(position)} ({int(mask.sum())} of {view.size} values)"


def _labels(labels: NDArray[Any] | None, lengths: dict[str, int]) -> tuple[int | None, IndexArray | None, list[str]]:
    """Number of classes, labels re-indexed from 0, and the faults."""
    if labels is None:
        return None, None, []
    faults = []
    if labels.ndim != 1 or (lengths and len(labels) not in lengths.values()):
        faults.append(f"labels must be one per sample ({_listed(lengths)}), got shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        shown = np.ravel(labels)[:3].tolist()
        faults.append(f"labels must be integers, got dtype {labels.dtype} (first values {shown})")
    elif labels.size and labels.min() < 0:
        faults.append(f"labels must be ≥ 0, got {labels.min()} at {int(np.argmin(labels))}")
    if faults:
        return None, None, faults
    classes, indices = np.unique(labels, return_inverse=True)
    return len(classes), indices.astype(np.int64), []


def _n_clusters(given: NDArray[Any] | None, classes: int | None, labelled: bool) -> tuple[int, list[str]]:
    """K, from the file or else from the labels, and the fault if there is one."""
    if given is None:
        if classes is None:
            # Faulty labels are reported already, and K cannot be told from them.
            return 0, [] if labelled else ["n_clusters (one integer) must be given where there are no labels"]
        return classes, [] if classes >= 2 else [f"labels must hold at least two classes, got {classes}"]
    least = max(2, classes or 0)
    if given.dtype.kind not in "iu" or given.size != 1 or not given.item() >= least:
        return 0, [f"n_clusters must be one integer ≥ {least}, got {given.tolist()} of dtype {given.dtype}"]
    return int(given.item()), []


def _listed(lengths: dict[str, int]) -> str:
    return ", ".join(f"{key}: {length}" for key, length in lengths.items())
