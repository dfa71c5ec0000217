"""The frozen settings of an evaluation, and the digest that says which numbers compare."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from ardmvc_core.attacks.generators.gan import GANConfig, official_gan
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.attacks.tiers import OTHER_THREATS, TIERS_VERSION, FurtherAttack, OtherThreat, Tier
from ardmvc_core.data import DATASETS
from ardmvc_core.ranges import (
    MOST_ENTRIES,
    BatchSize,
    Epsilon,
    PositiveShare,
    Range,
    Samples,
    Seed,
    check_values,
)

EVALUATION_VERSION = 2
"""Part of every budget's digest: raised whenever the same budget would give other numbers."""

FEW_PER_CLUSTER = 5
"""Scored samples per cluster below which chance alone scores so high that an evaluation warns."""

RETIRED = {"gan_eps", "probe_steps", "objectives", "steps", "step_ratio", "restarts", "noise_draws", "gan"}
"""Settings of budgets of version 1, whose evaluation was another; saved trials may still have them."""


@dataclass(frozen=True, kw_only=True)
class EvalBudget:
    """Everything an evaluation depends on besides model and data; it never follows what a study searches."""

    eps: Epsilon | tuple[Epsilon, ...] | None = None
    """L∞ radius in (0, 1], for all views or one per view; None: the data set's."""
    samples: Samples | None = 1000
    """Only the first so many samples of the scored part, ≥ 1; None: all."""
    tier: Tier = "tune"
    """What a trial ends with: a tier of the suite (`attacks.tiers`)."""
    further_attacks: tuple[FurtherAttack, ...] = ()
    """Attacks that run after those of the tier, unless it has them; `gan_official` is the published one. `apgd_l2`,
    `view_replaced` and `view_dropped` are other threats: they have scores of their own and are not in `robust/…`."""
    l2_eps: PositiveShare | tuple[PositiveShare, ...] = 0.1
    """Radius of `apgd_l2` over the median distance between two scored samples in the view, in (0, 1]; for all views or
    one per view. Part of the digest only where `further_attacks` names it."""
    probe_samples: Samples = 200
    """Samples that the tier `probe` attacks after every round but the last, ≥ 1; clean scores are on all `samples`."""
    official: GANConfig = field(default_factory=official_gan)
    """The attack of the official protocol."""
    attack_precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` lets the official protocol look for perturbations through encoders in bfloat16, which is quicker; what is
    found is always scored in fp32."""
    attacked_views: tuple[Annotated[int, Range(0, MOST_ENTRIES - 1)], ...] | None = None
    """Indices of the views that attacks of the strict protocol may move; None: all."""
    batch_size: BatchSize = 256
    """Samples that are attacked and scored at once in the strict protocol, ≥ 2."""
    seed: Seed = 7
    """Of every random draw in an evaluation."""

    def __post_init__(self) -> None:
        check_values(self)
        if len(set(self.further_attacks)) != len(self.further_attacks):
            raise ValueError(f"further_attacks must be distinct, got {self.further_attacks}")

    @property
    def other_threats(self) -> tuple[OtherThreat, ...]:
        """Those of the further attacks that are threats of their own."""
        return tuple(name for name in OTHER_THREATS if name in self.further_attacks)

    def scored(self, size: int) -> int:
        """How many samples of a part of that size are scored."""
        return size if self.samples is None else min(size, self.samples)

    def resolve(self, dataset_name: str, n_views: int) -> "ResolvedBudget":
        """The budget with the data set's ε where none is given.

        Raises: ValueError for an unknown data set without an ε, or a number of ε, in L∞ or L2, that is not `n_views`.
        """
        source = DATASETS.get(dataset_name)
        if source is None and self.eps is None:
            raise ValueError(f"eps must be given for data set {dataset_name!r}; known: {', '.join(DATASETS)}")
        eps = self.eps if source is None or self.eps is not None else source.eps
        assert eps is not None
        if self.attacked_views is not None:
            views = self.attacked_views
            if not views or len(set(views)) != len(views) or not all(0 <= v < n_views for v in views):
                raise ValueError(f"attacked_views must be distinct, each in 0..{n_views - 1}, got {views}")
        if isinstance(eps, tuple) and len(eps) != n_views:
            raise ValueError(f"eps must be one number or one per view ({n_views}), got {eps}")
        if isinstance(self.l2_eps, tuple) and len(self.l2_eps) != n_views:
            raise ValueError(f"l2_eps must be one number or one per view ({n_views}), got {self.l2_eps}")
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return ResolvedBudget(**{**given, "eps": eps})


@dataclass(frozen=True, kw_only=True)
class ResolvedBudget(EvalBudget):
    """A budget in which every ε is a number: what evaluations take. Made by `EvalBudget.resolve`."""

    eps: Epsilon | tuple[Epsilon, ...]

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the budget as canonical JSON; trials compare only if it is equal."""
        text = json.dumps(_canonical(self.settings()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def settings(self) -> dict[str, Any]:
        """Everything that `digest` is of: the fields that matter, and the versions of what they name."""
        found = {"version": EVALUATION_VERSION, "tiers_version": TIERS_VERSION, **asdict(self)}
        if "apgd_l2" not in self.further_attacks:
            del found["l2_eps"]
        return found

    def threat(self) -> Threat:
        """The main ε as a budget of attacks."""
        return Threat(eps=self.eps, attacked_views=self.attacked_views)


def too_few(scored: int, n_clusters: int) -> str | None:
    """What is wrong with so few scored samples; None if they are as many as the clusters."""
    if scored >= n_clusters:
        return None
    return (
        f"only {scored} scored samples for {n_clusters} clusters: with fewer than one each scores mean nothing; "
        f"score at least {n_clusters}, better {FEW_PER_CLUSTER * n_clusters} or more"
    )


def _canonical(value: Any) -> Any:
    """Equal settings in equal JSON: 1 and 1.0 are one number, tuples and lists one kind of list."""
    if isinstance(value, dict):
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
