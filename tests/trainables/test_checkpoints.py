"""Checkpoints on a local disk and on a real server of the S3 protocol: whole or not there, two kept, outages borne."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from object_store import ObjectStore

from trainables import checkpoints
from trainables.checkpoints import Checkpoints, download
from trainables.storage import NoCheckpoint, StorageAway, StorageUnusable, locate, read_file, storage_fault, write_file


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with ObjectStore() as running:
        yield running


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A trial's folder on each kind of storage."""
    if request.param == "local":
        return str(tmp_path / "trial")
    request.getfixturevalue("store").install(monkeypatch)
    return f"s3://studies/{tmp_path.name}/trial"


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state.pt").write_bytes(text.encode() * 1000)
        (folder / "config.json").write_text("{}")

    return write


def resuming(place: str) -> Checkpoints:
    """As a worker does it that goes on with a trial."""
    found = Checkpoints(place)
    found.look()
    return found


def content(loaded: list[bytes]) -> Callable[[Path], None]:
    return lambda folder: loaded.append((folder / "state.pt").read_bytes()[:3])


def rewrite(place: str, name: str, change: Callable[[bytes], bytes | None]) -> None:
    """Changes a stored file behind the back of the code, or deletes it."""
    system, path = locate(place)
    with system.open_input_stream(f"{path}/{name}") as stream:
        changed = change(stream.read())
    if changed is None:
        system.delete_file(f"{path}/{name}")
    else:
        with system.open_output_stream(f"{path}/{name}") as out:
            out.write(changed)


def test_the_newest_comes_back_and_two_are_kept(place: str) -> None:
    trial = Checkpoints(place)
    saved = [trial.save(round_, writer(f"r{round_} ")) for round_ in (1, 2, 3)]
    loaded: list[bytes] = []
    assert Checkpoints(place).restore([saved[2], saved[1]], content(loaded)) == (saved[2], [])
    assert loaded == [b"r3 "]
    assert read_file(saved[0], "state.pt") is None
    assert read_file(saved[1], "state.pt") == b"r2 " * 1000


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("state.pt", lambda raw: raw[:-7], "state.pt is not what was written"),
        ("state.pt", lambda raw: b"x" + raw[1:], "state.pt is not what was written"),
        ("state.pt", lambda raw: None, "state.pt is missing"),
        ("manifest.json", lambda raw: None, "is gone or was never finished"),
        ("manifest.json", lambda raw: raw[:20], "manifest.json cannot be read"),
    ],
)
def test_a_damaged_newest_falls_back_to_the_one_before(
    place: str, name: str, change: Callable[[bytes], bytes | None], words: str
) -> None:
    trial = Checkpoints(place)
    older, newest = trial.save(1, writer("old")), trial.save(2, writer("new"))
    rewrite(newest, name, change)
    loaded: list[bytes] = []
    again = resuming(place)
    found, faults = again.restore([newest, older], content(loaded))
    assert (found, loaded) == (older, [b"old"])
    assert len(faults) == 1
    assert words in faults[0]
    # What is damaged counts for nothing: after the next round there are two whole ones again.
    repeated = again.save(2, writer("two"))
    assert Checkpoints(place).restore([repeated, older], content(loaded)) == (repeated, [])
    assert loaded[-1] == b"two"
    assert read_file(older, "state.pt") is not None
    assert read_file(newest, "config.json") is None


def test_without_a_whole_checkpoint_nothing_is_loaded(place: str) -> None:
    loaded: list[bytes] = []
    found, faults = Checkpoints(place).restore([f"{place}/round_000001-gone"], content(loaded))
    assert found is None
    assert loaded == []
    assert "is gone or was never finished" in faults[0]


def test_a_kill_between_files_leaves_no_checkpoint(place: str) -> None:
    """Whatever is there before the manifest is not one."""
    system, path = locate(place)
    if system.type_name == "local":
        system.create_dir(f"{path}/round_000001-torn")
    with system.open_output_stream(f"{path}/round_000001-torn/state.pt") as out:
        out.write(b"half")
    with pytest.raises(NoCheckpoint, match="never finished"):
        download(f"{place}/round_000001-torn", Path("unused"))


