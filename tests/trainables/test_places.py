"""Where checkpoints lie once their storage is moved."""

import os
from pathlib import Path

import pytest

from trainables.places import divided, folder_fault, place_of

INNER = "tiny/trial_00003-1f3a9c0e/round_000004-0b6c1d2e"


@pytest.mark.parametrize("storage", ["/data/runs", "s3://bucket/some/folder", "/a?b #c/ü"])
def test_a_checkpoint_is_known_by_its_place_in_the_storage(storage: str) -> None:
    assert divided(f"{storage}/{INNER}") == (storage, INNER)


@pytest.mark.parametrize("place", ["/gone", "round_000001-0b6c1d2e", "/a/b/c/d", "s3://bucket/model"])
def test_a_place_that_no_study_has_made_stays(place: str) -> None:
    assert divided(place) == ("", place)
    assert place_of("", place, "/elsewhere") == place


def test_a_storage_given_now_comes_first(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / INNER).mkdir(parents=True)
    assert place_of(str(old), INNER, str(new)) == str(old / INNER)
    (new / INNER).mkdir(parents=True)
    assert place_of(str(old), INNER, str(new)) == str(new / INNER)
    assert place_of("/gone", INNER, str(new)) == str(new / INNER)


def test_between_a_folder_and_a_bucket(tmp_path: Path) -> None:
    here = tmp_path / "runs"
    assert place_of("s3://bucket", INNER, str(here)) == f"s3://bucket/{INNER}"
    assert place_of("s3://old", INNER, "s3://new/") == f"s3://new/{INNER}"
    assert place_of(str(here), INNER, "s3://bucket") == f"s3://bucket/{INNER}"
    (here / INNER).mkdir(parents=True)
    assert place_of("s3://bucket", INNER, str(here)) == str(here / INNER)
    assert place_of(str(here), INNER, "s3://bucket") == str(here / INNER)


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert folder_fault(tmp_path / "new" / "x") is None
    assert folder_fault(tmp_path) is None
    for name in ("file", "file/x", "link", "link/x"):
        assert (folder_fault(tmp_path / name) or "").endswith("is not a folder")
    assert not os.path.lexists(tmp_path / "new")
