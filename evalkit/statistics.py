"""Statistics of per-clip scores: intervals over clusters, paired differences, Holm, ranks with ties, coverage.

The clip is what is averaged; the cluster (source recording, speaker, track) is what is drawn: clips of one cluster are
alike, so that n clips carry less than n clips' worth of evidence. Every draw comes from an explicit seed, and the
replicates are summed exactly (see `_on_grid`), so that equal scores give equal bytes on any machine with the same numpy
random streams. Decisions, formulae and measured error rates: docs/design/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from evalkit.errors import ContractError, UsageError

Direction = Literal["lower", "higher", "none"]

FEW_CLUSTERS = 10
"""Below this many clusters an interval is marked as too narrow."""

EXACT_CLUSTERS = 12
"""Up to this many clusters the sign-flip test enumerates all flips."""

_BLOCK = 2**18
"""Elements of one block of weights or signs; bounds memory to some MB whatever the number of clips."""


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval, in the unit of the metric.

    ``low`` and ``high`` are None where no interval can be given, ``estimate`` where there is no value; ``note`` says
    why, or warns that the interval is too narrow. ``n`` counts clips, ``clusters`` their clusters.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """Mean paired difference with its interval and the two-sided sign-flip p value (None: no common clip)."""

    estimate: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    clusters: int
    note: str = ""


@dataclass(frozen=True)
class Pair:
    """``first`` minus ``second`` on the clips both scored; ``significant`` is ``p_adjusted`` (Holm) <= 1 - level."""

    first: str
    second: str
    difference: Difference
    p_adjusted: float | None
    significant: bool


@dataclass(frozen=True)
class Standing:
    """One system in one metric column.

    Attributes:
        mean: over the common subset; over the system's own clips where ``note`` or the comparison's notes say so.
        scored: clips with a score, common or not.
        rank: (first, last) rank that the significant differences leave open; None where it is not ranked.
        letters: systems that share a letter do not differ significantly; "" where it is not ranked.
        versus: this system minus the baseline; None for the baseline itself, without one, or without common clips.
    """

    system: str
    mean: Interval
    scored: int
    rank: tuple[int, int] | None
    letters: str
    versus: Pair | None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """All systems in one metric column; ``standings`` in the order of the table given, ``pairs`` all pairs of them.

    ``common`` is the number of clips that every ranked system scored, ``best`` that of the best-covered system, and
    ``on_common`` says whether the means are over the common clips.
    """

    direction: Direction
    level: float
    baseline: str | None
    common: int
    best: int
    on_common: bool
    standings: tuple[Standing, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()


# -- intervals --------------------------------------------------------------------------------------------------------


def cluster_bootstrap(
    values: Any, clusters: Any, *, replicates: int = 2000, level: float = 0.95, seed: int
) -> Interval:
    """Mean over clips with a cluster bootstrap interval.

    Whole clusters are drawn with replacement, as many as there are; a replicate is the sum of the drawn values over the
    number of drawn clips. The interval is Hesterberg's expanded percentile interval (`expanded_tail`).

    Args:
        values: float [n], finite, one per clip.
        clusters: [n] strings or integers; clips of one cluster are drawn together.

    Returns:
        Interval; without ``low`` and ``high`` for no clips or one cluster; a note marks few clusters.

    >>> cluster_bootstrap([2.0, 2.0, 2.0], ["a", "a", "b"], seed=0)
    Interval(estimate=2.0, low=2.0, high=2.0, n=3, clusters=2, note='few clusters (2): interval too narrow')
    >>> cluster_bootstrap([1.0, 3.0], ["a", "a"], seed=0)
    Interval(estimate=2.0, low=None, high=None, n=2, clusters=1, note='one cluster: no interval')

    Raises:
        ValueError: non-finite values, unequal lengths, a level outside (0, 1).

    Source: Davison & Hinkley 1997, section 3.8 (resampling whole clusters); Hesterberg 2015, The American Statistician
    69(4), 371-386 (expansion).
    """
    _check(level, replicates)
    x, codes, count = _read(values, clusters)
    order = np.lexsort((x, codes))  # a canonical order: permuted rows give the same bytes
    return _means(x[None, order], codes[order], count, replicates, level, seed)[0]


def expanded_tail(level: float, clusters: int) -> float:
    """Tail probability alpha'/2 at which bootstrap quantiles are read so that few clusters do not narrow the interval.

    alpha'/2 = Phi(-sqrt(G / (G - 1)) t_{G-1, 1-alpha/2}) for G clusters: the bootstrap's variance is (G - 1) / G
    of the unbiased one, and the normal quantile gives way to Student's.

    >>> round(expanded_tail(0.95, 10), 5), round(expanded_tail(0.95, 10**7), 5)
    (0.00855, 0.025)

    Source: Hesterberg 2015; ExpandProbs in his R package `resample`.
    """
    from scipy.special import ndtr, stdtrit

    return float(ndtr(-math.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, (1 + level) / 2)))


def bootstrap_weights(clusters: Any, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """How often each clip counts in each replicate, as blocks of int64 [rows, n]; the rows add up to ``replicates``.

    A clip's weight is how often its cluster was drawn. The draws depend on the number of clusters, ``replicates`` and
    ``seed`` alone, and are those of `cluster_bootstrap`.

    >>> [w.shape for w in bootstrap_weights(["a", "a", "b"], 5, seed=1)]
    [(5, 3)]
    """
    labels = np.asarray(clusters)
    codes, count = _codes(labels)
    for block in _multiplicities(count, replicates, seed, width=max(len(codes), count)):
        yield block[:, codes]


def corpus_bootstrap(
    statistics: Sequence[Any],
    clusters: Any,
    combine: Callable[[Any, Any], Any],
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int,
) -> Interval:
    """Value of a corpus metric with a cluster bootstrap interval.

    ``combine(statistics, weights)`` gives the value for weights [n] (how often each clip counts), and preferably one
    value per row for weights [replicates, n]. Where it does not take two dimensions, or its rows then disagree with the
    values it gives one by one, it is called once per replicate.

    Returns:
        Interval; without ``low`` and ``high`` for one cluster, and where any replicate raised or was not finite (the
        quantiles of the remaining ones would be those of a selected sample); the note counts them.

    Raises:
        ContractError: the value over the corpus itself is not a finite number.
        ValueError: unequal lengths, a level outside (0, 1).
        Whatever ``combine`` raises for the corpus itself (`NotApplicable`, ...).
    """
    _check(level, replicates)
    labels = np.asarray(clusters)
    codes, count = _codes(labels)
    n = len(codes)
    if len(statistics) != n:
        raise ValueError(f"{len(statistics)} statistics for {n} cluster labels: there must be one label per clip")
    if not n:
        return Interval(None, None, None, 0, 0, "no scored clips")
    estimate = float(combine(statistics, np.ones(n, dtype=np.int64)))
    if not math.isfinite(estimate):
        raise ContractError(
            f"the corpus metric gave {estimate} over {n} clips; it must give a finite number or raise NotApplicable"
        )
    if count == 1:
        return Interval(estimate, None, None, n, 1, "one cluster: no interval")
    values = np.concatenate(
        [_combine_block(statistics, w, combine) for w in bootstrap_weights(labels, replicates, seed)]
    )
    bad = int((~np.isfinite(values)).sum())
    if bad:
        return Interval(estimate, None, None, n, count, f"no interval: {bad} of {replicates} resamples have no value")
    low, high = _ends(values, level, count)
    return Interval(estimate, float(low), float(high), n, count, _width_note(count))


def _combine_block(statistics: Sequence[Any], weights: np.ndarray, combine: Callable[[Any, Any], Any]) -> np.ndarray:
    try:
        values = np.asarray(combine(statistics, weights), dtype=float)
        # a combine written for one dimension can return the right shape and wrong values, e.g. by weights.sum()
        rows = (0, len(weights) - 1)
        if values.shape == (len(weights),) and all(
            np.isclose(values[i], float(combine(statistics, weights[i])), rtol=1e-6, atol=1e-12, equal_nan=True)
            for i in rows
        ):
            return values
    except Exception:
        pass
    values = np.full(len(weights), np.nan)
    for i, row in enumerate(weights):
        try:
            values[i] = float(combine(statistics, row))
        except Exception:  # counted by the caller as a replicate without a value
            continue
    return values


# -- paired differences -----------------------------------------------------------------------------------------------


def paired_difference(
    a: Any, b: Any, clusters: Any, *, replicates: int = 2000, level: float = 0.95, seed: int, flips: int | None = None
) -> Difference:
    """Mean of a - b over the clips that both scored, its interval, and a p value.

    The interval is that of `cluster_bootstrap` on the differences; p is that of `sign_flip_p`, with ``flips`` random
    flips (default: ``replicates``).

    Args:
        a, b: float [n], finite, the same clips in the same order.
        clusters: [n] strings or integers.

    >>> d = paired_difference([1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 3.0], list("wxyz"), seed=0)
    >>> d.estimate, d.low, d.high, d.p
    (1.0, 1.0, 1.0, 0.125)

    Raises:
        ValueError: non-finite values, unequal lengths, a level outside (0, 1).
    """
    _check(level, replicates)
    first, second = _finite(a), _finite(b)
    if first.shape != second.shape:
        raise ValueError(f"a has {len(first)} clips and b {len(second)}: give both on their common clips")
    x, codes, count = _read(first - second, clusters)
    order = np.lexsort((x, codes))
    return _differences(x[None, order], codes[order], count, replicates, level, seed, flips or replicates)[0]


def sign_flip_p(cluster_sums: Any, *, flips: int = 2000, seed: int) -> np.ndarray:
    """Two-sided p values [pairs] of the hypothesis that cluster sums of differences are symmetric about zero.

    The statistic is |sum over clusters|; the sign of each cluster's sum is flipped. All 2^G flips are enumerated for
    G <= 12 clusters, so that p is exact and never below 2^-(G-1). Beyond, ``flips`` random ones are drawn, the same for
    all pairs, and p = (1 + number as extreme) / (1 + flips), valid for any number of flips (Phipson & Smyth 2010).

    Args:
        cluster_sums: float [pairs, G], finite.

    >>> sign_flip_p([[1.0, 2.0, 3.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]], seed=0).tolist()
    [0.25, 1.0, 1.0]

    Raises:
        ValueError: not [pairs, G], no cluster, or not finite.
    """
    sums = np.asarray(cluster_sums, dtype=float)
    if sums.ndim != 2 or not sums.shape[1]:
        raise ValueError(f"cluster_sums has shape {sums.shape}, expected [pairs, clusters]")
    if not np.isfinite(sums).all():
        raise ValueError("cluster_sums holds NaN or infinite values")
    grid = _on_grid(sums)
    total = grid.sum(axis=1, keepdims=True)
    # flips that tie with the data in exact arithmetic must count as extreme in floating point too
    threshold = np.abs(total) - 1e-9 * np.abs(grid).sum(axis=1, keepdims=True)
    extreme = np.zeros(len(sums), dtype=np.int64)
    for kept in _flips(sums.shape[1], flips, seed):
        extreme += (np.abs(2 * (grid @ kept.T) - total) >= threshold).sum(axis=1)
    if sums.shape[1] <= EXACT_CLUSTERS:
        return extreme / 2.0 ** (sums.shape[1] - 1)
    return (1 + extreme) / (1 + flips)


def holm(p_values: Any) -> np.ndarray:
    """Holm's step-down adjusted p values [m], in the order given; they control the family-wise error rate at any level.

    adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)) for p_(1) <= ... <= p_(m).

    >>> [round(p, 10) for p in holm([0.01, 0.04, 0.03, 0.005]).tolist()]
    [0.03, 0.06, 0.06, 0.02]

    Raises:
        ValueError: a value outside 0..1, or NaN.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p values must be a list of numbers from 0 to 1 (leave untested pairs out of the family)")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    return adjusted


