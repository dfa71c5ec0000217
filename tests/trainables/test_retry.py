"""Trying again: which pauses are made, and when an error is raised."""

import math
from itertools import islice, repeat

import pytest

from trainables import retry as module
from trainables.retry import doubling, retry


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were made, by a clock that only they move."""
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    monkeypatch.setattr(module.time, "monotonic", lambda: sum(pauses))
    return pauses


def test_pauses_double_up_to_the_longest() -> None:
    assert list(islice(doubling(0.5, 3.0), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("end", "cut", "pauses"),
    [
        (3.5, False, [0.5, 1.0, 2.0]),
        (3.4, False, [0.5, 1.0]),
        (3.4, True, [0.5, 1.0, pytest.approx(1.9)]),
        (0.0, False, []),
        (0.0, True, []),
    ],
)
def test_pauses_end_when_patience_does(slept: list[float], end: float, cut: bool, pauses: list[float]) -> None:
    def fail() -> None:
        raise OSError("away")

    told: list[Exception] = []
    with pytest.raises(OSError, match="away"):
        retry(fail, lambda error: True, doubling(0.5, 8.0, end, cut=cut), told.append)
    assert slept == pauses
    assert len(told) == len(pauses)


def test_what_comes_through_in_the_end_is_returned(slept: list[float]) -> None:
    errors = [OSError("away"), OSError("away")]

    def act() -> float:
        if errors:
            raise errors.pop()
        return math.pi

    assert retry(act, lambda error: isinstance(error, OSError), repeat(0.5, 2)) == math.pi
    assert slept == [0.5, 0.5]


def test_an_error_that_does_not_pass_is_raised_at_once(slept: list[float]) -> None:
    def fail() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        retry(fail, lambda error: isinstance(error, OSError), repeat(0.5))
    assert slept == []
