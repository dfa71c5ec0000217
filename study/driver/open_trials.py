"""The trials that a driver has given out, and what it hears of their workers."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from study.records import Observer, WorkerAway
from study.secrets import redact

if TYPE_CHECKING:  # nothing here is called by Ray, or calls it
    from study.driver.ray_watch import RayWatch

SILENT_SECONDS = 30.0
"""A worker that was not heard of for so long is said to be silent; one that has nothing to go on to is ended then."""
SILENCE_SECONDS = 600.0
"""A worker that was not heard of for so long is ended, if `limits.round_minutes` does not say so sooner or never."""
MISSING_SECONDS = 60.0
"""After so long it is said that no open trial has a worker, or that one is silent which was not heard of before."""


@dataclass
class OpenTrial:
    """What a driver knows of a trial that it has given out. Times are those of its monotonic clock."""

    number: int
    key: str
    """What the heartbeats of its worker are told under."""
    limit: float = 0.0
    """Seconds that the round has which it is in; 0: no limit."""
    since: float | None = None
    """When it was given a worker; None while it waits for one."""
    heard: float = math.inf
    """When its worker began, or last told a round."""
    silent: float = 0.0
    """How long its worker was silent, if it is to be ended for that."""
    stored: str | None = None
    """The last checkpoint that it has told; None before the first round."""
    parked: bool = False
    """Whether it stops after this round because the study is paused or ends."""
    pruned: bool = False
    failure: str | None = None
    """Why it cannot go on, as the trial itself has said, or as the last of its attempts ended."""
    reason: str = "its worker ended without a reason"
    """Why its worker ended."""
    lost: bool = False
    """Whether a machine or a storage was lost then, which is no fault of the trial."""

    def worker_ends(self, reason: str, *, lost: bool, round_minutes: float | None) -> None:
        """Remembers why. Args: reason: in Ray's words, which do not know of silence and limits."""
        if self.silent:
            reason, lost = f"its worker was silent for {self.silent:.0f} s and was ended", False
        elif self.limit and not lost and time.monotonic() - self.heard >= self.limit:
            known = f"{self.limit / 60:.0f} min, its limit while limits.round_minutes is not given"
            if round_minutes is not None:
                known = f"limits.round_minutes = {round_minutes:g}"
            reason = f"a round took longer than {known}; its worker was ended ({reason})"
        self.reason, self.lost = reason, lost


class Listener:
    """Finds out which workers are silent, and which of these have to be ended; tells observers."""

    def __init__(self, workers: "RayWatch", observers: Sequence[Observer], round_minutes: float | None) -> None:
        self._workers, self._observers, self._minutes = workers, observers, round_minutes
        self._away: dict[int, WorkerAway] = {}
        """What observers were last told."""
        self._waiting: dict[int, float] = {}
        """Trials whose workers wait for something → since when, as heard here."""
        self._idle_since = math.inf
        """Since when trials are open and none has a worker."""

    def listen(self, trials: Mapping[int, OpenTrial], now: float, *, halting: bool) -> None:
        """Args: now: by the monotonic clock. halting: whether trials give their workers back."""
        away: dict[int, WorkerAway] = {}
        working = [trial for trial in trials.values() if trial.since is not None]
        for trial in working:
            heard = self._workers.silence(trial.key)
            seconds = now - (trial.since or 0.0) if heard is None else heard
            if seconds >= (MISSING_SECONDS if heard is None else SILENT_SECONDS):
                away[trial.number] = WorkerAway("silent", seconds)
            elif reason := self._workers.waits_for(trial.key):
                away[trial.number] = WorkerAway("waits", self._waited(trial.number, now), redact(reason))
            if seconds >= self._limit(halting=halting, starting=heard is None):
                trial.silent = seconds
        self._idle_since = min(self._idle_since, now) if trials and not working and not halting else math.inf
        if now - self._idle_since >= MISSING_SECONDS:
            away = dict.fromkeys(trials, WorkerAway("missing", now - self._idle_since))
        places = {trial.number: place for trial in working if (place := self._workers.place(trial.key)) is not None}
        for observer in self._observers:
            observer.rounds_at(places)
        if away or self._away:
            for observer in self._observers:
                observer.workers_away(away)
        self._away = away
        self._waiting = {number: since for number, since in self._waiting.items() if number in away}

    def _waited(self, number: int, now: float) -> float:
        """Seconds since a trial's worker was first heard to wait."""
        return now - self._waiting.setdefault(number, now)

    def _limit(self, *, halting: bool, starting: bool) -> float:
        """Seconds of silence after which a worker is ended. Args: starting: whether it was never heard of."""
        if halting:
            return SILENT_SECONDS
        if self._minutes is None or (self._minutes and starting):
            return SILENCE_SECONDS
        return min(max(60 * self._minutes, SILENT_SECONDS), SILENCE_SECONDS) if self._minutes else math.inf
