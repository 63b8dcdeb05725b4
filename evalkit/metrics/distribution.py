"""Distances between the distributions of reference and estimate in the space of an embedder (`evalkit.embedders`).

One set of metrics an embedder: ``fad@NAME``, ``fad_inf@NAME``, ``kad@NAME``, ``density@NAME``, ``coverage@NAME``, and
``fad@NAME-any-n`` and ``fad_inf@NAME-any-n``, which give a value for fewer embeddings than dimensions as well. All are
*paired*: the reference set are the very clips that were coded. A value is of all clips of a task together; what it is
of (numbers, dimension, embedder, reference set) stands beside it. The mathematics: `evalkit.distribution`; decisions:
docs/design/distribution.md.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from evalkit import distribution as maths
from evalkit import registry
from evalkit.audio import Clip
from evalkit.errors import ContractError, NotApplicable
from evalkit.identity import digest, short
from evalkit.registry import CorpusValue, Direction, EmbedderInfo, corpus_metric

T = TypeVar("T")

DISTRIBUTION = (
    "fad@yamnet",
    "fad_inf@yamnet",
    "kad@yamnet",
    "density@yamnet",
    "coverage@yamnet",
    "fad@mel-stats",
    "fad_inf@mel-stats",
    "kad@mel-stats",
)
"""Names for tables of reconstruction."""

SPLITS = 3
"""Random splits of the reference clips into halves, for the floors of FAD, density and coverage."""

KERNEL_SPLITS = 20
"""The same for KAD, where they cost nothing."""

POOR_FIT = 0.5
"""R^2 of an extrapolation below which a note says so, if the bias that it takes off is not small as well."""

KEPT_BYTES = 256 * 2**20
"""Embeddings of a set of clips that are kept in memory after the first reading; of more, each pass reads again."""

SETS_KEPT = 2
REFERENCES_KEPT = 8


# -- the embeddings of a set of clips ---------------------------------------------------------------------------------


class Side(Sequence[np.ndarray]):
    """The embeddings ``[f, d]`` of one side, a clip at a time."""

    def __init__(self, clips: Clips, which: int) -> None:
        self.clips, self.which = clips, which

    def __len__(self) -> int:
        return len(self.clips.clusters)

    def __getitem__(self, i: Any) -> Any:
        return self.clips.read(int(i))[self.which]


class Clips:
    """Both sides of the same clips, with what has been worked out of them; shared by the metrics of an embedder.

    Attributes:
        frames: embeddings of each clip, int ``[2, clips]`` (reference, estimate).
        hashes: of the embeddings of each side, in order.
        shared: what belongs to the reference alone, for all systems.
    """

    def __init__(self, statistics: Sequence[Mapping[str, Any]], clusters: Sequence[str]) -> None:
        if not len(statistics):
            raise NotApplicable("no clip has embeddings")
        self.statistics = statistics
        self.clusters = list(clusters)
        self.kept: list[tuple[np.ndarray, np.ndarray]] | None = []
        self.known: dict[Any, Any] = {}
        frames: tuple[list[int], list[int]] = ([], [])
        hashes: tuple[list[str], list[str]] = ([], [])
        size = 0
        self.dimension = 0
        for i in range(len(statistics)):
            pair = self._read(i)
            size += sum(x.nbytes for x in pair)
            if size > KEPT_BYTES:
                self.kept = None
            if self.kept is not None:
                self.kept.append(pair)
            for side, x in enumerate(pair):
                frames[side].append(len(x))
                hashes[side].append(hashlib.sha256(np.ascontiguousarray(x, dtype="<f4").tobytes()).hexdigest())
        self.frames = np.array(frames)
        self.hashes = tuple(map(digest, hashes))
        self.reference_set = short(digest(sorted(hashes[0])))
        self.sides = (Side(self, 0), Side(self, 1))
        self.shared = _recent(_references, (self.hashes[0], digest(self.clusters)), dict[Any, Any], REFERENCES_KEPT)

    @property
    def identical(self) -> bool:
        return self.hashes[0] == self.hashes[1]

    @property
    def counts(self) -> tuple[int, int]:
        return int(self.frames[0].sum()), int(self.frames[1].sum())

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.kept[i] if self.kept is not None else self._read(i)

    def _read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        found = self.statistics[i]
        pair = []
        for side in ("reference", "estimate"):
            x = maths.checked(found[side], f"{side} embeddings of clip {i + 1} of {len(self.statistics)}")
            if not len(x):
                raise ContractError(f"clip {i + 1} of {len(self.statistics)} has no {side} embeddings")
            if x.shape[1] != (self.dimension or x.shape[1]):
                raise ContractError(
                    f"{side} embeddings of clip {i + 1} of {len(self.statistics)} have {x.shape[1]:,} dimensions, "
                    f"those before {self.dimension:,}"
                )
            self.dimension = x.shape[1]
            pair.append(x)
        return pair[0], pair[1]

    def once(self, key: Any, compute: Callable[[], T]) -> T:
        """``compute()``, worked out once for these clips."""
        if key not in self.known:
            self.known[key] = compute()
        found: T = self.known[key]
        return found

    def once_for_reference(self, key: Any, compute: Callable[[], T]) -> T:
        """``compute()``, worked out once for this reference, whatever the system."""
        if key not in self.shared:
            self.shared[key] = compute()
        found: T = self.shared[key]
        return found


_sets: OrderedDict[Any, Clips] = OrderedDict()
_references: OrderedDict[Any, dict[Any, Any]] = OrderedDict()


def _recent(store: OrderedDict[Any, T], key: Any, make: Callable[[], T], most: int) -> T:
    if key not in store:
        made = make()
        while len(store) >= most:
            store.popitem(last=False)
        store[key] = made
    store.move_to_end(key)
    return store[key]


def open_clips(statistics: Sequence[Mapping[str, Any]], clusters: Sequence[str]) -> Clips:
    """The clips of a table cell, the same object for all metrics of an embedder.

    Statistics that are read from a run name their arrays by content (``names``); others are read, and checked, anew.
    """
    names = getattr(statistics, "names", None)
    if names is None:
        return Clips(statistics, clusters)
    key = digest([list(map(dict, names)), list(clusters)])
    return _recent(_sets, key, lambda: Clips(statistics, clusters), SETS_KEPT)


# -- Fréchet distance -------------------------------------------------------------------------------------------------


def fad(clips: Clips, seed: int, allow_small: bool) -> CorpusValue:
    """Fréchet distance of the two sets; its interval is of this number of clips, its bias not taken off."""
    _require(clips, allow_small)
    value, each = _frechet(clips)
    low, high, note = maths.linear_interval(value, each, clips.clusters, seed=seed, lowest=0.0)
    floor, floor_detail = clips.once_for_reference(
        ("fad floor", seed, allow_small), lambda: _frechet_floor(clips, seed, allow_small)
    )
    small = ""
    if min(clips.counts) < clips.dimension:
        small = (
            f"{min(clips.counts):,} embeddings of {clips.dimension:,} dimensions: mostly bias; compares systems at "
            "this very number only"
        )
    return CorpusValue(
        value,
        low,
        high,
        note=_joined(small, _constant(clips), note),
        detail=_detail(clips),
        floor=floor,
        floor_detail=floor_detail,
        contributions=each.tolist(),
    )


def fad_inf(clips: Clips, seed: int, allow_small: bool) -> CorpusValue:
    """Fréchet distance extrapolated to infinitely many embeddings, with the quality of the fit."""
    _require(clips, allow_small)
    reference, estimate = clips.sides
    found = clips.once(
        ("fad_inf", seed, allow_small and min(clips.counts) < 2 * clips.dimension),
        lambda: maths.frechet_infinity(
            reference, estimate, paired=True, seed=seed, allow_small=allow_small, whole=_frechet(clips)
        ),
    )
    _, each = _frechet(clips)
    low, high, note = maths.linear_interval(found.value, each, clips.clusters, seed=seed, lowest=0.0)
    below = f"extrapolates to {found.intercept:.3g}: given as 0" if found.intercept < 0 else ""
    whole, _ = _frechet(clips)
    poor = ""
    if found.r2 < POOR_FIT and abs(whole - found.intercept) > 0.1 * whole:
        poor = f"poor fit (R² {found.r2:.2f})"
    floor, floor_detail = clips.once_for_reference(
        ("fad_inf floor", seed, allow_small), lambda: _infinity_floor(clips, seed, allow_small)
    )
    fit: dict[str, str | int | float] = {
        "R²": round(found.r2, 3),
        "at n": float(f"{whole:.4g}"),
        "subsets from": min(found.sizes),
    }
    return CorpusValue(
        found.value,
        low,
        high,
        note=_joined(below, poor, _constant(clips), note),
        detail=_detail(clips) | fit,
        floor=floor,
        floor_detail=floor_detail,
    )


def _require(clips: Clips, allow_small: bool) -> None:
    for count, what in zip(clips.counts, ("reference", "estimate"), strict=True):
        maths.require_count(count, clips.dimension, what, allow_small)


def _frechet(clips: Clips) -> tuple[float, np.ndarray]:
    """The distance and what each clip adds to it."""

    def compute() -> tuple[float, np.ndarray]:
        reference, estimate = clips.sides
        first = clips.once_for_reference("gaussian", lambda: maths.gaussian(maths.moments_of(reference)))
        if clips.identical:
            return maths.frechet(first, first, allow_small=True), np.zeros(len(clips.clusters))
        second = maths.gaussian(maths.moments_of(estimate))
        found = maths.sensitivity(first, second)
        return found.value, maths.contributions(found, first, second, reference, estimate)

    return clips.once("frechet", compute)


def _splits(clips: Clips, seed: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Clips of both halves of random splits of the reference by cluster; none for one cluster."""
    for i in range(count):
        second = maths.halves(clips.frames[0].tolist(), clips.clusters, np.random.default_rng([seed, i, 2]))
        if second is not None:
            yield np.flatnonzero(~second), np.flatnonzero(second)


