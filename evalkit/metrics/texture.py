"""Measures of over-averaging: whether an estimate moves as much as its reference, in level, in time and in frequency.

A decoder that minimises a squared error gives the mean of all sounds its codes allow: right on average, smooth in
texture. Distances reward that; these measures see it. All are taken on `evalkit.metrics.spectral.log_mel` (24 kHz,
93.75 frames a second, 100 mel bands, natural logarithm, floor 1e-5), so a constant gain cancels where both signals are
above the floor. None compares frame with frame: another realisation of the same noise scores well, and so can a sound
that is wrong but as lively. Read them beside a distance.

The ratios pool before they divide: sums over channels and bands, then one quotient. The mean of a quotient per band
would be ruled by bands in which the reference hardly moves (empty ones, at the floor), and a geometric mean is 0 as
soon as the estimate lacks one band. The price: too much in one band can make up for too little in another.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from evalkit.audio import Clip
from evalkit.errors import NotApplicable
from evalkit.metrics.alignment import pair, require_sound
from evalkit.metrics.spectral import HOP, RATE, log_mel
from evalkit.registry import metric

TEXTURE = (
    "gv_ratio",
    "gv_log_error",
    "modulation_distance",
    "delta_energy_ratio_time",
    "delta_energy_ratio_freq",
)

FRAME_RATE = RATE / HOP
"""Frames of the log-mel spectrogram per second, 93.75."""

FLOOR = 1e-4
"""Np^2; a fluctuation of 0.01 Np (0.09 dB) rms, that of a 1.4 % amplitude modulation. Listeners detect about 5 % in
broadband noise (Viemeister 1979); random noise has 0.01 to 0.3 Np^2 per band. Below it there is nothing to keep."""

SEGMENT = 128
"""Frames per modulation spectrum (1.37 s); the bin width is then 0.73 Hz."""

OCTAVES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Edges of the modulation bands in Hz. The window of 42.7 ms of the log-mel itself smooths what is faster."""

GROUPS = 10
"""Groups of neighbouring mel bands (10 of 100 each) whose modulation power is averaged."""

MIN_FRAMES = 94
"""From here on a bin that is free of the removed mean (the second and above) lies below 2 Hz; 1 s of audio has it."""


def temporal_variance(x: np.ndarray) -> float:
    """Global variance of a log-mel spectrogram ``[channels, frames, bands]``: over frames, then the mean, in Np^2.

    >>> temporal_variance(np.array([[[1.0, 0.0], [3.0, 0.0]]]))
    0.5
    """
    moved = np.asarray(x, dtype=np.float64) - x[:, :1]  # constants become exact zeros
    return float(np.mean(np.var(moved, axis=1)))


def delta_energy(x: np.ndarray, axis: int) -> float:
    """Mean square of the first difference of ``[channels, frames, bands]`` along ``axis`` (1 time, 2 mel), in Np^2.

    >>> delta_energy(np.array([[[0.0, 1.0], [3.0, 1.0]]]), axis=1)
    4.5
    """
    return float(np.mean(np.square(np.diff(np.asarray(x, dtype=np.float64), axis=axis))))


