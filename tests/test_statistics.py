"""evalkit.statistics against closed forms, scipy, properties, and its own promises by simulation.

``python tests/test_statistics.py`` prints the measured error rates that docs/design/statistics.md tells.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit import statistics as S
from evalkit.errors import ContractError, NotApplicable, UsageError

# -- synthetic clustered data -----------------------------------------------------------------------------------------

SIZES = {
    "equal": lambda rng, count: np.full(count, 10),
    "unequal": lambda rng, count: rng.integers(1, 21, count),
    "extreme": lambda rng, count: np.ceil(rng.lognormal(1.5, 2.0, count)).astype(int),
}
NOISE = {
    "normal": lambda rng, n: rng.normal(size=n),
    "skewed": lambda rng, n: rng.exponential(size=n) - 1.0,
}


def clustered(rng: np.random.Generator, count: int, sizes: str = "unequal", noise: str = "normal"):
    """Clip values of expectation 0 with within-cluster correlation 0.5, and their clusters."""
    codes = np.repeat(np.arange(count), SIZES[sizes](rng, count))
    return NOISE[noise](rng, count)[codes] + NOISE[noise](rng, len(codes)), codes


def interval_coverage(
    datasets: int,
    count: int,
    sizes: str = "unequal",
    noise: str = "normal",
    naive: bool = False,
    replicates: int = 2000,
) -> tuple[float, float]:
    """Share of the data sets whose 95 % interval holds the true mean 0, and share of the intervals with a note."""
    hits = noted = 0
    for k in range(datasets):
        x, codes = clustered(np.random.default_rng([3, count, k]), count, sizes, noise)
        i = S.cluster_bootstrap(x, np.arange(len(x)) if naive else codes, seed=k, replicates=replicates)
        hits += i.low <= 0.0 <= i.high
        noted += bool(i.note)
    return hits / datasets, noted / datasets


def false_positives(datasets: int, count: int, noise: str = "normal", naive: bool = False, flips: int = 999) -> float:
    """Share of the data sets without a difference for which p <= 0.05. Both systems share the clip's difficulty."""
    wrong = 0
    for k in range(datasets):
        rng = np.random.default_rng([5, count, k])
        d, codes = clustered(rng, count, noise=noise)
        difficulty = rng.normal(size=len(d))
        labels = np.arange(len(d)) if naive else codes
        found = S.paired_difference(difficulty + d, difficulty, labels, seed=k, flips=flips, replicates=100)
        wrong += found.p <= 0.05
    return wrong / datasets


def family_errors(tables: int, count: int, systems: int = 6, different: int = 0) -> tuple[float, float]:
    """Share of tables with at least one true null rejected, with Holm and without.

    All systems are alike but the last ``different`` ones, which are worse by a standard deviation.
    """
    holm = raw = 0
    for k in range(tables):
        rng = np.random.default_rng([9, count, k])
        difficulty, codes = clustered(rng, count)
        names = [f"c{i:05d}" for i in range(len(codes))]
        table = {}
        for s in range(systems):
            effect = rng.normal(size=count)[codes] + rng.normal(size=len(codes))
            x = difficulty + effect + (1.0 if s >= systems - different else 0.0)
            table[f"s{s}"] = dict(zip(names, x.tolist(), strict=True))
        clusters = dict(zip(names, codes.astype(str).tolist(), strict=True))
        c = S.compare_all(table, clusters, direction="lower", seed=k, replicates=100, flips=3000)
        alike = {f"s{s}" for s in range(systems - different)}
        null = [p for p in c.pairs if {p.first, p.second} <= alike]
        holm += any(p.significant for p in null)
        raw += any(p.difference.p <= 0.05 for p in null)
    return holm / tables, raw / tables


def standard_error(p: float, n: int) -> float:
    return math.sqrt(p * (1 - p) / n)


# -- promises, by simulation ------------------------------------------------------------------------------------------


def test_interval_covers_the_true_mean_as_often_as_it_says():
    rate, _ = interval_coverage(2000, 30)
    assert 0.93 <= rate <= 0.97


def test_interval_that_ignores_clusters_fails_on_the_same_data():
    rate, _ = interval_coverage(500, 30, naive=True, replicates=500)
    assert rate < 0.75


def test_expansion_is_what_makes_ten_clusters_work(monkeypatch: pytest.MonkeyPatch):
    expanded, _ = interval_coverage(1000, 10, replicates=1000)
    monkeypatch.setattr(S, "expanded_tail", lambda level, clusters: (1 - level) / 2)
    plain, _ = interval_coverage(1000, 10, replicates=1000)
    assert plain < 0.91 < 0.92 <= expanded <= 0.97


def test_three_clusters_are_not_enough_and_the_interval_says_so():
    rate, noted = interval_coverage(500, 3, replicates=500)
    assert rate < 0.85
    assert noted == 1.0


