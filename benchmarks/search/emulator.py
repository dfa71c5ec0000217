"""The table as something that can be searched: any setting, seed and round is answered at once, with what it cost.

Between settings of the table their means over seeds are those of a Gaussian process, one for each round and for the
score part; a seed's deviation from its mean is that of the nearest setting. Needs numpy, scikit-learn and pyarrow.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

ROUNDS = 4
SPACE: dict[str, tuple[str, Any]] = {
    "model.adversarial_weight": ("log", (0.01, 10.0)),
    "model.mitigator_weight": ("log", (0.01, 10.0)),
    "model.train_eps": ("uniform", (0.02, 0.3)),
    "model.train_eps_warmup": ("choice", (0, 5, 10)),
    "model.inner_objective": ("choice", ("contrastive", "assignment", "both")),
}
"""Of `ar_dmvc_am.yaml`."""
SEEN = 3
"""Of a repetition's five seeds, those that a search may see; the others say what its winner is worth."""


class Emulator:
    """One data set's part of the table."""

    def __init__(self, file: Path, dataset: str) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        rows = [row for row in pq.read_table(file).to_pylist() if row["dataset"] == dataset]
        runs: dict[int, dict[int, list[dict[str, Any]]]] = {}
        for row in rows:
            runs.setdefault(row["setting"], {}).setdefault(row["seed"], []).append(row)
        whole = {setting: own for setting, own in sorted(runs.items()) if len(own) == 5}
        self.settings = list(whole)
        self.values = np.array([[_outputs(whole[one][seed]) for seed in sorted(whole[one])] for one in self.settings])
        """(S, 5, 5) of each setting and seed: probe after the rounds before the last, `tune` at the end, score part."""
        self.passes = [row["passes"] for row in next(iter(whole[self.settings[-1]].values()))]
        """Of each round."""
        searched = [one for one in self.settings if one > 0 and whole[one][1][0]["model.train_eps_warmup"] is not None]
        self._points = np.array([encoded(whole[one][1][0]) for one in searched])
        self._rows = [self.settings.index(one) for one in searched]
        means = self.values[self._rows].mean(axis=1)
        self._scale = means.mean(axis=0), means.std(axis=0)
        kernel = ConstantKernel(1.0, (0.1, 10)) * Matern([1.0] * 7, [(0.1, 10)] * 7, nu=2.5)
        kernel = kernel + WhiteKernel(0.02, (1e-3, 0.3))
        process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process = process.fit(self._points, (means - self._scale[0]) / self._scale[1])

    @property
    def paper(self) -> np.ndarray:
        """(5, 5) of the paper's setting, by seed."""
        return self.values[self.settings.index(0)]

    @property
    def plain(self) -> np.ndarray:
        """(5, 5) without a defence."""
        return self.values[self.settings.index(1)]

    def outputs(self, overrides: Mapping[str, Any]) -> np.ndarray:
        """(5, 5) of any setting, by seed; a baseline's own."""
        if "model.train_eps_warmup" not in overrides:
            return self.paper if overrides["model.adversarial_weight"] else self.plain
        point = np.array(encoded(overrides))
        mean = self._process.predict(point[None])[0] * self._scale[1] + self._scale[0]
        nearest = self.values[self._rows[int(np.abs(self._points - point).sum(axis=1).argmin())]]
        return np.clip(mean + nearest - nearest.mean(axis=0), 0.0, 1.0)


def encoded(overrides: Mapping[str, Any]) -> list[float]:
    """A setting as numbers in [0, 1]; what has no order has a place for each value."""
    found: list[float] = []
    for name, (kind, values) in SPACE.items():
        own = overrides[name]
        if kind == "choice" and isinstance(values[0], str):
            found += [float(own == value) for value in values]
        elif kind == "choice":
            found.append(values.index(own) / (len(values) - 1))
        else:
            low, high, number = (math.log(v) for v in (*values, own)) if kind == "log" else (*values, own)
            found.append((number - low) / (high - low))
    return found


def _outputs(run: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of one run; 0 where it failed."""
    ordered = sorted(run, key=lambda row: row["round"])
    if ordered[-1]["failure"] is not None:
        return [0.0] * (ROUNDS + 1)
    probes = [row["probe/acc"] for row in ordered[:-1]]
    return [*probes, ordered[-1]["robust/acc"], ordered[-1]["score/tune/acc"]]


class Repetition:
    """The emulator with its seeds in a random order: a search sees the first `SEEN`, its winner is judged by the rest.

    What a search asked for is counted, in passes.
    """

    def __init__(self, emulator: Emulator, number: int) -> None:
        self._emulator = emulator
        self._order = np.random.default_rng(number).permutation(5)
        self._known: dict[tuple[Any, ...], np.ndarray] = {}
        self.cost = 0.0
        """Passes so far, as a share of one run with one seed."""

    def _of(self, overrides: Mapping[str, Any]) -> np.ndarray:
        key = tuple(sorted(overrides.items()))
        if key not in self._known:
            self._known[key] = self._emulator.outputs(overrides)[self._order]
        return self._known[key]

    def value(self, overrides: Mapping[str, Any], seed: int, round_: int) -> float:
        """What a seed reports after a round, 1 … ROUNDS; what the round costs is counted. Args: seed: 0 … SEEN − 1."""
        self.cost += self._emulator.passes[round_ - 1] / sum(self._emulator.passes)
        return float(self._of(overrides)[seed, round_ - 1])

    def worth(self, overrides: Mapping[str, Any]) -> float:
        """Mean ACC on the score part over the seeds that no search sees."""
        return float(self._of(overrides)[SEEN:, ROUNDS].mean())