# -- ranks ------------------------------------------------------------------------------------------------------------


def rank_ranges(means: Any, significant: Any, direction: Literal["lower", "higher"]) -> list[tuple[int, int]]:
    """The ranks that the significant differences leave open to each system, as (first, last), 1 the best.

    first = 1 + number of systems significantly better; last = s - number significantly worse.

    Args:
        means: float [s].
        significant: bool [s, s], symmetric.

    >>> rank_ranges([1.0, 1.1, 3.0], [[0, 0, 1], [0, 0, 1], [1, 1, 0]], "lower")
    [(1, 2), (1, 2), (3, 3)]

    Raises:
        ValueError: direction "none" or unknown; ``significant`` not symmetric [s, s].
    """
    if direction not in ("lower", "higher"):
        raise ValueError(f"direction is {direction!r}: only metrics with a better end are ranked")
    m = np.asarray(means, dtype=float)
    s = _symmetric(significant, len(m))
    better = m[:, None] < m[None, :] if direction == "lower" else m[:, None] > m[None, :]
    return _ranges(s & better)


def rank_text(rank: tuple[int, int]) -> str:
    """``1-2``, or ``3`` where first and last are equal.

    >>> rank_text((1, 2)), rank_text((3, 3))
    ('1-2', '3')
    """
    first, last = rank
    return str(first) if first == last else f"{first}-{last}"


