"""RegDB: a visible and a thermal picture of the same person, from a folder in the database's own layout.

Source: Nguyen et al. 2017, Sensors 17(3):605. The folder holds `Visible/`, `Thermal/` and `idx/`, whose files list one
picture a line, its path in the folder and the number of its identity. The training lists of the first trial are read:
206 identities, which is the number of clusters in the published configuration (the test lists number other people from
0 again). The pairing was not published; here the i-th visible picture of a person goes with the i-th thermal one.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
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
from ardmvc_core.data.files import regdb_folder
from ardmvc_core.data.reading import MIB, file_fault, fitted, one_line, reading, shown_path

if TYPE_CHECKING:
    from ardmvc_core.data.config import DatasetConfig

HEIGHT, WIDTH = 128, 64
LISTS = ("idx/train_visible_1.txt", "idx/train_thermal_1.txt")

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Kinds of pictures that are opened; Pillow hands some others to programs outside of it."""
MOST_PIXELS = 1 << 24
"""Of one picture; RegDB's have 8,192."""
LIST_BYTES = 4 * MIB
"""Longest list that is read; RegDB's are 0.1 MiB."""

_SHOWN, _COUNTED = 5, 1000
"""Faults of one kind that a message lists before it only counts them; after how many a list is not read on."""


def load_regdb(config: DatasetConfig, protocol: Protocol) -> dict[str, Part]:
    """The parts of RegDB: two views (n, 3, 128, 64), labels in the order of the identities' numbers.

    Raises: DataError listing every fault of the lists with file and line, or naming a picture that cannot be read.
    """
    pairs, labels, faults = _read_lists(config)
    if faults:
        raise DataError("; ".join(faults))
    parts: dict[str, Part] = {}
    for part, rows in part_rows(config, protocol, len(labels)).items():
        views = [_pictures([pairs[row][view] for row in rows]) for view in range(len(LISTS))]
        parts[part] = make_part(config.name, views, labels[rows], int(labels.max()) + 1, rows)
    return parts


def check_regdb(config: DatasetConfig) -> list[str]:
    """Faults of the folder and its lists; pictures are looked for, not opened."""
    _, labels, faults = _read_lists(config)
    return faults or count_faults(config, len(labels))


def _read_lists(config: DatasetConfig) -> tuple[list[tuple[Path, Path]], IndexArray, list[str]]:
    """Pairs of pictures ordered by identity, their labels from 0, and what is wrong (then the rest is empty)."""
    empty = np.zeros(0, np.int64)
    try:
        folder = regdb_folder(config.root)
    except DataError as error:
        return [], empty, [str(error)]
    faults: list[str] = []
    visible, thermal = (_read_list(folder, name, faults) for name in LISTS)
    if not faults:
        where = shown_path(folder)
        for identity in sorted(visible.keys() | thermal.keys()):
            found = len(visible.get(identity, [])), len(thermal.get(identity, []))
            if found[0] != found[1]:
                faults.append(
                    f"{where}: identity {identity} has {found[0]} pictures in {LISTS[0]} and {found[1]} in {LISTS[1]}"
                )
    if faults:
        return [], empty, fitted(faults)
    pairs: list[tuple[Path, Path]] = []
    labels: list[int] = []
    for label, identity in enumerate(sorted(visible)):
        own = list(zip(visible[identity], thermal[identity], strict=True))
        pairs += own
        labels += [label] * len(own)
    return pairs, np.array(labels, dtype=np.int64), []


def _read_list(folder: Path, name: str, faults: list[str]) -> dict[int, list[Path]]:
    """Pictures of each identity in the order of one list; faults are added to `faults`."""
    path = folder / name
    where = shown_path(path)
    try:
        with reading(path):
            if fault := file_fault(path) or _too_long(path):
                raise DataError(f"{where}: cannot be read: {fault}")
            lines = path.read_text(encoding="utf-8").splitlines()
    except DataError as error:
        faults.append(str(error))
        return {}
    pictures: dict[int, list[Path]] = {}
    own: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(own) == _COUNTED:
            break
        picture, _, identity = (text.strip() for text in line.strip().rpartition(" "))
        if not picture or not (identity.isascii() and identity.isdecimal() and len(identity) < 10):
            own.append(f"{where}, line {number}: expected 'path identity-number', got {one_line(repr(line))}")
        elif picture.startswith("/") or ".." in PurePosixPath(picture).parts:
            own.append(
                f"{where}, line {number}: must be a path below {shown_path(folder)}, got {one_line(repr(picture))}"
            )
        elif not os.path.isfile(folder / picture):
            own.append(f"{where}, line {number}: {shown_path(folder / picture)} does not exist")
        else:
            pictures.setdefault(int(identity), []).append(folder / picture)
    if not lines or not (pictures or own):
        own.append(f"{where}: lists no picture")
    faults += own[:_SHOWN]
    if len(own) > _SHOWN:
        counted = "or more " if len(own) == _COUNTED else ""
        faults.append(f"{where}: {len(own) - _SHOWN} {counted}more lines like these")
    return pictures


def _too_long(path: Path) -> str | None:
    size = path.stat().st_size
    return f"a list must have at most {LIST_BYTES} bytes, has {size}" if size > LIST_BYTES else None


def _pictures(paths: list[Path]) -> FloatArray:
    """(n, 3, 128, 64) float32 in [0, 1]."""
    # Here, so that the other data sets need no Pillow.
    try:
        from PIL import Image
    except ImportError:
        raise DataError("regdb: Pillow, which reads the pictures, is not installed") from None
    view = np.empty((len(paths), 3, HEIGHT, WIDTH), dtype=np.float32)
    for row, path in enumerate(paths):
        with reading(path, "is no picture that can be read"), Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"at most {MOST_PIXELS} pixels are read, got {picture.width} × {picture.height}")
            resized = picture.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
        view[row] = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / 255
    return view


REGDB = Source(
    load=load_regdb,
    check=check_regdb,
    fields=frozenset({"root"}),
    eps=8 / 255,
    eps_grid=(2 / 255, 4 / 255, 8 / 255, 16 / 255),
)
