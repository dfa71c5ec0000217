"""Scores of clusters against classes that need no map from one to the other. A new one is one line in `AGREEMENT`."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def normalised_mutual_information(labels: IntArray, clusters: IntArray) -> float:
    """Mutual information over the mean of the two entropies, in [0, 1]."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(labels, clusters))


def adjusted_mutual_information(labels: IntArray, clusters: IntArray) -> float:
    """Mutual information beyond chance over the most there can be, at most 1; 0 is chance, whatever N and K.

    Source: Vinh et al. 2010.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(labels, clusters))


def adjusted_rand_index(labels: IntArray, clusters: IntArray) -> float:
    """Share of sample pairs treated alike, corrected for chance, in [−0.5, 1]; 0 is chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(labels, clusters))


AGREEMENT: dict[str, Callable[[IntArray, IntArray], float]] = {
    "nmi": normalised_mutual_information,
    "ami": adjusted_mutual_information,
    "ari": adjusted_rand_index,
}
"""Scores of (N,) clusters against (N,) classes that need no map from one to the other; 1 is best. A partition into one
cluster scores 0 in each."""