def test_what_nobody_recorded_is_cleared_when_the_trial_goes_on(place: str) -> None:
    """A worker that was believed dead wrote a round that the database never heard of."""
    recorded = Checkpoints(place).save(1, writer("one"))
    unrecorded = Checkpoints(place).save(2, writer("two"))
    resuming(place).restore([recorded], content([]))
    assert read_file(unrecorded, "state.pt") is None
    assert read_file(recorded, "state.pt") is not None


def test_a_late_worker_clears_nothing_of_its_successor(place: str) -> None:
    """It was cut off while it waited for its start, and wakes when another has gone on with the trial."""
    recorded = Checkpoints(place).save(1, writer("one"))
    late = resuming(place)
    successor = resuming(place)
    successor.restore([recorded], content([]))
    newer = [successor.save(round_, writer(f"r{round_} ")) for round_ in (2, 3)]
    late.restore([recorded], content([]))
    late.save(2, writer("late"))
    loaded: list[bytes] = []
    assert Checkpoints(place).restore([newer[1]], content(loaded)) == (newer[1], [])
    assert loaded == [b"r3 "]


def test_where_nothing_could_be_loaded_nothing_is_deleted(place: str) -> None:
    """The folder may be that of a study whose database was lost."""
    other = Checkpoints(place).save(4, writer("old"))
    assert resuming(place).restore([f"{place}/round_000002-gone"], content([]))[0] is None
    resuming(place).restore([], content([]))
    assert read_file(other, "state.pt") == b"old" * 1000


def test_a_storage_that_has_moved_is_found(tmp_path: Path) -> None:
    recorded = Checkpoints(str(tmp_path / "here" / "trial")).save(2, writer("two"))
    (tmp_path / "here").rename(tmp_path / "there")
    loaded: list[bytes] = []
    found, faults = resuming(str(tmp_path / "there" / "trial")).restore([recorded], content(loaded))
    assert found == recorded.replace("/here/", "/there/")
    assert (loaded, faults) == ([b"two"], [])


def test_two_writers_do_not_touch_each_other(place: str) -> None:
    """The worker of a node that is believed dead writes on for a while."""
    first, second = Checkpoints(place), Checkpoints(place)
    one = first.save(3, writer("one"))
    second.restore([one], content([]))
    other = second.save(4, writer("two"))
    same_round = first.save(4, writer("bad"))
    first.save(5, writer("bad"))
    loaded: list[bytes] = []
    assert same_round != other
    assert Checkpoints(place).restore([other], content(loaded)) == (other, [])
    assert loaded == [b"two"]


