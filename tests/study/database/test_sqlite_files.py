"""What sqlite says when it is away for a while, and of files that are not whole; each error and each file is real."""

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from study.database import engine
from study.database.engine import LedgerError, NoStudy, database_fault, is_outage, open_storage, study_url
from study.database.ledger import Ledger
from study.database.sqlite_files import damage
from study.places import sqlite_address
from study.spec.study_spec import StudySpec
from trainables import retry

SpecMaker = Callable[..., StudySpec]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database of 40 pages, in one file."""
    made = tmp_path / "some.db"
    with closing(sqlite3.connect(made)) as database, database:
        database.execute("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT)")
        rows = [(f"name {number}", "x" * 300) for number in range(500)]
        database.executemany("INSERT INTO facts VALUES (?, ?)", rows)
    return made


def error_of(connect: Callable[[], sqlite3.Connection], *statements: str) -> sa.exc.DBAPIError:
    """What SQLAlchemy raises at one of the statements."""
    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
    except sa.exc.DBAPIError as error:
        return error
    raise AssertionError(f"sqlite did it: {statements}")


INSERT = "INSERT INTO facts VALUES ('new', 'y')"


def locked(file: Path) -> sa.exc.DBAPIError:
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        return error_of(lambda: sqlite3.connect(file, timeout=0), INSERT)


def table_locked(_: Path) -> sa.exc.DBAPIError:
    shared = "file:shared?mode=memory&cache=shared"
    with closing(sqlite3.connect(shared, uri=True)) as other:
        other.execute("CREATE TABLE facts (name TEXT, value TEXT)")
        other.execute(INSERT)
        return error_of(lambda: sqlite3.connect(shared, uri=True), "SELECT * FROM facts")


def read_only(file: Path) -> sa.exc.DBAPIError:
    return error_of(lambda: sqlite3.connect(f"file:{file}?mode=ro", uri=True), INSERT)


def interrupted(file: Path) -> sa.exc.DBAPIError:
    def connect() -> sqlite3.Connection:
        made = sqlite3.connect(file)
        made.set_progress_handler(lambda: 1, 1)
        return made

    return error_of(connect, "SELECT count(*) FROM facts, facts AS others")


def not_there(file: Path) -> sa.exc.DBAPIError:
    return error_of(lambda: sqlite3.connect(file.parent / "gone" / "some.db"), INSERT)


def full(file: Path) -> sa.exc.DBAPIError:
    grow = "INSERT INTO facts SELECT name || ' again', value FROM facts"
    return error_of(lambda: sqlite3.connect(file), "PRAGMA max_page_count=1", grow)


def disk_error(file: Path) -> sa.exc.DBAPIError:
    """A file that the system lets become no larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, before[1]))
    try:
        return error_of(
            lambda: sqlite3.connect(file),
            "PRAGMA journal_mode=MEMORY",
            "INSERT INTO facts SELECT name || ' again', value FROM facts",
            "COMMIT",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (locked, "database is locked"),
        (table_locked, "database table is locked"),
        (read_only, "attempt to write a readonly database"),
        (interrupted, "interrupted"),
        (not_there, "unable to open database file"),
        (full, "database or disk is full"),
        (disk_error, "disk I/O error"),
    ],
)
def test_trying_later_may_work(file: Path, make: Callable[[Path], sa.exc.DBAPIError], words: str) -> None:
    error = make(file)
    assert words in str(error)
    assert is_outage(error)
    assert words in (database_fault(error) or "")


