"""Lists the studies of a database: `python -m study.studies`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from study.cli import Parser, add_storage_flag, exit_code_of


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="python -m study.studies",
        description="Lists the studies of a database: state, trials, failures, the best trial.",
        epilog="Exit codes: 0 done, 2 bad input, 130 interrupted.",
    )
    add_storage_flag(result)
    result.add_argument("--json", action="store_true", dest="json_output", help="the list as JSON on stdout")
    result.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0, or 2 for a database that is not there or does not answer."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(given: argparse.Namespace) -> int:
    from study.database.engine import study_url
    from study.database.ledger import Ledger
    from study.database.status import status_of

    found = [status_of(ledger) for ledger in Ledger.open_all(study_url(given.storage))]
    if given.json_output:
        print(json.dumps([asdict(status) for status in found]))
        return 0
    rows = [("study", "state", "trials", "failed", "best")]
    for status in found:
        best = "" if status.best is None else ", ".join(f"{m} {v:.3f}" for m, v in status.best["metrics"].items())
        done = sum(status.trials[kind] for kind in ("complete", "pruned", "fail"))
        rows.append((status.study, status.state, f"{done}/{status.trials['budget']}", str(status.trials["fail"]), best))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print("\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
