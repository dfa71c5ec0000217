"""Reader for the IDX files of MNIST and Fashion-MNIST, compressed or plain."""

import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ardmvc_core.data.dataset import DataError, IndexArray
from ardmvc_core.data.files import content_fault, idx_files
from ardmvc_core.data.reading import file_fault, fitted, megabytes, reading, reason_of, shown_path, unpacked_limit

ByteArray = NDArray[np.uint8]

_UNSIGNED_BYTES = 8
"""Third byte of the magic number: the type of the entries."""
_CHUNK = 1 << 16
_GZIP = b"\x1f\x8b"


def read_idx(path: Path, dimensions: int) -> ByteArray:
    """Reads an IDX file of unsigned bytes.

    Args:   path: plain or gzip, told apart by content. dimensions: 3 for images, 1 for labels.
    Returns: array of the shape in the header.
    Raises: DataError if the file is missing or unreadable, has another magic number, is longer or shorter than its
        header says, or is compressed and unpacks to more than `reading.unpacked_limit`.
    Source: the format is described on the page of the MNIST database (LeCun, Cortes, Burges).
    """
    shape, contents, _ = _scan(path, dimensions, keep=True)
    return _as_array(path, shape, contents)


def idx_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """The shape in a file's header, after the same checks as `read_idx` and without keeping the contents."""
    return _scan(path, dimensions, keep=False)[0]


def load_collection(collection: str, root: str | None = None) -> tuple[ByteArray, IndexArray]:
    """Images and labels of MNIST or Fashion-MNIST, training files first, then test files.

    Args:   collection, root: as in `files.idx_files`.
    Returns: images (N, H, W) uint8, labels (N,) int64.
    Raises: DataError listing every fault of the four files.
    """
    files = idx_files(collection, root)
    faults: list[str] = []
    arrays: list[ByteArray] = []
    for path, dimensions in zip(files, (3, 1, 3, 1), strict=True):
        try:
            arrays.append(_as_array(path, *_scan_member(collection, path, dimensions, keep=True)))
        except DataError as error:
            faults.append(str(error))
    if not faults:
        faults = _mismatches(files, [array.shape for array in arrays])
    if faults:
        raise DataError("; ".join(fitted(faults)))
    return np.concatenate(arrays[0::2]), np.concatenate(arrays[1::2]).astype(np.int64)


def check_collection(collection: str, root: str | None = None) -> tuple[list[str], IndexArray]:
    """Checks the four files as `load_collection` would, keeping only the labels.

    Returns: the faults, and the labels (N,) int64, empty if there are faults.
    """
    try:
        files = idx_files(collection, root)
    except DataError as error:
        return [str(error)], np.zeros(0, np.int64)
    faults: list[str] = []
    shapes: list[tuple[int, ...]] = []
    labels: list[ByteArray] = []
    for path, dimensions in zip(files, (3, 1, 3, 1), strict=True):
        try:
            shape, contents = _scan_member(collection, path, dimensions, keep=dimensions == 1)
            shapes.append(shape)
            if dimensions == 1:
                labels.append(_as_array(path, shape, contents))
        except DataError as error:
            faults.append(str(error))
    if not faults:
        faults = _mismatches(files, shapes)
    return fitted(faults), np.zeros(0, np.int64) if faults else np.concatenate(labels).astype(np.int64)


def _mismatches(files: tuple[Path, ...], shapes: list[tuple[int, ...]]) -> list[str]:
    names = [shown_path(file) for file in files]
    faults = [
        f"{names[i]}: {shapes[i][0]} images, but {names[i + 1]} holds {shapes[i + 1][0]} labels"
        for i in (0, 2)
        if shapes[i][0] != shapes[i + 1][0]
    ]
    if shapes[0][1:] != shapes[2][1:]:
        faults.append(f"{names[2]}: images of {shapes[2][1:]} pixels, but {names[0]} holds {shapes[0][1:]}")
    if min(shapes[0][1:]) < 2:
        faults.append(f"{names[0]}: images of {shapes[0][1:]} pixels, at least 2×2 are needed")
    return faults


def _as_array(path: Path, shape: tuple[int, ...], contents: bytearray) -> ByteArray:
    with reading(path):
        return np.frombuffer(contents, dtype=np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _scan_member(collection: str, path: Path, dimensions: int, *, keep: bool) -> tuple[tuple[int, ...], bytearray]:
    """Shape and bytes as from `_scan`. Raises: DataError also if it is a known file that was changed."""
    shape, contents, sha256 = _scan(path, dimensions, keep=keep)
    if fault := content_fault(collection, path, shape, sha256):
        raise DataError(fault)
    return shape, contents


def _scan(path: Path, dimensions: int, *, keep: bool) -> tuple[tuple[int, ...], bytearray, str]:
    """Reads a file to its end.

    Returns: the shape in its header, its bytes (only those of the header unless `keep`), and the sha256 of them all,
        unpacked.
    """
    if fault := file_fault(path):
        raise DataError(f"{shown_path(path)}: cannot be read: {fault}")
    header_size = 4 + 4 * dimensions
    expected = header_size
    shape: tuple[int, ...] = ()
    contents = bytearray()
    digest = hashlib.sha256()
    found = 0
    name = shown_path(path)
    try:
        size = path.stat().st_size
        limit = unpacked_limit(size)
        for chunk in _chunks(path):
            found += len(chunk)
            digest.update(chunk)
            if keep or len(contents) < header_size:
                contents += chunk
            if not shape and len(contents) >= header_size:
                shape = _shape(path, contents, dimensions)
                expected = header_size + math.prod(shape)
                if expected > size and not _is_compressed(path):
                    found = size
                    break
                keep = keep and expected <= limit
            # Not read to its end: what says it is too long may be endless.
            if shape and found > expected:
                raise DataError(f"{name}: too long: its header announces {expected} bytes, more were found")
            if found > limit:
                raise DataError(
                    f"{name}: too large: its header announces {megabytes(expected)}, at most {megabytes(limit)} are "
                    "unpacked of a file of this size"
                )
    except EOFError:
        raise DataError(f"{name}: truncated: the compressed file ends after {found} of {expected} bytes") from None
    except DataError:
        raise
    except Exception as error:  # whatever it is, the file cannot be read
        raise DataError(f"{name}: cannot be read: {reason_of(error)}") from error
    if found < expected:
        raise DataError(f"{name}: truncated: expected {expected} bytes, found {found}")
    return shape, contents, digest.hexdigest()


def _shape(path: Path, contents: bytearray, dimensions: int) -> tuple[int, ...]:
    magic, *shape = struct.unpack_from(f">{1 + dimensions}I", contents)
    wanted = _UNSIGNED_BYTES << 8 | dimensions
    if magic != wanted:
        kind = "images" if dimensions == 3 else "labels"
        name = shown_path(path)
        raise DataError(f"{name}: wrong magic number: expected {wanted} (IDX file of {kind}), found {magic}")
    return tuple(shape)


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def _chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, decompressed where needed; EOFError at the end of a compressed file that was cut."""
    compressed = _is_compressed(path)
    with path.open("rb") as file:
        inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        while chunk := file.read(_CHUNK):
            yield inflate.decompress(chunk) if compressed else chunk
            if inflate.eof:
                if inflate.unused_data or file.read(1):
                    raise DataError(f"{shown_path(path)}: too long: more follows the end of the compressed data")
                return
        if compressed:
            raise EOFError
