"""Waveform measures against published values, closed forms and real codec outputs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit import registry
from evalkit.audio import Clip, fit_length, mono, read_clip, resample
from evalkit.errors import ContractError, NotApplicable
from evalkit.metrics import alignment
from evalkit.metrics.alignment import MIN_CORRELATION, align
from evalkit.metrics.waveform import (
    ALIGNED,
    WAVEFORM,
    aligned_mse_db,
    aligned_si_sdr,
    aligned_snr,
    delay_ms,
    gain_db,
    mse,
    mse_db,
    polarity,
    si_sdr,
    snr,
)

RATE = 16000


def noise(seed: int, n: int = RATE, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((channels, n)).astype(np.float32)


def late(x: np.ndarray, delay: int) -> np.ndarray:
    y = np.zeros_like(x)
    if delay >= 0:
        y[:, delay:] = x[:, : x.shape[1] - delay]
    else:
        y[:, :delay] = x[:, -delay:]
    return y


def sines(*amplitudes: float) -> np.ndarray:
    """Orthogonal sines of whole periods (200, 400, ... Hz) with these amplitudes, one second."""
    t = np.arange(RATE) / RATE
    return sum(a * np.sin(2 * np.pi * 200 * (k + 1) * t) for k, a in enumerate(amplitudes))


def test_registered_under_the_declared_names() -> None:
    for names, group in ((WAVEFORM, "waveform"), (ALIGNED, "aligned")):
        for name in names:
            info = registry.get("metrics", name)
            assert info.group == group and info.needs == ("reference", "estimate") and info.summary


# -- raw --------------------------------------------------------------------------------------------------------------


def test_published_example() -> None:
    """Doc examples of torchmetrics' signal_noise_ratio and scale_invariant_signal_noise_ratio (zero-mean SI-SDR)."""
    target, preds = Clip(np.array([3.0, -0.5, 2.0, 7.0]), RATE), Clip(np.array([2.5, 0.0, 2.0, 8.0]), RATE)
    assert snr(target, preds) == pytest.approx(16.1805, abs=1e-4)
    assert si_sdr(target, preds) == pytest.approx(15.0918, abs=1e-4)


@pytest.mark.parametrize("level", [0.5, 0.1, 0.01, 1e-3])
def test_sine_plus_orthogonal_sine(level: float) -> None:
    r, e = Clip(sines(0.8), RATE), Clip(sines(0.8, 0.8 * level), RATE)
    expected = -20 * math.log10(level)
    assert snr(r, e) == pytest.approx(expected, abs=1e-4)
    assert si_sdr(r, e) == pytest.approx(expected, abs=1e-4)
    assert mse_db(r, e) == -snr(r, e)
    assert mse(r, e) == pytest.approx((0.8 * level) ** 2 / 2, rel=1e-5)
    assert aligned_snr(r, e) == pytest.approx(10 * math.log10(1 + 1 / level**2), abs=1e-4)


def test_silence_is_exactly_0_db() -> None:
    for seed, channels in ((0, 1), (1, 2), (2, 5)):
        r = Clip(noise(seed, 12345, channels), RATE)
        silent = r.with_samples(np.zeros_like(r.samples))
        assert mse_db(r, silent) == 0.0 and snr(r, silent) == 0.0
        assert aligned_mse_db(r, silent) == 0.0 and aligned_snr(r, silent) == 0.0


def test_distortions_of_noise() -> None:
    """MSE over power of notes' table: delay 2.00, other noise 2.00, polarity flip 4.00, -3 dB gain 0.085."""
    r = Clip(noise(0, 80000), RATE)
    ratio = {
        "delay": (late(r.samples, 40), 2.0, 0.03),
        "other": (noise(1, 80000), 2.0, 0.03),
        "flip": (-r.samples, 4.0, 1e-6),
        "gain": (r.samples * 10 ** (-3 / 20), (1 - 10 ** (-3 / 20)) ** 2, 1e-5),
    }
    for name, (x, expected, tolerance) in ratio.items():
        assert mse_db(r, r.with_samples(x)) == pytest.approx(10 * math.log10(expected), abs=5 * tolerance), name