@contextmanager
def readers_locked_out(file: Path) -> Iterator[None]:
    """Another process holds the five places at which readers of the log lock `-shm`; see sqlite's walformat.html."""
    code = (
        "import fcntl, sys\n"
        "shared = open(sys.argv[1], 'r+b')\n"
        "fcntl.lockf(shared, fcntl.LOCK_EX, 5, 123)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, f"{file}-shm"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    yield
    other.communicate("")


@pytest.mark.slow
def test_locking_protocol_is_an_outage(file: Path) -> None:
    """sqlite itself tries for ten seconds before it says so."""
    with closing(sqlite3.connect(file)) as keeps_shm:
        keeps_shm.execute("PRAGMA journal_mode=WAL")
        keeps_shm.execute(INSERT)
        keeps_shm.commit()
        with readers_locked_out(file):
            error = error_of(lambda: sqlite3.connect(file), "SELECT * FROM facts")
    assert "locking protocol" in str(error)
    assert is_outage(error)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("SELECT * FROM missing", "no such table"),
        ("INSERT INTO facts VALUES ('name 1', '')", "UNIQUE constraint failed"),
        ("SELEC", "syntax error"),
    ],
)
def test_what_time_does_not_mend_is_no_outage(file: Path, statement: str, words: str) -> None:
    error = error_of(lambda: sqlite3.connect(file), statement)
    assert words in str(error)
    assert not is_outage(error)
    assert database_fault(error) is None


