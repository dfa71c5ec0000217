"""Which trials may be compared, how they rank, and what the best one is worth beside the baselines. Pure functions."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from study.ranking.label_free import by_criterion_b, choice, feasible, guarded, ranked_by_b
from study.records import FINISHED, TrialRecord


class Objective(Protocol):
    """What `StudySpec.objectives` holds: a metric's name and "max" or "min"."""

    @property
    def metric(self) -> str: ...

    @property
    def mode(self) -> str: ...


@dataclass(frozen=True)
class Goal:
    """An objective as read back from a stored spec."""

    metric: str
    mode: str


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


def goals(spec: Mapping[str, Any]) -> list[Goal]:
    """The objectives of a resolved spec: one mapping or a list of them under `objective`."""
    stored = spec.get("objective") or []
    entries = [stored] if isinstance(stored, Mapping) else stored
    return [Goal(str(entry["metric"]), str(entry.get("mode", "max"))) for entry in entries]


def value(record: TrialRecord, metric: str) -> float | None:
    """A metric of the trial's last report, None where it is absent or not finite."""
    got = record.metrics.get(metric)
    return got if got is not None and math.isfinite(got) else None


def spread(record: TrialRecord, metric: str) -> float | None:
    """Standard deviation of the metric over the trial's seeds; None with a single seed."""
    return value(record, f"spread/{metric}")


