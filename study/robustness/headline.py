"""The headline of a robustness report, and why it may be withheld."""

from ardmvc_core.assessment.assess import Assessment
from ardmvc_core.assessment.case import CheckResult
from ardmvc_core.attacks.other_threats import L2_TIER, ThreatRecord
from ardmvc_core.attacks.suite import AttackRecord
from ardmvc_core.evaluation.intervals import Interval
from study.reporting.text import with_bounds


def headline(found: Assessment) -> str:
    """The one line that may be quoted; without the number under attack if that is not established."""
    values, intervals = found.suite.evaluation.values, found.intervals
    labelled = "robust/acc" in values
    name = "robust/acc" if labelled else "robust/flip"
    noted = f"; warnings: {', '.join(found.sanity.warned)}" if found.sanity.warned else ""
    clean = f"clean ACC {with_interval(values['clean/acc'], intervals.get('clean/acc'))}" if labelled else ""
    if not found.established:
        return "; ".join(part for part in (f"not established ({why_withheld(found)})", clean) if part) + noted
    number = with_interval(values[name], intervals.get(name))
    parts = [f"{'ACC under attack' if labelled else 'flip rate'} {number}", clean]
    if labelled:
        parts.append(f"flip rate {with_interval(values['robust/flip'], intervals.get('robust/flip'))}")
    return "; ".join(part for part in parts if part) + f"; κ {values['robust/kappa']:.3f}" + noted


def chance_text(found: Assessment) -> str:
    """What chance alone gives on these samples, in words; empty without labels."""
    values = found.suite.evaluation.values
    if "chance/acc" not in values:
        return ""
    acc, nmi, under_attack = (values[f"chance/{name}"] for name in ("acc", "nmi", "robust_acc"))
    return f"chance alone gives ACC {acc:.3f} and NMI {nmi:.3f} on clean views, ACC {under_attack:.3f} under attack"


def why_withheld(found: Assessment) -> str:
    reasons = []
    if failed := found.sanity.failed:
        reasons.append(f"check{'s' if len(failed) > 1 else ''} {', '.join(failed)}")
    if found.inconsistencies:
        reasons.append("numbers that contradict each other")
    return "; ".join(reasons)


def threat(found: Assessment) -> str:
    """ε and the attacked views, in words."""
    eps, count = found.budget.eps, len(found.suite.data.views)
    size = ", ".join(f"{e:g}" for e in eps) + " (view by view)" if isinstance(eps, tuple) else f"{eps:g}"
    attacked = found.budget.attacked_views
    views = "all views" if attacked is None else f"views {', '.join(map(str, attacked))} of {count}"
    return f"L∞ ε {size} on {views}"


def other_threat(record: ThreatRecord) -> str:
    """What the attacker of another threat may do, with its size in the data's units."""
    if record.key == "apgd_l2":
        radii = ", ".join(f"{radius:.3g}" for radius in record.radii)
        return f"L2 ε {radii} (view by view)"
    return "one view replaced" if record.key == "view_replaced" else "one view dropped"


def other_threat_rule(found: Assessment, record: ThreatRecord) -> str:
    """How the numbers of another threat come about."""
    if record.key == "apgd_l2":
        eps = found.budget.l2_eps
        share = " and ".join(f"{e:g}" for e in eps) if isinstance(eps, tuple) else f"{eps:g}"
        return f"ε is {share} of the median distance between two samples of the view; attacks of the tier `{L2_TIER}`"
    if record.key == "view_replaced":
        return "by that of another sample, drawn at random; the worst view of each sample"
    return "the mean of all samples stands there; the worst view of each sample"


def level_text(found: Assessment) -> str:
    return f"{next(iter(found.intervals.values())).level:.0%}" if found.intervals else "95%"


def eps50(found: Assessment) -> str:
    """The smallest ε at which half of the samples flip, in words."""
    if found.eps50 is not None:
        return f"Half of the samples flip at ε {found.eps50:.3g}"
    return f"Fewer than half of the samples flip up to ε {max(found.eps_curve):g}, the largest that was tried"


def verdict_text(check: CheckResult) -> str:
    return f"**{check.verdict}**" if check.verdict in ("WARN", "FAIL") else check.verdict


def measured_value(check: CheckResult) -> str:
    return "" if check.value is None else f"{check.value:.4g}"


def with_interval(number: float, interval: Interval | None) -> str:
    return with_bounds(number, interval.low if interval else None, interval.high if interval else None)


def counts_of(record: AttackRecord) -> tuple[int, int, int]:
    return int(record.tested.sum()), int(record.flipped.sum()), record.new
