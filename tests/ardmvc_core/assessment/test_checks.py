"""Checks on models that are built to pass, or to fail one of them for a known reason."""

from dataclasses import replace

import pytest
import torch
from planted_models import LinearModel, planted
from torch import nn

from ardmvc_core.assessment import checks as checks_module
from ardmvc_core.assessment.checks import run_checks
from ardmvc_core.assessment.planted_point import plant_readouts
from ardmvc_core.attacks import kinds
from ardmvc_core.attacks.kinds import Given
from ardmvc_core.attacks.searches.apgd import apgd
from ardmvc_core.attacks.suite import run_suite
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.evaluation.metrics import occupancy
from ardmvc_core.types import ModelOutput


def checked(model, views, eps, **options):
    budget = Threat(eps=eps)
    result = run_suite(model, views, budget, tier="probe")
    report = run_checks(model, views, budget, result, **options)
    return report, {check.id: check for check in report.checks}


def honest(scale=1.0):
    model, views = planted(n=80, sizes=(4, 6), n_clusters=3)
    model.scale = scale
    model.eval()
    return model, views, float(model.distance(views).median())


def test_an_honest_model_passes_every_check():
    model, views, eps = honest()
    labels = model(views).logits.argmax(1)
    curve = {e: run_suite(model, views, Threat(eps=e), tier="probe").flip_rate for e in (eps / 2, eps, 2 * eps)}
    report, checks = checked(model, views, eps, labels=labels, mapping=torch.arange(3), eps_curve=curve)
    assert report.failed == ()
    assert report.established
    # Every id of the specification is there once, those of parts included.
    parts = {1: "ab", 3: "abc", 7: "abc", 9: "abc"}
    wanted = [f"C{n}{part}" for n in range(1, 21) for part in parts.get(n, [""])]
    wanted.insert(wanted.index("C8") + 1, "C8b")
    assert sorted(checks) == sorted(wanted)
    assert checks["C14"].value >= 0.95
    assert checks["C3a"].value == checks["C3b"].value == 1.0
    # The bounds are the exact worst case of a linear model.
    assert checks["C1a"].value == 0.0


def robust():
    """1,200 samples, so that there is no slack for few, with a certified margin: each of 3 clusters has its own feature
    at 0.9 beside two at 0.1, and the nearest other cluster is (0.9 − 0.1)/2 = 0.4 away."""
    model, clusters = LinearModel(torch.eye(3).repeat(1, 2)).eval(), torch.arange(1200) % 3
    stream = torch.Generator().manual_seed(0)
    noise = (0.01 * torch.randn(1200, 3, generator=stream) for _ in range(2))
    views = tuple((0.1 + 0.8 * torch.eye(3)[clusters] + shift).clamp(0, 1) for shift in noise)
    assert float(model.distance(views).min()) > 0.35
    return model, views, clusters


def test_a_truly_robust_model_passes_every_check():
    model, views, clusters = robust()
    report, checks = checked(model, views, 0.05, labels=clusters, mapping=torch.arange(3))
    assert "noise 0.000; apgd_ce 0.000" in checks["C7c"].detail
    assert (checks["C7c"].verdict, checks["C14"].verdict) == ("PASS", "PASS")
    assert report.failed == ()


def test_attacks_that_never_find_anything_fail_on_planted_points(monkeypatch):
    def broken(model, views, clean, objective, budget, **options):
        return apgd(model, views, clean, objective, Threat(eps=1e-9), **options)

    monkeypatch.setattr(checks_module, "apgd", broken)
    monkeypatch.setattr(kinds, "apgd", broken)
    model, views, _ = robust()
    _, checks = checked(model, tuple(view[:60] for view in views), 0.05)
    assert (checks["C7c"].verdict, checks["C14"].verdict) == ("PASS", "FAIL")


def test_an_attack_that_does_nothing_fails_c7c():
    model, views, eps = honest()
    budget = Threat(eps=eps)
    idle = Given(key="idle", perturb=lambda model, views: views)
    result = run_suite(model, views, budget, tier="probe", attacks=[idle])
    assert result.flip_rate == 0.0
    assert "C7c" in run_checks(model, views, budget, result).failed
    # Nor does it pass beside a good one, which is what the suite's number is from.
    good = run_suite(model, views, budget, tier="probe", everyone=True)
    both = replace(good, records=(*good.records, *result.records))
    assert run_checks(model, views, budget, both).failed == ("C7c",)


def test_a_saturated_softmax_shows_as_missing_gradients():
    model, views, eps = honest(scale=1e5)
    report, checks = checked(model, views, eps)
    assert checks["C8"].verdict == "FAIL"
    assert "apgd_ce" in checks["C8"].detail
    assert not report.established


def test_shattered_gradients_are_caught():
    class Shattered(LinearModel):
        def forward(self, views):
            return super().forward(tuple((view * 16).round() / 16 for view in views))

    model, views, eps = honest()
    shattered = Shattered(model.weight.data, model.bias.data).eval()
    report, checks = checked(shattered, views, eps)
    assert checks["C8"].verdict == "FAIL"
    assert checks["C9b"].verdict == "FAIL"
    assert checks["C3a"].verdict == "FAIL"
    assert not report.established


