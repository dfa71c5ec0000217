"""All that is said about the robustness of one model at one ε: suite, curves, subsets of views, checks, intervals.

A headline stands only if no check fails; whatever is reported can be computed again from the stored confusion matrices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ardmvc_core.assessment.checks import STEP_GRID, SanityReport, run_checks
from ardmvc_core.assessment.consistency import check_consistency, scores_from_confusion
from ardmvc_core.attacks.suite import Memory, run_suite
from ardmvc_core.attacks.target import inference_target
from ardmvc_core.attacks.tiers import OTHER_THREATS, OtherThreat, Tier, plan
from ardmvc_core.data import DATASETS, MultiViewDataset
from ardmvc_core.evaluation.budget import ResolvedBudget
from ardmvc_core.evaluation.intervals import Interval, bootstrap_interval, wilson
from ardmvc_core.evaluation.metrics import ATTACK_SCORES, confusion, fit_map
from ardmvc_core.evaluation.worst_case import SuiteEvaluation, evaluate_suite
from ardmvc_core.types import Views

CURVE_TIER: Tier = "tune"
"""Tier of the ε curve and of subsets of views."""
_CHECKS = 1500
"""Passes of a sample that the checks take, about: the steps of C1, C3, C9 and C15, whatever the tier."""
MOST_SUBSETS = 20
"""Subsets of one size beyond this number are drawn."""

Progress = Callable[[str, float], None]
"""(what runs, share of the largest cost that is behind it)."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The worst case at one ε."""

    flip: float
    acc: float | None
    """None without labels."""


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """All that was found; `as_json` is what is stored."""

    budget: ResolvedBudget
    suite: SuiteEvaluation
    sanity: SanityReport
    intervals: Mapping[str, Interval]
    """By metric: Wilson for shares, BCa bootstrap for NMI and ARI; over samples, not over trainings."""
    eps_curve: Mapping[float, CurvePoint]
    """By ε, attacked by `CURVE_TIER`."""
    subset_flips: Mapping[tuple[int, ...], float]
    """By attacked views: flip rate."""
    subset_unions: Mapping[int, float]
    """By number m of views that the attacker may choose anew for each sample: flip rate."""
    erasable: tuple[float, ...]
    """Per view 2 ε / width of the signal; from 1 on the view can be painted out."""
    inconsistencies: tuple[str, ...]
    """Relations between the numbers that do not hold, each a sentence; there should be none."""

    @property
    def eps50(self) -> float | None:
        """Smallest ε at which half of the samples flip, interpolated on the curve; None: not on the curve."""
        return half_flip_eps(self.eps_curve)

    @property
    def established(self) -> bool:
        """Whether the headline may be printed."""
        return self.sanity.established and not self.inconsistencies

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        result, values = self.suite.result, self.suite.evaluation.values
        return {
            "budget_hash": self.budget.digest(),
            "budget": self.budget.settings(),
            "n": len(self.suite.data),
            "tier": result.tier,
            "mode": "strict",
            "headline": {
                **{name: values.get(f"robust/{name}") for name in ("acc", "nmi", "ari", "flip", "kappa")},
                "clean_acc": values.get("clean/acc"),
                "established": self.established,
                "failed": list(self.sanity.failed),
                "warned": list(self.sanity.warned),
            },
            "metrics": dict(values),
            "intervals": {name: asdict(interval) for name, interval in self.intervals.items()},
            "warnings": list(self.suite.evaluation.warnings),
            "checks": [asdict(check) for check in self.sanity.checks],
            "inconsistencies": list(self.inconsistencies),
            "per_attack": [
                {
                    "key": record.key,
                    "tested": int(record.tested.sum()),
                    "flipped": int(record.flipped.sum()),
                    "new": record.new,
                    "seconds": record.seconds,
                    "forwards": record.forwards,
                    "backwards": record.backwards,
                    "skipped": record.skipped,
                    **record.details,
                    **{score: values.get(f"{record.key}/{score}") for score in ATTACK_SCORES},
                }
                for record in result.records
            ],
            "other_threats": [
                {
                    "key": record.key,
                    **{score: values.get(f"{record.key}/{score}") for score in ("flip", "acc")},
                    "radii": list(record.radii),
                    "noise_flip": record.noise_flip,
                    "skipped": record.skipped,
                }
                for record in self.suite.threats
            ],
            "eps_curve": {f"{eps:g}": asdict(point) for eps, point in self.eps_curve.items()},
            "eps50": self.eps50,
            "step_curve": {"steps": list(STEP_GRID), **{name: list(r) for name, r in self.sanity.step_curve.items()}},
            "subsets": {",".join(map(str, views)): rate for views, rate in self.subset_flips.items()},
            "subset_unions": {str(size): rate for size, rate in self.subset_unions.items()},
            "erasable": list(self.erasable),
            "confusion": {
                name.removeprefix("confusion/"): table.tolist()
                for name, table in self.suite.evaluation.tables.items()
                if name.startswith("confusion/")
            },
        }


