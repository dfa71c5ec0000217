"""Runs, continues or extends the study that a YAML file names: `python -m study.sweep FILE`."""

import argparse
import sys
from collections.abc import Sequence

from study.cli import Parser, add_run_flags, exit_code_of, only_planned, run_planned
from study.spec.yaml_file import read_mapping


def parser() -> argparse.ArgumentParser:
    """The command line: how to run; what to run is in the YAML."""
    result = Parser(
        prog="python -m study.sweep",
        description="Runs the study that FILE names. The same command continues it, a larger --trials extends it.",
        epilog="Exit codes: 0 done, 1 too many failed trials, 2 bad input, 130 interrupted (resumable).",
    )
    result.add_argument("file", metavar="FILE", help="a YAML file, or a name in search_spaces/")
    result.add_argument("--trials", type=int, metavar="N", help="trials in all; the same as --set limits.trials=N")
    result.add_argument("--from", dest="warm_start", metavar="OLD", help="a study whose trials inform the sampler")
    result.add_argument("--json", action="store_true", dest="json_output", help="results as JSON on stdout")
    add_run_flags(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sweep. Returns: the exit code."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    # Imported step by step: torch takes seconds, Ray more, and bad input is answered before either is needed.
    label, raw = read_mapping(arguments.file)
    if sys.stderr.isatty():
        print(f"{label}: reading the data and checking the settings …", file=sys.stderr, flush=True)

    from study.spec.study_spec import checked_spec

    spec = checked_spec(label, raw, arguments.sets, arguments.trials)
    warm_start, as_json = arguments.warm_start, arguments.json_output
    if only_planned(spec, arguments, label, as_json=as_json, warm_start=warm_start):
        return 0
    return run_planned(spec, arguments, warm_start=warm_start, json_output=as_json)


if __name__ == "__main__":
    sys.exit(main())
