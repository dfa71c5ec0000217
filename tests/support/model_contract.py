"""What every model keeps: checks that take a method, a config of it and a case, and know nothing else about the model.

`CASE_CHECKS` hold for any case; the others say what they need. `CHEAP` makes the settings of single models small enough
for tests; no check looks at a model's name.
"""

import copy
import dataclasses
import inspect
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from ardmvc_core.attacks.attack import Attack
from ardmvc_core.attacks.generators.gan import GANConfig, fit_gan
from ardmvc_core.attacks.kinds import Generate, Query
from ardmvc_core.attacks.objectives.clean_reference import clean_reference
from ardmvc_core.attacks.objectives.per_batch import contrast
from ardmvc_core.attacks.objectives.per_sample import ce, features
from ardmvc_core.attacks.searches.apgd import apgd
from ardmvc_core.attacks.searches.pgd import random_start
from ardmvc_core.attacks.suite import run_suite
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.attacks.tiers import plan
from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.evaluation.budget import EvalBudget
from ardmvc_core.evaluation.official import evaluate_official
from ardmvc_core.evaluation.worst_case import evaluate_suite, probe
from ardmvc_core.networks.kmeans import KMeansHead
from ardmvc_core.seeding import generator, global_rng_state, seed_everything
from ardmvc_core.training import Trainer, calibrate
from ardmvc_core.types import EmbeddingOutput, Method, ModelOutput, Stage, Views, ViewShapes

CHEAP: dict[str, dict[str, Any]] = {
    # The published rate moves the encoders by 1e-5 a step: nothing that a few steps show.
    "eamc": {"learning_rate": 1e-3},
    "aecoddc": {"pretrain_epochs": 1},
    "infoddc": {"pretrain_epochs": 1},
    "sem": {
        "hidden_widths": (32, 32, 64),
        "feature_width": 32,
        "latent_width": 16,
        "warmup_epochs": 1,
        "rounds": 2,
        "kmeans_restarts": 2,
    },
    "ar_dmvc": {"train_steps": 2, "train_eps": 0.05},
    "ar_dmvc_am": {"train_steps": 2, "train_eps": 0.05},
}
"""Settings of models whose defaults are the published effort; every other field keeps its default."""

GAME = {"generator", "discriminator"}
"""Terms of a game between two networks: each side's success is the other's loss, so neither has to fall."""

SEED = 5
LARGE_EPS = 0.5
PLANTED_EPOCHS = 8
"""Enough for every model to find planted clusters."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Views and clusters that a model has to cope with."""

    shapes: ViewShapes
    n_clusters: int
    samples: int
    batch_size: int

    def views(self, seed: int = SEED) -> Views:
        """Planted clusters: samples around one random centre per cluster and view, V × (samples, *shape_v)."""
        stream = generator(seed, "planted")
        clusters = torch.arange(self.samples) % self.n_clusters
        views = []
        for shape in self.shapes:
            centres = torch.rand(self.n_clusters, *shape, generator=stream)
            noise = 0.1 * torch.randn(self.samples, *shape, generator=stream)
            views.append((centres[clusters] + noise).clamp(0, 1))
        return tuple(views)

    def data(self) -> MultiViewDataset:
        """The same with the planted clusters as classes."""
        labels = torch.arange(self.samples) % self.n_clusters
        return MultiViewDataset("planted", self.views(), labels, self.n_clusters)


CASES = {
    "two small images, K 2": Case(shapes=((1, 8, 8),) * 2, n_clusters=2, samples=16, batch_size=8),
    "three vectors, K 50": Case(shapes=((5,), (3,), (4,)), n_clusters=50, samples=60, batch_size=20),
    "six colour images, K 3": Case(shapes=((3, 9, 10),) * 6, n_clusters=3, samples=12, batch_size=6),
}
LARGE_IMAGES = Case(shapes=((1, 28, 28),) * 2, n_clusters=3, samples=6, batch_size=3)
PLANTED = {
    "images": Case(shapes=((1, 8, 8),) * 2, n_clusters=3, samples=48, batch_size=12),
    "vectors": Case(shapes=((5,), (3,), (4,)), n_clusters=3, samples=48, batch_size=12),
}


def build(method: Method, config: Any, case: Case, seed: int = SEED) -> nn.Module:
    """A new network whose weights depend on the seed alone."""
    seed_everything(seed)
    return method.build(config, case.shapes, case.n_clusters)


def trainer_of(model: nn.Module, case: Case, stages: tuple[Stage, ...], seed: int = SEED) -> Trainer:
    return Trainer(model, stages, case.views(), batch_size=case.batch_size, seed=seed)


def short_stages(method: Method, config: Any, last: int = 1) -> tuple[Stage, ...]:
    """Every stage of the method: one epoch each, and `last` epochs of the last one."""
    stages = [dataclasses.replace(stage, epochs=1) for stage in method.stages(config, 1)]
    return (*stages[:-1], dataclasses.replace(stages[-1], epochs=last))


