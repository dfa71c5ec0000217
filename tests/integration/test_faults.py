"""Faults made for real, and what must hold after each: the budgeted trials, none running, none twice, the same best.

Drivers, workers, servers and disks here are real; a fault ends, stops or fills them. `FAULT_TABLE=file` collects what
each one cost.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_study import TRIALS, FaultStudy, Outcome, family, is_alive, note, process_of
from object_store import ObjectStore
from postgres import Postgres
from staged_trainables import ROUNDS

from study.control import main as control
from study.tracking.address import make_sqlite
from study.tracking.mlflow_client import check_reachable
from study.tracking.tracker import default_uri

RANDOM = {"sampler": {"name": "random"}}


def undisturbed(folder: Path, changes: dict[str, Any]) -> Outcome:
    """The same study without a fault."""
    study = FaultStudy(folder, changes=changes)
    assert study.finish(ROUND_SECONDS="0") == 0, study.output
    outcome = study.check(study.outcome().best)
    assert sum(outcome.repeated.values()) == 0
    return outcome


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, float]:
    """The best trial, drawn by TPE, and its score."""
    return undisturbed(tmp_path_factory.mktemp("tpe"), {}).best


@pytest.fixture(scope="module")
def at_random(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Drawn at random, so that a trial which fails changes no other."""
    return undisturbed(tmp_path_factory.mktemp("random"), RANDOM)


class Clock:
    """How long it takes from a fault until a round is completed that was not before."""

    def __init__(self, study: FaultStudy) -> None:
        self._study, self._begin, self._known = study, time.monotonic(), set(study.rounds())

    def until_new_round(self, driver: "subprocess.Popen[str]", *, new_worker: bool = False) -> float:
        """Args: new_worker: what workers of before the fault still write does not count."""
        done = {(number, round_) for number, round_, _, _ in self._known}
        before = {pid for _, _, pid, _ in self._known} if new_worker else set()
        self._study.until(
            lambda: any((n, r) not in done and pid not in before for n, r, pid, _ in self._study.rounds()), driver
        )
        return time.monotonic() - self._begin


def kill_driver(driver: "subprocess.Popen[str]") -> None:
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()


