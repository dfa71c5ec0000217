"""What the driver shows while a study runs: a live table in a terminal, plain lines elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from study.planning.cost import Passes
from study.ranking.objectives import value
from study.ranking.ranking import scores
from study.ranking.standing import Standing
from study.ranking.summary import short_names, show
from study.records import Goal, TrialRecord, WorkerAway, duration
from trainables.heartbeat import Place

SCORES = ("clean/acc", "probe/acc", "robust/acc")
SHOWN_PARAMS = 4
AGAIN_SECONDS = 30.0
"""What keeps a trial from going on is said again after so long at the earliest."""
LINE_SECONDS = 60.0
"""How long plain lines say nothing of a trial that is inside a round."""
REDRAW_SECONDS = 0.25
"""How often the table is drawn anew at most when much happens; what is left out comes with the next tick."""


class LiveTable:
    """An `Observer` that shows trials, the best so far and the time left."""

    def __init__(
        self,
        objectives: Sequence[Goal],
        total_trials: int,
        records: Sequence[TrialRecord] = (),
        *,
        costs: Callable[[TrialRecord], Sequence[Passes]] | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args: total_trials: the study's budget. records: what the database holds at the start. costs: of each round of a
            trial, default the same for all. stream: where to write, default stderr, so that stdout holds results only.
            clock: seconds since the epoch.
        """
        self._costs = costs or (lambda record: [Passes(1, 0)] * record.rounds)
        self._objectives = objectives
        self._total = max(total_trials, len(records))
        # What a line or the table tells of all trials is kept up one by one: neither costs more in a large study.
        self._records: dict[int, TrialRecord] = {}
        self._standing = Standing(objectives)
        self._running: dict[int, None] = {}
        self._paths: dict[str, None] = {}
        self._measured: Counter[str] = Counter()
        """How many trials have each metric that the table may show."""
        self._work = self._work_left = 0.0
        """Passes of all trials, and those that unfinished trials still need."""
        self._clock = clock
        self._begin = clock()
        self._work_done = 0.0
        """Passes of rounds that this driver has seen ending, and those that ended trials did not need any more."""
        self._ended = 0
        """Trials that this driver has seen ending."""
        self._inside: dict[int, float] = {}
        """Share of the round that a trial is in, as its worker tells it."""
        self._told_at: dict[int, float] = {}
        """When plain lines last said something of a trial."""
        self._seen: dict[int, int] = {}
        self._touched: dict[int, None] = {}
        self._away: dict[int, WorkerAway] = {}
        self._told: dict[int, WorkerAway] = {}
        """What plain lines have last said of workers that are away."""
        self._drawn = -REDRAW_SECONDS
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._live: Live | None = None
        self._closing = False
        for record in records:
            self._keep(record)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(self._whole(), console=self._console, auto_refresh=False, redirect_stdout=False)
            self._live.start(refresh=True)

    def trial_started(self, record: TrialRecord) -> None:
        self._keep(record)
        self._seen[record.number] = record.round
        self._touch(record.number)
        again = f" again at round {record.round}" if record.round else ""
        kind = "  baseline" if record.baseline else ""
        self._show(record, f"started{again}{kind}  {self._params(record)}")

    def trial_reported(self, record: TrialRecord) -> None:
        self._count(record, record.round)
        self._keep(record)
        self._touch(record.number)
        self._show(record, f"round {record.round}/{record.goal}  {self._scores(record)}")

    def trial_paused(self, record: TrialRecord) -> None:
        self._inside.pop(record.number, None)
        self._keep(record)
        self._touch(record.number)
        reason = f" after: {record.attempts[-1].reason}" if record.state == "RUNNING" and record.attempts else ""
        what = "rests" if record.rests else "waits"
        self._show(record, f"{what} at round {record.round}/{record.goal}{reason}")

    def trial_ended(self, record: TrialRecord) -> None:
        self._count(record, record.rounds)
        self._ended += 1
        self._keep(record)
        self._touch(record.number)
        reason = f": {record.failure}" if record.failure else ""
        self._show(record, f"{_word(record)} at round {record.round}/{record.goal}{reason}  {self._scores(record)}")

    def workers_away(self, away: Mapping[int, WorkerAway]) -> None:
        """The table shows it all the time; plain lines when it begins, and each time it has lasted twice as long."""
        self._away = dict(away)
        self._told = {number: told for number, told in self._told.items() if number in away}
        for number, now in away.items():
            told = self._told.get(number)
            if told is None or told.kind != now.kind or now.seconds >= max(2 * told.seconds, AGAIN_SECONDS):
                self._told[number] = now
                since = duration(now.seconds)
                texts = {
                    "silent": f"worker of trial {number} silent for {since}",
                    "missing": f"trial {number}  has waited {since} for a worker",
                    "waits": f"trial {number}  waits for its storage, for {since} so far: {now.reason}",
                }
                self._line(texts[now.kind])

    def rounds_at(self, places: Mapping[int, Place]) -> None:
        """The table shows it all the time; plain lines of a trial of which they have said nothing for a while."""
        for number, place in places.items():
            record = self._records.get(number)
            # A beat from before the round's end is of the round before.
            if record is None or place.round != record.round or record.round >= record.rounds:
                continue
            forward = self._costs(record)[record.round].forward
            share = self._inside[number] = min(place.passes / max(1, forward), 1.0)
            if share and self._clock() - self._told_at.get(number, self._begin) >= LINE_SECONDS:
                self._show(record, f"in round {record.round + 1}/{record.goal}: {share:.0%}")

    def tick(self) -> None:
        if self._live:
            self._drawn = time.monotonic()
            self._live.update(self._whole(), refresh=True)

    def close(self) -> None:
        self._closing = True
        if self._live:
            self._live.update(self._whole(), refresh=True)
            self._live.stop()
            self._live = None

    def _keep(self, record: TrialRecord) -> None:
        old = self._records.get(record.number)
        self._records[record.number] = record
        self._standing.keep(record)
        for one, sign in ((old, -1), (record, 1)):
            if one is not None:
                costs = [_total(cost) for cost in self._costs(one)[: one.given]]
                self._work += sign * sum(costs)
                self._work_left += sign * (0 if one.finished else sum(costs[one.round :]))
                self._measured.update(dict.fromkeys(self._metrics([one]), sign))
        self._paths |= dict.fromkeys(record.overrides)
        if record.state == "RUNNING":
            self._running[record.number] = None
        else:
            self._running.pop(record.number, None)

    def _count(self, record: TrialRecord, reached: int) -> None:
        costs = [_total(cost) for cost in self._costs(record)]
        self._work_done += sum(costs[self._seen.get(record.number, 0) : reached])
        self._inside.pop(record.number, None)
        self._seen[record.number] = max(reached, self._seen.get(record.number, 0))

    def _touch(self, number: int) -> None:
        self._touched.pop(number, None)
        self._touched[number] = None

    def _show(self, record: TrialRecord, text: str) -> None:
        self._told_at[record.number] = self._clock()
        if self._live:
            if time.monotonic() - self._drawn >= REDRAW_SECONDS:
                self.tick()
            return
        self._line(f"trial {record.number}  {text.strip()}")

    def _line(self, text: str) -> None:
        if self._live:
            return
        at = time.strftime("%H:%M:%S", time.localtime(self._clock()))
        line = f"[{at}] {text}  {self.progress()}"
        # One plain write: rich would wrap the line at the width of a terminal that is not there.
        self._console.file.write(line + "\n")
        self._console.file.flush()

    def progress(self) -> str:
        """Best so far, trials done and time left, in one line."""
        parts = [text for text in (self._best(), self._done(), self._left()) if text]
        return "  ".join(parts)

    def _best(self) -> str:
        top = self._standing.best
        if top is None:
            return ""
        found = scores(top, self._objectives) or ()
        texts = [f"{o.metric} {score:.2f}" for o, score in zip(self._objectives, found, strict=True)]
        return f"best {', '.join(texts)} (trial {top.number})"

    def _done(self) -> str:
        if any(record.leg for record in self._records.values()):
            seeds = sum(record.seeds for record in self._records.values() if record.judged)
            return f"{len(self._records)}/{self._total} trials begun, {seeds} seeds trained"
        return f"{self._standing.finished}/{self._total} done"

    def seconds_left(self) -> float | None:
        """Passes that remain at this driver's rate so far; None before it has seen a trial ending."""
        if not self._ended or not self._work_done:
            return None
        inside = sum(
            share * _total(self._costs(record)[record.round])
            for number, share in self._inside.items()
            if not (record := self._records[number]).finished and record.round < record.rounds
        )
        unmade = max(0, self._total - len(self._records)) * self._work / len(self._records)
        seconds = (self._clock() - self._begin) / (self._work_done + inside)
        return seconds * max(0.0, self._work_left + unmade - inside)

    def _left(self) -> str:
        left = self.seconds_left()
        return "" if not left else f"~{duration(left)} left"

    def _metrics(self, records: Sequence[TrialRecord]) -> list[str]:
        return [m for m in self._wanted() if any(value(record, m) is not None for record in records)]

    def _wanted(self) -> dict[str, None]:
        return dict.fromkeys([*SCORES, *(objective.metric for objective in self._objectives)])

    def _scores(self, record: TrialRecord) -> str:
        return "  ".join(f"{metric} {record.metrics[metric]:.2f}" for metric in self._metrics([record]))

    def _params(self, record: TrialRecord) -> str:
        names = short_names(record.overrides)
        return " ".join(f"{names[path]}={show(given)}" for path, given in record.overrides.items())

    def _whole(self) -> Table | Text:
        """The table; a line in its place as long as it would be a heading over nothing."""
        if self._records:
            return self.table()
        return Text("" if self._closing else self.progress())

    def table(self) -> Table:
        """The running trials and as many of the latest others as the terminal has lines for."""
        records = self._visible()
        paths = list(self._paths)
        paths, names = (paths if len(paths) <= SHOWN_PARAMS else []), short_names(paths)
        metrics = [metric for metric in self._wanted() if self._measured[metric]]
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
        top = self._standing.best
        for record in records:
            mark = " *" if record.baseline else ""
            table.add_row(
                f"{record.number}{mark}",
                self._state(record),
                self._round(record),
                *(show(record.overrides.get(path)) for path in paths),
                *("" if (got := value(record, metric)) is None else f"{got:.3f}" for metric in metrics),
                duration(record.seconds) if record.seconds else "",
                style="bold green" if top is not None and record.number == top.number else "",
            )
        return table

    def _round(self, record: TrialRecord) -> str:
        share = self._inside.get(record.number)
        inside = f" +{share:.0%}" if share and not record.finished else ""
        return f"{record.round}/{record.goal}{inside}"

    def _state(self, record: TrialRecord) -> str:
        away = self._away.get(record.number)
        if away is None or record.finished:
            return _word(record)
        words = {"silent": "silent", "missing": "no worker", "waits": "waits for storage"}
        return f"{words[away.kind]} {duration(away.seconds)}"

    def _visible(self) -> list[TrialRecord]:
        room = max(4, self._console.height - 9)
        chosen: dict[int, None] = {}
        for number in self._by_interest():
            chosen[number] = None
            if len(chosen) == room:
                break
        return [self._records[number] for number in sorted(chosen)]

    def _by_interest(self) -> Iterator[int]:
        """Numbers of trials: those that run, the best, those that something happened to, the others; some twice."""
        yield from sorted(self._running)
        if top := self._standing.best:
            yield top.number
        yield from reversed(self._touched)
        yield from reversed(self._records)


def _word(record: TrialRecord) -> str:
    words = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
    return words[record.state]


def _total(cost: Passes) -> int:
    return cost.forward + cost.backward
