"""InfoDDC's mutual-information loss against the published numbers and by hand."""

import math

import pytest
import torch

from ardmvc_core.losses.mutual_information import (
    information_pairs,
    joint_distribution,
    mutual_information_loss,
    mutual_information_terms,
)


def _cases(golden):
    numbers = golden("infoddc")
    for name in numbers["case_names"]:
        yield name, {key.split("/")[1]: numbers[key] for key in numbers if key.startswith(f"{name}/")}


def test_published_numbers(golden, assert_close):
    for name, case in _cases(golden):
        latents = torch.from_numpy(case["encoder_outputs"]).requires_grad_()
        assert_close(joint_distribution(latents[0], latents[1]), case["joint_01"], 1e-9, f"{name} joint")
        pairs = information_pairs(len(latents), "published")
        assert [f"{u}{v}" for u, v in pairs] == case["pair_names"].tolist()
        weight, floor = float(case["alpha"]), float(case["epsilon"])
        losses = torch.stack([mutual_information_loss(latents[u], latents[v], weight, floor) for u, v in pairs])
        assert_close(losses, case["pair_losses"], 1e-9, name)
        assert_close(losses.sum(), case["sum"], 1e-9, f"{name} sum")
        losses.sum().backward()
        assert_close(latents.grad, case["grad_encoder_outputs"], 1e-9, f"{name} gradient")


def test_published_numbers_as_terms_in_both_choices_of_pairs(golden, assert_close):
    for name, case in _cases(golden):
        latents = tuple(torch.from_numpy(case["encoder_outputs"]))
        weight = float(case["alpha"])
        stored = zip(case["pair_names"], case["pair_losses"], strict=True)
        wanted = {f"mutual_information_{pair[0]}_{pair[1]}": loss for pair, loss in stored}
        published = mutual_information_terms(latents, entropy_weight=weight, pairs="published")
        assert list(published) == list(wanted)
        across = mutual_information_terms(latents, entropy_weight=weight, pairs="all")
        assert list(across) == [term for term in wanted if term[-1] != term[-3]]
        for term, value in [*published.items(), *across.items()]:
            assert_close(value, wanted[term], 1e-9, f"{name} {term}")


def test_published_numbers_in_single_precision(golden, assert_close):
    for name, case in _cases(golden):
        latents = tuple(torch.from_numpy(case["encoder_outputs"]).float())
        terms = mutual_information_terms(latents, entropy_weight=float(case["alpha"]), pairs="published")
        assert_close(torch.stack(list(terms.values())), case["pair_losses"], 1e-5, name)


@pytest.mark.parametrize("entropy_weight", [0.0, 9.0])
def test_bounds_by_hand(entropy_weight):
    # Each sample has a feature of its own, the same in both views: I = H₁ = H₂ = ln 4.
    own = torch.eye(4, dtype=torch.float64)
    best = mutual_information_loss(own, own, entropy_weight)
    assert best.item() == pytest.approx(-(2 * entropy_weight + 1) * math.log(4), rel=1e-5)
    # Rows that say nothing: I = 0, both entropies still ln 4.
    flat = torch.full((6, 4), 0.25, dtype=torch.float64)
    assert mutual_information_loss(flat, flat, entropy_weight).item() == pytest.approx(
        -2 * entropy_weight * math.log(4), abs=1e-12
    )


def test_joint_of_unequal_marginals_by_hand():
    # The first view always shows feature 0, the second does so three times in four; symmetrised by the mean.
    corners = torch.eye(2, dtype=torch.float64)
    first, second = corners[[0, 0, 0, 0]], corners[[0, 0, 0, 1]]
    joint = torch.tensor([[3 / 4, 1 / 8], [1 / 8, 0.0]], dtype=torch.float64)
    assert torch.allclose(joint_distribution(first, second), joint)
    entropy = -sum(p * math.log(p) for p in (7 / 8, 1 / 8))
    joint_entropy = -sum(p * math.log(p) for p in (3 / 4, 1 / 8, 1 / 8))
    information = 2 * entropy - joint_entropy
    loss = mutual_information_loss(first, second, 2.0).item()
    assert loss == pytest.approx(-(information + 2 * 2 * entropy), abs=1e-6)


def test_floored_entries_have_no_gradient():
    # All mass on feature 0: joint and marginal of feature 1 are 0 and become the floor. What is left of the gradient
    # for feature 1 comes from the normalisation, −α/B; a floor that let it through would give ln 1e-9 in its place.
    rows = torch.tensor([[1.0, 0.0]] * 4, dtype=torch.float64)
    moving = rows.clone().requires_grad_()
    loss = mutual_information_loss(moving, rows, 9.0)
    # p = (1, 1e-9); the floored joint has rows (1, 1e-9), (1e-9, 1e-9).
    floor = 1e-9
    by_hand = 2 * 10 * 2 * floor * math.log(floor) - 3 * floor * math.log(floor)
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    loss.backward()
    assert moving.grad[:, 1].tolist() == pytest.approx([-9 / 4] * 4, rel=1e-6)
    assert moving.grad[:, 0].tolist() == pytest.approx([0.0] * 4, abs=1e-6)


def test_pairs():
    assert information_pairs(2) == ((0, 1),)
    assert information_pairs(3) == ((0, 1), (0, 2), (1, 2))
    assert information_pairs(2, "published") == ((0, 0), (0, 1))
    assert information_pairs(3, "published") == ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        mutual_information_loss(torch.ones(4, 3), torch.ones(4, 2), 9.0)
