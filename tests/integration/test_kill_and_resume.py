"""The study's promise, made true by force: a killed driver loses nothing, repeats no trial and changes no result."""

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from killing import records_of, rounds_done, wait_for
from tiny_studies import run_sweep, study_dict, sweep_command, write_study

from study.records import TrialRecord
from study.tracking.tracker import default_uri

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def killed_and_undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same study twice: once in one go, once killed three times at random moments and started again."""
    calm, rough = tmp_path_factory.mktemp("calm"), tmp_path_factory.mktemp("rough")
    done = run_sweep(write_study(calm, study_dict(calm)))
    assert done.returncode == 0, done.stderr
    file, runs = write_study(rough, study_dict(rough)), rough / "runs"
    moments = random.Random(20261123)
    kills, seen = 0, []
    while kills < 3:
        target = rounds_done(runs) + moments.randint(1, 3)
        process = subprocess.Popen(
            sweep_command(file), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        if not wait_for(lambda goal=target: rounds_done(runs) >= goal, process):
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        seen.append([record.state for record in records_of(runs)])
    final = run_sweep(file)
    return {"calm": calm / "runs", "rough": runs, "kills": kills, "seen": seen, "final": final}


def test_it_was_killed_three_times_while_a_trial_ran(killed_and_undisturbed: dict[str, Any]) -> None:
    assert killed_and_undisturbed["kills"] == 3
    assert sum("RUNNING" in states for states in killed_and_undisturbed["seen"]) >= 2


def test_the_same_command_ends_with_exactly_the_budgeted_trials(killed_and_undisturbed: dict[str, Any]) -> None:
    final = killed_and_undisturbed["final"]
    assert final.returncode == 0, final.stderr
    assert [record.number for record in records_of(killed_and_undisturbed["rough"])] == [0, 1, 2]
    assert {record.state for record in records_of(killed_and_undisturbed["rough"])} == {"COMPLETE"}


def test_every_trial_ends_with_the_metrics_of_the_undisturbed_run(killed_and_undisturbed: dict[str, Any]) -> None:
    def numbers(record: TrialRecord) -> dict[str, float]:
        return {name: value for name, value in record.metrics.items() if not name.startswith("time/")}

    calm, rough = records_of(killed_and_undisturbed["calm"]), records_of(killed_and_undisturbed["rough"])
    assert len(numbers(calm[0])) > 20
    for one, other in zip(calm, rough, strict=True):
        assert one.overrides == other.overrides
        assert numbers(one) == numbers(other)


def test_an_interrupted_trial_went_on_from_its_checkpoint(killed_and_undisturbed: dict[str, Any]) -> None:
    """Every round is there once, and of each trial's checkpoints the last two."""
    for record in records_of(killed_and_undisturbed["rough"]):
        assert [round_ for round_, _, _ in record.history] == [1, 2, 3, 4]
        # The attempts of a trial that was killed are not failures of its own.
        assert record.attempts == ()
    kept = sorted(path.name for path in (killed_and_undisturbed["rough"] / "tiny").glob("trial_*/round_*"))
    assert [name[:12] for name in kept] == ["round_000003"] * 3 + ["round_000004"] * 3


def test_mlflow_holds_one_finished_run_per_trial_under_one_parent(killed_and_undisturbed: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(str(killed_and_undisturbed["rough"])))
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments)
    parents = [run for run in runs if run.data.tags.get("role") == "study"]
    children = [run for run in runs if run.data.tags.get("role") == "trial"]
    assert len(parents) == 1
    assert sorted(int(run.data.tags["trial_number"]) for run in children) == [0, 1, 2]
    assert {run.info.status for run in children} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    for run in children:
        rounds = [point.step for point in client.get_metric_history(run.info.run_id, "clean/acc")]
        assert sorted(set(rounds)) == sorted(rounds) == [1, 2, 3, 4]


@pytest.mark.slow
def test_more_trials_on_a_finished_study_add_exactly_the_difference(killed_and_undisturbed: dict[str, Any]) -> None:
    runs = killed_and_undisturbed["calm"]
    file = runs.parent / "tiny.yaml"
    before = records_of(runs)
    again = run_sweep(file)
    assert again.returncode == 0
    assert "finished" in again.stdout
    assert records_of(runs) == before
    more = run_sweep(file, "--trials", "4")
    assert more.returncode == 0, more.stderr
    assert [record.state for record in records_of(runs)] == ["COMPLETE"] * 4
    assert records_of(runs)[:3] == before
