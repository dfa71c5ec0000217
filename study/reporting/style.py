"""The house style of figures: colours, axes, legends."""

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by people with any common kind of colour blindness.
BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#9A9A9A", "#333333"

DPI = 130


def with_unit(metric: str) -> str:
    """A metric as an axis label: scores are fractions, times are seconds, losses have no unit."""
    unit = {"time": " (s)", "loss": ""}.get(metric.split("/", 1)[0], " (fraction)")
    return metric + unit


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure in inches with its title at the left; labels never overlap (constrained layout)."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def style(axes: Axes, x: str, y: str) -> None:
    """Two spines, a light grid, axis labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(True, color="#E8E8E8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)


def add_legend(figure: Figure, axes: Axes, columns: int = 5) -> None:
    """One legend of at most so many columns below the axes, where it covers no point."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = min(columns, len(labels))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
