"""One driver per study, whatever the clocks say: real processes on one real database."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from postgres import Postgres

from study.database import lease as lease_module
from study.database.engine import LedgerError, study_url
from study.database.lease import Lease, LeaseHeld
from study.database.ledger import Ledger
from study.planning.optuna_side import make_pruner
from study.spec.study_spec import StudySpec

SpecMaker = Callable[..., StudySpec]
ROOT = Path(__file__).resolve().parents[3]


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
        "from study.database.engine import LedgerError, study_url\n"
        "from study.database.ledger import Ledger\n"
        "from study.spec.study_spec import StudySpec\n"
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
        "from study.database.ledger import Ledger\n"
        f"Ledger.open_existing('tiny', {study_url(spec.storage.path).reveal()!r}).acquire()\n"
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
    study = optuna.load_study(study_name="tiny", storage=study_url(tiny_spec().storage.path).reveal())
    assert len(study.trials) == 1


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'studies.db'}"
    running: Postgres = request.getfixturevalue("postgres")
    return running.url(f"lease_{uuid.uuid4().hex}")


def make_study(spec: StudySpec, url: str) -> None:
    """A study with a running trial that has done a round."""
    ledger = Ledger.open_or_create(spec, url, None)
    ledger.add(overrides={}, config={}, rounds=4, baseline=False, params={}, distributions={})
    ledger.engine.dispose()


@contextmanager
def stopped_driver(url: str, write: str, moment: str) -> Iterator["subprocess.Popen[str]"]:
    """A driver that has stopped in the middle of a write; it ends with the block at the latest."""
    command = [sys.executable, str(ROOT / "tests" / "support" / "stopped_driver.py"), url, write, moment]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        _, status = os.waitpid(driver.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), driver.communicate()
        yield driver
    finally:
        driver.kill()
        driver.wait()


def rows_of(ledger: Ledger) -> dict[str, list[Any]]:
    """All that the database holds, but for the leases."""
    tables = sa.MetaData()
    tables.reflect(ledger.engine)
    with ledger.engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            for table in tables.sorted_tables
            if table.name != lease_module.TABLE_NAME
        }


@pytest.mark.parametrize(
    ("database", "write"),
    [
        *(("sqlite", write) for write in ("add", "report", "progress", "finish", "set_control")),
        *(("postgresql", write) for write in ("add", "progress", "fail", "interrupt")),
    ],
    indirect=["database"],
)
def test_a_driver_stopped_before_a_write_and_taken_over_does_not_write(
    tiny_spec: SpecMaker, database: str, write: str
) -> None:
    """It had looked at its lease, and is stopped before its statement; nothing tells it afterwards but the database."""
    make_study(tiny_spec(), database)
    with stopped_driver(database, write, "statement") as driver:
        ledger = Ledger.open_existing("tiny", database)
        taker = Lease(ledger.engine, ledger._study._study_id, "tiny")
        taker.acquire(takeover=True, stale_seconds=1)
        before = rows_of(ledger)
        os.kill(driver.pid, signal.SIGCONT)
        said, _ = driver.communicate(timeout=60)
        assert (driver.returncode, said) == (0, "study 'tiny' was taken over by another driver\n")
        assert rows_of(ledger) == before
        assert (taker.describe() or {})["pid"] == os.getpid()
        taker.release()


def test_a_driver_stopped_before_its_commit_is_taken_over_all_the_same(
    tiny_spec: SpecMaker, postgres: Postgres
) -> None:
    """Its transaction holds the lease's row; PostgreSQL ends it, since nothing happens in it."""
    url = postgres.url(f"lease_{uuid.uuid4().hex}")
    make_study(tiny_spec(), url)
    with stopped_driver(url, "progress", "commit") as driver:
        ledger = Ledger.open_existing("tiny", url)
        before = rows_of(ledger)
        taker = Lease(ledger.engine, ledger._study._study_id, "tiny")
        taker.acquire(takeover=True, stale_seconds=1)
        os.kill(driver.pid, signal.SIGCONT)
        said, _ = driver.communicate(timeout=60)
        assert (driver.returncode, said) == (0, "study 'tiny' was taken over by another driver\n")
        assert rows_of(ledger) == before
        taker.release()


def test_a_driver_on_a_database_that_was_put_back_does_not_write(tiny_spec: SpecMaker) -> None:
    """The lease in it is this driver's, and older than what the driver has written there."""
    ledger = open_ledger(tiny_spec())
    ledger.acquire()
    assert ledger.lease
    facts: dict[str, Any] = {"overrides": {}, "config": {}, "rounds": 4, "baseline": False}
    assert ledger.lease._beat()
    assert ledger.add(**facts, params={}, distributions={}) == 0
    with engine_of(ledger).begin() as connection:
        connection.execute(sa.update(lease_module._TABLE).values(beat=lease_module._TABLE.c.beat - 1))
    with pytest.raises(lease_module.LeaseLost):
        ledger.add(**facts, params={}, distributions={})
    assert len(open_ledger(tiny_spec()).records()) == 1


def test_the_lease_is_read_once_in_a_transaction_that_writes_and_in_no_other(
    tiny_spec: SpecMaker, database: str
) -> None:
    make_study(tiny_spec(), database)
    ledger = Ledger.open_existing("tiny", database)
    ledger.acquire()
    assert ledger.lease
    ledger.lease._stop.set()  # so that no heartbeat is counted
    seen: list[str] = []

    @sa.event.listens_for(ledger.engine, "before_cursor_execute")
    def executing(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    @sa.event.listens_for(ledger.engine, "commit")
    def committing(_: Any) -> None:
        seen.append("COMMIT")

    ledger.frozen_trials()
    assert (ledger.control, ledger.spec["name"]) == ("", "tiny")
    assert "COMMIT" in seen
    assert not [statement for statement in seen if lease_module.TABLE_NAME in statement]
    seen.clear()
    params, distributions = {"x": 0.5}, {"x": FloatDistribution(0, 1)}
    ledger.add(overrides={}, config={}, rounds=4, baseline=False, params=params, distributions=distributions)
    (place,) = [index for index, statement in enumerate(seen) if lease_module.TABLE_NAME in statement]
    assert seen[place + 1] == "COMMIT"
    assert len([statement for statement in seen[:place] if statement.startswith("INSERT")]) > 5
    ledger.release()


def test_time_of_all_drivers_adds_up(tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: now[0])
    for seconds in (60.0, 30.0):
        ledger = open_ledger(tiny_spec())
        ledger.acquire()
        now[0] += seconds
        ledger.release()
    assert open_ledger(tiny_spec()).seconds == pytest.approx(90.0)
