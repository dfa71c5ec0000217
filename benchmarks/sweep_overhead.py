"""What the stack costs: 16 trials of 5 empty rounds through Ray, Optuna's database, checkpoints and MLflow.

python benchmarks/sweep_overhead.py [--trials 16] [--json]

Prints the whole time, what starting and stopping Ray alone takes (measured in the same process, before), and the rest.
The first study ever on a machine also makes MLflow's tables, some six seconds; the user's cache keeps an empty file.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from study.driver.run import run_study
from study.spec.study_spec import load_spec
from trainables.trainable import TrialTrainable
from trainables.trial import Report

ROUNDS = 5


class EmptyTrial:
    """Reports what a trial reports, and does nothing else."""

    def __init__(self) -> None:
        self.round = 0

    def run_round(self) -> Report:
        self.round += 1
        names = ["clean/acc", "clean/nmi", "clean/ari", "probe/acc", "probe/flip", "robust/acc", "robust/flip"]
        metrics: Report = dict.fromkeys(names, 0.5)
        return {**metrics, "round": self.round, "rounds": ROUNDS, "seconds": 0.0, "done": self.round == ROUNDS}

    def save(self, folder: Path) -> None:
        (folder / "state.json").write_text(str(self.round))

    def load(self, folder: Path) -> None:
        self.round = int((folder / "state.json").read_text())


class EmptyTrainable(TrialTrainable):
    def build(self, config: dict[str, Any]) -> EmptyTrial:
        return EmptyTrial()


def ray_alone() -> tuple[float, float]:
    """Seconds to start, and to stop, a local Ray with nothing in it."""
    begin = time.perf_counter()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    started = time.perf_counter()
    ray.shutdown()
    return started - begin, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    start, stop = ray_alone()
    with tempfile.TemporaryDirectory() as folder:
        epochs = [f"trial.epochs={ROUNDS}", "trial.evaluate_every=1", "trial.repeats=1"]
        sets = [f"storage.path={folder}", "name=overhead", "limits.concurrent=2", *epochs]
        spec = load_spec("ar_dmvc_am.yaml", sets, arguments.trials)
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = run_study(spec, trainable=EmptyTrainable)
        whole = time.perf_counter() - begin
    assert code == 0, f"the study ended with {code}"
    figures = {
        "trials": arguments.trials,
        "rounds": ROUNDS,
        "whole_s": round(whole, 2),
        "start_ray_s": round(start, 2),
        "stop_ray_s": round(stop, 2),
        "beyond_start_s": round(whole - start, 2),
        "beyond_start_and_stop_s": round(whole - start - stop, 2),
    }
    print(json.dumps(figures) if arguments.json else "\n".join(f"{key:24} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
