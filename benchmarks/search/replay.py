"""Searches replayed on the table: `python benchmarks/search/replay.py [--repetitions 500]`, minutes to an hour.

Every search runs many times on the same emulated trials (`emulator.py`), through the rules that the product's driver
follows. After each trial, or step, its winner of that moment is judged on the score part by seeds that it did not see.
Prints what each search costs until it is as good as today's default is at its end, and draws quality against cost.

`--peers FILE` adds what `peers.py` has written, in an environment of its own.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from emulator import ROUNDS, SEEN, Emulator, Repetition

from ardmvc_core.seeding import derive_seed
from study.planning.cost import Passes
from study.planning.optuna_side import make_pruner
from study.planning.search import Search, Step
from study.planning.suggestions import Suggestions
from study.ranking.ranking import rank
from study.records import TrialRecord
from study.spec.study_spec import StudySpec, load_spec

Trace = list[tuple[float, float]]
"""(cost so far, in runs of one seed; worth of the winner then)."""
DEFAULT_TRIALS, SEEDS = 12, 2
"""What the default study was before trials began in cohorts."""
MOST_COST = 60.0
TABLE = Path(__file__).parent / "table.parquet"


def spec_of(seed: int, **changes: Any) -> StudySpec:
    raw = load_spec("ar_dmvc_am.yaml").model_dump(mode="json", exclude_defaults=True)
    trial = {**raw["trial"], "evaluate_every": raw["trial"]["epochs"] // ROUNDS, **changes.pop("trial", {})}
    return StudySpec.model_validate({**raw, "trial": trial, "seed": seed, "search": "auto", **changes})


def whole(
    sampler: dict[str, Any], pruner: dict[str, Any], number: int, emulator: Emulator, seeds: int = SEEDS
) -> Trace:
    """Trials of several seeds side by side, one trial after the other; Optuna's sampler and pruner."""
    limits = {"trials": 200}
    spec = spec_of(number, trial={"repeats": seeds}, sampler=sampler, limits=limits)
    repetition, suggestions = Repetition(emulator, number), Suggestions(spec)
    study = optuna.create_study(direction="maximize", pruner=make_pruner(pruner, ROUNDS))
    trace: Trace = []
    best: tuple[float, dict[str, Any]] | None = None
    for trial in range(spec.trials):
        overrides = suggestions.next_overrides(trial)
        asked, pruned, value = study.ask(), False, 0.0
        for round_ in range(1, ROUNDS + 1):
            value = float(np.mean([repetition.value(overrides, seed, round_) for seed in range(seeds)]))
            asked.report(value, round_)
            suggestions.reported(trial, round_, value)
            if round_ < ROUNDS and trial >= len(spec.baselines) and asked.should_prune():
                pruned = True
                break
        state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
        study.tell(asked, None if pruned else value, state)
        suggestions.finished(trial, state, [value])
        if not pruned and (best is None or value > best[0]):
            best = value, overrides
        if best is not None:
            trace.append((repetition.cost, repetition.worth(best[1])))
        if repetition.cost >= MOST_COST:
            break
    return trace


def races(number: int, emulator: Emulator, start: int = 16) -> Trace:
    """Iterated racing in the manner of irace: settings of a race meet seed after seed; after each, those go whose
    paired difference from the best is significant (t-test, 5 %), and later races are drawn around the elite."""
    from scipy.stats import ttest_rel

    repetition, rng = Repetition(emulator, number), np.random.default_rng(number)
    drawn = Suggestions(spec_of(number, sampler={"name": "random"}, limits={"trials": 5000}))
    trace: Trace = []
    elite: list[dict[str, Any]] = []
    values: dict[int, list[float]] = {}
    width, index = 1.0, 0
    while repetition.cost < MOST_COST:
        field = [*elite]
        while len(field) < start:
            new = drawn.draw(index)
            index += 1
            if elite:
                base = elite[int(rng.integers(len(elite)))]
                new = {name: base[name] if rng.random() > width else new[name] for name in new}
            field.append(new)
        values = {}
        alive = list(range(len(field)))
        for seed in range(SEEN):
            for one in alive:
                found = [repetition.value(field[one], seed, round_) for round_ in range(1, ROUNDS + 1)]
                values.setdefault(one, []).append(found[-1])
            means = {one: float(np.mean(values[one])) for one in alive}
            top = max(alive, key=lambda one: means[one])
            trace.append((repetition.cost, repetition.worth(field[top])))
            if seed:
                alive = [
                    one
                    for one in alive
                    if one == top or not ttest_rel(values[top], values[one]).pvalue < 0.05 or means[one] >= means[top]
                ]
        elite = [field[one] for one in sorted(alive, key=lambda one: -means[one])[:3]]
        width = max(0.3, width * 0.6)
    return trace


