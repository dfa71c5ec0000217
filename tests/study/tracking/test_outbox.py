"""The courier between the driver and MLflow: order, merging, outages, refusals, giving up."""

import logging
import threading
from collections.abc import Callable

import pytest

from study.database.lease import LeaseLost
from study.records import TrialRecord
from study.tracking import outbox
from study.tracking.outbox import Courier, Outbox, Parcel


def parcel(number: int, round_: int = 0, **given: bool) -> Parcel:
    record = TrialRecord(number=number, state="RUNNING", round=round_)
    points = [(round_, 1000 + round_, {"clean/acc": 0.5})] if round_ else []
    return Parcel(record=record, time=1000 + round_, points=points, **given)


class Store:
    """A receiver that keeps what it gets, and fails as it is told to."""

    name = "the store"

    def __init__(self) -> None:
        self.got: list[Parcel] = []
        self.calls: list[str] = []
        self.prepared = threading.Event()
        self.forgotten = 0
        self.finished = threading.Event()
        self.fault: Callable[[Parcel], Exception | None] = lambda _: None
        self.failed = threading.Event()
        self.arrived = threading.Event()

    def prepare(self) -> None:
        self.prepared.set()

    def open(self) -> None:
        self.calls.append("open")

    def send(self, sent: Parcel) -> None:
        if error := self.fault(sent):
            self.failed.set()
            raise error
        self.got.append(sent)
        self.arrived.set()

    def forget(self) -> None:
        self.forgotten += 1

    def finish(self) -> None:
        self.finished.set()

    def refused(self, error: Exception) -> str | None:
        return str(error) if isinstance(error, ValueError) else None

    def reason(self, error: Exception) -> str:
        return str(error)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE", 0.02)


def test_a_round_told_again_after_a_new_start_is_kept_once() -> None:
    """A trial that lost its worker starts again with its rounds so far, which may not be sent yet."""
    box = Outbox()
    for one in (parcel(3, started=True), parcel(3, 1), parcel(3, 2)):
        box.put(one)
    history = [(1, 1001, {"clean/acc": 0.5}), (2, 1002, {"clean/acc": 0.5})]
    again = Parcel(record=TrialRecord(number=3, state="RUNNING", round=2), time=1003, points=history, started=True)
    box.put(again)
    box.put(parcel(3, 3))
    merged = box.take()
    assert merged is not None
    assert [point[0] for point in merged.points] == [1, 2, 3]


def test_news_of_one_trial_become_one_parcel_in_order() -> None:
    box = Outbox()
    box.put(parcel(0, started=True))
    box.put(parcel(1, 1))
    box.put(parcel(0, 1))
    box.put(parcel(0, 2))
    assert box.numbers() == [0, 1]
    first = box.take()
    assert first is not None
    assert (first.number, first.started, [point[0] for point in first.points]) == (0, True, [1, 2])
    box.put(parcel(0, 3, ended=True))
    box.put_back(first)
    again = box.take()
    assert again is not None
    assert (again.number, again.ended, [point[0] for point in again.points]) == (0, True, [1, 2, 3])
    assert again.record.round == 3
    assert box.take().number == 1  # type: ignore[union-attr]
    assert box.take() is None


def test_everything_arrives_and_the_end_is_told_last() -> None:
    store = Store()
    courier = Courier(store)
    for number in range(5):
        courier.put(parcel(number, ended=True))
    assert courier.close(10)
    assert [sent.number for sent in store.got] == [0, 1, 2, 3, 4]
    assert store.finished.is_set()


def test_an_outage_delays_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store, down = Store(), threading.Event()
    down.set()
    store.fault = lambda _: ConnectionError("no route") if down.is_set() else None
    courier = Courier(store)
    with caplog.at_level(logging.WARNING):
        courier.put(parcel(0, 1))
        assert store.failed.wait(10)
        courier.put(parcel(0, 2, ended=True))
        courier.put(parcel(1, ended=True))
        down.clear()
        assert courier.close(10)
    rounds = [point[0] for sent in store.got if sent.number == 0 for point in sent.points]
    assert rounds == [1, 2]
    assert {sent.number for sent in store.got} == {0, 1}
    assert store.forgotten >= 1
    told = [record.getMessage() for record in caplog.records]
    assert sum("takes nothing: no route" in text for text in told) == 1


def test_a_refused_parcel_does_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    store.fault = lambda sent: ValueError("bad name") if sent.number == 1 else None
    courier = Courier(store)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            courier.put(parcel(number))
        assert courier.close(10)
    assert [sent.number for sent in store.got] == [0, 2]
    assert "the store refuses trial 1: bad name" in caplog.text
    assert "takes nothing" not in caplog.text


def test_close_gives_up_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OUTAGE_PATIENCE", 0.05)
    store = Store()
    store.fault = lambda _: ConnectionError("down")
    courier = Courier(store)
    courier.put(parcel(4))
    courier.put(parcel(2))
    assert store.failed.wait(10)
    assert not courier.close(600)
    assert courier.waiting() in ([2, 4], [2])  # trial 4 may be in the thread's hands


def test_nothing_is_opened_before_the_start() -> None:
    store = Store()
    courier = Courier(store)
    assert store.prepared.wait(10)
    assert courier.close(10)
    assert (store.calls, store.finished.is_set()) == ([], False)
    store = Store()
    courier = Courier(store)
    courier.start()
    assert courier.close(10)
    assert store.finished.is_set()


def test_a_driver_that_has_lost_the_study_stops_sending(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    store.fault = lambda sent: LeaseLost("another driver has it") if sent.number == 1 else None
    courier = Courier(store)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            courier.put(parcel(number))
        courier.close(10)
        courier.put(parcel(3))
    assert [sent.number for sent in store.got] == [0]
    assert not store.finished.is_set()
    assert caplog.text == ""


def test_an_abandoned_store_is_told_nothing_more() -> None:
    store, leave = Store(), threading.Event()

    def block(_: Parcel) -> None:
        store.failed.set()
        leave.wait(10)

    store.fault = block
    courier = Courier(store)
    courier.put(parcel(0))
    courier.put(parcel(1))
    assert store.failed.wait(10)
    courier.abandon()
    leave.set()
    courier.close(10)
    assert [sent.number for sent in store.got] == [0]
    assert not store.finished.is_set()
