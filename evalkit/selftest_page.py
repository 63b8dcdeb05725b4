"""The self-test as a page: one file of HTML without scripts or anything from elsewhere, and the same in markdown.

A metric's plot is a strip of small panels, one a ladder, with one line for each data set and the same vertical axis in
all of them, so that ladders compare.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from evalkit.degradations import LADDERS
from evalkit.selftest import BASE_SNR, INVARIANCE, STEP_BACK, Check, MaterialResult, MetricResult, Selftest, Series
from evalkit.text import code, escape_markdown, number, printable

WIDTH, HEIGHT = 172, 118
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 20
LINES = 6
"""Line colours; further data sets begin again."""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c1f23; --dim: #626a73; --grid: #dfe3e8; --box: #f6f7f9;
 --l0: #0b62c4; --l1: #c2410c; --l2: #15803d; --l3: #9333ea; --l4: #a16207; --l5: #be185d;
 --pass: #15803d; --fail: #b91c1c; --other: #626a73; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --ink: #e6e8eb; --dim: #9aa3ad; --grid: #333a42;
 --box: #1c2126; --l0: #6cb2ff; --l1: #ff9d66; --l2: #5fd38a; --l3: #c99bff; --l4: #e3c04d; --l5: #ff8ac2;
 --pass: #5fd38a; --fail: #ff7b72; --other: #9aa3ad; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto;
 max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 0; } p { margin: .3rem 0; max-width: 60rem; }
section { border-top: 1px solid var(--grid); margin-top: 1.6rem; padding-top: 1rem; }
.dim { color: var(--dim); } code, .id { font-family: ui-monospace, monospace; font-size: .9em; }
.badge { border: 1px solid currentColor; border-radius: .3rem; font-size: .8rem; font-weight: 600; padding: 0 .4rem;
 white-space: nowrap; }
.pass { color: var(--pass); } .FAIL { color: var(--fail); } .other { color: var(--other); }
.strip { display: flex; flex-wrap: wrap; gap: .4rem; margin: .6rem 0; }
figure { background: var(--box); border: 1px solid transparent; border-radius: .3rem; margin: 0; padding: .2rem .3rem; }
figure.FAIL { border-color: var(--fail); color: inherit; } figure.pass { color: inherit; }
figcaption { font-size: .8rem; padding-left: .2rem; } figure.info figcaption { color: var(--dim); }
table { border-collapse: collapse; font-size: .85rem; margin: .4rem 0; }
td, th { border-bottom: 1px solid var(--grid); padding: .15rem .6rem .15rem 0; text-align: left; vertical-align: top; }
td.n { font-variant-numeric: tabular-nums; text-align: right; }
.wide { overflow-x: auto; }
svg { display: block; } svg text { fill: var(--dim); font: 9.5px system-ui, sans-serif; }
svg .grid { stroke: var(--grid); } svg polyline { fill: none; stroke-width: 1.6; }
""" + "".join(
    f".s{i} {{ stroke: var(--l{i}); }} .f{i} {{ fill: var(--l{i}); }} .t{i} {{ color: var(--l{i}); }}\n"
    for i in range(LINES)
)

INTRO = (
    "Every metric was taken of a clean copy and of degradations of growing severity. worsens_with: the mean over clips "
    f"never falls back by more than {100 * STEP_BACK:g} % of the ladder's whole span (of a metric without a better "
    "side: its distance from the clean value). invariant_to: the change from the clean copy, and from a copy with "
    f"noise at {BASE_SNR:g} dB, stays within {100 * INVARIANCE:g} % of the span of the noise ladder "
    "(where noise does not move the metric: of the ladder that moves it most)."
)


