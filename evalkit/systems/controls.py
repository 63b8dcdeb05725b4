"""Controls: the ceilings and floors every table needs, none of which emits tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evalkit.audio import SAMPLE_RATES, Clip, fit_length
from evalkit.audio import resample as resample_clip
from evalkit.errors import UsageError
from evalkit.registry import system


@system("identity", role="ceiling", licence="Apache-2.0", summary="the clip itself, sample for sample")
@dataclass(frozen=True)
class Identity:
    """The unchanged clip: every distance must be 0 and every similarity its best value."""

    parameters = 0

    def reconstruct(self, clip: Clip, seed: int) -> Clip:
        return clip.with_samples(clip.samples.copy())


@system("silence", role="floor", licence="Apache-2.0", summary="zeros of the clip's length")
@dataclass(frozen=True)
class Silence:
    """Zeros. Its MSE over signal power is exactly 0 dB; a system above that is worse than nothing."""

    parameters = 0

    def reconstruct(self, clip: Clip, seed: int) -> Clip:
        return clip.with_samples(np.zeros_like(clip.samples))


@system(
    "noise",
    role="floor",
    licence="Apache-2.0",
    stochastic=True,
    summary="Gaussian noise with the clip's long-term spectrum and power, no temporal structure",
    citation="Welch (1967), The use of FFT for the estimation of power spectra, IEEE Trans. Audio Electroacoust. 15(2)",
)
@dataclass(frozen=True)
class Noise:
    """Stationary Gaussian noise, spectrally matched, channel by channel.

    White noise of ``np.random.default_rng(seed)`` is multiplied, over its whole length, by the square root of the
    clip's power spectral density and scaled to the clip's power. The density is Welch's average of Hann windows of
    ``window_ms`` milliseconds with half overlap (mean not removed); at most the whole clip. No envelope is matched:
    what is left is exactly the long-term magnitude spectrum. A silent channel stays silent.

    Args:
        window_ms: length of the analysis window; sets the resolution of the spectrum (64 ms: about 23 Hz).
    """

    parameters = 0

    window_ms: float = 64.0

    def __post_init__(self) -> None:
        if not 1 <= self.window_ms <= 10_000:
            raise UsageError(f"noise@window_ms={self.window_ms:g}: must be 1 to 10000 ms")

    def reconstruct(self, clip: Clip, seed: int) -> Clip:
        import scipy.fft
        import scipy.signal

        rng = np.random.default_rng(seed)
        x = clip.samples.astype(np.float64)
        window = min(clip.length, max(16, round(self.window_ms * clip.sample_rate / 1000)))
        frequencies, density = scipy.signal.welch(x, nperseg=window, detrend=False, scaling="density")
        size = scipy.fft.next_fast_len(clip.length, real=True)
        bins = np.arange(size // 2 + 1) / size
        out = np.zeros_like(x)
        for channel in range(clip.channels):
            white = scipy.fft.rfft(rng.standard_normal(size))
            # A one-sided density halves the DC and Nyquist bins; below the first bin its neighbour is the better guess.
            shape = np.sqrt(np.interp(bins, frequencies, density[channel]))
            y = scipy.fft.irfft(white * shape, size)[: clip.length]
            power = float(np.mean(y**2))
            if power > 0:
                out[channel] = y * np.sqrt(np.mean(x[channel] ** 2) / power)
        return clip.with_samples(out)


@system(
    "resample",
    role="ceiling",
    licence="Apache-2.0",
    requires=("soxr",),
    summary="down to a sample rate and back (soxr HQ): the ceiling of anything that works at that rate",
)
@dataclass(frozen=True)
class Resample:
    """Resampled to ``rate`` Hz and back by soxr HQ; clips at or below that rate pass unchanged."""

    parameters = 0

    rate: int

    def __post_init__(self) -> None:
        if not SAMPLE_RATES[0] <= self.rate <= SAMPLE_RATES[1]:
            raise UsageError(f"resample:{self.rate}: the rate must be {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} Hz")

    def reconstruct(self, clip: Clip, seed: int) -> Clip:
        if clip.sample_rate <= self.rate:
            return clip.with_samples(clip.samples.copy())
        back = resample_clip(resample_clip(clip, self.rate), clip.sample_rate)
        return clip.with_samples(fit_length(back.samples, clip.length))
