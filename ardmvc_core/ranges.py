"""What the values of a config may be: it stands in the types of the fields, and `check_values` checks it.

A number has a `Range` (`epochs: Annotated[int, Range(1, 100)]`, or a name for it such as `Epochs`), a choice is a
Literal; `__post_init__` calls `check_values(self)`.
"""

import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

MOST_ENTRIES = 100
"""Of a field that holds a list."""


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; NaN is none of them."""

    low: float
    high: float
    above: bool = False
    """Whether `low` itself is refused."""
    below: bool = False
    """Whether `high` itself is refused."""
    why: str = ""
    """Ends the range in a message: ` because …`."""

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low, high = (int(end) if float(end).is_integer() else end for end in (self.low, self.high))
        return f"{'(' if self.above else '['}{low}, {high}{')' if self.below else ']'}{self.why}"


Seed = Annotated[int, Range(0, 2**63 - 1)]
"""What torch takes; NumPy's global stream takes it modulo 2³²."""
NumpySeed = Annotated[int, Range(0, 2**32 - 1)]
Epochs = Annotated[int, Range(1, 100_000)]
ExtraEpochs = Annotated[int, Range(0, 100_000)]
"""Of a stage that may be left out."""
Steps = Annotated[int, Range(1, 100_000)]
Repeats = Annotated[int, Range(1, 1_000)]
"""Of a whole training, attack or fit."""
Samples = Annotated[int, Range(1, 10**9)]
BatchSize = Annotated[int, Range(2, 10**6)]
Width = Annotated[int, Range(1, 2**16)]
"""Of a layer."""
Weight = Annotated[float, Range(0, 1e6)]
"""Of a term of a loss."""
LearningRate = Annotated[float, Range(0, 10, above=True)]
Temperature = Annotated[float, Range(0, 1e3, above=True)]
Positive = Annotated[float, Range(0, 1e9, above=True)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
Epsilon = Annotated[float, Range(0, 1, above=True, why=" because views are in [0, 1] (8/255 is 0.031)")]
StepRatio = Annotated[float, Range(0, 100, above=True)]
"""Size of a step over ε."""

_short = reprlib.Repr()
_short.maxlevel = 2
_short.maxstring = _short.maxlong = _short.maxother = 60


def shown(value: Any) -> str:
    """The value in a message: of a long one only the beginning and the end."""
    text = _short.repr(value)
    return text if len(text) <= 100 else f"{text[:48]}...{text[-48:]}"


def check_values(config: object) -> None:
    """Raises: ValueError with the faults of `value_faults`."""
    if faults := value_faults(config):
        raise ValueError("; ".join(faults))


def value_faults(config: object) -> list[str]:
    """A fault for each value of a dataclass that the type of its field does not allow; it begins with the field."""
    schema: type = type(config)
    return [fault for rule in _rules(schema) for fault in _faults(getattr(config, rule.field), rule)]


@dataclass(frozen=True)
class _Rule:
    field: str
    length: int | None
    """Of a tuple whose type names each entry."""
    choices: tuple[Any, ...]
    ranges: tuple[Range, ...]


@cache
def _rules(schema: type) -> tuple[_Rule, ...]:
    hints = get_type_hints(schema, include_extras=True)
    kinds = {field.name: hints[field.name] for field in fields(schema)}
    return tuple(
        _Rule(name, _length(kind), tuple(choices_of(kind)), tuple(ranges_of(kind))) for name, kind in kinds.items()
    )


def _length(kind: Any) -> int | None:
    return len(get_args(kind)) if get_origin(kind) is tuple and Ellipsis not in get_args(kind) else None


def _faults(value: Any, rule: _Rule) -> Iterator[str]:
    entries = value if isinstance(value, tuple) else () if value is None else (value,)
    if len(entries) > MOST_ENTRIES:
        yield f"{rule.field} must have at most {MOST_ENTRIES} entries, got {len(entries)}"
        return
    if rule.length not in (None, len(entries)):
        yield f"{rule.field} must be {rule.length} values, got {shown(value)}"
    if rule.choices and any(entry not in rule.choices for entry in entries):
        yield f"{rule.field} must be one of {', '.join(map(str, rule.choices))}, got {shown(value)}"
    for allowed in rule.ranges:
        outside = (entry for entry in entries if entry not in allowed)
        yield from (f"{rule.field} must be in {allowed}, got {shown(entry)}" for entry in outside)


def ranges_of(kind: Any) -> list[Range]:
    """The ranges in an annotation, those of its parts too."""
    marks = [mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Range)]
    return list(dict.fromkeys([*marks, *(found for part in _parts(kind) for found in ranges_of(part))]))


def choices_of(kind: Any) -> list[Any]:
    """The values of the literals in an annotation."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [value for part in _parts(kind) for value in choices_of(part)]


def _parts(kind: Any) -> tuple[Any, ...]:
    args = get_args(kind)
    return args[:1] if get_origin(kind) is Annotated else () if get_origin(kind) is Literal else args
