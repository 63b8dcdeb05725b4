"""Vocoders: Griffin-Lim on signals and real audio; Vocos and BigVGAN against independent modules with upstream's names.

No public weights are at hand here: the networks are checked on small random ones, their formulas by other means
(torch.istft, scipy, naive loops, modules built from torch's layers).
"""

from __future__ import annotations

import builtins
import json
import math
import os
import sys
import types
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import optimize, signal
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from evalkit.audio import fit_length, mono, read_clip, resample
from evalkit.errors import EvalkitError, Unavailable, UsageError
from tokenizer import vocoder as V
from tokenizer.mel import LogMel, MelConfig
from tokenizer.vocoder import load_vocoder

MEL = MelConfig()
HOP = MEL.hop
SMALL = MelConfig(sample_rate=8_000, n_fft=64, hop=16, bands=10)
FRAMES = 94


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def log_mel(audio: Tensor, mel: MelConfig = MEL) -> Tensor:
    return LogMel(mel)(audio)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sounds() -> dict[str, Tensor]:
    t = torch.arange(FRAMES * HOP) / MEL.sample_rate
    return {
        "sine": 0.5 * torch.sin(2 * math.pi * 440 * t),
        "chirp": 0.5 * torch.sin(2 * math.pi * (200 * t + 3000 * t * t)),
        "noise": 0.2 * noise(FRAMES * HOP),
        "square": 0.3 * torch.sin(2 * math.pi * 120 * t).sign() * (0.5 + 0.5 * torch.sin(2 * math.pi * 4 * t)),
    }


# -- Griffin-Lim -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "nepers"), [("sine", 0.15), ("chirp", 0.15), ("noise", 0.1), ("square", 0.15)])
def test_griffin_lim_gives_audio_with_that_spectrogram(name: str, nepers: float) -> None:
    wanted = log_mel(sounds()[name][None])
    audio = load_vocoder("griffin-lim", MEL)(wanted, FRAMES * HOP, [1])
    got = log_mel(audio)
    assert audio.shape == (1, FRAMES * HOP) and audio.dtype == torch.float32 and not audio.requires_grad
    assert (got - wanted).abs().mean() < nepers
    assert (got.exp() - wanted.exp()).norm() / wanted.exp().norm() < 0.1  # spectral convergence
    random_phase = load_vocoder("griffin-lim:1", MEL)(wanted, FRAMES * HOP, [1])
    assert (log_mel(random_phase) - wanted).abs().mean() > 1.5 * (got - wanted).abs().mean()


def test_griffin_lim_on_real_audio(shared: Path) -> None:
    data = shared / "data"
    files = [*sorted((data / "esc50/audio").glob("*.ogg"))[:3], *sorted((data / "librispeech").rglob("*.flac"))[:1]]
    files += sorted((data / "music").glob("*.ogg"))[:1]
    assert len(files) == 5
    length = 3 * MEL.sample_rate // HOP * HOP
    clips = [resample(mono(read_clip(f)), MEL.sample_rate) for f in files]
    wanted = log_mel(torch.tensor(np.concatenate([fit_length(c.samples, length) for c in clips])))
    got = log_mel(load_vocoder("griffin-lim", MEL)(wanted, length, range(5)))
    off = (got - wanted).abs().mean((1, 2))
    assert off.max() < 0.25 and off.mean() < 0.13, off  # 0.04 to 0.11 on 16 clips of 5 s


def test_momentum_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perraudin et al. 2013: after as many iterations, the accelerated algorithm is closer than Griffin and Lim's."""
    wanted = torch.cat([log_mel(x[None]) for x in sounds().values()])

    def off() -> Tensor:
        return (log_mel(load_vocoder("griffin-lim", MEL)(wanted, FRAMES * HOP, range(4))) - wanted).abs().mean((1, 2))

    fast = off().mean()
    monkeypatch.setattr(V, "MOMENTUM", 0.0)
    assert fast < 0.97 * off().mean()


def test_seeds_and_batches() -> None:
    wanted = torch.cat([log_mel(x[None]) for x in sounds().values()])
    vocoder = load_vocoder("griffin-lim", MEL)
    batch = vocoder(wanted, FRAMES * HOP, [3, 4, -5, 2**70])
    assert torch.equal(batch, vocoder(wanted, FRAMES * HOP, [3, 4, -5, 2**70]))
    for i, seed in enumerate([3, 4, -5, 2**70]):  # to the bit on the CPU
        assert torch.equal(batch[i : i + 1], vocoder(wanted[i : i + 1], FRAMES * HOP, [seed]))
    other = vocoder(wanted[2:3], FRAMES * HOP, [6])
    assert (other[0] - batch[2]).norm() > 0.5 * batch[2].norm()


@pytest.mark.parametrize(
    ("frames", "length"), [(94, 23_999), (94, 24_064), (1, 240), (1, 256), (2, 257), (4, 1), (3, 768)]
)
def test_lengths_are_exact(frames: int, length: int) -> None:
    for spec in ("griffin-lim", "griffin-lim:3"):
        audio = load_vocoder(spec, MEL)(torch.full((2, MEL.bands, frames), -3.0), length, [0, 1])
        assert audio.shape == (2, length) and audio.isfinite().all() and audio.abs().max() > 1e-3


