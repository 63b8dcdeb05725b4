"""PESQ, STOI and ESTOI against published figures, a second implementation, real codecs and hostile input."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit import registry
from evalkit.audio import Clip, fit_length, mono, read_clip, resample
from evalkit.degradations import noise
from evalkit.errors import ContractError, NotApplicable
from evalkit.metrics.speech import (
    PESQ_MAX_SECONDS,
    SPEECH,
    aligned_estoi,
    aligned_pesq_wb,
    aligned_stoi,
    estoi,
    pesq_nb,
    pesq_wb,
    stoi,
)
from evalkit.work import measure

pytest.importorskip("pesq")
pytest.importorskip("pystoi")

RATE = 16000


@functools.cache
def babbling(seconds: float = 3.0, rate: int = RATE, seed: int = 0) -> Clip:
    """Harmonics and noise in syllables of 0.2 s with pauses: enough like speech for utterances to be found."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    pitch = np.cumsum(110 * (1 + 0.2 * np.sin(2 * np.pi * 0.7 * t))) / rate
    x = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 20)) + 0.3 * rng.standard_normal(len(t))
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * t), 0, None) * (np.sin(2 * np.pi * 0.6 * t) > -0.6)
    return Clip(0.05 * x * syllables, rate)


def pair_of(shared: Path) -> tuple[Clip, Clip]:
    folder = shared / "reference" / "pesq"
    return read_clip(folder / "speech.flac"), read_clip(folder / "speech_bab_0dB.flac")


def value(name: str, reference: Clip, estimate: Clip) -> float:
    result = measure(registry.get("metrics", name), {"reference": reference, "estimate": estimate}, "speech")
    assert "value" in result, result
    return float(result["value"])


def reason(name: str, reference: Clip, estimate: Clip, domain: str = "speech") -> str:
    result = measure(registry.get("metrics", name), {"reference": reference, "estimate": estimate}, domain)
    assert result.get("status") == "n/a", result
    return str(result["reason"])


def test_registered() -> None:
    for name in SPEECH:
        info = registry.get("metrics", name)
        assert info.group == "speech" and info.needs == ("reference", "estimate") and info.domains == ("speech",)
        assert info.summary and info.short_clips and info.direction == "higher"


def test_published_pair_exactly(shared: Path) -> None:
    reference, estimate = pair_of(shared)
    expected = json.loads((shared / "reference/pesq/expected.json").read_text())
    assert (expected["wb"], expected["nb"]) == (1.0832337141036987, 1.6072081327438354)
    assert pesq_wb(reference, estimate) == pytest.approx(expected["wb"], abs=1e-7)
    assert pesq_nb(reference, estimate) == pytest.approx(expected["nb"], abs=1e-7)
    narrow = pesq_nb(resample(reference, 8000), resample(estimate, 8000))
    assert narrow == pytest.approx(1.665, abs=0.002)  # the rate counts


def paper_stoi(x: np.ndarray, y: np.ndarray) -> float:
    """STOI as its paper's equations say it, at 10 kHz; written apart from pystoi, loop by loop."""
    window = np.sin(np.pi * np.arange(1, 257) / 257) ** 2

    def frames(z: np.ndarray) -> list[np.ndarray]:
        return [window * z[i : i + 256] for i in range(0, len(z) - 256, 128)]

    fx, fy = frames(x), frames(y)
    level = [20 * np.log10(np.sqrt(np.sum(f * f)) + 1e-16) for f in fx]
    kept = [i for i, v in enumerate(level) if v > max(level) - 40]
    a, b = np.zeros(128 * len(kept) + 128), np.zeros(128 * len(kept) + 128)
    for n, i in enumerate(kept):
        a[128 * n : 128 * n + 256] += fx[i]
        b[128 * n : 128 * n + 256] += fy[i]
    grid = np.arange(257) * 10000 / 512

    def envelopes(z: np.ndarray) -> np.ndarray:
        spectra = [np.abs(np.fft.rfft(f, 512)) ** 2 for f in frames(z)]
        rows = []
        for k in range(15):
            edges = [np.argmin(np.abs(grid - 150 * 2 ** (k / 3 + d / 6))) for d in (-1, 1)]
            rows.append([np.sqrt(s[edges[0] : edges[1]].sum()) for s in spectra])
        return np.array(rows)

    ex, ey = envelopes(a), envelopes(b)
    scores = []
    for m in range(30, ex.shape[1] + 1):
        for band in range(15):
            u, v = ex[band, m - 30 : m], ey[band, m - 30 : m]
            v = np.minimum(v * np.linalg.norm(u) / np.linalg.norm(v), u * (1 + 10 ** (15 / 20)))
            u, v = u - u.mean(), v - v.mean()
            scores.append(u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))
    return float(np.mean(scores))


