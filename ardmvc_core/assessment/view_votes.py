"""Certificates by votes: each view names a cluster, and a majority survives any change of a few views."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from ardmvc_core.assessment.smoothing import BoolArray, IntArray, on_device
from ardmvc_core.attacks.target import assign, inference_target
from ardmvc_core.types import Views


@dataclass(frozen=True, kw_only=True)
class ViewVotes:
    """How the views of N samples vote, each by itself; exact, for changes of any size.

    A model that gives every sample the same votes is certified everywhere: read it beside the sizes of the majorities.
    """

    votes: IntArray
    """(N, V) the cluster that each view votes for."""
    majority: IntArray
    """(N,) the cluster with most votes, the smallest number of several."""
    margin: IntArray
    """(N,) n_A − n_B, the two largest numbers of votes; in 0..V."""

    def certified(self, m: int) -> BoolArray:
        """(N,) no change of any m views changes the majority: n_A − n_B > 2m, so needs at least 2m + 1 views.

        Raises: ValueError if m is negative.
        """
        if not m >= 0:
            raise ValueError(f"m must be ≥ 0, got {m}")
        return self.margin > 2 * m

    def certified_share(self, m: int) -> float:
        """Share of samples certified against changes of any m views, in [0, 1]."""
        return float(self.certified(m).mean())


def view_votes(model: nn.Module, views: Views, pool_views: Views, *, batch_size: int) -> ViewVotes:
    """Assignments from one view at a time, the others replaced by their mean over a fixed pool.

    Args:   model: left as it was found; in inference mode while it is looked at. views: V × (N, *shape_v), N ≥ 1.
        pool_views: V × (M, *shape_v), M ≥ 1, such as the training views; out of the attacker's reach, or the
        certificate does not hold. batch_size: samples of a pass, ≥ 1.
    Raises: ValueError if views are empty, of different lengths, or unlike those of the pool. EvaluationError for logits
        that are not finite or a model that changes.
    """
    if not batch_size >= 1:
        raise ValueError(f"batch_size must be ≥ 1, got {batch_size}")
    views, pool_views = on_device(model, views), on_device(model, pool_views)
    shapes, pool_shapes = ([tuple(view.shape[1:]) for view in given] for given in (views, pool_views))
    if shapes != pool_shapes:
        raise ValueError(f"pool_views must have the shapes of views {shapes}, got {pool_shapes}")
    means = tuple(view.mean(0, keepdim=True) for view in pool_views)
    columns = []
    with inference_target(model) as verify:
        for v, view in enumerate(views):
            inputs = [mean.expand(len(view), *mean.shape[1:]) for mean in means]
            inputs[v] = view
            columns.append(assign(model, tuple(inputs), batch_size))
        verify("the view votes")
    votes = np.stack(columns, axis=1)
    # One number more than needed, so that there is a second count even if all vote for cluster 0.
    counts = (votes[:, :, None] == np.arange(votes.max() + 2)).sum(axis=1)
    ordered = np.sort(counts, axis=1)
    return ViewVotes(votes=votes, majority=counts.argmax(axis=1), margin=ordered[:, -1] - ordered[:, -2])
