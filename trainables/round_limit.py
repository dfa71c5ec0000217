"""How long a round may take before its worker is ended as hanging: a fixed limit, or one that follows from the rounds
that were seen."""

from collections.abc import Mapping
from dataclasses import dataclass

FACTOR = 10
"""A round may take so many times as long as the longest that was seen."""
LEAST_SECONDS = 600.0
"""What every round has, however short those before it were."""
FIRST_SECONDS = 3600.0
"""What a round has of whose kind none was seen: nothing tells how long it takes."""


@dataclass
class RoundLimit:
    """The limit of a study's rounds. Last rounds are a kind of their own: they hold the whole evaluation."""

    fixed: float | None = None
    """Seconds; 0: no limit; None: the limit follows from the rounds that were seen."""
    ordinary: float | None = None
    """Seconds of the longest round seen that was not its trial's last; None: none was seen."""
    last: float | None = None
    """Seconds of the longest last round seen; None: none was seen."""

    @property
    def longest(self) -> float | None:
        """Seconds of the longest round seen, of both kinds; None: none was seen."""
        return max((seconds for seconds in (self.ordinary, self.last) if seconds is not None), default=None)

    def seconds(self, *, last: bool) -> float:
        """The limit of a round. Args: last: whether it is its trial's last. Returns: seconds; 0: no limit."""
        if self.fixed is not None:
            return self.fixed
        seen = self.last if last else self.ordinary
        return max(FIRST_SECONDS if seen is None else LEAST_SECONDS, FACTOR * (self.longest or 0.0))

    def saw(self, seconds: float, *, last: bool) -> None:
        """A round of that kind took so long."""
        if last:
            self.last = max(self.last or 0.0, seconds)
        else:
            self.ordinary = max(self.ordinary or 0.0, seconds)


def is_last(report: Mapping[str, float]) -> bool:
    """Whether the round after the reported one is the last of its seed's training."""
    next_ = report["round"] + 1
    return next_ >= report["rounds"] or next_ % report.get("leg_rounds", report["rounds"]) == 0
