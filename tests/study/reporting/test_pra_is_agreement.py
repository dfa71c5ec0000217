"""Wherever PRA is shown, one sentence says what it is not; the summary and the unblinding have tests of their own."""

from pathlib import Path

import pytest
from tiny_studies import study_dict

from study.planning.dry_run import dry_run
from study.ranking.label_free import NOT_CORRECTNESS
from study.records import TrialRecord
from study.report import parser
from study.reporting.confirmation import show_confirmation
from study.spec.study_spec import StudySpec, checked_spec


def spec(folder: Path, metric: str) -> StudySpec:
    study = study_dict(folder, objective={"metric": metric, "mode": "max"})
    study["trial"] |= {"selection": {"reference_runs": 2}, "repeats": 2}
    return checked_spec("tiny", study)


def unwrapped(text: str) -> str:
    """Without what wrapping adds, which may be within a word with a hyphen."""
    return "".join(text.replace("\n# ", "").split())


@pytest.mark.parametrize(("metric", "shown"), [("select/pra", True), ("robust/acc", False)])
def test_a_dry_run_says_it_where_trials_are_to_be_chosen_so(tmp_path: Path, metric: str, shown: bool) -> None:
    assert (unwrapped(NOT_CORRECTNESS) in unwrapped(dry_run(spec(tmp_path, metric), as_json=False))) == shown


def test_the_help_says_it() -> None:
    assert unwrapped(NOT_CORRECTNESS) in unwrapped(parser().format_help())


@pytest.mark.parametrize(("metric", "shown"), [("select/pra", True), ("robust/acc", False)])
def test_a_confirmation_of_what_was_chosen_so_says_it(tmp_path: Path, metric: str, shown: bool) -> None:
    chosen = [TrialRecord(number=0, state="COMPLETE", values=(0.9,), metrics={metric: 0.9})]
    about = {"uses": ["tiny"], "searched_trials": 1, "folder": str(tmp_path)}
    text = show_confirmation("name", spec(tmp_path, metric), chosen, [], **about)
    assert (NOT_CORRECTNESS in text) == shown
    assert (tmp_path / "confirm.md").read_text() == f"{text}\n"
