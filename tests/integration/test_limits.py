"""Limits end a study in order, say why, and let the same command go on; no test starts more than one Ray."""

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import sqlalchemy as sa
from staged_trainables import ROUNDS, Staged, StagedTrial

from study.database import lease as lease_module
from study.database.engine import study_url
from study.database.ledger import Ledger
from study.driver import StudyBroken
from study.driver import run as runner
from study.driver.conductor import Conductor, StopNow, WorkersGone
from study.driver.round_costs import RoundCosts
from study.driver.run import run_study
from study.driver.words import verdict
from study.planning.optuna_side import make_pruner
from study.planning.suggestions import Suggestions
from study.records import TrialRecord, WorkerAway
from study.spec.study_spec import StudySpec
from trainables.round_limit import RoundLimit
from trainables.trial import Report

SpecMaker = Callable[..., StudySpec]


@pytest.fixture(scope="module")
def one_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for every driver of this file: starting it is most of what a short run takes."""
    patch = pytest.MonkeyPatch()
    connect, stop = runner.connect, runner.stop_ray
    patch.setattr(runner, "connect", lambda address, spec: None if ray.is_initialized() else connect(address, spec))
    patch.setattr(runner, "stop_ray", lambda *_: None)
    yield
    patch.undo()
    stop(lambda: None, 0)


def open_ledger(spec: StudySpec) -> Ledger:
    return Ledger.open_or_create(spec, study_url(spec.storage.path), make_pruner(spec.pruner_options(), ROUNDS))


def records_of(spec: StudySpec) -> list[TrialRecord]:
    return open_ledger(spec).records()


class Cursed(Staged):
    """Every trial fails in its first round."""

    def step(self) -> Report:
        return {"round": 0, "rounds": ROUNDS, "done": True, "failure": "the data are cursed"}


class Falling(Staged):
    """Trial 1 is the best; each one after it is worse."""

    def build(self, config: dict[str, Any]) -> StagedTrial:
        return StagedTrial(self.number, 0.5 if self.number == 0 else 0.9 - 0.1 * self.number)


class Blocked(Staged):
    """After round 1 a file lies where the trial's folder was, until somebody takes it away."""

    def step(self) -> Report:
        report = super().step()
        folder = Path(self._checkpoints.folder)
        if report["round"] == 1 and not folder.with_name("mended").exists():
            folder.rename(folder.with_name("kept"))
            folder.touch()
        return report


class LosesStorage(Staged):
    """Loses its worker in round 2; the disk fails (a real EIO) the first AWAY times that it is built anew."""

    AWAY = 4

    def build(self, config: dict[str, Any]) -> StagedTrial:
        trial = super().build(config)
        kept = Path(f"{self._checkpoints.folder}.kept")
        builds = Path(f"{self._checkpoints.folder}.builds")
        builds.parent.mkdir(parents=True, exist_ok=True)
        with builds.open("a") as log:
            log.write("x")
        if len(builds.read_text()) == 2 + self.AWAY:
            for checkpoint in Path(self._checkpoints.folder).iterdir():
                shutil.rmtree(checkpoint)
                shutil.copytree(kept / checkpoint.name, checkpoint)
        return trial

    def step(self) -> Report:
        assert isinstance(self.trial, StagedTrial)
        kept = Path(f"{self._checkpoints.folder}.kept")
        if self.trial.round == 1 and not kept.exists():
            shutil.copytree(self._checkpoints.folder, kept)
            for checkpoint in Path(self._checkpoints.folder).iterdir():
                for file in checkpoint.iterdir():
                    if file.name != "manifest.json":
                        file.unlink()
                        file.symlink_to("/proc/self/mem")  # its first page cannot be read
                empty = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
                names = [file.name for file in checkpoint.iterdir() if file.name != "manifest.json"]
                (checkpoint / "manifest.json").write_text(json.dumps({"files": dict.fromkeys(names, empty)}))
            raise RuntimeError("a passing fault")
        return super().step()


