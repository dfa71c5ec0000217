"""Trains the best trials of a study again with fresh seeds and scores them on the part that no trial has seen:
`python -m study.confirm NAME`.

It is a study of its own without a space, so it survives what studies survive, and the same command goes on. The number
that a search ends with is the largest of many noisy ones; only what this prints may be reported as performance.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from study.cli import MOST_SEEDS, Parser, add_run_flags, add_storage_flag, exit_code_of, only_planned, run_planned
from study.planning.confirmation import MOST_FINALISTS, confirmation, finalists
from study.spec.yaml_file import SpecError

if TYPE_CHECKING:
    from study.database.ledger import Ledger
    from study.records import TrialRecord


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
    add_storage_flag(result)
    add_run_flags(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the confirmation and prints its table. Returns: the exit code."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(given: argparse.Namespace) -> int:
    wanted = _checked_baselines(given)

    from study.database.ledger import Ledger
    from study.planning.preflight import score_parts

    ledger = Ledger.open_existing(given.study, storage_path=given.storage)
    records = ledger.records()
    chosen = finalists(ledger.spec, records, given.top, wanted)
    spec = confirmation(ledger, chosen, given)
    parts = score_parts(spec)
    if not parts:
        raise SpecError(["--set: a confirmation ends on the score part, of protocol strict"])
    if given.once and (uses := [use for use in _uses(ledger, parts) if use != spec.name]):
        times = f"{len(uses)} time{'s' * (len(uses) != 1)}"
        raise SpecError([f"--once: the score part of {given.study!r} has been used {times}: {', '.join(uses)}"])
    ran_on = {f"baselines[{number}]": ledger.contents_of(record) for number, record in enumerate(chosen)}
    if only_planned(spec, given, "confirm", contents=ran_on):
        return 0

    from study.reporting.confirmation import show_confirmation
    from trainables.storage import below

    searched_trials = sum(record.state == "COMPLETE" and not record.baseline for record in records)
    failed: list[int] = []

    def show_results(found: "Sequence[TrialRecord]") -> None:
        failed.extend(record.number for record in found if record.state == "FAIL")
        folder = below(given.storage, spec.name)
        print(
            show_confirmation(
                given.study,
                spec,
                chosen,
                found,
                uses=_uses(ledger, parts),
                folder=folder,
                searched_trials=searched_trials,
            )
        )

    return run_planned(spec, given, show_results=show_results) or int(bool(failed))


def _uses(ledger: "Ledger", parts: "Sequence[str]") -> list[str]:
    """Names of the uses of score parts, by whatever study or command. Args: parts: their digests."""
    return list(dict.fromkeys(use for part in parts for use in ledger.score_uses(part)))


def _checked_baselines(given: argparse.Namespace) -> list[int] | None:
    """The numbers of --baselines, None for all. Raises: SpecError with what is wrong with the flags."""
    from ardmvc_core.attacks.tiers import TIERS

    faults, wanted = [], None
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
    return wanted


if __name__ == "__main__":
    sys.exit(main())
