"""The paper's Table 1, run by us and printed beside the published numbers: `python -m study.table1`."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.faults import suggestion
from study.paper_table.plan import ROWS, SCALES, Cell, Overrides, as_study, overrides, study_name
from study.source import SpecError

if TYPE_CHECKING:
    from ardmvc_core.data import DatasetConfig
    from study.paper_table.results import Scored
    from study.records import TrialRecord
    from study.spec import StudySpec

FILES = ("table1.md", "table1.csv", "table1.tex", "table1.png")


def parser() -> argparse.ArgumentParser:
    """The command line: how to run; what a cell is stands in `paper_table.plan`."""
    result = argparse.ArgumentParser(
        prog="python -m study.table1",
        description="Trains and attacks the models of Table 1 and prints the table beside the paper's. The same "
        "command continues it, and repeats no finished cell.",
        epilog="Exit codes: 0 done, 1 a cell failed, 2 bad input, 130 interrupted (resumable).",
    )
    result.add_argument("--scale", default="smoke", metavar="S", help=f"{', '.join(SCALES)}; default: %(default)s")
    result.add_argument("--models", nargs="+", default=list(ROWS), metavar="M", help=f"of {', '.join(ROWS)}")
    result.add_argument("--datasets", nargs="+", metavar="D", help="default: those of the scale")
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
    result.add_argument("--storage", default="runs", metavar="DIR", help="where studies lie; default: %(default)s")
    result.add_argument("--output", type=Path, metavar="DIR", help="of the table's files; default: the study's folder")
    result.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="replaces one value of the study, such as resources.gpu=0; may be given again",
    )
    result.add_argument("--show", action="store_true", help="prints the table of what has been run; starts nothing")
    result.add_argument("--dry-run", action="store_true", help="shows what would run, starts and creates nothing")
    result.add_argument("--address", metavar="A", help="a running Ray cluster; without it Ray starts on this machine")
    result.add_argument("--takeover", action="store_true", help="takes the study over from a driver that is gone")
    result.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints the table. Returns: the exit code."""
    given = parser().parse_args(argv)
    level = logging.DEBUG if given.debug else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        return _run(given)
    except SpecError as error:
        if given.debug:
            traceback.print_exc()
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130


def _run(given: argparse.Namespace) -> int:
    if faults := list(_faults(given)):
        raise SpecError(faults)
    scale = SCALES[given.scale]
    seeds = given.seeds or scale.seeds
    if given.ci and seeds < 2:
        raise SpecError([f"--ci: an interval over seeds needs at least two, got --seeds {seeds}"])
    absent = _absent(given)

    from study.ledger import LedgerError

    try:
        spec, known = _spec(given, seeds, absent)
    except LedgerError as error:
        raise SpecError([str(error)]) from error
    show = _Shower(given, seeds, absent)
    if given.show:
        show(known)
        return 0

    from study.preflight import environment_faults

    if faults := environment_faults(spec, cluster=given.address is not None):
        raise SpecError([f"table1: {fault}" for fault in faults])
    if given.dry_run:
        from study.dry_run import dry_run

        print(dry_run(spec, as_json=False))
        return 0

    from study.runner import StudyBroken, StudyRefused, run_study

    try:
        code = run_study(spec, address=given.address, takeover=given.takeover, show_results=show)
    except StudyRefused as error:
        raise SpecError([str(error)]) from error
    except StudyBroken as error:
        print(f"{error}\nthe same command goes on once that is mended", file=sys.stderr)
        return 1
    return code or int(show.failed)


def _faults(given: argparse.Namespace) -> "list[str]":
    """Every flag that cannot be."""
    from ardmvc_core.data import DATASETS

    faults = []
    if given.scale not in SCALES:
        faults.append(f"--scale: must be one of {', '.join(SCALES)}, got {given.scale!r}")
    known = [name for name in DATASETS if name != "npz"]  # a user's own data are in no table
    for flag, what, names, valid in (
        ("--models", "model", given.models, list(ROWS)),
        ("--datasets", "data set", given.datasets or (), known),
    ):
        faults += [f"{flag}: unknown {what} {n!r}{suggestion(n, valid)}" for n in names if n not in valid]
    if given.protocol not in ("official", "strict", "both"):
        faults.append(f"--protocol: must be official, strict or both, got {given.protocol!r}")
    if given.seeds is not None and given.seeds < 1:
        faults.append(f"--seeds: must be ≥ 1, got {given.seeds}")
    return faults


def _columns(given: argparse.Namespace) -> list[str]:
    """Data sets of the table, in its order; those asked for that the scale does not have come last."""
    asked = given.datasets or ()
    columns = SCALES[given.scale].columns
    return [*columns, *(name for name in dict.fromkeys(asked) if name not in columns)]


def _dataset(name: str) -> "DatasetConfig":
    from ardmvc_core.data import DatasetConfig

    return DatasetConfig(name=name)  # type: ignore[arg-type]