def tie_groups(order: Sequence[int], significant: Any) -> list[str]:
    """Letters per system (indexed as ``significant`` is): systems that share one do not differ significantly.

    A letter stands for a maximal run of neighbours in ``order`` (system indices, the best first) without a significant
    pair among them. Two systems that do not differ may still share no letter, where one between them differs from one
    of them; the pairs themselves are the finer statement.

    >>> tie_groups([0, 1, 2], [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    ['a', 'ab', 'b']

    Raises:
        ValueError: ``order`` is no permutation, ``significant`` not symmetric [s, s].
    """
    count = len(order)
    if sorted(order) != list(range(count)):
        raise ValueError(f"order {list(order)} is no permutation of 0..{count - 1}")
    s = _symmetric(significant, count)[np.ix_(order, order)]
    letters = [""] * count
    end = group = 0
    for start in range(count):
        stop = start + 1
        while stop < count and not s[start:stop, stop].any():
            stop += 1
        if stop > end:
            for i in range(start, stop):
                letters[order[i]] += _letter(group)
            end, group = stop, group + 1
    return letters


def _letter(group: int) -> str:
    names = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return names[group] if group < len(names) else f"({group + 1})"


def _ranges(better: np.ndarray) -> list[tuple[int, int]]:
    """From better[i, j]: i is significantly better than j."""
    counts = zip(better.sum(axis=0), better.sum(axis=1), strict=True)
    return [(1 + int(above), len(better) - int(below)) for above, below in counts]


