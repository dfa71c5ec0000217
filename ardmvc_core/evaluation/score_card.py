"""From clusters before and after attacks to named metrics and arrays; the one place that makes metric names.

Scores under attack use the cluster → class map that was fitted on the clean data: an attack changes inputs, not what
the user calls a cluster. `acc_refit` is the number with a map fitted after the attack, as published tables have it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ardmvc_core.evaluation.budget import FEW_PER_CLUSTER
from ardmvc_core.evaluation.metrics import (
    chance_scores,
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

OUTCOMES = {"clean/acc": "clean/right", "robust/acc": "robust/right", "robust/flip": "robust/flipped"}
"""Metrics that are the mean of one yes or no per sample → the array that holds these."""


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
        `confusion/clean_<attack>` (clusters × clusters), those of `OUTCOMES` and `<threat>/{right,flipped}` (N,) bool,
        and `examples/…`: rows, clusters, labels, and the pictures of each view before and after, for at most 8 samples
        of the strongest attack."""
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

    def __post_init__(self) -> None:
        self.tables["clusters/clean"] = self.clean
        count = len(self.clean)
        few = f"only {count} scored samples for {self.n_clusters} clusters"
        if self.labels is not None:
            self._map = fit_map(self.labels, self.clean, self.n_clusters)
            self.tables["labels"] = self.labels
            self.tables["clean/right"] = self._map[self.clean] == self.labels
            scores = fixed_map_scores(self.labels, self.clean, self._map)
            self.values |= scores.named("clean")
            self._class_table("clean", self.clean)
            chance = chance_scores(self.labels, self.clean, self.n_clusters)
            self.values |= {f"chance/{score}": value for score, value in chance.items()}
            few += f": chance alone gives ACC {chance['acc']:.2f}"
        if count < FEW_PER_CLUSTER * self.n_clusters:
            self.warnings.append(few)
        sizes = np.bincount(self.clean, minlength=self.n_clusters)
        used = int(np.count_nonzero(sizes))
        self.values |= {"guard/clusters_used": float(used), "guard/min_share": float(sizes.min() / count)}
        if used < self.n_clusters:
            # A constant partition cannot be moved: robustness bought by collapse must not go unseen.
            self.warnings.append(f"only {used} of {self.n_clusters} clusters hold clean samples")

    def attack(self, name: str, attacked: IntArray) -> None:
        """Scores of one attack. Args: attacked: (M,) clusters of the first M ≤ N samples under attack."""
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

    def threat(self, name: str, moved: NDArray[np.bool_]) -> None:
        """Flip rate and, with labels, ACC of the worst case of one threat, as in `union`. Args: moved: (M,), M ≤ N."""
        clean = self.clean[: len(moved)]
        self.tables[f"{name}/flipped"] = moved
        self.values[f"{name}/flip"] = float(moved.mean())
        if self.labels is not None:
            right = self.tables[f"{name}/right"] = (self._map[clean] == self.labels[: len(moved)]) & ~moved
            self.values[f"{name}/acc"] = float(right.mean())

    def union(self, clusters: IntArray, moved: NDArray[np.bool_], noise_flip: float, *, name: str = "robust") -> None:
        """Worst case over a run of the suite, in which each sample is where the first attack that moved it put it.

        A sample is right if it is right on clean views and no attack moves it; one that an attack repairs counts as
        wrong. `nmi` and `ari` are those of `clusters` against the classes, `nmi_clean` and `ari_clean` against the
        clean clusters. `chance/<name>_acc` is its floor, `chance/acc` × the share that is not moved: what a
        partition that is right by chance scores if it is moved as often.

        Args: clusters: (M,) of the first M ≤ N samples, the clean cluster where no attack moved one. moved: (M,).
            noise_flip: flip rate of random noise of the same budget, `noise/flip`.
        """
        clean = self.clean[: len(moved)]
        self.tables[f"clusters/{name}"] = clusters
        self.tables[f"confusion/clean_{name}"] = confusion(clean, clusters, self.n_clusters, self.n_clusters)
        flip = float(moved.mean())
        weak = flip < min(1.0, noise_flip + CLEAR_OF_NOISE)
        self.values |= {"noise/flip": noise_flip, "guard/weak_attacks": float(weak)}
        if weak:
            self.warnings.append(
                f"all attacks together flip less than {CLEAR_OF_NOISE:.0%} more than random noise of the same budget "
                "does: weak attacks are no sign of a robust model"
            )
        self.values[f"{name}/kappa"] = kappa(clean, moved, self.n_clusters)
        agreement = fixed_map_scores(clean, clusters, np.arange(self.n_clusters))
        self.values |= {f"{name}/{score}_clean": value for score, value in agreement.agreement.items()}
        if self.labels is not None:
            labels = self.labels[: len(moved)]
            self.values |= fixed_map_scores(labels, clusters, self._map).named(name)
            self.values[f"chance/{name}_acc"] = self.values["chance/acc"] * (1 - flip)
            # What the number can be computed from again: classes and clean clusters of the samples that stayed.
            table = np.zeros((self._n_classes, self.n_clusters), dtype=np.int64)
            np.add.at(table, (labels[~moved], clean[~moved]), 1)
            self.tables["confusion/class_kept"] = table
            self._class_table(name, clusters)
        # Last: a sample that an attack repairs is right in `fixed_map_scores`, and wrong in the worst case.
        self.threat(name, moved)

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
        """What was collected so far."""
        return Evaluation(dict(self.values), dict(self.tables), tuple(self.warnings))

    @property
    def _n_classes(self) -> int:
        assert self.labels is not None
        return max(self.n_clusters, int(self.labels.max()) + 1)

    def _class_table(self, name: str, clusters: IntArray) -> None:
        assert self.labels is not None
        self.tables[f"confusion/class_{name}"] = confusion(
            self.labels[: len(clusters)], clusters, self._n_classes, self.n_clusters
        )


def as_array(values: Tensor | None) -> IntArray | None:
    """(N,) integers as NumPy, None as None."""
    return None if values is None else values.detach().cpu().numpy().astype(np.int64)
