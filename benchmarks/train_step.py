"""One AR-DMVC-AM training step, written as a textbook would and as this project does, timed in one process.

    python benchmarks/train_step.py [--threads N] [--device cpu|cuda] [--repeats N] [--json]

Both paths take the same weights, batch (100 samples, two 28×28 views, cnn_small) and random start, and do the same
step: ten PGD iterations on the contrastive loss, clean pass, attacked pass, one Adam step.

*textbook*: published layer order, contiguous float32; every PGD iteration evaluates the whole loss and propagates
back to the perturbation and to all parameters. *ours*: what the trainer runs, in float32 and in bfloat16.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ardmvc_core.attacks.searches.pgd import random_start
from ardmvc_core.models.ar_dmvc import ARDMVCAMConfig, adversarial_terms, attack_in_training, build, stages
from ardmvc_core.models.comvc import aligned_clustering_terms
from ardmvc_core.models.simvc import FusedClustering
from ardmvc_core.networks.encoders import Encoder, bf16_encoders
from ardmvc_core.seeding import generator
from ardmvc_core.types import StepContext, Views

BATCH, SHAPE, N_CLUSTERS = 100, (1, 28, 28), 10
CONFIG = ARDMVCAMConfig(encoder="cnn_small")

CLEAR_REFS = Path("/proc/self/clear_refs")
BIASES_BEFORE_NORM = ("layers.2.bias", "layers.8.bias")

TOLERANCES = {"double_loss": 1e-9, "double_change": 1e-6, "single_loss": 1e-2, "single_gradient": 1e-2}
"""Largest relative differences that count as equal; of the change and the gradient, L2 over L2.

In double precision the whole step is compared. In single precision ten sign steps turn a rounding-sized gradient into
a whole step of one pixel, over and over, and Adam's first step does the same to parameters: there the whole step's
loss is compared, and the gradient of the outer loss on the same attacked views, where a ReLU or a maximum that flips by
rounding moves a first-layer gradient by up to about one per cent.
"""


def digits(device: torch.device) -> Views:
    """Two views of 100 real digits, enlarged to 28×28: the picture, and the picture with noise, both in [0, 1]."""
    pictures = torch.from_numpy(load_digits().images[:BATCH]).float()[:, None] / 16
    clean = interpolate(pictures, size=SHAPE[1:], mode="bilinear").clamp(0, 1)
    noise = torch.randn(clean.shape, generator=generator(7, "noise")) * 0.2
    noisy = clean + noise
    noisy = (noisy - noisy.min()) / (noisy.max() - noisy.min())
    return clean.to(device), noisy.to(device)


def textbook_network() -> FusedClustering:
    """The same network in the published order of layers, of torch's own layers only."""

    def block(channels: int) -> list[nn.Module]:
        first, second = nn.Conv2d(channels, 64, 3), nn.Conv2d(64, 64, 3)
        return [first, nn.ReLU(), second, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]

    encoders = [Encoder(nn.Sequential(*block(1), *block(64), nn.Flatten()), 1024) for _ in range(2)]
    return FusedClustering(encoders, N_CLUSTERS)


def textbook_step(model: FusedClustering, views: Views, start: Views) -> Tensor:
    """Total loss of the step; leaves the model after Adam's step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=CONFIG.learning_rate)
    deltas = [s - x for s, x in zip(start, views, strict=True)]
    for _ in range(CONFIG.train_steps):
        optimizer.zero_grad()
        for delta in deltas:
            delta.requires_grad_()
        output = model(tuple(x + d for x, d in zip(views, deltas, strict=True)))
        terms = aligned_clustering_terms(CONFIG, output, model.fusion.weights)
        terms["contrast_0_1"].backward()
        for v, (x, delta) in enumerate(zip(views, deltas, strict=True)):
            assert delta.grad is not None
            moved = delta.detach() + CONFIG.train_eps * CONFIG.train_step_ratio * delta.grad.sign()
            deltas[v] = (x + moved.clamp(-CONFIG.train_eps, CONFIG.train_eps)).clamp(0, 1) - x
    optimizer.zero_grad()
    moved_views = tuple(x + d for x, d in zip(views, deltas, strict=True))
    terms = adversarial_terms(CONFIG, model, model(views), model(moved_views))
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    optimizer.step()
    return total.detach()


def our_step(model: FusedClustering, views: Views, stream: torch.Generator, bf16: bool) -> Tensor:
    """The same step through the project's own stage."""
    objective = stages(CONFIG, 1)[0].objectives[0]
    optimizer = objective.optimizer(model)
    with bf16_encoders(model, bf16):
        terms = objective.terms(model, views, StepContext(epoch=0, step=0, generator=stream))
        total = torch.stack(list(terms.values())).sum()
        model.zero_grad()
        total.backward()
    optimizer.step()
    return total.detach()


