"""The audio core: `Clip`, resampling and loudness against oracles, and files that are not what they say."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from evalkit import audio
from evalkit.audio import (
    Clip,
    Prepare,
    at_loudness,
    fit_length,
    loudness,
    mono,
    read_clip,
    resample,
    resampled_length,
    write_clip,
)
from evalkit.errors import AudioError, NotApplicable

RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000)


def examples(count: int) -> settings:
    """So many examples in one temporary folder."""
    return settings(max_examples=count, suppress_health_check=[HealthCheck.function_scoped_fixture])


def noise(seconds: float = 0.5, rate: int = 16_000, channels: int = 1, seed: int = 0) -> Clip:
    return Clip(np.random.default_rng(seed).normal(0, 0.1, (channels, round(seconds * rate))), rate, "noise", "n")


def sine(frequency: float, rate: int, seconds: float = 1.0, amplitude: float = 1.0) -> Clip:
    return Clip(amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate), rate)


# -- Clip -------------------------------------------------------------------------------------------------------------


def test_a_clip_is_float32_channels_by_samples() -> None:
    clip = Clip(np.linspace(-2, 2, 48_000), 48_000, "a", "b")
    assert clip.samples.dtype == np.float32 and clip.samples.shape == (1, 48_000)
    assert clip.samples.flags.c_contiguous
    assert (clip.channels, clip.length, clip.seconds) == (1, 48_000, 1.0)
    assert clip.samples.max() == 2.0  # beyond full scale is kept
    assert Clip(np.zeros((2, 10), order="F"), 8_000).samples.flags.c_contiguous


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(10, np.int16), 16_000, "samples are int16, not float: divide"),
        (np.zeros(10, complex), 16_000, "samples are complex128"),
        (np.array(["a"]), 16_000, "not float"),
        (np.zeros((2, 3, 4)), 16_000, r"shape \(2, 3, 4\), expected \[channels, samples\]"),
        (np.float64(1.0), 16_000, r"shape \(\)"),
        (np.zeros(0), 16_000, "empty audio"),
        (np.zeros((0, 5)), 16_000, "empty audio"),
        (np.zeros(10), 0, "sample rate 0 Hz is outside"),
        (np.zeros(10), -16_000, "sample rate -16000"),
        (np.zeros(10), 999, "sample rate 999"),
        (np.zeros(10), 1_000_000, "sample rate 1000000"),
        (np.zeros(10), float("nan"), "sample rate nan"),
        (np.array([0, np.nan, np.inf, -np.inf]), 16_000, "3 of 4 samples are NaN or infinite"),
        (np.array([0, 1e300]), 16_000, "1 of 2 samples are NaN or infinite"),  # too large for float32
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_what_is_no_audio_is_refused(samples: np.ndarray, rate: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        Clip(samples, rate)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 100))
def test_equal_audio_has_an_equal_hash_whatever_its_name(seed: int, channels: int, length: int) -> None:
    x = np.random.default_rng(seed).normal(size=(channels, length)).astype(np.float32)
    a = Clip(x, 16_000, "a", "one")
    assert a.content_hash == Clip(x.astype(np.float64), 16_000, "b", "two").content_hash
    assert a.content_hash == Clip(np.asfortranarray(x), 16_000).content_hash
    changed = x.copy()
    changed[-1, -1] = np.nextafter(changed[-1, -1], np.float32(10))
    others = [Clip(changed, 16_000), Clip(x, 16_001), Clip(np.pad(x, ((0, 0), (0, 1))), 16_000)]
    if channels > 1:
        others.append(Clip(x.reshape(1, -1), 16_000))
    assert len({a.content_hash, *(o.content_hash for o in others)}) == 1 + len(others)


def test_memo_computes_once_a_clip() -> None:
    calls: list[str] = []

    def compute() -> int:
        calls.append("called")
        return 7

    a, b = noise(), noise()
    assert [a.memo("k", compute), a.memo("k", compute), a.memo(("k", 2), compute)] == [7, 7, 7]
    assert len(calls) == 2
    b.memo("k", compute)
    assert len(calls) == 3  # not shared between clips
    louder = a.with_samples(2 * a.samples)
    assert louder.content_hash != a.content_hash  # nor handed on to a changed clip
    assert (louder.id, louder.cluster, louder.sample_rate) == ("noise", "n", 16_000)
    assert a.with_samples(a.samples, 8_000).sample_rate == 8_000


# -- channels and lengths ---------------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_the_channel_rule_is_the_mean(channels: int, length: int, seed: int) -> None:
    clip = Clip(np.random.default_rng(seed).normal(size=(channels, length)), 16_000, "id", "cluster")
    mixed = mono(clip)
    assert mixed.samples.shape == (1, length)
    assert np.allclose(mixed.samples[0], clip.samples.astype(np.float64).sum(axis=0) / channels, atol=1e-6)
    assert (mixed.id, mixed.cluster) == ("id", "cluster")


def test_opposite_channels_cancel() -> None:
    x = noise().samples[0]
    assert not mono(Clip(np.stack([x, -x]), 16_000)).samples.any()


@given(st.integers(1, 10**7), st.sampled_from(RATES), st.sampled_from(RATES))
def test_resampled_length_is_the_rounded_ratio(length: int, a: int, b: int) -> None:
    exact = length * b / a
    assert abs(resampled_length(length, a, b) - exact) <= 0.5 + 1e-6 or (
        exact < 0.5 and resampled_length(length, a, b) == 1
    )


@settings(max_examples=100)
@given(
    st.integers(1, 30_000),
    st.sampled_from(RATES),
    st.integers(1_000, 192_000) | st.sampled_from(RATES),
    st.integers(1, 2),
)
@example(1, 192_000, 8_000, 1)
@example(1, 8_000, 192_000, 2)
def test_resampling_gives_exactly_that_length(length: int, a: int, b: int, channels: int) -> None:
    clip = Clip(np.random.default_rng(length).normal(size=(channels, length)), a, "id", "cluster")
    made = resample(clip, b)
    assert made.samples.shape == (channels, resampled_length(length, a, b))
    assert (made.sample_rate, made.id, made.cluster) == (b, "id", "cluster")


def test_resampling_to_the_same_rate_is_the_clip_itself() -> None:
    clip = noise()
    assert resample(clip, 16_000) is clip


@pytest.mark.parametrize("b", [8_000, 24_000, 44_100])
def test_resampling_is_soxr(b: int) -> None:
    import soxr

    clip = noise(1.0, 16_000, channels=2)
    for channel, made in zip(clip.samples, resample(clip, b).samples, strict=True):
        expected = soxr.resample(channel, 16_000, b, quality="HQ")
        assert np.array_equal(made, fit_length(expected[None], made.size)[0])


@pytest.mark.parametrize(
    ("a", "b"), [(16_000, 24_000), (24_000, 16_000), (44_100, 48_000), (48_000, 16_000), (16_000, 8_000)]
)
def test_resampling_agrees_with_another_resampler(a: int, b: int) -> None:
    """Inside the band of both rates, and away from the ends, SciPy's polyphase filter gives the same samples."""
    from scipy.signal import resample_poly

    t = np.arange(a) / a
    top = 0.4 * min(a, b)
    tones = list(enumerate((220.0, 0.3 * top, 0.61 * top, 0.8 * top)))
    x = np.sum([0.2 * np.sin(2 * np.pi * f * t + i) for i, f in tones], axis=0)
    ours = resample(Clip(x, a), b).samples[0]
    common = np.gcd(a, b)
    theirs = resample_poly(x, b // common, a // common, window=("kaiser", 12.0), padtype="constant")
    inside = slice(b // 10, -b // 10)
    assert np.abs(ours - theirs)[inside].max() < 2e-3
    # SciPy's short filter is the weaker of the two; the closed form says what resampling should have given.
    u = np.arange(b) / b
    exact = np.sum([0.2 * np.sin(2 * np.pi * f * u + i) for i, f in tones], axis=0)
    assert np.abs(ours - exact)[inside].max() < 1e-4


@pytest.mark.parametrize("between", [24_000, 44_100, 48_000, 11_025])
def test_a_band_limited_tone_survives_there_and_back(between: int) -> None:
    clip = sine(1000, 16_000, amplitude=0.5)
    back = resample(resample(clip, between), 16_000)
    assert back.length == clip.length
    assert np.abs(back.samples - clip.samples)[:, 1000:-1000].max() < 1e-4


def test_what_is_above_the_new_band_is_gone() -> None:
    made = resample(sine(7_000, 24_000), 8_000)
    assert np.abs(made.samples[:, 500:-500]).max() < 1e-4  # no alias


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
def test_fit_length_cuts_or_pads_at_the_end(length: int, wanted: int, channels: int) -> None:
    x = np.arange(1, channels * length + 1, dtype=np.float32).reshape(channels, length)
    made = fit_length(x, wanted)
    assert made.shape == (channels, wanted)
    both = min(length, wanted)
    assert np.array_equal(made[:, :both], x[:, :both]) and not made[:, both:].any()


# -- loudness ---------------------------------------------------------------------------------------------------------


def test_a_full_scale_sine_has_the_loudness_of_the_standard() -> None:
    """BS.1770-4: a 0 dBFS, 997 Hz sine in one channel reads -3.01 LKFS; EBU Tech 3341 allows meters 0.1 LU."""
    assert loudness(sine(997, 48_000, 5.0)) == pytest.approx(-3.01, abs=0.05)
    for rate in (16_000, 24_000, 44_100):
        assert loudness(sine(997, rate, 5.0, amplitude=0.1)) == pytest.approx(-23.01, abs=0.1)


def test_the_same_tone_in_two_channels_is_3_db_louder() -> None:
    tone = sine(997, 48_000, 5.0, amplitude=0.1).samples[0]
    assert loudness(Clip(np.stack([tone, tone]), 48_000)) == pytest.approx(-20.0, abs=0.05)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (sine(997, 48_000, 0.4), "more than 0.4 s"),
        (Clip(np.full((6, 48_000), 0.1), 48_000), "1 to 5 channels"),
        (Clip(np.zeros(48_000), 48_000), "silent"),
        (sine(997, 48_000, 1.0, amplitude=1e-5), "silent"),
    ],
)
def test_where_loudness_means_nothing_it_says_so(clip: Clip, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        loudness(clip)


@given(st.floats(-50, 0))
@settings(max_examples=10)
def test_at_loudness_gets_there(target: float) -> None:
    made = at_loudness(noise(1.0, 24_000), target)
    assert loudness(made) == pytest.approx(target, abs=0.01)


# -- Prepare ----------------------------------------------------------------------------------------------------------


def test_prepare_mixes_resamples_and_cuts_in_that_order() -> None:
    clip = noise(1.0, 44_100, channels=2)
    made = Prepare(16_000, "mean", 0.5)(clip)
    assert (made.sample_rate, made.samples.shape) == (16_000, (1, 8_000))
    assert np.array_equal(made.samples, resample(mono(clip), 16_000).samples[:, :8_000])
    longer = Prepare(None, "keep", 1.5)(clip)
    assert longer.samples.shape == (2, 66_150) and not longer.samples[:, 44_100:].any()
    assert Prepare(channels="keep")(clip) is clip


def test_prepare_says_what_it_does_and_is_part_of_the_identity() -> None:
    assert Prepare().describe() == "mean of channels, native rate, whole length"
    assert Prepare(16_000, "keep", 5.0).describe() == "channels kept, 16000 Hz, cut or zero-padded to 5 s"
    kinds = [Prepare(), Prepare(16_000), Prepare(24_000), Prepare(channels="keep"), Prepare(seconds=5.0)]
    assert len({str(k.identity()) for k in kinds}) == len(kinds)
    assert Prepare().identity()["resampler"] == "soxr-HQ"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": "left"}, "channels='left'"),
        ({"seconds": -1.0}, "seconds=-1.0"),
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"sample_rate": 0}, "sample_rate=0"),
        ({"sample_rate": -8000}, "outside"),
    ],
)
def test_prepare_refuses_what_it_cannot_do(change: dict[str, Any], message: str) -> None:
    with pytest.raises(AudioError, match=message):
        Prepare(**change)