@dataclass(frozen=True)
class Trained:
    """A calibrated network in inference mode, shared between checks: to be left as it is."""

    model: nn.Module
    curve: list[dict[str, float]]
    """Losses of every epoch of the last stage."""


@lru_cache(maxsize=64)
def trained(method: Method, config: Any, case: Case, epochs: int = 2) -> Trained:
    """A network after `short_stages`; the same one for the same arguments."""
    model = build(method, config, case)
    trainer = trainer_of(model, case, short_stages(method, config, epochs))
    curve = []
    while not trainer.finished:
        curve.append(trainer.run_epoch())
    calibrate(method, model, trainer.views, SEED)
    return Trained(model.eval(), curve[-epochs:])


def check_config(name: str, method: Method) -> None:
    """Frozen, keyword-only, usable without an argument, and it says which model it configures, that one only."""
    config = method.config()
    assert config.name == name
    assert get_type_hints(method.config)["name"] == Literal[name]
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, getattr(config, field.name))
    parameters = inspect.signature(method.config).parameters.values()
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    assert method.config() == config


def check_output(method: Method, config: Any, case: Case) -> None:
    """Shapes, `encode`, and a forward pass that draws, keeps and overwrites nothing."""
    views = case.views()
    kept = [view.clone() for view in views]
    model = build(method, config, case)
    again = build(method, config, case).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items()), "weights not from the seed"
    for training in (True, False):
        model.train(training)
        output = model(views)
        assert isinstance(output, ModelOutput)
        assert len(output.view_latents) == len(case.shapes)
        assert all(latent.dim() == 2 and len(latent) == case.samples for latent in output.view_latents)
        assert output.consensus.dim() == 2
        assert len(output.consensus) == case.samples
        assert output.assignments.shape == output.logits.shape == (case.samples, case.n_clusters)
        assert torch.allclose(output.assignments.sum(dim=1), torch.ones(case.samples))
        assert torch.allclose(output.assignments, output.logits.softmax(dim=1))
        assert all(bool(tensor.isfinite().all()) for tensor in (*output.view_latents, output.consensus, output.logits))
        assert all(torch.equal(view, before) for view, before in zip(views, kept, strict=True)), "views overwritten"
        assert _stashed(model) == [], "a forward pass left tensors on the modules"
    streams = global_rng_state()
    latents = model.encode(views)
    assert all(torch.equal(one, other) for one, other in zip(latents, output.view_latents, strict=True))
    assert torch.equal(model(views).logits, output.logits), "inference is not repeatable"
    assert same(global_rng_state(), streams), "inference draws random numbers"
    assert isinstance(output, EmbeddingOutput) == isinstance(getattr(model, "head", None), KMeansHead)


def _stashed(model: nn.Module) -> list[str]:
    def holds_tensors(value: Any) -> bool:
        if isinstance(value, tuple | list):
            return any(map(holds_tensors, value))
        return isinstance(value, Tensor | ModelOutput)

    return [
        f"{type(module).__name__}.{name}"
        for module in model.modules()
        for name, value in vars(module).items()
        if holds_tensors(value)
    ]


def check_refusals(method: Method, config: Any, case: Case) -> None:
    """What cannot be a multi-view clustering is refused with a sentence, when it is built or called."""
    with pytest.raises(ValueError, match=r"n_clusters.*1"):
        method.build(config, case.shapes, 1)
    with pytest.raises(ValueError, match="view"):
        method.build(config, case.shapes[:1], case.n_clusters)
    model = build(method, config, case)
    for views in (case.views()[:-1], (*case.views(), case.views()[0])):
        with pytest.raises(ValueError):  # noqa: PT011 - a zip that is strict is enough
            model.encode(views)


def check_training(method: Method, config: Any, case: Case) -> None:
    """One epoch of every stage: finite terms, every parameter moves, nothing is drawn from a global stream."""
    model = build(method, config, case)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = trainer_of(model, case, short_stages(method, config))
    streams = global_rng_state()
    while not trainer.finished:
        losses = trainer.run_epoch()
        assert all(map(math.isfinite, losses.values())), losses
        assert all(name.isidentifier() and name.islower() for name in losses), "term names are lower case with _"
    assert same(global_rng_state(), streams), "a step draws from a global stream and not from step.generator"
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert still == [], "these parameters were never trained"


def check_loss_falls(method: Method, config: Any, case: Case) -> None:
    """On planted clusters, the last stage's terms are lower in its last epoch than in its first."""
    curve = [
        sum(value for name, value in losses.items() if name not in GAME | {"total"})
        for losses in trained(method, config, case, PLANTED_EPOCHS).curve
    ]
    # Other batches alone make a difference of a hundredth at most.
    assert curve[-1] < curve[0] - 0.03 * abs(curve[0]), curve


