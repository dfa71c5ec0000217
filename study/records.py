"""What a study wants, and what it knows of one trial: the only source of tables, figures and MLflow runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # it brings Ray, and commands that only look at a study are to answer at once
    from trainables.heartbeat import Place

State = Literal["WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL"]
FINISHED: frozenset[str] = frozenset({"COMPLETE", "PRUNED", "FAIL"})


def duration(seconds: float) -> str:
    """A time for people: `45 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Goal:
    """What a study optimises: a metric's name, and "max" or "min"."""

    metric: str
    mode: str
    floors: tuple[tuple[str, float], ...] = ()
    """Metrics that a trial must have at least so much of to be ranked."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A worker that a trial was given to and that ended before the trial did."""

    round: int
    """Rounds that the trial had done by then."""
    time: int
    """When, in ms since the epoch."""
    reason: str
    lost: bool = False
    """Whether the worker's machine or the storage was lost, which is no fault of the trial."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of a study; `number` is its identity everywhere (Optuna, Ray, checkpoints, MLflow)."""

    number: int
    state: State
    values: tuple[float, ...] = ()
    """Objective values; empty unless COMPLETE, or PRUNED with one objective."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted path into `trial` → value, sampled or given by a baseline."""
    baseline: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved trial config, enough to run the trial again."""
    round: int = 0
    """Rounds reported so far."""
    rounds: int = 0
    """Rounds that it comes to; where a search gives them out bit by bit, those that it was given so far."""
    leg: int = 0
    """Rounds in which one seed, or the first ones side by side, are trained; 0: all."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Flat metrics of the last report; `spread/<metric>` is the standard deviation over the trial's seeds."""
    history: tuple[tuple[int, int, dict[str, float]], ...] = ()
    """Every round's (round, time in ms since the epoch, metrics), in order; the last one is `metrics`."""
    durations: tuple[float, ...] = ()
    """Seconds that each round of `history` took."""
    budget: str = ""
    """Digest of the evaluation budget; trials of different digests are not compared."""
    warnings: tuple[str, ...] = ()
    """Reasons to doubt a number of the last report."""
    failure: str | None = None
    checkpoint: str | None = None
    """Folder of the newest recorded checkpoint (local path or URI)."""
    fallbacks: tuple[str, ...] = ()
    """Recorded checkpoints before that one, newest first; all but the first are deleted by now."""
    attempts: tuple[Attempt, ...] = ()
    """Attempts that failed, oldest first; the trial was given out again after each, except the last of a FAIL."""
    ended: int = 0
    """When the trial got its final state, in ms since the epoch; 0 before."""
    seconds: float = 0.0
    """Time spent training and evaluating, over all attempts."""

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    @property
    def rests(self) -> bool:
        """Whether it has done what it was given, and waits for the search to say how it goes on."""
        return not self.finished and bool(self.leg) and 0 < self.rounds <= self.round

    @property
    def given(self) -> int:
        """Rounds that were given out to it, in whatever way."""
        return max(self.round, self.rounds)

    @property
    def legs_behind(self) -> int:
        """Legs that are trained to their end."""
        return self.round // (self.leg or self.rounds or 1)

    @property
    def judged(self) -> bool:
        """Whether its scores can be compared: it is complete, or a leg of it is."""
        return self.state == "COMPLETE" or (not self.finished and bool(self.leg) and self.legs_behind > 0)

    @property
    def seeds(self) -> int:
        """Seeds that its last report is the mean of."""
        repeats = self.config.get("repeats", 1)
        if isinstance(repeats, int):
            return repeats
        return int(repeats["first"]) + max(0, self.legs_behind - 1)

    @property
    def goal(self) -> int:
        """Rounds until the seed that it is at is trained."""
        return -(-max(self.rounds, 1) // self.leg) * self.leg if self.leg else self.rounds


@dataclass(frozen=True)
class WorkerAway:
    """What keeps a trial from going on: its worker is silent, or waits for the storage, or none is there."""

    kind: Literal["silent", "missing", "waits"]
    seconds: float
    """For how long."""
    reason: str = ""
    """What a worker that is heard of waits for."""


class Observer(Protocol):
    """What the live table and the MLflow tracker both are: told of events in the order they happen, in the driver."""

    def trial_started(self, record: TrialRecord) -> None:
        """The trial was given to a worker, for the first time or again after an interruption."""

    def trial_reported(self, record: TrialRecord) -> None:
        """A round ended; `record.metrics` and `record.round` are that round's."""

    def trial_paused(self, record: TrialRecord) -> None:
        """The trial gave its worker back before its end, in order or not, and waits to be given out again."""

    def trial_ended(self, record: TrialRecord) -> None:
        """The trial has reached a final state, which the database already holds."""

    def workers_away(self, away: Mapping[int, WorkerAway]) -> None:
        """Trials that do not go on: called about once a second while there are any, and once when there are none."""

    def rounds_at(self, places: "Mapping[int, Place]") -> None:
        """How far the workers of trials are inside their rounds, about once a second."""

    def tick(self) -> None:
        """Called about once a second."""

    def close(self) -> None:
        """The driver ends, in order or by an exception."""
