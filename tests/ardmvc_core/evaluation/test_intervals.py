import math
import warnings
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from ardmvc_core.evaluation.intervals import (
    PooledSpread,
    bootstrap_interval,
    expected_maximum_of,
    holm,
    paired_difference,
    pooled_spread,
    probability_of_improvement,
    share_interval,
    t_interval,
    wilson,
)

# Student 1908: hours of sleep gained by ten patients under two drugs.
FIRST_DRUG = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND_DRUG = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
# Efron & Tibshirani 1993, Table 14.1: spatial test A of 26 children.
SPATIAL = [
    *(48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41),
]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_published_table(successes: int, n: int, low: float, high: float) -> None:
    # Newcombe 1998, Table I, method 3.
    interval = wilson(successes, n)
    assert (interval.value, interval.level) == (successes / n, 0.95)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(("n", "points"), [(1000, 3.1), (5000, 1.4)])
def test_wilson_at_one_half(n: int, points: float) -> None:
    interval = wilson(n // 2, n)
    assert 100 * (interval.high - 0.5) == pytest.approx(points, abs=0.05)
    assert 100 * (0.5 - interval.low) == pytest.approx(points, abs=0.05)


def test_wilson_bounds_are_where_the_score_test_rejects() -> None:
    interval = wilson(np.int64(7), np.int64(40), level=0.9)
    for bound in (interval.low, interval.high):
        assert abs(7 / 40 - bound) == pytest.approx(1.6448536 * math.sqrt(bound * (1 - bound) / 40))
    assert wilson(3, 3).high == 1.0


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=rf"successes must be in 0..n and n ≥ 1, got {successes} of {n}"):
        wilson(successes, n)


def test_wilson_refuses_shares() -> None:
    with pytest.raises(TypeError, match="integer"):
        wilson(0.5, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [0.0, 1.0, 95, math.nan])
def test_levels_are_shares(level: float) -> None:
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\)"):
        wilson(1, 2, level)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\)"):
        t_interval([1, 2], level)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\)"):
        bootstrap_interval(np.mean, [np.arange(3)], level=level, seed=0)


def test_bootstrap_equals_the_published_interval() -> None:
    interval = bootstrap_interval(np.var, [np.array(SPATIAL)], level=0.9, seed=1)
    assert interval.value == pytest.approx(171.5, abs=0.05)
    # Percentiles would give 100.8 and 233.9; 2000 resamples leave a few units of noise.
    assert interval.low == pytest.approx(115.8, abs=6)
    assert interval.high == pytest.approx(259.6, abs=9)


def test_bootstrap_of_a_mean_is_what_theory_says() -> None:
    values = np.random.default_rng(3).normal(size=400)
    interval = bootstrap_interval(np.mean, [values], resamples=1000, seed=2)
    half_width = 1.96 * values.std() / 20
    assert interval.high - interval.value == pytest.approx(half_width, rel=0.12)
    assert interval.value - interval.low == pytest.approx(half_width, rel=0.12)


@pytest.mark.parametrize("score", [normalized_mutual_info_score, adjusted_rand_score])
def test_bootstrap_takes_no_short_cut_that_changes_the_bounds(score: object) -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 60)
    clusters = np.where(rng.random(60) < 0.7, labels, rng.integers(0, 3, 60))
    plain = stats.bootstrap(
        (labels, clusters),
        score,
        paired=True,
        vectorized=False,
        n_resamples=200,
        method="BCa",
        batch=128,
        random_state=np.random.default_rng(5),
    ).confidence_interval
    interval = bootstrap_interval(score, (labels, clusters), resamples=200, seed=5)  # type: ignore[arg-type]
    assert (interval.low, interval.high) == pytest.approx((plain.low, plain.high), abs=1e-12)
    assert interval.low < interval.value < interval.high
    assert interval == bootstrap_interval(score, (labels, clusters), resamples=200, seed=5)  # type: ignore[arg-type]
    assert interval != bootstrap_interval(score, (labels, clusters), resamples=200, seed=6)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_bootstrap_without_spread_has_zero_width() -> None:
    labels = np.repeat([0, 1, 2], 10)
    interval = bootstrap_interval(adjusted_rand_score, (labels, (labels + 1) % 3), resamples=50, seed=0)
    assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)
    nothing = bootstrap_interval(lambda values: 0.0, [np.arange(5)], resamples=50, seed=0)
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


