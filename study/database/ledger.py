"""The study in its database (Optuna's tables), the only source of truth: trials, states, budget, the driver's lease."""

import copy
import functools
import json
import logging
import time
import uuid
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from study.database.engine import (
    LedgerError,
    NoStudy,
    database_fault,
    engine_of,
    is_outage,
    open_storage,
    study_url,
    without_cache,
)
from study.database.identity import extends, identity_of, list_differences
from study.database.lease import Lease, LeaseLost
from study.provenance import git_commit
from study.records import Attempt, TrialRecord
from study.secrets import Address, first_line
from trainables.retry import doubling, retry

if TYPE_CHECKING:  # it brings torch, and commands that only look at a study are to answer at once
    from study.spec.study_spec import StudySpec

logger = logging.getLogger(__name__)

ROUND = "round:"
"""Prefix of the attributes that hold a trial's rounds; the number follows."""
ATTEMPT = "attempt:"
"""Prefix of the attributes that hold a trial's failed attempts; the index follows."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
"""Seconds between attempts while the database does not answer; doubled each time."""


P = ParamSpec("P")
R = TypeVar("R")


def _patient(method: Callable[P, R]) -> Callable[P, R]:
    """Repeats a method of the ledger while the database is away; each is harmless to repeat.

    Raises: LeaseLost in place of doing anything, if another driver has taken over; the outage's error when `patience`
    is used up.
    """

    @functools.wraps(method)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> R:
        ledger = args[0]
        assert isinstance(ledger, Ledger)
        begin, warned = time.monotonic(), False

        def attempt() -> R:
            if ledger.lease is not None and not ledger.lease.check():
                raise LeaseLost(f"study {ledger.name!r} was taken over by another driver")
            return method(*args, **kwargs)

        def waiting(error: Exception) -> None:
            nonlocal warned
            if not warned:
                fault, minutes = database_fault(error), ledger.patience / 60
                logger.warning("%s; it is waited for, up to %.0f min", fault, minutes)
            warned = True
            ledger.engine.dispose()  # a connection that was opened to a read-only file stays read-only

        done = retry(attempt, is_outage, doubling(FIRST_PAUSE, LONGEST_PAUSE, begin + ledger.patience), waiting)
        if warned:
            logger.warning("the study database answers again, after %.0f s", time.monotonic() - begin)
        return done

    return repeated


class Ledger:
    """One study in the database. Every method that changes a trial is idempotent, and waits for a database that is
    away for a while."""

    def __init__(self, study: optuna.Study, storage: optuna.storages.BaseStorage) -> None:
        self._study = study
        self._storage = storage
        self.patience = 0.0
        """Seconds that a database which does not answer is waited for."""
        self.lease: Lease | None = None
        """Ours, once `acquire` has taken it."""
        # What never changes about a trial is read once: a list of all trials costs more with every trial there is.
        self._ids: dict[int, int] = {}
        self._reported: dict[int, set[int]] = {}
        self._open: dict[int, FrozenTrial] = {}
        """Unfinished trials as this driver has read and written them; nobody else does while it has the lease."""
        self._done: dict[int, FrozenTrial] = {}
        """Finished trials, which nobody changes."""
        self.name = study.study_name

    @classmethod
    def open_existing(cls, name: str, url: str | Address | None = None, storage_path: str = "runs") -> "Ledger":
        """The study of that name.

        Raises: LedgerError if there is none (known ones are named), or the database cannot be reached.
        """
        storage = open_storage(url or study_url(storage_path), create=False)
        known = [summary.study_name for summary in optuna.get_all_study_summaries(storage, include_best_trial=False)]
        if name not in known:
            raise NoStudy(f"there is no study {name!r}; known: {', '.join(sorted(known)) or 'none'}")
        return cls(optuna.load_study(study_name=name, storage=storage), storage)

    @classmethod
    def open_all(cls, url: str | Address) -> "list[Ledger]":
        """Every study of a database, by name. Raises: LedgerError if it is not there or cannot be reached."""
        storage = open_storage(url, create=False)
        known = [summary.study_name for summary in optuna.get_all_study_summaries(storage, include_best_trial=False)]
        return [cls(optuna.load_study(study_name=name, storage=storage), storage) for name in sorted(known)]

    @classmethod
    def open_or_create(cls, spec: "StudySpec", url: str | Address, pruner: optuna.pruners.BasePruner) -> "Ledger":
        """The study that `spec` names, made if it is missing.

        Raises: LedgerError if it exists with another identity; the message lists the differences and the two ways on.
        """
        from study.spec.study_spec import as_of_today

        storage = open_storage(url, create=True)
        directions = ["maximize" if objective.mode == "max" else "minimize" for objective in spec.objectives]
        identity = identity_of(spec)
        study = optuna.create_study(
            study_name=spec.name, storage=storage, directions=directions, pruner=pruner, load_if_exists=True
        )
        ledger = cls(study, storage)
        stored = study.user_attrs.get("identity")
        if stored is None:
            study.set_user_attr("uid", uuid.uuid4().hex)
            ledger.adopt(spec)
            ledger._empty_log()
        elif not extends(old := as_of_today(stored), identity, len(ledger.frozen_trials())):
            differences = list_differences(old, identity)
            shown = "\n".join(f"  {line}" for line in differences)
            raise LedgerError(
                f"study {spec.name!r} exists with other settings, and trials of both would not compare:\n{shown}\n"
                f"Give the new study another name (--set name=…), "
                f"or do so and let the old trials inform it (--set name=… --from {spec.name})."
            )
        return ledger

    @_patient
    def adopt(self, spec: "StudySpec") -> None:
        """Stores what the study is run with from now on; for the holder of the lease."""
        self._study.set_user_attr("spec", json.loads(json.dumps(spec.resolved())))
        self._study.set_user_attr("identity", identity_of(spec))
        commit = git_commit() or "unknown"
        if commit not in self.commits:
            self._study.set_user_attr("commits", [*self.commits, commit])

    @property
    def commits(self) -> list[str]:
        """Commits of the code that has run this study, oldest first."""
        return list(self._study.user_attrs.get("commits", []))

    @property
    def spec(self) -> dict[str, Any]:
        """The resolved spec that the study was last run with."""
        return dict(self._study.user_attrs.get("spec", {}))

    @property
    def uid(self) -> str:
        """Tells studies of one name in several databases apart."""
        return str(self._study.user_attrs.get("uid", ""))

    # Trials

    @_patient
    def frozen_trials(self) -> list[FrozenTrial]:
        """Optuna's view of all trials, in order of number."""
        return self._study.get_trials(deepcopy=False)

    @_patient
    def records(self) -> list[TrialRecord]:
        """All trials, in order of number."""
        return [_record(trial) for trial in self.frozen_trials()]

    @_patient
    def record(self, number: int) -> TrialRecord:
        return _record(self._frozen(number))

    def _frozen(self, number: int) -> FrozenTrial:
        if self.lease is None:
            return self._storage.get_trial(self._id(number))
        known = self._open.get(number) or self._done.get(number)
        if known is None:
            known = self._storage.get_trial(self._id(number))
            (self._done if known.state.is_finished() else self._open)[number] = known
        return known

    def _set_attribute(self, number: int, name: str, value: Any) -> None:
        """Writes to the database, and then to what is known of an open trial, as it would be read back."""
        self._storage.set_trial_user_attr(self._id(number), name, value)
        if number in self._open:
            self._note(number, user_attrs={**self._open[number].user_attrs, name: json.loads(json.dumps(value))})

    def _set_state(self, number: int, state: TrialState) -> None:
        self._storage.set_trial_state_values(self._id(number), state)
        if number in self._open:
            self._note(number, state=state)

    def _note(self, number: int, **changes: Any) -> None:
        changed = copy.copy(self._open[number])
        for name, value in changes.items():
            setattr(changed, name, value)
        self._open[number] = changed

    def _id(self, number: int) -> int:
        if number not in self._ids:
            self._learn_ids()
        return self._ids[number]

    def _learn_ids(self) -> None:
        for trial in self.frozen_trials():
            self._ids[trial.number] = trial._trial_id
            self._reported[trial.number] = set(trial.intermediate_values)

    def add(
        self,
        *,
        overrides: Mapping[str, Any],
        config: Mapping[str, Any],
        rounds: int,
        baseline: bool,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
    ) -> int:
        """A new running trial, written in one transaction. Returns: its number."""
        attributes = {"overrides": dict(overrides), "config": dict(config), "rounds": rounds, "baseline": baseline}
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            # Tells whether a trial whose commit was not answered is there all the same.
            user_attrs={**attributes, "token": uuid.uuid4().hex},
        )
        number = self._add(trial, len(self._ids), [])
        self._reported[number] = set()
        return number

    @_patient
    def _add(self, trial: FrozenTrial, known: int, tried: list[bool]) -> int:
        """`tried` is empty at the first attempt: only a later one has to look whether the trial is there already."""
        if not self._ids:
            self._learn_ids()
        for found in self.frozen_trials()[known:] if tried else ():
            if found.user_attrs.get("token") == trial.user_attrs["token"]:
                break
        else:
            tried.append(True)
            found = self._storage.get_trial(self._storage.create_new_trial(self._study._study_id, trial))
        self._ids[found.number] = found._trial_id
        if self.lease is not None:
            self._open[found.number] = found
        return int(found.number)

    @_patient
    def report(self, number: int, round_: int, value: float) -> None:
        """The objective after a round. Single-objective studies only; a round that was reported stays as it was."""
        trial_id = self._id(number)
        if round_ not in self._reported[number]:
            self._storage.set_trial_intermediate_value(trial_id, round_, value)
            self._reported[number].add(round_)
            if number in self._open:
                values = {**self._open[number].intermediate_values, round_: value}
                self._note(number, intermediate_values=dict(sorted(values.items())))

    @_patient
    def should_prune(self, number: int) -> bool:
        if self.lease is None:
            return bool(optuna.trial.Trial(self._study, self._id(number)).should_prune())
        # Optuna would read all open trials anew, after every round of each.
        study = copy.copy(self._study)
        study._storage = _Known(self)
        return bool(study.pruner.prune(study, self._frozen(number)))

    @_patient
    def progress(self, number: int, progress: Mapping[str, Any]) -> None:
        """A round with its checkpoint, in one write: {"round", "time", "metrics", "checkpoint", "seconds", …}."""
        rounds = _rounds(self._frozen(number).user_attrs)
        # A trial that had to start anew writes its rounds over the old ones: the newest is not the highest.
        order = 1 + max((_order(one) for one in rounds), default=0)
        self._set_attribute(number, f"{ROUND}{progress['round']:06d}", {**progress, "order": order})

    @_patient
    def attempt_failed(self, number: int, index: int, attempt: Attempt) -> None:
        """Remembers a failed attempt; `index` counts those before it."""
        self._set_attribute(number, f"{ATTEMPT}{index:04d}", asdict(attempt))

    @_patient
    def finish(self, number: int, state: TrialState, values: Sequence[float] = (), failure: str | None = None) -> None:
        """Final state of a trial; does nothing if it has one."""
        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return
        told = list(values) if state == TrialState.COMPLETE else None
        if state == TrialState.PRUNED and len(self._study.directions) == 1 and frozen.last_step is not None:
            told = [frozen.intermediate_values[frozen.last_step]]  # as Optuna's `tell` does it
        try:
            if failure:
                self._storage.set_trial_user_attr(frozen._trial_id, "failure", failure[:2000])
            if frozen.state == TrialState.WAITING:
                self._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
            self._storage.set_trial_state_values(frozen._trial_id, state, told)
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # an earlier attempt came through, and its answer was lost
        self._open.pop(number, None)
        self._empty_log()

    def _empty_log(self) -> None:
        """Moves sqlite's write-ahead log into the database, so that a copy of that file alone knows the study.

        Waits for nobody: what another process still reads moves the next time.
        """
        if self.engine.name == "sqlite":
            try:
                with self.engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlalchemy.exc.DBAPIError as error:  # what is written is safe in the log
                logger.debug("the log of the study database is not emptied: %s", first_line(error))

    @_patient
    def interrupt(self, number: int) -> None:
        """The driver ends in order while the trial is unfinished: it waits for the next driver."""
        if self._frozen(number).state == TrialState.RUNNING:
            self._set_state(number, TrialState.WAITING)

    @_patient
    def resume(self, number: int) -> None:
        """A waiting trial runs again."""
        if self._frozen(number).state == TrialState.WAITING:
            self._set_state(number, TrialState.RUNNING)

    # Steering from outside

    @property
    def control(self) -> str:
        """What `study.control` asks of the driver: "pause", "stop", or "" to run."""
        return str(self._study.user_attrs.get("control", ""))

    @_patient
    def set_control(self, wish: str) -> None:
        """Asks the driver to "pause", "stop" or, with "", to run."""
        self._study.set_user_attr("control", wish)

    @property
    def score_uses(self) -> list[str]:
        """Confirmations that have read the score part of this study's data, oldest first."""
        return [str(use) for use in self._study.user_attrs.get("score_uses", [])]

    def note_score_use(self, name: str) -> None:
        """Notes a use of the score part before it is read; one that goes on counts once."""
        if name not in self.score_uses:
            self._study.set_user_attr("score_uses", [*self.score_uses, name])

    # Lease: one driver per study

    def acquire(self, *, takeover: bool = False) -> None:
        """Takes the study's lease and keeps it alive in a thread.

        Raises: LeaseHeld naming the holder if another driver is alive, or may be.
        """
        lease = self._lease()
        lease.acquire(takeover=takeover)
        lease.guard(without_cache(self._storage).scoped_session.session_factory)
        self.lease = lease

    def release(self) -> None:
        """Gives the lease back, if it is still ours."""
        if self.lease:
            self.lease.release()
        self.lease = None

    @property
    def lost(self) -> bool:
        """Whether another driver has taken the study over."""
        return self.lease is not None and self.lease.lost.is_set()

    def holder(self) -> dict[str, Any] | None:
        """Who runs the study; see `Lease.describe`."""
        return self._lease().describe()

    @property
    def seconds(self) -> float:
        """Seconds that drivers have run the study, over all of them."""
        return self._lease().seconds

    def _lease(self) -> Lease:
        return Lease(self.engine, self._study._study_id, self.name)

    @property
    def engine(self) -> sqlalchemy.engine.Engine:
        """Of the database that the study is in."""
        return engine_of(self._storage)


