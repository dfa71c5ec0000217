import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ardmvc_core.data import DataError, DatasetConfig, check_dataset, load_parts
from ardmvc_core.data.patched import PATCHES, USED_PATCHES, enlarged_tiles, patch_view


def test_twelve_patches_in_the_published_order() -> None:
    assert (
        *((0, 1), (0, 2)),
        *((1, 0), (1, 1), (1, 2), (1, 3)),
        *((2, 0), (2, 1), (2, 2), (2, 3)),
        *((3, 1), (3, 2)),
    ) == PATCHES


def test_views_shuffle_and_halves_equal_the_published_ones(golden: Callable, data_root: Path) -> None:
    archive = golden("datasets")
    want = {key.split("/")[1]: archive[key] for key in archive.files if key.startswith("patchedmnist/")}
    assert tuple(want["selected_views"]) == USED_PATCHES
    assert len(PATCHES) == want["recipe_views"]
    config = DatasetConfig(name="patched_mnist", root=str(data_root), shuffle_seed=int(want["load_seed"]))
    train, attack = load_parts(config, "official").values()
    order = torch.cat([train.indices, attack.indices])
    assert zlib.crc32(order.numpy()) == want["load_indices_crc32"]
    assert len(train.data) == want["half_size"]
    assert train.data.labels is not None
    assert attack.data.labels is not None
    assert train.data.n_clusters == 3
    np.testing.assert_array_equal(train.data.labels.bincount(), want["first_half_label_counts"])
    np.testing.assert_array_equal(attack.data.labels[:64], want["load_labels_second_half_first64"])
    labels = torch.empty_like(order)
    labels[order] = torch.cat([train.data.labels, attack.data.labels])
    assert zlib.crc32(labels.numpy()) == want["labels_crc32"]
    for view in range(len(USED_PATCHES)):
        values = torch.empty(len(order), *train.data.view_shapes[view])
        values[order] = torch.cat([train.data.views[view], attack.data.views[view]])
        assert zlib.crc32(values.numpy()) == want["crc32_float32"][view]
        np.testing.assert_array_equal(values[want["rows"]], want["images"][view])
        np.testing.assert_array_equal(train.data.views[view][:4], want["load_images_first4"][view])
        assert values.double().mean().item() == pytest.approx(want["mean"][view], abs=1e-9)
        assert values.double().std(correction=0).item() == pytest.approx(want["std"][view], abs=1e-9)


def test_interpolation_by_hand() -> None:
    # Levels 0 and 255 are −1 and 1. A column of 4 pixels, enlarged to 16; tile 0 holds outputs 0 … 3 at the
    # coordinates −3/8, −1/8, 1/8, 3/8; the first two read their mirror images 3/8 and 1/8.
    column = np.array([0, 255, 0, 255], dtype=np.uint8)
    images = np.tile(column[:, None], (1, 1, 4))
    expected = {
        0: [-0.25, -0.75, -0.75, -0.25],
        1: [0.25, 0.75, 0.75, 0.25],
        3: [0.25, 0.75, 0.75, 0.25],
    }
    for tile, values in expected.items():
        np.testing.assert_array_equal(enlarged_tiles(images, (tile, 2))[0], np.tile(np.array(values)[:, None], (1, 4)))
        turned = images.transpose(0, 2, 1)
        np.testing.assert_array_equal(enlarged_tiles(turned, (2, tile))[0], np.tile(values, (4, 1)))


def test_scale_is_the_collection_s_or_fixed() -> None:
    images = np.zeros((10, 4, 4), dtype=np.uint8)
    images[0] = 51
    keep = np.array([1, 0])
    # −1 and −0.6 are the extremes there are; on the fixed range [−1, 1] the latter lies at a fifth.
    by_extremes = patch_view(images, (1, 1), keep, fixed_range=False)
    np.testing.assert_allclose(by_extremes[:, 0, 0, 0], [0.0, 1.0])
    by_range = patch_view(images, (1, 1), keep, fixed_range=True)
    np.testing.assert_allclose(by_range[:, 0, 0, 0], [0.0, 0.2], rtol=1e-6)
    with pytest.raises(DataError, match=r"patch at \(1, 1\) is constant"):
        patch_view(images[1:], (1, 1), keep, fixed_range=False)


def test_only_the_first_three_digits_are_taken(idx_folder: Callable[..., Path]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    folder = idx_folder(images, np.arange(40) % 4)
    parts = load_parts(DatasetConfig(name="patched_mnist", root=str(folder)), "strict")
    assert sum(len(part.data) for part in parts.values()) == 30
    assert parts["score"].data.view_shapes == ((1, 8, 8),) * 3


def test_absent_digit_is_named(idx_folder: Callable[..., Path]) -> None:
    config = DatasetConfig(
        name="patched_mnist", root=str(idx_folder(np.zeros((40, 8, 8)), np.where(np.arange(40) % 2, 0, 7)))
    )
    assert check_dataset(config) == ["patched_mnist: the labels hold no digit 1, 2; 0, 1 and 2 are needed"]
    with pytest.raises(DataError, match="no digit 1, 2"):
        load_parts(config, "official")
