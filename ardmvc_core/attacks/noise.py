"""Random noise of the same budget: no attack, but the floor that every attack must beat."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ardmvc_core.attacks.attack import draw_seed, seeded_on
from ardmvc_core.attacks.threat import Threat, per_row, project, unit_length
from ardmvc_core.ranges import check_values
from ardmvc_core.types import Perturb, Views

NoiseKind = Literal["uniform", "sign"]
NOISE_KINDS: tuple[NoiseKind, ...] = ("uniform", "sign")


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """One draw of noise."""

    kind: NoiseKind = "sign"
    """`uniform` over the ball, or `sign`: ±ε, a random corner of the ball; in L2 a random point on its surface."""

    def __post_init__(self) -> None:
        check_values(self)


def prepare_noise(
    config: NoiseConfig, model: nn.Module, views: Views, generator: torch.Generator, *, budget: Threat
) -> Perturb:
    """Noise with a fixed draw.

    Args: model and views are not read. generator: gives the seed of the draw.
    Returns: a Perturb whose output is inside the budget; equal inputs give equal noise.
    """
    seed = draw_seed(generator)

    def perturb(model: nn.Module, views: Views) -> Views:
        stream = seeded_on(views, seed)
        noisy = []
        for view, eps in zip(views, budget.eps_per_view(len(views)), strict=True):
            if budget.norm == "l2":
                noisy.append(view + eps * _in_unit_ball(config.kind, view, stream))
                continue
            noise = torch.rand(view.shape, generator=stream, device=view.device, dtype=view.dtype) * 2 - 1
            if config.kind == "sign":
                noise = torch.where(noise < 0, -torch.ones_like(noise), torch.ones_like(noise))
            noisy.append(view + eps * noise)
        return project(views, tuple(noisy), budget)

    return perturb


def _in_unit_ball(kind: NoiseKind, view: Tensor, stream: torch.Generator) -> Tensor:
    """(B, *shape) draws from the L2 ball of radius 1, or from its surface."""
    point = unit_length(torch.randn(view.shape, generator=stream, device=view.device, dtype=view.dtype))
    if kind == "uniform":
        draw = torch.rand(len(view), generator=stream, device=view.device, dtype=view.dtype)
        point = point * per_row(draw ** (1 / view[0].numel()), point)
    return point
