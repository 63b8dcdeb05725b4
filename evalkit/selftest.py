"""The self-test of measures: every metric over ladders of known degradations, checked against what it declares.

A metric declares ``worsens_with`` (ladders of `evalkit.degradations` that must move it away from its clean value, step
by step) and ``invariant_to`` (ladders that must leave it as it is). Here it is taken of a clean copy and of every level
of every ladder, on generated scenes and, with a data root, on real speech, sound and music. What a metric promises and
does not keep is FAIL, with the place; what no one promised is reported as information. See docs/selftest.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalkit import __version__, execute, registry
from evalkit.audio import Prepare
from evalkit.datasets import Item
from evalkit.degradations import LADDERS
from evalkit.errors import DataError, EvalkitError, NotApplicable, UsageError
from evalkit.identity import array_digest
from evalkit.registry import MetricInfo

CLEAN = "clean"
DEFAULT_CLIPS = {"scenes": 12, "librispeech": 6, "vctk": 6, "esc50": 6, "fma": 6}
"""Data sets that clips are drawn from, and how many of each, evenly spaced; all but scenes need a data root."""

OTHER_CLIPS = 6

STEP_BACK = 0.02
"""Share of a ladder's whole span by which a step may go the wrong way."""

INVARIANCE = 0.02
"""Share of the noise ladder's span (clean copy to 0 dB) within which an invariance counts as kept; of the widest
ladder's where noise does not move the metric."""

BASE_SNR = 20.0
"""dB; invariances are tested on a clean copy and on a copy with this much noise, since many measures have no value for
an exact copy."""

AUDIO = frozenset({"reference", "estimate", "labels"})
VERDICTS = ("FAIL", "pass", "nothing declared", "not run")
SHIPPED = Path(__file__).with_name("selftest_verdicts.json")
FORMAT = 1


# -- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Material:
    """Clips that a self-test runs on: a data set's name, its domain, the clips, and how they are prepared."""

    name: str
    domain: str
    items: tuple[Item, ...]
    prepare: Prepare = Prepare()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class Series:
    """One metric along one ladder.

    Attributes:
        ladder: its name; ``over`` is "" or the degradation underneath ("noise 20 dB").
        levels: in words, from the undegraded (``clean``, or what is underneath) to the severest.
        values: mean over clips, or the corpus' value; None where there is none.
        clips: how many clips each value is of. They are the same ones at all levels that have a value.
        reasons: why there is no value, or none of some clips; "" otherwise.
    """

    ladder: str
    over: str
    levels: tuple[str, ...]
    values: tuple[float | None, ...]
    clips: tuple[int, ...]
    reasons: tuple[str, ...]
    observed: str = ""
    """What it does, declared or not: worsens, improves, still, moves (to both sides)."""


@dataclass(frozen=True)
class Check:
    """One declaration on one material; ``verdict`` is pass, FAIL or not checked."""

    declaration: str
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class MaterialResult:
    """One metric on one material. ``reason`` says why it has no value at all there, or how it failed."""

    material: str
    domain: str
    clips: int
    checks: tuple[Check, ...]
    series: tuple[Series, ...]
    reason: str = ""


@dataclass(frozen=True)
class MetricResult:
    """One metric: ``verdict`` is one of `VERDICTS`; ``reason`` in one line."""

    id: str
    name: str
    unit: str
    direction: str
    group: str
    level: str
    worsens_with: tuple[str, ...]
    invariant_to: tuple[str, ...]
    verdict: str
    reason: str
    tested: tuple[MaterialResult, ...] = ()

    @property
    def failures(self) -> list[Check]:
        """What it failed, with the material in the reason; a fault has the declaration ""."""
        return [
            dataclasses.replace(c, reason=f"{c.reason} ({t.material}, {t.clips} clips)")
            for t in self.tested
            for c in t.checks
            if c.verdict == "FAIL"
        ]


