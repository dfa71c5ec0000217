"""What was told about trials and is not sent yet, and the thread that sends it.

One parcel a trial, which grows until it is taken: an outage fills no memory, and a slow receiver catches up with one
message per trial.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from study.database.lease import LeaseLost
from study.records import TrialRecord
from trainables.retry import doubling

if TYPE_CHECKING:
    from study.tracking.mlflow_runs import MLflowRuns

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a parcel is sent that the receiver refuses for a reason of the parcel's own."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between attempts while the receiver does not answer; doubled each time."""
GATHER_SECONDS = 1.0
"""Seconds that news waits for more of it."""
OUTAGE_PATIENCE = 10.0
"""Seconds that `close` waits for a receiver which did not answer at the last attempt."""

Point = tuple[int, int, dict[str, float]]
"""Round, time in ms since the epoch, metrics."""


@dataclass
class Parcel:
    """Everything to send about one trial, in the order in which it happened."""

    record: TrialRecord
    """The newest record."""
    time: int
    """When the newest event happened, ms since the epoch; of an end, as the database has recorded it."""
    points: list[Point] = field(default_factory=list)
    started: bool = False
    ended: bool = False
    stored: bool = False
    """The record was read from the database at the driver's start: send it only if its run is missing or not ended."""
    attempts: int = 0
    """How often sending failed for a reason of this parcel's own."""
    artifact_attempts: int = 0

    @property
    def number(self) -> int:
        return self.record.number

    def followed_by(self, newer: "Parcel") -> "Parcel":
        """Both as one parcel; a round that both tell, because its trial was given out again, is told once."""
        told = {point[0] for point in self.points}
        return Parcel(
            record=newer.record,
            time=newer.time,
            points=self.points + [point for point in newer.points if point[0] not in told],
            started=self.started or newer.started,
            ended=newer.ended or (self.ended and not newer.started),
            stored=self.stored and newer.stored,
            attempts=self.attempts,
            artifact_attempts=self.artifact_attempts,
        )


class Outbox:
    """Parcels by trial number, oldest first; for one thread that puts and one that takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parcels: dict[int, Parcel] = {}

    def put(self, parcel: Parcel) -> None:
        """Adds news of a trial."""
        with self._lock:
            waiting = self._parcels.get(parcel.number)
            self._parcels[parcel.number] = waiting.followed_by(parcel) if waiting else parcel

    def take(self) -> Parcel | None:
        """The oldest parcel, None if there is none."""
        with self._lock:
            number = next(iter(self._parcels), None)
            return None if number is None else self._parcels.pop(number)

    def put_back(self, parcel: Parcel) -> None:
        """Returns a parcel that could not be sent; it goes first again, with what has come since."""
        with self._lock:
            newer = self._parcels.pop(parcel.number, None)
            whole = parcel.followed_by(newer) if newer else parcel
            self._parcels = {parcel.number: whole, **self._parcels}

    def numbers(self) -> list[int]:
        """Trials that wait."""
        with self._lock:
            return sorted(self._parcels)


class Courier:
    """Sends parcels from a background thread, again and again until they arrive. Nothing it does raises or waits."""

    def __init__(self, receiver: "MLflowRuns") -> None:
        """Prepares the receiver; it is opened by `start` or the first parcel."""
        self._receiver = receiver
        self._outbox = Outbox()
        self._wake = threading.Event()
        self._started = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._outage = False
        self._thread = threading.Thread(target=self._loop, name=f"courier {receiver.name}", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Opens the receiver; without it, and without a parcel, closing leaves the other side untouched."""
        self._started.set()
        self._wake.set()

    def put(self, parcel: Parcel) -> None:
        """Hands a parcel over and returns at once."""
        self._outbox.put(parcel)
        self.start()

    def abandon(self) -> None:
        """Stops sending at once and tells the other side nothing more."""
        self._given_up.set()
        self._closing.set()
        self._wake.set()

    def begin_close(self) -> None:
        """Nothing follows: what is left is sent while the caller does something else, and then calls `close`."""
        self._closing.set()
        self._wake.set()

    def close(self, timeout: float) -> bool:
        """Sends what is left.

        Args: timeout: seconds to wait for that; less if the receiver did not answer at the last attempt.
        Returns: whether everything arrived.
        """
        self.begin_close()
        begin = time.monotonic()
        while self._thread.is_alive() and (waited := time.monotonic() - begin) < timeout:
            if self._outage and waited > OUTAGE_PATIENCE:
                break
            self._thread.join(0.1)
        arrived = not self._thread.is_alive()
        self._given_up.set()
        return arrived

    def waiting(self) -> list[int]:
        """Trials of which something is not sent."""
        return self._outbox.numbers()

    def _loop(self) -> None:
        pauses = doubling(FIRST_PAUSE, LONGEST_PAUSE)
        while not self._given_up.is_set():
            try:
                # Read before sending: what is put after this moment comes before the end of the next round.
                closing = self._closing.is_set()
                if not closing or self._started.is_set():
                    self._receiver.prepare()
                if self._started.is_set() and not self._given_up.is_set():
                    self._receiver.open()
                    self._send_all()
                    if closing and not self._given_up.is_set():
                        self._receiver.finish()
                if closing:
                    return
            except LeaseLost:  # the driver that has taken over tells the rest
                return
            except Exception as error:  # whatever goes wrong here must not reach the study
                self._receiver.forget()
                self._tell(error)
                # The end of `close` cuts a pause short; while it waits there is an attempt every half second.
                self._closing.wait(next(pauses))
                if self._closing.is_set():
                    self._given_up.wait(FIRST_PAUSE)
                continue
            if self._outage:
                logger.warning("%s answers again", self._receiver.name)
            self._outage, pauses = False, doubling(FIRST_PAUSE, LONGEST_PAUSE)
            self._wake.wait()
            # News of the next second goes along: short rounds would cost a request each, and time the driver needs.
            self._closing.wait(GATHER_SECONDS)
            self._wake.clear()

    def _send_all(self) -> None:
        while not self._given_up.is_set() and (parcel := self._outbox.take()) is not None:
            try:
                self._receiver.send(parcel)
            except Exception as error:
                refusal = self._receiver.refused(error)
                parcel.attempts += refusal is not None
                if parcel.attempts < ATTEMPTS:
                    self._outbox.put_back(parcel)
                else:
                    logger.warning("%s refuses trial %d: %s", self._receiver.name, parcel.number, refusal)
                raise

    def _tell(self, error: Exception) -> None:
        if not self._outage and self._receiver.refused(error) is None:
            self._outage = True
            logger.warning(
                "%s takes nothing: %s. The study goes on; what is missing is sent later.",
                self._receiver.name,
                self._receiver.reason(error),
            )
