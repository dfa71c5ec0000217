"""A sampler that is told of noise: a Gaussian process over settings and over how long they were trained.

Every round of a trial is an observation, and so is every seed: trials that were not trained to their end inform it as
well, and one that has five seeds counts for more than one that was lucky once. The next setting is the one with the
largest expected improvement at full length over the best that the process believes in.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

FloatArray = NDArray[np.float64]

LENGTH = "length"
"""System attribute of a trial: rounds until its first seed is trained; what is told from then on is a value a seed."""
CANDIDATES, NEAR, SPREAD = 512, 64, 0.1
"""Settings that are compared: of a Sobol sequence, and around each of the three best, a normal step of this width in
units of the range away."""


class NoisyGPSampler(optuna.samplers.BaseSampler):
    """Expected improvement under a Gaussian process that knows of rounds and seeds; of trials, it reads what was told
    between. Trials that run are taken to come out as it expects."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], *, seed: int, startup_trials: int) -> None:
        """Args: seed: of the Sobol sequence that the first `startup_trials` are points of."""
        self._space, self._start_seed, self._startup = dict(distributions), seed, startup_trials
        self.seed = seed
        """Of the next draw."""
        self._fitted: tuple[bytes, Any] = b"", None
        """What was observed when the process was last fitted, and the process: draws of one cohort share it."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, domain: BaseDistribution) -> Any:
        return optuna.samplers.RandomSampler(seed=self.seed).sample_independent(study, trial, name, domain)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        others = [one for one in study.get_trials(deepcopy=False) if one.number != trial.number]
        known = [one for one in others if one.params.keys() == self._space.keys()]
        told = [one for one in known if observations(one)]
        if len(known) < self._startup or len(told) < 2:
            return self._decoded(_sobol(len(self._space), len(known) + 1, self._start_seed)[-1])
        up = 1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1.0
        return self._improving(told, [one for one in known if not one.state.is_finished()], up)

    def _improving(self, told: Sequence[FrozenTrial], running: Sequence[FrozenTrial], up: float) -> dict[str, Any]:
        rows = [(one, share, up * value) for one in told for share, value in observations(one)]
        x = np.array([[*self._encoded(one.params), share] for one, share, _ in rows])
        y = np.array([value for *_, value in rows])
        y = (y - y.mean()) / (float(y.std()) or 1.0)
        if self._fitted[0] != (seen := x.tobytes() + y.tobytes()):
            self._fitted = seen, _process(x, y)
        process = self._fitted[1]
        if running:
            ahead = np.array([[*self._encoded(one.params), 1.0] for one in running])
            process = _process(np.vstack([x, ahead]), np.append(y, process.predict(ahead)), process.kernel_)
        believed = process.predict(np.array([[*self._encoded(one.params), 1.0] for one in told]))
        best = [told[index].params for index in np.argsort(-believed, kind="stable")[:3]]
        rng = np.random.default_rng(self.seed)
        units = [_sobol(len(self._space), CANDIDATES, self.seed), *(self._around(params, rng) for params in best)]
        points = [self._decoded(unit) for unit in np.vstack(units)]
        mean, deviation = process.predict(np.array([[*self._encoded(one), 1.0] for one in points]), return_std=True)
        noise = process.kernel_.k2.noise_level  # which the deviation holds, and the expected value over seeds does not
        deviation = np.sqrt(np.maximum(deviation**2 - noise, 1e-12))
        return points[int(np.argmax(_improvement(mean - believed.max(), deviation)))]

    def _around(self, params: Mapping[str, Any], rng: np.random.Generator) -> FloatArray:
        """(NEAR, D) points of the unit cube that differ from a setting in one or two parameters."""
        unit = np.array([_share(domain, params[name]) for name, domain in self._space.items()])
        moved = rng.random((NEAR, len(unit))) < 1.5 / len(unit)
        return np.asarray(np.clip(unit + moved * rng.normal(0, SPREAD, moved.shape), 0, np.nextafter(1, 0)))

    def _encoded(self, params: Mapping[str, Any]) -> list[float]:
        """The setting as the process sees it: numbers in [0, 1], and one for each value of what has no order."""
        found: list[float] = []
        for name, domain in self._space.items():
            if isinstance(domain, CategoricalDistribution) and not _ordered(domain):
                own = int(domain.to_internal_repr(params[name]))
                found += [float(index == own) for index in range(len(domain.choices))]
            else:
                found.append(_share(domain, params[name]))
        return found

    def _decoded(self, unit: FloatArray) -> dict[str, Any]:
        return {
            name: _value(domain, share)
            for (name, domain), share in zip(self._space.items(), unit.tolist(), strict=True)
        }


def observations(trial: FrozenTrial) -> list[tuple[float, float]]:
    """Share of the training, and value, of every round that was told; of full length one for each seed."""
    length = trial.system_attrs.get(LENGTH)
    # Of a trial that runs whole, or of another study, rounds say nothing: what it ended with is one observation.
    told = trial.intermediate_values if length else {} if trial.value is None else {1: trial.value}
    return [(min(1.0, round_ / (length or 1)), value) for round_, value in told.items() if math.isfinite(value)]


def _process(x: FloatArray, y: FloatArray, kernel: Any = None) -> Any:
    """A Gaussian process. Args: kernel: with its parameters; None: they are fitted."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    wide = [(0.1, 10.0)] * x.shape[1]
    new = ConstantKernel(1.0, (0.1, 10.0)) * Matern([1.0] * x.shape[1], wide, nu=2.5) + WhiteKernel(0.1, (1e-3, 1.0))
    process = GaussianProcessRegressor(
        new if kernel is None else kernel, optimizer="fmin_l_bfgs_b" if kernel is None else None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at the end of its range is fine
        return process.fit(x, y)


def _improvement(ahead: FloatArray, deviation: FloatArray) -> FloatArray:
    """Expected improvement of points that are expected so far ahead of the best."""
    from scipy.special import ndtr

    z = ahead / deviation
    return np.asarray(ahead * ndtr(z) + deviation * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))


