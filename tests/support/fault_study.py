"""A study to which faults happen, and what must hold of it afterwards, as its database, MLflow and round log tell."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from staged_trainables import ROUNDS
from tiny_studies import ROOT, study_dict

from study.database.engine import LedgerError, study_url
from study.database.ledger import Ledger
from study.records import TrialRecord
from study.tracking.tracker import default_uri

SUPPORT = Path(__file__).parent
TRIALS = 6
MINUTES = 5


@dataclass
class Outcome:
    """What is left of a study."""

    records: list[TrialRecord]
    repeated: Counter[tuple[int, int]]
    """Rounds that were completed more than once, with how often beyond the first."""
    runs: dict[int, list[str]]
    """Trial → statuses of its MLflow runs."""
    steps: dict[int, list[int]]
    """Trial → rounds that MLflow has a point of."""
    parents: list[str]

    @property
    def best(self) -> tuple[int, float]:
        complete = [record for record in self.records if record.state == "COMPLETE"]
        top = max(complete, key=lambda record: record.values[0])
        return top.number, top.values[0]


@dataclass
class FaultStudy:
    """One study in its own folder, driven by real processes."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    storage: str | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "rounds.log"
        study = {
            "sampler": {"name": "tpe", "startup_trials": 3},
            "limits": {"trials": TRIALS, "failures": 1, "concurrent": 1},
            **self.changes,
        }
        whole = study_dict(self.folder, **study)
        if self.storage:
            whole["storage"] = {"path": self.storage}
        self.name = whole["name"]
        self.file = self.folder / "study.yaml"
        self.file.write_text(yaml.safe_dump(whole))

    @property
    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH", "")]))
        runs = {
            # Their place does not follow a storage that is a bucket, which is `runs` below the working folder.
            "ARDMVC_STUDY_DB": f"sqlite:///{self.folder / 'runs' / 'studies.db'}",
            "MLFLOW_TRACKING_URI": default_uri(str(self.folder / "runs")),
        }
        return {**os.environ, **runs, "PYTHONPATH": path, "ROUND_LOG": str(self.log), **self.environment}

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Starts a driver in a session of its own, its output in `driver.log`."""
        with (self.folder / "driver.log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, str(SUPPORT / "fault_driver.py"), str(self.file), *arguments],
                cwd=ROOT,
                env={**self._environment, **environment},
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def finish(self, *arguments: str, **environment: str) -> int:
        """Runs a driver to its end. Returns: its exit code."""
        return self.wait(self.start(*arguments, **environment))

    def wait(self, driver: "subprocess.Popen[str]") -> int:
        """Waits for a driver's end. Returns: its exit code."""
        return driver.wait(60 * MINUTES)

    @property
    def output(self) -> str:
        return (self.folder / "driver.log").read_text()

    def rounds(self) -> list[tuple[int, int, int, str]]:
        """(trial, round, pid, node) of every completed round, in order."""
        if not self.log.exists():
            return []
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [(int(number), int(round_), int(pid), node) for number, round_, pid, node, *_ in lines]

    @property
    def round_is_open(self) -> bool:
        """Whether a worker has begun a round that is not completed; of a study without a fault so far."""
        begun = Path(f"{self.log}.begun")
        return begun.exists() and len(begun.read_text().splitlines()) > len(self.rounds())

    def side_by_side(self) -> int:
        """The largest number of rounds that were at work at one moment."""
        spans = [tuple(map(float, line.split()[4:])) for line in self.log.read_text().splitlines()]
        return max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)

    def until(self, condition: Callable[[], bool], driver: "subprocess.Popen[str] | None" = None) -> None:
        """Waits until a condition holds. Raises: AssertionError if the driver ends before, or it takes minutes."""
        deadline = time.monotonic() + 60 * MINUTES
        while not condition():
            if driver is not None and driver.poll() is not None:
                raise AssertionError(f"the driver ended with {driver.returncode}:\n{self.output[-3000:]}")
            assert time.monotonic() < deadline, f"nothing happened:\n{self.output[-3000:]}"
            time.sleep(0.02)

    def until_round(self, count: int, driver: "subprocess.Popen[str] | None" = None) -> None:
        """Waits until so many rounds were completed, over all trials."""
        self.until(lambda: len(self.rounds()) >= count, driver)

    @property
    def url(self) -> str:
        return self._environment.get("ARDMVC_STUDY_DB") or study_url(self.folder / "runs").reveal()

    def records(self) -> list[TrialRecord]:
        """The trials in the database; none before there is one."""
        try:
            return Ledger.open_existing(self.name, self.url).records()
        except LedgerError:
            return []

    def outcome(self) -> Outcome:
        """Counts what is left, each store read with a client of its own."""
        import mlflow

        environment = self._environment
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            if name in environment:
                os.environ[name] = environment[name]
        client = mlflow.MlflowClient(tracking_uri=environment["MLFLOW_TRACKING_URI"])
        found = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
        children = [run for run in found if run.data.tags.get("role") == "trial"]
        runs: dict[int, list[str]] = {}
        steps: dict[int, list[int]] = {}
        for run in children:
            number = int(run.data.tags["trial_number"])
            runs.setdefault(number, []).append(run.info.status)
            history = client.get_metric_history(run.info.run_id, "clean/acc")
            steps.setdefault(number, []).extend(point.step for point in history)
        done = Counter((number, round_) for number, round_, _, _ in self.rounds())
        return Outcome(
            records=self.records(),
            repeated=Counter({key: count - 1 for key, count in done.items() if count > 1}),
            runs=runs,
            steps={number: sorted(found) for number, found in steps.items()},
            parents=[run.info.status for run in found if run.data.tags.get("role") == "study"],
        )

    def check(self, best: tuple[int, float] | None, failed: Mapping[int, str] | None = None) -> Outcome:
        """What must hold after every fault.

        Exactly the budgeted trials, none running and none twice; every round recorded once, and no completed one
        repeated more than once; MLflow in step with the database; the best trial that of a study without faults.

        Args: best: of the undisturbed study; None: there is none to compare with. failed: trial → words of its reason.
        """
        failed = failed or {}
        left = self.outcome()
        assert [record.number for record in left.records] == list(range(TRIALS))
        for record in left.records:
            assert record.state == ("FAIL" if record.number in failed else "COMPLETE"), record
            assert failed.get(record.number, "") in (record.failure or ""), record.failure
        assert max(left.repeated.values(), default=0) <= 1, left.repeated
        wanted = {number: ["FAILED" if number in failed else "FINISHED"] for number in range(TRIALS)}
        assert left.runs == wanted
        assert left.parents == ["FINISHED"]
        for number in set(range(TRIALS)) - failed.keys():
            assert [round_ for round_, _, _ in left.records[number].history] == list(range(1, ROUNDS + 1))
            assert left.steps[number] == list(range(1, ROUNDS + 1))
        assert best is None or left.best == best
        return left


