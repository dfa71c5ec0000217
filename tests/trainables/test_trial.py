"""A trial without Ray: rounds, exact resume, failures with a reason, the mean and spread over its seeds."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainables.attack_trial import AttackTrial
from trainables.building import load_model
from trainables.config import AttackTrialConfig, TrialConfig
from trainables.saved_trial import saved_facts
from trainables.trial import Trial, aggregate

TINY = {"samples": 20, "probe_samples": 20, "tier": "probe"}


def config(**changes: Any) -> TrialConfig:
    base: dict[str, Any] = {
        "seed": 3,
        "dataset": {"name": "noisy_digits", "classes": [0, 1, 2], "samples": 150},
        "model": {"name": "ar_dmvc_am", "train_steps": 2, "train_step_ratio": 0.5},
        "epochs": 4,
        "batch_size": 25,
        "evaluate_every": 2,
        "repeats": 2,
        "evaluation": TINY,
    }
    return TrialConfig.model_validate({**base, **changes})


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if not name.startswith("time/") and name != "seconds"}


def test_a_trial_that_is_saved_and_loaded_ends_like_one_that_was_not(tmp_path: Path) -> None:
    straight = Trial(config())
    first = straight.run_round()
    last = straight.run_round()
    assert (first["round"], first["done"], last["round"], last["done"]) == (1, False, 2, True)

    stopped = Trial(config())
    stopped.run_round()
    stopped.save(tmp_path)
    torch.manual_seed(99)  # another worker's streams stand somewhere else
    np.random.seed(99)  # noqa: NPY002
    resumed = Trial(config())
    resumed.load(tmp_path)
    assert comparable(resumed.run_round()) == comparable(last)


def test_rounds_report_the_probe_and_the_last_one_everything() -> None:
    trial = Trial(config(repeats=1))
    first, last = trial.run_round(), trial.run_round()
    assert "probe/acc" in first
    assert {"probe/kappa", "probe/nmi"} <= first.keys()
    assert "robust/acc" not in first
    assert {"robust/acc", "robust/kappa", "apgd_ce/flip", "noise/flip", "clean/ari"} <= last.keys()
    assert last["robust/acc"] <= last["apgd_ce/acc"]
    # Seconds are of the whole trial, not of its last round.
    assert all(last[f"time/{part}_s"] > first[f"time/{part}_s"] for part in ("train", "evaluate"))
    with pytest.raises(RuntimeError, match="finished: 2 of 2 rounds"):
        trial.run_round()


def test_seeds_of_a_trial_differ_and_trials_share_them(tmp_path: Path) -> None:
    trial = Trial(config())
    weights = [next(trainer.model.parameters()) for trainer in trial.trainers]
    assert not torch.equal(*weights)
    other = Trial(config(model={"name": "comvc"}))
    assert torch.equal(weights[0], next(other.trainers[0].model.parameters()))


def test_seeds_in_turn_come_to_what_they_come_to_side_by_side(tmp_path: Path) -> None:
    together = Trial(config())
    together.run_round()
    expected = comparable(together.run_round())

    turns = Trial(config(repeats={"first": 1, "most": 2}))
    first = [turns.run_round(), turns.run_round()]
    between = turns.run_round()
    last = turns.run_round()
    assert [report["done"] for report in (*first, between, last)] == [False, False, False, True]
    assert {name: value for name, value in comparable(last).items() if "/" in name} == pytest.approx(
        {name: value for name, value in expected.items() if "/" in name}
    )
    # Inside the second seed the trial is what its first one has shown; nobody probes the second.
    assert between["robust/acc"] == first[1]["robust/acc"]
    assert "probe/acc" not in between
    assert "spread/robust/acc" not in between
    turns.save(tmp_path)
    arrays = np.load(tmp_path / "evaluation.npz")
    assert arrays["seeds/robust/acc"].mean() == pytest.approx(expected["robust/acc"])


@pytest.mark.parametrize("rounds", [2, 3])
def test_a_trial_whose_seeds_are_trained_in_turn_goes_on_exactly(tmp_path: Path, rounds: int) -> None:
    turns = config(repeats={"first": 1, "most": 2})
    straight = Trial(turns)
    reports = [straight.run_round() for _ in range(4)]
    stopped = Trial(turns)
    for _ in range(rounds):
        stopped.run_round()
    stopped.save(tmp_path)
    torch.manual_seed(99)
    resumed = Trial(turns)
    resumed.load(tmp_path)
    assert [comparable(resumed.run_round()) for _ in range(rounds, 4)] == [comparable(one) for one in reports[rounds:]]


def test_the_models_of_seeds_that_are_trained_can_be_loaded(tmp_path: Path) -> None:
    turns = Trial(config(repeats={"first": 1, "most": 3}, epochs=2))
    turns.run_round()
    turns.run_round()
    turns.save(tmp_path)
    assert saved_facts(str(tmp_path)).models == 2
    for repeat in range(2):
        model, _ = load_model(str(tmp_path), torch.device("cpu"), repeat)
        weights = turns.trainers[repeat].model.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_loss_that_is_not_finite_ends_the_trial_with_its_place() -> None:
    trial = Trial(config(repeats=1))
    with torch.no_grad():
        next(trial.trainers[0].model.parameters()).fill_(math.nan)
    report = trial.run_round()
    assert report["done"] is True
    assert report["round"] == 0
    assert report["failure"] == "ddc1 is not finite in stage 'train', epoch 0, step 0"


def test_official_protocol_reports_pre_and_post() -> None:
    gan = {"epochs": 1, "batch_size": 25}
    trial = Trial(config(protocol="official", repeats=1, epochs=2, evaluation={**TINY, "official": gan}))
    report = trial.run_round()
    names = {f"official/{phase}/{score}" for phase in ("pre", "post") for score in ("acc", "nmi", "ari")}
    assert names <= report.keys()
    assert not any(name.startswith("robust/") for name in report)


def test_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    trial = Trial(config(repeats=1))
    trial.run_round()
    trial.save(tmp_path)
    with pytest.raises(ValueError, match="another config"):
        Trial(config(repeats=1, epochs=6)).load(tmp_path)


def test_checkpoint_names_the_data_it_saw(tmp_path: Path) -> None:
    trial = Trial(config(repeats=1))
    trial.save(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    assert set(facts["contents"]) == {"train", "tune", "attacker", "score"}
    assert facts["budget"] == trial.budget.digest()


def test_mean_and_spread_by_hand() -> None:
    metrics = aggregate([{"robust/acc": 0.5, "time/train_s": 1.0}, {"robust/acc": 0.7, "time/train_s": 3.0}])
    assert metrics["robust/acc"] == pytest.approx(0.6)
    assert metrics["spread/robust/acc"] == pytest.approx(0.1 * math.sqrt(2))
    assert metrics["time/train_s"] == 2.0
    assert "spread/time/train_s" not in metrics
    assert aggregate([{"robust/acc": 0.5}]) == {"robust/acc": 0.5}


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    trial = Trial(config(repeats=1, epochs=4, evaluate_every=4))
    trial.run_round()
    trial.save(folder)
    return folder


def test_saved_model_gives_the_trial_s_assignments(saved_model: Path) -> None:
    model, stored = load_model(str(saved_model), torch.device("cpu"))
    assert stored == config(repeats=1, epochs=4, evaluate_every=4)
    with np.load(saved_model / "evaluation.npz") as arrays:
        before = arrays["clusters/clean"]
    tune = Trial(stored).parts["strict"]["tune"].views
    with torch.no_grad():
        clusters = model(tuple(view[: len(before)] for view in tune)).assignments.argmax(1)
    assert not model.training
    assert clusters.tolist() == before.tolist()


def test_attacker_trial_resumes_exactly(saved_model: Path, tmp_path: Path) -> None:
    attacker = AttackTrialConfig.model_validate(
        {"checkpoint": str(saved_model), "attack": {"epochs": 4}, "evaluate_every": 2, "evaluation": TINY}
    )
    straight = AttackTrial(attacker)
    straight.run_round()
    straight.save(tmp_path)
    last = straight.run_round()
    resumed = AttackTrial(attacker)
    resumed.load(tmp_path)
    assert comparable(resumed.run_round()) == comparable(last)
    assert last["done"] is True
    assert 0 <= last["gan/flip"] <= 1
    assert "guard/gan_saturation" in last


def test_attacker_trial_without_a_saved_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no saved model"):
        AttackTrial(AttackTrialConfig(checkpoint=str(tmp_path)))


def test_both_protocols_report_what_each_would_alone() -> None:
    both = Trial(config(protocol="both"))
    both.run_round()
    last = both.run_round()
    for protocol in ("strict", "official"):
        alone = Trial(config(protocol=protocol))
        alone.run_round()
        wanted = {name: value for name, value in alone.run_round().items() if not name.startswith(("time/", "loss/"))}
        scores = {name: value for name, value in wanted.items() if "/" in name and "loss/" not in name}
        assert len(scores) > 6
        assert {name: last[name] for name in scores} == scores
