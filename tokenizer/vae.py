"""The variational autoencoder: log-mel at 93.75 frames/s to latent vectors at 23.44 frames/s, and back.

Patchify first (a strided convolution over 8 mel frames, stride 4), then every block works at the latent rate, which
makes it about four times cheaper than the same stack at the mel rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.blocks import reach, stack

LEAST_SCALE = 1e-4
"""Added to the posterior's standard deviation, as in stable-audio-tools."""


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the VAE.

    Attributes:
        patch: mel frames a latent frame. latent: channels of the latent. width, blocks, expand: of encoder and decoder
            each. kl: weight of the KL term, per latent dimension, against the L1 term in nepers.
    """

    patch: int = 4
    latent: int = 32
    width: int = 160
    blocks: int = 4
    expand: int = 3
    kl: float = 3e-3


class VAE(nn.Module):
    """Convolutional VAE on log-mel spectrograms (Kingma & Welling 2014, arXiv 1312.6114).

    Shapes: log-mel ``[batch, bands, frames]`` in nepers, ``frames`` a multiple of ``patch``; latents
    ``[batch, frames / patch, latent]``. ``standardise`` maps posterior means to zero mean and unit variance a channel
    by statistics of the training data that are stored with the weights: the flow starts from N(0, 1).

    Raises:
        ValueError: an odd ``patch`` (the strided convolutions would lose a frame).
    """

    mel_mean: Tensor
    mel_std: Tensor
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VAEConfig, bands: int) -> None:
        super().__init__()
        self.config = config
        c = config
        if c.patch < 2 or c.patch % 2:
            raise ValueError(f"patch {c.patch}: must be an even number of mel frames")
        self.register_buffer("mel_mean", torch.zeros(bands))
        self.register_buffer("mel_std", torch.ones(bands))
        self.register_buffer("latent_mean", torch.zeros(c.latent))
        self.register_buffer("latent_std", torch.ones(c.latent))
        self.patchify = nn.Conv1d(bands, c.width, 2 * c.patch, stride=c.patch, padding=c.patch // 2)
        self.encoder = stack(c.blocks, c.width, c.expand)
        self.encoder_norm = nn.LayerNorm(c.width)
        self.posterior = nn.Linear(c.width, 2 * c.latent)
        self.project = nn.Linear(c.latent, c.width)
        self.decoder = stack(c.blocks, c.width, c.expand)
        self.decoder_norm = nn.LayerNorm(c.width)
        self.unpatchify = nn.ConvTranspose1d(c.width, bands, 2 * c.patch, stride=c.patch, padding=c.patch // 2)

    @property
    def context(self) -> tuple[int, int]:
        """Latent frames to either side that the encoder and the decoder see."""
        return reach(self.encoder) + 1, reach(self.decoder) + 1

    def encode(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, each ``[batch, frames / patch, latent]``."""
        x = (mel - self.mel_mean[:, None]) / self.mel_std[:, None]
        x = self.patchify(x).transpose(1, 2)
        for block in self.encoder:
            x = block(x)
        mean, scale = self.posterior(self.encoder_norm(x)).float().chunk(2, dim=-1)
        return mean, F.softplus(scale) + LEAST_SCALE

    def decode(self, latent: Tensor) -> Tensor:
        """Log-mel ``[batch, bands, frames]`` in nepers of latents (not standardised)."""
        x = self.project(latent)
        for block in self.decoder:
            x = block(x)
        x = self.unpatchify(self.decoder_norm(x).transpose(1, 2)).float()
        return x * self.mel_std[:, None] + self.mel_mean[:, None]

    def standardise(self, mean: Tensor) -> Tensor:
        """Posterior means to zero mean and unit variance a channel."""
        return (mean - self.latent_mean) / self.latent_std

    def restore(self, latent: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        return latent * self.latent_std + self.latent_mean

    def loss(self, mel: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 in nepers plus ``kl`` times the KL divergence from N(0, 1) in nats a latent dimension.

        ``noise``: standard normal, ``[batch, frames / patch, latent]``.
        """
        mean, std = self.encode(mel)
        made = self.decode(mean + std * noise)
        l1 = (made - mel).abs().mean()
        kl = (0.5 * (mean**2 + std**2 - 1) - std.log()).mean()
        return l1 + self.config.kl * kl, {"l1": l1.detach(), "kl": kl.detach()}
