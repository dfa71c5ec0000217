"""Ray's class Trainables: its methods handed to a trial, nothing else."""

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from ray import tune

from trainables.attack_trial import AttackTrial
from trainables.config import AttackTrialConfig, TrialConfig
from trainables.trial import Report, Trial


class RunsInRounds(Protocol):
    """What a Trainable drives."""

    def run_round(self) -> Report: ...
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


class TrialTrainable(tune.Trainable):
    """Ray's config holds `config` (the trial's, as JSON), `number`, `threads`, and `resume`, a checkpoint folder or ''.

    A checkpoint of an earlier driver is loaded in `setup`; Ray's own recovery uses `load_checkpoint`.
    """

    trial: RunsInRounds | None = None

    def build(self, config: dict[str, Any]) -> RunsInRounds:
        raise TypeError(f"{type(self).__name__} must say how its trial is built")

    def setup(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(config["threads"])
        self.trial = None  # an actor that is used again must not hold two trials in memory
        self.trial = self.build(json.loads(config["config"]))
        if config["resume"]:
            # A checkpoint may lie on shared or remote storage: Ray's Checkpoint knows how to fetch it.
            with tune.Checkpoint(config["resume"]).as_directory() as folder:
                self.trial.load(Path(folder))

    def step(self) -> Report:
        assert self.trial is not None
        return self.trial.run_round()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        assert self.trial is not None
        self.trial.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        assert self.trial is not None
        self.trial.load(Path(checkpoint))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True


class ModelTrainable(TrialTrainable):
    """Trains a model and scores it clean and attacked."""

    def build(self, config: dict[str, Any]) -> RunsInRounds:
        return Trial(TrialConfig.model_validate(config))


class AttackTrainable(TrialTrainable):
    """Trains an attacker against one saved model and scores the damage."""

    def build(self, config: dict[str, Any]) -> RunsInRounds:
        return AttackTrial(AttackTrialConfig.model_validate(config))


TRAINABLES: dict[str, type[tune.Trainable]] = {"model": ModelTrainable, "attacker": AttackTrainable}
