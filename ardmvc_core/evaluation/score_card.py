"""From clusters before and after attacks to named metrics and arrays; the one place that makes metric names.

Scores under attack use the cluster → class map that was fitted on the clean data: an attack changes inputs, not what
the user calls a cluster. `acc_refit` is the number with a map fitted after the attack, as published tables have it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ardmvc_core.evaluation.metrics import (
    AGREEMENT,
    clustering_scores,
    confusion,
    fit_map,
    fixed_map_scores,
    flip_rate,
    kappa,
)
from ardmvc_core.types import Views

IntArray = NDArray[np.int64]

CLEAR_OF_NOISE = 0.03
"""Flip rate that an attack must have beyond random noise of the same budget to count as working."""
MAX_EXAMPLES = 8


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found."""

    values: Mapping[str, float]
    tables: Mapping[str, NDArray[np.generic]]
    warnings: tuple[str, ...] = ()
    """Reasons to doubt a number, each a sentence; empty if there are none."""

    def metrics(self) -> dict[str, float]:
        """Metrics by name; fractions. Without labels only those that need none."""
        return dict(self.values)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """By name: `labels`, `clusters/<clean or attack>` (N,), `confusion/class_<…>` (classes × clusters),
        `confusion/clean_<attack>` (clusters × clusters), `robust/flipped` (N,) bool, and `examples/…`: rows, clusters,
        labels, and the pictures of each view before and after, for at most 8 samples of the strongest attack."""
        return dict(self.tables)


