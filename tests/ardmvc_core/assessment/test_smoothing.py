import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_models import LinearModel, planted
from scipy.stats import binom, norm
from torch import Tensor, nn

from ardmvc_core.assessment.smoothing import (
    SmoothedAssignments,
    SmoothingConfig,
    certify_smoothing,
    check_no_attack_breaks,
    lower_bound,
    scaled_radius,
)
from ardmvc_core.assessment.view_votes import view_votes
from ardmvc_core.attacks.target import EvaluationError
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.types import ModelOutput, Views

BUDGET = Threat(eps=0.1)


class SumModel(nn.Module):
    """Logits are the sum of the views, so that with one-hot views and pool means of 0 each view votes for its 1."""

    def forward(self, views: Views) -> ModelOutput:
        logits = torch.stack(views).sum(0)
        return ModelOutput(view_latents=views, consensus=logits, logits=logits, assignments=logits.softmax(1))


class ConstantModel(SumModel):
    def forward(self, views: Views) -> ModelOutput:
        logits = torch.tensor([0.0, 1.0, 0.0]).expand(len(views[0]), 3)
        return ModelOutput(view_latents=views, consensus=logits, logits=logits, assignments=logits.softmax(1))


def exact_radius(model: LinearModel, views: Views, sigmas: tuple[float, ...]) -> np.ndarray:
    """(N,) of two linear clusters: the margin is Gaussian under noise, and smoothing leaves its sign."""
    widths = torch.cat([torch.full((view.shape[1],), sigma) for view, sigma in zip(views, sigmas, strict=True)])
    spread = ((model.weight[0] - model.weight[1]) * widths).norm()
    logits = model(views).logits
    return ((logits[:, 0] - logits[:, 1]).abs() / spread).detach().double().numpy()


def hand_made(**changes: object) -> SmoothedAssignments:
    """Five samples in three clusters, the third abstaining."""
    return replace(
        SmoothedAssignments(
            clusters=np.array([0, 0, -1, 1, 1]),
            radius=np.array([0.5, 2.0, 0.0, 1.0, 3.0]),
            p_low=norm.cdf([0.5, 2.0, -0.1, 1.0, 3.0]),
            candidates=np.array([0, 0, 2, 1, 1]),
            sigmas=(0.5, 0.25),
            view_sizes=(4, 9),
            n_clusters=3,
        ),
        **changes,  # type: ignore[arg-type]
    )


# The bound and the radius


@pytest.mark.parametrize(("draws", "radius"), [(1000, 2.46), (10_000, 3.20), (100_000, 3.81)])
def test_radius_of_a_unanimous_vote(draws: int, radius: float) -> None:
    # All n agree with probability pⁿ, so that the bound is α^(1/n).
    bound = lower_bound(draws, draws, 0.001)
    assert bound == pytest.approx(0.001 ** (1 / draws), abs=1e-12)
    assert scaled_radius(bound) == pytest.approx(radius, abs=0.005)


@pytest.mark.parametrize("successes", [1, 37, 520, 999])
def test_bound_is_where_so_many_successes_become_too_unlikely(successes: int) -> None:
    bound = lower_bound(successes, 1000, 0.01)
    assert binom.sf(successes - 1, 1000, bound) == pytest.approx(0.01)


def test_bound_and_radius_at_the_ends() -> None:
    assert lower_bound([0, 0], 10, 0.05).tolist() == [0, 0]
    assert scaled_radius([0.0, 0.3, 0.5, norm.cdf(1.5)]).tolist() == pytest.approx([0, 0, 0, 1.5])


def test_linf_radius_of_pictures() -> None:
    # √(d ε²/σ²) = R: ε = 3.1985 · 0.5/√1568 = 0.0404 on two views of 784 values, 3.1985 · 0.5/28 = 0.0571 on one.
    radius = scaled_radius(lower_bound([10_000], 10_000, 0.001))
    one = {"clusters": np.array([0]), "radius": radius, "candidates": np.array([0])}
    both = hand_made(**one, sigmas=(0.5, 0.5), view_sizes=(784, 784))
    assert both.linf_radius(0.0403).all()
    assert not both.linf_radius(0.0405).any()
    assert both.linf_radius((0.057, 0.0)).all()
    assert not both.linf_radius((0.0, 0.0573)).any()


