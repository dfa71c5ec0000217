"""Where MLflow's records go: default, environment, and what can be said about an address before anything starts."""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import socket
import sqlite3
import stat
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

from study.database.engine import database_url
from study.database.sqlite_files import connect
from study.places import ARTIFACTS, MLFLOW_DB, address_in, local_folder, sqlite_address, sqlite_file
from study.secrets import Address, first_line
from trainables.files import write_whole
from trainables.places import folder_fault

ADDRESSES = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
"""Table of MLflow's → its column of places of artifacts."""
TIMEOUT = 3
"""Seconds that a check waits for a connection."""


def default_uri(storage_path: str = "runs") -> str:
    """A sqlite file in the study's storage folder, as an absolute URI; in `runs` if the storage is no local folder."""
    return sqlite_address(local_folder(storage_path) / MLFLOW_DB)


def tracking_uri(storage_path: str = "runs") -> Address:
    """`MLFLOW_TRACKING_URI`, or the default."""
    return address_in("MLFLOW_TRACKING_URI", local_folder(storage_path) / MLFLOW_DB)


def artifact_location(uri: str | Address, artifact_root: str | None) -> str | None:
    """Where a new experiment's artifacts go; None lets the tracking server decide.

    Args: artifact_root: URI for stores that are a bare database; None: beside the sqlite file.
    """
    if Address(uri).reveal().startswith(("http:", "https:", "databricks")):
        return None
    file = sqlite_file(uri)
    return artifact_root or ((file.parent / ARTIFACTS).as_uri() if file else None)


def local_fault(uri: str | Address) -> str | None:
    """What is wrong with an address, found in a few seconds and without MLflow; holds no password."""
    address = Address(uri)
    kind, text = address.kind, address.reveal()
    if kind == "sqlite":
        return _sqlite_fault(address)
    if kind in ("http", "https"):
        fault = _connection_fault(address)
        return f"cannot reach the MLflow server {address}: {fault}" if fault else None
    if kind in ("postgresql", "mysql", "mssql"):
        return _database_fault(address)
    if text.startswith("databricks"):
        return None
    forms = f"use a database such as {default_uri()!r} or a server such as 'http://localhost:5000'"
    if text.startswith("file:") or ":" not in text:
        return (
            f"MLFLOW_TRACKING_URI {str(address)!r} is a folder, and MLflow has given up file stores; {forms} "
            "(`mlflow migrate-filestore` moves what an old folder holds)"
        )
    if not kind:
        return f"MLFLOW_TRACKING_URI is no address: it has no `://`; {forms}"
    return f"MLFLOW_TRACKING_URI {str(address)!r}: unknown kind {kind!r}; known: sqlite, postgresql, http, https"


def _sqlite_fault(address: Address) -> str | None:
    file = sqlite_file(address)
    if file is None:
        return f"MLFLOW_TRACKING_URI {str(address)!r} names no file; use the form {default_uri()!r}"
    if fault := folder_fault(file.parent):
        return f"cannot make the MLflow database {file}: {fault}"
    if not os.path.exists(file):
        return None
    try:
        # Not read-only: the first to open it after a writer was killed in mid-commit must roll that commit back.
        connection = sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=TIMEOUT)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
            tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
            version = tables and connection.execute("SELECT version_num FROM alembic_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return f"cannot read the MLflow database {file}: {error}"
    if not os.access(file, os.W_OK):
        return f"cannot write to the MLflow database {file}: no permission"
    return schema_fault(address, version[0]) if version else None


def schema_fault(address: Address, found: str) -> str | None:
    """What is wrong with a database whose tables are of the revision `found`; None if they are the installed MLflow's.

    MLflow itself would say so after seconds, in a thread, and go on without a record.
    """
    folder = _migrations()
    texts = [file.read_text(encoding="utf-8") for file in folder.glob("*.py")] if folder else []
    known, replaced = (
        set(re.findall(rf"""^{name}\b[^=\n]*=\s*["'](\w+)["']""", "\n".join(texts), re.MULTILINE))
        for name in ("revision", "down_revision")
    )
    if not known or found in known - replaced:
        return None
    what, here = f"the MLflow database {address}", f"MLflow {version('mlflow')}, which is installed here"
    if found not in known:
        return f"{what} is of a newer MLflow than {here} (revision {found!a}), or of another program; use another one"
    place = shlex.quote(address.reveal()) if address.kind == "sqlite" else '"$MLFLOW_TRACKING_URI"'
    command = f"{shlex.quote(sys.executable)} -m mlflow db upgrade {place}"
    return f"{what} is of an older MLflow than {here}; make a copy of it, then bring it up to date: {command}"


def _connection_fault(address: Address) -> str | None:
    try:
        parts = urlsplit(address.reveal())
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # whose text may hold a piece of the password
        return "its host or its port cannot be read; `@ / ? # [ ]` in a password are written in percent, as in %40"
    if _by_proxy(parts.scheme, host):
        return None  # only the proxy can be reached from here
    try:
        socket.create_connection((host, port), timeout=TIMEOUT).close()
    except OSError as error:
        return error.strerror or first_line(error)
    except ValueError:  # of a name that cannot be one
        return "its host has no name that can be looked up"
    return None


def _by_proxy(scheme: str, host: str) -> bool:
    """Whether variables such as `http_proxy` send requests for that host to a proxy."""
    proxies = urllib.request.getproxies()
    return bool(proxies.keys() & {scheme, "all"}) and not urllib.request.proxy_bypass(host)


def proxy_hint(address: Address) -> str:
    """The end of a message on a server that does not answer: what to do if a proxy is between; empty without one."""
    parts = urlsplit(address.reveal())
    if not _by_proxy(parts.scheme, parts.hostname or ""):
        return ""
    return (
        f"; variables such as {parts.scheme}_proxy send what is for it to a proxy: for a server on this machine or "
        f"network, add {parts.hostname} to no_proxy (`export no_proxy={parts.hostname}`)"
    )


def _database_fault(address: Address) -> str | None:
    import sqlalchemy

    try:
        url = database_url(address)
        wait = {"connect_timeout": TIMEOUT} if url.get_backend_name() in ("postgresql", "mysql") else {}
        engine = sqlalchemy.create_engine(url, connect_args=wait, poolclass=sqlalchemy.pool.NullPool)
        with engine.connect() as connection:
            if sqlalchemy.inspect(connection).has_table("alembic_version"):
                found = connection.scalar(sqlalchemy.text("SELECT version_num FROM alembic_version"))
                return schema_fault(address, found) if found else None
    except ImportError as error:
        return f"the MLflow database {address} needs a driver that is not installed: {error}"
    except ValueError as error:
        return f"MLFLOW_TRACKING_URI {error}; one looks like {default_uri()!r}"
    except Exception as error:  # every driver has its own exceptions; all mean: not reachable
        return f"cannot reach the MLflow database {address}: {first_line(getattr(error, 'orig', None) or error)}"
    return None


def make_sqlite(file: Path) -> None:
    """Makes MLflow's tables in a new file; does nothing if the file exists.

    Built beside its place and moved there whole: a process killed meanwhile would leave a half-made schema that MLflow
    can neither use nor repair. Making the tables takes MLflow seconds, so an empty file of each version is kept in the
    user's cache and copied from there; one that is not what was put there is made again.
    """
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / f".{file.name}.lock").open("a") as lock:  # a link there may name somebody's file
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():
            return
        for left in file.parent.glob(f".{file.name}.new-*"):
            if left.name.rpartition("-")[2].isdecimal() and (left.is_symlink() or left.is_file()):
                left.unlink()
        draft = file.with_name(f".{file.name}.new-{os.getpid()}")
        template = _template()
        content = _contents(template)
        if content is not None and _contents(_seal_of(template)) == _seal(content):
            draft.write_bytes(content)
        else:
            _build_sqlite(draft)
            _keep(draft.read_bytes(), template)
        _move_default_experiment(draft, file.parent / ARTIFACTS)
        draft.replace(file)


