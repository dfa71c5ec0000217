"""How a search spends its budget: which trials begin, which go on, which get a further seed, and which is enough.

A search goes in steps. A step gives work to several trials at once, and the next one is worked out when all of that is
done: from the trials as they stand then and from nothing else, so that neither the order in which workers end nor a
kill changes what a study does. Trials begin in cohorts. Of a cohort the best share goes on at each rung, the others
rest where they are. Once all cohorts have begun, those that may be the best get further seeds, one at a time, until one
is the best with the wanted probability.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from study.planning.cost import Passes, passes_of
from study.ranking.label_free import KAPPA, guarded, ranked_by_kappa
from study.ranking.objectives import ALPHA, pooled, upward
from study.ranking.ranking import fronts, rank
from study.records import TrialRecord
from study.spec.objectives import below, round_value
from study.spec.study_spec import StudySpec

UNKNOWN_SPREAD = 3
"""Trials that get a second seed, the best ones, while the spread over seeds is not known; degrees of freedom that it
must have to be known."""
CONTENDERS = 4
"""Trials that get a further seed in one step, at most."""


@dataclass(frozen=True)
class Step:
    """What is given out at once."""

    why: str
    rounds: Mapping[int, int] = field(default_factory=dict)
    """Trial → rounds that it comes to."""
    first: int = 0
    """Number of the first new trial."""
    new: int = 0
    """Trials that begin."""

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "rounds": {str(number): rounds for number, rounds in self.rounds.items()}}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Step":
        rounds = {int(number): int(count) for number, count in stored["rounds"].items()}
        return cls(stored["why"], rounds, int(stored["first"]), int(stored["new"]))


class Search:
    """The rule of a study's search. What it says depends on its arguments alone."""

    def __init__(self, spec: StudySpec, costs: Callable[[TrialRecord | None], Sequence[Passes]]) -> None:
        """Args: costs: of each round of a trial, or of the trial as written."""
        config = spec.trial_config({})
        self._spec, self._costs, self._leg, self._most = spec, costs, config.leg_rounds, config.rounds
        self._levels = [*spec.rungs, self._leg]
        """Rounds at which a cohort is looked at; the last one ends a seed."""

    def first_rounds(self, number: int) -> int:
        """Rounds that a new trial is given; a baseline gets a whole leg."""
        return self._leg if number < len(self._spec.baselines) else self._levels[0]

    def next(self, records: Sequence[TrialRecord], steps: Sequence[Step]) -> Step | None:
        """The step after these, once all that they gave out is done; None: the search is over.

        Args: records: all trials, by number.
        """
        cohorts = [step for step in steps if step.new]
        if cohorts and (step := self._rungs(cohorts[-1], records)):
            return self._within_passes(step, records)
        begun = sum(step.new for step in cohorts)
        if begun < self._spec.trials:
            size = min(self._spec.cohort, self._spec.trials - begun)
            if self._spec.trials - begun - size < size // 2:
                size = self._spec.trials - begun  # no cohort of a few that have nobody to be compared with
            new = Step(f"cohort {len(cohorts) + 1} begins", first=begun, new=size)
            if fitting := self._within_passes(new, records):
                return fitting
        return self._within_passes(step, records) if (step := self._race(records)) else None

    # Rungs

    def _rungs(self, cohort: Step, records: Sequence[TrialRecord]) -> Step | None:
        """The next rung of a cohort; None if all that go on have come to the end of a leg."""
        alive = [r for r in records if cohort.first <= r.number < cohort.first + cohort.new and r.state != "FAIL"]
        for level, following in pairwise(self._levels):
            ordered = self._ordered([record for record in alive if not record.baseline], level)
            best = ordered[: math.ceil(self._spec.search.keep * len(ordered))]
            alive = [record for record in alive if record.baseline or record in best]
            if waiting := [record.number for record in alive if record.rounds < following and not record.finished]:
                why = f"{len(best)} of {len(ordered)} go on from round {level} of {self._leg}, baselines aside"
                return Step(why, dict.fromkeys(waiting, following))
        return None

    def _ordered(self, records: Sequence[TrialRecord], level: int) -> list[TrialRecord]:
        """By what they had reported by a round, best first."""
        objectives = self._spec.objectives
        points = {record.number: self._at(record, level) for record in records}
        places = fronts(points) if len(objectives) > 1 else {}

        def key(record: TrialRecord) -> tuple[Any, ...]:
            point = points[record.number]
            return point == self._worst, places.get(record.number, 0), [-value for value in point], record.number

        return sorted(records, key=key)

    @property
    def _worst(self) -> tuple[float, ...]:
        return (-math.inf,) * len(self._spec.objectives)

    def _at(self, record: TrialRecord, level: int) -> tuple[float, ...]:
        """Objectives at a round, larger is better; where one is unknown, or the guards do not hold: the worst."""
        metrics = next((own for round_, _, own in record.history if round_ == level), {})
        objectives = self._spec.objectives
        found = [value for goal in objectives if (value := round_value(goal.metric, metrics)) is not None]
        floors = [floor for goal in objectives for floor in goal.floors]
        floors += [("select/feasible", 0.5)] if guarded(objectives) else []
        low = below(metrics, floors)
        return self._worst if low or len(found) < len(objectives) else upward(found, objectives)

    # Further seeds

    def _race(self, records: Sequence[TrialRecord]) -> Step | None:
        """Further seeds for those that may be the best; None if one is the best with the wanted probability, or no
        trial that may be is short of seeds."""
        if self._most == self._leg or not self._spec.search.race:
            return None
        objectives = self._spec.objectives
        rows = [row for row in rank(records, objectives) if row.rank is not None]
        ranked = [row.record for row in rows]
        if len(objectives) > 1:
            return self._further("on the front", [row.record for row in rows if row.rank == 1])
        if len(ranked) < 2:
            return None
        metric = KAPPA if ranked_by_kappa(ranked, objectives) else objectives[0].metric
        shared = pooled(ranked, metric)
        if shared is None or shared.freedom < UNKNOWN_SPREAD:
            return self._further("the best so far, to learn how much seeds differ", ranked[:UNKNOWN_SPREAD])
        mode = "max" if metric == KAPPA else objectives[0].mode
        means = [record.metrics[metric] * (1 if mode == "max" else -1) for record in ranked]
        chances = shared.best_probabilities(means, [record.seeds for record in ranked])
        by_chance = sorted(range(len(ranked)), key=lambda one: (-chances[one], one))
        top, wanted = by_chance[0], self._spec.search.confidence
        if chances[top] >= wanted:
            return self._beside_baseline(ranked, top, means, shared)
        open_ = [ranked[one] for one in by_chance if chances[one] >= (1 - wanted) / 2]
        said = ", ".join(f"{ranked[one].number} ({chances[one]:.2f})" for one in by_chance[:CONTENDERS])
        return self._further(f"the best with probability: {said}", open_)

    def _beside_baseline(
        self, ranked: Sequence[TrialRecord], top: int, means: Sequence[float], shared: Any
    ) -> Step | None:
        """A further seed for the best baseline and the trial that beats it, until the difference is more than noise."""
        baselines = [one for one, record in enumerate(ranked) if record.baseline and one != top]
        if ranked[top].baseline or not baselines:
            return None
        other = max(baselines, key=lambda one: means[one])
        pairs = (len(ranked) - 1) * len(baselines)
        p = shared.p_value(means[top] - means[other], ranked[top].seeds, ranked[other].seeds, pairs)
        if p <= ALPHA:
            return None
        return self._further("beside the best baseline", [ranked[other], ranked[top]])

    def _further(self, why: str, records: Sequence[TrialRecord]) -> Step | None:
        """One seed more for the first of them that can have it."""
        able = [record for record in records if record.rests and record.rounds < self._most][:CONTENDERS]
        if not able:
            return None
        return Step(f"a further seed: {why}", {record.number: record.rounds + self._leg for record in able})

    # Passes

    def expected(self) -> int:
        """Passes that the search takes, if as many as can in a step get all the seeds there are."""
        costs, baselines = self._costs(None), min(len(self._spec.baselines), self._spec.trials)
        whole = passes_of(costs[: self._leg])
        total, going = baselines * whole, float(self._spec.trials - baselines)
        for before, level in pairwise([0, *self._levels]):
            total += math.ceil(going) * passes_of(costs[before:level])
            going *= self._spec.search.keep
        if self._spec.search.race:
            total += CONTENDERS * passes_of(costs[self._leg :])
        limit = self._spec.limits.passes
        return total if limit is None else min(total, limit)

    def used(self, records: Sequence[TrialRecord]) -> int:
        """Forward and backward passes of the rounds that trials were given."""
        return sum(passes_of(self._costs(record)[: record.given]) for record in records)

    def _within_passes(self, step: Step, records: Sequence[TrialRecord]) -> Step | None:
        """As much of a step as `limits.passes` has room for; None if that is nothing."""
        limit = self._spec.limits.passes
        if limit is None:
            return step
        room, rounds, known = limit - self.used(records), dict[int, int](), {r.number: r for r in records}
        for number, count in step.rounds.items():
            cost = passes_of(self._costs(known[number])[known[number].rounds : count])
            if cost <= room:
                rounds[number], room = count, room - cost
        new = 0
        while new < step.new:
            room -= passes_of(self._costs(None)[: self.first_rounds(step.first + new)])
            if room < 0:
                break
            new += 1
        return Step(step.why, rounds, step.first, new) if rounds or new else None
