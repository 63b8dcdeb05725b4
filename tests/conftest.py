"""Shared fixtures. Real audio lies beside the checkout in ``../shared``; tests that need it skip without it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tokenizer.codec import SoundTokenizer

settings.register_profile("evalkit", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("evalkit")

SHARED = Path(os.environ.get("EVALKIT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real audio, weights and reference results; the test is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real audio not found at {SHARED} (set EVALKIT_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def tiny() -> Callable[..., SoundTokenizer]:
    """Makes small tokenizers with random weights, the same for the same arguments: ``tiny(objective="mse")``.

    Arguments are fields of the decoder's configuration; ``kind`` and others of the quantizer's go in ``quantizer``, a
    dictionary. Layers that start at zero are random as well, so that everything that is computed counts.
    """
    import torch

    from tokenizer.codec import SoundTokenizer, TokenizerConfig
    from tokenizer.network import DecoderConfig
    from tokenizer.quantizer import QuantizerConfig
    from tokenizer.vae import VAEConfig

    torch.set_num_threads(1)

    @functools.cache
    def made(quantizer: tuple[tuple[str, Any], ...], decoder: tuple[tuple[str, Any], ...]) -> SoundTokenizer:
        torch.manual_seed(0)
        sizes = {"size": 32, "dim": 6, "width": 16, "blocks": 1, "kmeans_iterations": 5, "fsq": (4, 3, 3), "levels": 2}
        config = TokenizerConfig(
            vae=VAEConfig(latent=8, width=24, blocks=1),
            quantizer=QuantizerConfig(**{**sizes, **dict(quantizer)}),
            decoder=DecoderConfig(**{"width": 16, "blocks": 2, "expand": 2, "evaluations": 4, **dict(decoder)}),
            vocoder="griffin-lim:8",
        )
        tokenizer = SoundTokenizer(config)
        assert tokenizer.quantizer is not None and tokenizer.decoder is not None
        noise = torch.randn(2, 200 * config.hop)
        with torch.no_grad():
            for p in tokenizer.parameters():
                if not p.any():
                    p.normal_(0, 0.3)
            tokenizer.vae.mel_mean.fill_(-5)
            tokenizer.vae.mel_std.fill_(2)
            mean = tokenizer.vae.encode(tokenizer.mel(noise * torch.linspace(0, 0.5, noise.shape[1]) ** 3))[0]
            tokenizer.vae.latent_mean.copy_(mean.mean((0, 1)))
            tokenizer.vae.latent_std.copy_(mean.std((0, 1)))
            tokenizer.quantizer.initialise(tokenizer.vae.standardise(mean).flatten(0, 1))
        return tokenizer.eval()

    def build(quantizer: dict[str, Any] | None = None, **decoder: Any) -> SoundTokenizer:
        return made(tuple(sorted((quantizer or {}).items())), tuple(sorted(decoder.items())))

    return build
