"""What a run shows, as MLflow takes it: names, params, tags, metrics and files made from the study's own values."""

import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from study.ranking.objectives import headline
from study.ranking.ranking import scores
from study.ranking.standing import Standing
from study.records import Goal, TrialRecord
from study.reporting.text import plain_json
from study.secrets import cleaned, redact
from study.spec.objectives import probe_of
from study.tracking.outbox import Parcel

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
        """The last round that was logged. Older runs have it as a metric."""
        return int(self.tags.get("round", self.metrics.get("round", -1)))


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


def trial_params(record: TrialRecord, space: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What is searched, and `log10/<path>` where its range is logarithmic and the value above 0 (one of a baseline may
    be 0); all else is in config.yaml."""
    config = {**record.overrides, **flat(record.config)}
    searched = {path: config[path] for path in dict.fromkeys([*space, *record.overrides]) if path in config}
    logarithmic = {
        f"log10/{path}": round(math.log10(value), 4)
        for path, value in searched.items()
        if any(kind.endswith("log_uniform") for kind in space.get(path, ()))
        and isinstance(value, (int, float))
        and value > 0
    }
    return param_texts(searched | logarithmic)


def run_name(record: TrialRecord, space: Mapping[str, Any]) -> str:
    """`trial 011`, with model and data set where trials differ by them; baselines of a search are marked."""
    names = [str(record.overrides[path]) for path in ("model.name", "dataset.name") if path in record.overrides]
    return " ".join([f"trial {record.number:03d}", *names, *["(baseline)"] * (record.baseline and bool(space))])


def trial_tags(record: TrialRecord) -> dict[str, str]:
    """State and identity of a trial, what it ran on, and what was said of it."""
    tags = {"state": record.state.lower(), "baseline": str(record.baseline).lower(), "budget_digest": record.budget}
    config = flat(record.config)
    known = {"model": "model.name", "dataset": "dataset.name", "protocol": "protocol", "tier": "evaluation.tier"}
    tags |= {name: str(config[path]) for name, path in known.items() if path in config}
    told = {"failure": record.failure or "", "warnings": "\n".join(record.warnings)}
    return tags | {key: text for key, text in told.items() if text}


def curve_names(objectives: Sequence[Goal]) -> set[str]:
    """Scores that a trial's rounds are compared by."""
    return {*headline(objectives), "probe/acc", *(probe_of(objective.metric) for objective in objectives)}


def shown_metrics(metrics: Mapping[str, float], objectives: Sequence[Goal]) -> dict[str, float]:
    """What MLflow shows of a trial: scores with their spread, noise floor, guards, cost. The rest is in trial.json."""
    names = headline(objectives)
    wanted = {*curve_names(objectives), *(f"spread/{name}" for name in names), "noise/flip"}
    return {key: v for key, v in metrics.items() if key in wanted or key.startswith(("guard/", "cost/", "time/"))}


def new_metrics(parcel: Parcel, run: Run, objectives: Sequence[Goal]) -> tuple[list[tuple[str, float, int, int]], int]:
    """What a parcel tells that its run does not know: (name, value, ms, step) of each, and the last round behind it.

    Scores of rounds before the last are curves. At the end come the numbers of the last report: of a curve its last
    point, and all others at step 0, so that the pages draw no curve of one point.
    """
    record, curves = parcel.record, curve_names(objectives)
    points = [point for point in parcel.points if run.step < point[0] < record.rounds]
    found = [(key, value, at, step) for step, at, own in points for key, value in own.items() if key in curves]
    last = max([run.step, *(step for step, _, _ in points)])
    if not parcel.ended:
        return found, last
    known = {*run.metrics, *(metric_name(key) for key, *_ in found)}
    final = shown_metrics(record.metrics, objectives) | {"time/trial_s": record.seconds}
    if record.round <= last:
        final = {key: value for key, value in final.items() if metric_name(key) not in known}
    times = {step: at for step, at, _ in parcel.points}
    for key, value in final.items():
        curve = key in curves and metric_name(key) in known
        at = times.get(record.round, parcel.time) if curve else parcel.time
        found.append((key, value, at, record.round if curve else 0))
    return found, max(record.round, last)


def whole_record(record: TrialRecord) -> str:
    """Everything that is known of a trial as JSON: all metrics of every round, parameters, attempts, digests."""
    return redact(json.dumps(plain_json(cleaned(asdict(record))), indent=1, ensure_ascii=False, allow_nan=False))


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML without passwords."""
    return yaml.safe_dump(cleaned(settings), sort_keys=False, allow_unicode=True)


def data_digests(record: TrialRecord) -> dict[str, str]:
    """Digest of each data part that the trial used, as its checkpoint tells them."""
    from study.reporting.trial_figures import load_part_digests

    return load_part_digests(record.checkpoint)


DIGEST_LENGTH = 36
"""What MLflow takes of a data set's digest."""


def shown_dataset(record: TrialRecord, digest: str) -> dict[str, str]:
    """A part of the trial's data as MLflow's `Dataset` has it; its source is the trial's `dataset` settings."""
    settings = record.config.get("dataset") or {}
    source = json.dumps(cleaned(settings))
    kind = "local" if settings.get("root") or settings.get("path") else "code"
    return {
        "name": str(settings.get("name", "data")),
        "digest": digest[:DIGEST_LENGTH],
        "source_type": kind,
        "source": source,
    }


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
