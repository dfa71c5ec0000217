import dataclasses
import functools
import gzip
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ardmvc_core.data import files
from ardmvc_core.data.dataset import DataError

IMAGES = np.zeros((8, 4, 4), dtype=np.uint8)
LABELS = np.arange(8) % 2
NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


@pytest.fixture(autouse=True)
def _nothing_to_find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable, no Debian package, an empty cache and no way out, whatever the machine has."""
    monkeypatch.delenv(files.VARIABLE, raising=False)
    monkeypatch.setattr(files, "_DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_root_may_be_the_folder_or_its_parent(idx_folder: Callable[..., Path], suffix: str) -> None:
    folder = idx_folder(IMAGES, LABELS, suffix=suffix)
    expected = [folder / f"{name}{suffix}" for name in NAMES]
    assert list(files.idx_files("mnist", str(folder))) == expected
    assert list(files.idx_files("mnist", str(folder.parent))) == expected


def test_files_of_another_collection_are_not_taken(
    idx_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = idx_folder(IMAGES, LABELS, "mnist")
    with pytest.raises(DataError, match=r"fashion-mnist: .* not found"):
        files.idx_files("fashion-mnist", str(folder))
    monkeypatch.setenv(files.VARIABLE, str(folder))
    with pytest.raises(DataError, match=r"fashion-mnist: .* not found"):
        files.idx_files("fashion-mnist")


def test_variable_then_debian(idx_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own, debian = idx_folder(IMAGES, LABELS, "mnist"), idx_folder(IMAGES, LABELS, "debian/fashion-mnist", ".gz")
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    assert files.idx_files("mnist")[0].parent == own
    assert files.idx_files("fashion-mnist")[0].parent == debian
    monkeypatch.delenv(files.VARIABLE)
    assert files.idx_files("fashion-mnist")[0].parent == debian


def test_missing_files_of_a_given_root_are_all_named(idx_folder: Callable[..., Path]) -> None:
    folder = idx_folder(IMAGES, LABELS)
    (folder / NAMES[1]).unlink()
    (folder / NAMES[2]).unlink()
    with pytest.raises(DataError) as error:
        files.idx_files("mnist", str(folder.parent))
    for fragment in (NAMES[1], NAMES[2], str(folder), files.VARIABLE, "dataset.root"):
        assert fragment in str(error.value)
    assert NAMES[0] not in str(error.value)


def test_a_variable_that_leads_nowhere_is_reported_and_nothing_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(files.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DataError) as error:
        files.idx_files("mnist")
    for fragment in (*NAMES, str(tmp_path / "nowhere" / "mnist"), f"unset {files.VARIABLE}"):
        assert fragment in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_without_network_the_error_names_file_folder_and_variable(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        files.idx_files("fashion-mnist")
    cache = tmp_path / "cache" / "ardmvc" / "fashion-mnist"
    for fragment in (NAMES[0], str(cache), str(tmp_path / "debian"), files.VARIABLE, "download failed"):
        assert fragment in str(error.value)


@pytest.fixture
def server(
    idx_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serves a small collection as MNIST, its second address first being one that has nothing."""
    folder = idx_folder(IMAGES, LABELS, "served", ".gz")
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{running.server_port}/"
        hashes = {name: hashlib.sha256((folder / f"{name}.gz").read_bytes()).hexdigest() for name in NAMES}
        small = files._Collection(urls=(f"{base}gone/", base), sha256=hashes, contents={})
        monkeypatch.setitem(files.COLLECTIONS, "mnist", small)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield running
        running.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


def test_downloads_once_into_the_cache(server: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "ardmvc" / "mnist"
    found = files.idx_files("mnist")
    assert [path.name for path in found] == [f"{name}.gz" for name in NAMES]
    assert {path.parent for path in found} == {cache}
    assert gzip.decompress(found[1].read_bytes())[8:] == bytes([0, 1, 0, 1, 0, 1])
    server.shutdown()
    assert files.idx_files("mnist") == found


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-1], lambda whole: b"<html>404</html>"])
def test_a_damaged_file_in_the_cache_is_fetched_again_and_never_used(
    server: http.server.ThreadingHTTPServer, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    found = files.idx_files("mnist")
    whole = found[0].read_bytes()
    found[0].write_bytes(damage(whole))
    assert files.idx_files("mnist") == found
    assert found[0].read_bytes() == whole
    found[0].write_bytes(damage(whole))
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=f"{NAMES[0]}.*download failed"):
        files.idx_files("mnist")


def test_a_file_with_another_hash_is_refused(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = files.COLLECTIONS["mnist"]
    wrong = dataclasses.replace(served, sha256={**served.sha256, NAMES[3]: "0" * 64})
    monkeypatch.setitem(files.COLLECTIONS, "mnist", wrong)
    with pytest.raises(DataError, match=f"{NAMES[3]}.*download failed"):
        files.idx_files("mnist")
    assert not (tmp_path / "cache" / "ardmvc" / "mnist" / f"{NAMES[3]}.gz").exists()


def test_known_hashes_are_those_of_the_official_files(data_root: Path) -> None:
    for name, collection in files.COLLECTIONS.items():
        assert list(collection.contents) == list(collection.sha256) == NAMES
        for file, sha256 in collection.sha256.items():
            path = data_root / name / f"{file}.gz"
            if path.exists():
                packed = path.read_bytes()
                assert hashlib.sha256(packed).hexdigest() == sha256
                assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == collection.contents[file]


def test_nothing_is_downloaded_in_plain() -> None:
    for collection in files.COLLECTIONS.values():
        assert [url for url in collection.urls if not url.startswith("https://")] == []


def test_regdb_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"neither dataset.root nor {files.VARIABLE} is set"):
        files.regdb_folder()
    with pytest.raises(DataError, match=str(tmp_path)):
        files.regdb_folder(str(tmp_path))
    (tmp_path / "RegDB" / "idx").mkdir(parents=True)
    assert files.regdb_folder(str(tmp_path)) == tmp_path / "RegDB"
    assert files.regdb_folder(str(tmp_path / "RegDB")) == tmp_path / "RegDB"
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    assert files.regdb_folder() == tmp_path / "RegDB"
