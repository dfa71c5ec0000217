"""Limits end a study in order, say why, and let the same command go on; no test starts more than one Ray."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import sqlalchemy as sa
from staged_trainables import ROUNDS, Staged, StagedTrial

from study import lease as lease_module
from study import runner
from study.conductor import Conductor
from study.ledger import Ledger, study_url
from study.records import TrialRecord
from study.runner import run_study
from study.sampling import Suggestions, make_pruner
from study.spec import StudySpec
from trainables.trial import Report

SpecMaker = Callable[..., StudySpec]


@pytest.fixture(scope="module")
def one_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for every driver of this file: starting it is most of what a short run takes."""
    patch = pytest.MonkeyPatch()
    connect, stop = runner.connect, runner._stop_ray
    patch.setattr(runner, "connect", lambda address, spec: None if ray.is_initialized() else connect(address, spec))
    patch.setattr(runner, "_stop_ray", lambda: None)
    yield
    patch.undo()
    stop()


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

    def __init__(self, spec: StudySpec) -> None:
        self.spec, self.ledger = spec, open_ledger(spec)
        self.conductor = Conductor(spec, self.ledger, Suggestions(spec, ()), [], folder=str(spec.storage.path))

    def give(self, name: str) -> int:
        given = self.conductor.next(name)
        assert isinstance(given, dict), given
        return int(given["number"])

    def report(self, number: int, round_: int, score: float = 0.5) -> None:
        metrics = {"robust/acc": score, "clean/acc": 1.0}
        self.conductor.reported(number, {**metrics, "round": round_, "checkpoint": f"/round_{number}_{round_}"})

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
        return runner._verdict(self.spec, self.conductor, self.conductor.interrupt(), False)


# A storage that is away


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
    assert steps.conductor.common_failure == ""
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
    assert after.conductor.common_failure == ""
    after.fail("c", "cursed")
    assert after.conductor.common_failure == "cursed"


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
    assert [record.message for record in caplog.records] == ["stopping as asked: open trials end their round first"]


def test_a_database_that_is_away_for_a_moment_keeps_no_wish_and_stops_nothing(
    tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tiny_spec(limits={"trials": 2, "failures": 0}))

    def away(ledger: Ledger) -> str:
        raise sa.exc.OperationalError("SELECT", {}, Exception("server closed the connection"))

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "control", property(away))
        steps.look()
    assert not steps.conductor.paused
    steps.ledger.set_control("pause")
    steps.look()
    assert steps.conductor.paused


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
    assert steps.conductor.stopping == "study.control asked for it"
