"""ViSQOL against the C++ code's figure for a copy, an independent port, real codecs, and where it has no value.

What runs the package is marked slow: numba, where it is installed, compiles for a minute the first time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from evalkit import registry
from evalkit.audio import Clip, fit_length, mono, read_clip, resample
from evalkit.errors import NotApplicable
from evalkit.metrics import visqol as ours
from evalkit.metrics.visqol import AUDIO_RATE, SPEECH_RATE, VISQOL, visqol_audio, visqol_speech
from evalkit.work import measure

slow = pytest.mark.slow


def moving_chord(seconds: float = 2.5) -> np.ndarray:
    n = np.arange(int(AUDIO_RATE * seconds)) / AUDIO_RATE
    partials = (
        np.sin(2 * np.pi * f * n * (1 + 0.02 * np.sin(2 * np.pi * 3 * n))) / (k + 1)
        for k, f in enumerate((220, 440, 660, 1320, 2640))
    )
    return sum(partials) * 0.1 * (0.3 + 0.7 * (np.sin(2 * np.pi * 2 * n) > 0))  # type: ignore[no-any-return]


def value(name: str, reference: Clip, estimate: Clip, domain: str) -> float:
    result = measure(registry.get("metrics", name), {"reference": reference, "estimate": estimate}, domain)
    assert "value" in result, result
    return float(result["value"])


def reason(name: str, reference: Clip, estimate: Clip, domain: str) -> str:
    result = measure(registry.get("metrics", name), {"reference": reference, "estimate": estimate}, domain)
    assert result.get("status") == "n/a", result
    return str(result["reason"])


def test_registered() -> None:
    for name in VISQOL:
        info = registry.get("metrics", name)
        assert info.group == "visqol" and info.needs == ("reference", "estimate") and info.max_seconds == 15
    assert registry.get("metrics", "visqol_audio").domains == ("music", "sound")
    assert registry.get("metrics", "visqol_speech").domains == ("speech",)


@slow
def test_a_copy_gets_the_figure_of_the_conformance_test() -> None:
    """kConformanceCastanetsIdentity of the C++ code: similarity is 1 in all bands whatever the clip."""
    pytest.importorskip("visqol")
    clip = Clip(moving_chord(), AUDIO_RATE)
    assert visqol_audio(clip, clip.with_samples(clip.samples.copy())) == pytest.approx(4.732101253042348, abs=1e-9)


@slow
@pytest.mark.parametrize(
    "kind, figure", [("noise", 1.4484052817786215), ("clip", 2.552974124973667), ("mild", 1.4741037830606212)]
)
def test_port_equals_an_independent_one_up_to_fine_alignment(kind: str, figure: float) -> None:
    """Figures of audio-samples-qoe 0.1.2 (Rust), which lacks the fine alignment; it is left out here as well."""
    visqol = pytest.importorskip("visqol")
    from visqol.audio_utils import AudioSignal
    from visqol.visqol_manager import VisqolManager

    x = moving_chord()
    rng = np.random.default_rng(7)
    loud, quiet = 0.02 * rng.standard_normal(len(x)), 0.002 * rng.standard_normal(len(x))
    y = {"noise": x + loud, "clip": np.clip(x, -0.05, 0.05), "mild": x + quiet}[kind]
    manager = VisqolManager()
    model = os.path.join(os.path.dirname(visqol.__file__), "model", "libsvm_nu_svr_model.txt")
    manager.init(model_path=model, disable_realignment=True)
    found = manager.run_from_signals(AudioSignal(x, AUDIO_RATE), AudioSignal(y, AUDIO_RATE))
    assert found.moslqo == pytest.approx(figure, abs=1e-6)


@slow
def test_encodec_in_order_of_rate(shared: Path) -> None:
    pytest.importorskip("visqol")
    pytest.importorskip("ai_edge_litert")
    folder = shared / "reference/codec_pairs/daps"
    original = sorted((folder / "gt").iterdir())[0]
    reference = mono(read_clip(original))
    reference = reference.with_samples(reference.samples[:, : 4 * reference.sample_rate])
    for name, domain in (("visqol_speech", "speech"), ("visqol_audio", "sound")):
        values = []
        for rate in ("1.5", "3", "6", "12"):
            made = resample(mono(read_clip(folder / f"{rate}kbps/encodec" / original.name)), reference.sample_rate)
            estimate = reference.with_samples(fit_length(made.samples, reference.length))
            values.append(value(name, reference, estimate, domain))
        assert values == sorted(values) and values[0] < values[-1] - 0.3


@slow
def test_gain_and_delay_hardly_count(shared: Path) -> None:
    pytest.importorskip("visqol")
    pytest.importorskip("ai_edge_litert")
    clip = read_clip(sorted((shared / "data/librispeech").rglob("*.flac"))[0])
    clip = clip.with_samples(clip.samples[:, : 4 * SPEECH_RATE])
    noisy = clip.with_samples(clip.samples + 0.003 * np.random.default_rng(0).standard_normal(clip.samples.shape))
    base = visqol_speech(clip, noisy)
    assert 1 < base < 4 < visqol_speech(clip, clip)
    assert visqol_speech(clip, noisy.with_samples(0.25 * noisy.samples)) == pytest.approx(base, abs=0.05)
    late = noisy.with_samples(np.pad(noisy.samples, ((0, 0), (160, 0)))[:, :-160])
    assert visqol_speech(clip, late) == pytest.approx(base, abs=0.1)


@slow
def test_no_value() -> None:
    pytest.importorskip("visqol")
    pytest.importorskip("ai_edge_litert")
    clip = Clip(moving_chord(), AUDIO_RATE)
    silent = clip.with_samples(0 * clip.samples)
    constant = clip.with_samples(0 * clip.samples + np.float32(0.3))
    stereo, opposite = (clip.with_samples(np.concatenate([clip.samples, s * clip.samples])) for s in (1, -1))
    for name, domain in (("visqol_audio", "music"), ("visqol_speech", "speech")):
        assert "reference is silent" in reason(name, silent, clip, domain)
        assert "estimate is silent" in reason(name, clip, silent, domain)
        assert "estimate is constant" in reason(name, clip, constant, domain)
        assert "mean of the estimate's channels is silent" in reason(name, stereo, opposite, domain)


def test_declared_limits() -> None:
    clip = Clip(moving_chord(), AUDIO_RATE)
    short, low = clip.with_samples(clip.samples[:, :2400]), resample(clip, 8000)
    long = clip.with_samples(np.tile(clip.samples, (1, 7)))
    assert "needs at least 1 s" in reason("visqol_audio", short, short, "sound")
    assert "at most 15 s" in reason("visqol_audio", long, long, "sound")
    assert "at least 32000 Hz" in reason("visqol_audio", low, low, "music")
    assert "at least 16000 Hz" in reason("visqol_speech", low, low, "speech")
    assert "defined for music and sound, this is speech" in reason("visqol_audio", clip, clip, "speech")


def test_absent_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip(moving_chord(), AUDIO_RATE)
    monkeypatch.setattr(ours, "_api", ours._api.__wrapped__)  # not what an earlier test has loaded
    monkeypatch.setitem(sys.modules, "visqol", None)
    with pytest.raises(NotApplicable, match=r"audio mode is not installed: pip install 'evalkit-audio\[speech\]'"):
        visqol_audio(clip, clip)
    with pytest.raises(NotApplicable, match=r"pip install 'evalkit-audio\[speech,yamnet\]'"):
        visqol_speech(clip, clip)


def test_no_other_mapping_in_the_place_of_the_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("visqol")
    monkeypatch.setattr(ours, "_api", ours._api.__wrapped__)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    clip = Clip(moving_chord(), AUDIO_RATE)
    with pytest.raises(NotApplicable, match="speech mode is not installed"):
        visqol_speech(clip, clip)