def ours(number: int, emulator: Emulator, trials: int = 32, **search: Any) -> Trace:
    """The product's rule: cohorts, rungs and a race, over records as the database would hold them."""
    sampler = search.pop("sampler", {"name": "auto"})
    first = search.pop("first", 1)
    rule = {"rungs": "auto", **search}
    spec = spec_of(
        number,
        trial={"repeats": {"first": first, "most": SEEN}},
        sampler=sampler,
        search=rule,
        limits={"trials": trials, "concurrent": 2},
    )
    repetition, suggestions = Repetition(emulator, number), Suggestions(spec)
    costs = [Passes(int(each), 0) for each in emulator.passes * SEEN]
    rule_ = Search(spec, lambda record: costs)
    records: list[TrialRecord] = []
    steps: list[Step] = []
    trace: Trace = []
    while (step := rule_.next(records, steps)) is not None:
        steps.append(step)
        for trial, rounds in step.rounds.items():
            records[trial] = replace(records[trial], rounds=rounds)
        if step.new:
            suggestions.look_back(records, step.first)
        for trial in range(step.first, step.first + step.new):
            overrides = suggestions.next_overrides(trial)
            records.append(
                TrialRecord(
                    number=trial,
                    state="WAITING",
                    overrides=overrides,
                    baseline=trial < len(spec.baselines),
                    config={"repeats": {"first": first, "most": SEEN}},
                    rounds=rule_.first_rounds(trial),
                    leg=ROUNDS,
                    budget="same",
                )
            )
        records = [_run(record, repetition, first) for record in records]
        rows = rank(records, spec.objectives)
        if rows[0].rank is not None:
            trace.append((repetition.cost, repetition.worth(rows[0].record.overrides)))
    return trace


def _run(record: TrialRecord, repetition: Repetition, first: int) -> TrialRecord:
    """The trial with the rounds behind it that it was given."""
    history = list(record.history)
    for round_ in range(record.round + 1, record.rounds + 1):
        leg, inside = divmod(round_ - 1, ROUNDS)
        seeds = range(first) if leg == 0 else [first + leg - 1]
        values = [repetition.value(record.overrides, seed, inside + 1) for seed in seeds]
        before = [own["one"] for _, _, own in history if "one" in own] if leg else []
        kept = [value for each in before for value in each] if leg else []
        if inside + 1 < ROUNDS:
            metrics = dict(history[-1][2]) if leg else {"probe/acc": float(np.mean(values))}
            metrics.pop("one", None)
        else:
            every = [*kept, *values]
            metrics = {"robust/acc": float(np.mean(every)), "one": values}  # type: ignore[dict-item]  # for the next leg
            if len(every) > 1:
                metrics["spread/robust/acc"] = float(np.std(every, ddof=1))
        history.append((round_, 0, metrics))
    if record.round == record.rounds:
        return record
    metrics = {name: value for name, value in history[-1][2].items() if name != "one"}
    return replace(record, round=record.rounds, history=tuple(history), metrics=metrics)


def at(trace: Trace, costs: np.ndarray) -> np.ndarray:
    """Worth of the winner at each cost; NaN before there is one."""
    own = np.array([cost for cost, _ in trace])
    worth = np.array([np.nan, *(value for _, value in trace)])
    return np.asarray(worth[np.searchsorted(own, costs, side="right")])


def cost_to(curves: np.ndarray, costs: np.ndarray, target: float) -> tuple[float, float, float]:
    """Where the mean over repetitions comes to the target to stay for that cost, with a 95 % bootstrap interval."""
    rng = np.random.default_rng(0)

    def first(rows: np.ndarray) -> float:
        means = np.nanmean(rows, axis=0)
        there = np.flatnonzero((means >= target - 1e-9) & ~np.isnan(rows).any(axis=0))
        return float(costs[there[0]]) if len(there) else np.inf

    drawn = [first(curves[rng.integers(len(curves), size=len(curves))]) for _ in range(200)]
    low, high = np.quantile(drawn, 0.025, method="lower"), np.quantile(drawn, 0.975, method="higher")
    return first(curves), float(low), float(high)


TPE = {"name": "tpe", "startup_trials": 6}
NONE = {"name": "none"}
SEARCHES: dict[str, Callable[[int, Emulator], Trace]] = {
    "random": partial(whole, {"name": "random"}, NONE),
    "TPE (the default before)": partial(whole, TPE, NONE),
    "Optuna GP": partial(whole, {"name": "gp", "startup_trials": 6}, NONE),
    "TPE, 1 seed": partial(whole, TPE, NONE, seeds=1),
    "TPE + median": partial(whole, TPE, {"name": "median"}),
    "TPE + Hyperband": partial(whole, TPE, {"name": "hyperband"}),
    "irace-like": races,
    "ours": ours,
    "ours, TPE": partial(ours, sampler={"name": "tpe", "startup_trials": 8}),
    "ours, no race": partial(ours, race=False),
    "ours, no rungs": partial(ours, rungs="none"),
}


