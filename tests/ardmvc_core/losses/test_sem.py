"""SEM's contrastive losses against the published numbers and by hand."""

import math

import pytest
import torch

from ardmvc_core.losses.sem import info_nce, pscl, rince

LOSSES = {"infonce": info_nce, "pscl": pscl, "rince": rince}


def _case(numbers, name, dtype=torch.float64):
    return tuple(torch.from_numpy(numbers[f"loss/{name}/{z}"]).to(dtype).requires_grad_() for z in ("z1", "z2"))


@pytest.mark.parametrize("loss", LOSSES)
def test_published_numbers(golden, assert_close, loss):
    numbers = golden("sem")
    for name in numbers["loss/case_names"]:
        first, second = _case(numbers, name)
        value = LOSSES[loss](first, second)
        assert_close(value, numbers[f"loss/{name}/{loss}"], 1e-9, name)
        value.backward()
        assert_close(first.grad, numbers[f"loss/{name}/{loss}_grad_z1"], 1e-9, f"{name} first gradient")
        assert_close(second.grad, numbers[f"loss/{name}/{loss}_grad_z2"], 1e-9, f"{name} second gradient")
        assert_close(LOSSES[loss](first, first), numbers[f"loss/{name}/{loss}_self"], 1e-9, f"{name} with itself")


@pytest.mark.parametrize("loss", LOSSES)
def test_published_numbers_in_single_precision(golden, assert_close, loss):
    numbers = golden("sem")
    for name in numbers["loss/case_names"]:
        first, second = _case(numbers, name, torch.float32)
        assert_close(LOSSES[loss](first, second), numbers[f"loss/{name}/{loss}"], 4e-5, name)
        assert_close(LOSSES[loss](first, first), numbers[f"loss/{name}/{loss}_self"], 4e-5, f"{name} with itself")


def test_published_numbers_at_another_temperature(golden, assert_close):
    numbers = golden("sem")
    for name in numbers["loss/case_names"]:
        value = info_nce(*_case(numbers, name), temperature=0.5)
        assert_close(value, numbers[f"loss/{name}/infonce_tau05"], 1e-9, name)


def test_published_cases_reach_both_sides_of_the_ball(golden, assert_close):
    numbers = golden("sem")
    shares = []
    for name in numbers["loss/case_names"]:
        inside = _case(numbers, name)[0].norm(dim=1) < math.sqrt(3)
        assert_close(inside.double().mean(), numbers[f"loss/{name}/frac_rows_below_threshold"], 1e-9, name)
        shares.append(inside.double().mean().item())
    assert min(shares) < 1


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_two_orthogonal_samples_by_hand(temperature):
    # Each of the four rows: positive with similarity 1, two negatives with similarity 0.
    rows = torch.eye(2, dtype=torch.float64)
    positive = math.exp(1 / temperature)
    assert info_nce(rows, rows, temperature).item() == pytest.approx(math.log((positive + 2) / positive))
    robust = rince(rows, rows, temperature=temperature, strength=0.2, q=0.3).item()
    assert robust == pytest.approx((0.2 * (positive + 2)) ** 0.3 / 0.3 - positive**0.3 / 0.3)


def test_spectral_loss_by_hand():
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    assert pscl(rows, rows).item() == pytest.approx(-2 + 0.6**2)
    # Rows of length 5 are shortened to the ball's radius 2: inner products 4 and 4 · 0.6.
    assert pscl(5 * rows, 5 * rows, squared_radius=4.0).item() == pytest.approx(-2 * 4 + (4 * 0.6) ** 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_views_may_change_places(loss):
    stream = torch.Generator().manual_seed(0)
    first, second = (2 * torch.randn(5, 3, generator=stream, dtype=torch.float64) for _ in range(2))
    assert LOSSES[loss](first, second).item() == pytest.approx(LOSSES[loss](second, first).item(), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_row_of_zeros_has_a_finite_gradient(loss):
    rows = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    LOSSES[loss](rows, rows).backward()
    assert bool(rows.grad.isfinite().all())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shapes", [((1, 3), (1, 3)), ((4, 3), (5, 3))])
def test_views_that_cannot_be_contrasted_are_refused(loss, shapes):
    with pytest.raises(ValueError, match="same shape"):
        LOSSES[loss](torch.rand(shapes[0]), torch.rand(shapes[1]))