@pytest.mark.parametrize("snr", [0, 10])
def test_stoi_is_what_the_paper_says(snr: float) -> None:
    clean = babbling(rate=10000)
    worse = noise(clean, snr, 1)
    oracle = paper_stoi(clean.samples[0].astype(float), worse.samples[0].astype(float))
    assert stoi(clean, worse) == pytest.approx(oracle, abs=1e-6)


def test_the_resampler_moves_stoi_by_less_than_a_thousandth(shared: Path) -> None:
    import pystoi

    reference, estimate = pair_of(shared)
    r, e = (c.samples[0].astype(float) for c in (reference, estimate))
    assert stoi(reference, estimate) == pytest.approx(pystoi.stoi(r, e, RATE), abs=5e-4)
    assert estoi(reference, estimate) == pytest.approx(pystoi.stoi(r, e, RATE, extended=True), abs=5e-4)


# -- real codecs -------------------------------------------------------------------------------------------------------

DAPS = {"1.5": (1.48, 0.862), "3": (1.94, 0.907), "6": (2.59, 0.944), "12": (3.25, 0.969)}
LIBRISPEECH = {"mimi_0.55kbps": (1.74, 0.857), "mimi_1.1kbps": (2.38, 0.910), "taae_0.4kbps": (2.24, 0.901)}


def fitted(reference: Clip, path: Path) -> Clip:
    made = resample(mono(read_clip(path)), reference.sample_rate)
    return reference.with_samples(fit_length(made.samples, reference.length))


def encodec(shared: Path, clips: int) -> dict[str, list[float]]:
    """Mean aligned PESQ, STOI and ESTOI by rate."""
    folder = shared / "reference/codec_pairs/daps"
    originals = {p.name: mono(read_clip(p)) for p in sorted((folder / "gt").iterdir())[:clips]}
    found = {}
    for rate in DAPS:
        pairs = [(r, fitted(r, folder / f"{rate}kbps/encodec" / n)) for n, r in originals.items()]
        measures = aligned_pesq_wb, aligned_stoi, aligned_estoi
        found[rate] = [float(np.mean([f(r, e) for r, e in pairs])) for f in measures]
    return found


def test_encodec_in_order_of_rate(shared: Path) -> None:
    for column in zip(*encodec(shared, clips=1).values(), strict=True):
        assert list(column) == sorted(column)


@pytest.mark.slow
def test_encodec_as_published(shared: Path) -> None:
    found = encodec(shared, clips=8)
    for rate, (quality, intelligibility) in DAPS.items():  # half a unit of the last published digit, and 1e-3 more
        assert found[rate][0] == pytest.approx(quality, abs=0.006)
        assert found[rate][1] == pytest.approx(intelligibility, abs=0.0015)


@pytest.mark.slow
@pytest.mark.parametrize("system", [*LIBRISPEECH, "semanticodec_0.34kbps"])
def test_speech_codecs_as_published(shared: Path, system: str) -> None:
    originals = {p.name: p for p in (shared / "data/librispeech").rglob("*.flac")}
    pairs = []
    for path in sorted((shared / "reference/codec_pairs/librispeech" / system).iterdir()):
        reference = read_clip(originals[path.name])
        pairs.append((reference, fitted(reference, path)))
    quality, intelligibility = (np.mean([f(r, e) for r, e in pairs]) for f in (pesq_wb, stoi))
    if system in LIBRISPEECH:
        assert quality == pytest.approx(LIBRISPEECH[system][0], abs=0.006)
        assert intelligibility == pytest.approx(LIBRISPEECH[system][1], abs=0.0015)
        return
    # the published .733 is after a delay that no common waveform backs: without one, .791, and aligned it is n/a
    assert quality == pytest.approx(1.43, abs=0.006) and intelligibility == pytest.approx(0.791, abs=0.0015)
    assert sum("no common waveform" in reason("aligned_stoi", r, e) for r, e in pairs) == len(pairs)


