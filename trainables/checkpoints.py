"""Checkpoints of one trial on a local, shared or remote (`s3://…`) folder, through pyarrow's file systems.

A checkpoint is a folder whose `manifest.json` is written last and holds the digest of every file: without a manifest
that fits it does not exist. One rule makes writing atomic on every kind of storage, and a checkpoint that was torn by a
kill, a full disk or a broken transfer is told from a whole one. Folders carry a token of their writer: a worker that
is believed dead and still writes cannot touch what its successor wrote.

People share storages. Only real folders whose names have this product's own form, directly below the trial's folder,
are ever deleted, and no link is followed on the way.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import fs

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
KEPT = 2
"""Checkpoints of a trial that are kept: the newest, and one to fall back to."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between attempts while the storage does not work; doubled each time."""
BLOCK = ROOM = 1 << 20
"""Bytes that are copied at once; bytes below which a disk counts as full."""
CHECKPOINT_NAME = re.compile(r"round_([0-9]{1,9})-[0-9a-f]{8}")
"""What `Checkpoints.save` calls a folder: the round, and the token of the writer. Nothing else is deleted."""


class StorageAway(OSError):
    """The storage did not work for longer than it is waited for: no fault of the trial."""


class NoCheckpoint(Exception):
    """The folder holds no whole checkpoint; the message says what is wrong with it."""


def locate(place: str) -> tuple[fs.FileSystem, str]:
    """File system and path of a folder: a local path, or a URI such as `s3://bucket/prefix`.

    Addresses and keys of an object store come from the environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …) or the
    machine's role. Raises: OSError or ValueError (pyarrow's) if there is no such kind of storage.
    """
    if "://" in place:
        system, path = fs.FileSystem.from_uri(place)
        return system, path.rstrip("/")
    return fs.LocalFileSystem(), str(Path(place).absolute())  # links stay links: a delete must not follow them


def below(place: str, *names: str) -> str:
    """A folder or file inside `place`."""
    return "/".join([place.rstrip("/"), *names])


