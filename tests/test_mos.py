"""MOS proxies on random weights: each adapter runs its package's own code, and is compared with calling that directly.

None of the published weights is at hand. What is checked is the way from a clip to the network and back, and what is
said where weights, package or meaning are missing.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit import registry
from evalkit.audio import Clip, mono, resample
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.metrics import mos
from evalkit.work import measure

PACKAGES = ("torchmetrics==1.9.0", "lightning-utilities==0.15.3", "audiobox_aesthetics==0.0.4", "utmos-pytorch==0.1.0")
IMPORTED = ("torchmetrics", "lightning_utilities", "audiobox_aesthetics", "utmos_pytorch")


def install(folder: Path, *packages: str) -> Path:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{', '.join(packages)} cannot be installed: {done.stderr[-200:]}")
    return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The optional packages, in a folder of their own that is taken off the path again."""
    folder = str(install(tmp_path_factory.mktemp("packages"), *PACKAGES))
    sys.path.append(folder)
    yield
    sys.path.remove(folder)
    for name in [m for m in sys.modules if m.partition(".")[0] in IMPORTED]:
        del sys.modules[name]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights root; networks loaded before are forgotten."""
    for loader in (mos._nisqa, mos._utmos, mos._session, mos._audiobox, mos._squim):
        loader.cache_clear()
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def noise(seed: int, seconds: float = 1.5, rate: int = 16000, channels: int = 1) -> Clip:
    x = np.random.default_rng(seed).standard_normal((channels, round(seconds * rate)))
    return Clip(0.1 * x, rate)


def value(name: str, sample: dict[str, Any], domain: str = "speech") -> float:
    result = measure(registry.get("metrics", name), sample, domain)
    assert "value" in result, result
    return result["value"]


def reason(name: str, sample: dict[str, Any], domain: str = "speech") -> str:
    result = measure(registry.get("metrics", name), sample, domain)
    assert result.get("status") == "n/a", result
    return result["reason"]


# -- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mos.MOS)
def test_without_weights_each_says_what_to_fetch(name: str, root: Path) -> None:
    clip = noise(0)
    info = registry.get("metrics", name)
    text = reason(name, {"reference": clip, "estimate": clip})
    assert info.weights and info.weights[0] in text
    assert "hf download" in text or "put them there (" in text
    assert info.group == "mos" and info.short_clips and info.requires


@pytest.mark.parametrize("name", mos.MOS)
def test_silence_is_not_rated(name: str, root: Path) -> None:
    clip, silence = noise(0), Clip(np.zeros(24000), 16000)
    assert "the estimate is silent" in reason(name, {"reference": clip, "estimate": silence})


@pytest.mark.parametrize("name", mos.MOS)
def test_out_of_domain_is_said(name: str, root: Path) -> None:
    clip, short, low = noise(0), noise(0, 0.4), noise(0, 1.5, 4000)
    speech_only = not name.startswith("audiobox")
    for domain in ("music", "sound"):
        text = reason(name, {"reference": clip, "estimate": clip}, domain)
        assert ("is defined for speech" in text) == speech_only
    assert "needs at least" in reason(name, {"reference": short, "estimate": short})
    assert "judges audio of at least" in reason(name, {"reference": low, "estimate": low})


def test_nisqa_takes_no_more_than_its_segments(root: Path) -> None:
    long = noise(0, 52.5, 8000)
    assert "takes at most 52 s" in reason("nisqa_mos", {"reference": long, "estimate": long})


def test_the_names_are_those_registered() -> None:
    registered = {n for n in registry.names("metrics") if registry.get("metrics", n).group == "mos"}
    assert registered == set(mos.MOS)


# -- NISQA ------------------------------------------------------------------------------------------------------------

# The arguments of the published checkpoint, as far as torchmetrics' copy reads them.
NISQA_ARGUMENTS: dict[str, Any] = {
    "ms_seg_length": 15, "ms_seg_hop_length": 4, "ms_max_segments": 1300, "ms_n_fft": 4096, "ms_hop_length": 0.01,
    "ms_win_length": 0.02, "ms_n_mels": 48, "ms_fmax": 20000, "cnn_c_out_1": 16, "cnn_c_out_2": 32, "cnn_c_out_3": 64,
    "cnn_kernel_size": (3, 3), "cnn_dropout": 0.2, "cnn_pool_1": [24, 7], "cnn_pool_2": [12, 5], "cnn_pool_3": [6, 3],
    "td_sa_d_model": 64, "td_sa_nhead": 1, "td_sa_num_layers": 2, "td_sa_h": 64, "td_sa_dropout": 0.1,
    "pool_att_h": 128, "pool_att_dropout": 0.1,
}  # fmt: skip


def test_nisqa(packages: None, root: Path) -> None:
    import torch
    from torchmetrics.functional.audio import nisqa as functional

    module = sys.modules[functional.__module__] if callable(functional) else functional
    path = root / mos.NISQA_WEIGHTS
    path.parent.mkdir()
    path.write_bytes(b"not a checkpoint")
    clip = noise(0, 2.0, 16000, channels=2)
    with pytest.raises(EvalkitError, match=r"nisqa.tar: not the weights of NISQA v2.0"):
        mos.nisqa(clip)
    torch.manual_seed(0)
    model = module._NISQADIM(NISQA_ARGUMENTS).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    torch.save({"args": NISQA_ARGUMENTS, "model_state_dict": model.state_dict()}, path)
    found = [value(name, {"reference": clip, "estimate": clip}) for name in mos.NISQA]
    mel = module._get_librosa_melspec(resample(mono(clip), 48000).samples, 48000, NISQA_ARGUMENTS)
    windows, count = module._segment_specs(torch.from_numpy(mel), NISQA_ARGUMENTS)
    with torch.no_grad():
        wanted = model(windows, count.expand(1))[0].tolist()
    assert found == pytest.approx(wanted, abs=1e-5)
    assert len(set(found)) == 5
    # The longest clip that is let through fits into the model's segments.
    value("nisqa_mos", {"reference": noise(1, 52.0, 8000), "estimate": noise(1, 52.0, 8000)})


# -- UTMOS ------------------------------------------------------------------------------------------------------------


def test_utmos(packages: None, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import functools

    import torch
    from utmos_pytorch import utmos_torch

    small = functools.partial(
        utmos_torch.Wav2Vec2Config,
        conv_feature_layers="[(8,10,5)] + [(8,3,2)] * 4 + [(8,2,2)] * 2",
        encoder_layers=1,
        encoder_ffn_embed_dim=16,
        conv_pos=8,
    )
    monkeypatch.setattr(utmos_torch, "Wav2Vec2Config", small)
    torch.manual_seed(0)
    model = utmos_torch.UTMOSModel().eval()
    path = root / mos.UTMOS_HUB / "utmos_state_dict.pt"
    path.parent.mkdir(parents=True)
    clip = noise(0)
    sample = {"reference": clip, "estimate": clip}
    with pytest.raises(EvalkitError, match=r"hf download Blinorot/UTMOS-PyTorch utmos_state_dict\.pt"):
        mos.utmos(clip)
    weights = model.state_dict()
    torch.save({k: v for k, v in weights.items() if "output_layers" not in k}, path)
    with pytest.raises(EvalkitError, match="not the weights of UTMOS: output_layers"):
        mos.utmos(clip)  # the package itself would answer with random weights
    torch.save(weights, path)
    with torch.no_grad():
        frames = model(torch.from_numpy(clip.samples[None]), torch.zeros(1, dtype=torch.int), torch.tensor([288]))
    assert value("utmos", sample) == pytest.approx(float(frames.mean()) * 2 + 3, abs=1e-5)
    stereo = clip.with_samples(np.concatenate([2 * clip.samples, 0 * clip.samples]))
    assert value("utmos", {"reference": stereo, "estimate": stereo}) == value("utmos", sample)


# -- SCOREQ -----------------------------------------------------------------------------------------------------------


def _field(number: int, content: bytes | str | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    data = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + struct.pack("B", n & 127 | 128), n >> 7
    return out + struct.pack("B", n)


def _node(operation: str, inputs: list[str], output: str, **attributes: int | list[int]) -> bytes:
    body = b"".join(_field(1, i) for i in inputs) + _field(2, output) + _field(4, operation)
    for name, a in attributes.items():
        numbers = _field(3, a) + _field(20, 2) if isinstance(a, int) else _field(8, a[0]) + _field(20, 7)
        body += _field(5, _field(1, name) + numbers)
    return _field(1, body)


def _tensor(field: int, name: str, *shape: int | str) -> bytes:
    dims = b"".join(_field(1, _field(1, d) if isinstance(d, int) else _field(2, d)) for d in shape)
    return _field(field, _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims))))


def onnx_model(*nodes: bytes, width: int) -> bytes:
    """An ONNX file with input ``wav`` [1, n] and output ``out`` [1, width]."""
    graph = b"".join(nodes) + _field(2, "g") + _tensor(11, "wav", 1, "n") + _tensor(12, "out", 1, width)
    return _field(1, 7) + _field(7, graph) + _field(8, _field(2, 13))


MEAN = onnx_model(
    _node("Abs", ["wav"], "a"), _node("ReduceMean", ["a"], "out", axes=[1], keepdims=1), width=1
)  # of all samples, padding included
PAIR = onnx_model(
    _node("ReduceMax", ["wav"], "high", axes=[1], keepdims=1),
    _node("ReduceMin", ["wav"], "low", axes=[1], keepdims=1),
    _node("Concat", ["high", "low"], "both", axis=1),
    _node("LpNormalization", ["both"], "out", axis=1, p=2),
    width=2,
)


def test_scoreq(root: Path) -> None:
    pytest.importorskip("onnxruntime")
    (root / "scoreq").mkdir()
    for name, content in zip(mos.SCOREQ_WEIGHTS.values(), (MEAN, MEAN, PAIR, PAIR), strict=True):
        (root / name).write_bytes(content)
    rng = np.random.default_rng(0)
    clip = Clip(0.1 * rng.standard_normal(16000 + 7), 16000)
    other = Clip(np.where(clip.samples > 0, clip.samples / 2, clip.samples), 16000)
    sample = {"reference": clip, "estimate": other}
    padded = 16000 + 320
    for name in ("scoreq_natural", "scoreq_synthetic"):
        assert value(name, sample) == pytest.approx(float(np.abs(other.samples).sum()) / padded, rel=1e-5)
    unit = [np.array([c.samples.max(), c.samples.min()]) for c in (clip, other)]
    a, b = (u / np.linalg.norm(u) for u in unit)
    for name in ("scoreq_natural_ref", "scoreq_synthetic_ref"):
        assert value(name, sample) == pytest.approx(float(np.linalg.norm(a - b)), rel=1e-5)
        assert value(name, {"reference": clip, "estimate": clip}) == 0
        assert "reference is silent" in reason(name, sample | {"reference": Clip(np.zeros(16000), 16000)})


def test_scoreq_refuses_another_network(root: Path) -> None:
    pytest.importorskip("onnxruntime")
    (root / "scoreq").mkdir()
    names = mos.SCOREQ_WEIGHTS
    (root / names["natural"]).write_bytes(PAIR)
    (root / names["natural_ref"]).write_bytes(MEAN)
    (root / names["synthetic"]).write_bytes(b"<html>not found</html>")
    clip = noise(0)
    with pytest.raises(EvalkitError, match="gives 2 numbers a clip"):
        mos.scoreq_natural(clip)
    with pytest.raises(EvalkitError, match="gives 1 numbers a clip"):
        mos.scoreq_natural_ref(clip, clip)
    with pytest.raises(EvalkitError, match=r"adapt_nr_synthetic.onnx: no ONNX network"):
        mos.scoreq_synthetic(clip)


# -- Audiobox Aesthetics ----------------------------------------------------------------------------------------------


def test_audiobox(
    packages: None, root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch
    from audiobox_aesthetics.model import aes

    small = aes.WavLMConfig(vars(aes.DEFAULT_AUDIO_CFG))
    small.update(
        {
            "encoder_layers": 2,
            "encoder_embed_dim": 32,
            "encoder_ffn_embed_dim": 32,
            "encoder_attention_heads": 2,
            "conv_pos": 8,
            "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
        }
    )
    monkeypatch.setattr(aes, "DEFAULT_AUDIO_CFG", small)
    scale = {axis: {"mean": 5.0 + i, "std": 2.0 - 0.3 * i} for i, axis in enumerate(("CE", "CU", "PC", "PQ"))}
    torch.manual_seed(0)
    model = aes.AesMultiOutput(nth_layer=3, target_transform=scale).eval()
    with torch.no_grad():
        for p in model.proj_layer.parameters():
            p.mul_(5)
    folder = root / mos.AUDIOBOX_HUB
    model.save_pretrained(folder)
    capfd.readouterr()
    clip = noise(0, 12.0)
    found = {name: value(name, {"reference": clip, "estimate": clip}, "music") for name in mos.AUDIOBOX}
    assert capfd.readouterr() == ("", "")
    # As the package's AesPredictor has it: windows of 10 s, the last padded and masked, weighted by length.
    x = torch.from_numpy(clip.samples)
    parts = torch.stack([x[:, :160000], torch.nn.functional.pad(x[:, 160000:], (0, 128000))])
    masks = torch.ones_like(parts, dtype=torch.bool)
    masks[1, :, 32000:] = False
    with torch.no_grad():
        raw = model({"wav": parts, "mask": masks})
    for axis, s in scale.items():
        one, two = (raw[axis] * s["std"] + s["mean"]).tolist()
        assert found[f"audiobox_{axis.lower()}"] == pytest.approx((one * 1.0 + two * 0.2) / 1.2, abs=1e-5)
    assert len(set(found.values())) == 4

    mos._audiobox.cache_clear()
    (folder / "config.json").write_text("{}")  # the package would take its defaults, without a scale
    with pytest.raises(EvalkitError, match="not facebook/audiobox-aesthetics"):
        mos.audiobox(noise(1))


# -- SQUIM ------------------------------------------------------------------------------------------------------------

SQUIM = """
import os, sys
sys.path.append(sys.argv[1])
from pathlib import Path
import numpy as np
from evalkit.torchaudio_shim import import_torchaudio
torchaudio = import_torchaudio()
import torch
torch.set_num_threads(1)
from evalkit import registry
from evalkit.audio import Clip
from evalkit.errors import EvalkitError
from evalkit.metrics import mos
from evalkit.work import measure
root = Path(os.environ["EVALKIT_WEIGHTS"])
(root / "torchaudio").mkdir()
narrow = dict(extractor_mode="group_norm", extractor_conv_layer_config=[(8, 10, 5), (8, 8, 8), (8, 8, 8)],
    extractor_conv_bias=False, encoder_embed_dim=768, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=4,
    encoder_pos_conv_groups=16, encoder_num_layers=1, encoder_num_heads=2, encoder_attention_dropout=0.0,
    encoder_ff_interm_features=16, encoder_ff_interm_dropout=0.0, encoder_dropout=0.0, encoder_layer_norm_first=False,
    encoder_layer_drop=0.0, aux_num_out=None)
