"""Ray search on linear models, whose exact distance to the next cluster is known, and what it may look at."""

import pytest
import torch
from planted_models import LinearModel, planted
from torch import nn

from ardmvc_core.attacks.objectives.clean_reference import clean_reference
from ardmvc_core.attacks.searches.ray_search import ray_search
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.types import ModelOutput


def run(model, views, budget, queries=600, seed=0, batch_size=256):
    reference = clean_reference(model, views, 256)
    stream = torch.Generator().manual_seed(seed)
    return ray_search(model, views, reference, budget, queries=queries, generator=stream, batch_size=batch_size)


class OnlyAssignments(nn.Module):
    """The model with its logits rounded to the assignment; it counts samples and refuses to be differentiated."""

    def __init__(self, decide):
        super().__init__()
        self.decide, self.samples = decide, 0

    def forward(self, views):
        assert not torch.is_grad_enabled()
        self.samples += len(views[0])
        logits = nn.functional.one_hot(self.decide(views), 4).float()
        return ModelOutput(view_latents=views, consensus=logits, logits=logits, assignments=logits)


@pytest.mark.parametrize("sizes", [(8,), (3, 5), (4, 2, 6)])
def test_a_linear_model_of_two_clusters_is_broken_exactly_where_it_can_be(sizes):
    model, views = planted(sizes=sizes)
    distance = model.distance(views)
    eps = float(distance.median())
    found = run(model, views, Threat(eps=eps))
    assert not found.flipped[distance > eps * 1.0001].any()
    assert found.flipped[distance < eps * 0.99].all()
    # Where the box does not interfere, the radius is the exact distance in budgets.
    free = ~found.flipped & (distance < 0.28)
    assert int(free.sum()) > 10
    torch.testing.assert_close(-found.best_loss[free], distance[free] / eps, rtol=3e-3, atol=0)


def test_a_sample_beyond_the_budget_is_given_its_radius():
    # Cluster 1 where x0 + x1 > 0.5, which the second sample leaves with x0 at the bound 0 and x1 lowered by 0.11.
    model = LinearModel(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), bias=torch.tensor([0.5, 0.0]))
    views = (torch.tensor([[0.05, 0.59], [0.05, 0.61]]),)
    found = run(model, views, Threat(eps=0.1), queries=100)
    assert float(found.best_loss[1]) == pytest.approx(-1.1, abs=3e-3)


@pytest.mark.parametrize("queries", [1, 2, 3, 20, 200])
def test_what_is_claimed_is_what_the_model_says_about_the_returned_views(queries):
    model, views = planted(n_clusters=4)
    reference = clean_reference(model, views, 256)
    eps = float(model.distance(views).median())
    found = run(model, views, Threat(eps=eps), queries=queries)
    assert torch.equal(model(found.views).logits.argmax(1) != reference.clusters, found.flipped)
    assert torch.equal(found.best_loss >= -1, found.flipped)
    for clean, attacked in zip(views, found.views, strict=True):
        assert torch.equal(attacked, torch.clamp(attacked, clean - eps, clean + eps))
    assert 0 < int(found.flipped.sum()) < 64


def test_a_sample_is_asked_about_no_more_than_allowed_and_not_after_its_flip():
    model, views = planted()
    reference = clean_reference(model, views, 256)
    victim = OnlyAssignments(lambda views: model(views).logits.argmax(1))
    budget = Threat(eps=float(model.distance(views).median()))
    found = ray_search(
        victim, views, reference, budget, queries=150, generator=torch.Generator().manual_seed(0), batch_size=7
    )
    assert victim.samples == int(found.queries.sum())
    assert (found.queries[~found.flipped] == 150).all()
    assert int(found.queries[found.flipped].min()) < 40
    assert int(found.queries.max()) == 150


def test_only_assignments_are_looked_at():
    model, views = planted(n_clusters=4)
    reference = clean_reference(model, views, 256)
    eps = float(model.distance(views).median())
    plain, hidden = (
        ray_search(
            victim,
            views,
            reference,
            Threat(eps=eps),
            queries=200,
            generator=torch.Generator().manual_seed(0),
            batch_size=256,
        )
        for victim in (model, OnlyAssignments(lambda views: model(views).logits.argmax(1)))
    )
    assert torch.equal(plain.queries, hidden.queries)
    assert torch.equal(plain.best_loss, hidden.best_loss)
    assert all(torch.equal(a, b) for a, b in zip(plain.views, hidden.views, strict=True))


def pattern(views):
    """Cluster 1 for high, low, low, high: no turned block of the first start, all high, gets there."""
    wanted = torch.tensor([1.0, -1.0, -1.0, 1.0])
    return ((views[0] - 0.5) * wanted > 0.05).all(1).long()


def test_where_no_block_helps_it_starts_again_from_random_signs():
    views, budget = (torch.full((1, 4), 0.5),), Threat(eps=0.1)
    # 1 + 2 + 4 blocks and the direction itself: what the first start can look at.
    first = run(OnlyAssignments(pattern), views, budget, queries=8)
    assert first.best_loss.tolist() == [-torch.inf]
    found = run(OnlyAssignments(pattern), views, budget, queries=200)
    assert found.flipped.tolist() == [True]
    torch.testing.assert_close(found.views[0], torch.tensor([[0.6, 0.4, 0.4, 0.6]]), rtol=0, atol=0.05)
    assert int(found.queries) < 200


def test_the_seed_decides_the_later_starts_and_the_batch_size_nothing():
    views, budget = (torch.full((3, 4), 0.5),), Threat(eps=0.1)
    counts = [
        run(OnlyAssignments(pattern), views, budget, queries=200, seed=seed, batch_size=size).queries.tolist()
        for seed, size in ((0, 256), (0, 256), (0, 2), (1, 256), (2, 256))
    ]
    assert counts[0] == counts[1] == counts[2]
    assert len({tuple(count) for count in counts[2:]}) > 1


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 2, 2)])
def test_a_model_that_never_changes_its_mind_survives(shape):
    constant = OnlyAssignments(lambda views: torch.zeros(len(views[0]), dtype=torch.int64))
    views = (torch.full((2, *shape), 0.9), torch.full((2, 2), 0.1))
    found = run(constant, views, Threat(eps=0.2), queries=120)
    assert not found.flipped.any()
    assert found.best_loss.tolist() == [-torch.inf] * 2
    assert found.queries.tolist() == [120, 120]
    assert all(float((a - b).abs().max()) <= 0.2 + 1e-6 for a, b in zip(found.views, views, strict=True))
    assert all(float(view.min()) >= 0 and float(view.max()) <= 1 for view in found.views)


def test_the_arguments_are_left_alone():
    model, views = planted()
    before = tuple(view.clone() for view in views)
    run(model, views, Threat(eps=0.1), queries=20)
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))


@pytest.mark.parametrize("limit", ["queries", "batch_size"])
def test_limits_must_be_positive(limit):
    model, views = planted()
    with pytest.raises(ValueError, match=f"{limit} must be ≥ 1, got 0"):
        run(model, views, Threat(eps=0.1), **{limit: 0})
