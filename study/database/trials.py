"""A study's trials in Optuna's tables: read, remembered, and changed one value at a time."""

import copy
import json
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from study.ranking.objectives import headline, spread, value
from study.records import Attempt, Goal, TrialRecord
from trainables.places import divided, place_of

ROUND = "round:"
"""Prefix of the attributes that hold a trial's rounds; the number follows."""
ATTEMPT = "attempt:"
"""Prefix of the attributes that hold a trial's failed attempts; the index follows."""


def facts_of(trial: FrozenTrial) -> dict[str, Any]:
    """All that is stored with a trial. What people need not read in Optuna's own tools stands among the attributes that
    these do not show; studies from before had everything among those that they do."""
    return {**trial.user_attrs, **trial.system_attrs}


class Trials:
    """The trials of one study, by number. It is also the storage that pruners see.

    Nobody but the holder of the lease changes them, so it reads none twice: a list of all trials costs more with every
    trial there is.
    """

    def __init__(self, study: optuna.Study, storage: optuna.storages.BaseStorage) -> None:
        self._study, self._storage = study, storage
        self.remembers = False
        """Whether this driver holds the lease."""
        self.ids: dict[int, int] = {}
        self._open: dict[int, FrozenTrial] = {}
        """Unfinished trials as this driver has read and written them."""
        self._done: dict[int, FrozenTrial] = {}
        """Finished trials, which nobody changes."""

    def all(self) -> list[FrozenTrial]:
        """In order of number."""
        return self._study.get_trials(deepcopy=False)

    def get(self, number: int) -> FrozenTrial:
        if not self.remembers:
            return self._storage.get_trial(self.id_of(number))
        known = self._open.get(number) or self._done.get(number)
        if known is None:
            known = self._storage.get_trial(self.id_of(number))
            (self._done if known.state.is_finished() else self._open)[number] = known
        return known

    def id_of(self, number: int) -> int:
        """Optuna's id of the trial."""
        if number not in self.ids:
            self._learn_ids()
        return self.ids[number]

    def _learn_ids(self) -> None:
        self.ids |= {trial.number: trial._trial_id for trial in self.all()}

    def add(self, trial: FrozenTrial, known: int | None) -> int:
        """Args: known: trials that there were when the trial may have been added before, by an attempt whose commit was
        not answered; None: it was not. Returns: its number."""
        if not self.ids:
            self._learn_ids()
        found, token = None, trial.system_attrs["token"]
        if known is not None:
            found = next((each for each in self.all()[known:] if each.system_attrs.get("token") == token), None)
        if found is None:
            found = self._storage.get_trial(self._storage.create_new_trial(self._study._study_id, trial))
        self.ids[found.number] = found._trial_id
        if self.remembers:
            self._open[found.number] = found
        return int(found.number)

    def set_attribute(self, number: int, name: str, value: Any) -> None:
        self._storage.set_trial_system_attr(self.id_of(number), name, value)
        if number in self._open:  # as it would be read back
            self._note(number, system_attrs={**self._open[number].system_attrs, name: json.loads(json.dumps(value))})

    def set_state(self, number: int, state: TrialState) -> None:
        self._storage.set_trial_state_values(self.id_of(number), state)
        self._note(number, state=state)

    def report(self, number: int, round_: int, value: float) -> None:
        """The objective after a round; one that was reported stays as it was."""
        told = self.get(number).intermediate_values
        if round_ not in told:
            self._storage.set_trial_intermediate_value(self.id_of(number), round_, value)
            self._note(number, intermediate_values=dict(sorted({**told, round_: value}.items())))

    def finish(
        self, number: int, state: TrialState, values: Sequence[float], failure: str | None, goals: Sequence[Goal]
    ) -> None:
        """The final state, and beside it what people read in Optuna's own tools."""
        frozen = self.get(number)
        told = list(values) if state == TrialState.COMPLETE else None
        if state == TrialState.PRUNED and len(self._study.directions) == 1 and frozen.last_step is not None:
            told = [frozen.intermediate_values[frozen.last_step]]  # as Optuna's `tell` does it
        try:
            shown = readable(record_of(frozen, ""), goals) | ({"failure": failure[:2000]} if failure else {})
            for name, fact in shown.items():
                if frozen.user_attrs.get(name) != fact:
                    self._storage.set_trial_user_attr(frozen._trial_id, name, fact)
            if frozen.state == TrialState.WAITING:
                self._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
            self._storage.set_trial_state_values(frozen._trial_id, state, told)
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # an earlier attempt came through, and its answer was lost
        self._open.pop(number, None)

    def _note(self, number: int, **changes: Any) -> None:
        """Changes what is known of an open trial."""
        if number in self._open:
            changed = copy.copy(self._open[number])
            for name, value in changes.items():
                setattr(changed, name, value)
            self._open[number] = changed

    # As a pruner uses a storage

    def should_prune(self, number: int) -> bool:
        if not self.remembers:
            return bool(optuna.trial.Trial(self._study, self.id_of(number)).should_prune())
        # Optuna would read all open trials anew, after every round of each.
        study = copy.copy(self._study)
        study._storage = self
        return bool(study.pruner.prune(study, self.get(number)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [self.get(number) for number in sorted(self.ids)]
        found = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Where successive halving notes the rungs that a trial has reached."""
        self._storage.set_trial_system_attr(trial_id, key, value)
        for number, trial in self._open.items():
            if trial._trial_id == trial_id:
                self._note(number, system_attrs={**trial.system_attrs, key: value})
                break


def _rounds(attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A trial's rounds, in order; those of a run before it started anew are left out where it has not come so far."""
    rounds = [attrs[name] for name in sorted(attrs) if name.startswith(ROUND)]
    newest = max(rounds, key=_order, default=None)
    return [one for one in rounds if newest is not None and one["round"] <= newest["round"]]


def _durations(rounds: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Seconds of each round; what is stored counts from the trial's begin."""
    spent = [float(one.get("seconds", 0.0)) for one in rounds]
    return tuple(max(0.0, after - before) for before, after in zip([0.0, *spent], spent, strict=False))


def _order(progress: Mapping[str, Any]) -> int:
    return int(progress.get("order", progress["round"]))


def next_order(trial: FrozenTrial) -> int:
    """The place of a trial's next round in the order in which rounds were told: a trial that had to start anew writes
    over its old ones, so the newest is not the highest."""
    return 1 + max(map(_order, _rounds(facts_of(trial))), default=0)


def readable(record: TrialRecord, goals: Sequence[Goal]) -> dict[str, Any]:
    """Scores of a trial's last report, rounded, with the spread of its objectives; rounds done and seconds."""
    found: dict[str, Any] = {name: value(record, name) for name in headline(goals)}
    found |= {f"spread/{goal.metric}": spread(record, goal.metric) for goal in goals}
    found = {name: round(score, 4) for name, score in found.items() if score is not None}
    return {**found, "round": f"{record.round}/{record.goal}", "seconds": round(record.seconds, 1)}


def _checkpoint_of(progress: Mapping[str, Any], storage: str) -> str | None:
    """Where a round's checkpoint is. Rounds that older versions have stored know its whole place only."""
    stored = progress.get("checkpoint")
    if not stored:
        return None
    before, inner = (progress["storage"], stored) if "storage" in progress else divided(stored)
    return place_of(before, inner, storage)


def record_of(trial: FrozenTrial, storage: str) -> TrialRecord:
    """The trial as the rest of the program knows it. Args: storage: as it is given now, absolute."""
    attrs = facts_of(trial)
    rounds = _rounds(attrs)
    progress = rounds[-1] if rounds else {}
    return TrialRecord(
        number=trial.number,
        state=trial.state.name,
        values=tuple(trial.values or ()),
        overrides=attrs.get("overrides", {}),
        baseline=bool(attrs.get("baseline", False)),
        config=attrs.get("config", {}),
        round=int(progress.get("round", 0)),
        rounds=int(attrs.get("rounds", 0)),
        leg=int(attrs.get("leg", 0)),
        metrics=progress.get("metrics", {}),
        history=tuple((int(one["round"]), int(one.get("time", 0)), one["metrics"]) for one in rounds),
        durations=_durations(rounds),
        budget=progress.get("budget", ""),
        warnings=tuple(progress.get("warnings", ())),
        failure=attrs.get("failure"),
        checkpoint=_checkpoint_of(progress, storage),
        fallbacks=tuple(filter(None, (_checkpoint_of(one, storage) for one in reversed(rounds[:-1])))),
        attempts=tuple(Attempt(**attrs[name]) for name in sorted(attrs) if name.startswith(ATTEMPT)),
        ended=round(1000 * trial.datetime_complete.timestamp()) if trial.datetime_complete else 0,
        seconds=float(progress.get("seconds", 0.0)),
    )
