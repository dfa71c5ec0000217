"""NoisyMNIST, NoisyFashion and NoisyDigits: an image, and a noisy other image of its class.

Source: the recipe of AR-DMVC's published data preparation. `official` pairs over the whole collection and scales each
view with its own extremes there, as published. `strict` pairs inside each part with a generator of its own, and
scales every part alike: view 1 by the range the recipe gives it, [−1, 1], view 2 by the extremes of the training part,
what other parts have beyond them being clipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
from ardmvc_core.seeding import derive_seed

if TYPE_CHECKING:
    from ardmvc_core.data.config import DatasetConfig

COLLECTIONS = {"noisy_mnist": "mnist", "noisy_fashion": "fashion-mnist"}
DEFAULT_CLASSES = (0, 1, 2, 3, 4)

_DIGIT_LEVELS = 16
"""Largest pixel of scikit-learn's digits."""
_CHUNK = 2048
"""Images that are handled in double precision at a time."""


def load_noisy_digits(config: DatasetConfig, protocol: Protocol) -> dict[str, Part]:
    """The parts of NoisyDigits: 8×8 digits that come with scikit-learn, the chosen classes re-indexed from 0."""
    images, labels = _digits(config)
    return noisy_parts(config, protocol, images, labels, _DIGIT_LEVELS)


def check_noisy_digits(config: DatasetConfig) -> list[str]:
    """Faults that `load_noisy_digits` would meet."""
    return count_faults(config, len(_digits(config)[1]))


def load_noisy_idx(config: DatasetConfig, protocol: Protocol) -> dict[str, Part]:
    """The parts of NoisyMNIST or NoisyFashion, from IDX files.

    Raises: DataError if the files cannot be found or read.
    """
    images, labels = load_collection(COLLECTIONS[config.name], config.root)
    return noisy_parts(config, protocol, images, labels, 255)


def check_noisy_idx(config: DatasetConfig) -> list[str]:
    """Faults that `load_noisy_idx` would meet; downloads the files if they are nowhere and may be."""
    faults, labels = check_collection(COLLECTIONS[config.name], config.root)
    return faults or count_faults(config, len(labels))


def noisy_parts(
    config: DatasetConfig, protocol: Protocol, images: ByteArray, labels: IndexArray, brightest: int
) -> dict[str, Part]:
    """Makes both views of every part.

    Args:   images: (N, H, W) uint8 in 0..brightest. labels: (N,) of any numbering.
    Returns: the protocol's parts, two views (n, 1, H, W) each.
    Raises: DataError if a view is one constant, which no scaling brings to [0, 1].
    """
    classes, labels = np.unique(labels, return_inverse=True)
    rows = part_rows(config, protocol, len(labels))
    if protocol == "official":
        views = _official_views(config, images, labels, rows, brightest)
    else:
        views = _strict_views(config, images, labels, rows, brightest)
    return {part: make_part(config.name, views[part], labels[rows[part]], len(classes), rows[part]) for part in rows}


def pixel_levels(brightest: int) -> FloatArray:
    """The value on [−1, 1] of every pixel level 0..brightest, in the published order of float32 operations."""
    half = np.float32(0.5)
    return (np.arange(brightest + 1, dtype=np.float32) / np.float32(brightest) - half) / half


def pair_sources(labels: IndexArray, rng: np.random.Generator) -> IndexArray:
    """Which row the second view of each row is taken from: a permutation inside each class.

    Args:   labels: (N,). rng: draws one permutation per class, classes and rows in increasing order.
    Returns: (N,) int64 row numbers; a row may be its own partner.
    """
    sources = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        sources[members] = rng.permutation(members)
    return sources


