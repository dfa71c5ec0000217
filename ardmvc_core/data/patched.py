"""PatchedMNIST: three patches of one enlarged digit, for the digits 0, 1 and 2.

Source: the recipe of AR-DMVC's published data preparation. There is nothing to draw, so both protocols make the same
views; `official` scales with each view's extremes over the whole collection, as published, `strict` with the range that
the recipe gives, [−1, 1], so that no part depends on another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ardmvc_core.data.dataset import (
    DataError,
    FloatArray,
    IndexArray,
    Part,
    Protocol,
    Source,
    count_faults,
    make_part,
    part_rows,
)
from ardmvc_core.data.idx import ByteArray, check_collection, load_collection
from ardmvc_core.data.noisy import pixel_levels

if TYPE_CHECKING:
    from ardmvc_core.data.config import DatasetConfig

CLASSES = (0, 1, 2)
GRID = 4
PATCHES = tuple((row, column) for row in range(GRID) for column in range(GRID) if not {row, column} <= {0, GRID - 1})
"""(row, column) in the grid of the twelve views of the recipe: all but the corners."""
USED_PATCHES = (0, 1, 3)
"""The views that the published experiments keep."""

_CHUNK = 2048


def load_patched(config: DatasetConfig, protocol: Protocol) -> dict[str, Part]:
    """The parts of PatchedMNIST, three views (n, 1, 28, 28) each.

    Raises: DataError if the files cannot be found or read.
    """
    images, labels = load_collection("mnist", config.root)
    chosen = np.isin(labels, CLASSES)
    images, labels = images[chosen], labels[chosen]
    faults = _faults(config, labels)
    if faults:
        raise DataError("; ".join(faults))
    rows = part_rows(config, protocol, len(labels))
    keep = np.concatenate(list(rows.values()))
    views = [patch_view(images, PATCHES[patch], keep, fixed_range=protocol == "strict") for patch in USED_PATCHES]
    parts: dict[str, Part] = {}
    start = 0
    for part, members in rows.items():
        own = [view[start : start + len(members)] for view in views]
        parts[part] = make_part(config.name, own, labels[members], len(CLASSES), members)
        start += len(members)
    return parts


def check_patched(config: DatasetConfig) -> list[str]:
    """Faults that `load_patched` would meet; downloads the files if they are nowhere and may be."""
    faults, labels = check_collection("mnist", config.root)
    return faults or _faults(config, labels[np.isin(labels, CLASSES)])


def patch_view(images: ByteArray, patch: tuple[int, int], keep: IndexArray, *, fixed_range: bool) -> FloatArray:
    """One view: a tile of every image enlarged fourfold, mapped to [0, 1].

    Args:   images: (N, H, W) uint8. patch: row and column in the 4×4 grid. keep: (M,) row numbers.
        fixed_range: scale by [−1, 1] instead of by the extremes of the N tiles.
    Returns: (M, 1, H, W) float32 in the order of `keep`.
    Raises: DataError if the extremes are equal.
    """
    low, high = (-1.0, 1.0) if fixed_range else _extremes(images, patch)
    if not high > low:
        raise DataError(f"patched_mnist: the patch at {patch} is constant ({low}): it cannot be scaled to [0, 1]")
    view = np.empty((len(keep), 1, *images.shape[1:]), dtype=np.float32)
    for start in range(0, len(keep), _CHUNK):
        part = slice(start, start + _CHUNK)
        view[part, 0] = (enlarged_tiles(images[keep[part]], patch) - low) / (high - low)
    return view


def enlarged_tiles(images: ByteArray, patch: tuple[int, int]) -> NDArray[np.float64]:
    """A tile of images enlarged fourfold by bilinear interpolation.

    Args:   images: (N, H, W) uint8. patch: row and column in the 4×4 grid of H×W tiles.
    Returns: (N, H, W) float64 in [−1, 1], rounded to float32. Before that no digit is lost: the weights are eighths.
    """
    height, width = images.shape[1:]
    down, rows = _interpolation(height, patch[0])
    across, columns = _interpolation(width, patch[1])
    pixels = pixel_levels(255).astype(np.float64)[images[:, rows, columns]]
    return (down @ pixels @ across.T).astype(np.float32).astype(np.float64)


def _extremes(images: ByteArray, patch: tuple[int, int]) -> tuple[float, float]:
    tiles = (enlarged_tiles(images[start : start + _CHUNK], patch) for start in range(0, len(images), _CHUNK))
    lows, highs = zip(*((tile.min(), tile.max()) for tile in tiles), strict=True)
    return float(min(lows)), float(max(highs))


def _interpolation(size: int, tile: int) -> tuple[NDArray[np.float64], slice]:
    """Weights (size, M) that make one tile of an enlarged axis from M neighbouring pixels, and which M those are.

    Output o lies at (o + ½)/4 − ½; pixel −a is pixel a, and likewise at the far end (the edge is not repeated).
    """
    weights = np.zeros((size, size))
    for row in range(size):
        position = (size * tile + row + 0.5) / GRID - 0.5
        before = int(np.floor(position))
        for pixel, weight in ((before, 1 - (position - before)), (before + 1, position - before)):
            mirrored = abs(pixel) if pixel < size else 2 * (size - 1) - pixel
            weights[row, mirrored] += weight
    used = np.flatnonzero(weights.any(axis=0))
    columns = slice(int(used[0]), int(used[-1]) + 1)
    return weights[:, columns], columns


def _faults(config: DatasetConfig, labels: IndexArray) -> list[str]:
    absent = sorted(set(CLASSES) - set(labels.tolist()))
    if absent:
        return [f"{config.name}: the labels hold no digit {', '.join(map(str, absent))}; 0, 1 and 2 are needed"]
    return count_faults(config, len(labels))


PATCHED_MNIST = Source(
    load=load_patched,
    check=check_patched,
    fields=frozenset({"root"}),
    eps=0.30,
    eps_grid=(0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.40),
)
