"""EnCodec (Défossez et al. 2022) by transformers' `EncodecModel`: the neural baseline at 1.5 to 24 kbps."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.audio import Clip
from evalkit.errors import ContractError, NotApplicable, Unavailable, UsageError
from evalkit.identity import array_digest, digest
from evalkit.registry import system
from evalkit.tokens import Tokens

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a folder or hub repository; the first that is there is taken."""

HUB_SECONDS = 5.0
"""How long the hub may take to answer before it counts as out of reach."""

TRAINING_STATE = (".inited", ".cluster_size", ".embed_avg")
"""Ends of the names of tensors that only training reads (moving averages of the codebooks)."""


@system(
    "encodec",
    role="codec",
    licence="MIT (code); weights as their publisher states",
    requires=("torch", "transformers"),
    trained_with=("logmel_l1", "logmel_mse", "embedder:encodec"),
    summary="EnCodec, neural codec of general audio, 1.5 to 24 kbps at 24 kHz, 3 to 24 kbps at 48 kHz stereo",
    citation="Défossez, Copet, Synnaeve, Adi (2022), High Fidelity Neural Audio Compression, arXiv:2210.13438",
)
@dataclass(frozen=True)
class Encodec:
    """EnCodec without its optional entropy coder (the paper's language model over codes).

    The 24 kHz model takes mono and emits 75 frames/s. The 48 kHz model takes stereo, in segments of 1 s every 0.99 s,
    each of them 150 frames and one scale: ``side_bits`` are 32 for every scale, and 1 that says whether the clip was
    mono. A mono clip goes into both of its channels and is the mean of both after decoding, so it costs what stereo
    costs. `Tokens.codes` are the segments one after the other; the nominal rate is the paper's, without the overlap
    (1 % more) and the scales, both of which the measured rates count.

    It has no batched calls: on a CPU they gave other last bits (and so now and then another code), and no speed.
    Computes in float32, whatever type the weights are stored in.

    Args:
        kbps: kilobits per second of both channels together, one of the model's own: 1.5 (24 kHz only), 3, 6, 12, 24.
        model: a folder with ``config.json`` and ``model.safetensors`` (or ``pytorch_model.bin``), or a hub id.

    Raises:
        Unavailable: transformers is not installed, or the weights are neither here nor to be had.
        UsageError: a rate that the model was not trained for, or files that are not a whole EnCodec model.
    """

    kbps: float
    model: str = "facebook/encodec_24khz"
    _net: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        config_path, weights_path = find_model(self.model)
        config = read_config(config_path)
        known = [float(b) for b in config.target_bandwidths]
        if self.kbps not in known:
            shown = ", ".join(f"{b:g}" for b in known)
            raise UsageError(f"encodec:{self.kbps:g}: {self.model} was trained for {shown} kbps")
        object.__setattr__(self, "_net", load_network(config, weights_path))

    def __reduce__(self) -> Any:  # torch refuses to pickle weight-normalised modules
        return Encodec, (self.kbps, self.model)

    @property
    def sample_rate(self) -> int:
        return int(self._net.config.sampling_rate)

    @property
    def channels(self) -> int | None:
        return 1 if self._net.config.audio_channels == 1 else None

    @property
    def codebooks(self) -> int:
        return int(self._net.quantizer.get_num_quantizers_for_bandwidth(self.kbps))

    @property
    def parameters(self) -> int:
        """Encoder, decoder, and the codebooks that this rate uses."""
        config = self._net.config
        used = self.codebooks * config.codebook_size * config.codebook_dim
        return sum(p.numel() for p in self._net.parameters()) + used

    def fingerprint(self) -> str:
        """sha256 over the tensors and the configuration, whatever files they came in."""
        tensors = {k: v.numpy() for k, v in self._net.state_dict().items() if not k.endswith(TRAINING_STATE)}
        config = self._net.config
        own = {name: getattr(config, name) for name in sorted(type(config).__annotations__)}
        return digest([own, array_digest(tensors)])

    def encode(self, clip: Clip) -> Tokens:
        import torch

        config = self._net.config
        if clip.channels > config.audio_channels:
            raise NotApplicable(f"{self.model} codes {config.audio_channels} channel(s), the clip has {clip.channels}")
        both = np.broadcast_to(clip.samples, (config.audio_channels, clip.length))
        x = torch.from_numpy(both.copy())[None]
        codes, scales = [], []
        with torch.inference_mode():
            for start, stop in self._segments(clip.length):
                # Not net.encode: it fails where the last segment but one is short by a frame (0.3 % of lengths).
                frames, scale = self._net._encode_frame(x[..., start:stop].contiguous(), self.kbps)
                codes.append(frames[0].numpy())
                if scale is not None:
                    scales.append(float(scale))
        side = {"scales": np.array(scales, dtype=np.float32)} if scales else {}
        if config.audio_channels == 2:
            side["stereo"] = np.array([clip.channels == 2], dtype=np.uint8)
        return Tokens(
            np.concatenate(codes, axis=1),
            (config.codebook_size,) * self.codebooks,
            config.sampling_rate / config.hop_length,
            clip.length,
            clip.sample_rate,
            side_bits=32.0 * len(scales) + (config.audio_channels == 2),
            side=side,
        )

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        import torch

        net, config = self._net, self._net.config
        segments = self._segments(tokens.samples)
        ends = np.cumsum([math.ceil((stop - start) / config.hop_length) for start, stop in segments])
        parts = np.split(tokens.codes.astype(np.int64), ends[:-1], axis=1)
        scales = torch.tensor(tokens.side["scales"]).view(-1, 1, 1) if "scales" in tokens.side else [None] * len(parts)
        with torch.inference_mode():
            frames = [net._decode_frame(torch.from_numpy(p)[None], s) for p, s in zip(parts, scales, strict=True)]
            if config.chunk_length is None:
                y = frames[0][0]
            else:
                y = net._linear_overlap_add(_reach_the_end(frames, config.chunk_stride), config.chunk_stride)[0]
            if "stereo" in tokens.side and not tokens.side["stereo"][0]:
                y = y.mean(dim=0, keepdim=True)
        if y.shape[1] < tokens.samples:
            raise ContractError(f"the codes decode to {y.shape[1]} samples, {tokens.samples} are needed")
        return Clip(y[:, : tokens.samples].numpy(), tokens.sample_rate)

    def _segments(self, length: int) -> list[tuple[int, int]]:
        """First and last sample (exclusive) of each stretch that is coded by itself."""
        config = self._net.config
        if config.chunk_length is None:
            return [(0, length)]
        return [(s, min(s + config.chunk_length, length)) for s in range(0, length, config.chunk_stride)]


