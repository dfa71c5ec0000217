"""What the runner makes of trials that go wrong, of pruners, and of refusals; real Ray, real database, real MLflow."""

import io
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from optuna.trial import TrialState
from staged_trainables import ROUNDS, Accidents, BreaksDatabase, LateWorker, Staged, TakesLease
from tiny_studies import ROOT, run_sweep, study_dict, sweep_command, write_study

from ardmvc_core.selection.criteria import ReferencePartition
from study.database import lease
from study.database.engine import study_url
from study.database.ledger import Ledger
from study.driver import StudyBroken, StudyRefused, ray_cluster
from study.driver import run as runner
from study.driver.run import run_study
from study.planning.suggestions import preview
from study.records import TrialRecord
from study.spec.study_spec import StudySpec
from study.tracking.tracker import default_uri
from trainables.reference import REFERENCE_FILE

SpecMaker = Callable[..., StudySpec]


def records_of(spec: StudySpec) -> list[TrialRecord]:
    return Ledger.open_existing(spec.name, study_url(Path(spec.storage.path))).records()


@pytest.mark.slow
def test_each_accident_ends_its_own_trial_with_a_reason(
    tiny_spec: SpecMaker, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    spec = tiny_spec(limits={"trials": 7, "failures": 6, "concurrent": 2})
    assert run_study(spec, trainable=Accidents) == 0
    records = records_of(spec)
    assert [r.state for r in records] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert records[1].failure == "ddc1 is nan in stage train, epoch 2"
    assert "the data are cursed" in (records[2].failure or "")
    assert records[4].failure == "it ended without a finite robust/acc"
    assert records[5].failure == "it ended without a finite robust/acc"
    assert [records[n].values for n in (0, 3, 6)] == [(0.8,), (0.4,), (0.8,)]
    assert all(records[n].round == ROUNDS for n in (0, 3, 6))
    assert "the data are cursed" in capsys.readouterr().out
    # Ray's logs stay for a look at what the workers wrote.
    (told,) = [record.getMessage() for record in caplog.records if "Ray's logs are in" in record.getMessage()]
    logs = Path(told.removeprefix("Ray's logs are in ").removesuffix(" until the next study starts"))
    assert (logs / "raylet.out").exists()
    shutil.rmtree(logs.parents[1])


def test_more_failures_than_allowed_end_the_study_with_1(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec(limits={"trials": 7, "failures": 0, "concurrent": 1})
    assert run_study(spec, trainable=Accidents) == 1
    assert [r.state for r in records_of(spec)] == ["COMPLETE", "FAIL"]


def test_a_free_worker_does_not_end_one_that_makes_ready(tiny_spec: SpecMaker) -> None:
    """Tune would give trial 1 the worker that trial 0 leaves, end its own, and start a third for trial 2."""
    spec = tiny_spec(limits={"trials": 4, "concurrent": 2})
    assert run_study(spec, trainable=LateWorker) == 0
    assert [r.state for r in records_of(spec)] == ["COMPLETE"] * 4
    trials: dict[str, list[str]] = {}
    for line in (Path(spec.storage.path) / "workers").read_text().splitlines():
        process, number = line.split()
        trials.setdefault(process, []).append(number)
    first, second = sorted(trials.values())
    # Once there is no further trial, the free worker may take the one that still waits.
    assert (first[:3], second) == (["0", "2", "3"], ["1"])


def test_pruner_stops_the_worse_trials_and_never_a_baseline(tiny_spec: SpecMaker) -> None:
    """Trial 1 is a baseline and as bad as trials 3 and 5; the median of the good ones stops only those two."""
    baselines = [{"model.adversarial_weight": 0, "model.mitigator_weight": 0}] * 2
    pruner = {"name": "median", "startup_trials": 1, "warmup_rounds": 0}
    spec = tiny_spec(limits={"trials": 6, "failures": 0, "concurrent": 1}, baselines=baselines, pruner=pruner)
    assert run_study(spec, trainable=Staged) == 0
    records = records_of(spec)
    assert [r.state for r in records] == ["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "COMPLETE", "PRUNED"]
    assert [r.baseline for r in records] == [True, True, False, False, False, False]
    # Round 1 of an odd trial reports 0.4 / 4 = 0.1, against 0.2 of an even one.
    assert [(records[n].round, records[n].values) for n in (3, 5)] == [(1, (0.1,)), (1, (0.1,))]


def test_two_objectives_are_both_told(tiny_spec: SpecMaker) -> None:
    both = [{"metric": "clean/acc", "mode": "max"}, {"metric": "robust/acc", "mode": "max"}]
    spec = tiny_spec(objective=both, limits={"trials": 2, "failures": 0, "concurrent": 1})
    assert run_study(spec, trainable=Staged) == 0
    assert [r.values for r in records_of(spec)] == [(1.0, 0.8), (1.0, 0.4)]


def test_second_driver_on_a_live_study_is_refused(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec()
    first = Ledger.open_or_create(spec, study_url(Path(spec.storage.path)), None)
    first.acquire()
    with pytest.raises(StudyRefused, match="is being run by process"):
        run_study(spec, trainable=Staged)
    first.release()
    assert records_of(spec) == []


def test_another_space_is_refused_and_nothing_changes(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec()
    Ledger.open_or_create(spec, study_url(Path(spec.storage.path)), None)
    other = tiny_spec(space={"model.train_eps": {"uniform": [0.02, 0.5]}})
    with pytest.raises(StudyRefused, match="exists with other settings"):
        run_study(other, trainable=Staged)
    assert records_of(spec) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ARDMVC_STUDY_DB", "postgresql+psycopg2://me:s3cret@127.0.0.1:1/studies"),
        ("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:1"),
    ],
)
def test_unreachable_store_is_named_without_its_password(
    variable: str, value: str, tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(StudyRefused) as caught:
        run_study(tiny_spec(), trainable=Staged)
    assert "127.0.0.1" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_more_gpus_than_the_cluster_has_is_said_at_once(tiny_spec: SpecMaker) -> None:
    """The command line refuses this for this machine already; here the cluster itself is asked."""
    spec = tiny_spec(resources={"cpu": 1, "gpu": 64})
    with pytest.raises(StudyRefused, match=r"resources\.gpu: a trial asks for 64, the cluster has 0"):
        run_study(spec, trainable=Staged)
    assert records_of(spec) == []


def test_cluster_that_is_not_there_is_refused(tiny_spec: SpecMaker) -> None:
    with pytest.raises(StudyRefused, match="cannot join the Ray cluster"):
        run_study(tiny_spec(), address="127.0.0.1:1", trainable=Staged)


def test_a_trial_killed_after_its_last_checkpoint_is_not_run_again(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec(limits={"trials": 1, "failures": 0})
    ledger = Ledger.open_or_create(spec, study_url(Path(spec.storage.path)), None)
    overrides = dict(spec.baselines[0])
    config = spec.trial_config(overrides).model_dump(mode="json")
    ledger.add(overrides=overrides, config=config, rounds=ROUNDS, baseline=True, params={}, distributions={})
    done = {"round": ROUNDS, "time": 1, "metrics": {"robust/acc": 0.7}, "checkpoint": "/gone", "seconds": 1.0}
    ledger.progress(0, done)
    assert run_study(spec, trainable=Staged) == 0
    (record,) = records_of(spec)
    assert (record.state, record.values) == ("COMPLETE", (0.7,))
    assert record.history == ((ROUNDS, 1, {"robust/acc": 0.7}),)


def test_a_driver_that_is_taken_over_at_its_start_says_so(
    tiny_spec: SpecMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the moment in which it would note its new limits."""
    spec = tiny_spec(limits={"trials": 1})
    file = Path(spec.storage.path) / "studies.db"
    ledger = Ledger.open_or_create(spec, study_url(file.parent), None)
    ledger.add(overrides={}, config={}, rounds=ROUNDS, baseline=True, params={}, distributions={})
    ledger.finish(0, TrialState.COMPLETE, [0.5])
    taken: list[str] = []

    def executing(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE study_user_attributes") and not taken:
            taken.append(statement)
            with closing(sqlite3.connect(file)) as other, other:
                other.execute("UPDATE ardmvc_leases SET holder = '{}', beat = beat + 1")

    sa.event.listen(sa.Engine, "before_cursor_execute", executing)
    try:
        assert run_study(tiny_spec(limits={"trials": 1, "failures": 7})) == 130
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", executing)
    assert capsys.readouterr().err == "study 'tiny' was taken over by another driver; this one has stopped\n"
    assert Ledger.open_existing("tiny", study_url(file.parent)).spec["limits"]["failures"] == 3


@pytest.mark.slow  # test_faults has the same interruption, and counts what is left
def test_ctrl_c_leaves_the_open_trial_waiting_and_exits_with_130(tmp_path: Path) -> None:
    file = write_study(tmp_path, study_dict(tmp_path))
    process = subprocess.Popen(
        sweep_command(file), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "round 1/4" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=120) == 130, rest
    assert "go on from their checkpoints with the same command" in rest
    records = Ledger.open_existing("tiny", study_url(tmp_path / "runs")).records()
    assert [record.state for record in records if not record.finished] == ["WAITING"]
    assert all(record.round >= 1 for record in records)
    assert run_sweep(file).returncode == 0
    again = Ledger.open_existing("tiny", study_url(tmp_path / "runs")).records()
    assert [record.state for record in again] == ["COMPLETE"] * 3
    # Drawn at random from (seed, number): what the interruption must not change is known before anything ran.
    assert [record.overrides for record in again] == preview(StudySpec.model_validate(study_dict(tmp_path)), 3)
    client = MlflowClient(tracking_uri=default_uri(str(tmp_path / "runs")))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4


@pytest.mark.slow
def test_a_database_that_breaks_stops_the_driver_and_loses_nothing(
    tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune drops what callbacks raise; a trial must not be called failed, or run on for ever, because of it."""
    spec = tiny_spec(limits={"trials": 2, "failures": 0, "concurrent": 1})
    database = Path(spec.storage.path) / "studies.db"
    monkeypatch.setenv("BREAK_DATABASE", str(database))
    with pytest.raises(StudyBroken, match="the driver stopped"):
        run_study(spec, trainable=BreaksDatabase)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("ALTER TABLE hidden_attributes RENAME TO trial_system_attributes")
    (record,) = records_of(spec)
    assert (record.state, record.round) == ("RUNNING", 1)
    assert run_study(spec, trainable=Staged) == 0
    assert [record.state for record in records_of(spec)] == ["COMPLETE", "COMPLETE"]


def test_a_driver_that_was_taken_over_stops_and_leaves_the_study_to_the_other(
    tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_spec(limits={"trials": 2, "failures": 0, "concurrent": 1})
    monkeypatch.setattr(lease, "FENCE_SECONDS", 0.0)  # as after a long sleep: it asks before it writes
    monkeypatch.setenv("BREAK_DATABASE", str(Path(spec.storage.path) / "studies.db"))
    assert run_study(spec, trainable=TakesLease) == 130
    assert "was taken over by another driver; this one has stopped" in capsys.readouterr().err
    (record,) = records_of(spec)
    assert (record.state, record.round) == ("RUNNING", 1)


def test_hours_that_are_used_up_leave_the_rest_for_later(
    tiny_spec: SpecMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_spec(limits={"trials": 3, "hours": 1e-9})
    assert run_study(spec, trainable=Staged) == 0
    assert "is used up, 3 trials are missing" in capsys.readouterr().out
    assert records_of(spec) == []


def test_a_trial_whose_checkpoint_is_gone_starts_anew(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec(limits={"trials": 1, "failures": 0})
    ledger = Ledger.open_or_create(spec, study_url(Path(spec.storage.path)), None)
    overrides = dict(spec.baselines[0])
    config = spec.trial_config(overrides).model_dump(mode="json")
    ledger.add(overrides=overrides, config=config, rounds=ROUNDS, baseline=True, params={}, distributions={})
    ledger.progress(0, {"round": 2, "time": 1, "metrics": {}, "checkpoint": "/gone", "seconds": 1.0})
    assert run_study(spec, trainable=Staged) == 0
    (record,) = records_of(spec)
    assert (record.state, record.values) == ("COMPLETE", (0.8,))
    assert [round_ for round_, _, _ in record.history] == [1, 2, 3, 4]


def test_a_budget_below_what_was_begun_finishes_that_and_is_done(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec(limits={"trials": 1, "failures": 0})
    ledger = Ledger.open_or_create(spec, study_url(Path(spec.storage.path)), None)
    for number in range(2):
        overrides = preview(spec, 2)[number]
        config = spec.trial_config(overrides).model_dump(mode="json")
        ledger.add(overrides=overrides, config=config, rounds=ROUNDS, baseline=True, params={}, distributions={})
    assert run_study(spec, trainable=Staged) == 0
    assert [record.state for record in records_of(spec)] == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-100], lambda whole: b"<html>404</html>"])
def test_a_damaged_reference_partition_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    reference = ReferencePartition(
        clusters=np.zeros(50, np.int64),
        weights=np.ones(50),
        agreement=1.0,
        reliable=True,
        kept=(0, 1),
        entropy=0.5,
        largest_share=1.0,
    )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **reference.to_arrays())
    assert runner._stored_reference(str(tmp_path)) is None
    (tmp_path / REFERENCE_FILE).write_bytes(buffer.getvalue())
    assert runner._stored_reference(str(tmp_path)) == buffer.getvalue()
    assert caplog.text == ""
    (tmp_path / REFERENCE_FILE).write_bytes(damage(buffer.getvalue()))
    assert runner._stored_reference(str(tmp_path)) is None
    assert f"{tmp_path / REFERENCE_FILE} is made again" in caplog.text


def test_a_reference_partition_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    runner._check_reference(str(tmp_path))
    old = {"clusters": np.zeros(50, np.int64), "weights": np.ones(50), "agreement": np.array(1.0)}
    np.savez_compressed(tmp_path / REFERENCE_FILE, allow_pickle=False, **old)
    with pytest.raises(runner.StudyRefused, match=r"reference.npz: is a reference partition of version 1.*--set name"):
        runner._check_reference(str(tmp_path))


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """ray_folder(temporary, RAY_TMPDIR) → the folder that a driver makes for its Ray, deleted afterwards."""

    def make(temporary: Path, variable: Path | None = None) -> Path:
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        if variable is not None:
            monkeypatch.setenv("RAY_TMPDIR", str(variable))
        return Path(ray_cluster._ray_folder())

    yield make
    while ray_cluster._ray_folders:
        ray_cluster._ray_folders.pop().delete()


def test_the_folder_for_ray_has_room_for_the_paths_of_its_sockets(
    ray_folder: Callable[..., Path], tmp_path: Path
) -> None:
    long, foreign = tmp_path / ("x" * 90), tmp_path / "ü"
    for folder in (long, foreign):
        folder.mkdir()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as short:
        assert ray_folder(Path(short)).parent == Path(short)
        assert ray_folder(long, Path(short, "new")).parent == Path(short, "new")
        for folder in (long, foreign):
            made = ray_folder(folder)
            assert made.parent == Path("/tmp")
            session = made / f"session_2026-11-30_12-00-00_000000_{os.getpid()}"
            (session / "sockets").mkdir(parents=True)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(session / "sockets" / "plasma_store"))
        with pytest.raises(StudyRefused, match="Ray cannot start here: no folder can be made in /proc/none: No such"):
            ray_folder(Path(short), Path("/proc/none"))
        while ray_cluster._ray_folders:
            ray_cluster._ray_folders.pop().delete()
        assert list(Path(short).iterdir()) == [Path(short, "new")]
