"""Spectral measures against closed forms, an independent STFT (scipy.signal) and, where installed, librosa."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit import registry
from evalkit.audio import Clip, mono, read_clip, resample
from evalkit.errors import ContractError, NotApplicable
from evalkit.metrics.spectral import (
    MEL_FLOOR,
    PWG,
    SPECTRAL,
    bandwidth_khz,
    hz_to_mel,
    log_mel,
    logmel_l1,
    logmel_mse,
    long_term_power,
    mel_filters,
    mel_to_hz,
    mr_stft,
    stft_power,
)


def noise(seed: int, n: int = 24000, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((channels, n))


def low_pass(x: np.ndarray, rate: int, hz: float) -> np.ndarray:
    from scipy.signal import fftconvolve, firwin

    return fftconvolve(x, firwin(1001, hz, fs=rate, window=("kaiser", 12))[None], mode="same")


def test_registered_under_the_declared_names() -> None:
    assert SPECTRAL[0] == "logmel_l1@n1024-h256-m100"
    for name in SPECTRAL:
        info = registry.get("metrics", name)
        assert info.group == "spectral" and info.needs == ("reference", "estimate") and info.summary


# -- filter bank ------------------------------------------------------------------------------------------------------


def test_mel_scale_closed_form() -> None:
    assert float(hz_to_mel(np.array(700.0))) == pytest.approx(2595 * math.log10(2))
    f = np.linspace(0, 24000, 1000)
    assert np.allclose(mel_to_hz(hz_to_mel(f)), f)


@pytest.mark.parametrize(("rate", "n_fft", "bands"), [(24000, 1024, 100), (16000, 512, 40), (44100, 2048, 128)])
def test_filters_are_a_partition_of_unity(rate: int, n_fft: int, bands: int) -> None:
    """Triangles of peak 1 whose feet are the neighbours' peaks add up to 1 between the first and the last peak."""
    bank = mel_filters(rate, n_fft, bands)
    corners = mel_to_hz(np.arange(bands + 2) * hz_to_mel(np.array(rate / 2)) / (bands + 1))
    hz = np.arange(n_fft // 2 + 1) * rate / n_fft
    inner = (hz >= corners[1]) & (hz <= corners[-2])
    assert np.allclose(bank.sum(axis=0)[inner], 1)
    assert bank.min() == 0 and bank.max() <= 1 and (bank.max(axis=1) > 0).all()
    for k in range(bands):
        assert not bank[k, (hz <= corners[k]) | (hz >= corners[k + 2])].any()
        rising = (hz > corners[k]) & (hz <= corners[k + 1])
        assert np.allclose(bank[k, rising], (hz[rising] - corners[k]) / (corners[k + 1] - corners[k]))


def test_filters_equal_librosa() -> None:
    librosa = pytest.importorskip("librosa", reason="librosa (second implementation of the mel bank) is not installed")
    ours = mel_filters(24000, 1024, 100)
    theirs = librosa.filters.mel(sr=24000, n_fft=1024, n_mels=100, htk=True, norm=None, dtype=np.float64)
    assert np.abs(ours - theirs).max() < 1e-9


# -- log-mel ----------------------------------------------------------------------------------------------------------


def reference_log_mel(x: np.ndarray) -> np.ndarray:
    """`log_mel` of one 24 kHz channel by scipy.signal.stft (which scales a sine of amplitude 1 to 0.5) and loops."""
    from scipy.signal import stft

    padded = np.pad(x, 512, mode="reflect")
    f, _, z = stft(padded, 24000, window="hann", nperseg=1024, noverlap=768, boundary=None, padded=False)
    out = np.zeros((z.shape[1], 100))
    top = 2595 * math.log10(1 + 12000 / 700)
    edge = [700 * (10 ** (top * k / 101 / 2595) - 1) for k in range(102)]
    for band in range(100):
        for i, hz in enumerate(f):
            a, b, c = edge[band : band + 3]
            weight = (hz - a) / (b - a) if a < hz <= b else (c - hz) / (c - b) if b < hz < c else 0.0
            if weight:
                out[:, band] += weight * 2 * np.abs(z[i])
    return np.log(np.maximum(out, 1e-5))


def test_log_mel_equals_an_independent_computation(shared: Path) -> None:
    real = resample(mono(read_clip(sorted((shared / "data/esc50/audio").glob("*.ogg"))[3])), 24000)
    for x in (noise(0)[0], noise(1, 5000)[0], real.samples[0].astype(float)):
        ours = log_mel(Clip(x, 24000))[0]
        assert ours.shape == (1 + len(x) // 256, 100)
        assert np.abs(ours - reference_log_mel(np.float32(x).astype(float))).max() < 2e-3  # float32 beside float64


def test_log_mel_equals_librosa() -> None:
    librosa = pytest.importorskip("librosa", reason="librosa (second implementation of the mel bank) is not installed")
    x = np.float32(noise(0)[0])
    mel = librosa.feature.melspectrogram(
        y=x, sr=24000, n_fft=1024, hop_length=256, power=1, n_mels=100, htk=True, norm=None, pad_mode="reflect"
    )
    assert np.abs(log_mel(Clip(x, 24000))[0] - np.log(np.maximum(mel.T / 256, 1e-5))).max() < 1e-3


def test_full_scale_sine_and_silence_mark_the_scale() -> None:
    sine = Clip(np.sin(2 * np.pi * 187.5 * np.arange(24000) / 24000), 24000)  # bin 8
    power = stft_power(sine, 1024, 256, 1024)[0, 10]
    assert 2 / 512 * math.sqrt(power[8]) == pytest.approx(1, abs=1e-4)
    silence = Clip(np.zeros(24000), 24000)
    assert np.all(log_mel(silence) == np.float32(math.log(MEL_FLOOR)))
    assert logmel_l1(silence, silence) == 0.0


@given(gain=st.floats(0.05, 20), channels=st.integers(1, 3))
def test_gain_gives_its_logarithm(gain: float, channels: int) -> None:
    r = Clip(noise(0, 6000, channels), 24000)
    e = r.with_samples(gain * r.samples)
    assert logmel_l1(r, e) == pytest.approx(abs(math.log(gain)), abs=1e-4)
    assert logmel_mse(r, e) == pytest.approx(math.log(gain) ** 2, abs=1e-3)


def test_distances_are_metrics_in_shape() -> None:
    r, e = Clip(noise(0), 24000), Clip(noise(1), 24000)
    for f in (logmel_l1, logmel_mse):
        assert f(r, r) == 0 and f(r, e) == pytest.approx(f(e, r)) and f(r, e) > 0
    assert logmel_mse(r, e) >= logmel_l1(r, e) ** 2
    # One bin's magnitude is Rayleigh, E|ln a - ln b| = ln 2; less where a band averages several bins.
    assert 0.2 < logmel_l1(r, e) < math.log(2)


def test_blind_to_phase_where_the_waveform_is_not() -> None:
    r = Clip(noise(0), 24000)
    assert logmel_l1(r, r.with_samples(-r.samples)) == 0
    assert mr_stft(r, r.with_samples(-r.samples)) == 0


def test_same_at_every_sample_rate() -> None:
    """Content below 7 kHz, sampled at 24, 44.1 and 48 kHz, is one sound with one distance."""
    x, y = (low_pass(noise(s, 48000), 48000, 7000) for s in (0, 1))
    r, e = Clip(x, 48000), Clip(x + 0.1 * y, 48000)
    for f in (logmel_l1, mr_stft):
        values = [f(resample(r, rate), resample(e, rate)) for rate in (48000, 44100, 24000)]
        assert values == pytest.approx([values[0]] * 3, rel=0.03)


def test_channels_are_averaged() -> None:
    a, b = noise(0), noise(1)
    both = logmel_l1(Clip(np.concatenate([a, b]), 24000), Clip(np.concatenate([a / 2, b]), 24000))
    assert both == pytest.approx(math.log(2) / 2, abs=1e-4)
    stereo = mr_stft(Clip(np.concatenate([a, b]), 24000), Clip(np.concatenate([a / 2, b]), 24000))
    assert stereo == pytest.approx((0.5 + math.log(2)) / 2, abs=1e-3)


# -- STFT distance ----------------------------------------------------------------------------------------------------


def reference_mr_stft(x: np.ndarray, y: np.ndarray) -> float:
    """Parallel WaveGAN's distance in float64, frame by frame as torch.stft does it."""
    from scipy.signal import get_window

    total = 0.0
    for n_fft, hop, length in PWG:
        window = np.zeros(n_fft)
        start = (n_fft - length) // 2
        window[start : start + length] = get_window("hann", length)
        magnitudes = []
        for s in (x, y):
            p = np.pad(s, n_fft // 2, mode="reflect")
            frames = [p[i * hop : i * hop + n_fft] * window for i in range(1 + len(s) // hop)]
            z = np.fft.rfft(np.array(frames))
            magnitudes.append(np.sqrt(np.maximum(z.real**2 + z.imag**2, 1e-8)))
        a, b = magnitudes
        total += np.linalg.norm(a - b) / np.linalg.norm(a) + np.mean(np.abs(np.log(a) - np.log(b)))
    return total / 3


def test_mr_stft_equals_an_independent_computation(shared: Path) -> None:
    real = resample(mono(read_clip(sorted((shared / "data/esc50/audio").glob("*.ogg"))[3])), 24000).samples[0, :48000]
    for x in (noise(0)[0], real):
        y = x + 0.03 * noise(5, len(x))[0]
        r, e = Clip(x, 24000), Clip(y, 24000)
        expected = reference_mr_stft(r.samples[0].astype(float), e.samples[0].astype(float))
        assert expected > 0.02
        assert mr_stft(r, e) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("gain", [0.5, 0.9, 1.5, 3.0])
def test_mr_stft_of_a_gain(gain: float) -> None:
    r = Clip(noise(0), 24000)
    expected = abs(1 - gain) + abs(math.log(gain))
    assert mr_stft(r, r.with_samples(gain * r.samples)) == pytest.approx(expected, abs=1e-3)


def test_mr_stft_of_silence_has_convergence_1() -> None:
    r = Clip(noise(0), 24000)
    silent = r.with_samples(0 * r.samples)
    log_part = np.mean([np.mean(np.log(np.sqrt(np.maximum(stft_power(r, *p), 1e-8)) / 1e-4)) for p in PWG])
    assert mr_stft(r, silent) == pytest.approx(1 + log_part, abs=1e-2)


# -- bandwidth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16000, 24000, 44100, 48000])
@pytest.mark.parametrize("hz", [2000, 4000, 7000])
def test_bandwidth_of_a_low_pass(rate: int, hz: int) -> None:
    r = Clip(noise(0, 3 * rate), rate)
    assert bandwidth_khz(r, r.with_samples(low_pass(r.samples, rate, hz))) == pytest.approx(hz / 1000, abs=0.1)
    assert bandwidth_khz(r, r) == rate / 2000


def test_bandwidth_of_resampling() -> None:
    r = Clip(noise(0, 96000), 48000)
    for rate in (8000, 16000, 32000):
        there_and_back = resample(resample(r, rate), 48000)
        assert bandwidth_khz(r, there_and_back) == pytest.approx(0.47 * rate / 1000, abs=0.03 * rate / 1000 + 0.1)


def test_bandwidth_withstands_gain_holes_and_specks() -> None:
    rate = 48000
    r = Clip(noise(0, 2 * rate), rate)
    spectrum = np.fft.rfft(r.samples[0].astype(float))
    hz = np.arange(len(spectrum)) / 2
    spectrum[hz > 8000] *= 1e-4
    spectrum[(hz > 3000) & (hz < 3800)] = 0  # a hole
    spectrum[(hz > 15000) & (hz < 15300)] *= 1e4  # a speck
    x = np.fft.irfft(spectrum)
    for gain in (1.0, 0.01):
        assert bandwidth_khz(r, r.with_samples(gain * x)) == pytest.approx(8, abs=0.1)


def test_bandwidth_counts_only_what_the_reference_has() -> None:
    rate = 44100
    r = Clip(low_pass(noise(0, rate), rate, 5000), rate)
    own = bandwidth_khz(r, r)
    assert 5 < own < 5.6  # the filter's skirt down to -90 dB
    hiss = Clip(r.samples + 1e-3 * noise(1, rate), rate)
    assert bandwidth_khz(r, hiss) == own


def test_long_term_power_is_power() -> None:
    for rate in (16000, 44100):
        x = noise(0, 2 * rate, 2)
        assert long_term_power(Clip(x, rate)).sum() == pytest.approx(np.mean(x**2), rel=0.03)
    tone = long_term_power(Clip(0.5 * np.sin(2 * np.pi * 1000 * np.arange(48000) / 48000), 48000))
    assert int(np.argmax(tone)) == 1000 // 50 - 2 and tone.sum() == pytest.approx(0.125, rel=1e-3)


def test_bandwidth_of_real_clips(shared: Path) -> None:
    for path in sorted((shared / "data/esc50/audio").glob("*.ogg"))[::40]:
        r = mono(read_clip(path))
        own = bandwidth_khz(r, r)
        assert 5 < own <= 22.05, path.name
        low = r.with_samples(low_pass(r.samples, r.sample_rate, 4000))
        assert bandwidth_khz(r, low) == pytest.approx(4, abs=0.15), path.name


# -- outside the domain -----------------------------------------------------------------------------------------------


def test_not_applicable() -> None:
    r = Clip(noise(0), 24000)
    silent = r.with_samples(0 * r.samples)
    for f in (mr_stft, bandwidth_khz):
        with pytest.raises(NotApplicable, match="reference is silent"):
            f(silent, r)
    with pytest.raises(NotApplicable, match="estimate is silent"):
        bandwidth_khz(r, silent)
    for rate, n in ((24000, 1023), (48000, 2000), (8000, 300)):
        short = Clip(noise(0, n), rate)
        for f in (logmel_l1, logmel_mse, mr_stft):
            with pytest.raises(NotApplicable, match="too short"):
                f(short, short)
    with pytest.raises(NotApplicable, match="too short"):
        bandwidth_khz(Clip(noise(0, 400), 24000), Clip(noise(1, 400), 24000))
    constant = Clip(np.full(24000, 0.1), 24000)
    with pytest.raises(NotApplicable, match="reference is silent above 75 Hz"):
        bandwidth_khz(constant, r)
    for f in (logmel_l1, logmel_mse, mr_stft, bandwidth_khz):
        with pytest.raises(ContractError):
            f(r, Clip(noise(0, 23999), 24000))


def test_reference_spectra_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.metrics import spectral

    seen = []
    real = spectral.stft_power
    monkeypatch.setattr(spectral, "stft_power", lambda clip, *a: seen.append(clip.samples.tobytes()) or real(clip, *a))
    r = Clip(noise(0), 24000)
    r.samples.flags.writeable = False
    for seed in (1, 2, 3):
        e = Clip(noise(seed), 24000)
        for f in (logmel_l1, logmel_mse, mr_stft):
            f(r, e)
    assert seen.count(r.samples.tobytes()) == 4  # one mel, three STFTs
    assert len(seen) == 4 + 3 * 4
