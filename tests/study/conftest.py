"""Fixtures of the study tests."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_studies
from object_store import ObjectStore
from postgres import Postgres
from tiny_studies import study_dict

from study import secrets
from study.spec import StudySpec

# Ray's workers must find the trainables that tests stage.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(tiny_studies.__file__).parent), os.environ.get("PYTHONPATH", "")])
)


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
