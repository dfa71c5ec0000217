"""What is still to be given out: trials that wait for a worker, those of the budget that are not made yet, and where
trials begin in cohorts what the search says next."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from study.database.ledger import Ledger
from study.driver.round_costs import RoundCosts
from study.planning.cost import passes_of
from study.planning.search import Search, Step
from study.planning.suggestions import Suggestions, as_point
from study.records import TrialRecord
from study.spec.study_spec import StudySpec


class Supply:
    """Gives unfinished trials out first, the lowest number before the others, and makes new ones then."""

    def __init__(
        self,
        spec: StudySpec,
        ledger: Ledger,
        suggestions: Suggestions,
        records: Sequence[TrialRecord],
        open_: Collection[int],
        costs: RoundCosts,
    ) -> None:
        """Args: records: all trials, by number. open_: numbers of those that are given out."""
        self._spec, self._ledger, self._suggestions, self._open, self._costs = spec, ledger, suggestions, open_, costs
        self._made, self._trials = len(records), spec.trials
        self._search = Search(spec, costs) if spec.staged else None
        self._steps: list[Step] = []
        self._over = False
        self._full = False
        """Whether `limits.passes` has no room for another trial; it never has again."""
        if self._search:
            self._steps = [Step.from_json(stored) for stored in ledger.steps()]
            records = self._granted(records)
        unfinished = [record for record in records if not record.finished]
        self._waiting = [record for record in unfinished if not record.rests]
        self._resting = len(unfinished) - len(self._waiting)
        if self._to_make and self._steps:
            self._suggestions.look_back(records, self._steps[-1].first)

    def _granted(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """The trials with what the last step has given them, of which a kill may have kept some."""
        rounds = self._steps[-1].rounds if self._steps else {}
        for record in records:
            if not record.finished and record.rounds < rounds.get(record.number, 0):
                self._ledger.grant(record.number, rounds[record.number])
        return self._ledger.records() if rounds else list(records)

    @property
    def waiting(self) -> list[int]:
        """Numbers of the trials that were interrupted."""
        return [record.number for record in self._waiting]

    @property
    def left(self) -> int:
        """Trials that are not given out and have no final state, made or not."""
        return 0 if self._over else len(self._waiting) + self._resting + self.unmade

    @property
    def over(self) -> bool:
        """Whether nothing is given out any more, whatever becomes of open trials."""
        return self._over

    @property
    def unmade(self) -> int:
        """Trials of the budget that were not begun."""
        return max(0, self._trials - self._made)

    @property
    def _to_make(self) -> int:
        """Trials that can be made now."""
        if self._search is None:
            return self.unmade
        return sum(step.new for step in self._steps) - self._made

    def put_back(self, record: TrialRecord) -> None:
        """A trial that was given out waits again, or rests until the search says how it goes on."""
        if record.rests:
            self._resting += 1
        else:
            self._waiting = sorted([*self._waiting, record], key=lambda one: one.number)

    def take(self) -> tuple[int, str] | None:
        """A trial that runs from now on, as its number and its config in JSON; None if there is nothing now."""
        while not self._over:
            if self._waiting:
                return self._resumed(self._waiting.pop(0))
            if self._to_make > 0 and not self._full:
                if made := self._make():
                    return made
                self._full = True
            if self._open:
                return None
            goes_on = self._search if not self._full else None
            step = goes_on.next(self._ledger.records(), self._steps) if goes_on else None
            if step is None:
                self._over = True
            else:
                self._begin(step)
        return None

    def _begin(self, step: Step) -> None:
        """Stores a step, and then gives out what it says: after a kill the next driver does that again."""
        self._ledger.add_step(len(self._steps), step.as_json())
        self._steps.append(step)
        for number, rounds in step.rounds.items():
            self._ledger.grant(number, rounds)
        if step.new:
            self._suggestions.look_back(self._ledger.records(), step.first)
        self._waiting = [self._ledger.record(number) for number in sorted(step.rounds)]
        self._resting -= len(self._waiting)

    def _resumed(self, record: TrialRecord) -> tuple[int, str]:
        self._ledger.resume(record.number)
        # Built anew rather than read back: device and place of the data are this driver's, all else is the same.
        config = self._spec.trial_config(self._overrides(record))
        return record.number, json.dumps(config.model_dump(mode="json"))

    def _overrides(self, record: TrialRecord) -> Mapping[str, Any]:
        """Of a trial that goes on; a baseline may lie behind a budget that was made smaller since."""
        listed = record.baseline and record.number < len(self._spec.baselines)
        return self._spec.baselines[record.number] if listed else record.overrides

    def _make(self) -> tuple[int, str] | None:
        """A new trial; None if `limits.passes` has no room for it."""
        baseline, queued = self._made < len(self._spec.baselines), self._ledger.queued()
        index = next(iter(queued), None) if not baseline else None
        given = None if index is None else queued[index]
        overrides = self._suggestions.next_overrides(self._made, given)
        built = self._spec.trial_config(overrides)
        config = built.model_dump(mode="json")
        rounds = self._search.first_rounds(self._made) if self._search else built.rounds
        if not self._room_for(overrides, rounds):
            return None
        inside = as_point(overrides, self._suggestions.distributions) is not None
        self._made += 1
        number = self._ledger.add(
            overrides=overrides,
            config=config,
            rounds=rounds,
            leg=built.leg_rounds if self._search else 0,
            baseline=baseline,
            queued=index,
            params=overrides if inside else {},
            distributions=self._suggestions.distributions if inside else {},
        )
        return number, json.dumps(config)

    def _room_for(self, overrides: Mapping[str, Any], rounds: int) -> bool:
        if self._spec.limits.passes is None:
            return True
        used = sum(passes_of(self._costs(record)[: record.given]) for record in self._ledger.records())
        return used + passes_of(self._costs.of(overrides)[:rounds]) <= self._spec.limits.passes
