"""What a run shows, as MLflow takes it: names, params, tags, metrics and files made from the study's own values."""

import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from study.ranking.ranking import scores
from study.ranking.standing import Standing
from study.records import Goal, TrialRecord
from study.secrets import cleaned, redact
from study.tracking.outbox import Parcel, Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

VALUE_LENGTH, TAG_LENGTH = 500, 5000
"""What the smallest of MLflow's stores takes."""


@dataclass
class Run:
    """What MLflow holds of a run, as far as it decides what is still to be sent."""

    id: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The last round that was logged."""
        return int(self.metrics.get("round", -1))


def as_run(run: Any) -> Run:
    """From MLflow's own entity."""
    return Run(run.info.run_id, run.info.status, dict(run.data.tags), set(run.data.params), dict(run.data.metrics))


def metric_name(key: str) -> str:
    """A name that MLflow takes: letters, digits, and `_ - . : /` or space."""
    return re.sub(r"[^\w\-.: /]", "_", key)


def cut(items: list[Any], size: int) -> list[list[Any]]:
    """The items in pieces of at most `size`; one empty piece if there are none."""
    return [items[i : i + size] for i in range(0, len(items), size)] or [[]]


def tag_texts(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without passwords, cut to what every store takes."""
    return {key: redact(str(text))[:TAG_LENGTH] for key, text in tags.items()}


def whole_lines(text: str) -> str:
    """As many lines of a text as a tag takes."""
    return text if len(text) <= TAG_LENGTH else text[: text.rindex("\n", 0, TAG_LENGTH)]


def flat(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    found: dict[str, Any] = {}
    for key, item in settings.items():
        name = f"{path}.{key}" if path else str(key)
        found |= flat(item, name) if isinstance(item, Mapping) and item else {name: item}
    return found


def param_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Values as texts without passwords, lists as JSON, cut to what every store takes."""
    shown = {key: item if isinstance(item, str) else json.dumps(item, default=str) for key, item in settings.items()}
    return {key: redact(text)[:VALUE_LENGTH] for key, text in shown.items()}


def trial_params(record: TrialRecord) -> dict[str, str]:
    """What was searched first, then the whole config, so that a limit on params never costs a searched one."""
    config = flat(record.config)
    return param_texts({**{path: config.get(path, value) for path, value in record.overrides.items()}, **config})


def trial_tags(record: TrialRecord) -> dict[str, str]:
    """State and identity of a trial, and what was said of it."""
    tags = {"state": record.state.lower(), "baseline": str(record.baseline).lower(), "budget_digest": record.budget}
    told = {"failure": record.failure or "", "warnings": "\n".join(record.warnings)}
    return tags | {key: text for key, text in told.items() if text}


def last_metrics(parcel: Parcel, run: Run, points: Sequence[Point]) -> list[tuple[str, float, int, int]]:
    """The metrics of the trial's end that no report brought: all if its last round is not logged yet."""
    record = parcel.record
    last = max(run.step, *(step for step, _, _ in points), -1)
    final = {**record.metrics, "round": float(record.round), "time/trial_s": record.seconds}
    if record.round <= last:
        known = {*run.metrics, *(metric_name(key) for _, _, metrics in points for key in metrics), "round"}
        final = {key: value for key, value in final.items() if metric_name(key) not in known}
    return [(key, value, parcel.time, max(record.round, last)) for key, value in final.items()]


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML without passwords."""
    return yaml.safe_dump(cleaned(settings), sort_keys=False, allow_unicode=True)


def data_tags(record: TrialRecord) -> dict[str, str]:
    """Digest of each data part that the trial used, as its checkpoint tells them."""
    from study.reporting.trial_figures import load_part_digests

    return {f"data_digest.{part}": digest for part, digest in load_part_digests(record.checkpoint).items()}


def figures_of(record: TrialRecord) -> "dict[str, Figure]":
    """Figures of a trial; a fault in drawing them is no reason to send the trial again."""
    from study.reporting.trial_figures import load_arrays, trial_figures

    try:
        return trial_figures(record, load_arrays(record.checkpoint))
    except Exception as error:
        logger.warning("no figures of trial %d: %s", record.number, reason_of(error))
        return {}


def refuses_login(error: BaseException) -> bool:
    """Whether MLflow's server wants another user or password."""
    return getattr(error, "error_code", None) == "UNAUTHENTICATED"


def reason_of(error: BaseException) -> str:
    """The first line of an error without passwords, for people."""
    if refuses_login(error):
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        if all(os.environ.get(name) for name in names):
            return f"the user or the password in {' and '.join(names)} is wrong"
        return f"it wants a user and a password; set {' and '.join(names)}"
    lines = redact(str(error)).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def study_metrics(states: Mapping[str, int], standings: Mapping[Goal, Standing]) -> dict[str, float]:
    """The study in numbers: trials by final state, and the best value of each objective.

    Args: standings: of the study's trials by each objective alone.
    """
    found = {f"trials/{state.lower()}": float(states.get(state, 0)) for state in ("COMPLETE", "PRUNED", "FAIL")}
    for objective, standing in standings.items():
        if best := standing.best:
            found[f"best/{objective.metric}"] = (scores(best, [objective]) or (math.nan,))[0]
    return found
