"""The frozen settings of an evaluation, with each data set's ε, and the digest that says which numbers compare."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from ardmvc_core.attacks.budget import AttackBudget
from ardmvc_core.attacks.generators.gan import GANConfig, official_gan
from ardmvc_core.attacks.objectives.shifts import ObjectiveName
from ardmvc_core.attacks.tiers import TIERS_VERSION, Tier
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

DEFAULT_EPS: dict[str, tuple[float, tuple[float, ...]]] = {
    "noisy_digits": (0.10, (0.20,)),
    "noisy_mnist": (0.30, (0.10,)),
    "noisy_fashion": (0.15, (0.05,)),
    "patched_mnist": (0.30, (0.10,)),
    "regdb": (8 / 255, ()),
    "npz": (0.10, ()),
}
"""Per data set: ε of the evaluation, and further ε of the GAN attack."""


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

    def resolve(self, dataset_name: str, n_views: int) -> "EvalBudget":
        """The budget with the data set's ε where none is given.

        Raises: ValueError for an unknown data set without an ε, a number of ε that is not `n_views`, or a further GAN ε
            that is given twice or is the main one.
        """
        if dataset_name not in DEFAULT_EPS and self.eps is None:
            raise ValueError(f"eps must be given for data set {dataset_name!r}; known: {', '.join(DEFAULT_EPS)}")
        eps, further = DEFAULT_EPS.get(dataset_name, (None, ()))
        resolved = replace(
            self,
            eps=eps if self.eps is None else self.eps,
            gan_eps=tuple(e for e in further if e != self.eps) if self.gan_eps is None else self.gan_eps,
        )
        if self.attacked_views is not None:
            views = self.attacked_views
            if not views or len(set(views)) != len(views) or not all(0 <= v < n_views for v in views):
                raise ValueError(f"attacked_views must be distinct, each in 0..{n_views - 1}, got {views}")
        if isinstance(resolved.eps, tuple) and len(resolved.eps) != n_views:
            raise ValueError(f"eps must be one number or one per view ({n_views}), got {resolved.eps}")
        assert resolved.gan_eps is not None
        if len(set(resolved.gan_eps) | {resolved.eps}) != len(resolved.gan_eps) + 1:
            raise ValueError(f"gan_eps must be distinct and other than eps {resolved.eps}, got {resolved.gan_eps}")
        return resolved

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the budget as canonical JSON; trials compare only if it is equal.

        Raises: ValueError if ε is not resolved.
        """
        if self.eps is None or self.gan_eps is None:
            raise ValueError("digest must be of a resolved budget: call resolve(dataset_name, n_views) first")
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
        """The main ε as a budget of attacks. Raises: ValueError if it is not resolved."""
        if self.eps is None:
            raise ValueError("attack_budget must be of a resolved budget: call resolve(dataset_name, n_views) first")
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
