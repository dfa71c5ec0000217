import io
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from planted_models import LinearModel
from torch.testing import assert_close

from ardmvc_core.evaluation.metrics import fit_map, kappa
from ardmvc_core.models.simvc import SiMVCConfig, build
from ardmvc_core.selection.criteria import (
    clean_clustering_loss,
    guards_hold,
    select_scores,
    silhouette,
    utility_floor,
)
from ardmvc_core.selection.reference_partition import PlainRun, ReferencePartition, reference_partition, seed_agreement

BASE = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
# The base's partition but for samples 3 and 11, and 3 and 7; then under other names.
FIRST = np.array([2, 0, 1])[[0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 0]]
SECOND = np.array([1, 2, 0])[[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]]
UNLIKE = np.array([0, 1, 2] * 4)


def run(clusters: Any, loss: float = 0.0, view_use: tuple[float, ...] | None = None) -> PlainRun:
    return PlainRun(np.array(clusters, dtype=np.int64), loss, view_use)


def reference(clusters: Any, entropy: float = 1.0, **fields: Any) -> ReferencePartition:
    known = np.array(clusters, dtype=np.int64)
    whole = ReferencePartition(
        clusters=known,
        weights=np.ones(len(known)),
        agreement=1.0,
        reliable=True,
        kept=(0, 1),
        entropy=entropy,
        largest_share=float(np.bincount(known).max() / len(known)),
    )
    return replace(whole, **fields)


def still(clusters: Any) -> np.ndarray:
    return np.zeros(len(clusters), dtype=np.bool_)


def test_vote_by_hand() -> None:
    found = reference_partition(
        [run(FIRST, 0.3), run(UNLIKE, 0.9), run(BASE, 0.1), run(SECOND, 0.2), run(UNLIKE, 0.8)], 3
    )
    assert found.kept == (2, 3, 0)
    assert found.clusters.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    weights = np.ones(12)
    weights[[3, 7, 11]] = 2 / 3
    np.testing.assert_allclose(found.weights, weights)
    assert found.largest_share == pytest.approx(5 / 12)
    # Cluster sizes are 4 4 4, 5 4 3 and 3 4 5.
    shares = np.array([3, 4, 5]) / 12
    assert found.entropy == pytest.approx(-(shares * np.log(shares)).sum() / np.log(3))
    # Of 66 pairs every two runs have 12 together in both; the sizes alone have 18, 19 and 19.
    with_base = (12 - 18 * 19 / 66) / (18.5 - 18 * 19 / 66)
    without = (12 - 19 * 19 / 66) / (19 - 19 * 19 / 66)
    assert found.agreement == pytest.approx((2 * with_base + without) / 3)
    assert found.agreement < 0.6
    assert not found.reliable


def test_tied_votes_go_to_the_lowest_loss() -> None:
    found = reference_partition([run(FIRST, 0.2), run(BASE, 0.1), run(UNLIKE, 0.3)], 3)
    assert found.kept == (1, 0)
    np.testing.assert_array_equal(found.clusters, BASE)
    assert found.weights[[0, 3, 11]].tolist() == [1.0, 0.5, 0.5]


def test_names_do_not_matter() -> None:
    plain = reference_partition([run(BASE, 0.1), run(FIRST, 0.2), run(SECOND, 0.3), run(UNLIKE, 0.4)], 3)
    renamed = reference_partition(
        [run(BASE, 0.1), run(np.array([1, 2, 0])[FIRST], 0.2), run(np.array([2, 1, 0])[SECOND], 0.3), run(UNLIKE, 0.4)],
        3,
    )
    assert plain.digest() == renamed.digest()


@pytest.mark.parametrize(
    ("swaps", "reliable"),
    # Two groups of 20; two swapped pairs give an ARI of 0.631, three 0.477.
    [(0, True), (2, True), (3, False)],
)
def test_reliable_from_an_agreement_of_0_6(swaps: int, reliable: bool) -> None:
    first = np.repeat([0, 1], 20)
    second = 1 - first
    second[:swaps], second[20 : 20 + swaps] = 0, 1
    found = reference_partition([run(first), run(second), run(first, 9.0), run(first, 9.0)], 2)
    assert found.kept == (0, 1)
    assert (found.agreement >= 0.6) == reliable
    assert found.reliable == reliable


def test_one_kept_run_is_not_reliable() -> None:
    found = reference_partition([run(BASE, 0.1), run(FIRST, 0.2)], 3)
    assert (found.kept, found.agreement, found.reliable) == ((0,), 1.0, False)
    np.testing.assert_array_equal(found.clusters, BASE)


