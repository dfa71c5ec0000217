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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ardmvc_core.assessment.case import Case, CheckResult, Verdict, input_gradients, not_applicable
from ardmvc_core.assessment.planted_point import plant_readouts
from ardmvc_core.attacks.noise import NoiseConfig, prepare_noise
from ardmvc_core.attacks.objectives.clean_reference import clean_reference
from ardmvc_core.attacks.objectives.per_sample import ce, margin
from ardmvc_core.attacks.searches.apgd import apgd
from ardmvc_core.attacks.searches.soft_rectifiers import soft_rectifiers
from ardmvc_core.attacks.suite import SuiteResult
from ardmvc_core.attacks.target import inference_target
from ardmvc_core.attacks.threat import Threat, project
from ardmvc_core.data import DATASETS
from ardmvc_core.evaluation.metrics import occupancy
from ardmvc_core.seeding import generator
from ardmvc_core.types import Views

WHITE_BOX = ("apgd_",)
"""Beginnings of the keys of gradient attacks on single samples."""
STEP_GRID = (5, 10, 20, 50, 100)
"""Steps of the step curve."""
_UNIT_TESTS = 50
_LEAST_UNIT_TESTS = 20


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
    budget: Threat,
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
    quick: bool = False,
    progress: Callable[[float], None] | None = None,
) -> SanityReport:
    """Runs every check on a finished run of the suite.

    Args: model: left as it was found; put into inference mode while it is looked at, except for C12, which tells in
        which mode it was handed over. views, budget, result: of the run. labels, mapping: (N,) classes and (K,) class
        of each cluster on clean data, for the checks that need them. eps_curve: ε → flip rate (C2). subset_flips,
        subset_unions: flip rate of each attacked subset of views, and of the attacker's choice of m views (C18).
        entropy_reference: H_ref of C19, the normalised entropy of plain models' partitions; 1 is a balanced partition.
        labels_locked: whether labels stayed unread so far (C20); None: there was no lock. quick: leaves out those that
        attack anew, and warns of it. progress: called with the share that is done.
    """
    case = Case(model, views, budget, result, seed, batch_size)
    training_modules = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    before = _digest(model)
    # Of each whether it attacks anew.
    parts: list[tuple[bool, Callable[[], Sequence[CheckResult]]]] = [
        (True, lambda: more_steps(case)),
        (False, lambda: [larger_eps(case, eps_curve)]),
        (True, lambda: unbounded(case, labels, mapping)),
        (False, lambda: [black_box(case), single_step(case), other_models(case)]),
        (True, lambda: chance(case)),
        (False, lambda: [*gradients_exist(case), saturation(case)]),
        (True, lambda: loss_curves(case)),
        (False, lambda: [numerics(case), determinism(case)]),
        (False, lambda: [coupling(case, training_modules, unchanged=_digest(model) == before), feasibility(case)]),
        (True, lambda: [unit_test(case)]),
        (True, lambda: [restarts(case)]),
        (False, lambda: [diversity(case), plausible(case, labels, mapping, dataset)]),
        (False, lambda: [more_views(case, subset_flips, subset_unions), collapse(case, entropy_reference)]),
    ]
    chosen = [part for attacks, part in parts if not (quick and attacks)]
    checks: list[CheckResult] = []
    with inference_target(model):
        for number, part in enumerate(chosen):
            if progress is not None:
                progress(number / len(chosen))
            checks += part()
    checks += [_lock(labels_locked), *([_LEFT_OUT] if quick else [])]
    return SanityReport(checks=tuple(checks), step_curve=case.step_curve)


_LEFT_OUT = CheckResult(
    id="quick",
    title="checks that attack anew were left out",
    value=None,
    verdict="WARN",
    detail="C1, C3, C7, C9, C14 and C15 did not run",
)


# C1, C5, C9: what the steps do


