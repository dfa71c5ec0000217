"""Tables, numbers and plain JSON, as every page and file of a study has them."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str] = ()) -> str:
    """A GitHub table without a line end behind it; a cell's line ends become spaces.

    Args: align: the rule under each heading, such as `---:`; empty: `---` for all.
    """
    lines = [header, align or ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(' '.join(c.split()).replace('|', chr(92) + '|') for c in line)} |" for line in lines
    )


def text_columns(rows: Sequence[Sequence[str]], *, last_is_text: bool = False) -> list[str]:
    """Columns of one width, the first at the left, others at the right, as is a last one of text.

    Args: rows: one with fewer cells than others is not measured beyond its first.
    """
    most = max(map(len, rows), default=0)
    full = [row for row in rows if len(row) == most]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    first = max((len(row[0]) for row in rows), default=0)
    lines = []
    for row in rows:
        others = (
            [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            if len(row) == most
            else row[1:]
        )
        others = [*others[:-1], row[-1]] if last_is_text else others
        lines.append("  ".join([row[0].ljust(first), *others]).rstrip())
    return lines


def csv_text(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A CSV file with a heading line; empty where there is None."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return buffer.getvalue()


def three_decimals(number: float | None) -> str:
    """`0.523`; empty for None."""
    return "" if number is None else f"{number:.3f}"


def with_bounds(number: float, low: float | None, high: float | None) -> str:
    """`0.523 [0.487, 0.561]`; the number alone without bounds."""
    return f"{number:.3f}" if low is None or high is None else f"{number:.3f} [{low:.3f}, {high:.3f}]"


def plain_json(item: Any) -> Any:
    """What every reader of JSON takes: a number that is not finite becomes None."""
    if isinstance(item, float):
        return item if math.isfinite(item) else None
    if isinstance(item, Mapping):
        return {key: plain_json(entry) for key, entry in item.items()}
    return [plain_json(entry) for entry in item] if isinstance(item, list | tuple) else item


def use_of_part(name: str, uses: Sequence[str]) -> str:
    """Which use of a score part this is, and how many there are. Args: uses: all, oldest first, `name` among them."""
    later = len(uses) - uses.index(name) - 1
    return f"use {uses.index(name) + 1} of this part" + f" ({len(uses)} so far)" * bool(later)
