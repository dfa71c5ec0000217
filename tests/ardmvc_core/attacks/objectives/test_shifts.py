"""Shifts and white-box objectives on numbers worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ardmvc_core.attacks.objectives.shifts import (
    assignment_objective,
    complementarity_shift,
    consistency_shift,
    contrastive_objective,
    features_objective,
    shift,
    spread,
)


class Readable(nn.Module):
    """Latents are the views, the consensus is their sum, the logits are the first view."""

    def encode(self, views):
        return views

    def forward(self, views):
        logits = views[0]
        return SimpleNamespace(
            view_latents=views, consensus=views[0] + views[1], logits=logits, assignments=logits.softmax(1)
        )


CLEAN = (torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
MOVED = (torch.tensor([[3.0, 4.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]]))


@pytest.mark.parametrize(
    ("distance", "com", "con"),
    [
        ("squared_mean", 25 / 2 + 4 / 2, (25 + 4) / 2),
        ("norm_sum", 5 / 2 + 2 / 2, (5 + 2) / 2),
    ],
)
def test_shifts_of_two_outputs(distance, com, con):
    clean, attacked = Readable()(CLEAN), Readable()(MOVED)
    assert complementarity_shift(clean, attacked, distance).item() == pytest.approx(com)
    assert consistency_shift(clean, attacked, distance).item() == pytest.approx(con)
    assert complementarity_shift(clean, clean, distance).item() == 0


def test_unsquared_distance_of_nothing_has_a_finite_gradient():
    point = torch.zeros(2, 3, requires_grad=True)
    shift(torch.zeros(2, 3), point, "norm_sum").backward()
    assert not point.grad.any()


def test_spread_is_the_mean_squared_distance_of_different_samples():
    # Pairs of 0, 1 and 3 are 1, 4 and 9 apart in squares.
    assert spread(torch.tensor([[0.0], [1.0], [3.0]])).item() == pytest.approx(14 / 3)
    assert spread(torch.tensor([[2.0, 5.0]])).item() == 1
    assert spread(torch.ones(4, 2)).item() == 1


def test_features_are_measured_in_units_of_their_spread():
    # Squared distances of the clean samples: view 0 4, view 1 none (so 1), consensus 4.
    value = features_objective(Readable(), CLEAN)
    assert value(CLEAN).tolist() == [0, 0]
    assert value(MOVED).tolist() == pytest.approx([25 / 4 + 0 + 25 / 4, 0 + 4 / 1 + 4 / 4])


def test_contrastive_loss_of_two_samples():
    # Equal latents in both views, samples at right angles: each anchor meets cosines 1 (itself in the other view),
    # 0 and 0; divided by the temperature ½ that is 2, 0, 0.
    views = (torch.eye(2), 5 * torch.eye(2))
    want = math.log(math.exp(2) + 2) - 2
    assert contrastive_objective(Readable(), 0.5)(views).item() == pytest.approx(want)


def test_assignment_error_refers_to_the_clean_cluster():
    clean = (torch.tensor([[0.0, 1.0], [3.0, 0.0]]), torch.zeros(2, 2))
    attacked = (torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), torch.zeros(2, 2))
    value = assignment_objective(Readable(), clean)
    assert value(attacked).tolist() == pytest.approx([math.log(4), math.log(2)])  # shares ¼ and ½


def test_a_saturated_model_still_shows_a_gradient():
    clean = (torch.tensor([[60.0, 0.0]]), torch.zeros(1, 2))
    value = assignment_objective(Readable(), clean)
    logits = clean[0].clone().requires_grad_()
    value((logits, clean[1])).sum().backward()
    assert clean[0].softmax(1)[0, 0] == 1
    assert logits.grad[0, 1] > 0
