"""Pausing, resuming and stopping a study from another process; real drivers, real Ray, real database."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import slow_trainables
import sqlalchemy as sa
from mlflow import MlflowClient
from optuna.trial import TrialState
from tiny_studies import ROOT, study_dict, write_study

from study.control import main
from study.database import lease as lease_module
from study.database.engine import study_url
from study.database.lease import Lease
from study.database.ledger import Ledger
from study.records import TrialRecord
from study.spec.study_spec import StudySpec
from study.tracking.tracker import default_uri

MINUTES = 3
SpecMaker = Callable[..., StudySpec]


class Steered:
    """A study in a folder, its gates, and the commands that steer it."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.gates = folder / "runs", folder / "gates"
        self.gates.mkdir()
        self.log = folder / "driver.log"
        limits = {"trials": 3, "failures": 0, "concurrent": 2}
        self.file = write_study(folder, study_dict(folder, limits=limits))

    @contextmanager
    def driver(self) -> Iterator[subprocess.Popen[str]]:
        """A driver with a new log; it ends with the block at the latest."""
        command = [sys.executable, slow_trainables.__file__, str(self.file)]
        environment = {**os.environ, "GATES": str(self.gates)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment["PYTHONPATH"]])
        with self.log.open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log, text=True
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def control(self, action: str) -> dict[str, Any]:
        """Runs the command, in this process since that is quicker."""
        out = io.StringIO()
        with redirect_stdout(out):
            assert main(["tiny", action, "--storage", str(self.runs), "--json"]) == 0
        found: dict[str, Any] = json.loads(out.getvalue())
        return found

    def records(self) -> list[TrialRecord]:
        return Ledger.open_existing("tiny", study_url(self.runs)).records()

    def states(self) -> list[tuple[str, int]]:
        return [(record.state, record.round) for record in self.records()]

    def begun(self, *rounds: str) -> bool:
        return all((self.gates / f"begun_{name}").exists() for name in rounds)

    def pids(self, *rounds: str) -> list[int]:
        return [int((self.gates / f"begun_{name}").read_text()) for name in rounds]

    def open(self, *rounds: str) -> None:
        for name in rounds:
            (self.gates / f"open_{name}").touch()

    def wait_for(self, condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 60 * MINUTES
        while not condition():
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def says(self, text: str) -> Callable[[], bool]:
        return lambda: text in self.log.read_text()


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_pause_resume_stop_and_a_paused_start(tmp_path: Path) -> None:
    study = Steered(tmp_path)
    with study.driver() as driver:
        study.wait_for(lambda: study.begun("0_1", "1_1"), driver)
        seen = study.control("status")
        assert (seen["state"], seen["driver"]["pid"], seen["driver"]["alive"]) == ("running", driver.pid, True)
        assert [(one["number"], one["at_work"]) for one in seen["open"]] == [(0, True), (1, True)]

        command = [sys.executable, "-m", "study.control", "tiny", "pause", "--storage", str(study.runs)]
        told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert (told.returncode, told.stderr) == (0, "")
        assert told.stdout == "study 'tiny' pauses: open trials (0, 1) end the round they are in\n"
        assert study.control("status")["state"] == "pausing"
        study.wait_for(study.says("is paused: open trials end their round and wait"), driver)
        study.open("0_1", "1_1")
        study.wait_for(lambda: study.states() == [("WAITING", 1), ("WAITING", 1)], driver)
        study.wait_for(lambda: gone(study.pids("0_1", "1_1")), driver)  # workers are given back, with what they hold
        assert not study.begun("0_2")
        assert not study.begun("1_2")
        seen = study.control("status")
        assert (seen["state"], seen["wish"], seen["trials"]["waiting"]) == ("paused", "pause", 2)
        assert [(one["at_work"], one["round"]) for one in seen["open"]] == [(False, 1), (False, 1)]

        assert study.control("resume")["message"] == "study 'tiny' goes on"
        study.wait_for(lambda: study.begun("0_2", "1_2"), driver)
        study.wait_for(study.says("study 'tiny' goes on"), driver)
        assert study.control("stop")["message"].startswith(
            "study 'tiny' stops: open trials (0, 1) end the round they are in, then its driver ends"
        )
        study.wait_for(study.says("stopping as asked"), driver)
        assert study.control("resume")["message"].startswith("study 'tiny' is stopping, which is not taken back")
        study.open("0_2", "1_2")
        assert driver.wait(timeout=60 * MINUTES) == 130
    log = study.log.read_text()
    assert "interrupted (study.control asked for it): trials 0, 1 go on from their checkpoints" in log
    assert "Traceback" not in log
    assert study.states() == [("WAITING", 2), ("WAITING", 2)]
    assert not study.begun("0_3")
    assert not study.begun("2_1")

    seen = study.control("stop")
    assert seen["message"] == "nobody runs study 'tiny': there is nothing to stop"
    assert (seen["state"], seen["wish"], seen["driver"]) == ("not running", "", None)
    assert study.control("pause")["message"] == "nobody runs study 'tiny': its next driver starts paused"
    with study.driver() as driver:
        text = "is paused: no trial is given out until `python -m study.control tiny resume`"
        study.wait_for(study.says(text), driver)
        assert study.control("status")["state"] == "paused"
        assert not study.begun("0_3")
        study.control("resume")
        study.open("all")
        assert driver.wait(timeout=60 * MINUTES) == 0, study.log.read_text()
    assert study.states() == [("COMPLETE", 4)] * 3
    assert [[round_ for round_, _, _ in record.history] for record in study.records()] == [[1, 2, 3, 4]] * 3
    assert study.control("pause")["message"] == "study 'tiny' is finished: there is nothing to pause"
    assert study.control("status")["wish"] == ""
    client = MlflowClient(tracking_uri=default_uri(str(study.runs)))
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert sorted(run.data.tags.get("trial_number", "study") for run in runs) == ["0", "1", "2", "study"]


# Without a driver


@pytest.fixture
def ledger(tiny_spec: SpecMaker) -> Ledger:
    """A study of three trials that was begun: 0 is complete, 1 failed, 2 was left running in round 2."""
    spec = tiny_spec(limits={"trials": 4, "hours": 2, "failures": 3, "patience": 5})
    ledger = Ledger.open_or_create(spec, study_url(spec.storage.path), None)
    for number in range(3):
        overrides = dict(spec.baselines[0])
        config = spec.trial_config(overrides).model_dump(mode="json")
        ledger.add(overrides=overrides, config=config, rounds=4, baseline=True, params={}, distributions={})
        metrics = {"robust/acc": 0.75, "spread/robust/acc": 0.125}
        ledger.progress(number, {"round": 2, "time": 1, "metrics": metrics, "checkpoint": "/gone"})
    ledger.finish(0, TrialState.COMPLETE, (0.75,))
    ledger.finish(1, TrialState.FAIL, failure="the data are cursed")
    return ledger


@pytest.fixture
def run_control(
    ledger: Ledger, tiny_spec: SpecMaker, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str, storage: str | None = None) -> tuple[int, str, str]:
        code = main([*arguments, "--storage", storage or tiny_spec().storage.path])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def held(ledger: Ledger, **changes: Any) -> None:
    """A lease as another driver has it or left it."""
    lease_module._TABLE.create(ledger._storage._backend.engine, checkfirst=True)
    holder = {"id": "x", "host": "elsewhere", "place": "elsewhere/1/1", "pid": 4321, "started": "1"}
    assert Lease(ledger._storage._backend.engine, 1, "tiny")._insert(json.dumps(holder))
    with ledger._storage._backend.engine.begin() as connection:
        connection.execute(sa.update(lease_module._TABLE).values(**changes))


RunControl = Callable[..., tuple[int, str, str]]


def test_status_is_one_readable_page(ledger: Ledger, run_control: RunControl) -> None:
    held(ledger, heartbeat=time.time(), seconds=1800)
    code, out, err = run_control("tiny", "status")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:2] == ["study tiny", "state running"]
    assert lines[2].startswith("driver process 4321 on elsewhere, last heard of ")
    assert lines[3:] == [
        "trials 3 of 4: 1 complete, 1 failed, 1 running",
        "failures 1; 3 are put up with",
        "hours 0.50 used of 2",
        "patience 0 of 5 trials without a better one",
        "best trial 0: robust/acc 0.750 ± 0.125",
        "open trial 2: round 2/4",
    ]


