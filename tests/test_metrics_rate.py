"""Rate measures against published configurations, scipy.stats and closed forms."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit import registry
from evalkit.errors import NotApplicable
from evalkit.metrics import rate
from evalkit.metrics.rate import (
    CODES,
    RATE,
    code_counts,
    code_kbps,
    container_kbps,
    nominal_kbps,
    side_kbps,
    tokens_per_s,
    total_kbps,
)
from evalkit.tokens import Tokens


def tokens(codes: Any, sizes: tuple[int, ...], seconds: float = 1.0, frame_rate: float = 75, **extra: float) -> Tokens:
    return Tokens(np.asarray(codes), sizes, frame_rate, round(seconds * 24000), 24000, **extra)


def combine(name: str, statistics: list[Mapping[str, Any]], weights: Any) -> Any:
    function = registry.get("metrics", name).combine
    assert function is not None
    return function(statistics, weights)


def random_corpus(seed: int, clips: int = 12, sizes: tuple[int, ...] = (16, 300)) -> list[Tokens]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(clips):
        frames = int(rng.integers(1, 200))
        skewed = [np.minimum(k - 1, rng.geometric(4 / k, frames) - 1) for k in sizes]
        out.append(tokens(np.array(skewed), sizes, seconds=frames / 75))
    return out


def test_registered_under_the_declared_names() -> None:
    for names, level in ((RATE, "sample"), (CODES, "corpus")):
        for name in names:
            info = registry.get("metrics", name)
            assert (info.group, info.level, info.needs) == ("rate", level, ("tokens",)) and info.summary
            assert info.direction == ("lower" if name.endswith("kbps") else "none")


@pytest.mark.parametrize(
    ("sizes", "frame_rate", "kbps"),
    [
        ((1024,) * 2, 75, 1.5),  # EnCodec 24 kHz
        ((1024,) * 8, 75, 6.0),
        ((2048,) * 8, 12.5, 1.1),  # Mimi
        ((4096,), 75, 0.9),  # WavTokenizer; one survey prints 0.98 (13 bits)
        ((4096,), 40, 0.48),
        ((16384,), 75, 1.05),  # UniCodec; one table prints 12
        ((1024,) * 9, 86.1328125, 7.7520),  # DAC 44.1 kHz
    ],
)
def test_published_configurations(sizes: tuple[int, ...], frame_rate: float, kbps: float) -> None:
    t = tokens(np.zeros((len(sizes), 10), int), sizes, frame_rate=frame_rate)
    assert nominal_kbps(t) == pytest.approx(kbps, abs=5e-5)


def test_padding_side_and_container_are_counted() -> None:
    t = tokens(np.zeros((2, 76), int), (1024, 4096), 1.01, side_bits=64, container_bits=800)
    assert nominal_kbps(t) == pytest.approx(1.65)
    assert code_kbps(t) == pytest.approx(76 * 22 / 1.01 / 1000)
    assert code_kbps(t) > nominal_kbps(t)
    assert side_kbps(t) == pytest.approx(0.064 / 1.01) and container_kbps(t) == pytest.approx(0.8 / 1.01)
    assert total_kbps(t) == pytest.approx(code_kbps(t) + side_kbps(t) + container_kbps(t))
    assert tokens_per_s(t) == pytest.approx(152 / 1.01)


def test_byte_stream_rate_is_its_bytes() -> None:
    payload = np.frombuffer(b"opus packets of some sort" * 30, np.uint8)[None]
    t = tokens(payload, (256,), seconds=2.0, frame_rate=payload.size / 2.0)
    assert nominal_kbps(t) == code_kbps(t) == pytest.approx(payload.size * 8 / 2 / 1000)


# -- entropy ----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000))
def test_against_scipy_stats(seed: int) -> None:
    from scipy.stats import entropy

    corpus = random_corpus(seed)
    seconds = sum(t.seconds for t in corpus)
    pooled = [np.concatenate([t.codes[k] for t in corpus]) for k in range(2)]
    bits = [entropy(np.bincount(p), base=2) for p in pooled]
    n = len(pooled[0])
    statistics, ones = [code_counts(t) for t in corpus], np.ones(len(corpus))
    assert combine("entropy_kbps", statistics, ones) == pytest.approx(n * sum(bits) / seconds / 1000)
    assert combine("entropy_ratio", statistics, ones) == pytest.approx(sum(bits) / math.log2(16 * 300))
    assert combine("perplexity", statistics, ones) == pytest.approx(np.mean(np.exp2(bits)))
    use = np.mean([len(set(pooled[0])) / 16, len(set(pooled[1])) / 300])
    assert combine("codebook_use", statistics, ones) == pytest.approx(use)


@given(seed=st.integers(0, 10_000))
def test_weights_are_repetitions(seed: int) -> None:
    """A bootstrap replicate is a corpus in which clips repeat; 2-D weights give all replicates at once."""
    statistics = [code_counts(t) for t in random_corpus(seed, clips=6)]
    weights = np.random.default_rng(seed).multinomial(6, np.full(6, 1 / 6), 5)
    for name in CODES:
        together = combine(name, statistics, weights)
        assert together.shape == (5,)
        for w, value in zip(weights, together, strict=True):
            repeated = [s for s, times in zip(statistics, w, strict=True) for _ in range(times)]
            assert value == pytest.approx(combine(name, repeated, np.ones(6)))
            one = combine(name, statistics, w)
            assert isinstance(one, float) and one == pytest.approx(value, rel=1e-12)


def test_closed_forms() -> None:
    even = [code_counts(tokens([np.arange(1024)], (1024,), 1024 / 75))]
    one = np.ones(1)
    assert combine("entropy_kbps", even, one) == pytest.approx(0.75)  # = the nominal rate
    assert combine("entropy_ratio", even, one) == combine("codebook_use", even, one) == 1.0
    assert combine("perplexity", even, one) == pytest.approx(1024)
    constant = [code_counts(tokens(np.full((1, 75), 7), (1024,)))]
    assert combine("entropy_kbps", constant, one) == combine("entropy_ratio", constant, one) == 0.0
    assert combine("perplexity", constant, one) == 1.0
    assert combine("codebook_use", constant, one) == 1 / 1024
    biased = [code_counts(tokens([[0, 0, 0, 1]], (2,), 1.0))]  # p = 1/4
    assert combine("entropy_ratio", biased, one) == pytest.approx(0.811278, abs=1e-6)


def test_entropy_never_exceeds_the_codes_rate() -> None:
    corpus = random_corpus(3)
    pooled = sum(t.code_bits for t in corpus) / sum(t.seconds for t in corpus) / 1000
    assert 0 < combine("entropy_kbps", [code_counts(t) for t in corpus], np.ones(len(corpus))) < pooled


def test_short_corpus_is_biased_low_as_documented() -> None:
    """Uniform codes: the plug-in estimate falls short by (K - 1) / (2 N ln 2) bits."""
    rng = np.random.default_rng(0)
    statistics = [code_counts(tokens(rng.integers(0, 256, (1, 500)), (256,), 500 / 75)) for _ in range(20)]
    bits = combine("entropy_ratio", statistics, np.ones(20)) * 8
    assert 8 - bits == pytest.approx(255 / (2 * 10_000 * math.log(2)), rel=0.15)


def test_clips_of_different_codebook_counts_pool() -> None:
    """A stereo clip coded as two rows pools with mono ones: each row's own codes count."""
    mono = code_counts(tokens([[0, 1, 2, 3]], (4,), 1.0))
    stereo = code_counts(tokens([[0, 1, 2, 3], [0, 0, 1, 1]], (4, 4), 1.0))
    assert combine("entropy_kbps", [mono, stereo], np.ones(2)) == pytest.approx((8 * 2 + 4 * 1) / 2 / 1000)
    assert combine("entropy_ratio", [mono, stereo], np.ones(2)) == pytest.approx((8 * 2 + 4 * 1) / 24)
    assert combine("codebook_use", [mono, stereo], np.ones(2)) == pytest.approx((1 + 0.5) / 2)


