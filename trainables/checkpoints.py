"""Checkpoints of one trial on a local, shared or remote (`s3://…`) folder, through pyarrow's file systems.

A checkpoint is a folder whose `manifest.json` is written last and holds the digest of every file: without a manifest
that fits it does not exist. One rule makes writing atomic on every kind of storage, and a checkpoint that was torn by a
kill, a full disk or a broken transfer is told from a whole one. Folders carry a token of their writer: a worker that
is believed dead and still writes cannot touch what its successor wrote.

People share storages, so what lies there is not trusted. A manifest has a fixed schema: plain file names, sizes and
digests; a checkpoint is read into its folder and writes nowhere else. Only real folders whose names have this product's
own form, directly below the trial's folder, are ever deleted, and no link is followed on the way.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from pyarrow import fs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainables.retry import doubling, may_pass, retry
from trainables.scratch import Scratch
from trainables.storage import (
    BLOCK,
    MOST_BYTES,
    PARSE_ERRORS,
    ROOM,
    NoCheckpoint,
    StorageAway,
    StorageUnusable,
    below,
    damage_of,
    is_damage,
    locate,
    name_of,
    read_bytes,
    size_of,
)

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
KEPT = 2
"""Checkpoints of a trial that are kept: the newest, and one to fall back to."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between attempts while the storage does not work; doubled each time."""
CHECKPOINT_NAME = re.compile(r"round_([0-9]{1,9})-[0-9a-f]{8}")
"""What `Checkpoints.save` calls a folder: the round, and the token of the writer. Nothing else is deleted."""
FILE_NAME = r"^[a-z][a-z0-9_]{0,40}(\.(pt|json|npz))?$"
"""Plain names that a checkpoint's files may have."""
MOST_FILES, MOST_MANIFEST_BYTES = 16, 1 << 16
"""Limits of one checkpoint: files, bytes of its manifest."""


class FileFacts(BaseModel):
    """What a manifest says of one file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    bytes: int = Field(ge=0, le=MOST_BYTES)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """All that a manifest may say: the facts of each file of its folder, by name."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    files: dict[Annotated[str, Field(pattern=FILE_NAME)], FileFacts] = Field(min_length=1, max_length=MOST_FILES)


