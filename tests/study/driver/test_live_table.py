"""The live table and its plain lines."""

import io
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from study.driver.live_table import LiveTable
from study.driver.words import headline
from study.planning.cost import Passes
from study.records import Goal, TrialRecord, WorkerAway
from study.spec.study_spec import StudySpec
from study.sweep import main as sweep_main
from trainables.heartbeat import Place

ROBUST = [Goal("robust/acc", "max")]


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def running(number: int, round_: int = 0, **metrics: float) -> TrialRecord:
    return TrialRecord(
        number=number,
        state="RUNNING",
        overrides={"model.adversarial_weight": 0.5, "model.train_eps": 0.2},
        round=round_,
        rounds=4,
        metrics=dict(metrics),
    )


def complete(number: int, score: float) -> TrialRecord:
    return replace(
        running(number, 4), state="COMPLETE", values=(score,), metrics={"clean/acc": 0.98, "robust/acc": score}
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_plain_lines_tell_what_happened(clock: Clock) -> None:
    stream = io.StringIO()
    table = LiveTable(ROBUST, 3, [complete(0, 0.52)], stream=stream, clock=clock)
    table.trial_started(running(1))
    clock.now += 60
    table.trial_reported(running(1, 2, **{"clean/acc": 0.971, "probe/acc": 0.409, "loss/total": 3.0}))
    table.tick()
    clock.now += 60
    table.trial_ended(complete(1, 0.6))
    table.trial_ended(replace(running(2, 1), state="FAIL", failure="loss is nan in stage train, epoch 3"))
    table.close()
    at = [time.strftime("%H:%M:%S", time.localtime(1_700_000_000 + s)) for s in (0, 60, 120)]
    # Nothing is said of the time left before one trial is done; after 120 s one of two is. At the end nothing is left.
    lines = stream.getvalue().splitlines()
    before = "best robust/acc 0.52 (trial 0)  1/3 done"
    assert lines[0] == f"[{at[0]}] trial 1  started  adversarial_weight=0.5 train_eps=0.2  {before}"
    assert lines[1] == f"[{at[1]}] trial 1  round 2/4  clean/acc 0.97  probe/acc 0.41  {before}"
    after = "best robust/acc 0.60 (trial 1)"
    told = "complete at round 4/4  clean/acc 0.98  robust/acc 0.60"
    assert lines[2] == f"[{at[2]}] trial 1  {told}  {after}  2/3 done  ~2 min left"
    told = "failed at round 1/4: loss is nan in stage train, epoch 3"
    assert lines[3] == f"[{at[2]}] trial 2  {told}  {after}  3/3 done"
    assert len(lines) == 4


def test_time_left_counts_this_driver_only(clock: Clock) -> None:
    table = LiveTable(ROBUST, 10, [complete(n, 0.5) for n in range(8)], stream=io.StringIO(), clock=clock)
    assert table.seconds_left() is None
    table.trial_started(running(8, 3))
    clock.now += 30
    table.trial_reported(running(8, 4))
    assert table.seconds_left() is None
    table.trial_ended(complete(8, 0.5))
    assert table.seconds_left() == 30 * 4  # one round took 30 s; trial 8 is through its rounds, trial 9 has four


# Rounds that cost what they cost


def costly(record: TrialRecord) -> list[Passes]:
    """Three rounds of 10 passes, and a last one of 970, as where it holds a long attack."""
    return [Passes(6, 4)] * 3 + [Passes(900, 70)]


def test_the_time_left_counts_passes_and_not_rounds(clock: Clock) -> None:
    table = LiveTable(ROBUST, 2, costs=costly, stream=io.StringIO(), clock=clock)
    table.trial_started(running(0))
    table.trial_started(running(1))
    clock.now += 100
    table.trial_ended(complete(0, 0.5))
    table.trial_reported(running(1, 3))
    # 1,000 and 30 passes in 100 s; 970 are left.
    assert table.seconds_left() == pytest.approx(970 / 10.3)
    clock.now += 50
    table.rounds_at({1: Place(3, 450)})
    # Half of the last round is behind it.
    assert table.seconds_left() == pytest.approx(485 * 150 / (1030 + 485))
    table.trial_ended(complete(1, 0.5))
    assert table.seconds_left() == 0.0


def test_trials_that_cost_differently_are_not_counted_alike(clock: Clock) -> None:
    """Table 1: a cheap model is through, an expensive one has begun."""
    costs = {0: [Passes(10)] * 4, 1: [Passes(90)] * 4}
    table = LiveTable(ROBUST, 2, costs=lambda r: costs[r.number], stream=io.StringIO(), clock=clock)
    table.trial_started(running(0))
    clock.now += 40
    table.trial_ended(complete(0, 0.5))
    table.trial_started(running(1))
    assert table.seconds_left() == 360.0


def test_a_worker_inside_a_round_is_shown(clock: Clock) -> None:
    table = LiveTable(ROBUST, 2, costs=costly, stream=Terminal(), clock=clock)
    table.trial_started(running(0, 3))
    table.rounds_at({0: Place(3, 450), 7: Place(0, 1)})
    assert list(table.table().columns[2].cells) == ["3/4 +50%"]
    table.rounds_at({0: Place(3, 2000)})
    assert list(table.table().columns[2].cells) == ["3/4 +100%"]
    table.trial_ended(complete(0, 0.5))
    assert list(table.table().columns[2].cells) == ["4/4"]
    table.close()


def test_plain_lines_tell_of_a_long_round_once_a_minute(clock: Clock) -> None:
    stream = io.StringIO()
    table = LiveTable(ROBUST, 1, costs=costly, stream=stream, clock=clock)
    table.trial_started(running(0, 2))
    for seconds, place in ((30, Place(2, 3)), (31, Place(2, 3)), (10, Place(2, 6)), (50, Place(2, 6))):
        clock.now += seconds
        table.rounds_at({0: place})
    table.trial_reported(running(0, 3))
    clock.now += 61
    table.rounds_at({0: Place(2, 6)})  # a beat from before the round's end
    lines = [line.split("] ")[1] for line in stream.getvalue().splitlines()]
    assert [line for line in lines if "in round" in line] == [
        "trial 0  in round 3/4: 50%  0/1 done",
        "trial 0  in round 3/4: 100%  0/1 done",
    ]


@pytest.mark.parametrize("ticks", [0, 3])
def test_no_heading_stays_over_nothing(clock: Clock, ticks: int) -> None:
    """Ctrl-C before the first trial, be it that Ray has taken its time."""
    stream = Terminal()
    table = LiveTable(ROBUST, 2, stream=stream, clock=clock)
    for _ in range(ticks):
        table.tick()
    table.close()
    assert "0/2 done" in stream.getvalue()
    assert "state" not in stream.getvalue()


def test_a_heading_stands_over_trials(clock: Clock) -> None:
    stream = Terminal()
    table = LiveTable(ROBUST, 2, [replace(running(0), state="WAITING")], stream=stream, clock=clock)
    table.close()
    assert "state" in stream.getvalue()


def test_the_first_line_says_what_runs(tiny_spec: Callable[..., StudySpec]) -> None:
    told = headline(tiny_spec())
    for text in ("tiny: ", " on noisy_digits, K 3, ", "ε 0.1", " trials × 1 seed"):
        assert text in told, told


def test_a_sweep_says_something_before_it_loads_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("name: a\n")
    told = Terminal()
    monkeypatch.setattr(sys, "stderr", told)
    assert sweep_main([str(file)]) == 2
    assert "reading the data" in told.getvalue().splitlines()[0]
    quiet = io.StringIO()
    monkeypatch.setattr(sys, "stderr", quiet)
    assert sweep_main([str(file)]) == 2
    assert "reading" not in quiet.getvalue()


def test_a_study_that_goes_on_names_the_round_it_goes_on_from(clock: Clock) -> None:
    stream = io.StringIO()
    LiveTable(ROBUST, 2, stream=stream, clock=clock).trial_started(running(0, 2))
    assert "trial 0  started again at round 2" in stream.getvalue()
    assert "best" not in stream.getvalue()


def test_the_table_of_a_terminal(clock: Clock) -> None:
    stream = Terminal()
    records = [replace(complete(0, 0.5), baseline=True), complete(1, 0.7)]
    table = LiveTable(ROBUST, 4, records, stream=stream, clock=clock)
    table.trial_started(running(2))
    table.trial_reported(running(2, 1, **{"clean/acc": 0.9, "probe/acc": 0.25}))
    table.tick()
    table.close()
    table.close()
    shown = stream.getvalue()
    for text in ("0 *", "complete", "running", "1/4", "0.250", "0.700", "2/4 done", "best robust/acc 0.70 (trial 1)"):
        assert text in shown, text
    assert "\x1b[?25h" in shown  # the cursor is given back


def test_plain_lines_say_that_a_worker_is_silent_and_again_when_it_lasts(clock: Clock) -> None:
    stream = io.StringIO()
    table = LiveTable(ROBUST, 4, stream=stream, clock=clock)
    table.trial_started(running(3))
    begun = len(stream.getvalue())
    for seconds in (30.0, 31.0, 59.0, 61.0, 121.0, 122.0):
        table.workers_away({3: WorkerAway("silent", seconds)})
    table.workers_away({})
    table.workers_away({3: WorkerAway("silent", 40.0)})
    table.workers_away({3: WorkerAway("missing", 300.0)})
    for seconds in (0.0, 1.0, 45.0):
        table.workers_away({3: WorkerAway("waits", seconds, "cannot write /data: full")})
    lines = [line.split("] ")[1] for line in stream.getvalue()[begun:].splitlines()]
    assert lines == [
        "worker of trial 3 silent for 30 s  0/4 done",
        "worker of trial 3 silent for 61 s  0/4 done",
        "worker of trial 3 silent for 2 min  0/4 done",
        "worker of trial 3 silent for 40 s  0/4 done",
        "trial 3  has waited 5 min for a worker  0/4 done",
        "trial 3  waits for its storage, for 0 s so far: cannot write /data: full  0/4 done",
        "trial 3  waits for its storage, for 45 s so far: cannot write /data: full  0/4 done",
    ]


def test_the_table_says_how_long_a_worker_is_silent(clock: Clock) -> None:
    table = LiveTable(ROBUST, 4, stream=Terminal(), clock=clock)
    for number in (1, 2, 3):
        table.trial_started(running(number))
    table.workers_away({1: WorkerAway("silent", 40.0), 3: WorkerAway("missing", 120.0)})
    assert list(table.table().columns[1].cells) == ["silent 40 s", "running", "no worker 2 min"]
    table.workers_away({})
    assert list(table.table().columns[1].cells) == ["running"] * 3
    table.close()


def test_a_long_study_shows_what_runs_and_the_best(clock: Clock) -> None:
    records = [complete(n, 0.9 if n == 3 else 0.1) for n in range(500)]
    table = LiveTable(ROBUST, 600, records, stream=Terminal(), clock=clock)
    table.trial_started(running(500))
    column = list(table.table().columns[0].cells)
    assert len(column) < 60
    assert {"3", "500", "499"} <= set(column)
    table.close()


def test_two_objectives_and_missing_scores(clock: Clock) -> None:
    stream = io.StringIO()
    table = LiveTable([Goal("clean/acc", "max"), Goal("gan/flip", "min")], 2, stream=stream, clock=clock)
    table.trial_started(running(0))
    metrics = {"clean/acc": 0.9, "gan/flip": 0.25, "robust/acc": float("nan")}
    table.trial_ended(replace(running(0, 4, **metrics), state="COMPLETE", values=(0.9, 0.25)))
    assert "clean/acc 0.90  gan/flip 0.25  best clean/acc 0.90, gan/flip 0.25 (trial 0)" in stream.getvalue()


def test_what_is_kept_up_trial_by_trial_is_what_all_records_say(clock: Clock) -> None:
    """A line tells the same whether a trial was seen from its start or read from the database."""
    seen = LiveTable(ROBUST, 6, stream=io.StringIO(), clock=clock)
    begun = [running(n, r, **{"probe/acc": 0.2}) for n, r in ((0, 0), (1, 3), (2, 1))]
    for record in begun:
        seen.trial_started(replace(record, round=0, metrics={}))
        seen.trial_reported(record)
    last = [complete(0, 0.4), replace(begun[1], state="FAIL", failure="lost"), replace(begun[2], state="WAITING")]
    seen.trial_ended(last[0])
    seen.trial_ended(last[1])
    seen.trial_paused(last[2])
    read = LiveTable(ROBUST, 6, last, stream=io.StringIO(), clock=clock)
    told = "best robust/acc 0.40 (trial 0)  2/6 done"
    assert read.progress() == told
    clock.now += 9
    assert seen.progress() == f"{told}  ~15 s left"  # nine of its rounds are over, 3 + 3 · 4 are left
    assert [column.header for column in seen.table().columns] == [column.header for column in read.table().columns]
    assert [list(column.cells) for column in seen.table().columns] == [list(c.cells) for c in read.table().columns]
