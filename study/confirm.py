"""Trains the best trials of a study again with fresh seeds and scores them on the part that no trial has seen:
`python -m study.confirm NAME`.

It is a study of its own without a space, so it survives what studies survive, and the same command goes on. The number
that a search ends with is the largest of many noisy ones; only what this prints may be reported as performance.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from study.cli import MOST_SEEDS, Parser, add_run_flags, exit_code_of, refuse
from study.spec.yaml_file import SpecError

if TYPE_CHECKING:
    from study.database.ledger import Ledger
    from study.records import TrialRecord
    from study.spec.study_spec import StudySpec

MOST_FINALISTS = 100
METRIC = "robust/acc"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="python -m study.confirm",
        description="Trains the best trials of a study and its baselines again with fresh seeds, and scores them once "
        "on the part of the data that no trial has read.",
        epilog="Exit codes: 0 done, 1 a trial failed, 2 bad input, 130 interrupted (resumable).",
    )
    result.add_argument("study", metavar="NAME", help="a study with complete trials")
    result.add_argument("--top", type=int, default=3, metavar="K", help="trials besides the baselines; default: 3")
    result.add_argument(
        "--baselines",
        metavar="N[,N2,…]",
        help="baselines that stand beside them, by trial number; default: all ranked",
    )
    result.add_argument("--seeds", type=int, default=5, metavar="S", help="fresh trainings of each; default: 5")
    result.add_argument("--tier", default="standard", metavar="T", help="tier of the suite; default: standard")
    result.add_argument("--once", action="store_true", help="refuses if the score part has been used before")
    result.add_argument("--storage", default="runs", metavar="DIR", help="where the study lies; default: runs")
    add_run_flags(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the confirmation and prints its table. Returns: the exit code."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(given: argparse.Namespace) -> int:
    from ardmvc_core.attacks.tiers import TIERS

    faults = []
    if not 1 <= given.top <= MOST_FINALISTS:
        faults.append(f"--top: must be in 1..{MOST_FINALISTS}, got {given.top}")
    if not 2 <= given.seeds <= MOST_SEEDS:
        faults.append(f"--seeds: must be in 2..{MOST_SEEDS}, for an interval over seeds, got {given.seeds}")
    try:
        wanted = None if given.baselines is None else [int(entry) for entry in given.baselines.split(",")]
    except ValueError:
        faults.append(f"--baselines: must be trial numbers such as 0,1, got {given.baselines!r}")
    if given.tier not in TIERS:
        faults.append(f"--tier: must be one of {', '.join(TIERS)}, got {given.tier!r}")
    if faults:
        raise SpecError(faults)

    from study.database.ledger import Ledger, LedgerError, study_url

    try:
        ledger = Ledger.open_existing(given.study, study_url(given.storage))
        records = ledger.records()
        chosen = finalists(ledger.spec, records, given.top, wanted)
        spec = confirmation(ledger, chosen, given)
    except LedgerError as error:
        raise SpecError([str(error)]) from error
    uses = ledger.score_uses
    if given.once and [use for use in uses if use != spec.name]:
        raise SpecError(
            [f"--once: the score part of {given.study!r} has been used {len(uses)} times: {', '.join(uses)}"]
        )

    from study.planning.preflight import environment_faults

    if faults := environment_faults(spec, cluster=given.address is not None):
        raise SpecError([f"confirm: {fault}" for fault in faults])
    if given.dry_run:
        from study.planning.dry_run import dry_run

        print(dry_run(spec, as_json=False))
        return 0

    from study.driver.run import StudyBroken, StudyRefused, run_study
    from study.reporting.confirmation import show_confirmation
    from trainables.checkpoints import below
    from trainables.saved_trial import DamagedCheckpoint

    ledger.note_score_use(spec.name)
    uses = ledger.score_uses
    state: dict[str, int] = {"failed": 0}

    def show_results(found: "Sequence[TrialRecord]") -> None:
        state["failed"] = sum(record.state == "FAIL" for record in found)
        searched = sum(record.state == "COMPLETE" and not record.baseline for record in records)
        print(
            show_confirmation(
                given.study,
                spec,
                chosen,
                found,
                uses=len(uses),
                folder=below(given.storage, spec.name),
                searched_trials=searched,
            )
        )

    try:
        code = run_study(spec, address=given.address, takeover=given.takeover, show_results=show_results)
    except (StudyRefused, DamagedCheckpoint) as error:
        raise SpecError([str(error)]) from error
    except StudyBroken as error:
        refuse(error, debug=given.debug)
        print("the same command goes on once that is mended", file=sys.stderr)
        return 1
    return code or int(state["failed"] > 0)


def finalists(
    spec: "dict[str, Any]", records: "Sequence[TrialRecord]", top: int, wanted: Sequence[int] | None = None
) -> "list[TrialRecord]":
    """The `top` searched trials that are to be picked first, then the ranked baselines in their order.

    Args: wanted: numbers of the baselines to take; None: all that have a rank.
    Raises: LedgerError if no searched trial is complete, or a wanted baseline is not there.
    """
    from study.database.ledger import LedgerError
    from study.ranking.label_free import preferred
    from study.ranking.objectives import goals
    from study.ranking.ranking import rank

    objectives = goals(spec)
    ranked = [row.record for row in rank(records, objectives) if row.rank is not None]
    searched = [record for record in preferred(ranked, objectives) if not record.baseline][:top]
    baselines = sorted((record for record in ranked if record.baseline), key=lambda record: record.number)
    if not searched:
        raise LedgerError("the study has no complete searched trial to confirm (without labels: none that is feasible)")
    if wanted is not None:
        known = [record.number for record in baselines]
        if absent := [number for number in wanted if number not in known]:
            raise LedgerError(
                f"--baselines: must be among {', '.join(map(str, known)) or 'none'}, the study's ranked baselines, "
                f"got {', '.join(map(str, absent))}"
            )
        baselines = [record for record in baselines if record.number in wanted]
    return [*searched, *baselines]


def confirmation(ledger: "Ledger", chosen: "Sequence[TrialRecord]", given: argparse.Namespace) -> "StudySpec":
    """The study that trains each finalist with `--seeds` fresh seeds and scores them on the score part.

    Raises: SpecError for a study whose trials cannot be confirmed.
    """
    from ardmvc_core.seeding import derive_seed
    from study.spec.study_spec import checked_spec

    old = ledger.spec
    if old.get("trainable", "model") != "model":
        raise SpecError([f"{given.study!r} is a study of attackers; confirm is for models"])
    if old["trial"].get("protocol", "strict") == "official":
        raise SpecError([f"{given.study!r} runs the official protocol, which has no part that is kept back"])
    lists = [dict(record.overrides) for record in chosen]
    seed = derive_seed(int(old.get("seed", 7)), "confirm") % 2**31
    trial = {key: value for key, value in old["trial"].items() if key not in ("selection", "seed", "repeats")}
    evaluation = {**trial.get("evaluation", {}), "tier": given.tier}
    trial |= {"protocol": "strict", "evaluation": evaluation, "score_on": "score", "repeats": given.seeds, "seed": seed}
    facts = json.dumps([old["trial"], lists, given.seeds, given.tier], sort_keys=True, default=str)
    digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
    limits = {**old.get("limits", {}), "trials": len(lists), "hours": None, "patience": None}
    raw: dict[str, Any] = {
        "name": f"{given.study}.confirm-{digest}",
        "seed": seed,
        "trial": trial,
        "space": {},
        "baselines": lists,
        "objective": {"metric": METRIC, "mode": "max"},
        "pruner": {"name": "none"},
        "sampler": {"name": "random"},
        "limits": {key: value for key, value in limits.items() if value is not None},
        "resources": old.get("resources", {}),
        "storage": {**old.get("storage", {}), "path": given.storage},
    }
    return checked_spec("confirm", raw, given.sets)


if __name__ == "__main__":
    sys.exit(main())
