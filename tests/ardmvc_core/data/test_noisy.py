import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ardmvc_core.data import DataError, DatasetConfig, check_dataset, load_parts
from ardmvc_core.data.dataset import Part, part_rows
from ardmvc_core.data.idx import load_collection
from ardmvc_core.data.noisy import COLLECTIONS, noisy_images, noisy_parts, pair_sources, pixel_levels, scale_to_unit

PREFIXES = {"noisy_mnist": "noisymnist", "noisy_fashion": "noisyfashionmnist"}


def crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array))


def recipe_order(parts: dict[str, Part], view: int) -> np.ndarray:
    """A view of all parts together, back in the order of the collection."""
    rows = torch.cat([part.indices for part in parts.values()])
    values = torch.cat([part.data.views[view] for part in parts.values()])
    ordered = torch.empty_like(values)
    ordered[rows] = values
    return ordered.numpy()


class Published:
    """One data set, loaded once with the parameters of the golden file."""

    def __init__(self, name: str, golden: Callable, data_root: Path) -> None:
        archive = golden("datasets")
        prefix = PREFIXES[name] + "/"
        self.golden = {key[len(prefix) :]: archive[key] for key in archive.files if key.startswith(prefix)}
        self.config = DatasetConfig(
            name=name,
            root=str(data_root),
            seed=int(self.golden["recipe_seed"]),
            shuffle_seed=int(self.golden["load_seed"]),
        )
        self.parts = load_parts(self.config, "official")


@pytest.fixture(scope="module", params=sorted(PREFIXES))
def published(request: pytest.FixtureRequest, golden: Callable, data_root: Path) -> Published:
    return Published(request.param, golden, data_root)


def test_views_equal_the_published_ones_bit_for_bit(published: Published) -> None:
    want = published.golden
    for view in range(int(want["recipe_views"])):
        values = recipe_order(published.parts, view)
        assert len(values) == want["count"]
        assert crc(values) == want["crc32_float32"][view]
        np.testing.assert_array_equal(values[want["rows"]], want["images"][view])
        assert values.min() == want["min"][view]
        assert values.max() == want["max"][view]
        assert values.mean(dtype=np.float64) == pytest.approx(want["mean"][view], abs=1e-9)
        assert values.std(dtype=np.float64) == pytest.approx(want["std"][view], abs=1e-9)
        assert values.sum(dtype=np.float64) == pytest.approx(want["sum"][view], rel=1e-9)


def test_shuffle_halves_and_labels_equal_the_published_ones(published: Published) -> None:
    want, train, attack = published.golden, published.parts["train"], published.parts["attack"]
    assert len(train.data) == want["half_size"]
    order = torch.cat([train.indices, attack.indices]).numpy()
    assert crc(order) == want["load_indices_crc32"]
    np.testing.assert_array_equal(order[:32], want["load_indices_first32"])
    np.testing.assert_array_equal(attack.indices[:32], want["load_indices_second_half_first32"])
    assert train.data.labels is not None
    assert attack.data.labels is not None
    np.testing.assert_array_equal(train.data.labels[:64], want["load_labels_first64"])
    np.testing.assert_array_equal(attack.data.labels[:64], want["load_labels_second_half_first64"])
    np.testing.assert_array_equal(train.data.labels.bincount(), want["first_half_label_counts"])
    np.testing.assert_array_equal(attack.data.labels.bincount(), want["second_half_label_counts"])
    for view, images in enumerate(want["load_images_first4"]):
        np.testing.assert_array_equal(train.data.views[view][:4], images)


def test_pairs_and_extremes_equal_the_published_ones(published: Published, data_root: Path) -> None:
    want = published.golden
    images, labels = load_collection(COLLECTIONS[published.config.name], str(data_root))
    assert crc(labels) == want["labels_crc32"]
    np.testing.assert_array_equal(np.bincount(labels), want["label_counts"])
    rng = np.random.default_rng(int(want["recipe_seed"]))
    sources = pair_sources(labels, rng)
    assert crc(sources) == want["view2_source_crc32"]
    np.testing.assert_array_equal(sources[want["rows"]], want["view2_source_rows"])
    kept, *extremes = noisy_images(images, pixel_levels(255), sources, 0.2, rng, want["rows"])
    assert extremes == pytest.approx([want["raw_min"][1], want["raw_max"][1]], abs=1e-7)
    np.testing.assert_array_equal(scale_to_unit(kept, *extremes, "view 1"), want["images"][1])


@pytest.mark.parametrize("name", sorted(PREFIXES))
def test_fewer_samples_are_the_first_of_the_whole(name: str, golden: Callable, data_root: Path) -> None:
    archive = golden("datasets")
    seeds = {
        "seed": int(archive[f"{PREFIXES[name]}/recipe_seed"]),
        "shuffle_seed": int(archive[f"{PREFIXES[name]}/load_seed"]),
    }
    config = DatasetConfig(name=name, root=str(data_root), samples=40, **seeds)
    parts = load_parts(config, "official")
    assert [len(part.data) for part in parts.values()] == [20, 20]
    for view, images in enumerate(archive[f"{PREFIXES[name]}/load_images_first4"]):
        np.testing.assert_array_equal(parts["train"].data.views[view][:4], images)


def test_pixel_levels_by_hand() -> None:
    assert pixel_levels(16)[[0, 4, 8, 16]].tolist() == [-1.0, -0.5, 0.0, 1.0]
    assert pixel_levels(255)[[0, 51, 255]].tolist() == pytest.approx([-1.0, -0.6, 1.0])