def test_false_positive_rate_of_the_paired_test():
    n = 1500
    for count in (10, 30):  # exact and random flips
        rate = false_positives(n, count)
        assert 0.02 <= rate <= 0.05 + 3 * standard_error(0.05, n)
    assert false_positives(300, 30, naive=True) > 0.2


@pytest.mark.parametrize("different", [0, 2])
def test_family_wise_error_after_holm(different: int):
    n = 300
    holm, raw = family_errors(n, 20, different=different)
    assert holm <= 0.05 + 3 * standard_error(0.05, n)
    assert raw > 0.12  # the same p values without Holm: the correction is needed here


# -- intervals --------------------------------------------------------------------------------------------------------


def test_expanded_tail_against_hesterbergs_definition():
    from scipy import stats

    for count, level in itertools.product((3, 5, 10, 40, 400), (0.9, 0.95, 0.99)):
        t = stats.t.ppf((1 + level) / 2, count - 1)
        z = stats.norm.isf(S.expanded_tail(level, count))
        assert z * math.sqrt((count - 1) / count) == pytest.approx(t, rel=1e-6)


@pytest.mark.parametrize("n", [15, 40, 200])
def test_single_clips_give_students_interval(n: int):
    from scipy import stats

    ratios = []
    for k in range(20):
        x = np.random.default_rng([n, k]).normal(5.0, 2.0, n)
        i = S.cluster_bootstrap(x, np.arange(n), seed=k, replicates=10_000)
        low, high = stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x))
        assert i.estimate == pytest.approx(x.mean())
        ratios.append((i.high - i.low) / (high - low))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.02)


def test_interval_against_scipy_on_clusters():
    from scipy import stats

    x, codes = clustered(np.random.default_rng(1), 25)
    sums, sizes = np.bincount(codes, x), np.bincount(codes)
    tail = S.expanded_tail(0.9, 25)
    other = stats.bootstrap(
        (sums, sizes),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=40_000,
        confidence_level=1 - 2 * tail,
        rng=np.random.default_rng(2),
    ).confidence_interval
    i = S.cluster_bootstrap(x, codes, level=0.9, replicates=40_000, seed=3)
    assert i.low == pytest.approx(other.low, abs=0.02 * (i.high - i.low))
    assert i.high == pytest.approx(other.high, abs=0.02 * (i.high - i.low))


def test_two_clusters_by_enumeration():
    # draws {A,A}, {A,B}, {B,B} with 1/4, 1/2, 1/4: means 1, (1*1 + 4*3)/4, 4
    w = np.concatenate(list(S.bootstrap_weights(["A", "B", "B", "B"], 20_000, seed=0)))
    means = (w @ np.array([1.0, 4.0, 4.0, 4.0])) / w.sum(axis=1)
    found, counts = np.unique(means, return_counts=True)
    assert found.tolist() == [1.0, 3.25, 4.0]
    assert counts / 20_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.012)


scores = st.lists(st.tuples(st.floats(-100, 100), st.sampled_from("abcdef")), min_size=2, max_size=40).filter(
    lambda rows: len({c for _, c in rows}) > 1
)


