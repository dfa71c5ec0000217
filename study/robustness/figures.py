"""Figures of a robustness report."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ardmvc_core.assessment.assess import CURVE_TIER, Assessment
from ardmvc_core.assessment.checks import STEP_GRID
from ardmvc_core.evaluation.metrics import ATTACK_SCORES
from study.reporting.drawing import EPS_AXIS, MOST_PICTURES, Cell, draw_curves, moved_text, picture_grid
from study.reporting.style import BLUE, GREEN, GREY, INK, ORANGE, RED, add_legend, new_figure, style
from study.robustness.facts import HEADINGS
from study.robustness.headline import why_withheld

FIGURES = ("eps_curve", "step_curve", "union_growth", "attack_scores", "pictures")
"""Every figure that a report may have, in its order."""

LIGHT = "#D9D9D9"


def assessment_figures(found: Assessment) -> dict[str, Figure]:
    """Every figure that the assessment allows, by file name without suffix. A figure says itself if the number that it
    shows is not established."""
    drawn = {
        "eps_curve": flips_by_eps(found),
        "step_curve": flips_by_steps(found),
        "union_growth": union_growth(found),
        "attack_scores": attack_scores(found),
        "pictures": moved_pictures(found),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _titled(found: Assessment, title: str) -> str:
    return title if found.established else f"{title}\n(not established: {why_withheld(found)})"


def flips_by_eps(found: Assessment) -> Figure | None:
    """Flip rate, and with labels ACC, by ε; ε50, and the worst case of this report at its own ε."""
    if len(found.eps_curve) < 2:
        return None
    values = found.suite.evaluation.values
    grid = sorted(found.eps_curve)
    lines = {f"flipped ({CURVE_TIER})": [(0.0, 0.0), *((eps, found.eps_curve[eps].flip) for eps in grid)]}
    accs = [(eps, acc) for eps in grid if (acc := found.eps_curve[eps].acc) is not None]
    if "clean/acc" in values and len(accs) == len(grid):
        lines[f"ACC ({CURVE_TIER})"] = [(0.0, values["clean/acc"]), *accs]
    title = _titled(found, "Flips and accuracy by size of the attack")
    figure, axes = draw_curves(title, lines, EPS_AXIS, "fraction of the samples")
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
    axes.set_xlim(left=0)
    add_legend(figure, axes, 2)
    return figure


def flips_by_steps(found: Assessment) -> Figure | None:
    """Flip rate by number of gradient steps: it must not fall, and should have settled."""
    curve = found.sanity.step_curve
    if not curve:
        return None
    lines = {name: list(zip(STEP_GRID, rates, strict=False)) for name, rates in curve.items()}
    title = _titled(found, "Flips by number of steps")
    figure, axes = draw_curves(title, lines, "steps of APGD, one start", "flip rate (fraction)")
    axes.axhline(found.suite.result.noise_flip, color=GREY, linewidth=1.2, linestyle=":", label="random noise")
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(STEP_GRID, [str(steps) for steps in STEP_GRID])
    add_legend(figure, axes, 3)
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
    add_legend(figure, axes, 3)
    return figure


def attack_scores(found: Assessment) -> Figure | None:
    """Attacks that ran on every sample by score, with the clean scores and the worst case; darker is more damage."""
    values = found.suite.evaluation.values
    whole = [r.key for r in found.suite.result.records if f"{r.key}/flip" in values]
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
    axes.set_xticks(range(len(shown)), [HEADINGS[name].replace(" (", "\n(") for name in shown], fontsize=9)
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


def moved_pictures(found: Assessment) -> Figure | None:
    """View, magnified perturbation around grey and attacked view of some moved samples, cluster before and after.

    None if no sample was moved, or no view is an image.
    """
    arrays = {name: np.asarray(array) for name, array in found.suite.evaluation.arrays().items()}
    if "examples/clusters_clean" not in arrays:
        return None
    before, after = arrays["examples/clusters_clean"], arrays["examples/clusters_attacked"]
    rows = np.flatnonzero(before != after)[:MOST_PICTURES]
    images = {}
    for v in range(len(found.suite.data.views)):
        pair = arrays[f"examples/view_{v}_clean"], arrays[f"examples/view_{v}_attacked"]
        if pair[0].ndim == 4 and pair[0].shape[1] in (1, 3):
            images[v] = pair
    if not len(rows) or not images:
        return None
    eps = found.budget.threat().eps_per_view(len(found.suite.data.views))
    shown: list[tuple[str, list[Cell]]] = []
    for row in rows:
        cells: list[Cell] = []
        for v, (clean, attacked) in images.items():
            change = attacked[row] - clean[row]
            # Grey is no change; ±ε fills the whole range, so that what is drawn does not depend on the sample.
            magnified = 0.5 + change / (2 * eps[v]) if eps[v] else np.full_like(change, 0.5)
            cells += [(f"view {v}", clean[row], None), ("change", magnified, None), ("attacked", attacked[row], None)]
        shown.append((moved_text(arrays, row), cells))
    sizes = ", ".join(f"{eps[v]:g}" for v in images) if len({eps[v] for v in images}) > 1 else f"{eps[min(images)]:g}"
    footnote = f"change: grey none, black −ε, white +ε (ε {sizes}); views in [0, 1]"
    return picture_grid(_titled(found, "What the attack changed"), shown, footnote)
