"""What `evalkit train tokenizer` runs: a recipe from a preset and overrides, with progress on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalkit.text import printable


def train(
    preset: str, overrides: Sequence[str], out: str | Path | None, data_root: str | None, cache: str | Path | None
) -> dict[str, Path]:
    """Train, or finish what a killed run left; the folders of the tokenizers by name (see `tokenizer.train.train`)."""
    from tokenizer import train as training
    from tokenizer.recipe import recipe

    made = recipe(preset, overrides)
    folder = Path(out) if out is not None else Path("runs") / f"tokenizer-{preset}"
    with _Shown() as shown:
        return training.train(made, folder, data_root=data_root, cache=cache, tell=shown.tell, bar=shown.bar)


class _Shown:
    """A bar a stage on a terminal, plain lines elsewhere; all on stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> _Shown:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def tell(self, text: str) -> None:
        if self.console.is_terminal:
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        else:
            print(printable(text), file=sys.stderr, flush=True)

    def bar(self, stage: str, done: int, steps: int) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=steps)
        self.progress.update(self.tasks[stage], completed=done)