def repeated(name: str, file: Path, dataset: str, numbers: list[int]) -> tuple[str, list[Trace], float]:
    """Traces of a search, and seconds that its decisions took."""
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    emulator = Emulator(file, dataset)
    begin = time.process_time()
    traces = [SEARCHES[name](derive_seed(number, "replay") % 2**31, emulator) for number in numbers]
    return name, traces, time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--datasets", default="noisy_digits,noisy_mnist,noisy_fashion")
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--only", default="", help="names of searches with ; between them")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="a page; the figure stands beside it as .png")
    given = parser.parse_args()
    wanted = [name for name in given.only.split(";") if name] or list(SEARCHES)
    parts = np.array_split(np.arange(given.repetitions), 4 * given.workers)
    found: dict[str, dict[str, tuple[list[Trace], float]]] = {}
    for dataset in given.datasets.split(","):
        found[dataset] = {name: ([], 0.0) for name in wanted}
        with ProcessPoolExecutor(given.workers) as pool:
            jobs = [
                pool.submit(repeated, name, given.table, dataset, part.tolist()) for name in wanted for part in parts
            ]
            for job in jobs:
                name, traces, seconds = job.result()
                known, before = found[dataset][name]
                found[dataset][name] = [*known, *traces], before + seconds
        if given.peers is not None:
            peers = json.loads(given.peers.read_text())
            for name, own in peers.get(dataset, {}).items():
                found[dataset][name] = [[(cost, worth) for cost, worth in one] for one in own["traces"]], own["seconds"]
    given.out.write_text(page(found, given))
    figure(found).savefig(given.out.with_suffix(".png"), dpi=150, bbox_inches="tight")


DEFAULT = "TPE (the default before)"
COSTS = np.arange(0.25, MOST_COST, 0.25)


def page(found: dict[str, dict[str, tuple[list[Trace], float]]], given: argparse.Namespace) -> str:
    lines = []
    for dataset, searches in found.items():
        emulator = Emulator(given.table, dataset)
        curves = {name: np.array([at(trace, COSTS) for trace in traces]) for name, (traces, _) in searches.items()}
        end = float(np.searchsorted(COSTS, DEFAULT_TRIALS * SEEDS))
        target = float(np.nanmean(curves[DEFAULT][:, int(end)]))
        paper = emulator.paper[:, ROUNDS].mean()
        lines += [
            f"## {dataset}",
            "",
            f"{len(emulator.settings)} settings; a run of one seed is {sum(emulator.passes):,} passes. "
            f"The default before ends at {target:.3f} after {DEFAULT_TRIALS * SEEDS} runs; "
            f"the paper's setting is worth {paper:.3f}.",
            "",
            "| search | runs until it is as good | against the default before | worth after 12 runs | after 24 | "
            "CPU s a study |",
            "|---|---|---|---|---|---|",
        ]
        for name, own in curves.items():
            cost, low, high = cost_to(own, COSTS, target)
            traces, seconds = searches[name]
            shown = "not within 60" if np.isinf(cost) else f"{cost:.1f} [{low:.1f}, {high:.1f}]"
            ratio = "" if np.isinf(cost) else f"{DEFAULT_TRIALS * SEEDS / cost:.1f} ×"
            after = [float(np.nanmean(own[:, int(np.searchsorted(COSTS, runs))])) for runs in (12, 24)]
            own_seconds = f"{seconds / len(traces):.2f}"
            lines.append(f"| {name} | {shown} | {ratio} | {after[0]:.3f} | {after[1]:.3f} | {own_seconds} |")
        lines.append("")
    return "\n".join(lines)


def figure(found: dict[str, dict[str, tuple[list[Trace], float]]]) -> Any:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5 * len(found), 3.6))
    for place, (dataset, searches) in enumerate(found.items(), 1):
        axes = drawn.add_subplot(1, len(found), place)
        for name, (traces, _) in searches.items():
            means = np.nanmean(np.array([at(trace, COSTS) for trace in traces]), axis=0)
            ours_ = name == "ours"
            axes.plot(COSTS, means, label=name, lw=2.5 if ours_ else 1, color="black" if ours_ else None)
        axes.set(title=dataset, xlabel="cost, in runs of one seed", xlim=(0, 40))
        axes.grid(alpha=0.3)
    drawn.axes[0].set_ylabel("robust ACC of the winner (unseen part and seeds)")
    drawn.axes[-1].legend(fontsize=7, loc="lower right")
    return drawn


if __name__ == "__main__":
    main()
