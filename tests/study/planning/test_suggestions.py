"""Draws depend on (seed, trial number, history) alone, and baselines outside the space do no harm."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from study.database.ledger import Ledger
from study.planning.optuna_side import BEST_KEPT, LimitedHistory, make_pruner, to_optuna
from study.planning.suggestions import Suggestions, as_point, preview
from study.spec.distributions import Choice, IntLogUniform, IntUniform, LogUniform, Quantised, Uniform
from study.spec.study_spec import StudySpec

SpecMaker = Callable[..., StudySpec]
NOTHING: dict[str, Any] = {
    "overrides": {}, "config": {}, "rounds": 4, "baseline": False, "params": {}, "distributions": {},
}  # fmt: skip
SAMPLERS = ["tpe", "gp", "nsga2", "random", "sobol"]


def test_distributions_become_optunas() -> None:
    assert to_optuna(Uniform(0.0, 1.0)) == FloatDistribution(0, 1)
    assert to_optuna(LogUniform(0.1, 1.0)) == FloatDistribution(0.1, 1, log=True)
    assert to_optuna(IntUniform(1, 9)) == IntDistribution(1, 9)
    assert to_optuna(IntLogUniform(1, 9)) == IntDistribution(1, 9, log=True)
    assert to_optuna(Quantised(0.0, 1.0, 0.25)) == FloatDistribution(0, 1, step=0.25)
    assert to_optuna(Choice(("a", "b"))) == CategoricalDistribution(("a", "b"))


def play(spec: StudySpec, suggestions: Suggestions, numbers: range, history: list) -> None:
    """Runs trials in order; the objective is a known function of the point."""
    for number in numbers:
        overrides, baseline = suggestions.next_overrides(number), number < len(spec.baselines)
        value = -abs(overrides.get("model.train_eps", 0.0) - 0.1)
        suggestions.finished(number, TrialState.COMPLETE, [value])
        history.append((overrides, baseline, value))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_new_driver_draws_what_the_old_one_would_have(
    name: str, tiny_spec: SpecMaker, ledger_with: Callable[..., Ledger]
) -> None:
    spec = tiny_spec(sampler={"name": name}, limits={"trials": 9})
    whole: list = []
    play(spec, Suggestions(spec), range(9), whole)
    for cut in (3, 6):
        ledger = ledger_with(spec, whole[:cut])
        resumed = Suggestions(spec)
        resumed.restore(ledger.frozen_trials())
        rest: list = []
        play(spec, resumed, range(cut, 9), rest)
        assert [entry[0] for entry in rest] == [entry[0] for entry in whole[cut:]]


def limited(size: int, directions: list[str], told: list[tuple[int, TrialState, list[float] | None]]) -> list[int]:
    """Numbers of the trials that a sampler sees, of trials that end as `told`, in that order."""
    study = optuna.create_study(storage=LimitedHistory(size), directions=directions)
    trials = [study.ask() for _ in told]
    for number, state, values in told:
        if state == TrialState.PRUNED:
            trials[number].report(number / 1000, 1)
        study.tell(trials[number], values, state)
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial.number for trial in study.get_trials(deepcopy=False, states=states)]


def test_a_limited_history_holds_the_best_and_the_newest_whatever_ended_first() -> None:
    """Of 100 trials the even ones are complete and the older the better; those of 4n + 1 were pruned, 4n + 3 failed."""
    kinds = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL)
    ends = [(n, kinds[n % 4], [1 - n / 100] if n % 2 == 0 else None) for n in range(100)]
    best = list(range(0, 2 * BEST_KEPT, 2))
    newest = [n for n in range(100) if n % 4 != 3 and n not in best][-15:]
    shuffled = random.Random(7).sample(ends, 100)
    for told in (ends, ends[::-1], shuffled):
        assert limited(BEST_KEPT + 15, ["maximize"], told) == sorted([*best, *newest])
    assert limited(75, ["maximize"], shuffled) == [n for n in range(100) if n % 4 != 3]


def test_a_limited_history_of_two_objectives_holds_what_none_beats() -> None:
    """Trials 3 and 5 are beaten by none; with the two newest others they are what is seen."""
    points = [[0.1, 0.1], [0.2, 0.2], [0.3, 0.3], [0.9, 0.4], [0.5, 0.3], [0.4, 0.9], [0.1, 0.2], [0.2, 0.1]]
    ends = [(n, TrialState.COMPLETE, point) for n, point in enumerate(points)]
    for told in (ends, ends[::-1]):
        assert limited(4, ["maximize", "maximize"], told) == [3, 5, 6, 7]


def test_a_history_that_is_not_full_changes_no_draw_and_a_full_one_survives_a_new_driver(
    tiny_spec: SpecMaker, ledger_with: Callable[..., Ledger]
) -> None:
    draws = []
    for history in (50, 80):
        whole: list = []
        spec = tiny_spec(sampler={"name": "tpe", "history": history}, limits={"trials": 70}, baselines=[])
        play(spec, Suggestions(spec), range(70), whole)
        draws.append([overrides for overrides, _, _ in whole])
    assert draws[0][:51] == draws[1][:51]
    assert draws[0] != draws[1]
    spec = tiny_spec(sampler={"name": "tpe", "history": 50}, limits={"trials": 70}, baselines=[])
    cut = [({**overrides}, False, -abs(overrides["model.train_eps"] - 0.1)) for overrides in draws[0][:60]]
    resumed = Suggestions(spec)
    resumed.restore(ledger_with(spec, cut).frozen_trials())
    rest: list = []
    play(spec, resumed, range(60, 70), rest)
    assert [overrides for overrides, _, _ in rest] == draws[0][60:]


@pytest.mark.parametrize("name", SAMPLERS)
def test_baseline_outside_the_space_leaves_every_draw_inside(name: str, tiny_spec: SpecMaker) -> None:
    spec = tiny_spec(sampler={"name": name}, limits={"trials": 14})
    history: list = []
    play(spec, Suggestions(spec), range(14), history)
    assert [baseline for _, baseline, _ in history] == [True] + [False] * 13
    assert history[0][0] == {"model.adversarial_weight": 0, "model.mitigator_weight": 0}
    for overrides, _, _ in history[1:]:
        assert 0.01 <= overrides["model.adversarial_weight"] <= 10
        assert 0.02 <= overrides["model.train_eps"] <= 0.3
    assert len({tuple(sorted(overrides.items())) for overrides, _, _ in history}) == 14


def test_seed_changes_the_draws_and_trials_side_by_side_differ(tiny_spec: SpecMaker) -> None:
    assert preview(tiny_spec(), 4) == preview(tiny_spec(), 4)
    assert preview(tiny_spec(seed=8), 4)[1:] != preview(tiny_spec(), 4)[1:]


def test_tpe_concentrates_where_the_objective_is_good(tiny_spec: SpecMaker) -> None:
    """Against independent draws, with the same budget: TPE's later points lie nearer to the known optimum ε = 0.1."""
    spec = tiny_spec(sampler={"name": "tpe", "startup_trials": 8}, limits={"trials": 60}, baselines=[])
    history: list = []
    play(spec, Suggestions(spec), range(60), history)
    late = sorted(abs(overrides["model.train_eps"] - 0.1) for overrides, _, _ in history[30:])
    assert late[15] < 0.035  # half of what uniform draws on [0.02, 0.3] have as their median distance


