"""The kinds of attacks that tiers are made of: ascents on one model, searches without gradients, points made on other
models, and fitted generators."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from ardmvc_core.attacks.attack import AttackedPoints, NotApplicable, Scene, choose_views, joined_views
from ardmvc_core.attacks.generators.gan import FittedGAN, fit_gan, official_gan
from ardmvc_core.attacks.generators.margin_generator import MarginGenerator, MarginGeneratorConfig, fit_margin_generator
from ardmvc_core.attacks.objectives.clean_reference import CleanReference, clean_reference, logits_of
from ardmvc_core.attacks.objectives.per_batch import LATENT_PAIRS
from ardmvc_core.attacks.objectives.per_sample import SampleObjective, ce, features
from ardmvc_core.attacks.searches.apgd import Ascent, apgd
from ardmvc_core.attacks.searches.query_result import QueryResult
from ardmvc_core.attacks.searches.soft_rectifiers import soft_rectifiers
from ardmvc_core.attacks.target import attacked_views, inference_target
from ardmvc_core.batching import in_full_batches
from ardmvc_core.seeding import generator
from ardmvc_core.types import Perturb, Views

OFFICIAL_GAN = partial(fit_gan, official_gan())
TANH_MARGIN = partial(fit_margin_generator, MarginGeneratorConfig())


@dataclass(frozen=True, kw_only=True)
class Ascend:
    """APGD on one objective per sample, from `restarts` random starts."""

    key: str
    objective: SampleObjective
    steps: int
    restarts: int = 1
    soft: bool = False
    """Whether gradients see past rectifiers that are off (`searches.soft_rectifiers`)."""
    most_samples: int | None = None

    @property
    def forwards(self) -> int:
        return self.restarts * (self.steps + 1)

    @property
    def backwards(self) -> int:
        return self.restarts * self.steps

    def run(self, scene: Scene, views: Views, clean: CleanReference, stream: torch.Generator) -> AttackedPoints:
        first: Ascent | None = None
        flips_after = []
        for _ in range(self.restarts):
            with soft_rectifiers(scene.model) if self.soft else nullcontext():
                run = apgd(
                    scene.model,
                    views,
                    clean,
                    self.objective,
                    scene.budget,
                    steps=self.steps,
                    generator=stream,
                    stop_on_flip=True,
                    batch_size=scene.batch_size,
                )
            if first is None:
                first, points, flipped = run, run.views, run.flipped
            else:
                points, flipped = choose_views(flipped, points, run.views), flipped | run.flipped
            flips_after.append(float(flipped.double().mean()))
        assert first is not None
        attacked = torch.tensor([e > 0 for e in scene.budget.eps_per_view(len(views))], device=flipped.device)
        zero = first.zero_gradient[attacked].double().mean(1)
        survivors = ~first.flipped
        details = {
            "zero_gradient": float(first.zero_gradient[attacked].any(0).double().mean()),
            "zero_gradient_worst_view": float(zero.max()),
            # A sample that left at its first point had no time to rise.
            "never_rose": float((survivors & (first.best_loss <= first.start_loss)).double().mean()),
            "new_in_restarts": flips_after[-1] - flips_after[0],
        }
        return AttackedPoints(points, details, tuple(first.curve.tolist()))


@dataclass(frozen=True, kw_only=True)
class AscendTogether:
    """APGD on one objective per batch of `batch_size` samples."""

    key: str
    objective: SampleObjective
    steps: int
    batch_size: int = 100
    most_samples: int | None = None

    @property
    def forwards(self) -> int:
        return self.steps + 1

    @property
    def backwards(self) -> int:
        return self.steps

    def run(self, scene: Scene, views: Views, clean: CleanReference, stream: torch.Generator) -> AttackedPoints:
        if len(views[0]) < 2:
            raise NotApplicable("a single survivor has no batch")
        widths = {latent.shape[1] for latent in clean.view_latents}
        if self.objective in LATENT_PAIRS and (len(views) < 2 or len(widths) > 1):
            raise NotApplicable("the contrastive loss needs at least two view latents of one width")
        runs, at = [], 0
        for batch in in_full_batches(views, self.batch_size):
            rows = torch.arange(at, at + len(batch[0]), device=batch[0].device)
            at += len(rows)
            runs.append(
                apgd(
                    scene.model,
                    batch,
                    clean.rows(rows),
                    self.objective,
                    scene.budget,
                    steps=self.steps,
                    generator=stream,
                    batch_size=len(rows),
                )
            )
        curve = torch.stack([run.curve for run in runs]).mean(0)
        return AttackedPoints(joined_views([run.views for run in runs]), {}, tuple(curve.tolist()))


@dataclass(frozen=True, kw_only=True)
class Query:
    """A search without gradients."""

    key: str
    search: Callable[..., QueryResult]
    """search(model, views, clean, budget, *, queries, generator, batch_size), as `square` and `ray_search`."""
    queries: int
    patience: int | None = None
    """Queries between two looks at whether it is worth going on with a sample, handed over as `patience`; None: it
    always goes on."""
    most_samples: int | None = None

    @property
    def forwards(self) -> int:
        return self.queries

    @property
    def backwards(self) -> int:
        return 0

    def run(self, scene: Scene, views: Views, clean: CleanReference, stream: torch.Generator) -> AttackedPoints:
        _only_linf(scene)
        result = self.search(
            scene.model,
            views,
            clean,
            scene.budget,
            queries=self.queries,
            generator=stream,
            batch_size=scene.batch_size,
            **({} if self.patience is None else {"patience": self.patience}),
        )
        return AttackedPoints(result.views, {"mean_queries": float(result.queries.double().mean())})


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Points made on other models, tried on this one."""

    key: str
    surrogates: int
    steps: int = 100
    most_samples: int | None = None

    @property
    def forwards(self) -> int:
        return 2 * self.surrogates

    @property
    def backwards(self) -> int:
        return 0

    def run(self, scene: Scene, views: Views, clean: CleanReference, stream: torch.Generator) -> AttackedPoints:
        if not scene.surrogates:
            raise NotApplicable("no surrogate models were given")
        surrogates = scene.surrogates[: self.surrogates]
        points, flipped = views, torch.zeros_like(clean.clusters, dtype=torch.bool)
        for surrogate in surrogates:
            with inference_target(surrogate):
                own = clean_reference(surrogate, views, scene.batch_size)
                for objective in (ce, features()):
                    run = apgd(
                        surrogate,
                        views,
                        own,
                        objective,
                        scene.budget,
                        steps=self.steps,
                        generator=stream,
                        batch_size=scene.batch_size,
                    )
                    points = choose_views(flipped, points, run.views)
                    flipped = _flips(scene, points, clean)
        return AttackedPoints(points, {"surrogates": float(len(surrogates))})