def _reach_the_end(frames: list[Any], stride: int) -> list[Any]:
    """Decoded segments ``[1, channels, samples]``, the last zero-padded so that none before it ends later.

    Upstream's overlap-add fails otherwise. The padding lies beyond the clip's end and is cut off.
    """
    import torch

    end = max(i * stride + f.shape[-1] for i, f in enumerate(frames))
    missing = end - (len(frames) - 1) * stride - frames[-1].shape[-1]
    return [*frames[:-1], torch.nn.functional.pad(frames[-1], (0, missing))] if missing else frames


# -- files ------------------------------------------------------------------------------------------------------------


def find_model(model: str) -> tuple[Path, Path]:
    """``config.json`` and the weights of a folder, of the hub's cache, or (asked once, briefly) of the hub itself.

    Raises:
        Unavailable: not to be had; the message says what is missing and what can be done.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        found = {n: folder / n for n in ("config.json", *WEIGHTS) if (folder / n).is_file()}
        absent = "" if "config.json" in found else "config.json"
        if not absent and len(found) == 1:
            absent = " or ".join(WEIGHTS)
        if absent:
            raise Unavailable(f"encodec: the folder {model} has no {absent}; {_remedy('facebook/encodec_24khz')}")
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        found = _from_hub(model)
    else:
        raise Unavailable(f"encodec: there is no folder {model}; {_remedy('facebook/encodec_24khz')}")
    return found["config.json"], next(found[n] for n in WEIGHTS if n in found)


def _from_hub(model: str) -> dict[str, Path]:
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import RemoteEntryNotFoundError
    except ImportError as error:
        raise _no_transformers(error) from error
    try:
        cached = {n: try_to_load_from_cache(model, n) for n in ("config.json", *WEIGHTS)}
        found = {n: Path(p) for n, p in cached.items() if isinstance(p, str)}
        if "config.json" in found and len(found) > 1:
            return found
        # Asked first because hf_hub_download tries again for some 20 s where nothing answers.
        get_hf_file_metadata(hf_hub_url(model, "config.json"), timeout=HUB_SECONDS)
        found = {"config.json": Path(hf_hub_download(model, "config.json", etag_timeout=HUB_SECONDS))}
        for name in WEIGHTS:
            try:
                return found | {name: Path(hf_hub_download(model, name, etag_timeout=HUB_SECONDS))}
            except RemoteEntryNotFoundError:
                continue
        why = f"the hub's repository has no {' or '.join(WEIGHTS)}"
    except Exception as error:  # no network, no such repository, no permission, no room: each its own type
        why = f"the hub gave nothing ({_brief(error)})"
    raise Unavailable(f"encodec: {model} is neither a folder here nor in the hub's cache, and {why}; {_remedy(model)}")


def _remedy(model: str) -> str:
    return (
        f"run `hf download {model} --local-dir FOLDER` where there is a network and name @model=FOLDER, "
        "or score files decoded elsewhere by files:DIR@kbps=KBPS"
    )


def read_config(path: Path) -> Any:
    """The `EncodecConfig` of a ``config.json``.

    Raises:
        UsageError: not JSON, of another model, or with values that EnCodec cannot have.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind = values["model_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path} is not a model's configuration ({_brief(error)})") from error
    if kind != "encodec":
        raise UsageError(f"{path} configures a model of type {kind!r}, not 'encodec': name an EnCodec model")
    config_class, _ = _upstream()
    try:
        config = config_class.from_dict(values)
        if config.audio_channels not in (1, 2) or (config.chunk_length and not config.chunk_stride):
            raise ValueError("audio_channels must be 1 or 2, and chunk_length_s needs overlap")
    except Exception as error:  # transformers' validators raise several types
        raise UsageError(f"{path}: {_brief(error)}") from error
    return config


