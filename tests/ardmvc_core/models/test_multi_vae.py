"""Multi-VAE against the published numbers, and its configuration."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from ardmvc_core.attacks.objectives.shifts import complementarity_shift, consistency_shift
from ardmvc_core.losses.vae import gaussian_sample, straight_through_one_hot
from ardmvc_core.models import MODELS
from ardmvc_core.models.multi_vae import (
    LatentNoise,
    MultiVAEConfig,
    MultiVAEOutput,
    build,
    capacities,
    stages,
    vae_terms,
)
from ardmvc_core.types import StepContext

VARIANTS = ["dense", "dense3", "cnn"]
PORT = {"kl_scale": "port", "discrete_capacity": "log_k"}


class Case:
    """One variant of the stored networks: weights, views, noise."""

    def __init__(self, numbers, variant: str, dtype: torch.dtype) -> None:
        self.numbers, self.variant = numbers, variant
        prefix = f"{variant}/state/"
        state = {name.removeprefix(prefix): torch.from_numpy(numbers[name]) for name in numbers if prefix in name}
        self.views = self.tensors("view", dtype)
        latent_width, hidden_width = (int(width) for width in self["latent_dims"])
        widths = tuple(len(state[f"encoders.0.layers.{layer}.bias"]) for layer in (0, 3))  # read by dense ones only
        self.config = MultiVAEConfig(
            encoder="cnn_small" if variant == "cnn" else "dense",
            dense_widths=widths,
            hidden_width=hidden_width,
            latent_width=latent_width,
            **PORT,
        )
        self.network = build(self.config, tuple(view.shape[1:] for view in self.views), int(self["n_clusters"]))
        missing, unexpected = self.network.load_state_dict(state, strict=False)
        assert set(missing) == {"head.centroids", "head.temperature"}
        assert unexpected == []
        self.network.to(dtype)
        self.step = int(self["train_step"])
        self.noise = LatentNoise(
            normal=tuple(torch.from_numpy(self["train/noise_normal"]).to(dtype)),
            uniform=torch.from_numpy(self["train/noise_uniform"]).to(dtype),
        )

    def __getitem__(self, name: str) -> np.ndarray:
        return self.numbers[f"{self.variant}/{name}"]

    def tensors(self, name: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(self[f"{name}{v}"]).to(dtype) for v in range(int(self["n_views"])))

    def run(self, mode: str):
        """Output, reconstructions and terms of the published loss."""
        self.network.train(mode == "train")
        output = self.network.infer(self.views, self.noise if mode == "train" else None)
        # The published code has no gradient through the one-hot code.
        learned = output if mode == "train" else dataclasses.replace(output, discrete=output.discrete.detach())
        made = self.network.reconstruct(learned)
        return output, made, vae_terms(self.config, output, self.views, made, self.step)

    def losses(self, mode: str) -> dict[str, float]:
        names = {"MVAECont": "continuous", "MVAEDisc": "discrete", "MVAERec": "reconstruction", "tot": "tot"}
        found = {}
        for name, value in zip(self[f"{mode}/loss_names"], self[f"{mode}/loss_values"], strict=True):
            head, _, view = str(name).partition("/")
            found[f"{names[head]}_{view}" if view else names[head]] = float(value)
        return found

    def check_gradients(self, mode: str, tolerance: float) -> None:
        """Relative to the norm of each tensor; what is stored as zero up to rounding is only checked to be small."""
        gradients = {name: parameter.grad for name, parameter in self.network.named_parameters()}
        assert set(gradients) == {str(name) for name in self["param_names"]}
        for index, name in enumerate(map(str, self["param_names"])):
            assert self[f"{mode}/grad_present"][index] == 1
            gradient = gradients[name].double().numpy().ravel()
            length = float(self[f"{mode}/grad_l2"][index])
            if length < 1e-9:
                assert np.linalg.norm(gradient) < (1e-9 if gradients[name].dtype == torch.float64 else 1e-2), name
                continue
            allowed = tolerance * (1 + length) if tolerance == 1e-9 else tolerance * length
            first = self[f"{mode}/grad_first8"][index][: len(gradient)]
            assert abs(np.linalg.norm(gradient) - length) <= allowed, name
            assert np.linalg.norm(gradient[:8] - first) <= allowed, name
            assert abs(gradient.sum() - self[f"{mode}/grad_sum"][index]) <= allowed * len(gradient) ** 0.5, name
            if f"{self.variant}/{mode}/grad/{name}" in self.numbers:
                assert np.linalg.norm(gradient - self[f"{mode}/grad/{name}"].ravel()) <= allowed, name


@pytest.fixture
def case(golden):
    """case(variant, dtype) → the stored network and views."""
    return lambda variant, dtype=torch.float64: Case(golden("models_mvae"), variant, dtype)


def _check_output(case: Case, mode: str, output: MultiVAEOutput, made, assert_close, tolerance: float) -> None:
    # Encoder outputs and reconstructions of the convolutional networks are stored in single precision.
    stored = max(tolerance, 2e-7) if case.variant == "cnn" else tolerance
    for v, view in enumerate(case.views):
        assert_close(output.view_latents[v], case[f"{mode}/encoder_output{v}"], stored, f"latent {v}")
        assert_close(output.means[v], case[f"{mode}/mean{v}"], tolerance, f"mean {v}")
        assert_close(output.log_vars[v], case[f"{mode}/log_var{v}"], tolerance, f"log variance {v}")
        assert_close(output.continuous[v], case[f"{mode}/latent_cont{v}"], tolerance, f"continuous {v}")
        assert_close(made[v], case[f"{mode}/reconstruction{v}"], stored, f"reconstruction {v}")
        assert made[v].shape == view.shape
    assert_close(output.consensus, case[f"{mode}/alpha"], tolerance, "alpha")
    assert_close(output.discrete, case[f"{mode}/latent_disc"], tolerance, "discrete")
    assert_close(output.embedding, case[f"{mode}/eval_tensors"], tolerance, "embedding")


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_double_precision_pass_is_the_published_one(case, assert_close, variant, mode):
    stored = case(variant)
    output, made, terms = stored.run(mode)
    _check_output(stored, mode, output, made, assert_close, 1e-9)
    wanted = stored.losses(mode)
    assert set(terms) == set(wanted) - {"tot"}
    for name, value in terms.items():
        assert_close(value, wanted[name], 1e-9, name)
    total = torch.stack(list(terms.values())).sum()
    assert_close(total, wanted["tot"], 1e-9)
    total.backward()
    stored.check_gradients(mode, 1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_precision_pass_is_the_published_one(case, assert_close, variant):
    stored = case(variant, torch.float32)
    output, made, terms = stored.run("train")
    _check_output(stored, "train", output, made, assert_close, 1e-4)
    assert_close(output.consensus, stored["train/alpha"], 2e-5, "alpha")
    for name, value in terms.items():
        assert_close(value, stored.losses("train")[name], 2e-5, name)
    torch.stack(list(terms.values())).sum().backward()
    stored.check_gradients("train", max(1e-4, 10 * float(stored["rounding_sensitivity"])) if variant == "cnn" else 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_training_pass_moves_the_running_statistics_as_published(case, assert_close, variant):
    stored = case(variant)
    stored.run("train")
    state = stored.network.state_dict()
    prefix = f"{variant}/train/buffers_after/"
    names = [name for name in stored.numbers if name.startswith(prefix)]
    assert names
    for name in names:
        assert_close(state[name.removeprefix(prefix)], stored.numbers[name], 1e-9, name)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_attack_distance_is_the_published_one(case, golden, assert_close, mode):
    attack = golden("attack")
    network = case("dense").network.train(mode == "train")
    n_views = len(network.encoders)
    clean, attacked = (
        network(tuple(torch.from_numpy(attack[f"mvae/{kind}{v}"]).double() for v in range(n_views)))
        for kind in ("view", "adversarial_view")
    )
    distance = complementarity_shift(clean, attacked, "norm_sum") + consistency_shift(clean, attacked, "norm_sum")
    assert_close(distance, attack[f"mvae/multi_hid_{mode}"], 1e-9)


def _free(numbers, name: str):
    """Stored loss inputs as an output, with the reconstructions and views that belong to it, all leaves."""
    leaves = {
        key: torch.from_numpy(numbers[f"{name}/{key}"]).requires_grad_()
        for key in ("means", "log_vars", "alpha", "reconstructions")
    }
    means = tuple(leaves["means"])
    output = MultiVAEOutput(
        view_latents=means,
        consensus=leaves["alpha"],
        logits=leaves["alpha"],
        assignments=leaves["alpha"],
        embedding=leaves["alpha"],
        means=means,
        log_vars=tuple(leaves["log_vars"]),
        continuous=means,
        discrete=leaves["alpha"],
    )
    return leaves, output, tuple(torch.from_numpy(numbers[f"{name}/views"]))


def _config(numbers, name: str, **fields) -> MultiVAEConfig:
    weights = numbers[f"{name}/weights"]
    assert weights[2] == 1
    return MultiVAEConfig(
        continuous_weight=float(weights[0]),
        discrete_weight=float(weights[1]),
        continuous_capacity=float(numbers[f"{name}/cont_max_capacity"]),
        capacity_steps=int(numbers[f"{name}/iters_add_capacity"]),
        **fields,
    )


def test_ported_loss_is_the_published_one_in_every_step(golden, assert_close):
    numbers = golden("mvae")
    for name in map(str, numbers["case_names"]):
        config = _config(numbers, name, **PORT)
        leaves, output, views = _free(numbers, name)
        for index, step in enumerate(numbers[f"{name}/steps"].tolist()):
            terms = vae_terms(config, output, views, tuple(leaves["reconstructions"]), step)
            for v in range(len(views)):
                wanted = config.continuous_weight * numbers[f"{name}/term_continuous"][index, v]
                assert_close(terms[f"continuous_{v}"], wanted, 1e-9, name)
                assert_close(terms[f"reconstruction_{v}"], numbers[f"{name}/term_reconstruction"][v], 1e-9, name)
            wanted = config.discrete_weight * numbers[f"{name}/term_discrete"][index]
            assert_close(terms["discrete"], wanted, 1e-9, name)
            total = torch.stack(list(terms.values())).sum()
            assert_close(total, numbers[f"{name}/total"][index], 1e-9, name)
            if step == numbers[f"{name}/grad_step"]:
                total.backward()
        for key, leaf in leaves.items():
            assert_close(leaf.grad, numbers[f"{name}/grad_{key}"], 1e-9, f"{name} {key}")


def test_default_loss_is_that_of_the_original(golden, assert_close):
    numbers = golden("mvae")
    for name in map(str, numbers["case_names"]):
        config = _config(numbers, name)
        leaves, output, views = _free(numbers, name)
        for index, step in enumerate(numbers[f"{name}/steps"].tolist()):
            terms = vae_terms(config, output, views, tuple(leaves["reconstructions"]), step)
            wanted = numbers[f"{name}/original_view_losses"][index]
            own = torch.stack([terms[f"continuous_{v}"] + terms[f"reconstruction_{v}"] for v in range(len(views))])
            assert_close(own + terms["discrete"] / len(views), wanted, 1e-9, name)
            assert_close(torch.stack(list(terms.values())).sum(), wanted.sum(), 1e-9, name)


@pytest.mark.parametrize(
    ("kl_scale", "continuous", "discrete", "reconstruction"),
    [
        # Views of 2 and 6 values; divergences at capacity 0: ½ per view, log 2; reconstruction log 2 a value.
        ("original", [15 / 2, 15 / 6], 30 * math.log(2) * (1 / 2 + 1 / 6), [math.log(2), math.log(2)]),
        ("port", [15 / 2, 15 / 6], 30 * math.log(2) * 2 / 8, [2 * math.log(2), 6 * math.log(2)]),
    ],
)
def test_views_of_different_size_worked_out_by_hand(kl_scale, continuous, discrete, reconstruction):
    ones, zeros = torch.ones(4, 1), torch.zeros(4, 1)
    alpha = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    output = MultiVAEOutput(
        view_latents=(ones, ones),
        consensus=alpha,
        logits=alpha,
        assignments=alpha,
        embedding=alpha,
        means=(ones, ones),
        log_vars=(zeros, zeros),
        continuous=(ones, ones),
        discrete=alpha,
    )
    views = (torch.rand(4, 2), torch.rand(4, 1, 2, 3))
    made = tuple(torch.full_like(view, 0.5) for view in views)
    terms = vae_terms(MultiVAEConfig(kl_scale=kl_scale), output, views, made, 0)
    assert [terms[f"continuous_{v}"].item() for v in range(2)] == pytest.approx(continuous)
    assert [terms[f"reconstruction_{v}"].item() for v in range(2)] == pytest.approx(reconstruction)
    assert terms["discrete"].item() == pytest.approx(discrete)


def test_capacities_follow_their_settings():
    config = MultiVAEConfig(continuous_capacity=4.0, capacity_steps=10)
    assert capacities(config, 2, 10) == pytest.approx((0.8, 0.8))
    assert capacities(config, 8, 10) == pytest.approx((3.2, math.log(10)))
    ported = dataclasses.replace(config, discrete_capacity="log_k")
    assert capacities(ported, 2, 10) == pytest.approx((0.8, math.log(10) / 5))
    assert capacities(ported, 99, 10) == pytest.approx((4.0, math.log(10)))


@pytest.mark.parametrize(("n_views", "n_clusters", "parameters"), [(2, 10, 1_523_636), (3, 3, 2_274_690)])
def test_published_sizes(n_views, n_clusters, parameters):
    network = build(MultiVAEConfig(), ((1, 28, 28),) * n_views, n_clusters)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network.head.centroids.shape == (n_clusters, n_clusters + 10 * n_views)


def _small(shapes=((1, 8, 8), (5,)), n_clusters: int = 3, **fields):
    torch.manual_seed(0)
    config = MultiVAEConfig(dense_widths=(8, 256), hidden_width=8, latent_width=4, **fields)
    views = tuple(torch.rand(10, *shape) for shape in shapes)
    return config, build(config, shapes, n_clusters), views


def test_image_and_vector_views_may_be_mixed():
    _, network, views = _small()
    output = network(views)
    assert [latent.shape for latent in output.view_latents] == [(10, 256), (10, 256)]
    assert [made.shape for made in network.reconstruct(output)] == [view.shape for view in views]
    with pytest.raises(ValueError, match="views must be 2 tensors"):
        network(views[:1])
    with pytest.raises(ValueError, match="at least two views"):
        build(MultiVAEConfig(), ((5,),), 3)
    with pytest.raises(ValueError, match=r"widths \[256, 128\]"):
        build(MultiVAEConfig(), ((1, 8, 8), (5,)), 3)


def test_training_pass_samples_from_the_generator_it_is_given():
    _, network, views = _small()
    network.eval()  # same statistics in every pass; only the latents are to differ
    network.training = True
    before = torch.get_rng_state()
    first, again, other = (network(views, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.embedding, again.embedding)
    assert not torch.equal(first.discrete, other.discrete)
    noise = network.draw(views, torch.Generator().manual_seed(1))
    for v in range(2):
        wanted = gaussian_sample(first.means[v], first.log_vars[v], noise.normal[v])
        assert torch.equal(first.continuous[v], wanted)
        assert not torch.equal(first.continuous[v], other.continuous[v])
    assert not torch.equal(noise.normal[0], noise.normal[1])
    assert torch.equal(first.consensus, other.consensus)
    assert not torch.equal(network(views).discrete, network(views).discrete)


def test_noise_has_the_promised_distribution():
    _, network, _ = _small()
    noise = network.draw((torch.empty(20_000, 5),) * 2, torch.Generator().manual_seed(3))
    for normal in noise.normal:
        assert normal.mean().abs() < 0.02
        assert (normal.std() - 1).abs() < 0.02
    assert noise.uniform.shape == (20_000, 3)
    assert noise.uniform.min() >= 0
    assert noise.uniform.max() < 1
    assert (noise.uniform.mean() - 0.5).abs() < 0.02


def test_inference_draws_nothing_and_embeds_code_and_means():
    _, network, views = _small()
    network.eval()
    before = torch.get_rng_state()
    output = network(views)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(output.discrete, straight_through_one_hot(output.consensus))
    assert torch.equal(output.embedding, torch.cat((output.discrete, *output.means), dim=1))
    assert torch.equal(output.logits, network.head(output.embedding))
    assert torch.allclose(output.assignments, output.logits.softmax(dim=1))


def test_attack_sees_the_discrete_code_in_inference_mode():
    _, network, views = _small()
    network.eval()
    moved = tuple(view.clone().requires_grad_() for view in views)
    # Centroids that differ in the code only: without the straight-through gradient the logits would have none.
    network.head.centroids.copy_(torch.eye(3, 3 + 2 * 4))
    network(moved).logits[:, 0].sum().backward()
    with_code = moved[0].grad.clone()
    output = network(moved)
    (without,) = torch.autograd.grad(
        network.head(torch.cat((output.discrete.detach(), *output.means), dim=1))[:, 0].sum(), moved[0]
    )
    assert not torch.allclose(with_code, without)


def test_terms_count_steps_from_one_and_draw_from_the_steps_stream():
    config, network, views = _small(capacity_steps=5)
    (stage,) = stages(config, 7)
    assert stage.epochs == 7
    network.train()
    (objective,) = stage.objectives

    def context(step: int) -> StepContext:
        return StepContext(epoch=0, step=step, generator=torch.Generator().manual_seed(4))

    terms = objective.terms(network, views, context(2))
    output = network(views, torch.Generator().manual_seed(4))
    made = network.reconstruct(output)
    wanted = vae_terms(config, output, views, made, 3)
    assert terms == wanted
    assert terms["continuous_0"] != vae_terms(config, output, views, made, 2)["continuous_0"]


def test_optimizer_uses_the_configured_learning_rate():
    config, network, _ = _small()
    optimizer = stages(config, 1)[0].objectives[0].optimizer(network)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4]
    assert MODELS["multi_vae"].stages is stages


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_width", 0),
        ("latent_width", float("nan")),
        ("capacity_steps", 0),
        ("gumbel_temperature", 0.0),
        ("gumbel_temperature", float("nan")),
        ("continuous_weight", -1.0),
        ("discrete_weight", float("inf")),
        ("continuous_capacity", float("nan")),
        ("kl_scale", "paper"),
        ("discrete_capacity", "linear"),
        ("learning_rate", 0.0),
    ],
)
def test_impossible_configuration_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        MultiVAEConfig(**{field: value})
