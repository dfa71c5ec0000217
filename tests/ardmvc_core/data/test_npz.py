import io
import os
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refusal

from ardmvc_core.data import DataError, DatasetConfig, check_dataset, load_parts

N = 20


def good(**changes: Any) -> dict[str, Any]:
    """A file without faults, then changed; None takes a key away."""
    rng = np.random.default_rng(0)
    arrays = {
        "view_0": rng.random((N, 3)),
        "view_1": rng.random((N, 1, 4, 5)).astype(np.float32),
        "labels": np.arange(N) % 4 * 10,
    }
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def save(path: Path, arrays: dict[str, Any]) -> DatasetConfig:
    np.savez(path, **arrays)
    return DatasetConfig(name="npz", path=str(path))


def with_value(value: float, position: tuple[int, ...] = (2, 1)) -> np.ndarray:
    view = np.full((N, 3), 0.5)
    view[position] = value
    return view


@pytest.mark.parametrize("protocol", ["official", "strict"])
def test_rows_stay_together_and_labels_are_numbered_from_zero(tmp_path: Path, protocol: str) -> None:
    arrays = good()
    config = save(tmp_path / "own.npz", arrays)
    assert check_dataset(config) == []
    parts = load_parts(config, protocol)
    for part in parts.values():
        rows = part.indices.numpy()
        assert part.data.n_clusters == 4
        assert part.data.view_shapes == ((3,), (1, 4, 5))
        np.testing.assert_array_equal(part.data.views[0], arrays["view_0"][rows].astype(np.float32))
        np.testing.assert_array_equal(part.data.views[1], arrays["view_1"][rows])
        np.testing.assert_array_equal(part.data.labels, rows % 4)


def test_without_labels_the_number_of_clusters_is_read(tmp_path: Path) -> None:
    config = save(tmp_path / "own.npz", good(labels=None, n_clusters=np.array(6)))
    data = load_parts(config, "official")["train"].data
    assert data.labels is None
    assert data.n_clusters == 6


def test_more_clusters_than_classes_may_be_asked_for(tmp_path: Path) -> None:
    config = save(tmp_path / "own.npz", good(n_clusters=7))
    assert load_parts(config, "official")["train"].data.n_clusters == 7


