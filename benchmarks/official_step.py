"""A training step and a batch of the GAN attack, by the authors' code and by ours, timed in one process.

    ARDMVC_AUTHORS=FOLDER python benchmarks/official_step.py [--threads N] [--repeats N] [--precisions fp32 bf16]

FOLDER is a copy of the authors' repository (libertyhhn/AR-DMVC) that runs here, with all that it imports;
it is not part of this project. Without it `--alone` times ours only.

Both take 100 samples, two 28×28 views, the published network, ten PGD iterations for a training step, the published
generators and losses for an attack batch. The weights are not the same: that both compute the same is what the tests on
published numbers show. The authors' code has no bf16: all ratios are against its fp32.
"""

import argparse
import importlib
import os
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import kl_div
from train_step import CONFIG, N_CLUSTERS, SHAPE, digits, machine, measured, our_step

from ardmvc_core.attacks.generators.gan import GANNetworks, gan_step, official_gan
from ardmvc_core.attacks.searches.pgd import frozen
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.models.ar_dmvc import build
from ardmvc_core.networks.encoders import bf16_encoders
from ardmvc_core.seeding import generator
from ardmvc_core.types import Views

VARIABLE = "ARDMVC_AUTHORS"
NEEDED = ("run.py", "trainer.py", "config", "models")
CPU = torch.device("cpu")
ATTACK_EPS = 0.3
MITIGATOR, SMOOTHING = 0.1, 1e-4

Work = dict[str, Callable[[], Any]]
"""`training step` and `attack batch` of one path."""


def authors_folder() -> Path:
    """The folder that the variable names. Raises: ValueError, with what to set, if there is none or it is another."""
    named = os.environ.get(VARIABLE)
    if not named:
        raise ValueError(f"set {VARIABLE} to a copy of the authors' repository, or measure ours with --alone")
    missing = [name for name in NEEDED if not (Path(named) / name).exists()]
    if missing:
        raise ValueError(f"{VARIABLE} must name the authors' repository; {named} has no {', '.join(missing)}")
    return Path(named).resolve()


def authors_work(folder: Path, views: Views) -> Work:
    """The authors' own functions for NoisyMNIST; only what their training loop does between them is written here."""
    sys.path.insert(0, str(folder))
    _, experiment = importlib.import_module("config").get_experiment_config("noisymnist", "ardmvc_am")
    perturbed = importlib.import_module("run").PGD_contrastive
    network = importlib.import_module("models.build_model").build_model(experiment.model_config).to(CPU).train()
    optimizer = network.configure_optimizers()
    labels = torch.zeros(len(views[0]), dtype=torch.long)

    def step() -> None:
        attacked = perturbed(
            network,
            list(views),
            eps=CONFIG.train_eps,
            alpha=CONFIG.train_eps * CONFIG.train_step_ratio,
            iters=CONFIG.train_steps,
        )
        optimizer.zero_grad()
        losses, assignments = [], []
        for batch in (views, attacked):
            losses.append(network.training_step([*batch, labels], 0))
            assignments.append(network.output + SMOOTHING)
        clean, moved = assignments
        (sum(losses) + MITIGATOR * kl_div(moved.log(), clean, reduction="batchmean")).backward()
        optimizer.step()

    settings = Namespace(device=CPU, data_name="noisymnist", atk_mode=1)
    attack = importlib.import_module("trainer").GAN_Attack(settings, network, perb_eps=ATTACK_EPS)

    def attack_batch() -> None:
        with frozen(network):  # as their attack has it
            attack.train_batch(list(views))

    return {"training step": step, "attack batch": attack_batch}


def our_work(views: Views, *, bf16: bool) -> Work:
    """What the trainer and the official protocol run."""
    model = build(CONFIG, (SHAPE,) * len(views), N_CLUSTERS).train()
    stream = generator(7, "inner attack")
    config, budget = official_gan(), Threat(eps=ATTACK_EPS)
    networks = GANNetworks(config, (SHAPE,) * len(views), 7, CPU)

    def attack_batch() -> None:
        with frozen(model), bf16_encoders(model, bf16):
            gan_step(networks, config, budget, model, views)

    return {"training step": lambda: our_step(model, views, stream, bf16), "attack batch": attack_batch}


def timed(paths: dict[str, Work], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every path's work, `repeats` times after one warm-up, in turn: a slow spell meets all of them."""
    seconds: dict[str, dict[str, list[float]]] = {path: {name: [] for name in work} for path, work in paths.items()}
    for repeat in range(repeats + 1):
        for path, work in paths.items():
            for name, call in work.items():
                wall, _ = measured(call, CPU)
                if repeat > 0:
                    seconds[path][name].append(wall)
    return seconds


def table(seconds: dict[str, dict[str, list[float]]]) -> str:
    """Medians, and the median ratio against the first path."""
    first = next(iter(seconds.values()))
    rows = ["| | " + " | ".join(f"{name}, s | × " for name in first) + "|", "|---|" + "---|" * 2 * len(first)]
    for path, works in seconds.items():
        cells = []
        for name, times in works.items():
            ratio = statistics.median(before / now for before, now in zip(first[name], times, strict=True))
            cells.append(f"{statistics.median(times):.3f} | {ratio:.2f}")
        rows.append(f"| {path} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", action="store_true", help="time ours only")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=5, help="in turn, after one warm-up; medians are reported")
    parser.add_argument("--samples", type=int, default=100, help="of the batch, 2 to 100")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    given = parser.parse_args(arguments)
    if given.threads < 1 or given.repeats < 1 or not 2 <= given.samples <= 100:
        parser.error("--threads and --repeats must be ≥ 1, --samples between 2 and 100")
    torch.set_num_threads(given.threads)
    torch.manual_seed(7)
    views = tuple(view[: given.samples] for view in digits(CPU))
    paths: dict[str, Work] = {}
    if not given.alone:
        try:
            paths["the authors', fp32"] = authors_work(authors_folder(), views)
        except (ValueError, ImportError) as error:
            print(error, file=sys.stderr)
            return 2
    paths |= {f"ours, {precision}": our_work(views, bf16=precision == "bf16") for precision in given.precisions}
    before = os.getloadavg()[0]
    seconds = timed(paths, given.repeats)
    print(f"{machine(CPU)}; load {before:.1f} at the start, {os.getloadavg()[0]:.1f} at the end")
    if given.alone:
        print("ours alone: × is against our first line, and says nothing about the authors' code")
    print("\n" + table(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
