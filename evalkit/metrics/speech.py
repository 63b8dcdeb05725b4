"""Intrusive measures of speech: PESQ (quality) and STOI, ESTOI (intelligibility), as they are and after a delay.

All compare the decoded speech with the original, in mono (the mean of the channels). They were made for telephony and
for noise reduction: a decoder that speaks the same words with another waveform is charged by STOI as if it were noise,
and by PESQ for less than listeners would say. On music and other sounds they are numbers without meaning.

The ``aligned_`` variants first remove one constant delay (`evalkit.metrics.alignment`, whole samples within +-100 ms),
as published figures of codecs do. PESQ aligns by itself, utterance by utterance; STOI does not, and falls with 10 ms.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from evalkit.audio import Clip, mono, resample
from evalkit.errors import NotApplicable
from evalkit.metrics.alignment import align, centred, overlap, pair, require_sound
from evalkit.registry import metric

SPEECH = ("pesq_wb", "pesq_nb", "stoi", "estoi", "aligned_pesq_wb", "aligned_stoi", "aligned_estoi")

PESQ_MIN_SECONDS = 1.0
"""Excerpts of 12 clips (6 speakers, EnCodec 1.5 and 6 kbps) differed from the whole clip's value by 0.7 and 0.3 (0.25
s), 0.5 and 0.2 (0.5 s), 0.4 and 0.2 (1 s), 0.12 and 0.10 (4 s), standard deviation at 6 and at 1.5 kbps; of those below
1 s the package refused one in twelve."""

PESQ_MAX_SECONDS = 18.8
"""The ITU-T code that the package wraps has room for 50 utterances and does not check it: beyond, it writes over other
memory (bursts of 0.25 s for 30 s end the process). An utterance takes at least 46 frames of 4 ms and a pause 51, so up
to 18.8 s, with its own padding of 0.6 s, no 51st can begin, whatever the signal."""

STOI_RATE = 10000
"""Hz at which STOI is defined."""

_SHARED: dict[str, Any] = {"direction": "higher", "group": "speech", "domains": ("speech",)}
_PESQ: dict[str, Any] = {
    **_SHARED,
    "unit": "MOS",
    "min_seconds": PESQ_MIN_SECONDS,
    "max_seconds": PESQ_MAX_SECONDS,
    "short_clips": "P.862 asks for 8 to 30 s with at least 3.2 s of speech; from 1 s on clips are taken as they are",
    "range": (0.9, 4.7),
    "requires": ("pesq",),
    "worsens_with": ("noise", "lowpass", "clipping", "bit_depth", "packet_loss"),
}
_PESQ_RAW: dict[str, Any] = {
    **_PESQ,
    "worsens_with": (*_PESQ["worsens_with"], "pitch"),
    "invariant_to": ("gain", "polarity"),
}
_PESQ_ALIGNED: dict[str, Any] = {**_PESQ, "invariant_to": ("gain", "polarity", "delay")}
_STOI: dict[str, Any] = {
    **_SHARED,
    "unit": "1",
    "min_sample_rate": 8000,
    "min_seconds": 0.4,
    "max_seconds": 120.0,
    "short_clips": "taken as they are from 0.4 s of speech (30 frames above -40 dB of the loudest); less is n/a",
    "range": (-1, 1),
    "requires": ("pystoi",),
}
_STOI_RAW: dict[str, Any] = {
    **_STOI,
    "worsens_with": ("noise", "lowpass", "delay", "clipping", "bit_depth", "packet_loss", "pitch", "codec_rate"),
    "invariant_to": ("gain", "polarity"),
}
_STOI_ALIGNED: dict[str, Any] = {
    **_STOI,
    "worsens_with": ("noise", "lowpass", "clipping", "bit_depth", "packet_loss", "codec_rate"),
    "invariant_to": ("gain", "polarity", "delay"),
}


@metric("pesq_wb", min_sample_rate=16000, **_PESQ_RAW)
def pesq_wb(reference: Clip, estimate: Clip) -> float:
    """Wide-band PESQ: quality of speech against the original, MOS-LQO 1.02 to 4.64, at 16 kHz.

    ITU-T P.862.2 by the package ``pesq``, which wraps the ITU-T reference code. Both clips are resampled to 16 kHz.
    4.64 for the original itself. Gain does not count, a constant delay hardly: 50 ms, lost at the end, cost 0.09.

    Raises:
        NotApplicable: a silent or constant clip, of which PESQ would divide by the power; no utterance found;
            package absent.
    """
    return _pesq(reference, estimate, "wb")


@metric("pesq_nb", min_sample_rate=8000, **_PESQ_RAW)
def pesq_nb(reference: Clip, estimate: Clip) -> float:
    """Narrow-band PESQ: quality of speech in the telephone band, MOS-LQO 1.02 to 4.55, at 16 or 8 kHz.

    ITU-T P.862 mapped by P.862.1. Taken at 16 kHz, as `pesq_wb`, where the clip has as much, else at 8 kHz. The rate
    counts: on one pair (speech in babble at 0 dB) 1.607 at 16 kHz and 1.665 at 8 kHz.

    Raises:
        NotApplicable: as `pesq_wb`.
    """
    return _pesq(reference, estimate, "nb")


@metric("stoi", **_STOI_RAW)
def stoi(reference: Clip, estimate: Clip) -> float:
    """Short-time objective intelligibility against the original, about 0 to 1, at 10 kHz.

    Taal et al., IEEE TASLP 19(7), 2011, by the package ``pystoi``: the correlation of third-octave envelopes (150 Hz to
    4.3 kHz) over 384 ms, frames in which the original is 40 dB below its loudest left out. Both clips are resampled to
    10 kHz by soxr. 1 for the original itself, 0 for silence. Sensitive to delay: see `aligned_stoi`.

    Raises:
        NotApplicable: silent reference; less than 0.4 s of speech in it; package absent.
    """
    return _stoi(reference, estimate, extended=False)


@metric("estoi", **_STOI_RAW)
def estoi(reference: Clip, estimate: Clip) -> float:
    """Extended STOI: as `stoi`, but spectra and envelopes are both normalised, for modulated disturbances.

    Jensen and Taal, IEEE/ACM TASLP 24(11), 2016, by ``pystoi``. Lower than `stoi` for the same pair and not comparable
    with it. pystoi adds noise at -313 dB, drawn here from a fixed seed; it decides where the estimate is digital zero,
    of which the value is then near 0.

    Raises:
        NotApplicable: as `stoi`.
    """
    return _stoi(reference, estimate, extended=True)


@metric("aligned_pesq_wb", min_sample_rate=16000, **_PESQ_ALIGNED)
def aligned_pesq_wb(reference: Clip, estimate: Clip) -> float:
    """Wide-band PESQ (`pesq_wb`) after removal of a constant delay within +-100 ms.

    Raises:
        NotApplicable: as `pesq_wb`; no common waveform that would tell a delay (correlation peak below 0.3).
    """
    return _pesq(*_aligned(reference, estimate), "wb")


@metric("aligned_stoi", **_STOI_ALIGNED)
def aligned_stoi(reference: Clip, estimate: Clip) -> float:
    """STOI (`stoi`) after removal of a constant delay within +-100 ms.

    Raises:
        NotApplicable: as `stoi`; no common waveform that would tell a delay (correlation peak below 0.3).
    """
    return _stoi(*_aligned(reference, estimate), extended=False)


@metric("aligned_estoi", **_STOI_ALIGNED)
def aligned_estoi(reference: Clip, estimate: Clip) -> float:
    """ESTOI (`estoi`) after removal of a constant delay within +-100 ms.

    Raises:
        NotApplicable: as `estoi`; no common waveform that would tell a delay (correlation peak below 0.3).
    """
    return _stoi(*_aligned(reference, estimate), extended=True)


def _aligned(reference: Clip, estimate: Clip) -> tuple[Clip, Clip]:
    """The parts that coincide once the estimate's delay is removed; remembered on the estimate."""
    require_sound(estimate, "estimate")
    a = align(reference, estimate)
    if not a.significant:
        raise NotApplicable(f"no common waveform: correlation peak {abs(a.correlation):.2f}, so no delay can be told")
    if a.delay == 0:
        return reference, estimate

    def cut() -> tuple[Clip, Clip]:
        r, e = overlap(reference.samples, estimate.samples, a.delay)
        return reference.with_samples(r), estimate.with_samples(e)

    return estimate.memo(("aligned clips", reference.content_hash), cut)


