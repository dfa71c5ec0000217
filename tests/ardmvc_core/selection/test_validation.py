import math
from typing import Any

import numpy as np
import pytest

from ardmvc_core.selection.validation import CriterionReport, validate_criterion, vote_error

# Ranks of the truth against 1..8 differ by 1, 1, 0, 1, 1, 0, 1, 1.
CRITERION = np.array([1, 2, 3, 4, 5, 6, 7, 8.0])
TRUTH = np.array([0.2, 0.1, 0.3, 0.5, 0.4, 0.6, 0.8, 0.7])


def report(criterion: Any, truth: Any, **options: Any) -> CriterionReport:
    return validate_criterion(criterion, truth, **({"resamples": 100, "seed": 0} | options))


def test_report_by_hand() -> None:
    found = report(CRITERION, TRUTH)
    assert found.rho.value == pytest.approx(1 - 6 * 6 / (8 * 63))
    # Three of 28 pairs are the wrong way round.
    assert found.tau.value == pytest.approx((25 - 3) / 28)
    # Upper half: ranks 1, 2, 3, 4 against 1, 2, 4, 3.
    assert found.rho_top is not None
    assert found.tau_top is not None
    assert found.rho_top.value == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found.tau_top.value == pytest.approx((5 - 1) / 6)
    assert (found.picked, found.used, found.left_out) == (7, 8, 0)
    assert found.regret == pytest.approx(0.1)
    assert found.normalised_regret == pytest.approx(0.1 / (0.8 - 0.45))
    assert found.top3_regret == 0.0
    assert found.random_regret == pytest.approx(0.8 - 3.6 / 8)
    # 0.286 of the way back to the median is more than a quarter.
    assert not found.validated


def test_ties_by_hand() -> None:
    found = report([1, 1, 2, 3], [0.1, 0.2, 0.2, 0.4])
    # Of 6 pairs one is tied in each; the other 4 agree: 4/√(5·5). Ranks are 1.5 1.5 3 4 and 1 2.5 2.5 4.
    assert found.tau.value == pytest.approx(0.8)
    covariance = np.dot([-1, -1, 0.5, 1.5], [-1.5, 0, 0, 1.5])
    assert found.rho.value == pytest.approx(covariance / 4.5)
    assert found.picked == 3


def test_only_feasible_trials_are_picked_but_all_are_compared() -> None:
    feasible = np.array([True, True, False, True, True, True, False, False])
    found = report(CRITERION, TRUTH, feasible=feasible)
    assert found.picked == 5
    assert found.regret == pytest.approx(0.2)
    # The feasible ones have 0.36 on average.
    assert found.normalised_regret == pytest.approx(0.2 / 0.44)
    # Feasible by criterion: 0.6, 0.4, 0.5.
    assert found.top3_regret == pytest.approx(0.2)
    assert found.random_regret == pytest.approx(0.44)
    assert found.rho == report(CRITERION, TRUTH).rho


def test_the_best_of_three_counts() -> None:
    found = report([1, 2, 3, 4, 5], [0.9, 0.1, 0.8, 0.3, 0.2])
    assert found.regret == pytest.approx(0.7)
    assert found.top3_regret == pytest.approx(0.1)


def test_trials_without_a_number_are_left_out() -> None:
    criterion = np.insert(CRITERION, [0, 4], [math.nan, 99.0])
    truth = np.insert(TRUTH, [0, 4], [5.0, math.nan])
    found, plain = report(criterion, truth), report(CRITERION, TRUTH)
    assert (found.picked, found.used, found.left_out) == (9, 8, 2)
    assert (found.rho, found.tau_top, found.regret) == (plain.rho, plain.tau_top, plain.regret)
    marked = report(criterion, truth, feasible=np.arange(10) < 3)
    assert (marked.picked, marked.left_out) == (2, 2)


def test_a_perfect_criterion_is_validated_unless_its_pick_is_out_of_reach() -> None:
    truth = np.linspace(0, 1, 13)
    found = report(truth**3, truth)
    assert (found.rho.low, found.rho.value, found.rho.high) == pytest.approx((1, 1, 1))
    assert (found.regret, found.validated) == (0.0, True)
    # Of the trials up to 0.75 a random one costs 0.625, and the pick 0.25.
    assert not report(truth**3, truth, feasible=truth < 0.8).validated
    assert report(truth**3, truth, feasible=truth < 0.95).validated
    reverse = report(-truth, truth)
    assert reverse.rho.value == pytest.approx(-1)
    assert (reverse.regret, reverse.normalised_regret, reverse.validated) == (1.0, 2.0, False)


def test_a_wide_interval_does_not_validate() -> None:
    # rho is 0.79 (Σd² = 12), yet seven trials do not exclude 0.5.
    found = report([1, 2, 3, 4, 5, 6, 7], [3, 1, 2, 6, 4, 5, 7.0], resamples=500)
    assert found.rho.value == pytest.approx(1 - 6 * 12 / (7 * 48))
    assert found.regret == 0.0
    assert found.rho.low < 0.5 < found.rho.value
    assert not found.validated


