"""CoMVC against the published numbers, and its configuration."""

import pytest
import torch

from ardmvc_core.losses.ddc import kernel_width, squared_distances
from ardmvc_core.models import MODELS
from ardmvc_core.models.comvc import CoMVCConfig, aligned_clustering_terms

VARIANTS = ["dense", "dense3", "cnn"]


def _run(case, mode: str):
    case.network.train(mode == "train")
    output = case.network(case.views)
    terms = aligned_clustering_terms(CoMVCConfig(), output, case.network.fusion.weights)
    return output, terms


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_double_precision_pass_is_the_published_one(golden_case, check_output, assert_close, variant, mode):
    case = golden_case("models_comvc", variant)
    output, terms = _run(case, mode)
    check_output(case, mode, output, 1e-9, 1e-9)
    assert_close(kernel_width(squared_distances(output.consensus)).sqrt(), case[f"{mode}/sigma"], 1e-9)
    wanted = case.losses(f"{mode}/loss")
    assert set(terms) == set(wanted) - {"tot"}
    for name, value in terms.items():
        assert_close(value, wanted[name], 1e-9, name)
    total = torch.stack(list(terms.values())).sum()
    assert_close(total, wanted["tot"], 1e-9)
    total.backward()
    case.check_gradients(mode, 1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_precision_pass_is_the_published_one(golden_case, check_output, assert_close, variant):
    case = golden_case("models_comvc", variant, torch.float32)
    output, terms = _run(case, "train")
    check_output(case, "train", output, 2e-5, 1e-4)
    for name, value in terms.items():
        assert_close(value, case.losses("train/loss")[name], 2e-5, name)
    torch.stack(list(terms.values())).sum().backward()
    sensitivity = float(case["rounding_sensitivity"]) if variant == "cnn" else 0.0
    case.check_gradients("train", max(1e-4, 10 * sensitivity))


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_training_pass_moves_the_running_statistics_as_published(golden_case, assert_close, variant):
    case = golden_case("models_comvc", variant)
    case.network.train()
    case.network(case.views)
    state = case.network.state_dict()
    wanted = case.named("train/buffers_after")
    assert wanted
    for name, value in wanted.items():
        assert_close(state[name], value, 1e-9, name)


def test_weights_scale_the_contrastive_terms_only():
    torch.manual_seed(0)
    model = MODELS["comvc"].build(CoMVCConfig(dense_widths=(4, 4)), ((3,), (3,)), 2)
    output = model((torch.rand(6, 3), torch.rand(6, 3)))
    one = aligned_clustering_terms(CoMVCConfig(contrastive_weight=1.0), output, model.fusion.weights)
    half = aligned_clustering_terms(CoMVCConfig(contrastive_weight=0.5), output, model.fusion.weights)
    assert torch.equal(one["ddc1"], half["ddc1"])
    assert half["contrast_0_1"].item() == pytest.approx(one["contrast_0_1"].item() / 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("contrastive_weight", -0.1),
        ("contrastive_weight", float("nan")),
        ("temperature", 0.0),
        ("temperature", float("inf")),
        ("learning_rate", 0.0),
    ],
)
def test_impossible_configuration_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        CoMVCConfig(**{field: value})
