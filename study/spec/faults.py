"""Faults of a study's YAML as plain lines: where, what is wrong, what would have worked."""

import copy
import dataclasses
import difflib
import json
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from ardmvc_core.ranges import choices_of, shown
from study.secrets import redact

MESSAGE_BYTES = 2_000
"""Of all that a refusal says; what does not fit is counted."""
LINE_BYTES = 700
NAME_LENGTH = 200
"""Characters of the longest name that a similar one is looked for."""

_COMPARISONS = {"greater_than": ">", "greater_than_equal": "≥", "less_than": "<", "less_than_equal": "≤"}
_LIMITS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "finite": "finite"}
_PLURAL = {"list": "a list", "tuple": "a list", "dict": "a mapping", "model": "a mapping", "dataclass": "a mapping"}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a study, before anything was started."""

    path: str
    """Dotted key path, or empty when the message names the key itself."""
    message: str
    hint: Callable[[str], str] = field(default=lambda above: "", compare=False)
    """`above` → the end of the message: what was probably meant. Looked for when the fault is shown: the search is
    slow, and of many faults only the first are shown."""
    above: str = ""
    """Where `path` lies for the check that found the fault; empty: at the top."""
    source: str = ""
    """The file or flag that it came with."""
    place: str = ""
    """Where in the file, such as `line 3, column 5`."""

    def __str__(self) -> str:
        place = f" ({self.place})" if self.place else ""
        return ": ".join(filter(None, (self.source, self.path, self.message + self.hint(self.above) + place)))

    def under(self, prefix: str) -> "Fault":
        """The same fault, seen from one level further out."""
        return replace(self, path=joined(prefix, self.path), above=joined(prefix, self.above))


def listing(faults: Sequence[object]) -> str:
    """A line for each fault, as many as fit into MESSAGE_BYTES, then how many more there are."""
    lines: list[str] = []
    room, longest = MESSAGE_BYTES, max(LINE_BYTES, MESSAGE_BYTES // max(1, len(faults)) - 1)
    for number, fault in enumerate(faults):
        line = shortened(str(fault), longest)
        room -= len(line.encode()) + 1
        if room < 0:
            return "\n".join([*lines, f"and {len(faults) - number} more"])
        lines.append(line)
    return "\n".join(lines)


def shortened(text: str, longest: int = LINE_BYTES) -> str:
    """The text without passwords, as it can be printed anywhere; of more than `longest` bytes, both ends."""
    if len(text) > 2 * MESSAGE_BYTES:  # to look for passwords takes long; nothing near this cut is shown
        text = f"{text[:MESSAGE_BYTES]}…{text[-MESSAGE_BYTES:]}"
    line = redact(text).encode(errors="backslashreplace")
    if len(line) <= longest:
        return line.decode()
    half = longest // 2 - 2
    return f"{line[:half].decode(errors='ignore')}…{line[-half:].decode(errors='ignore')}"


def joined(prefix: str, path: str) -> str:
    """`prefix.path`, or one of them where the other is empty; an index such as `[0]` takes no dot."""
    return f"{prefix}{path}" if path.startswith("[") else f"{prefix}.{path}".strip(".")


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The valid name that `word` was probably meant to be, or None if nothing is like it.

    Of dotted paths the last parts must be alike; so a right key in a wrong place is found, and a shared prefix is not
    taken for likeness.
    """

    def likeness(option: str) -> float:
        last = difflib.SequenceMatcher(None, word.rpartition(".")[2], option.rpartition(".")[2]).ratio()
        return last + 0.5 * difflib.SequenceMatcher(None, word, option).ratio() if last >= 0.6 else 0.0

    if len(word) > NAME_LENGTH:
        return None
    best = max(sorted(options), key=likeness, default=None)
    return best if best is not None and likeness(best) > 0 else None


def suggestion(word: str, options: Iterable[str], *, known: bool = False) -> str:
    """The end of a message about an unknown name: the nearest one, and all of them if asked for or if none is near."""
    options = list(options)
    close = nearest(word, options)
    parts = [f"; nearest: '{close}'"] if close else []
    if known or not close:
        parts.append(f"; known: {', '.join(options)}")
    return "".join(parts)


def raise_faults(title: str, faults: Iterable[Fault]) -> None:
    """Raises all faults as one pydantic error, since a validator may have more than one; does nothing without any."""
    # The fault stands in a tuple: pydantic makes a text of every value here, and that of a fault takes long.
    contexts: list[dict[str, Any]] = [{"text": fault.message, "fault": (fault,)} for fault in faults]
    details = [
        InitErrorDetails(type=PydanticCustomError("fault", "{text}", context), loc=(), input=None)
        for context in contexts
    ]
    if details:
        raise ValidationError.from_exception_data(title, details)