# -- reading good files -----------------------------------------------------------------------------------------------


def encode(path: Path, clip: Clip, codec: str, **muxing: str) -> None:
    """Write by FFmpeg, in blocks of 1,024 samples."""
    import av

    with av.open(str(path), "w", options=muxing) as out:
        stream: Any = out.add_stream(codec, rate=clip.sample_rate)
        stream.layout = "mono" if clip.channels == 1 else "stereo"
        stream.bit_rate = 128_000
        stream.codec_context.format = "flt" if codec == "libopus" else "fltp"
        for start in range(0, clip.length, 1024):
            block = clip.samples[:, start : start + 1024]
            if codec == "libopus":
                block = block.T.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(block), stream.codec_context.format.name, stream.layout.name
            )
            frame.sample_rate, frame.pts = clip.sample_rate, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def burst(rate: int = 48_000) -> Clip:
    """A tone burst in the middle of a second: where it lies shows any delay."""
    t = np.arange(rate) / rate
    return Clip(0.4 * np.sin(2 * np.pi * 440 * t) * np.exp(-(((t - 0.5) / 0.05) ** 2)), rate)


def test_float_wav_is_exact(tmp_path: Path) -> None:
    clip = Clip(np.random.default_rng(0).normal(0, 2, (2, 4_001)), 22_050)
    write_clip(clip, tmp_path / "a.wav")
    assert read_clip(tmp_path / "a.wav").content_hash == clip.content_hash
    assert read_clip(str(tmp_path / "a.wav")).id == "a.wav"
    named = read_clip(tmp_path / "a.wav", id="other", cluster="speaker")
    assert (named.id, named.cluster) == ("other", "speaker")


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [("wav", 0), ("flac", 2**-15), ("aiff", 2**-15), ("ogg", 0.02), ("mp3", 0.02)]
)
def test_what_soundfile_writes_is_read_aligned(tmp_path: Path, suffix: str, tolerance: float) -> None:
    clip = burst()
    write_clip(clip, tmp_path / f"a.{suffix}")
    read = read_clip(tmp_path / f"a.{suffix}")
    assert (read.sample_rate, read.length) == (48_000, 48_000)
    assert np.abs(read.samples - clip.samples).max() <= tolerance
    assert delay(clip, read) == 0


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.m4a", "aac"), ("a.opus", "libopus"), ("a.mp3", "libmp3lame"), ("a.mka", "aac"), ("a.webm", "libopus")],
)
def test_what_ffmpeg_writes_is_read_aligned(tmp_path: Path, name: str, codec: str) -> None:
    clip = burst()
    encode(tmp_path / name, clip, codec)
    read = read_clip(tmp_path / name)
    assert read.sample_rate == 48_000
    assert 0 <= read.length - 48_000 <= 1_024  # a block of padding at the end at most, never less
    assert np.abs(read.samples[:, :48_000] - clip.samples).max() < (0.025 if codec == "libmp3lame" else 0.01)
    assert delay(clip, read) == 0


