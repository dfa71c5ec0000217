"""Protocols on models and attacks small enough to work the scores out by hand."""

import copy
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ardmvc_core.attacks.budget import AttackBudget
from ardmvc_core.attacks.generators.gan import GANConfig, official_gan
from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.evaluation.budget import EvalBudget
from ardmvc_core.evaluation.protocols import (
    EvaluationError,
    PreparedAttack,
    evaluate_attacks,
    evaluate_official,
    evaluate_strict,
    probe,
)
from ardmvc_core.models import MODELS
from ardmvc_core.models.comvc import CoMVCConfig
from ardmvc_core.models.simvc import build
from ardmvc_core.networks.kmeans import KMeansHead
from ardmvc_core.types import EmbeddingOutput


class Threshold(nn.Module):
    """Two views of one value each; cluster 1 where the first is above ½, the second is not read for clusters."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("centre", torch.tensor(0.5))

    def encode(self, views):
        return tuple(torch.cat([view, 1 - view], dim=1) for view in views)

    def forward(self, views):
        score = self.weight * 10 * (views[0] - self.centre)
        logits = torch.cat([-score, score], dim=1)
        latents = self.encode(views)
        return SimpleNamespace(view_latents=latents, consensus=score, logits=logits, assignments=logits.softmax(1))


def dataset(first, labels, n_clusters=2):
    view = torch.tensor(first).unsqueeze(1)
    return MultiViewDataset(
        name="npz",
        views=(view, torch.full_like(view, 0.5)),
        labels=None if labels is None else torch.tensor(labels),
        n_clusters=n_clusters,
    )


def added(*amounts):
    """An attack that adds fixed amounts to the first view."""
    return lambda model, views: (views[0] + torch.tensor(amounts).unsqueeze(1), views[1])


def attack(name, perturb, eps=0.1, **fields):
    return PreparedAttack(name=name, perturb=perturb, budget=AttackBudget(eps=eps), **fields)


def resolved(**fields):
    return EvalBudget(**fields).resolve("npz", 2)


def scored(model, data, *attacks, **fields):
    return evaluate_attacks(model, data, attacks, resolved(**{"eps": 0.1, "noise_draws": 0, **fields}))


# Clean clusters 1, 1, 0, 1: the best map sends 1 to class 0 and 0 to class 1, and misses the last sample.
FOUR = dataset([0.55, 0.55, 0.45, 0.55], [0, 0, 1, 1])


def test_worst_case_of_two_attacks_by_hand():
    first = attack("first", added(-0.1, 0.0, 0.0, 0.0))  # clusters 0, 1, 0, 1
    second = attack("second", added(0.0, 0.0, 0.1, -0.1))  # clusters 1, 1, 1, 0: repairs the last sample
    evaluation = scored(Threshold(), FOUR, first, second)
    got = evaluation.metrics()
    want = {
        "clean/acc": 3 / 4,
        "first/flip": 1 / 4,
        "first/acc": 2 / 4,
        "first/nmi": 0.0,
        "first/ari": -1 / 2,  # pairs: none together in both, ⅔ expected, at most 2
        "second/flip": 2 / 4,
        "second/acc": 3 / 4,
        "second/ari": 0.0,  # 1 pair together in both, as expected by chance
        "robust/flip": 3 / 4,
        "robust/acc": 1 / 4,  # only the second sample; the repaired one does not count
        "robust/kappa": (1 / 4 - 5 / 8) / (1 - 5 / 8),  # clean shares ¼ and ¾
        "robust/nmi": 0.0,
        "robust/ari": -1 / 2,
        "guard/clusters_used": 2,
        "guard/min_share": 1 / 4,
    }
    assert {name: got[name] for name in want} == pytest.approx(want)
    tables = evaluation.arrays()
    assert tables["robust/flipped"].tolist() == [True, False, True, True]
    assert tables["confusion/class_clean"].tolist() == [[0, 2], [1, 1]]
    assert tables["confusion/class_first"].tolist() == [[1, 1], [1, 1]]
    assert tables["confusion/clean_second"].tolist() == [[0, 1], [1, 2]]
    assert tables["clusters/clean"].tolist() == [1, 1, 0, 1]
    assert tables["labels"].tolist() == [0, 0, 1, 1]


def test_consistent_relabelling_is_seen_by_the_fixed_map_only():
    data = dataset([0.55, 0.55, 0.45, 0.45], [0, 0, 1, 1])
    got = scored(Threshold(), data, attack("swap", added(-0.1, -0.1, 0.1, 0.1))).metrics()
    assert got["clean/acc"] == 1
    assert got["swap/flip"] == 1
    assert got["swap/acc"] == 0
    assert got["swap/acc_refit"] == got["swap/nmi"] == got["swap/ari"] == 1
    assert got["robust/acc"] == 0
    assert got["robust/kappa"] == -1


def test_an_attack_that_leaves_the_ball_is_projected():
    data = dataset([0.95, 0.8, 0.55, 0.1], [1, 1, 1, 0])
    evaluation = scored(Threshold(), data, attack("far", added(-0.9, -0.9, -0.9, 5.0)))
    assert evaluation.metrics()["far/flip"] == 1 / 4  # only the third is within 0.1 of the boundary
    attacked = evaluation.arrays()["examples/view_0_attacked"].flatten()
    rows = evaluation.arrays()["examples/rows"]
    assert rows.tolist() == [2, 0, 1, 3]  # flipped ones first
    np.testing.assert_allclose(attacked, np.array([0.45, 0.85, 0.7, 0.2]), atol=1e-6)
    np.testing.assert_allclose(evaluation.arrays()["examples/view_0_clean"].flatten(), [0.55, 0.95, 0.8, 0.1])


def test_an_attack_that_writes_into_the_clean_views_is_projected():
    data = dataset([0.95, 0.8, 0.55, 0.1], [1, 1, 1, 0])
    in_place = attack("in_place", lambda model, views: (views[0].sub_(0.9), views[1]))
    assert scored(Threshold(), data, in_place).metrics()["in_place/flip"] == 1 / 4
    assert data.views[0].flatten().tolist() == pytest.approx([0.95, 0.8, 0.55, 0.1])


def test_an_attack_outside_the_worst_case_does_not_count():
    inside = attack("inside", added(-0.1, 0.0, 0.0, 0.0))
    outside = attack("outside", added(0.1, -0.2, 0.2, -0.2), eps=0.2, in_worst_case=False)
    got = scored(Threshold(), FOUR, inside, outside).metrics()
    assert got["outside/flip"] == 3 / 4
    assert got["robust/flip"] == 1 / 4


def test_without_labels_only_label_free_numbers_appear():
    data = dataclasses.replace(FOUR, labels=None)
    evaluation = scored(Threshold(), data, attack("first", added(-0.1, 0.0, 0.0, 0.0)))
    assert set(evaluation.metrics()) == {
        "first/flip",
        "robust/flip",
        "robust/kappa",
        "guard/clusters_used",
        "guard/min_share",
    }
    assert "labels" not in evaluation.arrays()
    assert set(probe(Threshold(), data, resolved()).metrics()) == {
        "probe/flip",
        "guard/clusters_used",
        "guard/min_share",
    }


def test_a_collapsed_partition_is_named():
    evaluation = scored(Threshold(), dataset([0.9] * 4, [0, 0, 1, 1]), attack("none", added(0.0, 0.0, 0.0, 0.0)))
    assert evaluation.metrics()["guard/clusters_used"] == 1
    assert evaluation.metrics()["guard/min_share"] == 0
    assert evaluation.metrics()["robust/kappa"] == 0
    assert any("only 1 of 2 clusters" in warning for warning in evaluation.warnings)


def test_noise_floor_and_its_warning():
    # Sign noise moves half of the values 0.05 above the boundary across it, uniform noise a quarter.
    data = dataset([0.55] * 100 + [0.1] * 100, [1] * 100 + [0] * 100)
    weak = attack("weak", lambda model, views: views)
    strong = attack("strong", lambda model, views: (views[0] - 0.1, views[1]))
    further = attack("further", lambda model, views: views, eps=0.02, in_worst_case=False)
    evaluation = scored(Threshold(), data, weak, strong, further, noise_draws=20)
    assert evaluation.metrics()["noise/flip"] == pytest.approx(1 / 4, abs=0.03)
    assert evaluation.metrics()["noise_0.02/flip"] == 0
    assert evaluation.metrics()["strong/flip"] == 1 / 2
    assert evaluation.metrics()["guard/weak_attacks"] == 2
    assert evaluation.warnings == ()
    alone = scored(Threshold(), data, weak, noise_draws=20)
    (warning,) = alone.warnings
    assert warning.startswith("no attack flips 3% more than random noise of the same budget does (weak)")


class NeverInference(nn.Module):
    """Refuses to leave training mode."""

    def train(self, mode=True):
        return super().train(True)

    def forward(self, value):
        return value


class Counting(Threshold):
    """Counts its passes in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, views):
        self.calls += 1
        return super().forward(views)


