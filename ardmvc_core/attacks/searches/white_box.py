"""White-box attack on a finished model: projected gradient ascent on one of three label-free objectives.

Source: Madry et al. 2018 (PGD). Objectives on assignments find more flips than those on features, which can move an
embedding far without crossing a boundary (Tramèr et al. 2020), so `assignment` is the default.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ardmvc_core.attacks.attack import choose, choose_views, draw_seed, joined_views, seeded_on
from ardmvc_core.attacks.budget import AttackBudget
from ardmvc_core.attacks.objectives.shifts import (
    ObjectiveName,
    assignment_objective,
    contrastive_objective,
    features_objective,
)
from ardmvc_core.attacks.searches.pgd import frozen, pgd, random_start
from ardmvc_core.batching import in_batches
from ardmvc_core.ranges import Repeats, Samples, StepRatio, Steps, Temperature, check_values
from ardmvc_core.types import Perturb, Views


@dataclass(frozen=True, kw_only=True)
class WhiteBoxConfig:
    """PGD with random starts on one objective."""

    objective: ObjectiveName = "assignment"
    """`features`: shift of latents and consensus; `contrastive`: loss between views; `assignment`: cross-entropy to
    the model's own clean clusters."""
    steps: Steps = 20
    """Gradient steps of each restart, ≥ 1."""
    step_ratio: StepRatio = 0.25
    """Step size as a share of ε (the mean over attacked views if they differ), > 0."""
    restarts: Repeats = 1
    """Random starts, ≥ 1; each sample keeps its best."""
    batch_size: Samples = 256
    """Samples attacked at once, ≥ 1; for `contrastive` they are each other's negatives."""
    temperature: Temperature = 0.1
    """Of the contrastive loss, > 0; not read by the other objectives."""

    def __post_init__(self) -> None:
        check_values(self)


def prepare_white_box(
    config: WhiteBoxConfig, model: nn.Module, views: Views, generator: torch.Generator, *, budget: AttackBudget
) -> Perturb:
    """A white-box attack with its own seed for the random starts.

    Args: model and views are not read here: the attack is per sample, on whatever model and views it is called with.
        generator: gives the seed.
    Returns: a Perturb whose output is inside the budget. It uses the model in the mode that it is in, draws the same
        starts at every call, and leaves no gradient on the parameters.
    """
    seed = draw_seed(generator)

    def perturb(model: nn.Module, views: Views) -> Views:
        stream = seeded_on(views, seed)
        with frozen(model):
            return joined_views(
                [_attack(config, model, batch, budget, stream) for batch in in_batches(views, config.batch_size)]
            )

    return perturb


def _attack(
    config: WhiteBoxConfig, model: nn.Module, views: Views, budget: AttackBudget, stream: torch.Generator
) -> Views:
    if config.objective == "contrastive" and len(views[0]) < 2:
        return views  # a single sample has no negatives, hence no contrastive loss to raise
    objective = _objective(config, model, views)
    eps = [e for e in budget.eps_per_view(len(views)) if e > 0]
    step_size = config.step_ratio * sum(eps) / len(eps)

    def ascend() -> Views:
        start = random_start(views, budget, stream)
        return pgd(lambda v: objective(v).sum(), views, budget, step_size=step_size, steps=config.steps, start=start)

    best = ascend()
    if config.restarts == 1:
        return best
    with torch.no_grad():
        clusters = model(views).logits.argmax(1)
        flipped, loss = _outcome(objective, model, best, clusters)
        for _ in range(config.restarts - 1):
            attacked = ascend()
            new_flipped, new_loss = _outcome(objective, model, attacked, clusters)
            better = (new_flipped & ~flipped) | ((new_flipped == flipped) & (new_loss > loss))
            best = choose_views(better, attacked, best)
            flipped, loss = flipped | new_flipped, choose(better, new_loss, loss)
    return best


def _objective(config: WhiteBoxConfig, model: nn.Module, views: Views) -> Callable[[Views], Tensor]:
    if config.objective == "features":
        return features_objective(model, views)
    if config.objective == "contrastive":
        return contrastive_objective(model, config.temperature)
    return assignment_objective(model, views)


def _outcome(
    objective: Callable[[Views], Tensor], model: nn.Module, attacked: Views, clusters: Tensor
) -> tuple[Tensor, Tensor]:
    """Per sample: whether it flipped, and its loss (0 where the objective has none per sample)."""
    flipped = model(attacked).logits.argmax(1) != clusters
    loss = objective(attacked)
    return flipped, loss if loss.dim() else loss.new_zeros(len(clusters))