def test_integers_zero_and_one_are_numbers_in_range(tmp_path: Path) -> None:
    config = save(tmp_path / "own.npz", good(view_0=np.arange(2 * N, dtype=np.uint8).reshape(N, 2) % 2))
    view = load_parts(config, "official")["train"].data.views[0]
    assert view.dtype == torch.float32
    assert set(view.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([1 + 5e-7, -2e-7], np.float32), ([1 + 9e-7, -9e-7], np.float64), ([-1e-45, 1.0000001], np.float32)],
)
def test_values_outside_by_rounding_are_clipped_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: list[float], dtype: type
) -> None:
    view = with_value(0.5).astype(dtype)
    view[:, :2] = values
    config = save(tmp_path / "own.npz", good(view_0=view))
    assert check_dataset(config) == []
    assert caplog.text == ""
    data = load_parts(config, "official")["train"].data
    assert (data.views[0].min(), data.views[0].max()) == (0, 1)
    assert "own.npz: view_0: 40 values were up to " in caplog.text
    assert "outside [0, 1] and are clipped to it" in caplog.text


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"view_0": with_value(1.00001)}, ["view_0 must lie in [0, 1]", "1.00001 at [2, 1]"]),
        ({"view_0": with_value(-2e-6)}, ["view_0 must lie in [0, 1]", "-2e-06 at [2, 1]"]),
        ({"view_1": None}, ["at least two views", "labels, view_0"]),
        ({"view_1": None, "view_2": np.zeros((N, 2))}, ["without a gap", "view_2"]),
        ({"view_1": np.zeros((N - 1, 2))}, ["common length", "view_0: 20", "view_1: 19"]),
        ({"view_0": with_value(np.nan)}, ["view_0 must be finite", "nan at [2, 1]", "1 of 60"]),
        ({"view_0": with_value(-np.inf)}, ["view_0 must be finite", "-inf at [2, 1]"]),
        ({"view_0": with_value(1.5)}, ["view_0 must lie in [0, 1]", "1.5 at [2, 1]"]),
        ({"view_0": with_value(-0.25)}, ["view_0 must lie in [0, 1]", "-0.25 at [2, 1]"]),
        ({"view_0": np.full((N, 2), 255, np.uint8)}, ["view_0 must lie in [0, 1]", "255 at [0, 0]", "40 of 40"]),
        ({"view_0": np.zeros((N, 2), complex)}, ["view_0 must hold real numbers", "complex128"]),
        ({"view_0": np.full((N, 2), "x")}, ["view_0 must hold real numbers", "<U1"]),
        ({"view_0": np.zeros(N)}, ["view_0 must be of shape", "(20,)"]),
        ({"view_0": np.zeros((N, 4, 4))}, ["view_0 must be of shape", "(20, 4, 4)"]),
        ({"view_0": np.zeros((N, 0))}, ["view_0 must be of shape", "(20, 0)"]),
        ({"view_0": np.array([[object()]] * N)}, ["view_0 cannot be read", "Object arrays"]),
        ({"labels": np.array([{}] * N), "n_clusters": 3}, ["labels cannot be read"]),
        ({"labels": np.arange(N) / 2}, ["labels must be integers", "float64", "[0.0, 0.5, 1.0]"]),
        ({"labels": np.full(N, "cat")}, ["labels must be integers, got text", "'cat'"]),
        ({"labels": np.arange(N - 1)}, ["labels must be one per sample", "view_0: 20", "got 19"]),
        ({"labels": np.zeros((N, 2), int)}, ["labels must be one per sample", "(20, 2)"]),
        ({"labels": np.arange(N) - 3}, ["labels must be ≥ 0", "-3 at 0"]),
        ({"labels": np.zeros(N, int)}, ["labels must hold at least two classes, got 1"]),
        ({"labels": None}, ["n_clusters (one integer) must be given"]),
        ({"labels": None, "n_clusters": 1}, ["n_clusters must be one integer ≥ 2, got 1"]),
        ({"labels": None, "n_clusters": 2.5}, ["n_clusters must be one integer", "2.5"]),
        ({"labels": None, "n_clusters": [2, 3]}, ["n_clusters must be one integer", "[2, 3]"]),
        ({"n_clusters": 3}, ["n_clusters must be one integer ≥ 4, got 3"]),
    ],
)
def test_every_fault_is_named(tmp_path: Path, changes: dict[str, Any], fragments: list[str]) -> None:
    config = save(tmp_path / "own.npz", good(**changes))
    faults = check_dataset(config)
    assert len(faults) == 1, faults
    for fragment in (str(tmp_path / "own.npz"), *fragments):
        assert fragment in faults[0]
    with pytest.raises(DataError) as error:
        load_parts(config, "strict")
    assert str(error.value) == faults[0]


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    config = save(
        tmp_path / "own.npz",
        good(view_0=with_value(np.nan), view_1=np.full((N - 1, 2), 3.0), labels=np.arange(N) - 0.5),
    )
    faults = "; ".join(check_dataset(config))
    for fragment in ("view_0 must be finite", "view_1 must lie in", "common length", "labels must be integers"):
        assert fragment in faults


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    (fault,) = check_dataset(DatasetConfig(name="npz", path=str(tmp_path / "absent.npz")))
    assert f"{tmp_path / 'absent.npz'}: no such file" in fault
    for name, content in (("text.npz", b"view_0,view_1"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
        (fault,) = check_dataset(DatasetConfig(name="npz", path=str(tmp_path / name)))
        assert "it is empty" in fault if name == "empty.npz" else "its text is no table of numbers" in fault
    np.save(tmp_path / "single.npy", np.zeros((N, 3)))
    fault = check_dataset(DatasetConfig(name="npz", path=str(tmp_path / "single.npy")))[0]
    assert "at least two views are needed" in fault


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    config = save(tmp_path / "own.npz", good())
    content = bytearray((tmp_path / "own.npz").read_bytes())
    content[300] ^= 255
    (tmp_path / "own.npz").write_bytes(content)
    faults = check_dataset(config)
    assert "view_0 cannot be read" in faults[0]


def test_an_empty_archive(tmp_path: Path) -> None:
    (fault,) = check_dataset(save(tmp_path / "own.npz", {}))
    assert "holds no arrays" in fault


def test_too_few_samples(tmp_path: Path) -> None:
    arrays = {key: value[:9] for key, value in good().items()}
    (fault,) = check_dataset(save(tmp_path / "own.npz", arrays))
    assert "9 samples found, at least 10" in fault


# Strange files


def member(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_header(text: str, values: bytes = bytes(8 * 3 * N)) -> bytes:
    """A member in format 1.0 whose header is this text."""
    content = text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content + values


def plain_header(descr: str = "'<f8'", shape: str = f"({N}, 3)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> DatasetConfig:
    """An archive with two views and labels, then changed."""
    arrays = {name: member(array) for name, array in good().items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {**arrays, **members}.items():
            archive.writestr(f"{name}.npy", content)
    return DatasetConfig(name="npz", path=str(path))


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("(", "its header is damaged: TokenError"),
        ("{[]: 1}", "its header is damaged: TypeError: unhashable type: 'list'"),
        ("-" * 9000 + "1", "its header is damaged"),
        ("1+" * 4000 + "1", "its header is damaged"),
        ("{'descr': " + "(" * 150 + ")" * 150 + ", 'fortran_order': False, 'shape': (1,)}", "IndexError"),
        ("9" * 9000, "its header is damaged"),
        (plain_header(shape="(20, -3)"), "its header declares (20, -3) of float64, 480 bytes are there"),
        (plain_header(shape="(-20, -3)"), "its header declares (-20, -3) of float64"),
        (plain_header(shape=f"({10**18}, {10**18})"), "of float64, 480 bytes are there"),
        (plain_header(shape=f"({'9' * 4000}, 3)"), "of float64, 480 bytes are there"),
        (plain_header(shape="(0x" + "f" * 9000 + ", 3)"), "view_0 cannot be read"),
        (plain_header("'|S0'", f"({10**9}, {10**9})"), "of |S0, 480 bytes are there"),
        (plain_header("'<U2147483647'"), "its header is damaged"),
        (plain_header("[('a', '<f8'), ('b', '|O')]"), "Object arrays would need pickle"),
        (plain_header("[('a', '<f4'), ('b', '<f4')]"), "view_0 must hold real numbers"),
        (plain_header("'<M8[ns]'"), "view_0 must hold real numbers, got dtype datetime64[ns]"),
    ],
)
def test_headers_that_are_damaged_or_declare_other_arrays(tmp_path: Path, header: str, why: str) -> None:
    fault = refusal(pack(tmp_path / "own.npz", {"view_0": with_header(header)}))
    assert fault.startswith(f"{tmp_path / 'own.npz'}: view_0 ")
    assert why in fault
    assert "0x" not in fault  # an address says nothing to anyone


def test_what_python_2_wrote_is_read_without_a_warning(tmp_path: Path) -> None:
    config = pack(tmp_path / "own.npz", {"view_0": with_header(plain_header(shape="(20L, 3L)"))})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_dataset(config) == []


@pytest.mark.parametrize("name", ["view_٢", "view_03", "view_²", "view_" + "9" * 5000, "view_999999999999"])
def test_numbers_of_views_that_are_not_the_next_ones(tmp_path: Path, name: str) -> None:
    fault = refusal(pack(tmp_path / "own.npz", {name: member(np.zeros((N, 2)))}))
    assert "numbered view_0, view_1, … without a gap" in fault
    assert name[:40] in fault


def renamed(tmp_path: Path, *names: str, **others: Any) -> DatasetConfig:
    """A file whose views have these names; row i of the v-th of them is all (i + v) / 100."""
    views = {name: np.arange(N)[:, None].repeat(2, 1) / 100 + v / 100 for v, name in enumerate(names)}
    return save(tmp_path / "own.npz", {**dict(reversed(views.items())), "labels": np.arange(N) % 4, **others})


@pytest.mark.parametrize(
    "names",
    [
        ("view_00", "view_01"),
        ("view_1", "view_2"),
        ("view_0", "view_01", "view_2"),
        ("X0", "X1"),
        ("arr_0", "arr_1"),
        ("0", "1"),
        ("my view 1", "my view 2"),
        tuple(f"v{number}" for number in range(12)),
    ],
)
def test_views_may_have_any_numbering_that_has_one_reading(tmp_path: Path, names: tuple[str, ...]) -> None:
    config = renamed(tmp_path, *names, ids_1=np.arange(N))
    assert check_dataset(config) == []
    views = load_parts(config, "official")["train"].data.views
    first = views[0][0, 0].item()
    assert [round(view[0, 0].item() - first, 4) for view in views] == [v / 100 for v in range(len(names))]


def test_other_numbered_arrays_beside_views_of_the_usual_name_are_left_alone(tmp_path: Path) -> None:
    config = renamed(tmp_path, "view_0", "view_1", mask_0=np.zeros(3), mask_1=np.zeros(3))
    assert len(load_parts(config, "official")["train"].data.views) == 2


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("view_1", "view_01"), "view_01 and view_1 have one number"),
        (("X0", "X1", "X00"), "X0 and X00 have one number"),
        (("view_0", "view_1", "View_2"), "one name before their number"),
        (("view_0", "view_1", "view2"), "one name before their number"),
        (("view_0", "view_2"), "without a gap from 0 or 1"),
        (("X1", "X2", "X4"), "without a gap from 0 or 1"),
        (("view_2", "view_3"), "without a gap from 0 or 1"),
        (("X0", "X1", "Y0", "Y1"), "X0, Y0 all begin a numbered list"),
        (("view_0", "X0", "X1"), "at least two views are needed"),
        (("first", "second"), "at least two views are needed"),
    ],
)
def test_views_whose_numbering_has_two_readings_or_a_gap(tmp_path: Path, names: tuple[str, ...], why: str) -> None:
    fault = refusal(renamed(tmp_path, *names))
    assert why in fault
    assert all(name in fault for name in names)


