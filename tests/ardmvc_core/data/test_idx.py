import gzip
import hashlib
import os
import shutil
import struct
import tracemalloc
import zlib
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


PUBLISHED = [
    (collection, name)
    for collection in ("mnist", "fashion-mnist")
    for name in (
        *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    )
]


@pytest.fixture
def copied(data_root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """copied(collection): a folder with links to the published files, each of which a test may replace."""

    def copy(collection: str) -> Path:
        folder = tmp_path / collection
        folder.mkdir()
        for file in (data_root / collection).glob("*.gz"):
            (folder / file.name).symlink_to(file)
        return folder

    return copy


def replace(file: Path, content: bytes) -> None:
    """Puts a file in the place of a link, compressed if its name says so."""
    file.unlink(missing_ok=True)
    file.write_bytes(gzip.compress(content, 1) if file.suffix == ".gz" else content)


@pytest.mark.parametrize("collection", ["mnist", "fashion-mnist"])
def test_published_files_pass_in_every_packing(copied: Callable[[str], Path], collection: str) -> None:
    folder = copied(collection)
    assert check_collection(collection, str(folder))[0] == []
    for file in folder.glob("t10k-*"):
        content = gzip.decompress(file.read_bytes())
        replace(file, content)  # packed by another program than the publisher's
        if "labels" in file.name:
            file.unlink()
            replace(file.with_suffix(""), content)
    faults, labels = check_collection(collection, str(folder))
    assert faults == []
    images, same = load_collection(collection, str(folder))
    assert images.shape == (70000, 28, 28)
    assert np.bincount(labels).min() > 6000
    np.testing.assert_array_equal(same, labels)


@pytest.mark.parametrize(
    ("collection", "name", "packed"),
    [(collection, name, packed) for collection, name in PUBLISHED for packed in {False, "labels" in name}],
)
def test_one_changed_byte_of_a_published_file_is_refused(
    copied: Callable[[str], Path], collection: str, name: str, packed: bool
) -> None:
    folder = copied(collection)
    file = folder / f"{name}.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[len(content) // 2] ^= 1
    file.unlink()
    file = file if packed else file.with_suffix("")
    replace(file, bytes(content))
    faults, labels = check_collection(collection, str(folder))
    (fault,) = faults
    assert fault.startswith(f"{file}: not the published file")
    actual, expected = (hashlib.sha256(each).hexdigest() for each in (content, unpacked(content)))
    assert f"its sha256 is {actual}, expected {expected}" in fault
    assert len(labels) == 0
    if "labels" in name:
        with pytest.raises(DataError, match="not the published file"):
            load_collection(collection, str(folder))


def unpacked(changed: bytearray) -> bytes:
    """The content before its middle byte was changed."""
    content = bytearray(changed)
    content[len(content) // 2] ^= 1
    return bytes(content)


@pytest.mark.parametrize("size", [4000, 29000, -1])
def test_a_published_file_that_was_cut_is_refused(copied: Callable[[str], Path], data_root: Path, size: int) -> None:
    folder = copied("fashion-mnist")
    file = folder / "train-labels-idx1-ubyte.gz"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:size])
    (fault,) = check_collection("fashion-mnist", str(folder))[0]
    assert fault.startswith(f"{file}: truncated: ")


@pytest.mark.parametrize(
    ("collection", "name"), [("fashion-mnist", "train-labels-idx1-ubyte"), ("mnist", "t10k-labels-idx1-ubyte")]
)
def test_a_published_file_in_the_place_of_another_is_refused(
    copied: Callable[[str], Path], data_root: Path, collection: str, name: str
) -> None:
    folder = copied("mnist")
    file = folder / "train-labels-idx1-ubyte.gz"
    file.unlink()
    shutil.copy(data_root / collection / f"{name}.gz", file)
    assert check_collection("mnist", str(folder))[0] == [f"{file}: holds {name} of {collection}"]


def test_a_set_of_ones_own_may_have_any_other_size(idx_folder: Callable[..., Path]) -> None:
    folder = idx_folder(np.zeros((600, 28, 28)), np.arange(600) % 10)
    assert check_collection("mnist", str(folder))[0] == []
    assert len(load_collection("mnist", str(folder))[0]) == 600


# Strange files


def bomb(path: Path, shape: tuple[int, int, int], megabytes: int) -> Path:
    """A small compressed file whose header announces images of this shape, and so many megabytes of zeros."""
    deflate = zlib.compressobj(1, wbits=16 + zlib.MAX_WBITS)
    with path.open("wb") as file:
        file.write(deflate.compress(struct.pack(">4I", 2051, *shape)))
        for _ in range(megabytes):
            file.write(deflate.compress(bytes(10**6)))
        file.write(deflate.flush())
    return path


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((1000, 800, 500), "too large: its header announces 381.5 MiB, at most"),
        ((2**31, 2**31, 2**31), "too large: its header announces 2^93 bytes, at most"),
        ((1, 2, 2), "too long: its header announces 20 bytes"),
    ],
)
def test_a_small_file_that_unpacks_to_a_large_one(tmp_path: Path, shape: tuple[int, int, int], why: str) -> None:
    path = bomb(tmp_path / "images.gz", shape, 200)
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    for read in (read_idx, idx_shape):
        with pytest.raises(DataError, match=r"images\.gz: ") as error:
            read(path, 3)
        assert why in str(error.value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 96 << 20  # not what was announced, nor what is there


def test_images_of_no_size_at_all(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(struct.pack(">4I", 2051, 0, 2**32 - 1, 2**32 - 1))
    with pytest.raises(DataError, match="images: cannot be read: "):
        read_idx(path, 3)


def test_a_plain_file_is_not_read_where_its_size_is_not_what_it_announces(tmp_path: Path) -> None:
    path = tmp_path / "images"
    with path.open("wb") as file:
        file.write(struct.pack(">4I", 2051, 2**32 - 1, 2**32 - 1, 200))
        file.truncate(1 << 40)  # holes, which take no room: to read them would take an hour
    with pytest.raises(DataError, match=f"truncated: expected 3689348813023923405016 bytes, found {1 << 40}"):
        read_idx(path, 3)


@pytest.mark.parametrize("trailing", [b"junk", b"\0", gzip.compress(b"more", mtime=0), bytes(1 << 20)])
def test_what_follows_the_end_of_compressed_data(
    tmp_path: Path, write_idx: Callable[..., bytes], trailing: bytes
) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(write_idx(path, IMAGES)) + trailing)
    with pytest.raises(DataError, match="too long: more follows the end of the compressed data"):
        read_idx(path, 3)


def test_what_is_no_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path, "is a folder, not a file"),
        (tmp_path / "pipe", "is a pipe or a device, not a file"),  # opened, it would wait for ever
        (Path("/dev/zero"), "is a pipe or a device, not a file"),
        (tmp_path / ("n" * 300), "no such file"),
    ):
        with pytest.raises(DataError) as error:
            read_idx(path, 3)
        assert why in str(error.value)


@pytest.mark.parametrize("root", ["~nobody.of.this.name/x", "a\0b", "x" * 5000, "/dev/null"])
def test_folders_that_cannot_be(root: str) -> None:
    (fault,), _ = check_collection("mnist", root)
    assert len(fault.encode()) <= 2048
    with pytest.raises(DataError):
        load_collection("mnist", root)
