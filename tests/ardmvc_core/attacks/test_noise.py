"""Noise stays in its ball, has the distribution it names, and is fixed once drawn."""

import pytest
import torch

from ardmvc_core.attacks.noise import NoiseConfig, prepare_noise
from ardmvc_core.attacks.threat import Threat

VIEWS = (torch.full((50, 1, 8, 8), 0.5), torch.full((50, 3), 0.5))


def noise(kind, budget, views=VIEWS, seed=0):
    perturb = prepare_noise(NoiseConfig(kind=kind), None, views, torch.Generator().manual_seed(seed), budget=budget)
    return perturb(None, views)


def test_sign_noise_is_a_corner_of_the_ball():
    moved = noise("sign", Threat(eps=0.25))
    for view in moved:
        assert set(view.unique().tolist()) == {0.25, 0.75}
    assert (moved[0] > 0.5).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_uniform_noise_fills_the_ball():
    values = noise("uniform", Threat(eps=0.2))[0] - 0.5
    assert values.abs().max() <= 0.2 + 1e-6
    assert values.mean().item() == pytest.approx(0, abs=0.01)
    assert values.std().item() == pytest.approx(0.2 / 3**0.5, abs=0.01)  # of a uniform distribution on ±0.2


def test_noise_in_l2_lies_on_the_surface_or_fills_the_ball():
    views = (torch.full((4000, 2), 0.5),)
    budget = Threat(norm="l2", eps=0.4)
    lengths = {kind: (noise(kind, budget, views)[0] - views[0]).norm(dim=1) for kind in ("sign", "uniform")}
    assert torch.allclose(lengths["sign"], torch.full((4000,), 0.4))
    assert lengths["uniform"].max() <= 0.4 + 1e-6
    # A disc of half the radius has a quarter of the area: 4000 draws, ± 0.007.
    assert (lengths["uniform"] < 0.2).float().mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("kind", ["sign", "uniform"])
def test_noise_respects_bounds_and_views(kind):
    views = (torch.zeros(20, 4), torch.ones(20, 4), torch.full((20, 4), 0.5))
    moved = noise(kind, Threat(eps=(0.3, 0.3, 0.1), attacked_views=(0, 1)), views)
    assert moved[0].min() == 0
    assert moved[1].max() == 1
    assert torch.equal(moved[2], views[2])


def test_a_seed_fixes_the_draw():
    budget = Threat(eps=0.1)
    assert torch.equal(noise("uniform", budget)[0], noise("uniform", budget)[0])
    assert not torch.equal(noise("uniform", budget)[0], noise("uniform", budget, seed=1)[0])


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of uniform, sign"):
        NoiseConfig(kind="gauss")
