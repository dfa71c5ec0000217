"""Which cells of Table 1 are asked for, which can be run, and the study that runs them."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from study.paper_table.plan import ROWS, SCALES, Cell, Overrides, as_study, overrides, study_name
from study.spec.yaml_file import SpecError

if TYPE_CHECKING:
    from study.records import TrialRecord
    from study.spec.study_spec import StudySpec


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


def setting_faults(sets: Sequence[str]) -> list[str]:
    """Settings that are not the user's to make here: what a cell is, and what a flag of its own says."""
    faults = []
    for setting in sets:
        path = setting.partition("=")[0].strip()
        for own, instead in NOT_SETTABLE.items():
            if f"{path}.".startswith(f"{own}.") or f"{own}.".startswith(f"{path}."):
                faults.append(f"--set {setting}: {own} is the table's own: {instead}")
                break
    return faults


def columns_of(given: argparse.Namespace, records: "Sequence[TrialRecord]" = ()) -> list[str]:
    """Data sets of the table, in its order; behind them those that were asked for, or run, besides."""
    run = [str(record.overrides["dataset.name"]) for record in records if "dataset.name" in record.overrides]
    return list(dict.fromkeys([*SCALES[given.scale].columns, *(given.datasets or ()), *run]))


def missing_files(name: str, given: argparse.Namespace) -> list[str]:
    """Why the data set cannot be read, [] if it can."""
    from ardmvc_core.data import DATASETS, DatasetConfig, check_dataset

    roots = [setting.partition("=")[2] for setting in given.sets if setting.partition("=")[0].strip() == ROOT]
    root = roots[-1] if roots and "root" in DATASETS[name].fields else None
    return check_dataset(DatasetConfig(name=name, root=root))


def why_empty(faults: Sequence[str]) -> str:
    """Why a column is empty; the folders that were looked in belong to this machine and not to the table."""
    return "not run: waits for its files: " + re.sub(r" \(looked in [^)]*\)", "", faults[0])


def absent_columns(given: argparse.Namespace) -> dict[str, str]:
    """Data sets of the table that are not run → why.

    Raises: SpecError if one that was asked for lacks its files, unless --skip-missing.
    """
    wanted = given.datasets or SCALES[given.scale].needed
    absent, missing = {}, []
    for name in columns_of(given):
        # RegDB runs by itself once it is there; it cannot be downloaded, so nobody has it by default.
        faults = missing_files(name, given) if name in wanted or name == "regdb" else []
        if faults:
            absent[name] = why_empty(faults)
        elif name not in wanted and (given.datasets or name != "regdb"):
            absent[name] = "not run: not asked for"
        if name in wanted:
            missing += [f"--datasets {name}: {fault}" for fault in faults]
    if missing and not given.skip_missing:
        raise SpecError([*missing, "add --skip-missing to leave these columns out"])
    if missing:
        print("\n".join(f"warning: left out: {fault}" for fault in missing), file=sys.stderr)
    if all(name in absent for name in columns_of(given)):
        raise SpecError(["none of the data sets can be run"])
    return absent


def table_spec(given: argparse.Namespace, seeds: int, absent: Mapping[str, str]) -> "tuple[StudySpec, set[Cell]]":
    """The study with its trials so far and, behind them, the cells asked for that none of them has finished or begun.

    Returns: the spec, and the cells asked for.
    """
    from study.spec.study_spec import checked_spec

    scale = SCALES[given.scale]
    rows = [row for row in ROWS if row in (given.models or ROWS)]
    asked = [Cell(row, column) for column in columns_of(given) if column not in absent for row in rows]

    def study(cells: "Sequence[Overrides]") -> "StudySpec":
        raw = as_study(given.scale, cells, protocol=given.protocol, seeds=seeds, storage=given.storage)
        return checked_spec("table1", raw, given.sets)

    # What is set for all trials takes the place of what the cells have.
    chosen = {setting.partition("=")[0].strip().removeprefix("trial.") for setting in given.sets}
    wanted = [{k: v for k, v in overrides(cell, scale).items() if k not in chosen} for cell in asked]
    records = known_trials(given, seeds)
    begun = [record.overrides for record in records if record.state != "FAIL"]
    new = [cell for cell in study(wanted).baselines if cell not in begun]
    return study([*(record.overrides for record in records), *new]), set(asked)


def known_trials(given: argparse.Namespace, seeds: int) -> "list[TrialRecord]":
    """The trials of the study so far; none if there is no such study yet."""
    from study.database.engine import NoStudy
    from study.database.ledger import Ledger

    name = study_name(given.scale, given.protocol, seeds)
    try:
        return Ledger.open_existing(name, storage_path=given.storage).records()
    except NoStudy:
        return []
