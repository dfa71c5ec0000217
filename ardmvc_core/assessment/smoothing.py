"""Guarantees for assignments: randomised smoothing against small changes, view votes against any change of few views.

Both need a model whose output of a sample does not depend on the rest of its batch (check C12); otherwise they prove
nothing. They complement attacks at small radii and cannot replace them: 10,000 unanimous draws with σ = 0.5 certify an
L∞ ball of 0.040 on two 28 × 28 views.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ardmvc_core.attacks.attack import joined_views
from ardmvc_core.attacks.target import EvaluationError, device_of, inference_target
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.batching import in_batches
from ardmvc_core.evaluation.metrics import Integers, kappa
from ardmvc_core.seeding import generator
from ardmvc_core.types import Views

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_INSIDE = 0.999
"""Share of the certified radius that the consistency check uses: the guarantee is for the open ball."""
_REACH = 2.5
"""Length of all its steps together, in radii."""


@dataclass(frozen=True, kw_only=True)
class SmoothingConfig:
    """How an assignment is smoothed and how its certificate is estimated."""

    sigma: float | tuple[float, ...]
    """Standard deviation of the noise, in input units, one for all views or one per view; 0: no noise on that view,
    which is then assumed clean."""
    select_draws: int = 100
    """Draws that pick the cluster to certify."""
    certify_draws: int = 1000
    """Fresh draws that bound its probability; they limit the radius: 2.46 at 1,000, 3.20 at 10,000 (α = 0.001)."""
    alpha: float = 0.001
    """Probability that a certificate is wrong, for each sample by itself and not for all of them together."""
    batch_size: int = 1000
    """Noisy inputs of a pass."""

    def __post_init__(self) -> None:
        entries = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)
        if not all(0 <= sigma < math.inf for sigma in entries) or not any(sigma > 0 for sigma in entries):
            raise ValueError(f"sigma must be ≥ 0 and finite, above 0 for at least one view, got {self.sigma}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {self.alpha}")
        for name in ("select_draws", "certify_draws", "batch_size"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be ≥ 1, got {getattr(self, name)}")
        if not self.alpha ** (1 / self.certify_draws) > 0.5:
            least = math.floor(-math.log2(self.alpha)) + 1
            raise ValueError(
                f"certify_draws must be ≥ {least} for alpha {self.alpha:g}, or even a unanimous vote abstains; "
                f"got {self.certify_draws}"
            )

    def sigma_per_view(self, n_views: int) -> tuple[float, ...]:
        """σ of each of `n_views` views.

        Raises: ValueError if the config names another number of views.
        """
        sigmas = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,) * n_views
        if len(sigmas) != n_views:
            raise ValueError(f"sigma must be one number or {n_views} (one per view), got {self.sigma}")
        return tuple(float(sigma) for sigma in sigmas)


@dataclass(frozen=True, kw_only=True)
class SmoothedAssignments:
    """Smoothed assignments of N samples: each stays as it is under all δ on the noisy views with Σ_v ‖δ^v‖²/σ_v² < R².

    Radii r and R are in this scaled norm, without unit; with one σ for all views an L2 radius is σR.
    """

    clusters: IntArray
    """(N,), −1 where the model abstains."""
    radius: FloatArray
    """(N,) R > 0, 0 where the model abstains."""
    p_low: FloatArray
    """(N,) lower bound of the probability of `candidates` under noise, in [0, 1)."""
    candidates: IntArray
    """(N,) what the selection draws picked: `clusters` before abstention."""
    sigmas: tuple[float, ...]
    """σ of each view."""
    view_sizes: tuple[int, ...]
    """d_v, input values of a sample in each view."""
    n_clusters: int

    def certified(self, r: float) -> BoolArray:
        """(N,) the model does not abstain and R ≥ r.

        Raises: ValueError if r is negative.
        """
        if not r >= 0:
            raise ValueError(f"r must be ≥ 0, got {r}")
        return (self.clusters >= 0) & (self.radius >= r)

    def linf_radius(self, eps: float | tuple[float, ...]) -> BoolArray:
        """(N,) whether the ball ‖δ^v‖_∞ ≤ ε_v is certified: its corners must be within R, R ≥ √(Σ_v d_v ε_v²/σ_v²).

        Args:   eps: ≥ 0, in input units, one for all views or one per view. Nothing is certified if ε_v > 0 on a view
            without noise.
        Raises: ValueError for another number of views or a negative ε.
        """
        entries = eps if isinstance(eps, tuple) else (eps,) * len(self.sigmas)
        if len(entries) != len(self.sigmas) or not all(e >= 0 for e in entries):
            raise ValueError(f"eps must be one number ≥ 0 or {len(self.sigmas)} (one per view), got {eps}")
        square = 0.0
        for e, sigma, size in zip(entries, self.sigmas, self.view_sizes, strict=True):
            if e > 0:
                square += size * (e / sigma) ** 2 if sigma > 0 else math.inf
        return self.certified(math.sqrt(square))

    def flip_free_rate(self, r: float) -> float:
        """CF(r): share of samples certified at r, in [0, 1]; needs no labels, and is 1 for a constant partition."""
        return float(self.certified(r).mean())

    def certified_accuracy(self, labels: Integers, mapping: Integers, r: float) -> float:
        """CA(r): share of samples certified at r whose cluster is mapped to their class, in [0, 1].

        Args:   labels: (N,) classes. mapping: (K,) class of each cluster, fitted on smoothed clean assignments.
        Raises: ValueError if a shape differs.
        """
        classes, class_of = _array(labels), _array(mapping)
        if classes.shape != self.clusters.shape or class_of.shape != (self.n_clusters,):
            raise ValueError(
                f"labels must have shape {self.clusters.shape} and mapping ({self.n_clusters},), "
                f"got {classes.shape} and {class_of.shape}"
            )
        return float((self.certified(r) & (class_of[self.candidates] == classes)).mean())

    def kappa(self, r: float) -> float:
        """CF(r) corrected for what the cluster sizes alone would give: (CF − Σ p²)/(1 − Σ p²), p the shares of
        `candidates`; at most 1, and 0 for a constant partition."""
        return kappa(self.candidates, ~self.certified(r), self.n_clusters)

    @property
    def abstention_rate(self) -> float:
        """Share of samples without a certificate, in [0, 1]."""
        return float((self.clusters < 0).mean())

    @property
    def average_radius(self) -> float:
        """Mean R over all samples, with 0 for abstentions."""
        return float(self.radius.mean())


def certify_smoothing(
    model: nn.Module, views: Views, config: SmoothingConfig, *, n_clusters: int, seed: int
) -> SmoothedAssignments:
    """Certificates of the smoothed assignment G(x) = argmax_j P(model assigns x + η to j), η^v ~ N(0, σ_v² I).

    Noise is drawn in float32, a known gap in soundness (Voráček & Hein 2023) that is far below the slack of the bound.

    Args:   model: left as it was found; in inference mode while it is looked at. views: V × (N, *shape_v), N ≥ 1.
        n_clusters: K. seed: with the same batch size it gives the same draws.
    Raises: ValueError if the views are empty or of different lengths, sigma is for another number of views, or the
        model has another number of clusters. EvaluationError for logits that are not finite or a model that changes.
    Source: Cohen et al. 2019, CERTIFY, on the concatenated views in units of σ_v.
    """
    views, sigmas = _prepared(model, views, config)
    with inference_target(model) as verify:
        stream = generator(seed, "smoothing", "select", device=views[0].device)
        picked = _counts(model, views, sigmas, config.select_draws, config.batch_size, stream)
        if picked.shape[1] != n_clusters:
            raise ValueError(f"n_clusters must be the model's {picked.shape[1]}, got {n_clusters}")
        candidates = picked.argmax(1)
        # Fresh draws: those that picked the cluster favour it, and would make the bound too high.
        stream = generator(seed, "smoothing", "certify", device=views[0].device)
        counts = _counts(model, views, sigmas, config.certify_draws, config.batch_size, stream)
        verify("the smoothing")
    p_low = lower_bound(counts[np.arange(len(counts)), candidates], config.certify_draws, config.alpha)
    return SmoothedAssignments(
        clusters=np.where(p_low > 0.5, candidates, -1),
        radius=scaled_radius(p_low),
        p_low=p_low,
        candidates=candidates,
        sigmas=sigmas,
        view_sizes=tuple(math.prod(view.shape[1:]) for view in views),
        n_clusters=n_clusters,
    )


def lower_bound(successes: ArrayLike, draws: int, alpha: float) -> FloatArray:
    """One-sided lower bound of a probability that holds with probability 1 − alpha.

    Args:   successes: of any shape, each in 0..draws. draws: ≥ 1. alpha: in (0, 1).
    Returns: as many numbers in [0, 1).
    Raises: ValueError if a count leaves its range.
    Source: Clopper & Pearson 1934.
    """
    counts = np.asarray(successes)
    if draws < 1 or not ((counts >= 0) & (counts <= draws)).all():
        raise ValueError(f"successes must be in 0..draws and draws ≥ 1, got {counts.tolist()} of {draws}")
    # Imported where it is needed: SciPy takes seconds, and bad input is answered without it.
    from scipy.stats import beta

    # No success leaves the distribution without its first parameter; the bound is 0 then.
    bound = beta.ppf(alpha, np.maximum(counts, 1), draws - counts + 1)
    return np.where(counts > 0, bound, 0.0)


def scaled_radius(p_low: ArrayLike) -> FloatArray:
    """R = Φ⁻¹(p_low) in units of σ, 0 where p_low ≤ 1/2: nearer than this, the probability stays above 1/2.

    Source: Cohen et al. 2019, Theorem 1 with p_up = 1 − p_low.
    """
    from scipy.special import ndtri

    return np.asarray(ndtri(np.maximum(p_low, 0.5)), dtype=np.float64)


def check_no_attack_breaks(
    model: nn.Module,
    views: Views,
    smoothed: SmoothedAssignments,
    budget: Threat,
    config: SmoothingConfig,
    *,
    steps: int = 20,
    eot_draws: int = 20,
    samples: int = 100,
    seed: int,
) -> int:
    """Attacks certified samples inside their certified radius; any that breaks is a bug, up to alpha.

    Gradient ascent on the cross-entropy to the certified cluster, averaged over noise drawn anew in each step. A break
    is another majority over `certify_draws` fresh draws, with the certified cluster below one half at level alpha: the
    guarantee has it above one half, and a mere majority would change by chance at the edge of a tight radius.

    Args:   model, views, smoothed, config: those of `certify_smoothing`. budget: names the views that may be moved, of
            which those with noise are; ε and bounds are not read, since the guarantee knows neither. steps, eot_draws:
            ≥ 1. samples: most that are attacked, ≥ 1, drawn from the certified ones.
    Returns: number of samples that break; 0 also if none is certified.
    Raises: ValueError if smoothed is of other views or another sigma, or no view that may be moved has noise.
        EvaluationError as `certify_smoothing`.
    Source: expectation over transformation, Athalye et al. 2018; attack on the smoothed model, Salman et al. 2019.
    """
    for name, count in (("steps", steps), ("eot_draws", eot_draws), ("samples", samples)):
        if not count >= 1:
            raise ValueError(f"{name} must be ≥ 1, got {count}")
    views, sigmas = _prepared(model, views, config)
    if len(views[0]) != len(smoothed.clusters) or sigmas != smoothed.sigmas:
        raise ValueError(
            f"smoothed must be of these {len(views[0])} samples and sigma {sigmas}, "
            f"got {len(smoothed.clusters)} and {smoothed.sigmas}"
        )
    movable = [v for v, e in enumerate(budget.eps_per_view(len(views))) if e > 0 and sigmas[v] > 0]
    if not movable:
        raise ValueError(f"no attacked view has noise: attacked_views {budget.attacked_views}, sigma {sigmas}")
    device = views[0].device
    certified = torch.from_numpy(np.flatnonzero(smoothed.clusters >= 0))
    order = torch.randperm(len(certified), generator=generator(seed, "smoothing", "samples"))
    rows = certified[order[:samples]]
    if not len(rows):
        return 0
    clean = tuple(view[rows.to(device)] for view in views)
    clusters, radius = smoothed.clusters[rows.numpy()], smoothed.radius[rows.numpy()]
    attack = _Attack(model, sigmas, movable, steps, eot_draws, generator(seed, "smoothing", "attack", device=device))
    with inference_target(model) as verify:
        per_pass = max(1, config.batch_size // eot_draws)
        parts = zip(
            in_batches(clean, per_pass),
            torch.from_numpy(clusters).to(device).split(per_pass),
            torch.from_numpy(radius).to(device).split(per_pass),
            strict=True,
        )
        moved = joined_views([attack.run(*part) for part in parts])
        stream = generator(seed, "smoothing", "judge", device=device)
        counts = _counts(model, moved, sigmas, config.certify_draws, config.batch_size, stream)
        verify("the attack on the smoothed model")
    from scipy.stats import binom

    left = binom.cdf(counts[np.arange(len(rows)), clusters], config.certify_draws, 0.5) <= config.alpha
    inside = _scaled_norm(clean, moved, sigmas) < radius
    return int((inside & left & (counts.argmax(1) != clusters)).sum())


@dataclass(frozen=True)
class _Attack:
    """Ascent in coordinates u^v = δ^v/σ_v, in which the certified ball is a plain L2 ball; in float64, so that neither
    a tiny gradient nor the step that makes up for it leaves the range."""

    model: nn.Module
    sigmas: tuple[float, ...]
    movable: list[int]
    steps: int
    draws: int
    stream: torch.Generator

    def run(self, clean: Views, clusters: Tensor, radius: Tensor) -> Views:
        """V × (B, *shape_v) inside the open ball; clusters: (B,). radius: (B,)."""
        moves = [torch.zeros_like(clean[v], dtype=torch.float64) for v in self.movable]
        limit = _INSIDE * radius
        for _ in range(self.steps):
            gradient = self._gradient(clean, moves, clusters)
            # Normalised and not signed: signs lead to a corner direction, which in an L2 ball is up to √d too weak.
            steepness = _norm(gradient)
            rates = torch.where(steepness > 0, _REACH / self.steps * limit / steepness, 0.0)
            moves = [u + _per_row(rates, u) * g for u, g in zip(moves, gradient, strict=True)]
            length = _norm(moves)
            shrink = torch.where(length > limit, limit / length, 1.0)
            moves = [u * _per_row(shrink, u) for u in moves]
        return self._moved(clean, moves)

    def _gradient(self, clean: Views, moves: list[Tensor], clusters: Tensor) -> list[Tensor]:
        leaves = [u.detach().requires_grad_() for u in moves]
        with torch.enable_grad():
            repeated = tuple(view.repeat_interleave(self.draws, 0) for view in self._moved(clean, leaves))
            logits = self.model(_noisy(repeated, self.sigmas, self.stream)).logits
            if not logits.requires_grad:
                return [torch.zeros_like(u) for u in moves]
            own = clusters.repeat_interleave(self.draws)
            # In units of the mean margin: with large logits the cross-entropy has no gradient left in float32.
            loss = F.cross_entropy(logits / self._unit(logits.detach(), own), own, reduction="sum")
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [
            torch.zeros_like(u) if g is None else g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            for u, g in zip(moves, found, strict=True)
        ]

    def _unit(self, logits: Tensor, own: Tensor) -> Tensor:
        """(B · draws, 1): mean size of the margin over the draws of each sample; 1 where it is 0."""
        others = logits.scatter(1, own[:, None], -torch.inf).max(1).values
        margins = (logits.gather(1, own[:, None])[:, 0] - others).abs().view(-1, self.draws).mean(1)
        usable = torch.where((margins > 0) & torch.isfinite(margins), margins, torch.ones_like(margins))
        return usable.repeat_interleave(self.draws)[:, None]

    def _moved(self, clean: Views, moves: list[Tensor]) -> Views:
        moved = list(clean)
        for v, u in zip(self.movable, moves, strict=True):
            moved[v] = clean[v] + (self.sigmas[v] * u).to(clean[v].dtype)
        return tuple(moved)


def _prepared(model: nn.Module, views: Views, config: SmoothingConfig) -> tuple[Views, tuple[float, ...]]:
    """Views on the model's device, and σ of each."""
    views = on_device(model, views)
    return views, config.sigma_per_view(len(views))


