"""AECoDDC against the published numbers, its stages and its configuration."""

import pytest
import torch

from ardmvc_core.losses.ddc import kernel_width, squared_distances
from ardmvc_core.models import MODELS
from ardmvc_core.models.aecoddc import AECoDDCConfig, build, stages
from ardmvc_core.training import Trainer
from ardmvc_core.types import StepContext

VARIANTS = ["dense", "dense3", "cnn"]
STEP = StepContext(epoch=0, step=0, generator=torch.Generator())


@pytest.fixture
def golden(golden):
    """The golden files with the decoders' weights under `<variant>/decoders/`: `golden_case`'s network has none."""

    def open_golden(name: str):
        numbers = golden(name)
        return {key.replace("/state/decoders.", "/decoders/"): numbers[key] for key in numbers}

    return open_golden


@pytest.fixture
def aecoddc_case(golden_case):
    """The stored variant, its weights in the network that `build` makes."""

    def load(variant: str, dtype: torch.dtype = torch.float64):
        case = golden_case("models_cae", variant, dtype)
        state = case.network.state_dict()
        state |= {f"decoders.{name}": torch.from_numpy(value) for name, value in case.named("decoders").items()}
        widths = (8, 8) if variant == "cnn" else tuple(len(state[f"encoders.0.layers.{i}.bias"]) for i in (0, 3))
        config = AECoDDCConfig(encoder="cnn_small" if variant == "cnn" else "dense", dense_widths=widths)
        case.network = build(config, tuple(view.shape[1:] for view in case.views), int(case["n_clusters"])).to(dtype)
        case.network.load_state_dict(state)
        return case

    return load


def _wanted(case, prefix: str) -> dict[str, float]:
    return {
        name.replace("mse/", "reconstruction_"): float(value)
        for name, value in zip(_our_names(case[f"{prefix}_names"]), case[f"{prefix}_values"], strict=True)
    }


def _our_names(names) -> list[str]:
    return [f"contrast_{n[-2]}_{n[-1]}" if str(n).startswith("Contrast/") else str(n).lower() for n in names]


def _terms(case, stage: int):
    return stages(AECoDDCConfig(), 1)[stage].objectives[0].terms(case.network, case.views, STEP)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_double_precision_pass_is_the_published_one(aecoddc_case, check_output, assert_close, variant, mode):
    case = aecoddc_case(variant)
    case.network.train(mode == "train")
    output = case.network(case.views)
    check_output(case, mode, output, 1e-9, 1e-9)
    assert_close(kernel_width(squared_distances(output.consensus)).sqrt(), case[f"{mode}/sigma"], 1e-9)
    for view, decoded in enumerate(case.network.reconstruct(output.view_latents)):
        tolerance = 2e-7 if variant == "cnn" else 1e-9
        assert_close(decoded, case[f"{mode}/reconstruction{view}"], tolerance, f"reconstruction {view}")
    terms = _terms(case, 1)
    wanted = _wanted(case, f"{mode}/loss")
    assert list(terms) == list(wanted)[:-1]
    for name, value in terms.items():
        assert_close(value, wanted[name], 1e-9, name)
    total = torch.stack(list(terms.values())).sum()
    assert_close(total, wanted["tot"], 1e-9)
    total.backward()
    case.check_gradients(mode, 1e-9)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_pretraining_has_the_published_losses(aecoddc_case, assert_close, variant, mode):
    case = aecoddc_case(variant)
    case.network.train(mode == "train")
    terms = _terms(case, 0)
    wanted = _wanted(case, f"{mode}/pretrain_loss")
    assert list(terms) == list(wanted)[:-1]
    for name, value in terms.items():
        assert_close(value, wanted[name], 1e-9, name)
    assert_close(torch.stack(list(terms.values())).sum(), wanted["tot"], 1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_precision_pass_is_the_published_one(aecoddc_case, check_output, assert_close, variant):
    case = aecoddc_case(variant, torch.float32)
    case.network.train()
    check_output(case, "train", case.network(case.views), 2e-5, 1e-4)
    terms = _terms(case, 1)
    for name, value in terms.items():
        assert_close(value, _wanted(case, "train/loss")[name], 2e-5, name)
    torch.stack(list(terms.values())).sum().backward()
    sensitivity = float(case["rounding_sensitivity"]) if variant == "cnn" else 0.0
    case.check_gradients("train", max(1e-4, 10 * sensitivity))


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_training_step_moves_the_running_statistics_as_published(aecoddc_case, assert_close, variant):
    case = aecoddc_case(variant)
    case.network.train()
    _terms(case, 1)
    state = case.network.state_dict()
    wanted = case.named("train/buffers_after")
    assert any(name.startswith("decoders.") for name in wanted)
    for name, value in wanted.items():
        assert_close(state[name], value, 1e-9, name)


def test_forward_does_not_decode():
    torch.manual_seed(0)
    model = build(AECoDDCConfig(), ((1, 8, 8), (1, 8, 8)), 2)
    views = (torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8))
    before = {name: value.clone() for name, value in model.decoders.state_dict().items()}
    output = model(views)
    after = model.decoders.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [decoded.shape for decoded in model.reconstruct(output.view_latents)] == [view.shape for view in views]


