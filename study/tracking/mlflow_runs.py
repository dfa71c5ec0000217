"""Runs in MLflow: found again by their tags, made, and completed."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from study.places import sqlite_file
from study.provenance import command, environment, git_commit, user, versions
from study.ranking.objectives import goals
from study.records import TrialRecord
from study.secrets import Address, redact
from study.tracking.address import make_sqlite, settle
from study.tracking.mlflow_client import Fenced, make_client
from study.tracking.outbox import Parcel
from study.tracking.pages import KIND, VIEW_TAG, description, saved_view, trials_link, view_key
from study.tracking.run_fields import (
    Run,
    as_run,
    as_yaml,
    cut,
    data_digests,
    figures_of,
    flat,
    metric_name,
    new_metrics,
    param_texts,
    reason_of,
    run_name,
    shown_dataset,
    tag_texts,
    trial_params,
    trial_tags,
    whole_lines,
    whole_record,
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
        self._goals, self._space = goals(spec), spec.get("space") or {}
        self._client: Any = None
        self._experiment = ""
        self._parent: Run | None = None
        self._children: dict[int, Run] = {}
        self._described = False
        self._environment = ""
        self.page = ""
        """The page of the study's trials, from `#` on; empty until the experiment is known."""

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
        self._tags |= {"mlflow.source.name": command(), "mlflow.source.type": "LOCAL"}
        if name := user():
            self._tags["mlflow.user"] = name
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
        metrics, last = new_metrics(parcel, run, self._goals)
        tags = trial_tags(record) | ({"round": str(last)} if last >= 0 else {})
        self._log(run, metrics=metrics, params=trial_params(record, self._space), tags=tags)
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
        records, objectives = self._records(), self._goals
        if records and objectives:
            from study.reporting.study_figures import study_figures
            from study.reporting.tables import leaderboard_csv, leaderboard_page

            table = redact(leaderboard_page(records, objectives))
            self._log(self._parent, tags={"mlflow.note.content": whole_lines(table)})
            self._client.log_text(self._parent.id, table, "leaderboard.md")
            self._client.log_text(self._parent.id, redact(leaderboard_csv(records, objectives)), "leaderboard.csv")
            for name, figure in study_figures(records, objectives, self._spec.get("space", {})).items():
                self._client.log_figure(self._parent.id, figure, f"figures/{name}.png")
        if not self._is_finished():
            self._client.set_terminated(self._parent.id, status="KILLED")
        elif self._parent.status != "FINISHED":
            self._client.set_terminated(self._parent.id, status="FINISHED", end_time=self._figures()[0])
            self._parent.status = "FINISHED"

    # Finding and making runs

    def _open_experiment(self) -> str:
        name, tags = self._experiment_name, dict(KIND)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            number = str(self._client.create_experiment(name, artifact_location=self._artifacts, tags=KIND))
        else:
            number, tags = str(found.experiment_id), dict(found.tags)
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(number)
        study = self._tags["study"]
        page = trials_link(number, study)
        wanted = {VIEW_TAG + view_key(study): redact(saved_view(study, self._goals, self._space))}
        if "mlflow.note.content" not in tags:  # which people may change on the pages
            wanted["mlflow.note.content"] = redact(description(study, self._spec, self._goals, page))
        for key, text in wanted.items():
            if tags.get(key) != text:
                self._client.set_experiment_tag(number, key, text)
        self.page = page
        return number

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
        finished = runs[0].status == "FINISHED" and self._is_finished()
        if runs[0].status != "RUNNING" and not finished:
            self._client.update_run(runs[0].id, status="RUNNING")
            runs[0].status = "RUNNING"
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
        name = run_name(record, self._space)
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
            self._client.log_text(run.id, whole_record(record), "trial.json")
            self._client.log_text(run.id, self._environment, "environment.txt")
            for name, figure in figures_of(record).items():
                self._client.log_figure(run.id, figure, f"figures/{name}.png")
            self._log_data(run, record)
        except Exception as error:
            parcel.artifact_attempts += 1
            if parcel.artifact_attempts < ARTIFACT_ATTEMPTS:
                raise
            logger.warning("%s: files of trial %d are not stored: %s", self.name, record.number, reason_of(error))

    def _log_data(self, run: Run, record: TrialRecord) -> None:
        """The parts of the data that a trial used, for its run and the study's."""
        assert self._parent is not None
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digests = data_digests(record)
        self._log(run, tags={f"data_digest.{part}": digest for part, digest in digests.items()})
        inputs = [
            DatasetInput(Dataset(**shown_dataset(record, digest)), [InputTag("mlflow.data.context", part)])
            for part, digest in digests.items()
        ]
        if inputs:
            for each in (run, self._parent):
                self._client.log_inputs(each.id, datasets=inputs)

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