def on_device(model: nn.Module, views: Views) -> Views:
    lengths = [len(view) for view in views]
    if not lengths or len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(f"views must hold the same samples, at least one; got lengths {lengths}")
    device = device_of(model, views)
    return tuple(view.detach().to(device) for view in views)


@torch.no_grad()
def _counts(
    model: nn.Module, views: Views, sigmas: tuple[float, ...], draws: int, batch_size: int, stream: torch.Generator
) -> IntArray:
    """(N, K) how many noisy draws of each sample are assigned to each cluster; rows sum to `draws`."""
    size = len(views[0])
    counts = torch.zeros(0, dtype=torch.int64, device=views[0].device)
    for start in range(0, size * draws, batch_size):
        stop = min(start + batch_size, size * draws)
        rows = torch.arange(start, stop, device=views[0].device) // draws
        logits = model(_noisy(tuple(view[rows] for view in views), sigmas, stream)).logits
        if not bool(torch.isfinite(logits).all()):
            raise EvaluationError(f"the model gives logits that are not finite for some of {len(logits)} noisy inputs")
        if start == 0:
            counts = counts.new_zeros(size, logits.shape[1])
        counts.index_put_((rows, logits.argmax(1)), torch.ones_like(rows), accumulate=True)
    return counts.cpu().numpy()


