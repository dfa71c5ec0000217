"""Every command that a page names is one: its flags and their values are taken, and a study that it names is there.

What the commands do is tested elsewhere; here none is run.
"""

import re
import shlex
from importlib import import_module, resources
from pathlib import Path

import pytest

from study.main import COMMANDS
from study.spec.study_spec import load_spec

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
COMMAND = re.compile(rf"(?:python -m study\.|\bardmvc )({'|'.join(COMMANDS)})\b((?:[^\n`;&')\\]|\\\||\\\n)*)")
STUDIES = {entry.name for entry in resources.files("search_spaces").iterdir() if entry.name.endswith(".yaml")}


def commands() -> list[tuple[str, str, str]]:
    """Page, command and what follows it; the first of alternatives, without what is optional."""
    found = []
    for page in PAGES:
        for name, rest in COMMAND.findall(page.read_text()):
            line = re.sub(r"\[[^\]]*\]", "", re.sub(r"\$\(.*", "NOW", rest).replace("\\|", "|").replace("\\\n", " "))
            line = re.split(r" \| |[.,:]$|[|](?=\s|$)|  | > ", line.replace("$kind", "csv").replace("…", "X"))[0]
            found.append((page.name, name, re.sub(r"\|[\w|]*", "", line).strip()))
    return sorted(set(found))


@pytest.mark.parametrize(("page", "name", "rest"), commands())
def test_a_command_of_a_page_is_taken(
    page: str, name: str, rest: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(rest)
    if not words:
        return  # the command's name alone
    try:
        given = import_module(f"study.{name}").parser().parse_args(words)
    except SystemExit:
        pytest.fail(f"{page}: {name} {rest}\n{capsys.readouterr().err}")
    if name == "sweep" and given.file.endswith(".yaml"):
        assert given.file in STUDIES
        assert load_spec(given.file).name


def test_pages_name_commands() -> None:
    assert {"sweep", "confirm", "table1", "evaluate", "compare", "control", "report", "ui"} <= {
        c[1] for c in commands()
    }
    assert len(commands()) > 30
