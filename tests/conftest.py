"""What every test may use: golden numbers, real data, tiny studies, and real servers."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_studies
import torch
from object_store import ObjectStore
from postgres import Postgres
from tiny_studies import study_dict

from study import secrets
from study.spec.study_spec import StudySpec

torch.set_num_threads(1)
# Ray's workers must find the trainables that tests stage.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(tiny_studies.__file__).parent), os.environ.get("PYTHONPATH", "")])
)


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


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test makes known as secret, and the hooks that hide it, are its own."""
    monkeypatch.setattr(secrets, "_known", {})
    hooks = ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook"), (warnings, "formatwarning"))
    for place, name in hooks:
        monkeypatch.setattr(place, name, getattr(place, name))
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)


@pytest.fixture
def tiny_study(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A study of seconds as YAML would give it; keyword arguments replace its sections."""
    return lambda **changes: study_dict(tmp_path, **changes)


@pytest.fixture
def tiny_spec(tmp_path: Path) -> Callable[..., StudySpec]:
    """The same, checked."""
    return lambda **changes: StudySpec.model_validate(study_dict(tmp_path, **changes))


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A real PostgreSQL."""
    with Postgres(tmp_path_factory.mktemp("postgres")) as running:
        yield running


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """A real server of the S3 protocol."""
    with ObjectStore() as running:
        yield running
