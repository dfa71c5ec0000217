"""Where the files of a data set are: a given folder, ARDMVC_DATA, Debian's package, the cache, or the network."""

import os
from dataclasses import dataclass
from pathlib import Path

from ardmvc_core.data.dataset import DataError
from ardmvc_core.data.reading import reading, shown_path
from ardmvc_core.places import expanded

VARIABLE = "ARDMVC_DATA"

_DEBIAN = Path("/usr/share/datasets")
"""Holds fashion-mnist/ when the package dataset-fashion-mnist is installed."""

_TIMEOUT = 30
"""Seconds that a server may stay silent."""


@dataclass(frozen=True)
class _Collection:
    urls: tuple[str, ...]
    """Folders that hold the .gz files, tried in this order."""
    sha256: dict[str, str]
    """Of each .gz file, under its name without .gz; training files first, images before labels."""
    contents: dict[str, str]
    """sha256 of each file once it is unpacked."""


_SHAPES: dict[str, tuple[int, ...]] = {
    "train-images-idx3-ubyte": (60000, 28, 28),
    "train-labels-idx1-ubyte": (60000,),
    "t10k-images-idx3-ubyte": (10000, 28, 28),
    "t10k-labels-idx1-ubyte": (10000,),
}
"""Of the published files, the same in every collection."""

COLLECTIONS: dict[str, _Collection] = {
    "mnist": _Collection(
        urls=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256={
            "train-images-idx3-ubyte": "db8f937d487057fb14a9f0fbe97f0bc8d311ab41b750d41e1ff37c43b9e55e19",
            "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        contents={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": _Collection(
        urls=(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        ),
        sha256={
            "train-images-idx3-ubyte": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "train-labels-idx1-ubyte": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            "t10k-images-idx3-ubyte": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            "t10k-labels-idx1-ubyte": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        },
        contents={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
}


def idx_files(collection: str, root: str | None = None) -> tuple[Path, Path, Path, Path]:
    """Finds the four IDX files of a collection, compressed or plain, and downloads them where nothing says they exist.

    Args:   collection: key of `COLLECTIONS`. root: the parent of `<collection>/` or the folder with the files; None:
        `<collection>/` under ARDMVC_DATA, then Debian's, then the cache. Nothing is downloaded when a folder was
        given, by `root` or by the variable: a wrong path is a slip to report.
    Returns: training images, training labels, test images, test labels.
    Raises: DataError naming the missing files, the folders looked in and ARDMVC_DATA.
    """
    variable = os.environ.get(VARIABLE)
    looked: list[Path] = []
    if root is not None:
        folder = _folder(root)
        looked.append(folder / collection)
        # The files of all collections have the same names: those of another one must not pass for this one.
        if folder.name not in COLLECTIONS.keys() - {collection}:
            looked.append(folder)
    else:
        if variable:
            looked.append(_folder(variable) / collection)
        looked.append(_DEBIAN / collection)
    names = list(COLLECTIONS[collection].sha256)
    found = [{name: _plain_or_gz(folder, name) for name in names} for folder in looked]
    # A folder with some of the files is the one that was meant; what it lacks is reported, not looked for elsewhere.
    best = max(found, key=lambda files: sum(path is not None for path in files.values()))
    if any(best.values()) or root is not None or variable:
        missing = [name for name in names if best[name] is None]
        if missing:
            hint = "" if root is not None or any(best.values()) else f" (unset {VARIABLE} to have them downloaded)"
            raise DataError(_not_found(collection, missing, looked, hint))
        first, second, third, fourth = (path for path in best.values() if path is not None)
        return first, second, third, fourth
    return _download(collection, looked)


def content_fault(collection: str, path: Path, shape: tuple[int, ...], sha256: str) -> str | None:
    """What is wrong with what a file of a collection holds; None if it is the published file, or another set's.

    A file of the published shape must be the published file, and no other published file may stand in its place. Files
    of any other shape are taken for a set of the user's own.

    Args: collection: key of `COLLECTIONS`. shape, sha256: of the file once unpacked.
    """
    name = path.name.removesuffix(".gz")
    published = COLLECTIONS[collection].contents[name]
    if sha256 == published:
        return None
    for other, each in COLLECTIONS.items():
        if place := next((place for place, known in each.contents.items() if known == sha256), None):
            return f"{path}: holds {place} of {other}"
    if shape != _SHAPES[name]:
        return None
    return (
        f"{path}: not the published file, though its shape is: once unpacked its sha256 is {sha256}, expected "
        f"{published}; other data belong in an .npz file, or must have another number of samples"
    )


def regdb_folder(root: str | None = None) -> Path:
    """Finds the folder that holds RegDB's `idx/`, `Visible/` and `Thermal/`.

    Args:   root: that folder or its parent; None: the folder in ARDMVC_DATA. RegDB cannot be downloaded: its owners
        give it out after a signed form.
    Raises: DataError naming the missing folder, where it was looked for and ARDMVC_DATA.
    """
    given = root if root is not None else os.environ.get(VARIABLE)
    looked = [_folder(given) / name for name in ("RegDB", "regdb", "")] if given else []
    for folder in looked:
        if os.path.isdir(folder / "idx"):
            return folder
    folders = ", ".join(map(shown_path, looked))
    where = f"looked in {folders}" if looked else f"neither dataset.root nor {VARIABLE} is set"
    raise DataError(
        f"regdb: no folder with idx/, Visible/ and Thermal/ found ({where}); it is handed out by its owners: set "
        f"dataset.root or {VARIABLE} to where it was unpacked"
    )


def _folder(given: str) -> Path:
    with reading(given):
        return Path(expanded(given))


def _plain_or_gz(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if os.path.isfile(path)), None)


def _not_found(collection: str, missing: list[str], looked: list[Path], reason: str = "") -> str:
    folders = " or ".join(map(shown_path, looked))
    return (
        f"{collection}: {', '.join(f'{name}[.gz]' for name in missing)} not found in {folders}"
        f"{reason}; set dataset.root or {VARIABLE} to a folder that holds {collection}/ with its four IDX files"
    )


def _download(collection: str, looked: list[Path]) -> tuple[Path, Path, Path, Path]:
    """Fetches what the cache lacks, checking hashes; `looked` is for the message."""
    try:
        import pooch
    except ImportError:
        names = list(COLLECTIONS[collection].sha256)
        raise DataError(_not_found(collection, names, looked, " (and pooch, which downloads, is missing)")) from None
    cache = Path(pooch.os_cache("ardmvc")) / collection
    paths: list[Path] = []
    for name, sha256 in COLLECTIONS[collection].sha256.items():
        failures = []
        for url in COLLECTIONS[collection].urls:
            try:
                downloader = pooch.HTTPDownloader(timeout=_TIMEOUT)
                fetched = pooch.retrieve(
                    f"{url}{name}.gz", f"sha256:{sha256}", fname=f"{name}.gz", path=cache, downloader=downloader
                )
            # OSError is what no network, no space and no right to write end in; ValueError is a wrong hash.
            except (OSError, ValueError) as error:
                failures.append(f"{url}{name}.gz: {type(error).__name__}")
            else:
                paths.append(Path(fetched))
                break
        else:
            reason = f", and the download failed ({'; '.join(failures)})"
            raise DataError(_not_found(collection, [name], [*looked, cache], reason))
    first, second, third, fourth = paths
    return first, second, third, fourth
