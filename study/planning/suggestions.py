"""What to try next: Optuna's samplers over the study's history, and its pruners.

Sampling is a function of (study seed, trial number, history) and of nothing else. The history is mirrored into a
study in memory that holds only trials of the declared space, so a baseline outside the space (λ = 0 under a logarithmic
range) never confuses a sampler, and no sampler state has to be saved anywhere.
"""

import copy
import math
import warnings
from bisect import insort
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from ardmvc_core.seeding import derive_seed
from study.spec.space import Choice, Distribution, IntLogUniform, IntUniform, LogUniform, Quantised, Uniform
from study.spec.study_spec import StudySpec

optuna.logging.set_verbosity(optuna.logging.WARNING)

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
        elif loss and not any(_beats(other, loss) for other, _ in self._best):
            fallen = [number for other, number in self._best if _beats(loss, other)]
            self._best = [entry for entry in self._best if not _beats(loss, entry[0])] + [(loss, trial_id)]
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


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= yours for mine, yours in zip(one, other, strict=True))


class Suggestions:
    """Draws the next point of the space; told of everything that happens to the trials."""

    def __init__(self, spec: StudySpec, warm_start: Sequence[FrozenTrial] = ()) -> None:
        """Args: warm_start: finished trials of another study; those inside this space inform the sampler."""
        self.distributions = {path: to_optuna(distribution) for path, distribution in spec.distributions().items()}
        self._options = spec.sampler_options()
        self._seed = spec.seed
        history = self._options.get("history")
        self._shadow = optuna.create_study(
            storage=LimitedHistory(max(history, self._options.get("n_startup_trials", 0))) if history else None,
            directions=["maximize" if objective.mode == "max" else "minimize" for objective in spec.objectives],
        )
        self._open: dict[int, optuna.trial.Trial] = {}
        # Sobol's sequence is one sequence: its sampler is kept, and wound forward by what was drawn before.
        self._sobol = make_sampler(self._options, derive_seed(spec.seed, "sampler")) if self._is_sobol else None
        for trial in warm_start:
            if trial.state == TrialState.COMPLETE and as_point(trial.params, self.distributions):
                self._shadow.add_trial(_bare(trial))

    @property
    def _is_sobol(self) -> bool:
        return bool(self._options["name"] == "sobol")

    def restore(self, trials: Sequence[FrozenTrial]) -> None:
        """Takes over the history of the study, in order of trial number."""
        for trial in trials:
            if self._sobol is not None and not trial.user_attrs.get("baseline"):
                self._sobol.sample_relative(self._shadow, trial, self.distributions)
            if self.distributions and trial.params.keys() == self.distributions.keys():
                self._mirror(trial)

    def _mirror(self, trial: FrozenTrial) -> None:
        if trial.state.is_finished():
            self._shadow.add_trial(_bare(trial))
            return
        # Running, whatever the database says: a waiting trial would be handed out again by the next draw.
        open_trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            intermediate_values=trial.intermediate_values,
        )
        self._shadow.add_trial(open_trial)
        added = self._shadow.get_trials(deepcopy=False)[-1]
        self._open[trial.number] = optuna.trial.Trial(self._shadow, added._trial_id)

    def draw(self, number: int) -> dict[str, Any]:
        """The point for trial `number`: {dotted path: value}."""
        if not self.distributions:
            return {}
        if self._sobol is not None:
            frozen = optuna.trial.create_trial(state=TrialState.RUNNING)
            point = self._sobol.sample_relative(self._shadow, frozen, self.distributions)
            return {path: point[path] for path in self.distributions}
        self._shadow.sampler = make_sampler(self._options, derive_seed(self._seed, "sampler", number))
        trial = self._shadow.ask(self.distributions)
        self._open[number] = trial
        return dict(trial.params)

    def started(self, number: int, point: FrozenTrial) -> None:
        """A baseline inside the space runs; the sampler learns from it like from any other point."""
        point.number = number
        self._mirror(point)

    def reported(self, number: int, round_: int, value: float) -> None:
        """A round of the trial ended with this value of the objective (single-objective studies only)."""
        if number in self._open and len(self._shadow.directions) == 1:
            self._open[number].report(value, round_)

    def finished(self, number: int, state: TrialState, values: Sequence[float]) -> None:
        """The trial has reached a final state."""
        if trial := self._open.pop(number, None):
            self._shadow.tell(trial, list(values) if state == TrialState.COMPLETE else None, state)


def _bare(trial: FrozenTrial) -> FrozenTrial:
    """The trial without its attributes (config, rounds), which no sampler reads and every copy would copy."""
    bare = copy.copy(trial)
    bare.user_attrs = {}
    return bare


def as_point(params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> FrozenTrial | None:
    """A running trial at that point, or nothing if the point is not one of the space."""
    if not distributions or params.keys() != distributions.keys():
        return None
    try:
        return optuna.trial.create_trial(
            state=TrialState.RUNNING, params=dict(params), distributions=dict(distributions)
        )
    except ValueError:  # a value outside its range; Optuna validates on creation
        return None


def next_overrides(spec: StudySpec, suggestions: Suggestions, number: int) -> tuple[dict[str, Any], bool]:
    """What trial `number` overrides, and whether it is a baseline: baselines come first, then draws."""
    if number < len(spec.baselines):
        overrides = dict(spec.baselines[number])
        if point := as_point(overrides, suggestions.distributions):
            suggestions.started(number, point)
        return overrides, True
    return suggestions.draw(number), False


def preview(spec: StudySpec, count: int) -> list[dict[str, Any]]:
    """Overrides of the first `count` trials as an empty study would give them out, none of them finished."""
    suggestions = Suggestions(spec)
    return [next_overrides(spec, suggestions, number)[0] for number in range(count)]