def test_a_store_that_refuses_writes_for_a_while_is_waited_for(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(monkeypatch)
    trial = Checkpoints(f"s3://studies/{tmp_path.name}/slow", patience=120)
    store.refused, store.refuses_writes = 0, True

    def relent(real: Callable[[float], None] = checkpoints.time.sleep) -> Callable[[float], None]:
        def pause(_: float) -> None:
            store.refuses_writes = False  # at the first pause: the first attempt has failed
            real(0.01)

        return pause

    monkeypatch.setattr(checkpoints.time, "sleep", relent())
    saved = trial.save(1, writer("one"))
    assert store.refused > 0
    assert "waited" in trial.waited[0]
    assert read_file(saved, "state.pt") == b"one" * 1000


def test_a_store_that_stays_away_is_named_in_the_end(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(monkeypatch)
    store.refuses_writes = True
    try:
        with pytest.raises(StorageAway, match=r"cannot write s3://studies/.*\(tried for 0.1 s\)"):
            Checkpoints(f"s3://studies/{tmp_path.name}/never", patience=0.1).save(1, writer("one"))
    finally:
        store.refuses_writes = False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kind", ["file", "broken link", "file above", "long name", "round is a loop"])
def test_a_place_where_nothing_can_be_written_is_not_waited_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause(_: float) -> None:
        pytest.fail("it waits")

    monkeypatch.setattr(checkpoints.time, "sleep", pause)
    folder, words = tmp_path / "trial", "File exists"
    if kind == "file":
        folder.touch()
        words = "Not a directory"
    elif kind == "broken link":
        folder.symlink_to(tmp_path / "nowhere")
    elif kind == "file above":
        (tmp_path / "study").touch()
        folder, words = tmp_path / "study" / "trial", "Not a directory"
    elif kind == "long name":
        folder, words = tmp_path / ("x" * 300), "File name too long"
    else:
        folder.symlink_to(folder)
        words = "Too many levels of symbolic links"
    with pytest.raises(StorageUnusable, match=f"cannot write .*{words}"):
        Checkpoints(str(folder), patience=600).save(1, writer("one"))


def test_whoever_waits_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    trial = Checkpoints(str(tmp_path / "trial"), patience=600, tell=told.append)
    tries: list[str] = []

    def write(folder: Path) -> None:
        tries.append(told[-1] if told else "")
        if len(tries) < 3:
            raise OSError(errno.EIO, "Input/output error")
        writer("one")(folder)

    monkeypatch.setattr(checkpoints.time, "sleep", lambda seconds: None)
    place = trial.save(1, write)
    assert "Input/output error" in tries[1]
    assert tries[1].startswith("cannot write ")
    assert told[-1] == ""
    assert read_file(place, "state.pt") == b"one" * 1000


@pytest.mark.parametrize("name", ["a b", "ü", "a#b", "[x]{y}", "a+b=c", "50%25"])
def test_an_odd_folder_in_a_bucket(
    name: str, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(monkeypatch)
    place = f"s3://studies/{tmp_path.name}/{name}/trial"
    saved = Checkpoints(place).save(1, writer("one"))
    assert read_file(saved, "state.pt") == b"one" * 1000
    written = name.replace("%25", "%")
    assert any(f"/{written}/trial/" in key for key in store.listing(tmp_path.name))


def test_a_full_disk_is_waited_for_and_tears_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Checkpoints(str(small_disk / "trial"), patience=120)
    first = trial.save(1, writer("one"))
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(b"0" * (2 << 20))
    real = checkpoints.time.sleep

    def pause(_: float) -> None:
        loaded: list[bytes] = []
        assert Checkpoints(str(small_disk / "other")).restore([first], content(loaded))[0] == first
        assert loaded == [b"one"]
        filler.unlink(missing_ok=True)
        real(0.01)

    monkeypatch.setattr(checkpoints.time, "sleep", pause)
    second = trial.save(2, writer("two"))
    assert "No space left" in trial.waited[0]
    assert read_file(second, "state.pt") == b"two" * 1000


def test_storage_that_cannot_be_used_is_named(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(monkeypatch)
    assert storage_fault(str(tmp_path / "new")) is None
    assert storage_fault("s3://studies/new") is None
    assert [key for key in store.listing("new") if not key.endswith("/")] == []
    missing = storage_fault("s3://absent-bucket/x") or ""
    assert missing.startswith("storage.path: cannot write to s3://absent-bucket/x: ")
    assert "bucket does not exist" in missing
    (tmp_path / "file").write_text("")
    assert "Not a directory" in (storage_fault(str(tmp_path / "file" / "x")) or "")


def test_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "frozen"
    folder.mkdir()
    frozen = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if frozen.returncode:
        pytest.skip(f"no file system can be mounted here: {frozen.stderr.decode().strip()}")
    try:
        assert "Read-only file system" in (storage_fault(str(folder / "runs")) or "")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_draft_of_an_attempt_that_failed_is_not_mixed_with_the_next(place: str) -> None:
    tries: list[int] = []

    def write(folder: Path) -> None:
        tries.append(len(list(folder.iterdir())))
        (folder / f"file_{len(tries)}").write_text("x")
        if len(tries) == 1:
            raise OSError("a passing fault")

    trial = Checkpoints(place, patience=60)
    saved = trial.save(1, write)
    assert tries == [0, 0]
    assert read_file(saved, "file_1") is None
    assert read_file(saved, "file_2") == b"x"


def adopted(wanted: bool, seen: list[str]) -> Callable[[Path, str], bool]:
    def adopt(folder: Path, where: str) -> bool:
        seen.append(f"{(folder / 'state.pt').read_bytes()[:3].decode()} {where}")
        return wanted

    return adopt


def test_a_round_that_was_stored_and_not_recorded_is_offered(place: str) -> None:
    recorded = Checkpoints(place).save(1, writer("one"))
    unrecorded = Checkpoints(place).save(2, writer("two"))
    trial, seen = resuming(place), list[str]()
    assert trial.restore([recorded], content([]), adopted(True, seen)) == (recorded, [])
    assert seen == [f"two {unrecorded}"]
    # It is kept from now on, and the next ones take its place as ever.
    third = trial.save(3, writer("tri"))
    loaded: list[bytes] = []
    assert Checkpoints(place).restore([third, unrecorded], content(loaded)) == (third, [])
    assert Checkpoints(place).restore([recorded], content(loaded))[0] is None


def test_the_first_round_is_offered_where_none_is_recorded(place: str) -> None:
    first = Checkpoints(place).save(1, writer("one"))
    seen: list[str] = []
    assert resuming(place).restore([], content([]), adopted(True, seen)) == (None, [])
    assert seen == [f"one {first}"]


def test_only_a_whole_one_of_the_next_round_is_offered(place: str) -> None:
    recorded = Checkpoints(place).save(1, writer("one"))
    torn = Checkpoints(place).save(2, writer("two"))
    rewrite(torn, "state.pt", lambda raw: raw[:10])
    Checkpoints(place).save(3, writer("far"))
    seen: list[str] = []
    resuming(place).restore([recorded], content([]), adopted(True, seen))
    assert seen == []


def test_one_that_is_not_wanted_is_cleared(place: str) -> None:
    recorded = Checkpoints(place).save(1, writer("one"))
    unrecorded = Checkpoints(place).save(2, writer("two"))
    resuming(place).restore([recorded], content([]), adopted(False, []))
    assert Checkpoints(place).restore([unrecorded], content([]))[0] is None
    assert Checkpoints(place).restore([recorded], content([]))[0] == recorded


def test_after_a_fallback_nothing_is_offered(place: str) -> None:
    """The round after a checkpoint that is damaged belongs to another past than the one before it."""
    older = Checkpoints(place).save(1, writer("one"))
    newest = Checkpoints(place).save(2, writer("two"))
    Checkpoints(place).save(3, writer("tri"))
    rewrite(newest, "state.pt", lambda raw: raw[:10])
    seen: list[str] = []
    found, faults = resuming(place).restore([newest, older], content([]), adopted(True, seen))
    assert (found, len(faults), seen) == (older, 1, [])


def outside(tmp_path: Path) -> Path:
    """A folder that is no storage of ours, with a tree below it."""
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    (home / "thesis.txt").write_text("years")
    (home / "deep" / "manifest.json").write_text("mine")
    return home


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, and what it holds."""
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", ["latest", "round_000009-0123abcd", "round_000002-0123abcd"])
def test_a_link_in_a_trials_folder_is_not_followed_by_a_delete(tmp_path: Path, name: str) -> None:
    """Not even one that is called like a checkpoint, or that would be offered as the next round."""
    home, trial = outside(tmp_path), tmp_path / "trial"
    before = tree(home)
    recorded = Checkpoints(str(trial)).save(1, writer("one"))
    (trial / name).symlink_to(home)
    assert resuming(str(trial)).restore([recorded], content([]), adopted(False, []))[0] == recorded
    assert tree(home) == before
    assert (trial / name).is_symlink()


def test_a_recorded_checkpoint_that_is_a_link_is_read_and_not_deleted(tmp_path: Path) -> None:
    """Somebody moved it to another disk and left a link."""
    trial, other = tmp_path / "trial", tmp_path / "other_disk"
    first = Path(Checkpoints(str(trial)).save(1, writer("one")))
    first.rename(other)
    first.symlink_to(other)
    before, loaded = tree(other), list[bytes]()
    again = resuming(str(trial))
    assert again.restore([str(first)], content(loaded)) == (str(first), [])
    assert loaded == [b"one"]
    for round_ in (2, 3, 4):
        again.save(round_, writer("new"))
    assert tree(other) == before


def test_links_inside_a_checkpoint_go_without_their_targets(tmp_path: Path) -> None:
    home, trial = outside(tmp_path), tmp_path / "trial"
    before = tree(home)
    writes = Checkpoints(str(trial))
    saved = [Path(writes.save(round_, writer("one"))) for round_ in (1, 2)]
    (saved[0] / "linked").symlink_to(home)
    (saved[0] / "linked.txt").symlink_to(home / "thesis.txt")
    (saved[0] / "manifest.json").unlink()
    (saved[0] / "manifest.json").symlink_to(home / "deep" / "manifest.json")
    writes.save(3, writer("tri"))
    assert not saved[0].exists()
    assert tree(home) == before


@pytest.mark.parametrize("name", ["notes", "round_000001-mine", "round_7-0123abcdef", "round_000001-0123abcd.kept"])
def test_a_folder_made_by_hand_stays(place: str, name: str) -> None:
    system, path = locate(place)
    recorded = Checkpoints(place).save(1, writer("one"))
    unrecorded = Checkpoints(place).save(2, writer("two"))
    if system.type_name == "local":
        system.create_dir(f"{path}/{name}")
    with system.open_output_stream(f"{path}/{name}/notes.txt") as out:
        out.write(b"by hand")
    again = resuming(place)
    again.restore([recorded], content([]))
    for round_ in (2, 3, 4):
        again.save(round_, writer("new"))
    assert read_file(f"{place}/{name}", "notes.txt") == b"by hand"
    assert read_file(unrecorded, "state.pt") is None
    assert read_file(recorded, "state.pt") is None


@pytest.mark.parametrize("elsewhere", ["another trial", "notes/below", "notes"])
def test_what_is_recorded_elsewhere_is_read_and_never_deleted(tmp_path: Path, elsewhere: str) -> None:
    """The database names a place that is not directly in the trial's folder: of a copied storage, or written there."""
    trial = tmp_path / "trial"
    made = Path(Checkpoints(str(tmp_path / "made")).save(1, writer("one")))
    place = {"another trial": tmp_path / "other" / made.name, "notes": trial / "notes"}.get(
        elsewhere, trial / elsewhere / made.name
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    made.rename(place)
    before, loaded = tree(place), list[bytes]()
    again = resuming(str(trial))
    assert again.restore([str(place)], content(loaded)) == (str(place), [])
    saved = [again.save(round_, writer("new")) for round_ in (2, 3, 4)]
    assert loaded == [b"one"]
    assert tree(place) == before
    assert [Path(one).exists() for one in saved] == [False, True, True]


def forged(manifest: bytes, name: str, body: bytes, **facts: Any) -> bytes:
    """A manifest that lists one more file, with the right size and digest unless told otherwise."""
    whole = json.loads(manifest)
    whole["files"][name] = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest(), **facts}
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    "name",
    [
        "../../X",
        "../X",
        "deep/X",
        "/X",
        "~/X",
        "..",
        ".bashrc",
        "manifest.json",
        "sitecustomize.py",
        "X",
        "a\0b",
        "a" * 300,
    ],
)
def test_a_manifest_writes_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whoever may write to the storage adds a file to a checkpoint, at a place that the worker could reach."""
    trial, scratch = tmp_path / "a" / "b" / "trial", tmp_path / "c" / "d" / "scratch"
    scratch.mkdir(parents=True)
    writes = Checkpoints(str(trial))
    older, newest = writes.save(1, writer("old")), writes.save(2, writer("new"))
    body = b"mine"
    if name == "/X":
        name = str(tmp_path / "elsewhere" / "X")
        Path(name).parent.mkdir()
    if name not in ("..", "manifest.json", "a\0b") and len(name) < 256:
        planted = Path(newest, name)
        planted.parent.mkdir(exist_ok=True)
        planted.write_bytes(body)
    rewrite(newest, "manifest.json", lambda raw: forged(raw, name, body))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    loaded: list[bytes] = []
    found, faults = Checkpoints(str(trial)).restore([newest, older], content(loaded))
    assert (found, loaded) == (older, [b"old"])
    assert "is damaged: manifest.json" in faults[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: forged(raw, "extra.npz", b"", bytes=(16 << 30) + 1), "less than or equal"),
        (lambda raw: forged(raw, "extra.npz", b"", bytes=16 << 30), "allowed are 17179869184"),
        (lambda raw: forged(raw, "extra.npz", b"", bytes=-1), "greater than or equal"),
        (lambda raw: forged(raw, "extra.npz", b"", bytes="4"), "valid integer"),
        (lambda raw: forged(raw, "extra.npz", b"", sha256="0"), "match pattern"),
        (lambda raw: forged(raw, "extra.npz", b"", run="X"), "not permitted"),
        (lambda raw: json.dumps({**json.loads(raw), "pickle": "X"}).encode(), "not permitted"),
        (lambda raw: json.dumps({"files": {f"file_{i}": 0 for i in range(17)}}).encode(), "cannot be read"),
        (lambda raw: raw + b" " * (1 << 20), "bytes; allowed are 65536"),
    ],
)
def test_a_manifest_has_a_fixed_schema_and_a_limit(
    tmp_path: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    place = str(tmp_path / "trial")
    writes = Checkpoints(place)
    older, newest = writes.save(1, writer("old")), writes.save(2, writer("new"))
    rewrite(newest, "manifest.json", change)
    found, faults = Checkpoints(place).restore([newest, older], content([]))
    assert found == older
    assert words in faults[0]


def test_a_trial_names_the_files_of_its_checkpoints(place: str) -> None:
    """A file that is plain and whole, and that this kind of trial never writes, is not taken from a storage."""
    names = frozenset({"state.pt", "config.json"})
    older, newest = (Checkpoints(place, files=names).save(round_, writer("old")) for round_ in (1, 2))
    system, path = locate(newest)
    with system.open_output_stream(f"{path}/extra.json") as out:
        out.write(b"{}")
    rewrite(newest, "manifest.json", lambda raw: forged(raw, "extra.json", b"{}"))
    assert Checkpoints(place).restore([newest, older], content([]))[0] == newest
    found, faults = Checkpoints(place, files=names).restore([newest, older], content([]))
    assert found == older
    assert "manifest.json lists 'extra.json', which is none of config.json, state.pt" in faults[0]


@pytest.mark.parametrize("name", ["notes.txt", "State.pt", "manifest.json", "sub"])
def test_what_could_not_be_read_back_is_not_stored(place: str, name: str) -> None:
    def write(folder: Path) -> None:
        (folder / name).mkdir() if name == "sub" else (folder / name).write_text("x")

    with pytest.raises(ValueError, match=f"a checkpoint cannot hold '{name}'"):
        Checkpoints(place, patience=60).save(1, write)
    with pytest.raises(ValueError, match="a checkpoint cannot hold 0 files"):
        Checkpoints(place, patience=60).save(1, lambda folder: None)


Damage = Callable[[Path], object]
"""What happens to a checkpoint's folder."""


def manifest(raw: bytes) -> Damage:
    return lambda folder: (folder / "manifest.json").write_bytes(raw)


def listed(name: str, **facts: Any) -> Damage:
    """The manifest lists one file more; what it says of it is right but for `facts`."""

    def change(folder: Path) -> None:
        file = folder / "manifest.json"
        file.write_bytes(forged(file.read_bytes(), name, b"{}", **facts))

    return change


def content_of(change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / "state.pt").write_bytes(change((folder / "state.pt").read_bytes()))


def replaced(name: str, make: Callable[[Path], object]) -> Damage:
    """Something else stands in place of a file, or of the whole folder if `name` is empty."""

    def change(folder: Path) -> None:
        place = folder / name if name else folder
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        make(place)

    return change


def loop(place: Path) -> None:
    place.symlink_to(place)


def dangling(place: Path) -> None:
    place.symlink_to(place.with_name("nowhere"))


DAMAGES: dict[str, Damage] = {
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest empty": manifest(b""),
    "manifest cut short": lambda folder: os.truncate(folder / "manifest.json", 40),
    "manifest not JSON": manifest(b"files: none"),
    "manifest a list": manifest(b"[]"),
    "manifest of no files": manifest(b'{"files": {}}'),
    "manifest 100,000 deep": manifest(b"[" * 100_000 + b"]" * 100_000),
    "manifest 30,000 deep": manifest(b'{"files":' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    "manifest not UTF-8": manifest(b'{"files": {"state.pt\xff": {}}}'),
    "manifest with an integer of 5,000 digits": manifest(
        b'{"files": {"state.pt": {"bytes": ' + b"9" * 5000 + b', "sha256": "' + b"0" * 64 + b'"}}}'
    ),
    "manifest of gigabytes": lambda folder: os.truncate(folder / "manifest.json", 8 << 30),
    "manifest a folder": replaced("manifest.json", Path.mkdir),
    "manifest a link to itself": replaced("manifest.json", loop),
    "manifest a pipe": replaced("manifest.json", os.mkfifo),
    "a name with NUL": listed("a\0b"),
    "a name too long": listed("a" * 300),
    "a name above": listed("../config.json"),
    "an absolute name": listed("/etc/hostname"),
    "an unexpected name": listed("run.sh"),
    "a surrogate in a name": manifest(b'{"files": {"\\ud800": {}}}'),
    "a file missing": lambda folder: (folder / "state.pt").unlink(),
    "a file listed and not there": listed("extra.json"),
    "a file cut short": content_of(lambda raw: raw[:-1]),
    "a file empty": content_of(lambda raw: b""),
    "a file grown": content_of(lambda raw: raw + b"x"),
    "a byte changed": content_of(lambda raw: raw[:500] + b"X" + raw[501:]),
    "a folder for a file": replaced("state.pt", Path.mkdir),
    "a link to itself for a file": replaced("state.pt", loop),
    "a dangling link for a file": replaced("state.pt", dangling),
    "a pipe for a file": replaced("state.pt", os.mkfifo),
    "a device for a file": replaced("state.pt", lambda place: place.symlink_to("/dev/zero")),
    "a file for the folder": replaced("", Path.touch),
    "a dangling link for the folder": replaced("", dangling),
    "a link to itself for the folder": replaced("", loop),
    "a pipe for the folder": replaced("", os.mkfifo),
}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for."""

    def sleep(seconds: float) -> None:
        raise AssertionError("it was taken for an outage")

    monkeypatch.setattr(checkpoints.time, "sleep", sleep)


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_the_damage_the_one_before_is_taken_at_once(tmp_path: Path, at_once: None, damage: str) -> None:
    home, trial = outside(tmp_path), tmp_path / "trial"
    before = tree(home)
    writes = Checkpoints(str(trial))
    older, newest = (writes.save(round_, writer(text)) for round_, text in ((1, "old"), (2, "new")))
    DAMAGES[damage](Path(newest))
    loaded: list[bytes] = []
    again = Checkpoints(str(trial), patience=600)
    again.look()
    found, faults = again.restore([newest, older], content(loaded), adopted(True, []))
    assert (found, loaded, len(faults), again.waited) == (older, [b"old"], 1, [])
    assert faults[0].startswith(f"the checkpoint {newest} is ")
    assert tree(home) == before
    # What is damaged counts for nothing: after the next round there are two whole ones again.
    repeated = again.save(2, writer("two"))
    assert Checkpoints(str(trial)).restore([repeated, older], content(loaded)) == (repeated, [])


@pytest.mark.parametrize(
    "place",
    ["", "/", "\0", "/a\0b/round_000002-0123abcd", "no-such-scheme://x/y", "s3://", "/" + "a" * 300, "/a" * 3000],
)
def test_a_recorded_place_that_can_be_none_is_passed_over(tmp_path: Path, at_once: None, place: str) -> None:
    older = Checkpoints(str(tmp_path)).save(1, writer("old"))
    loaded: list[bytes] = []
    found, faults = Checkpoints(str(tmp_path), patience=600).restore([place, older], content(loaded))
    assert (found, loaded, len(faults)) == (older, [b"old"], 1)


@pytest.mark.parametrize("name", ["manifest.json", "state.pt", ""])
def test_a_file_that_may_not_be_read_is_passed_over(at_once: None, name: str) -> None:
    """The rights of one file, or of one folder, are wrong."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        user = os.geteuid()
        os.seteuid(user or 65534)  # root may read everything
        try:
            writes = Checkpoints(f"{folder}/trial")
            older, newest = (writes.save(round_, writer(text)) for round_, text in ((1, "old"), (2, "new")))
            os.chmod(f"{newest}/{name}", 0)
            loaded: list[bytes] = []
            found, _ = Checkpoints(f"{folder}/trial", patience=600).restore([newest, older], content(loaded))
            assert (found, loaded) == (older, [b"old"])
        finally:
            os.seteuid(user)


def test_a_disk_that_fails_is_waited_for_and_is_no_damage(tmp_path: Path) -> None:
    """The first page of a process's own memory cannot be read: a real EIO."""
    trial = Checkpoints(str(tmp_path))
    older, newest = trial.save(1, writer("old")), Path(trial.save(2, lambda folder: (folder / "state.pt").touch()))
    (newest / "state.pt").unlink()
    (newest / "state.pt").symlink_to("/proc/self/mem")
    loaded: list[bytes] = []
    with pytest.raises(StorageAway, match=r"Input/output error.*\(tried for 0.1 s\)"):
        Checkpoints(str(tmp_path), patience=0.1).restore([str(newest), older], content(loaded))
    assert loaded == []


def test_a_store_that_refuses_connections_is_waited_for_and_is_no_damage(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(monkeypatch)
    place = f"s3://studies/{tmp_path.name}"
    saved = Checkpoints(place).save(1, writer("one"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageAway, match=r"cannot read s3://.*\(tried for 0.1 s\)"):
        Checkpoints(place, patience=0.1).restore([saved], content([]))


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), EOFError(), RuntimeError("sizes do not fit")])
def test_what_is_whole_and_does_not_load_gives_way(place: str, error: Exception) -> None:
    writes = Checkpoints(place)
    older, newest = writes.save(1, writer("old")), writes.save(2, writer("new"))

    def load(folder: Path) -> None:
        if (folder / "state.pt").read_bytes().startswith(b"new"):
            raise error

    found, faults = Checkpoints(place).restore([newest, older], load)
    assert found == older
    assert faults[0].startswith(f"the checkpoint {newest} is damaged: ")


def test_a_device_that_is_full_is_no_damage(tmp_path: Path) -> None:
    saved = Checkpoints(str(tmp_path)).save(1, writer("old"))

    def load(folder: Path) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Checkpoints(str(tmp_path)).restore([saved], load)


# Single files


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    home, study = outside(tmp_path), tmp_path / "study"
    before = tree(home)
    study.mkdir()
    (study / "reference.npz").symlink_to(home / "thesis.txt")
    (study / f"reference.npz.{os.getpid()}.part").symlink_to(home / "thesis.txt")  # a draft's name that can be guessed
    write_file(str(study), "reference.npz", b"new")
    assert read_file(str(study), "reference.npz") == b"new"
    assert tree(home) == before


def test_only_old_temporary_files_of_our_own_are_cleared(tmp_path: Path) -> None:
    token, old = "0123456789abcdef" * 2, time.time() - 30 * 24 * 3600
    ours = [f".probe-{token}", f".report.md.{token}.part"]
    others = [f".probe-{token[1:]}", "film.part", ".hidden.1234.part", f"x.{token}.part", f".probe-{token[:-1]}x"]
    for name in [*ours, *others]:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    new = f".study.md.{token}.part"
    (tmp_path / new).touch()
    (tmp_path / f".probe-{token[::-1]}").symlink_to(tmp_path / others[0])
    write_file(str(tmp_path), "report.md", b"new")
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {*others, new, f".probe-{token[::-1]}", "report.md"}


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda place: place.symlink_to("/dev/zero")])
def test_something_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path, make: Damage) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is not a file"):
        read_file(str(tmp_path), "config.json")
