"""Folders for what a process needs while it lives, and the clearing of those whose process was killed.

A process holds a lock on its folder, which the kernel drops when the process ends, however it ends: a folder that can
be locked has no owner any more. Machines that share a temporary folder may not see each other's locks, so the name
tells the kernel's start too, and folders of another one are left alone.
"""

import atexit
import base64
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Literal

Kind = Literal["ray", "checkpoint", "home"]

NO_LOCK = "nolock"
"""In a name in place of the kernel: nobody can tell whether the folder's process lives."""
NAME_LENGTH = len(f"ardmvc-ray-{NO_LOCK}-0000")
"""Characters in the name of a folder for Ray, whose sockets need short paths."""
ATTEMPTS = 1000
_NAME = re.compile(r"ardmvc-(?:ray|checkpoint|home)-(?P<kernel>[a-z2-7]{6})-[0-9a-f]{4}")


class Scratch:
    """A folder of this process alone; deleted at the end of its `with` block, or by `delete`."""

    def __init__(self, kind: Kind, base: Path | None = None) -> None:
        """Args: base: where to make it; None: in the temporary folder. Raises: OSError if that cannot be done."""
        self.path, self._lock = _make(kind, Path(tempfile.gettempdir()) if base is None else base)

    def delete(self) -> None:
        """What cannot be deleted is left to `clear_scratch`."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()


def ensure_home() -> None:
    """Gives this process and those that it starts a home folder if the user has none: without HOME and an entry among
    the users, as in containers, Ray cannot even be imported.

    Raises: OSError if none can be made.
    """
    with contextlib.suppress(RuntimeError):
        if os.path.isabs(home := Path.home()) and home.is_dir():
            return
    scratch = Scratch("home")
    atexit.register(scratch.delete)
    os.environ["HOME"] = str(scratch.path)


def clear_scratch(base: Path | None = None) -> None:
    """Deletes the scratch folders in `base` whose process has ended; those of other users and machines stay.

    Args: base: None: the temporary folder.
    """
    kernel = _kernel()
    with contextlib.suppress(OSError):
        base = Path(tempfile.gettempdir()) if base is None else base
        for name in os.listdir(base):
            found = _NAME.fullmatch(name)
            if found and found["kernel"] == kernel != NO_LOCK:
                _clear(base / name)


def _clear(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a link, no folder, or gone meanwhile
        handle = _open(folder)
        try:
            if os.fstat(handle).st_uid == os.geteuid() and _lock(handle):
                # By its handle: whatever takes the place of the folder meanwhile is not touched.
                shutil.rmtree(".", ignore_errors=True, dir_fd=handle)
                folder.rmdir()
        finally:
            os.close(handle)


def _make(kind: Kind, base: Path) -> tuple[Path, int]:
    """A new folder, and the handle that holds its lock."""
    kernel = _kernel() if _has_locks(base) else NO_LOCK
    for _ in range(ATTEMPTS):
        folder = base / f"ardmvc-{kind}-{kernel}-{secrets.token_hex(2)}"
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        # Until it is locked, another process may take it for a dead one's: then it is gone, or about to be.
        with contextlib.suppress(FileNotFoundError):
            handle = _open(folder)
            if (kernel == NO_LOCK or _lock(handle)) and os.path.samestat(os.fstat(handle), folder.stat()):
                return folder, handle
            os.close(handle)
    raise FileExistsError(errno.EEXIST, "no name is free", str(base))


def _lock(handle: int) -> bool:
    """Takes the lock of a folder. Returns: whether nobody else has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _has_locks(base: Path) -> bool:
    """Whether folders in `base` can be locked, which not every file system knows."""
    try:
        handle = _open(Path(os.path.realpath(base)))
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(handle)
    return True


def _open(folder: Path) -> int:
    """A handle on a folder itself. Raises: OSError if it is a link or no folder."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _kernel() -> str:
    """Tells this start of this machine's kernel from others; `NO_LOCK` where the system does not say."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return NO_LOCK
    return base64.b32encode(hashlib.sha256(start).digest())[:6].decode().lower()
