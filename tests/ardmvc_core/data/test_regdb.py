import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ardmvc_core.data import DataError, DatasetConfig, check_dataset, load_parts

PEOPLE = (205, 0, 17)
PICTURES = 4


def colour(person: int, picture: int, thermal: bool) -> tuple[int, int, int]:
    return person, picture, 200 if thermal else 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three people with four pictures each in RegDB's layout; the thermal list names them in reverse."""
    root = tmp_path / "RegDB"
    (root / "idx").mkdir(parents=True)
    for kind, people in (("Visible", PEOPLE), ("Thermal", PEOPLE[::-1])):
        lines = []
        for person in people:
            (root / kind / str(person)).mkdir(parents=True)
            for picture in range(PICTURES):
                name = f"{kind}/{person}/male_front_{kind[0].lower()}_{picture}.bmp"
                Image.new("RGB", (30, 90), colour(person, picture, kind == "Thermal")).save(root / name)
                lines.append(f"{name} {person}\n")
        (root / "idx" / f"train_{kind.lower()}_1.txt").write_text("".join(lines))
    return root


def change_line(folder: Path, kind: str, number: int, change: Callable[[str], str]) -> None:
    path = folder / "idx" / f"train_{kind}_1.txt"
    lines = path.read_text().splitlines()
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines))


def test_pairs_pictures_of_a_person_in_order(folder: Path) -> None:
    config = DatasetConfig(name="regdb", root=str(folder))
    assert check_dataset(config) == []
    parts = load_parts(config, "official")
    assert parts["train"].data.view_shapes == ((3, 128, 64), (3, 128, 64))
    assert parts["train"].data.n_clusters == 3
    for part in parts.values():
        visible, thermal = part.data.views
        assert part.data.labels is not None
        for row, label in enumerate(part.data.labels.tolist()):
            person = sorted(PEOPLE)[label]
            picture = int(part.indices[row]) % PICTURES
            want = np.array([colour(person, picture, False), colour(person, picture, True)]) / 255
            got = np.stack([view[row].mean((1, 2)).numpy() for view in (visible, thermal)])
            np.testing.assert_allclose(got, want, atol=1e-6)
    assert sorted(torch.cat([part.indices for part in parts.values()]).tolist()) == list(range(12))


def test_pictures_of_any_mode_become_three_channels(folder: Path) -> None:
    grey = folder / "Thermal" / "0" / "male_front_t_0.bmp"
    Image.new("L", (10, 10), 51).save(grey)
    parts = load_parts(DatasetConfig(name="regdb", root=str(folder.parent)), "official")
    thermal = torch.cat([part.data.views[1] for part in parts.values()])
    rows = torch.cat([part.indices for part in parts.values()])
    np.testing.assert_allclose(thermal[rows == 0], 0.2, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "number", "line", "fragment"),
    [
        ("visible", 3, "Visible/205/gone.bmp 205", "gone.bmp does not exist"),
        ("thermal", 2, "Thermal/17/male_front_t_1.bmp", "expected 'path identity-number'"),
        ("thermal", 1, "Thermal/17/male_front_t_0.bmp person", "expected 'path identity-number'"),
        ("visible", 5, "7", "expected 'path identity-number'"),
    ],
)
def test_faults_name_file_and_line(folder: Path, kind: str, number: int, line: str, fragment: str) -> None:
    change_line(folder, kind, number, lambda _: line)
    config = DatasetConfig(name="regdb", root=str(folder))
    (fault,) = check_dataset(config)
    assert f"train_{kind}_1.txt, line {number}" in fault
    assert fragment in fault
    with pytest.raises(DataError, match=f"line {number}"):
        load_parts(config, "strict")


def test_another_number_of_pictures_is_refused(folder: Path) -> None:
    change_line(folder, "thermal", 12, lambda _: "")
    (fault,) = check_dataset(DatasetConfig(name="regdb", root=str(folder)))
    assert "identity 205 has 4 pictures" in fault
    assert "3 in idx/train_thermal_1.txt" in fault


def test_a_person_without_pictures_of_one_kind_is_refused(folder: Path) -> None:
    change_line(folder, "visible", 1, lambda line: line.rpartition(" ")[0] + " 99")
    faults = check_dataset(DatasetConfig(name="regdb", root=str(folder)))
    assert any("identity 99 has 1 pictures" in fault and "and 0 in" in fault for fault in faults)


