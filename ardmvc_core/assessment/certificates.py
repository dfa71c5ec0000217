"""Certificates of one model for its report: what randomised smoothing and votes of views guarantee."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ardmvc_core.assessment.smoothing import SmoothingConfig, certify_smoothing, check_no_attack_breaks
from ardmvc_core.assessment.view_votes import view_votes
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.evaluation.metrics import fit_map
from ardmvc_core.types import Views

MOST_SAMPLES = 200
"""Samples that are smoothed; each takes 1,100 passes."""
RADII = (0.5, 1.0, 1.5, 2.0)
"""Radii of the table, in units of σ: a change δ has length √Σ‖δ^v‖²/σ_v²."""


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """What is guaranteed, on the first samples of the scored part."""

    sigma: float
    alpha: float
    """Chance that a sample's certificate is wrong, for each sample by itself."""
    n: int
    abstained: float
    average_radius: float
    kept: tuple[float, ...]
    """By radius in `RADII`: certified share of the samples."""
    kappa: tuple[float, ...]
    """The same, corrected for cluster sizes."""
    accuracy: tuple[float, ...] | None
    """Certified accuracy with a map fitted to smoothed clean clusters; None without labels."""
    linf: float
    """Certified share in the budget's own L∞ ball."""
    views: tuple[float, ...]
    """Share whose vote of views withstands any change of m views, m = 1, 2, …"""
    broken: int
    """Certified samples that an attack on the smoothed model moved inside their radius; anything but 0 is a bug."""
    attacked: int


def certify(
    model: nn.Module, data: MultiViewDataset, pool: Views, budget: Threat, *, sigma: float, seed: int
) -> Certificates:
    """Smooths the first 200 samples, and lets the views of all of them vote.

    Args: data: on the model's device. pool: V × (M, *shape_v), clean samples whose means stand for a view that is left
        out of a vote. sigma: > 0, standard deviation of the noise in input units.
    Raises: ValueError for a sigma that is not positive.
    """
    rows = range(min(MOST_SAMPLES, len(data)))
    some = data.subset(list(rows))
    config = SmoothingConfig(sigma=sigma)
    smoothed = certify_smoothing(model, some.views, config, n_clusters=data.n_clusters, seed=seed)
    accuracy = None
    if some.labels is not None:
        mapping = fit_map(some.labels, smoothed.candidates, data.n_clusters)
        labels = some.labels.cpu().numpy()
        accuracy = tuple(smoothed.certified_accuracy(labels, mapping, radius) for radius in RADII)
    attacked = min(100, int((smoothed.radius > 0).sum()))
    votes = view_votes(model, data.views, pool, batch_size=256)
    n_views = len(data.views)
    return Certificates(
        sigma=sigma,
        alpha=config.alpha,
        n=len(some),
        abstained=smoothed.abstention_rate,
        average_radius=smoothed.average_radius,
        kept=tuple(smoothed.flip_free_rate(radius) for radius in RADII),
        kappa=tuple(smoothed.kappa(radius) for radius in RADII),
        accuracy=accuracy,
        linf=float(smoothed.linf_radius(budget.eps_per_view(n_views)).mean()),
        views=tuple(votes.certified_share(m) for m in range(1, max(2, math.ceil(n_views / 2)))),
        broken=check_no_attack_breaks(model, some.views, smoothed, budget, config, seed=seed) if attacked else 0,
        attacked=attacked,
    )


def section(found: Certificates, table: Any) -> str:
    """The report's part on certificates. Args: table: makes a Markdown table of headings and rows."""
    rows: list[Sequence[str]] = []
    for place, radius in enumerate(RADII):
        accuracy = "" if found.accuracy is None else f"{found.accuracy[place]:.3f}"
        rows.append((f"{radius:g}", f"{found.kept[place]:.3f}", f"{found.kappa[place]:.3f}", accuracy))
    votes = ", ".join(f"{share:.3f} against any change of {m}" for m, share in enumerate(found.views, 1))
    checked = (
        f"An attack on the smoothed model moved none of {found.attacked} samples inside their radius."
        if found.broken == 0
        else f"**{found.broken} of {found.attacked} samples were moved inside their certified radius: a bug.**"
    )
    return "\n\n".join(
        [
            "## Certificates",
            f"Randomised smoothing with σ = {found.sigma:g} on {found.n} samples; each certificate is wrong with a "
            f"chance of at most {found.alpha:g}. {found.abstained:.1%} abstain, the mean radius is "
            f"{found.average_radius:.2f}. In the budget's own L∞ ball {found.linf:.3f} are certified.",
            table(("radius, in σ", "certified", "κ", "certified ACC"), rows),
            f"Votes of views: {votes} views. {checked}",
        ]
    )
