"""DDC's kernel and losses against the published numbers and by hand."""

import math

import pytest
import torch

from ardmvc_core.losses.ddc import (
    cauchy_schwarz,
    cluster_orthogonality,
    ddc_terms,
    gaussian_kernel,
    kernel_width,
    orthogonality,
    squared_distances,
)


def test_published_numbers(golden, assert_close):
    numbers = golden("ddc")
    for name in numbers["case_names"]:
        case = {key.split("/")[1]: numbers[key] for key in numbers if key.startswith(f"{name}/")}
        hidden = torch.from_numpy(case["hidden"]).requires_grad_()
        output = torch.from_numpy(case["output"]).requires_grad_()
        distances = squared_distances(hidden)
        assert_close(distances.median(), case["median_sq_dist"], 1e-9)
        assert_close(kernel_width(distances, float(case["rel_sigma"])).sqrt(), case["sigma"], 1e-9)
        assert_close(gaussian_kernel(hidden, float(case["rel_sigma"])), case["kernel"], 1e-9)
        terms = ddc_terms(hidden, output)
        for term, value in terms.items():
            assert_close(value, case[term], 1e-9, f"{name} {term}")
        assert_close(cluster_orthogonality(output), case["ddc2_flipped"], 1e-9)
        total = torch.stack(list(terms.values())).sum()
        assert_close(total, case["total_123"], 1e-9)
        total.backward()
        assert_close(hidden.grad, case["grad_hidden"], 1e-9, f"{name} gradient of hidden")
        assert_close(output.grad, case["grad_output"], 1e-9, f"{name} gradient of output")


def test_published_numbers_in_single_precision(golden, assert_close):
    numbers = golden("ddc")
    for name in numbers["case_names"]:
        terms = ddc_terms(*(torch.from_numpy(numbers[f"{name}/{part}"]).float() for part in ("hidden", "output")))
        for term, value in terms.items():
            assert value.dtype == torch.float32
            assert_close(value, numbers[f"{name}/{term}"], 1e-5, f"{name} {term}")


def test_width_takes_the_lower_middle_value_over_all_entries():
    # Distances of 0, 1, 3 on a line: 0,0,0,1,1,4,4,9,9 → median 1. Two points: 0,0,4,4 → the lower middle one is 0.
    assert kernel_width(squared_distances(torch.tensor([[0.0], [1.0], [3.0]]))).item() == pytest.approx(0.15)
    assert kernel_width(squared_distances(torch.tensor([[0.0], [2.0]]))).item() == pytest.approx(1e-9)


def test_collapsed_hidden_vectors_have_a_finite_kernel_and_gradient():
    hidden = torch.full((6, 4), 0.3, requires_grad=True)
    assignments = torch.full((6, 3), 1 / 3, requires_grad=True)
    total = torch.stack(list(ddc_terms(hidden, assignments).values())).sum()
    total.backward()
    assert total.isfinite()
    assert hidden.grad.isfinite().all()
    assert assignments.grad.isfinite().all()


def test_certain_balanced_clusters_by_hand():
    # Two far clusters of two identical points, certain assignments: no overlap, so DDC1 is the floor over √(4·4);
    # DDC2: of six pairs two agree.
    hidden = torch.tensor([[0.0], [0.0], [50.0], [50.0]], dtype=torch.float64)
    assignments = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    kernel = gaussian_kernel(hidden, rel_sigma=1e-4)
    assert cauchy_schwarz(assignments, kernel).item() == pytest.approx(1e-9 / 4)
    assert orthogonality(assignments).item() == pytest.approx(2 / 6)
    assert cluster_orthogonality(assignments).item() == 0.0
    # DDC3: M has 1 at the own corner and e^{−2} at the other; N_12 = 8 e^{−2}, N_aa = 4 (1 + e^{−4}) with 𝒦 in blocks.
    closeness = 2 * math.exp(-2) / (1 + math.exp(-4))
    assert ddc_terms(hidden, assignments)["ddc3"].item() == pytest.approx(closeness)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cauchy_schwarz(torch.ones(4, 1), torch.eye(4)), "at least two clusters"),
        (lambda: cluster_orthogonality(torch.ones(4, 1)), "at least two clusters"),
        (lambda: orthogonality(torch.ones(1, 3)), "at least two samples"),
    ],
)
def test_too_few_clusters_or_samples_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
