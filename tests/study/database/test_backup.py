"""A study in a file: written beside a driver, brought back whole, refused where it would replace something."""

import math
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from postgres import Postgres
from tiny_studies import ROOT

from study.control import main
from study.database.engine import study_url
from study.database.ledger import Ledger
from study.spec.study_spec import StudySpec

SpecMaker = Callable[..., StudySpec]
Control = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_database_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARDMVC_STUDY_DB", raising=False)


@pytest.fixture
def control(capsys: pytest.CaptureFixture[str]) -> Control:
    """control(arguments …, storage=DIR): exit code and what was printed on stdout and stderr."""

    def run(*arguments: object, storage: Path) -> tuple[int, str, str]:
        code = main([*map(str, arguments), "--storage", str(storage)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


DISTRIBUTIONS = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "steps": IntDistribution(1, 9, step=2),
    "loss": CategoricalDistribution(["ddc", "sem", None]),
}
PARAMS = {"rate": 0.1 + 0.2, "steps": 5, "loss": None}


def fill(ledger: Ledger) -> None:
    """A trial of every state, with values that a careless copy changes."""
    facts: dict[str, Any] = {"config": {"größe": 1e-300, "list": [1, None]}, "rounds": 2, "baseline": False}
    for _ in range(5):
        ledger.add(overrides=PARAMS, params=PARAMS, distributions=DISTRIBUTIONS, **facts)
    for round_, value in enumerate((0.1, math.inf, -math.inf, math.nan), start=1):
        ledger.report(1, round_, value)
    ledger.progress(0, {"round": 2, "time": 5, "metrics": {"robust/acc": 1 / 3}, "checkpoint": "/c", "seconds": 1.5})
    ledger.finish(0, TrialState.COMPLETE, [1 / 3])
    ledger.report(2, 1, 0.25)
    ledger.finish(2, TrialState.PRUNED)
    ledger.finish(3, TrialState.FAIL, failure="loss ddc1 is nan")
    ledger.interrupt(4)
    ledger._storage.set_trial_system_attr(ledger._trials.id_of(1), "completed_rung_0", 0.25)
    ledger._storage.set_study_system_attr(ledger._study._study_id, "note", {"a": [1]})
    ledger.set_control("pause")


def make_study(spec: StudySpec, url: str) -> Ledger:
    ledger = Ledger.open_or_create(spec, url, None)
    fill(ledger)
    return ledger


def contents(ledger: Ledger) -> dict[str, Any]:
    """All that a study is, ids of the database apart."""

    def facts(trial: FrozenTrial) -> dict[str, Any]:
        found = {name.lstrip("_"): value for name, value in vars(trial).items()}
        del found["trial_id"]
        return {**found, "intermediate_values": repr(trial.intermediate_values), "params": list(trial.params.items())}

    study = optuna.load_study(study_name=ledger.name, storage=ledger._storage)
    return {
        "directions": study.directions,
        "attributes": study.user_attrs,
        "system": study._storage.get_study_system_attrs(study._study_id),
        "trials": [facts(trial) for trial in study.get_trials()],
        "seconds": ledger.seconds,
    }


def database(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    if kind == "sqlite":
        return study_url(folder)
    running: Postgres = request.getfixturevalue("postgres")
    return running.url(f"backup_{uuid.uuid4().hex}")


@pytest.mark.parametrize(
    ("source", "target"), [("sqlite", "sqlite"), ("sqlite", "postgresql"), ("postgresql", "sqlite")]
)
def test_a_restored_study_is_what_it_was(
    tiny_spec: SpecMaker,
    tmp_path: Path,
    control: Control,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    source: str,
    target: str,
) -> None:
    """Beside another study, so that no id is the same; its driver is at work, and nobody's in the copy."""
    both = [{"metric": "clean/acc", "mode": "max"}, {"metric": "robust/flip", "mode": "min"}]
    other = tiny_spec(name="other", objective=both)
    old, new = database(source, tmp_path / "old", request), database(target, tmp_path / "new", request)
    Ledger.open_or_create(other, new, None).add(
        overrides={},
        config={},
        rounds=4,
        baseline=True,
        params={"rate": 0.5},
        distributions={} | {"rate": FloatDistribution(0, 1)},
    )
    ledger = make_study(tiny_spec(), old)
    ledger.acquire()
    assert ledger.lease
    ledger.lease._stop.set()  # it holds the lease, and its time stands still
    ledger.lease._write(seconds=1234.5)
    before = contents(ledger)

    monkeypatch.setenv("ARDMVC_STUDY_DB", old)
    file = tmp_path / "tiny.backup"
    told = control("tiny", "backup", file, storage=tmp_path)
    assert told == (0, f"study 'tiny' is backed up to {file}\n", "")
    assert sorted(path.name for path in tmp_path.iterdir() if "tiny.backup" in path.name) == ["tiny.backup"]
    monkeypatch.setenv("ARDMVC_STUDY_DB", new)
    told = control("tiny", "restore", file, storage=tmp_path)
    assert told == (
        0,
        f"study 'tiny' is restored from {file} with 5 trials; its command goes on with it\n",
        "",
    )
    assert sorted(path.name for path in tmp_path.iterdir() if "tiny.backup" in path.name) == ["tiny.backup"]

    again = Ledger.open_existing("tiny", new)
    assert contents(again) == before
    assert before["seconds"] == 1234.5
    assert [trial["state"].name for trial in before["trials"]] == ["COMPLETE", "RUNNING", "PRUNED", "FAIL", "WAITING"]
    assert len(Ledger.open_existing("other", new).records()) == 1
    # It goes on: the same spec is the same study, nobody holds it, and numbers count on.
    going_on = Ledger.open_or_create(tiny_spec(), new, None)
    going_on.acquire()
    going_on.progress(1, {"round": 1, "time": 1, "metrics": {}, "checkpoint": "/d"})
    going_on.resume(4)
    assert going_on.add(overrides={}, config={}, rounds=4, baseline=False, params={}, distributions={}) == 5
    going_on.release()
    assert contents(ledger) == before


def test_a_study_of_two_objectives(tiny_spec: SpecMaker, tmp_path: Path, control: Control) -> None:
    both = [{"metric": "clean/acc", "mode": "max"}, {"metric": "robust/flip", "mode": "min"}]
    ledger = Ledger.open_or_create(tiny_spec(objective=both), study_url(tmp_path / "old"), None)
    ledger.add(overrides={}, config={}, rounds=4, baseline=True, params={}, distributions={})
    ledger.finish(0, TrialState.COMPLETE, [0.9, 0.2])
    assert control("tiny", "backup", tmp_path / "file", storage=tmp_path / "old")[0] == 0
    assert control("tiny", "restore", tmp_path / "file", storage=tmp_path / "new")[0] == 0
    assert contents(Ledger.open_existing("tiny", study_url(tmp_path / "new"))) == contents(ledger)


def test_a_backup_of_sqlite_holds_all_studies_and_may_be_put_in_place(
    tiny_spec: SpecMaker, tmp_path: Path, control: Control
) -> None:
    for name in ("tiny", "other"):
        ledger = make_study(tiny_spec(name=name), study_url(tmp_path / "old"))
    assert control("tiny", "backup", tmp_path / "file", storage=tmp_path / "old")[0] == 0
    (tmp_path / "new").mkdir()
    shutil.copyfile(tmp_path / "file", tmp_path / "new" / "studies.db")
    again = Ledger.open_or_create(tiny_spec(name="other"), study_url(tmp_path / "new"), None)
    assert contents(again) == contents(ledger)
    again.acquire()
    again.release()


def test_a_restore_that_is_killed_leaves_nothing(tiny_spec: SpecMaker, tmp_path: Path, control: Control) -> None:
    ledger = make_study(tiny_spec(), study_url(tmp_path / "old"))
    assert control("tiny", "backup", tmp_path / "file", storage=tmp_path / "old")[0] == 0
    code = (
        "import os, signal, sys\n"
        "import sqlalchemy as sa\n"
        "from study.control import main\n"
        "@sa.event.listens_for(sa.engine.Engine, 'before_cursor_execute')\n"
        "def executing(connection, cursor, statement, *_):\n"
        "    if statement.startswith('INSERT INTO trial_user_attributes'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "main(sys.argv[1:])\n"
    )
    new = tmp_path / "new"
    command = [sys.executable, "-c", code, "tiny", "restore", str(tmp_path / "file"), "--storage", str(new)]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == -signal.SIGKILL
    assert control("tiny", storage=new) == (2, "", "there is no study 'tiny'; known: none\n")
    assert control("tiny", "restore", tmp_path / "file", storage=new)[0] == 0
    assert contents(Ledger.open_existing("tiny", study_url(new))) == contents(ledger)


# What is refused


@pytest.fixture
def runs(tiny_spec: SpecMaker) -> Path:
    """The storage of a small study."""
    spec = tiny_spec()
    ledger = Ledger.open_or_create(spec, study_url(spec.storage.path), None)
    ledger.add(overrides={}, config={}, rounds=4, baseline=False, params={}, distributions={})
    ledger.engine.dispose()
    return Path(spec.storage.path)


@pytest.fixture
def backup(runs: Path, tmp_path: Path, control: Control) -> Path:
    """A backup of it."""
    assert control("tiny", "backup", tmp_path / "tiny.backup", storage=runs)[0] == 0
    return tmp_path / "tiny.backup"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("backup",), "backup needs a file: python -m study.control tiny backup FILE\n"),
        (("restore",), "restore needs a file: python -m study.control tiny restore FILE\n"),
        (("pause", "file"), "pause takes no file, got 'file'\n"),
        (("status", "file"), "status takes no file, got 'file'\n"),
    ],
)
def test_a_file_belongs_to_two_actions(runs: Path, control: Control, arguments: tuple[str, ...], words: str) -> None:
    assert control("tiny", *arguments, storage=runs) == (2, "", words)