# -- properties --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_the_original_itself(rate: int) -> None:
    clean = babbling(rate=rate)
    copy = clean.with_samples(clean.samples.copy())
    assert [f(clean, copy) for f in (stoi, estoi, aligned_stoi, aligned_estoi)] == pytest.approx([1] * 4)
    assert pesq_nb(clean, copy) == pytest.approx(4.5486, abs=1e-4)  # the ends of P.862.1's and P.862.2's mappings
    if rate >= 16000:
        assert pesq_wb(clean, copy) == pytest.approx(4.6439, abs=1e-4)


def test_worse_with_noise_step_by_step() -> None:
    clean = babbling()
    for name in ("pesq_wb", "pesq_nb", "stoi", "estoi"):
        values = [value(name, clean, noise(clean, snr, 0)) for snr in (40, 30, 20, 10, 0)]
        assert values == sorted(values, reverse=True), name


@settings(max_examples=10)
@given(gain=st.floats(-60, 40), flip=st.booleans())
def test_gain_and_polarity_do_not_count(gain: float, flip: bool) -> None:
    clean = babbling()
    worse = noise(clean, 10, 0)
    scaled = worse.with_samples(worse.samples * np.float32((-1 if flip else 1) * 10 ** (gain / 20)))
    for f, tolerance in ((pesq_wb, 0.01), (pesq_nb, 0.01), (stoi, 1e-5), (estoi, 1e-5)):
        assert f(clean, scaled) == pytest.approx(f(clean, worse), abs=tolerance)


@pytest.mark.parametrize("samples", [320, -320, 1600])
def test_alignment_undoes_a_delay(samples: int) -> None:
    clean = babbling()
    moved = clean.with_samples(np.roll(clean.samples, samples, axis=1))
    assert stoi(clean, moved) < 0.85 < 0.9999 < aligned_stoi(clean, moved)
    assert estoi(clean, moved) < 0.85 < 0.9999 < aligned_estoi(clean, moved)
    assert aligned_pesq_wb(clean, moved) == pytest.approx(4.6439, abs=1e-3)


def test_aligned_equals_plain_at_no_delay() -> None:
    clean = babbling()
    worse = noise(clean, 5, 3)
    for name in ("pesq_wb", "stoi", "estoi"):
        assert value(f"aligned_{name}", clean, worse) == value(name, clean, worse)


def test_channels_are_averaged() -> None:
    left, right = babbling(seed=1), babbling(seed=2)
    worse = noise(left, 5, 0), noise(right, 5, 1)
    stereo = (left.with_samples(np.concatenate([a.samples, b.samples])) for a, b in ((left, right), worse))
    mixed = (left.with_samples((a.samples + b.samples) / 2) for a, b in ((left, right), worse))
    r2, e2, r1, e1 = *stereo, *mixed
    assert pesq_wb(r2, e2) == pytest.approx(pesq_wb(r1, e1), abs=1e-4)
    assert stoi(r2, e2) == pytest.approx(stoi(r1, e1), abs=1e-6)


def test_the_global_generator_neither_matters_nor_moves() -> None:
    clean = babbling()
    silence = clean.with_samples(np.zeros_like(clean.samples))
    found = set()
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        found.add(estoi(clean, silence))
        assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert len(found) == 1


# -- where there is no value -------------------------------------------------------------------------------------------


def test_silence() -> None:
    clean = babbling()
    silence = clean.with_samples(np.zeros_like(clean.samples))
    for name in SPEECH:
        assert "reference is silent" in reason(name, silence, clean)
        if name not in ("stoi", "estoi"):
            assert "estimate is silent" in reason(name, clean, silence)
    assert value("stoi", clean, silence) == 0
    assert abs(value("estoi", clean, silence)) < 0.05


def test_constant() -> None:
    clean = babbling()
    constant = clean.with_samples(np.full_like(clean.samples, 0.3))
    for name in ("pesq_wb", "pesq_nb", "stoi", "estoi"):
        assert "estimate is constant" in reason(name, clean, constant)
        assert "reference is constant" in reason(name, constant, clean)


