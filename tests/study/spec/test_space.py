"""Distributions, dotted paths, and the check that every end of a space makes a valid trial."""

from typing import Any

import pytest

from study.spec.distributions import (
    Choice,
    Distribution,
    IntLogUniform,
    IntUniform,
    LogUniform,
    Quantised,
    Uniform,
    as_yaml,
    parse_distribution,
)
from study.spec.space import apply_overrides, build_trial, parse_space, path_faults, range_faults
from trainables.config import AttackTrialConfig, TrialConfig

TRIAL: dict[str, Any] = {"dataset": {"name": "noisy_digits"}, "model": {"name": "ar_dmvc_am"}}


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        ({"uniform": [0, 1]}, Uniform(0.0, 1.0)),
        ({"uniform": ["1e-4", "1e-2"]}, Uniform(0.0001, 0.01)),
        ({"log_uniform": [0.01, 10]}, LogUniform(0.01, 10.0)),
        ({"int_uniform": [1, 5]}, IntUniform(1, 5)),
        ({"int_log_uniform": [1, 100]}, IntLogUniform(1, 100)),
        ({"quantised": [0, 1, 0.25]}, Quantised(0.0, 1.0, 0.25)),
        ({"choice": ["both", 1, "1e-3", True, None]}, Choice(("both", 1, 0.001, True, None))),
    ],
)
def test_parse_gives_the_distribution_and_yaml_gives_it_back(raw: dict[str, Any], want: Distribution) -> None:
    distribution = parse_distribution(raw)
    assert distribution == want
    assert type(distribution) is type(want)
    assert parse_distribution(as_yaml(distribution)) == want


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"loguniform": [1, 2]}, "unknown distribution 'loguniform'; nearest: 'log_uniform'"),
        ({"uniform": [1]}, r"uniform needs \[low, high\]"),
        ({"uniform": [2, 1]}, "the low end must be below the high end"),
        ({"uniform": [1, 1]}, "the low end must be below the high end"),
        ({"uniform": [0, float("nan")]}, "uniform needs numbers in .*, got nan"),
        ({"uniform": [0, "many"]}, "uniform needs numbers, got 'many'"),
        ({"uniform": [False, True]}, "uniform needs numbers, got False"),
        ({"log_uniform": [0, 1]}, "low end of a logarithmic range must be > 0"),
        ({"int_uniform": [1.5, 3]}, "int_uniform needs whole numbers"),
        ({"int_uniform": [1, float("inf")]}, "int_uniform needs numbers in .*, got inf"),
        ({"int_log_uniform": [0, 3]}, "low end of a logarithmic range must be > 0"),
        ({"quantised": [0, 1]}, r"quantised needs \[low, high, step\]"),
        ({"quantised": [0, 1, 0.3]}, "step must divide the range"),
        ({"quantised": [0, 1, -0.5]}, "step must be > 0"),
        ({"choice": []}, "must hold at least one value"),
        ({"choice": [1, 1.0]}, "holds a value twice"),
        ({"choice": [[1, 2], 3]}, "values must be text, numbers"),
        ([0, 1], "must be one of"),
        ({"uniform": [0, 1], "choice": [1]}, "must be one of"),
    ],
)
def test_parse_refuses_what_is_no_distribution(raw: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_distribution(raw)


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        (Uniform(0, 1), [0, 0.5, 1], [-0.1, 1.1, "0.5", True, None]),
        (LogUniform(0.01, 10), [0.01, 10], [0, 11]),
        (IntUniform(1, 3), [1, 2, 3.0], [0, 4, 1.5, True]),
        (Quantised(0.1, 0.5, 0.1), [0.1, 0.2, 0.3, 0.5], [0.15, 0.6]),
        (Choice((1, "a", None)), [1, "a", None], [2, "b", True]),
    ],
)
def test_contains(distribution: Distribution, inside: list[Any], outside: list[Any]) -> None:
    assert all(distribution.contains(value) for value in inside)
    assert not any(distribution.contains(value) for value in outside)


def test_ends_of_a_range_and_all_of_a_choice() -> None:
    assert Uniform(0.02, 0.3).ends() == (0.02, 0.3)
    assert Choice(("a", "b", "c")).ends() == ("a", "b", "c")


def test_parse_space_reports_every_entry_that_is_wrong() -> None:
    space, faults = parse_space({"a": {"uniform": [0, 1]}, "b": {"uniform": [1, 0]}, "c": 3})
    assert space == {"a": Uniform(0, 1)}
    assert [fault.path for fault in faults] == ["b", "c"]


def test_overrides_replace_values_in_a_copy_and_make_what_is_missing() -> None:
    trial = {"model": {"name": "comvc"}, "evaluation": None}
    changed = apply_overrides(trial, {"model.temperature": 0.5, "evaluation.official.epochs": 3, "epochs": 2})
    assert changed == {
        "model": {"name": "comvc", "temperature": 0.5},
        "evaluation": {"official": {"epochs": 3}},
        "epochs": 2,
    }
    assert trial == {"model": {"name": "comvc"}, "evaluation": None}


