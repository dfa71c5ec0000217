"""MLflow's runs against the study: real sqlite stores, a real server, real kills."""

import http.server
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from study.records import Goal, TrialRecord
from study.secrets import redact
from study.tracking import outbox
from study.tracking.address import local_fault, make_sqlite
from study.tracking.mlflow_client import check_reachable
from study.tracking.pages import saved_view, trials_link
from study.tracking.run_fields import shown_dataset, trial_params
from study.tracking.tracker import MLflowTracker, default_uri, tracking_uri

ROOT = Path(__file__).parents[2]
SPEC = {
    "name": "demo",
    "seed": 7,
    "objective": {"metric": "robust/acc", "mode": "max"},
    "space": {"model.adversarial_weight": {"log_uniform": [0.01, 10]}},
    "sampler": {"name": "tpe"},
    "pruner": {"name": "none"},
    "limits": {"trials": 3},
    "trial": {},
}


def running(number: int, round_: int = 0, **metrics: float) -> TrialRecord:
    return TrialRecord(
        number=number,
        state="RUNNING",
        overrides={"model.adversarial_weight": 0.5},
        baseline=number == 0,
        config={"seed": 7, "model": {"name": "ar_dmvc", "adversarial_weight": 0.5}, "classes": [0, 1]},
        round=round_,
        rounds=3,
        metrics=dict(metrics),
        budget="b0d9e7",
        seconds=2.5,
    )


def complete(number: int, score: float = 0.5) -> TrialRecord:
    metrics = {"clean/acc": 0.9, "robust/acc": score}
    return replace(running(number, 3), state="COMPLETE", values=(score,), metrics=metrics)


def run_trial(tracker: MLflowTracker, number: int, score: float = 0.5) -> None:
    tracker.trial_started(running(number))
    for round_ in (1, 2):
        tracker.trial_reported(running(number, round_, **{"clean/acc": round_ / 10, "probe/acc": 0.1}))
    tracker.trial_reported(replace(running(number, 3), metrics=complete(number, score).metrics))
    tracker.trial_ended(complete(number, score))


