"""A study as a file: written while the study runs or not, and brought back into a database that does not have it."""

import os
import shlex
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa

from study.database.engine import LedgerError, engine_of, open_storage, study_url
from study.database.lease import TABLE_NAME, make_table
from study.database.ledger import Ledger
from study.database.score_uses import all_uses, note_use
from study.database.sqlite_files import connect, damage
from study.places import sqlite_address

PARENTS = {"studies": "study_id", "trials": "trial_id"}
"""Tables whose rows others name by these ids, which a copy gets anew."""
CHUNK = 1000
"""Rows that are written at once."""


def back_up(ledger: Ledger, file: Path) -> str:
    """Writes the study to a new file, a sqlite database that is whole once it is there: of sqlite all studies of the
    database, of any other database this study. Nobody holds the lease in it.

    Returns: what was done, in a sentence.
    Raises: LedgerError if the file exists or cannot be written, or the database cannot be read.
    """
    try:
        file.open("x").close()
    except FileExistsError as error:
        raise LedgerError(f"{file} exists; a backup is a new file and replaces none") from error
    except OSError as error:
        raise LedgerError(f"cannot write {file}: {error.strerror}") from error
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if ledger.engine.name == "sqlite":
            with ledger.engine.connect() as connection:
                connection.exec_driver_sql("VACUUM INTO ?", (str(draft),))
        else:
            _write_study(ledger, draft)
        _finish(draft)
        draft.replace(file)
    except BaseException as error:
        file.unlink(missing_ok=True)
        if isinstance(error, OSError | sqlite3.Error | sa.exc.DBAPIError):
            raise LedgerError(f"cannot back study {ledger.name!r} up to {file}: {_reason(error)}") from error
        raise
    finally:
        draft.unlink(missing_ok=True)
    return f"study {ledger.name!r} is backed up to {file}"


def restore(file: Path, name: str, storage: str) -> str:
    """Copies a study from a backup into the database of a storage, which is made if it is missing. All or nothing.

    Returns: what was done, in a sentence.
    Raises: LedgerError if the file is no backup or holds no such study, if the database has a study of that name, or
        cannot be reached.
    """
    with _opened(file, name) as source:
        target = engine_of(open_storage(study_url(storage), create=True))
        make_table(target)
        versions = [_schema_version(source)]
        try:
            with target.begin() as connection:
                versions.append(_schema_version(connection))
                if versions[0] != versions[1]:
                    raise LedgerError(
                        f"{file} has the tables of another version of Optuna ({versions[0]}, here {versions[1]}); "
                        f"`optuna storage upgrade --storage {shlex.quote(sqlite_address(file))}` mends a copy"
                    )
                trials = _copy(source, connection, name)
        except sa.exc.IntegrityError as error:
            raise LedgerError(
                f"study {name!r} exists in the database; restore brings back what is missing and replaces nothing"
            ) from error
        finally:
            target.dispose()
    return f"study {name!r} is restored from {file} with {trials} trials; its command goes on with it"


def _write_study(ledger: Ledger, file: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="backup-") as folder:
        made = Path(folder) / "study.db"
        target = engine_of(open_storage(sqlite_address(made), create=True))
        make_table(target)
        with (
            ledger.engine.connect().execution_options(isolation_level="REPEATABLE READ") as source,
            target.begin() as connection,
        ):
            _copy(source, connection, ledger.name)
        target.dispose()
        shutil.copyfile(made, file)


def _finish(draft: Path) -> None:
    """One file, without a log and without a driver, looked through and on the disk."""
    with closing(connect(draft)) as database, database:
        database.execute("PRAGMA journal_mode=DELETE")
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [TABLE_NAME]).fetchone():
            database.execute(f"UPDATE {TABLE_NAME} SET holder = ''")
        answer = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if answer != "ok":
        raise OSError(0, answer)
    with draft.open("rb") as stream:
        os.fsync(stream.fileno())


@contextmanager
def _opened(file: Path, name: str) -> Iterator[sa.Connection]:
    """A backup that holds the study, opened so that neither it nor its folder is changed."""
    try:
        fault = damage(file, read_only=True)
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"cannot read {file}: {_reason(error)}") from error
    if fault:
        raise LedgerError(f"{file} cannot be used as a backup: {fault}")
    engine = sa.create_engine("sqlite://", creator=lambda: connect(file, read_only=True), poolclass=sa.NullPool)
    with engine.connect() as connection:
        if not {"alembic_version", *PARENTS} <= set(sa.inspect(connection).get_table_names()):
            raise LedgerError(f"{file} is no backup of a study: it has no tables of Optuna")
        names = connection.execute(sa.text("SELECT study_name FROM studies ORDER BY study_name")).scalars().all()
        if name not in names:
            raise LedgerError(f"{file} holds no study {name!r}; it holds: {', '.join(names) or 'none'}")
        yield connection


def _schema_version(connection: sa.Connection) -> str:
    return str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar())


def _copy(source: sa.Connection, target: sa.Connection, name: str) -> int:
    """Copies all rows of a study, column by column; only ids are new. Uses of score parts, which are no study's own,
    come along. Returns: the number of trials."""
    theirs, ours = sa.MetaData(), sa.MetaData()
    common = set(sa.inspect(source).get_table_names()) & set(sa.inspect(target).get_table_names())
    theirs.reflect(source, only=list(common))
    ours.reflect(target, only=list(common))
    studies, trials = theirs.tables["studies"], theirs.tables["trials"]
    study_id = source.execute(sa.select(studies.c.study_id).where(studies.c.study_name == name)).scalar_one()
    of_study = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id)
    new: dict[str, dict[int, int]] = {"study_id": {}, "trial_id": {}}
    for table in sorted(theirs.tables.values(), key=lambda table: [*PARENTS, table.name].index(table.name)):
        own = PARENTS.get(table.name)
        if "study_id" in table.c:
            chosen = table.c.study_id == study_id
        elif "trial_id" in table.c:
            chosen = table.c.trial_id.in_(of_study)
        else:
            continue
        counted = {column.name for column in table.primary_key if column.name == own or column.name not in new}
        query = sa.select(table).where(chosen).order_by(*table.primary_key)
        for chunk in source.execute(query).mappings().partitions(CHUNK):
            rows = [
                {key: new[key][value] if key in new else value for key, value in old.items() if key not in counted}
                | ({"holder": ""} if table.name == TABLE_NAME else {})
                for old in chunk
            ]
            insert = sa.insert(ours.tables[table.name])
            if own is None:
                target.execute(insert, rows)
                continue
            for old, row in zip(chunk, rows, strict=True):
                made = target.execute(insert.values(row)).inserted_primary_key
                assert made is not None
                new[own][old[own]] = made[0]
    for part, name_of_use in all_uses(source):
        note_use(target, part, name_of_use)
    return len(new["trial_id"])


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return str(getattr(error, "orig", error)).strip().splitlines()[0]