def family(pid: int) -> dict[int, str]:
    """A process and all below it that are alive: process id → name, as Linux tells them."""
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        pid = waiting.pop()
        if is_alive(pid):
            with suppress(OSError):  # it ends while one looks
                found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
                for file in Path(f"/proc/{pid}/task").glob("*/children"):
                    waiting += map(int, file.read_text().split())
    return found


def process_of(driver: "subprocess.Popen[str]", name: str) -> int | None:
    """A process of that name among those of a driver's, such as `raylet` or `gcs_server`."""
    return next((pid for pid, found in family(driver.pid).items() if found == name), None)


def is_alive(pid: int) -> bool:
    """Whether the process is there, and no corpse that its parent has not looked at."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def note(fault: str, left: Outcome, seconds: float) -> None:
    """Adds a row to the table that `FAULT_TABLE` names, for people."""
    if not (file := os.environ.get("FAULT_TABLE")):
        return
    states = Counter(record.state for record in left.records)
    row = {
        "fault": fault,
        "trials": dict(states),
        "running": states["RUNNING"] + states["WAITING"],
        "doubles": sum(len(runs) - 1 for runs in left.runs.values()),
        "repeated_rounds": sum(left.repeated.values()),
        "seconds_to_recover": round(seconds, 1),
    }
    with open(file, "a") as table:
        table.write(json.dumps(row) + "\n")