def test_a_target_that_stays_in_training_mode_is_refused():
    model = Threshold()
    model.stubborn = NeverInference()
    with pytest.raises(EvaluationError, match="module 'stubborn' is in training mode"):
        scored(model, FOUR, attack("first", added(0.0, 0.0, 0.0, 0.0)))
    assert model.weight.requires_grad


def test_a_target_whose_buffer_changes_is_refused():
    model = Counting()
    with pytest.raises(EvaluationError, match=r"buffer 'calls' was changed by the clean pass"):
        scored(model, FOUR, attack("first", added(0.0, 0.0, 0.0, 0.0)))
    assert model.calls == 0
    assert model.training


def test_an_attack_that_tampers_with_the_target_is_refused():
    def switches_mode(model, views):
        model.train()
        return views

    def moves_buffer(model, views):
        model.centre += 0.2
        return views

    def moves_parameter(model, views):
        with torch.no_grad():
            model.weight.zero_()
        return views

    model = Threshold()
    for perturb, message in (
        (switches_mode, "module 'Threshold' is in training mode after attack 'first'"),
        (moves_buffer, "buffer 'centre' was changed by attack 'first'"),
        (moves_parameter, "parameter 'weight' was changed by attack 'first'"),
    ):
        with pytest.raises(EvaluationError, match=message):
            scored(model, FOUR, attack("first", perturb))
        assert model.centre == 0.5
        assert model.weight == 1


