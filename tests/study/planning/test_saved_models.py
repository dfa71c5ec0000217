"""The saved model that an attacker study attacks: its folder, and its data set's ε."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_studies import study_dict

from ardmvc_core.data import DATASETS
from study.database.engine import LedgerError, study_url
from study.database.ledger import Ledger
from study.planning.dry_run import dry_run
from study.planning.saved_models import with_target
from study.spec.study_spec import StudySpec, checked_spec
from trainables.attack_trial import AttackTrial
from trainables.config import AttackTrialConfig, TrialConfig
from trainables.trial import Trial

EPS = DATASETS["noisy_digits"].eps


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    trial = study_dict(folder)["trial"] | {"epochs": 1, "evaluate_every": 1}
    done = Trial(TrialConfig.model_validate(trial))
    done.save(folder)
    return folder


@pytest.fixture
def attacker(saved_model: Path, tmp_path: Path) -> Callable[..., StudySpec]:
    def make(**evaluation: Any) -> StudySpec:
        raw = {
            "name": "attack",
            "trainable": "attacker",
            "trial": {"checkpoint": str(saved_model), "evaluation": {"samples": 20, **evaluation}},
            "space": {"attack.mu_com": {"log_uniform": [0.01, 100]}},
            "objective": {"metric": "gan/flip", "mode": "max"},
            "storage": {"path": str(tmp_path / "runs")},
        }
        return checked_spec("attack", raw)

    return make


def test_the_eps_of_an_attacker_study_is_a_number(attacker: Callable[..., StudySpec], tmp_path: Path) -> None:
    spec = attacker()
    found = with_target(spec)
    assert found.resolved()["trial"]["evaluation"]["eps"] == EPS
    assert found.trial_config({"attack.mu_com": 1.0}).evaluation.eps == EPS  # what a trial stores, and MLflow shows
    assert found.identity()["trial"]["evaluation"]["samples"] == 20
    assert with_target(attacker(eps=0.3)).trial_config({}).evaluation.eps == 0.3
    shown = json.loads(dry_run(spec, as_json=True))
    assert shown["spec"]["trial"]["evaluation"]["eps"] == EPS
    assert not (tmp_path / "runs").exists()


def test_a_model_that_an_eps_does_not_fit_is_named(attacker: Callable[..., StudySpec]) -> None:
    with pytest.raises(LedgerError, match=r"^trial.checkpoint: attacked_views must be distinct, each in 0\.\.1"):
        with_target(attacker(eps=[0.1, 0.2], attacked_views=[2]))


def test_a_study_of_before_eps_was_stored_goes_on(attacker: Callable[..., StudySpec], tmp_path: Path) -> None:
    url = study_url(tmp_path / "runs")
    spec = with_target(attacker())
    ledger = Ledger.open_or_create(spec, url, None)
    old = json.loads(json.dumps(spec.identity()))
    old["trial"]["evaluation"]["eps"] = None
    ledger._study.set_user_attr("identity", old)
    assert Ledger.open_or_create(spec, url, None).uid == ledger.uid
    with pytest.raises(LedgerError, match=rf"trial\.evaluation\.eps: {EPS} → 0\.3"):
        Ledger.open_or_create(with_target(attacker(eps=0.3)), url, None)


def test_an_attacker_trial_stores_eps_as_a_number(saved_model: Path, tmp_path: Path) -> None:
    attack = {"checkpoint": str(saved_model), "attack": {"epochs": 1}, "evaluation": {"samples": 20, "tier": "probe"}}
    trial = AttackTrial(AttackTrialConfig.model_validate(attack))
    trial.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["evaluation"]["eps"] == EPS