# What is read from certificates


def test_scores_worked_out_by_hand() -> None:
    smoothed = hand_made()
    assert smoothed.certified(1.0).tolist() == [False, True, False, True, True]
    assert smoothed.certified(0.0).tolist() == [True, True, False, True, True]
    assert smoothed.flip_free_rate(1.0) == 0.6
    assert smoothed.abstention_rate == 0.2
    assert smoothed.average_radius == 1.3
    # Shares 2/5, 2/5, 1/5: Σ p² = 0.36.
    assert smoothed.kappa(1.0) == pytest.approx((0.6 - 0.36) / 0.64)
    labels, mapping = np.array([2, 0, 1, 0, 0]), torch.tensor([2, 0, 1])
    assert smoothed.certified_accuracy(labels, mapping, 1.0) == 0.4
    assert smoothed.certified_accuracy(torch.from_numpy(labels), mapping, 0.0) == pytest.approx(0.6)
    # √(4 · 0.1²/0.5² + 9 · 0.1²/0.25²) = √1.6 = 1.265.
    assert smoothed.linf_radius(0.1).tolist() == [False, True, False, False, True]
    assert smoothed.linf_radius((0.1, 0.0)).tolist() == [True, True, False, True, True]
    assert smoothed.linf_radius(0.0).tolist() == [True, True, False, True, True]


def test_a_constant_partition_earns_nothing() -> None:
    views = (torch.rand(6, 2), torch.rand(6, 3))
    smoothed = certify_smoothing(ConstantModel(), views, SmoothingConfig(sigma=0.5), n_clusters=3, seed=0)
    assert smoothed.clusters.tolist() == [1] * 6
    assert smoothed.flip_free_rate(2.4) == 1.0
    assert smoothed.kappa(2.4) == 0.0
    assert check_no_attack_breaks(ConstantModel(), views, smoothed, BUDGET, SmoothingConfig(sigma=0.5), seed=0) == 0


# Certificates of a model whose smoothed boundary is known


def test_radius_stays_below_the_exact_one_and_comes_near() -> None:
    sigmas = (0.1, 0.2)
    model, views = planted()
    exact = exact_radius(model, views, sigmas)
    inner = (exact > 0.3) & (exact < 2)
    gaps = []
    for draws in (200, 2000, 20_000):
        config = SmoothingConfig(sigma=sigmas, certify_draws=draws)
        smoothed = certify_smoothing(model, views, config, n_clusters=2, seed=3)
        assert (smoothed.radius <= exact).all()
        gaps.append(float((exact - smoothed.radius)[inner].mean()))
    assert inner.sum() > 20
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert gaps[2] < 0.05
    kept = smoothed.clusters >= 0
    assert (smoothed.clusters == model(views).logits.argmax(1).numpy())[kept].all()
    assert ((smoothed.radius > 0) == kept).all()
    assert ((smoothed.p_low > 0.5) == kept).all()


def test_sample_on_the_boundary_is_left_open() -> None:
    model = LinearModel(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), bias=torch.tensor([-0.5, 0.5]))
    views = (torch.tensor([[0.5], [0.9]]), torch.zeros(2, 1))
    smoothed = certify_smoothing(model, views, SmoothingConfig(sigma=0.2), n_clusters=2, seed=1)
    assert smoothed.clusters.tolist() == [-1, 0]
    assert smoothed.radius[0] == 0
    assert smoothed.abstention_rate == 0.5
    assert not smoothed.certified(0.0)[0]


def test_as_many_certificates_are_wrong_as_alpha_says() -> None:
    # Two equal clusters: 100 tosses of a coin have 57 or more of one side with probability 0.097, but of either side,
    # which is what draws used for both selection and bound would certify, with 0.193.
    model = LinearModel(torch.tensor([[1.0], [-1.0]]))
    config = SmoothingConfig(sigma=0.2, select_draws=100, certify_draws=100, alpha=0.1, batch_size=20_000)
    smoothed = certify_smoothing(model, (torch.zeros(2000, 1),), config, n_clusters=2, seed=0)
    assert 1 - smoothed.abstention_rate == pytest.approx(0.097, abs=0.02)


