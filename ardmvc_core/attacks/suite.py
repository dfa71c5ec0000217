"""The suite: attacks of a tier run one after another on the samples that survived so far, and what each of them found.

The worst case per sample over several attacks, as AutoAttack has it for classifiers (Croce & Hein 2020). The reference
is the model's own clean assignment, so no labels are needed: a sample that stays where it was survives.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from ardmvc_core.attacks.attack import choose_views
from ardmvc_core.attacks.budget import AttackBudget, project
from ardmvc_core.attacks.generators.gan import FittedGAN, fit_gan, official_gan
from ardmvc_core.attacks.generators.margin_generator import MarginGenerator, MarginGeneratorConfig, fit_margin_generator
from ardmvc_core.attacks.noise import NOISE_KINDS, NoiseConfig, prepare_noise
from ardmvc_core.attacks.objectives.clean_reference import CleanReference, clean_reference, logits_of
from ardmvc_core.attacks.objectives.per_sample import ce, features
from ardmvc_core.attacks.searches.apgd import Ascent, apgd
from ardmvc_core.attacks.searches.ray_search import ray_search
from ardmvc_core.attacks.searches.soft_rectifiers import soft_rectifiers
from ardmvc_core.attacks.searches.square import square
from ardmvc_core.attacks.target import EvaluationError, inference_target
from ardmvc_core.attacks.tiers import (
    Ascend,
    AscendTogether,
    Generate,
    Query,
    Step,
    Tier,
    Transfer,
    noise_draws,
    passes_per_sample,
    plan,
)
from ardmvc_core.batching import in_full_batches
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


def run_suite(
    model: nn.Module,
    views: Views,
    budget: AttackBudget,
    *,
    tier: Tier,
    seed: int = 7,
    batch_size: int = 256,
    attacker_views: Views | None = None,
    surrogates: Sequence[nn.Module] = (),
    everyone: bool = False,
    steps: Sequence[Step] | None = None,
    progress: Progress | None = None,
) -> SuiteResult:
    """Runs a tier on a model in inference mode.

    Args: model: left as it was found. views: V × (N, *shape_v), clean, N ≥ 1, on the model's device. attacker_views:
        V × (M, *shape_v), other samples on which generators are fitted; None: these are skipped, and say so.
        surrogates: models for the transfer attack, which is skipped without any. everyone: runs each attack on every
        sample and not only on survivors, for tables that compare attacks; costs more, and the union is no smaller.
        steps: attacks in place of the tier's, for studies of single attacks.
    Returns: a flip counts if a pass of its own over the projected point confirms it, near the boundary in double too.
    Raises: EvaluationError if the target changes, or an attack returns values that are not finite; ValueError for an
        unknown tier or views that the budget does not fit.
    """
    budget.eps_per_view(len(views))
    with inference_target(model) as verify:
        reference = clean_reference(model, views, batch_size)
        head = getattr(model, "head", None)
        if steps is None:
            steps = plan(tier, reference.logits.shape[1], centroid_head=isinstance(head, KMeansHead))
        run = _Suite(model, views, reference, budget, seed, batch_size, attacker_views, tuple(surrogates))
        noise_flip, noise_flipped = run.noise(noise_draws(tier))
        verify("the noise")
        total, behind = sum(passes_per_sample(step) for step in steps), 0
        for step in steps:
            if progress is not None:
                progress(step.key, behind / total)
            run.attack(step, everyone)
            verify(f"attack '{step.key}'")
            behind += passes_per_sample(step)
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


@dataclass
class _Found:
    """What an attack says: points for the samples that it was run on, before anything is checked."""

    views: Views
    details: dict[str, float] = field(default_factory=dict)
    curve: tuple[float, ...] = ()


class _Skip(Exception):
    """An attack that does not apply here; the message says why."""


class _Suite:
    """The state of a run: who survived, and the records so far."""

    def __init__(
        self,
        model: nn.Module,
        views: Views,
        reference: CleanReference,
        budget: AttackBudget,
        seed: int,
        batch_size: int,
        attacker_views: Views | None,
        surrogates: tuple[nn.Module, ...],
    ) -> None:
        self.model, self.views, self.reference, self.budget = model, views, reference, budget
        self.seed, self.batch_size = seed, batch_size
        self.attacker_views, self.surrogates = attacker_views, surrogates
        self.flipped = torch.zeros_like(reference.clusters, dtype=torch.bool)
        self.clusters = reference.clusters.clone()
        self.points = tuple(view.clone() for view in views)
        self.records: list[AttackRecord] = []

    def noise(self, draws: int) -> tuple[float, Tensor]:
        """Mean flip rate of the stronger kind of noise, and which samples some draw moves."""
        strongest, moved = 0.0, torch.zeros_like(self.flipped)
        for kind in NOISE_KINDS:
            stream, rates = generator(self.seed, "suite", "noise", kind), []
            for _ in range(draws):
                perturb = prepare_noise(NoiseConfig(kind=kind), self.model, self.views, stream, budget=self.budget)
                flips = self._clusters(perturb(self.model, self.views)) != self.reference.clusters
                moved |= flips
                rates.append(float(flips.double().mean()))
            strongest = max(strongest, sum(rates) / len(rates))
        return strongest, moved

    def attack(self, step: Step, everyone: bool) -> None:
        """Runs one attack, checks what it found, and notes it."""
        rows = torch.arange(len(self.flipped), device=self.flipped.device)
        rows = rows if everyone else rows[~self.flipped]
        if isinstance(step, Query) and step.most_samples is not None:
            rows = rows[: step.most_samples]
        began = time.perf_counter()
        skipped, found = "", _Found(tuple(view[rows] for view in self.views))
        with counted_passes(self.model) as passes:
            if len(rows):
                try:
                    found = self._run(step, tuple(view[rows] for view in self.views), self.reference.rows(rows))
                except _Skip as error:
                    skipped, rows = str(error), rows[:0]
                    found = _Found(tuple(view[rows] for view in self.views))
        seconds = time.perf_counter() - began
        tested, flips = torch.zeros_like(self.flipped), torch.zeros_like(self.flipped)
        clusters = self.reference.clusters.clone()
        if len(rows):
            tested[rows] = True
            # Whatever an attack claims, its points are put into the budget before they count.
            found.views = project(tuple(view[rows] for view in self.views), found.views, self.budget)
            clusters[rows] = self._confirmed(found.views, self.reference.rows(rows), step.key)
            flips = clusters != self.reference.clusters
        new = flips & ~self.flipped
        self.clusters[new] = clusters[new]
        for whole, part in zip(self.points, found.views, strict=True):
            whole[new] = part[new[rows]]
        self.flipped |= new
        self.records.append(
            AttackRecord(
                key=step.key,
                tested=tested,
                flipped=flips,
                clusters=clusters,
                new=int(new.sum()),
                forwards=passes.forwards,
                backwards=passes.backwards,
                seconds=seconds,
                skipped=skipped,
                details=found.details,
                curve=found.curve,
            )
        )

    def _run(self, step: Step, views: Views, reference: CleanReference) -> _Found:
        stream = generator(self.seed, "suite", step.key, device=views[0].device)
        match step:
            case Ascend():
                return self._ascend(step, views, reference, stream)
            case AscendTogether():
                return self._ascend_together(step, views, reference, stream)
            case Query():
                search = square if step.kind == "square" else ray_search
                result = search(
                    self.model,
                    views,
                    reference,
                    self.budget,
                    queries=step.queries,
                    generator=stream,
                    batch_size=self.batch_size,
                )
                return _Found(result.views, {"mean_queries": float(result.queries.double().mean())})
            case Transfer():
                return self._transfer(step, views, reference, stream)
            case Generate():
                return self._generate(step, views, reference)

    def _ascend(self, step: Ascend, views: Views, reference: CleanReference, stream: torch.Generator) -> _Found:
        best: Ascent | None = None
        flips_after = []
        for _ in range(step.restarts):
            with soft_rectifiers(self.model) if step.soft else nullcontext():
                run = apgd(
                    self.model,
                    views,
                    reference,
                    step.objective,
                    self.budget,
                    steps=step.steps,
                    generator=stream,
                    stop_on_flip=True,
                    batch_size=self.batch_size,
                )
            if best is None:
                best, points, flipped = run, run.views, run.flipped
            else:
                points, flipped = choose_views(flipped, points, run.views), flipped | run.flipped
            flips_after.append(float(flipped.double().mean()))
        assert best is not None
        attacked = torch.tensor([e > 0 for e in self.budget.eps_per_view(len(views))], device=flipped.device)
        zero = best.zero_gradient[attacked].double().mean(1)
        survivors = ~best.flipped
        details = {
            "zero_gradient": float(best.zero_gradient[attacked].any(0).double().mean()),
            "zero_gradient_worst_view": float(zero.max()),
            # A sample that left at its first point had no time to rise.
            "never_rose": float((survivors & (best.best_loss <= best.start_loss)).double().mean()),
            "new_in_restarts": flips_after[-1] - flips_after[0],
        }
        return _Found(points, details, tuple(best.curve.tolist()))

    def _ascend_together(
        self, step: AscendTogether, views: Views, reference: CleanReference, stream: torch.Generator
    ) -> _Found:
        if len(views[0]) < 2:
            raise _Skip("a single survivor has no batch")
        widths = {latent.shape[1] for latent in self.reference.view_latents}
        if step.key.startswith(("batch_contrast", "batch_mix")) and (len(views) < 2 or len(widths) > 1):
            raise _Skip("the contrastive loss needs at least two view latents of one width")
        parts, found, at = [], [], 0
        for batch in in_full_batches(views, step.batch_size):
            rows = torch.arange(at, at + len(batch[0]), device=batch[0].device)
            at += len(rows)
            run = apgd(
                self.model,
                batch,
                reference.rows(rows),
                step.objective,
                self.budget,
                steps=step.steps,
                generator=stream,
                batch_size=len(rows),
            )
            parts.append(run)
            found.append(run.views)
        curve = torch.stack([run.curve for run in parts]).mean(0)
        return _Found(tuple(torch.cat(view) for view in zip(*found, strict=True)), {}, tuple(curve.tolist()))

    def _transfer(self, step: Transfer, views: Views, reference: CleanReference, stream: torch.Generator) -> _Found:
        if not self.surrogates:
            raise _Skip("no surrogate models were given")
        points, flipped = views, torch.zeros_like(reference.clusters, dtype=torch.bool)
        for surrogate in self.surrogates[: step.surrogates]:
            with inference_target(surrogate):
                own = clean_reference(surrogate, views, self.batch_size)
                for objective in (ce, features()):
                    run = apgd(
                        surrogate,
                        views,
                        own,
                        objective,
                        self.budget,
                        steps=step.steps,
                        generator=stream,
                        batch_size=self.batch_size,
                    )
                    points = choose_views(flipped, points, run.views)
                    flipped = self._clusters(points) != reference.clusters
        return _Found(points, {"surrogates": float(min(step.surrogates, len(self.surrogates)))})

    def _generate(self, step: Generate, views: Views, reference: CleanReference) -> _Found:
        if self.attacker_views is None:
            raise _Skip("no attacker views were given to fit it on")
        points, flipped, saturation = views, torch.zeros_like(reference.clusters, dtype=torch.bool), 0.0
        for number in range(step.seeds):
            stream = generator(self.seed, "suite", step.key, number)
            fitted: FittedGAN | MarginGenerator
            if step.recipe == "official":
                fitted = fit_gan(official_gan(), self.budget, self.model, self.attacker_views, stream)
            else:
                config = MarginGeneratorConfig()
                fitted = fit_margin_generator(config, self.budget, self.model, self.attacker_views, stream)
            points = choose_views(flipped, points, fitted(self.model, views))
            flipped = self._clusters(points) != reference.clusters
            saturation = max(saturation, fitted.saturation(views))
        return _Found(points, {"saturation": saturation})

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
        return logits_of(self.model, views, self.batch_size)

    @cached_property
    def _double(self) -> nn.Module:
        return copy.deepcopy(self.model).double()
