"""Every bundled study loads, every end of its space makes a valid trial, and its header tells how to run it."""

from importlib import resources
from typing import Any

import pytest

from ardmvc_core.attacks.gan import GANConfig
from study.spec import load_spec
from trainables.config import AttackTrialConfig, TrialConfig

STUDIES = sorted(entry.name for entry in resources.files("search_spaces").iterdir() if entry.name.endswith(".yaml"))
PAPER_SCALE = {  # λ, γ and epochs of the published runs
    "ar_dmvc_am_noisy_mnist": (1.0, 0.1, 30),
    "ar_dmvc_am_noisy_fashion": (0.1, 1.0, 30),
    "ar_dmvc_am_patched_mnist": (0.1, 0.1, 40),
}


def test_the_studies_that_the_readme_promises_are_there() -> None:
    assert {"ar_dmvc_am.yaml", "ar_dmvc.yaml", "attacker.yaml", "smoke.yaml"} <= set(STUDIES)
    assert {f"{name}.yaml" for name in PAPER_SCALE} <= set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_loads_and_yields_valid_trials(name: str) -> None:
    spec = load_spec(name)
    assert spec.name == name.removesuffix(".yaml")
    for overrides in ({}, *spec.baselines):
        assert spec.trial_config(overrides).rounds >= 1
    for path, distribution in spec.distributions().items():
        for value in distribution.ends():
            spec.trial_config({path: value})


@pytest.mark.parametrize("name", STUDIES)
def test_the_header_asks_a_question_and_gives_the_command(name: str) -> None:
    text = resources.files("search_spaces").joinpath(name).read_text()
    header = text[: text.index("\nname:")]
    assert header.startswith("# ")
    assert header.splitlines()[0].endswith("?")
    assert f"python -m study.sweep {name}" in header
    assert "Needs" in header or "seconds" in header
    assert max(map(len, text.splitlines())) <= 125


@pytest.mark.parametrize("name", STUDIES)
def test_evaluation_is_never_searched(name: str) -> None:
    paths = load_spec(name).distributions()
    assert not [path for path in paths if path.startswith("evaluation")]


@pytest.mark.parametrize(("name", "values"), PAPER_SCALE.items())
def test_paper_scale_starts_from_the_paper(name: str, values: tuple[float, float, int]) -> None:
    spec = load_spec(name)
    first: Any = spec.trial_config(spec.baselines[0])
    assert isinstance(first, TrialConfig)
    assert (first.model.adversarial_weight, first.model.mitigator_weight, first.epochs) == values
    assert (first.model.train_eps, first.model.train_steps, first.model.train_step_ratio) == (0.2, 10, 0.1)
    assert (first.model.encoder, first.batch_size, first.model.learning_rate) == ("cnn_small", 100, 1e-3)
    assert spec.resources.gpu == 1


def test_the_attacker_study_starts_from_the_attack_of_every_evaluation() -> None:
    spec = load_spec("attacker")
    config = spec.trial_config(spec.baselines[0])
    assert isinstance(config, AttackTrialConfig)
    assert config.attack == GANConfig()


@pytest.mark.parametrize("name", ["ar_dmvc_am", "ar_dmvc", *PAPER_SCALE])
def test_the_table_always_holds_no_defence(name: str) -> None:
    model: Any = load_spec(name).trial_config(load_spec(name).baselines[1])
    assert model.model.adversarial_weight == 0
    assert getattr(model.model, "mitigator_weight", 0) == 0
