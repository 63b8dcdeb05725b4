"""Waveform measures: what is left of the samples themselves, raw and after compensation of delay, gain and polarity.

Common conventions: float64 arithmetic; powers are means over all samples and channels, that is, the average over
channels of each channel's power; full scale is +-1. A generative decoder that sounds right may score below silence.
"""

from __future__ import annotations

import math

import numpy as np

from evalkit.audio import Clip
from evalkit.errors import NotApplicable
from evalkit.metrics.alignment import Alignment, align, centred, overlap, pair, power, require_sound
from evalkit.registry import metric

WAVEFORM = ("mse", "mse_db", "snr", "si_sdr")
ALIGNED = ("aligned_mse_db", "aligned_snr", "aligned_si_sdr", "delay_ms", "gain_db", "polarity")


@metric(
    "mse",
    unit="FS^2",
    direction="lower",
    group="waveform",
    range=(0, math.inf),
    worsens_with=("noise", "lowpass", "gain", "clipping", "bit_depth", "packet_loss", "codec_rate", "polarity"),
)
def mse(reference: Clip, estimate: Clip) -> float:
    """Mean squared error of the waveform.

    Mean over samples and channels of ``(estimate - reference)^2``, in squared full scale; 0 only for an exact copy.
    It grows with the square of the clip's level, so its mean over clips is dominated by the loud ones: see `mse_db`.

    >>> mse(Clip(np.zeros(100), 8000), Clip(np.full(100, 0.5), 8000))
    0.25
    """
    r, e = pair(reference, estimate)
    return float(np.mean(np.square(e - r)))


@metric(
    "mse_db",
    unit="dB",
    direction="lower",
    group="waveform",
    worsens_with=("noise", "lowpass", "gain", "clipping", "bit_depth", "packet_loss", "codec_rate"),
)
def mse_db(reference: Clip, estimate: Clip) -> float:
    """Mean squared error over the signal power of the reference, in dB.

    ``10 log10(MSE / mean(reference^2))`` = -SNR. Silence gives exactly 0 dB, an unrelated or much delayed signal of
    equal power +3 dB, a polarity flip +6 dB; -inf for an exact copy is n/a. The mean over clips is one of dB values.

    >>> tone = Clip(np.sin(np.arange(8000) * 0.1), 8000)
    >>> mse_db(tone, tone.with_samples(0 * tone.samples))
    0.0
    >>> round(mse_db(tone, tone.with_samples(-tone.samples)), 4)
    6.0206

    Raises:
        NotApplicable: silent reference; exact copy.
    """
    require_sound(reference, "reference")
    r, e = pair(reference, estimate)
    error = float(np.mean(np.square(e - r)))
    if error == 0:
        raise NotApplicable("exact copy: the error is zero (minus infinity dB)")
    return 10 * math.log10(error / power(reference))


@metric(
    "snr",
    unit="dB",
    direction="higher",
    group="waveform",
    worsens_with=("noise", "lowpass", "gain", "clipping", "bit_depth", "packet_loss", "codec_rate"),
)
def snr(reference: Clip, estimate: Clip) -> float:
    """Signal-to-noise ratio: power of the reference over power of the difference, in dB.

    ``10 log10(sum reference^2 / sum (estimate - reference)^2)``; the whole clip at once, not segmental. Silence: 0 dB.

    >>> tone = Clip(np.sin(np.arange(8000) * 0.1), 8000)
    >>> round(snr(tone, tone.with_samples(tone.samples * 0.9)), 4)
    20.0

    Raises:
        NotApplicable: silent reference; estimate equal to it.
    """
    require_sound(reference, "reference")
    r, e = pair(reference, estimate)
    error = float(np.mean(np.square(e - r)))
    if error == 0:
        raise NotApplicable("estimate equals the reference exactly: infinite SNR")
    return 10 * math.log10(power(reference) / error)


