"""Progress of one long piece of work, in a terminal and elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from study.records import duration

LINE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""

Progress = Callable[[str, float], None]
"""(what runs, share that is behind it)."""


@contextmanager
def shown_progress(stream: TextIO) -> Iterator[Progress]:
    """Shows what runs and the time left: a bar in a terminal, elsewhere a line at most every `LINE_SECONDS`."""
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(stream)
        return
    from rich import progress
    from rich.text import Text

    clock = _TimeLeft()

    class Left(progress.ProgressColumn):
        """Counts down between two reports, which can lie minutes apart."""

        def render(self, task: progress.Task) -> Text:
            return Text(clock.text())

    columns = (
        progress.TextColumn("{task.description:24}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        Left(),
    )
    with progress.Progress(*columns, console=console, transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("", total=1.0)

        def show(what: str, share: float) -> None:
            clock.note(share)
            bar.update(task, completed=share, description=what)

        yield show


class _TimeLeft:
    """Time left by the share that is done; shares are of the largest cost, so it is more often too long than short."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begin = clock, clock()
        self._end: float | None = None

    def note(self, share: float) -> None:
        """Estimates the end anew."""
        now = self._clock()
        known = 0 < share < 1 and now - self._begin >= 1
        self._end = self._begin + (now - self._begin) / share if known else None

    def text(self) -> str:
        """`~3 min left`; empty where nothing is known yet, or what was estimated is over."""
        left = 0.0 if self._end is None else self._end - self._clock()
        if left < 1:
            return ""
        return f"~{duration(left)} left"


class _Lines:
    """Progress as plain lines."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock, self._left = stream, clock, _TimeLeft(clock)
        self._last: float | None = None

    def __call__(self, what: str, share: float) -> None:
        now = self._clock()
        if not what or (self._last is not None and now - self._last < LINE_SECONDS):
            return
        self._last = now
        self._left.note(share)
        line = f"[{time.strftime('%H:%M:%S')}] {share:4.0%}  {what}  {self._left.text()}"
        self._stream.write(line.rstrip() + "\n")
        self._stream.flush()
