"""How a study's database is reached: its address, its engine, what is waited for and what is refused."""

import logging
import os
import sqlite3
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import optuna
import sqlalchemy

from ardmvc_core.errors import UserError
from study.database.sqlite_files import damage, has_log, means_damage, passes
from study.places import STUDY_DB, address_in, local_folder
from study.secrets import Address, first_line
from trainables.places import folder_fault
from trainables.retry import retry

logger = logging.getLogger(__name__)

SCHEMA_ATTEMPTS = 10

SCHEMA_RACES = ("already exists", "duplicate key", "unique constraint", "database is locked")
"""What databases say to one of several processes that make the tables at once."""

FAILOVER = ("25006",)
"""What PostgreSQL says while another server takes over: it may only be read for now."""

IDLE_SECONDS = 15
"""PostgreSQL ends a transaction in which nothing happens for so long: a driver that is stopped in the middle of a write
does not keep the next driver from taking over, by the locks that it holds."""

MENDING = (
    "Move it away with its -wal and -shm files, and bring the study back from a backup: "
    "python -m study.control NAME restore FILE"
)
"""What to do about a damaged file."""


class LedgerError(UserError):
    """The database cannot be used as asked; the message says why and what to do, and holds no password."""


class NoStudy(LedgerError):
    """There is no study of that name, or no database yet."""


def study_url(storage: str | Path) -> Address:
    """`ARDMVC_STUDY_DB`, or a sqlite file in the storage folder; in `runs` if the storage is no local folder."""
    return address_in("ARDMVC_STUDY_DB", local_folder(storage) / STUDY_DB)


def open_storage(url: str | Address, *, create: bool) -> optuna.storages.BaseStorage:
    """The database behind `url`, its tables made if they are missing.

    Raises: LedgerError when it cannot be reached, or when it is a missing file and `create` is off.
    """
    address = Address(url)
    try:
        parsed = database_url(address)
    except ValueError as error:
        raise LedgerError(f"ARDMVC_STUDY_DB {error}; one looks like sqlite:////data/studies.db") from error
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise LedgerError(
                "ARDMVC_STUDY_DB must name a file, like sqlite:////data/studies.db; memory keeps no study"
            )
        file = Path(parsed.database)
        if not create and not os.path.exists(file):  # unlike Path.exists, for names that are too long as well
            raise NoStudy(f"there is no study database at {file}")
        if not create and file.is_file() and not file.stat().st_size and not has_log(file):
            raise NoStudy(f"there is no study database at {file}: the file is empty")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"cannot make the folder of the study database {file}: {error.strerror}") from error
        _refuse_damage(file)
    try:
        if not create and not _has_tables(parsed):
            raise NoStudy(f"there is no study in the database {address}: it has no tables")
        storage = _make_storage(address, parsed)
    except ImportError as error:
        missing = getattr(error.__cause__ or error, "name", None) or parsed.drivername
        raise LedgerError(f"the study database {address} needs a driver that is not installed: {missing}") from error
    except NoStudy:
        raise
    except Exception as error:  # every driver has its own exceptions; all mean: not reachable
        raise LedgerError(f"cannot reach the study database {address}: {first_line(error)}") from error
    _set_up_connections(storage.engine)
    if parsed.get_backend_name() == "sqlite":
        _in_use[storage.engine] = _identity_of(Path(str(parsed.database)))
    return optuna.storages.get_storage(storage)  # adds the cache of finished trials


def check_room(url: str | Address) -> None:
    """Raises: LedgerError if the sqlite file of a study database is not there and cannot be made. Makes nothing."""
    parsed = database_url(Address(url))
    file = Path(str(parsed.database))
    missing = parsed.get_backend_name() == "sqlite" and not os.path.exists(file)
    if missing and (fault := folder_fault(file.parent)):
        raise LedgerError(f"cannot make the study database {file}: {fault}")


def _make_storage(address: Address, parsed: sqlalchemy.engine.URL) -> optuna.storages.RDBStorage:
    """Opens the database; of several processes that make its tables at once, all but one have to try again."""

    def make() -> optuna.storages.RDBStorage:
        if parsed.get_backend_name() == "sqlite":
            with closing(sqlite3.connect(str(parsed.database), timeout=30)) as database:
                database.execute("PRAGMA journal_mode=WAL")  # kept in the file; makes the tables sooner
        # A connection that a restarted server has dropped is replaced before it is used.
        options = {"connect_args": _connect_args(parsed), "pool_pre_ping": True}
        template = address.reveal().replace("{", "{{").replace("}", "}}")  # Optuna would put its version there
        return optuna.storages.RDBStorage(template, engine_kwargs=options)

    def lost_a_race(error: Exception) -> bool:
        return any(words in f"{error} {error.__cause__}".lower() for words in SCHEMA_RACES)

    told: list[Exception] = []

    def waiting(error: Exception) -> None:
        if not told:
            logger.warning("the study database %s is busy: %s; it is tried again", address, first_line(error))
        told.append(error)

    return retry(make, lost_a_race, repeat(0.5, SCHEMA_ATTEMPTS - 1), waiting)


