"""One study with a trial per model, from the command line to both stores: Ray runs, Optuna records, MLflow shows."""

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from model_contract import CHEAP
from tiny_studies import run_sweep, study_dict, write_study

from ardmvc_core.models import MODELS
from study.database.engine import study_url
from study.database.ledger import Ledger
from study.records import Goal, TrialRecord
from study.tracking.run_fields import metric_name, shown_metrics
from study.tracking.tracker import default_uri

GAN = {"epochs": 1, "batch_size": 10}
TRIAL = {
    "model": {"name": "comvc"},
    "dataset": {"name": "noisy_digits", "classes": [0, 1, 2], "samples": 120},
    "protocol": "both",
    "epochs": 1,
    "batch_size": 20,
    "evaluate_every": 10,
    "evaluation": {"samples": 20, "tier": "probe", "official": GAN},
}
SCORES = ("robust/acc", "clean/acc", "official/pre/acc", "official/post/acc")


def overrides(name: str) -> dict[str, Any]:
    """The baseline of one model: its name, and what makes it cheap."""
    return {"model.name": name, **{f"model.{field}": value for field, value in CHEAP.get(name, {}).items()}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage of the finished study: no space, so that its baselines are all its trials."""
    folder = tmp_path_factory.mktemp("every_model")
    limits = {"trials": len(MODELS), "failures": 0, "concurrent": 1}
    study = study_dict(folder, trial=TRIAL, space={}, baselines=[overrides(name) for name in MODELS], limits=limits)
    done = run_sweep(write_study(folder, json.loads(json.dumps(study))))  # YAML has no tuples
    assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.fixture(scope="module")
def records(runs: Path) -> dict[str, TrialRecord]:
    """The trial of every model, as the study's database tells it."""
    found = Ledger.open_existing("tiny", study_url(runs)).records()
    return {record.config["model"]["name"]: record for record in found}


@pytest.fixture(scope="module")
def shown(runs: Path) -> list[Run]:
    """Every run that MLflow holds."""
    client = MlflowClient(tracking_uri=default_uri(str(runs)))
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def test_database_holds_a_complete_trial_of_every_model(runs: Path, records: dict[str, TrialRecord]) -> None:
    trials = optuna.load_study(study_name="tiny", storage=study_url(runs).reveal()).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * len(MODELS)
    assert list(records) == list(MODELS)
    assert [trial.value for trial in trials] == [record.metrics["robust/acc"] for record in records.values()]


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_both_protocols_are_fractions(name: str, records: dict[str, TrialRecord]) -> None:
    record = records[name]
    assert record.overrides["model.name"] == name
    for score in SCORES:
        assert 0 <= record.metrics[score] <= 1  # refuses NaN too
    assert record.metrics["robust/acc"] <= record.metrics["clean/acc"]
    losses = {metric: value for metric, value in record.metrics.items() if metric.startswith("loss/")}
    assert len(losses) > 1
    assert all(map(math.isfinite, record.metrics.values()))


def test_mlflow_holds_one_parent_and_a_child_of_every_model(shown: list[Run]) -> None:
    parents = [run for run in shown if run.data.tags["role"] == "study"]
    children = [run for run in shown if run.data.tags["role"] == "trial"]
    assert len(parents) == 1
    assert len(parents) + len(children) == len(shown)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.status for run in shown} == {"FINISHED"}
    assert sorted(run.data.params["model.name"] for run in children) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_mlflow_shows_the_numbers_of_the_database(name: str, shown: list[Run], records: dict[str, TrialRecord]) -> None:
    (run,) = (run for run in shown if run.data.params.get("model.name") == name and run.data.tags["role"] == "trial")
    record = records[name]
    assert run.data.tags["trial_number"] == str(record.number)
    shown_of_it = shown_metrics(record.metrics, [Goal("robust/acc", "max")])
    assert {*SCORES} <= {*shown_of_it} < {*record.metrics}
    wanted = {metric_name(metric): value for metric, value in shown_of_it.items()}
    assert {metric: run.data.metrics[metric] for metric in wanted} == wanted
    for field, value in CHEAP.get(name, {}).items():
        assert json.loads(run.data.params[f"model.{field}"]) == json.loads(json.dumps(value))
