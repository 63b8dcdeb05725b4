"""Systems against theory, other decoders and real audio."""

from __future__ import annotations

import io
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evalkit.audio import Clip, mono, read_clip, resample, write_clip
from evalkit.errors import DataError, NotApplicable, Unavailable, UsageError
from evalkit.registry import names
from evalkit.systems import mdct
from evalkit.systems.ffmpeg import MP3_RATES
from evalkit.systems.load import load_system
from evalkit.tokens import Tokens


def system(spec: str):
    return load_system(spec).system


def roundtrip(spec: str, clip: Clip, seed: int = 0) -> tuple[Clip, Tokens]:
    built = system(spec)
    tokens = built.encode(clip)
    return built.decode(tokens, seed), tokens


def sine(rate: int = 48_000, seconds: float = 1.0, frequency: float = 997.0, amplitude: float = 1.0) -> Clip:
    t = np.arange(round(rate * seconds)) / rate
    return Clip(amplitude * np.sin(2 * np.pi * frequency * t), rate, "sine")


def white(samples: int, rate: int = 48_000, channels: int = 1, seed: int = 0) -> Clip:
    return Clip(0.1 * np.random.default_rng(seed).standard_normal((channels, samples)), rate, "white")


def snr(reference: Clip, estimate: Clip) -> float:
    x, y = reference.samples.astype(float), estimate.samples.astype(float)
    return float(10 * np.log10(np.sum(x**2) / np.sum((x - y) ** 2)))


def delay(reference: np.ndarray, estimate: np.ndarray) -> int:
    """Samples by which the estimate is late, at the largest magnitude of the cross-correlation."""
    size = 1 << (2 * len(reference) - 1).bit_length()
    c = np.fft.irfft(np.fft.rfft(estimate, size) * np.conj(np.fft.rfft(reference, size)))
    at = int(np.argmax(np.abs(c)))
    return at if at < size // 2 else at - size


@pytest.fixture(scope="module")
def speech(shared: Path) -> Clip:
    path = sorted((shared / "data/librispeech/test-clean").rglob("*.flac"))[0]
    return read_clip(path, seconds=4.0)


@pytest.fixture(scope="module")
def dog(shared: Path) -> Clip:
    return mono(read_clip(sorted((shared / "data/esc50/audio").glob("*.ogg"))[0]))


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "full"),
    [
        ("opus:6", "opus:6@application=audio@complexity=10@frame_ms=20@vbr=off"),
        ("opus:6.5@vbr=on", "opus:6.5@application=audio@complexity=10@frame_ms=20@vbr=on"),
        ("mp3:8", "mp3:8@sample_rate=8000@quality=2"),
        ("mp3:128", "mp3:128@sample_rate=44100@quality=2"),
        ("mdct:6", "mdct:6@frame_ms=20"),
        ("noise", "noise:64"),
        ("pcm:8", "pcm:8"),
    ],
)
def test_the_full_name_shows_every_default(spec: str, full: str) -> None:
    assert load_system(spec).name == full
    assert load_system(full).name == full


@pytest.mark.parametrize(
    "spec",
    [
        "pcm:0",
        "pcm:25",
        "pcm",
        "pcm:eight",
        "resample:10",
        "mdct:0",
        "mdct:6@frame_ms=0",
        "opus:0.1",
        "opus:6@vbr=maybe",
        "opus:6@frame_ms=7",
        "opus:6@complexity=11",
        "mp3:9",
        "mp3:8@sample_rate=44100",
        "mp3:8@sample_rate=9000",
        "mp3:8@quality=10",
        "noise:0",
        "codec2:701",
        "files:does/not/exist",
        "identity:3",
        "nosuch",
    ],
)
def test_bad_specs_are_usage_errors_that_name_themselves(spec: str) -> None:
    with pytest.raises(UsageError, match=spec.split(":")[0]):
        load_system(spec)


