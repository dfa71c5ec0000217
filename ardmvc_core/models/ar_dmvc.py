"""AR-DMVC and AR-DMVC-AM: CoMVC's network, trained on clean views and on views attacked during training.

Source: "Adversarially Robust Deep Multi-View Clustering", ICML 2024.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ardmvc_core.attacks.searches.pgd import frozen, frozen_statistics, pgd, random_start
from ardmvc_core.attacks.threat import Norm, Threat, l2_threat, sample_distances
from ardmvc_core.losses.contrastive import PairChoice, mean_contrast
from ardmvc_core.losses.mitigator import KLDirection, mitigator_kl
from ardmvc_core.models import simvc
from ardmvc_core.models.comvc import ContrastConfig, aligned_clustering_terms
from ardmvc_core.models.simvc import DDCOutput, FusedClustering, adam, calibrate, looks
from ardmvc_core.ranges import ExtraEpochs, Positive, PositiveShare, StepRatio, Steps, Weight
from ardmvc_core.types import Method, Stage, StageObjective, StepContext, Views, ViewShapes

InnerObjective = Literal["contrastive", "assignment", "both"]


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(ContrastConfig):
    """The inner maximisation and its weight, shared by AR-DMVC and AR-DMVC-AM."""

    adversarial_weight: Weight = 1.0
    """λ ≥ 0: weight of CoMVC's loss on the attacked views."""
    train_norm: Norm = "linf"
    """What `train_eps` limits: `linf` the largest change of a value, `l2` the Euclidean length of a change."""
    train_eps: PositiveShare | tuple[PositiveShare, ...] = 0.2
    """Radius of the attack during training, in (0, 1], for all views or one per view. `linf`: in units of the input
    range; `l2`: a share of the median distance between the training samples of the view."""
    train_steps: Steps = 10
    """Gradient steps of the attack during training, ≥ 1."""
    train_step_ratio: StepRatio = 0.1
    """Length of a step of that attack over the radius of the view, > 0."""
    train_eps_warmup: ExtraEpochs = 0
    """Epochs over which the radius, of each view, grows linearly up to `train_eps`, ≥ 0; 0: it is there from the start
    (paper)."""
    inner_objective: InnerObjective = "contrastive"
    """What the attack raises: the contrastive loss (paper), the cross-entropy to the clean assignments, or both."""
    inner_pairs: PairChoice = "all"
    """View pairs of the contrastive objective; the published code takes the `first` one only."""
    inner_updates_statistics: bool = False
    """Whether the attack's forward passes update BatchNorm's running statistics (the published code: yes)."""
    mute_dead_units: bool = True
    """As for every such network, here on by default. The official protocol always leaves it out."""

    def threat(self, distances: Sequence[float] | None = None) -> Threat:
        """Threat model of the training attack.

        Args: distances: V medians of `sample_distances` of the training views; only L2 needs them.
        """
        if self.train_norm == "linf":
            return Threat(eps=self.train_eps)
        assert distances is not None
        return l2_threat(self.train_eps, distances)

    def at_epoch(self, epoch: int) -> Self:
        """The config with the radii of one epoch, counted from 0: all of them grow by the same factor, and steps, which
        are shares of them, grow along."""
        if epoch + 1 >= self.train_eps_warmup:
            return self

        def grown(eps: float) -> float:
            return eps * (epoch + 1) / self.train_eps_warmup

        eps = self.train_eps
        return replace(self, train_eps=tuple(map(grown, eps)) if isinstance(eps, tuple) else grown(eps))


@dataclass(frozen=True, kw_only=True)
class ARDMVCConfig(AdversarialConfig):
    """AR-DMVC."""

    name: Literal["ar_dmvc"] = "ar_dmvc"
    """Which model this configures."""


