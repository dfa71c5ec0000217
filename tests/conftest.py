"""What every test may use: golden numbers, real data, and the error measure that the golden data states."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], "np.lib.npyio.NpzFile"]:
    """Opens one file of the golden data by its name without suffix."""
    folder = os.environ.get("ARDMVC_GOLDEN")

    def open_golden(name: str) -> "np.lib.npyio.NpzFile":
        if not folder:
            pytest.skip("ARDMVC_GOLDEN is unset: no golden numbers to compare with")
        return np.load(Path(folder) / f"{name}.npz")

    return open_golden


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds mnist/ and fashion-mnist/ in IDX format."""
    folder = os.environ.get("ARDMVC_DATA")
    if not folder:
        pytest.skip("ARDMVC_DATA is unset: no MNIST or Fashion-MNIST files")
    return Path(folder)


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """assert_close(got, want, tolerance): the golden data's measure |got − want| / (1 + |want|)."""

    def check(got: object, want: object, tolerance: float, what: str = "") -> None:
        got_array = got.detach().cpu().double().numpy() if isinstance(got, torch.Tensor) else np.asarray(got, float)
        want_array = np.asarray(want, dtype=float)
        assert got_array.shape == want_array.shape, f"{what}: shape {got_array.shape}, expected {want_array.shape}"
        error = np.abs(got_array - want_array) / (1 + np.abs(want_array))
        worst = float(error.max()) if error.size else 0.0
        assert worst <= tolerance, f"{what}: worst error {worst:.3g} > {tolerance:g}"

    return check
