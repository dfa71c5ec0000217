"""Users' files: the field's own by a table worked out by hand, others made here by the libraries that people use."""

import io
import os
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scipy.io
import scipy.sparse
from fuzzing import damaged, fuzzed, refusing
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from ardmvc_core.data import DataError, DatasetConfig, check_dataset, load_parts
from ardmvc_core.data.inspection import inspect_file
from ardmvc_core.data.scaling import scaled
from ardmvc_core.data.user_file import read_and_fit

FIELD = {
    "handwritten": (2000, (216, 76, 64, 6, 240, 47), 10, "y", "rows"),
    "msrcv1_columns": (210, (24, 576, 512, 256, 254), 7, "label", "columns"),
    "scene15": (4485, (20, 59, 40), 15, "gt", "columns"),
    "bbcsport": (544, (3183, 3203), 5, "y", "rows"),
    "100leaves": (1600, (64, 64, 64), 100, "y", "rows"),
    "3sources": (169, (3560, 3631, 3068), 6, "y", "rows"),
    "proteinfold": (694, (27,) * 12, 27, "y", "rows"),
    "wikipedia": (2866, (128, 10), 10, "y", "rows"),
    "webkb": (1051, (1840, 3000), 2, "y", "rows"),
    "prokaryotic": (551, (393, 3, 438), 4, "y", "rows"),
    "mnist4": (4000, (30, 9, 30), 4, "y", "rows"),
    "movies": (617, (1878, 1398), 17, "y", "rows"),
    "citeseer": (3312, (3312, 3703), 6, "y", "rows"),
}
"""File → N, D of each view, K, name of the labels, side of the samples: read off `scipy.io.loadmat` by hand."""

N = 24
RNG = np.random.default_rng(5)
VIEWS = [RNG.normal(0, 9, (N, 5)), RNG.integers(0, 200, (N, 7)).astype(np.uint8)]
LABELS = np.arange(N) % 3 + 1


def cell(*members: Any) -> np.ndarray:
    """A MATLAB cell."""
    found = np.empty((1, len(members)), dtype=object)
    for place, member in enumerate(members):
        found[0, place] = member
    return found


def mat(path: Path, variables: dict[str, Any], **how: Any) -> DatasetConfig:
    scipy.io.savemat(path, variables, **how)
    return DatasetConfig(name="file", path=str(path))


def good(path: Path, **changes: Any) -> DatasetConfig:
    """A .mat file without faults, then changed; None takes a variable away."""
    variables = {"X": cell(*VIEWS), "Y": LABELS[:, None], **changes}
    return mat(path, {name: value for name, value in variables.items() if value is not None})


def digests(config: DatasetConfig) -> dict[str, str]:
    return {name: part.digest for name, part in load_parts(config, "strict").items()}


@pytest.mark.parametrize("name", FIELD)
def test_a_file_of_the_field_is_read_and_inspected(name: str, data_root: Path) -> None:
    file = data_root / "mat" / f"{name}.mat"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    count, widths, n_clusters, label_name, orientation = FIELD[name]
    config = DatasetConfig(name="file", path=str(file))
    assert check_dataset(config) == []
    found = inspect_file(config, 0.05)
    assert (found.samples, found.n_clusters, found.label_name) == (count, n_clusters, label_name)
    assert tuple(view.shape for view in found.views) == tuple((count, width) for width in widths)
    assert found.orientation == orientation
    assert sum(found.class_sizes.values()) == count
    assert len(found.class_sizes) == n_clusters
    raw = scipy.io.loadmat(file)
    cells = raw["data" if name == "msrcv1_columns" else "X"].ravel()
    truth = raw[label_name].ravel()
    data, scaling = read_and_fit(config)
    for view, stored in zip(data.views.values(), cells, strict=True):
        np.testing.assert_array_equal(view, stored if orientation == "rows" else stored.T)
    parts = load_parts(config, "strict")
    for part in parts.values():
        rows = part.indices.numpy()
        np.testing.assert_array_equal(part.data.labels, truth[rows] - 1)
        assert part.data.n_clusters == n_clusters
        assert part.data.scaling is not None
        for seen, fit, view in zip(part.data.views, scaling, data.views.values(), strict=True):
            np.testing.assert_array_equal(seen, fit.apply(view[rows]))
            assert float(seen.min()) >= 0
            assert float(seen.max()) <= 1
    train = parts["train"].data
    assert all(float(view.min(0).values.max()) == 0 for view in train.views)
    assert all(float(view.max(0).values.min()) == 1 for view in train.views)