def test_meaningless_values_are_refused():
    with pytest.raises(EvaluationError, match="attack 'nan' returned values that are not finite"):
        scored(Threshold(), FOUR, attack("nan", added(math.nan, 0.0, 0.0, 0.0)))
    with pytest.raises(EvaluationError, match="attack 'short' must return views like the clean ones"):
        scored(Threshold(), FOUR, attack("short", lambda model, views: (views[0][:2], views[1])))
    model = Threshold()
    model.centre.fill_(math.nan)
    with pytest.raises(EvaluationError, match="logits that are not finite"):
        scored(model, FOUR, attack("first", added(0.0, 0.0, 0.0, 0.0)))
    with pytest.raises(ValueError, match="different names"):
        scored(Threshold(), FOUR, attack("a", added(0.0)), attack("a", added(0.0)))


TINY = resolved(eps=0.1, gan_eps=(0.2,), noise_draws=2, gan=GANConfig(epochs=2, batch_size=8))


def trained_like_model():
    torch.manual_seed(0)
    model = build(CoMVCConfig(dense_widths=(16, 8)), ((5,), (5,)), 3)
    model.encoders[1].requires_grad_(False)
    model.encoders[1].layers.eval()
    return model


def five_features(count=30):
    stream = torch.Generator().manual_seed(0)
    views = tuple(torch.rand(count, 5, generator=stream) for _ in range(2))
    return MultiViewDataset(name="npz", views=views, labels=torch.arange(count) % 3, n_clusters=3)


