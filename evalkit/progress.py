"""Progress of a run: a live bar on a terminal, plain lines elsewhere. Everything goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from evalkit.text import printable

LINE_EVERY_S = 10.0
NOTES_SHOWN = 20


class Bar:
    """A rich progress bar; notes scroll above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task: Any = None
        self._notes = 0

    def note(self, text: str) -> None:
        self._notes += 1
        if self._notes <= NOTES_SHOWN:
            self._console.print(printable(text), markup=False, highlight=False, style="yellow")
        elif self._notes == NOTES_SHOWN + 1:
            self._console.print("... further notes are in the record", style="yellow")

    def start(self, total: int, already: int) -> None:
        if already:
            self._console.print(f"{already:,} of {total:,} results are there already", highlight=False)
        self._bar.start()
        self._task = self._bar.add_task("starting", total=total, completed=already)

    def step(self, what: str) -> None:
        self._bar.update(self._task, advance=1, description=what[-60:])

    def close(self) -> None:
        self._bar.stop()


class Lines:
    """A line every few seconds, for logs."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or sys.stderr
        self._total = self._done = self._notes = 0
        self._started = self._last = time.monotonic()

    def _print(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)

    def note(self, text: str) -> None:
        self._notes += 1
        if self._notes <= NOTES_SHOWN:
            self._print(f"note: {text}")
        elif self._notes == NOTES_SHOWN + 1:
            self._print("note: ... further notes are in the record")

    def start(self, total: int, already: int) -> None:
        self._total, self._done = total, already
        self._started = self._last = time.monotonic()
        self._print(f"{total:,} results to have, {already:,} there already")

    def step(self, what: str) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last >= LINE_EVERY_S or self._done == self._total:
            self._last = now
            self._print(f"{self._done:,}/{self._total:,} {what} ({now - self._started:.0f} s)")

    def close(self) -> None:
        pass


def make() -> Bar | Lines:
    """A bar where stderr is a terminal, lines elsewhere."""
    return Bar() if sys.stderr.isatty() else Lines()


@contextmanager
def bytes_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A callback ``tell(name, bytes done, bytes in all or None)`` for downloads."""
    if not sys.stderr.isatty():
        last: dict[str, float] = {}

        def line(name: str, done: int, total: int | None) -> None:
            if time.monotonic() - last.get(name, 0.0) >= LINE_EVERY_S or done == total:
                last[name] = time.monotonic()
                of = f" of {total / 1e6:,.1f}" if total else ""
                print(f"{printable(name)}: {done / 1e6:,.1f}{of} MB", file=sys.stderr, flush=True)

        yield line
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    ) as bar:
        tasks: dict[str, Any] = {}

        def tell(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(printable(name), total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield tell