@given(scores, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(rows, random):
    def interval(rs):
        return S.cluster_bootstrap([v for v, _ in rs], [c for _, c in rs], replicates=50, seed=1)

    shuffled = list(rows)
    random.shuffle(shuffled)
    assert interval(rows) == interval(shuffled)


@given(scores, st.floats(-1000, 1000), st.floats(0.01, 100))
def test_shift_and_scale(rows, shift, scale):
    x, c = np.array([v for v, _ in rows]), [c for _, c in rows]
    i, j, k = (S.cluster_bootstrap(v, c, replicates=50, seed=1) for v in (x, scale * x + shift, -x))
    for name in ("estimate", "low", "high"):
        assert getattr(j, name) == pytest.approx(scale * getattr(i, name) + shift, rel=1e-7, abs=1e-7)
    assert (k.low, k.high) == pytest.approx((-i.high, -i.low), rel=1e-7, abs=1e-7)
    assert x.min() - 1e-9 <= i.low <= i.high <= x.max() + 1e-9


def test_names_of_clusters_do_not_matter_but_the_seed_does():
    x, codes = clustered(np.random.default_rng(1), 12)
    a = S.cluster_bootstrap(x, codes, seed=1)
    assert a == S.cluster_bootstrap(x, codes, seed=1) == S.cluster_bootstrap(x, [f"{c:03d}" for c in codes], seed=1)
    b = S.cluster_bootstrap(x, codes, seed=2)
    assert (a.low, a.high) != (b.low, b.high)
    assert a.estimate == b.estimate


def test_wider_level_wider_interval():
    x, codes = clustered(np.random.default_rng(1), 12)
    widths = [i.high - i.low for i in (S.cluster_bootstrap(x, codes, seed=1, level=v) for v in (0.5, 0.8, 0.95, 0.99))]
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_memory_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    x, codes = clustered(np.random.default_rng(1), 70)
    y = x + np.random.default_rng(2).normal(size=len(x))
    whole = S.cluster_bootstrap(x, codes, seed=1), S.paired_difference(x, y, codes, seed=1)
    monkeypatch.setattr(S, "_BLOCK", 333)
    assert (S.cluster_bootstrap(x, codes, seed=1), S.paired_difference(x, y, codes, seed=1)) == whole


def test_sums_are_exact_so_that_no_library_changes_a_bit():
    rng = np.random.default_rng(0)
    sums = rng.normal(size=(3, 57)) * 10.0 ** rng.integers(-6, 6, (3, 57))
    grid = S._on_grid(sums)
    assert np.abs(grid - sums).max() <= 57 * 2.0**-51 * np.abs(sums).max()
    w = np.concatenate(list(S._multiplicities(57, 50, seed=1, width=57))).astype(float)
    exact = [[math.fsum(a * b for a, b in zip(row, g, strict=True)) for row in w] for g in grid]
    assert (w @ grid.T).T.tolist() == exact
    assert (w[:, ::-1] @ grid[:, ::-1].T).T.tolist() == exact


def test_constant_values_have_zero_width():
    i = S.cluster_bootstrap(np.full(30, 0.1), np.arange(30), seed=0)
    assert (i.estimate, i.low, i.high, i.note) == (0.1, 0.1, 0.1, "")


def test_notes_on_clusters():
    assert S.cluster_bootstrap([1.0, 2.0], ["a", "a"], seed=0) == S.Interval(
        1.5, None, None, 2, 1, "one cluster: no interval"
    )
    assert S.cluster_bootstrap([1.0, 2.0, 3.0, 5.0], list("abcd"), seed=0).note == (
        "few clusters (4): interval too narrow"
    )
    assert S.cluster_bootstrap(np.arange(10.0), np.arange(10), seed=0).note == ""
    assert S.cluster_bootstrap([], [], seed=0) == S.Interval(None, None, None, 0, 0, "no scored clips")


@pytest.mark.parametrize(
    ("values", "clusters", "words"),
    [
        ([1.0, math.nan], ["a", "b"], "value 1 is nan"),
        ([1.0, math.inf], ["a", "b"], "value 1 is inf"),
        ([1.0, 2.0], ["a"], "one label per clip"),
        ([[1.0], [2.0]], ["a", "b"], "expected"),
    ],
)
def test_bad_input_is_named(values, clusters, words):
    with pytest.raises(ValueError, match=words):
        S.cluster_bootstrap(values, clusters, seed=0)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_bad_level(level):
    with pytest.raises(ValueError, match="level"):
        S.cluster_bootstrap([1.0, 2.0], ["a", "b"], seed=0, level=level)


# -- corpus metrics ---------------------------------------------------------------------------------------------------


def ratio(statistics, weights):
    """A corpus metric for one and two dimensions: summed errors over summed words."""
    errors, words = (np.array([s[k] for s in statistics]) for k in ("errors", "words"))
    return (weights @ errors) / (weights @ words)


CORPUS = [{"errors": e, "words": w} for e, w in [(3, 10), (0, 7), (5, 12), (2, 9), (9, 20), (1, 8)]]
SPEAKERS = ["a", "a", "b", "c", "c", "d"]


def test_weights_are_draws_of_whole_clusters():
    w = np.concatenate(list(S.bootstrap_weights(SPEAKERS, 500, seed=1)))
    assert w.shape == (500, 6) and w.dtype.kind == "i"
    assert (w[:, 0] == w[:, 1]).all() and (w[:, 3] == w[:, 4]).all()
    assert (w[:, [0, 2, 3, 5]].sum(axis=1) == 4).all()


def test_corpus_mean_is_the_mean():
    x, codes = clustered(np.random.default_rng(1), 12)
    mean = S.corpus_bootstrap(list(x), codes, lambda s, w: (w @ np.array(s)) / w.sum(axis=-1), seed=4)
    direct = S.cluster_bootstrap(x, codes, seed=4)
    assert (mean.estimate, mean.low, mean.high) == pytest.approx((direct.estimate, direct.low, direct.high))
    assert (mean.n, mean.clusters, mean.note) == (direct.n, direct.clusters, direct.note)


def test_corpus_ratio_and_combines_of_one_dimension():
    i = S.corpus_bootstrap(CORPUS, SPEAKERS, ratio, replicates=200, seed=1)
    assert i.estimate == pytest.approx(20 / 66)
    assert 0 <= i.low < i.estimate < i.high <= 1

    def one_by_one(s, w):
        if np.ndim(w) != 1:
            raise TypeError("one row at a time")
        return ratio(s, w)

    def collapses(s, w):  # right for one row, one number for many
        return float(np.sum(ratio(s, w)))

    def wrong_denominator(s, w):  # right for one row, right shape and wrong values for many
        return (w @ np.array([x["errors"] for x in s])) / np.sum(w @ np.array([x["words"] for x in s]))

    for combine in (one_by_one, collapses, wrong_denominator):
        assert S.corpus_bootstrap(CORPUS, SPEAKERS, combine, replicates=200, seed=1) == i


def test_replicates_without_a_value_take_the_interval():
    def fragile(s, w):
        if np.ndim(w) == 1 and w[0] == 0:
            raise ZeroDivisionError
        return ratio(s, w) if np.ndim(w) == 1 else ratio(s, w)[:0]

    def undefined(s, w):
        return np.where(np.asarray(w)[..., 0] == 0, np.nan, ratio(s, w))

    absent = sum(int((w[:, 0] == 0).sum()) for w in S.bootstrap_weights(SPEAKERS, 200, seed=1))
    assert 0 < absent < 200
    for combine in (fragile, undefined):
        i = S.corpus_bootstrap(CORPUS, SPEAKERS, combine, replicates=200, seed=1)
        assert i.estimate == pytest.approx(20 / 66)
        assert (i.low, i.high, i.note) == (None, None, f"no interval: {absent} of 200 resamples have no value")


def test_corpus_value_itself_must_exist():
    def not_applicable(s, w):
        raise NotApplicable("no words")

    with pytest.raises(NotApplicable, match="no words"):
        S.corpus_bootstrap(CORPUS, SPEAKERS, not_applicable, seed=1)
    with pytest.raises(ContractError, match="nan over 6 clips"):
        S.corpus_bootstrap(CORPUS, SPEAKERS, lambda s, w: math.nan, seed=1)
    assert S.corpus_bootstrap(CORPUS[:2], ["a", "a"], ratio, seed=1).note == "one cluster: no interval"
    assert S.corpus_bootstrap([], [], ratio, seed=1).estimate is None


# -- paired differences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 9, 12])
def test_exact_p_against_scipy(count: int):
    from scipy import stats

    rng = np.random.default_rng(count)
    for shift in (0.0, 0.5, 2.0):
        s = rng.normal(shift, 1.0, count)
        other = stats.permutation_test(
            (s, np.zeros(count)),
            lambda x, y, axis: (x - y).mean(axis),
            permutation_type="samples",
            n_resamples=np.inf,
            vectorized=True,
        ).pvalue
        assert S.sign_flip_p(s[None], seed=0)[0] == pytest.approx(other)


@pytest.mark.parametrize(("count", "wins"), [(8, 8), (8, 7), (12, 9), (12, 6), (20, 15), (40, 26)])
def test_equal_sums_are_the_sign_test(count: int, wins: int):
    from scipy import stats

    sums = np.r_[np.full(wins, 0.1), np.full(count - wins, -0.1)]
    flips = 20_000
    expected = stats.binomtest(wins, count, 0.5).pvalue
    tolerance = 1e-12 if count <= S.EXACT_CLUSTERS else 4 * standard_error(expected, flips) + 1 / flips
    assert S.sign_flip_p(sums[None], flips=flips, seed=1)[0] == pytest.approx(expected, abs=tolerance)


def test_ties_count_whatever_the_rounding():
    # 0.1 + 0.2 - 0.3 is zero, but not in floating point
    for scale in (1.0, 0.1, 1e-7, 1e9):
        assert S.sign_flip_p(np.array([[1.0, 2.0, -3.0]]) * scale, seed=0).tolist() == [1.0]
        assert S.sign_flip_p(np.array([[1.0, 2.0, 3.0]]) * scale, seed=0).tolist() == [0.25]
    whole = np.random.default_rng(0).integers(-9, 10, (200, 11)).astype(float)
    for rounded in (whole * 0.1, whole / 3, whole * np.pi):
        assert S.sign_flip_p(rounded, seed=0).tolist() == S.sign_flip_p(whole, seed=0).tolist()


def test_batch_equals_one_by_one_and_p_is_never_zero():
    sums = np.random.default_rng(0).normal(0.3, 1.0, (40, 25))
    sums[0] = 1.0
    batch = S.sign_flip_p(sums, flips=500, seed=3)
    assert batch.tolist() == [S.sign_flip_p(row[None], flips=500, seed=3)[0] for row in sums]
    assert batch[0] == 1 / 501
    assert np.array_equal(batch, S.sign_flip_p(-sums, flips=500, seed=3))
    assert not np.array_equal(batch, S.sign_flip_p(sums, flips=500, seed=4))


def test_paired_difference_closed_cases():
    codes = np.repeat(np.arange(20), 3)
    x = np.random.default_rng(0).normal(size=60)
    same = S.paired_difference(x, x, codes, seed=0)
    assert (same.estimate, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    shifted = S.paired_difference(x + 0.25, x, codes, seed=0)
    assert (shifted.estimate, shifted.low, shifted.high) == pytest.approx((0.25, 0.25, 0.25))
    assert shifted.p == 1 / 2001
    alone = S.paired_difference([1.0, 2.0], [0.0, 0.0], ["a", "a"], seed=0)
    assert alone == S.Difference(1.5, None, None, 1.0, 2, 1, "one cluster: no interval")


def test_paired_difference_is_the_interval_of_differences_and_turns_with_its_sides():
    rng = np.random.default_rng(0)
    a, codes = clustered(rng, 25)
    b = a + rng.normal(0.3, 1.0, len(a))
    d, turned, i = (
        S.paired_difference(a, b, codes, seed=1),
        S.paired_difference(b, a, codes, seed=1),
        S.cluster_bootstrap(a - b, codes, seed=1),
    )
    assert (d.estimate, d.low, d.high, d.n, d.clusters) == (i.estimate, i.low, i.high, i.n, i.clusters)
    assert (turned.estimate, turned.low, turned.high) == pytest.approx((-d.estimate, -d.high, -d.low))
    assert turned.p == d.p


def test_pairing_finds_what_separate_intervals_hide():
    rng = np.random.default_rng(0)
    a, codes = clustered(rng, 40)
    b = a + 0.2 + 0.1 * rng.normal(size=len(a))
    i, j = S.cluster_bootstrap(a, codes, seed=1), S.cluster_bootstrap(b, codes, seed=1)
    assert i.low < j.low < i.high < j.high
    assert S.paired_difference(a, b, codes, seed=1).p < 0.001


def test_paired_difference_needs_the_same_clips():
    with pytest.raises(ValueError, match="common clips"):
        S.paired_difference([1.0, 2.0], [1.0], ["a", "b"], seed=0)
    with pytest.raises(ValueError, match="value 0 is nan"):
        S.paired_difference([math.nan, 2.0], [1.0, 2.0], ["a", "b"], seed=0)


# -- Holm -------------------------------------------------------------------------------------------------------------


def step_down(p: list[float], alpha: float) -> list[bool]:
    """Holm's procedure as he states it: reject in order of p while p_(i) <= alpha / (m - i + 1), then stop."""
    rejected = [False] * len(p)
    for i, k in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
        if p[k] > alpha / (len(p) - i):
            break
        rejected[k] = True
    return rejected


def test_holm_example():
    # four hypotheses at 0.05: the first and fourth are rejected, the third stops at 0.03 > 0.05 / 2
    p = [0.01, 0.04, 0.03, 0.005]
    assert S.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert step_down(p, 0.05) == [True, False, False, True]
    assert S.holm([0.5, 0.4]).tolist() == [0.8, 0.8]
    assert S.holm([0.9, 0.8, 0.7]).tolist() == [1.0, 1.0, 1.0]
    assert S.holm([0.02]).tolist() == [0.02]
    assert S.holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.001, 0.999))
