"""PGD on models whose smallest flipping perturbation is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ardmvc_core.attacks.budget import AttackBudget
from ardmvc_core.attacks.searches.white_box import WhiteBoxConfig, prepare_white_box


class Planes(nn.Module):
    """Two views of one value each; cluster 1 where their sum is above 1: a sample at s needs |s − 1| / 2 per view."""

    def __init__(self, score=lambda total: total - 1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.score = score

    def encode(self, views):
        return tuple(torch.cat([view, 1 - view], dim=1) for view in views)

    def forward(self, views):
        score = self.weight * self.score(views[0] + views[1]) * 10
        logits = torch.cat([-score, score], dim=1)
        return SimpleNamespace(view_latents=views, consensus=score, logits=logits, assignments=logits.softmax(1))


def clusters(model, views):
    with torch.no_grad():
        return model(views).logits.argmax(1)


def flips(model, views, budget, seed=0, **settings):
    perturb = prepare_white_box(
        WhiteBoxConfig(**settings), model, views, torch.Generator().manual_seed(seed), budget=budget
    )
    return (clusters(model, perturb(model, views)) != clusters(model, views)).tolist()


# Distances to the boundary of 0.05, 0.10, 0.15 and 0.05 per view.
VIEWS = (torch.tensor([[0.45], [0.40], [0.65], [0.60]]), torch.tensor([[0.45], [0.40], [0.65], [0.50]]))


@pytest.mark.parametrize(
    ("eps", "want"),
    [
        (0.04, [False, False, False, False]),
        (0.06, [True, False, False, True]),
        (0.11, [True, True, False, True]),
        (0.16, [True, True, True, True]),
    ],
)
def test_flips_exactly_beyond_the_smallest_perturbation(eps, want):
    assert flips(Planes(), VIEWS, AttackBudget(eps=eps)) == want


def test_a_view_that_may_not_move_halves_the_reach():
    budget = AttackBudget(eps=0.16, attacked_views=(1,))
    assert flips(Planes(), VIEWS, budget) == [True, False, False, True]


def test_each_view_keeps_to_its_own_radius():
    # Together they move the sum by 0.14: enough for the samples 0.10 away from it, not for those 0.20 and 0.30 away.
    budget = AttackBudget(eps=(0.02, 0.12))
    assert flips(Planes(), VIEWS, budget, steps=50) == [True, False, False, True]


def test_batches_do_not_change_which_samples_flip():
    for size in (1, 3):
        assert flips(Planes(), VIEWS, AttackBudget(eps=0.11), batch_size=size) == [True, True, False, True]


def test_features_move_as_far_as_the_ball_allows():
    budget = AttackBudget(eps=0.1)
    perturb = prepare_white_box(
        WhiteBoxConfig(objective="features"), Planes(), VIEWS, torch.Generator().manual_seed(0), budget=budget
    )
    for clean, attacked in zip(VIEWS, perturb(Planes(), VIEWS), strict=True):
        torch.testing.assert_close((attacked - clean).abs(), torch.full_like(clean, 0.1))


def test_contrastive_needs_company():
    one = tuple(view[:1] for view in VIEWS)
    assert flips(Planes(), one, AttackBudget(eps=0.16), objective="contrastive") == [False]


def test_contrastive_drives_the_views_of_a_sample_apart():
    model, budget = Planes(), AttackBudget(eps=0.1)
    perturb = prepare_white_box(
        WhiteBoxConfig(objective="contrastive"), model, VIEWS, torch.Generator().manual_seed(0), budget=budget
    )
    apart = [(views[0] - views[1]).abs().mean() for views in (VIEWS, perturb(model, VIEWS))]
    assert apart[1] > apart[0] + 0.1


def test_more_restarts_keep_what_fewer_found():
    # Cluster 1 begins at a sum of 1.15; below 1.05 the ascent leads away from it.
    def bumpy(total):
        return torch.where(total < 1.05, 0.5 - total, torch.where(total < 1.15, total - 1.6, total - 1.15))

    views = (torch.full((64, 1), 0.52), torch.full((64, 1), 0.52))
    found = [
        flips(Planes(bumpy), views, AttackBudget(eps=0.1), restarts=restarts, steps=40, step_ratio=0.05)
        for restarts in (1, 6)
    ]
    assert 0 < sum(found[0]) < 50
    assert sum(found[1]) > sum(found[0])
    assert all(more or not fewer for fewer, more in zip(*found, strict=True))


def test_the_seed_decides_the_start():
    def one_small_step(seed):
        perturb = prepare_white_box(
            WhiteBoxConfig(steps=1, step_ratio=0.01),
            Planes(),
            VIEWS,
            torch.Generator().manual_seed(seed),
            budget=AttackBudget(eps=0.1),
        )
        return perturb(Planes(), VIEWS)[0]

    assert torch.equal(one_small_step(0), one_small_step(0))
    assert not torch.equal(one_small_step(0), one_small_step(1))


@pytest.mark.parametrize(
    "field",
    [
        {"objective": "softmax"},
        {"steps": 0},
        {"restarts": 0},
        {"batch_size": 0},
        {"step_ratio": math.nan},
        {"temperature": 0.0},
    ],
)
def test_impossible_settings_are_refused(field):
    with pytest.raises(ValueError, match=f"{next(iter(field))} must be"):
        WhiteBoxConfig(**field)
