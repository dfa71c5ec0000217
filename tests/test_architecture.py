"""The house rules that no review has to remember: import directions, the folder mlflow/, what the wheel holds."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ardmvc_core", "trainables", "study", "search_spaces")
STANDARD = set(sys.stdlib_module_names)

MAY_IMPORT = {
    "search_spaces": set(),
    "ardmvc_core": {"torch", "numpy", "scipy", "sklearn", "PIL", "pooch", "ardmvc_core"},
    "trainables": {"torch", "numpy", "scipy", "sklearn", "pydantic", "ray", "pyarrow", "ardmvc_core", "trainables"},
    "study": {
        *(
            "torch",
            "numpy",
            "scipy",
            "sklearn",
            "pydantic",
            "pydantic_core",
            "yaml",
            "ray",
            "optuna",
            "sqlalchemy",
            "mlflow",
            "rich",
        ),
        *("matplotlib", "pyarrow", "ardmvc_core", "trainables", "study", "search_spaces"),
    },
}
ONLY_IN = {
    "mlflow": {"study/tracking/tracker.py"},
    "optuna": {
        "study/database/ledger.py",
        "study/planning/optuna_side.py",
        "study/planning/suggestions.py",
        "study/driver/conductor.py",
    },
    "ray": {
        *("study/driver/tune_hooks.py", "study/driver/run.py", "study/driver/ray_watch.py"),
        *("trainables/trainable.py", "trainables/heartbeat.py"),
    },
    "pooch": {"ardmvc_core/data/files.py"},
    "PIL": {"ardmvc_core/data/regdb.py"},
}
"""Each of these libraries is behind a few files, so that its next major version is a change of a few files."""


def imports() -> list[tuple[str, int, str]]:
    """(file, line, top-level name) of every import in the packages, those inside functions too."""
    found = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 0, f"{file}:{node.lineno}: relative import"
                    names = [node.module or ""]
                found += [(str(file.relative_to(ROOT)), node.lineno, name.split(".")[0]) for name in names]
    return found


def test_imports_follow_the_direction() -> None:
    wrong = [
        f"{file}:{line} imports {name}"
        for file, line, name in imports()
        if name not in STANDARD and name not in MAY_IMPORT[file.split("/")[0]]
    ]
    assert wrong == []


def test_each_library_stays_in_its_files() -> None:
    wrong = [f"{file}:{line} imports {name}" for file, line, name in imports() if file not in ONLY_IN.get(name, {file})]
    assert wrong == []


WRITES = {"write_text", "write_bytes", "savefig", "to_csv", "to_parquet"}
DRAFTS = {
    "trainables/files.py": "the function itself",
    "trainables/checkpoints.py": "into a scratch folder",
    "trainables/trial.py": "into the draft of a checkpoint",
    "trainables/attack_trial.py": "into the draft of a checkpoint",
    "trainables/trainable.py": "into the draft of a checkpoint",
    "study/tracking/address.py": "a lock, and a draft that is moved",
    "study/database/backup.py": "reserves the name of a file that is then moved there",
    "study/reporting/study_figures.py": "into memory",
    "study/driver/tune_hooks.py": "into Ray's folder, which nobody reads",
}
"""Files whose writes need not be whole, and why."""


def writes() -> set[str]:
    """Files of the packages that write to a file by themselves."""
    found = set()
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                modes = [part.value for part in node.args if isinstance(part, ast.Constant)]
                opened = name == "open" and any(set(str(mode)) & set("wax") and len(str(mode)) < 4 for mode in modes)
                if name in WRITES or opened:
                    found.add(str(file.relative_to(ROOT)))
    return found


def test_files_that_people_keep_are_written_by_one_function() -> None:
    """`write_whole`: half a file is never found under a file's name."""
    assert writes() - DRAFTS.keys() == set()


def test_mlflow_folder_holds_no_python() -> None:
    assert (ROOT / "mlflow").is_dir()
    assert [file.name for file in (ROOT / "mlflow").rglob("*.py")] == []
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_core_imports_without_the_study_side() -> None:
    """A GPU machine may have torch, numpy, scipy and scikit-learn only."""
    code = (
        "import sys\n"
        "for name in ('ray', 'optuna', 'mlflow', 'pydantic', 'yaml', 'pooch', 'PIL', 'pyarrow', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import ardmvc_core.data, ardmvc_core.evaluation, ardmvc_core.models, ardmvc_core.training\n"
        "import ardmvc_core.attacks\n"
        "from ardmvc_core.data.dataset import DatasetConfig\n"
        "print(len(ardmvc_core.data.load_parts(DatasetConfig(name='noisy_digits'), 'strict')['train'].data))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "450", done.stderr


def test_the_real_mlflow_is_imported_from_the_repository_root() -> None:
    code = "import mlflow; print(mlflow.__version__, mlflow.MlflowClient.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.split()[1:] == ["MlflowClient"], done.stderr


def test_the_real_mlflow_is_imported_in_a_ray_worker() -> None:
    code = (
        "import ray\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "@ray.remote\n"
        "def version():\n"
        "    import mlflow\n"
        "    return mlflow.MlflowClient.__name__\n"
        "print(ray.get(version.remote()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "MlflowClient", done.stderr


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_wheel_holds_the_four_packages_and_their_yaml(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names if ".dist-info" not in name}
    assert tops == set(PACKAGES)
    shipped = {name for name in wheel_names if name.startswith("search_spaces/") and name.endswith(".yaml")}
    assert shipped == {f"search_spaces/{file.name}" for file in (ROOT / "search_spaces").glob("*.yaml")}
    assert shipped


def test_gitignore_does_not_hide_the_mlflow_folder() -> None:
    done = subprocess.run(["git", "check-ignore", "mlflow/README.md"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 1
