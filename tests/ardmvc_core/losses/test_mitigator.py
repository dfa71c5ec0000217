"""The mitigator in both directions, with numbers worked out by hand."""

import pytest
import torch

from ardmvc_core.losses.mitigator import mitigator_kl

CLEAN = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
ATTACKED = torch.tensor([[0.1, 0.6, 0.3]], dtype=torch.float64)


@pytest.mark.parametrize(("direction", "value"), [("code", 1.0321), ("slides", 0.7939)])
def test_both_directions_by_hand(direction, value):
    # Σ p (log p − log q) with 1e-4 added everywhere, for the two orders of the rows above.
    loss = mitigator_kl(CLEAN, ATTACKED, direction=direction, smoothing=1e-4, stop_gradient=False)
    assert loss.item() == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize("direction", ["code", "slides"])
def test_mean_over_samples_and_zero_for_equal_rows(direction):
    twice = mitigator_kl(
        torch.cat([CLEAN, CLEAN]),
        torch.cat([ATTACKED, CLEAN]),
        direction=direction,
        smoothing=1e-4,
        stop_gradient=False,
    )
    once = mitigator_kl(CLEAN, ATTACKED, direction=direction, smoothing=1e-4, stop_gradient=False)
    assert twice.item() == pytest.approx(once.item() / 2)


@pytest.mark.parametrize("direction", ["code", "slides"])
@pytest.mark.parametrize("stop", [True, False])
def test_stop_gradient_holds_the_clean_side(direction, stop):
    clean, attacked = CLEAN.clone().requires_grad_(), ATTACKED.clone().requires_grad_()
    mitigator_kl(clean, attacked, direction=direction, smoothing=1e-4, stop_gradient=stop).backward()
    assert (clean.grad is None) == stop
    assert attacked.grad.abs().sum() > 0


def test_certain_assignments_stay_finite():
    clean = torch.tensor([[1.0, 0.0]], requires_grad=True)
    attacked = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss = mitigator_kl(clean, attacked, direction="slides", smoothing=1e-4, stop_gradient=False)
    loss.backward()
    assert loss.isfinite()
    assert clean.grad.isfinite().all()
    assert attacked.grad.isfinite().all()


def test_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="direction must be slides or code"):
        mitigator_kl(CLEAN, ATTACKED, direction="up", smoothing=1e-4, stop_gradient=False)
