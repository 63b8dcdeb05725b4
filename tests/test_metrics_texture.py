"""Texture measures against closed forms, scipy's Welch estimate, and real and synthetic over-smoothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit import registry
from evalkit.audio import Clip, mono, read_clip, resample
from evalkit.errors import ContractError, NotApplicable
from evalkit.metrics.spectral import log_mel, mel_filters
from evalkit.metrics.texture import (
    FLOOR,
    TEXTURE,
    delta_energy,
    delta_energy_ratio_freq,
    delta_energy_ratio_time,
    energy_ratio,
    gv_log_error,
    gv_ratio,
    modulation_distance,
    modulation_distance_db,
    modulation_power,
    temporal_variance,
)

RATIOS = (gv_ratio, delta_energy_ratio_time, delta_energy_ratio_freq)
ERRORS = (gv_log_error, modulation_distance)


def noise(seed: int, n: int = 48000, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((channels, n))


def mel_noise(seed: int, frames: int = 400, channels: int = 1) -> np.ndarray:
    """A log-mel-like array: a mean per band, and fluctuations about it."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-8, -2, (channels, 1, 100)) + 0.3 * rng.standard_normal((channels, frames, 100))


def about_mean(x: np.ndarray, a: float) -> np.ndarray:
    mean = x.mean(axis=1, keepdims=True)
    return mean + a * (x - mean)


def remade(clip: Clip, change: Callable[[np.ndarray], np.ndarray]) -> Clip:
    """Mono audio whose log STFT magnitude ``[bins, frames]`` is changed and whose phase is kept."""
    from scipy.signal import istft, stft

    _, _, z = stft(clip.samples[0].astype(float), clip.sample_rate, nperseg=1024, noverlap=768)
    log_magnitude = np.log(np.maximum(np.abs(z), 1e-7))
    _, y = istft(np.exp(change(log_magnitude) + 1j * np.angle(z)), clip.sample_rate, nperseg=1024, noverlap=768)
    return clip.with_samples(y[None, : clip.length])


def smooth(x: np.ndarray, width: int, axis: int) -> np.ndarray:
    from scipy.ndimage import uniform_filter1d

    return uniform_filter1d(x, width, axis=axis, mode="nearest")


def test_registered_under_the_declared_names() -> None:
    from tasks.reconstruction import METRICS

    for name, f in zip(
        TEXTURE,
        (gv_ratio, gv_log_error, modulation_distance, delta_energy_ratio_time, delta_energy_ratio_freq),
        strict=True,
    ):
        info = registry.get("metrics", name)
        assert info.function is f and info.group == "texture" and info.needs == ("reference", "estimate")
        assert info.direction == ("lower" if f in ERRORS else "none")
        assert name in METRICS


# -- closed forms on arrays -------------------------------------------------------------------------------------------


@given(a=st.floats(0.5, 3), channels=st.integers(1, 2))
def test_fluctuations_scaled_by_a_have_a_squared(a: float, channels: int) -> None:
    x = mel_noise(0, channels=channels)
    y = about_mean(x, a)
    assert temporal_variance(y) / temporal_variance(x) == pytest.approx(a * a)
    assert delta_energy(y, 1) / delta_energy(x, 1) == pytest.approx(a * a)
    p, q = modulation_power(x), modulation_power(y)
    assert p.min() > 4 * FLOOR  # else the floor would take part
    assert modulation_distance_db(p, q) == pytest.approx(abs(20 * math.log10(a)), abs=1e-9)


@pytest.mark.parametrize("axis", [1, 2])
def test_smoothing_a_log_mel_is_seen_step_by_step(axis: int) -> None:
    x = mel_noise(0)
    steps = [smooth(x, width, axis) for width in (1, 2, 3, 5, 9, 17, 33)]
    p = [modulation_power(y) for y in steps]
    assert modulation_distance_db(p[0], p[0]) == 0
    assert all(np.diff([delta_energy(y, axis) for y in steps]) < 0)
    assert all(np.diff([temporal_variance(y) for y in steps]) < 0)
    assert all(np.diff([modulation_distance_db(p[0], q) for q in p]) > 0)


