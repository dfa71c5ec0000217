"""Files of users and of data sets, damaged and made up: read, or refused by one short DataError."""

import gzip
import io
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import damaged, fuzzed, refusing
from hypothesis import given
from hypothesis import strategies as st

from ardmvc_core.data import DataError, DatasetConfig, check_dataset, load_parts
from ardmvc_core.data.idx import idx_shape, read_idx

N = 20


@pytest.fixture(autouse=True)
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder so deep in the test's own that `../../x` is seen."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")


def archive(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    save = np.savez_compressed if compressed else np.savez
    save(buffer, view_0=rng.random((N, 3)), view_1=rng.random((N, 1, 2, 2)).astype("f4"), labels=np.arange(N) % 4)
    return buffer.getvalue()


def refused_or_read(folder: Path, content: bytes) -> None:
    """Both ways to the file agree on whether it can be used."""
    file = folder / "own.npz"
    file.write_bytes(content)
    config = DatasetConfig(name="npz", path=str(file))
    with refusing(folder, DataError), warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be a second message
        faults = check_dataset(config)
        if faults:
            with pytest.raises(DataError) as error:
                load_parts(config, "strict")
            assert str(error.value) == "; ".join(faults)
            raise error.value
        parts = load_parts(config, "strict")
        for part in parts.values():
            assert all(bool(((view >= 0) & (view <= 1)).all()) for view in part.data.views)


@given(content=st.sampled_from([archive(False), archive(True)]).flatmap(damaged))
@fuzzed(120)
def test_damaged_archives(tmp_path: Path, content: bytes) -> None:
    refused_or_read(tmp_path, content)


NAMES = st.one_of(
    st.sampled_from(["view_0", "view_1", "view_2", "labels", "n_clusters", "view_00", "view_٣", "view_²", "view_"]),
    st.sampled_from(
        ["view_" + "9" * 5000, "../../view_0", "/view_0", "view_0/", "", "view_0\n", "view_-1", "n" * 60000]
    ),
    st.text(max_size=12).map(lambda name: name.encode(errors="replace").decode()),
)
LENGTHS = st.one_of(st.integers(-2, 40), st.sampled_from([N, 2**31, 2**63, 10**18, 10**300, True, 2.0, None, "3"]))
TYPES = st.one_of(
    st.sampled_from(["<f8", "<f4", ">f4", "<f2", "<f16", "|u1", "<i8", "<u8", "|b1", "<c8", "<M8[s]", "<m8"]),
    st.sampled_from(["|O", "|S0", "|V0", "<U3", "|S1000000000", "nonsense", "", "<f8,<f8", "(2,2)f8"]),
    st.sampled_from([[("a", "<f8"), ("b", "|O")], [("a", "<f8", (2, 2))], [], {}, None, 8, ("<f8", (2,))]),
)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """The header of an array, which need not be one."""
    shape = draw(st.one_of(st.lists(LENGTHS, max_size=4).map(tuple), st.just((N, 2)), st.just((N,)), LENGTHS))
    text = repr({"descr": draw(TYPES), "fortran_order": draw(st.sampled_from([False, False, True, 0])), "shape": shape})
    text = draw(
        st.one_of(
            st.just(text),
            st.sampled_from(
                ["(", "[" * 9000, "-" * 9000 + "1", "{[]: 1}", "9" * 9000, text[:-1], f"{text}L", "", "1+1"]
            ),
            st.text(max_size=30),
            st.tuples(st.integers(0, len(text)), st.text(max_size=3)).map(
                lambda edit: text[: edit[0]] + edit[1] + text[edit[0] :]
            ),
        )
    )
    content = text.encode("latin1", errors="replace")
    version = draw(st.sampled_from([(1, 0), (1, 0), (2, 0), (3, 0), (9, 9)]))
    length = len(content) + draw(st.sampled_from([0, 0, 0, 0, 1, -1, 30000]))
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", max(length, 0)) + content


def member(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


ARRAYS = [np.zeros((N, 2)), np.ones((N, 1, 2, 2)), np.arange(N) % 3, np.full((N, 3), 9), np.array(4), np.ones(N)]


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """An archive of two views and labels in which some are replaced, left out, put beside or made up."""
    members = [("view_0", member(ARRAYS[0])), ("view_1", member(ARRAYS[1])), ("labels", member(ARRAYS[2]))]
    for _ in range(draw(st.integers(1, 3))):
        made_up = headers().map(lambda content: content + bytes(8 * N))
        content = draw(st.one_of(made_up, st.sampled_from(ARRAYS).map(member)))
        place = draw(st.integers(0, len(members)))
        match draw(st.sampled_from(["replace", "insert", "insert", "delete"])):
            case "insert":
                members.insert(place, (draw(NAMES), content))
            case "replace" if place < len(members):
                members[place] = (members[place][0], content)
            case "delete" if place < len(members):
                del members[place]
    buffer = io.BytesIO()
    kinds = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as target:
        warnings.simplefilter("ignore")  # of names that stand twice
        kind = draw(st.sampled_from(kinds))
        for name, content in members:
            target.writestr(zipfile.ZipInfo(name + draw(st.sampled_from([".npy", ".npy", ""]))), content, kind)
    return buffer.getvalue()


@given(content=archives())
@fuzzed(150)
def test_archives_that_are_made_up(tmp_path: Path, content: bytes) -> None:
    refused_or_read(tmp_path, content)


IMAGES = struct.pack(">4I", 2051, 8, 4, 4) + bytes(range(128))


@st.composite
def idx_files(draw: st.DrawFn) -> bytes:
    """An IDX file that is damaged, or whose header is made up; compressed, damaged again, or neither."""
    sizes = st.one_of(st.integers(0, 9), st.sampled_from([2**31, 2**32 - 1, 65536]))
    made_up = st.tuples(st.sampled_from([2051, 2049, 3331, 0]), st.lists(sizes, min_size=3, max_size=3)).map(
        lambda facts: struct.pack(">4I", facts[0], *facts[1]) + bytes(range(128))
    )
    content = draw(st.one_of(damaged(IMAGES, 1), damaged(IMAGES), made_up))
    match draw(st.sampled_from(["plain", "gzip", "damaged"])):
        case "gzip":
            return gzip.compress(content) + draw(st.sampled_from([b"", b"", b"\0", gzip.compress(content)]))
        case "damaged":
            return draw(damaged(gzip.compress(content)))
    return content


@given(content=idx_files(), dimensions=st.sampled_from([1, 3]))
@fuzzed(150)
def test_idx_files(tmp_path: Path, content: bytes, dimensions: int) -> None:
    file = tmp_path / "images"
    file.write_bytes(content)
    with refusing(tmp_path, DataError):
        shape = idx_shape(file, dimensions)
        assert read_idx(file, dimensions).shape == shape
