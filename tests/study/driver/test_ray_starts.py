"""Ray starts wherever it can, and where it cannot, a message says so before any trial."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from tiny_studies import study_dict, write_study

from study.driver import StudyRefused, ray_cluster
from study.spec.study_spec import StudySpec
from study.sweep import main

SpecMaker = Callable[..., StudySpec]

STRANGERS = """
import pwd
def _unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = _unknown
"""
"""For every Python that starts: the user has no entry among the users of this machine, as in many containers."""

START = """
import argparse
from study.cli import exit_code_of

def start(given):
    import ray
    import ray.tune
    from study.driver.ray_cluster import connect, stop_ray
    from study.spec.study_spec import load_spec
    connect(None, load_spec("smoke"))
    print(ray.get(ray.remote(lambda: "a worker answers").remote()))
    print(*sorted(ray._private.worker._global_node.all_processes))
    stop_ray(lambda: None, 1)
    return 0

raise SystemExit(exit_code_of(start, argparse.Namespace(debug=False)))
"""


@pytest.mark.parametrize(
    ("home", "temporary"),
    [
        pytest.param(None, "plain", id="no home", marks=pytest.mark.slow),
        pytest.param("/proc", "plain", id="read-only home", marks=pytest.mark.slow),
        pytest.param("/proc/nowhere", "Müll # und " + 40 * "x", id="missing home and strange temporary folder"),
    ],
)
def test_ray_starts_for_a_user_without_entry(tmp_path: Path, home: str | None, temporary: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(STRANGERS)
    (tmp_path / temporary).mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "HOME" and not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path / temporary)}
    if home:
        environment["HOME"] = home
    command = [sys.executable, "-c", START]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    # No monitor and no server of pages: nobody looks at them, and both have to be waited for.
    assert (done.stdout, done.returncode) == ("a worker answers\ngcs_server raylet\n", 0), done.stderr
    assert list((tmp_path / temporary).iterdir()) == []


@pytest.mark.parametrize(
    "error", [KeyError("getpwuid(): uid not found: 9"), Exception("The node timed\n out."), AssertionError()]
)
def test_whatever_keeps_ray_from_starting_is_said(
    tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(StudyRefused, match=r"^Ray cannot start here: [^\n]+$"):
        ray_cluster.connect(None, tiny_spec())
    while ray_cluster._ray_folders:
        ray_cluster._ray_folders.pop().delete()


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_no_folder_for_ray(tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    if variable == "RAY_TMPDIR":
        monkeypatch.setenv("RAY_TMPDIR", "/proc/none")
    else:
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    with pytest.raises(StudyRefused, match=r"^Ray cannot start here: no folder can be made in .*; set RAY_TMPDIR to a"):
        ray_cluster.connect(None, tiny_spec())
    # Nothing is left that would end this process when Ray should have started.
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_no_study_is_made_where_ray_has_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc/none")
    study = write_study(tmp_path, study_dict(tmp_path))
    assert main([str(study)]) == 2
    assert capsys.readouterr().err.startswith("Ray cannot start here: no folder can be made in /proc/none: ")
    assert list(tmp_path.iterdir()) == [study]


@pytest.mark.parametrize("runtime_env", [None, {"env_vars": {"A": "b"}}])
def test_the_folder_is_not_shipped_under_uv_run(
    tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch, runtime_env: dict[str, Any] | None
) -> None:
    from ray._private.runtime_env import uv_runtime_env_hook

    asked: list[Any] = []

    def init(**_: Any) -> None:
        asked.append(ray._private.worker._maybe_modify_runtime_env(runtime_env, False))

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(uv_runtime_env_hook, "_get_uv_run_cmdline", lambda: ["uv", "run", "--with", "x", "sweep.py"])
    monkeypatch.delenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", raising=False)
    ray_cluster.connect(None, tiny_spec())
    assert asked == [runtime_env]
    while ray_cluster._ray_folders:
        ray_cluster._ray_folders.pop().delete()
