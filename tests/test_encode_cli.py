"""`evalkit encode` and `evalkit decode`, and what they are made of: audio in blocks, whole files, the right system."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from evalkit import audio
from evalkit.audio import (
    Blocks,
    Clip,
    mono,
    mono_blocks,
    read_blocks,
    read_clip,
    resample,
    resample_blocks,
    resampled_length,
    write_blocks,
    write_clip,
)
from evalkit.coding import decode_file, encode_file
from evalkit.errors import AudioError, ContractError, EvalkitError, UsageError
from evalkit.systems.load import load_system
from evalkit.tokens import Tokens
from evalkit.tokfile import read_tokens, write_tokens

LINE = re.compile(
    r"(\S.*): (\d+\.\d{3}) s at (\d+) Hz, (\d+) x ([\d,]+) codes, (\S+) kbps nominal; token file ([\d,]+) "
)

MINE = '''
import numpy as np
from evalkit import Clip, NotApplicable, Tokens

class Codec:
    """One bit a sample."""
    def encode(self, clip):
        codes = (clip.samples > 0).astype(int)
        return Tokens(codes, (2,) * clip.channels, clip.sample_rate, clip.length, clip.sample_rate)
    def decode(self, tokens, seed):
        return Clip(tokens.codes - 0.5, tokens.sample_rate)

class Short(Codec):
    def decode(self, tokens, seed):
        return Clip(tokens.codes[:, 1:] - 0.5, tokens.sample_rate)

class Fussy(Codec):
    def encode(self, clip):
        raise NotApplicable("not today")

class Broken(Codec):
    def decode(self, tokens, seed):
        raise KeyError("what")
'''


def sound(length: int, rate: int = 24_000, channels: int = 1) -> Clip:
    """Noise whose level and colour change all the time, so that many codes are used."""
    rng = np.random.default_rng(length)
    t = np.arange(length) / rate
    noise = rng.standard_normal((channels, length)) * np.sin(2 * np.pi * (0.3 + np.arange(channels))[:, None] * t) ** 2
    return Clip(0.2 * noise + 0.2 * np.sin(2 * np.pi * 200 * t * (1 + t)), rate)


def cut(samples: np.ndarray, size: int) -> list[np.ndarray]:
    return [samples[:, i : i + size] for i in range(0, samples.shape[1], size)]


def joined(blocks: Blocks) -> np.ndarray:
    return np.concatenate(list(blocks.blocks), axis=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Any]) -> Path:
    """A folder with two small tokenizers of random weights, a user's file and two recordings."""
    folder = tmp_path_factory.mktemp("coding")
    tiny().save_pretrained(folder / "vq")
    tiny({"kind": "fsq"}).save_pretrained(folder / "fsq")
    tiny(objective="mse").save_pretrained(folder / "twin")
    (folder / "mine.py").write_text(MINE)
    write_clip(sound(24_000 * 3 + 123), folder / "mono.wav")
    write_clip(sound(44_100 * 2 + 7, 44_100, 2), folder / "stereo.wav")
    return folder


