"""`encode_file` and `decode_file`: a recording to a token file and back, by any system that emits tokens.

Systems that work in blocks (``encode_blocks``, ``decode_blocks``; see `evalkit.systems`) do so here, so that an hour
takes no more memory than a few minutes. The others get the whole clip.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from evalkit.audio import (
    Blocks,
    Clip,
    check_audio_name,
    mono_blocks,
    read_blocks,
    resample,
    resample_blocks,
    write_blocks,
)
from evalkit.errors import ContractError, EvalkitError, NotApplicable, UsageError
from evalkit.identity import digest, short
from evalkit.output import check_target, replacing
from evalkit.spec import parse_spec
from evalkit.systems.load import Loaded, load_system
from evalkit.text import number
from evalkit.tokens import Tokens
from evalkit.tokfile import TokenFile, read_tokens, write_tokens

Source = str | os.PathLike[str] | BinaryIO
Target = str | os.PathLike[str] | BinaryIO

STDIN = "standard input"
STDOUT = "standard output"
TO_MONO = "--mono mixes them down to their mean"


@dataclass(frozen=True)
class Coded:
    """What `encode_file` or `decode_file` did.

    Attributes:
        system: full name. tokens: what is in the token file. token_bytes: size of that file.
        output: path of the result, or `STDOUT` for a stream.
    """

    system: str
    tokens: Tokens
    token_bytes: int
    output: str

    def __str__(self) -> str:
        t = self.tokens
        shape = f"{t.codes.shape[0]} x {t.codes.shape[1]:,} codes"
        file = f"token file {self.token_bytes:,} bytes, {number(8 * self.token_bytes / t.seconds / 1000)} kbps"
        return (
            f"{self.output}: {t.seconds:.3f} s at {t.sample_rate} Hz, {shape}, {number(t.nominal_kbps)} kbps nominal; "
            f"{file}; {self.system}"
        )


def encode_file(source: Source, target: Target | None = None, system: str = "vqfm", *, mono: bool = False) -> Coded:
    """Encode a recording into a token file (`evalkit.tokfile`).

    The audio is resampled to the system's rate where it has one (soxr HQ); the tokens stand for that, so decoding gives
    that rate.

    Args:
        source: a path, or a binary stream, which is copied to a temporary file first.
        target: a path, or a binary stream; None is ``source`` with the suffix .tok, which must not exist.
        system: spec of a system with ``encode`` and ``decode``.
        mono: mix the channels down to their mean first.

    Raises:
        UsageError: no such system, one that emits no tokens, one that does not take this many channels, a target that
            cannot be.
        AudioError: where `evalkit.audio.read_clip` does. ContractError: the system broke its contract.
    """
    target = _target(source, target, ".tok")
    name, given = _named(source), _path(source)
    clip_id = "" if given is None else given.name
    loaded = load_system(system)
    with _closing(loaded):
        _need_coder(loaded)
        with _file_of(source) as path:
            blocks = read_blocks(path, name=name)
            if mono:
                blocks = mono_blocks(blocks)
            if getattr(loaded.system, "channels", None) == 1 and blocks.channels > 1:
                raise UsageError(f"{loaded.name} takes mono, {name} has {blocks.channels} channels: {TO_MONO}")
            tokens = _encode(loaded, blocks, clip_id)
        size = write_tokens(target, tokens, system=loaded.name, fingerprint=fingerprint_of(loaded), clip=clip_id)
    return Coded(loaded.name, tokens, size, _shown(target))


def decode_file(
    source: Source,
    target: Target | None = None,
    system: str | None = None,
    *,
    seed: int = 0,
    force: bool = False,
) -> Coded:
    """Decode a token file into a recording of exactly ``tokens.samples`` samples at ``tokens.sample_rate``.

    Args:
        source: a path, or a binary stream.
        target: a path whose suffix names the format, or a binary stream (wav); None is ``source`` with the suffix .wav,
            which must not exist. Wav is float32; others quantise.
        system: spec; None is the one that the file names.
        seed: of the system's noise.
        force: decode although the file was written by another system or other weights; the system must still take the
            tokens. For other decoders of the same codes (``vqmse`` for codes of ``vqfm``).

    Raises:
        EvalkitError: not a whole token file of this version.
        UsageError: a system that is not here, or not the one that made the tokens; a target that cannot be.
        ContractError: the system did not take the tokens, or broke its contract.
    """
    target = _target(source, target, ".wav")
    if isinstance(target, (str, os.PathLike)):
        check_audio_name(target)
    name = _named(source)
    file = read_tokens(source, name=name)
    loaded = _system_of(file, system, name)
    with _closing(loaded):
        _need_coder(loaded)
        if not force:
            _check_same(file, loaded, name, asked=system is not None)
        if isinstance(target, (str, os.PathLike)):
            with replacing(target) as path:
                _decode(loaded, file.tokens, seed, path, name)
        else:
            _decode(loaded, file.tokens, seed, target, name)
    return Coded(loaded.name, file.tokens, file.bytes, _shown(target))


def fingerprint_of(loaded: Loaded) -> str | None:
    """Digest of what the system's ``fingerprint()`` returns (its weights); None where it has none."""
    found = getattr(loaded.system, "fingerprint", None)
    return digest(found()) if callable(found) else None


