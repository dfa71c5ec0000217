"""Voters of other families: what else the views hold beside the partition that the plain models agree on.

Seeds of one family can agree entirely on a partition that is not the classes: the strongest one in the views. So other
methods are asked, and k-means once more on what the vote leaves of each view, where a second partition comes to light.
They do not name clusters, they object: on 3,000 images of NoisyMNIST k-means reaches ACC 0.50 to 0.62, plain models
0.69 to 0.80. SEM is not among them: it took as long as ten plain models or more, and found what SiMVC found.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ardmvc_core.evaluation.agreement import adjusted_rand_index
from ardmvc_core.evaluation.metrics import IntArray, occupancy
from ardmvc_core.losses.view_weights import view_clusters
from ardmvc_core.networks.kmeans import RESTARTS
from ardmvc_core.seeding import derive_seed
from ardmvc_core.selection.reference_partition import MIN_ENTROPY, FloatArray, ReferencePartition, fewest

SECOND_AGREEMENT = 0.3
"""Lowest ARI of two independent voters that have found one partition. Measured with a planted one: 0.46 to 1.00;
without, at most 0.04 on what the vote leaves of NoisyDigits, NoisyMNIST and NoisyFashion."""
SECOND_OVERLAP = 0.2
"""ARI with the vote from which on a voter's partition counts as the vote's. Poor voters for the same classes had 0.23
to 0.55."""


@dataclass(frozen=True, eq=False)
class Voter:
    """A partition that another method has found on the samples of the vote."""

    clusters: IntArray
    """(N,) in 0..K-1."""
    views: frozenset[int] | None = None
    """Views that k-means has seen; None for a trained network."""


def view_voters(views: Sequence[NDArray[Any]], vote: IntArray, n_clusters: int, seed: int) -> list[Voter]:
    """k-means on each view, on all views side by side, and on what the vote leaves of each view.

    Args:   views: V × (N, *shape_v). vote: (N,) in 0..K-1. n_clusters: K ≤ N.
    Returns: 2 V + 1 voters.
    Raises: ValueError if there are fewer samples than clusters.
    """
    flat = [np.asarray(view, dtype=np.float64).reshape(len(view), -1) for view in views]
    spaces = [(frozenset([v]), rows) for v, rows in enumerate(flat)]
    spaces += [(frozenset([v]), leftover(rows, vote)) for v, rows in enumerate(flat)]
    spaces += [(frozenset(range(len(flat))), np.concatenate(flat, axis=1))]
    return [
        Voter(view_clusters(rows, n_clusters, derive_seed(seed, "voter", number), RESTARTS), seen)
        for number, (seen, rows) in enumerate(spaces)
    ]


def leftover(rows: NDArray[Any], vote: IntArray) -> FloatArray:
    """The rows without the directions in which the vote's cluster means differ, in which nothing of the vote is left.

    Args:   rows: (N, D). vote: (N,).
    Returns: (N, D), every cluster mean is 0.
    Source: Cui, Fern and Dy 2007, "Non-redundant multi-view clustering via orthogonalization".
    """
    centred = rows - rows.mean(axis=0)
    means = np.stack([centred[vote == cluster].mean(axis=0) for cluster in np.unique(vote)])
    _, sizes, directions = np.linalg.svd(means, full_matrices=False)
    basis = directions[sizes > 1e-9 * max(float(sizes.max()), 1e-9)]
    return np.asarray(centred - centred @ basis.T @ basis, dtype=np.float64)


def second_partition(vote: IntArray, voters: Sequence[Voter], n_clusters: int) -> bool:
    """Whether the views hold a second stable partition: two independent voters agree on one that is not the vote's.

    They agree by an ARI of at least 0.3 with each other, and each by less than 0.2 with the vote. Two voters are
    independent unless both are k-means and have a view in common. Voters that have collapsed (G1, or an entropy below
    0.5) are not heard.

    Args:   vote: (N,) in 0..K-1. voters: on the same samples. n_clusters: K ≥ 2.
    Raises: ValueError if lengths differ or a cluster is not in 0..K-1.
    """
    others = [
        voter
        for voter in voters
        if _sound(voter.clusters, n_clusters) and adjusted_rand_index(vote, voter.clusters) < SECOND_OVERLAP
    ]
    return any(
        adjusted_rand_index(first.clusters, second.clusters) >= SECOND_AGREEMENT
        for first, second in combinations(others, 2)
        if first.views is None or second.views is None or not first.views & second.views
    )


def with_objections(reference: ReferencePartition, voters: Sequence[Voter], n_clusters: int) -> ReferencePartition:
    """The reference as the other voters leave it: with a second stable partition it is not reliable.

    Args, Raises: as `second_partition`.
    """
    found = second_partition(reference.clusters, voters, n_clusters)
    return replace(reference, second_partition=found, reliable=reference.reliable and not found)


def _sound(clusters: IntArray, n_clusters: int) -> bool:
    occupied, entropy = occupancy(clusters, n_clusters)
    return occupied >= fewest(n_clusters) and entropy >= MIN_ENTROPY
