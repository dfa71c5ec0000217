"""How long a round may take: numbers worked out by hand."""

from dataclasses import asdict

import pytest

from trainables.round_limit import RoundLimit, is_last


def test_a_study_of_short_rounds_gives_each_ten_minutes() -> None:
    limit = RoundLimit(ordinary=2.0, last=59.0)
    assert (limit.seconds(last=False), limit.seconds(last=True)) == (600.0, 600.0)


def test_a_study_of_long_rounds_gives_each_ten_times_the_longest() -> None:
    limit = RoundLimit()
    for seconds in (70.0, 90.0, 80.0):
        limit.saw(seconds, last=False)
    limit.saw(65.0, last=True)
    assert limit.longest == 90.0
    assert (limit.seconds(last=False), limit.seconds(last=True)) == (900.0, 900.0)
    limit.saw(1200.0, last=True)  # the whole evaluation
    assert limit.longest == 1200.0
    assert (limit.seconds(last=False), limit.seconds(last=True)) == (12000.0, 12000.0)


def test_a_kind_of_round_that_was_not_seen_has_an_hour() -> None:
    """A last round holds the evaluation, and may take a hundred times as long as those before it."""
    limit = RoundLimit()
    assert limit.longest is None
    assert (limit.seconds(last=False), limit.seconds(last=True)) == (3600.0, 3600.0)
    limit.saw(3.0, last=False)
    assert (limit.seconds(last=False), limit.seconds(last=True)) == (600.0, 3600.0)
    limit.saw(400.0, last=False)
    assert (limit.seconds(last=False), limit.seconds(last=True)) == (4000.0, 4000.0)


@pytest.mark.parametrize("fixed", [0.0, 3.0, 7200.0])
def test_a_fixed_limit_stays(fixed: float) -> None:
    limit = RoundLimit(fixed=fixed)
    limit.saw(1000.0, last=False)
    assert (limit.seconds(last=False), limit.seconds(last=True)) == (fixed, fixed)


def test_it_travels_as_plain_numbers() -> None:
    limit = RoundLimit(ordinary=70.0)
    assert RoundLimit(**asdict(limit)) == limit


def test_the_last_round_is_known_before_it_begins() -> None:
    assert [is_last({"round": done, "rounds": 4}) for done in (1, 2, 3, 4)] == [False, False, True, True]
