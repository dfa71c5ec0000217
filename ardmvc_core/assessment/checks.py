"""Checks that a robustness number must pass before it is believed, C1 to C20, each with its thresholds.

Source: the symptoms of masked gradients of Athalye et al. 2018, the evaluation rules of Carlini et al. 2019, the unit
test of Zimmermann et al. 2022, the own checks of AutoAttack (Croce & Hein 2020), and what clustering adds: collapse,
batches that are coupled, clusters that can always be reached by another sample.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ardmvc_core.attacks.budget import AttackBudget, project
from ardmvc_core.attacks.noise import NoiseConfig, prepare_noise
from ardmvc_core.attacks.objectives.clean_reference import CleanReference, clean_reference, logits_of
from ardmvc_core.attacks.objectives.per_sample import SampleObjective, ce, margin
from ardmvc_core.attacks.searches.apgd import Ascent, apgd
from ardmvc_core.attacks.searches.soft_rectifiers import soft_rectifiers
from ardmvc_core.attacks.suite import SuiteResult
from ardmvc_core.attacks.target import inference_target
from ardmvc_core.attacks.tiers import Ascend, plan
from ardmvc_core.batching import in_full_batches
from ardmvc_core.seeding import generator
from ardmvc_core.types import ModelOutput, Views

Verdict = Literal["PASS", "WARN", "FAIL", "INFO", "N/A"]

WHITE_BOX = ("apgd_",)
"""Beginnings of the keys of gradient attacks on single samples."""
SUPERVISED: Mapping[str, Mapping[float, float]] = {"noisy_mnist": {0.3: 0.928}}
"""Robust ACC of supervised adversarial training (TRADES on MNIST, under AutoAttack), by data set and ε."""

STEP_GRID = (5, 10, 20, 50, 100)
"""Steps of the step curve."""
_UNIT_TESTS = 50
_LEAST_UNIT_TESTS = 20
_NEIGHBOURS = 999
_CORNERS = 20


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One check of one model at one ε."""

    id: str
    title: str
    value: float | None
    """What was measured, as a fraction; None where there is nothing to measure."""
    verdict: Verdict
    detail: str


