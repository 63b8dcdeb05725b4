"""`mdct:KBPS`: the largest MDCT coefficients of a clip, entropy-coded into real bytes: a transform alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalkit.audio import Clip
from evalkit.errors import ContractError, NotApplicable, UsageError
from evalkit.registry import system
from evalkit.tokens import Tokens

BAND = 16
"""Coefficients of a frame that share one 'anything here?' flag."""

STEPS_PER_OCTAVE = 128
"""Resolution of the transmitted quantiser step."""

ROUNDING = 0.36
"""A magnitude is kept from 0.64 steps on: the dead zone that suits a peaked density (0.5 would be plain rounding)."""


@system(
    "mdct",
    role="anchor",
    licence="Apache-2.0",
    requires=("scipy",),
    summary="the k largest MDCT coefficients, entropy-coded; k is the largest that fits the rate",
    citation="Princen, Johnson, Bradley (1987), Subband/transform coding using filter bank designs based on time "
    "domain aliasing cancellation, ICASSP; Witten, Neal, Cleary (1987), Arithmetic coding for data compression",
)
@dataclass(frozen=True)
class Mdct:
    """Top-k MDCT codec: sine window, no psychoacoustics, least squared error for its bits.

    The k largest coefficients of the whole clip (all channels) are kept and uniformly quantised with the step that puts
    the k-th at the edge of the dead zone; places, signs and sizes go through a context-adaptive binary arithmetic
    coder. The output bytes are the codes, and they are all that is decoded (beside the length and rate that every
    system is given). k is searched so that the bytes do not exceed ``kbps`` times the clip's duration; 90 % or more of
    that is used unless the clip has no more coefficients to send. A budget below the 4-byte header is n/a.

    Args:
        kbps: kilobits per second, all channels together.
        frame_ms: hop of the transform; rounded to a multiple of 16 samples (the window is twice as long).
    """

    parameters = 0

    kbps: float
    frame_ms: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.kbps <= 2000:
            raise UsageError(f"mdct:{self.kbps:g}: the rate must be above 0 and at most 2000 kbps")
        if not 2 <= self.frame_ms <= 200:
            raise UsageError(f"mdct@frame_ms={self.frame_ms:g}: must be 2 to 200 ms")

    def hop(self, sample_rate: int) -> int:
        """Coefficients per frame at ``sample_rate`` Hz."""
        return min(4080, max(BAND, BAND * round(self.frame_ms * sample_rate / 1000 / BAND)))

    def encode(self, clip: Clip) -> Tokens:
        coefficients = np.stack([forward(x, self.hop(clip.sample_rate)) for x in clip.samples])
        data = _fit(coefficients, int(self.kbps * clip.seconds * 1000 / 8))
        codes = np.frombuffer(data, dtype=np.uint8)[None, :]
        return Tokens(codes, (256,), len(data) / clip.seconds, clip.length, clip.sample_rate)

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        hop = self.hop(tokens.sample_rate)
        frames = frame_count(tokens.samples, hop)
        coefficients = _unpack(tokens.codes[0].tobytes(), frames, hop)
        return Clip(np.stack([inverse(c, tokens.samples) for c in coefficients]), tokens.sample_rate)


# -- transform --------------------------------------------------------------------------------------------------------


def frame_count(length: int, hop: int) -> int:
    return -(-length // hop) + 1


def forward(x: np.ndarray, hop: int) -> np.ndarray:
    """Orthonormal MDCT with a sine window of ``2 * hop`` samples: ``[samples]`` to ``[frame_count, hop]``.

    The signal is preceded by ``hop`` zeros and followed by enough for whole frames, so that `inverse` is exact.
    """
    import scipy.fft

    frames = frame_count(len(x), hop)
    padded = np.zeros((frames + 1) * hop)
    padded[hop : hop + len(x)] = x
    blocks = padded.reshape(frames + 1, hop)
    window = _window(hop)
    first, second = blocks[:-1] * window[:hop], blocks[1:] * window[hop:]
    half = hop // 2
    # With a window split into quarters (a b c d), the MDCT is the DCT-IV of (-c_reversed - d, a - b_reversed).
    folded = np.empty((frames, hop))
    folded[:, :half] = -second[:, :half][:, ::-1] - second[:, half:]
    folded[:, half:] = first[:, :half] - first[:, half:][:, ::-1]
    return scipy.fft.dct(folded, type=4, norm="ortho", axis=1)


def inverse(coefficients: np.ndarray, length: int) -> np.ndarray:
    """The inverse of `forward`: ``[frames, hop]`` to ``length`` samples."""
    import scipy.fft

    frames, hop = coefficients.shape
    half = hop // 2
    folded = scipy.fft.dct(coefficients, type=4, norm="ortho", axis=1)
    left, right = folded[:, :half], folded[:, half:]
    window = _window(hop)
    out = np.zeros((frames + 1, hop))
    out[:-1] += np.concatenate([right, -right[:, ::-1]], axis=1) * window[:hop]
    out[1:] += np.concatenate([-left[:, ::-1], -left], axis=1) * window[hop:]
    return out.reshape(-1)[hop : hop + length]


def _window(hop: int) -> np.ndarray:
    return np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop))


# -- rate -------------------------------------------------------------------------------------------------------------


def _fit(coefficients: np.ndarray, budget: int) -> bytes:
    """The stream of at most ``budget`` bytes that keeps the most coefficients of ``[channels, frames, hop]``."""
    if budget < HEADER.size:
        raise NotApplicable(f"the clip's budget of {budget} bytes does not hold the {HEADER.size}-byte header")
    magnitudes = np.abs(coefficients).ravel()
    magnitudes = magnitudes[magnitudes > 1e-6]  # -120 dB of a full-scale sample
    most = min(magnitudes.size, 8 * budget)  # a coefficient costs more than its sign bit
    if not most:
        return _pack(coefficients, 0)
    magnitudes = -np.sort(-np.partition(magnitudes, magnitudes.size - most)[magnitudes.size - most :])

    best, fits, too_many = _pack(np.zeros_like(coefficients), 0), 0, most + 1
    kept = min(most, max(1, 8 * budget // 7))
    while fits + 1 < too_many:
        data = _pack(coefficients, int(np.ceil(STEPS_PER_OCTAVE * np.log2(magnitudes[kept - 1] / (1 - ROUNDING)))))
        if len(data) <= budget:
            best, fits = data, kept
            if len(data) >= 0.96 * budget:
                break
        else:
            too_many = kept
        proposal = int(kept * 0.985 * (budget - HEADER.size) / max(1, len(data) - HEADER.size))
        if not fits < proposal < too_many:
            proposal = (fits + too_many) // 2
        kept = proposal
    return best


# -- stream -----------------------------------------------------------------------------------------------------------

HEADER = struct.Struct("<BhB")  # channels, step in 1/128 octaves, bands in use


def _pack(coefficients: np.ndarray, step: int) -> bytes:
    scaled = coefficients / 2 ** (step / STEPS_PER_OCTAVE)
    q = (np.sign(scaled) * np.floor(np.abs(scaled) + ROUNDING)).astype(np.int64)
    used = np.flatnonzero(q.any(axis=(0, 1)))
    bands = 0 if used.size == 0 else int(used[-1]) // BAND + 1
    coder = _Encoder()
    for channel in q[:, :, : bands * BAND]:
        _code(coder, np.pad(channel, ((0, 0), (2, 2))).tolist(), bands)
    return HEADER.pack(len(q), step, bands) + coder.finish()


def _unpack(data: bytes, frames: int, hop: int) -> np.ndarray:
    if len(data) < HEADER.size:
        raise ContractError(f"mdct: {len(data)} bytes are shorter than the header")
    channels, step, bands = HEADER.unpack_from(data)
    coder = _Decoder(data[HEADER.size :])
    q = np.zeros((channels, frames, hop))
    for channel in q:
        rows = [[0] * (bands * BAND + 4) for _ in range(frames)]
        _code(coder, rows, bands)
        channel[:, : bands * BAND] = np.array(rows).reshape(frames, -1)[:, 2:-2]
    return q * 2 ** (step / STEPS_PER_OCTAVE)


FLAG, COEFFICIENT, SIZE, ESCAPE, SIGN = 0, 32, 64, 128, 192
CONTEXTS = 193
UNARY = 15


def _code(coder: Any, rows: list[list[int]], bands: int) -> None:
    """Pass one channel through the coder: written when encoding, filled in when decoding.

    Rows have two zeros of margin on either side. Contexts look at the frame before and the coefficients below.
    """
    bit = coder.bit
    before = [0] * (bands * BAND + 4)
    flags_before = [0] * (bands + 1)
    for row in rows:
        flags = [0] * (bands + 1)
        lower = 0
        for b in range(bands):
            start = 2 + b * BAND
            region = 0 if b < 2 else 1 if b < 8 else 2 if b < 24 else 3
            context = FLAG + 8 * region + 4 * flags_before[b] + 2 * flags_before[b + 1] + lower
            lower = flags[b] = bit(context, 1 if any(row[start : start + BAND]) else 0)
            if not lower:
                continue
            empty = True
            for k in range(start, start + BAND):
                near = (
                    2 * abs(before[k]) + abs(before[k - 1]) + abs(before[k + 1]) + 2 * abs(row[k - 1]) + abs(row[k - 2])
                )
                if empty and k == start + BAND - 1:
                    significant = 1  # the flag promised one
                else:
                    significant = bit(COEFFICIENT + (near if near < 16 else 15), 1 if row[k] else 0)
                if significant:
                    empty = False
                    negative = bit(SIGN, 1 if row[k] < 0 else 0)
                    size = _size(bit, abs(row[k]), near)
                    row[k] = -size if negative else size
        before, flags_before = row, flags


def _size(bit: Any, size: int, near: int) -> int:
    """A magnitude of at least 1: unary in adaptive bits, beyond `UNARY` by an Exp-Golomb code."""
    base = SIZE + UNARY * (0 if near < 2 else 1 if near < 5 else 2 if near < 10 else 3)
    n = 1
    while n < UNARY:
        if not bit(base + n - 1, 1 if size > n else 0):
            return n
        n += 1
    rest = size - UNARY + 1
    width = 1
    while bit(ESCAPE + min(width, 60), 1 if rest >> width else 0):
        width += 1
    value = 1
    for i in range(width - 2, -1, -1):
        value = 2 * value + bit(SIGN, rest >> i & 1)
    return value + UNARY - 1


TOP = 0xFFFFFFFF
RATES = [round(65536 / (n + 1.6)) for n in range(256)]
"""Adaptation speed by the number of bits seen in a context: a running mean at first, 1/257 at the slowest."""


class _Model:
    """Adaptive probabilities of a 1, in 1/65536, one a context; `SIGN` stays at one half."""

    def __init__(self) -> None:
        self.p = [32768] * CONTEXTS
        self.seen = [0] * CONTEXTS
        self.low, self.high = 0, TOP

    def adapt(self, context: int, value: int) -> None:
        if context == SIGN:
            return
        n = self.seen[context]
        p = self.p[context]
        self.p[context] = p + ((65536 - p) * RATES[n] >> 16) if value else p - (p * RATES[n] >> 16)
        if n < 255:
            self.seen[context] = n + 1


class _Encoder(_Model):
    """Binary arithmetic coder with a 32-bit interval; equal leading bytes of its ends are shifted out."""

    def __init__(self) -> None:
        super().__init__()
        self.out = bytearray()

    def bit(self, context: int, value: int) -> int:
        middle = self.low + (self.high - self.low >> 16) * self.p[context]
        if value:
            self.high = middle
        else:
            self.low = middle + 1
        while not (self.low ^ self.high) >> 24:
            self.out.append(self.high >> 24)
            self.low = self.low << 8 & TOP
            self.high = self.high << 8 & TOP | 255
        self.adapt(context, value)
        return value

    def finish(self) -> bytes:
        """The shortest ending within the interval; the decoder reads zeros beyond the end."""
        for n in range(5):
            last = self.high >> 8 * (4 - n) << 8 * (4 - n)
            if last >= self.low:
                return bytes(self.out + last.to_bytes(4, "big")[:n]).rstrip(b"\0")
        raise AssertionError("unreachable: high itself lies within the interval")


class _Decoder(_Model):
    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = iter(data)
        self.value = 0
        for _ in range(4):
            self.value = self.value << 8 | next(self.data, 0)

    def bit(self, context: int, _: int) -> int:
        middle = self.low + (self.high - self.low >> 16) * self.p[context]
        value = int(self.value <= middle)
        if value:
            self.high = middle
        else:
            self.low = middle + 1
        while not (self.low ^ self.high) >> 24:
            self.low = self.low << 8 & TOP
            self.high = self.high << 8 & TOP | 255
            self.value = (self.value << 8 | next(self.data, 0)) & TOP
        self.adapt(context, value)
        return value