def html_page(outcome: Selftest) -> str:
    """The whole page."""
    names = [m[0] for m in outcome.materials]
    legend = " ".join(
        f'<span class="t{i % LINES}">&#9632;</span> {_e(name)} <span class="dim">({_e(domain)}, {n} clips)</span>'
        for i, (name, domain, n) in enumerate(outcome.materials)
    )
    rows = "".join(
        f"<tr><td>{_linked(i, m)}</td><td>{_badge(m.verdict)}</td><td>{_e(m.reason)}</td></tr>"
        for i, m in enumerate(outcome.metrics)
    )
    ladders = "; ".join(f"<b>{_e(x.name)}</b> {_e(x.summary)}" for x in LADDERS.values())
    notes = "".join(f'<p class="dim">{_e(n)}</p>' for n in outcome.notes)
    sections = "".join(_section(i, m, names) for i, m in enumerate(outcome.metrics) if m.tested)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Self-test of the measures</title><style>{STYLE}</style></head><body>"
        f"<h1>Self-test of the measures</h1><p>{_e(INTRO)}</p>"
        f'<p class="dim">Ladders: {ladders}.</p><p>{legend}</p>{notes}'
        f'<p class="dim">Panels: from undegraded on the left to severe on the right; a mark says whether the metric '
        f"declared this ladder and kept its word.</p>"
        f'<div class="wide"><table><tr><th>metric</th><th>verdict</th><th>why</th></tr>{rows}</table></div>'
        f"{sections}</body></html>\n"
    )


def _linked(i: int, m: MetricResult) -> str:
    return f'<a href="#m{i}">{_e(m.name)}</a>' if m.tested else _e(m.name)


def _section(i: int, m: MetricResult, names: list[str]) -> str:
    better = {"lower": "lower is better", "higher": "higher is better"}.get(m.direction, "neither side is better")
    about = ", ".join(filter(None, [m.group, m.unit, better, f"{m.level} metric"]))
    head = f'<section id="m{i}"><h2>{_e(m.name)} {_badge(m.verdict)}</h2><p class="dim">{_e(about)} '
    head += f'<span class="id">{_e(m.id)}</span></p>'
    if m.reason:
        head += f"<p>{_e(m.reason)}</p>"
    declared = [
        f"{what} <code>{_e(', '.join(ladders))}</code>"
        for what, ladders in (("worsens with", m.worsens_with), ("invariant to", m.invariant_to))
        if ladders
    ]
    head += f"<p>Declares: {'; '.join(declared) or 'nothing'}.</p>"
    return head + _strip(m, names) + _details(m) + "</section>"


def _strip(m: MetricResult, names: list[str]) -> str:
    values = [v for t in m.tested for s in t.series for v in s.values if v is not None]
    if not values:
        return ""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    panels = []
    for key in dict.fromkeys((s.ladder, s.over) for t in m.tested for s in t.series):
        lines = [
            (names.index(t.material) % LINES, t.material, s)
            for t in m.tested
            for s in t.series
            if (s.ladder, s.over) == key and any(v is not None for v in s.values)
        ]
        if not lines:
            continue
        verdicts = {c.verdict for t in m.tested for c in t.checks if _about(c, *key)}
        kind = next((v for v in ("FAIL", "pass") if v in verdicts), "info")
        mark = {"FAIL": ' <b class="FAIL">&#10007;</b>', "pass": ' <b class="pass">&#10003;</b>', "info": ""}[kind]
        title = f"{key[0]} on {key[1]}" if key[1] else key[0]
        panels.append(
            f'<figure class="{kind}"><figcaption>{_e(title)}{mark}</figcaption>{panel(lines, low, high)}</figure>'
        )
    return f'<div class="strip">{"".join(panels)}</div>'


def _about(check: Check, ladder: str, over: str) -> bool:
    kind, _, name = check.declaration.partition(" ")
    return name == ladder and (kind == "invariant_to" or not over)