def test_overrides_refuse_a_path_through_a_value() -> None:
    with pytest.raises(ValueError, match="leads through 'epochs', which is 3"):
        apply_overrides({"epochs": 3}, {"epochs.many": 1})


def test_build_trial_gives_the_config_or_the_faults() -> None:
    config, faults = build_trial(TrialConfig, TRIAL, {"model.train_eps": 0.1})
    assert isinstance(config, TrialConfig)
    assert config.model.train_eps == 0.1
    assert faults == []
    config, faults = build_trial(TrialConfig, TRIAL, {"model.train_eps": [0.1, 0.2]})
    assert faults == []
    assert config.model.train_eps == (0.1, 0.2)
    _, faults = build_trial(TrialConfig, TRIAL, {"model.train_eps": [0.1, "x"]})
    assert [str(fault) for fault in faults] == ["model.train_eps[1]: must be a number, got 'x'"]
    config, faults = build_trial(TrialConfig, TRIAL, {"model.train_eps": 2, "epochs": True})
    assert config is None
    assert str(faults[0]) == "model.train_eps: must be in (0, 1], got 2.0"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "model.temprature",
            "model.temprature: is no field of TrialConfig with model 'ar_dmvc_am'; nearest: 'model.temperature'",
        ),
        ("train_eps", "nearest: 'model.train_eps'"),
        ("model", "is no field of TrialConfig"),
        ("model.lambda", "known: model.encoder, "),
        ("evaluation.eps", "cannot be searched: the evaluation budget is the ruler"),
        ("evaluation", "cannot be searched"),
        ("seed", "cannot be searched: a search over seeds selects luck"),
        ("repeats", "cannot be searched"),
        ("dataset.root", "cannot be searched: it says where"),
        ("dataset.shuffle_seed", "cannot be searched: it is what trials are measured on"),
        ("dataset.noise", "cannot be searched: it is what trials are measured on"),
        ("dataset", "cannot be searched"),
    ],
)
def test_paths_that_lead_nowhere_or_must_not_be_searched(path: str, words: str) -> None:
    (fault,) = path_faults([path], TrialConfig, TRIAL, {})
    assert words in str(fault)


def test_paths_of_a_model_trial_that_may_be_searched() -> None:
    paths = ["model.name", "model.train_eps", "epochs", "batch_size", "precision"]
    assert path_faults(paths, TrialConfig, TRIAL, {}) == []


def test_paths_of_an_attacker_trial() -> None:
    trial = {"checkpoint": "x"}
    free = ["attack.mu_com", "attack.mu_con", "attack.mu_norm", "attack.learning_rate"]
    assert path_faults(free, AttackTrialConfig, trial, {}) == []
    locked = path_faults(["attack.eps", "evaluation.eps", "checkpoint", "seed"], AttackTrialConfig, trial, {})
    assert len(locked) == 4
    assert all("cannot be searched" in str(fault) for fault in locked)


def test_a_path_of_another_model_is_dead_unless_that_model_can_be_drawn() -> None:
    trial = {**TRIAL, "model": {"name": "comvc"}}
    assert "with model 'comvc'" in str(path_faults(["model.mitigator_weight"], TrialConfig, trial, {})[0])
    space = {"model.name": Choice(("comvc", "ar_dmvc_am"))}
    assert path_faults(["model.mitigator_weight"], TrialConfig, trial, space) == []


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"model.train_eps": Uniform(0.1, 1.5)}, "1.5 of uniform [0.1, 1.5] makes an invalid trial: model.train_eps: "),
        ({"model.adversarial_weight": Uniform(-1, 1)}, "-1 of uniform [-1, 1] makes an invalid trial"),
        ({"epochs": Uniform(1, 10)}, "epochs: must be a whole number"),
        ({"batch_size": Quantised(2, 4, 0.5)}, "batch_size: must be a whole number, got 2.5"),
        ({"model.inner_objective": Choice(("both", "all"))}, "unknown value 'all'"),
        ({"model.name": Choice(("ar_dmvc_am", "dmvc"))}, "unknown name 'dmvc'"),
    ],
)
def test_an_end_that_makes_an_invalid_trial_is_named(space: dict[str, Distribution], words: str) -> None:
    faults = range_faults(space, TrialConfig, TRIAL)
    assert len(faults) == 1
    assert words in str(faults[0])
    assert faults[0].path in space


def test_ends_that_only_clash_together_are_found() -> None:
    space = {"model.name": Choice(("comvc", "ar_dmvc_am")), "model.mitigator_weight": Uniform(0, 1)}
    (fault, *_) = range_faults(space, TrialConfig, TRIAL)
    assert fault.path == "model.name"
    assert "'comvc' of choice" in fault.message
    assert "unknown key" in fault.message


def test_a_right_space_has_no_faults() -> None:
    space = {
        "model.adversarial_weight": LogUniform(0.01, 10),
        "model.train_eps": Uniform(0.02, 1),
        "model.train_steps": IntUniform(1, 10),
        "model.inner_objective": Choice(("contrastive", "assignment", "both")),
        "batch_size": Quantised(20, 100, 20),
    }
    assert range_faults(space, TrialConfig, TRIAL) == []
