"""Token files: any tokens come back exactly; whatever is not a whole, sound file is refused in one line."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evalkit import tokfile
from evalkit.audio import Clip
from evalkit.errors import ContractError, EvalkitError, UsageError
from evalkit.systems.load import load_system
from evalkit.tokens import Tokens
from evalkit.tokfile import read_tokens, tokens_from_bytes, tokens_to_bytes, write_tokens

SIZES = st.sampled_from([2, 3, 4, 5, 255, 256, 257, 1000, 1024, 65_536, 65_537, 2**31, 2**32, 2**33 + 1, 2**63, 2**64])
RATES = st.floats(0, 1e12, allow_nan=False) | st.sampled_from([23.4375, 75.0, 1 / 3, 5e-324])
NUMBERS = [
    np.dtype(t) for t in ("?", "i1", "u1", "<i2", ">u2", "<i4", ">i8", "<u8", "<f2", ">f4", "<f8", "<c8", ">c16")
]


@st.composite
def any_tokens(draw: Any) -> Tokens:
    sizes = tuple(draw(st.lists(SIZES, max_size=5)))
    frames = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = np.zeros((len(sizes), frames), dtype=np.uint64)
    for row, size in zip(codes, sizes, strict=True):
        row[:] = rng.integers(0, size - 1, frames, dtype=np.uint64, endpoint=True)
        row[rng.random(frames) < 0.2] = size - 1
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    arrays = st.sampled_from(NUMBERS).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
    return Tokens(
        codes,
        sizes,
        draw(RATES),
        draw(st.integers(1, 2**48)),
        draw(st.integers(1, 2**48)),
        side_bits=draw(RATES),
        container_bits=draw(RATES),
        side=draw(st.dictionaries(st.text(max_size=8), arrays, max_size=3)),
    )


def small() -> Tokens:
    side = {"scales": np.array([[0.5, -2.0]], dtype=np.float32), "flag": np.array([True])}
    return Tokens(np.array([[5, 0, 1023], [2, 1, 0]]), (1024, 3), 2.5, 30_000, 24_000, 65.0, 8.0, side)


def assert_equal(a: Tokens, b: Tokens) -> None:
    assert np.array_equal(a.codes, b.codes) and a.codes.dtype == b.codes.dtype and a.codes.shape == b.codes.shape
    assert (a.sizes, a.samples, a.sample_rate) == (b.sizes, b.samples, b.sample_rate)
    assert (a.frame_rate, a.side_bits, a.container_bits) == (b.frame_rate, b.side_bits, b.container_bits)
    assert list(a.side) == list(b.side)
    for key, x in a.side.items():
        y = b.side[key]
        assert x.shape == y.shape and y.dtype == x.dtype.newbyteorder("<")
        assert x.astype(y.dtype).tobytes() == y.tobytes()  # bits, so that NaN equals NaN


# -- there and back ---------------------------------------------------------------------------------------------------


@given(any_tokens(), st.text(max_size=20), st.none() | st.text(max_size=20), st.text(max_size=20))
@example(small(), "", None, "\udcff.wav")
@example(Tokens(np.zeros((0, 7), int), (), 1.0, 1, 1), "none", "", "")
@example(Tokens(np.zeros((2, 0), int), (3, 2**64), 0.0, 1, 1), "", None, "")
def test_any_tokens_come_back_exactly(tokens: Tokens, system: str, fingerprint: str | None, clip: str) -> None:
    data = tokens_to_bytes(tokens, system=system, fingerprint=fingerprint, clip=clip)
    back = tokens_from_bytes(data)
    assert_equal(tokens, back.tokens)
    assert (back.system, back.fingerprint, back.clip, back.bytes) == (system, fingerprint, clip, len(data))
    again = tokens_to_bytes(back.tokens, system=system, fingerprint=fingerprint, clip=clip)
    assert again == data


@pytest.mark.parametrize("bits", [8, 24, 1000])
def test_codes_that_are_packed_in_several_pieces(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(0, 1000, (3, 101))
    tokens = Tokens(codes, (1000, 1024, 1001), 75.0, 24_000, 24_000)
    whole = tokens_to_bytes(tokens)
    monkeypatch.setattr(tokfile, "PACK_BITS", bits)
    assert tokens_to_bytes(tokens) == whole
    assert_equal(tokens_from_bytes(whole).tokens, tokens)


@pytest.mark.parametrize("spec", ["opus:6", "mp3:8", "pcm:8", "pcm:13", "mulaw", "mdct:6"])
def test_what_a_real_system_decodes_from_the_file_is_the_same(spec: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    built = load_system(spec).system
    clip = Clip(
        rng.normal(0, 0.1, (1 if spec == "mp3:8" else 2, 12_345)), built.sample_rate if "p3" in spec else 48_000
    )
    tokens = built.encode(clip)
    size = write_tokens(tmp_path / "a.tok", tokens, system=spec, clip="a")
    assert size == (tmp_path / "a.tok").stat().st_size
    file = read_tokens(tmp_path / "a.tok")
    assert_equal(file.tokens, tokens)
    assert built.decode(file.tokens, 0).content_hash == built.decode(tokens, 0).content_hash


def test_codes_take_the_bits_that_they_need() -> None:
    """An hour of 23.4375 codes a second, 10 bits each: 105,469 bytes, and less than 400 of anything else."""
    tokens = Tokens(np.zeros((1, 84_375), int), (1024,), 23.4375, 24_000 * 3600, 24_000)
    data = tokens_to_bytes(
        tokens, system="vqfm@evaluations=8@guidance=1@solver=midpoint", fingerprint="0" * 64, clip="a"
    )
    assert 105_469 < len(data) < 105_469 + 400


def test_the_bytes_are_those_of_the_page() -> None:
    """By hand, from docs/token-files.md: a change of any of this is another version."""
    header = (
        b'{"sizes":[1024,3],"frames":3,"frame_rate":2.5,"samples":30000,"sample_rate":24000,"side_bits":65.0,'
        b'"container_bits":8.0,"side":[{"name":"scales","dtype":"<f4","shape":[1,2]},{"name":"flag","dtype":"|b1",'
        b'"shape":[1]}],"system":"s","fingerprint":null,"clip":"c"}'
    )
    bits = "0000000101100000000000011111111111000000"
    codes = int(bits, 2).to_bytes(5, "big")
    body = b"\x89EKTOK\r\n" + struct.pack("<HI", 1, len(header)) + header + codes + struct.pack("<ff?", 0.5, -2.0, True)
    assert tokens_to_bytes(small(), system="s", clip="c") == body + struct.pack("<I", zlib.crc32(body))


def test_a_stream_is_as_good_as_a_file(tmp_path: Path) -> None:
    stream = io.BytesIO()
    write_tokens(stream, small(), system="s")
    write_tokens(tmp_path / "a.tok", small(), system="s")
    assert (tmp_path / "a.tok").read_bytes() == stream.getvalue()
    stream.seek(0)
    assert_equal(read_tokens(stream).tokens, small())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.tok"
    write_tokens(path, small())
    before = path.read_bytes()
    with pytest.raises(ContractError, match="'x' is of type object: a token file holds plain numbers"):
        write_tokens(path, Tokens(small().codes, (1024, 3), 2.5, 1, 1, side={"x": np.array([{}])}))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.tok"]
    (tmp_path / "link.tok").symlink_to("a.tok")
    write_tokens(tmp_path / "link.tok", small(), system="other")
    assert (tmp_path / "link.tok").is_symlink() and read_tokens(path).system == "other"
    with pytest.raises(UsageError, match="is a folder: name a file"):
        write_tokens(tmp_path, small())
    with pytest.raises(UsageError, match="there is no folder"):
        write_tokens(tmp_path / "no" / "a.tok", small())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (Tokens(np.zeros((1, 1), int), (2,), 1, 1, 1, side={"s": np.array(["a"])}), "'s' is of type <U1"),
        (Tokens(np.zeros((1, 1), int), (2,), 1, 1, 1, side={"t": np.array(["2020"], "M8[D]")}), "'t' is of type"),
        (Tokens(np.zeros((1, 1), int), (2,), 1, 1, 1, side={"r": np.zeros(2, "f4,i4")}), "'r' is of type"),
        (Tokens(np.zeros((1, 1), int), (2,), 1, 1, 1, side={"g": np.zeros(2, np.longdouble)}), "'g' is of type"),
        (Tokens(np.zeros((1, 1), int), (2**64 + 1,), 1, 1, 1), "more than 2\\*\\*64 codes"),
        (Tokens(np.zeros((1, 1), int), (2,), 1, 2**49, 1), "samples=562949953421312"),
        (Tokens(np.zeros((1, 1), int), (2,), 1, 1, 1, side={"n" * 2**20: np.zeros(1)}), "a header of 1,048,"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tokens: Tokens, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        tokens_to_bytes(tokens)


# -- damage -----------------------------------------------------------------------------------------------------------


def refused(data: bytes) -> str:
    """The message; fails where the bytes are taken."""
    with pytest.raises(EvalkitError) as error:
        tokens_from_bytes(data, name="'a.tok'")
    message = str(error.value)
    assert message.startswith("'a.tok': ") and "\n" not in message and len(message) < 300
    return message


def test_every_single_flipped_bit_is_refused() -> None:
    data = tokens_to_bytes(small(), system="opus:6", fingerprint="ab", clip="a")
    for at in range(8 * len(data)):
        broken = bytearray(data)
        broken[at // 8] ^= 1 << at % 8
        refused(bytes(broken))


def test_every_truncation_is_refused() -> None:
    data = tokens_to_bytes(small(), system="opus:6", fingerprint="ab", clip="a")
    for length in range(len(data)):
        message = refused(data[:length])
        assert "truncated" in message or (length == 0 and "is empty (0 bytes)" in message)
    assert "damaged: it goes on after" in refused(data + b"\0")


@given(any_tokens(), st.data())
def test_damage_anywhere_in_any_file_is_refused(tokens: Tokens, data: Any) -> None:
    whole = tokens_to_bytes(tokens, system="s")
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    broken = bytearray(whole)
    broken[bit // 8] ^= 1 << bit % 8
    refused(bytes(broken))
    refused(whole[: data.draw(st.integers(0, len(whole) - 1))])
    start = data.draw(st.integers(0, len(whole) - 1))
    burst = data.draw(st.binary(min_size=1, max_size=4))  # CRC-32 finds every burst of up to 32 bits
    broken = bytearray(whole)
    broken[start : start + len(burst)] = burst[: len(whole) - start]
    if bytes(broken) != whole:
        refused(bytes(broken))


@given(st.binary(max_size=200))
def test_noise_is_not_a_token_file(data: bytes) -> None:
    refused(data)
    refused(tokfile.MAGIC + data)


def made(header: Any, payload: bytes = b"", version: int = 1) -> bytes:
    """A file with a right checksum, whatever else is wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = tokfile.PREFIX.pack(tokfile.MAGIC, version, len(text)) + text + payload
    return body + tokfile.CRC.pack(zlib.crc32(body))


