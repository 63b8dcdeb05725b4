"""Moments, Fréchet distance, extrapolation, kernel distance, density and coverage, against independent oracles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit import distribution as maths
from evalkit.distribution import (
    Moments,
    balls,
    contributions,
    cover,
    coverage_interval,
    density_coverage,
    density_interval,
    extrapolate,
    frechet,
    frechet_infinity,
    gaussian,
    halves,
    kernel_distance,
    kernel_interval,
    kernel_sums,
    linear_interval,
    median_distance,
    merge,
    moments,
    moments_of,
    sensitivity,
)
from evalkit.errors import ContractError, DataError, EvalkitError, NotApplicable


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def close(a: Moments, b: Moments, tolerance: float = 1e-10) -> bool:
    size = max(float(np.abs(b.scatter).max()), 1e-300)
    return (
        a.count == b.count
        and bool(np.abs(a.mean - b.mean).max() <= tolerance * max(float(np.abs(b.mean).max()), 1e-300))
        and bool(np.abs(a.scatter - b.scatter).max() <= tolerance * size)
    )


# -- moments ----------------------------------------------------------------------------------------------------------


def test_moments_are_those_of_numpy() -> None:
    x = normal(0, 5000, 7).astype(np.float32)  # several blocks
    found = moments(x)
    assert found.count == 5000 and found.mean.dtype == found.scatter.dtype == np.float64
    np.testing.assert_allclose(found.mean, x.astype(float).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(float).T), rtol=1e-12, atol=1e-14)
    assert np.array_equal(found.scatter, found.scatter.T)


@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    order=st.randoms(use_true_random=False),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_shards_add_up_to_the_whole_in_any_order(seed: int, sizes: list[int], order: object, offset: float) -> None:
    x = (normal(seed, sum(sizes) + 1, 5) + offset).astype(np.float32)
    shards = [moments(part) for part in np.split(x, np.cumsum(sizes))]
    order.shuffle(shards)  # type: ignore[attr-defined]
    while len(shards) > 1:  # and in any tree
        i = order.randrange(len(shards) - 1)  # type: ignore[attr-defined]
        shards[i : i + 2] = [merge(shards[i], shards[i + 1])]
    assert close(shards[0], moments(x))


def test_clips_are_read_once_and_add_up() -> None:
    x = normal(1, 6000, 4)
    assert close(moments_of(iter(np.split(x, 600))), moments(x))
    assert close(merge(Moments.empty(4), moments(x)), moments(x), 0) and close(
        merge(moments(x), Moments.empty(4)), moments(x), 0
    )


def test_a_large_mean_does_not_drown_the_scatter() -> None:
    x = normal(2, 300, 3)
    np.testing.assert_allclose(moments(x + 1e7).covariance, np.cov((x + 1e7).T), rtol=1e-9)


def test_equal_embeddings_have_exactly_no_scatter() -> None:
    x = np.full((5000, 3), 0.1, dtype=np.float32)
    found = merge(moments(x), moments(x))
    assert not found.scatter.any() and (found.mean == np.float64(np.float32(0.1))).all()


def test_bad_embeddings_are_named() -> None:
    x = normal(3, 10, 4)
    x[3, 2], x[7, 0] = np.nan, np.inf
    with pytest.raises(
        ContractError, match=r"2 of 10 embeddings hold NaN or infinite values; the first is number 3 \(dimension 2\)"
    ):
        moments(x)
    for bad in (np.zeros(4), np.zeros((3, 0)), np.zeros((3, 2), dtype=int), np.zeros((1, 2, 3))):
        with pytest.raises(ContractError, match=r"expected float \[n, d\]"):
            moments(bad)
    with pytest.raises(ContractError, match="3 and of 4 dimensions"):
        merge(moments(normal(0, 5, 3)), moments(normal(0, 5, 4)))
    with pytest.raises(ContractError, match="3 and of 4 dimensions"):
        moments_of([normal(0, 5, 3), normal(0, 5, 4)])
    with pytest.raises(NotApplicable, match="no embeddings"):
        moments_of([])
    for few, reason in ((0, "no embeddings"), (1, "one embedding")):
        with pytest.raises(NotApplicable, match=f"{reason}: a covariance needs 2"):
            _ = moments(np.zeros((few, 2))).covariance


def test_moments_survive_a_file(tmp_path: Path) -> None:
    whole = moments(normal(4, 50, 6))
    whole.save(tmp_path / "a.npz")
    whole.save(tmp_path / "b.npz")
    found = Moments.load(tmp_path / "a.npz")
    assert close(found, whole, 0) and (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"count": np.int64(3), "mean": np.zeros(2)}, "holds no moments"),
        ({"count": np.int64(3), "mean": np.zeros(2), "scatter": np.array([{}])}, "holds no moments"),
        ({"count": np.int64(-1), "mean": np.zeros(2), "scatter": np.zeros((2, 2))}, "count is"),
        ({"count": np.float64(3), "mean": np.zeros(2), "scatter": np.zeros((2, 2))}, "count is"),
        ({"count": np.int64(3), "mean": np.zeros(2), "scatter": np.zeros((3, 3))}, "do not fit"),
        ({"count": np.int64(3), "mean": np.zeros(2, "f4"), "scatter": np.zeros((2, 2))}, "expected float64"),
        ({"count": np.int64(3), "mean": np.array([np.nan, 0]), "scatter": np.zeros((2, 2))}, "NaN"),
        ({"count": np.int64(3), "mean": np.zeros(2), "scatter": np.array([[1.0, 2.0], [0.0, 1.0]])}, "not symmetric"),
        ({"count": np.int64(3), "mean": np.zeros(2), "scatter": -np.eye(2)}, "not symmetric"),
    ],
)
def test_files_that_hold_no_moments_are_refused(tmp_path: Path, content: dict[str, np.ndarray], reason: str) -> None:
    np.savez(tmp_path / "x.npz", **content)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=rf"x\.npz.*{reason}"):
        Moments.load(tmp_path / "x.npz")


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    for name, content in (("a", b""), ("b", b"PK\x03\x04 cut off"), ("c", b"text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.*moments"):
            Moments.load(tmp_path / name)
    np.save(tmp_path / "d.npy", np.zeros(3))
    with pytest.raises(DataError, match="moments"):
        Moments.load(tmp_path / "d.npy")
    with pytest.raises(DataError, match="cannot be read"):
        Moments.load(tmp_path / "absent")


# -- Fréchet distance -------------------------------------------------------------------------------------------------


def by_sqrtm(a: Moments, b: Moments) -> float:
    from scipy.linalg import sqrtm

    root = np.trace(sqrtm(a.covariance @ b.covariance)).real
    return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root)


def pair_of_sets(seed: int, d: int, decay: float) -> tuple[Moments, Moments]:
    """Two correlated sets; the spectrum of their covariances falls by e^-decay in amplitude."""
    rng = np.random.default_rng(seed)
    scale, turn = np.exp(-np.arange(d) / d * decay), np.linalg.qr(rng.normal(size=(d, d)))[0]
    x = rng.normal(size=(4 * d, d))
    y = (0.5 * x + rng.normal(size=x.shape)) * rng.uniform(0.5, 2, d)
    return moments(x * scale @ turn), moments(y * scale @ turn + 0.1 * rng.normal(size=d) * scale.mean())


@pytest.mark.parametrize("case", range(20))
def test_frechet_agrees_with_the_sqrtm_route(case: int) -> None:
    d, decay = 2 + 7 * case, (0.0, 3.0, 6.0, 9.0)[case % 4]  # condition numbers of the covariances up to 1e8
    a, b = pair_of_sets(case, d, decay)
    assert frechet(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-6)
    assert frechet(gaussian(a), gaussian(b)) == frechet(a, b)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)


@pytest.mark.parametrize("decay", [0.0, 6.0, 12.0, 16.0])
def test_frechet_agrees_with_forty_digits(decay: float) -> None:
    """Where sqrtm itself loses digits: condition numbers up to 1e13 and more."""
    mp = pytest.importorskip("mpmath").mp
    a, b = pair_of_sets(7, 6, decay)
    with mp.workdps(40):
        ca, cb = (mp.matrix(m.covariance.tolist()) for m in (a, b))
        values, vectors = mp.eigsy(ca)
        root = vectors * mp.diag([mp.sqrt(abs(v)) for v in values]) * vectors.T
        inner = mp.eigsy(root * cb * root, eigvals_only=True)
        delta = mp.matrix((a.mean - b.mean).tolist())
        truth = (
            (delta.T * delta)[0] + sum(ca[i, i] + cb[i, i] for i in range(6)) - 2 * sum(mp.sqrt(abs(v)) for v in inner)
        )
    assert frechet(a, b) == pytest.approx(float(truth), rel=1e-7)


def test_frechet_of_gaussians_in_closed_form() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    p, q = rng.uniform(0.1, 4, 9), rng.uniform(0.1, 4, 9)
    mean = rng.normal(size=9)
    a = Moments(100, np.zeros(9), 99 * (turn * p) @ turn.T)
    b = Moments(100, mean, 99 * (turn * q) @ turn.T)
    truth = np.sum(mean**2) + np.sum((np.sqrt(p) - np.sqrt(q)) ** 2)  # commuting covariances
    assert frechet(a, b) == pytest.approx(truth, rel=1e-12)
    one, other = moments(normal(1, 40, 1) * 3 + 1), moments(normal(2, 50, 1))
    sd = [math.sqrt(float(m.covariance[0, 0])) for m in (one, other)]
    assert frechet(one, other) == pytest.approx(
        float((one.mean - other.mean)[0] ** 2) + (sd[0] - sd[1]) ** 2, rel=1e-12
    )


def test_equal_sets_have_exactly_no_distance_and_nearly_equal_ones_hardly_any() -> None:
    x = normal(3, 300, 40) @ normal(4, 40, 40)
    a = moments(x)
    assert frechet(a, moments(x.copy())) == 0.0 == frechet(gaussian(a), gaussian(moments(x.copy())))
    trace = np.trace(a.covariance)
    for size in (1e-3, 1e-6):  # |error| of squares at eps: 1e-8 of the trace would hide these
        shifted = frechet(a, moments(x * (1 + size)))
        assert shifted == pytest.approx(size**2 * (trace + float(a.mean @ a.mean)), rel=1e-2)
    assert 0 <= frechet(a, moments(x[::-1])) < 1e-12 * trace


@given(seed=st.integers(0, 10_000), d=st.integers(1, 12), n=st.integers(2, 30), m=st.integers(2, 30))
def test_frechet_is_a_squared_distance_that_rotations_keep(seed: int, d: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * rng.uniform(0.1, 3, d) + rng.normal(size=d)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    value = frechet(moments(x), moments(y), allow_small=True)
    assert value >= float(np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)) * (1 - 1e-9)
    assert frechet(moments(x @ turn + 1), moments(y @ turn + 1), allow_small=True) == pytest.approx(
        value, rel=1e-5, abs=1e-9
    )
    assert frechet(moments(3 * x), moments(3 * y), allow_small=True) == pytest.approx(9 * value, rel=1e-5, abs=1e-9)
    assert frechet(gaussian(x), gaussian(y), allow_small=True) == pytest.approx(value, rel=1e-5, abs=1e-9)


def test_singular_covariances() -> None:
    """Fewer embeddings than dimensions, dimensions that never vary, and a subspace: the trace by other means."""
    x, y = normal(5, 30, 60), normal(6, 25, 60)
    cx, cy = ((z - z.mean(axis=0)) / math.sqrt(len(z) - 1) for z in (x, y))
    base = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.sum(cx**2) + np.sum(cy**2)
    truth = base - 2 * np.linalg.norm(cx @ cy.T, "nuc")
    assert frechet(moments(x), moments(y), allow_small=True) == pytest.approx(truth, rel=1e-9)
    wide = np.zeros((200, 12))
    wide[:, ::2] = normal(7, 200, 6)
    other = wide.copy()
    other[:, ::2] = normal(8, 200, 6) * 2
    assert frechet(moments(wide), moments(other)) == pytest.approx(
        frechet(moments(wide[:, ::2]), moments(other[:, ::2])), rel=1e-9
    )
    turn = np.linalg.qr(normal(9, 12, 12))[0]
    assert frechet(moments(wide @ turn), moments(other @ turn)) == pytest.approx(
        frechet(moments(wide), moments(other)), rel=1e-6
    )


def test_what_has_no_frechet_distance_says_why() -> None:
    few, many, point = moments(normal(0, 720, 1024)), moments(normal(1, 1100, 1024)), moments(np.ones((1100, 1024)))
    with pytest.raises(NotApplicable, match="estimate: 720 embeddings of 1,024 dimensions: mostly bias"):
        frechet(many, few)
    with pytest.raises(NotApplicable, match="reference: 720 embeddings of 1,024 dimensions: mostly bias"):
        frechet(few, many)
    for empty, reason in ((0, "no embeddings"), (1, "one embedding")):
        with pytest.raises(NotApplicable, match=f"estimate: {reason}"):
            frechet(many, moments(np.zeros((empty, 1024))), allow_small=True)
    for estimate in (many, point):
        with pytest.raises(NotApplicable, match="all 1,100 reference embeddings are equal"):
            frechet(point, estimate)
    with pytest.raises(ContractError, match="1,024 and of 3 dimensions"):
        frechet(many, moments(normal(0, 5, 3)))
    # A constant estimate (silence) is a point, and its distance is defined.
    to_point = np.sum((many.mean - 1) ** 2) + np.trace(many.covariance)
    assert frechet(many, point) == pytest.approx(float(to_point), rel=1e-12)


# -- what each clip adds ----------------------------------------------------------------------------------------------


def weighted(clips: list[np.ndarray], weights: np.ndarray) -> maths.Gaussian:
    """The Gaussian of clips that count so often, with a root of its own: written out, for finite differences."""
    count = float(sum(w * len(c) for w, c in zip(weights, clips, strict=True)))
    mean = sum(w * c.sum(axis=0) for w, c in zip(weights, clips, strict=True)) / count
    scatter = sum(w * (c - mean).T @ (c - mean) for w, c in zip(weights, clips, strict=True))
    values, vectors = np.linalg.eigh(scatter / (count - 1))
    kept = values > 1e-12 * values[-1]
    root = (vectors[:, kept] * np.sqrt(values[kept])).T
    return maths.Gaussian(count, mean, root, float(values.sum()))  # type: ignore[arg-type]


@pytest.mark.parametrize(("d", "clips"), [(5, 12), (40, 8)])
@pytest.mark.parametrize("sides", ["both", "estimate", "reference"])
def test_contributions_are_derivatives(d: int, clips: int, sides: str) -> None:
    rng = np.random.default_rng(d)
    x = [rng.normal(size=(int(f), d)) for f in rng.integers(2, 6, clips)]
    y = [0.7 * c + 0.4 * rng.normal(size=c.shape) + 0.1 for c in x]
    a, b = gaussian(np.concatenate(x)), gaussian(np.concatenate(y))
    found = sensitivity(a, b)
    assert found.value == pytest.approx(frechet(a, b, allow_small=True), rel=1e-7)
    each = contributions(found, a, b, x if sides != "estimate" else None, y if sides != "reference" else None)
    one, step = np.ones(clips), 1e-5
    for i in range(clips):
        values = []
        for sign in (1, -1):
            moved = one + sign * step * (np.arange(clips) == i)
            first = weighted(x, moved if sides != "estimate" else one)
            second = weighted(y, moved if sides != "reference" else one)
            values.append(frechet(first, second, allow_small=True))
        assert each[i] == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-7)
    assert abs(each.sum()) < 0.1 * found.value  # counting all twice hardly changes the distance


def test_a_spoilt_clip_adds_most_and_what_a_clip_adds_is_what_its_absence_takes_off() -> None:
    x, y = coded(np.random.default_rng(0), 120, 8)
    y[17] = y[17] + 1
    a, b = gaussian(moments_of(x)), gaussian(moments_of(y))
    found = sensitivity(a, b)
    each = contributions(found, a, b, x, y)
    assert int(np.argmax(each)) == 17 and each[17] > 2 * np.sort(each)[-2]
    absent = [
        found.value - frechet(moments_of(x[:i] + x[i + 1 :]), moments_of(y[:i] + y[i + 1 :])) for i in range(len(x))
    ]
    assert np.corrcoef(absent, each)[0, 1] > 0.97 and np.argmax(absent) == 17
    silent = gaussian(np.ones((480, 8)))
    assert np.isfinite(contributions(sensitivity(a, silent), a, silent, x, [np.ones((4, 8))] * 120)).all()


def test_the_interval_is_that_of_a_mean_where_the_measure_is_one() -> None:
    from evalkit.statistics import cluster_bootstrap

    scores, clusters = normal(0, 60), [str(i // 3) for i in range(60)]
    mean = float(scores.mean())
    low, high, note = linear_interval(mean, (scores - mean) / 60, clusters, seed=4)
    expected = cluster_bootstrap(scores, clusters, seed=4)
    assert (low, high) == (pytest.approx(expected.low), pytest.approx(expected.high)) and note == ""
    assert linear_interval(1.0, np.ones(3), ["a"] * 3, seed=0) == (None, None, "one cluster: no interval")
    low, _, note = linear_interval(0.1, [3.0, -3.0, 0.0], list("abc"), seed=0, lowest=0.0)
    assert low == 0.0 and note == "few clusters (3): interval too narrow"


def coded(
    rng: np.random.Generator, clips: int, d: int, noise: float = 0.5
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Clips of 4 dependent embeddings, and a coded version of them."""
    scale, keep = np.exp(-np.arange(d) / d * 3), np.linspace(0.6, 1, d)
    x = [(rng.normal(size=d) * 0.8 + rng.normal(size=(4, d)) * 0.6) * scale for _ in range(clips)]
    return x, [keep * c + noise * scale * rng.normal(size=c.shape) + 0.05 * scale for c in x]


