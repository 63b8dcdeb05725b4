"""Leaderboards: markdown, CSV and JSON, rebuilt byte for byte from small result records kept beside them.

::

    leaderboards/README.md                      index
        <task>.md, .csv, .json                  deterministic measures
        <task>.cost.md                          time and memory: differ between machines and runs
        published.toml                          numbers from papers, each with its citation (written by hand)
        records/<task>/<system>-<hash>.json     what the above is made of
        records/<task>/<system>-<hash>.cost.json
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.errors import EvalkitError, UsageError
from evalkit.identity import canonical_json
from evalkit.markdown import render_cost, render_index, render_task
from evalkit.record import RunDirectory
from evalkit.results import FORMAT, collect, file_name
from evalkit.table import Table, build_table
from evalkit.text import safe_name


def update(runs: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Add the results of run directories to a leaderboard folder and rebuild it; returns the written tables.

    A result replaces an earlier one of the same task, system and seed; a run with other noise seeds adds to a
    stochastic system's row. Without runs: rebuild only.

    Raises:
        UsageError: a folder that is no run directory, or a run that is unfinished.
    """
    out = Path(out)
    for directory in map(RunDirectory, runs):
        status = directory.read()["status"]
        if status != "finished":
            raise UsageError(f"{directory.path}: the run is {status}, not finished; issue its command again first")
        for result in collect(directory):
            write_record(result, out / "records")
    files = rebuild(out)
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return [out / name for name in files if name.endswith(".md")]


def check(out: str | Path) -> list[str]:
    """The files of a leaderboard folder that differ from what its records give; empty when it is fresh."""
    out = Path(out)
    files = rebuild(out)
    return sorted(n for n, content in files.items() if not (out / n).is_file() or (out / n).read_bytes() != content)


def write_record(result: Mapping[str, Any], folder: Path) -> None:
    """Write one result in two files: what is deterministic, and what it cost."""
    steady = {n: m for n, m in result["metrics"].items() if m["deterministic"]}
    cost = {n: m for n, m in result["metrics"].items() if not m["deterministic"]}
    target = folder / safe_name(result["task"]["name"]) / file_name(result)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(canonical_json({**result, "metrics": steady}) + "\n", encoding="utf-8")
    target.with_suffix(".cost.json").write_text(canonical_json({"metrics": cost}) + "\n", encoding="utf-8")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records below a folder, in order of path, costs merged in.

    Raises:
        EvalkitError: a file that is not a record of this format.
    """
    results = []
    for path in sorted(folder.glob("*/*.json")):
        if path.name.endswith(".cost.json"):
            continue
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["format"] != FORMAT:
                raise EvalkitError(f"{path}: record format {result['format']}, this evalkit reads {FORMAT}")
            cost = path.with_suffix(".cost.json")
            if cost.is_file():
                result["metrics"] |= json.loads(cost.read_text(encoding="utf-8"))["metrics"]
        except (ValueError, KeyError, TypeError) as error:
            raise EvalkitError(f"{path}: not a result record ({error!r}); remove it or restore it") from error
        results.append(result)
    return results


def rebuild(out: Path) -> dict[str, bytes]:
    """Every generated file of a leaderboard folder as bytes, from ``records/`` and ``published.toml`` alone."""
    results = read_records(out / "records")
    published = read_published(out / "published.toml")
    by_task: dict[str, list[dict[str, Any]]] = {}
    for r in results:
        by_task.setdefault(r["task"]["name"], []).append(r)
    files: dict[str, bytes] = {}
    tables = []
    for name in sorted(by_task):
        wanted = {r["baseline"] for r in by_task[name] if r["baseline"]}
        table = build_table(by_task[name], _one_of(wanted, by_task[name]))
        tables.append(table)
        files |= task_files(table, [p for p in published if p["task"] == name])
    files["README.md"] = render_index(tables).encode()
    return files


def task_files(table: Table, published: Sequence[Mapping[str, Any]] = ()) -> dict[str, bytes]:
    """The files of one task's table."""
    stem = safe_name(table.task["name"])
    files = {
        f"{stem}.md": render_task(table, published).encode(),
        f"{stem}.csv": _csv(table).encode(),
        f"{stem}.json": _json(task_rows(table)).encode(),
    }
    if any(not c.deterministic for c in table.columns):
        files[f"{stem}.cost.md"] = render_cost(table).encode()
    return files


def read_published(path: Path) -> list[dict[str, Any]]:
    """Published numbers; each needs task, system, metric, value (or ``"not available"``) and citation.

    Raises:
        EvalkitError: damaged, or an entry without one of these.
    """
    import tomllib

    if not path.is_file():
        return []
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("published", [])
    except tomllib.TOMLDecodeError as error:
        raise EvalkitError(f"{path}: {error}") from error
    for i, entry in enumerate(entries, 1):
        for field in ("task", "system", "metric", "value", "citation"):
            if field not in entry:
                raise EvalkitError(f"{path}: entry {i} has no {field!r}")
    return entries


def _one_of(wanted: set[str], results: Sequence[Mapping[str, Any]]) -> str | None:
    present = {r["system"]["spec"] for r in results} | {r["system"]["name"] for r in results}
    return min(wanted & present, default=None)


def task_rows(table: Table) -> dict[str, Any]:
    """The deterministic part of a table as JSON values: one row a system and metric, and what was refused.

    Where a row of the table has several noise seeds, all have ``seeds`` (those it is made of; ``seed`` is the first)
    and, None for a single seed, the figures of `evalkit.seeds.Noise`: ``seed_sd`` (of the mean, over seeds),
    ``within_clip_sd`` and ``clip_sd``.
    """
    rows: list[dict[str, Any]] = []
    several = any(len(row.seeds) > 1 for row in table.rows)
    for row in table.rows:
        for column in table.columns:
            if column.deterministic:
                c = row.cells[column.name]
                scored, failed, na, missing = c.coverage
                rows.append(
                    {
                        "task": table.task["name"],
                        "system": row.label,
                        "full_name": row.result["system"]["name"],
                        "role": row.result["system"]["role"],
                        "seed": row.result["seed"],
                        "metric": column.name,
                        "metric_id": column.identifier,
                        "unit": column.unit,
                        "direction": column.direction,
                        "level": column.level,
                        "value": c.value,
                        "low": c.low,
                        "high": c.high,
                        "rank": c.rank,
                        "tie_group": c.letters,
                        "baseline": table.baseline,
                        "difference": c.diff,
                        "difference_low": c.diff_low,
                        "difference_high": c.diff_high,
                        "p_holm": c.p,
                        "scored": scored,
                        "failed": failed,
                        "not_applicable": na,
                        "missing": missing,
                        "reason": c.reason,
                        "note": c.note,
                        "flags": "; ".join(c.flags),
                        "detail": "; ".join(f"{k} {v}" for k, v in c.detail.items()),
                        "floor": c.floor,
                    }
                )
                if several:
                    rows[-1] |= {
                        "seeds": list(row.seeds),
                        "seed_sd": c.noise.of_mean if c.noise else None,
                        "within_clip_sd": c.noise.within_clip if c.noise else None,
                        "clip_sd": c.noise.over_clips if c.noise else None,
                    }
    return {"task": table.task, "rows": rows, "refused": [{"system": s, "differs": why} for s, why in table.refused]}


def _csv(table: Table) -> str:
    rows = task_rows(table)["rows"]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else ["task"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _inert(v) for k, v in row.items()} for row in rows)
    return out.getvalue()


def _inert(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets a quote in front; a list is separated by spaces."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