def modulation_power(x: np.ndarray) -> np.ndarray:
    """Modulation power of a log-mel spectrogram ``[channels, frames, bands]``: ``[channels, 10, 5]`` float64, in Np^2.

    Axis 1 are groups of neighbouring mel bands, axis 2 the octaves 1-2-4-8-16-32 Hz. Welch's estimate for each mel
    band: segments of 128 frames (all frames where there are fewer) that overlap by at least half and reach both ends,
    each less its mean, periodic Hann window, one-sided density; then the mean over the bands of a group and the sum
    over the bins of an octave times the bin width. A sinusoid of amplitude A Np in all bands of a group gives A^2 / 2
    in its octave (two thirds of that in the lowest, which is one bin wide).

    Raises:
        NotApplicable: fewer than 94 frames (1 s).
    """
    x = np.asarray(x, dtype=np.float64)
    channels, frames, bands = x.shape
    if frames < MIN_FRAMES:
        raise NotApplicable(f"too short: {frames} frames, a modulation spectrum from 1 Hz needs {MIN_FRAMES} (1 s)")
    n = min(SEGMENT, frames)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    # Evenly spread, so that the end counts as well; Welch's usual hop of n / 2 wherever that fits.
    starts = np.linspace(0, frames - n, 1 + math.ceil((frames - n) / (n / 2))).round().astype(int)
    power = np.zeros((channels, n // 2 + 1, bands))
    for start in starts:  # one at a time: memory does not grow with the clip
        part = x[:, start : start + n]
        spectrum = np.fft.rfft((part - part.mean(axis=1, keepdims=True)) * window[:, None], axis=1)
        power += np.square(spectrum.real) + np.square(spectrum.imag)
    power *= 2 / (len(starts) * n * np.sum(window**2))  # density times bin width; no bin used is 0 Hz or the last
    hz = np.arange(n // 2 + 1) * FRAME_RATE / n
    octaves = [power[:, (hz >= low) & (hz < high)].sum(axis=1) for low, high in pairwise(OCTAVES)]
    grouped = [part.mean(axis=1) for part in np.array_split(np.stack(octaves, axis=-1), GROUPS, axis=1)]
    return np.stack(grouped, axis=1)


def modulation_distance_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Mean of ``|10 log10(estimate / reference)|`` of two `modulation_power`, both raised to 1e-4 Np^2 first, in dB."""
    return float(np.mean(np.abs(10 * np.log10(np.maximum(estimate, FLOOR) / np.maximum(reference, FLOOR)))))


def energy_ratio(reference: float, estimate: float, what: str) -> float:
    """``estimate / reference`` of two powers in Np^2, 0 or more.

    Raises:
        NotApplicable: ``reference`` below 1e-4 Np^2; the reason names ``what``.
    """
    if reference < FLOOR:
        raise NotApplicable(f"the reference's log-mel has no {what} (below {FLOOR:g} Np^2): nothing to keep")
    return estimate / reference


@metric(
    "gv_ratio",
    unit="1",
    direction="none",
    group="texture",
    range=(0, math.inf),
    worsens_with=("noise", "lowpass", "packet_loss"),
    invariant_to=("polarity",),
)
def gv_ratio(reference: Clip, estimate: Clip) -> float:
    """Global-variance ratio: temporal variance of the estimate's log-mel over the reference's; 1 is right.

    Toda, Black and Tokuda, IEEE TASLP 15(8), 2007, who found the global variance (GV) of a trajectory predicted by its
    mean too small; here of log-mel bands: sum over channels and bands of the variance over all frames, estimate over
    reference. Below 1: over-smoothed (silence: 0); above 1: too lively, or noisy. Fluctuations about the temporal mean
    that are scaled by a give a^2; the mean of N independent equal textures gives 1 / N. In clips with pauses most
    variance is that of sound against pause: noise put into digital silence lowers it as well.

    >>> rng = np.random.default_rng(0)
    >>> x = Clip(rng.uniform(-1, 1, 24000), 24000)
    >>> gv_ratio(x, x), gv_ratio(x, x.with_samples(0 * x.samples))
    (1.0, 0.0)

    Raises:
        NotApplicable: silent reference, or one that does not change in time; shorter than one window (42.7 ms).
    """
    return _gv_ratio(reference, estimate)


@metric(
    "gv_log_error",
    unit="dB",
    direction="lower",
    group="texture",
    range=(0, math.inf),
    worsens_with=("noise", "lowpass", "packet_loss"),
    invariant_to=("polarity",),
)
def gv_log_error(reference: Clip, estimate: Clip) -> float:
    """Global-variance error in dB: ``|10 log10 gv_ratio|``, 0 where the variance is right.

    `gv_ratio` as something to rank by: half and double the variance are equally wrong (3.01 dB). It is averaged over
    clips after the absolute value, so that a smooth and a lively clip do not make up for each other. A value of 0 is no
    proof of quality: the energy need not be in the right place.

    >>> x = Clip(np.random.default_rng(0).uniform(-1, 1, 24000), 24000)
    >>> round(gv_log_error(x, x.with_samples(x.samples / 2)), 3)
    0.0

    Raises:
        NotApplicable: as `gv_ratio`; an estimate whose log-mel is constant (silence), for which it is infinite.
    """
    ratio = _gv_ratio(reference, estimate)
    if ratio == 0:
        raise NotApplicable("the estimate's log-mel is constant in time (gv_ratio 0): the error is infinite")
    return abs(10 * math.log10(ratio))


def _gv_ratio(reference: Clip, estimate: Clip) -> float:
    require_sound(reference, "reference")
    pair(reference, estimate)
    r = reference.memo("log-mel variance", lambda: temporal_variance(log_mel(reference)))
    e = estimate.memo("log-mel variance", lambda: temporal_variance(log_mel(estimate)))
    return energy_ratio(r, e, "variance in time")


@metric(
    "modulation_distance",
    unit="dB",
    direction="lower",
    group="texture",
    min_seconds=1.0,
    range=(0, math.inf),
    worsens_with=("noise", "lowpass", "clipping", "bit_depth", "packet_loss"),
    invariant_to=("polarity",),
)
def modulation_distance(reference: Clip, estimate: Clip) -> float:
    """Modulation-spectrum distance in dB: how far the speeds at which log-mel bands fluctuate differ in power.

    Mean over channels, 10 groups of mel bands and the modulation octaves 1-2-4-8-16-32 Hz of ``|10 log10(P_est /
    P_ref)|``, P the `modulation_power`, both raised to 1e-4 Np^2. Joint acoustic and modulation frequency: Atlas and
    Shamma, EURASIP JASP 2003(7); the spectrum of log spectral trajectories as a measure of over-smoothing: Takamichi et
    al., IEEE/ACM TASLP 24(4), 2016. 0 for equal spectra; scaling all fluctuations by a gives ``|20 log10 a|`` above the
    floor; silence is finite, its modulation being the floor. Modulation phase does not count. P is an estimate from a
    few segments: an independent realisation of the same white noise scores about 0.4 dB at 5 s and 1.3 dB at 1 s.

    >>> x = Clip(np.random.default_rng(0).uniform(-1, 1, 24000), 24000)
    >>> modulation_distance(x, x.with_samples(-x.samples))
    0.0

    Raises:
        NotApplicable: silent reference; shorter than 1 s.
    """
    require_sound(reference, "reference")
    pair(reference, estimate)
    r = reference.memo("modulation power", lambda: modulation_power(log_mel(reference)))
    e = estimate.memo("modulation power", lambda: modulation_power(log_mel(estimate)))
    return modulation_distance_db(r, e)


@metric(
    "delta_energy_ratio_time",
    unit="1",
    direction="none",
    group="texture",
    range=(0, math.inf),
    worsens_with=("lowpass", "packet_loss"),
    invariant_to=("polarity",),
)
def delta_energy_ratio_time(reference: Clip, estimate: Clip) -> float:
    """Energy of frame-to-frame differences of the log-mel, estimate over reference; 1 is right.

    Sum over channels, frames and bands of ``(L[t + 1] - L[t])^2`` (10.7 ms apart), one quotient. As `gv_ratio` with
    fast changes weighted up: onsets and noise texture rather than slow contours. Below 1: smeared in time.

    >>> x = Clip(np.random.default_rng(0).uniform(-1, 1, 24000), 24000)
    >>> delta_energy_ratio_time(x, x)
    1.0

    Raises:
        NotApplicable: silent reference, or one that does not change in time; shorter than one window (42.7 ms).
    """
    return _delta_ratio(reference, estimate, 1, "change in time")


@metric(
    "delta_energy_ratio_freq",
    unit="1",
    direction="none",
    group="texture",
    range=(0, math.inf),
    worsens_with=("bit_depth", "packet_loss"),
    invariant_to=("polarity",),
)
def delta_energy_ratio_freq(reference: Clip, estimate: Clip) -> float:
    """Energy of differences between neighbouring mel bands, estimate over reference; 1 is right.

    Sum over channels, frames and bands of ``(L[b + 1] - L[b])^2``, one quotient. Below 1: harmonics and spectral grain
    are smeared in frequency. A step counts like grain: a steep band limit (a low-pass) adds to it.

    >>> x = Clip(np.random.default_rng(0).uniform(-1, 1, 24000), 24000)
    >>> delta_energy_ratio_freq(x, x)
    1.0

    Raises:
        NotApplicable: silent reference, or one below 1e-5 in all bands; shorter than one window (42.7 ms).
    """
    return _delta_ratio(reference, estimate, 2, "change in frequency")


def _delta_ratio(reference: Clip, estimate: Clip, axis: int, what: str) -> float:
    require_sound(reference, "reference")
    pair(reference, estimate)
    r = reference.memo(("log-mel delta", axis), lambda: delta_energy(log_mel(reference), axis))
    return energy_ratio(r, delta_energy(log_mel(estimate), axis), what)
