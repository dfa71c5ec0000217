"""The validation of criteria, on numbers worked out by hand; and a locked study that runs to its end."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_studies import study_dict

from ardmvc_core.data import DatasetConfig
from ardmvc_core.data.locked import trapped
from ardmvc_core.selection.validation import validate_criterion
from study.database.engine import study_url
from study.database.ledger import Ledger
from study.driver.run import run_study
from study.ranking.label_free import NOT_CORRECTNESS
from study.records import TrialRecord
from study.reporting import unblinding as unblind
from study.reporting.unblinding import Truth, criteria, truths, unblinding_page
from study.spec.study_spec import StudySpec, checked_spec
from trainables import data_parts
from trainables.config import TrialConfig
from trainables.trial import Trial

ROBUST = [0.1, 0.4, 0.3, 0.8, 0.6, 0.7]
PRA = [0.15, 0.35, 0.4, 0.75, 0.7, 0.6]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of intervals are tested where they are made."""
    monkeypatch.setattr(unblind, "validate_criterion", partial(validate_criterion, resamples=200))


def record(number: int, pra: float, **metrics: float) -> TrialRecord:
    return TrialRecord(
        number=number,
        state="COMPLETE",
        metrics={"select/pra": pra, "select/feasible": 1.0, "robust/flip": 1 - pra, "robust/kappa": pra, **metrics},
        checkpoint=f"/nowhere/{number}",
    )


def truth(number: int, robust: float) -> Truth:
    return Truth(trial=number, robust_acc=robust, clean_acc=1.0 - robust / 10, clean_loss=robust, silhouette=0.5)


RECORDS = [record(number, pra) for number, pra in enumerate(PRA)]
TRUTHS = [truth(number, robust) for number, robust in enumerate(ROBUST)]


def rows(text: str) -> dict[str, list[str]]:
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {row[0]: row[1:] for row in cells[2:]}


def test_ranks_picks_and_regrets_are_those_of_the_numbers() -> None:
    page = unblinding_page("name", RECORDS, TRUTHS, "use 1 of this part")
    assert NOT_CORRECTNESS in page
    found = rows(page)
    pra = found["PRA (select/pra)"]
    # Ranks of PRA 1 2 3 6 5 4, of the truth 1 3 2 6 4 5: d² = 0 + 1 + 1 + 0 + 1 + 1, ρ = 1 − 6 · 4 / 210.
    assert pra[0].startswith(f"{1 - 24 / 210:+.2f} [")
    # Of the 15 pairs trials 1 and 2, and 4 and 5, are in the wrong order: τ = (13 − 2) / 15.
    assert pra[1].startswith(f"{11 / 15:+.2f} [")
    assert pra[4:] == ["3", "0.800", "0.000", "0.00", "0.000"]
    # The lowest loss is the worst trial here: 0.8 − 0.1, over 0.8 − mean 2.9 / 6.
    loss = found["lowest clean clustering loss"]
    assert loss[0].startswith("-1.00")
    assert loss[4:] == ["0", "0.100", "0.700", "2.21", "0.400"]
    assert found["a random feasible trial (expected)"][5:7] == ["0.483", "0.317"]


def test_what_is_not_feasible_is_not_picked() -> None:
    records = [replace(r, metrics={**r.metrics, "select/feasible": float(r.number != 3)}) for r in RECORDS]
    found = rows(unblinding_page("name", records, TRUTHS, "use 1 of this part"))
    # Without 0.8 a random one of the others has 2.1 / 5: 0.2 / 0.38.
    assert found["PRA (select/pra)"][4:8] == ["4", "0.600", "0.200", "0.53"]
    assert found["robust/kappa"][4:8] == ["4", "0.600", "0.200", "0.53"]
    assert found["a random feasible trial (expected)"][5:7] == ["0.420", "0.380"]


def test_what_each_baseline_would_have_cost_stands_beside_the_rules() -> None:
    records = [replace(r, baseline=r.number == 1) for r in RECORDS]
    found = rows(unblinding_page("name", records, TRUTHS, "use 1 of this part"))
    assert found["baseline, trial 1"][4:7] == ["1", "0.400", "0.400"]
    assert "baseline, trial 0" not in found


def test_a_criterion_that_ranks_badly_is_not_validated() -> None:
    records = [record(number, -pra) for number, pra in enumerate(PRA)]
    assert "PRA is not validated on this data set" in unblinding_page("name", records, TRUTHS, "use 1 of this part")


def test_rules_without_numbers_are_left_out() -> None:
    assert "seed agreement" not in criteria(RECORDS, TRUTHS)
    with_seeds = [replace(r, metrics={**r.metrics, "select/seed_agreement": 0.5}) for r in RECORDS]
    assert "seed agreement" in criteria(with_seeds, TRUTHS)


def test_too_few_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 complete trials, got 3"):
        unblinding_page("name", RECORDS[:3], TRUTHS[:3], "use 1 of this part")


def test_what_was_scored_is_not_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def score(checkpoint: str, number: int, data: str | None) -> dict[str, float]:
        asked.append(number)
        return {"trial": number, "robust_acc": 0.5, "clean_acc": 1.0, "clean_loss": 0.1, "silhouette": 0.2}

    monkeypatch.setattr(unblind, "_score", score)
    said: list[str] = []
    first = truths(RECORDS[:2], str(tmp_path), say=said.append)
    moved = replace(RECORDS[1], checkpoint="/elsewhere/1")
    second = truths([RECORDS[0], moved, RECORDS[2]], str(tmp_path), say=said.append)
    assert asked == [0, 1, 1, 2]  # trial 1 has another model by now
    assert [one.trial for one in first] == [0, 1]
    assert [one.trial for one in second] == [0, 1, 2]
    # A trial of another evaluation budget is not compared; another version of the attacks is another truth.
    third = truths([*RECORDS[:2], replace(RECORDS[3], budget="other")], str(tmp_path), say=said.append)
    assert [one.trial for one in third] == [0, 1]
    monkeypatch.setattr(unblind, "TIERS_VERSION", 0)
    asked.clear()
    truths(RECORDS[:2], str(tmp_path), say=said.append)
    assert asked == [0, 1]