def test_a_class_in_a_file_is_a_system(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "class Codec:\n"
        "    '''Half as loud.\n\n    More.'''\n"
        "    domains = ('music',)\n"
        "    def __init__(self, gain: float = 0.5): self.gain = gain\n"
        "    def reconstruct(self, clip, seed): return clip.with_samples(clip.samples * self.gain)\n"
        "value = 3\n"
    )
    loaded = load_system(f"{path}:Codec")
    assert loaded.name == f"{path}:Codec:0.5"
    assert (loaded.info.summary, loaded.info.domains, loaded.info.role) == ("Half as loud", ("music",), "codec")
    clip = sine()
    assert np.array_equal(load_system(f"{path}:Codec:0.25").system.reconstruct(clip, 0).samples, clip.samples / 4)
    with pytest.raises(UsageError, match="has no 'Other'; it defines Codec"):
        load_system(f"{path}:Other")
    with pytest.raises(UsageError, match="is a int"):
        load_system(f"{path}:value")
    with pytest.raises(UsageError, match="no such file"):
        load_system(f"{tmp_path}/absent.py:Codec")


# -- controls ---------------------------------------------------------------------------------------------------------


def test_identity_and_silence() -> None:
    clip = white(1001, channels=2)
    same = system("identity").reconstruct(clip, 0)
    assert np.array_equal(same.samples, clip.samples) and not np.shares_memory(same.samples, clip.samples)
    assert snr(clip, system("silence").reconstruct(clip, 0)) == 0.0


