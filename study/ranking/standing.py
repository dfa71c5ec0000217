"""The best trial so far, of trials that come one by one."""

from collections import Counter
from collections.abc import Iterable, Sequence

from study.ranking.objectives import dominates, upward
from study.ranking.ranking import scores
from study.records import FINISHED, Goal, TrialRecord


class Standing:
    """What `best` says of trials that come one by one, and how many are in each state, at the same cost for each."""

    def __init__(self, objectives: Sequence[Goal], records: Iterable[TrialRecord] = ()) -> None:
        self._objectives = objectives
        self._records: dict[int, TrialRecord] = {}
        self.states: Counter[str] = Counter()
        self._forget()
        for record in records:
            self.keep(record)

    def _forget(self) -> None:
        self._budgets: dict[str, tuple[int, int]] = {}
        """Complete trials of each evaluation budget, and the newest one's number."""
        self._leaders: dict[str, dict[tuple[float, ...], TrialRecord]] = {}
        """By budget: of the trials best in the first objective, those that no other beats; of equals the first."""

    @property
    def finished(self) -> int:
        return sum(self.states[state] for state in FINISHED)

    def keep(self, record: TrialRecord) -> None:
        """A new trial, or news of one."""
        old = self._records.get(record.number)
        self._records[record.number] = record
        self.states[record.state] += 1
        if old is not None:
            self.states[old.state] -= 1
        if old is not None and old.judged:
            self._forget()
            for known in self._records.values():
                self._judge(known)
        else:
            self._judge(record)

    def _judge(self, record: TrialRecord) -> None:
        if not record.judged:
            return
        count, newest = self._budgets.get(record.budget, (0, -1))
        self._budgets[record.budget] = count + 1, max(newest, record.number)
        found = scores(record, self._objectives)
        if found is None:
            return
        point = upward(found, self._objectives)
        leaders = self._leaders.get(record.budget, {})
        top = next(iter(leaders), None)
        if top is None or point[0] > top[0]:
            self._leaders[record.budget] = {point: record}
        elif point in leaders:
            leaders[point] = min(leaders[point], record, key=lambda one: one.number)
        elif point[0] == top[0] and not any(dominates(other, point) for other in leaders):
            kept = {other: leader for other, leader in leaders.items() if not dominates(point, other)}
            self._leaders[record.budget] = {**kept, point: record}

    @property
    def best(self) -> TrialRecord | None:
        """As the function `best` of all trials, but by the objective where that one ranks by `robust/kappa`."""
        budget = max(self._budgets, key=self._budgets.__getitem__, default="")
        return min(self._leaders.get(budget, {}).values(), key=lambda record: record.number, default=None)
