"""sqlite's files and what it says of them: whether an error passes with time, and whether a file is whole."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

OUTAGES = {
    sqlite3.SQLITE_BUSY,  # "database is locked"
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,  # "locking protocol": too many processes at once, or a file system that is slow to lock
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_SCHEMA,
}
"""Primary result codes where trying later may work."""
DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_CORRUPTFS, sqlite3.SQLITE_IOERR_DATA}
"""Result codes, primary or extended, of a file that time does not mend."""
LOOKED_THROUGH = 256 << 20
"""Bytes up to which a file is looked through, in a second or two at most; of a larger file the first page is read."""
MAGIC = b"SQLite format 3\0"
WAIT = 30
"""Seconds to wait for another process that holds the file."""


def passes(error: sqlite3.Error) -> bool:
    """Whether trying later may work."""
    return _code(error) & 0xFF in OUTAGES and not means_damage(error)


def means_damage(error: sqlite3.Error) -> bool:
    """Whether the file is no database, or not a whole one."""
    return not DAMAGE.isdisjoint((_code(error), _code(error) & 0xFF))


def _code(error: sqlite3.Error) -> int:
    """The extended result code; its last byte is the primary one. 0 for what Python's module says by itself."""
    return int(getattr(error, "sqlite_errorcode", 0))


def has_log(file: Path) -> bool:
    """Whether a write-ahead log lies beside the database, which holds what was committed last."""
    log = _log(file)
    return log.exists() and log.stat().st_size > 0


def _log(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal")


def damage(file: Path, *, read_only: bool = False) -> str | None:
    """What is wrong with a database file that exists, None if nothing is; an empty file is a new database.

    Args: read_only: see `connect`.
    Raises: OSError, or sqlite3.Error if the file cannot be read now.
    """
    with file.open("rb") as stream:
        # In this order: another process that is at work has a log before the size changes, and the header before a log.
        size, log = os.fstat(stream.fileno()).st_size, has_log(file)
        header = stream.read(100)
    if log:
        # sqlite would delete the log of an empty file, and write that of another file into this one.
        if not header:
            return f"it is empty, and its log {_log(file).name} is not"
        if header[18:20] == b"\1\1":  # the format of a database without a log
            return f"the log {_log(file).name} beside it is that of another database"
    elif header.startswith(MAGIC) and size % _page_size(header):
        return "its last page is cut"
    whole = size <= LOOKED_THROUGH
    try:
        with closing(connect(file, read_only=read_only)) as database:
            (answer,) = database.execute("PRAGMA quick_check(1)" if whole else "PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        if not means_damage(error):
            raise
        return str(error)
    return None if answer == "ok" or not whole else " ".join(str(answer).split())


def _page_size(header: bytes) -> int:
    size = int.from_bytes(header[16:18], "big")
    return size if size >= 512 else 65536  # which is written as 1


def connect(file: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Opens a file that exists. Args: read_only: nothing is made beside it unless it has a log that must be read."""
    mode = "rw" if not read_only else "ro" if has_log(file) else "ro&immutable=1"
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode={mode}", uri=True, timeout=WAIT)
