from collections.abc import Callable

import numpy as np
import pytest
import torch

from ardmvc_core.evaluation.metrics import (
    chance_scores,
    clustering_scores,
    confusion,
    fit_map,
    fixed_map_scores,
    flip_rate,
    kappa,
)

EXACT = 1e-9
FOUR_DECIMALS = 5.1e-5
SEVERAL_BEST_MAPS = {"fewer_pred", "one_cluster", "missing_id0"}


def test_scores_equal_the_published_ones(golden: Callable, assert_close: Callable) -> None:
    archive = golden("metrics")
    for case in archive["case_names"]:
        labels, clusters = archive[f"{case}/labels"], archive[f"{case}/pred"]
        scores = clustering_scores(labels, clusters, int(clusters.max()) + 1)
        for name in ("acc", "nmi", "ari"):
            assert_close(getattr(scores, name), archive[f"{case}/{name}_exact"], EXACT, f"{case} {name}")
            assert_close(getattr(scores, name), archive[f"{case}/{name}"], FOUR_DECIMALS, f"{case} {name}, rounded")
        assert_close(scores.purity, archive[f"{case}/purity"], FOUR_DECIMALS, f"{case} purity")
        assert scores.n_samples == len(labels)


def test_maps_equal_the_published_ones(golden: Callable) -> None:
    archive = golden("metrics")
    for case in archive["case_names"]:
        if f"{case}/pred_mapped" not in archive.files:
            continue
        labels, clusters = archive[f"{case}/labels"], archive[f"{case}/pred"]
        renamed = fit_map(labels, clusters, int(clusters.max()) + 1)[clusters]
        want = archive[f"{case}/pred_mapped"]
        assert (renamed == labels).sum() == (want == labels).sum()
        if case not in SEVERAL_BEST_MAPS:
            np.testing.assert_array_equal(renamed, want)


def test_scores_by_hand() -> None:
    labels, clusters = np.array([0, 0, 0, 1, 1, 1]), np.array([1, 1, 0, 0, 0, 0])
    # Pairs together in both: 1 + 3 of 15, so ARI = (4 − 6·7/15)/((6 + 7)/2 − 6·7/15) = 1.2/3.7.
    scores = clustering_scores(labels, clusters, 2)
    assert scores.acc == pytest.approx(5 / 6)
    assert scores.purity == pytest.approx(5 / 6)
    assert scores.ari == pytest.approx(1.2 / 3.7)
    # The joint shares are 1/3, 1/6, 1/2; the margins 1/2, 1/2 and 1/3, 2/3.
    mutual = np.log(2) / 3 + np.log(0.5) / 6 + np.log(1.5) / 2
    entropies = np.log(2), np.log(3) / 3 + np.log(1.5) * 2 / 3
    assert scores.nmi == pytest.approx(mutual / np.mean(entropies))
    assert fit_map(labels, clusters, 2).tolist() == [1, 0]


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 0, 0, 0]])
def test_a_single_cluster_earns_nothing(labels: list[int]) -> None:
    scores = clustering_scores(np.array(labels), np.array([2, 2, 2, 2]), 3)
    assert set(scores.agreement.values()) == {0.0}
    assert scores.acc == scores.purity == labels.count(0) / 4


def test_mutual_information_beyond_chance_by_hand() -> None:
    # Of the 6 ways to deal two pairs 2 agree with the classes, with ln 2 nats, and 4 share nothing with them: ln 2 / 3
    # on average, and at most ln 2.
    labels = np.array([0, 0, 1, 1])
    assert clustering_scores(labels, np.array([0, 1, 0, 1]), 2).agreement["ami"] == pytest.approx((0 - 1 / 3) / (2 / 3))
    assert clustering_scores(labels, 1 - labels, 2).agreement["ami"] == pytest.approx(1)


def test_chance_by_hand() -> None:
    # Of the 6 ways to deal two pairs 2 agree with the classes (1, 1, 1) and 4 are half right (½, 0, −½).
    pairs = chance_scores(np.array([0, 0, 1, 1]), np.array([1, 0, 1, 0]), 2, permutations=3000)
    assert pairs == pytest.approx({"acc": 2 / 3, "nmi": 1 / 3, "ari": 0}, abs=0.04)  # 4 standard errors of ARI, 0.013
    # One sample apart, wherever it lies, leaves two of three right in the other cluster.
    assert chance_scores(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 1]), 2)["acc"] == 3 / 4
    # All in one cluster: the largest class is right.
    assert chance_scores(np.array([0, 0, 0, 1]), np.array([1, 1, 1, 1]), 2) == {"acc": 3 / 4, "nmi": 0, "ari": 0}