class Checkpoints:
    """Writes a trial's checkpoints and finds the newest whole one; waits for a storage that is away for a while."""

    def __init__(self, folder: str, *, patience: float = 0.0) -> None:
        """Args: folder: of the trial, local path or URI. patience: seconds that a failing storage is tried again."""
        self.folder = folder
        self.waited: list[str] = []
        """What the storage kept this trial waiting with, for people; the reader empties it."""
        self._patience = patience
        self._known: list[str] = []
        """Names of the checkpoints that this writer may delete: those it was given and those it wrote, oldest first."""
        self._left: set[str] = set()
        """Names of the checkpoints that earlier attempts had left when this writer began; later ones are not its to
        clear."""

    def save(self, round_: int, write: Callable[[Path], None]) -> str:
        """Stores what `write` puts into the folder it is given, and deletes all but the newest KEPT checkpoints.

        Returns: the checkpoint's place, a local path or a URI.
        Raises: StorageAway if the storage did not work for `patience` seconds.
        """
        name = f"round_{round_:06d}-{uuid.uuid4().hex[:8]}"
        place = below(self.folder, name)
        self._patiently(partial(_store, write, place), f"cannot write {place}")
        self._known.append(name)
        for old in self._known[:-KEPT]:
            _delete(self.folder, old)
        self._known = self._known[-KEPT:]
        return place

    def look(self) -> None:
        """Remembers what earlier attempts have left; called first of all, before anything that takes long."""
        try:
            self._left = _checkpoints_in(self.folder)
        except OSError as error:
            logger.debug("cannot list %s: %s", self.folder, error)

    def restore(
        self,
        candidates: Sequence[str],
        load: Callable[[Path], None],
        adopt: Callable[[Path, str], bool] | None = None,
    ) -> tuple[str | None, list[str]]:
        """Hands the newest whole checkpoint to `load`, and deletes what `look` has seen and no candidate names.

        Args: candidates: places of recorded checkpoints, newest first; one that is not there is looked for by its name
            in this folder, to where a storage may have moved. adopt: is shown a whole checkpoint of the round after the
            newest recorded one, which an attempt had stored and nobody lived to record, and its place; it says whether
            it goes on from there.
        Returns: the recorded place that was loaded, None if none is whole; and a sentence for each that was not.
        Raises: StorageAway if the storage did not work for `patience` seconds; what `load` and `adopt` raise.
        """
        faults: list[str] = []
        found = None
        self._known = []
        for index, recorded in enumerate(candidates):
            place = self._place_of(recorded)
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as local:
                try:
                    self._patiently(partial(download, place, Path(local)), f"cannot read {place}")
                except NoCheckpoint as error:
                    faults.append(str(error))
                    continue
                load(Path(local))
                found = place
                names = [self._name_here(self._place_of(one)) for one in reversed(candidates[index:])]
                self._known = [name for name in names if name is not None]
                break
        if adopt is not None and not faults:
            self._adopt(_round_of(candidates[0]) + 1 if candidates else 1, adopt)
        if found is not None:
            self._clear()
        return found, faults

    def _adopt(self, round_: int, adopt: Callable[[Path, str], bool]) -> None:
        for name in sorted(name for name in self._left if _round_of(name) == round_):
            place = below(self.folder, name)
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as local:
                try:
                    self._patiently(partial(download, place, Path(local)), f"cannot read {place}")
                except NoCheckpoint:
                    continue  # it was not finished
                if adopt(Path(local), place):
                    self._known.append(name)
                    return

    def _place_of(self, recorded: str) -> str:
        name = _name_of(recorded)
        return below(self.folder, name) if name in self._left else recorded

    def _name_here(self, place: str) -> str | None:
        """The name of a checkpoint of this trial's folder; None for a place elsewhere, which is read and never
        deleted."""
        name = _name_of(place)
        return name if below(self.folder, name) == place.rstrip("/") else None

    def _clear(self) -> None:
        """Deletes what earlier attempts left and nobody recorded."""
        for name in self._left - set(self._known):
            _delete(self.folder, name)

    def _patiently(self, action: Callable[[], None], what: str) -> None:
        begin, pause, reason = time.monotonic(), FIRST_PAUSE, ""
        while True:
            try:
                action()
            except OSError as error:
                left = begin + self._patience - time.monotonic()
                reason = f"{what}: {error}"
                if left <= 0:
                    raise StorageAway(f"{reason} (tried for {self._patience:g} s)") from error
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if reason:
                self.waited.append(f"waited {time.monotonic() - begin:.0f} s for its storage: {reason}")
            return


def _name_of(place: str) -> str:
    return place.rstrip("/").rsplit("/", 1)[-1]


def _round_of(place: str) -> int:
    """The round in a checkpoint's name; −1 for another name."""
    found = CHECKPOINT_NAME.fullmatch(_name_of(place))
    return int(found[1]) if found else -1


def _checkpoints_in(folder: str) -> set[str]:
    """Names of the checkpoints in a trial's folder. Links and folders of other names are none. Raises: OSError."""
    system, path = locate(folder)
    if system.type_name == "local":  # pyarrow tells a link to a folder as a folder
        try:
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            names = []
    else:
        listed = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        names = [info.base_name for info in listed if info.type == fs.FileType.Directory]
    return {name for name in names if CHECKPOINT_NAME.fullmatch(name)}


