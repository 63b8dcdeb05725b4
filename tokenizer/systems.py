"""The tokenizer as systems of the harness: `vqfm`, `vqmse`, `vae` and `copy-synthesis`.

Each stage's loss is a row of its own: copy synthesis is the log-mel through the vocoder, `vae` adds the VAE, `vqmse`
and `vqfm` add the same codes and their decoders. Nothing heavy is imported before one of them is built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalkit.audio import Clip
from evalkit.errors import ContractError, UsageError
from evalkit.identity import digest
from evalkit.registry import system
from evalkit.tokens import Tokens

if TYPE_CHECKING:
    from tokenizer.codec import SoundTokenizer

PAPER = (
    "after Mehta, Jojic, Gamper (2025), Make Some Noise, arXiv 2503.22275: our construction, not the paper's weights"
)
LICENCE = "Apache-2.0 (code and shipped weights; the training data's licences are in the model card)"


def one_thread() -> None:
    """Let torch work on one thread in this process: the harness' workers are the parallelism, and the last bits of a
    result must depend neither on how many there are nor on the machine's cores."""
    import torch

    torch.set_num_threads(1)


class _Trained:
    """What the systems of one trained model share."""

    batch_size = 8

    def __init__(self, model: str, vocoder: str | None) -> None:
        from tokenizer.codec import SoundTokenizer, find_folder

        one_thread()
        self._folder: Path = find_folder(model)
        self._tokenizer: SoundTokenizer = SoundTokenizer.from_pretrained(self._folder, vocoder=vocoder)
        self.vocoder = self._tokenizer.config.vocoder
        self.sample_rate = self._tokenizer.sample_rate
        self.parameters = self._tokenizer.parameters_count

    @property
    def trained_on(self) -> dict[str, list[str]]:
        """Clip ids by data set that the weights were trained on; the harness leaves them out."""
        trained = self._tokenizer.card.get("data", {}).get("trained_on", {})
        return {name: [i for ids in clusters.values() for i in ids] for name, clusters in trained.items()}

    def fingerprint(self) -> str:
        """Hash of the weights, the configuration and the vocoder: the folder's name does not matter."""
        h = hashlib.sha256()
        for name in ("config.json", "model.safetensors"):
            h.update((self._folder / name).read_bytes())
        return digest([h.hexdigest(), self._tokenizer.vocoder.fingerprint()])


