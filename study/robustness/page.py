"""The report on one model's robustness: Markdown, JSON, a short page for a terminal, and figures.

Everything is read from an `Assessment`; nothing is computed here that changes a number.
"""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from ardmvc_core.assessment.assess import ATTACK_SCORES, CURVE_TIER, Assessment
from ardmvc_core.assessment.case import CheckResult
from ardmvc_core.assessment.certificates import Certificates, section
from ardmvc_core.assessment.checks import STEP_GRID
from ardmvc_core.attacks.suite import AttackRecord
from ardmvc_core.attacks.tiers import plan
from ardmvc_core.evaluation.intervals import Interval
from study.reporting.style import BLUE, GREEN, GREY, INK, ORANGE, RED, add_legend, new_figure, png, style
from trainables.checkpoints import write_file

FIGURES = ("eps_curve", "step_curve", "union_growth", "attack_scores", "pictures")
"""Every figure that a report may have, in its order."""
SHOWN_PICTURES = 6
LIGHT = "#D9D9D9"

_HEADINGS = {
    "flip": "flip",
    "acc": "ACC (fixed map)",
    "acc_refit": "ACC (refitted map)",
    "nmi": "NMI",
    "ari": "ARI",
}
_NAMES = {
    "acc": "ACC (fixed map)",
    "nmi": "NMI with classes",
    "ari": "ARI with classes",
    "flip": "flip rate",
    "kappa": "κ (kept, beyond chance)",
    "nmi_clean": "NMI with clean clusters",
    "ari_clean": "ARI with clean clusters",
}


@dataclass(frozen=True, kw_only=True)
class SurrogateFacts:
    """A model that the transfer attack made its points on."""

    method: str
    seed: int
    epochs: int
    agreement: float | None
    """NMI between its clusters and the target's on the scored samples; None if its training failed."""
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was evaluated, and how the numbers came about."""

    reference: str
    """The model as it was asked for."""
    checkpoint: str
    """Folder or URI of its weights."""
    model: str
    """Method."""
    repeat: int
    """Which of the trial's models."""
    dataset: Mapping[str, Any]
    """Settings of the data set."""
    part: str
    """Data part that was scored."""
    parts: Mapping[str, str]
    """Data part → digest of its rows, of those that were used."""
    everyone: bool
    """Whether each attack ran on every sample, and not only on survivors."""
    surrogates: tuple[SurrogateFacts, ...]
    device: str
    versions: Mapping[str, str]
    commit: str | None
    command: str
    seconds: float
    forwards: int
    """Passes of a sample through the target, of the whole report: attacks, curves, subsets and checks."""
    backwards: int
    """Of these, passes that were differentiated."""
    certificates: Certificates | None = None


def headline(found: Assessment) -> str:
    """The one line that may be quoted; without the number under attack if that is not established."""
    values, intervals = found.suite.evaluation.values, found.intervals
    labelled = "robust/acc" in values
    name = "robust/acc" if labelled else "robust/flip"
    noted = f"; warnings: {', '.join(found.sanity.warned)}" if found.sanity.warned else ""
    clean = f"clean ACC {_with_interval(values['clean/acc'], intervals.get('clean/acc'))}" if labelled else ""
    if not found.established:
        return "; ".join(part for part in (f"not established ({_why_not(found)})", clean) if part) + noted
    number = _with_interval(values[name], intervals.get(name))
    parts = [f"{'ACC under attack' if labelled else 'flip rate'} {number}", clean]
    if labelled:
        parts.append(f"flip rate {_with_interval(values['robust/flip'], intervals.get('robust/flip'))}")
    return "; ".join(part for part in parts if part) + f"; κ {values['robust/kappa']:.3f}" + noted


def _why_not(found: Assessment) -> str:
    reasons = []
    if failed := found.sanity.failed:
        reasons.append(f"check{'s' if len(failed) > 1 else ''} {', '.join(failed)}")
    if found.inconsistencies:
        reasons.append("numbers that contradict each other")
    return "; ".join(reasons)


# Markdown


