"""The reference partition: what plain models agree on takes the place of classes where there are none."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ardmvc_core.evaluation.metrics import IntArray, confusion, fit_map, occupancy

FloatArray = NDArray[np.float64]

ENTROPY_RATIO = 0.9
"""G2: lowest entropy of a partition, as a share of that of the plain models'."""

MIN_ENTROPY = 0.5
"""G2 of plain models, which have no reference yet: as even as √K equal clusters."""

MIN_VIEW_SHARE = 0.1
"""G3: lowest share of the fusion weight that a view may have, times 1/V."""

REFERENCE_VERSION = 2
"""Part of a stored reference and of its digest: raised whenever the same models would give another one."""

RELIABLE_AGREEMENT = 0.6
"""Lowest mean ARI among kept plain models at which their vote may judge trials."""


class OldReference(ValueError):
    """A stored reference is of another `REFERENCE_VERSION`."""


@dataclass(frozen=True, eq=False)
class PlainRun:
    """One model trained without adversarial terms, on the clean tuning part in inference mode."""

    clusters: IntArray
    """(N,) in 0..K-1."""
    loss: float
    """Clean clustering loss, as `clean_clustering_loss` gives it; lower is better."""
    view_use: tuple[float, ...] | None
    """Share of the fusion weight of each view, sums to 1; None where the fusion has no weights."""


@dataclass(frozen=True, eq=False)
class ReferencePartition:
    """What the plain models agree on; takes the place of classes where there are none."""

    clusters: IntArray
    """(N,) int64 in 0..K-1, named as in the run of lowest loss."""
    weights: FloatArray
    """(N,) share of the kept runs that voted for it, in (0, 1]."""
    agreement: float
    """Mean ARI over pairs of kept runs, in [−0.5, 1]; 1 if only one was kept."""
    reliable: bool
    """Whether at least two runs were kept and agree by 0.6, and there is no second partition; if not, trials are to be
    ranked by `robust/kappa`."""
    kept: tuple[int, ...]
    """Places of the kept runs in the list given, lowest loss first."""
    entropy: float
    """H_ref: median normalised entropy of the kept runs, in [0, 1]."""
    largest_share: float
    """Share of samples in the largest reference cluster: the most that a constant partition can agree."""
    second_partition: bool = False
    """Whether voters of other families have found a second stable partition (`voters.second_partition`)."""

    def first(self, count: int) -> "ReferencePartition":
        """The reference of the first samples."""
        return replace(self, clusters=self.clusters[:count], weights=self.weights[:count])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays by field name, for an .npz that needs no pickle."""
        return {
            "clusters": self.clusters,
            "weights": self.weights,
            "agreement": np.array(self.agreement, dtype=np.float64),
            "reliable": np.array(self.reliable, dtype=np.bool_),
            "kept": np.array(self.kept, dtype=np.int64),
            "entropy": np.array(self.entropy, dtype=np.float64),
            "largest_share": np.array(self.largest_share, dtype=np.float64),
            "second_partition": np.array(self.second_partition, dtype=np.bool_),
            "version": np.array(REFERENCE_VERSION, dtype=np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "ReferencePartition":
        """What `to_arrays` returned, or an opened .npz of it; further arrays are ignored.

        Raises: ValueError, naming them, if arrays are missing; its child OldReference for another version.
        """
        if "clusters" in arrays and (version := int(arrays.get("version", 1))) != REFERENCE_VERSION:
            raise OldReference(
                f"is a reference partition of version {version}, and this program makes version {REFERENCE_VERSION}: "
                "scores against the two cannot be compared"
            )
        missing = [name for name in cls.__dataclass_fields__ if name not in arrays]
        if missing:
            raise ValueError(f"the arrays are no reference partition: {', '.join(missing)} missing")
        return cls(
            clusters=np.asarray(arrays["clusters"], dtype=np.int64),
            weights=np.asarray(arrays["weights"], dtype=np.float64),
            agreement=float(arrays["agreement"]),
            reliable=bool(arrays["reliable"]),
            kept=tuple(int(place) for place in arrays["kept"]),
            entropy=float(arrays["entropy"]),
            largest_share=float(arrays["largest_share"]),
            second_partition=bool(arrays["second_partition"]),
        )

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of everything, the same on every machine."""
        found = hashlib.sha256()
        for name, array in self.to_arrays().items():
            found.update(f"{name}{array.shape}".encode())
            found.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return found.hexdigest()[:16]