@pytest.mark.filterwarnings("error")
def test_bootstrap_where_bca_is_undefined() -> None:
    # No leave-one-out range differs from 1, and one resample in eight has the range 0.
    interval = bootstrap_interval(np.ptp, [np.array([0, 0, 1, 1])], resamples=400, seed=0)
    assert (interval.value, interval.low, interval.high) == (1.0, 0.0, 1.0)
    # All resamples repeat a sample, the data repeats none: 20·0.95²⁰ = 7.2 are missed on average, s.d. 1.3.
    interval = bootstrap_interval(lambda a: len(a) - len(set(a.tolist())), [np.arange(20)], resamples=400, seed=0)
    assert (interval.value, interval.low) == (0.0, 0.0)
    assert 9 <= interval.high <= 11


def test_bootstrap_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"one length, got shapes \[\(3,\), \(2,\)\]"):
        bootstrap_interval(adjusted_rand_score, (np.arange(3), np.arange(2)), seed=0)
    with pytest.raises(ValueError, match=r"got shapes \[\(2, 2\)\]"):
        bootstrap_interval(np.mean, [np.ones((2, 2))], seed=0)
    with pytest.raises(ValueError, match=r"got shapes \[\]"):
        bootstrap_interval(np.mean, [], seed=0)
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        bootstrap_interval(np.mean, [np.ones(1)], seed=0)
    with pytest.raises(ValueError, match="resamples must be ≥ 1, got 0"):
        bootstrap_interval(np.mean, [np.ones(3)], resamples=0, seed=0)
    with pytest.raises(ValueError, match="statistic must be finite on every resample, got nan"):
        bootstrap_interval(lambda values: math.nan, [np.arange(3)], seed=0)


@pytest.mark.parametrize(("values", "times"), [([1, 2, 3, 4, 5], 1.24), (range(10), 0.72)])
def test_t_interval_in_standard_deviations(values: object, times: float) -> None:
    numbers = np.array(values)
    interval = t_interval(numbers)
    assert interval.value == numbers.mean()
    deviation = math.sqrt(((numbers - numbers.mean()) ** 2).sum() / (len(numbers) - 1))
    assert interval.high - interval.value == pytest.approx(times * deviation, abs=0.005 * deviation)
    assert interval.value - interval.low == pytest.approx(interval.high - interval.value)


def test_t_interval_by_hand() -> None:
    # s² = 2.5 and the table has t = 2.776 (4 degrees, 95 %) and 2.132 (90 %).
    assert t_interval([1, 2, 3, 4, 5]).high == pytest.approx(3 + 2.776 * math.sqrt(0.5), abs=5e-4)
    assert t_interval([1, 2, 3, 4, 5], 0.9).low == pytest.approx(3 - 2.132 * math.sqrt(0.5), abs=5e-4)
    alike = t_interval([0.5, 0.5, 0.5])
    assert (alike.value, alike.low, alike.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("values", [[0.5], [], [0.5, math.nan], [0.5, math.inf], [[[1, 2]] * 2]])
def test_t_interval_needs_two_finite_numbers(values: list) -> None:
    with pytest.raises(ValueError, match="values must be a vector of at least 2 finite numbers"):
        t_interval(values)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_of_shares_hold_the_mean_near_one_and_stay_in_bounds(seeds: int) -> None:
    """2,000 draws for each beta distribution: 93 %, less two standard errors of that."""
    rng = np.random.default_rng(6)

    def intervals(mean: float, total: float) -> np.ndarray:
        draws = rng.beta(mean * total, (1 - mean) * total, (2000, seeds))
        found = [share_interval(values) for values in draws]
        return np.array([(one.low, one.value, one.high) for one in found])

    for mean in (0.8, 0.9, 0.95, 0.98):
        for total in (10, 30, 100):
            low, _, high = intervals(mean, total).T
            assert np.mean((low <= mean) & (mean <= high)) >= 0.93 - 2 * math.sqrt(0.93 * 0.07 / 2000), (mean, total)
            assert (low >= 0).all()
            assert (high <= 1).all()


def test_share_interval_by_hand() -> None:
    # In the middle it is nearly Student's.
    values = [0.48, 0.49, 0.5, 0.51, 0.52]
    plain, found = t_interval(values), share_interval(values)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-4)
    # Where seeds agree there is a floor at the ends and none in the middle; both ends are alike.
    assert share_interval([1, 1, 1]).low == pytest.approx(1 / 1.035)
    assert share_interval([0, 0, 0]).high == pytest.approx(0.035 / 1.035)
    assert share_interval([0.5, 0.5]).low == 0.5
    up, down = share_interval([0.9, 0.95]), share_interval([0.1, 0.05])
    assert (up.low, up.high) == pytest.approx((1 - down.high, 1 - down.low))
    with pytest.raises(ValueError, match=r"values must be in \[0, 1\]"):
        share_interval([0.5, 1.1])