def test_exact_copies_and_silence_are_not_applicable() -> None:
    r = Clip(noise(0), RATE)
    silent = r.with_samples(0 * r.samples)
    assert mse(r, r) == 0.0 and mse(silent, silent) == 0.0
    with pytest.raises(NotApplicable, match="exact copy"):
        mse_db(r, r)
    with pytest.raises(NotApplicable, match="estimate equals the reference exactly: infinite SNR"):
        snr(r, r)
    for scale in (1.0, -0.5, 2.0):
        copy = r.with_samples(scale * r.samples)
        for f in (si_sdr, aligned_snr, aligned_mse_db, aligned_si_sdr):
            with pytest.raises(NotApplicable, match="infinite"):
                f(r, copy)
    for f in (mse_db, snr, si_sdr, aligned_mse_db, aligned_snr, aligned_si_sdr, delay_ms, gain_db, polarity):
        with pytest.raises(NotApplicable, match="reference is silent"):
            f(silent, r)
    for f in (si_sdr, aligned_si_sdr, delay_ms, gain_db, polarity):
        with pytest.raises(NotApplicable, match="estimate is silent"):
            f(r, silent)
    constant = r.with_samples(np.full_like(r.samples, 0.1))
    with pytest.raises(NotApplicable, match="constant"):
        si_sdr(r, constant)


def test_si_sdr_of_disjoint_signals_is_not_minus_infinity() -> None:
    r, e = np.zeros((1, 100), np.float32), np.zeros((1, 100), np.float32)
    r[0, :2], e[0, 50:52] = (1, -1), (1, -1)
    with pytest.raises(NotApplicable, match="minus infinity"):
        si_sdr(Clip(r, RATE), Clip(e, RATE))


@given(gain=st.floats(0.01, 100), offset=st.floats(-0.5, 0.5), flip=st.booleans(), level=st.floats(0.01, 10))
def test_si_sdr_ignores_gain_offset_polarity(gain: float, offset: float, flip: bool, level: float) -> None:
    r = Clip(noise(0, 4000), RATE)
    x = r.samples.astype(np.float64) + level * noise(1, 4000)
    a = si_sdr(r, r.with_samples(x))
    b = si_sdr(r, r.with_samples((-gain if flip else gain) * x + offset * gain))
    assert b == pytest.approx(a, abs=0.01)
    rho = np.corrcoef(r.samples[0], x[0])[0, 1]
    assert a == pytest.approx(10 * math.log10(rho**2 / (1 - rho**2)), abs=1e-3)


def test_channels_average_power() -> None:
    """One channel right, one silent: error power is the mean over channels of each one's."""
    r = Clip(np.stack([sines(0.6), sines(0.2)]), RATE)
    e = r.with_samples(np.stack([r.samples[0], 0 * r.samples[1]]))
    assert mse(r, e) == pytest.approx((0 + 0.02) / 2, rel=1e-5)
    assert snr(r, e) == pytest.approx(10 * math.log10((0.18 + 0.02) / 0.02), abs=1e-4)
    swapped = r.with_samples(np.stack([r.samples[0] / 2, r.samples[1]]))
    assert si_sdr(r, swapped) < 20  # one gain for all channels: a changed balance is an error


def test_other_shape_or_rate_is_refused() -> None:
    r = Clip(noise(0), RATE)
    for e in (Clip(noise(0)[:, :-1], RATE), Clip(noise(0), 8000), Clip(noise(0, channels=2), RATE)):
        for f in (mse, snr, si_sdr, aligned_snr, delay_ms):
            with pytest.raises(ContractError, match="fit the length"):
                f(r, e)


# -- aligned ----------------------------------------------------------------------------------------------------------


