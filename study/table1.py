"""The paper's Table 1, run by us and printed beside the published numbers: `python -m study.table1`."""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.cli import MOST_SEEDS, Parser, add_run_flags, exit_code_of, refuse
from study.paper_table.plan import (
    PUBLISHED_SEED,
    ROWS,
    SCALES,
    Cell,
    Overrides,
    as_study,
    departures,
    overrides,
    study_name,
)
from study.spec.faults import suggestion
from study.spec.yaml_file import SpecError
from trainables.files import write_whole

if TYPE_CHECKING:
    from study.paper_table.results import Scored
    from study.records import TrialRecord
    from study.spec.study_spec import StudySpec

FILES = ("table1.md", "table1.csv", "table1.tex", "table1.png")
ROOT = "trial.dataset.root"
NOT_SETTABLE = {
    "name": "it follows from --scale, --protocol and --seeds",
    "baselines": "choose cells with --models and --datasets",
    "space": "a table searches nothing",
    "limits.trials": "choose cells with --models and --datasets",
    "storage": "use --storage",
    "trial.protocol": "use --protocol",
    "trial.repeats": "use --seeds",
    "trial.model": "each model has its own; a study in search_spaces/ varies them",
    "trial.dataset.name": "use --datasets",
    "trial.seed": "it is the published one",
    "seed": "it is the published one",
    "objective": "it is POST ACC",
}
"""What --set may not touch, and what to use instead."""


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
    result.add_argument("--storage", default="runs", metavar="DIR", help="where studies lie; default: %(default)s")
    result.add_argument("--output", type=Path, metavar="DIR", help="of the table's files; default: the study's folder")
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
    absent = _absent(given)

    from study.database.ledger import LedgerError

    try:
        spec, asked = _spec(given, seeds, absent)
    except LedgerError as error:
        raise SpecError([str(error)]) from error

    from study.planning.preflight import environment_faults

    if faults := environment_faults(spec, cluster=given.address is not None):
        raise SpecError([f"table1: {fault}" for fault in faults])
    if given.dry_run:
        from study.planning.dry_run import dry_run

        print(dry_run(spec, as_json=False))
        return 0

    from study.driver.run import StudyBroken, StudyRefused, run_study

    show = _Shower(given, seeds, absent, asked)
    try:
        code = run_study(spec, address=given.address, takeover=given.takeover, show_results=show)
    except StudyRefused as error:
        raise SpecError([str(error)]) from error
    except StudyBroken as error:
        refuse(error, debug=given.debug)
        print("the same command goes on once that is mended", file=sys.stderr)
        return 1
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
    return [*faults, *_setting_faults(given.sets)]


def _setting_faults(sets: Sequence[str]) -> list[str]:
    """Settings that are not the user's to make here: what a cell is, and what a flag of its own says."""
    faults = []
    for setting in sets:
        path = setting.partition("=")[0].strip()
        for own, instead in NOT_SETTABLE.items():
            if f"{path}.".startswith(f"{own}.") or f"{own}.".startswith(f"{path}."):
                faults.append(f"--set {setting}: {own} is the table's own: {instead}")
                break
    return faults


def _columns(given: argparse.Namespace, records: "Sequence[TrialRecord]" = ()) -> list[str]:
    """Data sets of the table, in its order; behind them those that were asked for, or run, besides."""
    run = [str(record.overrides["dataset.name"]) for record in records if "dataset.name" in record.overrides]
    return list(dict.fromkeys([*SCALES[given.scale].columns, *(given.datasets or ()), *run]))


def _missing_files(name: str, given: argparse.Namespace) -> list[str]:
    """Why the data set cannot be read, [] if it can."""
    from ardmvc_core.data import DATASETS, DatasetConfig, check_dataset

    roots = [setting.partition("=")[2] for setting in given.sets if setting.partition("=")[0].strip() == ROOT]
    root = roots[-1] if roots and "root" in DATASETS[name].fields else None
    return check_dataset(DatasetConfig(name=name, root=root))


def _waits(faults: Sequence[str]) -> str:
    """Why a column is empty; the folders that were looked in belong to this machine and not to the table."""
    return "not run: waits for its files: " + re.sub(r" \(looked in [^)]*\)", "", faults[0])


def _absent(given: argparse.Namespace) -> dict[str, str]:
    """Data sets of the table that are not run → why.

    Raises: SpecError if one that was asked for lacks its files, unless --skip-missing.
    """
    wanted = given.datasets or SCALES[given.scale].needed
    absent, missing = {}, []
    for name in _columns(given):
        # RegDB runs by itself once it is there; it cannot be downloaded, so nobody has it by default.
        faults = _missing_files(name, given) if name in wanted or name == "regdb" else []
        if faults:
            absent[name] = _waits(faults)
        elif name not in wanted and (given.datasets or name != "regdb"):
            absent[name] = "not run: not asked for"
        if name in wanted:
            missing += [f"--datasets {name}: {fault}" for fault in faults]
    if missing and not given.skip_missing:
        raise SpecError([*missing, "add --skip-missing to leave these columns out"])
    if missing:
        print("\n".join(f"warning: left out: {fault}" for fault in missing), file=sys.stderr)
    if all(name in absent for name in _columns(given)):
        raise SpecError(["none of the data sets can be run"])
    return absent


