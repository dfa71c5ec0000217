"""One trial without Ray: built from its config, run round by round, saved and loaded exactly."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ardmvc_core.data import Protocol
from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.evaluation.official import evaluate_official
from ardmvc_core.evaluation.score_card import OUTCOMES, Evaluation
from ardmvc_core.evaluation.worst_case import evaluate_suite, probe
from ardmvc_core.models import MODELS
from ardmvc_core.seeding import derive_seed, seed_everything
from ardmvc_core.selection.criteria import clean_clustering_loss, select_scores
from ardmvc_core.selection.reference_partition import seed_agreement
from ardmvc_core.training import NonFiniteLoss, Trainer, calibrate
from trainables.building import build_model, pick_device
from trainables.config import TrialConfig, identity, protocols_of
from trainables.data_parts import cached_parts, other_parts, without_labels
from trainables.reference import study_reference
from trainables.saved_trial import (
    ARRAYS_FILE,
    CONFIG_FILE,
    NO_MEMORY,
    STATE_FILE,
    check_weights,
    parsing,
    saved_facts,
    saved_progress,
    saved_seconds,
    saved_state,
    unchanged_if_refused,
)
from trainables.surrogates import tier_surrogates

SECOND_PARTITION = (
    "select/…: other voters agree on a second stable partition, so that the vote may be for one that is not the classes"
)

Report = dict[str, Any]
"""Flat metrics, and beside them `round`, `rounds`, `seconds`, `budget`, `warnings` (a JSON list), `done`, and `failure`
when the trial cannot go on."""


@dataclass(frozen=True)
class SeedRun:
    """One model of a trial: a seed, under one protocol."""

    protocol: Protocol
    seed: int
    trainer: Trainer


@dataclass(frozen=True)
class SeedResult:
    """What was found of one seed whose training is behind it."""

    losses: dict[str, float]
    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]
    warnings: tuple[str, ...]

    def state_dict(self) -> dict[str, Any]:
        arrays = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        return {"losses": self.losses, "metrics": self.metrics, "arrays": arrays, "warnings": list(self.warnings)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "SeedResult":
        """Raises: KeyError, TypeError, AttributeError if it is none."""
        losses, metrics = ({str(k): float(v) for k, v in state[name].items()} for name in ("losses", "metrics"))
        arrays = {str(name): tensor.numpy() for name, tensor in state["arrays"].items()}
        return cls(losses, metrics, arrays, tuple(map(str, state["warnings"])))


class Trial:
    """Trains models that differ by their seed only, under each protocol, and reports their means.

    The seeds of a leg (`TrialConfig.legs`) are trained side by side, one leg after another: what is reported is the
    mean over all seeds whose training is behind them, and in the first leg over those that are trained.
    """

    def __init__(self, config: TrialConfig, watch: Callable[[nn.Module], None] = lambda model: None) -> None:
        """Args: watch: told of every model that is made.
        Raises: ValueError, or its child DataError, for a config or data that cannot be run.
        """
        self.config, self._watch = config, watch
        self.device = pick_device(config.device)
        self.parts: dict[Protocol, dict[str, MultiViewDataset]] = {}
        self.part_digests: dict[str, str] = {}
        for protocol in protocols_of(config.protocol):
            parts = cached_parts(config.dataset, protocol)
            if config.labels_locked:
                parts = without_labels(parts)  # nothing that a trial computes can read what it does not have
            self.parts[protocol] = {name: part.data.to(self.device) for name, part in parts.items()}
            prefix = f"{protocol}/" if config.protocol == "both" else ""
            self.part_digests |= {f"{prefix}{name}": part.digest for name, part in parts.items()}
        self.round = 0
        self.seconds = self.train_seconds = 0.0
        self.failure: str | None = None
        self.warnings: list[str] = []
        self._arrays: dict[str, np.ndarray] = {}
        self._trained_surrogates: tuple[nn.Module, ...] | None = None
        self.method = MODELS[config.model.name]
        seed_everything(derive_seed(config.seed, "global"))
        self._legs = [self._leg(0)]
        self._behind: list[SeedResult] = []
        """Of the seeds of earlier legs, under the decisive protocol."""
        self.budget = config.evaluation.resolve(config.dataset.name, len(self.runs[0].trainer.views))
        self.reference = study_reference(config) if config.selection else None

    @property
    def ruler(self) -> str:
        """What trials must share to be compared: digests of the budget, the scored samples and the reference."""
        decisive = protocols_of(self.config.protocol)[0]
        part = "attack" if decisive == "official" else self.config.score_on
        prefix = f"{decisive}/" if self.config.protocol == "both" else ""
        marks = [self.budget.digest(), self.part_digests[f"{prefix}{part}"][:8]]
        marks += [self.reference.digest()[:8]] if self.reference else []
        marks += ["score"] if self.config.score_on == "score" else []
        return "-".join(marks)

    def _leg(self, leg: int) -> list[SeedRun]:
        """Models of a leg, untrained."""
        before, own = sum(self.config.legs[:leg]), self.config.legs[leg]
        return [
            SeedRun(protocol, seed, self._trainer(protocol, seed))
            for protocol in self.parts
            for seed in (derive_seed(self.config.seed, "repeat", repeat) for repeat in range(before, before + own))
        ]

    def _trainer(self, protocol: Protocol, seed: int) -> Trainer:
        config, train = self.config, self.parts[protocol]["train"]
        model = build_model(config, protocol, train.view_shapes, train.n_clusters, seed).to(self.device)
        self._watch(model)
        stages = self.method.stages(config.model, config.epochs)
        batch_size, precision = config.batch_size, config.precision
        return Trainer(model, stages, train.views, batch_size=batch_size, seed=seed, precision=precision)

    @property
    def runs(self) -> list[SeedRun]:
        """Of every leg that was begun: those of the first protocol, seed by seed, then those of the second."""
        return [run for leg in self._legs for run in leg]

    @property
    def trainers(self) -> list[Trainer]:
        """Of every run."""
        return [run.trainer for run in self.runs]

    @property
    def rounds(self) -> int:
        return self.config.rounds

    @property
    def seeds(self) -> int:
        """Seeds whose training is behind them, or all of a trial of one leg."""
        return sum(self.config.legs[: max(1, self.round // self.config.leg_rounds)])

    @property
    def finished(self) -> bool:
        return self.failure is not None or self.round >= self.rounds

    def run_round(self) -> Report:
        """Trains `evaluate_every` epochs, then evaluates: the cheap probe, and everything after the last epoch.

        Returns: the report; a loss that is not finite ends the trial with `failure` instead of an exception.
        Raises: RuntimeError if the trial is finished.
        """
        if self.finished:
            raise RuntimeError(f"the trial is finished: {self.round} of {self.rounds} rounds")
        begin = time.monotonic()
        leg, last = self.round // self.config.leg_rounds, (self.round + 1) % self.config.leg_rounds == 0
        if leg == len(self._legs):
            self._legs.append(self._leg(leg))
        losses = []
        for run in self._legs[leg]:
            try:
                losses.append(self._train_round(run.trainer))
            except NonFiniteLoss as error:
                self.failure = str(error) if len(self.parts) == 1 else f"{run.protocol}: {error}"
                return self._report({}, begin)
        trained = time.monotonic()
        self.round += 1
        metrics = self._judged(leg, losses, last=last)
        self.train_seconds += trained - begin
        metrics["time/train_s"] = self.train_seconds
        metrics["time/evaluate_s"] = self.seconds + time.monotonic() - begin - self.train_seconds
        return self._report(metrics, begin)

    def _judged(self, leg: int, losses: Sequence[dict[str, float]], *, last: bool) -> dict[str, float]:
        """Metrics of the round that has ended. Args: last: whether it was its leg's last."""
        if leg and not last:  # nobody stops a further seed early, so nobody asks how it does
            return self._means(self._behind, whole=True)
        runs = self._legs[leg]
        evaluations = [self._evaluate(run, last=last) for run in runs]
        # Losses of the decisive protocol: over both, a spread would not be one over seeds.
        decisive = zip(losses, evaluations[: self.config.legs[leg]], strict=False)
        found = [SeedResult(own, each.metrics(), each.arrays(), each.warnings) for own, each in decisive]
        metrics = self._means([*self._behind, *found], whole=last)
        said = {text for each in evaluations for text in each.warnings}
        self.warnings = sorted(said.union(*(each.warnings for each in self._behind)))
        if others := [each.metrics() for each in evaluations[self.config.legs[leg] :]]:
            metrics |= aggregate(others)
        if last:
            self._behind += found
        return metrics

    def _means(self, found: Sequence[SeedResult], *, whole: bool) -> dict[str, float]:
        """Metrics over the seeds, whose arrays are kept. Args: whole: whether their training is behind them."""
        self._arrays = {
            **found[0].arrays,
            **per_seed([each.metrics for each in found]),
            **per_sample([each.arrays for each in found]),
        }
        metrics = aggregate([each.losses | each.metrics for each in found])
        if self.reference is not None and whole and len(found) > 1:
            metrics["select/seed_agreement"] = seed_agreement([each.arrays["clusters/clean"] for each in found])
        return metrics

    def _train_round(self, trainer: Trainer) -> dict[str, float]:
        losses: dict[str, float] = {}
        for _ in range(min(self.config.evaluate_every, trainer.epochs - trainer.epoch)):
            losses = trainer.run_epoch()
        return {f"loss/{name}": value for name, value in losses.items()}

    def _evaluate(self, run: SeedRun, *, last: bool) -> Evaluation:
        parts, model = self.parts[run.protocol], run.trainer.model
        if run.protocol == "official" and "strict" in self.parts and not last:
            # The published protocol has no probe; beside the strict one, that one's is the one that counts.
            return Evaluation({}, {})
        calibrate(self.method, model, parts["train"].views, run.seed)
        if run.protocol == "official":
            evaluate = evaluate_official if last else probe
            return evaluate(model, parts["attack"], self.budget)
        if not last:
            return self._selected(probe(model, parts["tune"], self.budget), model, parts["tune"], "probe")
        scored, attacker = parts[self.config.score_on], parts["attacker"]
        surrogates = self._surrogates(attacker)
        found = evaluate_suite(model, scored, attacker.views, self.budget, surrogates=surrogates).evaluation
        return self._selected(found, model, scored, "robust")

    def _surrogates(self, attacker: MultiViewDataset) -> tuple[nn.Module, ...]:
        """What the transfer attack makes its points on, where the tier has one; the same for every seed of a trial."""
        if self._trained_surrogates is None:
            self._trained_surrogates = tier_surrogates(self.config, attacker, self.budget.tier, self.budget.seed)
        return self._trained_surrogates

    def _selected(self, found: Evaluation, model: nn.Module, scored: MultiViewDataset, attacked: str) -> Evaluation:
        """With the scores that need no labels, where the trial has a reference.

        Args: attacked: whose flips count, `robust` or `probe`; a probe's scores are `probe/pra` and so on.
        """
        if self.reference is None:
            return found
        arrays = found.arrays()
        flipped = arrays[f"{attacked}/flipped"].astype(bool)
        # The budget may score the first so many only, and a probe attacks fewer.
        clusters = arrays["clusters/clean"].astype(np.int64)[: len(flipped)]
        scores = select_scores(self.reference.first(len(clusters)), clusters, flipped, scored.n_clusters)
        scores["select/clean_loss"] = clean_clustering_loss(model, scored.views, self.config.batch_size)
        if attacked == "probe":
            scores = {name.replace("select/", "probe/"): value for name, value in scores.items()}
        second = (SECOND_PARTITION,) if self.reference.second_partition else ()
        return replace(found, values={**found.values, **scores}, warnings=(*found.warnings, *second))

    def _report(self, metrics: Mapping[str, float], begin: float) -> Report:
        self.seconds += time.monotonic() - begin
        report: Report = {**metrics, "round": self.round, "rounds": self.rounds, "seconds": self.seconds}
        report |= {"leg_rounds": self.config.leg_rounds, "budget": self.ruler}
        report |= {"warnings": json.dumps(self.warnings), "done": self.finished}
        if self.failure:
            report["failure"] = self.failure
        return report

    def save(self, folder: Path) -> None:
        """Writes everything that `load` needs, the config, and the arrays of the last evaluation."""
        state = {
            "round": self.round,
            "seconds": self.seconds,
            "train_seconds": self.train_seconds,
            "failure": self.failure,
            "trainers": [trainer.state_dict() for trainer in self.trainers],
            "behind": [each.state_dict() for each in self._behind] if len(self.config.legs) > 1 else [],
        }
        torch.save(state, folder / STATE_FILE)
        facts = {
            "config": self.config.model_dump(mode="json"),
            "contents": self.part_digests,
            "budget": self.budget.digest(),
            "seeds": self.seeds,
            "reference": self.reference.digest() if self.reference else None,
            "reference_entropy": self.reference.entropy if self.reference else None,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(facts, indent=1))
        np.savez_compressed(folder / ARRAYS_FILE, allow_pickle=False, **self._arrays)

    def load(self, folder: Path) -> None:
        """Goes on from what `save` wrote, bit for bit on the same machine.

        Raises: ValueError if the checkpoint is of another config or other data, or as its child DamagedCheckpoint; the
            trial is then what it was.
        """
        # Read as a config first: one that was written before a field was there has its default.
        saved = saved_facts(str(folder))
        if identity(saved.config.model_dump(mode="json")) != identity(self.config.model_dump(mode="json")):
            raise ValueError(f"the checkpoint {folder} was written by a trial with another config")
        if changed := other_parts(saved.contents, self.part_digests):
            raise ValueError(f"the checkpoint {folder} was written by a trial on other data ({changed})")
        state = saved_state(str(folder))
        with parsing(folder, STATE_FILE, passing=NO_MEMORY):
            legs, behind = self._saved_legs(state)
        trainers = [run.trainer for leg in legs for run in leg]
        with parsing(folder, STATE_FILE, passing=NO_MEMORY), unchanged_if_refused(*self.trainers):
            round_, seconds = saved_progress(state, self.rounds)
            for trainer, trainer_state in zip(trainers, state["trainers"], strict=True):
                check_weights(trainer_state["model"], trainer.model.state_dict())
                trainer.load_state_dict(trainer_state)
            for leg, runs in enumerate(legs):
                epochs = (round_ - leg * self.config.leg_rounds) * self.config.evaluate_every
                for trainer in (run.trainer for run in runs):
                    if trainer.epoch != min(epochs, trainer.epochs):
                        raise ValueError(f"its epoch is {trainer.epoch} in round {round_}")
            failure = None if state["failure"] is None else str(state["failure"])
            train_seconds = saved_seconds(state, "train_seconds")
        self._legs, self._behind = legs, behind
        self.round, self.seconds, self.failure = round_, seconds, failure
        self.train_seconds = train_seconds
        if behind:
            self._means(behind, whole=True)
            self.warnings = sorted({text for each in behind for text in each.warnings})

    def _saved_legs(self, state: Mapping[str, Any]) -> tuple[list[list[SeedRun]], list[SeedResult]]:
        """The legs that a state has begun, their models as they are now, and what was found of the seeds behind.

        Raises: ValueError or KeyError if it is the state of no such trial.
        """
        behind = [SeedResult.from_state(each) for each in state.get("behind", [])]
        round_, each = saved_progress(state, self.rounds)[0], self.config.leg_rounds
        begun = max(1, math.ceil(round_ / each))
        if len(self.config.legs) > 1 and len(behind) != (seeds := sum(self.config.legs[: round_ // each])):
            raise ValueError(f"it holds what was found of {len(behind)} seeds, and {seeds} are behind it")
        return [self._legs[leg] if leg < len(self._legs) else self._leg(leg) for leg in range(begun)], behind


def aggregate(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over the seeds of a trial, and `spread/<metric>`, their standard deviation, where there are two or more."""
    metrics: dict[str, float] = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        metrics[name] = statistics.fmean(values)
        if len(values) > 1 and not name.startswith("time/"):
            metrics[f"spread/{name}"] = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return metrics


def per_seed(runs: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """`seeds/<metric>`: (R,) its value in each run, in their order; NaN where a run has none."""
    names = dict.fromkeys(name for run in runs for name in run if not name.startswith("time/"))
    return {f"seeds/{name}": np.array([run.get(name, math.nan) for run in runs]) for name in names}


def per_sample(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """`samples/<metric>`: (R, N) bool, what the metric is the mean of, of each run and sample. Args: runs: arrays."""
    found = {metric: [run[name] for run in runs if name in run] for metric, name in OUTCOMES.items()}
    return {f"samples/{metric}": np.stack(rows) for metric, rows in found.items() if len(rows) == len(runs)}