def coded_truth(d: int, noise: float = 0.5) -> float:
    """The distance of the populations of `coded`: commuting covariances."""
    scale, keep = np.exp(-np.arange(d) / d * 3), np.linspace(0.6, 1, d)
    return float(
        np.sum((0.05 * scale) ** 2) + np.sum((scale - np.sqrt((keep * scale) ** 2 + (noise * scale) ** 2)) ** 2)
    )


def test_the_interval_covers_the_distance_at_this_n() -> None:
    values, ends = [], []
    for seed in range(150):
        x, y = coded(np.random.default_rng(seed), 60, 6)
        a, b = gaussian(moments_of(x)), gaussian(moments_of(y))
        found = sensitivity(a, b)
        values.append(found.value)
        ends.append(linear_interval(found.value, contributions(found, a, b, x, y), range(60), seed=seed)[:2])
    low, high = np.array(ends, dtype=float).T
    assert 0.89 <= np.mean((low <= np.mean(values)) & (np.mean(values) <= high)) <= 0.99


# -- extrapolation ----------------------------------------------------------------------------------------------------


def test_a_line_is_recovered() -> None:
    sizes = [100, 150, 300, 1000]
    found = extrapolate(sizes, [2 + 50 / n for n in sizes])
    assert (found.value, found.slope, found.r2) == (pytest.approx(2), pytest.approx(50), pytest.approx(1))
    below = extrapolate(sizes, [50 / n - 0.01 for n in sizes])
    assert below.value == 0 and below.intercept == pytest.approx(-0.01)
    assert extrapolate(sizes, [0.0] * 4).r2 == 1


