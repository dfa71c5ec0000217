"""Values that a config's types allow, and how what they do not allow is said."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from ardmvc_core.ranges import MOST_ENTRIES, Range, check_values, shown, value_faults


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: Annotated[int, Range(1, 1000)] = 3
    share: Annotated[float, Range(0, 1, above=True)] | None = None
    eps: float | tuple[Annotated[float, Range(0, 0.5, below=True)], ...] = 0.1
    kind: Literal["a", "b"] = "a"
    kinds: tuple[Literal["a", "b"], ...] = ("a",)
    widths: tuple[Annotated[int, Range(1, 9)], Annotated[int, Range(1, 9)]] = (3, 4)
    free: str = ""

    def __post_init__(self) -> None:
        check_values(self)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (Range(1, 3), [1, 2.5, 3], [0.999, 3.001, math.nan, math.inf, 10**400]),
        (Range(0, 1, above=True), [1e-300, 1], [0, -0.0, math.nan]),
        (Range(0, 1, below=True), [0, 1 - 1e-16], [1, math.nan]),
        (Range(0, 2**63 - 1), [2**63 - 1], [2**63, -1]),
    ],
)
def test_a_range_holds_its_ends_unless_they_are_left_out(
    allowed: Range, inside: list[float], outside: list[float]
) -> None:
    assert [value in allowed for value in inside] == [True] * len(inside)
    assert [value in allowed for value in outside] == [False] * len(outside)


def test_what_is_allowed_passes() -> None:
    Config()
    Config(steps=1000, share=1.0, eps=(0.0, 0.4), kind="b", kinds=("a", "b"))


@pytest.mark.parametrize(
    ("values", "faults"),
    [
        ({"steps": 0}, ["steps must be in [1, 1000], got 0"]),
        ({"steps": 1001}, ["steps must be in [1, 1000], got 1001"]),
        ({"share": 0.0}, ["share must be in (0, 1], got 0.0"]),
        ({"share": math.nan}, ["share must be in (0, 1], got nan"]),
        ({"eps": 0.5}, ["eps must be in [0, 0.5), got 0.5"]),
        ({"eps": (0.1, 0.6, 7.0)}, ["eps must be in [0, 0.5), got 0.6", "eps must be in [0, 0.5), got 7.0"]),
        ({"eps": (0.1,) * 101}, ["eps must have at most 100 entries, got 101"]),
        ({"widths": (3,)}, ["widths must be 2 values, got (3,)"]),
        ({"widths": (3, 0)}, ["widths must be in [1, 9], got 0"]),
        ({"kind": "c"}, ["kind must be one of a, b, got 'c'"]),
        ({"kinds": ("a", "c")}, ["kinds must be one of a, b, got ('a', 'c')"]),
        ({"steps": 0, "kind": "c"}, ["steps must be in [1, 1000], got 0", "kind must be one of a, b, got 'c'"]),
    ],
)
def test_what_is_not_allowed_is_said_of_each_field(values: dict[str, Any], faults: list[str]) -> None:
    assert MOST_ENTRIES == 100
    with pytest.raises(ValueError, match="must") as caught:
        Config(**values)
    assert str(caught.value) == "; ".join(faults)
    config = Config()
    for name, value in values.items():
        object.__setattr__(config, name, value)
    assert value_faults(config) == faults


def test_a_long_value_is_shown_by_its_ends() -> None:
    assert shown("abc") == "'abc'"
    assert shown(0.1) == "0.1"
    text = shown("start" + "x" * 100_000 + "end")
    assert text.startswith("'start")
    assert text.endswith("end'")
    assert len(text) <= 60
    assert len(shown(10**4000)) <= 60
    assert len(shown([[["x" * 1000] * 1000] * 1000] * 1000)) <= 100
