"""Measuring the caption measures: how often each prefers the caption that people preferred.

Reads the two files of FENSE's benchmark (``audiocaps_eval.json``, ``clotho_eval.json`` of the fense repository): for
each clip its references and pairs of captions with the votes of people. Kinds of pairs: two captions right for the clip
(HC), one right and one of another clip (HI), one right and one by a machine (HM), two by machines (MM).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.errors import EvalkitError, NotApplicable, UsageError
from evalkit.registry import MetricInfo
from evalkit.statistics import Interval, cluster_bootstrap
from evalkit.work import load_metric, reason

KINDS = ("HC", "HI", "HM", "MM")


@dataclass(frozen=True)
class Pair:
    """Two captions of one clip; ``votes`` is the sum of the people's (above 0: the first is better).

    ``references``: for each of the two, the sets of references that it is scored against; its score is the mean.
    """

    clip: int
    kind: str
    captions: tuple[str, str]
    references: tuple[list[list[str]], list[list[str]]]
    votes: float


@dataclass(frozen=True)
class Agreement:
    """Share of pairs of one kind in which a metric prefers what people prefer; ``interval`` None where it has none."""

    metric: str
    kind: str
    pairs: int
    interval: Interval | None
    reason: str = ""


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a benchmark file that people did not leave undecided.

    References as in FENSE's own evaluation: a human caption is not compared with itself; of two machine captions each
    is scored against every four of the five references and its scores are averaged, so that all kinds have four.

    Raises:
        UsageError: not such a file; the message names the entry.
    """
    try:
        clips = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(clips, list):
        raise UsageError(f"{path}: expected a list of clips, it holds a {type(clips).__name__}")
    pairs = []
    for number, clip in enumerate(clips):
        try:
            given = [str(r) for r in clip["references"]]
            for facet, value in clip.items():
                kind = str(facet).partition("_")[0]
                if kind in KINDS and value:
                    first, second, votes = value[0], value[1], float(np.sum(value[-1]))
                    if votes and isinstance(first, str) and isinstance(second, str):
                        sets = _references(kind, first, second, given)
                        pairs.append(Pair(number, kind, (first, second), sets, votes))
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise UsageError(f"{path}: clip {number} is not as FENSE's benchmark has it ({error!r})") from error
    if not pairs:
        raise UsageError(f"{path}: no pair of captions that people decided on")
    return pairs


def _references(kind: str, first: str, second: str, given: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    if kind == "MM":
        sets = [[r for k, r in enumerate(given) if k != left] for left in range(len(given))]
        return sets, sets
    without = [[x for x in given if x != caption] for caption in (first, second if kind == "HC" else first)]
    if not all(without):
        raise ValueError("no reference is left")
    return [without[0]], [without[1]]


def agreement(path: str | Path, metrics: Sequence[str], *, seed: int = 0) -> list[Agreement]:
    """Agreement of caption metrics with people, for each kind of pair and over all; a tie of the metric is a miss.

    Args:
        path: a file of FENSE's benchmark.
        metrics: names of per-clip metrics of text.

    Returns:
        Five rows a metric (HC, HI, HM, MM, all), with a bootstrap over clips; where the metric has no value (a model
        is absent), one row that says why.

    Raises:
        UsageError: a bad file, or a metric that is no per-clip metric of text.
    """
    pairs = read_pairs(path)
    rows = []
    for name in metrics:
        info = load_metric(name)
        if not info.of_text or info.level != "sample" or info.direction == "none":
            raise UsageError(f"{name} is no per-clip metric of captions with a better end")
        try:
            sign = 1.0 if info.direction == "higher" else -1.0
            better = sign * (_scores(info, pairs, 0) - _scores(info, pairs, 1))
        except (NotApplicable, EvalkitError) as error:
            rows.append(Agreement(info.name, "all", len(pairs), None, reason(error)))
            continue
        hit = (better * np.array([p.votes for p in pairs]) > 0).astype(float)
        for kind in (*KINDS, "all"):
            at = [i for i, p in enumerate(pairs) if kind in (p.kind, "all")]
            interval = cluster_bootstrap(hit[at], [str(pairs[i].clip) for i in at], seed=seed)
            rows.append(Agreement(info.name, kind, len(at), interval, interval.note))
    return rows


def _scores(info: MetricInfo, pairs: Sequence[Pair], which: int) -> np.ndarray:
    """A score for one caption of each pair: the mean over its sets of references."""
    at = [i for i, p in enumerate(pairs) for _ in p.references[which]]
    candidates = [p.captions[which] for p in pairs for _ in p.references[which]]
    references = [refs for p in pairs for refs in p.references[which]]
    offered: dict[str, Any] = {"candidates": candidates, "references": references, "corpus": references}
    lacking = [n for n in info.needs if n not in offered]
    if lacking:
        raise NotApplicable(f"{info.name} needs {lacking[0]}, which the benchmark does not have")
    values = list(info.function(**{n: offered[n] for n in info.needs}))
    fault = next((v for v in values if isinstance(v, Exception)), None)
    if fault is not None:
        raise fault
    totals = np.bincount(at, weights=np.array(values, dtype=float), minlength=len(pairs))
    return totals / np.bincount(at, minlength=len(pairs))