def test_names_that_would_write_to_a_terminal_are_escaped(tmp_path: Path) -> None:
    fault = refusal(pack(tmp_path / "own.npz", {"\x1b[31m\n\u202e": b"junk"}))
    assert fault.isprintable()
    assert r"\x1b[31m" in fault


def test_a_small_file_that_unpacks_to_400_megabytes_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("view_0.npy", "w", force_zip64=True) as out:
            out.write(with_header(plain_header(shape="(1000, 50000)"), b""))
            for _ in range(400):
                out.write(bytes(10**6))
        archive.writestr("view_1.npy", member(np.zeros((1000, 2))))
    assert path.stat().st_size < 4 << 20
    tracemalloc.start()
    fault = refusal(DatasetConfig(name="npz", path=str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "it unpacks to 381.5 MiB (view_0: 381.5 MiB)" in fault
    assert fault.endswith("MiB are unpacked; write it with numpy.savez, uncompressed")
    assert peak < 8 << 20


def test_a_large_file_that_is_not_compressed_has_no_such_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ardmvc_core.data.reading.UNPACKED", 100)
    assert check_dataset(save(tmp_path / "own.npz", good())) == []
    np.savez_compressed(tmp_path / "zeros.npz", **good(view_0=np.zeros((N, 30000))))
    assert "are unpacked" in refusal(DatasetConfig(name="npz", path=str(tmp_path / "zeros.npz")))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_unpacks_without_a_bound(tmp_path: Path, compression: int) -> None:
    fault = refusal(pack(tmp_path / "own.npz", {}, compression))
    assert (
        f"view_0 cannot be read: compression {compression} is unknown, known are 0 (stored) and 8 (deflated)" in fault
    )


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        (8, b"\x01\x00", "is encrypted"),
        (10, b"\x61\x00", "compression 97 is unknown"),
        (16, b"\0\0\0\0", "Bad CRC-32"),
        (20, b"\xff\xff\xff\x7f", "its members are larger than the file, or overlap"),
        (24, b"\xff\xff\xff\xff", "it unpacks to 4,096.0 MiB"),
        (24, b"\x40\x00\x00\x00", "view_0 cannot be read"),
        (42, b"\xff\xff\xff\x7f", "view_0 cannot be read: BadZipFile"),
    ],
)
def test_a_directory_that_lies(tmp_path: Path, field: int, value: bytes, why: str) -> None:
    """Args: field: place in the first entry of the archive's directory."""
    config = pack(tmp_path / "own.npz", {})
    content = bytearray((tmp_path / "own.npz").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + field : entry + field + len(value)] = value
    (tmp_path / "own.npz").write_bytes(content)
    assert why in refusal(config)