class Steps:
    """A driver without Ray: trials are given out and end as the test says."""

    fault = ""

    def __init__(self, spec: StudySpec) -> None:
        self.spec, self.ledger = spec, open_ledger(spec)
        self.given: dict[int, dict[str, Any]] = {}
        self.heartbeats: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        self.followed: set[str] = set()
        self.away: list[Mapping[int, WorkerAway]] = []
        folder, suggestions = str(spec.storage.path), Suggestions(spec, ())
        self.conductor = Conductor(
            spec, self.ledger, suggestions, [self], folder=folder, workers=self, costs=RoundCosts(spec)
        )

    def give(self, name: str) -> int:
        given = self.conductor.next(name)
        assert isinstance(given, dict), given
        self.given[given["number"]] = given
        return int(given["number"])

    def report(self, number: int, round_: int, score: float = 0.5, seconds: float = 0.0) -> None:
        """Args: seconds: since the trial's begin."""
        metrics = {"robust/acc": score, "clean/acc": 1.0, "seconds": seconds}
        self.conductor.reported(number, {**metrics, "round": round_, "checkpoint": f"/round_{number}_{round_}"})

    # Its workers, which the test speaks for

    def follow(self, key: str) -> None:
        self.followed.add(key)

    def forget(self, key: str) -> None:
        self.followed.discard(key)

    def silence(self, key: str) -> float | None:
        assert key in self.followed
        return self.heartbeats.get(key)

    def waits_for(self, key: str) -> str:
        return self.notes.get(key, "")

    def place(self, key: str) -> None:
        """They say nothing of their rounds."""

    def be_silent(self, number: int, seconds: float) -> None:
        """The trial's worker was last heard of so many seconds ago."""
        self.heartbeats[self.given[number]["beat"]] = seconds
        self.look()

    # What it is told

    def rounds_at(self, places: Mapping[int, Any]) -> None:
        pass

    def workers_away(self, away: Mapping[int, WorkerAway]) -> None:
        self.away.append(away)

    def trial_started(self, record: TrialRecord) -> None: ...
    def trial_reported(self, record: TrialRecord) -> None: ...
    def trial_paused(self, record: TrialRecord) -> None: ...
    def trial_ended(self, record: TrialRecord) -> None: ...
    def tick(self) -> None: ...
    def close(self) -> None: ...

    # What happens to it

    def complete(self, name: str, score: float) -> None:
        number = self.give(name)
        self.finish(name, number, score)

    def finish(self, name: str, number: int, score: float) -> None:
        rounds = self.ledger.record(number).rounds
        self.report(number, rounds, score)
        self.conductor.ended(name, error=False)

    def fail(self, name: str, reason: str) -> None:
        number = self.give(name)
        self.conductor.reported(number, {"failure": reason, "round": 0})
        self.conductor.ended(name, error=False)

    def look(self) -> None:
        """Lets the driver see what it is asked for, as if time had passed."""
        self.conductor._last_tick = self.conductor._last_look = float("-inf")
        self.conductor.tick()

    def verdict(self) -> tuple[int, str]:
        return verdict(self.spec, self.conductor, self.conductor.interrupt(), False)


# A storage that is away


@pytest.mark.slow
def test_a_storage_that_is_lost_while_a_worker_is_built_is_no_fault_of_the_trial(
    tiny_spec: SpecMaker, one_ray: None
) -> None:
    """Ray tells of an exception in a constructor as of a worker that died, in words alone."""
    spec = tiny_spec(limits={"trials": 1, "failures": 0, "outage_minutes": 0.001})
    assert run_study(spec, trainable=LosesStorage) == 0
    (record,) = records_of(spec)
    assert (record.state, record.round) == ("COMPLETE", ROUNDS)
    assert "a passing fault" in record.attempts[0].reason
    assert [attempt.lost for attempt in record.attempts] == [False, *[True] * LosesStorage.AWAY]
    for attempt in record.attempts[1:]:
        assert "StorageAway: cannot read" in attempt.reason
        assert "Input/output error" in attempt.reason


