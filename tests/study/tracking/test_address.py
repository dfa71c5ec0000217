"""MLflow's empty database comes from the user's cache only if it is exactly what was put there."""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from study.tracking import address as addresses
from study.tracking.address import make_sqlite


def facts(file: Path) -> tuple[str, list[str], list[tuple[str, str]]]:
    """What sqlite says of a database: whether it is whole, its revisions, and its schema."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        (whole,) = database.execute("PRAGMA integrity_check").fetchone()
        revisions = [revision for (revision,) in database.execute("SELECT version_num FROM alembic_version")]
        schema = sorted(database.execute("SELECT name, coalesce(sql, '') FROM sqlite_master").fetchall())
    return whole, revisions, schema


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of a user, with half a database in it, after MLflow's tables were made for real."""
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        template = addresses._template()
        template.parent.mkdir(parents=True)
        template.write_bytes(b"SQLite format 3\x00" + b"\x00" * 5000)
        make_sqlite(folder / "runs" / "mlflow.db")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    assert [found.name for found in client.search_experiments()] == ["Default"]
    assert facts(template) == facts(folder / "runs" / "mlflow.db")
    assert facts(template)[0] == "ok"
    return template


@pytest.fixture
def template(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(built.parent, addresses._template().parent)
    return addresses._template()


@pytest.fixture
def builds(built: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Databases that were made anew, which takes MLflow seconds each: here with what it has made before."""
    made: list[Path] = []

    def build(file: Path) -> None:
        made.append(file)
        shutil.copyfile(built, file)

    monkeypatch.setattr(addresses, "_build_sqlite", build)
    return made


def test_a_whole_cache_is_copied(template: Path, builds: list[Path], tmp_path: Path, built: Path) -> None:
    for name in ("first", "second"):
        make_sqlite(tmp_path / name / "mlflow.db")
        assert facts(tmp_path / name / "mlflow.db") == facts(built)
    assert builds == []


def edit(template: Path, *statements: str) -> None:
    with closing(sqlite3.connect(template)) as database, database:
        for statement in statements:
            database.execute(statement)


def flip(template: Path) -> None:
    content = bytearray(template.read_bytes())
    content[len(content) // 2] ^= 1
    template.write_bytes(content)


def other_database(template: Path) -> None:
    template.unlink()
    edit(template, "CREATE TABLE thesis (chapter)")


def link_to_a_database(template: Path) -> None:
    mine = template.parents[2] / "mine.db"
    edit(mine, "CREATE TABLE thesis (chapter)")
    template.unlink()
    template.symlink_to(mine)


def dangling_link(template: Path) -> None:
    template.unlink()
    template.symlink_to(template.with_name("nowhere"))


def folder(template: Path) -> None:
    template.unlink()
    template.mkdir()


def pipe(template: Path) -> None:
    template.unlink()
    os.mkfifo(template)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half of it": lambda template: os.truncate(template, template.stat().st_size // 2),
    "all but a byte": lambda template: os.truncate(template, template.stat().st_size - 1),
    "nothing": lambda template: template.write_bytes(b""),
    "no database": lambda template: template.write_text("<html>404</html>" * 1000),
    "another bit": flip,
    "another database": other_database,
    "another revision": lambda template: edit(template, "UPDATE alembic_version SET version_num = 'feedc0ffee'"),
    "a table less": lambda template: edit(template, "DROP TABLE metrics"),
    "somebody's runs": lambda template: edit(template, "UPDATE experiments SET name = 'thesis'"),
    "a link": link_to_a_database,
    "a link to nowhere": dangling_link,
    "a folder": folder,
    "a pipe": pipe,
    "of an older version of this program": lambda template: addresses._seal_of(template).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again(
    template: Path, builds: list[Path], tmp_path: Path, built: Path, damage: str
) -> None:
    DAMAGES[damage](template)
    done = threading.Thread(target=make_sqlite, args=(tmp_path / "first" / "mlflow.db",), daemon=True)
    done.start()
    done.join(60)
    assert not done.is_alive(), "it hangs"
    assert len(builds) == 1
    assert facts(tmp_path / "first" / "mlflow.db") == facts(built)
    make_sqlite(tmp_path / "second" / "mlflow.db")
    assert len(builds) == 1  # the cache is whole again
    assert facts(template) == facts(tmp_path / "second" / "mlflow.db") == facts(built)
    assert template.is_file()
    assert not template.is_symlink()
    if damage == "a link":
        with closing(sqlite3.connect(tmp_path / "mine.db")) as database:
            assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("thesis",)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_cache_that_cannot_be_read_is_made_again(template: Path, builds: list[Path], tmp_path: Path) -> None:
    template.chmod(0)
    make_sqlite(tmp_path / "first" / "mlflow.db")
    make_sqlite(tmp_path / "second" / "mlflow.db")
    assert len(builds) == 1


def test_a_cache_that_cannot_be_written_costs_time_only(
    template: Path, builds: list[Path], tmp_path: Path, built: Path
) -> None:
    template.unlink()
    (template / "notes").mkdir(parents=True)  # not ours to delete
    for name in ("first", "second"):
        make_sqlite(tmp_path / name / "mlflow.db")
        assert facts(tmp_path / name / "mlflow.db") == facts(built)
    assert len(builds) == 2
    assert (template / "notes").is_dir()


def test_a_development_version_of_mlflow_with_one_more_migration(
    template: Path, builds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number is the same, its tables are not."""
    import mlflow

    package = tmp_path / "site" / "mlflow"
    shutil.copytree(Path(mlflow.__file__).parent / "store" / "db_migrations", package / "store" / "db_migrations")
    (package / "store" / "db_migrations" / "versions" / "feedc0ffee_more_tables.py").touch()
    (package / "__init__.py").touch()
    spec = addresses.importlib.util.spec_from_file_location("mlflow", package / "__init__.py")
    monkeypatch.setattr(addresses.importlib.util, "find_spec", lambda _: spec)
    make_sqlite(tmp_path / "first" / "mlflow.db")
    assert len(builds) == 1