class _Codes(_Trained):
    def __init__(self, model: str, vocoder: str | None, objectives: tuple[str, ...], options: dict[str, Any]) -> None:
        super().__init__(model, vocoder)
        t = self._tokenizer
        found = None if t.config.decoder is None else t.config.decoder.objective
        if found not in objectives:
            raise UsageError(f"{self._folder}: its decoder is {found or 'absent'}, expected {' or '.join(objectives)}")
        self._options = options
        t.sampler(**options)

    def encode(self, clip: Clip) -> Tokens:
        return self._tokenizer.encode(clip)

    def encode_batch(self, clips: Sequence[Clip]) -> list[Tokens]:
        return self._tokenizer.encode_batch(clips)

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        return self._tokenizer.decode(tokens, seed, **self._options)

    def decode_batch(self, tokens: Sequence[Tokens], seeds: Sequence[int]) -> list[Clip]:
        return self._tokenizer.decode_batch(tokens, seeds, **self._options)

    def encode_blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return self._tokenizer.encode_blocks(blocks)

    def tokens_of(self, codes: np.ndarray, samples: int) -> Tokens:
        c = self._tokenizer.config
        assert c.quantizer is not None  # there is a decoder, so there are codes
        sizes = c.quantizer.sizes * (len(codes) // len(c.quantizer.sizes))
        return Tokens(codes, sizes, c.frame_rate, samples, self.sample_rate)

    def decode_blocks(self, tokens: Tokens, seed: int) -> Iterator[np.ndarray]:
        return self._tokenizer.decode_blocks(tokens, seed, **self._options)


@system(
    "vqfm",
    licence=LICENCE,
    citation=PAPER,
    stochastic=True,
    requires=("torch",),
    summary="our tokenizer at 0.234 kbps: VAE, vector quantization, flow-matching decoder",
    trained_with=("latent_mse", "embedder:tokenizer-latent"),
)
class VqFm(_Codes):
    """Codes decoded by conditional flow matching.

    Args:
        model: a folder or a hub id; None is the shipped one.
        evaluations: of the network a clip. guidance: weight of classifier-free guidance, 1 for none.
        solver: ``midpoint``, ``euler``, or ``mean`` (the network's own mean, nothing sampled).
        vocoder: as `tokenizer.vocoder.load_vocoder` takes it.
    """

    def __init__(
        self,
        model: str | None = None,
        evaluations: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
        vocoder: str | None = None,
    ) -> None:
        options = {"evaluations": evaluations, "guidance": guidance, "solver": solver}
        super().__init__(model or "vqfm", vocoder, ("fm", "prior"), options)
        self.model = model
        c = self._tokenizer.config.decoder
        assert c is not None
        self.solver = solver or c.solver
        if self.solver != "mean":
            self.evaluations = c.evaluations if evaluations is None else evaluations
            self.guidance = float(c.guidance if guidance is None else guidance)


@system(
    "vqmse",
    licence=LICENCE,
    citation=PAPER,
    stochastic=True,
    requires=("torch",),
    summary="the same codes as vqfm, decoded by the deterministic twin (MSE); only the vocoder draws",
    trained_with=("logmel_mse", "logmel_l1", "latent_mse", "embedder:tokenizer-latent"),
)
class VqMse(_Codes):
    """Codes decoded by the deterministic twin: the same network trained to predict the mean.

    Args:
        model: a folder or a hub id; None is the shipped one.
        vocoder: as `tokenizer.vocoder.load_vocoder` takes it.
    """

    def __init__(self, model: str | None = None, vocoder: str | None = None) -> None:
        super().__init__(model or "vqmse", vocoder, ("mse",), {})
        self.model = model


@system(
    "vae",
    role="ceiling",
    licence=LICENCE,
    citation=PAPER,
    stochastic=True,
    requires=("torch",),
    summary="the tokenizer's VAE without quantisation: continuous latents, counted at 32 bits a value",
    trained_with=("logmel_mse", "logmel_l1", "latent_mse", "embedder:tokenizer-latent"),
)
class Vae(_Trained):
    """Posterior means as float32: what the codes and their decoders can reach at best.

    The tokens are the bytes of the latents (one codebook of 256), so that the rate is what sending them would cost:
    23.4375 frames/s x 32 values x 32 bits = 24 kbps.

    Args:
        model: a folder or a hub id; None is the shipped one. A tokenizer with a quantizer serves as well: its VAE is
            used.
        vocoder: as `tokenizer.vocoder.load_vocoder` takes it.
    """

    def __init__(self, model: str | None = None, vocoder: str | None = None) -> None:
        super().__init__(model or "vae", vocoder)
        self.model = model
        t = self._tokenizer
        self.parameters = sum(p.numel() for p in t.vae.parameters()) + t.vocoder.parameters

    def encode(self, clip: Clip) -> Tokens:
        t = self._tokenizer
        latents = np.concatenate(list(t.latent_blocks([clip.samples])), axis=-1)  # [channels, latent, frames]
        codes = np.ascontiguousarray(latents, dtype="<f4").view(np.uint8).reshape(1, -1)
        rate = t.config.frame_rate * 4 * latents.shape[0] * latents.shape[1]
        return Tokens(codes, (256,), rate, clip.length, clip.sample_rate)

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        import torch

        t = self._tokenizer
        frames = t.frames(tokens.samples)
        values = np.ascontiguousarray(tokens.codes).astype(np.uint8).tobytes()
        per_channel = 4 * t.config.vae.latent * frames
        if tokens.sizes != (256,) or not values or len(values) % per_channel:
            raise ContractError(f"vae: {len(values)} bytes are not latents of {frames} frames")
        latents = np.frombuffer(values, dtype="<f4").reshape(-1, t.config.vae.latent, frames)
        if not np.isfinite(latents).all():
            raise ContractError("vae: the bytes hold values that are not finite")
        whole = torch.from_numpy(latents.transpose(0, 2, 1).copy())
        made = t.latents_to_audio(
            lambda a, b: whole[:, a:b].to(t.device), frames, tokens.samples, [seed] * len(latents)
        )
        return Clip(np.concatenate(list(made), axis=1), tokens.sample_rate)


@system(
    "copy-synthesis",
    role="ceiling",
    licence="Apache-2.0",
    citation="Perraudin, Balazs, Sondergaard (2013), A fast Griffin-Lim algorithm, WASPAA",
    stochastic=True,
    requires=("torch",),
    summary="log-mel spectrogram through the vocoder, nothing else: the ceiling of the tokenizer",
)
class CopySynthesis:
    """The clip's own log-mel (24 kHz, 100 bands), vocoded: what any decoder of mels can reach at best.

    Args:
        vocoder: as `tokenizer.vocoder.load_vocoder` takes it.
    """

    def __init__(self, vocoder: str = "griffin-lim") -> None:
        from tokenizer.codec import SoundTokenizer, TokenizerConfig

        one_thread()
        self._tokenizer = SoundTokenizer(TokenizerConfig(quantizer=None, decoder=None, vocoder=vocoder))
        self.vocoder = vocoder
        self.sample_rate = self._tokenizer.sample_rate
        self.parameters = self._tokenizer.vocoder.parameters

    def fingerprint(self) -> str:
        return self._tokenizer.vocoder.fingerprint()

    def reconstruct(self, clip: Clip, seed: int) -> Clip:
        t = self._tokenizer
        hop, frames = t.config.hop, t.frames(clip.length)
        audio = np.pad(clip.samples, ((0, 0), (0, frames * hop - clip.length)))

        def mel(start: int, stop: int) -> Any:
            a, b = max(0, start - 1), min(frames, stop + 1)  # a frame's window reaches into its neighbours
            made = t.log_mel(audio[:, a * hop : b * hop])
            return made[:, :, (start - a) * t.config.vae.patch : (stop - a) * t.config.vae.patch]

        return Clip(
            np.concatenate(list(t.mel_to_audio(mel, frames, clip.length, [seed] * clip.channels)), axis=1),
            clip.sample_rate,
        )
