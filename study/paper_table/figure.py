"""The table as a heat map: the paper's ACC, ours as published, ours strict."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from study.paper_table.render import DATASET_NAMES, MODEL_NAMES, Table
from study.paper_table.results import PHASES, Entry, Scored
from study.reporting.style import GREY, INK, new_figure

COLOURS = "cividis"
"""Even in brightness, and told apart by people with any common kind of colour blindness."""


def heat_map(table: Table) -> Figure:
    """ACC before and after the attack, a panel for the paper and one for each protocol; hatched where not run."""
    panels: list[tuple[str, Scored, Callable[[Entry], float | None]]] = []
    if any(entry.paper is not None for entry in table.entries):
        panels.append(("the paper", "official", lambda entry: entry.paper))
    panels += [(f"ours, {protocol}", protocol, lambda entry: entry.ours) for protocol in table.protocols]
    width = 1.6 + len(panels) * (0.5 + 1.15 * len(table.columns))
    figure = new_figure(max(width, 5.0), 1.9 + 0.34 * len(table.rows), "Clustering accuracy before and after attack")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, protocol, number) in zip(grid, panels, strict=True):
        image = _panel(axes, table, protocol, number)
        axes.set_title(title, fontsize=10, color=INK, loc="left")
    bar = figure.colorbar(image, ax=list(grid), shrink=0.8, pad=0.01)
    bar.set_label("ACC (fraction)", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    return figure


def _panel(axes: Axes, table: Table, protocol: Scored, number: Callable[[Entry], float | None]) -> AxesImage:
    keys = [(column, phase) for column in table.columns for phase in PHASES]
    values = [[number(table.at(row, column, protocol, phase, "acc")) for column, phase in keys] for row in table.rows]
    shown = [[float("nan") if value is None else value for value in line] for line in values]
    image = axes.imshow(shown, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    axes.set_facecolor("white")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value is None:
                axes.add_patch(_hatched(x, y))
            else:
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=_ink(value))
    for x in range(2, len(keys), 2):
        axes.axvline(x - 0.5, color="white", linewidth=3)
    axes.set_xticks(range(len(keys)), [phase.upper() for _, phase in keys], fontsize=7.5)
    for index, column in enumerate(table.columns):
        axes.text(2 * index + 0.5, len(table.rows) + 0.25, DATASET_NAMES[column], ha="center", va="top", fontsize=8)
    axes.set_yticks(range(len(table.rows)), [MODEL_NAMES[row] for row in table.rows], fontsize=9)
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def _hatched(x: int, y: int) -> Rectangle:
    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="white", edgecolor=GREY, hatch="////", linewidth=0)


def _ink(value: float) -> str:
    return "white" if value < 0.55 else "black"