def test_holm_is_the_step_down_procedure(p, alpha):
    adjusted = S.holm(p)
    near = np.abs(adjusted - alpha) < 1e-12  # there m * p <= alpha and p <= alpha / m may round apart
    assert [bool(a <= alpha) for a in adjusted[~near]] == list(np.array(step_down(p, alpha))[~near])
    order = np.argsort(p)
    assert (np.diff(adjusted[order]) >= 0).all()
    assert (np.array(p) <= adjusted).all() and (adjusted <= np.minimum(1, len(p) * np.array(p))).all()


@pytest.mark.parametrize("p", [[0.1, math.nan], [-0.1], [1.1]])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(ValueError, match="0 to 1"):
        S.holm(p)


# -- ranks ------------------------------------------------------------------------------------------------------------


def table_of(pairs: list[tuple[int, int]], count: int) -> np.ndarray:
    s = np.zeros((count, count), dtype=bool)
    for i, j in pairs:
        s[i, j] = s[j, i] = True
    return s


def test_rank_ranges_and_their_text():
    s = table_of([(0, 2), (0, 3), (1, 3)], 4)
    assert S.rank_ranges([1.0, 2.0, 3.0, 4.0], s, "lower") == [(1, 2), (1, 3), (2, 4), (3, 4)]
    assert S.rank_ranges([1.0, 2.0, 3.0, 4.0], s, "higher") == [(3, 4), (2, 4), (1, 3), (1, 2)]
    assert [S.rank_text(r) for r in [(1, 2), (3, 3)]] == ["1-2", "3"]
    with pytest.raises(ValueError, match="none"):
        S.rank_ranges([1.0], [[False]], "none")
    with pytest.raises(ValueError, match="symmetric"):
        S.rank_ranges([1.0, 2.0], [[0, 1], [0, 0]], "lower")