def test_channels_that_cancel() -> None:
    clean = babbling()
    stereo, opposite = (clean.with_samples(np.concatenate([clean.samples, s * clean.samples])) for s in (1, -1))
    assert "mean of the estimate's channels is silent" in reason("pesq_wb", stereo, opposite)
    assert "mean of the reference's channels is silent" in reason("stoi", opposite, stereo)


def test_too_little_speech_is_no_stand_in() -> None:
    click = np.zeros(RATE * 2, np.float32)
    click[RATE : RATE + 1600] = babbling().samples[0, 1600:3200]
    clip = Clip(click, RATE)
    for name in ("stoi", "estoi", "aligned_stoi", "aligned_estoi"):
        assert "less than 0.4 s" in reason(name, clip, clip)


def test_unrelated_sounds_have_no_delay() -> None:
    a, b = (Clip(0.1 * np.random.default_rng(s).standard_normal(2 * RATE), RATE) for s in (0, 1))
    for name in ("aligned_pesq_wb", "aligned_stoi", "aligned_estoi"):
        assert "no common waveform: correlation peak 0.0" in reason(name, a, b)


def test_pesq_reports_what_the_package_says() -> None:
    clean = babbling()
    loud = clean.with_samples(clean.samples * np.float32(1e30))
    assert reason("pesq_wb", clean, loud) == "PESQ: No utterances detected"


def test_declared_limits() -> None:
    for seconds, name in ((0.05, "pesq_wb"), (0.9, "pesq_nb"), (0.3, "stoi")):
        clip = babbling(seconds)
        assert "needs at least" in reason(name, clip, clip)
    long = babbling(30.0)
    assert "at most 18.8 s" in reason("pesq_wb", long, long)
    slow = babbling(rate=8000)
    assert "at least 16000 Hz" in reason("pesq_wb", slow, slow)
    assert "defined for speech" in reason("stoi", slow, slow, "music")
    with pytest.raises(ContractError):
        stoi(babbling(), babbling(2.0))


@pytest.mark.parametrize("on, off", [(0.2, 0.21), (0.25, 0.25), (0.19, 0.205)])
@pytest.mark.parametrize("f", [pesq_wb, pesq_nb])
def test_as_many_utterances_as_fit_the_longest_clip(f, on: float, off: float) -> None:  # type: ignore[no-untyped-def]
    """At 22 s such bursts make more than the 50 utterances that the ITU-T code has room for."""
    n = int(PESQ_MAX_SECONDS * RATE)
    rng = np.random.default_rng(0)
    bursts = 0.1 * rng.standard_normal(n) * (np.arange(n) / RATE % (on + off) < on) + 1e-5 * rng.standard_normal(n)
    clip = Clip(bursts, RATE)
    assert 1 <= f(clip, noise(clip, 10, 0)) < 2


@settings(max_examples=20)
@given(
    kinds=st.tuples(*2 * [st.sampled_from(["noise", "clipped", "tone", "click", "step", "babble", "quiet"])]),
    seconds=st.sampled_from([1.0, 1.37, 2.5]),
    rate=st.sampled_from([8000, 11025, 16000, 44100]),
)
def test_a_value_in_range_or_a_reason(kinds: tuple[str, str], seconds: float, rate: int) -> None:
    n = int(seconds * rate)
    t = np.arange(n) / rate
    base = babbling(2.5, rate).samples[0, :n]
    made = {
        "noise": np.random.default_rng(0).standard_normal(n) * 0.1,
        "clipped": np.clip(base * 1000, -1, 1),
        "tone": np.sin(2 * np.pi * 300 * t),
        "click": (np.arange(n) == n // 3).astype(float),
        "step": (t > 0.5).astype(float),
        "babble": base,
        "quiet": base * 1e-4,
    }
    reference, estimate = (Clip(made[k], rate) for k in kinds)
    for name in SPEECH:
        result = measure(registry.get("metrics", name), {"reference": reference, "estimate": estimate}, "speech")
        assert "value" in result or result["status"] == "n/a", result


def test_absent_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = babbling()
    monkeypatch.setitem(sys.modules, "pesq", None)
    monkeypatch.setitem(sys.modules, "pystoi", None)
    with pytest.raises(NotApplicable, match=r"pip install 'evalkit-audio\[pesq\]'.*C compiler"):
        pesq_wb(clean, clean)
    with pytest.raises(NotApplicable, match=r"pip install 'evalkit-audio\[speech\]'"):
        stoi(clean, clean)
