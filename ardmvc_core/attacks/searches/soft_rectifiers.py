"""Gradients that see past rectifiers which are off.

A ReLU that is off on every clean sample passes no gradient, and where BatchNorm follows it, as in the clustering head
of DDC, its running variance is nearly 0, so that the slope behind it is up to 1/√1e-5: a push that turns such a unit on
moves the sample across the boundary at once, and no gradient says so. Here the forward pass stays exact and only the
backward pass is another one: a unit that is off passes the more gradient the nearer it is to being on.

Source: the backward pass differentiable approximation of Athalye et al. 2018, with a sigmoid for the step of the ReLU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SOFTNESS = 0.25
"""Distance from 0 over which a unit that is off fades, in units of the mean size of the layer's inputs for a sample."""


class _SoftReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs.clamp(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        # Each sample has its own: what it is attacked together with must not matter.
        size = inputs.reshape(len(inputs), -1).abs().mean(1).clamp(min=torch.finfo(inputs.dtype).tiny)
        width = SOFTNESS * size.view(-1, *[1] * (inputs.dim() - 1))
        return (inputs / width).clamp_(max=0).sigmoid_().mul_(gradient).mul_(2)


@contextmanager
def soft_rectifiers(model: nn.Module) -> Iterator[None]:
    """Inside, every `nn.ReLU` of the model passes 2σ(x / width) of the gradient where its input x is below 0, and
    gives what it always gives. The width is `SOFTNESS` times the mean |x| of the sample. Derivatives of second order
    are refused."""
    rectifiers = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    for module in rectifiers:
        module.forward = _SoftReLU.apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in rectifiers:
            del module.forward
