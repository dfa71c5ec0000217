"""Ranks, fronts and what a difference is worth; every expected number worked out by hand."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from study.ranking.label_free import NOT_CORRECTNESS, preferred, ranked_by_kappa, tie_error, tied
from study.ranking.objectives import goals
from study.ranking.ranking import best, main_budget, rank, scores, since_improvement
from study.ranking.standing import Standing
from study.ranking.summary import short_names, summary
from study.records import Goal, State, TrialRecord

ROBUST = [Goal("robust/acc", "max")]
BOTH = [Goal("clean/acc", "max"), Goal("robust/acc", "max")]
LABEL_FREE = [Goal("select/pra", "max")]


def trial(
    number: int,
    robust: float,
    clean: float = 0.9,
    *,
    state: State = "COMPLETE",
    spread: float | None = 0.02,
    baseline: bool = False,
    budget: str = "a",
) -> TrialRecord:
    metrics = {"clean/acc": clean, "robust/acc": robust}
    if spread is not None:
        metrics |= {"spread/robust/acc": spread, "spread/clean/acc": spread}
    return TrialRecord(
        number=number,
        state=state,
        values=(robust,) if state == "COMPLETE" else (),
        overrides={"model.adversarial_weight": number / 10},
        baseline=baseline,
        config={"repeats": 2},
        round=4 if state == "COMPLETE" else 2,
        rounds=4,
        metrics=metrics,
        budget=budget,
        failure="loss is nan" if state == "FAIL" else None,
    )


def test_without_labels_a_collapsed_trial_is_not_ranked_however_high_it_scores() -> None:
    def guarded(number: int, pra: float, holds: float) -> TrialRecord:
        metrics = {"select/pra": pra, "select/feasible": holds}
        return replace(trial(number, pra), metrics=metrics, values=(pra,))

    records = [guarded(0, 0.6, 1.0), guarded(1, 0.9, 0.0), guarded(2, 0.7, 0.5)]
    goal = [Goal("select/pra", "max")]
    rows = rank(records, goal)
    assert [(row.record.number, row.rank) for row in rows] == [(2, 1), (0, 2), (1, None)]
    assert rows[-1].note.startswith("not feasible")
    assert rank(records, [Goal("robust/acc", "max")])[0].record.number == 1
    found = Standing(goal, records).best
    assert found is not None
    assert found.number == 2


def judged(number: int, pra: float, weights: tuple[float, float] = (1.0, 1.0), **metrics: float) -> TrialRecord:
    """A trial of two seeds with `select/…` scores, λ and γ, and a spread of 0.02 that further metrics may replace."""
    own = {"pra": pra, "spread": 0.02, "utility": 1.0, "feasible": 1.0, "reliable": 1.0, **metrics}
    known = {name: value for name, value in own.items() if name == "kappa"}
    scored = {f"select/{name}": value for name, value in own.items() if name not in known}
    scored["spread/select/pra"] = scored.pop("select/spread")
    overrides = {"model.adversarial_weight": weights[0], "model.mitigator_weight": weights[1]}
    metrics = {**scored, **{f"robust/{name}": value for name, value in known.items()}}
    config = {"model": {"name": "ar_dmvc_am"}, "repeats": 2}
    return replace(trial(number, pra), metrics=metrics, values=(pra,), overrides=overrides, config=config)


def picked(*records: TrialRecord) -> list[int]:
    ranked = [row.record for row in rank(records, LABEL_FREE) if row.rank is not None]
    return [record.number for record in preferred(ranked, LABEL_FREE)]


def test_trials_within_a_standard_error_are_told_apart_by_utility_then_by_weaker_regularisation() -> None:
    best_one, strong, weak = judged(0, 0.90), judged(1, 0.89, (3, 1)), judged(2, 0.885, (0.1, 0.2))
    too_low, useful = judged(3, 0.87, (0, 0)), judged(4, 0.881, (9, 9), utility=1.0)
    assert picked(best_one, strong, weak, too_low) == [2, 0, 1, 3]
    less_useful = [replace(r, metrics={**r.metrics, "select/utility": 0.95}) for r in (best_one, strong, weak)]
    assert picked(*less_useful, useful, too_low) == [4, 2, 0, 1, 3]
    assert "within one standard error (0.020) of the best: trial 1, 2; of these and the best, trial 2" in summary(
        [best_one, strong, weak, too_low], LABEL_FREE
    )
    # Four trials: that of the better two counts, √((0² + 0.02²) / 2) for two seeds.
    steady, poor = judged(0, 0.90, spread=0.0), judged(3, 0.5, (0, 0), spread=0.4)
    assert tie_error([steady, strong, weak, poor], LABEL_FREE) == pytest.approx(0.02 / math.sqrt(2))
    assert picked(steady, strong, judged(2, 0.885, (0, 0)), poor) == [0, 1, 2, 3]
    # Seeds that agree leave exact ties. One seed has no standard error, and another objective no such rule.
    assert picked(judged(0, 0.90, spread=0.0), judged(1, 0.90, (0, 0), spread=0.0), judged(2, 0.89)) == [1, 0, 2]
    alone = [judged(0, 0.90), judged(1, 0.90, (0, 0))]
    for record in alone:
        del record.metrics["spread/select/pra"]
    assert picked(*alone) == [0, 1]
    assert "standard error" not in summary(alone, LABEL_FREE)
    assert [r.number for r in tied([trial(0, 0.9), trial(1, 0.9)], ROBUST)] == [0]
    # Where one does not set the weights, its λ + γ is not known to be smaller.
    unset = replace(weak, overrides={})
    assert picked(best_one, strong, unset) == [0, 1, 2]


def test_where_the_reference_is_unreliable_kappa_ranks() -> None:
    numbers = [
        {"pra": 0.9, "kappa": 0.1, "seed_agreement": 0.9, "clean_loss": 0.1},
        {"pra": 0.5, "kappa": 0.8, "seed_agreement": 0.5, "clean_loss": 0.5},
        {"pra": 0.7, "kappa": 0.6, "seed_agreement": 0.2, "clean_loss": 2.0},
    ]
    records = [judged(number, reliable=0.0, **own) for number, own in enumerate(numbers)]
    assert ranked_by_kappa(records, LABEL_FREE)
    assert not ranked_by_kappa(records, ROBUST)
    assert [(row.record.number, row.rank) for row in rank(records, LABEL_FREE)] == [(1, 1), (2, 2), (0, 3)]
    assert picked(*records) == [1, 2, 0]
    assert "agree too little for their vote to judge trials: trials are ranked by robust/kappa" in summary(
        records, LABEL_FREE
    )
    second = [replace(r, metrics={**r.metrics, "select/second_partition": 1.0}) for r in records]
    assert "hold a second stable partition, and the vote may be for the wrong one: trials" in summary(
        second, LABEL_FREE
    )
    # A trial without the number comes last.
    del records[1].metrics["robust/kappa"]
    assert [row.record.number for row in rank(records, LABEL_FREE)] == [2, 0, 1]
    # What is not feasible still has no rank.
    records[1] = replace(records[1], metrics={**records[1].metrics, "select/feasible": 0.0})
    assert [(row.record.number, row.rank) for row in rank(records, LABEL_FREE)] == [(2, 1), (0, 2), (1, None)]
    # The objective's differences say nothing of an order that it did not make.
    baseline = replace(records[0], baseline=True)
    assert "differs" not in summary([baseline, records[2]], LABEL_FREE)
    both = [Goal("select/utility", "max"), Goal("select/pra", "max")]
    pareto = [replace(record, values=(1.0, *record.values)) for record in records]
    assert "agree too little for their vote" in summary(pareto, both)
    reliable = [judged(number, **own) for number, own in enumerate(numbers)]
    assert [row.record.number for row in rank(reliable, LABEL_FREE)] == [0, 2, 1]


def test_a_summary_with_pra_says_that_agreement_is_not_correctness() -> None:
    assert summary([judged(0, 0.9)], LABEL_FREE).endswith(NOT_CORRECTNESS)
    assert summary([judged(0, 0.9)], ROBUST).endswith(NOT_CORRECTNESS)
    assert NOT_CORRECTNESS not in summary([trial(0, 0.9)], ROBUST)


def test_what_is_not_feasible_is_said() -> None:
    collapsed = replace(judged(0, 0.9, feasible=0.0), baseline=True)
    assert summary([collapsed], LABEL_FREE).startswith("No trial is feasible (1 COMPLETE)")
    # Under another objective such a trial is no less a trial: what it lacks is the number.
    assert summary([replace(collapsed, values=())], ROBUST) == "No complete trial to rank (1 COMPLETE)."
    text = summary([collapsed, judged(1, 0.5)], LABEL_FREE)
    assert "baseline trial 0 has no rank: not feasible" in text


def test_only_complete_trials_of_one_budget_are_ranked() -> None:
    records = [
        trial(0, 0.3),
        trial(1, 0.9, state="PRUNED"),
        trial(2, 0.5),
        trial(3, 0.99, budget="b"),
        trial(4, 0.8, state="FAIL"),
        trial(5, 0.5),
        trial(6, math.nan),
        trial(7, 0.7, state="RUNNING"),
    ]
    rows = rank(records, ROBUST)
    assert [(row.record.number, row.rank) for row in rows] == [
        (2, 1), (5, 1), (0, 3), (3, None), (6, None), (1, None), (4, None), (7, None),
    ]  # fmt: skip
    notes = {row.record.number: row.note for row in rows}
    assert notes[1] == "stopped early at round 2/4"
    assert notes[3] == "other evaluation budget (b): not compared"
    assert notes[4] == "loss is nan (round 2/4)"
    assert notes[6] == "an objective is missing or not finite"
    assert notes[7] == "running, round 2/4"
    assert [row.record.number for row in rows if not row.main_budget] == [3]


def test_smaller_is_better_when_the_objective_says_so() -> None:
    top = best([trial(0, 0.3), trial(1, 0.2), trial(2, 0.5)], [Goal("robust/acc", "min")])
    assert top is not None
    assert top.number == 1
    assert best([], ROBUST) is None
    assert best([trial(0, 0.3, state="PRUNED")], ROBUST) is None


def test_the_budget_of_most_trials_is_the_main_one_and_the_newer_of_equals() -> None:
    assert main_budget([trial(0, 0, budget="a"), trial(1, 0, budget="b"), trial(2, 0, budget="b")]) == "b"
    assert main_budget([trial(0, 0, budget="a"), trial(1, 0, budget="b")]) == "b"
    assert main_budget([trial(0, 0, budget="a"), trial(1, 0, budget="b", state="PRUNED")]) == "a"
    assert main_budget([]) == ""


def test_fronts_of_two_objectives() -> None:
    #       clean: 0.9 0.8 0.7 0.8 ; robust: 0.1 0.3 0.2 0.3 → 0, 1, 3 are beaten by none; 2 by 1
    records = [trial(0, 0.1, 0.9), trial(1, 0.3, 0.8), trial(2, 0.2, 0.7), trial(3, 0.3, 0.8)]
    records = [TrialRecord(**{**vars(r), "values": (r.metrics["clean/acc"], r.metrics["robust/acc"])}) for r in records]
    assert {row.record.number: row.rank for row in rank(records, BOTH)} == {0: 1, 1: 1, 3: 1, 2: 2}
    assert scores(records[0], BOTH) == (0.9, 0.1)
    text = summary(records, BOTH)
    assert "Pareto front (3 of 4 complete trials)" in text
    assert "trial 2" not in text


def test_a_difference_that_chance_makes_is_no_finding() -> None:
    """√((2 · 0.04² + 0.03² + 0.02²) / 4) · √(2 / 2) = 0.0335 with 4 degrees of freedom: t = 1.19 and 8.94, p = 0.298
    and 0.00087, each times the three rivals of each of two baselines."""
    records = [trial(0, 0.46, spread=0.04, baseline=True), trial(1, 0.2, spread=0.04, baseline=True)]
    records += [trial(2, 0.5, spread=0.03), trial(3, 0.4)]
    lines = summary(records, ROBUST).splitlines()
    best_line = "best trial 2 robust/acc 0.500 ± 0.030 clean/acc 0.900 ± 0.030 adversarial_weight 0.2"
    assert " ".join(lines[1].split()) == best_line
    assert "trial 3" not in "".join(lines)
    noise = "warning: robust/acc differs from baseline trial 0 by 0.040, within noise (p = 1.000): not a finding"
    assert lines[4] == noise
    assert lines[5] == "robust/acc differs from baseline trial 1 by 0.300, more than noise (p = 0.005)"


def test_the_summary_ends_with_what_is_likely_best() -> None:
    """Two seeds that vary by 0.1: an error of 0.0707 each. Of the variance 0.02 of the means a quarter is noise:
    P = Φ(√0.75 · 0.2 / (√2 · 0.0707)) = Φ(1.732) = 0.958; of 0.0032 all is."""
    likely = summary([trial(0, 0.9, spread=0.1, baseline=True), trial(1, 0.7, spread=0.1)], ROBUST).splitlines()[-1]
    assert likely == "likely best, with its probability under the noise of seeds: trial 0 (0.96)"
    likely = summary([trial(0, 0.78, spread=0.1, baseline=True), trial(1, 0.7, spread=0.1)], ROBUST).splitlines()[-1]
    assert likely == "likely best: any of them, the trials differ by no more than their seeds do"


@pytest.mark.parametrize("searched", [12, 25])
@pytest.mark.parametrize("baselines", [1, 2])
def test_equal_settings_are_seldom_told_apart_and_different_ones_are(searched: int, baselines: int) -> None:
    """2,000 studies of two seeds, all settings equal: a claim in at most 5 % (and two standard errors of that). With
    one trial ten standard deviations above all others nearly all say so."""

    def claims(values: np.ndarray) -> bool:
        means, spreads = values.mean(axis=1), values.std(axis=1, ddof=1)
        records = [
            trial(number, mean, spread=own, baseline=number < baselines)
            for number, (mean, own) in enumerate(zip(means.tolist(), spreads.tolist(), strict=True))
        ]
        return "more than noise" in summary(records, ROBUST)

    studies = np.random.default_rng(5).normal(0.7, 0.05, (2000, baselines + searched, 2))
    assert np.mean([claims(study) for study in studies]) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)
    studies[:, -1] += 0.5
    assert np.mean([claims(study) for study in studies[:200]]) >= 0.95


def test_one_seed_and_a_baseline_on_top_are_said() -> None:
    text = summary([trial(0, 0.4, spread=None, baseline=True), trial(1, 0.9, spread=None)], ROBUST)
    assert "warning: robust/acc differs from baseline trial 0 by 0.500; one seed per trial" in text
    text = summary([trial(0, 0.9, baseline=True), trial(1, 0.4)], ROBUST)
    assert "warning: the best trial is a baseline; no searched trial is better" in text
    assert summary([trial(0, 0.9, state="FAIL")], ROBUST) == "No complete trial to rank (1 FAIL)."
    assert "Left out: 1 complete" in summary([trial(0, 0.9), trial(1, 0.4), trial(2, 0.4, budget="b")], ROBUST)


def test_names_are_as_short_as_they_can_be() -> None:
    names = short_names(["model.train_eps", "model.head.lr", "attack.head.lr", "seed"])
    assert names == {
        "model.train_eps": "train_eps", "model.head.lr": "model.head.lr", "attack.head.lr": "attack.head.lr",
        "seed": "seed",
    }  # fmt: skip


def test_objectives_of_a_stored_spec() -> None:
    assert goals({"objective": {"metric": "gan/flip", "mode": "max"}}) == [Goal("gan/flip", "max")]
    assert goals({"objective": [{"metric": "a/acc", "mode": "max"}, {"metric": "b/acc", "mode": "min"}]}) == [
        Goal("a/acc", "max"), Goal("b/acc", "min"),
    ]  # fmt: skip
    assert goals({}) == []


def ended(*trials: tuple[float, ...] | str | None, budgets: str = "") -> list[TrialRecord]:
    """Trials that ended one after the other: with these scores, PRUNED (None) or in another state."""
    return [
        TrialRecord(
            number=number,
            state=one if isinstance(one, str) else "PRUNED" if one is None else "COMPLETE",  # type: ignore[arg-type]
            values=one if isinstance(one, tuple) else (),
            budget=budgets[number] if budgets else "a",
            ended=1000 + number,
        )
        for number, one in enumerate(trials)
    ]


def test_finished_trials_since_the_best() -> None:
    assert since_improvement([], ROBUST) == 0
    assert since_improvement(ended((0.3,)), ROBUST) == 0
    assert since_improvement(ended((0.3,), (0.2,), (0.3,)), ROBUST) == 2  # as good is not better
    assert since_improvement(ended((0.3,), (0.2,), (0.4,)), ROBUST) == 0
    assert since_improvement(ended((0.3,), (0.4,), None, (0.1,)), ROBUST) == 2  # pruned ones count: they were no better
    assert since_improvement(ended((0.3,), "FAIL", "RUNNING", (0.1,)), ROBUST) == 1
    assert since_improvement(ended(None, None, "FAIL"), ROBUST) == 0  # there is no best yet
    assert since_improvement(ended(None, (0.3,), None), ROBUST) == 1
    assert since_improvement(ended((0.3,), (0.2,), (0.4,)), [Goal("gan/acc", "min")]) == 1
    assert since_improvement(ended((math.inf,), (0.2,), (0.1,)), ROBUST) == 1


def test_trials_count_in_the_order_in_which_they_ended() -> None:
    first, second, third = ended((0.3,), (0.5,), (0.4,))
    late = TrialRecord(**{**vars(first), "ended": 2000})
    assert since_improvement([late, second, third], ROBUST) == 2  # 0.5, 0.4, 0.3
    assert since_improvement([first, second, third], ROBUST) == 1  # 0.3, 0.5, 0.4


def test_with_two_objectives_a_new_compromise_is_better() -> None:
    one, other, worse, equal, top = (0.9, 0.1), (0.1, 0.9), (0.1, 0.8), (0.9, 0.1), (0.9, 0.9)
    assert since_improvement(ended(one, other), BOTH) == 0
    assert since_improvement(ended(one, other, worse, equal), BOTH) == 2
    assert since_improvement(ended(one, other, worse, equal, top), BOTH) == 0
    assert since_improvement(ended(one, top, other, worse), BOTH) == 2  # what the top one beats is no longer asked
    mixed = [Goal("clean/acc", "max"), Goal("robust/flip", "min")]
    assert since_improvement(ended((0.5, 0.5), (0.5, 0.6), (0.4, 0.4)), mixed) == 0
    assert since_improvement(ended((0.5, 0.5), (0.5, 0.6), (0.4, 0.5)), mixed) == 2


def test_a_trial_of_another_budget_is_never_the_better_one() -> None:
    assert since_improvement(ended((0.3,), (0.9,), (0.4,), (0.5,), budgets="abaa"), ROBUST) == 0
    assert since_improvement(ended((0.3,), (0.9,), (0.2,), (0.1,), budgets="abaa"), ROBUST) == 3


def test_standing_says_what_the_ranking_says_after_every_trial() -> None:
    """Against `best` and a count over all, on trials whose order, ties, budgets and news are drawn at random."""
    draw = random.Random(7)
    states: list[State] = ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING"]
    for objectives in (ROBUST, BOTH, [Goal("robust/acc", "min"), Goal("clean/acc", "max")]):
        standing, known = Standing(objectives), {}
        for number in [*draw.sample(range(60), 60), *draw.choices(range(60), k=60)]:
            robust, clean = draw.choice([0.1, 0.2, 0.3, math.nan]), draw.choice([0.7, 0.8, 0.9])
            record = trial(number, robust, clean, state=draw.choice(states), budget=draw.choice("ab"))
            known[number] = replace(record, values=())
            standing.keep(known[number])
            assert standing.best == best(known.values(), objectives)
            assert standing.finished == sum(one.finished for one in known.values())
            assert standing.states["PRUNED"] == sum(one.state == "PRUNED" for one in known.values())
