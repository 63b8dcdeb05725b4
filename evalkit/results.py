"""Result records: what tables and leaderboards are made of. One small JSON value for a system, with a seed, on a task.

A record holds every clip's value of every sample metric (7 significant digits), the value and interval of every corpus
metric, each reason for what has no value, and the identity, data, system and environment that the values belong to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evalkit.captioning import Round, mean_over_rounds, rounds_of
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.flags import flags_of
from evalkit.identity import canonical_json, digest, short, source_hash
from evalkit.record import RunDirectory
from evalkit.registry import MetricInfo
from evalkit.statistics import Interval, corpus_bootstrap
from evalkit.work import load_metric, reason

FORMAT = 1
CORPUS_REPLICATES = 500


def collect(directory: RunDirectory) -> list[dict[str, Any]]:
    """The result records of a run directory, one a (task, system, seed), in plan order; works on unfinished runs."""
    run = directory.read()
    predictions, scores = _predictions(directory), _scores(directory)
    systems = {s["name"]: s for s in run["systems"]}
    kept = (_Corpus(directory), _Texts(directory))
    return [_one(directory, run, cell, systems[cell["system"]], predictions, scores, *kept) for cell in run["cells"]]


def _one(
    directory: RunDirectory,
    run: Mapping[str, Any],
    cell: Mapping[str, Any],
    system: Mapping[str, Any],
    predictions: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, _Scored],
    corpus: _Corpus,
    texts: _Texts,
) -> dict[str, Any]:
    task = run["tasks"][cell["task"]]
    clips = directory.get_json(task["clips"])
    keys = directory.get_json(cell["keys"])
    ids = [c[0] for c in clips]
    clusters = [c[1] for c in clips]
    whole = cell["not_applicable"] or cell["error"]
    metrics: dict[str, Any] = {}
    for spec in task["metrics"]:
        info = load_metric(spec)
        identifier = task["identity"]["metrics"].get(info.name, info.name)
        column: dict[str, Any] = {
            "id": identifier,
            "unit": info.unit,
            "direction": info.direction,
            "group": info.group,
            "level": info.level,
            "deterministic": info.deterministic,
        }
        flags = flags_of(info, identifier, system, task["about"]["dataset"])
        if flags:
            column["flags"] = flags
        results: list[Mapping[str, Any]] = []
        value: dict[str, Any] | None = None
        if whole:
            results = [{"status": "n/a" if cell["not_applicable"] else "failed", "reason": whole}] * len(clips)
        elif info.of_text:
            results, value = texts.values(
                info, identifier, [predictions.get(k) for k in keys], task, clusters, cell["seed"]
            )
        else:
            results = [_result(predictions.get(k), scores.get(k), identifier) for k in keys]
        if info.level == "corpus" and info.of_text:
            column["corpus"] = value or {
                "value": None,
                "low": None,
                "high": None,
                "note": "no clip has a caption",
                "n": 0,
            }
        elif info.level == "corpus":
            column["corpus"] = corpus.value(info, identifier, results, clusters, cell["seed"])
            if "contributions" in column["corpus"]:
                spread = iter(column["corpus"]["contributions"])
                column["corpus"] = {
                    **column["corpus"],
                    "contributions": [next(spread) if "stats" in r else None for r in results],
                }
        else:
            column["values"] = [_rounded(r.get("value")) for r in results]
        column["reasons"] = _reasons(results)
        metrics[info.name] = column
    return {
        "format": FORMAT,
        "task": {
            "name": cell["task"],
            "version": task["version"],
            "identity": task["identity"],
            "about": task["about"],
        },
        "system": {
            k: system.get(k)
            for k in (
                "name",
                "spec",
                "role",
                "summary",
                "domains",
                "licence",
                "citation",
                "stochastic",
                "sample_rate",
                "parameters",
                "declared_kbps",
                "fingerprint",
            )
        },
        "seed": cell["seed"],
        "identity": cell["digest"],
        "clips": {"id": ids, "cluster": clusters},
        "metrics": metrics,
        "order": list(metrics),
        "notes": sorted({n for k in keys for n in predictions.get(k, {}).get("notes", ())}),
        "environment": run["environment"],
        "command": run["command"],
        "baseline": run["request"].get("baseline"),
    }


_Scored = tuple[Mapping[str, int], list[Any]]
"""One clip's results as kept while tables are made: where each metric id stands, and a number or a mapping a metric."""


