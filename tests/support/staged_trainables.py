"""Trainables that do on purpose what real ones do by accident; the trial's number says what."""

import json
import math
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from trainables.trainable import TrialTrainable
from trainables.trial import Report

ROUNDS = 4


class StagedTrial:
    """Reports a score that rises by rounds to `goal`."""

    def __init__(self, number: int, goal: float) -> None:
        self.number, self.goal, self.round = number, goal, 0

    def run_round(self) -> Report:
        self.round += 1
        score = self.goal * self.round / ROUNDS
        last = self.round == ROUNDS
        report: Report = {"clean/acc": 1.0, "probe/acc": score, "round": self.round, "rounds": ROUNDS, "done": last}
        return {**report, "robust/acc": score} if last else report

    def save(self, folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps({"round": self.round}))

    def load(self, folder: Path) -> None:
        self.round = json.loads((folder / "state.json").read_text())["round"]


class Staged(TrialTrainable):
    """Every trial runs to its end; odd ones score half of what even ones do."""

    def setup(self, config: dict[str, Any]) -> None:
        self.number = config["number"]
        super().setup(config)

    def build(self, config: dict[str, Any]) -> StagedTrial:
        return StagedTrial(self.number, 0.4 if self.number % 2 else 0.8)


class LateWorker(Staged):
    """The worker that first makes ready for trial 1 is done when trial 3 is; each notes its process and the trial."""

    def setup(self, config: dict[str, Any]) -> None:
        self._workers = Path(config["folder"]).parents[1] / "workers"
        with self._workers.open("a") as notes:
            notes.write(f"{os.getpid()} {config['number']}\n")
        while config["number"] == 1 and not self._workers.with_suffix(".done").exists():
            time.sleep(0.02)
        super().setup(config)

    def step(self) -> Report:
        report = super().step()
        if self.number == 3 and report["done"]:
            self._workers.with_suffix(".done").touch()
        return report


class Accidents(Staged):
    """0 runs well, 1 diverges, 2 always raises, 3 raises once, 4 ends with NaN, 5 ends without the objective."""

    def step(self) -> Report:
        assert isinstance(self.trial, StagedTrial)
        if self.number == 2 and self.trial.round == 1:
            raise RuntimeError("the data are cursed")
        if self.number == 3 and self.trial.round == 1 and not self._raised_before():
            raise RuntimeError("a passing fault")
        report = super().step()
        if self.number == 1 and self.trial.round == 2:
            return {"round": 1, "rounds": ROUNDS, "done": True, "failure": "ddc1 is nan in stage train, epoch 2"}
        if self.number == 4 and report["done"]:
            report["robust/acc"] = math.nan
        if self.number == 5:
            report.pop("robust/acc", None)
        return report

    def _raised_before(self) -> bool:
        marker = Path(self._checkpoints.folder).with_suffix(".raised")
        known = marker.exists()
        marker.touch()
        return known


class TakesLease(Staged):
    """Makes another driver the holder of the study in the second round."""

    def step(self) -> Report:
        assert isinstance(self.trial, StagedTrial)
        if self.trial.round == 1:
            with closing(sqlite3.connect(os.environ["BREAK_DATABASE"], timeout=30)) as connection, connection:
                connection.execute("UPDATE ardmvc_leases SET holder = '{}'")
        return super().step()


class BreaksDatabase(Staged):
    """Takes a table of the study's database away in the second round."""

    def step(self) -> Report:
        assert isinstance(self.trial, StagedTrial)
        if self.trial.round == 1:
            with closing(sqlite3.connect(os.environ["BREAK_DATABASE"], timeout=30)) as connection, connection:
                connection.execute("ALTER TABLE trial_system_attributes RENAME TO hidden_attributes")
        return super().step()
