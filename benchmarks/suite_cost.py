"""What the tiers cost on the NoisyDigits model, on one core: `python benchmarks/suite_cost.py`.

Trains AR-DMVC-AM with the paper's weights for twenty epochs, then runs `probe` on 200 samples and `tune` on 500 (drawn
with replacement from parts that were not trained on: a cost does not mind), and prints seconds and passes.
"""

import time
from dataclasses import replace

import torch

from ardmvc_core.attacks.suite import run_suite
from ardmvc_core.attacks.tiers import Tier
from trainables.config import TrialConfig
from trainables.data_parts import cached_parts
from trainables.trial import Trial

SIZES: dict[Tier, int] = {"probe": 200, "tune": 500}


def main() -> None:
    torch.set_num_threads(1)
    config = TrialConfig.model_validate(
        {
            "dataset": {"name": "noisy_digits"},
            "model": {"name": "ar_dmvc_am", "train_eps": 0.2, "train_steps": 3, "train_step_ratio": 0.5},
            "epochs": 20,
            "batch_size": 50,
        }
    )
    trainer = Trial(config).trainers[0]
    while not trainer.finished:
        trainer.run_epoch()
    parts = cached_parts(config.dataset, "strict")
    held_out = [parts[name].data.views for name in ("tune", "score")]
    views = tuple(torch.cat(view) for view in zip(*held_out, strict=True))
    budget = replace(config.evaluation, tier="tune").resolve("noisy_digits", len(views)).threat()
    for tier, count in SIZES.items():
        rows = torch.randint(len(views[0]), (count,), generator=torch.Generator().manual_seed(0))
        samples = tuple(view[rows] for view in views)
        begin = time.perf_counter()
        result = run_suite(trainer.model, samples, budget, tier=tier)
        seconds = time.perf_counter() - begin
        forwards = sum(record.forwards for record in result.records)
        backwards = sum(record.backwards for record in result.records)
        print(
            f"{tier}: {count} samples, {seconds:.1f} s, {forwards} forward and {backwards} backward passes of a "
            f"sample, flip rate {result.flip_rate:.3f}"
        )


if __name__ == "__main__":
    main()
