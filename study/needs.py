"""What must be there before anything of this project can be imported. Old Pythons parse this file too."""

import sys
from importlib.util import find_spec

PYTHON = (3, 11)
PACKAGES = (
    *("torch", "numpy", "scipy", "sklearn", "PIL", "pooch", "pydantic", "yaml", "jsonschema", "ray", "optuna"),
    *("sqlalchemy", "mlflow", "pyarrow", "rich", "matplotlib", "pandas", "shtab", "h5py"),
)
"""What the dependencies in pyproject.toml are imported as."""


def lacking() -> str:
    """What this Python lacks and how to get it, in a line; empty if it lacks nothing. Imports nothing."""
    python, wanted = sys.executable, ".".join(map(str, PYTHON))
    if sys.version_info < PYTHON:
        version = ".".join(map(str, sys.version_info[:3]))
        return (
            f"needs Python {wanted} or newer, {python} is Python {version}; "
            f"`make sweep PYTHON=python{wanted}` makes .venv with that one, and .venv/bin/python is to be used then"
        )
    # The folder mlflow/ of the repository is a package without a file, which is not the one that is needed.
    missing = [name for name in PACKAGES if getattr(find_spec(name), "origin", None) is None]
    if not missing:
        return ""
    names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return (
        f"{python} lacks packages that studies need ({names}); "
        "`make sweep` installs them into .venv, and .venv/bin/python is to be used then; or "
        f"`{python} -m pip install .` in the folder of this project"
    )
