"""A user's own views, as the field passes them around: from a .mat file, an .npz file, or a folder of one file a view.

Views are the matrices of a cell, or arrays with one name before their number (`view_0`, `X1`), or the files of a
folder; each (N, D) or (D, N), dense or sparse, or images (N, C, H, W). Samples are on the side that is as long as the
labels, which are integers ≥ 0 of any numbering. Without labels the number of clusters must be given.

`npz` is the same with less left open: views as rows, in [0, 1] up to rounding, not scaled.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from ardmvc_core.data.arrays import LABEL_NAMES, Contents, read_contents
from ardmvc_core.data.dataset import (
    DataError,
    IndexArray,
    Part,
    Protocol,
    Source,
    count_faults,
    cut_parts,
    part_rows,
)
from ardmvc_core.data.reading import GIB, fitted, one_line, shown_path
from ardmvc_core.data.scaling import ROUNDING, Array, Scale, Scaling, ViewScaling, fit_view, scaled

if TYPE_CHECKING:
    from ardmvc_core.data.config import DatasetConfig

logger = logging.getLogger(__name__)

Orientation = Literal["rows", "columns"]

MOST_DENSE = 2 * GIB
"""Bytes that sparse views may take in all once they are dense, as a network takes them (float32)."""
_VIEW = "view"
_VIEW_NAMES = ("x", "data", "fea", "feature", "features", "view", "views")
"""What the field calls its cell of views, without regard to case; read where there is more than one cell."""
_SHOWN = 12
"""Names of arrays that a message lists."""
_NUMBER = re.compile(r"[0-9]{1,9}")
_SIDES: dict[Orientation, int] = {"rows": 0, "columns": 1}


@dataclass(frozen=True)
class UserData:
    """What a file holds once its views and labels are told apart; samples are rows, nothing is scaled."""

    contents: Contents
    views: dict[str, Array]
    """By the name that the file gives them: `X{1}`, `view_0`."""
    orientation: Orientation
    """Where the file has its samples."""
    labels: IndexArray | None
    """(N,) from 0."""
    label_name: str | None
    classes: tuple[int, ...]
    """The file's own number of each class; empty without labels."""
    n_clusters: int

    def __len__(self) -> int:
        return int(next(iter(self.views.values())).shape[0])


def load_user_file(config: DatasetConfig, protocol: Protocol) -> dict[str, Part]:
    """The parts of a user's file, scaled by what the training part holds.

    Raises: DataError listing every fault with file, array and value.
    """
    data, scaling = read_and_fit(config)
    for view_name, view, fit in zip(data.views, data.views.values(), scaling, strict=True):
        if fit.kind == "none":
            _note_clipped(f"{shown_path(config.path)}: {view_name}", view, fit)
    views = scaled(scaling, list(data.views.values()))
    return cut_parts(config, protocol, views, data.labels, data.n_clusters, scaling)


def read_and_fit(config: DatasetConfig) -> tuple[UserData, Scaling]:
    """The file's views and labels, and the scaling that its training part gives. Raises: as `load_user_file`."""
    data, scaling, faults = _read_and_fit(config)
    if data is None or faults:
        raise DataError("; ".join(faults))
    return data, scaling


def check_user_file(config: DatasetConfig) -> list[str]:
    """Every fault that `load_user_file` would meet; reads the whole file, since NaN can be anywhere."""
    return _read_and_fit(config)[2]


def scales(config: DatasetConfig, n_views: int) -> tuple[Scale, ...]:
    """The scaling of each view. Raises: ValueError if the config names another number of them."""
    given = config.scale or ("none" if config.name == "npz" else "minmax")
    if isinstance(given, str):
        return (given,) * n_views
    if len(given) != n_views:
        raise ValueError(f"dataset.scale must be one, or one for each of {n_views} views, got {len(given)}")
    return given