def _store(write: Callable[[Path], None], place: str) -> None:
    """Lets the trial write its files into a draft and uploads them; an attempt that fails leaves no draft behind."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        draft = Path(folder)
        try:
            write(draft)
        except RuntimeError as error:  # torch's word for a disk that is full
            if shutil.disk_usage(draft).free < ROOM:
                raise OSError(errno.ENOSPC, f"No space left for a draft in {draft.parent}") from error
            raise
        upload(draft, place)


def upload(source: Path, place: str) -> None:
    """Copies the files of a local folder to `place` and seals them with a manifest. Raises: OSError."""
    system, path = locate(place)
    if system.type_name == "local":  # object stores have no folders
        system.create_dir(path, recursive=True)
    manifest: dict[str, Any] = {}
    for file in sorted(source.iterdir()):
        digest = hashlib.sha256()
        with file.open("rb") as read, system.open_output_stream(f"{path}/{file.name}") as out:
            while block := read.read(BLOCK):
                digest.update(block)
                out.write(block)
        manifest[file.name] = {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}
    with system.open_output_stream(f"{path}/{MANIFEST}") as out:
        out.write(json.dumps({"files": manifest}, indent=1).encode())


def download(place: str, target: Path) -> None:
    """Copies a whole checkpoint into a local folder.

    Raises: NoCheckpoint if it is gone, torn or changed; OSError if the storage does not answer.
    """
    system, path = locate(place)
    raw = _read(system, f"{path}/{MANIFEST}")
    if raw is None:
        raise NoCheckpoint(f"the checkpoint {place} is gone or was never finished")
    try:
        files = json.loads(raw)["files"]
        wanted = {str(name): str(facts["sha256"]) for name, facts in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise NoCheckpoint(f"the checkpoint {place} is damaged: {MANIFEST} cannot be read") from None
    for name, expected in wanted.items():
        content = _read(system, f"{path}/{name}")
        if content is None or hashlib.sha256(content).hexdigest() != expected:
            what = "is missing" if content is None else "is not what was written"
            raise NoCheckpoint(f"the checkpoint {place} is damaged: {name} {what}")
        (target / name).write_bytes(content)


def read_file(place: str, name: str) -> bytes | None:
    """One file of a checkpoint, None where it is missing. Raises: OSError if the storage does not answer."""
    system, path = locate(place)
    return _read(system, f"{path}/{name}")


def write_file(place: str, name: str, content: bytes) -> None:
    """Puts one small file into a folder, whole or not at all. Raises: OSError if the storage does not take it."""
    system, path = locate(place)
    if system.type_name == "local":
        system.create_dir(path, recursive=True)
        whole, half = f"{path}/{name}", f"{path}/{name}.{os.getpid()}.part"
        with system.open_output_stream(half) as out:
            out.write(content)
        system.move(half, whole)
        return
    # An object store shows an object only once it is complete.
    with system.open_output_stream(f"{path}/{name}") as out:
        out.write(content)


def _read(system: fs.FileSystem, path: str) -> bytes | None:
    try:
        with system.open_input_stream(path) as stream:
            return bytes(stream.read())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _delete(folder: str, name: str) -> None:
    """Deletes a checkpoint in a trial's folder, its manifest first; what cannot be deleted stays, and costs room only.

    Does nothing for a name of another form, or for a link.
    """
    if not CHECKPOINT_NAME.fullmatch(name):
        return
    try:
        system, path = locate(below(folder, name))
        if system.type_name == "local":
            _delete_local(path)
            return
        with contextlib.suppress(FileNotFoundError):
            system.delete_file(f"{path}/{MANIFEST}")
        system.delete_dir(path)
    except OSError as error:
        logger.debug("cannot delete %s in %s: %s", name, folder, error)


def _delete_local(path: str) -> None:
    """Deletes a real folder; links in it are unlinked, and their targets stay. Raises: OSError for a link."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(MANIFEST, dir_fd=opened)
    finally:
        os.close(opened)
    shutil.rmtree(path)  # pyarrow's delete_dir empties the target of a link


def storage_fault(place: str) -> str | None:
    """What is wrong with a storage folder, in a sentence; None if files can be written, read and deleted there."""
    name = f".probe-{uuid.uuid4().hex}"
    try:
        system, path = locate(place)
        if system.type_name == "local":
            system.create_dir(path, recursive=True)
        with system.open_output_stream(f"{path}/{name}") as out:
            out.write(b"probe")
        with system.open_input_stream(f"{path}/{name}") as stream:
            same = stream.read() == b"probe"
        system.delete_file(f"{path}/{name}")
    except (OSError, ValueError) as error:
        return f"storage.path: cannot write to {place}: {' '.join(str(error).split())}"
    return None if same else f"storage.path: {place} does not give back what is written to it"
