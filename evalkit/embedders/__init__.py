"""Embeddings: audio as vectors, whose distributions (`fad`, `kad`) or angles are compared.

Every embedder is given the same thing, mono float32 at its own rate: the mean of the channels, then soxr HQ. Each
clip's embeddings are computed once and kept, on the clip and in the `EmbeddingStore`, so that the metrics of a run and
later runs share them. See docs/embeddings.md.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.audio import Clip, mono, resample
from evalkit.datasets.manifest import FileFacts, file_sha256
from evalkit.embedders.store import EmbeddingStore
from evalkit.errors import ContractError, EvalkitError, NotApplicable
from evalkit.identity import digest, source_hash, versions
from evalkit.registry import EmbedderInfo
from evalkit.weights import ROOT_VARIABLE, present

BATCH_SECONDS = 120.0
"""Audio that an embedder is given at a time, at most; a longer clip comes alone."""


def find(name: str) -> EmbedderInfo:
    """An embedder by registry name or as ``path.py:Name``.

    Raises:
        UsageError: unknown, or no such file. EvalkitError: the file has no such embedder.
    """
    # By name: what else is registered in this process must not count as source of the metrics that come by here
    # (`evalkit.identity.source_hash` follows imports), or their ids would differ from process to process.
    registry = import_module("evalkit.registry")
    path, colon, attribute = name.rpartition(":")
    if not (colon and path.endswith(".py")):
        found: EmbedderInfo = registry.get("embedders", name)
        return found
    info = getattr(getattr(registry.load_file(path), attribute, None), "info", None)
    if not isinstance(info, EmbedderInfo):
        raise EvalkitError(f"{name}: {path} has no {attribute!r} decorated with @embedder")
    return info


def embedding(clip: Clip, name: str) -> np.ndarray:
    """Embeddings of one clip, float32 ``[frames, dimension]``, read-only; remembered on the clip and in the store.

    Raises:
        NotApplicable: the clip is too short, or weights or a package are absent.
        EvalkitError: the embedder broke its contract or failed; the message names it and the clip.
    """
    info = find(name)
    return clip.memo(("embedding", _store_key(info)), lambda: embed([clip], name)[0])


def embed(clips: Sequence[Clip], name: str, store: EmbeddingStore | None = None) -> list[np.ndarray]:
    """Embeddings of several clips, float32 ``[frames, dimension]`` each, read-only.

    What the store has is taken from there, the rest is computed in batches of `BATCH_SECONDS` and put there. A clip's
    embeddings depend on its audio alone, not on the others.

    Args:
        name: as `find` takes it.
        store: None is the one in the cache folder.

    Raises:
        NotApplicable: a clip is too short (what was computed before is kept), or weights or a package are absent.
        EvalkitError: the embedder broke its contract or failed; the message names it and the clip.
    """
    info = find(name)
    embedder, key = _loaded(info), _store_key(info)  # absent weights are n/a even where the store could answer
    store = EmbeddingStore() if store is None else store
    found = {c.content_hash: store.get(key, c.content_hash, info.dimension) for c in clips}
    missing = {c.content_hash: c for c in clips if found[c.content_hash] is None}
    for batch in _batches(list(missing.values())):
        for clip, made in zip(batch, _compute(info, embedder, batch), strict=True):
            if len(made):
                store.put(key, clip.content_hash, made)
            found[clip.content_hash] = made
    out = []
    for clip in clips:
        one = found[clip.content_hash]
        assert one is not None
        if not len(one):
            least = getattr(embedder, "min_seconds", info.window_s)
            at_least = f": it needs at least {least:g} s" if least else ""
            raise NotApplicable(f"{clip.seconds:.3f} s of audio are too short for {info.name}{at_least}")
        one.setflags(write=False)
        out.append(one)
    return out


def _batches(clips: Sequence[Clip]) -> Iterator[list[Clip]]:
    batch: list[Clip] = []
    seconds = 0.0
    for clip in clips:
        if batch and seconds + clip.seconds > BATCH_SECONDS:
            yield batch
            batch, seconds = [], 0.0
        batch.append(clip)
        seconds += clip.seconds
    if batch:
        yield batch


def _compute(info: EmbedderInfo, embedder: Any, clips: list[Clip]) -> list[np.ndarray]:
    given = [_samples(clip, info.sample_rate) for clip in clips]
    try:
        made = embedder.embed(given)
    except (NotApplicable, EvalkitError, MemoryError):
        raise
    except Exception as error:
        if len(clips) > 1:  # to find the one that it fails on
            return [_compute(info, embedder, [clip])[0] for clip in clips]
        where = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise EvalkitError(f"embedder {info.name!r} failed on {_name(clips[0])}: {where}") from error
    if not isinstance(made, (list, tuple)) or len(made) != len(clips):
        what = f"{len(made)} arrays" if isinstance(made, (list, tuple)) else f"a {type(made).__name__}"
        raise ContractError(f"embedder {info.name!r} returned {what} for {len(clips)} clips, expected a list of arrays")
    return [_checked(info, one, clip) for one, clip in zip(made, clips, strict=True)]


def _samples(clip: Clip, sample_rate: int) -> np.ndarray:
    """What an embedder is given: mono float32 ``[samples]`` at its rate."""
    return resample(mono(clip), sample_rate).samples[0]


def _checked(info: EmbedderInfo, made: Any, clip: Clip) -> np.ndarray:
    shape = (
        f"{made.dtype} {list(made.shape)}"
        if isinstance(made, np.ndarray)
        else f"a {type(made).__name__}, not an array,"
    )
    where = f"embedder {info.name!r} returned"
    if not isinstance(made, np.ndarray) or made.dtype != np.float32 or made.shape[1:] != (info.dimension,):
        raise ContractError(f"{where} {shape} for {_name(clip)}, expected float32 [frames, {info.dimension}]")
    bad = made.size - int(np.isfinite(made).sum())
    if bad:
        raise ContractError(f"{where} {bad} of {made.size} values that are NaN or infinite for {_name(clip)}")
    return np.array(made, order="C")  # not a view of the batch, which would stay in memory with it


def _name(clip: Clip) -> str:
    return f"clip {clip.id!r}" if clip.id else "a clip"


# -- identity ---------------------------------------------------------------------------------------------------------


def embedder_id(info: EmbedderInfo) -> str:
    """Short name of the embeddings, to be shown beside what is made of them: name, version, first digits of the
    weights' hash.

    Weights that cannot be found have the word ``absent`` there.

    >>> embedder_id(find("mel-stats")), embedder_id(find("yamnet"))
    ('mel-stats-v1', 'yamnet-v1-687f226c147a')
    """
    weights = _weights_id(info)
    return f"{info.name}-v{info.version}" + (f"-{weights[:12]}" if weights else "")


def identity(info: EmbedderInfo) -> dict[str, Any]:
    """Everything that decides the embeddings of given audio, as JSON values. It names them in the store, and belongs
    into the identity of every metric that is made of them (``extra_identity``)."""
    return {
        "id": embedder_id(info),
        "weights": _weights_id(info),
        "source": source_hash(info.load),
        "input": source_hash(_samples),
        "sample_rate": info.sample_rate,
        "dimension": info.dimension,
        "requires": versions(("soxr", *info.requires)),
    }


def _weights_id(info: EmbedderInfo) -> str:
    if info.weights_id or not info.weights:
        return info.weights_id
    try:
        return str(getattr(_loaded(info), "weights_id", ""))
    except NotApplicable:
        return "absent"
    except EvalkitError:  # said where embeddings are asked for
        return "unusable"


def files_hash(*paths: Path) -> str:
    """sha256 (hex) over the bytes of several files; kept while they do not change, since weights are large."""
    with FileFacts() as facts:
        return digest([file_sha256(path, facts) for path in paths])


# -- what a process keeps ---------------------------------------------------------------------------------------------


def _loaded(info: EmbedderInfo) -> Any:
    return _load(info, *_there(info))


def _store_key(info: EmbedderInfo) -> str:
    return _key(info, *_there(info))


def _there(info: EmbedderInfo) -> tuple[Any, ...]:
    """What may change while a process lives: the weights root, and which weights are there."""
    return os.environ.get(ROOT_VARIABLE), tuple(present(info.weights).items())


@functools.cache
def _load(info: EmbedderInfo, *_: Any) -> Any:
    try:
        embedder = info.load()
    except (NotApplicable, EvalkitError):
        raise
    except Exception as error:
        raise EvalkitError(f"embedder {info.name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(getattr(embedder, "embed", None)):
        raise ContractError(f"embedder {info.name!r}: what it loads ({type(embedder).__name__}) has no method embed")
    return embedder


@functools.cache
def _key(info: EmbedderInfo, *_: Any) -> str:
    described = identity(info)
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', described['id'])}-{digest(described)[:8]}"


def one_thread() -> None:
    """Let torch work on one thread in this process: the workers are the parallelism, and the last bits of a result
    must not depend on the machine's cores."""
    import torch

    torch.set_num_threads(1)