def _split_text(clips: Clips, seed: int, splits: int) -> str:
    first = next(_splits(clips, seed, 1), None)
    if first is None:
        return "one cluster: the reference cannot be split"
    sizes = " and ".join(f"{int(clips.frames[0][half].sum()):,}" for half in first)
    how = f"mean of {splits} random splits" if splits > 1 else "one random split"
    return f"{how} of the reference clips into halves by cluster, {sizes} embeddings; other clips on either side"


def _frechet_floor(clips: Clips, seed: int, allow_small: bool) -> tuple[float | None, str]:
    text = _split_text(clips, seed, SPLITS)
    reference = clips.sides[0]
    values = []
    try:
        for halves in _splits(clips, seed, SPLITS):
            one, other = (maths.moments_of(reference[i] for i in half) for half in halves)
            values.append(maths.frechet(one, other, allow_small=allow_small))
    except NotApplicable as error:
        return None, f"{text}: {error}"
    return (float(np.mean(values)) if values else None), text


def _infinity_floor(clips: Clips, seed: int, allow_small: bool) -> tuple[float | None, str]:
    text = _split_text(clips, seed, 1)
    reference = clips.sides[0]
    for halves in _splits(clips, seed, 1):
        one, other = ([reference[i] for i in half] for half in halves)
        try:
            found = maths.frechet_infinity(one, other, paired=False, seed=seed, draws=1, allow_small=allow_small)
        except NotApplicable as error:
            return None, f"{text}: {error}"
        return found.value, text
    return None, text


