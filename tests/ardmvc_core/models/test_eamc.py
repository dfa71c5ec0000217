"""EAMC against the published numbers: network, both objectives, both optimizers, and where its attention comes from."""

import copy

import numpy as np
import pytest
import torch

from ardmvc_core.losses.ddc import kernel_width, squared_distances
from ardmvc_core.models import MODELS
from ardmvc_core.models.eamc import EAMCConfig, discriminator_terms, encoder_terms, stages
from ardmvc_core.training import Trainer, calibrate
from ardmvc_core.types import StepContext

VARIANTS = ["dense", "dense3", "cnn"]
TERMS = {"eamcattention": "attention", "eamcgenerator": "generator", "eamcdiscriminator": "discriminator"}
STEP = StepContext(epoch=0, step=0, generator=torch.Generator())


class Published:
    """One variant of the golden file: the network with its stored weights, and what it is compared with."""

    def __init__(self, numbers, variant: str, dtype: torch.dtype = torch.float64) -> None:
        self.numbers, self.variant = numbers, variant
        stored = self.below("state")
        self.views = tuple(torch.from_numpy(self[f"view{v}"]).to(dtype) for v in range(int(self["n_views"])))
        widths = {} if variant == "cnn" else {"dense_widths": self._widths(stored)}
        self.config = EAMCConfig(attention="batch", **widths)
        shapes = tuple(tuple(view.shape[1:]) for view in self.views)
        self.network = MODELS["eamc"].build(self.config, shapes, int(self["n_clusters"]))
        state = {name: torch.from_numpy(value) for name, value in stored.items()}
        self.network.load_state_dict(state | {"mean_attention": self.network.mean_attention})
        self.network.to(dtype)
        self.sensitivity = float(self["rounding_sensitivity"]) if variant == "cnn" else 0.0

    def __getitem__(self, name: str) -> np.ndarray:
        return self.numbers[f"{self.variant}/{name}"]

    @staticmethod
    def _widths(stored) -> tuple[int, int]:
        return len(stored["encoders.0.layers.0.bias"]), len(stored["encoders.0.layers.3.bias"])

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays below a prefix, by the names of this project."""
        start = f"{self.variant}/{prefix}/"
        return {_our_name(key.removeprefix(start)): self.numbers[key] for key in self.numbers if key.startswith(start)}

    def losses(self, mode: str) -> dict[str, float]:
        names = [str(name).lower().replace("ddc2flipped", "ddc2_flipped") for name in self[f"{mode}/loss_names"]]
        return {TERMS.get(n, n): float(v) for n, v in zip(names, self[f"{mode}/loss_values"], strict=True)}

    def terms(self, output):
        return encoder_terms(self.config, self.network, output) | discriminator_terms(self.network, output.view_latents)

    def check_gradients(self, prefix: str, tolerance: float, only: str = "") -> None:
        """Summaries and whole gradients where stored; one that vanishes is only checked to vanish."""
        gradients = {name: parameter.grad for name, parameter in self.network.named_parameters()}
        assert {_our_name(name) for name in self["param_names"]} == set(gradients)
        full = self.below(f"{prefix}/grad")
        for index, name in enumerate(map(_our_name, self["param_names"])):
            if not name.startswith(only):
                continue
            gradient, length = gradients[name], float(self[f"{prefix}/grad_l2"][index])
            if not self[f"{prefix}/grad_present"][index]:
                assert gradient is None, name
                continue
            gradient = gradient.double()
            if length < 1e-9:
                assert gradient.norm() < (1e-9 if tolerance <= 1e-9 else 1e-2), name
                continue
            scale = length if tolerance > 1e-9 else 1 + length
            first = np.zeros(8)
            first[: min(8, gradient.numel())] = gradient.flatten()[:8].numpy()
            errors = [
                abs(gradient.norm().item() - length),
                np.linalg.norm(first - self[f"{prefix}/grad_first8"][index]),
                # A sum of n entries may be off by √n times what the norm may be off by.
                abs(gradient.sum().item() - self[f"{prefix}/grad_sum"][index]) / gradient.numel() ** 0.5,
                np.linalg.norm(gradient.numpy() - full[name]) if name in full else 0.0,
            ]
            assert max(errors) <= tolerance * scale, f"{name}: {errors} for a gradient of length {length}"


def _our_name(name: str) -> str:
    return str(name).replace("clustering_module.", "head.")


@pytest.fixture(params=VARIANTS)
def published(request, golden):
    return lambda dtype=torch.float64: Published(golden("models_eamc"), request.param, dtype)


def _check_output(case, mode: str, output, assert_close, tolerance: float, hidden_tolerance: float) -> None:
    stored = max(tolerance, 2e-7) if case.variant == "cnn" else tolerance
    for view, latent in enumerate(output.view_latents):
        assert_close(latent, case[f"{mode}/encoder_output{view}"], stored, f"latent {view}")
    assert_close(output.attention, case[f"{mode}/attention_weights"], tolerance, "attention")
    assert_close(output.fused, case[f"{mode}/fused"], stored, "fused")
    assert_close(output.consensus, case[f"{mode}/hidden"], hidden_tolerance, "hidden")
    assert_close(output.assignments, case[f"{mode}/output"], tolerance, "assignments")
    assert_close(output.logits.softmax(dim=1), case[f"{mode}/output"], tolerance, "logits")
    assert output.assignments.argmax(dim=1).tolist() == case[f"{mode}/assignment"].tolist()
    scores = case.network.discriminate(output.view_latents)
    for logits, name in zip(scores, ("disc_first_view", "disc_other_view"), strict=True):
        assert_close(logits.sigmoid()[:, :, None], case[f"{mode}/{name}"], tolerance, name)


def _check_losses(terms, wanted, assert_close, tolerance: float) -> None:
    assert set(terms) == set(wanted) - {"tot"}
    for name, value in terms.items():
        assert_close(value, wanted[name], tolerance, name)
    assert_close(torch.stack(list(terms.values())).sum(), wanted["tot"], tolerance, "total")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_double_precision_pass_is_the_published_one(published, assert_close, mode):
    case = published()
    case.network.train(mode == "train")
    output = case.network(case.views)
    _check_output(case, mode, output, assert_close, 1e-9, 1e-9)
    assert_close(kernel_width(squared_distances(output.consensus)).sqrt(), case[f"{mode}/sigma"], 1e-9)
    terms = case.terms(output)
    _check_losses(terms, case.losses(mode), assert_close, 1e-9)
    torch.stack(list(terms.values())).sum().backward()
    case.check_gradients(mode, 1e-9)


def test_single_precision_pass_is_the_published_one(published, assert_close):
    case = published(torch.float32)
    output = case.network.train()(case.views)
    _check_output(case, "train", output, assert_close, 2e-5, 1e-4)
    terms = case.terms(output)
    _check_losses(terms, case.losses("train"), assert_close, 2e-5)
    torch.stack(list(terms.values())).sum().backward()
    case.check_gradients("train", max(1e-4, 10 * case.sensitivity))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_each_phase_has_the_published_loss_and_gradients(published, assert_close, mode):
    case = published()
    case.network.train(mode == "train")
    for_encoders, for_discriminators = (objective.terms for objective in stages(case.config, 1)[0].objectives)
    loss = torch.stack(list(for_encoders(case.network, case.views, STEP).values())).sum()
    assert_close(loss, case[f"{mode}/phase_encoder/loss"], 1e-9)
    loss.backward()
    case.check_gradients(f"{mode}/phase_encoder", 1e-9)
    # As a function of the latents the second loss reaches the encoders too; there nothing reads that gradient.
    case.network.zero_grad()
    discriminator_terms(case.network, case.network.encode(case.views))["discriminator"].backward()
    case.check_gradients(f"{mode}/phase_discriminator", 1e-9)
    case.network.zero_grad()
    loss = for_discriminators(case.network, case.views, STEP)["discriminator"]
    assert_close(loss, case[f"{mode}/phase_discriminator/loss"], 1e-9)
    loss.backward()
    case.check_gradients(f"{mode}/phase_discriminator", 1e-9, only="discriminators.")
    assert all(p.grad is None for name, p in case.network.named_parameters() if not name.startswith("discriminators."))


def test_either_objective_moves_the_running_statistics_as_published(published, assert_close):
    first = published()
    wanted = first.below("train/buffers_after")
    assert wanted
    for objective in stages(first.config, 1)[0].objectives:
        case = published()
        case.network.train()
        objective.terms(case.network, case.views, STEP)
        state = case.network.state_dict()
        for name, value in wanted.items():
            assert_close(state[name], value, 1e-9, name)


@pytest.mark.parametrize(("n_views", "n_clusters", "count"), [(2, 10, 898_339), (3, 3, 1_472_980)])
def test_network_has_the_published_size(n_views, n_clusters, count):
    model = MODELS["eamc"].build(EAMCConfig(), ((1, 28, 28),) * n_views, n_clusters)
    assert sum(p.numel() for p in model.parameters()) == count


def test_optimizers_share_the_parameters_with_the_published_rates():
    config = EAMCConfig()
    model = MODELS["eamc"].build(config, ((3,), (3,), (3,)), 2)
    first, second = (objective.optimizer(model) for objective in stages(config, 1)[0].objectives)
    rate_of = {}
    for optimizer, betas in ((first, (0.95, 0.999)), (second, (0.5, 0.999))):
        for group in optimizer.param_groups:
            assert group["betas"] == betas
            rate_of |= {id(parameter): (betas[0], group["lr"]) for parameter in group["params"]}
    wanted = {"encoders": (0.95, 1e-5), "head": (0.95, 1e-5), "attention": (0.95, 1e-4), "discriminators": (0.5, 1e-3)}
    for name, parameter in model.named_parameters():
        assert rate_of[id(parameter)] == wanted[name.split(".")[0]], name


def _tiny(**fields):
    torch.manual_seed(0)
    config = EAMCConfig(dense_widths=(6, 5), **fields)
    views = tuple(torch.rand(8, 3, generator=torch.Generator().manual_seed(v)) for v in range(3))
    return config, MODELS["eamc"].build(config, ((3,), (3,), (3,)), 2), views


def test_discriminators_move_after_the_encoders_and_judge_the_moved_ones():
    config, model, views = _tiny(learning_rate=0.05)
    before = copy.deepcopy(model)
    losses = Trainer(model, stages(config, 1), views, batch_size=8, seed=0).run_epoch()
    # The batch norms have seen two passes; what the discriminators were asked is what they say, untrained, about the
    # encoders after their step.
    counts = [value.item() for name, value in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [2] * 4
    moved, unmoved = (encoders.train()(views).view_latents for encoders in (model, before))
    judged, too_early = (discriminator_terms(before, latents)["discriminator"].item() for latents in (moved, unmoved))
    assert losses["discriminator"] == pytest.approx(judged, rel=1e-5)
    assert losses["discriminator"] != pytest.approx(too_early, rel=1e-4)


def test_first_step_of_every_part_is_as_long_as_its_learning_rate():
    # Adam's first step is rate · g / (|g| + 1e-8): the rate itself, wherever the gradient is not tiny.
    rates = {"encoders": 0.004, "head": 0.004, "attention": 0.002, "discriminators": 0.001}
    config, model, views = _tiny(
        learning_rate=rates["encoders"],
        attention_learning_rate=rates["attention"],
        discriminator_learning_rate=rates["discriminators"],
    )
    before = copy.deepcopy(model.state_dict())
    Trainer(model, stages(config, 1), views, batch_size=8, seed=0).run_epoch()
    for part, rate in rates.items():
        steps = [(p - before[n]).abs().max() for n, p in model.named_parameters() if n.startswith(f"{part}.")]
        assert max(steps).item() == pytest.approx(rate, rel=1e-3), part


def test_the_first_view_is_not_drawn_to_the_others():
    config, model, views = _tiny()
    encoder_terms(config, model, model(views))["generator"].backward()
    reached = [any(p.grad is not None and p.grad.any() for p in encoder.parameters()) for encoder in model.encoders]
    assert reached == [False, True, True]


def test_weights_scale_their_own_term():
    config, model, views = _tiny(attention_weight=1.0, generator_weight=1.0)
    output = model(views)
    one = encoder_terms(config, model, output)
    other = encoder_terms(EAMCConfig(attention_weight=0.25, generator_weight=3.0), model, output)
    factors = {name: other[name].item() / one[name].item() for name in one}
    assert factors == pytest.approx({"ddc1": 1, "ddc2_flipped": 1, "ddc3": 1, "attention": 0.25, "generator": 3})


def _planted(attention: str):
    """Views of one number each, which the encoders pass through; a first view of 1 gets scores (1, 0), of 0 (0, 1).

    With τ = 1 the weights of such samples are softmax((1, 0)) and softmax((0, 1)). The head takes a fused value above
    0.8 for cluster 0 and one below for cluster 1.
    """
    config = EAMCConfig(dense_widths=(1, 1), attention=attention, attention_temperature=1.0)
    model = MODELS["eamc"].build(config, ((1,), (1,)), 2).eval()
    with torch.no_grad():
        for module in (*model.encoders, model.attention, model.head):
            for parameter in module.parameters():
                parameter.zero_()
        for encoder in model.encoders:
            for layer in (0, 1, 3):
                encoder.layers[layer].weight.fill_(1)
        model.attention.mlp.layers[0].weight[0, 0] = 1
        model.attention.mlp.layers[1].weight[0, 0] = 1
        model.attention.output_layer.weight[:, 0] = torch.tensor([100.0, -100.0])
        model.attention.output_layer.bias.copy_(torch.tensor([-50.0, 50.0]))
        model.head.hidden[0].weight[0, 0] = 1
        model.head.hidden[2].weight.fill_(1)
        model.head.output[0].weight[:, 0] = torch.tensor([100.0, -100.0])
        model.head.output[0].bias.copy_(torch.tensor([-80.0, 80.0]))
    return model


STRONG = torch.tensor([1.0, 0.0]).softmax(dim=0)
ONE, OTHER = (torch.tensor([[1.0]]), torch.tensor([[0.5]])), (torch.tensor([[0.0]]), torch.tensor([[0.5]]))


def _beside(*samples):
    return tuple(torch.cat(rows) for rows in zip(*samples, strict=True))


def test_attention_of_the_batch_couples_samples():
    model = _planted("batch")
    alone, beside = model(ONE), model(_beside(ONE, OTHER))
    # The encoders' batch norm divides by √(1 + 1e-5).
    assert alone.attention.tolist() == pytest.approx(STRONG.tolist(), rel=1e-4)
    assert beside.attention.tolist() == pytest.approx([0.5, 0.5])
    assert alone.fused.item() == pytest.approx(STRONG[0].item() + 0.5 * STRONG[1].item(), rel=1e-4)
    assert beside.fused[0].item() == pytest.approx(0.75, rel=1e-4)
    # The same sample, another cluster.
    assert alone.assignments[0].argmax() == 0
    assert beside.assignments[0].argmax() == 1


def test_frozen_attention_gives_a_sample_its_own_assignment():
    model = _planted("frozen")
    assert model(ONE).attention.tolist() == [0.5, 0.5]  # until it is calibrated
    calibrate(MODELS["eamc"], model, _beside(ONE, ONE, ONE, OTHER), seed=0)
    alone, beside = model(ONE), model(_beside(ONE, OTHER, OTHER))
    assert alone.attention.tolist() == beside.attention.tolist()
    assert alone.attention[0].item() == pytest.approx(0.5 + (STRONG[0].item() - 0.5) / 2, rel=1e-4)
    assert alone.fused.item() == pytest.approx(beside.fused[0].item())
    assert torch.allclose(alone.assignments[0], beside.assignments[0], atol=1e-6)
    assert 0.5 < alone.assignments[0, 0] < 0.9  # no saturated softmax that would be equal anyway
    # In training it is the batch that counts, whatever was frozen.
    assert model.train()(_beside(ONE, OTHER)).attention.tolist() != alone.attention.tolist()


def test_calibration_is_the_mean_over_samples_and_not_over_batches():
    model = _planted("frozen").train()
    samples = 300  # does not divide into the batches that calibration makes; the last ones are all of the other kind
    first = (torch.arange(samples)[:, None] < samples // 3 * 2).float()
    calibrate(MODELS["eamc"], model, (first, torch.zeros(samples, 1)), seed=0)
    wanted = 2 / 3 * STRONG + 1 / 3 * STRONG.flip(0)
    assert model.mean_attention.tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
    assert model.training  # the mode it was in
    assert "mean_attention" in model.state_dict()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("attention_learning_rate", -1e-4),
        ("discriminator_learning_rate", float("nan")),
        ("attention_weight", -1.0),
        ("generator_weight", float("inf")),
        ("attention_temperature", 0.0),
        ("attention", "sample"),
        ("encoder", "mlp"),
    ],
)
def test_impossible_configuration_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        EAMCConfig(**{field: value})


def test_a_wrong_number_of_views_is_refused():
    _, model, views = _tiny()
    with pytest.raises(ValueError, match="views must be 3 tensors"):
        model(views[:2])