def _has_tables(parsed: sqlalchemy.engine.URL) -> bool:
    """Whether a database has Optuna's tables, which opening it would make; of sqlite, whose file is there: True."""
    if parsed.get_backend_name() == "sqlite":
        return True
    engine = sqlalchemy.create_engine(parsed, connect_args=_connect_args(parsed), poolclass=sqlalchemy.pool.NullPool)
    return bool(sqlalchemy.inspect(engine).has_table("studies"))


def engine_of(storage: optuna.storages.BaseStorage) -> sqlalchemy.engine.Engine:
    """SQLAlchemy's engine of a database that was opened here."""
    engine: sqlalchemy.engine.Engine = without_cache(storage).engine
    return engine


def without_cache(storage: optuna.storages.BaseStorage) -> Any:
    return getattr(storage, "_backend", storage)


def _connect_args(url: sqlalchemy.engine.URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"timeout": 30}
    if url.get_backend_name() != "postgresql":
        return {"connect_timeout": 5}
    # A server that is gone without a word is noticed in seconds and not after the kernel's quarter of an hour.
    alive = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15_000}
    return {"connect_timeout": 5, **alive}


def _set_up_connections(engine: sqlalchemy.engine.Engine) -> None:
    """sqlite: no disk flush per commit, since with a write-ahead log a killed process loses nothing, and a commit costs
    under 1 ms. PostgreSQL: see IDLE_SECONDS."""
    settings = {
        "sqlite": "PRAGMA synchronous=NORMAL",
        "postgresql": f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'",
    }
    setting = settings.get(engine.name)
    if setting is None:
        return

    def set_up(connection: Any, _: Any) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute(setting)
        connection.commit()

    sqlalchemy.event.listen(engine, "connect", set_up)
    engine.dispose()


_in_use: WeakKeyDictionary[sqlalchemy.engine.Engine, tuple[int, int]] = WeakKeyDictionary()
"""Engines of this process → device and inode of their sqlite file."""


def _used(identity: tuple[int, int]) -> bool:
    """Whether a connection of this process to this sqlite file is open."""
    pools: list[Any] = [engine.pool for engine, known in list(_in_use.items()) if known == identity]
    return any(pool.checkedin() + pool.checkedout() for pool in pools)


def _identity_of(file: Path) -> tuple[int, int]:
    facts = file.stat()
    return facts.st_dev, facts.st_ino


def _refuse_damage(file: Path) -> None:
    """Raises: LedgerError if a database file is there and is not whole. One that this process uses is not looked at.

    To close a second descriptor of a file ends all locks that this process has on it, sqlite's too: another process
    could then delete the log of a database that is in use here (sqlite.org/howtocorrupt.html, 2.2).
    """
    try:
        fault = damage(file) if file.exists() and not _used(_identity_of(file)) else None
    except OSError as error:
        raise LedgerError(f"cannot read the study database {file}: {error.strerror}") from error
    except sqlite3.Error:
        return  # it is away, which whoever opens it next finds too
    if fault:
        raise LedgerError(f"the study database {file} cannot be used: {fault}. {MENDING}")


def is_outage(error: BaseException) -> bool:
    """Whether an error of the database means that it is away, and not that something is wrong with what was asked."""
    cause = database_error(error)
    if cause is None:
        return False
    if isinstance(cause.orig, sqlite3.Error):
        return passes(cause.orig)
    if getattr(cause.orig, "sqlstate", None) in FAILOVER:
        return True
    return cause.connection_invalidated or isinstance(
        cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError
    )


def database_fault(error: BaseException) -> str | None:
    """What an error says of the database, without passwords: it is away, or damaged; None if it says neither."""
    cause = database_error(error)
    if is_outage(error):
        return f"the study database does not answer: {first_line(error)}"
    if cause is not None and isinstance(cause.orig, sqlite3.Error) and means_damage(cause.orig):
        return f"the study database is damaged: {first_line(error)}. {MENDING}"
    return None


def database_error(error: BaseException | None) -> sqlalchemy.exc.DBAPIError | None:
    while error is not None and not isinstance(error, sqlalchemy.exc.DBAPIError):
        error = error.__cause__
    return error


def database_url(address: Address) -> sqlalchemy.engine.URL:
    """A database's address as SQLAlchemy reads it.

    Raises: ValueError if it is none, or can be read in two ways; the message goes on from the address's name, and
        repeats nothing of it.
    """
    try:
        url = sqlalchemy.engine.make_url(address.reveal())
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ValueError("is no database URL") from None  # what was said may hold a piece of the password
    before_fields = address.reveal().partition("?")[0]
    if url.get_backend_name() != "sqlite" and (before_fields.count("@") > 1 or "@" in (url.host or "")):
        raise ValueError("has an `@` too many: in a user, a password and a name it is written %40")
    return url