def assess(
    model: nn.Module,
    data: MultiViewDataset,
    attacker_views: Views | None,
    budget: ResolvedBudget,
    *,
    surrogates: Sequence[nn.Module] = (),
    everyone: bool = False,
    eps_grid: Sequence[float] | None = None,
    subsets: bool = True,
    threats: Sequence[OtherThreat] = OTHER_THREATS,
    entropy_reference: float = 1.0,
    labels_locked: bool | None = None,
    quick_checks: bool = False,
    attacked: Callable[[SuiteEvaluation], None] | None = None,
    memory: Memory | None = None,
    progress: Progress | None = None,
) -> Assessment:
    """The full report on one model.

    Args: model: left as it was found; the mode that it is handed over in is part of check C12. data: the scored part.
        attacker_views: V × (M, *shape_v), what generators are fitted on. surrogates: for the
        transfer attack. everyone: each attack on every sample, so that attacks can be compared. eps_grid: None:
        the data set's; empty: no curve. subsets: whether subsets of views are attacked, where there are several.
        threats: other threats, each scored by itself and outside the headline, whatever the budget names.
        entropy_reference, labels_locked: as in `run_checks`. quick_checks: its `quick`. attacked: called with the
        scores of the attacks, before curves and checks, which take longer. memory: as in `run_suite`.
    Raises: as `evaluate_suite`.
    """
    grid = DATASETS.get(data.name, DATASETS["npz"]).eps_grid if eps_grid is None else tuple(eps_grid)
    chosen = _subsets(budget.attacked_views or tuple(range(len(data.views))), budget.seed) if subsets else []
    share = _Shares(budget, data.n_clusters, len(grid), len(chosen), progress)

    suite = evaluate_suite(
        model,
        data,
        attacker_views,
        budget,
        surrogates=surrogates,
        everyone=everyone,
        threats=threats,
        memory=memory,
        progress=share.of_suite,
    )
    if attacked is not None:
        attacked(suite)
    curves = _curves(model, suite, budget, grid, chosen, _Flips(model, suite.data.views, memory), share)
    sanity = _checks(model, suite, budget, curves, entropy_reference, labels_locked, share, quick=quick_checks)
    if progress is not None:
        progress("", 1.0)
    views, attacks = suite.data.views, [record.key for record in suite.result.records]
    return Assessment(
        budget=budget,
        suite=suite,
        sanity=sanity,
        intervals=_intervals(suite, budget.seed),
        eps_curve=curves.eps,
        subset_flips=curves.subset_flips,
        subset_unions=curves.subset_unions,
        erasable=erasability(views, budget.threat().eps_per_view(len(views))),
        inconsistencies=tuple(check_consistency(suite.evaluation.values, attacks)),
    )


@dataclass(frozen=True, kw_only=True)
class _Curves:
    """As the fields of an `Assessment`."""

    eps: dict[float, CurvePoint]
    subset_flips: dict[tuple[int, ...], float]
    subset_unions: dict[int, float]