@pytest.mark.slow
def test_a_driver_killed_ten_times_at_random_moments(tmp_path: Path, best: tuple[int, float]) -> None:
    study = FaultStudy(tmp_path)
    moments = random.Random(20261124)
    kills, slowest = 0, 0.0
    while kills < 10:
        driver = study.start()
        clock = Clock(study)
        slowest = max(slowest, clock.until_new_round(driver, new_worker=True))
        # Anything from the round's record over the next one's middle to the trial's end.
        time.sleep(moments.uniform(0, 0.45))
        if driver.poll() is not None:
            break
        kill_driver(driver)
        kills += 1
    assert kills == 10
    assert study.finish() == 0, study.output
    note("driver SIGKILLed ten times", study.check(best), slowest)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder short enough for Ray's sockets, with something in it that is not the study's."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="f") as folder:
        # The last two are what others' programs and an older version of this one leave.
        for name in ("notes", "ray/session_2026-11-30_12-00-00_000000_1", "checkpoint-k2v9x1ab"):
            (Path(folder) / name).mkdir(parents=True)
        yield Path(folder)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        pytest.param("told:1", "driver SIGKILLed between the tell to the database and MLflow", marks=pytest.mark.slow),
        ("stored:1:2", "driver SIGKILLed between a checkpoint and its record"),
        pytest.param(
            "stored:2:4",
            "driver SIGKILLed between a trial's last checkpoint and its record",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_driver_killed_between_two_writes(
    tmp_path: Path, best: tuple[int, float], temporary: Path, fault: str, name: str
) -> None:
    study = FaultStudy(tmp_path, environment={"TMPDIR": str(temporary)})
    before = sorted(temporary.rglob("*"))
    assert study.finish(DRIVER_FAULT=fault) == -signal.SIGKILL
    names = {path.name for path in set(temporary.rglob("*")) - set(before)}
    assert "raylet.out" in names  # Ray's logs
    assert any(name.startswith("trial_00000") for name in names)  # and Tune's folder
    driver = study.start()
    seconds = Clock(study).until_new_round(driver, new_worker=True)
    assert study.wait(driver) == 0, study.output
    left = study.check(best)
    assert sum(left.repeated.values()) == 0  # a round that is stored is taken up, recorded or not
    assert sorted(temporary.rglob("*")) == before
    note(name, left, seconds)


def test_a_worker_that_is_killed(tmp_path: Path, best: tuple[int, float]) -> None:
    study = FaultStudy(tmp_path)
    driver = study.start()
    study.until_round(6, driver)
    number, _, pid, _ = study.rounds()[-1]
    os.kill(pid, signal.SIGKILL)
    seconds = Clock(study).until_new_round(driver, new_worker=True)
    assert study.wait(driver) == 0, study.output
    left = study.check(best)
    (attempt,) = left.records[number].attempts
    assert "died" in attempt.reason
    assert not attempt.lost
    note("worker SIGKILLed", left, seconds)


def stopped(driver: "subprocess.Popen[str]") -> bool:
    return Path(f"/proc/{driver.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@pytest.mark.slow
def test_a_driver_that_wakes_up_after_it_was_taken_over(tmp_path: Path, best: tuple[int, float]) -> None:
    """It was stopped between looking at its lease and writing; what it had in hand is not written."""
    study = FaultStudy(tmp_path)
    first = study.start(DRIVER_FAULT="stopped:1:2", PLACE="another machine")
    study.until(lambda: stopped(first), first)
    second = study.start("--takeover")
    seconds = Clock(study).until_new_round(second, new_worker=True)
    os.kill(first.pid, signal.SIGCONT)
    assert study.wait(first) == 130, study.output
    assert study.output.count("was taken over by another driver; this one has stopped") == 1
    assert study.wait(second) == 0, study.output
    assert "Traceback" not in study.output
    note("driver stopped before a write, and taken over", study.check(best), seconds)


@pytest.mark.slow
def test_a_damaged_database_and_a_backup_made_while_the_study_ran(
    tmp_path: Path, best: tuple[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = FaultStudy(tmp_path)
    monkeypatch.setenv("ARDMVC_STUDY_DB", study.url)
    driver = study.start()
    study.until_round(10, driver)
    assert control(["tiny", "backup", str(tmp_path / "tiny.backup")]) == 0
    study.until_round(15, driver)
    kill_driver(driver)
    file = tmp_path / "runs" / "studies.db"
    os.truncate(file, file.stat().st_size // 2)
    assert study.finish() == 2
    said = study.output.splitlines()[-1]
    assert said.startswith(f"the study database {file} cannot be used: ")
    assert "Traceback" not in study.output

    (tmp_path / "damaged").mkdir()
    for part in list(file.parent.glob("studies.db*")):
        part.rename(tmp_path / "damaged" / part.name)
    assert control(["tiny", "restore", str(tmp_path / "tiny.backup")]) == 0
    assert 9 <= sum(record.round for record in study.records()) < 15  # the tenth may not have been recorded yet
    driver = study.start()
    seconds = Clock(study).until_new_round(driver, new_worker=True)
    assert study.wait(driver) == 0, study.output
    note("database damaged, restored from a backup", study.check(best), seconds)


@pytest.mark.slow
def test_two_drivers_on_one_study(tmp_path: Path, best: tuple[int, float]) -> None:
    """They start at one moment on a database that neither has made."""
    study = FaultStudy(tmp_path)
    drivers = [study.start(), study.start()]
    codes = sorted(study.wait(driver) for driver in drivers)
    assert codes == [0, 2], study.output
    assert "is being run by process" in study.output
    note("two drivers at once", study.check(best), 0.0)


@pytest.mark.slow
def test_a_driver_that_wakes_up_after_another_has_taken_over(tmp_path: Path, best: tuple[int, float]) -> None:
    """It was stopped, on a machine of its own, while a round waited to be sent to MLflow."""
    study = FaultStudy(tmp_path)
    first = study.start(DRIVER_FAULT="waiting:1:2", PLACE="elsewhere")
    try:
        stat = Path(f"/proc/{first.pid}/stat")
        study.until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", first)
        assert [record.round for record in study.records()] == [ROUNDS, 2]
        second = study.start("--takeover")
        seconds = Clock(study).until_new_round(second, new_worker=True)
        first.send_signal(signal.SIGCONT)
        assert study.wait(first) == 130, study.output
    finally:
        first.kill()
    assert "was taken over by another driver; this one has stopped" in study.output
    assert study.wait(second) == 0, study.output
    note("driver stopped, taken over, continued", study.check(best), seconds)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [3600, -3600])
def test_a_clock_that_jumps(tmp_path: Path, best: tuple[int, float], offset: int) -> None:
    """The clock of whoever looks at the lease is an hour wrong: the running driver is not taken for dead."""
    study = FaultStudy(tmp_path)
    driver = study.start(ROUND_SECONDS="3")
    study.until_round(1, driver)
    assert study.finish("--takeover", CLOCK_OFFSET=str(offset)) == 2
    assert f"is being run by process {driver.pid}" in study.output
    # Started again with the wrong clock, it goes on with what the right one wrote.
    kill_driver(driver)
    driver = study.start(CLOCK_OFFSET=str(offset))
    seconds = Clock(study).until_new_round(driver, new_worker=True)
    assert study.wait(driver) == 0, study.output
    note(f"clock jumps by {offset} s", study.check(best), seconds)


@pytest.mark.slow
def test_ctrl_c_lets_the_round_end(tmp_path: Path, best: tuple[int, float]) -> None:
    """As a terminal does it: every process of the group gets the signal."""
    study = FaultStudy(tmp_path)
    driver = study.start(ROUND_SECONDS="1.5")
    study.until(lambda: "round 2/4" in study.output and study.round_is_open, driver)
    os.killpg(driver.pid, signal.SIGINT)
    clock = Clock(study)
    seconds = clock.until_new_round(driver)
    assert study.wait(driver) == 130, study.output
    assert "go on from their checkpoints with the same command" in study.output
    waiting = [record for record in study.records() if not record.finished]
    assert [record.state for record in waiting] == ["WAITING"]
    done = [round_ for number, round_, _, _ in study.rounds() if number == waiting[0].number]
    assert waiting[0].round == max(done)
    assert study.finish() == 0, study.output
    left = study.check(best)
    assert sum(left.repeated.values()) == 0
    note("Ctrl-C", left, seconds)


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, best: tuple[int, float]) -> None:
    study = FaultStudy(tmp_path)
    driver = study.start(ROUND_SECONDS="30")
    study.until(lambda: "trial 0  started" in study.output, driver)
    os.killpg(driver.pid, signal.SIGINT)
    study.until(lambda: "Ctrl-C again" in study.output, driver)
    os.killpg(driver.pid, signal.SIGINT)
    assert study.wait(driver) == 130, study.output
    assert [record.state for record in study.records()] == ["WAITING"]
    assert study.rounds() == []
    assert study.finish() == 0, study.output
    note("Ctrl-C twice", study.check(best), 0.0)


@pytest.mark.slow
def test_sigterm_as_a_spot_interruption(tmp_path: Path, best: tuple[int, float]) -> None:
    study = FaultStudy(tmp_path)
    driver = study.start(ROUND_SECONDS="1")
    study.until(lambda: "round 2/4" in study.output and study.round_is_open, driver)
    driver.send_signal(signal.SIGTERM)
    assert study.wait(driver) == 130, study.output
    assert "SIGTERM" in study.output
    assert [record.state for record in study.records() if not record.finished] == ["WAITING"]
    driver = study.start()
    seconds = Clock(study).until_new_round(driver, new_worker=True)
    assert study.wait(driver) == 0, study.output
    left = study.check(best)
    assert sum(left.repeated.values()) == 0
    note("SIGTERM", left, seconds)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raise_once", "hang_once"])
def test_a_trial_that_goes_wrong_once(tmp_path: Path, best: tuple[int, float], kind: str) -> None:
    limits = {"trials": TRIALS, "failures": 0, "concurrent": 1, "round_minutes": 0.05}
    study = FaultStudy(tmp_path, changes={"limits": limits})
    begin = time.monotonic()
    assert study.finish(TRIAL_FAULT=f"{kind}:1", ROUND_SECONDS="0.05") == 0, study.output
    left = study.check(best)
    assert [attempt.round for attempt in left.records[1].attempts] == [2]
    note(f"a trial: {kind}", left, time.monotonic() - begin)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words", "attempts"),
    [
        ("raise", "RuntimeError: the data are cursed", 3),
        ("nan", "without a finite robust/acc", 0),
        ("hang", "longer than limits.round_minutes = 0.05", 3),
    ],
)
def test_a_trial_that_goes_wrong_always(
    tmp_path: Path, at_random: Outcome, kind: str, words: str, attempts: int
) -> None:
    best = at_random.best
    number = next(record.number for record in at_random.records[1:] if record.number != best[0])
    limits = {"trials": TRIALS, "failures": 1, "concurrent": 1, "round_minutes": 0.05}
    study = FaultStudy(tmp_path, changes={**RANDOM, "limits": limits})
    begin = time.monotonic()
    assert study.finish(TRIAL_FAULT=f"{kind}:{number}", ROUND_SECONDS="0.05") == 0, study.output
    left = study.check(best, {number: words})
    assert [attempt.round for attempt in left.records[number].attempts] == [2] * attempts
    note(f"a trial: {kind}", left, time.monotonic() - begin)


# Workers and a Ray that do not answer

HUNG = {"trials": TRIALS, "failures": 0, "concurrent": 1, "round_minutes": 0.05}


@pytest.mark.slow
def test_a_worker_that_is_stopped(tmp_path: Path, best: tuple[int, float]) -> None:
    """It runs no watch of its own any more: the driver misses its heartbeat, says so and ends it."""
    study = FaultStudy(tmp_path, changes={"limits": HUNG})
    driver = study.start(SILENT_SECONDS="14")
    study.until_round(6, driver)
    number, _, pid, _ = study.rounds()[-1]
    os.kill(pid, signal.SIGSTOP)
    clock = Clock(study)
    study.until(lambda: "worker of trial " in study.output, driver)
    seconds = clock.until_new_round(driver, new_worker=True)
    assert study.wait(driver) == 0, study.output
    assert re.search(r"worker of trial \d silent for \d+ s", study.output)
    left = study.check(best)
    (attempt,) = [attempt for record in left.records for attempt in record.attempts]
    assert re.fullmatch(r"its worker was silent for \d+ s and was ended", attempt.reason)
    assert left.records[number].attempts == (attempt,) or left.records[number + 1].attempts == (attempt,)
    assert not is_alive(pid)
    note("worker SIGSTOPped", left, seconds)


@pytest.mark.slow
def test_ctrl_c_ends_a_study_whose_worker_is_stopped(tmp_path: Path, best: tuple[int, float]) -> None:
    """Without limits: one is enough, and what the worker held is given back."""
    study = FaultStudy(tmp_path)
    driver = study.start(ROUND_SECONDS="1.5")
    study.until(lambda: "round 2/4" in study.output and study.round_is_open, driver)
    before = family(driver.pid)
    os.kill(study.rounds()[-1][2], signal.SIGSTOP)
    driver.send_signal(signal.SIGINT)
    begin = time.monotonic()
    assert study.wait(driver) == 130, study.output
    seconds = time.monotonic() - begin
    assert seconds < 90, study.output
    assert re.search(r"open rounds come to their end first, for which they have \d+ s;", study.output)
    assert [record.state for record in study.records() if not record.finished] == ["WAITING"]
    study.until(lambda: not any(map(is_alive, before)))
    assert study.finish() == 0, study.output
    note("Ctrl-C, worker SIGSTOPped", study.check(best), seconds)


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        pytest.param(
            "gcs_server",
            signal.SIGKILL,
            r"Ray's head on this machine \(gcs_server, process \d+\) was ended by SIGKILL",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "raylet",
            signal.SIGKILL,
            r"Ray's node on this machine \(raylet, process \d+\) was ended by SIGKILL",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "gcs_server", signal.SIGSTOP, r"Ray's head at \S+ has not answered for 3\d s", marks=pytest.mark.slow
        ),
        pytest.param("raylet", signal.SIGSTOP, "Ray's node on this machine is dead", marks=pytest.mark.slow),
    ],
)
def test_a_ray_that_dies(
    tmp_path: Path, best: tuple[int, float], name: str, number: signal.Signals, words: str
) -> None:
    """The driver says so in a line, ends in order within seconds, and leaves none of Ray's processes behind."""
    study = FaultStudy(tmp_path)
    # A head takes a node for dead after half a minute, in which a stopped node's workers go on.
    driver = study.start(ROUND_SECONDS="1" if number == signal.SIGKILL else "6")
    study.until_round(6, driver)
    before = family(driver.pid)
    victim = process_of(driver, name)
    assert victim is not None
    said = len(study.output)
    os.kill(victim, number)
    begin = time.monotonic()
    assert study.wait(driver) == 1, study.output
    seconds = time.monotonic() - begin
    # Without a watch, Ray ends the process after a minute, or never.
    assert seconds < (30 if number == signal.SIGKILL else 150), study.output
    lines = [line for line in study.output[said:].splitlines() if not re.match(r"\[\d\d:\d\d:\d\d\] trial ", line)]
    assert re.match(words, lines[-1])
    assert number != signal.SIGKILL or len(lines) == 1, lines
    for text in ("(raylet)", ".cc:", ".h:", "Traceback"):  # Ray's own way to say it
        assert text not in study.output, study.output
    open_states = {record.state for record in study.records() if not record.finished}
    # A call into a head that is stopped may hold the driver up until it has to end as it is.
    assert open_states in ([{"WAITING"}] if number == signal.SIGKILL else [{"WAITING"}, {"RUNNING"}])
    study.until(lambda: not any(map(is_alive, before)))
    assert study.finish() == 0, study.output
    left = study.check(best)
    assert sum(left.repeated.values()) == 0
    note(f"{name} gets {number.name}", left, seconds)


