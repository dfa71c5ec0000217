"""What a search gives out next, from trials as they stand: cohorts, rungs, further seeds, and where it ends."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_studies import study_dict, write_study

from study.confirm import parser
from study.planning.confirmation import confirmation
from study.planning.cost import Passes
from study.planning.search import Search, Step
from study.records import Goal, TrialRecord
from study.spec.objectives import told_of
from study.spec.study_spec import StudySpec, load_spec
from study.spec.yaml_file import SpecError

LEG = 4
"""Rounds of a seed in the tiny study."""
SpecMaker = Callable[..., StudySpec]


@pytest.fixture
def staged(tiny_spec: SpecMaker) -> Callable[..., StudySpec]:
    """The tiny study (one baseline, four rounds) with up to four seeds a trial."""

    def make(*, most: int = 4, **changes: Any) -> StudySpec:
        whole = tiny_spec(**{"limits": {"trials": 9, "failures": 0, "concurrent": 1}, **changes})
        raw = whole.model_dump(mode="json")
        raw["trial"] = {**raw["trial"], "repeats": {"first": 1, "most": most}}
        return StudySpec.model_validate(raw)

    return make


def search_of(spec: StudySpec, passes: Sequence[int] = (1,) * 4 * LEG) -> Search:
    return Search(spec, lambda record: [Passes(each, 0) for each in passes])


def trial(number: int, told: Sequence[float], *, rounds: int | None = None, **changes: Any) -> TrialRecord:
    """A trial that has told so much: probes of three rounds, and then the mean over its seeds after each leg."""
    history = []
    for index, value in enumerate(told):
        if index < LEG - 1:
            history.append((index + 1, 0, {"probe/acc": value}))
        else:
            history.append(((index - LEG + 2) * LEG, 0, {"robust/acc": value}))
    round_ = history[-1][0] if history else 0
    record = TrialRecord(
        number=number,
        state="WAITING",
        baseline=number == 0,
        config={"repeats": {"first": 1, "most": 4}},
        round=round_,
        rounds=round_ if rounds is None else rounds,
        leg=LEG,
        history=tuple(history),
        metrics=history[-1][2] if history else {},
    )
    return replace(record, **changes)


def seeds(number: int, mean: float, spread: float, count: int) -> TrialRecord:
    """A trial with so many seeds behind it."""
    record = trial(number, [0.1, 0.2, 0.3, *[mean] * count])
    metrics = {"robust/acc": mean} | ({"spread/robust/acc": spread} if count > 1 else {})
    return replace(record, metrics=metrics)


COHORT = Step("cohort 1 begins", first=0, new=9)


# Cohorts and rungs


def test_a_search_begins_with_a_cohort_and_leaves_no_small_rest(staged: Callable[..., StudySpec]) -> None:
    """Nine trials in cohorts of eight: one more that had nobody to be compared with would be a cohort of its own."""
    step = search_of(staged()).next([], [])
    assert step is not None
    assert (step.first, step.new, step.rounds) == (0, 9, {})
    many = search_of(staged(limits={"trials": 20, "failures": 0, "concurrent": 1})).next([], [])
    assert many is not None
    assert many.new == 8


def test_a_new_trial_rests_at_the_first_rung_and_a_baseline_at_the_end_of_a_seed(
    staged: Callable[..., StudySpec],
) -> None:
    search = search_of(staged())
    assert [search.first_rounds(number) for number in (0, 1, 8)] == [LEG, 1, 1]


def test_the_better_half_goes_on_and_the_baseline_whatever_it_shows(staged: Callable[..., StudySpec]) -> None:
    probes = [0.1, 0.5, 0.2, 0.9, 0.8, 0.3, 0.4, 0.7, 0.6]
    records = [trial(0, [0.1, 0.1, 0.1, 0.1]), *(trial(n, [probes[n]]) for n in range(1, 9))]
    step = search_of(staged()).next(records, [COHORT])
    assert step is not None
    assert step.rounds == {3: 2, 4: 2, 7: 2, 8: 2}
    assert "4 of 8 go on from round 1 of 4" in step.why


def test_a_decision_that_a_kill_has_cut_short_is_the_same_again(staged: Callable[..., StudySpec]) -> None:
    """Two of the four had been given their rounds, and have even run, when the driver was killed."""
    probes = [0.1, 0.5, 0.2, 0.9, 0.8, 0.3, 0.4, 0.7, 0.6]
    records = [trial(0, [0.1, 0.1, 0.1, 0.1]), *(trial(n, [probes[n]]) for n in range(1, 9))]
    records[3] = trial(3, [0.9, 0.05])
    records[4] = trial(4, [0.8, 0.06])
    step = search_of(staged()).next(records, [COHORT])
    assert step is not None
    assert step.rounds == {7: 2, 8: 2}


def test_a_trial_that_failed_takes_no_place_at_a_rung(staged: Callable[..., StudySpec]) -> None:
    records = [trial(0, [0.1, 0.1, 0.1, 0.1]), *(trial(n, [n / 10]) for n in range(1, 9))]
    records[8] = replace(records[8], state="FAIL")
    step = search_of(staged()).next(records, [COHORT])
    assert step is not None
    assert list(step.rounds) == [4, 5, 6, 7]  # half of seven, rounded up


def test_a_floor_decides_before_the_objective(staged: Callable[..., StudySpec]) -> None:
    spec = staged(objective={"metric": "robust/acc", "mode": "max", "floors": {"clean/acc": 0.6}})
    records = [trial(0, [0.1, 0.1, 0.1, 0.1]), *(trial(n, [n / 10]) for n in range(1, 9))]
    for number in (7, 8):
        history = ((1, 0, {"probe/acc": number / 10, "clean/acc": 0.5}),)
        records[number] = replace(records[number], history=history)
    step = search_of(spec).next(records, [COHORT])
    assert step is not None
    assert list(step.rounds) == [3, 4, 5, 6]


def test_with_two_objectives_the_front_goes_on(staged: Callable[..., StudySpec]) -> None:
    """Points (clean, robust): 1 and 2 are beaten by nobody, 3 and 4 only by these."""
    both = [{"metric": metric, "mode": "max"} for metric in ("clean/acc", "robust/acc")]
    points = {1: (0.9, 0.2), 2: (0.5, 0.8), 3: (0.8, 0.1), 4: (0.4, 0.7), 5: (0.3, 0.1), 6: (0.2, 0.6), 7: (0.1, 0.1)}
    records = [trial(0, [0.1, 0.1, 0.1, 0.1])]
    records += [
        replace(trial(n, [0.0]), history=((1, 0, {"clean/acc": clean, "probe/acc": robust}),))
        for n, (clean, robust) in points.items()
    ]
    spec = staged(objective=both, search={"keep": 0.3}, limits={"trials": 8, "failures": 0, "concurrent": 1})
    step = search_of(spec).next(records, [Step("", first=0, new=8)])
    assert step is not None
    assert set(step.rounds) == {1, 2, 3}


# Further seeds


def test_while_the_spread_is_unknown_the_three_best_get_a_second_seed(staged: Callable[..., StudySpec]) -> None:
    records = [seeds(n, value, 0.0, 1) for n, value in enumerate((0.3, 0.8, 0.5, 0.7, 0.2))]
    step = search_of(staged(limits={"trials": 5})).next(records, [Step("", first=0, new=5)])
    assert step is not None
    assert step.rounds == {1: 2 * LEG, 3: 2 * LEG, 2: 2 * LEG}


def test_those_that_may_be_the_best_get_further_seeds(staged: Callable[..., StudySpec]) -> None:
    """0.80 and 0.79 with a spread of 0.05 cannot be told apart; 0.40 is eight standard errors behind."""
    records = [seeds(0, 0.4, 0.05, 2), seeds(1, 0.8, 0.05, 2), seeds(2, 0.79, 0.05, 2), seeds(3, 0.3, 0, 1)]
    step = search_of(staged(limits={"trials": 4})).next(records, [Step("", first=0, new=4)])
    assert step is not None
    assert step.rounds == {1: 3 * LEG, 2: 3 * LEG}
    assert step.why.startswith("a further seed: the best with probability: 1 (0.5")


def test_the_search_ends_when_one_is_the_best(staged: Callable[..., StudySpec]) -> None:
    records = [seeds(0, 0.4, 0.02, 4), seeds(1, 0.9, 0.02, 4), seeds(2, 0.5, 0.02, 4), seeds(3, 0.3, 0.02, 4)]
    assert search_of(staged(limits={"trials": 4})).next(records, [Step("", first=0, new=4)]) is None


def test_the_best_baseline_gets_seeds_until_the_difference_is_more_than_noise(
    staged: Callable[..., StudySpec],
) -> None:
    """0.15 ahead of the baseline's single seed with a spread of 0.05: t = 2.6 with 6 degrees of freedom, p = 0.04, and
    0.12 for the best of three pairs."""
    records = [seeds(0, 0.65, 0, 1), seeds(1, 0.8, 0.05, 3), seeds(2, 0.3, 0.05, 3), seeds(3, 0.2, 0.05, 3)]
    step = search_of(staged(limits={"trials": 4})).next(records, [Step("", first=0, new=4)])
    assert step is not None
    assert step.why == "a further seed: beside the best baseline"
    assert step.rounds == {0: 2 * LEG, 1: 4 * LEG}


def test_no_trial_gets_more_seeds_than_it_may(staged: Callable[..., StudySpec]) -> None:
    records = [seeds(0, 0.80, 0.05, 4), seeds(1, 0.79, 0.05, 4), seeds(2, 0.1, 0.05, 2)]
    assert search_of(staged(limits={"trials": 3})).next(records, [Step("", first=0, new=3)]) is None


def test_without_a_race_a_search_ends_with_its_last_cohort(staged: Callable[..., StudySpec]) -> None:
    records = [seeds(n, value, 0.0, 1) for n, value in enumerate((0.3, 0.8, 0.5, 0.7, 0.2))]
    spec = staged(limits={"trials": 5}, search={"race": False})
    assert search_of(spec).next(records, [Step("", first=0, new=5)]) is None


# Passes


def test_passes_are_never_exceeded(staged: Callable[..., StudySpec]) -> None:
    """A round costs 10, the last of a seed 40: the baseline 70, another trial 10 until the first rung. 70 + 2 · 10 are
    within 99, and a third would come to 100."""
    costs = [10, 10, 10, 40] * 4
    spec = staged(limits={"trials": 9, "passes": 99})
    step = search_of(spec, costs).next([], [])
    assert step is not None
    assert step.new == 3


def test_at_a_rung_the_best_go_on_that_there_is_room_for(staged: Callable[..., StudySpec]) -> None:
    """70 and 8 · 10 are used; one more round fits into 165, the second does not."""
    records = [trial(0, [0.1, 0.1, 0.1, 0.1]), *(trial(n, [n / 10]) for n in range(1, 9))]
    spec = staged(limits={"trials": 9, "passes": 165})
    step = search_of(spec, [10, 10, 10, 40] * 4).next(records, [COHORT])
    assert step is not None
    assert len(step.rounds) == 1
    after = [replace(one, rounds=2, round=2) if one.number in step.rounds else one for one in records]
    assert search_of(spec, [10, 10, 10, 40] * 4).next(after, [COHORT, step]) is None


# What samplers are told


def test_values_of_seeds_are_taken_out_of_their_means() -> None:
    """After one seed 0.7; after two a mean of 0.65, so the second had 0.6; after three 0.7 again: the third had 0.8."""
    record = trial(1, [0.3, 0.5, 0.6, 0.7, 0.65, 0.7])
    told = told_of(record, Goal("robust/acc", "max"))
    assert told == pytest.approx({1: 0.3, 2: 0.5, 3: 0.6, 4: 0.7, 5: 0.6, 6: 0.8})


def test_a_round_below_a_floor_is_no_number() -> None:
    record = replace(trial(1, [0.3]), history=((1, 0, {"probe/acc": 0.9, "clean/acc": 0.2}),))
    told = told_of(record, Goal("robust/acc", "max", (("clean/acc", 0.5),)))
    assert math.isnan(told[1])


# Bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search": {"rungs": [1, 4]}}, "search.rungs: must be below 4, the rounds of a seed's training, got 4"),
        ({"search": {"rungs": [2, 2]}}, "search.rungs: must rise, got [2, 2]"),
        ({"search": "fast"}, "search: must be auto, none, or a mapping, got 'fast'"),
        ({"search": {"rungs": [1]}, "pruner": {"name": "median"}}, "pruner.name: must be none where the rungs"),
        ({"search": {"rungs": [1]}, "sampler": {"name": "nsga2"}}, "sampler.name: must be another where trials"),
        ({"search": {"rungs": [1]}, "limits": {"patience": 3}}, "limits.patience: must be none where trials rest"),
        (
            {"objective": {"metric": "robust/acc", "mode": "max", "floors": {"clean/acccc": 0.5}}},
            "objective.floors.clean/acccc: unknown metric 'clean/acccc'; nearest: 'clean/acc'",
        ),
    ],
)
def test_parts_that_exclude_each_other(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=re.escape(words)):
        load_spec(str(write_study(tmp_path, study_dict(tmp_path, **changes))))


def test_a_point_that_people_ask_for_must_lie_in_the_space(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec()
    assert spec.point_from(["model.train_eps=0.1", "model.adversarial_weight=2"]) == {
        "model.adversarial_weight": 2,
        "model.train_eps": 0.1,
    }
    with pytest.raises(SpecError) as refused:
        spec.point_from(["model.train_eps=0.9", "model.lambda=2", "epochs", "model.adversarial_weight=99"])
    faults = "\n".join(refused.value.faults)
    assert "model.train_eps: must be in uniform [0.02, 0.3], got 0.9" in faults
    assert "model.lambda: is not searched" in faults
    assert "epochs: must be path=value" in faults
    assert "model.adversarial_weight: must be in log_uniform [0.01, 10.0], got 99" in faults


def test_a_confirmation_has_no_limit_of_the_search(staged: Callable[..., StudySpec], tmp_path: Path) -> None:
    """What the search had passes for says nothing of finalists, with more seeds and a stronger tier."""
    spec = staged(limits={"trials": 9, "passes": 5_000, "hours": 1})
    ledger: Any = SimpleNamespace(spec=spec.resolved())
    given = parser().parse_args(["tiny", "--storage", str(tmp_path)])
    found = confirmation(ledger, [seeds(1, 0.8, 0.05, 2)], given)
    assert (found.limits.passes, found.limits.hours) == (None, None)
    assert not found.staged
