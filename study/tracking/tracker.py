"""MLflow as a view of the study: a parent run, a child run per trial, found again by their tags. Decides nothing.

All of it happens in one background thread: neither an outage nor a slow server holds the study up, and importing MLflow
(seconds) and making a new database (seconds more) overlap with Ray's start.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from study.ranking.objectives import goals
from study.ranking.standing import Standing
from study.records import Goal, TrialRecord, WorkerAway
from study.secrets import Address, cleaned
from study.tracking.address import artifact_location, default_uri, tracking_uri
from study.tracking.mlflow_client import SETTINGS, check_reachable, now
from study.tracking.mlflow_runs import MLflowRuns
from study.tracking.outbox import Courier, Parcel
from study.tracking.run_fields import study_metrics

if TYPE_CHECKING:
    from trainables.heartbeat import Place

logger = logging.getLogger(__name__)


class MLflowTracker:
    """An `Observer` that keeps MLflow's runs in step with the study.

    Every point has the time that the database has recorded for it: sent twice, it is one point to MLflow.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        uri: str | Address,
        study_name: str,
        artifact_root: str | None = None,
        experiment: str | None = None,
        identity: str = "",
        tags: Mapping[str, str] | None = None,
        held: Callable[[], bool] | None = None,
    ) -> None:
        """
        Args: spec: the resolved spec. uri: MLflow's address, absolute if it is a file. artifact_root: see
            `addresses.artifact_location`. experiment: MLflow experiment, default the study's name. identity: tells
            studies of one name in several databases apart; kept with the study. tags: set on every run. held: whether
            this driver still holds the study, asked before every request; None: always.

        MLflow is imported in a thread: pandas and pyarrow should not be half imported in another at this moment.
        """
        os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
        self._uri = Address(uri)
        self._spec = cleaned(spec)
        self._lock = threading.Lock()
        self._records: dict[int, TrialRecord] = {}
        self._standings: dict[Goal, Standing] = {goal: Standing([goal]) for goal in goals(self._spec)}
        self._all = Standing([])
        self._last_end = 0
        self._finished: bool | None = None
        own = {**(tags or {}), "study": study_name, **({"study_id": identity} if identity else {})}
        runs = MLflowRuns(
            self._uri,
            artifact_location(uri, artifact_root),
            experiment or study_name,
            own,
            self._spec,
            self._known,
            self._figures,
            self._is_finished,
            held or (lambda: True),
        )
        self._runs, self._courier = runs, Courier(runs)

    @property
    def page(self) -> str:
        """The page of the study's trials, from `#` on; empty until MLflow has answered."""
        return self._runs.page

    def reconcile(self, records: Sequence[TrialRecord]) -> None:
        """Called first, with all trials, once this driver holds the study: nothing is written before.

        Runs of trials that ended unseen are made, completed and terminated.
        """
        for record in records:
            self._remember(record)
        self._courier.start()
        for record in records:
            if record.finished:
                points = list(record.history)
                self._courier.put(Parcel(record=record, time=end_of(record), points=points, ended=True, stored=True))

    def trial_started(self, record: TrialRecord) -> None:
        self._remember(record)
        # With the rounds of earlier drivers: one that was killed may have taken them along unsent.
        self._courier.put(Parcel(record=record, time=now(), points=list(record.history), started=True))

    def trial_reported(self, record: TrialRecord) -> None:
        self._remember(record)
        points = list(record.history[-1:]) or [(record.round, now(), dict(record.metrics))]
        self._courier.put(Parcel(record=record, time=now(), points=points))

    def trial_paused(self, record: TrialRecord) -> None:
        """Nothing to send: the run stays open, and is marked as interrupted if the driver ends before it goes on."""
        self._remember(record)

    def trial_ended(self, record: TrialRecord) -> None:
        self._remember(record)
        # With all its rounds: the last ones may be those of a driver that was killed before it could tell them.
        self._courier.put(Parcel(record=record, time=end_of(record), points=list(record.history), ended=True))

    def workers_away(self, away: Mapping[int, WorkerAway]) -> None:
        """Nothing: it is of the moment, for the screen."""

    def rounds_at(self, places: "Mapping[int, Place]") -> None:
        """Nothing: it is of the moment, for the screen."""

    def tick(self) -> None:
        """Nothing: the thread keeps its own time."""

    def begin_close(self) -> None:
        """Nothing follows: what is left is sent while the caller does something else, and then calls `close`."""
        self._courier.begin_close()

    def close(self, *, finished: bool | None = None, abandoned: bool = False, timeout: float = 60.0) -> None:
        """Sends what is left and ends the parent run; warns of what could not be sent.

        Args: finished: whether the study reached its end; None: whether every trial of its budget has a final state.
            abandoned: another driver has taken the study over, and its runs must be left alone.
            timeout: seconds; a server that did not answer at the last attempt is waited for 10 at most.
        """
        if abandoned:
            self._courier.abandon()
            return
        self._finished = finished
        if not self._courier.close(timeout):
            numbers = ", ".join(map(str, self._courier.waiting()))
            what = f"trials {numbers}" if numbers else "the summary"
            logger.warning("MLflow at %s has not got everything (%s); the same command sends it again", self._uri, what)

    def _remember(self, record: TrialRecord) -> None:
        with self._lock:
            self._records[record.number] = record
            self._last_end = max(self._last_end, record.ended)
            for standing in (self._all, *self._standings.values()):
                standing.keep(record)

    def _figures(self) -> tuple[int, dict[str, float]]:
        """The study's curves, and the time of the last end that they count."""
        with self._lock:
            found = study_metrics(self._all.states, self._standings)
            return self._last_end or now(), {**found, "trials/ended": float(self._all.finished)}

    def _known(self) -> list[TrialRecord]:
        with self._lock:
            return sorted(self._records.values(), key=lambda record: record.number)

    def _is_finished(self) -> bool:
        if self._finished is not None:
            return self._finished
        records = self._known()
        budget = (self._spec.get("limits") or {}).get("trials") or 0
        return len(records) >= budget and all(record.finished for record in records)


def end_of(record: TrialRecord) -> int:
    """When a trial ended, as the database has recorded it."""
    return record.ended or now()


__all__ = ["MLflowTracker", "check_reachable", "default_uri", "tracking_uri"]
