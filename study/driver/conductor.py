"""Runs one study to its budget: gives trials out, hears how they fare, and tells the database before anyone else.

It decides nothing by itself: what to run comes from the database and Optuna, and everything that happens goes back
there first. It knows no Ray; `tune_hooks` is where Ray's callbacks end in its methods.
"""

import functools
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from study.database.lease import LeaseLost
from study.database.ledger import Ledger
from study.driver import StudyBroken
from study.driver.limits import StudyLimits, final_state, is_given_up
from study.driver.open_trials import Listener, OpenTrial
from study.driver.round_costs import RoundCosts
from study.driver.steering import Steering
from study.driver.supply import Supply
from study.planning.suggestions import Suggestions
from study.records import Attempt, Observer, TrialRecord
from study.secrets import redact
from study.spec.objectives import round_value
from study.spec.study_spec import StudySpec
from trainables.checkpoints import KEPT
from trainables.places import divided
from trainables.round_limit import RoundLimit
from trainables.storage import below

if TYPE_CHECKING:  # this file knows no Ray
    from study.driver.ray_watch import RayWatch

logger = logging.getLogger(__name__)

CONTROL_SECONDS = 2.0
"""How often the driver looks whether it is asked to pause or stop."""
TICK_SECONDS = 1.0
PAUSE_SECONDS = 0.2
"""How long a paused driver sleeps between two looks at the time."""


class StopNow(BaseException):
    """The time that open rounds had for coming to their end is over. No Exception: Tune would wait for the workers."""


class WorkersGone(BaseException):
    """What runs the workers has ended, as the message says. No Exception: Tune would ask it to clean up, and wait."""


Given = dict[str, Any] | Literal["wait", "finished"]


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among what a Trainable reported: `group/name` → number; Ray's own keys have no such names."""
    return {
        key: float(value)
        for key, value in result.items()
        if "/" in key and not key.startswith("config/") and isinstance(value, (int, float))
    }


def progress_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a round, of what a Trainable reported."""
    storage, inner = divided(result.get("checkpoint") or "")
    return {
        "round": int(result["round"]),
        "time": _now(),
        "metrics": {name: value for name, value in metrics_of(result).items() if math.isfinite(value)},
        "seconds": float(result.get("seconds", 0.0)),
        "budget": str(result.get("budget", "")),
        "warnings": json.loads(result.get("warnings", "[]")),
        "checkpoint": inner or None,
        "storage": storage,
    }


def round_limit(minutes: float | None, records: Sequence[TrialRecord] = ()) -> RoundLimit:
    """The limit of a study's rounds. Args: minutes: as the study gives it. records: of rounds seen so far."""
    limit = RoundLimit(fixed=None if minutes is None else 60 * minutes)
    for record in records:
        for (round_, _, _), seconds in zip(record.history, record.durations, strict=True):
            limit.saw(seconds, last=ends_leg(record, round_))
    return limit


def ends_leg(record: TrialRecord, round_: int) -> bool:
    """Whether a round of the trial holds the whole evaluation."""
    return round_ % record.leg == 0 if record.leg else round_ >= record.rounds


def _now() -> int:
    """Ms since the epoch."""
    return time.time_ns() // 1_000_000


