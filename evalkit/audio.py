"""The audio core: `Clip`, reading, writing, resampling, the channel rule and loudness.

Conventions used everywhere in evalkit:

* samples are float32 ``[channels, samples]``, full scale is +-1.0 (values beyond are kept, never clipped);
* the channel rule is ``mean``: a clip is mixed down by the mean of its channels, unless a task says ``keep``;
* resampling is soxr at quality ``HQ``; ``n`` samples at ``a`` Hz become exactly ``round(n * b / a)`` at ``b`` Hz.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import stat
import struct
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from evalkit.errors import AudioError, ContractError, NotApplicable, UsageError

T = TypeVar("T")

MIN_SECONDS = 0.05
"""Shorter recordings are refused when read: no codec frame and no spectral measure fits in them."""

MAX_CHANNELS = 64
SAMPLE_RATES = (1_000, 768_000)


@dataclass(frozen=True, eq=False)
class Clip:
    """A piece of audio that is known to be well formed.

    Args:
        samples: float ``[channels, samples]`` (or ``[samples]``), full scale +-1; stored as float32.
        sample_rate: in Hz.
        id: name within its data set.
        cluster: the recording, speaker or track it was cut from; clips of one cluster are not independent.

    Raises:
        AudioError: integer, complex, empty or non-finite samples, wrong dimensions, absurd sample rate.
    """

    samples: np.ndarray
    sample_rate: int
    id: str = ""
    cluster: str = ""
    _memo: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        x = np.asarray(self.samples)
        if not np.issubdtype(x.dtype, np.floating):
            raise AudioError(f"samples are {x.dtype}, not float: divide integer PCM by its full scale to get +-1")
        if x.ndim == 1:
            x = x[None, :]
        if x.ndim != 2:
            raise AudioError(f"samples have shape {x.shape}, expected [channels, samples]")
        if x.shape[0] < 1 or x.shape[1] < 1:
            raise AudioError(f"empty audio: shape {x.shape}")
        if not SAMPLE_RATES[0] <= self.sample_rate <= SAMPLE_RATES[1]:
            raise AudioError(f"sample rate {self.sample_rate} Hz is outside {SAMPLE_RATES[0]}..{SAMPLE_RATES[1]} Hz")
        x = np.ascontiguousarray(x, dtype=np.float32)
        bad = x.size - int(np.isfinite(x).sum())
        if bad:
            raise AudioError(f"{bad} of {x.size} samples are NaN or infinite")
        object.__setattr__(self, "samples", x)
        object.__setattr__(self, "sample_rate", int(self.sample_rate))

    @property
    def channels(self) -> int:
        return self.samples.shape[0]

    @property
    def length(self) -> int:
        """Samples per channel."""
        return self.samples.shape[1]

    @property
    def seconds(self) -> float:
        return self.length / self.sample_rate

    @property
    def content_hash(self) -> str:
        """sha256 over rate, shape and sample bytes: equal audio has an equal hash, whatever its name."""

        def compute() -> str:
            h = hashlib.sha256(f"clip-1:{self.sample_rate}:{self.samples.shape}".encode())
            h.update(self.samples.astype("<f4", copy=False).tobytes())
            return h.hexdigest()

        return self.memo("content_hash", compute)

    def memo(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return ``compute()``, computed once per clip: metrics share spectrograms and alignments this way."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def with_samples(self, samples: np.ndarray, sample_rate: int | None = None) -> Clip:
        """The same id and cluster with other audio."""
        return Clip(samples, sample_rate or self.sample_rate, self.id, self.cluster)


def mono(clip: Clip) -> Clip:
    """The channel rule: the mean of all channels, ``[1, samples]``."""
    if clip.channels == 1:
        return clip
    return clip.with_samples(clip.samples.mean(axis=0, dtype=np.float64)[None, :])


def resampled_length(length: int, from_rate: int, to_rate: int) -> int:
    """Samples that ``length`` samples become: ``round(length * to / from)``, at least 1."""
    return max(1, (2 * length * to_rate + from_rate) // (2 * from_rate))


def resample(clip: Clip, sample_rate: int) -> Clip:
    """Resample by soxr (HQ) to ``sample_rate`` Hz with exactly `resampled_length` samples."""
    if sample_rate == clip.sample_rate:
        return clip
    import soxr

    y = soxr.resample(np.ascontiguousarray(clip.samples.T), clip.sample_rate, sample_rate, quality="HQ").T
    return clip.with_samples(fit_length(y, resampled_length(clip.length, clip.sample_rate, sample_rate)), sample_rate)


def fit_length(samples: np.ndarray, length: int) -> np.ndarray:
    """Cut or zero-pad ``[channels, samples]`` at the end to ``length`` samples."""
    if samples.shape[1] >= length:
        return samples[:, :length]
    return np.pad(samples, ((0, 0), (0, length - samples.shape[1])))


def loudness(clip: Clip) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4, by pyloudnorm, whose filters deviate by 0.04 to 0.08 LU).

    Raises:
        NotApplicable: shorter than one 0.4 s block, more than 5 channels, or silent (no block above the gate).
    """
    if clip.seconds <= 0.4:
        raise NotApplicable("loudness needs more than 0.4 s")
    if clip.channels > 5:
        raise NotApplicable("loudness is defined for 1 to 5 channels")
    import pyloudnorm

    value = float(pyloudnorm.Meter(clip.sample_rate).integrated_loudness(clip.samples.T.astype(np.float64)))
    if not np.isfinite(value):
        raise NotApplicable("silent: no block above the absolute gate of -70 LUFS")
    return value