symmetric = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.permutations(range(n)),
        st.lists(st.sampled_from(list(itertools.combinations(range(n), 2)) or [(0, 0)]), max_size=20),
    )
)


@given(symmetric)
def test_ranks_and_letters_say_what_the_pairs_say(case):
    order, pairs = case
    count = len(order)
    s = table_of([p for p in pairs if p[0] != p[1]], count)
    means = np.argsort(order).astype(float)  # order[0] is the best
    for (first, last), k in zip(S.rank_ranges(means, s, "lower"), range(count), strict=True):
        assert first - 1 == sum(s[k, j] for j in range(count) if means[j] < means[k])
        assert count - last == sum(s[k, j] for j in range(count) if means[j] > means[k])
        assert first <= means[k] + 1 <= last
    letters = S.tie_groups(list(order), s)
    members = {x: [order.index(i) for i in range(count) if x in letters[i]] for x in set("".join(letters))}
    assert all(letters)
    for places in members.values():
        assert sorted(places) == list(range(min(places), max(places) + 1))  # neighbours
        assert not any(s[order[i], order[j]] for i, j in itertools.combinations(places, 2))
        for beyond in (min(places) - 1, max(places) + 1):  # maximal
            assert not 0 <= beyond < count or any(s[order[beyond], order[i]] for i in places)
    for i, j in itertools.combinations(range(count), 2):
        a, b = sorted((order.index(i), order.index(j)))
        run = [order[k] for k in range(a, b + 1)]
        free = not any(s[x, y] for x, y in itertools.combinations(run, 2))
        assert free == bool(set(letters[i]) & set(letters[j]))


