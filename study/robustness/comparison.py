"""Several robustness reports in one table, if they were made under one budget and on the same samples."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from ardmvc_core.data.reading import MIB, file_fault, fitted, megabytes, one_line, reason_of, shown_path
from study.reporting.text import markdown_table, three_decimals, with_bounds
from study.spec.yaml_file import SpecError

FILE = "report.json"

LARGEST = 64 * MIB
"""Bytes of a report that are read at most."""


class _Surrogate(BaseModel):
    failure: str


class _Facts(BaseModel):
    model: str
    parts: dict[str, str]
    surrogates: list[_Surrogate]


class _Headline(BaseModel):
    established: bool
    flip: float
    failed: list[str]
    warned: list[str]


class _Interval(BaseModel):
    low: float | None
    high: float | None


class Content(BaseModel):
    """What is read of a report, which holds more."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    budget_hash: str
    budget: dict[str, JsonValue]
    n: int
    tier: str | None
    headline: _Headline
    facts: _Facts
    metrics: dict[str, float | None]
    intervals: dict[str, _Interval]
    eps50: float | None
    eps_curve: dict[float, JsonValue]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `study.evaluate` wrote about one model."""

    given: str
    """As it was asked for."""
    content: Content

    @property
    def rulers(self) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """What two reports must share, by what it is called: shortly, and with all that it is made of."""
        facts = self.content.facts
        parts = ", ".join(f"{part} {digest[:12]}" for part, digest in sorted(facts.parts.items()))
        surrogates = sum(not one.failure for one in facts.surrogates)
        return {
            "evaluation budgets": (self.content.budget_hash, self.content.budget),
            "samples": (parts, facts.parts),
            "numbers of surrogates": (str(surrogates), {"surrogates": surrogates}),
        }


def read(given: str) -> Report:
    """The report in a folder, or in a file. Raises: SpecError if there is none."""
    file = Path(given) / FILE if Path(given).is_dir() else Path(given)
    try:
        if fault := file_fault(file):
            raise ValueError(f"{shown_path(file)} {fault}")
        if (size := file.stat().st_size) > LARGEST:
            raise ValueError(f"it must have at most {megabytes(LARGEST)}, has {megabytes(size)}")
        content = Content.model_validate(json.loads(file.read_bytes()))
    except Exception as error:  # whatever it is, there is no report to compare
        raise SpecError([f"{shown_path(given)}: holds no {FILE} of study.evaluate: {reason_of(error)}"]) from error
    return Report(given=given, content=content)


def check_comparable(reports: Sequence[Report]) -> None:
    """Raises: SpecError with what two reports do not share, of both, and where it differs."""
    first = reports[0]
    for other in reports[1:]:
        for what, (ours, whole) in first.rulers.items():
            theirs, others = other.rulers[what]
            if (ours, whole) == (theirs, others):
                continue
            raise SpecError(
                [
                    f"these reports have different {what}, so their numbers do not compare:",
                    *(f"  {one_line(mark)}  {report.given}" for mark, report in ((ours, first), (theirs, other))),
                    *fitted(
                        [
                            f"  {one_line(path)}: {one_line(repr(before))} and {one_line(repr(after))}"
                            for path, before, after in _differences(whole, others)
                        ]
                    ),
                ]
            )


def _differences(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in dict.fromkeys([*ours, *theirs]):
            yield from _differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else str(key))
    elif ours != theirs:
        yield path, ours, theirs


def comparison_page(reports: Sequence[Report]) -> str:
    """The reports as a table, the smallest flip rate first, those without an established number last.

    Args: reports: at least one; all with one ruler.
    """
    first = reports[0].content
    parts = "+".join(part for part in first.facts.parts if part != "attacker")
    rows = [_row(report) for report in sorted(reports, key=_order)]
    headings = ["model", "clean ACC", "ACC under attack", "flip", "κ", "noise", "ε50", "warnings", "report"]
    return (
        f"{first.n:,} samples of the part {parts}, tier {first.tier}, budget `{first.budget_hash}`; intervals "
        f"are over samples of one trained model each.\n\n{markdown_table(headings, rows)}\n"
    )


def _order(report: Report) -> tuple[bool, float]:
    headline = report.content.headline
    return not headline.established, headline.flip


def _row(report: Report) -> list[str]:
    content = report.content
    headline = content.headline
    if headline.established:
        found = [_number(content, f"robust/{name}") for name in ("acc", "flip", "kappa")]
    else:
        checks = ", ".join(headline.failed) or "contradicting numbers"
        found = [f"not established ({checks})", "", ""]
    reached = f"> {max(content.eps_curve, default=0):g}" if content.eps50 is None else f"{content.eps50:.3g}"
    return [
        content.facts.model,
        _number(content, "clean/acc"),
        *found,
        three_decimals(content.metrics.get("noise/flip")),
        reached if headline.established else "",
        ", ".join(headline.warned),
        f"`{report.given}`",
    ]


def _number(content: Content, name: str) -> str:
    value, interval = content.metrics.get(name), content.intervals.get(name)
    if value is None:
        return ""
    return with_bounds(value, interval.low if interval else None, interval.high if interval else None)
