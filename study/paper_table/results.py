"""From the trials of the study, and the paper's own numbers, to the entries of the table."""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Literal

from ardmvc_core.models import MODELS
from study.paper_table.plan import Cell
from study.records import TrialRecord

Phase = Literal["pre", "post"]
Scored = Literal["official", "strict"]
METRICS = ("acc", "nmi", "ari")
PHASES: tuple[Phase, ...] = ("pre", "post")

_SOURCES: dict[tuple[Scored, Phase], str] = {
    ("official", "pre"): "official/pre",
    ("official", "post"): "official/post",
    ("strict", "pre"): "clean",
    ("strict", "post"): "robust",
}
SUSPECT: dict[tuple[str, str, Phase, str], str] = {
    ("infoddc", "patched_mnist", "pre", "ari"): "0.67 beside ACC 0.61 and NMI 0.28: probably a misprint",
    **{
        (model, "patched_mnist", "post", metric): "EAMC and InfoDDC have the same three numbers: possibly a copy error"
        for model in ("eamc", "infoddc")
        for metric in METRICS
    },
}
"""Cells of the published table that there is reason to doubt."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One number of the table: (model, data set, protocol, phase, metric)."""

    cell: Cell
    protocol: Scored
    phase: Phase
    metric: str
    ours: float | None
    """Mean over the seeds; None if the cell has not been run."""
    spread: float | None
    """Standard deviation over the seeds; None for a single one."""
    seeds: int
    paper: float | None
    """The published number; None for strict, which the paper does not report, and for data sets that it has not."""
    rank: int | None = None
    """Place among our models in this column, 1 is best; equal numbers share one."""
    paper_rank: int | None = None
    note: str = ""
    """Why there is no number of ours, or why the published one is doubtful."""

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper

    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean over seeds (Student's t); None for fewer than two seeds."""
        if self.ours is None or self.spread is None or self.seeds < 2:
            return None
        from scipy.stats import t  # takes a second to import

        half = float(t.ppf(0.975, self.seeds - 1)) * self.spread / math.sqrt(self.seeds)
        return self.ours - half, self.ours + half


@cache
def published() -> Mapping[tuple[str, str, str, str], float]:
    """Table 1 of the paper: (model, data set, phase, metric) → fraction with two decimals."""
    text = resources.files("study.paper_table").joinpath("table1.csv").read_text(encoding="utf-8")
    return {
        (row["model"], row["dataset"], row["phase"], metric): float(row[metric])
        for row in csv.DictReader(text.splitlines())
        for metric in METRICS
    }


def newest(records: Sequence[TrialRecord]) -> dict[Cell, TrialRecord]:
    """The trial of each cell: the complete one, else the latest (a failed cell is tried again as a new trial)."""
    found: dict[Cell, TrialRecord] = {}
    for record in sorted(records, key=lambda record: (record.state == "COMPLETE", record.number)):
        names = record.overrides.get("model.name"), record.overrides.get("dataset.name")
        found[Cell(str(names[0]), str(names[1]))] = record
    return found


def entries(
    records: Sequence[TrialRecord],
    rows: Sequence[str],
    columns: Sequence[str],
    protocols: Sequence[Scored],
    absent: Mapping[str, str],
    seeds: int,
) -> list[Entry]:
    """Every entry of the table, with ranks.

    Args: rows, columns: models and data sets in the table's order. absent: data set → why it was not run.
    """
    trials = newest(records)
    table: list[Entry] = []
    for protocol in protocols:
        for column in columns:
            for phase in PHASES:
                for metric in METRICS:
                    made = [_entry(trials, Cell(row, column), protocol, phase, metric, absent, seeds) for row in rows]
                    table += _ranked(made)
    return table


def _entry(
    trials: Mapping[Cell, TrialRecord],
    cell: Cell,
    protocol: Scored,
    phase: Phase,
    metric: str,
    absent: Mapping[str, str],
    seeds: int,
) -> Entry:
    key = cell.model, cell.dataset, phase, metric
    paper = published().get(key) if protocol == "official" else None
    name = f"{_SOURCES[protocol, phase]}/{metric}"
    record = trials.get(cell)
    complete = record is not None and record.state == "COMPLETE"
    ours = record.metrics.get(name) if record and complete else None
    deviation = record.metrics.get(f"spread/{name}") if record and complete else None
    note = SUSPECT.get(key, "") if paper is not None else ""
    return Entry(
        cell=cell,
        protocol=protocol,
        phase=phase,
        metric=metric,
        ours=ours,
        spread=deviation,
        seeds=seeds,
        paper=paper,
        note=note if ours is not None else "; ".join(filter(None, [_why_empty(record, cell, absent), note])),
    )


def _why_empty(record: TrialRecord | None, cell: Cell, absent: Mapping[str, str]) -> str:
    if record is not None and record.state == "COMPLETE":
        return "not reported"
    if record is not None and record.state == "FAIL":
        return f"failed: {' '.join((record.failure or 'no reason stored').split())}"
    if record is not None:
        return f"not finished: round {record.round} of {record.rounds}"
    return absent.get(cell.dataset, "not run")


def _ranked(column: Sequence[Entry]) -> Iterator[Entry]:
    for entry in column:
        yield replace(
            entry,
            rank=_place(entry.ours, [other.ours for other in column]),
            paper_rank=_place(entry.paper, [other.paper for other in column]),
        )


def _place(own: float | None, all_: Sequence[float | None]) -> int | None:
    return None if own is None else 1 + sum(other > own for other in all_ if other is not None)


@dataclass(frozen=True)
class Claim:
    """A qualitative claim of the paper, checked on one data set under one protocol."""

    text: str
    dataset: str
    protocol: Scored
    holds: bool | None
    """None where cells that it needs are missing."""
    evidence: str


def claims(table: Sequence[Entry]) -> list[Claim]:
    """The paper's qualitative claims on ACC, true or not: attacks hurt every baseline, the defences come out on top."""
    found = []
    for protocol in dict.fromkeys(entry.protocol for entry in table):
        for dataset in dict.fromkeys(entry.cell.dataset for entry in table):
            acc = {
                (entry.cell.model, entry.phase): entry.ours
                for entry in table
                if (entry.protocol, entry.cell.dataset, entry.metric) == (protocol, dataset, "acc")
            }
            if any(value is not None for value in acc.values()):
                found += [Claim(text, dataset, protocol, *_judged(check, acc)) for text, check in _CLAIMS.items()]
    return found


_Acc = Mapping[tuple[str, Phase], float | None]
_Check = Callable[[_Acc], tuple[bool, str]]


def _judged(check: _Check, acc: _Acc) -> tuple[bool | None, str]:
    try:
        return check(acc)
    except _Missing as missing:
        return None, f"needs {missing}"


class _Missing(Exception):
    """A cell that a claim needs has no number."""


def _value(acc: _Acc, model: str, phase: Phase) -> float:
    value = acc.get((model, phase))
    if value is None:
        raise _Missing(f"{model} {phase.upper()}")
    return value


def _baselines_lose(acc: _Acc) -> tuple[bool, str]:
    models = [model for model, phase in acc if phase == "pre" and not MODELS[model].defence]
    if not models:
        raise _Missing("a baseline")
    pairs = {model: (_value(acc, model, "pre"), _value(acc, model, "post")) for model in models}
    kept = [f"{model} {pre:.2f} → {post:.2f}" for model, (pre, post) in pairs.items() if post >= pre]
    least = min(pairs, key=lambda model: pairs[model][0] - pairs[model][1])
    return not kept, f"not lower: {', '.join(kept)}" if kept else f"least: {least} {_arrow(pairs[least])}"


def _mitigated_is_best(acc: _Acc) -> tuple[bool, str]:
    own = _value(acc, "ar_dmvc_am", "post")
    others = {model: _value(acc, model, "post") for model, phase in acc if phase == "post" and model != "ar_dmvc_am"}
    if not others:
        raise _Missing("another model")
    best = max(others, key=lambda model: others[model])
    # Equal is not best: where an attack leaves nothing of anyone, nobody has come out on top.
    return own > others[best], f"ar_dmvc_am {own:.3f}, best other {best} {others[best]:.3f}"


def _in_order(acc: _Acc) -> tuple[bool, str]:
    values = {model: _value(acc, model, "post") for model in ("ar_dmvc_am", "ar_dmvc", "comvc")}
    first, second, third = values.values()
    return first >= second >= third, ", ".join(f"{model} {value:.3f}" for model, value in values.items())


def _arrow(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f} → {pair[1]:.2f}"


_CLAIMS: dict[str, _Check] = {
    "every baseline loses ACC under attack": _baselines_lose,
    "AR-DMVC-AM has the best POST ACC": _mitigated_is_best,
    "POST ACC: AR-DMVC-AM ≥ AR-DMVC ≥ CoMVC": _in_order,
}