def _read_and_fit(config: DatasetConfig) -> tuple[UserData | None, Scaling, list[str]]:
    data, faults = _read(config)
    if data is None:
        return None, (), faults
    where = shown_path(data.contents.path)
    # The same under both protocols: each begins with the half that is trained on.
    rows = part_rows(config, "strict", len(data))["train"]
    fits: list[ViewScaling] = []
    try:
        kinds = scales(config, len(data.views))
    except ValueError as error:
        return data, (), [f"{where}: {error}"]
    for (name, view), kind in zip(data.views.items(), kinds, strict=True):
        try:
            fits.append(fit_view(kind, view[rows]))
        except ValueError as error:
            faults.append(f"{where}: {name} {error}")
    return data, tuple(fits), fitted(faults)


def _note_clipped(where: str, view: Array, fit: ViewScaling) -> None:
    low, high = float(fit.low), float(fit.low + fit.width)
    least, most = float(view.min()), float(view.max())
    if low <= least and most <= high:
        return
    dense = view.toarray() if scipy.sparse.issparse(view) else view
    outside, furthest = int(((dense < low) | (dense > high)).sum()), max(low - least, most - high)
    box = f"[{low:g}, {high:g}]"
    logger.warning("%s: %d values were up to %.1e outside %s and are clipped to it", where, outside, furthest, box)


def _read(config: DatasetConfig) -> tuple[UserData | None, list[str]]:
    """What the file holds, or its faults."""
    try:
        contents = read_contents(config.path or "")
    except DataError as error:
        return None, [str(error)]
    where, names = shown_path(contents.path), contents.values.keys() | contents.unread
    if not names:
        left = f"; {_some(map(one_line, contents.left_alone))} hold none" if contents.left_alone else ""
        return None, [f"{where}: holds no arrays{left}"]
    faults = [f"{one_line(name)} cannot be read: {reason}" for name, reason in contents.unread.items()]
    views, fault = _views(config, contents)
    faults += [f"{fault}, got {_some(map(one_line, sorted(names)))}"] if fault else []
    bad = [f"{name} {fault}" for name, view in views.items() if (fault := _view_fault(view, config.name == "npz"))]
    faults += bad
    label_name, fault = _label_name(config, names)
    classes, labels, label_faults = _labels(contents.values.get(label_name or ""))
    faults += [*([fault] if fault else []), *label_faults]
    matrices = {name: view for name, view in views.items() if _dimensions(view) in (2, 4)}
    wanted = config.orientation or ("rows" if config.name == "npz" else None)
    orientation, fault = _orientation(matrices, None if labels is None else len(labels), wanted)
    faults += [fault] if fault else []
    count = max((view.shape[_SIDES[orientation or "rows"]] for view in matrices.values()), default=0)
    n_clusters, fault = _n_clusters(config, contents.values.get("n_clusters"), classes, label_name, count)
    faults += [fault] if fault else []
    if not bad:
        faults += _size_faults(views)
    if faults or orientation is None:
        return None, fitted([f"{where}: {fault}" for fault in faults])
    if few := count_faults(config, count):
        return None, [f"{where}: {fault}" for fault in few]
    turned = {name: view if orientation == "rows" else _turned(view) for name, view in views.items()}
    return UserData(contents, turned, orientation, labels, label_name, tuple(classes or ()), n_clusters), []


def _views(config: DatasetConfig, contents: Contents) -> tuple[dict[str, Any], str | None]:
    """The arrays that are views, by name, and what is wrong with them."""
    values, names = contents.values, contents.values.keys() | contents.unread
    if config.views is not None:
        asked = (config.views,) if isinstance(config.views, str) else config.views
        if absent := [one_line(name) for name in asked if name not in names]:
            return {}, f"dataset.views: there is no {', '.join(absent)}"
        chosen, fault = list(asked), None
    else:
        chosen, fault = _guessed(contents)
    views: dict[str, Any] = {}
    for name in (each for each in chosen if each in values):
        if isinstance(values[name], list):
            views |= {f"{one_line(name)}{{{place}}}": member for place, member in enumerate(values[name], 1)}
        else:
            views[one_line(name)] = values[name]
    if not fault and len(views) + sum(name in contents.unread for name in chosen) < 2:
        fault = f"at least two views are needed, {one_line(chosen[0]) if chosen else 'nothing'} holds one"
    return views, fault


