"""k-means as part of a model: centroids fitted once on clean training features, frozen, and read as logits.

With frozen centroids an assignment depends on its own sample only, and every attack on logits works.
"""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ardmvc_core.batching import in_full_batches
from ardmvc_core.types import EmbeddingOutput, Views

RESTARTS = 10
"""Initialisations of every fit, of which the best is kept."""
CALIBRATION_BATCH = 256
"""Samples of a pass when features are collected."""
_WIDTH_FLOOR = 1e-12
_FEW_SAMPLES = 15_000
_CHUNK = 3_000


class KMeansHead(nn.Module):
    """Logits −‖φ − c_j‖²/τ of features φ to frozen centroids c_j.

    Centroids and τ are buffers, so a checkpoint carries them; until `fit` they are a random draw.
    """

    def __init__(self, in_features: int, n_clusters: int) -> None:
        super().__init__()
        if not n_clusters >= 2:
            raise ValueError(f"n_clusters must be ≥ 2, got {n_clusters}")
        self.centroids: Tensor
        self.temperature: Tensor
        self.register_buffer("centroids", torch.randn(n_clusters, in_features))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) → logits (B, K)."""
        return -self._distances(features) / self.temperature

    def _distances(self, features: Tensor) -> Tensor:
        """(B, F) → squared distances from the centroids (B, K)."""
        return (features[:, None, :] - self.centroids).square().sum(dim=2)

    @torch.no_grad()
    def fit(self, features: Tensor, seed: int) -> None:
        """Fits centroids, and τ: the median over the features of (second nearest − nearest) squared distance.

        Args:   features: (N, F) of clean training samples.
        Raises: ValueError if N < K.
        """
        centroids = kmeans(features.double().cpu().numpy(), len(self.centroids), seed).cluster_centers_
        self.centroids.copy_(torch.from_numpy(centroids))
        # Without τ: what it was before would be in the last digit of what it becomes.
        distances = torch.cat([self._distances(chunk) for chunk in features.split(_CHUNK)])
        nearest = distances.topk(2, dim=1, largest=False).values
        self.temperature.copy_((nearest[:, 1] - nearest[:, 0]).median().clamp(min=_WIDTH_FLOOR))


def calibrate_kmeans(model: nn.Module, views: Views, seed: int) -> None:
    """Fits `model.head`, a KMeansHead, to the model's embeddings of clean training views: V × (N, *shape_v)."""
    assert isinstance(model.head, KMeansHead)
    model.head.fit(embeddings(model, views), seed)


def embeddings(model: nn.Module, views: Views, batch_size: int = CALIBRATION_BATCH) -> Tensor:
    """What k-means clusters, in the model's present mode: V × (N, *shape_v) → (N, F)."""
    found = []
    with torch.no_grad():
        for batch in in_full_batches(views, batch_size):
            output = model(batch)
            assert isinstance(output, EmbeddingOutput)
            found.append(output.embedding)
    return torch.cat(found)


def kmeans(features: NDArray[Any], n_clusters: int, seed: int) -> Any:
    """scikit-learn's k-means, seeded, best of ten initialisations: (N, F) → fitted estimator.

    Raises: ValueError if there are fewer samples than clusters, or a feature is not finite.
    """
    if not np.isfinite(features).all():
        raise ValueError("k-means needs finite features; the model's embeddings are not")
    if len(features) < n_clusters:
        raise ValueError(f"k-means needs at least as many samples as clusters, got {len(features)} for {n_clusters}")
    from sklearn.cluster import KMeans  # takes seconds to import

    with warnings.catch_warnings():
        # Fewer distinct points than clusters: some centroids then coincide, which the guards on clusters report.
        warnings.simplefilter("ignore")
        return KMeans(n_clusters, n_init=RESTARTS, random_state=seed % 2**32).fit(features)


def published_clusters(features: NDArray[Any], n_clusters: int, seed: int) -> NDArray[np.int64]:
    """Clusters as the published evaluation finds them, anew for every pass: (N, F) → (N,).

    Up to 15,000 samples: k-means with ten initialisations. More: one pass of mini-batch k-means over consecutive chunks
    of 3,000. Differs from the published code, which takes its random numbers from wherever NumPy's global stream is.
    """
    if len(features) <= _FEW_SAMPLES:
        return np.asarray(kmeans(features, n_clusters, seed).labels_, dtype=np.int64)
    from sklearn.cluster import MiniBatchKMeans

    chunks = [features[start : start + _CHUNK] for start in range(0, len(features), _CHUNK)]
    estimator = MiniBatchKMeans(n_clusters, batch_size=_CHUNK, random_state=seed % 2**32)
    for chunk in chunks:
        estimator.partial_fit(chunk)
    return np.concatenate([estimator.predict(chunk) for chunk in chunks]).astype(np.int64)
