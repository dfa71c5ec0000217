"""What a driver says of its study before the first trial and after the last."""

import json
import sys
from dataclasses import asdict

from study.driver.conductor import Conductor
from study.planning.preflight import resolved_trial
from study.ranking.summary import summary
from study.records import TrialRecord
from study.reporting.tables import leaderboard
from study.spec.study_spec import StudySpec
from trainables.config import TrialConfig


def verdict(spec: StudySpec, conductor: Conductor | None, waiting: list[int], lost: bool) -> tuple[int, str]:
    """Exit code, and a sentence on why the study ended unless it simply used its budget."""
    again = "the same command goes on from here"
    if conductor is None:
        return 0, f"study {spec.name!r} is finished: it has its {spec.trials} trials{'; '.join(['', *spec.notes])}"
    if lost:
        return 130, f"study {spec.name!r} was taken over by another driver; this one has stopped"
    reached, stopping = conductor.limits, conductor.steering.stopping
    failures = f"{reached.failures} trials failed, limits.failures is {spec.limits.failures}"
    if reason := reached.common_failure:
        mended = "once that is mended" + (f" and with more failures allowed: {failures}" * reached.too_many_failures)
        return 1, f"stopped: the first {spec.limits.first_failures} trials all failed: {reason}; {again} {mended}"
    if reached.too_many_failures:
        return 1, f"stopped: {failures}"
    if not conductor.missing:
        if not (left := conductor.unmade):
            return 0, ""
        return 0, (
            f"limits.passes = {spec.limits.passes} has no room for the other {left} trials; "
            "the same command with a larger limits.passes goes on from here"
        )
    if stopping:
        trials = f"trials {', '.join(map(str, waiting))} go on from their checkpoints" if waiting else "nothing is lost"
        return 130, f"interrupted ({stopping}): {trials} with the same command"
    if reached.out_of_time:
        return 0, (
            f"limits.hours = {spec.limits.hours:g} is used up, {conductor.missing} trials are missing; "
            "the same command with a larger limits.hours goes on from here"
        )
    return 0, (
        f"the best has not improved in {reached.stale} finished trials (limits.patience = {spec.limits.patience}), "
        f"{conductor.missing} trials were not run; a larger or no limits.patience goes on from here"
    )


def headline(spec: StudySpec) -> str:
    """What is about to run, in a line: study, model, data, K, ε, tier, trials and seeds."""
    (config, budget, facts), trials = resolved_trial(spec, {}), f"{spec.trials} trials"
    if not isinstance(config, TrialConfig):
        return f"{spec.name}: attackers of {config.checkpoint}, {trials}"
    eps = budget.eps
    radius = ", ".join(map(str, eps)) if isinstance(eps, tuple) else f"{eps:g}"
    tier = "" if config.protocol == "official" else f", tier {config.evaluation.tier}"
    first, most = config.legs[0], config.seeds
    seeds = f"{first} seed{'s' * (first > 1)}" if first == most else f"{first} to {most} seeds"
    return (
        f"{spec.name}: {config.model.name} on {config.dataset.name}, K {facts.n_clusters}, "
        f"protocol {config.protocol}, ε {radius}{tier}, {trials} × {seeds}"
    )


def show_end(spec: StudySpec, records: list[TrialRecord], json_output: bool, code: int, note: str) -> None:
    if code == 130:
        print(note, file=sys.stderr)
        return
    if json_output:
        print(json.dumps({"study": spec.name, "note": note, "trials": [asdict(record) for record in records]}))
        return
    if note:
        print(note)
    print(leaderboard(records, spec.objectives))
    print(summary(records, spec.objectives))
