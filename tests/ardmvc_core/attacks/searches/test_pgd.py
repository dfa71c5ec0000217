"""Projected gradient ascent on functions whose maximum is known, and the two context managers around it."""

import pytest
import torch
from torch import nn

from ardmvc_core.attacks.searches.pgd import frozen, frozen_statistics, pgd, random_start
from ardmvc_core.attacks.threat import Threat

BUDGET = Threat(eps=0.2)


def test_linear_objective_ends_in_the_corner_of_the_budget():
    slope = torch.tensor([1.0, -2.0, 0.5, -0.1])
    clean = (torch.tensor([[0.5, 0.5, 0.9, 0.1]]),)
    (got,) = pgd(lambda views: (views[0] * slope).sum(), clean, BUDGET, step_ratio=0.25, steps=10, start=clean)
    assert torch.allclose(got, torch.tensor([[0.7, 0.3, 1.0, 0.0]]))
    assert not got.requires_grad


def test_one_step_moves_by_the_step_ratio_times_eps_along_the_sign():
    clean = (torch.tensor([[0.5, 0.5, 0.5]]),)
    slope = torch.tensor([3.0, -0.001, 0.0])
    (got,) = pgd(lambda views: (views[0] * slope).sum(), clean, BUDGET, step_ratio=0.15, steps=1, start=clean)
    assert torch.allclose(got, torch.tensor([[0.53, 0.47, 0.5]]))


def test_in_l2_a_linear_objective_ends_where_its_slope_leaves_the_ball():
    # The slope of each view is 5 and 10 long: the furthest points are clean + ε_v · slope / length.
    slopes = (torch.tensor([3.0, -4.0]), torch.tensor([6.0, 8.0]))
    clean = (torch.tensor([[0.5, 0.5]]),) * 2
    budget = Threat(norm="l2", eps=(0.1, 0.3))

    def objective(views):
        return (views[0] * slopes[0]).sum() + (views[1] * slopes[1]).sum()

    once = pgd(objective, clean, budget, step_ratio=0.5, steps=1, start=clean)
    assert torch.allclose(torch.cat(once), torch.tensor([[0.53, 0.46], [0.59, 0.62]]))
    got = pgd(objective, clean, budget, step_ratio=0.5, steps=5, start=clean)
    assert torch.allclose(torch.cat(got), torch.tensor([[0.56, 0.42], [0.68, 0.74]]))


def test_each_view_steps_by_a_share_of_its_own_eps():
    clean = (torch.full((1, 2), 0.5),) * 2
    budget = Threat(eps=(0.1, 0.3))
    got = pgd(lambda views: views[0].sum() - views[1].sum(), clean, budget, step_ratio=0.5, steps=1, start=clean)
    assert torch.allclose(torch.cat(got), torch.tensor([[0.55, 0.55], [0.35, 0.35]]))


def test_a_random_start_in_l2_lies_on_the_sphere():
    clean = (torch.full((500, 2, 3), 0.5), torch.full((500, 4), 0.5))
    budget = Threat(norm="l2", eps=(0.4, 0.2), attacked_views=(0,))
    first, second = random_start(clean, budget, torch.Generator().manual_seed(3))
    change = (first - clean[0]).flatten(1)
    assert torch.allclose(change.norm(dim=1), torch.full((500,), 0.4))
    assert change.mean(0).abs().max() < 0.03  # no direction is preferred: 500 draws of standard deviation 0.4/√6
    assert second is clean[1]


def test_start_enters_the_first_iteration_unprojected():
    seen = []

    def objective(views):
        seen.append(views[0].detach().clone())
        return views[0].sum()

    clean, start = (torch.tensor([[0.0, 1.0]]),), (torch.tensor([[-0.2, 1.2]]),)
    pgd(objective, clean, BUDGET, step_ratio=0.05, steps=2, start=start)
    assert torch.equal(seen[0], start[0])
    assert seen[1].tolist() == [[0.0, 1.0]]


def test_view_that_the_objective_ignores_keeps_its_projected_start():
    clean = (torch.full((1, 2), 0.5), torch.tensor([[0.0, 0.5]]))
    start = (clean[0], torch.tensor([[-0.1, 0.6]]))
    got = pgd(lambda views: views[0].sum(), clean, BUDGET, step_ratio=0.5, steps=3, start=start)
    assert torch.allclose(got[1], torch.tensor([[0.0, 0.6]]))


def test_view_outside_the_budget_stays_clean():
    clean = (torch.full((1, 2), 0.5),) * 2
    budget = Threat(eps=0.2, attacked_views=(1,))
    start = random_start(clean, budget, torch.Generator().manual_seed(0))
    assert start[0] is clean[0]
    got = pgd(lambda views: views[0].sum() + views[1].sum(), clean, budget, step_ratio=0.5, steps=3, start=start)
    assert torch.equal(got[0], clean[0])
    assert torch.allclose(got[1], torch.tensor([[0.7, 0.7]]))


def test_arguments_are_left_alone():
    clean, start = (torch.full((1, 2), 0.5),), (torch.full((1, 2), 0.55),)
    pgd(lambda views: views[0].sum(), clean, BUDGET, step_ratio=0.5, steps=3, start=start)
    assert clean[0].tolist() == [[0.5, 0.5]]
    assert not clean[0].requires_grad
    assert not start[0].requires_grad
    assert torch.allclose(start[0], torch.full((1, 2), 0.55))


def test_works_where_gradients_are_switched_off():
    clean = (torch.full((1, 2), 0.5),)
    with torch.no_grad():
        (got,) = pgd(lambda views: views[0].sum(), clean, BUDGET, step_ratio=0.5, steps=3, start=clean)
    assert torch.allclose(got, torch.full((1, 2), 0.7))


def test_random_start_is_uniform_in_the_ball_and_repeats_with_its_seed():
    clean = (torch.full((1000, 4), 0.95),)
    (first,) = random_start(clean, BUDGET, torch.Generator().manual_seed(3))
    (again,) = random_start(clean, BUDGET, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    noise = first - clean[0]
    assert noise.abs().max() <= 0.2 + 1e-6
    assert first.max() > 1  # not projected
    # 4000 draws of U(−0.2, 0.2): mean 0 ± 0.002, standard deviation 0.2/√3
    assert abs(noise.mean().item()) < 0.008
    assert noise.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.03)


@pytest.mark.parametrize(("step_ratio", "steps"), [(0.0, 1), (float("nan"), 1), (0.1, 0)])
def test_impossible_schedule_is_refused(step_ratio, steps):
    clean = (torch.zeros(1, 2),)
    with pytest.raises(ValueError, match="must be"):
        pgd(lambda views: views[0].sum(), clean, BUDGET, step_ratio=step_ratio, steps=steps, start=clean)


def test_frozen_parameters_get_no_gradient_and_ask_again_afterwards():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        x = torch.ones(1, 2, requires_grad=True)
        model(x).sum().backward()
    assert x.grad is not None
    assert model.weight.grad is None
    assert model.weight.requires_grad
    assert not model.bias.requires_grad


def test_parameters_thaw_after_an_error():
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="inside"), frozen(model):
        raise RuntimeError("inside")
    assert model.weight.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_frozen_statistics_change_no_buffer_and_no_output(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train(training)
    model[1].running_mean.uniform_()
    x = torch.rand(8, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with frozen_statistics(model):
        inside = model(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(inside, model(x))
    moved = not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert moved == training
