"""L2, replaced and dropped views on linear models, where it is known by hand which samples change their cluster."""

import pytest
import torch
from planted_models import LinearModel, planted

from ardmvc_core.attacks.other_threats import run_other_threat
from ardmvc_core.attacks.threat import sample_distances
from ardmvc_core.attacks.tiers import OTHER_THREATS


def signs(first, second, weights=(1.0, 1.0)):
    """Two views of one value; cluster 1 where w_0 · x_0 + w_1 · x_1 is above half of the weights, else cluster 0."""
    a, b = weights
    model = LinearModel(torch.tensor([[0.0, 0.0], [a, b]]), bias=torch.tensor([(a + b) / 2, 0.0]))
    return model, tuple(torch.tensor(values).unsqueeze(1) for values in (first, second))


def test_l2_flips_exactly_the_samples_within_the_stated_radii():
    # Balls of radius ε_v raise a score w·x by Σ_v ε_v |w_v|₂ at most; ε_v is a share of the median distance.
    model, views = planted(sizes=(4, 6), n_clusters=3)
    distances = sample_distances(views)
    distance = model.distance(views, distances, "l2")
    share = float(distance.median())
    found = run_other_threat("apgd_l2", model, views, l2_eps=share)
    assert found.radii == pytest.approx([share * d for d in distances])
    clear = (distance - share).abs() > 0.01 * share
    assert torch.equal(torch.from_numpy(found.flipped)[clear], (distance < share)[clear])
    assert 0 < found.noise_flip < found.flipped.mean()


def test_l2_has_a_radius_for_each_view_and_leaves_the_others_alone():
    model, views = planted(sizes=(4, 6))
    distances = sample_distances(views)
    reach = (0.0, 0.2 * distances[1])
    found = run_other_threat("apgd_l2", model, views, l2_eps=(0.1, 0.2), attacked_views=(1,))
    assert found.radii == pytest.approx(reach)
    distance = model.distance(views, reach, "l2")
    clear = (distance - 1).abs() > 0.01
    assert torch.equal(torch.from_numpy(found.flipped)[clear], (distance < 1)[clear])
    with pytest.raises(ValueError, match=r"must be one number or 2 \(one per view\)"):
        run_other_threat("apgd_l2", model, views, l2_eps=(0.1, 0.2, 0.3))


def test_a_dropped_view_is_the_mean_and_the_worse_view_counts():
    # Means 0.5 and 0.55. Sums of two views against 1, clean and with the first or the second at its mean:
    #   0.9 + 0.6 = 1.5    1.1, 1.45   stays
    #   0.9 + 0.3 = 1.2    0.8         flips without the first
    #   0.1 + 0.8 = 0.9    1.3         flips without the first
    #   0.1 + 0.5 = 0.6    1.0         the tie is cluster 0's, as on clean views; 0.65 stays
    model, views = signs([0.9, 0.9, 0.1, 0.1], [0.6, 0.3, 0.8, 0.5 - 1e-3])
    found = run_other_threat("view_dropped", model, views, l2_eps=0.1)
    assert found.flipped.tolist() == [False, True, True, False]
    # Without the second only: 1.45, 1.45, 0.65, 0.65, all as before.
    only = run_other_threat("view_dropped", model, views, l2_eps=0.1, attacked_views=(1,))
    assert not only.flipped.any()
    assert (found.radii, found.noise_flip, found.skipped) == ((), None, "")


def test_a_replaced_view_is_that_of_the_other_sample_and_the_worse_view_counts():
    # Cluster 1 where 3 x_0 + x_1 > 2; of two samples each stands in for the other. Clean 2.3 and 1.9.
    #   sample 0: first view 1.8 + 0.5 = 2.3 stays, second view 1.8 + 0.1 = 1.9 flips
    #   sample 1: second view 1.8 + 0.5 = 2.3 flips
    model, views = signs([0.6, 0.6], [0.5, 0.1], weights=(3.0, 1.0))
    assert run_other_threat("view_replaced", model, views, l2_eps=0.1).flipped.tolist() == [True, True]
    first = run_other_threat("view_replaced", model, views, l2_eps=0.1, attacked_views=(0,))
    assert first.flipped.tolist() == [False, False]
    # 3.2 and 1.9: sample 0 stays with the other's first view (2.3) and with its second (2.8); sample 1 flips to 2.8.
    model, views = signs([1.0, 0.7], [0.2, -0.2], weights=(3.0, 1.0))
    assert run_other_threat("view_replaced", model, views, l2_eps=0.1).flipped.tolist() == [False, True]


def test_no_sample_stands_in_for_itself_and_a_seed_fixes_who_does():
    # Sample 0 alone is of cluster 1, by its first view: it moves, and so does exactly the one that it stands in for.
    model, views = signs([0.9] + [0.1] * 8, [0.5] * 9, weights=(3.0, 1.0))
    moved = [run_other_threat("view_replaced", model, views, l2_eps=0.1, seed=seed).flipped for seed in (1, 1, 2, 3, 4)]
    assert all(flipped[0] and flipped.sum() == 2 for flipped in moved)
    assert moved[0].tolist() == moved[1].tolist()
    assert len({tuple(flipped) for flipped in moved}) > 1


@pytest.mark.parametrize(
    ("key", "views", "words"),
    [
        ("apgd_l2", (torch.full((3, 1), 0.2), torch.full((3, 1), 0.9)), "samples do not differ"),
        ("apgd_l2", (torch.full((1, 1), 0.2), torch.full((1, 1), 0.9)), "samples do not differ"),
        ("view_replaced", (torch.full((1, 1), 0.2), torch.full((1, 1), 0.9)), "no other sample"),
        ("view_dropped", (torch.rand(3, 2),), "one view only"),
        ("view_replaced", (torch.rand(3, 2),), "one view only"),
    ],
)
def test_what_cannot_be_attacked_says_so(key, views, words):
    found = run_other_threat(key, signs([0.0], [0.0])[0], views, l2_eps=0.1)
    assert words in found.skipped
    assert not found.flipped.any()


@pytest.mark.parametrize("key", OTHER_THREATS)
def test_the_model_is_left_as_it_was_found(key):
    model, views = planted(n=8)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run_other_threat(key, model, views, l2_eps=0.1)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
