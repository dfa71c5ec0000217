"""Ray Tune's side of a study: a Searcher, a scheduler and a callback that all hand over to one Conductor.

The Conductor decides nothing by itself: what to run comes from the database and Optuna, and everything that happens
goes back there before anyone else is told. Ray pickles searchers, schedulers and callbacks into its own snapshots; the
three classes here put nothing into them, so no database address and no password leaves the driver.
"""

import functools
import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from study.ledger import Ledger
from study.records import Observer, TrialRecord
from study.sampling import Suggestions, as_point, next_overrides
from study.spec import StudySpec

logger = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another driver has taken the study over; this one must stop."""


def _kept(method: Callable[..., None]) -> Callable[..., None]:
    """Keeps the first exception for `Conductor.tick`: Tune logs and drops most of what its callbacks raise."""

    @functools.wraps(method)
    def guarded(self: "Conductor", *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.error = self.error or error

    return guarded


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among what a Trainable reported: `group/name` → number; Ray's own keys have no such names."""
    return {
        key: float(value)
        for key, value in result.items()
        if "/" in key and not key.startswith("config/") and isinstance(value, (int, float))
    }


def round_value(metric: str, metrics: Mapping[str, float]) -> float | None:
    """The objective as a round knows it: itself, or the cheap probe's number of the same name before the last round."""
    value = metrics.get(metric, metrics.get(f"probe/{metric.rsplit('/', 1)[-1]}"))
    return value if value is not None and math.isfinite(value) else None


