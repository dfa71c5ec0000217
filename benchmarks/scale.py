"""What a trial costs the driver as a study grows, against a real PostgreSQL; and how long a study takes to go on.

python benchmarks/scale.py [--trials 2000] [--concurrent 16] [--mlflow server|database|none] [--ray] [--json]

Without --ray the study's own code runs alone: its conductor is called as Ray would call it, with trials that take no
time, so that everything measured is the driver's. With --ray the whole stack runs, with an empty Trainable on this
machine. Both then start the study again in a new process and wait until it gives out its first new trial.

Needs the packages of the extra `dev`: PostgreSQL comes with one of them.
"""

import argparse
import contextlib
import json
import math
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import sqlalchemy

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]

from postgres import Postgres  # noqa: E402
from sweep_overhead import EmptyTrial  # noqa: E402

from study.database.engine import study_url  # noqa: E402
from study.database.ledger import Ledger  # noqa: E402
from study.driver.conductor import Conductor  # noqa: E402
from study.driver.live_table import LiveTable  # noqa: E402
from study.driver.ray_watch import RayWatch  # noqa: E402
from study.driver.run import run_study  # noqa: E402
from study.planning.optuna_side import make_pruner  # noqa: E402
from study.planning.suggestions import Suggestions  # noqa: E402
from study.records import TrialRecord, WorkerAway  # noqa: E402
from study.spec.study_spec import StudySpec, load_spec  # noqa: E402
from study.tracking.outbox import Parcel  # noqa: E402
from study.tracking.tracker import MLflowTracker, tracking_uri  # noqa: E402
from trainables.trainable import TrialTrainable  # noqa: E402
from trainables.trial import Report  # noqa: E402

WINDOW = 100
"""Trials over which figures are averaged."""
RAY_CONCURRENT = 2
METRICS = ("loss/total", "loss/ddc", "clean/acc", "clean/nmi", "clean/ari", "robust/acc", "robust/nmi", "robust/flip")


def score(point: Mapping[str, Any], number: int) -> float:
    """A smooth function of the point with some noise, so that the sampler has something to learn."""
    distance = sum(abs(math.log10(max(float(value), 1e-3)) - 0.3 * i) for i, value in enumerate(point.values()))
    return 1 / (1 + distance) + 1e-3 * math.sin(number)


class ScaleTrial(EmptyTrial):
    """An empty trial whose score depends on where it is in the space."""

    def __init__(self, rounds: int, goal: float) -> None:
        super().__init__()
        self.rounds, self.goal = rounds, goal

    def run_round(self) -> Report:
        self.round += 1
        return {**report(self.round, self.rounds, self.goal), "done": self.round == self.rounds}