def delay(clip: Clip, other: Clip) -> int:
    from scipy.signal import correlate

    return int(correlate(other.samples[0], clip.samples[0]).argmax()) - clip.length + 1


def test_raw_aac_is_read(tmp_path: Path) -> None:
    """ADTS has no place for its delay: one frame of 1,024 samples comes first."""
    clip = burst()
    encode(tmp_path / "a.aac", clip, "aac")
    read = read_clip(tmp_path / "a.aac")
    assert np.abs(read.samples[:, 1_024:49_024] - clip.samples).max() < 0.01


@pytest.mark.parametrize(
    "name", [b"caf\xe9.wav", b"a.raw", b"a.XI", b"no suffix", b"-n.wav", b"a\nb.wav", b"%d.wav", b"concat:a.wav"]
)
def test_any_file_name_is_read_by_content(tmp_path: Path, name: bytes) -> None:
    clip = noise()
    write_clip(clip, tmp_path / "good.wav")
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    path.write_bytes((tmp_path / "good.wav").read_bytes())
    assert read_clip(path).content_hash == clip.content_hash
    encode(tmp_path / "good.m4a", clip, "aac")
    path.write_bytes((tmp_path / "good.m4a").read_bytes())
    assert read_clip(path).length >= clip.length


def test_a_relative_name_that_looks_like_an_address_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "a.m4a", noise(), "aac")
    for name in ("concat:a.m4a", "-i", "file:a.m4a"):
        (tmp_path / name).write_bytes((tmp_path / "a.m4a").read_bytes())
        assert read_clip(name).seconds >= 0.5
    (tmp_path / "a.m4a").unlink()
    assert read_clip("concat:a.m4a").seconds >= 0.5


