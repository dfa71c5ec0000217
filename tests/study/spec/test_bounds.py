"""Every number that a study's YAML may hold has an upper bound: a walk over the types of all its fields."""

import dataclasses
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import annotated_types
import pytest
from pydantic import BaseModel, Field, ValidationError

from ardmvc_core.data import DatasetConfig
from ardmvc_core.models import MODELS
from ardmvc_core.ranges import Range, check_values
from study.spec.distributions import IntLogUniform, IntUniform, LogUniform, Quantised, Uniform
from study.spec.schema import Objective
from study.spec.study_spec import StudySpec
from trainables.config import AttackTrialConfig, TrialConfig

ROOTS = (StudySpec, TrialConfig, AttackTrialConfig, Uniform, LogUniform, IntUniform, IntLogUniform, Quantised)

VALID: dict[type, dict[str, Any]] = {
    DatasetConfig: {"name": "noisy_digits"},
    TrialConfig: {"dataset": {"name": "noisy_digits"}, "model": {"name": "comvc"}},
    AttackTrialConfig: {"checkpoint": "x"},
    Objective: {"metric": "robust/acc", "mode": "max"},
    StudySpec: {
        "name": "x",
        "trial": {"dataset": {"name": "noisy_digits"}, "model": {"name": "comvc"}},
        "objective": {"metric": "robust/acc", "mode": "max"},
    },
    **{kind: {"low": 1, "high": 2} for kind in (Uniform, LogUniform, IntUniform, IntLogUniform)},
    Quantised: {"low": 1, "high": 2, "step": 1},
}
"""What a config needs besides its defaults."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A field that holds a number, or several."""

    schema: type
    name: str
    kinds: tuple[type, ...]
    bounds: tuple[float, ...]
    """Upper ones, from the type."""

    def __str__(self) -> str:
        return f"{self.schema.__name__}.{self.name}"


def leaves(annotation: Any, marks: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The types that a value, or an entry of it, may have; each with the marks that stand around it."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = args[1].metadata if hasattr(args[1], "metadata") else ()
        yield from leaves(args[0], (*marks, *args[1:], *inner))
    elif origin in (Union, types.UnionType, tuple, list, dict):
        for arg in args:
            yield from leaves(arg, marks)
    else:
        yield annotation, marks


def field_types(schema: type) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    if issubclass(schema, BaseModel):
        return {name: (info.annotation, tuple(info.metadata)) for name, info in schema.model_fields.items()}
    hints = get_type_hints(schema, include_extras=True)
    return {field.name: (hints[field.name], ()) for field in dataclasses.fields(schema)}


def upper(marks: tuple[Any, ...]) -> Iterator[float]:
    for mark in marks:
        if isinstance(mark, Range):
            yield mark.high
        elif isinstance(mark, annotated_types.Le):
            yield mark.le  # type: ignore[misc]
        elif isinstance(mark, annotated_types.Lt):
            yield mark.lt  # type: ignore[misc]


def numbers(schema: type, seen: set[type]) -> Iterator[Number]:
    """Every field of a config, and of the configs in it, that holds a number."""
    if schema in seen:
        return
    seen.add(schema)
    for name, (annotation, around) in field_types(schema).items():
        kinds: list[type] = []
        bounds: list[float] = []
        for leaf, marks in leaves(annotation, around):
            if leaf in (int, float):
                kinds.append(leaf)
                bounds += upper(marks)
            elif isinstance(leaf, type) and (issubclass(leaf, BaseModel) or dataclasses.is_dataclass(leaf)):
                yield from numbers(leaf, seen)
        if kinds:
            yield Number(schema, name, tuple(dict.fromkeys(kinds)), tuple(bounds))


SEEN: set[type] = set()
NUMBERS = [number for root in ROOTS for number in numbers(root, SEEN)]


def test_the_walk_meets_every_part_of_a_study() -> None:
    assert {method.config for method in MODELS.values()} <= SEEN
    named = {str(number) for number in NUMBERS}
    assert {
        *(
            "StudySpec.seed",
            "Limits.round_minutes",
            "Resources.gpu",
            "TPESampler.history",
            "MedianPruner.warmup_rounds",
        ),
        *("TrialConfig.epochs", "AttackTrialConfig.evaluate_every", "SelectionConfig.reference_runs"),
        *("DatasetConfig.samples", "EvalBudget.eps", "EvalBudget.attacked_views", "GANConfig.norm_budget"),
        *("SEMConfig.hidden_widths", "ARDMVCAMConfig.kl_smoothing", "Quantised.step", "IntUniform.high"),
    } <= named


def test_the_walk_sees_a_number_without_a_bound() -> None:
    @dataclasses.dataclass
    class Inner:
        free: int | None = None
        bounded: Annotated[int, Range(0, 5)] = 0
        flag: bool = False

    class Outer(BaseModel):
        inner: Inner | None = None
        frees: tuple[float, ...] = ()
        bounded: int | None = Field(default=None, le=3)
        low_only: float = Field(default=1, gt=0)

    assert {str(number): number.bounds for number in numbers(Outer, set())} == {
        "Inner.free": (),
        "Inner.bounded": (5,),
        "Outer.frees": (),
        "Outer.bounded": (3,),
        "Outer.low_only": (),
    }


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_a_number_has_an_upper_bound(number: Number) -> None:
    assert number.bounds, f"{number}: no upper bound; give its type a Range, or its Field an le"
    assert max(number.bounds) <= 2**63


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_the_bound_is_kept(number: Number) -> None:
    """Numbers beyond it are refused by the name of the field, and nothing else is."""
    many = get_origin(dict(field_types(number.schema))[number.name][0]) is tuple
    size = len(getattr(number.schema, number.name, None) or (0,)) if many else 1
    for huge in (2**63, 10**30, 1e300, float("inf"), float("nan")):
        if number.kinds == (int,) and isinstance(huge, float):
            continue
        value = (huge,) * size if many or number.name in ("classes", "attacked_views") else huge
        required = {key: entry for key, entry in VALID.get(number.schema, {}).items() if key != number.name}
        if "name" in field_types(number.schema) and "name" not in required:
            required["name"] = next(leaf for leaf, _ in leaves(field_types(number.schema)["name"][0])).__args__[0]
        if issubclass(number.schema, BaseModel):
            with pytest.raises(ValidationError) as refused:
                number.schema.model_validate({**required, number.name: value})
            assert {error["loc"][0] for error in refused.value.errors()} == {number.name}
        else:
            with pytest.raises(ValueError, match=f"^{number.name} must be "):
                number.schema(**required, **{number.name: value})


def test_defaults_are_allowed() -> None:
    for schema in SEEN:
        if dataclasses.is_dataclass(schema):
            check_values(schema(**VALID.get(schema, {})))