@dataclass(frozen=True, kw_only=True)
class ARDMVCAMConfig(AdversarialConfig):
    """AR-DMVC-AM: AR-DMVC and the attack mitigator."""

    name: Literal["ar_dmvc_am"] = "ar_dmvc_am"
    """Which model this configures."""
    mitigator_weight: Weight = 0.1
    """γ ≥ 0: weight of the divergence between attacked and clean assignments."""
    kl_direction: KLDirection = "slides"
    """`slides`: KL(attacked ‖ clean), as the paper's bound has it; `code`: KL(clean ‖ attacked), as published."""
    kl_smoothing: Positive = 1e-4
    """Added to every assignment before the logarithm, not renormalised; > 0."""
    kl_stop_gradient: bool = False
    """Whether the clean assignments are a constant in the divergence (the published code: no)."""


def build(config: AdversarialConfig, view_shapes: ViewShapes, n_clusters: int) -> FusedClustering:
    """CoMVC's network for these views; in L2 with a buffer `sample_distances`, (V,), which training fills.

    Raises: ValueError as `simvc.build`, or if `train_eps` names another number of views.
    """
    n_views = len(view_shapes)
    if isinstance(config.train_eps, tuple) and len(config.train_eps) != n_views:
        raise ValueError(f"train_eps must be one number or one per view ({n_views}), got {config.train_eps}")
    model = simvc.build(config, view_shapes, n_clusters)
    if config.train_norm == "l2":
        model.register_buffer("sample_distances", torch.ones(n_views))
    return model


def _measure_distances(model: nn.Module, views: Views, seed: int) -> None:
    """Fills `sample_distances` with those of the training views."""
    model.get_buffer("sample_distances").copy_(torch.tensor(sample_distances(views)))


def _threat(config: AdversarialConfig, model: FusedClustering) -> Threat:
    return config.threat(model.get_buffer("sample_distances").tolist() if config.train_norm == "l2" else None)


def inner_objective(
    config: AdversarialConfig, model: FusedClustering, clean_assignments: Tensor | None
) -> Callable[[Views], Tensor]:
    """What the training attack raises, as a function of the views; runs only the parts of the network it needs.

    Args:   clean_assignments: (B, K), constant; needed unless the objective is `contrastive`.
    Returns: function from views to a scalar in nats (per anchor, per sample, or the sum of both).
    """
    reads = config.inner_objective

    def value(views: Views) -> Tensor:
        latents, logits = _needed_parts(config, model, views)
        parts = []
        if reads != "assignment":
            parts.append(mean_contrast(latents, config.temperature, config.inner_pairs))
        if reads != "contrastive":
            assert logits is not None
            assert clean_assignments is not None
            parts.append(cross_entropy(logits, clean_assignments))
        return sum(parts[1:], parts[0])

    return value


