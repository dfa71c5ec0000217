"""One driver per study: a lease in the study's database, taken by compare-and-swap and kept alive by a counter.

Whether a driver lives is judged by whether its counter moves while one watches, by the watcher's own monotonic clock:
clocks of two machines need not agree, and may jump. Whether the lease is still its own is asked by a driver in each
transaction that writes, so that one which was stopped at any moment, and taken over, writes nothing when it goes on.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import ORMExecuteState, Session, sessionmaker

from study.database.engine import LedgerError

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""A driver whose counter has not moved for so long may be taken over with --takeover."""
FENCE_SECONDS = 2.5 * HEARTBEAT_SECONDS
"""A driver that has not heard of its lease for so long asks before it begins something; see `Lease.check`."""

TABLE_NAME = "ardmvc_leases"
_TABLE = sa.Table(
    TABLE_NAME,
    sa.MetaData(),
    sa.Column("study_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("holder", sa.Text, nullable=False),  # JSON; "" while nobody holds it
    sa.Column("beat", sa.BigInteger, nullable=False),
    sa.Column("heartbeat", sa.Float, nullable=False),  # the holder's clock, for people
    sa.Column("seconds", sa.Float, nullable=False),  # that drivers have held it, over all of them
)


class LeaseHeld(LedgerError):
    """Another driver holds the study, or may; the message says who."""


class LeaseLost(Exception):
    """Another driver has taken the study over; this one must stop."""


def make_table(bind: sa.Engine) -> None:
    """Makes the table of the leases, if it is missing."""
    _TABLE.create(bind, checkfirst=True)


class Lease:
    """The lease of one study, for one driver."""

    def __init__(self, engine: sa.engine.Engine, study_id: int, name: str) -> None:
        self._engine, self._study_id, self._name = engine, study_id, name
        self.lost = threading.Event()
        """Set once another driver has taken the study over."""
        self._holder = ""
        self._beat_known = 0
        """The counter has come so far, as seen from here."""
        self._heard, self._beaten = _awake(), time.monotonic()
        self._beating = threading.Lock()
        self._stop = threading.Event()

    def acquire(self, *, takeover: bool = False, stale_seconds: float = STALE_SECONDS) -> None:
        """Takes the lease and keeps it alive in a thread. With `takeover`, watches the holder for `stale_seconds`.

        Raises: LeaseHeld naming the holder if it is alive, or may be.
        """
        try:
            make_table(self._engine)
        except sa.exc.DBAPIError:  # another driver was quicker, or there is no database, which the next line finds
            self._row()
        holder = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "place": _place(),
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
        }
        mine = json.dumps(holder)
        while True:
            row = self.look(takeover=takeover, stale_seconds=stale_seconds)
            if self._insert(mine) if row is None else self._swap(row, mine):
                break
        self._beat_known = 0 if row is None else row["beat"] + 1
        self._holder = mine
        self._heard, self._beaten = _awake(), time.monotonic()
        threading.Thread(target=self._keep_alive, name="lease", daemon=True).start()

    def look(self, *, takeover: bool = False, stale_seconds: float = STALE_SECONDS) -> Mapping[str, Any] | None:
        """The lease as it is in the database, None if nobody ever had it; changes nothing.

        Raises: LeaseHeld where `acquire` would raise it.
        """
        row = self._row()
        if row is not None and row["holder"] and not _is_dead(json.loads(row["holder"])):
            self._judge(row, takeover, stale_seconds)
        return row

    def release(self) -> None:
        """Gives the lease back, if it is still ours."""
        self._stop.set()
        if self._holder:
            try:
                self._write(holder="", seconds=_TABLE.c.seconds + (time.monotonic() - self._beaten))
            except sa.exc.SQLAlchemyError as error:  # the database is away; the next driver sees that this one is gone
                logger.debug("the lease is not given back: %s", type(error).__name__)
        self._holder = ""

    def guard(self, sessions: "sessionmaker[Session]") -> None:
        """From now on, what these sessions write is committed only while the lease is ours.

        Otherwise LeaseLost is raised in place of the commit, and nothing is written. Sessions that read are left alone.
        """

        def flushed(session: Session, _: Any) -> None:
            session.info["writes"] = True

        def executed(statement: ORMExecuteState) -> None:
            if not statement.is_select:
                statement.session.info["writes"] = True

        def committing(session: Session) -> None:
            session.flush()
            if session.info.pop("writes", False) and self._holder:
                self._confirm(session)

        sa.event.listen(sessions, "after_flush", flushed)
        sa.event.listen(sessions, "do_orm_execute", executed)
        sa.event.listen(sessions, "before_commit", committing)

    def _confirm(self, session: Session) -> None:
        """Raises: LeaseLost unless the lease is ours, and stays so until the transaction ends.

        A takeover changes the row that is read here, so it waits: sqlite has one writer at a time, which is this
        transaction by now; PostgreSQL locks the row. A counter that went back means an older state of the database.
        """
        ours = (_TABLE.c.study_id == self._study_id) & (_TABLE.c.holder == self._holder)
        row = sa.select(_TABLE.c.beat).where(ours, _TABLE.c.beat >= self._beat_known).with_for_update(read=True)
        if session.execute(row).first() is None:
            self.lost.set()
            raise LeaseLost(f"study {self._name!r} was taken over by another driver")

    def check(self) -> bool:
        """Whether the lease is ours, asked of the database only if it was not heard of lately.

        Spares a driver that was stopped, and taken over, the beginning of something that it may not write.
        """
        if self._holder and _awake() - self._heard > FENCE_SECONDS and not self._beat():
            self.lost.set()
        return not self.lost.is_set()

    def describe(self) -> dict[str, Any] | None:
        """Who holds the lease: {"host", "pid", "heartbeat", "alive"}; None if nobody does.

        `alive` is None where only watching would tell.
        """
        row = self._row()
        if row is None or not row["holder"]:
            return None
        holder = json.loads(row["holder"])
        alive = False if _is_dead(holder) else True if holder.get("place") == _place() else None
        return {"host": holder["host"], "pid": holder["pid"], "heartbeat": row["heartbeat"], "alive": alive}

    @property
    def seconds(self) -> float:
        """Seconds that drivers have held the lease, over all of them; a driver that was killed misses its last few."""
        row = self._row()
        return 0.0 if row is None else float(row["seconds"])

    # The table

    def _row(self) -> Mapping[str, Any] | None:
        with self._engine.connect() as connection:
            if not sa.inspect(connection).has_table(_TABLE.name):
                return None
            found = connection.execute(sa.select(_TABLE).where(_TABLE.c.study_id == self._study_id)).mappings().first()
        return None if found is None else dict(found)

    def _insert(self, holder: str) -> bool:
        row = {"study_id": self._study_id, "holder": holder, "beat": 0, "heartbeat": time.time(), "seconds": 0.0}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(_TABLE).values(**row))
        except sa.exc.IntegrityError:  # another driver was quicker
            return False
        return True

    def _swap(self, row: Mapping[str, Any], holder: str) -> bool:
        """Takes the lease if nothing about it has changed since `row` was read."""
        same = (
            (_TABLE.c.study_id == self._study_id) & (_TABLE.c.holder == row["holder"]) & (_TABLE.c.beat == row["beat"])
        )
        with self._engine.begin() as connection:
            done = connection.execute(
                sa.update(_TABLE).where(same).values(holder=holder, beat=row["beat"] + 1, heartbeat=time.time())
            )
        return bool(done.rowcount)

    def _write(self, **values: Any) -> bool:
        """Changes our row. Returns: whether it is still ours."""
        ours = (_TABLE.c.study_id == self._study_id) & (_TABLE.c.holder == self._holder)
        with self._engine.begin() as connection:
            done = connection.execute(sa.update(_TABLE).where(ours).values(**values))
        return bool(done.rowcount)

    def _beat(self) -> bool:
        with self._beating:
            now = time.monotonic()
            passed = max(0.0, now - self._beaten)
            kept = self._write(beat=_TABLE.c.beat + 1, heartbeat=time.time(), seconds=_TABLE.c.seconds + passed)
            self._beat_known += kept
            self._heard, self._beaten = _awake(), now
        return kept

    def _keep_alive(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                if not self._beat() and not self._stop.is_set():
                    self.lost.set()
                    return
            except Exception as error:  # an outage of the database is no reason to end; the main thread meets it too
                logger.debug("no heartbeat: %s", type(error).__name__)

    # Judging a holder

    def _judge(self, row: Mapping[str, Any], takeover: bool, stale_seconds: float) -> None:
        """Raises: LeaseHeld unless the holder may be replaced."""
        holder = json.loads(row["holder"])
        who = f"process {holder['pid']} on {holder['host']}"
        here = _place() and holder.get("place") == _place()  # not dead, so it is seen to live
        age = time.time() - row["heartbeat"]
        if here or (not takeover and 0 <= age < stale_seconds):
            raise LeaseHeld(f"study {self._name!r} is being run by {who}; wait for it or stop it first")
        if not takeover:
            when = f"{age:.0f} s ago" if age >= 0 else "at a time that is still to come on this machine's clock"
            raise LeaseHeld(
                f"study {self._name!r} was run by {who}, last heard of {when}; if it is gone, add --takeover"
            )
        logger.warning("watching for %.0f s whether %s is still at work", stale_seconds, who)
        if _moves(self._row, row, stale_seconds):
            raise LeaseHeld(f"study {self._name!r} is being run by {who}, which is alive; stop it first")


def _moves(read: Callable[[], Mapping[str, Any] | None], before: Mapping[str, Any], seconds: float) -> bool:
    """Whether the holder's counter moves within `seconds` of this process's own clock."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while time.monotonic() < end:
        pause.wait(min(1.0, seconds / 10))
        now = read()
        if now is None or (now["holder"], now["beat"]) != (before["holder"], before["beat"]):
            return bool(now and now["holder"])
    return False


def _awake() -> float:
    """Seconds of a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _place() -> str:
    """Where process ids mean the same: machine, its start, and the process namespace; empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """When the process began, in the kernel's ticks, so that a reused pid is told apart; empty where unknown, `dead`
    for one that has ended and that its parent has not asked about yet."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "dead" if facts[0] == "Z" else facts[19]
    except (OSError, IndexError):
        return ""


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """True only if the holder ran where this process runs and is known to be gone."""
    if not _place() or holder.get("place") != _place():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's process; whether it is the same one is seen below
    started = _process_start(holder["pid"])
    return bool(started and holder.get("started") and started != holder["started"])
