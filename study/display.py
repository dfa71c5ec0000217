"""What the driver shows while a study runs: a live table in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from study.leaderboard import Objective, best, override_paths, scores, short_names, show, value
from study.records import TrialRecord

SCORES = ("clean/acc", "probe/acc", "robust/acc")
SHOWN_PARAMS = 4


class LiveTable:
    """An `Observer` that shows trials, the best so far and the time left."""

    def __init__(
        self,
        objectives: Sequence[Objective],
        total_trials: int,
        records: Sequence[TrialRecord] = (),
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args: total_trials: the study's budget. records: what the database holds at the start. stream: where to write,
            default stderr, so that stdout holds results only. clock: seconds since the epoch.
        """
        self._objectives = objectives
        self._total = max(total_trials, len(records))
        self._records = {record.number: record for record in records}
        self._clock = clock
        self._begin = clock()
        self._rounds_done = 0
        """Rounds that this driver has seen ending, and those that ended trials did not need any more."""
        self._seen: dict[int, int] = {}
        self._touched: list[int] = []
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(self.table(), console=self._console, auto_refresh=False, redirect_stdout=False)
            self._live.start()

    def trial_started(self, record: TrialRecord) -> None:
        self._records[record.number] = record
        self._seen[record.number] = record.round
        self._touch(record.number)
        again = f" again at round {record.round}" if record.round else ""
        kind = "  baseline" if record.baseline else ""
        self._show(record, f"started{again}{kind}  {self._params(record)}")

    def trial_reported(self, record: TrialRecord) -> None:
        self._count(record, record.round)
        self._records[record.number] = record
        self._touch(record.number)
        self._show(record, f"round {record.round}/{record.rounds}  {self._scores(record)}")

    def trial_paused(self, record: TrialRecord) -> None:
        self._records[record.number] = record
        self._touch(record.number)
        reason = f" after: {record.attempts[-1].reason}" if record.state == "RUNNING" and record.attempts else ""
        self._show(record, f"waits at round {record.round}/{record.rounds}{reason}")

    def trial_ended(self, record: TrialRecord) -> None:
        self._count(record, record.rounds)
        self._records[record.number] = record
        self._touch(record.number)
        reason = f": {record.failure}" if record.failure else ""
        self._show(record, f"{_word(record)} at round {record.round}/{record.rounds}{reason}  {self._scores(record)}")

    def tick(self) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)

    def close(self) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)
            self._live.stop()
            self._live = None

    def _count(self, record: TrialRecord, reached: int) -> None:
        self._rounds_done += max(0, reached - self._seen.get(record.number, 0))
        self._seen[record.number] = max(reached, self._seen.get(record.number, 0))

    def _touch(self, number: int) -> None:
        if number in self._touched:
            self._touched.remove(number)
        self._touched.append(number)

    def _show(self, record: TrialRecord, text: str) -> None:
        if self._live:
            self.tick()
            return
        at = time.strftime("%H:%M:%S", time.localtime(self._clock()))
        line = f"[{at}] trial {record.number}  {text.strip()}  {self.progress()}"
        # One plain write: rich would wrap the line at the width of a terminal that is not there.
        self._console.file.write(line + "\n")
        self._console.file.flush()

    def progress(self) -> str:
        """Best so far, trials done and time left, in one line."""
        parts = [text for text in (self._best(), self._done(), self._left()) if text]
        return "  ".join(parts)

    def _best(self) -> str:
        top = best(self._records.values(), self._objectives)
        if top is None:
            return ""
        found = scores(top, self._objectives) or ()
        texts = [f"{o.metric} {score:.2f}" for o, score in zip(self._objectives, found, strict=True)]
        return f"best {', '.join(texts)} (trial {top.number})"

    def _done(self) -> str:
        return f"{sum(record.finished for record in self._records.values())}/{self._total} done"

    def seconds_left(self) -> float | None:
        """Rounds that remain at this driver's rate so far; None before the first round has ended."""
        rounds = max((record.rounds for record in self._records.values()), default=0)
        if not self._rounds_done or not rounds:
            return None
        open_trials = [record for record in self._records.values() if not record.finished]
        left = sum(max(0, record.rounds - record.round) for record in open_trials)
        left += max(0, self._total - len(self._records)) * rounds
        return (self._clock() - self._begin) / self._rounds_done * left

    def _left(self) -> str:
        left = self.seconds_left()
        return "" if not left else f"~{_duration(left)} left"

    def _metrics(self, records: Sequence[TrialRecord]) -> list[str]:
        wanted = dict.fromkeys([*SCORES, *(objective.metric for objective in self._objectives)])
        return [metric for metric in wanted if any(value(record, metric) is not None for record in records)]

    def _scores(self, record: TrialRecord) -> str:
        return "  ".join(f"{metric} {record.metrics[metric]:.2f}" for metric in self._metrics([record]))

    def _params(self, record: TrialRecord) -> str:
        names = short_names(record.overrides)
        return " ".join(f"{names[path]}={show(given)}" for path, given in record.overrides.items())

    def table(self) -> Table:
        """The running trials and as many of the latest others as the terminal has lines for."""
        records = self._visible()
        paths = override_paths(self._records.values())
        paths, names = (paths if len(paths) <= SHOWN_PARAMS else []), short_names(paths)
        metrics = self._metrics(list(self._records.values()))
        legend = "  * baseline" if any(record.baseline for record in records) else ""
        table = Table(
            box=box.SIMPLE_HEAD,
            caption=self.progress() + legend,
            caption_justify="left",
            pad_edge=False,
            collapse_padding=True,
        )
        for heading in ("trial", "state", "round"):
            table.add_column(heading, no_wrap=True)
        for path in paths:
            table.add_column(names[path].replace("_", " "), justify="right", overflow="fold")
        for metric in metrics:
            table.add_column(metric.replace("/", " "), justify="right", overflow="fold")
        table.add_column("time", justify="right", no_wrap=True)
        top = best(self._records.values(), self._objectives)
        for record in records:
            mark = " *" if record.baseline else ""
            table.add_row(
                f"{record.number}{mark}",
                _word(record),
                f"{record.round}/{record.rounds}",
                *(show(record.overrides.get(path)) for path in paths),
                *("" if (got := value(record, metric)) is None else f"{got:.3f}" for metric in metrics),
                _duration(record.seconds) if record.seconds else "",
                style="bold green" if top is not None and record.number == top.number else "",
            )
        return table

    def _visible(self) -> list[TrialRecord]:
        room = max(4, self._console.height - 9)
        top = best(self._records.values(), self._objectives)
        order = [number for number, record in self._records.items() if record.state == "RUNNING"]
        order += [top.number] if top is not None else []
        order += [*reversed(self._touched), *sorted(self._records, reverse=True)]
        return [self._records[number] for number in sorted(list(dict.fromkeys(order))[:room])]


def _word(record: TrialRecord) -> str:
    words = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
    return words[record.state]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
