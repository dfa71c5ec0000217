"""How far PRA may be from robust ACC: `python -m study.report NAME --label-probe LABELS.csv`, once the choice is made.

The file has the columns `sample` (row of the data set, from 0) and `label` (class, in 0..K-1), a line for each labelled
sample. Labels are read, compared with the vote, and kept nowhere.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ardmvc_core.data.dataset import DataError
from ardmvc_core.data.reading import MIB, file_fault, one_line, reading, shown_path
from ardmvc_core.evaluation.budget import FEW_PER_CLUSTER
from ardmvc_core.evaluation.intervals import Interval
from ardmvc_core.evaluation.metrics import IntArray
from ardmvc_core.selection.reference_partition import OldReference, ReferencePartition
from ardmvc_core.selection.validation import vote_error
from study.ranking.label_free import NOT_CORRECTNESS, PRA
from study.ranking.objectives import goals, value
from study.ranking.ranking import rank
from study.records import TrialRecord
from study.reporting.text import markdown_table
from study.spec.yaml_file import SpecError
from trainables.config import TrialConfig
from trainables.data_parts import cached_parts
from trainables.reference import REFERENCE_FILE, reference_from
from trainables.storage import below, read_file

COLUMNS = ["sample", "label"]
LARGEST = MIB
"""Bytes that the file may have."""
SUGGESTED = 50
"""Samples that a message names to be labelled, drawn at random with `SEED`."""
SEED = 7


def read_probe(path: Path) -> dict[int, tuple[int, int]]:
    """The file: line → (sample, label), whole numbers ≥ 0, each sample once.

    Raises: SpecError with every fault: line, value and what is allowed.
    """
    where = f"--label-probe: {shown_path(path)}"
    if fault := file_fault(path):
        raise SpecError([f"{where}: {fault}"])
    try:
        with reading(path):
            if (size := path.stat().st_size) > LARGEST:
                raise DataError(f"{shown_path(path)}: has {size:,} bytes, at most {LARGEST:,} are read")
            rows = list(csv.reader(io.StringIO(path.read_text("utf-8-sig")), strict=True))
    except DataError as error:
        raise SpecError([f"--label-probe: {error}; a CSV file of the columns sample,label is needed"]) from None
    if not rows or [cell.strip() for cell in rows[0]] != COLUMNS:
        first = one_line(",".join(rows[0])) if rows else ""
        raise SpecError([f"{where}: the first line must be sample,label, got {first!r}"])
    found: dict[int, tuple[int, int]] = {}
    seen: dict[int, int] = {}
    faults = []
    for line, cells in enumerate(rows[1:], 2):
        if not cells:
            continue
        if len(cells) != len(COLUMNS) or not all(cell.strip().isascii() and cell.strip().isdigit() for cell in cells):
            got = one_line(",".join(cells))
            faults.append(f"{where}: line {line} must be two whole numbers ≥ 0, sample,label, got {got!r}")
            continue
        sample, label = (int(cell.strip()[:18]) for cell in cells)
        if sample in seen:
            faults.append(f"{where}: line {line}: sample {sample} must stand there once, it is on line {seen[sample]}")
        seen.setdefault(sample, line)
        found[line] = sample, label
    if faults:
        raise SpecError(faults)
    return found


def label_probe_page(
    name: str,
    records: Sequence[TrialRecord],
    spec: Mapping[str, Any],
    storage: str,
    probe: dict[int, tuple[int, int]],
    data: str | None = None,
) -> str:
    """The vote's error and the bounds on robust ACC of every ranked trial, as Markdown; nothing is trained or attacked.

    Args: probe: as `read_probe` gives it. data: where the data lie now; None: where the study names them.
    Raises: SpecError if the study has no vote, or the probe does not fit it; DataError if the data cannot be had.
    """
    ranked = [row.record for row in rank(records, goals(spec)) if row.rank is not None]
    scored = [record for record in ranked if value(record, PRA) is not None]
    if not scored:
        raise SpecError([f"--label-probe needs complete trials with {PRA} (trial.selection), study {name!r} has none"])
    dataset = TrialConfig.model_validate(spec["trial"]).dataset
    tune = cached_parts(dataset if data is None else dataset.at(data), "strict")["tune"]
    reference = _stored_reference(below(storage, name))
    # The ruler names the samples and the vote that the trials were scored with (`Trial.ruler`).
    if scored[0].budget.split("-")[1:] != [tune.digest[:8], reference.digest()[:8]]:
        raise SpecError([f"--label-probe: the data or {REFERENCE_FILE} are not those that trials of {name!r} met"])
    places = {int(row): place for place, row in enumerate(tune.indices)}
    if faults := _faults(probe, list(places), tune.data.n_clusters):
        raise SpecError([f"--label-probe: {fault}" for fault in faults])
    rows = [places[sample] for sample, _ in probe.values()]
    labels: IntArray = np.array([label for _, label in probe.values()], dtype=np.int64)
    error = vote_error(reference.clusters[rows], labels, tune.data.n_clusters)
    return probe_page(name, scored, error, len(rows), len(places))


def _stored_reference(folder: str) -> ReferencePartition:
    stored = read_file(folder, REFERENCE_FILE)
    if stored is None:
        raise SpecError([f"--label-probe: {below(folder, REFERENCE_FILE)} is missing"])
    try:
        return reference_from(stored, below(folder, REFERENCE_FILE))
    except OldReference as error:
        raise SpecError([f"--label-probe: {error}"]) from None


def _faults(probe: Mapping[int, tuple[int, int]], samples: Sequence[int], n_clusters: int) -> list[str]:
    """What does not fit a vote on these samples."""
    known, faults, unknown = set(samples), [], False
    for line, (sample, label) in probe.items():
        if sample not in known:
            unknown = True
            faults.append(f"line {line}: sample {sample} is none of the {len(samples)} that the vote is on")
        if label >= n_clusters:
            faults.append(f"line {line}: label must be in 0..{n_clusters - 1}, got {label}")
    if len(probe) < (least := FEW_PER_CLUSTER * n_clusters):
        faults.append(f"at least {least} labelled samples are needed ({FEW_PER_CLUSTER} per cluster), got {len(probe)}")
    if unknown or len(probe) < least:
        drawn = np.random.default_rng(SEED).permutation(np.array(samples))[: max(SUGGESTED, least)]
        faults.insert(0, f"samples to label, drawn at random: {', '.join(map(str, sorted(drawn.tolist())))}")
    return faults


def probe_page(name: str, scored: Sequence[TrialRecord], error: Interval, labelled: int, voted: int) -> str:
    """The page as Markdown. Args: scored: trials with PRA, best first."""
    rows = []
    for record in scored:
        pra = record.metrics[PRA]
        low, high = max(0.0, pra - error.high), min(1.0, pra + error.high)
        rows.append([f"{record.number}{' (baseline)' * record.baseline}", f"{pra:.3f}", f"{low:.3f} to {high:.3f}"])
    lines = [
        f"# {name}, vote against labels",
        "",
        f"{labelled} labelled samples of the {voted} that the vote is on. Under the best one-to-one map the vote is "
        f"wrong on {error:.3f} of them (95 % Wilson interval; it takes samples that were drawn at random). So robust "
        f"ACC and PRA of a trial differ by at most {error.high:.3f}.",
        "",
        markdown_table(["trial", PRA, "robust ACC"], rows),
        "",
        NOT_CORRECTNESS,
    ]
    return "\n".join(lines) + "\n"
