"""The front end: log-mel spectrograms at the geometry of the public 24 kHz vocoders (n_fft 1024, hop 256, 100 bands).

The same spectrogram as `evalkit.metrics.spectral.log_mel`: periodic Hann window, centred frames with reflected padding,
magnitudes scaled so that a full-scale sine on a bin has 1, HTK triangles without area normalisation, natural logarithm,
floor 1e-5. The public vocoders leave the magnitudes unscaled: theirs is ours plus ``ln(n_fft / 4)`` (`vocoder_offset`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalkit.metrics.spectral import mel_filters


@dataclass(frozen=True)
class MelConfig:
    """Geometry of the spectrogram.

    Attributes:
        sample_rate: in Hz. n_fft, hop: in samples; the window is as long as the FFT. bands: mel bands from 0 Hz to
            half the sample rate. floor: smallest magnitude, full-scale sine = 1 (1e-5 is -100 dB).
    """

    sample_rate: int = 24_000
    n_fft: int = 1024
    hop: int = 256
    bands: int = 100
    floor: float = 1e-5

    @property
    def frame_rate(self) -> float:
        """Frames per second (93.75)."""
        return self.sample_rate / self.hop

    @property
    def scale(self) -> float:
        """Factor from unscaled magnitudes to full-scale sine = 1: a Hann window sums to n_fft / 2."""
        return 4.0 / self.n_fft

    @property
    def vocoder_offset(self) -> float:
        """What is added to our log-mel to get that of Vocos and BigVGAN, which do not scale: ``ln(n_fft / 4)``."""
        return -math.log(self.scale)


class LogMel(nn.Module):
    """Log-mel spectrogram in nepers.

    Shapes: ``[batch, samples]`` (float, full scale +-1, a multiple of ``hop``, more than ``n_fft / 2``) to
    ``[batch, bands, samples / hop]``. Frame i is centred on sample ``i * hop``.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        bank = mel_filters(config.sample_rate, config.n_fft, config.bands)
        self.register_buffer("filters", torch.tensor(bank, dtype=torch.float32), persistent=False)

    def magnitudes(self, audio: Tensor) -> Tensor:
        """``[batch, samples]`` to scaled magnitudes ``[batch, n_fft / 2 + 1, samples / hop]``."""
        c = self.config
        padded = F.pad(audio[:, None], (c.n_fft // 2, c.n_fft // 2), mode="reflect")[:, 0]
        frames = torch.stft(padded, c.n_fft, c.hop, window=self.window, center=False, return_complex=True)
        return frames.abs()[..., : audio.shape[1] // c.hop] * c.scale

    def forward(self, audio: Tensor) -> Tensor:
        return (self.filters @ self.magnitudes(audio)).clamp_min(self.config.floor).log()
