"""A file is written whole, and what stands in its place stays what it is."""

import os
import stat
import threading
from pathlib import Path

import pytest

from trainables.files import write_whole


def test_a_file_and_its_folder_are_made(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "table.md"
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"
    assert [path.name for path in file.parent.iterdir()] == ["table.md"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_a_link_and_a_file_keeps_its_mode(tmp_path: Path) -> None:
    file, link = tmp_path / "shared" / "table.md", tmp_path / "table.md"
    file.parent.mkdir()
    file.write_bytes(b"old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "shared" / "not yet")
    write_whole(dangling, b"new")
    assert dangling.is_symlink()
    assert (tmp_path / "shared" / "not yet").read_bytes() == b"new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_whole(pipe, b"through the pipe")
    reader.join(30)
    assert read == [b"through the pipe"]
    assert pipe.is_fifo()


def test_the_longest_name_that_a_folder_takes(tmp_path: Path) -> None:
    file = tmp_path / ("x" * 255)
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, b"new")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_without_permission_stays(tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    file.write_bytes(b"old")
    file.chmod(0o400)
    with pytest.raises(PermissionError):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