def at_loudness(clip: Clip, lufs: float) -> Clip:
    """The clip scaled to an integrated loudness of ``lufs``; raises NotApplicable where `loudness` does."""
    return clip.with_samples(clip.samples * 10 ** ((lufs - loudness(clip)) / 20))


# -- reading ----------------------------------------------------------------------------------------------------------


def read_clip(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    seconds: float | None = None,
    id: str | None = None,
    cluster: str = "",
) -> Clip:
    """Read an audio file (soundfile first, PyAV for what it cannot open).

    Args:
        path: wav, flac, ogg, opus, mp3 and whatever else FFmpeg knows.
        start, seconds: read only this excerpt; it must lie within the file (one sample of rounding allowed).

    Raises:
        AudioError: absent, a directory, no permission, empty, not audio, truncated, absurd header, non-finite
            samples, shorter than `MIN_SECONDS`. The message starts with the path.
    """
    path = Path(path)
    try:
        _check_file(path)
        samples, rate = _decode(path, start, seconds)
        clip = Clip(samples, rate, path.name if id is None else id, cluster)
        if clip.seconds < MIN_SECONDS:
            raise AudioError(f"too short: {clip.length} samples at {rate} Hz, at least {MIN_SECONDS} s is needed")
        return clip
    except AudioError as error:
        raise AudioError(f"{str(path)!r}: {error}") from error


def _check_file(path: Path) -> None:
    try:
        info = path.stat()
    except OSError as error:
        raise AudioError(f"cannot be opened ({error.strerror})") from error
    if stat.S_ISDIR(info.st_mode):
        raise AudioError("is a directory, not an audio file")
    if not stat.S_ISREG(info.st_mode):
        raise AudioError("is not a regular file")
    if info.st_size == 0:
        raise AudioError("is empty (0 bytes)")
    try:
        with path.open("rb") as f:
            head = f.read(12)
            if head[:4] == b"OggS":
                _check_ogg_end(f, info.st_size)
            elif head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
                _check_data_chunk(f, info.st_size, ">" if head[:4] == b"RIFX" else "<", b"data")
            elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
                _check_data_chunk(f, info.st_size, ">", b"SSND")
            elif head[:3] == b"ID3" or head[:1] == b"\xff":
                _check_mp3_size(f, info.st_size)
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror})") from error


def _check_ogg_end(f: Any, size: int) -> None:
    """A complete Ogg stream ends with a whole page that carries the end-of-stream flag (RFC 3533)."""
    tail_size = min(size, 70_000)  # a page is at most 65,307 bytes
    f.seek(size - tail_size)
    tail = f.read()
    at = tail.rfind(b"OggS")
    while at >= 0:
        if at + 27 <= len(tail) and tail[at + 4] == 0:
            segments = tail[at + 26]
            lacing = tail[at + 27 : at + 27 + segments]
            if len(lacing) < segments or at + 27 + segments + sum(lacing) > len(tail):
                raise AudioError("truncated: the last Ogg page is cut off")
            if not tail[at + 5] & 4:
                raise AudioError("truncated: the last Ogg page lacks the end-of-stream flag")
            return
        at = tail.rfind(b"OggS", 0, at)
    raise AudioError("truncated or damaged: no Ogg page found at the end")


