"""Speaker similarity, by a small WavLM of random weights and by encoders made for the test."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from evalkit import registry
from evalkit.audio import Clip, read_clip
from evalkit.errors import ContractError, EvalkitError, NotApplicable
from evalkit.metrics.speaker import HUB_ID, SPEAKER, speaker_embedding, speaker_metric
from evalkit.work import measure


@pytest.fixture(scope="module")
def tiny_wavlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it: the real class, its real embedding size, one narrow layer of random weights."""
    transformers = pytest.importorskip("transformers")
    import torch

    folder = tmp_path_factory.mktemp("weights") / HUB_ID
    config = transformers.WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 8, 4),
        conv_stride=(5, 8, 8),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        use_weighted_layer_sum=True,
        tdnn_dim=(32, 32, 64),
        tdnn_kernel=(5, 3, 1),
        tdnn_dilation=(1, 2, 1),
        xvector_output_dim=512,
    )
    torch.manual_seed(0)
    model = transformers.WavLMForXVector(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder.parent.parent


@pytest.fixture
def with_weights(tiny_wavlm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from evalkit.metrics import speaker

    speaker._loaded.cache_clear()
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tiny_wavlm))
    return tiny_wavlm / HUB_ID


def noise(seed: int, seconds: float = 2.0, rate: int = 16000) -> Clip:
    x = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return Clip(0.1 * np.convolve(x, np.hanning(2 + 3 * seed), "same"), rate)


def test_a_copy_has_one_and_others_less(with_weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    info = registry.get("metrics", SPEAKER[0])
    one, other = noise(1), noise(9)
    same = measure(info, {"reference": one, "estimate": one.with_samples(one.samples)}, "speech")
    assert same["value"] == pytest.approx(1, abs=1e-12)
    apart = measure(info, {"reference": one, "estimate": other}, "speech")["value"]
    assert -1 <= apart < 0.999
    assert apart == measure(info, {"reference": other, "estimate": one}, "speech")["value"]
    # The extractor takes out level and offset, so that gain plays no part.
    louder = measure(info, {"reference": one, "estimate": one.with_samples(3 * one.samples)}, "speech")["value"]
    assert louder == pytest.approx(1, abs=1e-5)
    assert capfd.readouterr() == ("", "")


def test_the_embedding_is_transformers_own(with_weights: Path) -> None:
    """By the class alone, without evalkit's resampling, batching or scaling."""
    import torch
    from transformers import WavLMForXVector

    clip = noise(2)
    x = clip.samples[0].astype(np.float64)
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-7)
    with torch.inference_mode():
        wanted = WavLMForXVector.from_pretrained(with_weights)(torch.tensor(x[None], dtype=torch.float32)).embeddings
    wanted = wanted[0].double() / wanted[0].double().norm()
    np.testing.assert_allclose(speaker_embedding(clip, "wavlm-sv"), wanted.numpy(), atol=2e-5)


def test_the_embedding_of_a_clip_is_its_own(with_weights: Path) -> None:
    loaded = registry.get("embedders", "wavlm-sv").load()
    clips = [noise(s, seconds).samples[0] for s, seconds in ((1, 1.0), (2, 2.5), (3, 1.7))]
    together = loaded.embed(clips)
    assert [e.shape for e in together] == [(1, 512)] * 3 and together[0].dtype == np.float32
    for clip, found in zip(clips, together, strict=True):
        np.testing.assert_array_equal(loaded.embed([clip])[0], found)


def test_stereo_and_other_rates_are_mixed_and_resampled(with_weights: Path) -> None:
    from evalkit.audio import mono, resample

    wide = noise(4, 1.5, 44100)
    stereo = wide.with_samples(np.concatenate([wide.samples, 0 * wide.samples]))
    np.testing.assert_array_equal(
        speaker_embedding(stereo, "wavlm-sv"), speaker_embedding(resample(mono(stereo), 16000), "wavlm-sv")
    )


def test_where_it_does_not_apply(with_weights: Path) -> None:
    info = registry.get("metrics", SPEAKER[0])
    clip, silence = noise(1), Clip(np.zeros(32000), 16000)
    for sample, cause in (
        ({"reference": silence, "estimate": clip}, "the reference is silent"),
        ({"reference": clip, "estimate": silence}, "the estimate is silent"),
        ({"reference": noise(1, 0.9), "estimate": noise(1, 0.9)}, "at least 1 s"),
        ({"reference": noise(1, 2, 8000), "estimate": noise(1, 2, 8000)}, "at least 16000 Hz"),
    ):
        result = measure(info, sample, "speech")
        assert result["status"] == "n/a" and cause in result["reason"]
    assert "defined for speech" in measure(info, {"reference": clip, "estimate": clip}, "music")["reason"]


def test_weights_absent_or_of_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    load = registry.get("embedders", "wavlm-sv").load
    with pytest.raises(NotApplicable, match=f"hf download {HUB_ID}"):
        load()
    config = transformers.WavLMConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, conv_dim=(8,),
        conv_kernel=(10,), conv_stride=(5,), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=1,
    )  # fmt: skip
    transformers.WavLMModel(config).save_pretrained(tmp_path / HUB_ID)  # no head: transformers would make one up
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / HUB_ID)
    with pytest.raises(EvalkitError, match="x-vector head"):
        load()


def test_transformers_absent(with_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotApplicable, match="transformers is not installed"):
        registry.get("embedders", "wavlm-sv").load()


class _Encoder:
    """An encoder of one's own: the mean and the spread."""

    def embed(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        return [np.array([[c.mean(), c.std()]]) if c.max() < 0.9 else np.full((1, 2), np.nan) for c in clips]


def test_an_encoder_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("embedders", "metrics"):
        registry.names(kind)  # type: ignore[arg-type]
        there = registry._registries[kind]  # type: ignore[index]
        monkeypatch.setattr(there, "entries", dict(there.entries))
    registry.embedder("stats", version="1", sample_rate=16000, dimension=2)(_Encoder)
    registry.embedder("long", version="1", sample_rate=16000, dimension=3)(lambda: _Encoder())
    registry.embedder("windows", version="1", sample_rate=16000, dimension=2, window_s=1.0)(lambda: _Encoder())
    info = registry.get("metrics", speaker_metric("stats"))
    a = Clip(np.tile([0.5, 0.1], 16000), 16000)  # mean 0.3, spread 0.2
    b = Clip(np.tile([0.1, -0.5], 16000), 16000)  # mean -0.2, spread 0.3
    assert measure(info, {"reference": a, "estimate": b}, "speech")["value"] == pytest.approx(0, abs=1e-6)
    loud = Clip(np.full(32000, 0.95), 16000)
    with pytest.raises(ContractError, match="length nan"):
        speaker_embedding(loud, "stats")
    with pytest.raises(ContractError, match=r"shape \(1, 2\), expected \(1, 3\)"):
        speaker_embedding(a, "long")
    with pytest.raises(EvalkitError, match="windows of 1 s"):
        speaker_metric("windows")


def test_real_speech_goes_through(with_weights: Path, shared: Path) -> None:
    path = next((shared / "data/librispeech").rglob("*.flac"))
    clip = read_clip(path, seconds=3)
    value = measure(registry.get("metrics", SPEAKER[0]), {"reference": clip, "estimate": clip}, "speech")["value"]
    assert value == pytest.approx(1, abs=1e-12)
