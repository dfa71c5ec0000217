"""The suite: attacks of a tier run one after another on the samples that survived so far, and what each of them found.

The worst case per sample over several attacks, as AutoAttack has it for classifiers (Croce & Hein 2020). The reference
is the model's own clean assignment, so no labels are needed: a sample that stays where it was survives.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from ardmvc_core.attacks.attack import Attack, AttackedPoints, NotApplicable, Scene
from ardmvc_core.attacks.noise import NOISE_KINDS, NoiseConfig, prepare_noise
from ardmvc_core.attacks.objectives.clean_reference import CleanReference, clean_reference, logits_of
from ardmvc_core.attacks.target import EvaluationError, inference_target
from ardmvc_core.attacks.threat import Threat, project
from ardmvc_core.attacks.tiers import FurtherAttack, Tier, noise_draws, plan
from ardmvc_core.networks.kmeans import KMeansHead
from ardmvc_core.seeding import generator
from ardmvc_core.types import Views

Progress = Callable[[str, float], None]
"""Called as (attack, share of the tier's largest cost that is behind it)."""

NEAR_BOUNDARY = 0.01
"""Share of the flipped samples, those nearest to the boundary, whose flip must hold in double precision too."""


@dataclass(frozen=True, kw_only=True)
class AttackRecord:
    """What one attack found, over all N samples."""

    key: str
    tested: Tensor
    """(N,) bool: the samples it was run on."""
    flipped: Tensor
    """(N,) bool: those of them that it moved to another cluster."""
    clusters: Tensor
    """(N,) int64 under this attack; the clean ones where it was not run."""
    new: int
    """Samples that it flipped and no attack before it."""
    forwards: int
    """Passes through the target, in samples, those with gradient included; fitting of generators is in them."""
    backwards: int
    """Of these, passes that were differentiated."""
    seconds: float
    skipped: str = ""
    """Why it did not run; empty if it did."""
    details: dict[str, float] = field(default_factory=dict)
    """Diagnostics by name: `zero_gradient`, `never_rose`, `saturation`, …; shares in [0, 1]."""
    curve: tuple[float, ...] = ()
    """Mean best loss after each step, for gradient attacks."""

    @property
    def flip_rate(self) -> float:
        """Flipped over tested samples, in [0, 1]; 0 where none was tested."""
        tested = int(self.tested.sum())
        return int(self.flipped.sum()) / tested if tested else 0.0


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """The worst case over a tier's attacks."""

    tier: Tier
    reference: CleanReference
    flipped: Tensor
    """(N,) bool: moved by at least one attack. Noise is not an attack."""
    clusters: Tensor
    """(N,) int64: where the first attack that flipped the sample put it; the clean cluster where none did."""
    views: Views
    """V × (N, *shape_v): the points that flipped the samples; clean where none did."""
    records: tuple[AttackRecord, ...]
    noise_flip: float
    """Mean share that random noise moves, of the stronger kind."""
    noise_flipped: Tensor
    """(N,) bool: moved by some draw of noise."""

    @property
    def flip_rate(self) -> float:
        """Share of the samples that some attack moves, in [0, 1]."""
        return float(self.flipped.double().mean())

    def record(self, key: str) -> AttackRecord:
        """The record of one attack. Raises: KeyError if the tier has none of that name."""
        for record in self.records:
            if record.key == key:
                return record
        raise KeyError(f"no attack {key!r} in this run; it has {', '.join(record.key for record in self.records)}")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What one attack claimed on some samples, and what it cost: enough to look at the claim again."""

    rows: Tensor
    """(B,) int64, the samples that it was run on."""
    points: AttackedPoints
    forwards: int
    backwards: int
    seconds: float


class Memory(Protocol):
    """Keeps attempts, so that a run which is interrupted goes on from them. It must know which run it is of."""

    def recall(self, key: str) -> Attempt | None:
        """The attempt of an attack of that key; None if there is none."""

    def keep(self, key: str, attempt: Attempt) -> None:
        """Called after each attack."""

    def recall_flips(self, key: str) -> Tensor | None:
        """(N,) bool, as `keep_flips` was given it; None if it was not."""

    def keep_flips(self, key: str, flipped: Tensor) -> None:
        """Called with the samples that a whole run of a suite moves: a point of a curve."""


def run_suite(
    model: nn.Module,
    views: Views,
    budget: Threat,
    *,
    tier: Tier,
    seed: int = 7,
    batch_size: int = 256,
    attacker_views: Views | None = None,
    surrogates: Sequence[nn.Module] = (),
    everyone: bool = False,
    attacks: Sequence[Attack] | None = None,
    further: Sequence[FurtherAttack] = (),
    memory: Memory | None = None,
    progress: Progress | None = None,
) -> SuiteResult:
    """Runs a tier on a model in inference mode.

    Args: model: left as it was found. views: V × (N, *shape_v), clean, N ≥ 1, on the model's device. attacker_views:
        V × (M, *shape_v), other samples on which generators are fitted; None: these are skipped, and say so.
        surrogates: models for the transfer attack, which is skipped without any. everyone: runs each attack on every
        sample and not only on survivors, for tables that compare attacks; costs more, and the union is no smaller.
        attacks: in place of the tier's, for studies of single attacks. further: attacks beside the tier's. memory: of
        attacks that an interrupted run has finished; their points are confirmed anew, and not searched for.
    Returns: a flip counts if a pass of its own over the projected point confirms it, near the boundary in double too.
    Raises: EvaluationError if the target changes, or an attack returns values that are not finite; ValueError for an
        unknown tier or views that the budget does not fit.
    """
    budget.eps_per_view(len(views))
    with inference_target(model) as verify:
        reference = clean_reference(model, views, batch_size)
        head = getattr(model, "head", None)
        if attacks is None:
            centroid_head = isinstance(head, KMeansHead)
            attacks = plan(tier, reference.logits.shape[1], centroid_head=centroid_head, further=further)
        scene = Scene(
            model=model,
            budget=budget,
            seed=seed,
            batch_size=batch_size,
            attacker_views=attacker_views,
            surrogates=surrogates,
        )
        run = _Suite(scene, views, reference, memory)
        noise_flip, noise_flipped = run.noise(noise_draws(tier))
        verify("the noise")
        total, behind = sum(attack.forwards for attack in attacks), 0
        for attack in attacks:
            if progress is not None:
                progress(attack.key, behind / total)
            run.attack(attack, everyone)
            verify(f"attack '{attack.key}'")
            behind += attack.forwards
        if progress is not None:
            progress("", 1.0)
    return SuiteResult(
        tier=tier,
        reference=reference,
        flipped=run.flipped,
        clusters=run.clusters,
        views=run.points,
        records=tuple(run.records),
        noise_flip=noise_flip,
        noise_flipped=noise_flipped,
    )


@dataclass
class PassCount:
    """Samples that went through a model."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[PassCount]:
    """Counts samples through the model; a pass with gradients enabled counts as differentiated, once."""
    count = PassCount()

    def note(module: nn.Module, inputs: tuple[Views], output: object) -> None:
        count.forwards += len(inputs[0][0])
        count.backwards += len(inputs[0][0]) * torch.is_grad_enabled()

    handle = model.register_forward_hook(note)
    try:
        yield count
    finally:
        handle.remove()


class _Suite:
    """The state of a run: who survived, and the records so far."""

    def __init__(self, scene: Scene, views: Views, reference: CleanReference, memory: Memory | None) -> None:
        self.scene, self.model, self.views, self.reference = scene, scene.model, views, reference
        self.memory = memory
        self.flipped = torch.zeros_like(reference.clusters, dtype=torch.bool)
        self.clusters = reference.clusters.clone()
        self.points = tuple(view.clone() for view in views)
        self.records: list[AttackRecord] = []

    def noise(self, draws: int) -> tuple[float, Tensor]:
        """Mean flip rate of the stronger kind of noise, and which samples some draw moves."""
        strongest, moved = 0.0, torch.zeros_like(self.flipped)
        for kind in NOISE_KINDS:
            stream, rates = generator(self.scene.seed, "suite", "noise", kind), []
            config, budget = NoiseConfig(kind=kind), self.scene.budget
            for _ in range(draws):
                perturb = prepare_noise(config, self.model, self.views, stream, budget=budget)
                flips = self._clusters(perturb(self.model, self.views)) != self.reference.clusters
                moved |= flips
                rates.append(float(flips.double().mean()))
            strongest = max(strongest, sum(rates) / len(rates))
        return strongest, moved

    def attack(self, attack: Attack, everyone: bool) -> None:
        """Runs one attack, checks what it claims, and notes it."""
        rows = torch.arange(len(self.flipped), device=self.flipped.device)
        rows = (rows if everyone else rows[~self.flipped])[: attack.most_samples]
        skipped = ""
        try:
            attempt = self._attempt(attack, rows)
        except NotApplicable as error:
            skipped, attempt = str(error), self._nothing()
        rows, points = attempt.rows, attempt.points.views
        views = tuple(view[rows] for view in self.views)
        tested, flips = torch.zeros_like(self.flipped), torch.zeros_like(self.flipped)
        clusters = self.reference.clusters.clone()
        if len(rows):
            tested[rows] = True
            # Whatever an attack claims, its points are put into the budget before they count.
            points = project(views, points, self.scene.budget)
            clusters[rows] = self._confirmed(points, self.reference.rows(rows), attack.key)
            flips = clusters != self.reference.clusters
        new = flips & ~self.flipped
        self.clusters[new] = clusters[new]
        for whole, part in zip(self.points, points, strict=True):
            whole[new] = part[new[rows]]
        self.flipped |= new
        self.records.append(
            AttackRecord(
                key=attack.key,
                tested=tested,
                flipped=flips,
                clusters=clusters,
                new=int(new.sum()),
                forwards=attempt.forwards,
                backwards=attempt.backwards,
                seconds=attempt.seconds,
                skipped=skipped,
                details=attempt.points.details,
                curve=attempt.points.curve,
            )
        )

    def _attempt(self, attack: Attack, rows: Tensor) -> Attempt:
        """Runs an attack on some samples, unless the memory has it. Raises: NotApplicable."""
        known = None if self.memory is None else self.memory.recall(attack.key)
        if known is not None and torch.equal(known.rows, rows) and self._fits(known):
            return known
        if not len(rows):
            return self._nothing()
        began = time.perf_counter()
        stream = generator(self.scene.seed, "suite", attack.key, device=self.views[0].device)
        with counted_passes(self.model) as passes:
            views = tuple(view[rows] for view in self.views)
            points = attack.run(self.scene, views, self.reference.rows(rows), stream)
        seconds = time.perf_counter() - began
        attempt = Attempt(
            rows=rows, points=points, forwards=passes.forwards, backwards=passes.backwards, seconds=seconds
        )
        if self.memory is not None:
            self.memory.keep(attack.key, attempt)
        return attempt

    def _fits(self, known: Attempt) -> bool:
        shapes = [(len(known.rows), *view.shape[1:]) for view in self.views]
        return [tuple(view.shape) for view in known.points.views] == shapes

    def _nothing(self) -> Attempt:
        """Of an attack that meets no sample."""
        points = AttackedPoints(tuple(view[:0] for view in self.views))
        rows = torch.arange(0, device=self.flipped.device)
        return Attempt(rows=rows, points=points, forwards=0, backwards=0, seconds=0.0)

    def _confirmed(self, points: Views, reference: CleanReference, key: str) -> Tensor:
        """Clusters of the points in a pass of their own; flips within rounding of the boundary must hold in double."""
        if not all(bool(torch.isfinite(point).all()) for point in points):
            raise EvaluationError(f"attack '{key}' returned values that are not finite")
        logits = self._logits(points)
        clusters = logits.argmax(1)
        rows = torch.nonzero(clusters != reference.clusters)[:, 0]
        if len(rows):
            own = logits[rows].gather(1, reference.clusters[rows, None])[:, 0]
            nearest = (logits[rows].max(1).values - own).argsort()[: max(1, round(NEAR_BOUNDARY * len(rows)))]
            close = rows[nearest]
            with torch.no_grad():
                exact = self._double(tuple(point[close].double() for point in points)).logits.argmax(1)
            clusters[close] = torch.where(exact == reference.clusters[close], exact, clusters[close])
        return clusters

    def _clusters(self, views: Views) -> Tensor:
        return self._logits(views).argmax(1)

    def _logits(self, views: Views) -> Tensor:
        return logits_of(self.model, views, self.scene.batch_size)

    @cached_property
    def _double(self) -> nn.Module:
        return copy.deepcopy(self.model).double()