def _predictions(directory: RunDirectory) -> dict[str, Mapping[str, Any]]:
    """Status and reason by key; equal ones are one object, so that memory hardly grows with the clips. Captions too."""
    known: dict[tuple[str, str], Mapping[str, Any]] = {}
    out: dict[str, Mapping[str, Any]] = {}
    for r in directory.lines("predictions"):
        light = (r["status"], r.get("reason", ""))
        if "rounds" in r:
            out[r["key"]] = {"status": light[0], "rounds": r["rounds"], "notes": r.get("notes", ())}
        elif "notes" in r:
            out[r["key"]] = {"status": light[0], "reason": light[1], "notes": r["notes"]}
        else:
            out[r["key"]] = known.setdefault(light, {"status": light[0], "reason": light[1]})
    return out


def _scores(directory: RunDirectory) -> dict[str, _Scored]:
    """Results by key; where lines repeat a metric, the last counts."""
    places: dict[tuple[str, ...], Mapping[str, int]] = {}
    known: dict[str, Mapping[str, Any]] = {}
    out: dict[str, _Scored] = {}
    for r in directory.lines("scores"):
        merged = {}
        if r["key"] in out:
            place, values = out[r["key"]]
            merged = {i: values[p] for i, p in place.items()}
        for i, result in r["metrics"].items():
            merged[i] = result["value"] if "value" in result else known.setdefault(canonical_json(result), result)
        ids = tuple(merged)
        out[r["key"]] = (places.setdefault(ids, {i: p for p, i in enumerate(ids)}), list(merged.values()))
    return out


def _result(prediction: Mapping[str, Any] | None, scored: _Scored | None, identifier: str) -> Mapping[str, Any]:
    if prediction is None:
        return {"status": "missing", "reason": "not predicted yet: issue the same command to finish"}
    if prediction["status"] != "ok":
        return prediction
    if scored is None or identifier not in scored[0]:
        return {"status": "missing", "reason": "not scored yet: issue the same command to finish"}
    found = scored[1][scored[0][identifier]]
    return found if isinstance(found, dict) else {"value": found}


