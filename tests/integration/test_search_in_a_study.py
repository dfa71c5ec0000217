"""A search with rungs and further seeds, run by the real driver: what it leaves, and how it goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_studies import run_sweep, study_dict, write_study

from study.control import main as control
from study.database.engine import study_url
from study.database.ledger import Ledger
from study.driver.round_costs import RoundCosts
from study.planning.cost import passes_of
from study.report import main as report
from study.spec.study_spec import StudySpec

MOST = 2


def search_study(folder: Path, **limits: Any) -> dict[str, Any]:
    study = study_dict(folder, search={"cohort": 4}, limits={"trials": 8, "failures": 0, "concurrent": 2, **limits})
    study["trial"]["repeats"] = {"first": 1, "most": MOST}
    return study


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A search that first has passes for its first cohort only; then a point is asked for, and the limit is raised."""
    folder = tmp_path_factory.mktemp("search")
    study = search_study(folder)
    costs = RoundCosts(StudySpec.model_validate(study))
    each, baseline = costs(None), costs.of(study["baselines"][0])
    # A whole seed of the baseline, three trials to the first rung, two to the second; what the best of these would take
    # to its end is one pass too much.
    used = passes_of(baseline[:4]) + 3 * passes_of(each[:1]) + 2 * passes_of(each[1:2])
    limit = used + passes_of(each[2:4]) - 1
    file = write_study(folder, search_study(folder, passes=limit))
    first = run_sweep(file)
    assert first.returncode == 0, first.stderr
    assert "has no room for the other 4 trials" in first.stdout
    storage = ["--storage", str(folder / "runs")]
    before = Ledger.open_existing("tiny", study_url(folder / "runs")).records()
    point = ["model.train_eps=0.123", "model.adversarial_weight=0.5"]
    asked = control(["tiny", "enqueue", *point, *storage])
    file.write_text(yaml.safe_dump(search_study(folder)))
    second = run_sweep(file)
    assert second.returncode == 0, second.stderr
    return {"folder": folder, "used": used, "before": before, "asked": asked, "storage": storage}


def test_passes_are_used_and_never_exceeded(ran: dict[str, Any]) -> None:
    costs = RoundCosts(StudySpec.model_validate(search_study(ran["folder"])))
    assert sum(passes_of(costs(record)[: record.round]) for record in ran["before"]) == ran["used"]
    assert all(record.finished for record in ran["before"])


def test_the_point_that_was_asked_for_is_the_next_trial(ran: dict[str, Any]) -> None:
    assert ran["asked"] == 0
    records = Ledger.open_existing("tiny", study_url(ran["folder"] / "runs")).records()
    assert len(records) == 8
    asked = records[len(ran["before"])].overrides
    assert asked == {"model.adversarial_weight": 0.5, "model.train_eps": 0.123}
    assert sum(record.overrides == asked for record in records) == 1


def test_what_is_trained_to_the_end_is_complete_and_the_rest_pruned(ran: dict[str, Any]) -> None:
    records = Ledger.open_existing("tiny", study_url(ran["folder"] / "runs")).records()
    for record in records:
        assert record.state == ("COMPLETE" if record.round >= record.leg else "PRUNED")
        assert record.round < record.leg or record.round % record.leg == 0, record
    assert max(record.seeds for record in records if record.state == "COMPLETE") == MOST
    best = max((record for record in records if record.seeds == MOST), key=lambda record: record.metrics["robust/acc"])
    assert best.metrics["spread/robust/acc"] >= 0


def test_the_report_says_why(ran: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert report(["tiny", "--explain", *ran["storage"]]) == 0
    text = capsys.readouterr().out
    assert "step 1: cohort 1 begins, trials 0 to 3" in text
    assert "go on from round 1 of 4, baselines aside" in text
    assert report(["tiny", "--format", "json", *ran["storage"]]) == 0
    trials = json.loads(capsys.readouterr().out)["trials"]
    assert [trial["state"] for trial in trials if trial["rank"] is not None].count("COMPLETE") >= 2


def test_a_point_that_no_trial_is_left_for_is_refused(ran: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert control(["tiny", "enqueue", "model.train_eps=0.2", *ran["storage"]]) == 2
    assert "has begun 8 of its 8 trials: raise limits.trials first" in capsys.readouterr().err