def _guessed(contents: Contents) -> tuple[list[str], str | None]:
    """Names of a cell, or of several arrays, that are views where nothing says which are, and what is wrong."""
    values = contents.values
    cells = [
        name
        for name, value in values.items()
        if isinstance(value, list) and value and name.casefold() not in LABEL_NAMES and all(map(_is_matrix, value))
    ]
    if len(cells) > 1:
        cells = [name for name in cells if name.casefold() in _VIEW_NAMES] or cells
    if len(cells) > 1:
        return [], f"{_some(map(one_line, cells))} may all be the views: say which with dataset.views: {cells[0]}"
    if cells:
        return cells, None
    names = values.keys() | contents.unread
    keys, fault = _view_keys(names)
    if fault and contents.path.is_dir() and not any(map(_stem_differs, names)):
        keys = sorted(name for name in names if name.casefold() not in LABEL_NAMES)
        fault = None if len(keys) > 1 else fault
    if fault and (structs := [name for name, value in values.items() if _fields(value)]):
        field = _fields(values[structs[0]])[0]
        fault = (
            f"{one_line(structs[0])} is a struct, of which nothing is read: save its fields as variables, in MATLAB "
            f"{one_line(field)} = {one_line(structs[0])}.{one_line(field)}; {fault}"
        )
    return keys, fault


def _view_keys(names: Collection[str]) -> tuple[list[str], str | None]:
    """The names that are those of views, in order of their numbers, and what is wrong with them.

    Views are the arrays called `view_<number>`, or, where there is none, the only ones that share another name before
    their number. Names that differ in case, or in `_`, `-`, `.` and spaces before the number, are one name in two
    spellings, so that no view is left out for its spelling. Numbers begin at 0 or 1 and have no gap: a gap is a view
    that is missing.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        if _stem_differs(name):
            groups.setdefault(_stem(name).casefold().rstrip("_-. "), []).append(name)
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
        return keys, (
            "at least two views are needed, numbered view_0, view_1, … without a gap from 0 or 1, "
            "or as a cell of matrices, or named with dataset.views: [NAME, NAME]"
        )
    return keys, None


def _stem_differs(name: str) -> bool:
    """Whether a name is that of a view by its number."""
    return _stem(name) != name and name not in ("labels", "n_clusters")


def _stem(name: str) -> str:
    """A name without the number at its end, in any digits that Unicode has."""
    return name.rstrip("".join(filter(str.isnumeric, set(name))))


def _number(name: str) -> int:
    """The number at the end of a name; −1 for one that no view has."""
    digits = name.removeprefix(_stem(name))
    return int(digits) if _NUMBER.fullmatch(digits) else -1


def _is_matrix(value: Any) -> bool:
    return _dimensions(value) == 2 and value.dtype.kind in "fiub" and min(value.shape) > 0 and max(value.shape) > 1


def _dimensions(value: Any) -> int:
    return len(value.shape) if hasattr(value, "shape") else 0


def _fields(value: Any) -> list[str]:
    """Names of a struct's fields; empty for anything else."""
    return list(getattr(getattr(value, "dtype", None), "names", None) or [])


def _view_fault(view: Any, unit: bool) -> str | None:
    """What is wrong with a view; None if nothing. Args: unit: whether it must lie in [0, 1]."""
    if isinstance(view, list):
        return "must be a matrix, got a cell"
    if fields := _fields(view):
        return f"must hold real numbers, got a struct with the fields {_some(map(one_line, fields))}"
    if view.dtype.kind not in "fiub":
        return f"must hold real numbers, got dtype {one_line(view.dtype)}"
    if _dimensions(view) not in (2, 4) or 0 in view.shape:
        return f"must be of shape (N, D) or (N, C, H, W) and not empty, got {one_line(view.shape)}"
    values = view.data if scipy.sparse.issparse(view) else view
    bad = ~np.isfinite(values)
    if bad.any():
        return f"must be finite, got {_first(view, bad)}"
    if not unit or (view.min() >= -ROUNDING and view.max() <= 1 + ROUNDING):
        return None
    outside = (values < -ROUNDING) | (values > 1 + ROUNDING)
    return f"must lie in [0, 1], got {_first(view, outside)}; `dataset.name: file` scales it"


