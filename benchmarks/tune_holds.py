"""How far `tune` is from `standard`: `python benchmarks/tune_holds.py FOLDER`, on thirty models, hours on two cores.

Muted and unmuted, defended and not, CNN and dense, three data sets and three models without DDC's head or defence. Each
is trained once, then both tiers attack the first 100 samples of its tuning part, with the surrogates of `standard`.
Weights and results go to FOLDER as they come, so that the same command goes on; the table goes to stdout. MNIST and
Fashion-MNIST come from ARDMVC_DATA. `--only TEXT` leaves out models whose name does not hold it.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ardmvc_core.attacks.tiers import Tier
from ardmvc_core.evaluation.worst_case import evaluate_suite
from ardmvc_core.training import calibrate
from trainables.config import TrialConfig
from trainables.surrogates import tier_surrogates
from trainables.trial import Trial

SAMPLES = 100
COMPARED: tuple[Tier, ...] = ("tune", "standard")
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {"adversarial_weight": 0, "mitigator_weight": 0},
    "paper": {"adversarial_weight": 1, "mitigator_weight": 0.1, "train_eps": 0.2},
    "contrastive": {"adversarial_weight": 9.3, "mitigator_weight": 0.018, "train_eps": 0.1},
    "assignment": {
        **{"adversarial_weight": 0.035, "mitigator_weight": 1, "train_eps": 0.1},
        **{"inner_objective": "assignment", "train_eps_warmup": 5},
    },
    "both": {"adversarial_weight": 0.3, "mitigator_weight": 0.3, "train_eps": 0.15, "inner_objective": "both"},
}


def configs() -> dict[str, TrialConfig]:
    """Name → config of each model; every one has a seed of its own."""
    raw: dict[str, dict[str, Any]] = {}
    for muted in (False, True):
        for encoder in ("cnn", "dense"):
            for name, defence in DEFENCES.items():
                raw[f"digits_{encoder}_{_word(muted)}_{name}"] = _defended("noisy_digits", encoder, muted, defence)
    for dataset in ("noisy_fashion", "noisy_mnist"):
        for muted in (False, True):
            for name in ("none", "assignment"):
                if (dataset, muted, name) != ("noisy_mnist", True, "none"):
                    key = f"{dataset}_dense_{_word(muted)}_{name}"
                    raw[key] = _defended(dataset, "dense", muted, DEFENCES[name])
    for number, config in enumerate(raw.values(), 1):
        config["seed"] = 7 + number
    for number, name in enumerate(("simvc", "multi_vae", "sem")):
        raw[f"digits_{name}"] = {**_trial("noisy_digits", {"name": name}), "seed": 50 + number}
    return {name: TrialConfig.model_validate(config) for name, config in raw.items()}


def _word(muted: bool) -> str:
    return "muted" if muted else "unmuted"


def _defended(dataset: str, encoder: str, muted: bool, defence: dict[str, Any]) -> dict[str, Any]:
    model = {"name": "ar_dmvc_am", "train_steps": 3, "train_step_ratio": 0.5, "mute_dead_units": muted, **defence}
    if encoder == "dense":
        model["encoder"] = encoder
    if dataset != "noisy_digits":
        model["train_eps"] = model.get("train_eps", 0.1) / 2
    return _trial(dataset, model)


def _trial(dataset: str, model: dict[str, Any]) -> dict[str, Any]:
    images = dataset != "noisy_digits"
    return {
        "dataset": {"name": dataset, **({"samples": 2000} if images else {})},
        "model": model,
        "epochs": 20,
        "batch_size": 100 if images else 50,
        "evaluation": {"samples": SAMPLES, **({"eps": 0.05} if images else {})},
    }


def trained(config: TrialConfig, file: Path) -> Trial:
    """The trial with its weights, from the file where it is there."""
    trial = Trial(config)
    (run,) = trial.runs
    if file.exists():
        run.trainer.model.load_state_dict(torch.load(file, weights_only=True))
    else:
        while not run.trainer.finished:
            run.trainer.run_epoch()
        calibrate(trial.method, run.trainer.model, trial.parts["strict"]["train"].views, run.seed)
        torch.save(run.trainer.model.state_dict(), file)
    return trial


def measured(trial: Trial, tier: Tier) -> dict[str, Any]:
    """Scores, passes and seconds of a tier."""
    (run,), parts = trial.runs, trial.parts["strict"]
    attacker = parts["attacker"]
    surrogates = tier_surrogates(trial.config, attacker, tier, seed=7)
    budget, begin = replace(trial.budget, tier=tier), time.perf_counter()
    suite = evaluate_suite(run.trainer.model, parts["tune"], attacker.views, budget, surrogates=surrogates)
    values = suite.evaluation.values
    return {
        "clean/acc": values["clean/acc"],
        f"{tier}/acc": values["robust/acc"],
        f"{tier}/s": time.perf_counter() - begin,
        f"{tier}/passes": (values["cost/forwards"] + values["cost/backwards"]) / len(suite.data),
        f"{tier}/new": {record.key: record.new for record in suite.result.records if record.new},
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Models by how far their two numbers are apart."""
    lines = [
        "| model | clean ACC | tune | standard | apart | tune: passes, s | standard |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in sorted(found.items(), key=lambda pair: pair[1]["standard/acc"] - pair[1]["tune/acc"]):
        tune, standard = one["tune/acc"], one["standard/acc"]
        costs = [f"{one[f'{tier}/passes']:,.0f}, {one[f'{tier}/s']:.0f}" for tier in ("tune", "standard")]
        lines.append(
            f"| {name} | {one['clean/acc']:.3f} | {tune:.3f} | {standard:.3f} | {tune - standard:.3f} | "
            f"{costs[0]} | {costs[1]} |"
        )
    apart = [one["tune/acc"] - one["standard/acc"] for one in found.values()]
    shares = [one["tune/passes"] / one["standard/passes"] for one in found.values()]
    lines += ["", f"{len(apart)} models; apart by {max(apart):.3f} at most, {sum(apart) / len(apart):.3f} on average; "]
    lines[-1] += f"`tune` takes {sum(shares) / len(shares):.2f} of the passes of `standard` on average."
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for name, config in configs().items():
        results = {tier: given.folder / f"{name}.{tier}.json" for tier in COMPARED}
        missing = [tier for tier, file in results.items() if not file.exists()]
        if given.only in name and missing:
            trial = trained(config, given.folder / f"{name}.pt")
            for tier in missing:
                results[tier].write_text(json.dumps(measured(trial, tier)))
        if all(file.exists() for file in results.values()):
            found[name] = {
                key: value for file in results.values() for key, value in json.loads(file.read_text()).items()
            }
    print(table(found))


if __name__ == "__main__":
    main()