class Checkpoints:
    """Writes a trial's checkpoints and finds the newest whole one; waits for a storage that is away for a while."""

    def __init__(
        self,
        folder: str,
        *,
        patience: float = 0.0,
        files: frozenset[str] | None = None,
        tell: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Args: folder: of the trial, local path or URI. patience: seconds that a failing storage is tried again.
        files: names that a checkpoint's files may have; None: any plain name. tell: called with what is waited for,
            and with an empty text once it is over.
        """
        self.folder, self._tell = folder, tell
        self._files = files
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
        Raises: StorageAway if the storage did not work for `patience` seconds; StorageUnusable at once if waiting helps
            nothing; ValueError for files that `restore` would refuse: of another name, or too many or too large.
        """
        name = f"round_{round_:06d}-{uuid.uuid4().hex[:8]}"
        place = below(self.folder, name)
        self._patiently(partial(_store, write, place, self._files), f"cannot write {place}")
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

        A checkpoint counts as whole only if it loads: an error of `load` or `adopt` that `is_damage` makes the next
        one's turn. So both must change nothing when they raise.

        Args: candidates: places of recorded checkpoints, newest first; one that is not there is looked for by its name
            in this folder, to where a storage may have moved. adopt: is shown a whole checkpoint of the round after the
            newest recorded one, which an attempt had stored and nobody lived to record, and its place; it says whether
            it goes on from there.
        Returns: the recorded place that was loaded, None if none is whole; and a sentence for each that was not.
        Raises: StorageAway if the storage did not work for `patience` seconds; other errors of `load` and `adopt`.
        """
        faults: list[str] = []
        found = None
        self._known = []
        for index, recorded in enumerate(candidates):
            place = self._place_of(recorded)
            with Scratch("checkpoint") as local:
                try:
                    self._download(place, Path(local))
                    load(Path(local))
                except Exception as error:
                    if not is_damage(error):
                        raise
                    whole = isinstance(error, NoCheckpoint)
                    faults.append(str(error) if whole else f"the checkpoint {place} is damaged: {damage_of(error)}")
                    continue
                found = place
                names = [self._name_here(self._place_of(one)) for one in reversed(candidates[index:])]
                self._known = [name for name in names if name is not None]
                break
        if adopt is not None and not faults:
            self._adopt(round_of(candidates[0]) + 1 if candidates else 1, adopt)
        if found is not None:
            self._clear()
        return found, faults

    def _adopt(self, round_: int, adopt: Callable[[Path, str], bool]) -> None:
        for name in sorted(name for name in self._left if round_of(name) == round_):
            place = below(self.folder, name)
            with Scratch("checkpoint") as local:
                try:
                    self._download(place, Path(local))
                    if adopt(Path(local), place):
                        self._known.append(name)
                        return
                except Exception as error:
                    if not is_damage(error):
                        raise
                    logger.debug("not taken up: %s", error)  # most likely it was not finished

    def _place_of(self, recorded: str) -> str:
        name = name_of(recorded)
        return below(self.folder, name) if name in self._left else recorded

    def _name_here(self, place: str) -> str | None:
        """The name of a checkpoint of this trial's folder; None for a place elsewhere, which is read and never
        deleted."""
        name = name_of(place)
        return name if below(self.folder, name) == place.rstrip("/") else None

    def _clear(self) -> None:
        """Deletes what earlier attempts left and nobody recorded."""
        for name in self._left - set(self._known):
            _delete(self.folder, name)

    def while_away(self, action: Callable[[], None], what: str) -> None:
        """Calls `action`, again while it raises StorageAway. Args: what: cannot be done then, in words.

        Raises: StorageAway if it did so for `patience` seconds; other errors of `action` at once.
        """
        self._patiently(action, what, lambda error: isinstance(error, StorageAway))

    def _download(self, place: str, target: Path) -> None:
        read = partial(download, place, target, self._files)
        self._patiently(read, f"cannot read {place}", lambda error: isinstance(error, OSError) and not is_damage(error))

    def _patiently(
        self,
        action: Callable[[], None],
        what: str,
        passes: Callable[[Exception], bool] | None = None,
    ) -> None:
        """Args: passes: whether an error may be over when the action is tried again; None: for one that writes."""
        begin, last = time.monotonic(), deque[Exception](maxlen=1)
        pauses = doubling(FIRST_PAUSE, LONGEST_PAUSE, begin + self._patience, cut=True)

        def waiting(error: Exception) -> None:
            last.append(error)
            self._tell(f"{what}: {error}")

        try:
            retry(action, passes or may_pass, pauses, waiting)
        except OSError as error:
            if (passes or may_pass)(error):
                raise StorageAway(f"{what}: {error} (tried for {self._patience:g} s)") from error
            if passes is None:
                raise StorageUnusable(f"{what}: {error}") from error
            raise
        finally:
            if last:
                self._tell("")
        if last:
            self.waited.append(f"waited {time.monotonic() - begin:.0f} s for its storage: {what}: {last[0]}")


def round_of(place: str) -> int:
    """The round in a checkpoint's name; −1 for another name."""
    found = CHECKPOINT_NAME.fullmatch(name_of(place))
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


def _store(write: Callable[[Path], None], place: str, files: frozenset[str] | None) -> None:
    """Lets the trial write its files into a draft and uploads them; an attempt that fails leaves no draft behind."""
    with Scratch("checkpoint") as folder:
        draft = Path(folder)
        try:
            write(draft)
        except RuntimeError as error:  # torch's word for a disk that is full
            if shutil.disk_usage(draft).free < ROOM:
                raise OSError(errno.ENOSPC, f"No space left for a draft in {draft.parent}") from error
            raise
        upload(draft, place, files)


def upload(source: Path, place: str, files: frozenset[str] | None = None) -> None:
    """Copies the files of a local folder to `place` and seals them with a manifest.

    Args: files: names that they may have; None: any plain name.
    Raises: OSError; ValueError, before anything is copied, if `download` would refuse them.
    """
    found = sorted(source.iterdir())
    for file in found:
        fault = _name_fault(file.name, files)
        if fault or not file.is_file():
            raise ValueError(f"a checkpoint cannot hold {file.name!r}: {fault or 'it is no file'}")
    if fault := _size_fault([file.stat().st_size for file in found]):
        raise ValueError(f"a checkpoint cannot hold {fault}")
    system, path = locate(place)
    if system.type_name == "local":  # object stores have no folders
        system.create_dir(path, recursive=True)
    facts: dict[str, FileFacts] = {}
    for file in found:
        digest, size = hashlib.sha256(), 0
        with file.open("rb") as read, system.open_output_stream(f"{path}/{file.name}") as out:
            while block := read.read(BLOCK):
                digest.update(block)
                size += len(block)
                out.write(block)
        facts[file.name] = FileFacts(bytes=size, sha256=digest.hexdigest())
    with system.open_output_stream(f"{path}/{MANIFEST}") as out:
        out.write(Manifest(files=facts).model_dump_json(indent=1).encode())


def download(place: str, target: Path, files: frozenset[str] | None = None) -> None:
    """Copies a whole checkpoint into a local folder, and writes nowhere else.

    Args: files: names that its files may have; None: any plain name.
    Raises: NoCheckpoint if it is gone, torn or changed; OSError if the storage does not answer.
    """
    try:
        system, path = locate(place)
        raw = read_bytes(system, f"{path}/{MANIFEST}", MOST_MANIFEST_BYTES)
        if raw is None:
            raise NoCheckpoint(f"the checkpoint {place} is gone or was never finished")
        wanted = _files_of(raw, files)
        for name, facts in wanted.items():
            if size_of(system, f"{path}/{name}") not in (None, facts.bytes):
                raise ValueError(f"{name} is not what was written")
        for name, facts in wanted.items():
            _fetch(system, f"{path}/{name}", facts, target / name)
    except (OSError, *PARSE_ERRORS) as error:
        if not is_damage(error):
            raise
        raise NoCheckpoint(f"the checkpoint {place} is damaged: {damage_of(error)}") from error


def _files_of(manifest: bytes, files: frozenset[str] | None) -> dict[str, FileFacts]:
    """The files that a manifest lists. Raises: ValueError for anything but a manifest of an allowed size and names."""
    try:
        wanted = Manifest.model_validate_json(manifest).files
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False)[0]
        where = f"{'.'.join(map(str, details['loc']))[:80]!r}: " if details["loc"] else ""
        raise ValueError(f"{MANIFEST} cannot be read: {where}{details['msg']}") from None
    faults = [_name_fault(name, files) for name in wanted] + [_size_fault([facts.bytes for facts in wanted.values()])]
    if fault := next(filter(None, faults), ""):
        raise ValueError(f"{MANIFEST} lists {fault}")
    return wanted