def _check_data_chunk(f: Any, size: int, order: str, data: bytes) -> None:
    """Wav and AIFF: compare the data chunk's promise with the bytes there are (0xFFFFFFFF: 'until the end').

    RF64 puts the length of a data chunk beyond 4 GB into a chunk ``ds64`` (EBU Tech 3306).
    """
    at = 12
    long_length = 0
    while at + 8 <= size:
        f.seek(at)
        name, length = struct.unpack(f"{order}4sI", f.read(8))
        if name == b"ds64" and at + 24 <= size:
            long_length = struct.unpack("<QQ", f.read(16))[1]
        if name == data:
            there = size - at - 8
            if length == 0xFFFFFFFF:
                length = long_length or there
            if there == 0 or length == 0:
                raise AudioError(f"no audio data: the header promises {length:,} bytes, the file holds {there:,}")
            if length > there:
                raise AudioError(f"truncated: the header promises {length:,} bytes of audio, the file holds {there:,}")
            return
        at += 8 + length + length % 2
    raise AudioError(f"truncated or damaged: no {data.decode()} chunk")


def _check_mp3_size(f: Any, size: int) -> None:
    """The Xing frame that most encoders put first says how many bytes follow; without one nothing can be said."""
    f.seek(0)
    head = f.read(10)
    start = 10 + sum((b & 127) << (21 - 7 * i) for i, b in enumerate(head[6:])) if head[:3] == b"ID3" else 0
    f.seek(start)
    frame = f.read(64)
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:  # sync word, layer III
        return
    mpeg1, mono = frame[1] & 8, frame[3] >> 6 == 3
    at = 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))
    name, flags = struct.unpack(">4sI", frame[at : at + 8])
    if name not in (b"Xing", b"Info") or not flags & 2:
        return
    at += 12 if flags & 1 else 8
    promised, there = struct.unpack(">I", frame[at : at + 4])[0], size - start
    if promised > there:
        raise AudioError(f"truncated: the MP3 header promises {promised:,} bytes, the file holds {there:,}")


def _decode(path: Path, start: float, seconds: float | None) -> tuple[np.ndarray, int]:
    import soundfile

    try:
        with soundfile.SoundFile(_name(path)) as f:
            rate, frames = f.samplerate, f.frames
            _check_header(rate, f.channels)
            first, count = _excerpt(frames, rate, start, seconds)
            f.seek(first)
            x = f.read(count, dtype="float32", always_2d=True)
            if len(x) == 0:
                raise AudioError("no audio data")
            # An MP3 does not say its length: what libsndfile announces is an estimate, so a short read is no damage.
            if len(x) < count and f.format != "MP3":
                raise AudioError(f"truncated: {len(x):,} of {count:,} samples could be decoded")
            return x.T, rate
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: the name ends in .raw, so it asks for a format
        return _decode_av(path, start, seconds, first_error=str(getattr(error, "error_string", error)))
    except MemoryError as error:
        raise AudioError("absurd header: it promises more audio than fits in memory") from error