def test_new_samples_are_scaled_as_the_data_set_was(tmp_path: Path) -> None:
    config = good(tmp_path / "own.mat")
    part = load_parts(config, "strict")["score"]
    again = scaled(part.data.scaling, [view[part.indices.numpy()] for view in VIEWS])
    for seen, view in zip(part.data.views, again, strict=True):
        np.testing.assert_array_equal(seen, view)


def tables(folder: Path) -> None:
    folder.mkdir()
    pandas.DataFrame(VIEWS[0]).to_csv(folder / "shape.csv")  # with its column of row numbers
    pandas.DataFrame(VIEWS[1], columns=[f"f{j}" for j in range(7)]).to_parquet(folder / "texture.parquet")
    np.savetxt(folder / "labels.txt", LABELS, fmt="%d")
    (folder / "README.md").write_text("What this is.\nMeasured in 2026.\n")
    (folder / ".hidden.csv").write_text("1,2\n")


def numbered(folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "view_1.npy", VIEWS[0])
    scipy.sparse.save_npz(folder / "view_2.npz", scipy.sparse.csr_array(VIEWS[1]))
    np.savetxt(folder / "y.csv", LABELS, delimiter=",", header="class", comments="")


WRITERS: dict[str, Any] = {
    "columns": lambda path: mat(path, {"data": cell(*(view.T for view in VIEWS)), "gt": LABELS[None, :] * 10 + 5}),
    "compressed": lambda path: mat(path, {"fea": cell(*VIEWS), "gnd": LABELS}, do_compression=True),
    "numbered": lambda path: mat(path, {"X1": VIEWS[0], "X2": VIEWS[1], "labels": LABELS.astype(float)}),
    "sparse": lambda path: mat(
        path, {"X": cell(scipy.sparse.csc_array(VIEWS[0]), scipy.sparse.csc_array(VIEWS[1].astype(float))), "y": LABELS}
    ),
    "labels of every view": lambda path: mat(path, {"X": cell(*VIEWS), "truelabel": cell(LABELS, LABELS)}),
    "npz": lambda path: np.savez(path, view_0=VIEWS[0], view_1=VIEWS[1], y=LABELS),
    "folder of tables": tables,
    "folder, numbered": numbered,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("ending", ["", ".dat"])
def test_the_same_data_in_any_dress_are_the_same_data(name: str, ending: str, tmp_path: Path) -> None:
    """Told by what a file holds, and not by how it is called."""
    WRITERS[name](tmp_path / "own")
    (written,) = tmp_path.iterdir()
    place = written.rename(tmp_path / f"renamed{ending}")
    config = DatasetConfig(name="file", path=str(place))
    assert check_dataset(config) == []
    assert digests(config) == digests(good(tmp_path / "good.mat"))


def hdf5(path: Path) -> Any:
    h5py = pytest.importorskip("h5py")
    return h5py.File(path, "w", userblock_size=512)


def marked(item: Any, kind: str, **others: Any) -> Any:
    item.attrs["MATLAB_class"] = np.bytes_(kind)
    for name, value in others.items():
        item.attrs[name] = value
    return item


def test_matlab_7_3(tmp_path: Path) -> None:
    """As MATLAB writes it: values turned, cells as references, sparse matrices as a group of their parts."""
    path = tmp_path / "own.mat"
    with hdf5(path) as file:
        h5py = pytest.importorskip("h5py")
        refs = file.create_group("#refs#")
        first = marked(refs.create_dataset("a", data=VIEWS[0].T, compression="gzip"), "double")
        columns = scipy.sparse.csc_array(VIEWS[1])
        second = marked(refs.create_group("b"), "double", MATLAB_sparse=np.uint64(N))
        for name, part in (("data", columns.data.astype(float)), ("ir", columns.indices), ("jc", columns.indptr)):
            second[name] = part
        cells = file.create_dataset("X", (2, 1), dtype=h5py.ref_dtype)
        cells[0, 0], cells[1, 0] = first.ref, second.ref
        marked(cells, "cell")
        marked(file.create_dataset("y", data=LABELS[None, :].astype(float)), "double")
        marked(file.create_dataset("name", data=np.array([[111], [119], [110]], dtype=np.uint16)), "char")
        marked(file.create_group("info"), "struct")["when"] = 3.0
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    assert digests(DatasetConfig(name="file", path=str(path))) == digests(good(tmp_path / "good.mat"))


def test_an_hdf5_file_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with hdf5(tmp_path / "other.h5") as file:
        file["secret"] = VIEWS[0]
    with hdf5(tmp_path / "own.h5") as file:
        file["X1"] = h5py.ExternalLink("other.h5", "secret")
        file["X2"], file["y"] = VIEWS[1], LABELS
    assert "X1 cannot be read: it is a link" in refusal(DatasetConfig(name="file", path=str(tmp_path / "own.h5")))


def test_an_hdf5_file_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    with hdf5(tmp_path / "own.h5") as file:
        file.create_dataset("X1", (50_000, 50_000), chunks=(100, 100), compression="gzip")  # never written
        file["X2"], file["y"] = VIEWS[1], LABELS
    fault = refusal(DatasetConfig(name="file", path=str(tmp_path / "own.h5")))
    assert "X1 cannot be read: more than 128.0 MiB" in fault


def test_matlab_7_3_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    fault = refusal(DatasetConfig(name="file", path=str(path)))
    assert "it is of MATLAB 7.3 (HDF5), which h5py reads, and h5py is not installed: pip install h5py" in fault


SQUARE = RNG.random((N, N))


def test_a_side_that_cannot_be_told_is_refused_with_both_readings(tmp_path: Path) -> None:
    config = good(tmp_path / "own.mat", X=cell(SQUARE, SQUARE + 1))
    assert refusal(config) == (
        f"{tmp_path / 'own.mat'}: samples may be rows (24 samples with 24, 24 features); or columns (24 samples with "
        "24, 24 features): say which with dataset.orientation: rows or columns"
    )
    for side in ("rows", "columns"):
        told = DatasetConfig(name="file", path=config.path, orientation=side)
        seen = next(iter(read_and_fit(told)[0].views.values()))
        np.testing.assert_array_equal(seen, SQUARE if side == "rows" else SQUARE.T)


def test_one_view_that_is_not_square_tells_the_side_of_all(tmp_path: Path) -> None:
    config = good(tmp_path / "own.mat", X=cell(SQUARE.T, VIEWS[1].T))
    views = read_and_fit(config)[0].views
    np.testing.assert_array_equal(views["X{1}"], SQUARE)


def test_without_labels_the_common_side_tells(tmp_path: Path) -> None:
    config = good(tmp_path / "own.mat", Y=None)
    assert "n_clusters (one integer) must be given where there are no labels" in refusal(config)
    told = DatasetConfig(name="file", path=config.path, n_clusters=3)
    data = load_parts(told, "strict")["train"].data
    assert data.labels is None
    assert (data.n_clusters, data.view_shapes) == (3, ((5,), (7,)))
    same = good(tmp_path / "same.mat", X=cell(VIEWS[0], VIEWS[0] + 1), Y=None)
    fault = refusal(DatasetConfig(name="file", path=same.path, n_clusters=3))
    assert "rows (24 samples with 5, 5 features); or columns (5 samples with 24, 24 features)" in fault


def test_names_may_be_given(tmp_path: Path) -> None:
    config = mat(
        tmp_path / "own.mat",
        {
            "A": cell(*VIEWS),
            "B": cell(*VIEWS[::-1]),
            "shape": VIEWS[0],
            "texture": VIEWS[1],
            "y": LABELS,
            "gt": LABELS % 2,
        },
    )
    fault = refusal(config)
    assert "A, B may all be the views: say which with dataset.views: A" in fault
    assert "gt, y may all be the labels: say which with dataset.labels: gt" in fault
    wanted = digests(good(tmp_path / "good.mat"))
    for views in ("A", ("shape", "texture")):
        told = DatasetConfig(name="file", path=config.path, views=views, labels="y")
        assert digests(told) == wanted
    lost = DatasetConfig(name="file", path=config.path, views="C", labels="Z")
    assert "dataset.views: there is no C, got A, B" in refusal(lost)
    assert "dataset.labels: there is no Z, but A, B" in refusal(lost)


def test_each_view_may_have_its_own_scaling(tmp_path: Path) -> None:
    config = good(tmp_path / "own.mat")
    mixed = DatasetConfig(name="file", path=config.path, scale=("standard", "none"))
    assert [fit.kind for fit in load_parts(mixed, "strict")["tune"].data.scaling] == ["standard", "none"]
    short = DatasetConfig(name="file", path=config.path, scale=("standard",))
    assert "dataset.scale must be one, or one for each of 2 views, got 1" in refusal(short)
    signed = DatasetConfig(name="file", path=config.path, scale="tfidf")
    assert "X{1} tfidf needs counts ≥ 0" in refusal(signed)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"X": cell(VIEWS[0])}, ["at least two views are needed, X holds one, got X, Y"]),
        ({"X": VIEWS[0]}, ["at least two views are needed"]),
        ({"X": {"a": VIEWS[0], "b": VIEWS[1]}}, ["X is a struct", "save its fields as variables, in MATLAB a = X.a"]),
        ({"X": cell(VIEWS[0], {"a": 1})}, ["at least two views are needed"]),
        ({"X": cell(VIEWS[0], VIEWS[1][:-1]), "Y": None}, ["views must have one common length", "24", "23"]),
        ({"X": cell(VIEWS[0], VIEWS[1][:-1])}, ["views must have one common length", "X{1}: 24, X{2}: 23 in rows"]),
        ({"Y": LABELS[:-1]}, ["labels must be one per sample (X{1}: 24, X{2}: 24), got 23"]),
        ({"Y": np.array([f"class{i}" for i in LABELS])}, ["labels must be integers, got text", "class2"]),
        ({"Y": cell(*(f"class{i}" for i in LABELS))}, ["labels must be integers, got a cell"]),
        ({"Y": LABELS / 2}, ["labels must be integers, got dtype float64", "0.5"]),
        ({"Y": np.where(LABELS == 2, np.nan, 1.0)}, ["labels must be integers", "nan"]),
        ({"Y": np.eye(3)[LABELS - 1]}, ["labels must be one per sample, got shape (24, 3)"]),
        ({"Y": LABELS - 2}, ["labels must be ≥ 0, got -1"]),
        ({"X": cell(np.where(VIEWS[0] > 0, np.nan, 1), VIEWS[1])}, ["X{1} must be finite, got nan", "of 120 values)"]),
        ({"X": cell(VIEWS[0], np.full((N, 2), 4.0))}, ["X{2} does not vary in the training part"]),
        ({"X": cell(VIEWS[0] + 1j, VIEWS[1])}, ["at least two views are needed"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], fragments: list[str]) -> None:
    fault = refusal(good(tmp_path / "own.mat", **changes))
    assert str(tmp_path / "own.mat") in fault
    for fragment in fragments:
        assert fragment in fault