def test_variance_is_the_mean_over_channels_and_bands() -> None:
    x = mel_noise(0, channels=2)
    slow = [np.mean((x[c, :, b] - x[c, :, b].mean()) ** 2) for c in range(2) for b in range(100)]
    assert temporal_variance(x) == pytest.approx(np.mean(slow))
    assert temporal_variance(np.full((1, 77, 100), 0.1) * np.arange(100)) == 0  # exactly, whatever the level


def test_delta_energies_tell_time_from_frequency() -> None:
    t, b = np.arange(50.0)[None, :, None], np.arange(100.0)[None, None, :]
    x = 0.25 * t + 3 * b
    assert delta_energy(x, 1) == pytest.approx(0.25**2) and delta_energy(x, 2) == pytest.approx(9)


def test_the_mean_of_n_textures_keeps_one_nth() -> None:
    """What an MSE decoder converges to: the average of all that its codes allow."""
    many = np.stack(
        [mel_noise(0)[0].mean(axis=0) + 0.3 * np.random.default_rng(s).standard_normal((400, 100)) for s in range(16)]
    )
    for n in (2, 4, 16):
        mean = many[None, :n].mean(axis=1)
        assert temporal_variance(mean) / temporal_variance(many[:1]) == pytest.approx(1 / n, rel=0.05)
        assert delta_energy(mean, 1) / delta_energy(many[:1], 1) == pytest.approx(1 / n, rel=0.05)


def test_pooling_is_not_ruled_by_bands_that_hardly_move() -> None:
    """The mean of the bands' own ratios would say 50 here: one empty band with a trace of movement."""
    x = mel_noise(0)
    x[0, :, 0] = -11.5 + 1e-3 * np.random.default_rng(1).standard_normal(400)
    y = about_mean(x, 0.5)
    y[0, :, 0] = -11.5 + 0.07 * np.random.default_rng(2).standard_normal(400)
    per_band = y.var(axis=1) / x.var(axis=1)
    assert per_band.mean() > 25
    assert energy_ratio(temporal_variance(x), temporal_variance(y), "") == pytest.approx(0.25, rel=0.01)


@given(width=st.integers(1, 30), seed=st.integers(0, 5))
def test_circular_averaging_in_time_never_adds_variance(width: int, seed: int) -> None:
    x = mel_noise(seed, 60)
    y = np.mean([np.roll(x, k, axis=1) for k in range(width)], axis=0)
    assert temporal_variance(y) <= temporal_variance(x) * (1 + 1e-12)
    if width > 1:
        assert temporal_variance(y) < 0.7 * temporal_variance(x)