@pytest.mark.parametrize("design", ["paired", "fixed reference", "two sets"])
def test_the_extrapolation_takes_most_of_the_bias_off(design: str) -> None:
    d, clips, plain, infinite = 16, 40, [], []
    truth = coded_truth(d)
    scale = np.exp(-np.arange(d) / d * 3)
    exact = Moments(10**9, np.zeros(d), (10**9 - 1) * np.diag(scale**2))
    for seed in range(60):
        x, y = coded(np.random.default_rng(seed), clips, d)
        if design == "two sets":
            x, _ = coded(np.random.default_rng(seed + 1000), clips, d)
        reference = exact if design == "fixed reference" else x
        found = frechet_infinity(reference, y, paired=design == "paired", seed=seed)
        plain.append(found.distances[-1])
        infinite.append(found.value)
    error = np.std(infinite) / math.sqrt(60)
    assert np.mean(plain) - truth > 4 * error
    assert abs(np.mean(infinite) - truth) < 0.35 * (np.mean(plain) - truth) + 2 * error


def test_an_extrapolation_says_what_it_is_of() -> None:
    x, y = coded(np.random.default_rng(0), 100, 16)
    found = frechet_infinity(x, y, paired=True, seed=3)
    assert found == frechet_infinity(x, y, paired=True, seed=3) != frechet_infinity(x, y, paired=True, seed=4)
    assert found.sizes[:8] == (100, 112, 128, 148, 176, 216, 280, 400) == found.sizes[8:]
    assert found.distances[7] == found.distances[15] == pytest.approx(frechet(moments_of(x), moments_of(y)))
    a, b = gaussian(moments_of(x)), gaussian(moments_of(y))
    each = contributions(sensitivity(a, b), a, b, x, y)
    assert frechet_infinity(x, y, paired=True, seed=3, whole=(found.distances[7], each)).value == pytest.approx(
        found.value
    )
    same = frechet_infinity(x, x, paired=True, seed=3)
    assert same.value == same.slope == 0 and same.r2 == 1
    point = frechet_infinity(x, [np.ones_like(c) for c in x], paired=True, seed=3)
    assert point.value == pytest.approx(frechet(moments_of(x), moments(np.ones((9, 16))), allow_small=True), rel=0.05)


