"""`Tokens`: the arithmetic of rates against published ones, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import ContractError
from evalkit.tokens import Tokens


def _tokens(
    codebooks: int, size: int, frame_rate: float, seconds: float = 8.0, sample_rate: int = 24_000, **more: Any
) -> Tokens:
    frames = math.ceil(seconds * frame_rate)
    codes = np.random.default_rng(0).integers(0, size, (codebooks, frames))
    return Tokens(codes, (size,) * codebooks, frame_rate, round(seconds * sample_rate), sample_rate, **more)


@pytest.mark.parametrize(
    ("codebooks", "size", "frame_rate", "kbps"),
    [
        (2, 1024, 75, 1.5),  # EnCodec 24 kHz (Defossez 2022): 75 frames/s, 10 bits a codebook
        (4, 1024, 75, 3.0),
        (8, 1024, 75, 6.0),
        (16, 1024, 75, 12.0),
        (32, 1024, 75, 24.0),
        (8, 2048, 12.5, 1.1),  # Mimi (Defossez 2024)
        (4, 2048, 12.5, 0.55),
        (1, 1024, 23.4375, 0.234375),  # one codebook at 24,000 / 1,024 frames/s: quoted as 0.23 kbps
    ],
)
def test_nominal_rate_is_the_published_one(codebooks: int, size: int, frame_rate: float, kbps: float) -> None:
    tokens = _tokens(codebooks, size, frame_rate)
    assert tokens.nominal_kbps == pytest.approx(kbps, rel=1e-12)
    # 8 s is a whole number of frames at every one of these rates but the last, which has one frame of padding at most
    assert 0 <= tokens.code_bits / tokens.seconds / 1000 - kbps <= codebooks * math.log2(size) / 8 / 1000


def test_padding_frames_are_counted() -> None:
    tokens = Tokens(np.zeros((1, 13), int), (1024,), 12.5, 24_000, 24_000)
    assert tokens.code_bits == 130
    assert tokens.nominal_kbps == 0.125
    assert tokens.seconds == 1.0


def test_codebooks_of_different_sizes_add_up() -> None:
    tokens = Tokens(np.zeros((3, 10), int), (2, 4096, 3), 10, 16_000, 16_000)
    assert tokens.code_bits == pytest.approx(10 * (1 + 12 + math.log2(3)))


def test_a_byte_stream_has_the_rate_of_its_bytes() -> None:
    data = np.frombuffer(b"\x00\xff" * 375, np.uint8)[None]
    tokens = Tokens(data, (256,), data.size / 1.5, 24_000, 16_000)
    assert tokens.nominal_kbps == tokens.code_bits / tokens.seconds / 1000 == 4.0
    assert tokens.codes.dtype == np.uint8


def test_no_frames_is_no_bits() -> None:
    assert Tokens(np.zeros((2, 0), int), (1024, 1024), 0.0, 100, 16_000).code_bits == 0


@given(st.lists(st.integers(2, 2**20), min_size=1, max_size=6), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_codes_are_kept_exactly_in_the_smallest_type(sizes: list[int], frames: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, k, frames) for k in sizes])
    tokens = Tokens(codes, tuple(sizes), 50, 16_000, 16_000)
    assert np.array_equal(tokens.codes, codes)
    assert np.iinfo(tokens.codes.dtype).max >= max(sizes) - 1
    assert tokens.codes.dtype.itemsize == 1 or 2 ** (4 * tokens.codes.dtype.itemsize) <= max(sizes) - 1
    bits = sum(math.log2(k) for k in sizes)
    assert tokens.code_bits == pytest.approx(frames * bits)


GOOD: dict[str, Any] = {
    "codes": np.array([[0, 1, 2], [3, 4, 5]]),
    "sizes": (8, 8),
    "frame_rate": 50.0,
    "samples": 960,
    "sample_rate": 16_000,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.zeros((2, 3))}, "codes are float64"),
        ({"codes": np.zeros((2, 3), bool)}, "codes are bool"),
        ({"codes": np.zeros(3, int)}, r"codes have shape \(3,\)"),
        ({"codes": np.zeros((1, 2, 3), int)}, "codes have shape"),
        ({"sizes": (8,)}, r"expected \[codebooks=1, frames\]"),
        ({"sizes": (8, 1)}, "each must be at least 2"),
        ({"sizes": (8, 5)}, r"codebook 1 holds codes 3\.\.5, outside 0\.\.4"),
        ({"codes": np.array([[0, -1, 2], [3, 4, 5]])}, r"codebook 0 holds codes -1\.\.2"),
        ({"frame_rate": float("nan")}, "frame rate nan"),
        ({"frame_rate": float("inf")}, "frame rate inf"),
        ({"frame_rate": -1.0}, "frame rate -1"),
        ({"samples": 0}, "samples=0"),
        ({"sample_rate": 0}, "sample_rate=0"),
        ({"side_bits": -1.0}, "side_bits=-1"),
        ({"side_bits": float("nan")}, "side_bits=nan"),
        ({"container_bits": float("inf")}, "container_bits=inf"),
        ({"container_bits": -0.5}, "container_bits=-0.5"),
    ],
)
def test_what_does_not_hold_together_is_refused(change: dict[str, Any], message: str) -> None:
    Tokens(**GOOD)
    with pytest.raises(ContractError, match=message):
        Tokens(**{**GOOD, **change})
