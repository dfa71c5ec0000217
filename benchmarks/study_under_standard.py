"""A finished study's numbers beside `standard` on the same samples: `python benchmarks/study_under_standard.py NAME`.

Every seed's model of every complete trial is attacked again with the whole tier, surrogates included. `--storage` is
the study's `storage.path`. Results are kept in the folder `--keep`, so that the same command goes on; the table goes to
stdout.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

import study
from ardmvc_core.evaluation.worst_case import evaluate_suite
from trainables.building import load_model
from trainables.data_parts import cached_parts
from trainables.saved_trial import saved_facts
from trainables.surrogates import tier_surrogates

METRIC = "robust/acc"


def seeds_under_standard(checkpoint: str) -> list[float]:
    """Robust ACC of each seed's model on the samples that the trial was scored on."""
    facts = saved_facts(checkpoint)
    config = facts.config
    parts = {name: part.data for name, part in cached_parts(config.dataset, "strict").items()}
    budget = replace(config.evaluation, tier="standard").resolve(config.dataset.name, len(parts["tune"].views))
    surrogates = tier_surrogates(config, parts["attacker"], "standard", budget.seed)
    found = []
    for repeat in range(facts.models):
        model, _ = load_model(checkpoint, torch.device("cpu"), repeat, facts)
        suite = evaluate_suite(model, parts["tune"], parts["attacker"].views, budget, surrogates=surrogates)
        found.append(suite.evaluation.values[METRIC])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--keep", type=Path, default=Path("standard"))
    parser.add_argument("--first", default="", help="trials to begin with, such as 5,0,1")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.keep.mkdir(parents=True, exist_ok=True)
    records = [one for one in study.open(given.name, storage=given.storage).records if one.state == "COMPLETE"]
    first = [int(number) for number in given.first.split(",") if number]
    records.sort(key=lambda one: first.index(one.number) if one.number in first else len(first))
    print(
        "| trial | in the study | standard, mean over seeds | apart | standard, seed by seed |\n|---|---|---|---|---|"
    )
    apart = []
    for record in records:
        file = given.keep / f"{record.number:05d}.json"
        if not file.exists():
            assert record.checkpoint is not None
            file.write_text(json.dumps(seeds_under_standard(record.checkpoint)))
        seeds, own = json.loads(file.read_text()), record.metrics[METRIC]
        apart.append(own - fmean(seeds))
        each = ", ".join(f"{one:.3f}" for one in seeds)
        print(f"| {record.number} | {own:.3f} | {fmean(seeds):.3f} | {apart[-1]:.3f} | {each} |", flush=True)
    print(f"\n{len(apart)} trials; apart by {max(apart):.3f} at most, {fmean(apart):.3f} on average.")


if __name__ == "__main__":
    main()
