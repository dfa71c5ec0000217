"""What to try next: Optuna's samplers over the study's history, and its pruners.

Sampling is a function of (study seed, trial number, history) and of nothing else. The history is mirrored into a
study in memory that holds only trials of the declared space, so a baseline outside the space (λ = 0 under a logarithmic
range) never confuses a sampler, and no sampler state has to be saved anywhere.
"""

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from ardmvc_core.seeding import derive_seed
from study.database.trials import facts_of
from study.planning.noisy_gp import LENGTH, NoisyGPSampler
from study.planning.optuna_side import LimitedHistory, make_sampler, to_optuna
from study.ranking.ranking import scores
from study.records import TrialRecord
from study.spec.objectives import told_of
from study.spec.study_spec import StudySpec

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Suggestions:
    """Draws the next point of the space; told of everything that happens to the trials."""

    def __init__(self, spec: StudySpec, warm_start: Sequence[FrozenTrial] = ()) -> None:
        """Args: warm_start: finished trials of another study; those inside this space inform the sampler."""
        self.distributions = {path: to_optuna(distribution) for path, distribution in spec.distributions().items()}
        self._spec, self._point = spec, spec.pointer()
        self._points, self._tried = spec.points, set[Hashable]()
        """And how many points the space has, if they can be counted, and those that trials have."""
        self._options = spec.sampler_options()
        self._seed = spec.seed
        self._noisy = None
        if self._options["name"] == "gp_noise":
            start, seed = self._options["startup_trials"], derive_seed(spec.seed, "sampler") % 2**32
            self._noisy = NoisyGPSampler(self.distributions, seed=seed, startup_trials=start)
        self._warm = [
            _bare(trial)
            for trial in warm_start
            if trial.state == TrialState.COMPLETE and as_point(trial.params, self.distributions)
        ]
        self._start()

    def _start(self) -> None:
        """With no trial known but those of another study."""
        history = self._options.get("history")
        self._shadow = optuna.create_study(
            storage=LimitedHistory(max(history, self._options.get("n_startup_trials", 0))) if history else None,
            directions=["maximize" if objective.mode == "max" else "minimize" for objective in self._spec.objectives],
        )
        self._open: dict[int, optuna.trial.Trial] = {}
        # Sobol's sequence is one sequence: its sampler is kept, and wound forward by what was drawn before.
        self._sobol = make_sampler(self._options, derive_seed(self._seed, "sampler")) if self._is_sobol else None
        for trial in self._warm:
            self._shadow.add_trial(trial)

    @property
    def _is_sobol(self) -> bool:
        return bool(self._options["name"] == "sobol")

    def restore(self, trials: Sequence[FrozenTrial]) -> None:
        """Takes over the history of the study, in order of trial number."""
        for trial in trials:
            self.tried(facts_of(trial).get("overrides", trial.params))
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

    def look_back(self, records: Sequence[TrialRecord], first: int) -> None:
        """From now on draws know of these trials alone, as they are now, and of their own.

        Args: first: number of the first trial of which no more is to be known than its point.
        """
        self._start()
        goals = self._spec.objectives
        told = {record.number: told_of(record, goals[0]) for record in records if record.number < first}
        known = [value for own in told.values() for value in own.values() if math.isfinite(value)]
        worst = (min if goals[0].mode == "max" else max)(known, default=0.0)
        for record in records:
            self.tried(record.overrides)
            point = as_point(record.overrides, self.distributions)
            if self._sobol is not None and not record.baseline:
                self._sobol.sample_relative(self._shadow, point, self.distributions)
            if point is None:
                continue
            if record.number >= first:
                self.started(record.number, point)
                continue
            values = scores(record, goals)
            own = {step: value if math.isfinite(value) else worst for step, value in told[record.number].items()}
            if values is None and record.judged and len(goals) == 1:
                values = (worst,)
            state = TrialState.PRUNED if own and len(goals) == 1 else TrialState.FAIL
            self._shadow.add_trial(
                optuna.trial.create_trial(
                    state=state if values is None else TrialState.COMPLETE,
                    values=values,
                    params=point.params,
                    distributions=point.distributions,
                    intermediate_values=own,
                    system_attrs={LENGTH: record.leg},
                )
            )

    def next_overrides(self, number: int, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What trial `number` overrides: a baseline's first, then what is given or drawn."""
        listed = self._spec.baselines
        if number < len(listed) or given is not None:
            overrides = dict(listed[number] if number < len(listed) else given or {})
            self.tried(overrides)
            if point := as_point(overrides, self.distributions):
                self.started(number, point)
            return overrides
        return self.draw(number)

    def draw(self, number: int) -> dict[str, Any]:
        """The point for trial `number`: {dotted path: value}."""
        if not self.distributions:
            return {}
        point = self._drawn(number)
        if self._tried and self._point(point) in self._tried and (other := self._untried(number)):
            if trial := self._open.pop(number, None):
                self._shadow.tell(trial, state=TrialState.FAIL)
                if frozen := as_point(other, self.distributions):
                    self.started(number, frozen)
            point = other
        self.tried(point)
        return point

    def tried(self, overrides: Mapping[str, Any]) -> None:
        """A trial of that point is there; it is not drawn again while others are left."""
        if self._points is not None and (point := self._point(overrides)) is not None:
            self._tried.add(point)

    def _untried(self, number: int) -> dict[str, Any] | None:
        """The first point that no trial has, from one that depends on study and trial; None if there is none."""
        space, points = self._spec.distributions(), self._points or 0
        grids = {path: distribution.grid() or () for path, distribution in space.items()}
        first = derive_seed(self._seed, "untried", number)
        for index in range(first, first + points):
            place, point = index % points, {}
            for path, grid in grids.items():
                place, position = divmod(place, len(grid))
                point[path] = grid[position]
            if self._point(point) not in self._tried:
                return point
        return None

    def _drawn(self, number: int) -> dict[str, Any]:
        if self._sobol is not None:
            frozen = optuna.trial.create_trial(state=TrialState.RUNNING)
            point = self._sobol.sample_relative(self._shadow, frozen, self.distributions)
            return {path: point[path] for path in self.distributions}
        seed = derive_seed(self._seed, "sampler", number)
        if self._noisy is None:
            self._shadow.sampler = make_sampler(self._options, seed)
        else:
            self._shadow.sampler, self._noisy.seed = self._noisy, seed % 2**32
        trial = self._shadow.ask(self.distributions)
        self._open[number] = trial
        return dict(trial.params)

    def started(self, number: int, point: FrozenTrial) -> None:
        """A baseline inside the space runs; the sampler learns from it like from any other point."""
        point.number = number
        self._mirror(point)

    def reported(self, number: int, round_: int, value: float) -> None:
        """A round of the trial ended with this value of the objective (single-objective studies only)."""
        # Of a study whose trials begin in cohorts, what is known is that of `look_back`, whoever is how far since.
        if number in self._open and len(self._shadow.directions) == 1 and not self._spec.staged:
            self._open[number].report(value, round_)

    def finished(self, number: int, state: TrialState, values: Sequence[float]) -> None:
        """The trial has reached a final state."""
        if self._spec.staged:
            return
        if trial := self._open.pop(number, None):
            self._shadow.tell(trial, list(values) if state == TrialState.COMPLETE else None, state)


def _bare(trial: FrozenTrial) -> FrozenTrial:
    """The trial without its attributes (config, rounds), which no sampler reads and every copy would copy."""
    bare = copy.copy(trial)
    bare.user_attrs, bare.system_attrs = {}, {}
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


def preview(spec: StudySpec, count: int) -> list[dict[str, Any]]:
    """Overrides of the first `count` trials as an empty study would give them out, none of them finished."""
    suggestions = Suggestions(spec)
    return [suggestions.next_overrides(number) for number in range(count)]
