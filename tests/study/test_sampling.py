"""Draws depend on (seed, trial number, history) alone, and baselines outside the space do no harm."""

from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from study.ledger import Ledger
from study.sampling import Suggestions, as_point, make_pruner, next_overrides, preview, to_optuna
from study.space import Choice, IntLogUniform, IntUniform, LogUniform, Quantised, Uniform
from study.spec import StudySpec

SpecMaker = Callable[..., StudySpec]
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
        overrides, baseline = next_overrides(spec, suggestions, number)
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
