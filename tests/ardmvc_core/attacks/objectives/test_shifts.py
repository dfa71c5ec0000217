"""Shifts on numbers worked out by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ardmvc_core.attacks.objectives.shifts import (
    complementarity_shift,
    consistency_shift,
    latent_spread,
    shift,
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
    assert latent_spread(torch.tensor([[0.0], [1.0], [3.0]])).item() == pytest.approx(14 / 3)
    assert latent_spread(torch.tensor([[2.0, 5.0]])).item() == 1
    assert latent_spread(torch.ones(4, 2)).item() == 1