def test_a_backup_replaces_nothing(runs: Path, control: Control, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for file in (tmp_path / "notes", tmp_path, tmp_path / "link", runs / "studies.db"):
        told = control("tiny", "backup", file, storage=runs)
        assert told == (2, "", f"{file} exists; a backup is a new file and replaces none\n")
    assert (tmp_path / "notes").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("gone/tiny.backup", "No such file or directory"),
        ("runs/studies.db/tiny.backup", "Not a directory"),
        ("/proc/tiny.backup", ""),
    ],
)
def test_a_backup_needs_a_folder_to_write_to(
    runs: Path, control: Control, tmp_path: Path, file: str, words: str
) -> None:
    code, out, err = control("tiny", "backup", tmp_path / file, storage=runs)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"cannot write {tmp_path / file}: {words}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_backup_for_which_there_is_no_room(runs: Path, tmp_path: Path) -> None:
    size = (runs / "studies.db").stat().st_size
    limit = size // 2

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "study.control", "tiny", "backup", str(tmp_path / "file"), "--storage", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, preexec_fn=no_room)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"cannot back study 'tiny' up to {tmp_path / 'file'}: ")
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_study_that_is_there_is_not_replaced(runs: Path, control: Control, backup: Path) -> None:
    code, out, err = control("tiny", "restore", backup, storage=runs)
    assert (code, out) == (2, "")
    assert err == "study 'tiny' exists in the database; restore brings back what is missing and replaces nothing\n"
    assert len(Ledger.open_existing("tiny", study_url(runs)).records()) == 1