def test_weights_scale_their_own_terms_only():
    torch.manual_seed(0)
    model = build(AECoDDCConfig(dense_widths=(4, 4)), ((3,), (3,)), 2).eval()
    views = (torch.rand(6, 3), torch.rand(6, 3))

    def terms(**weights: float):
        return stages(AECoDDCConfig(**weights), 1)[-1].objectives[0].terms(model, views, STEP)

    one = terms(contrastive_weight=1.0)
    other = terms(contrastive_weight=0.5, reconstruction_weight=3.0)
    assert torch.equal(one["ddc1"], other["ddc1"])
    assert other["contrast_0_1"].item() == pytest.approx(one["contrast_0_1"].item() / 2)
    assert other["reconstruction_1"].item() == pytest.approx(3 * one["reconstruction_1"].item())
    decoded = model.reconstruct(model.encode(views))[1]
    assert one["reconstruction_1"].item() == pytest.approx(((decoded - views[1]) ** 2).sum().item() / 18)
    adaptive = terms(contrastive_weight=1.0, adaptive_weight=True)
    assert adaptive["contrast_0_1"].item() == pytest.approx(one["contrast_0_1"].item() / 2)


def test_pretraining_comes_first_and_can_be_left_out():
    both = stages(AECoDDCConfig(pretrain_epochs=2), 3)
    assert [(stage.name, stage.epochs) for stage in both] == [("pretrain", 2), ("train", 3)]
    assert [stage.name for stage in stages(AECoDDCConfig(pretrain_epochs=0), 3)] == ["train"]


def test_pretraining_moves_the_autoencoders_and_leaves_the_head():
    torch.manual_seed(0)
    config = AECoDDCConfig(dense_widths=(8, 4), learning_rate=1e-2, pretrain_epochs=20)
    model = MODELS["aecoddc"].build(config, ((4,), (4,)), 3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    shared = torch.rand(40, 4)
    trainer = Trainer(model, stages(config, 1), (shared, shared.flip(1)), batch_size=20, seed=1)
    losses = [trainer.run_epoch() for _ in range(20)]
    assert set(losses[0]) == {"contrast_0_1", "reconstruction_0", "reconstruction_1", "total"}
    assert losses[-1]["reconstruction_0"] < 0.5 * losses[0]["reconstruction_0"]
    unmoved = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    assert unmoved == {name for name in before if name.startswith(("head.", "fusion."))}
    assert "ddc1" in trainer.run_epoch()
    assert trainer.finished


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reconstruction_weight", -0.1),
        ("reconstruction_weight", float("nan")),
        ("reconstruction_weight", float("inf")),
        ("pretrain_epochs", -1),
        ("pretrain_epochs", float("nan")),
        ("contrastive_weight", -0.1),
        ("temperature", 0.0),
    ],
)
def test_impossible_configuration_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        AECoDDCConfig(**{field: value})
