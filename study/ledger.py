"""The study in its database (Optuna's tables), the only source of truth: trials, states, budget, the driver's lease."""

import json
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from study.provenance import git_commit, redact
from study.records import TrialRecord
from study.spec import StudySpec

SETTLE_SECONDS, HEARTBEAT_SECONDS = 0.2, 5.0
STALE_SECONDS = 30.0
ROUND = "round:"
"""Prefix of the attributes that hold a trial's rounds; the number follows."""


class LedgerError(Exception):
    """The database cannot be used as asked; the message says why and what to do, and holds no password."""


class NoStudy(LedgerError):
    """There is no study of that name, or no database yet."""


def study_url(storage: Path) -> str:
    """`ARDMVC_STUDY_DB`, or a sqlite file in the storage folder."""
    return os.environ.get("ARDMVC_STUDY_DB") or f"sqlite:///{storage / 'studies.db'}"


def open_storage(url: str, *, create: bool) -> optuna.storages.BaseStorage:
    """The database behind `url`, its tables made if they are missing.

    Raises: LedgerError when it cannot be reached, or when it is a missing file and `create` is off.
    """
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise LedgerError("ARDMVC_STUDY_DB is no database URL; one looks like sqlite:////data/studies.db") from error
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise LedgerError(
                "ARDMVC_STUDY_DB must name a file, like sqlite:////data/studies.db; memory keeps no study"
            )
        file = Path(parsed.database)
        if not file.exists() and not create:
            raise NoStudy(f"there is no study database at {file}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"cannot make the folder of the study database {file}: {error.strerror}") from error
    try:
        if parsed.get_backend_name() == "sqlite":
            with closing(sqlite3.connect(str(parsed.database), timeout=30)) as database:
                database.execute("PRAGMA journal_mode=WAL")  # kept in the file; making the tables is quicker with it
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": _connect_args(parsed)})
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or parsed.drivername
        raise LedgerError(
            f"the study database {redact(url)} needs a driver that is not installed: {missing}"
        ) from error
    except Exception as error:  # every driver has its own exceptions; all mean: not reachable
        lines = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        reason = redact(lines[0]).replace(parsed.password or "\0", "***")
        raise LedgerError(f"cannot reach the study database {redact(url)}: {reason}") from error
    if parsed.get_backend_name() == "sqlite":
        _quick_commits(storage.engine)
    return optuna.storages.get_storage(storage)  # adds the cache of finished trials


def _connect_args(url: sqlalchemy.engine.URL) -> dict[str, Any]:
    return {"timeout": 30} if url.get_backend_name() == "sqlite" else {"connect_timeout": 5}


def _quick_commits(engine: sqlalchemy.engine.Engine) -> None:
    """Write-ahead log, no disk flush per commit: a killed process loses nothing, and a commit costs under 1 ms."""

    def pragmas(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(engine, "connect", pragmas)
    engine.dispose()


class Ledger:
    """One study in the database. Every method that changes a trial is idempotent."""

    def __init__(self, study: optuna.Study, storage: optuna.storages.BaseStorage) -> None:
        self._study = study
        self._storage = storage
        # What never changes about a trial is read once: a list of all trials costs more with every trial there is.
        self._ids: dict[int, int] = {}
        self._reported: dict[int, set[int]] = {}
        self.name = study.study_name
        self.lost = threading.Event()
        """Set when another driver has taken the study over."""
        self._holder: dict[str, Any] | None = None
        self._stop_heartbeat = threading.Event()

    @classmethod
    def open_existing(cls, name: str, url: str | None = None, storage_path: str = "runs") -> "Ledger":
        """The study of that name.

        Raises: LedgerError if there is none (known ones are named), or the database cannot be reached.
        """
        storage = open_storage(url or study_url(Path(storage_path).resolve()), create=False)
        known = [summary.study_name for summary in optuna.get_all_study_summaries(storage, include_best_trial=False)]
        if name not in known:
            raise NoStudy(f"there is no study {name!r}; known: {', '.join(sorted(known)) or 'none'}")
        return cls(optuna.load_study(study_name=name, storage=storage), storage)

    @classmethod
    def open_or_create(cls, spec: StudySpec, url: str, pruner: optuna.pruners.BasePruner) -> "Ledger":
        """The study that `spec` names, made if it is missing.

        Raises: LedgerError if it exists with another identity; the message lists the differences and the two ways on.
        """
        storage = open_storage(url, create=True)
        directions = ["maximize" if objective.mode == "max" else "minimize" for objective in spec.objectives]
        identity = _identity(spec)
        study = optuna.create_study(
            study_name=spec.name, storage=storage, directions=directions, pruner=pruner, load_if_exists=True
        )
        ledger = cls(study, storage)
        stored = study.user_attrs.get("identity")
        if stored is None:
            study.set_user_attr("uid", uuid.uuid4().hex)
            ledger.adopt(spec)
        elif not extends(stored, identity, len(ledger.frozen_trials())):
            differences = list_differences(stored, identity)
            shown = "\n".join(f"  {line}" for line in differences)
            raise LedgerError(
                f"study {spec.name!r} exists with other settings, and trials of both would not compare:\n{shown}\n"
                f"Give the new study another name (--set name=…), "
                f"or do so and let the old trials inform it (--set name=… --from {spec.name})."
            )
        return ledger

    def adopt(self, spec: StudySpec) -> None:
        """Stores what the study is run with from now on; for the holder of the lease."""
        self._study.set_user_attr("spec", json.loads(json.dumps(spec.resolved())))
        self._study.set_user_attr("identity", _identity(spec))
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

    def frozen_trials(self) -> list[FrozenTrial]:
        """Optuna's view of all trials, in order of number."""
        return self._study.get_trials(deepcopy=False)

    def records(self) -> list[TrialRecord]:
        """All trials, in order of number."""
        return [_record(trial) for trial in self.frozen_trials()]

    def record(self, number: int) -> TrialRecord:
        return _record(self._frozen(number))

    def _frozen(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._id(number))

    def _id(self, number: int) -> int:
        if number not in self._ids:
            for trial in self.frozen_trials():
                self._ids[trial.number] = trial._trial_id
                self._reported[trial.number] = set(trial.intermediate_values)
        return self._ids[number]

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
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={
                "overrides": dict(overrides),
                "config": dict(config),
                "rounds": rounds,
                "baseline": baseline,
            },
        )
        self._study.add_trial(trial)
        added = self.frozen_trials()[-1]
        self._ids[added.number], self._reported[added.number] = added._trial_id, set()
        return int(added.number)

    def report(self, number: int, round_: int, value: float) -> None:
        """The objective after a round. Single-objective studies only; a round that was reported stays as it was."""
        trial_id = self._id(number)
        if round_ not in self._reported[number]:
            self._storage.set_trial_intermediate_value(trial_id, round_, value)
            self._reported[number].add(round_)

    def should_prune(self, number: int) -> bool:
        return bool(optuna.trial.Trial(self._study, self._id(number)).should_prune())

    def progress(self, number: int, progress: Mapping[str, Any]) -> None:
        """A round and its checkpoint, in one write: {"round", "time", "metrics", "checkpoint", "seconds", "budget"}."""
        self._storage.set_trial_user_attr(self._id(number), f"{ROUND}{progress['round']:06d}", dict(progress))

    def finish(self, number: int, state: TrialState, values: Sequence[float] = (), failure: str | None = None) -> None:
        """Final state of a trial; does nothing if it has one."""
        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return
        if failure:
            self._storage.set_trial_user_attr(frozen._trial_id, "failure", failure[:2000])
        if frozen.state == TrialState.WAITING:
            self._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
        self._study.tell(number, list(values) if state == TrialState.COMPLETE else None, state, skip_if_finished=True)

    def interrupt(self, number: int) -> None:
        """The driver ends in order while the trial is unfinished: it waits for the next driver."""
        frozen = self._frozen(number)
        if frozen.state == TrialState.RUNNING:
            self._storage.set_trial_state_values(frozen._trial_id, TrialState.WAITING)

    def resume(self, number: int) -> None:
        """A waiting trial runs again."""
        frozen = self._frozen(number)
        if frozen.state == TrialState.WAITING:
            self._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)

    def next_session(self) -> int:
        """Counts the drivers that this study has had; scratch folders carry the count."""
        session = int(self._study.user_attrs.get("sessions", 0)) + 1
        self._study.set_user_attr("sessions", session)
        return session

    # Lease: one driver per study

    def acquire(self, *, takeover: bool = False) -> None:
        """Takes the study's lease and keeps it alive in a thread.

        Raises: LedgerError naming the holder if another driver is alive, or may be.
        """
        held = self._study.user_attrs.get("lease")
        if held and not _is_dead(held):
            age = time.time() - held["heartbeat"]
            who = f"process {held['pid']} on {held['host']}, last heartbeat {age:.0f} s ago"
            if age < STALE_SECONDS:
                raise LedgerError(f"study {self.name!r} is being run by {who}; wait for it or stop it first")
            if not takeover:
                raise LedgerError(f"study {self.name!r} was run by {who}; if it is gone, add --takeover")
        self._holder = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
        }
        self._beat()
        threading.Thread(target=self._keep_alive, name="lease", daemon=True).start()

    def release(self) -> None:
        """Gives the lease back, if it is still ours."""
        self._stop_heartbeat.set()
        if self._holder and self._mine():
            self._study.set_user_attr("lease", None)
        self._holder = None

    def _beat(self) -> None:
        self._study.set_user_attr("lease", {**(self._holder or {}), "heartbeat": time.time()})

    def _mine(self) -> bool:
        held = self._study.user_attrs.get("lease")
        return bool(held and self._holder and held["id"] == self._holder["id"])

    def _keep_alive(self) -> None:
        # Two drivers that start in the same moment both pass the check in `acquire`; the later write wins, and the
        # first look after it tells the other one that it has lost, long before Ray is up.
        pause = SETTLE_SECONDS
        while not self._stop_heartbeat.wait(pause):
            pause = HEARTBEAT_SECONDS
            try:
                if not self._mine():
                    self.lost.set()
                    return
                self._beat()
            except Exception:  # an outage of the database is no reason to end; the main thread meets it too
                continue


