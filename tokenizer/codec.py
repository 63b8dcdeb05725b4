"""`SoundTokenizer`: audio to codes and back, whole clips, batches or hour-long files.

    audio 24 kHz -> log-mel 93.75/s -> VAE mean 23.44/s, standardised -> codes      (nothing random)
    codes -> vectors -> decoder (flow matching or its twin) -> VAE decoder -> vocoder -> audio      (seeded)

Without a quantizer it is the VAE with continuous latents; without a decoder it only encodes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evalkit.audio import Clip, resample
from evalkit.errors import ContractError, EvalkitError, Unavailable, UsageError
from evalkit.tokens import Tokens
from tokenizer.flow import Counted, Solver, guided
from tokenizer.mel import LogMel, MelConfig
from tokenizer.network import DecoderConfig, DecoderNetwork
from tokenizer.quantizer import Quantizer, QuantizerConfig
from tokenizer.vae import VAE, VAEConfig
from tokenizer.vocoder import Vocoder, load_vocoder

FORMAT = 1
"""Of a saved tokenizer. Raised when old weights would be read wrongly; a folder of another format is refused."""

CHUNK_SECONDS = 60.0
"""Longer audio is worked on in pieces of this length, with the context that every stage sees on either side."""

NOISE_BLOCK = 256
"""Latent frames whose noise comes from one generator, so that it depends on the seed and the place alone."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that a saved tokenizer is built from. ``quantizer`` and ``decoder`` are None where there is none."""

    mel: MelConfig = field(default_factory=MelConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    quantizer: QuantizerConfig | None = field(default_factory=QuantizerConfig)
    decoder: DecoderConfig | None = field(default_factory=DecoderConfig)
    vocoder: str = "griffin-lim"

    @property
    def hop(self) -> int:
        """Samples a latent frame (1024)."""
        return self.mel.hop * self.vae.patch

    @property
    def frame_rate(self) -> float:
        """Latent frames, and codes of each codebook, a second (23.4375)."""
        return self.mel.sample_rate / self.hop

    @property
    def bitrate(self) -> float:
        """Nominal bits per second, ``frame_rate x sum(log2 K)``; 32 bits a latent value where nothing is quantised."""
        bits = 32.0 * self.vae.latent if self.quantizer is None else self.quantizer.bits
        return self.frame_rate * bits


class SoundTokenizer(nn.Module):
    """A trained (or fresh) tokenizer. `tokenizer.systems` makes systems of the harness of it.

    >>> tokenizer = SoundTokenizer.from_pretrained("vqfm")            # doctest: +SKIP
    >>> tokens = tokenizer.encode(clip)                               # doctest: +SKIP
    >>> again = tokenizer.decode(tokens, seed=0)                      # doctest: +SKIP

    Attributes:
        config: what it was built from. sample_rate: in Hz.
        card: recipe, data and results of its training, from ``training.json`` beside the weights.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.card: dict[str, Any] = {}
        self.mel = LogMel(config.mel)
        self.vae = VAE(config.vae, config.mel.bands)
        self.quantizer = None if config.quantizer is None else Quantizer(config.quantizer, config.vae.latent)
        self.decoder = None
        if config.decoder is not None:
            if self.quantizer is None:
                raise ValueError("a decoder needs a quantizer: its condition is the vectors of the codes")
            self.decoder = DecoderNetwork(config.decoder, config.vae.latent, self.quantizer.dim)
        self.vocoder: Vocoder = load_vocoder(config.vocoder, config.mel)

    @property
    def sample_rate(self) -> int:
        return self.config.mel.sample_rate

    @property
    def parameters_count(self) -> int:
        """Trained parameters of all stages, the vocoder's included."""
        return sum(p.numel() for p in self.parameters()) + self.vocoder.parameters

    @property
    def device(self) -> torch.device:
        return self.mel.window.device

    def frames(self, samples: int) -> int:
        """Latent frames of so many samples: the last one may be partly beyond the end."""
        return -(-samples // self.config.hop)

    # -- encoding -----------------------------------------------------------------------------------------------------

    @property
    def encode_context(self) -> int:
        """Latent frames to either side that a code depends on (one more for the window of the spectrogram)."""
        return 1 + self.vae.context[0] + (self.quantizer.context if self.quantizer is not None else 0)

    @torch.inference_mode()
    def log_mel(self, audio: np.ndarray) -> Tensor:
        """Log-mel ``[rows, bands, samples / mel hop]`` of audio ``[rows, samples]``."""
        return self.mel(self._tensor(audio))

    @torch.inference_mode()
    def latents(self, audio: Tensor) -> Tensor:
        """Standardised posterior means ``[batch, frames, latent]`` of ``[batch, samples]``, a multiple of ``hop``."""
        return _by_row(lambda x: self.vae.standardise(self.vae.encode(self.mel(x))[0]), audio)

    def encode(self, clip: Clip) -> Tokens:
        """Tokens of a clip; each channel is coded on its own, its codebooks after those of the channel before.

        Audio at another rate is resampled to `sample_rate` first (soxr HQ); the tokens then stand for that. Clips
        longer than `CHUNK_SECONDS` are worked on in overlapping pieces.

        Raises:
            UsageError: the tokenizer has no quantizer.
        """
        return self.encode_batch([clip])[0]

    def encode_batch(self, clips: Sequence[Clip]) -> list[Tokens]:
        """`encode` for several clips; those with equal numbers of frames go through the network together."""
        given = [resample(clip, self.sample_rate) for clip in clips]
        rows = [(i, c) for i, clip in enumerate(given) for c in range(clip.channels)]
        codes: dict[tuple[int, int], np.ndarray] = {}
        for group in _equal(rows, lambda row: self.frames(given[row[0]].length)):
            audio = [given[i].samples[c] for i, c in group]
            if len(group) > 1 and self.frames(len(audio[0])) <= self._step:
                found = self._codes(np.concatenate([_padded(a[None], self.config.hop) for a in audio]))
                codes |= dict(zip(group, found, strict=True))
            else:
                for row, a in zip(group, audio, strict=True):
                    codes[row] = np.concatenate(list(self.encode_blocks([a[None]])), axis=1)
        return [
            self._tokens(np.concatenate([codes[i, c] for c in range(clip.channels)]), clip.length, clip.channels)
            for i, clip in enumerate(given)
        ]

    def encode_blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Codes of a long signal that comes in blocks, in bounded memory.

        Args:
            blocks: float ``[channels, samples]`` at `sample_rate`, of any lengths, the same channels each.

        Yields:
            Codes ``[channels * books, frames]``, together those of the whole signal: every frame is coded with all the
            context that it depends on.
        """
        for codes in self._pieces(blocks, self.encode_context, self._codes):
            yield codes.reshape(-1, codes.shape[2])

    def latent_blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Standardised latents ``[channels, latent, frames]`` of a long signal, as `encode_blocks` gives codes."""
        return self._pieces(blocks, 1 + self.vae.context[0], self._latents)

    def _pieces(
        self, blocks: Iterable[np.ndarray], context: int, function: Callable[[np.ndarray], np.ndarray]
    ) -> Iterator[np.ndarray]:
        """``function`` (``[rows, samples]`` to ``[rows, ..., frames]``) over a signal that comes in blocks, each frame
        with ``context`` frames on either side of it."""
        hop, step = self.config.hop, self._step
        held: list[np.ndarray] = []  # the first starts `left` frames before the first frame that is not yet done
        samples = left = 0
        for block in blocks:
            held.append(block)
            samples += block.shape[1]
            while samples >= (left + step + context) * hop:
                whole = _joined(held)
                yield function(whole[:, : (left + step + context) * hop])[..., left : left + step]
                keep = min(context, left + step)
                held = [whole[:, (left + step - keep) * hop :]]
                samples, left = held[0].shape[1], keep
        if samples > left * hop:
            yield function(_padded(_joined(held), hop))[..., left:]

    @property
    def _step(self) -> int:
        """Latent frames of `CHUNK_SECONDS`."""
        return max(1, round(CHUNK_SECONDS * self.config.frame_rate))

    @torch.inference_mode()
    def _codes(self, audio: np.ndarray) -> np.ndarray:
        """``[rows, samples]`` (a multiple of ``hop``) to ``[rows, books, frames]``."""
        codes = _by_row(self._quantizer().encode, self.latents(self._tensor(audio)))
        return codes.transpose(1, 2).cpu().numpy()

    def _latents(self, audio: np.ndarray) -> np.ndarray:
        return self.latents(self._tensor(audio)).transpose(1, 2).cpu().numpy()

    def _tensor(self, audio: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32)).to(self.device)

    def _quantizer(self) -> Quantizer:
        if self.quantizer is None:
            raise UsageError("this tokenizer has no quantizer: its latents are continuous")
        return self.quantizer

    def _tokens(self, codes: np.ndarray, samples: int, channels: int) -> Tokens:
        sizes = self._quantizer().config.sizes * channels
        return Tokens(codes, sizes, self.config.frame_rate, samples, self.sample_rate)

    # -- decoding -----------------------------------------------------------------------------------------------------

    def decode(
        self,
        tokens: Tokens,
        seed: int,
        *,
        evaluations: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
    ) -> Clip:
        """The clip that tokens stand for, exactly ``tokens.samples`` long; the same bytes for the same seed.

        Args:
            tokens: as `encode` gave them.
            seed: of the flow's noise and of the vocoder's phases.
            evaluations, guidance, solver: of flow matching; None takes those of the configuration. Solver ``mean`` is
                no solver: the network's own mean (x = 0, t = 0), one evaluation. A deterministic decoder has no other
                way and refuses the rest.

        Raises:
            ContractError: tokens of another codec. UsageError: no decoder, or sampling options that cannot be.
        """
        return self.decode_batch([tokens], [seed], evaluations=evaluations, guidance=guidance, solver=solver)[0]

    def decode_batch(
        self,
        tokens: Sequence[Tokens],
        seeds: Sequence[int],
        *,
        evaluations: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
    ) -> list[Clip]:
        """`decode` for several; those with equal numbers of frames go through the network together."""
        sample = self.sampler(evaluations, guidance, solver)
        for one in tokens:
            self._check(one)
        rows = [(i, c) for i, one in enumerate(tokens) for c in range(self._channels(one))]
        audio: dict[tuple[int, int], np.ndarray] = {}
        for group in _equal(rows, lambda row: tokens[row[0]].codes.shape[1]):
            codes = torch.stack([self._row(tokens[i], c) for i, c in group])
            lengths = [tokens[i].samples for i, _ in group]
            made = self._audio_blocks(codes, max(lengths), [_channel_seed(seeds[i], c) for i, c in group], sample)
            whole = np.concatenate(list(made), axis=1)
            audio |= {row: whole[n, :length] for n, (row, length) in enumerate(zip(group, lengths, strict=True))}
        return [
            Clip(np.stack([audio[i, c] for c in range(self._channels(one))]), self.sample_rate)
            for i, one in enumerate(tokens)
        ]

    def decode_blocks(self, tokens: Tokens, seed: int, **options: Any) -> Iterator[np.ndarray]:
        """`decode`, with its options, in pieces ``[channels, samples]`` of at most `CHUNK_SECONDS`, in bounded
        memory."""
        sample = self.sampler(**options)
        self._check(tokens)
        channels = self._channels(tokens)
        codes = torch.stack([self._row(tokens, c) for c in range(channels)])
        seeds = [_channel_seed(seed, c) for c in range(channels)]
        return self._audio_blocks(codes, tokens.samples, seeds, sample)

    def sampler(
        self, evaluations: int | None = None, guidance: float | None = None, solver: str | None = None
    ) -> Sampler:
        """How latents are made from the vectors of codes, with the options of `decode`."""
        if self.decoder is None:
            raise UsageError("this tokenizer has no decoder: it only encodes")
        c = self.decoder.config
        if solver == "mean" or c.objective == "mse":
            if not (evaluations is None and guidance is None and solver in (None, "mean")):
                raise UsageError(
                    "the mean, all that a deterministic decoder has, takes no evaluations, guidance or solver"
                )
            return Sampler(self.decoder, None, 1.0)
        try:
            chosen = Solver(solver or c.solver, c.evaluations if evaluations is None else evaluations)
        except ValueError as error:
            raise UsageError(str(error)) from error
        weight = c.guidance if guidance is None else guidance
        if not math.isfinite(weight):
            raise UsageError(f"guidance {weight}: must be finite")
        return Sampler(self.decoder, chosen, weight)

    def _audio_blocks(self, codes: Tensor, samples: int, seeds: Sequence[int], sample: Sampler) -> Iterator[np.ndarray]:
        """``[rows, frames, books]`` to audio ``[rows, samples]`` in pieces."""

        @torch.inference_mode()
        def latents(start: int, stop: int) -> Tensor:
            a, b = max(0, start - sample.context), min(codes.shape[1], stop + sample.context)
            x0 = torch.stack([noise(seed, a, b - a, self.config.vae.latent) for seed in seeds]).to(self.device)
            vectors = self._quantizer().vectors(codes[:, a:b].to(self.device))
            return _by_row(sample, vectors, x0)[:, start - a : stop - a]

        return self.latents_to_audio(latents, codes.shape[1], samples, seeds)

    def latents_to_audio(
        self, latents: Callable[[int, int], Tensor], frames: int, samples: int, seeds: Sequence[int]
    ) -> Iterator[np.ndarray]:
        """Audio ``[rows, samples]`` in pieces, of ``latents(start, stop)``: ``[rows, stop - start, latent]`` of the
        ``frames`` in all."""

        def mel(start: int, stop: int) -> Tensor:
            a, b = max(0, start - self.vae.context[1]), min(frames, stop + self.vae.context[1])
            patch = self.config.vae.patch
            return self.mel_of(latents(a, b))[:, :, (start - a) * patch : (stop - a) * patch]

        return self.mel_to_audio(mel, frames, samples, seeds)

    def mel_to_audio(
        self, mel: Callable[[int, int], Tensor], frames: int, samples: int, seeds: Sequence[int]
    ) -> Iterator[np.ndarray]:
        """Audio ``[rows, samples]`` in pieces, of ``mel(start, stop)``: log-mel ``[rows, bands, ...]`` of latent frames
        ``start`` to ``stop`` of ``frames``."""
        hop, step = self.config.hop, self._step
        context = -(-self.vocoder.context // self.config.vae.patch)
        for start in range(0, frames, step):
            stop = min(frames, start + step)
            a, b = max(0, start - context), min(frames, stop + context)
            audio = self.vocoder(mel(a, b), (b - a) * hop, seeds, first_frame=a * self.config.vae.patch)
            yield audio[:, (start - a) * hop : min(samples, stop * hop) - a * hop].cpu().numpy().astype(np.float32)

    @torch.inference_mode()
    def mel_of(self, latents: Tensor) -> Tensor:
        """Log-mel ``[batch, bands, frames * patch]`` in nepers of standardised latents."""
        made = _by_row(lambda x: self.vae.decode(self.vae.restore(x)), latents)
        return made.clamp_min(math.log(self.config.mel.floor))

    def _check(self, tokens: Tokens) -> None:
        sizes = self._quantizer().config.sizes
        channels = len(tokens.sizes) // len(sizes)
        if channels < 1 or tuple(tokens.sizes) != sizes * channels:
            raise ContractError(f"tokens with codebooks {tokens.sizes}: this tokenizer has {sizes} a channel")
        found = (tokens.codes.shape[1], tokens.sample_rate, tokens.frame_rate)
        made = (self.frames(tokens.samples), self.sample_rate, self.config.frame_rate)
        if found != made:
            raise ContractError(
                f"tokens of {tokens.samples} samples: {found[0]} frames at {found[1]} Hz, {found[2]:g} frames/s; this "
                f"tokenizer makes {made[0]} frames at {made[1]} Hz, {made[2]:g} frames/s"
            )

    def _channels(self, tokens: Tokens) -> int:
        return len(tokens.sizes) // len(self._quantizer().config.sizes)

    def _row(self, tokens: Tokens, channel: int) -> Tensor:
        """Codes of one channel, ``[frames, books]``."""
        books = len(self._quantizer().config.sizes)
        codes = tokens.codes[channel * books : (channel + 1) * books].astype(np.int64)
        return torch.from_numpy(codes.T.copy())

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, card: dict[str, Any] | None = None, *, half: bool = False) -> None:
        """Write ``config.json``, ``model.safetensors`` and, where there is one, ``training.json``.

        ``half`` stores trained weights as float16.

        Statistics (means, deviations) stay in float32, where float16 would cost precision for nothing.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        if half:
            trained = {k for k, _ in self.named_parameters()}
            tensors = {k: v.half() if k in trained else v for k, v in tensors.items()}
        save_file(tensors, folder / "model.safetensors")
        about = {"format": FORMAT, "config": dataclasses.asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if card or self.card:
            (folder / "training.json").write_text(json.dumps(card or self.card, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: str | Path, *, vocoder: str | None = None) -> SoundTokenizer:
        """Load a saved tokenizer: the name of a shipped one (``vqfm``), a folder, or the id of a hub repository.

        Raises:
            Unavailable: nothing of that name here, and the hub cannot be reached.
            EvalkitError: a folder that holds no tokenizer, one of another format, a damaged or foreign file.
        """
        folder = find_folder(name)
        about = _read_config(folder / "config.json")
        config = config_from_json(about["config"], str(folder / "config.json"))
        if vocoder is not None:
            config = dataclasses.replace(config, vocoder=vocoder)
        try:
            tokenizer = cls(config)
        except (TypeError, ValueError, RuntimeError) as error:  # sizes or names that no layer takes
            raise EvalkitError(f"{folder / 'config.json'}: no tokenizer can be built from it ({error})") from error
        _load_weights(tokenizer, folder / "model.safetensors")
        if (folder / "training.json").is_file():
            tokenizer.card = _read_json(folder / "training.json")
        return tokenizer.eval()


@dataclass(frozen=True)
class Sampler:
    """From the vectors of codes to standardised latents: a solved flow, or the network's mean (``solver`` None)."""

    network: DecoderNetwork
    solver: Solver | None
    guidance: float

    @property
    def context(self) -> int:
        """Latent frames to either side that the result depends on: those of one evaluation, as often as it is made."""
        return self.network.context * (1 if self.solver is None else self.solver.evaluations)

    def __call__(self, condition: Tensor, x0: Tensor) -> Tensor:
        return self.counted(condition, x0)[0]

    def counted(self, condition: Tensor, x0: Tensor) -> tuple[Tensor, int]:
        """Latents, and the number of evaluations of the network that they took (guidance doubles it)."""
        if self.solver is None:
            return self.network.mean(condition), 1
        keep = torch.ones(len(condition), dtype=torch.bool, device=condition.device)
        given = Counted(lambda x, t: self.network(x, t, condition))
        free = Counted(lambda x, t: self.network(x, t, condition, ~keep))
        made = self.solver(guided(given, free, self.guidance), x0)
        return made, given.evaluations + free.evaluations


def noise(seed: int, first: int, frames: int, channels: int) -> Tensor:
    """Standard normal ``[frames, channels]`` for latent frames ``first ...``: by seed and place, however it is cut."""
    blocks = []
    for block in range(first // NOISE_BLOCK, (first + frames - 1) // NOISE_BLOCK + 1):
        rng = np.random.default_rng([seed, block])
        blocks.append(rng.standard_normal((NOISE_BLOCK, channels), dtype=np.float32))
    offset = first % NOISE_BLOCK
    return torch.from_numpy(np.concatenate(blocks)[offset : offset + frames])


def _channel_seed(seed: int, channel: int) -> int:
    """The first channel has the clip's own seed, so that mono and the left of stereo agree."""
    return seed if channel == 0 else int(np.random.SeedSequence([seed, channel]).generate_state(1)[0])


def _by_row(function: Callable[..., Tensor], *batch: Tensor) -> Tensor:
    """``function`` of a batch; on the CPU a row at a time, hardly slower, so that a clip's bytes never depend on its
    batch."""
    if batch[0].device.type != "cpu":
        return function(*batch)
    return torch.cat([function(*(x[i : i + 1] for x in batch)) for i in range(len(batch[0]))])


def _equal(rows: list[Any], key: Callable[[Any], int]) -> list[list[Any]]:
    groups: dict[int, list[Any]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def _padded(audio: np.ndarray, hop: int) -> np.ndarray:
    """``[rows, samples]`` with zeros up to a multiple of ``hop``."""
    return np.pad(audio, ((0, 0), (0, -audio.shape[1] % hop)))


def _joined(blocks: list[np.ndarray]) -> np.ndarray:
    """Blocks ``[rows, samples]`` one after another; a single one is not copied."""
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)


# -- folders and files ------------------------------------------------------------------------------------------------

SHIPPED = Path(__file__).resolve().parent / "weights"


def find_folder(name: str | Path) -> Path:
    """The folder of a saved tokenizer: a shipped name, an existing folder, else a hub repository.

    Raises:
        Unavailable: none of these; the message lists what is shipped.
    """
    shipped = sorted(p.name for p in SHIPPED.iterdir() if (p / "config.json").is_file()) if SHIPPED.is_dir() else []
    if str(name) in shipped:
        return SHIPPED / str(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    known = f"shipped here: {', '.join(shipped) or 'none'}; or name a folder written by save_pretrained"
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise Unavailable(f"no tokenizer {str(name)!r}: {known}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise Unavailable(
            f"no tokenizer {str(name)!r} here, and huggingface_hub is not installed to fetch it "
            f"(pip install huggingface_hub); {known}"
        ) from error
    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "model.safetensors"]))
    except Exception as error:  # the hub's client raises many kinds for "not there" and "not reachable"
        raise Unavailable(f"no tokenizer {str(name)!r} here, and the hub did not give it ({error}); {known}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalkitError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise EvalkitError(f"{path}: not the file of a sound tokenizer")
    return value


def _read_config(path: Path) -> dict[str, Any]:
    about = _read_json(path)
    if not isinstance(about.get("config"), dict):
        raise EvalkitError(f"{path}: not the configuration of a sound tokenizer: no `config` in it")
    found = about.get("format")
    if found != FORMAT:
        raise EvalkitError(
            f"{path}: a tokenizer of format {found}, this version reads format {FORMAT}: use the version of "
            "evalkit-audio that wrote it, or train it anew"
        )
    return about


def config_from_json(value: dict[str, Any], where: str = "config") -> TokenizerConfig:
    """The configuration that ``dataclasses.asdict`` wrote.

    Raises:
        EvalkitError: a field that is unknown, missing or of the wrong kind.
    """
    kinds = {"mel": MelConfig, "vae": VAEConfig, "quantizer": QuantizerConfig, "decoder": DecoderConfig}

    def part(name: str, given: Any) -> Any:
        if given is None or name not in kinds:
            return given
        return kinds[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})

    try:
        missing = {f.name for f in dataclasses.fields(TokenizerConfig)} - value.keys()
        if missing:
            raise TypeError(f"no {', '.join(sorted(missing))}")
        return TokenizerConfig(**{name: part(name, given) for name, given in value.items()})
    except (TypeError, AttributeError) as error:
        raise EvalkitError(f"{where}: not the configuration of a sound tokenizer of this version ({error})") from error


def _load_weights(module: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise EvalkitError(
            f"{path}: cannot be read as safetensors ({error}): damaged or incomplete, fetch it again"
        ) from error
    wanted = module.state_dict()
    wrong = [k for k in wanted if k not in tensors or tensors[k].shape != wanted[k].shape]
    extra = [k for k in tensors if k not in wanted]
    if wrong or extra:
        name = (wrong or extra)[0]
        has = tuple(tensors[name].shape) if name in tensors else "absent"
        needs = tuple(wanted[name].shape) if name in wanted else "unknown"
        raise EvalkitError(
            f"{path}: not the weights of this configuration: {len(wrong)} tensors missing or of another shape, "
            f"{len(extra)} unknown; first {name}: {has} in the file, {needs} in the model"
        )
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise EvalkitError(f"{path}: {broken[0]} holds NaN or infinite values: damaged, fetch it again")
    module.load_state_dict({k: v.to(wanted[k].dtype) for k, v in tensors.items()})
