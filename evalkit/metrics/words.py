"""Words: what a recogniser makes of the decoded speech, against the transcript or against the original audio.

Both texts are normalised by `normalise`, cut into words (or characters), and compared by the Levenshtein distance:
substitutions, deletions and insertions, each counting one. An error rate is errors over what the reference has; it is
above 1 where much is inserted. The metrics are made for every recogniser, its name after the ``@``.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evalkit import registry
from evalkit.audio import Clip
from evalkit.errors import NotApplicable
from evalkit.recognisers import transcribe
from evalkit.registry import RecogniserInfo, corpus_metric, metric

WORDS = ("wer@pocketsphinx", "cer@pocketsphinx", "dwer@pocketsphinx", "clip_wer@pocketsphinx")

MIN_SECONDS = 0.5
"""Less holds hardly a word."""

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "`": "'", "´": "'"})  # before NFKC, which takes ´ apart


def normalise(text: str) -> str:
    """Text as it is compared: NFKC, lower case, letters, digits and apostrophes within words; single spaces.

    Hyphens, dashes and all other characters part words. Numbers stay as they are written: "5" is not "five", and "Mr"
    is not "mister", so that a recogniser that writes digits and abbreviations is charged for them.

    >>> normalise("“Six spoons -- of FRESH snow-peas”, he  said; 'don’t!'")
    "six spoons of fresh snow peas he said don't"
    """
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LNM" else " " for c in text)
    return " ".join(word for word in (w.strip("'") for w in kept.split()) if word)


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein distance of two sequences: the least number of substitutions, deletions and insertions.

    >>> edits("kitten", "sitting"), edits(["a", "b"], [])
    (3, 2)
    """
    codes: dict[str, int] = {}
    r, h = (np.array([codes.setdefault(x, len(codes)) for x in s], np.int64) for s in (reference, hypothesis))
    steps = np.arange(len(h) + 1)
    row = steps
    for i, x in enumerate(r, 1):
        best = np.concatenate([[i], np.minimum(row[:-1] + (h != x), row[1:] + 1)])
        row = np.minimum.accumulate(best - steps) + steps  # insertions: one a step to the right
    return int(row[-1])


def error_counts(reference: str, hypothesis: str, *, characters: bool = False) -> tuple[int, int]:
    """Errors, and the number of words (or characters, single spaces among them) of the normalised reference.

    >>> error_counts("Six spoons of snow peas.", "six poons snow peas")
    (2, 5)
    >>> error_counts("Six spoons", "six poons", characters=True)
    (1, 10)

    Raises:
        NotApplicable: nothing is left of the reference.
    """
    r, h = normalise(reference), normalise(hypothesis)
    if not r:
        raise NotApplicable("the reference text has no words: the error rate divides by their number")
    if characters:
        return edits(r, h), len(r)
    return edits(r.split(), h.split()), len(r.split())


def error_rate(statistics: Sequence[Mapping[str, Any]], weights: Any) -> Any:
    """Errors of all clips over words of all clips: the corpus value, as speech recognition reports it.

    Args:
        statistics: of each clip ``errors`` and ``length``, ``[1]``.
        weights: how often each clip counts, ``[clips]`` or ``[replicates, clips]``.

    Returns:
        A float, or ``[replicates]``.

    >>> error_rate([{"errors": [1], "length": [10]}, {"errors": [3], "length": [6]}], [1, 1])
    0.25
    """
    w = np.asarray(weights, np.float64)
    errors, length = (np.array([float(np.asarray(s[k])[0]) for s in statistics]) for k in ("errors", "length"))
    value = w @ errors / (w @ length)
    return float(value) if w.ndim == 1 else value


def transcript(labels: Mapping[str, Any]) -> str:
    """The clip's text from its labels; raises NotApplicable where the data set gives none."""
    text = labels.get("transcript")
    if not text:
        raise NotApplicable("the data set gives no transcript of this clip")
    return str(text)