def test_interval_is_near_fishers() -> None:
    rng = np.random.default_rng(2)
    criterion = rng.normal(size=60)
    found = report(criterion, criterion + 0.7 * rng.normal(size=60), resamples=500)
    # Fieller et al. 1957: the variance of atanh(rho) is about 1.06/(M − 3).
    half_width = 1.96 * math.sqrt(1.06 / 57)
    centre = math.atanh(found.rho.value)
    assert found.rho.low == pytest.approx(math.tanh(centre - half_width), abs=0.08)
    assert found.rho.high == pytest.approx(math.tanh(centre + half_width), abs=0.05)
    assert found.rho.level == 0.95


def test_copies_of_a_trial_in_one_group_add_no_certainty() -> None:
    rng = np.random.default_rng(3)
    criterion, noise = rng.normal(size=11), rng.normal(size=11)
    single = report(criterion, criterion + noise)
    groups = np.repeat([f"configuration {number:02}" for number in range(11)], 4)
    copies = np.repeat(criterion, 4), np.repeat(criterion + noise, 4)
    grouped, blind = report(*copies, groups=groups), report(*copies)
    for name in ("rho", "tau", "rho_top", "tau_top"):
        want, got = getattr(single, name), getattr(grouped, name)
        assert (got.value, got.low, got.high) == pytest.approx((want.value, want.low, want.high)), name
    assert blind.rho.high - blind.rho.low < 0.7 * (grouped.rho.high - grouped.rho.low)
    assert grouped.used == 44


@pytest.mark.filterwarnings("error")
def test_a_constant_criterion_tells_nothing() -> None:
    found = report(np.ones(8), TRUTH)
    assert (found.rho.value, found.tau.value, found.picked, found.validated) == (0.0, 0.0, 0, False)
    # All tie with the upper half, so it is everything.
    assert found.rho_top == found.rho
    flat = report(CRITERION, np.full(8, 0.3))
    assert (flat.rho.value, flat.regret, flat.normalised_regret, flat.random_regret) == (0, 0, 0, pytest.approx(0))
    assert not flat.validated


def test_where_most_trials_are_the_best_only_they_are_good_picks() -> None:
    truth = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 1, 1, 1, 1, 1, 1, 1])
    criterion = np.array([0.0, 0.1, 0.2, 0.3, 2.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7])
    found = report(criterion, truth)
    assert (found.regret, found.normalised_regret) == (pytest.approx(0.6), pytest.approx(0.6 / (1 - 8 / 12)))
    assert not found.validated
    assert report(truth, truth).validated
    assert not report(truth, truth, feasible=truth < 1).validated


def test_the_upper_half_needs_four_trials_and_groups() -> None:
    assert report(CRITERION[:7], TRUTH[:7]).rho_top is not None
    small = report(CRITERION[:6], TRUTH[:6])
    assert (small.rho_top, small.tau_top) == (None, None)
    assert report(CRITERION, TRUTH, groups=[0, 1, 2, 3, 4, 5, 6, 6]).rho_top is None
    assert report(CRITERION, TRUTH, groups=[0, 0, 2, 3, 4, 5, 6, 7]).rho_top is not None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"criterion": [1, 2, 3], "truth": [1, 2, 3]}, "at least 4 usable trials are needed, got 3 of 3"),
        ({"truth": [math.nan] * 5 + [1, 2, 3]}, "at least 4 usable trials are needed, got 3 of 8"),
        ({"truth": TRUTH[:5]}, r"vectors of one length, got shapes \(8,\) and \(5,\)"),
        ({"criterion": CRITERION.reshape(2, 4), "truth": TRUTH.reshape(2, 4)}, r"got shapes \(2, 4\) and \(2, 4\)"),
        ({"criterion": [-math.inf, *range(7)]}, "must be finite, or NaN"),
        ({"truth": [math.inf, *range(7)]}, "must be finite, or NaN"),
        ({"groups": [0, 0, 1, 1, 2, 2, 2, 2]}, "at least 4 groups of usable trials are needed, got 3"),
        ({"groups": [0, 1]}, r"groups must have the shape of criterion \(8,\), got \(2,\)"),
        ({"feasible": [True]}, r"feasible must have the shape of criterion \(8,\), got \(1,\)"),
        ({"feasible": [False] * 8}, "none of the 8 usable trials is feasible"),
    ],
)
def test_refuses_what_cannot_be_validated(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report(**({"criterion": CRITERION, "truth": TRUTH} | changed))


def test_the_error_of_a_vote_by_hand() -> None:
    """Clusters 1, 2, 0 are classes 0, 1, 2 under the best map; two of ten are elsewhere.

    Wilson, z = 1.96: (0.2 + z²/20 ± z √(0.2 · 0.8 / 10 + z²/400)) / (1 + z²/10).
    """
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    vote = np.array([1, 1, 1, 0, 2, 2, 1, 0, 0, 0])
    found = vote_error(vote, labels, 3)
    assert found.value == pytest.approx(0.2)
    z2 = 1.959964**2
    half = math.sqrt(z2 * (0.016 + z2 / 400))
    assert found.low == pytest.approx((0.2 + z2 / 20 - half) / (1 + z2 / 10))
    assert found.high == pytest.approx((0.2 + z2 / 20 + half) / (1 + z2 / 10))
    assert vote_error(labels, labels, 3).value == 0
    # As many classes as clusters are known of, not as many as were seen.
    assert vote_error(np.array([3, 3]), np.array([0, 0]), 4).value == 0
