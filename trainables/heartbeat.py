"""A worker tells every few seconds that it is alive, through the key-value store of Ray's head.

A thread of the worker's does so: it goes on while a round computes, and stops with the process. That a driver counts
silence in tens of seconds leaves room for native code that keeps the interpreter for a while.
"""

import itertools
import threading
from contextlib import suppress

from ray.experimental import internal_kv

BEAT_SECONDS = 5.0
NAMESPACE = "ardmvc-heartbeats"
MOST_NOTE = 300
"""Characters of a note."""


class _Heart:
    """The one thread of this process that tells; what it tells under changes with the trial."""

    def __init__(self) -> None:
        self._key = self._note = ""
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def beat_as(self, key: str) -> None:
        self._key = key
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()

    def tell(self, note: str) -> None:
        self._note = note
        self._changed.set()

    def _run(self) -> None:
        for count in itertools.count():
            self._changed.clear()
            with suppress(Exception):  # the head is away; Ray itself ends a worker whose head does not come back
                beat = f"{count} {self._note}"
                internal_kv._internal_kv_put(self._key, beat, overwrite=True, namespace=NAMESPACE)
            self._changed.wait(BEAT_SECONDS)


_heart = _Heart()


def beat_as(key: str) -> None:
    """From now on this process, a worker of Ray's, tells under `key` that it is alive."""
    _heart.beat_as(key)


def tell(note: str) -> None:
    """From now on the beats of this process carry a note on what it waits for; an empty one: for nothing."""
    _heart.tell(" ".join(note.split())[:MOST_NOTE])
