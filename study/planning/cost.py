"""How many passes through the network a trial costs, counted before it runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ardmvc_core.attacks.generators.gan import GANConfig
from ardmvc_core.attacks.other_threats import L2_TIER
from ardmvc_core.attacks.tiers import FurtherAttack, Tier, noise_draws, plan
from ardmvc_core.data import Protocol
from ardmvc_core.evaluation.budget import ResolvedBudget
from ardmvc_core.models import MODELS
from ardmvc_core.networks.kmeans import CALIBRATION_BATCH
from trainables.config import AttackTrialConfig, TrialConfig, protocols_of

_NOISE_KINDS = 2


@dataclass(frozen=True)
class Passes:
    """Batches through the network; what only trains or runs an attacker's own networks is not counted."""

    forward: int = 0
    backward: int = 0
    """A backward pass through two joined forward passes counts twice."""

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> "Passes":
        return Passes(self.forward * times, self.backward * times)

    @property
    def total(self) -> int:
        """Both together, as `limits.passes` counts them."""
        return self.forward + self.backward


def passes_of(costs: Iterable[Passes]) -> int:
    """What rounds take together, as `limits.passes` counts it."""
    return sum(cost.total for cost in costs)


@dataclass(frozen=True)
class Cost:
    """Passes of one trial that runs to its last round."""

    training: Passes
    evaluation: Passes

    @property
    def total(self) -> Passes:
        """Both together."""
        return self.training + self.evaluation


def trial_cost(
    config: TrialConfig | AttackTrialConfig, budget: ResolvedBudget, sizes: Mapping[str, int], n_clusters: int = 10
) -> Cost:
    """Passes of one trial; of the suite, those of samples that no attack moves.

    Args: budget: the resolved evaluation. sizes: samples of each part, of both protocols where both run. n_clusters: K,
        tiers aim at no more than nine other clusters.
    """
    evaluation = _evaluation(config, budget, sizes, n_clusters)
    return Cost(_trained(config, sizes), sum(evaluation, Passes()))


def round_costs(
    config: TrialConfig | AttackTrialConfig, budget: ResolvedBudget, sizes: Mapping[str, int], n_clusters: int = 10
) -> list[Passes]:
    """Passes of each round of a trial: the last one scores with the whole tier, and may cost far more than the others.

    Args: as `trial_cost`.
    """
    training, seeds = _trained(config, sizes), config.legs if isinstance(config, TrialConfig) else (1,)
    shares = [seeds[round_ // config.leg_rounds] for round_ in range(config.rounds)]
    each = sum(seeds) * config.leg_rounds
    trained = [Passes(training.forward * share // each, training.backward * share // each) for share in shares]
    return [a + b for a, b in zip(trained, _evaluation(config, budget, sizes, n_clusters), strict=True)]


def _trained(config: TrialConfig | AttackTrialConfig, sizes: Mapping[str, int]) -> Passes:
    if isinstance(config, AttackTrialConfig):
        return _gan(config.attack, sizes["attacker"])
    return _training(config, sizes["train"]) * (config.seeds * len(protocols_of(config.protocol)))


def _evaluation(
    config: TrialConfig | AttackTrialConfig, budget: ResolvedBudget, sizes: Mapping[str, int], n_clusters: int
) -> list[Passes]:
    """Of each round, over all seeds."""
    if isinstance(config, AttackTrialConfig):
        scored = budget.scored(sizes["tune"])
        # Clean scores, and a look at what the attack found.
        return [_noise(budget.tier, budget, scored) + _assign(scored, budget.batch_size) * 2] * config.rounds
    protocols = protocols_of(config.protocol)
    early, last = Passes(), Passes()
    for protocol in protocols:
        looks = _assign(sizes["train"], CALIBRATION_BATCH) * _looks(config, protocol)
        last += looks
        if not (protocol == "official" and "strict" in protocols):
            early += looks
    if "official" in protocols:
        held_out = sizes["attack"]
        last += _assign(held_out, budget.official.batch_size) * 2 + _gan(budget.official, held_out)
        if protocols == ("official",):
            early += _probe(budget, held_out, n_clusters)
    if "strict" in protocols:
        early += _probe(budget, sizes["tune"], n_clusters)
        last += _strict(budget, sizes[config.score_on], n_clusters)
    first, *further = config.legs
    found = [early * first] * (config.leg_rounds - 1) + [last * first]
    for seeds in further:  # of which no round but the last is looked at
        found += [Passes()] * (config.leg_rounds - 1) + [last * seeds]
    return found


def _training(config: TrialConfig, size: int) -> Passes:
    """Passes of all stages, of one seed; a training attack's own steps, and a look over the data that prepares a stage,
    are among them."""
    steps = size // config.batch_size
    stages = MODELS[config.model.name].stages(config.model, config.epochs)
    total = Passes()
    for stage in stages:
        if stage.prepare is not None:
            total += _assign(size, CALIBRATION_BATCH)
        for objective in stage.objectives:
            passes = objective.passes
            total += Passes(passes + objective.passes_without_gradient, passes) * (stage.epochs * steps)
    return total


def _looks(config: TrialConfig, protocol: Protocol) -> int:
    method = MODELS[config.model.name]
    return 0 if method.calibrate is None else method.looks(config.model_under(protocol))


def _probe(budget: ResolvedBudget, size: int, n_clusters: int) -> Passes:
    clean, attacked = budget.scored(size), min(budget.probe_samples, budget.scored(size))
    return _assign(clean, budget.batch_size) + _tier("probe", budget, attacked, n_clusters)


def _strict(budget: ResolvedBudget, size: int, n_clusters: int) -> Passes:
    """A clean pass for the scores, the suite, and `apgd_l2`; what replaced or dropped views take is too little to
    count."""
    scored = budget.scored(size)
    found = _assign(scored, budget.batch_size) + _tier(budget.tier, budget, scored, n_clusters, budget.further_attacks)
    return found + _tier(L2_TIER, budget, scored, n_clusters) if "apgd_l2" in budget.other_threats else found


def _tier(
    tier: Tier, budget: ResolvedBudget, scored: int, n_clusters: int, further: Sequence[FurtherAttack] = ()
) -> Passes:
    """Of samples that no attack moves; each attack has a pass more, which looks at what it found. Fitting of generators
    is not counted."""
    total = _noise(tier, budget, scored)
    for attack in plan(tier, n_clusters, further=further):
        size = getattr(attack, "batch_size", budget.batch_size)
        total += Passes(attack.forwards, attack.backwards) * _split(scored, size) + _assign(scored, budget.batch_size)
    return total


def _noise(tier: Tier, budget: ResolvedBudget, scored: int) -> Passes:
    """The clean reference, and draws of noise."""
    return _assign(scored, budget.batch_size) * (1 + _NOISE_KINDS * noise_draws(tier))


def _gan(config: GANConfig, size: int) -> Passes:
    """A clean and an attacked pass in each step, the latter differentiated."""
    return Passes(2, 1) * (config.epochs * (size // min(config.batch_size, size)))


def _assign(size: int, batch_size: int) -> Passes:
    """A last batch of a single sample joins the one before it."""
    alone = size % batch_size == 1 and size > batch_size
    return Passes(_split(size, batch_size) - alone, 0)


def _split(size: int, batch_size: int) -> int:
    return math.ceil(size / batch_size)
