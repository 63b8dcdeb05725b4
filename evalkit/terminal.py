"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from evalkit.markdown import ARROWS, clips_text, rate_text
from evalkit.table import Cell, Table
from evalkit.text import printable, with_interval


def console() -> Any:
    """A rich console on stdout: as wide as the terminal, 160 columns where there is none."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)


def show_table(table: Table, out: Any = None) -> None:
    """The headline columns of one task."""
    from rich.table import Table as RichTable
    from rich.text import Text

    out = out or console()
    shown = RichTable(title=Text(f"{table.task['name']}: {clips_text(table.task)}"), title_justify="left", show_lines=True)
    shown.add_column("system", overflow="fold")
    shown.add_column("kbps", justify="right")
    for column in table.headline:
        unit = f"\n{column.unit}" if column.unit else ""
        shown.add_column(Text(f"{column.name} {ARROWS[column.direction]}{unit}"), justify="right", overflow="fold")
    for row in table.rows:
        role = row.result["system"]["role"]
        label = Text(printable(row.label))
        if role != "codec":
            label.append(f"\n{role}", style="dim")
        rate = rate_text(row).replace(" *declared*", "\ndeclared")
        shown.add_row(label, rate, *(_cell(row.cells[c.name]) for c in table.headline))
    out.print(shown)
    notes = sorted({c.note for r in table.rows for h in table.headline if (c := r.cells[h.name]).note})
    notes += sorted({f"{c.name}: {n}" for c in table.headline for n in c.notes})
    out.print(Text("mean [95% interval over clusters], #rank with ties and tie group, clips scored/failed/n.a./missing"
                   + "".join(f"\n‡ {printable(n)}" for n in notes), style="dim"))
    for label, why in table.refused:
        out.print(Text(f"refused: {printable(label)} differs in {printable(why)}", style="yellow"))


def _cell(cell: Cell) -> Any:
    from rich.text import Text

    if cell.value is None:
        reason = cell.reason if cell.reason.startswith("n/a") else f"n/a: {cell.reason}"
        text = Text(printable(reason if len(reason) <= 60 else reason[:57] + "..."), style="dim")
    else:
        text = Text(with_interval(cell.value, cell.low, cell.high) + (" ‡" if cell.note else ""))
    rank = f"#{cell.rank} {cell.letters}  " if cell.rank else ""
    text.append(f"\n{rank}{cell.coverage_text}", style="dim")
    return text


def show_columns(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], out: Any = None) -> None:
    """A plain listing. Cells are text, never markup."""
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=title, title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(head):
        shown.add_column(name, overflow="fold", no_wrap=i == 0)
    for row in rows:
        shown.add_row(*(Text(printable(c)) for c in row))
    (out or console()).print(shown)
