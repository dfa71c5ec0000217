"""Reconstruction error by hand, and what the three modes do to the views."""

import pytest
import torch

from ardmvc_core.losses.reconstruction import corrupted, mean_squared_error


def _stream(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _views():
    return torch.rand(40, 2, 9, 7, generator=_stream(1)) + 0.1, torch.rand(200, 60, generator=_stream(2)) + 0.1


def test_error_by_hand():
    decoded = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    loss = mean_squared_error(decoded, torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    assert loss.item() == pytest.approx((4 + 9 + 1) / 4)
    loss.backward()
    assert decoded.grad.flatten().tolist() == pytest.approx([0.0, 1.0, 1.5, 0.5])


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        mean_squared_error(torch.ones(4, 3), torch.ones(1, 3))


def test_ae_sees_the_clean_views():
    stream = _stream()
    before = stream.get_state()
    for seen, view in zip(corrupted(_views(), "ae", stream), _views(), strict=True):
        assert torch.equal(seen, view)
    assert torch.equal(stream.get_state(), before)


def test_dae_adds_standard_normal_noise():
    views = _views()
    noises = [seen - view for seen, view in zip(corrupted(views, "dae", _stream()), views, strict=True)]
    for noise in noises:  # 5 standard errors of mean and standard deviation
        assert abs(noise.mean().item()) < 5 / noise.numel() ** 0.5
        assert abs(noise.std().item() - 1) < 5 / (2 * noise.numel()) ** 0.5
    assert not torch.allclose(noises[0].flatten()[:100], noises[1].flatten()[:100])


def test_mae_zeroes_three_values_in_ten():
    views = _views()
    for seen, view in zip(corrupted(views, "mae", _stream()), views, strict=True):
        kept = seen != 0
        assert torch.equal(seen[kept], view[kept])
        share = 1 - kept.double().mean().item()
        assert abs(share - 0.3) < 5 * (0.21 / view.numel()) ** 0.5


@pytest.mark.parametrize("mode", ["dae", "mae"])
def test_only_the_given_stream_decides(mode):
    views = tuple(view.double() for view in _views())
    clean = tuple(view.clone() for view in views)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second, other = (corrupted(views, mode, _stream(seed)) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c, view, unchanged in zip(first, second, other, views, clean, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert a.dtype == torch.float64
        assert torch.equal(view, unchanged)


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be one of ae, dae, mae, got 'vae'"):
        corrupted(_views(), "vae", _stream())
