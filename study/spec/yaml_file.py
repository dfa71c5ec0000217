"""From a file name and flags to the plain mapping that a study's YAML holds."""

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from types import MappingProxyType
from typing import Any

import yaml

from ardmvc_core.errors import UserError
from ardmvc_core.places import expanded
from ardmvc_core.ranges import shown
from study.spec.faults import joined, listing, suggestion

LARGEST_FILE = 256 * 1024
"""Bytes of a study's YAML."""
MOST_VALUES = 10_000
"""Keys and values of a study, each alias counted as all that it stands for."""
DEEPEST = 32
"""Levels of mappings and lists in one another."""
LONGEST_KEY, LONGEST_TEXT = 200, 4096
"""Characters of a key, and of a value: no path is longer."""

MERGE = "tag:yaml.org,2002:merge"
"""Of the key `<<`, whose value is a mapping that is taken over where nothing else is written."""
IGNORED = "x-"
"""How keys of a file begin that hold nothing but what is taken over elsewhere."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class SpecError(UserError):
    """A study that cannot be run; its text holds one line per fault, as far as they fit into a short message."""

    def __init__(self, faults: Sequence[object]) -> None:
        super().__init__(listing(faults))
        self.faults = faults


class Label(str):
    """What messages call a file; knows where in it a value stands."""

    places: Mapping[str, str] = MappingProxyType({})
    """Dotted path → `line 3, column 5`."""

    def place(self, path: str) -> str:
        """Where the value at a path stands, or what it would stand in; empty where that is the whole file."""
        while path and path not in self.places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.places.get(path, "")


class _Loader(yaml.SafeLoader):
    """Plain YAML that is no larger than a study. Where YAML would silently give something else than it seems to say, it
    is refused: a key that stands twice (one that `<<` merges may be overridden), tags, whole numbers such as 010
    (eight) and 1:30 (ninety)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._values_of: dict[int, int] = {}
        """Identity of a node → how many keys and values it holds, with itself."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._values
        if getattr(event, "tag", None):
            raise _refusal(event.start_mark, f"tags such as {shown(event.tag)} are not read")
        self._depth += 1
        if self._depth > DEEPEST:
            raise _refusal(event.start_mark, f"more than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._values_of:
                raise _refusal(event.start_mark, f"*{shown(event.anchor)} stands for something that holds it")
            self._values += self._values_of[id(node)]
        else:
            self._values += 1
        if self._values > MOST_VALUES:
            raise _refusal(event.start_mark, f"more than {MOST_VALUES} keys and values")
        self._values_of[id(node)] = self._values - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here and not where the mapping is made: what `<<` merges into it stands in it then, and may be overridden.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value if key_node.tag == MERGE else self.construct_object(key_node, deep=True)
            if not _is_name(key):
                problem = f"a key must be plain text of at most {LONGEST_KEY} characters, got {shown(key)}"
                raise _refusal(key_node.start_mark, problem)
            if key in seen:
                raise _refusal(key_node.start_mark, f"the key '{key}' stands twice")
            seen.add(key)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text = super().construct_scalar(node)
        if len(text) > LONGEST_TEXT:
            raise _refusal(node.start_mark, f"text must have at most {LONGEST_TEXT} characters, got {shown(text)}")
        if found := _CONTROL.search(text):
            raise _refusal(node.start_mark, f"text must not hold the character {found[0]!a}")
        return text

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """An int or a float."""
        text = self.construct_scalar(node)
        if ":" in text or re.match(r"[-+]?0[0-7_]+$", text):
            raise _refusal(node.start_mark, f"{shown(text)} is another number in YAML than it seems; write that number")
        if node.tag.endswith(":float"):
            return self.construct_yaml_float(node)
        number: int = self.construct_yaml_int(node)
        if not abs(number) < 2**64:
            raise _refusal(node.start_mark, f"whole numbers must be below 2**64, got {shown(text)}")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_scalar)  # a study holds no dates


def _refusal(mark: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _is_name(key: object) -> bool:
    """Whether it may be a key, or a path of keys."""
    return (
        isinstance(key, str) and len(key) <= LONGEST_KEY and key.isprintable() and all(map(str.strip, key.split(".")))
    )


def _parsed(text: str) -> tuple[Any, dict[str, str]]:
    """What a text holds, and by dotted path where in it. Raises: ValueError that says where which fault is."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
        return value, {} if node is None else dict(_places(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{_place(mark)}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a number or an escape in it cannot be read: {error}") from None


def _place(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _places(node: yaml.Node, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, place) of every value in a node that was constructed, so that merged keys stand in it."""
    inner: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        inner = [(joined(path, key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inner = [(f"{path}[{number}]", value, value) for number, value in enumerate(node.value)]
    for below, begin, value in inner:
        yield below, _place(begin.start_mark)
        yield from _places(value, below)


def read_mapping(file: str) -> tuple[Label, dict[str, Any]]:
    """Reads a study file.

    Args: file: a path, or a name in search_spaces/ with or without .yaml.
    Returns: what messages call the file, and the mapping it holds, without keys that begin with `x-`.
    Raises: SpecError if there is no such file, or it holds something else.
    """
    name, content = _read(file)
    label = Label(name)
    if len(content) > LARGEST_FILE:
        raise SpecError([f"{label}: must have at most {LARGEST_FILE // 1024} KiB"])
    try:
        raw, places = _parsed(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise SpecError([f"{label}: is not YAML: it is not text in UTF-8"]) from None
    except ValueError as error:
        raise SpecError([f"{label}: is not YAML: {error}"]) from None
    if not isinstance(raw, dict):
        what = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise SpecError([f"{label}: must hold a mapping of keys to values, holds {what}"])
    label.places = places
    return label, {key: value for key, value in raw.items() if not key.startswith(IGNORED)}


def _read(file: str) -> tuple[str, bytes]:
    """What messages call the file, and its beginning: at most one byte more than is allowed."""
    try:
        path = expanded(file)
    except ValueError as error:
        raise SpecError([str(error)]) from None
    if os.path.isfile(path):
        try:
            with open(path, "rb") as content:
                return file, content.read(LARGEST_FILE + 1)
        except OSError as error:
            raise SpecError([f"{file}: cannot be read: {error.strerror}"]) from None
    if os.path.exists(path):
        what = "a folder" if os.path.isdir(path) else "a device or pipe"
        raise SpecError([f"{file}: is {what}, not a file"])
    entries = resources.files("search_spaces").iterdir()
    bundled = {entry.name.removesuffix(".yaml"): entry for entry in entries if entry.name.endswith(".yaml")}
    name = file.removesuffix(".yaml")
    if name in bundled:
        return f"search_spaces/{name}.yaml", bundled[name].read_bytes()
    raise SpecError(
        [f"{file}: no such file, and no study of that name in search_spaces/{suggestion(name, sorted(bundled))}"]
    )


def split_setting(setting: str) -> tuple[str, Any]:
    """`trial.epochs=3` as its path and its value, read as YAML. Raises: ValueError if it has another form."""
    path, equals, text = setting.partition("=")
    path = path.strip()
    if not equals or not _is_name(path):
        raise ValueError("must be path=value, such as trial.epochs=3")
    try:
        return path, _parsed(text)[0]
    except ValueError as error:
        raise ValueError(f"the value is not YAML: {error}") from None


def replaced(raw: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a spec with one value replaced; unknown paths are made, and refused with the rest of the spec.

    Args: path: dotted; everything behind `space.` is one key, since paths into the trial hold dots themselves.
    Raises: ValueError if the path leads through a value that holds no keys.
    """
    result = copy.deepcopy(dict(raw))
    first, _, rest = path.partition(".")
    parts = [first, rest] if first == "space" and rest else path.split(".")
    place = result
    for depth, part in enumerate(parts[:-1], start=1):
        inner = place.get(part)
        if inner is not None and not isinstance(inner, dict):
            above = ".".join(parts[:depth])
            raise ValueError(f"{above} is {shown(inner)} and holds no keys; replace it as a whole: --set '{above}=…'")
        place[part] = {} if inner is None else inner
        place = place[part]
    place[parts[-1]] = value
    return result