def test_silence_is_silent() -> None:
    vocoder = load_vocoder("griffin-lim", MEL)
    floor = log_mel(torch.zeros(1, 20 * HOP))
    assert torch.equal(vocoder(floor, 20 * HOP, [0]), torch.zeros(1, 20 * HOP))
    assert torch.equal(vocoder(floor.half(), 5_000, [0]), torch.zeros(1, 5_000))  # float16 rounds the floor
    # sound, then silence: exact zeros once no window reaches the sound
    x = 0.3 * noise(1, 60 * HOP)
    x[:, 20 * HOP :] = 0
    audio = vocoder(log_mel(x), 60 * HOP, [0])
    assert audio[:, : 20 * HOP].std() > 0.2
    assert torch.equal(audio[:, 24 * HOP :], torch.zeros(1, 36 * HOP))
    # bands at the floor stay empty beside loud ones
    band = torch.full((1, MEL.bands, 40), math.log(MEL.floor))
    band[:, 50:60] = -2.0
    got = log_mel(vocoder(band, 40 * HOP, [0]))
    assert got[:, 50:60, 3:-3].mean() > -2.3 and got[:, :35, 3:-3].max() < -9 and got[:, 80:, 3:-3].max() < -9


def test_a_chunk_with_context_equals_the_whole() -> None:
    vocoder = load_vocoder("griffin-lim", MEL)
    frames, first, last = 300, 130, 290  # across a border of the phase blocks
    wanted = log_mel(torch.cat([0.2 * noise(1, 150 * HOP), sounds()["square"].repeat(2)[None, : 150 * HOP]], 1))
    whole = vocoder(wanted, frames * HOP, [7])[:, first * HOP : last * HOP]
    assert vocoder.context == 32
    start = first - vocoder.context
    chunk = vocoder(wanted[..., start:], (frames - start) * HOP, [7], first_frame=start)
    chunk = chunk[:, vocoder.context * HOP :][:, : (last - first) * HOP]
    assert (chunk - whole).norm() < 2e-5 * whole.norm()  # 1e-6 on real clips
    elsewhere = vocoder(wanted[..., start:], (frames - start) * HOP, [7])[:, vocoder.context * HOP :]
    assert (elsewhere[:, : whole.shape[1]] - whole).norm() > 0.3 * whole.norm()  # first_frame matters
    # few iterations need their exact reach only
    short = load_vocoder("griffin-lim:2", MEL)
    assert short.context == 9
    whole, start = short(wanted, frames * HOP, [7])[:, first * HOP :], first - 9
    chunk = short(wanted[..., start:], (frames - start) * HOP, [7], first_frame=start)[:, 9 * HOP :]
    assert (chunk - whole).abs().max() < 1e-6


def test_initial_phases_depend_on_seed_and_frame_alone() -> None:
    whole = V.initial_phase(3, 0, 700, 5)
    for first, count in [(0, 10), (255, 2), (256, 1), (300, 400), (511, 3)]:
        assert torch.equal(V.initial_phase(3, first, count, 5), whole[first : first + count])
    assert whole.min() >= 0 and whole.max() < 1 and abs(whole.mean() - 0.5) < 0.02
    assert len(torch.unique(whole[:, 0])) > 690  # blocks do not repeat
    assert not torch.equal(V.initial_phase(4, 0, 700, 5), whole)


def test_mel_inverse_against_non_negative_least_squares() -> None:
    wanted = torch.cat([log_mel(x[None])[..., 10:40] for x in sounds().values()])
    inverse = V.MelInverse(MEL)
    magnitude = inverse(wanted)
    assert magnitude.shape == (4, 513, 30) and magnitude.min() >= 0
    back = (inverse.bank @ magnitude * MEL.scale).clamp_min(MEL.floor).log()
    assert (back - wanted).abs().mean() < 0.01
    pinv = (torch.linalg.pinv(inverse.bank) @ wanted.exp()).clamp_min(0)
    assert (back - wanted).abs().mean() < 0.5 * ((inverse.bank @ pinv).clamp_min(MEL.floor).log() - wanted).abs().mean()
    # scipy's exact solution has no smaller residual than this one has, up to a little
    for clip in range(4):
        y = wanted[clip, :, 5].exp().numpy() / MEL.scale
        _, residual = optimize.nnls(inverse.bank.numpy(), y)
        ours = np.linalg.norm(inverse.bank.numpy() @ magnitude[clip, :, 5].numpy() - y)
        assert ours <= residual + 0.03 * np.linalg.norm(y)


def test_fourier_transforms_against_torch() -> None:
    window = torch.hann_window(1024)
    x = noise(2, 20 * HOP)
    spectrum = V.analysis(x, window, HOP)
    theirs = torch.stft(x, 1024, HOP, window=window, center=True, return_complex=True).transpose(1, 2)
    assert torch.allclose(spectrum, theirs, atol=1e-4)
    assert torch.allclose(V.synthesis(spectrum, window, HOP), x, atol=1e-5)
    free = torch.complex(noise(2, 9, 513, seed=1), noise(2, 9, 513, seed=2))  # the STFT of nothing
    theirs = torch.istft(free.transpose(1, 2), 1024, HOP, window=window, center=True)
    assert torch.allclose(V.synthesis(free, window, HOP), theirs, atol=1e-4)


