"""Opus and MP3 by FFmpeg's libopus and libmp3lame, through PyAV. The rate is that of the packets themselves."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalkit.audio import Clip
from evalkit.errors import ContractError, NotApplicable, UsageError
from evalkit.registry import system
from evalkit.tokens import Tokens

OPUS_FRAMES_MS = (2.5, 5.0, 10.0, 20.0, 40.0, 60.0)


@system(
    "opus",
    licence="BSD-3-Clause",
    requires=("av",),
    summary="Opus (libopus) at a constant rate, meant for 6 kbps on",
    citation="Valin, Vos, Terriberry (2012), Definition of the Opus audio codec, RFC 6716",
)
@dataclass(frozen=True)
class Opus:
    """libopus at 48 kHz, mono or stereo.

    Constant rate by default, so that every clip is coded at the rate that the spec names; ``vbr=on`` lets libopus
    spread its bits over time, which sounds better and is what most files use. The rate counts Opus packets, their
    table-of-contents bytes included; what an Ogg file adds (pages, headers, packet lengths) is ``container_bits``,
    measured by writing one. Decoding is from the stored packets and the 19-byte header, by libopus in float; FFmpeg
    drops the encoder's pre-skip (312 samples at 48 kHz), so the output is aligned and has the clip's exact length.

    Args:
        kbps: kilobits per second, all channels together, 0.5 to 510. libopus rounds to whole bytes a frame.
        application: "audio", "voip" or "lowdelay".
        complexity: 0 to 10.
        frame_ms: 2.5, 5, 10, 20, 40 or 60.
        vbr: "off", "on" or "constrained".
    """

    parameters = 0

    kbps: float
    application: str = "audio"
    complexity: int = 10
    frame_ms: float = 20.0
    vbr: str = "off"

    sample_rate = 48_000

    def __post_init__(self) -> None:
        if not 0.5 <= self.kbps <= 510:
            raise UsageError(f"opus:{self.kbps:g}: the rate must be 0.5 to 510 kbps")
        _one_of("opus@application", self.application, ("audio", "voip", "lowdelay"))
        _one_of("opus@frame_ms", self.frame_ms, OPUS_FRAMES_MS)
        _one_of("opus@vbr", self.vbr, ("off", "on", "constrained"))
        if not 0 <= self.complexity <= 10:
            raise UsageError(f"opus@complexity={self.complexity}: must be 0 to 10")

    def encode(self, clip: Clip) -> Tokens:
        options = {
            "application": self.application,
            "compression_level": str(self.complexity),
            "frame_duration": f"{self.frame_ms:g}",
            "vbr": self.vbr,
        }
        packets, header, file_bytes = _encode(clip, "libopus", "ogg", "flt", round(self.kbps * 1000), options)
        return _byte_tokens(clip, packets, file_bytes, header)

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        import av

        header = tokens.side["header"].tobytes()
        decoder: Any = av.CodecContext.create("libopus", "r")
        decoder.sample_rate = self.sample_rate
        decoder.extradata = header
        decoder.layout = "stereo" if header[9] == 2 else "mono"
        decoder.options = {"request_sample_fmt": "flt"}
        return Clip(_exact(_decode(decoder, tokens), 0, tokens.samples), tokens.sample_rate)


MP3_DELAY = 576 + 528 + 1
"""Samples: LAME's encoder delay and that of the decoder's filter bank (LAME technical FAQ), at every sample rate."""

MP3_RATES = {
    8: 8_000,
    16: 16_000,
    24: 16_000,
    32: 22_050,
    40: 24_000,
    48: 32_000,
    56: 32_000,
    64: 44_100,
    80: 44_100,
    96: 44_100,
    112: 44_100,
    128: 44_100,
    160: 44_100,
    192: 44_100,
    224: 44_100,
    256: 44_100,
    320: 44_100,
}
"""The sample rate LAME itself picks for a constant mono rate (lame.c: optimum_bandwidth x 1.5, optimum_samplefreq)."""

MP3_KBPS = {
    "MPEG-1": (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    "MPEG-2": (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    "MPEG-2.5": (8, 16, 24, 32, 40, 48, 56, 64),
}
MP3_VERSIONS = {
    44_100: "MPEG-1",
    48_000: "MPEG-1",
    32_000: "MPEG-1",
    22_050: "MPEG-2",
    24_000: "MPEG-2",
    16_000: "MPEG-2",
    11_025: "MPEG-2.5",
    12_000: "MPEG-2.5",
    8_000: "MPEG-2.5",
}


@system(
    "mp3",
    licence="LGPL-2.1-or-later",
    requires=("av",),
    summary="MP3 (LAME) at a constant rate from 8 kbps",
    citation="ISO/IEC 11172-3 (1993) and 13818-3 (1998); LAME, lame.sourceforge.io",
)
@dataclass(frozen=True)
class Mp3:
    """LAME at a constant bit rate with bit reservoir, mono or (joint) stereo.

    Low rates exist only at low sample rates (8 kbps needs MPEG-2 or 2.5), so the sample rate is part of the codec: by
    default the one that LAME itself would choose for a mono file of that rate (`MP3_RATES`; 8 kbps: 8 kHz). The rate
    counts whole MP3 frames, headers included, also those that flush the encoder at the end; what a file adds (the
    Xing/LAME frame) is ``container_bits``, measured by writing one. The 1105 samples of encoder and decoder delay
    are dropped, so the output is aligned and has the clip's exact length.

    Args:
        kbps: kilobits per second, all channels together: 8, 16, 24, 32, 40, 48, 56, 64, ... 320.
        sample_rate: in Hz, one of the nine MPEG rates; None takes LAME's choice.
        quality: LAME's algorithm quality, 0 (slow) to 9 (fast).
    """

    parameters = 0

    kbps: int
    sample_rate: int | None = None
    quality: int = 2

    def __post_init__(self) -> None:
        rate = MP3_RATES.get(self.kbps, 22_050) if self.sample_rate is None else self.sample_rate
        _one_of("mp3@sample_rate", rate, tuple(sorted(MP3_VERSIONS)))
        version = MP3_VERSIONS[rate]
        if self.kbps not in MP3_KBPS[version]:
            known = ", ".join(map(str, MP3_KBPS[version]))
            raise UsageError(f"mp3:{self.kbps}: no such rate in {version} ({rate} Hz); there are {known} kbps")
        if not 0 <= self.quality <= 9:
            raise UsageError(f"mp3@quality={self.quality}: must be 0 to 9")
        object.__setattr__(self, "sample_rate", rate)

    def encode(self, clip: Clip) -> Tokens:
        options = {"compression_level": str(self.quality), "reservoir": "1"}
        packets, _, file_bytes = _encode(clip, "libmp3lame", "mp3", "fltp", self.kbps * 1000, options)
        return _byte_tokens(clip, packets, file_bytes)

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        import av

        y = _decode(av.CodecContext.create("mp3float", "r"), tokens)
        return Clip(_exact(y, MP3_DELAY, tokens.samples), tokens.sample_rate)


# -- PyAV -------------------------------------------------------------------------------------------------------------


def _encode(
    clip: Clip, codec: str, container: str, sample_format: str, bit_rate: int, options: dict[str, str]
) -> tuple[list[bytes], bytes, int]:
    """Encode and mux in memory: the packets, the codec header, and the size of the file in bytes."""
    import av

    if clip.channels > 2:
        raise NotApplicable(f"{codec} codes 1 or 2 channels here, not {clip.channels}; use the channel rule 'mean'")
    layout = "mono" if clip.channels == 1 else "stereo"
    file = io.BytesIO()
    packets: list[bytes] = []
    # bitexact keeps library versions and random serial numbers out of the file
    muxing = {"fflags": "+bitexact"} | ({"id3v2_version": "0"} if container == "mp3" else {})
    with av.open(file, "w", format=container, options=muxing) as out:
        stream: Any = out.add_stream(codec, rate=clip.sample_rate, options=options)
        stream.layout = layout
        stream.format = sample_format
        stream.bit_rate = bit_rate
        encoder = stream.codec_context
        encoder.open()
        size = encoder.frame_size
        for start in range(0, clip.length, size):
            block = clip.samples[:, start : start + size]
            if sample_format == "flt":
                block = block.T.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format=sample_format, layout=layout)
            frame.sample_rate = clip.sample_rate
            frame.pts = start
            packets += _mux(out, encoder.encode(frame), stream)
        packets += _mux(out, encoder.encode(None), stream)
        header = bytes(encoder.extradata or b"")
    return packets, header, len(file.getvalue())


def _mux(out: Any, packets: list[Any], stream: Any) -> list[bytes]:
    data = []
    for packet in packets:
        data.append(bytes(packet))
        packet.stream = stream
        out.mux(packet)
    return data


def _byte_tokens(clip: Clip, packets: list[bytes], file_bytes: int, header: bytes = b"") -> Tokens:
    data = b"".join(packets)
    # Packet lengths and the header are what a container is for: their cost is within container_bits.
    side = {"packet_sizes": np.array([len(p) for p in packets], dtype=np.int64)}
    if header:
        side["header"] = np.frombuffer(header, dtype=np.uint8)
    return Tokens(
        np.frombuffer(data, dtype=np.uint8)[None, :],
        (256,),
        len(data) / clip.seconds,
        clip.length,
        clip.sample_rate,
        container_bits=8.0 * (file_bytes - len(data)),
        side=side,
    )


def _decode(decoder: Any, tokens: Tokens) -> np.ndarray:
    import av

    data = tokens.codes[0].tobytes()
    parts: list[np.ndarray] = []
    at = 0
    for size in tokens.side["packet_sizes"].tolist():
        packet = av.Packet(data[at : at + size])
        at += size
        parts += [_planar(frame) for frame in decoder.decode(packet)]
    parts += [_planar(frame) for frame in decoder.decode(None)]
    if not parts:
        raise ContractError(f"{decoder.name} decoded nothing from {len(data)} bytes")
    return np.concatenate(parts, axis=1)


def _planar(frame: Any) -> np.ndarray:
    x = frame.to_ndarray()
    if frame.format.is_packed:
        x = x.reshape(-1, frame.layout.nb_channels).T
    if np.issubdtype(x.dtype, np.integer):
        x = x / np.float32(1 << (8 * x.dtype.itemsize - 1))
    return np.asarray(x, dtype=np.float32)


def _exact(y: np.ndarray, delay: int, length: int) -> np.ndarray:
    if y.shape[1] < delay + length:
        raise ContractError(f"the packets decode to {y.shape[1]} samples, {delay + length} are needed")
    return y[:, delay : delay + length]


def _one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in known)
        raise UsageError(
            f"{name}={value:g}: must be one of {shown}"
            if isinstance(value, float)
            else f"{name}={value}: must be one of {shown}"
        )