class _Known:
    """The storage as a pruner uses it, with the trials that the holder of the lease knows without reading them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [self._ledger._frozen(number) for number in sorted(self._ledger._ids)]
        found = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Where successive halving notes the rungs that a trial has reached."""
        self._ledger._storage.set_trial_system_attr(trial_id, key, value)
        for number, trial in self._ledger._open.items():
            if trial._trial_id == trial_id:
                self._ledger._note(number, system_attrs={**trial.system_attrs, key: value})
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


def _record(trial: FrozenTrial) -> TrialRecord:
    attrs = trial.user_attrs
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
        metrics=progress.get("metrics", {}),
        history=tuple((int(one["round"]), int(one.get("time", 0)), one["metrics"]) for one in rounds),
        durations=_durations(rounds),
        budget=progress.get("budget", ""),
        warnings=tuple(progress.get("warnings", ())),
        failure=attrs.get("failure"),
        checkpoint=progress.get("checkpoint"),
        fallbacks=tuple(one["checkpoint"] for one in reversed(rounds[:-1]) if one.get("checkpoint")),
        attempts=tuple(Attempt(**attrs[name]) for name in sorted(attrs) if name.startswith(ATTEMPT)),
        ended=round(1000 * trial.datetime_complete.timestamp()) if trial.datetime_complete else 0,
        seconds=float(progress.get("seconds", 0.0)),
    )
