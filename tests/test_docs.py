"""The page on adding a model is true: its example keeps the contract, and one file and one line are all it takes."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import model_contract as contract
import pytest
from model_contract import CASE_CHECKS, CASES, LARGE_IMAGES, PLANTED, PLANTED_CHECKS

from ardmvc_core.models import MODELS
from ardmvc_core.types import Method

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adding_a_model.md").read_text()
PACKAGES = ("ardmvc_core", "trainables", "study", "search_spaces")
NAME = "concat_ddc"
LINE = '    "concat_ddc": CONCAT_DDC,'
IMPORT = "from ardmvc_core.models.concat_ddc import CONCAT_DDC"


def blocks(language: str) -> list[str]:
    """The page's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tenth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Method]:
    """The example as a module, its method in MODELS."""
    file = tmp_path_factory.mktemp("page") / f"{NAME}.py"
    file.write_text(blocks("python")[0])
    spec = importlib.util.spec_from_file_location(NAME, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, NAME, module)
        spec.loader.exec_module(module)
        patch.setitem(MODELS, NAME, module.CONCAT_DDC)
        yield MODELS[NAME]


def test_the_example_is_one_short_file() -> None:
    (example,) = blocks("python")
    assert len(example.splitlines()) <= 40
    assert f"`ardmvc_core/models/{NAME}.py`" in PAGE


def test_the_line_is_one_line_and_its_import() -> None:
    (change,) = blocks("diff")
    added = [line[1:] for line in change.splitlines() if line.startswith("+")]
    assert added == [IMPORT, LINE]


def test_the_example_configures_itself(tenth: Method) -> None:
    contract.check_config(NAME, tenth)


@pytest.mark.parametrize("check", CASE_CHECKS)
@pytest.mark.parametrize("case", [*CASES.values(), LARGE_IMAGES], ids=[*CASES, "large images"])
def test_the_example_copes_with_every_case(tenth: Method, case: contract.Case, check: Callable[..., None]) -> None:
    check(tenth, tenth.config(), case)


@pytest.mark.parametrize("check", PLANTED_CHECKS)
@pytest.mark.parametrize("case", PLANTED)
def test_the_example_finds_planted_clusters(tenth: Method, case: str, check: Callable[..., None]) -> None:
    check(tenth, tenth.config(), PLANTED[case])


@pytest.mark.parametrize("check", [contract.check_resume, contract.check_calibration, contract.check_evaluation])
def test_the_example_gets_checkpoints_and_scores(tenth: Method, check: Callable[..., None]) -> None:
    check(tenth, tenth.config(), CASES["three vectors, K 50"])


@pytest.fixture(scope="module")
def changed_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, changed as the page says and in no other way."""
    tree = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "ardmvc_core" / "models" / f"{NAME}.py").write_text(blocks("python")[0])
    table = tree / "ardmvc_core" / "models" / "__init__.py"
    opening = "MODELS: dict[str, Method] = {\n"
    assert f" {opening}" in blocks("diff")[0]
    assert opening in table.read_text()
    table.write_text(table.read_text().replace(opening, f"{IMPORT}\n\n{opening}{LINE}\n"))
    return tree


def run_in(tree: Path, *command: str) -> str:
    """What a command of the changed tree prints."""
    done = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_study_on_the_page_is_accepted(changed_tree: Path) -> None:
    (study,) = blocks("yaml")
    (changed_tree / "page.yaml").write_text(study)
    shown = run_in(changed_tree, "-m", "study.sweep", "page.yaml", "--dry-run")
    assert f"name: {NAME}" in shown
    assert "model.learning_rate" in shown


def test_a_trial_of_the_example_runs_to_its_end(changed_tree: Path) -> None:
    code = (
        "import json, ardmvc_core.models, trainables.config\n"
        "from trainables.trial import Trial\n"
        "gan = {'epochs': 1, 'batch_size': 5}\n"
        "config = {\n"
        "    'model': {'name': 'concat_ddc', 'learning_rate': 0.002},\n"
        "    'dataset': {'name': 'noisy_digits', 'classes': [0, 1, 2], 'samples': 60},\n"
        "    'epochs': 1, 'batch_size': 10,\n"
        "    'evaluation': {'samples': 12, 'tier': 'probe'},\n"
        "}\n"
        "report = Trial(trainables.config.TrialConfig.model_validate(config)).run_round()\n"
        "print(json.dumps([ardmvc_core.models.__file__, report]))\n"
    )
    file, report = json.loads(run_in(changed_tree, "-c", code))
    assert Path(file).is_relative_to(changed_tree.resolve())
    assert report["done"] is True
    assert {"loss/ddc1", "loss/ddc2", "loss/ddc3"} <= set(report)
    assert 0 <= report["robust/acc"] <= report["clean/acc"] <= 1


def test_files_and_names_on_the_page_exist() -> None:
    for file in re.findall(r"`((?:ardmvc_core|tests|study)/[\w/]+(?:\.py|/))`", PAGE):
        assert (ROOT / file).exists() or file == f"ardmvc_core/models/{NAME}.py", file
    for file in re.findall(r"`(\w+\.py)`", PAGE):
        assert (ROOT / "ardmvc_core" / "models" / file).exists(), file
    for file in re.findall(r"tests/\S+\.py", PAGE):
        assert (ROOT / file).exists(), file
