"""Runs one study to its budget: gives trials out, hears how they fare, and tells the database before anyone else.

It decides nothing by itself: what to run comes from the database and Optuna, and everything that happens goes back
there first. It knows no Ray; `search` is where Ray's callbacks end in its methods.
"""

import functools
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from optuna.trial import TrialState

from study.database.engine import is_outage
from study.database.lease import LeaseLost
from study.database.ledger import Ledger
from study.planning.suggestions import Suggestions, as_point, next_overrides
from study.ranking.ranking import since_improvement
from study.records import Attempt, Observer, TrialRecord, WorkerAway
from study.secrets import redact
from study.spec.objectives import probe_of
from study.spec.study_spec import StudySpec
from trainables.checkpoints import KEPT
from trainables.round_limit import LEAST_SECONDS, RoundLimit
from trainables.storage import below

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often in a row a trial may lose its worker without a new round before it has failed."""
LOST_ATTEMPTS = 10
"""The same where a machine or a storage was lost each time: that is no fault of the trial."""
CONTROL_SECONDS = 2.0
"""How often the driver looks whether it is asked to pause or stop."""
TICK_SECONDS = 1.0
PAUSE_SECONDS = 0.2
"""How long a paused driver sleeps between two looks at the time."""
SILENT_SECONDS = 30.0
"""A worker that was not heard of for so long is said to be silent; one that has nothing to go on to is ended then."""
SILENCE_SECONDS = 600.0
"""A worker that was not heard of for so long is ended, if `limits.round_minutes` does not say so sooner or never."""
MISSING_SECONDS = 60.0
"""After so long it is said that no open trial has a worker, or that one is silent which was not heard of before."""
STOP_SECONDS, STOP_FACTOR = 30.0, 1.5
"""A study that is to stop waits so many times as long as the longest round seen took, and so much longer, for open
rounds to end."""


class StopNow(BaseException):
    """The time that open rounds had for coming to their end is over. No Exception: Tune would wait for the workers."""


class WorkersGone(BaseException):
    """What runs the workers has ended, as the message says. No Exception: Tune would ask it to clean up, and wait."""


class Workers(Protocol):
    """What is known of workers from outside; each has a key of its own, that its trial was given out with."""

    @property
    def fault(self) -> str:
        """Why no worker can be reached any more, in a sentence; empty while they can."""

    def follow(self, key: str) -> None:
        """The worker of that key is to be listened to."""

    def forget(self, key: str) -> None:
        """The worker of that key is of no interest any more."""

    def silence(self, key: str) -> float | None:
        """Seconds since the worker was last heard of; None before the first time."""


class _Unwatched:
    """Nothing is known of the workers."""

    fault = ""

    def follow(self, key: str) -> None:
        pass

    def forget(self, key: str) -> None:
        pass

    def silence(self, key: str) -> float | None:
        return None


Given = dict[str, Any] | Literal["wait", "finished"]


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among what a Trainable reported: `group/name` → number; Ray's own keys have no such names."""
    return {
        key: float(value)
        for key, value in result.items()
        if "/" in key and not key.startswith("config/") and isinstance(value, (int, float))
    }


def round_value(metric: str, metrics: Mapping[str, float]) -> float | None:
    """The objective as a round knows it: itself, or the cheap probe's number of the same name before the last round."""
    value = metrics.get(metric, metrics.get(probe_of(metric)))
    return value if value is not None and math.isfinite(value) else None


