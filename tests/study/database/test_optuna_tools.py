"""A study in Optuna's own tools: its command line, and its dashboard."""

import json
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from study.database.engine import study_url
from study.database.ledger import Ledger
from study.database.trials import record_of
from study.records import TrialRecord
from study.spec.study_spec import StudySpec

SHOWN = {"baseline", "clean/acc", "robust/acc", "spread/robust/acc", "round", "seconds"}
START = "import sys; from importlib.metadata import entry_points; sys.exit([*entry_points(name={name!r})][0].load()())"
FAILURE = "loss ddc1 is nan in stage train, epoch 2"


@pytest.fixture
def url(tiny_spec: Callable[..., StudySpec]) -> str:
    """Of a database with a study of a complete and a failed trial."""
    spec = tiny_spec()
    ledger = Ledger.open_or_create(spec, study_url(Path(spec.storage.path)), None)
    path, space = "model.train_eps", FloatDistribution(0.02, 0.3, log=True)
    for baseline in (True, False):
        ledger.add(
            overrides={path: 0.1},
            config={"model": {"train_eps": 0.1, "widths": [64] * 500}},
            rounds=2,
            baseline=baseline,
            params={path: 0.1},
            distributions={path: space},
        )
    metrics = {"clean/acc": 0.98765, "robust/acc": 0.5, "spread/robust/acc": 0.03, "apgd_ce/new": 0.1, "loss/ddc": 1.0}
    for round_ in (1, 2):
        told = {"round": round_, "time": round_, "metrics": metrics, "seconds": 61.26 * round_, "checkpoint": "/c"}
        ledger.progress(0, told)
    ledger.finish(0, TrialState.COMPLETE, [0.5])
    ledger.finish(1, TrialState.FAIL, (), FAILURE)
    return str(study_url(Path(spec.storage.path)).reveal())


def run_tool(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", START.format(name=name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.fixture
def dashboard(url: str) -> Iterator[Callable[[str], Any]]:
    """Asks a running optuna-dashboard for a path of its API."""
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = START.format(name="optuna-dashboard")
    server = subprocess.Popen([sys.executable, "-c", code, url, "--port", str(port)], stderr=subprocess.DEVNULL)
    pause = threading.Event()

    def ask(path: str) -> Any:
        for _ in range(600):
            assert server.poll() is None
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=30) as answer:
                    return json.load(answer)
            except OSError:
                pause.wait(0.1)
        raise AssertionError("the dashboard does not answer")

    yield ask
    server.terminate()
    server.wait()


def test_the_dashboard_shows_a_readable_study(dashboard: Callable[[str], Any]) -> None:
    (summary,) = dashboard("studies")["study_summaries"]
    study = dashboard(f"studies/{summary['study_id']}")
    assert study["objective_names"] == ["robust/acc"]
    assert {entry["key"] for entry in study["union_user_attrs"]} == {*SHOWN, "failure"}
    first, second = study["trials"]
    shown = {entry["key"]: entry["value"] for entry in first["user_attrs"]}
    assert shown["clean/acc"] == "0.9877"
    assert shown["seconds"] == "122.5"
    assert shown["round"] == "2/2"
    assert max(len(entry["value"]) for trial in study["trials"] for entry in trial["user_attrs"]) < 60
    assert {entry["key"]: entry["value"] for entry in second["user_attrs"]}["failure"] == FAILURE


def test_the_command_line_shows_a_readable_study(url: str) -> None:
    done = run_tool("optuna", "trials", "--study-name", "tiny", "--storage", url, "--format", "json")
    first = json.loads(done.stdout)[0]
    text = json.dumps(first)
    assert "robust/acc" in text
    assert "widths" not in text
    assert "apgd_ce" not in text
    assert len(text) < 1000


def test_names_and_scores_stand_in_the_study(url: str) -> None:
    study = optuna.load_study(study_name="tiny", storage=url)
    assert study.metric_names == ["robust/acc"]
    assert set(study.trials[0].user_attrs) == SHOWN
    assert study.trials[0].user_attrs["robust/acc"] == 0.5


def test_a_study_from_before_is_still_read(url: str) -> None:
    """All of a trial stood in its user attributes."""
    now = optuna.load_study(study_name="tiny", storage=url).trials[0]
    then = optuna.load_study(study_name="tiny", storage=url).trials[0]
    facts = {"overrides", "config", "rounds", "token", "round:000001", "round:000002"}
    assert facts == set(now.system_attrs)
    then.user_attrs, then.system_attrs = {"baseline": True, **now.system_attrs}, {}
    assert record_of(then, "") == record_of(now, "")
    assert isinstance(record_of(then, ""), TrialRecord)
    assert record_of(then, "").round == 2