@pytest.mark.parametrize(
    "collapsed",
    [
        run([0] * 12, -5.0),
        run([0] * 11 + [1], -5.0),
        # Two clusters hold samples, which is K − 1, but hardly: H is 0.261.
        run([0] * 11 + [2], -5.0, (0.5, 0.5)),
        # H is 0.611, above one half but not near that of the others.
        run([0] * 9 + [1, 1, 2], -5.0),
        run(BASE, -5.0, (0.98, 0.02)),
        run(BASE, float("nan")),
        run(BASE, float("-inf")),
    ],
)
def test_collapsed_runs_have_no_vote(collapsed: PlainRun) -> None:
    sound = [run(BASE, 0.1, (0.9, 0.1)), run(FIRST, 0.2, (0.5, 0.5)), run(SECOND, 0.3)]
    found = reference_partition([collapsed, *sound], 3)
    assert found.kept == (1, 2)


def test_one_empty_cluster_is_allowed_but_two_clusters_must_be_there() -> None:
    assert reference_partition([run([0, 0, 1, 1, 2, 2]), run([0, 0, 1, 1, 2, 2])], 4).kept == (0,)
    with pytest.raises(ValueError, match="1 of 2 clusters occupied, at least 2 needed"):
        reference_partition([run([0, 0, 0]), run([1, 1, 1])], 2)


def test_says_why_no_run_survives() -> None:
    runs = [run([0] * 12, 0.1), run(BASE, float("nan")), run(BASE, 0.1, (0.0, 1.0))]
    with pytest.raises(ValueError, match="none of the 3 plain runs") as caught:
        reference_partition(runs, 3)
    for reason in ("run 0: G1 1 of 3", "G2 entropy 0.000", "run 1: loss nan", "run 2: G3 view 0 has 0.000"):
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("runs", "n_clusters", "message"),
    [
        ([run(BASE)], 3, r"at least 2 of one common length, got 1 of lengths \[12\]"),
        ([run(BASE), run(BASE[:5])], 3, r"common length, got 2 of lengths \[5, 12\]"),
        ([run(BASE), run(BASE)], 2, r"must be in 0..1, got 2"),
        ([run(BASE), run(BASE)], 1, "n_clusters must be ≥ 2, got 1"),
    ],
)
def test_refuses_what_are_no_runs(runs: list[PlainRun], n_clusters: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference_partition(runs, n_clusters)


def test_round_trip_through_a_file() -> None:
    first = reference_partition([run(BASE, 0.1), run(FIRST, 0.2), run(SECOND, 0.3)], 3)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **first.to_arrays())
    file.seek(0)
    with np.load(file) as arrays:
        second = ReferencePartition.from_arrays(arrays)
    assert second.digest() == first.digest()
    assert (second.kept, second.reliable, second.agreement) == (first.kept, first.reliable, first.agreement)
    assert (second.clusters.dtype, second.weights.dtype) == (np.int64, np.float64)
    np.testing.assert_array_equal(second.clusters, first.clusters)
    with pytest.raises(ValueError, match="kept, entropy missing"):
        ReferencePartition.from_arrays({k: v for k, v in first.to_arrays().items() if k not in ("kept", "entropy")})


def test_digest_is_of_all_content() -> None:
    first = reference(BASE)
    changed = [
        replace(first, clusters=FIRST),
        replace(first, weights=np.full(12, 0.5)),
        replace(first, agreement=0.9),
        replace(first, reliable=False),
        replace(first, kept=(0,)),
        replace(first, entropy=0.5),
        replace(first, largest_share=0.5),
    ]
    digests = [found.digest() for found in (first, *changed)]
    assert len(set(digests)) == 8
    assert first.digest() == reference(BASE).digest()
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


def test_scores_by_hand() -> None:
    known = reference(BASE, weights=np.array([1, 1, 1, 0.5] * 3))
    clean = np.array([2, 0, 1])[[0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 0]]
    # 10 of 12 are placed as in the reference; of these samples 0 and 7 move, and sample 3 was not one of them.
    moved = still(clean)
    moved[[0, 3, 7]] = True
    scores = select_scores(known, clean, moved, 3)
    assert scores["select/utility"] == pytest.approx(10 / 12)
    assert scores["select/pra"] == pytest.approx(8 / 12)
    # Kept are 1, 2, 4, 5, 6, 8, 9, 10, each of weight 1, of 10.5.
    assert scores["select/pra_weighted"] == pytest.approx(8 / 10.5)
    assert scores["select/stability"] == pytest.approx(8 / 10)
    assert scores["select/occupied"] == 3.0
    assert scores["select/entropy"] == pytest.approx(-sum(p * np.log(p) for p in (4 / 12, 5 / 12, 3 / 12)) / np.log(3))
    assert scores["select/feasible"] == 1.0


