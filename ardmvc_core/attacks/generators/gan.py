"""The GAN attack on multi-view clustering: per view a generator of perturbations and a discriminator.

Source: Huang et al. 2024 (AR-DMVC, ICML). The defaults are the paper's losses on a generator whose output ε·tanh is
never flat inside the budget; `official_gan` is the published code, which differs in every field.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from ardmvc_core.attacks.attack import draw_seed, joined_views
from ardmvc_core.attacks.generators.gan_networks import Discriminator, Generator, initialise_normal
from ardmvc_core.attacks.objectives.shifts import Distance, complementarity_shift, consistency_shift
from ardmvc_core.attacks.searches.pgd import frozen
from ardmvc_core.attacks.threat import Threat, project
from ardmvc_core.batching import in_batches
from ardmvc_core.ranges import BatchSize, Epochs, LearningRate, Positive, Share, Weight, check_values
from ardmvc_core.types import Views, ViewShapes

GANLoss = Literal["minimax", "lsgan"]
NormPenalty = Literal["hinge", "mean_l2"]
GeneratorOutput = Literal["tanh", "clamp"]
Initialisation = Literal["default", "normal"]

DECAY = 0.1
"""What the learning rate is multiplied by when the optimizers are made anew."""


@dataclass(frozen=True, kw_only=True)
class GANConfig:
    """Losses, networks and fitting of the GAN attack; the budget comes separately."""

    gan_loss: GANLoss = "minimax"
    """`minimax`: E log D(x) + E log(1 − D(x')), mean over samples and sum over views; `lsgan`: squared errors of the
    scores, mean over both."""
    distance: Distance = "squared_mean"
    """Of the two representation shifts: mean squared distance, or half the distances summed over the batch."""
    norm_penalty: NormPenalty = "hinge"
    """`hinge`: what the squared L2 norm has beyond `norm_budget`; `mean_l2`: the L2 norm itself."""
    output: GeneratorOutput = "tanh"
    """`tanh`: ε·tanh; `clamp`: tanh cut off at ±ε, which has no gradient where it is cut."""
    init: Initialisation = "default"
    """Torch's initialisation, or `normal`: convolution weights N(0, 1) as published."""
    mu_com: Weight = 0.1
    """μ1, weight of the shift of the view latents (L_a-com), ≥ 0. The paper gives no value; latents move by much more
    than the consensus, and at equal weights hide it."""
    mu_con: Weight = 1.0
    """μ2, weight of the shift of the consensus (L_a-con), ≥ 0."""
    mu_norm: Weight = 1.0
    """μ3, weight of the norm penalty, ≥ 0."""
    norm_budget: Positive | None = None
    """Bound of the hinge on the squared L2 norm per view, > 0; None: the largest one in the ball, ε² times the number
    of values of the view."""
    epochs: Epochs = 20
    """Passes over the attacker's views, ≥ 1."""
    learning_rate: LearningRate = 2e-3
    """Of both Adam optimizers, > 0."""
    decay_share: Share = 2 / 3
    """Share of the epochs after which both optimizers start anew at a tenth of the learning rate, in [0, 1];
    1: never."""
    batch_size: BatchSize = 50
    """Samples of a step, ≥ 2; the last, incomplete batch of an epoch is dropped."""

    def __post_init__(self) -> None:
        check_values(self)


def official_gan() -> GANConfig:
    """The published code's attack: 30 epochs of batches of 100, from epoch 20 on (counted from 1) at a tenth."""
    return GANConfig(
        gan_loss="lsgan",
        distance="norm_sum",
        norm_penalty="mean_l2",
        output="clamp",
        init="normal",
        mu_com=5.0,
        mu_con=5.0,
        mu_norm=1.0,
        epochs=30,
        learning_rate=1e-3,
        decay_share=19 / 30,
        batch_size=100,
    )


def perturbations(outputs: Views, config: GANConfig, budget: Threat) -> Views:
    """Generator outputs in [−1, 1] → perturbations inside the ε-ball (not yet inside the bounds)."""
    eps = budget.eps_per_view(len(outputs))
    if config.output == "tanh":
        return tuple(e * output for output, e in zip(outputs, eps, strict=True))
    return tuple(output.clamp(-e, e) for output, e in zip(outputs, eps, strict=True))


def added(views: Views, moves: Views, budget: Threat) -> Views:
    """Views with perturbations added, cut off at the bounds of valid inputs."""
    return tuple((view + move).clamp(*budget.bounds) for view, move in zip(views, moves, strict=True))


def discriminator_terms(real: Tensor, fake: Tensor, gan_loss: GANLoss) -> tuple[Tensor, Tensor]:
    """What the discriminator minimises on clean and on attacked views.

    Args: real, fake: (V, B) logits. Returns: two scalars ≥ 0, to be summed.
    """
    if gan_loss == "minimax":
        # −log D = softplus(−logit) and −log(1 − D) = softplus(logit)
        return F.softplus(-real).mean(1).sum(), F.softplus(fake).mean(1).sum()
    return (real.sigmoid() - 1).square().mean(), fake.sigmoid().square().mean()


def generator_term(fake: Tensor, gan_loss: GANLoss) -> Tensor:
    """What the generator minimises of the game: (V, B) logits of attacked views → scalar."""
    if gan_loss == "minimax":
        return -F.softplus(fake).mean(1).sum()
    return (fake.sigmoid() - 1).square().mean()


def norm_term(moves: Views, config: GANConfig, budget: Threat) -> Tensor:
    """Penalty on the size of perturbations, summed over views: scalar ≥ 0."""
    terms = []
    for move, eps in zip(moves, budget.eps_per_view(len(moves)), strict=True):
        flat = move.flatten(1)
        if config.norm_penalty == "mean_l2":
            terms.append(torch.linalg.vector_norm(flat, dim=1).mean())
        else:
            bound = config.norm_budget if config.norm_budget is not None else eps**2 * flat.shape[1]
            terms.append((flat.square().sum(1) - bound).clamp(min=0).mean())
    return torch.stack(terms).sum()


class GANNetworks:
    """The attacker's networks and their optimizers."""

    def __init__(self, config: GANConfig, view_shapes: ViewShapes, seed: int, device: torch.device) -> None:
        # Layers draw from torch's global stream; the fork keeps that of the caller where it was.
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            self.generator, self.discriminator = Generator(view_shapes), Discriminator(view_shapes)
            if config.init == "normal":
                initialise_normal(self.generator)
                initialise_normal(self.discriminator)
        self.generator.to(device)
        self.discriminator.to(device)
        self.start_optimizers(config.learning_rate)

    def start_optimizers(self, learning_rate: float) -> None:
        """New Adam optimizers without moments."""
        self.generator_optimizer = Adam(self.generator.parameters(), lr=learning_rate)
        self.discriminator_optimizer = Adam(self.discriminator.parameters(), lr=learning_rate)


def gan_step(
    networks: GANNetworks, config: GANConfig, budget: Threat, model: nn.Module, views: Views
) -> dict[str, Tensor]:
    """One step of the discriminator, then one of the generator, on one batch.

    The target is used in the mode that it is in: two passes, clean and attacked, the latter only in the generator's
    step. Its parameters must not ask for gradients (see `pgd.frozen`).

    Args: views: V × (B, *shape_v), B ≥ 2, clean.
    Returns: unweighted terms, detached scalars: `real` and `fake` (discriminator), `gan`, `com`, `con`, `norm`
        (generator).
    """
    outputs = networks.generator(views)
    moves = perturbations(outputs, config, budget)
    attacked = added(views, moves, budget)

    networks.discriminator_optimizer.zero_grad(set_to_none=True)
    real = networks.discriminator(views)
    fake = networks.discriminator(tuple(view.detach() for view in attacked))
    real_term, fake_term = discriminator_terms(real, fake, config.gan_loss)
    (real_term + fake_term).backward()
    networks.discriminator_optimizer.step()

    networks.generator_optimizer.zero_grad(set_to_none=True)
    gan = generator_term(networks.discriminator(attacked), config.gan_loss)
    with torch.no_grad():
        clean_output = model(views)
    attacked_output = model(attacked)
    com = complementarity_shift(clean_output, attacked_output, config.distance)
    con = consistency_shift(clean_output, attacked_output, config.distance)
    norm = norm_term(moves, config, budget)
    total = gan + config.mu_norm * norm - config.mu_com * com - config.mu_con * con
    total.backward(inputs=list(networks.generator.parameters()))
    networks.generator_optimizer.step()
    terms = {"real": real_term, "fake": fake_term, "gan": gan, "com": com, "con": con, "norm": norm}
    return {name: term.detach() for name, term in terms.items()}


@dataclass(frozen=True)
class FittedGAN:
    """A fitted generator as a `Perturb`."""

    generator: Generator
    config: GANConfig
    budget: Threat

    def __call__(self, model: nn.Module, views: Views) -> Views:
        """Attacked views inside the budget; the model is not asked."""
        with torch.no_grad():
            moved = [
                added(batch, perturbations(self.generator(batch), self.config, self.budget), self.budget)
                for batch in in_batches(views, self.config.batch_size)
            ]
        return project(views, joined_views(moved), self.budget)

    def saturation(self, views: Views) -> float:
        """Share of output values where the generator gets (almost) no gradient: beyond ±0.99, or cut off at ±ε."""
        eps = self.budget.eps_per_view(len(views))
        limits = [0.99 if self.config.output == "tanh" else e for e in eps]
        flat, total = 0, 0
        with torch.no_grad():
            for batch in in_batches(views, self.config.batch_size):
                for output, limit, e in zip(self.generator(batch), limits, eps, strict=True):
                    if e > 0:
                        flat += int((output.abs() >= limit).sum())
                        total += output.numel()
        return flat / total


class GANTrainer:
    """Fits the GAN attack epoch by epoch; stop and go on is exact.

    Args: model: the target, used in the mode that it is in; its parameters are not changed, but in training mode its
        running statistics are. views: V × (N, *shape_v), N ≥ 2, the attacker's data, on the model's device.
        generator: gives the seeds of the networks and of the batch order.
    Raises: ValueError for fewer than two samples.
    """

    def __init__(
        self, config: GANConfig, budget: Threat, model: nn.Module, views: Views, generator: torch.Generator
    ) -> None:
        if len(views[0]) < 2:
            raise ValueError(f"views must hold at least 2 samples to fit a GAN, got {len(views[0])}")
        budget.eps_per_view(len(views))
        self.config, self.budget, self.model, self.views = config, budget, model, views
        shapes = tuple(tuple(view.shape[1:]) for view in views)
        self.networks = GANNetworks(config, shapes, draw_seed(generator), views[0].device)
        self.networks.generator.to(views[0].dtype)
        self.networks.discriminator.to(views[0].dtype)
        self._order = torch.Generator().manual_seed(draw_seed(generator))
        self.epoch = 0

    @property
    def finished(self) -> bool:
        """All epochs of the config are done."""
        return self.epoch >= self.config.epochs

    def run_epoch(self) -> dict[str, float]:
        """One pass over the views in a new order. Returns: mean of every term of `gan_step` over its batches."""
        if self.epoch == round(self.config.decay_share * self.config.epochs):
            self.networks.start_optimizers(self.config.learning_rate * DECAY)
        self.networks.generator.train()
        self.networks.discriminator.train()
        size = min(self.config.batch_size, len(self.views[0]))
        order = torch.randperm(len(self.views[0]), generator=self._order).to(self.views[0].device)
        steps = []
        with frozen(self.model):
            for start in range(0, len(order) - size + 1, size):
                batch = tuple(view[order[start : start + size]] for view in self.views)
                steps.append(gan_step(self.networks, self.config, self.budget, self.model, batch))
        self.epoch += 1
        return {name: float(torch.stack([step[name] for step in steps]).mean()) for name in steps[0]}

    def perturb(self) -> FittedGAN:
        """The attack as fitted so far; later epochs do not change it."""
        shapes = tuple(tuple(view.shape[1:]) for view in self.views)
        generator = GANNetworks(self.config, shapes, 0, self.views[0].device).generator.to(self.views[0].dtype)
        generator.load_state_dict(self.networks.generator.state_dict())
        return FittedGAN(generator.eval(), self.config, self.budget)

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that changes while fitting.

        Plain types and tensors only, so that `torch.load(weights_only=True)` reads it back.
        """
        networks = self.networks
        # In training mode the target's running statistics drift with every pass, so they belong to the state.
        buffers = {name: value.detach() for name, value in self.model.named_buffers()} if self.model.training else {}
        state = {
            "epoch": self.epoch,
            "generator": networks.generator.state_dict(),
            "discriminator": networks.discriminator.state_dict(),
            "generator_optimizer": networks.generator_optimizer.state_dict(),
            "discriminator_optimizer": networks.discriminator_optimizer.state_dict(),
            "order": self._order.get_state(),
            "target_buffers": buffers,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        networks = self.networks
        self.epoch = int(state["epoch"])
        networks.generator.load_state_dict(state["generator"])
        networks.discriminator.load_state_dict(state["discriminator"])
        networks.generator_optimizer.load_state_dict(state["generator_optimizer"])
        networks.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self._order.set_state(state["order"].cpu())
        for name, buffer in self.model.named_buffers():
            if name in state["target_buffers"]:
                buffer.copy_(state["target_buffers"][name])


def fit_gan(config: GANConfig, budget: Threat, model: nn.Module, views: Views, generator: torch.Generator) -> FittedGAN:
    """Runs all epochs of `GANTrainer`. Returns: the last epoch's generator as a Perturb."""
    trainer = GANTrainer(config, budget, model, views, generator)
    while not trainer.finished:
        trainer.run_epoch()
    return trainer.perturb()
