"""Sentence similarity, fluency errors, FENSE and BERTScore: closed forms, a real encoder, the published columns."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.errors import EvalkitError, NotApplicable
from evalkit.metrics import semantic as S
from evalkit.registry import get

CAPTIONS = [
    "a dog barks loudly",
    "a dog is barking",
    "rain falls on a tin roof while thunder rumbles",
    "a person plays the piano",
]


class Bag:
    """A toy encoder: counts of letters."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[t.count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], dtype=float)


def test_similarity_is_the_mean_cosine_with_the_references() -> None:
    values = S.sbert_similarity(["ab", "ab", "zz"], [["ab"], ["ab", "c"], ["ab"]], Bag())
    assert values == pytest.approx([1.0, 0.5, 0.0])
    lacking = S.sbert_similarity(["a"], [[]], Bag())[0]
    assert isinstance(lacking, NotApplicable)
    assert S.sbert_similarity([], [], Bag()) == []


def test_a_broken_encoder_is_one_clear_error() -> None:
    class Nan:
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return np.full((len(texts), 3), np.nan)

    class Short:
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return np.ones((1, 3))

    for encoder in (Nan(), Short()):
        with pytest.raises(EvalkitError, match="the sentence encoder gave"):
            S.sbert_similarity(["a"], [["b", "c"]], encoder)


def test_fense_and_spider_fl_follow_from_the_published_columns_exactly(shared: Path) -> None:
    rows = list(csv.DictReader((shared / "reference/captions/conette_clotho_evaluation.csv").open(encoding="utf-8")))
    assert len(rows) == 1045
    column = lambda name: [float(r[f"best_fense.cands.{name}"]) for r in rows]  # noqa: E731
    probabilities = np.zeros((len(rows), 6))
    probabilities[:, -1] = column("fer.error_prob")
    flagged = S.flags(probabilities)
    assert flagged == column("fer") and 0 < sum(flagged) < 60
    np.testing.assert_allclose(np.array(S.penalised(column("sbert_sim"), flagged), float), column("fense"), atol=1e-15)
    np.testing.assert_allclose(np.array(S.penalised(column("spider"), flagged), float), column("spider_fl"), atol=1e-15)
    assert np.mean(column("fense")) == pytest.approx(0.5172500, abs=5e-8)


