"""Noise seeds: one row from the result records of a stochastic system that differ in the seed alone.

Records stay one a seed; they are put together where a table is made, so that a leaderboard can gain a seed later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalkit.identity import canonical_json

WORST_FIRST = ("failed", "missing", "n/a")


@dataclass(frozen=True)
class Noise:
    """How far the noise seed moves one metric of one system, in the metric's unit. Standard deviations are of n - 1.

    Attributes:
        seeds: how many, 2 or more.
        of_mean: SD over the seeds of a seed's mean over the clips that have a value in every seed; of a corpus metric,
            SD over the seeds of its value.
        within_clip: mean over these clips of a clip's SD over the seeds; None for a corpus metric.
        over_clips: SD over these clips of their means over the seeds; None for a corpus metric and for one clip.
    """

    seeds: int
    of_mean: float
    within_clip: float | None = None
    over_clips: float | None = None

    @property
    def none(self) -> bool:
        """The seed changes nothing."""
        return not self.of_mean and not self.within_clip


def combine(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Put together the records of a stochastic system that have the same task version and fingerprint.

    The rule, metric by metric: a clip has a value only if every seed gave one, and it is the mean over the seeds. A
    clip that lacks a value in some seed keeps its reasons with the seeds that they belong to; its status is the worst
    of them (failed, missing, n/a). A corpus metric's value is the mean over the seeds of its values, and so are the
    ends of its interval; without a value in one seed it has none.

    Args:
        results: records of `evalkit.results`, in any order.

    Returns:
        Records; one made of several stands at the place of its first and holds them, by seed, as ``by_seed``. Its
        metrics have a `Noise` as ``noise``, or None. Records of deterministic systems, and of systems with one seed,
        are returned as they are.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    copies: Counter[tuple[str, int]] = Counter()
    for i, r in enumerate(results):
        if not r["system"]["stochastic"]:
            groups[f"{i}"] = [r]
            continue
        key = canonical_json([r["task"]["name"], r["task"]["version"], r["system"]["name"], r["system"]["fingerprint"]])
        copies[key, r["seed"]] += 1  # the same record given twice is no second seed
        groups.setdefault(f"{copies[key, r['seed']]} {key}", []).append(r)
    return [_combined(g) if len(g) > 1 else g[0] for g in groups.values()]


def by_seed(result: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The records that a record is made of: itself, if it was not combined."""
    found: Sequence[Mapping[str, Any]] = result.get("by_seed", (result,))
    return found


def _combined(results: list[Mapping[str, Any]]) -> dict[str, Any]:
    results = sorted(results, key=lambda r: r["seed"])
    seeds = [r["seed"] for r in results]
    metrics = {}
    for name in results[0]["order"]:
        columns = [r["metrics"][name] for r in results if name in r["metrics"]]
        if len(columns) == len(results):
            metrics[name] = _column(columns, seeds)
    return {**results[0], "metrics": metrics, "by_seed": tuple(results)}


def _column(columns: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    reasons = [c["reasons"] for c in columns]
    column = {**columns[0], "reasons": _reasons(reasons, seeds), "noise": None}
    if column["level"] == "corpus":
        found = [c["corpus"] for c in columns]
        lacking = {frozenset(i for whys in r.values() for at in whys.values() for i in at) for r in reasons}
        column["corpus"] = _corpus(found, seeds, same_clips=len(lacking) == 1)
        if column["corpus"]["value"] is not None:
            column["noise"] = Noise(len(seeds), _sd([c["value"] for c in found]))
        return column
    x = np.array([c["values"] for c in columns], dtype=float)  # None becomes NaN
    whole = ~np.isnan(x).any(axis=0)
    means = _mean(x)
    column["values"] = [float(v) if has else None for v, has in zip(means, whole, strict=True)]
    if whole.any():
        x, means = x[:, whole], means[whole]
        within = float(np.mean(_sd(x)))
        column["noise"] = Noise(len(seeds), _sd(x.mean(axis=1)), within, _sd(means) if len(means) > 1 else None)
    return column


def _mean(x: Any) -> Any:
    """Mean over the first axis, centred on the first row: the mean of equal values is that value, to the bit."""
    x = np.asarray(x, dtype=float)
    return x[0] + (x - x[0]).mean(axis=0)


def _sd(x: Any) -> Any:
    """Standard deviation (n - 1) over the first axis; 0 for equal values, to the bit."""
    x = np.asarray(x, dtype=float)
    sd = (x - x[0]).std(axis=0, ddof=1)
    return sd if sd.ndim else float(sd)


def _corpus(found: Sequence[Mapping[str, Any]], seeds: Sequence[int], same_clips: bool) -> dict[str, Any]:
    absent = [(c, s) for c, s in zip(found, seeds, strict=True) if c["value"] is None]
    if absent:
        order = [c.get("status", "") for c, _ in absent]
        worst = order.index("failed") if "failed" in order else 0
        c, seed = absent[worst]
        return {**c, "note": c["note"] if len(absent) == len(found) else f"{c['note']} ({_named([seed])})"}
    ends = [(c["low"], c["high"]) for c in found]
    low, high = (None, None) if any(None in e for e in ends) else map(float, _mean(ends))
    note = f"mean of {len(found)} noise seeds, and of the ends of their intervals"
    if not same_clips:
        note += ", each over the clips that it has"
    notes = dict.fromkeys(n for n in (note, *(c["note"] for c in found)) if n)
    value: dict[str, Any] = {"value": float(_mean([c["value"] for c in found])), "low": low, "high": high}
    value["note"] = "; ".join(notes)
    for key in ("detail", "floor", "floor_detail"):  # of the first seed: what a distance is of hardly moves with it
        if key in found[0]:
            value[key] = found[0][key]
    if same_clips and all("contributions" in c for c in found):
        each = np.array([[np.nan if x is None else x for x in c["contributions"]] for c in found])
        value["contributions"] = [None if np.isnan(x) else float(x) for x in _mean(each)]
    return value


def _reasons(
    columns: Sequence[Mapping[str, Mapping[str, Sequence[int]]]], seeds: Sequence[int]
) -> dict[str, dict[str, list[int]]]:
    """``{status: {reason: [clip indices]}}`` of the clips without a value in some seed: each clip once."""
    found: dict[int, dict[tuple[str, str], list[int]]] = {}
    for seed, reasons in zip(seeds, columns, strict=True):
        for status, whys in reasons.items():
            for why, clips in whys.items():
                for i in clips:
                    found.setdefault(i, {}).setdefault((status, why), []).append(seed)
    out: dict[str, dict[str, list[int]]] = {}
    for i, whys_of in sorted(found.items()):
        worst = min((status for status, _ in whys_of), key=WORST_FIRST.index)
        told = []
        for (status, why), of in sorted(whys_of.items(), key=lambda w: (WORST_FIRST.index(w[0][0]), w[1])):
            text = why if status == worst else f"{status}: {why}"
            told.append(text if len(of) == len(seeds) else f"{text} ({_named(of)})")
        out.setdefault(worst, {}).setdefault("; ".join(told), []).append(i)
    return out


def _named(seeds: Sequence[int]) -> str:
    return f"noise seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
