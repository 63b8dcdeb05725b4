"""Degradations of known severity, for the self-test of measures (`evalkit.selftest`): ladders from mild to severe.

Each is a pure function ``(clip, level, seed) -> clip`` that keeps length, sample rate and channels, is the same for the
same seed, and leaves silence silent (Opus: below -80 dB FS). All levels of one seed share their random draws, so that a
step differs from the one before in severity alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evalkit.audio import Clip, fit_length, resample
from evalkit.errors import NotApplicable

PACKET_SECONDS = 0.02
WSOLA_HOP_SECONDS = 0.02


@dataclass(frozen=True)
class Ladder:
    """Levels of one degradation, from mild to severe.

    Attributes:
        unit: of a level, "" for none.
        apply: ``(clip, level, seed) -> clip``; it raises NotApplicable where a level is impossible for a clip.
    """

    name: str
    levels: tuple[float, ...]
    unit: str
    summary: str
    apply: Callable[[Clip, float, int], Clip]

    def text(self, level: float) -> str:
        """
        >>> LADDERS["noise"].text(40)
        '40 dB'
        """
        return "flipped" if self.name == "polarity" else f"{level:g} {self.unit}".strip()


def noise(clip: Clip, level: float, seed: int) -> Clip:
    """White Gaussian noise at an SNR of ``level`` dB over all samples and channels; silence stays as it is."""
    x = clip.samples.astype(np.float64)
    n = np.random.default_rng([seed, 1]).standard_normal(x.shape)
    n *= math.sqrt(float(np.mean(x * x)) / float(np.mean(n * n)) / 10 ** (level / 10))
    return clip.with_samples(x + n)


def lowpass(clip: Clip, level: float, seed: int) -> Clip:
    """Down to a sample rate of twice ``level`` Hz and back (soxr HQ): flat to about 0.91 of it, nothing above.

    Raises:
        NotApplicable: ``level`` is not below the clip's Nyquist frequency.
    """
    if level >= clip.sample_rate / 2:
        raise NotApplicable(
            f"a cut-off of {level:g} Hz is not below half the sample rate ({clip.sample_rate / 2:g} Hz)"
        )
    back = resample(resample(clip, round(2 * level)), clip.sample_rate)
    return clip.with_samples(fit_length(back.samples, clip.length))


def delay(clip: Clip, level: float, seed: int) -> Clip:
    """Late by ``level`` ms, in whole samples (at least one): zeros come first, the end is lost."""
    by = min(clip.length, max(1, round(level / 1000 * clip.sample_rate)))
    return clip.with_samples(np.pad(clip.samples, ((0, 0), (by, 0)))[:, : clip.length])


def gain(clip: Clip, level: float, seed: int) -> Clip:
    """Amplitudes times 10^(level / 20)."""
    return clip.with_samples(clip.samples * np.float32(10 ** (level / 20)))


def clipping(clip: Clip, level: float, seed: int) -> Clip:
    """Hard clipping at the fraction ``level`` of the clip's largest magnitude."""
    most = np.float32(level) * np.max(np.abs(clip.samples))
    return clip.with_samples(np.clip(clip.samples, -most, most))


def bit_depth(clip: Clip, level: float, seed: int) -> Clip:
    """Uniform quantisation to ``level`` bits with the clip's own peak as full scale, zero being a step; no dither."""
    step = float(np.max(np.abs(clip.samples))) / 2 ** (level - 1)
    if step == 0:
        return clip.with_samples(clip.samples.copy())
    return clip.with_samples(np.round(clip.samples.astype(np.float64) / step) * step)


