"""Writes the files of pinned packages with their hashes: `python .ci/lock.py`, again after a change of pyproject.toml.

Versions stay as they are where they can; `--upgrade-package NAME` or `--upgrade` (any flag of `uv pip compile`) moves
them. Needs uv (`pip install uv`). Every file holds for Linux, macOS and Windows, and for each Python from 3.11 on.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "mlflow/requirements.txt": "What the tracking server needs.",
    "requirements.txt": "What the studies need, servers and clusters included.",
    "requirements-dev.txt": "What tests and checks need.",
    "requirements-cuda.txt": "What torch needs besides, where its wheel is one with CUDA (`pip check` says so).",
    "study/clusters/requirements.txt": "What a machine needs that calls `ray up`.",
}
CPU_FILE = "requirements-cpu.txt"
CPU_WHAT = "torch without CUDA, for machines where pip has been told of a place that has it."
HOLDS = {"requirements.txt": "mlflow/requirements.txt", "requirements-dev.txt": "requirements.txt"}
"""File → a file that it takes in, so that a package stands in one of them only."""
CLOUDS = ["ray[tune]", "boto3", "PyYAML", "google-api-python-client", "google-auth-httplib2"]
CPU_BUILDS = {
    "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl": (
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
    ),
}
"""File → sha256 of wheels that are not on the package index. Their version counts as the one without `+cpu`."""
CUDA = re.compile(r"nvidia-|cuda-|triton$")
BREAK = " \\\n    "
HEAD = """\
# {what}
# Made by .ci/lock.py. What is not listed with its hash is not installed, nor what would have to be built first.
--require-hashes
--only-binary :all:
"""


def main(flags: list[str]) -> None:
    """Resolves all packages at once, then writes each to the files that need it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras: dict[str, list[str]] = project["project"]["optional-dependencies"]
    product = [*project["project"]["dependencies"], *extras["cluster"], *project["build-system"]["requires"]]
    dev = [*product, *(line for line in extras["dev"] if not line.startswith(project["project"]["name"]))]
    with tempfile.TemporaryDirectory() as folder:
        everything = Path(folder) / "everything.txt"
        # uv keeps the versions that its output file already has.
        everything.write_text("".join("".join(blocks(ROOT / file).values()) for file in FILES))
        resolve([*dev, *CLOUDS], "--generate-hashes", "--output-file", str(everything), *flags)
        packages = blocks(everything)

        def needed(roots: Iterable[str]) -> set[str]:
            return set(blocks_of(resolve(roots, "--constraints", str(everything))))

        cuda = {name for name in packages if CUDA.match(name)}
        listed = {
            "mlflow/requirements.txt": needed(extras["cluster"]),
            "requirements.txt": needed(product) - cuda,
            "requirements-dev.txt": needed(dev) - cuda,
            "requirements-cuda.txt": cuda,
            "study/clusters/requirements.txt": needed(CLOUDS),
        }
    cpu: dict[str, list[str]] = {}
    for file, sha256 in CPU_BUILDS.items():
        name, version = file.split("-")[:2]
        line, *hashes = packages[name].strip().split(BREAK)
        if line.split()[0] != f"{name}=={version.removesuffix('+cpu')}":
            sys.exit(f"CPU_BUILDS has {name} {version}, and everything else {line}: name its wheel and sha256 anew")
        packages[name] = BREAK.join([line, *sorted({*hashes, f"--hash=sha256:{sha256}"})]) + "\n"
        cpu.setdefault(f"{name}=={version}", []).append(f"--hash=sha256:{sha256}")
    (ROOT / CPU_FILE).write_text(
        HEAD.format(what=CPU_WHAT) + "".join(f"{BREAK.join([line, *hashes])}\n" for line, hashes in cpu.items())
    )
    for file, what in FILES.items():
        head, own = HEAD.format(what=what), listed[file]
        if held := HOLDS.get(file):
            head += f"-r {held}\n"
            own = own - listed[held]
        (ROOT / file).write_text(head + "".join(packages[name] for name in sorted(own)))


def resolve(roots: Iterable[str], *flags: str) -> str:
    """The packages that some requirements come to, as uv writes them."""
    command = ["uv", "pip", "compile", "-", "--universal", "--python-version", "3.11", "--quiet", *flags]
    command += ["--no-header", "--no-annotate"]
    return subprocess.run(command, input="\n".join(roots), stdout=subprocess.PIPE, text=True, check=True).stdout


def blocks(file: Path) -> dict[str, str]:
    """The packages of a file of requirements; none of a file that does not exist yet."""
    return blocks_of(file.read_text()) if file.exists() else {}


def blocks_of(text: str) -> dict[str, str]:
    """Package → its lines: name, version, where it holds, hashes."""
    found = re.findall(r"^(?:[\w.-]+)==(?:.*\\\n)*.*\n", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", block.partition("==")[0]).lower(): block for block in found}


if __name__ == "__main__":
    main(sys.argv[1:])
