"""Where a run comes from: command, commit, package versions. Nothing here returns a password."""

import getpass
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

from study.secrets import redact


def command() -> str:
    """The command line of this process, without the interpreter's folder."""
    return redact(" ".join(["python", *sys.orig_argv[1:]]))


def user() -> str | None:
    """Who runs this process; None for a user that has no name here."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return None


def git_commit() -> str | None:
    """The commit that this file is part of, `+changes` if tracked files differ from it; None outside a checkout."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *arguments],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside somebody else's repository, whose commit says nothing about it.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def environment() -> str:
    """Python, platform, and every installed package with its version, one a line."""
    packages = {
        (found.metadata["Name"], found.version)
        for found in importlib.metadata.distributions()
        if found.metadata["Name"]
    }
    head = [f"# Python {platform.python_version()}, {platform.platform()}"]
    return "\n".join(head + sorted((f"{name}=={version}" for name, version in packages), key=str.lower)) + "\n"


def versions(names: tuple[str, ...] = ("torch", "ray", "optuna", "mlflow", "numpy")) -> dict[str, str]:
    """Versions of the packages that results depend on most; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
