"""Several robustness reports in one table: `python -m study.compare REPORT REPORT …`.

Numbers of two budgets do not compare, nor those of two sets of samples, so such reports are refused, with both shown.
"""

import argparse
import sys
from collections.abc import Sequence

from study.cli import Parser, exit_code_of, file_place, place
from study.robustness.comparison import check_comparable, comparison_page, read
from study.spec.yaml_file import SpecError
from trainables.files import write_whole


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="python -m study.compare",
        description="Puts reports of study.evaluate side by side, the most robust model first. Reports of different "
        "budgets or samples are refused.",
        epilog="Exit codes: 0 done, 2 bad input.",
    )
    result.add_argument(
        "reports", nargs="+", type=place, metavar="REPORT", help="a report's folder, or its report.json"
    )
    result.add_argument("--output", type=file_place, metavar="FILE", help="writes the table there too")
    result.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table. Returns: 0, or 2 for reports that do not compare."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(given: argparse.Namespace) -> int:
    reports = [read(name) for name in given.reports]
    check_comparable(reports)
    text = comparison_page(reports)
    if given.output is not None:
        try:
            write_whole(given.output, text.encode())
        except OSError as error:
            raise SpecError([f"--output: {given.output} cannot be written: {error.strerror}"]) from error
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
