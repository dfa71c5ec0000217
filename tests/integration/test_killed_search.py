"""A search with rungs and further seeds under ten kills: the same trials, the same steps, the same winner."""

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from killing import records_of, rounds_done, wait_for
from tiny_studies import ROOT, run_sweep, study_dict, sweep_command, write_study

from study.database.engine import study_url
from study.database.ledger import Ledger
from study.ranking.ranking import best
from study.records import Goal, TrialRecord

pytestmark = pytest.mark.slow

KILLS = 10
LIMITS = {"trials": 8, "failures": 0, "concurrent": 2}


def search_study(folder: Path) -> dict[str, Any]:
    study = study_dict(folder, limits=LIMITS, search={"cohort": 4})
    study["trial"]["repeats"] = {"first": 1, "most": 3}
    del study["sampler"]  # the Gaussian process, which draws the second cohort from what the first has shown
    return study


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same search twice: in one go, and killed ten times at random moments."""
    calm, rough = tmp_path_factory.mktemp("calm"), tmp_path_factory.mktemp("rough")
    done = run_sweep(write_study(calm, search_study(calm)))
    assert done.returncode == 0, done.stderr
    whole = rounds_done(calm / "runs")
    file, runs = write_study(rough, search_study(rough)), rough / "runs"
    moments, kills, log = random.Random(20261130), 0, rough / "log"
    while kills < KILLS:
        goal = min(rounds_done(runs) + moments.randint(1, max(1, 2 * whole // KILLS - 1)), whole - 1)
        with log.open("w") as kept:
            process = subprocess.Popen(
                sweep_command(file), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=kept, start_new_session=True
            )
        if not wait_for(lambda goal=goal: rounds_done(runs) >= goal, process):
            assert process.returncode == 0, log.read_text()
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    final = run_sweep(file)
    return {"calm": calm / "runs", "rough": runs, "kills": kills, "final": final}


def scores(record: TrialRecord) -> dict[str, float]:
    return {name: value for name, value in record.metrics.items() if not name.startswith("time/")}


def test_it_was_killed_ten_times(ran: dict[str, Any]) -> None:
    assert ran["kills"] == KILLS


def test_no_trial_is_lost_or_doubled(ran: dict[str, Any]) -> None:
    assert ran["final"].returncode == 0, ran["final"].stderr
    calm, rough = records_of(ran["calm"]), records_of(ran["rough"])
    assert [record.number for record in rough] == list(range(LIMITS["trials"]))
    assert [(one.state, one.round, one.rounds, one.seeds) for one in rough] == [
        (one.state, one.round, one.rounds, one.seeds) for one in calm
    ]
    assert all(record.finished for record in rough)


def test_every_draw_and_every_step_is_the_same(ran: dict[str, Any]) -> None:
    calm, rough = (Ledger.open_existing("tiny", study_url(ran[name])) for name in ("calm", "rough"))
    assert [one.overrides for one in rough.records()] == [one.overrides for one in calm.records()]
    assert rough.steps() == calm.steps()


def test_every_number_and_the_winner_are_the_same(ran: dict[str, Any]) -> None:
    calm, rough = records_of(ran["calm"]), records_of(ran["rough"])
    assert [scores(one) for one in rough] == [scores(one) for one in calm]
    winners = [best(records, [Goal("robust/acc", "max")]) for records in (calm, rough)]
    assert winners[0] is not None
    assert winners[1] is not None
    assert winners[0].number == winners[1].number
