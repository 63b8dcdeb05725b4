"""Rate measures, from the tokens that were really emitted. 1 kbps = 1,000 bits per second of audio.

A code of a codebook of K costs log2 K bits (12 bits for 4,096). A byte stream is one codebook of 256 whose frames are
its bytes, so that the same formulas give its measured rate. Seconds are those of the clip, not of the padded frames.

The entropy measures are corpus metrics: counts of every code are pooled over clips, then turned into one value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evalkit.errors import NotApplicable
from evalkit.registry import corpus_metric, metric
from evalkit.tokens import Tokens

RATE = ("nominal_kbps", "code_kbps", "side_kbps", "container_kbps", "total_kbps", "tokens_per_s")
CODES = ("entropy_kbps", "entropy_ratio", "codebook_use", "perplexity")

_BLOCK = 1 << 22
"""Pooled counts held at once (32 MiB), so that a bootstrap over codebooks of 65,536 stays small."""


@metric("nominal_kbps", unit="kbps", direction="lower", group="rate", range=(0, math.inf))
def nominal_kbps(tokens: Tokens) -> float:
    """Nominal rate by configuration: frame rate times the sum of log2 K, as papers quote it.

    >>> nominal_kbps(Tokens(np.zeros((1, 75), int), (4096,), 75, 24000, 24000))  # WavTokenizer
    0.9
    """
    return tokens.nominal_kbps


@metric("code_kbps", unit="kbps", direction="lower", group="rate", range=(0, math.inf))
def code_kbps(tokens: Tokens) -> float:
    """Rate of the codes really emitted, padding counted: frames times the sum of log2 K over the clip's seconds.

    It exceeds `nominal_kbps` where the last frame is filled up: 1.01 s at 75 frames/s are 76 frames.

    >>> code_kbps(Tokens(np.zeros((1, 80), int), (1024,), 75, 24000, 24000))
    0.8
    """
    return tokens.code_bits / tokens.seconds / 1000


@metric("side_kbps", unit="kbps", direction="lower", group="rate", range=(0, math.inf))
def side_kbps(tokens: Tokens) -> float:
    """Rate of the side information that the decoder needs beside the codes: scales, loudness, embeddings, captions.

    >>> side_kbps(Tokens(np.zeros((1, 75), int), (1024,), 75, 48000, 24000, side_bits=32))
    0.016
    """
    return tokens.side_bits / tokens.seconds / 1000


@metric("container_kbps", unit="kbps", direction="lower", group="rate", range=(0, math.inf))
def container_kbps(tokens: Tokens) -> float:
    """Rate of the format's own framing in a file: headers, packet lengths.

    >>> container_kbps(Tokens(np.zeros((1, 75), int), (1024,), 75, 48000, 24000, container_bits=800))
    0.4
    """
    return tokens.container_bits / tokens.seconds / 1000


@metric("total_kbps", unit="kbps", direction="lower", group="rate", range=(0, math.inf))
def total_kbps(tokens: Tokens) -> float:
    """Total rate: codes emitted, side information and container together, over the clip's seconds.

    >>> total_kbps(Tokens(np.zeros((1, 80), int), (1024,), 75, 24000, 24000, side_bits=32, container_bits=100))
    0.932
    """
    return (tokens.code_bits + tokens.side_bits + tokens.container_bits) / tokens.seconds / 1000


@metric("tokens_per_s", unit="1/s", direction="none", group="rate", range=(0, math.inf))
def tokens_per_s(tokens: Tokens) -> float:
    """Codes emitted per second of audio, all codebooks together, padding counted.

    >>> tokens_per_s(Tokens(np.zeros((8, 75), int), (1024,) * 8, 75, 24000, 24000))
    600.0
    """
    return tokens.codes.size / tokens.seconds


# -- corpus: statistics of one clip -----------------------------------------------------------------------------------


def code_counts(tokens: Tokens) -> dict[str, np.ndarray]:
    """How often each code occurs in one clip, sparse: the statistics of all four corpus metrics here.

    Returns:
        ``sizes`` int64 ``[codebooks]``, ``seconds`` float64 ``[1]``, and for each code that occurs its ``book``,
        ``code`` and ``count``, int64 ``[n]``, ordered by book, then code.

    >>> s = code_counts(Tokens(np.array([[3, 3, 1], [0, 0, 0]]), (4, 2), 3, 8000, 8000))
    >>> s["book"].tolist(), s["code"].tolist(), s["count"].tolist()
    ([0, 0, 1], [1, 3, 0], [1, 2, 3])
    """
    books, codes, counts = [], [], []
    for k, row in enumerate(tokens.codes):
        code, count = np.unique(row, return_counts=True)
        books.append(np.full(len(code), k))
        codes.append(code)
        counts.append(count)
    return {
        "sizes": np.array(tokens.sizes, np.int64),
        "seconds": np.array([tokens.seconds]),
        "book": np.concatenate([np.zeros(0), *books]).astype(np.int64),
        "code": np.concatenate([np.zeros(0), *codes]).astype(np.int64),
        "count": np.concatenate([np.zeros(0), *counts]).astype(np.int64),
    }


# -- corpus: combination ----------------------------------------------------------------------------------------------


def _pool(statistics: Sequence[Mapping[str, Any]], weights: Any) -> dict[str, np.ndarray]:
    """Pool clips under ``weights`` ``[replicates, clips]``.

    Returns:
        Per replicate and codebook, ``[replicates, codebooks]``: ``n`` codes, ``entropy`` in bits, ``seen`` distinct
        codes; and ``seconds`` ``[replicates]``, ``sizes`` ``[codebooks]``.
    """
    from scipy import sparse

    sizes = np.zeros(max((len(s["sizes"]) for s in statistics), default=0), np.int64)
    for s in statistics:
        own, known = np.asarray(s["sizes"]), sizes[: len(s["sizes"])]
        clash = np.flatnonzero((known != 0) & (known != own))
        if len(clash):
            k = int(clash[0])
            raise NotApplicable(f"codebook {k} has {known[k]} codes in some clips and {own[k]} in others: not poolable")
        known[:] = own
    lengths = [len(s["count"]) for s in statistics]
    if not sum(lengths):
        raise NotApplicable("no tokens were emitted")
    clip = np.repeat(np.arange(len(statistics)), lengths)
    book, code, count = (np.concatenate([np.asarray(s[key]) for s in statistics]) for key in ("book", "code", "count"))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    used, column = np.unique(offsets[book] + code, return_inverse=True)
    bounds = np.searchsorted(used, offsets)
    counts = sparse.csc_array((count.astype(np.float64), (clip, column)), shape=(len(statistics), len(used)))

    replicates = len(weights)
    out = {key: np.zeros((replicates, len(sizes))) for key in ("n", "entropy", "seen")}
    for k in range(len(sizes)):
        columns = counts[:, int(bounds[k]) : int(bounds[k + 1])]
        rows = max(1, _BLOCK // max(1, columns.shape[1]))
        for i in range(0, replicates, rows):
            part = slice(i, i + rows)
            c = np.asarray(weights[part] @ columns)
            n = c.sum(axis=1)
            some = np.where(n > 0, n, 1.0)
            bits = np.log2(some) - np.sum(c * np.log2(np.where(c > 0, c, 1.0)), axis=1) / some
            out["n"][part, k], out["entropy"][part, k] = n, np.maximum(0.0, bits)
            out["seen"][part, k] = np.count_nonzero(c, axis=1)
    return out | {"seconds": weights @ np.concatenate([s["seconds"] for s in statistics]), "sizes": sizes}


def _per_replicate(value: Any) -> Any:
    """Make ``value(pooled) -> [replicates]`` a ``combine``: 1-D weights give a float, 2-D ones an array."""

    def combine(statistics: Sequence[Mapping[str, Any]], weights: Any) -> Any:
        w = np.asarray(weights, dtype=np.float64)
        values = value(_pool(statistics, np.atleast_2d(w)))
        return float(values[0]) if w.ndim == 1 else values

    return combine


def _entropy_kbps(p: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.sum(p["n"] * p["entropy"], axis=1) / p["seconds"] / 1000


def _entropy_ratio(p: Mapping[str, np.ndarray]) -> np.ndarray:
    bits = np.sum(p["n"] * np.log2(p["sizes"]), axis=1)
    return np.sum(p["n"] * p["entropy"], axis=1) / np.where(bits > 0, bits, 1.0)


def _codebook_use(p: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.mean(p["seen"] / p["sizes"], axis=1)


def _perplexity(p: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.mean(np.exp2(p["entropy"]), axis=1)


@corpus_metric(
    "entropy_kbps",
    combine=_per_replicate(_entropy_kbps),
    unit="kbps",
    direction="lower",
    group="rate",
    range=(0, math.inf),
)
def entropy_kbps(tokens: Tokens) -> dict[str, np.ndarray]:
    """Empirical entropy rate: what an ideal memoryless entropy coder of this corpus' codes would need.

    For every codebook the plug-in entropy of the histogram pooled over clips, times its codes; their sum over the
    seconds. Padding frames counted, side information and container not. Biased low on a short corpus (no Miller-Madow
    or other correction): by about (K - 1) / (2 N ln 2) bits a code for N codes of a codebook of K. Bootstrap replicates
    repeat clips and are lower still, so a percentile interval lies below the value it is for.

    >>> s = entropy_kbps(Tokens(np.array([[0, 0, 1, 1, 2, 2, 3, 3]]), (256,), 8, 8000, 8000))
    >>> entropy_kbps.info.combine([s], np.array([1.0]))  # 8 codes/s of 2 bits
    0.016

    Raises:
        NotApplicable: from combine: no tokens at all; codebooks whose sizes differ between clips.
    """
    return code_counts(tokens)


@corpus_metric(
    "entropy_ratio",
    combine=_per_replicate(_entropy_ratio),
    unit="1",
    direction="none",
    group="rate",
    range=(0, 1),
)
def entropy_ratio(tokens: Tokens) -> dict[str, np.ndarray]:
    """Entropy over log2 K: the share of the emitted bits that a memoryless entropy coder would keep.

    Average over codebooks, each weighted by the bits it emitted (codes x log2 K); 1 is an even use of all codes.
    Plug-in entropy as in `entropy_kbps`, with the same bias on a short corpus.

    >>> s = entropy_ratio(Tokens(np.array([[0, 0, 1, 1, 2, 2, 3, 3]]), (256,), 8, 8000, 8000))
    >>> entropy_ratio.info.combine([s], np.array([1.0]))
    0.25
    """
    return code_counts(tokens)


@corpus_metric(
    "codebook_use",
    combine=_per_replicate(_codebook_use),
    unit="1",
    direction="none",
    group="rate",
    range=(0, 1),
)
def codebook_use(tokens: Tokens) -> dict[str, np.ndarray]:
    """Fraction of each codebook's codes that occur in the corpus, averaged over codebooks.

    At most the number of codes emitted over K: on a short corpus it speaks of the corpus, not of the codebook.
    Bootstrap replicates see fewer distinct codes, so a percentile interval lies below the value it is for.

    >>> s = codebook_use(Tokens(np.array([[0, 0, 1, 1], [0, 1, 2, 3]]), (4, 4), 4, 8000, 8000))
    >>> codebook_use.info.combine([s], np.array([1.0]))
    0.75
    """
    return code_counts(tokens)


@corpus_metric(
    "perplexity",
    combine=_per_replicate(_perplexity),
    unit="codes",
    direction="none",
    group="rate",
    range=(1, math.inf),
)
def perplexity(tokens: Tokens) -> dict[str, np.ndarray]:
    """Unigram perplexity: 2 to the entropy of each codebook, averaged over codebooks; between 1 and K.

    The number of codes that, used evenly, would have the same entropy. Plug-in, biased low on a short corpus.

    >>> s = perplexity(Tokens(np.array([[0, 0, 1, 1, 2, 2, 3, 3]]), (256,), 8, 8000, 8000))
    >>> perplexity.info.combine([s], np.array([1.0]))
    4.0
    """
    return code_counts(tokens)
