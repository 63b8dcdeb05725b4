"""Token files (``.tok``): any `Tokens` of any system as bytes. The format, to the byte: docs/token-files.md.

::

    magic, version, length of the header | header (JSON) | codes, bit-packed | side arrays | CRC-32 of all before
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from evalkit.errors import ContractError, EvalkitError, UsageError
from evalkit.output import replacing
from evalkit.tokens import Tokens

MAGIC = b"\x89EKTOK\r\n"
"""As PNG's: a byte that is no text, and a line end that a transfer in text mode would change."""

VERSION = 1
PREFIX = struct.Struct("<8sHI")
CRC = struct.Struct("<I")

MAX_HEADER = 1 << 20
MAX_COUNT = 1 << 48
"""Of frames, samples, Hz and entries of side arrays: far beyond any recording, and safe in 64-bit arithmetic."""

SIDE_DTYPES = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16")
"""Plain numbers, little-endian. Nothing that could hold an object."""

READ_BYTES = 1 << 20
PACK_BITS = 1 << 22
"""Bits that are packed or unpacked at a time (a byte each while that is done)."""


@dataclass(frozen=True)
class TokenFile:
    """What a token file holds.

    Attributes:
        tokens: as they were written; side arrays are little-endian and cannot be written into.
        system: full name of the system that made them, with every default written out; "" where not said.
        fingerprint: digest of that system's weights, or None where it has none.
        clip: id of the clip, "" where not said.
        bytes: size of the file.
    """

    tokens: Tokens
    system: str
    fingerprint: str | None
    clip: str
    bytes: int


def write_tokens(
    target: str | os.PathLike[str] | BinaryIO,
    tokens: Tokens,
    *,
    system: str = "",
    fingerprint: str | None = None,
    clip: str = "",
) -> int:
    """Write a token file and return its size in bytes. A named file appears whole or not at all.

    Args:
        target: a path, or a binary stream.
        system, fingerprint, clip: as in `TokenFile`.

    Raises:
        ContractError: tokens that the format cannot hold: a side array that is not plain numbers, a codebook of more
            than 2**64 codes, a header of more than 1 MiB.
        UsageError: a path that cannot be written.
    """
    data = tokens_to_bytes(tokens, system=system, fingerprint=fingerprint, clip=clip)
    if isinstance(target, (str, os.PathLike)):
        with replacing(target) as path:
            path.write_bytes(data)
    else:
        target.write(data)
    return len(data)


