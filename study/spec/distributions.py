"""The distributions that a space may have, read from YAML and checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from ardmvc_core.ranges import Range, check_values, shown
from study.spec.faults import suggestion

Scalar = str | int | float | bool | None

_EXACT = Range(-(2**53), 2**53)
"""Beyond it whole numbers are not exact as floats, which is what samplers draw."""

Number = Annotated[float, _EXACT]

WholeNumber = Annotated[int, _EXACT]

MOST_STEPS = 10_000

MOST_CHOICES = 100


def _check_range(low: float, high: float, *, positive: bool = False) -> None:
    if positive and not low > 0:
        raise ValueError(f"the low end of a logarithmic range must be > 0, got {low}")
    if not low < high:
        raise ValueError(f"the low end must be below the high end, got {low}, {high}")


def without_noise(value: Any) -> Any:
    """A value to compare with: numbers that differ by rounding alone (0.1 + 0.2 and 0.3; 1 and 1.0) are one; whole
    numbers, such as seeds, do not, and true is no number."""
    if not _is_number(value):
        return type(value).__name__, value
    return int(value) if float(value).is_integer() else float(f"{value:.12g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and float(value).is_integer()


@dataclass(frozen=True)
class Uniform:
    """A number in [low, high], all equally likely."""

    low: Number
    high: Number
    key: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        check_values(self)
        _check_range(self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Whether a trial could have drawn this value."""
        return _is_number(value) and self.low <= value <= self.high

    def ends(self) -> tuple[Scalar, ...]:
        """The extreme values; every value for a choice."""
        return (self.low, self.high)

    def probes(self) -> tuple[Scalar, ...]:
        """Values that must all make a valid trial: the ends, and one inside that is not a whole number."""
        return (self.low, self.high, self.low + (self.high - self.low) / math.pi)

    def grid(self) -> Sequence[Scalar] | None:
        """Every value that it has; None: there is no end of them."""
        return None

    def arguments(self) -> list[Scalar]:
        """What stands behind the key in YAML."""
        return [self.low, self.high]


@dataclass(frozen=True)
class LogUniform(Uniform):
    """A number in [low, high], low > 0, equally likely in its logarithm."""

    key: ClassVar[str] = "log_uniform"

    def __post_init__(self) -> None:
        check_values(self)
        _check_range(self.low, self.high, positive=True)


