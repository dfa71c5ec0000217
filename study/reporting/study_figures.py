"""Figures of a study. Each function returns a matplotlib Figure and touches no global state.

No pyplot: figures are drawn in the tracker's thread while the driver goes on; pyplot's registry is not made for that.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from study.ranking.objectives import dominates, spread, upward, value
from study.ranking.ranking import rank, scores
from study.ranking.summary import override_paths, short_names, show
from study.records import Goal, TrialRecord
from study.reporting.style import BLUE, GREEN, GREY, INK, ORANGE, RED, add_legend, new_figure, style, with_unit
from study.spec.objectives import told_of

GROUPS = (("searched", False, "o", BLUE), ("baseline", True, "D", ORANGE))
"""Label, whether baselines, marker and colour of the points of trials."""


def study_figures(
    records: Sequence[TrialRecord],
    objectives: Sequence[Goal],
    space: Mapping[str, Any],
    importances: Mapping[str, float] | None = None,
) -> dict[str, Figure]:
    """Every figure of the study that its trials allow, by file name without suffix."""
    found: dict[str, Figure | None] = {
        "front": front(records, objectives),
        "importance": importance(importances, objectives[0].metric) if importances and objectives else None,
    }
    for objective in objectives:
        name = objective.metric.replace("/", "_")
        found[f"history_{name}"] = history(records, objective)
        found[f"slices_{name}"] = slices(records, objective, space)
        found[f"rungs_{name}"] = rungs(records, objective)
    return {name: figure for name, figure in found.items() if figure is not None}


def _label_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Texts beside points, each at the first of eight places where it covers no other text and no point."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()
    figure.draw_without_rendering()
    marks = [axes.transData.transform((x, y)) for x, y, _ in points]
    frame = axes.get_window_extent(renderer)
    taken: list[Bbox] = []
    places = [(7, 5), (7, -12), (-7, 5), (-7, -12), (0, 10), (0, -17), (14, 14), (-14, 14)]
    for x, y, text in points:
        for dx, dy in places:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            label = axes.annotate(
                text,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=side,
                fontsize=8,
                color=INK,
                zorder=5,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
            box = label.get_window_extent(renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(b) for b in taken) and not any(box.contains(*mark) for mark in marks):
                taken.append(box)
                break
            label.remove()


def front(
    records: Iterable[TrialRecord],
    objectives: Sequence[Goal],
) -> Figure | None:
    """Clean against robust score of every comparable complete trial, and the trials that no other beats in both.

    With two objectives these are the axes; otherwise `clean/acc` and `robust/acc`. None without a trial that has both.
    """
    metrics = [objective.metric for objective in objectives]
    clean, robust = metrics if len(metrics) == 2 else ("clean/acc", "robust/acc")
    axes_of = [Goal(m, next((o.mode for o in objectives if o.metric == m), "max")) for m in (clean, robust)]
    shown = [row.record for row in rank(records, objectives) if row.rank is not None]
    points = {
        r.number: (x, y) for r in shown if (x := value(r, clean)) is not None and (y := value(r, robust)) is not None
    }
    shown = [record for record in shown if record.number in points]
    if not shown:
        return None
    signed = {n: upward(point, axes_of) for n, point in points.items()}
    best = [n for n, own in signed.items() if not any(dominates(other, own) for other in signed.values())]
    best.sort(key=lambda n: points[n])

    figure = new_figure(6.4, 5.0, f"{clean} against {robust}, one point a trial")
    axes = figure.subplots()
    style(axes, with_unit(clean), with_unit(robust))
    for record in shown:
        x, y = points[record.number]
        errors = [spread(record, clean), spread(record, robust)]
        if any(errors):
            axes.errorbar(x, y, xerr=errors[0], yerr=errors[1], color=GREY, alpha=0.5, linewidth=1, zorder=1)
    axes.plot(*zip(*(points[n] for n in best), strict=True), color=GREEN, linewidth=1.4, zorder=2, label="best in both")
    for label, baseline, marker, colour in GROUPS:
        size = 46 if baseline else 36
        chosen = [points[record.number] for record in shown if record.baseline is baseline]
        if chosen:
            x_all, y_all = zip(*chosen, strict=True)
            axes.scatter(x_all, y_all, s=size, marker=marker, color=colour, edgecolor="white", zorder=3, label=label)
    add_legend(figure, axes)
    named = [(*points[r.number], f"trial {r.number}") for r in shown if r.baseline or r.number in best]
    _label_points(figure, axes, named)
    return figure


def history(records: Iterable[TrialRecord], objective: Goal) -> Figure | None:
    """The objective by trial number and the best so far; trials without a comparable value stand at the lower edge."""
    rows = sorted(rank(records, [objective]), key=lambda row: row.record.number)
    points = [
        (r.record.number, found[0], r.record) for r in rows if r.rank and (found := scores(r.record, [objective]))
    ]
    points = [(n, v if math.isfinite(v) else math.nan, r) for n, v, r in points]
    if not points:
        return None
    pick = max if objective.mode == "max" else min
    reached = [pick(v for _, v, _ in points[: i + 1]) for i in range(len(points))]
    figure = new_figure(7.0, 4.2, f"{objective.metric} by trial, and the best so far")
    axes = figure.subplots()
    style(axes, "trial number", with_unit(objective.metric))
    numbers = [n for n, _, _ in points]
    last = rows[-1].record.number
    axes.step([*numbers, last], [*reached, reached[-1]], where="post", color=GREEN, linewidth=1.6, label="best so far")
    for label, baseline, marker, colour in GROUPS:
        chosen = [(n, v, spread(r, objective.metric) or 0.0) for n, v, r in points if r.baseline is baseline]
        if chosen:
            x, y, error = zip(*chosen, strict=True)
            axes.errorbar(x, y, yerr=error, fmt=marker, color=colour, ecolor=GREY, elinewidth=1, label=label, zorder=3)
    floor = axes.get_ylim()[0]
    for label, state, marker, colour in (("stopped early", "PRUNED", "v", GREY), ("failed", "FAIL", "x", RED)):
        chosen_numbers = [row.record.number for row in rows if row.record.state == state]
        if chosen_numbers:
            axes.scatter(
                chosen_numbers, [floor] * len(chosen_numbers), marker=marker, color=colour, label=label, zorder=4
            )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, axes)
    return figure


def rungs(records: Iterable[TrialRecord], objective: Goal) -> Figure | None:
    """What each trial told round by round until it rested, and beside it the value of every seed; None where trials do
    not begin in cohorts."""
    told = [(record, told_of(record, objective)) for record in records if record.leg]
    told = [(record, own) for record, own in told if own]
    if not told:
        return None
    leg = max(record.leg for record, _ in told)
    figure = new_figure(7.0, 4.2, f"{objective.metric} round by round, and of every seed")
    axes = figure.subplots()
    style(axes, "round of the first seed, then one place a seed", with_unit(objective.metric))
    kinds = (("stopped early", False, False, GREY), ("searched", False, True, BLUE), ("baseline", True, True, ORANGE))
    for label, baseline, judged, colour in kinds:
        for record, own in told:
            if (record.baseline, record.judged) != (baseline, judged):
                continue
            first = [step for step in sorted(own) if step <= leg]
            seeds = [step for step in sorted(own) if step >= leg]
            axes.plot(first, [own[s] for s in first], color=colour, linewidth=1, alpha=0.7, marker=".", label=label)
            axes.scatter(seeds, [own[s] for s in seeds], color=colour, s=18, zorder=3)
            label = "_"
    axes.axvline(leg, color=GREY, linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, axes)
    return figure


def importance(importances: Mapping[str, float], metric: str) -> Figure:
    """Share of the objective's variance that each searched parameter explains, as the ledger computed it."""
    names = short_names(importances)
    ordered = sorted(importances.items(), key=lambda entry: entry[1])
    figure = new_figure(6.4, 1.4 + 0.4 * len(ordered), f"Which parameters move {metric}")
    axes = figure.subplots()
    style(axes, "importance (shares, sum 1)", "")
    bars = axes.barh([names[path] for path, _ in ordered], [share for _, share in ordered], color=BLUE, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9, color=INK)
    axes.set_xlim(0, max(0.01, *(share for _, share in ordered)) * 1.15)
    axes.grid(False, axis="y")
    return figure