class Conductor:
    """Runs one study to its budget through callbacks; knows the open trials of this driver."""

    def __init__(
        self,
        spec: StudySpec,
        ledger: Ledger,
        suggestions: Suggestions,
        observers: Sequence[Observer],
        threads: int,
    ) -> None:
        self._spec = spec
        self._ledger = ledger
        self._suggestions = suggestions
        self._observers = observers
        self._threads = threads
        self._deadline = time.monotonic() + spec.limits.hours * 3600 if spec.limits.hours else math.inf
        self._numbers: dict[str, int] = {}
        self._pending: dict[int, dict[str, Any]] = {}
        self._reasons: dict[int, str] = {}
        self._pruned: set[int] = set()
        self.error: Exception | None = None
        """What went wrong in the driver itself; the study stops, and its trials wait for the next driver."""
        records = ledger.records()
        suggestions.restore(ledger.frozen_trials())
        self._created = len(records)
        self.failures = sum(record.state == "FAIL" for record in records)
        unfinished = [record for record in records if not record.finished]
        # Killed between the last checkpoint and the last word: nothing is left to run, only to be said.
        done = [record for record in unfinished if record.rounds and record.round >= record.rounds]
        for record in done:
            self._end(record.number)
        self._unfinished = [record for record in unfinished if record not in done]

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

    def next(self, trial_id: str) -> dict[str, Any] | None:
        """Ray's config for one more trial: an unfinished one first, then a new one; None when the study is done."""
        if self.error or self._ledger.lost.is_set() or self.too_many_failures or self.out_of_time:
            return None
        if self._unfinished:
            unfinished = self._unfinished[0]
            number = unfinished.number
            self._ledger.resume(number)
            self._unfinished.pop(0)
            # Built anew rather than read back: device and data folder are this driver's, all else is the same.
            config = self._spec.trial_config(unfinished.overrides).model_dump(mode="json")
        elif self._created < self._spec.limits.trials:
            number, config = self._create()
        else:
            return None
        self._numbers[trial_id] = number
        record = self._ledger.record(number)
        self._tell("trial_started", record)
        return {
            "number": number,
            "config": json.dumps(config),
            "resume": _still_there(record),
            "threads": self._threads,
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

    @_kept
    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        """A round ended. Nothing counts as done before its checkpoint is there; see `checkpointed`."""
        metrics = metrics_of(result)
        if result.get("failure"):
            self._reasons[number] = str(result["failure"])
            return
        round_ = int(result["round"])
        if self._pending.get(number, {}).get("round") == round_:
            return  # a round that the pruner stopped is told by the scheduler and by the callback
        self._pending[number] = {
            "round": round_,
            "time": time.time_ns() // 1_000_000,
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
            "seconds": float(result.get("seconds", 0.0)),
            "budget": str(result.get("budget", "")),
            "warnings": json.loads(result.get("warnings", "[]")),
        }
        if len(self._spec.objectives) == 1:
            value = round_value(self._spec.objectives[0].metric, metrics)
            if value is not None:
                self._ledger.report(number, round_, value)
                self._suggestions.reported(number, round_, value)

    def should_prune(self, number: int) -> bool:
        """Asks Optuna's pruner; baselines are never pruned, since the table must hold them."""
        if self._spec.pruner.name == "none" or self._ledger.record(number).baseline:
            return False
        if self._ledger.should_prune(number):
            self._pruned.add(number)
            return True
        return False

    @_kept
    def checkpointed(self, number: int, path: str) -> None:
        """The round's checkpoint is stored: round, metrics and place are written together, then shown."""
        if number in self._reasons:
            return
        if progress := self._pending.pop(number, None):
            self._ledger.progress(number, {**progress, "checkpoint": path})
            self._tell("trial_reported", self._ledger.record(number))

    def failing(self, number: int, reason: str) -> None:
        """Remembers why a trial's worker failed, for the case that Ray gives it up."""
        self._reasons[number] = reason

    def recovered(self, number: int) -> None:
        self._reasons.pop(number, None)

    @_kept
    def ended(self, trial_id: str, *, error: bool) -> None:
        """Tells the database the final state of a trial; nothing once the driver itself is at fault."""
        number = self._numbers.get(trial_id)
        if number is not None and self.error is None:
            self._end(number, error=error)
            del self._numbers[trial_id]

    def _end(self, number: int, *, error: bool = False) -> None:
        record = self._ledger.record(number)
        values = [record.metrics.get(objective.metric, math.nan) for objective in self._spec.objectives]
        failure = self._reasons.pop(number, None)
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
        self._tell("trial_ended", self._ledger.record(number))

    def tick(self) -> None:
        """Raises: LeaseLost when another driver has taken over; what a callback raised."""
        if self.error:
            raise self.error
        if self._ledger.lost.is_set():
            raise LeaseLost(f"study {self._spec.name!r} was taken over by another driver")
        for observer in self._observers:
            observer.tick()

    def interrupt(self) -> list[int]:
        """The driver ends in order: unfinished trials wait for the next driver. Returns: their numbers."""
        numbers = sorted([*self._numbers.values(), *(record.number for record in self._unfinished)])
        for number in numbers:
            self._ledger.interrupt(number)
        return numbers

    def _tell(self, event: str, record: TrialRecord) -> None:
        for observer in self._observers:
            getattr(observer, event)(record)


class OptunaSearcher(Searcher):
    """Asks the conductor what to run. Ray's own restore is not used: a new driver reads the database."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__(metric=None, mode=None)
        self._conductor: Conductor | None = conductor

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **_: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        assert self._conductor is not None
        return self._conductor.next(trial_id) or Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Rounds arrive through the scheduler and the callback, which also see the last one."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        assert self._conductor is not None
        self._conductor.ended(trial_id, error=error)

    def save(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "w") as file:
            file.write("{}")

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a study goes on by running its command again, not by restoring Ray's snapshot")

    def __getstate__(self) -> dict[str, Any]:
        return {"_conductor": None, "_metric": None, "_mode": None}


def _still_there(record: TrialRecord) -> str:
    """The trial's checkpoint folder, or nothing if it has none or it is gone: then the trial starts from scratch."""
    if record.checkpoint and not Path(record.checkpoint).is_dir():
        logger.warning("trial %d: its checkpoint %s is gone; it starts anew", record.number, record.checkpoint)
        return ""
    return record.checkpoint or ""


def _reason(trial: RayTrial) -> str:
    """What ended the trial's worker, in a line: the exception it raised, or what Ray says of a worker that is gone."""
    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception as problem:  # an exception of a class that this process cannot load
        return f"its worker failed for a reason that cannot be read: {problem}"
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(cause)).splitlines() if line.strip()]
    # Of an actor that died while it was made, Ray tells the whole traceback; its last line is the reason.
    text = lines[-1] if isinstance(cause, RayActorError) and lines else " ".join(lines)
    return f"{type(cause).__name__}: {text}"


class OptunaPruning(FIFOScheduler):
    """First in, first out, and stops what Optuna's pruner gives up."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor: Conductor | None = conductor

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        assert self._conductor is not None
        number = trial.config["number"]
        self._conductor.reported(number, result)
        return TrialScheduler.STOP if self._conductor.should_prune(number) else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: RayTrial) -> None:
        """Called before Ray either recovers the trial or gives it up."""
        assert self._conductor is not None
        self._conductor.failing(trial.config["number"], _reason(trial))

    def __getstate__(self) -> dict[str, Any]:
        return {"_conductor": None}


class Relay(Callback):
    """Passes on what only callbacks are told: last rounds, checkpoints, recoveries, and the passing of time."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor: Conductor | None = conductor
        self._last_tick = 0.0

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("done") and self._conductor:
            # The scheduler is not asked about a round that Ray already knows to be the last.
            self._conductor.reported(trial.config["number"], result)

    def on_checkpoint(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, checkpoint: Any, **info: Any
    ) -> None:
        if self._conductor:
            self._conductor.checkpointed(trial.config["number"], checkpoint.path)

    def on_trial_recover(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        if self._conductor:
            self._conductor.recovered(trial.config["number"])

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        if self._conductor and time.monotonic() - self._last_tick > 1:
            self._last_tick = time.monotonic()
            self._conductor.tick()

    def __getstate__(self) -> dict[str, Any]:
        return {"_conductor": None, "_last_tick": 0.0}