# -- kernel distance, density and coverage ----------------------------------------------------------------------------


def kad(clips: Clips, seed: int, allow_small: bool) -> CorpusValue:
    """Unbiased kernel distance; negative values are chance about 0."""
    if len(clips.clusters) < 2:
        raise NotApplicable("1 clip: pairs of one clip do not count, 2 are needed")
    reference, clip_codes, unit = _scaled_reference(clips)
    clusters = _cluster_codes(clips)
    rr = clips.once_for_reference(
        "kernel",
        lambda: maths.kernel_sums(
            reference, reference, clip_codes, clip_codes, apart=True, clusters=(clusters, clusters)
        ),
    )
    if clips.identical:
        ee = re = rr
    else:
        estimate, codes = _scaled_estimate(clips)
        ee = maths.kernel_sums(estimate, estimate, codes, codes, apart=True, clusters=(clusters, clusters))
        re = maths.kernel_sums(reference, estimate, clip_codes, codes, apart=True, clusters=(clusters, clusters))
    value = maths.KAD_SCALE * (rr.mean + ee.mean - 2 * re.mean)
    low, high, note = maths.kernel_interval(rr, ee, re, seed=seed)
    each = None
    if len(clips.clusters) > 2:
        without = maths.KAD_SCALE * (rr.without_each() + ee.without_each() - 2 * re.without_each())
        each = (value - without).tolist()
    floor, floor_detail = clips.once_for_reference(("kad floor", seed), lambda: _kernel_floor(clips, rr, seed))
    return CorpusValue(
        value,
        low,
        high,
        note=_joined(_constant(clips), note),
        detail=_detail(clips) | {"kernel": "Gaussian", "bandwidth": float(f"{unit:.4g}")},
        floor=floor,
        floor_detail=floor_detail,
        contributions=each,
    )


