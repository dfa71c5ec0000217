"""Selection without labels: a reference partition made from plain models, and scores of a trial against it.

Nothing here sees a class. G1 to G3 are guards against collapse: a partition that has collapsed cannot be moved, so that
whatever measures stability alone would prefer it.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ardmvc_core.attacks.target import device_of, inference_target
from ardmvc_core.batching import in_batches
from ardmvc_core.evaluation.metrics import IntArray, fit_map, occupancy
from ardmvc_core.losses.contrastive import mean_contrast
from ardmvc_core.losses.ddc import ddc_terms
from ardmvc_core.seeding import derive_seed
from ardmvc_core.selection.reference_partition import ENTROPY_RATIO, ReferencePartition, fewest
from ardmvc_core.types import ModelOutput, Views

CONTRAST_WEIGHT = 0.1
CONTRAST_TEMPERATURE = 0.1
"""CoMVC's; fixed, because losses are compared between trials that train with other ones."""
SELECT_SCORES = ("utility", "pra", "pra_weighted", "stability", "entropy", "occupied", "feasible", "clean_loss")
"""What a trial with a reference reports as `select/…` and may be an objective."""


def select_scores(
    reference: ReferencePartition, clean_clusters: IntArray, flipped: NDArray[np.bool_], n_clusters: int
) -> dict[str, float]:
    """How a trial agrees with the reference, on clean views and under all attacks.

    PRA is worst-case accuracy with the reference in place of the classes: the two differ by no more than the share of
    samples on which the reference is wrong. Agreement is not correctness: with another strong partition in the views
    the reference may be wrong throughout, and PRA 1. A constant partition has at most the largest reference share.

    Args:   clean_clusters: (N,) in 0..K-1, the trial on the samples of the reference. flipped: (N,) bool, moved by at
        least one attack. n_clusters: K.
    Returns: by name: `select/utility` U, share of samples put as in the reference under the best one-to-one map;
        `select/pra`, share of those put so and not flipped; `select/pra_weighted`, the same with each sample weighing
        as much as its vote share; `select/stability`, PRA/U, 0 where U is 0; `select/entropy`, normalised;
        `select/occupied`, number of clusters; `select/reliable`, 1 if the reference is, else 0;
        `select/second_partition`, 1 if other voters have found one, else 0; `select/feasible`, 1 if `guards_hold` and,
        where the reference is reliable, U reaches `utility_floor`, else 0. All but `occupied` are in [0, 1].
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
    occupied, entropy = occupancy(clean_clusters, n_clusters)
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
        "select/second_partition": float(reference.second_partition),
        "select/feasible": float(sound and useful),
    }


def guards_hold(occupied: int, entropy: float, n_clusters: int, entropy_reference: float) -> bool:
    """G1 and G2 of a trial: all clusters but one occupied, at least two, and entropy ≥ 0.9 of the reference's.

    Args:   occupied: clusters with more than 1/(10 K) of the samples. entropy: normalised, in [0, 1].
        entropy_reference: H_ref.
    """
    return occupied >= fewest(n_clusters) and entropy >= ENTROPY_RATIO * entropy_reference


def utility_floor(largest_share: float) -> float:
    """Lowest agreement with the reference that a feasible trial may have: twice what a constant partition could reach.

    Where that is 1 or more, at a largest share from 0.5 on (always so for K = 2), it would ask for more than anyone
    can do; the floor is then 0.5, and collapse is left to the other guards.
    """
    return 2 * largest_share if 2 * largest_share < 1 else 0.5


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


def _loss(output: ModelOutput) -> float:
    terms = list(ddc_terms(output.consensus, output.assignments).values())
    latents = output.view_latents
    if len(latents) > 1 and len({latent.shape for latent in latents}) == 1:
        terms.append(CONTRAST_WEIGHT * mean_contrast(latents, CONTRAST_TEMPERATURE))
    return float(torch.stack(terms).sum())