@dataclass(frozen=True)
class Selftest:
    """Outcome of a self-test. ``exit_code`` is 2 where a metric fails its own declaration, else 0."""

    seed: int
    materials: tuple[tuple[str, str, int], ...]
    """Name, domain and number of clips."""
    metrics: tuple[MetricResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return 2 if any(m.verdict == "FAIL" for m in self.metrics) else 0

    def as_json(self) -> dict[str, Any]:
        """JSON values, the same for the same values: no dates, no machine."""
        return {
            "format": FORMAT,
            "evalkit": __version__,
            "seed": self.seed,
            "tolerances": {"step back": STEP_BACK, "invariance": INVARIANCE, "base SNR": BASE_SNR},
            "ladders": {n: {"summary": x.summary, "levels": [x.text(v) for v in x.levels]} for n, x in LADDERS.items()},
            "materials": [dict(zip(("name", "domain", "clips"), m, strict=True)) for m in self.materials],
            "notes": list(self.notes),
            "metrics": [dataclasses.asdict(m) for m in self.metrics],
        }


# -- running ----------------------------------------------------------------------------------------------------------


class _Quiet:
    def note(self, text: str) -> None: ...

    def start(self, total: int, already: int) -> None: ...

    def step(self, what: str) -> None: ...

    def close(self) -> None: ...


def selftest(
    metrics: Sequence[str] | None = None,
    clips: Sequence[str | Material] | None = None,
    ladders: Sequence[str] | None = None,
    seed: int = 0,
    *,
    data_root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    jobs: int = 1,
    timeout: float = 300.0,
    progress: Any = None,
) -> Selftest:
    """Run metrics over the ladders and compare with what they declare.

    Args:
        metrics: names (or ``mine.py:function``); None is every registered metric.
        clips: data set specs, or `Material` s; None is `DEFAULT_CLIPS`: scenes and, with a data root, what is found
            there of the others.
        ladders: names; None is all of `evalkit.degradations.LADDERS`. Declarations of ladders left out are not checked.
        data_root: folder of data sets; None is ``EVALKIT_DATA``.
        limit: at most so many clips of each data set.
        jobs: worker processes; 0 works in this process, where a metric that hangs or crashes takes everything with it.
        timeout: seconds that all metrics together may take for one clip on one ladder. Who is to blame is then found
            by running each alone; a metric that hung or crashed is not tried again.

    Raises:
        UsageError: unknown metric, ladder or data set. DataError: a data set that was asked for is absent.
    """
    from evalkit.work import load_metric

    names = list(dict.fromkeys(metrics)) if metrics is not None else registry.names("metrics")
    infos = [load_metric(n) for n in names]
    chosen = tuple(dict.fromkeys(LADDERS if ladders is None else ladders))
    for name in chosen:
        if name not in LADDERS:
            raise UsageError(f"no ladder named {name!r}; there are {', '.join(LADDERS)}")
    if "noise" not in chosen and any(set(chosen) & set(i.invariant_to) for i in infos):
        chosen = ("noise", *chosen)  # what invariances are held against
    materials, notes = _materials(clips, data_root, limit)
    progress = progress or _Quiet()
    workers = execute.make(jobs)
    run = _Run(names, infos, chosen, seed, timeout, progress)
    done = False
    try:
        progress.start(sum(run.units(m) for m in materials), 0)
        for material in materials:
            run.test(material, workers)
        done = True
    finally:
        workers.close(now=not done)
        progress.close()
    results = [_result(info, run.tested[name]) for name, info in zip(names, infos, strict=True)]
    about = tuple((m.name, m.domain, len(m.items)) for m in materials)
    return Selftest(seed, about, tuple(results), tuple(notes))


def _materials(
    clips: Sequence[str | Material] | None, data_root: str | os.PathLike[str] | None, limit: int | None
) -> tuple[list[Material], list[str]]:
    from evalkit.datasets.load import load_dataset
    from evalkit.plan import select
    from evalkit.spec import parse_spec

    made: list[Material] = []
    notes = []
    tasks = {registry.get("tasks", n).dataset: registry.get("tasks", n) for n in registry.names("tasks")}
    if clips is None and data_root is None and not os.environ.get("EVALKIT_DATA"):
        clips = ["scenes"]
        notes.append("generated clips only: with a data root, real speech, sound and music are tested as well")
    for one in DEFAULT_CLIPS if clips is None else clips:
        if isinstance(one, Material):
            made.append(dataclasses.replace(one, items=tuple(select(one.items, limit))))
            continue
        try:
            data = load_dataset(one, data_root)
        except DataError as error:
            if clips is not None:
                raise
            notes.append(f"no clips of {one}: {str(error).splitlines()[0]}")
            continue
        family = parse_spec(one).name
        prepare = tasks[family].prepare if family in tasks else Prepare()
        most = DEFAULT_CLIPS.get(family, OTHER_CLIPS) if limit is None else limit
        made.append(Material(one, data.info.domain, tuple(select(data.layout.items, most)), prepare))
    made = [m for m in made if m.items]
    if not made:
        raise UsageError("no clips to test on")
    return made, notes


@dataclass(frozen=True)
class _Unit:
    """Some metrics on one clip along one ladder (``clip`` >= 0), or corpus values of one level (``clip`` -1)."""

    material: Material
    clip: int
    ladder: str
    over: bool
    metrics: tuple[str, ...]
    seed: int
    level: int = 0
    statistics: tuple[Any, ...] = ()

    @property
    def where(self) -> str:
        ladder = f"{self.ladder or CLEAN}{' over noise' if self.over else ''}"
        if self.clip < 0:
            return f"{ladder}, {_levels(self.ladder, self.over)[self.level]}, {self.material.name}"
        return f"{ladder}, clip {self.material.items[self.clip].id}"


def _levels(ladder: str, over: bool) -> tuple[str, ...]:
    """Level names of a unit's results: those of the ladder, after what is underneath where that is measured with it."""
    if not ladder:
        return (CLEAN,)
    texts = tuple(LADDERS[ladder].text(v) for v in LADDERS[ladder].levels)
    return (_base(), *texts) if over else texts


def _base() -> str:
    return f"noise {LADDERS['noise'].text(BASE_SNR)}"


class _Run:
    """The state of a self-test: who is still in it, and the results so far."""

    def __init__(
        self,
        names: list[str],
        infos: list[MetricInfo],
        ladders: tuple[str, ...],
        seed: int,
        timeout: float,
        progress: Any,
    ) -> None:
        self.infos = dict(zip(names, infos, strict=True))
        self.ladders, self.seed, self.timeout, self.progress = ladders, seed, timeout, progress
        self.audio = tuple(n for n, i in self.infos.items() if not i.of_text and set(i.needs) <= AUDIO)
        self.dead: dict[str, str] = {}
        self.tested: dict[str, list[MaterialResult]] = {n: [] for n in names}

    def plan(self) -> Iterator[tuple[str, bool, tuple[str, ...]]]:
        """Ladder ("" is the clean copy), whether over noise, and the metrics."""
        yield "", False, self.audio
        for ladder in self.ladders:
            yield ladder, False, self.audio
            over = tuple(n for n in self.audio if ladder in self.infos[n].invariant_to)
            if over:
                yield ladder, True, over

    def units(self, material: Material) -> int:
        return sum(len(material.items) for _ in self.plan()) if self.audio else 0

    def test(self, material: Material, workers: execute.Executor) -> None:
        """All metrics on one material."""
        if not self.audio:
            return
        # results[metric][ladder, over][level] is one result a clip
        results: dict[str, dict[tuple[str, bool], list[list[Any]]]] = {n: {} for n in self.audio}
        arrays: dict[str, np.ndarray] = {}
        for ladder, over, metrics in self.plan():
            for n in metrics:
                results[n][ladder, over] = [[None] * len(material.items) for _ in _levels(ladder, over)]
        todo = (
            _Unit(material, clip, ladder, over, metrics, self.seed)
            for clip in range(len(material.items))
            for ladder, over, metrics in self.plan()
        )

        def measured(unit: _Unit, made: list[dict[str, Any]]) -> None:
            for level, by_metric in enumerate(made):
                for n, found in by_metric.items():
                    if "stats" in found:  # clips share arrays, the reference's above all: keep each once
                        found = {"stats": _kept(found["stats"], arrays)}
                    results[n][unit.ladder, unit.over][level][unit.clip] = found

        self._carry_out(todo, workers, measured)
        values = self._corpus_values(material, workers, results, arrays)
        for n in self.audio:
            self.tested[n].append(
                _tested(self.infos[n], material, self.ladders, results[n], values.get(n), self.dead.get(n, ""))
            )

    def _corpus_values(
        self,
        material: Material,
        workers: execute.Executor,
        results: dict[str, dict[tuple[str, bool], list[list[Any]]]],
        arrays: dict[str, np.ndarray],
    ) -> dict[str, dict[tuple[str, bool], list[Any]]]:
        corpus = [n for n in self.audio if self.infos[n].level == "corpus"]
        values: dict[str, dict[tuple[str, bool], list[Any]]] = {
            n: {key: [None] * len(levels) for key, levels in results[n].items()} for n in corpus
        }

        def todo() -> Iterator[_Unit]:
            for ladder, over, metrics in self.plan():
                wanted = [n for n in metrics if n in values]
                for level in range(len(_levels(ladder, over)) if wanted else 0):
                    # Metrics of the same statistics go together: what they work out of them is shared.
                    together: dict[str, tuple[list[str], tuple[Any, ...]]] = {}
                    for n in wanted:
                        found = results[n][ladder, over][level]
                        used = tuple((i, r["stats"]) for i, r in enumerate(found) if r and "stats" in r)
                        if used:
                            together.setdefault(repr(used), ([], used))[0].append(n)
                    for names, used in together.values():
                        statistics = tuple((i, s, {k: arrays[d] for k, d in s.items()}) for i, s in used)
                        yield _Unit(material, -1, ladder, over, tuple(names), self.seed, level, statistics)

        def evaluated(unit: _Unit, made: list[dict[str, Any]]) -> None:
            for n, found in made[0].items():
                values[n][unit.ladder, unit.over][unit.level] = found

        self._carry_out(todo(), workers, evaluated)
        return values

    def _carry_out(
        self, todo: Iterator[_Unit], workers: execute.Executor, take: Callable[[_Unit, list[dict[str, Any]]], None]
    ) -> None:
        """Run units; one that hangs or crashes is split to find the metric to blame, which is then left out."""
        again: deque[_Unit] = deque()
        parts: Counter[tuple[int, str, bool]] = Counter()
        in_flight: dict[Future[Any], _Unit] = {}
        more = True
        while True:
            while len(in_flight) < 2 * workers.workers + 1:
                unit = again.popleft() if again else next(todo, None) if more else None
                if unit is None:
                    more = False
                    break
                alive = tuple(n for n in unit.metrics if n not in self.dead)
                if not alive:
                    self._done(unit, parts)
                    continue
                unit = dataclasses.replace(unit, metrics=alive)
                in_flight[workers.submit(_worked, unit, self.timeout)] = unit
            if not in_flight:
                return
            finished, _ = wait(in_flight, return_when=FIRST_COMPLETED)
            for future in finished:
                unit = in_flight.pop(future)
                try:
                    take(unit, future.result())
                except execute.CannotStart:
                    raise
                except Exception as error:  # hung, crashed, or gave what cannot be sent back
                    if len(unit.metrics) > 1:
                        again += [dataclasses.replace(unit, metrics=(n,)) for n in unit.metrics]
                        parts[unit.clip, unit.ladder, unit.over] += len(unit.metrics) - 1
                        continue
                    self._bury(unit, error, take)
                self._done(unit, parts)

    def _bury(self, unit: _Unit, error: Exception, take: Callable[[_Unit, list[dict[str, Any]]], None]) -> None:
        from evalkit.work import reason

        name = unit.metrics[0]
        self.dead[name] = f"the metric {reason(error)} ({unit.where}); not tried again"
        levels = 1 if unit.clip < 0 else len(_levels(unit.ladder, unit.over))
        take(unit, [{name: {"status": "failed", "reason": self.dead[name]}}] * levels)
        self.progress.note(f"{name}: {self.dead[name]}")

    def _done(self, unit: _Unit, parts: Counter[tuple[int, str, bool]]) -> None:
        key = (unit.clip, unit.ladder, unit.over)
        if parts[key]:
            parts[key] -= 1
        elif unit.clip >= 0:
            self.progress.step(f"{unit.material.name}: {unit.where}")


def _kept(statistics: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, str]:
    names = {}
    for key, value in statistics.items():
        found = np.asarray(value)
        names[key] = array_digest({"": found})
        arrays.setdefault(names[key], found)
    return names


# -- in a worker ------------------------------------------------------------------------------------------------------


def _worked(unit: _Unit) -> list[dict[str, Any]]:
    return _measured(unit) if unit.clip >= 0 else [_evaluated(unit)]


def _measured(unit: _Unit) -> list[dict[str, Any]]:
    """One result a level and metric, as in a run's record; the degraded clip is made once for all metrics."""
    from evalkit.work import _reference, clip_seed, load_metric, measure, reason

    infos = {n: load_metric(n) for n in unit.metrics}
    item = unit.material.items[unit.clip]
    seed = clip_seed(unit.seed, item.id)
    texts = _levels(unit.ladder, unit.over)
    try:
        reference = _reference(item, unit.material.prepare)
    except Exception as error:  # no metric is to blame
        return [{n: {"status": "n/a", "reason": reason(error)} for n in infos}] * len(texts)
    start = LADDERS["noise"].apply(reference, BASE_SNR, seed) if unit.over else reference
    steps: list[float | None] = [None] if unit.over or not unit.ladder else []
    steps += LADDERS[unit.ladder].levels if unit.ladder else []
    out: list[dict[str, Any]] = []
    for step in steps:
        try:
            if step is None:
                estimate = start.with_samples(start.samples.copy())
            else:
                estimate = LADDERS[unit.ladder].apply(start, step, seed)
        except Exception as error:  # impossible for this clip, or a fault of the degradation: of no metric in any case
            out.append({n: {"status": "n/a", "reason": reason(error)} for n in infos})
            continue
        sample = {"reference": reference, "estimate": estimate, "labels": item.labels}
        out.append({n: _plain(measure(i, sample, unit.material.domain)) for n, i in infos.items()})
    return out


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    """A corpus metric's statistics as arrays of numbers or texts; what is not is its fault."""
    if "stats" not in result:
        return result
    try:
        arrays = {str(k): np.asarray(v) for k, v in result["stats"].items()}
    except Exception as error:
        return {
            "status": "failed",
            "reason": f"its statistics are no mapping of arrays: {type(error).__name__}: {error}",
        }
    odd = [k for k, v in arrays.items() if v.dtype == object]
    return {"status": "failed", "reason": f"its statistics {odd[0]!r} are no array"} if odd else {"stats": arrays}


class _Statistics(list[Mapping[str, Any]]):
    """Statistics of clips with their content ``names``, by which metrics share what they work out of them."""

    names: list[Mapping[str, str]]


def _evaluated(unit: _Unit) -> dict[str, Any]:
    """The corpus values of one level, metric by metric."""
    from evalkit.work import load_metric, reason

    statistics = _Statistics(arrays for _, _, arrays in unit.statistics)
    statistics.names = [names for _, names, _ in unit.statistics]
    clusters = [unit.material.items[i].cluster for i, _, _ in unit.statistics]
    out: dict[str, Any] = {}
    for name in unit.metrics:
        info = load_metric(name)
        try:
            if info.evaluate is not None:
                value = float(info.evaluate(statistics, clusters, unit.seed).value)
            else:
                assert info.combine is not None
                value = float(info.combine(statistics, np.ones(len(statistics))))
            low, high = info.range
            if not math.isfinite(value) or not low <= value <= high:
                raise EvalkitError(f"the metric returned {value:g}; its declared range is {low:g}..{high:g}")
            out[name] = {"value": value, "clips": len(statistics)}
        except Exception as error:
            status = "n/a" if isinstance(error, NotApplicable) else "failed"
            out[name] = {"status": status, "reason": reason(error)}
    return out


# -- judging ----------------------------------------------------------------------------------------------------------


def _tested(
    info: MetricInfo,
    material: Material,
    ladders: tuple[str, ...],
    results: dict[tuple[str, bool], list[list[Any]]],
    values: dict[tuple[str, bool], list[Any]] | None,
    dead: str,
) -> MaterialResult:
    """Values along all ladders, and the declarations held against them."""
    series: dict[tuple[str, bool], Series] = {}
    for ladder, over in (key for key in results if key[0]):
        rows = results[ladder, over] if over else results["", False] + results[ladder, False]
        texts = _levels(ladder, over) if over else (CLEAN, *_levels(ladder, over))
        if values is None:
            points = _means(rows)
        else:
            found = values[ladder, over] if over else values["", False] + values[ladder, False]
            points = [_corpus_point(v, row) for v, row in zip(found, rows, strict=True)]
        found_values, clips, reasons = zip(*points, strict=True)
        series[ladder, over] = Series(ladder, _base() if over else "", texts, found_values, clips, reasons)
    span = _yardstick(series)
    series = {k: dataclasses.replace(s, observed=_observed(s, info.direction, span)) for k, s in series.items()}
    checks = _faults(results, values)
    any_value = any(v is not None for s in series.values() for v in s.values)
    every = [r for rows in results.values() for row in rows for r in row]
    if values is not None and any(r and "stats" in r for r in every):
        every = [v for found in values.values() for v in found if v]
    why = "" if any_value else dead or _most_common(every)
    if any_value:
        run = [d for d in dict.fromkeys((*info.worsens_with, *info.invariant_to)) if d in ladders or d not in LADDERS]
        checks += [_worsens(info, d, series.get((d, False))) for d in info.worsens_with if d in run]
        checks += [_stays(d, series, span) for d in info.invariant_to if d in run]
    return MaterialResult(
        material.name, material.domain, len(material.items), tuple(checks), tuple(series.values()), why
    )


Point = tuple[float | None, int, str]
"""Value, number of clips, reason."""


def _means(rows: list[list[Any]]) -> list[Point]:
    """Mean of each level over the clips that have a value at every level that counts.

    A level counts where at least half as many clips have a value as at the best level: one that all but a few clips
    lack would make the other levels' values those of the few.
    """
    having = [{i for i, r in enumerate(row) if r and "value" in r} for row in rows]
    most = max(map(len, having))
    counted = [h for h in having if h and 2 * len(h) >= most]
    common = sorted(set.intersection(*counted)) if counted else []
    points: list[Point] = []
    for row, have in zip(rows, having, strict=True):
        why = _most_common(row)
        if have and 2 * len(have) >= most and common:
            points.append((math.fsum(row[i]["value"] for i in common) / len(common), len(common), why))
        elif have:
            lacking = why if common else "no clip has a value at every level"
            points.append((None, 0, f"{len(have)} of {len(row)} clips have a value; {lacking}"))
        else:
            points.append((None, 0, why))
    return points


def _corpus_point(found: Any, row: list[Any]) -> Point:
    if found is None:
        return None, 0, _most_common(row)
    if "value" not in found:
        return None, 0, found["reason"]
    return found["value"], found["clips"], _most_common(row)


def _most_common(results: Any) -> str:
    """The commonest reason among results without a value, and of how many; "" where all have one."""
    every = list(results)
    reasons = Counter(r.get("reason", "") if r else "not tried" for r in every if not r or "status" in r)
    if not reasons:
        return ""
    why, n = reasons.most_common(1)[0]
    return why if n == len(every) else f"{n} of {len(every)}: {why}"


def _faults(
    results: dict[tuple[str, bool], list[list[Any]]], values: dict[tuple[str, bool], list[Any]] | None
) -> list[Check]:
    found = [
        (f"{ladder or CLEAN}, {_levels(ladder, over)[level]}" if ladder else CLEAN, r["reason"])
        for table in (results, {k: [[v] for v in vs] for k, vs in (values or {}).items()})
        for (ladder, over), rows in table.items()
        for level, row in enumerate(rows)
        for r in row
        if r and r.get("status") == "failed"
    ]
    if not found:
        return []
    more = f"; {len(found)} times in all" if len(found) > 1 else ""
    return [Check("", "FAIL", f"fails at {found[0][0]}: {found[0][1]}{more}")]


def _yardstick(series: Mapping[tuple[str, bool], Series]) -> float | None:
    """Span of the noise ladder; where that does not move the metric, the largest of any ladder."""
    spans = {k: _span([v for v in s.values if v is not None]) for k, s in series.items() if not k[1]}
    return spans.get(("noise", False)) or max((s for s in spans.values() if s), default=None)


def _worsens(info: MetricInfo, name: str, series: Series | None) -> Check:
    what = f"worsens_with {name}"
    if series is None:
        return Check(what, "FAIL", f"there is no ladder {name!r}")
    points = _badness(series, info.direction)
    if len(points) < 2:
        why = next((r for r in series.reasons if r), "")
        return Check(what, "not checked", f"fewer than two levels have a value{': ' if why else ''}{why}")
    return Check(what, "pass") if not (why := _step_back(points)) else Check(what, "FAIL", why)


def _badness(series: Series, direction: str) -> list[tuple[str, float, float]]:
    """Levels with a value: name, value, how bad that is (of a metric without a better side: distance from clean)."""
    points = [(t, v) for t, v in zip(series.levels, series.values, strict=True) if v is not None]
    if direction == "none":
        clean = series.values[0]
        return [] if clean is None else [(t, v, abs(v - clean)) for t, v in points]
    return [(t, v, v if direction == "lower" else -v) for t, v in points]


def _step_back(points: list[tuple[str, float, float]]) -> str:
    """Where badness does not grow, "" where it does: it never falls by more than `STEP_BACK` of its whole span below
    the largest so far."""
    bad = [b for _, _, b in points]
    span = _span(bad)
    if span is None:
        return f"does not move: {points[0][1]:.4g} at {points[0][0]}, {points[-1][1]:.4g} at {points[-1][0]}"
    worst, at, top = 0.0, 0, 0
    best = 0
    for i, b in enumerate(bad):
        if b > bad[best]:
            best = i
        if bad[best] - b > worst:
            worst, at, top = bad[best] - b, i, best
    if worst <= STEP_BACK * span:
        return ""
    (t0, v0, _), (t1, v1, _) = points[top], points[at]
    return f"{v0:.4g} at {t0}, {v1:.4g} at {t1}: better again by {100 * worst / span:.0f} % of its span"


def _span(values: Sequence[float]) -> float | None:
    """Largest less smallest; None where there is nothing but rounding between them."""
    if len(values) < 2:
        return None
    span = max(values) - min(values)
    return span if span > 1e-9 * max(map(abs, values)) else None


def _stays(name: str, series: Mapping[tuple[str, bool], Series], span: float | None) -> Check:
    what = f"invariant_to {name}"
    if name not in LADDERS:
        return Check(what, "FAIL", f"there is no ladder {name!r}")
    if span is None:
        return Check(what, "not checked", "no ladder moves it, so there is no span to hold the change against")
    moved: list[tuple[float, str]] = []
    for over in (False, True):
        one = series[name, over]
        base = one.values[0]
        for text, v in zip(one.levels[1:], one.values[1:], strict=True):
            if base is not None and v is not None:
                where = f"{base:.4g} at {one.levels[0]}, {v:.4g} at {f'{text} on it' if over else text}"
                moved.append((abs(v - base) / span, where))
    if not moved:
        why = next((r for over in (True, False) for r in series[name, over].reasons if r), "")
        return Check(what, "not checked", f"no two levels have a value: {why}")
    share, where = max(moved)
    if share <= INVARIANCE:
        return Check(what, "pass")
    return Check(what, "FAIL", f"{where}: moves by {100 * share:.1f} % of the span")


def _observed(series: Series, direction: str, span: float | None) -> str:
    values = [v for v in series.values if v is not None]
    if len(values) < 2:
        return ""
    own = max(values) - min(values)
    if own <= INVARIANCE * (span or 0.0) or _span(values) is None:
        return "still"
    points = _badness(series, direction)
    if len(points) < 2:
        return ""
    if not _step_back(points):
        return "worsens"
    return "moves" if direction == "none" or _step_back([(t, v, -b) for t, v, b in points]) else "improves"


def _result(info: MetricInfo, tested: list[MaterialResult]) -> MetricResult:
    from evalkit.work import metric_id

    verdict, why = _verdict(info, tested)
    return MetricResult(
        metric_id(info),
        info.name,
        info.unit,
        info.direction,
        info.group,
        info.level,
        info.worsens_with,
        info.invariant_to,
        verdict,
        why,
        tuple(tested),
    )


def _verdict(info: MetricInfo, tested: list[MaterialResult]) -> tuple[str, str]:
    if not tested:
        lacking = [n for n in info.needs if n not in AUDIO]
        return "not run", f"not an audio measure: needs {', '.join(lacking)}"
    failed = [(t, c) for t in tested for c in t.checks if c.verdict == "FAIL"]
    if failed:
        t, c = failed[0]
        more = f"; and {len(failed) - 1} more" if len(failed) > 1 else ""
        return "FAIL", f"{c.declaration}{': ' if c.declaration else ''}{c.reason} ({t.material}, {t.clips} clips){more}"
    kept = {c.declaration for t in tested for c in t.checks if c.verdict == "pass"}
    valued = [t for t in tested if not t.reason]
    if not valued:
        reasons = {t.reason: t.material for t in reversed(tested)}
        first = tested[0].reason
        more = f" ({tested[0].material}; other reasons on {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        return "not run", first + more
    on = "on " + ", ".join(t.material for t in valued)
    if not (info.worsens_with or info.invariant_to):
        return "nothing declared", on
    open_ = [c for t in valued for c in t.checks if c.verdict == "not checked" and c.declaration not in kept]
    unchecked = "; ".join(dict.fromkeys(f"{c.declaration} not checked: {c.reason}" for c in open_))
    if not kept:
        return "not run", unchecked or "none of its declared ladders was run"
    return "pass", f"{len(kept)} declarations {on}" + (f"; {unchecked}" if unchecked else "")


# -- verdicts that are kept -------------------------------------------------------------------------------------------


def verdict(metric_id: str) -> str:
    """Why a metric of this id failed its own declaration when it was last tested; "" if it passed, or is unknown.

    From what is shipped (``evalkit selftest --record``) and from this user's own runs, which count for the data sets
    that they tested. A failure whose declaration is no longer made does not count.

    Raises:
        EvalkitError: a file of verdicts is damaged.
    """
    failed: list[dict[str, str]] = []
    for found in (_read(SHIPPED).get(metric_id, {}) | _read(own_verdicts()).get(metric_id, {})).values():
        failed += found
    failed = [f for f in failed if _still_declared(metric_id, f["declaration"])]
    if not failed:
        return ""
    more = f"; and {len(failed) - 1} more" if len(failed) > 1 else ""
    declaration = failed[0]["declaration"]
    return f"{declaration}{': ' if declaration else ''}{failed[0]['reason']}{more}"


def own_verdicts() -> Path:
    """Where the verdicts of this user's runs are kept: ``selftest.json`` in the cache folder."""
    from evalkit.datasets.manifest import cache_folder

    return cache_folder() / "selftest.json"


def keep(outcome: Selftest, path: Path) -> None:
    """Add a self-test's verdicts to a file of verdicts, in place of earlier ones of the same metric and data set.

    Other versions of the metrics tested are dropped.

    Raises:
        EvalkitError: the file is damaged. UsageError, OSError: it cannot be written.
    """
    from evalkit.output import replacing

    known = {k: dict(v) for k, v in _read(path).items()}
    names = {m.name for m in outcome.metrics}
    ids = {m.id for m in outcome.metrics}
    known = {k: v for k, v in known.items() if k in ids or k.rpartition("-v")[0] not in names}
    for metric in outcome.metrics:
        for t in metric.tested:
            if t.reason and not t.checks:
                continue
            known.setdefault(metric.id, {})[t.material] = [
                {"declaration": c.declaration, "reason": f"{c.reason} ({t.material}, {t.clips} clips)"}
                for c in t.checks
                if c.verdict == "FAIL"
            ]
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"format": FORMAT, "evalkit": __version__, "metrics": known}
    with replacing(path) as half:
        half.write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, dict[str, list[dict[str, str]]]]:
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return {}


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, changed: int) -> dict[str, dict[str, list[dict[str, str]]]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}, this evalkit reads {FORMAT}")
        found: dict[str, dict[str, list[dict[str, str]]]] = document["metrics"]
        for by_material in found.values():
            for failed in by_material.values():
                for one in failed:
                    if not (isinstance(one["declaration"], str) and isinstance(one["reason"], str)):
                        raise ValueError("a failure without declaration and reason")
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvalkitError(
            f"{path}: no file of self-test verdicts ({type(error).__name__}: {error}); delete it and run "
            "`evalkit selftest` again"
        ) from error


def _still_declared(metric_id: str, declaration: str) -> bool:
    kind, _, ladder = declaration.partition(" ")
    if not kind:
        return True
    try:
        info = registry.get("metrics", metric_id.rpartition("-v")[0])
    except UsageError:  # a metric of a file that is not loaded: take the record's word
        return True
    return ladder in getattr(info, kind, ())


def write(outcome: Selftest, folder: Path) -> list[Path]:
    """Write ``selftest.json``, ``selftest.md`` and ``selftest.html`` into ``folder``; returns their paths."""
    from evalkit.output import replacing
    from evalkit.selftest_page import html_page, markdown

    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "selftest.json": json.dumps(outcome.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "selftest.md": markdown(outcome),
        "selftest.html": html_page(outcome),
    }
    for name, text in texts.items():
        with replacing(folder / name) as half:
            half.write_text(text, encoding="utf-8", errors="backslashreplace")
    return [folder / name for name in texts]
