"""Drivers that are killed at a moment that the database tells."""

import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from study.database.engine import study_url
from study.database.ledger import Ledger
from study.records import TrialRecord

MINUTES = 4


def records_of(runs: Path) -> list[TrialRecord]:
    return Ledger.open_existing("tiny", study_url(runs)).records()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    """True once the condition holds, False if the process ended before."""
    deadline = time.monotonic() + MINUTES * 60
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    raise AssertionError("the study made no progress")


def rounds_done(runs: Path) -> int:
    """Rounds that the database knows of, over all trials; read without going through our own code."""
    query = "SELECT COUNT(*) FROM trial_system_attributes WHERE key LIKE 'round:%'"
    try:
        with closing(sqlite3.connect(f"file:{runs / 'studies.db'}?mode=ro", uri=True)) as database:
            return int(database.execute(query).fetchone()[0])
    except sqlite3.OperationalError:  # the driver has not made the file or its tables yet
        return 0
