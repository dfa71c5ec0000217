"""A study as a Python object: its trials as a frame, its leaderboard, its best trial."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.database.engine import LedgerError
from study.database.ledger import Ledger
from study.ranking.objectives import goals
from study.ranking.ranking import best, rank
from study.ranking.summary import summary
from study.records import Goal, TrialRecord
from study.secrets import redact
from study.spec import study_spec
from study.spec.schema import storage_place
from trainables.scratch import ensure_home

if TYPE_CHECKING:
    import pandas as pd

    from study.spec.study_spec import StudySpec


def load_spec(path: str | Path, **settings: Any) -> StudySpec:
    """Reads and checks a study.

    Args:   path: of a YAML file, or a name in `search_spaces/`. settings: dotted path into the study → value, as
        `--set` has it: `load_spec("smoke", **{"trial.epochs": 3, "name": "brief"})`.
    Raises: SpecError with every fault.

    >>> load_spec("smoke", **{"limits.concurrent": 1}).limits.concurrent
    1
    """
    return study_spec.load_spec(str(path), [f"{name}={json.dumps(value)}" for name, value in settings.items()])


def run(spec: StudySpec, *, address: str | None = None, takeover: bool = False, warm_start: str | None = None) -> Study:
    """Runs, continues or extends a study until its budget is used, and shows progress on stderr.

    Args:   address: a running Ray cluster; None starts one on this machine. takeover: take the study over from a driver
        that is gone. warm_start: name of a study whose trials inform the sampler.
    Returns: the study, whose `exit_code` says how the run ended: 0 done, 1 too many failed trials, 130 interrupted.
    Raises: StudyRefused before any trial starts; StudyBroken when the driver itself fails.
    """
    ensure_home()
    from study.driver import StudyRefused
    from study.driver.run import run_study
    from study.planning.preflight import environment_faults

    if faults := environment_faults(spec, cluster=address is not None):
        raise StudyRefused("\n".join(faults))
    code = run_study(spec, address=address, takeover=takeover, warm_start=warm_start, show_results=lambda records: None)
    return open(spec.name, storage=spec.storage.path, exit_code=code)


def open(name: str, *, storage: str | Path = "runs", exit_code: int | None = None) -> Study:  # noqa: A001
    """The study of that name.

    Args:   storage: the study's `storage.path`; `ARDMVC_STUDY_DB`, where it is set, says which database.
    Raises: LedgerError if there is no such study (known ones are named), the database cannot be reached, or `storage`
        is no place.
    """
    try:
        place = storage_place(str(storage))
    except ValueError as error:
        raise LedgerError(f"storage: {redact(str(error))}") from None
    return Study(Ledger.open_existing(name, storage_path=place), exit_code)


class Study:
    """A study in its database. Every look reads the database again, so a running study can be watched."""

    def __init__(self, ledger: Ledger, exit_code: int | None = None) -> None:
        self._ledger = ledger
        self.exit_code = exit_code
        """How the run that this object came from ended; None for a study that was only opened."""

    def __repr__(self) -> str:
        records = self.records
        done = sum(record.finished for record in records)
        return f"<study {self.name!r}: {done} of {self._ledger.budget} trials finished>"

    @property
    def name(self) -> str:
        """Its name in the database."""
        return self._ledger.name

    @property
    def spec(self) -> dict[str, Any]:
        """The resolved spec that it was last run with, as plain values."""
        return self._ledger.spec

    @property
    def objectives(self) -> Sequence[Goal]:
        """What it optimises: one goal, or two."""
        return goals(self.spec)

    @property
    def records(self) -> list[TrialRecord]:
        """Its trials in order of number, with config, every round's metrics and checkpoint."""
        return self._ledger.records()

    @property
    def best(self) -> TrialRecord | None:
        """The trial that ranks first; None before one is complete."""
        return best(self.records, self.objectives)

    @property
    def leaderboard(self) -> pd.DataFrame:
        """One row a trial, best first: rank, number, state, …, `objective/<metric>`, `param/<path>`, every metric."""
        import pandas as pd

        from study.reporting.tables import leaderboard_rows

        headings, rows = leaderboard_rows(rank(self.records, self.objectives), self.objectives)
        return pd.DataFrame(rows, columns=headings)

    @property
    def trials(self) -> pd.DataFrame:
        """The rows of `leaderboard` in order of number, which is their index."""
        return self.leaderboard.sort_values("number").set_index("number")

    def summary(self) -> str:
        """The best trial beside the baselines, and what the difference is worth, as a sweep prints it at its end."""
        return summary(self.records, self.objectives)