@dataclass
class ScoreCard:
    """Collects the scores of one model on one part of the data."""

    labels: IntArray | None
    """(N,) classes."""
    clean: IntArray
    """(N,) clusters of the clean views."""
    n_clusters: int
    values: dict[str, float] = field(default_factory=dict)
    tables: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    clear_of_noise: dict[str, bool] = field(default_factory=dict)
    """Attack → whether it flips clearly more than random noise of its budget."""

    def __post_init__(self) -> None:
        self.tables["clusters/clean"] = self.clean
        if self.labels is not None:
            self._map = fit_map(self.labels, self.clean, self.n_clusters)
            self.tables["labels"] = self.labels
            scores = fixed_map_scores(self.labels, self.clean, self._map)
            self.values |= scores.named("clean")
            self._class_table("clean", self.clean)
        sizes = np.bincount(self.clean, minlength=self.n_clusters)
        used = int(np.count_nonzero(sizes))
        self.values |= {"guard/clusters_used": float(used), "guard/min_share": float(sizes.min() / len(self.clean))}
        if used < self.n_clusters:
            # A constant partition cannot be moved: robustness bought by collapse must not go unseen.
            self.warnings.append(f"only {used} of {self.n_clusters} clusters hold clean samples")

    def attack(self, name: str, attacked: IntArray, noise_flip: float | None = None) -> None:
        """Scores of one attack.

        Args: attacked: (M,) clusters of the first M ≤ N samples under attack. noise_flip: flip rate of random noise of
            the same budget. `guard/weak_attacks` counts those that are not clear of it.
        """
        clean = self.clean[: len(attacked)]
        flip = flip_rate(clean, attacked)
        self.values[f"{name}/flip"] = flip
        self.tables[f"clusters/{name}"] = attacked
        self.tables[f"confusion/clean_{name}"] = confusion(clean, attacked, self.n_clusters, self.n_clusters)
        if self.labels is not None:
            labels = self.labels[: len(attacked)]
            scores = fixed_map_scores(labels, attacked, self._map)
            self.values |= scores.named(name)
            self.values[f"{name}/acc_refit"] = clustering_scores(labels, attacked, self.n_clusters).acc
            self._class_table(name, attacked)
        if noise_flip is not None:
            self.clear_of_noise[name] = flip >= min(1.0, noise_flip + CLEAR_OF_NOISE)

    def robust(self, names: tuple[str, ...]) -> None:
        """Worst case over these attacks, which were scored on all samples.

        A sample is right if it is right on clean views and no attack moves it; one that an attack repairs counts as
        wrong. `nmi` and `ari` are of sets and cannot be put together per sample: their minimum over the attacks.
        """
        moved = np.zeros(len(self.clean), dtype=np.bool_)
        for name in names:
            moved |= self.tables[f"clusters/{name}"] != self.clean
        self.tables["robust/flipped"] = moved
        self.values["robust/flip"] = float(moved.mean())
        self.values["robust/kappa"] = kappa(self.clean, moved, self.n_clusters)
        if self.labels is not None:
            self._worst_case(moved)
            for score in AGREEMENT:
                self.values[f"robust/{score}"] = min(self.values[f"{name}/{score}"] for name in names)

    def union(self, clusters: IntArray, moved: NDArray[np.bool_]) -> None:
        """Worst case over a run of the suite, in which each sample is where the first attack that moved it put it.

        Args: clusters: (N,), the clean cluster where no attack moved the sample. moved: (N,).
        `nmi` and `ari` are those of that vector against the classes, `nmi_clean` and `ari_clean` against the clean
        clusters; accuracy counts a sample as right if it is right on clean views and no attack moves it.
        """
        self.tables["clusters/robust"] = clusters
        self.tables["confusion/clean_robust"] = confusion(self.clean, clusters, self.n_clusters, self.n_clusters)
        self.tables["robust/flipped"] = moved
        self.values["robust/flip"] = float(moved.mean())
        self.values["robust/kappa"] = kappa(self.clean, moved, self.n_clusters)
        agreement = fixed_map_scores(self.clean, clusters, np.arange(self.n_clusters))
        self.values |= {f"robust/{name}_clean": value for name, value in agreement.agreement.items()}
        if self.labels is not None:
            self.values |= fixed_map_scores(self.labels, clusters, self._map).named("robust")
            self._worst_case(moved)
            self._class_table("robust", clusters)

    def examples(self, clean_views: Views, attacked: Views, clusters: IntArray) -> None:
        """Keeps pictures of at most 8 samples, flipped ones first."""
        rows = np.argsort(self.clean[: len(clusters)] == clusters, kind="stable")[:MAX_EXAMPLES]
        self.tables["examples/rows"] = rows
        self.tables["examples/clusters_clean"] = self.clean[rows]
        self.tables["examples/clusters_attacked"] = clusters[rows]
        if self.labels is not None:
            self.tables["examples/labels"] = self.labels[rows]
        for v, (before, after) in enumerate(zip(clean_views, attacked, strict=True)):
            self.tables[f"examples/view_{v}_clean"] = before[rows].cpu().numpy()
            self.tables[f"examples/view_{v}_attacked"] = after[rows].cpu().numpy()

    def evaluation(self) -> Evaluation:
        """What was collected so far; a warning if not one attack is clear of the noise, so that nothing was tested."""
        values, warnings = dict(self.values), list(self.warnings)
        weak = [name for name, clear in self.clear_of_noise.items() if not clear]
        if self.clear_of_noise:
            values["guard/weak_attacks"] = float(len(weak))
        if weak and len(weak) == len(self.clear_of_noise):
            warnings.append(
                f"no attack flips {CLEAR_OF_NOISE:.0%} more than random noise of the same budget does "
                f"({', '.join(weak)}): weak attacks are no sign of a robust model"
            )
        return Evaluation(values, dict(self.tables), tuple(warnings))

    def _worst_case(self, moved: NDArray[np.bool_]) -> None:
        assert self.labels is not None
        self.values["robust/acc"] = float(((self._map[self.clean] == self.labels) & ~moved).mean())
        # What the number can be computed from again: classes and clean clusters of the samples that stayed.
        n_classes = max(self.n_clusters, int(self.labels.max()) + 1)
        table = np.zeros((n_classes, self.n_clusters), dtype=np.int64)
        np.add.at(table, (self.labels[~moved], self.clean[~moved]), 1)
        self.tables["confusion/class_kept"] = table

    def _class_table(self, name: str, clusters: IntArray) -> None:
        assert self.labels is not None
        n_classes = max(self.n_clusters, int(self.labels.max()) + 1)
        self.tables[f"confusion/class_{name}"] = confusion(
            self.labels[: len(clusters)], clusters, n_classes, self.n_clusters
        )


def as_array(values: Tensor | None) -> IntArray | None:
    """(N,) integers as NumPy, None as None."""
    return None if values is None else values.detach().cpu().numpy().astype(np.int64)
