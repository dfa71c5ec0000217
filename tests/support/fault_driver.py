"""A driver with faults on demand: python fault_driver.py STUDY.yaml [--address A] [--takeover]

`DRIVER_FAULT` names the moment at which it kills itself: `told:N` between telling the database that trial N has ended
and telling MLflow; `stored:N:R` between round R's checkpoint of trial N and its record. `CLOCK_OFFSET` is how many
seconds its wall clock is wrong.
"""

import argparse
import os
import signal
import sys
import time
from typing import Any

if offset := float(os.environ.get("CLOCK_OFFSET", "0")):
    right = time.time
    time.time = lambda: right() + offset  # before anything takes a reference to it

from counted_trainables import Counted

from study.cli import exit_code_of
from study.ledger import Ledger
from study.runner import StudyBroken, StudyRefused, run_study
from study.spec import load_spec


def install(fault: str) -> None:
    """Makes this process end without warning at the named moment."""
    kind, *numbers = fault.split(":")
    wanted = tuple(map(int, numbers))
    finish, progress = Ledger.finish, Ledger.progress

    def killed_finish(self: Ledger, number: int, *args: Any, **kwargs: Any) -> None:
        finish(self, number, *args, **kwargs)
        if kind == "told" and (number,) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed_progress(self: Ledger, number: int, told: Any) -> None:
        if kind == "stored" and (number, told["round"]) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        progress(self, number, told)

    Ledger.finish, Ledger.progress = killed_finish, killed_progress  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--address")
    parser.add_argument("--takeover", action="store_true")
    parser.add_argument("--debug", action="store_true")
    return exit_code_of(run, parser.parse_args())


def run(given: argparse.Namespace) -> int:
    if fault := os.environ.get("DRIVER_FAULT"):
        install(fault)
    try:
        return run_study(load_spec(given.file), address=given.address, takeover=given.takeover, trainable=Counted)
    except StudyRefused as error:
        print(error, file=sys.stderr)
        return 2
    except StudyBroken as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
