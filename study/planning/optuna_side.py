"""What Optuna is given: distributions, samplers, pruners, and a history of bounded length."""

import math
import warnings
from bisect import insort
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from study.ranking.objectives import dominates
from study.spec.distributions import Choice, Distribution, IntLogUniform, IntUniform, LogUniform, Quantised, Uniform

BEST_KEPT = 25
"""Best trials that a limited history always holds: TPE models at most so many as good ones."""


def to_optuna(distribution: Distribution) -> BaseDistribution:
    """The same range in Optuna's terms."""
    match distribution:
        case LogUniform(low=low, high=high):  # before Uniform, which it refines
            return FloatDistribution(low, high, log=True)
        case Uniform(low=low, high=high):
            return FloatDistribution(low, high)
        case IntLogUniform(low=low, high=high):
            return IntDistribution(low, high, log=True)
        case IntUniform(low=low, high=high):
            return IntDistribution(low, high)
        case Quantised(low=low, high=high, step=step):
            return FloatDistribution(low, high, step=step)
        case Choice(values=values):
            return CategoricalDistribution(values)
    raise TypeError(f"no Optuna distribution for {distribution!r}")


def make_sampler(options: Mapping[str, Any], seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of that name; `seed` fixes its next draws."""
    options = dict(options)
    name = options.pop("name")
    options.pop("history", None)  # what the sampler sees is limited before it looks
    seed %= 2**32
    if name == "tpe":
        # The liar keeps trials that run side by side from being asked the same point twice.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True, **options)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, **options)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, **options)
    if name == "sobol":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.QMCSampler(
                seed=seed, qmc_type="sobol", scramble=True, warn_independent_sampling=False, **options
            )
    return optuna.samplers.RandomSampler(seed=seed, **options)


def make_pruner(options: Mapping[str, Any], rounds: int) -> optuna.pruners.BasePruner:
    """Optuna's pruner of that name; steps are rounds."""
    options = dict(options)
    name = options.pop("name")
    if name == "successive_halving":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=options.get("min_rounds", 1), reduction_factor=options.get("reduction_factor", 2)
        )
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=options.get("min_rounds", 1),
            max_resource=rounds,
            reduction_factor=options.get("reduction_factor", 2),
        )
    if name == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=options.get("startup_trials", 5), n_warmup_steps=options.get("warmup_rounds", 1)
        )
    return optuna.pruners.NopPruner()


class LimitedHistory(optuna.storages.InMemoryStorage):
    """A study in memory of which a sampler sees at most `size` finished trials, and the `size` newest open ones.

    Up to that many it sees all. Beyond, it sees the best BEST_KEPT (with several objectives: the newest of those that
    no other beats) and the newest others. What it sees depends on the trials alone, not on the order in which they
    ended. Failed trials, which no sampler uses, are left out.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._unfinished: dict[int, None] = {}
        self._best: list[tuple[tuple[float, ...], int]] = []
        """Loss and id of the best trials, best first; with several objectives of all that none beats, by id."""
        self._others: list[int] = []
        """Ids of the newest others, oldest first."""

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._unfinished[trial_id] = None
        self._sort_in(trial_id)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        done = super().set_trial_state_values(trial_id, state, values)
        self._sort_in(trial_id)
        return done

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if deepcopy or states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        best = sorted(trial_id for _, trial_id in self._best)
        rest = sorted([*self._others, *best[:-BEST_KEPT]])
        best = best[-BEST_KEPT:]
        room = self._size - len(best)
        seen = [*best, *rest[max(0, len(rest) - room) :], *list(self._unfinished)[-self._size :]]
        trials = [self.get_trial(trial_id) for trial_id in sorted(seen)]
        return [trial for trial in trials if states is None or trial.state in states]

    def _sort_in(self, trial_id: int) -> None:
        trial = self.get_trial(trial_id)
        if not trial.state.is_finished() or trial_id not in self._unfinished:
            return
        del self._unfinished[trial_id]
        if trial.state == TrialState.FAIL:
            return
        directions = self.get_study_directions(0)
        loss = _loss(trial, directions)
        fallen = [trial_id]
        if len(directions) == 1:
            insort(self._best, (loss, trial_id))
            fallen = [number for _, number in self._best[BEST_KEPT:]]
            del self._best[BEST_KEPT:]
        elif loss and not any(dominates(loss, other) for other, _ in self._best):  # of losses the smaller one is better
            fallen = [number for other, number in self._best if dominates(other, loss)]
            self._best = [entry for entry in self._best if not dominates(entry[0], loss)] + [(loss, trial_id)]
        for number in fallen:
            insort(self._others, number)
        del self._others[: -self._size]


def _loss(trial: FrozenTrial, directions: Sequence[optuna.study.StudyDirection]) -> tuple[float, ...]:
    """What is smaller for a better trial: as TPE does it, pruned trials come after complete ones, by how far they came.

    With several objectives: a loss for each, nothing unless the trial is complete.
    """
    signs = [-1.0 if direction == optuna.study.StudyDirection.MAXIMIZE else 1.0 for direction in directions]
    values = trial.values if trial.state == TrialState.COMPLETE else None
    if len(signs) > 1:
        return tuple(sign * value for sign, value in zip(signs, values, strict=True)) if values else ()
    if values:
        return 0.0, 0.0, signs[0] * values[0]
    step = trial.last_step
    if step is None:
        return 1.0, 1.0, 0.0
    value = trial.intermediate_values[step]
    return 1.0, -float(step), math.inf if math.isnan(value) else signs[0] * value
