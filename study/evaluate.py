"""The full report on one trained model's robustness: `python -m study.evaluate MODEL_OR_RUN`.

Everything that can be wrong with the request is found before any work; what is found about the model is the output, and
the command ends with 0 whatever the verdict.
"""

import argparse
import sys
from collections.abc import Sequence

from study.cli import Parser, add_data_flag, add_storage_flag, exit_code_of, place
from study.robustness.request import check_flags, prepare
from study.robustness.work import evaluate_all, note_score_use


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="python -m study.evaluate",
        description="Attacks one trained model with a tier of the suite, checks the number that comes out, and writes "
        "the full report: Markdown, JSON, arrays and figures.",
        epilog="Exit codes: 0 done, whatever the verdict; 2 bad input; 130 interrupted.",
    )
    result.add_argument(
        "model",
        metavar="MODEL_OR_RUN",
        help="a checkpoint's folder or URI; study:NAME (its best trial) or study:NAME/7; an MLflow run (runs:/ID or "
        "its id); a registered model (models:/NAME/VERSION)",
    )
    _add_threat_flags(result)
    add_data_flag(result)
    result.add_argument("--out", type=place, metavar="FOLDER", help="default: evaluations/ in the storage folder")
    _add_depth_flags(result)
    add_storage_flag(result)
    result.add_argument("--json", action="store_true", dest="json_output", help="the report as JSON on stdout")
    result.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return result


def _add_threat_flags(result: argparse.ArgumentParser) -> None:
    """Which attacks the model faces, and on which samples."""
    result.add_argument("--tier", default="standard", help="probe, tune, standard or plus; default: %(default)s")
    result.add_argument(
        "--eps", metavar="E[,E2,…]", help="L∞ radii in (0, 1], a report for each; default: the trial's own"
    )
    result.add_argument(
        "--l2",
        type=float,
        metavar="E",
        help="radius in L2 over the median distance between two samples, in (0, 1]; default: the trial's own",
    )
    result.add_argument(
        "--views", metavar="V[,V2,…]", help="views that may be attacked, such as 0,1; default: the trial's own"
    )
    result.add_argument(
        "--part", default="tune", help="what is scored: tune, or score, which is kept for study.confirm; default: tune"
    )
    result.add_argument("--samples", type=int, metavar="N", help="the first so many samples; default: the trial's own")
    result.add_argument("--seed", type=int, metavar="S", help="of every random draw; default: the trial's own")
    result.add_argument(
        "--repeat", type=int, default=0, metavar="R", help="which of the trial's models, from 0; default: 0"
    )


def _add_depth_flags(result: argparse.ArgumentParser) -> None:
    """What is looked at besides."""
    result.add_argument(
        "--surrogates",
        type=int,
        metavar="N",
        help="models trained for the transfer attack; default: 2 for standard, 5 for plus, else 0",
    )
    result.add_argument("--everyone", action="store_true", help="each attack on every sample, to compare attacks")
    result.add_argument("--no-subsets", action="store_true", help="leaves subsets of views out")
    result.add_argument(
        "--curves", choices=("full", "none"), default="full", help="none: no ε curve and no subsets; default: full"
    )
    result.add_argument(
        "--checks",
        choices=("full", "quick"),
        default="full",
        help="quick: only those that attack nothing anew, and the report warns of it; default: full",
    )
    result.add_argument(
        "--no-other-threats", action="store_true", help="leaves attacks in L2 and on one whole view out"
    )
    result.add_argument(
        "--certify",
        type=float,
        metavar="SIGMA",
        help="also what smoothing with noise of that standard deviation guarantees, and votes of views",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0 whatever the verdict, 2 for a request that cannot be met, 130 for Ctrl-C."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(given: argparse.Namespace) -> int:
    check_flags(given)

    from ardmvc_core.attacks.target import EvaluationError

    try:
        request = prepare(given)
        if given.part == "score":
            note_score_use(request.target, request.parts["score"].digest, given.storage)
        return evaluate_all(request, given)
    except EvaluationError as error:
        raise EvaluationError(f"{given.model} cannot be judged: {error}") from error
    except KeyboardInterrupt:
        print("interrupted: the same command goes on behind the attacks that have ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
