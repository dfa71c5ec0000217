"""What a study would do, without doing it: the resolved spec, its first trials, resources and cost."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from study.planning.cost import Cost, Passes, trial_cost
from study.planning.preflight import data_facts, target_trial
from study.planning.suggestions import preview
from study.spec.study_spec import StudySpec
from trainables.config import AttackTrialConfig, TrialConfig

SHOWN_SAMPLES = 3
"""Sampled trials that are shown, behind the baselines."""


@dataclass(frozen=True)
class PlannedTrial:
    """A trial as an empty study would give it out."""

    number: int
    baseline: bool
    overrides: dict[str, Any]
    cost: Cost


def dry_run(spec: StudySpec, *, as_json: bool) -> str:
    """Args: as_json: JSON in place of YAML and comment lines. Starts and creates nothing."""
    count = min(len(spec.baselines) + SHOWN_SAMPLES, spec.trials)
    trials = [
        PlannedTrial(number, number < len(spec.baselines), overrides, _cost(spec, overrides))
        for number, overrides in enumerate(preview(spec, count))
    ]
    if as_json:
        facts = {
            "spec": spec.resolved(),
            "first_trials": [asdict(trial) for trial in trials],
            "resources": {**spec.resources.model_dump(), "side_by_side": spec.limits.concurrent},
            "notes": spec.notes,
            "work": {**_work(spec), "passes": asdict(_total(spec, trials))},
        }
        return json.dumps(facts, indent=1)
    return yaml.safe_dump(spec.resolved(), sort_keys=False, allow_unicode=True) + "\n".join(_lines(spec, trials))


def _cost(spec: StudySpec, overrides: dict[str, Any]) -> Cost:
    config = spec.trial_config(overrides)
    target = target_trial(spec) if isinstance(config, AttackTrialConfig) else config
    facts = data_facts(target.dataset, "strict" if isinstance(config, AttackTrialConfig) else target.protocol)
    budget = config.evaluation.resolve(target.dataset.name, len(facts.view_shapes))
    return trial_cost(config, budget, facts.sizes, facts.n_clusters)


def _total(spec: StudySpec, trials: list[PlannedTrial]) -> Passes:
    """Passes of the whole study: the trials shown, and the rest like the sampled ones among them."""
    shown = [trial.cost.total for trial in trials]
    sampled = shown[len(spec.baselines) :]
    total = sum(shown, Passes())
    rest = spec.trials - len(trials)
    if not (sampled and rest):
        return total
    mean = sum(sampled, Passes())
    return total + Passes(round(rest * mean.forward / len(sampled)), round(rest * mean.backward / len(sampled)))


def _work(spec: StudySpec) -> dict[str, int]:
    """Trials × rounds × epochs × seeds."""
    config = spec.trial_config({})
    epochs, seeds = (
        (config.total_epochs, config.repeats) if isinstance(config, TrialConfig) else (config.attack.epochs, 1)
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
        "if no trial is stopped early",
        *(f"# note       {note}" for note in spec.notes),
        "# nothing was started",
    ]
    return lines


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