def settle(file: Path) -> None:
    """Puts the addresses of artifacts right in a database that was moved, copied or mounted with its folder.

    MLflow keeps whole addresses, and writes to them: a copy would write into the original. Where the database was when
    they were written is told by that of the experiment `Default`; addresses that led elsewhere stay.
    """
    new = file.parent / ARTIFACTS
    with contextlib.closing(connect(file)) as database, database:
        known = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if "experiments" not in known:
            return
        row = database.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0").fetchone()
        old = local_path(row[0] if row else "").parent
        if old.name != ARTIFACTS or not old.is_absolute() or old == new:
            return
        for table, column in ADDRESSES.items():
            for before in (str(old), old.as_uri()):
                changed = f"{column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?"
                values = (new.as_uri(), len(before) + 1, len(before) + 1, f"{before}/")
                if table in known:
                    database.execute(f"UPDATE {table} SET {changed}", values)


def local_path(address: str) -> Path:
    """The path that an address of artifacts, or a path itself, names on this machine."""
    return Path(unquote(urlsplit(address).path) if address.startswith("file:") else address)


def _template() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "ardmvc" / f"mlflow-{version('mlflow')}.db"


def _seal_of(template: Path) -> Path:
    return template.with_name(f"{template.name}.sha256")


def _seal(content: bytes) -> bytes:
    """Digest of a template together with the names of the migrations of MLflow that is installed: a development version
    may get new ones and keep its number."""
    folder = _migrations()
    migrations = sorted(file.name for file in folder.glob("*.py")) if folder else []
    return hashlib.sha256("/".join(migrations).encode() + content).hexdigest().encode()


def _migrations() -> Path | None:
    """The folder of MLflow's migrations, found without importing MLflow, which takes seconds."""
    package = importlib.util.find_spec("mlflow")
    return Path(package.origin).parent / "store/db_migrations/versions" if package and package.origin else None


def _contents(file: Path) -> bytes | None:
    """Bytes of a regular file that can be read; None for whatever else is in its place, a link too."""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            return stream.read() if stat.S_ISREG(os.fstat(stream.fileno()).st_mode) else None
    except OSError:
        return None


def _build_sqlite(file: Path) -> None:
    """In a process of its own, so that the seconds it takes are not the driver's."""
    script = "import sys, mlflow; mlflow.MlflowClient(tracking_uri=sys.argv[1]).search_experiments(max_results=1)"
    command = [sys.executable, "-c", script, sqlite_address(file)]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise OSError(f"cannot make {file}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def _keep(content: bytes, template: Path) -> None:
    """Puts a template and its seal into the cache; one that cannot be written is no fault."""
    with contextlib.suppress(OSError):
        for place, what in ((template, content), (_seal_of(template), _seal(content))):
            if place.is_dir() and not place.is_symlink():
                place.rmdir()  # stays if it holds something
            else:
                place.unlink(missing_ok=True)  # not written to: it may be a link or a pipe
            write_whole(place, what)


def _move_default_experiment(file: Path, artifacts: Path) -> None:
    """MLflow wrote the folder that it was made in into the experiment `Default`, which no study uses."""
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE experiments SET artifact_location = ?", ((artifacts / "0").as_uri(),))