def scores(record: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    """The trial's objective values; None unless it is COMPLETE, every one is finite, and it is feasible where the
    objectives are `select/…`."""
    if record.state != "COMPLETE" or (guarded(objectives) and not feasible(record)):
        return None
    got = record.values if len(record.values) == len(objectives) else ()
    found = [got[i] if got else record.metrics.get(o.metric, math.nan) for i, o in enumerate(objectives)]
    return tuple(found) if found and all(map(math.isfinite, found)) else None


def main_budget(records: Iterable[TrialRecord]) -> str:
    """The evaluation budget most complete trials share; the newest of equals."""
    digests = [record.budget for record in sorted(records, key=lambda r: r.number) if record.state == "COMPLETE"]
    counts = Counter(digests)
    return max(counts, key=lambda digest: (counts[digest], digests[::-1].index(digest) * -1), default="")


def rank(records: Iterable[TrialRecord], objectives: Sequence[Objective]) -> list[Row]:
    """All trials, best first: ranked ones, then those of another budget, pruned, failed and unfinished ones.

    Only COMPLETE trials of the main budget get a rank: a trial that was stopped early, or attacked with another budget,
    was measured with another ruler. Where the objective is `select/pra` and the plain models agree too little to vote,
    criterion B ranks in its place (`ranked_by_b`).
    """
    records = sorted(records, key=lambda record: record.number)
    budget = main_budget(records)
    signs = [1.0 if objective.mode == "max" else -1.0 for objective in objectives]
    points: dict[int, tuple[float, ...]] = {}
    for record in records:
        found = scores(record, objectives)
        if found is not None and record.budget == budget:
            points[record.number] = tuple(sign * number for sign, number in zip(signs, found, strict=True))
    candidates = [record for record in records if record.number in points]
    if ranked_by_b(candidates, objectives):
        points = by_criterion_b(candidates)
    ranks = _fronts(points) if len(signs) > 1 else _places(points)
    rows = [
        Row(
            record=record,
            rank=ranks.get(record.number),
            note=_note(record, budget, record.number in points, guarded(objectives)),
            main_budget=record.budget == budget or record.state != "COMPLETE",
        )
        for record in records
    ]
    last = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")

    def key(row: Row) -> tuple[Any, ...]:
        if row.rank is not None:
            return (0, row.rank, -points[row.record.number][0], row.record.number)
        return (1, last.index(row.record.state), 0.0, row.record.number)

    return sorted(rows, key=key)


def since_improvement(records: Iterable[TrialRecord], objectives: Sequence[Objective]) -> int:
    """Trials that were finished, complete or pruned, since one was better than all before it; 0 if there is none.

    With two objectives a trial is better if no earlier one is as good in both. A trial of another evaluation budget
    than the ranked ones is never better.
    """
    finished = [record for record in records if record.state in ("COMPLETE", "PRUNED")]
    signs = [1.0 if objective.mode == "max" else -1.0 for objective in objectives]
    budget = main_budget(finished)
    front: list[tuple[float, ...]] = []
    since = 0
    for record in sorted(finished, key=lambda record: (record.ended, record.number)):
        since += bool(front)
        found = scores(record, objectives)
        if found is None or record.budget != budget:
            continue
        point = tuple(sign * number for sign, number in zip(signs, found, strict=True))
        if not any(_as_good(other, point) for other in front):
            front = [other for other in front if not _as_good(point, other)] + [point]
            since = 0
    return since


def _as_good(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(mine >= yours for mine, yours in zip(one, other, strict=True))


def _places(points: Mapping[int, tuple[float, ...]]) -> dict[int, int]:
    """Place of each trial, equal values sharing one: 1, 2, 2, 4."""
    places: dict[tuple[float, ...], int] = {}
    for place, point in enumerate(sorted(points.values(), reverse=True), start=1):
        places.setdefault(point, place)
    return {number: places[point] for number, point in points.items()}


def _fronts(points: Mapping[int, tuple[float, ...]]) -> dict[int, int]:
    """Number of the Pareto front that each trial lies on, 1 for those that no other beats in everything."""
    left = dict(points)
    found: dict[int, int] = {}
    front = 0
    while left:
        front += 1
        best = [n for n, own in left.items() if not any(_dominates(other, own) for other in left.values())]
        for number in best:
            found[number] = front
            del left[number]
    return found


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _note(record: TrialRecord, budget: str, comparable: bool, guarded: bool) -> str:
    steps = f"round {record.round}/{record.rounds}"
    if record.state == "PRUNED":
        return f"stopped early at {steps}"
    if record.state == "FAIL":
        return f"{' '.join((record.failure or 'no reason stored').split())} ({steps})"
    if record.state == "RUNNING":
        return f"running, {steps}"
    if record.state == "WAITING":
        return f"waiting, {steps}"
    if record.budget != budget:
        return f"other evaluation budget ({record.budget or 'unknown'}): not compared"
    if comparable:
        return "; ".join(record.warnings)
    if guarded and not feasible(record):
        return "not feasible: clusters are empty or too uneven, or utility is below the floor"
    return "an objective is missing or not finite"


def best(records: Iterable[TrialRecord], objectives: Sequence[Objective]) -> TrialRecord | None:
    """The first of `rank`, None if nothing can be ranked."""
    rows = rank(records, objectives)
    return rows[0].record if rows and rows[0].rank is not None else None


class Standing:
    """What `best` says of trials that come one by one, and how many are in each state, at the same cost for each."""

    def __init__(self, objectives: Sequence[Objective], records: Iterable[TrialRecord] = ()) -> None:
        self._objectives = objectives
        self._signs = [1.0 if objective.mode == "max" else -1.0 for objective in objectives]
        self._records: dict[int, TrialRecord] = {}
        self.states: Counter[str] = Counter()
        self._forget()
        for record in records:
            self.keep(record)

    def _forget(self) -> None:
        self._budgets: dict[str, tuple[int, int]] = {}
        """Complete trials of each evaluation budget, and the newest one's number."""
        self._leaders: dict[str, dict[tuple[float, ...], TrialRecord]] = {}
        """By budget: of the trials best in the first objective, those that no other beats; of equals the first."""

    @property
    def finished(self) -> int:
        return sum(self.states[state] for state in FINISHED)

    def keep(self, record: TrialRecord) -> None:
        """A new trial, or news of one."""
        old = self._records.get(record.number)
        self._records[record.number] = record
        self.states[record.state] += 1
        if old is not None:
            self.states[old.state] -= 1
        if old is not None and old.state == "COMPLETE":
            self._forget()
            for known in self._records.values():
                self._judge(known)
        else:
            self._judge(record)

    def _judge(self, record: TrialRecord) -> None:
        if record.state != "COMPLETE":
            return
        count, newest = self._budgets.get(record.budget, (0, -1))
        self._budgets[record.budget] = count + 1, max(newest, record.number)
        found = scores(record, self._objectives)
        if found is None:
            return
        point = tuple(sign * number for sign, number in zip(self._signs, found, strict=True))
        leaders = self._leaders.get(record.budget, {})
        top = next(iter(leaders), None)
        if top is None or point[0] > top[0]:
            self._leaders[record.budget] = {point: record}
        elif point in leaders:
            leaders[point] = min(leaders[point], record, key=lambda one: one.number)
        elif point[0] == top[0] and not any(_dominates(other, point) for other in leaders):
            kept = {other: leader for other, leader in leaders.items() if not _dominates(point, other)}
            self._leaders[record.budget] = {**kept, point: record}

    @property
    def best(self) -> TrialRecord | None:
        """As the function `best` of all trials, but by the objective where that one ranks by criterion B."""
        budget = max(self._budgets, key=self._budgets.__getitem__, default="")
        return min(self._leaders.get(budget, {}).values(), key=lambda record: record.number, default=None)


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Dotted path → its last parts, as few as tell all paths apart."""
    paths = list(dict.fromkeys(paths))

    def tail(path: str, parts: int) -> str:
        return ".".join(path.split(".")[-parts:])

    names: dict[str, str] = {}
    for path in paths:
        parts = 1
        while tail(path, parts) != path and any(tail(p, parts) == tail(path, parts) for p in paths if p != path):
            parts += 1
        names[path] = tail(path, parts)
    return names


def override_paths(records: Iterable[TrialRecord]) -> list[str]:
    """Every overridden path, in the order in which trials first name it."""
    return list(dict.fromkeys(path for record in records for path in record.overrides))


def show(number: object) -> str:
    """A parameter or metric for people: three significant digits, text as it is."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return "" if number is None else str(number)
    return str(number) if isinstance(number, int) else f"{number:.3g}"


def show_metric(record: TrialRecord, metric: str, own: float | None = None) -> str:
    """A metric with its spread over seeds, `0.523 ± 0.031`; empty where there is none."""
    found = value(record, metric) if own is None else own
    if found is None:
        return ""
    deviation = spread(record, metric)
    return f"{found:.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")


def summary(records: Iterable[TrialRecord], objectives: Sequence[Objective]) -> str:
    """The best trial (with two objectives: the Pareto front) beside the baselines, and what the difference is worth."""
    records = list(records)
    rows = rank(records, objectives)
    ranked = [row for row in rows if row.rank is not None]
    if not ranked:
        counts = Counter(record.state for record in records)
        states = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no trials"
        complete = [record for record in records if record.state == "COMPLETE"]
        if guarded(objectives) and complete and not any(map(feasible, complete)):
            return f"No trial is feasible ({states}): the guards against collapse hold for none, so none is picked."
        return f"No complete trial to rank ({states})."
    winners = [row.record for row in ranked if row.rank == 1]
    several = len(objectives) > 1
    top = winners if several else [ranked[0].record]
    heading = f"Pareto front ({len(top)} of {len(ranked)} complete trials)" if several else "Best trial and baselines"
    beside = [row.record for row in ranked if row.record.baseline and row.record not in top]
    paths = override_paths(record for record in [*top, *beside])
    lines = [f"{heading}, mean ± standard deviation over the trial's seeds:"]
    lines += _aligned([_line(record, objectives, paths, record in top) for record in [*top, *beside]])
    lines += choice([row.record for row in ranked], objectives)
    if not several:
        lines += _differences(top[0], beside, objectives[0])
    lines += [f"warning: trial {r.number}: {text}" for r in [*top, *beside] for text in r.warnings]
    lines += [
        f"baseline trial {row.record.number} has no rank: {row.note}"
        for row in rows
        if row.rank is None and row.record.baseline and row.record.state == "COMPLETE" and row.main_budget
    ]
    others = sum(not row.main_budget for row in rows)
    if others:
        lines.append(f"Left out: {others} complete trial(s) with another evaluation budget.")
    return "\n".join(lines)


def _line(record: TrialRecord, objectives: Sequence[Objective], paths: Sequence[str], top: bool) -> list[str]:
    shown = scores(record, objectives) or ()
    word = "front" if len(objectives) > 1 else "best"
    cells = [f"  {word if top else ''}{' (baseline)' if record.baseline else ''}", f"trial {record.number}"]
    cells += [f"{o.metric} {show_metric(record, o.metric, own)}" for o, own in zip(objectives, shown, strict=True)]
    for metric in sorted({"clean/acc", "robust/acc"}.difference(o.metric for o in objectives)):
        text = show_metric(record, metric)
        cells.append(f"{metric} {text}" if text else "")
    names = short_names(paths)
    given = [path for path in paths if path in record.overrides]
    cells.append(", ".join(f"{names[path]} {show(record.overrides[path])}" for path in given))
    return cells


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True) if w).rstrip() for row in table]


def _differences(top: TrialRecord, beside: Sequence[TrialRecord], objective: Objective) -> list[str]:
    """One line per baseline. The difference of two means varies by √(s₁² + s₂²); below that it shows nothing."""
    lines: list[str] = ["warning: the best trial is a baseline; no searched trial is better"] if top.baseline else []
    if ranked_by_b([top], [objective]):
        return lines  # this objective has not ranked them
    own, metric = (scores(top, [objective]) or (math.nan,))[0], objective.metric
    for other in beside:
        found = (scores(other, [objective]) or (math.nan,))[0]
        gap = abs(own - found)
        text = f"{metric} differs from baseline trial {other.number} by {gap:.3f}"
        spreads = spread(top, metric), spread(other, metric)
        if spreads[0] is None or spreads[1] is None:
            lines.append(f"warning: {text}; one seed per trial, so the spread is unknown: not a finding")
            continue
        both = math.hypot(spreads[0], spreads[1])
        if gap <= both:
            lines.append(f"warning: {text}, within the spread over seeds ({both:.3f}): not a finding")
        else:
            lines.append(f"{text}, more than the spread over seeds ({both:.3f})")
    return lines
