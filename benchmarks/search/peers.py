"""Syne Tune's searches on the same emulated trials, by its own simulator: `python peers.py --table FILE --out FILE`.

Runs in an environment of its own (`pip install 'syne-tune[blackbox-repository,gpsearchers]' pyarrow`), which needs
nothing of this product but the emulator beside this file. Time is simulated: a round takes what it costs, in runs of
one seed, and decisions what they really take; two workers. A trial has one seed, as these searches know none.
"""

import argparse
import contextlib
import io
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from emulator import ROUNDS, SPACE, Emulator, Repetition
from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend.simulator_backend.simulator_callback import SimulatorCallback
from syne_tune.blackbox_repository.blackbox import Blackbox
from syne_tune.blackbox_repository.simulated_tabular_backend import UserBlackboxBackend
from syne_tune.config_space import choice, loguniform, uniform
from syne_tune.optimizer import baselines

METRIC, TIME, RESOURCE = "robust", "elapsed", "round"
MOST_COST, WORKERS = 60.0, 2
SECONDS = 18.0
"""Of a run of one seed; what decisions take is added to the simulated time."""
KINDS = {"log": lambda low, high: loguniform(low, high), "uniform": lambda low, high: uniform(low, high)}
DOMAINS = {
    name: choice(list(values)) if kind == "choice" else KINDS[kind](*values) for name, (kind, values) in SPACE.items()
}
SEARCHES = {
    "Syne Tune ASHA": "ASHA",
    "Syne Tune BOHB": "BOHB",
    "Syne Tune ASHA + CQR": "ASHACQR",
    "Syne Tune BOTorch": "BOTorch",
}
SLOW, FEW = ("ASHACQR", "BOTorch"), 20
"""Searches whose decisions take so long that they get fewer repetitions."""


class Emulated(Blackbox):
    """One repetition of the emulator; seed 0 of each setting."""

    def __init__(self, emulator: Emulator, number: int) -> None:
        super().__init__(
            configuration_space=DOMAINS,
            fidelity_space={RESOURCE: uniform(1, ROUNDS)},
            objectives_names=[METRIC, TIME],
        )
        self.repetition = Repetition(emulator, number)
        self.shares = np.array(emulator.passes) / sum(emulator.passes)
        """Of a run, that each round costs."""

    @property
    def fidelity_values(self) -> np.ndarray:
        return np.arange(1, ROUNDS + 1)

    def _objective_function(self, configuration: dict[str, Any], fidelity: Any = None, seed: Any = None) -> Any:
        values = np.array([self.repetition.value(configuration, 0, round_) for round_ in range(1, ROUNDS + 1)])
        return np.column_stack([values, SECONDS * np.cumsum(self.shares)])


def trace_of(name: str, emulator: Emulator, number: int) -> list[tuple[float, float]]:
    """(cost, worth of the winner then): the trial with the highest value at its last round."""
    blackbox = Emulated(emulator, number)
    options: dict[str, Any] = {"metric": METRIC, "do_minimize": False, "random_seed": number}
    if name != "BOTorch":
        options |= {"time_attr": RESOURCE, "max_t": ROUNDS, "grace_period": 1, "reduction_factor": 2}
    scheduler = getattr(baselines, name)(DOMAINS, **options)
    kept = SimulatorCallback()
    tuner = Tuner(
        trial_backend=UserBlackboxBackend(blackbox=blackbox, elapsed_time_attr=TIME),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_wallclock_time=SECONDS * MOST_COST / WORKERS),
        n_workers=WORKERS,
        sleep_time=0,
        callbacks=[kept],
        print_update_interval=1e9,
        save_tuner=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        tuner.run()
    rows = kept.dataframe().sort_values("st_tuner_time", kind="stable")
    trace, cost, best = [], 0.0, -np.inf
    for row in rows.to_dict("records"):
        cost += float(blackbox.shares[int(row[RESOURCE]) - 1])
        if row[RESOURCE] == ROUNDS and row[METRIC] > best:
            best = row[METRIC]
            worth = blackbox.repetition.worth({path: row[f"config_{path}"] for path in SPACE})
            trace.append((cost, worth))
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--datasets", default="noisy_digits,noisy_mnist,noisy_fashion")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    found: dict[str, dict[str, Any]] = {}
    for dataset in given.datasets.split(","):
        emulator = Emulator(given.table, dataset)
        for label, name in SEARCHES.items():
            begin = time.process_time()
            traces = [trace_of(name, emulator, number) for number in range(FEW if name in SLOW else given.repetitions)]
            found.setdefault(dataset, {})[label] = {"traces": traces, "seconds": time.process_time() - begin}
            print(dataset, label, flush=True)
    given.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
