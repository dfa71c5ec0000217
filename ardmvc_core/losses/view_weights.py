"""How much two views say alike, as SEM weighs its pairs of views: three measures and their (V, V) weights.

Weights are symmetric, float64, and never differentiated.
Source: Xu et al. 2023 (SEM).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ardmvc_core.losses.ddc import squared_distances

_KERNELS = 4
_WIDTH_FLOOR = 1e-12
_FEW_SAMPLES = 10_000
_CHUNK = 5_000


def cmi_weights(clusters: Sequence[NDArray[Any]]) -> Tensor:
    """exp(NMI) − 1 between the views' clusterings.

    Args:   clusters: V × (N,) integers.
    Returns: (V, V) in [0, e − 1], the upper end on the diagonal.
    """
    from sklearn.metrics import normalized_mutual_info_score  # takes seconds to import

    def weight(v: int, w: int) -> float:
        return math.expm1(normalized_mutual_info_score(clusters[v], clusters[w]))

    return _weights(len(clusters), math.expm1(1), weight)


def jsd_weights(features: Sequence[Tensor]) -> Tensor:
    """exp(1 − JSD) − 1 between the views' features.

    Args:   features: V × (N, D).
    Returns: (V, V) in (0, e − 1], the upper end on the diagonal.
    """
    return _weights(
        len(features), math.expm1(1), lambda v, w: math.expm1(1 - float(jensen_shannon(features[v], features[w])))
    )


def mmd_weights(features: Sequence[Tensor], samples: int = 2000) -> Tensor:
    """exp(−MMD) between the views' features.

    Args:   features: V × (N, D). samples: only the first so many rows are compared (memory grows with the square).
    Returns: (V, V) in (0, 1], the upper end on the diagonal.
    """
    first = [rows[:samples] for rows in features]
    return _weights(len(first), 1.0, lambda v, w: math.exp(-float(maximum_mean_discrepancy(first[v], first[w]))))


def _weights(n_views: int, diagonal: float, weight: Callable[[int, int], float]) -> Tensor:
    weights = torch.eye(n_views, dtype=torch.float64) * diagonal
    for v in range(n_views):
        for w in range(v + 1, n_views):
            weights[v, w] = weights[w, v] = weight(v, w)
    return weights


@torch.no_grad()
def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen–Shannon divergence of the rows' softmaxes, computed in float64.

    Args:   first, second: (N, D), any values.
    Returns: scalar in [0, ln 2], nats, mean over the rows; 0 where the softmaxes are equal.
    Source: Lin 1991.
    """
    log_p, log_q = first.double().log_softmax(dim=1), second.double().log_softmax(dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((log_p.exp() * (log_p - log_m)).sum(dim=1) + (log_q.exp() * (log_q - log_m)).sum(dim=1)).mean() / 2


@torch.no_grad()
def maximum_mean_discrepancy(first: Tensor, second: Tensor, factor: float = 4.0) -> Tensor:
    """Biased estimate of the squared MMD under a sum of four Gaussian kernels, computed in float64.

    Kernel i = 0…3 is exp(−d²/(b·factor^(i−2))), b the mean squared distance between different rows of both samples.

    Args:   first, second: (N, D). factor: > 1, between the widths of neighbouring kernels.
    Returns: scalar in [0, 8]; 0 where the samples are equal.
    Source: Gretton et al. 2012, Eq. 5.
    """
    n = len(first)
    distances = squared_distances(torch.cat([first, second]).double()).clamp(min=0)
    # Floor: when all rows coincide, the width is 0 and so is every distance.
    width = (distances.sum() / (len(distances) * (len(distances) - 1))).clamp(min=_WIDTH_FLOOR)
    widths = [width * factor ** (i - _KERNELS // 2) for i in range(_KERNELS)]
    kernel = sum((torch.exp(-distances / b) for b in widths), start=torch.zeros_like(distances))
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def view_clusters(features: NDArray[Any], n_clusters: int, seed: int, restarts: int) -> NDArray[np.int64]:
    """Clusters of one view's features: k-means, above 10,000 samples mini-batch k-means of batches of 5,000.

    Args:   features: (N, D). seed: of every draw. restarts: initialisations of which the best is kept.
    Returns: (N,).
    Raises: ValueError if there are fewer samples than clusters.
    """
    if len(features) < n_clusters:
        raise ValueError(f"k-means needs at least as many samples as clusters, got {len(features)} for {n_clusters}")
    from sklearn.cluster import KMeans, MiniBatchKMeans

    random_state = seed % 2**32
    estimator = (
        KMeans(n_clusters, n_init=restarts, random_state=random_state)
        if len(features) <= _FEW_SAMPLES
        else MiniBatchKMeans(n_clusters, n_init=restarts, batch_size=_CHUNK, random_state=random_state)
    )
    with warnings.catch_warnings():
        # Fewer distinct points than clusters: the views then agree on fewer, larger clusters.
        warnings.simplefilter("ignore")
        return np.asarray(estimator.fit_predict(features), dtype=np.int64)
