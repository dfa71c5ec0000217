from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
    ("changes", "fragments"),
    [
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
        ({"labels": np.full(N, "cat")}, ["labels must be integers", "'cat'"]),
        ({"labels": np.arange(N - 1)}, ["labels must be one per sample", "view_0: 20", "(19,)"]),
        ({"labels": np.zeros((N, 1), int)}, ["labels must be one per sample", "(20, 1)"]),
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
        assert "is no .npz file" in fault
    np.save(tmp_path / "single.npy", np.zeros(3))
    (fault,) = check_dataset(DatasetConfig(name="npz", path=str(tmp_path / "single.npy")))
    assert "is no .npz file" in fault


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
