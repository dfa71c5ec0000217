"""Driver, worker and Ray are killed at random moments, for `FAULT_MINUTES` (ten); then everything must be there once.

`FAULT_SEED` repeats the faults of another run, as far as two runs can be alike. What is done is printed: pytest
shows it when the test fails, or with -s.
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from counted_trainables import CountedTrial
from fault_study import TRIALS, FaultStudy, family, is_alive, note, process_of

SEED = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1 << 32))
MINUTES = float(os.environ.get("FAULT_MINUTES", "10"))
CHANGES = {"sampler": {"name": "random"}, "limits": {"trials": TRIALS, "failures": 0, "concurrent": 2}}
LONGEST_PAUSE = 14.0
"""Seconds between two faults, at most: often enough while a driver starts, and long enough for one to get through."""
END_SECONDS = 100
"""How long a driver may take to end that has lost its Ray: a generous bound, below which a hang does not come."""


class Injector:
    """Drives one study while it kills what belongs to it."""

    def __init__(self, study: FaultStudy, moments: random.Random, end: float) -> None:
        self.study, self._moments, self._end = study, moments, end
        self._begin = time.monotonic()
        self._struck: set[tuple[int, int]] = set()
        """Rounds after which a worker was killed: three times without a new round, and a trial has failed by rights."""
        self.ever: set[int] = set()
        """Processes that were seen."""
        self.faults = 0

    def log(self, text: str) -> None:
        print(f"{time.monotonic() - self._begin:7.1f} s  {text}")

    def run(self) -> None:
        """Starts drivers until one comes to the study's end."""
        while True:
            driver = self.study.start(ROUND_SECONDS="0.5")
            self.log(f"driver {driver.pid} starts")
            code = self._disturb(driver)
            if code == 0:
                self.log("the study has come to its end")
                return

    def _disturb(self, driver: "subprocess.Popen[str]") -> int:
        """Kills what the dice say, until the driver has ended. Returns: its exit code."""
        while time.monotonic() < self._end:
            self._pause(driver)
            self.ever |= set(family(driver.pid))
            if driver.poll() is not None:
                break
            kind = self._moments.choice(["driver", "worker", "worker", "raylet", "gcs_server"])
            if not self._strike(driver, kind):
                continue
            self.faults += 1
            if kind == "driver":
                driver.wait()
                return -signal.SIGKILL
            if kind != "worker":
                code = driver.wait(END_SECONDS)
                self.log(f"driver {driver.pid} has ended with {code}")
                assert code in {0, 1, 2}, self.study.output[-3000:]
                return code
        code = self.study.wait(driver)
        assert code == 0, self.study.output[-3000:]
        return code

    def _pause(self, driver: "subprocess.Popen[str]") -> None:
        until = time.monotonic() + self._moments.uniform(0, LONGEST_PAUSE)
        while time.monotonic() < until and driver.poll() is None:
            time.sleep(0.02)

    def _strike(self, driver: "subprocess.Popen[str]", kind: str) -> bool:
        """Returns: whether there was something to kill."""
        victim: int | None
        if kind == "driver":
            victim = driver.pid
        elif kind == "worker":
            number, round_, victim, _ = (self.study.rounds() or [(0, 0, 0, "")])[-1]
            if (number, round_) in self._struck or victim not in family(driver.pid):
                return False
            self._struck.add((number, round_))
        else:
            victim = process_of(driver, kind)
        if victim is None:
            return False
        self.log(f"SIGKILL for the {kind}, process {victim}")
        os.kill(victim, signal.SIGKILL)
        return True


@pytest.mark.slow
def test_faults_at_random_moments(tmp_path: Path) -> None:
    print(f"FAULT_SEED={SEED} FAULT_MINUTES={MINUTES:g}")
    moments, end = random.Random(SEED), time.monotonic() + 60 * MINUTES
    studies = 0
    while time.monotonic() < end:
        injector = Injector(FaultStudy(tmp_path / f"study_{studies}", changes=CHANGES), moments, end)
        begin = time.monotonic()
        injector.run()
        left = injector.study.check(None)
        for record in left.records:
            assert record.values == (CountedTrial(record.number, record.config).goal,)
        injector.log(f"{injector.faults} faults, {sum(left.repeated.values())} rounds repeated, all is there once")
        injector.study.until(lambda seen=injector.ever: not any(map(is_alive, seen)))
        note(f"{injector.faults} faults at random, seed {SEED}, study {studies}", left, time.monotonic() - begin)
        studies += 1