def crossed(rng: np.random.Generator, truth: np.ndarray, samples: int, shared: float) -> np.ndarray:
    """(R, S, N) whether each sample is right, of seeds that are right on a share `truth` (R, S) of all there are.

    Args: shared: correlation over seeds of how hard a sample is; 1: what one seed gets right a better one does too.
    """
    own, common = rng.normal(size=(*truth.shape, samples)), rng.normal(size=(len(truth), 1, samples))
    return stats.norm.cdf(math.sqrt(shared) * common + math.sqrt(1 - shared) * own) < truth[..., None]


def held(tables: np.ndarray, truth: float) -> float:
    found = [share_interval(table) for table in tables]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


@pytest.mark.parametrize("shared", [0.5, 1.0])
def test_intervals_over_seeds_and_samples_hold_what_holds_beyond_both(shared: float) -> None:
    """Five seeds, 200 samples, 1,000 draws of each: 93 %, less two standard errors of that."""
    rng = np.random.default_rng(11)
    alone, both = {}, {}
    for mean in (0.5, 0.8, 0.95):
        for total in (30, 100, 1000):
            tables = crossed(rng, rng.beta(mean * total, (1 - mean) * total, (1000, 5)), 200, shared)
            alone[mean, total], both[mean, total] = held(tables.mean(axis=2), mean), held(tables, mean)
    assert min(both.values()) >= 0.93 - 2 * math.sqrt(0.93 * 0.07 / 1000), both
    # What seeds alone say of samples that are not theirs.
    assert alone[0.5, 1000] < (0.45 if shared == 1 else 0.85), alone


def test_few_samples_that_are_all_right_say_little() -> None:
    rng = np.random.default_rng(12)
    tables = crossed(rng, rng.beta(95, 5, (1000, 5)), 20, 1.0)
    assert held(tables, 0.95) >= 0.93
    # The floor of the seeds and Wilson's for 20 samples with Student's quantile, t(19) = 2.093: 0.035 + 4.381 / 20.
    assert share_interval(np.ones((5, 20))).low == pytest.approx(1 / 1.25404, abs=1e-4)


def test_the_crossed_bootstrap_gives_the_variance_that_is_used() -> None:
    rng = np.random.default_rng(13)
    table = crossed(rng, rng.beta(8, 2, (1, 30)), 400, 0.5)[0].astype(float)
    drawn = [
        table[np.ix_(rng.integers(0, 30, 30), rng.integers(0, 400, 400))].mean() for _ in range(4000)
    ]  # the same samples for all seeds of a draw
    seeds, samples = table.mean(axis=1).var(ddof=1) / 30, table.mean(axis=0).var(ddof=1) / 400
    # 4,000 draws know a variance to about 2 %, and the closed form leaves 1/30 of the seeds' part out of the draws.
    assert np.var(drawn) == pytest.approx(seeds + samples, rel=0.08)
    squared = 2.0452**2 * seeds + 1.9659**2 * samples  # t(29) and t(399) from the table
    interval = t_interval(table)
    assert interval.high - interval.value == pytest.approx(math.sqrt(squared), rel=1e-4)
    assert interval.value - interval.low == pytest.approx(math.sqrt(squared), rel=1e-4)


