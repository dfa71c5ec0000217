"""A worker tells every few seconds that it is alive and how far it is, through the key-value store of Ray's head.

A thread of the worker's does so: it goes on while a round computes, and stops with the process. That a driver counts
silence in tens of seconds leaves room for native code that keeps the interpreter for a while.
"""

import itertools
import threading
from contextlib import suppress
from typing import Any, NamedTuple

from ray.experimental import internal_kv

BEAT_SECONDS = 5.0
NAMESPACE = "ardmvc-heartbeats"
MOST_NOTE = 300
"""Characters of a note."""


class Place(NamedTuple):
    """How far a worker is inside a round."""

    round: int
    """Rounds of its trial that are behind it."""
    passes: int
    """Batches that went forward through its models in the round that it is in."""


class _Heart:
    """The one thread of this process that tells; what it tells under changes with the trial."""

    def __init__(self) -> None:
        self.place = Place(0, 0)
        self.note = ""
        self._key = ""
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def beat_as(self, key: str) -> None:
        self._key = key
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()

    def take_note(self, note: str) -> None:
        self.note = note
        self._changed.set()

    def _run(self) -> None:
        for count in itertools.count():
            self._changed.clear()
            with suppress(Exception):  # the head is away; Ray itself ends a worker whose head does not come back
                self.tell(count)
            self._changed.wait(BEAT_SECONDS)

    def tell(self, count: int) -> None:
        """One beat."""
        beat = f"{count} {self.place.round} {self.place.passes} {self.note}"
        internal_kv._internal_kv_put(self._key, beat, overwrite=True, namespace=NAMESPACE)


_heart = _Heart()


def beat_as(key: str) -> None:
    """From now on this process, a worker of Ray's, tells under `key` that it is alive."""
    _heart.beat_as(key)


def tell(note: str) -> None:
    """From now on the beats of this process carry a note on what it waits for; an empty one: for nothing."""
    _heart.take_note(" ".join(note.split())[:MOST_NOTE])


def place_of(beat: bytes) -> Place:
    """What a beat tells of the round."""
    _, round_, passes = beat.split(maxsplit=3)[:3]
    return Place(int(round_), int(passes))


def note_of(beat: bytes) -> str:
    """What the worker of a beat waits for; empty: for nothing."""
    return b" ".join(beat.split(maxsplit=3)[3:]).decode(errors="replace")


def begin_round(number: int) -> None:
    """From now on passes count for the round behind so many."""
    _heart.place = Place(number, 0)


def count_pass(*_: Any) -> None:
    """A forward hook of a model in this process; copies of the model have it too."""
    _heart.place = Place(_heart.place.round, _heart.place.passes + 1)
