"""Attacks that may do something else than a tier's: move views in L2, replace one view, or drop one.

Each is scored by itself. None is part of a tier's worst case, whose headline is about its own ball only.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ardmvc_core.attacks.suite import run_suite
from ardmvc_core.attacks.target import assign, inference_target
from ardmvc_core.attacks.threat import l2_threat, sample_distances
from ardmvc_core.attacks.tiers import OtherThreat, Tier
from ardmvc_core.seeding import generator
from ardmvc_core.types import Views

L2_TIER: Tier = "tune"
"""Whose attacks, all of them APGD, run in L2."""


@dataclass(frozen=True, kw_only=True)
class ThreatRecord:
    """What one of these attacks found, over all N samples."""

    key: OtherThreat
    flipped: NDArray[np.bool_]
    """(N,) moved to another cluster; replaced or dropped, by at least one view."""
    radii: tuple[float, ...] = ()
    """V radii in the data's units, 0 for a view that is not attacked; empty where nothing has a radius."""
    noise_flip: float | None = None
    """Mean share that random noise of these radii moves; None without radii."""
    skipped: str = ""
    """Why it did not run; empty if it did."""


def run_other_threat(
    key: OtherThreat,
    model: nn.Module,
    views: Views,
    *,
    l2_eps: float | tuple[float, ...],
    attacked_views: tuple[int, ...] | None = None,
    seed: int = 7,
    batch_size: int = 256,
) -> ThreatRecord:
    """Runs one attack on a model in inference mode.

    `apgd_l2` moves every attacked view inside a ball, with the attacks of the tier `tune`. `view_replaced` puts the
    same view of another sample, drawn at random, in the place of one view; `view_dropped` puts the mean of all samples
    there. Both try each attacked view.

    Args:   model: left as it was found. views: V × (N, *shape_v), clean, N ≥ 1, on the model's device. l2_eps: radius
            over the median distance between these samples, for all views or one per view. attacked_views: as in
            `Threat`. seed: of every draw. batch_size: samples of a pass, ≥ 1.
    Raises: EvaluationError if the target changes or gives logits that are not finite; ValueError for a number of
            radii that is not V.
    """
    attacked = range(len(views)) if attacked_views is None else attacked_views
    if key == "apgd_l2":
        return _moved_in_l2(model, views, l2_eps, attacked_views, seed, batch_size)
    flipped = np.zeros(len(views[0]), dtype=bool)
    if len(views) < 2:
        return ThreatRecord(key=key, flipped=flipped, skipped="the model has one view only")
    if key == "view_replaced" and len(flipped) < 2:
        return ThreatRecord(key=key, flipped=flipped, skipped="there is no other sample")
    with inference_target(model) as verify:
        clean = assign(model, views, batch_size)
        others = _shuffled(views, seed) if key == "view_replaced" else _means(views)
        for v in attacked:
            flipped |= assign(model, (*views[:v], others[v], *views[v + 1 :]), batch_size) != clean
        verify(f"attack '{key}'")
    return ThreatRecord(key=key, flipped=flipped)


def _moved_in_l2(
    model: nn.Module,
    views: Views,
    eps: float | tuple[float, ...],
    attacked_views: tuple[int, ...] | None,
    seed: int,
    batch_size: int,
) -> ThreatRecord:
    distances = sample_distances(views)
    if not any(distances[v] > 0 for v in attacked_views or range(len(views))):
        same = "samples do not differ: the median distance between them is 0"
        return ThreatRecord(key="apgd_l2", flipped=np.zeros(len(views[0]), dtype=bool), skipped=same)
    budget = l2_threat(eps, distances, attacked_views)
    found = run_suite(model, views, budget, tier=L2_TIER, seed=seed, batch_size=batch_size)
    return ThreatRecord(
        key="apgd_l2",
        flipped=found.flipped.cpu().numpy(),
        radii=budget.eps_per_view(len(views)),
        noise_flip=found.noise_flip,
    )


def _shuffled(views: Views, seed: int) -> Views:
    """In every row all views of another sample, drawn at random; each sample stands in for one other."""
    # More draws would find some sample that moves almost any other, whatever the model: nothing would be measured.
    order = torch.randperm(len(views[0]), generator=generator(seed, "suite", "view_replaced"))
    donor = torch.empty_like(order)
    donor[order] = order.roll(1)
    return tuple(view[donor.to(view.device)] for view in views)


def _means(views: Views) -> Views:
    return tuple(view.mean(0, keepdim=True).expand_as(view) for view in views)