# -- encoding and decoding --------------------------------------------------------------------------------------------


def _encode(loaded: Loaded, blocks: Blocks, clip_id: str) -> Tokens:
    system = loaded.system
    rate = getattr(system, "sample_rate", None) or blocks.sample_rate
    remedy = f" ({TO_MONO})" if blocks.channels > 1 else ""
    if callable(getattr(system, "encode_blocks", None)):
        counted = _Counted(resample_blocks(blocks, rate).blocks)
        with _strange(f"{loaded.name}: encoding", remedy):
            parts = list(system.encode_blocks(counted))
            tokens = system.tokens_of(np.concatenate(parts, axis=1), counted.samples)
        expected = counted.samples
    else:
        clip = Clip(np.concatenate(list(blocks.blocks), axis=1), blocks.sample_rate, clip_id)
        clip = resample(clip, rate)
        with _strange(f"{loaded.name}: encoding", remedy):
            tokens = system.encode(clip)
        expected = clip.length
    if not isinstance(tokens, Tokens):
        raise ContractError(f"{loaded.name}: encode returned {type(tokens).__name__}, expected evalkit.Tokens")
    if (tokens.samples, tokens.sample_rate) != (expected, rate):
        raise ContractError(
            f"{loaded.name}: encode returned tokens for {tokens.samples} samples at {tokens.sample_rate} Hz, "
            f"it was given {expected} at {rate} Hz"
        )
    return tokens


def _decode(loaded: Loaded, tokens: Tokens, seed: int, target: Target, name: str) -> None:
    what = f"{name}: decoding by {loaded.name}"
    blocks = _decoded(loaded, tokens, seed, what)
    first = next(blocks)
    write_blocks(
        target,
        itertools.chain([first], blocks),
        sample_rate=tokens.sample_rate,
        channels=len(first),
        samples=tokens.samples,
    )


def _decoded(loaded: Loaded, tokens: Tokens, seed: int, what: str) -> Iterator[np.ndarray]:
    """Audio ``[channels, samples]`` in blocks, at least one."""
    with _strange(what):
        if callable(getattr(loaded.system, "decode_blocks", None)):
            yield from loaded.system.decode_blocks(tokens, seed)
            return
        made = loaded.system.decode(tokens, seed)
    if not isinstance(made, Clip):
        raise ContractError(f"{what} gave {type(made).__name__}, expected evalkit.Clip")
    if (made.length, made.sample_rate) != (tokens.samples, tokens.sample_rate):
        raise ContractError(
            f"{what} gave {made.length} samples at {made.sample_rate} Hz, "
            f"the tokens stand for {tokens.samples} at {tokens.sample_rate} Hz"
        )
    yield made.samples


