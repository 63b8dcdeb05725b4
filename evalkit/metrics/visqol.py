"""ViSQOL v3: quality of decoded sound and of speech against the original, by the similarity of gammatone spectrograms.

Hines et al., "ViSQOL: an objective speech quality model", EURASIP JASMP 2015; Chinen et al., "ViSQOL v3", QoMEX 2020.
By the package ``visqol-python`` (Apache-2.0), a port of Google's C++ code with its models. What is known of the port:

* The identity's value of audio mode is that of the C++ code's conformance test to all digits. The other conformance
  figures need recordings that were not at hand; the port's author reports 9 of 10 equal and one off by 0.0001 in audio
  mode, and 0.002 in speech mode.
* Without the last step (fine alignment of each patch) it gives the values of an independent port in Rust
  (``audio-samples-qoe`` 0.1.2) to 0.0003 on 10 real pairs, and to 1e-12 where no global shift was needed. That port
  lacks the step, which the C++ code has; it raised the values of audio mode by up to 0.45.

Each stretch of the original (0.6 s; 0.4 s in speech mode) is compared with the most similar one of the decoded clip
within 36 s (24 s), in order. In steady textures it may be found seconds away.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from evalkit.audio import Clip, mono, resample
from evalkit.errors import NotApplicable
from evalkit.metrics.alignment import centred, pair, require_sound
from evalkit.registry import metric

VISQOL = ("visqol_audio", "visqol_speech")

AUDIO_RATE, SPEECH_RATE = 48000, 16000

_SHARED: dict[str, Any] = {
    "unit": "MOS",
    "direction": "higher",
    "group": "visqol",
    "min_seconds": 1.0,
    "max_seconds": 15.0,
    "short_clips": "whole patches of 0.6 s (speech: 0.4 s) from half a patch on; of 1 s one patch is compared",
    "range": (1, 5),
    "worsens_with": ("noise", "lowpass", "clipping", "bit_depth", "packet_loss", "pitch"),
}


@metric(
    "visqol_audio",
    domains=("music", "sound"),
    min_sample_rate=32000,
    requires=("visqol-python",),
    invariant_to=("gain", "delay", "polarity"),
    **_SHARED,
)
def visqol_audio(reference: Clip, estimate: Clip) -> float:
    """ViSQOL in audio mode: quality of music and sound against the original, MOS-LQO 1 to 4.73, at 48 kHz.

    32 bands from 50 Hz to 15 kHz, mapped by the support-vector regression that was fitted to ratings of music coded by
    AAC, MP3 and Opus. 4.7321 for the original itself. Level and a constant delay do not count. Slow: seconds a clip.

    Raises:
        NotApplicable: silent or constant clip; package absent.
    """
    return _visqol(reference, estimate, speech=False)


@metric(
    "visqol_speech",
    domains=("speech",),
    min_sample_rate=16000,
    requires=("visqol-python", "ai-edge-litert"),
    invariant_to=("polarity",),
    **_SHARED,
)
def visqol_speech(reference: Clip, estimate: Clip) -> float:
    """ViSQOL in speech mode: quality of speech against the original, MOS-LQO 1 to 5, at 16 kHz.

    21 bands up to 8 kHz, stretches in which the original has voice, mapped by the lattice network (the C++ code's
    default; the exponential that the package falls back to without ai-edge-litert gives other values, up to 2 higher,
    and is not used). The original itself gets 4.5 to 4.7, and up to 0.07 less once it is scaled or delayed;
    apart from that level and delay do not count.

    Raises:
        NotApplicable: silent or constant clip; package absent.
    """
    return _visqol(reference, estimate, speech=True)


def _visqol(reference: Clip, estimate: Clip, *, speech: bool) -> float:
    pair(reference, estimate)
    api = _api(speech)
    rate = SPEECH_RATE if speech else AUDIO_RATE
    for clip, what in ((reference, "reference"), (estimate, "estimate")):
        mix = mono(clip)
        require_sound(mix, what if clip.channels == 1 else f"mean of the {what}'s channels")
        if not np.any(centred(mix.samples.astype(np.float64))):
            raise NotApplicable(f"the {what} is constant")
    signals = (_at(clip, rate).astype(np.float64) for clip in (reference, estimate))
    try:
        return float(api.measure_from_arrays(*signals, sample_rate=rate).moslqo)
    except ValueError as error:  # no patch could be placed
        raise NotApplicable(f"ViSQOL: {error}") from error


def _at(clip: Clip, rate: int) -> np.ndarray:
    return clip.memo(("mono", rate), lambda: resample(mono(clip), rate).samples[0])


@functools.cache
def _api(speech: bool) -> Any:
    try:
        import visqol
        from visqol.numba_accel import has_numba

        if speech:
            import ai_edge_litert.interpreter  # noqa: F401 - the package would quietly take another mapping
    except ImportError as error:
        extras = "speech,yamnet" if speech else "speech"
        raise NotApplicable(
            f"ViSQOL's {'speech' if speech else 'audio'} mode is not installed: "
            f"pip install 'evalkit-audio[{extras}]' ({error})"
        ) from error
    if has_numba():
        import numba

        numba.set_num_threads(1)  # workers run side by side
    api = visqol.VisqolApi()
    api.create(mode="speech", use_lattice_model=True) if speech else api.create(mode="audio")
    return api