@pytest.mark.parametrize("run", [probe, evaluate_strict, evaluate_official], ids=lambda run: run.__name__)
def test_the_model_is_left_as_it_was_found(run):
    model, data = trained_like_model(), five_features()
    modes = [module.training for module in model.modules()]
    asking = [parameter.requires_grad for parameter in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    budget = dataclasses.replace(TINY, official=dataclasses.replace(official_gan(), epochs=2, batch_size=10))
    first, second = (
        run(model, data, data.views, budget) if run is evaluate_strict else run(model, data, budget) for _ in range(2)
    )
    assert first.metrics() == second.metrics()
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == asking
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_strict_reports_every_attack_and_consistent_numbers():
    model, data = trained_like_model(), five_features()
    evaluation = evaluate_strict(model, data, five_features(20).views, TINY)
    got = evaluation.metrics()
    attacks = ["pgd_assignment", "pgd_features", "pgd_contrastive", "gan"]
    scores = ("acc", "nmi", "ari", "acc_refit", "flip")
    names = {f"{name}/{score}" for name in [*attacks, "gan_0.20"] for score in scores}
    names |= {f"robust/{score}" for score in ("acc", "nmi", "ari", "flip", "kappa")}
    names |= {"clean/acc", "clean/nmi", "clean/ari", "noise/flip", "noise_0.20/flip"}
    names |= {f"guard/{name}" for name in ("clusters_used", "min_share", "gan_saturation", "weak_attacks")}
    assert set(got) == names
    assert all(math.isfinite(value) for value in got.values())
    for name in attacks:
        assert got["robust/acc"] <= got[f"{name}/acc"] <= got[f"{name}/acc_refit"]
        assert got["robust/flip"] >= got[f"{name}/flip"]
    assert got["robust/acc"] >= got["clean/acc"] - got["robust/flip"] - 1e-12
    assert got["robust/nmi"] == min(got[f"{name}/nmi"] for name in attacks)


def test_sample_caps():
    data = five_features(30)
    evaluation = probe(trained_like_model(), data, resolved(samples=20, probe_samples=7))
    assert evaluation.arrays()["clusters/clean"].shape == (20,)
    assert evaluation.arrays()["clusters/probe"].shape == (7,)


@pytest.mark.parametrize(("eps", "flips"), [(0.09, 0), (0.11, 1 / 4)])
def test_the_probe_flips_exactly_beyond_the_boundary(eps, flips):
    data = dataset([0.6, 0.9, 0.1, 0.2], [1, 1, 0, 0])
    got = probe(Threshold(), data, resolved(eps=eps)).metrics()
    assert got["clean/acc"] == 1
    assert got["probe/flip"] == flips
    assert got["probe/acc"] == 1 - flips


class BatchCentred(nn.Module):
    """Cluster 1 where the first view, normalised by BatchNorm, is above 0."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.weight = nn.Parameter(torch.ones(()))

    def encode(self, views):
        return views

    def forward(self, views):
        score = self.weight * self.norm(views[0])
        logits = torch.cat([-score, score], dim=1)
        return SimpleNamespace(view_latents=views, consensus=score, logits=logits, assignments=logits.softmax(1))


def test_official_protocol_scores_in_training_mode():
    # All values are above 0: in inference mode, with mean 0 stored, there would be one cluster only and ACC ½.
    data = dataset([0.1] * 10 + [0.9] * 10, [0] * 10 + [1] * 10)
    model = BatchCentred()
    assert probe(model, data, resolved()).metrics()["clean/acc"] == 1 / 2
    got = evaluate_official(model, data, resolved(eps=0.1)).metrics()
    phases = [f"official/{phase}/{score}" for phase in ("pre", "post") for score in ("acc", "nmi", "ari")]
    # 0.1 cannot bridge the gap between 0.1 and 0.9, and batch statistics follow any common shift.
    assert {name: got[name] for name in phases} == dict.fromkeys(phases, 1.0)
    assert set(got) == {*phases, "guard/official_gan_saturation"}
    assert model.norm.num_batches_tracked == 0


def test_official_protocol_takes_a_last_batch_of_one():
    data = dataset([0.1] * 10 + [0.9] * 11, [0] * 10 + [1] * 11)
    budget = resolved(eps=0.1, official=dataclasses.replace(official_gan(), batch_size=10, epochs=1))
    assert 0 <= evaluate_official(BatchCentred(), data, budget).metrics()["official/post/acc"] <= 1


class Sampled(nn.Module):
    """The views themselves, clustered by k-means; in training mode with noise from torch's global stream."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.head = KMeansHead(2, 2)

    def encode(self, views):
        return views

    def forward(self, views):
        features = self.weight * torch.cat(views, dim=1)
        if self.training:
            features = features + 0.01 * torch.randn_like(features)
        logits = self.head(features)
        return EmbeddingOutput(
            view_latents=views, consensus=features, logits=logits, assignments=logits.softmax(1), embedding=features
        )


def test_official_protocol_fits_k_means_anew_and_leaves_the_global_stream_alone():
    data = dataset([0.1] * 10 + [0.9] * 10, [0] * 10 + [1] * 10)
    model = Sampled()
    model.head.centroids.fill_(5.0)  # frozen centroids that would put everything into one cluster
    assert probe(model, data, resolved()).metrics()["clean/acc"] == 1 / 2
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = evaluate_official(model, data, resolved(eps=0.1)).metrics()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert evaluate_official(model, data, resolved(eps=0.1)).metrics() == first
    # Two groups 0.8 apart, moved by 0.1 at most: k-means finds them before and after.
    assert (first["official/pre/acc"], first["official/post/acc"]) == (1.0, 1.0)
    assert torch.equal(model.head.centroids, torch.full((2, 2), 5.0))


def test_attacks_found_in_bf16_are_scored_in_full_precision():
    data = dataset([0.1] * 10 + [0.9] * 10, [0] * 10 + [1] * 10)
    network = MODELS["simvc"].build(MODELS["simvc"].config(dense_widths=(4, 4)), data.view_shapes, 2).eval()
    seen = []
    network.encoders[0].register_forward_hook(lambda encoder, *_: seen.append((encoder.bf16, torch.is_grad_enabled())))
    budget = resolved(eps=0.1, attack_precision="bf16", steps=2, noise_draws=1, gan_eps=())
    found = evaluate_strict(network, data, data.views, budget)
    assert 0 <= found.metrics()["robust/acc"] <= 1
    assert {bf16 for bf16, _ in seen} == {True, False}
    # Scoring passes ask for no gradient; among those the clean pass, noise and every attack ran in full precision.
    attacks = len(budget.objectives) + 1
    assert sum(not bf16 and not gradient for bf16, gradient in seen) == 1 + 2 + attacks
    assert not network.encoders[0].bf16
    with pytest.raises(ValueError, match="attack_precision must be one of fp32, bf16, got 'fp16'"):
        EvalBudget(attack_precision="fp16")


def test_official_protocol_needs_labels():
    with pytest.raises(EvaluationError, match="needs labels"):
        evaluate_official(BatchCentred(), dataclasses.replace(FOUR, labels=None), resolved())


@pytest.mark.parametrize(
    ("name", "eps", "gan_eps"),
    [
        ("noisy_digits", 0.10, (0.20,)),
        ("noisy_mnist", 0.30, (0.10,)),
        ("patched_mnist", 0.30, (0.10,)),
        ("noisy_fashion", 0.15, (0.05,)),
        ("regdb", 8 / 255, ()),
        ("npz", 0.10, ()),
    ],
)
def test_budget_resolves_to_the_data_sets_eps(name, eps, gan_eps):
    resolved = EvalBudget().resolve(name, 2)
    assert (resolved.eps, resolved.gan_eps) == (eps, gan_eps)
    assert resolved.resolve(name, 2) == resolved
    assert EvalBudget(eps=0.05, gan_eps=()).resolve(name, 2).attack_budget() == AttackBudget(eps=0.05)


def test_given_eps_wins_and_is_checked():
    assert EvalBudget(eps=0.2).resolve("noisy_digits", 2).gan_eps == ()
    assert EvalBudget(eps=(0.1, 0.2)).resolve("other", 2).eps == (0.1, 0.2)
    with pytest.raises(ValueError, match="eps must be given for data set 'other'"):
        EvalBudget().resolve("other", 2)
    with pytest.raises(ValueError, match=r"one per view \(3\)"):
        EvalBudget(eps=(0.1, 0.2)).resolve("npz", 3)
    with pytest.raises(ValueError, match="gan_eps must be distinct"):
        EvalBudget(gan_eps=(0.1,)).resolve("noisy_digits", 2)


def test_digest_is_of_values():
    resolved = EvalBudget().resolve("noisy_digits", 2)
    assert len(resolved.digest()) == 16
    assert int(resolved.digest(), 16) >= 0
    assert EvalBudget(eps=0.1, gan_eps=(0.2,)).resolve("npz", 2).digest() == resolved.digest()
    one = dataclasses.replace(resolved, eps=1, gan_eps=())
    assert one.digest() == dataclasses.replace(one, eps=1.0).digest()
    for change in ({"steps": 21}, {"seed": 8}, {"eps": 0.11}, {"gan": GANConfig(mu_com=2.0)}, {"noise_draws": 9}):
        assert dataclasses.replace(resolved, **change).digest() != resolved.digest()
    assert not hasattr(EvalBudget(), "digest")


@pytest.mark.parametrize(
    "field",
    [
        {"eps": 0.0},
        {"eps": 8},
        {"eps": math.nan},
        {"eps": (0.1, 2.0)},
        {"gan_eps": (1.5,)},
        {"samples": 0},
        {"probe_samples": 0},
        {"probe_steps": 0},
        {"steps": 0},
        {"restarts": 0},
        {"noise_draws": -1},
        {"batch_size": 1},
        {"step_ratio": 0.0},
        {"objectives": ()},
        {"objectives": ("assignment", "assignment")},
        {"objectives": ("softmax",)},
    ],
)
def test_impossible_budgets_are_refused(field):
    with pytest.raises(ValueError, match=f"{next(iter(field))} must be"):
        EvalBudget(**field)
