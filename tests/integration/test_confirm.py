"""A confirmation: which trials, with which seeds, on which part, and what its table says of numbers given here."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_studies import ROOT, run_sweep, study_dict, write_study

from study.confirm import main
from study.database.engine import LedgerError
from study.database.ledger import Ledger
from study.planning.confirmation import finalists
from study.records import TrialRecord
from study.reporting.confirmation import (
    Finalist,
    comparisons,
    confirmation_page,
    finalists_of,
    show_confirmation,
)
from study.spec.study_spec import checked_spec
from trainables.config import TrialConfig
from trainables.data_parts import cached_parts
from trainables.saved_trial import DamagedCheckpoint

SPEC = {"objective": {"metric": "robust/acc", "mode": "max"}}


def trial(number: int, acc: float, *, baseline: bool = False, state: str = "COMPLETE") -> TrialRecord:
    return TrialRecord(
        number=number,
        state=state,  # type: ignore[arg-type]
        values=(acc,) if state == "COMPLETE" else (),
        metrics={"robust/acc": acc},
        overrides={"model.adversarial_weight": float(number)},
        baseline=baseline,
        budget="same",
    )


def test_the_best_searched_trials_come_first_then_every_baseline() -> None:
    records = [
        trial(0, 0.9, baseline=True),
        trial(1, 0.2, baseline=True),
        trial(2, 0.5),
        trial(3, 0.8),
        trial(4, 0.7),
        trial(5, 0.99, state="FAIL"),
    ]
    assert [record.number for record in finalists(SPEC, records, 2)] == [3, 4, 0, 1]
    assert [record.number for record in finalists(SPEC, records, 1, [1])] == [3, 1]
    with pytest.raises(LedgerError, match="--baselines: must be among 0, 1, the study's ranked baselines, got 2, 7"):
        finalists(SPEC, records, 1, [1, 2, 7])


def test_of_trials_that_tie_the_one_to_pick_is_confirmed_first() -> None:
    def judged(number: int, pra: float, *, baseline: bool = False) -> TrialRecord:
        record = trial(number, pra, baseline=baseline)
        weights = {**record.overrides, "model.mitigator_weight": 1.0}
        metrics = {"select/pra": pra, "spread/select/pra": 0.03, "select/utility": 1.0}
        config = {"model": {"name": "ar_dmvc_am"}, "repeats": 2}
        return replace(record, metrics=metrics, overrides=weights, config=config)

    spec = {"objective": {"metric": "select/pra", "mode": "max"}}
    records = [judged(7, 0.8), judged(3, 0.78)]
    assert [record.number for record in finalists(spec, records, 1)] == [3]
    # The report settles ties among all trials, baselines too; so does this: 0.78 is not within 0.03 of 0.82.
    best = judged(0, 0.82, baseline=True)
    assert [record.number for record in finalists(spec, [best, *records], 2)] == [7, 3, 0]


def test_a_study_of_baselines_has_nothing_to_confirm() -> None:
    with pytest.raises(LedgerError, match="no complete searched trial"):
        finalists(SPEC, [trial(0, 0.9, baseline=True)], 3)


def confirmed(tmp_path: Path, number: int, values: list[float]) -> TrialRecord:
    folder = tmp_path / str(number)
    folder.mkdir()
    ones = np.ones(len(values))
    scores = {"robust/acc": np.array(values), "clean/acc": ones, "robust/kappa": -0.1 * ones}
    np.savez(folder / "evaluation.npz", **{f"seeds/{name}": array for name, array in scores.items()})
    return replace(trial(number, float(np.mean(values))), checkpoint=str(folder))


def test_the_table_has_the_interval_the_paired_difference_and_the_shrinkage(tmp_path: Path) -> None:
    chosen = [trial(7, 0.95), trial(8, 0.90), trial(0, 0.5, baseline=True)]
    found = [
        confirmed(tmp_path, 0, [0.8, 0.9, 0.7, 0.8]),
        confirmed(tmp_path, 1, [0.5, 0.6, 0.4, 0.6]),
        confirmed(tmp_path, 2, [0.5, 0.5, 0.5, 0.5]),
    ]
    result = finalists_of(chosen, found)
    assert [one.trial for one in result] == [7, 8, 0]
    # Mean 0.8, s = 0.0816, t(3) = 3.182: q = (3.182 · 0.0816 / 2)² / 0.16 = 0.1055, centre 0.85275 / 1.1055 and half
    # width √(0.1055 · 0.16 + 0.1055² / 4) / 1.1055.
    interval = result[0].means["robust/acc"]
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.645, 0.898), abs=5e-4)
    assert f"{result[0].means['robust/kappa']:.3f}" == "-0.100 [-0.100, -0.100]"
    assert f"{result[0].means['clean/acc']:.3f}" == "1.000 [0.966, 1.000]"
    first, second = comparisons(result)
    assert (first.trial, first.baseline, first.improves) == (7, 0, 1.0)
    assert first.difference.difference.value == pytest.approx(0.3)
    # 0.3 / 0.0408 = 7.35 at 3 degrees of freedom: p = 0.0052, twice that after Holm over two.
    assert first.adjusted_p == pytest.approx(0.0104, abs=3e-4)
    assert second.improves == pytest.approx((2 + 0.5) / 4)
    # A second baseline of the same numbers doubles the family: the smallest p counts four times.
    beside = [one.adjusted_p for one in comparisons([*result, replace(result[2], trial=1)])]
    assert beside == pytest.approx([2 * first.adjusted_p, 1.0] * 2)
    spec = checked_spec("test", {**study_dict(tmp_path), "space": {}, "baselines": [{}], "limits": {"trials": 1}})
    shown = spec.model_copy(update={"trial": {**spec.trial, "repeats": 4, "evaluation": {"tier": "standard"}}})
    text = confirmation_page("name", shown, result, [first, second], uses=["other", "tiny"], searched_trials=16)
    assert "interval over seeds. Trials 7, 8, 0 were confirmed before their samples were stored" in text
    assert "tier `standard`; use 2 of this part. Mean" in text
    assert "| 7 | 7 | 0.800 [0.645, 0.898]" in text
    assert "had 0.950 there and has 0.800 here: +0.150" in text
    assert "about 1.8 standard deviations" in text
    assert "| 0.010 | 100% of the seeds |" in text
    certain = replace(first, adjusted_p=2e-5)
    text = confirmation_page("name", shown, result, [certain], uses=["other", "tiny"], searched_trials=16)
    assert "| < 0.001 | 100% of the seeds |" in text


def test_the_samples_error_is_in_the_intervals_and_in_p(tmp_path: Path) -> None:
    """Three seeds that agree: all doubt is in which samples were drawn."""
    chosen, found = [trial(7, 0.95), trial(0, 0.5, baseline=True)], []
    for number, right in enumerate(([1, 1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])):
        record = confirmed(tmp_path, number, [float(np.mean(right))] * 3)
        with np.load(tmp_path / str(number) / "evaluation.npz") as old:
            arrays = {**old, "samples/robust/acc": np.array([right] * 3, dtype=bool)}
        np.savez(tmp_path / str(number) / "evaluation.npz", **arrays)
        found.append(record)
    result = finalists_of(chosen, found)
    # Half of ten: q = t(9)² / 10 · 10 / 9 = 2.2622² / 9 = 0.5686, half width √(q / 4 + q² / 4) / (1 + q).
    assert f"{result[0].means['robust/acc']:.4f}" == "0.5000 [0.1990, 0.8010]"
    assert f"{result[0].means['clean/acc']:.3f}" == "1.000 [0.966, 1.000]"  # of which no samples were stored
    (one,) = comparisons(result)
    # One sample of ten: mean 0.1, standard error √(0.1 / 10) = 0.1, so t = 1 at 9 degrees of freedom: p = 0.3434.
    assert f"{one.difference.difference:+.4f}" == "+0.1000 [-0.1262, +0.3262]"
    assert (one.sampled, one.difference.p_value) == (True, pytest.approx(0.3434, abs=5e-5))
    spec = checked_spec("test", {**study_dict(tmp_path), "space": {}, "baselines": [{}], "limits": {"trials": 1}})
    shown = spec.model_copy(update={"trial": {**spec.trial, "repeats": 3, "evaluation": {"tier": "standard"}}})
    text = confirmation_page("name", shown, result, [one], uses=["tiny"], searched_trials=16)
    assert "interval over seeds and samples (kappa: over seeds).\n" in text

    old = [result[0], replace(result[1], right=None)]  # one that was confirmed before
    (one,) = comparisons(old)
    assert (one.sampled, one.difference.p_value) == (False, 0.0)
    text = confirmation_page("name", shown, old, [one], uses=["tiny"], searched_trials=16)
    assert "Trials 0 were confirmed before their samples were stored: the sampling error is not in" in text
    folder = tmp_path / "shown"
    show_confirmation("name", shown, chosen, found, uses=["tiny", "later"], folder=str(folder), searched_trials=16)
    facts = json.loads((folder / "confirm.json").read_text())
    assert [entry["samples"] for entry in facts["finalists"]] == [10, 10]
    assert facts["score_uses"] == ["tiny", "later"]
    assert "; use 1 of this part (2 so far). Mean" in (folder / "confirm.md").read_text()
    assert "right" not in facts["finalists"][0]


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18)])
def test_arrays_that_are_damaged_are_named(tmp_path: Path, content: bytes) -> None:
    found = confirmed(tmp_path, 0, [0.5, 0.6])
    (tmp_path / "0" / "evaluation.npz").write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=f"^{tmp_path}/0/evaluation.npz: is damaged: "):
        finalists_of([trial(7, 0.95)], [found])


def test_a_configuration_that_failed_is_left_out(tmp_path: Path) -> None:
    chosen = [trial(7, 0.95), trial(0, 0.5, baseline=True)]
    found = [trial(0, 0.0, state="FAIL"), confirmed(tmp_path, 1, [0.5, 0.6])]
    assert [one.trial for one in finalists_of(chosen, found)] == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "0"], "--top: must be in 1..100, got 0"),
        (["--seeds", "1"], "--seeds: must be in 2..100"),
        (["--baselines", "0,b"], "--baselines: must be trial numbers such as 0,1, got '0,b'"),
        (["--tier", "strong"], "--tier: must be one of probe, tune, standard, plus, got 'strong'"),
        ([], "no study"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["nothing", "--storage", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def confirm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "study.confirm", "tiny", "--storage", str(folder / "runs"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.slow
def test_a_study_is_confirmed_once_with_fresh_seeds_on_the_part_kept_back(tmp_path: Path) -> None:
    study: dict[str, Any] = study_dict(tmp_path)
    study["trial"]["evaluate_every"] = 4
    assert run_sweep(write_study(tmp_path, study), "--trials", "2").returncode == 0
    flags = ("--top", "1", "--seeds", "2", "--tier", "probe")
    done = confirm(tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    assert "; use 1 of this part. Mean and 95 % interval over seeds and samples" in done.stdout
    search = Ledger.open_existing("tiny", storage_path=str(tmp_path / "runs"))
    config = TrialConfig.model_validate(study["trial"])
    part = cached_parts(config.dataset, "strict")["score"].digest
    (name,) = search.score_uses(part)
    records = Ledger.open_existing(name, storage_path=str(tmp_path / "runs")).records()
    assert [record.state for record in records] == ["COMPLETE", "COMPLETE"]
    old = {record.number: record for record in search.records()}
    assert [record.overrides for record in records] == [old[1].overrides, old[0].overrides]
    for record in records:
        assert record.budget.endswith("-score")
        assert (record.config["score_on"], record.config["repeats"]) == ("score", 2)
        assert record.config["seed"] != old[0].config["seed"]
        facts = json.loads(Path(str(record.checkpoint), "config.json").read_text())
        assert "score" in facts["contents"]
    found = json.loads((tmp_path / "runs" / name / "confirm.json").read_text())
    assert [one["trial"] for one in found["finalists"]] == [1, 0]
    for one, record in zip(found["finalists"], records, strict=True):
        assert np.mean(one["seeds"]) == pytest.approx(record.metrics["robust/acc"])
        assert one["samples"] == 20
    assert all(one["sampled"] for one in found["comparisons"])

    again = confirm(tmp_path, *flags, "--once")  # the same confirmation is no new use
    assert again.returncode == 0, again.stderr
    search.note_score_use(part, "somebody else")  # whoever it was, it is a use of the same part
    other = confirm(tmp_path, "--top", "1", "--seeds", "3", "--tier", "probe", "--once")
    assert other.returncode == 2
    assert f"has been used 2 times: {name}, somebody else" in other.stderr
    seen = confirm(tmp_path, *flags)
    assert "; use 1 of this part (2 so far). Mean" in seen.stdout
    elsewhere = confirm(tmp_path, *flags, "--set", "trial.score_on=tune")
    assert (elsewhere.returncode, "ends on the score part" in elsewhere.stderr) == (2, True)


def test_a_finalist_without_the_metric_is_no_winner() -> None:
    lone = Finalist(trial=1, baseline=False, overrides={}, searched=None, means={}, seeds=())
    assert comparisons([lone]) == []
