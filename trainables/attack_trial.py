"""One attacker trial without Ray: the GAN attack fitted in rounds against one saved model, scored on other samples."""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from ardmvc_core.attacks.generators.gan import GANTrainer
from ardmvc_core.attacks.kinds import Given
from ardmvc_core.evaluation.worst_case import evaluate_suite
from ardmvc_core.seeding import generator
from trainables.building import load_model, pick_device
from trainables.config import AttackTrialConfig
from trainables.data_parts import cached_parts
from trainables.saved_trial import (
    ARRAYS_FILE,
    CONFIG_FILE,
    NO_MEMORY,
    STATE_FILE,
    check_weights,
    parsing,
    saved_facts,
    saved_progress,
    saved_state,
    unchanged_if_refused,
)
from trainables.trial import Report


class AttackTrial:
    """Fits generators on the attacker part and reports the damage on the tune part, in inference mode of the target."""

    def __init__(self, config: AttackTrialConfig) -> None:
        """Raises: ValueError, or its child DataError, if the saved model or its data cannot be had."""
        self.device = pick_device(config.device)
        facts = saved_facts(config.checkpoint, config.data)
        self.model, self.target = load_model(config.checkpoint, self.device, facts=facts)
        self.config = config = config.against(self.target)
        parts = cached_parts(self.target.dataset, "strict")
        self.scored = parts["tune"].data.to(self.device)
        self.budget = config.evaluation.resolve(self.target.dataset.name, len(self.scored.views))
        self.trainer = GANTrainer(
            config.attack,
            self.budget.threat(),
            self.model,
            parts["attacker"].data.to(self.device).views,
            generator(config.seed, "attacker"),
        )
        self.round = 0
        self.seconds = 0.0
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def rounds(self) -> int:
        return math.ceil(self.config.attack.epochs / self.config.evaluate_every)

    def run_round(self) -> Report:
        """Fits `evaluate_every` epochs, then scores the attack. Returns: the report; a loss of NaN ends the trial."""
        begin = time.monotonic()
        losses: dict[str, float] = {}
        for _ in range(min(self.config.evaluate_every, self.config.attack.epochs - self.trainer.epoch)):
            losses = self.trainer.run_epoch()
        report: Report = {"rounds": self.rounds, "budget": self.budget.digest()}
        if bad := [name for name, value in losses.items() if not math.isfinite(value)]:
            report["failure"] = f"attacker loss {bad[0]} is not finite in epoch {self.trainer.epoch}"
        else:
            self.round += 1
            fitted = self.trainer.perturb()
            attack = Given(key="gan", perturb=fitted)
            found = evaluate_suite(self.model, self.scored, None, self.budget, attacks=[attack]).evaluation
            self._arrays = found.arrays()
            report |= found.metrics() | {f"loss/{name}": value for name, value in losses.items()}
            report["guard/gan_saturation"] = fitted.saturation(self.scored.views)
            report["warnings"] = json.dumps(found.warnings)
        self.seconds += time.monotonic() - begin
        done = "failure" in report or self.round >= self.rounds
        return {**report, "round": self.round, "seconds": self.seconds, "done": done}

    def save(self, folder: Path) -> None:
        """Writes everything that `load` needs, the config, and the arrays of the last evaluation."""
        state = {"round": self.round, "seconds": self.seconds, "trainer": self.trainer.state_dict()}
        torch.save(state, folder / STATE_FILE)
        facts = {"config": self.config.model_dump(mode="json"), "budget": self.budget.digest()}
        (folder / CONFIG_FILE).write_text(json.dumps(facts, indent=1))
        np.savez_compressed(folder / ARRAYS_FILE, allow_pickle=False, **self._arrays)

    def load(self, folder: Path) -> None:
        """Goes on from what `save` wrote, bit for bit on the same machine.

        Raises: DamagedCheckpoint; the trial is then what it was.
        """
        state = saved_state(str(folder))
        with parsing(folder, STATE_FILE, passing=NO_MEMORY), unchanged_if_refused(self.trainer):
            for name in ("generator", "discriminator"):
                check_weights(state["trainer"][name], getattr(self.trainer.networks, name).state_dict())
            self.trainer.load_state_dict(state["trainer"])
            round_, seconds = saved_progress(state, self.rounds)
            if self.trainer.epoch != min(round_ * self.config.evaluate_every, self.config.attack.epochs):
                raise ValueError(f"its epoch is {self.trainer.epoch} in round {round_}")
        self.round, self.seconds = round_, seconds
