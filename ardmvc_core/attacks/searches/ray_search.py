"""Ray search on several views: an attack that sees only in which cluster a sample is.

Source: Chen & Gu 2020 (RayS, Algorithms 1 to 3), here on the concatenated values of the attacked views. A direction has
a sign per value, and its radius is counted in budgets: 1 moves every value of view v by ε_v. Beyond 1 only the bounds
of valid inputs hold, so that a sample which the budget does not flip still tells which of two directions is better.

Departures from the paper, which minimises the radius without end: the search stops at 1; it goes down from the last
radius in growing steps before it bisects, because most gains are small; a block stays turned only for a gain worth
measuring; and where no single value helps any more, it begins again from random signs.
"""

import torch
from torch import Tensor, nn

from ardmvc_core.attacks.objectives.clean_reference import CleanReference
from ardmvc_core.attacks.searches.query_result import QueryResult, check_counts, may_arrive
from ardmvc_core.attacks.threat import Threat, limits
from ardmvc_core.batching import in_full_batches
from ardmvc_core.types import Views

_ARRIVED = 1.02
"""Radius in budgets below which a sample is never given up: a single turned value may be enough."""


@torch.no_grad()
def ray_search(
    model: nn.Module,
    views: Views,
    reference: CleanReference,
    budget: Threat,
    *,
    queries: int,
    generator: torch.Generator,
    batch_size: int,
    patience: int | None = None,
) -> QueryResult:
    """Looks for the signs that take a sample into another cluster at the smallest radius, until that is at most 1.

    Args:   views: V × (B, *shape_v), clean, inside the bounds. reference: of these very samples, of which only the
            clusters are read. queries: passes a sample may take, ≥ 1. generator: of the later starts, which all samples
            share, on the views' device. batch_size: samples of a pass, ≥ 1. patience: every so many
            queries, samples are given up whose radius would not reach 1 at its pace since the last look; None: never.
            The model is used in its present mode.
    Returns: the first point inside the budget that is flipped where there is one, else the one at radius 1 in the best
        direction, which the last query has looked at unless the sample was given up. `best_loss` is minus the smallest
        radius with a flip.
    Raises: ValueError if queries or batch_size is not positive.
    """
    check_counts(queries=queries, batch_size=batch_size)
    rays = _Rays(views, budget)
    search = _Search(rays, queries, generator)
    flipped = torch.zeros(len(views[0]), dtype=torch.bool, device=views[0].device)
    used = torch.zeros_like(flipped, dtype=torch.int64)
    every = torch.arange(len(flipped), device=flipped.device)
    rows, before = every, search.best_radius.clone()
    for query in range(queries):
        if patience is not None and query and query % patience == 0:
            now = search.best_radius.clone()
            if query > patience:
                looks_left = (queries - query) / patience
                rows = rows[may_arrive(before[rows] - _ARRIVED, now[rows] - _ARRIVED, looks_left)]
            before = now
        if not len(rows):
            break
        signs, radius = search.ask(rows) if query < queries - 1 else search.ask_for_the_result(rows)
        flips = _flips(model, rays.points(rows, signs, radius), rows, reference, batch_size)
        used[rows] += 1
        search.learn(rows, signs, radius, flips)
        done = flips & (radius <= 1)
        flipped[rows[done]] = True
        rows = rows[~done]
    return QueryResult(
        views=rays.points(every, search.best_signs, torch.where(flipped, search.best_radius, 1.0)),
        flipped=flipped,
        queries=used,
        best_loss=-search.best_radius,
    )


class _Rays:
    """The points that a direction and a radius stand for; the values of all attacked views are one axis of length D."""

    def __init__(self, views: Views, budget: Threat) -> None:
        eps = budget.eps_per_view(len(views))
        lower, upper = budget.bounds
        self.views, self.bounds = views, budget.bounds
        self.attacked = [v for v, e in enumerate(eps) if e > 0]
        self.sizes = [views[v][0].numel() for v in self.attacked]
        self.clean = self._flat(views)
        self.low, self.high = (self._flat(limit) for limit in limits(views, budget))
        reach = [torch.full((n,), eps[v]) for n, v in zip(self.sizes, self.attacked, strict=True)]
        self.reach = torch.cat(reach).to(self.clean)
        self.longest = (upper - lower) / min(eps[v] for v in self.attacked)
        """Radius at which every value has met a bound."""

    def points(self, rows: Tensor, signs: Tensor, radius: Tensor) -> Views:
        """Those rows of the views, moved by `radius` (B,) in the direction of `signs` (B, D)."""
        moved = torch.clamp(self.clean[rows] + radius[:, None] * self.reach * signs, *self.bounds)
        # The ball limits what rounding would put just outside.
        within = torch.clamp(moved, self.low[rows], self.high[rows])
        parts = torch.where(radius[:, None] <= 1, within, moved).split(self.sizes, dim=1)
        found = [view[rows] for view in self.views]
        for v, part in zip(self.attacked, parts, strict=True):
            found[v] = part.reshape_as(found[v])
        return tuple(found)

    def _flat(self, views: Views) -> Tensor:
        return torch.cat([views[v].flatten(1) for v in self.attacked], dim=1)


