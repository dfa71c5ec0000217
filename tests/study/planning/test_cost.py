"""Counted passes against those that a real trial makes: the first encoder sees every one of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from study.planning.cost import Cost, Passes, round_costs, trial_cost
from trainables.attack_trial import AttackTrial
from trainables.config import AttackTrialConfig, TrialConfig
from trainables.trial import Trial

BUDGET: dict[str, Any] = {
    "samples": 33,
    # Too small to move a sample: one that is moved leaves an attack early.
    "eps": 1e-6,
    "probe_samples": 20,
    "tier": "probe",
    "batch_size": 16,
    "official": {"epochs": 2, "batch_size": 20},
}


def trial_config(model: dict[str, Any], **changes: Any) -> TrialConfig:
    raw = {
        "dataset": {"name": "noisy_digits", "samples": 200},
        "model": {"train_steps": 3, **model} if model["name"].startswith("ar_") else model,
        "epochs": 3,
        "batch_size": 40,
        "evaluate_every": 1,
        "device": "cpu",
        "evaluation": BUDGET,
    }
    return TrialConfig.model_validate({**raw, **changes})


class Counter:
    """Counts the passes through a module, forward and backward."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.forward = self.backward = 0
        module.register_forward_hook(self._forward)

    def _forward(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.forward += 1
        if output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, gradient: torch.Tensor) -> None:
        self.backward += 1


def sizes(trial: Trial) -> dict[str, int]:
    return {name: len(part) for parts in trial.parts.values() for name, part in parts.items()}


@pytest.mark.parametrize(
    "config",
    [
        trial_config({"name": "comvc"}),
        trial_config({"name": "ar_dmvc_am"}),
        trial_config({"name": "ar_dmvc_am", "inner_objective": "both"}),
        trial_config({"name": "ar_dmvc_am", "adversarial_weight": 0}),
        trial_config({"name": "ar_dmvc", "adversarial_weight": 0}),
        trial_config({"name": "comvc", "mute_dead_units": True}, evaluation={**BUDGET, "tier": "tune"}),
        trial_config({"name": "eamc"}),
        trial_config({"name": "multi_vae"}),
        trial_config({"name": "aecoddc", "pretrain_epochs": 2}),
        trial_config({"name": "infoddc", "pretrain_epochs": 1}),
        trial_config({"name": "sem", "warmup_epochs": 1, "hidden_widths": (8, 8, 8), "reconstruction": "dae"}),
    ],
    ids=[
        "no attack",
        "attacked",
        "both objectives",
        "mitigator alone",
        "no defence",
        "muted, tune",
        "eamc",
        "multi_vae",
        "aecoddc",
        "infoddc",
        "sem",
    ],
)
def test_passes_of_a_model_trial(config: TrialConfig) -> None:
    trial = Trial(config)
    counters = [Counter(trainer.model.encoders[0]) for trainer in trial.trainers]  # type: ignore[index]
    while not trial.finished:
        trial.run_round()
    want = trial_cost(config, trial.budget, sizes(trial)).total
    assert want.forward == sum(counter.forward for counter in counters)
    assert want.backward == sum(counter.backward for counter in counters)


def test_every_seed_of_a_trial_costs_the_same() -> None:
    once, thrice = (trial_config({"name": "comvc"}, repeats=repeats) for repeats in (1, 3))
    parts = {"train": 100, "tune": 40, "attacker": 30}
    budget = once.resolved_budget()
    assert trial_cost(thrice, budget, parts).total == trial_cost(once, budget, parts).total * 3


@pytest.mark.parametrize("protocol", ["strict", "official", "both"])
def test_rounds_add_up_to_the_trial_and_the_last_costs_most(protocol: str) -> None:
    parts = {"train": 100, "tune": 40, "attacker": 30, "attack": 100}
    config = trial_config({"name": "comvc"}, protocol=protocol, evaluation={**BUDGET, "tier": "tune"}, repeats=2)
    rounds = round_costs(config, config.resolved_budget(), parts)
    assert len(rounds) == config.rounds
    assert sum(rounds, Passes()) == trial_cost(config, config.resolved_budget(), parts).total
    if protocol != "official":
        assert rounds[-1].forward > 2 * rounds[0].forward


def test_a_further_attack_costs_only_at_the_end() -> None:
    # Square: 5,000 queries of 33 samples in 3 batches of 16, and a look at what it found (the last 1 joins: 2 passes).
    parts = {"train": 100, "tune": 40, "attacker": 30}
    plain, further = (
        trial_config({"name": "comvc"}, evaluation={**BUDGET, "further_attacks": names}) for names in ([], ["square"])
    )
    before, after = (trial_cost(one, one.resolved_budget(), parts).evaluation for one in (plain, further))
    assert (after.forward - before.forward, after.backward - before.backward) == (5000 * 3 + 2, 0)


def test_apgd_in_l2_costs_a_tune_more_at_the_end() -> None:
    # 33 samples in 3 batches of 16 (the last 1 joins where nothing is differentiated: 2). `tune` at 10 clusters: a
    # reference and 5 draws of 2 kinds of noise; 40, 100 and 4 × 40 steps, each ascent with a start and a last look.
    parts = {"train": 100, "tune": 40, "attacker": 30}
    plain, further = (
        trial_config({"name": "comvc"}, evaluation={**BUDGET, "further_attacks": names}) for names in ([], ["apgd_l2"])
    )
    before, after = (trial_cost(one, one.resolved_budget(), parts).evaluation for one in (plain, further))
    steps = 40 + 100 + 4 * 40
    assert after.forward - before.forward == 2 * 11 + (steps + 6) * 3 + 6 * 2
    assert after.backward - before.backward == steps * 3


def test_passes_of_the_official_protocol() -> None:
    # By hand: 3 epochs of 100 // 40 = 2 steps; 2 probes of 33 samples in batches of 16 (a last one of 1 joins: 2), on
    # 20 of them (2 batches) the reference, 2 draws of 2 kinds of noise, and 2 attacks of 20 steps, each with a start
    # and a last look; at the end 100 samples in 5 batches of 20 before and after, and 2 epochs of 5 GAN steps.
    config = trial_config({"name": "comvc"}, protocol="official")
    cost = trial_cost(config, config.resolved_budget(), {"train": 100, "attack": 100})
    assert cost == Cost(Passes(6, 6), Passes(2 * (2 + 2 * (1 + 4 + 2 * 22)) + 2 * 5 + 2 * 10, 2 * 2 * 40 + 10))


def test_passes_of_an_attacker_trial(tmp_path: Path) -> None:
    target = Trial(trial_config({"name": "comvc"}, epochs=1))
    target.run_round()
    target.save(tmp_path)
    raw = {
        "checkpoint": str(tmp_path),
        "attack": {"epochs": 3, "batch_size": 10},
        "evaluate_every": 2,
        "evaluation": BUDGET,
        "device": "cpu",
    }
    config = AttackTrialConfig.model_validate(raw)
    trial = AttackTrial(config)
    counter = Counter(trial.model.encoders[0])  # type: ignore[index]
    for _ in range(config.rounds):
        trial.run_round()
    want = trial_cost(config, trial.budget, sizes(target)).total
    assert (want.forward, want.backward) == (counter.forward, counter.backward)
