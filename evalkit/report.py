"""The report of a run: its tables, written beside its record by the same code that makes leaderboards."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.leaderboard import task_files, task_rows
from evalkit.run import Outcome
from evalkit.table import Table, build_table


@dataclass
class Report:
    """Tables of a run, the files written, and all rows as JSON values."""

    tables: list[Table] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def write_report(outcome: Outcome) -> Report:
    """Build the tables of a run, against the baseline that was asked for, and write them to ``RUN/tables``."""
    report = Report()
    by_task: dict[str, list[dict[str, Any]]] = {}
    for r in outcome.results:
        by_task.setdefault(r["task"]["name"], []).append(r)
    for results in by_task.values():
        table = build_table(results, results[0]["baseline"])
        report.tables.append(table)
        report.rows += task_rows(table)["rows"]
        for name, content in task_files(table).items():
            path = outcome.directory / "tables" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
            temporary.write_bytes(content)
            os.replace(temporary, path)
            report.files.append(path)
    return report