def test_a_folder_that_is_blocked_stops_the_study_at_once_and_costs_no_trial(
    tiny_spec: SpecMaker, one_ray: None, tmp_path: Path
) -> None:
    """With ten minutes of patience for outages."""
    spec = tiny_spec(limits={"trials": 1, "failures": 0, "outage_minutes": 10})
    with pytest.raises(StudyBroken, match=r"stopped: .*StorageUnusable: cannot write .*Not a directory"):
        run_study(spec, trainable=Blocked)
    (record,) = records_of(spec)
    assert (record.finished, record.round, record.attempts) == (False, 1, ())
    study = tmp_path / "runs" / "tiny"
    (folder,) = study.glob("trial_*")
    folder.unlink()
    (study / "kept").rename(folder)
    (study / "mended").touch()
    assert run_study(spec, trainable=Blocked) == 0
    assert [record.state for record in records_of(spec)] == ["COMPLETE"]


# limits.patience


def test_patience_ends_the_study_early_and_more_of_it_goes_on(
    tiny_spec: SpecMaker, one_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """0.5, 0.8, 0.7, 0.6, 0.5, …: the best is trial 1, and two more have not been better after trial 3."""
    limits = {"trials": 8, "failures": 0, "patience": 2}
    assert run_study(tiny_spec(limits=limits), trainable=Falling) == 0
    said = capsys.readouterr().out
    assert "the best has not improved in 2 finished trials (limits.patience = 2), 4 trials were not run" in said
    assert [record.state for record in records_of(tiny_spec())] == ["COMPLETE"] * 4
    again = Steps(tiny_spec(limits=limits))
    assert again.conductor.next("a") == "finished"
    assert "(limits.patience = 2), 4 trials were not run" in again.verdict()[1]
    assert run_study(tiny_spec(limits={**limits, "patience": 4}), trainable=Falling) == 0
    assert "the best has not improved in 4 finished trials (limits.patience = 4), 2 trials" in capsys.readouterr().out
    assert [record.state for record in records_of(tiny_spec())] == ["COMPLETE"] * 6
    forever = Steps(tiny_spec(limits={"trials": 8, "failures": 0}))
    assert forever.give("a") == 6


def test_an_open_trial_that_turns_out_best_does_not_unsay_patience(tiny_spec: SpecMaker) -> None:
    """By then Ray has been told that there are no more trials."""
    steps = Steps(tiny_spec(limits={"trials": 8, "failures": 0, "patience": 1, "concurrent": 2}))
    steps.complete("a", 0.5)
    late = steps.give("b")
    steps.complete("c", 0.4)
    assert steps.conductor.next("d") == "finished"
    steps.finish("b", late, 0.9)
    assert steps.conductor.next("e") == "finished"
    code, said = steps.verdict()
    assert (code, "in 1 finished trials (limits.patience = 1), 5 trials were not run" in said) == (0, True)
    again = Steps(steps.spec)  # the next driver sees a study whose last trial is its best
    assert again.give("f") == 3


# limits.first_failures


def test_first_trials_that_all_fail_stop_the_study_until_that_is_mended(
    tiny_spec: SpecMaker, one_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_spec(limits={"trials": 5, "failures": 3, "first_failures": 2})
    assert run_study(spec, trainable=Cursed) == 1
    said = capsys.readouterr().out
    assert "stopped: the first 2 trials all failed: the data are cursed; the same command goes on" in said
    assert [record.state for record in records_of(spec)] == ["FAIL", "FAIL"]
    assert run_study(spec, trainable=Staged) == 0
    assert "stopped" not in capsys.readouterr().out
    assert [record.state for record in records_of(spec)] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_differing_reasons_are_counted(tiny_spec: SpecMaker) -> None:
    steps = Steps(tiny_spec(limits={"trials": 9, "failures": 9, "first_failures": 3}))
    steps.fail("a", "no such file")
    steps.fail("b", "the data are cursed")
    assert steps.conductor.limits.common_failure == ""
    steps.fail("c", "the data are cursed")
    assert steps.conductor.next("d") == "finished"
    code, said = steps.verdict()
    assert code == 1
    assert "the first 3 trials all failed: 2 × the data are cursed; 1 × no such file; the same command" in said
    assert "more failures" not in said


def test_one_success_among_the_first_is_enough(tiny_spec: SpecMaker) -> None:
    steps = Steps(tiny_spec(limits={"trials": 9, "failures": 9, "first_failures": 2}))
    steps.fail("a", "cursed")
    steps.complete("b", 0.5)
    for name in "cde":
        steps.fail(name, "cursed")
    assert not steps.conductor.over
    never = Steps(tiny_spec(name="never", limits={"trials": 9, "failures": 9, "first_failures": 0}))
    for name in "abc":
        never.fail(name, "cursed")
    assert not never.conductor.over


def test_a_trial_that_the_driver_before_left_done_is_not_the_first_of_this_one(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec(limits={"trials": 9, "failures": 9, "first_failures": 2})
    before = Steps(spec)
    number = before.give("a")
    before.report(number, before.ledger.record(number).rounds)  # killed here, before the last word
    after = Steps(spec)
    assert [record.state for record in after.ledger.records()] == ["COMPLETE"]
    after.fail("b", "cursed")
    assert after.conductor.limits.common_failure == ""
    after.fail("c", "cursed")
    assert after.conductor.limits.common_failure == "cursed"


def test_a_failure_beyond_the_allowed_ones_is_said_with_the_common_reason(tiny_spec: SpecMaker) -> None:
    """Mending alone would not let the same command go on."""
    steps = Steps(tiny_spec(limits={"trials": 9, "failures": 1, "first_failures": 2}))
    steps.fail("a", "cursed")
    steps.fail("b", "cursed")
    code, said = steps.verdict()
    assert code == 1
    assert "the first 2 trials all failed: cursed" in said
    assert "with more failures allowed: 2 trials failed, limits.failures is 1" in said


# limits.hours


def test_hours_count_over_all_drivers(tiny_spec: SpecMaker, one_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tiny_spec(limits={"trials": 2, "failures": 0, "hours": 0.5})
    ledger = open_ledger(spec)
    ledger.acquire()
    ledger.release()
    with ledger._storage._backend.engine.begin() as connection:
        connection.execute(sa.update(lease_module._TABLE).values(seconds=1801.0))
    assert run_study(spec, trainable=Staged) == 0
    said = capsys.readouterr().out
    assert "limits.hours = 0.5 is used up, 2 trials are missing; the same command with a larger limits.hours" in said
    assert records_of(spec) == []
    used = ledger.seconds
    assert used > 1801
    assert run_study(tiny_spec(limits={"trials": 2, "failures": 0, "hours": 1}), trainable=Staged) == 0
    assert [record.state for record in records_of(spec)] == ["COMPLETE", "COMPLETE"]
    assert 1801 < used < ledger.seconds < 3600


# limits.round_minutes


def limit_of(steps: Steps, number: int) -> RoundLimit:
    """As the trial's worker was given it."""
    return RoundLimit(**steps.given[number]["limit"])


def test_a_round_has_ten_times_the_longest_seen_and_the_next_driver_knows_it(tiny_spec: SpecMaker) -> None:
    """Rounds of 100, 100, 20 and, with the evaluation, 130 s."""
    spec = tiny_spec(limits={"trials": 4, "failures": 0, "concurrent": 3})
    steps = Steps(spec)
    first = steps.give("a")
    assert limit_of(steps, first).seconds(last=False) == 3600  # none was seen
    for round_, seconds in ((1, 100.0), (2, 200.0), (3, 220.0)):
        steps.report(first, round_, seconds=seconds)
    second = steps.give("b")
    assert steps.ledger.record(first).durations == (100.0, 100.0, 20.0)
    assert limit_of(steps, second).seconds(last=False) == 1000
    assert limit_of(steps, second).seconds(last=True) == 3600
    steps.report(first, 4, seconds=350.0)
    steps.conductor.ended("a", error=False)
    third = steps.give("c")
    assert (limit_of(steps, third).seconds(last=False), limit_of(steps, third).seconds(last=True)) == (1300, 1300)
    after = Steps(spec)
    assert limit_of(after, after.give("d")) == limit_of(steps, third)


def test_round_minutes_stand_and_nought_is_no_limit(tiny_spec: SpecMaker) -> None:
    for minutes, seconds in ((2, 120.0), (0, 0.0)):
        steps = Steps(tiny_spec(name=f"m{minutes}", limits={"trials": 2, "failures": 0, "round_minutes": minutes}))
        number = steps.give("a")
        steps.report(number, 1, seconds=5000.0)
        steps.conductor.ended("a", error=True)
        assert limit_of(steps, steps.give("b")).seconds(last=False) == seconds


def test_a_worker_that_its_own_limit_has_ended_is_said_to_have_hung(tiny_spec: SpecMaker) -> None:
    """Its watch ended the process; the driver, whose clock is set forward here, knows which limit it had."""
    for minutes, words in ((None, "a round took longer than 15 min, its limit while"), (15, "round_minutes = 15;")):
        limits = {"trials": 2, "failures": 0, "round_minutes": minutes}
        steps = Steps(tiny_spec(name=f"hung{minutes}", limits=limits))
        number = steps.give("a")
        steps.conductor.at_work(number)
        steps.conductor.placed(number)
        steps.conductor.reported(number, {"round": 1, "seconds": 90.0, "checkpoint": "/r1", "limit": 900.0})
        steps.conductor._open[number].heard -= 899
        steps.conductor.failing(number, "ActorDiedError: it died", lost=False)
        trial = steps.conductor._open[number]
        assert (trial.reason, trial.lost) == ("ActorDiedError: it died", False)
        steps.conductor._open[number].heard -= 2
        steps.conductor.failing(number, "ActorDiedError: it died", lost=False)
        assert words in steps.conductor._open[number].reason


# Workers that are silent


def test_a_worker_that_waits_for_its_storage_is_told_of_and_not_ended(tiny_spec: SpecMaker) -> None:
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0}))
    number = steps.give("a")
    steps.conductor.at_work(number)
    key = steps.given[number]["beat"]
    steps.notes[key] = "cannot write /data: Input/output error; see postgresql://me:s3cretword@host/x"
    steps.be_silent(number, 0.0)
    steps.conductor._listener._waiting[number] -= 700
    steps.look()
    first, second = (told[number] for told in steps.away)
    assert (first.kind, second.kind, round(second.seconds)) == ("waits", "waits", 700)
    assert first.reason.startswith("cannot write /data: Input/output error")
    assert "s3cretword" not in first.reason
    assert not steps.conductor.silenced(number)
    steps.notes[key] = ""
    steps.look()
    assert steps.away[2:] == [{}]


def test_a_storage_that_cannot_be_used_stops_the_study_and_fails_no_trial(tiny_spec: SpecMaker) -> None:
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0}))
    number = steps.give("a")
    steps.conductor.at_work(number)
    steps.conductor.failing(number, "StorageUnusable: cannot write /data: Not a directory", lost=False, unusable=True)
    steps.conductor.ended("a", error=True)
    with pytest.raises(StudyBroken, match="stopped: StorageUnusable: cannot write /data: Not a directory"):
        steps.conductor.tick()
    assert not steps.ledger.record(number).finished
    assert steps.ledger.record(number).attempts == ()