def _signals(reference: Clip, estimate: Clip, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as mono float64 ``[samples]`` at a rate; a silent estimate is let through, a constant one is not."""
    pair(reference, estimate)
    require_sound(mono(reference), _mixed(reference, "reference"))
    for clip, what in ((reference, "reference"), (estimate, "estimate")):
        x = mono(clip).samples.astype(np.float64)  # before resampling, which ripples at the ends
        if np.any(x) and not np.any(centred(x)):
            raise NotApplicable(f"the {_mixed(clip, what)} is constant: there is no speech in it")
    return _at(reference, rate).astype(np.float64), _at(estimate, rate).astype(np.float64)


def _mixed(clip: Clip, what: str) -> str:
    return what if clip.channels == 1 else f"mean of the {what}'s channels"


def _at(clip: Clip, rate: int) -> np.ndarray:
    return clip.memo(("mono", rate), lambda: resample(mono(clip), rate).samples[0])


def _pesq(reference: Clip, estimate: Clip, mode: str) -> float:
    try:
        import pesq
    except ImportError as error:
        raise NotApplicable(
            f"pesq is not installed: pip install 'evalkit-audio[pesq]' (it is built by a C compiler) ({error})"
        ) from error
    require_sound(mono(estimate), _mixed(estimate, "estimate"))
    rate = 16000 if mode == "wb" or reference.sample_rate >= 16000 else 8000
    r, e = _signals(reference, estimate, rate)
    try:
        return float(pesq.pesq(rate, r, e, mode))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError) as error:
        raise NotApplicable(f"PESQ: {_text(error)}") from error


def _text(error: Exception) -> str:
    """The package's messages are bytes."""
    first = error.args[0] if error.args else ""
    return first.decode() if isinstance(first, bytes) else str(first)


def _stoi(reference: Clip, estimate: Clip, *, extended: bool) -> float:
    try:
        import pystoi
    except ImportError as error:
        raise NotApplicable(f"pystoi is not installed: pip install 'evalkit-audio[speech]' ({error})") from error
    r, e = _signals(reference, estimate, STOI_RATE)
    state = np.random.get_state()  # noqa: NPY002 - pystoi draws from the global generator
    np.random.seed(0)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
            value = float(pystoi.stoi(r, e, STOI_RATE, extended=extended))
    except RuntimeWarning as error:
        raise NotApplicable("less than 0.4 s of the reference is speech (within 40 dB of its loudest)") from error
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return min(1.0, value)  # rounding: a copy gives 1 + 1e-15
