"""The whole report on planted models, and its parts on numbers worked out by hand."""

import json

import pytest
import torch
from planted_models import planted

from ardmvc_core.assessment.assess import CurvePoint, assess, erasability, half_flip_eps
from ardmvc_core.assessment.consistency import map_from_confusion, scores_from_confusion
from ardmvc_core.attacks.threat import sample_distances
from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.evaluation.budget import EvalBudget


def dataset(labels=True):
    model, views = planted(n=60, sizes=(4, 4), n_clusters=3)
    model.eval()
    classes = model(views).logits.argmax(1) if labels else None
    return model, MultiViewDataset(name="npz", views=views, labels=classes, n_clusters=3)


def budget(eps, **changes):
    return EvalBudget(eps=eps, **changes).resolve("npz", 2)


def test_the_curve_finds_the_exact_rates_of_a_linear_model():
    model, data = dataset()
    distance = model.distance(data.views)
    grid = tuple(float(distance.quantile(q)) for q in (0.25, 0.5, 0.75))
    found = assess(model, data, None, budget(grid[1]), eps_grid=grid)
    for eps in grid:
        clear = int(((distance / eps - 1).abs() < 0.02).sum()) / 60
        assert found.eps_curve[eps].flip == pytest.approx(float((distance < eps).double().mean()), abs=clear + 1e-9)
        # Every sample is right on clean views, so what is not flipped is right.
        assert found.eps_curve[eps].acc == pytest.approx(1 - found.eps_curve[eps].flip)
    assert found.eps50 == pytest.approx(grid[1], rel=0.1)
    assert found.inconsistencies == ()
    # One view alone: half of the reach or so, and never more than the attacker's choice of the view.
    assert set(found.subset_flips) == {(0,), (1,)}
    assert max(found.subset_flips.values()) <= found.subset_unions[1] <= found.suite.result.flip_rate
    alone = model.distance(data.views, (grid[1], 0.0))
    close = int(((alone - 1).abs() < 0.02).sum()) / 60
    assert found.subset_flips[(0,)] == pytest.approx(float((alone < 1).double().mean()), abs=close + 1e-9)


def test_other_threats_stand_beside_the_headline_with_sizes_and_intervals():
    model, data = dataset()
    distances = sample_distances(data.views)
    distance = model.distance(data.views, distances, "l2")
    share = float(distance.median())
    options = {"eps_grid": (), "subsets": False}
    found = assess(model, data, None, budget(0.05, l2_eps=share), **options)
    report = json.loads(json.dumps(found.as_json()))
    moved, replaced, dropped = report["other_threats"]
    clear = int(((distance / share - 1).abs() < 0.02).sum()) / 60
    assert moved["radii"] == pytest.approx([share * d for d in distances])
    assert moved["flip"] == pytest.approx(float((distance < share).double().mean()), abs=clear + 1e-9)
    for record in (moved, replaced, dropped):
        # Every sample is right on clean views, so what is not moved is right.
        assert record["acc"] == pytest.approx(1 - record["flip"])
        for score in ("flip", "acc"):
            interval = report["intervals"][f"{record['key']}/{score}"]
            assert interval["low"] <= record[score] <= interval["high"]
            assert interval["high"] - interval["low"] > 0.05
    without = assess(model, data, None, budget(0.05), threats=(), **options).as_json()
    assert without["other_threats"] == []
    assert without["budget_hash"] == report["budget_hash"]
    assert {name: report["headline"][name] for name in without["headline"]} == without["headline"]
    assert {name: report["metrics"][name] for name in without["metrics"]} == without["metrics"]


