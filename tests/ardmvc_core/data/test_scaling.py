"""Scalings against scikit-learn's and numbers worked out by hand."""

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import MinMaxScaler, StandardScaler, normalize

from ardmvc_core.data import DataError
from ardmvc_core.data.scaling import fit_view, scaled, scaling_arrays, scaling_from

RNG = np.random.default_rng(3)
COUNTS = RNG.poisson(0.4, (60, 12)).astype(np.uint8)
SIGNED = RNG.normal(3, 20, (60, 5))
NEW = RNG.normal(3, 40, (9, 5))


def boxed(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Filled into [0, 1] by the ends of the training values."""
    return np.clip((values - train.min()) / (train.max() - train.min()), 0, 1)


def test_minmax_is_scikit_learns_and_clipped() -> None:
    fit = fit_view("minmax", SIGNED)
    theirs = MinMaxScaler(clip=True).fit(SIGNED)
    for view in (SIGNED, NEW):
        np.testing.assert_allclose(fit.apply(view), theirs.transform(view), atol=1e-6)
    assert fit.apply(SIGNED).dtype == np.float32


def test_standard_is_scikit_learns_in_a_box_of_the_whole_view() -> None:
    fit = fit_view("standard", SIGNED)
    theirs = StandardScaler().fit(SIGNED)
    train = theirs.transform(SIGNED)
    for view in (SIGNED, NEW):
        np.testing.assert_allclose(fit.apply(view), boxed(theirs.transform(view), train), atol=1e-6)
    assert fit.unit == pytest.approx(train.max() - train.min())


def test_unit_norm_is_scikit_learns_in_a_box() -> None:
    fit = fit_view("unit_norm", SIGNED)
    for view in (SIGNED, NEW):
        np.testing.assert_allclose(fit.apply(view), boxed(normalize(view), normalize(SIGNED)), atol=1e-6)


def test_tfidf_is_scikit_learns_in_a_box() -> None:
    fit = fit_view("tfidf", COUNTS)
    theirs = TfidfTransformer().fit(COUNTS)
    train = theirs.transform(COUNTS).toarray()
    new = RNG.poisson(0.4, (7, 12))
    for view in (COUNTS, new):
        np.testing.assert_allclose(fit.apply(view), boxed(theirs.transform(view).toarray(), train), atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "minmax", "standard", "unit_norm", "tfidf"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
def test_a_sparse_view_becomes_what_the_dense_one_does(kind: Any, dtype: type) -> None:
    dense = COUNTS.astype(dtype)
    sparse = scipy.sparse.csr_array(dense)
    np.testing.assert_allclose(fit_view(kind, sparse).apply(sparse), fit_view(kind, dense).apply(dense), atol=1e-7)


@pytest.mark.parametrize(
    "view", [RNG.random((20, 3)), np.full((20, 3), 0.5), np.linspace(-9e-7, 1 + 9e-7, 60).reshape(20, 3)]
)
def test_none_leaves_a_view_alone_that_lies_in_the_box(view: np.ndarray) -> None:
    fit = fit_view("none", view)
    np.testing.assert_array_equal(fit.apply(view), np.clip(view.astype(np.float32), 0, 1))
    assert fit.reach(0.1) == "0.1 in the view's own units"


def test_none_keeps_features_in_proportion() -> None:
    fit = fit_view("none", np.array([[-2.0, 0.0], [8.0, 3.0]]))
    np.testing.assert_allclose(fit.apply(np.array([[3.0, 0.5], [9.0, -4.0]])), [[0.5, 0.25], [1.0, 0.0]])
    assert fit.reach(0.05) == "0.5 in the view's own units"


@pytest.mark.parametrize("kind", ["minmax", "standard", "unit_norm", "tfidf"])
def test_features_that_do_not_vary_in_the_training_part_are_left_out(kind: Any) -> None:
    varying = COUNTS[:, :3]
    view = np.insert(varying, [1, 3], [4, 0], axis=1)
    fit = fit_view(kind, view)
    assert fit.view_shape == (3,)
    np.testing.assert_allclose(fit.apply(view), fit_view(kind, varying).apply(varying), atol=1e-7)
    surprising = view.copy()
    surprising[:, 1] = 200
    np.testing.assert_array_equal(fit.apply(surprising), fit.apply(view))


def test_images_have_one_range() -> None:
    images = np.array([[[[0, 50], [100, 100]]], [[[20, 20], [20, 200]]]], dtype=np.uint8)
    fit = fit_view("minmax", images)
    np.testing.assert_allclose(fit.apply(images)[0, 0], [[0, 0.25], [0.5, 0.5]])
    assert fit.reach(0.05) == "0.05 of each feature's range: 10 … 10 as stored"
    standard = fit_view("standard", images)
    assert standard.unit == pytest.approx(200 / images.std())


def test_how_far_eps_goes_in_words() -> None:
    view = np.array([[0.0, 100.0], [2.0, 300.0], [1.0, 200.0]])
    assert fit_view("minmax", view).reach(0.05) == "0.05 of each feature's range: 0.1 … 10 as stored"
    # Both features run from −√1.5 to √1.5 standard deviations, which are √(2/3) and 100·√(2/3).
    assert fit_view("standard", view).reach(0.1) == "0.245 standard deviations of each feature: 0.2 … 20 as stored"


def test_values_that_are_clipped_are_counted() -> None:
    fit = fit_view("minmax", np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert fit.with_clipped(np.array([[2.0, 0.5], [-1.0, 1.0], [0.2, 1.1]]))[1] == 3


@pytest.mark.parametrize(
    ("kind", "view", "why"),
    [
        ("minmax", np.full((5, 2), 3.0), "does not vary in the training part"),
        ("standard", np.full((5, 2), 0.0), "does not vary in the training part"),
        ("none", np.full((5, 2), 3.0), "does not vary in the training part"),
        ("unit_norm", np.arange(1.0, 6.0)[:, None], "does not vary in the training part after unit_norm"),
        ("tfidf", np.array([[0.0, 1.0], [-2.0, 0.0]]), "tfidf needs counts ≥ 0 in vectors, got -2"),
        ("tfidf", RNG.random((3, 1, 2, 2)), r"tfidf needs counts ≥ 0 in vectors, got images \(1, 2, 2\)"),
    ],
)
def test_what_cannot_be_scaled(kind: Any, view: np.ndarray, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        fit_view(kind, view)


def test_everything_comes_back_from_arrays() -> None:
    views = [COUNTS, SIGNED, np.insert(COUNTS, 2, 0, axis=1), RNG.random((60, 1, 4, 4))]
    kinds: list[Any] = ["tfidf", "standard", "minmax", "none"]
    fits = tuple(fit_view(kind, view) for kind, view in zip(kinds, views, strict=True))
    arrays = scaling_arrays(fits)
    assert not any(array.dtype.hasobject for array in arrays.values())
    again = scaling_from({**arrays, "other": np.zeros(3)})
    for first, second in zip(scaled(fits, views), scaled(again, views), strict=True):
        np.testing.assert_array_equal(first, second)
    assert [fit.reach(0.1) for fit in again] == [fit.reach(0.1) for fit in fits]
    assert scaling_from({}) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("low", np.zeros(7)),
        ("width", np.zeros(12)),
        ("width", np.full(12, np.inf)),
        ("kind", np.array("percent")),
        ("kept", np.array([0, 99])),
        ("shape", np.array([2, 2])),
        ("unit", np.array(-1.0)),
    ],
)
def test_damaged_arrays_are_refused(name: str, value: np.ndarray) -> None:
    arrays = scaling_arrays((fit_view("minmax", COUNTS),))
    with pytest.raises(ValueError, match=r"must|scaling"):
        scaling_from({**arrays, f"scaling/0/{name}": value})


def test_views_of_other_shapes_are_refused_with_both() -> None:
    fits = (fit_view("minmax", COUNTS), fit_view("minmax", SIGNED))
    with pytest.raises(DataError, match=r"shapes \[\(12,\), \(5,\)\], got \[\(5,\), \(12,\)\]"):
        scaled(fits, [SIGNED, COUNTS])