@pytest.mark.parametrize("which", ["speech", "dog"])
def test_noise_has_the_clips_spectrum_and_power_and_no_envelope(which: str, request: pytest.FixtureRequest) -> None:
    import scipy.signal

    clip: Clip = request.getfixturevalue(which)
    made = system("noise").reconstruct(clip, 3)
    assert np.isclose(np.mean(made.samples**2), np.mean(clip.samples**2), rtol=1e-4)
    _, a = scipy.signal.welch(clip.samples[0], clip.sample_rate, nperseg=1024, detrend=False)
    _, b = scipy.signal.welch(made.samples[0], clip.sample_rate, nperseg=1024, detrend=False)
    bands = np.array_split(np.arange(2, 500), 30)
    a_db, b_db = (10 * np.log10([p[i].mean() for i in bands]) for p in (a, b))
    loud = a_db > a_db.max() - 60
    assert np.abs(a_db - b_db)[loud].max() < 2.0
    # The clip's level moves; the noise's does not.
    block = clip.sample_rate // 10
    level = [
        np.sqrt(np.mean(x[: len(x) // block * block].reshape(-1, block) ** 2, axis=1))
        for x in (clip.samples[0], made.samples[0])
    ]
    assert np.std(level[1]) / np.mean(level[1]) < 0.5 * np.std(level[0]) / np.mean(level[0])


def test_noise_is_seeded_and_silent_where_the_clip_is() -> None:
    clip = Clip(np.stack([np.zeros(3001), white(3001).samples[0]]), 16_000)
    noise = system("noise")
    first = noise.reconstruct(clip, 1).samples
    assert np.array_equal(first, noise.reconstruct(clip, 1).samples)
    assert not np.array_equal(first, noise.reconstruct(clip, 2).samples)
    assert not first[0].any() and first[1].any()


def test_resample_removes_what_is_above_and_keeps_what_is_below() -> None:
    low, high = sine(44_100, frequency=1000), sine(44_100, frequency=6000)
    made = system("resample:8000").reconstruct(low, 0)
    inner = slice(4000, -4000)
    assert made.length == low.length
    assert np.abs(made.samples[:, inner] - low.samples[:, inner]).max() < 1e-3
    assert np.abs(system("resample:8000").reconstruct(high, 0).samples[:, inner]).max() < 1e-3
    assert np.array_equal(system("resample:48000").reconstruct(low, 0).samples, low.samples)


# -- PCM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 17))
def test_pcm_reaches_the_theoretical_snr_of_a_full_scale_sine(bits: int) -> None:
    clip = sine(seconds=2.0)
    made, tokens = roundtrip(f"pcm:{bits}", clip)
    assert abs(snr(clip, made) - (6.0206 * bits + 1.7609)) < 0.25
    assert tokens.sizes == (2**bits,) and tokens.nominal_kbps == pytest.approx(bits * 48.0)
    assert tokens.code_bits == bits * clip.length


def test_pcm_codes_and_clipping() -> None:
    clip = Clip(np.array([-2.0, -1.0, -0.5, -1e-6, 0.0, 0.49, 0.5, 1.0, 2.0]), 8_000)
    made, tokens = roundtrip("pcm:2", clip)
    assert tokens.codes.tolist() == [[0, 0, 1, 1, 2, 2, 2, 3, 3]]
    assert np.allclose(made.samples[0] * 7, [-6, -6, -2, -2, 2, 2, 2, 6, 6])  # steps of 4/7
    assert roundtrip("pcm:4", white(100, channels=3))[1].sizes == (16, 16, 16)


def test_mulaw_known_values_and_oracle() -> None:
    clip = Clip(np.array([-1.5, -1.0, 0.0, 1.0, 1.5]), 8_000)
    made, tokens = roundtrip("mulaw", clip)
    assert tokens.codes.tolist() == [[0, 0, 128, 255, 255]]
    assert made.samples[0, [1, 3]].tolist() == [-1.0, 1.0]
    x = white(5000).samples[0].astype(float)
    y = np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256)  # the formula as printed, without log1p
    made, tokens = roundtrip("mulaw", Clip(x, 8_000))
    assert np.abs((tokens.codes[0] / 255 * 2 - 1) - y).max() <= 1 / 255 + 1e-7
    # Companding: the error stays in proportion to the sample, and the SNR of a sine hardly depends on its level.
    levels = [snr(c := sine(amplitude=a), roundtrip("mulaw", c)[0]) for a in (1.0, 0.1, 0.03)]
    assert min(levels) > 33 and max(levels) - min(levels) < 5
    faint = sine(amplitude=0.03)
    assert snr(faint, roundtrip("pcm:8", faint)[0]) < 22


# -- MDCT -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hop", [16, 160, 1024])
@pytest.mark.parametrize("length", [1, 1023, 5003])
def test_the_transform_is_orthonormal_and_inverts_exactly(hop: int, length: int) -> None:
    x = np.random.default_rng(1).standard_normal(length)
    c = mdct.forward(x, hop)
    assert np.abs(mdct.inverse(c, length) - x).max() < 1e-10
    assert np.isclose(np.sum(c**2), np.sum(x**2), rtol=1e-10)


def test_the_transform_against_its_definition() -> None:
    hop, rng = 32, np.random.default_rng(2)
    x = rng.standard_normal(hop * 3)
    padded = np.concatenate([np.zeros(hop), x, np.zeros(hop)])
    n, k = np.arange(2 * hop), np.arange(hop)[:, None]
    window = np.sin(np.pi * (n + 0.5) / (2 * hop))
    basis = np.sqrt(2 / hop) * window * np.cos(np.pi / hop * (n + 0.5 + hop / 2) * (k + 0.5))
    expected = np.stack([basis @ padded[i * hop : (i + 2) * hop] for i in range(4)])
    assert np.abs(mdct.forward(x, hop) - expected).max() < 1e-12


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 10_000), st.sampled_from([0.01, 0.3, 3.0, 5000.0]))
def test_the_stream_carries_any_integers(channels: int, frames: int, seed: int, scale: float) -> None:
    q = np.round(np.random.default_rng(seed).laplace(0, scale, (channels, frames, 48)))
    assert np.array_equal(mdct._unpack(mdct._pack(q, 0), frames, 48), q)


def test_the_coder_approaches_the_entropy() -> None:
    rng = np.random.default_rng(0)
    bits = (rng.random(50_000) < 0.05).astype(int).tolist()
    coder = mdct._Encoder()
    for b in bits:
        coder.bit(mdct.FLAG, b)
    data = coder.finish()
    p = np.mean(bits)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * len(bits) / 8
    assert entropy * 0.98 < len(data) < entropy * 1.02
    decoder = mdct._Decoder(data)
    assert [decoder.bit(mdct.FLAG, 0) for _ in bits] == bits


@pytest.mark.parametrize("kbps", [0.5, 1.5, 6, 24])
@pytest.mark.parametrize("which", ["speech", "dog", "white"])
def test_mdct_uses_its_budget_and_never_exceeds_it(which: str, kbps: float, request: pytest.FixtureRequest) -> None:
    clip = white(48_000) if which == "white" else request.getfixturevalue(which)
    made, tokens = roundtrip(f"mdct:{kbps}", clip)
    budget = kbps * 1000 * clip.seconds / 8
    assert 0.9 * int(budget) <= tokens.codes.shape[1] <= budget
    assert tokens.nominal_kbps == pytest.approx(tokens.codes.shape[1] * 8 / clip.seconds / 1000)
    assert not tokens.side and tokens.side_bits == 0
    assert snr(clip, made) > 0


