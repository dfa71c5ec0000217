"""Whether a study pauses, or stops before its budget is used, because somebody asks for it."""

import logging
import math
import time
from collections.abc import Collection

from study.database.engine import is_outage
from study.database.ledger import Ledger
from trainables.round_limit import LEAST_SECONDS, RoundLimit

logger = logging.getLogger(__name__)

STOP_SECONDS, STOP_FACTOR = 30.0, 1.5
"""A study that is to stop waits so many times as long as the longest round seen took, and so much longer, for open
rounds to end."""


class Steering:
    """What is asked of the driver, by a signal or by `study.control`."""

    def __init__(self, ledger: Ledger, limit: RoundLimit, trials: Collection[int]) -> None:
        """Args: limit: knows how long rounds take. trials: the open ones."""
        self._ledger, self._limit, self._trials = ledger, limit, trials
        self.paused = False
        self.stopping = ""
        """Why the study ends before its budget is used; no trial is given out any more."""
        self.stop_by = math.inf
        """When open rounds must have come to their end, by the driver's monotonic clock."""

    @property
    def halting(self) -> bool:
        """Whether open trials give their workers back: those at work after their round, the others at once."""
        return self.paused or bool(self.stopping)

    def stop(self, why: str, grace: float | None = None) -> float:
        """Ends the study in order: open trials come to the end of their round.

        Args: grace: seconds that they have for that; None: by the longest round seen. Returns: the seconds they have.
        """
        self.stopping = self.stopping or why
        if grace is None:
            longest = self._limit.longest
            grace = LEAST_SECONDS if longest is None else STOP_SECONDS + STOP_FACTOR * longest
        now = time.monotonic()
        self.stop_by = min(self.stop_by, now + grace)
        return self.stop_by - now

    def look(self) -> None:
        """Obeys what `study.control` asks for; without a database there is nothing to obey, and no reason to wait."""
        try:
            wish = self._ledger.control
        except Exception as error:
            if not is_outage(error):
                raise
            return
        if wish == "stop" and not self.stopping:
            grace = self.stop("study.control asked for it")
            logger.warning("stopping as asked: open trials end their round first, and have %.0f s for it", grace)
        if (wish == "pause") == self.paused:
            return
        self.paused, name = wish == "pause", self._ledger.name
        if self.paused:
            what = "open trials end their round and wait" if self._trials else "no trial is given out"
            logger.warning("study %r is paused: %s until `python -m study.control %s resume`", name, what, name)
        elif not self.stopping:
            logger.warning("study %r goes on", name)
