"""What a study would do, without doing it: the resolved spec, its first trials, resources and cost."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import yaml

from study.planning.cost import Cost, Passes, round_costs, trial_cost
from study.planning.pace import seconds_of, seconds_of_work
from study.planning.preflight import data_facts, resolved_trial
from study.planning.saved_models import with_target
from study.planning.search import Search
from study.planning.suggestions import preview
from study.ranking.label_free import NOT_CORRECTNESS, guarded
from study.records import TrialRecord, duration
from study.spec.study_spec import StudySpec
from trainables.config import TrialConfig

SHOWN_SAMPLES = 3
"""Sampled trials that are shown, behind the baselines."""


@dataclass(frozen=True)
class PlannedTrial:
    """A trial as an empty study would give it out."""

    number: int
    baseline: bool
    overrides: dict[str, Any]
    cost: Cost


def dry_run(spec: StudySpec, records: Sequence[TrialRecord] = (), *, as_json: bool, here: bool = True) -> str:
    """What the study would do. Starts and creates nothing.

    Args: records: trials that it has already. as_json: JSON in place of YAML and comment lines. here: whether trials
        would run on this machine, so that a training step that is tried here says how long they take.
    Raises: as `with_target`.
    """
    spec = with_target(spec)
    count = min(len(spec.baselines) + SHOWN_SAMPLES, spec.trials)
    trials = [
        PlannedTrial(number, number < len(spec.baselines), overrides, _cost(spec, overrides))
        for number, overrides in enumerate(preview(spec, count))
    ]
    left, seconds, source = _time(spec, trials, records, here)
    if as_json:
        facts = {
            "spec": spec.resolved(),
            "first_trials": [asdict(trial) for trial in trials],
            "resources": {**spec.resources.model_dump(), "side_by_side": spec.limits.concurrent},
            "notes": spec.notes,
            "work": {**_work(spec), "passes": asdict(_total(spec, trials))},
            "left": {"trials": left, "seconds": seconds, "source": source},
        }
        return json.dumps(facts, indent=1)
    return yaml.safe_dump(spec.resolved(), sort_keys=False, allow_unicode=True) + "\n".join(
        [*_lines(spec, trials), f"# time       {_time_text(left, seconds, source)}", "# nothing was started"]
    )


def _cost(spec: StudySpec, overrides: dict[str, Any]) -> Cost:
    config, budget, facts = resolved_trial(spec, overrides)
    return trial_cost(config, budget, facts.sizes, facts.n_clusters)


def _total(spec: StudySpec, trials: list[PlannedTrial]) -> Passes:
    """Passes of the whole study: the trials shown, and the rest like the sampled ones among them; of a search whose
    trials begin in cohorts what it is expected to spend."""
    if spec.staged:
        config, budget, facts = resolved_trial(spec, {})
        costs = round_costs(config, budget, facts.sizes, facts.n_clusters)
        whole, spent = sum(costs, Passes()), Search(spec, lambda record: costs).expected()
        forward = round(spent * whole.forward / whole.total)
        return Passes(forward, spent - forward)
    shown = [trial.cost.total for trial in trials]
    sampled = shown[len(spec.baselines) :]
    total = sum(shown, Passes())
    rest = spec.trials - len(trials)
    if not (sampled and rest):
        return total
    mean = sum(sampled, Passes())
    return total + Passes(round(rest * mean.forward / len(sampled)), round(rest * mean.backward / len(sampled)))


def _time(
    spec: StudySpec, trials: Sequence[PlannedTrial], records: Sequence[TrialRecord], here: bool
) -> tuple[int, float | None, str]:
    """Trials that are still to be run, the seconds that they take together, and what these are taken from."""
    left = max(0, spec.trials - sum(record.finished for record in records))
    ran = [record.seconds for record in records if record.state == "COMPLETE"]
    if not left:
        return 0, 0.0, ""
    if spec.staged and not records and here and (tried := _tried(spec, trials)):
        spent, whole = _total(spec, []).total, trials[-1].cost.total.total
        source = "one training step that was tried here"
        return left, tried * spent / whole / min(spec.limits.concurrent, left), source
    if ran:
        each, source = fmean(ran), f"the {len(ran)} complete trials of this study"
    elif here and (tried := _tried(spec, trials)):
        each, source = tried, "one training step that was tried here"
    else:
        return left, None, ""
    return left, each * math.ceil(left / spec.limits.concurrent), source


def _tried(spec: StudySpec, trials: Sequence[PlannedTrial]) -> float | None:
    """Seconds of a trial, by one training step of each model among the trials; None where that does not tell."""
    rates: dict[tuple[str, str], float | None] = {}
    seconds: list[float] = []
    for trial in trials:
        config = spec.trial_config(trial.overrides)
        if not isinstance(config, TrialConfig):
            return None  # fitting generators is not counted in passes
        key = config.model.name, config.dataset.name
        if key not in rates:
            rates[key] = seconds_of_work(config, spec.resources.cpu)
        if (rate := rates[key]) is not None:
            sizes = data_facts(config.dataset, config.protocol).sizes
            scored = config.evaluation.scored(sizes.get(config.score_on, sizes.get("attack", 0)))
            seconds.append(seconds_of(trial.cost, config, min(config.evaluation.batch_size, scored), rate))
    return fmean(seconds) if seconds else None


def _time_text(left: int, seconds: float | None, source: str) -> str:
    if not left:
        return "none: every trial has run"
    if seconds is None:
        return f"not known before the first of {left} trials has run"
    return f"about {duration(seconds)} for {left} trials, by {source}"


def _work(spec: StudySpec) -> dict[str, int]:
    """Trials × rounds × epochs × seeds."""
    config = spec.trial_config({})
    epochs, seeds = (
        (config.total_epochs, config.seeds) if isinstance(config, TrialConfig) else (config.attack.epochs, 1)
    )
    return {
        "trials": spec.trials,
        "rounds": config.rounds,
        "epochs_per_round": min(config.evaluate_every, epochs),
        "epochs": epochs,
        "seeds": seeds,
    }


def _lines(spec: StudySpec, trials: list[PlannedTrial]) -> list[str]:
    lines = ["", "# first trials"]
    for trial in trials:
        values = ", ".join(f"{path}: {_short(value)}" for path, value in trial.overrides.items())
        lines.append(f"# {trial.number:>4} {'baseline' if trial.baseline else 'sampled':<8} {{{values}}}")
        parts = {"training": trial.cost.training, "evaluation": trial.cost.evaluation}
        for part, passes in parts.items():
            lines.append(f"#      {part:<10} {passes.forward:>12,} forward {passes.backward:>12,} backward passes")
    work, total = _work(spec), _total(spec, trials)
    lines += [
        f"# resources  {spec.resources.cpu:g} CPU and {spec.resources.gpu:g} GPU a trial, "
        f"at most {spec.limits.concurrent} side by side",
        f"# trials     {work['trials']} × {work['rounds']} rounds × {work['epochs_per_round']} epochs "
        f"({work['epochs']} in all) × {work['seeds']} seeds",
        f"# in total   about {total.forward:,} forward and {total.backward:,} backward passes of one batch each, "
        + ("as the search is expected to spend them" if spec.staged else "if no trial is stopped early"),
        *(
            textwrap.wrap(NOT_CORRECTNESS, 118, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
            if guarded(spec.objectives)
            else ()
        ),
        *(f"# note       {note}" for note in spec.notes),
    ]
    return lines


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