def convolution_flop(model: FusedClustering, views: Views) -> tuple[float, float]:
    """Floating-point operations (a multiply-add is two) of one forward pass in all, and in the first, convolutions."""
    per_layer: list[tuple[bool, float]] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        flop = 2.0 * layer.weight[0].numel() * output.numel()
        per_layer.append((layer.in_channels == SHAPE[0], flop))

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model.eval()(views)
    for hook in hooks:
        hook.remove()
    return sum(flop for _, flop in per_layer), sum(flop for first, flop in per_layer if first)


def step_flop(model: FusedClustering, views: Views, *, parameters_in_attack: bool) -> float:
    """Convolutions of the whole step: forward, gradients to inputs, gradients to weights."""
    forward, first = convolution_flop(model, views)
    attack = CONFIG.train_steps * (3 if parameters_in_attack else 2) * forward
    return attack + 2 * (3 * forward - first)  # the two passes need no gradient with respect to the views


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 1536, repeats: int = 7) -> float:
    """Operations per second of a square matrix product: the best of `repeats`."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = [measured(lambda: left @ right, device)[0] for _ in range(repeats)]
    return 2 * size**3 / min(times)


def measured(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds on the wall, and seconds of CPU time of this process."""
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    wait(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")


def peak_megabytes(device: torch.device) -> float:
    """Highest memory since `reset_peak`: of the process, or of the accelerator. Where the system cannot forget a
    peak, it is the highest so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if CLEAR_REFS.exists():
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@dataclass
class Candidate:
    """One way to do the step, and what its runs took."""

    name: str
    model: FusedClustering
    step: Callable[[FusedClustering, torch.Generator], Tensor]
    flop: float
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: float = 0.0
    loss: float = 0.0

    def run(self, weights: dict[str, Tensor], seed: int) -> None:
        """One step from the given weights; every call does exactly the same."""
        device = next(iter(weights.values())).device
        self.model.load_state_dict(weights)
        self.model.train()
        stream = generator(seed, "inner attack", device=device)
        losses: list[Tensor] = []
        reset_peak(device)
        wall, cpu = measured(lambda: losses.append(self.step(self.model, stream)), device)
        self.wall.append(wall)
        self.cpu.append(cpu)
        self.peak = max(self.peak, peak_megabytes(device))
        self.loss = losses[0].item()


def candidates(views: Views) -> list[Candidate]:
    """Textbook, ours, ours in bfloat16, in the dtype and on the device of the views."""
    ours = build(CONFIG, (SHAPE, SHAPE), N_CLUSTERS).to(views[0])
    textbook = textbook_network().to(views[0])

    def plain(model: FusedClustering, stream: torch.Generator) -> Tensor:
        return textbook_step(model, views, random_start(views, CONFIG.threat(), stream))

    long = step_flop(textbook, views, parameters_in_attack=True)
    short = step_flop(ours, views, parameters_in_attack=False)
    return [
        Candidate("textbook fp32", textbook, plain, long),
        Candidate("ours fp32", ours, lambda model, stream: our_step(model, views, stream, bf16=False), short),
        Candidate("ours bf16", ours, lambda model, stream: our_step(model, views, stream, bf16=True), short),
    ]


def copied(model: FusedClustering) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def distance(got: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """L2 of the difference over the L2 of what was wanted, over all tensors together."""
    pairs = [(g.double(), w.double()) for g, w in zip(got, wanted, strict=True)]
    off = sum((g - w).square().sum().item() for g, w in pairs)
    return (off / sum(w.square().sum().item() for _, w in pairs)) ** 0.5


def check_double(device: torch.device, seed: int, samples: int) -> dict[str, float]:
    """The whole step in double precision: relative differences of loss and parameter change."""
    textbook, ours, _ = candidates(tuple(view[:samples].double() for view in digits(device)))
    weights = copied(ours.model)
    changes = []
    for path in (textbook, ours):
        path.run(weights, seed)
        after = copied(path.model)
        # A bias in front of BatchNorm has no gradient but rounding, which Adam turns into a step: left out.
        kept = [name for name, _ in path.model.named_parameters() if not name.endswith(BIASES_BEFORE_NORM)]
        changes.append([after[name] - weights[name] for name in kept])
    return {"double_loss": abs(ours.loss / textbook.loss - 1), "double_change": distance(changes[1], changes[0])}


def check_single(paths: list[Candidate], views: Views, weights: dict[str, Tensor], seed: int) -> dict[str, float]:
    """The whole step's loss in single precision, and the outer gradient on the same attacked views."""
    textbook, ours = paths[0], paths[1]
    start = random_start(views, CONFIG.threat(), generator(seed, "inner attack", device=views[0].device))
    ours.model.load_state_dict(weights)
    moved = attack_in_training(CONFIG, ours.model.train(), views, start)
    gradients = []
    for path in (textbook, ours):
        path.model.load_state_dict(weights)
        path.model.zero_grad()
        terms = adversarial_terms(CONFIG, path.model, path.model(views), path.model(moved))
        torch.stack(list(terms.values())).sum().backward()
        gradients.append([p.grad.clone() for p in path.model.parameters() if p.grad is not None])
    return {
        "single_loss": abs(ours.loss / textbook.loss - 1),
        "single_gradient": distance(gradients[1], gradients[0]),
    }


def run(device: torch.device, repeats: int, seed: int, check_samples: int) -> dict[str, Any]:
    """Measures all candidates in turn, `repeats` times after one warm-up each."""
    torch.manual_seed(seed)
    differences = check_double(device, seed, check_samples)
    views = digits(device)
    paths = candidates(views)
    weights = copied(paths[1].model)
    rates: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for repeat in range(repeats + 1):
        for path in paths:
            path.run(weights, seed)
            if repeat == 0:
                path.wall.clear()
                path.cpu.clear()
        for dtype, values in rates.items():
            values.append(product_rate(device, dtype))
    differences |= check_single(paths, views, weights, seed)
    rate = {str(dtype).removeprefix("torch."): statistics.median(values) for dtype, values in rates.items()}
    return {
        "machine": machine(device),
        "repeats": repeats,
        "product_gflops": {name: value / 1e9 for name, value in rate.items()},
        "paths": [summary(path, paths[0], rate) for path in paths],
        "differences": differences,
        "tolerances": TOLERANCES,
        "equal": all(differences[name] <= tolerance for name, tolerance in TOLERANCES.items()),
    }


def summary(path: Candidate, reference: Candidate, rate: dict[str, float]) -> dict[str, Any]:
    wall, cpu = statistics.median(path.wall), statistics.median(path.cpu)
    return {
        "name": path.name,
        "wall_s": wall,
        "cpu_s": cpu,
        # Each repeat runs the paths one after the other, so a slow spell of the machine meets all of them.
        "speedup_wall": statistics.median(r / p for r, p in zip(reference.wall, path.wall, strict=True)),
        "speedup_cpu": statistics.median(r / p for r, p in zip(reference.cpu, path.cpu, strict=True)),
        "peak_memory_mb": path.peak,
        "convolution_gflop": path.flop / 1e9,
        "share_of_fp32_product": path.flop / wall / rate["float32"],
        "share_of_bf16_product": path.flop / wall / rate["bfloat16"],
        "loss": path.loss,
    }


def machine(device: torch.device) -> str:
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {kind}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="alternating repeats; medians are reported")
    parser.add_argument("--check-samples", type=int, default=16, help="samples of the check in double precision")
    parser.add_argument("--seed", type=int, default=7, help="of weights and random start")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()
    if options.threads < 1 or options.repeats < 1 or not 2 <= options.check_samples <= BATCH:
        parser.error(f"--threads and --repeats must be ≥ 1, --check-samples between 2 and {BATCH}")
    torch.set_num_threads(options.threads)
    result = run(torch.device(options.device), options.repeats, options.seed, options.check_samples)
    print(json.dumps(result) if options.json else table(result))
    return 0 if result["equal"] else 1


