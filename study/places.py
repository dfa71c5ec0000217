"""Where a study's files lie: what a storage folder holds, and the addresses of the databases in it."""

import os
from pathlib import Path
from urllib.parse import unquote

from ardmvc_core.errors import UserError
from ardmvc_core.places import expanded
from study.secrets import Address

STUDY_DB, MLFLOW_DB, ARTIFACTS, EVALUATIONS = "studies.db", "mlflow.db", "mlartifacts", "evaluations"
"""What a storage folder holds besides one folder for each study."""


def taken_name(name: str) -> bool:
    """Whether a study of that name would share its folder with something else in the storage; on some file systems
    large and small letters are the same."""
    lower = name.lower()
    databases = tuple(f"{file}{end}" for file in (STUDY_DB, MLFLOW_DB) for end in ("", "-wal", "-shm", "-journal"))
    return lower in (*databases, ARTIFACTS, EVALUATIONS)


def absolute(storage: str | Path) -> str:
    """A storage as an absolute path; a URI as it is."""
    return str(storage) if "://" in str(storage) else str(Path(storage).resolve())


def local_folder(storage: str | Path) -> Path:
    """The folder of the databases: the storage itself, `runs` if it is a URI."""
    return Path(absolute("runs" if "://" in str(storage) else storage))


def sqlite_address(file: Path) -> str:
    """The address of a sqlite file, whatever characters its path has."""
    return f"sqlite:///{_in_address(str(file))}"


def _in_address(path: str) -> str:
    # No other character has a meaning there. SQLAlchemy's own way would write umlauts in percent too; MLflow makes an
    # empty folder of each path that is.
    return path.replace("%", "%25").replace("?", "%3F")


def sqlite_file(address: str | Address) -> Path | None:
    """The file of a sqlite address, as an absolute path; None for any other address, and for memory."""
    text = Address(address).reveal()
    name = unquote(text.partition(":///")[2].partition("?")[0]) if text.startswith("sqlite") else ""
    return Path(name).resolve() if name and name != ":memory:" else None


def address_in(variable: str, default: Path) -> Address:
    """The address that a variable of the environment holds, else that of a sqlite file. `~` and `$NAME` are replaced in
    the path of a sqlite file, and are nothing special in the address of a server.

    Raises: UserError naming what has no value here.
    """
    if not (text := os.environ.get(variable)):
        return Address(sqlite_address(default))
    kind, mark, rest = text.partition(":///")
    path, query, fields = rest.partition("?")
    address = Address(text)
    # A path that an address does not show may be a password.
    if not (kind.startswith("sqlite") and path and str(address).startswith(f"{kind}{mark}{path}")):
        return address
    try:
        return Address(f"{kind}{mark}{_in_address(expanded(unquote(path)))}{query}{fields}")
    except ValueError as error:
        raise UserError(f"{variable}: {error}") from None
