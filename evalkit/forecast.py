"""`--dry-run`: what a request would do, what is there already, and how long the rest would take."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit import execute
from evalkit.plan import Cell, Plan, Request, load_user_files, make_plan
from evalkit.record import RunDirectory
from evalkit.run import default_directory, predict_unit
from evalkit.work import ScoreUnit, load_metric, metric_id, predict, score

PROBE_TIMEOUT = 60.0


@dataclass(frozen=True)
class Line:
    """One system on one task. ``seconds`` is the forecast on one worker, from one clip that was probed; None: see why.

    ``cached`` and ``todo`` count predictions: ``clips`` of them for each of ``seeds`` noise seeds.
    """

    task: str
    system: str
    clips: int
    metrics: int
    cached: int
    todo: int
    seconds: float | None
    why: str = ""
    seeds: int = 1


@dataclass(frozen=True)
class Forecast:
    directory: Path
    cells: tuple[Line, ...]
    errors: tuple[str, ...]

    def lines(self) -> list[tuple[str, ...]]:
        return [
            (
                c.task,
                c.system,
                f"{c.clips:,}" + (f" x {c.seeds} seeds" if c.seeds > 1 else ""),
                str(c.metrics),
                f"{c.cached:,}",
                f"{c.todo:,}",
                c.why or ("-" if c.seconds is None else f"{c.seconds:.0f} s"),
            )
            for c in self.cells
        ]

    def summary(self) -> str:
        known = [c.seconds for c in self.cells if c.seconds is not None]
        todo, every = sum(c.todo for c in self.cells), sum(c.clips * c.seeds for c in self.cells)
        parts = [
            f"{todo:,} of {every:,} results to compute, about "
            f"{sum(known):.0f} s on one worker (each system probed on one clip)"
        ]
        parts += [f"failed whole: {e}" for e in self.errors]
        return "\n".join(parts)

    def as_json(self) -> dict[str, Any]:
        """The forecast as JSON values; ``seeds`` is there if any system is run with several."""
        hidden = {"seeds"} if all(c.seeds == 1 for c in self.cells) else set()
        cells = [{k: v for k, v in vars(c).items() if k not in hidden} for c in self.cells]
        return {"directory": str(self.directory), "cells": cells, "errors": list(self.errors)}


def forecast(request: Request, out: str | Path | None = None) -> Forecast:
    """Plan a request and probe one pending clip a system; nothing is written to the run directory."""
    directory = Path(out) if out else default_directory(request)
    load_user_files(request)
    workers = execute.make(1)
    try:
        plan = make_plan(request, workers)
        with tempfile.TemporaryDirectory() as scratch:
            rows: dict[tuple[str, str], list[Cell]] = {}
            for c in plan.cells:
                rows.setdefault((c.task.name, c.system["name"]), []).append(c)
            cells = tuple(_line(row, RunDirectory(directory), workers, scratch) for row in rows.values())
    finally:
        workers.close(now=True)
    return Forecast(directory, cells, tuple(_errors(plan)))


def _errors(plan: Plan) -> list[str]:
    return [f"{t.name}: {t.error}" for t in plan.tasks if t.error] + [
        f"{s['name']}: {s['error']}" for s in plan.systems if "error" in s
    ]


def _line(cells: Sequence[Cell], directory: RunDirectory, workers: execute.Executor, scratch: str) -> Line:
    cell, seeds = cells[0], len(cells)
    n, m = len(cell.task.items), len(cell.task.metrics)
    name = cell.system["name"]
    if cell.error or cell.not_applicable:
        return Line(cell.task.name, name, n, m, 0, 0, None, cell.error or f"n/a: {cell.not_applicable}", seeds)
    done = directory.predictions()
    scores = directory.scores()
    wanted = {metric_id(load_metric(s)) for s in cell.task.metrics if not load_metric(s).of_text}
    todo = [
        (c, i)
        for c in cells
        for i, k in enumerate(c.keys)
        if k not in done or (done[k]["status"] == "ok" and wanted - scores.get(k, {}).keys())
    ]
    if not todo:
        return Line(cell.task.name, name, n, m, n * seeds, 0, 0.0, seeds=seeds)
    seconds, why = _probe(*todo[len(todo) // 2], workers, scratch)
    forecast_s = None if seconds is None else seconds * len(todo)
    return Line(cell.task.name, name, n, m, n * seeds - len(todo), len(todo), forecast_s, why, seeds)


def _probe(cell: Cell, i: int, workers: execute.Executor, scratch: str) -> tuple[float | None, str]:
    """Seconds for one clip, the second time round: the first loads the system."""
    assert cell.task.task is not None
    prepare, item, key = cell.task.task.prepare, cell.task.items[i], cell.keys[i]
    unit = predict_unit(scratch, cell, [i])
    try:
        started = 0.0
        for _ in range(2):
            started = time.perf_counter()
            record = workers.submit(predict, unit, PROBE_TIMEOUT).result()[0]
            if record["status"] != "ok":
                return None, f"{record['status']}: {record['reason']}"
            workers.submit(
                score,
                ScoreUnit(
                    scratch,
                    cell.system["spec"],
                    item,
                    key,
                    prepare,
                    cell.seed,
                    cell.task.domain,
                    record,
                    tuple(m for m in cell.task.metrics if not load_metric(m).of_text),
                ),
                PROBE_TIMEOUT,
            ).result()
        return time.perf_counter() - started, ""
    except (execute.Crashed, execute.TimedOut) as error:
        return None, f"probe {error}"
