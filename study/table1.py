"""The paper's Table 1, run by us and printed beside the published numbers: `python -m study.table1`."""

import argparse
import sys
from collections.abc import Sequence

from study.cli import (
    MOST_SEEDS,
    Parser,
    add_run_flags,
    add_storage_flag,
    exit_code_of,
    file_place,
    only_planned,
    run_planned,
)
from study.paper_table.cells import (
    absent_columns,
    columns_of,
    known_trials,
    missing_files,
    setting_faults,
    table_spec,
    why_empty,
)
from study.paper_table.plan import (
    ROWS,
    SCALES,
    study_name,
)
from study.paper_table.show import Shower
from study.spec.faults import suggestion
from study.spec.yaml_file import SpecError


def parser() -> argparse.ArgumentParser:
    """The command line: how to run; what a cell is stands in `paper_table.plan`."""
    result = Parser(
        prog="python -m study.table1",
        description="Trains and attacks the models of Table 1 and prints the table beside the paper's. The same "
        "command continues it, and repeats no finished cell.",
        epilog="Exit codes: 0 done, 1 a cell failed, 2 bad input, 130 interrupted (resumable).",
    )
    result.add_argument("--scale", default="smoke", metavar="S", help=f"{', '.join(SCALES)}; default: %(default)s")
    result.add_argument("--models", nargs="+", metavar="M", help=f"only these rows, of {', '.join(ROWS)}")
    result.add_argument("--datasets", nargs="+", metavar="D", help="only these columns; default: those of the scale")
    result.add_argument(
        "--protocol",
        default="both",
        metavar="P",
        help="official, strict or both (one beside the other, each with its own training); default: %(default)s",
    )
    result.add_argument("--seeds", type=int, metavar="N", help="trainings per cell and protocol; default: the scale's")
    result.add_argument("--ci", action="store_true", help="95 %% confidence intervals over seeds; needs two seeds")
    result.add_argument(
        "--skip-missing", action="store_true", help="leaves data sets without files out, with a warning"
    )
    add_storage_flag(result)
    result.add_argument(
        "--output", type=file_place, metavar="DIR", help="of the table's files; default: the study's folder"
    )
    result.add_argument("--show", action="store_true", help="prints the table of what has been run; starts nothing")
    add_run_flags(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints the table. Returns: the exit code."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(given: argparse.Namespace) -> int:
    if faults := _faults(given):
        raise SpecError(faults)
    seeds = given.seeds or SCALES[given.scale].seeds
    if given.ci and seeds < 2:
        raise SpecError([f"--ci: an interval over seeds needs at least two, got --seeds {seeds}"])
    if given.show:
        return _show(given, seeds)
    absent = absent_columns(given)
    spec, asked = table_spec(given, seeds, absent)
    if only_planned(spec, given, "table1"):
        return 0
    show = Shower(given, seeds, absent, asked)
    code = run_planned(spec, given, show_results=show)
    return code or int(show.failed)


def _faults(given: argparse.Namespace) -> list[str]:
    """What is wrong with the flags."""
    from ardmvc_core.data import DATASETS

    faults = []
    if given.scale not in SCALES:
        faults.append(f"--scale: must be one of {', '.join(SCALES)}, got {given.scale!r}")
    known = [name for name, source in DATASETS.items() if "path" not in source.fields]  # a user's own are in no table
    for flag, what, names, valid in (
        ("--models", "model", given.models or (), list(ROWS)),
        ("--datasets", "data set", given.datasets or (), known),
    ):
        faults += [f"{flag}: unknown {what} {n!r}{suggestion(n, valid)}" for n in names if n not in valid]
    if given.protocol not in ("official", "strict", "both"):
        faults.append(f"--protocol: must be official, strict or both, got {given.protocol!r}")
    if given.seeds is not None and not 1 <= given.seeds <= MOST_SEEDS:
        faults.append(f"--seeds: must be in 1..{MOST_SEEDS}, got {given.seeds}")
    return [*faults, *setting_faults(given.sets)]


def _show(given: argparse.Namespace, seeds: int) -> int:
    """Prints the table of what has been run. Returns: the exit code."""
    records = known_trials(given, seeds)
    if not records:
        print(f"nothing has been run of {study_name(given.scale, given.protocol, seeds)}", file=sys.stderr)
        return 0
    faults = [] if "regdb" not in columns_of(given) else missing_files("regdb", given)
    show = Shower(given, seeds, {"regdb": why_empty(faults)} if faults else {}, set())
    show(records)
    return int(show.failed)


if __name__ == "__main__":
    sys.exit(main())