GOOD: dict[str, Any] = {
    "sizes": [1000], "frames": 4, "frame_rate": 2.0, "samples": 100, "sample_rate": 50, "side_bits": 0,
    "container_bits": 0, "side": [], "system": "", "fingerprint": None, "clip": "",
}  # fmt: skip


def side(dtype: str, shape: list[Any], name: str = "x") -> dict[str, Any]:
    return {"side": [{"name": name, "dtype": dtype, "shape": shape}]}


@pytest.mark.parametrize(
    ("change", "payload", "message"),
    [
        (
            {"frames": 2**40},
            bytes(5),
            "truncated or damaged: the header promises 1,374,389,534,724 bytes",
        ),
        ({"frames": 2**48 + 1}, bytes(5), "promises an absurd number of frames"),
        ({"samples": 10**30}, bytes(5), "promises an absurd number of samples"),
        ({"frames": -1}, bytes(5), "promises an absurd number of frames"),
        ({"frames": 4.0}, bytes(5), "has no 'frames' of type int"),
        ({"frames": True}, bytes(5), "has no 'frames' of type int"),
        (
            {"sizes": [2**64] * 1000, "frames": 2**48},
            bytes(5),
            "truncated or damaged: the header promises 2,251,799,813,685,248,004",
        ),
        ({"sizes": [1]}, bytes(5), "has codebook sizes that are not integers of 2 to 2**64"),
        ({"sizes": [2**64 + 1]}, bytes(5), "has codebook sizes that are not integers"),
        ({"sizes": 1000}, bytes(5), "has no 'sizes' of type list"),
        ({"samples": 0}, bytes(5), "written wrongly, its checksum matches: samples=0"),
        ({"frame_rate": -1.0}, bytes(5), "written wrongly, its checksum matches: frame rate -1.0"),
        ({"frame_rate": "2"}, bytes(5), "has no number 'frame_rate'"),
        ({"frame_rate": 10**400}, bytes(5), "has an absurd 'frame_rate'"),
        ({"frame_rate": float("nan")}, bytes(5), "is not JSON"),
        ({}, b"\xff" * 5, "written wrongly, its checksum matches: codebook 0 holds codes 1023..1023, outside 0..999"),
        ({"frames": 3}, bytes(3) + b"\1", "the bits that fill the last byte are not zero"),
        (side("|O", [1]), bytes(13), "has a side array of type '|O'; known are"),
        (side("<U4", [1]), bytes(21), "has a side array of type '<U4'"),
        (side("|V8", [1]), bytes(13), "has a side array of type '|V8'"),
        (side("f4,O", [1]), bytes(13), "has a side array of type 'f4,O'"),
        (side("|b1", [1]), bytes(5) + b"\2", "is of truth values and holds others"),
        (side("<f8", [2**48, 2**48]), bytes(5), "truncated or damaged: the header promises 633,825,300,114,114,"),
        (side("<f8", [2**48, 2**48, 0]), bytes(5), "has an impossible shape"),
        (side("<f8", [1] * 33), bytes(13), "has a side array of an impossible shape"),
        (side("<f8", [1] * 40_000), bytes(13), "has a side array of an impossible shape"),
        (side("<f8", [-1]), bytes(5), "has a side array of an impossible shape"),
        (side("<f8", ["1"]), bytes(13), "has a side array of an impossible shape"),
        ({"side": [side("<f8", [0])["side"][0]] * 2}, bytes(5), "names two side arrays alike"),
        ({"side": ["x"]}, bytes(5), "describes a side array by something else than an object"),
        ({"fingerprint": 1}, bytes(5), "has a fingerprint that is not text"),
        ({"system": None}, bytes(5), "has no 'system' of type str"),
    ],
)
def test_a_file_that_was_written_wrongly_is_refused(change: dict[str, Any], payload: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        assert message in refused(made({**GOOD, **change}, payload))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # nothing is allocated for what is only promised
    finally:
        tracemalloc.stop()


def test_the_file_that_those_were_made_from_is_good() -> None:
    assert tokens_from_bytes(made(GOOD, bytes(5))).tokens.codes.tolist() == [[0, 0, 0, 0]]
    assert tokens_from_bytes(made({**GOOD, "later": 1}, bytes(5))).tokens.samples == 100  # unknown fields are ignored


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"RIFF1234WAVEfmt ", "not a token file (it begins with b'RIFF1234'); `evalkit encode` writes them"),
        (b"\x89EKTOK\n\0\0\0\0\0\0", "not a token file"),  # \r\n turned into \n on the way
        (made(GOOD, bytes(5), version=2), "a token file of version 2, this evalkit reads version 1"),
        (made(b"[" * 100_000), "damaged: its header is not JSON"),
        (made(b"[]"), "damaged: its header is not a JSON object"),
        (made(b'{"sizes":' + b"9" * 5000 + b"}"), "damaged: its header is not JSON"),
        (made(b"\xff"), "damaged: its header is not JSON"),
        (tokfile.PREFIX.pack(tokfile.MAGIC, 1, 2**32 - 1), "damaged: a header of 4,294,967,295 bytes"),
        (tokfile.PREFIX.pack(tokfile.MAGIC, 1, 1000) + b"{", "truncated: 1 of 1,000 bytes of the header"),
    ],
)
def test_other_things_than_token_files(data: bytes, message: str) -> None:
    assert message in refused(data)


def test_a_path_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.tok': cannot be read \(No such file or directory\)"):
        read_tokens(tmp_path / "no.tok")
    with pytest.raises(UsageError, match="is a directory, not a token file"):
        read_tokens(tmp_path)
