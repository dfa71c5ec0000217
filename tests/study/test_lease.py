"""One driver per study, whatever the clocks say: real processes on one real database."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from study import lease as lease_module
from study.lease import Lease, LeaseHeld
from study.ledger import Ledger, LedgerError, study_url
from study.sampling import make_pruner
from study.spec import StudySpec

SpecMaker = Callable[..., StudySpec]
ROOT = Path(__file__).resolve().parents[2]


def open_ledger(spec: StudySpec) -> Ledger:
    pruner = make_pruner(spec.pruner_options(), 4)
    return Ledger.open_or_create(spec, study_url(spec.storage.path), pruner)


def engine_of(ledger: Ledger) -> sa.engine.Engine:
    return ledger._storage._backend.engine


def held_elsewhere(ledger: Ledger, *, heartbeat: float) -> None:
    """A lease as a driver on another machine would have left it."""
    lease = Lease(engine_of(ledger), 1, "tiny")
    lease_module._TABLE.create(engine_of(ledger), checkfirst=True)
    holder = {"id": "x", "host": "elsewhere", "place": "elsewhere/1/1", "pid": 1, "started": "1"}
    assert lease._insert(json.dumps(holder))
    with engine_of(ledger).begin() as connection:
        connection.execute(sa.update(lease_module._TABLE).values(heartbeat=heartbeat))


def test_second_driver_is_told_who_holds_the_study(tiny_spec: SpecMaker) -> None:
    first, second = open_ledger(tiny_spec()), open_ledger(tiny_spec())
    first.acquire()
    with pytest.raises(LedgerError, match=f"being run by process {os.getpid()} on {socket.gethostname()}"):
        second.acquire(takeover=True)  # alive: not even then
    assert second.holder() == {**(first.holder() or {}), "pid": os.getpid(), "alive": True}
    first.release()
    assert second.holder() is None
    second.acquire()
    second.release()


def test_of_many_drivers_at_once_on_a_new_database_one_gets_the_lease(tmp_path: Path) -> None:
    """Every process makes the tables, the study and the lease; they start at one moment."""
    code = (
        "import sys, time\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from tiny_studies import study_dict\n"
        "from pathlib import Path\n"
        "from study.ledger import Ledger, LedgerError, study_url\n"
        "from study.spec import StudySpec\n"
        "spec = StudySpec.model_validate(study_dict(Path(sys.argv[1])))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    ledger = Ledger.open_or_create(spec, study_url(spec.storage.path), None)\n"
        "    ledger.acquire()\n"
        "    print('taken', flush=True)\n"
        "    sys.stdin.readline()\n"
        "except LedgerError as error:\n"
        "    print('refused' if 'is being run by process' in str(error) else error, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(ROOT / "tests" / "support")]
    drivers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)
    ]
    try:
        assert [driver.stdout.readline() for driver in drivers if driver.stdout] == ["ready\n"] * 4
        for driver in drivers:
            assert driver.stdin
            driver.stdin.write("go\n")
            driver.stdin.flush()
        said = [driver.stdout.readline().strip() for driver in drivers if driver.stdout]
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()
    assert sorted(said) == ["refused", "refused", "refused", "taken"]


def test_lease_of_a_dead_process_on_this_machine_is_taken_at_once(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec()
    open_ledger(spec)
    code = (
        "import os, signal\n"
        "from study.ledger import Ledger\n"
        f"Ledger.open_existing('tiny', {study_url(spec.storage.path)!r}).acquire()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == -9
    ledger = open_ledger(spec)
    assert (ledger.holder() or {})["alive"] is False
    ledger.acquire()
    assert (ledger.holder() or {})["pid"] == os.getpid()
    ledger.release()


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (-5.0, "is being run by process 1 on elsewhere"),
        (-3600.0, "was run by process 1 on elsewhere, last heard of 3600 s ago; if it is gone, add --takeover"),
        (
            3600.0,
            "at a time that is still to come on this machine's clock; if it is gone, add --takeover",
        ),
    ],
)
def test_a_lease_of_another_machine_needs_takeover(tiny_spec: SpecMaker, offset: float, words: str) -> None:
    """Also where one of the clocks has jumped: an age of minus an hour is no heartbeat of just now."""
    ledger = open_ledger(tiny_spec())
    held_elsewhere(ledger, heartbeat=time.time() + offset)
    with pytest.raises(LedgerError, match=words.replace("+", r"\+")):
        ledger.acquire()


@pytest.mark.parametrize("offset", [-3600.0, 0.0, 3600.0])
def test_takeover_watches_the_holder_and_not_its_clock(tiny_spec: SpecMaker, offset: float) -> None:
    """A holder whose counter moves is alive, whatever its clock says; one whose counter stands still is gone."""
    ledger = open_ledger(tiny_spec())
    held_elsewhere(ledger, heartbeat=time.time() + offset)
    engine = engine_of(ledger)
    beat = sa.update(lease_module._TABLE).values(beat=lease_module._TABLE.c.beat + 1)

    class Moving(Lease):
        def _row(self) -> Any:
            with engine.begin() as connection:
                connection.execute(beat)
            return super()._row()

    with pytest.raises(LeaseHeld, match="which is alive"):
        Moving(engine, 1, "tiny").acquire(takeover=True, stale_seconds=1)
    taker = Lease(engine, 1, "tiny")
    taker.acquire(takeover=True, stale_seconds=1)
    assert (taker.describe() or {})["pid"] == os.getpid()
    taker.release()


def test_a_driver_that_was_taken_over_while_it_slept_writes_nothing(
    tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by the system for long, it is woken in the middle of its work and asks before it writes."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 3600.0)  # no heartbeat comes to its help
    monkeypatch.setattr(lease_module, "FENCE_SECONDS", 0.0)
    ledger = open_ledger(tiny_spec())
    ledger.acquire()
    facts: dict[str, Any] = {"overrides": {}, "config": {}, "rounds": 4, "baseline": False}
    assert ledger.add(**facts, params={}, distributions={}) == 0
    with engine_of(ledger).begin() as connection:
        connection.execute(sa.update(lease_module._TABLE).values(holder='{"id": "the other"}'))
    with pytest.raises(lease_module.LeaseLost, match="was taken over by another driver"):
        ledger.add(**facts, params={}, distributions={})
    assert ledger.lost
    study = optuna.load_study(study_name="tiny", storage=study_url(tiny_spec().storage.path))
    assert len(study.trials) == 1


def test_time_of_all_drivers_adds_up(tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: now[0])
    for seconds in (60.0, 30.0):
        ledger = open_ledger(tiny_spec())
        ledger.acquire()
        now[0] += seconds
        ledger.release()
    assert open_ledger(tiny_spec()).seconds == pytest.approx(90.0)
