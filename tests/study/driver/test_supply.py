"""What is given out next: an interrupted trial reads its data from where the driver says that they lie now."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from study.driver.supply import Supply
from study.planning.cost import Passes
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


def test_a_limit_of_passes_is_met_once_and_open_trials_still_come_back(tiny_spec: Callable[..., StudySpec]) -> None:
    """Room for one trial of two. While it runs, no further point is drawn; when it loses its worker, it goes on."""
    spec = tiny_spec(baselines=[], limits={"trials": 3, "passes": 30})
    records: list[TrialRecord] = []
    drawn, open_ = list[int](), dict[int, None]()

    def add(**given: Any) -> int:
        records.append(TrialRecord(number=len(records), state="RUNNING", rounds=given["rounds"]))
        return len(records) - 1

    def next_overrides(number: int, given: Any) -> dict[str, Any]:
        drawn.append(number)
        return {}

    ledger: Any = SimpleNamespace(add=add, records=lambda: records, queued=dict, resume=lambda number: None, steps=list)
    suggestions: Any = SimpleNamespace(next_overrides=next_overrides, distributions={})
    costs: Any = Costs([Passes(5, 0)] * 4)  # 20 a trial
    supply = Supply(spec, ledger, suggestions, [], open_, costs)
    taken = supply.take()
    assert taken is not None
    open_[0] = None
    assert [supply.take() for _ in range(3)] == [None] * 3
    assert drawn == [0, 1]  # the second did not fit, and was not drawn again and again
    del open_[0]
    supply.put_back(records[0])
    again = supply.take()
    assert again is not None
    assert again[0] == 0
    assert supply.take() is None
    assert (supply.over, supply.unmade) == (True, 2)


class Costs(list[Passes]):
    """Of every trial the same."""

    def __call__(self, record: TrialRecord | None) -> list[Passes]:
        return self

    def of(self, overrides: Any) -> list[Passes]:
        return self
