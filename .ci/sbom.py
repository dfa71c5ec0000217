"""Writes the list of everything that may be installed, as CycloneDX 1.6: `python .ci/sbom.py dist/sbom.json`.

Names, versions and hashes are those of the files of pinned packages, licences those of docs/licences.md. `python
.ci/sbom.py --licences` writes that table anew from what is installed; rows of packages for other machines stay.
"""

import importlib.metadata
import json
import re
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCOPES = {
    "mlflow/requirements.txt": "required",
    "requirements.txt": "required",
    "requirements-cuda.txt": "optional",
    "requirements-dev.txt": "excluded",
    "study/clusters/requirements.txt": "excluded",
}
"""File of pinned packages → what its packages are to the product; the first that names a package counts."""
TABLE = ROOT / "docs" / "licences.md"
HEAD = """\
# Licences

What the packages that may be installed say of their licence. NVIDIA's are installed only where torch's wheel has
CUDA in it. `python .ci/sbom.py --licences` writes this table, `make sbom` a list for machines, with hashes.

| package | licence |
|---|---|
"""
SPDX = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*")


def pinned() -> dict[str, tuple[str, str, list[str]]]:
    """Package → scope, version, and sha256 of each of its files."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    for file, scope in SCOPES.items():
        for name, version, rest in re.findall(r"^([\w.-]+)==(\S+)((?:.*\\\n)*.*)", (ROOT / file).read_text(), re.M):
            found.setdefault(normal(name), (scope, version, re.findall(r"--hash=sha256:(\w+)", rest)))
    return dict(sorted(found.items()))


def normal(name: str) -> str:
    """A package name in the one spelling that all of them compare equal in."""
    return re.sub(r"[-_.]+", "-", name).lower()


def table() -> dict[str, str]:
    """Package → licence, as docs/licences.md has them."""
    return dict(re.findall(r"^\| (\S+) \| (.+) \|$", TABLE.read_text(), re.MULTILINE)) if TABLE.exists() else {}


def stated_licence(name: str) -> str | None:
    """What an installed package says of its licence, the most exact of three places; None if it is not installed."""
    try:
        facts = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    text = facts.get("License") or ""
    classes = [each.rpartition(" :: ")[2] for each in facts.get_all("Classifier") or [] if each.startswith("License")]
    short = text if re.fullmatch(r"[\w .+-]{2,40}", text) and not text.startswith("Copyright") else ""
    return facts.get("License-Expression") or short or ", ".join(each for each in classes if each != "OSI Approved")


def write_table() -> int:
    """Writes docs/licences.md. Returns: 0, or 2 if a package's licence is to be found out by hand."""
    old, rows, unknown = table(), [], []
    for name in pinned():
        licence = stated_licence(name) or old.get(name)
        rows.append(f"| {name} | {licence or 'unknown'} |\n")
        unknown += [name] if licence in (None, "", "unknown") else []
    TABLE.write_text(HEAD + "".join(rows))
    for name in unknown:
        print(f"{name}: not installed, or says nothing of its licence; write it into the table", file=sys.stderr)
    return 2 if unknown else 0


def bill() -> dict[str, Any]:
    """The list in CycloneDX's form, the same for the same files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    licences = table()
    parts = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "purl": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "scope": scope,
            "licenses": [licence_entry(licences[name])],
            "hashes": [{"alg": "SHA-256", "content": each} for each in hashes],
        }
        for name, (scope, version, hashes) in pinned().items()
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(parts)).urn,
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": project["name"],
                "name": project["name"],
                "version": project["version"],
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": parts,
    }


def licence_entry(licence: str) -> dict[str, Any]:
    """An expression of SPDX's where the words are one, else a name."""
    if SPDX.fullmatch(licence) and re.search(r"[-\d]|^MIT$", licence):
        return {"expression": licence}
    return {"license": {"name": licence}}


def main(arguments: list[str]) -> int:
    """Returns: the exit code."""
    if arguments == ["--licences"]:
        return write_table()
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python .ci/sbom.py FILE | --licences", file=sys.stderr)
        return 2
    file = Path(arguments[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(bill(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