def test_status_for_machines(ledger: Ledger, run_control: RunControl) -> None:
    held(ledger, heartbeat=time.time(), seconds=3600)
    seen = json.loads(run_control("tiny", "--json")[1])
    assert (seen["study"], seen["state"], seen["wish"]) == ("tiny", "running", "")
    assert seen["trials"] == {"budget": 4, "complete": 1, "pruned": 0, "fail": 1, "running": 1, "waiting": 0}
    assert (seen["failures"], seen["hours"]) == ({"count": 1, "limit": 3}, {"used": 1.0, "limit": 2})
    assert seen["best"] == {"number": 0, "metrics": {"robust/acc": 0.75}, "spread": {"robust/acc": 0.125}}
    assert seen["open"] == [{"number": 2, "at_work": True, "round": 2, "rounds": 4}]


def test_a_driver_that_is_gone_is_told_from_one_that_is_silent(ledger: Ledger, run_control: RunControl) -> None:
    """Trial 2 is RUNNING in the database, and yet nobody is at work on it."""
    held(ledger, heartbeat=time.time() - 600)
    seen = run_control("tiny")[1]
    assert "unknown: its driver has not been heard of" in seen
    assert "process 4321 on elsewhere, last heard of 10 min ago; if it is gone, add --takeover" in seen
    assert "stops if its driver, process 4321 on elsewhere," in run_control("tiny", "stop")[1]
    assert ledger.control == "stop"  # a driver that only could not be heard still heeds it
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = {"id": "x", "host": "here", "place": lease_module._place(), "pid": dead.pid, "started": "1"}
    with ledger._storage._backend.engine.begin() as connection:
        connection.execute(sa.update(lease_module._TABLE).values(holder=json.dumps(here), heartbeat=time.time()))
    assert json.loads(run_control("tiny", "--json")[1])["wish"] == ""  # the next driver does not heed it
    seen = run_control("tiny")[1]
    assert re.search(rf"process {dead.pid} on here is gone, last heard of \d+ s ago", seen), seen
    assert "not running; its command goes on with it" in seen
    assert "trial 2: round 2/4, waits" in seen