@dataclass(frozen=True, kw_only=True)
class Generate:
    """A network that makes perturbations, fitted on the attacker's data."""

    key: str
    fit: Callable[..., FittedGAN | MarginGenerator]
    """fit(budget, model, attacker_views, generator) → a Perturb that knows its saturation."""
    seeds: int = 1
    most_samples: int | None = None

    @property
    def forwards(self) -> int:
        return self.seeds

    @property
    def backwards(self) -> int:
        return 0

    def run(self, scene: Scene, views: Views, clean: CleanReference, stream: torch.Generator) -> AttackedPoints:
        if scene.attacker_views is None:
            raise NotApplicable("no attacker views were given to fit it on")
        _only_linf(scene)
        points, flipped, saturation = views, torch.zeros_like(clean.clusters, dtype=torch.bool), 0.0
        for number in range(self.seeds):
            own = generator(scene.seed, "suite", self.key, number)
            fitted = self.fit(scene.budget, scene.model, scene.attacker_views, own)
            points = choose_views(flipped, points, fitted(scene.model, views))
            flipped = _flips(scene, points, clean)
            saturation = max(saturation, fitted.saturation(views))
        return AttackedPoints(points, {"saturation": saturation})


@dataclass(frozen=True, kw_only=True)
class Given:
    """A perturbation that is ready, such as a generator that a study fits."""

    key: str
    perturb: Perturb
    most_samples: int | None = None
    forwards: int = 1
    backwards: int = 0

    def run(self, scene: Scene, views: Views, clean: CleanReference, stream: torch.Generator) -> AttackedPoints:
        return AttackedPoints(attacked_views(self.key, self.perturb, scene.model, views, scene.budget))


def _only_linf(scene: Scene) -> None:
    """Raises: NotApplicable for another ball than that of L∞, whose corners the attack counts on."""
    if scene.budget.norm != "linf":
        raise NotApplicable("it attacks in L∞ only")


def _flips(scene: Scene, points: Views, clean: CleanReference) -> torch.Tensor:
    return logits_of(scene.model, points, scene.batch_size).argmax(1) != clean.clusters
