"""Trial configs: what YAML may say, what is refused, and that a config is the whole of a trial."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from ardmvc_core.models import MODELS
from study.spec.faults import dotted_keys
from trainables.config import AttackTrialConfig, TrialConfig


def model_trial(**changes: Any) -> TrialConfig:
    return TrialConfig.model_validate(
        {"dataset": {"name": "noisy_digits"}, "model": {"name": "ar_dmvc_am"}, "epochs": 20, **changes}
    )


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_is_told_apart_by_its_name(name: str) -> None:
    config = model_trial(model={"name": name})
    assert type(config.model) is MODELS[name].config


@pytest.mark.parametrize(("epochs", "evaluate_every", "rounds"), [(20, 5, 4), (21, 5, 5), (3, 5, 1), (4, 1, 4)])
def test_rounds_cover_all_epochs(epochs: int, evaluate_every: int, rounds: int) -> None:
    assert model_trial(epochs=epochs, evaluate_every=evaluate_every).rounds == rounds


def test_rounds_of_an_attacker_cover_its_epochs() -> None:
    config = AttackTrialConfig.model_validate({"checkpoint": "x", "attack": {"epochs": 7}, "evaluate_every": 3})
    assert config.rounds == 3


def test_numbers_that_yaml_reads_as_text_become_numbers() -> None:
    config = model_trial(model={"name": "comvc", "learning_rate": "1e-4"})
    assert config.model.learning_rate == 0.0001


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": 3},
        {"model": {"name": "ar_dmvc_am", "temprature": 0.1}},
        {"model": {"name": "comvc", "mitigator_weight": 0.1}},
        {"dataset": {"name": "noisy_digits", "size": 3}},
        {"evaluation": {"official": {"eps": 0.1}}},
    ],
)
def test_unknown_keys_are_refused_at_every_level(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"not permitted|Unexpected keyword"):
        model_trial(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"batch_size": 1}, "greater than or equal to 2"),
        ({"repeats": 0}, "greater than or equal to 1"),
        ({"model": {"name": "ar_dmvc_am", "adversarial_weight": -1}}, r"adversarial_weight must be in \[0, 1000000\]"),
        ({"model": {"name": "ar_dmvc_am", "adversarial_weight": float("nan")}}, "finite"),
        ({"model": {"name": "ar_dmvc_am", "train_eps": 1.5}}, r"train_eps must be in \(0, 1\]"),
        ({"model": {"name": "ar_dmvc_am", "train_eps": [0.1, -0.2]}}, r"train_eps must be in \(0, 1\], got -0.2"),
        ({"model": {"name": "ar_dmvc_am", "train_norm": "l1"}}, "'linf' or 'l2'"),
        ({"evaluation": {"eps": 8}}, r"eps must be in \(0, 1\]"),
        ({"evaluation": {"further_attacks": ["square", "square"]}}, "further_attacks must be distinct"),
        ({"dataset": {"name": "npz"}}, "path must be the file or folder"),
        ({"device": "tpu"}, "'auto', 'cpu' or 'cuda'"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        model_trial(**changes)


def test_a_config_goes_through_json_unchanged() -> None:
    config = model_trial(
        dataset={"name": "noisy_digits", "classes": [1, 2, 3]},
        model={"name": "ar_dmvc", "train_eps": [0.1, 0.2], "train_norm": "l2"},
        evaluation={"eps": [0.1, 0.2], "further_attacks": ["square"]},
    )
    assert TrialConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        model_trial().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("config", [TrialConfig, AttackTrialConfig])
def test_what_is_not_searchable_exists(config: type[TrialConfig] | type[AttackTrialConfig]) -> None:
    keys = dotted_keys(config, {})
    locks = set(config.not_searchable) - {"attack.eps"}  # a GANConfig has no ε; the lock keeps it so for the search
    assert all(any(f"{key}.".startswith(f"{lock}.") for key in keys) for lock in locks)
