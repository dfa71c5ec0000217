"""Whether a label-free selection criterion picked well, asked once labels are unlocked and never before.

The answer is for one data set; a criterion counts as validated for unlabelled data only after at least three.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ardmvc_core.evaluation.intervals import FloatArray, Interval, bootstrap_interval, wilson
from ardmvc_core.evaluation.metrics import IntArray, fit_map

MIN_RHO = 0.5
"""The lower 95 % bound of Spearman's rho must lie above this."""
MAX_REGRET = 0.25
"""Largest accepted regret, as a share of that of a random pick."""
MIN_UNITS = 4
"""Fewest trials (or groups of trials) that a correlation is worked out for."""

Correlation = Callable[[FloatArray, FloatArray], float]
Part = Callable[[FloatArray], NDArray[np.bool_]]


@dataclass(frozen=True)
class CriterionReport:
    """How a criterion ranks the trials of one data set, and what following it costs."""

    rho: Interval
    """Spearman correlation of criterion and truth, in [−1, 1]; 0 where either is constant."""
    tau: Interval
    """Kendall's tau_b of the same, in [−1, 1]; 0 where either is constant."""
    rho_top: Interval | None
    """rho within the half of the trials with the highest criterion, where the choice is made; None with fewer
    than 4 trials or groups."""
    tau_top: Interval | None
    """tau within the same half."""
    picked: int
    """Place, in the arrays given, of the feasible trial with the highest criterion (the first of several)."""
    regret: float
    """Best truth of all trials minus that of the picked one, ≥ 0, in the unit of the truth."""
    normalised_regret: float
    """Regret over that of a random pick; 0 where that has none."""
    top3_regret: float
    """Regret of the best of the three feasible trials with the highest criterion."""
    random_regret: float
    """Regret to expect from a feasible trial picked at random: best minus mean truth of these."""
    validated: bool
    """Lower 95 % bound of rho above 0.5 and regret at most a quarter of a random pick's."""
    used: int
    """Trials that the numbers are about."""
    left_out: int
    """Trials without criterion or truth (NaN)."""


