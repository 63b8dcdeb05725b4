"""DNSMOS against the speechmos package and librosa, on real and generated clips, and where it has no value."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from evalkit import registry
from evalkit.audio import Clip, mono, read_clip, resample
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.metrics import dnsmos
from evalkit.metrics.dnsmos import DNSMOS, RATE, WINDOW, dnsmos_ovr, dnsmos_p808, dnsmos_sig, log_mel, windows
from evalkit.work import measure

pytest.importorskip("onnxruntime")

KEYS = {"dnsmos_ovr": "ovrl_mos", "dnsmos_sig": "sig_mos", "dnsmos_bak": "bak_mos", "dnsmos_p808": "p808_mos"}


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, shared: Path) -> Path:
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(shared / "weights"))
    return shared / "weights"


def result(name: str, clip: Clip, domain: str = "speech") -> dict[str, object]:
    return measure(registry.get("metrics", name), {"reference": clip, "estimate": clip}, domain)


def speech(shared: Path, which: int = 0) -> Clip:
    return read_clip(sorted((shared / "data/librispeech").rglob("*.flac"))[which])


def cut(clip: Clip, seconds: float, start: float = 0.0) -> Clip:
    a = round(start * clip.sample_rate)
    return clip.with_samples(clip.samples[:, a : a + round(seconds * clip.sample_rate)])


def test_registered() -> None:
    for name in DNSMOS:
        info = registry.get("metrics", name)
        assert info.needs == ("estimate",) and info.domains == ("speech",) and info.min_sample_rate == RATE
        assert info.weights and "doubled" in info.short_clips


def test_mel_filters_are_librosas() -> None:
    librosa = pytest.importorskip("librosa")
    theirs = librosa.filters.mel(sr=16000, n_fft=321, n_mels=120)
    assert np.allclose(dnsmos.mel_filters(), theirs, atol=1e-8)


@pytest.mark.parametrize("kind", ["noise", "tone", "click", "pause"])
def test_log_mel_is_librosas(kind: str) -> None:
    librosa = pytest.importorskip("librosa")
    n = 144000
    x = {
        "noise": 0.1 * np.random.default_rng(0).standard_normal(n),
        "tone": np.sin(2 * np.pi * 440 * np.arange(n) / RATE),
        "click": 1.0 * (np.arange(n) == 5000),
        "pause": np.where(np.arange(n) < n // 2, 0, 0.1 * np.random.default_rng(0).standard_normal(n)),
    }[kind].astype(np.float32)
    mel = librosa.feature.melspectrogram(y=x, sr=16000, n_fft=321, hop_length=160, n_mels=120)
    theirs = (librosa.power_to_db(mel, ref=np.max) + 40) / 40
    assert np.allclose(log_mel(x), theirs.T, atol=2e-5)


@pytest.mark.parametrize("samples", [1, 800, 72079, 72080, 144159, 144160, 160000, 176000, 400000, 600000, 2_100_000])
def test_windows_are_those_of_the_reference_code(samples: int) -> None:
    x = np.arange(samples, dtype=np.float32)
    audio, expected = x, []
    while len(audio) < int(9.01 * RATE):  # as the code of the DNS Challenge has it
        audio = np.append(audio, audio)
    for i in range(int(np.floor(len(audio) / RATE) - 9.01) + 1):
        part = audio[int(i * RATE) : int((i + 9.01) * RATE)]
        if len(part) == int(9.01 * RATE):
            expected.append(part)
    found = windows(x)
    assert len(found) == len(expected) >= 1
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(len(w) == WINDOW for w in found)


def test_no_audio_ends() -> None:
    with pytest.raises(NotApplicable, match="no audio"):
        windows(np.zeros(0, np.float32))


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(9.5, id="one window"),
        pytest.param(12.0, id="three windows"),
        pytest.param(4.2, id="doubled twice", marks=pytest.mark.slow),
        pytest.param(20.0, id="windows passed over", marks=pytest.mark.slow),
    ],
)
def test_equal_to_speechmos_on_real_clips(weights: Path, shared: Path, seconds: float) -> None:
    theirs = pytest.importorskip("speechmos.dnsmos")
    both = np.concatenate([speech(shared, i).samples for i in range(4)], axis=1)
    clip = cut(Clip(both, RATE), seconds)
    expected = theirs.run(clip.samples[0], RATE)
    for name, key in KEYS.items():
        assert result(name, clip)["value"] == pytest.approx(float(expected[key]), abs=1e-5)


def test_equal_to_speechmos_after_resampling(weights: Path, shared: Path) -> None:
    theirs = pytest.importorskip("speechmos.dnsmos")
    clip = mono(read_clip(sorted((shared / "reference/codec_pairs/daps/1.5kbps/encodec").iterdir())[0]))
    assert clip.sample_rate == 44100
    expected = theirs.run(resample(clip, RATE).samples[0], RATE)
    assert dnsmos_ovr(clip) == pytest.approx(float(expected["ovrl_mos"]), abs=1e-5)
    assert dnsmos_p808(clip) == pytest.approx(float(expected["p808_mos"]), abs=1e-5)


def test_the_package_has_the_same_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without any weights root."""
    pytest.importorskip("speechmos")
    monkeypatch.delenv("EVALKIT_WEIGHTS", raising=False)
    clip = Clip(0.05 * np.random.default_rng(0).standard_normal(5 * RATE), RATE)
    assert 1 < dnsmos_p808(clip) < 3 and 0.9 < dnsmos_ovr(clip) < 2