def more_steps(case: Case) -> list[CheckResult]:
    """C1a and C1b: more steps are never weaker, and the tier's steps are enough."""
    drops = []
    for name, objective in (("ce", ce), ("margin", margin)):
        rates = [case.flip_rate(objective, steps) for steps in STEP_GRID]
        case.step_curve[name] = tuple(rates)
        drops += [before - after for before, after in pairwise(rates)]
    worst = max(0.0, *drops)
    text = "; ".join(f"{name}: {', '.join(f'{r:.3f}' for r in rates)}" for name, rates in case.step_curve.items())
    n = case.tier_steps()
    gain = case.flip_rate(ce, 2 * n) - case.flip_rate(ce, n)
    return [
        case.graded("C1a", "more steps are never weaker", worst, 0.005, 0.015, f"flips after {STEP_GRID}: {text}"),
        case.graded("C1b", "the steps have converged", max(0.0, gain), 0.01, 0.03, f"{2 * n} steps against {n}"),
    ]


def single_step(case: Case) -> CheckResult:
    """C5: one step of size ε is not stronger than many."""
    eps = case.budget.eps_per_view(len(case.views))
    rates = []
    for batch, clean in case.batches(case.views, case.reference):
        slopes = input_gradients(case.model, batch, clean, ce)
        moved = tuple(view + e * slope.sign() for view, e, slope in zip(batch, eps, slopes, strict=True))
        rates.append((case.clusters(project(batch, moved, case.budget)) != clean.clusters).double())
    single = float(torch.cat(rates).mean())
    many = case.first_flip_rate()
    detail = f"one step flips {single:.3f}, APGD-CE {many:.3f}"
    return case.graded("C5", "one step is not stronger than many", max(0.0, single - many), 0.0, 0.01, detail)