def test_a_black_box_that_beats_masked_gradients_fails_c4():
    class Masked(LinearModel):
        def forward(self, views):
            return super().forward(tuple(view.detach() for view in views))

    model, views, eps = honest()
    masked = Masked(model.weight.data, model.bias.data).eval()
    budget = Threat(eps=2 * eps)
    result = run_suite(masked, views, budget, tier="probe")
    square = replace(
        result.records[0], key="square", flipped=model.distance(views) < 2 * eps, details={}, tested=~result.flipped
    )
    report = run_checks(masked, views, budget, replace(result, records=(*result.records, square)))
    assert {"C4", "C8"} <= set(report.failed)


def test_batch_statistics_at_inference_are_caught_as_coupling():
    class Coupled(LinearModel):
        def __init__(self, weight, bias):
            super().__init__(weight, bias)
            self.norm = nn.BatchNorm1d(weight.shape[1], affine=False, track_running_stats=False)

        def forward(self, views):
            x = torch.cat(views, 1)
            x = self.norm(x) * 0.2 + 0.5 if len(x) > 1 else x
            return super().forward((x,))

    model, views, eps = honest()
    report, checks = checked(Coupled(model.weight.data, model.bias.data).eval(), views, eps)
    assert checks["C12"].verdict == "FAIL"
    assert "who is in the batch" in checks["C12"].detail
    assert not report.established


def test_a_model_handed_over_in_training_mode_is_named():
    model, views, eps = honest()
    model.drop = nn.Dropout(0.5)
    model.train()
    _, checks = checked(model, views, eps)
    assert checks["C12"].verdict == "FAIL"
    assert "training mode" in checks["C12"].detail
    assert model.training


def test_random_output_is_caught():
    class Random(LinearModel):
        def forward(self, views):
            output = super().forward(views)
            logits = output.logits + 0.2 * torch.randn_like(output.logits)
            return ModelOutput(
                view_latents=output.view_latents,
                consensus=output.consensus,
                logits=logits,
                assignments=logits.softmax(1),
            )

    model, views, eps = honest()
    torch.manual_seed(0)
    report, checks = checked(Random(model.weight.data, model.bias.data).eval(), views, eps)
    assert checks["C11"].verdict == "FAIL"
    assert "EOT" in checks["C11"].detail
    assert not report.established


def test_a_constant_partition_fails_for_its_collapse_not_for_its_robustness():
    model = LinearModel(torch.zeros(3, 10), torch.tensor([1.0, 0.0, 0.0])).eval()
    _, views, eps = honest()
    report, checks = checked(model, views, eps)
    assert checks["C19"].verdict == "FAIL"
    assert checks["C3b"].verdict == "FAIL"
    assert not report.established


@pytest.mark.parametrize(
    ("clusters", "k", "want"),
    [
        ([0, 1, 2, 3], 4, (4, 1.0)),
        ([0, 0, 1, 1], 4, (2, 0.5)),
        ([0] * 5, 4, (1, 0.0)),
        ([0] * 99 + [1], 2, (1, 0.0808)),  # 1 % is below the share of 1/20
    ],
)
def test_occupancy_and_entropy(clusters, k, want):
    occupied, entropy = occupancy(torch.tensor(clusters), k)
    assert occupied == want[0]
    assert entropy == pytest.approx(want[1], abs=1e-4)


def test_planted_points_are_adversarial_and_their_surroundings_are_not():
    model, views, _ = honest()
    budget = Threat(eps=0.05)
    planted_model, kept = plant_readouts(model, tuple(view[:10] for view in views), budget, seed=0)
    clean = planted_model(kept).logits.argmax(1)
    assert clean.tolist() == [0] * len(kept[0])
    assert len(kept[0]) >= 8


def test_the_radius_check_wants_more_flips_at_more_eps():
    model, views, eps = honest()
    _, checks = checked(model, views, eps, eps_curve={0.1: 0.9, 0.2: 0.3})
    assert checks["C2"].verdict == "FAIL"
    assert checks["C2"].value == pytest.approx(0.6)


def test_subsets_that_beat_the_whole_are_caught():
    model, views, eps = honest()
    _, checks = checked(model, views, eps, subset_flips={(0,): 0.2, (1,): 0.1}, subset_unions={1: 1.0})
    assert checks["C18"].verdict == "FAIL"
    _, checks = checked(model, views, eps, subset_flips={(0,): 0.1, (1,): 0.1}, subset_unions={1: 0.15})
    assert checks["C18"].verdict == "PASS"


def test_a_lock_that_was_opened_fails():
    model, views, eps = honest()
    assert checked(model, views, eps, labels_locked=False)[1]["C20"].verdict == "FAIL"
    assert checked(model, views, eps, labels_locked=True)[1]["C20"].verdict == "PASS"
