"""What is said of a tracking store before anything starts: tables of another MLflow, a proxy in the way."""

import http.server
import shlex
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from study.secrets import Address
from study.tracking import address as addresses
from study.tracking.address import local_fault, make_sqlite
from study.tracking.mlflow_client import check_reachable

OLDER, NEWER = "451aebb31d03", "feedc0ffee00"
"""Of MLflow's first migrations, and one that nobody has."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of the MLflow that is installed."""
    file = tmp_path_factory.mktemp("a store") / "mlflow.db"
    make_sqlite(file)
    return file


@pytest.fixture
def revision(database: Path) -> Iterator[Path]:
    """The same, whose revision is put back afterwards."""
    content = database.read_bytes()
    yield database
    database.write_bytes(content)


def set_revision(file: Path, revision: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def test_tables_of_the_installed_mlflow_are_taken(database: Path) -> None:
    assert local_fault(f"sqlite:///{database}") is None


def test_tables_of_an_older_mlflow_are_refused_with_the_command_that_mends_them(revision: Path) -> None:
    set_revision(revision, OLDER)
    fault = check_reachable(f"sqlite:///{revision}") or ""
    assert fault.startswith(f"the MLflow database sqlite:///{revision} is of an older MLflow than MLflow ")
    assert fault.endswith(f"mlflow db upgrade 'sqlite:///{revision}'")


def test_tables_of_a_newer_mlflow_are_refused(revision: Path) -> None:
    set_revision(revision, NEWER)
    assert "is of a newer MLflow than MLflow " in (local_fault(f"sqlite:///{revision}") or "")


def test_the_command_shows_no_password(database: Path) -> None:
    fault = addresses.schema_fault(Address("postgresql://me:s3cret-word@host/mlflow"), OLDER) or ""
    assert "s3cret" not in fault
    assert fault.endswith('mlflow db upgrade "$MLFLOW_TRACKING_URI"')


def test_the_command_mends_them(tmp_path: Path) -> None:
    """Tables as MLflow's first migrations made them."""
    file = tmp_path / "an old store.db"
    script = (
        "import sys, sqlalchemy; from alembic import command; from mlflow.store.db.utils import _get_alembic_config;"
        "from mlflow.store.tracking.dbmodels.initial_models import Base;"
        "Base.metadata.create_all(sqlalchemy.create_engine(sys.argv[1]));"
        "command.upgrade(_get_alembic_config(sys.argv[1]), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", script, f"sqlite:///{file}", OLDER], check=True, capture_output=True)
    fault = local_fault(f"sqlite:///{file}") or ""
    subprocess.run(shlex.split(fault.rpartition(": ")[2]), check=True, capture_output=True)
    assert local_fault(f"sqlite:///{file}") is None


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A proxy that lets nobody through, as those of large networks do with what is on one's own machine."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        do_POST = do_CONNECT = do_GET

        def log_message(self, *_: object) -> None: ...

    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_PROXY".upper(), raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("variable", "scheme"), [("http_proxy", "http"), ("HTTPS_PROXY", "https"), ("all_proxy", "http")]
)
def test_a_proxy_in_the_way_of_a_local_server_is_named(
    proxy: str, monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    monkeypatch.setenv(variable, proxy)
    fault = check_reachable(f"{scheme}://localhost:9") or ""
    assert "does not answer as one" in fault
    assert "`export no_proxy=localhost`" in fault


def test_without_a_proxy_there_is_no_hint(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no_proxy" not in (check_reachable("http://localhost:9") or "")
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "localhost")
    assert "Connection refused" in (check_reachable("http://localhost:9") or "")
