"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Puts `content` under `path`, and makes its folder if there is none.

    It is written beside its place and moved there once it is on the disk: after a kill, a full disk or a power cut the
    file is the old one or the new one. A link stays a link, a file keeps its mode, and a device or a pipe is written
    to as it is. What a kill leaves behind is a hidden file, `.….part`.

    Raises: OSError; the file is then as it was.
    """
    mode = None
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode
    if mode is not None and not stat.S_ISREG(mode):
        path.write_bytes(content)  # a folder refuses it
        return
    if mode is not None and not os.access(path, os.W_OK):  # replacing it would need no such permission
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