@pytest.mark.slow
def test_a_node_that_is_stopped_at_the_end_does_not_hold_the_driver_up(tmp_path: Path, best: tuple[int, float]) -> None:
    """Ray's own shutdown waits for its answer without end."""
    study = FaultStudy(tmp_path)
    driver = study.start(ROUND_SECONDS="1")
    last = TRIALS - 1
    study.until(lambda: any(record.number == last and record.round >= 2 for record in study.records()), driver)
    before = family(driver.pid)
    victim = process_of(driver, "raylet")
    assert victim is not None
    os.kill(victim, signal.SIGSTOP)
    begin = time.monotonic()
    assert study.wait(driver) == 0, study.output
    study.until(lambda: not any(map(is_alive, before)))
    note("raylet gets SIGSTOP at the end", study.check(best), time.monotonic() - begin)


@pytest.mark.slow
def test_a_ray_that_dies_under_a_driver_that_is_stuck_in_it(tmp_path: Path, best: tuple[int, float]) -> None:
    """The watch ends the process where it stands, and gives the lease back."""
    study = FaultStudy(tmp_path)
    driver = study.start(DRIVER_FAULT="stuck:1:2")
    study.until(lambda: any(record.number == 1 and record.round == 2 for record in study.records()), driver)
    before = family(driver.pid)
    victim = process_of(driver, "gcs_server")
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    begin = time.monotonic()
    assert study.wait(driver) == 1, study.output
    seconds = time.monotonic() - begin
    assert seconds < 50, study.output
    assert "was ended by SIGKILL; the same command goes on from here" in study.output.splitlines()[-1]
    study.until(lambda: not any(map(is_alive, before)))
    assert study.finish() == 0, study.output
    note("gcs_server gets SIGKILL, driver stuck", study.check(best), seconds)


