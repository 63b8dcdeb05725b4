"""`mel-stats`: mean and standard deviation of the log-mel spectrum. No weights, so it always works."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evalkit.audio import Clip
from evalkit.metrics.spectral import HOP, N_FFT, RATE, mel_filters, stft_power
from evalkit.registry import embedder

BANDS = 32
WINDOW = 90
"""Frames of a window: 0.96 s."""
STRIDE = 45
"""Frames from one window to the next: 0.48 s."""
MIN_SECONDS = 0.25
POWER_FLOOR = 1e-10
"""Powers below are raised to it: -100 dB of a full-scale sine."""


@embedder(
    "mel-stats",
    version="1",
    sample_rate=RATE,
    dimension=2 * BANDS,
    window_s=WINDOW * HOP / RATE,
    hop_s=STRIDE * HOP / RATE,
    licence="Apache-2.0 (this package)",
)
class MelStats:
    """Mean and standard deviation of the log-mel power in 32 bands over windows of 0.96 s; no weights.

    STFT at 24 kHz (Hann 1,024, hop 256, centred, reflected at the ends), power scaled so that a full-scale sine on a
    bin has 1, 32 HTK mel bands from 0 to 12 kHz, natural log, floor 1e-10. Each window of 90 frames (0.96 s, every
    0.48 s) gives 64 values in nepers of power: 32 means, then 32 standard deviations (of the 90 frames, divisor 90).

    A clip from 0.25 s to 0.96 s is one window over the frames that it has; a shorter one gives no frame. What is left
    at the end after the last whole window (under 0.48 s) is not seen. It is a measure of spectrum, level and
    liveliness, not of what is heard in them: for checks and for places without weights, not for ranking good codecs.
    """

    min_seconds = MIN_SECONDS

    def embed(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [_stats(samples) for samples in clips]


def _stats(samples: np.ndarray) -> np.ndarray:
    if len(samples) < MIN_SECONDS * RATE:
        return np.empty((0, 2 * BANDS), dtype=np.float32)
    power = stft_power(Clip(samples, RATE), N_FFT, HOP, N_FFT)[0] * np.float32((2 / (N_FFT / 2)) ** 2)
    filters = mel_filters(RATE, N_FFT, BANDS).T.astype(np.float32)
    log_mel = np.log(np.maximum(power @ filters, np.float32(POWER_FLOOR)))
    count = 1 + (len(samples) - WINDOW * HOP) // (STRIDE * HOP)
    starts = range(0, count * STRIDE, STRIDE) if count > 0 else (0,)
    windows = [log_mel[s : s + WINDOW] for s in starts]
    made = [np.concatenate([w.mean(axis=0, dtype=np.float64), w.std(axis=0, dtype=np.float64)]) for w in windows]
    return np.array(made, dtype=np.float32)