def _decode_av(path: Path, start: float, seconds: float | None, first_error: str) -> tuple[np.ndarray, int]:
    import av

    parts = []
    packets = 0
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:  # no name is an address
            if not container.streams.audio:
                raise AudioError(f"not audio ({first_error.rstrip('.')}; FFmpeg finds no audio stream)")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise AudioError("damaged or of an unknown kind: FFmpeg has no decoder for its audio stream")
            rate = int(stream.rate or 0)
            channels = stream.codec_context.channels
            _check_header(rate, channels)
            to_float = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=rate)
            for packet in container.demux(stream):
                packets += packet.size > 0
                for frame in packet.decode():
                    parts += [f.to_ndarray() for f in to_float.resample(frame)]
            # Elsewhere FFmpeg estimates the length; packets outside an edit list are not missed.
            exact = container.format.name == "flac" or packets < stream.frames
            declared = round(float((stream.duration or 0) * (stream.time_base or 0)) * rate) if exact else 0
            parts += [f.to_ndarray() for f in to_float.resample(None)]
    except (av.FFmpegError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise AudioError(f"not readable as audio ({first_error.rstrip('.')}; FFmpeg: {why})") from error
    if not parts:
        raise AudioError("no audio data")
    x = np.concatenate(parts, axis=1)
    if x.shape[1] < declared:
        raise AudioError(f"truncated: {x.shape[1]:,} of {declared:,} samples could be decoded")
    first, count = _excerpt(x.shape[1], rate, start, seconds)
    return x[:, first : first + count], rate


def _check_header(rate: int, channels: int) -> None:
    if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        raise AudioError(f"absurd header: sample rate {rate} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"absurd header: {channels} channels")


def _excerpt(frames: int, rate: int, start: float, seconds: float | None) -> tuple[int, int]:
    if frames <= 0:
        raise AudioError("no audio data")
    if not (math.isfinite(start) and (seconds is None or (math.isfinite(seconds) and seconds > 0))):
        raise AudioError(f"excerpt start={start}, seconds={seconds}: must be finite, and seconds above 0")
    first = round(start * rate)
    if not 0 <= first < frames:
        raise AudioError(f"excerpt starts at {start} s but the file ends at {frames / rate:.3f} s")
    count = frames - first if seconds is None else round(seconds * rate)
    if first + count > frames + 1:
        stop, end = (first + count) / rate, frames / rate
        raise AudioError(f"excerpt {start}..{stop:.3f} s reaches beyond the end at {end:.3f} s")
    return first, min(count, frames - first)


def write_clip(clip: Clip, path: str | os.PathLike[str]) -> None:
    """Write float32 wav (exact) or, by suffix, any format of soundfile (flac and ogg quantise)."""
    import soundfile

    subtype = "FLOAT" if str(path).lower().endswith(".wav") else None
    soundfile.write(_name(path), clip.samples.T, clip.sample_rate, subtype=subtype)


def _name(path: str | os.PathLike[str]) -> str | bytes:
    """A file name as soundfile takes it, also where it is not valid UTF-8."""
    return str(path) if os.name == "nt" else os.fsencode(path)


# -- in blocks: memory does not grow with the length -------------------------------------------------------------------

BLOCK_SAMPLES = 1 << 17
"""Samples per channel that are read or written at a time."""

MAX_WAV_BYTES = 0xFFFF_FFFF - 1024
"""Audio that a plain wav header can announce; what is longer gets an RF64 header (EBU Tech 3306)."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A recording that passes once, block by block.

    Attributes:
        sample_rate: in Hz. channels: of every block.
        blocks: iterator over float32 ``[channels, samples]``, of any lengths, full scale +-1.
    """

    sample_rate: int
    channels: int
    blocks: Iterator[np.ndarray]


def read_blocks(path: str | os.PathLike[str], *, name: str | None = None) -> Blocks:
    """`read_clip` of a whole file in blocks: the same samples, and the same errors, some only when the end is reached.

    Memory does not grow with the length for what soundfile opens (wav, flac, ogg, mp3); the rest is decoded whole.

    Args:
        name: what messages call the file; None takes its path.

    Raises:
        AudioError: where `read_clip` does, here or in the iterator.
    """
    import soundfile

    path = Path(path)
    shown = repr(str(path)) if name is None else name
    with _naming(shown):
        _check_file(path)
        try:
            file = soundfile.SoundFile(_name(path))
        except (soundfile.LibsndfileError, TypeError):
            whole, rate = _decode(path, 0.0, None)
            return Blocks(rate, len(whole), _sound(iter([whole]), rate, len(whole), shown))
        _check_header(file.samplerate, file.channels)
        _excerpt(file.frames, file.samplerate, 0.0, None)
        return Blocks(
            file.samplerate, file.channels, _sound(_decoded(file, path), file.samplerate, file.channels, shown)
        )


def _decoded(file: Any, path: Path) -> Iterator[np.ndarray]:
    import soundfile

    done = 0
    with file:
        frames = file.frames
        while done < frames:
            try:
                x = file.read(min(BLOCK_SAMPLES, frames - done), dtype="float32", always_2d=True)
            except soundfile.LibsndfileError:
                yield _decode(path, 0.0, None)[0][:, done:]  # FFmpeg reads it, or says what is wrong
                return
            if len(x) == 0:
                break
            done += len(x)
            yield x.T
        if done == 0:
            raise AudioError("no audio data")
        if done < frames and file.format != "MP3":  # as in _decode
            raise AudioError(f"truncated: {done:,} of {frames:,} samples could be decoded")


def _sound(blocks: Iterator[np.ndarray], rate: int, channels: int, shown: str) -> Iterator[np.ndarray]:
    """The blocks, with the checks that a `Clip` makes of its samples."""
    length = bad = 0
    with _naming(shown):
        for x in blocks:
            length += x.shape[1]
            bad += x.size - int(np.isfinite(x).sum())
            if not bad:
                yield x
        if bad:
            raise AudioError(f"{bad} of {length * channels} samples are NaN or infinite")
        if length < MIN_SECONDS * rate:
            raise AudioError(f"too short: {length} samples at {rate} Hz, at least {MIN_SECONDS} s is needed")


@contextmanager
def _naming(shown: str) -> Iterator[None]:
    try:
        yield
    except AudioError as error:
        raise AudioError(f"{shown}: {error}") from error


def mono_blocks(given: Blocks) -> Blocks:
    """`mono` in blocks: the same samples."""
    if given.channels == 1:
        return given
    mixed = (x.mean(axis=0, dtype=np.float64)[None, :].astype(np.float32) for x in given.blocks)
    return Blocks(given.sample_rate, 1, mixed)


def resample_blocks(given: Blocks, sample_rate: int) -> Blocks:
    """`resample` in blocks: the same samples, `resampled_length` of them."""
    if sample_rate == given.sample_rate:
        return given
    return Blocks(sample_rate, given.channels, _resampled(given, sample_rate))


def _resampled(given: Blocks, sample_rate: int) -> Iterator[np.ndarray]:
    import soxr

    stream = soxr.ResampleStream(given.sample_rate, sample_rate, given.channels, dtype="float32", quality="HQ")
    length = done = 0
    held = np.empty((given.channels, 0), dtype=np.float32)  # the end may have to be cut or padded by a sample
    for x in given.blocks:
        length += x.shape[1]
        y = stream.resample_chunk(np.ascontiguousarray(x.T)).T
        if y.shape[1]:
            yield held
            done += held.shape[1]
            held = y
    rest = stream.resample_chunk(np.empty((0, given.channels), dtype=np.float32), last=True).T
    end = np.concatenate([held, rest], axis=1)
    yield fit_length(end, resampled_length(length, given.sample_rate, sample_rate) - done)


def check_audio_name(path: str | os.PathLike[str]) -> None:
    """Refuse an output name whose suffix is no format that `write_blocks` knows.

    Raises:
        UsageError: the message lists some that are.
    """
    import soundfile

    suffix = Path(path).suffix
    if suffix[1:].upper() not in set(soundfile.available_formats()) - {"RAW"}:
        raise UsageError(f"{str(path)!r}: no audio format is called {suffix!r}; end the name in .wav, .flac or .ogg")


def write_blocks(
    target: str | os.PathLike[str] | BinaryIO,
    blocks: Iterable[np.ndarray],
    *,
    sample_rate: int,
    channels: int,
    samples: int,
) -> None:
    """Write a recording of known length block by block.

    A name that ends in .wav and a binary stream get float32 wav (exact, the same bytes every time); any other suffix
    of soundfile is written by it (flac and ogg quantise).

    Args:
        blocks: float ``[channels, samples]``, ``samples`` in all.

    Raises:
        ContractError: blocks of other channels, or of another length in all.
        AudioError: a format that cannot hold this audio. UsageError: a suffix that is no format.
    """
    import soundfile

    pieces = _pieces(blocks, channels, samples)
    if not isinstance(target, (str, os.PathLike)):
        _write_wav(target, pieces, sample_rate, channels, samples)
    elif Path(target).suffix.lower() == ".wav":
        with open(target, "wb") as out:
            _write_wav(out, pieces, sample_rate, channels, samples)
    else:
        check_audio_name(target)
        try:
            with soundfile.SoundFile(_name(target), "w", sample_rate, channels) as file:
                for x in pieces:
                    file.write(x.T)
        except soundfile.LibsndfileError as error:
            what = f"{channels} channel(s) at {sample_rate} Hz"
            raise AudioError(f"{str(target)!r}: this format takes no {what} ({error}); .wav takes all") from error


def _pieces(blocks: Iterable[np.ndarray], channels: int, samples: int) -> Iterator[np.ndarray]:
    """Blocks of at most `BLOCK_SAMPLES`: libsndfile's Vorbis encoder overflows its stack on long ones."""
    done = 0
    for x in blocks:
        done += x.shape[1]
        if len(x) != channels or done > samples:
            raise ContractError(f"blocks of {len(x)} channels, {done} samples so far: expected {channels}, {samples}")
        for start in range(0, x.shape[1], BLOCK_SAMPLES):
            yield x[:, start : start + BLOCK_SAMPLES]
    if done < samples:
        raise ContractError(f"the blocks hold {done} samples, expected {samples}")


def _write_wav(out: BinaryIO, pieces: Iterable[np.ndarray], rate: int, channels: int, samples: int) -> None:
    """IEEE float wav with its length in the header from the start, so that it can go down a pipe.

    libsndfile would put the time of writing into its PEAK chunk.
    """
    size = 4 * channels * samples
    form = struct.pack("<4sIHHIIHHH", b"fmt ", 18, 3, channels, rate, 4 * channels * rate, 4 * channels, 32, 0)
    if size <= MAX_WAV_BYTES:
        fact = struct.pack("<4sII", b"fact", 4, samples)
        head = struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(fact) + 8 + size, b"WAVE") + form + fact
        head += struct.pack("<4sI", b"data", size)
    else:
        full = 0xFFFF_FFFF
        fact = struct.pack("<4sII", b"fact", 4, full)
        riff = 4 + 36 + len(form) + len(fact) + 8 + size
        ds64 = struct.pack("<4sIQQQI", b"ds64", 28, riff, size, samples, 0)
        head = struct.pack("<4sI4s", b"RF64", full, b"WAVE") + ds64 + form + fact + struct.pack("<4sI", b"data", full)
    out.write(head)
    for x in pieces:
        out.write(np.ascontiguousarray(x.T, dtype="<f4").tobytes())


# -- preparation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepare:
    """What a task does to every clip before any system sees it. Part of the run's identity.

    Attributes:
        sample_rate: resample to this rate in Hz; None keeps each clip's own.
        channels: "mean" (the channel rule) or "keep".
        seconds: cut or zero-pad at the end to this length; None keeps each clip's own.
    """

    sample_rate: int | None = None
    channels: str = "mean"
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.channels not in ("mean", "keep"):
            raise AudioError(f"channels={self.channels!r}: the channel rule is 'mean' or 'keep'")
        if self.sample_rate is not None and not SAMPLE_RATES[0] <= self.sample_rate <= SAMPLE_RATES[1]:
            raise AudioError(f"sample_rate={self.sample_rate}: outside {SAMPLE_RATES[0]}..{SAMPLE_RATES[1]} Hz")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds >= MIN_SECONDS):
            raise AudioError(f"seconds={self.seconds}: must be finite and at least {MIN_SECONDS} s")

    def __call__(self, clip: Clip) -> Clip:
        if self.channels == "mean":
            clip = mono(clip)
        if self.sample_rate:
            clip = resample(clip, self.sample_rate)
        if self.seconds:
            clip = clip.with_samples(fit_length(clip.samples, round(self.seconds * clip.sample_rate)))
        return clip

    def describe(self) -> str:
        rate = f"{self.sample_rate} Hz" if self.sample_rate else "native rate"
        length = f"cut or zero-padded to {self.seconds:g} s" if self.seconds else "whole length"
        return f"{'mean of channels' if self.channels == 'mean' else 'channels kept'}, {rate}, {length}"

    def identity(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"resampler": "soxr-HQ"}