def loss_curves(case: Case) -> list[CheckResult]:
    """C9: the loss has settled, it moves at all, and no flip on the way is lost."""
    steps = max(case.tier_steps(), 20)
    run = case.ascend(ce, steps)
    gain = float(run.curve[-1] - run.curve[0])
    late = float(run.curve[-1] - run.curve[-1 - steps // 4])
    share = late / gain if gain > 0 else 0.0
    still = float((run.best_loss <= run.start_loss).double().mean())
    lost = int((run.flipped & (case.clusters(run.views) == case.reference.clusters)).sum())
    silent = CheckResult(
        id="C9c",
        title="no flip is lost on the way",
        value=lost / case.count,
        verdict="PASS" if lost == 0 else "FAIL",
        detail=f"{lost} samples flipped during the run and came back unflipped",
    )
    detail = f"{late:.3g} of {gain:.3g} in the last quarter of {steps} steps"
    return [
        case.graded("C9a", "the loss curve has settled", share, 0.05, 0.15, detail, paired=False),
        case.graded("C9b", "the loss moves", still, 0.01, 0.05, "samples whose loss never rose above its start"),
        silent,
    ]


# C2, C3: what the radius does


def larger_eps(case: Case, eps_curve: Mapping[float, float] | None) -> CheckResult:
    """C2: a larger ε is never weaker."""
    title = "a larger ε is never weaker"
    if not eps_curve or len(eps_curve) < 2:
        return not_applicable("C2", title, "no ε curve was computed")
    rates = [eps_curve[eps] for eps in sorted(eps_curve)]
    drop = max(0.0, *(before - after for before, after in pairwise(rates)))
    detail = ", ".join(f"{eps:g}: {eps_curve[eps]:.3f}" for eps in sorted(eps_curve))
    return case.graded("C2", title, drop, 0.005, 0.015, detail)


def unbounded(case: Case, labels: Tensor | None, mapping: Tensor | None) -> list[CheckResult]:
    """C3: with ε as wide as the inputs everything is reachable, for another sample always is."""
    lower, upper = case.budget.bounds
    wide = replace(case.budget, eps=upper - lower)
    run = case.ascend(ce, 100, wide)
    rate = float(run.flipped.double().mean())
    verdict = case.least("C3a", "an unbounded attack succeeds", rate, 0.99, 0.95, f"ε {upper - lower:g}, APGD-CE")
    checks = [verdict, _swap_witness(case)]
    title = "nothing is left at a large ε"
    if labels is None or mapping is None:
        return [*checks, not_applicable("C3c", title, "needs labels")]
    right = mapping[case.reference.clusters] == labels
    left = float((right & ~run.flipped).double().mean())
    return [*checks, case.graded("C3c", title, left, 0.01, 0.05, "worst-case ACC with the fixed map")]


def _swap_witness(case: Case) -> CheckResult:
    title = "another sample in its place is another cluster"
    stream = generator(case.seed, "sanity", "swap")
    order = torch.randperm(case.count, generator=stream).to(case.reference.clusters.device)
    clusters = case.reference.clusters
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
    now = case.clusters(tuple(view[partners] for view in case.views))
    rate = float((now != clusters).double().mean())
    return CheckResult(
        id="C3b",
        title=title,
        value=rate,
        verdict="PASS" if rate == 1.0 else "FAIL",
        detail="share of samples that change when a clean sample of another cluster is put in their place",
    )


# C4, C6, C7: other attackers, and chance


def black_box(case: Case) -> CheckResult:
    """C4: what searches without gradients break beyond the gradient attacks."""
    title = "searches without gradients find nothing new"
    records = [record for record in case.result.records if record.key in ("square", "rays") and not record.skipped]
    if not records:
        return not_applicable("C4", title, f"the tier {case.result.tier} has no such search")
    white = case.union(lambda key: key.startswith(WHITE_BOX))
    new = torch.zeros_like(white)
    for record in records:
        new |= record.flipped & ~white
    detail = f"{int(new.sum())} of {case.count} samples"
    return case.graded("C4", title, float(new.double().mean()), 0.002, 0.01, detail)


def other_models(case: Case) -> CheckResult:
    """C6: what points made on other models break beyond the gradient attacks on this one."""
    title = "points made on other models find nothing new"
    records = [record for record in case.result.records if record.key == "transfer"]
    if not records or records[0].skipped:
        return not_applicable("C6", title, records[0].skipped if records else "the tier has no transfer attack")
    new = records[0].flipped & ~case.union(lambda key: key.startswith(WHITE_BOX))
    detail = f"{int(new.sum())} of {case.count} samples"
    return case.graded("C6", title, float(new.double().mean()), 0.002, 0.01, detail)


def chance(case: Case) -> list[CheckResult]:
    """C7: how much chance alone explains."""
    floor = case.result.noise_flip
    verdict: Verdict = "PASS" if floor < 0.1 else "WARN" if floor <= 0.3 else "FAIL"
    a = CheckResult(
        id="C7a",
        title="random noise of the budget moves few samples",
        value=floor,
        verdict=verdict,
        detail="mean flip rate of the stronger kind of noise"
        + ("; ε is outside the natural scale of this model: read the ε curve" if verdict == "FAIL" else ""),
    )
    return [a, _random_search(case), *_above_noise(case)]


def _random_search(case: Case) -> CheckResult:
    title = "1,000 random corners find nothing new"
    rows = case.survivors[:100]
    if not len(rows):
        return not_applicable("C7b", title, "no sample survived")
    views = tuple(view[rows] for view in case.views)
    clean, found = case.reference.rows(rows), torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    stream = generator(case.seed, "sanity", "corners")
    for _ in range(1000):
        noise = prepare_noise(NoiseConfig(kind="sign"), case.model, views, stream, budget=case.budget)
        found |= case.clusters(noise(case.model, views)) != clean.clusters
    detail = f"{int(found.sum())} of {len(rows)} surviving samples"
    value = float(found.double().mean())
    verdict: Verdict = "PASS" if value == 0 else "WARN" if value <= 0.01 else "FAIL"
    return CheckResult(id="C7b", title=title, value=value, verdict=verdict, detail=detail)


def _above_noise(case: Case) -> list[CheckResult]:
    """C7c: each attack is ahead of noise where much more than noise is known to move, and nowhere behind it.

    Of a robust model no attack can be ahead; that attacks work at all is for C14 to show.
    """
    title = "each attack is better than noise"
    whole = [record for record in case.result.records if int(record.tested.sum()) == case.count]
    if not whole:
        return [not_applicable("C7c", title, "no attack was run on every sample")]
    lines, worst = [], math.inf
    for record in whole:
        ahead = math.inf if record.flip_rate >= 0.99 else record.flip_rate - case.result.noise_flip
        lines.append(f"{record.key} {record.flip_rate:.3f}")
        # The published generator is there for comparison with published tables; that it is weak is known.
        worst = worst if record.key == "gan_official" else min(worst, ahead)
    detail = f"noise {case.result.noise_flip:.3f}; {', '.join(lines)}"
    if worst == math.inf:
        return [CheckResult(id="C7c", title=title, value=None, verdict="PASS", detail=detail)]
    # A run of the checks' own counts too, so that a suite in which every attack is broken does not excuse itself.
    known = max(case.result.flip_rate, case.flip_rate(ce, case.tier_steps()))
    good, fair = (0.1, 0.03) if known - case.result.noise_flip >= 0.1 else (0.0, -0.03)
    return [case.least("C7c", title, worst, good, fair, f"{detail}; known to move {known:.3f}")]


# C8, C10: gradients


def gradients_exist(case: Case) -> list[CheckResult]:
    """C8: gradients exist, for every loss and view."""
    title = "gradients exist"
    shares = {r.key: r.details["zero_gradient"] for r in case.result.records if "zero_gradient" in r.details}
    views = {r.key: r.details["zero_gradient_worst_view"] for r in case.result.records if "zero_gradient" in r.details}
    if not shares:
        return [not_applicable("C8", title, "no gradient attack ran")]
    worst = max(shares, key=lambda key: shares[key])
    check = case.graded("C8", title, shares[worst], 0.01, 0.05, f"samples without a gradient in {worst}")
    blind = [key for key, share in views.items() if share >= 1.0]
    if blind:
        check = replace(check, verdict="FAIL", detail=f"a whole view has no gradient in {', '.join(blind)}")
    return [check]


def saturation(case: Case) -> CheckResult:
    """C8b: the generator is not stuck in the flat part of its output."""
    title = "the generator is not saturated"
    shares = {r.key: r.details["saturation"] for r in case.result.records if "saturation" in r.details}
    if "generator" not in shares:
        return not_applicable("C8b", title, "no generator was fitted")
    detail = ", ".join(f"{key} {share:.3f}" for key, share in shares.items())
    if "gan_official" in shares:
        detail += "; gan_official is the published recipe, kept for comparison, and not judged"
    return case.graded("C8b", title, shares["generator"], 0.2, 0.6, detail, paired=False)


def numerics(case: Case) -> CheckResult:
    """C10: gradients in single precision point where those in double do."""
    title = "gradients do not depend on precision"
    rows = torch.arange(min(_UNIT_TESTS, case.count), device=case.reference.clusters.device)
    views = tuple(view[rows] for view in case.views)
    double = copy.deepcopy(case.model).double()
    wide = tuple(view.double() for view in views)
    single = input_gradients(case.model, views, case.reference.rows(rows), margin)
    exact = input_gradients(double, wide, clean_reference(double, wide, len(rows)), margin)
    cosine = float(F.cosine_similarity(_flat(single).double(), _flat(exact), dim=1).mean())
    confidence = float(case.reference.logits.softmax(1).max(1).values.median())
    detail = f"median confidence {confidence:.6f}; gradients are taken from logits"
    return case.least("C10", title, cosine, 0.99, 0.9, detail, paired=False)


# C11 to C15: the model as a function, and the attack as a tool


def determinism(case: Case) -> CheckResult:
    """C11: the same views give the same clusters."""
    first = case.logits(case.views)
    scale, change, equal = float(first.norm()) or 1.0, 0.0, True
    for _ in range(4):
        again = case.logits(case.views)
        equal &= bool((again.argmax(1) == first.argmax(1)).all())
        change = max(change, float((again - first).norm()) / scale)
    verdict: Verdict = "PASS" if equal and change <= 1e-4 else "WARN" if equal and change <= 1e-2 else "FAIL"
    detail = "relative change of the logits over five passes" + ("" if equal else "; clusters differ: EOT is required")
    return CheckResult(id="C11", title="the model is deterministic", value=change, verdict=verdict, detail=detail)


def coupling(case: Case, training_modules: Sequence[str], unchanged: bool) -> CheckResult:
    """C12: an assignment depends on its own sample only, in inference mode, and nothing in the model moved."""
    title = "samples are not coupled through their batch"
    differs = torch.zeros(case.count, dtype=torch.bool, device=case.reference.clusters.device)
    for repeat in range(3):
        order = torch.randperm(case.count, generator=generator(case.seed, "sanity", "batches", repeat))
        order = order.to(differs.device)
        now = torch.empty_like(case.reference.clusters)
        now[order] = case.clusters(tuple(view[order] for view in case.views))
        differs |= now != case.reference.clusters
    alone = torch.arange(min(case.count, 100), device=differs.device)
    for row in alone.tolist():
        now = case.clusters(tuple(view[row : row + 1] for view in case.views))
        differs[row] |= bool(now[0] != case.reference.clusters[row])
    value = float(differs.double().mean())
    faults = []
    if value > 0:
        faults.append(f"{int(differs.sum())} of {case.count} clusters depend on who is in the batch")
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


def feasibility(case: Case) -> CheckResult:
    """C13: the points are inside the budget, and views that were not attacked are untouched."""
    lower, upper = case.budget.bounds
    excess, outside, touched, finite = 0.0, 0.0, False, True
    for before, after, eps in zip(
        case.views, case.result.views, case.budget.eps_per_view(len(case.views)), strict=True
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


def unit_test(case: Case) -> CheckResult:
    """C14: a planted adversarial point is found. Source: Zimmermann et al. 2022."""
    title = "a planted adversarial point is found"
    planted, views = plant_readouts(
        case.model, tuple(view[:_UNIT_TESTS] for view in case.views), case.budget, case.seed
    )
    if planted is None or len(views[0]) < _LEAST_UNIT_TESTS:
        count = 0 if planted is None else len(views[0])
        return not_applicable("C14", title, f"only {count} points could be planted, {_LEAST_UNIT_TESTS} are needed")
    clean = clean_reference(planted, views, len(views[0]))
    stream = generator(case.seed, "sanity", "unit test", device=views[0].device)
    found = torch.zeros(len(views[0]), dtype=torch.bool, device=views[0].device)
    for gradients in (nullcontext, lambda: soft_rectifiers(planted)):
        with gradients():
            found |= apgd(
                planted, views, clean, margin, case.budget, steps=100, generator=stream, batch_size=len(views[0])
            ).flipped
    rate = float(found.double().mean())
    return case.least("C14", title, rate, 0.95, 0.8, f"{len(views[0])} planted points, 100 steps", paired=False)


def restarts(case: Case) -> CheckResult:
    """C15: four more starts of APGD-CE add nothing to the worst case."""
    title = "more restarts find nothing new"
    rows = case.survivors
    if not len(rows):
        return CheckResult(id="C15", title=title, value=0.0, verdict="PASS", detail="no sample survived")
    found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for repeat in range(4):
        run = apgd(
            case.model,
            tuple(view[rows] for view in case.views),
            case.reference.rows(rows),
            ce,
            case.budget,
            steps=case.tier_steps(),
            generator=generator(case.seed, "sanity", "restart", repeat, device=case.views[0].device),
            stop_on_flip=True,
            batch_size=case.batch_size,
        )
        found |= run.flipped
    detail = f"{int(found.sum())} of {case.count} samples flip in four more starts and survived the suite"
    return case.graded("C15", title, int(found.sum()) / case.count, 0.01, 0.03, detail)


# C16 to C19: the numbers together


def diversity(case: Case) -> CheckResult:
    """C16: what each attack adds; for information."""
    best = max((record for record in case.result.records), key=lambda record: int(record.flipped.sum()))
    detail = ", ".join(f"{record.key} +{record.new}" for record in case.result.records if not record.skipped)
    gain = case.result.flip_rate - int(best.flipped.sum()) / case.count
    return CheckResult(
        id="C16",
        title="what attacks add to each other",
        value=gain,
        verdict="INFO",
        detail=f"union {case.result.flip_rate:.3f}, best single {best.key}; new flips in order: {detail}",
    )


def plausible(case: Case, labels: Tensor | None, mapping: Tensor | None, dataset: str) -> CheckResult:
    """C17: not better than supervised adversarial training."""
    title = "not above supervised training"
    eps = case.budget.eps
    source = DATASETS.get(dataset)
    reference = source.supervised.get(eps) if source and isinstance(eps, float) else None
    if reference is None or labels is None or mapping is None:
        return not_applicable("C17", title, "no supervised reference is stored for this data set and ε")
    right = mapping[case.reference.clusters] == labels
    acc = float((right & ~case.result.flipped).double().mean())
    over = max(0.0, acc - reference)
    return case.graded("C17", title, over, 0.0, 0.02, f"{acc:.3f} against {reference:.3f}", paired=False)


def more_views(
    case: Case, flips: Mapping[tuple[int, ...], float] | None, unions: Mapping[int, float] | None
) -> CheckResult:
    """C18: more views in the attacker's hand are never weaker."""
    title = "more attacked views are never weaker"
    if not flips or not unions:
        return not_applicable("C18", title, "no subsets of views were attacked")
    excess = 0.0
    for size, union in unions.items():
        excess = max(excess, union - case.result.flip_rate)
        excess = max(excess, *(rate - union for subset, rate in flips.items() if len(subset) == size), 0.0)
    detail = ", ".join(f"{size} of {len(case.views)}: {union:.3f}" for size, union in sorted(unions.items()))
    return case.graded("C18", title, excess, 0.005, 0.015, f"all {case.result.flip_rate:.3f}; {detail}")


def collapse(case: Case, entropy_reference: float) -> CheckResult:
    """C19: the clean partition uses its clusters, evenly enough."""
    occupied, entropy = occupancy(case.reference.clusters, case.reference.logits.shape[1])
    k = case.reference.logits.shape[1]
    verdict: Verdict
    if occupied == k and entropy >= 0.9 * entropy_reference:
        verdict = "PASS"
    elif occupied >= k - 1 and entropy >= 0.8 * entropy_reference:
        verdict = "WARN"
    else:
        verdict = "FAIL"
    detail = f"{occupied} of {k} clusters hold more than 1/(10 K) of the samples; "
    detail += f"H {entropy:.3f} of {entropy_reference:.3f}"
    return CheckResult(id="C19", title="the partition has not collapsed", value=entropy, verdict=verdict, detail=detail)


def _flat(views: Views) -> Tensor:
    return torch.cat([view.flatten(1) for view in views], dim=1)


def _lock(locked: bool | None) -> CheckResult:
    title = "labels were not read before they were unlocked"
    if locked is None:
        return not_applicable("C20", title, "labels were not locked")
    detail = "the lock was not opened" if locked else "labels were read while they were locked"
    return CheckResult(id="C20", title=title, value=None, verdict="PASS" if locked else "FAIL", detail=detail)


def _digest(model: nn.Module) -> str:
    """Of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