def test_a_silent_worker_is_told_of_and_ended_after_ten_minutes(tiny_spec: SpecMaker) -> None:
    """A process that was stopped runs no watch of its own."""
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0, "concurrent": 2}))
    first, second = steps.give("a"), steps.give("b")
    for number in (first, second):
        steps.conductor.at_work(number)
    steps.be_silent(first, 29.0)
    assert steps.away == []
    steps.be_silent(first, 40.0)
    steps.be_silent(first, 599.0)
    assert steps.away == [{first: WorkerAway("silent", 40.0)}, {first: WorkerAway("silent", 599.0)}]
    assert not steps.conductor.silenced(first)
    steps.be_silent(first, 0.0)  # it was woken
    assert steps.away[2:] == [{}]
    steps.look()
    assert len(steps.away) == 3
    steps.be_silent(first, 601.0)
    assert [steps.conductor.silenced(number) for number in (first, second)] == [True, False]
    steps.conductor.failing(first, "ActorDiedError: killed", lost=False)
    steps.conductor.ended("a", error=True)
    (attempt,) = steps.ledger.record(first).attempts
    assert (attempt.reason, attempt.lost) == ("its worker was silent for 601 s and was ended", False)
    assert steps.give("c") == first
    assert not steps.conductor.silenced(first)


