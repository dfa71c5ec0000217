"""The arrays of a .mat file: MATLAB 5 to 7.2 by scipy, 7.3 (which is HDF5) by h5py.

Cells become lists. What a header declares is compared with what may be unpacked before anything is.
"""

import io
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
import scipy.io
import scipy.sparse

from ardmvc_core.data.reading import MEMBERS, megabytes, one_line, reason_of, unpacked_limit

HDF5 = b"\x89HDF\r\n\x1a\n"
USER_BLOCK = 512
"""Bytes of text that MATLAB puts before the HDF5 part of a file."""
_HEADER = 128
_COMPRESSED = 15
_CHUNK = 1 << 16


def is_mat5(head: bytes) -> bool:
    """Whether a file that begins so is of MATLAB 5 to 7.2."""
    return head[124:128] in (b"\x00\x01IM", b"\x01\x00MI")


def is_mat4(head: bytes) -> bool:
    """Whether a file that begins so is of MATLAB 4: it has no mark, but its first five numbers have few values."""
    for order in "<>":
        if len(head) >= 20:
            kind, rows, columns, imaginary, name = struct.unpack(f"{order}5i", head[:20])
            thousands, hundreds, precision, form = kind // 1000, kind // 100 % 10, kind // 10 % 10, kind % 10
            plausible = thousands in range(5) and hundreds == 0 and precision in range(6) and form in range(3)
            if kind >= 0 and plausible and imaginary in (0, 1) and 2 <= name <= 64 and min(rows, columns) >= 0:
                text = head[20 : 20 + name]
                return text.endswith(b"\0") and text[:-1].isascii() and text[:-1].decode("latin1").isidentifier()
    return False


def read_mat5(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, str]]:
    """The variables of a file of MATLAB 5 to 7.2.

    Returns: by name arrays, sparse arrays, and cells as lists of these; and an empty account of what cannot be read.
    Raises: ValueError, and what scipy raises; to be called under `reading`.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    _check_elements(stream, size)
    stream.seek(0)
    found = scipy.io.loadmat(stream, spmatrix=False)
    return {name: _plain(value) for name, value in found.items() if not name.startswith("__")}, {}


def _check_elements(stream: BinaryIO, size: int) -> None:
    """Raises: ValueError if an element goes beyond the file's end, or they unpack to more than may be."""
    limit = unpacked_limit(size)
    order = "<" if stream.read(_HEADER)[126:128] == b"IM" else ">"
    total, at = 0, _HEADER
    while at < size:
        tag = stream.read(8)
        kind, length = struct.unpack(f"{order}II", tag) if len(tag) == 8 else (0, size)
        if at + 8 + length > size:
            raise ValueError(f"its end is missing: it has {size:,} bytes, and what begins at byte {at:,} goes beyond")
        total += _unpacked(stream, length, limit - total) if kind == _COMPRESSED else length
        if total > limit:
            raise ValueError(f"it unpacks to more than {megabytes(limit)}, the most for a file of {megabytes(size)}")
        at += 8 + length
        stream.seek(at)


def _unpacked(stream: BinaryIO, length: int, most: int) -> int:
    """Bytes that the next `length` bytes unpack to, counted to just beyond `most`."""
    unpacker, total, left = zlib.decompressobj(), 0, length
    while left and total <= most:
        chunk = stream.read(min(left, _CHUNK))
        left -= len(chunk)
        while chunk and total <= most:
            total += len(unpacker.decompress(chunk, _CHUNK))
            chunk = unpacker.unconsumed_tail
    if total <= most and not unpacker.eof:
        raise ValueError("it is damaged: a compressed part has no end")
    return total


def _plain(value: Any) -> Any:
    if scipy.sparse.issparse(value):
        return value.tocsr()
    if isinstance(value, np.ndarray) and value.dtype == object and value.dtype.names is None:
        return [_plain(entry) for entry in value.ravel(order="F")]
    return value


def read_hdf5(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, str]]:
    """The variables of a file of MATLAB 7.3, or the data sets of another HDF5 file.

    Returns and raises: as `read_mat5`; the second mapping says of each variable that cannot be read why.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "it is of MATLAB 7.3 (HDF5), which h5py reads, and h5py is not installed: "
            "pip install h5py, or save it with -v7 in MATLAB"
        ) from None
    values: dict[str, Any] = {}
    unread: dict[str, str] = {}
    size = stream.seek(0, io.SEEK_END)
    with h5py.File(stream, "r") as file:
        reader = _Hdf5(file, unpacked_limit(size), h5py)
        for name in file:
            if not name.startswith("#"):
                try:
                    # A link may lead to any other file of the machine.
                    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                        raise ValueError("it is a link")
                    values[name] = reader.value(file[name])
                except Exception as error:
                    unread[name] = reason_of(error)
    return values, unread


class _Hdf5:
    """Reads the values of one file, of which no more is unpacked than `limit` bytes."""

    def __init__(self, file: Any, limit: int, h5py: Any) -> None:
        self.file, self.limit, self.h5py = file, limit, h5py
        self.total = self.count = 0

    def value(self, item: Any, depth: int = 0) -> Any:
        kind = item.attrs.get("MATLAB_class", b"")
        kind = kind.decode("latin1") if isinstance(kind, bytes) else str(kind)
        if isinstance(item, self.h5py.Group):
            if "MATLAB_sparse" not in item.attrs:
                return np.zeros((1, 1), dtype=[(one_line(name), object) for name in item] or [("", object)])
            rows = int(item.attrs["MATLAB_sparse"])
            starts = self._read(item["jc"]).ravel().astype(np.int64)
            parts = [self._read(item[name]).ravel() if name in item else np.zeros(0) for name in ("data", "ir")]
            shape = (rows, len(starts) - 1)
            matrix = scipy.sparse.csc_array((parts[0], parts[1].astype(np.int64), starts), shape=shape)
            matrix.check_format(full_check=True)
            return matrix.tocsr()
        array = self._read(item)
        if array.dtype == object:
            if depth:
                raise ValueError("it is a cell in a cell")
            return [self.value(self.file[reference], depth + 1) for reference in array.ravel()]
        if kind == "char":
            return np.array("".join(map(chr, array.T.ravel(order="F"))))
        # MATLAB writes its columns as rows.
        return array.T if kind else array

    def _read(self, item: Any) -> Any:
        if item.external or item.is_virtual:
            raise ValueError("its values lie in another file")
        self.count += 1
        self.total += int(item.size or 0) * item.dtype.itemsize
        if self.total > self.limit or self.count > MEMBERS:
            raise ValueError(f"more than {megabytes(self.limit)}, or than {MEMBERS} arrays, would be unpacked")
        if item.attrs.get("MATLAB_empty"):
            return np.zeros((0, 0))
        return item[()]
