"""A Python that is too old or has no packages is told so in a line, by every door and by `make`."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from architecture import DOORS, ROOT, imports

from study import main as command
from study import needs

STANDARD = set(sys.stdlib_module_names)


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_package_is_looked_for() -> None:
    tops = {name.split(".")[0] for _, _, name in imports()} - STANDARD
    ours = {"study", "trainables", "ardmvc_core", "search_spaces", "pydantic_core"}
    assert tops - ours - set(needs.PACKAGES) == set()
    assert needs.lacking() == ""


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 10, 0), (3, 7, 17)])
@pytest.mark.parametrize("door", ["study.sweep", "study.control", "study"])
def test_an_old_python_is_told_what_is_needed(version: tuple[int, ...], door: str) -> None:
    script = f"import runpy, sys; sys.version_info = {version}; runpy.run_module({door!r}, run_name='__main__')"
    done = ran("-c", script)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    named = ".".join(map(str, version))
    assert done.stderr.startswith(f"needs Python 3.11 or newer, {sys.executable} is Python {named}; ")


def test_an_old_python_reads_as_far_as_the_message() -> None:
    for file in ("study/__init__.py", "study/needs.py"):
        ast.parse((ROOT / file).read_text(), feature_version=(3, 7))


@pytest.mark.parametrize("door", DOORS)
def test_a_python_without_the_packages_is_told_how_to_get_them(door: str) -> None:
    """`-S`: nothing but the standard library, and the folder mlflow/ of the repository."""
    done = ran("-S", "-m", f"study.{door}", "--help")
    assert (done.returncode, done.stdout) == (2, "")
    names = f"torch, numpy, scipy and {len(needs.PACKAGES) - 3} more"
    assert done.stderr.startswith(f"{sys.executable} lacks packages that studies need ({names}); ")
    assert "`make sweep` installs them into .venv" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_single_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(needs, "PACKAGES", (*needs.PACKAGES, "no_such_package"))
    assert command.main(["sweep", "smoke"]) == 2
    assert "lacks packages that studies need (no_such_package); " in capsys.readouterr().err


@pytest.mark.parametrize("python", ["/bin/false", "no-such-python", ""])
def test_make_asks_for_another_python_before_it_downloads_anything(tmp_path: Path, python: str) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "requirements.txt", "requirements-cpu.txt", "requirements-cuda.txt"):
        (tmp_path / name).touch()
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow/requirements.txt").touch()
    made = subprocess.run(
        ["make", "sweep", f"PYTHON={python}"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 2
    assert f"needs Python 3.11 or newer, '{python}' is none; name one: make sweep PYTHON=" in made.stderr
    assert not (tmp_path / ".venv").exists()