def test_tie_groups_examples():
    assert S.tie_groups([2, 0, 1], table_of([(2, 1)], 3)) == ["ab", "b", "a"]
    assert S.tie_groups([0, 1, 2], table_of([], 3)) == ["a", "a", "a"]
    assert S.tie_groups([0, 1], table_of([(0, 1)], 2)) == ["a", "b"]
    # 0 and 2 do not differ, but 1 between them differs from both
    assert S.tie_groups([0, 1, 2], table_of([(0, 1), (1, 2)], 3)) == ["a", "b", "c"]
    assert S.tie_groups(range(60), ~np.eye(60, dtype=bool))[50:54] == ["Y", "Z", "(53)", "(54)"]
    assert S.tie_groups([], []) == []
    with pytest.raises(ValueError, match="permutation"):
        S.tie_groups([0, 0], table_of([], 2))


# -- one column -------------------------------------------------------------------------------------------------------


def column(shifts: dict[str, float], count: int = 60, noise: float = 0.3):
    rng = np.random.default_rng(11)
    x, codes = clustered(rng, count)
    names = [f"clip{i:04d}" for i in range(len(x))]
    table = {
        system: dict(zip(names, (x + shift + noise * rng.normal(size=len(x))).tolist(), strict=True))
        for system, shift in shifts.items()
    }
    return table, dict(zip(names, (f"speaker{c}" for c in codes), strict=True))


def test_compare_all_finds_the_order_that_is_there():
    table, clusters = column({"base": 0.0, "same": 0.0, "worse": 0.5, "worst": 2.0})
    c = S.compare_all(table, clusters, direction="lower", baseline="base", seed=1)
    rows = {s.system: s for s in c.standings}
    assert [s.system for s in c.standings] == ["base", "same", "worse", "worst"]
    assert [rows[n].rank for n in rows] == [(1, 2), (1, 2), (3, 3), (4, 4)]
    assert [rows[n].letters for n in rows] == ["a", "a", "b", "c"]
    assert rows["base"].versus is None
    assert rows["worst"].versus.difference.estimate == pytest.approx(2.0, abs=0.1)
    assert (rows["worst"].versus.first, rows["worst"].versus.second) == ("worst", "base")
    assert rows["worst"].versus.significant and not rows["same"].versus.significant
    assert c.common == c.best == len(clusters) and c.on_common and c.notes == ()

    up = S.compare_all(table, clusters, direction="higher", baseline="base", seed=1)
    assert [s.rank for s in up.standings] == [(3, 4), (3, 4), (2, 2), (1, 1)]
    plain = S.compare_all(table, clusters, direction="none", baseline="base", seed=1)
    assert {(s.rank, s.letters) for s in plain.standings} == {(None, "")}
    assert plain.pairs == c.pairs


