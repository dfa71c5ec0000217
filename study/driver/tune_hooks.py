"""Ray Tune's side of a study: a Searcher, a scheduler and a callback that all hand over to one Conductor.

Ray pickles searchers, schedulers and callbacks into its own snapshots, which nobody reads; the three classes here put
nothing into them, so no database address and no password leaves the driver. Ray neither checkpoints nor recovers a
trial: one that loses its worker is, for Ray, over, and the Conductor gives it out again as after a new start.
"""

import re
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, NodeDiedError, ObjectLostError, RayActorError
from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from study.driver.conductor import Conductor
from trainables.storage import StorageAway, StorageUnusable


class OptunaSearcher(Searcher):
    """Asks the conductor what to run. Ray's own restore is not used: a new driver reads the database."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__(metric=None, mode=None)
        self._conductor = conductor

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **_: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        given = self._conductor.next(trial_id)
        return given if isinstance(given, dict) else Searcher.FINISHED if given == "finished" else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Rounds arrive through the scheduler and the callback, which also see the last one."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._conductor.ended(trial_id, error=error)

    def save(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "w") as file:
            file.write("{}")

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a study goes on by running its command again, not by restoring Ray's snapshot")

    def __getstate__(self) -> dict[str, Any]:
        return {"_conductor": None, "_metric": None, "_mode": None}


LOST = re.compile(
    r"node (was|has been) (terminated|dead|died|drained|preempted)|node.*(failed|died|crashed)|raylet", re.I
)
"""What Ray says of an actor whose machine is gone, where nothing but the words tells it from one that crashed."""


def _reason(trial: RayTrial) -> tuple[str, bool, bool]:
    """What ended the trial's worker, in a line: the exception it raised, or what Ray says of a worker that is gone;
    whether that was the fault of a machine or a storage that was lost, and not the trial's; and whether no trial can go
    on before its storage is mended."""
    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception as problem:  # an exception of a class that this process cannot load
        return f"its worker failed for a reason that cannot be read: {problem}", False, False
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(cause)).splitlines() if line.strip()]
    gone = isinstance(cause, RayActorError)
    # The machine went, or the way to it before Ray knew which, or what was stored on it, or it was announced to go.
    cut_off = isinstance(cause, ActorUnavailableError | NodeDiedError | ObjectLostError) or (gone and cause.preempted)
    # Of an actor that died while it was made, Ray tells the whole traceback; its last line is the reason.
    text = lines[-1] if gone and lines else " ".join(lines)
    away, unusable = (
        isinstance(cause, kind) or (gone and _says(lines, kind)) for kind in (StorageAway, StorageUnusable)
    )
    lost = cut_off or away or (gone and bool(LOST.search(" ".join(lines))))
    return f"{type(cause).__name__}: {text}", lost, unusable


def _says(lines: list[str], kind: type[Exception]) -> bool:
    """Whether a traceback is of that kind: of an exception in an actor's constructor Ray keeps the text alone."""
    return any(line.startswith(f"{kind.__module__}.{kind.__qualname__}: ") for line in lines)


def _worker(tune_controller: Any, trial: RayTrial) -> Any:
    """The actor that a trial has been given, be it that it still makes ready; None if it waits for one."""
    tracked = tune_controller._trial_to_actor.get(trial)
    return tune_controller._actor_manager._live_actors_to_ray_actors_resources.get(tracked, (None,))[0]


class OptunaPruning(FIFOScheduler):
    """First in, first out, and stops what Optuna's pruner gives up."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        self._conductor.reported(number, result)
        return TrialScheduler.STOP if self._conductor.should_stop(number) else TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> RayTrial | None:
        """The first trial that waits for a worker. While the study pauses or ends, those that wait are taken back and
        none is started.

        A worker that is free goes to no trial whose own is on its way: Tune would end that one, and start another for
        the next trial, so that short trials would run one after the other while all others start in vain.
        """
        self._watch_workers(tune_controller)
        if not self._conductor.steering.halting:
            waiting = (trial for trial in tune_controller.get_trials() if trial.status == RayTrial.PENDING)
            inner = tune_controller._tune_controller
            return next((trial for trial in waiting if _worker(inner, trial) is None), None)
        for trial in list(tune_controller.get_live_trials()):
            if trial.status == RayTrial.PENDING and trial.temporary_state.ray_actor is None:
                tune_controller.stop_trial(trial)
        return None

    def _watch_workers(self, tune_controller: Any) -> None:
        """Tells which trials have a worker, and ends the workers that are silent: for Ray, they died."""
        for trial in tune_controller.get_live_trials():
            worker = _worker(tune_controller._tune_controller, trial)
            if worker is not None:
                number = trial.config["number"]
                self._conductor.at_work(number)
                if self._conductor.silenced(number):
                    ray.kill(worker)

    def on_trial_error(self, tune_controller: Any, trial: RayTrial) -> None:
        """Called before the searcher is told that the trial's worker has ended."""
        reason, lost, unusable = _reason(trial)
        self._conductor.failing(trial.config["number"], reason, lost=lost, unusable=unusable)

    def __getstate__(self) -> dict[str, Any]:
        return {"_conductor": None}


class Relay(Callback):
    """Passes on what only callbacks are told: starts, last rounds, and the passing of time."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor

    def on_trial_start(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        self._conductor.placed(trial.config["number"])

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("done"):
            # The scheduler is not asked about a round that Ray already knows to be the last.
            self._conductor.reported(trial.config["number"], result)

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        self._conductor.tick()

    def __getstate__(self) -> dict[str, Any]:
        return {"_conductor": None}