def _needed_parts(
    config: AdversarialConfig, model: FusedClustering, views: Views
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Latents, and the logits where something needs them."""
    if config.inner_updates_statistics or config.inner_objective != "contrastive":
        # With the published switch the whole network runs even for the contrastive loss: all its statistics move.
        output = model(views)
        return output.view_latents, output.logits
    needed = 2 if config.inner_pairs == "first" else len(views)
    return tuple(encoder(view) for encoder, view in zip(model.encoders[:needed], views, strict=False)), None


def attack_in_training(
    config: AdversarialConfig,
    model: FusedClustering,
    views: Views,
    start: Views,
    clean_assignments: Tensor | None = None,
) -> Views:
    """The inner maximisation: views inside the training budget that raise the inner objective.

    Args:   views: V × (B, *shape) in [0, 1], clean. start: V × (B, *shape), where the ascent begins.
            clean_assignments: (B, K), needed unless the objective is `contrastive`.
    Returns: V × (B, *shape), detached. Parameters and their gradients are left alone, and so are BatchNorm's running
        statistics unless `inner_updates_statistics`.
    """
    with frozen(model), _statistics(model, updated=config.inner_updates_statistics):
        return pgd(
            inner_objective(config, model, clean_assignments),
            views,
            _threat(config, model),
            step_ratio=config.train_step_ratio,
            steps=config.train_steps,
            start=start,
        )


@contextmanager
def _statistics(model: nn.Module, *, updated: bool) -> Iterator[None]:
    if updated:
        yield
    else:
        with frozen_statistics(model):
            yield


def adversarial_terms(
    config: ARDMVCConfig | ARDMVCAMConfig, model: FusedClustering, clean: DDCOutput, attacked: DDCOutput
) -> dict[str, Tensor]:
    """CoMVC's terms on the clean output, `attacked_*` times λ on the attacked one, and `mitigator` times γ.

    A part whose weight is 0 is left out.
    """
    weights = model.fusion.weights
    if config.adversarial_weight > 0:
        both = aligned_clustering_terms(config, _stacked(clean, attacked), weights)
        pairs = {name: values.unbind() for name, values in both.items()}
        terms = {name: of_clean for name, (of_clean, _) in pairs.items()}
        terms |= {f"attacked_{name}": config.adversarial_weight * moved for name, (_, moved) in pairs.items()}
    else:
        terms = aligned_clustering_terms(config, clean, weights)
    if isinstance(config, ARDMVCAMConfig) and config.mitigator_weight > 0:
        terms["mitigator"] = config.mitigator_weight * mitigator_kl(
            clean.assignments,
            attacked.assignments,
            direction=config.kl_direction,
            smoothing=config.kl_smoothing,
            stop_gradient=config.kl_stop_gradient,
        )
    return terms


def _stacked(first: DDCOutput, second: DDCOutput) -> DDCOutput:
    """Two outputs as one of shape (2, …): a loss of both costs little more than that of one."""
    return DDCOutput(
        view_latents=tuple(map(torch.stack, zip(first.view_latents, second.view_latents, strict=True))),
        consensus=torch.stack([first.consensus, second.consensus]),
        logits=torch.stack([first.logits, second.logits]),
        assignments=torch.stack([first.assignments, second.assignments]),
        fused=torch.stack([first.fused, second.fused]),
    )


def _is_attacked(config: ARDMVCConfig | ARDMVCAMConfig) -> bool:
    return config.adversarial_weight > 0 or (isinstance(config, ARDMVCAMConfig) and config.mitigator_weight > 0)


def stages(config: ARDMVCConfig | ARDMVCAMConfig, epochs: int) -> tuple[Stage, ...]:
    """One stage of `epochs` epochs. With λ = γ = 0 nothing is attacked: exactly CoMVC's training."""

    def terms(model: nn.Module, views: Views, step: StepContext) -> dict[str, Tensor]:
        assert isinstance(model, FusedClustering)
        if not _is_attacked(config):
            return aligned_clustering_terms(config, model(views), model.fusion.weights)
        now = config.at_epoch(step.epoch)
        start = random_start(views, _threat(now, model), step.generator)
        if config.inner_objective == "contrastive":
            # Published order: attack, clean pass, attacked pass (it decides how the running statistics end up).
            moved = attack_in_training(now, model, views, start)
            clean = model(views)
        else:
            clean = model(views)
            moved = attack_in_training(now, model, views, start, clean.assignments.detach())
        return adversarial_terms(config, model, clean, model(moved))

    objective = StageObjective(
        terms=terms,
        optimizer=lambda model: adam(model, config.learning_rate),
        passes=config.train_steps + 2 if _is_attacked(config) else 1,
    )
    prepare = _measure_distances if config.train_norm == "l2" and _is_attacked(config) else None
    return (Stage(name="train", epochs=epochs, objectives=(objective,), prepare=prepare),)


AR_DMVC = Method(
    config=ARDMVCConfig,
    build=build,
    stages=stages,
    calibrate=calibrate,
    looks=looks,
    defence=("adversarial_weight",),
)
AR_DMVC_AM = Method(
    config=ARDMVCAMConfig,
    build=build,
    stages=stages,
    calibrate=calibrate,
    looks=looks,
    defence=("adversarial_weight", "mitigator_weight"),
)
