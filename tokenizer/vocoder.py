"""From log-mel spectrograms back to audio: fast Griffin-Lim (the default, no weights), Vocos and BigVGAN.

``load_vocoder(spec, mel)(log_mel, length, seeds, first_frame)`` is all the rest of the tokenizer needs. The two
networks are plain functions of a table of tensors under upstream's names, so that public checkpoints load as they are;
neither torchaudio nor the upstream packages are used. Weights are fetched only when asked for by name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import pickle
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.errors import Unavailable, UsageError
from evalkit.metrics.spectral import mel_filters
from tokenizer.mel import MelConfig

ITERATIONS = 32
MOMENTUM = 0.99
MEL_STEPS = 10
"""Multiplicative steps of the mel inverse. On 16 real clips (log-mel L1 of the audio after Griffin-Lim, nepers): pinv
clamped at zero 0.091, smooth start alone 0.158, with 3 to 30 steps 0.073 to 0.074."""
PHASE_BLOCK = 256
AT_FLOOR = 0.01
"""Bands within this many nepers of the floor count as empty: float16 rounds the floor by 0.004."""

VOCOS_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
BIGVGAN_FILES = ("bigvgan_generator.safetensors", "bigvgan_generator.pt")
HUB_SECONDS = 5
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class Vocoder:
    """What every vocoder offers.

    Attributes:
        name: without any path of this machine. parameters: trained parameters. mel: the geometry it takes.
        context: frames to either side that a frame needs: a long file may be decoded in chunks that overlap by this.
    """

    def __init__(self, name: str, mel: MelConfig, parameters: int, context: int, fingerprint: str) -> None:
        self.name = name
        self.mel = mel
        self.parameters = parameters
        self.context = context
        self.device = torch.device("cpu")
        self._fingerprint = fingerprint

    def fingerprint(self) -> str:
        """sha256 of the weights, or of the settings where there are none."""
        return self._fingerprint

    def to(self, device: torch.device | str) -> Vocoder:
        """Move to a device; returns itself."""
        self.device = torch.device(device)
        return self

    def __call__(self, log_mel: Tensor, length: int, seeds: Sequence[int], first_frame: int = 0) -> Tensor:
        """Audio of a log-mel spectrogram.

        Args:
            log_mel: ``[batch, bands, frames]`` in nepers, as `tokenizer.mel.LogMel` makes it.
            length: samples to return, at most ``frames * hop``.
            seeds: one for each clip. Networks are deterministic and do not use them.
            first_frame: index in the whole file of the first frame, where this is a chunk of it.

        Returns:
            ``[batch, length]`` float32 at ``mel.sample_rate`` Hz, not clipped by Griffin-Lim and Vocos, without
            gradient. On the CPU a clip gives the same bytes alone and in a batch.

        Raises:
            ValueError: a wrong shape, a length beyond the frames, not one seed for each clip, a negative first frame.
        """
        if log_mel.ndim != 3 or log_mel.shape[1] != self.mel.bands or 0 in log_mel.shape:
            raise ValueError(f"log-mel {list(log_mel.shape)}: expected [batch, {self.mel.bands}, frames]")
        batch, _, frames = log_mel.shape
        if not 0 < length <= frames * self.mel.hop:
            raise ValueError(f"{length} samples from {frames} frames: at least 1, at most {frames * self.mel.hop}")
        if len(seeds) != batch:
            raise ValueError(f"{len(seeds)} seeds for {batch} clips")
        if first_frame < 0:
            raise ValueError(f"first frame {first_frame}: at least 0")
        # One clip at a time on the CPU: it stays in the cache (twice as fast) and never depends on its batch.
        step = 1 if self.device.type == "cpu" else batch
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            x = log_mel.detach().to(self.device, torch.float32)
            parts = [self._decode(x[i : i + step], seeds[i : i + step], first_frame) for i in range(0, batch, step)]
            return torch.cat(parts)[:, :length]

    def _decode(self, log_mel: Tensor, seeds: Sequence[int], first_frame: int) -> Tensor:
        """``[batch, bands, frames]`` to ``[batch, at least frames * hop]``."""
        raise NotImplementedError


def load_vocoder(spec: str, mel: MelConfig) -> Vocoder:
    """A vocoder by name.

    Args:
        spec: ``griffin-lim``, ``griffin-lim:ITERATIONS``, ``vocos:WHERE`` or ``bigvgan:WHERE``. WHERE is a file of
            weights, the folder that holds it, or an id of the Hugging Face hub (``charactr/vocos-mel-24khz``,
            ``nvidia/bigvgan_v2_24khz_100band_256x``, or ``ID@REVISION``), looked for in its local cache first.
        mel: geometry of the spectrograms that it will get.

    Raises:
        UsageError: unknown name or setting, a damaged or foreign checkpoint, one trained for another geometry.
        Unavailable: the weights are not here and cannot be fetched.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "griffin-lim":
        if colon and not (rest.isascii() and rest.isdigit() and 1 <= int(rest) <= 10_000):
            raise UsageError(f"vocoder {spec!r}: iterations are a whole number from 1 to 10000, as in griffin-lim:64")
        return GriffinLim(mel, int(rest) if colon else ITERATIONS)
    if kind in ("vocos", "bigvgan"):
        if not rest:
            raise UsageError(f"vocoder {spec!r}: say where the weights are, as in {kind}:FOLDER")
        return Vocos(rest, mel) if kind == "vocos" else BigVGAN(rest, mel)
    raise UsageError(f"vocoder {spec!r}: expected griffin-lim, griffin-lim:ITERATIONS, vocos:WHERE or bigvgan:WHERE")


