"""The leaderboard of a study, read from its database: `python -m study.report NAME`."""

import argparse
import base64
import csv
import html
import io
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.cli import Parser, exit_code_of, refuse
from study.ranking.objectives import goals, spread, value
from study.ranking.ranking import Row, rank, scores
from study.ranking.summary import override_paths, short_names, show, show_metric, summary
from study.records import Goal, TrialRecord
from study.secrets import first_line
from trainables.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

# Beside the objectives, where trials have them; everything else is in csv, parquet and json.
COLUMNS = ("select/pra", "select/utility", "clean/acc", "robust/acc", "robust/flip", "gan/acc", "noise/flip")
FORMATS = ("table", "md", "csv", "parquet", "json", "html")


def cells(records: Sequence[TrialRecord], objectives: Sequence[Goal]) -> tuple[list[str], list[list[str]]]:
    """Headings and texts of the leaderboard for people, best trial first; those without a rank follow with a note."""
    paths, metrics = override_paths(records), _metrics(records, objectives)
    names = short_names(paths)
    table = [
        [
            "" if row.rank is None else f"{row.rank}{' front' if len(objectives) > 1 and row.rank == 1 else ''}",
            f"{row.record.number}{' (baseline)' if row.record.baseline else ''}",
            row.record.state,
            *(show(row.record.overrides.get(path)) for path in paths),
            *(show_metric(row.record, metric) for metric in metrics),
            f"{row.record.seconds:.0f}",
            row.note,
        ]
        for row in rank(records, objectives)
    ]
    return ["rank", "trial", "state", *(names[path] for path in paths), *metrics, "seconds", "note"], table


def _metrics(records: Sequence[TrialRecord], objectives: Sequence[Goal]) -> list[str]:
    wanted = dict.fromkeys([*(objective.metric for objective in objectives), *COLUMNS])
    return [metric for metric in wanted if any(value(record, metric) is not None for record in records)]


def leaderboard(records: Sequence[TrialRecord], objectives: Sequence[Goal], width: int | None = None) -> str:
    """The leaderboard as text for a terminal: a table of the ranked trials, a line for each other one.

    Args: width: in characters; where it is short, the last metrics are left out, never digits. None: 120.
    """
    from rich.console import Console

    rows = rank(records, objectives)
    ranked = [row for row in rows if row.rank is not None]
    metrics = _metrics([row.record for row in ranked], objectives)
    buffer = io.StringIO()
    wide = Console(file=buffer, width=1000, highlight=False, color_system=None)
    table = _table(ranked, objectives, metrics)
    while len(metrics) > len(objectives) and wide.measure(table).maximum > (width or 120):
        metrics = metrics[:-1]
        table = _table(ranked, objectives, metrics)
    wide.print(table)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines() if line.strip()] if ranked else []
    if any(row.record.baseline for row in ranked):
        lines.append("* baseline")
    if any(row.record.warnings for row in ranked):
        lines.append("! there are reasons to doubt its numbers: --format md tells them")
    return "\n".join([*lines, *_others(rows, objectives)]) or "No trials yet."