def test_many_channels_and_high_rates_are_read(tmp_path: Path) -> None:
    for rate, channels in ((192_000, 1), (16_000, 8), (1_000, 1)):
        clip = noise(0.5, rate, channels)
        write_clip(clip, tmp_path / "a.wav")
        assert read_clip(tmp_path / "a.wav").content_hash == clip.content_hash


@examples(50)
@given(first=st.integers(0, 7_000), count=st.integers(800, 1_000), suffix=st.sampled_from(["wav", "flac"]))
def test_excerpts_are_the_same_samples(tmp_path: Path, first: int, count: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if not path.exists():
        write_clip(noise(0.5, 16_000, 2), path)
    whole = read_clip(path).samples
    assert np.array_equal(
        read_clip(path, start=first / 16_000, seconds=count / 16_000).samples, whole[:, first : first + count]
    )
    assert np.array_equal(read_clip(path, start=first / 16_000).samples, whole[:, first:])


def test_excerpts_of_what_ffmpeg_reads(tmp_path: Path) -> None:
    encode(tmp_path / "a.m4a", burst(), "aac")
    whole = read_clip(tmp_path / "a.m4a").samples
    assert np.array_equal(read_clip(tmp_path / "a.m4a", start=0.25, seconds=0.5).samples, whole[:, 12_000:36_000])


@pytest.mark.parametrize(
    ("excerpt", "message"),
    [
        ({"start": 0.5}, "starts at 0.5 s but the file ends at 0.500 s"),
        ({"start": -0.1}, "starts at -0.1 s"),
        ({"start": 0.4, "seconds": 0.2}, r"excerpt 0.4..0.600 s reaches beyond the end at 0.500 s"),
        ({"seconds": -1.0}, "seconds=-1"),
        ({"seconds": 0.0}, "seconds=0"),
        ({"start": float("nan")}, "start=nan"),
        ({"seconds": float("inf")}, "seconds=inf"),
        ({"seconds": 0.04}, "too short: 640 samples"),
    ],
)
def test_excerpts_outside_the_file_are_errors(tmp_path: Path, excerpt: dict[str, Any], message: str) -> None:
    for suffix in ("wav", "m4a"):
        path = tmp_path / f"a.{suffix}"
        if suffix == "wav":
            write_clip(noise(), path)
        elif "0.5" in message:
            continue  # the padding at the end of AAC moves the limits
        else:
            encode(path, noise(), "aac")
        with pytest.raises(AudioError, match=message):
            read_clip(path, **excerpt)


def test_one_sample_of_rounding_is_allowed(tmp_path: Path) -> None:
    write_clip(noise(0.5, 16_000), tmp_path / "a.wav")
    assert read_clip(tmp_path / "a.wav", start=0.25, seconds=4_001 / 16_000).length == 4_000
    with pytest.raises(AudioError, match="reaches beyond the end"):
        read_clip(tmp_path / "a.wav", start=0.25, seconds=4_002 / 16_000)


# -- reading bad files ------------------------------------------------------------------------------------------------


def wav_header(data_bytes: int, rate: int = 16_000, channels: int = 1, kind: int = 1, bits: int = 16) -> bytes:
    block = channels * bits // 8
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        (data_bytes + 36) & 0xFFFFFFFF,
        b"WAVE",
        b"fmt ",
        16,
        kind,
        channels,
        rate,
        rate * block & 0xFFFFFFFF,
        block & 0xFFFF,
        bits,
        b"data",
        data_bytes,
    )