def _reasons(results: list[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """``{status: {reason: [clip indices]}}`` for everything without a value."""
    out: dict[str, dict[str, list[int]]] = {}
    for i, r in enumerate(results):
        if "status" in r:
            out.setdefault(r["status"], {}).setdefault(r["reason"], []).append(i)
    return out


def _rounded(value: float | None) -> float | None:
    """7 significant digits: enough for any table, small enough to keep, the same on every rebuild."""
    return None if value is None else float(f"{value:.7g}")


class _Corpus:
    """Values and intervals of corpus metrics, kept in ``corpus.jsonl`` under a hash of all that they depend on."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.known = {r["key"]: r["result"] for r in directory.lines("corpus")}
        self.loaded: dict[str, dict[str, np.ndarray]] = {}

    def value(
        self, info: MetricInfo, identifier: str, results: list[Mapping[str, Any]], clusters: list[str], seed: int
    ) -> dict[str, Any]:
        """The value over the clips that have statistics, with its cluster bootstrap."""
        used: list[tuple[Any, str]] = [(r["stats"], c) for r, c in zip(results, clusters, strict=True) if "stats" in r]
        if not used:
            return {"value": None, "low": None, "high": None, "note": "no clip has statistics", "n": 0}
        how = [] if info.evaluate else [CORPUS_REPLICATES, source_hash(corpus_bootstrap)]
        key = digest([identifier, used, seed, *how])
        if key not in self.known:
            self.known[key] = self._compute(info, used, seed)
            try:
                self.directory.append("corpus", {"key": key, "result": self.known[key]})
            except OSError:  # a run directory that may only be read: the value is computed again next time
                pass
        return self.known[key]

    def _compute(self, info: MetricInfo, used: list[tuple[Any, str]], seed: int) -> dict[str, Any]:
        try:
            if info.evaluate is not None:
                return self._evaluated(info, used, seed)
            assert info.combine is not None
            # Metrics over the same statistics (entropy, use, perplexity) name the same objects: read them once.
            names = {name for name, _ in used}
            self.loaded = {n: self.loaded.get(n) or self.directory.get_arrays(n) for n in names}
            statistics = [self.loaded[n] for n, _ in used]
            interval = _interval(info, statistics, [c for _, c in used], info.combine, seed)
            if interval.estimate is None or not np.isfinite(interval.estimate):
                raise EvalkitError(f"the metric returned {interval.estimate}")
            return {
                "value": _rounded(interval.estimate),
                "low": _rounded(interval.low),
                "high": _rounded(interval.high),
                "note": interval.note,
                "n": len(used),
            }
        except Exception as error:
            status = "n/a" if isinstance(error, NotApplicable) else "failed"
            return {"value": None, "low": None, "high": None, "note": reason(error), "n": len(used), "status": status}

    def _evaluated(self, info: MetricInfo, used: list[tuple[Any, str]], seed: int) -> dict[str, Any]:
        assert info.evaluate is not None
        found = info.evaluate(Statistics(self.directory, [s for s, _ in used]), [c for _, c in used], seed)
        if not np.isfinite(found.value):
            raise EvalkitError(f"the metric returned {found.value}")
        low, high = info.range
        if not low <= found.value <= high:
            raise EvalkitError(f"the metric returned {found.value:g}, outside its declared range {low:g}..{high:g}")
        value: dict[str, Any] = {
            "value": _rounded(found.value),
            "low": _rounded(found.low),
            "high": _rounded(found.high),
            "note": found.note,
            "n": len(used),
            "detail": dict(found.detail),
        }
        if found.floor is not None:
            value |= {"floor": _rounded(found.floor), "floor_detail": found.floor_detail}
        if found.contributions is not None:
            value["contributions"] = [_rounded(float(c)) for c in found.contributions]
        return value


class _Texts:
    """Values of metrics of text, kept in ``texts.jsonl`` under a hash of all that they depend on."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.known = {r["key"]: r["result"] for r in directory.lines("texts")}

    def values(
        self,
        info: MetricInfo,
        identifier: str,
        predictions: Sequence[Mapping[str, Any] | None],
        task: Mapping[str, Any],
        clusters: list[str],
        seed: int,
    ) -> tuple[list[Mapping[str, Any]], dict[str, Any] | None]:
        """One result a clip, and the value of a corpus metric."""
        results: list[Mapping[str, Any]] = [_result(p, None, identifier) for p in predictions]
        having = [p if p is not None and "rounds" in p else {} for p in predictions]
        at = [i for i, p in enumerate(having) if p]
        if not at:
            for i, p in enumerate(predictions):
                if p is not None and p["status"] == "ok":
                    results[i] = {"status": "n/a", "reason": "not a captioning task: there are no candidates"}
            return results, None
        labels = self.directory.get_json(task["labels"])
        key = digest([identifier, [p.get("rounds") for p in having], task["labels"], clusters, seed])
        if key not in self.known:
            self.known[key] = text_values(info, rounds_of(having, labels), clusters, seed)
            if _settled(self.known[key]):
                try:
                    self.directory.append("texts", {"key": key, "result": self.known[key]})
                except OSError:  # a run directory that may only be read: computed again next time
                    pass
        found = self.known[key]
        for i, result in zip(at, found["clips"], strict=True):
            results[i] = result
        return results, found["corpus"]


def _settled(found: Mapping[str, Any]) -> bool:
    """Whether a metric's values are final: what failed, or had none at all for want of a program or a model, is tried
    again when the command is issued again."""
    statuses = [clip.get("status") for clip in found["clips"]]
    return "failed" not in statuses and not all(s == "n/a" for s in statuses)


def text_values(info: MetricInfo, rounds: Sequence[Round], clusters: Sequence[str], seed: int) -> dict[str, Any]:
    """One metric of text on the rounds of a system: ``{"clips": one result a clip with candidates, "corpus": ...}``.

    A result of a clip is ``{"value": x}``, or a status and reason; of a corpus metric ``{"stats": ""}`` for every clip.
    """
    n = len(rounds[0].at)
    try:
        each = [list(info.function(**{name: getattr(r, name) for name in info.needs})) for r in rounds]
        for made in each:
            if len(made) != n:
                raise EvalkitError(f"{info.name} returned {len(made)} values for {n} clips")
        if info.level == "corpus":
            assert info.combine is not None
            own = [clusters[i] for i in rounds[0].at]
            statistics = [tuple(made[i] for made in each) for i in range(n)]
            interval = _interval(info, statistics, own, _over_rounds(info.combine), seed)
            value = {k: _rounded(getattr(interval, {"value": "estimate"}.get(k, k))) for k in ("value", "low", "high")}
            return {"clips": [{"stats": ""}] * n, "corpus": {**value, "note": interval.note, "n": n}}
        return {"clips": [_text_result(info, v) for v in mean_over_rounds(each)], "corpus": None}
    except Exception as error:
        status = "n/a" if isinstance(error, NotApplicable) else "failed"
        fault = {"status": status, "reason": reason(error)}
        absent = {"value": None, "low": None, "high": None, "note": reason(error), "n": n, "status": status}
        return {"clips": [fault] * n, "corpus": absent if info.level == "corpus" else None}


def _interval(
    info: MetricInfo, statistics: Sequence[Any], clusters: Sequence[str], combine: Any, seed: int
) -> Interval:
    """The value of a corpus metric with its interval, where it may have one."""
    if info.no_interval:
        value = float(combine(statistics, np.ones(len(statistics))))
        return Interval(value, None, None, len(statistics), len(set(clusters)), f"no interval: {info.no_interval}")
    return corpus_bootstrap(statistics, clusters, combine, replicates=CORPUS_REPLICATES, seed=seed)


def _over_rounds(combine: Callable[[list[Mapping[str, Any]], Any], Any]) -> Callable[[Any, Any], Any]:
    """The mean over the rounds of a corpus metric's value."""

    def combined(statistics: Any, weights: Any) -> Any:
        values = [np.asarray(combine(list(one), weights), dtype=float) for one in zip(*statistics, strict=True)]
        return values[0] + sum(v - values[0] for v in values) / len(values)

    return combined


def _text_result(info: MetricInfo, value: float | Exception) -> dict[str, Any]:
    if isinstance(value, NotApplicable):
        return {"status": "n/a", "reason": reason(value)}
    if isinstance(value, Exception):
        return {"status": "failed", "reason": reason(value)}
    low, high = info.range
    if not np.isfinite(value):
        return {"status": "failed", "reason": f"the metric returned {value}"}
    if not low <= value <= high:
        why = f"the metric returned {value:g}, outside its declared range {low:g}..{high:g}"
        return {"status": "failed", "reason": why}
    return {"value": float(value)}


class Statistics(Sequence[Mapping[str, np.ndarray]]):
    """The statistics of clips, read from the run's objects one at a time: memory does not grow with the clips."""

    def __init__(self, directory: RunDirectory, names: list[Mapping[str, str]]) -> None:
        self.directory, self.names = directory, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return Statistics(self.directory, self.names[i])
        return {key: self.directory.get_arrays(name)[key] for key, name in self.names[i].items()}


def counts(result: Mapping[str, Any], metric: str) -> tuple[int, int, int, int]:
    """Clips scored, failed, not applicable and missing, of one metric."""
    column = result["metrics"][metric]
    n = {s: sum(len(v) for v in column["reasons"].get(s, {}).values()) for s in ("failed", "n/a", "missing")}
    total = len(result["clips"]["id"])
    return total - sum(n.values()), n["failed"], n["n/a"], n["missing"]


def failed_whole(result: Mapping[str, Any]) -> bool:
    """No clip of this system on this task has any value, and at least one failed."""
    every = [counts(result, m) for m in result["metrics"]]
    return bool(every) and not any(c[0] for c in every) and any(c[1] for c in every)


def some_failed(result: Mapping[str, Any]) -> bool:
    broken = any(c.get("corpus", {}).get("status") == "failed" for c in result["metrics"].values())
    return broken or any(counts(result, m)[1] or counts(result, m)[3] for m in result["metrics"])


def system_label(result: Mapping[str, Any]) -> str:
    """The short name of a row: the spec as typed; the full name stands in the table's notes."""
    return result["system"]["spec"]


@functools.cache
def _slug(text: str) -> str:
    import hashlib
    import re

    clean = re.sub(r"[^A-Za-z0-9._=-]+", "_", text).strip("._")[:60]
    return f"{clean}-{short(hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest())[:8]}"


def file_name(result: Mapping[str, Any]) -> str:
    """A safe file name for a record: readable start of the system's full name, and a hash of it and the seed."""
    return f"{_slug(result['system']['name'] + '@@seed=' + str(result['seed']))}.json"