def _kernel_floor(clips: Clips, rr: maths.PairSums, seed: int) -> tuple[float | None, str]:
    assert rr.table is not None and rr.table_pairs is not None
    # the halves share no cluster, so pairs within a cluster, which are more alike, must not count on one side only
    table, pairs = (x - np.diag(np.diagonal(x)) for x in (rr.table, rr.table_pairs))
    text = _split_text(clips, seed, KERNEL_SPLITS)
    clusters = _cluster_codes(clips)
    values = []
    for halves in _splits(clips, seed, KERNEL_SPLITS):
        a, b = (np.unique(clusters[half]) for half in halves)
        sums = [(table[np.ix_(x, y)].sum(), pairs[np.ix_(x, y)].sum()) for x, y in ((a, a), (b, b), (a, b))]
        if all(count > 0 for _, count in sums):
            aa, bb, ab = (total / count for total, count in sums)
            values.append(maths.KAD_SCALE * (aa + bb - 2 * ab))
    if not values:
        return None, f"{text}: a half of one cluster has no pairs" if "one cluster" not in text else text
    return float(np.mean(values)), f"{text}; unbiased, so about 0; one split has SD {np.std(values):.2g}"


def density(clips: Clips, seed: int, allow_small: bool) -> CorpusValue:
    """In how many of the reference's 5-neighbour balls an embedding lies, over 5."""
    found = _cover(clips)
    low, high, note = maths.density_interval(found, seed=seed)
    return _covered(clips, seed, found.density, low, high, note, 0)


def coverage(clips: Clips, seed: int, allow_small: bool) -> CorpusValue:
    """Share of the reference's 5-neighbour balls that hold an embedding of the estimate."""
    found = _cover(clips)
    rows = np.repeat(np.array(clips.clusters), clips.frames[0])
    low, high, note = maths.coverage_interval(found, rows, seed=seed)
    return _covered(clips, seed, found.coverage, low, high, note, 1)


def _covered(
    clips: Clips, seed: int, value: float, low: float | None, high: float | None, note: str, which: int
) -> CorpusValue:
    values, text = clips.once_for_reference(("cover floor", seed), lambda: _cover_floor(clips, seed))
    return CorpusValue(
        value,
        low,
        high,
        note=_joined(_constant(clips), note),
        detail=_detail(clips) | {"k": maths.NEIGHBOURS},
        floor=values[which] if values else None,
        floor_detail=text,
    )


def _cover(clips: Clips) -> maths.Cover:
    def compute() -> maths.Cover:
        reference, clip_codes, _ = _scaled_reference(clips)
        around = clips.once_for_reference("balls", lambda: maths.balls(reference, clip_codes, closed=True))
        estimate, codes = (reference, clip_codes) if clips.identical else _scaled_estimate(clips)
        clusters = _cluster_codes(clips)
        return maths.cover(reference, estimate, clip_codes, codes, around, paired=True, clusters=(clusters, clusters))

    return clips.once("cover", compute)