def test_warm_start_informs_the_first_draw(tiny_spec: SpecMaker, ledger_with: Callable[..., Ledger]) -> None:
    spec = tiny_spec(sampler={"name": "tpe", "startup_trials": 5}, baselines=[])
    old: list = []
    play(spec, Suggestions(spec), range(12), old)
    warm = Suggestions(spec, ledger_with(spec, old).frozen_trials())
    assert warm.draw(0) != Suggestions(spec).draw(0)


def test_point_outside_the_space_is_no_point(tiny_spec: SpecMaker) -> None:
    distributions = Suggestions(tiny_spec()).distributions
    assert as_point({"model.adversarial_weight": 1.0, "model.train_eps": 0.1}, distributions) is not None
    assert as_point({"model.adversarial_weight": 0.0, "model.train_eps": 0.1}, distributions) is None
    assert as_point({"model.train_eps": 0.1}, distributions) is None


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"name": "none"}, "NopPruner"),
        ({"name": "median", "startup_trials": 2, "warmup_rounds": 1}, "MedianPruner"),
        ({"name": "successive_halving", "min_rounds": 2, "reduction_factor": 3}, "SuccessiveHalvingPruner"),
        ({"name": "hyperband", "min_rounds": 1, "reduction_factor": 3}, "HyperbandPruner"),
    ],
)
def test_pruners_are_optunas(options: dict, kind: str) -> None:
    assert type(make_pruner(options, 4)).__name__ == kind