def test_wishes_for_a_study_that_nobody_runs(ledger: Ledger, run_control: RunControl) -> None:
    assert run_control("tiny", "resume")[:2] == (0, "study 'tiny' is not paused\n")
    assert run_control("tiny", "stop")[:2] == (0, "nobody runs study 'tiny': there is nothing to stop\n")
    assert ledger.control == ""
    assert run_control("tiny", "pause")[:2] == (0, "nobody runs study 'tiny': its next driver starts paused\n")
    assert run_control("tiny", "pause")[:2] == (0, "study 'tiny' is asked to pause already\n")
    assert "a pause is kept for its next driver" in run_control("tiny")[1]
    assert "it is still paused for its next driver" in run_control("tiny", "stop")[1]
    assert ledger.control == "pause"
    code, out, _ = run_control("tiny", "resume")
    assert (code, out) == (0, "the pause is over, but nobody runs study 'tiny': its command goes on with it\n")
    assert ledger.control == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny", "halt"), "unknown action 'halt'; there are status, pause, resume, stop, enqueue, backup, restore\n"),
        (("other", "pause"), "there is no study 'other'; known: tiny\n"),
    ],
)
def test_bad_input_is_one_line_and_2(arguments: tuple[str, ...], message: str, run_control: RunControl) -> None:
    assert run_control(*arguments) == (2, "", message)


def test_a_missing_database_is_not_made(run_control: RunControl, tmp_path: Path) -> None:
    code, out, err = run_control("tiny", "pause", storage=str(tmp_path / "nowhere"))
    assert (code, out) == (2, "")
    assert err == f"there is no study database at {tmp_path / 'nowhere' / 'studies.db'}\n"
    assert not (tmp_path / "nowhere").exists()


def test_the_database_may_be_named_by_the_environment(
    ledger: Ledger, run_control: RunControl, tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARDMVC_STUDY_DB", study_url(tiny_spec().storage.path).reveal())
    assert run_control("tiny", "pause", storage="/nowhere")[0] == 0
    assert ledger.control == "pause"
    monkeypatch.setenv("ARDMVC_STUDY_DB", "postgresql+psycopg://me:s3cret@127.0.0.1:1/studies")
    code, out, err = run_control("tiny", "pause")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "cannot reach the study database" in err
    assert "s3cret" not in err


def test_it_answers_without_ray_and_torch(ledger: Ledger, tiny_spec: SpecMaker) -> None:
    code = (
        "import sys\n"
        "from study.control import main\n"
        "main(sys.argv[1:])\n"
        "print(sorted({'ray', 'torch', 'mlflow'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, "tiny", "status", "--storage", tiny_spec().storage.path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
