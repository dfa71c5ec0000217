"""Selection without labels: a reference partition made from plain models, and scores of a trial against it.

Nothing here sees a class. G1 to G3 are guards against collapse: a partition that has collapsed cannot be moved, so that
whatever measures stability alone would prefer it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ardmvc_core.assessment.checks import occupancy
from ardmvc_core.attacks.target import device_of, inference_target
from ardmvc_core.batching import in_batches
from ardmvc_core.evaluation.metrics import IntArray, confusion, fit_map
from ardmvc_core.losses.contrastive import mean_contrast
from ardmvc_core.losses.ddc import ddc_terms
from ardmvc_core.seeding import derive_seed
from ardmvc_core.types import ModelOutput, Views

FloatArray = NDArray[np.float64]

ENTROPY_RATIO = 0.9
"""G2: lowest entropy of a partition, as a share of that of the plain models'."""
MIN_ENTROPY = 0.5
"""G2 of plain models, which have no reference yet: as even as √K equal clusters."""
MIN_VIEW_SHARE = 0.1
"""G3: lowest share of the fusion weight that a view may have, times 1/V."""
RELIABLE_AGREEMENT = 0.6
"""Lowest mean ARI among kept plain models at which their vote may judge trials."""
CONTRAST_WEIGHT = 0.1
CONTRAST_TEMPERATURE = 0.1
"""CoMVC's; fixed, because losses are compared between trials that train with other ones."""


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
    """Whether at least two runs were kept and agree by 0.6; if not, trials are to be ranked by `criterion_b`."""
    kept: tuple[int, ...]
    """Places of the kept runs in the list given, lowest loss first."""
    entropy: float
    """H_ref: median normalised entropy of the kept runs, in [0, 1]."""
    largest_share: float
    """Share of samples in the largest reference cluster: the most that a constant partition can agree."""

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
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "ReferencePartition":
        """What `to_arrays` returned, or an opened .npz of it; further arrays are ignored.

        Raises: ValueError, naming them, if arrays are missing.
        """
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
    entropies = [_occupancy(run.clusters, n_clusters)[1] for run in runs]
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
        entropy=float(np.median([_occupancy(column, n_clusters)[1] for column in aligned])),
        largest_share=float(_sizes(clusters, n_clusters).max() / len(clusters)),
    )


def select_scores(
    reference: ReferencePartition, clean_clusters: IntArray, flipped: NDArray[np.bool_], n_clusters: int
) -> dict[str, float]:
    """How a trial agrees with the reference, on clean views and under all attacks.

    PRA is worst-case accuracy with the reference in place of the classes: the two differ by no more than the share of
    samples on which the reference is wrong. A constant partition has at most the largest reference share.

    Args:   clean_clusters: (N,) in 0..K-1, the trial on the samples of the reference. flipped: (N,) bool, moved by at
        least one attack. n_clusters: K.
    Returns: by name: `select/utility` U, share of samples put as in the reference under the best one-to-one map;
        `select/pra`, share of those put so and not flipped; `select/pra_weighted`, the same with each sample weighing
        as much as its vote share; `select/stability`, PRA/U, 0 where U is 0; `select/entropy`, normalised;
        `select/occupied`, number of clusters; `select/reliable`, 1 if the reference is, else 0; `select/feasible`, 1
        if `guards_hold` and, where the reference is reliable, U reaches `utility_floor`, else 0. All but `occupied` are
        in [0, 1].
    Raises: ValueError if lengths differ or a cluster is not in 0..K-1.
    """
    moved = np.asarray(flipped)
    if moved.shape != reference.clusters.shape or moved.dtype != np.bool_:
        raise ValueError(
            f"flipped must be bool of the shape of the reference {reference.clusters.shape}, "
            f"got {moved.dtype} of shape {moved.shape}"
        )
    mapping = fit_map(reference.clusters, clean_clusters, n_clusters)
    placed = mapping[clean_clusters] == reference.clusters
    occupied, entropy = _occupancy(clean_clusters, n_clusters)
    utility, pra = float(placed.mean()), float((placed & ~moved).mean())
    sound = guards_hold(occupied, entropy, n_clusters, reference.entropy)
    useful = not reference.reliable or utility >= utility_floor(reference.largest_share)
    return {
        "select/utility": utility,
        "select/pra": pra,
        "select/pra_weighted": float(np.average(placed & ~moved, weights=reference.weights)),
        "select/stability": pra / utility if utility else 0.0,
        "select/entropy": entropy,
        "select/occupied": float(occupied),
        "select/reliable": float(reference.reliable),
        "select/feasible": float(sound and useful),
    }


def guards_hold(occupied: int, entropy: float, n_clusters: int, entropy_reference: float) -> bool:
    """G1 and G2 of a trial: all clusters but one occupied, at least two, and entropy ≥ 0.9 of the reference's.

    Args:   occupied: clusters with more than 1/(10 K) of the samples. entropy: normalised, in [0, 1].
        entropy_reference: H_ref.
    """
    return occupied >= _fewest(n_clusters) and entropy >= ENTROPY_RATIO * entropy_reference


