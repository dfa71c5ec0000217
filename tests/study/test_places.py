"""Addresses of databases whatever their paths hold, and names that are no study's."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from ardmvc_core.errors import UserError
from study.cli import place
from study.database.engine import LedgerError, study_url
from study.database.ledger import Ledger
from study.driver.conductor import progress_of
from study.places import sqlite_address, sqlite_file, taken_name
from study.planning.preflight import environment_faults
from study.planning.saved_models import find_checkpoint
from study.reporting.unblinding import TRUTH_FILE, stored_truths
from study.spec.schema import storage_place
from study.spec.study_spec import StudySpec
from study.spec.yaml_file import read_mapping
from study.tracking.address import default_uri, make_sqlite, settle, tracking_uri
from trainables.config import identity
from trainables.storage import below

SpecMaker = Callable[..., StudySpec]

ODD = ["a?b", "a#b", "50%41", "a b [ü]{x}", "a&b=c;d'e", "a:b@c", "~x"]
INNER = "tiny/trial_00000-0123abcd/round_000004-0b6c1d2e"


@pytest.mark.parametrize("name", ODD)
def test_a_study_database_in_an_odd_folder(name: str, tmp_path: Path, tiny_spec: SpecMaker) -> None:
    folder = tmp_path / name
    spec = tiny_spec(storage={"path": str(folder)})
    Ledger.open_or_create(spec, study_url(spec.storage.path), None)
    assert (folder / "studies.db").is_file()
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert sqlite_file(study_url(folder)) == folder / "studies.db"
    assert Ledger.open_existing("tiny", storage_path=folder).records() == []


@pytest.mark.parametrize("name", ODD)
def test_mlflow_in_an_odd_folder(name: str, tmp_path: Path) -> None:
    uri = default_uri(str(tmp_path / name))
    file = sqlite_file(uri)
    assert file == tmp_path / name / "mlflow.db"
    make_sqlite(file)
    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment("tiny", artifact_location=(file.parent / "mlartifacts").as_uri()))
    client.log_text(run.info.run_id, "found", "notes.txt")
    (stored,) = (tmp_path / name / "mlartifacts").rglob("notes.txt")
    assert stored.read_text() == "found"


def test_addresses_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.setenv("ARDMVC_STUDY_DB", "sqlite:///~/studies.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///$DISK/mlflow.db")
    assert study_url("runs").reveal() == f"sqlite:///{tmp_path}/studies.db"
    assert tracking_uri("runs").reveal() == f"sqlite:///{tmp_path}/disk/mlflow.db"
    monkeypatch.setenv("DISK", str(tmp_path / "a?b"))
    assert sqlite_file(tracking_uri("runs")) == tmp_path / "a?b" / "mlflow.db"
    monkeypatch.setenv("ARDMVC_STUDY_DB", "sqlite:///$UNSET/studies.db")
    with pytest.raises(UserError, match=r"ARDMVC_STUDY_DB: '\$UNSET/studies.db': the variable \$UNSET is not set"):
        study_url("runs")
    # A password is no path.
    monkeypatch.setenv("ARDMVC_STUDY_DB", "postgresql+psycopg://me:pa$$UNSET~@host/studies")
    assert study_url("runs").reveal() == "postgresql+psycopg://me:pa$$UNSET~@host/studies"


@pytest.mark.parametrize(
    "command",
    [
        ["report", "tiny", "--storage", "$UNSET/runs"],
        ["report", "tiny", "--output", "$UNSET/x"],
        ["report", "tiny", "--figures", "$UNSET/x"],
        ["control", "tiny", "backup", "$UNSET/x.db"],
        ["control", "tiny", "--storage", "$UNSET/runs"],
        ["studies", "--storage", "$UNSET/runs"],
        ["evaluate", "study:tiny", "--storage", "$UNSET/runs"],
        ["evaluate", "study:tiny", "--out", "$UNSET/runs"],
        ["evaluate", "$UNSET/model"],
        ["confirm", "tiny", "--storage", "$UNSET/runs"],
        ["compare", "$UNSET/report"],
        ["compare", "report", "--output", "$UNSET/x"],
        ["table1", "--output", "$UNSET/x"],
        ["table1", "--storage", "$UNSET/runs"],
        ["ui", "--storage", "$UNSET/runs"],
        ["sweep", "$UNSET/study.yaml"],
        ["sweep", "smoke", "--address", "$UNSET:6379"],
        ["sweep", "smoke", "--set", "storage.path=$UNSET/runs"],
        ["sweep", "attacker", "--set", "trial.checkpoint=$UNSET/model"],
        ["sweep", "smoke", "--set", "trial.dataset={name: npz, path: $UNSET/x.npz}"],
    ],
    ids=" ".join,
)
def test_every_flag_says_what_is_not_set(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from study.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNSET", raising=False)
    try:
        code: object = main(command)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert "the variable $UNSET is not set" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_storage_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_spec: SpecMaker) -> None:
    import study

    monkeypatch.setenv("DISK", str(tmp_path))
    monkeypatch.delenv("UNSET", raising=False)
    spec = tiny_spec()
    Ledger.open_or_create(spec, study_url(spec.storage.path), None)
    assert study.open("tiny", storage="$DISK/runs").name == "tiny"
    with pytest.raises(LedgerError, match=r"storage: '\$UNSET/runs': the variable \$UNSET is not set"):
        study.open("tiny", storage="$UNSET/runs")


def test_a_flag_hides_what_is_secret(capsys: pytest.CaptureFixture[str]) -> None:
    from study.report import main

    with pytest.raises(SystemExit):
        main(["tiny", "--storage", "s3://key:s3cretword@bucket/$UNSET"])
    assert "s3cretword" not in capsys.readouterr().err


def test_places_in_a_study_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_spec: SpecMaker) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    assert tiny_spec(storage={"path": "~/runs"}).storage.path == f"{tmp_path}/runs"
    assert tiny_spec(storage={"path": "$DISK/runs"}).storage.path == f"{tmp_path}/disk/runs"
    assert storage_place("s3://$DISK/runs") == f"s3://{tmp_path}/disk/runs"
    assert place("~/x") == f"{tmp_path}/x"
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "own.yaml").write_text("name: own\n")
    assert read_mapping("$DISK/own.yaml")[1] == {"name": "own"}


@pytest.mark.parametrize(
    "name",
    ["mlflow.db", "studies.db", "mlartifacts", "evaluations", "MLflow.db", "studies.db-wal", "mlflow.db-journal"],
)
def test_names_of_other_things_in_the_storage_are_refused(name: str, tiny_spec: SpecMaker) -> None:
    assert taken_name(name)
    with pytest.raises(ValueError, match=f"must be no name of something else in the storage folder, got '{name}'"):
        tiny_spec(name=name)


@pytest.mark.parametrize("name", ["mlflow", "studies", "mlflow.db2", "tiny"])
def test_names_beside_them_are_free(name: str, tiny_spec: SpecMaker) -> None:
    assert tiny_spec(name=name).name == name


@pytest.mark.parametrize(
    ("in_the_way", "kind"),
    [
        ("runs", "file"),
        ("runs/tiny", "file"),
        ("runs/mlartifacts", "file"),
        ("runs/tiny", "broken link"),
        ("runs/mlartifacts", "broken link"),
    ],
)
def test_a_file_in_the_way_is_refused_at_once(in_the_way: str, kind: str, tmp_path: Path, tiny_spec: SpecMaker) -> None:
    spec, blocked = tiny_spec(), tmp_path / in_the_way
    blocked.parent.mkdir(exist_ok=True)
    if kind == "file":
        blocked.touch()
    else:
        blocked.symlink_to(tmp_path / "nowhere")
    (fault,) = environment_faults(spec, cluster=False)
    assert fault.startswith("storage.path: cannot write to ")
    assert fault.endswith(f"{blocked} is not a folder")


def test_a_free_place_is_no_fault_and_nothing_is_made(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    assert environment_faults(tiny_spec(), cluster=False) == []
    assert list(tmp_path.iterdir()) == []


# A storage that has moved


def study_at(folder: Path, tiny_spec: SpecMaker, checkpoint: str, **facts: str) -> Ledger:
    """A study with one complete trial, in the storage `folder`."""
    spec = tiny_spec(storage={"path": str(folder)})
    ledger = Ledger.open_or_create(spec, study_url(folder), None)
    config = spec.trial_config({}).model_dump(mode="json")
    ledger.add(overrides={}, config=config, rounds=4, baseline=False, params={}, distributions={})
    ledger.progress(0, {"round": 4, "time": 1, "metrics": {}, "checkpoint": checkpoint, **facts})
    ledger.finish(0, TrialState.COMPLETE, (0.5,))
    (folder / INNER).mkdir(parents=True)
    (folder / INNER / "config.json").write_text("{}")
    return ledger


def stored_attributes(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "studies.db")) as database:
        return "\n".join(row[0] for row in database.execute("SELECT value_json FROM trial_user_attributes"))


def test_a_round_keeps_its_place_in_the_storage() -> None:
    facts = progress_of({"round": 4, "checkpoint": f"/data/runs/{INNER}"})
    assert (facts["checkpoint"], facts["storage"]) == (INNER, "/data/runs")
    assert progress_of({"round": 4})["checkpoint"] is None


@pytest.mark.parametrize("version", ["today's", "older"])
@pytest.mark.parametrize("how", ["moved", "copied"])
def test_models_are_found_where_the_storage_is_now(
    version: str, how: str, tmp_path: Path, tiny_spec: SpecMaker
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    whole = progress_of({"round": 4, "checkpoint": below(str(old), INNER)})
    stored = {key: whole[key] for key in ("checkpoint", "storage")} if version == "today's" else {}
    study_at(old, tiny_spec, **({"checkpoint": str(old / INNER)} | stored)).engine.dispose()
    if how == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new)
    assert Ledger.open_existing("tiny", storage_path=new).record(0).checkpoint == str(new / INNER)
    assert find_checkpoint("study:tiny", str(new)) == str(new / INNER)
    if how == "copied":
        assert find_checkpoint("study:tiny/0", str(old)) == str(old / INNER)


def test_a_study_whose_database_is_elsewhere_finds_its_storage(
    tmp_path: Path, tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--storage` is left at its default then."""
    monkeypatch.chdir(tmp_path)
    study_at(tmp_path / "own", tiny_spec, INNER, storage=str(tmp_path / "own")).engine.dispose()
    monkeypatch.setenv("ARDMVC_STUDY_DB", sqlite_address(tmp_path / "own" / "studies.db"))
    assert find_checkpoint("study:tiny", "runs") == str(tmp_path / "own" / INNER)