@pytest.mark.parametrize(("minutes", "patient", "ended"), [(0.05, 29.0, 30.0), (4, 239.0, 240.0), (90, 599.0, 600.0)])
def test_a_silent_worker_has_no_longer_than_a_round(
    tiny_spec: SpecMaker, minutes: float, patient: float, ended: float
) -> None:
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0, "round_minutes": minutes}))
    number = steps.give("a")
    steps.conductor.at_work(number)
    steps.be_silent(number, patient)
    assert not steps.conductor.silenced(number)
    steps.be_silent(number, ended)
    assert steps.conductor.silenced(number)


def test_without_a_limit_a_silent_worker_is_ended_only_when_the_study_is_to_stop(tiny_spec: SpecMaker) -> None:
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0, "round_minutes": 0}))
    number = steps.give("a")
    steps.conductor.at_work(number)
    steps.be_silent(number, 9000.0)
    assert steps.away == [{number: WorkerAway("silent", 9000.0)}]
    assert not steps.conductor.silenced(number)
    steps.conductor.steering.stop("Ctrl-C")
    steps.look()
    assert steps.conductor.silenced(number)


def test_a_worker_that_is_used_again_is_listened_to(tiny_spec: SpecMaker) -> None:
    """Its next trial may begin before the driver looks at who works."""
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0}))
    number = steps.give("a")
    steps.conductor.placed(number)
    steps.report(number, 1)
    steps.conductor.at_work(number)
    steps.be_silent(number, 601.0)
    assert steps.conductor.silenced(number)


