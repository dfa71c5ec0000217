"""Whether workers and Ray itself are alive, as a thread of the driver's finds out.

Ray's own way with a head that is gone is to wait for a minute and to end the driver's process then; with a node of the
driver's that is gone, to wait for ever. A study that is told of either within seconds ends in order.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from trainables.heartbeat import NAMESPACE, Place, note_of, place_of

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
ANSWER_SECONDS = 5.0
"""How long Ray's head has for one answer."""
GONE_SECONDS = 30.0
"""A head that has not answered for so long is taken for gone. Where the cluster's is said to come back, by the setting
below, it is waited for as long as Ray does, less a little."""
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
END_SECONDS = 20.0
"""How long the driver has to end in order once Ray is gone; a call into Ray may hold it up for a minute."""
ESSENTIAL = {"gcs_server": "head", "raylet": "node"}
"""Processes of a Ray on this machine without which it does nothing, and what they are called here."""


class RayWatch:
    """Follows the heartbeats of workers, and the Ray that runs them."""

    def __init__(self, prefix: str, give_up: Callable[[str], None]) -> None:
        """Args: prefix: of the keys of this study's workers. give_up: called in the watch's thread if Ray is gone and
        the driver does not end by itself in a while; it is to end the process.
        """
        self._prefix, self._give_up = prefix, give_up
        self.fault = ""
        """What happened to Ray; empty while it is there."""
        self._seen: dict[str, tuple[bytes | None, float]] = {}
        """Key → the last beat of that worker, None before the first, and for how long there was no newer one."""
        self._unanswered = 0.0
        self._family: set[int] = set()
        """The processes of a Ray that this driver has started."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # As the conductor knows it

    def key(self, name: str) -> str:
        """What heartbeats are told under."""
        return f"{self._prefix}/{name}"

    def follow(self, key: str) -> None:
        """Listens to the worker of that key, if there is one."""
        self._seen.setdefault(key, (None, 0.0))

    def forget(self, key: str) -> None:
        """The worker of that key is of no interest any more."""
        self._seen.pop(key, None)

    def silence(self, key: str) -> float | None:
        """Seconds for which a new beat was looked for in vain, which a head that does not answer adds nothing to; None
        before the first beat."""
        beat, seconds = self._seen.get(key, (None, 0.0))
        return None if beat is None else seconds

    def waits_for(self, key: str) -> str:
        """What the worker of that key waits for, as its last beat says; empty: for nothing."""
        beat, _ = self._seen.get(key, (None, 0.0))
        return "" if beat is None else note_of(beat)

    def place(self, key: str) -> Place | None:
        """How far the worker of that key is inside its round; None before the first beat."""
        beat, _ = self._seen.get(key, (None, 0.0))
        return None if beat is None else place_of(beat)

    # The thread

    def start(self) -> None:
        """To be called once Ray is there. Ray's client of a remote driver is not watched."""
        if getattr(ray._private.worker.global_worker, "gcs_client", None) is not None:
            self._sweep()
            self._thread = threading.Thread(target=self._run, name="ray-watch", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if not self.fault:
                self._sweep()

    def _run(self) -> None:
        last = time.monotonic()
        while not self.fault and not self._stop.wait(LOOK_SECONDS):
            now = time.monotonic()
            # A driver that was itself stopped has not looked meanwhile.
            self._look(min(now - last, LOOK_SECONDS + 2 * ANSWER_SECONDS))
            last = now
        if self.fault and not self._stop.wait(END_SECONDS):
            self._give_up(self.fault)

    def _look(self, passed: float) -> None:
        """One look. Args: passed: seconds since the one before."""
        self._family = {pid for pid in self._family | _own_processes() if _exists(pid)}
        if fault := _ended_process():
            self.fault = fault
            return
        try:
            beats, alive = _ask(list(self._seen))
        except Exception as error:  # of many kinds, and all mean that there was no answer
            self._unanswered += passed
            logger.debug("Ray's head does not answer: %s", error)
            if self._unanswered >= _patience():
                self.fault = f"Ray's head at {_address()} has not answered for {self._unanswered:.0f} s"
            return
        self._unanswered = 0.0
        if not alive:
            self.fault = "Ray's node on this machine is dead to its head"
        for key, (beat, silence) in list(self._seen.items()):
            new = beats.get(key.encode())
            if key in self._seen:
                self._seen[key] = (beat, silence + passed) if new in (None, beat) else (new, 0.0)

    def _sweep(self) -> None:
        """Removes what workers have told, a killed driver's too: a cluster outlives its studies."""
        with contextlib.suppress(Exception):  # nothing depends on it
            client = ray._private.worker.global_worker.gcs_client
            client.internal_kv_del(self._prefix.encode(), True, NAMESPACE.encode(), timeout=ANSWER_SECONDS)

    # The end

    def end_processes(self) -> None:
        """Ends what is left of a Ray that this driver has started: without its head, some of it would stay."""
        for pid in self._family | _own_processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _patience() -> float:
    with contextlib.suppress(KeyError, ValueError):
        return max(GONE_SECONDS, float(os.environ[RECONNECT]) - LOOK_SECONDS - 2 * ANSWER_SECONDS)
    return GONE_SECONDS


def _ask(keys: list[str]) -> tuple[dict[bytes, bytes], bool]:
    """The beats under these keys, and whether the driver's own node is alive to the head. Raises: if it is silent."""
    worker = ray._private.worker.global_worker
    (alive,) = worker.gcs_client.check_alive([worker.core_worker.get_current_node_id()], timeout=ANSWER_SECONDS)
    names = [key.encode() for key in keys]
    beats = worker.gcs_client.internal_kv_multi_get(names, NAMESPACE.encode(), timeout=ANSWER_SECONDS) if keys else {}
    return beats, alive


def _address() -> str:
    return str(ray._private.worker.global_worker.gcs_client.address)


def _processes() -> dict[str, list[Any]]:
    """Kind → processes of a Ray that this driver has started, as Ray keeps them."""
    node = ray._private.worker._global_node
    return dict(node.all_processes) if node is not None else {}


def _own_processes() -> set[int]:
    """The processes of a Ray that this driver has started, and those that they have: agents and workers, where there is
    a /proc that tells."""
    started = {info.process.pid for infos in _processes().values() for info in infos}
    return started.union(*map(_children, started))


def _ended_process() -> str:
    """Which essential process has ended, in a sentence; empty if none has."""
    for kind, name in ESSENTIAL.items():
        for info in _processes().get(kind, []):
            if (code := info.process.poll()) is not None:
                how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                return f"Ray's {name} on this machine ({kind}, process {info.process.pid}) {how}"
    return ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= set(map(int, file.read_text().split()))
    return found
