"""Gradients past rectifiers that are off: exact values, and a masked model whose worst case is known by hand."""

import math

import pytest
import torch
from torch import nn

from ardmvc_core.attacks.searches.soft_rectifiers import soft_rectifiers
from ardmvc_core.attacks.suite import run_suite
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.types import ModelOutput

WIDTH = 64
EPS = 0.1


class DeadUnit(nn.Module):
    """Cluster 1 where Σx exceeds a threshold, through a ReLU that is off on every clean sample and a steep slope."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.rectifier = nn.ReLU()
        self.threshold = threshold

    def forward(self, views: tuple[torch.Tensor, ...]) -> ModelOutput:
        x = torch.cat(views, 1)
        unit = 300 * self.rectifier(x.sum(1) - self.threshold)
        logits = torch.stack([torch.ones_like(unit), unit], dim=1)
        return ModelOutput(view_latents=views, consensus=logits, logits=logits, assignments=logits.softmax(1))


def test_values_are_the_relu_and_slopes_fade_below_zero():
    model = nn.Sequential(nn.ReLU(inplace=True))
    row = [-4.0, -0.5, 0.25, 3.25]
    width = 0.25 * 2  # mean size of the inputs: 2
    slopes = pytest.approx([2 / (1 + math.exp(4 / width)), 2 / (1 + math.exp(0.5 / width)), 1, 1])
    # Large or small neighbours in the batch change nothing, and inputs may have channels.
    for rows in ([row], [row, [50.0] * 4], [row, [1e-3] * 4]):
        for shape in ((len(rows), 4), (len(rows), 2, 2)):
            inputs = torch.tensor(rows, dtype=torch.float64).reshape(shape).requires_grad_()
            with soft_rectifiers(model):
                out = model(inputs)
            assert out[0].flatten().tolist() == [0, 0, 0.25, 3.25]
            assert torch.autograd.grad(out.sum(), inputs)[0][0].flatten().tolist() == slopes


def test_the_model_is_as_before_also_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    inputs = torch.tensor([[1.0, -1.0]])
    with pytest.raises(RuntimeError, match="inside"), soft_rectifiers(model):
        raise RuntimeError("inside")
    assert "forward" not in vars(model[1])
    x = torch.tensor([-1.0, 1.0], requires_grad=True)
    assert torch.autograd.grad(model[1](x).sum(), x)[0].tolist() == [0, 1]
    assert model(inputs).shape == (1, 2)


def test_a_unit_that_is_off_on_clean_samples_is_turned_on_where_the_ball_allows_it():
    # A move of ε adds at most 64 · 0.1 = 6.4 to the sum; a random point of the ball adds 0.46 (standard deviation).
    missing = torch.tensor([3.0, 5.0, 6.2, 6.6, 9.0])
    x = torch.full((5, WIDTH), 0.5)
    x -= (missing / WIDTH)[:, None]
    views = (x[:, :20], x[:, 20:])
    model = DeadUnit(threshold=0.5 * WIDTH)
    result = run_suite(model, views, Threat(eps=EPS), tier="tune")
    found = {record.key: int(record.flipped.sum()) for record in result.records}
    assert result.flipped.tolist() == [True, True, True, False, False]
    assert found.pop("apgd_soft_margin") == 3
    assert set(found.values()) == {0}
