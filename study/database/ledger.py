"""The study in its database (Optuna's tables), the only source of truth: trials, states, budget, the driver's lease."""

import functools
import json
import logging
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
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
from study.database.identity import Contents, data_differences, extends, identity_of, list_differences
from study.database.lease import Lease, LeaseLost
from study.database.score_uses import note_use, uses_of
from study.database.trials import ATTEMPT, ROUND, Trials, facts_of, next_order, record_of
from study.places import absolute
from study.provenance import git_commit
from study.ranking.objectives import goals
from study.records import Attempt, TrialRecord
from study.secrets import Address, first_line
from trainables.retry import doubling, retry

if TYPE_CHECKING:  # it brings torch, and commands that only look at a study are to answer at once
    from study.spec.study_spec import StudySpec

logger = logging.getLogger(__name__)

QUEUED = "queued:"
"""Prefix of the study's attributes that hold points that people ask for; the place in the queue follows."""
STEP = "step:"
"""Prefix of the study's attributes that hold the steps of its search; the index follows."""
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

    def __init__(self, study: optuna.Study, storage: optuna.storages.BaseStorage, folder: str | Path = "runs") -> None:
        """Args: folder: the storage that checkpoints are looked for in, before the one they were written to."""
        self._study, self._storage, self.name = study, storage, study.study_name
        self.folder = absolute(folder)
        self._trials = Trials(study, storage)
        self._found: Contents = {}
        """What the data hold that the study is to go on with; kept by `adopt`."""
        self.patience = 0.0
        """Seconds that a database which does not answer is waited for."""
        self.lease: Lease | None = None
        """Ours, once `acquire` has taken it."""

    @classmethod
    def open_existing(cls, name: str, url: str | Address | None = None, storage_path: str | Path = "runs") -> "Ledger":
        """The study of that name.

        Args: url: of the database; None: that of the storage. storage_path: the storage, a folder or a URI.
        Raises: LedgerError if there is none (known ones are named), or the database cannot be reached.
        """
        storage = open_storage(url or study_url(storage_path), create=False)
        known = [summary.study_name for summary in optuna.get_all_study_summaries(storage, include_best_trial=False)]
        if name not in known:
            raise NoStudy(f"there is no study {name!r}; known: {', '.join(sorted(known)) or 'none'}")
        return cls(optuna.load_study(study_name=name, storage=storage), storage, storage_path)

    @classmethod
    def open_all(cls, url: str | Address) -> "list[Ledger]":
        """Every study of a database, by name. Raises: LedgerError if it is not there or cannot be reached."""
        storage = open_storage(url, create=False)
        known = [summary.study_name for summary in optuna.get_all_study_summaries(storage, include_best_trial=False)]
        return [cls(optuna.load_study(study_name=name, storage=storage), storage) for name in sorted(known)]

    @classmethod
    def open_or_create(
        cls, spec: "StudySpec", url: str | Address, pruner: optuna.pruners.BasePruner, contents: Contents | None = None
    ) -> "Ledger":
        """The study that `spec` names, made if it is missing.

        Args: contents: digests of its data; None: these are not compared.
        Raises: LedgerError if it exists with another identity or other data; the message lists the differences and the
            two ways on.
        """
        storage = open_storage(url, create=True)
        directions = ["maximize" if objective.mode == "max" else "minimize" for objective in spec.objectives]
        study = optuna.create_study(
            study_name=spec.name, storage=storage, directions=directions, pruner=pruner, load_if_exists=True
        )
        ledger = cls(study, storage, spec.storage.path)
        ledger._found = contents or {}
        if study.user_attrs.get("identity") is None:
            study.set_user_attr("uid", uuid.uuid4().hex)
            ledger.adopt(spec)
            ledger._empty_log()
        else:
            ledger.check(spec, ledger._found)
        return ledger

    def check(self, spec: "StudySpec", contents: Contents) -> None:
        """Raises: LedgerError if the study cannot go on as `spec`, on data with these digests."""
        from study.spec.study_spec import as_of_today

        old, identity = as_of_today(self._study.user_attrs["identity"], spec), identity_of(spec)
        created = len(self.frozen_trials())
        settings = [] if extends(old, identity, created) else list_differences(old, identity)
        data = data_differences(self.contents, contents, created)
        if settings or data:
            what = " and ".join(["settings"] * bool(settings) + ["data"] * bool(data))
            shown = "\n".join(f"  {line}" for line in [*settings, *data])
            raise LedgerError(
                f"study {self.name!r} exists with other {what}, and trials of both would not compare:\n{shown}\n"
                f"Give the new study another name (--set name=…), "
                f"or do so and let the old trials inform it (--set name=… --from {self.name})."
            )
        if contents and not self.contents:
            logger.warning(
                "study %r was begun before studies kept what their data hold: these are not compared with what its "
                "trials have run on",
                self.name,
            )

    @_patient
    def adopt(self, spec: "StudySpec") -> None:
        """Stores what the study is run with from now on; for the holder of the lease."""
        self._study.set_user_attr("spec", json.loads(json.dumps(spec.resolved())))
        self._study.set_user_attr("identity", identity_of(spec))
        if self._found:
            self._study.set_user_attr("contents", self._found)
        self._study.set_user_attr("budget", spec.trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names([objective.metric for objective in spec.objectives])
        commit = git_commit() or "unknown"
        if commit not in self.commits:
            self._study.set_user_attr("commits", [*self.commits, commit])

    @property
    def commits(self) -> list[str]:
        """Commits of the code that has run this study, oldest first."""
        return list(self._study.user_attrs.get("commits", []))

    @property
    def budget(self) -> int:
        """Trials that the study comes to: its `limits.trials`, or fewer if the space has fewer points."""
        attributes = self._study.user_attrs
        return int(attributes.get("budget", attributes.get("spec", {}).get("limits", {}).get("trials", 0)))

    @property
    def spec(self) -> dict[str, Any]:
        """The resolved spec that the study was last run with."""
        return dict(self._study.user_attrs.get("spec", {}))

    @property
    def contents(self) -> Contents:
        """Digests of the data that its trials have run on; empty for a study that was begun before they were kept."""
        return dict(self._study.user_attrs.get("contents", {}))

    def contents_of(self, record: TrialRecord) -> Mapping[str, str]:
        """Protocol → digest of the data that a trial has run on; empty where it is not known."""
        own = self.contents.get(f"baselines[{record.number}]") if record.baseline else None
        return own or self.contents.get("trial", {})

    @functools.cached_property
    def uid(self) -> str:
        """Tells studies of one name in several databases apart."""
        return str(self._study.user_attrs.get("uid", ""))

    # Trials

    @_patient
    def frozen_trials(self) -> list[FrozenTrial]:
        """Optuna's view of all trials, in order of number."""
        return self._trials.all()

    @_patient
    def records(self) -> list[TrialRecord]:
        """All trials, in order of number."""
        return [record_of(trial, self.folder) for trial in self._trials.all()]

    @_patient
    def record(self, number: int) -> TrialRecord:
        return record_of(self._trials.get(number), self.folder)

    def add(
        self,
        *,
        overrides: Mapping[str, Any],
        config: Mapping[str, Any],
        rounds: int,
        leg: int = 0,
        baseline: bool,
        queued: int | None = None,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
    ) -> int:
        """A new running trial, written in one transaction.

        Args: rounds, leg: as in `TrialRecord`. queued: the place in `queued` that its point comes from.
        Returns: its number.
        """
        facts = {"overrides": dict(overrides), "config": dict(config), "rounds": rounds}
        facts |= ({"leg": leg} if leg else {}) | ({} if queued is None else {"queued": queued})
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={"baseline": baseline},
            # The token tells whether a trial whose commit was not answered is there all the same.
            system_attrs={**facts, "token": uuid.uuid4().hex},
        )
        return self._add(trial, len(self._trials.ids), [])

    @_patient
    def _add(self, trial: FrozenTrial, known: int, tried: list[bool]) -> int:
        """`tried` is empty at the first attempt: only a later one has to look whether the trial is there already."""
        tried.append(True)
        return self._trials.add(trial, known if len(tried) > 1 else None)

    @_patient
    def report(self, number: int, round_: int, value: float) -> None:
        """The objective after a round. Single-objective studies only; a round that was reported stays as it was."""
        self._trials.report(number, round_, value)

    @_patient
    def should_prune(self, number: int) -> bool:
        """Whether Optuna's pruner gives the trial up."""
        return self._trials.should_prune(number)

    @_patient
    def progress(self, number: int, progress: Mapping[str, Any]) -> None:
        """A round with its checkpoint, in one write: {"round", "time", "metrics", "checkpoint", "storage", …}."""
        order = next_order(self._trials.get(number))
        self._trials.set_attribute(number, f"{ROUND}{progress['round']:06d}", {**progress, "order": order})

    @_patient
    def grant(self, number: int, rounds: int) -> None:
        """The trial comes to so many rounds from now on."""
        self._trials.set_attribute(number, "rounds", rounds)

    # Points that people ask for

    @_patient
    def queued(self) -> dict[int, dict[str, Any]]:
        """Place in the queue → the overrides of a trial that is still to be made."""
        taken = {facts_of(trial).get("queued") for trial in self._trials.all()}
        found = {int(name.removeprefix(QUEUED)): own for name, own in self._attributes(QUEUED).items()}
        return {place: own for place, own in found.items() if place not in taken}

    @_patient
    def enqueue(self, overrides: Mapping[str, Any]) -> None:
        """One of the next trials is one with these overrides."""
        # The time, and no count: two people may ask at once.
        self._study.set_user_attr(f"{QUEUED}{time.time_ns():020d}", json.loads(json.dumps(dict(overrides))))

    def _attributes(self, prefix: str) -> dict[str, Any]:
        """Of the study, in order of their names."""
        return {name: own for name, own in sorted(self._study.user_attrs.items()) if name.startswith(prefix)}

    # What a search has given out, step by step

    @_patient
    def steps(self) -> list[dict[str, Any]]:
        """In order."""
        return list(self._attributes(STEP).values())

    @_patient
    def add_step(self, index: int, step: Mapping[str, Any]) -> None:
        """One write, before anything of the step is given out. Args: index: steps before it."""
        self._study.set_user_attr(f"{STEP}{index:06d}", json.loads(json.dumps(step)))

    @_patient
    def attempt_failed(self, number: int, index: int, attempt: Attempt) -> None:
        """Remembers a failed attempt; `index` counts those before it."""
        self._trials.set_attribute(number, f"{ATTEMPT}{index:04d}", asdict(attempt))

    @_patient
    def finish(self, number: int, state: TrialState, values: Sequence[float] = (), failure: str | None = None) -> None:
        """Final state of a trial; does nothing if it has one."""
        if not self._trials.get(number).state.is_finished():
            self._trials.finish(number, state, values, failure, goals(self.spec))
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
        if self._trials.get(number).state == TrialState.RUNNING:
            self._trials.set_state(number, TrialState.WAITING)

    @_patient
    def resume(self, number: int) -> None:
        """A waiting trial runs again."""
        if self._trials.get(number).state == TrialState.WAITING:
            self._trials.set_state(number, TrialState.RUNNING)

    # Steering from outside

    @property
    def control(self) -> str:
        """What `study.control` asks of the driver: "pause", "stop", or "" to run."""
        return str(self._study.user_attrs.get("control", ""))

    @_patient
    def set_control(self, wish: str) -> None:
        """Asks the driver to "pause", "stop" or, with "", to run."""
        self._study.set_user_attr("control", wish)

    @_patient
    def score_uses(self, part: str) -> list[str]:
        """Names of the uses of a score part, oldest first, by whatever study or command of this database.

        Args: part: digest of its content. Uses that earlier versions noted count for the study that noted them.
        """
        with self.engine.connect() as connection:
            found = uses_of(connection, part)
        return list(dict.fromkeys([*map(str, self._study.user_attrs.get("score_uses", [])), *found]))

    @_patient
    def note_score_use(self, part: str, name: str) -> None:
        """Notes a use of a score part before it is scored; one that goes on counts once."""
        with self.engine.begin() as connection:
            note_use(connection, part, name)

    # Lease: one driver per study

    def acquire(self, *, takeover: bool = False) -> None:
        """Takes the study's lease and keeps it alive in a thread.

        Raises: LeaseHeld naming the holder if another driver is alive, or may be.
        """
        lease = self._lease()
        lease.acquire(takeover=takeover)
        lease.guard(without_cache(self._storage).scoped_session.session_factory)
        self.lease, self._trials.remembers = lease, True

    def release(self) -> None:
        """Gives the lease back, if it is still ours."""
        if self.lease:
            self.lease.release()
        self.lease, self._trials.remembers = None, False

    def look_for_driver(self, *, takeover: bool = False) -> None:
        """Raises: LeaseHeld where `acquire` would raise it; takes nothing."""
        self._lease().look(takeover=takeover)

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