def slices(records: Iterable[TrialRecord], objective: Goal, space: Mapping[str, Any]) -> Figure | None:
    """Each searched parameter against the objective, over all comparable complete trials.

    Args: space: dotted path → distribution as in the YAML; `log_…` makes the axis logarithmic.
    """
    rows = [row.record for row in rank(records, [objective]) if row.rank is not None]
    paths = [path for path in space if any(path in record.overrides for record in rows)]
    if not space:
        paths = override_paths(rows)
    if not paths:
        return None
    names = short_names(paths)
    columns = min(3, len(paths))
    lines = math.ceil(len(paths) / columns)
    figure = new_figure(1.0 + 3.3 * columns, 1.0 + 3.0 * lines, f"{objective.metric} by each searched parameter")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(paths) :]:
        axes.set_visible(False)
    for axes, path in zip(grid.flat, paths, strict=False):
        first = axes in grid[:, 0]
        style(axes, names[path], with_unit(objective.metric) if first else "")
        given = [
            (r.overrides[path], (scores(r, [objective]) or (math.nan,))[0], r) for r in rows if path in r.overrides
        ]
        _slice(axes, given, any(str(key).startswith(("log_", "int_log")) for key in space.get(path, {})))
    add_legend(figure, grid[0, 0])
    return figure


def _slice(axes: Axes, given: Sequence[tuple[Any, float, TrialRecord]], log: bool) -> None:
    numeric = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x, _, _ in given)
    places: dict[Any, float] = {}
    if not numeric:
        categories = sorted({show(x) for x, _, _ in given})
        places = {category: float(i) for i, category in enumerate(categories)}
        axes.set_xticks(list(places.values()), categories)
        axes.set_xlim(-0.5, len(categories) - 0.5)
    positive = [float(x) for x, _, _ in given if numeric and x > 0]
    log = log and bool(positive)
    # λ = 0 has no place on a log axis: it stands apart at the left end, under its own tick.
    zero = min(positive) / 8 if log else 0.0
    for label, baseline, marker, colour in GROUPS:
        chosen = [(x, y) for x, y, record in given if record.baseline is baseline]
        xs = [(zero if log and x <= 0 else float(x)) if numeric else places[show(x)] for x, _ in chosen]
        axes.scatter(
            xs, [y for _, y in chosen], s=34, marker=marker, color=colour, edgecolor="white", label=label, zorder=3
        )
    if log:
        axes.set_xscale("log")
        first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        ticks = [10.0**power for power in range(first, last + 1) if 10.0**power > zero * 2.5]
        labels = [f"{tick:g}" for tick in ticks]
        if any(x <= 0 for x, _, _ in given):
            axes.axvline(zero * 2, color=GREY, linewidth=1, linestyle=":")
            ticks, labels = [zero, *ticks], ["0", *labels]
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, labels)
