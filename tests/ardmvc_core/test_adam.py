"""Adam against torch's own, and that training loads nothing of torch's compiler."""

import subprocess
import sys

import pytest
import torch

from ardmvc_core.adam import Adam

RATES = (1e-3, 1e-2)
BETAS = (0.95, 0.99)
WITHOUT_THE_COMPILER = """
import sys
import torch
from ardmvc_core.models import MODELS
from ardmvc_core.training import Trainer
method = MODELS["ar_dmvc_am"]
config = method.config(train_steps=1)
shapes = ((1, 8, 8), (1, 8, 8))
views = tuple(torch.rand(8, *shape) for shape in shapes)
trainer = Trainer(method.build(config, shapes, 2), method.stages(config, 1), views, batch_size=4, seed=0)
trainer.run_epoch()
trainer.state_dict()
sys.exit("torch._dynamo" in sys.modules)
"""


def _groups(dtype: torch.dtype):
    stream = torch.Generator().manual_seed(3)
    shapes = ((4, 3), (3,)), ((2, 1, 3, 3), ())
    return [
        [torch.nn.Parameter(torch.randn(shape, generator=stream, dtype=dtype)) for shape in group] for group in shapes
    ]


def _flat(groups):
    return [parameter for group in groups for parameter in group]


def _ours(groups) -> Adam:
    return Adam(list(zip(groups, RATES, strict=True)), BETAS)


def _torchs(groups) -> torch.optim.Adam:
    return torch.optim.Adam([{"params": group, "lr": lr} for group, lr in zip(groups, RATES, strict=True)], betas=BETAS)


def _walk(groups, optimizer, steps: range, skipped: int | None = None) -> None:
    """Steps along gradients that depend on the step alone; parameter `skipped` has none."""
    for step in steps:
        stream = torch.Generator().manual_seed(step)
        for number, parameter in enumerate(_flat(groups)):
            gradient = torch.randn(parameter.shape, generator=stream, dtype=parameter.dtype)
            parameter.grad = None if number == skipped else gradient
        optimizer.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("skipped", [None, 1])
def test_steps_are_torchs(dtype, tolerance, skipped):
    ours, torchs = _groups(dtype), _groups(dtype)
    _walk(ours, _ours(ours), range(20), skipped)
    _walk(torchs, _torchs(torchs), range(20), skipped)
    for got, wanted in zip(_flat(ours), _flat(torchs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("before", "after"), [(_ours, _torchs), (_torchs, _ours), (_ours, _ours)])
def test_state_goes_on_in_either(before, after):
    whole, halves = _groups(torch.float64), _groups(torch.float64)
    _walk(whole, _torchs(whole), range(8))
    first, second = before(halves), after(halves)
    _walk(halves, first, range(5))
    if isinstance(second, Adam):
        second.load_state_dict(first.state_dict())
    else:
        second.load_state_dict({**first.state_dict(), "param_groups": second.state_dict()["param_groups"]})
    kept = {number: entry["exp_avg"].clone() for number, entry in first.state_dict()["state"].items()}
    _walk(halves, second, range(5, 8))
    for got, wanted in zip(_flat(halves), _flat(whole), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    if isinstance(second, Adam):
        assert all(torch.equal(first.state_dict()["state"][number]["exp_avg"], value) for number, value in kept.items())


def test_state_of_other_parameters_is_refused():
    groups = _groups(torch.float32)
    other = Adam([(groups[0], 1e-3)])
    with pytest.raises(ValueError, match="different number of parameter groups or parameters: \\[2, 2\\], not \\[2\\]"):
        other.load_state_dict(_ours(groups).state_dict())


def test_training_does_not_import_torchs_compiler():
    subprocess.run([sys.executable, "-c", WITHOUT_THE_COMPILER], check=True)