def eventually(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for a condition of the outside world."""
    pause = threading.Event()
    for _ in range(round(seconds / 0.05)):
        if holds():
            return
        pause.wait(0.05)
    raise AssertionError(f"did not happen within {seconds} s")


class Seen:
    """What a store holds, read with a client of its own."""

    def __init__(self, uri: str, experiment: str = "demo") -> None:
        import mlflow

        self.client = mlflow.MlflowClient(tracking_uri=uri)
        self.experiment = experiment

    def runs(self, role: str) -> list[Any]:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            return []
        return list(self.client.search_runs([found.experiment_id], f"tags.role = '{role}'"))

    def parent(self) -> Any:
        (run,) = self.runs("study")
        return run

    def trials(self) -> dict[int, Any]:
        runs = self.runs("trial")
        found = {int(run.data.tags["trial_number"]): run for run in runs}
        assert len(found) == len(runs), "a trial has two runs"
        return found

    def history(self, number: int, metric: str) -> list[tuple[int, float]]:
        run = self.trials()[number]
        return [(point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, metric)]

    def files(self, run: Any, folder: str | None = None) -> set[str]:
        return {file.path for file in self.client.list_artifacts(run.info.run_id, folder)}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with MLflow's tables and nothing in them; making one takes seconds. A killed attempt lies beside it."""
    folder = tmp_path_factory.mktemp("mlflow")
    (folder / ".mlflow.db.new-1").write_bytes(b"half a database")
    make_sqlite(folder / "mlflow.db")
    assert not (folder / ".mlflow.db.new-1").exists()
    return folder / "mlflow.db"


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return default_uri(str(tmp_path))


@pytest.fixture
def open_tracker(uri: str) -> Iterator[Callable[..., MLflowTracker]]:
    made: list[MLflowTracker] = []

    def make(**given: Any) -> MLflowTracker:
        made.append(MLflowTracker(given.pop("spec", SPEC), **{"uri": uri, "study_name": "demo", **given}))
        return made[-1]

    yield make
    for tracker in made:
        tracker.close(timeout=0.1)


def test_a_study_is_a_parent_with_a_run_per_trial(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    tracker = open_tracker()
    tracker.reconcile([])
    run_trial(tracker, 0, 0.3)
    run_trial(tracker, 1, 0.6)
    tracker.trial_ended(replace(complete(1, 0.6), warnings=("only 3 of 5 clusters are used",)))
    tracker.trial_started(running(2))
    pruned = replace(running(2, 1), state="PRUNED", metrics={"clean/acc": 0.2, "probe/acc": 0.1})
    tracker.trial_ended(pruned)
    tracker.close()

    seen = Seen(uri)
    parent, trials = seen.parent(), seen.trials()
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "demo"
    assert parent.data.params["sampler.name"] == "tpe"
    assert parent.data.tags["limits.trials"] == "3"
    assert parent.data.metrics["best/robust/acc"] == 0.6
    assert parent.data.metrics["trials/complete"] == 2
    assert parent.data.metrics["trials/pruned"] == 1
    assert "Best trial" in parent.data.tags["mlflow.note.content"]
    assert {"study.yaml", "environment.txt", "leaderboard.md", "leaderboard.csv", "figures"} <= seen.files(parent)
    assert "figures/history_robust_acc.png" in seen.files(parent, "figures")

    assert sorted(trials) == [0, 1, 2]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {parent.info.run_id}
    assert [trials[n].info.status for n in (0, 1, 2)] == ["FINISHED"] * 3
    assert [trials[n].data.tags["state"] for n in (0, 1, 2)] == ["complete", "complete", "pruned"]
    assert [trials[n].data.tags["baseline"] for n in (0, 1, 2)] == ["true", "false", "false"]
    assert [trials[n].info.run_name for n in (0, 1)] == ["trial 000 (baseline)", "trial 001"]
    assert trials[1].data.params == {"model.adversarial_weight": "0.5", "log10/model.adversarial_weight": "-0.301"}
    assert trials[1].data.tags["model"] == "ar_dmvc"
    assert trials[1].data.tags["budget_digest"] == "b0d9e7"
    assert trials[1].data.tags["warnings"] == "only 3 of 5 clusters are used"
    assert trials[1].data.metrics["time/trial_s"] == 2.5
    assert seen.history(1, "clean/acc") == [(1, 0.1), (2, 0.2), (3, 0.9)]
    assert seen.history(1, "robust/acc") == [(0, 0.6)]
    assert {"config.yaml", "environment.txt", "trial.json"} <= seen.files(trials[1])
    location = seen.client.get_experiment_by_name("demo").artifact_location
    assert location == (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()


WHOLE = {
    **dict.fromkeys(("clean/acc", "clean/nmi", "clean/ari", "robust/acc", "robust/nmi", "robust/ari"), 0.5),
    **dict.fromkeys(
        ("spread/clean/acc", "spread/robust/ari", "noise/flip", "guard/clusters_used", "cost/forwards"), 0.1
    ),
}
DETAILS = dict.fromkeys(
    ("apgd_ce/acc", "apgd_ce/new", "square/new", "loss/ddc", "chance/acc", "spread/loss/ddc", "robust/kappa"), 0.2
)


def test_what_matters_is_a_metric_and_the_rest_a_file(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    """One number of a trial is one point at step 0; only what rounds before the last have told too is a curve."""
    tracker = open_tracker()
    rounds = [(n, n, {"clean/acc": n / 10, "probe/acc": 0.1, "guard/clusters_used": 5.0, **DETAILS}) for n in (1, 2)]
    history = (*rounds, (3, 3, {**WHOLE, **DETAILS}))
    tracker.reconcile([replace(complete(0), metrics=history[-1][2], history=history, ended=9)])
    tracker.close()
    seen = Seen(uri)
    run = seen.trials()[0]
    assert set(run.data.metrics) == {*WHOLE, "probe/acc", "time/trial_s"}
    assert seen.history(0, "clean/acc") == [(1, 0.1), (2, 0.2), (3, 0.5)]
    assert {name: seen.history(0, name) for name in WHOLE if name != "clean/acc"} == {
        name: [(0, value)] for name, value in WHOLE.items() if name != "clean/acc"
    }
    told = json.loads(Path(seen.client.download_artifacts(run.info.run_id, "trial.json")).read_text())
    assert told["metrics"] == {**WHOLE, **DETAILS}
    assert [entry[2] for entry in told["history"]] == [metrics for _, _, metrics in history]


@pytest.mark.parametrize(
    ("distribution", "value", "told"),
    [
        ({"log_uniform": [0.01, 10]}, 0.1, "-1.0"),
        ({"log_uniform": [0.01, 10]}, 0.0, None),  # a baseline without the defence
        ({"int_log_uniform": [1, 1000]}, 100, "2.0"),
        ({"uniform": [0.01, 10]}, 0.1, None),
        ({"choice": [0.1, 1]}, 0.1, None),
    ],
)
def test_parameters_of_a_logarithmic_range_are_told_as_logarithms_too(
    distribution: dict[str, Any], value: float, told: str | None
) -> None:
    record = replace(running(1), overrides={"model.weight": value}, config={"model": {"weight": value, "other": 3}})
    params = trial_params(record, {"model.weight": distribution})
    assert params == {"model.weight": str(value)} | ({} if told is None else {"log10/model.weight": told})


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({"root": None, "path": None}, "code"), ({"root": "/data"}, "local"), ({"path": "/own.npz"}, "local")],
)
def test_data_without_a_file_come_from_code(settings: dict[str, Any], kind: str) -> None:
    record = replace(running(0), config={"dataset": {"name": "own", **settings}})
    found = shown_dataset(record, "0123456789" * 4)
    assert (found["name"], found["source_type"], len(found["digest"])) == ("own", kind, 36)


def test_a_baseline_has_the_searched_parameters_of_its_config() -> None:
    record = replace(running(0), overrides={}, config={"model": {"weight": 1.0, "other": 3}})
    assert trial_params(record, {"model.weight": {"uniform": [0, 2]}}) == {"model.weight": "1.0"}


def test_a_finished_study_that_is_run_again_keeps_its_end(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    records = [replace(complete(n), ended=1_000 + n) for n in range(3)]
    ends = []
    for spec in (SPEC, SPEC, {**SPEC, "limits": {"trials": 4}}):
        tracker = open_tracker(spec=spec)
        tracker.reconcile(records)
        tracker.close()
        ends.append((Seen(uri).parent().info.status, Seen(uri).parent().info.end_time))
    assert ends[:2] == [("FINISHED", 1_002)] * 2
    assert ends[2][0] == "KILLED"  # one trial is missing now


def test_a_run_says_who_ran_what_from_where(
    uri: str, open_tracker: Callable[..., MLflowTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "alice")
    open_tracker().close()
    tracker = open_tracker()
    tracker.reconcile([complete(0)])
    tracker.close()
    for run in (Seen(uri).parent(), Seen(uri).trials()[0]):
        assert run.data.tags["mlflow.user"] == "alice"
        assert run.data.tags["mlflow.source.type"] == "LOCAL"
        assert run.data.tags["mlflow.source.name"].startswith("python ")


def test_the_experiment_says_what_it_is_and_leads_to_its_trials(
    uri: str, open_tracker: Callable[..., MLflowTracker]
) -> None:
    tracker = open_tracker(spec={**SPEC, "trial": {"model": {"name": "ar_dmvc"}, "dataset": {"name": "noisy_digits"}}})
    tracker.reconcile([complete(0)])
    tracker.close()
    experiment = Seen(uri).client.get_experiment_by_name("demo")
    tags = dict(experiment.tags)
    assert tracker.page.startswith(f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&")
    assert "Study demo: ar_dmvc on noisy_digits" in tags["mlflow.note.content"]
    assert f"({tracker.page})" in tags["mlflow.note.content"]
    view = json.loads(json.loads(tags["mlflow.sharedViewState.demo"])["state"])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`robust/acc`", False)
    assert view["searchFilter"] == "tags.role = 'trial' and tags.study = 'demo'"
    assert {"metrics.`robust/acc`", "params.`model.adversarial_weight`"} <= set(view["selectedColumns"])
    Seen(uri).client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "mine")
    again = open_tracker()
    again.reconcile([complete(0)])
    again.close()
    assert Seen(uri).client.get_experiment_by_name("demo").tags["mlflow.note.content"] == "mine"


def test_an_objective_to_be_made_small_comes_smallest_first() -> None:
    view = json.loads(json.loads(saved_view("a b", [Goal("gan/flip", "min"), Goal("clean/acc", "max")], []))["state"])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`gan/flip`", True)
    assert trials_link("7", "a b").endswith("viewStateShareKey=a%20b&compareRunsMode=TABLE")


def test_failure_and_numbers_that_are_not_finite(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    tracker = open_tracker()
    tracker.trial_started(running(0))
    bad = {"guard/total": float("nan"), "guard/ddc": float("inf"), "clean/acc": 0.4, "guard/ε": 0.1}
    tracker.trial_reported(running(0, 1, **bad))
    reason = "loss total is nan in stage train, epoch 3"
    tracker.trial_ended(replace(running(0, 1, **bad), state="FAIL", failure=reason))
    tracker.close()
    run = Seen(uri).trials()[0]
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == reason
    assert set(run.data.metrics) == {"clean/acc", "guard/ε", "time/trial_s"}


def test_a_second_driver_goes_on_in_the_same_runs(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    first = open_tracker()
    run_trial(first, 0)
    first.trial_started(running(1))
    first.trial_reported(running(1, 1, **{"clean/acc": 0.1}))
    first.trial_reported(running(1, 2, **{"clean/acc": 0.2}))
    first.close()
    seen = Seen(uri)
    assert seen.parent().info.status == "KILLED"
    assert (seen.trials()[1].info.status, seen.trials()[1].data.tags["state"]) == ("KILLED", "interrupted")

    second = open_tracker(spec={**SPEC, "limits": {"trials": 2}})
    second.reconcile([complete(0), running(1, 1)])
    second.trial_started(running(1, 1))
    # The checkpoint was one round behind: round 2 is run, and told, again.
    second.trial_reported(running(1, 2, **{"clean/acc": 0.2}))
    second.trial_reported(running(1, 3, **complete(1).metrics))
    second.trial_ended(complete(1))
    second.close()
    assert seen.parent().info.status == "FINISHED"
    assert seen.parent().data.tags["limits.trials"] == "2"
    assert sorted(seen.trials()) == [0, 1]
    assert seen.trials()[1].info.status == "FINISHED"
    assert seen.history(1, "clean/acc") == [(1, 0.1), (2, 0.2), (3, 0.9)]


def test_reconcile_makes_and_ends_what_the_database_knows(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    first = open_tracker()
    first.trial_started(running(0))
    first.trial_reported(running(0, 1, **{"clean/acc": 0.1}))
    first.close()
    second = open_tracker()
    failed = replace(running(2, 1), state="FAIL", failure="worker lost")
    second.reconcile([complete(0, 0.7), complete(1, 0.4), failed])
    second.close()
    seen = Seen(uri)
    assert {n: run.info.status for n, run in seen.trials().items()} == {0: "FINISHED", 1: "FINISHED", 2: "FAILED"}
    assert seen.history(0, "robust/acc") == [(0, 0.7)]
    assert seen.history(0, "clean/acc") == [(1, 0.1), (3, 0.9)]
    assert seen.trials()[1].data.metrics["robust/acc"] == 0.4
    third = open_tracker()
    third.reconcile([complete(0, 0.7), complete(1, 0.4), failed])
    third.close()
    assert seen.history(0, "robust/acc") == [(0, 0.7)]
    assert seen.parent().data.metrics["trials/complete"] == 2


def test_a_trial_that_ended_under_a_killed_driver_gets_all_its_rounds(
    uri: str, open_tracker: Callable[..., MLflowTracker]
) -> None:
    """Killed after the record of the last round and before the last word: rounds 2 and 3 were never told."""
    first = open_tracker()
    first.trial_started(running(0))
    first.trial_reported(running(0, 1, **{"clean/acc": 0.1}))
    first.close()
    history = tuple((round_, 1000 * round_, {"clean/acc": round_ / 10}) for round_ in (1, 2, 3))
    second = open_tracker()
    second.reconcile([replace(running(0, 3), history=history)])
    second.trial_ended(replace(complete(0), metrics={"clean/acc": 0.3, "robust/acc": 0.5}, history=history))
    second.close()
    seen = Seen(uri)
    assert sorted(seen.history(0, "clean/acc")) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert seen.history(0, "robust/acc") == [(0, 0.5)]


def test_a_killed_driver_leaves_nothing_twice(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    script = f"""
import sys, threading
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from test_tracking import SPEC, complete, running, run_trial
from study.tracking.tracker import MLflowTracker
tracker = MLflowTracker(SPEC, uri={uri!r}, study_name="demo")
run_trial(tracker, 0)
tracker.trial_started(running(1))
tracker.trial_reported(running(1, 1, **{{"clean/acc": 0.1}}))
threading.Event().wait()
"""
    driver = subprocess.Popen([sys.executable, "-c", script])
    seen = Seen(uri)
    try:
        eventually(lambda: "clean/acc" in (seen.trials()[1].data.metrics if 1 in seen.trials() else {}))
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert seen.trials()[1].info.status == "RUNNING"
    tracker = open_tracker()
    tracker.reconcile([complete(0), running(1, 1)])
    run_trial(tracker, 1)
    run_trial(tracker, 2)
    tracker.close()
    assert {n: run.info.status for n, run in seen.trials().items()} == dict.fromkeys(range(3), "FINISHED")
    assert [step for step, _ in seen.history(1, "clean/acc")] == [1, 2, 3]
    assert len(seen.runs("study")) == 1


def told_by_two(first: MLflowTracker, second: MLflowTracker, seen: Seen) -> None:
    """A driver that was stopped with news in hand, and goes on after another has told them in its place."""
    scores = {1: 0.1, 2: 0.2, 3: 0.9}
    history = tuple((round_, 1_000 * round_, {"clean/acc": scores[round_]}) for round_ in (1, 2, 3))
    ended = replace(complete(0), metrics={"clean/acc": 0.9, "robust/acc": 0.5}, history=history, ended=5_000)
    first.reconcile([])
    first.trial_started(running(0))
    first.trial_reported(replace(running(0, 1, **{"clean/acc": 0.1}), history=history[:1]))
    eventually(lambda: 0 in seen.trials() and seen.history(0, "clean/acc") == [(1, 0.1)])
    second.reconcile([replace(running(0, 2), history=history[:2])])
    second.trial_started(replace(running(0, 2), history=history[:2]))
    second.trial_ended(ended)
    eventually(lambda: seen.trials()[0].info.status == "FINISHED" and "trials/ended" in seen.parent().data.metrics)
    first.trial_reported(replace(running(0, 2, **{"clean/acc": 0.2}), history=history[:2]))
    first.trial_ended(ended)
    first.close()
    second.close()
    assert seen.history(0, "clean/acc") == [(1, 0.1), (2, 0.2), (3, 0.9)]
    for metric in ("robust/acc", "time/trial_s"):
        assert len(seen.history(0, metric)) == 1
    run = seen.trials()[0]
    assert run.data.tags["round"] == "3"
    times = [point.timestamp for point in seen.client.get_metric_history(run.info.run_id, "clean/acc")]
    assert times == [1_000, 2_000, 3_000]
    assert run.info.end_time == 5_000
    parent = seen.parent().info.run_id
    assert len(seen.client.get_metric_history(parent, "trials/complete")) == 1


def test_a_round_that_two_drivers_tell_is_one_point(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    told_by_two(open_tracker(), open_tracker(), Seen(uri))


@pytest.mark.slow
def test_a_round_that_two_drivers_tell_a_server_is_one_point(
    uri: str,
    tmp_path: Path,
    start_server: Callable[[], "subprocess.Popen[bytes]"],
    open_tracker: Callable[..., MLflowTracker],
) -> None:
    start_server()
    address = f"http://127.0.0.1:{(tmp_path / 'port').read_text()}"
    eventually(lambda: check_reachable(address) is None)
    told_by_two(open_tracker(uri=address), open_tracker(uri=address), Seen(uri))


def test_a_driver_that_has_lost_the_study_tells_nothing_more(
    uri: str, open_tracker: Callable[..., MLflowTracker]
) -> None:
    """It wakes up with a round, an end and the summary in hand; nothing of it is its own to tell any more."""
    held = threading.Event()
    held.set()
    tracker = open_tracker(held=held.is_set)
    tracker.reconcile([])
    tracker.trial_started(running(0))
    tracker.trial_reported(running(0, 1, **{"clean/acc": 0.1}))
    seen = Seen(uri)
    eventually(lambda: 0 in seen.trials() and seen.history(0, "clean/acc") == [(1, 0.1)])
    held.clear()
    tracker.trial_reported(running(0, 2, **{"clean/acc": 0.2}))
    tracker.trial_started(running(1))
    tracker.trial_ended(complete(0))
    tracker.close()
    assert seen.history(0, "clean/acc") == [(1, 0.1)]
    assert {number: run.info.status for number, run in seen.trials().items()} == {0: "RUNNING"}
    assert seen.parent().info.status == "RUNNING"


def test_while_nobody_knows_who_holds_the_study_nothing_is_told(
    uri: str, open_tracker: Callable[..., MLflowTracker], caplog: pytest.LogCaptureFixture
) -> None:
    """The study's database is away, and with it the lease; what was told meanwhile arrives later."""
    away = threading.Event()

    def held() -> bool:
        if away.is_set():
            raise OSError("no route to postgresql://user:secret@host")
        return True

    tracker = open_tracker(held=held)
    tracker.reconcile([])
    tracker.trial_started(running(0))
    seen = Seen(uri)
    eventually(lambda: 0 in seen.trials())
    away.set()
    with caplog.at_level(logging.WARNING):
        tracker.trial_reported(running(0, 1, **{"clean/acc": 0.1}))
        eventually(lambda: "does not say whether this driver holds the study" in caplog.text)
        assert seen.history(0, "clean/acc") == []
        away.clear()
        tracker.close()
    assert seen.history(0, "clean/acc") == [(1, 0.1)]
    assert "secret" not in caplog.text


def test_a_run_made_twice_by_a_lost_answer_is_removed(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    first = open_tracker()
    run_trial(first, 0)
    first.close()
    seen = Seen(uri)
    original = seen.trials()[0]
    kept = {k: v for k, v in original.data.tags.items() if k in ("study", "role", "trial_number", "mlflow.parentRunId")}
    seen.client.create_run(original.info.experiment_id, tags=kept)
    second = open_tracker()
    second.reconcile([complete(0)])
    second.close()
    assert seen.trials()[0].info.run_id == original.info.run_id


def test_a_driver_that_is_refused_or_replaced_leaves_the_runs_of_the_other(
    uri: str, open_tracker: Callable[..., MLflowTracker]
) -> None:
    holder = open_tracker()
    holder.reconcile([])
    holder.trial_started(running(0))
    seen = Seen(uri)
    eventually(lambda: 0 in seen.trials())
    open_tracker().close()  # refused: it never got the lease, so nobody called reconcile
    replaced = open_tracker()
    replaced.reconcile([running(0)])
    replaced.close(abandoned=True)
    assert seen.parent().info.status == "RUNNING"
    assert seen.trials()[0].info.status == "RUNNING"


def test_studies_of_one_name_in_two_databases_stay_apart(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    for identity in ("one", "two", "one"):
        tracker = open_tracker(identity=identity)
        tracker.reconcile([complete(0)])
        tracker.close()
    runs = Seen(uri).runs("study")
    assert sorted(run.data.tags["study_id"] for run in runs) == ["one", "two"]
    assert len(Seen(uri).runs("trial")) == 2


def test_an_experiment_deleted_in_the_ui_comes_back(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    first = open_tracker()
    first.reconcile([])
    first.close()
    seen = Seen(uri)
    seen.client.delete_experiment(seen.client.get_experiment_by_name("demo").experiment_id)
    tracker = open_tracker()
    tracker.reconcile([complete(0)])
    tracker.close()
    assert sorted(seen.trials()) == [0]


def test_many_params_and_metrics_fit_into_requests(uri: str, open_tracker: Callable[..., MLflowTracker]) -> None:
    config = {"list": {f"p{i}": "x" * 900 for i in range(250)}}
    metrics = {f"guard/m{i}": float(i) for i in range(1700)}
    tracker = open_tracker(spec={**SPEC, "space": {f"list.p{i}": {"choice": ["x"]} for i in range(250)}})
    tracker.trial_started(replace(running(0), config=config))
    tracker.trial_ended(replace(complete(0), config=config, metrics=metrics))
    tracker.close()
    run = Seen(uri).trials()[0]
    assert len(run.data.params) == 251
    assert len(run.data.params["list.p7"]) == 500
    assert len(run.data.metrics) == 1701


def test_figures_and_data_digests_of_a_checkpoint(
    uri: str, tmp_path: Path, open_tracker: Callable[..., MLflowTracker]
) -> None:
    clusters = np.array([0, 1, 0, 1])
    table = np.array([[2, 0], [0, 2]])
    arrays = {"clusters/clean": clusters, "clusters/gan": 1 - clusters}
    arrays |= {"confusion/class_clean": table, "confusion/class_gan": table[::-1]}
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    np.savez(checkpoint / "evaluation.npz", allow_pickle=False, **arrays)
    (checkpoint / "config.json").write_text(json.dumps({"contents": {"train": "abc", "score": "def"}}))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "evaluation.npz").write_bytes(b"PK\x03\x04 no zip file")
    tracker = open_tracker()
    tracker.reconcile(
        [
            replace(complete(0), checkpoint=str(checkpoint)),
            replace(complete(1), checkpoint=str(broken)),
            replace(complete(2), checkpoint=str(tmp_path / "gone")),
        ]
    )
    tracker.close()
    seen = Seen(uri)
    trials = seen.trials()
    assert seen.files(trials[0], "figures") == {"figures/confusion.png"}
    assert trials[0].data.tags["data_digest.train"] == "abc"
    for run in (trials[0], seen.parent()):
        inputs = run.inputs.dataset_inputs
        assert {(each.tags[0].value, each.dataset.digest) for each in inputs} == {("train", "abc"), ("score", "def")}
    assert [trials[n].info.status for n in (1, 2)] == ["FINISHED"] * 2


@pytest.mark.parametrize("secret", ["pa55-word", "pa55'word", 'pa55"word', "pa55 word", "pa55@word", "pa55%20w%6frd"])
def test_no_password_reaches_the_store(
    uri: str, tmp_path: Path, open_tracker: Callable[..., MLflowTracker], monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    url = f"postgresql://user:{secret}@db.example/x"
    monkeypatch.setenv("ARDMVC_STUDY_DB", url)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "study.sweep", "--set", f"storage.url={url}"])
    tracker = open_tracker(spec={**SPEC, "storage": {"url": url}}, tags={"from": url})
    config = {"dataset": {"root": url}}
    tracker.trial_started(replace(running(0), config=config, overrides={"dataset.root": url}))
    said = f"cannot open {url}: {url!r}, {secret!r}, {unquote(secret)}"
    ended = replace(running(0, 1), config=config, overrides={"dataset.root": url}, state="FAIL", failure=said)
    tracker.trial_ended(replace(ended, warnings=(said,)))
    tracker.close()
    trial = Seen(uri).trials()[0]
    assert trial.data.params["dataset.root"] == "postgresql://user:***@db.example/x"
    assert trial.data.tags["failure"].startswith("cannot open postgresql://user:***@db.example/x: ")
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"pa55" not in file.read_bytes(), file


def test_an_outage_at_the_start_is_made_up_for(
    empty_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The store's folder cannot be made as long as a file stands in its place.
    folder = tmp_path / "share"
    folder.write_text("not mounted yet")
    tracker = MLflowTracker(SPEC, uri=default_uri(str(folder)), study_name="demo")
    with caplog.at_level(logging.WARNING):
        run_trial(tracker, 0)
        eventually(lambda: "takes nothing" in caplog.text)
        run_trial(tracker, 1)
        folder.unlink()
        folder.mkdir()
        shutil.copy(empty_store, folder / "mlflow.db")
        tracker.close()
    seen = Seen(default_uri(str(folder)))
    assert sorted(seen.trials()) == [0, 1]
    assert seen.history(0, "clean/acc") == [(1, 0.1), (2, 0.2), (3, 0.9)]
    assert "has not got everything" not in caplog.text


def test_an_outage_to_the_end_is_told_without_the_password(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "OUTAGE_PATIENCE", 0.1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{closed.getsockname()[1]}"
        tracker = MLflowTracker(SPEC, uri=uri, study_name="demo")
        with caplog.at_level(logging.WARNING):
            run_trial(tracker, 5)
            eventually(lambda: "takes nothing" in caplog.text)
            tracker.close()
    assert "http://user:***@127.0.0.1" in caplog.text
    assert "has not got everything (trials 5)" in caplog.text
    assert "secret" not in caplog.text


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts `mlflow server` on tmp_path/mlflow.db, always on the port that `port` names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "port").write_text(str(port))
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        stores = ["--backend-store-uri", default_uri(str(tmp_path)), "--artifacts-destination", str(tmp_path / "files")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (tmp_path / "server.log").open("a") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "mlflow", "server", *options, *stores],
                    env={**os.environ, **quiet},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        return started[-1]

    yield start
    for server in started:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def test_a_server_that_stops_and_comes_back(
    uri: str,
    tmp_path: Path,
    start_server: Callable[[], "subprocess.Popen[bytes]"],
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = start_server()
    address = f"http://127.0.0.1:{(tmp_path / 'port').read_text()}"
    assert "cannot reach the MLflow server" in str(check_reachable(address))
    tracker = MLflowTracker(SPEC, uri=address, study_name="demo", artifact_root=str(tmp_path / "unused"))
    run_trial(tracker, 0)
    seen = Seen(uri)
    eventually(lambda: 0 in seen.trials() and seen.trials()[0].info.status == "FINISHED")
    assert check_reachable(address) is None
    tracker.trial_started(running(1))
    eventually(lambda: 1 in seen.trials())

    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    for round_ in (1, 2):
        tracker.trial_reported(running(1, round_, **{"clean/acc": round_ / 10, "probe/acc": 0.1}))
    server = start_server()
    tracker.trial_reported(replace(running(1, 3), metrics=complete(1).metrics))
    tracker.trial_ended(complete(1))
    run_trial(tracker, 2)
    eventually(lambda: check_reachable(address) is None)
    tracker.close()

    assert {n: run.info.status for n, run in seen.trials().items()} == dict.fromkeys(range(3), "FINISHED")
    assert seen.history(1, "clean/acc") == [(1, 0.1), (2, 0.2), (3, 0.9)]
    assert seen.parent().info.status == "FINISHED"
    assert (tmp_path / "files").exists()
    assert not (tmp_path / "unused").exists()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("uri", "want"),
    [
        ("./mlruns", "MLflow has given up file stores; use a database such as 'sqlite:////"),
        ("file:///tmp/mlruns", "MLflow has given up file stores"),
        ("ftp://host/x", "unknown kind 'ftp'; known: sqlite, postgresql, http, https"),
        ("sqlite://", "names no file"),
        ("http://user:s3cret@127.0.0.1:1", "cannot reach the MLflow server http://user:***@127.0.0.1:1"),
        ("http://127.0.0.1:99999", "its host or its port cannot be read"),
        ("postgresql+psycopg2://user:s3cret@127.0.0.1:1/x", "postgresql+psycopg2://user:***@127.0.0.1:1/x"),
    ],
)
def test_addresses_that_cannot_work(uri: str, want: str) -> None:
    fault = check_reachable(uri)
    assert fault is not None
    assert want in fault
    assert "s3cret" not in fault


def test_making_a_store_touches_nothing_that_others_put_there(empty_store: Path, tmp_path: Path) -> None:
    """Links and folders lie where drafts and the lock of a store would; the storage is a shared one."""
    folder, thesis = tmp_path / "runs", tmp_path / "thesis"
    (folder / ".mlflow.db.new-2").mkdir(parents=True)
    (folder / ".mlflow.db.new-kept").write_text("by hand")
    thesis.write_text("years")
    for name in (".mlflow.db.new-3", f".mlflow.db.new-{os.getpid()}", ".mlflow.db.lock"):
        (folder / name).symlink_to(thesis)
    make_sqlite(folder / "mlflow.db")
    assert check_reachable(default_uri(str(folder))) is None
    assert (folder / ".mlflow.db.new-2").is_dir()
    assert (folder / ".mlflow.db.new-kept").read_text() == "by hand"
    assert thesis.read_text() == "years"


def test_sqlite_files_that_cannot_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database, but long enough to be taken for one" * 10)
    assert "file is not a database" in str(check_reachable(f"sqlite:///{tmp_path}/file"))
    assert "is not a folder" in str(check_reachable(f"sqlite:///{tmp_path}/file/mlflow.db"))
    assert check_reachable(f"sqlite:///{tmp_path}/new/folder/mlflow.db") is None
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "no permission to write" in str(check_reachable(f"sqlite:///{tmp_path}/mlflow.db"))


def test_a_web_server_that_is_not_mlflow() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fault = check_reachable(f"http://user:secret@127.0.0.1:{server.server_port}")
        server.shutdown()
    assert fault is not None
    assert "does not answer as one" in fault
    assert "secret" not in fault


def test_default_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri().reveal() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri("/data/runs").reveal() == "sqlite:////data/runs/mlflow.db"
    assert tracking_uri("s3://bucket/runs").reveal() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri("/data/runs").reveal() == "http://mlflow:5000"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("postgresql://user:p@ss/w:rd@host:5/db", "postgresql://user:***@host:5/db"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("https://token@host/x", "https://***@host/x"),
        ("http://host:5000/x?access_token=abc&a=b", "http://host:5000/x?access_token=***&a=b"),
        ("sqlite:////data/a b.db", "sqlite:////data/a b.db"),
        (
            "from http://a:b@c/d to postgresql+psycopg2://x:y@z/w",
            "from http://a:***@c/d to postgresql+psycopg2://x:***@z/w",
        ),
    ],
)
def test_redact(text: str, want: str) -> None:
    assert redact(text) == want
    assert redact(want) == want


def test_a_database_whose_writer_was_killed_in_mid_commit_is_rolled_back_and_used(tmp_path: Path) -> None:
    """The check of the next driver is the first to open it."""
    file = tmp_path / "mlflow.db"
    make_sqlite(file)
    # Without a cache, changed pages reach the file before the commit, and the journal holds what they were.
    script = (
        "import os, sqlite3, sys; store = sqlite3.connect(sys.argv[1]); store.execute('PRAGMA cache_size=1');"
        "store.execute('BEGIN'); store.execute('CREATE TABLE half (a)'); store.execute('DROP TABLE experiments');"
        "store.executemany('INSERT INTO half VALUES (?)', [('x' * 1000,)] * 1000); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(file)], check=False).returncode == -signal.SIGKILL
    assert file.with_name("mlflow.db-journal").stat().st_size > 0
    assert local_fault(f"sqlite:///{file}") is None
    with sqlite3.connect(file) as store:
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert "experiments" in tables
    assert "half" not in tables
