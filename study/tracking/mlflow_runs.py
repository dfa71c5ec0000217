"""Runs in MLflow: found again by their tags, made, and completed."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from study.places import sqlite_file
from study.provenance import command, environment, git_commit, versions
from study.ranking.objectives import goals
from study.records import TrialRecord
from study.secrets import Address, redact
from study.tracking.address import make_sqlite, settle
from study.tracking.mlflow_client import Fenced, make_client
from study.tracking.outbox import Parcel
from study.tracking.run_fields import (
    Run,
    as_run,
    as_yaml,
    cut,
    data_tags,
    figures_of,
    flat,
    last_metrics,
    metric_name,
    param_texts,
    reason_of,
    tag_texts,
    trial_params,
    trial_tags,
    whole_lines,
)

logger = logging.getLogger(__name__)

ENDED = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}
"""State of a trial → status of its run. MLflow knows no PRUNED: the tag `state` tells it."""

METRICS_A_BATCH, PARAMS_A_BATCH = 800, 90
"""Below MLflow's limits of 1000 entities and 100 params in one request."""

ARTIFACT_ATTEMPTS = 3


class MLflowRuns:
    """The study's runs in one MLflow store. Every step first looks at what is there, so that nothing is made twice.

    A Courier calls all of it from one thread. Every method may raise anything, and LeaseLost to be called no more.
    """

    def __init__(
        self,
        uri: Address,
        artifacts: str | None,
        experiment: str,
        tags: Mapping[str, str],
        spec: Mapping[str, Any],
        records: Callable[[], list[TrialRecord]],
        figures: Callable[[], tuple[int, dict[str, float]]],
        is_finished: Callable[[], bool],
        held: Callable[[], bool],
    ) -> None:
        self.name = f"MLflow at {uri}"
        self._uri, self._artifacts, self._experiment_name = uri, artifacts, experiment
        self._tags, self._spec, self._is_finished = dict(tags), spec, is_finished
        self._records, self._figures, self._held = records, figures, held
        self._client: Any = None
        self._experiment = ""
        self._parent: Run | None = None
        self._children: dict[int, Run] = {}
        self._described = False
        self._environment = ""

    # As the courier knows it

    def prepare(self) -> None:
        """What takes long and changes nothing that others see; called first, and again after it failed."""
        if self._client is not None:
            return
        if file := sqlite_file(self._uri):
            make_sqlite(file)
        client = make_client(self._uri)
        self._environment = environment()
        self._tags |= {f"version.{name}": version for name, version in versions().items()}
        self._tags |= {"mlflow.source.name": command()}
        if commit := git_commit():
            self._tags["mlflow.source.git.commit"] = commit
        self._client = Fenced(client, self._held)

    def open(self) -> None:
        """Finds or makes the study's run; called before every round of sending, and cheap if nothing was forgotten."""
        if file := sqlite_file(self._uri):
            settle(file)  # each time: the pages may be looked at meanwhile where the folder is mounted a second time
        if self._parent is not None:
            return
        experiment = self._open_experiment()
        parent = self._find_or_make_parent(experiment)
        self._children = self._find_children(experiment, parent)
        self._experiment = experiment
        if not self._described:
            self._describe(parent)
            self._described = True
        self._parent = parent

    def forget(self) -> None:
        """Something failed: what is known of the other side may be wrong."""
        self._parent = None

    def refused(self, error: Exception) -> str | None:
        """The reason if the parcel itself is at fault, None if sending it later may work."""
        code = getattr(error, "error_code", None)
        own = isinstance(error, TypeError | KeyError | AttributeError | ValueError) and code is None
        codes = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")
        return reason_of(error) if own or code in codes else None

    def reason(self, error: Exception) -> str:
        """An error in a line without passwords."""
        return reason_of(error)

    def send(self, parcel: Parcel) -> None:
        """Takes a parcel, be it for the second time."""
        record, run = parcel.record, self._children.get(parcel.number)
        state = record.state.lower()
        if parcel.stored and run is not None and run.status == ENDED[record.state] and run.tags.get("state") == state:
            return
        if run is None:
            begin = parcel.time - (round(1000 * record.seconds) if parcel.stored else 0)
            run = self._children[parcel.number] = self._make_child(record, begin)
        if parcel.started and not parcel.ended and run.status != "RUNNING":
            self._client.update_run(run.id, status="RUNNING")
            run.status = "RUNNING"
        points = [point for point in parcel.points if point[0] > run.step]
        metrics = [(key, value, at, step) for step, at, own in points for key, value in {**own, "round": step}.items()]
        if parcel.ended:
            metrics += last_metrics(parcel, run, points)
        self._log(run, metrics=metrics, params=trial_params(record), tags=trial_tags(record))
        if parcel.ended:
            self._store(parcel, run)
            self._client.set_terminated(run.id, status=ENDED[record.state], end_time=parcel.time)
            run.status = ENDED[record.state]
            self._progress()

    def finish(self) -> None:
        """Ends the parent with the study's figures; runs of interrupted trials wait as KILLED for the next driver."""
        assert self._parent is not None
        for run in self._children.values():
            if run.status == "RUNNING":
                self._log(run, tags={"state": "interrupted"})
                self._client.set_terminated(run.id, status="KILLED")
        records, objectives = self._records(), goals(self._spec)
        if records and objectives:
            from study.reporting.study_figures import study_figures
            from study.reporting.tables import leaderboard_csv, leaderboard_page

            table = redact(leaderboard_page(records, objectives))
            self._log(self._parent, tags={"mlflow.note.content": whole_lines(table)})
            self._client.log_text(self._parent.id, table, "leaderboard.md")
            self._client.log_text(self._parent.id, redact(leaderboard_csv(records, objectives)), "leaderboard.csv")
            for name, figure in study_figures(records, objectives, self._spec.get("space", {})).items():
                self._client.log_figure(self._parent.id, figure, f"figures/{name}.png")
        self._client.set_terminated(self._parent.id, status="FINISHED" if self._is_finished() else "KILLED")

    # Finding and making runs

    def _open_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment_name)
        if found is None:
            # The UI opens an experiment without a kind on pages for language models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            made = self._client.create_experiment(self._experiment_name, artifact_location=self._artifacts, tags=kind)
            return str(made)
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _search(self, experiment: str, role: str) -> list[Run]:
        """The study's runs of a role, oldest first."""
        found, token = [], None
        query = f"tags.role = '{role}' and tags.study = '{self._tags['study']}'"
        while True:
            page = self._client.search_runs([experiment], query, order_by=["attributes.start_time"], page_token=token)
            found += [run for run in page if run.data.tags.get("study_id", "") == self._tags.get("study_id", "")]
            token = page.token
            if not token:
                return [as_run(run) for run in found]

    def _find_or_make_parent(self, experiment: str) -> Run:
        runs = self._search(experiment, "study")
        if not runs:
            tags = tag_texts({**self._tags, "role": "study"})
            return as_run(self._client.create_run(experiment, tags=tags, run_name=self._tags["study"]))
        if runs[0].status != "RUNNING":
            self._client.update_run(runs[0].id, status="RUNNING")
        return runs[0]

    def _find_children(self, experiment: str, parent: Run) -> dict[int, Run]:
        children: dict[int, Run] = {}
        for run in self._search(experiment, "trial"):
            number = int(run.tags["trial_number"])
            if number in children:
                # Made twice when the answer to the first request was lost; the older one has the metrics.
                self._client.delete_run(run.id)
                continue
            if run.tags.get("mlflow.parentRunId") != parent.id:
                self._client.set_tag(run.id, "mlflow.parentRunId", parent.id)
            children[number] = run
        return children

    def _make_child(self, record: TrialRecord, begin: int) -> Run:
        assert self._parent is not None
        own = {"role": "trial", "trial_number": str(record.number), "mlflow.parentRunId": self._parent.id}
        tags = tag_texts({**self._tags, **own, **trial_tags(record)})
        # Where trials differ by model or data set, people look for these and not for numbers.
        names = [str(record.overrides[path]) for path in ("model.name", "dataset.name") if path in record.overrides]
        name = " ".join([f"trial {record.number:03d}", *names])
        return as_run(self._client.create_run(self._experiment, start_time=begin, tags=tags, run_name=name))

    # What is in a run

    def _log(
        self,
        run: Run,
        *,
        metrics: Sequence[tuple[str, float, int, int]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """One request, or as few as MLflow's limits allow. Only what is new and finite is sent."""
        from mlflow.entities import Metric, Param, RunTag

        numbers = [Metric(metric_name(key), float(v), at, step) for key, v, at, step in metrics if math.isfinite(v)]
        texts = [
            Param(metric_name(key), text) for key, text in (params or {}).items() if metric_name(key) not in run.params
        ]
        labels = [RunTag(key, text) for key, text in tag_texts(tags or {}).items() if run.tags.get(key) != text]
        if not (numbers or texts or labels):
            return
        for i, (some, few) in enumerate(zip_longest(cut(numbers, METRICS_A_BATCH), cut(texts, PARAMS_A_BATCH))):
            self._client.log_batch(run.id, metrics=some or (), params=few or (), tags=() if i else labels)
        run.metrics |= {metric.key: metric.value for metric in numbers}
        run.params |= {param.key for param in texts}
        run.tags |= {label.key: label.value for label in labels}

    def _store(self, parcel: Parcel, run: Run) -> None:
        """Files of a trial. A store of files that fails while runs are taken costs the files, not the run."""
        record = parcel.record
        try:
            self._client.log_text(run.id, as_yaml(record.config), "config.yaml")
            self._client.log_text(run.id, self._environment, "environment.txt")
            for name, figure in figures_of(record).items():
                self._client.log_figure(run.id, figure, f"figures/{name}.png")
            self._log(run, tags=data_tags(record))
        except Exception as error:
            parcel.artifact_attempts += 1
            if parcel.artifact_attempts < ARTIFACT_ATTEMPTS:
                raise
            logger.warning("%s: files of trial %d are not stored: %s", self.name, record.number, reason_of(error))

    def _describe(self, parent: Run) -> None:
        """The study's settings. Limits may be raised later and params may not change, so limits are tags."""
        settings = {
            key: self._spec.get(key) for key in ("seed", "trainable", "objective", "sampler", "pruner", "space")
        }
        limits = {key: str(text) for key, text in flat(self._spec.get("limits") or {}, "limits").items()}
        self._log(parent, params=param_texts(flat({k: v for k, v in settings.items() if v is not None})), tags=limits)
        self._log(parent, tags=self._tags)
        self._client.log_text(parent.id, as_yaml(self._spec), "study.yaml")
        self._client.log_text(parent.id, self._environment, "environment.txt")

    def _progress(self) -> None:
        """The study's own curves: best value and counts, by the number of trials that have ended."""
        assert self._parent is not None
        at, found = self._figures()
        ended = int(found["trials/ended"])
        if ended <= self._parent.metrics.get("trials/ended", -1):
            return
        self._log(self._parent, metrics=[(key, value, at, ended) for key, value in found.items()])