def test_robust_accuracy_differs_by_no_more_than_the_error_of_the_reference() -> None:
    stream = np.random.default_rng(3)
    for _ in range(40):
        classes, voted = stream.integers(4, size=(2, 30))
        voted = np.where(stream.random(30) < 0.7, classes, voted)
        clean = np.where(stream.random(30) < 0.6, stream.permutation(4)[voted], stream.integers(4, size=30))
        moved = stream.random(30) < stream.random()
        scores = select_scores(reference(voted), clean, moved, 4)
        to_reference = fit_map(voted, clean, 4)
        assert scores["select/utility"] == pytest.approx(
            max(np.mean(np.array(names)[clean] == voted) for names in permutations(range(4)))
        )
        for names in permutations(range(4)):
            to_class = np.array(names)
            error = np.mean(to_class[voted] != classes)
            accuracy = np.mean((to_class[to_reference[clean]] == classes) & ~moved)
            assert abs(accuracy - scores["select/pra"]) <= error + 1e-12


@pytest.mark.parametrize(
    ("known", "n_clusters"),
    [(BASE, 3), ([0] * 6 + [1, 1, 1, 2, 2, 2], 3), ([0] * 7 + [1] * 3, 2), ([0] * 5 + [1] * 5, 2), (BASE, 7)],
)
def test_a_constant_partition_earns_the_largest_share_and_is_not_feasible(known: Any, n_clusters: int) -> None:
    partition = reference(known, entropy=0.9)
    for cluster in range(n_clusters):
        scores = select_scores(partition, np.full(len(known), cluster), still(known), n_clusters)
        assert scores["select/pra"] == scores["select/utility"] == partition.largest_share
        assert (scores["select/stability"], scores["select/occupied"], scores["select/feasible"]) == (1.0, 1.0, 0.0)


def test_near_collapse_is_not_feasible_however_stable() -> None:
    clean = np.array([0] * 198 + [1] * 2)
    moved = still(clean)
    moved[0] = True
    assert kappa(clean, moved, 2) == pytest.approx(0.7475, abs=1e-4)
    scores = select_scores(reference(clean, entropy=1.0), clean, moved, 2)
    assert (scores["select/pra"], scores["select/occupied"]) == (0.995, 1.0)
    assert scores["select/feasible"] == 0.0