def test_other_geometries_and_settings() -> None:
    x = 0.2 * noise(1, 100 * SMALL.hop)
    wanted = log_mel(x, SMALL)
    got = log_mel(load_vocoder("griffin-lim:64", SMALL)(wanted, 100 * SMALL.hop, [0]), SMALL)
    assert (got - wanted).abs().mean() < 0.25
    with pytest.raises(UsageError, match="multiple of twice the hop"):
        load_vocoder("griffin-lim", MelConfig(n_fft=1024, hop=300))
    prints = {load_vocoder(s, m).fingerprint() for s in ("griffin-lim", "griffin-lim:64") for m in (MEL, SMALL)}
    assert len(prints) == 4 and all(len(p) == 64 for p in prints)
    assert load_vocoder("griffin-lim:32", MEL).fingerprint() == load_vocoder("griffin-lim", MEL).fingerprint()
    vocoder = load_vocoder("griffin-lim", MEL)
    assert vocoder.name == "griffin-lim:32" and vocoder.parameters == 0 and vocoder.to("cpu") is vocoder


def test_autocast_and_gradients_stay_outside() -> None:
    wanted = log_mel(sounds()["chirp"][None]).requires_grad_()
    vocoder = load_vocoder("griffin-lim:4", MEL)
    plain = vocoder(wanted, 9_999, [0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vocoder(wanted, 9_999, [0]), plain)
    assert not plain.requires_grad


@pytest.mark.parametrize(
    ("shape", "length", "seeds", "first", "says"),
    [
        ((1, 99, 4), 100, [0], 0, r"\[batch, 100, frames\]"),
        ((100, 4), 100, [0], 0, r"\[batch, 100, frames\]"),
        ((1, 100, 0), 1, [0], 0, r"\[batch, 100, frames\]"),
        ((0, 100, 4), 1, [], 0, r"\[batch, 100, frames\]"),
        ((1, 100, 4), 1025, [0], 0, "1025 samples from 4 frames"),
        ((1, 100, 4), 0, [0], 0, "0 samples"),
        ((1, 100, 4), 100, [0, 1], 0, "2 seeds for 1 clips"),
        ((1, 100, 4), 100, [0], -1, "first frame -1"),
    ],
)
def test_calls_that_make_no_sense(shape: tuple[int, ...], length: int, seeds: list[int], first: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_vocoder("griffin-lim", MEL)(torch.zeros(shape), length, seeds, first)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "gl",
        "griffin-lim:",
        "griffin-lim:0",
        "griffin-lim:-3",
        "griffin-lim:1.5",
        "griffin-lim:²",
        "vocos",
        "bigvgan:",
    ],
)
def test_specs_that_name_nothing(spec: str) -> None:
    with pytest.raises(UsageError, match="vocoder"):
        load_vocoder(spec, MEL)


# -- Vocos -------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.gamma = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).transpose(1, 2))
        return x + (self.gamma * self.pwconv2(nn.functional.gelu(self.pwconv1(y)))).transpose(1, 2)


class OtherVocos(nn.Module):
    """Vocos from torch's layers and torch.istft, with the names of the published checkpoint."""

    def __init__(self, mel: MelConfig, width: int = 12, inner: int = 20, layers: int = 2) -> None:
        super().__init__()
        self.mel = mel
        self.backbone = nn.Module()
        self.backbone.embed = nn.Conv1d(mel.bands, width, 7, padding=3)
        self.backbone.norm = nn.LayerNorm(width, eps=1e-6)
        self.backbone.convnext = nn.ModuleList(Block(width, inner) for _ in range(layers))
        self.backbone.final_layer_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Module()
        self.head.out = nn.Linear(width, mel.n_fft + 2)

    def forward(self, features: Tensor) -> Tensor:
        b = self.backbone
        x = b.norm(b.embed(features).transpose(1, 2)).transpose(1, 2)
        for block in b.convnext:
            x = block(x)
        size, phase = self.head.out(b.final_layer_norm(x.transpose(1, 2))).transpose(1, 2).chunk(2, dim=1)
        spectrum = size.exp().clip(max=1e2) * (phase.cos() + 1j * phase.sin())
        window = torch.hann_window(self.mel.n_fft)
        return torch.istft(spectrum, self.mel.n_fft, self.mel.hop, self.mel.n_fft, window, center=True)


def htk_bank(mel: MelConfig) -> Tensor:
    """The triangles as torchaudio computes them, ``[bins, bands]``: slopes between corner frequencies."""
    bins = torch.linspace(0, mel.sample_rate // 2, mel.n_fft // 2 + 1, dtype=torch.float64)
    top = 2595 * math.log10(1 + mel.sample_rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, mel.bands + 2, dtype=torch.float64) / 2595) - 1)
    slopes = corners[None] - bins[:, None]
    width = corners.diff()
    return torch.minimum(-slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]).clamp_min(0).float()


