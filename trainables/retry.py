"""Trying again what fails for a while: what may pass, how often, and with which pauses."""

import errno
import math
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

R = TypeVar("R")

LASTING = frozenset(
    getattr(errno, name)
    for name in ("ENOTDIR", "EISDIR", "EEXIST", "ELOOP", "ENAMETOOLONG", "EACCES", "EPERM", "EROFS")
)
"""What a file system says of a place where nothing can be written until somebody changes something there."""


def may_pass(error: Exception) -> bool:
    """Whether an error of writing files may be over at the next attempt: the storage is away, or full."""
    return isinstance(error, OSError) and error.errno not in LASTING


def retry(
    action: Callable[[], R],
    passes: Callable[[Exception], bool],
    pauses: Iterator[float],
    waiting: Callable[[Exception], None] = lambda error: None,
) -> R:
    """What `action` returns once it comes through.

    Args: passes: whether an error may be over at the next attempt. pauses: seconds between attempts. waiting: told of
        the error before each pause.
    Raises: an error that does not pass; the last error once there are no pauses left.
    """
    while True:
        try:
            return action()
        except Exception as error:
            pause = next(pauses, None) if passes(error) else None
            if pause is None:
                raise
            waiting(error)
        time.sleep(pause)


def doubling(first: float, longest: float, end: float = math.inf, *, cut: bool = False) -> Iterator[float]:
    """Pauses in seconds, each twice the one before. Args: end: of the monotonic clock, which no pause goes beyond. cut:
    whether the last pause is shortened to reach it."""
    while (left := end - time.monotonic()) > 0 and (cut or first <= left):
        yield min(first, left)
        first = min(2 * first, longest)