def float_wav(samples: np.ndarray) -> bytes:
    data = samples.astype("<f4").tobytes()
    return wav_header(len(data), kind=3, bits=32) + data


PCM = b"\1\0" * 8_000

BAD_FILES = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "text": (b"This is no audio.\n" * 100, "not readable as audio"),
    "one byte": (b"\0", "not readable as audio"),
    "html": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20, "not readable as audio"),
    "a subtitle": (b"1\n00:00:00,000 --> 00:00:01,000\nHello\n", "not audio|not readable as audio"),
    "one sample": (wav_header(2) + b"\0\1", "too short: 1 samples at 16000 Hz, at least 0.05 s is needed"),
    "header alone": (wav_header(32_000), "no audio data: the header promises 32,000 bytes, the file holds 0"),
    "4 GB on 44 bytes": (wav_header(4_000_000_000), "no audio data: the header promises 4,000,000,000 bytes"),
    "4 GB on 100 bytes": (
        wav_header(4_000_000_000) + PCM[:56],
        "promises 4,000,000,000 bytes of audio, the file holds 56",
    ),
    "never finished": (wav_header(0) + PCM, "no audio data: the header promises 0 bytes, the file holds 16,000"),
    "half": (wav_header(32_000) + PCM, "truncated: the header promises 32,000 bytes of audio, the file holds 16,000"),
    "one byte short": (wav_header(16_001, bits=8) + PCM, "promises 16,001 bytes of audio, the file holds 16,000"),
    "no data chunk": (wav_header(16_000)[:36], "truncated or damaged: no data chunk"),
    "half a header": (wav_header(16_000)[:20], "truncated or damaged: no data chunk|not readable"),
    "2 GHz": (wav_header(16_000, rate=2_000_000_000) + PCM, "absurd header: sample rate 2000000000 Hz"),
    "0 Hz": (wav_header(16_000, rate=0) + PCM, "absurd header: sample rate 0 Hz|not readable"),
    "999 Hz": (wav_header(16_000, rate=999) + PCM, "absurd header: sample rate 999 Hz"),
    "30,000 channels": (wav_header(60_000, channels=30_000) + PCM * 4, "absurd header|not readable"),
    "65 channels": (wav_header(16_250, channels=65) + b"\0\0" * 8_125, "absurd header: 65 channels"),
    "0 channels": (wav_header(16_000, channels=0) + PCM, "absurd header|not readable"),
    "unknown coding": (wav_header(16_000, kind=0x7777) + PCM, "not readable as audio|no decoder"),
    "nan": (float_wav(np.r_[np.zeros(8_000), np.nan]), "1 of 8001 samples are NaN or infinite"),
    "infinite": (float_wav(np.r_[np.zeros(8_000), np.inf, -np.inf]), "2 of 8002 samples are NaN or infinite"),
    "Ogg magic alone": (b"OggS", "truncated or damaged: no Ogg page found"),
    "Ogg without pages": (b"OggS" + b"\xaa" * 4_000, "truncated or damaged: no Ogg page found"),
    "flac magic alone": (b"fLaC" + b"\0" * 100, "not readable as audio"),
}