def vocos_state(mel: MelConfig, seed: int = 0) -> tuple[OtherVocos, dict[str, Tensor]]:
    torch.manual_seed(seed)
    other = OtherVocos(mel).eval()
    state = {k: v.detach().clone() for k, v in other.state_dict().items()}
    state["head.istft.window"] = torch.hann_window(mel.n_fft)
    state["feature_extractor.mel_spec.spectrogram.window"] = torch.hann_window(mel.n_fft)
    state["feature_extractor.mel_spec.mel_scale.fb"] = htk_bank(mel)
    return other, state


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_vocos_equals_a_module_with_the_same_weights(tmp_path: Path, name: str) -> None:
    other, state = vocos_state(MEL)
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    (tmp_path / "config.yaml").write_text(
        "feature_extractor:\n  init_args:\n    sample_rate: 24000\n    hop_length: 256\n    padding: center\n"
    )
    features = log_mel(torch.stack(list(sounds().values()))[:2])[..., :21]
    for where in (tmp_path, tmp_path / name):
        vocoder = load_vocoder(f"vocos:{where}", MEL)
        audio = vocoder(features, 21 * HOP - 1, [0, 1])
        assert audio.shape == (2, 21 * HOP - 1) and audio.std() > 0.01
        unscaled = features + math.log(1024 / 4)
        with torch.no_grad():
            theirs = other(torch.cat([unscaled, unscaled[..., -1:]], -1))
        assert torch.allclose(audio, theirs[:, :-1], atol=1e-4 * float(theirs.abs().max()))
        assert torch.equal(audio[1:], vocoder(features[1:], 21 * HOP - 1, [9]))  # no seed, no batch
        assert vocoder.parameters == sum(p.numel() for p in other.parameters())
        assert str(tmp_path.parent) not in vocoder.name and vocoder.name.startswith("vocos:")
    again = load_vocoder(f"vocos:{tmp_path}", MEL)
    assert vocoder.fingerprint() == again.fingerprint()
    state["head.out.bias"][3] += 1
    torch.save(state, tmp_path / "other.bin")
    assert load_vocoder(f"vocos:{tmp_path / 'other.bin'}", MEL).fingerprint() != vocoder.fingerprint()


def test_vocos_mel_recipe() -> None:
    """Vocos' own features (magnitudes, HTK, centred, log of clip 1e-7) are ours plus the offset, above our floor."""
    x = sounds()["square"][None]
    power = torch.stft(x, 1024, HOP, window=torch.hann_window(1024), return_complex=True, pad_mode="reflect").abs()
    theirs = (htk_bank(MEL).T @ power).clip(min=1e-7).log()[..., :FRAMES]
    ours = log_mel(x)
    above = ours > math.log(MEL.floor) + 0.1
    assert above.float().mean() > 0.9
    assert (ours + MEL.vocoder_offset - theirs)[above].abs().max() < 2e-3
    assert abs(MEL.vocoder_offset - 5.5452) < 1e-4


def assert_context(vocoder: V.Vocoder, frames: int) -> None:
    """Input beyond ``context`` frames changes nothing, and input at a quarter of it does (so it is no idle guess)."""
    torch.manual_seed(1)
    x = torch.randn(1, vocoder.mel.bands, frames) - 3
    hop, middle = vocoder.mel.hop, frames // 2
    piece = slice(middle * hop, (middle + 1) * hop)
    base = vocoder(x, frames * hop, [0])[:, piece]
    for side in (-1, 1):
        far, near = x.clone(), x.clone()
        cut = middle + side * (vocoder.context + 1)
        (far[..., : cut + 1] if side < 0 else far[..., cut:]).add_(1.0)
        cut = middle + side * (vocoder.context // 4)
        (near[..., : cut + 1] if side < 0 else near[..., cut:]).add_(1.0)
        assert torch.allclose(vocoder(far, frames * hop, [0])[:, piece], base, atol=1e-6 * float(base.abs().max()))
        assert (vocoder(near, frames * hop, [0])[:, piece] - base).norm() > 1e-5 * base.norm()


def test_vocos_context(tmp_path: Path) -> None:
    torch.save(vocos_state(SMALL)[1], tmp_path / "w.bin")
    vocoder = load_vocoder(f"vocos:{tmp_path / 'w.bin'}", SMALL)
    assert vocoder.context == 11
    assert_context(vocoder, 40)


def damage(state: dict[str, Tensor], how: str) -> Any:
    if how == "missing":
        del state["backbone.convnext.0.gamma"]
    elif how == "unexpected":
        state["backbone.norm.scale.weight"] = torch.ones(4, 12)
    elif how == "wrong shape":
        state["head.out.bias"] = torch.ones(18)
    elif how == "scalar":
        state["backbone.embed.weight"] = torch.tensor(1.0)
    elif how == "NaN":
        state["head.out.bias"][0] = math.nan
    elif how == "other bands":
        state["feature_extractor.mel_spec.mel_scale.fb"] *= 0.9
    elif how == "fewer bands":
        state["feature_extractor.mel_spec.mel_scale.fb"] = torch.ones(33, 9)
    elif how == "no dict":
        return [torch.ones(2)]
    elif how == "no tensors":
        return {"epoch": 3}
    elif how == "empty":
        return {}
    elif how == "foreign":
        return {"layer.weight": torch.ones(3)}
    return state


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "missing backbone.convnext.0.gamma"),
        ("unexpected", "unexpected backbone.norm.scale.weight"),
        ("wrong shape", r"head.out.bias is \[18\], not \[66\]"),
        ("scalar", r"not the Vocos expected: backbone.* and 20 more"),
        ("NaN", "NaN or infinite values in head.out.bias"),
        ("other bands", "other mel bands"),
        ("fewer bands", r"\[33, 9\], ours has \[33, 10\]"),
        ("no dict", "tensors by name"),
        ("no tensors", "tensors by name"),
        ("empty", "tensors by name"),
        ("foreign", "missing backbone.* and .* more; unexpected layer.weight"),
    ],
)
def test_wrong_vocos_checkpoints(tmp_path: Path, how: str, says: str) -> None:
    path = tmp_path / "w.bin"
    torch.save(damage(vocos_state(SMALL)[1], how), path)
    with pytest.raises(UsageError, match=says) as caught:
        load_vocoder(f"vocos:{path}", SMALL)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.bin", "w.safetensors"])
