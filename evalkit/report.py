"""The report of a run: its tables, written beside its record by the same code that makes leaderboards."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.errors import UsageError
from evalkit.leaderboard import task_files, task_rows
from evalkit.run import Outcome
from evalkit.table import Table, build_table


@dataclass
class Report:
    """Tables of a run, the files written, and all rows as JSON values."""

    tables: list[Table] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def write_report(outcome: Outcome, baseline: str | None = None) -> Report:
    """Build the tables of a run and write them to ``RUN/tables``. A baseline absent from a task is passed over there.

    Raises:
        UsageError: the baseline is in no task of the run.
    """
    report = Report()
    by_task: dict[str, list[dict[str, Any]]] = {}
    for r in outcome.results:
        by_task.setdefault(r["task"]["name"], []).append(r)
    unknown: UsageError | None = None
    for results in by_task.values():
        try:
            table = build_table(results, baseline)
        except UsageError as error:
            unknown, table = error, build_table(results)
        report.tables.append(table)
        report.rows += task_rows(table)["rows"]
        for name, content in task_files(table).items():
            path = outcome.directory / "tables" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
            temporary.write_bytes(content)
            os.replace(temporary, path)
            report.files.append(path)
    if unknown:
        raise unknown
    return report