def _symmetric(significant: Any, count: int) -> np.ndarray:
    s = np.asarray(significant, dtype=bool).reshape(-1, count) if count else np.zeros((0, 0), dtype=bool)
    if s.shape != (count, count) or not (s == s.T).all():
        raise ValueError(f"significant must be a symmetric [{count}, {count}] table")
    return s & ~np.eye(count, dtype=bool)


# -- one column of a table --------------------------------------------------------------------------------------------


def compare_all(
    table: Mapping[str, Mapping[str, float]],
    clusters: Mapping[str, str],
    *,
    direction: Direction,
    baseline: str | None = None,
    seed: int,
    replicates: int = 2000,
    level: float = 0.95,
    flips: int | None = None,
) -> Comparison:
    """Compare all systems of one metric column.

    Each pair is tested on the clips that both scored; Holm's family is all tested pairs of the column. Means are over
    the clips that every ranked system scored, if those are at least half of the best-covered system's; otherwise over
    each system's own clips, and a note says so. A system that scored fewer than half of the best-covered one's clips is
    compared in pairs, but not ranked, and does not shrink the common subset of the others.

    Args:
        table: per system, the scores by sample id; clips without a score are absent.
        clusters: cluster of every sample id.
        direction: "none" gives no ranks and no letters.
        baseline: the system that the others' differences are stated against.
        flips: random sign flips; None takes as many as let the smallest adjusted p value fall to a tenth of 1 - level.

    Raises:
        UsageError: the baseline is not in the table.
        ValueError: a score that is not finite, a sample without a cluster.
    """
    _check(level, replicates)
    systems = list(table)
    if baseline is not None and baseline not in table:
        raise UsageError(f"baseline {baseline!r} is not among the systems: {', '.join(systems)}")
    samples = sorted({sample for scores in table.values() for sample in scores})
    x = np.full((len(systems), len(samples)), np.nan)
    place = {sample: i for i, sample in enumerate(samples)}
    for row, (system, scores) in zip(x, table.items(), strict=True):
        for sample, value in scores.items():
            if not math.isfinite(value):
                raise ValueError(f"{system}, {sample}: the score is {value}; leave clips without a score out")
            row[place[sample]] = value
    try:
        labels = np.asarray([str(clusters[sample]) for sample in samples])
    except KeyError as error:
        raise ValueError(f"sample {error.args[0]!r} has no cluster") from error

    there = ~np.isnan(x)
    scored = there.sum(axis=1)
    best = int(scored.max(initial=0))
    ranked = (scored > 0) & (2 * scored >= best)
    common = there[ranked].all(axis=0) & ranked.any()
    on_common = bool(common.any() and 2 * common.sum() >= best)
    subsets = np.where((ranked & on_common)[:, None], common, there)
    means = [Interval(None, None, None, 0, 0, "no scored clips")] * len(systems)
    for rows, kept, codes, count in _by_subset(subsets, labels):
        found = _means(x[rows][:, kept], codes, count, replicates, level, seed)
        for i, mean in zip(rows, found, strict=True):
            means[i] = mean

    pairs, least = _all_pairs(systems, x, labels, replicates, level, seed, flips)
    notes = []
    if best and not on_common:
        notes.append(
            f"only {int(common.sum())} clips are scored by every ranked system (the best-covered scored {best}): "
            "means are over each system's own clips"
        )
    tested = sum(p.p_adjusted is not None for p in pairs)
    if tested and least * tested > 1 - level:
        notes.append(
            f"no difference can be significant: the smallest p value that the clusters allow is {least:.3g}, "
            f"and {tested} pair{'s are' if tested > 1 else ' is'} tested"
        )

    ranks: dict[int, tuple[int, int]] = {}
    letters: dict[int, str] = {}
    if direction != "none":
        ranks, letters = _rank([i for i in range(len(systems)) if ranked[i]], systems, means, pairs, direction)
    standings = []
    for i, system in enumerate(systems):
        partial = scored[i] and not ranked[i]
        note = f"scored {scored[i]} of {best} clips: mean over its own clips, not ranked" if partial else ""
        versus = _versus(pairs, system, baseline)
        standings.append(Standing(system, means[i], int(scored[i]), ranks.get(i), letters.get(i, ""), versus, note))
    return Comparison(
        direction, level, baseline, int(common.sum()), best, on_common, tuple(standings), tuple(pairs), tuple(notes)
    )