def test_mdct_improves_with_rate_and_ends_lossless(speech: Clip) -> None:
    clip = resample(speech, 8_000)
    values = [snr(clip, roundtrip(f"mdct:{k}", clip)[0]) for k in (1, 3, 6, 12, 24)]
    assert all(b > a + 1 for a, b in pairwise(values))
    assert snr(clip, roundtrip("mdct:400", clip)[0]) > 60


def test_mdct_edges() -> None:
    quiet = Clip(np.zeros((2, 8000)), 8_000)
    made, tokens = roundtrip("mdct:6", quiet)
    assert not made.samples.any() and tokens.codes.shape == (1, 4)
    stereo = Clip(np.stack([sine().samples[0], np.zeros(48_000)]), 48_000)
    made, _ = roundtrip("mdct:12", stereo)
    assert made.channels == 2 and snr(stereo, made) > 20 and np.abs(made.samples[1]).max() < 1e-6
    with pytest.raises(NotApplicable, match="budget of 3 bytes"):
        system("mdct:0.5").encode(white(2400))


# -- Opus and MP3 -----------------------------------------------------------------------------------------------------


def ogg_packets(data: bytes) -> list[bytes]:
    """Packets of an Ogg file by RFC 3533, independent of FFmpeg."""
    packets, current, at = [], b"", 0
    while at < len(data):
        assert data[at : at + 4] == b"OggS"
        lacing = data[at + 27 : at + 27 + data[at + 26]]
        at += 27 + len(lacing)
        for size in lacing:
            current += data[at : at + size]
            at += size
            if size < 255:
                packets.append(current)
                current = b""
    return packets