def word_metrics(
    recogniser: str, *, worsens_with: Mapping[str, tuple[str, ...]] | None = None, invariant_to: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Register the word metrics of a recogniser (done for every registered one when this module is imported).

    ``wer@NAME``, ``cer@NAME`` and ``dwer@NAME`` pool errors over clips (intervals by bootstrap over clusters, no
    ranks); ``clip_wer@NAME`` is each clip's own rate, for paired tests and for finding the worst clips. Audio below
    the recogniser's sample rate is n/a: it was not trained on the missing band.

    Args:
        worsens_with: what the self-test holds each to, by kind (``wer``); only what was tried with this recogniser.
        invariant_to: the same of all four.

    Returns:
        The four names.

    Raises:
        UsageError: no recogniser of that name.
    """
    info: RecogniserInfo = registry.get("recognisers", recogniser)
    tried = worsens_with or {}
    shared: dict[str, Any] = {
        "unit": "1",
        "direction": "lower",
        "group": "words",
        "range": (0, math.inf),
        "domains": ("speech",),
        "min_sample_rate": info.sample_rate,
        "min_seconds": MIN_SECONDS,
        "short_clips": "the recogniser takes them whole, whatever their length",
        "requires": info.requires,
        "weights": info.weights,
        "trained_on": info.trained_on,
        "invariant_to": invariant_to,
        "extra_identity": functools.partial(_identity, recogniser),
    }

    @corpus_metric(f"wer@{recogniser}", combine=error_rate, worsens_with=tried.get("wer", ()), **shared)
    def wer(estimate: Clip, labels: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Word error rate of the decoded speech against the transcript: errors over words, pooled over clips.

        Both texts by `normalise`: lower case, no punctuation, numbers as written. It holds the recogniser's own errors:
        read it beside the original's (the system `identity`), and compare systems by one recogniser only.

        Raises:
            NotApplicable: no transcript, or none with words; the recogniser's package or weights are absent.
        """
        return _counts(transcript(labels), transcribe(estimate, recogniser))

    @corpus_metric(f"cer@{recogniser}", combine=error_rate, worsens_with=tried.get("cer", ()), **shared)
    def cer(estimate: Clip, labels: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Character error rate against the transcript, single spaces counted, pooled over clips."""
        return _counts(transcript(labels), transcribe(estimate, recogniser), characters=True)

    @corpus_metric(f"dwer@{recogniser}", combine=error_rate, worsens_with=tried.get("dwer", ()), **shared)
    def dwer(reference: Clip, estimate: Clip) -> dict[str, np.ndarray]:
        """Differential word error rate: the recogniser's words of the decoded audio against its words of the original.

        Needs no transcript, and the recogniser's own errors cancel where it makes them twice: a copy has 0. The dWER
        of speech enhancement (Z.-Q. Wang et al., 2021) and of codec surveys. n/a where it hears no words in the
        original.
        """
        heard = transcribe(reference, recogniser)
        if not normalise(heard):
            raise NotApplicable(f"{recogniser} hears no words in the original")
        return _counts(heard, transcribe(estimate, recogniser))

    @metric(f"clip_wer@{recogniser}", worsens_with=tried.get("clip_wer", ()), **shared)
    def clip_wer(estimate: Clip, labels: Mapping[str, Any]) -> float:
        """Word error rate of each clip; its mean over clips weighs short clips more than `wer`, which pools."""
        errors, length = error_counts(transcript(labels), transcribe(estimate, recogniser))
        return errors / length

    return tuple(f"{kind}@{recogniser}" for kind in ("wer", "cer", "dwer", "clip_wer"))


def _counts(reference: str, hypothesis: str, *, characters: bool = False) -> dict[str, np.ndarray]:
    errors, length = error_counts(reference, hypothesis, characters=characters)
    return {"errors": np.array([errors], np.float64), "length": np.array([length], np.float64)}


def _identity(recogniser: str) -> list[Any]:
    """Which recogniser a value is by: a change of it makes another metric."""
    from evalkit.identity import source_hash

    info = registry.get("recognisers", recogniser)
    return [info.name, info.version, info.sample_rate, source_hash(info.load)]


_LOSS = ("packet_loss",)
for _name in registry.names("recognisers"):
    if _name == "pocketsphinx":
        # Tried on 6 clips each of LibriSpeech and VCTK. Noise of 40 dB sometimes helps it to a word or two of a
        # hundred, so that wer, cer and clip_wer may begin with a step down.
        _worse = {"wer": _LOSS, "cer": _LOSS, "clip_wer": _LOSS, "dwer": (*_LOSS, "noise")}
        word_metrics(_name, worsens_with=_worse, invariant_to=("polarity",))
    else:
        word_metrics(_name)
