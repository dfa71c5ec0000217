"""InfoDDC against the published numbers, its stages and its configuration."""

import math

import pytest
import torch

from ardmvc_core.losses.ddc import kernel_width, squared_distances
from ardmvc_core.models import MODELS
from ardmvc_core.models.infoddc import InfoDDCConfig, build, stages
from ardmvc_core.training import Trainer
from ardmvc_core.types import StepContext

VARIANTS = ["dense", "dense3", "cnn"]
STEP = StepContext(epoch=0, step=0, generator=torch.Generator())


@pytest.fixture
def infoddc_case(golden_case):
    """The stored variant, its weights in the network that `build` makes."""

    def load(variant: str, dtype: torch.dtype = torch.float64):
        case = golden_case("models_mimvc", variant, dtype)
        state = case.network.state_dict()
        widths = (8, 8) if variant == "cnn" else tuple(len(state[f"encoders.0.layers.{i}.bias"]) for i in (0, 3))
        config = InfoDDCConfig(encoder="cnn_small" if variant == "cnn" else "dense", dense_widths=widths)
        case.network = build(config, tuple(view.shape[1:] for view in case.views), int(case["n_clusters"])).to(dtype)
        case.network.load_state_dict(state)
        return case

    return load


def _wanted(case, prefix: str) -> dict[str, float]:
    names = [str(name) for name in case[f"{prefix}_names"]]
    ours = [f"mutual_information_{n[-2]}_{n[-1]}" if n.startswith("MIContrast/") else n.lower() for n in names]
    return dict(zip(ours, case[f"{prefix}_values"].tolist(), strict=True))


def _terms(case, stage: int, **config):
    run = stages(InfoDDCConfig(pretrain_epochs=1, **config), 1)[stage]
    return run.objectives[0].terms(case.network, case.views, STEP)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_double_precision_pass_is_the_published_one(infoddc_case, check_output, assert_close, variant, mode):
    case = infoddc_case(variant)
    case.network.train(mode == "train")
    output = case.network(case.views)
    check_output(case, mode, output, 1e-9, 1e-9)
    assert_close(kernel_width(squared_distances(output.consensus)).sqrt(), case[f"{mode}/sigma"], 1e-9)
    terms = _terms(case, 1, pairs="published")
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
def test_pretraining_has_the_published_losses(infoddc_case, assert_close, variant, mode):
    case = infoddc_case(variant)
    case.network.train(mode == "train")
    terms = _terms(case, 0, pairs="published")
    wanted = _wanted(case, f"{mode}/pretrain_loss")
    assert list(terms) == list(wanted)[:-1]
    for name, value in terms.items():
        assert_close(value, wanted[name], 1e-9, name)
    assert_close(torch.stack(list(terms.values())).sum(), wanted["tot"], 1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_by_default_a_view_is_not_paired_with_itself(infoddc_case, assert_close, variant):
    case = infoddc_case(variant)
    case.network.train()
    wanted = _wanted(case, "train/loss")
    terms = _terms(case, 1)
    assert list(terms) == [name for name in wanted if name != "tot" and not (name[-2] == "_" and name[-1] == name[-3])]
    for name, value in terms.items():
        assert_close(value, wanted[name], 1e-9, name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_precision_pass_is_the_published_one(infoddc_case, check_output, assert_close, variant):
    case = infoddc_case(variant, torch.float32)
    case.network.train()
    check_output(case, "train", case.network(case.views), 2e-5, 1e-4)
    terms = _terms(case, 1, pairs="published")
    for name, value in terms.items():
        assert_close(value, _wanted(case, "train/loss")[name], 2e-5, name)
    torch.stack(list(terms.values())).sum().backward()
    sensitivity = float(case["rounding_sensitivity"]) if variant == "cnn" else 0.0
    case.check_gradients("train", max(1e-4, 10 * sensitivity))


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_training_pass_moves_the_running_statistics_as_published(infoddc_case, assert_close, variant):
    case = infoddc_case(variant)
    case.network.train()
    case.network(case.views)
    state = case.network.state_dict()
    wanted = case.named("train/buffers_after")
    assert wanted
    for name, value in wanted.items():
        assert_close(state[name], value, 1e-9, name)


def test_weights_scale_the_information_of_the_main_training_only():
    torch.manual_seed(0)
    model = build(InfoDDCConfig(dense_widths=(4, 4)), ((3,), (3,)), 2).eval()
    views = (torch.rand(6, 3), torch.rand(6, 3))

    def terms(weight: float):
        config = InfoDDCConfig(mutual_information_weight=weight, pretrain_epochs=2)
        return [stage.objectives[0].terms(model, views, STEP) for stage in stages(config, 1)]

    (pretrain, one), (same, half) = terms(1.0), terms(0.5)
    assert set(pretrain) == {"mutual_information_0_1"}
    assert torch.equal(pretrain["mutual_information_0_1"], same["mutual_information_0_1"])
    assert torch.equal(one["ddc1"], half["ddc1"])
    assert one["mutual_information_0_1"].item() == pytest.approx(pretrain["mutual_information_0_1"].item())
    assert half["mutual_information_0_1"].item() == pytest.approx(one["mutual_information_0_1"].item() / 2)


def test_pretraining_comes_first_and_can_be_left_out():
    assert [(stage.name, stage.epochs) for stage in stages(InfoDDCConfig(), 3)] == [("train", 3)]
    with_pretraining = stages(InfoDDCConfig(pretrain_epochs=2), 3)
    assert [(stage.name, stage.epochs) for stage in with_pretraining] == [("pretrain", 2), ("train", 3)]


def test_pretraining_raises_the_information_between_the_views():
    torch.manual_seed(0)
    config = InfoDDCConfig(dense_widths=(16, 4), learning_rate=1e-2, entropy_weight=1.0, pretrain_epochs=40)
    shared = (torch.arange(40) % 2).float()[:, None]
    views = (torch.cat([shared, torch.rand(40, 2)], dim=1), torch.cat([torch.rand(40, 1), shared], dim=1))
    trainer = Trainer(MODELS["infoddc"].build(config, ((3,), (2,)), 3), stages(config, 1), views, batch_size=20, seed=1)
    losses = [trainer.run_epoch() for _ in range(40)]
    assert set(losses[0]) == {"mutual_information_0_1", "total"}
    # −I − H₁ − H₂ with H ≤ ln 4: what lies below −2 ln 4 is information.
    assert losses[0]["total"] > -2 * math.log(4) - 0.1
    assert losses[-1]["total"] < -2 * math.log(4) - 0.3
    assert trainer.stage_name == "train"
    assert "ddc1" in trainer.run_epoch()
    assert trainer.finished


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mutual_information_weight", -0.1),
        ("mutual_information_weight", float("nan")),
        ("mutual_information_weight", float("inf")),
        ("entropy_weight", -1.0),
        ("entropy_weight", float("nan")),
        ("entropy_weight", float("inf")),
        ("pairs", "self"),
        ("pretrain_epochs", -1),
        ("pretrain_epochs", float("nan")),
        ("learning_rate", 0.0),
    ],
)
def test_impossible_configuration_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        InfoDDCConfig(**{field: value})