def test_intervals_over_seeds_and_samples_by_hand() -> None:
    # Seeds' means 0.75 0.25, samples' 1 0.5 0.5 0: variances 0.125 / 2 and 1 / 24; t(1) = 12.706, t(3) = 3.182.
    table = [[1, 1, 1, 0], [1, 0, 0, 0]]
    half = math.sqrt(12.706**2 * 0.0625 + 3.182**2 / 24)
    assert t_interval(table).high - 0.5 == pytest.approx(half, rel=1e-4)
    relative = half**2 / 0.25
    width = math.sqrt(relative * 0.25 + relative**2 / 4) / (1 + relative)
    assert share_interval(table).high == pytest.approx(0.5 + width, rel=1e-4)
    found = paired_difference(table, [[0, 0, 0, 0], [1, 0, 0, 0]])
    # Differences 1 1 1 0 and 0: seeds' means 0.75 and 0, samples' 0.5 0.5 0.5 0.
    half = math.sqrt(12.706**2 * 0.75**2 / 4 + 3.182**2 / 64)
    assert (found.difference.value, found.difference.high) == pytest.approx((0.375, 0.375 + half), rel=1e-4)
    # p is where the interval ends at 0.
    assert t_interval(np.subtract(table, [[0] * 4, [1, 0, 0, 0]]), 1 - found.p_value).low == pytest.approx(0, abs=1e-9)


def test_a_difference_that_these_samples_alone_have_is_no_difference() -> None:
    """Two models of one accuracy, each with samples of its own that are hard for all its seeds."""
    rng = np.random.default_rng(14)
    both, alone = [], []
    for _ in range(1000):
        first, second = (crossed(rng, rng.beta(240, 60, (1, 5)), 200, 0.9)[0].astype(float) for _ in range(2))
        both.append(paired_difference(first, second).p_value)
        alone.append(paired_difference(first.mean(axis=1), second.mean(axis=1)).p_value)
    assert np.mean(np.array(both) < 0.05) <= 0.07
    assert np.mean(np.array(alone) < 0.05) > 0.15
    # A difference that is there is found.
    good, bad = (crossed(rng, rng.beta(3 * m, 300 - 3 * m, (1, 5)), 200, 0.9)[0] for m in (80, 50))
    assert paired_difference(good, bad).p_value < 0.01


@pytest.mark.parametrize("table", [[[0.5, 1]], [[0.5], [1]], [[0.5, math.nan], [0, 1]]])
def test_a_table_needs_two_seeds_and_two_samples(table: list) -> None:
    for interval in (t_interval, share_interval):
        with pytest.raises(ValueError, match=r"at least 2 seeds and 2 samples, all finite, got the shape \(\d, \d\)"):
            interval(table)
    with pytest.raises(ValueError, match=r"one common shape, got \(2, 2\) and \(2, 3\)"):
        paired_difference(np.eye(2), np.ones((2, 3)))


def test_pooled_spread_by_hand() -> None:
    found = pooled_spread([0.03, 0.05, 0.0], seeds=[3, 3, 3])
    assert (found.deviation, found.freedom) == (pytest.approx(math.sqrt(0.0034 / 3)), 6)
    error = found.error(3, 3)
    assert error == pytest.approx(math.sqrt(0.0034 / 3 * 2 / 3))
    # The table has t = 2.447 at 6 degrees of freedom for 5 %.
    assert found.p_value(-2.447 * error, 3, 3, tests=1) == pytest.approx(0.05, abs=1e-4)
    assert found.p_value(2.447 * error, 3, 3, tests=3) == pytest.approx(0.15, abs=3e-4)
    assert found.p_value(0.01, 3, 3, tests=9) == 1.0
    still = pooled_spread([0.0], seeds=[2])
    assert (still.p_value(0.1, 2, 2, tests=2), still.p_value(0.0, 2, 2, tests=2)) == (0.0, 1.0)


def test_a_trial_of_more_seeds_counts_for_more_in_the_pooled_spread() -> None:
    """Variances 0.0001 with one degree of freedom and 0.0009 with four: (0.0001 + 4 · 0.0009) / 5 = 0.00074."""
    found = pooled_spread([0.01, 0.03], seeds=[2, 5])
    assert (found.deviation, found.freedom) == (pytest.approx(math.sqrt(0.00074)), 5)
    assert found.error(2, 5) == pytest.approx(math.sqrt(0.00074 * 0.7))