def _sobol(dimensions: int, count: int, seed: int) -> FloatArray:
    """(count, D) points of the unit cube, each the same whatever the count."""
    from scipy.stats import qmc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # balance needs a power of two
        return np.asarray(qmc.Sobol(dimensions, seed=seed).random(count))


def _ordered(domain: CategoricalDistribution) -> bool:
    """Whether the values are numbers, so that a model of one says something of its neighbours."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in domain.choices)


def _share(domain: BaseDistribution, value: Any) -> float:
    """Where a value lies in its range, in [0, 1)."""
    match domain:
        case CategoricalDistribution(choices=choices):
            order = sorted(choices) if _ordered(domain) else list(choices)
            return (order.index(domain.choices[int(domain.to_internal_repr(value))]) + 0.5) / len(order)
        case IntDistribution():
            low, high, number = domain.low - 0.5, domain.high + 0.5, float(value)
        case FloatDistribution(low=low, high=high, step=step):
            number, half = float(value), (step or 0.0) / 2
            low, high = low - half, high + half
        case _:
            raise TypeError(f"no place in {domain!r}")
    if getattr(domain, "log", False):
        low, high, number = math.log(low), math.log(high), math.log(number)
    return min((number - low) / (high - low) if high > low else 0.0, math.nextafter(1, 0))


def _value(domain: BaseDistribution, share: float) -> Any:
    """The value at a place of its range, so that equal lengths are equally likely."""
    match domain:
        case CategoricalDistribution(choices=choices):
            order = sorted(choices) if _ordered(domain) else list(choices)
            return order[int(share * len(order))]
        case IntDistribution(low=low, high=high, log=log):
            if log:
                number = math.exp(math.log(low - 0.5) + share * (math.log(high + 0.5) - math.log(low - 0.5)))
            else:
                number = low - 0.5 + share * (high - low + 1)
            return min(max(round(number), low), high)
        case FloatDistribution(low=low, high=high, step=step, log=log):
            if step is not None:
                return low + step * min(int(share * (round((high - low) / step) + 1)), round((high - low) / step))
            if log:
                return min(max(math.exp(math.log(low) + share * (math.log(high) - math.log(low))), low), high)
            return low + share * (high - low)
    raise TypeError(f"no value of {domain!r}")