# -- Fourier transforms ------------------------------------------------------------------------------------------------


def synthesis(spectrum: Tensor, window: Tensor, hop: int) -> Tensor:
    """Least-squares inverse STFT, ``[batch, frames, bins]`` complex to ``[batch, (frames - 1) * hop]``.

    The same as ``torch.istft(..., center=True)``, in a third less time: overlap-add as a few shifted sums.
    """
    n_fft = len(window)
    parts = n_fft // hop
    framed = torch.fft.irfft(spectrum, n_fft, dim=-1) * window
    batch, frames, _ = framed.shape
    total = _shifted_sum(framed.view(batch, frames, parts, hop))
    weight = _shifted_sum(window.square().view(1, 1, parts, hop).expand(1, frames, parts, hop))
    inner = slice(n_fft // 2, n_fft // 2 + (frames - 1) * hop)
    return total[:, inner] / weight[:, inner]


def _shifted_sum(framed: Tensor) -> Tensor:
    frames, parts = framed.shape[1:3]
    out = F.pad(framed[:, :, 0], (0, 0, 0, parts - 1))
    for k in range(1, parts):
        out[:, k : k + frames] += framed[:, :, k]
    return out.flatten(1)


def analysis(audio: Tensor, window: Tensor, hop: int) -> Tensor:
    """STFT with centred frames and reflected padding, ``[batch, samples]`` to ``[batch, 1 + samples / hop, bins]``."""
    half = len(window) // 2
    padded = F.pad(audio[:, None], (half, half), mode="reflect")[:, 0]
    return torch.fft.rfft(padded.unfold(-1, len(window), hop) * window, dim=-1)


def _check_geometry(mel: MelConfig) -> None:
    if mel.n_fft % (2 * mel.hop):
        raise UsageError(f"vocoder: n_fft {mel.n_fft} must be a multiple of twice the hop of {mel.hop}")


class MelInverse:
    """Magnitudes whose mel bands are those given: ``[batch, bands, frames]`` in nepers to ``[batch, bins, frames]``.

    A smooth start (each bin takes the mean level of its bands) and `MEL_STEPS` multiplicative steps of the generalised
    Kullback-Leibler divergence (Lee & Seung 1999), which keep magnitudes non-negative and, unlike least squares, weigh
    loud and soft bands alike. Bands at the floor give exact zeros; so do 0 Hz and half the sample rate, which no band
    sees. Magnitudes are those of an unscaled Hann window.
    """

    def __init__(self, mel: MelConfig) -> None:
        bank = mel_filters(mel.sample_rate, mel.n_fft, mel.bands)
        columns = np.maximum(bank.sum(0), 1e-9)[:, None]
        rows = np.maximum(bank.sum(1), 1e-9)
        self.mel = mel
        self.bank = torch.tensor(bank, dtype=torch.float32)
        self.back = torch.tensor(bank.T / columns, dtype=torch.float32)
        self.start = torch.tensor(bank.T / columns / rows, dtype=torch.float32)

    def to(self, device: torch.device) -> None:
        self.bank, self.back, self.start = (t.to(device) for t in (self.bank, self.back, self.start))

    def __call__(self, log_mel: Tensor) -> Tensor:
        empty = log_mel <= math.log(self.mel.floor) + AT_FLOOR
        target = (log_mel + self.mel.vocoder_offset).exp().masked_fill(empty, 0.0)
        magnitude = self.start @ target
        for _ in range(MEL_STEPS):
            magnitude = magnitude * (self.back @ (target / (self.bank @ magnitude).clamp_min(1e-12)))
        return magnitude


# -- Griffin-Lim -------------------------------------------------------------------------------------------------------


class GriffinLim(Vocoder):
    """Fast Griffin-Lim (Perraudin, Balazs & Søndergaard 2013, "A fast Griffin-Lim algorithm", momentum 0.99).

    The first phases are random: those of frame i depend on the seed and on i alone. Each iteration carries influence 3
    frames further (n_fft / hop - 1), so chunks that overlap by ``3 * iterations + 3`` frames would agree to the bit;
    but the influence fades: with 32 iterations, 16 frames of overlap leave a difference of 5e-3 of the signal, 32
    frames leave 1e-5, and more iterations need a little more. ``context`` is ``16 + iterations / 2``.

    Bands at the floor are silent, and a spectrogram all at the floor gives zeros exactly.

    Raises:
        UsageError: n_fft is not a multiple of twice the hop.
    """

    def __init__(self, mel: MelConfig, iterations: int = ITERATIONS) -> None:
        _check_geometry(mel)
        settings = dataclasses.asdict(mel) | {
            "vocoder": "griffin-lim 1",
            "iterations": iterations,
            "momentum": MOMENTUM,
            "mel steps": MEL_STEPS,
            "phase block": PHASE_BLOCK,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        reach = mel.n_fft // mel.hop - 1
        context = min(reach * (iterations + 1), 16 + iterations // 2)
        super().__init__(f"griffin-lim:{iterations}", mel, 0, context, digest)
        self.iterations = iterations
        self.inverse = MelInverse(mel)
        self.window = torch.hann_window(mel.n_fft)

    def to(self, device: torch.device | str) -> Vocoder:
        super().to(device)
        self.inverse.to(self.device)
        self.window = self.window.to(self.device)
        return self

    def _decode(self, log_mel: Tensor, seeds: Sequence[int], first_frame: int) -> Tensor:
        # One more frame closes the last hop; reflected padding needs more than half a window.
        fewest = self.mel.n_fft // (2 * self.mel.hop) + 1
        log_mel = F.pad(log_mel, (0, max(1, fewest + 1 - log_mel.shape[-1])), mode="replicate")
        target = self.inverse(log_mel).transpose(1, 2).contiguous()
        turns = torch.stack([initial_phase(s, first_frame, target.shape[1], target.shape[2]) for s in seeds])
        spectrum = torch.polar(target, (2 * math.pi) * turns.to(self.device))
        previous: Tensor | None = None
        for _ in range(self.iterations):
            consistent = analysis(synthesis(spectrum, self.window, self.mel.hop), self.window, self.mel.hop)
            ahead = consistent
            if previous is not None:  # c + a (c - p), but for a factor: only its phase is used
                ahead = torch.add(consistent, previous, alpha=-MOMENTUM / (1 + MOMENTUM))
            previous = consistent
            parts = torch.view_as_real(ahead)
            gain = target / (parts.square().sum(-1) + 1e-24).sqrt()
            spectrum = torch.view_as_complex(parts * gain[..., None])
        return synthesis(spectrum, self.window, self.mel.hop)


def initial_phase(seed: int, first_frame: int, frames: int, bins: int) -> Tensor:
    """Random phases in turns, ``[frames, bins]`` in [0, 1); a frame's depend only on the seed and its index.

    They are drawn on the CPU in blocks of `PHASE_BLOCK` frames, so that all devices and all chunkings agree.
    """
    blocks = range(first_frame // PHASE_BLOCK, (first_frame + frames - 1) // PHASE_BLOCK + 1)
    drawn = []
    for block in blocks:
        digest = hashlib.sha256(f"griffin-lim phase:{seed}:{block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        drawn.append(torch.rand(PHASE_BLOCK, bins, generator=generator))
    skip = first_frame - blocks[0] * PHASE_BLOCK
    return torch.cat(drawn)[skip : skip + frames]


# -- Vocos -------------------------------------------------------------------------------------------------------------


class Vocos(Vocoder):
    """Vocos (Siuzdak 2023, arXiv 2306.00814; github.com/gemelo-ai/vocos, MIT): ConvNeXt and an inverse STFT.

    Made for ``charactr/vocos-mel-24khz``; sizes are read from the tensors. Its mel is ours without the scale: centred
    frames, magnitudes, HTK bands without area normalisation, natural logarithm. Two things differ: its floor is 1e-7 of
    unscaled magnitudes, ours lies 10 nepers higher, so that silence decodes as what it takes -100 dB for; and our
    spectrogram lacks the frame on the last sample, for which the last frame is repeated.

    Raises:
        UsageError: damaged, not Vocos, for another geometry or, where the file stores its bands, with other bands.
        Unavailable: not here and cannot be fetched.
    """

    def __init__(self, where: str, mel: MelConfig) -> None:
        _check_geometry(mel)
        path, config = _find("vocos", where, VOCOS_FILES, "config.yaml")
        state = _read_tensors(path)
        digest = _digest(state, "vocos 1")
        if config is not None:
            _check_vocos_config(config, mel)
        _check_bands(path, state.pop("feature_extractor.mel_spec.mel_scale.fb", None), mel)
        for name in ("feature_extractor.mel_spec.spectrogram.window", "head.istft.window"):
            state.pop(name, None)
        self.layers = _count(state, r"backbone\.convnext\.(\d+)\.")
        embed, up = state.get("backbone.embed.weight"), state.get("backbone.convnext.0.pwconv1.weight")
        width = embed.shape[0] if embed is not None and embed.ndim else 512
        inner = up.shape[0] if up is not None and up.ndim else 3 * width
        _check_tensors(path, "Vocos", state, _vocos_shapes(mel, width, inner, max(1, self.layers)))
        self.weights = state
        parameters = sum(t.numel() for t in state.values())
        # 3 frames for each convolution over 7, 2 for the inverse STFT
        context = 3 * (1 + self.layers) + mel.n_fft // (2 * mel.hop)
        super().__init__(f"vocos:{_shown(where)}", mel, parameters, context, digest)
        self.window = torch.hann_window(mel.n_fft)

    def to(self, device: torch.device | str) -> Vocoder:
        super().to(device)
        self.weights = {k: t.to(self.device) for k, t in self.weights.items()}
        self.window = self.window.to(self.device)
        return self

    def _decode(self, log_mel: Tensor, seeds: Sequence[int], first_frame: int) -> Tensor:
        w = self.weights
        x = F.pad(log_mel + self.mel.vocoder_offset, (0, 1), mode="replicate")
        x = _norm(_conv(x, w, "backbone.embed").transpose(1, 2), w, "backbone.norm")
        for i in range(self.layers):
            at = f"backbone.convnext.{i}"
            width = x.shape[-1]
            y = _conv(x.transpose(1, 2), w, f"{at}.dwconv", groups=width).transpose(1, 2)
            y = F.gelu(_linear(_norm(y, w, f"{at}.norm"), w, f"{at}.pwconv1"))
            x = x + w[f"{at}.gamma"] * _linear(y, w, f"{at}.pwconv2")
        x = _linear(_norm(x, w, "backbone.final_layer_norm"), w, "head.out")
        magnitude, phase = x.chunk(2, dim=-1)
        # upstream's guard against huge magnitudes
        return synthesis(torch.polar(magnitude.exp().clamp_max(1e2), phase), self.window, self.mel.hop)


def _norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def _linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _conv(x: Tensor, w: dict[str, Tensor], name: str, dilation: int = 1, groups: int = 1) -> Tensor:
    kernel = w[f"{name}.weight"]
    padding = (kernel.shape[-1] - 1) * dilation // 2
    return F.conv1d(x, kernel, w.get(f"{name}.bias"), padding=padding, dilation=dilation, groups=groups)


def _vocos_shapes(mel: MelConfig, width: int, inner: int, layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.embed.weight": (width, mel.bands, 7),
        "backbone.embed.bias": (width,),
        "head.out.weight": (mel.n_fft + 2, width),
        "head.out.bias": (mel.n_fft + 2,),
    }
    blocks = [f"backbone.convnext.{i}" for i in range(layers)]
    for name in ["backbone.norm", "backbone.final_layer_norm", *(f"{b}.norm" for b in blocks)]:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for b in blocks:
        shapes |= {f"{b}.dwconv.weight": (width, 1, 7), f"{b}.dwconv.bias": (width,), f"{b}.gamma": (width,)}
        shapes |= {f"{b}.pwconv1.weight": (inner, width), f"{b}.pwconv1.bias": (inner,)}
        shapes |= {f"{b}.pwconv2.weight": (width, inner), f"{b}.pwconv2.bias": (width,)}
    return shapes


def _check_vocos_config(path: Path, mel: MelConfig) -> None:
    """Of upstream's config.yaml only what the tensors cannot tell, line by line: no YAML library is needed."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for key, wanted in (("sample_rate", mel.sample_rate), ("hop_length", mel.hop), ("padding", "center")):
        for found in re.findall(rf"^\s*{key}:\s*['\"]?(\w+)", text, re.MULTILINE):
            if found != str(wanted):
                raise UsageError(f"{path}: {key} is {found}, the tokenizer's mel needs {wanted}")


def _check_bands(path: Path, stored: Tensor | None, mel: MelConfig) -> None:
    """Vocos checkpoints carry their filter bank: other bands (Slaney's, a lower top) are the classic silent bug."""
    if stored is None:
        return
    ours = mel_filters(mel.sample_rate, mel.n_fft, mel.bands).T
    if tuple(stored.shape) != ours.shape:
        raise UsageError(f"{path}: its mel has [bins, bands] = {list(stored.shape)}, ours has {list(ours.shape)}")
    off = float(np.abs(stored.double().numpy() - ours).max())
    if not off < 1e-3:
        raise UsageError(f"{path}: trained on other mel bands than ours (HTK, peak 1, 0 Hz to half the sample rate)")


# -- BigVGAN -----------------------------------------------------------------------------------------------------------


def slaney_filters(sample_rate: int, n_fft: int, bands: int, low: float, high: float) -> np.ndarray:
    """Slaney's mel bands with area normalisation, ``[bands, n_fft // 2 + 1]`` float64, as ``librosa.filters.mel``.

    The scale is linear to 1 kHz (15 mel), then logarithmic with 27 steps for a factor of 6.4 (Slaney 1998, Auditory
    Toolbox); triangles have an area of 1 per Hz.
    """
    corners = slaney_corners(bands, low, high)
    hz = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    left, mid, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = np.maximum(0.0, np.minimum((hz - left) / (mid - left), (right - hz) / (right - mid)))
    return triangles * 2.0 / (right - left)


def slaney_corners(bands: int, low: float, high: float) -> np.ndarray:
    """The ``bands + 2`` corner frequencies in Hz, equally spaced on Slaney's scale.

    >>> slaney_corners(38, 0.0, 11025.0)[[1, 11, 12, 38]].round(3).tolist()
    [85.317, 938.49, 1024.856, 10096.408]
    """
    step = math.log(6.4) / 27

    def to_mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + math.log(hz / 1000) / step

    mels = np.linspace(to_mel(low), to_mel(high), bands + 2)
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * step))


def kaiser_taps(cutoff: float = 0.25, half_width: float = 0.3, taps: int = 12) -> Tensor:
    """Anti-aliasing low-pass of BigVGAN, ``[1, 1, taps]``: windowed sinc, sum 1; cut-offs in cycles per sample.

    Kaiser's design from the width of the transition (Kaiser 1974). Defaults are those of BigVGAN for a ratio of 2.
    """
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    beta = 0.0
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    at = np.arange(taps) - (taps - 1) / 2
    shape = np.kaiser(taps, beta) * np.sinc(2 * cutoff * at)
    return torch.tensor(shape / shape.sum(), dtype=torch.float32)[None, None]


def snake(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``x + sin(alpha x)^2 / beta`` for each channel of ``[batch, channels, samples]`` (Liu et al. 2020)."""
    return x + (x * alpha[:, None]).sin().square() / (beta[:, None] + 1e-9)


def resampled_snake(x: Tensor, alpha: Tensor, beta: Tensor, taps: Tensor) -> Tensor:
    """`snake` at twice the rate between two low-passes, so that its harmonics do not alias; the shape is kept."""
    channels, size = x.shape[1], taps.shape[-1]
    filters = taps.expand(channels, 1, size)
    edge = size // 2 - 1
    x = F.conv_transpose1d(F.pad(x, (edge, edge), mode="replicate"), filters, stride=2, groups=channels) * 2
    cut = edge * 2 + (size - 2) // 2
    x = snake(x[..., cut : x.shape[-1] - cut], alpha, beta)
    return F.conv1d(F.pad(x, (edge, size // 2), mode="replicate"), filters, stride=2, groups=channels)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The part of BigVGAN's config.json that decides what is computed, under upstream's names."""

    num_mels: int
    upsample_initial_channel: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    resblock: str
    activation: str
    snake_logscale: bool
    use_tanh_at_final: bool
    use_bias_at_final: bool
    fmin: float
    fmax: float


class BigVGAN(Vocoder):
    """BigVGAN (Lee et al. 2023, arXiv 2206.04658; github.com/NVIDIA/BigVGAN, MIT), version 1 and 2 generators.

    Made for ``nvidia/bigvgan_v2_24khz_100band_256x``. Its mel is not ours, and the conversion is an approximation:

    * bands: Slaney's with area normalisation. Linear magnitudes are estimated from our bands (`MelInverse`) and put
      through its bank, with its own ``sqrt(magnitude^2 + 1e-9)`` and floor 1e-5. On 16 real clips the result is 0.07
      nepers (L1) from the mel of the audio itself.
    * time: its frames are not centred, frame i lies around sample ``(i + 1/2) hop``. Ours are handed over as they are,
      which is exactly the mel of the sound half a hop later, and half a hop is cut from the front of the output.

    Raises:
        UsageError: damaged, not BigVGAN, or for another sample rate, FFT or hop.
        Unavailable: not here and cannot be fetched.
    """

    def __init__(self, where: str, mel: MelConfig) -> None:
        path, config = _find("bigvgan", where, BIGVGAN_FILES, "config.json")
        if config is None:
            raise Unavailable(f"{path}: BigVGAN needs upstream's config.json in the same folder")
        self.plan = plan = _bigvgan_plan(config, mel)
        state = _read_tensors(path, "generator")
        digest = _digest(state, f"bigvgan 1 {plan}")
        self.taps = kaiser_taps()
        for name in [n for n in state if n.endswith(".filter")]:
            stored = state.pop(name)
            if stored.shape != self.taps.shape or not torch.allclose(stored, self.taps, atol=1e-4):
                raise UsageError(f"{path}: {name} is not BigVGAN's anti-aliasing filter (12 taps, ratio 2)")
        parameters = sum(t.numel() for t in state.values())
        state = fuse_weight_norm(state)
        _check_tensors(path, "BigVGAN", state, _bigvgan_shapes(plan))
        if plan.snake_logscale:
            state = {n: t.exp() if n.endswith((".alpha", ".beta")) else t for n, t in state.items()}
        self.weights = state
        super().__init__(f"bigvgan:{_shown(where)}", mel, parameters, _bigvgan_reach(plan), digest)
        self.inverse = MelInverse(mel)
        bank = slaney_filters(mel.sample_rate, mel.n_fft, plan.num_mels, plan.fmin, plan.fmax)
        self.bank = torch.tensor(bank, dtype=torch.float32)

    def to(self, device: torch.device | str) -> Vocoder:
        super().to(device)
        self.weights = {k: t.to(self.device) for k, t in self.weights.items()}
        self.taps, self.bank = self.taps.to(self.device), self.bank.to(self.device)
        self.inverse.to(self.device)
        return self

    def convert(self, log_mel: Tensor) -> Tensor:
        """Our log-mel ``[batch, bands, frames]`` as BigVGAN's ``[batch, num_mels, frames]``, at the same instants."""
        return (self.bank @ (self.inverse(log_mel).square() + 1e-9).sqrt()).clamp_min(1e-5).log()

    def _decode(self, log_mel: Tensor, seeds: Sequence[int], first_frame: int) -> Tensor:
        late = self.generate(self.convert(F.pad(log_mel, (0, 1), mode="replicate")))
        half = self.mel.hop // 2
        return late[:, half : half + log_mel.shape[-1] * self.mel.hop]

    def generate(self, features: Tensor) -> Tensor:
        """The network: ``[batch, num_mels, frames]`` in its own recipe to ``[batch, frames * hop]`` within +-1."""
        w, plan = self.weights, self.plan
        x = _conv(features, w, "conv_pre")
        each = len(plan.resblock_kernel_sizes)
        for i, (rate, kernel) in enumerate(zip(plan.upsample_rates, plan.upsample_kernel_sizes, strict=True)):
            at = f"ups.{i}.0"
            x = F.conv_transpose1d(x, w[f"{at}.weight"], w[f"{at}.bias"], stride=rate, padding=(kernel - rate) // 2)
            blocks = [self._block(x, f"resblocks.{i * each + j}", plan.resblock_dilation_sizes[j]) for j in range(each)]
            x = torch.stack(blocks).sum(0) / each
        x = _conv(self._activate(x, "activation_post"), w, "conv_post")[:, 0]
        return x.tanh() if plan.use_tanh_at_final else x.clamp(-1.0, 1.0)

    def _block(self, x: Tensor, at: str, dilations: tuple[int, ...]) -> Tensor:
        if self.plan.resblock == "1":
            for j, dilation in enumerate(dilations):
                y = _conv(self._activate(x, f"{at}.activations.{2 * j}"), self.weights, f"{at}.convs1.{j}", dilation)
                y = _conv(self._activate(y, f"{at}.activations.{2 * j + 1}"), self.weights, f"{at}.convs2.{j}")
                x = x + y
            return x
        for j, dilation in enumerate(dilations):
            x = x + _conv(self._activate(x, f"{at}.activations.{j}"), self.weights, f"{at}.convs.{j}", dilation)
        return x

    def _activate(self, x: Tensor, at: str) -> Tensor:
        alpha = self.weights[f"{at}.act.alpha"]
        return resampled_snake(x, alpha, self.weights.get(f"{at}.act.beta", alpha), self.taps)


def _bigvgan_plan(path: Path, mel: MelConfig) -> _Plan:
    try:
        h: Any = json.loads(path.read_text(encoding="utf-8"))
        plan = _Plan(
            num_mels=int(h["num_mels"]),
            upsample_initial_channel=int(h["upsample_initial_channel"]),
            upsample_rates=tuple(int(u) for u in h["upsample_rates"]),
            upsample_kernel_sizes=tuple(int(k) for k in h["upsample_kernel_sizes"]),
            resblock_kernel_sizes=tuple(int(k) for k in h["resblock_kernel_sizes"]),
            resblock_dilation_sizes=tuple(tuple(int(d) for d in ds) for ds in h["resblock_dilation_sizes"]),
            resblock=str(h["resblock"]),
            activation=str(h["activation"]),
            snake_logscale=bool(h["snake_logscale"]),
            use_tanh_at_final=bool(h.get("use_tanh_at_final", True)),
            use_bias_at_final=bool(h.get("use_bias_at_final", True)),
            fmin=float(h.get("fmin") or 0.0),
            fmax=float(h.get("fmax") or mel.sample_rate / 2),
        )
        found = {key: int(h[key]) for key in ("sampling_rate", "n_fft", "hop_size", "win_size")}
    except KeyError as error:
        raise UsageError(f"{path}: not a config of BigVGAN, {error.args[0]} is missing") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a config of BigVGAN ({error})") from error
    wanted = {"sampling_rate": mel.sample_rate, "n_fft": mel.n_fft, "hop_size": mel.hop, "win_size": mel.n_fft}
    for key, value in wanted.items():
        if found[key] != value:
            raise UsageError(f"{path}: {key} is {found[key]}, the tokenizer's mel needs {value}")
    sound = (
        plan.activation in ("snake", "snakebeta")
        and plan.resblock in ("1", "2")
        and len(plan.upsample_rates) == len(plan.upsample_kernel_sizes) > 0
        and len(plan.resblock_kernel_sizes) == len(plan.resblock_dilation_sizes) > 0
        and all(
            k >= u > 0 and (k - u) % 2 == 0
            for u, k in zip(plan.upsample_rates, plan.upsample_kernel_sizes, strict=True)
        )
        and math.prod(plan.upsample_rates) == mel.hop
        and plan.upsample_initial_channel % 2 ** len(plan.upsample_rates) == 0
        and 0 <= plan.fmin < plan.fmax <= mel.sample_rate / 2
    )
    if not sound:
        raise UsageError(f"{path}: not a config of BigVGAN for a hop of {mel.hop} ({plan})")
    return plan


def _bigvgan_shapes(plan: _Plan) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, into, kernel)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def act(name: str, channels: int) -> None:
        for part in ("alpha", "beta") if plan.activation == "snakebeta" else ("alpha",):
            shapes[f"{name}.act.{part}"] = (channels,)

    channels = plan.upsample_initial_channel
    conv("conv_pre", channels, plan.num_mels, 7)
    number = 0
    for i, kernel in enumerate(plan.upsample_kernel_sizes):
        shapes[f"ups.{i}.0.weight"] = (channels, channels // 2, kernel)
        channels //= 2
        shapes[f"ups.{i}.0.bias"] = (channels,)
        for size, dilations in zip(plan.resblock_kernel_sizes, plan.resblock_dilation_sizes, strict=True):
            kinds = ("convs1", "convs2") if plan.resblock == "1" else ("convs",)
            for j in range(len(dilations)):
                for kind in kinds:
                    conv(f"resblocks.{number}.{kind}.{j}", channels, channels, size)
            for j in range(len(dilations) * len(kinds)):
                act(f"resblocks.{number}.activations.{j}", channels)
            number += 1
    act("activation_post", channels)
    conv("conv_post", 1, channels, 7, plan.use_bias_at_final)
    return shapes


def _bigvgan_reach(plan: _Plan) -> int:
    """Frames to either side that the output of a frame depends on: sums of half kernels at each rate."""
    snakes = 6  # samples to either side that the two low-passes of 12 taps at twice the rate see
    reach, rate = 3.0, 1
    for up, kernel in zip(plan.upsample_rates, plan.upsample_kernel_sizes, strict=True):
        reach += ((kernel - 1) // up + 1) / rate
        rate *= up
        blocks = []
        for size, dilations in zip(plan.resblock_kernel_sizes, plan.resblock_dilation_sizes, strict=True):
            steps = [d * (size // 2) for d in dilations]
            if plan.resblock == "1":
                steps += [size // 2 for _ in dilations]
            blocks.append(sum(steps) + snakes * len(steps))
        reach += max(blocks) / rate
    return math.ceil(reach + (snakes + 3) / rate) + 1  # one more for the half hop


def fuse_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace ``weight_g`` and ``weight_v`` (old and new names of torch) by ``weight = g v / |v|`` (Salimans & Kingma).

    The norm is over all dimensions but the first, torch's default, also for transposed convolutions.
    """
    out = dict(state)
    for g_name, v_name in ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", "")):
        v_name = v_name or ".parametrizations.weight.original1"
        for name in [n.removesuffix(g_name) for n in state if n.endswith(g_name)]:
            v = state.get(name + v_name)
            g = state[name + g_name]
            if v is None or g.shape != (v.shape[0], *[1] * (v.ndim - 1)):
                continue  # the check of names and shapes will say so
            del out[name + g_name], out[name + v_name]
            norm = v.flatten(1).norm(dim=1).reshape(g.shape)
            out[f"{name}.weight"] = v * (g / norm)
    return out


# -- checkpoints -------------------------------------------------------------------------------------------------------


def _shown(where: str) -> str:
    return where if HUB_ID.fullmatch(where) and not Path(where).exists() else Path(where).resolve().name


def _find(kind: str, where: str, names: Sequence[str], config: str) -> tuple[Path, Path | None]:
    """The file of weights and, where there is one, its config."""
    path = Path(where).expanduser()
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name, _if_file(path / config)
        raise Unavailable(f"{kind}: no {' or '.join(names)} in {str(path)!r}; copy the published files there")
    if path.exists():
        return path, _if_file(path.parent / config)
    if HUB_ID.fullmatch(where):
        return _from_hub(kind, where, names[-1]), _from_hub(kind, where, config)
    raise Unavailable(f"{kind}: {where!r} is neither a file nor a folder nor an id of the model hub (owner/name)")


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _from_hub(kind: str, where: str, name: str) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise Unavailable(
            f"{kind}: {where!r} is no file or folder here; to look for {name} on the model hub, huggingface_hub is "
            "needed: pip install 'evalkit-audio[encodec]'. Or give the folder that holds it."
        ) from error
    repository, _, revision = where.partition("@")
    try:
        return Path(hub.hf_hub_download(repository, name, revision=revision or None, local_files_only=True))
    except Exception:  # not in the cache: the hub has many kinds of error, and its network library more
        pass
    try:
        if not hub.constants.HF_HUB_OFFLINE:
            _reach(hub.constants.ENDPOINT)
        return Path(hub.hf_hub_download(repository, name, revision=revision or None, etag_timeout=HUB_SECONDS))
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unavailable(
            f"{kind}: {where!r} is no file or folder here, the hub's local cache lacks its {name}, and it cannot be "
            f"fetched ({why}). Give the folder that holds it."
        ) from error


def _reach(address: str) -> None:
    """Raise at once where the hub is out of reach: its own client tries for half a minute."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers


def _read_tensors(path: Path, inside: str | None = None) -> dict[str, Tensor]:
    """Tensors by name, as float32 on the CPU, from safetensors or from torch's format without code (weights_only)."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path}: not a file of tensors alone, or damaged; nothing else is loaded") from error
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path}: truncated or not a checkpoint ({why})") from error
    if inside is not None and isinstance(found, dict) and isinstance(found.get(inside), dict):
        found = found[inside]
    if not isinstance(found, dict) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise UsageError(f"{path}: does not hold tensors by name")
    return {str(n): t.detach().float() for n, t in found.items()}


def _check_tensors(path: Path, what: str, state: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    wrong = []
    missing = sorted(shapes.keys() - state.keys())
    unexpected = sorted(state.keys() - shapes.keys())
    if missing:
        wrong.append(f"missing {_few(missing)}")
    if unexpected:
        wrong.append(f"unexpected {_few(unexpected)}")
    both = sorted(shapes.keys() & state.keys())
    bad = [f"{n} is {list(state[n].shape)}, not {list(shapes[n])}" for n in both if tuple(state[n].shape) != shapes[n]]
    if bad:
        wrong.append(_few(bad))
    if not wrong:
        broken = [n for n in both if not bool(state[n].isfinite().all())]
        if broken:
            wrong.append(f"NaN or infinite values in {_few(broken)}")
    if wrong:
        raise UsageError(f"{path}: not the {what} expected: {'; '.join(wrong)}")


def _few(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def _count(names: Iterable[str], pattern: str) -> int:
    return 1 + max((int(m[1]) for n in names if (m := re.match(pattern, n))), default=-1)


def _digest(state: dict[str, Tensor], head: str) -> str:
    digest = hashlib.sha256(head.encode())
    for name in sorted(state):
        digest.update(f"\0{name}:{list(state[name].shape)}:".encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