def test_an_attacker_study_is_the_same_in_another_place() -> None:
    old, new = ({"checkpoint": f"{storage}/{INNER}", "device": "cpu"} for storage in ("/old", "s3://new"))
    assert identity(old) == identity(new) == {"checkpoint": INNER}
    assert identity({"checkpoint": "/a/model"}) != identity({"checkpoint": "/b/model"})


def test_what_was_unblinded_in_another_place_is_known(tmp_path: Path) -> None:
    (tmp_path / TRUTH_FILE).write_text(f'{{"0": {{"checkpoint": "/old/{INNER}", "tier": "t"}}}}')
    assert stored_truths(str(tmp_path))[0]["checkpoint"] == INNER


@pytest.mark.parametrize("form", ["path", "uri"])
@pytest.mark.parametrize("to", ["new", "a?b #c%41 ü"])
def test_a_copy_of_mlflows_records_never_writes_into_the_original(form: str, to: str, tmp_path: Path) -> None:
    """Older versions have stored paths. An experiment elsewhere stays there."""
    old, new = tmp_path / "old's", tmp_path / to
    make_sqlite(old / "mlflow.db")
    if form == "path":
        with closing(sqlite3.connect(old / "mlflow.db")) as database, database:
            database.execute("UPDATE experiments SET artifact_location = ?", (str(old / "mlartifacts" / "0"),))
    location = (old / "mlartifacts").as_uri() if form == "uri" else str(old / "mlartifacts")
    client = MlflowClient(tracking_uri=default_uri(str(old)))
    elsewhere = client.create_experiment("elsewhere", artifact_location=f"{location}2")
    experiment = client.create_experiment("tiny", artifact_location=location)
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "first", "a.txt")
    shutil.copytree(old, new)
    settle(new / "mlflow.db")
    settle(new / "mlflow.db")
    before = sorted(old.rglob("*"))
    client = MlflowClient(tracking_uri=default_uri(str(new)))
    assert client.get_run(run).info.artifact_uri == f"{(new / 'mlartifacts').as_uri()}/{run}/artifacts"
    assert client.get_experiment(experiment).artifact_location == (new / "mlartifacts").as_uri()
    assert client.get_experiment("0").artifact_location == (new / "mlartifacts" / "0").as_uri()
    assert client.get_experiment(elsewhere).artifact_location == f"{location}2"
    client.log_text(client.create_run(experiment).info.run_id, "second", "b.txt")
    assert len(list(new.rglob("b.txt"))) == 1
    assert sorted(old.rglob("*")) == before


def test_records_that_mlflow_made_itself_stay(tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=default_uri(str(tmp_path)))
    before = client.get_experiment("0").artifact_location
    settle(tmp_path / "mlflow.db")
    assert client.get_experiment("0").artifact_location == before
    empty = tmp_path / "empty.db"
    empty.touch()
    settle(empty)
    assert empty.stat().st_size == 0
