"""The sampler that knows of rounds and seeds: its points lie in the space, follow from the history, and go uphill."""

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from study.planning.noisy_gp import LENGTH, NoisyGPSampler, observations

SPACE: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(0.01, 10, log=True),
    "share": FloatDistribution(0.0, 1.0, step=0.25),
    "width": IntDistribution(1, 64, log=True),
    "warmup": CategoricalDistribution([10, 0, 5]),
    "kind": CategoricalDistribution(["a", "b", None]),
}


def drawn(study: optuna.Study, number: int, startup: int = 4) -> dict[str, object]:
    sampler = NoisyGPSampler(SPACE, seed=3, startup_trials=startup)
    sampler.seed = number
    study.sampler = sampler
    return dict(study.ask(SPACE).params)


def told(study: optuna.Study, params: dict[str, object], values: dict[int, float], length: int = 2) -> None:
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            value=list(values.values())[-1],
            params=params,
            distributions=SPACE,
            intermediate_values=values,
            system_attrs={LENGTH: length},
        )
    )


def uphill(params: dict[str, object]) -> float:
    """Best at a rate of 1, and for kind b."""
    return 1.0 - np.log10(float(str(params["rate"]))) ** 2 / 4 + 0.2 * (params["kind"] == "b")


def history(count: int) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(count):
        params = dict(random.ask(SPACE).params)
        told(study, params, {1: uphill(params) / 2, 2: uphill(params)})
    return study


def test_points_lie_in_the_space() -> None:
    study = history(12)
    for number in range(12):
        params = drawn(study, number)
        for name, domain in SPACE.items():
            assert domain._contains(domain.to_internal_repr(params[name])), (name, params[name])


def test_the_first_points_are_spread_evenly() -> None:
    """Of a Sobol sequence 16 points have one in each sixteenth of every range."""
    study = optuna.create_study(direction="maximize")
    rates = [np.log10(float(str(drawn(study, number, startup=16)["rate"]))) for number in range(16)]
    assert {int((rate + 2) / 3 * 16) for rate in rates} == set(range(16))


def test_a_point_depends_on_the_history_and_the_number_alone() -> None:
    assert drawn(history(10), 5) == drawn(history(10), 5)
    assert drawn(history(10), 5) != drawn(history(10), 6) or drawn(history(10), 5) != drawn(history(11), 5)


def test_it_goes_where_values_rise() -> None:
    study = history(24)
    points = [drawn(study, number) for number in range(6)]
    assert np.median([abs(np.log10(float(str(point["rate"])))) for point in points]) < 0.5
    assert sum(point["kind"] == "b" for point in points) >= 4


def test_smaller_is_better_where_the_study_says_so() -> None:
    study = optuna.create_study(direction="minimize")
    for trial in history(24).trials:
        values = {step: -value for step, value in trial.intermediate_values.items()}
        told(study, trial.params, values)
    points = [drawn(study, number) for number in range(6)]
    assert np.median([abs(np.log10(float(str(point["rate"])))) for point in points]) < 0.5


@pytest.mark.parametrize("seeds", [1, 6])
def test_seeds_are_weighed(seeds: int) -> None:
    """A lucky seed far from the hill does not lead the search away; six seeds that agree do."""
    study = history(24)
    far = {"rate": 9.9, "share": 0.5, "width": 8, "warmup": 5, "kind": "a"}
    told(study, far, {1: 0.4, **{2 + seed: 2.0 for seed in range(seeds)}})
    if seeds == 1:  # and three that were not lucky there
        for near in (9.8, 9.7, 9.6):
            told(study, {**far, "rate": near}, {1: 0.4, 2: 0.7})
    rates = [np.log10(float(str(drawn(study, number)["rate"]))) for number in range(6)]
    assert (np.median(rates) > 0.5) == (seeds == 6)


def test_a_trial_that_ran_whole_or_elsewhere_is_one_observation() -> None:
    """Of another study's trial the rounds are not of this length: 0.1 after a round is no value of full length."""
    whole = create_trial(
        state=TrialState.COMPLETE, value=0.8, params={}, distributions={}, intermediate_values={1: 0.1, 2: 0.8}
    )
    assert observations(whole) == [(1.0, 0.8)]
    assert observations(create_trial(state=TrialState.RUNNING, params={}, distributions={})) == []
