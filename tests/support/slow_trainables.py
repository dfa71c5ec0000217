"""A trainable whose rounds wait for the test, and the driver that runs it: python slow_trainables.py FILE PATH=VALUE…

`GATES` names a folder. A round tells there that it has begun (`begun_NUMBER_ROUND`, holding its process id), and ends
once `open_NUMBER_ROUND` or `open_all` is there.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from staged_trainables import Staged, StagedTrial

from trainables.trial import Report

MINUTES = 4


class GatedTrial(StagedTrial):
    def run_round(self) -> Report:
        gates, name = Path(os.environ["GATES"]), f"{self.number}_{self.round + 1}"
        draft = gates / f"draft_{name}"
        draft.write_text(str(os.getpid()))
        draft.rename(gates / f"begun_{name}")
        deadline = time.monotonic() + 60 * MINUTES
        while not ((gates / f"open_{name}").exists() or (gates / "open_all").exists()):
            if time.monotonic() > deadline:  # the test has ended, and nobody opens any more
                raise RuntimeError(f"the gate of round {name} stayed closed")
            time.sleep(0.02)
        return super().run_round()


class Gated(Staged):
    """Runs well, when it may."""

    def build(self, config: dict[str, Any]) -> GatedTrial:
        return GatedTrial(self.number, 0.4 if self.number % 2 else 0.8)


def main() -> int:
    """What `python -m study.sweep` does, with the trainable of this file."""
    from slow_trainables import Gated  # as workers will find it, and not as a part of this script

    from study.cli import exit_code_of
    from study.driver.run import run_study
    from study.spec.study_spec import load_spec

    given = argparse.Namespace(debug=False)
    return exit_code_of(lambda _: run_study(load_spec(sys.argv[1], sys.argv[2:]), trainable=Gated), given)


if __name__ == "__main__":
    sys.exit(main())
