"""What a run shows while it goes: the pre-flight, progress, and where the results lie. Rank 0 only."""

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 5.0


def bytes_text(count: float) -> str:
    """Return a number of bytes for people: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration_text(seconds: float) -> str:
    """Return a duration for people: 75 -> '1 min 15 s'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def preflight(title: str, facts: Sequence[tuple[str, str]], notes: Sequence[str] = ()) -> None:
    """Print what is about to happen, before the first step: a title, facts in two columns, and notes."""
    print(title, flush=True)
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        print(f"  {name:<{width}}  {text}", flush=True)
    for note in notes:
        print(f"  note: {note}", flush=True)


class TrainingProgress:
    """Progress of a training loop: a bar on a terminal, a plain line every few seconds otherwise.

    Args:
        total: units of work of the whole run (samples, say).
        done: units done by an earlier part of a resumed run.
        show: False on all ranks but 0, which makes every method do nothing.
    """

    def __init__(self, total: int, done: int = 0, *, show: bool = True) -> None:
        self.total, self.show = total, show
        self._done_before, self._done = done, done
        self._values: dict[str, str] = {}
        self._start = self._last_line = time.monotonic()
        self._said_estimate = False
        self._bar: Progress | None = None
        if show and sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),  # what the others leave, so that all of it fits into 80 columns
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("to go"),
            )
            self._bar = Progress(*columns, console=Console())
            self._task = self._bar.add_task("starting", total=total, completed=done)

    def __enter__(self) -> "TrainingProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, values: Mapping[str, str]) -> None:
        """Show that `done` units are finished, with the newest values, already formatted ("loss": "1.23")."""
        if not self.show:
            return
        first, self._done = self._done == self._done_before, done
        self._values |= dict(values)
        text = "  ".join(f"{name} {value}" for name, value in self._values.items())
        if self._bar:
            self._bar.update(self._task, completed=done, description=text)
            return
        now = time.monotonic()
        # The first steps carry start-up costs (allocation, autotuning), so the estimate waits for a few seconds' work.
        if not self._said_estimate and not first and now - self._start > 3:
            self._said_estimate = True
            print(f"about {duration_text(self._remaining_s(now))} to go", flush=True)
        if now - self._last_line >= PLAIN_INTERVAL_S or done >= self.total:
            self._last_line = now
            print(f"{done / self.total:4.0%}  {text}  {duration_text(self._remaining_s(now))} to go", flush=True)

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        if not self.show:
            return
        if self._bar:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, flush=True)

    def _remaining_s(self, now: float) -> float:
        fresh = max(self._done - self._done_before, 1)
        return (now - self._start) / fresh * max(self.total - self._done, 0)


def say(line: str, **options: Any) -> None:
    """Print a line at once."""
    print(line, flush=True, **options)