class _Search:
    """Where the search of each sample stands; the first axis of the tensors without a remark is the sample's.

    A query either checks whether one more turned block flips the sample at a radius a little below the present one, or
    belongs to the measurement that follows such a success.
    """

    def __init__(self, rays: _Rays, queries: int, generator: torch.Generator) -> None:
        size, self.n_values = rays.clean.shape
        device = rays.clean.device
        self.longest = rays.longest
        # Turning one of D values shortens a radius by about 2 / D of it: a gain worth measuring is a tenth of that.
        self.tolerance = min(1e-3, max(0.2 / self.n_values, 1e-5))
        # Every start takes more queries than there are values.
        starts = torch.rand(queries // self.n_values + 2, self.n_values, generator=generator, device=device)
        starts[0] = 1
        self.starts = torch.where(starts < 0.5, -1.0, 1.0).to(rays.clean)
        """(starts, D): all ones as in the paper, then random signs."""
        levels = range((self.n_values - 1).bit_length() + 1)
        self.block_sizes = torch.tensor([-(-self.n_values // 2**level) for level in levels]).to(device)
        """(levels,): 2^l blocks of neighbours in level l, single values in the last."""
        self.start = torch.zeros(size, dtype=torch.int64, device=device)
        self.level = torch.zeros_like(self.start)
        # Block −1 of level 0 is empty: the first query of a start is about its own direction.
        self.block = torch.full_like(self.start, -1)
        self.signs = self.starts[self.start]
        self.high = torch.full_like(rays.clean[:, 0], rays.longest)
        """Smallest radius with a flip in the present direction, once one is reached."""
        self.low = torch.zeros_like(self.high)
        """In a measurement, the largest radius known to be too small; 0: none so far."""
        self.step = torch.zeros_like(self.high)
        """In a measurement, how far the next query goes down while no radius was too small."""
        self.reached = torch.zeros(size, dtype=torch.bool, device=device)
        self.measuring = torch.zeros_like(self.reached)
        self.gained = torch.zeros_like(self.reached)
        """Whether a block was kept turned in this pass over the single values."""
        self.best_signs = self.signs.clone()
        self.best_radius = torch.full_like(self.high, torch.inf)

    def ask(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Signs (B, D) and radius (B,) that the next query is about."""
        measuring, high, low = self.measuring[rows], self.high[rows], self.low[rows]
        block_size = self.block_sizes[self.level[rows]][:, None]
        first = self.block[rows][:, None] * block_size
        places = torch.arange(self.n_values, device=high.device)
        turned = (places >= first) & (places < first + block_size) & ~measuring[:, None]
        signs = torch.where(turned, -self.signs[rows], self.signs[rows])
        below = torch.where(low > 0, (low + high) / 2, high - self.step[rows])
        check = torch.where(self.reached[rows], high * (1 - self.tolerance), high)
        # A radius below 1 would be no better than 1.
        return signs, torch.where(measuring, below, check).clamp(min=1)

    def ask_for_the_result(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same for the point that is returned if nothing else was found."""
        return self.best_signs[rows], torch.ones_like(self.high[rows])

    def learn(self, rows: Tensor, signs: Tensor, radius: Tensor, flips: Tensor) -> None:
        """Takes in the answer to a query."""
        measuring = self.measuring[rows]
        high = torch.where(flips, radius, self.high[rows])
        low = torch.where(measuring, torch.where(flips, self.low[rows], radius), 0.0)
        self.high[rows], self.low[rows] = high, low
        self.signs[rows] = torch.where(flips[:, None], signs, self.signs[rows])
        self.step[rows] = 4 * torch.where(measuring, self.step[rows], self.tolerance * high)
        self.reached[rows] |= flips
        self.gained[rows] |= flips & ~measuring
        # Relative, so that it ends whatever the size of a radius in units of its rounding.
        self.measuring[rows] = torch.where(measuring, high - low > self.tolerance * high, flips)
        better = flips & (radius < self.best_radius[rows])
        self.best_radius[rows[better]] = radius[better]
        self.best_signs[rows[better]] = signs[better]
        self._next_block(rows[~self.measuring[rows]])

    def _next_block(self, rows: Tensor) -> None:
        block, level, last = self.block[rows] + 1, self.level[rows], len(self.block_sizes) - 1
        level_over = block * self.block_sizes[level] >= self.n_values
        stuck = level_over & (level == last) & ~self.gained[rows]
        # The single values are passed over, again and again, until none helps.
        self.gained[rows] &= ~(level_over & (level >= last - 1))
        self.level[rows] = torch.where(level_over, level + 1, level).clamp(max=last)
        self.block[rows] = torch.where(level_over, 0, block)
        self._start_again(rows[stuck])

    def _start_again(self, rows: Tensor) -> None:
        self.start[rows] += 1
        self.signs[rows] = self.starts[self.start[rows]]
        self.high[rows] = self.longest
        self.reached[rows] = False
        self.level[rows], self.block[rows] = 0, -1


def _flips(model: nn.Module, candidate: Views, rows: Tensor, reference: CleanReference, batch_size: int) -> Tensor:
    """(B,) whether candidates that belong to those rows of the reference are in another cluster."""
    flips = []
    for *batch, index in in_full_batches((*candidate, rows), batch_size):
        flips.append(model(tuple(batch)).logits.argmax(1) != reference.clusters[index])
    return torch.cat(flips)
