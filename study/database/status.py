"""How a study stands: driver, trials, failures, time, the best trial."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from study.ranking.objectives import goals, spread
from study.ranking.ranking import rank, scores, since_improvement
from study.records import Goal, TrialRecord

if TYPE_CHECKING:
    from study.database.ledger import Ledger


State = Literal["running", "pausing", "paused", "stopping", "finished", "not running", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Who runs the study, or was the last to."""

    host: str
    pid: int
    heartbeat: float
    """Seconds since it was last heard of, by this machine's clock."""
    alive: bool | None
    """None: it runs on another machine and has not been heard of lately."""


@dataclass(frozen=True, kw_only=True)
class OpenTrial:
    """A trial that has no final state yet."""

    number: int
    at_work: bool
    """Whether a worker has it; the others wait to be given out."""
    round: int
    """Rounds done."""
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """A study at one moment."""

    study: str
    state: State
    wish: str
    """What is asked of the driver: "pause", "stop", or ""."""
    driver: Driver | None
    trials: dict[str, int]
    """State → number of trials; `budget` is how many the study comes to."""
    failures: dict[str, int]
    """`count` of failed trials, and `limit`."""
    hours: dict[str, float | None]
    """`used` by all drivers, and `limit`."""
    patience: dict[str, int | None]
    """Finished trials `since` the best one, and `limit`."""
    best: dict[str, Any] | None
    """`number`, and the `metrics` that are the study's objectives, with their `spread` over seeds."""
    open: tuple[OpenTrial, ...]


def status_of(ledger: "Ledger") -> Status:
    """Reads the study's state; writes nothing."""
    spec, records, wish, driver = ledger.spec, ledger.records(), ledger.control, driver_of(ledger)
    limits, objectives = spec.get("limits", {}), goals(spec)
    counts = Counter(record.state.lower() for record in records)
    budget = ledger.budget or len(records)
    alive = driver.alive if driver else False
    at_work = {record.number for record in records if record.state == "RUNNING" and alive is not False}
    complete = len(records) >= budget and all(record.finished for record in records)
    state: State = "finished" if complete else "unknown" if alive is None else "not running"
    if alive:
        pausing: State = "pausing" if at_work else "paused"
        state = pausing if wish == "pause" else "stopping" if wish == "stop" else "running"
    elif wish == "stop":
        wish = ""  # whoever it was meant for is gone, and the next driver does not heed it
    ranked = [row.record for row in rank(records, objectives) if row.rank is not None] if objectives else []
    return Status(
        study=ledger.name,
        state=state,
        wish=wish,
        driver=driver,
        trials={"budget": budget, **{s: counts[s] for s in ("complete", "pruned", "fail", "running", "waiting")}},
        failures={"count": counts["fail"], "limit": int(limits.get("failures", 0))},
        hours={"used": ledger.seconds / 3600, "limit": limits.get("hours")},
        patience={"since": since_improvement(records, objectives), "limit": limits.get("patience")},
        best=best_facts(ranked[0], objectives) if ranked else None,
        open=tuple(
            OpenTrial(number=r.number, at_work=r.number in at_work, round=r.round, rounds=r.rounds)
            for r in records
            if not r.finished
        ),
    )


def best_facts(record: TrialRecord, objectives: Sequence[Goal]) -> dict[str, Any]:
    metrics = [objective.metric for objective in objectives]
    return {
        "number": record.number,
        "metrics": dict(zip(metrics, scores(record, objectives) or (), strict=True)),
        "spread": {metric: spread(record, metric) for metric in metrics},
    }


def driver_of(ledger: "Ledger") -> Driver | None:
    from study.database.lease import STALE_SECONDS

    holder = ledger.holder()
    if holder is None:
        return None
    age = time.time() - holder["heartbeat"]
    alive = holder["alive"]
    if alive is None and abs(age) < STALE_SECONDS:
        alive = True
    return Driver(host=holder["host"], pid=holder["pid"], heartbeat=age, alive=alive)
