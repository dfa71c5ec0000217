"""Multi-view APGD: projected gradient ascent with momentum that sets its own step size, one state per sample.

Source: Croce & Hein 2020 (APGD, Algorithm 1; in L2 with gradients of length 1), here on several views with a radius
each, with the model's own clean assignment in the place of the label, and two points returned: the first that flips the
sample, and the best loss.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ardmvc_core.attacks.attack import choose_views, joined_views
from ardmvc_core.attacks.objectives.clean_reference import CleanReference
from ardmvc_core.attacks.objectives.per_sample import SampleObjective
from ardmvc_core.attacks.searches.pgd import frozen, random_start
from ardmvc_core.attacks.threat import Threat, limits, per_row, project, project_view, steepest
from ardmvc_core.batching import in_batches
from ardmvc_core.types import Views

MOMENTUM = 0.75
"""Share of the new direction in a step; the rest repeats the step before."""
ENOUGH_RISES = 0.75
"""Share of the steps between two checkpoints that must raise the loss, or the step size is halved."""
_FIRST_GAP, _GAP_SHRINKS, _LEAST_GAP = 0.22, 0.03, 0.06


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """What one run found for B samples."""

    views: Views
    """V × (B, *shape_v), inside the budget: the first flipped point where there is one, else that of the best loss."""
    best_views: Views
    """V × (B, *shape_v): the point of the best loss, flipped or not."""
    flipped: Tensor
    """(B,) bool: the sample was in another cluster at some point of the run."""
    best_loss: Tensor
    """(B,) largest value of the objective."""
    start_loss: Tensor
    """(B,) its value at the random start."""
    curve: Tensor
    """(steps + 1,) mean over the samples of the best loss after so many steps."""
    steps_to_flip: Tensor
    """(B,) int64, steps done when the sample flipped first; −1: never."""
    halvings: Tensor
    """(B,) int64, how often the step size was halved."""
    zero_gradient: Tensor
    """(V, B) bool: the gradient at the start is zero in all of an attacked view; one that is not finite counts as
    zero."""


def apgd(
    model: nn.Module,
    views: Views,
    reference: CleanReference,
    objective: SampleObjective,
    budget: Threat,
    *,
    steps: int,
    generator: torch.Generator,
    start: Views | None = None,
    stop_on_flip: bool = False,
    batch_size: int = 256,
) -> Ascent:
    """Maximises an objective per sample inside the budget, with the model in its present mode.

    Args:   views: V × (B, *shape_v), clean, inside the bounds. reference: of these very samples. objective: one value
            per sample, or a scalar of the batch, for which all samples share one step size. steps: gradient steps, ≥ 1;
            they take steps passes with gradient and one without. generator: of the random start, on the views' device.
            start: where to begin, projected; None: a random point of the ball. stop_on_flip: whether a flipped sample
            leaves the run, which saves passes; without effect for an objective of the batch.
    Raises: ValueError if steps is not positive.
    """
    if not steps >= 1:
        raise ValueError(f"steps must be ≥ 1, got {steps}")
    begin = random_start(views, budget, generator) if start is None else start
    begin = project(views, begin, budget)
    rows = torch.arange(len(views[0]), device=views[0].device).split(batch_size)
    batches = zip(in_batches(views, batch_size), in_batches(begin, batch_size), rows, strict=True)
    with frozen(model):
        runs = [
            _Run(model, batch, reference.rows(index), objective, budget, steps, stop_on_flip).finish(first)
            for batch, first, index in batches
        ]
    sizes = torch.tensor([len(run.flipped) for run in runs], dtype=runs[0].curve.dtype)
    return Ascent(
        views=joined_views([run.views for run in runs]),
        best_views=joined_views([run.best_views for run in runs]),
        **{
            name: torch.cat([getattr(run, name) for run in runs])
            for name in ("flipped", "best_loss", "start_loss", "steps_to_flip", "halvings")
        },
        zero_gradient=torch.cat([run.zero_gradient for run in runs], dim=1),
        curve=(torch.stack([run.curve for run in runs]) * sizes[:, None]).sum(0) / sizes.sum(),
    )


def checkpoints(steps: int) -> list[int]:
    """After how many steps the step size is reconsidered: ⌈p_j N⌉ with shrinking gaps p_{j+1} − p_j.

    Source: Croce & Hein 2020, section 4.1.
    """
    found, before, share = [], 0.0, _FIRST_GAP
    while share < 1:
        # A share like 0.22 · 50 must not become 11.000000000000002 before it is rounded up.
        found.append(math.ceil(round(share * steps, 9)))
        before, share = share, share + max(share - before - _GAP_SHRINKS, _LEAST_GAP)
    return sorted(set(found))


@dataclass
class _State:
    """Of the samples still in the run; the first axis of every tensor is theirs."""

    rows: Tensor
    clean: Views
    lows: Views
    highs: Views
    point: Views
    before: Views
    gradient: Views
    best: Views
    best_gradient: Views
    loss: Tensor
    best_loss: Tensor
    step_size: Tensor
    rises: Tensor
    halved: Tensor
    best_at_checkpoint: Tensor

    def keep(self, mask: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, tuple(v[mask] for v in value) if isinstance(value, tuple) else value[mask])


class _Run:
    """One batch."""

    def __init__(
        self,
        model: nn.Module,
        views: Views,
        reference: CleanReference,
        objective: SampleObjective,
        budget: Threat,
        steps: int,
        stop_on_flip: bool,
    ) -> None:
        self.model, self.views, self.reference, self.objective = model, views, reference, objective
        self.steps, self.stop_on_flip = steps, stop_on_flip
        self.norm, self.eps = budget.norm, budget.eps_per_view(len(views))
        self.attacked = [v for v, e in enumerate(self.eps) if e > 0]
        self.mean_eps = sum(self.eps) / len(self.attacked)
        self.lows, self.highs = limits(views, budget)
        self.coupled = False
        size, device = len(views[0]), views[0].device
        self.flipped = torch.zeros(size, dtype=torch.bool, device=device)
        self.steps_to_flip = torch.full((size,), -1, dtype=torch.int64, device=device)
        self.halvings = torch.zeros(size, dtype=torch.int64, device=device)
        self.found = tuple(view.clone() for view in views)

    def finish(self, start: Views) -> Ascent:
        """Runs all steps from `start`."""
        loss, gradient, flips = self._look(start, self.reference)
        state = self._first_state(start, loss, gradient)
        self.best_loss, self.best = loss.clone(), tuple(view.clone() for view in start)
        zero_gradient = self._zero_gradient(gradient)
        self._note(state, flips, 0)
        curve = [float(self.best_loss.mean())]
        marks, mark_before = set(checkpoints(self.steps)), 0
        for step in range(1, self.steps + 1):
            if len(state.rows):
                self._move(state, first=step == 1)
                look_ahead = step < self.steps
                loss, gradient, flips = self._look(state.point, self.reference.rows(state.rows), look_ahead)
                self._record(state, loss, gradient)
                self._note(state, flips, step)
                if step in marks and look_ahead:
                    self._reconsider(state, step - mark_before)
                    mark_before = step
            curve.append(float(self.best_loss.mean()))
        return Ascent(
            views=choose_views(self.flipped, self.found, self.best),
            best_views=self.best,
            flipped=self.flipped,
            best_loss=self.best_loss,
            start_loss=self.start_loss,
            curve=torch.tensor(curve),
            steps_to_flip=self.steps_to_flip,
            halvings=self.halvings,
            zero_gradient=zero_gradient,
        )

    def _first_state(self, start: Views, loss: Tensor, gradient: Views) -> _State:
        self.start_loss = loss
        rows = torch.arange(len(loss), device=loss.device)
        return _State(
            rows=rows,
            clean=self.views,
            lows=self.lows,
            highs=self.highs,
            point=start,
            before=start,
            gradient=gradient,
            best=start,
            best_gradient=gradient,
            loss=loss,
            best_loss=loss,
            step_size=torch.full_like(loss, 2 * self.mean_eps),
            rises=torch.zeros_like(rows),
            # As if it had just been halved: the first checkpoint asks for rises only.
            halved=torch.ones_like(self.flipped),
            best_at_checkpoint=loss,
        )

    def _look(
        self, point: Views, reference: CleanReference, with_gradient: bool = True
    ) -> tuple[Tensor, Views, Tensor]:
        """Loss (B,), its gradient for every view (zeros where none is formed), and which samples are flipped."""
        leaves = [point[v].detach().requires_grad_() for v in self.attacked]
        inputs = list(point)
        for v, leaf in zip(self.attacked, leaves, strict=True):
            inputs[v] = leaf
        with torch.set_grad_enabled(with_gradient):
            output = self.model(tuple(inputs))
            loss = self.objective(output, reference)
        gradient = [torch.zeros((), device=view.device, dtype=view.dtype).expand_as(view) for view in point]
        if with_gradient and loss.requires_grad:
            found = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
            for v, entry in zip(self.attacked, found, strict=True):
                gradient[v] = gradient[v] if entry is None else entry.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self.coupled = loss.dim() == 0
        loss = loss.detach().nan_to_num(nan=-torch.inf)
        flips = output.logits.detach().argmax(1) != reference.clusters
        return (loss.expand(len(flips)) if self.coupled else loss), tuple(gradient), flips

    def _zero_gradient(self, gradient: Views) -> Tensor:
        zero = torch.zeros((len(gradient), len(self.flipped)), dtype=torch.bool, device=self.flipped.device)
        for v in self.attacked:
            zero[v] = (gradient[v].flatten(1) == 0).all(1)
        return zero

    def _move(self, state: _State, first: bool) -> None:
        """One step with momentum; the first has no step before it to repeat."""
        share = 1.0 if first else MOMENTUM
        moved = list(state.point)
        for v in self.attacked:
            size = per_row(state.step_size, state.point[v]) * (self.eps[v] / self.mean_eps)
            target = self._inside(state, v, state.point[v] + size * steepest(state.gradient[v], self.norm))
            mixed = state.point[v] + share * (target - state.point[v])
            mixed = mixed + (1 - share) * (state.point[v] - state.before[v])
            moved[v] = self._inside(state, v, mixed)
        state.before, state.point = state.point, tuple(moved)

    def _inside(self, state: _State, v: int, moved: Tensor) -> Tensor:
        radius = self.eps[v] if self.norm == "l2" else None
        return project_view(state.clean[v], moved, state.lows[v], state.highs[v], radius)

    def _record(self, state: _State, loss: Tensor, gradient: Views) -> None:
        state.rises = state.rises + (loss > state.loss)
        state.loss, state.gradient = loss, gradient
        better = loss > state.best_loss
        state.best_loss = torch.where(better, loss, state.best_loss)
        state.best = choose_views(better, state.point, state.best)
        state.best_gradient = choose_views(better, gradient, state.best_gradient)
        self.best_loss[state.rows] = state.best_loss
        for whole, part in zip(self.best, state.best, strict=True):
            whole[state.rows] = part

    def _reconsider(self, state: _State, gap: int) -> None:
        """Halves the step size, and goes back to the best point, where the steps since the last time were no help."""
        stuck = ~state.halved & (state.best_loss <= state.best_at_checkpoint)
        halve = (state.rises < ENOUGH_RISES * gap) | stuck
        state.step_size = torch.where(halve, state.step_size / 2, state.step_size)
        state.point = choose_views(halve, state.best, state.point)
        state.before = choose_views(halve, state.best, state.before)
        state.gradient = choose_views(halve, state.best_gradient, state.gradient)
        state.loss = torch.where(halve, state.best_loss, state.loss)
        state.halved, state.best_at_checkpoint = halve, state.best_loss
        state.rises = torch.zeros_like(state.rises)
        self.halvings[state.rows] += halve

    def _note(self, state: _State, flips: Tensor, step: int) -> None:
        """Keeps the first flipped point of each sample; flipped samples may leave the run."""
        rows = state.rows[flips & ~self.flipped[state.rows]]
        if len(rows):
            chosen = torch.isin(state.rows, rows)
            for whole, part in zip(self.found, state.point, strict=True):
                whole[rows] = part[chosen]
            self.flipped[rows] = True
            self.steps_to_flip[rows] = step
        if self.stop_on_flip and not self.coupled and bool(flips.any()):
            state.keep(~flips)
