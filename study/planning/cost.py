"""How many passes through the network a trial costs, counted before it runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ardmvc_core.attacks.generators.gan import GANConfig
from ardmvc_core.attacks.tiers import Tier, noise_draws, plan
from ardmvc_core.evaluation.budget import ResolvedBudget
from ardmvc_core.models import MODELS
from ardmvc_core.networks.kmeans import CALIBRATION_BATCH
from trainables.config import AttackTrialConfig, TrialConfig, protocols_of

_NOISE_KINDS = 2
_AMONG_SAMPLES = frozenset({"contrastive"})
"""White-box objectives that compare the samples of a batch: no clean pass to refer to, and a single sample is left."""


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
    """Passes of one trial; of a tier of the suite, those of samples that no attack moves.

    Args: budget: the resolved evaluation. sizes: samples of each part, of both protocols where both run. n_clusters: K,
        read by tiers only, which aim at no more than nine clusters.
    """
    if isinstance(config, AttackTrialConfig):
        scored = _scored(budget, sizes["tune"])
        per_round = _clean_and_noise(budget, scored, radii=1) + _assign(scored, budget.batch_size)
        return Cost(_gan(config.attack, sizes["attacker"]), per_round * config.rounds)
    protocols = protocols_of(config.protocol)
    training = _training(config, sizes["train"]) * (config.repeats * len(protocols))
    # The AR models have something to fit only where they mute units.
    fitted = MODELS[config.model.name].calibrate is not None and getattr(config.model, "mute_dead_units", True)
    calibration = _assign(sizes["train"], CALIBRATION_BATCH) if fitted else Passes()
    evaluation = calibration * (config.rounds + (len(protocols) - 1))
    if "official" in protocols:
        held_out = sizes["attack"]
        evaluation += _assign(held_out, budget.official.batch_size) * 2 + _gan(budget.official, held_out)
        if protocols == ("official",):
            evaluation += _probe(budget, held_out) * (config.rounds - 1)
    if "strict" in protocols:
        evaluation += _probe(budget, sizes["tune"]) * (config.rounds - 1)
        if budget.tier is None:
            evaluation += _strict(budget, sizes[config.score_on], sizes["attacker"])
        else:
            evaluation += _suite(budget.tier, budget, _scored(budget, sizes[config.score_on]), n_clusters)
    return Cost(training, evaluation * config.repeats)


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


def _probe(budget: ResolvedBudget, size: int) -> Passes:
    clean, attacked = _scored(budget, size), min(budget.probe_samples, _scored(budget, size))
    attack = Passes(1 + budget.probe_steps, budget.probe_steps) * _split(attacked, budget.batch_size)
    return _assign(clean, budget.batch_size) + attack + _assign(attacked, budget.batch_size)


def _strict(budget: ResolvedBudget, size: int, attacker_size: int) -> Passes:
    scored = _scored(budget, size)
    radii = 1 + len(budget.gan_eps)
    total = _clean_and_noise(budget, scored, radii)
    for objective in budget.objectives:
        among_samples = objective in _AMONG_SAMPLES
        extra = 0 if among_samples else 1
        if budget.restarts > 1:  # each restart is judged by its clusters and its loss
            extra += 1 + 2 * budget.restarts
        steps = budget.steps * budget.restarts
        left = among_samples and scored % budget.batch_size == 1
        total += Passes(steps + extra, steps) * (_split(scored, budget.batch_size) - left)
    total += _gan(budget.gan, attacker_size) * radii
    return total + _assign(scored, budget.batch_size) * (len(budget.objectives) + radii)


def _suite(tier: Tier, budget: ResolvedBudget, scored: int, n_clusters: int) -> Passes:
    """Fitting of generators is not counted."""
    total = _assign(scored, budget.batch_size) * (1 + _NOISE_KINDS * noise_draws(tier))
    for attack in plan(tier, n_clusters):
        size = getattr(attack, "batch_size", budget.batch_size)
        total += Passes(attack.forwards, attack.backwards) * _split(scored, size)
    return total


def _clean_and_noise(budget: ResolvedBudget, scored: int, radii: int) -> Passes:
    return _assign(scored, budget.batch_size) * (1 + _NOISE_KINDS * budget.noise_draws * radii)


def _gan(config: GANConfig, size: int) -> Passes:
    """A clean and an attacked pass in each step, the latter differentiated."""
    return Passes(2, 1) * (config.epochs * (size // min(config.batch_size, size)))


def _scored(budget: ResolvedBudget, size: int) -> int:
    return size if budget.samples is None else min(size, budget.samples)


def _assign(size: int, batch_size: int) -> Passes:
    """A last batch of a single sample joins the one before it."""
    alone = size % batch_size == 1 and size > batch_size
    return Passes(_split(size, batch_size) - alone, 0)


def _split(size: int, batch_size: int) -> int:
    return math.ceil(size / batch_size)