torchaudio.models.wav2vec2_base = lambda: torchaudio.models.wav2vec2_model(**narrow)  # the rest is the real one
torch.manual_seed(0)
objective = torchaudio.models.squim_objective_base().eval()  # the real one
subjective = torchaudio.models.squim_subjective_base().eval()
torch.save(objective.state_dict(), root / mos.SQUIM_OBJECTIVE)
torch.save(subjective.state_dict(), root / mos.SQUIM_SUBJECTIVE)
rng = np.random.default_rng(0)
clip = Clip(0.1 * rng.standard_normal(24000), 16000)
rough = clip.with_samples(np.round(clip.samples * 8) / 8)
sample = {"reference": clip, "estimate": rough}
found = [measure(registry.get("metrics", n), sample, "speech")["value"] for n in mos.SQUIM]
e, r = torch.from_numpy(rough.samples), torch.from_numpy(clip.samples)
with torch.no_grad():
    wanted = [float(s) for s in objective(e)] + [float(subjective(e, r))]
assert np.allclose(found, wanted, atol=1e-5), (found, wanted)
assert 0 <= found[0] <= 1 <= found[1] <= 4.5 and 1 <= found[3] <= 5
quiet = {**sample, "estimate": rough.with_samples(rough.samples * 0.05)}
softer = [measure(registry.get("metrics", n), quiet, "speech")["value"] for n in mos.SQUIM[:3]]
assert np.allclose(softer, found[:3], atol=1e-3), (softer, found)
mos._squim.cache_clear()
(root / mos.SQUIM_OBJECTIVE).write_bytes((root / mos.SQUIM_SUBJECTIVE).read_bytes())
result = measure(registry.get("metrics", "squim_stoi"), {**sample, "estimate": clip}, "speech")
assert result["status"] == "failed", result
assert "not the weights of torchaudio's squim_objective_base" in result["reason"], result
print("done")
"""


def test_squim(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a process of its own: torchaudio is not in the environment, where its mere presence changes transformers."""
    folder = install(tmp_path_factory.mktemp("torchaudio"), "torchaudio==2.11.0")
    done = subprocess.run(
        [sys.executable, "-c", SQUIM, str(folder)],
        env={**os.environ, "EVALKIT_WEIGHTS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout + done.stderr[-3000:]


# -- packages absent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "load", "remedy"),
    [
        ("torchmetrics", lambda: mos._nisqa(Path("x")), "pip install torchmetrics librosa requests"),
        ("utmos_pytorch", lambda: mos._utmos(Path("x")), "pip install utmos-pytorch"),
        ("onnxruntime", lambda: mos._session(Path("x")), r"pip install 'evalkit-audio\[speech\]'"),
        ("audiobox_aesthetics", lambda: mos._audiobox(Path("x")), "pip install --no-deps audiobox_aesthetics"),
        ("torchaudio", lambda: mos._squim("squim_objective_base", Path("x")), "torchaudio"),
    ],
)
def test_without_the_package(module: str, load: Any, remedy: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NotApplicable, match=remedy):
        load()