def noisy_images(
    images: ByteArray,
    levels: FloatArray,
    sources: IndexArray,
    noise: float,
    rng: np.random.Generator,
    keep: IndexArray,
) -> tuple[FloatArray, float, float]:
    """Second views before scaling: the partner's image plus noise.

    The noise of all N rows is drawn, in pieces that equal one draw of the whole, but only the rows in `keep` are held.

    Args:   images (N, H, W), levels: value of each pixel level. sources: (N,) from `pair_sources`. noise: standard
        deviation, on the scale of `levels`. keep: (M,) distinct row numbers.
    Returns: (M, 1, H, W) float32 in the order of `keep`, and the smallest and largest value over all N rows.
    """
    place = np.full(len(images), -1, dtype=np.int64)
    place[keep] = np.arange(len(keep))
    kept = np.empty((len(keep), 1, *images.shape[1:]), dtype=np.float32)
    low, high = np.inf, -np.inf
    for start in range(0, len(images), _CHUNK):
        rows = slice(start, start + _CHUNK)
        block = levels[images[sources[rows]]][:, None]
        # In place: the sum is made in double and rounded once, as published.
        block += rng.normal(0.0, noise, size=block.shape)
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        wanted = place[rows] >= 0
        kept[place[rows][wanted]] = block[wanted]
    return kept, low, high


def scale_to_unit(values: FloatArray, low: float, high: float, view: str) -> FloatArray:
    """Maps [low, high] to [0, 1] in place, in float32.

    Raises: DataError naming the view if it is constant.
    """
    if not high > low:
        raise DataError(f"{view} is constant ({low}): it cannot be scaled to [0, 1]")
    values -= np.float32(low)
    values /= np.float32(high) - np.float32(low)
    return values


def _official_views(
    config: DatasetConfig, images: ByteArray, labels: IndexArray, rows: dict[str, IndexArray], brightest: int
) -> dict[str, list[FloatArray]]:
    rng = np.random.default_rng(config.seed)
    sources = pair_sources(labels, rng)
    keep = np.concatenate(list(rows.values()))
    levels = pixel_levels(brightest)
    second, low, high = noisy_images(images, levels, sources, config.noise, rng, keep)
    scale_to_unit(second, low, high, f"{config.name}: view 1")
    unit = scale_to_unit(
        levels.copy(), float(levels[images.min()]), float(levels[images.max()]), f"{config.name}: view 0"
    )
    ends = np.cumsum([len(part) for part in rows.values()])
    return {
        part: [unit[images[rows[part]]][:, None], second[end - len(rows[part]) : end]]
        for part, end in zip(rows, ends, strict=True)
    }


def _strict_views(
    config: DatasetConfig, images: ByteArray, labels: IndexArray, rows: dict[str, IndexArray], brightest: int
) -> dict[str, list[FloatArray]]:
    levels = pixel_levels(brightest)
    unit = scale_to_unit(levels.copy(), -1.0, 1.0, f"{config.name}: view 0")
    views: dict[str, list[FloatArray]] = {}
    low, high = 0.0, 0.0
    for part, members in rows.items():
        rng = np.random.default_rng(derive_seed(config.seed, "noisy pairs", part))
        own = images[members]
        sources = pair_sources(labels[members], rng)
        second, lowest, highest = noisy_images(own, levels, sources, config.noise, rng, np.arange(len(members)))
        if part == "train":
            low, high = lowest, highest
        scale_to_unit(second, low, high, f"{config.name}: view 1")
        views[part] = [unit[own][:, None], np.clip(second, 0.0, 1.0, out=second)]
    return views


def _digits(config: DatasetConfig) -> tuple[ByteArray, IndexArray]:
    from sklearn.datasets import load_digits  # takes seconds to import, and only this data set needs it

    digits = load_digits()
    chosen = np.isin(digits.target, config.classes or DEFAULT_CLASSES)
    return digits.images[chosen].astype(np.uint8), digits.target[chosen].astype(np.int64)


NOISY_DIGITS = Source(
    load=load_noisy_digits,
    check=check_noisy_digits,
    fields=frozenset({"classes", "noise"}),
    eps=0.10,
    eps_grid=(0.02, 0.05, 0.08, 0.10, 0.15, 0.20),
    # A tenth would be too small to rank trials by.
    strict_cuts={"train": 50, "tune": 70, "attacker": 85, "score": 100},
)
NOISY_MNIST = Source(
    load=load_noisy_idx,
    check=check_noisy_idx,
    fields=frozenset({"root", "noise"}),
    eps=0.30,
    eps_grid=(0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.40),
    supervised={0.3: 0.928},  # TRADES on MNIST, under AutoAttack
)
NOISY_FASHION = Source(
    load=load_noisy_idx,
    check=check_noisy_idx,
    fields=frozenset({"root", "noise"}),
    eps=0.15,
    eps_grid=(0.02, 0.05, 0.08, 0.10, 0.15, 0.20),
)
