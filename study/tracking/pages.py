"""MLflow's pages of a study: the view that shows its trials best first, and the link to it."""

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from study.records import Goal
from study.secrets import Address
from study.tracking.address import default_uri
from study.tracking.run_fields import metric_name

VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of the tags of an experiment that hold its saved views; MLflow's pages list them under Views."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's word for experiments not about language models. Pages of 3.17 go by the link (`trials_link`)."""
OTHER_COLUMNS = ("clean/acc", "robust/acc")


def view_key(study: str) -> str:
    """What the view of a study is found by in its experiment."""
    return metric_name(study)


def views(tags: Mapping[str, str]) -> list[str]:
    """The studies of an experiment, by the views that its tags hold; people may have saved others beside them."""
    found = {key.removeprefix(VIEW_TAG): text for key, text in tags.items() if key.startswith(VIEW_TAG)}
    return [study for study, text in found.items() if text.startswith('{"name": "trials of ')]


def trials_link(experiment: str, study: str) -> str:
    """The page of the study's trials, from `#` on; MLflow's server stands before it.

    The kind of work is in the link: without it the pages open those for language models, whatever the experiment says.
    """
    query = {"workflowType": "machine_learning", "viewStateShareKey": view_key(study), "compareRunsMode": "TABLE"}
    return f"#/experiments/{quote(experiment)}/runs?{urlencode(query, quote_via=quote)}"


def saved_view(study: str, objectives: Sequence[Goal], paths: Iterable[str]) -> str:
    """A view as MLflow saves it: the study's trials, best first, with objectives and searched parameters as columns.

    Args: paths: of the searched parameters.
    """
    columns = [f"metrics.`{metric_name(name)}`" for name in (*(goal.metric for goal in objectives), *OTHER_COLUMNS)]
    columns += [f"params.`{metric_name(path)}`" for path in paths]
    state: dict[str, Any] = {
        "searchFilter": f"tags.role = 'trial' and tags.study = '{study}'",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": [*dict.fromkeys(columns), "tags.`state`"],
    }
    if objectives:
        state |= {"orderByKey": columns[0], "orderByAsc": objectives[0].mode == "min"}
    # The time is the same at every start of a driver, so that the view is written once.
    return json.dumps({"name": f"trials of {study}, best first", "createdAt": 0, "state": json.dumps(state)})


def description(study: str, spec: Mapping[str, Any], objectives: Sequence[Goal], link: str) -> str:
    """What the experiment is about, as Markdown, with the way to its trials."""
    goal = ", ".join(f"{objective.metric} ({objective.mode})" for objective in objectives)
    trial = spec.get("trial") or {}
    names = [(trial.get(part) or {}).get("name") for part in ("model", "dataset")]
    what = " on ".join(str(name) for name in names if name)
    facts = [f"Study {study}" + f": {what}" * bool(what), f"objective {goal}" if goal else ""]
    facts += ["searched: " + ", ".join(spec["space"])] if spec.get("space") else []
    return f"{'; '.join(filter(None, facts))}. [Trials, best first]({link})"


def server_of_pages() -> str:
    """Where `make ui` serves the pages on this machine."""
    return f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}/"


def pages(uri: Address, storage: str, page: str) -> str:
    """How people get to the page of a study's trials: an address, or the command that serves it and the address then.

    Args: storage: as the study names it. page: from `#` on, empty if it is not known.
    """
    if uri.kind.startswith("http"):
        return f"{str(uri).rstrip('/')}/{page}"
    if uri.kind.startswith("databricks"):
        return str(uri)
    here = "MLFLOW_TRACKING_URI" in os.environ or uri.reveal() == default_uri()
    command = "make ui" if here else f"python -m study.ui --storage {shlex.quote(storage)}"
    return f"{command}, then {server_of_pages()}{page}"
