"""Runs, continues or extends the study that a YAML file names: `python -m study.sweep FILE`."""

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from study.source import SpecError

if TYPE_CHECKING:
    from study.cost import Cost
    from study.spec import StudySpec

SHOWN_SAMPLES = 3
"""Sampled trials that a dry run shows."""


def parser() -> argparse.ArgumentParser:
    """The command line: how to run; what to run is in the YAML."""
    result = argparse.ArgumentParser(
        prog="python -m study.sweep",
        description="Runs the study that FILE names. The same command again continues it, a larger --trials extends it.",
        epilog="Exit codes: 0 done, 1 more failed trials than limits.failures, 2 bad input, 130 interrupted (resumable).",
    )
    result.add_argument("file", metavar="FILE", help="a YAML file, or a name in search_spaces/")
    result.add_argument("--trials", type=int, metavar="N", help="trials in all; the same as --set limits.trials=N")
    result.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="replaces one value of the study, such as trial.epochs=3; may be given again",
    )
    result.add_argument("--address", metavar="A", help="a running Ray cluster; without it Ray starts on this machine")
    result.add_argument("--dry-run", action="store_true", help="shows what would run, starts and creates nothing")
    result.add_argument("--takeover", action="store_true", help="takes a study over from a driver that is gone")
    result.add_argument("--from", dest="warm_start", metavar="OLD", help="a study whose trials inform the sampler")
    result.add_argument("--json", action="store_true", dest="json_output", help="results as JSON on stdout")
    result.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sweep. Returns: the exit code."""
    arguments = parser().parse_args(argv)
    level = logging.DEBUG if arguments.debug else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        return _run(arguments)
    except SpecError as error:
        return _refuse(error, debug=arguments.debug)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    # Imported step by step: torch takes seconds, Ray more, and bad input is answered before either is needed.
    from study.source import read_mapping

    label = read_mapping(arguments.file)[0]

    from study.preflight import environment_faults
    from study.spec import load_spec

    spec = load_spec(arguments.file, arguments.sets, arguments.trials)
    if faults := environment_faults(spec, cluster=arguments.address is not None):
        raise SpecError([f"{label}: {fault}" for fault in faults])
    if arguments.dry_run:
        print(_dry_run(spec, as_json=arguments.json_output))
        return 0

    from study.runner import StudyRefused, run_study

    try:
        return run_study(
            spec,
            address=arguments.address,
            takeover=arguments.takeover,
            warm_start=arguments.warm_start,
            json_output=arguments.json_output,
        )
    except StudyRefused as error:
        return _refuse(error, debug=arguments.debug)


def _refuse(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(error, file=sys.stderr)
    return 2


def _dry_run(spec: "StudySpec", *, as_json: bool) -> str:
    """What would run: the resolved spec, the first trials, the resources and the cost."""
    from study.sampling import preview

    count = min(len(spec.baselines) + SHOWN_SAMPLES, spec.limits.trials)
    trials = [
        {
            "number": number,
            "baseline": number < len(spec.baselines),
            "overrides": overrides,
            "cost": _cost(spec, overrides),
        }
        for number, overrides in enumerate(preview(spec, count))
    ]
    facts: dict[str, Any] = {
        "spec": spec.resolved(),
        "first_trials": [{**trial, "cost": _cost_numbers(trial["cost"])} for trial in trials],
        "resources": {
            "per_trial": spec.resources.model_dump(),
            "side_by_side": spec.limits.concurrent,
        },
        "work": _work(spec, trials),
    }
    if as_json:
        return json.dumps(facts, indent=1)
    return "\n".join([yaml.safe_dump(facts["spec"], sort_keys=False, allow_unicode=True), *_lines(facts)])


def _cost(spec: "StudySpec", overrides: dict[str, Any]) -> "Cost":
    from study.cost import trial_cost
    from study.preflight import data_facts, saved_trial
    from trainables.config import TrialConfig

    config = spec.trial_config(overrides)
    target = config if isinstance(config, TrialConfig) else saved_trial(config.checkpoint)
    facts = data_facts(target.dataset, target.protocol if isinstance(config, TrialConfig) else "strict")
    budget = config.evaluation.resolve(target.dataset.name, len(facts.view_shapes))
    return trial_cost(config, budget, facts.sizes)


def _cost_numbers(cost: "Cost") -> dict[str, dict[str, int]]:
    parts = {"training": cost.training, "evaluation": cost.evaluation}
    return {name: {"forward": passes.forward, "backward": passes.backward} for name, passes in parts.items()}


def _work(spec: "StudySpec", trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Trials × rounds × epochs, and the passes of the whole study: baselines exactly, the rest like those shown."""
    from trainables.config import TrialConfig

    config = spec.trial_config({})
    costs = [trial["cost"].total for trial in trials]
    sampled = costs[len(spec.baselines) :]
    rest = max(0, spec.limits.trials - len(costs))

    def passes(kind: str) -> int:
        known = sum(getattr(cost, kind) for cost in costs)
        return known + round(rest * sum(getattr(cost, kind) for cost in sampled) / len(sampled)) if sampled else known

    return {
        "trials": spec.limits.trials,
        "rounds_per_trial": config.rounds,
        "epochs_per_round": config.evaluate_every,
        "epochs_per_trial": config.total_epochs if isinstance(config, TrialConfig) else config.attack.epochs,
        "repeats": config.repeats if isinstance(config, TrialConfig) else 1,
        "forward": passes("forward"),
        "backward": passes("backward"),
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = ["# first trials"]
    for trial in facts["first_trials"]:
        kind = "baseline" if trial["baseline"] else "sampled"
        values = ", ".join(f"{path}: {_short(value)}" for path, value in trial["overrides"].items())
        lines.append(f"# {trial['number']:>4} {kind:<8} {{{values}}}")
        for part, passes in trial["cost"].items():
            lines.append(
                f"#      {part:<10} {passes['forward']:>12,} forward {passes['backward']:>12,} backward passes"
            )
    need, work = facts["resources"], facts["work"]
    lines += [
        f"# resources  {need['per_trial']['cpu']:g} CPU and {need['per_trial']['gpu']:g} GPU a trial, "
        f"at most {need['side_by_side']} side by side",
        f"# trials     {work['trials']} × {work['rounds_per_trial']} rounds × {work['epochs_per_round']} epochs "
        f"({work['epochs_per_trial']} in all) × {work['repeats']} seeds",
        f"# in total   about {work['forward']:,} forward and {work['backward']:,} backward passes, each of one batch, "
        "if no trial is stopped early",
        "# nothing was started",
    ]
    return lines


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
