"""A space with fewer points than the study has trials: said before it starts, and no point is run twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.pruners import NopPruner
from optuna.trial import TrialState
from tiny_studies import study_dict, write_study

from study.database.engine import study_url
from study.database.ledger import Ledger
from study.database.status import status_of
from study.planning.suggestions import Suggestions, preview
from study.spec.distributions import without_noise
from study.spec.study_spec import StudySpec
from study.sweep import main

SpecMaker = Callable[..., StudySpec]

STEPS = {"model.train_steps": {"int_uniform": [1, 2]}}
WEIGHTS = {"model.mitigator_weight": {"choice": [0.1, 0.3]}}
GRID = {"model.train_eps": {"quantised": [0.1, 0.3, 0.1]}}
NOISE = 0.1 + 0.2
"""0.30000000000000004."""


@pytest.mark.parametrize(
    ("space", "baselines", "trials"),
    [
        (STEPS, [], 2),
        ({**STEPS, **WEIGHTS, **GRID}, [], 12),
        ({**GRID, **WEIGHTS}, [{"model.train_eps": NOISE, "model.mitigator_weight": 0.1}], 6),
        ({**GRID, **WEIGHTS}, [{"model.train_eps": 0.2, "model.mitigator_weight": NOISE}], 6),
        (GRID, [{"model.train_eps": 0.25}], 4),
        (GRID, [{}], 3),
        (STEPS, [{}], 2),
        (STEPS, [{}, {"model.train_steps": 1}], 3),
        ({}, [{"model.train_eps": 0.1}, {"model.train_eps": 0.2}], 2),
        ({}, [], 1),
        ({**STEPS, "model.temperature": {"uniform": [0.1, 1]}}, [], 20),
    ],
)
def test_trials_that_a_study_comes_to(
    tiny_spec: SpecMaker, space: dict[str, Any], baselines: list[dict[str, Any]], trials: int
) -> None:
    spec = tiny_spec(space=space, baselines=baselines, limits={"trials": 20})
    assert spec.trials == trials
    assert ("limits.trials = 20" in " ".join(spec.notes)) is (trials < 20)


@pytest.mark.parametrize("sampler", ["random", "tpe", "sobol", "nsga2", "gp"])
def test_no_sampler_repeats_a_point_while_others_are_left(tiny_spec: SpecMaker, sampler: str) -> None:
    baseline = {"model.train_eps": NOISE, "model.mitigator_weight": 0.1, "model.train_steps": 1}
    spec = tiny_spec(
        space={**STEPS, **WEIGHTS, **GRID},
        baselines=[baseline],
        sampler={"name": sampler},
        limits={"trials": 20},
    )
    suggestions, seen = Suggestions(spec), []
    for number in range(spec.trials):
        overrides = suggestions.next_overrides(number)
        seen.append(spec.pointer()(overrides))
        suggestions.finished(number, TrialState.COMPLETE, [0.5])
    assert None not in seen
    assert len(set(seen)) == len(seen) == 12
    assert len(set(map(spec.pointer(), preview(spec, 12)))) == 12


def test_a_study_that_goes_on_knows_the_points_of_its_trials(tiny_spec: SpecMaker) -> None:
    """A baseline leaves out what it does not change, so that its point is not among Optuna's parameters."""
    spec = tiny_spec(
        space={**GRID, **WEIGHTS},
        baselines=[{"model.train_eps": 0.2, "model.mitigator_weight": 0.3}, {"model.mitigator_weight": 0.3}],
        sampler={"name": "random"},
        limits={"trials": 20},
    )
    spec.trial["model"] |= {"train_eps": 0.1, "mitigator_weight": 0.1}
    assert spec.trials == 6
    ledger = Ledger.open_or_create(spec, study_url(spec.storage.path), NopPruner())
    for overrides in spec.baselines:
        ledger.add(overrides=overrides, config={}, rounds=1, baseline=True, params={}, distributions={})
    suggestions = Suggestions(spec)
    suggestions.restore(ledger.frozen_trials())
    drawn = [suggestions.next_overrides(number) for number in range(2, spec.trials)]
    assert len(set(map(spec.pointer(), (*spec.baselines, *drawn)))) == 6


def test_choices_that_differ_by_rounding_are_one(tiny_spec: SpecMaker) -> None:
    with pytest.raises(ValueError, match="holds a value twice"):
        tiny_spec(space={"model.train_eps": {"choice": [0.1, 0.10000000000000002]}})


def test_large_whole_numbers_are_not_one() -> None:
    assert without_noise(10**15 + 1) != without_noise(10**15 + 2)
    assert without_noise(1) == without_noise(1.0000000000000002) != without_noise(True)


def test_a_baseline_that_is_there_twice_is_named(tiny_spec: SpecMaker) -> None:
    baselines = [{"model.train_eps": 0.3}, {"model.train_eps": 0.1}, {"model.train_eps": NOISE}]
    notes = tiny_spec(space=GRID, baselines=baselines, limits={"trials": 4}).notes
    assert notes[0] == "baselines[2] repeats baselines[0]: the same trial will run twice"


def test_a_study_that_has_every_point_is_finished(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec(space=STEPS, baselines=[], limits={"trials": 9})
    ledger = Ledger.open_or_create(spec, study_url(spec.storage.path), NopPruner())
    ledger.adopt(spec)
    for steps in (2, 1):
        overrides = {"model.train_steps": steps}
        ledger.add(overrides=overrides, config={}, rounds=1, baseline=False, params={}, distributions={})
        status = status_of(ledger)
        assert (status.trials["budget"], status.state) == (2, "not running")
    for number in (0, 1):
        ledger.finish(number, TrialState.COMPLETE, [0.5], None)
    assert status_of(ledger).state == "finished"


def test_a_dry_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path, study_dict(tmp_path, space=STEPS, baselines=[], limits={"trials": 9}))
    assert main([str(study), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "# note       the space has 2 points: the study ends after 2 trials, not after limits.trials = 9, " in shown
    assert "# trials     2 × " in shown
