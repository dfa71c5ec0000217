"""Data sets in parts, read once a process: from where the driver has put them, else from their files."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from ardmvc_core.data import DatasetConfig, Part, Protocol, load_parts
from ardmvc_core.data.locked import locked

Parts = dict[str, Part]
DataKey = tuple[DatasetConfig, Protocol]
"""What a data set in parts is: its config and the protocol that it is cut by."""

KEPT = 2
"""Data sets that a process keeps; trials that alternate between more of them read again."""

_provided: dict[DataKey, Callable[[], Parts]] = {}
_kept: dict[DataKey, Parts] = {}


def provide_parts(sources: Mapping[DataKey, Callable[[], Parts]]) -> None:
    """Says where parts come from in this process, in place of their files."""
    _provided.clear()
    _provided.update(sources)


def cached_parts(config: DatasetConfig, protocol: Protocol) -> Parts:
    """The parts of a data set, kept between the trials that one process runs."""
    key = (config, protocol)
    if key in _kept:
        _kept[key] = _kept.pop(key)  # the newest is at the end
    else:
        _kept[key] = _provided[key]() if key in _provided else load_parts(config, protocol)
        while len(_kept) > KEPT:
            _kept.pop(next(iter(_kept)))
    return _kept[key]


def content_of(parts: Parts) -> str:
    """Digest of the content of all parts of a data set under one protocol, 16 hex digits."""
    text = "\n".join(f"{name} {part.digest}" for name, part in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def other_parts(stored: Mapping[str, str], found: Mapping[str, str]) -> str:
    """How the parts that are found here differ from the stored ones: "part train: 1f… → 2a…"; empty if they do not.

    Args: both: part → digest of its content; what only one of them holds is not compared.
    """
    changed = [name for name in stored if name in found and stored[name] != found[name]]
    return ", ".join(f"part {name}: {stored[name][:16]} → {found[name][:16]}" for name in changed)


def without_labels(parts: Parts) -> Parts:
    """The parts as those get to see them who must choose without labels; labels are not touched."""
    return {name: replace(part, data=locked(part.data)[0]) for name, part in parts.items()}


def forget_parts() -> None:
    """Frees what this process keeps; files that have changed since are read anew."""
    _kept.clear()
