"""The command `ardmvc`: one name for all commands. `ardmvc sweep …` is `python -m study.sweep …`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from study import __version__
from study.needs import lacking

COMMANDS = {
    "sweep": "runs, continues or extends a study",
    "report": "prints the leaderboard of a study",
    "studies": "lists the studies of a database",
    "control": "tells how a study stands; pauses, resumes, stops it",
    "evaluate": "attacks one trained model with the whole suite and writes a report",
    "compare": "puts such reports in one table",
    "confirm": "trains the best trials again, with fresh seeds on unseen samples",
    "table1": "repeats the paper's Table 1",
    "data": "looks into a file of views, or writes it as an .npz",
    "ui": "opens the MLflow pages of the local store",
}


def parser(*, whole: bool = False) -> argparse.ArgumentParser:
    """The command line. Args: whole: with the flags of every command, for shell completion."""
    result = argparse.ArgumentParser(
        prog="ardmvc",
        description="Studies of robust multi-view clustering. `ardmvc COMMAND --help` tells more of one command.",
        epilog="Exit codes: 0 done, 1 the work ended with failures, 2 bad input, 130 interrupted (resumable).",
    )
    result.add_argument("--version", action="version", version=f"ardmvc {__version__}")
    result.add_argument(
        "--print-completion", metavar="SHELL", help="prints completion for bash, zsh or tcsh, to be sourced"
    )
    commands = result.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        parents = [import_module(f"study.{name}").parser()] if whole else []
        commands.add_parser(name, help=text, parents=parents, conflict_handler="resolve")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names. Returns: its exit code."""
    if missing := lacking():
        print(missing, file=sys.stderr)
        return 2
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        code: int = import_module(f"study.{words[0]}").main(words[1:])
        return code
    given = parser().parse_args(words)
    if given.print_completion:
        return _print_completion(given.print_completion)
    parser().print_help()
    return 2


def _print_completion(shell: str) -> int:
    import shtab

    if shell not in shtab.SUPPORTED_SHELLS:
        print(f"--print-completion: must be one of {', '.join(shtab.SUPPORTED_SHELLS)}, got {shell!r}", file=sys.stderr)
        return 2
    print(shtab.complete(parser(whole=True), shell=shell))
    return 0
