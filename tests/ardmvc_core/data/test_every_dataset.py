"""One contract that every entry of DATASETS keeps, on files made small."""

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from ardmvc_core.data import (
    DATASETS,
    DataError,
    DatasetConfig,
    DatasetName,
    MultiViewDataset,
    Part,
    check_dataset,
    load_parts,
)

PARTS = {"official": ("train", "attack"), "strict": ("train", "tune", "attacker", "score")}
ROWS = 48


def idx_config(name: str, folder: Path) -> DatasetConfig:
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = rng.integers(0, 256, (ROWS // 2, 8, 8), dtype=np.uint8)
        labels = (np.arange(ROWS // 2) % 3).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return DatasetConfig(name=name, root=str(folder))


def regdb_config(name: str, folder: Path) -> DatasetConfig:
    rng = np.random.default_rng(0)
    for kind in ("Visible", "Thermal"):
        lines = []
        for row in range(ROWS):
            picture = f"{kind}/{row // 8}/{row}.bmp"
            (folder / picture).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)).save(folder / picture)
            lines.append(f"{picture} {row // 8}\n")
        (folder / "idx").mkdir(exist_ok=True)
        (folder / "idx" / f"train_{kind.lower()}_1.txt").write_text("".join(lines))
    return DatasetConfig(name=name, root=str(folder))


def npz_config(name: str, folder: Path) -> DatasetConfig:
    rng = np.random.default_rng(0)
    views = {"view_0": rng.random((ROWS, 3)), "view_1": rng.random((ROWS, 1, 4, 4)), "view_2": rng.random((ROWS, 5))}
    np.savez(folder / "own.npz", labels=np.arange(ROWS) % 3, **views)
    return DatasetConfig(name=name, path=str(folder / "own.npz"))


def embedded_config(name: str, folder: Path) -> DatasetConfig:
    return DatasetConfig(name=name)


CONFIGS: dict[str, Callable[[str, Path], DatasetConfig]] = {
    "noisy_digits": embedded_config,
    "noisy_mnist": idx_config,
    "noisy_fashion": idx_config,
    "patched_mnist": idx_config,
    "regdb": regdb_config,
    "file": npz_config,
    "npz": npz_config,
}


@pytest.fixture(params=sorted(DATASETS))
def config(request: pytest.FixtureRequest, tmp_path: Path) -> DatasetConfig:
    return CONFIGS[request.param](request.param, tmp_path)


def same(first: MultiViewDataset, second: MultiViewDataset) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first.views, second.views, strict=True))


def test_names_agree() -> None:
    assert set(DATASETS) == set(get_args(DatasetName)) == set(CONFIGS)


@pytest.mark.parametrize("protocol", sorted(PARTS))
def test_parts_are_well_formed(config: DatasetConfig, protocol: str) -> None:
    assert check_dataset(config) == []
    parts = load_parts(config, protocol)
    assert tuple(parts) == PARTS[protocol]
    shapes = {part.data.view_shapes for part in parts.values()}
    assert len(shapes) == 1
    assert len(next(iter(shapes))) >= 2
    for part in parts.values():
        assert_well_formed(part, config.name)
    rows = torch.cat([part.indices for part in parts.values()])
    assert sorted(rows.tolist()) == list(range(len(rows)))


def assert_well_formed(part: Part, name: str) -> None:
    data = part.data
    assert data.name == name
    assert len(data) == len(part.indices) > 0
    assert part.indices.dtype == torch.int64
    for view in data.views:
        assert view.dtype == torch.float32
        assert view.is_contiguous()
        assert bool(((view >= 0) & (view <= 1)).all())
    assert data.labels is not None
    assert data.labels.dtype == torch.int64
    assert 0 <= int(data.labels.min()) <= int(data.labels.max()) < data.n_clusters


@pytest.mark.parametrize("protocol", sorted(PARTS))
def test_same_config_same_data_and_another_seed_another_order(config: DatasetConfig, protocol: str) -> None:
    first, second = load_parts(config, protocol), load_parts(config, protocol)
    for part in first:
        assert first[part].digest == second[part].digest
        assert same(first[part].data, second[part].data)
    other = load_parts(dataclasses.replace(config, seed=8), protocol)
    assert {part.digest for part in first.values()}.isdisjoint({part.digest for part in other.values()})


@pytest.mark.parametrize("protocol", sorted(PARTS))
def test_samples_are_the_first_of_the_shuffle(config: DatasetConfig, protocol: str) -> None:
    whole = torch.cat([part.indices for part in load_parts(config, protocol).values()])
    parts = load_parts(dataclasses.replace(config, samples=20), protocol)
    assert torch.equal(torch.cat([part.indices for part in parts.values()]), whole[:20])
    for part in parts.values():
        assert_well_formed(part, config.name)


@pytest.mark.parametrize("name", ["npz", "regdb"])
def test_both_protocols_give_a_row_the_same_views_where_the_data_are_given(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name](name, tmp_path)
    first, second = load_parts(config, "official")["train"], load_parts(config, "strict")["train"]
    assert first.digest == second.digest
    assert same(first.data, second.data)


def test_more_samples_than_there_are_is_a_fault(config: DatasetConfig) -> None:
    greedy = dataclasses.replace(config, samples=100_000)
    (fault,) = check_dataset(greedy)
    assert f"{config.name}: samples must be ≤" in fault
    with pytest.raises(DataError, match="samples must be ≤"):
        load_parts(greedy, "official")


def test_missing_data_is_a_fault_that_names_the_place(config: DatasetConfig, tmp_path: Path) -> None:
    place = tmp_path / "not there"
    if config.path:
        lost = dataclasses.replace(config, path=str(place))
    elif config.root:
        lost = dataclasses.replace(config, root=str(place))
    else:
        pytest.skip("comes with scikit-learn")
    (fault,) = check_dataset(lost)
    assert str(place) in fault
    with pytest.raises(DataError, match="not there"):
        load_parts(lost, "strict")


def test_another_protocol_is_refused(config: DatasetConfig) -> None:
    with pytest.raises(ValueError, match="protocol must be official or strict, got 'loose'"):
        load_parts(config, "loose")