def test_noise_on_one_view_only() -> None:
    model, views = planted()
    both = exact_radius(model, views, (0.2, 0.2))
    first = exact_radius(model, views, (0.2, 0.0))
    config = SmoothingConfig(sigma=(0.2, 0.0), certify_draws=5000)
    smoothed = certify_smoothing(model, views, config, n_clusters=2, seed=2)
    assert (smoothed.radius <= first).all()
    assert (smoothed.radius > both).any()
    assert smoothed.linf_radius((0.01, 0.0)).any()
    assert not smoothed.linf_radius(1e-6).any()
    assert check_no_attack_breaks(model, views, smoothed, BUDGET, config, steps=5, samples=20, seed=0) == 0
    with pytest.raises(ValueError, match="no attacked view has noise"):
        check_no_attack_breaks(model, views, smoothed, replace(BUDGET, attacked_views=(1,)), config, seed=0)


def test_noise_is_not_clipped() -> None:
    # In a corner of the valid inputs half of the draws leave them; clipping would make all of these agree.
    model = LinearModel(torch.tensor([[1.0], [-1.0]]), bias=torch.tensor([1e-4, 0.0]))
    config = SmoothingConfig(sigma=0.1)
    smoothed = certify_smoothing(model, (torch.zeros(1, 1),), config, n_clusters=2, seed=0)
    assert smoothed.clusters.tolist() == [-1]


def test_same_seed_same_certificate() -> None:
    model, views = planted()
    config = SmoothingConfig(sigma=0.2, certify_draws=200)
    one, two, other = (certify_smoothing(model, views, config, n_clusters=2, seed=seed) for seed in (1, 1, 2))
    assert (one.p_low == two.p_low).all()
    assert (one.p_low != other.p_low).any()


def test_model_is_left_as_it_was_found_and_judged_in_inference_mode() -> None:
    class Doubtful(LinearModel):
        def forward(self, views: Views) -> ModelOutput:
            assert not self.training
            return super().forward(views)  # type: ignore[no-any-return]

    _, views = planted(n=8)
    model = Doubtful(torch.randn(2, 8, generator=torch.Generator().manual_seed(1))).train()
    config = SmoothingConfig(sigma=0.2, certify_draws=50)
    smoothed = certify_smoothing(model, views, config, n_clusters=2, seed=0)
    check_no_attack_breaks(model, views, smoothed, BUDGET, config, steps=1, seed=0)
    view_votes(model, views, views, batch_size=4)
    assert model.training
    assert model.weight.requires_grad


# Attacks on the smoothed model


# The second has logits so large, and a boundary so far, that no draw leaves the cross-entropy a gradient in float32.
@pytest.mark.parametrize(("scale", "sigmas"), [(1.0, (0.1, 0.2)), (1e5, (0.01, 0.02))])
def test_no_attack_breaks_a_true_certificate_but_a_false_one_breaks(scale: float, sigmas: tuple[float, float]) -> None:
    model, views = planted(n=40)
    model.scale = scale
    config = SmoothingConfig(sigma=sigmas, certify_draws=5000, batch_size=5000)
    smoothed = certify_smoothing(model, views, config, n_clusters=2, seed=5)
    assert (smoothed.clusters >= 0).sum() > 30
    assert check_no_attack_breaks(model, views, smoothed, BUDGET, config, seed=1) == 0
    # A little beyond the exact boundary: only nearly the best direction leads there.
    exact = exact_radius(model, views, sigmas) / scale
    false = replace(smoothed, radius=np.where(smoothed.clusters >= 0, 1.01 * exact + 0.1, 0.0))
    assert check_no_attack_breaks(model, views, false, BUDGET, config, samples=30, seed=1) == 30


def test_attack_moves_the_named_views_only() -> None:
    # Only the second view decides; an attack that may move the first alone breaks nothing, however false the radius.
    model = LinearModel(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), bias=torch.tensor([-0.5, 0.5]))
    views = (torch.full((5, 1), 0.5), torch.full((5, 1), 0.8))
    config = SmoothingConfig(sigma=0.2)
    smoothed = certify_smoothing(model, views, config, n_clusters=2, seed=0)
    false = replace(smoothed, radius=smoothed.radius + 2)
    assert check_no_attack_breaks(model, views, false, replace(BUDGET, attacked_views=(0,)), config, seed=0) == 0
    assert check_no_attack_breaks(model, views, false, replace(BUDGET, attacked_views=(1,)), config, seed=0) == 5