def _first(view: Any, mask: NDArray[np.bool_]) -> str:
    """The first bad value, where it is, and how many there are. Args: mask: of a sparse view's stored values."""
    place = tuple(int(index) for index in np.unravel_index(int(mask.argmax()), mask.shape))
    values = view
    if scipy.sparse.issparse(view):
        values, coordinates = view.data, view.tocoo().coords
        position = [int(axis[place[0]]) for axis in coordinates]
    else:
        position = list(place)
    return f"{values[place]} at {position} ({int(mask.sum()):,} of {math.prod(view.shape):,} values)"


def _size_faults(views: Mapping[str, Any]) -> list[str]:
    """Sparse views that would take too much memory once they are dense."""
    sizes = {name: 4 * math.prod(view.shape) for name, view in views.items() if scipy.sparse.issparse(view)}
    if sum(sizes.values()) <= MOST_DENSE:
        return []
    name = max(sizes, key=lambda each: sizes[each])
    return [
        f"{name} is sparse, of shape {views[name].shape} with {views[name].nnz:,} numbers stored; dense, as networks "
        f"take them, the sparse views would have {sum(sizes.values()) / GIB:.1f} GiB, at most {MOST_DENSE / GIB:g} GiB "
        "are made: keep fewer features, such as the most frequent words"
    ]


def _orientation(
    views: Mapping[str, Array], n_labels: int | None, given: Orientation | None
) -> tuple[Orientation | None, str | None]:
    """Which side of the matrices the samples are on, and what is wrong where that cannot be told."""
    if not views:
        return None, None
    sides: tuple[Orientation, ...] = ("rows", "columns") if given is None else (given,)
    if any(len(view.shape) == 4 for view in views.values()):
        sides = tuple(side for side in sides if side == "rows")
    lengths = {side: {name: int(view.shape[_SIDES[side]]) for name, view in views.items()} for side in sides}
    common = [side for side in sides if len(set(lengths[side].values())) == 1]
    fitting = [side for side in common if n_labels in (None, *lengths[side].values())]
    if len(fitting) == 1:
        return fitting[0], None
    if fitting:
        readings = "; or ".join(_reading(side, views) for side in fitting)
        return None, f"samples may be {readings}: say which with dataset.orientation: rows or columns"
    if n_labels is not None and common:
        # A side that the views agree on, the labels being as long as none.
        return None, f"labels must be one per sample ({_listed(lengths[common[0]])}), got {n_labels:,}"
    first = lengths[sides[0]] if sides else {}
    other = f" in rows, {_listed(lengths['columns'])} in columns" if len(sides) > 1 else ""
    return None, f"views must have one common length, got {_listed(first)}{other}"


def _reading(side: Orientation, views: Mapping[str, Array]) -> str:
    counts = [view.shape[_SIDES[side]] for view in views.values()]
    features = _some(f"{view.shape[1 - _SIDES[side]]:,}" for view in views.values())
    return f"{side} ({counts[0]:,} samples with {features} features)"


def _turned(view: Any) -> Array:
    return view.T.tocsr() if scipy.sparse.issparse(view) else np.ascontiguousarray(view.T)


def _label_name(config: DatasetConfig, names: Collection[str]) -> tuple[str | None, str | None]:
    """The name of the labels, None if there are none, and what is wrong."""
    if config.labels is not None:
        if config.labels not in names:
            return (
                None,
                f"dataset.labels: there is no {one_line(config.labels)}, but {_some(map(one_line, sorted(names)))}",
            )
        return config.labels, None
    if "labels" in names:
        return "labels", None
    found = sorted(name for name in names if name.casefold() in LABEL_NAMES)
    if len(found) > 1:
        return None, f"{_some(map(one_line, found))} may all be the labels: say which with dataset.labels: {found[0]}"
    return (found[0] if found else None), None


