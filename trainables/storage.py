"""Files in a local, shared or remote (`s3://…`) folder, through pyarrow's file systems."""

import contextlib
import errno
import os
import pickle
import re
import struct
import time
import uuid
import zipfile
import zlib
from pathlib import Path
from urllib.parse import quote

from pyarrow import ArrowException, fs

BLOCK = ROOM = 1 << 20
"""Bytes that are copied at once; bytes below which a disk counts as full."""
MOST_BYTES = 16 << 30
"""Of a file, and of a checkpoint's files together."""

TEMPORARY_NAME = re.compile(r"\.(probe-[0-9a-f]{32}|.+\.[0-9a-f]{32}\.part)")
"""Names of this product's temporary files in a storage."""

STALE_SECONDS = 7 * 24 * 3600
"""Age of a temporary file that no process can still be writing, whatever the clocks of two machines say."""

OBJECT_ERRORS = frozenset(
    getattr(errno, name) for name in ("ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "EACCES", "EPERM")
)
"""What a file system says of one object that cannot be read, while it works."""

PARSE_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,  # torch's way to refuse a pickle with wrong types in it
    EOFError,
    RecursionError,
    NotImplementedError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArrowException,
)
"""What readers raise of content that is not what they write."""


class StorageAway(OSError):
    """The storage does not work, for as long as it is waited for where it is: no fault of the trial."""


class StorageUnusable(OSError):
    """Nothing can be written to a place of the storage until somebody mends it: no fault of the trial."""


class NoCheckpoint(Exception):
    """The folder holds no whole checkpoint; the message says what is wrong with it."""


def is_damage(error: BaseException) -> bool:
    """Whether an error of reading says that the object is wrong: then the one before may do.

    False where the storage does not answer, which is waited for, and where this process or its device cannot go on.
    Everything that is read from a storage tells the three apart here.
    """
    if isinstance(error, OSError):
        return error.errno in OBJECT_ERRORS
    # torch says so of no file of its own and of shapes that do not fit; of a device that failed or is full it raises
    # children of that class.
    return type(error) is RuntimeError or isinstance(error, (NoCheckpoint, *PARSE_ERRORS))


def damage_of(error: BaseException) -> str:
    """What is wrong with an object, in a line."""
    if isinstance(error, pickle.UnpicklingError):  # torch's text advises to read it without its safeguard
        return "it holds something else than tensors and plain values"
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if isinstance(error, LookupError) or not text else text


def locate(place: str) -> tuple[fs.FileSystem, str]:
    """File system and path of a folder: a local path, or a URI such as `s3://bucket/prefix`.

    Addresses and keys of an object store come from the environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …) or the
    machine's role. Raises: OSError or ValueError (pyarrow's) if there is no such kind of storage.
    """
    if "://" in place:
        kind, _, rest = place.partition("://")
        # In a URI, a `%` begins the code of a character; all others stand for themselves here.
        system, path = fs.FileSystem.from_uri(f"{kind}://{quote(rest, safe='/%')}")
        return system, path.rstrip("/")
    return fs.LocalFileSystem(), str(Path(place).absolute())  # links stay links: a delete must not follow them


def below(place: str, *names: str) -> str:
    """A folder or file inside `place`."""
    return "/".join([place.rstrip("/"), *names])


def name_of(place: str) -> str:
    return place.rstrip("/").rsplit("/", 1)[-1]


def read_file(place: str, name: str, largest: int = MOST_BYTES) -> bytes | None:
    """One file of a checkpoint, None where it is missing. Args: largest: bytes that it may have.

    Raises: StorageAway if the storage does not answer; OSError or ValueError if it is no file, may not be read, or has
        more bytes.
    """
    try:
        system, path = locate(place)
        return read_bytes(system, f"{path}/{name}", largest)
    except OSError as error:
        if is_damage(error):
            raise
        raise StorageAway(f"cannot read {below(place, name)}: {error}") from error


def write_file(place: str, name: str, content: bytes) -> None:
    """Puts one small file into a folder, whole or not at all. Raises: OSError if the storage does not take it."""
    system, path = locate(place)
    if system.type_name == "local":
        system.create_dir(path, recursive=True)
        clear_stale(path)
        # Nobody can have laid a link of that name there, through which a file elsewhere would be written.
        half = f"{path}/.{name}.{uuid.uuid4().hex}.part"
        try:
            with system.open_output_stream(half) as out:
                out.write(content)
            system.move(half, f"{path}/{name}")
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(half)
            raise
        return
    # An object store shows an object only once it is complete.
    with system.open_output_stream(f"{path}/{name}") as out:
        out.write(content)


def read_bytes(system: fs.FileSystem, path: str, most: int) -> bytes | None:
    """A file, None where it is missing. Raises: OSError; ValueError if it is no file or has more than `most` bytes."""
    size = size_of(system, path)
    if size is None:
        return None
    if size > most:
        raise ValueError(f"{name_of(path)} has {size} bytes; allowed are {most}")
    try:
        with system.open_input_stream(path) as stream:
            content: bytes = stream.read(size)
            return content
    except (FileNotFoundError, NotADirectoryError):
        return None


def size_of(system: fs.FileSystem, path: str) -> int | None:
    """Bytes of a file, None where it is missing. Raises: OSError; ValueError if it is no file: to open it might wait
    for ever."""
    info = system.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        return None
    if info.type != fs.FileType.File:
        raise ValueError(f"{name_of(path)} is not a file")
    return int(info.size)


def clear_stale(path: str) -> None:
    """Deletes temporary files in a local folder that a killed process of this product has left days ago."""
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            ours = TEMPORARY_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            if ours and time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS:
                os.unlink(entry.path)


def storage_fault(place: str, *, probe: bool = True) -> str | None:
    """What is wrong with a storage folder, in a sentence; None if files can be written, read and deleted there.

    Args: probe: tries so, and makes the folder; False only asks whether the storage answers.
    """
    name = f".probe-{uuid.uuid4().hex}"
    try:
        system, path = locate(place)
        if not probe:
            system.get_file_info(path)  # an object store that is away says so
            return None
        if system.type_name == "local":
            system.create_dir(path, recursive=True)
            clear_stale(path)
        with system.open_output_stream(f"{path}/{name}") as out:
            out.write(b"probe")
        try:
            with system.open_input_stream(f"{path}/{name}") as stream:
                same = stream.read() == b"probe"
        finally:
            system.delete_file(f"{path}/{name}")
    except (OSError, ValueError) as error:
        return f"storage.path: cannot write to {place}: {' '.join(str(error).split())}"
    return None if same else f"storage.path: {place} does not give back what is written to it"
