"""What makes two specs one study, and how two that are not differ."""

import json
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study.spec.study_spec import StudySpec


Contents = Mapping[str, Mapping[str, str]]
"""What a study's trials run on: "trial" for the trial as written, `baselines[N]` for a baseline whose data may be
others → protocol → digest of the content."""


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


def data_differences(old: Contents, new: Contents, created: int) -> list[str]:
    """Where the data are not those that trials have run on: `data.trial.strict: "1f…" → "2a…"`, one line each.

    Data that only one side knows of are not compared. Args: created: baselines from this number on have not run.
    """
    run: Container[str] = {"trial", *(f"baselines[{number}]" for number in range(created))}
    lines = []
    for name in old:
        if name in run and name in new:
            known = {protocol: digest for protocol, digest in old[name].items() if protocol in new[name]}
            lines += list_differences(known, {protocol: new[name][protocol] for protocol in known}, f"data.{name}")
    return lines


def list_differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two JSON values differ: `path: old → new`, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in list_differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path}: {json.dumps(old)} → {json.dumps(new)}"]