def test_nan_is_counted(tmp_path: Path) -> None:
    view = VIEWS[0].copy()
    view[[1, 4, 4], [0, 2, 3]] = np.nan
    assert "X{1} must be finite, got nan at [1, 0] (3 of 120 values)" in refusal(
        good(tmp_path / "own.mat", X=cell(view, VIEWS[1]))
    )
    sparse = scipy.sparse.csc_array(np.where(np.isnan(view), np.inf, view * (view > 5)))
    assert "X{1} must be finite, got inf at [1, 0] (3 of 120 values)" in refusal(
        good(tmp_path / "own.mat", X=cell(sparse, VIEWS[1]))
    )


def test_a_sparse_matrix_of_5_gb_is_refused_with_its_size_before_it_is_dense(tmp_path: Path) -> None:
    labels = np.arange(50_000) % 3
    wide = scipy.sparse.csc_array((np.ones(3), ([0, 4, 49_999], [1, 9, 24_999])), shape=(50_000, 25_000))
    config = good(tmp_path / "own.mat", X=cell(wide, wide), Y=labels)
    tracemalloc.start()
    fault = refusal(config)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "X{1} is sparse, of shape (50000, 25000) with 3 numbers stored" in fault
    assert "would have 9.3 GiB, at most 2 GiB are made" in fault
    assert peak < 64 << 20


