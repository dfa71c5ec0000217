"""The contrastive loss against the published numbers and by hand."""

import math

import pytest
import torch

from ardmvc_core.losses.contrastive import contrastive_terms, mean_contrast, nt_xent, unit_rows, view_pairs


def test_published_numbers(golden, assert_close):
    numbers = golden("comvc_contrastive")
    for name in numbers["case_names"]:
        case = {key.split("/")[1]: numbers[key] for key in numbers if key.startswith(f"{name}/")}
        projections = torch.from_numpy(case["projections"]).requires_grad_()
        weights = torch.from_numpy(case["fusion_weights"]).requires_grad_()
        terms = contrastive_terms(
            tuple(projections), weights, temperature=float(case["tau"]), adaptive_weight=bool(case["adaptive"])
        )
        assert list(terms) == [f"contrast_{pair[0]}_{pair[1]}" for pair in case["pair_names"]]
        assert_close(torch.stack(list(terms.values())), case["pair_losses"], 1e-9, name)
        for pair, loss in zip(case["pair_names"], case["pair_losses_unweighted"], strict=True):
            first, second = projections[int(pair[0])], projections[int(pair[1])]
            assert_close(nt_xent(first, second, float(case["tau"])), loss, 1e-9, f"{name} {pair}")
        total = torch.stack(list(terms.values())).sum()
        assert_close(total, case["sum"], 1e-9)
        total.backward()
        assert_close(projections.grad, case["grad_projections"], 1e-9, f"{name} gradient")
        assert weights.grad is None


def test_published_numbers_in_single_precision(golden, assert_close):
    numbers = golden("comvc_contrastive")
    for name in numbers["case_names"]:
        terms = contrastive_terms(
            tuple(torch.from_numpy(numbers[f"{name}/projections"]).float()),
            torch.from_numpy(numbers[f"{name}/fusion_weights"]).float(),
            temperature=float(numbers[f"{name}/tau"]),
            adaptive_weight=bool(numbers[f"{name}/adaptive"]),
        )
        assert_close(torch.stack(list(terms.values())), numbers[f"{name}/pair_losses"], 1e-5, name)


def test_two_orthogonal_samples_by_hand():
    # Each anchor: positive with similarity 1, one negative across and one within with similarity 0.
    rows = torch.eye(2, dtype=torch.float64)
    per_anchor = math.log(1 + 2 * math.exp(-1 / 0.5))
    assert nt_xent(rows, 3 * rows, 0.5).item() == pytest.approx(2 * per_anchor)
    assert mean_contrast((rows, rows, rows), 0.5).item() == pytest.approx(per_anchor)


def test_first_pair_reads_no_other_view():
    views = tuple(torch.rand(4, 3) for _ in range(3))
    first = mean_contrast(views, 0.1, "first")
    assert first.item() == pytest.approx(nt_xent(views[0], views[1], 0.1).item() / 2)
    assert view_pairs(3) == ((0, 1), (0, 2), (1, 2))


def test_row_of_zeros_has_a_finite_loss_and_gradient():
    rows = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.5, 0.1]], requires_grad=True)
    other = torch.zeros(3, 2, requires_grad=True)
    loss = nt_xent(rows, other, 0.1)
    loss.backward()
    assert loss.isfinite()
    assert rows.grad.abs().max() < 1e3
    assert other.grad.abs().max() < 1e3
    assert torch.equal(unit_rows(rows)[0], torch.zeros(2))


@pytest.mark.parametrize(("first", "second"), [((1, 3), (1, 3)), ((4, 3), (5, 3))])
def test_impossible_shapes_are_refused(first, second):
    with pytest.raises(ValueError, match="same shape"):
        nt_xent(torch.ones(first), torch.ones(second), 0.1)
