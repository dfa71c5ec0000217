"""Every bundled study loads, every end of its space makes a valid trial, and its header tells how to run it."""

import re
from collections import Counter
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest

from ardmvc_core.attacks.generators.gan import GANConfig
from study.spec.study_spec import load_spec
from trainables.config import AttackTrialConfig, TrialConfig

STUDIES = sorted(entry.name for entry in resources.files("search_spaces").iterdir() if entry.name.endswith(".yaml"))
PAPER_SCALE = {  # λ, γ and epochs of the published runs
    "ar_dmvc_am_noisy_mnist": (1.0, 0.1, 30),
    "ar_dmvc_am_noisy_fashion": (0.1, 1.0, 30),
    "ar_dmvc_am_patched_mnist": (0.1, 0.1, 40),
}

PUBLISHED: dict[str, dict[str, Any]] = {  # of the published runs; switches as in their code
    "eamc": {
        "learning_rate": 1e-5,
        "attention_learning_rate": 1e-4,
        "discriminator_learning_rate": 1e-3,
        "attention_weight": 1,
        "generator_weight": 10,
        "attention_temperature": 10,
    },
    "simvc": {"learning_rate": 1e-3},
    "comvc": {"learning_rate": 1e-3, "contrastive_weight": 0.1, "temperature": 0.1, "adaptive_weight": True},
    "multi_vae": {
        "learning_rate": 5e-4,
        "continuous_weight": 30,
        "discrete_weight": 30,
        "continuous_capacity": 5,
        "capacity_steps": 25_000,
        "latent_width": 10,
        "hidden_width": 256,
        "gumbel_temperature": 0.67,
        "kl_scale": "port",
        "discrete_capacity": "log_k",
    },
    "aecoddc": {
        "learning_rate": 1e-3,
        "contrastive_weight": 0.1,
        "temperature": 0.1,
        "adaptive_weight": False,
        "reconstruction_weight": 1,
        "pretrain_epochs": 20,
    },
    "infoddc": {
        "learning_rate": 1e-3,
        "mutual_information_weight": 0.1,
        "entropy_weight": 9,
        "pairs": "published",
        "pretrain_epochs": 0,
    },
    "sem": {
        "learning_rate": 3e-4,
        "feature_width": 512,
        "latent_width": 128,
        "rounds": 3,
        "measure": "cmi",
        "contrast": "infonce",
        "temperature": 1,
        "reconstruction": "ae",
        "reconstruction_weight": 1,
        "renew_optimizer": True,
    },
}
PUBLISHED_BATCH_SEARCHED = ("simvc", "comvc")


def baseline(name: str, number: int = 0) -> Any:
    spec = load_spec(name)
    return spec.trial_config(spec.baselines[number])


def test_the_studies_that_the_readme_promises_are_there() -> None:
    assert {"ar_dmvc_am.yaml", "ar_dmvc.yaml", "attacker.yaml", "smoke.yaml"} <= set(STUDIES)
    assert {f"{name}.yaml" for name in PAPER_SCALE} <= set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_no_baseline_is_another_one_too(name: str) -> None:
    """A default that changes makes two of them one, as `mute_dead_units` did."""
    assert not [note for note in load_spec(name).notes if "repeats" in note]


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


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_baseline_model_has_a_study_of_its_own(name: str) -> None:
    spec = load_spec(name)
    assert spec.trial["model"]["name"] == name
    assert spec.trial["dataset"] == {"name": "noisy_digits"}
    assert "model.name" not in spec.space
    assert not [overrides for overrides in spec.baselines if "model.name" in overrides]
    assert 3 <= len(spec.space) <= 5
    assert "model.learning_rate" in spec.space
    assert spec.resources.gpu == 0


@pytest.mark.parametrize(("name", "values"), PUBLISHED.items())
def test_the_first_baseline_has_the_published_settings(name: str, values: dict[str, Any]) -> None:
    model = baseline(name).model
    assert {field: getattr(model, field) for field in values} == values


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_search_can_reach_the_published_settings(name: str) -> None:
    spec = load_spec(name)
    for path, distribution in spec.distributions().items():
        assert distribution.contains(spec.baselines[0][path]), path


@pytest.mark.parametrize("name", PUBLISHED_BATCH_SEARCHED)
def test_a_searched_batch_starts_from_the_published_one(name: str) -> None:
    assert (baseline(name).batch_size, baseline(name).epochs) == (100, 20)
    assert (baseline(name, 1).batch_size, baseline(name, 1).epochs) == (50, 20)
    assert baseline(name, 1).model == baseline(name).model


@pytest.mark.parametrize("name", ["eamc", "multi_vae", "aecoddc", "infoddc"])
def test_the_main_training_has_the_published_epochs(name: str) -> None:
    assert baseline(name).epochs == 20


def test_sem_keeps_the_published_proportion_of_warm_up_to_contrast() -> None:
    assert [baseline("sem", number).model.warmup_epochs / baseline("sem", number).epochs for number in (0, 1)] == [
        pytest.approx(100 / 300),
        pytest.approx(30 / 90),
    ]
    patched = baseline("sem", 1).model
    assert (patched.measure, patched.reconstruction, patched.contrast) == ("mmd", "dae", "infonce")


@pytest.mark.parametrize("name", ["multi_vae", "infoddc"])
def test_our_defaults_stand_beside_published_switches(name: str) -> None:
    model = baseline(name, 1).model
    assert model == type(model)()


def test_comvc_without_contrast_is_simvc() -> None:
    assert baseline("comvc", 2).model.contrastive_weight == 0
    assert baseline("comvc", 2).batch_size == baseline("simvc", 1).batch_size


def test_aecoddc_is_also_tried_without_its_autoencoder() -> None:
    model = baseline("aecoddc", 1).model
    assert (model.pretrain_epochs, model.reconstruction_weight) == (0, 0)


def test_eamc_is_also_tried_at_a_rate_that_learns() -> None:
    assert baseline("eamc", 1).model == replace(baseline("eamc").model, learning_rate=1e-3)


def test_the_table_in_the_folder_has_one_line_per_study() -> None:
    text = resources.files("search_spaces").joinpath("README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = Counter(file for row in rows for file in re.findall(r"`([^`]+\.yaml)`", row))
    assert named == Counter(STUDIES)
    assert len(rows) == len(STUDIES)
    for row in rows:
        _, _, question, cost, _ = (cell.strip() for cell in row.split("|"))
        assert len(question) > 10
        assert re.search(r"\d+ (s|min)\b|1 GPU a trial", cost)
