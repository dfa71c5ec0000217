"""Where training in bf16 ends beside training in fp32, seed by seed: `python benchmarks/bf16_ends.py`, minutes.

AR-DMVC-AM with the paper's weights on a few thousand NoisyMNIST images (from ARDMVC_DATA), once in each precision from
the same weights, batches and random starts; then the tier `tune` in fp32 on the tuning part. Says the paired
differences bf16 − fp32, their 95 % interval, and how far apart the gradients of the first step are.
"""

import argparse
import statistics

import torch
from scipy.stats import t as student

from ardmvc_core.networks.encoders import bf16_encoders
from ardmvc_core.seeding import generator
from ardmvc_core.types import StepContext
from trainables.config import TrialConfig
from trainables.trial import Trial

METRICS = ("clean/acc", "clean/nmi", "robust/acc", "loss/total")


def trial_of(precision: str, seed: int, samples: int, encoder: str, epochs: int) -> Trial:
    """A trial of one seed and one round: all of the training, then the evaluation."""
    model = {"name": "ar_dmvc_am", "encoder": encoder, "train_steps": 2, "train_step_ratio": 0.75}
    config = {
        "dataset": {"name": "noisy_mnist", "samples": samples},
        "evaluation": {"eps": 0.05},
        "epochs": epochs,
        "evaluate_every": epochs,
    }
    return Trial(TrialConfig.model_validate({**config, "model": model, "precision": precision, "seed": seed}))


def first_gradient(trial: Trial, precision: str) -> torch.Tensor:
    """Gradient of the first batch's loss, all parameters in one vector; the trial's own streams do not move."""
    trainer = trial.trainers[0]
    stage = trial.method.stages(trial.config.model, trial.config.epochs)[0]
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    batch = tuple(view[: trial.config.batch_size] for view in trainer.views)
    step = StepContext(epoch=0, step=0, generator=generator(0, "inner attack"))
    with bf16_encoders(trainer.model.train(), precision == "bf16"):
        terms = stage.objectives[0].terms(trainer.model, batch, step)
        gradients = torch.autograd.grad(torch.stack(tuple(terms.values())).sum(), list(trainer.model.parameters()))
    trainer.model.load_state_dict(before)
    return torch.cat([gradient.flatten() for gradient in gradients])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--encoder", default="dense")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, 1 thread", flush=True)
    print("| seed | precision | " + " | ".join(METRICS) + " | training, s |")
    print("|---|---|" + "---|" * (len(METRICS) + 1))
    found: dict[str, list[dict[str, float]]] = {"fp32": [], "bf16": []}
    apart = []
    for seed in given.seeds:
        gradients = []
        for precision, ends in found.items():
            trial = trial_of(precision, seed, given.samples, given.encoder, given.epochs)
            gradients.append(first_gradient(trial, precision))
            report = trial.run_round()
            if trial.failure is not None:
                raise SystemExit(f"seed {seed} in {precision}: {trial.failure}")
            ends.append({name: report[name] for name in METRICS})
            values = " | ".join(f"{report[name]:.4f}" for name in METRICS)
            print(f"| {seed} | {precision} | {values} | {report['time/train_s']:.0f} |", flush=True)
        apart.append(float((gradients[1] - gradients[0]).norm() / gradients[0].norm()))
    print(f"\nfirst gradient, |bf16 − fp32| / |fp32|: {', '.join(f'{one:.2f}' for one in apart)}")
    print("\n| bf16 − fp32 | mean | 95 % interval |\n|---|---|---|")
    for name in METRICS:
        pairs = zip(found["bf16"], found["fp32"], strict=True)
        differences = [rounded[name] - exact[name] for rounded, exact in pairs]
        mean = statistics.fmean(differences)
        error = statistics.stdev(differences) / len(differences) ** 0.5
        half = float(student.ppf(0.975, len(differences) - 1)) * error
        print(f"| {name} | {mean:+.4f} | {mean - half:+.4f} to {mean + half:+.4f} |")


if __name__ == "__main__":
    main()
