"""The `space` block of a study: dotted paths into the trial, each with a distribution, and their checks."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

from pydantic import ValidationError

from ardmvc_core.models import MODELS
from ardmvc_core.ranges import shown
from study.spec.distributions import Choice, Distribution, Scalar, describe, parse_distribution
from study.spec.faults import Fault, boolean_faults, dotted_keys, faults_of, nearest
from trainables.config import AttackTrialConfig, TrialConfig

TrialClass = type[TrialConfig] | type[AttackTrialConfig]


Space = Mapping[str, Distribution]


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


def path_faults(
    paths: Iterable[str], config: TrialClass, trial: Mapping[str, Any], space: Space, *, may: tuple[str, ...] = ()
) -> list[Fault]:
    """Faults of dotted paths as such: those that lead nowhere, and those that a search may not touch.

    Args: may: locks that do not hold here.
    """
    valid = _paths(config, _model_names(trial, space))
    faults = []
    for path in paths:
        locks = {lock: why for lock, why in config.not_searchable.items() if lock not in may}
        reason = next((why for lock, why in locks.items() if f"{path}.".startswith(f"{lock}.")), None)
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