@contextmanager
def _strange(what: str, remedy: str = "") -> Iterator[None]:
    """Whatever a system raises is one line that says where."""
    from evalkit.work import reason

    try:
        yield
    except NotApplicable as error:
        raise UsageError(f"{what} is not possible: {error}{remedy}") from error
    except (EvalkitError, OSError):
        raise
    except MemoryError as error:
        raise EvalkitError(f"{what} asks for more memory than there is") from error
    except Exception as error:
        raise ContractError(f"{what} failed: {reason(error)}") from error


class _Counted:
    """An iterable of blocks that knows how many samples have passed."""

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self.blocks = blocks
        self.samples = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for x in self.blocks:
            self.samples += x.shape[1]
            yield x


# -- systems ----------------------------------------------------------------------------------------------------------


def _need_coder(loaded: Loaded) -> None:
    if not all(callable(getattr(loaded.system, c, None)) for c in ("encode", "decode")):
        raise UsageError(f"{loaded.name} emits no tokens: it has no encode and decode; opus:6 is one that has")


@contextmanager
def _closing(loaded: Loaded) -> Iterator[None]:
    try:
        yield
    finally:
        if callable(getattr(loaded.system, "close", None)):
            loaded.system.close()


def _system_of(file: TokenFile, asked: str | None, name: str) -> Loaded:
    if asked is not None:
        return load_system(asked)
    if not file.system:
        raise UsageError(f"{name} does not say which system made it: name it with --system")
    try:
        # A token file must not decide which Python file is run here, nor which function of it is called.
        if ".py:" in parse_spec(file.system).name:
            raise UsageError("code of a file is run only when you name it yourself")
        return load_system(file.system)
    except EvalkitError as error:
        raise type(error)(f"{name} was made by {file.system}: {error}. Name what to decode with by --system") from error


def _check_same(file: TokenFile, loaded: Loaded, name: str, *, asked: bool) -> None:
    """The same weights, whatever they are called; without weights the same full name."""
    here = fingerprint_of(loaded)
    same_kind = parse_spec(loaded.name).name == parse_spec(file.system or loaded.name).name
    if same_kind and here == file.fingerprint and (here is not None or loaded.name == file.system):
        return

    def weights(fingerprint: str | None) -> str:
        return "no weights" if fingerprint is None else f"weights {short(fingerprint)}"

    made_by = f"{name} was made by {file.system or 'a system without a name'} with {weights(file.fingerprint)}"
    other = f"{loaded.name} has {weights(here)}" if asked else f"here that has {weights(here)}"
    raise UsageError(
        f"{made_by}, {other}: codes may mean something else to it. Get what made them, or add --force where you know "
        "that they do not"
    )


# -- files and streams ------------------------------------------------------------------------------------------------


def _path(place: Source | Target) -> Path | None:
    return Path(place) if isinstance(place, (str, os.PathLike)) else None


def _named(source: Source) -> str:
    path = _path(source)
    return STDIN if path is None else repr(str(path))


def _shown(target: Target) -> str:
    path = _path(target)
    return STDOUT if path is None else str(path)


def _target(source: Source, target: Target | None, suffix: str) -> Target:
    """Where the result goes; a name made up here never replaces a file, and no input is overwritten."""
    here = _path(source)
    if target is None:
        if here is None:
            raise UsageError("the input is a stream: say where the result goes with --out")
        made = here.parent / (here.stem + suffix)
        if made.exists():
            raise UsageError(f"{str(made)!r} exists: only a file that --out names is replaced")
        check_target(made)
        return made
    there = _path(target)
    if there is not None:
        check_target(there)
        if here is not None and here.is_file() and there.is_file() and here.samefile(there):
            raise UsageError(f"{str(there)!r} is the input itself: name another result")
    return target


@contextmanager
def _file_of(source: Source) -> Iterator[Path]:
    """The path of a source; a stream is copied to a file that goes away again (sound files are not read in one go)."""
    if isinstance(source, (str, os.PathLike)):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="evalkit-") as folder:
        path = Path(folder) / "input"
        with open(path, "wb") as file:
            shutil.copyfileobj(source, file)
        yield path