def _absent(given: argparse.Namespace) -> dict[str, str]:
    """Data sets of the table that are not run → why.

    Raises: SpecError if one that was asked for lacks its files, unless --skip-missing.
    """
    from ardmvc_core.data import check_dataset

    wanted = given.datasets or SCALES[given.scale].needed
    absent, missing = {}, []
    for name in _columns(given):
        if name not in wanted:
            if name != "regdb":
                absent[name] = "not run: not asked for"
                continue
            found = check_dataset(_dataset("regdb")) if not given.datasets else []
            absent[name] = f"not run: waits for its files: {found[0]}" if found else "not run: not asked for"
            continue
        if faults := check_dataset(_dataset(name)):
            missing += [f"--datasets {name}: {fault}" for fault in faults]
            absent[name] = f"not run: {faults[0]}"
    if missing and not given.skip_missing:
        raise SpecError([*missing, "add --skip-missing to leave these columns out"])
    if missing:
        print("\n".join(f"warning: left out: {fault}" for fault in missing), file=sys.stderr)
    if all(name in absent for name in wanted):
        raise SpecError(["none of the data sets can be run"])
    return absent


def _spec(given: argparse.Namespace, seeds: int, absent: Mapping[str, str]) -> "tuple[StudySpec, list[TrialRecord]]":
    """The study with the cells that were ever asked for, those without a finished or open trial at its end."""
    from study.paper_table.results import newest
    from study.spec import checked_spec

    known = _known(given, seeds)
    settled = {cell for cell, record in newest(known).items() if record.state != "FAIL"}
    wanted = given.datasets or SCALES[given.scale].needed
    rows = [row for row in ROWS if row in given.models]
    cells = [Cell(row, column) for column in _columns(given) if column in wanted for row in rows]
    new = [overrides(c, SCALES[given.scale]) for c in cells if c not in settled and c.dataset not in absent]
    listed: list[Overrides] = [*(record.overrides for record in known), *([] if given.show else new)]
    raw = as_study(
        given.scale,
        listed or new,
        protocol=given.protocol,
        seeds=seeds,
        storage=given.storage,
    )
    return checked_spec("table1", raw, given.sets), known


def _known(given: argparse.Namespace, seeds: int) -> "list[TrialRecord]":
    """The trials of the study so far; none if there is no such study yet."""
    from study.ledger import Ledger, LedgerError, study_url

    url = study_url(Path(given.storage).resolve())
    try:
        return Ledger.open_existing(study_name(given.scale, given.protocol, seeds), url).records()
    except LedgerError as error:
        if str(error).startswith(("there is no study", "there is no study database")):
            return []
        raise


class _Shower:
    """Prints the table of what has been run and writes its files."""

    def __init__(self, given: argparse.Namespace, seeds: int, absent: Mapping[str, str]) -> None:
        self._given = given
        self._seeds = seeds
        self._absent = absent
        self.failed = False

    def __call__(self, records: "Sequence[TrialRecord]") -> None:
        from study.paper_table.figure import heat_map
        from study.paper_table.render import Table, as_csv, claim_lines, latex, markdown, terminal
        from study.paper_table.results import claims, entries, newest

        given = self._given
        protocols: list[Scored] = ["official", "strict"] if given.protocol == "both" else [given.protocol]
        rows = [row for row in ROWS if row in given.models]
        found = entries(records, rows, _columns(given), protocols, self._absent, self._seeds)
        table, checked = Table(found, given.ci), claims(found)
        self.failed = any(record.state == "FAIL" for record in newest(records).values())
        print(terminal(table))
        print("\nThe paper's claims on these numbers:", *claim_lines(checked), sep="\n  ")
        folder = given.output or Path(given.storage) / study_name(given.scale, given.protocol, self._seeds)
        texts: dict[str, str] = {
            "table1.md": markdown(table, checked, _facts(records, given, self._seeds)),
            "table1.csv": as_csv(table),
            "table1.tex": latex(table),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                (folder / name).write_text(text)
            heat_map(table).savefig(folder / "table1.png")
        except OSError as error:
            print(f"the table's files are not written: {folder}: {error.strerror}", file=sys.stderr)
            self.failed = True
            return
        print(f"\nWritten: {', '.join(str(folder / name) for name in FILES)}")


def _facts(records: "Sequence[TrialRecord]", given: argparse.Namespace, seeds: int) -> list[str]:
    """How the table was made."""
    from study.provenance import command, git_commit

    complete = [record for record in records if record.state == "COMPLETE"]
    hours = sum(record.seconds for record in complete) / 3600
    return [
        f"command: `{command()}`",
        f"commit: {git_commit() or 'unknown'}",
        f"seeds: {seeds} per cell, derived from the published seed 5",
        f"{len(complete)} cells run, {hours:.2f} hours of trials in all, {os.cpu_count()} processors on this machine",
        *(f"settings changed: `{setting}`" for setting in given.sets),
    ]


if __name__ == "__main__":
    sys.exit(main())
