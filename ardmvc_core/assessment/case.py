"""What the checks of one model share: the finished run that they look at, ascents that several of them read, and
verdicts from thresholds."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ardmvc_core.attacks.kinds import Ascend
from ardmvc_core.attacks.objectives.clean_reference import CleanReference, logits_of
from ardmvc_core.attacks.objectives.per_sample import SampleObjective
from ardmvc_core.attacks.searches.apgd import Ascent, apgd
from ardmvc_core.attacks.suite import SuiteResult
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.attacks.tiers import plan
from ardmvc_core.batching import in_full_batches
from ardmvc_core.seeding import generator
from ardmvc_core.types import Views

Verdict = Literal["PASS", "WARN", "FAIL", "INFO", "N/A"]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One check of one model at one ε."""

    id: str
    title: str
    value: float | None
    """What was measured, as a fraction; None where there is nothing to measure."""
    verdict: Verdict
    detail: str


class Case:
    """One model, the run of the suite on it, and what has been computed for the checks so far."""

    def __init__(
        self, model: nn.Module, views: Views, budget: Threat, result: SuiteResult, seed: int, batch_size: int
    ) -> None:
        self.model, self.views, self.budget, self.result = model, views, budget, result
        self.reference = result.reference
        self.seed, self.batch_size = seed, batch_size
        self.count = len(self.reference.clusters)
        self.survivors = torch.nonzero(~result.flipped)[:, 0]
        self.step_curve: dict[str, tuple[float, ...]] = {}
        self._runs: dict[tuple[SampleObjective, int, Threat], Ascent] = {}

    def ascend(self, objective: SampleObjective, steps: int, budget: Threat | None = None) -> Ascent:
        """One run from the start that all checks share; several of them look at the same one."""
        key = (objective, steps, budget or self.budget)
        if key not in self._runs:
            self._runs[key] = apgd(
                self.model,
                self.views,
                self.reference,
                objective,
                budget or self.budget,
                steps=steps,
                generator=generator(self.seed, "sanity", "start", device=self.views[0].device),
                batch_size=self.batch_size,
            )
        return self._runs[key]

    def flip_rate(self, objective: SampleObjective, steps: int) -> float:
        return float(self.ascend(objective, steps).flipped.double().mean())

    def first_flip_rate(self) -> float:
        return self.result.records[0].flip_rate

    def tier_steps(self) -> int:
        first = plan(self.result.tier, self.reference.logits.shape[1])[0]
        assert isinstance(first, Ascend)
        return first.steps

    def union(self, chosen: Callable[[str], bool]) -> Tensor:
        union = torch.zeros_like(self.result.flipped)
        for record in self.result.records:
            if chosen(record.key):
                union |= record.flipped
        return union

    def slack(self, value: float) -> float:
        """Two standard errors of a paired difference, for fewer samples than the thresholds were made for: only samples
        on which the two runs differ, at least one, make it uncertain."""
        if self.count >= 1000:
            return 0.0
        differ = max(min(abs(value), 1 - abs(value)), 1 / self.count)
        return 2 * math.sqrt(differ * (1 - differ) / self.count)

    def graded(
        self, check_id: str, title: str, value: float, good: float, fair: float, detail: str, paired: bool = True
    ) -> CheckResult:
        """PASS up to `good`, WARN up to `fair`."""
        slack = self.slack(value) if paired else 0.0
        verdict: Verdict = "PASS" if value <= good + slack else "WARN" if value <= fair + slack else "FAIL"
        return CheckResult(id=check_id, title=title, value=value, verdict=verdict, detail=detail)

    def least(
        self, check_id: str, title: str, value: float, good: float, fair: float, detail: str, paired: bool = True
    ) -> CheckResult:
        """PASS from `good` on, WARN from `fair` on."""
        return replace(self.graded(check_id, title, -value, -good, -fair, detail, paired), value=value)

    def batches(self, views: Views, reference: CleanReference) -> list[tuple[Views, CleanReference]]:
        found, at = [], 0
        for batch in in_full_batches(views, self.batch_size):
            rows = torch.arange(at, at + len(batch[0]), device=batch[0].device)
            at += len(rows)
            found.append((batch, reference.rows(rows)))
        return found

    def clusters(self, views: Views) -> Tensor:
        return self.logits(views).argmax(1)

    def logits(self, views: Views) -> Tensor:
        return logits_of(self.model, views, self.batch_size)


def input_gradients(model: nn.Module, views: Views, clean: CleanReference, objective: SampleObjective) -> Views:
    """Gradient of the objective for every view; zeros where there is none."""
    leaves = [view.detach().requires_grad_() for view in views]
    with torch.enable_grad():
        value = objective(model(tuple(leaves)), clean).sum()
    if not value.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True))


def not_applicable(check_id: str, title: str, why: str) -> CheckResult:
    return CheckResult(id=check_id, title=title, value=None, verdict="N/A", detail=why)