def test_a_use_of_the_score_part_is_counted_with_those_of_others(
    tiny_spec: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec()
    ledger = Ledger.open_or_create(spec, study_url(spec.storage.path), None)
    ledger.note_score_use("part", "other.confirm-1")
    monkeypatch.setattr(unblind, "saved_facts", lambda checkpoint, data: None)
    monkeypatch.setattr(unblind, "load_model", lambda *_, facts: (None, SimpleNamespace(dataset=None)))
    monkeypatch.setattr(unblind, "cached_parts", lambda dataset, protocol: {"score": SimpleNamespace(digest="part")})
    monkeypatch.setattr(unblind, "_score", lambda checkpoint, number, data: asdict(TRUTHS[number]))
    with pytest.raises(ValueError, match="at least 4 complete trials, got 3"):
        unblind.unblind(ledger, RECORDS[:3], str(tmp_path))
    assert ledger.score_uses("part") == ["other.confirm-1"]  # a refusal uses nothing
    monkeypatch.setattr(unblind, "unblinding_page", lambda name, records, found, use: use)  # the real one takes long
    for _ in range(2):
        assert unblind.unblind(ledger, RECORDS, str(tmp_path)) == "use 2 of this part"
    assert ledger.score_uses("part") == ["other.confirm-1", "tiny: study.report --unblind"]


@pytest.mark.parametrize(
    "content", ["{", "[]", "[" * 10**5, '{"a": {}}', '{"0": 3}', '{"0": {"trial": 0}}', '{"0": {"robust_acc": "high"}}']
)
def test_what_was_scored_and_is_damaged_is_named(tmp_path: Path, content: str) -> None:
    facts = {"checkpoint": RECORDS[0].checkpoint, "tier": f"{unblind.TRUTH_TIER}, version {unblind.TIERS_VERSION}"}
    if content.startswith('{"0": {'):
        content = json.dumps({"0": {**facts, **json.loads(content)["0"]}})
    (tmp_path / "unblinded.json").write_text(content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/unblinded.json: is damaged") as error:
        truths(RECORDS[:1], str(tmp_path), say=lambda text: None)
    assert len(str(error.value).encode()) <= 2048


def test_a_trial_is_scored_on_the_part_that_it_has_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unblind, "TRUTH_TIER", "probe")  # the real one takes minutes
    trial = study_dict(tmp_path)["trial"]
    trial |= {"evaluate_every": 4, "evaluation": {"tier": "probe", "samples": 20}}
    config = TrialConfig.model_validate({**trial, "seed": 3})
    done = Trial(config)
    done.run_round()
    folder = tmp_path / "saved"
    folder.mkdir()
    done.save(folder)
    (found,) = truths([replace(RECORDS[0], checkpoint=str(folder))], str(tmp_path), say=lambda text: None)
    assert 0 <= found.robust_acc <= found.clean_acc <= 1
    # The map is fitted on the score part's own classes: with them removed there is no accuracy to report.
    parts = data_parts.cached_parts(config.dataset, "strict")
    data_parts._kept[(config.dataset, "strict")] = data_parts.without_labels(parts)
    with pytest.raises(KeyError, match="robust/acc"):
        truths([replace(RECORDS[1], checkpoint=str(folder))], str(tmp_path / "other"), say=lambda text: None)
    data_parts.forget_parts()


@pytest.mark.slow
def test_a_study_whose_labels_raise_on_every_use_runs_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_dict(tmp_path, name="blind", objective={"metric": "select/pra", "mode": "max"})
    study["trial"] |= {
        "evaluate_every": 4,
        "evaluation": {"tier": "probe", "samples": 20},
        "selection": {"reference_runs": 3, "lock_labels": True},
    }
    study["limits"]["trials"] = 2
    spec = checked_spec("blind", study)
    read = data_parts.load_parts
    holders = []

    def trap(config: DatasetConfig, protocol: str):
        found = {}
        for name, part in read(config, protocol).items():  # type: ignore[arg-type]
            data, holder = trapped(part.data)
            holders.append(holder)
            found[name] = replace(part, data=data)
        return found

    # The driver reads the data and hands them to the workers, so the trap is where labels would start from.
    monkeypatch.setattr(data_parts, "load_parts", trap)
    data_parts.forget_parts()
    assert run_study(spec) == 0
    data_parts.forget_parts()
    assert len(holders) >= 4
    assert not any(holder.tried or holder.read for holder in holders)
    records = Ledger.open_existing("blind", storage_path=str(tmp_path / "runs")).records()
    assert [r.state for r in records] == ["COMPLETE", "COMPLETE"]
    for r in records:
        assert "select/pra" in r.metrics
        assert not [name for name in r.metrics if name.endswith("/acc")]
        assert "labels" not in np.load(Path(str(r.checkpoint)) / "evaluation.npz").files
    stored = json.loads((Path(str(records[0].checkpoint)) / "config.json").read_text())
    assert stored["reference"]
    assert "plain models vote" in capsys.readouterr().err