@pytest.mark.parametrize(("n", "k", "acc"), [(1, 10, 1.0), (40, 200, 0.85), (160, 100, 0.46), (1000, 10, 0.14)])
def test_chance_is_high_where_clusters_are_many_and_samples_few(n: int, k: int, acc: float) -> None:
    rng = np.random.default_rng(1)
    labels, clusters = rng.integers(0, k, n), rng.integers(0, k, n)
    found = chance_scores(labels, clusters, k)
    assert found["acc"] == pytest.approx(acc, abs=0.02)
    assert found == chance_scores(labels, clusters, k)


def test_maps_where_clusters_and_classes_differ_in_number() -> None:
    labels, clusters = np.array([0, 0, 1, 1, 1]), np.array([3, 3, 0, 0, 2])
    mapping = fit_map(labels, clusters, 4)
    assert sorted(mapping) == [0, 1, 2, 3]
    assert (mapping[3], mapping[0]) == (0, 1)
    assert mapping[2] >= 2
    assert clustering_scores(labels, clusters, 4).acc == pytest.approx(4 / 5)
    assert clustering_scores(labels, clusters, 4).purity == 1.0
    fewer = fit_map(np.array([0, 1, 2, 2]), np.array([0, 0, 1, 1]), 2)
    assert fewer[1] == 2
    assert fewer[0] in (0, 1)
    assert clustering_scores(np.array([0, 1, 2, 2]), np.array([0, 0, 1, 1]), 2).acc == 0.75


def test_fixed_map_is_not_fitted_again() -> None:
    labels, clean, attacked = np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1])
    mapping = fit_map(labels, clean, 2)
    assert fixed_map_scores(labels, clean, mapping).acc == 1.0
    swapped = fixed_map_scores(labels, attacked, mapping)
    assert (swapped.acc, swapped.nmi, swapped.ari) == (0.0, pytest.approx(1.0), 1.0)
    assert clustering_scores(labels, attacked, 2).acc == 1.0


def test_tensors_and_arrays_alike_and_left_untouched() -> None:
    labels, clusters = np.array([1, 2, 2, 1, 3]), np.array([4, 4, 1, 1, 0])
    kept = labels.copy(), clusters.copy()
    scores = clustering_scores(labels, clusters, 5)
    assert clustering_scores(torch.from_numpy(labels), torch.from_numpy(clusters), 5) == scores
    np.testing.assert_array_equal(labels, kept[0])
    np.testing.assert_array_equal(clusters, kept[1])


def test_flip_rate_by_hand() -> None:
    assert flip_rate(torch.tensor([0, 1, 2, 2]), np.array([0, 2, 2, 1])) == 0.5
    with pytest.raises(ValueError, match="common length, got 2 and 3"):
        flip_rate(np.array([0, 1]), np.array([0, 1, 1]))


@pytest.mark.parametrize(
    ("clean", "flipped", "want"),
    [
        ([0, 0, 1, 1], [False] * 4, 1.0),
        ([0, 0, 1, 1], [True, False, True, False], 0.0),
        ([0, 0, 1, 1], [True] * 4, -1.0),
        ([0, 0, 0, 1], [True, False, False, False], 1 / 3),
        ([1, 1, 1, 1], [False] * 4, 0.0),
    ],
)
def test_kappa_by_hand(clean: list[int], flipped: list[bool], want: float) -> None:
    assert kappa(np.array(clean), np.array(flipped), 2) == pytest.approx(want)
    assert kappa(torch.tensor(clean), torch.tensor(flipped), 3) == pytest.approx(want)


def test_kappa_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"shape of clean \(2,\), got \(3,\)"):
        kappa(np.array([0, 1]), np.array([True, False, False]), 2)


def test_confusion_by_hand() -> None:
    counts = confusion(np.array([0, 2, 2, 1]), torch.tensor([1, 0, 0, 1]), 3, 2)
    assert counts.tolist() == [[0, 1], [0, 1], [2, 0]]
    assert counts.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "clusters", "message"),
    [
        ([0, 1], [0, 1, 1], "common length, got 3 and 2"),
        ([0, 1], [0, 3], r"numbers must be in 0..1, got 3"),
        ([0, -1], [0, 1], "labels must be ≥ 0, got -1"),
        ([0, 1], [0.0, 1.0], "clusters must be a non-empty vector of integers"),
        ([], [], "labels must be a non-empty vector of integers"),
        ([[0], [1]], [0, 1], r"labels must be a non-empty vector of integers, got shape \(2, 1\)"),
    ],
)
def test_refuses_what_are_no_clusters(labels: list, clusters: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clustering_scores(np.array(labels), np.array(clusters), 2)
