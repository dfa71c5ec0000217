"""A driver with faults on demand: python fault_driver.py STUDY.yaml [--address A] [--takeover]

`DRIVER_FAULT` names the moment at which it kills itself: `told:N` between telling the database that trial N has ended
and telling MLflow; `stored:N:R` between round R's checkpoint of trial N and its record. `stuck:N:R`: from that record
on it does nothing any more, as in a call into Ray that does not come back. Or it stops itself (SIGSTOP): `stopped:N:R`
before the statement that would record round R of trial N; `waiting:N:R` while that round, which the database knows,
waits to be sent to MLflow. `CLOCK_OFFSET` is how many seconds its wall clock is wrong, `PLACE` a machine that it takes
itself to be on, `SILENT_SECONDS` for how long a worker must be silent to be said so.
"""

import argparse
import os
import signal
import sys
import threading
import time
from typing import Any

if offset := float(os.environ.get("CLOCK_OFFSET", "0")):
    right = time.time
    time.time = lambda: right() + offset  # before anything takes a reference to it

import sqlalchemy as sa
from counted_trainables import Counted

from study.cli import exit_code_of
from study.database import lease
from study.database.ledger import Ledger
from study.driver import StudyBroken, StudyRefused, open_trials
from study.driver.run import run_study
from study.records import TrialRecord
from study.spec.study_spec import load_spec
from study.tracking.tracker import MLflowTracker


def install(fault: str) -> None:
    """Makes this process end or stop without warning at the named moment."""
    kind, *numbers = fault.split(":")
    wanted = tuple(map(int, numbers))
    finish, progress, reported = Ledger.finish, Ledger.progress, MLflowTracker.trial_reported

    def killed_finish(self: Ledger, number: int, *args: Any, **kwargs: Any) -> None:
        finish(self, number, *args, **kwargs)
        if kind == "told" and (number,) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed_progress(self: Ledger, number: int, told: Any) -> None:
        if kind == "stored" and (number, told["round"]) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "stopped" and (number, told["round"]) == wanted:
            stop_before_write(self)
        progress(self, number, told)
        if kind == "stuck" and (number, told["round"]) == wanted:
            threading.Event().wait()

    def stopped_report(self: MLflowTracker, record: TrialRecord) -> None:
        reported(self, record)
        if kind == "waiting" and (record.number, record.round) == wanted:
            os.kill(os.getpid(), signal.SIGSTOP)

    Ledger.finish, Ledger.progress = killed_finish, killed_progress  # type: ignore[method-assign]
    MLflowTracker.trial_reported = stopped_report  # type: ignore[method-assign]


def stop_before_write(ledger: Ledger) -> None:
    """Stops this process once, before the next statement that changes the study."""
    stops = [signal.SIGSTOP]

    @sa.event.listens_for(ledger.engine, "before_cursor_execute")
    def executing(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if stops and statement.startswith(("INSERT", "UPDATE")) and lease.TABLE_NAME not in statement:
            os.kill(os.getpid(), stops.pop())


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
    if place := os.environ.get("PLACE"):
        lease._place = lambda: place
    open_trials.SILENT_SECONDS = float(os.environ.get("SILENT_SECONDS", open_trials.SILENT_SECONDS))
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
