"""Projected gradient ascent on any scalar of the views, used to train AR-DMVC and to attack finished models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ardmvc_core.attacks.threat import Threat, limits, project_view, steepest, unit_length
from ardmvc_core.types import Views


def random_start(views: Views, budget: Threat, generator: torch.Generator) -> Views:
    """Clean views with noise on each attacked view, not projected: uniform from (−ε, ε), in L2 of length ε.

    Args:   views: V × (B, *shape). generator: on the views' device.
    Returns: V × (B, *shape), possibly outside the bounds.
    """
    moved = []
    for x, e in zip(views, budget.eps_per_view(len(views)), strict=True):
        if e == 0:
            moved.append(x)
        elif budget.norm == "linf":
            draw = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            moved.append(x + draw.mul_(2 * e).sub_(e))
        else:
            draw = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            moved.append(x + e * unit_length(draw))
    return tuple(moved)


def pgd(
    objective: Callable[[Views], Tensor],
    views: Views,
    budget: Threat,
    *,
    step_ratio: float,
    steps: int,
    start: Views,
) -> Views:
    """Maximises a scalar of the views by steepest steps in the budget's norm, each followed by projection.

    Args:   objective: scalar of the views, differentiable; called `steps` times. Only gradients with respect to the
            attacked views are formed; run it under `frozen(model)`, or the graph also keeps what the parameters'
            gradients would need. views: V × (B, *shape), clean. step_ratio: > 0, length of a step over the view's ε.
            steps: ≥ 1.
            start: V × (B, *shape), where the ascent begins; it enters the first iteration as it is (the published
            code evaluates the noisy start before any clipping).
    Returns: V × (B, *shape), detached, inside the budget. A view that the objective does not read keeps its start,
        projected; a view that is not attacked comes back clean.
    Raises: ValueError if step_ratio or steps is not positive.
    Source: Madry et al. 2018, Eq. 2 ff.; inner maximisation of AR-DMVC (ICML 2024).
    """
    if not step_ratio > 0:
        raise ValueError(f"step_ratio must be > 0, got {step_ratio}")
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
                moved = current[v]
                if gradient is not None:
                    moved = torch.add(moved, steepest(gradient, budget.norm), alpha=eps[v] * step_ratio)
                current[v] = project_view(clean[v], moved, lows[v], highs[v], eps[v] if budget.norm == "l2" else None)
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