def _cover_floor(clips: Clips, seed: int) -> tuple[tuple[float, float] | None, str]:
    text = _split_text(clips, seed, SPLITS)
    x, codes, _ = _scaled_reference(clips)
    found = []
    for halves in _splits(clips, seed, SPLITS):
        one, other = (np.isin(codes, half) for half in halves)
        try:
            found.append(
                maths.density_coverage(x[one], x[other], reference_groups=codes[one], estimate_groups=codes[other])
            )
        except NotApplicable as error:
            return None, f"{text}: {error}"
    if not found:
        return None, text
    mean = np.mean(found, axis=0)
    return (float(mean[0]), float(mean[1])), text


def _scaled_reference(clips: Clips) -> tuple[np.ndarray, np.ndarray, float]:
    """The reference in units of the bandwidth about its mean, float32 ``[n, d]``, the clip of each row, the unit."""

    def compute() -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        rows = np.concatenate(list(clips.sides[0]))
        centre, _ = maths.spread(rows)
        unit = maths.median_distance(rows)
        codes = np.repeat(np.arange(len(clips.clusters)), clips.frames[0])
        return maths.scaled(rows, centre, unit), codes, centre, unit

    rows, codes, _, unit = clips.once_for_reference("scaled", compute)
    return rows, codes, unit


def _scaled_estimate(clips: Clips) -> tuple[np.ndarray, np.ndarray]:
    """The estimate in the units of the reference, and the clip of each row."""
    _scaled_reference(clips)
    _, _, centre, unit = clips.shared["scaled"]

    def compute() -> tuple[np.ndarray, np.ndarray]:
        rows = np.concatenate(list(clips.sides[1]))
        return maths.scaled(rows, centre, unit), np.repeat(np.arange(len(clips.clusters)), clips.frames[1])

    return clips.once("scaled", compute)


def _cluster_codes(clips: Clips) -> np.ndarray:
    codes: np.ndarray = np.unique(np.array(clips.clusters), return_inverse=True)[1]
    return codes


# -- what is said beside a value --------------------------------------------------------------------------------------


def _detail(clips: Clips) -> dict[str, str | int | float]:
    reference, estimate = clips.counts
    sizes: dict[str, str | int | float] = {"n": estimate}
    if reference != estimate:
        sizes["n reference"] = reference
    return {**sizes, "d": clips.dimension, "clips": len(clips.clusters), "reference set": clips.reference_set}


def _constant(clips: Clips) -> str:
    def compute() -> bool:
        first = clips.sides[1][0][0]
        return sum(clips.counts) > 2 and all((x == first).all() for x in clips.sides[1])

    equal = clips.once("constant", compute)
    return f"all {clips.counts[1]:,} embeddings of the estimate are equal: the distance to a point" if equal else ""


def _joined(*notes: str) -> str:
    return "; ".join(n for n in notes if n)


# -- registration -----------------------------------------------------------------------------------------------------

Measure = Callable[[Clips, int, bool], CorpusValue]

ABOUT: dict[str, tuple[Measure, Direction, tuple[float, float], str]] = {
    "fad": (
        fad,
        "lower",
        (0.0, float("inf")),
        "Fréchet distance between reference and estimate embeddings of {name}, 0 for equal mean and covariance.\n\n"
        "`evalkit.distribution.frechet` (FAD: Kilgour et al., arXiv 1812.08466). Biased upwards by about 1/n: compare "
        "equal n only.{small}",
    ),
    "fad_inf": (
        fad_inf,
        "lower",
        (0.0, float("inf")),
        "Fréchet distance in the space of {name} extrapolated to infinitely many embeddings.\n\n"
        "`evalkit.distribution.frechet_infinity` (Chong and Forsyth, arXiv 1911.07023; Gui et al., arXiv 2311.01616), "
        "from subsets of the clips, the same on both sides.{small}",
    ),
    "kad": (
        kad,
        "lower",
        (float("-inf"), float("inf")),
        "Kernel distance (unbiased MMD², x 100) between reference and estimate embeddings of {name}.\n\n"
        "`evalkit.distribution.kernel_distance` (KAD: Chung et al., arXiv 2502.15602), without the pairs of one clip. "
        "About 0, also below it, where the distributions are alike.",
    ),
    "density": (
        density,
        "none",
        (0.0, float("inf")),
        "Density of the estimate about the reference in the space of {name}; 1 is right, more is bunched.\n\n"
        "`evalkit.distribution.density_coverage` (Naeem et al., arXiv 2002.09797), k = 5, without the pairs of one "
        "clip.",
    ),
    "coverage": (
        coverage,
        "higher",
        (0.0, 1.0),
        "Share of the reference's neighbourhoods in the space of {name} that the estimate reaches, 0 to 1.\n\n"
        "`evalkit.distribution.density_coverage` (Naeem et al., arXiv 2002.09797), k = 5, without the pairs of one "
        "clip.",
    ),
}

