"""The leaderboard of a study, read from its database: `python -m study.report NAME`."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from study.cli import Parser, add_data_flag, add_storage_flag, exit_code_of, file_place, refuse
from study.ranking.label_free import NOT_CORRECTNESS
from study.ranking.objectives import goals
from study.ranking.summary import summary
from study.records import TrialRecord
from study.reporting.tables import (
    explanation,
    leaderboard,
    leaderboard_csv,
    leaderboard_html,
    leaderboard_json,
    leaderboard_page,
    leaderboard_parquet,
    report_figures,
)
from study.spec.yaml_file import SpecError
from trainables.files import write_whole

FORMATS = ("table", "md", "csv", "parquet", "json", "html")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="python -m study.report",
        description=__doc__,
        epilog=f"{NOT_CORRECTNESS} Exit codes: 0 done, 2 bad input, 130 interrupted.",
    )
    result.add_argument("name", help="name of the study")
    result.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    result.add_argument("--output", type=file_place, metavar="FILE", help="write there instead of to stdout")
    add_storage_flag(result)
    result.add_argument("--figures", type=file_place, metavar="DIR", help="write the figures there as PNG")
    result.add_argument(
        "--explain",
        action="store_true",
        help="what the search gave out, step by step, and why; and what each trial is at",
    )
    truth = result.add_mutually_exclusive_group()
    truth.add_argument(
        "--unblind",
        action="store_true",
        help="attacks every trial's model on the score part, reads the labels, and says how well criteria that need "
        "none chose; for benchmark data, when nothing is left to choose",
    )
    truth.add_argument(
        "--label-probe",
        type=file_place,
        metavar="LABELS.csv",
        help="compares the vote that trials were scored against with a few labels (columns sample,label; 50 samples, "
        "say), and bounds how far PRA is from robust ACC; when the choice is made",
    )
    add_data_flag(result)
    result.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return result


def _render(given: argparse.Namespace, name: str, records: Sequence[TrialRecord], spec: Mapping[str, Any]) -> bytes:
    objectives = goals(spec)

    def page() -> str:
        return leaderboard_html(name, records, objectives, report_figures(records, objectives, spec.get("space", {})))

    def table() -> str:
        width = os.get_terminal_size().columns if given.output is None and sys.stdout.isatty() else None
        return f"{leaderboard(records, objectives, width)}\n\n{summary(records, objectives)}\n"

    writers: dict[str, Callable[[], str | bytes]] = {
        "table": table,
        "md": lambda: leaderboard_page(records, objectives),
        "csv": lambda: leaderboard_csv(records, objectives),
        "parquet": lambda: leaderboard_parquet(records, objectives),
        "json": lambda: leaderboard_json(name, records, objectives),
        "html": page,
    }
    content = writers[given.format]()
    return content if isinstance(content, bytes) else content.encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns: 0, or 2 for an unknown study, an unreachable database or a place that cannot be written to."""
    return exit_code_of(_run, parser().parse_args(arguments))


def _run(given: argparse.Namespace) -> int:
    from study.database.ledger import Ledger

    if given.format == "parquet" and given.output is None:
        raise SpecError(["--format parquet needs --output FILE"])
    if given.data is not None and not given.unblind and given.label_probe is None:
        raise SpecError(["--data is for --unblind and --label-probe: nothing else reads the data"])
    probe = None
    if given.label_probe is not None:
        from study.reporting.label_probe import label_probe_page, read_probe

        probe = read_probe(given.label_probe)  # what cannot be read is refused before anything is opened
    try:
        ledger = Ledger.open_existing(given.name, storage_path=given.storage)
        records, spec = ledger.records(), ledger.spec
        if given.unblind:
            from study.reporting.unblinding import unblind

            content = unblind(ledger, records, given.storage, given.data).encode()
        elif given.explain:
            content = explanation(ledger.steps(), records, goals(spec)).encode()
        elif probe is not None:
            content = label_probe_page(ledger.name, records, spec, given.storage, probe, given.data).encode()
        else:
            content = _render(given, ledger.name, records, spec)
        if given.figures is not None:
            from study.reporting.style import png

            for key, figure in report_figures(records, goals(spec), spec.get("space", {})).items():
                write_whole(given.figures / f"{key}.png", png(figure))
        if given.output is not None:
            write_whole(given.output, content)
        else:
            sys.stdout.write(content.decode())
    except (OSError, ValueError) as error:
        return refuse(error, debug=given.debug)
    return 0


if __name__ == "__main__":
    sys.exit(main())
