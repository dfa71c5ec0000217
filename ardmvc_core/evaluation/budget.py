"""The frozen settings of an evaluation, and the digest that says which numbers compare."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from ardmvc_core.attacks.budget import AttackBudget
from ardmvc_core.attacks.generators.gan import GANConfig, official_gan
from ardmvc_core.attacks.objectives.shifts import ObjectiveName
from ardmvc_core.attacks.tiers import TIERS_VERSION, Tier
from ardmvc_core.data import DATASETS
from ardmvc_core.ranges import (
    MOST_ENTRIES,
    BatchSize,
    Epsilon,
    Range,
    Repeats,
    Samples,
    Seed,
    StepRatio,
    Steps,
    check_values,
)

EVALUATION_VERSION = 1
"""Part of every budget's digest: raised whenever the same budget would give other numbers."""

_LATER = ("tier", "attacked_views")


@dataclass(frozen=True, kw_only=True)
class EvalBudget:
    """Everything an evaluation depends on besides model and data; it never follows what a study searches."""

    eps: Epsilon | tuple[Epsilon, ...] | None = None
    """L∞ radius in (0, 1], for all views or one per view; None: the data set's."""
    gan_eps: tuple[Epsilon, ...] | None = None
    """Further radii of the GAN attack, reported as `gan_<ε>` and outside the worst case; None: the data set's."""
    samples: Samples | None = 1000
    """Only the first so many samples of the scored part, ≥ 1; None: all."""
    probe_samples: Samples = 200
    """Samples that the probe attacks, ≥ 1; its clean scores are on all of `samples`."""
    probe_steps: Steps = 10
    """Steps of the probe's attack on assignments, ≥ 1."""
    objectives: tuple[ObjectiveName, ...] = ("assignment", "features", "contrastive")
    """White-box attacks, at least one, each reported as `pgd_<objective>`."""
    steps: Steps = 20
    """Steps of each white-box attack, ≥ 1."""
    step_ratio: StepRatio = 0.25
    """Step size of the white-box attacks and of the probe over ε, > 0."""
    restarts: Repeats = 1
    """Random starts of each white-box attack, ≥ 1."""
    noise_draws: Annotated[int, Range(0, 1_000)] = 5
    """Draws of each kind of noise, ≥ 0; 0: no noise floor."""
    gan: GANConfig = field(default_factory=GANConfig)
    """The GAN attack of the strict protocol."""
    official: GANConfig = field(default_factory=official_gan)
    """The attack of the official protocol."""
    attack_precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` looks for perturbations through encoders in bfloat16, which is quicker; what is found is always scored in
    fp32."""
    attacked_views: tuple[Annotated[int, Range(0, MOST_ENTRIES - 1)], ...] | None = None
    """Indices of the views that attacks of the strict protocol may move; None: all."""
    tier: Tier | None = None
    """What the strict protocol ends a trial with: a tier of the suite (`attacks.tiers`), or None for the white-box
    objectives and the GAN above."""
    batch_size: BatchSize = 256
    """Samples that are attacked and scored at once in the strict protocol, ≥ 2."""
    seed: Seed = 7
    """Of every random draw in an evaluation."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.tier is not None and self.attack_precision != "fp32":
            raise ValueError(f"attack_precision must be fp32 with a tier, got {self.attack_precision!r}")
        if not self.objectives or len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives must be distinct, at least one, got {self.objectives}")

    def resolve(self, dataset_name: str, n_views: int) -> "ResolvedBudget":
        """The budget with the data set's ε where none is given.

        Raises: ValueError for an unknown data set without an ε, a number of ε that is not `n_views`, or a further GAN ε
            that is given twice or is the main one.
        """
        source = DATASETS.get(dataset_name)
        if source is None and self.eps is None:
            raise ValueError(f"eps must be given for data set {dataset_name!r}; known: {', '.join(DATASETS)}")
        eps = self.eps if source is None or self.eps is not None else source.eps
        assert eps is not None
        further = () if source is None else tuple(e for e in source.further_eps if e != self.eps)
        gan_eps = further if self.gan_eps is None else self.gan_eps
        if self.attacked_views is not None:
            views = self.attacked_views
            if not views or len(set(views)) != len(views) or not all(0 <= v < n_views for v in views):
                raise ValueError(f"attacked_views must be distinct, each in 0..{n_views - 1}, got {views}")
        if isinstance(eps, tuple) and len(eps) != n_views:
            raise ValueError(f"eps must be one number or one per view ({n_views}), got {eps}")
        if len({*gan_eps, eps}) != len(gan_eps) + 1:
            raise ValueError(f"gan_eps must be distinct and other than eps {eps}, got {gan_eps}")
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return ResolvedBudget(**{**given, "eps": eps, "gan_eps": gan_eps})


@dataclass(frozen=True, kw_only=True)
class ResolvedBudget(EvalBudget):
    """A budget in which every ε is a number: what evaluations take. Made by `EvalBudget.resolve`."""

    eps: Epsilon | tuple[Epsilon, ...]
    gan_eps: tuple[Epsilon, ...]

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the budget as canonical JSON; trials compare only if it is equal."""
        text = json.dumps(_canonical(self.settings()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def settings(self) -> dict[str, Any]:
        """Everything that `digest` is of: the fields, and the versions of what they name."""
        # Where they are left out the numbers are those from before these fields were there, and so is the digest.
        settings = {key: value for key, value in asdict(self).items() if key not in _LATER or value is not None}
        if self.tier is not None:
            settings["tiers_version"] = TIERS_VERSION
        return {"version": EVALUATION_VERSION, **settings}

    def attack_budget(self) -> AttackBudget:
        """The main ε as a budget of attacks."""
        return AttackBudget(eps=self.eps, attacked_views=self.attacked_views)


def _canonical(value: Any) -> Any:
    """Equal settings in equal JSON: 1 and 1.0 are one number, tuples and lists one kind of list."""
    if isinstance(value, dict):
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
