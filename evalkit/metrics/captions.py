"""n-gram measures of captions (BLEU, ROUGE-L, CIDEr-D), and statistics of their words and lengths.

Values are those of the reference code (coco-caption, and aac-metrics, which follows it), constants included. Captions
come raw and are tokenised here by `evalkit.caption_tokens.ptb_tokens`: lower case, punctuation dropped. The functions
named after a measure take lists of words; the metrics below them take what a captioning task offers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalkit.caption_tokens import VERSION, ptb_tokens
from evalkit.errors import NotApplicable
from evalkit.registry import corpus_metric, metric

CAPTIONS = (
    *(f"bleu_{n}" for n in range(1, 5)),
    *(f"sentence_bleu_{n}" for n in range(1, 5)),
    "rouge_l",
    "cider_d",
)
VOCABULARY = (
    "caption_words",
    "length_ratio",
    "vocabulary",
    "vocabulary_share",
    "novel_words",
    "distinct_captions",
    "sentence_div_1",
    "sentence_div_2",
)

Words = Sequence[str]

LOSES_WORDS = "a resample repeats clips and loses the words of others"


# -- n-grams of many captions at once ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counts:
    """n-grams of one order: entry i says that caption ``caption[i]`` has n-gram ``gram[i]`` ``count[i]`` times.

    One entry a pair, ordered by caption, then n-gram; int64. ``grams`` is the number of different n-grams.
    """

    caption: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    grams: int

    def part(self, start: int, stop: int) -> _Counts:
        """Those of captions ``start`` to ``stop``, numbered from 0."""
        a, b = np.searchsorted(self.caption, (start, stop))
        return _Counts(self.caption[a:b] - start, self.gram[a:b], self.count[a:b], self.grams)

    def find(self, captions: np.ndarray, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the entries of these captions and n-grams are, and whether they are there."""
        if not len(self.gram):
            return np.zeros(len(captions), np.int64), np.zeros(len(captions), bool)
        keys = self.caption * self.grams + self.gram
        wanted = captions * self.grams + grams
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return at, keys[at] == wanted


