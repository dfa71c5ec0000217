"""Trainables for tests that make faults: a score that depends on the trial's parameters only, and a log of every round.

`ROUND_LOG` names the log: a line `number round pid node begin end` for each round that was completed and stored. The
worker writes it, so that rounds which the driver never heard of count too; `ROUND_LOG.begun` gets a line `number node`
before each. `ROUND_SECONDS` is how long a round takes; while `ROUND_LOG.hold` exists none comes to its end.
`TRIAL_FAULT` is `kind:number`: what goes wrong in that trial's third round.
"""

import math
import os
import time
from pathlib import Path
from typing import Any

import ray
from staged_trainables import Staged, StagedTrial

from trainables.trial import Report


class CountedTrial(StagedTrial):
    """Its score rises by rounds to what the parameters are worth."""

    def __init__(self, number: int, config: dict[str, Any]) -> None:
        model = config["model"]
        weight, eps = model["adversarial_weight"], model["train_eps"]
        worth = 0.9 - 0.1 * abs(math.log10(weight) - 0.3) - abs(eps - 0.15) if weight else 0.5
        super().__init__(number, worth)

    def run_round(self) -> Report:
        time.sleep(float(os.environ.get("ROUND_SECONDS", "0.2")))
        while os.path.exists(f"{os.environ['ROUND_LOG']}.hold"):
            time.sleep(0.02)
        return super().run_round()


class Counted(Staged):
    """Runs such a trial and keeps the log."""

    def build(self, config: dict[str, Any]) -> CountedTrial:
        return CountedTrial(self.number, config)

    def step(self) -> Report:
        assert isinstance(self.trial, CountedTrial)
        kind, _, number = os.environ.get("TRIAL_FAULT", "").partition(":")
        if number == str(self.number) and self.trial.round == 2:
            self._fault(kind)
        begin, node = time.time(), ray.get_runtime_context().get_node_id()
        with open(f"{os.environ['ROUND_LOG']}.begun", "a") as log:
            log.write(f"{self.number} {node}\n")
        before = self.trial.round
        report = super().step()
        if number == str(self.number) and kind == "nan" and report["done"]:
            report["robust/acc"] = math.nan
        # A round that an attempt before had stored is given again and not run; its line is there, unless that attempt
        # died just before it.
        if self.trial.round > before or not self._logged(report["round"]):
            with open(os.environ["ROUND_LOG"], "a") as log:
                log.write(f"{self.number} {report['round']} {os.getpid()} {node} {begin} {time.time()}\n")
        return report

    def _logged(self, round_: int) -> bool:
        log = Path(os.environ["ROUND_LOG"])
        lines = log.read_text().splitlines() if log.exists() else []
        return any(line.split()[:2] == [str(self.number), str(round_)] for line in lines)

    def _fault(self, kind: str) -> None:
        marker = Path(f"{os.environ['ROUND_LOG']}.fault")
        before = marker.exists()
        marker.touch()
        if kind == "raise" or (kind == "raise_once" and not before):
            raise RuntimeError("the data are cursed")
        if kind == "hang" or (kind == "hang_once" and not before):
            assert isinstance(self.trial, CountedTrial)
            self.trial.run_round = hang  # type: ignore[method-assign]


def hang() -> Report:
    """Never comes back, and holds the interpreter's lock most of the time."""
    while True:
        math.factorial(20000)
