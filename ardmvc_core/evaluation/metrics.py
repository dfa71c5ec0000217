"""How well clusters agree with classes, and how much an attack moves them.

Labels and clusters are NumPy arrays or tensors of integers and are never changed. Nothing is rounded.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ardmvc_core.evaluation.agreement import AGREEMENT, IntArray

Integers = Tensor | NDArray[Any]


SCORES = ("acc", *AGREEMENT)
"""What is reported as `clean/…`, `robust/…` and `<attack>/…`, and may be an objective."""
PUBLISHED = ("acc", "nmi", "ari")
"""What published tables have: reported as `official/<phase>/…`, and as `chance/…`."""
ATTACK_SCORES = (*SCORES, "flip", "acc_refit")
"""What is reported of a single attack."""
ROBUST_SCORES = (*SCORES, "flip", "kappa")
"""What is reported of the worst case."""
UNMAPPED_SCORES = tuple(f"{name}_clean" for name in AGREEMENT)
"""What the suite reports of attacked against clean clusters, besides."""


@dataclass(frozen=True)
class ClusteringScores:
    """Agreement of clusters with classes; 1 is best."""

    acc: float
    """Share of samples whose cluster is mapped to their class, in [0, 1]."""
    agreement: Mapping[str, float]
    """By name in `AGREEMENT`: scores that need no map."""
    purity: float
    """Share of samples in the most frequent class of their cluster, in (0, 1]; grows with K."""
    n_samples: int

    @property
    def nmi(self) -> float:
        return self.agreement["nmi"]

    @property
    def ari(self) -> float:
        return self.agreement["ari"]

    def named(self, group: str, scores: Iterable[str] = SCORES) -> dict[str, float]:
        """`<group>/<score>` for each of `scores`."""
        values = {"acc": self.acc, **self.agreement}
        return {f"{group}/{score}": values[score] for score in scores}


def clustering_scores(labels: Integers, clusters: Integers, n_clusters: int) -> ClusteringScores:
    """Scores under the best one-to-one map, fitted to these very samples.

    Args:   labels: (N,) class numbers ≥ 0, of which some may be unused. clusters: (N,) in 0..n_clusters-1.
        n_clusters: K.
    Raises: ValueError if the two differ in length, are empty, or hold anything else.
    """
    return fixed_map_scores(labels, clusters, fit_map(labels, clusters, n_clusters))


def fit_map(labels: Integers, clusters: Integers, n_clusters: int) -> IntArray:
    """The one-to-one map from clusters to classes under which most samples are right.

    Args:   as in `clustering_scores`.
    Returns: (K,) int64: the class of each cluster. Where there are more clusters than classes, those left over get
        numbers that are no class here; clusters without samples get any class that is left.
    Raises: ValueError as `clustering_scores`.
    Source: Kuhn 1955 (Hungarian method), on the square of size max(K, largest class + 1).
    """
    label_ids, cluster_ids = _integers(labels, "labels"), _integers(clusters, "clusters")
    # Imported where it is needed: SciPy and scikit-learn take seconds, and bad input is answered without them.
    from scipy.optimize import linear_sum_assignment

    size = max(n_clusters, int(label_ids.max()) + 1)
    counts = np.zeros((size, size), dtype=np.int64)
    counts[:n_clusters] = confusion(cluster_ids, label_ids, n_clusters, size)
    return linear_sum_assignment(counts, maximize=True)[1][:n_clusters].astype(np.int64)


def fixed_map_scores(labels: Integers, clusters: Integers, mapping: Integers) -> ClusteringScores:
    """Scores under a given map, for instance one fitted before an attack; only `acc` depends on it.

    Args:   labels, clusters: as in `clustering_scores`. mapping: (K,), the class of each cluster.
    Raises: ValueError as `clustering_scores`.
    """
    label_ids, cluster_ids = _integers(labels, "labels"), _integers(clusters, "clusters")
    classes = _integers(mapping, "mapping")
    counts = confusion(cluster_ids, label_ids, len(classes), int(label_ids.max()) + 1)
    return ClusteringScores(
        acc=float(np.mean(classes[cluster_ids] == label_ids)),
        agreement={name: _agreement(name, label_ids, cluster_ids) for name in AGREEMENT},
        purity=float(counts.max(axis=1).sum() / len(label_ids)),
        n_samples=len(label_ids),
    )


def chance_scores(labels: Integers, clusters: Integers, n_clusters: int, permutations: int = 20) -> dict[str, float]:
    """What chance alone gives for so many samples, and clusters of these sizes.

    Args:   labels, clusters, n_clusters: as in `clustering_scores`. permutations: ≥ 1, drawn from a fixed seed.
    Returns: each of `PUBLISHED`, its mean over random permutations of the clusters, each matched to the labels anew.
    Raises: ValueError as `clustering_scores`.
    """
    label_ids, cluster_ids = _integers(labels, "labels"), _integers(clusters, "clusters")
    stream = np.random.default_rng(0)
    drawn = []
    for dealt in (stream.permutation(cluster_ids) for _ in range(permutations)):
        acc = float(np.mean(fit_map(label_ids, dealt, n_clusters)[dealt] == label_ids))
        drawn.append([acc, *(_agreement(name, label_ids, dealt) for name in PUBLISHED[1:])])
    return dict(zip(PUBLISHED, np.mean(drawn, axis=0).tolist(), strict=True))


def flip_rate(clean: Integers, attacked: Integers) -> float:
    """Share of samples that an attack moved to another cluster, in [0, 1]; needs no labels, lower is more robust.

    Args:   clean, attacked: (N,) clusters of the same samples before and after.
    Raises: ValueError if the two differ in length or are empty.
    """
    before, after = _integers(clean, "clean"), _integers(attacked, "attacked")
    if len(before) != len(after):
        raise ValueError(f"clean and attacked must have one common length, got {len(before)} and {len(after)}")
    return float(np.mean(before != after))


def kappa(clean: Integers, attacked_any_flip: Tensor | NDArray[Any], n_clusters: int) -> float:
    """Share of samples that no attack moved, corrected for what the cluster sizes alone would give.

    A model that puts everything into one cluster cannot be moved; here it scores 0. After Cohen 1960, with the clean
    cluster shares p on both sides: (share kept − Σ p²)/(1 − Σ p²).

    Args:   clean: (N,) clusters before. attacked_any_flip: (N,) bool, moved by at least one attack. n_clusters: K.
    Returns: at most 1; 0 is chance, negative is worse; 0 where all samples share one cluster.
    Raises: ValueError if the two differ in length or are empty.
    """
    before = _integers(clean, "clean")
    flipped = _array(attacked_any_flip).astype(bool)
    if flipped.shape != before.shape:
        raise ValueError(f"attacked_any_flip must have the shape of clean {before.shape}, got {flipped.shape}")
    sizes = confusion(before, np.zeros_like(before), n_clusters, 1)[:, 0]
    if sizes.max() == len(before):
        return 0.0
    by_chance = float(np.sum((sizes / len(before)) ** 2))
    return float((np.mean(~flipped) - by_chance) / (1 - by_chance))


def confusion(rows: Integers, columns: Integers, n_rows: int, n_columns: int) -> IntArray:
    """How often each pair of numbers occurs.

    Args:   rows: (N,) in 0..n_rows-1. columns: (N,) in 0..n_columns-1.
    Returns: (n_rows, n_columns) int64 counts that sum to N.
    Raises: ValueError if the two differ in length, are empty or leave their range.
    """
    row_ids, column_ids = _integers(rows, "rows"), _integers(columns, "columns")
    if len(row_ids) != len(column_ids):
        raise ValueError(f"both must have one common length, got {len(row_ids)} and {len(column_ids)}")
    for ids, limit in ((row_ids, n_rows), (column_ids, n_columns)):
        if ids.max() >= limit:
            raise ValueError(f"numbers must be in 0..{limit - 1}, got {ids.max()}")
    counts = np.bincount(row_ids * n_columns + column_ids, minlength=n_rows * n_columns)
    return counts.reshape(n_rows, n_columns).astype(np.int64)


def occupancy(clusters: Integers, n_clusters: int) -> tuple[int, float]:
    """How many clusters are in use, and how evenly.

    Args:   clusters: (N,) in 0..K-1. n_clusters: K ≥ 2.
    Returns: clusters with a share above 1/(10 K); entropy of the shares over log K, in [0, 1].
    Raises: ValueError for what is no vector of clusters in 0..K-1.
    """
    found = _integers(clusters, "clusters")
    if found.max() >= n_clusters:
        raise ValueError(f"clusters must be in 0..{n_clusters - 1}, got {found.max()}")
    shares = np.bincount(found, minlength=n_clusters) / len(found)
    occupied = int((shares > 1 / (10 * n_clusters)).sum())
    held = shares[shares > 0]
    return occupied, abs(float((held * np.log(held)).sum() / math.log(n_clusters)))


def _agreement(name: str, labels: IntArray, clusters: IntArray) -> float:
    # scikit-learn calls two constants a perfect agreement; one cluster tells nothing, so it earns nothing.
    return 0.0 if (clusters == clusters[0]).all() else AGREEMENT[name](labels, clusters)


def _array(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _integers(values: Integers, name: str) -> IntArray:
    array = _array(values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise ValueError(f"{name} must be a non-empty vector of integers, got shape {array.shape}, dtype {array.dtype}")
    if array.min() < 0:
        raise ValueError(f"{name} must be ≥ 0, got {array.min()}")
    return array.astype(np.int64)