def _all_pairs(
    systems: list[str], x: np.ndarray, labels: np.ndarray, replicates: int, level: float, seed: int, flips: int | None
) -> tuple[list[Pair], float]:
    """All pairs, and the smallest p value that any of them could have had."""
    first, second = np.triu_indices(len(systems), k=1)
    delta = x[first] - x[second]
    subsets = ~np.isnan(delta)
    tested = int(subsets.any(axis=1).sum())
    if flips is None:
        flips = max(replicates, math.ceil(10 * tested / (1 - level)))
    differences = [Difference(None, None, None, None, 0, 0, "no common clips")] * len(first)
    least = 1.0
    for rows, kept, codes, count in _by_subset(subsets, labels):
        tests = _differences(delta[rows][:, kept], codes, count, replicates, level, seed, flips)
        least = min(least, _least_p(count, flips))
        for i, difference in zip(rows, tests, strict=True):
            differences[i] = difference
    adjusted: list[float | None] = [None] * len(first)
    family = [i for i, d in enumerate(differences) if d.p is not None]
    for i, p in zip(family, holm([differences[i].p for i in family]), strict=True):
        adjusted[i] = float(p)
    alpha = 1 - level + 1e-12  # 1 - 0.95 is not quite 0.05
    pairs = [
        Pair(systems[i], systems[j], d, p, p is not None and p <= alpha)
        for i, j, d, p in zip(first, second, differences, adjusted, strict=True)
    ]
    return pairs, least


