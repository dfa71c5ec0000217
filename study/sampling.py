"""What to try next: Optuna's samplers over the study's history, and its pruners.

Sampling is a function of (study seed, trial number, history) and of nothing else. The history is mirrored into a
study in memory that holds only trials of the declared space, so a baseline outside the space (λ = 0 under a logarithmic
range) never confuses a sampler, and no sampler state has to be saved anywhere.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from ardmvc_core.seeding import derive_seed
from study.space import Choice, Distribution, IntLogUniform, IntUniform, LogUniform, Quantised, Uniform
from study.spec import StudySpec

optuna.logging.set_verbosity(optuna.logging.WARNING)


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


class Suggestions:
    """Draws the next point of the space; told of everything that happens to the trials."""

    def __init__(self, spec: StudySpec, warm_start: Sequence[FrozenTrial] = ()) -> None:
        """Args: warm_start: finished trials of another study; those inside this space inform the sampler."""
        self.distributions = {path: to_optuna(distribution) for path, distribution in spec.distributions().items()}
        self._options = spec.sampler_options()
        self._seed = spec.seed
        self._shadow = optuna.create_study(
            directions=["maximize" if objective.mode == "max" else "minimize" for objective in spec.objectives]
        )
        self._open: dict[int, optuna.trial.Trial] = {}
        # Sobol's sequence is one sequence: its sampler is kept, and wound forward by what was drawn before.
        self._sobol = make_sampler(self._options, derive_seed(spec.seed, "sampler")) if self._is_sobol else None
        for trial in warm_start:
            if trial.state == TrialState.COMPLETE and as_point(trial.params, self.distributions):
                self._shadow.add_trial(trial)

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
            self._shadow.add_trial(trial)
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
