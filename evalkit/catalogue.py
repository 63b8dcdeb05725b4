"""`evalkit list` and `evalkit explain`: the declarations, as people read them."""

from __future__ import annotations

import inspect
from typing import Any

from evalkit import registry
from evalkit.applicability import why_not
from evalkit.errors import UsageError
from evalkit.registry import Domain, Kind, MetricInfo, Task
from evalkit.weights import present

_HEADS: dict[Kind, tuple[str, ...]] = {
    "tasks": ("task", "data set", "headline metric", "metrics", "summary"),
    "systems": ("system", "role", "domains", "summary"),
    "metrics": ("metric", "unit", "better", "level", "group", "summary"),
    "datasets": ("data set", "version", "domain", "licence", "summary"),
    "embedders": ("embedder", "version", "Hz", "window", "hop", "dimension", "weights", "summary"),
    "recognisers": ("recogniser", "version", "Hz", "language", "weights", "summary"),
    "backends": ("backend", "version", "packages", "summary"),
}

MATRIX = ("metric", "better", "speech", "music", "sound", "needs", "least Hz", "seconds", "level")
"""Column names of the applicability matrix."""

DOMAINS: tuple[Domain, ...] = ("speech", "music", "sound")


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
    if kind == "embedders":
        return [
            (
                e.name,
                e.version,
                str(e.sample_rate),
                _seconds(e.window_s, "clip"),
                _seconds(e.hop_s, "-"),
                str(e.dimension),
                _weights(e),
                e.summary,
            )
            for e in found
        ]
    if kind == "recognisers":
        return [(r.name, r.version, str(r.sample_rate), r.language, _weights(r), r.summary) for r in found]
    if kind == "backends":
        return [(b.name, b.version, ", ".join(b.packages) or "none", b.summary) for b in found]
    return [(d.name, d.version, d.domain, d.licence, d.summary) for d in found]


def _seconds(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:g} s"


def _weights(info: Any) -> str:
    """``none``, or each with whether it is there."""
    found = present(info.weights)
    return ", ".join(f"{name} ({'here' if there else 'absent'})" for name, there in found.items()) or "none"


def matrix() -> list[tuple[str, ...]]:
    """One row a metric: where it applies, what it needs, from the declarations alone."""
    rows = []
    for name in registry.names("metrics"):
        info: MetricInfo = registry.get("metrics", name)
        applies = ["yes" if info.domains is None or d in info.domains else "no" for d in DOMAINS]
        most = f" to {info.max_seconds:g}" if info.max_seconds else ""
        seconds = f"{info.min_seconds:g}{most}" if info.min_seconds or most else "any"
        rates = "/".join(map(str, info.sample_rates or ())) or (str(info.min_sample_rate or "") or "any")
        better = {"lower": "lower", "higher": "higher", "none": "-"}[info.direction]
        rows.append((info.name, better, *applies, ", ".join(info.needs), rates, seconds, info.level))
    return rows


def _usage(info: Any) -> str:
    """``opus:KBPS``: the name, and its argument where it takes one."""
    first = next(iter(inspect.signature(info.factory).parameters.values()), None)
    if first is None or first.kind not in (first.POSITIONAL_OR_KEYWORD, first.POSITIONAL_ONLY):
        return info.name
    if first.default is first.empty:
        return f"{info.name}:{first.name.upper()}"
    return f"{info.name}[:{first.name.upper()}]"


def matrix_markdown() -> str:
    """The applicability matrix of the built-in metrics as a markdown table; metrics that agree in everything share a
    row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, *columns in sorted(matrix(), key=lambda row: (registry.get("metrics", row[0]).group, row[0])):
        if registry.origin("metrics", name).partition(".")[0] in ("evalkit", "tokenizer"):
            rows.setdefault((registry.get("metrics", name).group, *columns), []).append(name)
    head = ["group", "metrics", *MATRIX[1:]]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (group, *columns), names in rows.items():
        lines.append("| " + " | ".join([group, _together(names), *columns]) + " |")
    return "\n".join(lines) + "\n"


def _together(names: list[str]) -> str:
    """
    >>> _together(["fad@a", "kad@a", "fad@b", "mse"])
    '`fad@` a, b; `kad@` a; `mse`'
    """
    stems: dict[str, list[str]] = {}
    for name in names:
        stem, at, variant = name.partition("@")
        stems.setdefault(stem + at, []).append(variant)
    return "; ".join(f"`{stem}`" + (f" {', '.join(v)}" if stem.endswith("@") else "") for stem, v in stems.items())


def explain_metric(name: str, task: str | None = None) -> str:
    """A metric's declaration and docstring; with a task (or data set), whether it applies there.

    A group (``dnsmos``) or the common start of several names (``fad``) stands for all of them.

    Raises:
        UsageError: an unknown metric or task.
    """
    from evalkit.work import load_metric

    try:
        infos = [load_metric(name)]
    except UsageError:
        every = [registry.get("metrics", n) for n in registry.names("metrics")]
        infos = [
            i for i in every if name == i.group or i.name.partition("@")[0] == name or i.name.startswith(f"{name}_")
        ]
        if not infos:
            raise
    return "\n\n\n".join(_explained(info, name if len(infos) == 1 else info.name, task) for info in infos)


def _explained(info: MetricInfo, name: str, task: str | None) -> str:
    from evalkit.work import metric_id

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
        f"sample rates {_rates(info)}",
        f"durations    from {info.min_seconds:g} s" + (f" to {info.max_seconds:g} s" if info.max_seconds else ""),
        *([f"short clips  {info.short_clips}"] if info.short_clips else []),
        f"range        {info.range[0]:g} .. {info.range[1]:g}",
        *([f"weights      {_weights(info)}"] if info.weights else []),
        *([f"trained on   {', '.join(info.trained_on)}"] if info.trained_on else []),
        *([f"worsens with {', '.join(info.worsens_with)} (`evalkit selftest` checks it)"] if info.worsens_with else []),
        *([f"blind to     {', '.join(info.invariant_to)}"] if info.invariant_to else []),
        f"repeatable   {'the same value on every run' if info.deterministic else 'no: differs between runs'}",
    ]
    if task:
        from evalkit.plan import expand_tasks

        lines += ["", *(_on_task(info, name, t) for t in expand_tasks([task]))]
    return "\n".join(lines)


def _rates(info: MetricInfo) -> str:
    if info.sample_rates:
        return ", ".join(f"{r} Hz" for r in info.sample_rates)
    return f"at least {info.min_sample_rate} Hz" if info.min_sample_rate else "any"


def _on_task(info: MetricInfo, spec: str, task: Task) -> str:
    """One sentence: applies, or the reason why not, from the declarations."""
    from evalkit.datasets.load import find
    from evalkit.spec import parse_spec

    data = find(parse_spec(task.dataset).name)
    if task.capability == "caption":
        if not info.of_text and {"estimate", "tokens", "cost"} & set(info.needs):
            return f"{task.name}: n/a: {info.name} compares audio, this task asks for text"
    elif info.of_text or "candidate" in info.needs:
        return f"{task.name}: n/a: {info.name} scores text, this task asks for audio"
    cause = why_not(info, data.domain, task.prepare.sample_rate, task.prepare.seconds)
    used = "" if info.name in task.metrics else f" (not among the task's own metrics; --metric {spec} adds it)"
    return (
        f"{task.name}: n/a: {cause}"
        if cause
        else f"{task.name}: applies to {data.domain}, {task.prepare.describe()}{used}"
    )
