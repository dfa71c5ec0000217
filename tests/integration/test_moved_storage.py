"""A storage is copied to a place with an odd name: everything goes on there, and the original stays as it was."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tiny_studies import study_dict, write_study

from study import confirm, evaluate, report, sweep
from study.database.engine import study_url
from study.database.ledger import Ledger
from study.planning.saved_models import with_target
from study.robustness.request import check_flags, prepare
from study.spec.study_spec import load_spec
from study.tracking.address import default_uri, local_path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for sqlite's own beside the databases."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(("-shm", "-wal"))]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.slow
def test_a_copy_is_used_and_the_original_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "ol#d 50%41" / "runs", tmp_path / "a?b #c%41 [ü]" / "runs"
    trial = {**study_dict(tmp_path)["trial"], "epochs": 1}
    there = {"storage": {"path": str(old)}, "limits": {"trials": 1, "failures": 0}}
    model = write_study(tmp_path, study_dict(tmp_path, trial=trial, **there))
    attacker = {
        "name": "attacker",
        "trainable": "attacker",
        "trial": {"checkpoint": "study:tiny", "attack": {"epochs": 1}, "evaluation": {"samples": 20, "eps": 0.1}},
        "baselines": [{}],
        "objective": {"metric": "gan/flip", "mode": "max"},
    }
    attack = write_study(tmp_path, {**attacker, **there})
    assert sweep.main([str(model)]) == 0
    # Made, but not run yet.
    Ledger.open_or_create(with_target(load_spec(str(attack))), study_url(old), None).engine.dispose()
    shutil.copytree(old, new)
    before = contents(old)
    capsys.readouterr()

    assert report.main(["tiny", "--storage", str(new), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["trials"]
    assert row["checkpoint"].startswith(f"{new}/tiny/")
    given = evaluate.parser().parse_args(["study:tiny/0", "--tier", "probe", "--storage", str(new)])
    check_flags(given)
    request = prepare(given)
    assert request.target.checkpoint == row["checkpoint"]
    assert request.folders[0].is_relative_to(new)

    moved = ["--set", f"storage.path={json.dumps(str(new))}"]
    assert sweep.main([str(model), *moved, "--trials", "2"]) == 0
    assert sweep.main([str(attack), *moved]) == 0
    assert [record.state for record in Ledger.open_existing("tiny", storage_path=new).records()] == ["COMPLETE"] * 2
    (attacked,) = Ledger.open_existing("attacker", storage_path=new).records()
    assert attacked.config["checkpoint"] == row["checkpoint"]
    capsys.readouterr()
    assert confirm.main(["tiny", "--storage", str(new), "--dry-run"]) == 0
    assert "# nothing was started" in capsys.readouterr().out

    client = MlflowClient(tracking_uri=default_uri(str(new)))
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.role = 'trial'")
    assert len(runs) == 2
    for run in runs:
        assert local_path(str(run.info.artifact_uri)).is_relative_to(new)
        assert "config.yaml" in [file.path for file in client.list_artifacts(run.info.run_id)]
    assert contents(old) == before