def table(result: dict[str, Any]) -> str:
    rate = result["product_gflops"]
    head = (
        f"{'path':<14}{'wall s':>8}{'CPU s':>8}{'× wall':>8}{'× CPU':>8}{'peak MB':>9}{'GFLOP':>7}"
        f"{'of fp32':>9}{'of bf16':>9}{'loss':>9}"
    )
    rows = [
        f"{path['name']:<14}{path['wall_s']:>8.2f}{path['cpu_s']:>8.2f}{path['speedup_wall']:>8.2f}"
        f"{path['speedup_cpu']:>8.2f}{path['peak_memory_mb']:>9.0f}{path['convolution_gflop']:>7.0f}"
        f"{path['share_of_fp32_product']:>9.0%}{path['share_of_bf16_product']:>9.0%}{path['loss']:>9.4f}"
        for path in result["paths"]
    ]
    checks = [
        f"  {name.replace('_', ' ')}: {result['differences'][name]:.1e} (at most {tolerance:g})"
        for name, tolerance in result["tolerances"].items()
    ]
    return "\n".join(
        [
            f"{result['machine']}; medians of {result['repeats']} alternating repeats",
            f"matrix product: {rate['float32']:.0f} GFLOP/s in fp32, {rate['bfloat16']:.0f} GFLOP/s in bf16",
            "",
            head,
            *rows,
            "",
            f"ours in fp32 and textbook: {'equal' if result['equal'] else 'NOT EQUAL'}, relative differences",
            *checks,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
