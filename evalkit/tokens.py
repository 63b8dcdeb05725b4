"""`Tokens`: what a system's encoder emits, and the arithmetic of its rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evalkit.errors import ContractError


@dataclass(frozen=True, eq=False)
class Tokens:
    """A clip as discrete codes, and everything else its decoder needs, with the cost of each part.

    A byte stream (Opus packets, an entropy coder's output) is one codebook of size 256 whose frame rate is its
    measured bytes per second, so that one formula gives every system's rate.

    Args:
        codes: integers ``[codebooks, frames]``, row k in ``0..sizes[k]-1``.
        sizes: number of codes K of each codebook.
        frame_rate: frames per second of audio. For a byte stream: bytes / seconds.
        samples: samples per channel of the clip that the tokens stand for, at ``sample_rate``; decode restores these.
        sample_rate: in Hz, the rate that the encoder was given.
        side_bits: bits of side information per clip that the decoder needs beside the codes (scales, offsets, ...).
        container_bits: bits that the format's own framing adds in a file (headers, packet lengths).
        side: arrays that carry the side information itself; their cost must be in ``side_bits`` or ``container_bits``.

    Raises:
        ContractError: shapes, types or ranges that do not hold together.
    """

    codes: np.ndarray
    sizes: tuple[int, ...]
    frame_rate: float
    samples: int
    sample_rate: int
    side_bits: float = 0.0
    container_bits: float = 0.0
    side: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        codes = np.asarray(self.codes)
        if not np.issubdtype(codes.dtype, np.integer):
            raise ContractError(f"codes are {codes.dtype}, expected integers [codebooks, frames]")
        if codes.ndim != 2 or codes.shape[0] != len(self.sizes):
            raise ContractError(f"codes have shape {codes.shape}, expected [codebooks={len(self.sizes)}, frames]")
        if any(k < 2 for k in self.sizes):
            raise ContractError(f"codebook sizes {self.sizes}: each must be at least 2")
        if codes.size:
            low, high = codes.min(axis=1), codes.max(axis=1)
            for k, size in enumerate(self.sizes):
                if low[k] < 0 or high[k] >= size:
                    raise ContractError(f"codebook {k} holds codes {low[k]}..{high[k]}, outside 0..{size - 1}")
        if not (math.isfinite(self.frame_rate) and self.frame_rate >= 0):
            raise ContractError(f"frame rate {self.frame_rate}")
        if self.samples < 1 or self.sample_rate < 1:
            raise ContractError(f"samples={self.samples}, sample_rate={self.sample_rate}: both must be positive")
        if not all(math.isfinite(b) and b >= 0 for b in (self.side_bits, self.container_bits)):
            raise ContractError(
                f"side_bits={self.side_bits}, container_bits={self.container_bits}: each must be finite, not negative"
            )
        smallest = np.min_scalar_type(max(self.sizes, default=2) - 1)
        object.__setattr__(self, "codes", np.ascontiguousarray(codes, dtype=smallest))
        object.__setattr__(self, "sizes", tuple(int(k) for k in self.sizes))

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate

    @property
    def code_bits(self) -> float:
        """Bits of the codes actually emitted, padding frames included: frames x sum log2 K."""
        return self.codes.shape[1] * sum(math.log2(k) for k in self.sizes)

    @property
    def nominal_kbps(self) -> float:
        """frame_rate x sum(log2 K) / 1000: the rate by configuration, as papers quote it."""
        return self.frame_rate * sum(math.log2(k) for k in self.sizes) / 1000
