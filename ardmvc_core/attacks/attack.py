"""What an attack is, and what every attack needs: a seed of its own, batches put together, and rows chosen."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ardmvc_core.attacks.objectives.clean_reference import CleanReference
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.types import Views


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What all attacks of a run are told."""

    model: nn.Module
    """The target, in inference mode."""
    budget: Threat
    seed: int
    batch_size: int
    """Samples of a pass, ≥ 1."""
    attacker_views: Views | None
    """V × (M, *shape_v), other samples, on which generators are fitted."""
    surrogates: Sequence[nn.Module]
    """Models of the attacker's own."""


@dataclass(frozen=True)
class AttackedPoints:
    """What an attack claims: one point per sample, before anything is checked."""

    views: Views
    """V × (B, *shape_v)."""
    details: dict[str, float] = field(default_factory=dict)
    """Diagnostics by name; shares in [0, 1]."""
    curve: tuple[float, ...] = ()
    """Mean best loss after each step, for gradient attacks."""


class NotApplicable(Exception):
    """The attack has no meaning for this model or without what it needs; the message says why."""


class Attack(Protocol):
    """One entry of a tier: frozen data that can run itself, so that equal tiers are equal attacks."""

    @property
    def key(self) -> str:
        """Name of the attack's metrics and of its random stream."""

    @property
    def most_samples(self) -> int | None:
        """At most so many survivors are attacked; None: all."""

    @property
    def forwards(self) -> int:
        """Passes through the target for a sample that survives, fitting of generators not counted."""

    @property
    def backwards(self) -> int:
        """Of these, passes that are differentiated."""

    def run(self, scene: Scene, views: Views, clean: CleanReference, stream: torch.Generator) -> AttackedPoints:
        """Attacks V × (B, *shape_v) clean views, B ≥ 1; `clean` is the reference of these samples, `stream` the
        attack's own. Raises: NotApplicable."""


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


def joined_views(batches: list[Views]) -> Views:
    """Batches put together again, view by view."""
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