def test_worse_with_noise_and_what_it_does_not_hear(weights: Path, shared: Path) -> None:
    clean = cut(speech(shared), 9.1) if speech(shared).seconds > 9.1 else speech(shared)
    rng = np.random.default_rng(0).standard_normal(clean.samples.shape) * np.sqrt(np.mean(clean.samples**2))
    noisy = [clean.with_samples(clean.samples + rng * 10 ** (-snr / 20)) for snr in (30, 10)]
    for f in (dnsmos_ovr, dnsmos_p808):
        assert f(clean) > f(noisy[0]) > f(noisy[1])
    flipped = clean.with_samples(-clean.samples)
    quiet = clean.with_samples(0.1 * clean.samples)
    assert dnsmos_ovr(flipped) == pytest.approx(dnsmos_ovr(clean), abs=0.01)
    assert dnsmos_p808(quiet) == pytest.approx(dnsmos_p808(clean), abs=1e-3)


def test_the_three_values_share_one_run(weights: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = dnsmos._network

    class Counted:
        def __init__(self, name: str) -> None:
            self.network = real(name)

        def run(self, *arguments: object) -> object:
            calls.append(1)
            return self.network.run(*arguments)

    monkeypatch.setattr(dnsmos, "_network", Counted)
    clip = cut(speech(shared), 5.0)
    values = [result(name, clip)["value"] for name in ("dnsmos_ovr", "dnsmos_sig", "dnsmos_bak")]
    assert len(calls) == 1 and len(set(values)) == 3


def test_channels_are_averaged(weights: Path, shared: Path) -> None:
    clip = cut(speech(shared), 5.0)
    stereo = clip.with_samples(np.concatenate([clip.samples * 1.5, clip.samples * 0.5]))
    assert dnsmos_p808(stereo) == pytest.approx(dnsmos_p808(clip), abs=1e-5)
    opposite = clip.with_samples(np.concatenate([clip.samples, -clip.samples]))
    assert "mean of the estimate's channels is silent" in str(result("dnsmos_sig", opposite)["reason"])


def test_no_value(weights: Path) -> None:
    loud = Clip(np.random.default_rng(0).standard_normal(5 * RATE), RATE)
    silent = loud.with_samples(0 * loud.samples)
    assert "estimate is silent" in str(result("dnsmos_ovr", silent)["reason"])
    assert "estimate is silent" in str(result("dnsmos_p808", silent)["reason"])
    huge = result("dnsmos_ovr", loud.with_samples(loud.samples * np.float32(1e30)))
    assert huge["status"] == "n/a" and "times full scale" in str(huge["reason"])
    assert "needs at least 4 s" in str(result("dnsmos_ovr", cut(loud, 0.05))["reason"])
    assert "at least 16000 Hz" in str(result("dnsmos_ovr", resample(loud, 8000))["reason"])
    assert "defined for speech, this is sound" in str(result("dnsmos_ovr", loud, "sound")["reason"])
    clipped = result("dnsmos_sig", loud.with_samples(np.clip(loud.samples * 100, -1, 1)))
    assert np.isfinite(clipped["value"])  # type: ignore[call-overload]


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "dnsmos/DNSMOS/sig_bak_ovr.onnx"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"another network")
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path))
    clip = Clip(0.1 * np.random.default_rng(0).standard_normal(5 * RATE), RATE)
    with pytest.raises(EvalkitError, match=r"sig_bak_ovr\.onnx: not the expected weights"):
        dnsmos_sig(clip)


def test_other_weights_in_the_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVALKIT_WEIGHTS", raising=False)
    other = tmp_path / "model_v8.onnx"
    other.write_bytes(b"another network")
    monkeypatch.setattr(dnsmos, "_packaged", lambda name: other)
    dnsmos._weights.cache_clear()
    try:
        with pytest.raises(EvalkitError, match=r"model_v8\.onnx: not the expected weights.*install speechmos"):
            dnsmos_p808(Clip(0.1 * np.random.default_rng(0).standard_normal(5 * RATE), RATE))
    finally:
        dnsmos._weights.cache_clear()


def test_absent_weights_and_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip(0.1 * np.random.default_rng(0).standard_normal(5 * RATE), RATE)
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(dnsmos, "_packaged", lambda name: None)
    dnsmos._weights.cache_clear()
    with pytest.raises(NotApplicable, match=r"dnsmos/DNSMOS/sig_bak_ovr\.onnx absent.*DNS-Challenge.*speechmos"):
        dnsmos_sig(clip)
    assert dnsmos._identity() == {"sig_bak_ovr.onnx": False, "model_v8.onnx": False}
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NotApplicable, match=r"pip install 'evalkit-audio\[speech\]'"):
        dnsmos_sig(clip)
