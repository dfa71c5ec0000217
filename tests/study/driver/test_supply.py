"""What is given out next: an interrupted trial reads its data from where the driver says that they lie now."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from study.driver.supply import Supply
from study.records import TrialRecord
from study.spec.study_spec import StudySpec


@pytest.mark.parametrize("baseline", [True, False])
def test_a_trial_goes_on_with_data_that_have_moved(
    tiny_spec: Callable[..., StudySpec], tmp_path: Path, baseline: bool
) -> None:
    np.savez(tmp_path / "new.npz", view_0=np.zeros((20, 2)), view_1=np.zeros((20, 2)), labels=np.arange(20) % 2)
    place = {"dataset.path": str(tmp_path / "new.npz")}
    trial: dict[str, Any] = {"dataset": {"name": "npz", "path": place["dataset.path"]}, "model": {"name": "comvc"}}
    spec = tiny_spec(trial=trial, space={}, baselines=[place] if baseline else [])
    old = {"dataset.path": "/gone/old.npz"} if baseline else {}
    records = [TrialRecord(number=0, state="WAITING", overrides=old, baseline=baseline)]
    ledger: Any = SimpleNamespace(resume=lambda number: None)
    taken = Supply(spec, ledger, None, records, (), None).take()  # type: ignore[arg-type]  # nothing is drawn
    assert taken is not None
    assert json.loads(taken[1])["dataset"]["path"] == place["dataset.path"]