CHECKED = ("yamnet", "mel-stats")
"""Embedders whose metrics were tried on the ladders of `evalkit.selftest`; the declarations below are theirs."""

WORSENS: dict[str, tuple[str, ...]] = {
    "fad": ("noise", "lowpass", "bit_depth", "packet_loss", "codec_rate"),
    "fad_inf": ("noise", "lowpass", "bit_depth", "packet_loss", "codec_rate"),
    "kad": ("noise", "lowpass", "bit_depth", "packet_loss", "codec_rate"),
    "coverage": ("lowpass", "bit_depth"),
}
"""Not density, which goes either way, nor coverage where it stays at 1 for mild levels and is then ruled by chance."""

INVARIANT = ("polarity",)

SMALL = (
    " With fewer embeddings than dimensions as well (2 n < d for the extrapolation): mostly bias, to be read "
    "between systems at one n only."
)


def distribution_metrics(name: str) -> tuple[Callable[..., Any], ...]:
    """Register the metrics of one embedder, ``fad@NAME`` to ``coverage@NAME``; returns their functions.

    Those of all registered embedders are there already; call it for one that is registered later.
    """
    info = registry.get("embedders", name)
    made = []
    for measure in ABOUT:
        made.append(_register(info, measure, allow_small=False))
        if measure in ("fad", "fad_inf"):
            made.append(_register(info, measure, allow_small=True))
    return tuple(made)


def _register(info: EmbedderInfo, measure: str, allow_small: bool) -> Callable[..., Any]:
    compute, direction, bounds, text = ABOUT[measure]
    name = info.name

    def embeddings(reference: Clip, estimate: Clip) -> dict[str, np.ndarray]:
        from evalkit.embedders import embedding

        return {"reference": embedding(reference, name), "estimate": embedding(estimate, name)}

    def evaluate(statistics: Sequence[Mapping[str, Any]], clusters: Sequence[str], seed: int) -> CorpusValue:
        from evalkit.embedders import embedder_id

        found = compute(open_clips(statistics, clusters), seed, allow_small)
        detail = {**found.detail, "embedder": embedder_id(info)}
        return CorpusValue(**{**vars(found), "detail": detail})

    def identity() -> Any:
        from evalkit.embedders import identity

        return identity(info)

    embeddings.__doc__ = text.format(name=name, small=SMALL if allow_small else "")
    declare = corpus_metric(
        f"{measure}@{name}{'-any-n' if allow_small else ''}",
        evaluate=evaluate,
        unit="",
        direction=direction,
        group="distribution",
        range=bounds,
        min_seconds=float(getattr(info.load, "min_seconds", 0.0)),
        short_clips="n/a below the embedder's shortest input",
        requires=info.requires,
        weights=info.weights,
        trained_on=info.trained_on,
        worsens_with=WORSENS.get(measure, ()) if name in CHECKED else (),
        invariant_to=INVARIANT if name in CHECKED else (),
        extra_identity=identity,
    )
    function: Callable[..., Any] = declare(embeddings)
    return function


for _name in registry.names("embedders"):
    if not registry.origin("embedders", _name).startswith("evalkit.metrics."):  # of one measure of its own (speakers)
        distribution_metrics(_name)
