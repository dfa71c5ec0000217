"""The leaderboard as text, Markdown, CSV, Parquet, JSON and HTML."""

import base64
import html
import io
import json
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from study.ranking.objectives import spread, value
from study.ranking.ranking import Row, rank, scores
from study.ranking.summary import override_paths, short_names, show, show_metric, summary
from study.records import Goal, TrialRecord
from study.reporting.text import csv_text, markdown_table, plain_json, three_decimals

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


# Beside the objectives, where trials have them; everything else is in csv, parquet and json.
COLUMNS = ("select/pra", "select/utility", "clean/acc", "robust/acc", "robust/flip", "gan/acc", "noise/flip")


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

    Args: width: in characters; where it is short, the last metrics and then the last parameters are left out and named,
        never digits. None: that of the terminal, 80 where there is none.
    """
    from rich.console import Console

    rows = rank(records, objectives)
    ranked = [row for row in rows if row.rank is not None]
    metrics = _metrics([row.record for row in ranked], objectives)
    paths = override_paths(row.record for row in ranked)
    columns = width or shutil.get_terminal_size().columns
    buffer = io.StringIO()
    wide = Console(file=buffer, width=1000, highlight=False, color_system=None)
    table, left_out = _table(ranked, objectives, paths, metrics), list[str]()
    while wide.measure(table).maximum > columns and (len(metrics) > len(objectives) or paths):
        last = metrics if len(metrics) > len(objectives) else paths
        left_out.append(last.pop())
        table = _table(ranked, objectives, paths, metrics)
    wide.print(table)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines() if line.strip()] if ranked else []
    if left_out and ranked:
        lines += textwrap.wrap(f"too wide to show: {', '.join(sorted(left_out))}", columns, break_long_words=False)
    if any(row.record.baseline for row in ranked):
        lines.append("* baseline")
    if any(row.record.warnings for row in ranked):
        lines.append("! there are reasons to doubt its numbers: --format md tells them")
    return "\n".join([*lines, *_others(rows, objectives)]) or "No trials yet."


def _table(ranked: Sequence[Row], objectives: Sequence[Goal], paths: Sequence[str], metrics: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

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
            texts.append(three_decimals(value(record, metric)))
            if metric in wanted:
                texts.append(three_decimals(spread(record, metric)))
        table.add_row(*texts, f"{record.seconds:.0f}")
    return table


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


def explanation(steps: Sequence[Mapping[str, Any]], records: Sequence[TrialRecord], objectives: Sequence[Goal]) -> str:
    """Why each trial was given out, paused or stopped: the steps of a search, and each trial's place."""
    lines = [f"step {number}: {step['why']}{_given(step)}" for number, step in enumerate(steps, 1)]
    lines = lines or ["Every trial was given out at once and whole: trials of this study do not begin in cohorts."]
    for row in sorted(rank(records, objectives), key=lambda row: row.record.number):
        record = row.record
        seeds = f", {record.seeds} seed{'s' * (record.seeds != 1)} trained" if record.judged else ""
        place = f", rank {row.rank}" if row.rank is not None else ""
        lines.append(f"trial {record.number}: {record.state}{place}, round {record.round}{seeds}".rstrip())
    return "\n".join(lines) + "\n"


def _given(step: Mapping[str, Any]) -> str:
    new = f", trials {step['first']} to {step['first'] + step['new'] - 1}" if step["new"] else ""
    if not step["rounds"]:
        return new
    return f"{new}: {', '.join(f'trial {number} to round {rounds}' for number, rounds in step['rounds'].items())}"


def leaderboard_page(records: Sequence[TrialRecord], objectives: Sequence[Goal]) -> str:
    """The summary, and the leaderboard as a GitHub table."""
    headings, rows = cells(records, objectives)
    return f"```\n{summary(records, objectives)}\n```\n\n{markdown_table(headings, rows)}\n"


def leaderboard_rows(rows: Sequence[Row], objectives: Sequence[Goal]) -> tuple[list[str], list[list[Any]]]:
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


def leaderboard_csv(records: Sequence[TrialRecord], objectives: Sequence[Goal]) -> str:
    """The whole table as CSV with a heading line; empty where a trial has no value."""
    return csv_text(*leaderboard_rows(rank(records, objectives), objectives))


def leaderboard_parquet(records: Sequence[TrialRecord], objectives: Sequence[Goal]) -> bytes:
    """The whole table as a Parquet file; a parameter whose values are of several types becomes text."""
    import pyarrow as pa
    from pyarrow import parquet

    headings, table = leaderboard_rows(rank(records, objectives), objectives)
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


def leaderboard_json(name: str, records: Sequence[TrialRecord], objectives: Sequence[Goal]) -> str:
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
    return json.dumps(plain_json(whole), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def leaderboard_html(
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


def report_figures(
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