def faults_of(error: ValidationError, schema: type) -> list[Fault]:
    """The faults behind a pydantic error met while validating `schema`, in its order, one for each key."""
    found: dict[str, list[Fault]] = {}
    for detail in error.errors(include_url=False):
        for fault in _translate(detail, schema):
            same = found.setdefault(fault.path, [])
            if fault not in same:
                same.append(fault)
    # Of a key that may be a value, a list or a mapping, a fault inside says more than that these are no value.
    lists = {path.rpartition("[")[0] for path in found if path.endswith("]")}
    inside = {path.rpartition(".")[0] for path in found}
    lists |= {path for path in inside & found.keys() if all(", got {" in fault.message for fault in found[path])}
    return [fault for path, same in found.items() if not path or path not in lists for fault in _merged(same)]


def every_fault(schema: type[BaseModel], raw: Mapping[str, Any], decisive: Collection[str] = ()) -> list[Fault]:
    """All faults of a mapping, also those that pydantic or a config's own check does not get to because of others.

    What is faulty is taken out and the rest checked again, until no new fault appears.

    Args: decisive: paths that decide what the rest means; with a fault there, nothing is checked again.
    """
    rest = copy.deepcopy(dict(raw))
    found: dict[str, list[Fault]] = {}
    while True:
        try:
            faults = boolean_faults(rest, schema.model_validate(rest))
        except ValidationError as error:
            faults = faults_of(error, schema)
        # What was taken out, or held something that was, may now be asked for: that is no fault of the mapping.
        gone = found.keys() | {path.partition("[")[0] for path in found}
        new = [fault for fault in faults if fault.path not in gone]
        for fault in new:
            found.setdefault(fault.path, []).append(fault)
        taken_out = [_take_out(rest, fault.path) for fault in new]
        if not any(taken_out) or not found.keys().isdisjoint(decisive):
            return [fault for same in found.values() for fault in same]


def _take_out(raw: Any, path: str) -> bool:
    """Removes the value at a path, whose keys may hold dots; an entry of a list goes with its list."""
    path = path.partition("[")[0]
    if not isinstance(raw, dict):
        return False
    if path in raw:
        del raw[path]
        return True
    ends = [end for end, character in enumerate(path) if character == "." and path[:end] in raw]
    return any(_take_out(raw[path[:end]], path[end + 1 :]) for end in ends)


def boolean_faults(raw: Any, checked: Any, path: str = "") -> list[Fault]:
    """Faults where true or false (in YAML also yes, no, on, off) stands for a number: pydantic lets that pass."""
    if isinstance(raw, bool):
        if isinstance(checked, int | float) and not isinstance(checked, bool):
            return [Fault(path, f"must be a number, got {str(raw).lower()}")]
        return []
    if not isinstance(raw, Mapping):
        return []
    faults = []
    for key, value in raw.items():
        inner = checked.get(key) if isinstance(checked, Mapping) else getattr(checked, str(key), None)
        faults += boolean_faults(value, inner, joined(path, str(key)))
    return faults


def dotted_keys(schema: Any, tags: Mapping[str, Iterable[str]], prefix: str = "") -> list[str]:
    """Dotted paths of every value that a config holds, down to the leaves of nested configs.

    Args: schema: a pydantic model or dataclass. tags: path of a field that is one of several configs told apart by
    `name` → the names that count; every name where the path is missing.
    """
    keys: list[str] = []
    for name, annotation in _fields(schema).items():
        path = f"{prefix}{name}"
        nested = list(_configs(annotation))
        if path in tags and len(nested) > 1:
            nested = [config for config in nested if set(tags[path]) & set(_names(config))]
        for config in nested:
            keys += [key for key in dotted_keys(config, tags, f"{path}.") if key not in keys]
        if not nested:
            keys.append(path)
    return keys


def _translate(detail: ErrorDetails, schema: type) -> list[Fault]:
    path, place = _resolve(detail["loc"], schema)
    kind, context, given = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "fault":
        fault: Fault = context["fault"][0]
        return [fault.under(path) if path else fault]
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        return [_unknown_key(path, detail["loc"], schema)]
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        names = [name for config in _configs(place) for name in _names(config)]
        if kind == "union_tag_not_found" or "tag" not in context:
            return [Fault(f"{path}.name", f"must be given; known: {', '.join(names)}")]
        tag = str(context["tag"])
        return [Fault(f"{path}.name", f"unknown name '{tag}'{suggestion(tag, names, known=True)}")]
    if kind == "value_error":
        return _value_faults(path, str(context["error"]), place)
    return [Fault(path, _expected(kind, context, place, given))]


