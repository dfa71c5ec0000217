"""The amortised attack without a game: per view a generator ε·tanh, fitted to the margin between assignments.

Nothing in it is flat inside the ball, and the epoch that is kept is the one that flips most samples of a part of the
attacker's data on which it was not fitted. The published recipe saturates, and keeps its last epoch.
"""

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn
from torch.optim import Adam

from ardmvc_core.attacks.attack import draw_seed
from ardmvc_core.attacks.generators.gan_networks import Generator
from ardmvc_core.attacks.objectives.clean_reference import CleanReference, clean_reference
from ardmvc_core.attacks.objectives.per_sample import margin
from ardmvc_core.attacks.searches.pgd import frozen
from ardmvc_core.attacks.threat import Threat, project
from ardmvc_core.batching import in_batches
from ardmvc_core.ranges import Epochs, LearningRate, Positive, Range, Samples, check_values
from ardmvc_core.types import Views

FLAT = 0.999
"""A tanh beyond this is counted as saturated."""


@dataclass(frozen=True, kw_only=True)
class MarginGeneratorConfig:
    """Fitting of the generator."""

    epochs: Epochs = 30
    """Passes over the attacker's views, ≥ 1."""
    learning_rate: LearningRate = 2e-3
    """Of Adam, > 0."""
    batch_size: Samples = 50
    """Samples of a step, ≥ 1."""
    enough: Positive = 3.0
    """Margin in logits beyond which a sample counts as flipped for good and has no gradient, > 0."""
    validation_share: Annotated[float, Range(0, 1, above=True, below=True)] = 0.2
    """Share of the attacker's data that chooses the epoch, in (0, 1)."""

    def __post_init__(self) -> None:
        check_values(self)


class MarginGenerator:
    """A fitted generator; a Perturb."""

    def __init__(self, network: Generator, budget: Threat, flip_rate: float, epoch: int) -> None:
        self.network, self.budget = network.eval(), budget
        self.flip_rate = flip_rate
        """Share of the validation samples that it flips, in [0, 1]."""
        self.epoch = epoch
        """The epoch that was kept, counted from 1."""

    @torch.no_grad()
    def __call__(self, model: nn.Module, views: Views) -> Views:
        return moved(self.network, views, self.budget)

    @torch.no_grad()
    def saturation(self, views: Views) -> float:
        """Share of the output values of attacked views in the flat part of the tanh, in [0, 1]."""
        outputs = self.network(views)
        kept = [out for out, e in zip(outputs, self.budget.eps_per_view(len(views)), strict=True) if e > 0]
        return sum(int((out.abs() > FLAT).sum()) for out in kept) / sum(out.numel() for out in kept)


def moved(network: Generator, views: Views, budget: Threat) -> Views:
    """Views plus ε·tanh, inside the bounds: differentiable in the network."""
    eps = budget.eps_per_view(len(views))
    shifted = tuple(view + e * output for view, output, e in zip(views, network(views), eps, strict=True))
    return project(views, shifted, budget)


def fit_margin_generator(
    config: MarginGeneratorConfig,
    budget: Threat,
    model: nn.Module,
    views: Views,
    generator: torch.Generator,
) -> MarginGenerator:
    """Fits the generator on the attacker's views, with the model in its present mode.

    Args: model: not changed. views: V × (M, *shape_v), M ≥ 2, on the model's device.
    Raises: ValueError for fewer than two samples.
    """
    count = len(views[0])
    if count < 2:
        raise ValueError(f"views must hold at least 2 samples to fit a generator, got {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(draw_seed(generator)))
    kept_back = min(count - 1, max(1, round(config.validation_share * count)))
    fit, check = (
        tuple(view[part.to(view.device)] for view in views) for part in (order[kept_back:], order[:kept_back])
    )
    stream = torch.Generator().manual_seed(draw_seed(generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed(generator))
        network = Generator(tuple(tuple(view.shape[1:]) for view in views))
    network = network.to(device=views[0].device, dtype=views[0].dtype)
    optimizer = Adam(network.parameters(), lr=config.learning_rate)
    references = [clean_reference(model, part, 256) for part in (fit, check)]
    best: tuple[float, int, dict[str, torch.Tensor]] | None = None
    with frozen(model):
        for epoch in range(1, config.epochs + 1):
            network.train()
            for rows in torch.randperm(len(fit[0]), generator=stream).to(fit[0].device).split(config.batch_size):
                batch = tuple(view[rows] for view in fit)
                reached = margin(model(moved(network, batch, budget)), references[0].rows(rows))
                optimizer.zero_grad()
                (-reached.clamp(max=config.enough).mean()).backward()
                optimizer.step()
            rate = _flip_rate(network.eval(), model, check, references[1], budget)
            if best is None or rate > best[0]:
                best = (rate, epoch, copy.deepcopy(network.state_dict()))
    assert best is not None
    network.load_state_dict(best[2])
    return MarginGenerator(network, budget, best[0], best[1])


@torch.no_grad()
def _flip_rate(network: Generator, model: nn.Module, views: Views, reference: CleanReference, budget: Threat) -> float:
    clusters = [model(moved(network, batch, budget)).logits.argmax(1) for batch in in_batches(views, 256)]
    return float((torch.cat(clusters) != reference.clusters).double().mean())