def load_network(config: Any, path: Path) -> Any:
    """An `EncodecModel` in float32 and eval mode with every tensor that coding needs taken from ``path``.

    Not by ``from_pretrained``: that fills tensors which a file lacks with random numbers and goes on.

    Raises:
        UsageError: unreadable, truncated, of other shapes, or without some tensor.
    """
    import torch

    state = _read_tensors(path)
    _, model_class = _upstream()
    try:
        with torch.random.fork_rng(devices=[]):  # its random start, soon overwritten, is not the caller's to pay for
            net = model_class(config)
    except Exception as error:
        place = path.parent / "config.json"
        raise UsageError(f"{place}: no model can be built from it ({_brief(error)})") from error
    try:
        missing = net.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        shapes = re.findall(r"size mismatch for [^\n]*", str(error))
        raise UsageError(f"{path} does not fit its config.json: {shapes[0] if shapes else _brief(error)}") from error
    missing = [k for k in missing if not k.endswith(TRAINING_STATE)]
    if missing:
        raise UsageError(
            f"{path} lacks {len(missing)} tensors that its config.json asks for, {missing[0]} among them: "
            "it is not a whole EnCodec model; fetch it again"
        )
    return net.eval()


def _read_tensors(path: Path) -> dict[str, Any]:
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}, not tensors by name")
        return state
    except Exception as error:  # each format, and each way of being cut short, has its own type
        raise UsageError(
            f"{path} cannot be read as weights, truncated perhaps ({_brief(error)}); fetch it again"
        ) from error


def _upstream() -> tuple[Any, Any]:
    try:
        from transformers import EncodecConfig, EncodecModel
    except (ImportError, OSError, RuntimeError) as error:  # a broken torchaudio beside it raises the latter two
        raise _no_transformers(error) from error
    return EncodecConfig, EncodecModel


def _no_transformers(error: Exception) -> Unavailable:
    return Unavailable(f"encodec needs transformers: pip install 'evalkit-audio[encodec]' ({_brief(error)})")


def _brief(error: Exception) -> str:
    """Type and first line of an exception.

    >>> _brief(ValueError("bad\\nand more"))
    'ValueError: bad'
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