@given(
    delay=st.integers(-1600, 1600),
    gain=st.floats(0.05, 20),
    flip=st.booleans(),
    snr_db=st.floats(-3, 60),
    channels=st.integers(1, 2),
    colour=st.floats(0, 0.95),
)
def test_delay_gain_polarity_are_recovered(
    delay: int, gain: float, flip: bool, snr_db: float, channels: int, colour: float
) -> None:
    from scipy.signal import lfilter

    x = lfilter([1], [1, -colour], noise(0, 32000, channels), axis=1).astype(np.float32)
    n = noise(1, 32000, channels)
    n *= x.std() / n.std() * 10 ** (-snr_db / 20)
    signed = -gain if flip else gain
    r, e = Clip(x, RATE), Clip(signed * (late(x, delay) + n), RATE)
    assert round(delay_ms(r, e) * RATE / 1000) == delay
    assert polarity(r, e) == math.copysign(1, signed)
    wiener = -10 * math.log10(1 + 10 ** (-snr_db / 10))  # least squares against noise turns down
    assert gain_db(r, e) == pytest.approx(-20 * math.log10(gain) + 2 * wiener, abs=0.7)
    assert aligned_snr(r, e) == pytest.approx(10 * math.log10(1 + 10 ** (snr_db / 10)), abs=0.7)


@given(seed=st.integers(0, 10_000), mix=st.floats(0, 1), delay=st.integers(-30, 30))
def test_aligned_identities(seed: int, mix: float, delay: int) -> None:
    x = noise(seed, 2000)
    e = Clip(late(x, delay) * mix + noise(seed + 1, 2000) * (1.01 - mix), RATE)
    r = Clip(x, RATE)
    value = aligned_mse_db(r, e)
    assert value <= 0.0 and aligned_snr(r, e) == pytest.approx(-value, abs=1e-12)
    a = align(r, e)
    p, q = alignment.overlap(x.astype(float), e.samples.astype(float), a.delay)
    rho2 = np.sum(p * q) ** 2 / (np.sum(p * p) * np.sum(q * q))
    assert value == pytest.approx(10 * math.log10(1 - rho2), abs=1e-6)
    rho2 = np.corrcoef(p[0], q[0])[0, 1] ** 2
    assert aligned_si_sdr(r, e) == pytest.approx(10 * math.log10(rho2 / (1 - rho2)), abs=1e-6)


def test_correlation_peak_agrees_with_direct_correlation() -> None:
    x, y = noise(3, 3000, 2), noise(4, 3000, 2)
    y += 0.5 * late(x, 7)
    x0, y0 = (v - v.mean(axis=1, keepdims=True) for v in (x.astype(float), y.astype(float)))
    full = sum(np.correlate(y0[c], x0[c], "full") for c in range(2)) / np.sqrt((x0**2).sum() * (y0**2).sum())
    a = align(Clip(x, 8000), Clip(y, 8000))
    within = full[2999 - 800 : 2999 + 801]
    assert a.delay == int(np.argmax(np.abs(within))) - 800 == 7
    assert a.correlation == pytest.approx(within[800 + 7], abs=1e-12)


def test_half_a_sample_late_is_bounded_as_documented() -> None:
    """A component at f Hz, half a sample late: rho = cos(pi f / fs)."""
    fs, f = 44100, 8000
    n = np.arange(fs)
    r, e = Clip(np.sin(2 * np.pi * f * n / fs), fs), Clip(np.sin(2 * np.pi * f * (n - 0.5) / fs), fs)
    assert snr(r, e) == pytest.approx(-20 * math.log10(2 * math.sin(math.pi * f / (2 * fs))), abs=0.01)
    assert 4.9 < snr(r, e) < 5.1
    assert aligned_snr(r, e) >= snr(r, e)


def test_noise_has_no_common_waveform() -> None:
    r, e = Clip(noise(0, 220500), 44100), Clip(noise(1, 220500), 44100)
    for f in (delay_ms, gain_db, polarity):
        with pytest.raises(NotApplicable, match=r"no common waveform: correlation peak 0\.01"):
            f(r, e)
    assert -0.0005 < aligned_mse_db(r, e) < -0.0002
    assert -44 < aligned_si_sdr(r, e) < -39


def test_beyond_100_ms_there_is_no_alignment() -> None:
    x = noise(0)
    assert delay_ms(Clip(x, RATE), Clip(late(x, 1600), RATE)) == 100.0
    with pytest.raises(NotApplicable, match="no common waveform"):
        delay_ms(Clip(x, RATE), Clip(late(x, 1601), RATE))