def packet_loss(clip: Clip, level: float, seed: int) -> Clip:
    """``level`` % of the packets of 20 ms zeroed (at least one); what a mild level loses, a severe one does too."""
    size = max(1, round(PACKET_SECONDS * clip.sample_rate))
    packets = -(-clip.length // size)
    lost = np.random.default_rng([seed, 2]).permutation(packets)[: max(1, round(packets * level / 100))]
    y = clip.samples.copy()
    for i in lost:
        y[:, i * size : (i + 1) * size] = 0
    return clip.with_samples(y)


def pitch(clip: Clip, level: float, seed: int) -> Clip:
    """Up by ``level`` cents with timing kept: WSOLA makes the clip longer, soxr plays it faster by as much.

    WSOLA (Verhelst and Roelands, ICASSP 1993): frames of 40 ms at half overlap, each taken within 10 ms of its due
    place where it continues the one before best. Time wanders by up to those 10 ms; the more the pitch rises the more
    often a piece is played twice. What would pass half the sample rate is lost.
    """
    import soxr

    ratio = 2 ** (level / 1200)
    slow = _stretched(clip.samples.astype(np.float64), ratio, clip.sample_rate)
    y = soxr.resample(np.ascontiguousarray(slow.T), ratio * clip.sample_rate, clip.sample_rate, quality="HQ").T
    return clip.with_samples(fit_length(y, clip.length))


def _stretched(x: np.ndarray, ratio: float, sample_rate: int) -> np.ndarray:
    """``[channels, samples]`` made longer by ``ratio`` without a change of pitch; one cut serves all channels."""
    from scipy.signal import correlate

    hop = max(1, round(WSOLA_HOP_SECONDS * sample_rate))
    reach = hop // 2
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2 * hop) / (2 * hop))
    length = round(x.shape[1] * ratio)
    frames = -(-length // hop) + 1
    padded = np.pad(x, ((0, 0), (hop + reach, 4 * hop + reach)))
    power = np.pad(np.cumsum(np.sum(padded * padded, axis=0)), (1, 0))
    out = np.zeros((len(x), (frames + 1) * hop))
    at = reach  # in the padded signal; its first half is the padding that the window fades in from
    for k in range(frames):
        if k:
            due = reach + round(k * hop / ratio)
            natural = padded[:, at + hop : at + 3 * hop]
            near = padded[:, due - reach : due + reach + 2 * hop]
            alike = np.sum([correlate(a, b, "valid") for a, b in zip(near, natural, strict=True)], axis=0)
            energy = power[due - reach + 2 * hop : due + reach + 2 * hop + 1] - power[due - reach : due + reach + 1]
            score = alike / np.sqrt(np.maximum(energy, 1e-12))
            at = due if score.max() <= 0 else due - reach + int(np.argmax(score))
        out[:, k * hop : (k + 2) * hop] += padded[:, at : at + 2 * hop] * window
    return out[:, hop : hop + length]


def codec_rate(clip: Clip, level: float, seed: int) -> Clip:
    """Opus at ``level`` kbps a channel (two channels are coded together), constant rate; the system ``opus``.

    Raises:
        NotApplicable: PyAV was built without libopus.
    """
    import av

    from evalkit.systems.ffmpeg import Opus
    from evalkit.work import run_system

    if "libopus" not in av.codecs_available:
        raise NotApplicable("this PyAV has no libopus")
    if clip.channels == 2:
        return run_system(Opus(2 * level), clip, seed).clip
    coded = [run_system(Opus(level), clip.with_samples(x), seed).clip.samples for x in clip.samples]
    return clip.with_samples(np.concatenate(coded))


def polarity(clip: Clip, level: float, seed: int) -> Clip:
    """The sign flipped."""
    return clip.with_samples(-clip.samples)


LADDERS = {
    ladder.name: ladder
    for ladder in (
        Ladder("noise", (40, 30, 20, 10, 0), "dB", "white Gaussian noise, by signal-to-noise ratio", noise),
        Ladder("lowpass", (12_000, 8_000, 4_000, 2_000, 1_000), "Hz", "low-pass, by cut-off", lowpass),
        Ladder("delay", (0.0625, 0.5, 2.5, 10, 50), "ms", "late by whole samples", delay),
        Ladder("gain", (-1, -3, -6, -12, -20), "dB", "quieter", gain),
        Ladder("clipping", (0.7, 0.5, 0.3, 0.2, 0.1), "of peak", "hard clipping", clipping),
        Ladder("bit_depth", (12, 10, 8, 6, 4, 2), "bits", "coarser quantisation of the clip's range", bit_depth),
        Ladder("packet_loss", (1, 3, 10, 20, 40), "%", "packets of 20 ms zeroed", packet_loss),
        Ladder("pitch", (10, 50, 100, 200, 400), "cents", "pitch raised, timing kept (WSOLA)", pitch),
        Ladder("codec_rate", (64, 32, 16, 8, 6), "kbps", "Opus, by rate", codec_rate),
        Ladder("polarity", (-1,), "", "sign flipped", polarity),
    )
}
"""All ladders by name."""