def _kept(method: Callable[..., None]) -> Callable[..., None]:
    """Keeps the first exception for `Conductor.tick`: Tune logs and drops most of what its callbacks raise."""

    @functools.wraps(method)
    def guarded(self: "Conductor", *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.error = self.error or error

    return guarded


class Conductor:
    """Runs one study through callbacks; knows the open trials of this driver."""

    def __init__(
        self,
        spec: StudySpec,
        ledger: Ledger,
        suggestions: Suggestions,
        observers: Sequence[Observer],
        folder: str,
        workers: Workers | None = None,
    ) -> None:
        """Args: folder: of the study's checkpoints as workers see it, an absolute path or a URI. workers: tells whether
        they are alive; None: nobody does."""
        self._spec = spec
        self._ledger = ledger
        self._suggestions = suggestions
        self._observers = observers
        self._folder = folder
        self._workers: Workers = workers or _Unwatched()
        self._mark = ledger.uid[:8]
        """Keeps studies of one name, in two databases, apart on one storage."""
        used = ledger.seconds
        self._deadline = time.monotonic() + spec.limits.hours * 3600 - used if spec.limits.hours else math.inf
        self._numbers: dict[str, int] = {}
        self._heard: dict[int, float] = {}
        """When an open trial was last heard of, by the driver's monotonic clock."""
        self._since: dict[int, float] = {}
        """When an open trial was given a worker, by the driver's monotonic clock."""
        self._keys: dict[int, str] = {}
        """What the heartbeats of an open trial's worker are told under."""
        self._limits: dict[int, float] = {}
        """Seconds that the round has which an open trial is in; 0: no limit."""
        self._silent: dict[int, float] = {}
        """Open trials whose worker is to be ended, and how long it was silent."""
        self._away: dict[int, WorkerAway] = {}
        """What observers were last told of workers."""
        self._idle_since = math.inf
        """Since when trials are open and none has a worker, by the driver's monotonic clock."""
        self._reasons: dict[int, tuple[str, bool]] = {}
        """Why a trial's worker ended, and whether that was no fault of the trial."""
        self._failures: dict[int, str] = {}
        """What a trial itself said of why it cannot go on."""
        self._pruned: set[int] = set()
        self._stored: dict[int, str] = {}
        """The last checkpoint that an open trial has told."""
        self._parked: set[int] = set()
        """Trials that stop after a round because the study is paused or ends."""
        self._last_tick = self._last_look = -math.inf
        self.paused = False
        self.stopping = ""
        """Why the study ends before its budget is used; no trial is given out any more."""
        self._stop_by = math.inf
        self.error: Exception | None = None
        """What went wrong in the driver itself; the study stops, and its trials wait for the next driver."""
        self._first: list[str | None] = []
        """How the first trials of this driver ended: the reason of a failure, or None."""
        records = ledger.records()
        suggestions.restore(ledger.frozen_trials())
        self._created = len(records)
        self.failures = sum(record.state == "FAIL" for record in records)
        self.lost_workers = 0
        """Workers that ended before their trials did, under this driver."""
        self._ended = [record for record in records if record.finished]
        minutes = spec.limits.round_minutes
        self._limit = RoundLimit(fixed=None if minutes is None else 60 * minutes)
        for record in records:
            for (round_, _, _), seconds in zip(record.history, record.durations, strict=True):
                self._limit.saw(seconds, last=round_ >= record.rounds)
        self._judged = -1
        """How many ended trials there were when `stale` was last worked out."""
        self._stale = 0
        self._sat_out = False
        """Whether Ray was told that there is nothing to do because the study is paused."""
        unfinished = [record for record in records if not record.finished]
        # Killed between the last checkpoint and the last word: nothing is left to run, only to be said.
        done = [record for record in unfinished if record.rounds and record.round >= record.rounds]
        for record in done:
            self._end(record.number)
        self._first.clear()  # those were the driver's before
        self._unfinished = [record for record in unfinished if record not in done]

    # Whether the study goes on

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() > self._deadline

    @property
    def missing(self) -> int:
        """Trials of the budget that have no final state yet."""
        return len(self._unfinished) + len(self._numbers) + max(0, self._spec.limits.trials - self._created)

    @property
    def too_many_failures(self) -> bool:
        return self.failures > self._spec.limits.failures

    @property
    def common_failure(self) -> str:
        """What the first trials of this driver, all of which failed, failed of; empty if one did not."""
        wanted = self._spec.limits.first_failures
        if not wanted or len(self._first) < wanted or None in self._first[:wanted]:
            return ""
        counts = Counter(str(reason) for reason in self._first[:wanted])
        if len(counts) == 1:
            return next(iter(counts))
        return "; ".join(f"{count} × {reason}" for reason, count in counts.most_common())

    @property
    def stale(self) -> int:
        """Trials that were finished since the best one, once they were as many as `limits.patience` bears; else 0.

        Stays, even if a trial that was open by then turns out to be better: Ray has been told that there are no more.
        """
        patience = self._spec.limits.patience
        if patience is not None and not self._stale and self._judged != len(self._ended):
            self._judged = len(self._ended)
            since = since_improvement(self._ended, self._spec.objectives)
            self._stale = since if since >= patience else 0
        return self._stale

    @property
    def over(self) -> bool:
        """Whether no trial is given out any more."""
        return bool(
            self.error
            or self.stopping
            or self._ledger.lost
            or self.too_many_failures
            or self.out_of_time
            or self.common_failure
            or self.stale
        )

    @property
    def halting(self) -> bool:
        """Whether open trials give their workers back: those at work after their round, the others at once."""
        return self.paused or bool(self.stopping)

    def stop(self, why: str, grace: float | None = None) -> float:
        """Ends the study in order: open trials come to the end of their round.

        Args: grace: seconds that they have for that; None: by the longest round seen. Returns: the seconds they have.
        """
        self.stopping = self.stopping or why
        if grace is None:
            longest = self._limit.longest
            grace = LEAST_SECONDS if longest is None else STOP_SECONDS + STOP_FACTOR * longest
        now = time.monotonic()
        self._stop_by = min(self._stop_by, now + grace)
        return self._stop_by - now

    # Giving trials out

    def next(self, trial_id: str) -> Given:
        """Ray's config for one more trial: an unfinished one first, then a new one; `wait` while there may be more.

        Raises: as `tick`; what the database raised, which `error` keeps.
        """
        self.tick()
        try:
            return self._next(trial_id)
        except Exception as error:
            self.error = self.error or error
            raise

    def _next(self, trial_id: str) -> Given:
        if self.over:
            return "finished"
        if self.paused:
            self._sat_out = not self._numbers
            return "wait" if self._numbers else "finished"  # `sit_out_pause` waits for the rest, without Ray's workers
        if self._unfinished:
            number = self._unfinished[0].number
            self._ledger.resume(number)
            overrides = self._unfinished.pop(0).overrides
            # Built anew rather than read back: device and data folder are this driver's, all else is the same.
            config = self._spec.trial_config(overrides).model_dump(mode="json")
        elif self._created < self._spec.limits.trials:
            number, config = self._create()
        else:
            return "wait" if self._numbers else "finished"  # an open trial may lose its worker and come back
        self._numbers[trial_id] = number
        record = self._ledger.record(number)
        rounds_left = record.rounds - record.round
        self._keys[number] = f"{self._ledger.uid}/{trial_id}"
        self._limits[number] = self._limit.seconds(last=rounds_left <= 1)
        self._tell("trial_started", record)
        places = [place for place in (record.checkpoint, *record.fallbacks) if place]
        return {
            "number": number,
            "config": json.dumps(config),
            "folder": below(self._folder, f"trial_{number:05d}-{self._mark}"),
            "resume": places[:KEPT],
            "threads": max(1, int(self._spec.resources.cpu)),
            "patience": 60 * self._spec.limits.outage_minutes,
            "limit": self._limit.as_dict(),
            "rounds_left": rounds_left,
            "beat": self._keys[number],
        }

    def _create(self) -> tuple[int, dict[str, Any]]:
        number = self._created
        overrides, baseline = next_overrides(self._spec, self._suggestions, number)
        built = self._spec.trial_config(overrides)
        config = built.model_dump(mode="json")
        distributions = self._suggestions.distributions
        inside = as_point(overrides, distributions) is not None
        self._created += 1
        number = self._ledger.add(
            overrides=overrides,
            config=config,
            rounds=built.rounds,
            baseline=baseline,
            params=overrides if inside else {},
            distributions=distributions if inside else {},
        )
        return number, config

    # Hearing of trials

    def at_work(self, number: int) -> None:
        """The trial has a worker, for which it may have waited long; may be called again and again."""
        if number in self._keys and number not in self._since:
            self._since[number] = time.monotonic()
            self._heard.setdefault(number, self._since[number])
            self._workers.follow(self._keys[number])

    def placed(self, number: int) -> None:
        """The trial's worker has made ready, and begins its first round."""
        self._heard[number] = time.monotonic()

    @_kept
    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        """A round ended and its checkpoint is stored: round, metrics and place are written together, then shown."""
        self._heard[number] = time.monotonic()
        for note in json.loads(result.get("notes", "[]")):
            logger.warning("trial %d: %s", number, redact(note))
        if result.get("failure"):
            self._failures[number] = redact(str(result["failure"]))
            return
        self._limits[number] = float(result.get("limit", self._limits.get(number, 0.0)))
        stored = result.get("checkpoint", "")
        if stored and self._stored.get(number) == stored:
            return  # of a round that ends its trial the scheduler tells, and the callback again
        self._stored[number] = stored
        metrics, round_ = metrics_of(result), int(result["round"])
        if len(self._spec.objectives) == 1:
            value = round_value(self._spec.objectives[0].metric, metrics)
            if value is not None:
                self._ledger.report(number, round_, value)
                self._suggestions.reported(number, round_, value)
        progress = {
            "round": round_,
            "time": time.time_ns() // 1_000_000,
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
            "seconds": float(result.get("seconds", 0.0)),
            "budget": str(result.get("budget", "")),
            "warnings": json.loads(result.get("warnings", "[]")),
            "checkpoint": stored or None,
        }
        self._ledger.progress(number, progress)
        record = self._ledger.record(number)
        self._limit.saw(record.durations[-1], last=round_ >= record.rounds)
        self._tell("trial_reported", record)

    def should_stop(self, number: int) -> bool:
        """Whether an open trial ends after this round: because the study does, or because Optuna's pruner says so.

        Baselines are never pruned, since the table must hold them.
        """
        if self.halting or self.error:
            self._parked.add(number)
            return True
        try:
            pruned = (
                self._spec.pruner.name != "none"
                and not self._ledger.record(number).baseline
                and self._ledger.should_prune(number)
            )
        except Exception as error:  # kept for `tick`, like that of every callback
            self.error = error
            return True
        if pruned:
            self._pruned.add(number)
        return pruned

    def failing(self, number: int, reason: str, *, lost: bool) -> None:
        """Remembers why a trial's worker ended, and whether because a machine or a storage was lost."""
        limit = self._limits.get(number, 0.0)
        if number in self._silent:
            reason, lost = f"its worker was silent for {self._silent[number]:.0f} s and was ended", False
        elif limit and not lost and time.monotonic() - self._heard.get(number, math.inf) >= limit:
            minutes = self._spec.limits.round_minutes
            known = f"{limit / 60:.0f} min, its limit while limits.round_minutes is not given"
            if minutes is not None:
                known = f"limits.round_minutes = {minutes:g}"
            reason = f"a round took longer than {known}; its worker was ended ({reason})"
        self._reasons[number] = (reason, lost)

    def silenced(self, number: int) -> bool:
        """Whether a trial's worker is to be ended because it was silent for too long."""
        return number in self._silent

    @_kept
    def ended(self, trial_id: str, *, error: bool) -> None:
        """A trial's worker has ended: it is finished, or given out again. Nothing once the driver is at fault."""
        number = self._numbers.get(trial_id)
        if number is None or self.error is not None:
            return
        unstarted = not error and number not in self._stored and number not in self._failures
        if number in self._parked or (self.halting and unstarted):
            self._ledger.interrupt(number)
            self._give_back(number)
        elif not error or self._given_up(number):
            self._end(number, error=error)
        else:
            if self.halting:
                self._ledger.interrupt(number)
            self._give_back(number)
        self._parked.discard(number)
        self._stored.pop(number, None)
        self._heard.pop(number, None)
        self._since.pop(number, None)
        self._silent.pop(number, None)
        self._workers.forget(self._keys.pop(number, ""))
        del self._numbers[trial_id]

    def _give_back(self, number: int) -> None:
        record = self._ledger.record(number)
        self._unfinished = sorted([*self._unfinished, record], key=lambda one: one.number)
        self._tell("trial_paused", record)

    def _given_up(self, number: int) -> bool:
        """Remembers a failed attempt. Returns: whether it was the last that a trial is granted without a new round."""
        reason, lost = self._reasons.pop(number, ("its worker ended without a reason", False))
        record = self._ledger.record(number)
        attempt = Attempt(round=record.round, time=time.time_ns() // 1_000_000, reason=redact(reason)[:2000], lost=lost)
        self._ledger.attempt_failed(number, len(record.attempts), attempt)
        self.lost_workers += 1
        here = [one for one in (*record.attempts, attempt) if one.round == record.round]
        own = sum(not one.lost for one in here)
        if own >= ATTEMPTS or len(here) - own >= LOST_ATTEMPTS:
            self._failures[number] = attempt.reason
            return True
        logger.warning("trial %d goes on from round %d after: %s", number, record.round, attempt.reason)
        return False

    def _end(self, number: int, *, error: bool = False) -> None:
        record = self._ledger.record(number)
        values = [record.metrics.get(objective.metric, math.nan) for objective in self._spec.objectives]
        failure = self._failures.pop(number, None)
        if error or failure:
            state, failure = TrialState.FAIL, failure or "its worker failed without a reason"
        elif number in self._pruned:
            state = TrialState.PRUNED
        elif record.round < record.rounds:
            state, failure = TrialState.FAIL, f"it stopped after round {record.round} of {record.rounds}"
        elif not all(map(math.isfinite, values)):
            missing = [o.metric for o, value in zip(self._spec.objectives, values, strict=True) if math.isnan(value)]
            state, failure = TrialState.FAIL, f"it ended without a finite {', '.join(missing)}"
        else:
            state = TrialState.COMPLETE
        self._ledger.finish(number, state, values, failure)
        self._suggestions.finished(number, state, values)
        self.failures += state == TrialState.FAIL
        self._first.append(failure if state == TrialState.FAIL else None)
        ended = self._ledger.record(number)
        self._ended.append(ended)
        self._tell("trial_ended", ended)

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
        if now > self._stop_by:
            self.interrupt()  # first of all: Ray takes its time to end workers, and the machine may not
            raise StopNow(self.stopping)
        if now - self._last_tick < TICK_SECONDS:
            return
        self._last_tick = now
        if now - self._last_look >= CONTROL_SECONDS:
            self._last_look = now
            self._look()
        self._listen(now)
        for observer in self._observers:
            observer.tick()

    def _listen(self, now: float) -> None:
        """Finds out which workers are silent, and which of these have to be ended; tells observers."""
        away: dict[int, WorkerAway] = {}
        for number, since in self._since.items():
            heard = self._workers.silence(self._keys[number])
            seconds = now - since if heard is None else heard
            if seconds >= (MISSING_SECONDS if heard is None else SILENT_SECONDS):
                away[number] = WorkerAway("silent", seconds)
            if seconds >= self._silence_limit(starting=heard is None):
                self._silent[number] = seconds
        idle = bool(self._numbers) and not self._since and not self.halting
        self._idle_since = min(self._idle_since, now) if idle else math.inf
        if now - self._idle_since >= MISSING_SECONDS:
            away = dict.fromkeys(self._numbers.values(), WorkerAway("missing", now - self._idle_since))
        if away or self._away:
            for observer in self._observers:
                observer.workers_away(away)
        self._away = away

    def _silence_limit(self, *, starting: bool) -> float:
        """Seconds of silence after which a worker is ended. Args: starting: whether it was never heard of."""
        minutes = self._spec.limits.round_minutes
        if self.halting:
            return SILENT_SECONDS
        if minutes is None or (minutes and starting):
            return SILENCE_SECONDS
        return min(max(60 * minutes, SILENT_SECONDS), SILENCE_SECONDS) if minutes else math.inf

    def _look(self) -> None:
        """Obeys what `study.control` asks for; without a database there is nothing to obey, and no reason to wait."""
        try:
            wish = self._ledger.control
        except Exception as error:
            if not is_outage(error):
                self.error = error
                raise
            return
        if wish == "stop" and not self.stopping:
            grace = self.stop("study.control asked for it")
            logger.warning("stopping as asked: open trials end their round first, and have %.0f s for it", grace)
        if (wish == "pause") == self.paused:
            return
        self.paused = wish == "pause"
        name = self._spec.name
        if self.paused:
            what = "open trials end their round and wait" if self._numbers else "no trial is given out"
            logger.warning("study %r is paused: %s until `python -m study.control %s resume`", name, what, name)
        elif not self.stopping:
            logger.warning("study %r goes on", name)

    def sit_out_pause(self) -> bool:
        """Called when Ray has no trial left: waits while the study is paused, with no worker held.

        Returns: whether a pause was the reason, and there is something to run now. Raises: as `tick`.
        """
        was, self._sat_out = self._sat_out, False
        while was and self.paused and self.missing and not self.over:
            time.sleep(PAUSE_SECONDS)
            self.tick()
        return was and bool(self.missing) and not self.over

    def interrupt(self) -> list[int]:
        """The driver ends in order: unfinished trials wait for the next driver. Returns: their numbers."""
        numbers = sorted([*self._numbers.values(), *(record.number for record in self._unfinished)])
        for number in numbers:
            self._ledger.interrupt(number)
        return numbers

    def _tell(self, event: str, record: TrialRecord) -> None:
        for observer in self._observers:
            getattr(observer, event)(record)
