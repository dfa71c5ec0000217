"""The suite on models whose worst case is known by hand."""

from dataclasses import replace

import pytest
import torch
from planted_models import LinearModel, planted
from torch import nn

from ardmvc_core.attacks.kinds import Ascend, Query
from ardmvc_core.attacks.objectives.clean_reference import clean_reference
from ardmvc_core.attacks.searches.apgd import apgd
from ardmvc_core.attacks.suite import run_suite
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.attacks.tiers import TIERS, plan
from ardmvc_core.evaluation.metrics import clustering_scores, fit_map, fixed_map_scores
from ardmvc_core.networks.kmeans import KMeansHead
from ardmvc_core.types import EmbeddingOutput, ModelOutput


def brief(n_clusters=2, queries=100, **options):
    """The standard tier with few queries: what is tested here does not depend on their number."""
    return [
        replace(step, queries=queries) if isinstance(step, Query) else step
        for step in plan("standard", n_clusters, **options)
    ]


def median_case(n_clusters=2, sizes=(3, 5), n=60):
    model, views = planted(n=n, sizes=sizes, n_clusters=n_clusters)
    distance = model.distance(views)
    return model, views, float(distance.median()), distance


@pytest.mark.parametrize("n_clusters", [2, 3, 4, 12])
def test_the_union_is_the_exact_worst_case_of_a_linear_model(n_clusters):
    model, views, eps, distance = median_case(n_clusters)
    result = run_suite(model, views, Threat(eps=eps), tier="tune")
    clear = (distance - eps).abs() > 0.02 * eps
    assert torch.equal(result.flipped[clear], (distance < eps)[clear])
    with torch.no_grad():
        now = model(result.views).logits.argmax(1)
    assert torch.equal(now, result.clusters)
    assert torch.equal(now != result.reference.clusters, result.flipped)


def test_attacks_run_on_survivors_and_new_flips_add_up():
    model, views, eps, _ = median_case(5)
    result = run_suite(model, views, Threat(eps=eps), tier="tune")
    gone = torch.zeros(60, dtype=torch.bool)
    for record in result.records:
        assert not (record.tested & gone).any()
        gone |= record.flipped
    assert sum(record.new for record in result.records) == int(result.flipped.sum())
    assert torch.equal(gone, result.flipped)


def test_everyone_is_attacked_where_attacks_are_compared():
    model, views, eps, _ = median_case(5)
    survivors = run_suite(model, views, Threat(eps=eps), tier="tune")
    everyone = run_suite(model, views, Threat(eps=eps), tier="tune", everyone=True)
    assert all(bool(record.tested.all()) for record in everyone.records)
    assert bool((everyone.flipped >= survivors.flipped).all())


def test_each_attack_of_the_standard_tier_runs_or_says_why_not():
    model, views, eps, _ = median_case(4, n=12)
    result = run_suite(model, views, Threat(eps=eps / 4), tier="standard", attacks=brief(4))
    assert [record.key for record in result.records] == [step.key for step in plan("standard", 4)]
    skipped = {record.key: record.skipped for record in result.records if record.skipped}
    assert skipped.keys() == {"transfer", "gan_official", "generator", "batch_contrast", "batch_mix"}
    assert "attacker views" in skipped["generator"]
    assert "one width" in skipped["batch_mix"]


def test_in_l2_a_tier_breaks_what_can_be_broken_and_leaves_out_what_knows_only_linf():
    model, views = planted(n=24, n_clusters=3)
    distance = model.distance(views, norm="l2")
    budget = Threat(norm="l2", eps=float(distance.median()))
    result = run_suite(model, views, budget, tier="tune")
    clear = (distance / budget.eps - 1).abs() > 0.01
    assert torch.equal(result.flipped[clear], (distance < budget.eps)[clear])
    options = {"tier": "standard", "attacks": brief(3), "surrogates": (model,)}
    records = run_suite(model, views, budget, attacker_views=views, **options).records
    skipped = {record.key for record in records if record.skipped == "it attacks in L∞ only"}
    assert skipped == {"square", "gan_official", "generator", "rays"}
    assert not any(record.skipped for record in records if record.key.startswith(("apgd", "transfer")))


def test_generators_and_surrogates_break_what_can_be_broken():
    model, views, eps, distance = median_case(2, sizes=(4, 4), n=24)
    _, many = planted(n=100, sizes=(4, 4), seed=3)
    other, _ = planted(sizes=(4, 4), seed=5)
    options = {"tier": "standard", "everyone": True, "attacks": brief()}
    result = run_suite(model, views, Threat(eps=2 * eps), attacker_views=many, surrogates=(model,), **options)
    assert not any(record.skipped for record in result.records)
    clear = (distance / (2 * eps) - 1).abs() > 0.02
    assert torch.equal(result.flipped[clear], (distance < 2 * eps)[clear])
    # A surrogate that is the model itself transfers perfectly.
    assert result.record("transfer").flip_rate >= 0.95 * result.flip_rate
    weak = run_suite(model, views, Threat(eps=eps), surrogates=(other,), **options)
    assert weak.record("transfer").flip_rate <= weak.record("apgd_ce").flip_rate


def test_views_outside_the_mask_stay_bit_for_bit():
    model, views, _, _ = median_case(3, sizes=(4, 2, 3))
    budget = Threat(eps=0.1, attacked_views=(0, 2))
    result = run_suite(model, views, budget, tier="standard", attacker_views=views, attacks=brief(3))
    assert torch.equal(result.views[1], views[1])
    clear = (model.distance(views, (0.1, 0.0, 0.1)) - 1).abs() > 0.02
    assert torch.equal(result.flipped[clear], (model.distance(views, (0.1, 0.0, 0.1)) < 1)[clear])