def test_nothing_certified_is_nothing_broken() -> None:
    model, views = planted(n=4)
    config = SmoothingConfig(sigma=0.2)
    none = np.full(4, -1)
    smoothed = hand_made(clusters=none, radius=np.zeros(4), candidates=np.zeros(4, np.int64), sigmas=(0.2, 0.2))
    assert check_no_attack_breaks(model, views, smoothed, BUDGET, config, seed=0) == 0


# View votes


def one_hot_views(votes: list[tuple[int, ...]], n_clusters: int) -> Views:
    table = torch.tensor(votes)
    return tuple(torch.eye(n_clusters)[table[:, v]] for v in range(table.shape[1]))


def test_view_votes_worked_out_by_hand() -> None:
    votes = [(0, 0, 0, 0, 0), (2, 2, 1, 2, 2), (1, 1, 1, 0, 2), (0, 0, 1, 1, 2)]
    views = one_hot_views(votes, 3)
    pool = tuple(torch.zeros(7, 3) for _ in views)
    found = view_votes(SumModel(), views, pool, batch_size=2)
    assert found.votes.tolist() == [list(row) for row in votes]
    assert found.majority.tolist() == [0, 2, 1, 0]
    assert found.margin.tolist() == [5, 3, 2, 0]
    assert found.certified(2).tolist() == [True, False, False, False]
    assert found.certified(1).tolist() == [True, True, False, False]
    assert [found.certified_share(m) for m in (0, 1, 2, 3)] == [0.75, 0.5, 0.25, 0.0]


def test_two_views_certify_nothing() -> None:
    views = one_hot_views([(0, 0), (1, 1)], 2)
    found = view_votes(SumModel(), views, views, batch_size=8)
    assert found.certified_share(1) == 0.0


def test_pool_means_stand_for_the_other_views() -> None:
    # The pool's second view pulls towards cluster 1 by 0.6 on average, which the first view alone does not outweigh.
    views = (torch.tensor([[0.5, 0.0]]), torch.tensor([[9.0, 0.0]]))
    pool = (torch.zeros(2, 2), torch.tensor([[0.0, 0.2], [0.0, 1.0]]))
    assert view_votes(SumModel(), views, pool, batch_size=8).votes.tolist() == [[1, 0]]


def test_no_change_of_one_view_moves_a_certified_sample() -> None:
    stream = torch.Generator().manual_seed(4)
    model = LinearModel(torch.randn(3, 6, generator=stream))
    views = tuple(torch.rand(60, 2, generator=stream) - 0.5 for _ in range(3))
    pool = tuple(torch.rand(50, 2, generator=stream) - 0.5 for _ in range(3))
    before = view_votes(model, views, pool, batch_size=32)
    certified = before.certified(1)
    assert 0 < certified.sum() < 60
    ever_moved = np.zeros(60, dtype=bool)
    grid = (-50.0, -1.0, 0.0, 0.3, 50.0)
    for v, values in itertools.product(range(3), itertools.product(grid, grid)):
        corrupted = list(views)
        corrupted[v] = torch.tensor(values).expand(60, 2)
        after = view_votes(model, tuple(corrupted), pool, batch_size=64)
        ever_moved |= after.majority != before.majority
    assert not ever_moved[certified].any()
    assert ever_moved[~certified].any()


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.0}, "sigma must be ≥ 0 and finite, above 0 for at least one view, got 0.0"),
        ({"sigma": (0.0, 0.0)}, "above 0 for at least one view"),
        ({"sigma": ()}, "above 0 for at least one view"),
        ({"sigma": (0.1, -0.1)}, "sigma must be ≥ 0"),
        ({"sigma": math.nan}, "sigma must be ≥ 0"),
        ({"sigma": math.inf}, "sigma must be ≥ 0 and finite"),
        ({"select_draws": 0}, "select_draws must be ≥ 1, got 0"),
        ({"certify_draws": 0}, "certify_draws must be ≥ 1, got 0"),
        ({"certify_draws": 9}, "certify_draws must be ≥ 10 for alpha 0.001, or even a unanimous vote abstains; got 9"),
        ({"batch_size": 0}, "batch_size must be ≥ 1, got 0"),
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\), got 0.0"),
        ({"alpha": 1.0}, r"alpha must be in \(0, 1\)"),
    ],
)
def test_config_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothingConfig(**{"sigma": 0.5, **changes})  # type: ignore[arg-type]


