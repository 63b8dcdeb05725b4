"""PCM: uniform and mu-law quantisers with closed forms, anchors against which measures are checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evalkit.audio import Clip
from evalkit.errors import UsageError
from evalkit.registry import system
from evalkit.tokens import Tokens

MU = 255


@system(
    "pcm",
    role="anchor",
    licence="Apache-2.0",
    summary="uniform quantiser of N bits a sample at the clip's own rate",
    citation="Bennett (1948), Spectra of quantized signals, Bell Syst. Tech. J. 27(3)",
)
@dataclass(frozen=True)
class Pcm:
    """Uniform mid-rise quantiser: 2**bits cells of width 2 / (2**bits - 1/2), each decoded to its centre.

    The SNR of a full-scale sine is 6.02 N + 1.76 dB within 0.25 dB from N = 2 on. The quantiser's range is full scale
    and a quarter of a step: with steps of 2 / 2**bits the crests of the sine, where it spends most of its time, would
    fall on the outer edges of the last cells, which costs 1.0 dB at 2 bits and 0.53 dB at 4. Mid-rise uses all 2**N
    codes without overload; its price is that silence decodes to half a step, not to 0. What lies beyond the range gets
    the outermost code. One codebook a channel, one frame a sample.

    Args:
        bits: 1 to 24.
    """

    parameters = 0

    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 24:
            raise UsageError(f"pcm:{self.bits}: bits must be 1 to 24")

    def encode(self, clip: Clip) -> Tokens:
        half = 2 ** (self.bits - 1)
        cells = np.floor(clip.samples.astype(np.float64) * (half - 0.25)) + half
        return _sample_tokens(clip, np.clip(cells, 0, 2 * half - 1).astype(np.int64), 2 * half)

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        half = 2 ** (self.bits - 1)
        return Clip((tokens.codes.astype(np.float64) - half + 0.5) / (half - 0.25), tokens.sample_rate)


@system(
    "mulaw",
    role="anchor",
    licence="Apache-2.0",
    summary="mu-law companding, 8 bits a sample at the clip's own rate",
    citation="ITU-T G.711 (1988), in the closed form of van den Oord et al. (2016), WaveNet, section 2.2",
)
@dataclass(frozen=True)
class MuLaw:
    """mu-law with mu = 255 in its closed form: y = sign(x) ln(1 + mu |x|) / ln(1 + mu), 256 even steps of y over -1..1.

    The codes are ``floor((y + 1) / 2 * 255 + 0.5)`` (-1 is 0, 0 is 128, 1 is 255), as in WaveNet and torchaudio; G.711
    itself approximates the curve by 16 segments. Samples beyond +-1 are clipped. One codebook a channel.
    """

    parameters = 0

    def encode(self, clip: Clip) -> Tokens:
        x = np.clip(clip.samples.astype(np.float64), -1, 1)
        y = np.sign(x) * np.log1p(MU * np.abs(x)) / np.log1p(MU)
        return _sample_tokens(clip, np.floor((y + 1) / 2 * MU + 0.5).astype(np.int64), MU + 1)

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        y = tokens.codes.astype(np.float64) / MU * 2 - 1
        return Clip(np.sign(y) * np.expm1(np.abs(y) * np.log1p(MU)) / MU, tokens.sample_rate)


def _sample_tokens(clip: Clip, codes: np.ndarray, size: int) -> Tokens:
    return Tokens(codes, (size,) * clip.channels, float(clip.sample_rate), clip.length, clip.sample_rate)