def validate_criterion(
    criterion: ArrayLike,
    truth: ArrayLike,
    groups: ArrayLike | None = None,
    feasible: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    seed: int,
) -> CriterionReport:
    """Rank correlations with 95 % intervals, and regrets.

    Intervals are BCa bootstraps over trials or, with groups, over whole groups (cluster bootstrap). The top half is
    found anew in each resample, since picking it is part of what is uncertain.

    Args:   criterion: (M,), higher is better, the number that selection sees. truth: (M,), higher is better, robust
        accuracy for instance. groups: (M,), equal for trials that are repeats of one configuration, None if there are
        no repeats. feasible: (M,) bool, trials that may be picked, None for all. resamples: ≥ 1. seed: ≥ 0.
    Raises: ValueError if shapes differ, a number is infinite, fewer than 4 trials or groups are usable, or none of
        these is feasible.
    """
    given, known = np.asarray(criterion, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    places = _usable(given, known)
    scores, truths = given[places], known[places]
    members = _members(places, _same_shape(groups, given, "groups"))
    allowed = _same_shape(feasible, given, "feasible")
    candidates = np.arange(len(places)) if allowed is None else np.flatnonzero(allowed[places].astype(bool))
    if not len(candidates):
        raise ValueError(f"none of the {len(places)} usable trials is feasible, so that the criterion picks none")

    def interval(correlation: Correlation, part: Part) -> Interval:
        def statistic(drawn: NDArray[np.int64]) -> float:
            rows = np.concatenate([members[unit] for unit in drawn])
            kept = part(scores[rows])
            return correlation(scores[rows][kept], truths[rows][kept])

        return bootstrap_interval(statistic, (np.arange(len(members)),), resamples=resamples, seed=seed)

    top = _top_half(scores)
    enough = sum(bool(top[rows].any()) for rows in members) >= MIN_UNITS
    ranking = candidates[np.argsort(-scores[candidates], kind="stable")]
    best = float(truths.max())
    regret, random = best - float(truths[ranking[0]]), best - float(truths[candidates].mean())
    rho = interval(_spearman, _all)
    return CriterionReport(
        rho=rho,
        tau=interval(_kendall, _all),
        rho_top=interval(_spearman, _top_half) if enough else None,
        tau_top=interval(_kendall, _top_half) if enough else None,
        picked=int(places[ranking[0]]),
        regret=regret,
        normalised_regret=regret / random if random > 0 else 0.0,
        top3_regret=best - float(truths[ranking[:3]].max()),
        random_regret=random,
        validated=rho.low > MIN_RHO and regret <= MAX_REGRET * random,
        used=len(places),
        left_out=len(given) - len(places),
    )


def vote_error(vote: IntArray, labels: IntArray, n_clusters: int) -> Interval:
    """Share of labelled samples on which the vote is wrong under the best one-to-one map, with Wilson's 95 % interval.

    Its upper bound bounds |robust ACC − PRA| of every trial. It takes samples that were drawn at random. The map is
    fitted to these very samples, which flatters a poor vote: in simulations with 50 samples and K 3, 5 or 10 the upper
    bound held the truth in 97 % or more for errors up to 0.5, and in 86 to 95 % for 0.7.

    Args:   vote, labels: (n,) in 0..K-1, of the labelled samples. n_clusters: K.
    Raises: ValueError if the two differ in length, are empty or leave their range.
    """
    right = int((fit_map(labels, vote, n_clusters)[vote] == labels).sum())
    return wilson(len(labels) - right, len(labels))


def _usable(criterion: FloatArray, truth: FloatArray) -> NDArray[np.int64]:
    """Places of the trials that have both numbers."""
    if criterion.ndim != 1 or criterion.shape != truth.shape:
        raise ValueError(
            f"criterion and truth must be vectors of one length, got shapes {criterion.shape} and {truth.shape}"
        )
    if np.isinf(criterion).any() or np.isinf(truth).any():
        raise ValueError("criterion and truth must be finite, or NaN where a trial has none")
    places = np.flatnonzero(~np.isnan(criterion) & ~np.isnan(truth))
    if len(places) < MIN_UNITS:
        raise ValueError(f"at least {MIN_UNITS} usable trials are needed, got {len(places)} of {len(criterion)}")
    return places


def _same_shape(values: ArrayLike | None, criterion: FloatArray, name: str) -> NDArray[Any] | None:
    array = None if values is None else np.asarray(values)
    if array is not None and array.shape != criterion.shape:
        raise ValueError(f"{name} must have the shape of criterion {criterion.shape}, got {array.shape}")
    return array


def _members(places: NDArray[np.int64], groups: NDArray[Any] | None) -> list[NDArray[np.int64]]:
    """Usable trials of each unit that is drawn as a whole: of each group, or one trial each."""
    if groups is None:
        return [np.array([row]) for row in range(len(places))]
    names, group_of = np.unique(groups[places], return_inverse=True)
    if len(names) < MIN_UNITS:
        raise ValueError(f"at least {MIN_UNITS} groups of usable trials are needed, got {len(names)}")
    return [np.flatnonzero(group_of == number) for number in range(len(names))]


def _all(scores: FloatArray) -> NDArray[np.bool_]:
    return np.ones(len(scores), dtype=np.bool_)


def _top_half(scores: FloatArray) -> NDArray[np.bool_]:
    """The higher half, the larger one of an odd number; all that tie with its lowest belong to it."""
    return scores >= np.sort(scores)[len(scores) // 2]


def _spearman(first: FloatArray, second: FloatArray) -> float:
    if _constant(first, second):
        return 0.0
    from scipy.stats import spearmanr

    return float(spearmanr(first, second)[0])


def _kendall(first: FloatArray, second: FloatArray) -> float:
    if _constant(first, second):
        return 0.0
    from scipy.stats import kendalltau

    # Only the coefficient is used; the default may work out an exact p value each time.
    return float(kendalltau(first, second, method="asymptotic")[0])


def _constant(first: FloatArray, second: FloatArray) -> bool:
    return bool(np.ptp(first) == 0 or np.ptp(second) == 0)
