"""Ladders of degradations: exact severities, nested losses, kept shapes, determinism, odd clips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.audio import Clip
from evalkit.degradations import LADDERS
from evalkit.errors import NotApplicable

NAMES = list(LADDERS)


def clip(seconds: float = 1.0, rate: int = 16_000, channels: int = 1, seed: int = 0) -> Clip:
    x = np.random.default_rng(seed).standard_normal((channels, round(seconds * rate)))
    return Clip(0.1 * np.cumsum(x, axis=1) / np.sqrt(np.arange(1, x.shape[1] + 1)), rate, "c")


def power(x: np.ndarray) -> float:
    return float(np.mean(np.square(x, dtype=np.float64)))


def tone(hz: float, rate: int = 24_000) -> Clip:
    return Clip(0.5 * np.sin(2 * np.pi * hz * np.arange(2 * rate) / rate), rate)


def test_there_are_the_ladders_that_are_promised() -> None:
    wanted = "noise lowpass delay gain clipping bit_depth packet_loss pitch codec_rate polarity"
    assert wanted.split() == NAMES
    assert all(x.name == n and len(x.levels) == len(set(x.levels)) for n, x in LADDERS.items())
    assert [x.text(x.levels[-1]) for x in LADDERS.values()][:5] == ["0 dB", "1000 Hz", "50 ms", "-20 dB", "0.1 of peak"]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("level", LADDERS["noise"].levels)
def test_noise_has_the_snr_that_it_says(level: float, channels: int) -> None:
    c = clip(channels=channels)
    d = LADDERS["noise"].apply(c, level, 3)
    error = d.samples.astype(np.float64) - c.samples
    assert 10 * np.log10(power(c.samples) / power(error)) == pytest.approx(level, abs=1e-3)


def test_levels_of_one_seed_share_their_noise() -> None:
    c = clip()
    mild, severe = (LADDERS["noise"].apply(c, level, 0).samples - c.samples for level in (20, 0))
    assert np.allclose(10 * mild, severe, atol=1e-5)


def test_lowpass_keeps_what_is_below_and_nothing_above() -> None:
    for hz, kept in ((500, 1.0), (850, 1.0), (1_100, 0.0), (5_000, 0.0)):
        c = tone(hz)
        d = LADDERS["lowpass"].apply(c, 1_000, 0).samples[:, 4_000:-4_000]
        assert power(d) / power(c.samples[:, 4_000:-4_000]) == pytest.approx(kept, abs=0.02), hz
    with pytest.raises(NotApplicable, match=r"8000 Hz is not below half the sample rate \(8000 Hz\)"):
        LADDERS["lowpass"].apply(clip(rate=16_000), 8_000, 0)


def test_delay_is_in_whole_samples() -> None:
    c = clip()
    assert [round(v * 16) for v in LADDERS["delay"].levels] == [1, 8, 40, 160, 800]
    for level, n in zip(LADDERS["delay"].levels, (1, 8, 40, 160, 800), strict=True):
        d = LADDERS["delay"].apply(c, level, 0).samples
        assert not d[:, :n].any() and np.array_equal(d[:, n:], c.samples[:, :-n])


def test_gain_clipping_bits_and_polarity_by_definition() -> None:
    c = clip()
    peak = np.abs(c.samples).max()
    assert np.allclose(LADDERS["gain"].apply(c, -20, 0).samples, c.samples / 10, atol=1e-7)
    assert np.abs(LADDERS["clipping"].apply(c, 0.3, 0).samples).max() == pytest.approx(0.3 * peak)
    two = LADDERS["bit_depth"].apply(c, 2, 0).samples
    assert len(np.unique(two)) <= 5 and np.allclose(np.unique(two / (peak / 2)) % 1, 0)
    assert np.array_equal(LADDERS["polarity"].apply(c, -1, 0).samples, -c.samples)


def test_quantisation_noise_falls_by_six_db_a_bit() -> None:
    c = clip()
    error = [power(LADDERS["bit_depth"].apply(c, b, 0).samples - c.samples) for b in (12, 10, 8, 6)]
    assert np.allclose(10 * np.log10(np.divide(error[1:], error[:-1])), 12.04, atol=0.3)


def test_lost_packets_are_nested_and_as_many_as_said() -> None:
    c = clip(4.0)
    before: set[int] = set()
    for level in LADDERS["packet_loss"].levels:
        d = LADDERS["packet_loss"].apply(c, level, 5).samples.reshape(-1, 320)
        lost = {i for i, packet in enumerate(d) if not packet.any()}
        kept = [i for i in range(len(d)) if i not in lost]
        assert np.array_equal(d[kept], c.samples.reshape(-1, 320)[kept])
        assert len(lost) == max(1, round(len(d) * level / 100)) and before <= lost
        before = lost


@pytest.mark.parametrize("hz", [110, 440, 3_000])
@pytest.mark.parametrize("cents", LADDERS["pitch"].levels)
def test_pitch_moves_a_tone_by_as_many_cents_and_keeps_its_level(hz: float, cents: float) -> None:
    c = tone(hz)
    d = LADDERS["pitch"].apply(c, cents, 0).samples[0, 5_000:-5_000]
    spectrum = np.abs(np.fft.rfft(d * np.hanning(len(d)), 2**20))
    found = np.argmax(spectrum) * c.sample_rate / 2**20
    assert 1200 * np.log2(found / hz) == pytest.approx(cents, abs=1.0)
    assert power(d) == pytest.approx(0.125, rel=0.01)


def test_pitch_keeps_the_timing() -> None:
    x = np.zeros(24_000)
    onsets = [4_000, 12_000, 20_000]
    for at in onsets:
        x[at : at + 1_200] = np.random.default_rng(at).standard_normal(1_200)
    d = LADDERS["pitch"].apply(Clip(x, 24_000), 400, 0).samples[0]
    loud = np.flatnonzero(np.abs(d) > 0.5)
    starts = loud[np.flatnonzero(np.diff(loud, prepend=-10_000) > 3_000)]
    assert len(starts) == 3 and np.abs(starts - onsets).max() <= 0.03 * 24_000


def test_pitch_at_zero_cents_is_a_copy() -> None:
    c = clip(channels=2)
    assert np.allclose(LADDERS["pitch"].apply(c, 0, 0).samples, c.samples, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_level_is_the_same_for_the_same_seed_and_the_clip_is_not_touched(name: str) -> None:
    c = clip(0.5, rate=48_000)
    before = c.samples.copy()
    for level in LADDERS[name].levels:
        one, again = (LADDERS[name].apply(c, level, 7) for _ in range(2))
        assert one.content_hash == again.content_hash and (one.id, one.cluster) == (c.id, c.cluster)
        assert one.content_hash != c.content_hash
    assert np.array_equal(c.samples, before)
    random = name in ("noise", "packet_loss")
    other = LADDERS[name].apply(c, LADDERS[name].levels[-1], 8)
    assert (other.content_hash != LADDERS[name].apply(c, LADDERS[name].levels[-1], 7).content_hash) == random


@settings(max_examples=25)
@given(
    samples=st.integers(1, 900),
    channels=st.integers(1, 3),
    rate=st.sampled_from([8_000, 16_000, 44_100]),
    loud=st.booleans(),
)
def test_short_silent_and_many_channelled_clips(samples: int, channels: int, rate: int, loud: bool) -> None:
    x = np.random.default_rng(samples).uniform(-1, 1, (channels, samples)) * loud
    c = Clip(x, rate)
    for ladder in LADDERS.values():
        for level in (ladder.levels[0], ladder.levels[-1]):
            if ladder.name == "lowpass" and level >= rate / 2:
                continue
            d = ladder.apply(c, level, 0)
            assert d.samples.shape == c.samples.shape and d.sample_rate == rate
            assert loud or np.abs(d.samples).max() < 1e-4, ladder.name


def test_opus_that_is_not_there_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    monkeypatch.setattr(av, "codecs_available", {"flac"})
    with pytest.raises(NotApplicable, match="no libopus"):
        LADDERS["codec_rate"].apply(clip(), 16, 0)