def utility_floor(largest_share: float) -> float:
    """Lowest agreement with the reference that a feasible trial may have: twice what a constant partition could reach.

    Where that is 1 or more, at a largest share from 0.5 on (always so for K = 2), it would ask for more than anyone
    can do; the floor is then 0.5, and collapse is left to the other guards.
    """
    return 2 * largest_share if 2 * largest_share < 1 else 0.5


def criterion_b(kappa: ArrayLike, seed_agreement: ArrayLike, clean_loss: ArrayLike) -> FloatArray:
    """Rank of each trial within the study, for where the reference is unreliable.

    Args:   kappa, seed_agreement: (M,), higher is better. clean_loss: (M,), lower is better. NaN is worse than any
        number. Only trials that pass the guards should be among them.
    Returns: (M,) mean of the three ranks, from 1 (worst in all) to M (best in all); ties share their mean rank.
    Raises: ValueError if the three are no vectors of one length.
    """
    columns = [np.asarray(values, dtype=np.float64) for values in (kappa, seed_agreement, clean_loss)]
    shapes = [column.shape for column in columns]
    if columns[0].ndim != 1 or len(set(shapes)) != 1:
        raise ValueError(f"kappa, seed_agreement and clean_loss must be vectors of one length, got shapes {shapes}")
    from scipy.stats import rankdata

    columns[2] = -columns[2]
    ranks = [rankdata(np.where(np.isnan(column), -np.inf, column)) for column in columns]
    return np.mean(ranks, axis=0)


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


def clean_clustering_loss(model: nn.Module, views: Views, batch_size: int) -> float:
    """DDC's three terms, each with weight 1, plus 0.1 of the contrastive loss per anchor, in inference mode.

    Comparable only between models of one architecture and one batch size. The contrastive part is left out where there
    is one view or the latents differ in width.

    Args:   model: left as it was found. views: V × (N, *shape_v), N ≥ 2, clean; cut in their order into batches, of
        which an incomplete last one is left out unless it is the only one. batch_size: ≥ 2.
    Returns: mean over the batches; NaN or infinite if a term is.
    Raises: ValueError if there is no batch of two samples.
    """
    if batch_size < 2 or len(views[0]) < 2:
        raise ValueError(f"batch_size and samples must be ≥ 2, got {batch_size} and {len(views[0])}")
    used = max(len(views[0]) // batch_size * batch_size, min(len(views[0]), batch_size))
    device = device_of(model, views)
    batches = in_batches(tuple(view[:used] for view in views), batch_size)
    with inference_target(model) as verify, torch.no_grad():
        losses = [_loss(model(tuple(view.to(device) for view in batch))) for batch in batches]
        verify("the clean clustering loss")
    return float(np.mean(losses))


def silhouette(features: NDArray[Any], clusters: IntArray, sample: int = 2000, *, seed: int) -> float:
    """Mean silhouette of a partition in a space, Euclidean; values from different spaces are not comparable.

    Args:   features: (N, D), finite. clusters: (N,). sample: so many samples at most, drawn without replacement.
    Returns: in [−1, 1]; NaN where the drawn samples share one cluster or each has its own.
    Raises: ValueError if lengths differ or a feature is not finite.
    Source: Rousseeuw 1987.
    """
    if len(features) != len(clusters):
        raise ValueError(f"features and clusters must have one common length, got {len(features)} and {len(clusters)}")
    rows = np.arange(len(clusters))
    if len(rows) > sample:
        rows = np.random.default_rng(derive_seed(seed, "silhouette")).choice(rows, sample, replace=False)
    if not 1 < len(np.unique(clusters[rows])) < len(rows):
        return math.nan
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(features[rows], clusters[rows]))


def _faults(run: PlainRun, n_clusters: int) -> list[str]:
    """Why a plain run cannot be part of a reference, whatever the other runs are."""
    occupied, entropy = _occupancy(run.clusters, n_clusters)
    faults = []
    if not math.isfinite(run.loss):
        faults.append(f"loss {run.loss}")
    if occupied < _fewest(n_clusters):
        faults.append(f"G1 {occupied} of {n_clusters} clusters occupied, at least {_fewest(n_clusters)} needed")
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


def _fewest(n_clusters: int) -> int:
    """Clusters that must be occupied. At least 2: for K = 2 the constant partition has K − 1."""
    return max(2, n_clusters - 1)


def _sizes(clusters: IntArray, n_clusters: int) -> IntArray:
    return confusion(clusters, np.zeros_like(clusters), n_clusters, 1)[:, 0]


def _occupancy(clusters: IntArray, n_clusters: int) -> tuple[int, float]:
    """As `sanity.occupancy`; raises ValueError for what are no clusters in 0..K-1."""
    _sizes(clusters, n_clusters)
    occupied, entropy = occupancy(torch.from_numpy(np.array(clusters)), n_clusters)
    return occupied, abs(entropy)  # of a single cluster it is −0.0


def _constant(clusters: IntArray) -> bool:
    return len(np.unique(clusters)) < 2


def _loss(output: ModelOutput) -> float:
    terms = list(ddc_terms(output.consensus, output.assignments).values())
    latents = output.view_latents
    if len(latents) > 1 and len({latent.shape for latent in latents}) == 1:
        terms.append(CONTRAST_WEIGHT * mean_contrast(latents, CONTRAST_TEMPERATURE))
    return float(torch.stack(terms).sum())