def reference_partition(runs: Sequence[PlainRun], n_clusters: int) -> ReferencePartition:
    """Majority vote of the better half of those plain runs that have not collapsed.

    A run is dropped if its loss is not finite, fewer than K − 1 (or 2) clusters hold more than 1/(10 K) of the samples
    (G1), its normalised entropy is below 0.5 or below 0.9 of the median of the runs not dropped so far (G2), or a view
    has less than 0.1/V of the fusion weight (G3). Of the rest the half with the lowest loss is kept, rounded up, and
    named after the lowest by Hungarian matching. Tied votes go to the voter with the lowest loss.

    Args:   runs: on the same samples in the same order. n_clusters: K ≥ 2.
    Raises: ValueError if there are fewer than 2 runs, they differ in length, a cluster is not in 0..K-1, or no run
        passes the guards; the message then says why for each.
    """
    if n_clusters < 2:
        raise ValueError(f"n_clusters must be ≥ 2, got {n_clusters}")
    lengths = sorted({len(run.clusters) for run in runs})
    if len(runs) < 2 or len(lengths) != 1:
        raise ValueError(f"runs must be at least 2 of one common length, got {len(runs)} of lengths {lengths}")
    entropies = [occupancy(run.clusters, n_clusters)[1] for run in runs]
    faults = [_faults(run, n_clusters) for run in runs]
    sound = [place for place, found in enumerate(faults) if not found]
    if not sound:
        reasons = "; ".join(f"run {place}: {', '.join(found)}" for place, found in enumerate(faults))
        raise ValueError(f"none of the {len(runs)} plain runs passes the guards: {reasons}")
    lowest = ENTROPY_RATIO * float(np.median([entropies[place] for place in sound]))
    sound = [place for place in sound if entropies[place] >= lowest]
    by_loss = sorted(sound, key=lambda place: runs[place].loss)
    kept = by_loss[: math.ceil(len(by_loss) / 2)]
    names = runs[kept[0]].clusters
    aligned = [fit_map(names, runs[place].clusters, n_clusters)[runs[place].clusters] for place in kept]
    clusters, weights = _vote(aligned, n_clusters)
    agreement = seed_agreement(aligned) if len(kept) > 1 else 1.0
    return ReferencePartition(
        clusters=clusters,
        weights=weights,
        agreement=agreement,
        reliable=len(kept) > 1 and agreement >= RELIABLE_AGREEMENT,
        kept=tuple(kept),
        # Of the aligned ones: under other names the sum would run in another order, and the digest would differ.
        entropy=float(np.median([occupancy(column, n_clusters)[1] for column in aligned])),
        largest_share=float(_sizes(clusters, n_clusters).max() / len(clusters)),
    )


def seed_agreement(partitions: Sequence[IntArray]) -> float:
    """Mean ARI over pairs of seeds of one configuration, in [−0.5, 1]; what is reproducible need not be right.

    Args:   partitions: S × (N,) clusters.
    Returns: NaN for fewer than two. Partitions into a single cluster agree with nothing: 0.
    Raises: ValueError if lengths differ.
    """
    if len(partitions) < 2:
        return math.nan
    from sklearn.metrics import adjusted_rand_score

    # scikit-learn calls two constants a perfect agreement; one cluster tells nothing, so it earns nothing.
    found = [
        0.0 if _constant(first) or _constant(second) else float(adjusted_rand_score(first, second))
        for first, second in combinations(partitions, 2)
    ]
    return float(np.mean(found))


def _faults(run: PlainRun, n_clusters: int) -> list[str]:
    """Why a plain run cannot be part of a reference, whatever the other runs are."""
    occupied, entropy = occupancy(run.clusters, n_clusters)
    faults = []
    if not math.isfinite(run.loss):
        faults.append(f"loss {run.loss}")
    if occupied < fewest(n_clusters):
        faults.append(f"G1 {occupied} of {n_clusters} clusters occupied, at least {fewest(n_clusters)} needed")
    if not entropy >= MIN_ENTROPY:
        faults.append(f"G2 entropy {entropy:.3f}, at least {MIN_ENTROPY} needed")
    if run.view_use is not None:
        least = MIN_VIEW_SHARE / len(run.view_use)
        # Phrased so that NaN is refused too.
        unused = [v for v, share in enumerate(run.view_use) if not share >= least]
        faults += [f"G3 view {v} has {run.view_use[v]:.3f} of the fusion, at least {least:.3f} needed" for v in unused]
    return faults


def _vote(aligned: Sequence[IntArray], n_clusters: int) -> tuple[IntArray, FloatArray]:
    """R × (N,), best run first → (N,) most frequent cluster and its share."""
    votes = np.stack([np.bincount(column, minlength=n_clusters) for column in np.stack(aligned).T])
    most = votes.max(axis=1)
    clusters = aligned[-1].copy()
    samples = np.arange(len(clusters))
    for run in reversed(aligned):
        wins = votes[samples, run] == most
        clusters[wins] = run[wins]
    return clusters, most / len(aligned)


def fewest(n_clusters: int) -> int:
    """Clusters that must be occupied. At least 2: for K = 2 the constant partition has K − 1."""
    return max(2, n_clusters - 1)


def _sizes(clusters: IntArray, n_clusters: int) -> IntArray:
    return confusion(clusters, np.zeros_like(clusters), n_clusters, 1)[:, 0]


def _constant(clusters: IntArray) -> bool:
    return len(np.unique(clusters)) < 2