def _rank(
    rows: list[int], systems: list[str], means: list[Interval], pairs: list[Pair], direction: Direction
) -> tuple[dict[int, tuple[int, int]], dict[int, str]]:
    """Ranks and letters of ``rows``. Who is better follows the pair's own difference, which may be over other clips."""
    position = {systems[i]: k for k, i in enumerate(rows)}
    sign = -1.0 if direction == "lower" else 1.0
    better = np.zeros((len(rows), len(rows)), dtype=bool)
    for p in pairs:
        if p.significant and p.first in position and p.second in position:
            assert p.difference.estimate is not None
            i, j = position[p.first], position[p.second]
            better[(i, j) if sign * p.difference.estimate > 0 else (j, i)] = True
    values = np.array([means[i].estimate for i in rows], dtype=float)
    order = np.argsort(-sign * values, kind="stable").tolist()
    groups = tie_groups(order, better | better.T)
    return dict(zip(rows, _ranges(better), strict=True)), dict(zip(rows, groups, strict=True))


def _versus(pairs: list[Pair], system: str, baseline: str | None) -> Pair | None:
    for p in pairs:
        if p.difference.n and (p.first, p.second) == (system, baseline):
            return p
        if p.difference.n and (p.first, p.second) == (baseline, system):
            d = p.difference
            turned = replace(d, estimate=_negative(d.estimate), low=_negative(d.high), high=_negative(d.low))
            return replace(p, first=system, second=p.first, difference=turned)
    return None


def _negative(x: float | None) -> float | None:
    return None if x is None else 0.0 - x  # 0.0 - x, so that zero stays without a sign


def _by_subset(subsets: np.ndarray, labels: np.ndarray) -> Iterator[tuple[list[int], np.ndarray, np.ndarray, int]]:
    """Rows of a bool [m, n] table with equal subsets: rows, clip indices, cluster codes and count; no empty ones."""
    groups: dict[bytes, list[int]] = {}
    for i, subset in enumerate(subsets):
        if subset.any():
            groups.setdefault(subset.tobytes(), []).append(i)
    for rows in groups.values():
        kept = np.flatnonzero(subsets[rows[0]])
        codes, count = _codes(labels[kept])
        yield rows, kept, codes, count


# -- the machinery ----------------------------------------------------------------------------------------------------


def _check(level: float, replicates: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a number between 0 and 1 such as 0.95")
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}, expected at least 1")


def _finite(values: Any) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1:
        raise ValueError(f"values have shape {x.shape}, expected [n]")
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        raise ValueError(f"value {bad[0]} is {x[bad[0]]}: leave clips without a score out")
    return x


def _read(values: Any, clusters: Any) -> tuple[np.ndarray, np.ndarray, int]:
    x, labels = _finite(values), np.asarray(clusters)
    if labels.shape != x.shape:
        raise ValueError(f"{len(x)} values, cluster labels of shape {labels.shape}: there must be one label per clip")
    return x, *_codes(labels)


def _codes(labels: np.ndarray) -> tuple[np.ndarray, int]:
    unique, codes = np.unique(labels, return_inverse=True)
    return codes, len(unique)


def _multiplicities(count: int, replicates: int, seed: int, width: int) -> Iterator[np.ndarray]:
    """How often each of ``count`` clusters is drawn: blocks of int64 [rows, count], the same for any block size."""
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // width)
    for start in range(0, replicates, rows):
        b = min(rows, replicates - start)
        draws = rng.integers(0, count, size=(b, count))
        draws += np.arange(b)[:, None] * count
        yield np.bincount(draws.ravel(), minlength=b * count).reshape(b, count)