def test_not_applicable() -> None:
    a, b = code_counts(tokens([[0, 1]], (4,))), code_counts(tokens([[0, 1]], (8,)))
    none = code_counts(tokens(np.zeros((1, 0), int), (4,)))
    for name in CODES:
        with pytest.raises(NotApplicable, match="codebook 0 has 4 codes in some clips and 8 in others"):
            combine(name, [a, b], np.ones(2))
        for empty in ([none, none], []):
            with pytest.raises(NotApplicable, match="no tokens"):
                combine(name, empty, np.ones(len(empty)))
        assert math.isfinite(combine(name, [a, none], np.ones(2)))
        assert np.isfinite(combine(name, [a, none], np.array([[0, 2], [1, 1]]))).all()


def test_large_codebooks_stay_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    statistics = [code_counts(tokens(rng.integers(0, 65536, (1, 500)), (65536,), 5.0)) for _ in range(100)]
    weights = rng.multinomial(100, np.full(100, 0.01), 200)
    expected = combine("entropy_kbps", statistics, weights)
    monkeypatch.setattr(rate, "_BLOCK", 1 << 18)
    tracemalloc.start()
    values = combine("entropy_kbps", statistics, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.allclose(values, expected, rtol=1e-12, atol=0)
    used = len(np.unique(np.concatenate([s["code"] for s in statistics])))
    assert peak < 200 * used * 8 / 3  # the dense [replicates, codes] matrix alone would be 200 x used x 8 bytes
