"""`tokenizer-latent`: the latent space of the shipped VAE as an embedder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evalkit.registry import embedder
from tokenizer.metrics import WEIGHTS, _vae

RATE = 24_000
HOP = 1_024
CONTEXT = 14
"""Latent frames to either side that one depends on (`SoundTokenizer.encode_context` of the shipped VAE)."""


@embedder(
    "tokenizer-latent",
    version="1",
    sample_rate=RATE,
    dimension=32,
    window_s=(2 * CONTEXT + 1) * HOP / RATE,
    hop_s=HOP / RATE,
    weights_id=WEIGHTS,
    trained_on=("esc50", "scenes", "fsdd", "vctk", "librispeech", "fma"),
    requires=("torch",),
    licence="Apache-2.0 (the training data's licences are in the model card)",
)
class TokenizerLatent:
    """Latents of the shipped VAE: 32 posterior means 23.4 times a second, standardised by its training data.

    Raw frames at 24 kHz, nothing pooled; a clip of any length has one, the last may be partly beyond its end.
    **Circular** for the systems `vae`, `vqfm` and `vqmse`, which work in this very space and are trained to be near in
    it: tables flag them (their declaration names ``embedder:tokenizer-latent``). Read it to see what they lose
    themselves, never to compare them with others.

    Raises:
        NotApplicable: the shipped weights are absent.
    """

    def __init__(self) -> None:
        self._vae = _vae()

    def embed(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        made = (np.concatenate(list(self._vae.latent_blocks([x[None]])), axis=-1) for x in clips)
        return [np.ascontiguousarray(latents[0].T) for latents in made]
