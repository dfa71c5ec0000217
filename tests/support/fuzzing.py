"""Inputs drawn at random around valid ones, the same in every run, for readers that refuse what they cannot use.

`ARDMVC_FUZZ=2000 pytest --hypothesis-seed=11 …` draws so many other ones.
"""

import contextlib
import copy
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st

LONGEST_MESSAGE = 2048
"""Bytes."""
MOST_MEMORY = 1 << 30
"""Bytes that a process may grow by while it refuses small files."""


def fuzzed(examples: int, seconds: float = 10) -> settings:
    """Draws the same in every run, and keeps nothing on disk; `seconds` tell a slow example from one that hangs."""
    other = int(os.environ.get("ARDMVC_FUZZ", "0"))
    return settings(
        max_examples=other or examples,
        derandomize=not other,
        database=None,
        deadline=timedelta(seconds=seconds),
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def refusing(folder: Path, *kinds: type[Exception]) -> Iterator[None]:
    """The block may end in one of `kinds` with a short message, and leaves all files in `folder` and memory as they
    were."""
    before, memory = contents(folder), getrusage(RUSAGE_SELF).ru_maxrss
    message = "nothing was refused"
    try:
        yield
        event("read")
    except kinds as error:
        message = str(error)
        event("refused")
    assert message.strip()
    assert len(message.encode()) <= LONGEST_MESSAGE, message
    assert contents(folder) == before
    assert (getrusage(RUSAGE_SELF).ru_maxrss - memory) << 10 < MOST_MEMORY


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file below a folder."""
    stats = {str(file): file.lstat() for file in folder.rglob("*")}
    return {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}


@st.composite
def damaged(draw: st.DrawFn, content: bytes, edits: int = 6) -> bytes:
    """Bytes with some of them flipped, overwritten, left out, repeated, put in, or cut off."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, edits))):
        last = max(len(result) - 1, 0)
        # What a format says of itself stands at its ends.
        at = draw(
            st.one_of(st.integers(0, last), st.integers(0, min(last, 160)), st.integers(max(0, last - 200), last))
        )
        length = draw(st.integers(1, 12))
        match draw(st.sampled_from(["flip", "overwrite", "extreme", "delete", "repeat", "insert", "cut"])):
            case "flip" if result:
                result[at] ^= 1 << draw(st.integers(0, 7))
            case "overwrite":
                result[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "extreme":
                result[at : at + 4] = draw(st.sampled_from([bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80"]))
            case "delete":
                del result[at : at + length]
            case "repeat":
                result[at:at] = result[at : at + 20 * length]
            case "insert":
                result[at:at] = draw(st.binary(max_size=40))
            case "cut":
                del result[at:]
    return bytes(result)


def values() -> st.SearchStrategy[Any]:
    """What JSON can hold, the unlikely included."""
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 300),
        st.sampled_from([10**12, -(2**63), 10**400, 0.5, -1.0, 1e308, float("nan"), float("inf")]),
        st.text(max_size=8),
        st.sampled_from(["", "strict", "9" * 5000, "\x1b[31m\n", "../../x", "\ud800"]),
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
        max_leaves=8,
    )


@st.composite
def altered(draw: st.DrawFn, tree: Any, leaves: st.SearchStrategy[Any], edits: int = 3) -> Any:
    """A tree of mappings and lists in which some entries are replaced, left out, renamed or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, edits))):
        holder, key = draw(st.sampled_from([(None, None), *_places(tree)]))
        if holder is None:
            if draw(st.integers(0, 9)) == 0:
                return draw(leaves)
            continue
        match draw(st.sampled_from(["replace", "replace", "delete", "rename", "wrap"])):
            case "replace":
                holder[key] = draw(leaves)
            case "delete":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.text(max_size=6))] = holder.pop(key)
            case "wrap":
                for _ in range(draw(st.sampled_from([1, 1, 1, 200]))):
                    holder[key] = [holder[key]]
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            found += [(item, key) for key in item]
            waiting += item.values()
        elif isinstance(item, list):
            found += [(item, place) for place in range(len(item))]
            waiting += item
    return found
