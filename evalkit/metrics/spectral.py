"""Spectral measures: log-mel distances, multi-resolution STFT distance, delivered bandwidth.

Log-mel and STFT distances are taken at 24 kHz, to which both clips are resampled (soxr HQ), so that values mean the
same at every sample rate; what lies above 12 kHz does not count, and above a clip's own Nyquist frequency both sides
are equally empty. Frames are centred (reflected padding of half a frame), windows are periodic Hann. FFTs are float32,
means float64. Values of other variants (mel scale, log base, floor, windows) do not compare with these.
"""

from __future__ import annotations

import math

import numpy as np

from evalkit.audio import Clip, resample
from evalkit.errors import NotApplicable
from evalkit.metrics.alignment import SILENT_POWER, pair, require_sound
from evalkit.registry import metric

SPECTRAL = ("logmel_l1@n1024-h256-m100", "logmel_mse@n1024-h256-m100", "mr_stft@pwg", "bandwidth_khz")

RATE = 24_000
N_FFT, HOP, MELS = 1024, 256, 100
MEL_FLOOR = 1e-5
"""Magnitudes below are raised to it: -100 dB of a full-scale sine, so that the inaudible in silences does not count."""

PWG = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""(FFT size, hop, window) of Yamamoto et al. 2020, table 1, at 24 kHz."""
PWG_FLOOR = 1e-8
"""Clamp of the squared STFT magnitude (unscaled, as in torch.stft), auraloss' ``eps``."""

BAND_HZ = 50
RETAINED = 0.1
IN_REFERENCE = 1e-9


def hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """HTK mel scale: ``2595 log10(1 + f / 700)``.

    >>> round(float(hz_to_mel(np.array(1000.0))), 3)
    999.986
    """
    return 2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    return 700.0 * (10.0 ** (np.asarray(mel) / 2595.0) - 1.0)


def mel_filters(sample_rate: int = RATE, n_fft: int = N_FFT, bands: int = MELS) -> np.ndarray:
    """HTK mel filter bank, ``[bands, n_fft // 2 + 1]`` float64.

    Triangles of peak 1 (no area normalisation), corners equally spaced in mel from 0 Hz to half the sample rate; the
    same as librosa's ``filters.mel(htk=True, norm=None)`` and torchaudio's ``mel_scale="htk"``, ``norm=None``.

    >>> mel_filters().shape, bool(mel_filters().max() <= 1)
    ((100, 513), True)
    """
    corners = mel_to_hz(np.linspace(0.0, float(hz_to_mel(np.array(sample_rate / 2))), bands + 2))
    hz = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    low, mid, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    return np.maximum(0.0, np.minimum((hz - low) / (mid - low), (high - hz) / (high - mid)))


def log_mel(clip: Clip) -> np.ndarray:
    """Natural-log mel spectrogram at 24 kHz, ``[channels, frames, 100]`` float32, in nepers; remembered on the clip.

    Hann window and FFT of 1024, hop 256, magnitudes (not powers) scaled so that a full-scale sine on a bin has 1, HTK
    mel bands (`mel_filters`), floor 1e-5.

    Raises:
        NotApplicable: shorter than one window (42.7 ms).
    """
    return clip.memo("log_mel@n1024-h256-m100", lambda: _log_mel(clip))


def _log_mel(clip: Clip) -> np.ndarray:
    magnitude = np.sqrt(stft_power(at_24k(clip), N_FFT, HOP, N_FFT)) * np.float32(2 / (N_FFT / 2))  # Hann sums to N/2
    return np.log(np.maximum(magnitude @ mel_filters().T.astype(np.float32), np.float32(MEL_FLOOR)))


def at_24k(clip: Clip) -> Clip:
    """The clip at 24 kHz, remembered; raises NotApplicable where it is shorter than 1,024 samples there."""
    out = clip if clip.sample_rate == RATE else clip.memo("at 24 kHz", lambda: resample(clip, RATE))
    if out.length < N_FFT:
        raise NotApplicable(f"too short: {clip.seconds * 1000:.1f} ms, one window is {1000 * N_FFT / RATE:.1f} ms")
    return out


