"""SEM's view weights against the published numbers and by hand."""

import math

import numpy as np
import pytest
import torch

from ardmvc_core.evaluation.metrics import clustering_scores
from ardmvc_core.losses.view_weights import (
    cmi_weights,
    jensen_shannon,
    jsd_weights,
    maximum_mean_discrepancy,
    mmd_weights,
    view_clusters,
)


def _rows(numbers, case: str, kind: str) -> list[torch.Tensor]:
    names = [name for v in range(10) if (name := f"weights/{case}/{kind}{v}") in numbers]
    return [torch.from_numpy(numbers[name]) for name in names]


@pytest.mark.parametrize("kind", ["h", "z"])
def test_published_weights(golden, assert_close, kind):
    numbers = golden("sem")
    for case in numbers["weights/case_names"]:
        rows = _rows(numbers, case, kind)
        assert len(rows) >= 2
        samples = int(numbers[f"weights/{case}/mmd_sample_num"])
        clusters = numbers[f"weights/{case}/cmi_{kind}_view_clusters"]
        assert_close(cmi_weights(clusters), numbers[f"weights/{case}/cmi_{kind}"], 1e-9, f"{case} cmi")
        assert_close(jsd_weights(rows), numbers[f"weights/{case}/jsd_{kind}"], 1e-9, f"{case} jsd")
        assert_close(mmd_weights(rows, samples), numbers[f"weights/{case}/mmd_{kind}"], 1e-9, f"{case} mmd")


def test_published_divergences(golden, assert_close):
    numbers = golden("sem")
    first, second = _rows(numbers, "v2", "h")
    assert_close(jensen_shannon(first, second), numbers["weights/v2/jsd_raw"], 1e-9)
    assert_close(maximum_mean_discrepancy(first, second, 2.0), numbers["weights/v2/mmd_default_raw"], 1e-9)
    assert_close(maximum_mean_discrepancy(first, second), numbers["weights/v2/mmd_mul4_raw"], 1e-9)


@pytest.mark.parametrize("kind", ["h", "z"])
def test_published_scores_of_joint_clusters(golden, assert_close, kind):
    numbers = golden("sem")
    for case in numbers["weights/case_names"]:
        labels, clusters = (numbers[f"weights/{case}/{name}"] for name in ("labels", f"cmi_{kind}_joint_clusters"))
        scores = clustering_scores(labels, clusters, int(max(labels.max(), clusters.max())) + 1)
        found = [scores.acc, scores.nmi, scores.ari, scores.purity]
        assert_close(found, numbers[f"weights/{case}/cmi_{kind}_joint_scores"], 1e-9, case)


def test_clusters_in_common_by_hand():
    # The second view renames the first's clusters, the third knows nothing of them.
    views = [np.array(clusters) for clusters in ([0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1])]
    one = math.e - 1
    wanted = torch.tensor([[one, one, 0], [one, one, 0], [0, 0, one]], dtype=torch.float64)
    assert torch.allclose(cmi_weights(views), wanted, atol=1e-12)


def test_divergence_of_mirrored_distributions_by_hand():
    rows = torch.tensor([[math.log(3), 0.0]])  # softmax (¾, ¼)
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert jensen_shannon(rows, rows.flip(1)).item() == pytest.approx(by_hand, rel=1e-6)
    assert jsd_weights([rows, rows.flip(1)])[0, 1].item() == pytest.approx(math.exp(1 - by_hand) - 1, rel=1e-6)


def test_divergence_of_disjoint_distributions_is_finite():
    # The last feature has no weight in either softmax, not even in double precision.
    first, second = torch.tensor([[2000.0, 0.0, 0.0]]), torch.tensor([[0.0, 2000.0, 0.0]])
    assert jensen_shannon(first, second).item() == pytest.approx(math.log(2))


def test_discrepancy_of_two_points_by_hand():
    # One squared distance of 1, so b = 1 and the widths are 1/16, 1/4, 1 and 4.
    across = sum(math.exp(-1 / width) for width in (1 / 16, 1 / 4, 1, 4))
    found = maximum_mean_discrepancy(torch.zeros(1, 1), torch.ones(1, 1))
    assert found.item() == pytest.approx(4 + 4 - 2 * across)


def test_features_that_coincide_are_alike():
    rows = torch.ones(3, 2)
    assert maximum_mean_discrepancy(rows, rows).item() == pytest.approx(0)


def test_discrepancy_reads_the_first_samples_only():
    first, second = torch.rand(10, 2), torch.rand(10, 2)
    moved = torch.cat([second[:6], second[6:] + 5])
    assert torch.equal(mmd_weights([first, second], 6), mmd_weights([first, moved], 6))
    assert not torch.equal(mmd_weights([first, second], 7), mmd_weights([first, moved], 7))


@pytest.mark.parametrize("samples", [30, 10_002])  # the second by mini-batches
def test_blobs_are_found_the_same_way_under_one_seed(samples):
    blob = np.arange(samples) % 3
    noise = np.random.default_rng(0).normal(scale=0.05, size=(samples, 2))
    features = np.array([[0.0, 0.0], [0.0, 5.0], [5.0, 0.0]])[blob] + noise
    clusters = view_clusters(features, 3, 4, restarts=10)
    assert clustering_scores(blob, clusters, 3).acc == 1
    assert np.array_equal(clusters, view_clusters(features, 3, 4, restarts=10))


def test_fewer_samples_than_clusters_are_refused():
    with pytest.raises(ValueError, match="got 2 for 3"):
        view_clusters(np.zeros((2, 4)), 3, 0, restarts=1)
