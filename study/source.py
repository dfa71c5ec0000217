"""From a file name and flags to the plain mapping that a study's YAML holds."""

import copy
from collections.abc import Hashable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from study.faults import suggestion


class SpecError(Exception):
    """A study that cannot be run; its text holds one line per fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(file: str) -> tuple[str, dict[str, Any]]:
    """Reads a study file.

    Args: file: a path, or a name in search_spaces/ with or without .yaml.
    Returns: what messages call the file, and the mapping it holds.
    Raises: SpecError if there is no such file, or it holds something else.
    """
    label, content = _read(file)
    try:
        raw = yaml.load(content.decode("utf-8"), _Loader)
    except UnicodeDecodeError:
        raise SpecError([f"{label}: is not YAML: it is not text in UTF-8"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError([f"{label}: is not YAML: {where}{error.problem or error.context}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError([f"{label}: is not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(raw, Mapping):
        what = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise SpecError([f"{label}: must hold a mapping of keys to values, holds {what}"])
    return label, {str(key): value for key, value in raw.items()}


def _read(file: str) -> tuple[str, bytes]:
    path = Path(file).expanduser()
    if path.is_file():
        try:
            return file, path.read_bytes()
        except OSError as error:
            raise SpecError([f"{file}: cannot be read: {error.strerror}"]) from None
    if path.is_dir():
        raise SpecError([f"{file}: is a folder, not a file"])
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
    if not equals or not path.strip():
        raise ValueError("must be path=value, such as trial.epochs=3")
    try:
        return path.strip(), yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(f"the value is not YAML: {problem}") from None


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
            raise ValueError(f"{above} is {inner!r} and holds no keys; replace it as a whole: --set '{above}=…'")
        place[part] = {} if inner is None else inner
        place = place[part]
    place[parts[-1]] = value
    return result
