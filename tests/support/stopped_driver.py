"""A driver that is stopped in the middle of a write, as by a laptop's lid: python stopped_driver.py URL WRITE MOMENT

It holds the lease of study `tiny`, which has a running trial, and looks like a driver of another machine, since one of
this machine may not be taken over while it lives. MOMENT is `statement`, before the first statement that would change
something, or `commit`, before the end of the transaction. It ends with 0 if it was told that the lease is lost.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from study.database import lease, ledger
from study.database.ledger import Ledger

ledger.IDLE_SECONDS = 1
lease.HEARTBEAT_SECONDS = 3600.0  # only the write itself can find out
lease._place = lambda: "another machine"

FACTS: dict[str, Any] = {"overrides": {}, "config": {}, "rounds": 4, "baseline": False}
ROUND = {"round": 1, "time": 1, "metrics": {}, "checkpoint": "/new", "seconds": 1.0}
WRITES: dict[str, Callable[[Ledger], object]] = {
    "add": lambda ledger: ledger.add(**FACTS, params={}, distributions={}),
    "report": lambda ledger: ledger.report(0, 1, 0.5),
    "progress": lambda ledger: ledger.progress(0, ROUND),
    "finish": lambda ledger: ledger.finish(0, TrialState.COMPLETE, [0.5]),
    "fail": lambda ledger: ledger.finish(0, TrialState.FAIL, failure="it was stopped"),
    "interrupt": lambda ledger: ledger.interrupt(0),
    "set_control": lambda ledger: ledger.set_control("pause"),
}


def main(url: str, write: str, moment: str) -> int:
    ledger = Ledger.open_existing("tiny", url)
    ledger.acquire()
    ledger.patience = 60.0
    ledger.records()
    passed: list[str] = []

    def come_to(place: str) -> None:
        if place not in passed:
            passed.append(place)
            if place == moment:
                os.kill(os.getpid(), signal.SIGSTOP)

    @sa.event.listens_for(ledger.engine, "before_cursor_execute")
    def executing(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("INSERT", "UPDATE")):
            come_to("statement")

    @sa.event.listens_for(ledger.engine, "commit")
    def committing(_: Any) -> None:
        if "statement" in passed:
            come_to("commit")

    try:
        WRITES[write](ledger)
    except lease.LeaseLost as error:
        print(error)
        return 0
    print("it has written")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