@metric(
    "si_sdr",
    unit="dB",
    direction="higher",
    group="waveform",
    worsens_with=("noise", "lowpass", "clipping", "bit_depth", "packet_loss", "codec_rate"),
    invariant_to=("gain", "polarity"),
)
def si_sdr(reference: Clip, estimate: Clip) -> float:
    """Scale-invariant signal-to-distortion ratio, zero-mean variant, in dB.

    Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, eq. 2-3: the estimate is projected on the reference,
    ``10 log10(|a r|^2 / |a r - e|^2)`` with ``a = <e, r> / |r|^2``. Each channel's mean is removed from both signals
    first (as asteroid and the DAC code do; torchmetrics by default does not). One gain ``a`` serves all channels, so a
    changed balance is charged. Insensitive to gain, offset and polarity, very sensitive to delay.

    >>> n = np.arange(8000)
    >>> tone, other = np.sin(2 * np.pi * n / 80), np.sin(2 * np.pi * n / 40)
    >>> round(si_sdr(Clip(tone, 8000), Clip(3 * tone + 0.3 * other, 8000)), 4)
    20.0

    Raises:
        NotApplicable: silent or constant signal; scaled copy; not a trace of the reference in the estimate.
    """
    require_sound(reference, "reference")
    require_sound(estimate, "estimate")
    return _si_sdr(*pair(reference, estimate))


@metric(
    "aligned_mse_db",
    unit="dB",
    direction="lower",
    group="aligned",
    range=(-math.inf, 0),
    worsens_with=("noise", "lowpass", "clipping", "bit_depth", "packet_loss", "codec_rate"),
    invariant_to=("delay", "gain", "polarity"),
)
def aligned_mse_db(reference: Clip, estimate: Clip) -> float:
    """MSE over signal power in dB after the best delay (within +-100 ms), gain and polarity.

    As `mse_db` over the region where both overlap, the estimate being delay-compensated and multiplied by the
    least-squares gain (see `evalkit.metrics.alignment`). It is ``10 log10(1 - rho^2)`` with rho the correlation there,
    hence never above 0 dB, which silence gives. It is given also where the two share no waveform: then no delay or
    gain helps and the value is just below 0 dB (unrelated noise of 5 s: about -0.0003 dB).

    >>> n = np.arange(8000)
    >>> tone, other = np.sin(2 * np.pi * n / 80), np.sin(2 * np.pi * n / 40)
    >>> round(aligned_mse_db(Clip(tone, 8000), Clip(-2 * (tone + other), 8000)), 3)
    -3.01

    Raises:
        NotApplicable: silent reference; exact copy up to delay and gain.
    """
    error, signal = _aligned_powers(reference, estimate)
    return min(0.0, 10 * math.log10(error / signal))


@metric(
    "aligned_snr",
    unit="dB",
    direction="higher",
    group="aligned",
    range=(0, math.inf),
    worsens_with=("noise", "lowpass", "clipping", "bit_depth", "packet_loss", "codec_rate"),
    invariant_to=("delay", "gain", "polarity"),
)
def aligned_snr(reference: Clip, estimate: Clip) -> float:
    """SNR in dB after the best delay (within +-100 ms), gain and polarity.

    ``-aligned_mse_db``, that is ``-10 log10(1 - rho^2)``: at least 0 dB, where nothing of the waveform is left.

    >>> n = np.arange(8000)
    >>> tone, other = np.sin(2 * np.pi * n / 80), np.sin(2 * np.pi * n / 40)
    >>> round(aligned_snr(Clip(tone, 8000), Clip(-2 * (tone + 0.1 * other), 8000)), 3)
    20.043

    Raises:
        NotApplicable: silent reference; exact copy up to delay and gain.
    """
    error, signal = _aligned_powers(reference, estimate)
    return max(0.0, 10 * math.log10(signal / error))


@metric(
    "aligned_si_sdr",
    unit="dB",
    direction="higher",
    group="aligned",
    worsens_with=("noise", "lowpass", "clipping", "bit_depth", "packet_loss", "codec_rate"),
    invariant_to=("delay", "gain", "polarity"),
)
def aligned_si_sdr(reference: Clip, estimate: Clip) -> float:
    """SI-SDR (zero-mean variant) in dB after compensation of the delay (within +-100 ms).

    `si_sdr` over the overlapping region; gain and polarity do not matter to it. Where the two share no waveform it is
    the best of all delays by chance: 5 s of unrelated noise at 44.1 kHz give about -41 dB.

    >>> x = np.random.default_rng(0).standard_normal(16000)
    >>> late = np.concatenate([np.zeros(8), x[:-8]]) + 0.1 * np.random.default_rng(1).standard_normal(16000)
    >>> round(aligned_si_sdr(Clip(x, 16000), Clip(late, 16000)), 1)
    20.0

    Raises:
        NotApplicable: silent or constant signal; exact copy up to delay and gain.
    """
    require_sound(estimate, "estimate")
    a = align(reference, estimate)
    return _si_sdr(*overlap(*pair(reference, estimate), a.delay))