def _kept(method: Callable[..., Any], *, raised: bool = False) -> Callable[..., Any]:
    """Keeps the first exception for `Conductor.tick`: Tune logs and drops most of what its callbacks raise.

    Args: raised: whether it is raised here as well.
    """

    @functools.wraps(method)
    def guarded(self: "Conductor", *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.error = self.error or error
            if raised:
                raise

    return guarded


_kept_and_raised = functools.partial(_kept, raised=True)


class Conductor:
    """Runs one study through callbacks; knows the open trials of this driver."""

    def __init__(
        self,
        spec: StudySpec,
        ledger: Ledger,
        suggestions: Suggestions,
        observers: Sequence[Observer],
        folder: str,
        workers: "RayWatch",
        costs: RoundCosts,
    ) -> None:
        """Args: folder: of the study's checkpoints as workers see it, an absolute path or a URI. costs: of rounds."""
        self._spec, self._ledger, self._suggestions = spec, ledger, suggestions
        self._observers, self._workers, self._folder = observers, workers, folder
        self._listener = Listener(workers, observers, spec.limits.round_minutes)
        self._open: dict[int, OpenTrial] = {}
        self._last_tick = self._last_look = -math.inf
        self._sat_out = False
        """Whether Ray was told that there is nothing to do because the study is paused."""
        self.error: Exception | None = None
        """What went wrong in the driver itself; the study stops, and its trials wait for the next driver."""
        self.lost_workers = 0
        """Workers that ended before their trials did, under this driver."""
        records = ledger.records()
        suggestions.restore(ledger.frozen_trials())
        self._limit = round_limit(spec.limits.round_minutes, records)
        self.steering = Steering(ledger, self._limit, self._open)
        if not spec.staged:
            # Killed between the last checkpoint and the last word: nothing is left to run, only to be said.
            done = [r for r in records if not r.finished and r.rounds and r.round >= r.rounds]
            ended = {record.number: self._end(record.number) for record in done}
            records = [ended.get(record.number, record) for record in records]
        self.limits = StudyLimits(spec, records, ledger.seconds)
        self._supply = Supply(spec, ledger, suggestions, records, self._open, costs)

    # Whether the study goes on

    @property
    def missing(self) -> int:
        """Trials of the budget that have no final state yet."""
        return len(self._open) + self._supply.left

    @property
    def unmade(self) -> int:
        """Trials of the budget that were not begun, once all that were are at their end."""
        return self._supply.unmade

    @property
    def over(self) -> bool:
        """Whether no trial is given out any more."""
        return bool(self.error or self.steering.stopping or self._ledger.lost or self.limits.reached)

    # Giving trials out

    @_kept_and_raised
    def next(self, trial_id: str) -> Given:
        """Ray's config for one more trial: an unfinished one first, then a new one; `wait` while there may be more.

        Raises: as `tick`; what the database raised.
        """
        self.tick()
        if self.over:
            return "finished"
        if self.steering.paused:
            self._sat_out = not self._open
            return "wait" if self._open else "finished"  # `sit_out_pause` waits for the rest, without Ray's workers
        taken = self._supply.take()
        if taken is None:
            if self._supply.over:
                self._settle()
            return "wait" if self._open else "finished"  # an open trial may lose its worker and come back
        number, config = taken
        trial = self._open[number] = OpenTrial(number, self._key(trial_id))
        record = self._ledger.record(number)
        trial.limit = self._limit.seconds(last=ends_leg(record, record.round + 1))
        self._tell("trial_started", record)
        places = [place for place in (record.checkpoint, *record.fallbacks) if place]
        return {
            "number": number,
            "config": config,
            # The study's own mark keeps studies of one name, in two databases, apart on one storage.
            "folder": below(self._folder, f"trial_{number:05d}-{self._ledger.uid[:8]}"),
            "resume": places[:KEPT],
            "threads": max(1, int(self._spec.resources.cpu)),
            "patience": 60 * self._spec.limits.outage_minutes,
            "limit": asdict(self._limit),
            "rounds_behind": record.round,
            "whole": ends_leg(record, record.round + 1),
            "beat": trial.key,
        }

    def _key(self, trial_id: str) -> str:
        return f"{self._ledger.uid}/{trial_id}"

    # Hearing of trials

    def at_work(self, number: int) -> None:
        """The trial has a worker, for which it may have waited long; may be called again and again."""
        trial = self._open.get(number)
        if trial is not None and trial.since is None:
            trial.since = time.monotonic()
            trial.heard = min(trial.heard, trial.since)
            self._workers.follow(trial.key)

    def placed(self, number: int) -> None:
        """The trial's worker has made ready, and begins its first round."""
        if trial := self._open.get(number):
            trial.heard = time.monotonic()

    @_kept
    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        """A round ended and its checkpoint is stored: round, metrics and place are written together, then shown."""
        if (trial := self._open.get(number)) is None:
            return
        trial.heard = time.monotonic()
        for note in json.loads(result.get("notes", "[]")):
            logger.warning("trial %d: %s", number, redact(note))
        if result.get("failure"):
            trial.failure = redact(str(result["failure"]))
            return
        trial.limit = float(result.get("limit", trial.limit))
        stored = result.get("checkpoint", "")
        if stored and trial.stored == stored:
            return  # of a round that ends its trial the scheduler tells, and the callback again
        trial.stored = stored
        round_ = int(result["round"])
        if len(self._spec.objectives) == 1:
            value = round_value(self._spec.objectives[0].metric, metrics_of(result))
            if value is not None:
                self._ledger.report(number, round_, value)
                self._suggestions.reported(number, round_, value)
        self._ledger.progress(number, progress_of(result))
        record = self._ledger.record(number)
        self._limit.saw(record.durations[-1], last=ends_leg(record, round_))
        self._tell("trial_reported", record)

    def should_stop(self, number: int) -> bool:
        """Whether an open trial ends after this round: because the study does, or because Optuna's pruner says so."""
        if (trial := self._open.get(number)) is None:
            return True
        if self.steering.halting or self.error or self._ledger.record(number).rests:
            trial.parked = True
            return True
        self._judge(trial)
        return trial.pruned or self.error is not None

    @_kept
    def _judge(self, trial: OpenTrial) -> None:
        """Asks Optuna's pruner. Baselines are never pruned, since the table must hold them."""
        trial.pruned = (
            self._spec.pruner.name != "none"
            and not self._ledger.record(trial.number).baseline
            and self._ledger.should_prune(trial.number)
        )

    def failing(self, number: int, reason: str, *, lost: bool, unusable: bool = False) -> None:
        """Remembers why a trial's worker ended.

        Args: lost: whether because a machine or a storage was lost. unusable: whether nothing can be written to the
            storage: the study stops, since time does not mend that, and its trials wait for the next driver.
        """
        if unusable:
            self.error = self.error or StudyBroken(f"stopped: {redact(reason)}")
        if trial := self._open.get(number):
            trial.worker_ends(reason, lost=lost, round_minutes=self._spec.limits.round_minutes)

    def silenced(self, number: int) -> bool:
        """Whether a trial's worker is to be ended because it was silent for too long."""
        return number in self._open and self._open[number].silent > 0

    @_kept
    def ended(self, trial_id: str, *, error: bool) -> None:
        """A trial's worker has ended: it is finished, or given out again. Nothing once the driver is at fault."""
        trial = next((each for each in self._open.values() if each.key == self._key(trial_id)), None)
        if trial is None or self.error is not None:
            return
        number = trial.number
        unstarted = not error and trial.stored is None and not trial.failure
        rests = self._spec.staged and not error and not trial.failure and self._ledger.record(number).rests
        parked = trial.parked or rests or (self.steering.halting and unstarted)
        if not parked and (not error or self._given_up(trial)):
            self.limits.add(self._end(number, failure=trial.failure, pruned=trial.pruned))
        else:
            if parked or self.steering.halting:
                self._ledger.interrupt(number)
            record = self._ledger.record(number)
            self._supply.put_back(record)
            self._tell("trial_paused", record)
        self._workers.forget(trial.key)
        del self._open[number]

    def _given_up(self, trial: OpenTrial) -> bool:
        """Remembers a failed attempt. Returns: whether it was the last that the trial is granted."""
        number, record = trial.number, self._ledger.record(trial.number)
        attempt = Attempt(round=record.round, time=_now(), reason=redact(trial.reason)[:2000], lost=trial.lost)
        self._ledger.attempt_failed(number, len(record.attempts), attempt)
        self.lost_workers += 1
        if is_given_up([*record.attempts, attempt]):
            trial.failure = attempt.reason
            return True
        logger.warning("trial %d goes on from round %d after: %s", number, record.round, attempt.reason)
        return False

    def _settle(self) -> None:
        """The search is over: trials that rest get their final state, stopped early if no seed of them is trained."""
        for record in self._ledger.records():
            if record.rests:
                self.limits.add(self._end(record.number, pruned=not record.judged))

    def _end(self, number: int, *, failure: str | None = None, pruned: bool = False) -> TrialRecord:
        """Gives a trial its final state."""
        record, objectives = self._ledger.record(number), self._spec.objectives
        state, values, failure = final_state(record, objectives, failure=failure, pruned=pruned)
        self._ledger.finish(number, state, values, failure)
        self._suggestions.finished(number, state, values)
        ended = self._ledger.record(number)
        self._tell("trial_ended", ended)
        return ended

    # Time passes

    def tick(self) -> None:
        """To be called often: looks for wishes from outside and lets observers do their part.

        Raises: LeaseLost when another driver has taken over; StopNow when a stop's grace is over; WorkersGone; what a
            callback raised.
        """
        if self._workers.fault:
            raise WorkersGone(self._workers.fault)
        if self.error:
            raise self.error
        if self._ledger.lost:
            raise LeaseLost(f"study {self._spec.name!r} was taken over by another driver")
        now = time.monotonic()
        if now > self.steering.stop_by:
            self.interrupt()  # first of all: Ray takes its time to end workers, and the machine may not
            raise StopNow(self.steering.stopping)
        if now - self._last_tick < TICK_SECONDS:
            return
        self._last_tick = now
        if now - self._last_look >= CONTROL_SECONDS:
            self._last_look = now
            self._look()
        self._listener.listen(self._open, now, halting=self.steering.halting)
        for observer in self._observers:
            observer.tick()

    def sit_out_pause(self) -> bool:
        """Called when Ray has no trial left: waits while the study is paused, with no worker held.

        Returns: whether a pause was the reason, and there is something to run now. Raises: as `tick`.
        """
        was, self._sat_out = self._sat_out, False
        while was and self.steering.paused and self.missing and not self.over:
            time.sleep(PAUSE_SECONDS)
            self.tick()
        return was and bool(self.missing) and not self.over

    @_kept_and_raised
    def _look(self) -> None:
        self.steering.look()

    def interrupt(self) -> list[int]:
        """The driver ends in order: unfinished trials wait for the next driver. Returns: their numbers."""
        numbers = sorted([*self._open, *self._supply.waiting])
        for number in numbers:
            self._ledger.interrupt(number)
        return numbers

    def _tell(self, event: str, record: TrialRecord) -> None:
        for observer in self._observers:
            getattr(observer, event)(record)