def test_pairs_are_permutations_inside_classes() -> None:
    labels = np.array([2, 0, 2, 2, 0, 1])
    sources = pair_sources(labels, np.random.default_rng(0))
    assert sorted(sources) == list(range(6))
    np.testing.assert_array_equal(labels[sources], labels)
    assert sources[5] == 5


def test_noise_in_pieces_equals_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ardmvc_core.data.noisy._CHUNK", 3)
    images = np.random.default_rng(1).integers(0, 17, (10, 2, 2), dtype=np.uint8)
    sources = np.arange(10)[::-1].copy()
    keep = np.array([7, 2, 9])
    kept, low, high = noisy_images(images, pixel_levels(16), sources, 0.2, np.random.default_rng(5), keep)
    draw = np.random.default_rng(5).normal(0, 0.2, size=(10, 1, 2, 2))
    whole = (images[::-1, None] / 8.0 - 1 + draw).astype(np.float32)
    np.testing.assert_array_equal(kept, whole[keep])
    assert (low, high) == (whole.min(), whole.max())


def test_digits_by_default_and_by_choice() -> None:
    parts = load_parts(DatasetConfig(name="noisy_digits"), "official")
    data = parts["train"].data
    assert data.n_clusters == 5
    assert data.view_shapes == ((1, 8, 8), (1, 8, 8))
    assert len(data) + len(parts["attack"].data) == 901
    chosen = load_parts(DatasetConfig(name="noisy_digits", classes=(9, 3)), "strict")
    assert sum(len(part.data) for part in chosen.values()) == 183 + 180
    labels = torch.cat([part.data.labels for part in chosen.values() if part.data.labels is not None])
    # There are 183 threes and 180 nines; the smaller digit comes first whatever the order of `classes`.
    assert labels.bincount().tolist() == [183, 180]


def collection(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Images that differ from one another, in two classes numbered 3 and 8."""
    images = np.random.default_rng(3).integers(0, 256, (count, 4, 4), dtype=np.uint8)
    return images, np.where(np.arange(count) % 2, 8, 3)


def test_strict_pairs_stay_inside_their_part() -> None:
    images, labels = collection()
    images[:, 0, 0], images[:, 3, 3] = 0, 255
    parts = noisy_parts(DatasetConfig(name="noisy_mnist", noise=0.0), "strict", images, labels, 255)
    for part in parts.values():
        clean, paired = part.data.views
        assert part.data.labels is not None
        np.testing.assert_array_equal(part.data.labels, (labels[part.indices] == 8).astype(int))
        np.testing.assert_allclose(clean[:, 0], images[part.indices] / 255, atol=1e-6)
        for label in (0, 1):
            members = part.data.labels == label
            own = {tuple(image) for image in clean[members].flatten(1).numpy().round(5).tolist()}
            partners = {tuple(image) for image in paired[members].flatten(1).numpy().round(5).tolist()}
            assert own == partners


def test_strict_scale_is_that_of_the_training_part() -> None:
    images, labels = collection()
    config = DatasetConfig(name="noisy_mnist", noise=0.0)
    train = part_rows(config, "strict", len(images))["train"]
    images[:] = 50
    images[:, 0, 0] = 255
    images[train, 0, 0] = 0
    images[train, 0, 1] = 100
    parts = noisy_parts(config, "strict", images, labels, 255)
    for name, part in parts.items():
        clean, paired = part.data.views
        assert clean[0, 0, 2, 2].item() == pytest.approx(50 / 255)
        # 0 … 100 is the range of the training part, so 50 lies in its middle and 255 is clipped.
        assert paired[0, 0, 2, 2].item() == pytest.approx(0.5)
        assert paired[0, 0, 0, 0].item() == (0.0 if name == "train" else 1.0)


def test_strict_noise_of_a_part_is_its_own() -> None:
    images = np.full((40, 4, 4), 128, dtype=np.uint8)
    images[:, 0, 0] = 255
    parts = noisy_parts(DatasetConfig(name="noisy_mnist"), "strict", images, np.arange(40) % 2, 255)
    noise = [part.data.views[1][:4, 0, 1:].flatten() for part in parts.values()]
    assert all(not torch.equal(first, second) for i, first in enumerate(noise) for second in noise[:i])


@pytest.mark.parametrize("protocol", ["official", "strict"])
def test_constant_images_cannot_be_scaled(protocol: str) -> None:
    images = np.full((20, 4, 4), 9, dtype=np.uint8)
    with pytest.raises(DataError, match="noisy_mnist: view 1 is constant"):
        noisy_parts(DatasetConfig(name="noisy_mnist", noise=0.0), protocol, images, np.arange(20) % 2, 255)


def test_check_finds_faults_without_loading(idx_folder: Callable[..., Path]) -> None:
    folder = idx_folder(*collection(), suffix=".gz")
    config = DatasetConfig(name="noisy_mnist", root=str(folder), samples=41)
    assert check_dataset(config) == ["noisy_mnist: samples must be ≤ 40, the number of samples there are, got 41"]
    assert check_dataset(DatasetConfig(name="noisy_digits", samples=902)) == [
        "noisy_digits: samples must be ≤ 901, the number of samples there are, got 902"
    ]
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"\0\0\0\0" * 10)
    faults = check_dataset(DatasetConfig(name="noisy_mnist", root=str(folder)))
    assert len(faults) == 1
    assert "wrong magic number" in faults[0]
