"""APGD on linear models, whose exact distance to the next cluster is known, and its bookkeeping worked out by hand."""

import pytest
import torch
from planted_models import LinearModel, planted

from ardmvc_core.attacks.objectives.clean_reference import clean_reference
from ardmvc_core.attacks.objectives.per_sample import (
    ce,
    centroid_margin,
    com,
    con,
    features,
    margin,
    targeted_margin,
)
from ardmvc_core.attacks.searches.apgd import apgd, checkpoints
from ardmvc_core.attacks.threat import Threat


def run(model, views, budget, objective=margin, steps=30, seed=0, **options):
    reference = clean_reference(model, views, 256)
    return apgd(
        model,
        views,
        reference,
        objective,
        budget,
        steps=steps,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def test_checkpoints_are_those_of_the_paper():
    # Shares 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of 100 steps: gaps shrink by 0.03 down to 0.06.
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("objective", [ce, margin, targeted_margin(1)])
@pytest.mark.parametrize("stop_on_flip", [False, True])
def test_a_linear_model_of_two_clusters_is_broken_exactly_where_it_must_be(objective, stop_on_flip):
    model, views = planted()
    distance = model.distance(views)
    eps = float(distance.median())
    found = run(model, views, Threat(eps=eps), objective, stop_on_flip=stop_on_flip)
    clear = (distance - eps).abs() > 1e-4
    assert 0.4 < float(found.flipped.float().mean()) < 0.6
    assert torch.equal(found.flipped[clear], (distance < eps)[clear])


@pytest.mark.parametrize("objective", [ce, margin, targeted_margin(1)])
@pytest.mark.parametrize("stop_on_flip", [False, True])
def test_in_l2_a_linear_model_is_broken_exactly_where_it_must_be(objective, stop_on_flip):
    # Largest rise of w·x in balls of radius r · ε_v: r · Σ_v ε_v |w_v|₂; it flips where that exceeds the gap.
    model, views = planted(sizes=(4, 6))
    shares = (1.0, 2.0)
    distance = model.distance(views, shares, "l2")
    r = float(distance.median())
    budget = Threat(norm="l2", eps=tuple(r * share for share in shares))
    found = run(model, views, budget, objective, stop_on_flip=stop_on_flip, steps=50)
    clear = (distance - r).abs() > 1e-3 * r
    assert 0.4 < float(found.flipped.float().mean()) < 0.6
    assert torch.equal(found.flipped[clear], (distance < r)[clear])
    for before, after, eps in zip(views, found.views, budget.eps_per_view(2), strict=True):
        assert (after - before).norm(dim=1).max() <= eps * (1 + 1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_each_view_has_its_own_radius_and_masked_views_do_not_move(batch_size):
    model, views = planted(sizes=(4, 2, 6))
    eps = (0.02, 0.3, 0.05)
    budget = Threat(eps=eps, attacked_views=(0, 2))
    distance = model.distance(views, (0.02, 0.0, 0.05))
    found = run(model, views, budget, batch_size=batch_size)
    clear = (distance - 1).abs() > 1e-3
    assert torch.equal(found.flipped[clear], (distance < 1)[clear])
    assert torch.equal(found.views[1], views[1])
    for v, e in ((0, 0.02), (2, 0.05)):
        assert float((found.views[v] - views[v]).abs().max()) <= e + 1e-6


def test_the_box_limits_what_can_be_reached():
    # The cluster is 1 where x > 1.05: outside the valid inputs, so no radius flips anything.
    model = LinearModel(torch.tensor([[0.0], [1.0]]), torch.tensor([1.05, 0.0]))
    views = (torch.tensor([[0.2], [0.95], [1.0]]),)
    assert not run(model, views, Threat(eps=1.0)).flipped.any()
    model = LinearModel(torch.tensor([[0.0], [1.0]]), torch.tensor([0.99, 0.0]))
    assert run(model, views[0:1], Threat(eps=1.0)).flipped.tolist() == [True, True, True]


def test_returned_points_are_flipped_where_it_says_so():
    model, views = planted(n_clusters=5)
    found = run(model, views, Threat(eps=0.05), ce)
    with torch.no_grad():
        now = model(found.views).logits.argmax(1)
    assert torch.equal(now != clean_reference(model, views, 64).clusters, found.flipped)
    assert 0 < int(found.flipped.sum()) < len(found.flipped)
    assert torch.equal(found.steps_to_flip >= 0, found.flipped)


def test_more_clusters_are_reached_through_their_nearest_boundary():
    model, views = planted(n=200, sizes=(6, 6), n_clusters=4)
    eps = float(model.distance(views).median())
    found = torch.zeros(200, dtype=torch.bool)
    for rank in (1, 2, 3):
        found |= run(model, views, Threat(eps=eps), targeted_margin(rank), steps=50).flipped
    clear = (model.distance(views) - eps).abs() > 1e-3
    assert torch.equal(found[clear], (model.distance(views) < eps)[clear])


@pytest.mark.parametrize("objective", [com, con, features(), centroid_margin])
def test_every_objective_rises_and_stays_in_budget(objective):
    model, views = planted(n_clusters=3)
    found = run(model, views, Threat(eps=0.03), objective)
    assert bool((found.best_loss >= found.start_loss).all())
    assert float(found.curve[-1]) > float(found.curve[0])
    assert bool((found.curve.diff() >= 0).all())
    assert all(float((a - b).abs().max()) <= 0.03 + 1e-6 for a, b in zip(found.views, views, strict=True))


def test_an_objective_of_the_batch_is_one_state_for_all():
    model, views = planted()

    def total(output, clean):
        return margin(output, clean).mean()

    found = run(model, views, Threat(eps=float(model.distance(views).median())), total)
    assert len(found.halvings.unique()) == 1
    assert torch.equal(found.flipped, run(model, views, Threat(eps=float(model.distance(views).median()))).flipped)


def test_a_flat_objective_shows_as_a_zero_gradient():
    model, views = planted()
    flat = run(model, views, Threat(eps=0.01), lambda output, clean: margin(output, clean).round() * 0)
    assert flat.zero_gradient.all()
    assert not run(model, views, Threat(eps=0.01)).zero_gradient.any()


def test_passes_are_those_promised():
    model, views = planted()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    reference = clean_reference(model, views, 256)
    calls.clear()
    apgd(model, views, reference, margin, Threat(eps=1e-4), steps=9, generator=torch.Generator())
    assert (calls.count(True), calls.count(False)) == (9, 1)


def test_equal_seeds_give_equal_points():
    model, views = planted(n_clusters=5)
    first, second = (run(model, views, Threat(eps=0.05), ce, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.views, second.views, strict=True))


def test_no_steps_are_refused():
    model, views = planted()
    with pytest.raises(ValueError, match="steps must be ≥ 1, got 0"):
        run(model, views, Threat(eps=0.1), steps=0)
