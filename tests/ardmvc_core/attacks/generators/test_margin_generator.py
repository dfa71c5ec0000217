"""The generator on a linear margin: what it must learn is one sign per input value."""

import pytest
import torch
from planted_models import planted

from ardmvc_core.attacks.generators.margin_generator import MarginGeneratorConfig, fit_margin_generator
from ardmvc_core.attacks.objectives.clean_reference import clean_reference
from ardmvc_core.attacks.threat import Threat


def test_it_breaks_samples_that_it_was_not_fitted_on():
    # One view: each generator sees its own only, and must tell from it which way to push.
    model, views = planted(n=600, sizes=(8,))
    attacker, held_out = (tuple(view[part] for view in views) for part in (slice(0, 400), slice(400, 600)))
    distance = model.distance(held_out)
    eps = 2 * float(distance.median())
    budget = Threat(eps=eps, attacked_views=(0,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = fit_margin_generator(
        MarginGeneratorConfig(epochs=200), budget, model, attacker, torch.Generator().manual_seed(0)
    )
    moved = fitted(model, held_out)
    flips = model(moved).logits.argmax(1) != clean_reference(model, held_out, 256).clusters
    reachable = float((distance < eps).double().mean())
    assert float(flips.double().mean()) >= 0.8 * reachable
    assert not bool(flips[distance > eps * 1.001].any())
    assert all(float((a - b).abs().max()) <= eps + 1e-6 for a, b in zip(moved, held_out, strict=True))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert abs(fitted.flip_rate - reachable) < 0.2


def test_equal_streams_give_equal_generators_and_others_do_not():
    model, views = planted(n=60)
    budget, config = Threat(eps=0.1), MarginGeneratorConfig(epochs=2)
    first, again, other = (
        fit_margin_generator(config, budget, model, views, torch.Generator().manual_seed(seed))(model, views)
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_views_that_may_not_move_do_not():
    model, views = planted(n=40)
    budget = Threat(eps=0.1, attacked_views=(1,))
    fitted = fit_margin_generator(MarginGeneratorConfig(epochs=1), budget, model, views, torch.Generator())
    assert torch.equal(fitted(model, views)[0], views[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, r"epochs must be in \[1, 100000\], got 0"),
        ({"learning_rate": float("nan")}, r"learning_rate must be in \(0, 10\], got nan"),
        ({"validation_share": 1.0}, r"validation_share must be in \(0, 1\), got 1.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MarginGeneratorConfig(**settings)


def test_one_sample_is_too_few():
    model, views = planted(n=1)
    with pytest.raises(ValueError, match="at least 2 samples to fit a generator, got 1"):
        fit_margin_generator(MarginGeneratorConfig(), Threat(eps=0.1), model, views, torch.Generator())
