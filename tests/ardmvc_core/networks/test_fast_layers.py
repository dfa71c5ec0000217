"""The two layers against torch's own, in values, gradients and running statistics."""

import pytest
import torch
from torch import nn

from ardmvc_core.networks.fast_layers import BatchNorm2d, PatchConv2d


def _pair(channels: int, padding: int, dtype: torch.dtype):
    torch.manual_seed(0)
    ours = PatchConv2d(channels, 5, kernel_size=3, padding=padding).to(dtype)
    theirs = nn.Conv2d(channels, 5, kernel_size=3, padding=padding).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", [0, 1])
def test_convolution_is_torchs(channels, padding):
    ours, theirs = _pair(channels, padding, torch.float64)
    images = torch.rand(4, channels, 7, 9, dtype=torch.float64)
    results = []
    for layer in (ours, theirs):
        x = images.clone().requires_grad_()
        out = layer(x)
        weights = torch.arange(out.numel(), dtype=torch.float64).view(out.shape).sin()
        gradients = torch.autograd.grad((out * weights).sum(), [x, layer.weight, layer.bias])
        results.append([out, *gradients])
    for got, want in zip(*results, strict=True):
        assert got.shape == want.shape
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)
    assert results[0][0].is_contiguous(memory_format=torch.channels_last)


def test_convolution_can_be_rectified_in_place_and_frozen():
    ours, theirs = _pair(1, 0, torch.float64)
    ours.requires_grad_(False)
    x = torch.rand(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(ours(x).relu_().square().sum(), x)
    (want,) = torch.autograd.grad(theirs(x).relu().square().sum(), x)
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_convolution_in_bfloat16_has_float32_gradients():
    ours, theirs = _pair(1, 1, torch.float32)
    x = torch.rand(8, 1, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ours(x)
    assert out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out.float().square().sum(), [x, ours.weight, ours.bias])
    wanted = torch.autograd.grad(theirs(x).square().sum(), [x, theirs.weight, theirs.bias])
    for got, want in zip(gradients, wanted, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() <= 0.02 * want.norm()


def _norms():
    torch.manual_seed(1)
    ours, theirs = BatchNorm2d(6), nn.BatchNorm2d(6, dtype=torch.float64)
    with torch.no_grad():
        ours.weight.uniform_(-1, 2)
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def _channels_last(images: torch.Tensor) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("training", [True, False])
def test_normalisation_is_torchs_in_double_precision(layout, training):
    ours, theirs = _norms()
    ours.train(training)
    theirs.train(training)
    images = torch.rand(5, 6, 4, 3) * 3 + 2
    if layout == "last":
        images = _channels_last(images)
    for _ in range(2):
        x, exact = images.clone().requires_grad_(), images.double().requires_grad_()
        got, want = ours(x), theirs(exact)
        weights = torch.arange(got.numel()).view(got.shape).sin()
        gradients = torch.autograd.grad((got * weights).sum(), [x, ours.weight, ours.bias])
        wanted = torch.autograd.grad((want * weights.double()).sum(), [exact, theirs.weight, theirs.bias])
        assert torch.allclose(got.double(), want, atol=1e-5)
        for mine, right in zip(gradients, wanted, strict=True):
            assert torch.allclose(mine.double(), right, atol=1e-4)
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name].to(value.dtype), value, rtol=1e-6, atol=1e-6), name


def test_statistics_of_many_values_are_right_to_rounding():
    ours, _ = _norms()
    images = _channels_last(torch.rand(64, 6, 24, 24) * 3 + 1)
    ours.momentum = 1.0
    ours(images)
    exact = images.double()
    assert (ours.running_mean - exact.mean(dim=(0, 2, 3))).abs().max() <= 2e-6
    assert (ours.running_var - exact.var(dim=(0, 2, 3))).abs().max() <= 2e-6


def test_normalisation_without_tracking_changes_no_buffer():
    ours, _ = _norms()
    ours.track_running_stats = False
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours(_channels_last(torch.rand(5, 6, 4, 3)))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_single_value_per_channel_is_refused_as_torch_does():
    ours, _ = _norms()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(torch.rand(1, 6, 1, 1))
