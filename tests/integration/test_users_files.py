"""The field's own files, each through a study of two trials: from the command line to the database."""

import json
from pathlib import Path

import pytest
from model_contract import CHEAP
from tiny_studies import run_sweep, study_dict, write_study

from study.database.engine import study_url
from study.database.ledger import Ledger

STUDIES = {
    "handwritten": ("ar_dmvc_am", "minmax"),
    "msrcv1_columns": ("simvc", "standard"),
    "scene15": ("comvc", "minmax"),
    "bbcsport": ("ar_dmvc", "unit_norm"),
    "100leaves": ("multi_vae", "minmax"),
    "3sources": ("aecoddc", "tfidf"),
    "proteinfold": ("comvc", "standard"),
    "wikipedia": ("sem", "minmax"),
    "webkb": ("eamc", "none"),
    "prokaryotic": ("infoddc", "minmax"),
    "mnist4": ("ar_dmvc_am", "standard"),
    "movies": ("infoddc", "tfidf"),
    "citeseer": ("comvc", "minmax"),
}
"""File → the system, each of them at least once, and the scaling."""


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_file_goes_through_a_study_of_two_trials(name: str, data_root: Path, tmp_path: Path) -> None:
    file = data_root / "mat" / f"{name}.mat"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    model, scale = STUDIES[name]
    trial = {
        "dataset": {"name": "file", "path": str(file), "scale": scale},
        "model": {"name": model, **json.loads(json.dumps(CHEAP.get(model, {})))},
        "epochs": 2,
        "batch_size": 40,
        "evaluate_every": 10,
        "evaluation": {"samples": 110, "probe_samples": 20, "tier": "probe"},
    }
    space = {"model.learning_rate": {"log_uniform": [1e-4, 1e-3]}}
    limits = {"trials": 2, "failures": 0, "concurrent": 1}
    done = run_sweep(write_study(tmp_path, study_dict(tmp_path, trial=trial, space=space, baselines=[], limits=limits)))
    assert done.returncode == 0, done.stderr
    records = Ledger.open_existing("tiny", study_url(tmp_path / "runs")).records()
    assert [record.state for record in records] == ["COMPLETE"] * 2
    for record in records:
        assert 0 <= record.metrics["robust/acc"] <= record.metrics["clean/acc"] <= 1
