"""The worst case on models and attacks small enough to work the scores out by hand."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from small_targets import FOUR, Threshold, added, dataset, five_features, resolved, trained_like_model
from torch import nn

from ardmvc_core.attacks.generators.gan import official_gan
from ardmvc_core.attacks.kinds import Given
from ardmvc_core.attacks.target import EvaluationError
from ardmvc_core.attacks.tiers import plan
from ardmvc_core.evaluation.official import evaluate_official
from ardmvc_core.evaluation.score_card import OUTCOMES
from ardmvc_core.evaluation.worst_case import evaluate_suite, probe


def attack(name, perturb):
    return Given(key=name, perturb=perturb)


def scored(model, data, *attacks, tier="probe"):
    budget = resolved(eps=0.1, tier=tier)
    return evaluate_suite(model, data, None, budget, attacks=attacks, everyone=True).evaluation


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
        "robust/nmi": 0.0,  # clusters 0, 1, 1, 0 under attack
        "robust/ari": -1 / 2,
        "guard/clusters_used": 2,
        "guard/min_share": 1 / 4,
        "chance/acc": 3 / 4,  # clusters of 1 and 3 have it wherever they lie: clean views are no better than chance
        "chance/robust_acc": 3 / 4 * 1 / 4,
    }
    assert {name: got[name] for name in want} == pytest.approx(want)
    tables = evaluation.arrays()
    assert tables["robust/flipped"].tolist() == [True, False, True, True]
    assert tables["clean/right"].tolist() == [True, True, True, False]
    assert tables["robust/right"].tolist() == [False, True, False, False]
    assert all(got[metric] == tables[name].mean() for metric, name in OUTCOMES.items())
    assert tables["confusion/class_clean"].tolist() == [[0, 2], [1, 1]]
    assert tables["confusion/class_first"].tolist() == [[1, 1], [1, 1]]
    assert tables["confusion/clean_second"].tolist() == [[0, 1], [1, 2]]
    assert tables["clusters/clean"].tolist() == [1, 1, 0, 1]
    assert tables["labels"].tolist() == [0, 0, 1, 1]


def test_few_samples_are_warned_of_with_what_chance_gives():
    still = attack("still", added(0.0, 0.0, 0.0, 0.0))
    few = "only 4 scored samples for 2 clusters"
    assert f"{few}: chance alone gives ACC 0.75" in scored(Threshold(), FOUR, still).warnings
    assert few in scored(Threshold(), dataclasses.replace(FOUR, labels=None), still).warnings
    for count, warned in ((9, True), (10, False)):
        data = dataset([0.1, 0.9] * 5, [0, 1] * 5).subset(range(count))
        assert any("scored samples" in text for text in probe(Threshold(), data, resolved()).warnings) is warned


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
    assert rows.tolist() == [2, 0, 1, 3]  # flipped ones first; the others are kept as they were
    np.testing.assert_allclose(attacked, [0.45, 0.95, 0.8, 0.1], atol=1e-6)
    np.testing.assert_allclose(evaluation.arrays()["examples/view_0_clean"].flatten(), [0.55, 0.95, 0.8, 0.1])


def test_an_attack_that_writes_into_the_clean_views_is_projected():
    data = dataset([0.95, 0.8, 0.55, 0.1], [1, 1, 1, 0])
    in_place = attack("in_place", lambda model, views: (views[0].sub_(0.9), views[1]))
    assert scored(Threshold(), data, in_place).metrics()["in_place/flip"] == 1 / 4
    assert data.views[0].flatten().tolist() == pytest.approx([0.95, 0.8, 0.55, 0.1])


def test_without_labels_only_label_free_numbers_appear():
    data = dataclasses.replace(FOUR, labels=None)
    evaluation = scored(Threshold(), data, attack("first", added(-0.1, 0.0, 0.0, 0.0)))
    guards = {"guard/clusters_used", "guard/min_share", "guard/weak_attacks", "noise/flip"}
    worst_case = ("flip", "kappa", "nmi_clean", "ami_clean", "ari_clean")
    costs = {"cost/forwards", "cost/backwards"}
    assert set(evaluation.metrics()) == {
        *("first/flip", "first/new"),
        *(f"robust/{score}" for score in worst_case),
        *guards,
        *costs,
    }
    assert "labels" not in evaluation.arrays()
    assert set(probe(Threshold(), data, resolved()).metrics()) == {
        *(f"probe/{score}" for score in worst_case),
        *guards,
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
    evaluation = scored(Threshold(), data, weak, strong, tier="plus")
    assert evaluation.metrics()["noise/flip"] == pytest.approx(1 / 4, abs=0.03)
    assert evaluation.metrics()["strong/flip"] == 1 / 2
    assert evaluation.metrics()["guard/weak_attacks"] == 0
    assert evaluation.warnings == ()
    alone = scored(Threshold(), data, weak, tier="plus")
    assert alone.metrics()["guard/weak_attacks"] == 1
    (warning,) = alone.warnings
    assert warning.startswith("all attacks together flip less than 3% more than random noise of the same budget does")


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


def suite(model, data, budget):
    return evaluate_suite(model, data, data.views, budget).evaluation


@pytest.mark.parametrize("run", [probe, suite, evaluate_official], ids=lambda run: run.__name__)
def test_the_model_is_left_as_it_was_found(run):
    model, data = trained_like_model(), five_features()
    modes = [module.training for module in model.modules()]
    asking = [parameter.requires_grad for parameter in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    official = dataclasses.replace(official_gan(), epochs=2, batch_size=10)
    budget = resolved(eps=0.1, official=official)
    first, second = (run(model, data, budget) for _ in range(2))
    assert first.metrics() == second.metrics()
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == asking
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_tier_reports_its_attacks_and_consistent_numbers():
    model, data = trained_like_model(), five_features()
    budget = resolved(eps=0.1, further_attacks=("square",))
    found = evaluate_suite(model, data, five_features(20).views, budget)
    got, attacks = found.evaluation.metrics(), [attack.key for attack in plan("tune", 3)]
    agreement = ("acc", "nmi", "ami", "ari")
    names = {f"{attacks[0]}/{score}" for score in (*agreement, "acc_refit", "flip")}
    names |= {f"{name}/new" for name in [*attacks, "square"]}
    names |= {f"robust/{score}" for score in (*agreement, "flip", "kappa", "nmi_clean", "ami_clean", "ari_clean")}
    names |= {f"chance/{score}" for score in ("acc", "nmi", "ari", "robust_acc")}
    names |= {*(f"clean/{score}" for score in agreement), "noise/flip", "cost/forwards", "cost/backwards"}
    names |= {f"guard/{name}" for name in ("clusters_used", "min_share", "weak_attacks")}
    assert set(got) == names
    assert all(math.isfinite(value) for value in got.values())
    assert got["robust/acc"] <= got[f"{attacks[0]}/acc"] <= got[f"{attacks[0]}/acc_refit"]
    assert got["robust/flip"] == pytest.approx(sum(got[f"{name}/new"] for name in [*attacks, "square"]))
    assert got["robust/acc"] >= got["clean/acc"] - got["robust/flip"] - 1e-12


def test_the_published_attack_runs_where_a_budget_names_it():
    model, data = trained_like_model(), five_features(12)
    budget = resolved(eps=0.1, tier="probe", further_attacks=("gan_official",))
    records = evaluate_suite(model, data, five_features(20).views, budget).result.records
    assert records[-1].key == "gan_official"
    assert not records[-1].skipped
    assert "gan_official" not in [record.key for record in suite_records(model, data, resolved(eps=0.1))]


def test_other_threats_have_scores_of_their_own_and_change_no_other_number():
    # Cluster 1 where the first view is above 0.5; its mean is 0.525, so samples of cluster 0 flip without it. The only
    # one flips with the first view of any other, and so does the one that it stands in for.
    plain = resolved(eps=0.1, tier="probe")
    named = resolved(eps=0.1, tier="probe", further_attacks=("apgd_l2", "view_replaced", "view_dropped"), l2_eps=0.5)
    before, found = (evaluate_suite(Threshold(), FOUR, None, budget) for budget in (plain, named))
    got, was = found.evaluation.metrics(), before.evaluation.metrics()
    threats = ("apgd_l2", "view_replaced", "view_dropped")
    assert set(got) - set(was) == {f"{threat}/{score}" for threat in threats for score in ("acc", "flip")}
    assert {name: got[name] for name in was} == was
    assert [record.key for record in found.result.records] == [record.key for record in before.result.records]
    # Clean: 1, 1, 0, 1, of which the last is wrong. Dropped: only the third moves, and it was right.
    assert (got["view_dropped/flip"], got["view_dropped/acc"]) == (1 / 4, 2 / 4)
    assert got["view_replaced/flip"] == 2 / 4
    assert got["view_replaced/acc"] in (1 / 4, 2 / 4)  # the last sample was wrong before
    # Distances of the first view: three of 0 and three of 0.1, so the median is 0.05, and no sample is that near to 0.5
    # when ε is half of it; the second view does not differ.
    assert found.threats[0].radii == pytest.approx((0.025, 0.0))
    assert (got["apgd_l2/flip"], got["apgd_l2/acc"]) == (0.0, 3 / 4)
    assert found.evaluation.arrays()["view_dropped/flipped"].tolist() == [False, False, True, False]


def test_without_labels_other_threats_have_a_flip_rate_only():
    data = dataset([0.55, 0.55, 0.45, 0.55], None)
    found = evaluate_suite(Threshold(), data, None, resolved(eps=0.1, tier="probe"), threats=("view_dropped",))
    values = found.evaluation.metrics()
    assert values["view_dropped/flip"] == 1 / 4
    assert "view_dropped/acc" not in values


def suite_records(model, data, budget):
    return evaluate_suite(model, data, data.views, budget).result.records


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