def test_a_model_without_gradients_is_broken_by_what_needs_none():
    model, views, eps, distance = median_case(2, n=20)

    class Masked(LinearModel):
        def forward(self, views):
            with torch.no_grad():
                return super().forward(views)

    masked = Masked(model.weight.data, model.bias.data)
    result = run_suite(masked, views, Threat(eps=2 * eps), tier="standard", attacks=brief(queries=1000))
    assert result.record("apgd_ce").details["zero_gradient"] == 1.0
    # Random starts alone flip a few; searches find the rest.
    blind = sum(record.new for record in result.records if record.key.startswith(("apgd", "batch")))
    found = result.record("square").new + result.record("rays").new
    assert found > blind
    assert bool(result.flipped[distance < 1.6 * eps].all())
    assert not bool(result.flipped[distance > 2 * eps].any())


def test_a_constant_partition_cannot_be_moved():
    model = LinearModel(torch.zeros(3, 8), torch.tensor([1.0, 0.0, 0.0]))
    _, views = planted()
    result = run_suite(model, views, Threat(eps=0.5), tier="tune")
    assert result.flip_rate == 0.0


def test_frozen_centroids_are_attacked_through_their_logits():
    class Centroids(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = KMeansHead(2, 2)
            self.head.centroids.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
            self.head.temperature.fill_(0.5)

        def forward(self, views):
            features = torch.cat(views, 1)
            logits = self.head(features)
            return EmbeddingOutput(
                view_latents=views, consensus=features, logits=logits, assignments=logits.softmax(1), embedding=features
            )

    # The bisector is x + y = 1: a sample at s = x + y is |s − 1| / 2 away from it in L∞.
    views = (torch.tensor([[0.2], [0.35], [0.55], [0.9]]), torch.tensor([[0.2], [0.45], [0.55], [0.9]]))
    model = Centroids()
    result = run_suite(model, views, Threat(eps=0.12), tier="standard", attacks=brief(centroid_head=True))
    assert run_suite(model, views, Threat(eps=0.12), tier="tune").flipped.tolist() == result.flipped.tolist()
    assert result.flipped.tolist() == [False, True, True, False]
    assert "apgd_centroid" not in [step.key for step in plan("standard", 2, centroid_head=True)]


def test_consistent_relabelling_is_seen_by_flips_and_fixed_maps_only():
    # Four groups around the corners of a square, cluster j + 1 always a step of 0.4 away.
    corners = torch.tensor([[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]])
    labels = torch.arange(4).repeat_interleave(10)
    stream = torch.Generator().manual_seed(0)
    points = corners[labels] + 0.02 * torch.randn(40, 2, generator=stream)

    class Nearest(nn.Module):
        def forward(self, views):
            x = torch.cat(views, 1)
            logits = -20 * (x[:, None, :] - corners).square().sum(2)
            return ModelOutput(view_latents=views, consensus=x, logits=logits, assignments=logits.softmax(1))

    def cyclic(output, clean):
        return -nn.functional.cross_entropy(output.logits, (clean.clusters + 1) % 4, reduction="none")

    views = (points[:, :1], points[:, 1:])
    model = Nearest()
    reference = clean_reference(model, views, 64)
    run = apgd(model, views, reference, cyclic, Threat(eps=0.42), steps=100, generator=torch.Generator().manual_seed(0))
    clusters = model(run.best_views).logits.argmax(1)
    assert bool((clusters != reference.clusters).all())
    mapping = fit_map(labels, reference.clusters, 4)
    assert fixed_map_scores(labels, clusters, mapping).acc <= 0.05
    assert clustering_scores(labels, clusters, 4).acc >= 0.95


def test_passes_are_counted_and_bounded_by_the_plan():
    model, views, _, _ = median_case(4, n=20)
    result = run_suite(model, views, Threat(eps=1e-4), tier="tune")
    for record, step in zip(result.records, plan("tune", 4), strict=True):
        assert record.forwards == 20 * step.forwards
        assert record.backwards == record.forwards - 20


def test_progress_rises_to_one():
    model, views, eps, _ = median_case(3, n=8)
    told = []
    run_suite(model, views, Threat(eps=eps), tier="tune", progress=lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("n_clusters", [2, 3, 10, 40])
def test_tiers_have_the_targets_that_there_are(tier, n_clusters):
    for name, most in (("apgd_target", {"probe": 1, "tune": 0}), ("apgd_soft_target", {"probe": 0, "tune": 4})):
        targets = [step for step in plan(tier, n_clusters) if step.key.startswith(name)]
        assert len(targets) == min(most.get(tier, 9), n_clusters - 1)
    assert len({step.key for step in plan(tier, n_clusters)}) == len(plan(tier, n_clusters))


def test_costs_are_those_of_the_specification():
    def gradient_steps(tier, soft):
        steps = [step for step in plan(tier, 10) if isinstance(step, Ascend)]
        return sum(step.steps * step.restarts for step in steps if step.soft == soft)

    # 20 + 20; 40; 100 + 9 × 100 + 100 + 100.
    assert [gradient_steps(tier, False) for tier in ("probe", "tune", "standard")] == [40, 40, 1200]
    # Beyond it, what sees past dead units: 100 + 4 × 40; 100 + 9 × 100.
    assert [gradient_steps(tier, True) for tier in ("probe", "tune", "standard")] == [0, 260, 1000]


def test_an_unknown_tier_is_refused():
    model, views, eps, _ = median_case()
    with pytest.raises(ValueError, match="tier must be one of probe, tune, standard, plus, got 'strong'"):
        run_suite(model, views, Threat(eps=eps), tier="strong")