def test_members_that_stand_twice_or_are_too_many(tmp_path: Path) -> None:
    config = pack(tmp_path / "own.npz", {})
    with zipfile.ZipFile(tmp_path / "own.npz", "a") as archive:
        archive.writestr("view_0", member(np.ones((N, 3))))
    assert "it holds two arrays called view_0" in refusal(config)
    many = pack(tmp_path / "many.npz", {f"more_{number}": b"" for number in range(1000)})
    assert "it holds 1003 arrays, at most 1000 are read" in refusal(many)


def test_many_faults_are_counted(tmp_path: Path) -> None:
    fault = refusal(pack(tmp_path / "own.npz", {f"{number:03}{'n' * 5000}": b"junk" for number in range(300)}))
    assert "000nnn" in fault
    assert fault.endswith("more faults like these")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"labels": None, "n_clusters": 10**18}, f"n_clusters must be ≤ {N}, the number of samples, got {10**18}"),
        ({"labels": None, "n_clusters": np.arange(10**6)}, "got [0, 1, 2] and 999997 more of dtype int64"),
        ({"labels": None, "n_clusters": np.array("9" * 10**5)}, "n_clusters must be one integer ≥ 2, got 999"),
        ({"labels": np.array(["x" * 10**5] * N)}, "labels must be integers, got text (first values ['xxx"),
        ({"labels": np.arange(N).astype("M8[s]")}, "labels must be integers, got dtype datetime64[s]"),
        ({"labels": np.zeros(N, [("a" * 3000, "f4")])}, "labels must be integers"),
        ({"view_0": np.zeros((1,) * 60)}, "view_0 must be of shape (N, D) or (N, C, H, W)"),
    ],
)
def test_values_that_would_make_long_messages(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    assert why in refusal(save(tmp_path / "own.npz", good(**changes)))


def test_what_is_no_plain_file(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    for path, why in (
        (tmp_path / "folder.npz", "holds no arrays"),
        (tmp_path / "pipe.npz", "is a pipe or a device, not a file"),  # opened, it would wait for ever
        ("/dev/zero", "is a pipe or a device, not a file"),
        (tmp_path / ("n" * 300), "no such file"),
        (f"{tmp_path}/\0", "no such file"),
        ("~nobody.of.this.name/own.npz", "has no home folder here"),
    ):
        assert why in refusal(DatasetConfig(name="npz", path=str(path)))


@pytest.mark.parametrize("end", [1, 100, -5])
def test_a_file_that_was_cut(tmp_path: Path, end: int) -> None:
    config = pack(tmp_path / "own.npz", {})
    (tmp_path / "own.npz").write_bytes((tmp_path / "own.npz").read_bytes()[:end])
    assert "or its end is missing" in refusal(config)
