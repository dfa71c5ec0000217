"""Figures of one trial, from the arrays that its last evaluation left in the checkpoint folder."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from study.records import TrialRecord
from study.reporting.drawing import MOST_PICTURES, Cell, moved_text, picture_grid
from study.reporting.style import INK, new_figure
from trainables.saved_trial import ARRAYS_FILE, CONFIG_FILE, LARGEST, DamagedCheckpoint, arrays_in, parsing
from trainables.storage import read_file

Arrays = Mapping[str, NDArray[Any]]


def load_arrays(checkpoint: str | None) -> dict[str, NDArray[Any]]:
    """`evaluation.npz` of a checkpoint folder (local path or URI); empty where there is none.

    Raises: DamagedCheckpoint.
    """
    raw = read_checkpoint(checkpoint, ARRAYS_FILE)
    return {} if raw is None else arrays_in(raw, str(checkpoint))


def load_part_digests(checkpoint: str | None) -> dict[str, str]:
    """Data part → digest of its index list, as the checkpoint stored it; empty where there is none that can be read."""
    raw = read_checkpoint(checkpoint, CONFIG_FILE)
    try:
        with parsing(checkpoint, CONFIG_FILE):
            parts = json.loads(raw).get("contents", {}) if raw else {}
            return {str(name): str(digest) for name, digest in parts.items()}
    except DamagedCheckpoint:
        return {}


def read_checkpoint(checkpoint: str | None, name: str) -> bytes | None:
    """One file of a checkpoint folder (local path or URI), None where it is missing or cannot be had."""
    try:
        return read_file(checkpoint, name, LARGEST[name]) if checkpoint else None
    except (OSError, ValueError):
        return None


def trial_figures(record: TrialRecord, arrays: Arrays) -> dict[str, Figure]:
    """Every figure of one trial that its last evaluation allows, by file name without suffix."""
    title = f"Trial {record.number}{_eps(record.config)}"
    found = {
        "confusion": confusion_figure(arrays, title),
        "pictures": example_pictures(arrays, title),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _eps(config: Mapping[str, Any]) -> str:
    """` at ε 0.1`, of the evaluation; empty where a config of an earlier version has none."""
    eps = config.get("evaluation", {}).get("eps")
    if eps is None:
        return ""
    return f" at ε {', '.join(f'{radius:g}' for radius in (eps if isinstance(eps, list | tuple) else [eps]))}"


def strongest_attack(arrays: Arrays) -> str | None:
    """The attack that moved the largest share of samples, None if there is none; the probe only if it is alone."""
    clean = arrays.get("clusters/clean")
    if clean is None:
        return None
    moved = {
        name.removeprefix("clusters/"): float(np.mean(found != clean[: len(found)]))
        for name, found in arrays.items()
        if name.startswith("clusters/") and name != "clusters/clean" and len(found)
    }
    full = {name: share for name, share in moved.items() if name != "probe"} or moved
    return max(full, key=lambda name: (full[name], name), default=None)


def confusion_figure(arrays: Arrays, title: str = "") -> Figure | None:
    """Classes against clusters on clean views and in the worst case over all attacks, or under the strongest attack
    where no worst case is known (official protocol); clusters ordered by the clean map.

    Args: arrays: `confusion/class_clean`, `confusion/class_<robust or attack>`: (classes, clusters) counts.
    """
    attack = strongest_attack(arrays)
    worst = ("worst case", "robust") if "confusion/class_robust" in arrays else (f"under {attack}", attack)
    tables = {name: arrays.get(f"confusion/class_{key}") for name, key in (("clean", "clean"), worst)}
    present = {name: np.asarray(table) for name, table in tables.items() if table is not None}
    if not present:
        return None
    base = next(iter(present.values()))
    rows, columns = linear_sum_assignment(-base)
    # Column i is the cluster that stands for class i, so that the diagonal is what is right; spare clusters follow.
    order = [int(c) for _, c in sorted(zip(rows, columns, strict=True))]
    order += [c for c in range(base.shape[1]) if c not in order]
    side = min(4.4, max(2.6, 0.34 * max(base.shape)))
    figure = new_figure(
        0.9 + (side + 0.6) * len(present), side + 1.2, f"{title}: classes and clusters before and after".strip(": ")
    )
    grid = figure.subplots(1, len(present), squeeze=False)
    for axes, (name, table) in zip(grid[0], present.items(), strict=True):
        _heat(axes, table[:, order], order, name)
    return figure


def _heat(axes: Axes, table: NDArray[Any], order: Sequence[int], name: str) -> None:
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.set_title(f"{name}, {int(table.sum())} samples", fontsize=10, color=INK)
    axes.set_xlabel("cluster", fontsize=10, color=INK)
    axes.set_ylabel("class", fontsize=10, color=INK)
    if max(table.shape) > 12:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    axes.set_xticks(range(table.shape[1]), [str(c) for c in order], fontsize=9)
    axes.set_yticks(range(table.shape[0]), [str(c) for c in range(table.shape[0])], fontsize=9)
    for (i, j), count in np.ndenumerate(table):
        if count:
            axes.text(
                j, i, str(int(count)), ha="center", va="center", fontsize=8, color="white" if share[i, j] > 0.5 else INK
            )


def example_pictures(arrays: Arrays, title: str = "") -> Figure | None:
    """View, perturbation and attacked view of a few samples, and the cluster before and after.

    Args: arrays: `examples/view_<v>_clean`, `examples/view_<v>_attacked` (n, channels, height, width) in [0, 1],
        `examples/clusters_clean`, `examples/clusters_attacked`, and `examples/labels` where known. Vector views have no
        picture.
    """
    views: list[tuple[NDArray[Any], NDArray[Any]]] = []
    while (before := arrays.get(f"examples/view_{len(views)}_clean")) is not None:
        after = arrays.get(f"examples/view_{len(views)}_attacked")
        if after is None:
            break
        views.append((np.asarray(before), np.asarray(after)))
    drawn = [(v, before, after) for v, (before, after) in enumerate(views) if before.ndim == 4 and len(before)]
    if not drawn:
        return None
    size = max(float(np.abs(after - before).max()) for _, before, after in drawn) or 1.0
    rows: list[tuple[str, list[Cell]]] = []
    for i in range(min(MOST_PICTURES, len(drawn[0][1]))):
        cells: list[Cell] = []
        for v, before, after in drawn:
            cells += [(f"view {v}", before[i], None), ("change", after[i] - before[i], size)]
            cells += [("attacked", after[i], None)]
        rows.append((moved_text(arrays, i), cells))
    footnote = f"change: blue darker, red brighter, full colour ±{size:.3g} (views are in [0, 1])"
    return picture_grid(f"{title}: what the attack changed".strip(": "), rows, footnote)