def test_fewest_draws_that_can_certify() -> None:
    config = SmoothingConfig(sigma=0.5, certify_draws=10)
    assert lower_bound(10, 10, config.alpha) > 0.5
    assert lower_bound(9, 9, config.alpha) < 0.5


def test_wrong_views_and_clusters_are_refused() -> None:
    model, views = planted(n=4)
    config = SmoothingConfig(sigma=0.1, certify_draws=20)
    with pytest.raises(ValueError, match=r"sigma must be one number or 2 \(one per view\)"):
        certify_smoothing(model, views, replace(config, sigma=(0.1, 0.1, 0.1)), n_clusters=2, seed=0)
    with pytest.raises(ValueError, match="n_clusters must be the model's 2, got 3"):
        certify_smoothing(model, views, config, n_clusters=3, seed=0)
    with pytest.raises(ValueError, match=r"got lengths \[4, 3\]"):
        certify_smoothing(model, (views[0], views[1][:3]), config, n_clusters=2, seed=0)
    with pytest.raises(ValueError, match=r"got lengths \[0, 0\]"):
        certify_smoothing(model, tuple(view[:0] for view in views), config, n_clusters=2, seed=0)
    with pytest.raises(ValueError, match="pool_views must have the shapes of views"):
        view_votes(model, views, (views[0], views[0]), batch_size=2)
    with pytest.raises(ValueError, match="batch_size must be ≥ 1, got 0"):
        view_votes(model, views, views, batch_size=0)


def test_wrong_questions_are_refused() -> None:
    smoothed = hand_made()
    with pytest.raises(ValueError, match="r must be ≥ 0, got -1"):
        smoothed.flip_free_rate(-1)
    with pytest.raises(ValueError, match=r"eps must be one number ≥ 0 or 2 \(one per view\)"):
        smoothed.linf_radius((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="eps must be one number ≥ 0"):
        smoothed.linf_radius(-0.1)
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\) and mapping \(3,\)"):
        smoothed.certified_accuracy(np.zeros(4, np.int64), np.arange(3), 0.0)
    with pytest.raises(ValueError, match=r"successes must be in 0..draws and draws ≥ 1, got \[1, 11\] of 10"):
        lower_bound([1, 11], 10, 0.1)
    views = one_hot_views([(0, 0, 0)], 2)
    with pytest.raises(ValueError, match="m must be ≥ 0, got -1"):
        view_votes(SumModel(), views, views, batch_size=1).certified(-1)


def test_certificates_of_another_noise_are_not_checked() -> None:
    model, views = planted(n=5)
    config = SmoothingConfig(sigma=0.3)
    with pytest.raises(ValueError, match="smoothed must be of these 5 samples"):
        check_no_attack_breaks(model, views, hand_made(), BUDGET, config, seed=0)
    with pytest.raises(ValueError, match="steps must be ≥ 1, got 0"):
        check_no_attack_breaks(model, views, hand_made(), BUDGET, config, steps=0, seed=0)


def test_logits_that_are_not_finite_are_refused() -> None:
    class Broken(LinearModel):
        def forward(self, views: Views) -> ModelOutput:
            output: ModelOutput = super().forward(views)
            logits: Tensor = output.logits + torch.where(views[0][:, :1] < 0, torch.nan, 0.0)
            return replace(output, logits=logits)

    _, views = planted(n=4)
    model = Broken(torch.ones(2, 8))
    with pytest.raises(EvaluationError, match="not finite"):
        certify_smoothing(model, views, SmoothingConfig(sigma=1.0), n_clusters=2, seed=0)