def _name_fault(name: str, files: frozenset[str] | None) -> str:
    """Why a checkpoint's file cannot have this name; empty if it can."""
    if name == MANIFEST or not re.fullmatch(FILE_NAME, name):
        return f"{name[:80]!r}, which is no plain name of a checkpoint's file"
    if files is not None and name not in files:
        return f"{name!r}, which is none of {', '.join(sorted(files))}"
    return ""


def _size_fault(sizes: Sequence[int]) -> str:
    """Why files of these sizes are no checkpoint; empty if they can be."""
    if not 1 <= len(sizes) <= MOST_FILES:
        return f"{len(sizes)} files; allowed are 1 to {MOST_FILES}"
    return f"{sum(sizes)} bytes; allowed are {MOST_BYTES}" if sum(sizes) > MOST_BYTES else ""


def _fetch(system: fs.FileSystem, path: str, facts: FileFacts, target: Path) -> None:
    """Copies one file of a checkpoint. Raises: OSError; ValueError if it is missing or not what was written."""
    digest, left = hashlib.sha256(), facts.bytes
    try:
        with system.open_input_stream(path) as stream, target.open("wb") as out:
            while block := stream.read(min(BLOCK, left + 1)):
                left -= len(block)
                if left < 0:  # it grew meanwhile
                    break
                digest.update(block)
                out.write(block)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{target.name} is missing") from None
    if left or digest.hexdigest() != facts.sha256:
        raise ValueError(f"{target.name} is not what was written")


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