# Stores that are away


@pytest.fixture
def pause() -> Callable[[float], None]:
    """How long an outage lasts is what the test is about."""
    return time.sleep


@pytest.mark.slow
def test_postgresql_stopped_for_twenty_seconds(
    tmp_path: Path, best: tuple[int, float], postgres: Postgres, pause: Callable[[float], None]
) -> None:
    """Both the study's database and MLflow's."""
    names = {"ARDMVC_STUDY_DB": postgres.url("outage"), "MLFLOW_TRACKING_URI": postgres.url("outage_mlflow")}
    study = FaultStudy(tmp_path, environment=names)
    driver = study.start()
    study.until_round(6, driver)
    postgres.stop()
    pause(20)
    postgres.start()
    seconds = Clock(study).until_new_round(driver)
    assert study.wait(driver) == 0, study.output
    left = study.check(best)
    assert "the study database does not answer" in study.output
    assert "the study database answers again" in study.output
    assert sum(left.repeated.values()) == 0
    note("PostgreSQL stopped for 20 s", left, seconds)


class TrackingServer:
    """`mlflow server` on a port of its own, which can go and come back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        stores = ["--backend-store-uri", default_uri(str(self._folder))]
        stores += ["--artifacts-destination", str(self._folder / "files")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [sys.executable, "-m", "mlflow", "server", *options, *stores]
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while check_reachable(self.url) is not None:
            assert time.monotonic() < deadline, (self._folder / "server.log").read_text()[-3000:]
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def tracking(tmp_path: Path) -> Iterator[TrackingServer]:
    folder = tmp_path / "tracking"
    make_sqlite(folder / "mlflow.db")
    server = TrackingServer(folder)
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_the_tracking_server_stopped_for_half_a_minute(
    tmp_path: Path, best: tuple[int, float], tracking: TrackingServer, pause: Callable[[float], None]
) -> None:
    study = FaultStudy(tmp_path / "study", environment={"MLFLOW_TRACKING_URI": tracking.url})
    driver = study.start(ROUND_SECONDS="5")
    study.until_round(6, driver)
    tracking.stop()
    before = len(study.rounds())
    pause(30)
    during = len(study.rounds()) - before
    # How long a server takes to start is not the study's matter: no round ends, and so the study does not, until then.
    hold = Path(f"{study.log}.hold")
    hold.touch()
    tracking.start()
    study.until(lambda: "answers again" in study.output, driver)
    hold.unlink()
    assert study.wait(driver) == 0, study.output
    left = study.check(best)
    assert during >= 5  # nothing waited for it
    assert sum(left.repeated.values()) == 0
    note("MLflow server stopped for 30 s", left, 0.0)


@pytest.mark.slow
def test_storage_that_refuses_writes_for_a_while(
    tmp_path: Path, best: tuple[int, float], store: ObjectStore, pause: Callable[[float], None]
) -> None:
    study = FaultStudy(tmp_path, environment=store.environment, storage="s3://studies/outage")
    driver = study.start()
    study.until_round(6, driver)
    store.refuses_writes = True
    study.until(lambda: store.refused > 0, driver)
    pause(10)
    known = len(study.rounds())
    store.refuses_writes = False
    seconds = Clock(study).until_new_round(driver)
    assert study.wait(driver) == 0, study.output
    left = study.check(best)
    assert known <= 8  # nothing counted as done while nothing could be stored
    assert sum(left.repeated.values()) == 0
    assert "for its storage" in study.output
    folders = {key.split("/")[3] for key in store.listing("outage/tiny/trial_00005") if key.endswith("manifest.json")}
    assert sorted(name[:12] for name in folders) == ["round_000003", "round_000004"]
    note("S3 refuses writes for 10 s", left, seconds)


@pytest.mark.slow
def test_a_disk_that_is_full(tmp_path: Path, best: tuple[int, float], pause: Callable[[float], None]) -> None:
    """Checkpoints, the study's database and MLflow's lie on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if (made := subprocess.run(mount, capture_output=True, check=False)).returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        names = {
            "ARDMVC_STUDY_DB": f"sqlite:///{disk}/studies.db",
            "MLFLOW_TRACKING_URI": f"sqlite:///{disk}/mlflow.db",
        }
        study = FaultStudy(tmp_path / "study", environment=names, storage=str(disk))
        driver = study.start()
        study.until_round(6, driver)
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(b"0" * (32 << 20))
        pause(6)
        filler.unlink()
        seconds = Clock(study).until_new_round(driver)
        assert study.wait(driver) == 0, study.output
        note("disk full for 6 s", study.check(best), seconds)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
