"""Tables on the terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evalkit.text import printable, with_interval

if TYPE_CHECKING:
    from evalkit.table import Cell, Table


def console() -> Any:
    """A rich console on stdout: as wide as the terminal, 160 columns where there is none."""
    from rich.console import Console

    _write_what_it_can()
    return Console(emoji=False) if sys.stdout.isatty() else Console(width=160, emoji=False)


def _write_what_it_can() -> None:
    """A terminal or a pipe that is not Unicode gets ``?`` for what it cannot show, not an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def show_table(table: Table, out: Any = None) -> None:
    """The headline columns of one task."""
    from rich.table import Table as RichTable
    from rich.text import Text

    from evalkit.markdown import ARROWS, clips_text, rate_text

    out = out or console()
    shown = RichTable(
        title=Text(f"{table.task['name']}: {clips_text(table.task)}"), title_justify="left", show_lines=True
    )
    shown.add_column("system", overflow="fold")
    rated = table.task["identity"]["task"]["capability"] == "reconstruct"  # a caption has no bit rate
    if rated:
        shown.add_column("kbps", justify="right")
    for column in table.headline:
        unit = f"\n{column.unit}" if column.unit not in ("", "1") else ""
        shown.add_column(Text(f"{column.name} {ARROWS[column.direction]}{unit}"), justify="right", overflow="fold")
    for row in table.rows:
        role = row.result["system"]["role"]
        label = Text(printable(row.label))
        if role not in ("codec", None):
            label.append(f"\n{role}", style="dim")
        if len(row.seeds) > 1:
            label.append(f"\n{len(row.seeds)} noise seeds", style="dim")
        rate = rate_text(row).replace(" *declared*", "\ndeclared")
        shown.add_row(label, *([rate] if rated else []), *(_cell(row.cells[c.name]) for c in table.headline))
    out.print(shown)
    notes = sorted({c.note for r in table.rows for h in table.headline if (c := r.cells[h.name]).note})
    notes += sorted({f"{c.name}: {n}" for c in table.headline for n in c.notes})
    flags = sorted({f"{h.name}: {f}" for r in table.rows for h in table.headline for f in r.cells[h.name].flags})
    out.print(
        Text(
            "mean [95% interval over clusters], #rank with ties and tie group, clips scored/failed/n.a./missing"
            + "".join(f"\n‡ {printable(n)}" for n in notes)
            + "".join(f"\n⚠ {printable(f)}" for f in flags),
            style="dim",
        )
    )
    for row in table.rows:
        for note in row.result.get("notes", ()):
            out.print(Text(f"{printable(row.label)}: {printable(note)}", style="yellow"))
    for who, why in table.refused:
        out.print(Text(f"refused: {printable(who)} differs in {printable(why)}", style="yellow"))


def _cell(cell: Cell) -> Any:
    from rich.text import Text

    if cell.value is None:
        reason = cell.reason if cell.reason.startswith("n/a") else f"n/a: {cell.reason}"
        text = Text(printable(reason if len(reason) <= 60 else reason[:57] + "..."), style="dim")
    else:
        text = Text(
            with_interval(cell.value, cell.low, cell.high) + (" ‡" if cell.note else "") + (" ⚠" if cell.flags else "")
        )
    rank = f"#{cell.rank} {cell.letters}  " if cell.rank else ""
    text.append(f"\n{rank}{cell.coverage_text}", style="dim")
    return text


def show_columns(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain listing; the last column wraps. Without rich, whose import would be most of `evalkit list`."""
    import shutil
    import textwrap

    _write_what_it_can()
    cells = [[printable(c) for c in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1]
    indent = sum(widths) + 2 * len(widths)
    room = max(40, (shutil.get_terminal_size().columns if sys.stdout.isatty() else 160) - indent)
    if title:
        print(printable(title))
    for row in cells:
        first, *more = textwrap.wrap(row[-1], room) or [""]
        print("".join(c.ljust(w + 2) for c, w in zip(row, widths, strict=False)) + first)
        for line in more:
            print(" " * indent + line)
