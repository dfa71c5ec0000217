"""What an attack is, and the two things every attack needs: a seed of its own and batches put together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ardmvc_core.types import Perturb, Views


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One way to perturb views inside a budget."""

    config: type
    """Frozen dataclass whose defaults are usable; the budget is not part of it."""
    prepare: Callable[..., Perturb]
    """prepare(config, model, views, generator, *, budget) → Perturb. Attacks with networks are fitted here, on `views`;
    the others only take their seed. The model is used in the mode it is in and its parameters stay as they are."""


def draw_seed(generator: torch.Generator) -> int:
    """A seed from a stream, so that a finished attack gives the same views each time it is called."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def seeded_on(views: Views, seed: int) -> torch.Generator:
    """A generator that can draw on the device of the views."""
    return torch.Generator(device=views[0].device).manual_seed(seed)


def choose(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the rows that are True, else `old`; rows: (B,) bool, the others (B, …)."""
    return torch.where(rows.view(-1, *(1,) * (new.dim() - 1)), new, old)


def choose_views(rows: Tensor, new: Views, old: Views) -> Views:
    """`choose`, view by view."""
    return tuple(choose(rows, a, b) for a, b in zip(new, old, strict=True))


def joined(batches: list[Views]) -> Views:
    """Batches put together again, view by view."""
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