def test_a_worker_that_was_never_heard_of_has_ten_minutes_to_start(
    tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short a round may be: it still loads what it needs."""
    now = 1000.0
    monkeypatch.setattr("study.driver.conductor.time.monotonic", lambda: now)
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0, "round_minutes": 0.05}))
    number = steps.give("a")
    steps.conductor.at_work(number)
    for now in (1059.0, 1061.0, 1599.0):  # noqa: B007 - the clock reads it
        steps.look()
    assert steps.away == [{number: WorkerAway("silent", seconds)} for seconds in (61.0, 599.0)]
    assert not steps.conductor.silenced(number)
    now = 1601.0
    steps.look()
    assert steps.conductor.silenced(number)


def test_a_study_whose_trials_get_no_worker_says_so(tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while one of them has one: the others wait for its place."""
    now = 1000.0
    monkeypatch.setattr("study.driver.conductor.time.monotonic", lambda: now)
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0, "concurrent": 2}))
    first, second = steps.give("a"), steps.give("b")
    for now in (1001.0, 1060.0, 1062.0):  # noqa: B007 - the clock reads it
        steps.look()
    away = WorkerAway("missing", 61.0)
    assert steps.away == [{first: away, second: away}]
    steps.conductor.at_work(second)
    now = 5000.0
    steps.be_silent(second, 2.0)
    assert steps.away[1:] == [{}]


# How long a study that is to stop waits for its open rounds


@pytest.mark.parametrize(("seen", "seconds"), [((), 600.0), ((4.0,), 36.0), ((100.0, 40.0), 180.0)])
def test_ctrl_c_gives_open_rounds_a_time_that_it_names(
    tiny_spec: SpecMaker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seen: tuple[float, ...],
    seconds: float,
) -> None:
    """30 s and one and a half times the longest round; ten minutes if none was seen."""
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0}))
    number = steps.give("a")
    for round_, _ in enumerate(seen, start=1):
        steps.report(number, round_, seconds=sum(seen[:round_]))
    begin = time.monotonic()
    with runner._signals(steps.conductor):
        signal.raise_signal(signal.SIGINT)
    assert f"open rounds come to their end first, for which they have {seconds:.0f} s;" in capsys.readouterr().err
    monkeypatch.setattr("study.driver.conductor.time.monotonic", lambda: begin + seconds - 1)
    steps.look()
    monkeypatch.setattr("study.driver.conductor.time.monotonic", lambda: begin + seconds + 5)
    with pytest.raises(StopNow):
        steps.look()
    assert [record.state for record in steps.ledger.records()] == ["WAITING"]
    assert steps.verdict()[0] == 130