@pytest.mark.parametrize("name", ["median", "successive_halving", "hyperband"])
def test_a_pruner_decides_the_same_from_memory_as_from_the_database(
    name: str, tiny_spec: SpecMaker, tmp_path: Path
) -> None:
    """Two drivers play the same trials, four side by side; only the holder of a lease keeps them in memory."""
    spec = tiny_spec(pruner={"name": name})
    decisions = []
    for holds_lease in (True, False):
        pruner = make_pruner(spec.pruner_options(), 4)
        ledger = Ledger.open_or_create(spec, f"sqlite:///{tmp_path}/{holds_lease}.db", pruner)
        if holds_lease:
            ledger.acquire()
        asked = []
        for first in range(0, 16, 4):
            numbers = [ledger.add(**NOTHING) for _ in range(first, first + 4)]
            for round_ in (1, 2, 3):
                for number in list(numbers):
                    ledger.report(number, round_, (number * 7 % 16) * round_ / 48)
                    ledger.progress(number, {"round": round_, "metrics": {"a/b": 1.0}, "checkpoint": f"r{round_}"})
                    asked.append((number, round_, ledger.should_prune(number)))
                    if asked[-1][2]:
                        ledger.finish(number, TrialState.PRUNED)
                        numbers.remove(number)
                for number in numbers[:1]:
                    ledger.interrupt(number)
                assert [ledger.record(record.number) for record in ledger.records()] == ledger.records()
                for number in numbers[:1]:
                    ledger.resume(number)
            for number in numbers:
                ledger.finish(number, TrialState.COMPLETE, [number / 16])
        decisions.append((asked, [replace(record, ended=0) for record in ledger.records()]))
        assert [ledger.record(record.number) for record in ledger.records()] == ledger.records()
        ledger.release()
    assert decisions[0] == decisions[1]
    assert {pruned for _, _, pruned in decisions[0][0]} == {True, False}


@pytest.fixture
def ledger_with(tmp_path: Path) -> Callable[..., Ledger]:
    """A database that holds a history of (overrides, baseline, value) as finished trials."""

    def build(spec: StudySpec, history: list) -> Ledger:
        url = f"sqlite:///{tmp_path / str(len(history))}.db"
        ledger = Ledger.open_or_create(spec, url, make_pruner(spec.pruner_options(), 4))
        distributions = Suggestions(spec).distributions
        for overrides, baseline, value in history:
            inside = as_point(overrides, distributions) is not None
            number = ledger.add(
                overrides=overrides,
                config={},
                rounds=4,
                baseline=baseline,
                params=overrides if inside else {},
                distributions=distributions if inside else {},
            )
            ledger.finish(number, TrialState.COMPLETE, [value])
        return ledger

    return build
