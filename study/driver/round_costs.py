"""What each round of a trial costs, as far as the driver can tell."""

import logging
from collections.abc import Sequence

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

    def __call__(self, record: TrialRecord) -> Sequence[Passes]:
        """Of each round of a trial; equal ones where its data cannot be read here."""
        number = record.number
        if number not in self._known:
            try:
                self._known[number] = self._count(record)
            except Exception as error:  # it is for the screen, and must not cost a study
                logger.debug("the cost of trial %d is not known: %s", number, error)
                self._known[number] = [Passes(1, 0)] * record.rounds
        return self._known[number]

    def _count(self, record: TrialRecord) -> Sequence[Passes]:
        config, budget, facts = resolved_trial(self._spec, record.overrides)
        return round_costs(config, budget, facts.sizes, facts.n_clusters)
