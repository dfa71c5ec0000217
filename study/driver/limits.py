"""How trials end, and which limits of their study that has reached."""

import math
import time
from collections import Counter
from collections.abc import Sequence

from optuna.trial import TrialState

from study.ranking.ranking import since_improvement
from study.records import Attempt, Goal, TrialRecord
from study.spec.study_spec import StudySpec

ATTEMPTS = 3
"""How often in a row a trial may lose its worker without a new round before it has failed."""
LOST_ATTEMPTS = 10
"""The same where a machine or a storage was lost each time: that is no fault of the trial."""


def is_given_up(attempts: Sequence[Attempt]) -> bool:
    """Whether the last of a trial's failed attempts was the last that it is granted without a new round."""
    here = [attempt.lost for attempt in attempts if attempt.round == attempts[-1].round]
    return here.count(False) >= ATTEMPTS or here.count(True) >= LOST_ATTEMPTS


def final_state(
    record: TrialRecord, objectives: Sequence[Goal], *, failure: str | None, pruned: bool
) -> tuple[TrialState, list[float], str | None]:
    """How a trial ends, with its values of the objectives and why it failed. Args: failure: what is known of that."""
    values = [record.metrics.get(objective.metric, math.nan) for objective in objectives]
    if failure:
        return TrialState.FAIL, values, failure
    if pruned:
        return TrialState.PRUNED, values, None
    if record.round < record.rounds:
        return TrialState.FAIL, values, f"it stopped after round {record.round} of {record.rounds}"
    if not all(map(math.isfinite, values)):
        missing = [goal.metric for goal, value in zip(objectives, values, strict=True) if math.isnan(value)]
        return TrialState.FAIL, values, f"it ended without a finite {', '.join(missing)}"
    return TrialState.COMPLETE, values, None


class StudyLimits:
    """Which of a study's limits are reached, by the trials that have ended and the time that has passed."""

    def __init__(self, spec: StudySpec, records: Sequence[TrialRecord], used: float) -> None:
        """Args: records: all trials that there are. used: seconds that drivers have run the study."""
        self._limits, self._objectives = spec.limits, spec.objectives
        hours = spec.limits.hours
        self._deadline = time.monotonic() + hours * 3600 - used if hours else math.inf
        self._ended = [record for record in records if record.finished]
        self.failures = sum(record.state == "FAIL" for record in records)
        self._first: list[str | None] = []
        """How the first trials of this driver ended: the reason of a failure, or None."""
        self._judged = -1
        """How many ended trials there were when `stale` was last worked out."""
        self._stale = 0

    def add(self, record: TrialRecord) -> None:
        """A trial has ended under this driver."""
        failed = record.state == "FAIL"
        self._ended.append(record)
        self._first.append(record.failure if failed else None)
        self.failures += failed

    @property
    def reached(self) -> bool:
        """Whether any of them is."""
        return bool(self.too_many_failures or self.out_of_time or self.common_failure or self.stale)

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() > self._deadline

    @property
    def too_many_failures(self) -> bool:
        return self.failures > self._limits.failures

    @property
    def common_failure(self) -> str:
        """What the first trials of this driver, all of which failed, failed of; empty if one did not."""
        wanted = self._limits.first_failures
        if not wanted or len(self._first) < wanted or None in self._first[:wanted]:
            return ""
        counts = Counter(str(reason) for reason in self._first[:wanted])
        if len(counts) == 1:
            return next(iter(counts))
        return "; ".join(f"{count} × {reason}" for reason, count in counts.most_common())

    @property
    def stale(self) -> int:
        """Trials that were finished since the best one, once they were as many as `limits.patience` bears; else 0.

        Stays, even if a trial that was open by then turns out to be better: Ray has been told that there are no more.
        """
        patience = self._limits.patience
        if patience is not None and not self._stale and self._judged != len(self._ended):
            self._judged = len(self._ended)
            since = since_improvement(self._ended, self._objectives)
            self._stale = since if since >= patience else 0
        return self._stale
