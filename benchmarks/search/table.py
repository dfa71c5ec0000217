"""The table that searches are judged by: `python benchmarks/search/table.py DATASET FOLDER`, hours on two cores.

102 settings of the default study's space (its two baselines and a Sobol sequence) × 5 seeds, the same ones for all.
Of each: every round's probe; at the end the tier `tune` on the tuning part, which a search may read, and on the score
part, which it is judged by; what each round costs in passes and seconds. `--standard` adds `standard` on the score part
for the best tenth and a random third.

Each run is a file in FOLDER, so that the same command goes on; `--table FILE` writes all of them to one Parquet file,
and runs that it holds already are not run again. MNIST and Fashion-MNIST come from ARDMVC_DATA.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ardmvc_core.attacks.tiers import Tier
from ardmvc_core.evaluation.worst_case import evaluate_suite
from study.planning.cost import round_costs
from study.planning.preflight import resolved_trial
from study.planning.suggestions import Suggestions
from study.spec.study_spec import StudySpec, load_spec
from trainables.config import TrialConfig
from trainables.files import write_whole
from trainables.surrogates import tier_surrogates
from trainables.trial import Trial

SETTINGS, SEEDS, ROUNDS = 102, 5, 4
IMAGES = {"samples": 2000}
CHANGES: dict[str, dict[str, Any]] = {
    "noisy_digits": {},
    "noisy_mnist": {"dataset": {"name": "noisy_mnist", **IMAGES}, "evaluation": {"eps": 0.05}, "batch_size": 100},
    "noisy_fashion": {"dataset": {"name": "noisy_fashion", **IMAGES}, "evaluation": {"eps": 0.05}, "batch_size": 100},
}
"""What differs from `ar_dmvc_am.yaml`; images have dense networks too."""


def study_of(dataset: str) -> StudySpec:
    """The default study on that data set, a round every fourth of the training, one seed a trial."""
    spec = load_spec("ar_dmvc_am.yaml").model_dump(mode="json", exclude_defaults=True)
    trial = {**spec["trial"], **CHANGES[dataset], "repeats": 1}
    trial["evaluate_every"] = trial["epochs"] // ROUNDS
    if dataset != "noisy_digits":
        trial["model"] = {**trial["model"], "encoder": "dense"}
    return StudySpec.model_validate({**spec, "name": dataset, "trial": trial, "sampler": {"name": "sobol"}})


def settings_of(spec: StudySpec) -> list[dict[str, Any]]:
    """Overrides of each setting, by its number: the baselines, then a Sobol sequence."""
    drawn = Suggestions(spec)
    baselines = [dict(one) for one in spec.baselines]
    return baselines + [drawn.draw(number) for number in range(len(baselines), SETTINGS)]


def run(dataset: str, setting: int, seed: int, file: Path) -> None:
    """Trains and scores one setting with one seed, and writes what came out; the weights beside it."""
    torch.set_num_threads(1)
    spec = study_of(dataset)
    overrides = {**settings_of(spec)[setting], "seed": seed}
    config, budget, facts = resolved_trial(spec, overrides)
    assert isinstance(config, TrialConfig)
    trial = Trial(config)
    costs = round_costs(config, budget, facts.sizes, facts.n_clusters)
    rounds, before = [], 0.0
    while not trial.finished:
        found = trial.run_round()
        kept = {name: value for name, value in found.items() if name.startswith(("clean/", "probe/", "robust/"))}
        cost = costs[len(rounds)]
        rounds.append({**kept, "seconds": found["seconds"] - before, "passes": cost.forward + cost.backward})
        before = found["seconds"]
    values: dict[str, Any] = {"failure": trial.failure}
    if trial.failure is None:
        values |= scored(trial, "tune")
        torch.save(trial.trainers[0].model.state_dict(), file.with_suffix(".pt"))
    whole = {"dataset": dataset, "setting": setting, "seed": seed, "overrides": overrides, "rounds": rounds, **values}
    write_whole(file, json.dumps(whole).encode())


def run_standard(file: Path) -> None:
    """Adds `standard` on the score part to a run."""
    torch.set_num_threads(1)
    found = json.loads(file.read_text())
    spec = study_of(found["dataset"])
    trial = Trial(TrialConfig.model_validate(spec.trial_config({**found["overrides"], "seed": found["seed"]})))
    trial.trainers[0].model.load_state_dict(torch.load(file.with_suffix(".pt"), weights_only=True))
    write_whole(file, json.dumps(found | scored(trial, "standard")).encode())


def scored(trial: Trial, tier: Tier) -> dict[str, float]:
    """Clean and robust ACC on the score part, which no search reads."""
    model, parts = trial.trainers[0].model, trial.parts["strict"]
    budget = replace(trial.budget, tier=tier, samples=None)
    attacker = parts["attacker"]
    surrogates = tier_surrogates(trial.config, attacker, tier, budget.seed)
    begin = time.monotonic()
    suite = evaluate_suite(model, parts["score"], attacker.views, budget, surrogates=surrogates)
    found = suite.evaluation.values
    return {
        f"score/{tier}/clean": found["clean/acc"],
        f"score/{tier}/acc": found["robust/acc"],
        f"score/{tier}/seconds": time.monotonic() - begin,
    }


def for_standard(files: list[Path]) -> list[Path]:
    """The runs of the best tenth of settings by their mean `tune`, and of a random third of the others."""
    found: dict[int, list[float]] = {}
    for file in files:
        one = json.loads(file.read_text())
        found.setdefault(one["setting"], []).append(one.get("score/tune/acc", 0.0))
    best = sorted(found, key=lambda setting: -fmean(found[setting]))
    top, rest = best[: SETTINGS // 10], np.array(sorted(best[SETTINGS // 10 :]))
    picked = {*top, *np.random.default_rng(0).permutation(rest)[: len(rest) // 3].tolist()}
    return [file for file in files if int(file.stem.split("-")[1]) in picked]


def rows(run: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """A run as rows of the table, one for each round. Args: names: of what is searched."""
    own = {name: run["overrides"].get(name) for name in names}
    ends = {name: value for name, value in run.items() if name.startswith("score/")}
    about = {"dataset": run["dataset"], "setting": run["setting"], "seed": run["seed"], "failure": run["failure"]}
    return [{**about, **own, "round": number, **round_, **ends} for number, round_ in enumerate(run["rounds"], 1)]


def write_table(file: Path, runs: Sequence[dict[str, Any]], spec: StudySpec) -> None:
    """Adds the runs to those that the file holds, a data set after the other."""
    new = [row for run in runs for row in rows(run, list(spec.distributions()))]
    key = ("dataset", "setting", "seed", "round")
    known = {tuple(row[name] for name in key): row for row in [*stored(file), *new]}
    columns = dict.fromkeys(name for row in known.values() for name in row)
    whole = [{name: row.get(name) for name in columns} for _, row in sorted(known.items())]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(whole), sink, compression="zstd")
    write_whole(file, sink.getvalue().to_pybytes())


def stored(file: Path | None) -> list[dict[str, Any]]:
    return pq.read_table(file).to_pylist() if file is not None and file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=CHANGES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--settings", type=int, default=SETTINGS, help="only the first so many")
    parser.add_argument("--standard", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    spec = study_of(given.dataset)
    done = {(row["setting"], row["seed"]) for row in stored(given.table) if row["dataset"] == given.dataset}
    with ProcessPoolExecutor(given.workers) as pool:
        if given.standard:
            files = for_standard(sorted(given.folder.glob(f"{given.dataset}-*.json")))
            waiting = [file for file in files if "score/standard/acc" not in json.loads(file.read_text())]
            jobs = [pool.submit(run_standard, file) for file in waiting]
        else:
            wanted = [(setting, seed) for setting in range(given.settings) for seed in range(1, SEEDS + 1)]
            names = {pair: given.folder / f"{given.dataset}-{pair[0]:03d}-{pair[1]}.json" for pair in wanted}
            left = [pair for pair in wanted if pair not in done and not names[pair].exists()]
            jobs = [pool.submit(run, given.dataset, *pair, names[pair]) for pair in left]
        for number, job in enumerate(as_completed(jobs), 1):
            job.result()
            print(f"{number} of {len(jobs)}", flush=True)
    if given.table is not None:
        found = [json.loads(file.read_text()) for file in sorted(given.folder.glob(f"{given.dataset}-*.json"))]
        write_table(given.table, found, spec)


if __name__ == "__main__":
    main()
