"""What every search without gradients keeps to: the radius of each view, the mask, and the box."""

import pytest
import torch
from planted_models import LinearModel, image_and_vector

from ardmvc_core.attacks.objectives.clean_reference import clean_reference
from ardmvc_core.attacks.searches.query_result import may_arrive
from ardmvc_core.attacks.searches.ray_search import ray_search
from ardmvc_core.attacks.searches.square import square
from ardmvc_core.attacks.threat import Threat

# Each with the share of its reach that it covers for sure.
SEARCHES = [pytest.param(square, 0.9, id="square"), pytest.param(ray_search, 0.95, id="rays")]


def run(search, model, views, budget, queries, **settings):
    reference = clean_reference(model, views, 256)
    stream = torch.Generator().manual_seed(0)
    return search(model, views, reference, budget, queries=queries, generator=stream, batch_size=256, **settings)


@pytest.mark.parametrize(("search", "sure"), SEARCHES)
def test_images_and_vectors_have_their_own_radius_and_masked_views_do_not_move(search, sure):
    model, views = image_and_vector()
    distance = model.distance(views, (0.02, 0.0, 0.06))
    # As many samples within reach as not, for radii in the same proportion.
    unit = float(distance.median())
    budget = Threat(eps=(0.02 * unit, 0.3, 0.06 * unit), attacked_views=(0, 2))
    found = run(search, model, views, budget, 1000)
    assert not found.flipped[distance > unit * 1.0001].any()
    assert found.flipped[distance < unit * sure].all()
    assert torch.equal(found.views[1], views[1])
    for v, e in ((0, 0.02), (2, 0.06)):
        assert found.views[v].shape == views[v].shape
        assert 0 < float((found.views[v] - views[v]).abs().max()) <= e * unit + 1e-6


@pytest.mark.parametrize(("search", "_"), SEARCHES)
def test_the_box_limits_what_can_be_reached(search, _):
    # Cluster 1 where x0 + x1 > 0.5. A ball of 0.1 lowers the sum by 0.2, the box below x0 = 0.05 only by 0.15.
    model = LinearModel(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), bias=torch.tensor([0.5, 0.0]))
    views = (torch.tensor([[0.05, 0.59], [0.05, 0.61]]),)
    found = run(search, model, views, Threat(eps=0.1), 100)
    assert found.flipped.tolist() == [True, False]
    torch.testing.assert_close(found.views[0][1], torch.tensor([0.0, 0.51]))


@pytest.mark.parametrize(("search", "_"), SEARCHES)
def test_a_sample_that_comes_no_nearer_is_given_up_at_the_second_look(search, _):
    # Cluster 1 where x0 + x1 > 0.5: a ball of 0.1 lowers the sum by 0.2 at most, and each value is there within a few
    # queries. The first sample would have to fall by 0.3, the second by 0.19.
    model = LinearModel(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), bias=torch.tensor([0.5, 0.0]))
    views = (torch.tensor([[0.4, 0.4], [0.4, 0.29]]),)
    budget = Threat(eps=0.1)
    found = run(search, model, views, budget, 200, patience=20)
    assert found.flipped.tolist() == [False, True]
    assert found.queries[0] == 40
    assert run(search, model, views, budget, 200).queries[0] == 200


def test_a_pace_is_kept_until_the_end_of_the_search():
    inf = torch.inf
    before, now = torch.tensor([4.0, 4.0, 4.0, inf, inf]), torch.tensor([3.0, 2.0, 0.0, 9.0, inf])
    # 3 more to go at 1 a look, 2 at 2 a look, nothing; a first distance; no distance at all.
    assert may_arrive(before, now, 2.5).tolist() == [False, True, True, True, False]
    assert may_arrive(before, now, 3.0).tolist() == [True, True, True, True, False]