def _flips(count: int, flips: int, seed: int) -> Iterator[np.ndarray]:
    """Which clusters keep their sign: blocks of float 0/1 [rows, count]; of all flips one half, for symmetry."""
    if count <= EXACT_CLUSTERS:
        number = np.arange(2 ** (count - 1))
        yield (number[:, None] >> np.arange(count) & 1).astype(float)
        return
    rng = np.random.default_rng([seed, 1])
    rows = max(1, _BLOCK // count)
    for start in range(0, flips, rows):
        words = rng.integers(0, 2**64, size=(min(rows, flips - start), -(-count // 64)), dtype=np.uint64)
        yield np.unpackbits(words.astype("<u8").view(np.uint8), axis=1, count=count).astype(float)


def _least_p(count: int, flips: int) -> float:
    exact = 2.0 ** (1 - count)
    return exact if count <= EXACT_CLUSTERS else max(exact, 1 / (1 + flips))


def _on_grid(sums: np.ndarray) -> np.ndarray:
    """Round rows [m, G] to a power-of-two grid on which any sum of G of them is exact in float64.

    Matrix products then give the same bits in whatever order BLAS adds. The rounding is at most G 2^-51 of the row's
    largest magnitude.
    """
    _, exponent = np.frexp(np.abs(sums).max(axis=1, keepdims=True))
    shift = 52 - math.ceil(math.log2(sums.shape[1])) - exponent
    return np.ldexp(np.round(np.ldexp(sums, shift)), -shift)


def _cluster_sums(x: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """Sums [m, count] of x [m, n] over clusters."""
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(count))
    return np.add.reduceat(x[:, order], starts, axis=1)


def _means(x: np.ndarray, codes: np.ndarray, count: int, replicates: int, level: float, seed: int) -> list[Interval]:
    """Means over the clips of x [m, n] with their intervals; one set of draws serves all rows."""
    m, n = x.shape
    if not n:
        return [Interval(None, None, None, 0, 0, "no scored clips")] * m
    # centred on a value of its own, so that a constant row has an interval of width zero, not of rounding errors
    centre = x.min(axis=1)
    sums = _cluster_sums(x - centre[:, None], codes, count)
    estimates = centre + sums.sum(axis=1) / n
    if count == 1:
        return [Interval(float(e), None, None, n, 1, "one cluster: no interval") for e in estimates]
    sizes = np.bincount(codes, minlength=count)
    grid = _on_grid(sums).T
    blocks = []
    for drawn in _multiplicities(count, replicates, seed, width=count):
        weights = drawn.astype(float)
        blocks.append(weights @ grid / (weights @ sizes)[:, None])
    low, high = _ends(np.concatenate(blocks), level, count) + centre
    note = _width_note(count)
    ends = zip(estimates, low, high, strict=True)
    return [Interval(float(e), float(a), float(b), n, count, note) for e, a, b in ends]


def _differences(
    delta: np.ndarray, codes: np.ndarray, count: int, replicates: int, level: float, seed: int, flips: int
) -> list[Difference]:
    means = _means(delta, codes, count, replicates, level, seed)
    if not delta.shape[1]:
        return [Difference(None, None, None, None, 0, 0, "no common clips")] * len(means)
    p_values = sign_flip_p(_cluster_sums(delta, codes, count), flips=flips, seed=seed)
    return [
        Difference(i.estimate, i.low, i.high, float(p), i.n, i.clusters, i.note)
        for i, p in zip(means, p_values, strict=True)
    ]


def _ends(values: np.ndarray, level: float, count: int) -> np.ndarray:
    """Both ends [2, ...] of the expanded percentile interval of replicates [replicates, ...], at rank (R + 1) p."""
    tail = expanded_tail(level, count)
    return np.quantile(values, [tail, 1 - tail], axis=0, method="weibull")


def _width_note(count: int) -> str:
    return f"few clusters ({count}): interval too narrow" if count < FEW_CLUSTERS else ""
