"""SiMVC against the published numbers, its network and its configuration."""

import pytest
import torch

from ardmvc_core.losses.ddc import kernel_width, squared_distances
from ardmvc_core.models import MODELS
from ardmvc_core.models.simvc import SiMVCConfig, clustering_terms

VARIANTS = ["dense", "dense3", "cnn"]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_double_precision_pass_is_the_published_one(golden_case, check_output, assert_close, variant, mode):
    case = golden_case("models_simvc", variant)
    case.network.train(mode == "train")
    output = case.network(case.views)
    check_output(case, mode, output, 1e-9, 1e-9)
    assert_close(kernel_width(squared_distances(output.consensus)).sqrt(), case[f"{mode}/sigma"], 1e-9)
    terms = clustering_terms(output)
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
    case = golden_case("models_simvc", variant, torch.float32)
    case.network.train()
    output = case.network(case.views)
    check_output(case, "train", output, 2e-5, 1e-4)
    terms = clustering_terms(output)
    for name, value in terms.items():
        assert_close(value, case.losses("train/loss")[name], 2e-5, name)
    torch.stack(list(terms.values())).sum().backward()
    sensitivity = float(case["rounding_sensitivity"]) if variant == "cnn" else 0.0
    case.check_gradients("train", max(1e-4, 10 * sensitivity))


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_training_pass_moves_the_running_statistics_as_published(golden_case, assert_close, variant):
    case = golden_case("models_simvc", variant)
    case.network.train()
    case.network(case.views)
    state = case.network.state_dict()
    wanted = case.named("train/buffers_after")
    assert wanted
    for name, value in wanted.items():
        assert_close(state[name], value, 1e-9, name)


@pytest.mark.parametrize(("n_views", "n_clusters", "count"), [(2, 10, 327_072), (3, 3, 438_046)])
def test_network_has_the_published_number_of_parameters(n_views, n_clusters, count):
    model = MODELS["simvc"].build(SiMVCConfig(encoder="cnn_small"), ((1, 28, 28),) * n_views, n_clusters)
    assert sum(p.numel() for p in model.parameters()) == count


def test_wrong_number_of_views_is_refused():
    model = MODELS["simvc"].build(SiMVCConfig(), ((3,), (3,)), 2)
    with pytest.raises(ValueError, match="views must be 2 tensors"):
        model((torch.rand(4, 3),))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("encoder", "resnet"),
        ("dense_widths", (0, 4)),
        ("dense_widths", (4,)),
    ],
)
def test_impossible_configuration_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        SiMVCConfig(**{field: value})