@metric(
    "delay_ms",
    unit="ms",
    direction="none",
    group="aligned",
    range=(-100, 100),
    worsens_with=("delay",),
    invariant_to=("noise", "lowpass", "gain", "clipping", "bit_depth", "packet_loss", "polarity"),
)
def delay_ms(reference: Clip, estimate: Clip) -> float:
    """Delay of the estimate against the reference in ms: positive is late, negative early.

    The lag of the largest absolute cross-correlation, in whole samples within +-100 ms. A periodic sound fixes it only
    up to half a period.

    >>> x = np.random.default_rng(0).standard_normal(16000)
    >>> delay_ms(Clip(x, 16000), Clip(np.concatenate([x[8:], np.zeros(8)]), 16000))
    -0.5

    Raises:
        NotApplicable: silent signal; no common waveform, that is, a correlation peak below 0.3 (the reason gives it).
    """
    return 1000 * _significant(reference, estimate).delay / reference.sample_rate


@metric(
    "gain_db", unit="dB", direction="none", group="aligned", worsens_with=("gain",), invariant_to=("delay", "polarity")
)
def gain_db(reference: Clip, estimate: Clip) -> float:
    """Optimal gain in dB: what the delay-compensated estimate is multiplied by to come nearest the reference.

    ``20 log10 |<r, e> / |e|^2|`` over the overlap. Positive: the estimate is too quiet. Distortion pulls it below 0 dB:
    an estimate of equal power and correlation rho gets ``20 log10 rho``.

    >>> tone = Clip(np.sin(np.arange(8000) * 0.1), 8000)
    >>> round(gain_db(tone, tone.with_samples(tone.samples / 2)), 4)
    6.0206

    Raises:
        NotApplicable: silent signal; no common waveform (correlation peak below 0.3).
    """
    return 20 * math.log10(abs(_significant(reference, estimate).gain))


@metric(
    "polarity",
    unit="+-1",
    direction="none",
    group="aligned",
    range=(-1, 1),
    worsens_with=("polarity",),
    invariant_to=("noise", "lowpass", "delay", "gain", "clipping", "bit_depth", "packet_loss"),
)
def polarity(reference: Clip, estimate: Clip) -> float:
    """Polarity of the estimate: 1 as the reference, -1 flipped; the mean over clips tells the share.

    Sign of the least-squares gain at the delay found.

    >>> tone = Clip(np.sin(np.arange(8000) * 0.1), 8000)
    >>> polarity(tone, tone.with_samples(-tone.samples))
    -1.0

    Raises:
        NotApplicable: silent signal; no common waveform (correlation peak below 0.3).
    """
    return math.copysign(1.0, _significant(reference, estimate).gain)


def _si_sdr(r: np.ndarray, e: np.ndarray) -> float:
    r, e = centred(r), centred(e)
    energy, cross = float(np.sum(r * r)), float(np.sum(r * e))
    if energy == 0 or not np.any(e):
        raise NotApplicable("a signal is constant: SI-SDR is undefined")
    target = cross * cross / energy
    distortion = float(np.sum(np.square(cross / energy * r - e)))
    if distortion <= 1e-28 * target:  # float64 rounding: the true distortion is zero
        raise NotApplicable("the estimate is a scaled copy of the reference: infinite SI-SDR")
    if target <= 1e-28 * distortion:
        raise NotApplicable("the estimate holds nothing of the reference: SI-SDR is minus infinity")
    return 10 * math.log10(target / distortion)


def _aligned_powers(reference: Clip, estimate: Clip) -> tuple[float, float]:
    """Error energy after compensation, and reference energy, over the overlap."""
    a = align(reference, estimate)
    r, e = overlap(*pair(reference, estimate), a.delay)
    error, signal = float(np.sum(np.square(r - a.gain * e))), float(np.sum(r * r))
    if signal == 0:
        raise NotApplicable("the reference is silent where it overlaps the estimate")
    if error <= 1e-28 * signal:
        raise NotApplicable("exact copy after compensation of delay and gain: infinite SNR")
    return error, signal


def _significant(reference: Clip, estimate: Clip) -> Alignment:
    require_sound(estimate, "estimate")
    a = align(reference, estimate)
    if not a.significant or a.gain == 0:
        raise NotApplicable(f"no common waveform: correlation peak {abs(a.correlation):.2f}")
    return a
