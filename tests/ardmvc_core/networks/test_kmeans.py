"""The k-means head: logits and width worked out by hand, planted clusters, seeds, checkpoints; published clusters."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score

from ardmvc_core.networks.kmeans import KMeansHead, calibrate_kmeans, embeddings, kmeans, published_clusters
from ardmvc_core.types import EmbeddingOutput

LINE = torch.tensor([0.0, 2.0, 9.0, 10.0, 11.0, 29.0, 31.0]).unsqueeze(1)
"""Centroids 1, 10 and 30. Squared distances to the two nearest: 1 100, 1 64, 1 64, 0 81, 1 100, 1 361, 1 441."""


def _planted(seed: int, n_clusters: int = 4, each: int = 15, width: int = 3) -> tuple[torch.Tensor, np.ndarray]:
    """Points within 0.1 of corners 5 apart, in random order, and where each is from."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_clusters).repeat(each)[torch.randperm(n_clusters * each, generator=stream)]
    corners = 5.0 * torch.arange(n_clusters)[:, None] * torch.ones(width)
    return corners[labels] + 0.1 * torch.rand(len(labels), width, generator=stream), labels.numpy()


def _fitted(features: torch.Tensor, n_clusters: int, seed: int = 0) -> KMeansHead:
    head = KMeansHead(features.shape[1], n_clusters)
    head.fit(features, seed)
    return head


def test_logits_are_negative_squared_distances_over_the_width():
    head = KMeansHead(2, 2)
    head.centroids.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    head.temperature.fill_(2.0)
    logits = head(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    assert logits.tolist() == [[0, -12.5], [-4.5, -8]]


def test_width_is_the_median_gap_of_the_two_nearest_centroids():
    head = _fitted(LINE, 3)
    assert sorted(head.centroids.flatten().tolist()) == pytest.approx([1, 10, 30])
    # Gaps 99, 63, 63, 81, 99, 360, 440.
    assert head.temperature.item() == pytest.approx(99)
    assert sorted(head(torch.tensor([[3.0]]))[0].tolist()) == pytest.approx([-729 / 99, -49 / 99, -4 / 99])


def test_fit_does_not_depend_on_an_earlier_fit():
    head = _fitted(1000 * LINE, 3)
    head.fit(LINE, 0)
    assert head.temperature.item() == pytest.approx(99)


def test_planted_clusters_are_found_and_new_points_fall_into_them():
    features, labels = _planted(1)
    head = _fitted(features, 4)
    assert adjusted_rand_score(labels, head(features).argmax(dim=1).numpy()) == 1
    new, new_labels = _planted(2)
    both = np.concatenate([head(features).argmax(dim=1).numpy(), head(new).argmax(dim=1).numpy()])
    assert adjusted_rand_score(np.concatenate([labels, new_labels]), both) == 1


def test_seed_decides_the_centroids_and_no_global_stream_does():
    features = torch.rand(300, 5, generator=torch.Generator().manual_seed(0))
    first = _fitted(features, 8, seed=2**40 + 3)
    np.random.seed(1)  # noqa: NPY002 - the stream that must not matter
    torch.manual_seed(9)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    estimator_centroids = kmeans(features.double().numpy(), 8, 2**40 + 3).cluster_centers_
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    again, other = _fitted(features, 8, seed=2**40 + 3), _fitted(features, 8, seed=4)
    assert torch.equal(first.centroids, again.centroids)
    assert torch.equal(first.centroids, torch.from_numpy(estimator_centroids).float())
    assert torch.equal(first.temperature, again.temperature)
    assert not torch.equal(first.centroids, other.centroids)


def test_width_has_a_floor_where_features_coincide():
    features = torch.ones(5, 2)
    head = _fitted(features, 3)
    assert head.temperature.item() == pytest.approx(1e-12)
    assert head(features).isfinite().all()


def test_fewer_samples_than_clusters_are_refused():
    head = KMeansHead(2, 4)
    with pytest.raises(ValueError, match="at least as many samples as clusters, got 3 for 4"):
        head.fit(torch.rand(3, 2), 0)
    with pytest.raises(ValueError, match="n_clusters must be ≥ 2"):
        KMeansHead(2, 1)


def test_checkpoint_carries_the_fit_and_nothing_of_it_is_trained():
    features, _ = _planted(3)
    head = _fitted(features, 4)
    other = KMeansHead(3, 4)
    assert not torch.equal(other(features), head(features))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(features), head(features))
    assert list(head.parameters()) == []


class _Doubles(torch.nn.Module):
    """Embeds the first view, times two."""

    def __init__(self) -> None:
        super().__init__()
        self.head = KMeansHead(1, 3)

    def forward(self, views):
        embedding = 2 * views[0]
        logits = self.head(embedding)
        return EmbeddingOutput(
            view_latents=views,
            consensus=embedding,
            logits=logits,
            assignments=logits.softmax(dim=1),
            embedding=embedding,
        )


def test_calibration_clusters_the_embeddings_of_the_views():
    model, views = _Doubles(), (LINE / 2, torch.zeros(7, 4))
    assert torch.equal(embeddings(model, views, batch_size=3), LINE)
    calibrate_kmeans(model, views, 0)
    assert sorted(model.head.centroids.flatten().tolist()) == pytest.approx([1, 10, 30])
    assert model.head.temperature.item() == pytest.approx(99)


@pytest.mark.parametrize("n_samples", [400, 15_000])
def test_few_samples_are_clustered_by_full_kmeans(n_samples):
    features = np.random.default_rng(0).random((n_samples, 2))
    wanted = KMeans(3, n_init=10, random_state=6).fit_predict(features)
    assert published_clusters(features, 3, 6).tolist() == wanted.tolist()


def test_many_samples_are_clustered_by_one_pass_over_chunks():
    features = np.random.default_rng(1).random((15_001, 2))  # no clusters: every change of the recipe shows
    estimator = MiniBatchKMeans(7, batch_size=3000, random_state=6)
    for start in range(0, 15_001, 3000):
        estimator.partial_fit(features[start : start + 3000])
    found = published_clusters(features, 7, 6)
    assert found.tolist() == estimator.predict(features).tolist()
    assert found.tolist() != KMeans(7, n_init=10, random_state=6).fit_predict(features).tolist()


def test_published_clusters_find_planted_ones_by_either_way():
    for each in (15, 4000):
        features, labels = _planted(5, each=each)
        found = published_clusters(features.numpy(), 4, 0)
        assert found.dtype == np.int64
        assert adjusted_rand_score(labels, found) == 1
