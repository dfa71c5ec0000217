"""The names that an objective may have are those that the evaluation really reports: held against it, not repeated."""

from pathlib import Path
from typing import Any

import pytest

from study.spec.objectives import known_metrics, objection, without_probe
from trainables.attack_trial import AttackTrial
from trainables.config import AttackTrialConfig, TrialConfig
from trainables.trial import Trial

BUDGET: dict[str, Any] = {
    "samples": 20,
    "probe_samples": 10,
    "tier": "probe",
    "official": {"epochs": 1},
}


def trial_config(**changes: Any) -> TrialConfig:
    raw = {
        "dataset": {"name": "noisy_digits", "samples": 100},
        "model": {"name": "simvc"},
        "epochs": 1,
        "batch_size": 50,
        "device": "cpu",
        "evaluation": BUDGET,
    }
    return TrialConfig.model_validate({**raw, **changes})


def scores(report: dict[str, Any]) -> set[str]:
    groups = {"loss", "time", "guard", "spread", "chance"}
    return {name for name in report if "/" in name and name.split("/")[0] not in groups}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluation": {**BUDGET, "further_attacks": ["square"]}},
        {"evaluation": {**BUDGET, "further_attacks": ["apgd_l2", "view_replaced", "view_dropped"]}},
        {"protocol": "official"},
    ],
)
def test_known_metrics_are_in_the_last_report_of_a_model_trial(changes: dict[str, Any]) -> None:
    config = trial_config(**changes)
    found = scores(Trial(config).run_round())
    known = set(known_metrics(config))
    assert known <= found
    # What an attack found that met survivors only, and what it cost, nobody would optimise.
    assert {name for name in found - known if not name.endswith("/new") and not name.startswith("cost/")} == set()


def test_no_pruner_knows_other_threats_before_the_last_round() -> None:
    config = trial_config(evaluation={**BUDGET, "further_attacks": ["view_dropped"]})
    assert "view_dropped/acc" in known_metrics(config)
    assert "view_replaced/acc" not in known_metrics(config)
    assert without_probe(config, "view_dropped/acc")
    assert not without_probe(config, "robust/acc")


def test_known_metrics_are_in_the_last_report_of_an_attacker_trial(tmp_path: Path) -> None:
    target = Trial(trial_config())
    target.run_round()
    target.save(tmp_path)
    raw = {"checkpoint": str(tmp_path), "attack": {"epochs": 1}, "evaluation": BUDGET, "device": "cpu"}
    config = AttackTrialConfig.model_validate(raw)
    assert set(known_metrics(config)) <= scores(AttackTrial(config).run_round())


@pytest.mark.parametrize(
    "metric", ["probe/acc", "official/post/acc", "loss/total", "time/train_s", "guard/min_share", "chance/acc"]
)
def test_metrics_that_are_no_objectives_have_a_reason(metric: str) -> None:
    assert objection(metric)


def test_a_misspelt_metric_needs_no_reason() -> None:
    assert objection("robst/acc") is None
