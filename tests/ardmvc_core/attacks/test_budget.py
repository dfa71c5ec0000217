"""The budget's projection and its refusals."""

import pytest
import torch

from ardmvc_core.attacks.budget import AttackBudget, project


def test_projection_keeps_ball_and_bounds():
    clean = (torch.tensor([[0.0, 0.5, 0.95, 0.5]]),)
    attacked = (torch.tensor([[-0.5, 0.9, 1.5, 0.55]]),)
    (got,) = project(clean, attacked, AttackBudget(eps=0.1))
    assert torch.allclose(got, torch.tensor([[0.0, 0.6, 1.0, 0.55]]))


def test_each_view_has_its_own_radius_and_some_are_not_attacked():
    clean = (torch.full((2, 3), 0.5),) * 3
    attacked = (torch.full((2, 3), 0.9),) * 3
    got = project(clean, attacked, AttackBudget(eps=(0.1, 0.2, 0.3), attacked_views=(0, 2)))
    assert [round(x.max().item(), 6) for x in got] == [0.6, 0.5, 0.8]
    assert got[1] is clean[1]


def test_nan_is_not_hidden():
    (got,) = project((torch.zeros(1, 2),), (torch.tensor([[float("nan"), 0.0]]),), AttackBudget(eps=0.1))
    assert got.isnan().tolist() == [[True, False]]


def test_projection_leaves_its_arguments_alone():
    clean, attacked = torch.full((1, 2), 0.5), torch.full((1, 2), 2.0)
    project((clean,), (attacked,), AttackBudget(eps=0.1))
    assert clean.tolist() == [[0.5, 0.5]]
    assert attacked.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    "fields",
    [
        {"eps": 0.0},
        {"eps": 1.5},
        {"eps": float("nan")},
        {"eps": ()},
        {"eps": (0.1, -0.1)},
        {"eps": 0.1, "bounds": (1.0, 0.0)},
        {"eps": 0.1, "attacked_views": ()},
        {"eps": 0.1, "attacked_views": (0, 0)},
        {"eps": 0.1, "attacked_views": (-1,)},
    ],
)
def test_impossible_budget_is_refused(fields):
    with pytest.raises(ValueError, match="must be"):
        AttackBudget(**fields)


@pytest.mark.parametrize("budget", [AttackBudget(eps=(0.1, 0.1, 0.1)), AttackBudget(eps=0.1, attacked_views=(2,))])
def test_budget_of_other_views_is_refused(budget):
    clean = (torch.zeros(1, 2),) * 2
    with pytest.raises(ValueError, match="must be"):
        project(clean, clean, budget)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"clean shapes \[\(1, 2\)\], got \[\(1, 3\)\]"):
        project((torch.zeros(1, 2),), (torch.zeros(1, 3),), AttackBudget(eps=0.1))
