import math

import numpy as np
import pytest

from ardmvc_core.assessment.consistency import check_consistency, map_from_confusion, scores_from_confusion
from ardmvc_core.evaluation.metrics import clustering_scores, confusion, fit_map, fixed_map_scores
from ardmvc_core.evaluation.score_card import ScoreCard

EXACT = 1e-12
FIELDS = ("acc", "nmi", "ari", "purity", "n_samples")

TABLES = {
    "square": [[5, 1, 0], [2, 7, 1], [0, 0, 9]],
    "more clusters": [[3, 0, 2, 1], [0, 4, 0, 2]],
    "more classes": [[3, 1], [0, 4], [2, 2]],
    "empty class and cluster": [[3, 0, 1], [0, 0, 0], [1, 0, 5]],
    "one cluster": [[0, 3, 0], [0, 2, 0], [0, 1, 0]],
    "one class": [[0, 0, 0], [2, 3, 1], [0, 0, 0]],
    "one class, one cluster": [[0, 0], [6, 0]],
    "one sample": [[0, 1], [0, 0]],
    "singletons": [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
    "independent": [[2, 4], [3, 6]],
    "perfect": [[0, 4, 0], [5, 0, 0], [0, 0, 6]],
    "ties": [[2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "large": [[40_000, 123], [7, 60_000]],
}


def expanded(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label and cluster of each sample that the table counts."""
    cells = np.repeat(np.arange(table.size), table.ravel())
    return cells // table.shape[1], cells % table.shape[1]


def test_scores_by_hand() -> None:
    # Pairs together in both: 1 + 3 of 15, so ARI = (4 − 6·7/15)/((6 + 7)/2 − 6·7/15) = 1.2/3.7.
    counts = np.array([[1, 2], [3, 0]])
    scores = scores_from_confusion(counts)
    assert scores.acc == scores.purity == pytest.approx(5 / 6)
    assert scores.ari == pytest.approx(1.2 / 3.7)
    # The joint shares are 1/3, 1/6, 1/2; the margins 1/2, 1/2 and 1/3, 2/3.
    mutual = np.log(2) / 3 + np.log(0.5) / 6 + np.log(1.5) / 2
    assert scores.nmi == pytest.approx(mutual / np.mean([np.log(2), np.log(3) / 3 + np.log(1.5) * 2 / 3]))
    assert scores.n_samples == 6
    assert map_from_confusion(counts).tolist() == [1, 0]
    assert scores_from_confusion(counts, np.array([0, 1])).acc == pytest.approx(1 / 6)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_scores_equal_those_of_the_samples(name: str) -> None:
    table = np.array(TABLES[name])
    labels, clusters = expanded(table)
    n_clusters = table.shape[1]
    assert map_from_confusion(table).shape == (n_clusters,)
    for mapping in (fit_map(labels, clusters, n_clusters), np.arange(n_clusters)[::-1]):
        got, want = scores_from_confusion(table, mapping), fixed_map_scores(labels, clusters, mapping)
        for field in FIELDS:
            assert getattr(got, field) == pytest.approx(getattr(want, field), abs=EXACT), field
    assert scores_from_confusion(table).acc == clustering_scores(labels, clusters, n_clusters).acc


def test_scores_equal_those_of_random_samples() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        n_clusters, n_classes = rng.integers(1, 6, 2)
        clusters, labels = rng.integers(0, n_clusters, 25), rng.integers(0, n_classes, 25)
        size = max(n_clusters, labels.max() + 1)
        counts = confusion(labels, clusters, size, n_clusters)
        # The very map, although small counts have several best ones.
        np.testing.assert_array_equal(map_from_confusion(counts), fit_map(labels, clusters, n_clusters))
        got, want = scores_from_confusion(counts), clustering_scores(labels, clusters, n_clusters)
        for field in FIELDS:
            assert getattr(got, field) == pytest.approx(getattr(want, field), abs=EXACT), field


def test_a_single_cluster_earns_nothing() -> None:
    for table in ([[0, 4]], [[0, 2], [0, 2]]):
        scores = scores_from_confusion(np.array(table))
        assert (scores.nmi, scores.ari) == (0.0, 0.0)


def test_numbers_beyond_the_classes_are_right_about_nothing() -> None:
    counts = np.array([[3, 0, 2], [0, 4, 1]])
    assert map_from_confusion(counts).tolist() == [0, 1, 2]
    assert scores_from_confusion(counts, np.array([0, 1, 7])).acc == 7 / 10


def test_a_stored_evaluation_can_be_recomputed_and_is_consistent() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 80)
    clean = np.where(rng.random(80) < 0.7, (labels + 1) % 4, rng.integers(0, 4, 80))
    card = ScoreCard(labels, clean, n_clusters=5)
    attacked = {name: np.where(rng.random(80) < 0.4, rng.integers(0, 5, 80), clean) for name in ("pgd", "com")}
    for name, clusters in attacked.items():
        card.attack(name, clusters)
    card.attack("few", attacked["pgd"][:20])
    union = np.where(attacked["pgd"] != clean, attacked["pgd"], attacked["com"])
    card.union(union, union != clean, noise_flip=0.0)
    found = card.evaluation()
    values, tables = found.metrics(), found.arrays()
    mapping = map_from_confusion(tables["confusion/class_clean"])
    for name in ("clean", "pgd", "com", "few"):
        counts = tables[f"confusion/class_{name}"]
        scores = scores_from_confusion(counts, mapping)
        for field in ("acc", "nmi", "ari"):
            assert getattr(scores, field) == pytest.approx(values[f"{name}/{field}"], abs=EXACT)
        if name != "clean":
            assert scores_from_confusion(counts).acc == values[f"{name}/acc_refit"]
    assert check_consistency(values, ("pgd", "com")) == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([1, 2], r"table of integers, got shape \(2,\)"),
        ([[0.5, 1.0]], "table of integers, got shape .* dtype float64"),
        ([[1, -1]], "counts ≥ 0 of at least one sample"),
        ([[0, 0], [0, 0]], "counts ≥ 0 of at least one sample"),
    ],
)
def test_refuses_what_are_no_counts(table: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores_from_confusion(np.array(table))
    with pytest.raises(ValueError, match=message):
        map_from_confusion(np.array(table))


@pytest.mark.parametrize("mapping", [[0], [0, 1, 2], [0, -1], [0.0, 1.0]])
def test_refuses_what_is_no_map(mapping: list) -> None:
    with pytest.raises(ValueError, match="mapping must hold one class ≥ 0 for each of 2 clusters"):
        scores_from_confusion(np.array([[3, 1], [0, 2]]), np.array(mapping))


VALUES = {
    "clean/acc": 0.8,
    "robust/acc": 0.5,
    "robust/flip": 0.4,
    "pgd/acc": 0.6,
    "pgd/acc_refit": 0.7,
    "com/acc": 0.5,
    "com/acc_refit": 0.5,
    "few/acc": 0.3,
    "few/acc_refit": 0.3,
}


def test_consistent_values_are_passed() -> None:
    assert check_consistency(VALUES, ("pgd", "com")) == []
    assert check_consistency(VALUES | {"robust/acc": 0.5 + 5e-10}, ("pgd", "com")) == []
    assert check_consistency(VALUES | {"robust/flip": 0.3 - 5e-10}, ("pgd", "com")) == []
    assert check_consistency({"robust/flip": 0.4, "pgd/flip": 0.4}, ("pgd",)) == []
    assert check_consistency({}, ()) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"robust/acc": 0.55}, "robust/acc = 0.55 must not exceed com/acc = 0.5"),
        ({"robust/acc": 0.5 + 2e-9}, "robust/acc = 0.5 must not exceed com/acc = 0.5"),
        ({"pgd/acc": 0.75}, "pgd/acc = 0.75 must not exceed pgd/acc_refit = 0.7"),
        ({"few/acc": 0.31}, "few/acc = 0.31 must not exceed few/acc_refit = 0.3"),
        ({"robust/flip": 0.2}, "robust/acc = 0.5 must not be below clean/acc − robust/flip = 0.8 − 0.2"),
        ({"pgd/acc_refit": math.nan}, "pgd/acc = 0.6 must not exceed pgd/acc_refit = nan"),
        ({"clean/acc": math.nan}, "robust/acc = 0.5 must not be below clean/acc − robust/flip = nan − 0.4"),
    ],
)
def test_each_violation_is_a_sentence(changed: dict[str, float], sentence: str) -> None:
    assert check_consistency(VALUES | changed, ("pgd", "com")) == [sentence]


def test_only_the_worst_case_bounds_robust_accuracy() -> None:
    assert check_consistency(VALUES, ("pgd", "com", "few")) == ["robust/acc = 0.5 must not exceed few/acc = 0.3"]
    assert len(check_consistency(VALUES | {"robust/acc": 0.9}, ("pgd", "com"))) == 2