def test_truncated_checkpoints(tmp_path: Path, name: str) -> None:
    state = vocos_state(SMALL)[1]
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for size in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(UsageError, match=name):
            load_vocoder(f"vocos:{tmp_path / name}", SMALL)
    (tmp_path / name).write_bytes(b"this is a text, not a checkpoint\n" * 20)
    with pytest.raises(UsageError, match=name):
        load_vocoder(f"vocos:{tmp_path / name}", SMALL)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (builtins.exec, ("import os; os.environ['EVALKIT_EVIL'] = '1'",))


def test_checkpoints_run_no_code(tmp_path: Path) -> None:
    torch.save({"head.out.bias": Evil()}, tmp_path / "w.bin")
    with pytest.raises(UsageError, match="not a file of tensors alone"):
        load_vocoder(f"vocos:{tmp_path / 'w.bin'}", SMALL)
    assert "EVALKIT_EVIL" not in os.environ


@pytest.mark.parametrize("line", ["hop_length: 300", "sample_rate: 44100", 'padding: "same"'])
def test_vocos_for_another_geometry(tmp_path: Path, line: str) -> None:
    torch.save(vocos_state(SMALL)[1], tmp_path / "pytorch_model.bin")
    (tmp_path / "config.yaml").write_text(f"head:\n  init_args:\n    {line}\n")
    with pytest.raises(UsageError, match=line.split(":")[0]):
        load_vocoder(f"vocos:{tmp_path}", SMALL)


# -- BigVGAN -----------------------------------------------------------------------------------------------------------