def _ngrams(captions: Sequence[Words], most: int = 4) -> list[_Counts]:
    """n-grams of n = 1 to ``most``; the same n-gram has the same number in all captions."""
    every = list(itertools.chain.from_iterable(captions))
    ids = {word: i for i, word in enumerate(dict.fromkeys(every))}
    words = np.fromiter(map(ids.__getitem__, every), np.int64, len(every))
    lengths = np.array([len(c) for c in captions], np.int64)
    owner = np.repeat(np.arange(len(captions)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words from here to the caption's end
    out = []
    gram, grams = words, len(ids)
    for n in range(1, most + 1):
        if n > 1:
            gram = gram[:-1] * len(ids) + words[n - 1 :]  # those across two captions are left out below
            order = np.argsort(gram)
            first = _first_of_equals(gram[order])
            gram[order] = np.cumsum(first) - 1
            grams = int(first.sum())
        whole = left[: len(gram)] >= n
        pairs = np.sort(owner[: len(gram)][whole] * max(1, grams) + gram[whole])
        at = np.flatnonzero(_first_of_equals(pairs))
        caption, which = np.divmod(pairs[at], max(1, grams))
        out.append(_Counts(caption, which, np.diff(at, append=len(pairs)), grams))
    return out


def _first_of_equals(ordered: np.ndarray) -> np.ndarray:
    """Whether each of the sorted values differs from the one before; `numpy.unique` costs several times as much."""
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return first


def _flat(references: Sequence[Sequence[Words]]) -> tuple[list[Words], np.ndarray]:
    """All references in one list, and the clip of each."""
    flat = [words for several in references for words in several]
    return flat, np.repeat(np.arange(len(references)), [len(several) for several in references])


# -- BLEU -------------------------------------------------------------------------------------------------------------

_SMALL, _TINY = 1e-9, 1e-15
"""What coco-caption adds to denominators and numerators."""


def bleu_counts(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, np.ndarray]:
    """What BLEU is computed from, of each clip.

    Returns:
        int64: ``correct`` and ``guess`` [clips, 4], n-grams of the candidate that are in a reference (at most as often
        as in the reference that has most of them) and all of them; ``length`` [clips], words of the candidate;
        ``closest`` [clips], words of the reference whose length is nearest, the shorter of two.

    >>> counts = bleu_counts([["a", "dog", "barks"]], [[["a", "dog"], ["the", "dog", "barks", "twice"]]])
    >>> counts["correct"].tolist(), counts["guess"].tolist(), counts["closest"].tolist()
    ([[3, 2, 0, 0]], [[3, 2, 1, 0]], [2])

    Raises:
        ValueError: a clip without references.
    """
    flat, clip = _flat(references)
    length = np.array([len(words) for words in candidates], np.int64)
    correct = np.zeros((len(candidates), 4), np.int64)
    for n, counts in enumerate(_ngrams([*candidates, *flat])):
        own, of_reference = counts.part(0, len(candidates)), counts.part(len(candidates), len(candidates) + len(flat))
        at, there = own.find(clip[of_reference.caption], of_reference.gram)
        most = np.zeros(len(own.gram), np.int64)
        np.maximum.at(most, at[there], of_reference.count[there])
        np.add.at(correct[:, n], own.caption, np.minimum(own.count, most))
    return {
        "correct": correct,
        "guess": np.maximum(0, length[:, None] - np.arange(4)),
        "length": length,
        "closest": np.array(
            [
                min((abs(len(r) - n), len(r)) for r in several)[1]
                for several, n in zip(references, length.tolist(), strict=True)
            ],
            np.int64,
        ),
    }


def bleu_from_counts(counts: Mapping[str, Any]) -> np.ndarray:
    """BLEU-1 to BLEU-4 of counts as `bleu_counts` gives them, for each clip or pooled.

    The geometric mean of the precisions of n-grams up to n, times the brevity penalty exp(1 - closest / length) where
    the candidate is shorter (Papineni et al., ACL 2002), with coco-caption's constants: without a common n-gram it is
    small, not 0.

    Args:
        counts: ``correct`` and ``guess`` [..., 4], ``length`` and ``closest`` [...].

    Returns:
        float64 [..., 4], each in 0..1; 0 for an empty candidate.
    """
    precision = (np.asarray(counts["correct"], float) + _TINY) / (np.asarray(counts["guess"], float) + _SMALL)
    value = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, 5))
    ratio = (np.asarray(counts["length"], float) + _TINY) / (np.asarray(counts["closest"], float) + _SMALL)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return value * np.asarray(penalty)[..., None]


# -- ROUGE-L ----------------------------------------------------------------------------------------------------------


def longest_common_subsequence(a: Words, b: Words) -> int:
    """Length of the longest common subsequence of two lists of words.

    Bit-parallel (Hyyrö, 2004): one addition of integers of len(a) bits for each word of ``b``.

    >>> longest_common_subsequence("a dog barks at a man".split(), "the dog barks at the big man".split())
    4
    """
    at: dict[str, int] = {}
    for i, word in enumerate(a):
        at[word] = at.get(word, 0) | 1 << i
    state = every = (1 << len(a)) - 1
    for word in b:
        matches = state & at.get(word, 0)
        state = (state + matches) | (state - matches)
    return len(a) - (state & every).bit_count()


def rouge_l(candidate: Words, references: Sequence[Words], beta: float = 1.2) -> float:
    """ROUGE-L of one candidate (Lin, 2004), as coco-caption has it.

    Precision and recall are each the highest over the references, possibly of different ones; the value is their
    F-measure with ``beta``. In 0..1; 0 for an empty candidate. A reference without words counts as nothing in common.

    >>> round(rouge_l("a dog barks".split(), ["a dog barks loudly".split(), "dogs".split()]), 4)
    0.8356

    Raises:
        ValueError: no references.
    """
    if not candidate:
        return 0.0
    common = [longest_common_subsequence(candidate, r) for r in references]
    precision = max(common) / len(candidate)
    recall = max(c / len(r) if r else 0.0 for c, r in zip(common, references, strict=True))
    if not precision:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


