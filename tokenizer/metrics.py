"""`latent_mse`: how far two clips are apart in the latent space of the shipped VAE."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from evalkit.audio import Clip, resample
from evalkit.errors import EvalkitError, NotApplicable, Unavailable
from evalkit.metrics.alignment import pair
from evalkit.registry import metric

if TYPE_CHECKING:
    from tokenizer.codec import SoundTokenizer

WEIGHTS = "a64681f8a4697c1e"
"""First 16 hex digits of the sha256 of the shipped VAE's weights. Part of the metric's identity, as this module is."""


@metric(
    "latent_mse",
    unit="1",
    direction="lower",
    group="latent",
    range=(0.0, float("inf")),
    requires=("torch",),
    worsens_with=("noise", "delay", "gain", "bit_depth", "packet_loss", "codec_rate"),
    invariant_to=("polarity",),
)
def latent_mse(reference: Clip, estimate: Clip) -> float:
    """Mean squared error of latents: posterior means of the shipped VAE, standardised by its training data.

    Both clips are resampled to 24 kHz (soxr HQ) and encoded anew, each channel on its own; 0 for equal audio, about 2
    for unrelated audio of the kind that the VAE was trained on. **Circular** for the systems `vae`, `vqfm` and `vqmse`,
    which are trained to make this small: read it for them alone, never to compare them with others. It is in no task
    for that reason; ask for it by ``--metric latent_mse``.

    Raises:
        NotApplicable: the shipped weights are absent.
    """
    pair(reference, estimate)
    return float(np.mean((_latents(reference) - _latents(estimate)) ** 2))


def _latents(clip: Clip) -> np.ndarray:
    """``[channels, latent, frames]``, remembered on the clip."""

    def compute() -> np.ndarray:
        at_rate = resample(clip, _vae().sample_rate)
        return np.concatenate(list(_vae().latent_blocks([at_rate.samples])), axis=-1)

    return clip.memo(f"latents@{WEIGHTS}", compute)


@functools.cache
def _vae() -> SoundTokenizer:
    from tokenizer.codec import SoundTokenizer, find_folder
    from tokenizer.systems import one_thread

    one_thread()
    try:
        folder = find_folder("vae")
    except Unavailable as error:
        raise NotApplicable(str(error)) from error
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if not found.startswith(WEIGHTS):
        raise EvalkitError(
            f"{folder}: not the weights of this version of latent_mse ({found[:16]}, expected {WEIGHTS})"
        )
    return SoundTokenizer.from_pretrained(folder)
