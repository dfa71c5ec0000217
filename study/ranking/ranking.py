"""Which trials may be compared, how they rank, and what the best one is worth beside the baselines. Pure functions."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study.ranking.label_free import by_kappa, feasible, guarded, ranked_by_kappa
from study.ranking.objectives import dominates, pooled, upward
from study.records import Goal, TrialRecord


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial in a leaderboard."""

    record: TrialRecord
    rank: int | None = None
    """1 is best; with two objectives the number of the front it lies on. None: not comparable, `note` says why."""
    note: str = ""
    """Why it has no rank, or reasons to doubt its numbers."""
    main_budget: bool = True
    """False for a finished trial that was scored under another evaluation budget than the ranked ones."""


def scores(record: TrialRecord, objectives: Sequence[Goal]) -> tuple[float, ...] | None:
    """The trial's objective values; None unless it is judged, every one is finite, and it is feasible where the
    objectives are `select/…`."""
    if not record.judged or (guarded(objectives) and not feasible(record)):
        return None
    if below_floor(record, objectives):
        return None
    got = record.values if len(record.values) == len(objectives) else ()
    found = [got[i] if got else record.metrics.get(o.metric, math.nan) for i, o in enumerate(objectives)]
    return tuple(found) if found and all(map(math.isfinite, found)) else None


def below_floor(record: TrialRecord, objectives: Sequence[Goal]) -> str:
    """The first floor of an objective that a trial does not reach, for people; empty if it reaches all."""
    for name, floor in (floor for goal in objectives for floor in goal.floors):
        if not record.metrics.get(name, -math.inf) >= floor:
            return f"{name} must be ≥ {floor:g}"
    return ""


def main_budget(records: Iterable[TrialRecord]) -> str:
    """The evaluation budget most complete trials share; the newest of equals."""
    digests = [record.budget for record in sorted(records, key=lambda r: r.number) if record.judged]
    counts = Counter(digests)
    return max(counts, key=lambda digest: (counts[digest], digests[::-1].index(digest) * -1), default="")


def rank(records: Iterable[TrialRecord], objectives: Sequence[Goal]) -> list[Row]:
    """All trials, best first: ranked ones, then those of another budget, pruned, failed and unfinished ones.

    Only judged trials of the main budget get a rank: a trial that was stopped early, or attacked with another budget,
    was measured with another ruler. Where the objective is `select/pra` and the vote is not reliable,
    `robust/kappa` ranks in its place (`ranked_by_kappa`).
    """
    records = sorted(records, key=lambda record: record.number)
    budget = main_budget(records)
    points: dict[int, tuple[float, ...]] = {}
    for record in records:
        found = scores(record, objectives)
        if found is not None and record.budget == budget:
            points[record.number] = upward(found, objectives)
    candidates = [record for record in records if record.number in points]
    if ranked_by_kappa(candidates, objectives):
        points = by_kappa(candidates)
    elif len(objectives) == 1:
        points = likely(candidates, points, objectives[0].metric)
    ranks = fronts(points) if len(objectives) > 1 else _places(points)
    rows = [
        Row(
            record=record,
            rank=ranks.get(record.number),
            note=_note(record, budget, record.number in points, objectives),
            main_budget=record.budget == budget or not record.judged,
        )
        for record in records
    ]
    last = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")

    def key(row: Row) -> tuple[Any, ...]:
        if row.rank is not None:
            return (0, row.rank, -points[row.record.number][0], row.record.number)
        return (1, last.index(row.record.state), 0.0, row.record.number)

    return sorted(rows, key=key)


def likely(
    records: Sequence[TrialRecord], points: Mapping[int, tuple[float, ...]], metric: str
) -> dict[int, tuple[float, ...]]:
    """What each trial's objective is likely to be, where trials differ in seeds: the fewer, the less luck counts."""
    seeds = [record.seeds for record in records]
    shared = pooled(records, metric)
    if shared is None or len(set(seeds)) < 2:
        return dict(points)
    means, _ = shared.shrunken([points[record.number][0] for record in records], seeds)
    return {record.number: (float(mean),) for record, mean in zip(records, means, strict=True)}


def since_improvement(records: Iterable[TrialRecord], objectives: Sequence[Goal]) -> int:
    """Trials that were finished, complete or pruned, since one was better than all before it; 0 if there is none.

    With two objectives a trial is better if no earlier one is as good in both. A trial of another evaluation budget
    than the ranked ones is never better.
    """
    finished = [record for record in records if record.judged or record.state == "PRUNED"]
    budget = main_budget(finished)
    front: list[tuple[float, ...]] = []
    since = 0
    for record in sorted(finished, key=lambda record: (record.ended, record.number)):
        since += bool(front)
        found = scores(record, objectives)
        if found is None or record.budget != budget:
            continue
        point = upward(found, objectives)
        if not any(other == point or dominates(other, point) for other in front):
            front = [other for other in front if not dominates(point, other)] + [point]
            since = 0
    return since


def _places(points: Mapping[int, tuple[float, ...]]) -> dict[int, int]:
    """Place of each trial, equal values sharing one: 1, 2, 2, 4."""
    places: dict[tuple[float, ...], int] = {}
    for place, point in enumerate(sorted(points.values(), reverse=True), start=1):
        places.setdefault(point, place)
    return {number: places[point] for number, point in points.items()}


def fronts(points: Mapping[int, tuple[float, ...]]) -> dict[int, int]:
    """Number of the Pareto front that each trial lies on, 1 for those that no other beats in everything."""
    left = dict(points)
    found: dict[int, int] = {}
    front = 0
    while left:
        front += 1
        best = [n for n, own in left.items() if not any(dominates(other, own) for other in left.values())]
        for number in best:
            found[number] = front
            del left[number]
    return found


def _note(record: TrialRecord, budget: str, comparable: bool, objectives: Sequence[Goal]) -> str:
    steps = f"round {record.round}/{record.goal}"
    if record.state == "PRUNED":
        return f"stopped early at {steps}"
    if record.state == "FAIL":
        return f"{' '.join((record.failure or 'no reason stored').split())} ({steps})"
    if record.judged:
        return _judged_note(record, budget, comparable, objectives)
    if record.rests:
        return f"rests at {steps}"
    return f"{'running' if record.state == 'RUNNING' else 'waiting'}, {steps}"


def _judged_note(record: TrialRecord, budget: str, comparable: bool, objectives: Sequence[Goal]) -> str:
    if record.budget != budget:
        return f"other evaluation budget ({record.budget or 'unknown'}): not compared"
    if comparable:
        return "; ".join(record.warnings)
    if low := below_floor(record, objectives):
        return f"not feasible: {low}"
    if guarded(objectives) and not feasible(record):
        return "not feasible: clusters are empty or too uneven, or utility is below the floor"
    return "an objective is missing or not finite"


def best(records: Iterable[TrialRecord], objectives: Sequence[Goal]) -> TrialRecord | None:
    """The first of `rank`, None if nothing can be ranked."""
    rows = rank(records, objectives)
    return rows[0].record if rows and rows[0].rank is not None else None
