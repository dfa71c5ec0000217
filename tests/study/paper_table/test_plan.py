"""The cells of Table 1: published settings, and that every scale makes valid trials."""

from typing import Any

import pytest

from ardmvc_core.attacks.generators.gan import official_gan
from ardmvc_core.models import MODELS
from study.paper_table.plan import PUBLISHED_COLUMNS, ROWS, SCALES, Cell, as_study, departures, overrides, study_name
from study.spec.study_spec import StudySpec, checked_spec

PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    # The paper's hyper-parameter table, as its code runs it: batch size, epochs, and what the row says besides.
    ("eamc", "noisy_mnist"): {"batch_size": 100, "epochs": 20, "learning_rate": 1e-5, "attention_learning_rate": 1e-4},
    ("simvc", "noisy_fashion"): {"batch_size": 100, "epochs": 20, "learning_rate": 1e-3},
    ("comvc", "patched_mnist"): {"batch_size": 100, "epochs": 20, "contrastive_weight": 0.1, "adaptive_weight": True},
    ("multi_vae", "noisy_mnist"): {"batch_size": 64, "epochs": 20, "learning_rate": 5e-4, "kl_scale": "port"},
    ("aecoddc", "noisy_mnist"): {"epochs": 20, "pretrain_epochs": 20, "adaptive_weight": False},
    ("infoddc", "noisy_fashion"): {"epochs": 20, "pretrain_epochs": 0, "mutual_information_weight": 0.1},
    ("infoddc", "patched_mnist"): {"epochs": 20, "pretrain_epochs": 20, "pairs": "published"},
    ("sem", "noisy_mnist"): {"batch_size": 256, "epochs": 300, "warmup_epochs": 100, "measure": "cmi"},
    ("sem", "patched_mnist"): {"epochs": 90, "warmup_epochs": 30, "measure": "mmd", "reconstruction": "dae"},
    ("ar_dmvc", "noisy_mnist"): {"epochs": 30, "adversarial_weight": 1, "train_eps": 0.2, "inner_pairs": "first"},
    ("ar_dmvc", "noisy_fashion"): {"epochs": 30, "adversarial_weight": 0.1, "train_steps": 10},
    ("ar_dmvc", "patched_mnist"): {"epochs": 40, "adversarial_weight": 0.1, "train_step_ratio": 0.1},
    ("ar_dmvc_am", "noisy_mnist"): {"adversarial_weight": 1, "mitigator_weight": 0.1, "kl_direction": "code"},
    ("ar_dmvc_am", "noisy_fashion"): {"adversarial_weight": 0.1, "mitigator_weight": 1},
    ("ar_dmvc_am", "patched_mnist"): {"adversarial_weight": 0.1, "mitigator_weight": 0.1, "epochs": 40},
}


def spec_of(scale: str, **changes: Any) -> StudySpec:
    cells = [overrides(Cell(row, column), SCALES[scale]) for column in SCALES[scale].columns for row in ROWS]
    given = {"protocol": "both", "seeds": 1, "storage": "runs", **changes}
    return checked_spec("table1", as_study(scale, cells, **given))


def test_every_row_of_the_table_is_a_model() -> None:
    assert set(ROWS) <= set(MODELS)
    assert len(ROWS) == 9


@pytest.mark.parametrize(("cell", "wanted"), PUBLISHED.items(), ids="-".join)
def test_paper_scale_has_the_published_settings(cell: tuple[str, str], wanted: dict[str, Any]) -> None:
    spec = spec_of("paper")
    config: Any = spec.trial_config(overrides(Cell(*cell), SCALES["paper"]))
    for name, value in wanted.items():
        assert getattr(config if name in ("batch_size", "epochs") else config.model, name) == value, name
    assert config.evaluation.official == official_gan()
    assert config.precision == config.evaluation.attack_precision == "fp32"
    assert config.dataset.samples is None


@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_of_a_scale_is_a_valid_trial(scale: str) -> None:
    spec = spec_of(scale)
    assert len(spec.baselines) == len(ROWS) * len(SCALES[scale].columns)
    for baseline in spec.baselines:
        config: Any = spec.trial_config(baseline)
        assert (config.model.name, config.dataset.name) == (baseline["model.name"], baseline["dataset.name"])
        assert config.protocol == "both"
        assert config.rounds >= 1
    assert spec.limits.trials == len(spec.baselines)


def test_small_takes_two_thousand_images_a_set_and_fewer_epochs_than_published() -> None:
    small, paper = spec_of("small"), spec_of("paper")
    for baseline, published in zip(small.baselines, paper.baselines, strict=True):
        config: Any = small.trial_config(baseline)
        full: Any = paper.trial_config(published)
        assert config.dataset.samples == 2000
        assert config.total_epochs < full.total_epochs
        assert config.evaluation.official.gan_loss == "lsgan"


@pytest.mark.parametrize(
    ("protocol", "metric"), [("official", "official/post/acc"), ("strict", "robust/acc"), ("both", "robust/acc")]
)
def test_each_protocol_has_its_own_study_and_metric(protocol: str, metric: str) -> None:
    spec = spec_of("smoke", protocol=protocol)
    assert spec.objectives[0].metric == metric


def test_studies_whose_cells_do_not_compare_have_other_names() -> None:
    names = {study_name(s, p, n) for s in SCALES for p in ("official", "strict", "both") for n in (1, 2)}  # type: ignore[arg-type]
    assert len(names) == len(SCALES) * 3 * 2
    assert PUBLISHED_COLUMNS == ("regdb", "noisy_fashion", "noisy_mnist", "patched_mnist")


def test_a_scale_says_where_it_departs_from_what_was_published() -> None:
    assert departures("paper") == []
    (small,) = departures("small")
    for said in ("precision bf16", "dataset.samples 2000", "official attack: epochs 8, batch_size 50", "train_steps 3"):
        assert said in small