def _curves(
    model: nn.Module,
    suite: SuiteEvaluation,
    budget: ResolvedBudget,
    grid: Sequence[float],
    subsets: Sequence[tuple[int, ...]],
    flips_of: "_Flips",
    share: "_Shares",
) -> _Curves:
    with inference_target(model) as verify:
        eps = _eps_curve(flips_of, _right(suite), budget, grid, share)
        flips, unions = _subset_rates(flips_of, budget, subsets, share)
        verify("the curves")
    return _Curves(eps=eps, subset_flips=flips, subset_unions=unions)


def _checks(
    model: nn.Module,
    suite: SuiteEvaluation,
    budget: ResolvedBudget,
    curves: _Curves,
    entropy_reference: float,
    labels_locked: bool | None,
    share: "_Shares",
    *,
    quick: bool,
) -> SanityReport:
    share.next("checks")
    return run_checks(
        model,
        suite.data.views,
        budget.threat(),
        suite.result,
        seed=budget.seed,
        batch_size=budget.batch_size,
        labels=suite.data.labels,
        mapping=_mapping(suite),
        eps_curve={eps: point.flip for eps, point in curves.eps.items()},
        subset_flips=curves.subset_flips,
        subset_unions=curves.subset_unions,
        entropy_reference=entropy_reference,
        dataset=suite.data.name,
        labels_locked=labels_locked,
        quick=quick,
        progress=share.of_checks,
    )


def half_flip_eps(curve: Mapping[float, CurvePoint]) -> float | None:
    """ε50: where the flip rate first reaches one half, linear between the points and from (0, 0); None: nowhere."""
    before_eps, before = 0.0, 0.0
    for eps in sorted(curve):
        rate = curve[eps].flip
        if rate >= 0.5:
            return before_eps + (eps - before_eps) * (0.5 - before) / (rate - before)
        before_eps, before = eps, rate
    return None


def erasability(views: Views, eps_per_view: Sequence[float]) -> tuple[float, ...]:
    """Per view 2 ε over what tells samples apart in it: the range of a feature over samples, from the 1st to the 99th
    percentile, averaged over the features that differ at all. At 1 the ball covers it; infinite if samples are equal.

    Args: views: V × (N, *shape_v). eps_per_view: V numbers.
    """
    found = []
    for view, eps in zip(views, eps_per_view, strict=True):
        features = view.double().flatten(1)
        low, high = torch.quantile(features, features.new_tensor([0.01, 0.99]), dim=0)
        ranges = (high - low)[high > low]
        found.append(2 * eps / float(ranges.mean()) if len(ranges) else float("inf") if eps > 0 else 0.0)
    return tuple(found)


def _eps_curve(
    flips_of: "_Flips", right: Any, budget: ResolvedBudget, grid: Sequence[float], share: "_Shares"
) -> dict[float, CurvePoint]:
    curve = {}
    for eps in grid:
        share.next(f"ε {eps:g}")
        flipped = flips_of(f"eps-{eps:g}", replace(budget, eps=eps))
        acc = None if right is None else float((right & ~flipped.cpu().numpy()).mean())
        curve[eps] = CurvePoint(flip=_rate(flipped), acc=acc)
    return curve


def _subset_rates(
    flips_of: "_Flips", budget: ResolvedBudget, subsets: Sequence[tuple[int, ...]], share: "_Shares"
) -> tuple[dict[tuple[int, ...], float], dict[int, float]]:
    """Flip rate of each subset of views, and of the best subset of each size for each sample."""
    flips: dict[tuple[int, ...], float] = {}
    unions: dict[int, Tensor] = {}
    for subset in subsets:
        share.next(f"views {', '.join(map(str, subset))}")
        flipped = flips_of(f"views-{'-'.join(map(str, subset))}", replace(budget, attacked_views=subset))
        flips[subset] = _rate(flipped)
        unions[len(subset)] = unions.get(len(subset), torch.zeros_like(flipped)) | flipped
    return flips, {size: _rate(union) for size, union in unions.items()}