def _process_start(pid: int) -> str:
    """When the process began, in the kernel's ticks, so that a reused pid is told apart; empty where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """True only if the holder ran on this machine and is known to be gone."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    started = _process_start(holder["pid"])
    return bool(started and holder.get("started") and started != holder["started"])


def _record(trial: FrozenTrial) -> TrialRecord:
    attrs = trial.user_attrs
    rounds = [attrs[name] for name in sorted(attrs) if name.startswith(ROUND)]
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
        budget=progress.get("budget", ""),
        warnings=tuple(progress.get("warnings", ())),
        failure=attrs.get("failure"),
        checkpoint=progress.get("checkpoint"),
        seconds=float(progress.get("seconds", 0.0)),
    )


def _identity(spec: StudySpec) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(spec.identity()))
    return found


def extends(old: Mapping[str, Any], new: Mapping[str, Any], created: int) -> bool:
    """Whether a study of identity `old` may go on as `new`: they are equal, or both are without a space.

    Such a study is a list of trials: what has not been created yet may change, and the list may become longer.
    """
    if old == new:
        return True
    listed, trials = old.get("baselines") or [], new.get("baselines") or []
    if new.get("space") or len(trials) < created or trials[:created] != listed[:created]:
        return False
    return {**old, "baselines": None} == {**new, "baselines": None}


def list_differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two JSON values differ: `path: old → new`, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in list_differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path}: {json.dumps(old)} → {json.dumps(new)}"]