@dataclass(frozen=True, kw_only=True)
class SanityReport:
    """All checks of one evaluation."""

    checks: tuple[CheckResult, ...]
    step_curve: Mapping[str, tuple[float, ...]]
    """Objective → flip rate after each number of steps in `STEP_GRID`."""

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the checks that failed; any of them withholds the headline."""
        return tuple(check.id for check in self.checks if check.verdict == "FAIL")

    @property
    def warned(self) -> tuple[str, ...]:
        """Ids of the checks that warn; they are printed beside the headline."""
        return tuple(check.id for check in self.checks if check.verdict == "WARN")

    @property
    def established(self) -> bool:
        """Whether the headline may be printed as a result."""
        return not self.failed


def run_checks(
    model: nn.Module,
    views: Views,
    budget: AttackBudget,
    result: SuiteResult,
    *,
    seed: int = 7,
    batch_size: int = 256,
    labels: Tensor | None = None,
    mapping: Tensor | None = None,
    eps_curve: Mapping[float, float] | None = None,
    subset_flips: Mapping[tuple[int, ...], float] | None = None,
    subset_unions: Mapping[int, float] | None = None,
    entropy_reference: float = 1.0,
    dataset: str = "",
    labels_locked: bool | None = None,
    progress: Callable[[float], None] | None = None,
) -> SanityReport:
    """Runs every check on a finished run of the suite.

    Args: model: left as it was found; put into inference mode while it is looked at, except for C12, which tells in
        which mode it was handed over. views, budget, result: of the run. labels, mapping: (N,) classes and (K,) class
        of each cluster on clean data, for the checks that need them. eps_curve: ε → flip rate (C2). subset_flips,
        subset_unions: flip rate of each attacked subset of views, and of the attacker's choice of m views (C18).
        entropy_reference: H_ref of C19, the normalised entropy of plain models' partitions; 1 is a balanced partition.
        labels_locked: whether labels stayed unread so far (C20); None: there was no lock. progress: called with the
        share that is done.
    """
    checker = _Checker(model, views, budget, result, seed, batch_size)
    training_modules = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    before = _digest(model)
    parts: list[Callable[[], Sequence[CheckResult]]] = [
        checker.steps,
        lambda: [checker.radius(eps_curve)],
        lambda: checker.unbounded(labels, mapping),
        lambda: [checker.black_box(), checker.single_step(), checker.transfer()],
        checker.noise,
        lambda: [*checker.gradients(), checker.saturation()],
        checker.curves,
        lambda: [checker.numerics(), checker.determinism()],
        lambda: [checker.coupling(training_modules, unchanged=_digest(model) == before), checker.feasibility()],
        lambda: [checker.unit_test()],
        lambda: [checker.restarts()],
        lambda: [checker.diversity(), checker.plausible(labels, mapping, dataset)],
        lambda: [checker.subsets(subset_flips, subset_unions), checker.collapse(entropy_reference)],
    ]
    checks: list[CheckResult] = []
    with inference_target(model):
        for number, part in enumerate(parts):
            if progress is not None:
                progress(number / len(parts))
            checks += part()
    checks.append(_lock(labels_locked))
    return SanityReport(checks=tuple(checks), step_curve=checker.step_curve)


class _Checker:
    def __init__(
        self, model: nn.Module, views: Views, budget: AttackBudget, result: SuiteResult, seed: int, batch_size: int
    ) -> None:
        self.model, self.views, self.budget, self.result = model, views, budget, result
        self.reference = result.reference
        self.seed, self.batch_size = seed, batch_size
        self.count = len(self.reference.clusters)
        self.survivors = torch.nonzero(~result.flipped)[:, 0]
        self.step_curve: dict[str, tuple[float, ...]] = {}
        self._runs: dict[tuple[SampleObjective, int, AttackBudget], Ascent] = {}

    # C1, C5, C9: what the steps do

    def steps(self) -> list[CheckResult]:
        """C1a and C1b: more steps are never weaker, and the tier's steps are enough."""
        drops = []
        for name, objective in (("ce", ce), ("margin", margin)):
            rates = [self._flip_rate(objective, steps) for steps in STEP_GRID]
            self.step_curve[name] = tuple(rates)
            drops += [before - after for before, after in pairwise(rates)]
        worst = max(0.0, *drops)
        text = "; ".join(f"{name}: {', '.join(f'{r:.3f}' for r in rates)}" for name, rates in self.step_curve.items())
        n = self._tier_steps()
        gain = self._flip_rate(ce, 2 * n) - self._flip_rate(ce, n)
        return [
            self._graded("C1a", "more steps are never weaker", worst, 0.005, 0.015, f"flips after {STEP_GRID}: {text}"),
            self._graded("C1b", "the steps have converged", max(0.0, gain), 0.01, 0.03, f"{2 * n} steps against {n}"),
        ]

    def single_step(self) -> CheckResult:
        """C5: one step of size ε is not stronger than many."""
        eps = self.budget.eps_per_view(len(self.views))
        rates = []
        for batch, clean in self._batches(self.views, self.reference):
            slopes = self._input_gradients(self.model, batch, clean, ce)
            moved = tuple(view + e * slope.sign() for view, e, slope in zip(batch, eps, slopes, strict=True))
            rates.append((self._clusters(project(batch, moved, self.budget)) != clean.clusters).double())
        single = float(torch.cat(rates).mean())
        many = self._first_flip_rate()
        detail = f"one step flips {single:.3f}, APGD-CE {many:.3f}"
        return self._graded("C5", "one step is not stronger than many", max(0.0, single - many), 0.0, 0.01, detail)

    def curves(self) -> list[CheckResult]:
        """C9: the loss has settled, it moves at all, and no flip on the way is lost."""
        steps = max(self._tier_steps(), 20)
        run = self._ascend(ce, steps)
        gain = float(run.curve[-1] - run.curve[0])
        late = float(run.curve[-1] - run.curve[-1 - steps // 4])
        share = late / gain if gain > 0 else 0.0
        still = float((run.best_loss <= run.start_loss).double().mean())
        lost = int((run.flipped & (self._clusters(run.views) == self.reference.clusters)).sum())
        silent = CheckResult(
            id="C9c",
            title="no flip is lost on the way",
            value=lost / self.count,
            verdict="PASS" if lost == 0 else "FAIL",
            detail=f"{lost} samples flipped during the run and came back unflipped",
        )
        detail = f"{late:.3g} of {gain:.3g} in the last quarter of {steps} steps"
        return [
            self._graded("C9a", "the loss curve has settled", share, 0.05, 0.15, detail, paired=False),
            self._graded("C9b", "the loss moves", still, 0.01, 0.05, "samples whose loss never rose above its start"),
            silent,
        ]

    # C2, C3: what the radius does

    def radius(self, eps_curve: Mapping[float, float] | None) -> CheckResult:
        """C2: a larger ε is never weaker."""
        title = "a larger ε is never weaker"
        if not eps_curve or len(eps_curve) < 2:
            return _not_applicable("C2", title, "no ε curve was computed")
        rates = [eps_curve[eps] for eps in sorted(eps_curve)]
        drop = max(0.0, *(before - after for before, after in pairwise(rates)))
        detail = ", ".join(f"{eps:g}: {eps_curve[eps]:.3f}" for eps in sorted(eps_curve))
        return self._graded("C2", title, drop, 0.005, 0.015, detail)

    def unbounded(self, labels: Tensor | None, mapping: Tensor | None) -> list[CheckResult]:
        """C3: with ε as wide as the inputs everything is reachable, for another sample always is."""
        lower, upper = self.budget.bounds
        wide = replace(self.budget, eps=upper - lower)
        run = self._ascend(ce, 100, wide)
        rate = float(run.flipped.double().mean())
        verdict = self._least("C3a", "an unbounded attack succeeds", rate, 0.99, 0.95, f"ε {upper - lower:g}, APGD-CE")
        checks = [verdict, self._swap_witness()]
        title = "nothing is left at a large ε"
        if labels is None or mapping is None:
            return [*checks, _not_applicable("C3c", title, "needs labels")]
        right = mapping[self.reference.clusters] == labels
        left = float((right & ~run.flipped).double().mean())
        return [*checks, self._graded("C3c", title, left, 0.01, 0.05, "worst-case ACC with the fixed map")]

    def _swap_witness(self) -> CheckResult:
        title = "another sample in its place is another cluster"
        stream = generator(self.seed, "sanity", "swap")
        order = torch.randperm(self.count, generator=stream).to(self.reference.clusters.device)
        clusters = self.reference.clusters
        partners = torch.full_like(clusters, -1)
        for cluster in clusters.unique():
            others = order[clusters[order] != cluster]
            members = torch.nonzero(clusters == cluster)[:, 0]
            if len(others):
                partners[members] = others[torch.arange(len(members), device=others.device) % len(others)]
        if bool((partners < 0).any()):
            return CheckResult(
                id="C3b", title=title, value=0.0, verdict="FAIL", detail="only one cluster holds clean samples"
            )
        now = self._clusters(tuple(view[partners] for view in self.views))
        rate = float((now != clusters).double().mean())
        return CheckResult(
            id="C3b",
            title=title,
            value=rate,
            verdict="PASS" if rate == 1.0 else "FAIL",
            detail="share of samples that change when a clean sample of another cluster is put in their place",
        )

    # C4, C6, C7: other attackers, and chance

    def black_box(self) -> CheckResult:
        """C4: what searches without gradients break beyond the gradient attacks."""
        title = "searches without gradients find nothing new"
        records = [record for record in self.result.records if record.key in ("square", "rays") and not record.skipped]
        if not records:
            return _not_applicable("C4", title, f"the tier {self.result.tier} has no such search")
        white = self._union(lambda key: key.startswith(WHITE_BOX))
        new = torch.zeros_like(white)
        for record in records:
            new |= record.flipped & ~white
        detail = f"{int(new.sum())} of {self.count} samples"
        return self._graded("C4", title, float(new.double().mean()), 0.002, 0.01, detail)

    def transfer(self) -> CheckResult:
        """C6: what points made on other models break beyond the gradient attacks on this one."""
        title = "points made on other models find nothing new"
        records = [record for record in self.result.records if record.key == "transfer"]
        if not records or records[0].skipped:
            return _not_applicable("C6", title, records[0].skipped if records else "the tier has no transfer attack")
        new = records[0].flipped & ~self._union(lambda key: key.startswith(WHITE_BOX))
        detail = f"{int(new.sum())} of {self.count} samples"
        return self._graded("C6", title, float(new.double().mean()), 0.002, 0.01, detail)

    def noise(self) -> list[CheckResult]:
        """C7: how much chance alone explains."""
        floor = self.result.noise_flip
        verdict: Verdict = "PASS" if floor < 0.1 else "WARN" if floor <= 0.3 else "FAIL"
        a = CheckResult(
            id="C7a",
            title="random noise of the budget moves few samples",
            value=floor,
            verdict=verdict,
            detail="mean flip rate of the stronger kind of noise"
            + ("; ε is outside the natural scale of this model: read the ε curve" if verdict == "FAIL" else ""),
        )
        return [a, self._random_search(), *self._above_noise()]

    def _random_search(self) -> CheckResult:
        title = "1,000 random corners find nothing new"
        rows = self.survivors[:100]
        if not len(rows):
            return _not_applicable("C7b", title, "no sample survived")
        views = tuple(view[rows] for view in self.views)
        clean, found = self.reference.rows(rows), torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        stream = generator(self.seed, "sanity", "corners")
        for _ in range(1000):
            noise = prepare_noise(NoiseConfig(kind="sign"), self.model, views, stream, budget=self.budget)
            found |= self._clusters(noise(self.model, views)) != clean.clusters
        detail = f"{int(found.sum())} of {len(rows)} surviving samples"
        value = float(found.double().mean())
        verdict: Verdict = "PASS" if value == 0 else "WARN" if value <= 0.01 else "FAIL"
        return CheckResult(id="C7b", title=title, value=value, verdict=verdict, detail=detail)

    def _above_noise(self) -> list[CheckResult]:
        title = "each attack is better than noise"
        whole = [record for record in self.result.records if int(record.tested.sum()) == self.count]
        if not whole:
            return [_not_applicable("C7c", title, "no attack was run on every sample")]
        lines, worst = [], math.inf
        for record in whole:
            ahead = math.inf if record.flip_rate >= 0.99 else record.flip_rate - self.result.noise_flip
            lines.append(f"{record.key} {record.flip_rate:.3f}")
            # The published generator is there for comparison with published tables; that it is weak is known.
            worst = worst if record.key == "gan_official" else min(worst, ahead)
        detail = f"noise {self.result.noise_flip:.3f}; {', '.join(lines)}"
        if worst == math.inf:
            return [CheckResult(id="C7c", title=title, value=None, verdict="PASS", detail=detail)]
        return [self._least("C7c", title, worst, 0.1, 0.03, detail)]

    # C8, C10: gradients

    def gradients(self) -> list[CheckResult]:
        """C8: gradients exist, for every loss and view."""
        title = "gradients exist"
        shares = {r.key: r.details["zero_gradient"] for r in self.result.records if "zero_gradient" in r.details}
        views = {
            r.key: r.details["zero_gradient_worst_view"] for r in self.result.records if "zero_gradient" in r.details
        }
        if not shares:
            return [_not_applicable("C8", title, "no gradient attack ran")]
        worst = max(shares, key=lambda key: shares[key])
        check = self._graded("C8", title, shares[worst], 0.01, 0.05, f"samples without a gradient in {worst}")
        blind = [key for key, share in views.items() if share >= 1.0]
        if blind:
            check = replace(check, verdict="FAIL", detail=f"a whole view has no gradient in {', '.join(blind)}")
        return [check]

    def saturation(self) -> CheckResult:
        """C8b: the generator is not stuck in the flat part of its output."""
        title = "the generator is not saturated"
        shares = {r.key: r.details["saturation"] for r in self.result.records if "saturation" in r.details}
        if "generator" not in shares:
            return _not_applicable("C8b", title, "no generator was fitted")
        detail = ", ".join(f"{key} {share:.3f}" for key, share in shares.items())
        if "gan_official" in shares:
            detail += "; gan_official is the published recipe, kept for comparison, and not judged"
        return self._graded("C8b", title, shares["generator"], 0.2, 0.6, detail, paired=False)

    def numerics(self) -> CheckResult:
        """C10: gradients in single precision point where those in double do."""
        title = "gradients do not depend on precision"
        rows = torch.arange(min(_UNIT_TESTS, self.count), device=self.reference.clusters.device)
        views = tuple(view[rows] for view in self.views)
        double = copy.deepcopy(self.model).double()
        wide = tuple(view.double() for view in views)
        single = self._input_gradients(self.model, views, self.reference.rows(rows), margin)
        exact = self._input_gradients(double, wide, clean_reference(double, wide, len(rows)), margin)
        cosine = float(F.cosine_similarity(_flat(single).double(), _flat(exact), dim=1).mean())
        confidence = float(self.reference.logits.softmax(1).max(1).values.median())
        detail = f"median confidence {confidence:.6f}; gradients are taken from logits"
        return self._least("C10", title, cosine, 0.99, 0.9, detail, paired=False)

    def _input_gradients(
        self, model: nn.Module, views: Views, clean: CleanReference, objective: SampleObjective
    ) -> Views:
        """Gradient of the objective for every view; zeros where there is none."""
        leaves = [view.detach().requires_grad_() for view in views]
        with torch.enable_grad():
            value = objective(model(tuple(leaves)), clean).sum()
        if not value.requires_grad:
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        return tuple(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True))

    # C11 to C15: the model as a function, and the attack as a tool

    def determinism(self) -> CheckResult:
        """C11: the same views give the same clusters."""
        first = self._logits(self.views)
        scale, change, equal = float(first.norm()) or 1.0, 0.0, True
        for _ in range(4):
            again = self._logits(self.views)
            equal &= bool((again.argmax(1) == first.argmax(1)).all())
            change = max(change, float((again - first).norm()) / scale)
        verdict: Verdict = "PASS" if equal and change <= 1e-4 else "WARN" if equal and change <= 1e-2 else "FAIL"
        detail = "relative change of the logits over five passes" + (
            "" if equal else "; clusters differ: EOT is required"
        )
        return CheckResult(id="C11", title="the model is deterministic", value=change, verdict=verdict, detail=detail)

    def coupling(self, training_modules: Sequence[str], unchanged: bool) -> CheckResult:
        """C12: an assignment depends on its own sample only, in inference mode, and nothing in the model moved."""
        title = "samples are not coupled through their batch"
        differs = torch.zeros(self.count, dtype=torch.bool, device=self.reference.clusters.device)
        for repeat in range(3):
            order = torch.randperm(self.count, generator=generator(self.seed, "sanity", "batches", repeat))
            order = order.to(differs.device)
            now = torch.empty_like(self.reference.clusters)
            now[order] = self._clusters(tuple(view[order] for view in self.views))
            differs |= now != self.reference.clusters
        alone = torch.arange(min(self.count, 100), device=differs.device)
        for row in alone.tolist():
            now = self._clusters(tuple(view[row : row + 1] for view in self.views))
            differs[row] |= bool(now[0] != self.reference.clusters[row])
        value = float(differs.double().mean())
        faults = []
        if value > 0:
            faults.append(f"{int(differs.sum())} of {self.count} clusters depend on who is in the batch")
        if training_modules:
            faults.append(f"handed over in training mode: {', '.join(list(training_modules)[:3])}")
        if not unchanged:
            faults.append("a buffer or parameter changed")
        return CheckResult(
            id="C12",
            title=title,
            value=value,
            verdict="FAIL" if faults else "PASS",
            detail="; ".join(faults) or "three random batches and alone give the same clusters; buffers unchanged",
        )

    def feasibility(self) -> CheckResult:
        """C13: the points are inside the budget, and views that were not attacked are untouched."""
        lower, upper = self.budget.bounds
        excess, outside, touched, finite = 0.0, 0.0, False, True
        for before, after, eps in zip(
            self.views, self.result.views, self.budget.eps_per_view(len(self.views)), strict=True
        ):
            finite &= bool(torch.isfinite(after).all())
            excess = max(excess, float((after - before).abs().max()) - eps)
            outside = max(outside, float((lower - after).max()), float((after - upper).max()))
            touched |= eps == 0 and not torch.equal(before, after)
        good = finite and excess <= 1e-6 and outside <= 0 and not touched
        return CheckResult(
            id="C13",
            title="attacked views are inside the budget",
            value=max(0.0, excess),
            verdict="PASS" if good else "FAIL",
            detail=f"box exceeded by {max(0.0, outside):.3g}, other views {'touched' if touched else 'identical'}",
        )

    def unit_test(self) -> CheckResult:
        """C14: a planted adversarial point is found. Source: Zimmermann et al. 2022."""
        title = "a planted adversarial point is found"
        planted, views = plant_readouts(
            self.model, tuple(view[:_UNIT_TESTS] for view in self.views), self.budget, self.seed
        )
        if planted is None or len(views[0]) < _LEAST_UNIT_TESTS:
            count = 0 if planted is None else len(views[0])
            return _not_applicable(
                "C14", title, f"only {count} points could be planted, {_LEAST_UNIT_TESTS} are needed"
            )
        clean = clean_reference(planted, views, len(views[0]))
        stream = generator(self.seed, "sanity", "unit test", device=views[0].device)
        found = torch.zeros(len(views[0]), dtype=torch.bool, device=views[0].device)
        for gradients in (nullcontext, lambda: soft_rectifiers(planted)):
            with gradients():
                found |= apgd(
                    planted, views, clean, margin, self.budget, steps=100, generator=stream, batch_size=len(views[0])
                ).flipped
        rate = float(found.double().mean())
        return self._least("C14", title, rate, 0.95, 0.8, f"{len(views[0])} planted points, 100 steps", paired=False)

    def restarts(self) -> CheckResult:
        """C15: four more starts of APGD-CE add nothing to the worst case."""
        title = "more restarts find nothing new"
        rows = self.survivors
        if not len(rows):
            return CheckResult(id="C15", title=title, value=0.0, verdict="PASS", detail="no sample survived")
        found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for repeat in range(4):
            run = apgd(
                self.model,
                tuple(view[rows] for view in self.views),
                self.reference.rows(rows),
                ce,
                self.budget,
                steps=self._tier_steps(),
                generator=generator(self.seed, "sanity", "restart", repeat, device=self.views[0].device),
                stop_on_flip=True,
                batch_size=self.batch_size,
            )
            found |= run.flipped
        detail = f"{int(found.sum())} of {self.count} samples flip in four more starts and survived the suite"
        return self._graded("C15", title, int(found.sum()) / self.count, 0.01, 0.03, detail)

    # C16 to C19: the numbers together

    def diversity(self) -> CheckResult:
        """C16: what each attack adds; for information."""
        best = max((record for record in self.result.records), key=lambda record: int(record.flipped.sum()))
        detail = ", ".join(f"{record.key} +{record.new}" for record in self.result.records if not record.skipped)
        gain = self.result.flip_rate - int(best.flipped.sum()) / self.count
        return CheckResult(
            id="C16",
            title="what attacks add to each other",
            value=gain,
            verdict="INFO",
            detail=f"union {self.result.flip_rate:.3f}, best single {best.key}; new flips in order: {detail}",
        )

    def plausible(self, labels: Tensor | None, mapping: Tensor | None, dataset: str) -> CheckResult:
        """C17: not better than supervised adversarial training."""
        title = "not above supervised training"
        eps = self.budget.eps
        reference = SUPERVISED.get(dataset, {}).get(eps) if isinstance(eps, float) else None
        if reference is None or labels is None or mapping is None:
            return _not_applicable("C17", title, "no supervised reference is stored for this data set and ε")
        right = mapping[self.reference.clusters] == labels
        acc = float((right & ~self.result.flipped).double().mean())
        over = max(0.0, acc - reference)
        return self._graded("C17", title, over, 0.0, 0.02, f"{acc:.3f} against {reference:.3f}", paired=False)

    def subsets(self, flips: Mapping[tuple[int, ...], float] | None, unions: Mapping[int, float] | None) -> CheckResult:
        """C18: more views in the attacker's hand are never weaker."""
        title = "more attacked views are never weaker"
        if not flips or not unions:
            return _not_applicable("C18", title, "no subsets of views were attacked")
        excess = 0.0
        for size, union in unions.items():
            excess = max(excess, union - self.result.flip_rate)
            excess = max(excess, *(rate - union for subset, rate in flips.items() if len(subset) == size), 0.0)
        detail = ", ".join(f"{size} of {len(self.views)}: {union:.3f}" for size, union in sorted(unions.items()))
        return self._graded("C18", title, excess, 0.005, 0.015, f"all {self.result.flip_rate:.3f}; {detail}")

    def collapse(self, entropy_reference: float) -> CheckResult:
        """C19: the clean partition uses its clusters, evenly enough."""
        occupied, entropy = occupancy(self.reference.clusters, self.reference.logits.shape[1])
        k = self.reference.logits.shape[1]
        verdict: Verdict
        if occupied == k and entropy >= 0.9 * entropy_reference:
            verdict = "PASS"
        elif occupied >= k - 1 and entropy >= 0.8 * entropy_reference:
            verdict = "WARN"
        else:
            verdict = "FAIL"
        detail = f"{occupied} of {k} clusters hold more than 1/(10 K) of the samples; "
        detail += f"H {entropy:.3f} of {entropy_reference:.3f}"
        return CheckResult(
            id="C19", title="the partition has not collapsed", value=entropy, verdict=verdict, detail=detail
        )

    # what they share

    def _ascend(self, objective: SampleObjective, steps: int, budget: AttackBudget | None = None) -> Ascent:
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

    def _flip_rate(self, objective: SampleObjective, steps: int) -> float:
        return float(self._ascend(objective, steps).flipped.double().mean())

    def _first_flip_rate(self) -> float:
        return self.result.records[0].flip_rate

    def _tier_steps(self) -> int:
        first = plan(self.result.tier, self.reference.logits.shape[1])[0]
        assert isinstance(first, Ascend)
        return first.steps

    def _union(self, chosen: Callable[[str], bool]) -> Tensor:
        union = torch.zeros_like(self.result.flipped)
        for record in self.result.records:
            if chosen(record.key):
                union |= record.flipped
        return union

    def _slack(self, value: float) -> float:
        """Two standard errors of a paired difference, for fewer samples than the thresholds were made for: only samples
        on which the two runs differ, at least one, make it uncertain."""
        if self.count >= 1000:
            return 0.0
        differ = max(min(abs(value), 1 - abs(value)), 1 / self.count)
        return 2 * math.sqrt(differ * (1 - differ) / self.count)

    def _graded(
        self, check_id: str, title: str, value: float, good: float, fair: float, detail: str, paired: bool = True
    ) -> CheckResult:
        """PASS up to `good`, WARN up to `fair`."""
        slack = self._slack(value) if paired else 0.0
        verdict: Verdict = "PASS" if value <= good + slack else "WARN" if value <= fair + slack else "FAIL"
        return CheckResult(id=check_id, title=title, value=value, verdict=verdict, detail=detail)

    def _least(
        self, check_id: str, title: str, value: float, good: float, fair: float, detail: str, paired: bool = True
    ) -> CheckResult:
        """PASS from `good` on, WARN from `fair` on."""
        return replace(self._graded(check_id, title, -value, -good, -fair, detail, paired), value=value)

    def _batches(self, views: Views, reference: CleanReference) -> list[tuple[Views, CleanReference]]:
        found, at = [], 0
        for batch in in_full_batches(views, self.batch_size):
            rows = torch.arange(at, at + len(batch[0]), device=batch[0].device)
            at += len(rows)
            found.append((batch, reference.rows(rows)))
        return found

    def _clusters(self, views: Views) -> Tensor:
        return self._logits(views).argmax(1)

    def _logits(self, views: Views) -> Tensor:
        return logits_of(self.model, views, self.batch_size)


def occupancy(clusters: Tensor, n_clusters: int) -> tuple[int, float]:
    """(N,) → clusters with a share above 1/(10 K), and the entropy of the shares over log K, in [0, 1]."""
    shares = np.bincount(clusters.cpu().numpy(), minlength=n_clusters) / len(clusters)
    occupied = int((shares > 1 / (10 * n_clusters)).sum())
    held = shares[shares > 0]
    return occupied, float(-(held * np.log(held)).sum() / math.log(n_clusters))


class PlantedReadouts(nn.Module):
    """A model's representation, read by one linear two-way readout per row of the batch."""

    def __init__(self, model: nn.Module, weights: Tensor, thresholds: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("weights", weights)
        self.register_buffer("thresholds", thresholds)

    def forward(self, views: Views) -> ModelOutput:
        """As many samples as there are readouts, in their order."""
        output: ModelOutput = self.model(views)
        assert isinstance(self.weights, Tensor)
        assert isinstance(self.thresholds, Tensor)
        score = (output.consensus.flatten(1) * self.weights).sum(1) - self.thresholds
        logits = torch.stack([torch.zeros_like(score), score], dim=1)
        return ModelOutput(
            view_latents=output.view_latents,
            consensus=output.consensus,
            logits=logits,
            assignments=logits.softmax(1),
        )


@torch.no_grad()
def plant_readouts(
    model: nn.Module, views: Views, budget: AttackBudget, seed: int
) -> tuple[PlantedReadouts | None, Views]:
    """A readout for each sample with one known adversarial point: a corner of the ball, apart from 999 noisy copies.

    Args:   views: V × (B, *shape_v). budget: the noise is uniform in 0.95 of its ball.
    Returns: the model with readouts of the samples for which the representation separates the corner, and their views;
        None if there is none.
    Source: Zimmermann et al. 2022 (attack unit tests); the readout is a ridge discriminant.
    """
    stream = generator(seed, "sanity", "planted", device=views[0].device)
    inner = replace(budget, eps=_scaled(budget.eps, 0.95))
    kept, weights, thresholds = [], [], []
    for row in range(len(views[0])):
        sample = tuple(view[row : row + 1] for view in views)
        many = tuple(view.expand(_NEIGHBOURS, *view.shape[1:]) for view in sample)
        inside = prepare_noise(NoiseConfig(kind="uniform"), model, many, stream, budget=inner)(model, many)
        some = tuple(view.expand(_CORNERS, *view.shape[1:]) for view in sample)
        corners = prepare_noise(NoiseConfig(kind="sign"), model, some, stream, budget=budget)(model, some)
        around = model(inside).consensus.flatten(1).double()
        centre = around.mean(0)
        spread = torch.cov(around.T).reshape(len(centre), len(centre))
        ridge = 1e-3 * spread.diagonal().mean().clamp(min=1e-12)
        eye = torch.eye(len(centre), dtype=spread.dtype, device=spread.device)
        shifts = model(corners).consensus.flatten(1).double() - centre
        # Of some corners the one that stands out most from its surroundings, in units of their spread.
        weights_of = torch.linalg.solve(spread + ridge * eye, shifts.T).T
        best = int((weights_of * shifts).sum(1).argmax())
        planted, weight = centre + shifts[best], weights_of[best]
        weight = weight / weight.norm().clamp(min=1e-12)
        highest = max(float((around @ weight).max()), float(model(sample).consensus.flatten(1)[0].double() @ weight))
        score = float(planted @ weight)
        if score > highest + 1e-6 * max(1.0, abs(highest)):
            kept.append(row)
            weights.append(weight)
            thresholds.append((highest + score) / 2)
    if not kept:
        return None, views
    dtype = views[0].dtype
    readouts = PlantedReadouts(
        model, torch.stack(weights).to(dtype), torch.tensor(thresholds, dtype=dtype, device=views[0].device)
    )
    return readouts.eval(), tuple(view[kept] for view in views)


def _flat(views: Views) -> Tensor:
    return torch.cat([view.flatten(1) for view in views], dim=1)


def _scaled(eps: float | tuple[float, ...], factor: float) -> float | tuple[float, ...]:
    return tuple(e * factor for e in eps) if isinstance(eps, tuple) else eps * factor


def _not_applicable(check_id: str, title: str, why: str) -> CheckResult:
    return CheckResult(id=check_id, title=title, value=None, verdict="N/A", detail=why)


def _lock(locked: bool | None) -> CheckResult:
    title = "labels were not read before they were unlocked"
    if locked is None:
        return _not_applicable("C20", title, "labels were not locked")
    detail = "the lock was not opened" if locked else "labels were read while they were locked"
    return CheckResult(id="C20", title=title, value=None, verdict="PASS" if locked else "FAIL", detail=detail)


def _digest(model: nn.Module) -> str:
    """Of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