@pytest.mark.parametrize("deviations", [[], [-0.1], [math.nan], 0.1])
def test_pooled_spread_refuses_what_is_no_spread(deviations: list) -> None:
    with pytest.raises(ValueError, match="deviations must be a vector of finite numbers ≥ 0"):
        pooled_spread(deviations, [2])


@pytest.mark.parametrize("seeds", [[1], [2, 2], 2])
def test_pooled_spread_refuses_seeds_that_have_no_spread(seeds: list) -> None:
    with pytest.raises(ValueError, match="seeds must be 1 numbers ≥ 2"):
        pooled_spread([0.1], seeds)


def test_paired_difference_equals_the_published_one() -> None:
    found = paired_difference(SECOND_DRUG, FIRST_DRUG)
    # As R prints it for these data: t = 4.0621.
    assert found.difference.value == pytest.approx(1.58)
    assert found.difference.low == pytest.approx(0.7001142, abs=5e-8)
    assert found.difference.high == pytest.approx(2.4598858, abs=5e-8)
    assert found.p_value == pytest.approx(0.002833, abs=5e-7)
    turned = paired_difference(FIRST_DRUG, SECOND_DRUG)
    assert turned.difference.value == pytest.approx(-1.58)
    assert turned.p_value == pytest.approx(found.p_value)


