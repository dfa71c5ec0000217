"""Small IDX folders, written the way the format is described."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def write_idx() -> Callable[..., bytes]:
    """write_idx(path, array): an IDX file, compressed if the name ends in .gz; returns its bytes before compression."""

    def write(path: Path, array: np.ndarray) -> bytes:
        content = (
            struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return content

    return write


@pytest.fixture
def idx_folder(tmp_path: Path, write_idx: Callable[..., bytes]) -> Callable[..., Path]:
    """idx_folder(images, labels, …): a folder with the four files, the last quarter of the rows in the test files."""

    def make(images: np.ndarray, labels: np.ndarray, name: str = "mnist", suffix: str = "") -> Path:
        cut = len(images) * 3 // 4
        for split, rows in (("train", slice(0, cut)), ("t10k", slice(cut, None))):
            write_idx(tmp_path / name / f"{split}-images-idx3-ubyte{suffix}", images[rows])
            write_idx(tmp_path / name / f"{split}-labels-idx1-ubyte{suffix}", labels[rows])
        return tmp_path / name

    return make
