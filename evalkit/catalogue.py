"""`evalkit list` and `evalkit explain`: the declarations, as people read them."""

from __future__ import annotations

import inspect
from typing import Any

from evalkit import registry
from evalkit.applicability import why_not
from evalkit.registry import Kind, MetricInfo, Task

_HEADS: dict[Kind, tuple[str, ...]] = {
    "tasks": ("task", "data set", "headline metric", "metrics", "summary"),
    "systems": ("system", "role", "domains", "summary"),
    "metrics": ("metric", "unit", "better", "level", "group", "summary"),
    "datasets": ("data set", "version", "domain", "licence", "summary"),
}


def head(kind: Kind) -> tuple[str, ...]:
    """Column names of a listing."""
    return _HEADS[kind]


def rows(kind: Kind) -> list[tuple[str, ...]]:
    """One row a declaration, from the declarations alone."""
    found = [registry.get(kind, n) for n in registry.names(kind)]
    if kind == "tasks":
        return [(t.name, t.dataset, (t.headline or t.metrics)[0], str(len(t.metrics)), t.summary) for t in found]
    if kind == "systems":
        return [(_usage(s), s.role, ", ".join(s.domains) if s.domains else "all", s.summary) for s in found]
    if kind == "metrics":
        return [(m.name, m.unit, m.direction, m.level, m.group, m.summary) for m in found]
    return [(d.name, d.version, d.domain, d.licence, d.summary) for d in found]


def _usage(info: Any) -> str:
    """``opus:KBPS``: the name, and its argument where it takes one."""
    first = next(iter(inspect.signature(info.factory).parameters.values()), None)
    if first is None or first.kind not in (first.POSITIONAL_OR_KEYWORD, first.POSITIONAL_ONLY):
        return info.name
    if first.default is first.empty:
        return f"{info.name}:{first.name.upper()}"
    return f"{info.name}[:{first.name.upper()}]"


def explain_metric(name: str, task: str | None = None) -> str:
    """A metric's declaration and docstring; with a task (or data set), whether it applies there.

    Raises:
        UsageError: an unknown metric or task.
    """
    from evalkit.work import load_metric, metric_id

    info = load_metric(name)
    better = {"lower": "lower is better", "higher": "higher is better", "none": "neither direction is better"}
    lines = [
        f"{info.name} ({metric_id(info)})",
        "",
        inspect.getdoc(info.function) or "",
        "",
        f"unit         {info.unit or 'none'}",
        f"direction    {better[info.direction]}",
        f"level        {info.level}" + ("" if info.level == "sample" else " (one value for all clips, no ranks)"),
        f"needs        {', '.join(info.needs)}",
        f"domains      {', '.join(info.domains) if info.domains else 'all'}",
        f"sample rates {', '.join(f'{r} Hz' for r in info.sample_rates) if info.sample_rates else 'any'}",
        f"durations    from {info.min_seconds:g} s" + (f" to {info.max_seconds:g} s" if info.max_seconds else ""),
        f"range        {info.range[0]:g} .. {info.range[1]:g}",
        f"repeatable   {'the same value on every run' if info.deterministic else 'no: differs between runs'}",
    ]
    if task:
        from evalkit.plan import expand_tasks

        lines += ["", *(_on_task(info, name, t) for t in expand_tasks([task]))]
    return "\n".join(lines)


def _on_task(info: MetricInfo, spec: str, task: Task) -> str:
    """One sentence: applies, or the reason why not, from the declarations."""
    from evalkit.datasets.load import find
    from evalkit.spec import parse_spec

    data = find(parse_spec(task.dataset).name)
    cause = why_not(info, data.domain, task.prepare.sample_rate, task.prepare.seconds)
    used = "" if info.name in task.metrics else f" (not among the task's own metrics; --metric {spec} adds it)"
    return (
        f"{task.name}: n/a: {cause}"
        if cause
        else f"{task.name}: applies to {data.domain}, {task.prepare.describe()}{used}"
    )