def _table(ranked: Sequence[Row], objectives: Sequence[Goal], metrics: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    paths = override_paths(row.record for row in ranked)
    names, wanted = short_names(paths), [objective.metric for objective in objectives]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    headings = ["front" if len(objectives) > 1 else "rank", "trial", *(names[path] for path in paths)]
    for metric in metrics:
        headings += [metric, "±"] if metric in wanted else [metric]
    for heading in [*headings, "seconds"]:
        table.add_column("\n".join(re.split(r"[_/]", heading)), justify="right", no_wrap=True)
    for row in ranked:
        record = row.record
        marks = f"{'*' if record.baseline else ' '}{'!' if record.warnings else ' '}"
        texts = [str(row.rank), f"{record.number} {marks}"]
        texts += [show(record.overrides.get(path)) for path in paths]
        for metric in metrics:
            texts.append(_three(value(record, metric)))
            if metric in wanted:
                texts.append(_three(spread(record, metric)))
        table.add_row(*texts, f"{record.seconds:.0f}")
    return table


def _three(number: float | None) -> str:
    return "" if number is None else f"{number:.3f}"


def _others(rows: Sequence[Row], objectives: Sequence[Goal]) -> list[str]:
    """One line for each trial without a rank."""
    found = []
    for row in rows:
        if row.rank is None:
            record = row.record
            metrics = [f"{name} {show_metric(record, name)}" for name in _metrics([record], objectives)]
            names = short_names(record.overrides)
            given = ", ".join(f"{names[path]} {show(number)}" for path, number in record.overrides.items())
            note = row.note if len(row.note) <= 160 else f"{row.note[:159]}…"
            found.append("  ".join(["", f"trial {record.number}", record.state, note, *metrics[:2], given]).rstrip())
    return ["not ranked:", *found] if found else []


def markdown(records: Sequence[TrialRecord], objectives: Sequence[Goal]) -> str:
    """The summary, and the leaderboard as a GitHub table."""
    headings, rows = cells(records, objectives)
    lines = [headings, ["---"] * len(headings), *rows]
    table = "\n".join(
        f"| {' | '.join(_one_line(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
    return f"```\n{summary(records, objectives)}\n```\n\n{table}\n"


def flat(rows: Sequence[Row], objectives: Sequence[Goal]) -> tuple[list[str], list[list[Any]]]:
    """Headings and values of the whole table, one column for every parameter and metric, best trial first."""
    records = [row.record for row in rows]
    paths = override_paths(sorted(records, key=lambda record: record.number))
    metrics = sorted({metric for record in records for metric in record.metrics})
    fixed = [
        "rank",
        "number",
        "state",
        "baseline",
        "round",
        "rounds",
        "seconds",
        "budget",
        "note",
        "failure",
        "checkpoint",
    ]
    headings = [*fixed, *(f"objective/{o.metric}" for o in objectives), *(f"param/{path}" for path in paths), *metrics]
    table = []
    for row in rows:
        record = row.record
        found = scores(record, objectives) or [None] * len(objectives)
        known = [getattr(record, name) for name in fixed[1:8]]
        params = [record.overrides.get(path) for path in paths]
        numbers = [value(record, metric) for metric in metrics]
        table.append([row.rank, *known, row.note, record.failure, record.checkpoint, *found, *params, *numbers])
    return headings, table


def as_csv(records: Sequence[TrialRecord], objectives: Sequence[Goal]) -> str:
    """The whole table as CSV with a heading line; empty where a trial has no value."""
    headings, table = flat(rank(records, objectives), objectives)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows([["" if cell is None else cell for cell in row] for row in table])
    return buffer.getvalue()


def as_parquet(records: Sequence[TrialRecord], objectives: Sequence[Goal]) -> bytes:
    """The whole table as a Parquet file; a parameter whose values are of several types becomes text."""
    import pyarrow as pa
    from pyarrow import parquet

    headings, table = flat(rank(records, objectives), objectives)
    columns = {}
    for i, heading in enumerate(headings):
        column = [row[i] for row in table]
        try:
            columns[heading] = pa.array(column)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[heading] = pa.array([None if cell is None else json.dumps(cell) for cell in column])
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def as_json(name: str, records: Sequence[TrialRecord], objectives: Sequence[Goal]) -> str:
    """One JSON object: `study`, `objectives`, `counts`, `best`, `summary`, `trials` (best first).

    Numbers that are not finite become null, so that every reader takes it.
    """
    rows = rank(records, objectives)
    trials = [
        {
            "number": row.record.number,
            "rank": row.rank,
            "state": row.record.state,
            "baseline": row.record.baseline,
            "values": list(scores(row.record, objectives) or ()),
            "spreads": [spread(row.record, objective.metric) for objective in objectives],
            "overrides": row.record.overrides,
            "metrics": dict(sorted(row.record.metrics.items())),
            "round": row.record.round,
            "rounds": row.record.rounds,
            "seconds": row.record.seconds,
            "budget": row.record.budget,
            "failure": row.record.failure,
            "warnings": list(row.record.warnings),
            "checkpoint": row.record.checkpoint,
            "note": row.note,
        }
        for row in rows
    ]
    whole = {
        "study": name,
        "objectives": [{"metric": objective.metric, "mode": objective.mode} for objective in objectives],
        "counts": dict(sorted(Counter(record.state for record in records).items())),
        "best": [row.record.number for row in rows if row.rank == 1],
        "summary": summary(records, objectives),
        "trials": trials,
    }
    return json.dumps(_finite(whole), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_html(
    name: str, records: Sequence[TrialRecord], objectives: Sequence[Goal], figures: Mapping[str, "Figure"]
) -> str:
    """One page that needs nothing beside it: summary, leaderboard, figures."""
    from study.reporting.style import png

    headings, rows = cells(records, objectives)
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    images = "\n".join(
        f'<img alt="{html.escape(key)}" src="data:image/png;base64,{base64.b64encode(png(figure)).decode()}">'
        for key, figure in figures.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #333; margin: 2rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; }}
img {{ max-width: 100%; margin: 1rem 1rem 0 0; vertical-align: top; }}
</style></head><body>
<h1>{html.escape(name)}</h1>
<pre>{html.escape(summary(records, objectives))}</pre>
<div style="overflow-x:auto"><table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
{images}
</body></html>
"""


def all_figures(
    records: Sequence[TrialRecord], objectives: Sequence[Goal], space: Mapping[str, Any]
) -> dict[str, "Figure"]:
    """Figures of the study, and of its best trial and baselines where their checkpoints are still there."""
    from study.reporting.study_figures import study_figures
    from study.reporting.trial_figures import load_arrays, trial_figures
    from trainables.saved_trial import ARRAYS_FILE, parsing

    found = study_figures(records, objectives, space)
    ranked = [row.record for row in rank(records, objectives) if row.rank is not None]
    for record in [record for i, record in enumerate(ranked) if i == 0 or record.baseline]:
        with parsing(record.checkpoint, ARRAYS_FILE):
            drawn = trial_figures(record, load_arrays(record.checkpoint))
        found |= {f"trial_{record.number:03d}_{key}": figure for key, figure in drawn.items()}
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _finite(item: Any) -> Any:
    if isinstance(item, float):
        return item if math.isfinite(item) else None
    if isinstance(item, Mapping):
        return {key: _finite(entry) for key, entry in item.items()}
    return [_finite(entry) for entry in item] if isinstance(item, list | tuple) else item


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m study.report", description=__doc__)
    parser.add_argument("name", help="name of the study")
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to stdout")
    parser.add_argument(
        "--storage", default="runs", metavar="DIR", help="the study's storage.path; default: %(default)s"
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write the figures there as PNG")
    parser.add_argument(
        "--unblind",
        action="store_true",
        help="attacks every trial's model on the score part, reads the labels, and says how well criteria that need "
        "none chose; for benchmark data, when nothing is left to choose",
    )
    parser.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return parser


def _render(given: argparse.Namespace, name: str, records: Sequence[TrialRecord], spec: Mapping[str, Any]) -> bytes:
    objectives = goals(spec)

    def page() -> str:
        return as_html(name, records, objectives, all_figures(records, objectives, spec.get("space", {})))

    def table() -> str:
        width = os.get_terminal_size().columns if given.output is None and sys.stdout.isatty() else None
        return f"{leaderboard(records, objectives, width)}\n\n{summary(records, objectives)}\n"

    writers: dict[str, Callable[[], str | bytes]] = {
        "table": table,
        "md": lambda: markdown(records, objectives),
        "csv": lambda: as_csv(records, objectives),
        "parquet": lambda: as_parquet(records, objectives),
        "json": lambda: as_json(name, records, objectives),
        "html": page,
    }
    content = writers[given.format]()
    return content if isinstance(content, bytes) else content.encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns: 0, or 2 for an unknown study, an unreachable database or a place that cannot be written to."""
    return exit_code_of(_run, _parser().parse_args(arguments))


def _run(given: argparse.Namespace) -> int:
    from study.database.ledger import Ledger, LedgerError, is_outage

    try:
        if given.format == "parquet" and given.output is None:
            raise LedgerError("--format parquet needs --output FILE")
        ledger = Ledger.open_existing(given.name, storage_path=given.storage)
        records, spec = ledger.records(), ledger.spec
        if given.unblind:
            from study.reporting.unblinding import stored_truths, unblind
            from trainables.checkpoints import below

            stored_truths(below(given.storage, ledger.name))  # what is damaged is refused before a use is noted
            ledger.note_score_use("study.report --unblind")
            content = unblind(ledger.name, records, given.storage).encode()
        else:
            content = _render(given, ledger.name, records, spec)
        if given.figures is not None:
            from study.reporting.style import png

            for key, figure in all_figures(records, goals(spec), spec.get("space", {})).items():
                write_whole(given.figures / f"{key}.png", png(figure))
        if given.output is not None:
            write_whole(given.output, content)
        else:
            sys.stdout.write(content.decode())
    except (LedgerError, OSError, ValueError) as error:
        return refuse(error, debug=given.debug)
    except Exception as error:
        if not is_outage(error):
            raise
        return refuse(LedgerError(f"the study database does not answer: {first_line(error)}"), debug=given.debug)
    return 0


if __name__ == "__main__":
    sys.exit(main())