@pytest.mark.parametrize("kbps", [6, 12, 24])
def test_opus_rate_is_that_of_its_packets(speech: Clip, kbps: int) -> None:
    """The same audio written to an Ogg file by PyAV on its own: its packets, read by hand, are our codes."""
    import av

    clip = resample(speech, 48_000)
    _, tokens = roundtrip(f"opus:{kbps}", clip)
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as out:
        options = {"application": "audio", "frame_duration": "20", "vbr": "off", "compression_level": "10"}
        stream = out.add_stream("libopus", rate=48_000, options=options)
        stream.layout, stream.format, stream.bit_rate = "mono", "flt", kbps * 1000
        frame = av.AudioFrame.from_ndarray(clip.samples, format="flt", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        fifo = av.AudioFifo()
        fifo.write(frame)
        for part in [*fifo.read_many(960), fifo.read(0, partial=True)]:
            if part is not None:
                out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    packets = ogg_packets(file.getvalue())[2:]  # after OpusHead and OpusTags
    assert tokens.codes[0].tobytes() == b"".join(packets)
    assert tokens.side["packet_sizes"].tolist() == [len(p) for p in packets]
    n = sum(map(len, packets))
    assert tokens.nominal_kbps == pytest.approx(n * 8 / clip.seconds / 1000, rel=1e-12)
    assert tokens.nominal_kbps == pytest.approx(kbps, rel=0.025)
    assert tokens.container_bits / 8 == pytest.approx(len(file.getvalue()) - n, abs=40)  # the vendor strings differ


def test_opus_decodes_as_libsndfile_does(speech: Clip, tmp_path: Path) -> None:
    """libsndfile's own libopus decodes the same packets: same delay, same waveform up to its rounding."""
    import av
    import soundfile

    clip = resample(speech, 48_000)
    made, tokens = roundtrip("opus:24", clip)
    path = tmp_path / "a.opus"
    with av.open(str(path), "w", format="ogg") as out:
        stream = out.add_stream("libopus", rate=48_000)
        stream.layout, stream.format = "mono", "flt"
        stream.codec_context.open()
        data, at = tokens.codes[0].tobytes(), 0
        for i, size in enumerate(tokens.side["packet_sizes"].tolist()):
            packet = av.Packet(data[at : at + size])
            packet.pts = packet.dts = 960 * i - 312
            packet.duration, packet.stream = 960, stream
            packet.time_base = stream.codec_context.time_base
            out.mux(packet)
            at += size
    y, rate = soundfile.read(path, dtype="float32")
    assert rate == 48_000
    assert snr(Clip(y[: clip.length], 48_000), made) > 50


@pytest.mark.parametrize(
    "spec",
    [
        "opus:64",
        "opus:64@application=lowdelay",
        "opus:64@application=voip",
        "opus:64@frame_ms=2.5",
        "opus:64@frame_ms=60",
        "opus:64@vbr=on",
        "mp3:64",
        "mp3:64@sample_rate=48000",
        "mp3:64@sample_rate=16000",
        "mp3:64@sample_rate=8000",
        "mp3:32",
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_coded_audio_is_aligned_to_the_sample(spec: str, channels: int) -> None:
    rate = system(spec).sample_rate
    clip = white(rate, rate, channels)
    made, _ = roundtrip(spec, clip)
    assert made.samples.shape == clip.samples.shape
    for x, y in zip(clip.samples, made.samples, strict=True):
        assert delay(x, y) == 0
        assert np.sum(x * y) > 0  # and not inverted


@settings(max_examples=25)
@given(st.integers(0, 1), st.integers(2400, 60_000))
@example(0, 2400)
@example(1, 2400)
@example(0, 2400 + 648)  # pre-skip and clip fill whole frames exactly
def test_exact_length_whatever_the_length(which: int, samples: int) -> None:
    spec = ("opus:6", "mp3:8")[which]
    rate = system(spec).sample_rate
    clip = white(max(round(samples * rate / 48_000), rate // 20), rate, seed=samples)
    made, tokens = roundtrip(spec, clip)
    assert made.length == clip.length == tokens.samples
    assert tokens.codes.shape[1] == tokens.side["packet_sizes"].sum()
    assert tokens.nominal_kbps * 1000 * clip.seconds == pytest.approx(tokens.code_bits, rel=1e-12)


def test_the_end_of_a_clip_survives() -> None:
    """A click near the end comes back in its place: nothing is cut off by the codecs' delays."""
    for spec in ("opus:64", "mp3:64"):
        rate = system(spec).sample_rate
        x = np.zeros(rate // 2 + 77)
        x[-40] = 0.9
        made, _ = roundtrip(spec, Clip(x, rate))
        assert abs(int(np.argmax(np.abs(made.samples[0]))) - (len(x) - 40)) <= 1


def test_the_same_bytes_every_time() -> None:
    script = (
        "import hashlib, numpy as np\n"
        "from evalkit.audio import Clip\n"
        "from evalkit.systems.load import load_system\n"
        "for spec in ('opus:6', 'mp3:8', 'mdct:6'):\n"
        "    s = load_system(spec).system\n"
        "    rate = getattr(s, 'sample_rate', 16000)\n"
        "    c = Clip(0.1 * np.random.default_rng(0).standard_normal((1, rate)), rate)\n"
        "    t = s.encode(c)\n"
        "    made = t.codes.tobytes() + s.decode(t, 0).samples.tobytes()\n"
        "    print(hashlib.sha256(made).hexdigest(), t.container_bits)\n"
    )
    command = [sys.executable, "-c", script]
    runs = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1 and len(runs.pop().split()) == 6


def test_mp3_packets_are_mpeg_frames_of_the_stated_rate() -> None:
    for kbps, rate in MP3_RATES.items():
        clip = white(rate, rate)
        _, tokens = roundtrip(f"mp3:{kbps}", clip)
        sizes = tokens.side["packet_sizes"]
        per_frame = 1152 if rate >= 32_000 else 576
        ideal = kbps * 1000 / 8 * per_frame / rate  # ISO/IEC 11172-3, 2.4.3.1: whole bytes, padded on average to this
        assert sizes.min() >= np.floor(ideal) and sizes.max() <= np.ceil(ideal)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        assert set(tokens.codes[0, starts].tolist()) == {255}  # the sync word
        flush = 3 * per_frame / rate
        assert kbps * 0.99 < tokens.nominal_kbps < kbps * (1 + flush / clip.seconds) + 1


def test_opus_and_mp3_refuse_many_channels() -> None:
    for spec in ("opus:6", "mp3:8"):
        with pytest.raises(NotApplicable, match="1 or 2 channels"):
            system(spec).encode(white(9600, system(spec).sample_rate, channels=3))


# -- Codec2 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [3200, 2400, 1600, 1400, 1300, 1200, 700])
def test_codec2_emits_exactly_its_rate(mode: int, speech: Clip) -> None:
    pycodec2 = pytest.importorskip("pycodec2")
    clip = resample(speech, 8_000)
    clip = clip.with_samples(clip.samples[:, :12_345])
    tokens = system(f"codec2:{mode}").encode(clip)
    assert tokens.nominal_kbps * 1000 == pytest.approx(mode, rel=1e-12)
    codec = pycodec2.Codec2(mode)
    n, bits = codec.samples_per_frame(), codec.bits_per_frame()
    assert tokens.codes.shape[1] >= -(-clip.length // n)
    assert tokens.code_bits == bits * tokens.codes.shape[1]
    # Put together again, the codes are the bytes that pycodec2 gives for the same samples.
    pcm = np.round(np.clip(clip.samples[0], -1, 1) * 32767).astype(np.int16)
    for frame in range(clip.length // n):
        packed = codec.encode(pcm[frame * n : (frame + 1) * n])
        codes = zip(tokens.codes[:, frame], tokens.sizes, strict=True)
        text = "".join(f"{int(c):0{k.bit_length() - 1}b}" for c, k in codes)
        assert text == "".join(f"{b:08b}" for b in packed)[:bits]


def test_codec2_decodes_the_same_whatever_came_before(speech: Clip) -> None:
    pytest.importorskip("pycodec2")
    codec = system("codec2:700")
    clip = resample(speech, 8_000)
    tokens = codec.encode(clip)
    first = codec.decode(tokens, 0)
    codec.decode(codec.encode(sine(8_000, amplitude=0.3)), 0)
    again = codec.decode(tokens, 0)
    assert first.length == clip.length and np.array_equal(first.samples, again.samples)
    # It sounds when the speaker speaks: levels of 20 ms blocks go together.
    level = [
        np.log10(np.mean(c.samples[0, : clip.length // 160 * 160].reshape(-1, 160) ** 2, axis=1) + 1e-6)
        for c in (clip, first)
    ]
    assert np.corrcoef(*level)[0, 1] > 0.8


@pytest.mark.parametrize("mode", [3200, 1300, 700])
def test_codec2_is_aligned_as_far_as_a_vocoder_can_be(shared: Path, mode: int) -> None:
    """The shift of least log-spectral distance, over four speakers, is within 2 ms of none."""
    import scipy.signal

    pytest.importorskip("pycodec2")
    shifts = []
    paths = sorted((shared / "data/librispeech/test-clean").glob("*/*/*.flac"))
    for path in paths[:20:5]:
        clip = resample(read_clip(path, seconds=2.5), 8_000)
        made, _ = roundtrip(f"codec2:{mode}", clip)
        a, b = (
            np.log10(np.abs(scipy.signal.stft(c.samples[0], 8_000, nperseg=160, noverlap=152)[2]) ** 2 + 1e-7)
            for c in (clip, made)
        )
        edge, n = 40, a.shape[1]
        shifts.append(
            min(
                range(-edge, edge + 1),
                key=lambda d, a=a, b=b: float(np.mean((a[:, edge : n - edge] - b[:, edge + d : n - edge + d]) ** 2)),
            )
        )
    assert abs(np.median(shifts)) <= 2, shifts  # in hops of 1 ms


def test_codec2_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycodec2", None)
    with pytest.raises(Unavailable, match=r"evalkit-audio\[codec2\]"):
        load_system("codec2:700")


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_real_codec_pairs(shared: Path) -> None:
    pairs = shared / "reference/codec_pairs/librispeech"
    if not pairs.is_dir():
        pytest.skip(f"no codec pairs in {shared}")
    folders = sorted({p.parent for p in pairs.rglob("*") if p.is_file()})
    assert len(folders) >= 4
    originals = {p.stem: p for p in (shared / "data/librispeech").rglob("*.flac")}
    scored = 0
    for folder in folders:
        made = next(p for p in sorted(folder.iterdir()) if p.stem in originals)
        clip = read_clip(originals[made.stem], id=f"test-clean/1/2/{made.stem}")
        built = system(f"files:{folder}@kbps=0.55")
        out = built.reconstruct(clip, 0)  # by the exact rule
        scored += 1
        assert (out.length, out.sample_rate, built.declared_kbps) == (clip.length, clip.sample_rate, 0.55)
        raw = resample(mono(read_clip(made)), clip.sample_rate)
        n = min(raw.length, clip.length)
        assert n >= clip.length - 2 and np.array_equal(out.samples[:, :n], raw.samples[:, :n])
    assert scored == len(folders)


def test_files_rules(tmp_path: Path) -> None:
    clip = Clip(white(16_000, 16_000).samples, 16_000, "test/a.b")
    write_clip(clip, tmp_path / "a.b.wav")
    loaded = load_system(f"files:{tmp_path}@kbps=1.5")
    assert "kbps=1.5" in loaded.name and "length=exact" in loaded.name
    assert np.array_equal(loaded.system.reconstruct(clip, 0).samples, clip.samples)
    assert load_system(f"files:{tmp_path}").system.declared_kbps is None

    with pytest.raises(DataError, match="no file named zzz"):
        loaded.system.reconstruct(Clip(clip.samples, 16_000, "test/zzz"), 0)
    longer = Clip(np.pad(clip.samples, ((0, 0), (0, 320))), 16_000, clip.id)
    with pytest.raises(DataError, match=r"16000 samples.*16320.*length=fit"):
        loaded.system.reconstruct(longer, 0)
    fitted = system(f"files:{tmp_path}@length=fit").reconstruct(longer, 0)
    assert fitted.length == longer.length and not fitted.samples[:, 16_000:].any()

    stereo = Clip(np.stack([np.full(8000, 0.5), np.full(8000, 0.25)]), 8_000)
    write_clip(stereo, tmp_path / "Kevin#10.wav")
    excerpt = system(f"files:{tmp_path}").reconstruct(Clip(np.zeros(16_000), 16_000, "fma/Kevin#10"), 0)
    assert excerpt.length == 16_000 and np.allclose(excerpt.samples[:, 1000:-1000], 0.375, atol=1e-3)

    write_clip(clip, tmp_path / "Karissa.wav")
    (tmp_path / "a.b.txt").write_text("what was said")
    assert system(f"files:{tmp_path}").reconstruct(clip, 0).length == clip.length
    with pytest.raises(DataError, match=r"Karissa#30.*Karissa\.wav is the whole track, cut it first"):
        system(f"files:{tmp_path}").reconstruct(Clip(clip.samples, 16_000, "fma/Karissa#30"), 0)

    write_clip(clip, tmp_path / "a.b.flac")
    with pytest.raises(DataError, match=r"two files .*a\.b\.flac.*a\.b\.wav"):
        system(f"files:{tmp_path}").reconstruct(clip, 0)


def test_files_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    write_clip(white(8000, 16_000), tmp_path / "a.wav")
    write_clip(white(8000, 16_000, seed=1), tmp_path / "b.wav")
    first = system(f"files:{tmp_path}").fingerprint()
    assert system(f"files:{tmp_path}").fingerprint() == first
    write_clip(white(8000, 16_000, seed=2), tmp_path / "b.wav")
    changed = system(f"files:{tmp_path}").fingerprint()
    (tmp_path / "b.wav").rename(tmp_path / "c.wav")
    assert len({first, changed, system(f"files:{tmp_path}").fingerprint()}) == 3


def test_every_built_in_declares_itself() -> None:
    from evalkit import registry

    builtin = {"identity", "silence", "noise", "resample", "pcm", "mulaw", "mdct", "opus", "mp3", "codec2", "files"}
    assert builtin <= set(names("systems"))
    for name in builtin:
        info = registry.get("systems", name)
        assert info.summary and info.licence, name
        assert info.role in ("codec", "ceiling", "floor", "anchor")
    assert registry.get("systems", "codec2").domains == ("speech",)
    assert registry.get("systems", "noise").stochastic