def test_a_ray_that_is_gone_ends_the_driver_before_anything_else(tiny_spec: SpecMaker) -> None:
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0}))
    number = steps.give("a")
    steps.fault = "Ray's head is gone"
    steps.conductor.error = RuntimeError("what callbacks met because of it")
    with pytest.raises(WorkersGone, match="Ray's head is gone"):
        steps.look()
    assert steps.conductor.interrupt() == [number]
    assert Steps(steps.spec).give("b") == number


def test_what_an_observer_raises_is_no_error_of_a_trial(tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error of a callback a driver leaves its open trials as they are; after this they wait for the next."""
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0}))
    steps.give("a")

    def broken() -> None:
        raise OSError("no terminal")

    monkeypatch.setattr(steps, "tick", broken)
    with pytest.raises(OSError, match="no terminal"):
        steps.look()
    assert steps.conductor.error is None


# What a driver makes of wishes, in the moments that real ones rarely show


def test_a_worker_lost_while_pausing_leaves_its_trial_waiting(tiny_spec: SpecMaker) -> None:
    steps = Steps(tiny_spec(limits={"trials": 3, "failures": 0, "concurrent": 2}))
    first, second = steps.give("a"), steps.give("b")
    steps.report(first, 1)
    assert not steps.conductor.should_stop(first)
    steps.ledger.set_control("pause")
    steps.look()
    assert steps.conductor.next("c") == "wait"
    steps.conductor.failing(first, "RuntimeError: a passing fault", lost=False)
    steps.conductor.ended("a", error=True)
    steps.report(second, 1)
    assert steps.conductor.should_stop(second)
    steps.conductor.ended("b", error=False)
    assert [(r.state, r.round, len(r.attempts)) for r in steps.ledger.records()] == [
        ("WAITING", 1, 1),
        ("WAITING", 1, 0),
    ]
    assert steps.conductor.next("d") == "finished"
    steps.ledger.set_control("")
    steps.look()
    assert steps.conductor.sit_out_pause()
    assert [steps.give("e"), steps.give("f")] == [first, second]
    assert [record.state for record in steps.ledger.records()] == ["RUNNING", "RUNNING"]


def test_a_pause_holds_nothing_once_there_is_nothing_to_do(tiny_spec: SpecMaker) -> None:
    """The last trial ends while the study is paused: the driver ends too, and does not wait to be resumed."""
    steps = Steps(tiny_spec(limits={"trials": 1, "failures": 0}))
    number = steps.give("a")
    steps.ledger.set_control("pause")
    steps.look()
    steps.finish("a", number, 0.5)
    assert steps.conductor.next("b") == "finished"
    assert not steps.conductor.sit_out_pause()
    assert steps.verdict() == (0, "")


def test_stop_ends_a_pause(tiny_spec: SpecMaker, caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0}))
    steps.ledger.set_control("pause")
    assert steps.conductor.next("a") == "finished"
    steps.ledger.set_control("stop")
    caplog.clear()
    steps.look()
    assert not steps.conductor.sit_out_pause()
    assert steps.verdict()[0] == 130
    assert [record.message for record in caplog.records] == [
        "stopping as asked: open trials end their round first, and have 600 s for it"
    ]


def test_a_database_that_is_away_for_a_moment_keeps_no_wish_and_stops_nothing(
    tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0}))

    def away(ledger: Ledger) -> str:
        raise sa.exc.OperationalError("SELECT", {}, Exception("server closed the connection"))

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "control", property(away))
        steps.look()
    assert not steps.conductor.steering.paused
    steps.ledger.set_control("pause")
    steps.look()
    assert steps.conductor.steering.paused


def test_ctrl_c_after_a_stop_was_asked_for_does_not_end_the_open_rounds(
    tiny_spec: SpecMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the second of two signals does, whatever was asked for in the database before."""
    steps = Steps(tiny_spec())
    steps.ledger.set_control("stop")
    steps.look()
    with runner._signals(steps.conductor):
        signal.raise_signal(signal.SIGINT)
        assert "open rounds come to their end first" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert steps.conductor.steering.stopping == "study.control asked for it"