def _noisy(views: Views, sigmas: tuple[float, ...], stream: torch.Generator) -> Views:
    """Views with Gaussian noise, not clipped to the bounds of valid inputs: the theorem is about x + η as a Gaussian
    around x. A model that wants valid inputs must clamp them itself; then the clamp is part of what is certified."""
    return tuple(
        x + sigma * torch.randn(x.shape, generator=stream, device=x.device, dtype=x.dtype) if sigma > 0 else x
        for x, sigma in zip(views, sigmas, strict=True)
    )


def _scaled_norm(clean: Views, moved: Views, sigmas: tuple[float, ...]) -> FloatArray:
    """(B,) √(Σ_v ‖δ^v‖²/σ_v²) of what was really added, after rounding; views without noise are not moved."""
    parts = [
        (after.double() - before.double()) / sigma
        for before, after, sigma in zip(clean, moved, sigmas, strict=True)
        if sigma > 0
    ]
    return _norm(parts).cpu().numpy()


def _norm(parts: list[Tensor]) -> Tensor:
    """(B,) float64, L2 norm over all parts together, each (B, *shape_v)."""
    return torch.stack([part.flatten(1).double().square().sum(1) for part in parts]).sum(0).sqrt()


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1))


def _array(values: Integers) -> NDArray[np.int64]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