@pytest.mark.parametrize("what", BAD_FILES)
@pytest.mark.parametrize("suffix", ["wav", "ogg"])
def test_a_bad_file_is_one_error_that_names_it_and_the_cause(tmp_path: Path, what: str, suffix: str) -> None:
    content, message = BAD_FILES[what]
    path = tmp_path / f"{what}.{suffix}"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as caught:
        read_clip(path)
    assert str(caught.value).startswith(f"{str(path)!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"cannot be opened \(No such file or directory\)"),
        (lambda p: p.mkdir(), "is a directory, not an audio file"),
        (lambda p: p.symlink_to("nowhere"), r"cannot be opened \(No such file or directory\)"),
        (lambda p: p.symlink_to(p.name), r"cannot be opened \(Too many levels of symbolic links\)"),
        (os.mkfifo, "is not a regular file"),
    ],
)
def test_what_is_not_a_file_is_named(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "a.wav"
    make(path)
    with pytest.raises(AudioError, match=message) as caught:
        read_clip(path)
    assert str(caught.value).startswith(f"{str(path)!r}: ")


def test_a_video_without_sound_is_named(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream: Any = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for _ in range(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        out.mux(stream.encode(None))
    with pytest.raises(AudioError, match=r"a.mp4': not audio .*FFmpeg finds no audio stream"):
        read_clip(tmp_path / "a.mp4")


def test_a_header_that_asks_for_too_much_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile

    def too_much(*_: Any, **__: Any) -> Any:
        raise MemoryError

    write_clip(noise(), tmp_path / "a.wav")
    monkeypatch.setattr(soundfile.SoundFile, "read", too_much)
    with pytest.raises(AudioError, match="promises more audio than fits in memory"):
        read_clip(tmp_path / "a.wav")


def test_a_wav_length_that_means_until_the_end(tmp_path: Path) -> None:
    """Streaming writers leave 0xFFFFFFFF as the length."""
    (tmp_path / "a.wav").write_bytes(wav_header(0xFFFFFFFF) + PCM)
    assert read_clip(tmp_path / "a.wav").length == 8_000


def test_chunks_before_and_after_the_data_are_passed_over(tmp_path: Path) -> None:
    head, odd = wav_header(16_000), b"LIST" + struct.pack("<I", 5) + b"hello\0"
    (tmp_path / "a.wav").write_bytes(head[:36] + odd + head[36:] + PCM + odd)
    assert read_clip(tmp_path / "a.wav").length == 8_000
    (tmp_path / "a.wav").write_bytes(head[:36] + odd + head[36:] + PCM[:-100])
    with pytest.raises(AudioError, match="truncated"):
        read_clip(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", ["RF64", "RIFX"])
def test_other_kinds_of_wav(tmp_path: Path, kind: str) -> None:
    import soundfile

    clip = noise()
    path = tmp_path / "a.wav"
    if kind == "RF64":
        soundfile.write(str(path), clip.samples.T, 16_000, format="RF64", subtype="FLOAT")
    else:
        soundfile.write(str(path), clip.samples.T, 16_000, format="WAV", subtype="FLOAT", endian="BIG")
    content = path.read_bytes()
    assert content[:4] == kind.encode()
    assert read_clip(path).content_hash == clip.content_hash
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match="truncated"):
        read_clip(path)


def _whole(tmp_path: Path, name: str) -> tuple[bytes, int]:
    """The bytes of a good file of about half a second, and its samples."""
    path = tmp_path / f"whole {name}"
    if not path.exists():
        clip = noise(0.5, 44_100)
        if name.endswith("m4a"):
            encode(path, clip, "aac", **({"movflags": "+faststart"} if "fast" in name else {}))
        elif name.endswith("opus"):
            encode(path, resample(clip, 48_000), "libopus")
        elif name == "ffmpeg.mp3":
            encode(path, clip, "libmp3lame")
        elif name == "16 bit.wav":
            import soundfile

            soundfile.write(str(path), clip.samples.T, 44_100, subtype="PCM_16")
        else:
            write_clip(clip, path)
    return path.read_bytes(), read_clip(path).length


@pytest.mark.parametrize(
    "name", ["a.wav", "16 bit.wav", "a.ogg", "a.opus", "a.flac", "a.aiff", "a.mp3", "ffmpeg.mp3", "a.m4a", "fast a.m4a"]
)
@examples(60)
@given(st.data())
def test_a_truncated_file_is_never_a_shorter_clip(tmp_path: Path, name: str, data: st.DataObject) -> None:
    content, length = _whole(tmp_path, name)
    at = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path / name
    path.write_bytes(content[:at])
    try:
        read = read_clip(path)
    except AudioError as error:
        assert str(error).startswith(f"{str(path)!r}: ")
    else:  # a few bytes of metadata at the end may be missing, but no audio
        assert name.endswith("m4a") and read.length == length


@pytest.mark.parametrize("name", ["a.ogg", "a.opus"])
def test_ogg_cut_at_a_page_says_so(tmp_path: Path, name: str) -> None:
    """Decoders take a stream that ends with a whole page for complete; only its end-of-stream flag tells."""
    content, _ = _whole(tmp_path, name)
    path = tmp_path / name
    last = content.rindex(b"OggS")
    path.write_bytes(content[:last])
    with pytest.raises(AudioError, match="truncated: the last Ogg page lacks the end-of-stream flag"):
        read_clip(path)
    path.write_bytes(content[:-1])
    with pytest.raises(AudioError, match="truncated: the last Ogg page is cut off"):
        read_clip(path)
    path.write_bytes(content[: last + 26])
    with pytest.raises(AudioError, match="truncated"):
        read_clip(path)


@examples(150)
@given(
    st.sampled_from(
        [
            b"",
            b"RIFF\xff\xff\xff\xffWAVE",
            wav_header(2_000),
            b"OggS\0\2",
            b"fLaC\0\0\0\x22",
            b"ID3\4\0\0\0\0\0\0",
            b"\xff\xfb\x90\xc4",
            b"\xff\xf1\x50\x80",
            b"FORM\0\0\0\0AIFF",
            b"\0\0\0\x20ftypM4A ",
            b".snd\0\0\0\x18",
            b"\x1a\x45\xdf\xa3",
            b"caff\0\1\0\0",
            b"RF64\xff\xff\xff\xffWAVEds64",
            b"#!AMR\n",
            b"riff",
        ]
    ),
    st.binary(max_size=3_000),
    st.sampled_from(["wav", "ogg", "mp3", "flac", "m4a", "raw", "aiff", "opus", "txt", "srt"]),
)
def test_random_bytes_are_an_audio_error_or_audio(tmp_path: Path, magic: bytes, rest: bytes, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(magic + rest)
    try:
        clip = read_clip(path)
    except AudioError as error:
        assert str(error).startswith(f"{str(path)!r}: ")
    else:
        assert np.isfinite(clip.samples).all() and clip.seconds >= audio.MIN_SECONDS


@examples(100)
@given(
    st.sampled_from(["a.wav", "a.ogg", "a.flac", "ffmpeg.mp3", "fast a.m4a", "a.opus", "a.aiff"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=30),
)
def test_flipped_bytes_are_an_audio_error_or_audio(tmp_path: Path, name: str, changes: list[tuple[float, int]]) -> None:
    content = bytearray(_whole(tmp_path, name)[0])
    for where, value in changes:
        content[int(where**3 * len(content))] = value  # mostly in the headers
    path = tmp_path / name
    path.write_bytes(content)
    try:
        clip = read_clip(path)
    except AudioError as error:
        assert str(error).startswith(f"{str(path)!r}: ")
    else:
        assert np.isfinite(clip.samples).all() and clip.seconds >= audio.MIN_SECONDS


# -- real files -------------------------------------------------------------------------------------------------------


def test_the_real_ogg_clips_of_esc10(shared: Path) -> None:
    """All 400 pass the check of their last page, and not all are 5 s, so nobody may assume it."""
    import soundfile

    paths = sorted((shared / "data" / "esc50" / "audio").glob("*.ogg"))
    assert len(paths) == 400
    for path in paths:
        audio._check_file(path)
    lengths = [soundfile.info(str(p)).frames for p in paths]
    assert (min(lengths), max(lengths)) == (160_704, 319_296)  # 3.6 s and 7.2 s
    assert 220_500 not in lengths
    shortest = paths[int(np.argmin(lengths))]
    for path in [shortest, *paths[::40]]:
        clip = read_clip(path)
        assert clip.sample_rate == 44_100 and 3.6 < clip.seconds < 7.3
        assert clip.length == soundfile.info(str(path)).frames


def test_the_real_mp3_pairs(shared: Path) -> None:
    folder = shared / "reference" / "codec_pairs" / "daps"
    original, *_ = sorted((folder / "gt").rglob("*.mp3"))
    clip = read_clip(original)
    decoded = [read_clip(p) for p in sorted(folder.rglob(original.name)) if p != original]
    assert len(decoded) >= 4
    for other in decoded:
        assert other.sample_rate == clip.sample_rate
        assert abs(other.length - clip.length) < 0.1 * clip.sample_rate


@pytest.mark.parametrize(
    "folder", ["data/vctk", "data/librispeech", "data/fma", "data/music", "data/clotho", "data/fsdd"]
)
def test_real_files_of_every_kind_are_read_whole(shared: Path, folder: str) -> None:
    import soundfile

    paths = sorted(p for p in (shared / folder).rglob("*") if p.suffix in (".wav", ".flac", ".mp3", ".ogg"))
    for path in paths[:: max(1, len(paths) // 2)]:
        clip = read_clip(path, seconds=min(2.0, soundfile.info(str(path)).duration))
        assert clip.seconds > 0.1 and np.abs(clip.samples).max() > 0
        audio._check_file(path)


def test_a_real_ogg_cut_anywhere_is_flagged(shared: Path, tmp_path: Path) -> None:
    content = (shared / "data" / "esc50" / "audio" / "1-100032-A-0.ogg").read_bytes()
    for at in np.random.default_rng(0).integers(1, len(content), 60):
        (tmp_path / "cut.ogg").write_bytes(content[:at])
        with pytest.raises(AudioError):
            read_clip(tmp_path / "cut.ogg")