def test_taking_off_what_the_drawn_clips_add_leaves_less_scatter() -> None:
    x, y = coded(np.random.default_rng(0), 100, 16)
    value = frechet(moments_of(x), moments_of(y))
    with_it = [frechet_infinity(x, y, paired=True, seed=s).value for s in range(20)]
    without = [frechet_infinity(x, y, paired=True, seed=s, whole=(value, np.zeros(100))).value for s in range(20)]
    assert np.std(with_it) < 0.4 * np.std(without)
    assert abs(np.mean(with_it) - np.mean(without)) < 2 * np.std(without) / math.sqrt(20)


def test_what_cannot_be_extrapolated_says_why() -> None:
    x, y = coded(np.random.default_rng(0), 20, 64)
    with pytest.raises(NotApplicable, match="7 clips: an extrapolation over subsets of clips needs 8"):
        frechet_infinity(x[:7], y[:7], paired=True, seed=0)
    with pytest.raises(
        NotApplicable, match=r"80 embeddings of 64 dimensions: an extrapolation in 1/n needs sizes from 64"
    ):
        frechet_infinity(x, y, paired=True, seed=0)
    assert frechet_infinity(x, y, paired=True, seed=0, allow_small=True).sizes[0] == 20
    with pytest.raises(ContractError, match="same clips on both sides"):
        frechet_infinity(x, y[:-1], paired=True, seed=0)
    with pytest.raises(ContractError, match="same clips on both sides"):
        frechet_infinity(moments_of(x), y, paired=True, seed=0)
    uneven = [normal(0, 5000, 4), *normal(1, 8, 2, 4)]
    with pytest.raises(NotApplicable, match="too unequal"):
        frechet_infinity(uneven, [c + 1 for c in uneven], paired=True, seed=0)


