"""Projected gradient ascent on any scalar of the views, used to train AR-DMVC and to attack finished models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ardmvc_core.attacks.budget import AttackBudget, limits
from ardmvc_core.types import Views


def random_start(views: Views, budget: AttackBudget, generator: torch.Generator) -> Views:
    """Clean views with uniform noise from (−ε, ε) on each attacked view, not projected.

    Args:   views: V × (B, *shape). generator: on the views' device.
    Returns: V × (B, *shape), possibly outside the bounds.
    """
    eps = budget.eps_per_view(len(views))
    return tuple(
        x + torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype).mul_(2 * e).sub_(e) if e > 0 else x
        for x, e in zip(views, eps, strict=True)
    )


def pgd(
    objective: Callable[[Views], Tensor],
    views: Views,
    budget: AttackBudget,
    *,
    step_size: float,
    steps: int,
    start: Views,
) -> Views:
    """Maximises a scalar of the views by signed gradient steps, each followed by projection into the budget.

    Args:   objective: scalar of the views, differentiable; called `steps` times. Only gradients with respect to the
            attacked views are formed; run it under `frozen(model)`, or the graph also keeps what the parameters'
            gradients would need. views: V × (B, *shape), clean. step_size: > 0, in input units. steps: ≥ 1.
            start: V × (B, *shape), where the ascent begins; it enters the first iteration as it is (the published
            code evaluates the noisy start before any clipping).
    Returns: V × (B, *shape), detached, inside the budget. A view that the objective does not read keeps its start,
        projected; a view that is not attacked comes back clean.
    Raises: ValueError if step_size or steps is not positive.
    Source: Madry et al. 2018, Eq. 2 ff.; inner maximisation of AR-DMVC (ICML 2024).
    """
    if not step_size > 0:
        raise ValueError(f"step_size must be > 0, got {step_size}")
    if not steps >= 1:
        raise ValueError(f"steps must be ≥ 1, got {steps}")
    eps = budget.eps_per_view(len(views))
    clean = tuple(x.detach() for x in views)
    lows, highs = limits(clean, budget)
    attacked = [v for v, e in enumerate(eps) if e > 0]
    current = [start[v].detach() if v in attacked else x for v, x in enumerate(clean)]
    for _ in range(steps):
        for v in attacked:
            current[v] = current[v].detach().requires_grad_()
        with torch.enable_grad():
            value = objective(tuple(current))
            gradients = torch.autograd.grad(value, [current[v] for v in attacked], allow_unused=True)
        with torch.no_grad():
            for v, gradient in zip(attacked, gradients, strict=True):
                # A view that the objective ignores has no gradient: it only gets projected.
                moved = current[v] if gradient is None else torch.add(current[v], gradient.sign(), alpha=step_size)
                current[v] = torch.clamp(moved, lows[v], highs[v])
    return tuple(x.detach() for x in current)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter of the model asks for a gradient; on leaving, each asks again as it did before."""
    asking = [p for p in model.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm's running statistics are not updated; which statistics it normalises with does not change.

    In training mode it goes on using those of the batch, in evaluation mode the stored ones.
    """
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