# -- modulation spectrum ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [94, 111, 128, 192, 448, 449, 500])
def test_modulation_power_equals_scipy(frames: int) -> None:
    """scipy.signal.welch where its hop of 64 fits, the mean of its periodograms over our segments elsewhere."""
    from scipy.signal import periodogram, welch

    x = mel_noise(frames, frames, 2)
    n = min(128, frames)
    options = {"fs": 93.75, "window": "hann", "detrend": "constant", "axis": 1}
    if (frames - n) % 64 == 0:
        hz, density = welch(x, nperseg=n, noverlap=n // 2, **options)
    else:
        count = math.ceil((frames - 128) / 64) + 1
        starts = [round(i * (frames - 128) / (count - 1)) for i in range(count)]
        assert starts[0] == 0 and starts[-1] == frames - 128 and max(np.diff(starts)) <= 64
        found = [periodogram(x[:, s : s + 128], **options) for s in starts]
        hz, density = found[0][0], np.mean([d for _, d in found], axis=0)
    ours = modulation_power(x)
    assert ours.shape == (2, 10, 5)
    for octave in range(5):
        low = 2.0**octave
        inside = (hz >= low) & (hz < 2 * low)
        assert inside.any()
        expected = density[:, inside].sum(axis=1) * (hz[1] - hz[0])
        assert np.allclose(ours[:, :, octave], expected.reshape(2, 10, 10).mean(axis=2), rtol=1e-9)


@pytest.mark.parametrize("octave", range(5))
def test_a_sinusoid_gives_half_its_squared_amplitude_in_its_octave(octave: int) -> None:
    frequency = 93.75 / 128 * (2, 4, 8, 16, 32)[octave]
    t = np.arange(448) / 93.75
    x = -5 + 0.2 * np.sin(2 * np.pi * frequency * t)[None, :, None] * np.ones(100)
    power = modulation_power(x)
    side = {0: 1 / 3}.get(octave, 0)  # the octave 1-2 Hz holds bin 2 alone, a Hann window spills 1/6 to each side
    assert np.allclose(power[:, :, octave], 0.02 * (1 - side), rtol=0.01)
    others = np.delete(power, [octave, *([1] if octave == 0 else [])], axis=2)
    assert others.max() < 1e-9


@pytest.mark.parametrize(("hz", "octave"), [(1.5, 0), (3, 1), (6, 2), (12, 3), (24, 4)])
def test_amplitude_modulated_noise_raises_its_octave(hz: float, octave: int) -> None:
    x = noise(0, 120000)
    envelope = 1 + 0.8 * np.sin(2 * np.pi * hz * np.arange(120000) / 24000)
    r, e = Clip(x, 24000), Clip(x * envelope, 24000)
    change = 10 * np.log10(modulation_power(log_mel(e)) / modulation_power(log_mel(r)))[0].mean(axis=0)
    assert int(np.argmax(change)) == octave and change[octave] > 3
    assert modulation_distance(r, e) > 2
    assert gv_ratio(r, e) > 1.2


def test_the_floor_bounds_silence_and_ignores_the_inaudible() -> None:
    r = Clip(noise(0), 24000)
    silent = r.with_samples(0 * r.samples)
    expected = np.mean(10 * np.log10(modulation_power(log_mel(r)) / FLOOR))
    assert modulation_distance(r, silent) == pytest.approx(expected) and 10 < expected < 40
    steady = np.full((1, 200, 100), -5.0)
    slight = steady + 0.01 * np.sin(2 * np.pi * 6 * np.arange(200) / 93.75)[None, :, None]
    assert modulation_distance_db(modulation_power(steady), modulation_power(slight)) == 0
    louder = steady + 10 * (slight - steady)
    assert modulation_distance_db(modulation_power(steady), modulation_power(louder)) > 2


# -- clips ------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), channels=st.integers(1, 3))
def test_identity_is_exact(seed: int, channels: int) -> None:
    r = Clip(noise(seed, 24000, channels), 24000)
    e = Clip(r.samples.copy(), 24000)
    assert [f(r, e) for f in RATIOS] == [1, 1, 1] and [f(r, e) for f in ERRORS] == [0, 0]


@given(gain=st.floats(0.1, 10), seed=st.integers(0, 20))
def test_gain_does_not_count(gain: float, seed: int) -> None:
    r, e = Clip(noise(seed, 24000), 24000), Clip(noise(seed + 100, 24000), 24000)
    louder = e.with_samples(gain * e.samples)
    for f in RATIOS:
        assert f(r, louder) == pytest.approx(f(r, e), rel=1e-3)
    for f in ERRORS:
        assert f(r, louder) == pytest.approx(f(r, e), abs=5e-3)


def test_another_realisation_of_the_noise_is_nearly_right() -> None:
    """Distances between frames call it wrong (`logmel_l1` 0.25 Np); the docstring's figures are of these signals."""
    for seconds, distance in ((1, 1.3), (5, 0.4)):
        clips = [[Clip(noise(s + o, 24000 * seconds), 24000) for s in range(8)] for o in (0, 100)]
        found = np.mean([modulation_distance(r, e) for r, e in zip(*clips, strict=True)])
        assert found == pytest.approx(distance, abs=0.15)
        for f in RATIOS:
            assert np.mean([f(r, e) for r, e in zip(*clips, strict=True)]) == pytest.approx(1, abs=0.04)


def test_error_is_symmetric_in_decibels() -> None:
    x = noise(0, 120000)
    flutter = 1 + 0.8 * np.sin(2 * np.pi * 6 * np.arange(120000) / 24000)
    calm, lively = Clip(x, 24000), Clip(x * flutter, 24000)
    assert gv_log_error(calm, lively) == pytest.approx(10 * math.log10(gv_ratio(calm, lively)))
    assert gv_log_error(lively, calm) == pytest.approx(gv_log_error(calm, lively)) and gv_log_error(calm, lively) > 1
    assert modulation_distance(lively, calm) == pytest.approx(modulation_distance(calm, lively))


def ladder(r: Clip, axis: int) -> list[Clip]:
    return [remade(r, lambda m, w=width: smooth(m, w, axis)) for width in (1, 3, 9, 27)]  # type: ignore[misc]


def smoothed_mel_variance(clip: Clip, width: int) -> float:
    """Variance kept by STFT magnitudes averaged in time and taken to mel with no audio between."""
    from scipy.signal import stft

    z = np.abs(stft(clip.samples[0].astype(float), 24000, nperseg=1024, noverlap=768)[2])
    mel = [np.log(mel_filters() @ np.exp(smooth(np.log(z), w, 1))).T[None] for w in (1, width)]
    return temporal_variance(mel[1]) / temporal_variance(mel[0])


def test_smoothing_noise_in_time_lowers_variance_and_raises_distance() -> None:
    """Magnitudes are smoothed and the noise's phase is kept, which puts much of the texture back (docs/texture.md)."""
    r = Clip(noise(0, 72000), 24000)
    steps = ladder(r, axis=1)
    gv, dt = [gv_ratio(r, e) for e in steps], [delta_energy_ratio_time(r, e) for e in steps]
    distance = [modulation_distance(r, e) for e in steps]
    assert gv[0] == pytest.approx(1, abs=1e-3) and dt[0] == pytest.approx(1, abs=1e-3) and distance[0] < 0.01
    assert all(np.diff(gv) < -0.05) and all(np.diff(distance) > 0.3)
    assert all(np.diff(dt[:3]) < -0.05) and max(dt[2:]) < 0.65
    assert gv[-1] == pytest.approx(0.44, abs=0.03)  # the page's figures: this, and without resynthesis
    assert smoothed_mel_variance(r, 27) == pytest.approx(0.13, abs=0.02)


def test_smoothing_in_frequency_lowers_the_frequency_differences() -> None:
    n = np.arange(72000) / 24000
    r = Clip(sum(0.05 * np.sin(2 * np.pi * 300 * k * n) for k in range(1, 20)) + 0.01 * noise(0, 72000)[0], 24000)
    df = [delta_energy_ratio_freq(r, e) for e in ladder(r, axis=0)]
    assert df[0] == pytest.approx(1, abs=1e-2) and all(np.diff(df) < -0.05) and df[-1] < 0.3


def test_averaging_realisations_is_seen_in_audio() -> None:
    """Audio with the mean log magnitude of N noises: the more are averaged, the smoother."""
    from scipy.signal import stft

    r = Clip(noise(0, 72000), 24000)
    logs = [np.log(np.abs(stft(noise(s, 72000)[0], 24000, nperseg=1024, noverlap=768)[2])) for s in range(8)]
    made = [remade(r, lambda m, n=n: np.mean(logs[:n], axis=0)) for n in (1, 2, 4, 8)]  # type: ignore[misc]
    gv = [gv_ratio(r, e) for e in made]
    assert gv[0] == pytest.approx(1, abs=1e-3) and all(np.diff(gv) < -0.02) and gv[-1] < 0.6


def test_same_at_every_sample_rate() -> None:
    x = resample(Clip(noise(0, 96000), 24000), 48000)
    y = resample(Clip(noise(1, 96000), 24000), 48000)
    e = x.with_samples(x.samples + 0.5 * y.samples * np.linspace(0, 2, x.length))
    for f in (*RATIOS, *ERRORS):
        values = [f(resample(x, rate), resample(e, rate)) for rate in (24000, 44100, 48000)]
        assert values == pytest.approx([values[0]] * 3, rel=0.1, abs=0.05)


def test_channels_pool() -> None:
    """A silent channel neither breaks a ratio nor counts in it; distances average over channels."""
    a, b = noise(0), noise(1) * np.linspace(0.1, 2, 48000)
    for f in RATIOS:
        alone = f(Clip(a, 24000), Clip(b, 24000))
        assert f(Clip([a[0], 0 * a[0]], 24000), Clip([b[0], 0 * b[0]], 24000)) == pytest.approx(alone)
    both = modulation_distance(Clip([a[0], a[0]], 24000), Clip([b[0], a[0]], 24000))
    assert both == pytest.approx(modulation_distance(Clip(a, 24000), Clip(b, 24000)) / 2) and both > 0.1


def test_real_clips_smoothed(shared: Path) -> None:
    """Every measure sees over-averaging in real recordings, and none is moved by polarity."""
    seen = 0
    for path in sorted((shared / "data/esc50/audio").glob("*.ogg"))[::25]:
        r = resample(mono(read_clip(path)), 24000)
        blurred = remade(r, lambda m: smooth(m, 15, axis=1))
        assert delta_energy_ratio_time(r, blurred) < 0.8, path.name
        assert gv_ratio(r, blurred) < 1 and modulation_distance(r, blurred) > 1, path.name
        flipped = r.with_samples(-r.samples)
        assert [f(r, flipped) for f in RATIOS] == [1, 1, 1] and [f(r, flipped) for f in ERRORS] == [0, 0]
        seen += 1
    assert seen >= 4


def test_a_neural_codec_is_livelier_than_a_low_pass(shared: Path) -> None:
    """Mimi decodings of speech, made elsewhere, keep the texture that the loss of a band does not."""
    values = []
    for path in sorted((shared / "reference/codec_pairs/librispeech/mimi_1.1kbps").glob("*.*"))[:40]:
        originals = list((shared / "data").rglob(path.stem + ".flac"))
        if len(originals) != 1:
            continue
        r, e = mono(read_clip(originals[0])), mono(read_clip(path))
        e = resample(e, r.sample_rate)
        n = min(r.length, e.length)
        r, e = r.with_samples(r.samples[:, :n]), e.with_samples(e.samples[:, :n])
        low = resample(resample(r, 4000), r.sample_rate)
        values.append((gv_ratio(r, e), modulation_distance(r, e), modulation_distance(r, low)))
    if not values:
        pytest.skip("no original of the codec pairs here")
    gv, mimi, low_pass = np.mean(values, axis=0)
    assert 0.9 < gv < 1.2 and mimi < 1 < low_pass


# -- outside the domain -----------------------------------------------------------------------------------------------


def test_silence() -> None:
    r = Clip(noise(0), 24000)
    silent = r.with_samples(0 * r.samples)
    for f in (*RATIOS, *ERRORS):
        with pytest.raises(NotApplicable, match="reference is silent"):
            f(silent, r)
    assert [f(r, silent) for f in RATIOS] == [0, 0, 0]
    with pytest.raises(NotApplicable, match=r"gv_ratio 0.*infinite"):
        gv_log_error(r, silent)
    assert math.isfinite(modulation_distance(r, silent))


def test_a_reference_that_does_not_move() -> None:
    constant = Clip(np.full(24000, 0.1), 24000)
    r = Clip(noise(0, 24000), 24000)
    for f, what in ((gv_ratio, "variance in time"), (gv_log_error, "variance"), (delta_energy_ratio_time, "in time")):
        with pytest.raises(NotApplicable, match=what):
            f(constant, r)
    faint = Clip(1e-5 * noise(0, 24000), 24000)  # -120 dB FS: sound, but under the mel floor everywhere
    faint_enough = faint.with_samples(faint.samples * 2)
    with pytest.raises(NotApplicable, match="change in frequency"):
        delta_energy_ratio_freq(faint_enough, r)
    assert math.isfinite(modulation_distance(constant, r))


def test_too_short_and_unequal() -> None:
    info = registry.get("metrics", "modulation_distance")
    assert info.min_seconds == 1.0
    for rate in (8000, 16000, 24000, 44100, 48000):
        r, e = (Clip(noise(s, rate), rate) for s in (0, 1))  # exactly the declared minimum
        assert math.isfinite(modulation_distance(r, e))
    short = Clip(noise(0, 23807), 24000)
    with pytest.raises(NotApplicable, match="too short: 93 frames"):
        modulation_distance(short, short)
    assert gv_ratio(short, short) == 1
    tiny = Clip(noise(0, 1023), 24000)
    for f in (*RATIOS, *ERRORS):
        with pytest.raises(NotApplicable, match="too short"):
            f(tiny, tiny)
        with pytest.raises(ContractError):
            f(short, Clip(noise(0, 23806), 24000))