def _labels(labels: Any) -> tuple[list[int] | None, IndexArray | None, list[str]]:
    """Numbers of the classes as they are in the file, labels re-indexed from 0, and the faults."""
    if labels is None:
        return None, None, []
    if isinstance(labels, list):  # a cell with the labels once a view, or of texts
        same = all(_dimensions(each) and np.array_equal(each, labels[0]) for each in labels)
        if not labels or not same:
            return None, None, ["labels must be integers, got a cell of several arrays or texts"]
        labels = labels[0]
    labels = labels.toarray() if scipy.sparse.issparse(labels) and math.prod(labels.shape) < MOST_DENSE else labels
    faults = []
    if labels.ndim > 2 or max(labels.shape, default=0) != labels.size or not labels.size:
        faults.append(f"labels must be one per sample, got shape {one_line(labels.shape)}")
    kind = labels.dtype.kind
    if kind == "f" and np.isfinite(labels).all() and not (labels % 1).any() and np.abs(labels).max(initial=0) < 2**53:
        labels, kind = labels.astype(np.int64), "i"
    if kind not in "iub":
        first = labels.ravel()[:3].tolist()
        text = "text" if kind in "US" else f"dtype {one_line(labels.dtype)}"
        faults.append(f"labels must be integers, got {text} (first values {one_line(first)})")
    elif labels.size and labels.min() < 0:
        faults.append(f"labels must be ≥ 0, got {labels.min()} at {int(np.argmin(labels))}")
    if faults:
        return None, None, faults
    classes, indices = np.unique(labels, return_inverse=True)
    return classes.tolist(), indices.ravel().astype(np.int64), []


def _n_clusters(
    config: DatasetConfig, in_file: Any, classes: list[int] | None, label_name: str | None, count: int
) -> tuple[int, str | None]:
    """K, from the config, the file or else the labels, and the fault if there is one."""
    given = in_file if config.n_clusters is None else np.array(config.n_clusters)
    if given is None:
        if classes is None:
            # Faulty labels are reported already, and K cannot be told from them.
            ask = "n_clusters (one integer) must be given where there are no labels: dataset.n_clusters: K"
            return 0, None if label_name else ask
        return len(classes), None if len(classes) >= 2 else f"labels must hold at least two classes, got {len(classes)}"
    least = max(2, len(classes or ()))
    if not isinstance(given, np.ndarray):
        return 0, f"n_clusters must be one integer ≥ {least}, got no array"
    whole = given.size == 1 and given.dtype.kind in "iuf" and float(given.item()).is_integer()
    if not whole or given.item() < least:
        values = given.item() if given.size == 1 else given.flat[:3].tolist()
        more = f" and {given.size - 3} more" if given.size > 3 else ""
        return 0, (
            f"n_clusters must be one integer ≥ {least}, got {one_line(values)}{more} of dtype {one_line(given.dtype)}"
        )
    if count and given.item() > count:
        return 0, f"n_clusters must be ≤ {count}, the number of samples, got {given.item()}"
    return int(given.item()), None


def _listed(lengths: Mapping[str, int]) -> str:
    return _some(f"{key}: {length}" for key, length in lengths.items())


def _some(entries: Iterable[str]) -> str:
    """The first of a list, and how many more there are."""
    listed = list(entries)
    return ", ".join([*listed[:_SHOWN], *([f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else [])])


NPZ = Source(
    load=load_user_file,
    check=check_user_file,
    fields=frozenset({"path", "n_clusters"}),
    eps=0.10,
    eps_grid=(0.01, 0.02, 0.05, 0.10, 0.20),
)
FILE = Source(
    load=load_user_file,
    check=check_user_file,
    fields=frozenset({"path", "views", "labels", "n_clusters", "orientation", "scale"}),
    eps=0.05,
    eps_grid=(0.01, 0.02, 0.05, 0.10, 0.20),
    # Half of these files have fewer than 2,000 samples: a tenth would be too small to rank trials by.
    strict_cuts={"train": 50, "tune": 70, "attacker": 85, "score": 100},
)
