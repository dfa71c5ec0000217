"""What each round of a trial costs, as far as the driver can tell."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from study.planning.cost import Passes, round_costs
from study.planning.preflight import resolved_trial
from study.records import TrialRecord
from study.spec.study_spec import StudySpec

logger = logging.getLogger(__name__)


class RoundCosts:
    """Passes of each round of the study's trials."""

    def __init__(self, spec: StudySpec) -> None:
        self._spec = spec
        self._known: dict[int, Sequence[Passes]] = {}

    def __call__(self, record: TrialRecord | None) -> Sequence[Passes]:
        """Of each round of a trial, None: of the one as written; equal ones where its data cannot be read here."""
        number = -1 if record is None else record.number
        if number not in self._known:
            try:
                self._known[number] = self.of({} if record is None else record.overrides)
            except Exception as error:  # it is for the screen, and must not cost a study
                logger.debug("the cost of trial %d is not known: %s", number, error)
                self._known[number] = [Passes(1, 0)] * (1 if record is None else record.rounds)
        return self._known[number]

    def of(self, overrides: Mapping[str, Any]) -> Sequence[Passes]:
        """Of each round of a trial with these. Raises: DataError, ValueError if its data cannot be read."""
        config, budget, facts = resolved_trial(self._spec, overrides)
        return round_costs(config, budget, facts.sizes, facts.n_clusters)