def spoil(file: Path, what: str) -> None:
    """Makes a file that is not whole of one that is."""
    size = file.stat().st_size
    if what == "truncated":
        os.truncate(file, size // 2)
    elif what == "cut within a page":
        os.truncate(file, size - 100)
    elif what == "first page only":
        os.truncate(file, 4096)
    elif what == "a few bytes":
        os.truncate(file, 50)
    elif what == "overwritten":
        with file.open("r+b") as stream:
            stream.seek(4096)
            stream.write(b"\xa5" * 4096 * 3)
    elif what == "another format":
        file.write_text("no database at all, and longer than the header of one\n" * 3)


NOTICED = ["truncated", "first page only", "a few bytes", "overwritten", "another format"]
"""By sqlite, once it comes there; a page of which the end is missing it fills with zeros."""


@pytest.mark.parametrize("what", NOTICED)
def test_a_damaged_file_is_no_outage_and_is_said(file: Path, what: str) -> None:
    spoil(file, what)
    error = error_of(lambda: sqlite3.connect(file), "SELECT sum(length(value)) FROM facts")
    assert not is_outage(error)
    assert "the study database is damaged" in (database_fault(error) or "")


def test_a_locked_database_is_waited_for_and_said(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As by a program for looking at databases; it is closed at the first pause."""
    holder = sqlite3.connect(file)
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: holder.close())
    connect = sqlite3.connect
    monkeypatch.setattr(engine.sqlite3, "connect", lambda name, **options: connect(name, **{**options, "timeout": 0}))
    open_storage(sqlite_address(file), create=True)
    (told,) = [record.getMessage() for record in caplog.records if "is tried again" in record.getMessage()]
    assert told == f"the study database sqlite:///{file} is busy: database is locked; it is tried again"


def test_whole_files(file: Path, tmp_path: Path) -> None:
    assert damage(file) is None
    (tmp_path / "empty.db").touch()
    assert damage(tmp_path / "empty.db") is None  # of a process that was killed before its first write
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(INSERT)
        database.commit()
        assert Path(f"{file}-wal").stat().st_size > 0
        assert damage(file) is None


def make_study(tiny_spec: SpecMaker) -> Path:
    """A study with a trial, in a file that no process has open; it has no log beside it."""
    spec = tiny_spec()
    ledger = Ledger.open_or_create(spec, study_url(spec.storage.path), None)
    ledger.add(overrides={}, config={}, rounds=4, baseline=False, params={}, distributions={})
    ledger.engine.dispose()
    file = Path(spec.storage.path) / "studies.db"
    assert not Path(f"{file}-wal").exists()
    return file


@pytest.mark.parametrize("what", [*NOTICED, "cut within a page"])
def test_a_damaged_study_database_is_refused_and_left(tiny_spec: SpecMaker, what: str) -> None:
    file = make_study(tiny_spec)
    spoil(file, what)
    before = file.read_bytes()
    for create in (False, True):
        with pytest.raises(LedgerError, match=r"studies\.db cannot be used: .*bring the study back from a backup"):
            open_storage(f"sqlite:///{file}", create=create)
    assert file.read_bytes() == before


def test_a_log_of_another_database_is_not_written_into_this_one(tiny_spec: SpecMaker, tmp_path: Path) -> None:
    """A backup was put where a database had lain, whose log is still there."""
    file = make_study(tiny_spec)
    with closing(sqlite3.connect(file)) as database:
        database.execute("VACUUM INTO ?", [str(tmp_path / "backup.db")])
        database.execute("CREATE TABLE later (name TEXT)")
        database.commit()
        shutil.copyfile(f"{file}-wal", tmp_path / "log")
    file.unlink()
    shutil.copyfile(tmp_path / "backup.db", file)
    shutil.copyfile(tmp_path / "log", f"{file}-wal")
    with pytest.raises(LedgerError, match=r"the log studies\.db-wal beside it is that of another database"):
        open_storage(f"sqlite:///{file}", create=True)
    assert file.read_bytes() == (tmp_path / "backup.db").read_bytes()


def test_an_emptied_file_with_a_log_keeps_its_log(tiny_spec: SpecMaker) -> None:
    """sqlite would delete it, and with it the only copy of what was written last."""
    file = make_study(tiny_spec)
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE later (name TEXT)")
        database.commit()
        log = Path(f"{file}-wal").read_bytes()
        assert log
        os.truncate(file, 0)
        with pytest.raises(LedgerError, match=r"it is empty, and its log studies\.db-wal is not"):
            open_storage(f"sqlite:///{file}", create=True)
        assert Path(f"{file}-wal").read_bytes() == log


def test_an_empty_file_is_a_new_database_for_who_makes_one(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    file = tmp_path / "runs" / "studies.db"
    file.parent.mkdir()
    file.touch()
    with pytest.raises(NoStudy, match=r"there is no study database at .*: the file is empty"):
        Ledger.open_existing("tiny", f"sqlite:///{file}")
    assert file.stat().st_size == 0
    assert Ledger.open_or_create(tiny_spec(), f"sqlite:///{file}", None).records() == []


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "studies.db").mkdir()
    with pytest.raises(LedgerError, match=r"cannot read the study database .*: Is a directory"):
        open_storage(f"sqlite:///{tmp_path / 'studies.db'}", create=True)


def test_a_driver_waits_out_a_file_that_can_only_be_read(
    tiny_spec: SpecMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection made in that time stays read-only, whatever becomes of the file, and must be replaced."""
    file = make_study(tiny_spec)
    ledger = Ledger.open_existing("tiny", f"sqlite:///{file}")
    ledger.patience = 60
    ledger.engine.dispose()
    made: list[sqlite3.Connection] = []

    @sa.event.listens_for(ledger.engine, "do_connect")
    def connect(*_: Any) -> sqlite3.Connection | None:
        if made:
            return None  # as always
        made.append(sqlite3.connect(f"file:{file}?mode=ro", uri=True))
        return made[0]

    ledger.finish(0, TrialState.COMPLETE, [0.5])
    assert len(made) == 1
    assert "attempt to write a readonly database; it is waited for, up to 1 min" in caplog.text
    assert "the study database answers again" in caplog.text
    again = Ledger.open_existing("tiny", f"sqlite:///{file}").record(0)
    assert (again.state, again.values) == ("COMPLETE", (0.5,))


LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)  # the bytes that sqlite's readers share
"""


def test_a_database_that_is_opened_twice_keeps_its_locks(tiny_spec: SpecMaker, tmp_path: Path) -> None:
    """Without them another process would delete the log of a database that is in use."""
    spec = tiny_spec()
    url = study_url(str(spec.storage.path))
    ledger = Ledger.open_or_create(spec, url, NopPruner())
    file = url.reveal().removeprefix("sqlite:///")
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1 FROM studies")
        Ledger.open_existing(spec.name, url)
        done = subprocess.run([sys.executable, "-c", LOCK, file], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BlockingIOError" in done.stderr