def _expected(kind: str, context: Mapping[str, Any], place: Any, given: Any) -> str:
    if "missing" in kind:
        return "must be given"
    if kind == "literal_error":
        options = [str(option) for option in choices_of(place)]
        meant = suggestion(given if isinstance(given, str) else "", options, known=True)
        return f"unknown value {_shown(given)}{meant}"
    if kind in _COMPARISONS:
        return f"must be {_COMPARISONS[kind]} {_plain(context[_LIMITS[kind]])}, got {_shown(given)}"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}, got {_shown(given)}"
    if kind.endswith(("too_short", "too_long")):
        size = f"at least {context['min_length']}" if kind.endswith("short") else f"at most {context['max_length']}"
        return f"must have {size} {'characters' if kind.startswith('string') else 'entries'}, got {_shown(given)}"
    word = kind.split("_")[0]
    return f"must be {_KINDS.get(word) or _PLURAL.get(word) or kind.replace('_', ' ')}, got {_shown(given)}"


def _shown(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else shown(value)


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def _merged(faults: list[Fault]) -> list[Fault]:
    """One fault for a key that may have several types: each alternative that was tried reports on its own."""
    heads = [fault.message.partition(", got ") for fault in faults]
    if len(faults) < 2 or not all(head.startswith("must be ") and got for head, got, _ in heads):
        return faults
    wanted = " or ".join(dict.fromkeys(head.removeprefix("must be ") for head, _, _ in heads))
    return [Fault(faults[0].path, f"must be {wanted}, got {heads[0][2]}")]


def _value_faults(path: str, message: str, place: Any) -> list[Fault]:
    """Faults that a config's own check raised, one for each field that its message names."""
    parts: list[str] = []
    for part in message.split("; "):
        if parts and _at_field(path, part, place).path == path:
            parts[-1] += f"; {part}"
        else:
            parts.append(part)
    return [_at_field(path, part, place) for part in parts]


def _at_field(path: str, message: str, place: Any) -> Fault:
    """Moves a leading field name from the message into the path: `eps must be …` → `….eps: must be …`."""
    first, _, rest = message.partition(" ")
    if any(first.split(".")[0] in _fields(config) for config in _configs(place)):
        return Fault(joined(path, first), rest)
    return Fault(path, message)


def _unknown_key(path: str, location: tuple[int | str, ...], schema: type) -> Fault:
    parent, place = _resolve(location[:-1], schema)
    siblings = [joined(parent, name) for config in _configs(place) for name in _fields(config)]

    def hint(above: str) -> str:
        close = nearest(path, siblings) or nearest(path, dotted_keys(schema, {}))
        names = ", ".join(sibling.rpartition(".")[2] for sibling in siblings)
        return f"; nearest: '{joined(above, close)}'" if close else f"; known: {names}"

    return Fault(path, "unknown key", hint)


_ALTERNATIVES = ("constrained-", "function-after[")
"""What pydantic begins the names of a union's members with that are no types of their own."""


def _resolve(location: tuple[int | str, ...], schema: Any) -> tuple[str, Any]:
    """The dotted path and the annotation at a pydantic location, which also holds names of union members."""
    path, place = "", schema
    for position, part in enumerate(location):
        fields = {name: kind for config in _configs(place) for name, kind in _fields(config).items()}
        members = [config for config in _configs(place) if part in _names(config)]
        if isinstance(part, int):
            path = f"{path}[{part}]"
        elif members and part not in fields:
            place = members[0]
        elif str(part).startswith(_ALTERNATIVES) and _is_union(place):
            pass
        elif part in fields or (fields and position == len(location) - 1) or not _is_union(place):
            path, place = joined(path, str(part)), fields.get(str(part), Any)
    return path, place


def _fields(schema: Any) -> dict[str, Any]:
    """Name → annotation of a pydantic model's or a dataclass's fields."""
    return _fields_of(schema) if isinstance(schema, type) else {}


@cache
def _fields_of(schema: type) -> dict[str, Any]:
    if issubclass(schema, BaseModel):
        return {name: info.annotation for name, info in schema.model_fields.items()}
    if dataclasses.is_dataclass(schema):
        hints = get_type_hints(schema)
        return {field.name: hints[field.name] for field in dataclasses.fields(schema) if field.init}
    return {}


def _configs(annotation: Any) -> Iterator[Any]:
    """The configs (pydantic models, dataclasses) that a value of this annotation may be."""
    if get_origin(annotation) is Annotated:
        yield from _configs(get_args(annotation)[0])
    elif _is_union(annotation):
        for member in get_args(annotation):
            yield from _configs(member)
    elif _fields(annotation):
        yield annotation


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in {Union, types.UnionType}


def _names(config: Any) -> tuple[str, ...]:
    """What `name` may be in a config that is told apart by it."""
    return tuple(choices_of(_fields(config).get("name")))