@pytest.mark.parametrize(
    ("a", "b", "mean", "p_value"),
    [
        ([0.4, 0.7], [0.4, 0.7], 0.0, 1.0),
        ([0.1 + 0.2] * 3, [0.3] * 3, 0.0, 1.0),
        ([0.3, 0.2, 0.9], [0.2, 0.1, 0.8], 0.1, 0.0),
        ([0.0, 0.25], [0.5, 0.75], -0.5, 0.0),
    ],
)
def test_paired_difference_without_spread(a: list, b: list, mean: float, p_value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_difference(a, b)
    assert found.p_value == p_value
    assert (found.difference.low, found.difference.high) == pytest.approx((mean, mean))


def test_paired_runs_must_be_pairs() -> None:
    for compare in (paired_difference, probability_of_improvement):
        with pytest.raises(ValueError, match=r"one common shape, got \(2,\) and \(3,\)"):
            compare([1, 2], [1, 2, 3])
        with pytest.raises(ValueError, match="b must be a vector of at least 2 finite numbers"):
            compare([1, 2], [1, math.nan])


def test_probability_of_improvement_by_hand() -> None:
    assert probability_of_improvement([1, 2, 3, 4], [0, 2, 4, 3]) == (1 + 0.5 + 0 + 1) / 4
    assert probability_of_improvement([0.1 + 0.2, 1], [0.3, 0]) == 0.75
    # Seed against the same seed: over all combinations it would be 1/2.
    assert probability_of_improvement([1, 3, 5], [0, 2, 4]) == 1.0


def test_holm_on_a_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    assert holm([0.02]).tolist() == [0.02]
    assert holm([]).tolist() == []


def test_holm_is_closed_testing_with_bonferroni() -> None:
    p = np.random.default_rng(0).random(6) ** 3
    p[4] = p[1]
    subsets = [subset for size in range(1, 7) for subset in combinations(range(6), size)]
    want = [max(min(1, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(6)]
    assert holm(p) == pytest.approx(want)


@pytest.mark.parametrize("p_values", [[0.5, 1.1], [-0.1], [math.nan], [[0.1, 0.2]]])
def test_holm_refuses_what_are_no_p_values(p_values: list) -> None:
    with pytest.raises(ValueError, match=r"p_values must be a vector of numbers in \[0, 1\]"):
        holm(p_values)


@pytest.mark.parametrize(
    ("n", "want"),
    [
        (1, 0.0),
        (2, 1 / math.sqrt(math.pi)),
        (3, 1.5 / math.sqrt(math.pi)),
        # Harter 1961, to five decimals.
        (10, 1.53875),
        (20, 1.86748),
        (50, 2.24907),
        (100, 2.50759),
    ],
)
def test_expected_maximum_equals_the_published_table(n: int, want: float) -> None:
    assert expected_maximum_of(n) == pytest.approx(want, abs=6e-6)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_expected_maximum_equals_a_simulation(n: int) -> None:
    # The maximum of n normals is Φ⁻¹ of the maximum of n uniforms, which is one uniform to the power 1/n.
    grid = (np.arange(200_000) + 0.5) / 200_000
    assert expected_maximum_of(n) == pytest.approx(stats.norm.ppf(grid ** (1 / n)).mean(), abs=1e-4)


def test_expected_maximum_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be ≥ 1, got 0"):
        expected_maximum_of(0)


# The likely best


def test_the_better_of_two_by_hand() -> None:
    """Means 0.9 and 0.7, error 0.05 each: of their variance 0.02 an eighth is noise, so that 7/8 of the difference is
    kept, and 7/8 of the error's square. P = Φ(√(7/8) · 0.2 / (√2 · 0.05)) = Φ(2.6458)."""
    shared = PooledSpread(deviation=0.05 * math.sqrt(2), freedom=2)
    first, second = shared.best_probabilities([0.9, 0.7], [2, 2])
    assert first == pytest.approx(0.995925, abs=1e-4)
    assert first + second == pytest.approx(1)


def test_fewer_seeds_are_drawn_back_further() -> None:
    """The variance between trials is not known in closed form: it is put into Paule and Mandel's equation."""
    shared = PooledSpread(deviation=0.1, freedom=9)
    means, seeds = np.array([0.9, 0.5, 0.7]), np.array([1, 4, 4])
    centre, deviation = shared.shrunken(means.tolist(), seeds.tolist())
    noise = 0.01 / seeds
    kept = deviation**2 / noise
    between = kept * noise / (1 - kept)
    assert between == pytest.approx([between[0]] * 3)  # one variance between trials explains all three
    weights = 1 / (between + noise)
    middle = (weights * means).sum() / weights.sum()
    assert (weights * (means - middle) ** 2).sum() == pytest.approx(2)  # N − 1, the equation that it solves
    assert centre == pytest.approx(middle + kept * (means - middle))
    assert kept[0] < kept[1] == kept[2]


def test_one_lucky_seed_is_drawn_back_behind_five_that_are_nearly_as_good() -> None:
    """Noise 0.0025 of one seed, 0.0005 of five: about 8 % and 2 % of the way back to 0.7."""
    (lucky, sound, _), _ = PooledSpread(0.05, 9).shrunken([0.8, 0.798, 0.5], [1, 5, 5])
    assert lucky < sound < 0.798


def test_means_that_differ_by_noise_only_are_equally_likely() -> None:
    shared = PooledSpread(deviation=0.1, freedom=4)
    assert shared.best_probabilities([0.50, 0.51, 0.49], [2] * 3) == pytest.approx([1 / 3] * 3)
    assert shared.best_probabilities([0.5, 0.5], [2, 2]) == pytest.approx([0.5, 0.5])


def test_a_noise_that_is_tiny_beside_the_differences_is_met_by_the_integral() -> None:
    """Two differ by one error of 1e-6, a third is 800,000 of them behind: P = Φ(1 / √2) = 0.7602 for the first."""
    shared = PooledSpread(deviation=1e-6 * math.sqrt(2), freedom=4)
    assert shared.best_probabilities([0.9, 0.9 - 1e-6, 0.1], [2] * 3) == pytest.approx([0.7602, 0.2398, 0], abs=1e-4)


def test_without_noise_the_largest_is_the_best() -> None:
    shared = PooledSpread(deviation=0.0, freedom=4)
    assert shared.best_probabilities([0.5, 0.9, 0.9, 0.1], [2] * 4).tolist() == [0, 0.5, 0.5, 0]


def test_the_probability_is_how_often_the_pick_is_the_best() -> None:
    rng, shared = np.random.default_rng(0), PooledSpread(deviation=0.05 * math.sqrt(2), freedom=12)
    said, held = [], []
    for _ in range(1000):
        truth = rng.normal(0.7, 0.08, 12)
        found = shared.best_probabilities(truth + rng.normal(0, 0.05, 12), [2] * 12)
        said.append(found.max())
        held.append(found.argmax() == truth.argmax())
    assert np.mean(said) == pytest.approx(np.mean(held), abs=0.05)  # standard error 0.016