def _spec(given: argparse.Namespace, seeds: int, absent: Mapping[str, str]) -> "tuple[StudySpec, set[Cell]]":
    """The study with its trials so far and, behind them, the cells asked for that none of them has finished or begun.

    Returns: the spec, and the cells asked for.
    """
    from study.spec.study_spec import checked_spec

    scale = SCALES[given.scale]
    rows = [row for row in ROWS if row in (given.models or ROWS)]
    asked = [Cell(row, column) for column in _columns(given) if column not in absent for row in rows]

    def study(cells: "Sequence[Overrides]") -> "StudySpec":
        raw = as_study(given.scale, cells, protocol=given.protocol, seeds=seeds, storage=given.storage)
        return checked_spec("table1", raw, given.sets)

    # What is set for all trials takes the place of what the cells have.
    chosen = {setting.partition("=")[0].strip().removeprefix("trial.") for setting in given.sets}
    wanted = [{k: v for k, v in overrides(cell, scale).items() if k not in chosen} for cell in asked]
    records = _known(given, seeds)
    begun = [record.overrides for record in records if record.state != "FAIL"]
    new = [cell for cell in study(wanted).baselines if cell not in begun]
    return study([*(record.overrides for record in records), *new]), set(asked)


def _known(given: argparse.Namespace, seeds: int) -> "list[TrialRecord]":
    """The trials of the study so far; none if there is no such study yet."""
    from study.database.ledger import Ledger, NoStudy, study_url

    url = study_url(Path(given.storage).resolve())
    try:
        return Ledger.open_existing(study_name(given.scale, given.protocol, seeds), url).records()
    except NoStudy:
        return []


def _show(given: argparse.Namespace, seeds: int) -> int:
    """Prints the table of what has been run. Returns: the exit code."""
    from study.database.ledger import LedgerError

    try:
        records = _known(given, seeds)
    except LedgerError as error:
        raise SpecError([str(error)]) from error
    if not records:
        print(f"nothing has been run of {study_name(given.scale, given.protocol, seeds)}", file=sys.stderr)
        return 0
    faults = [] if "regdb" not in _columns(given) else _missing_files("regdb", given)
    show = _Shower(given, seeds, {"regdb": _waits(faults)} if faults else {}, set())
    show(records)
    return int(show.failed)


class _Shower:
    """Prints the table of what has been run and writes its files."""

    def __init__(self, given: argparse.Namespace, seeds: int, absent: Mapping[str, str], asked: "set[Cell]") -> None:
        """Args: asked: cells of this call; one of them that failed makes `failed`."""
        self._given = given
        self._seeds = seeds
        self._absent = absent
        self._asked = asked
        self.failed = False

    def __call__(self, records: "Sequence[TrialRecord]") -> None:
        from study.paper_table.figure import heat_map
        from study.paper_table.render import Table, as_csv, claim_lines, latex, markdown, terminal
        from study.paper_table.results import claims, entries, newest
        from study.reporting.style import png

        given = self._given
        protocols: list[Scored] = ["official", "strict"] if given.protocol == "both" else [given.protocol]
        found = entries(records, ROWS, _columns(given, records), protocols, self._absent, self._seeds)
        table, checked = Table(found, given.ci), claims(found)
        self.failed = any(record.state == "FAIL" and cell in self._asked for cell, record in newest(records).items())
        print(terminal(table))
        print("\nThe paper's claims on these numbers:", *claim_lines(checked), sep="\n  ")
        name = study_name(given.scale, given.protocol, self._seeds)
        folder = given.output or Path(given.storage) / name
        facts = table_facts(given.scale, name, Path(given.storage), records, self._seeds)
        texts: dict[str, str] = {
            "table1.md": markdown(table, checked, facts),
            "table1.csv": as_csv(table),
            "table1.tex": latex(table),
        }
        try:
            for file, text in texts.items():
                write_whole(folder / file, text.encode())
            write_whole(folder / "table1.png", png(heat_map(table)))
        except OSError as error:
            print(f"the table's files are not written: {folder}: {error.strerror}", file=sys.stderr)
            self.failed = True
            return
        print(f"\nWritten: {', '.join(str(folder / file) for file in FILES)}")


def table_facts(scale: str, name: str, storage: Path, records: "Sequence[TrialRecord]", seeds: int) -> list[str]:
    """How the table was made: command, commits, seeds, and where the scale departs from what was published."""
    from study.database.ledger import Ledger, study_url
    from study.provenance import command, git_commit

    complete = [record for record in records if record.state == "COMPLETE"]
    hours = sum(record.seconds for record in complete) / 3600
    commits = Ledger.open_existing(name, study_url(storage.resolve())).commits
    return [
        f"printed by `{command()}` at commit {git_commit() or 'unknown'}",
        f"run by code of commit {', '.join(commits) or 'unknown'}",
        f"seeds: {seeds} per cell and protocol, derived from the published seed {PUBLISHED_SEED}",
        f"{len(complete)} cells, {hours:.2f} hours of trials in all, on a machine with {os.cpu_count()} processors",
        *departures(scale),
    ]


if __name__ == "__main__":
    sys.exit(main())