# -- CIDEr-D ----------------------------------------------------------------------------------------------------------


def cider_d(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    corpus: Sequence[Sequence[Words]] | None = None,
    sigma: float = 6.0,
) -> np.ndarray:
    """CIDEr-D of each clip (Vedantam et al., CVPR 2015), as its reference code has it.

    For n = 1 to 4, captions are vectors of n-gram counts times log(clips / clips with the n-gram in a reference); the
    similarity to a reference is their cosine, with the candidate's entries clipped to the reference's in the numerator,
    times exp(-d² / 2 sigma²), d the difference of their lengths, counted in bigrams. The value is 10 times the mean
    over n and references.

    Args:
        candidates, references: words of each clip; every clip has at least one reference.
        corpus: references that document frequencies are counted in, clip by clip; None: ``references``. An n-gram that
            is in none counts as being in one clip.

    Returns:
        float64 [clips], in 0..10; 0 for an empty candidate.

    >>> dogs, rain = "a dog barks loudly".split(), "rain falls on a roof".split()
    >>> cider_d([dogs, rain], [[dogs], [dogs]]).round(3).tolist()
    [0.0, 0.0]
    >>> cider_d([dogs, dogs], [[dogs], [rain]]).round(3).tolist()
    [10.0, 0.0]

    Raises:
        ValueError: fewer than two clips to count document frequencies in: all would be 1, and every value 0.
    """
    flat, clip = _flat(references)
    if corpus is None:
        documents: list[Words] = []
        document, count = clip, len(references)
    else:
        documents, document = _flat(corpus)
        count = sum(1 for several in corpus if several)
    if count < 2:
        raise ValueError(f"document frequencies need references of two clips, there are {count}")
    starts = np.cumsum([0, len(candidates), len(flat), len(documents)])
    bigrams = np.array([max(0, len(words) - 1) for words in (*candidates, *flat)], float)
    difference = bigrams[: len(candidates)][clip] - bigrams[len(candidates) :]
    total = np.zeros(len(flat))
    for counts in _ngrams([*candidates, *flat, *documents]):
        own, theirs, other = (counts.part(a, b) for a, b in itertools.pairwise(starts))
        counted = theirs if corpus is None else other
        pairs = np.sort(document[counted.caption] * max(1, counts.grams) + counted.gram)
        pairs = pairs[_first_of_equals(pairs)]
        frequency = np.bincount(pairs % max(1, counts.grams), minlength=counts.grams)
        weight = math.log(count) - np.log(np.maximum(1, frequency))

        a, b = own.count * weight[own.gram], theirs.count * weight[theirs.gram]
        norm = np.sqrt(np.bincount(own.caption, a * a, len(candidates)))[clip]
        norm *= np.sqrt(np.bincount(theirs.caption, b * b, len(flat)))
        at, there = own.find(clip[theirs.caption], theirs.gram)
        common = np.minimum(a[at[there]], b[there]) * b[there]
        total += np.bincount(theirs.caption[there], common, len(flat)) / np.where(norm > 0, norm, 1.0)
    total *= np.exp(-(difference**2) / (2 * sigma**2))
    each = np.bincount(clip, total / 4, len(candidates)) / np.bincount(clip, minlength=len(candidates))
    return np.minimum(10.0, 10 * each)  # 10 but for rounding


# -- metrics: common --------------------------------------------------------------------------------------------------


def _tokeniser() -> dict[str, str]:
    return {"tokeniser": VERSION}


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [ptb_tokens(text) for text in texts]


