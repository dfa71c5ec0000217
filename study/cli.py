"""What the commands that run studies have in common: flags on how to run, and how they end."""

import argparse
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ardmvc_core.errors import UserError
from ardmvc_core.places import expanded
from study.output import show_everything
from study.secrets import guard_output, redact, remember_arguments
from study.spec.faults import Fault, listing, shortened
from study.spec.yaml_file import Label, SpecError
from trainables.scratch import ensure_home

if TYPE_CHECKING:
    from study.database.identity import Contents
    from study.spec.study_spec import StudySpec

MOST_SEEDS = 100
"""Trainings of one setting."""
MOST_ARGUMENTS = 1_000


class Parser(argparse.ArgumentParser):
    """Says shortly what is wrong with the flags, whatever they hold."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        if len(given) > MOST_ARGUMENTS:  # argparse takes time with the square of them
            self.error(f"at most {MOST_ARGUMENTS} arguments, got {len(given)}")
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        super().error(shortened(redact(message)))


def place(text: str, read: Callable[[str], str] = expanded) -> str:
    """A path or an address among the flags, `~` and `$NAME` replaced."""
    try:
        return read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_data_flag(parser: argparse.ArgumentParser) -> None:
    """--data, of commands that read a finished trial's data."""
    parser.add_argument(
        "--data",
        type=place,
        metavar="PLACE",
        help="where the data lie now, the file or the folder; default: where the trial read them",
    )


def add_storage_flag(parser: argparse.ArgumentParser) -> None:
    """--storage, as `storage.path` of a study has it."""

    def storage(text: str) -> str:
        from study.spec.schema import storage_place

        return place(text, storage_place)

    parser.add_argument(
        "--storage", type=storage, default="runs", metavar="DIR", help="the study's storage.path; default: %(default)s"
    )


def file_place(text: str) -> Path:
    """A file or folder among the flags."""
    return Path(place(text))


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags on how to run a study: --set, --address, --dry-run, --takeover, --debug."""
    parser.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="replaces one value of the study, such as trial.epochs=3; may be given again",
    )
    parser.add_argument(
        "--address", type=place, metavar="A", help="a running Ray cluster; without it Ray starts on this machine"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="shows what would run, and how long, or why it would not; writes nothing",
    )
    parser.add_argument("--takeover", action="store_true", help="takes a study over from a driver that is gone")
    parser.add_argument("--debug", action="store_true", help="tracebacks and debug messages")


def exit_code_of(run: Callable[[argparse.Namespace], int], given: argparse.Namespace) -> int:
    """Runs a command, and hides what is secret in all that it prints of errors.

    Returns: its exit code; 2 for a UserError or a database that is away or damaged, which is printed, 130 for Ctrl-C.
    """
    level = logging.DEBUG if given.debug else logging.WARNING
    guard_output()
    show_everything()
    ensure_home()
    remember_arguments(vars(given).values())
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        return run(given)
    except UserError as error:
        return refuse(error, debug=given.debug)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        from study.database.engine import database_fault

        if not (fault := database_fault(error)):
            raise
        return refuse(UserError(fault), debug=given.debug)


def only_planned(
    spec: "StudySpec",
    given: argparse.Namespace,
    label: str,
    *,
    as_json: bool = False,
    contents: "Contents | None" = None,
    warm_start: str | None = None,
) -> bool:
    """Looks whether the study could run here, and with --dry-run shows what would.

    Args: given: flags of `add_run_flags`. label: what faults begin with. as_json: of what is shown. contents: what the
        data must hold. warm_start: as of `run_study`.
    Returns: whether that was all that was asked for.
    Raises: SpecError with what is missing here; with --dry-run StudyRefused where `run_planned` would raise it.
    """
    from study.planning.preflight import environment_faults

    if faults := environment_faults(spec, cluster=given.address is not None, contents=contents):
        raise SpecError([_at(label, fault, given.sets) for fault in faults])
    if given.dry_run:
        from study.driver.run import look
        from study.planning.dry_run import dry_run

        records = look(spec, address=given.address, takeover=given.takeover, warm_start=warm_start)
        print(dry_run(spec, records, as_json=as_json, here=given.address is None))
    return bool(given.dry_run)


def _at(label: str, fault: str, sets: Sequence[str]) -> Fault:
    """The fault of a study as a file holds it; `sets` that replace values of it have no place there."""
    path, mark, message = fault.partition(": ")
    place = label.place(path) if isinstance(label, Label) and not sets else ""
    return Fault(path, message, source=label, place=place) if mark else Fault("", fault, source=label)


def run_planned(spec: "StudySpec", given: argparse.Namespace, **how: Any) -> int:
    """Runs the study by the flags of `add_run_flags`. Args: how: further ones of `run_study`.

    Returns: its exit code; 1 if the driver could not go on, which is said.
    Raises: StudyRefused if nothing was started; DamagedCheckpoint of one that the results need.
    """
    from study.driver import StudyBroken
    from study.driver.run import run_study

    try:
        return run_study(spec, address=given.address, takeover=given.takeover, **how)
    except StudyBroken as error:
        refuse(error, debug=given.debug)
        print("the same command goes on once that is mended", file=sys.stderr)
        return 1


def refuse(error: Exception, *, debug: bool) -> int:
    """Prints shortly why nothing was started, without passwords, under --debug with the traceback. Returns: 2."""
    if debug:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
    # Hidden first: what is shortened might be cut in the middle of a secret.
    faults = error.faults if isinstance(error, SpecError) else [error]
    print(listing(redact("\n".join(map(str, faults))).splitlines()), file=sys.stderr)
    return 2
