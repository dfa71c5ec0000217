"""The best trial beside the baselines in sentences, and how parameters and metrics are shown."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from ardmvc_core.evaluation.intervals import PooledSpread
from study.ranking.label_free import NOT_CORRECTNESS, choice, feasible, guarded, ranked_by_kappa, shows_pra
from study.ranking.objectives import ALPHA, pooled, spread, upward, value
from study.ranking.ranking import rank, scores
from study.records import Goal, TrialRecord

MOST_LIKELY, LEAST_SHARE = 3, 0.05
"""Trials that are named as perhaps the best, and the probability below which none is."""
LEAST_P = 0.001
"""Smaller p values are shown as below it."""


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
    return "" if found is None else with_spread(found, spread(record, metric))


def with_spread(mean: float, deviation: float | None) -> str:
    """`0.523 ± 0.031`; the mean alone where the spread is not known."""
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def summary(records: Iterable[TrialRecord], objectives: Sequence[Goal]) -> str:
    """The best trial (with two objectives: the Pareto front) beside the baselines, and what the difference is worth."""
    records = list(records)
    rows = rank(records, objectives)
    ranked = [row for row in rows if row.rank is not None]
    if not ranked:
        counts = Counter(record.state for record in records)
        states = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no trials"
        complete = [record for record in records if record.judged]
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
        lines += _differences([row.record for row in ranked], beside, objectives[0])
    lines += [f"warning: trial {r.number}: {text}" for r in [*top, *beside] for text in r.warnings]
    lines += [
        f"baseline trial {row.record.number} has no rank: {row.note}"
        for row in rows
        if row.rank is None and row.record.baseline and row.record.judged and row.main_budget
    ]
    others = sum(not row.main_budget for row in rows)
    if others:
        lines.append(f"Left out: {others} complete trial(s) with another evaluation budget.")
    if shows_pra(records):
        lines.append(NOT_CORRECTNESS)
    return "\n".join(lines)


def _line(record: TrialRecord, objectives: Sequence[Goal], paths: Sequence[str], top: bool) -> list[str]:
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


def _likely_best(ranked: Sequence[TrialRecord], objective: Goal, shared: PooledSpread) -> str:
    """The trials that may be the best under the noise of seeds, likeliest first: "likely best: trial 5 (0.62), …"."""
    means = [upward(scores(record, [objective]) or (math.nan,), [objective])[0] for record in ranked]
    chances = shared.best_probabilities(means, [record.seeds for record in ranked])
    found = sorted(zip(chances, ranked, strict=True), key=lambda pair: -pair[0])
    if math.isclose(found[0][0], found[-1][0]):
        return "likely best: any of them, the trials differ by no more than their seeds do"
    named = [f"trial {record.number} ({share:.2f})" for share, record in found[:MOST_LIKELY] if share >= LEAST_SHARE]
    return f"likely best, with its probability under the noise of seeds: {', '.join(named)}"


def _differences(ranked: Sequence[TrialRecord], beside: Sequence[TrialRecord], objective: Goal) -> list[str]:
    """One line per baseline: whether the best trial differs from it by more than chance.

    p is corrected for the choice: any ranked trial might have come first, and that one is compared with every baseline.
    """
    top = ranked[0]
    lines: list[str] = ["warning: the best trial is a baseline; no searched trial is better"] if top.baseline else []
    if ranked_by_kappa([top], [objective]):
        return lines  # this objective has not ranked them
    own, metric = (scores(top, [objective]) or (math.nan,))[0], objective.metric
    shared, tests = pooled(ranked, metric), (len(ranked) - 1) * len(beside)
    for other in beside:
        gap = own - (scores(other, [objective]) or (math.nan,))[0]
        text = f"{metric} differs from baseline trial {other.number} by {abs(gap):.3f}"
        if shared is None:
            lines.append(f"warning: {text}; one seed per trial, so the spread is unknown: not a finding")
            continue
        p = shared.p_value(gap, top.seeds, other.seeds, tests)
        shown = f"p = {p:.3f}" if p >= LEAST_P else f"p < {LEAST_P}"
        noise = f"warning: {text}, within noise ({shown}): not a finding"
        lines.append(noise if p > ALPHA else f"{text}, more than noise ({shown})")
    return lines if shared is None or len(ranked) < 2 else [*lines, _likely_best(ranked, objective, shared)]
