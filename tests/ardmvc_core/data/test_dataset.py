import hashlib

import numpy as np
import pytest
import torch

from ardmvc_core.data import DatasetConfig
from ardmvc_core.data.dataset import (
    DataError,
    MultiViewDataset,
    cut_parts,
    make_part,
    part_rows,
    shuffled_rows,
)


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        ({"name": "mnits"}, ["name must be one of", "noisy_mnist", "'mnits'"]),
        ({"name": "npz"}, ["path must be", "None"]),
        ({"name": "noisy_mnist", "path": "x.npz"}, ["path must be left out for noisy_mnist", "'x.npz'", "npz"]),
        ({"name": "npz", "path": "x", "classes": (0, 1)}, ["classes must be left out for npz", "noisy_digits"]),
        ({"name": "npz", "path": "x", "root": "y"}, ["root must be left out for npz"]),
        ({"name": "noisy_digits", "root": "y"}, ["root must be left out for noisy_digits"]),
        ({"name": "patched_mnist", "noise": 0.1}, ["noise must be left out for patched_mnist", "0.1"]),
        ({"name": "noisy_digits", "classes": (3,)}, ["classes must be at least two", "(3,)"]),
        ({"name": "noisy_digits", "classes": (3, 3)}, ["classes must be", "(3, 3)"]),
        ({"name": "noisy_digits", "classes": (3, 10)}, ["classes must be in [0, 9]", "got 10"]),
        ({"name": "noisy_digits", "samples": 9}, ["samples must be in [10, 1000000000]", "got 9"]),
        ({"name": "noisy_digits", "noise": float("nan")}, ["noise must be in [0, 1000]", "nan"]),
        ({"name": "noisy_digits", "noise": -0.1}, ["noise must be", "-0.1"]),
        ({"name": "noisy_digits", "noise": float("inf")}, ["noise must be", "inf"]),
        ({"name": "noisy_digits", "seed": -1}, ["seed must be", "-1"]),
        ({"name": "noisy_digits", "shuffle_seed": 2**32}, ["shuffle_seed must be", "4294967296"]),
        ({"name": "noisy_mnist", "path": "x", "samples": 0}, ["path must be left out", "samples must be in [10, "]),
    ],
)
def test_config_refuses(fields: dict, fragments: list[str]) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        DatasetConfig(**fields)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("name", "count", "samples", "protocol", "sizes"),
    [
        ("noisy_mnist", 70_000, None, "official", {"train": 35_000, "attack": 35_000}),
        ("noisy_mnist", 70_000, None, "strict", {"train": 35_000, "tune": 7_000, "attacker": 14_000, "score": 14_000}),
        ("noisy_digits", 901, None, "official", {"train": 450, "attack": 451}),
        ("noisy_digits", 901, None, "strict", {"train": 450, "tune": 180, "attacker": 135, "score": 136}),
        ("noisy_mnist", 70_000, 2_000, "strict", {"train": 1_000, "tune": 200, "attacker": 400, "score": 400}),
        ("noisy_mnist", 10, 10, "strict", {"train": 5, "tune": 1, "attacker": 2, "score": 2}),
        ("noisy_digits", 11, 11, "strict", {"train": 5, "tune": 2, "attacker": 2, "score": 2}),
    ],
)
def test_parts_are_stretches_of_one_shuffle(
    name: str, count: int, samples: int | None, protocol: str, sizes: dict[str, int]
) -> None:
    config = DatasetConfig(name=name, samples=samples)
    parts = part_rows(config, protocol, count)
    assert {part: len(rows) for part, rows in parts.items()} == sizes
    published = np.random.RandomState(7).choice(count, size=count, replace=False)
    np.testing.assert_array_equal(np.concatenate(list(parts.values())), published[: samples or count])


def test_the_shuffle_may_have_a_seed_of_its_own() -> None:
    rows = shuffled_rows(DatasetConfig(name="noisy_digits", seed=3, shuffle_seed=7), 50)
    np.testing.assert_array_equal(rows, shuffled_rows(DatasetConfig(name="noisy_digits"), 50))
    assert not np.array_equal(rows, shuffled_rows(DatasetConfig(name="noisy_digits", seed=3), 50))


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"samples must be ≤ 20, .* got 30"):
        part_rows(DatasetConfig(name="noisy_digits", samples=30), "strict", 20)
    with pytest.raises(DataError, match=r"9 samples found, at least 10"):
        part_rows(DatasetConfig(name="noisy_digits"), "official", 9)
    with pytest.raises(ValueError, match="protocol must be official or strict, got 'loose'"):
        part_rows(DatasetConfig(name="noisy_digits"), "loose", 20)


def test_digest_is_that_of_the_content() -> None:
    view = np.array([[0.5], [1.0]], np.float32)
    part = make_part("x", [view], np.array([1, 0]), 2, np.array([258, 1]))
    # 0.5 and 1.0 are 3f000000 and 3f800000, the last byte first.
    floats, labels = bytes([0, 0, 0, 0x3F, 0, 0, 0x80, 0x3F]), bytes([1, *[0] * 15])
    assert part.digest == hashlib.sha256(b"2|float32(2, 1)|" + floats + b"|int64(2,)|" + labels).hexdigest()
    elsewhere = make_part("y", [view], np.array([1, 0]), 2, np.array([7, 8]))
    assert elsewhere.digest == part.digest
    for other in (
        make_part("x", [view], None, 2, np.array([258, 1])),
        make_part("x", [view], np.array([1, 0]), 3, np.array([258, 1])),
        make_part("x", [view[::-1].copy()], np.array([1, 0]), 2, np.array([258, 1])),
    ):
        assert other.digest != part.digest
    assert part.indices.tolist() == [258, 1]


def test_cut_parts_keeps_rows_together() -> None:
    views = [np.arange(20, dtype=np.float32)[:, None], np.arange(20, dtype=np.float32)[:, None] * 2]
    parts = cut_parts(DatasetConfig(name="npz", path="x"), "strict", views, np.arange(20) % 4, 4)
    for part in parts.values():
        assert torch.equal(part.data.views[0][:, 0].long(), part.indices)
        assert torch.equal(part.data.views[1], part.data.views[0] * 2)
        assert part.data.labels is not None
        assert torch.equal(part.data.labels, part.indices % 4)


def test_dataset_subset_and_shapes() -> None:
    data = MultiViewDataset("x", (torch.rand(4, 1, 8, 8), torch.rand(4, 6)), torch.tensor([0, 1, 2, 0]), 3)
    assert len(data) == 4
    assert data.view_shapes == ((1, 8, 8), (6,))
    part = data.to("cpu").subset([2, 0])
    assert len(part) == 2
    assert part.labels is not None
    assert part.labels.tolist() == [2, 0]
    assert torch.equal(part.views[1], data.views[1][[2, 0]])
    assert part.n_clusters == 3


def test_dataset_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match=r"common length, got \[3, 4\]"):
        MultiViewDataset("x", (torch.rand(4, 2), torch.rand(3, 2)), None, 2)
    with pytest.raises(ValueError, match=r"common length, got \[4, 5\]"):
        MultiViewDataset("x", (torch.rand(4, 2),), torch.zeros(5, dtype=torch.int64), 2)
