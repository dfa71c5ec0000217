"""What trials are ranked by: goals as a stored spec has them, and a trial's values of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ardmvc_core.evaluation.intervals import PooledSpread, pooled_spread
from study.records import Goal, TrialRecord

ALPHA = 0.05
"""A difference with a larger p value is no finding."""
GROUPS, SCORES = ("clean", "robust", "official/pre", "official/post"), ("acc", "nmi", "ari")


def headline(objectives: Sequence[Goal]) -> list[str]:
    """Names of the few scores that stand for a trial: its objectives first, then clean and worst-case ACC, NMI, ARI."""
    scores = (f"{group}/{score}" for group in GROUPS for score in SCORES)
    return list(dict.fromkeys([*(objective.metric for objective in objectives), *scores]))


def goals(spec: Mapping[str, Any]) -> list[Goal]:
    """The objectives of a resolved spec: one mapping or a list of them under `objective`."""
    stored = spec.get("objective") or []
    entries = [stored] if isinstance(stored, Mapping) else stored
    return [
        Goal(str(entry["metric"]), str(entry.get("mode", "max")), tuple(sorted(entry.get("floors", {}).items())))
        for entry in entries
    ]


def value(record: TrialRecord, metric: str) -> float | None:
    """A metric of the trial's last report, None where it is absent or not finite."""
    got = record.metrics.get(metric)
    return got if got is not None and math.isfinite(got) else None


def spread(record: TrialRecord, metric: str) -> float | None:
    """Standard deviation of the metric over the trial's seeds; None with a single seed."""
    return value(record, f"spread/{metric}")


def pooled(records: Sequence[TrialRecord], metric: str) -> PooledSpread | None:
    """Spread of the metric over seeds that trials of one study share; None with a single seed.

    Every trial of a study has the same seeds, so that a test paired by seed would find more; records hold no values per
    seed.
    """
    found = [(own, record.seeds) for record in records if (own := spread(record, metric)) is not None]
    # Where the number of seeds is not stored there are two at least: one has no spread.
    return pooled_spread(*zip(*((own, max(seeds, 2)) for own, seeds in found), strict=True)) if found else None


def upward(values: Sequence[float], objectives: Sequence[Goal]) -> tuple[float, ...]:
    """Objective values with the sign that makes larger better in each."""
    return tuple(v if goal.mode == "max" else -v for v, goal in zip(values, objectives, strict=True))


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether a point is as good as another in everything and better in something; larger is better."""
    return one != other and all(mine >= yours for mine, yours in zip(one, other, strict=True))
