"""The house rules that no review has to remember: import directions, the folder mlflow/, what the wheel holds."""

import ast
import subprocess
import sys
import zipfile

import pytest
from architecture import FLOORS, PACKAGES, PAGE, ROOT, arrows, circles, drawn_page, files, imports, room

STANDARD = set(sys.stdlib_module_names)

MAY_IMPORT = {
    "search_spaces": set(),
    "ardmvc_core": {"torch", "numpy", "scipy", "sklearn", "PIL", "pooch", "h5py", "pyarrow", "ardmvc_core"},
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
            "jsonschema",
            "ray",
            "optuna",
            "sqlalchemy",
            "mlflow",
            "rich",
        ),
        *("matplotlib", "pandas", "pyarrow", "shtab", "ardmvc_core", "trainables", "study", "search_spaces"),
    },
}
ONLY_IN = {
    "mlflow": {"study/tracking/mlflow_client.py", "study/tracking/mlflow_runs.py"},
    "optuna": {
        "study/database/engine.py",
        *("study/database/ledger.py", "study/database/trials.py"),
        *("study/planning/optuna_side.py", "study/planning/suggestions.py", "study/planning/noisy_gp.py"),
        "study/driver/limits.py",
    },
    "ray": {
        *("study/driver/run.py", "study/driver/ray_cluster.py", "study/driver/ray_watch.py"),
        "study/driver/tune_hooks.py",
        *("trainables/trainable.py", "trainables/heartbeat.py"),
    },
    "pooch": {"ardmvc_core/data/files.py"},
    "PIL": {"ardmvc_core/data/regdb.py"},
    "h5py": {"ardmvc_core/data/matlab.py"},
}
"""Each of these libraries is behind a few files, so that its next major version is a change of a few files."""


def file_of(module: str) -> str:
    """`study.database.ledger` → `study/database/ledger.py`; of a package its `__init__.py`."""
    place = module.replace(".", "/")
    return f"{place}/__init__.py" if (ROOT / place).is_dir() else f"{place}.py"


def test_imports_follow_the_direction() -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for module, line, name in imports()
        if (top := name.split(".")[0]) not in STANDARD and top not in MAY_IMPORT[module.split(".")[0]]
    ]
    assert wrong == []


def test_each_library_stays_in_its_files() -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for module, line, name in imports()
        if file_of(module) not in ONLY_IN.get(name.split(".")[0], {file_of(module)})
    ]
    assert wrong == []


def test_a_room_knows_of_rooms_below_it_only() -> None:
    """As `FLOORS` has them; a room that is on no floor is new, and is to be put on one."""
    floor = {f"{pkg}.{name}": n for pkg, floors in FLOORS.items() for n, names in enumerate(floors) for name in names}
    rooms = {room(module) for module, _ in files()} - {None}
    assert {each for each in rooms if str(each).split(".")[0] in FLOORS} == floor.keys()
    wrong = {
        f"{here} knows of {there}": places
        for (here, there), places in arrows().items()
        if here.split(".")[0] == there.split(".")[0] and floor[here] <= floor[there]
    }
    assert wrong == {}


def test_no_module_knows_of_itself_by_way_of_others() -> None:
    assert circles() == []


def test_the_picture_of_the_rooms_is_drawn_from_the_imports() -> None:
    """`python tests/support/architecture.py` draws it anew."""
    assert PAGE.read_text() == drawn_page()


WRITES = {"write_text", "write_bytes", "savefig", "to_csv", "to_parquet"}
DRAFTS = {
    "trainables/files.py": "the function itself",
    "trainables/checkpoints.py": "into a scratch folder",
    "trainables/trial.py": "into the draft of a checkpoint",
    "trainables/attack_trial.py": "into the draft of a checkpoint",
    "trainables/trainable.py": "into the draft of a checkpoint",
    "study/tracking/address.py": "a lock, and a draft that is moved",
    "study/database/backup.py": "reserves the name of a file that is then moved there",
    "study/reporting/style.py": "into memory",
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
        "from ardmvc_core.data import DatasetConfig\n"
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
    assert "study/clusters/schema.yaml" in wheel_names


def test_gitignore_does_not_hide_the_mlflow_folder() -> None:
    done = subprocess.run(["git", "check-ignore", "mlflow/README.md"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 1