class ScaleTrainable(TrialTrainable):
    def build(self, config: dict[str, Any]) -> ScaleTrial:
        model = config["model"]
        point = {name: model[name] for name in ("adversarial_weight", "mitigator_weight", "train_eps")}
        return ScaleTrial(config["epochs"] // config["evaluate_every"], score(point, 0))


def report(round_: int, rounds: int, goal: float) -> dict[str, Any]:
    metrics = dict.fromkeys(METRICS, goal * round_ / rounds)
    return {**metrics, "round": round_, "rounds": rounds, "seconds": 0.0, "budget": "b0d9e7"}


# Observers that measure


class Sent(MLflowTracker):
    """Counts what MLflow has got; requests are counted where they are made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.runs = self.points = self.busy = 0.0
        receiver = self._courier._receiver
        send = receiver.send

        def counted(parcel: Parcel) -> None:
            begin = time.perf_counter()
            send(parcel)
            self.busy += time.perf_counter() - begin
            self.runs += parcel.ended
            self.points += sum(len(metrics) + 1 for _, _, metrics in parcel.points)

        receiver.send = counted  # type: ignore[method-assign]

    @property
    def backlog(self) -> int:
        return len(self._courier.waiting())


class Windows:
    """An observer that notes time, processor time and memory whenever so many trials have ended."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.tracker: Sent | None = None
        self.statements = self.transactions = 0
        """Of this driver in the study's database, those of its lease included."""
        self._ended = 0
        self._last = self._now()

    def count(self, engine: sqlalchemy.engine.Engine) -> None:
        """Counts what goes to a database from now on."""

        def statement(*_: Any) -> None:
            self.statements += 1

        def transaction(*_: Any) -> None:
            self.transactions += 1

        sqlalchemy.event.listen(engine, "before_cursor_execute", statement)
        sqlalchemy.event.listen(engine, "begin", transaction)

    def _now(self) -> tuple[float, float, float, float, float]:
        """Wall clock, processor time of the main thread and of the process (all in ms), and the two counts."""
        seconds = time.perf_counter(), time.thread_time(), time.process_time()
        wall, main, process = (1000 * second for second in seconds)
        return wall, main, process, self.statements, self.transactions

    def trial_ended(self, record: TrialRecord) -> None:
        self._ended += 1
        if self._ended % WINDOW:
            return
        now = self._now()
        names = ("wall_ms", "main_cpu_ms", "process_cpu_ms", "statements", "transactions")
        passed = [(after - before) / WINDOW for after, before in zip(now, self._last, strict=True)]
        self._last = now
        row = {"trials": self._ended, **dict(zip(names, passed, strict=True)), "rss_mib": _rss()}
        if not self.statements:  # with Ray, where they are not counted
            del row["statements"], row["transactions"]
        if self.tracker:
            row["backlog"] = self.tracker.backlog
        self.rows.append({name: round(value, 2) for name, value in row.items()})

    def trial_started(self, record: TrialRecord) -> None: ...
    def trial_reported(self, record: TrialRecord) -> None: ...
    def trial_paused(self, record: TrialRecord) -> None: ...
    def workers_away(self, away: Mapping[int, WorkerAway]) -> None: ...
    def rounds_at(self, places: Mapping[int, Any]) -> None: ...
    def tick(self) -> None: ...
    def close(self) -> None: ...


def _rss() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# The study


def scale_spec(arguments: argparse.Namespace, trials: int) -> StudySpec:
    concurrent = RAY_CONCURRENT if arguments.ray else arguments.concurrent
    sets = [f"storage.path={arguments.folder}", "name=scale", f"limits.concurrent={concurrent}", "limits.hours=24"]
    sets += [f"trial.epochs={arguments.rounds}", "trial.evaluate_every=1", "trial.repeats=1"]
    sets += [f"pruner.name={arguments.pruner}", *arguments.sets]
    return load_spec("ar_dmvc_am.yaml", sets, trials)


def open_study(
    spec: StudySpec, mlflow: bool, windows: Windows, stream: TextIO
) -> tuple[Ledger, Conductor, Sent | None, LiveTable]:
    """What `study.driver.run` does between its checks and Ray."""
    ledger = Ledger.open_or_create(spec, study_url(spec.storage.path), make_pruner(spec.pruner_options(), 2))
    ledger.acquire()
    records = ledger.records()
    ledger.adopt(spec)
    tracker = None
    if mlflow:
        artifacts = str(Path(spec.storage.path) / "mlartifacts")
        uri = tracking_uri(spec.storage.path)
        tracker = Sent(ledger.spec, uri=uri, study_name=spec.name, artifact_root=artifacts, identity=ledger.uid)
        tracker.reconcile(records)
    table = LiveTable(spec.objectives, spec.limits.trials, records, stream=stream)
    observers: list[Any] = [table, *([tracker] if tracker else []), windows]
    folder, workers = str(Path(spec.storage.path) / spec.name), RayWatch(ledger.uid, print)
    conductor = Conductor(spec, ledger, Suggestions(spec), observers, folder, workers)
    windows.tracker = tracker
    windows.count(ledger._storage._backend.engine)
    return ledger, conductor, tracker, table


def play(conductor: Conductor, spec: StudySpec, until: int) -> None:
    """Calls the conductor as Ray would: as many trials side by side as the spec says, round by round, in turn."""
    open_trials: dict[str, tuple[int, int, float]] = {}
    serial = ended = 0
    while ended < until:
        while len(open_trials) < spec.limits.concurrent:
            trial_id = f"t{serial}"
            given = conductor.next(trial_id)
            if not isinstance(given, dict):
                break
            serial += 1
            model = json.loads(given["config"])["model"]
            point = {path: model[path.partition(".")[2]] for path in spec.space}
            open_trials[trial_id] = (given["number"], 0, score(point, given["number"]))
        for trial_id, (number, round_, goal) in list(open_trials.items()):
            conductor.tick()
            rounds = spec.trial_config({}).rounds
            place = f"{spec.storage.path}/scale/trial_{number:05d}/round_{round_ + 1:06d}-abcdef01"
            conductor.reported(number, {**report(round_ + 1, rounds, goal), "checkpoint": place})
            stop = round_ + 1 < rounds and conductor.should_stop(number)
            if not stop and round_ + 1 < rounds:
                open_trials[trial_id] = (number, round_ + 1, goal)
                continue
            conductor.ended(trial_id, error=False)
            del open_trials[trial_id]
            ended += 1
            if conductor.error:
                raise conductor.error
            if ended == until:
                return


def simulate(arguments: argparse.Namespace) -> dict[str, Any]:
    """The driver's code without Ray, to the end of the trials; some are open then, as when a driver is stopped."""
    spec = scale_spec(arguments, arguments.trials + arguments.concurrent)
    windows = Windows()
    with open(os.devnull, "w") as stream:
        ledger, conductor, tracker, table = open_study(spec, arguments.mlflow != "none", windows, stream)
        begin = time.perf_counter()
        play(conductor, spec, arguments.trials)
        busy = time.perf_counter() - begin
        found: dict[str, Any] = {"windows": windows.rows, "seconds": round(busy, 1)}
        conductor.interrupt()
        table.close()
    if tracker:
        found |= {"mlflow_runs_while_driving": int(tracker.runs), "backlog_at_end": tracker.backlog}
        begin = time.perf_counter()
        while tracker.backlog:
            time.sleep(0.05)
        found |= {"mlflow_drain_s": round(time.perf_counter() - begin, 1), "mlflow_sending_s": round(tracker.busy, 1)}
        runs, points = tracker.runs / tracker.busy, tracker.points / tracker.busy
        found |= {"mlflow_runs_per_s": round(runs, 1), "mlflow_points_per_s": round(points)}
        begin = time.perf_counter()
        tracker.close(timeout=600)
        found["mlflow_close_s"] = round(time.perf_counter() - begin, 1)
    ledger.release()
    return found


def run_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole stack, to its end."""
    spec = scale_spec(arguments, arguments.trials)
    windows = Windows()
    show = LiveTable.trial_ended

    def noted(self: LiveTable, record: TrialRecord) -> None:
        show(self, record)
        windows.trial_ended(record)

    begin = time.perf_counter()
    LiveTable.trial_ended = noted  # type: ignore[method-assign]
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        code = run_study(spec, trainable=ScaleTrainable)
    assert code == 0, f"the study ended with {code}"
    return {"windows": windows.rows, "seconds": round(time.perf_counter() - begin, 1)}


# Going on in a new process


def go_on(arguments: argparse.Namespace) -> None:
    """The second process: goes on with the study as its command would."""
    if arguments.ray:
        spec = scale_spec(arguments, arguments.trials + 1)
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            run_study(spec, trainable=ScaleTrainable)
        return
    spec = scale_spec(arguments, arguments.trials + arguments.concurrent + 1)
    ledger, conductor, tracker, _ = open_study(spec, arguments.mlflow != "none", Windows(), sys.stderr)
    for serial in range(arguments.concurrent + 1):
        conductor.next(f"t{serial}")
    conductor.interrupt()
    if tracker:
        tracker.close(timeout=600)
    ledger.release()


def resume(arguments: argparse.Namespace, options: list[str]) -> dict[str, Any]:
    """Seconds from the start of a new process to its first trial, and to its first new one."""
    command = [sys.executable, str(Path(__file__).resolve()), *options, "--folder", arguments.folder, "--go-on"]
    new = arguments.trials + (0 if arguments.ray else arguments.concurrent)
    begin = time.perf_counter()
    given: dict[int, float] = {}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if started := re.search(r"trial (\d+)  started", line):
                given.setdefault(int(started[1]), time.perf_counter() - begin)
    assert process.returncode == 0, "".join(said[-20:])
    whole = time.perf_counter() - begin
    first, first_new = min(given.values()), min(at for number, at in given.items() if number >= new)
    return {"first_trial_s": round(first, 1), "first_new_trial_s": round(first_new, 1), "process_s": round(whole, 1)}


# Servers


@contextlib.contextmanager
def servers(arguments: argparse.Namespace) -> Iterator[None]:
    """PostgreSQL, and MLflow's server before it; the environment names both."""
    folder = Path(arguments.folder)
    (folder / "postgres").mkdir()
    with Postgres(folder / "postgres") as postgres, contextlib.ExitStack() as stack:
        os.environ["ARDMVC_STUDY_DB"] = postgres.url("studies")
        if arguments.mlflow == "server":
            os.environ["MLFLOW_TRACKING_URI"] = stack.enter_context(mlflow_server(postgres.url("mlflow"), folder))
        elif arguments.mlflow == "database":
            os.environ["MLFLOW_TRACKING_URI"] = postgres.url("mlflow")
        yield


@contextlib.contextmanager
def mlflow_server(database: str, folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "mlartifacts")]
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "mlflow.log").read_text()[-3000:]) from None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--concurrent", type=int, default=16, help="trials open at a time; with --ray it is 2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pruner", default="none", help="as in a study's YAML, with its default settings")
    kinds = "its own server, its database alone, or none (with --ray: the study's sqlite file)"
    parser.add_argument("--mlflow", choices=("server", "database", "none"), default="server", help=kinds)
    parser.add_argument("--set", dest="sets", action="append", default=[], help="as for python -m study.sweep")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    parser.add_argument("--go-on", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.go_on:
        go_on(arguments)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        arguments.folder = folder
        with servers(arguments):
            figures = run_all(arguments) if arguments.ray else simulate(arguments)
            figures["resume"] = resume(arguments, sys.argv[1:])
    if arguments.json:
        print(json.dumps(figures))
        return
    print_figures(figures)


def print_figures(figures: Mapping[str, Any]) -> None:
    rows = figures["windows"]
    if rows:
        print("  ".join(f"{name:>14}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:14g}" for value in row.values()))
    for name, value in figures.items():
        if name == "resume":
            print("\n".join(f"resume.{key:28} {seconds}" for key, seconds in value.items()))
        elif name != "windows":
            print(f"{name:35} {value}")


if __name__ == "__main__":
    main()
