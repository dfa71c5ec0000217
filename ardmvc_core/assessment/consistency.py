"""Scores from stored confusion matrices alone, and the relations that stored numbers must keep.

A report that was read from a file is checked here against its own counts: nothing needs the model or the samples.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ardmvc_core.evaluation.metrics import ClusteringScores, IntArray

Counts = NDArray[np.integer]

_TOLERANCE = 1e-9


def map_from_confusion(class_by_cluster: Counts) -> IntArray:
    """The one-to-one map from clusters to classes under which most samples are right; as `metrics.fit_map`.

    For scores under attack the map comes from the clean table, `confusion/class_clean`.

    Args:   class_by_cluster: (classes, clusters) counts ≥ 0.
    Returns: (clusters,) int64: the class of each; those left over get numbers that are no class here.
    Raises: ValueError if the counts are no table of integers ≥ 0 with at least one sample.
    Source: Kuhn 1955 (Hungarian method), on the square of the larger side.
    """
    counts = _checked(class_by_cluster)
    from scipy.optimize import linear_sum_assignment

    # Square and by cluster like `fit_map`, so that of several best maps the same one is taken.
    square = np.zeros((max(counts.shape),) * 2, dtype=np.int64)
    square[: counts.shape[1], : counts.shape[0]] = counts.T
    return linear_sum_assignment(square, maximize=True)[1][: counts.shape[1]].astype(np.int64)


def scores_from_confusion(class_by_cluster: Counts, mapping: NDArray[np.integer] | None = None) -> ClusteringScores:
    """ACC, NMI, ARI and purity of `metrics.fixed_map_scores`, or of `metrics.clustering_scores` if no map is given.

    Args:   class_by_cluster: (classes, clusters) counts ≥ 0, as stored in `confusion/class_<…>`.
        mapping: (clusters,), the class of each cluster; None fits the best one to these counts (`acc_refit`).
    Raises: ValueError as `map_from_confusion`, or if the map has another length or numbers < 0.
    """
    counts = _checked(class_by_cluster)
    classes = map_from_confusion(counts) if mapping is None else np.asarray(mapping)
    n_classes, n_clusters = counts.shape
    if classes.shape != (n_clusters,) or classes.dtype.kind not in "iu" or classes.min() < 0:
        raise ValueError(f"mapping must hold one class ≥ 0 for each of {n_clusters} clusters, got {mapping}")
    # Clusters that were left over are mapped to numbers beyond the classes and are right about nothing.
    named = classes < n_classes
    right = counts[classes[named], np.flatnonzero(named)].sum()
    # One cluster tells nothing, so it earns nothing (as in `metrics`).
    constant = np.count_nonzero(counts.any(axis=0)) == 1
    n_samples = int(counts.sum())
    return ClusteringScores(
        acc=float(right / n_samples),
        agreement={"nmi": 0.0 if constant else _nmi(counts), "ari": 0.0 if constant else _ari(counts)},
        purity=float(counts.max(axis=0).sum() / n_samples),
        n_samples=n_samples,
    )


def check_consistency(values: Mapping[str, float], worst_case: Sequence[str]) -> list[str]:
    """Relations that the metrics of one evaluation cannot break unless a number is wrong.

    robust/acc ≤ <attack>/acc for the attacks of the worst case, <attack>/acc ≤ <attack>/acc_refit for all, and
    robust/acc ≥ clean/acc − robust/flip. A relation is skipped if it lacks a number, as all are without labels.

    Args:   values: fractions by name, as in `scoring`. worst_case: attacks that `robust/…` stands for, each scored on
        all samples.
    Returns: a sentence per violation (more than 1e-9, or NaN), empty if there is none.
    """
    pairs = [("robust/acc", f"{name}/acc") for name in worst_case]
    pairs += [(key.removesuffix("_refit"), key) for key in values if key.endswith("/acc_refit")]
    faults = [
        f"{lower} = {values[lower]:.6g} must not exceed {upper} = {values[upper]:.6g}"
        for lower, upper in pairs
        if lower in values and upper in values and not values[lower] <= values[upper] + _TOLERANCE
    ]
    if {"robust/acc", "clean/acc", "robust/flip"} <= values.keys():
        robust, clean, flip = values["robust/acc"], values["clean/acc"], values["robust/flip"]
        if not robust >= clean - flip - _TOLERANCE:
            faults.append(
                f"robust/acc = {robust:.6g} must not be below clean/acc − robust/flip = {clean:.6g} − {flip:.6g}"
            )
    return faults


def _checked(class_by_cluster: Counts) -> IntArray:
    counts = np.asarray(class_by_cluster)
    if counts.ndim != 2 or counts.dtype.kind not in "iu":
        raise ValueError(
            f"class_by_cluster must be a table of integers, got shape {counts.shape}, dtype {counts.dtype}"
        )
    if not counts.any() or counts.min() < 0:
        raise ValueError("class_by_cluster must hold counts ≥ 0 of at least one sample")
    return counts.astype(np.int64)


def _nmi(counts: IntArray) -> float:
    """Mutual information over the mean of the two entropies, at least two clusters."""
    from scipy.special import entr
    from sklearn.metrics import mutual_info_score

    mutual = mutual_info_score(None, None, contingency=counts)
    entropies = sum(entr(counts.sum(axis=axis) / counts.sum()).sum() for axis in (0, 1))
    return float(2 * mutual / entropies)


def _ari(counts: IntArray) -> float:
    """Hubert & Arabie 1985 over pairs of samples, at least two clusters; in whole numbers, so exact but for a division.

    scikit-learn's own takes label vectors only.
    """

    def pairs(sizes: IntArray) -> int:
        return sum(size * (size - 1) // 2 for size in sizes.ravel().tolist())

    together, classes, clusters = pairs(counts), pairs(counts.sum(axis=1)), pairs(counts.sum(axis=0))
    everyone = pairs(counts.sum(keepdims=True))
    if together == classes == clusters:
        return 1.0
    by_chance = classes * clusters
    return 2 * (together * everyone - by_chance) / ((classes + clusters) * everyone - 2 * by_chance)