def _words_of_all(texts: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    return [_words(several) for several in texts]


_NO_REFERENCE = "the clip has no reference to compare with"


def _where_referenced(
    references: Sequence[Sequence[str]], values: Callable[[list[int]], Sequence[float] | np.ndarray]
) -> list[float | NotApplicable]:
    """``values`` of the clips that have references, and a reason for the others."""
    able = [i for i, several in enumerate(references) if several]
    out: list[float | NotApplicable] = [NotApplicable(_NO_REFERENCE) for _ in references]
    for i, value in zip(able, values(able) if able else [], strict=True):
        out[i] = float(value)
    return out


def _need_references(references: Sequence[Sequence[str]]) -> None:
    without = sum(1 for several in references if not several)
    if without:
        raise NotApplicable(f"{without} of {len(references)} clips have no reference, and the value is of all together")


def _rows(weights: Any) -> np.ndarray:
    return np.atleast_2d(np.asarray(weights, dtype=np.float64))


def _like(weights: Any, values: np.ndarray) -> Any:
    """A float for weights of one dimension, else one value a row."""
    return float(values[0]) if np.ndim(weights) == 1 else values


# -- metrics: BLEU ----------------------------------------------------------------------------------------------------


def _sentence_bleu(n: int) -> Any:
    def sentence_bleu(candidates: list[str], references: list[list[str]]) -> list[float | NotApplicable]:
        def values(able: list[int]) -> np.ndarray:
            counts = bleu_counts(_words([candidates[i] for i in able]), _words_of_all([references[i] for i in able]))
            return bleu_from_counts(counts)[:, n - 1]

        return _where_referenced(references, values)

    sentence_bleu.__doc__ = f"""BLEU-{n} of one clip: precision of its n-grams up to {n}, with the brevity penalty.

    The published per-clip values are of this kind. Their mean is not the corpus' BLEU. Without a common {n}-gram, or
    with fewer than {n} words, it is small and not 0: see `bleu_from_counts`. n/a for a clip without references.
    """
    sentence_bleu.__qualname__ = sentence_bleu.__name__ = f"sentence_bleu_{n}"
    return metric(
        f"sentence_bleu_{n}",
        unit="1",
        direction="higher",
        group="captions",
        range=(0, 1),
        extra_identity=_tokeniser,
    )(sentence_bleu)


def _bleu(n: int) -> Any:
    def combine(statistics: list[Mapping[str, Any]], weights: Any) -> Any:
        pooled = {
            key: np.tensordot(_rows(weights), np.array([s[key] for s in statistics]), 1)
            for key in ("correct", "guess", "length", "closest")
        }
        return _like(weights, bleu_from_counts(pooled)[:, n - 1])

    def bleu(candidates: list[str], references: list[list[str]]) -> list[dict[str, np.ndarray]]:
        _need_references(references)
        counts = bleu_counts(_words(candidates), _words_of_all(references))
        return [{key: value[i] for key, value in counts.items()} for i in range(len(candidates))]

    bleu.__doc__ = f"""BLEU-{n} of the corpus: n-gram precisions up to {n} and brevity penalty of the pooled counts.

    Reference length: of each clip the one closest to the candidate's, summed ("closest" in coco-caption and
    aac-metrics). Not the mean of the clips' values.

    Raises:
        NotApplicable: a clip without references.
    """
    bleu.__qualname__ = bleu.__name__ = f"bleu_{n}"
    return corpus_metric(
        f"bleu_{n}",
        combine=combine,
        unit="1",
        direction="higher",
        group="captions",
        range=(0, 1),
        extra_identity=_tokeniser,
    )(bleu)


bleu_1, bleu_2, bleu_3, bleu_4 = (_bleu(n) for n in range(1, 5))
sentence_bleu_1, sentence_bleu_2, sentence_bleu_3, sentence_bleu_4 = (_sentence_bleu(n) for n in range(1, 5))


# -- metrics: ROUGE-L and CIDEr-D -------------------------------------------------------------------------------------


@metric("rouge_l", unit="1", direction="higher", group="captions", range=(0, 1), extra_identity=_tokeniser)
def rouge_l_metric(candidates: list[str], references: list[list[str]]) -> list[float | NotApplicable]:
    """ROUGE-L: longest common subsequence of words, F-measure with beta 1.2, best precision and recall over references.

    See `rouge_l`. n/a for a clip without references.
    """
    return _where_referenced(
        references, lambda able: [rouge_l(ptb_tokens(candidates[i]), _words(references[i])) for i in able]
    )


@metric("cider_d", unit="1", direction="higher", group="captions", range=(0, 10), extra_identity=_tokeniser)
def cider_d_metric(
    candidates: list[str], references: list[list[str]], corpus: list[list[str]]
) -> list[float | NotApplicable]:
    """CIDEr-D: similarity of weighted n-grams to the references; weights are of all clips evaluated together.

    Document frequencies are counted in the references of all clips of the task, so that a clip's value depends on the
    set: values over a subset, or against another number of references, are not comparable. An interval keeps the
    frequencies of the whole set. See `cider_d`. n/a for a clip without references.

    Raises:
        NotApplicable: fewer than two clips with references: every weight would be 0.
    """
    clips = sum(1 for several in corpus if several)
    if clips < 2:
        raise NotApplicable(f"document frequencies need references of two clips, the task has {clips}")

    def values(able: list[int]) -> np.ndarray:
        every = _words_of_all([references[i] for i in able])
        frequencies = None if references == corpus and len(able) == len(corpus) else _words_of_all(corpus)
        return cider_d(_words([candidates[i] for i in able]), every, frequencies)

    return _where_referenced(references, values)


# -- metrics: vocabulary and lengths ----------------------------------------------------------------------------------


def _presence(statistics: Sequence[Mapping[str, Any]], key: str, weights: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which of the numbers under ``key`` occur in the clips of each row of weights: bool [rows, numbers], numbers."""
    from scipy import sparse

    sizes = [len(s[key]) for s in statistics]
    numbers, column = np.unique(np.concatenate([np.asarray(s[key]) for s in statistics]), return_inverse=True)
    clip = np.repeat(np.arange(len(statistics)), sizes)
    there = sparse.csr_array((np.ones(len(column)), (clip, column)), shape=(len(statistics), len(numbers)))
    return np.asarray((_rows(weights) > 0).astype(float) @ there) > 0, numbers


def _count_distinct(statistics: list[Mapping[str, Any]], weights: Any) -> Any:
    return _like(weights, _presence(statistics, "words", weights)[0].sum(axis=1).astype(float))


def _share_of_references(statistics: list[Mapping[str, Any]], weights: Any) -> Any:
    there, numbers = _presence(statistics, "words", weights)
    known = np.asarray(statistics[0]["reference_words"])
    return _like(weights, there[:, np.isin(numbers, known)].sum(axis=1) / len(known))


def _share_distinct(statistics: list[Mapping[str, Any]], weights: Any) -> Any:
    return _like(weights, _presence(statistics, "caption", weights)[0].sum(axis=1) / _rows(weights).sum(axis=1))


@corpus_metric(
    "vocabulary",
    combine=_count_distinct,
    unit="words",
    direction="none",
    group="vocabulary",
    range=(0, math.inf),
    no_interval=LOSES_WORDS,
    extra_identity=_tokeniser,
)
def vocabulary(candidates: list[str]) -> list[dict[str, np.ndarray]]:
    """Distinct words in all candidates together. It grows with the number of clips.

    No interval: a resample of the clips repeats some and loses others' words.
    """
    ids: dict[str, int] = {}
    return [
        {"words": np.array([ids.setdefault(w, len(ids)) for w in sorted(set(words))], np.int64)}
        for words in _words(candidates)
    ]


@corpus_metric(
    "vocabulary_share",
    combine=_share_of_references,
    unit="1",
    direction="none",
    group="vocabulary",
    range=(0, 1),
    no_interval=LOSES_WORDS,
    extra_identity=_tokeniser,
)
def vocabulary_share(candidates: list[str], references: list[list[str]]) -> list[dict[str, np.ndarray]]:
    """Share of the references' distinct words that the candidates use, all clips together.

    The references of all clips with a candidate; several a clip have more words than one candidate can use, so that a
    human caption does not reach 1 either.

    Raises:
        NotApplicable: the references have no word.
    """
    known = sorted({word for several in references for text in several for word in ptb_tokens(text)})
    if not known:
        raise NotApplicable(f"the references of the {len(references)} clips have no word")
    ids = {word: i for i, word in enumerate(known)}
    numbers = np.arange(len(known))
    return [
        {
            "words": np.array([ids[w] for w in sorted(set(words)) if w in ids], np.int64),
            "reference_words": numbers,
        }
        for words in _words(candidates)
    ]


@corpus_metric(
    "distinct_captions",
    combine=_share_distinct,
    unit="1",
    direction="none",
    group="vocabulary",
    range=(0, 1),
    no_interval=LOSES_WORDS,
    extra_identity=_tokeniser,
)
def distinct_captions(candidates: list[str]) -> list[dict[str, np.ndarray]]:
    """Different captions over clips: 1 if none is said twice, 1 / clips if the same is said of every clip.

    Captions are the same if their words are. No interval: a resample repeats clips.
    """
    ids: dict[tuple[str, ...], int] = {}
    return [{"caption": np.array([ids.setdefault(tuple(w), len(ids))], np.int64)} for w in _words(candidates)]


@metric(
    "caption_words", unit="words", direction="none", group="vocabulary", range=(0, math.inf), extra_identity=_tokeniser
)
def caption_words(candidates: list[str]) -> list[float]:
    """Words of the candidate; 0 for an empty one."""
    return [float(len(words)) for words in _words(candidates)]


@metric("length_ratio", unit="1", direction="none", group="vocabulary", range=(0, math.inf), extra_identity=_tokeniser)
def length_ratio(candidates: list[str], references: list[list[str]]) -> list[float | NotApplicable]:
    """Words of the candidate over the mean of its references. n/a where they have none."""
    out: list[float | NotApplicable] = []
    for candidate, several in zip(candidates, references, strict=True):
        words = sum(len(ptb_tokens(text)) for text in several)
        if words:
            out.append(len(ptb_tokens(candidate)) / (words / len(several)))
        else:
            out.append(NotApplicable("the clip's references have no word" if several else _NO_REFERENCE))
    return out


@metric("novel_words", unit="1", direction="none", group="vocabulary", range=(0, 1), extra_identity=_tokeniser)
def novel_words(candidates: list[str], corpus: list[list[str]]) -> list[float | NotApplicable]:
    """Share of the candidate's words that are in no reference of any clip of the task. n/a for an empty candidate."""
    known = {word for several in corpus for text in several for word in ptb_tokens(text)}
    return [
        sum(word not in known for word in words) / len(words) if words else NotApplicable("the caption has no word")
        for words in _words(candidates)
    ]


def _sentence_div(n: int) -> Any:
    def sentence_div(candidates: list[str]) -> list[float | NotApplicable]:
        out: list[float | NotApplicable] = []
        for words in _words(candidates):
            grams = list(zip(*(words[k:] for k in range(n)), strict=False))
            if grams:
                out.append(len(set(grams)) / len(grams))
            else:
                out.append(NotApplicable(f"the caption has {len(words)} words, fewer than {n}"))
        return out

    sentence_div.__doc__ = f"""Distinct {n}-grams over all {n}-grams of the candidate: 1 where none is repeated.

    n/a for a candidate of fewer than {n} words.
    """
    sentence_div.__qualname__ = sentence_div.__name__ = f"sentence_div_{n}"
    return metric(
        f"sentence_div_{n}",
        unit="1",
        direction="none",
        group="vocabulary",
        range=(0, 1),
        extra_identity=_tokeniser,
    )(sentence_div)


sentence_div_1, sentence_div_2 = _sentence_div(1), _sentence_div(2)