# -- kernel distance --------------------------------------------------------------------------------------------------


def kernel(a: np.ndarray, b: np.ndarray, unit: float) -> float:
    return math.exp(-float(np.sum((a - b) ** 2)) / (2 * unit**2))


def by_hand(
    x: np.ndarray, y: np.ndarray, gx: list[int], gy: list[int], unit: float, cross: Callable[[int, int], bool]
) -> float:
    """Squared MMD from its definition, in loops, times 100."""
    xx = [kernel(x[i], x[j], unit) for i, j in itertools.product(range(len(x)), repeat=2) if gx[i] != gx[j]]
    yy = [kernel(y[i], y[j], unit) for i, j in itertools.product(range(len(y)), repeat=2) if gy[i] != gy[j]]
    xy = [kernel(x[i], y[j], unit) for i in range(len(x)) for j in range(len(y)) if cross(gx[i], gy[j])]
    return 100 * float(np.mean(xx) + np.mean(yy) - 2 * np.mean(xy))


def test_kernel_distance_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(0, 23, 3), normal(1, 19, 3) + 0.4
    unit = median_distance(x)
    assert unit == pytest.approx(np.median([np.linalg.norm(a - b) for a, b in itertools.combinations(x, 2)]))
    plain = by_hand(x, y, list(range(23)), list(range(19)), unit, lambda i, j: True)
    assert kernel_distance(x, y) == pytest.approx(plain, abs=1e-4)
    gx, gy = [i % 5 for i in range(23)], [i % 4 for i in range(19)]
    grouped = by_hand(x, y, gx, gy, unit, lambda i, j: True)
    assert kernel_distance(x, y, reference_groups=gx, estimate_groups=gy) == pytest.approx(grouped, abs=1e-4)
    gy = [i % 5 for i in range(19)]
    paired = by_hand(x, y, gx, gy, unit, lambda i, j: i != j)
    found = kernel_distance(x, y, reference_groups=gx, estimate_groups=gy, paired=True)
    assert found == pytest.approx(paired, abs=1e-4)
    order = np.random.default_rng(0).permutation(19)
    turned = kernel_distance(x, y[order], reference_groups=gx, estimate_groups=[gy[i] for i in order], paired=True)
    assert turned == pytest.approx(found, abs=1e-4)
    monkeypatch.setattr(maths, "BLOCK_PAIRS", 60)  # blocks of 3 rows
    assert kernel_distance(x, y, reference_groups=gx, estimate_groups=gy, paired=True) == pytest.approx(found, abs=1e-5)


def test_kernel_distance_has_no_bias_at_50() -> None:
    """Independent sets, and paired sets of which one is not a version of the other: within 3 standard errors of 0."""
    plain, paired, coded_ = [], [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(50, 8)), rng.normal(size=(50, 8))
        plain.append(kernel_distance(x, y, bandwidth=3.9))
        paired.append(kernel_distance(x, y, paired=True, bandwidth=3.9))
        both = rng.normal(size=(50, 8))
        x, y = both + rng.normal(size=(50, 8)), both + rng.normal(size=(50, 8))  # one distribution, dependent pairs
        coded_.append(kernel_distance(x, y, paired=True, bandwidth=3.9))
    for values in (plain, paired, coded_):
        assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(300)
        assert min(values) < 0  # which an unbiased estimate of 0 must be, at times


def kernel_truth(d: int, noise: float, unit: float) -> float:
    """The kernel distance of the populations of `coded`: products over dimensions of Gaussian integrals."""
    scale, keep = np.exp(-np.arange(d) / d * 3), np.linspace(0.6, 1, d)
    x, y = scale**2, (keep * scale) ** 2 + (noise * scale) ** 2

    def mean(variance: np.ndarray, shift: np.ndarray) -> float:
        """Of exp(-z^2 / (2 unit^2)) for z normal with this variance and mean, product over dimensions."""
        each = np.exp(-(shift**2) / (2 * (unit**2 + variance))) / np.sqrt(1 + variance / unit**2)
        return float(np.prod(each))

    return 100 * (mean(2 * x, 0 * x) + mean(2 * y, 0 * x) - 2 * mean(x + y, 0.05 * scale))


