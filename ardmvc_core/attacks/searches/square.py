"""Square attack on several views: random search that sees logits and no gradient.

Source: Andriushchenko et al. 2020 (Square Attack, Algorithms 1 and 2, L∞), here with a radius per view and the model's
own clean assignment in the place of the label; each square falls into one of the views.
"""

import math

import torch
from torch import Tensor, nn

from ardmvc_core.attacks.objectives.clean_reference import CleanReference
from ardmvc_core.attacks.objectives.per_sample import margin
from ardmvc_core.attacks.searches.query_result import QueryResult, check_counts, may_arrive
from ardmvc_core.attacks.threat import Threat, limits
from ardmvc_core.batching import in_full_batches
from ardmvc_core.types import Views

FIRST_SHARE = 0.8
"""Share of a view that the first square covers (p of the paper)."""
# The released code halves at 500 too, which the paper leaves out; without it no square gets as small as one value.
_HALVINGS, _SCALE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), 10_000


@torch.no_grad()
def square(
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
    """Raises the margin of each sample by squares of ±ε at random places, with the model in its present mode.

    Args:   views: V × (B, *shape_v), clean, inside the bounds. A view of shape (C, H, W) gets squares, any other
            contiguous blocks of its values. reference: of these very samples. queries: passes a sample may take, ≥ 1;
            the sizes of the squares are stretched over them. generator: on the views' device. batch_size: samples of a
            pass, ≥ 1; the draws of a sample do not depend on it, nor on which other samples are flipped. patience:
            every so many queries, samples are given up whose margin would not reach 0 at its pace since the last look;
            None: never.
    Returns: the first flipped point where there is one, else the point of the largest margin, which is `best_loss`.
    Raises: ValueError if queries or batch_size is not positive.
    """
    check_counts(queries=queries, batch_size=batch_size)
    size, device = len(views[0]), views[0].device
    proposals = _Proposals(views, budget, generator)
    points = tuple(view.clone() for view in views)
    flipped = torch.zeros(size, dtype=torch.bool, device=device)
    used = torch.zeros(size, dtype=torch.int64, device=device)
    best_loss = torch.full((size,), -torch.inf, dtype=reference.logits.dtype, device=device)
    rows, before = torch.arange(size, device=device), best_loss.clone()
    for query in range(queries):
        if patience is not None and query and query % patience == 0:
            if query > patience:
                rows = rows[may_arrive(-before[rows], -best_loss[rows], (queries - query) / patience)]
            before = best_loss.clone()
        if not len(rows):
            break
        if query == 0:
            candidate = proposals.stripes()
        else:
            candidate = proposals.squares(points, rows, share_at(query - 1, queries - 1))
        loss, flips = _look(model, candidate, rows, reference, batch_size)
        used[rows] += 1
        better = (loss > best_loss[rows]) | flips
        best_loss[rows[better]] = loss[better]
        for point, new in zip(points, candidate, strict=True):
            point[rows[better]] = new[better]
        flipped[rows[flips]] = True
        rows = rows[~flips]
    return QueryResult(views=points, flipped=flipped, queries=used, best_loss=best_loss)


def share_at(step: int, steps: int) -> float:
    """Share of a view that the square of a step (from 0) covers, out of `steps`: halved at fixed parts of the run.

    Source: Andriushchenko et al. 2020, section 5, for 10,000 steps; other lengths are rescaled.
    """
    position = step * _SCALE // steps
    return FIRST_SHARE / 2 ** sum(position > mark for mark in _HALVINGS)


class _Proposals:
    """Candidates inside the budget; all that is random is drawn for all samples, also for those no longer asked for."""

    def __init__(self, views: Views, budget: Threat, generator: torch.Generator) -> None:
        self.views, self.generator = views, generator
        self.lows, self.highs = limits(views, budget)
        self.attacked = [v for v, e in enumerate(budget.eps_per_view(len(views))) if e > 0]
        self.shapes = [_as_image(view) for view in views]
        counts = torch.tensor([float(math.prod(self.shapes[v])) for v in self.attacked])
        self.upper_ends = (counts.cumsum(0) / counts.sum())[:-1].to(views[0].device)

    def stripes(self) -> Views:
        """The first point: ±ε for each column and channel of an image, for each value of a vector."""
        found = list(self.views)
        for v in self.attacked:
            channels, _, width = self.shapes[v]
            up = self._uniform(channels, 1, width) < 0.5
            low, high = (x.reshape(-1, *self.shapes[v]) for x in (self.lows[v], self.highs[v]))
            found[v] = torch.where(up, high, low).reshape_as(self.views[v])
        return tuple(found)

    def squares(self, points: Views, rows: Tensor, share: float) -> Views:
        """The points of some rows, each with one new square in one of its views."""
        # Which view, where in it (row, column), and a sign per channel.
        draws = self._uniform(3 + max(self.shapes[v][0] for v in self.attacked))[rows]
        place = torch.bucketize(draws[:, 0].contiguous(), self.upper_ends, right=True)
        found = [point[rows] for point in points]
        for i, v in enumerate(self.attacked):
            chosen = torch.nonzero(place == i)[:, 0]
            before, low, high = (
                x.reshape(-1, *self.shapes[v])
                for x in (found[v][chosen], self.lows[v][rows[chosen]], self.highs[v][rows[chosen]])
            )
            after = _with_square(before, low, high, draws[chosen, 1:], share)
            found[v][chosen] = after.reshape(-1, *found[v].shape[1:])
        return tuple(found)

    def _uniform(self, *shape: int) -> Tensor:
        size, device = len(self.views[0]), self.views[0].device
        return torch.rand(size, *shape, generator=self.generator, device=device)


def _with_square(before: Tensor, low: Tensor, high: Tensor, draws: Tensor, share: float) -> Tensor:
    """before, low, high: (B, C, H, W); draws: (B, 2 + C or more) uniform in [0, 1)."""
    _, channels, height, width = before.shape
    tall, wide = _extent(height, width, share)
    inside = _covers(draws[:, 0], tall, height)[:, None, :, None] & _covers(draws[:, 1], wide, width)[:, None, None, :]
    up = draws[:, 2 : 2 + channels, None, None] < 0.5
    after = torch.where(inside, torch.where(up, high, low), before)
    # A square that changes nothing would waste its query, so it takes the other sign (as in the released code).
    idle = (after == before).flatten(1).all(1)[:, None, None, None]
    return torch.where(inside, torch.where(up ^ idle, high, low), before)


def _covers(draw: Tensor, extent: int, length: int) -> Tensor:
    """(B,) uniform in [0, 1) → (B, length) bool, True on `extent` neighbours, each place as likely as the others."""
    first = (draw * (length - extent + 1)).long().clamp_(max=length - extent)[:, None]
    positions = torch.arange(length, device=draw.device)
    return (positions >= first) & (positions < first + extent)


def _extent(height: int, width: int, share: float) -> tuple[int, int]:
    """Height and width of a square with that share of a view, at least one value and cut where the view ends."""
    if height == 1:
        return 1, max(round(share * width), 1)
    side = max(round(math.sqrt(share * height * width)), 1)
    return min(side, height), min(side, width)


def _as_image(view: Tensor) -> tuple[int, int, int]:
    """(C, H, W) of a view; what is no image counts as one row of values."""
    if view.dim() == 4:
        return view.shape[1], view.shape[2], view.shape[3]
    return 1, 1, math.prod(view.shape[1:])


def _look(
    model: nn.Module, candidate: Views, rows: Tensor, reference: CleanReference, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Margin and flip, (B,) each, of candidates that belong to those rows of the reference."""
    losses, flips = [], []
    for *batch, index in in_full_batches((*candidate, rows), batch_size):
        output, clean = model(tuple(batch)), reference.rows(index)
        loss = margin(output, clean)
        losses.append(torch.where(loss.isnan(), -torch.inf, loss))
        flips.append(output.logits.argmax(1) != clean.clusters)
    return torch.cat(losses), torch.cat(flips)