def panel(lines: Sequence[tuple[int, str, Series]], low: float, high: float) -> str:
    """One small plot as inline SVG: a line for each ``(colour, label, series)`` over its steps; ``low < high``."""
    steps = max(len(s.levels) for _, _, s in lines) - 1
    longest = max((s for _, _, s in lines), key=lambda s: len(s.levels))

    def x(i: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * i / max(1, steps)

    def y(v: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (v - low) / (high - low)

    parts = [f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for v in ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y(v) + 3:.1f}" text-anchor="end">{_e(_tick(v))}</text>')
    for i in range(steps + 1):
        at = f'x1="{x(i):.1f}" x2="{x(i):.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 3}"'
        parts.append(f'<line class="grid" {at}/>')
    for i, anchor in ((0, "start"), (steps, "end")):
        text = longest.levels[i]
        parts.append(f'<text x="{x(i):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{_e(text)}</text>')
    for colour, label, s in lines:
        points = [(x(i), y(v), t, v) for i, (t, v) in enumerate(zip(s.levels, s.values, strict=True)) if v is not None]
        at = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
        parts.append(f'<polyline class="s{colour}" points="{at}"/>')
        for px, py, t, v in points:
            parts.append(
                f'<circle class="f{colour}" cx="{px:.1f}" cy="{py:.1f}" r="2"><title>'
                f"{_e(f'{label}, {t}: {number(v)}')}</title></circle>"
            )
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers between ``low`` and ``high``.

    >>> ticks(0.3, 9.7), ticks(-41.2, 3)
    ([2.0, 4.0, 6.0, 8.0], [-40.0, -30.0, -20.0, -10.0, 0.0])
    """
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(m * power for m in (1, 2, 5, 10) if (high - low) / (m * power) < 5)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _tick(v: float) -> str:
    return f"{v:.3g}" if abs(v) < 1e4 else f"{v:.0e}"


def _details(m: MetricResult) -> str:
    return "".join(_material(t) for t in m.tested)


def _material(t: MaterialResult) -> str:
    title = f"{t.material} ({t.domain}, {t.clips} clips)"
    failed = sum(c.verdict == "FAIL" for c in t.checks)
    state = t.reason or (f"{failed} failed" if failed else "") or f"{len(t.checks)} checks"
    out = f"<details><summary>{_e(title)}: {_e(state)}</summary>"
    if t.checks:
        rows = "".join(
            f"<tr><td>{_e(c.declaration or 'fault')}</td><td>{_badge(c.verdict)}</td><td>{_e(c.reason)}</td></tr>"
            for c in t.checks
        )
        out += f"<table>{rows}</table>"
    if any(v is not None for s in t.series for v in s.values):
        rows = ""
        for s in t.series:
            cells = "".join(
                f'<td class="n" title="{_e(why)}">{_e(number(v) if v is not None else "n/a")}<br>'
                f'<span class="dim">{_e(level)}</span></td>'
                for level, v, why in zip(s.levels, s.values, s.reasons, strict=True)
            )
            name = f"{s.ladder} on {s.over}" if s.over else s.ladder
            most = max(s.clips)
            rows += (
                f'<tr><th>{_e(name)}</th><td class="dim">{_e(s.observed)}</td><td class="dim">n {most}</td>{cells}</tr>'
            )
        out += f'<div class="wide"><table>{rows}</table></div>'
    return out + "</details>"


def _badge(verdict: str) -> str:
    return f'<span class="badge {verdict if verdict in ("pass", "FAIL") else "other"}">{_e(verdict)}</span>'


def _e(text: str) -> str:
    return html.escape(printable(text))


def markdown(outcome: Selftest) -> str:
    """A table of verdicts, and under it what failed and what was observed without being declared."""
    of = ", ".join(f"{escape_markdown(f'{n} ({d}, {k} clips)')}" for n, d, k in outcome.materials)
    lines = ["# Self-test of the measures", "", escape_markdown(INTRO), "", f"On: {of}.", ""]
    lines += [f"{escape_markdown(n)}" for n in outcome.notes]
    lines += ["", "| metric | verdict | why | worsens with | invariant to |", "|---|---|---|---|---|"]
    for m in outcome.metrics:
        verdict = f"**{m.verdict}**" if m.verdict == "FAIL" else m.verdict
        declared = (", ".join(m.worsens_with) or "-", ", ".join(m.invariant_to) or "-")
        lines.append(
            f"| {code(m.name)} | {verdict} | {escape_markdown(m.reason)} | {escape_markdown(declared[0])} "
            f"| {escape_markdown(declared[1])} |"
        )
    failed = [(m, c) for m in outcome.metrics for c in m.failures]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {code(m.name)}: {escape_markdown(f'{c.declaration}: {c.reason}'.strip(': '))}" for m, c in failed]
    lines += [
        "",
        "## Observed",
        "",
        "By data set, whether declared or not: what each metric did along each ladder.",
        "",
    ]
    lines += ["| metric | data set | worsens | still | improves | moves |", "|---|---|---|---|---|---|"]
    for m in outcome.metrics:
        for t in m.tested:
            if not t.reason:
                cells = (
                    escape_markdown(", ".join(s.ladder for s in t.series if s.observed == o and not s.over)) or "-"
                    for o in ("worsens", "still", "improves", "moves")
                )
                lines.append(f"| {code(m.name)} | {escape_markdown(t.material)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
