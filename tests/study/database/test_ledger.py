"""The database as the only truth: states, identity of a study, the lease."""

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from study.database.engine import LedgerError, open_storage, study_url
from study.database.identity import data_differences, extends, list_differences
from study.database.ledger import Ledger
from study.planning.optuna_side import make_pruner
from study.spec.study_spec import StudySpec

SpecMaker = Callable[..., StudySpec]


def open_ledger(spec: StudySpec) -> Ledger:
    pruner = make_pruner(spec.pruner_options(), 4)
    return Ledger.open_or_create(spec, study_url(Path(spec.storage.path)), pruner)


def add(ledger: Ledger, **changes: object) -> int:
    facts: dict = {"overrides": {"model.train_eps": 0.1}, "config": {"epochs": 4}, "rounds": 4, "baseline": False}
    return ledger.add(**{**facts, "params": {}, "distributions": {}, **changes})


def test_numbers_count_up_and_survive_reopening(tiny_spec: SpecMaker) -> None:
    ledger = open_ledger(tiny_spec())
    assert [add(ledger), add(ledger)] == [0, 1]
    again = Ledger.open_existing("tiny", study_url(Path(tiny_spec().storage.path)))
    assert [record.number for record in again.records()] == [0, 1]
    assert again.records()[1].overrides == {"model.train_eps": 0.1}
    assert again.records()[1].state == "RUNNING"


def test_finish_is_idempotent_and_keeps_the_first_state(tiny_spec: SpecMaker) -> None:
    ledger = open_ledger(tiny_spec())
    number = add(ledger)
    ledger.progress(number, {"round": 1, "time": 5, "metrics": {"probe/acc": 0.2}, "checkpoint": "/b", "seconds": 1.0})
    ledger.progress(number, {"round": 4, "time": 9, "metrics": {"robust/acc": 0.5}, "checkpoint": "/c", "seconds": 2.0})
    ledger.finish(number, TrialState.COMPLETE, [0.5])
    ledger.finish(number, TrialState.FAIL, (), "too late")
    record = ledger.record(number)
    assert (record.state, record.values, record.failure) == ("COMPLETE", (0.5,), None)
    assert (record.round, record.metrics, record.checkpoint, record.seconds) == (4, {"robust/acc": 0.5}, "/c", 2.0)
    assert record.history == ((1, 5, {"probe/acc": 0.2}), (4, 9, {"robust/acc": 0.5}))


def test_a_trial_that_started_anew_is_where_it_is_now(tiny_spec: SpecMaker) -> None:
    """Its checkpoints were lost: rounds of the run before count no more, until they are done again."""
    ledger = open_ledger(tiny_spec())
    number = add(ledger)
    facts = {"metrics": {}, "seconds": 1.0}
    for round_ in (1, 2, 3):
        ledger.progress(number, {"round": round_, "time": round_, "checkpoint": f"/old/{round_}", **facts})
    assert (ledger.record(number).checkpoint, ledger.record(number).fallbacks) == ("/old/3", ("/old/2", "/old/1"))
    for round_ in (1, 2):
        ledger.progress(number, {"round": round_, "time": 9, "checkpoint": f"/new/{round_}", **facts})
    record = Ledger.open_existing("tiny", study_url(Path(tiny_spec().storage.path))).record(number)
    assert (record.round, record.checkpoint, record.fallbacks) == (2, "/new/2", ("/new/1",))
    assert [round_ for round_, _, _ in record.history] == [1, 2]


def test_failed_trial_keeps_its_reason(tiny_spec: SpecMaker) -> None:
    ledger = open_ledger(tiny_spec())
    ledger.finish(add(ledger), TrialState.FAIL, (), "loss ddc1 is nan in stage train, epoch 2")
    assert ledger.record(0).state == "FAIL"
    assert ledger.record(0).failure == "loss ddc1 is nan in stage train, epoch 2"


def test_pruned_trial_has_the_value_of_its_last_reported_round(tiny_spec: SpecMaker) -> None:
    ledger = open_ledger(tiny_spec())
    number = add(ledger)
    ledger.report(number, 1, 0.3)
    ledger.report(number, 2, 0.4)
    ledger.report(number, 2, 0.9)  # a repeated round after a restart changes nothing
    ledger.finish(number, TrialState.PRUNED)
    assert ledger.record(number).state == "PRUNED"
    assert ledger.record(number).values == (0.4,)


def test_interrupted_trial_waits_and_runs_again_under_its_number(tiny_spec: SpecMaker) -> None:
    ledger = open_ledger(tiny_spec())
    number = add(ledger)
    ledger.interrupt(number)
    assert ledger.record(number).state == "WAITING"
    ledger.resume(number)
    assert ledger.record(number).state == "RUNNING"
    ledger.interrupt(number)
    ledger.finish(number, TrialState.COMPLETE, [0.1])
    assert ledger.record(number).state == "COMPLETE"


def test_another_space_under_the_same_name_is_refused_with_the_difference(tiny_spec: SpecMaker) -> None:
    open_ledger(tiny_spec())
    other = tiny_spec(space={"model.train_eps": {"uniform": [0.02, 0.5]}})
    with pytest.raises(LedgerError) as caught:
        open_ledger(other)
    message = str(caught.value)
    assert "space.model.adversarial_weight" in message
    assert "[0.02, 0.3] → [0.02, 0.5]" in message
    assert "--set name=" in message
    assert "--from tiny" in message


