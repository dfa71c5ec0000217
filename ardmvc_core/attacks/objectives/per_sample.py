"""Objectives of attacks on single samples: larger is closer to another cluster.

Each is a function of the attacked output and of the clean reference of the same samples, and gives one value per
sample. Those on logits are consistent with success; those on features are what the literature attacks, and can grow
along directions that cross no boundary (Tramèr et al. 2020), so they are added and never used alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ardmvc_core.attacks.objectives.clean_reference import CleanReference
from ardmvc_core.types import ModelOutput

SampleObjective = Callable[[ModelOutput, CleanReference], Tensor]
"""(attacked output of B samples, their clean reference) → (B,) values, to be maximised."""


def ce(output: ModelOutput, clean: CleanReference) -> Tensor:
    """Cross-entropy to the clean cluster, from logits, since a saturated softmax has no gradient: (B,) ≥ 0, nats."""
    return F.cross_entropy(output.logits, clean.clusters, reduction="none")


def margin(output: ModelOutput, clean: CleanReference) -> Tensor:
    """Largest other logit minus that of the clean cluster: (B,); positive exactly where the sample is flipped."""
    others = output.logits.scatter(1, clean.clusters[:, None], -torch.inf)
    return others.max(dim=1).values - _own(output, clean)


def targeted_margin(rank: int) -> SampleObjective:
    """Logit of the rank-th runner-up on clean data (1: the nearest) minus that of the clean cluster.

    Raises: ValueError if rank < 1; the objective itself if the model has no more than `rank` clusters.
    """
    _check_rank(rank)

    def value(output: ModelOutput, clean: CleanReference) -> Tensor:
        return output.logits.gather(1, runner_up(clean, rank)[:, None])[:, 0] - _own(output, clean)

    return value


def targeted_dlr(rank: int) -> SampleObjective:
    """`targeted_margin` in units of the spread of the logits, so that their scale does not matter; needs K ≥ 4.

    Raises: ValueError if rank < 1; the objective itself if K < 4 or K ≤ rank.
    Source: Croce & Hein 2020, Eq. 9, with the clean cluster in the place of the label.
    """
    _check_rank(rank)

    def value(output: ModelOutput, clean: CleanReference) -> Tensor:
        if output.logits.shape[1] < 4:
            raise ValueError(f"targeted DLR needs at least 4 clusters, got {output.logits.shape[1]}")
        ordered = output.logits.sort(dim=1, descending=True).values
        width = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
        return targeted_margin(rank)(output, clean) / (width + 1e-12)

    return value


def com(output: ModelOutput, clean: CleanReference) -> Tensor:
    """Squared shift of the view latents, each in units of the distance between samples, summed over views: (B,) ≥ 0.

    Source: L_a-com of Huang et al. 2024 (AR-DMVC), there without units.
    """
    terms = [
        (after.flatten(1) - before).square().sum(1) / unit
        for after, before, unit in zip(output.view_latents, clean.view_latents, clean.latent_units, strict=True)
    ]
    return torch.stack(terms).sum(0)


def con(output: ModelOutput, clean: CleanReference) -> Tensor:
    """Squared shift of the consensus in units of the distance between samples: (B,) ≥ 0.

    Source: L_a-con of Huang et al. 2024 (AR-DMVC), there without units.
    """
    return (output.consensus.flatten(1) - clean.consensus).square().sum(1) / clean.consensus_unit


def features(mu_com: float = 1.0, mu_con: float = 1.0) -> SampleObjective:
    """The paper's objective per sample: mu_com · com + mu_con · con, both weights ≥ 0."""

    def value(output: ModelOutput, clean: CleanReference) -> Tensor:
        return mu_com * com(output, clean) + mu_con * con(output, clean)

    return value


def centroid_margin(output: ModelOutput, clean: CleanReference) -> Tensor:
    """How much nearer the consensus is to another cluster's clean mean than to its own: (B,), squared distances.

    Has a gradient where the head's softmax has none. −∞ if no other cluster holds a sample.
    """
    distances = _squared_distances(output.consensus.flatten(1), clean.centroids)
    own = distances.gather(1, clean.clusters[:, None])[:, 0]
    return own - distances.scatter(1, clean.clusters[:, None], torch.inf).min(dim=1).values


def runner_up(clean: CleanReference, rank: int) -> Tensor:
    """(B,) the cluster with the rank-th largest clean logit after the sample's own.

    Raises: ValueError if the model has no more than `rank` clusters.
    """
    n_clusters = clean.logits.shape[1]
    if rank >= n_clusters:
        raise ValueError(f"rank must be below the number of clusters {n_clusters}, got {rank}")
    others = clean.logits.scatter(1, clean.clusters[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True)[:, rank - 1]


def _own(output: ModelOutput, clean: CleanReference) -> Tensor:
    return output.logits.gather(1, clean.clusters[:, None])[:, 0]


def _check_rank(rank: int) -> None:
    if not rank >= 1:
        raise ValueError(f"rank must be ≥ 1, got {rank}")


def _squared_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """(B, D), (K, D) → (B, K); infinite to a centroid that is."""
    empty = ~torch.isfinite(centroids).all(1)
    filled = torch.where(empty[:, None], torch.zeros_like(centroids), centroids)
    distances = (points[:, None, :] - filled).square().sum(2)
    return distances.masked_fill(empty, torch.inf)