def test_feasible_by_criterion_a() -> None:
    quarters = np.repeat(np.arange(4), 25)

    def feasible(clean: np.ndarray, known: np.ndarray = quarters, **fields: Any) -> float:
        return select_scores(reference(known, **fields), clean, still(clean), 4)["select/feasible"]

    assert feasible(quarters) == 1.0
    # Three of four clusters: H is log 3 / log 4 = 0.792 where they are even, here 0.75.
    without_last = np.where(quarters == 3, 2, quarters)
    assert feasible(without_last, entropy=0.75 / 0.9 - 1e-6) == 1.0
    assert feasible(without_last, entropy=0.75 / 0.9 + 1e-6) == 0.0
    assert feasible(quarters // 2, entropy=0.3) == 0.0
    # The largest share is a quarter, so that half must be placed as in the reference.
    assert feasible(partly_placed(13, (5, 4, 4)), known=np.repeat(np.arange(4), 26)) == 1.0
    assert feasible(partly_placed(12, (5, 5, 4)), known=np.repeat(np.arange(4), 26)) == 0.0


def test_an_unreliable_reference_sets_no_floor_but_its_guards_stay() -> None:
    quarters = np.repeat(np.arange(4), 26)
    known = reference(quarters, reliable=False)
    low = partly_placed(12, (5, 5, 4))
    scores = select_scores(known, low, still(low), 4)
    assert (scores["select/reliable"], scores["select/feasible"]) == (0.0, 1.0)
    assert select_scores(known, quarters * 0, still(low), 4)["select/feasible"] == 0.0
    assert select_scores(reference(quarters), quarters, still(low), 4)["select/reliable"] == 1.0


def partly_placed(right: int, elsewhere: tuple[int, ...]) -> np.ndarray:
    """Of each of 4 reference clusters so many stay, and so many go to the next, second and third next."""
    steps = np.repeat([0, 1, 2, 3], (right, *elsewhere))
    return np.concatenate([(cluster + steps) % 4 for cluster in range(4)])


def test_guards_and_floor_by_hand() -> None:
    assert guards_hold(9, 0.9, 10, 1.0)
    assert not guards_hold(8, 1.0, 10, 1.0)
    assert not guards_hold(10, 0.89, 10, 1.0)
    assert not guards_hold(1, 1.0, 2, 1.0)
    assert utility_floor(0.1) == 0.2
    assert utility_floor(0.49) == 0.98
    # An even split in two, and beyond.
    assert utility_floor(0.5) == utility_floor(0.8) == 0.5


@pytest.mark.parametrize("flipped", [np.zeros(11, dtype=bool), np.zeros(12, dtype=int)])
def test_scores_refuse_flips_of_another_form(flipped: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"flipped must be bool of the shape of the reference \(12,\)"):
        select_scores(reference(BASE), BASE, flipped, 3)


def test_seed_agreement_by_hand() -> None:
    first, second = np.array([0, 0, 0, 1, 1, 1]), np.array([1, 1, 0, 0, 0, 0])
    ari = 1.2 / 3.7
    assert seed_agreement([first, second]) == pytest.approx(ari)
    assert seed_agreement([first, 1 - first, second]) == pytest.approx((1 + 2 * ari) / 3)
    assert np.isnan(seed_agreement([first]))
    # One cluster twice is no agreement.
    assert seed_agreement([np.zeros(6, dtype=int)] * 2) == 0.0


def two_groups(n_views: int, second_width: int) -> tuple[LinearModel, tuple[torch.Tensor, ...]]:
    """Four samples in two tight clusters, sure of it; in every view all latents point in one direction."""
    size = torch.tensor([0.2, 0.2, 0.8, 0.8])[:, None]
    views = (size * torch.ones(4, 2), torch.ones(4, second_width))[:n_views]
    weight = torch.zeros(2, sum(view.shape[1] for view in views))
    weight[0, 0], weight[1, 0] = 100.0, -100.0
    return LinearModel(weight, bias=torch.tensor([-50.0, 50.0])), views


# Of six pairs two share a cluster; clusters are exp(−2) away from each other's corner, 0 from their own.
DDC = 1 / 3 + 1 / np.cosh(2)
# Every one of 7 other latents is as near as the positive one.
CONTRAST = 0.1 * np.log(7)


@pytest.mark.parametrize(
    ("n_views", "second_width", "want"),
    [(1, 0, DDC), (2, 3, DDC), (2, 2, DDC + CONTRAST)],
    ids=["one", "widths", "two"],
)
def test_clean_loss_by_hand(n_views: int, second_width: int, want: float) -> None:
    model, views = two_groups(n_views, second_width)
    assert clean_clustering_loss(model, views, 4) == pytest.approx(want, rel=1e-5)
    # Twice the same batch, then two rows that are left out; and one batch that is not full.
    longer = tuple(torch.cat([view, view, view[:2]]) for view in views)
    assert clean_clustering_loss(model, longer, 4) == pytest.approx(want, rel=1e-5)
    assert clean_clustering_loss(model, views, 100) == pytest.approx(want, rel=1e-5)


def test_clean_loss_is_in_inference_mode_and_leaves_the_model_as_found() -> None:
    torch.manual_seed(0)
    model = build(SiMVCConfig(), ((4,), (4,)), 3)
    views = tuple(torch.rand(9, 4, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    model.eval()
    want = clean_clustering_loss(model, views, 8)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert clean_clustering_loss(model, views, 8) == want
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)


def test_clean_loss_needs_two_samples() -> None:
    model, views = two_groups(2, 2)
    for rows, batch_size in ((1, 4), (4, 1)):
        with pytest.raises(ValueError, match="must be ≥ 2"):
            clean_clustering_loss(model, tuple(view[:rows] for view in views), batch_size)


def test_silhouette_by_hand() -> None:
    features, clusters = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([0, 0, 1, 1])
    assert silhouette(features, clusters, seed=0) == pytest.approx((9.5 / 10.5 + 8.5 / 9.5) / 2)
    assert np.isnan(silhouette(features, np.zeros(4, dtype=int), seed=0))
    assert np.isnan(silhouette(features, np.arange(4), seed=0))
    with pytest.raises(ValueError, match="common length, got 4 and 3"):
        silhouette(features, clusters[:3], seed=0)


def test_silhouette_of_a_sample_is_repeated_by_its_seed() -> None:
    stream = np.random.default_rng(0)
    clusters = stream.integers(2, size=300)
    features = stream.normal(size=(300, 2)) + 3 * clusters[:, None]
    whole = silhouette(features, clusters, seed=0)
    assert silhouette(features, clusters, seed=1) == whole
    drawn = [silhouette(features, clusters, sample=60, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn == pytest.approx([whole] * 3, abs=0.15)