def test_the_kernel_distance_of_coded_clips_is_that_of_the_populations() -> None:
    values = []
    for seed in range(150):
        x, y = coded(np.random.default_rng(seed), 40, 8)
        groups = np.repeat(np.arange(40), 4)
        both = {"reference_groups": groups, "estimate_groups": groups, "paired": True, "bandwidth": 1.5}
        values.append(kernel_distance(np.concatenate(x), np.concatenate(y), **both))
    truth = kernel_truth(8, 0.5, 1.5)
    assert truth > 0.5 and abs(np.mean(values) - truth) < 3 * np.std(values) / math.sqrt(150)


def test_leaving_the_pairs_of_a_clip_in_would_bias_the_paired_distance() -> None:
    with_pairs, without = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        both = rng.normal(size=(50, 8))
        x, y = both + 0.3 * rng.normal(size=(50, 8)), both + 0.3 * rng.normal(size=(50, 8))
        with_pairs.append(kernel_distance(x, y, bandwidth=3.9))
        without.append(kernel_distance(x, y, paired=True, bandwidth=3.9))
    assert np.mean(with_pairs) < -20 * np.std(with_pairs) / 10
    assert abs(np.mean(without)) < 3 * np.std(without) / 10


def test_kernel_distance_sees_what_the_moments_do_not() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 2))
    y = np.sign(rng.normal(size=(800, 2))) + 0.05 * rng.normal(size=(800, 2))  # same mean, same covariance, four lumps
    assert frechet(moments(x), moments(y)) < 0.02
    assert kernel_distance(x, y) > 0.5 > 3 * abs(kernel_distance(x, rng.normal(size=(800, 2))))


def test_identity_is_exactly_0_and_bad_input_says_why() -> None:
    x = normal(0, 40, 5).astype(np.float32)
    assert kernel_distance(x, x.copy(), paired=True) == 0.0
    with pytest.raises(NotApplicable, match="at least half of the reference embeddings are equal"):
        kernel_distance(np.ones((20, 5)), x)
    with pytest.raises(NotApplicable, match="estimate: fewer than 2 clips"):
        kernel_distance(x, x[:3], estimate_groups=[0, 0, 0])
    with pytest.raises(NotApplicable, match="reference: fewer than 2 clips"):
        kernel_distance(x[:1], x)
    with pytest.raises(ContractError, match="1 of 40 estimate embeddings hold NaN"):
        kernel_distance(x, np.where(np.arange(40)[:, None] == 3, np.nan, x))
    with pytest.raises(ContractError, match="5 and of 4 dimensions"):
        kernel_distance(x, x[:, :4])
    with pytest.raises(ContractError, match="same clips on both sides"):
        kernel_distance(x, x, reference_groups=range(40), estimate_groups=range(1, 41), paired=True)
    with pytest.raises(ContractError, match="one label an embedding"):
        kernel_distance(x, x, reference_groups=[1, 2])
    assert kernel_distance(x, np.zeros((20, 5), "f4")) > 0  # silence is a point


def test_the_bandwidth_of_a_large_reference_is_that_of_a_fixed_draw() -> None:
    x = normal(0, 6000, 3)
    assert median_distance(x) == median_distance(x.copy())
    assert median_distance(x) == pytest.approx(median_distance(x[:2000]), rel=0.05)
    with pytest.raises(NotApplicable, match="one embedding"):
        median_distance(x[:1])


def sums(x: np.ndarray, y: np.ndarray, codes: np.ndarray, clusters: np.ndarray) -> list[maths.PairSums]:
    x, y = x.astype(np.float32), y.astype(np.float32)
    both = (clusters, clusters)
    return [kernel_sums(a, b, codes, codes, apart=True, clusters=both) for a, b in ((x, x), (y, y), (x, y))]


def test_a_resample_is_the_distance_of_the_drawn_clusters() -> None:
    """Against a set that is built from copies, in which pairs of copies of one clip do not count."""
    x, y = normal(0, 24, 3), normal(1, 24, 3) + 0.3
    codes, clusters = np.repeat(np.arange(12), 2), np.repeat(np.arange(4), 3)
    rr, ee, re = sums(x, y, codes, clusters)
    value = rr.mean + ee.mean - 2 * re.mean
    drawn = np.array([[1.0, 1, 1, 1], [2, 0, 1, 1], [0, 3, 1, 0]])
    found = rr.resampled(drawn) + ee.resampled(drawn) - 2 * re.resampled(drawn)
    assert found[0] == pytest.approx(value)
    for row, expected in zip(drawn[1:].astype(int), found[1:], strict=True):
        copies = [(g, copy) for g in range(4) for copy in range(row[g])]  # two copies of a cluster share no pairs
        rows = [(i, g, c) for g, c in copies for i in range(24) if clusters[codes[i]] == g]
        terms = []
        for a, b in ((x, x), (y, y), (x, y)):
            pairs = [
                kernel(a[i], b[j], 1.0)
                for i, g, c in rows
                for j, h, e in rows
                if codes[i] != codes[j] and (g != h or c == e)
            ]
            terms.append(np.mean(pairs))
        assert expected == pytest.approx(terms[0] + terms[1] - 2 * terms[2], abs=1e-6)
    without = rr.without_each() + ee.without_each() - 2 * re.without_each()
    keep = codes != 5
    again = sums(x[keep], y[keep], np.unique(codes[keep], return_inverse=True)[1], np.delete(clusters, 5))
    assert without[5] == pytest.approx(again[0].mean + again[1].mean - 2 * again[2].mean)