def naive_snake(x: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Zeros between, low-pass, snake, low-pass, every other sample; edges repeated far enough not to matter."""
    taps = signal.firwin(12, 0.5, window=("kaiser", KAISER_BETA))
    out = np.zeros_like(x)
    far = 20
    for c, row in enumerate(x):
        n = len(row)
        # upstream repeats the edge before each filter, not once before both
        stuffed = np.zeros(2 * (n + 2 * far))
        stuffed[::2] = np.pad(row, far, mode="edge")
        up = 2 * np.convolve(stuffed, taps)[2 * far + 5 : 2 * far + 5 + 2 * n]
        up = up + np.sin(alpha[c] * up) ** 2 / (beta[c] + 1e-9)
        low = np.convolve(np.pad(up, far, mode="edge"), taps)
        out[c] = [low[2 * i + far + 6] for i in range(n)]
    return out


# Kaiser's formula for 12 taps and a transition of 2 * 0.3 of the Nyquist frequency, as scipy has it for 11 taps
KAISER_BETA = signal.kaiser_beta(2.285 * 5 * math.pi * 1.2 + 7.95)


def test_anti_aliasing_filter_against_scipy() -> None:
    ours = V.kaiser_taps()[0, 0].numpy()
    assert np.allclose(ours, signal.firwin(12, 0.5, window=("kaiser", KAISER_BETA)), atol=1e-7)
    assert 4.5 < KAISER_BETA < 5  # 4.66
    _, response = signal.freqz(ours, worN=[0.0, math.pi / 2, 0.85 * math.pi])
    assert abs(abs(response[0]) - 1) < 1e-6 and abs(abs(response[1]) - 0.5) < 0.02 and abs(response[2]) < 0.01


def test_resampled_snake_against_a_naive_one() -> None:
    rng = np.random.default_rng(0)
    x, alpha, beta = rng.standard_normal((3, 31)), rng.uniform(0.5, 3, 3), rng.uniform(0.5, 3, 3)
    tensors = [torch.tensor(a, dtype=torch.float32) for a in (alpha, beta)]
    ours = V.resampled_snake(torch.tensor(x[None], dtype=torch.float32), *tensors, V.kaiser_taps())
    assert ours.shape == (1, 3, 31)
    assert np.abs(ours[0].numpy() - naive_snake(x, alpha, beta)).max() < 1e-5
    # the square of a sine at 0.35 of the sample rate lies at 0.7 and folds to 0.3 (bin 60)
    t = torch.arange(400.0)
    sine = torch.sin(2 * math.pi * 0.35 * t)[None, None]
    one = torch.ones(1)
    plain, clean = V.snake(sine, one, one), V.resampled_snake(sine, one, one, V.kaiser_taps())
    spectra = [torch.fft.rfft(y[0, 0, 100:300]).abs() for y in (plain, clean)]
    assert spectra[0][60] > 10 and spectra[1][60] < 0.3 * spectra[0][60]


class OtherBigVGAN(nn.Module):
    """BigVGAN from torch's layers with weight norm and the names of the published checkpoint; numpy activations."""

    def __init__(self, h: dict[str, Any]) -> None:
        super().__init__()
        self.h = h
        channels = h["upsample_initial_channel"]
        self.conv_pre = weight_norm(nn.Conv1d(h["num_mels"], channels, 7, padding=3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for u, k in zip(h["upsample_rates"], h["upsample_kernel_sizes"], strict=True):
            up = nn.ConvTranspose1d(channels, channels // 2, k, u, padding=(k - u) // 2)
            self.ups.append(nn.ModuleList([weight_norm(up)]))
            channels //= 2
            for size, ds in zip(h["resblock_kernel_sizes"], h["resblock_dilation_sizes"], strict=True):
                block = nn.Module()
                kinds = {"convs1": ds, "convs2": [1] * len(ds)} if h["resblock"] == "1" else {"convs": ds}
                for kind, dilations in kinds.items():
                    setattr(block, kind, nn.ModuleList(self.conv(channels, size, d) for d in dilations))
                block.activations = nn.ModuleList(self.act(channels) for _ in range(len(ds) * len(kinds)))
                self.resblocks.append(block)
        self.activation_post = self.act(channels)
        self.conv_post = weight_norm(nn.Conv1d(channels, 1, 7, padding=3, bias=h["use_bias_at_final"]))

    @staticmethod
    def conv(channels: int, size: int, dilation: int) -> nn.Module:
        return weight_norm(nn.Conv1d(channels, channels, size, dilation=dilation, padding=dilation * (size - 1) // 2))

    def act(self, channels: int) -> nn.Module:
        out, out.act = nn.Module(), nn.Module()
        start = torch.zeros if self.h["snake_logscale"] else torch.ones
        out.act.alpha = nn.Parameter(start(channels) + 0.3 * torch.rand(channels))
        if self.h["activation"] == "snakebeta":
            out.act.beta = nn.Parameter(start(channels) + 0.3 * torch.rand(channels))
        out.upsample, out.downsample = nn.Module(), nn.Module()
        out.downsample.lowpass = nn.Module()
        taps = torch.tensor(signal.firwin(12, 0.5, window=("kaiser", KAISER_BETA)), dtype=torch.float32)[None, None]
        out.upsample.register_buffer("filter", taps)
        out.downsample.lowpass.register_buffer("filter", taps.clone())
        return out

    def activate(self, x: Tensor, module: nn.Module) -> Tensor:
        alpha = module.act.alpha.detach().numpy()
        beta = module.act.beta.detach().numpy() if self.h["activation"] == "snakebeta" else alpha
        if self.h["snake_logscale"]:
            alpha, beta = np.exp(alpha), np.exp(beta)
        return torch.tensor(np.stack([naive_snake(row, alpha, beta) for row in x.numpy()]), dtype=torch.float32)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        count = len(self.h["resblock_kernel_sizes"])
        for i, up in enumerate(self.ups):
            x, total = up[0](x), None
            for block in self.resblocks[i * count : (i + 1) * count]:
                y = x
                if self.h["resblock"] == "1":
                    for j, (first, second) in enumerate(zip(block.convs1, block.convs2, strict=True)):
                        z = first(self.activate(y, block.activations[2 * j]))
                        y = y + second(self.activate(z, block.activations[2 * j + 1]))
                else:
                    for conv, act in zip(block.convs, block.activations, strict=True):
                        y = y + conv(self.activate(y, act))
                total = y if total is None else total + y
            x = total / count
        x = self.conv_post(self.activate(x, self.activation_post))[:, 0]
        return x.tanh() if self.h["use_tanh_at_final"] else x.clamp(-1, 1)


def bigvgan_config(**changes: Any) -> dict[str, Any]:
    return {
        "resblock": "1",
        "upsample_rates": [4, 2, 2],
        "upsample_kernel_sizes": [8, 4, 4],
        "upsample_initial_channel": 16,
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 2]],
        "use_tanh_at_final": False,
        "use_bias_at_final": False,
        "activation": "snakebeta",
        "snake_logscale": True,
        "num_mels": 12,
        "n_fft": 64,
        "hop_size": 16,
        "win_size": 64,
        "sampling_rate": 8000,
        "fmin": 0,
        "fmax": None,
    } | changes


def bigvgan(folder: Path, name: str = "bigvgan_generator.pt", **changes: Any) -> OtherBigVGAN:
    torch.manual_seed(3)
    h = bigvgan_config(**changes)
    other = OtherBigVGAN(h).eval()
    state = {k: v.detach().clone().contiguous() for k, v in other.state_dict().items()}
    assert "conv_pre.weight_g" in state and "ups.0.0.weight_v" in state
    if name.endswith("safetensors"):
        save_file(state, folder / name)
    else:
        torch.save({"generator": state}, folder / name)
    (folder / "config.json").write_text(json.dumps(h))
    return other


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bigvgan_generator.pt", {}),
        ("bigvgan_generator.safetensors", {"use_tanh_at_final": True, "use_bias_at_final": True}),
        ("bigvgan_generator.pt", {"resblock": "2", "activation": "snake", "snake_logscale": False}),
    ],
)
def test_bigvgan_equals_a_module_with_the_same_weights(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    other = bigvgan(tmp_path, name, **changes)
    for where in (tmp_path, tmp_path / name):
        vocoder = load_vocoder(f"bigvgan:{where}", SMALL)
        assert isinstance(vocoder, V.BigVGAN)
        features = noise(2, 12, 9)
        with torch.no_grad():
            ours, theirs = vocoder.generate(features), other(features)
        assert ours.shape == theirs.shape == (2, 9 * 16)
        assert ours.std() > 1e-3 and torch.allclose(ours, theirs, atol=1e-5)
        assert vocoder.parameters == sum(p.numel() for p in other.parameters())
        mel = log_mel(0.3 * noise(2, 320), SMALL)
        audio = vocoder(mel, 319, [0, 1])
        assert audio.shape == (2, 319) and audio.abs().max() <= 1
        assert torch.equal(audio[1:], vocoder(mel[1:], 319, [5]))


def test_weight_norm_is_fused_under_both_names() -> None:
    torch.manual_seed(0)
    for make in (lambda: nn.Conv1d(3, 5, 4), lambda: nn.ConvTranspose1d(3, 5, 4)):
        layer = nn.utils.parametrizations.weight_norm(make())
        with torch.no_grad():
            layer.parametrizations.weight.original0.mul_(1.7)
        state = {f"a.{k}": v.detach() for k, v in layer.state_dict().items()}
        fused = V.fuse_weight_norm(state)
        assert set(fused) == {"a.weight", "a.bias"} and torch.allclose(fused["a.weight"], layer.weight, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("changes", [{}, {"resblock": "2"}])
def test_bigvgan_context(tmp_path: Path, changes: dict[str, Any]) -> None:
    bigvgan(tmp_path, **changes)
    assert_context(load_vocoder(f"bigvgan:{tmp_path}", SMALL), 100)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_bigvgan_frames_are_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frame i lies around sample (i + 1/2) hop, ours around i hop."""
    bigvgan(tmp_path)
    vocoder = load_vocoder(f"bigvgan:{tmp_path}", SMALL)

    def pulses(features: Tensor) -> Tensor:
        out = torch.zeros(features.shape[0], features.shape[2], 16)
        out[:, :, 8] = torch.arange(1.0, features.shape[2] + 1)
        return out.flatten(1)

    monkeypatch.setattr(vocoder, "generate", pulses)
    audio = vocoder(torch.zeros(1, SMALL.bands, 20), 320, [0])
    assert audio[0].nonzero().flatten().tolist() == list(range(0, 320, 16))
    assert audio[0, ::16].tolist() == list(range(1, 21))


def bigvgan_mel(audio: Tensor, bank: Tensor) -> Tensor:
    """Upstream's recipe: frames not centred, reflected padding of (n_fft - hop) / 2, sqrt(power + 1e-9), floor 1e-5."""
    padded = nn.functional.pad(audio[:, None], (384, 384), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, 1024, HOP, window=torch.hann_window(1024), center=False, return_complex=True)
    power = torch.view_as_real(spectrum).pow(2).sum(-1)
    return (bank @ torch.sqrt(power + 1e-9)).clamp(min=1e-5).log()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_bigvgan_mel_conversion(tmp_path: Path) -> None:
    """Against its own recipe on the sound half a hop later, which puts its frames where ours are."""
    changes = {"sampling_rate": 24_000, "n_fft": 1024, "win_size": 1024, "hop_size": 256, "num_mels": 100}
    bigvgan(tmp_path, upsample_rates=[8, 8, 4], upsample_kernel_sizes=[16, 16, 8], **changes)
    vocoder = load_vocoder(f"bigvgan:{tmp_path}", MEL)
    assert isinstance(vocoder, V.BigVGAN)
    for name, limit in (("noise", 0.12), ("square", 0.25)):
        x = sounds()[name][None]
        theirs = bigvgan_mel(nn.functional.pad(x, (128, 128)), vocoder.bank)[..., 4:90]
        with torch.no_grad():
            ours = vocoder.convert(log_mel(x))[..., 4:90]
        off = (ours - theirs).abs().mean()
        assert off < limit, (name, off)
        shifted = bigvgan_mel(x, vocoder.bank)[..., 4:90]
        assert off < (ours - shifted).abs().mean()  # half a hop off is worse
    with torch.no_grad():
        silent = vocoder.convert(log_mel(torch.zeros(1, 20 * HOP)))
    at_rest = bigvgan_mel(torch.zeros(1, 20 * HOP), vocoder.bank)
    assert torch.allclose(silent, at_rest[..., :20], atol=1e-4)


def test_slaney_bank() -> None:
    # librosa's documentation of mel_frequencies(n_mels=40), and of hz_to_mel: 110 Hz is 1.65 mel
    documented = [0.0, 85.317, 170.635, 255.952, 341.269, 426.586, 511.904, 597.221, 682.538, 767.855, 853.173, 938.49]
    documented += [1024.856, 1119.114, 1222.042, 1334.436, 1457.167, 1591.187, 1737.532, 1897.337, 2071.84, 2262.393]
    corners = V.slaney_corners(38, 0.0, 11025.0)
    assert np.allclose(corners[:22], documented, atol=6e-4) and np.isclose(corners[-1], 11025)
    bank = V.slaney_filters(24_000, 1024, 100, 0.0, 12_000.0)
    assert bank.shape == (100, 513) and bank.min() == 0
    areas = bank.sum(1) * 24_000 / 1024
    assert np.allclose(areas[60:], 1, atol=0.02)
    utilities = pytest.importorskip("transformers.audio_utils")
    theirs = utilities.mel_filter_bank(513, 100, 0, 12_000, 24_000, norm="slaney", mel_scale="slaney")
    assert np.abs(theirs.T - bank).max() < 1e-7


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hop_size": 32}, "hop_size is 32, the tokenizer's mel needs 16"),
        ({"sampling_rate": 22_050}, "sampling_rate is 22050"),
        ({"upsample_rates": [4, 4, 2]}, "hop of 16"),
        ({"activation": "relu"}, "not a config of BigVGAN"),
        ({"num_mels": [3]}, "not a config of BigVGAN"),
        ({"num_mels": 13}, r"conv_pre.weight is \[16, 12, 7\], not \[16, 13, 7\]"),
        ({"activation": "snake"}, "unexpected activation_post.act.beta"),
        ({"use_bias_at_final": True}, "missing conv_post.bias"),
    ],
)
def test_bigvgan_config_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    bigvgan(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(bigvgan_config(**changes)))
    with pytest.raises(UsageError, match=says):
        load_vocoder(f"bigvgan:{tmp_path}", SMALL)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_wrong_bigvgan_checkpoints(tmp_path: Path) -> None:
    bigvgan(tmp_path)
    path = tmp_path / "bigvgan_generator.pt"
    state = torch.load(path, weights_only=True)["generator"]

    def saying(text: str, changed: dict[str, Tensor]) -> None:
        torch.save({"generator": changed}, path)
        with pytest.raises(UsageError, match=text):
            load_vocoder(f"bigvgan:{path}", SMALL)

    saying(
        "missing conv_pre.weight; unexpected conv_pre.weight_g",
        {k: v for k, v in state.items() if k != "conv_pre.weight_v"},
    )
    saying("anti-aliasing", state | {"activation_post.upsample.filter": torch.ones(1, 1, 12) / 12})
    saying("conv_post.weight is", state | {"conv_post.weight_v": torch.ones(1, 2, 9)})
    saying("missing", {"mpd.0.weight": torch.ones(2)})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UsageError, match=path.name):
        load_vocoder(f"bigvgan:{tmp_path}", SMALL)
    for text, says in (("{}", "num_mels is missing"), ("[1", "not a config"), ("[1]", "not a config")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UsageError, match=says):
            load_vocoder(f"bigvgan:{tmp_path}", SMALL)
    (tmp_path / "config.json").unlink()
    with pytest.raises(Unavailable, match=r"config\.json"):
        load_vocoder(f"bigvgan:{tmp_path}", SMALL)


def test_sizes_of_the_published_models() -> None:
    """Their cards say 13.5 M (Vocos) and 112 M (BigVGAN v2, 24 kHz, 100 bands)."""
    vocos = V._vocos_shapes(MEL, 512, 1536, 8)
    assert sum(math.prod(s) for s in vocos.values()) == 13_531_650
    kernels, dilations = (3, 7, 11), ((1, 3, 5),) * 3
    plan = V._Plan(
        100,
        1536,
        (4, 4, 2, 2, 2, 2),
        (8, 8, 4, 4, 4, 4),
        kernels,
        dilations,
        "1",
        "snakebeta",
        True,
        False,
        False,
        0,
        12e3,
    )
    shapes = V._bigvgan_shapes(plan)
    assert 112e6 < sum(math.prod(s) for s in shapes.values()) < 113e6
    assert len([n for n in shapes if n.startswith("resblocks.17.")]) == 6 * 2 + 6 * 2
    assert V._bigvgan_reach(plan) == 43


# -- files that are not here -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vocos", "bigvgan"])
def test_absent_files(tmp_path: Path, kind: str) -> None:
    with pytest.raises(Unavailable, match=r"no .*\.safetensors or .* in .*copy the published files there"):
        load_vocoder(f"{kind}:{tmp_path}", MEL)
    with pytest.raises(Unavailable, match="neither a file nor a folder"):
        load_vocoder(f"{kind}:{tmp_path / 'absent.bin'}", MEL)


class Hub(types.SimpleNamespace):
    """A stand-in for huggingface_hub: local copies, and what the network would give."""

    def __init__(self, local: Path | None, remote: Path | None, offline: bool = False) -> None:
        super().__init__(constants=types.SimpleNamespace(ENDPOINT="https://hub.invalid", HF_HUB_OFFLINE=offline))
        self.local, self.remote, self.asked = local, remote, []

    def hf_hub_download(self, repository: str, name: str, local_files_only: bool = False, **options: Any) -> str:
        self.asked.append((repository, name, options.get("revision"), local_files_only))
        folder = self.local if local_files_only else self.remote
        if folder is None or not (folder / name).exists():
            raise RuntimeError(f"no {name}\nand more lines")
        return str(folder / name)


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # "owner/model" is no path here
    reached = []
    monkeypatch.setattr(V, "_reach", reached.append)
    folder = tmp_path / "files"
    folder.mkdir()
    torch.save(vocos_state(SMALL)[1], folder / "pytorch_model.bin")
    (folder / "config.yaml").write_text("hop_length: 16\n")

    hub = Hub(local=folder, remote=None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    vocoder = load_vocoder("vocos:owner/model@v1", SMALL)
    assert vocoder.name == "vocos:owner/model@v1" and not reached  # from the cache, no network
    assert hub.asked == [("owner/model", n, "v1", True) for n in ("pytorch_model.bin", "config.yaml")]

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(local=None, remote=folder))
    assert load_vocoder("vocos:owner/model", SMALL).fingerprint() == vocoder.fingerprint()
    assert reached == ["https://hub.invalid"] * 2

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(local=None, remote=None, offline=True))
    with pytest.raises(
        Unavailable, match=r"lacks its pytorch_model.bin.*\(no pytorch_model.bin\).*Give the folder"
    ) as caught:
        load_vocoder("vocos:owner/model", SMALL)
    assert "\n" not in str(caught.value) and len(reached) == 2  # offline stays offline

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Unavailable, match=r"evalkit-audio\[encodec\]"):
        load_vocoder("bigvgan:owner/model", SMALL)


def test_a_hub_out_of_reach_fails_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(local=None, remote=tmp_path))
    waited = []

    def unreachable(request: Any, timeout: float) -> Any:
        waited.append(timeout)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(Unavailable, match="no route to host"):
        load_vocoder("vocos:owner/model", SMALL)
    assert waited == [V.HUB_SECONDS]


def test_errors_are_ours(tmp_path: Path) -> None:
    """A folder in place of a file of weights, and a file nobody may read: one line, no traceback of a library."""
    (tmp_path / "pytorch_model.bin").mkdir()
    with pytest.raises(EvalkitError, match=r"pytorch_model\.bin"):
        load_vocoder(f"vocos:{tmp_path}", SMALL)
