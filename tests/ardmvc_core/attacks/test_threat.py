"""The budget's projection, its size in L2, and its refusals."""

import pytest
import torch

from ardmvc_core.attacks.threat import Threat, l2_threat, project, sample_distances, steepest


def test_projection_keeps_ball_and_bounds():
    clean = (torch.tensor([[0.0, 0.5, 0.95, 0.5]]),)
    attacked = (torch.tensor([[-0.5, 0.9, 1.5, 0.55]]),)
    (got,) = project(clean, attacked, Threat(eps=0.1))
    assert torch.allclose(got, torch.tensor([[0.0, 0.6, 1.0, 0.55]]))


def test_each_view_has_its_own_radius_and_some_are_not_attacked():
    clean = (torch.full((2, 3), 0.5),) * 3
    attacked = (torch.full((2, 3), 0.9),) * 3
    got = project(clean, attacked, Threat(eps=(0.1, 0.2, 0.3), attacked_views=(0, 2)))
    assert [round(x.max().item(), 6) for x in got] == [0.6, 0.5, 0.8]
    assert got[1] is clean[1]


def test_nan_is_not_hidden():
    (got,) = project((torch.zeros(1, 2),), (torch.tensor([[float("nan"), 0.0]]),), Threat(eps=0.1))
    assert got.isnan().tolist() == [[True, False]]
    (got,) = project((torch.zeros(1, 2),), (torch.tensor([[float("nan"), 0.0]]),), Threat(norm="l2", eps=0.1))
    assert bool(got[0, 0].isnan())


def test_a_change_longer_than_the_l2_radius_is_shortened_and_then_cut_at_the_bounds():
    # (0.3, 0.4) is 0.5 long: half of it is left at ε 0.25, and all of it at ε 0.6.
    clean = (torch.tensor([[0.5, 0.5], [0.9, 0.5]]),)
    attacked = (torch.tensor([[0.8, 0.9], [1.2, 0.9]]),)
    (got,) = project(clean, attacked, Threat(norm="l2", eps=0.25))
    assert torch.allclose(got, torch.tensor([[0.65, 0.7], [1.0, 0.7]]))
    (got,) = project(clean, attacked, Threat(norm="l2", eps=0.6))
    assert torch.allclose(got, torch.tensor([[0.8, 0.9], [1.0, 0.9]]))


def test_the_steepest_step_has_length_one_in_its_norm():
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0], [3e-30, -4e-30]])
    assert steepest(gradient, "linf").tolist() == [[1.0, -1.0], [0.0, 0.0], [1.0, -1.0]]
    assert torch.allclose(steepest(gradient, "l2"), torch.tensor([[0.6, -0.8], [0.0, 0.0], [0.6, -0.8]]))


def test_l2_radii_are_shares_of_the_median_distance_between_samples():
    # Pairs of 0, 0.3, 0.4 are 0.1, 0.3 and 0.4 apart; in the second view a 3-4-5 triangle; the third is constant.
    views = (
        torch.tensor([[0.0], [0.3], [0.4]]),
        torch.tensor([[0.0, 0.0], [0.3, 0.0], [0.0, 0.4]]),
        torch.zeros(3, 2, 2),
    )
    distances = sample_distances(views)
    assert distances == pytest.approx((0.3, 0.4, 0.0))
    assert sample_distances(tuple(view[:1] for view in views)) == (0.0, 0.0, 0.0)
    assert l2_threat(0.5, distances).eps_per_view(3) == pytest.approx((0.15, 0.2, 0.0))
    assert l2_threat((0.5, 0.1, 0.2), distances).eps_per_view(3) == pytest.approx((0.15, 0.04, 0.0))
    assert l2_threat(0.5, distances, attacked_views=(1,)).eps_per_view(3) == pytest.approx((0.0, 0.2, 0.0))
    with pytest.raises(ValueError, match="median distance between samples is 0 in every attacked view"):
        l2_threat(0.5, distances, attacked_views=(2,))
    with pytest.raises(ValueError, match=r"eps must be one number or 3 \(one per view\), got \(0.1, 0.2\)"):
        l2_threat((0.1, 0.2), distances)


def test_projection_leaves_its_arguments_alone():
    clean, attacked = torch.full((1, 2), 0.5), torch.full((1, 2), 2.0)
    project((clean,), (attacked,), Threat(eps=0.1))
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
        {"eps": float("inf"), "norm": "l2"},
        {"eps": (0.1, float("nan")), "norm": "l2"},
        {"eps": 0.1, "norm": "l1"},
        {"eps": 0.1, "bounds": (1.0, 0.0)},
        {"eps": 0.1, "attacked_views": ()},
        {"eps": 0.1, "attacked_views": (0, 0)},
        {"eps": 0.1, "attacked_views": (-1,)},
    ],
)
def test_impossible_budget_is_refused(fields):
    with pytest.raises(ValueError, match="must be"):
        Threat(**fields)


@pytest.mark.parametrize("budget", [Threat(eps=(0.1, 0.1, 0.1)), Threat(eps=0.1, attacked_views=(2,))])
def test_budget_of_other_views_is_refused(budget):
    clean = (torch.zeros(1, 2),) * 2
    with pytest.raises(ValueError, match="must be"):
        project(clean, clean, budget)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"clean shapes \[\(1, 2\)\], got \[\(1, 3\)\]"):
        project((torch.zeros(1, 2),), (torch.zeros(1, 3),), Threat(eps=0.1))
