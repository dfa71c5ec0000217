"""`python -m study.table1`: what it refuses, what a killed run keeps, what is in the database, MLflow and the files."""

import csv
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from study.database.engine import study_url
from study.database.ledger import Ledger
from study.records import TrialRecord
from study.table1 import main
from study.tracking.tracker import default_uri

ROOT = Path(__file__).resolve().parents[2]
NAME = "table1_smoke_1seed"
TINY = ["samples=20", "probe_samples=20", "tier=probe"]
MINUTES = 4


def command(folder: Path, *models: str) -> list[str]:
    """A table of a few seconds a cell."""
    sets = [f"--set=trial.evaluation.{setting}" for setting in TINY]
    sets += ["--set=trial.dataset.samples=200", "--set=trial.batch_size=25", "--set=limits.concurrent=1"]
    whole = [sys.executable, "-m", "study.table1", "--seeds", "1", "--models", *models]
    return [*whole, *sets, "--storage", str(folder / "runs"), "--output", str(folder / "out")]


def run(folder: Path, *models: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(folder, *models), capture_output=True, text=True, cwd=ROOT, check=False)


def records_of(folder: Path) -> list[TrialRecord]:
    return Ledger.open_existing(NAME, study_url(folder / "runs")).records()


def states(folder: Path) -> list[str]:
    """States of the trials, read without our own code."""
    try:
        with closing(sqlite3.connect(f"file:{folder / 'runs' / 'studies.db'}?mode=ro", uri=True)) as database:
            return [state for (state,) in database.execute("SELECT state FROM trials ORDER BY number")]
    except sqlite3.OperationalError:  # not made yet
        return []


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three cells, killed once the first is finished and the second runs; then started again."""
    folder = tmp_path_factory.mktemp("table")
    models = ("simvc", "comvc", "infoddc")
    process = subprocess.Popen(
        command(folder, *models), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + MINUTES * 60
    while states(folder) != ["COMPLETE", "RUNNING"]:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = records_of(folder)
    return {"folder": folder, "before": before, "again": run(folder, *models), "models": models}


@pytest.mark.slow
def test_a_killed_table_goes_on_and_repeats_no_finished_cell(killed: dict[str, Any]) -> None:
    assert killed["again"].returncode == 0, killed["again"].stderr
    after = records_of(killed["folder"])
    assert [record.overrides["model.name"] for record in after] == list(killed["models"])
    assert {record.state for record in after} == {"COMPLETE"}
    # Times of the rounds and the checkpoint's place are those of the first run: nothing of it was done again.
    assert after[0] == killed["before"][0]
    assert "trial 0  started" not in killed["again"].stderr
    assert "trial 2  started" in killed["again"].stderr


@pytest.mark.slow
def test_every_cell_holds_both_protocols(killed: dict[str, Any]) -> None:
    for record in records_of(killed["folder"]):
        for name in ("official/pre", "official/post", "clean", "robust"):
            for metric in ("acc", "nmi", "ari"):
                assert -0.5 <= record.metrics[f"{name}/{metric}"] <= 1


@pytest.mark.slow
def test_mlflow_has_one_parent_and_one_child_per_cell(killed: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(str(killed["folder"] / "runs")))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [run for run in runs if run.data.tags["role"] == "study"]
    children = {run.data.params["model.name"]: run for run in runs if run.data.tags["role"] == "trial"}
    assert sorted(children) == sorted(killed["models"])
    assert len(runs) == 1 + len(killed["models"])
    for record in records_of(killed["folder"]):
        child = children[record.overrides["model.name"]]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.run_name == f"trial {record.number:03d} {record.overrides['model.name']} noisy_digits"
        assert child.data.metrics["official/post/acc"] == record.metrics["official/post/acc"]


@pytest.mark.slow
def test_the_files_hold_the_numbers_of_the_database(killed: dict[str, Any]) -> None:
    out = killed["folder"] / "out"
    assert sorted(file.name for file in out.iterdir()) == ["table1.csv", "table1.md", "table1.png", "table1.tex"]
    assert (out / "table1.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "table1.csv").read_text().splitlines()))
    for record in records_of(killed["folder"]):
        own = [row for row in rows if row["model"] == record.overrides["model.name"]]
        found = {(row["protocol"], row["phase"], row["metric"]): row["ours"] for row in own}
        assert float(found["official", "post", "acc"]) == record.metrics["official/post/acc"]
        assert float(found["strict", "post", "nmi"]) == record.metrics["robust/nmi"]
    text = killed["again"].stdout
    assert "SiMVC" in text
    assert "every baseline loses ACC under attack" in text


@pytest.mark.slow
def test_another_model_is_one_more_trial_of_the_same_study(killed: dict[str, Any]) -> None:
    before = records_of(killed["folder"])
    more = run(killed["folder"], *killed["models"], "eamc")
    assert more.returncode == 0, more.stderr
    after = records_of(killed["folder"])
    assert after[:3] == before
    assert [record.overrides["model.name"] for record in after[3:]] == ["eamc"]
    again = run(killed["folder"], "comvc")
    assert again.returncode == 0
    assert "finished" in again.stderr
    assert records_of(killed["folder"]) == after


def test_a_failed_cell_is_tried_again_by_the_same_command_and_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that stopped after a failed and a finished cell, with others of its list not begun."""
    from optuna.trial import TrialState

    from study import table1
    from study.paper_table.plan import SCALES, Cell, as_study, overrides
    from study.spec.study_spec import checked_spec

    def call(*models: str) -> list[str]:
        given = table1.parser().parse_args(["--models", *models, "--seeds", "1", "--storage", str(tmp_path)])
        spec, _ = table1.table_spec(given, 1, {})
        Ledger.open_or_create(spec, study_url(tmp_path), None)  # refuses a study that does not fit
        return [str(baseline["model.name"]) for baseline in spec.baselines]

    cells = [overrides(Cell(model, "noisy_digits"), SCALES["smoke"]) for model in ("simvc", "comvc", "sem")]
    raw = as_study("smoke", cells, protocol="both", seeds=1, storage=str(tmp_path))
    first = checked_spec("table1", raw)
    ledger = Ledger.open_or_create(first, study_url(tmp_path), None)
    for baseline, state in zip(first.baselines, (TrialState.FAIL, TrialState.COMPLETE), strict=False):
        number = ledger.add(overrides=baseline, config={}, rounds=1, baseline=True, params={}, distributions={})
        ledger.finish(number, state, [0.5])
    assert call("simvc", "comvc", "sem") == ["simvc", "comvc", "simvc", "sem"]
    assert call("comvc", "sem") == ["simvc", "comvc", "sem"]
    assert call("eamc") == ["simvc", "comvc", "eamc"]
    # A cell with other settings than today's is not what was asked for.
    monkeypatch.setitem(SCALES["smoke"].changes["all"], "epochs", 7)
    assert call("comvc") == ["simvc", "comvc", "comvc"]