def test_the_interval_of_the_kernel_distance() -> None:
    x, y = normal(0, 80, 3), normal(1, 80, 3) + 0.5
    codes, clusters = np.repeat(np.arange(40), 2), np.repeat(np.arange(20), 2)
    three = sums(x, y, codes, clusters)
    value = 100 * (three[0].mean + three[1].mean - 2 * three[2].mean)
    low, high, note = kernel_interval(*three, seed=0)
    assert low is not None and high is not None and low < value < high and note == ""
    assert kernel_interval(*three, seed=0)[:2] == (low, high) != kernel_interval(*three, seed=1)[:2]
    one = sums(x, y, codes, np.zeros(40, dtype=int))
    assert kernel_interval(*one, seed=0) == (None, None, "one cluster: no interval")
    two = sums(x[:4], y[:4], np.repeat(np.arange(2), 2), np.arange(2))
    low, _, note = kernel_interval(*two, seed=0)
    assert low is None and "resamples have no pair of different clips" in note


# -- density and coverage ---------------------------------------------------------------------------------------------


def published(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """Density and coverage of Naeem et al. 2020, equations 3 and 4, written from the paper."""
    among = np.linalg.norm(real[:, None] - real, axis=2)
    radius = np.sort(among, axis=1)[:, k]  # column 0 is the embedding itself
    inside = np.linalg.norm(real[:, None] - fake, axis=2) < radius[:, None]
    return inside.sum() / (k * len(fake)), inside.any(axis=1).mean()


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("shift", [0.0, 0.7, 30.0])
def test_density_and_coverage_are_as_published(k: int, shift: float) -> None:
    real, fake = normal(0, 90, 4), normal(1, 70, 4) * 0.8 + shift
    assert density_coverage(real, fake, k=k) == pytest.approx(published(real, fake, k))


def test_density_and_coverage_of_paired_sets_by_hand() -> None:
    x, y = normal(0, 30, 3), normal(1, 30, 3) * 0.7
    groups = np.repeat(np.arange(10), 3)
    total, covered = 0.0, 0
    for i in range(30):
        others = groups != groups[i]
        radius = np.sort(np.linalg.norm(x[others] - x[i], axis=1))[4]
        inside = int(np.sum(np.linalg.norm(y[others] - x[i], axis=1) <= radius))
        total, covered = total + inside, covered + (inside > 0)
    order = np.random.default_rng(0).permutation(30)
    found = density_coverage(x, y[order], reference_groups=groups, estimate_groups=groups[order], paired=True)
    assert found == pytest.approx((total / (5 * 30), covered / 30))


def test_the_reference_itself_has_density_and_coverage_1() -> None:
    x = normal(0, 200, 6).astype(np.float32)
    groups = np.repeat(np.arange(40), 5)
    assert density_coverage(x, x.copy(), reference_groups=groups, estimate_groups=groups, paired=True) == pytest.approx(
        (1, 1)
    )
    x[::3] = 0.25  # digital silence: a third of the embeddings are equal
    assert density_coverage(x, x.copy(), reference_groups=groups, estimate_groups=groups, paired=True) == pytest.approx(
        (1, 1)
    )
    even = [density_coverage(normal(s, 60, 4), normal(s + 999, 60, 4))[0] for s in range(100)]
    assert abs(np.mean(even) - 1) < 3 * np.std(even) / 10  # equal distributions


def test_collapse_shows_in_coverage_not_in_density() -> None:
    x = normal(0, 300, 2)
    y = 0.05 * normal(1, 300, 2)  # all in the middle
    density, coverage = density_coverage(x, y)
    assert density > 0.9 and coverage < 0.2


def test_bad_input_to_density_says_why() -> None:
    x = normal(0, 12, 3)
    with pytest.raises(
        NotApplicable, match="12 reference embeddings of 2 clips: 7 neighbours in other clips are needed"
    ):
        density_coverage(x, x, reference_groups=[0] * 6 + [1] * 6, k=7)
    with pytest.raises(NotApplicable, match="all 12 reference embeddings are equal"):
        density_coverage(np.ones((12, 3)), x)
    with pytest.raises(NotApplicable, match="estimate: no embeddings"):
        density_coverage(x, np.zeros((0, 3)))
    with pytest.raises(EvalkitError, match="dimensions"):
        density_coverage(x, x[:, :2])


def test_intervals_of_density_and_coverage() -> None:
    x, y = normal(0, 80, 3).astype(np.float32), (normal(1, 80, 3) * 0.8).astype(np.float32)
    codes, clusters = np.repeat(np.arange(40), 2), np.repeat(np.arange(20), 2)
    around = balls(x, codes, closed=True)
    found = cover(x, y, codes, codes, around, paired=True, clusters=(clusters, clusters))
    low, high, note = density_interval(found, seed=0)
    assert low is not None and high is not None and low < found.density < high and note == ""
    low, high, _ = coverage_interval(found, clusters[codes], seed=0)
    assert low is not None and high is not None and 0 <= low <= found.coverage <= high <= 1
    one = cover(x, y, codes, codes, around, paired=True, clusters=(0 * clusters, 0 * clusters))
    assert (
        density_interval(one, seed=0)[2] == "one cluster: no interval" == coverage_interval(one, 0 * codes, seed=0)[2]
    )


def test_halves_keep_clusters_together() -> None:
    sizes, clusters = [10] * 40, [str(i // 4) for i in range(40)]
    second = halves(sizes, clusters, np.random.default_rng(0))
    assert second is not None and second.sum() == 20
    assert all(second[i] == second[i - i % 4] for i in range(40))
    assert halves(sizes, ["a"] * 40, np.random.default_rng(0)) is None


# -- simulations for docs/design/distribution.md: python tests/test_distribution.py -----------------------------------


def population(
    rng: np.random.Generator, d: int, clusters: int, clips: int, noise: float
) -> tuple[Any, Any, np.ndarray]:
    """`coded` with a cluster effect: variances 0.3 of clusters, 0.3 of clips, 0.4 of the 4 embeddings of a clip."""
    scale, keep = np.exp(-np.arange(d) / d * 3), np.linspace(0.6, 1, d)
    x = []
    for _ in range(clusters):
        u = rng.normal(size=d) * math.sqrt(0.3)
        for _ in range(clips):
            v = rng.normal(size=d) * math.sqrt(0.3)
            x.append((u + v + rng.normal(size=(4, d)) * math.sqrt(0.4)) * scale)
    y = [keep * c + noise * scale * rng.normal(size=c.shape) + 0.05 * scale for c in x]
    return x, y, np.repeat(np.arange(clusters), clips)


def covered(low: Any, high: Any, truth: float) -> float:
    return float(np.mean((np.array(low) <= truth) & (truth <= np.array(high))))


def naive(x: Any, y: Any, clusters: np.ndarray, seed: int) -> tuple[float, float]:
    """The bootstrap that resamples the sets themselves, 200 replicates."""
    from evalkit.statistics import expanded_tail

    rng, count, values = np.random.default_rng(seed), int(clusters.max()) + 1, []
    for _ in range(200):
        drawn = np.concatenate([np.flatnonzero(clusters == g) for g in rng.integers(0, count, count)])
        values.append(frechet(moments_of([x[i] for i in drawn]), moments_of([y[i] for i in drawn]), allow_small=True))
    tail = expanded_tail(0.95, count)
    low, high = np.quantile(values, [tail, 1 - tail], method="weibull")
    return float(low), float(high)


def simulate_frechet(d: int, clusters: int, clips: int, noise: float, sets: int = 400, naive_sets: int = 60) -> None:
    truth = coded_truth(d, noise)
    rows, infinite, whole, plain = [], [], [], []
    for seed in range(sets):
        x, y, labels = population(np.random.default_rng([seed, d, clusters]), d, clusters, clips, noise)
        a, b = gaussian(moments_of(x)), gaussian(moments_of(y))
        found = sensitivity(a, b)
        each = contributions(found, a, b, x, y)
        rows.append(linear_interval(found.value, each, labels, seed=seed, lowest=0.0)[:2])
        line = frechet_infinity(x, y, paired=True, seed=seed, whole=(found.value, each), allow_small=True)
        infinite.append((line.value, *linear_interval(line.value, each, labels, seed=seed, lowest=0.0)[:2]))
        whole.append(found.value)
        if seed < naive_sets:
            plain.append(naive(x, y, labels, seed))
    mean, inf = float(np.mean(whole)), np.array(infinite, dtype=float)
    print(
        f"| {d} | {clusters} x {clips} | {4 * clusters * clips} | {noise} | {truth:.4f} | {mean:.4f} "
        f"| {inf[:, 0].mean():.4f} "
        f"| {covered(*zip(*rows, strict=True), mean):.3f} | {covered(*zip(*plain, strict=True), mean):.2f} "
        f"| {covered(inf[:, 1], inf[:, 2], truth):.3f} |",
        flush=True,
    )


def simulate_kernel(d: int, clusters: int, clips: int, noise: float | None, sets: int = 1500) -> None:
    unit = median_distance(np.concatenate(population(np.random.default_rng(9), d, 500, 1, 0.5)[0]))
    rows = []
    for seed in range(sets):
        x, y, labels = population(np.random.default_rng([seed, d, clusters, 6]), d, clusters, clips, noise or 0.5)
        if noise is None:  # another draw of the reference: no distance
            y = population(np.random.default_rng([seed, d, clusters, 7]), d, clusters, clips, 0.5)[0]
        three = sums(np.concatenate(x) / unit, np.concatenate(y) / unit, np.repeat(np.arange(len(x)), 4), labels)
        value = 100 * (three[0].mean + three[1].mean - 2 * three[2].mean)
        rows.append((value, *kernel_interval(*three, seed=seed)[:2]))
    value, low, high = np.array(rows, dtype=float).T
    truth = 0.0 if noise is None else kernel_truth(d, noise, unit)
    print(
        f"| {d} | {clusters} x {clips} | {noise} | {truth:.3f} "
        f"| {value.mean():.3f} ± {value.std() / math.sqrt(sets):.3f} "
        f"| {covered(low, high, value.mean()):.3f} | {covered(low, high, truth):.3f} |",
        flush=True,
    )


if __name__ == "__main__":
    import sys

    for noise in (0.5, 0.1) if "kernel" not in sys.argv else ():
        for d, clusters, clips in ((8, 20, 3), (8, 60, 3), (32, 20, 5), (32, 60, 5), (32, 200, 1)):
            simulate_frechet(d, clusters, clips, noise)
    for level in (0.5, None):
        for d, clusters, clips in ((8, 20, 1), (8, 60, 1), (8, 60, 3), (32, 60, 1), (32, 200, 1)):
            simulate_kernel(d, clusters, clips, level)
