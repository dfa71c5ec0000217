"""Ray's class Trainables: its methods handed to a trial, nothing else."""

import faulthandler
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import ray
import torch
from ray import tune
from torch import nn

from trainables.attack_trial import AttackTrial
from trainables.checkpoints import Checkpoints, round_of
from trainables.config import AttackTrialConfig, TrialConfig
from trainables.data_parts import DataKey, provide_parts
from trainables.heartbeat import beat_as, begin_round, count_pass, tell
from trainables.reference import provide_reference, reference_from
from trainables.round_limit import RoundLimit, is_last
from trainables.saved_trial import ARRAYS_FILE, CONFIG_FILE, STATE_FILE
from trainables.scratch import clear_scratch
from trainables.trial import Report, Trial

REPORT_FILE = "report.json"
"""In a checkpoint: what its round reports, for the case that nobody lives to record it."""
FILES = frozenset({STATE_FILE, CONFIG_FILE, ARRAYS_FILE, REPORT_FILE})
"""All that a trial's checkpoint may hold."""


class RunsInRounds(Protocol):
    """What a Trainable drives."""

    def run_round(self) -> Report: ...
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None:
        """Changes nothing when it raises."""


class TrialTrainable(tune.Trainable):
    """Runs one trial in rounds, and stores a checkpoint after each before it is reported.

    Ray's config holds `config` (the trial's, as JSON), `number`, `threads`, `folder` (of the trial's checkpoints),
    `resume` (recorded checkpoints, newest first), `patience` (seconds that a failing storage is tried again), `limit`
    (of a round, as `RoundLimit` has it), `rounds_behind`, `whole` (whether the next round holds the whole evaluation)
    and `beat` (what the worker's heartbeat is told under). Ray's own checkpoints are not used: a trial that lost its
    worker is given out again by the driver, from what the study's database has recorded.
    """

    files: ClassVar[frozenset[str] | None] = None
    """Names that the files of its checkpoints may have; None: any plain name."""
    trial: RunsInRounds | None = None

    def build(self, config: dict[str, Any]) -> RunsInRounds:
        raise TypeError(f"{type(self).__name__} must say how its trial is built")

    def setup(
        self, config: dict[str, Any], data: Mapping[DataKey, Any] | None = None, reference: bytes | None = None
    ) -> None:
        """Args: data: parts of data sets in Ray's object store, by what they are; others are read from their files.
        reference: the study's reference partition, as a file; None: the trial computes it if it needs one.
        """
        beat_as(config["beat"])
        torch.set_num_threads(config["threads"])
        self.trial = None  # an actor that is used again must not hold two trials in memory
        self._limit, self._last = RoundLimit(**config["limit"]), config["whole"]
        self._behind = config["rounds_behind"]
        self._patience = float(config["patience"])
        self._checkpoints = Checkpoints(config["folder"], patience=self._patience, files=self.files, tell=tell)
        with time_limit(self._storage_seconds):
            self._checkpoints.look()
        clear_scratch()  # on this machine, where no driver may ever start
        provide_parts({key: partial(ray.get, stored) for key, stored in (data or {}).items()})
        provide_reference(None if reference is None else partial(reference_from, reference))
        self._checkpoints.while_away(partial(self._build, config["config"]), "cannot build the trial")
        assert self.trial is not None
        with time_limit(self._storage_seconds):
            self._stored: Report | None = None
            self._notes: list[str] = self._checkpoints.restore(config["resume"], self.trial.load, self._adopt)[1]

    def _build(self, config: str) -> None:
        with time_limit(self._limit.seconds(last=True)):
            self.trial = self.build(json.loads(config))

    @property
    def _storage_seconds(self) -> float:
        """Waiting for a storage is allowed for; one that hangs in place of failing is not."""
        limit = self._limit.seconds(last=True)
        return limit and limit + 2 * self._patience

    def _adopt(self, folder: Path, place: str) -> bool:
        """Goes on from a round that an attempt had stored and nobody lived to record: its report is given again."""
        assert self.trial is not None
        file = folder / REPORT_FILE
        if not file.exists():
            return False
        report: Report = {**json.loads(file.read_text()), "checkpoint": place}
        if report["round"] != round_of(place):
            raise ValueError(f"{place} reports round {report['round']!r}")
        self.trial.load(folder)
        self._stored = report
        return True

    def step(self) -> Report:
        assert self.trial is not None
        if self._stored is not None:
            report, self._stored = self._stored, None
            self._last, self._behind = is_last(report), report["round"]
            return self._noted(report)
        begin = time.monotonic()
        begin_round(self._behind)
        with time_limit(self._limit.seconds(last=self._last)):
            report = self.trial.run_round()
        if "failure" not in report:
            self._limit.saw(time.monotonic() - begin, last=self._last)
            self._last, self._behind = is_last(report), report["round"]
            with time_limit(self._storage_seconds):
                report["checkpoint"] = self._checkpoints.save(report["round"], partial(self._save, report))
        return self._noted(report)

    def _save(self, report: Report, folder: Path) -> None:
        assert self.trial is not None
        self.trial.save(folder)
        (folder / REPORT_FILE).write_text(json.dumps(report))

    def _noted(self, report: Report) -> Report:
        report = {**report, "limit": self._limit.seconds(last=self._last)}
        notes = [*self._notes, *self._checkpoints.waited]
        self._notes, self._checkpoints.waited = [], []
        return {**report, "notes": json.dumps(notes)} if notes else report

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends the process, after its stack on stderr, when the block takes longer; 0 sets no limit.

    The watch is a thread of the interpreter's own that needs no lock of Python's: a hang in native code ends too.
    """
    if seconds > 0:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        if seconds > 0:
            faulthandler.cancel_dump_traceback_later()


def _count_passes(model: nn.Module) -> None:
    """For the heartbeat, by the first encoder: it sees every pass."""
    model.get_submodule("encoders.0").register_forward_hook(count_pass)


class ModelTrainable(TrialTrainable):
    """Trains a model and scores it clean and attacked."""

    files = FILES

    def build(self, config: dict[str, Any]) -> RunsInRounds:
        return Trial(TrialConfig.model_validate(config), _count_passes)


class AttackTrainable(TrialTrainable):
    """Trains an attacker against one saved model and scores the damage."""

    files = FILES

    def build(self, config: dict[str, Any]) -> RunsInRounds:
        trial = AttackTrial(AttackTrialConfig.model_validate(config))
        _count_passes(trial.model)
        return trial


TRAINABLES: dict[str, type[tune.Trainable]] = {"model": ModelTrainable, "attacker": AttackTrainable}
