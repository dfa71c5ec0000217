"""The arrays of a user's file or folder, whatever kind it is: told by content, not by its ending."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse

from ardmvc_core.data.dataset import DataError
from ardmvc_core.data.matlab import HDF5, USER_BLOCK, is_mat4, is_mat5, read_hdf5, read_mat5
from ardmvc_core.data.reading import (
    MEMBERS,
    file_fault,
    megabytes,
    read_archive,
    read_single,
    reading,
    reason_of,
    shown_path,
    unpacked_limit,
)
from ardmvc_core.places import expanded

LABEL_NAMES = (
    *("labels", "label", "y", "gt", "truth", "gnd", "target", "targets", "class"),
    *("truelabel", "truelabels", "true_label", "true_labels", "groundtruth", "ground_truth"),
)
"""What the field calls its labels, without regard to case."""

KNOWN = "a .mat file of MATLAB 5 to 7.3, an .npz, .npy or .parquet file, a table of numbers as text"
_HEAD = 1 << 16
_SEPARATORS = (",", ";", "\t", None)
"""Of the columns of a text; None: spaces."""


@dataclass(frozen=True)
class Contents:
    """What a file or folder holds."""

    path: Path
    kind: str
    """In words: `MATLAB 5`."""
    values: dict[str, Any]
    """By name: an array, dense or sparse (`csr_array`), or a list of them for a cell."""
    unread: dict[str, str]
    """By name, why it cannot be read."""
    left_alone: tuple[str, ...] = ()
    """Files of a folder that hold no array."""


def read_contents(place: str) -> Contents:
    """All arrays of a file, or of a folder of one array a file.

    Raises: DataError if nothing can be read; it names the place.
    """
    with reading(place):
        path = Path(expanded(place))
        if os.path.isdir(path):
            return _read_folder(path)
        if fault := file_fault(path):
            raise DataError(f"{shown_path(path)}: {fault} (dataset.path)")
        with path.open("rb") as stream:
            kind = _kind(stream.read(_HEAD))
            if kind in _SEVERAL:
                name, read = _SEVERAL[kind]
                return Contents(path, name, *read(stream))
            if kind in _SINGLE:
                name, read_one = _SINGLE[kind]
                return Contents(path, name, {path.stem: read_one(stream)}, {})
        raise ValueError(_refusal(path))


def _read_folder(path: Path) -> Contents:
    values: dict[str, Any] = {}
    unread: dict[str, str] = {}
    left_alone = []
    kinds = set()
    files = sorted(file for file in path.iterdir() if not file.name.startswith(".") and not file.is_dir())
    if len(files) > MEMBERS:
        raise ValueError(f"it holds {len(files)} files, at most {MEMBERS} are read")
    for file in files:
        if not os.path.isfile(file):
            left_alone.append(file.name)
            continue
        with file.open("rb") as stream:
            kind = _kind(stream.read(_HEAD), labels=file.stem.casefold() in LABEL_NAMES)
            if kind not in _SINGLE:
                left_alone.append(file.name)
                continue
            if file.stem in values or file.stem in unread:
                raise ValueError(f"it holds two files called {file.stem}")
            kinds.add(kind)
            try:
                values[file.stem] = _SINGLE[kind][1](stream)
            except Exception as error:
                unread[file.stem] = reason_of(error)
    return Contents(path, f"folder of {', '.join(sorted(kinds)) or 'no'} files", values, unread, tuple(left_alone))


def _kind(head: bytes, *, labels: bool = False) -> str:
    """Args: labels: whether a text is a table by its name, whatever it holds."""
    if is_mat5(head):
        return "mat5"
    if HDF5 in (head[: len(HDF5)], head[USER_BLOCK : USER_BLOCK + len(HDF5)]):
        return "hdf5"
    for mark, kind in ((b"PK", "npz"), (b"\x93NUMPY", "npy"), (b"PAR1", "parquet")):
        if head.startswith(mark):
            return kind
    return "csv" if _is_text(head) and (labels or _table(head)) else ""


def _refusal(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head:
        return "it is empty"
    if is_mat4(head):
        return "it is of MATLAB 4, which has no cells, and is not read: save it with -v7 in MATLAB"
    if _is_text(head):
        return f"its text is no table of numbers, or its end is missing; read are {KNOWN}"
    return f"it is none of {KNOWN}; or it is encrypted, or its end is missing (it begins {head[:8]!r})"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(head) < _HEAD or error.start < len(head) - 4:  # else the cut goes through a character
            return False
        text = head[: error.start].decode("utf-8-sig")
    return bool(text) and not any(ord(char) < 32 and char not in "\t\r\n" for char in text)


def _table(head: bytes) -> tuple[str | None, int, int] | None:
    """How to read a text as a table of numbers: separator, lines and columns to skip; None if it is none."""
    lines = [line for line in head.decode("utf-8-sig", errors="ignore").splitlines()[:3] if line.strip()]
    for skipped, line in enumerate(lines[:2]):
        for separator in _SEPARATORS:
            cells = line.split(separator)
            # What pandas writes begins with names of columns, numbers if nothing else, and often with a column of row
            # numbers that has no name.
            if not _numbers(cells) or (len(lines) > 1 and not skipped and _names(cells)):
                continue
            unnamed = bool(skipped) and lines[0].split(separator)[0].strip() in ("", '""')
            return separator, skipped, int(unnamed)
    return None


def _names(cells: list[str]) -> bool:
    """Whether the first line of a table, all numbers, is one of names: it has a gap, or counts columns from 0."""
    return "" in cells or (len(cells) > 1 and [float(cell) for cell in cells] == list(range(len(cells))))


def _numbers(cells: list[str]) -> bool:
    """Whether these are numbers, or missing."""
    try:
        return any(cells) and all(isinstance(float(cell or "nan"), float) for cell in cells)
    except ValueError:
        return False


def _read_table(stream: BinaryIO) -> Any:
    stream.seek(0)
    head = stream.read(_HEAD)
    separator, lines, columns = _table(head) or (",", 0, 0)
    stream.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
    width = len(head.splitlines()[lines].decode("utf-8-sig", errors="ignore").split(separator))
    used = range(columns, width)
    return np.loadtxt(stream, delimiter=separator, skiprows=lines, usecols=used, ndmin=2, encoding="utf-8")


def _read_parquet(stream: BinaryIO) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError("pyarrow, which reads .parquet files, is not installed: pip install pyarrow") from None
    file = parquet.ParquetFile(stream)
    facts, size = file.metadata, os.fstat(stream.fileno()).st_size
    if (total := facts.num_rows * facts.num_columns * 8) > (limit := unpacked_limit(size)):
        raise ValueError(f"it unpacks to {megabytes(total)}, at most {megabytes(limit)} are unpacked")
    table = file.read()
    columns = [table.column(name).to_numpy() for name in table.column_names if not name.startswith("__index_level_")]
    return np.column_stack(columns)


def _read_npz(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, str]]:
    arrays, unread = read_archive(stream)
    if {"data", "indices", "indptr", "shape", "format"} <= arrays.keys():
        return {"matrix": _sparse(arrays)}, unread
    return dict(arrays), unread


def _read_npz_single(stream: BinaryIO) -> Any:
    arrays, unread = _read_npz(stream)
    if unread or len(arrays) != 1:
        raise ValueError(f"one array is needed, got {', '.join([*arrays, *unread]) or 'none'}")
    return next(iter(arrays.values()))


def _sparse(arrays: dict[str, Any]) -> Any:
    """What scipy.sparse.save_npz has written."""
    kinds = {b"csr": scipy.sparse.csr_array, b"csc": scipy.sparse.csc_array}
    form = arrays["format"].item()
    form = form if isinstance(form, bytes) else str(form).encode()
    if form not in kinds:
        raise ValueError(f"sparse matrices must be csr or csc, got {form!r}")
    matrix = kinds[form](
        (arrays["data"], arrays["indices"], arrays["indptr"]), shape=tuple(map(int, arrays["shape"].ravel()))
    )
    matrix.check_format(full_check=True)
    return matrix.tocsr()


_SEVERAL: dict[str, tuple[str, Callable[[BinaryIO], tuple[dict[str, Any], dict[str, str]]]]] = {
    "mat5": ("MATLAB 5", read_mat5),
    "hdf5": ("MATLAB 7.3", read_hdf5),
    "npz": (".npz", _read_npz),
}
_SINGLE: dict[str, tuple[str, Callable[[BinaryIO], Any]]] = {
    "npy": (".npy", read_single),
    "parquet": (".parquet", _read_parquet),
    "csv": ("table", _read_table),
    "npz": (".npz", _read_npz_single),
}