def test_a_study_from_before_a_setting_existed_goes_on_with_its_default(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec()
    ledger = open_ledger(spec)
    old = json.loads(json.dumps(spec.identity()))
    del old["trial"]["model"]["mute_dead_units"], old["trial"]["evaluation"]["further_attacks"]
    ledger._study.set_user_attr("identity", old)
    assert open_ledger(spec).uid == ledger.uid
    with pytest.raises(LedgerError, match=r"trial\.model\.mute_dead_units: true → false"):
        open_ledger(tiny_spec(trial={**spec.trial, "model": {**spec.trial["model"], "mute_dead_units": False}}))
    # A setting that exists no more cannot be filled in, and is named.
    ledger._study.set_user_attr("identity", {**old, "trial": {**old["trial"], "gone": 1}})
    with pytest.raises(LedgerError, match=r"trial\.gone: 1 → null"):
        open_ledger(spec)


def test_other_limits_and_sampler_are_the_same_study(tiny_spec: SpecMaker) -> None:
    add(open_ledger(tiny_spec()))
    longer = tiny_spec(limits={"trials": 30}, sampler={"name": "tpe"})
    again = open_ledger(longer)
    assert len(again.records()) == 1
    assert again.spec["limits"]["trials"] == 3  # only the holder of the lease says what the study is run with
    again.adopt(longer)
    assert again.spec["limits"]["trials"] == 30


def test_unknown_study_names_the_known_ones(tiny_spec: SpecMaker) -> None:
    open_ledger(tiny_spec())
    with pytest.raises(LedgerError, match="no study 'tinny'; known: tiny"):
        Ledger.open_existing("tinny", study_url(Path(tiny_spec().storage.path)))


def test_missing_database_is_said_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no study database at"):
        Ledger.open_existing("tiny", None, str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg2://me:s3cret@127.0.0.1:1/studies", "mysql://me:s3cret@127.0.0.1:1/studies", "no url:s3cret@"],
)
def test_unreachable_database_is_named_without_its_password(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        open_storage(url, create=True)
    assert "s3cret" not in str(caught.value)
    assert "database" in str(caught.value)


def test_multi_objective_study_keeps_both_values(tiny_spec: SpecMaker) -> None:
    both = [{"metric": "clean/acc", "mode": "max"}, {"metric": "robust/flip", "mode": "min"}]
    ledger = open_ledger(tiny_spec(objective=both))
    ledger.finish(add(ledger), TrialState.COMPLETE, [0.9, 0.2])
    assert ledger.record(0).values == (0.9, 0.2)
    directions = ledger._study.directions
    assert directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]


def test_list_differences_names_paths() -> None:
    assert list_differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == ["a.c: 2 → 3", "d: null → 4"]
    assert list_differences({"a": [1]}, {"a": [1]}) == []


LIST = {"name": "table", "space": {}, "baselines": [{"a": 1}, {"a": 2}], "trial": {"seed": 1}}


@pytest.mark.parametrize(
    ("change", "created", "allowed"),
    [
        ({"baselines": [{"a": 1}, {"a": 2}, {"a": 3}]}, 2, True),
        ({}, 2, True),
        ({"baselines": [{"a": 1}]}, 1, True),
        ({"baselines": [{"a": 1}, {"a": 9}]}, 1, True),
        ({"baselines": [{"a": 1}]}, 2, False),
        ({"baselines": [{"a": 2}, {"a": 1}, {"a": 3}]}, 1, False),
        ({"baselines": [{"a": 1}, {"a": 2}, {"a": 3}], "trial": {"seed": 2}}, 2, False),
        ({"baselines": [{"a": 1}, {"a": 2}, {"a": 3}], "space": {"a": {"uniform": [0, 1]}}}, 2, False),
    ],
)
def test_a_list_of_trials_may_change_behind_those_that_exist(change: dict, created: int, allowed: bool) -> None:
    assert extends(LIST, {**LIST, **change}, created) is allowed


DATA = {"trial": {"strict": "a"}, "baselines[1]": {"strict": "b", "official": "c"}}


@pytest.mark.parametrize(
    ("change", "created", "lines"),
    [
        ({}, 2, []),
        ({"trial": {"strict": "x"}}, 0, ['data.trial.strict: "a" → "x"']),
        ({"baselines[1]": {"strict": "x"}}, 2, ['data.baselines[1].strict: "b" → "x"']),
        ({"baselines[1]": {"strict": "x"}}, 1, []),  # it has not run
        ({"baselines[1]": {"strict": "b"}, "baselines[0]": {"strict": "x"}}, 2, []),  # not known before
    ],
)
def test_data_that_trials_have_run_on_must_be_the_same(change: dict, created: int, lines: list[str]) -> None:
    assert data_differences(DATA, {**DATA, **change}, created) == lines


@pytest.mark.parametrize("name", ["a{b}c", "{0}", "{SCHEMA_VERSION}", "{", "100% 'sure'"])
def test_a_database_may_lie_in_any_folder(tmp_path: Path, name: str) -> None:
    """Optuna takes braces in an address for places that it fills."""
    open_storage(f"sqlite:///{tmp_path / name}/studies.db", create=True)
    assert (tmp_path / name / "studies.db").stat().st_size > 0
