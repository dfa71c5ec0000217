"""What is still to be given out: trials that wait for a worker, and those of the budget that are not made yet."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from study.database.ledger import Ledger
from study.planning.suggestions import Suggestions, as_point, next_overrides
from study.records import TrialRecord
from study.spec.study_spec import StudySpec


class Supply:
    """Gives unfinished trials out first, the lowest number before the others, and makes new ones then."""

    def __init__(
        self, spec: StudySpec, ledger: Ledger, suggestions: Suggestions, waiting: Sequence[TrialRecord], made: int
    ) -> None:
        """Args: waiting: unfinished trials, in order of number. made: trials that there are, finished ones too."""
        self._spec, self._ledger, self._suggestions = spec, ledger, suggestions
        self._waiting, self._made, self._trials = list(waiting), made, spec.trials

    @property
    def waiting(self) -> list[int]:
        """Numbers of the unfinished trials."""
        return [record.number for record in self._waiting]

    @property
    def left(self) -> int:
        """How many trials are still to be given out."""
        return len(self._waiting) + max(0, self._trials - self._made)

    def put_back(self, record: TrialRecord) -> None:
        """A trial that was given out waits again."""
        self._waiting = sorted([*self._waiting, record], key=lambda one: one.number)

    def take(self) -> tuple[int, str] | None:
        """A trial that runs from now on, as its number and its config in JSON; None if there is nothing left."""
        if self._waiting:
            record = self._waiting.pop(0)
            number = record.number
            self._ledger.resume(number)
            # Built anew rather than read back: device and place of the data are this driver's, all else is the same.
            config = self._spec.trial_config(self._overrides(record))
            return number, json.dumps(config.model_dump(mode="json"))
        return self._make() if self.left else None

    def _overrides(self, record: TrialRecord) -> Mapping[str, Any]:
        """Of a trial that goes on; a baseline may lie behind a budget that was made smaller since."""
        listed = record.baseline and record.number < len(self._spec.baselines)
        return self._spec.baselines[record.number] if listed else record.overrides

    def _make(self) -> tuple[int, str]:
        overrides, baseline = next_overrides(self._spec, self._suggestions, self._made)
        built = self._spec.trial_config(overrides)
        config = built.model_dump(mode="json")
        inside = as_point(overrides, self._suggestions.distributions) is not None
        self._made += 1
        number = self._ledger.add(
            overrides=overrides,
            config=config,
            rounds=built.rounds,
            baseline=baseline,
            params=overrides if inside else {},
            distributions=self._suggestions.distributions if inside else {},
        )
        return number, json.dumps(config)
