"""Attacks and points of curves that an evaluation has finished, kept beside its report until this is written: an
interrupted one goes on."""

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ardmvc_core.attacks.attack import AttackedPoints
from ardmvc_core.attacks.suite import Attempt
from trainables.saved_trial import arrays_in
from trainables.storage import read_file, write_file

FOLDER = "attacks"


class FolderMemory:
    """Attempts and flips as `attacks/KEY.npz` in the folder of a report."""

    def __init__(self, folder: Path, run: str, device: torch.device) -> None:
        """Args: folder: of the report. run: digest of all that decides the attacks; files of other runs are passed
        over. device: of the model."""
        self._folder, self._run, self._device = folder / FOLDER, run, device
        self._names: set[str] = set()

    def recall(self, key: str) -> Attempt | None:
        """As in `Memory`. What is damaged or of another run is as if it were not there."""
        try:
            if (stored := self._read(key)) is None:
                return None
            facts, arrays = stored
            views = tuple(torch.from_numpy(arrays[f"view_{v}"]).to(self._device) for v in range(facts["views"]))
            points = AttackedPoints(views, dict(facts["details"]), tuple(facts["curve"]))
            rows = torch.from_numpy(arrays["rows"]).to(self._device)
            found = Attempt(rows=rows, points=points, **{name: facts[name] for name in _COSTS})
        except _DAMAGED:
            return None
        self._names.add(f"{key}.npz")
        return found

    def keep(self, key: str, attempt: Attempt) -> None:
        """As in `Memory`. Raises: OSError if the folder cannot be written to."""
        points = attempt.points
        facts = {
            "views": len(points.views),
            "details": points.details,
            "curve": list(points.curve),
            **{name: getattr(attempt, name) for name in _COSTS},
        }
        arrays = {f"view_{v}": view.detach().cpu().numpy() for v, view in enumerate(points.views)}
        self._write(key, facts, rows=attempt.rows.cpu().numpy(), **arrays)

    def recall_flips(self, key: str) -> torch.Tensor | None:
        """As in `Memory`, with what is damaged or of another run as above."""
        try:
            stored = self._read(key)
            found = None if stored is None else torch.from_numpy(stored[1]["flipped"]).to(self._device)
        except _DAMAGED:
            return None
        self._names.add(f"{key}.npz")
        return found

    def keep_flips(self, key: str, flipped: torch.Tensor) -> None:
        """As in `Memory`. Raises: as `keep`."""
        self._write(key, {}, flipped=flipped.cpu().numpy())

    def _read(self, key: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        content = read_file(str(self._folder), f"{key}.npz")
        if content is None:
            return None
        arrays = arrays_in(content, str(self._folder))
        facts = json.loads(str(arrays["facts"]))
        return (facts, arrays) if facts["run"] == self._run else None

    def _write(self, key: str, facts: dict[str, Any], **arrays: np.ndarray) -> None:
        buffer = io.BytesIO()
        whole = np.array(json.dumps({"run": self._run, **facts}))
        np.savez_compressed(buffer, allow_pickle=False, facts=whole, **arrays)
        write_file(str(self._folder), f"{key}.npz", buffer.getvalue())
        self._names.add(f"{key}.npz")

    def forget(self) -> None:
        """Deletes what it has kept and recalled, once the report is there."""
        for name in self._names:
            (self._folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # what others have put there stays
            self._folder.rmdir()


_DAMAGED = (OSError, ValueError, KeyError, TypeError)
_COSTS = ("forwards", "backwards", "seconds")
