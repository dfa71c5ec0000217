"""Attacks that an evaluation has finished, kept beside its report until this is written: an interrupted one goes on."""

import io
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from ardmvc_core.attacks.attack import AttackedPoints
from ardmvc_core.attacks.suite import Attempt
from trainables.saved_trial import arrays_in
from trainables.storage import read_file, write_file

FOLDER = "attacks"


class FolderMemory:
    """Attempts as `attacks/KEY.npz` in the folder of a report."""

    def __init__(self, folder: Path, run: str, device: torch.device) -> None:
        """Args: folder: of the report. run: digest of all that decides the attacks; files of other runs are passed
        over. device: of the model."""
        self._folder, self._run, self._device = folder / FOLDER, run, device
        self._names: set[str] = set()

    def recall(self, key: str) -> Attempt | None:
        """As in `Memory`. What is damaged or of another run is as if it were not there."""
        try:
            content = read_file(str(self._folder), f"{key}.npz")
            if content is None:
                return None
            arrays = arrays_in(content, str(self._folder))
            facts = json.loads(str(arrays["facts"]))
            if facts["run"] != self._run:
                return None
            views = tuple(torch.from_numpy(arrays[f"view_{v}"]).to(self._device) for v in range(facts["views"]))
            points = AttackedPoints(views, dict(facts["details"]), tuple(facts["curve"]))
            rows = torch.from_numpy(arrays["rows"]).to(self._device)
            found = Attempt(rows=rows, points=points, **{name: facts[name] for name in _COSTS})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self._names.add(f"{key}.npz")
        return found

    def keep(self, key: str, attempt: Attempt) -> None:
        """As in `Memory`. Raises: OSError if the folder cannot be written to."""
        points = attempt.points
        facts = {
            "run": self._run,
            "views": len(points.views),
            "details": points.details,
            "curve": list(points.curve),
            **{name: getattr(attempt, name) for name in _COSTS},
        }
        arrays = {f"view_{v}": view.detach().cpu().numpy() for v, view in enumerate(points.views)}
        buffer = io.BytesIO()
        rows = attempt.rows.cpu().numpy()
        np.savez_compressed(buffer, allow_pickle=False, facts=np.array(json.dumps(facts)), rows=rows, **arrays)
        write_file(str(self._folder), f"{key}.npz", buffer.getvalue())
        self._names.add(f"{key}.npz")

    def forget(self) -> None:
        """Deletes what it has kept and recalled, once the report is there."""
        for name in self._names:
            (self._folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # what others have put there stays
            self._folder.rmdir()


_COSTS = ("forwards", "backwards", "seconds")