def read_tokens(source: str | os.PathLike[str] | BinaryIO, *, name: str | None = None) -> TokenFile:
    """Read a token file.

    Nothing is allocated for what a header promises, only for bytes that are there.

    Args:
        source: a path, or a binary stream that ends where the file does.
        name: what messages call it; None takes the path.

    Raises:
        EvalkitError: absent, not a token file, of another version, truncated, damaged, or written wrongly.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _read(source, name or "token stream")
    shown = repr(os.fspath(source)) if name is None else name
    if Path(source).is_dir():
        raise UsageError(f"{shown}: is a directory, not a token file")
    try:
        with open(source, "rb") as f:
            return _read(f, shown)
    except OSError as error:
        raise UsageError(f"{shown}: cannot be read ({error.strerror})") from error


def tokens_to_bytes(tokens: Tokens, *, system: str = "", fingerprint: str | None = None, clip: str = "") -> bytes:
    """The content of a token file; arguments and errors as for `write_tokens`."""
    arrays = [_plain(key, value) for key, value in tokens.side.items()]
    header = {
        "sizes": list(tokens.sizes),
        "frames": tokens.codes.shape[1],
        "frame_rate": float(tokens.frame_rate),
        "samples": _count("samples", tokens.samples),
        "sample_rate": _count("sample_rate", tokens.sample_rate),
        "side_bits": float(tokens.side_bits),
        "container_bits": float(tokens.container_bits),
        "side": [
            {"name": key, "dtype": a.dtype.str, "shape": list(a.shape)}
            for key, a in zip(tokens.side, arrays, strict=True)
        ],
        "system": system,
        "fingerprint": fingerprint,
        "clip": clip,
    }
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(text) > MAX_HEADER:
        raise ContractError(f"tokens with a header of {len(text):,} bytes: a token file's has {MAX_HEADER:,} at most")
    if any(k > 1 << 64 for k in tokens.sizes):
        raise ContractError("tokens with a codebook of more than 2**64 codes: a token file holds none such")
    parts = [PREFIX.pack(MAGIC, VERSION, len(text)), text, *_packed(tokens), *(a.tobytes() for a in arrays)]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return b"".join([*parts, CRC.pack(crc)])


def tokens_from_bytes(data: bytes, *, name: str = "token file") -> TokenFile:
    """The inverse of `tokens_to_bytes`; errors as for `read_tokens`."""
    return _read(io.BytesIO(data), name)


# -- reading ----------------------------------------------------------------------------------------------------------


def _read(stream: BinaryIO, name: str) -> TokenFile:
    def fault(what: str) -> EvalkitError:
        return EvalkitError(f"{name}: {what}")

    again = "get or write the file again"
    start = _exactly(stream, PREFIX.size)
    if not start:
        raise fault("is empty (0 bytes), not a token file")
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise fault(f"not a token file (it begins with {start[:8]!r}); `evalkit encode` writes them")
    if len(start) < PREFIX.size:
        raise fault(f"truncated: {len(start)} bytes of the {PREFIX.size} that come before the header; {again}")
    _, version, header_bytes = PREFIX.unpack(start)
    if version != VERSION:
        raise fault(f"a token file of version {version}, this evalkit reads version {VERSION}: use one that reads it")
    if header_bytes > MAX_HEADER:
        raise fault(f"damaged: a header of {header_bytes:,} bytes, {MAX_HEADER:,} are the most; {again}")
    text = _exactly(stream, header_bytes)
    if len(text) < header_bytes:
        raise fault(f"truncated: {len(text):,} of {header_bytes:,} bytes of the header; {again}")
    try:
        header = _Header.parse(text)
    except _Wrong as wrong:
        raise fault(f"damaged: its header {wrong}; {again}") from wrong
    wanted = header.code_bytes + header.side_bytes + CRC.size
    rest = _exactly(stream, wanted)
    if len(rest) < wanted:
        raise fault(
            f"truncated or damaged: the header promises {wanted:,} bytes more, {len(rest):,} are there; {again}"
        )
    if stream.read(1):
        raise fault(f"damaged: it goes on after the {wanted:,} bytes that the header promises; {again}")
    payload = memoryview(rest)[: -CRC.size]
    if zlib.crc32(payload, zlib.crc32(start + text)) != CRC.unpack(rest[-CRC.size :])[0]:
        raise fault(f"damaged: its checksum (CRC-32) does not match; {again}")
    try:
        tokens = header.tokens(payload)
    except (ContractError, _Wrong) as wrong:
        raise fault(f"written wrongly, its checksum matches: {wrong}") from wrong
    size = len(start) + len(text) + len(rest)
    return TokenFile(tokens, header.system, header.fingerprint, header.clip, size)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    """``count`` bytes, or fewer where the stream ends: in small reads, since a large one allocates what it asks for."""
    parts = []
    while count > 0:
        part = stream.read(min(count, READ_BYTES))
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class _Wrong(Exception):
    """What is wrong with a header or a payload, to follow the words 'its header'."""


@dataclass(frozen=True)
class _Header:
    """The checked header."""

    sizes: tuple[int, ...]
    frames: int
    frame_rate: float
    samples: int
    sample_rate: int
    side_bits: float
    container_bits: float
    side: tuple[tuple[str, str, tuple[int, ...]], ...]
    system: str
    fingerprint: str | None
    clip: str

    @staticmethod
    def parse(text: bytes) -> _Header:
        def refuse(constant: str) -> None:
            raise ValueError(constant)

        try:
            value = json.loads(text.decode("ascii"), parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            raise _Wrong("is not JSON") from error
        if not isinstance(value, dict):
            raise _Wrong("is not a JSON object")
        sizes = _get(value, "sizes", list)
        if not all(type(k) is int and 2 <= k <= 1 << 64 for k in sizes):
            raise _Wrong("has codebook sizes that are not integers of 2 to 2**64")
        side = []
        for entry in _get(value, "side", list):
            if not isinstance(entry, dict):
                raise _Wrong("describes a side array by something else than an object")
            dtype, shape = _get(entry, "dtype", str), _get(entry, "shape", list)
            if dtype not in SIDE_DTYPES:
                raise _Wrong(f"has a side array of type {dtype[:20]!r}; known are {', '.join(SIDE_DTYPES)}")
            if len(shape) > 32 or not all(type(n) is int and 0 <= n <= MAX_COUNT for n in shape):
                raise _Wrong("has a side array of an impossible shape")
            side.append((_get(entry, "name", str), dtype, tuple(shape)))
        if len({key for key, _, _ in side}) < len(side):
            raise _Wrong("names two side arrays alike")
        fingerprint = value.get("fingerprint")
        if not (fingerprint is None or isinstance(fingerprint, str)):
            raise _Wrong("has a fingerprint that is not text")
        return _Header(
            tuple(sizes),
            _get_count(value, "frames"),
            _get_number(value, "frame_rate"),
            _get_count(value, "samples"),
            _get_count(value, "sample_rate"),
            _get_number(value, "side_bits"),
            _get_number(value, "container_bits"),
            tuple(side),
            _get(value, "system", str),
            fingerprint,
            _get(value, "clip", str),
        )

    @property
    def code_bytes(self) -> int:
        return -(-self.frames * sum(map(_width, self.sizes)) // 8)

    @property
    def side_bytes(self) -> int:
        return sum(_entries(shape) * np.dtype(dtype).itemsize for _, dtype, shape in self.side)

    def tokens(self, payload: memoryview) -> Tokens:
        """The tokens of ``code_bytes + side_bytes`` bytes."""
        codes = _unpacked(payload[: self.code_bytes], self.sizes, self.frames)
        at = self.code_bytes
        side = {}
        for key, dtype, shape in self.side:
            end = at + _entries(shape) * np.dtype(dtype).itemsize
            if dtype == "|b1" and max(payload[at:end], default=0) > 1:
                raise _Wrong(f"side array {key!r} is of truth values and holds others than 0 and 1")
            try:
                side[key] = np.frombuffer(payload[at:end], dtype=dtype).reshape(shape)
            except ValueError as error:  # an empty array whose other dimensions are too large for numpy
                raise _Wrong(f"side array {key!r} has an impossible shape") from error
            at = end
        return Tokens(
            codes,
            self.sizes,
            self.frame_rate,
            self.samples,
            self.sample_rate,
            side_bits=self.side_bits,
            container_bits=self.container_bits,
            side=side,
        )


def _get(value: dict[str, Any], key: str, kind: type) -> Any:
    found = value.get(key)
    if type(found) is not kind:
        raise _Wrong(f"has no {key!r} of type {kind.__name__}")
    return found


def _get_count(value: dict[str, Any], key: str) -> int:
    found = _get(value, key, int)
    if not 0 <= found <= MAX_COUNT:
        raise _Wrong(f"promises an absurd number of {key}")
    return found


def _get_number(value: dict[str, Any], key: str) -> float:
    found = value.get(key)
    if type(found) not in (int, float):
        raise _Wrong(f"has no number {key!r}")
    try:
        return float(found)  # type: ignore[arg-type]
    except OverflowError as error:
        raise _Wrong(f"has an absurd {key!r}") from error


def _entries(shape: tuple[int, ...]) -> int:
    """Python's product: numpy's would wrap around."""
    count = 1
    for n in shape:
        count *= n
    return count


# -- writing ----------------------------------------------------------------------------------------------------------


def _plain(key: str, value: np.ndarray) -> np.ndarray:
    array = np.asarray(value)
    little = np.array(array, dtype=array.dtype.newbyteorder("<"), order="C") if array.dtype.kind in "biufc" else array
    if little.dtype.str not in SIDE_DTYPES:
        raise ContractError(
            f"side array {key!r} is of type {array.dtype}: a token file holds plain numbers ({', '.join(SIDE_DTYPES)})"
        )
    return little


def _count(key: str, value: int) -> int:
    if int(value) != value or value > MAX_COUNT:
        raise ContractError(f"{key}={value}: a token file holds whole numbers up to {MAX_COUNT:,}")
    return int(value)


# -- bits -------------------------------------------------------------------------------------------------------------


def _width(size: int) -> int:
    """Bits of one code: ceil(log2 K)."""
    return (size - 1).bit_length()


def _chunks(sizes: tuple[int, ...], frames: int) -> Iterator[tuple[int, int]]:
    """Ranges of frames that begin on a whole byte: all but the last are multiples of 8 frames."""
    step = 8 * max(1, PACK_BITS // max(1, 8 * sum(map(_width, sizes))))
    for start in range(0, frames if sizes else 0, step):
        yield start, min(frames, start + step)


def _packed(tokens: Tokens) -> Iterator[bytes]:
    """Codes frame by frame, in a frame codebook by codebook, most significant bit first; zeros fill the last byte."""
    widths = [_width(k) for k in tokens.sizes]
    for start, stop in _chunks(tokens.sizes, tokens.codes.shape[1]):
        bits = np.empty((stop - start, sum(widths)), dtype=np.uint8)
        at = 0
        for row, width in zip(tokens.codes[:, start:stop], widths, strict=True):
            for shift in range(width - 1, -1, -1):
                bits[:, at] = (row >> row.dtype.type(shift)) & row.dtype.type(1)
                at += 1
        yield np.packbits(bits).tobytes()


def _unpacked(data: memoryview, sizes: tuple[int, ...], frames: int) -> np.ndarray:
    """Codes ``[codebooks, frames]``; the inverse of `_packed`."""
    widths = [_width(k) for k in sizes]
    total = sum(widths)
    codes = np.zeros((len(sizes), frames), dtype=np.min_scalar_type(max(sizes, default=2) - 1))
    one = codes.dtype.type(1)
    for start, stop in _chunks(sizes, frames):
        packed = np.frombuffer(data[start * total // 8 : -(-stop * total // 8)], dtype=np.uint8)
        flat = np.unpackbits(packed)
        if flat[(stop - start) * total :].any():
            raise _Wrong("the bits that fill the last byte are not zero")
        bits = flat[: (stop - start) * total].reshape(stop - start, total)
        at = 0
        for row, width in zip(codes[:, start:stop], widths, strict=True):
            for _ in range(width):
                row <<= one
                row |= bits[:, at]
                at += 1
    return codes
