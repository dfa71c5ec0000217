"""What the command line refuses once a study exists or a store is asked: exit 2, one message, nothing made or changed.

What can be seen without a database is in `test_sweep_cli.py`.
"""

import hashlib
import json
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from postgres import Postgres
from tiny_studies import study_dict, write_study

from study.database import lease
from study.database.engine import study_url
from study.database.ledger import Ledger
from study.places import MLFLOW_DB
from study.spec.study_spec import load_spec
from study.sweep import main
from study.tracking.address import make_sqlite

Refused = Callable[..., str]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small study in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    for variable in ("ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return write_study(tmp_path, study_dict(tmp_path))


@pytest.fixture
def refused(study: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the sweep, which must be refused with one message, dry or not, and returns the message."""

    def run(*arguments: str) -> str:
        before = contents(study.parent)
        said = []
        for dry in (["--dry-run"], []):
            assert main([str(study), *arguments, *dry]) == 2
            output = capsys.readouterr()
            assert output.out == ""
            assert "Traceback" not in output.err
            assert "s3cret" not in output.err
            assert contents(study.parent) == before, "something on disk was made or changed"
            said.append(output.err)
        # How long it took, and in which words a server hung up, is chance.
        chance = r"\d+ s|\('Connection aborted.*"
        assert re.sub(chance, "", said[0]) == re.sub(chance, "", said[1])
        return said[1]

    return run


def contents(folder: Path) -> dict[str, str]:
    """Every file with a digest of what it holds; a database with its rows, since reading one may touch its files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".db":
            with closing(sqlite3.connect(path)) as database:
                found[str(path)] = "\n".join(database.iterdump())
        elif path.is_file() and not path.name.endswith(("-shm", "-wal", ".lock")):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize(
    ("variable", "address", "words"),
    [
        ("ARDMVC_STUDY_DB", "postgresql+psycopg2://me:s3cret@127.0.0.1:1/x", "127.0.0.1:1/x needs a driver"),
        ("ARDMVC_STUDY_DB", "nonsense:s3cret", "ARDMVC_STUDY_DB is no database URL"),
        ("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:1", "cannot reach the MLflow server http://me:***@127"),
        ("MLFLOW_TRACKING_URI", "postgresql+psycopg2://me:s3cret@127.0.0.1:1/x", "the MLflow database postgresql"),
        ("MLFLOW_TRACKING_URI", "ftp://me:s3cret@127.0.0.1:1", "unknown kind 'ftp'; known: sqlite"),
    ],
)
def test_stores_that_cannot_be_reached(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, variable: str, address: str, words: str
) -> None:
    monkeypatch.setenv(variable, address)
    message = refused()
    assert words in message
    assert message.count("\n") == 1


@pytest.fixture
def breaking_server() -> Iterator[int]:
    """A port where something listens that answers nobody: it hangs up on every caller."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_tracking_server_that_is_none(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, breaking_server: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3cret@127.0.0.1:{breaking_server}")
    assert "does not answer as one" in refused()


@pytest.mark.parametrize("variable", ["ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"])
def test_a_file_that_is_no_database(
    refused: Refused, study: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (study.parent / "notes.txt").write_text("no database at all, and longer than the header of one\n" * 3)
    monkeypatch.setenv(variable, f"sqlite:///{study.parent / 'notes.txt'}")
    message = refused()
    assert "notes.txt" in message
    assert "file is not a database" in message


def test_passes_that_no_trial_fits_into(refused: Refused) -> None:
    """The baseline of the tiny study takes hundreds."""
    assert re.search(
        r"limits\.passes: must be ≥ \d{3}, what the first trial takes, got 10", refused("--set", "limits.passes=10")
    )


def test_a_storage_folder_below_a_file(refused: Refused, study: Path) -> None:
    assert "is not a folder" in refused("--set", f"storage.path={study}/runs")


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:1", "cannot join the Ray cluster at '127.0.0.1:1'"), ("somewhere", "--address must be host:port")],
)
def test_a_cluster_that_is_not_there(refused: Refused, address: str, words: str) -> None:
    assert words in refused("--address", address, "--set", "resources.gpu=64")


def test_a_warm_start_from_a_study_that_is_not_there(refused: Refused) -> None:
    assert "there is no study database at" in refused("--from", "older")


# A study that exists


@pytest.fixture
def existing(study: Path) -> Ledger:
    """The study and its MLflow database, as a driver that is gone has left them."""
    spec = load_spec(str(study))
    make_sqlite(Path(spec.storage.path) / MLFLOW_DB)
    return Ledger.open_or_create(spec, study_url(Path(spec.storage.path)), None)


def hold(ledger: Ledger) -> None:
    """Writes a lease as another driver would have left it."""
    table, engine = lease._TABLE, ledger._storage._backend.engine
    table.create(engine, checkfirst=True)
    holder = {"id": "x", "host": "elsewhere", "place": "elsewhere/1/1", "pid": 1, "started": "1"}
    row = {"study_id": 1, "holder": json.dumps(holder), "beat": 1, "heartbeat": 0.0, "seconds": 0.0}
    with engine.begin() as connection:
        connection.execute(table.insert().values(**row))


@pytest.mark.parametrize("flags", [(), ("--takeover",)])
def test_a_second_driver_on_a_live_study(refused: Refused, existing: Ledger, flags: tuple[str, ...]) -> None:
    existing.acquire()
    assert existing.lease
    existing.lease._stop.set()  # so that nothing but the refused driver could change the database
    message = refused(*flags)
    assert f"study 'tiny' is being run by process {os.getpid()} on {socket.gethostname()}" in message
    assert message.count("\n") == 1


def test_a_stale_lease_of_another_machine_is_not_taken_without_takeover(refused: Refused, existing: Ledger) -> None:
    hold(existing)
    message = refused()
    assert "was run by process 1 on elsewhere" in message
    assert "if it is gone, add --takeover" in message


def test_a_refused_driver_leaves_the_stored_spec(refused: Refused, existing: Ledger) -> None:
    hold(existing)
    before = existing.spec
    refused("--trials", "99")
    assert existing.spec == before


def test_the_same_name_with_another_space(refused: Refused, existing: Ledger) -> None:
    message = refused("--set", "space.model.train_eps={uniform: [0.02, 0.5]}")
    assert "study 'tiny' exists with other settings" in message
    assert "space.model.train_eps.uniform: [0.02, 0.3] → [0.02, 0.5]" in message
    assert "--set name=" in message
    assert "--from tiny" in message


def test_an_unknown_study_to_start_from_names_the_known_ones(refused: Refused, existing: Ledger) -> None:
    assert "there is no study 'older'; known: tiny" in refused("--set", "name=newer", "--from", "older")


def test_a_dry_run_of_a_study_that_exists_writes_nothing(
    study: Path, existing: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(study.parent)
    assert main([str(study), "--dry-run", "--trials", "5", "--from", "tiny"]) == 0
    assert "5 × 4 rounds" in capsys.readouterr().out
    assert contents(study.parent) == before


def test_a_dry_run_makes_no_tables_in_a_database(
    study: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = postgres.url("dry")
    monkeypatch.setenv("ARDMVC_STUDY_DB", address)
    assert main([str(study), "--dry-run"]) == 0, capsys.readouterr().err
    engine = sqlalchemy.create_engine(address)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    engine.dispose()
