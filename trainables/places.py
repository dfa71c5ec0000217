"""Where checkpoints lie: each has a place in its storage, which stays the same wherever the storage is moved."""

import os
import re
from pathlib import Path

_PLACE = re.compile(r"(?P<storage>.+)/(?P<inner>[^/]+/trial_[0-9]+(-[0-9a-f]*)?/round_[0-9]+-[0-9a-f]+)/?")
"""Of a trial's checkpoint: the storage, then the folders of study, trial and round."""


def divided(place: str) -> tuple[str, str]:
    """Storage of a trial's checkpoint, and place in it; an empty storage and the place as it is if it is none.

    >>> divided("/data/runs/tiny/trial_00003-1f3a9c0e/round_000004-0b6c1d2e")
    ('/data/runs', 'tiny/trial_00003-1f3a9c0e/round_000004-0b6c1d2e')
    """
    found = _PLACE.fullmatch(place)
    return (found["storage"], found["inner"]) if found else ("", place)


def place_of(before: str, inner: str, here: str) -> str:
    """Where a checkpoint is now.

    Args: before: the storage that it was written to, empty if `inner` is the whole place. inner: its place there. here:
        the storage as it is given now. Storages are absolute paths or URIs; local folders are looked at, URIs trusted.
    Returns: its place in the storage given now, or where it was written to, if only that is there.
    """
    if not before:
        return inner
    new, old = f"{here.rstrip('/')}/{inner}", f"{before}/{inner}"
    if new == old:
        return new
    for place in (new, old):
        if "://" not in place and os.path.isdir(place):
            return place
    return new if "://" in here else old


def folder_fault(folder: Path) -> str | None:
    """Why a local folder cannot be made, or no file in it, in a few words; None if nothing speaks against it.

    Nothing is made for that, so that the first to write may still find a reason.
    """
    place = folder.absolute()
    there = next(parent for parent in (place, *place.parents) if os.path.lexists(parent))
    if not os.path.isdir(there):
        return f"{there} is not a folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"no permission to write in {there}"