def check_resume(method: Method, config: Any, case: Case) -> None:
    """Wherever training stops, inside or between stages, a checkpoint of plain types goes on from there bit for bit."""
    stages = method.stages(config, 4)
    straight = trainer_of(build(method, config, case), case, stages)
    curve, checkpoints = [], [_through_a_file(straight.state_dict())]
    while not straight.finished:
        curve.append(straight.run_epoch())
        checkpoints.append(_through_a_file(straight.state_dict()))
    for done, losses in enumerate(curve):
        resumed = trainer_of(build(method, config, case, seed=SEED + 1), case, stages)  # other weights, other streams
        resumed.load_state_dict(checkpoints[done])
        assert resumed.run_epoch() == losses
        # What the next epoch depends on is in the state, or the stop after it tells.
        assert same(resumed.state_dict(), checkpoints[done + 1]), f"another state after a stop at epoch {done}"
    for model in (straight.model, resumed.model):
        calibrate(method, model, straight.views, SEED)
    assert same(dict(resumed.model.state_dict()), dict(straight.model.state_dict())), "calibration is not repeatable"
    loaded = build(method, config, case, seed=SEED + 1)
    loaded.load_state_dict(_through_a_file(straight.model.state_dict()))
    one, other = (model.eval()(straight.views).logits for model in (loaded, straight.model))
    assert torch.equal(one, other), "the parameters and buffers are not the whole model"


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def same(one: Any, other: Any) -> bool:
    """Whether two states are the same to the last bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def check_calibration(method: Method, config: Any, case: Case) -> None:
    """Calibrating between epochs, as every round of a trial does, changes nothing of training, and no mode."""
    stages = method.stages(config, 3)
    undisturbed = trainer_of(build(method, config, case), case, stages)
    rounds = trainer_of(build(method, config, case), case, stages)
    while not undisturbed.finished:
        calibrate(method, rounds.model, rounds.views, SEED)
        assert rounds.run_epoch() == undisturbed.run_epoch()
        assert all(module.training for module in rounds.model.modules())
    calibrate(method, rounds.model, rounds.views, SEED)
    calibrate(method, undisturbed.model, undisturbed.views, SEED)
    assert same(dict(rounds.model.state_dict()), dict(undisturbed.model.state_dict()))


def check_samples_are_independent(method: Method, config: Any, case: Case) -> None:
    """In inference mode a sample has one assignment, whichever samples stand beside it."""
    model, views = trained(method, config, case).model, case.views()
    with torch.no_grad():
        together = model(views).logits
        clusters = together.argmax(dim=1)
        near = 1e-5 * (together.max() - together.min())
        shuffled = torch.randperm(case.samples, generator=generator(SEED, "order"))
        for order, size in ((torch.arange(case.samples), 1), (torch.arange(case.samples), 2), (shuffled, 5)):
            for rows in order.split(size):
                logits = model(tuple(view[rows] for view in views)).logits
                assert torch.equal(logits.argmax(dim=1), clusters[rows]), f"clusters differ in batches of {size}"
                assert (logits - together[rows]).abs().max() <= near, f"logits differ in batches of {size}"


def check_gradients_reach_the_views(method: Method, config: Any, case: Case) -> None:
    """Every objective of an attack has a finite gradient in every view, and not 0."""
    model, views = trained(method, config, case).model, case.views()
    start = random_start(views, Threat(eps=0.1), generator(SEED, "start"))
    objectives = {"assignment": ce, "features": features(), "contrastive": contrast}
    with untouched(model):
        clean = clean_reference(model, views, case.samples)
        for name, objective in objectives.items():
            moved = tuple(view.clone().requires_grad_() for view in start)
            gradients = torch.autograd.grad(objective(model(moved), clean).sum(), moved, materialize_grads=True)
            for v, gradient in enumerate(gradients):
                assert bool(gradient.isfinite().all()), f"{name}, view {v}"
                assert gradient.abs().max() > 0, f"{name} does not see view {v}"


def check_white_box(method: Method, config: Any, case: Case) -> None:
    """APGD on assignments raises the cross-entropy to the clean clusters and leaves the model as it was."""
    model, views = trained(method, config, case).model, case.views()
    attacked = _apgd(model, views)
    with torch.no_grad():
        clean = clean_reference(model, views, len(views[0]))
        before, after = (ce(model(seen), clean).mean() for seen in (views, attacked))
    assert after > before, "the attack did not raise its objective"


def check_flips(method: Method, config: Any, case: Case) -> None:
    """Once a model has found clusters, APGD at a large ε moves most samples to another one. Needs planted clusters."""
    model, views = trained(method, config, case, PLANTED_EPOCHS).model, case.views()
    attacked = _apgd(model, views)
    with torch.no_grad():
        before, after = (model(seen).logits.argmax(dim=1) for seen in (views, attacked))
    assert len(before.unique()) > 1, "the model found one cluster only"
    assert (before != after).float().mean() > 0.5


def check_suite(method: Method, config: Any, case: Case) -> None:
    """Every kind of attack of the suite meets the model, a pass of its own confirms the flips, and at a large ε hardly
    a sample is left. Needs planted clusters. (Generators have a check of their own.)"""
    model, views = trained(method, config, case, PLANTED_EPOCHS).model, case.views()
    attacks: list[Attack] = []
    for attack in plan("standard", case.n_clusters, centroid_head=isinstance(getattr(model, "head", None), KMeansHead)):
        if isinstance(attack, Query):
            attacks.append(dataclasses.replace(attack, queries=20))
        elif not isinstance(attack, Generate):
            attacks.append(dataclasses.replace(attack, steps=10))
    budget = Threat(eps=LARGE_EPS)
    with untouched(model):
        result = run_suite(model, views, budget, tier="standard", attacks=attacks, surrogates=(model,), everyone=True)
    assert not [record.key for record in result.records if record.skipped and "one width" not in record.skipped]
    with torch.no_grad():
        now = model(result.views).logits.argmax(dim=1)
    assert torch.equal(now != result.reference.clusters, result.flipped)
    assert result.flip_rate > 0.9
    best = max(record.flip_rate for record in result.records)
    assert best <= result.flip_rate <= sum(record.new for record in result.records) / len(result.flipped) + 1e-9


def _apgd(model: nn.Module, views: Views) -> Views:
    """The views under APGD on assignments."""
    budget, stream = Threat(eps=LARGE_EPS), generator(SEED, "apgd")
    with untouched(model):
        clean = clean_reference(model, views, len(views[0]))
        attacked = apgd(model, views, clean, ce, budget, steps=10, generator=stream).best_views
    check_within(views, attacked, LARGE_EPS)
    return attacked


def check_gan(method: Method, config: Any, case: Case) -> None:
    """A GAN can be fitted against the model, in inference mode and, as published, on a copy in training mode."""
    model, views = trained(method, config, case).model, case.views()
    gan = GANConfig(epochs=1, batch_size=case.batch_size)
    with untouched(model):
        for target in (model, copy.deepcopy(model).train()):
            parameters = [parameter.detach().clone() for parameter in target.parameters()]
            fitted = fit_gan(gan, Threat(eps=LARGE_EPS), target, views, generator(SEED, "gan"))
            check_within(views, fitted(target, views), LARGE_EPS)
            assert same(parameters, [parameter.detach() for parameter in target.parameters()])


def check_within(clean: Views, attacked: Views, eps: float) -> None:
    """Attacked views: every one of them moved, by at most ε, inside [0, 1]."""
    for before, after in zip(clean, attacked, strict=True):
        assert before.shape == after.shape
        assert 0 < (after - before).abs().max() <= eps + 1e-6
        assert after.min() >= 0
        assert after.max() <= 1


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Fails if a parameter, buffer, gradient or mode of the model is another one afterwards."""
    state = copy.deepcopy(model.state_dict())
    asking = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [copy.deepcopy(parameter.grad) for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    yield
    assert same(dict(model.state_dict()), dict(state)), "a parameter or buffer of the target changed"
    assert [parameter.requires_grad for parameter in model.parameters()] == asking
    assert same([parameter.grad for parameter in model.parameters()], gradients), "gradients left on the target"
    assert [module.training for module in model.modules()] == modes


def check_evaluation(method: Method, config: Any, case: Case) -> None:
    """The probe and both protocols give finite scores, fractions in [0, 1], and leave the model as it was."""
    model, data = trained(method, config, case).model, case.data()
    gan = GANConfig(epochs=1, batch_size=case.batch_size)
    budget = EvalBudget(eps=0.1, probe_samples=6, official=gan)
    resolved = budget.resolve(data.name, len(data.views))
    with untouched(model):
        values = {
            **probe(model, data, resolved).values,
            **evaluate_suite(model, data, data.views, resolved).evaluation.values,
            **evaluate_official(model, data, resolved).values,
        }
    assert values.keys() >= {"probe/acc", "robust/acc", "apgd_ce/flip", "official/post/acc"}
    assert all(map(math.isfinite, values.values()))
    assert all(0 <= value <= 1 for name, value in values.items() if name.endswith(("/acc", "/nmi", "/flip")))


CASE_CHECKS = (
    check_output,
    check_refusals,
    check_training,
    check_samples_are_independent,
    check_gradients_reach_the_views,
    check_white_box,
    check_gan,
)
"""Hold for every case."""
PLANTED_CHECKS = (check_loss_falls, check_flips, check_suite)
"""Hold where there are enough samples of few clusters."""