def test_everything_can_be_computed_again_from_the_stored_tables():
    model, data = dataset()
    eps = float(model.distance(data.views).median())
    report = json.loads(json.dumps(assess(model, data, data.views, budget(eps), eps_grid=(), everyone=True).as_json()))
    tables, metrics = report["confusion"], report["metrics"]
    clean = torch.tensor(tables["class_clean"]).numpy()
    mapping = map_from_confusion(clean)
    assert scores_from_confusion(clean).acc == metrics["clean/acc"] == 1.0
    kept = torch.tensor(tables["class_kept"])
    right = sum(int(kept[mapping[k], k]) for k in range(3))
    assert right / 60 == pytest.approx(metrics["robust/acc"])
    assert 1 - int(kept.sum()) / 60 == pytest.approx(metrics["robust/flip"])
    for record in report["per_attack"]:
        table = torch.tensor(tables[f"class_{record['key']}"]).numpy()
        assert scores_from_confusion(table, mapping).acc == pytest.approx(record["acc"])
        assert scores_from_confusion(table).acc == pytest.approx(record["acc_refit"])
        assert scores_from_confusion(table).nmi == pytest.approx(record["nmi"], abs=1e-9)
    assert report["headline"]["acc"] == metrics["robust/acc"]
    assert report["budget_hash"] == budget(eps).digest()
    low, high = report["intervals"]["robust/acc"]["low"], report["intervals"]["robust/acc"]["high"]
    assert low < metrics["robust/acc"] < high


def test_without_labels_only_what_needs_none_is_reported():
    model, data = dataset(labels=False)
    found = assess(model, data, None, budget(0.05), eps_grid=(0.05,), subsets=False)
    values = found.suite.evaluation.values
    assert not [name for name in values if name.endswith("/acc")]
    assert {"robust/flip", "robust/kappa", "robust/nmi_clean", "noise/flip"} <= values.keys()
    assert found.eps_curve[0.05].acc is None


def test_progress_rises_to_one():
    model, data = dataset()
    shares = []
    assess(model, data, None, budget(0.05), eps_grid=(0.05,), progress=lambda what, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    ("rates", "want"),
    [
        ({0.1: 0.5, 0.2: 0.9}, 0.1),
        ({0.1: 0.2, 0.2: 0.8}, 0.15),
        ({0.2: 1.0}, 0.1),
        ({0.1: 0.1, 0.2: 0.4}, None),
        ({}, None),
    ],
)
def test_half_flip_eps_is_interpolated(rates, want):
    curve = {eps: CurvePoint(flip=rate, acc=None) for eps, rate in rates.items()}
    found = half_flip_eps(curve)
    assert found == (None if want is None else pytest.approx(want))


def test_a_view_can_be_erased_where_the_ball_covers_its_signal():
    # Over 101 samples each feature goes from 0.25 to 0.75 (1st to 99th percentile: 0.49), whatever its offset.
    ramp = torch.linspace(0, 0.5, 101)[:, None] + torch.tensor([0.25, 0.1, 0.4])
    # The two features differ from each other by 0.8, which tells no sample from another.
    constant = torch.tensor([0.1, 0.9]).expand(101, 2)
    first, second = erasability((ramp, constant), (0.245, 0.1))
    assert first == pytest.approx(1.0, abs=1e-4)
    assert second == float("inf")


def test_erasability_is_right_where_the_mean_sample_misleads():
    stream = torch.Generator().manual_seed(0)
    # Uniform features: the 1st to 99th percentile is 0.98 wide, so ε 0.1 covers 0.2 / 0.98; the mean sample is flat.
    uniform = torch.rand(20_000, 8, generator=stream)
    # Constant offsets with a spread of 0.01 between samples: 2 · 2.326 · 0.01 wide, so ε 0.1 covers it 4.3 times.
    offsets = torch.linspace(0.1, 0.9, 8) + 0.01 * torch.randn(20_000, 8, generator=stream)
    first, second = erasability((uniform, offsets), (0.1, 0.1))
    assert first == pytest.approx(0.2 / 0.98, rel=0.01)
    assert second == pytest.approx(0.2 / 0.04653, rel=0.02)


def test_budgets_have_a_digest_of_their_own():
    assert len({one.digest() for one in (budget(0.1), budget(0.1, attacked_views=(1,)), budget(0.2))}) == 3


def test_views_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"attacked_views must be distinct, each in 0..1, got \(0, 2\)"):
        EvalBudget(attacked_views=(0, 2)).resolve("noisy_digits", 2)
