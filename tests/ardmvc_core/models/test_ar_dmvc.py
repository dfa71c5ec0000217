"""AR-DMVC(-AM): one whole training step against the published numbers, and what its switches do."""

import dataclasses

import numpy as np
import pytest
import torch

from ardmvc_core.attacks.searches.pgd import frozen, random_start
from ardmvc_core.models import MODELS
from ardmvc_core.models.ar_dmvc import (
    ARDMVCAMConfig,
    ARDMVCConfig,
    adversarial_terms,
    attack_in_training,
    inner_objective,
)
from ardmvc_core.training import Trainer, calibrate
from ardmvc_core.types import StepContext

VARIANTS = ["dense", "dense3", "cnn"]


def _published_config(numbers) -> ARDMVCAMConfig:
    return ARDMVCAMConfig(
        adversarial_weight=float(numbers["para_ad"]),
        mitigator_weight=float(numbers["para_kl"]),
        train_eps=float(numbers["eps"]),
        train_steps=int(numbers["iters"]),
        train_step_ratio=float(numbers["alpha"] / numbers["eps"]),
        inner_pairs="first",
        inner_updates_statistics=True,
        kl_direction="code",
        kl_smoothing=float(numbers["kl_offset"]),
        learning_rate=float(numbers["learning_rate"]),
    )


def _start(case, config):
    draws = (torch.from_numpy(case[f"uniform{v}"]).to(x.dtype) for v, x in enumerate(case.views))
    return tuple(x + (u * 2 * config.train_eps - config.train_eps) for x, u in zip(case.views, draws, strict=True))


def _contrast_weight(case, config) -> float:
    """From our inner objective (per anchor, mean over pairs) to the published one (weighted term of pair 0, 1)."""
    share = case.network.fusion.weights.detach().softmax(dim=0).min().item()
    pairs = len(case.views) * (len(case.views) - 1) / 2
    return 2 * config.contrastive_weight * share / pairs


def _published_attack(case, precision: str, dtype: torch.dtype):
    return tuple(torch.from_numpy(case[f"{precision}/adversarial_view{v}"]).to(dtype) for v in range(len(case.views)))


def _check_step(case, config, assert_close, moved, stored: str, loss_tolerance: float, gradient_tolerance: float):
    """Clean pass, attacked pass, losses, gradients and one Adam step."""
    before = {name: p.detach().clone() for name, p in case.network.named_parameters()}
    clean, attacked = case.network(case.views), case.network(moved)
    assert_close(clean.assignments, case[f"{stored}/output_original"], loss_tolerance)
    assert_close(attacked.assignments, case[f"{stored}/output_adversarial"], loss_tolerance)
    terms = adversarial_terms(config, case.network, clean, attacked)
    for kind, prefix, weight in (("original", "", 1.0), ("adversarial", "attacked_", config.adversarial_weight)):
        for name, wanted in case.losses(f"{stored}/{kind}_loss").items():
            if name != "tot":
                assert_close(terms[prefix + name] / weight, wanted, loss_tolerance, name)
    assert_close(terms["mitigator"] / config.mitigator_weight, case[f"{stored}/loss_kl"], loss_tolerance)
    total = torch.stack(list(terms.values())).sum()
    assert_close(total, case[f"{stored}/loss_total"], loss_tolerance)
    total.backward()
    case.check_gradients(stored, gradient_tolerance)
    MODELS["ar_dmvc_am"].stages(config, 1)[0].objectives[0].optimizer(case.network).step()
    return {name: (p.detach() - before[name]).double() for name, p in case.network.named_parameters()}


def _check_changes(case, assert_close, changes, stored: str, tolerance: float) -> None:
    # Adam's first step is lr · sign(gradient), so where the gradient is rounding only, the change is arbitrary. That
    # is whole tensors in double precision; in single precision also entries (a unit that is active in every sample).
    full = case.named("f64/grad") if stored == "f32" else {}
    for index, name in enumerate(case.parameter_names):
        if float(case["f64/grad_l2"][index]) < 1e-9:
            continue
        defined = np.abs(full[name].flatten()) >= 1e-5 if full else np.ones(changes[name].numel(), bool)
        first = changes[name].flatten()[:8].numpy()
        wanted = case[f"{stored}/param_change_first8"][index][: len(first)]
        assert_close(first[defined[:8]], wanted[defined[:8]], tolerance, f"{name} change")
        if defined.all():
            assert_close(
                changes[name].norm(), case[f"{stored}/param_change_l2"][index], tolerance, f"{name} change norm"
            )


