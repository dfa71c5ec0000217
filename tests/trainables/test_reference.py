"""Scores without labels in a trial: against a vote worked out here, and on data whose labels raise when used."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from ardmvc_core.data.dataset import Part
from ardmvc_core.data.locked import LabelsLocked, Unblinding, trapped
from ardmvc_core.selection.reference_partition import REFERENCE_VERSION, OldReference, ReferencePartition
from trainables import data_parts
from trainables.config import SelectionConfig, TrialConfig
from trainables.reference import plain_config, provide_reference, reference_file, reference_from
from trainables.trial import Trial

TINY = {"samples": 40, "probe_samples": 20, "tier": "probe"}


def config(**changes: Any) -> TrialConfig:
    base: dict[str, Any] = {
        "seed": 3,
        "dataset": {"name": "noisy_digits", "classes": [0, 1, 2], "samples": 200},
        "model": {"name": "ar_dmvc_am", "train_steps": 1, "train_step_ratio": 1.0},
        "epochs": 6,
        "batch_size": 25,
        "evaluate_every": 6,
        "evaluation": TINY,
        "selection": {"reference_runs": 4},
    }
    return TrialConfig.model_validate({**base, **changes})


@pytest.fixture(autouse=True)
def _own_reference():
    yield
    provide_reference(None)
    data_parts.forget_parts()


def vote(clusters: np.ndarray) -> ReferencePartition:
    return ReferencePartition(
        clusters=clusters,
        weights=np.ones(len(clusters)),
        agreement=1.0,
        reliable=True,
        kept=(0, 1),
        entropy=1.0,
        largest_share=float(np.bincount(clusters).max() / len(clusters)),
    )


def test_utility_and_pra_are_those_of_the_formula() -> None:
    settings = config()
    tune = data_parts.cached_parts(settings.dataset, "strict")["tune"].data
    assert tune.labels is not None
    classes = tune.labels.numpy()
    provide_reference(lambda: vote(classes))
    trial = Trial(settings)
    report = trial.run_round()
    arrays = trial._arrays
    clusters, flipped = arrays["clusters/clean"], arrays["robust/flipped"]
    known = classes[: len(clusters)]
    counts = np.zeros((3, 3))
    np.add.at(counts, (clusters, known), 1)
    rows, columns = linear_sum_assignment(-counts)
    right = dict(zip(rows, columns, strict=True))
    placed = np.array([right[c] == t for c, t in zip(clusters, known, strict=True)])
    assert report["select/utility"] == pytest.approx(placed.mean())
    assert report["select/pra"] == pytest.approx((placed & ~flipped).mean())
    assert report["select/reliable"] == 1.0
    # With the true classes as reference it is the robust accuracy itself.
    assert report["select/pra"] == pytest.approx(report["robust/acc"])
    # Budget, scored samples, reference.
    assert report["budget"].count("-") == 2


def test_two_seeds_have_a_spread_and_the_checkpoint_remembers_the_plain_models(tmp_path: Path) -> None:
    settings = config(repeats=2)
    tune = data_parts.cached_parts(settings.dataset, "strict")["tune"].data
    assert tune.labels is not None
    classes = tune.labels.numpy()
    provide_reference(lambda: replace(vote(classes), entropy=0.75))
    trial = Trial(settings)
    report = trial.run_round()
    first, second = trial._arrays["seeds/select/pra"]
    assert report["spread/select/pra"] == pytest.approx(abs(first - second) / math.sqrt(2))
    trial.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["reference_entropy"] == 0.75


def test_a_reference_survives_its_file_and_tells_plain_models_from_the_defence() -> None:
    settings = config()
    plain = plain_config(settings)
    assert (plain.model.adversarial_weight, plain.model.mitigator_weight) == (0, 0)
    stored = reference_file(settings.model_dump_json(), 1)
    reference = reference_from(stored)
    assert reference_from(stored).digest() == reference.digest()
    again = reference_from(
        reference_file(config(model={**settings.model_dump()["model"], "mitigator_weight": 3}).model_dump_json(), 1)
    )
    assert again.digest() == reference.digest()
    tune = data_parts.cached_parts(settings.dataset, "strict")["tune"].data
    assert len(reference.clusters) == len(tune)


def nuisance(file: Path) -> None:
    """Two views of three classes, and in both a stronger partition into three that is independent of the classes."""
    draw = np.random.default_rng(0)
    labels, other = draw.permutation(np.arange(600) % 3), draw.permutation(np.arange(600) % 3)
    views = []
    for width in (20, 30):
        strong, weak = draw.choice([-0.25, 0.25], (3, width)), draw.choice([-0.125, 0.125], (3, width))
        noise = 0.1 * draw.standard_normal((600, width))
        views.append(np.clip(0.5 + strong[other] + weak[labels] + noise, 0, 1))
    np.savez(file, view_0=views[0], view_1=views[1], labels=labels)


def test_a_strong_partition_that_is_not_the_classes_is_flagged(tmp_path: Path) -> None:
    """PRA 1 and robust ACC 0.38: every method finds the stronger partition, and only what it leaves tells."""
    nuisance(tmp_path / "views.npz")
    trial = Trial(
        config(
            dataset={"name": "npz", "path": str(tmp_path / "views.npz")},
            evaluation={**TINY, "eps": 0.001, "samples": 100},
            epochs=10,
            evaluate_every=10,
        )
    )
    report = trial.run_round()
    assert report["select/pra"] > 0.9
    assert report["robust/acc"] < 0.5
    assert trial.reference is not None
    assert trial.reference.agreement > 0.9
    assert (report["select/second_partition"], report["select/reliable"]) == (1.0, 0.0)
    assert any("second stable partition" in warning for warning in json.loads(report["warnings"]))


def test_voters_of_other_families_do_not_object_to_the_only_partition() -> None:
    settings = config()
    reference = reference_from(reference_file(settings.model_dump_json(), 1))
    assert not reference.second_partition
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{**reference.to_arrays(), "version": np.array(1)})
    with pytest.raises(OldReference, match=r"^reference.npz: is a reference partition of version 1"):
        reference_from(file.getvalue())


def test_a_damaged_reference_is_refused_and_never_read_as_another() -> None:
    buffer = io.BytesIO()
    whole = vote(np.arange(50) % 3)
    np.savez_compressed(buffer, allow_pickle=False, **whole.to_arrays())
    stored = buffer.getvalue()
    damaged = [stored[:size] for size in range(0, len(stored), 7)]
    damaged += [stored[:i] + bytes([stored[i] ^ 1 << i % 8]) + stored[i + 1 :] for i in range(0, len(stored), 3)]
    for content in (*damaged, b"<html>404</html>", b"\x93NUMPY\x01\x00"):
        try:
            found = reference_from(content)
        except ValueError:
            continue
        assert found.digest() == whole.digest()  # a bit that says nothing, such as one of a time
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, clusters=whole.clusters, version=np.array(REFERENCE_VERSION))
    with pytest.raises(ValueError, match="weights"):
        reference_from(buffer.getvalue())


def trap(parts: dict[str, Part]) -> tuple[dict[str, Part], list[Unblinding]]:
    holders, found = [], {}
    for name, part in parts.items():
        data, holder = trapped(part.data)
        holders.append(holder)
        found[name] = replace(part, data=data)
    return found, holders


def test_a_locked_trial_and_its_reference_never_touch_labels(tmp_path: Path) -> None:
    settings = config(selection={"reference_runs": 4, "lock_labels": True})
    parts, holders = trap(data_parts.cached_parts(settings.dataset, "strict"))
    data_parts._kept[(settings.dataset, "strict")] = parts
    trial = Trial(settings)
    report = trial.run_round()
    trial.save(tmp_path)
    assert report["done"]
    assert not any(holder.tried or holder.read for holder in holders)
    assert not [name for name in report if name.endswith(("/acc", "/acc_refit"))]
    assert {"select/pra", "select/utility", "robust/flip", "robust/kappa"} <= report.keys()
    assert "labels" not in np.load(tmp_path / "evaluation.npz").files
    # The same trial with labels finds the same, so nothing above depended on them.
    data_parts.forget_parts()
    open_report = Trial(config()).run_round()
    assert open_report["select/pra"] == report["select/pra"]
    assert open_report["robust/flip"] == report["robust/flip"]


def test_a_trial_without_the_lock_does_touch_them() -> None:
    """The trap works: without it the test above would prove nothing."""
    settings = config(selection=None)
    parts, _ = trap(data_parts.cached_parts(settings.dataset, "strict"))
    data_parts._kept[(settings.dataset, "strict")] = parts
    with pytest.raises(LabelsLocked):
        Trial(settings).run_round()


def test_seeds_agree_with_themselves_and_their_values_are_kept(tmp_path: Path) -> None:
    tune = data_parts.cached_parts(config().dataset, "strict")["tune"].data
    assert tune.labels is not None
    provide_reference(lambda: vote(tune.labels.numpy()))
    trial = Trial(config(repeats=2))
    report = trial.run_round()
    trial.save(tmp_path)
    arrays = np.load(tmp_path / "evaluation.npz")
    seeds = arrays["seeds/robust/acc"]
    assert seeds.shape == (2,)
    assert seeds.mean() == pytest.approx(report["robust/acc"])
    for metric in ("clean/acc", "robust/acc", "robust/flip"):
        assert arrays[f"samples/{metric}"].shape == (2, len(arrays["robust/flipped"]))
        assert arrays[f"samples/{metric}"].mean(axis=1) == pytest.approx(arrays[f"seeds/{metric}"])
    assert (arrays["samples/robust/flip"][0] == arrays["robust/flipped"]).all()
    assert 0 <= report["select/seed_agreement"] <= 1
    assert json.loads((tmp_path / "config.json").read_text())["reference"] == vote(tune.labels.numpy()).digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "official"}, "selection needs the tuning part"),
        ({"score_on": "score"}, "selection must be made on the tuning part"),
        ({"protocol": "both", "selection": {"lock_labels": True}}, "lock_labels needs protocol strict"),
        ({"selection": {"reference_runs": 1}}, r"reference_runs must be in \[2, 1000\], got 1"),
        ({"evaluation": {"tier": "strong"}}, "'probe', 'tune', 'standard' or 'plus'"),
        ({"evaluation": {"tier": None}}, "'probe', 'tune', 'standard' or 'plus'"),
    ],
)
def test_what_cannot_be_selected_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_the_score_part_is_another_ruler() -> None:
    settings = config(selection=None)
    tune, score = Trial(settings).run_round(), Trial(settings.model_copy(update={"score_on": "score"})).run_round()
    budget, samples = tune["budget"].split("-")
    assert score["budget"].split("-")[::2] == [budget, "score"]
    assert score["budget"].split("-")[1] != samples


def test_trials_on_other_samples_have_another_ruler() -> None:
    settings = config(selection=None)
    other = replace(settings.dataset, shuffle_seed=99)
    assert Trial(settings).ruler == Trial(settings).ruler
    assert Trial(settings).ruler != Trial(settings.model_copy(update={"dataset": other})).ruler


def test_selection_has_defaults() -> None:
    assert SelectionConfig() == SelectionConfig(reference_runs=6, lock_labels=False)