def text(file: Path) -> None:
    file.write_text("no database at all, and longer than the header of one\n" * 3)


def half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def another_database(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE studies (title TEXT)")


def another_study(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE studies SET study_name = 'large'")


def another_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "cannot read {}: No such file or directory"),
        (a_folder, "cannot read {}: Is a directory"),
        (text, "{} cannot be used as a backup: file is not a database"),
        (half, "{} cannot be used as a backup: database disk image is malformed"),
        (empty, "{} is no backup of a study: it has no tables of Optuna"),
        (another_database, "{} is no backup of a study: it has no tables of Optuna"),
        (another_study, "{} holds no study 'tiny'; it holds: large"),
        (another_version, "{} has the tables of another version of Optuna (v2.6.0.a, here "),
    ],
)
def test_a_file_that_is_no_backup(
    control: Control, backup: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(backup)
    code, out, err = control("tiny", "restore", backup, storage=tmp_path / "new")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(words.format(backup))


# What lies in the file alone


def lone_copy(runs: Path, folder: Path) -> Ledger:
    """The study as a copy of the one file knows it."""
    folder.mkdir()
    shutil.copyfile(runs / "studies.db", folder / "studies.db")
    return Ledger.open_existing("tiny", study_url(folder))


def test_the_file_alone_knows_the_study_and_every_trial_that_ended(tiny_spec: SpecMaker, tmp_path: Path) -> None:
    spec = tiny_spec()
    runs = Path(spec.storage.path)
    ledger = Ledger.open_or_create(spec, study_url(runs), None)
    copy = lone_copy(runs, tmp_path / "created")
    assert (copy.records(), copy.uid, copy.spec["name"]) == ([], ledger.uid, "tiny")
    fill(ledger)
    states = {record.number: record.state for record in lone_copy(runs, tmp_path / "ended").records()}
    assert (states[0], states[2], states[3]) == ("COMPLETE", "PRUNED", "FAIL")


def test_a_reader_holds_nobody_up(tiny_spec: SpecMaker, tmp_path: Path) -> None:
    """What it still reads stays in the log, and comes into the file with the next trial that ends."""
    spec = tiny_spec()
    runs = Path(spec.storage.path)
    ledger = Ledger.open_or_create(spec, study_url(runs), None)
    facts: dict[str, Any] = {"overrides": {}, "config": {}, "rounds": 4, "baseline": False}
    for _ in range(2):
        ledger.add(**facts, params={}, distributions={})
    with closing(sqlite3.connect(runs / "studies.db")) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM trials WHERE state = 'RUNNING'").fetchone() == (2,)
        ledger.finish(0, TrialState.COMPLETE, [0.5])
        assert reader.execute("SELECT count(*) FROM trials WHERE state = 'RUNNING'").fetchone() == (2,)
        assert ledger.record(0).state == "COMPLETE"
    ledger.finish(1, TrialState.COMPLETE, [0.5])
    assert [record.state for record in lone_copy(runs, tmp_path / "copy").records()] == ["COMPLETE"] * 2