def test_many_faults_are_counted(folder: Path) -> None:
    for number in range(1, 10):
        change_line(folder, "visible", number, lambda _: "nonsense")
    faults = check_dataset(DatasetConfig(name="regdb", root=str(folder)))
    assert len(faults) == 6
    assert "4 more lines" in faults[-1]


def test_missing_folder_list_or_contents(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARDMVC_DATA", str(tmp_path / "elsewhere"))
    (fault,) = check_dataset(DatasetConfig(name="regdb"))
    assert str(tmp_path / "elsewhere" / "RegDB") in fault
    (folder / "idx" / "train_visible_1.txt").write_text("")
    (folder / "idx" / "train_thermal_1.txt").unlink()
    faults = check_dataset(DatasetConfig(name="regdb", root=str(folder)))
    assert len(faults) == 2
    assert "train_visible_1.txt: lists no picture" in faults[0]
    assert "train_thermal_1.txt: cannot be read" in faults[1]


def test_a_file_that_is_no_picture_is_named(folder: Path) -> None:
    (folder / "Visible" / "17" / "male_front_v_2.bmp").write_bytes(b"BMnothing")
    with pytest.raises(DataError, match=r"male_front_v_2.bmp: is no picture"):
        load_parts(DatasetConfig(name="regdb", root=str(folder)), "official")


def test_without_pillow_the_message_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match="Pillow"):
        load_parts(DatasetConfig(name="regdb", root=str(folder)), "official")


# Strange files


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("Visible/../../secret.bmp 205", "must be a path below"),
        ("/etc/hostname 205", "must be a path below"),
        (f"Visible/205/{'n' * 10**6}.bmp 205", "does not exist"),
        (f"{'n' * 10**6}", "expected 'path identity-number', got 'nnn"),
        ("Visible/205/male_front_v_0.bmp ٣", "expected 'path identity-number'"),
        (f"Visible/205/male_front_v_0.bmp {'9' * 5000}", "expected 'path identity-number'"),
        ("Visible/205/\0.bmp 205", "does not exist"),
        ("Visible/205 205", "does not exist"),
    ],
)
def test_lines_that_lead_elsewhere_or_nowhere(folder: Path, line: str, fragment: str) -> None:
    Image.new("RGB", (30, 90)).save(folder.parent / "secret.bmp")
    change_line(folder, "visible", 1, lambda _: line)
    (fault,) = check_dataset(DatasetConfig(name="regdb", root=str(folder)))
    assert "train_visible_1.txt, line 1: " in fault
    assert fragment in fault
    assert len(fault.encode()) <= 2048


def test_lists_that_are_too_long_or_no_files(folder: Path) -> None:
    visible, thermal = (folder / "idx" / f"train_{kind}_1.txt" for kind in ("visible", "thermal"))
    with visible.open("wb") as file:
        file.truncate(1 << 40)  # holes, which take no room
    thermal.unlink()
    os.mkfifo(thermal)
    faults = check_dataset(DatasetConfig(name="regdb", root=str(folder)))
    assert "a list must have at most 4194304 bytes, has 1099511627776" in faults[0]
    assert "is a pipe or a device, not a file" in faults[1]
    visible.write_text("nonsense\n" * 400_000)
    faults = check_dataset(DatasetConfig(name="regdb", root=str(folder)))
    assert "995 or more more lines like these" in faults[5]


def png(width: int, height: int) -> bytes:
    """A picture of one colour whose size says nothing of what it unpacks to."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    deflate = zlib.compressobj(1)
    rows = b"".join(deflate.compress(bytes(1 + width // 8)) for _ in range(height)) + deflate.flush()
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    )


def encapsulated() -> bytes:
    """A picture as a program in PostScript, which Pillow would hand to Ghostscript."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "EPS")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (png(9600, 9600), "at most 16777216 pixels are read, got 9600 × 9600"),
        (png(16000, 16000), "DecompressionBombError"),
        (encapsulated(), "cannot identify image file"),
        (png(64, 64)[:40], "is no picture that can be read"),
        (b"", "cannot identify image file"),
    ],
)
def test_pictures_that_are_none(folder: Path, content: bytes, fragment: str) -> None:
    (folder / "Visible" / "17" / "male_front_v_2.bmp").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns of large pictures, which would be a second message
        with pytest.raises(DataError, match=r"male_front_v_2.bmp: is no picture that can be read: ") as error:
            load_parts(DatasetConfig(name="regdb", root=str(folder)), "official")
    assert fragment in str(error.value)