def test_a_real_encoder_reads_meaning() -> None:
    """all-MiniLM-L6-v2 from the package that carries it: a paraphrase is nearer than another sound."""
    pytest.importorskip("sentence_transformers")
    encoder = S._encoder("all-MiniLM-L6-v2")
    similar, other = S.sbert_similarity(CAPTIONS[:1] * 2, [[CAPTIONS[1]], [CAPTIONS[3]]], encoder)
    assert isinstance(similar, float) and isinstance(other, float)
    assert similar > 0.7 > 0.4 > other
    assert S.sbert_similarity(CAPTIONS[:1], [CAPTIONS[:1]], encoder) == pytest.approx([1.0], abs=1e-6)
    vectors = encoder.encode(CAPTIONS)
    assert vectors.shape == (4, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    again = encoder.encode(list(reversed(CAPTIONS)))[::-1]
    assert np.array_equal(again, vectors)  # remembered: the same bits whatever the batch


def test_mean_pooling_of_the_real_encoder_is_that_of_its_transformer() -> None:
    """The same vectors by transformers alone: mean of the token states under the mask, normalised."""
    pytest.importorskip("sentence_transformers")
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = str(S.encoder_folder("all-MiniLM-L6-v2"))
    tokens = AutoTokenizer.from_pretrained(folder)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    np.testing.assert_allclose(S._encoder("all-MiniLM-L6-v2").encode(CAPTIONS), expected, atol=2e-6)


def test_the_metric_of_the_carried_model_is_not_called_fense() -> None:
    names = [n for n in S.SEMANTIC if n.startswith(("fense", "sbert_sim"))]
    assert "sbert_sim@all-MiniLM-L6-v2" in names and "fense@all-MiniLM-L6-v2" not in names
    for name in S.SEMANTIC:
        info = get("metrics", name)
        assert info.of_text and info.level == "sample" and info.group == "semantic"


def test_absent_models_are_reasons_with_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for cached in (S._encoder, S._detector, S._token_model):
        cached.cache_clear()
    S._probabilities.cache_clear()
    for name, what in (
        ("sbert_sim@paraphrase-TinyBERT-L6-v2", "hf download sentence-transformers/paraphrase-TinyBERT-L6-v2"),
        (f"fluency_error@{S.DETECTOR}", rf"fense/{S.DETECTOR}\.ckpt absent"),
        ("fense@paraphrase-TinyBERT-L6-v2", "hf download"),
        ("bert_score_f1@roberta-large-L17", "hf download FacebookAI/roberta-large"),
    ):
        info = get("metrics", name)
        values: dict[str, Any] = {"candidates": ["a dog"], "references": [["a dog barks"]]}
        with pytest.raises(NotApplicable, match=what):
            info.function(**{n: values[n] for n in info.needs})
    S._encoder.cache_clear()


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A tiny BERT with random weights in a folder, with a vocabulary."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["a", "dog", "barks", "is", "barking", "loudly", "rain", "falls", "the", "piano"],
    ]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "bert" / "vocab.txt")).save_pretrained(tmp_path / "bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def checkpoint(bert: Path, path: Path, **changes: Any) -> Path:
    import torch
    from transformers import AutoModel

    torch.manual_seed(1)
    state = {f"encoder.{k}": v for k, v in AutoModel.from_pretrained(bert).state_dict().items()}
    head = torch.nn.Linear(16, 6)
    state |= {"clf.weight": head.weight.detach() * 3, "clf.bias": head.bias.detach()}
    state["encoder.embeddings.position_ids"] = torch.arange(4)[None]  # kept by old versions of transformers
    torch.save({"model_type": "prajjwal1/bert-medium", "num_classes": 6, "state_dict": state, **changes}, path)
    return path


def test_the_detector_loads_the_authors_format(bert: Path, tmp_path: Path) -> None:
    detector = S.FluencyDetector(checkpoint(bert, tmp_path / "d.ckpt"), bert)
    made = detector.probabilities([*CAPTIONS, "A dog, barks."] * 10)
    assert made.shape == (50, 6) and ((made >= 0) & (made <= 1)).all() and made.std() > 0.01
    np.testing.assert_allclose(made[:5], made[5:10], atol=1e-6)
    alone = detector.probabilities(["a dog barks"])
    np.testing.assert_allclose(made[4], alone[0], atol=1e-6)  # lower case, no punctuation
    assert detector.probabilities([]).shape == (0, 6)


def test_a_damaged_detector_is_refused(bert: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"state_dict": {}}, tmp_path / "bad.ckpt")
    with pytest.raises(EvalkitError, match=r"bad\.ckpt: not a fluency detector \(no model_type, num_classes\)"):
        S.FluencyDetector(tmp_path / "bad.ckpt", bert)
    with pytest.raises(EvalkitError, match="does not fit the model"):
        S.FluencyDetector(checkpoint(bert, tmp_path / "x.ckpt", state_dict={"clf.weight": torch.ones(6, 16)}), bert)


def test_bert_score_is_greedy_matching() -> None:
    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 1.0]}
    embed = lambda text: np.array([vectors[c] for c in text])  # noqa: E731
    ((p, r, f),) = S.bert_score(["ab"], [["ac", "aa"]], embed)  # type: ignore[misc]
    half = np.sqrt(0.5)  # cosine of c with a and with b
    assert (p, r) == pytest.approx(((1 + half) / 2, (1 + half) / 2)) and f == pytest.approx((1 + half) / 2)
    assert S.bert_score(["ab"], [["ab"]], embed) == [pytest.approx((1, 1, 1))]
    assert isinstance(S.bert_score(["ab"], [[]], embed)[0], NotApplicable)


def test_bert_score_takes_the_named_layer(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights" / "FacebookAI" / "roberta-large"
    folder.parent.mkdir(parents=True)
    bert.rename(folder)
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path / "weights"))
    S._token_model.cache_clear()
    info = get("metrics", "bert_score_f1@roberta-large-L17")
    same, other = info.function(["a dog barks", "a dog barks"], [["a dog barks"], ["rain falls"]])
    assert same == pytest.approx(1, abs=1e-6) and other < 0.99
    S._token_model.cache_clear()