def stft_power(clip: Clip, n_fft: int, hop: int, window: int) -> np.ndarray:
    """Squared STFT magnitude, ``[channels, 1 + samples // hop, n_fft // 2 + 1]`` float32, unscaled.

    Frames are centred with reflected padding and the periodic Hann window is centred in the FFT, as in
    ``torch.stft(..., center=True, pad_mode="reflect")``.
    """
    from scipy import fft

    half = window // 2  # what the window zeroes need not be padded, only placed: magnitudes ignore the shift
    padded = np.pad(clip.samples, ((0, 0), (half, half)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1)[:, ::hop]
    spectrum = fft.rfft(frames * _hann(window), n_fft, axis=-1)
    return np.square(spectrum.real) + np.square(spectrum.imag)


@metric(
    "logmel_l1@n1024-h256-m100",
    unit="Np",
    direction="lower",
    group="spectral",
    range=(0, math.inf),
    worsens_with=("noise", "lowpass", "delay", "gain", "clipping", "bit_depth", "packet_loss", "pitch", "codec_rate"),
    invariant_to=("polarity",),
)
def logmel_l1(reference: Clip, estimate: Clip) -> float:
    """Log-mel L1 distance at 24 kHz: mean absolute difference of natural-log mel magnitudes, in nepers.

    Mean over channels, frames and 100 bands of ``|ln M_ref - ln M_est|``; see `log_mel` for the parameters. 1 Np is
    8.686 dB. A pure gain of g gives |ln g| where both are above the floor. Blind to phase: other noise with the same
    spectrum scores near zero.

    >>> x = Clip(np.random.default_rng(0).uniform(-1, 1, 24000), 24000)
    >>> round(logmel_l1(x, x.with_samples(x.samples / 2)), 4)
    0.6931

    Raises:
        NotApplicable: shorter than one window (42.7 ms).
    """
    pair(reference, estimate)
    return float(np.mean(np.abs(log_mel(reference) - log_mel(estimate)), dtype=np.float64))


@metric(
    "logmel_mse@n1024-h256-m100",
    unit="Np^2",
    direction="lower",
    group="spectral",
    range=(0, math.inf),
    worsens_with=("noise", "lowpass", "delay", "gain", "clipping", "bit_depth", "packet_loss", "pitch", "codec_rate"),
    invariant_to=("polarity",),
)
def logmel_mse(reference: Clip, estimate: Clip) -> float:
    """Log-mel MSE at 24 kHz: mean squared difference of natural-log mel magnitudes, in square nepers.

    As `logmel_l1` with the square instead of the absolute value: a few large misses weigh more.

    >>> x = Clip(np.random.default_rng(0).uniform(-1, 1, 24000), 24000)
    >>> round(logmel_mse(x, x.with_samples(x.samples / 2)), 4)
    0.4805

    Raises:
        NotApplicable: shorter than one window (42.7 ms).
    """
    pair(reference, estimate)
    return float(np.mean(np.square(log_mel(reference) - log_mel(estimate)), dtype=np.float64))


@metric(
    "mr_stft@pwg",
    unit="1",
    direction="lower",
    group="spectral",
    range=(0, math.inf),
    worsens_with=("noise", "lowpass", "delay", "gain", "clipping", "bit_depth", "packet_loss", "pitch", "codec_rate"),
    invariant_to=("polarity",),
)
def mr_stft(reference: Clip, estimate: Clip) -> float:
    """Multi-resolution STFT distance at 24 kHz, Parallel WaveGAN resolutions: spectral convergence + log-magnitude L1.

    Yamamoto, Song and Kim, ICASSP 2020, eq. 4-6 and table 1: mean over three resolutions (FFT 1024, 2048, 512; hop 120,
    240, 50; window 600, 1200, 240) of ``|S - Ŝ|_F / |S|_F`` and the mean of ``|ln S - ln Ŝ|``. As auraloss'
    `MultiResolutionSTFTLoss` by default: S the unscaled magnitude with its square clamped to 1e-8. Each channel on its
    own, then the mean.

    >>> x = Clip(np.random.default_rng(0).uniform(-1, 1, 24000), 24000)
    >>> round(mr_stft(x, x.with_samples(x.samples / 2)), 3)  # 0.5 + ln 2
    1.193

    Raises:
        NotApplicable: silent reference; shorter than 42.7 ms.
    """
    require_sound(reference, "reference")
    pair(reference, estimate)
    r, e = at_24k(reference), at_24k(estimate)
    total = 0.0
    for n_fft, hop, window in PWG:
        key = ("stft", n_fft, hop, window)
        s = reference.memo(key, lambda n=n_fft, h=hop, w=window: _magnitude(r, n, h, w))  # type: ignore[misc]
        t = _magnitude(e, n_fft, hop, window)
        energy = np.sum(np.square(s, dtype=np.float64), axis=(1, 2))
        convergence = np.sqrt(np.sum(np.square(s - t, dtype=np.float64), axis=(1, 2)) / energy)
        total += float(np.mean(convergence)) + float(np.mean(np.abs(np.log(t / s)), dtype=np.float64))
    return total / len(PWG)


def _magnitude(clip: Clip, n_fft: int, hop: int, window: int) -> np.ndarray:
    return np.sqrt(np.maximum(stft_power(clip, n_fft, hop, window), np.float32(PWG_FLOOR)))


@metric(
    "bandwidth_khz",
    unit="kHz",
    direction="higher",
    group="spectral",
    range=(0, math.inf),
    worsens_with=("lowpass", "codec_rate"),
    invariant_to=("delay", "gain", "polarity"),
)
def bandwidth_khz(reference: Clip, estimate: Clip) -> float:
    """Delivered bandwidth in kHz: up to where the estimate keeps the reference's long-term spectrum.

    Long-term power spectra of both (Hann frames of 20 ms, half overlapping, at the clip's own rate; mean of channels)
    in bands of 50 Hz from 75 Hz up, the estimate's brought to the reference's total power. Bands in which the reference
    has less than -90 dB of its total do not count. A band is kept when the estimate has at least -10 dB of the
    reference's power there. The value is the upper edge of the band that parts kept (below) from lost (above) with the
    fewest bands on the wrong side, the lower one of ties, 0 where no band is kept: single holes and single spurious
    bands move it little. The frames' resolution adds up to 0.1 kHz above a steep cut. It cannot exceed what the
    reference itself contains (`identity` shows that ceiling), and energy of any kind counts: noise in the place of the
    lost band is delivered bandwidth.

    >>> noise = np.random.default_rng(0).standard_normal(48000)
    >>> spectrum = np.fft.rfft(noise)
    >>> spectrum[4000:] = 0
    >>> low = np.fft.irfft(spectrum)
    >>> bandwidth_khz(Clip(noise, 48000), Clip(low, 48000)), bandwidth_khz(Clip(noise, 48000), Clip(noise, 48000))
    (4.075, 24.0)

    Raises:
        NotApplicable: a signal silent above 75 Hz; shorter than 20 ms.
    """
    require_sound(reference, "reference")
    require_sound(estimate, "estimate")
    pair(reference, estimate)
    r, e = long_term_power(reference), long_term_power(estimate)
    there = np.flatnonzero(r > IN_REFERENCE * r.sum())
    for what, spectrum in (("reference", r), ("estimate", e)):
        if spectrum.sum() < SILENT_POWER:
            raise NotApplicable(f"the {what} is silent above 75 Hz (below -120 dB FS)")
    kept = e[there] / e.sum() >= RETAINED * r[there] / r.sum()
    balance = np.cumsum(np.where(kept, 1, -1))
    if balance.max() <= 0:
        return 0.0
    n = _band_fft(reference.sample_rate)
    edge = (there[np.argmax(balance)] + 2.5) * reference.sample_rate / n
    return float(min(edge, reference.sample_rate / 2) / 1000)


def long_term_power(clip: Clip) -> np.ndarray:
    """Power per 50 Hz band from 75 Hz up, ``[bands]`` float64, mean over channels and time, in FS^2; remembered.

    Raises:
        NotApplicable: shorter than one frame of 20 ms.
    """
    n = _band_fft(clip.sample_rate)
    if clip.length < n:
        raise NotApplicable(f"too short: {clip.seconds * 1000:.1f} ms, one frame is 20 ms")

    def compute() -> np.ndarray:
        from scipy import fft

        frames = np.lib.stride_tricks.sliding_window_view(clip.samples, n, axis=1)[:, :: n // 2]
        spectrum = fft.rfft(frames * _hann(n), axis=-1)
        energy = np.square(spectrum.real) + np.square(spectrum.imag)
        return energy.mean(axis=(0, 1), dtype=np.float64)[2:] * 2 / (n * 0.375 * n)  # Hann: sum of squares is 3/8 n

    return clip.memo("long-term power", compute)


def _band_fft(sample_rate: int) -> int:
    return 2 * round(sample_rate / BAND_HZ / 2)


def _hann(n: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)).astype(np.float32)