@pytest.fixture
def main(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """The command in this process: ``(exit code, stdout, stderr)``."""
    from evalkit import cli

    monkeypatch.chdir(place)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evalkit", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out, err

    return run


# -- audio in blocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.raw"])
@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_are_the_samples_of_read_clip(
    name: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    write_clip(sound(44_100 + 11, 44_100, channels), tmp_path / "a.wav")
    if name == "a.raw":  # a name that soundfile takes for samples without a header
        shutil.copy(tmp_path / "a.wav", path)
    elif name != "a.wav":
        write_clip(read_clip(tmp_path / "a.wav"), path)
    whole = read_clip(path)
    for size in (1000, 4096, 1 << 17):
        monkeypatch.setattr(audio, "BLOCK_SAMPLES", size)
        given = read_blocks(path)
        assert (given.sample_rate, given.channels) == (44_100, channels)
        made = joined(given)
        if name == "a.mp3":  # libsndfile's last bit of mono depends on how much is read at a time
            assert made.shape == whole.samples.shape and np.abs(made - whole.samples).max() < 2e-7
        else:
            assert np.array_equal(made, whole.samples)


def test_what_soundfile_cannot_open_is_read_whole(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound(44_100, 44_100).samples, format="fltp", layout="mono")
        frame.sample_rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.SoundFile(path)
    assert np.array_equal(joined(read_blocks(path)), read_clip(path).samples)


def test_a_file_that_is_damaged_in_the_middle_reads_as_read_clip_reads_it(tmp_path: Path) -> None:
    whole = tmp_path / "a.flac"
    write_clip(sound(24_000 * 20), whole)
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    (tmp_path / "b.flac").write_bytes(data)
    (tmp_path / "c.flac").write_bytes(data[: len(data) // 2])
    for name in ("b.flac", "c.flac"):
        assert outcome(lambda path: read_clip(path).length, tmp_path / name) == outcome(
            lambda path: joined(read_blocks(path)).shape[1], tmp_path / name
        )
    assert "c.flac" in str(outcome(lambda path: joined(read_blocks(path)).shape[1], tmp_path / "c.flac"))


def outcome(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except AudioError as error:
        return str(error)


def header(data_bytes: int, rate: int = 16_000, channels: int = 1) -> bytes:
    size, block = 36 + data_bytes & 0xFFFFFFFF, 2 * channels
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, 16)
    return struct.pack("<4sI4s", b"RIFF", size, b"WAVE") + form + struct.pack("<4sI", b"data", data_bytes)


def float_wav(path: Path, samples: np.ndarray) -> None:
    soundfile.write(path, samples, 16_000, subtype="FLOAT")


BAD: dict[str, Callable[[Path], Any]] = {
    "absent.wav": lambda path: None,
    "folder.wav": lambda path: path.mkdir(),
    "empty.wav": lambda path: path.write_bytes(b""),
    "text.wav": lambda path: path.write_text("This is not audio.\n" * 50),
    "cut.wav": lambda path: path.write_bytes(header(32_000) + bytes(8000)),
    "4 GB.wav": lambda path: path.write_bytes(header(4_000_000_000)),
    "rate.wav": lambda path: path.write_bytes(header(16_000, rate=2_000_000_000) + bytes(16_000)),
    "channels.wav": lambda path: path.write_bytes(header(60_000, channels=30_000) + bytes(60_000)),
    "short.wav": lambda path: path.write_bytes(header(200) + bytes(200)),
    "nan.wav": lambda path: float_wav(path, np.where(np.arange(200_000) % 70_000 == 69_999, np.nan, 0.1)),
    "infinite.wav": lambda path: float_wav(path, np.full(8000, np.inf)),
    "cut.ogg": lambda path: (write_clip(sound(48_000), path), path.write_bytes(path.read_bytes()[:-300])),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_those_of_read_clip(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    BAD[name](path)
    expected = outcome(lambda p: read_clip(p), path)
    assert isinstance(expected, str) and expected.startswith(repr(str(path)))
    assert outcome(lambda p: joined(read_blocks(p)), path) == expected
    named = outcome(lambda p: joined(read_blocks(p, name="standard input")), path)
    assert named == expected.replace(repr(str(path)), "standard input", 1)


@given(
    st.integers(1, 60_000),
    st.sampled_from([8_000, 16_000, 22_050, 24_000, 44_100, 48_000]),
    st.sampled_from([8_000, 24_000, 44_100, 48_000]),
    st.integers(1, 2),
    st.integers(1, 30_000),
)
def test_resampling_in_blocks_is_resampling(length: int, a: int, b: int, channels: int, size: int) -> None:
    clip = sound(length, a, channels)
    made = resample_blocks(Blocks(a, channels, iter(cut(clip.samples, max(size, length // 20)))), b)
    assert made.sample_rate == b
    assert np.array_equal(joined(made), resample(clip, b).samples)


def test_mixing_in_blocks_is_mixing() -> None:
    clip = sound(10_007, channels=3)
    made = mono_blocks(Blocks(24_000, 3, iter(cut(clip.samples, 999))))
    assert made.channels == 1
    assert np.array_equal(joined(made), mono(clip).samples)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_wav_in_blocks_is_exact_and_the_same_every_time(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = sound(30_011, 44_100, channels).with_samples(
        2 * sound(30_011, 44_100, channels).samples
    )  # beyond full scale
    about = {"sample_rate": 44_100, "channels": channels, "samples": clip.length}
    write_blocks(tmp_path / "a.wav", cut(clip.samples, 777), **about)
    assert read_clip(tmp_path / "a.wav").content_hash == clip.content_hash
    with open(tmp_path / "b.WAV", "wb") as stream:
        write_blocks(stream, [clip.samples], **about)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.WAV").read_bytes()
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.format, info.subtype, info.frames) == ("WAV", "FLOAT", clip.length)
    monkeypatch.setattr(audio, "MAX_WAV_BYTES", 1000)
    write_blocks(tmp_path / "c.wav", [clip.samples], **about)
    assert soundfile.info(tmp_path / "c.wav").format == "RF64"
    assert read_clip(tmp_path / "c.wav").content_hash == clip.content_hash


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.aiff"])
def test_other_formats_are_what_write_clip_writes(name: str, tmp_path: Path) -> None:
    clip = sound(200_000, 44_100, 2)
    write_blocks(tmp_path / name, cut(clip.samples, 70_000), sample_rate=44_100, channels=2, samples=clip.length)
    (tmp_path / "whole").mkdir()
    write_clip(clip, tmp_path / "whole" / name)
    ours, theirs = read_clip(tmp_path / name), read_clip(tmp_path / "whole" / name)
    assert ours.samples.shape == theirs.samples.shape
    if name == "a.ogg":  # the encoder's choices depend on how much it gets at a time: as near to the original, then
        errors = [float(np.mean((made.samples - clip.samples) ** 2)) for made in (ours, theirs)]
        assert errors[0] == pytest.approx(errors[1], rel=0.02)
    else:
        assert np.abs(ours.samples - theirs.samples).max() < 1e-4


def test_blocks_of_another_length_are_not_written(tmp_path: Path) -> None:
    x = sound(1000).samples
    for blocks, samples in (([x], 999), ([x], 1001), ([x, np.zeros((2, 1), np.float32)], 1001)):
        with pytest.raises(ContractError, match="expected"):
            write_blocks(tmp_path / "a.wav", blocks, sample_rate=24_000, channels=1, samples=samples)
    with pytest.raises(AudioError, match="this format takes no 9 channel"):
        write_blocks(tmp_path / "a.mp3", [np.zeros((9, 99))], sample_rate=24_000, channels=9, samples=99)


# -- tokens of blocks are tokens of the whole -------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["vq", "fsq"])
@pytest.mark.parametrize(
    ("rate", "length", "channels"),
    [(24_000, 1_300, 1), (24_000, 24_000 * 7 + 5, 2), (24_000, 24_000 * 131 + 17, 1), (24_000, 24_000 * 61 + 1, 2),
     (44_100, 44_100 * 63 + 1, 1), (16_000, 16_000 * 5 + 3, 2)],
)  # fmt: skip
def test_a_file_gives_the_tokens_and_the_audio_of_the_whole_clip(
    place: Path, tmp_path: Path, model: str, rate: int, length: int, channels: int
) -> None:
    clip = sound(length, rate, channels)
    write_clip(clip, tmp_path / "a.wav")
    spec = f"vqfm:{place / model}@vocoder=griffin-lim:2"
    system = load_system(spec).system
    whole = system.encode(resample(clip, 24_000))
    assert length == 1_300 or len(np.unique(whole.codes)) > 8
    done = encode_file(tmp_path / "a.wav", None, spec)
    tokens = read_tokens(tmp_path / "a.tok").tokens
    assert np.array_equal(tokens.codes, whole.codes) and tokens.sizes == whole.sizes
    assert (tokens.samples, tokens.sample_rate, tokens.frame_rate) == (whole.samples, 24_000, whole.frame_rate)
    assert np.array_equal(done.tokens.codes, whole.codes)
    if model == "vq":
        decode_file(tmp_path / "a.tok", tmp_path / "b.wav", seed=3)
        made = system.decode(whole, 3)
        assert read_clip(tmp_path / "b.wav").content_hash == made.content_hash
        assert made.length == resampled_length(length, rate, 24_000)


MEMORY = """
import sys
from evalkit.coding import decode_file, encode_file
from evalkit.cost import peak_memory, reset_peak_memory
folder, name = sys.argv[1:]
system = f"vqfm:{folder}/vq@evaluations=1@solver=euler@vocoder=griffin-lim:1"
encode_file(f"{folder}/warm.wav", f"{folder}/warm.tok", system)  # imports and buffers
decode_file(f"{folder}/warm.tok", f"{folder}/warm-out.wav")
assert reset_peak_memory()
start = peak_memory()
encode_file(f"{folder}/{name}.wav", f"{folder}/{name}.tok", system)
encoding = peak_memory() - start
assert reset_peak_memory()
start = peak_memory()
decode_file(f"{folder}/{name}.tok", f"{folder}/{name}-out.wav")
print(encoding, peak_memory() - start)
"""


def noise_wav(path: Path, seconds: int) -> None:
    """Written in pieces, 48 kHz mono."""
    with soundfile.SoundFile(path, "w", 48_000, 1, subtype="PCM_16") as out:
        for second in range(seconds):
            out.write(0.1 * np.random.default_rng(second).standard_normal(48_000))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_length(place: Path, tmp_path: Path) -> None:
    """Ten minutes are 115 MB as they are read and 58 MB at 24 kHz, two minutes a fifth of that."""
    shutil.copytree(place / "vq", tmp_path / "vq")
    peaks = {}
    noise_wav(tmp_path / "warm.wav", 65)
    for name, seconds in (("two", 120), ("ten", 600)):
        noise_wav(tmp_path / f"{name}.wav", seconds)
        command = [sys.executable, "-c", MEMORY, str(tmp_path), name]
        # glibc keeps freed blocks below a threshold that it raises as it goes; with a fixed one the peak is the work's.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        peaks[name] = [int(x) for x in done.stdout.split()]
        assert soundfile.info(tmp_path / f"{name}-out.wav").frames == seconds * 24_000
    print(peaks)
    for two, ten in zip(peaks["two"], peaks["ten"], strict=True):
        assert ten - two < 30 << 20, peaks


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["opus:6", "pcm:8", "mdct:6", "vqfm:vq", "vqmse:twin", "vae:vq", "mp3:8"])
def test_there_and_back(main: Any, place: Path, tmp_path: Path, spec: str) -> None:
    code, out, err = main("encode", "stereo.wav", "-s", spec, "-o", f"{tmp_path}/a.tok")
    assert (code, out) == (0, "")
    found = LINE.match(err)
    assert found and len(err.splitlines()) == 1, err
    file = read_tokens(tmp_path / "a.tok")
    tokens, clip = file.tokens, read_clip(place / "stereo.wav")
    system = load_system(str(spec).replace(":vq", f":{place}/vq").replace(":twin", f":{place}/twin")).system
    rate = getattr(system, "sample_rate", None) or clip.sample_rate
    assert (tokens.samples, tokens.sample_rate) == (resample(clip, rate).length, rate)
    assert file.clip == "stereo.wav" and file.system.startswith(spec)
    size = (tmp_path / "a.tok").stat().st_size
    said = found[1], float(found[2]), int(found[3]), int(found[4]), int(found[5].replace(",", ""))
    assert said == (f"{tmp_path}/a.tok", round(tokens.seconds, 3), rate, *tokens.codes.shape)
    assert float(found[6]) == pytest.approx(tokens.nominal_kbps, rel=1e-3) and int(found[7].replace(",", "")) == size
    assert main("decode", f"{tmp_path}/a.tok")[:2] == (0, "")
    made = read_clip(tmp_path / "a.wav")
    assert made.content_hash == system.decode(system.encode(resample(clip, rate)), 0).content_hash


def test_the_seed_decides_and_the_same_seed_gives_the_same_file(main: Any, tmp_path: Path) -> None:
    assert main("encode", "mono.wav", "-s", "vqfm:vq", "-o", f"{tmp_path}/a.tok")[0] == 0
    for name, seed in (("a", "0"), ("b", "0"), ("c", "7")):
        assert main("decode", f"{tmp_path}/a.tok", "-o", f"{tmp_path}/{name}.wav", "--seed", seed)[0] == 0
    a, b, c = ((tmp_path / f"{n}.wav").read_bytes() for n in "abc")
    assert a == b != c


def pipe(cwd: Path, line: str) -> subprocess.CompletedProcess[bytes]:
    command = f"{sys.executable} -m evalkit"
    script = re.sub(r"\bevalkit (?=encode|decode)", f"{command} ", line)
    return subprocess.run(["bash", "-c", f"set -o pipefail; {script}"], cwd=cwd, capture_output=True, timeout=300)


def test_pipes_carry_the_bytes_and_nothing_else(place: Path) -> None:
    done = pipe(place, "cat stereo.wav | evalkit encode - -s vqfm:vq -o - | evalkit decode - -o -")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"kbps nominal; ") == len(done.stderr.split(b"\n")) - 1 == 2  # a summary each
    assert pipe(place, "evalkit encode stereo.wav -s vqfm:vq -o p.tok; evalkit decode p.tok -o p.wav").returncode == 0
    assert done.stdout == (place / "p.wav").read_bytes()
    assert pipe(place, "evalkit encode - -s pcm:8 < stereo.wav | evalkit decode -").stdout[:4] == b"RIFF"
    file = read_tokens(place / "p.tok")
    assert (file.tokens.samples, file.system.partition("@")[0]) == (48_004, "vqfm:vq")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evalkit encode - -s pcm:8 -o - < /dev/null", "evalkit: standard input: is empty (0 bytes)"),
        (
            "head -c 9000 mono.wav | evalkit encode - -s pcm:8",
            "evalkit: standard input: truncated: the header promises",
        ),
        ("evalkit decode - < /dev/null", "evalkit: standard input: is empty (0 bytes), not a token file"),
        (
            "evalkit encode mono.wav -s pcm:8 -o - 2> /dev/null | head -c 100 | evalkit decode -",
            "evalkit: standard input: truncated:",
        ),
    ],
)
def test_faults_in_pipes_are_one_line_and_leave_stdout_empty(place: Path, line: str, message: str) -> None:
    done = pipe(place, line)
    assert done.returncode == 1 and done.stdout == b""
    ours = [text for text in done.stderr.decode().splitlines() if text.startswith("evalkit: ")]
    assert len(ours) == 1 and ours[0].startswith(message)
    assert b"Traceback" not in done.stderr


def test_a_reader_that_stops_reading_is_no_error_to_talk_about(place: Path) -> None:
    done = pipe(place, "evalkit encode mono.wav -s pcm:8 -o - | evalkit decode - -o - | head -c 20 | wc -c")
    assert done.stdout.strip() == b"20" and b"Traceback" not in done.stderr and b"Broken pipe" not in done.stderr


def test_binary_does_not_go_to_a_terminal(main: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, out, err = main("encode", "mono.wav", "-s", "pcm:8", "-o", "-")
    assert (code, out) == (1, "") and err.startswith("evalkit: standard output is a terminal")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "encode mono.wav -s identity",
            "evalkit: identity emits no tokens: it has no encode and decode; opus:6 is one",
        ),
        ("encode mono.wav -s noise", "evalkit: noise:64 emits no tokens"),
        ("encode mono.wav -s nope", "evalkit: no system named 'nope'"),
        ("encode mono.wav -s vqfm:nowhere", "evalkit: no tokenizer 'nowhere'"),
        ("encode no.wav -s pcm:8", "evalkit: 'no.wav': cannot be opened (No such file or directory)"),
        ("encode . -s pcm:8", "evalkit: '.': is a directory, not an audio file"),
        ("encode mine.py -s pcm:8", "evalkit: 'mine.py': not "),
        ("encode mono.wav -s pcm:8 -o no/a.tok", "evalkit: 'no/a.tok': there is no folder"),
        ("encode mono.wav -s pcm:8 -o vq", "evalkit: 'vq' is a folder: name a file"),
        ("encode mono.wav -s pcm:8 -o mono.wav", "evalkit: 'mono.wav' is the input itself: name another result"),
        ("encode mono.wav -s mine.py:Fussy", "evalkit: mine.py:Fussy: encoding is not possible: not today"),
        ("encode five.wav -s opus:6", "(--mono mixes them down to their mean)"),
        ("encode", "Error: Missing argument 'INPUT'."),
        ("decode no.tok", "evalkit: 'no.tok': cannot be read (No such file or directory)"),
        ("decode mono.wav -o b.wav", "evalkit: 'mono.wav': not a token file (it begins with b'RIFF"),
        ("decode pcm.tok -o b.xyz", "evalkit: 'b.xyz': no audio format is called '.xyz'; end the name in .wav, .flac"),
        ("decode pcm.tok -o b", "evalkit: 'b': no audio format is called ''"),
        ("decode pcm.tok -s identity -o b.wav", "evalkit: identity emits no tokens"),
        (
            "decode pcm.tok -s mulaw -o b.wav",
            "evalkit: 'pcm.tok' was made by pcm:8 with no weights, mulaw has no weights",
        ),
        ("decode pcm.tok -s pcm:9 -o b.wav", "evalkit: 'pcm.tok' was made by pcm:8 with no weights, pcm:9 has"),
        ("decode pcm.tok --seed -1", "Error: Invalid value for '--seed'"),
        ("decode nameless.tok -o b.wav", "evalkit: 'nameless.tok' does not say which system made it: name it"),
        ("decode odd.tok -o b.wav", "evalkit: 'odd.tok' was made by x@a=1@a=2: spec"),
        ("decode gone.tok -o b.wav", "evalkit: 'gone.tok' was made by vqfm:gone: no tokenizer 'gone': "),
        ("decode short.tok -s mine.py:Short -o b.wav", "decoding by mine.py:Short gave 72122 samples at 24000 Hz"),
        ("decode broken.tok -s mine.py:Broken -o b.wav", "decoding by mine.py:Broken failed: KeyError: 'what' at mine"),
        ("decode pcm.tok -s opus:6 -o b.wav --force", "decoding by opus:6@application=audio"),
        (
            "decode pcm.tok -s vqfm:vq -o b.wav --force",
            "evalkit: tokens with codebooks (256,): this tokenizer has (32,)",
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(main: Any, place: Path, command: str, message: str) -> None:
    if not (place / "pcm.tok").exists():
        write_clip(sound(24_000, channels=5), place / "five.wav")
        clip = read_clip(place / "mono.wav")
        pcm = load_system("pcm:8").system.encode(clip)
        write_tokens(place / "pcm.tok", pcm, system="pcm:8")
        write_tokens(place / "nameless.tok", pcm)
        write_tokens(place / "odd.tok", pcm, system="x@a=1@a=2")
        write_tokens(place / "gone.tok", pcm, system="vqfm:gone")
        write_tokens(place / "short.tok", Tokens(pcm.codes % 2, (2,), 1, clip.length, 24_000), system="mine.py:Short")
        write_tokens(place / "broken.tok", pcm, system="mine.py:Broken")
    before = sorted(os.listdir(place))
    code, out, err = main(*command.split())
    assert (code, out) == (1, "")
    assert message in err
    ours = [line for line in err.splitlines() if line.startswith(("evalkit: ", "Error: "))]
    assert len(ours) == 1 and "Traceback" not in err
    if ours[0].startswith("evalkit: "):
        assert err.strip() == ours[0]
    assert sorted({*os.listdir(place)} - {"__pycache__"}) == sorted({*before} - {"__pycache__"})


def test_names_made_up_here_replace_nothing_and_named_ones_do(main: Any, tmp_path: Path, place: Path) -> None:
    shutil.copy(place / "mono.wav", tmp_path / "a.wav")
    original = (tmp_path / "a.wav").read_bytes()
    assert main("encode", f"{tmp_path}/a.wav", "-s", "opus:6")[0] == 0
    code, _, err = main("decode", f"{tmp_path}/a.tok")
    assert code == 1 and "a.wav' exists: only a file that --out names is replaced" in err
    assert (tmp_path / "a.wav").read_bytes() == original
    assert main("encode", f"{tmp_path}/a.wav", "-s", "opus:6")[0] == 1
    assert main("decode", f"{tmp_path}/a.tok", "-o", f"{tmp_path}/a.wav")[0] == 0
    assert (tmp_path / "a.wav").read_bytes() != original
    assert sorted(os.listdir(tmp_path)) == ["a.tok", "a.wav"]


def test_channels_are_kept_refused_or_mixed_as_asked(main: Any, place: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycodec2")
    code, _, err = main("encode", "stereo.wav", "-s", "codec2:700", "-o", f"{tmp_path}/a.tok")
    assert code == 1
    assert err == "evalkit: codec2:700 takes mono, 'stereo.wav' has 2 channels: --mono mixes them down to their mean\n"
    assert main("encode", "stereo.wav", "-s", "codec2:700", "-o", f"{tmp_path}/a.tok", "--mono")[0] == 0
    expected = load_system("codec2:700").system.encode(resample(mono(read_clip(place / "stereo.wav")), 8_000))
    assert np.array_equal(read_tokens(tmp_path / "a.tok").tokens.codes, expected.codes)
    for options, books in (((), 2), (("--mono",), 1)):
        assert main("encode", "stereo.wav", "-s", "vqfm:vq", "-o", f"{tmp_path}/b.tok", *options)[0] == 0
        assert read_tokens(tmp_path / "b.tok").tokens.codes.shape[0] == books


def test_other_weights_are_refused_and_the_same_weights_elsewhere_are_not(
    main: Any, place: Path, tmp_path: Path, tiny: Callable[..., Any]
) -> None:
    shutil.copytree(place / "vq", tmp_path / "model")
    assert main("encode", "mono.wav", "-s", f"vqfm:{tmp_path}/model", "-o", f"{tmp_path}/a.tok")[0] == 0
    assert main("decode", f"{tmp_path}/a.tok")[0] == 0
    (tmp_path / "model").rename(tmp_path / "moved")
    code, _, err = main("decode", f"{tmp_path}/a.tok", "-o", f"{tmp_path}/b.wav")
    assert code == 1 and "Name what to decode with by --system" in err
    moved = ("decode", f"{tmp_path}/a.tok", "-s", f"vqfm:{tmp_path}/moved", "-o", f"{tmp_path}/b.wav")
    assert main(*moved)[0] == 0
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()
    # Options of decoding may differ: the weights say what the codes are.
    assert main(*moved[:3], f"vqfm:{tmp_path}/moved@evaluations=2", *moved[4:])[0] == 0
    # The twin decodes the same codes; only whoever asks for it knows that.
    twin = ("decode", f"{tmp_path}/a.tok", "-s", f"vqmse:{place}/twin", "-o", f"{tmp_path}/c.wav")
    code, _, err = main(*twin)
    assert code == 1 and re.search(r"with weights [0-9a-f]{12}, vqmse:.* has weights [0-9a-f]{12}: codes may mean", err)
    assert not (tmp_path / "c.wav").exists()
    assert main(*twin, "--force")[0] == 0
    assert read_clip(tmp_path / "c.wav").length == read_tokens(tmp_path / "a.tok").tokens.samples
    # The place is the same, the weights there are not.
    tiny({"kind": "fsq", "fsq": (8, 4)}).save_pretrained(tmp_path / "model")
    code, _, err = main("decode", f"{tmp_path}/a.tok", "-o", f"{tmp_path}/d.wav")
    assert code == 1 and re.search(r"with weights [0-9a-f]{12}, here that has weights [0-9a-f]{12}: ", err)
    assert main("decode", f"{tmp_path}/a.tok", "-o", f"{tmp_path}/d.wav", "--force")[0] == 0


def test_a_token_file_runs_no_code_of_its_choice(main: Any, place: Path, tmp_path: Path) -> None:
    tokens = load_system("pcm:8").system.encode(read_clip(place / "mono.wav"))
    for system in (
        f"{os.__file__}:system:touch {tmp_path}/pwned",
        "mine.py:Codec",
        f"{os.__file__}:system@command=touch pwned",
    ):
        write_tokens(tmp_path / "a.tok", tokens, system=system)
        code, _, err = main("decode", f"{tmp_path}/a.tok", "-o", f"{tmp_path}/b.wav")
        assert code == 1 and "code of a file is run only when you name it yourself" in err
    assert os.listdir(tmp_path) == ["a.tok"]
    assert main("encode", "mono.wav", "-s", "mine.py:Codec", "-o", f"{tmp_path}/c.tok")[0] == 0
    assert main("decode", f"{tmp_path}/c.tok", "-o", f"{tmp_path}/c.wav")[0] == 1
    assert main("decode", f"{tmp_path}/c.tok", "-s", "mine.py:Codec", "-o", f"{tmp_path}/c.wav")[0] == 0
    assert read_clip(tmp_path / "c.wav").length == tokens.samples


def test_strange_texts_of_a_token_file_reach_no_terminal(main: Any, place: Path, tmp_path: Path) -> None:
    tokens = load_system("pcm:8").system.encode(read_clip(place / "mono.wav"))
    write_tokens(tmp_path / "a.tok", tokens, system="\x1b[31mno\nsuch")
    code, _, err = main("decode", f"{tmp_path}/a.tok", "-o", f"{tmp_path}/b.wav")
    assert code == 1 and "\x1b" not in err and len(err.splitlines()) == 1


def test_a_result_that_fails_on_the_way_leaves_the_old_one(place: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"before")
    tokens = load_system("pcm:8").system.encode(read_clip(place / "mono.wav"))
    write_tokens(tmp_path / "a.tok", tokens, system="x")
    for name in ("Short", "Broken"):
        with pytest.raises(EvalkitError):
            decode_file(tmp_path / "a.tok", tmp_path / "a.wav", f"{place}/mine.py:{name}", force=True)
    assert (tmp_path / "a.wav").read_bytes() == b"before" and sorted(os.listdir(tmp_path)) == ["a.tok", "a.wav"]


def test_a_pipe_with_a_name_is_written_to_and_stays_a_pipe(place: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE) as reader:
        encode_file(place / "mono.wav", tmp_path / "pipe", "opus:6")
        data = reader.communicate()[0]
    encode_file(place / "mono.wav", tmp_path / "a.tok", "opus:6")
    assert data == (tmp_path / "a.tok").read_bytes() and (tmp_path / "pipe").is_fifo()


def test_a_stream_needs_a_place_for_the_result(place: Path) -> None:
    with open(place / "mono.wav", "rb") as stream, pytest.raises(UsageError, match="say where the result goes"):
        encode_file(stream, None, "opus:6")


def test_the_command_line_stays_light() -> None:
    code = textwrap.dedent("""
        import sys
        import evalkit.cli
        print(*({"torch", "soundfile", "soxr", "evalkit.coding", "evalkit.tokfile"} & set(sys.modules)))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n")
