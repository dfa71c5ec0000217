"""What makes two specs one study, and how two that are not differ."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study.spec.study_spec import StudySpec


def identity_of(spec: "StudySpec") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(spec.identity()))
    return found


def extends(old: Mapping[str, Any], new: Mapping[str, Any], created: int) -> bool:
    """Whether a study of identity `old` may go on as `new`: they are equal, or both are without a space.

    Such a study is a list of trials: what has not been created yet may change, and the list may become longer.
    """
    if old == new:
        return True
    listed, trials = old.get("baselines") or [], new.get("baselines") or []
    if new.get("space") or len(trials) < created or trials[:created] != listed[:created]:
        return False
    return {**old, "baselines": None} == {**new, "baselines": None}


def list_differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two JSON values differ: `path: old → new`, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in list_differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path}: {json.dumps(old)} → {json.dumps(new)}"]
