"""The `space` block of a study: dotted paths into the trial, each with a distribution, and their checks."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any, ClassVar

from pydantic import ValidationError

from ardmvc_core.models import MODELS
from ardmvc_core.ranges import Range, check_values, shown
from study.spec.faults import Fault, boolean_faults, dotted_keys, faults_of, nearest, suggestion
from trainables.config import AttackTrialConfig, TrialConfig

Scalar = str | int | float | bool | None
TrialClass = type[TrialConfig] | type[AttackTrialConfig]


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
        return _is_number(value) and self.low <= value <= self.high and self._on_grid(value)

    def ends(self) -> tuple[Scalar, ...]:
        """The extreme values; every value for a choice."""
        return (self.low, self.high)

    def probes(self) -> tuple[Scalar, ...]:
        """Values that must all make a valid trial: the ends and the first step."""
        return (self.low, self.high, self.low + self.step)

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
        if len({(isinstance(value, bool), value) for value in self.values}) < len(self.values):
            raise ValueError("holds a value twice")

    def contains(self, value: Any) -> bool:
        """Whether a trial could have drawn this value."""
        return any(value == mine and isinstance(value, bool) == isinstance(mine, bool) for mine in self.values)

    def ends(self) -> tuple[Scalar, ...]:
        """The extreme values; every value for a choice."""
        return self.values

    def probes(self) -> tuple[Scalar, ...]:
        """Values that must all make a valid trial."""
        return self.values

    def arguments(self) -> list[Scalar]:
        """What stands behind the key in YAML."""
        return list(self.values)


Distribution = Uniform | LogUniform | IntUniform | IntLogUniform | Quantised | Choice
Space = Mapping[str, Distribution]

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


def parse_space(raw: Any) -> tuple[dict[str, Distribution], list[Fault]]:
    """The `space` block as distributions by path, and the faults of the entries that are none."""
    if not isinstance(raw, Mapping):
        return {}, [Fault("", f"must be a mapping from paths to distributions, got {shown(raw)}")]
    space: dict[str, Distribution] = {}
    faults = []
    for path, entry in raw.items():
        try:
            space[str(path)] = parse_distribution(entry)
        except ValueError as error:
            faults.append(Fault(str(path), str(error)))
    return space, faults


def apply_overrides(trial: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the trial with the value at each dotted path replaced; paths that are missing are made.

    Raises: ValueError if a path leads through something that holds no keys.
    """
    result = copy.deepcopy(dict(trial))
    for path, value in overrides.items():
        *parents, last = path.split(".")
        place = result
        for parent in parents:
            inner = place.get(parent)
            if inner is not None and not isinstance(inner, Mapping):
                raise ValueError(f"'{path}' leads through '{parent}', which is {shown(inner)} and holds no keys")
            place[parent] = dict(inner or {})
            place = place[parent]
        place[last] = copy.deepcopy(value)
    return result


def build_trial(
    config: TrialClass, trial: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[TrialConfig | AttackTrialConfig | None, list[Fault]]:
    """The trial with overrides as a checked config, or None and every fault with its path inside the trial."""
    try:
        merged = apply_overrides(trial, overrides)
        built = config.model_validate(merged)
    except ValidationError as error:
        return None, faults_of(error, config)
    except ValueError as error:
        return None, [Fault("", str(error))]
    faults = boolean_faults(merged, built)
    return (None, faults) if faults else (built, [])


def value_at(config: object, path: str) -> Any:
    """The value of a config at a dotted path."""
    for part in path.split("."):
        config = getattr(config, part)
    return config


def path_faults(paths: Iterable[str], config: TrialClass, trial: Mapping[str, Any], space: Space) -> list[Fault]:
    """Faults of dotted paths as such: those that lead nowhere, and those that a search may not touch."""
    valid = _paths(config, _model_names(trial, space))
    faults = []
    for path in paths:
        reason = next((why for lock, why in config.not_searchable.items() if f"{path}.".startswith(f"{lock}.")), None)
        if reason is not None:
            faults.append(Fault(path, f"cannot be searched: {reason}"))
        elif path not in valid:
            free = partial(_free_paths, path, valid, config)
            faults.append(Fault(path, f"is no field of {config.__name__}{_which(trial)}", free))
    return faults


def _free_paths(path: str, valid: Iterable[str], config: TrialClass, above: str) -> str:
    """The end of a message on a path that leads nowhere: the nearest one, or those beside it."""
    free = [key for key in valid if key.split(".")[0] not in config.not_searchable]
    beside = [key for key in free if key.rpartition(".")[0] == path.rpartition(".")[0]] or free
    close = nearest(path, free)
    return f"; nearest: '{close}'" if close else f"; known: {', '.join(beside)}"


@cache
def _paths(config: TrialClass, models: tuple[str, ...] | None) -> tuple[str, ...]:
    return tuple(dotted_keys(config, {} if models is None else {"model": models}))


def _model_names(trial: Mapping[str, Any], space: Space) -> tuple[str, ...] | None:
    """The models that a trial may have; None if it names none."""
    model = trial.get("model")
    if not isinstance(model, Mapping) or "name" not in model:
        return None
    choice = space.get("model.name")
    names = [str(model["name"]), *(str(value) for value in (choice.ends() if choice else ()))]
    return tuple(sorted(MODELS.keys() & names))


def _which(trial: Mapping[str, Any]) -> str:
    model = trial.get("model")
    return f" with model '{model['name']}'" if isinstance(model, Mapping) and "name" in model else ""


def range_faults(space: Space, config: TrialClass, trial: Mapping[str, Any]) -> list[Fault]:
    """Faults of ranges whose paths exist: each end and choice must make a valid trial, alone and beside the others."""
    faults: list[Fault] = []
    for path, distribution in space.items():
        seen: set[str] = set()
        for value in distribution.probes():
            _, found = build_trial(config, trial, {path: value})
            for fault in found:
                reason = str(fault) if isinstance(distribution, Choice) else _without_value(fault)
                if reason not in seen:  # what fits neither end of a range is one fault, not two
                    faults.append(_end_fault(path, distribution, value, fault))
                seen.add(reason)
    if faults:
        return faults
    for overrides, path, value in _together(space):
        _, found = build_trial(config, trial, overrides)
        if found:
            others = ", ".join(f"{key} {other}" for key, other in overrides.items() if key != path)
            return [_end_fault(path, space[path], value, Fault(f.path, f"{f.message} (with {others})")) for f in found]
    return []


def _together(space: Space) -> Iterator[tuple[dict[str, Scalar], str, Scalar]]:
    """Every probe of every path, with all the other paths at their first and then at their last end."""
    for end in (0, -1):
        corner = {path: distribution.ends()[end] for path, distribution in space.items()}
        for path, distribution in space.items():
            for value in distribution.probes():
                yield {**corner, path: value}, path, value


def _end_fault(path: str, distribution: Distribution, value: Scalar, fault: Fault) -> Fault:
    return Fault(path, f"{value!r} of {describe(distribution)} makes an invalid trial: {fault}")


def _without_value(fault: Fault) -> str:
    return f"{fault.path}: {fault.message.partition(', got ')[0]}"
