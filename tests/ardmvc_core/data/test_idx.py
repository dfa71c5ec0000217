import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ardmvc_core.data.dataset import DataError
from ardmvc_core.data.idx import check_collection, idx_shape, load_collection, read_idx

IMAGES = np.arange(8 * 4 * 4, dtype=np.uint8).reshape(8, 4, 4)
LABELS = np.arange(8, dtype=np.uint8) % 3


@pytest.mark.parametrize("name", ["plain", "compressed.gz", "compressed-without-suffix"])
def test_reads_what_is_in_the_file(tmp_path: Path, write_idx: Callable[..., bytes], name: str) -> None:
    path = tmp_path / name
    content = write_idx(path, IMAGES)
    if "without" in name:
        path.write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(read_idx(path, 3), IMAGES)
    assert idx_shape(path, 3) == (8, 4, 4)


def test_header_is_read_as_described(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 0, 255]))
    assert read_idx(path, 1).tolist() == [7, 0, 255]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("content", "dimensions", "fragments"),
    [
        (struct.pack(">4I", 2051, 2, 2, 2) + bytes(5), 3, ["truncated", "24", "21"]),
        (struct.pack(">4I", 2051, 2, 2, 2) + bytes(9), 3, ["too long", "24"]),
        (struct.pack(">2I", 2049, 16) + bytes(16), 3, ["wrong magic number", "2051", "images", "2049"]),
        (struct.pack(">4I", 2051, 2, 2, 2) + bytes(8), 1, ["wrong magic number", "2049", "labels", "2051"]),
        (struct.pack(">4I", 2051, 2**31, 2**31, 2**31), 3, ["truncated", str(16 + 2**93), "16"]),
        (b"\0\0\x08", 3, ["truncated", "16", "3"]),
        (b"", 1, ["truncated", "8", "0"]),
    ],
)
def test_faults_name_file_and_numbers(
    tmp_path: Path, content: bytes, dimensions: int, fragments: list[str], compressed: bool
) -> None:
    path = tmp_path / "some-file"
    path.write_bytes(gzip.compress(content) if compressed else content)
    for read in (read_idx, idx_shape):
        with pytest.raises(DataError) as error:
            read(path, dimensions)
        for fragment in (str(path), *fragments):
            assert fragment in str(error.value)


def test_cut_or_damaged_compressed_files(tmp_path: Path) -> None:
    content = struct.pack(">4I", 2051, 20, 10, 10) + np.random.default_rng(0).bytes(2000)
    path = tmp_path / "some-file.gz"
    path.write_bytes(gzip.compress(content)[:-900])
    with pytest.raises(DataError, match=r"some-file.gz: truncated: .* of 2016 bytes"):
        read_idx(path, 3)
    path.write_bytes(gzip.compress(content)[:-2])
    with pytest.raises(DataError, match=r"truncated"):
        idx_shape(path, 3)
    damaged = bytearray(gzip.compress(content))
    damaged[1000] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"some-file.gz: cannot be read"):
        idx_shape(path, 3)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: cannot be read"):
        read_idx(tmp_path / "absent", 1)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_collection_is_training_then_test_files(idx_folder: Callable[..., Path], suffix: str) -> None:
    folder = idx_folder(IMAGES, LABELS, suffix=suffix)
    images, labels = load_collection("mnist", str(folder))
    np.testing.assert_array_equal(images, IMAGES)
    assert labels.dtype == np.int64
    assert labels.tolist() == LABELS.tolist()
    faults, checked = check_collection("mnist", str(folder))
    assert faults == []
    assert checked.tolist() == LABELS.tolist()


def test_faults_of_all_files_are_reported_together(
    idx_folder: Callable[..., Path], write_idx: Callable[..., bytes]
) -> None:
    folder = idx_folder(IMAGES, LABELS)
    (folder / "train-labels-idx1-ubyte").write_bytes(b"no labels at all")
    short = write_idx(folder / "t10k-images-idx3-ubyte", IMAGES[6:])[:-1]
    (folder / "t10k-images-idx3-ubyte").write_bytes(short)
    faults, labels = check_collection("mnist", str(folder))
    assert len(faults) == 2
    assert len(labels) == 0
    with pytest.raises(DataError) as error:
        load_collection("mnist", str(folder))
    for fragment in ("train-labels-idx1-ubyte: wrong magic", "t10k-images-idx3-ubyte: truncated"):
        assert fragment in str(error.value)
        assert fragment in "; ".join(faults)


@pytest.mark.parametrize(
    ("file", "array", "fragment"),
    [
        ("train-labels-idx1-ubyte", LABELS[:5], "train-images-idx3-ubyte: 6 images, but"),
        ("t10k-images-idx3-ubyte", IMAGES[:1], "t10k-images-idx3-ubyte: 1 images, but"),
        ("t10k-images-idx3-ubyte", np.zeros((2, 5, 4)), "images of (5, 4) pixels, but"),
    ],
)
def test_files_that_do_not_belong_together(
    idx_folder: Callable[..., Path], write_idx: Callable[..., bytes], file: str, array: np.ndarray, fragment: str
) -> None:
    folder = idx_folder(IMAGES, LABELS)
    write_idx(folder / file, array)
    faults, _ = check_collection("mnist", str(folder))
    assert fragment in "; ".join(faults)
    with pytest.raises(DataError, match="but"):
        load_collection("mnist", str(folder))


def test_images_too_small_to_be_images(idx_folder: Callable[..., Path]) -> None:
    folder = idx_folder(np.zeros((8, 1, 4)), LABELS)
    with pytest.raises(DataError, match="at least 2×2"):
        load_collection("mnist", str(folder))