def _rate(flipped: Tensor) -> float:
    return float(flipped.double().mean())


@dataclass(frozen=True)
class _Flips:
    """Which samples `CURVE_TIER` moves under a budget, from the memory where it has them."""

    model: nn.Module
    views: Views
    memory: Memory | None

    def __call__(self, key: str, budget: ResolvedBudget) -> Tensor:
        """(N,) bool."""
        known = None if self.memory is None else self.memory.recall_flips(key)
        if known is not None:
            return known
        seed, size = budget.seed, budget.batch_size
        found = run_suite(self.model, self.views, budget.threat(), tier=CURVE_TIER, seed=seed, batch_size=size)
        if self.memory is not None:
            self.memory.keep_flips(key, found.flipped)
        return found.flipped


def _subsets(views: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """All proper subsets of the attacked views, at most `MOST_SUBSETS` of each size."""
    chosen: list[tuple[int, ...]] = []
    stream = np.random.default_rng(seed)
    for size in range(1, len(views)):
        found = list(combinations(views, size))
        if len(found) > MOST_SUBSETS:
            found = [found[i] for i in sorted(stream.choice(len(found), MOST_SUBSETS, replace=False))]
        chosen += found
    return chosen


def _right(suite: SuiteEvaluation) -> Any:
    mapping = _mapping(suite)
    if mapping is None or suite.data.labels is None:
        return None
    return (mapping[suite.result.reference.clusters] == suite.data.labels).cpu().numpy()


def _mapping(suite: SuiteEvaluation) -> Tensor | None:
    if suite.data.labels is None:
        return None
    clusters = suite.result.reference.clusters
    return torch.from_numpy(fit_map(suite.data.labels, clusters, suite.data.n_clusters)).to(clusters.device)


def _intervals(suite: SuiteEvaluation, seed: int) -> dict[str, Interval]:
    values, n = suite.evaluation.values, len(suite.data)
    kinds = ("robust", *(record.key for record in suite.threats))
    shares = ["clean/acc", *(f"{kind}/{score}" for kind in kinds for score in ("acc", "flip"))]
    found = {name: wilson(round(values[name] * n), n) for name in shares if name in values}
    if suite.data.labels is None:
        return found
    labels = suite.data.labels.cpu().numpy()
    k = suite.data.n_clusters
    classes = max(k, int(labels.max()) + 1)
    for kind in ("clean", "robust"):
        clusters = np.asarray(suite.evaluation.tables[f"clusters/{kind}"])
        for score in ("nmi", "ari"):

            def statistic(a: Any, b: Any, score: str = score) -> float:
                return float(getattr(scores_from_confusion(confusion(a, b, classes, k)), score))

            found[f"{kind}/{score}"] = bootstrap_interval(statistic, (labels, clusters), resamples=1000, seed=seed)
    return found


class _Shares:
    """Turns the parts of a report into one progress, by the passes that each may cost."""

    def __init__(
        self, budget: ResolvedBudget, n_clusters: int, n_eps: int, n_subsets: int, progress: Progress | None
    ) -> None:
        cost = {tier: sum(attack.forwards for attack in plan(tier, n_clusters)) for tier in (budget.tier, "tune")}
        self._suite, self._piece = cost[budget.tier], cost["tune"]
        self._total = self._suite + (n_eps + n_subsets) * self._piece + _CHECKS
        self._behind, self._begun, self._progress = 0.0, False, progress

    def of_suite(self, what: str, share: float) -> None:
        self._behind = share * self._suite
        self._say(what or "curves")

    def of_checks(self, share: float) -> None:
        self._say("checks", share * _CHECKS)

    def next(self, what: str) -> None:
        if self._begun:
            self._behind += self._piece
        self._begun = True
        self._say(what)

    def _say(self, what: str, ahead: float = 0.0) -> None:
        if self._progress is not None:
            self._progress(what, min(1.0, (self._behind + ahead) / self._total))
