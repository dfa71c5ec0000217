"""Sampling, divergences, capacities and reconstruction error against stored numbers and worked out by hand."""

import math

import pytest
import torch

from ardmvc_core.losses.vae import (
    capacity,
    categorical_kl,
    clipped_bce,
    gaussian_kl,
    gaussian_sample,
    gumbel_softmax,
    straight_through_one_hot,
)


@pytest.fixture
def cases(golden):
    """name → {array name: float64 tensor} of the stored cases."""
    numbers = golden("mvae")
    return {
        str(case): {
            name.removeprefix(f"{case}/"): torch.from_numpy(numbers[name])
            for name in numbers
            if name.startswith(f"{case}/")
        }
        for case in numbers["case_names"]
    }


def _capacities(case) -> list[tuple[float, float, float]]:
    """(continuous, discrete, original discrete) per stored step."""
    largest, steps = float(case["cont_max_capacity"]), int(case["iters_add_capacity"])
    log_k = math.log(case["alpha"].shape[1])
    return [
        (
            capacity(step, rate=largest / steps, maximum=largest),
            capacity(step, rate=log_k / steps, maximum=log_k),
            capacity(step, rate=largest / steps, maximum=log_k),
        )
        for step in case["steps"].tolist()
    ]


def test_samples_are_the_published_ones(cases, assert_close):
    for name, case in cases.items():
        drawn = gaussian_sample(case["means"][0], case["log_vars"][0], case["sample_normal_noise"])
        assert_close(drawn, case["sample_normal"], 1e-9, name)
        relaxed = gumbel_softmax(case["alpha"], case["sample_uniform"], float(case["temperature"]))
        assert_close(relaxed, case["sample_gumbel_softmax"], 1e-9, name)
        assert torch.equal(straight_through_one_hot(case["alpha"]), case["sample_eval_onehot"])


def test_divergences_and_capacities_are_the_published_ones(cases, assert_close):
    for name, case in cases.items():
        kl = torch.stack([gaussian_kl(*each) for each in zip(case["means"], case["log_vars"], strict=True)])
        assert_close(kl, case["kl_continuous"], 1e-9, name)
        assert_close(categorical_kl(case["alpha"]), case["kl_discrete"], 1e-9, name)
        continuous, discrete, original = zip(*_capacities(case), strict=True)
        assert_close(continuous, case["cont_capacity"], 1e-9, name)
        assert_close(discrete, case["disc_capacity"], 1e-9, name)
        assert_close(original, case["original_disc_capacity"], 1e-9, name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 4e-5)])
def test_reconstruction_error_is_the_published_one(cases, assert_close, dtype, tolerance):
    for name, case in cases.items():
        errors = [
            clipped_bce(made.to(dtype), view.to(dtype))
            for made, view in zip(case["reconstructions"], case["views"], strict=True)
        ]
        wanted = case["term_reconstruction"] / case["n_pixels"]
        assert_close(torch.stack(errors), wanted, tolerance, name)


def test_one_hot_is_exact_and_has_the_gradient_of_the_distribution():
    alpha = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]], requires_grad=True)
    code = straight_through_one_hot(alpha)
    assert code.tolist() == [[0, 1, 0], [1, 0, 0]]
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    (code * weights).sum().backward()
    assert torch.equal(alpha.grad, weights)


def test_divergences_worked_out_by_hand():
    # One latent at mean 2 and variance e: ½(4 + e − 1 − 1); one standard normal: 0; two samples of those two latents.
    mean, log_var = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert gaussian_kl(mean, log_var).item() == pytest.approx((2 + math.e) / 4)
    # A certain sample is log K away from uniform, a uniform one 0.
    assert categorical_kl(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).item() == pytest.approx(math.log(2) / 2)


def test_gumbel_softmax_worked_out_by_hand():
    # Equal noise cancels: α^(1/T) normalised; T = ½ squares.
    relaxed = gumbel_softmax(torch.tensor([[0.75, 0.25]]), torch.full((1, 2), 0.4), 0.5)
    assert relaxed[0].tolist() == pytest.approx([0.9, 0.1])
    # −log(−log u) at u = e^(−1/2) is log 2: doubles the odds at T = 1.
    relaxed = gumbel_softmax(torch.tensor([[0.5, 0.5]]), torch.tensor([[math.exp(-0.5), math.exp(-1)]]), 1.0)
    assert relaxed[0].tolist() == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("uniform", "dtype"), [(0.0, torch.float32), (1 - 2**-24, torch.float32), (1 - 1e-12, torch.float64)]
)
def test_gumbel_softmax_bears_the_ends_of_the_range(uniform, dtype):
    alpha = torch.tensor([[0.0, 1.0]], dtype=dtype, requires_grad=True)
    relaxed = gumbel_softmax(alpha, torch.full((1, 2), uniform, dtype=dtype), 0.67)
    (gradient,) = torch.autograd.grad(relaxed[0, 1], alpha)
    assert relaxed.isfinite().all()
    assert gradient.isfinite().all()


def test_capacity_grows_and_stops():
    assert [capacity(step, rate=0.5, maximum=1.2) for step in (0, 1, 2, 3, 1000)] == [0, 0.5, 1.0, 1.2, 1.2]


def test_saturated_reconstruction_costs_at_most_a_hundred_and_has_a_finite_gradient():
    made = torch.tensor([[0.0, 1.0, 0.5]], requires_grad=True)
    error = clipped_bce(made, torch.tensor([[1.0, 0.0, 1.0]]))
    assert error.item() == pytest.approx((100 + 100 + math.log(2)) / 3)
    error.backward()
    assert made.grad[0].tolist() == pytest.approx([0, 0, -2 / 3])
    assert clipped_bce(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])).item() == 0


def test_tiny_share_is_clipped_too():
    error = clipped_bce(torch.tensor([1e-60], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert error.item() == 100  # log 1e-60 is −138


def test_nan_reconstruction_is_not_hidden():
    assert clipped_bce(torch.tensor([float("nan"), 0.5]), torch.tensor([1.0, 0.5])).isnan()
