"""Curves and pictures, drawn in one way for a trial and for a robustness report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from study.reporting.style import BLUE, GREEN, GREY, INK, ORANGE, RED, new_figure, style

EPS_AXIS = "ε (L∞, views in [0, 1])"

MOST_PICTURES = 6
"""Samples in a grid of pictures."""

LOOKS = tuple(
    zip((BLUE, ORANGE, GREEN, RED, INK, GREY), ("o-", "D--", "s-.", "^:", "v-", "P--"), strict=True),
)
"""Colour and line of each curve, in order."""

Cell = tuple[str, NDArray[Any], float | None]
"""Heading, one (channels, height, width) image, and the full size of a signed change; None: an image in [0, 1]."""


def draw_curves(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> tuple[Figure, Axes]:
    """One curve a name, of fractions; at most as many as there are `LOOKS`. Args: x, y: labels of the axes."""
    figure = new_figure(6.0, 4.2, title)
    axes = figure.subplots()
    style(axes, x, y)
    for (name, points), (colour, look) in zip(lines.items(), LOOKS, strict=False):
        axes.plot(*zip(*points, strict=True), look, color=colour, linewidth=1.8, markersize=5, label=name)
    axes.set_ylim(-0.02, 1.03)
    return figure, axes


def picture_grid(title: str, rows: Sequence[tuple[str, Sequence[Cell]]], footnote: str) -> Figure:
    """A row of images for each sample, its text at the left. Args: rows: at least one, all with the same headings."""
    height, width = rows[0][1][0][1].shape[1:]
    cell = 0.95 * max(1.0, height / width * 0.75)
    columns = len(rows[0][1])
    figure = new_figure(2.0 + 0.95 * columns, 1.1 + cell * len(rows), title)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for i, (line, (text, cells)) in enumerate(zip(grid, rows, strict=True)):
        for axes, (heading, image, size) in zip(line, cells, strict=True):
            _picture(axes, image, size)
            if i == 0:
                axes.set_title(heading, fontsize=9, color=INK)
        line[0].set_ylabel(text, fontsize=8, color=INK, rotation=0, ha="right", va="center", labelpad=6)
    figure.supxlabel(footnote, fontsize=8, color=INK)
    return figure


def moved_text(arrays: Mapping[str, NDArray[Any]], i: int) -> str:
    """Class of an example, where known, and its cluster before and after the attack."""
    lines = []
    if (labels := arrays.get("examples/labels")) is not None:
        lines.append(f"class {int(labels[i])}")
    before, after = arrays.get("examples/clusters_clean"), arrays.get("examples/clusters_attacked")
    if before is not None and after is not None:
        lines.append(f"cluster {int(before[i])} → {int(after[i])}")
    return "\n".join(lines)


def _picture(axes: Axes, image: NDArray[Any], size: float | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#CCCCCC")
    if size is not None:
        axes.imshow(image.mean(axis=0), cmap="RdBu_r", vmin=-size, vmax=size)
    else:
        shown = np.clip(image, 0, 1)
        axes.imshow(shown.transpose(1, 2, 0) if len(shown) == 3 else shown[0], cmap="gray", vmin=0, vmax=1)
