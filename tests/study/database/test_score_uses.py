"""Uses of a score part: one count for each part in a database, whoever used it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from tiny_studies import study_dict

from study.database.backup import back_up, restore
from study.database.engine import study_url
from study.database.ledger import Ledger
from study.planning.preflight import data_facts, score_parts
from study.spec.study_spec import StudySpec, checked_spec

SpecMaker = Callable[..., StudySpec]

PART, OTHER = "a" * 64, "b" * 64


def open_ledger(spec: StudySpec) -> Ledger:
    return Ledger.open_or_create(spec, study_url(spec.storage.path), None)


def test_studies_of_one_part_share_its_count(tiny_spec: SpecMaker) -> None:
    first, second = open_ledger(tiny_spec(name="first")), open_ledger(tiny_spec(name="second"))
    assert first.score_uses(PART) == []
    assert "ardmvc_score_uses" not in sa.inspect(first.engine).get_table_names()  # who only looks makes nothing
    first.note_score_use(PART, "first.confirm-1")
    second.note_score_use(PART, "second: study.report --unblind")
    second.note_score_use(OTHER, "second.confirm-2")
    first.note_score_use(PART, "first.confirm-1")  # goes on
    for ledger in (first, second):
        assert ledger.score_uses(PART) == ["first.confirm-1", "second: study.report --unblind"]
        assert ledger.score_uses(OTHER) == ["second.confirm-2"]


def test_uses_that_an_earlier_version_noted_count_for_their_study(tiny_spec: SpecMaker) -> None:
    ledger = open_ledger(tiny_spec())
    ledger._study.set_user_attr("score_uses", ["tiny.confirm-1"])
    ledger.note_score_use(PART, "tiny.confirm-2")
    ledger.note_score_use(PART, "tiny.confirm-1")
    assert ledger.score_uses(PART) == ["tiny.confirm-1", "tiny.confirm-2"]


def test_a_backup_brings_the_uses_along(tiny_spec: SpecMaker, tmp_path: Path) -> None:
    ledger = open_ledger(tiny_spec())
    ledger.note_score_use(PART, "study.evaluate /a/model")
    back_up(ledger, tmp_path / "backup.db")
    there = str(tmp_path / "there")
    restore(tmp_path / "backup.db", "tiny", there)
    assert Ledger.open_existing("tiny", storage_path=there).score_uses(PART) == ["study.evaluate /a/model"]


@pytest.mark.parametrize(
    ("settings", "counted"),
    [({}, False), ({"score_on": "score"}, True), ({"score_on": "score", "protocol": "official"}, False)],
)
def test_a_study_whose_trials_end_on_the_score_part_uses_it(tmp_path: Path, settings: dict, counted: bool) -> None:
    study = study_dict(tmp_path)
    study["trial"] |= settings
    if settings.get("protocol") == "official":
        study["objective"]["metric"] = "official/post/acc"
    spec = checked_spec("test", study)
    facts = data_facts(spec.trial_config({}).dataset, "strict")  # type: ignore[union-attr]
    assert score_parts(spec) == [facts.digests["score"]] * counted
    assert len({*facts.digests.values()}) == len(facts.digests)
    fewer = replace(spec.trial_config({}).dataset, samples=100)  # type: ignore[union-attr]
    assert data_facts(fewer, "strict").digests["score"] != facts.digests["score"]
