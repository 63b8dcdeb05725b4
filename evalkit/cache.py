"""`evalkit cache explain`: why a prediction is reused or computed again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from evalkit.identity import short
from evalkit.plan import Plan
from evalkit.record import RunDirectory
from evalkit.work import load_metric, metric_id


@dataclass(frozen=True)
class Explanation:
    """What would happen to one clip of one cell, and why. ``verdict`` is hit, failed, unscored, miss or n/a.

    ``seed`` is the noise seed of a system that is run with several, else None.
    """

    task: str
    system: str
    clip: str
    verdict: str
    why: str
    seed: int | None = None


def explain(directory: RunDirectory, plan: Plan) -> list[Explanation]:
    """For every clip of the plan: is its prediction in the run directory, and if not, which parts of its key differ."""
    predictions, scores = directory.predictions(), directory.scores()
    by_clip: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in predictions.values():
        by_clip.setdefault((_family(record["system"]), record["clip"]), []).append(record)
    out = []
    seeds = Counter((c.task.name, c.system["name"]) for c in plan.cells)
    for cell in plan.cells:
        task, system = cell.task.name, cell.system["name"]
        seed = cell.seed if seeds[task, system] > 1 else None
        if cell.not_applicable or cell.error:
            verdict = "n/a" if cell.not_applicable else "failed"
            out.append(Explanation(task, system, "*", verdict, cell.not_applicable or cell.error, seed))
            continue
        wanted = {metric_id(i) for m in cell.task.metrics if not (i := load_metric(m)).of_text}
        for item, key, source in zip(cell.task.items, cell.keys, cell.task.sources, strict=True):
            if key not in predictions:
                near = by_clip.get((_family(system), item.id), [])
                why = _why_miss(near, cell.parts, source, system)
                out.append(Explanation(task, system, item.id, "miss", why, seed))
                continue
            record = predictions[key]
            if record["status"] != "ok":
                out.append(
                    Explanation(
                        task,
                        system,
                        item.id,
                        record["status"],
                        f"recorded: {record['reason']} (--retry-failed tries again)",
                        seed,
                    )
                )
            elif wanted - scores.get(key, {}).keys():
                absent = sorted(wanted - scores[key].keys()) if key in scores else sorted(wanted)
                have = {i.rpartition("-v")[0]: i for i in scores.get(key, {})}
                changed = [f"{have[n]} -> {i}" for i in absent if (n := i.rpartition("-v")[0]) in have]
                why = f"metric changed: {', '.join(changed)}" if changed else f"not scored yet: {', '.join(absent)}"
                out.append(Explanation(task, system, item.id, "unscored", f"prediction reused; {why}", seed))
            else:
                out.append(Explanation(task, system, item.id, "hit", f"same key {short(key)}", seed))
    return out


def _family(name: str) -> str:
    return name.partition("@")[0].partition(":")[0]


def _why_miss(near: list[dict[str, Any]], parts: dict[str, str], source: str, system: str) -> str:
    if not near:
        return "never predicted here"
    best: list[str] | None = None
    for record in near:
        changes = [
            f"{k} {record['parts'].get(k)} -> {short(v)}"
            for k, v in parts.items()
            if record["parts"].get(k) != short(v)
        ]
        if record["source"] != short(source):
            changes.append(f"audio {record['source']} -> {short(source)}")
        if record["system"] != system:
            changes = [f"parameters {record['system']} -> {system}", *changes]
        if best is None or len(changes) < len(best):
            best = changes
    return "differs from the nearest record in " + "; ".join(best or ["the clip's id"])
