"""Square attack on linear models, whose exact distance to the next cluster is known, and where its squares fall."""

import pytest
import torch
from planted_models import image_and_vector, planted
from torch import nn

from ardmvc_core.attacks.objectives.clean_reference import clean_reference
from ardmvc_core.attacks.objectives.per_sample import margin
from ardmvc_core.attacks.searches.square import share_at, square
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.types import ModelOutput


def run(model, views, budget, queries=400, seed=0, batch_size=256):
    reference = clean_reference(model, views, 1000)
    stream = torch.Generator().manual_seed(seed)
    return square(model, views, reference, budget, queries=queries, generator=stream, batch_size=batch_size)


class Recorder(nn.Module):
    """One cluster always wins by 1; remembers every batch that it was asked about."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, views):
        self.seen.append(tuple(view.clone() for view in views))
        logits = torch.tensor([1.0, 0.0]).expand(len(views[0]), 2)
        return ModelOutput(view_latents=views, consensus=views[0], logits=logits, assignments=logits.softmax(1))


class WithoutGradient(nn.Module):
    """The model, of which nothing can be differentiated."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, views):
        assert not torch.is_grad_enabled()
        output = self.model(tuple(view.detach() for view in views))
        logits = output.logits.detach()
        return ModelOutput(
            view_latents=output.view_latents, consensus=logits, logits=logits, assignments=output.assignments
        )


class Counting(nn.Module):
    """The model, and how many samples went through it."""

    def __init__(self, model):
        super().__init__()
        self.model, self.samples = model, 0

    def forward(self, views):
        self.samples += len(views[0])
        return self.model(views)


def test_the_share_of_a_square_is_halved_where_the_paper_halves_it():
    # After 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 steps.
    assert [share_at(step, 10_000) for step in (0, 10, 11, 51, 201, 501)] == [0.8, 0.8, 0.4, 0.2, 0.1, 0.05]
    assert share_at(9999, 10_000) == 0.8 / 512
    # Step 1 of 100 stands for 100 of 10,000.
    assert [share_at(step, 100) for step in (0, 1, 3)] == [0.8, 0.2, 0.1]


@pytest.mark.parametrize("sizes", [(8,), (3, 5), (4, 2, 6)])
def test_a_linear_model_of_two_clusters_is_broken_exactly_where_it_can_be(sizes):
    model, views = planted(sizes=sizes)
    distance = model.distance(views)
    eps = float(distance.median())
    flipped = run(model, views, Threat(eps=eps)).flipped
    assert not flipped[distance > eps * 1.0001].any()
    assert flipped[distance < eps * 0.97].all()


def test_what_is_claimed_is_what_the_model_says_about_the_returned_views():
    model, views = planted(n_clusters=4)
    reference = clean_reference(model, views, 256)
    found = run(model, views, Threat(eps=float(model.distance(views).median())), queries=100)
    output = model(found.views)
    assert torch.equal(output.logits.argmax(1) != reference.clusters, found.flipped)
    torch.testing.assert_close(margin(output, reference), found.best_loss)
    assert 0 < int(found.flipped.sum()) < 64


def test_a_sample_is_asked_about_no_more_than_allowed_and_not_after_its_flip():
    model, views = planted()
    reference = clean_reference(model, views, 256)
    counting = Counting(model)
    budget = Threat(eps=float(model.distance(views).median()))
    found = square(
        counting, views, reference, budget, queries=30, generator=torch.Generator().manual_seed(0), batch_size=7
    )
    assert counting.samples == int(found.queries.sum())
    assert (found.queries[~found.flipped] == 30).all()
    assert int(found.queries[found.flipped].min()) < 10
    assert int(found.queries.max()) == 30


def test_more_queries_are_not_needed_where_one_is_enough():
    model, views = planted()
    found = run(model, views, Threat(eps=1.0), queries=1)
    assert (found.queries == 1).all()


def test_a_seed_decides_and_the_batch_size_does_not():
    model, views = image_and_vector()
    budget = Threat(eps=0.03)
    first, again, cut = (run(model, views, budget, queries=60, batch_size=size) for size in (256, 256, 5))
    other = run(model, views, budget, queries=60, seed=1)
    for same in (again, cut):
        assert torch.equal(first.queries, same.queries)
        assert all(torch.equal(a, b) for a, b in zip(first.views, same.views, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.views, other.views, strict=True))


def test_no_gradient_is_needed():
    model, views = planted()
    budget = Threat(eps=float(model.distance(views).median()))
    plain, masked = run(model, views, budget), run(WithoutGradient(model), views, budget)
    assert torch.equal(plain.flipped, masked.flipped)
    assert torch.equal(plain.queries, masked.queries)


def test_the_arguments_are_left_alone():
    model, views = planted()
    before = tuple(view.clone() for view in views)
    run(model, views, Threat(eps=0.1), queries=20)
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))


def test_the_first_point_is_stripes_and_the_next_a_square_in_one_view():
    model = Recorder()
    views = (torch.full((600, 3, 10, 10), 0.5), torch.full((600, 100), 0.5))
    run(model, views, Threat(eps=0.25), queries=2, batch_size=1000)
    stripes, moved = model.seen[1], model.seen[2]
    assert torch.equal((stripes[0] - 0.5).abs(), torch.full_like(views[0], 0.25))
    assert torch.equal(stripes[0], stripes[0][:, :, :1].expand_as(views[0]))
    assert 0.45 < float((stripes[1] > 0.5).float().mean()) < 0.55
    changed = tuple((a != b) for a, b in zip(stripes, moved, strict=True))
    in_image, in_vector = changed[0].flatten(1).any(1), changed[1].any(1)
    assert not (in_image & in_vector).any()
    # 300 of 400 values are the image's: 450 of 600 squares, ± four standard deviations.
    assert 408 < int(in_image.sum()) < 492
    assert int((in_image | in_vector).sum()) == 600
    # 0.8 of 100 pixels: 9 × 9, at one of four places; of 100 values: 80 in a row.
    rows, columns = changed[0].any(1).any(2), changed[0].any(1).any(1)
    for line in (rows[in_image], columns[in_image]):
        spread = 10 - line.long().argmax(1) - line.flip(1).long().argmax(1)
        assert int(spread.max()) == 9
        assert line.any(0).all()
    spread = 100 - changed[1][in_vector].long().argmax(1) - changed[1][in_vector].flip(1).long().argmax(1)
    assert int(spread.max()) <= 80
    assert float(spread.float().mean()) > 75


def test_no_query_is_spent_on_a_point_that_is_known():
    # Two values, one view: after the stripes every later square covers one value or both, and must change something.
    model = Recorder()
    views = (torch.full((200, 2), 0.5),)
    run(model, views, Threat(eps=0.25), queries=20, batch_size=1000)
    first, *later = model.seen[1:]
    assert all((other[0] != first[0]).any(1).all() for other in later)


@pytest.mark.parametrize("limit", ["queries", "batch_size"])
def test_limits_must_be_positive(limit):
    model, views = planted()
    with pytest.raises(ValueError, match=f"{limit} must be ≥ 1, got 0"):
        run(model, views, Threat(eps=0.1), **{limit: 0})