def test_a_common_offset_is_not_a_common_waveform() -> None:
    with pytest.raises(NotApplicable, match="no common waveform"):
        delay_ms(Clip(noise(0) + 0.5, RATE), Clip(noise(1) + 0.5, RATE))
    constant = Clip(np.full((1, RATE), 0.1), RATE)
    with pytest.raises(NotApplicable, match=r"correlation peak 0\.00"):
        delay_ms(Clip(noise(0), RATE), constant)
    assert aligned_mse_db(Clip(noise(0), RATE), constant) <= 0


@pytest.mark.parametrize(("late_by", "found", "sign"), [(0, 0, 1), (3, 3, 1), (77, -3, 1), (563, 3, 1), (43, 3, -1)])
def test_steady_tone_gets_the_smallest_delay(late_by: int, found: int, sign: int) -> None:
    t = np.arange(RATE)
    r, e = (Clip(np.sin(2 * np.pi * (t - d) / 80), RATE) for d in (0, late_by))
    assert (align(r, e).delay, polarity(r, e)) == (found, sign)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_a_few_samples_give_a_value_or_a_reason(n: int) -> None:
    r, e = Clip(noise(0, n), RATE), Clip(noise(1, n), RATE)
    for f in (mse, mse_db, snr, si_sdr, aligned_mse_db, aligned_snr, aligned_si_sdr, delay_ms, gain_db, polarity):
        try:
            assert math.isfinite(f(r, e))
        except NotApplicable as reason:
            assert str(reason)


def test_one_alignment_serves_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = alignment._align
    monkeypatch.setattr(alignment, "_align", lambda *a: calls.append(1) or real(*a))
    r = Clip(noise(0), RATE)
    r.samples.flags.writeable = False  # the reference is never altered
    e = Clip(late(noise(0), 3) + noise(1), RATE)
    for name in ALIGNED:
        registry.get("metrics", name).function(r, e)
    assert len(calls) == 1
    delay_ms(Clip(noise(1), RATE), e)
    assert len(calls) == 2  # another reference is another alignment


# -- real audio -------------------------------------------------------------------------------------------------------


def pairs(shared: Path, codec: str) -> list[tuple[Clip, Clip]]:
    out = []
    for path in sorted((shared / "reference/codec_pairs/librispeech" / codec).glob("*.flac")):
        speaker, chapter, _ = path.stem.split("-")
        r = mono(read_clip(shared / "data/librispeech/test-clean" / speaker / chapter / path.name))
        e = resample(mono(read_clip(path)), r.sample_rate)
        out.append((r, e.with_samples(fit_length(e.samples, r.length))))
    assert len(out) >= 20
    return out


def test_waveform_codec_is_aligned_and_generative_one_is_not(shared: Path) -> None:
    for r, e in pairs(shared, "mimi_1.1kbps"):
        assert abs(align(r, e).delay) <= 1 and polarity(r, e) == 1 and align(r, e).correlation > 0.6
        assert 1.5 < aligned_snr(r, e) < 15
    for r, e in pairs(shared, "semanticodec_0.34kbps"):
        with pytest.raises(NotApplicable, match=r"no common waveform: correlation peak 0\.[012]"):
            delay_ms(r, e)
        assert mse_db(r, e) > 0 >= aligned_mse_db(r, e) > -0.5  # worse than silence, and no delay mends it


def test_threshold_separates_unrelated_real_clips(shared: Path) -> None:
    speech = [r for r, _ in pairs(shared, "mimi_1.1kbps")][:8]
    sounds = [mono(read_clip(p)) for p in sorted((shared / "data/esc50/audio").glob("*.ogg"))[::50]]
    for group in (speech, sounds):
        for i, r in enumerate(group):
            for e in group[:i]:
                if alignment.power(r) < 1e-12 or e.sample_rate != r.sample_rate:
                    continue
                assert abs(align(r, r.with_samples(fit_length(e.samples, r.length))).correlation) < MIN_CORRELATION


def test_real_clip_delayed_and_scaled(shared: Path) -> None:
    for path in sorted((shared / "data/esc50/audio").glob("*.ogg"))[::40]:
        r = mono(read_clip(path))
        assert mse_db(r, r.with_samples(0 * r.samples)) == 0.0
        e = r.with_samples(-0.25 * late(r.samples, 8))
        a = align(r, e)
        assert (a.delay, a.gain) == (8, pytest.approx(-4.0)), path.name
