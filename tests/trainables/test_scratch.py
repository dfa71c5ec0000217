"""Folders of processes that were killed are cleared by the next, and nothing else is; the processes here are real."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from staged_trainables import Staged

from trainables import scratch
from trainables.checkpoints import Checkpoints
from trainables.scratch import Scratch, clear_scratch

ROOT = Path(__file__).resolve().parents[2]


def start(code: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLD = """
import sys
from pathlib import Path
from trainables.scratch import Scratch
folder = Scratch(sys.argv[1], Path(sys.argv[2])).path
(folder / "session" / "logs").mkdir(parents=True)
(folder / "session" / "logs" / "raylet.out").write_text("x" * 1000)
(folder / "session" / "latest").symlink_to(sys.argv[3])
print(folder, flush=True)
sys.stdin.read()
"""

Holder = Callable[[scratch.Kind], tuple["subprocess.Popen[str]", Path]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Something of the user's that a link leads to."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    return folder


@pytest.fixture
def hold(base: Path, home: Path) -> Iterator[Holder]:
    """hold(kind) → a process that has such a folder in `base`, and the folder."""
    started = []

    def begin(kind: scratch.Kind) -> tuple["subprocess.Popen[str]", Path]:
        process = start(HOLD, kind, str(base), str(home))
        started.append(process)
        assert process.stdout
        return process, Path(process.stdout.readline().strip())

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", ["ray", "checkpoint"])
def test_the_folder_of_a_killed_process_is_cleared_and_of_a_living_one_is_not(
    hold: Holder, base: Path, home: Path, kind: scratch.Kind
) -> None:
    dead, left = hold(kind)
    stopped, kept = hold(kind)
    stopped.send_signal(signal.SIGSTOP)  # it may wake up
    dead.kill()
    dead.wait()
    assert (left / "session" / "logs" / "raylet.out").exists()
    clear_scratch(base)
    assert not left.exists()
    assert (kept / "session" / "logs" / "raylet.out").exists()
    assert (home / "thesis.txt").exists()


def test_a_worker_that_dies_in_the_middle_of_a_checkpoint(tmp_path: Path, base: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from trainables.checkpoints import Checkpoints
def write(folder):
    (folder / "state.pt").write_bytes(b"half")
    os.kill(os.getpid(), 9)
Checkpoints(sys.argv[1]).save(1, write)
"""
    process = start(code, str(tmp_path / "trial"), TMPDIR=str(base))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [file.read_bytes() for file in base.glob("*/state.pt")] == [b"half"]
    clear_scratch(base)
    assert not any(base.iterdir())


