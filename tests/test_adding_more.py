"""The page on adding an attack, a data set and a score is true: a copy of the code is changed as it says, and runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adding_more.md").read_text()
PACKAGES = ("ardmvc_core", "trainables", "study", "search_spaces")
STUDY = """
name: moons
trial:
  model: {name: comvc, encoder: dense}
  dataset: {name: two_moons}
  epochs: 2
  batch_size: 20
  evaluation: {tier: tune, samples: 30, probe_samples: 10}
objective: {metric: robust/fmi, mode: max}
limits: {trials: 1}
"""


def changes() -> list[tuple[str, str, str, list[str]]]:
    """For each example: its file, its text, the file of the line, and the lines of the diff."""
    examples = re.findall(r"`(ardmvc_core/[\w/]+\.py)`:\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = re.findall(r"in `(ardmvc_core/[\w/]+\.py)`, with its import:\n\n```diff\n(.*?)```", PAGE, flags=re.DOTALL)
    return [(file, text, place, diff.splitlines()) for (file, text), (place, diff) in zip(examples, lines, strict=True)]


def apply(text: str, diff: list[str]) -> str:
    """The text with the import of the diff and its one line, which follows the diff's last line of context."""
    (new_import, line), context = ([d[1:] for d in diff if d.startswith("+")], [d[1:] for d in diff if d[0] != "+"])
    block = "\n".join(context) + "\n"
    assert text.count(block) == 1
    at = text.index("\nfrom ardmvc_core.") if "\nfrom ardmvc_core." in text else text.index("\nimport numpy")
    return f"{text[:at]}\n{new_import}{text[at:]}".replace(block, f"{block}{line}\n")


@pytest.fixture(scope="module")
def changed_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, changed as the page says and in no other way."""
    tree = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text, place, diff in changes():
        assert not (ROOT / file).exists()
        (tree / file).write_text(text)
        (tree / place).write_text(apply((tree / place).read_text(), diff))
    return tree


def run_in(tree: Path, *command: str) -> str:
    """What a command of the changed tree prints."""
    done = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_three_examples_of_one_file_and_one_line() -> None:
    assert [file.rsplit("/", 1)[1] for file, *_ in changes()] == ["corners.py", "two_moons.py", "fowlkes_mallows.py"]
    for file, _, _, diff in changes():
        added = [line for line in diff if line.startswith("+")]
        assert len(added) == 2
        assert added[0].startswith(f"+from {file.removesuffix('.py').replace('/', '.')} import ")


def test_a_study_accepts_the_new_names(changed_tree: Path) -> None:
    (changed_tree / "moons.yaml").write_text(STUDY)
    shown = run_in(changed_tree, "-m", "study.sweep", "moons.yaml", "--dry-run")
    assert "name: two_moons" in shown
    assert "metric: robust/fmi" in shown


def test_a_trial_reports_them(changed_tree: Path) -> None:
    code = (
        "import json, yaml, trainables.config\n"
        "from trainables.trial import Trial\n"
        f"trial = yaml.safe_load({STUDY!r})['trial'] | {{'evaluate_every': 2}}\n"
        "print(json.dumps(Trial(trainables.config.TrialConfig.model_validate(trial)).run_round()))\n"
    )
    report = json.loads(run_in(changed_tree, "-c", code))
    assert report["done"] is True
    for metric in ("clean/fmi", "robust/fmi", "corners/fmi", "corners/acc"):
        assert 0 <= report[metric] <= 1
    assert report["corners/new"] <= report["robust/flip"]
