"""What readers of files from anywhere share: whatever a library raises becomes one short error, and sizes are bounded
before anything is unpacked.
"""

import io
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ardmvc_core.data.dataset import DataError

MIB, GIB = 1 << 20, 1 << 30
UNPACKED = 128 * MIB
"""Bytes that any file may unpack to, however small it is."""
RATIO = 100
"""A larger file may unpack to so many times its own size; zeros reach 1,000 with zlib, data seldom 50."""
MEMBERS = 1000
"""Most arrays in one archive."""

_TEXT = 80
_REASON = 240
_PATH = 300
_FAULTS = 1500
"""Bytes of a message: of a text from a file, of a library's reason, of a path, of all faults of one file together."""
_PACKED = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
"""What `numpy.savez` and `numpy.savez_compressed` write; bzip2 and LZMA unpack without a bound."""

_NOISE = re.compile(r" at 0x[0-9a-f]+|\s+For further information visit \S+")
"""In a library's reason: an address in memory, pydantic's advertisement."""


@contextmanager
def reading(
    what: object,
    fault: str = "cannot be read",
    kind: type[ValueError] = DataError,
    passing: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Turns whatever is raised while a file is parsed, but for `passing`, into a `kind` that names the file and says
    `fault`.

    Which exceptions a parser raises on a damaged file is no part of its contract, so all of them are taken. Warnings of
    the parser are not shown: the error says what is wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (kind, *passing):
            raise
        except Exception as error:
            raise kind(f"{shown_path(what)}: {fault}: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """What an exception says, in one short line; with its class where that is all that explains it."""
    text = one_line(_NOISE.sub("", str(error)[: 8 * _REASON]), _REASON)
    if isinstance(error, OSError | ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(text: object, limit: int = _TEXT) -> str:
    """A text from a file as part of a message: one line of at most `limit` bytes, what cannot be printed escaped."""
    line = " ".join(str(text)[: 8 * limit].split())
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    encoded = line.encode()
    return line if len(encoded) <= limit else encoded[: limit - 3].decode(errors="ignore") + "…"


def shown_path(path: object) -> str:
    """A path as part of a message: of a very long one its end."""
    text = one_line(path, 1 << 13)
    encoded = text.encode()
    return text if len(encoded) <= _PATH else "…" + encoded[3 - _PATH :].decode(errors="ignore")


def fitted(faults: Sequence[str]) -> list[str]:
    """As many faults as one message holds, the first always among them, and how many more there are."""
    kept: list[str] = []
    room = _FAULTS
    for fault in faults:
        room -= len(fault.encode())
        if kept and room < 0:
            return [*kept, f"{len(faults) - len(kept)} more faults like these"]
        kept.append(fault)
    return kept


def file_fault(path: Path) -> str | None:
    """Why nothing can be read from `path`: it is missing, a folder, a pipe or a device; None for a plain file."""
    if os.path.isfile(path):
        return None
    if os.path.isdir(path):
        return "is a folder, not a file"
    return "is a pipe or a device, not a file" if os.path.exists(path) else "no such file"


def unpacked_limit(size: int) -> int:
    """Bytes that a file of `size` bytes may unpack to."""
    return max(UNPACKED, RATIO * size)


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / MIB:,.1f} MiB" if size < 1 << 60 else f"2^{size.bit_length() - 1} bytes"


def read_archive(stream: BinaryIO) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of an .npz file. Sizes are compared with what headers declare before an array is read.

    Args:   stream: that can be sought in, such as an open file.
    Returns: the arrays by name, and by name why the others cannot be read.
    Raises: ValueError, and what zipfile raises, if there is nothing to be had from it; to be called under `reading`.
    """
    arrays: dict[str, NDArray[Any]] = {}
    faults: dict[str, str] = {}
    size = stream.seek(0, io.SEEK_END)
    if not zipfile.is_zipfile(stream):
        raise ValueError("it is no .npz file (an archive written by numpy.savez), or its end is missing")
    with warnings.catch_warnings(), zipfile.ZipFile(stream) as archive:
        warnings.simplefilter("ignore")
        members = archive.infolist()
        _check_members(members, size)
        for member in members:
            key = _key(member)
            try:
                arrays[key] = _read_member(archive, member)
            except Exception as error:
                faults[key] = reason_of(error)
    return arrays, faults


def _key(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    if len(members) > MEMBERS:
        raise ValueError(f"it holds {len(members)} arrays, at most {MEMBERS} are read")
    names = [_key(member) for member in members]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"it holds two arrays called {one_line(twice[0])}")
    if sum(member.compress_size for member in members) > size:
        raise ValueError("it is damaged: its members are larger than the file, or overlap")
    total, limit = sum(member.file_size for member in members), unpacked_limit(size)
    if total > limit:
        largest = max(members, key=lambda member: member.file_size)
        raise ValueError(
            f"it unpacks to {megabytes(total)} ({one_line(_key(largest))}: {megabytes(largest.file_size)}); of a file "
            f"of {megabytes(size)} at most {megabytes(limit)} are unpacked; write it with numpy.savez, uncompressed"
        )


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Raises: anything."""
    if member.compress_type not in _PACKED:
        known = " and ".join(f"{number} ({name})" for number, name in _PACKED.items())
        raise ValueError(f"compression {member.compress_type} is unknown, known are {known}")
    with archive.open(member) as stream:
        _check_header(stream, member.file_size)
    with archive.open(member) as stream:
        return _array(stream)


def read_single(stream: BinaryIO) -> NDArray[Any]:
    """The array of an .npy file. Raises: ValueError, or anything, if it is damaged; to be called under `reading`."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    _check_header(stream, size)
    stream.seek(0)
    return _array(stream)


def _array(stream: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _check_header(stream: Any, size: int) -> None:
    """Raises: ValueError if the array is none of numbers, or not as long as its header says."""
    shape, dtype = _read_header(stream)
    held = size - stream.tell()
    if dtype.hasobject:
        raise ValueError("Object arrays would need pickle, which is never read; numbers are needed")
    if not dtype.itemsize or any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"its header declares {one_line(shape)} of {one_line(dtype)}, {held} bytes are there")


def _read_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
    except ValueError:
        raise ValueError("not an array in NumPy's format") from None
    parse = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if parse is None:
        raise ValueError(f"version {version[0]}.{version[1]} of NumPy's format is unknown, known are 1.0 and 2.0")
    try:
        shape, _, dtype = parse(stream)
    except Exception as error:
        raise ValueError(f"its header is damaged: {one_line(reason_of(error))}") from error
    return shape, dtype
