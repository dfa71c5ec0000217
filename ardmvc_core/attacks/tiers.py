"""Which attacks a tier of the suite runs, in which order, and what they cost at most.

probe: every round of a trial; tune: every finished trial; standard: the published number; plus: the winner, or
whatever left a doubt. A tier is data: equal tiers are equal attacks.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from ardmvc_core.attacks.attack import Attack
from ardmvc_core.attacks.kinds import OFFICIAL_GAN, TANH_MARGIN, Ascend, AscendTogether, Generate, Query, Transfer
from ardmvc_core.attacks.objectives.per_batch import contrast, ddc, mix
from ardmvc_core.attacks.objectives.per_sample import (
    ce,
    centroid_margin,
    com,
    con,
    features,
    margin,
    targeted_dlr,
    targeted_margin,
)
from ardmvc_core.attacks.searches.ray_search import ray_search
from ardmvc_core.attacks.searches.square import square

Tier = Literal["probe", "tune", "standard", "plus"]
TIERS: tuple[Tier, ...] = get_args(Tier)
OtherThreat = Literal["apgd_l2", "view_replaced", "view_dropped"]
"""Attacks that may do something else than a tier's, and are scored by themselves (`attacks.other_threats`)."""
OTHER_THREATS: tuple[OtherThreat, ...] = get_args(OtherThreat)
FurtherAttack = Literal["gan_official", "generator", "square", OtherThreat]
"""Attacks that a budget may name beside a tier."""
TIERS_VERSION = 5
"""Raised whenever a tier runs other attacks than before; part of the digest of every budget that has a tier."""
MOST_TARGETS = 9
FURTHER: dict[FurtherAttack, Attack] = {
    "gan_official": Generate(key="gan_official", fit=OFFICIAL_GAN),
    "generator": Generate(key="generator", fit=TANH_MARGIN),
    "square": Query(key="square", search=square, queries=5000, patience=500),
}


def noise_draws(tier: Tier) -> int:
    """Draws of each kind of noise: half of the forward passes that the tier spends on noise."""
    return {"probe": 2, "tune": 5, "standard": 10, "plus": 100}[check_tier(tier)]


def plan(
    tier: Tier, n_clusters: int, *, centroid_head: bool = False, further: Sequence[FurtherAttack] = ()
) -> tuple[Attack, ...]:
    """The attacks of a tier in the order in which they run, and after them the further ones that it has not; other
    threats are none of them.

    Args:   n_clusters: K ≥ 2; targeted attacks go for at most min(K − 1, 9) runners-up. centroid_head: the logits are
            read from centroids, so that the margin between centroids is the margin itself and is left out.
    Raises: ValueError for an unknown tier or fewer than two clusters.
    """
    attacks = _plan(tier, n_clusters, centroid_head)
    keys = {attack.key for attack in attacks}
    return (*attacks, *(FURTHER[name] for name in further if name in FURTHER and name not in keys))


def _plan(tier: Tier, n_clusters: int, centroid_head: bool) -> tuple[Attack, ...]:
    check_tier(tier)
    if not n_clusters >= 2:
        raise ValueError(f"n_clusters must be ≥ 2, got {n_clusters}")
    targets = min(n_clusters - 1, MOST_TARGETS)
    if tier == "probe":
        return (
            _ce(20),
            *_targeted(1, 20),
        )
    if tier == "tune":
        # benchmarks/tune_holds.py measures what it leaves of what `standard` finds.
        return (
            _ce(40),
            _soft_margin(100),
            *_targeted(min(4, targets), 40, soft=True),
        )
    if tier == "standard":
        return (
            _ce(100),
            *_targeted(targets, 100),
            _features(100),
            *(() if centroid_head else (_centroid(100),)),
            _soft_margin(100),
            *_targeted(targets, 100, soft=True),
            FURTHER["square"],
            Transfer(key="transfer", surrogates=2),
            FURTHER["gan_official"],
            FURTHER["generator"],
            Query(key="rays", search=ray_search, queries=10_000, patience=2000, most_samples=200),
            *_together(100),
        )
    return (
        Ascend(key="apgd_ce", objective=ce, steps=200, restarts=5),
        *_targeted(targets, 100),
        *(_targeted_dlr(targets, 100) if n_clusters >= 4 else ()),
        Ascend(key="apgd_com", objective=com, steps=100, restarts=3),
        Ascend(key="apgd_con", objective=con, steps=100, restarts=3),
        Ascend(key="apgd_features", objective=features(), steps=100, restarts=3),
        *(() if centroid_head else (Ascend(key="apgd_centroid", objective=centroid_margin, steps=100, restarts=3),)),
        Ascend(key="apgd_soft_margin", objective=margin, steps=100, restarts=3, soft=True),
        *_targeted(targets, 100, soft=True),
        Query(key="square", search=square, queries=20_000),
        Transfer(key="transfer", surrogates=5),
        Generate(key="gan_official", fit=OFFICIAL_GAN, seeds=3),
        Generate(key="generator", fit=TANH_MARGIN, seeds=3),
        Query(key="rays", search=ray_search, queries=40_000, most_samples=500),
        *_together(100),
        *_together(256),
    )


def check_tier(tier: str) -> Tier:
    """The tier itself. Raises: ValueError for one that is not known."""
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")
    return tier


def _ce(steps: int) -> Ascend:
    return Ascend(key="apgd_ce", objective=ce, steps=steps)


def _features(steps: int) -> Ascend:
    return Ascend(key="apgd_features", objective=features(), steps=steps)


def _centroid(steps: int) -> Ascend:
    return Ascend(key="apgd_centroid", objective=centroid_margin, steps=steps)


def _soft_margin(steps: int) -> Ascend:
    return Ascend(key="apgd_soft_margin", objective=margin, steps=steps, soft=True)


def _targeted(targets: int, steps: int, *, soft: bool = False) -> tuple[Ascend, ...]:
    name = "apgd_soft_target" if soft else "apgd_target"
    return tuple(
        Ascend(key=f"{name}_{rank}", objective=targeted_margin(rank), steps=steps, soft=soft)
        for rank in range(1, targets + 1)
    )


def _targeted_dlr(targets: int, steps: int) -> tuple[Ascend, ...]:
    ranks = range(1, targets + 1)
    return tuple(Ascend(key=f"apgd_dlr_{rank}", objective=targeted_dlr(rank), steps=steps) for rank in ranks)


def _together(batch_size: int) -> tuple[AscendTogether, ...]:
    suffix = "" if batch_size == 100 else f"_{batch_size}"
    objectives = {"contrast": contrast, "ddc": ddc, "mix": mix}
    return tuple(
        AscendTogether(key=f"batch_{name}{suffix}", objective=objective, steps=100, batch_size=batch_size)
        for name, objective in objectives.items()
    )