def test_compare_all_is_made_of_its_parts():
    table, clusters = column({"a": 0.0, "b": 0.02, "c": 0.05}, noise=0.5)
    c = S.compare_all(table, clusters, direction="lower", baseline="b", seed=1, flips=3000)
    names = sorted(clusters)
    labels = [clusters[n] for n in names]
    x = {system: np.array([table[system][n] for n in names]) for system in table}
    for s in c.standings:
        i = S.cluster_bootstrap(x[s.system], labels, seed=1)
        assert (s.mean.estimate, s.mean.low, s.mean.high) == pytest.approx((i.estimate, i.low, i.high))
        assert (s.mean.n, s.mean.clusters) == (i.n, i.clusters)
    for p in c.pairs:
        d = S.paired_difference(x[p.first], x[p.second], labels, seed=1, flips=3000)
        got = p.difference
        assert (got.estimate, got.low, got.high) == pytest.approx((d.estimate, d.low, d.high))
        assert got.p == d.p
    assert [p.p_adjusted for p in c.pairs] == S.holm([p.difference.p for p in c.pairs]).tolist()
    by = {(p.first, p.second): p for p in c.pairs}
    versus = {s.system: s.versus for s in c.standings}
    assert versus["c"].difference.estimate == -by["b", "c"].difference.estimate
    assert (versus["c"].difference.low, versus["c"].difference.high) == (
        -by["b", "c"].difference.high,
        -by["b", "c"].difference.low,
    )
    assert versus["a"] == by["a", "b"]


def test_order_of_systems_and_clips_does_not_matter():
    table, clusters = column({"a": 0.0, "b": 0.1, "c": 0.2})
    c = S.compare_all(table, clusters, direction="lower", seed=1)
    turned = {s: dict(reversed(table[s].items())) for s in reversed(table)}
    d = S.compare_all(turned, dict(reversed(clusters.items())), direction="lower", seed=1)
    assert {s.system: (s.mean, s.rank, s.letters) for s in c.standings} == {
        s.system: (s.mean, s.rank, s.letters) for s in d.standings
    }
    assert {frozenset((p.first, p.second)): p.p_adjusted for p in c.pairs} == {
        frozenset((p.first, p.second)): p.p_adjusted for p in d.pairs
    }


def test_missing_clips_shrink_the_common_subset_alike():
    table, clusters = column({"a": 0.0, "b": 0.0, "c": 1.0})
    names = sorted(clusters)
    for n in names[:5]:
        del table["a"][n]
    for n in names[3:9]:
        del table["b"][n]
    c = S.compare_all(table, clusters, direction="lower", seed=1)
    rows = {s.system: s for s in c.standings}
    assert c.common == len(names) - 9 and c.best == len(names) and c.on_common
    assert {s.mean.n for s in c.standings} == {len(names) - 9}
    assert [rows[k].scored for k in "abc"] == [len(names) - 5, len(names) - 6, len(names)]
    assert {(p.first, p.second): p.difference.n for p in c.pairs} == {
        ("a", "b"): len(names) - 9,
        ("a", "c"): len(names) - 5,
        ("b", "c"): len(names) - 6,
    }
    assert rows["c"].mean.estimate == pytest.approx(np.mean([table["c"][n] for n in names[9:]]))


def test_a_system_of_few_clips_does_not_spoil_the_others():
    table, clusters = column({"a": 0.0, "b": 1.0, "few": 0.5, "none": 0.0})
    names = sorted(clusters)
    table["few"] = {n: table["few"][n] for n in names[::5]}
    table["none"] = {}
    c = S.compare_all(table, clusters, direction="lower", baseline="none", seed=1)
    rows = {s.system: s for s in c.standings}
    assert c.common == len(names) and c.on_common
    assert rows["few"].rank is None and rows["few"].letters == ""
    count = len(names[::5])
    assert rows["few"].note == f"scored {count} of {len(names)} clips: mean over its own clips, not ranked"
    assert rows["few"].mean.n == count
    assert (rows["a"].rank, rows["b"].rank) == ((1, 1), (2, 2))
    assert rows["none"].mean.estimate is None and rows["none"].mean.note == "no scored clips"
    assert all(s.versus is None for s in c.standings)
    pairs = {(p.first, p.second): p for p in c.pairs}
    assert pairs["a", "few"].difference.n == count and pairs["a", "few"].significant
    assert pairs["a", "none"].difference.note == "no common clips" and pairs["a", "none"].p_adjusted is None


def test_systems_on_disjoint_clips_are_not_compared():
    table, clusters = column({"a": 0.0, "b": 5.0})
    names = sorted(clusters)
    half = len(names) // 2
    table = {"a": {n: table["a"][n] for n in names[:half]}, "b": {n: table["b"][n] for n in names[half : 2 * half]}}
    c = S.compare_all(table, clusters, direction="lower", baseline="a", seed=1)
    assert [s.rank for s in c.standings] == [(1, 2), (1, 2)]
    assert not c.on_common
    assert c.notes == (
        f"only 0 clips are scored by every ranked system (the best-covered scored {half}): "
        "means are over each system's own clips",
    )
    assert [s.mean.n for s in c.standings] == [half, half]