@dataclass(frozen=True)
class IntUniform:
    """A whole number from low to high, both included."""

    low: WholeNumber
    high: WholeNumber
    key: ClassVar[str] = "int_uniform"

    def __post_init__(self) -> None:
        check_values(self)
        _check_range(self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Whether a trial could have drawn this value."""
        return _is_whole(value) and self.low <= value <= self.high

    def ends(self) -> tuple[Scalar, ...]:
        """The extreme values; every value for a choice."""
        return (self.low, self.high)

    def probes(self) -> tuple[Scalar, ...]:
        """Values that must all make a valid trial."""
        return self.ends()

    def grid(self) -> Sequence[Scalar]:
        """Every value that it has."""
        return range(self.low, self.high + 1)

    def arguments(self) -> list[Scalar]:
        """What stands behind the key in YAML."""
        return [self.low, self.high]


@dataclass(frozen=True)
class IntLogUniform(IntUniform):
    """A whole number from low ≥ 1 to high, equally likely in its logarithm."""

    key: ClassVar[str] = "int_log_uniform"

    def __post_init__(self) -> None:
        check_values(self)
        _check_range(self.low, self.high, positive=True)


@dataclass(frozen=True)
class Quantised:
    """One of low, low + step, … up to high; step divides the range."""

    low: Number
    high: Number
    step: Number
    key: ClassVar[str] = "quantised"

    def __post_init__(self) -> None:
        check_values(self)
        _check_range(self.low, self.high)
        if not self.step > 0:
            raise ValueError(f"step must be > 0, got {self.step}")
        if not self.high - self.low <= MOST_STEPS * self.step:
            raise ValueError(f"step must be at least a {MOST_STEPS}th of the range, got {self.step}")
        if not self._on_grid(self.high):
            raise ValueError(f"step must divide the range, got {self.low} to {self.high} in steps of {self.step}")

    def _on_grid(self, value: float) -> bool:
        steps = (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-6

    def contains(self, value: Any) -> bool:
        """Whether a trial could have drawn this value."""
        inside = _is_number(value) and self.low - self.step / 2 < value < self.high + self.step / 2
        return inside and self._on_grid(value)

    def ends(self) -> tuple[Scalar, ...]:
        """The extreme values; every value for a choice."""
        return (self.low, self.high)

    def probes(self) -> tuple[Scalar, ...]:
        """Values that must all make a valid trial: the ends and the first step."""
        return (self.low, self.high, self.low + self.step)

    def grid(self) -> Sequence[Scalar]:
        """Every value that it has."""
        return [self.low + number * self.step for number in range(round((self.high - self.low) / self.step) + 1)]

    def arguments(self) -> list[Scalar]:
        """What stands behind the key in YAML."""
        return [self.low, self.high, self.step]


@dataclass(frozen=True)
class Choice:
    """One of the values, without an order between them."""

    values: tuple[Scalar, ...]
    key: ClassVar[str] = "choice"

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("must hold at least one value")
        if len(self.values) > MOST_CHOICES:
            raise ValueError(f"must hold at most {MOST_CHOICES} values, got {len(self.values)}")
        if any(not isinstance(value, str | int | float | None) for value in self.values):
            raise ValueError("values must be text, numbers, true, false or null")
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.values):
            raise ValueError("values must be finite")
        if len(set(map(without_noise, self.values))) < len(self.values):
            raise ValueError("holds a value twice")

    def contains(self, value: Any) -> bool:
        """Whether a trial could have drawn this value."""
        return without_noise(value) in map(without_noise, self.values)

    def ends(self) -> tuple[Scalar, ...]:
        """The extreme values; every value for a choice."""
        return self.values

    def probes(self) -> tuple[Scalar, ...]:
        """Values that must all make a valid trial."""
        return self.values

    def grid(self) -> Sequence[Scalar]:
        """Every value that it has."""
        return self.values

    def arguments(self) -> list[Scalar]:
        """What stands behind the key in YAML."""
        return list(self.values)


Distribution = Uniform | LogUniform | IntUniform | IntLogUniform | Quantised | Choice

_RANGES: dict[str, type[Uniform] | type[IntUniform]] = {
    kind.key: kind for kind in (Uniform, LogUniform, IntUniform, IntLogUniform)
}

KINDS = (*_RANGES, Quantised.key, Choice.key)


def as_yaml(distribution: Distribution) -> dict[str, list[Scalar]]:
    """The distribution as it stands in YAML: `{uniform: [0.02, 0.3]}`."""
    return {distribution.key: distribution.arguments()}


def describe(distribution: Distribution) -> str:
    """The distribution in a message: `uniform [0.02, 0.3]`."""
    return f"{distribution.key} [{', '.join(map(str, distribution.arguments()))}]"


def parse_distribution(raw: Any) -> Distribution:
    """One entry of the `space` block. Raises: ValueError that says what is wrong and, for a wrong name, the nearest."""
    if not isinstance(raw, Mapping) or len(raw) != 1:
        raise ValueError(
            f"must be one of {{{', '.join(KINDS)}}} with its list, such as {{uniform: [0.1, 1]}}; got {shown(raw)}"
        )
    key, values = next(iter(raw.items()))
    if key not in KINDS:
        raise ValueError(f"unknown distribution '{key}'{suggestion(str(key), KINDS, known=True)}")
    wanted = {Quantised.key: 3, Choice.key: None}.get(key, 2)
    if not isinstance(values, list | tuple) or (wanted is not None and len(values) != wanted):
        shape = "[low, high, step]" if wanted == 3 else "[low, high]" if wanted == 2 else "a list of values"
        raise ValueError(f"{key} needs {shape}, got {shown(values)}")
    if key == Choice.key:
        return Choice(tuple(_number_or_same(value) for value in values))
    numbers = [_number(key, value) for value in values]
    if key == Quantised.key:
        return Quantised(float(numbers[0]), float(numbers[1]), float(numbers[2]))
    kind = _RANGES[key]
    if issubclass(kind, Uniform):
        return kind(float(numbers[0]), float(numbers[1]))
    if not all(float(number).is_integer() for number in numbers):
        raise ValueError(f"{key} needs whole numbers, got {shown(values)}")
    return kind(int(numbers[0]), int(numbers[1]))


def _number_or_same(value: Any) -> Any:
    """YAML reads 1e-4 as text: what a number would be read from becomes that number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _number(key: str, value: Any) -> float:
    number = _number_or_same(value)
    if not _is_number(number):
        raise ValueError(f"{key} needs numbers, got {shown(value)}")
    if number not in _EXACT:
        raise ValueError(f"{key} needs numbers in {_EXACT}, got {shown(value)}")
    return float(number) if isinstance(number, float) else int(number)
