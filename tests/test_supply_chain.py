"""What is installed: every package by its hash and nothing that has to be built; a licence for each, and one list."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CHAIN = ("mlflow/requirements.txt", "requirements.txt", "requirements-dev.txt")
"""Each file takes in the one before."""
FILES = (*CHAIN, "requirements-cuda.txt", "requirements-cpu.txt", "study/clusters/requirements.txt")
ENTRY = re.compile(r"([\w.-]+)==(\S+)(?: ; [^\\]+?)? \\\n((?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")
Pinned = dict[str, tuple[str, frozenset[str]]]


def pinned(file: str) -> Pinned:
    """Package → version and hashes."""
    found = ENTRY.findall((ROOT / file).read_text())
    return {
        canonicalize_name(name): (version, frozenset(re.findall(r"sha256:(\w+)", hashes)))
        for name, version, hashes in found
    }


@lru_cache
def everything() -> Pinned:
    return {name: entry for file in FILES if "cpu" not in file for name, entry in pinned(file).items()}


def test_every_file_of_pinned_packages_is_known_here() -> None:
    listed = subprocess.run(["git", "ls-files", "*requirements*.txt"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert set(listed.stdout.split()) == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_pinned_packages_lets_nothing_in_without_a_hash(file: str) -> None:
    text = (ROOT / file).read_text()
    rest = [line for line in ENTRY.sub("", text).splitlines() if not line.startswith("#")]
    taken_in = {"requirements.txt": ["-r mlflow/requirements.txt"], "requirements-dev.txt": ["-r requirements.txt"]}
    assert rest == ["--require-hashes", "--only-binary :all:", *taken_in.get(file, [])]
    assert "://" not in text
    assert "file:" not in text


def test_a_package_has_one_version_and_the_same_hashes_everywhere() -> None:
    for file in FILES:
        for name, (version, hashes) in pinned(file).items():
            known, all_hashes = everything()[name]
            assert version.removesuffix("+cpu") == known, f"{file}: {name}"
            assert hashes <= all_hashes if "cpu" in file else hashes == all_hashes, f"{file}: {name}"
    for first, second in pairwise(CHAIN):
        assert not pinned(first).keys() & pinned(second).keys()


def test_what_pyproject_asks_for_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    asked += [line for extra in project["project"]["optional-dependencies"].values() for line in extra]
    for line in asked:
        requirement = Requirement(line)
        if requirement.name != project["project"]["name"]:
            version, _ = everything()[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{line} is pinned at {version}"


def test_torch_stands_among_the_others_with_every_platforms_wheel() -> None:
    _, hashes = pinned("requirements.txt")["torch"]
    assert pinned("requirements-cpu.txt")["torch"][1] < hashes
    assert len(hashes) >= 20  # Linux, macOS and Windows, for each Python from 3.11 on
    assert not [name for name in pinned("requirements.txt") if name.startswith("nvidia-")]


# Installing, with the real pip and no index.


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def checkout(tmp_path: Path, environment: Path) -> Path:
    """The Makefile, with one package to install: the wheel of `tiny`, which lies in the folder `wheels`."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").symlink_to(environment)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "fact = 1\n")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    head = "".join(f"{line}\n" for line in (ROOT / "requirements.txt").read_text().splitlines()[2:4])
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tmp_path / "requirements.txt").write_text(f"{head}tiny==1.0 --hash=sha256:{sha256}\n")
    (tmp_path / "requirements-cpu.txt").write_text(f"{head}torch==0+cpu --hash=sha256:{'0' * 64}\n")
    for name in ("requirements-cuda.txt", "requirements-dev.txt", "mlflow/requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(head)
    (tmp_path / "pyproject.toml").write_text("[build-system]\nrequires = []\nbuild-backend = 'none'\n")
    return tmp_path


def install(checkout: Path) -> "subprocess.CompletedProcess[str]":
    """`make .venv/.user` in an environment that is there already, with nothing but the folder `wheels` to be had.

    What pip installs comes to the folder `installed`.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHONPATH"))}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout / "wheels")}
    env |= {"PIP_TARGET": str(checkout / "installed")}
    return subprocess.run(
        ["make", ".venv/.user", "PYTHON=true"], cwd=checkout, env=env, capture_output=True, text=True, check=False
    )


def has_tiny(checkout: Path) -> bool:
    return (checkout / "installed" / "tiny.py").exists()


def test_make_installs_what_has_its_hash_and_then_the_project(checkout: Path) -> None:
    done = install(checkout)
    assert has_tiny(checkout), done.stderr
    assert "BackendUnavailable" in done.stderr  # the project, which here has nothing to be built with
    assert not (checkout / ".venv" / ".user").exists()


def test_make_refuses_a_wheel_that_was_changed(checkout: Path) -> None:
    (wheel,) = (checkout / "wheels").iterdir()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("extra.py", "")
    done = install(checkout)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not has_tiny(checkout)


def test_make_builds_nothing(checkout: Path) -> None:
    """A package as source would run its own code, and bring what it is built with, without any hash."""
    (wheel,) = (checkout / "wheels").iterdir()
    wheel.unlink()
    source = checkout / "tiny-1.0"
    source.mkdir()
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    (source / "setup.py").write_text("raise SystemExit('was run')\n")
    archive = wheel.with_name("tiny-1.0.tar.gz")
    with tarfile.open(archive, "w:gz") as file:
        file.add(source, "tiny-1.0")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    file = checkout / "requirements.txt"
    file.write_text(re.sub("sha256:.*", f"sha256:{sha256}", file.read_text()))
    done = install(checkout)
    assert done.returncode != 0
    assert "No matching distribution found for tiny==1.0" in done.stderr
    assert "was run" not in done.stderr


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("sweep", ["requirements-cpu.txt", "requirements.txt", "requirements-cuda.txt"]),
        ("test", ["requirements-cpu.txt", "requirements.txt", "requirements-cuda.txt", "requirements-dev.txt"]),
    ],
)
def test_make_installs_what_the_target_needs_and_only_torch_comes_from_another_index(
    target: str, files: list[str], tmp_path: Path
) -> None:
    for name in ("Makefile", *FILES, "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    said = subprocess.run(
        ["make", "--dry-run", target, "TORCH_INDEX=https://torch.example/cpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    installs = [line for line in said.splitlines() if "-r requirements" in line]
    assert [line.partition("-r ")[2].split()[0] for line in installs] == files
    assert ["--index-url https://torch.example/cpu" in line for line in installs] == [True] + [False] * (len(files) - 1)


# Licences and the list for machines.


def test_every_pinned_package_has_a_licence() -> None:
    table = dict(re.findall(r"^\| (\S+) \| (.+) \|$", (ROOT / "docs" / "licences.md").read_text(), re.MULTILINE))
    del table["package"]
    assert table.keys() == everything().keys()
    assert [name for name, licence in table.items() if licence in ("unknown", "None", "")] == []


def test_the_list_for_machines_holds_every_pinned_package(tmp_path: Path) -> None:
    file = tmp_path / "new" / "sbom.json"
    for _ in range(2):
        subprocess.run([sys.executable, ".ci/sbom.py", str(file)], cwd=ROOT, check=True)
        first = file.read_text()
    assert file.read_text() == first
    bill = json.loads(first)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    found = {part["name"]: part for part in bill["components"]}
    assert len(found) == len(bill["components"])
    assert {
        name: (part["version"], frozenset(each["content"] for each in part["hashes"])) for name, part in found.items()
    } == everything()
    assert found["torch"]["purl"] == f"pkg:pypi/torch@{everything()['torch'][0]}"
    assert found["numpy"]["licenses"] == [{"expression": "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0"}]
    scopes = {name: found[name]["scope"] for name in ("torch", "mlflow", "nvidia-cublas", "pytest")}
    assert scopes == {"torch": "required", "mlflow": "required", "nvidia-cublas": "optional", "pytest": "excluded"}
    for part in found.values():
        (licence,) = part["licenses"]
        assert licence.get("expression") or licence["license"]["name"]