def test_few_clusters_cannot_separate_many_systems_and_it_is_said():
    table, clusters = column({f"s{k}": 10.0 * k for k in range(4)}, count=4)
    c = S.compare_all(table, clusters, direction="lower", seed=1)
    assert {s.rank for s in c.standings} == {(1, 4)} and {s.letters for s in c.standings} == {"a"}
    assert c.notes == (
        "no difference can be significant: the smallest p value that the clusters allow is 0.125, "
        "and 6 pairs are tested",
    )
    assert all(s.mean.note == "few clusters (4): interval too narrow" for s in c.standings)


@pytest.mark.parametrize(("count", "p", "significant"), [(5, 0.0625, False), (6, 0.03125, True)])
def test_significance_is_at_the_stated_level(count: int, p: float, significant: bool):
    names = [f"c{i}" for i in range(count)]
    table = {"a": dict.fromkeys(names, 1.0), "b": {n: 2.0 + i for i, n in enumerate(names)}}
    (pair,) = S.compare_all(table, {n: n for n in names}, direction="lower", seed=1).pairs
    assert (pair.p_adjusted, pair.significant) == (p, significant)
    assert S.compare_all(table, {n: n for n in names}, direction="lower", seed=1, level=0.9).pairs[0].significant
    # at the edge: 0.05 is not exactly 1 - 0.95
    assert S.compare_all(table, {n: n for n in names}, direction="lower", seed=1, level=1 - p).pairs[0].significant


def test_enough_flips_for_a_large_family():
    # with 2,000 flips the least p of 105 pairs would be 105 / 2001 > 0.05, and nothing could ever differ
    table, clusters = column({f"s{k:02d}": 3.0 * k for k in range(15)}, count=40)
    c = S.compare_all(table, clusters, direction="lower", seed=1)
    assert all(p.significant for p in c.pairs) and len(c.pairs) == 105
    assert [s.rank for s in c.standings] == [(k, k) for k in range(1, 16)]


def test_compare_all_names_what_is_wrong():
    table, clusters = column({"a": 0.0, "b": 1.0}, count=12)
    with pytest.raises(UsageError, match="baseline 'opus' is not among the systems: a, b"):
        S.compare_all(table, clusters, direction="lower", baseline="opus", seed=1)
    first = sorted(clusters)[0]
    with pytest.raises(ValueError, match=f"sample '{first}' has no cluster"):
        S.compare_all(table, {k: v for k, v in clusters.items() if k != first}, direction="lower", seed=1)
    table["b"][first] = math.nan
    with pytest.raises(ValueError, match=f"b, {first}: the score is nan"):
        S.compare_all(table, clusters, direction="lower", seed=1)


def test_compare_all_of_nothing_and_of_one():
    assert S.compare_all({}, {}, direction="lower", seed=1).standings == ()
    empty = S.compare_all({"a": {}, "b": {}}, {}, direction="lower", seed=1)
    assert [s.mean.estimate for s in empty.standings] == [None, None] and empty.notes == ()
    table, clusters = column({"a": 0.0}, count=12)
    (one,) = S.compare_all(table, clusters, direction="lower", baseline="a", seed=1).standings
    assert (one.rank, one.letters, one.versus) == ((1, 1), "a", None)


# -- cost --------------------------------------------------------------------------------------------------------------


def test_import_costs_no_scipy():
    code = "import sys, evalkit.statistics; print(sorted({m.split('.')[0] for m in sys.modules} & {'scipy', 'torch'}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- the figures of the design page -----------------------------------------------------------------------------------


def main() -> None:
    print("95 % intervals: coverage")
    for sizes, noise in (("equal", "normal"), ("unequal", "normal"), ("unequal", "skewed"), ("extreme", "normal")):
        cells = [f"G={g}: {interval_coverage(4000, g, sizes, noise)[0]:.3f}" for g in (3, 5, 10, 20, 30, 100)]
        print(f"  {sizes}, {noise}: ", "  ".join(cells), flush=True)
    naive = [f"G={g}: {interval_coverage(1000, g, naive=True, replicates=500)[0]:.3f}" for g in (10, 30, 100)]
    print("  unequal, normal, clusters ignored: ", "  ".join(naive), flush=True)
    print("paired test at 0.05: false positives")
    for noise in NOISE:
        cells = [f"G={g}: {false_positives(4000, g, noise):.3f}" for g in (5, 6, 10, 12, 20, 30, 100)]
        print(f"  {noise}: ", "  ".join(cells), flush=True)
    print("  normal, clusters ignored: ", f"G=30: {false_positives(1000, 30, naive=True):.3f}", flush=True)
    print("family of 15 pairs at 0.05, 20 clusters: wrong rejection anywhere, with Holm and without")
    for different in (0, 2):
        holm, raw = family_errors(1000, 20, different=different)
        print(f"  {different} of 6 systems differ: {holm:.3f}  {raw:.3f}", flush=True)


if __name__ == "__main__":
    main()