def _check_buffers(case, assert_close, prefix: str, tolerance: float) -> None:
    wanted = case.named(prefix)
    assert wanted
    state = case.network.state_dict()
    for name, value in wanted.items():
        assert_close(state[name], value, tolerance, name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_step_in_double_precision_is_the_published_one(golden_case, assert_close, variant):
    case = golden_case("ardmvc_step", variant)
    case.network.train()
    config = _published_config(case.numbers)
    moved = attack_in_training(config, case.network, case.views, _start(case, config))
    for view, (got, wanted) in enumerate(zip(moved, _published_attack(case, "f64", torch.float64), strict=True)):
        share = (got - wanted).abs().le(1e-9).double().mean().item()
        assert share >= (0.99 if variant == "cnn" else 1.0), f"view {view}: {share:.4f} of the entries agree"
    _check_buffers(case, assert_close, "f64/buffers_after_pgd", 1e-9)
    moved = _published_attack(case, "f64", torch.float64)
    changes = _check_step(case, config, assert_close, moved, "f64", 1e-9, 1e-9)
    _check_buffers(case, assert_close, "f64/buffers_after_step", 1e-9)
    _check_changes(case, assert_close, changes, "f64", 1e-7 if variant == "cnn" else 1e-9)
    for name, wanted in case.named("f64/param_after").items():
        if float(case["f64/grad_l2"][case.parameter_names.index(name)]) >= 1e-9:
            assert_close(case.network.state_dict()[name], wanted, 1e-9, name)


@pytest.mark.parametrize("variant", ["dense", "dense3"])
def test_every_iteration_of_the_attack_is_the_published_one(golden_case, assert_close, variant):
    case = golden_case("ardmvc_step", variant)
    case.network.train()
    config = _published_config(case.numbers)
    weight = _contrast_weight(case, config)
    objective = inner_objective(config, case.network, None)
    for step, loss in enumerate(case["f64/pgd_contrast_losses"]):
        deltas = torch.from_numpy(case["f64/pgd_deltas"][step])
        views = tuple((x + d).requires_grad_() for x, d in zip(case.views, deltas, strict=True))
        with frozen(case.network):
            value = objective(views)
        assert_close(weight * value, loss, 1e-9, f"loss of iteration {step}")
        gradients = torch.autograd.grad(value, views, allow_unused=True)
        for view, gradient in enumerate(gradients):
            found = torch.zeros_like(views[view]) if gradient is None else weight * gradient
            assert_close(found, case["f64/pgd_gradients"][step, view], 1e-9, f"iteration {step}, view {view}")


@pytest.mark.parametrize("variant", ["dense", "dense3"])
def test_dense_step_in_single_precision_is_the_published_one(golden_case, assert_close, variant):
    case = golden_case("ardmvc_step", variant, torch.float32)
    case.network.train()
    config = _published_config(case.numbers)
    moved = attack_in_training(config, case.network, case.views, _start(case, config))
    for got, wanted in zip(moved, _published_attack(case, "f32", torch.float32), strict=True):
        assert_close(got, wanted, 1e-5)
    _check_buffers(case, assert_close, "f32/buffers_after_pgd", 1e-5)
    changes = _check_step(case, config, assert_close, moved, "f32", 1e-5, 1e-4)
    _check_buffers(case, assert_close, "f32/buffers_after_step", 1e-5)
    _check_changes(case, assert_close, changes, "f32", 1e-5)


def test_convolutional_step_in_single_precision_agrees_as_far_as_it_is_defined(golden_case, assert_close):
    case = golden_case("ardmvc_step", "cnn", torch.float32)
    case.network.train()
    config = _published_config(case.numbers)
    weight = _contrast_weight(case, config)
    start = _start(case, config)
    views = tuple(x.clone().requires_grad_() for x in start)
    value = inner_objective(config, case.network, None)(views)
    assert_close(weight * value, case["f64/pgd_contrast_losses"][0], 1e-6)
    for got, wanted in zip(torch.autograd.grad(value, views), case["f64/pgd_gradient_first"], strict=True):
        assert_close(weight * got, wanted, 1e-6)

    one_step = dataclasses.replace(config, train_steps=1)
    moved = attack_in_training(one_step, case.network, case.views, start)
    for got, x, wanted in zip(moved, case.views, case["f64/pgd_delta_after_first"], strict=True):
        assert ((got - x - torch.from_numpy(wanted)).abs() <= 1e-6).double().mean() >= 0.99

    sensitivity = max(1e-4, 10 * float(case["rounding_sensitivity"]))
    case = golden_case("ardmvc_step", "cnn", torch.float32)
    case.network.train()
    almost = dataclasses.replace(config, train_steps=config.train_steps - 1)
    last_loss = inner_objective(config, case.network, None)(attack_in_training(almost, case.network, case.views, start))
    assert weight * last_loss.item() == pytest.approx(case["f64/pgd_contrast_losses"][-1], rel=0.01)
    _check_step(case, config, assert_close, _published_attack(case, "f64", torch.float32), "f64", 2e-5, sensitivity)


CONFIGS = [
    ARDMVCConfig(dense_widths=(6, 4), train_steps=2),
    ARDMVCAMConfig(dense_widths=(6, 4), train_steps=2),
    ARDMVCAMConfig(dense_widths=(6, 4), train_steps=2, inner_objective="assignment", kl_stop_gradient=True),
    ARDMVCAMConfig(dense_widths=(6, 4), train_steps=2, inner_objective="both", inner_updates_statistics=True),
]


def _tiny(config, n_views: int = 2):
    torch.manual_seed(1)
    model = MODELS[config.name].build(config, ((3,),) * n_views, 3).train()
    return model, tuple(torch.rand(8, 3) for _ in range(n_views))


def _terms(config, model, views, seed: int = 5):
    step = StepContext(epoch=0, step=0, generator=torch.Generator().manual_seed(seed))
    return MODELS[config.name].stages(config, 1)[0].objectives[0].terms(model, views, step)


@pytest.mark.parametrize("config", CONFIGS)
def test_step_is_attack_clean_pass_and_attacked_pass(config):
    model, views = _tiny(config)
    terms = _terms(config, model, views)
    start = random_start(views, config.threat(), torch.Generator().manual_seed(5))
    moved = attack_in_training(config, model, views, start, model(views).assignments.detach())
    wanted = adversarial_terms(config, model, model(views), model(moved))
    assert {name: value.item() for name, value in terms.items()} == {k: v.item() for k, v in wanted.items()}
    # A clean pass made before the attack must still reach every parameter, which the attack froze in between.
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), parameters)
    expected = torch.autograd.grad(torch.stack(list(wanted.values())).sum(), parameters)
    assert all(torch.equal(got, want) for got, want in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("config", CONFIGS)
def test_attack_leaves_parameters_gradients_and_statistics_alone(config):
    config = dataclasses.replace(config, inner_updates_statistics=False)
    model, views = _tiny(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved = attack_in_training(config, model, views, views, model(views).assignments.detach())
    once = model.state_dict()
    assert torch.equal(once["head.hidden.2.num_batches_tracked"], before["head.hidden.2.num_batches_tracked"] + 1)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for x, m in zip(views, moved, strict=True):
        assert m.min() >= 0
        assert m.max() <= 1
        assert 0 < (m - x).abs().max() <= config.train_eps + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_view_is_attacked_within_its_own_radius(norm):
    config = ARDMVCConfig(dense_widths=(6, 4), train_steps=10, train_step_ratio=0.5)
    config = dataclasses.replace(config, train_norm=norm, train_eps=(0.1, 0.3))
    model, views = _tiny(config)
    trainer = Trainer(model, MODELS["ar_dmvc"].stages(config, 1), views, batch_size=8, seed=0)
    trainer.run_epoch()
    moved = attack_in_training(config, model, views, views)
    changes = [moved_view - x for moved_view, x in zip(moved, views, strict=True)]
    if norm == "linf":
        assert "sample_distances" not in model.state_dict()
        sizes, wanted = [change.abs().max() for change in changes], [0.1, 0.3]
    else:
        # ε is a share of the median distance of all 28 pairs of the 8 training samples.
        medians = [np.median(torch.pdist(x).numpy()) for x in views]
        assert model.sample_distances.tolist() == pytest.approx(medians, rel=1e-5)
        sizes = [change.norm(dim=1).max() for change in changes]
        wanted = [0.1 * medians[0], 0.3 * medians[1]]
    assert [size.item() for size in sizes] == pytest.approx(wanted, rel=1e-4)


def test_the_radii_of_all_views_grow_by_one_factor():
    config = ARDMVCConfig(train_eps=(0.1, 0.4), train_eps_warmup=4)
    assert config.at_epoch(0).train_eps == pytest.approx((0.025, 0.1))
    assert config.at_epoch(2).train_eps == pytest.approx((0.075, 0.3))
    assert config.at_epoch(3) is config
    assert dataclasses.replace(config, train_eps=0.4).at_epoch(0).train_eps == pytest.approx(0.1)


@pytest.mark.parametrize("eps", [(), (0.1,), (0.1, 0.2, 0.3)])
def test_a_radius_for_each_of_other_views_is_refused(eps):
    with pytest.raises(ValueError, match=r"train_eps must be one number or one per view \(2\), got \("):
        _tiny(ARDMVCConfig(train_eps=eps))


def test_training_in_l2_goes_on_exactly():
    config = ARDMVCConfig(dense_widths=(6, 4), train_steps=2, train_norm="l2", train_eps=0.3)
    views = _tiny(config)[1]

    def trainer():
        return Trainer(_tiny(config)[0], MODELS["ar_dmvc"].stages(config, 4), views, batch_size=4, seed=3)

    whole, first, second = trainer(), trainer(), trainer()
    for _ in range(4):
        whole.run_epoch()
    for _ in range(2):
        first.run_epoch()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.run_epoch()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_published_switch_updates_the_statistics_in_every_iteration():
    config = ARDMVCConfig(dense_widths=(6, 4), train_steps=3, inner_updates_statistics=True)
    model, views = _tiny(config)
    attack_in_training(config, model, views, views)
    assert model.state_dict()["encoders.1.layers.1.num_batches_tracked"] == 3
    assert model.state_dict()["head.hidden.2.num_batches_tracked"] == 3


@pytest.mark.parametrize(("pairs", "attacked"), [("first", [True, True, False]), ("all", [True, True, True])])
def test_pairs_decide_which_views_are_attacked(pairs, attacked):
    config = ARDMVCConfig(dense_widths=(6, 4), train_steps=1, inner_pairs=pairs)
    model, views = _tiny(config, n_views=3)
    moved = attack_in_training(config, model, views, views)
    assert [not torch.equal(m, x) for m, x in zip(moved, views, strict=True)] == attacked


@pytest.mark.parametrize("config", CONFIGS)
def test_attack_raises_its_objective(config):
    config = dataclasses.replace(config, train_steps=10)
    model, views = _tiny(config)
    target = model(views).assignments.detach()
    objective = inner_objective(config, model, target)
    moved = attack_in_training(config, model, views, views, target)
    assert objective(moved).item() > objective(views).item()


def test_weights_of_zero_leave_parts_out():
    config = ARDMVCAMConfig(dense_widths=(6, 4), train_steps=1)
    model, views = _tiny(config)
    only_kl = _terms(dataclasses.replace(config, adversarial_weight=0.0), model, views)
    assert "mitigator" in only_kl
    assert not any(name.startswith("attacked_") for name in only_kl)
    only_attacked = _terms(dataclasses.replace(config, mitigator_weight=0.0), model, views)
    assert "mitigator" not in only_attacked
    assert "attacked_ddc1" in only_attacked


def test_without_weights_nothing_is_drawn_and_nothing_attacked():
    config = ARDMVCAMConfig(dense_widths=(6, 4), adversarial_weight=0.0, mitigator_weight=0.0)
    model, views = _tiny(config)
    stream = torch.Generator().manual_seed(5)
    before = stream.get_state()
    step = StepContext(epoch=0, step=0, generator=stream)
    terms = MODELS["ar_dmvc_am"].stages(config, 1)[0].objectives[0].terms(model, views, step)
    assert set(terms) == {"ddc1", "ddc2", "ddc3", "contrast_0_1"}
    assert torch.equal(stream.get_state(), before)


def test_black_views_do_not_turn_into_nan():
    config = ARDMVCAMConfig(dense_widths=(6, 4), train_steps=2)
    model, views = _tiny(config)
    for encoder in model.encoders:  # a dead encoder: all latents are zero
        torch.nn.init.zeros_(encoder.layers[3].weight)
        torch.nn.init.constant_(encoder.layers[3].bias, -1.0)
    total = torch.stack(list(_terms(config, model, tuple(torch.zeros_like(x) for x in views)).values())).sum()
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("adversarial_weight", -1.0),
        ("adversarial_weight", float("nan")),
        ("train_eps", 0.0),
        ("train_eps", 1.5),
        ("train_eps", float("nan")),
        ("train_eps", (0.1, -0.2)),
        ("train_eps", (0.1, float("nan"))),
        ("train_norm", "l1"),
        ("train_steps", 0),
        ("train_step_ratio", 0.0),
        ("inner_objective", "nothing"),
        ("inner_pairs", "last"),
        ("mitigator_weight", -0.1),
        ("kl_direction", "both"),
        ("kl_smoothing", 0.0),
    ],
)
def test_impossible_configuration_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        ARDMVCAMConfig(**{field: value})


def test_calibration_mutes_what_the_training_views_leave_off():
    config = ARDMVCAMConfig(dense_widths=(6, 4))
    model, views = _tiny(config)
    method = MODELS["ar_dmvc_am"]
    with torch.no_grad():
        model.head.hidden[0].bias[[3, 8]] = -100
        calibrate(method, model, views, 0)
        fused = model.eval()(views).fused
        off = (model.head.hidden[0](fused) <= 0).all(dim=0)
    assert torch.equal(model.head.alive == 0, off)
    assert off[[3, 8]].all()
    assert not off.all()


def test_calibration_leaves_published_networks_alone():
    model, views = _tiny(ARDMVCAMConfig(dense_widths=(6, 4), mute_dead_units=False))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(MODELS["ar_dmvc_am"], model, views, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.head.alive is None