def test_a_mat_file_that_unpacks_to_400_megabytes_is_not_unpacked(tmp_path: Path) -> None:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(10**6)) for _ in range(400)) + packer.flush()
    path = tmp_path / "own.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed)
    tracemalloc.start()
    fault = refusal(DatasetConfig(name="file", path=str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "it unpacks to more than 128.0 MiB, the most for a file of 0.4 MiB" in fault
    assert peak < 8 << 20


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("share", [0.99, 0.7, 0.1])
def test_a_mat_file_that_was_cut(tmp_path: Path, compressed: bool, share: float) -> None:
    path = tmp_path / "own.mat"
    mat(path, {"X": cell(*VIEWS), "y": LABELS}, do_compression=compressed)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "its end is missing" in refusal(DatasetConfig(name="file", path=str(path)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"Salted__" + bytes(range(128, 256)) * 9, "or it is encrypted"),
        (bytes(range(256)) * 9, "or it is encrypted"),
        (b"MATLAB 5.0 MAT-file".ljust(100), "or its end is missing"),
        (b"all is\nwords here\n", "its text is no table of numbers"),
        (b"1,2\n3,4\n5,x\n", "could not convert string 'x'"),
        (b"1,2\n3,\n", "could not convert string ''"),
        (b"PAR1" + bytes(40), "cannot be read"),
        (b"\x93NUMPY\x01\x00" + bytes(40), "cannot be read"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "cannot be read"),
    ],
)
def test_what_is_no_file_of_views(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "own.mat"
    path.write_bytes(content)
    assert why in refusal(DatasetConfig(name="file", path=str(path)))


def test_matlab_4(tmp_path: Path) -> None:
    config = mat(tmp_path / "own.mat", {"X1": VIEWS[0], "X2": VIEWS[1], "y": LABELS}, format="4")
    assert "it is of MATLAB 4, which has no cells, and is not read: save it with -v7 in MATLAB" in refusal(config)


def test_a_folder_says_what_it_cannot_use(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "notes.txt").write_text("words\nand more words\n")
    assert refusal(DatasetConfig(name="file", path=str(folder))) == f"{folder}: holds no arrays; notes.txt hold none"
    np.save(folder / "a.npy", VIEWS[0])
    np.save(folder / "b.npy", np.array([None] * N))
    (folder / "labels.csv").write_text("cat\ndog\n" * 12)
    os.mkfifo(folder / "pipe.csv")
    fault = refusal(DatasetConfig(name="file", path=str(folder)))
    assert "b cannot be read: Object arrays would need pickle" in fault
    assert "labels cannot be read: could not convert string 'cat'" in fault


def test_samples_that_are_equal_in_every_view_are_found(tmp_path: Path) -> None:
    first, second = (view.copy() for view in VIEWS)
    first[[7, 20]], second[[7, 20]] = first[3], second[3]
    first[11] = first[2]  # in one view only
    first[0], second[0] = 0.0, 9
    first[5], second[5] = -0.0, 9
    wanted = ((0, 5), (3, 7, 20))
    assert inspect_file(good(tmp_path / "own.mat", X=cell(first, second)), 0.05).duplicates == wanted
    sparse = cell(scipy.sparse.csc_array(first), scipy.sparse.csc_array(second.astype(float)))
    found = inspect_file(good(tmp_path / "sparse.mat", X=sparse), 0.05)
    assert found.duplicates == wanted
    assert found.views[1].sparse


def content(**how: Any) -> bytes:
    buffer = io.BytesIO()
    sparse = scipy.sparse.csc_array(VIEWS[1].astype(float))
    scipy.io.savemat(buffer, {"X": cell(VIEWS[0], sparse), "y": LABELS, "note": "text"}, **how)
    return buffer.getvalue()


@given(content=st.sampled_from([content(), content(do_compression=True)]).flatmap(damaged))
@fuzzed(150)
def test_damaged_mat_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "own.mat"
    file.write_bytes(content)
    config = DatasetConfig(name="file", path=str(file))
    with refusing(tmp_path, DataError), warnings.catch_warnings():
        warnings.simplefilter("error")
        if faults := check_dataset(config):
            raise DataError("; ".join(faults))
        for part in load_parts(config, "strict").values():
            assert all(bool(((view >= 0) & (view <= 1)).all()) for view in part.data.views)