def markdown(found: Assessment, facts: Facts, figures: Sequence[str] = ()) -> str:
    """The report as GitHub Markdown.

    Args: figures: names of those that lie in `figures/` beside it.
    """
    sections = [
        _opening(found, facts),
        _clean_and_worst(found),
        _noise_floor(found),
        _eps_section(found, figures),
        _erasability(found),
        _attacks(found, facts, figures),
        _subsets(found),
        _checks(found, figures),
        "" if facts.certificates is None else section(facts.certificates, _table),
        _not_run(found, facts),
        _limits(found, facts),
        _provenance(found, facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _opening(found: Assessment, facts: Facts) -> str:
    title = f"# Robustness of `{facts.reference}`"
    line = f"**{headline(found)}**"
    what = (
        f"{facts.model} on {facts.dataset['name']}, {len(found.suite.data):,} samples of the part `{facts.part}`; "
        f"{threat(found)}; tier `{found.suite.result.tier}`; evaluation budget `{found.budget.digest()}`."
    )
    kind = (
        f"{_level(found)} intervals are over the samples of this one trained model, not over trainings. Under attack a "
        "sample counts as right if it is right on clean views, under the map from clusters to classes that was fitted "
        "there, and no attack moves it to another cluster."
    )
    if found.suite.data.labels is None:
        kind = f"{_level(found)} intervals are over the samples of this one trained model. The data have no labels."
    return "\n\n".join([title, line, what, kind])


def threat(found: Assessment) -> str:
    """ε and the attacked views, in words."""
    eps, count = found.budget.eps, len(found.suite.data.views)
    size = ", ".join(f"{e:g}" for e in eps) + " (view by view)" if isinstance(eps, tuple) else f"{eps:g}"
    attacked = found.budget.attacked_views
    views = "all views" if attacked is None else f"views {', '.join(map(str, attacked))} of {count}"
    return f"L∞ ε {size} on {views}"


def _level(found: Assessment) -> str:
    return f"{next(iter(found.intervals.values())).level:.0%}" if found.intervals else "95%"


def _clean_and_worst(found: Assessment) -> str:
    values, intervals = found.suite.evaluation.values, found.intervals
    rows = []
    for name, text in _NAMES.items():
        clean, robust = values.get(f"clean/{name}"), values.get(f"robust/{name}")
        if robust is not None:
            before = "" if clean is None else _with_interval(clean, intervals.get(f"clean/{name}"))
            rows.append([text, before, _with_interval(robust, intervals.get(f"robust/{name}"))])
    heading = "worst case" if found.established else "worst case (not established)"
    return f"## Clean and worst case\n\n{_table(['', 'clean', heading], rows)}"


def _noise_floor(found: Assessment) -> str:
    result = found.suite.result
    moved = float(result.noise_flipped.double().mean())
    return (
        f"## Noise floor\n\nRandom noise of the same budget moves {result.noise_flip:.3f} of the samples (mean over "
        f"draws of the stronger kind); {moved:.3f} are moved by at least one draw. Noise does not count as an attack."
    )


def _eps_section(found: Assessment, figures: Sequence[str]) -> str:
    if not found.eps_curve:
        return ""
    labelled = any(point.acc is not None for point in found.eps_curve.values())
    rows = [
        [f"{eps:g}", f"{point.flip:.3f}", *([_three(point.acc)] if labelled else [])]
        for eps, point in sorted(found.eps_curve.items())
    ]
    table = _table(["ε", "flip", *(["ACC (fixed map)"] if labelled else [])], rows)
    head = f"## ε50\n\n{eps50(found)}, by the tier `{CURVE_TIER}`."
    return "\n\n".join([head, table, *_picture_of("eps_curve", figures)])


def eps50(found: Assessment) -> str:
    """The smallest ε at which half of the samples flip, in words."""
    if found.eps50 is not None:
        return f"Half of the samples flip at ε {found.eps50:.3g}"
    return f"Fewer than half of the samples flip up to ε {max(found.eps_curve):g}, the largest that was tried"


def _erasability(found: Assessment) -> str:
    rows = [
        [str(view), "∞" if math.isinf(share) else f"{share:.2f}", "yes" if share >= 1 else "no"]
        for view, share in enumerate(found.erasable)
    ]
    return "\n\n".join(
        [
            "## Erasability per view",
            "2 ε over the width of the view's signal (1–99 percentile range of the mean sample). From 1 on the "
            "attacker can paint the view out.",
            _table(["view", "2 ε / width", "can be erased"], rows),
        ]
    )


def _attacks(found: Assessment, facts: Facts, figures: Sequence[str]) -> str:
    values = found.suite.evaluation.values
    labelled = "robust/acc" in values
    headings = ["attack", "tested", "flipped", "new", *(["ACC (fixed map)", "ACC (refitted map)"] if labelled else [])]
    rows = []
    for record in found.suite.result.records:
        counts = ["", "", ""] if record.skipped else [f"{n:,}" for n in _counts(record)]
        scores = [_three(values.get(f"{record.key}/{name}")) for name in ("acc", "acc_refit")] if labelled else []
        cost = ["", "", ""] if record.skipped else [f"{record.forwards:,}", f"{record.backwards:,}"]
        cost += [] if record.skipped else [f"{record.seconds:.1f}"]
        rows.append([f"`{record.key}`", *counts, *scores, *cost, record.skipped])
    run_on = "on every sample" if facts.everyone else "on the samples that no attack before it has moved"
    text = f"In this order, each {run_on}."
    if labelled:
        text += (
            " Scores of a single attack only where it ran on every sample. The refitted map is fitted to classes after "
            "the attack, as published tables have it: it is for comparison with those, and never below the fixed one."
        )
    table = _table([*headings, "forwards", "backwards", "seconds", "skipped because"], rows)
    pictures = [line for name in ("union_growth", "attack_scores", "pictures") for line in _picture_of(name, figures)]
    return "\n\n".join(["## Attacks", text, table, *pictures])


def _subsets(found: Assessment) -> str:
    if not found.subset_flips:
        return ""
    rows = [["views " + ", ".join(map(str, views)), f"{rate:.3f}"] for views, rate in found.subset_flips.items()]
    rows += [[f"any {size}, chosen per sample", f"{rate:.3f}"] for size, rate in sorted(found.subset_unions.items())]
    views = range(len(found.suite.data.views)) if found.budget.attacked_views is None else found.budget.attacked_views
    rows.append([f"all: {', '.join(map(str, views))} (tier `{found.suite.result.tier}`)", _three(_flip(found))])
    return f"## Subsets of views\n\nBy the tier `{CURVE_TIER}`.\n\n{_table(['attacked', 'flip'], rows)}"


def _checks(found: Assessment, figures: Sequence[str]) -> str:
    rows = [[c.id, c.title, _measured(c), _verdict(c), c.detail] for c in found.sanity.checks]
    parts = ["## Checks", _table(["", "check", "value", "verdict", "detail"], rows)]
    if found.inconsistencies:
        parts.append(
            "Numbers that contradict each other:\n\n" + "\n".join(f"- {line}" for line in found.inconsistencies)
        )
    return "\n\n".join([*parts, *_picture_of("step_curve", figures)])


def _not_run(found: Assessment, facts: Facts) -> str:
    result, k = found.suite.result, found.suite.data.n_clusters
    ran = {record.key for record in result.records}
    lines = [f"attack `{record.key}`: {record.skipped}" for record in result.records if record.skipped]
    # These tiers have it, but for heads whose logits are read from centroids.
    centroid_head = result.tier in ("standard", "plus") and "apgd_centroid" not in ran
    absent = [step.key for step in plan("plus", k, centroid_head=centroid_head) if step.key not in ran]
    if absent:
        lines.append(f"attacks of larger tiers: {_families(absent)}")
    if not found.eps_curve:
        lines.append("the ε curve")
    if len(found.suite.data.views) > 1 and not found.subset_flips:
        lines.append("attacks on subsets of views")
    lines += [f"check {check.id}: {check.detail}" for check in found.sanity.checks if check.verdict == "N/A"]
    lines.append(
        "attackers who see only some of the views; attackers of a collection that is clustered anew after the attack; "
        "other norms than L∞"
    )
    return "## Not run\n\n" + "\n".join(f"- {line}" for line in lines)


def _families(keys: Sequence[str]) -> str:
    """Keys of attacks, those that differ by their last number as one: `apgd_target_2` to `apgd_target_9`."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(re.sub(r"_\d+$", "", key), []).append(key)
    ends = [(group[0], group[-1]) for group in groups.values()]
    return ", ".join(f"`{first}`" if first == last else f"`{first}` to `{last}`" for first, last in ends)


def _limits(found: Assessment, facts: Facts) -> str:
    lines = [
        "Accuracy under attack is an upper bound and the flip rate a lower one: a stronger attack may find more. "
        "Nothing here is a guarantee.",
        f"One trained model on {len(found.suite.data):,} samples; another training seed may differ by more than the "
        "intervals.",
        f"The number of clusters, {found.suite.data.n_clusters}, was given.",
        "Bootstrap intervals of NMI and ARI are not to be trusted where these are near 0.",
    ]
    if facts.part == "tune":
        lines.append(
            "Trials are compared on the part `tune`, so its numbers flatter whichever trial was picked by them."
        )
    if any(share >= 1 for share in found.erasable):
        views = [str(view) for view, share in enumerate(found.erasable) if share >= 1]
        lines.append(f"At this ε the attacker can paint out view{'s' if len(views) > 1 else ''} {', '.join(views)}.")
    lines += [f"Check {c.id} warns ({c.title}): {c.detail}." for c in found.sanity.checks if c.verdict == "WARN"]
    lines += [f"{warning[0].upper()}{warning[1:]}." for warning in found.suite.evaluation.warnings]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _provenance(found: Assessment, facts: Facts) -> str:
    rows = [
        ["model", f"`{facts.reference}`, {facts.model}, model {facts.repeat} of its trial"],
        ["weights", f"`{facts.checkpoint}`"],
        ["data", f"`{json.dumps(facts.dataset, sort_keys=True)}`"],
        *([f"part `{name}`", f"`{digest}`"] for name, digest in facts.parts.items()),
        ["budget", f"`{found.budget.digest()}`, seed {found.budget.seed}"],
        *(["surrogate", _surrogate(one)] for one in facts.surrogates),
        ["software", ", ".join(f"{name} {version}" for name, version in facts.versions.items())],
        ["commit", facts.commit or "unknown"],
        ["command", f"`{facts.command}`"],
        ["time", f"{facts.seconds:.1f} s on {facts.device}"],
        ["passes of a sample", f"{facts.forwards:,} forward, {facts.backwards:,} of them with gradient"],
    ]
    return f"## Provenance\n\n{_table(['', ''], rows)}"


def _surrogate(one: SurrogateFacts) -> str:
    text = f"{one.method}, seed {one.seed}, {one.epochs} epochs on the attacker part"
    return (
        f"{text}: {one.failure}" if one.failure else f"{text}; NMI with the target's clusters {_three(one.agreement)}"
    )


def _picture_of(name: str, figures: Sequence[str]) -> list[str]:
    return [f"![{name.replace('_', ' ')}](figures/{name}.png)"] if name in figures else []


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(headings), ["---"] * len(headings), *map(list, rows)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _verdict(check: CheckResult) -> str:
    return f"**{check.verdict}**" if check.verdict in ("WARN", "FAIL") else check.verdict


def _measured(check: CheckResult) -> str:
    return "" if check.value is None else f"{check.value:.4g}"


def _three(number: float | None) -> str:
    return "" if number is None else f"{number:.3f}"


def _with_interval(number: float, interval: Interval | None) -> str:
    return f"{number:.3f}" if interval is None else f"{number:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _counts(record: AttackRecord) -> tuple[int, int, int]:
    return int(record.tested.sum()), int(record.flipped.sum()), record.new


def _flip(found: Assessment) -> float:
    return found.suite.evaluation.values["robust/flip"]


# Short page


def page(found: Assessment, facts: Facts) -> str:
    """The report on one page for a terminal: headline, a line for each attack, checks that did not pass."""
    result, values = found.suite.result, found.suite.evaluation.values
    scored = f"{facts.model} on {facts.dataset['name']}, {len(found.suite.data):,} samples of {facts.part}"
    lines = [
        headline(found),
        f"{scored}; {threat(found)}; tier {result.tier}; budget {found.budget.digest()}",
        f"noise of the same budget moves {result.noise_flip:.3f}",
    ]
    if found.eps_curve:
        lines[-1] += f"; {eps50(found)[0].lower()}{eps50(found)[1:]} (tier {CURVE_TIER})"
    rows = [["attack", "tested", "flipped", "new", "union", "ACC", "seconds"]]
    union = 0
    for record in result.records:
        if record.skipped:
            rows.append([record.key, f"skipped: {record.skipped}"])
            continue
        union += record.new
        acc = _three(values.get(f"{record.key}/acc")) or "-"
        rows.append([record.key, *map(str, _counts(record)), f"{union / len(found.suite.data):.3f}", acc])
        rows[-1].append(f"{record.seconds:.1f}")
    lines += ["", *_columns(rows)]
    marked = [check for check in found.sanity.checks if check.verdict in ("WARN", "FAIL")]
    counts = {verdict: sum(c.verdict == verdict for c in found.sanity.checks) for verdict in ("PASS", "INFO", "N/A")}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    lines += ["", f"checks: {told}" + ("; and" if marked else "")]
    lines += _columns(
        [[check.verdict, check.id, _measured(check), f"{check.title}: {check.detail}"] for check in marked]
    )
    lines += list(found.inconsistencies)
    return "\n".join(line.rstrip() for line in lines)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of one width, the first at the left; a last text that stands alone is not measured."""
    if not rows:
        return []
    most = max(map(len, rows))
    full = [row for row in rows if len(row) == most]
    widths = [max(len(row[i]) for row in full) for i in range(most)]
    widths[0] = max(len(row[0]) for row in rows)
    words = all(len(row) == most for row in rows) and any(" " in row[-1] for row in rows)
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        if len(row) < most:
            cells += row[1:]
        else:
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            if words:
                cells[-1] = row[-1]
        lines.append("  ".join(cells).rstrip())
    return lines


# JSON and files


def as_json(found: Assessment, facts: Facts) -> str:
    """`Assessment.as_json` and, under `facts`, what was evaluated; numbers that are not finite become null."""
    whole = {"facts": asdict(facts), **found.as_json()}
    return json.dumps(_finite(whole), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(found: Assessment, facts: Facts, folder: Path) -> None:
    """Writes `report.md`, `report.json`, `evaluation.npz` and `figures/*.png`, each whole or not at all.

    Figures that an earlier report left there and this one does not have are deleted, unless `figures` is a link.

    Raises: OSError if the folder cannot be written to.
    """
    figures = all_figures(found)
    drawn = folder / "figures"
    for name in FIGURES:
        if name in figures:
            write_file(str(drawn), f"{name}.png", png(figures[name]))
        elif not drawn.is_symlink():
            (drawn / f"{name}.png").unlink(missing_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **found.suite.evaluation.arrays())
    write_file(str(folder), "evaluation.npz", buffer.getvalue())
    write_file(str(folder), "report.json", as_json(found, facts).encode())
    write_file(str(folder), "report.md", markdown(found, facts, tuple(figures)).encode())


def _finite(item: Any) -> Any:
    if isinstance(item, float):
        return item if math.isfinite(item) else None
    if isinstance(item, Mapping):
        return {key: _finite(entry) for key, entry in item.items()}
    return [_finite(entry) for entry in item] if isinstance(item, list | tuple) else item


# Figures


def all_figures(found: Assessment) -> dict[str, Figure]:
    """Every figure that the assessment allows, by file name without suffix. A figure says itself if the number that it
    shows is not established."""
    drawn = {
        "eps_curve": eps_curve(found),
        "step_curve": step_curve(found),
        "union_growth": union_growth(found),
        "attack_scores": attack_scores(found),
        "pictures": pictures(found),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _titled(found: Assessment, title: str) -> str:
    return title if found.established else f"{title}\n(not established: {_why_not(found)})"


def eps_curve(found: Assessment) -> Figure | None:
    """Flip rate, and with labels ACC, by ε; ε50, and the worst case of this report at its own ε."""
    if len(found.eps_curve) < 2:
        return None
    values = found.suite.evaluation.values
    grid = sorted(found.eps_curve)
    figure = new_figure(6.4, 4.4, _titled(found, "Flips and accuracy by size of the attack"))
    axes = figure.subplots()
    style(axes, "ε (L∞, views in [0, 1])", "fraction of the samples")
    flips = [0.0, *(found.eps_curve[eps].flip for eps in grid)]
    axes.plot([0.0, *grid], flips, "o-", color=BLUE, linewidth=1.8, markersize=5, label=f"flipped ({CURVE_TIER})")
    accs = [acc for eps in grid if (acc := found.eps_curve[eps].acc) is not None]
    if "clean/acc" in values and len(accs) == len(grid):
        points = [values["clean/acc"], *accs]
        axes.plot([0.0, *grid], points, "D--", color=ORANGE, linewidth=1.8, markersize=5, label=f"ACC ({CURVE_TIER})")
    own = found.budget.eps
    if isinstance(own, float):
        tier = found.suite.result.tier
        ends = [values["robust/flip"], *([values["robust/acc"]] if "robust/acc" in values else [])]
        for i, (number, colour) in enumerate(zip(ends, (BLUE, ORANGE), strict=False)):
            label = f"worst case at ε {own:g} ({tier})" if i == 0 else None
            axes.plot(
                own, number, "*", color=colour, markersize=15, markeredgecolor=INK, linestyle="", label=label, zorder=4
            )
    if (half := found.eps50) is not None:
        axes.axvline(half, color=GREEN, linewidth=1.3, linestyle=":", label=f"ε50 = {half:.3g}")
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_ylim(-0.02, 1.03)
    axes.set_xlim(left=0)
    _legend(figure, axes, 2)
    return figure


def step_curve(found: Assessment) -> Figure | None:
    """Flip rate by number of gradient steps: it must not fall, and should have settled."""
    curve = found.sanity.step_curve
    if not curve:
        return None
    figure = new_figure(6.0, 4.2, _titled(found, "Flips by number of steps"))
    axes = figure.subplots()
    style(axes, "steps of APGD, one start", "flip rate (fraction)")
    looks = zip((BLUE, ORANGE, GREEN, RED), ("o-", "D--", "s-.", "^:"), strict=True)
    for (name, rates), (colour, look) in zip(curve.items(), looks, strict=False):
        axes.plot(STEP_GRID[: len(rates)], rates, look, color=colour, linewidth=1.8, markersize=5, label=name)
    axes.axhline(found.suite.result.noise_flip, color=GREY, linewidth=1.2, linestyle=":", label="random noise")
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(STEP_GRID, [str(steps) for steps in STEP_GRID])
    axes.set_ylim(-0.02, 1.03)
    _legend(figure, axes, 3)
    return figure


def union_growth(found: Assessment) -> Figure | None:
    """Cumulative share of the samples that are moved, over the attacks in their order."""
    result = found.suite.result
    records = [record for record in result.records if not record.skipped]
    if not records:
        return None
    count, behind = len(found.suite.data), 0
    figure = new_figure(6.8, 1.7 + 0.27 * len(records), _titled(found, "What each attack adds to those before it"))
    axes = figure.subplots()
    style(axes, "share of all samples moved so far (fraction)", "")
    axes.grid(False, axis="y")
    for place, record in enumerate(records):
        first = place == 0
        axes.barh(place, behind / count, color=LIGHT, height=0.72, label="moved before" if place == 1 else None)
        new = record.new / count
        axes.barh(place, new, left=behind / count, color=BLUE, height=0.72, label="new" if first else None)
        behind += record.new
        text = f"{behind / count:.3f}" + (f"  (+{record.new:,})" if record.new else "")
        axes.text(behind / count + 0.01, place, text, va="center", fontsize=8, color=INK)
    axes.axvline(result.noise_flip, color=RED, linewidth=1.2, linestyle=":", label="random noise", zorder=4)
    axes.set_yticks(range(len(records)), [record.key for record in records], fontsize=9)
    axes.set_ylim(len(records) - 0.4, -0.6)
    axes.set_xlim(0, max(0.05, 1.22 * max(behind / count, result.noise_flip)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    _legend(figure, axes, 3)
    return figure


def attack_scores(found: Assessment) -> Figure | None:
    """Attacks that ran on every sample by score, with the clean scores and the worst case; darker is more damage."""
    values = found.suite.evaluation.values
    whole = [r.key for r in found.suite.result.records if bool(r.tested.all()) and not r.skipped]
    shown = [name for name in ATTACK_SCORES if any(f"{key}/{name}" in values for key in whole)]
    if not whole or not shown:
        return None
    rows = ["clean", *whole, "worst case"]
    prefix = {"worst case": "robust"}
    table = np.array([[values.get(f"{prefix.get(row, row)}/{name}", math.nan) for name in shown] for row in rows])
    if "flip" in shown:
        table[0, shown.index("flip")] = 0.0
    if "acc_refit" in shown and "acc" in shown:
        table[0, shown.index("acc_refit")] = table[0, shown.index("acc")]  # the map is fitted on clean data anyway
    damage = np.array([[v if name == "flip" else 1 - v for v, name in zip(row, shown, strict=True)] for row in table])
    figure = new_figure(2.9 + 0.95 * len(shown), 1.6 + 0.32 * len(rows), _titled(found, "Attacks by score"))
    axes = figure.subplots()
    axes.imshow(np.ma.masked_invalid(damage), cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    axes.set_xticks(range(len(shown)), [_HEADINGS[name].replace(" (", "\n(") for name in shown], fontsize=9)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    for y in (0.5, len(rows) - 1.5):
        axes.axhline(y, color="white", linewidth=3)
    for (i, j), number in np.ndenumerate(table):
        text = "–" if math.isnan(number) else f"{number:.3f}"
        colour = "white" if damage[i, j] > 0.6 else INK
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)
    figure.supxlabel("darker: more damage; attacks that ran on every sample", fontsize=8, color=INK)
    return figure


def pictures(found: Assessment) -> Figure | None:
    """View, magnified perturbation around grey and attacked view of some moved samples, cluster before and after.

    None if no sample was moved, or no view is an image.
    """
    arrays = {name: np.asarray(array) for name, array in found.suite.evaluation.arrays().items()}
    if "examples/clusters_clean" not in arrays:
        return None
    before, after = arrays["examples/clusters_clean"], arrays["examples/clusters_attacked"]
    rows = np.flatnonzero(before != after)[:SHOWN_PICTURES]
    images = {}
    for v in range(len(found.suite.data.views)):
        pair = arrays[f"examples/view_{v}_clean"], arrays[f"examples/view_{v}_attacked"]
        if pair[0].ndim == 4 and pair[0].shape[1] in (1, 3):
            images[v] = pair
    if not len(rows) or not images:
        return None
    eps = found.budget.attack_budget().eps_per_view(len(found.suite.data.views))
    title = _titled(found, "What the attack changed")
    figure = new_figure(1.6 + 0.95 * 3 * len(images), 1.2 + 0.95 * len(rows), title)
    grid = figure.subplots(len(rows), 3 * len(images), squeeze=False)
    for i, row in enumerate(rows):
        for k, (v, (clean, attacked)) in enumerate(images.items()):
            change = attacked[row] - clean[row]
            # Grey is no change; ±ε fills the whole range, so that what is drawn does not depend on the sample.
            magnified = 0.5 + change / (2 * eps[v]) if eps[v] else np.full_like(change, 0.5)
            cells = ((f"view {v}", clean[row]), ("change", magnified), ("attacked", attacked[row]))
            for axes, (name, image) in zip(grid[i, 3 * k : 3 * k + 3], cells, strict=True):
                _show(axes, image)
                if i == 0:
                    axes.set_title(name, fontsize=9, color=INK)
        lines = [f"cluster {int(before[row])} → {int(after[row])}"]
        if (labels := arrays.get("examples/labels")) is not None:
            lines.insert(0, f"class {int(labels[row])}")
        grid[i, 0].set_ylabel("\n".join(lines), fontsize=8, color=INK, rotation=0, ha="right", va="center", labelpad=6)
    sizes = ", ".join(f"{eps[v]:g}" for v in images) if len({eps[v] for v in images}) > 1 else f"{eps[min(images)]:g}"
    figure.supxlabel(f"change: grey none, black −ε, white +ε (ε {sizes}); views in [0, 1]", fontsize=8, color=INK)
    return figure


def _show(axes: Axes, image: NDArray[Any]) -> None:
    """One (channels, height, width) image with values in [0, 1]."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#CCCCCC")
    shown = np.clip(image, 0, 1)
    axes.imshow(shown.transpose(1, 2, 0) if len(shown) == 3 else shown[0], cmap="gray", vmin=0, vmax=1)


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    add_legend(figure, axes)
    for legend in figure.legends:
        legend.set_ncols(columns)
