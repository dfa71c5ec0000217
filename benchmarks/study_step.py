"""What a training step of the default study costs, here and in another checkout, in turn.

    python benchmarks/study_step.py [--against FOLDER] [--rounds N] [--epochs N]

AR-DMVC-AM of `ar_dmvc_am.yaml` with the paper's weights: NoisyDigits with its small convolutional network, and random
28×28 views with the dense one. One thread. Each round is a process for every checkout and network, one after the other,
so that a slow spell of the machine meets both. Printed are milliseconds of CPU time of a step: the least and the
median epoch of all rounds, and the ratio of the medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
NETWORKS = ("convolutions", "dense")


def step_times(network: str, epochs: int) -> list[float]:
    """CPU seconds of a step, of each epoch after a first one that is not counted."""
    import torch

    from ardmvc_core.models import MODELS
    from ardmvc_core.seeding import seed_everything
    from ardmvc_core.training import Trainer

    torch.set_num_threads(1)
    seed_everything(7)
    method = MODELS["ar_dmvc_am"]
    encoder, side, batch, clusters = ("cnn_digits", 8, 50, 5) if network == "convolutions" else ("dense", 28, 100, 10)
    config = method.config(train_steps=2, train_step_ratio=0.75, encoder=encoder)
    views = tuple(torch.rand(10 * batch, 1, side, side) for _ in range(2))
    model = method.build(config, ((1, side, side),) * 2, clusters)
    trainer = Trainer(model, method.stages(config, epochs + 1), views, batch_size=batch, seed=7)
    trainer.run_epoch()
    seconds = []
    for _ in range(epochs):
        begin = time.process_time()
        trainer.run_epoch()
        seconds.append((time.process_time() - begin) / 10)
    return seconds


def measured_in(checkout: Path, network: str, epochs: int) -> list[float]:
    """`step_times` of this file in a new process that imports the packages of a checkout."""
    command = [sys.executable, __file__, "--network", network, "--epochs", str(epochs)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True)
    return [float(value) for value in json.loads(done.stdout)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="a checkout of another commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--network", choices=NETWORKS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.network is not None:
        print(json.dumps(step_times(given.network, given.epochs)))
        return
    checkouts = {"here": HERE} if given.against is None else {"before": given.against.resolve(), "here": HERE}
    print(f"load {os.getloadavg()[0]:.1f}", end="", flush=True)
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(given.rounds):
        for network in NETWORKS:
            for name, checkout in checkouts.items():
                found.setdefault((network, name), []).extend(measured_in(checkout, network, given.epochs))
    print(f" at the start, {os.getloadavg()[0]:.1f} at the end\n\n| network | code | least, ms | median, ms |  × |")
    print("|---|---|---|---|---|")
    for (network, name), seconds in found.items():
        median = statistics.median(seconds)
        ratio = statistics.median(found[network, next(iter(checkouts))]) / median
        print(f"| {network} | {name} | {1e3 * min(seconds):.1f} | {1e3 * median:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