@pytest.mark.slow
def test_show_prints_what_there_is_and_starts_nothing(
    killed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = killed["folder"], records_of(killed["folder"])
    flags = ["--seeds", "1", "--show", "--storage", str(folder / "runs"), "--output", str(folder / "shown")]
    sets = [f"--set=trial.evaluation.{setting}" for setting in TINY]
    assert main([*flags, *sets]) == 0
    shown = capsys.readouterr().out
    assert "SEM on NoisyDigits: not run" in shown
    assert "SiMVC on NoisyDigits" not in shown
    assert records_of(folder) == before
    assert main([*flags, *sets, "--models", "simvc"]) == 0
    one_row = capsys.readouterr().out
    assert any(line.startswith("CoMVC") for line in shown.splitlines())
    assert any(line.startswith("SiMVC") for line in one_row.splitlines())
    assert not any(line.startswith(("CoMVC", "InfoDDC", "SEM")) for line in one_row.splitlines())


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """refused(flags) → the message of a table that was refused before anything was created."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("ARDMVC_DATA", "ARDMVC_STUDY_DB"):
        monkeypatch.delenv(name, raising=False)

    def check(*flags: str) -> str:
        assert main(list(flags)) == 2
        assert not (tmp_path / "runs").exists()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return captured.err

    return check


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "covmc"], "--models: unknown model 'covmc'; nearest: 'comvc'"),
        (["--datasets", "noisy_minst"], "--datasets: unknown data set 'noisy_minst'; nearest: 'noisy_mnist'"),
        (["--datasets", "npz"], "--datasets: unknown data set 'npz'"),
        (["--scale", "huge"], "--scale: must be one of smoke, small, paper, got 'huge'"),
        (["--protocol", "published"], "--protocol: must be official, strict or both, got 'published'"),
        (["--seeds", "0"], "--seeds: must be in 1..100, got 0"),
        (["--seeds", "1", "--ci"], "--ci: an interval over seeds needs at least two, got --seeds 1"),
        (["--set", "trial.protocol=strict"], "--set trial.protocol=strict: trial.protocol is the table's own: use --p"),
        (["--set", "trial.repeats=5"], "use --seeds"),
        (["--set", "trial.model.learning_rate=1"], "each model has its own"),
        (["--set", "baselines=[]"], "choose cells with --models and --datasets"),
        (["--set", "storage.path=x"], "use --storage"),
        (["--set", "trial.epohcs=3"], "--set trial.epohcs=3: trial.epohcs: unknown key"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_made(refused: Refused, flags: list[str], message: str) -> None:
    assert message in refused(*flags)


def test_every_bad_flag_is_named_at_once(refused: Refused) -> None:
    found = refused("--models", "covmc", "--datasets", "mnist", "--seeds", "-1")
    assert [line.split(":")[0] for line in found.splitlines()] == ["--models", "--datasets", "--seeds"]


def test_a_data_set_without_its_files_is_an_error(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARDMVC_DATA", str(tmp_path))
    found = refused("--datasets", "regdb", "noisy_digits")
    assert "--datasets regdb:" in found
    assert "ARDMVC_DATA" in found
    assert "--skip-missing" in found


def test_a_data_set_without_its_files_is_skipped_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARDMVC_DATA", raising=False)
    flags = ["--datasets", "regdb", "noisy_digits", "--skip-missing", "--dry-run"]
    assert main([*flags, "--models", "comvc"]) == 0
    captured = capsys.readouterr()
    assert "warning: left out: --datasets regdb:" in captured.err
    assert "noisy_digits" in captured.out
    assert "dataset.name: regdb" not in captured.out


def test_only_data_sets_that_were_asked_for_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARDMVC_DATA", str(tmp_path))  # no Fashion-MNIST there, which the scale runs by default
    flags = ["--scale", "small", "--datasets", "noisy_digits", "--models", "comvc"]
    assert main([*flags, "--set", "trial.dataset.samples=900", "--dry-run"]) == 0
    assert "dataset.name: noisy_digits" in capsys.readouterr().out


def test_settings_reach_every_cell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ["--dry-run", "--storage", str(tmp_path), "--models", "comvc", "sem", "--set", "trial.epochs=3"]
    assert main(flags) == 0
    shown = capsys.readouterr().out
    assert "  epochs: 3\n" in shown
    assert "epochs: 15" not in shown


def test_show_without_a_run_says_so_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show", "--storage", str(tmp_path / "runs")]) == 0
    assert "nothing has been run of table1_smoke_2seeds" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_nothing_left_to_run_is_an_error(refused: Refused) -> None:
    found = refused("--datasets", "regdb", "--skip-missing")
    assert "none of the data sets can be run" in found
