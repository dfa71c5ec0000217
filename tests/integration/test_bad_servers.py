"""Servers and storage that a study cannot use: exit 2, one message, no trial, no password in it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from object_store import SECRET, ObjectStore
from postgres import Postgres
from tiny_studies import study_dict, write_study

from study.database.engine import LedgerError
from study.database.ledger import Ledger
from study.sweep import main

Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], postgres: Postgres
) -> Refused:
    """Runs the sweep, which must be refused with one message, and returns the message."""
    monkeypatch.chdir(tmp_path)
    for variable in ("ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    file = write_study(tmp_path, study_dict(tmp_path))

    def run(*arguments: str) -> str:
        assert main([str(file), *arguments]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert "Traceback" not in output.err
        assert output.err.count("\n") == 1, output.err
        for secret in (postgres.core, "wr0ng-password", SECRET):
            assert secret not in output.err
        return output.err

    return run


@pytest.mark.parametrize("variable", ["ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"])
def test_a_wrong_password(refused: Refused, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, postgres.url("wrong").replace(postgres.core, "wr0ng-password"))
    message = refused()
    assert f"{postgres.user}:***@127.0.0.1:{postgres.port}/wrong" in message
    assert "password authentication failed" in message


@pytest.mark.parametrize("variable", ["ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"])
def test_a_database_that_is_not_there(
    refused: Refused, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, postgres.url("right").replace("/right", "/nowhere"))
    assert 'database "nowhere" does not exist' in refused()


def test_a_database_without_a_server(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARDMVC_STUDY_DB", "postgresql+psycopg://me:wr0ng-password@127.0.0.1:1/studies")
    message = refused()
    assert "cannot reach the study database postgresql+psycopg://me:***@127.0.0.1:1/studies" in message
    assert "refused" in message


def test_a_bucket_that_does_not_exist(
    refused: Refused, store: ObjectStore, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(monkeypatch)
    monkeypatch.setenv("ARDMVC_STUDY_DB", postgres.url("bucket"))
    message = refused("--set", "storage.path=s3://no-such-bucket/studies")
    assert "storage.path: cannot write to s3://no-such-bucket/studies/" in message
    assert "bucket does not exist" in message
    with pytest.raises(LedgerError, match=r"there is no study in the database .*: it has no tables"):
        Ledger.open_existing("tiny", postgres.url("bucket"))


def test_a_storage_that_may_only_be_read(refused: Refused, tmp_path: Path) -> None:
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(frozen)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        for path in (frozen, frozen / "runs"):
            message = refused("--set", f"storage.path={path}")
            assert "Read-only file system" in message or "no permission to write" in message
            assert str(frozen) in message
    finally:
        subprocess.run(["umount", str(frozen)], check=True)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://key:wr0ng-password@bucket/x", "keys and options of a storage come from the environment"),
        ("s3://bucket/x?endpoint_override=here", "keys and options of a storage come from the environment"),
        ("s3://", "must name a bucket or folder"),
        ("ftp://host/x", "must be a folder, or begin with s3:// or gs://"),
    ],
)
def test_a_storage_address_that_cannot_be(refused: Refused, path: str, words: str) -> None:
    assert words in refused("--set", f"storage.path={path}")