def test_a_worker_clears_its_machine_when_a_trial_is_set_up(
    hold: Holder, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines of a cluster that only ever run workers."""
    process, left = hold("checkpoint")
    process.kill()
    process.wait()
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    worker = Staged.__new__(Staged)
    facts = {"config": "{}", "number": 0, "threads": 1, "resume": [], "patience": 0.0}
    facts |= {"limit": {"fixed": 0.0}, "rounds_behind": 0, "whole": True, "beat": "b"}
    worker.setup({**facts, "folder": str(tmp_path / "trial")})
    assert not left.exists()


def test_a_folder_is_gone_when_its_block_ends(base: Path) -> None:
    with Scratch("checkpoint", base) as folder:
        (folder / "state.pt").write_bytes(b"x")
        clear_scratch(base)  # by the same process: it lives
        assert (folder / "state.pt").exists()
    assert not any(base.iterdir())


def test_what_is_not_known_as_ours_and_dead_stays(hold: Holder, base: Path, home: Path) -> None:
    process, left = hold("ray")
    process.kill()
    process.wait()
    name, kernel = left.name, left.name.split("-")[2]
    other = "a" * len(kernel) if kernel != "a" * len(kernel) else "b" * len(kernel)
    folders = [
        name.replace("ray", "rays"),
        f"my-{name}",
        f"{name}-2",
        name.upper(),
        name.replace(kernel, other),  # of another machine that shares this folder, or of before a restart
        name.replace(kernel, scratch.NO_LOCK),
        "ardmvc-ray-k2v9x1ab",
        "checkpoint-k2v9x1ab",
        "session_2026-11-30_12-00-00_000000_1",
        f"below/{name}",
    ]
    for folder in folders:
        (base / folder).mkdir(parents=True)
        (base / folder / "kept").touch()
    # Names of our own pattern, on things that are no folder of ours.
    link, file, foreign = (base / f"{name[:-4]}{(int(name[-4:], 16) + i) % 65536:04x}" for i in (1, 2, 3))
    link.symlink_to(home)
    file.write_text("a file")
    if os.geteuid() == 0:  # only root can give a folder away
        foreign.mkdir()
        os.chown(foreign, 12345, 12345)
    clear_scratch(base)
    assert not left.exists()
    assert [folder for folder in folders if not (base / folder / "kept").exists()] == []
    assert link.is_symlink()
    assert (home / "thesis.txt").exists()
    assert file.read_text() == "a file"
    assert os.geteuid() != 0 or foreign.is_dir()


def test_a_folder_is_never_taken_from_a_process_that_is_about_to_lock_it(base: Path) -> None:
    """Some make folders, write and look whether it is still there; others clear all the while."""
    make = """
import sys
from pathlib import Path
from trainables.scratch import Scratch
for _ in range(200):
    with Scratch("checkpoint", Path(sys.argv[1])) as folder:
        (folder / "state.pt").write_bytes(b"x")
        assert (folder / "state.pt").read_bytes() == b"x"
"""
    clear = """
import sys
from pathlib import Path
from trainables.scratch import clear_scratch
while not Path(sys.argv[2]).exists():
    clear_scratch(Path(sys.argv[1]))
"""
    done = base.with_name("done")
    clearing = [start(clear, str(base), str(done)) for _ in range(2)]
    making = [start(make, str(base)) for _ in range(2)]
    for process in making:
        process.communicate()
    done.touch()
    for process in clearing:
        process.communicate()
    assert [process.returncode for process in (*making, *clearing)] == [0, 0, 0, 0]
    assert not any(base.iterdir())


def test_a_folder_that_is_cleared_before_it_is_locked_is_made_again(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment is staged; the process that clears is a real one."""
    lock = scratch._lock
    clear = (
        "import sys; from pathlib import Path; from trainables.scratch import clear_scratch as c; c(Path(sys.argv[1]))"
    )
    cleared = []

    def late(handle: int) -> bool:
        if not cleared:
            cleared.extend(base.iterdir())
            start(clear, str(base)).communicate()
            assert not any(base.iterdir())
        return lock(handle)

    monkeypatch.setattr(scratch, "_lock", late)
    with Scratch("ray", base) as folder:
        assert folder.is_dir()
        assert [folder] != cleared


def test_a_base_that_is_missing_or_cannot_be_read(tmp_path: Path) -> None:
    clear_scratch(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        Scratch("ray", tmp_path / "missing")


def test_a_file_system_without_locks(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folders are made all the same, and never taken for dead ones."""

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(scratch.fcntl, "flock", refuse)
    folder = Scratch("checkpoint", base)
    monkeypatch.undo()
    clear_scratch(base)
    assert folder.path.is_dir()
    folder.delete()
    assert not any(base.iterdir())


def test_checkpoints_use_the_temporary_folder_of_this_process(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    seen: list[Path] = []

    def write(folder: Path) -> None:
        seen.append(folder)
        (folder / "state.pt").write_bytes(b"x")

    place = Checkpoints(str(tmp_path / "trial")).save(1, write)
    assert [folder.parent for folder in seen] == [base]
    assert Path(place).is_dir()
    assert not any(base.iterdir())
