"""n-gram measures of captions: published values, plain re-implementations, leave-one-out, properties, hostile input."""

from __future__ import annotations

import ast
import csv
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit import registry
from evalkit.caption_tokens import VERSION, ptb_tokens
from evalkit.captioning import rounds_of
from evalkit.errors import NotApplicable
from evalkit.metrics import captions
from evalkit.metrics.captions import (
    CAPTIONS,
    VOCABULARY,
    bleu_counts,
    bleu_from_counts,
    cider_d,
    longest_common_subsequence,
)
from evalkit.results import text_values

PUBLISHED = "best_fense.cands."


@pytest.fixture(scope="module")
def published(shared: Path) -> tuple[list[dict[str, str]], list[str], list[list[str]]]:
    """Rows, candidates and references of the published file; its text is tokenised already."""
    csv.field_size_limit(10_000_000)
    with (shared / "reference" / "captions" / "conette_clotho_evaluation.csv").open(encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    return rows, [r["cands"] for r in rows], [ast.literal_eval(r["mrefs"]) for r in rows]


def values(name: str, candidates: list[str], references: list[list[str]], corpus: Any = None) -> list[Any]:
    info = registry.get("metrics", name)
    offered = {"candidates": candidates, "references": references, "corpus": references if corpus is None else corpus}
    return list(info.function(**{key: offered[key] for key in info.needs}))


def whole(name: str, candidates: list[str], references: list[list[str]], weights: Any = None) -> Any:
    info = registry.get("metrics", name)
    assert info.combine is not None
    return info.combine(values(name, candidates, references), np.ones(len(candidates)) if weights is None else weights)


# -- published values -------------------------------------------------------------------------------------------------


def test_published_text_is_not_tokenised_further(published: Any) -> None:
    _, candidates, references = published
    every = [*candidates, *(r for several in references for r in several)]
    assert len(every) == 6270
    assert all(" ".join(ptb_tokens(text)) == text for text in every)


@pytest.mark.parametrize(
    ("name", "column", "tolerance"),
    [
        *((f"sentence_bleu_{n}", f"bleu_{n}", 1e-12) for n in range(1, 5)),
        ("rouge_l", "rouge_l", 1e-12),
        ("cider_d", "cider_d", 1e-12),
        ("caption_words", "sent_len_cands", 0),
        ("length_ratio", "sent_len.ratio", 1e-12),
        ("sentence_div_1", "sents_div1.cands", 1e-12),
        ("sentence_div_2", "sents_div2.cands", 1e-12),
    ],
)
def test_published_values_of_every_clip(published: Any, name: str, column: str, tolerance: float) -> None:
    rows, candidates, references = published
    theirs = np.array([float(r[PUBLISHED + column]) for r in rows])
    assert np.abs(np.array(values(name, candidates, references), float) - theirs).max() <= tolerance


def test_published_values_of_the_corpus(published: Any) -> None:
    _, candidates, references = published
    assert np.mean(values("cider_d", candidates, references)) == pytest.approx(0.4817801, abs=5e-8)
    assert whole("bleu_4", candidates, references) == pytest.approx(0.1788489, abs=5e-8)
    assert whole("bleu_1", candidates, references) == pytest.approx(0.605, abs=5e-4)


def test_published_values_from_the_data_sets_own_captions(published: Any, shared: Path) -> None:
    """Four published references have "walkie talkie" where Clotho has a hyphen: one clip's values are of its own."""
    rows, candidates, published_references = published
    with (shared / "data" / "clotho" / "clotho_captions_evaluation.csv").open(encoding="utf-8", newline="") as f:
        of_clip = {row["file_name"]: [row[f"caption_{k}"] for k in range(1, 6)] for row in csv.DictReader(f)}
    references = [of_clip[r["fname"]] for r in rows]
    pairs = [
        (" ".join(ptb_tokens(ours)), theirs)
        for several, others in zip(references, published_references, strict=True)
        for ours, theirs in zip(several, others, strict=True)
    ]
    assert len(pairs) == 5225
    different = [ours for ours, theirs in pairs if ours != theirs]
    assert len(different) == 4 and all("walkie-talkie" in text for text in different)
    theirs = np.array([float(r[PUBLISHED + "cider_d"]) for r in rows])
    error = np.abs(np.array(values("cider_d", candidates, references), float) - theirs)
    assert [rows[i]["fname"] for i in np.flatnonzero(error > 1e-9)] == ["Radio Garble.wav"]


def test_readme_example_of_aac_metrics() -> None:
    candidates = ["a man is speaking", "rain falls"]
    references = [
        ["a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"],
        ["rain is falling hard on a surface"],
    ]
    each = values("cider_d", candidates, references)
    assert [round(v, 4) for v in [*each, np.mean(each)]] == [1.3641, 0.5587, 0.9614]


# -- plain re-implementations -----------------------------------------------------------------------------------------

words = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=9)
clips = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=4)), min_size=2, max_size=5)


def grams(sentence: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(sentence[i : i + n]) for i in range(len(sentence) - n + 1))


def plain_cider_d(candidates: Any, references: Any, corpus: Any) -> list[float]:
    """Vedantam et al., written out with dictionaries."""
    total = [0.0] * len(candidates)
    for n in range(1, 5):
        frequency = Counter(g for several in corpus for g in {g for r in several for g in grams(r, n)})

        def vector(sentence: Any, n: int = n, frequency: Any = frequency) -> dict[Any, float]:
            count = sum(1 for several in corpus if several)
            return {g: k * (math.log(count) - math.log(max(1, frequency[g]))) for g, k in grams(sentence, n).items()}

        for i, (c, several) in enumerate(zip(candidates, references, strict=True)):
            for r in several:
                v, w = vector(c), vector(r)
                size = math.sqrt(sum(x * x for x in v.values())) * math.sqrt(sum(x * x for x in w.values()))
                dot = sum(min(x, w.get(g, 0.0)) * w.get(g, 0.0) for g, x in v.items())
                length = max(0, len(c) - 1) - max(0, len(r) - 1)
                total[i] += 10 * (dot / size if size else dot) * math.exp(-(length**2) / 72) / 4 / len(several)
    return total


def plain_bleu(candidate: list[str], references: list[list[str]]) -> list[float]:
    out, product = [], 1.0
    closest = min((abs(len(r) - len(candidate)), len(r)) for r in references)[1]
    ratio = (len(candidate) + 1e-15) / (closest + 1e-9)
    for n in range(1, 5):
        mine = grams(candidate, n)
        correct = sum(min(k, max(grams(r, n)[g] for r in references)) for g, k in mine.items())
        product *= (correct + 1e-15) / (sum(mine.values()) + 1e-9)
        out.append(product ** (1 / n) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1))
    return out


def plain_lcs(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


@given(clips, st.lists(st.lists(words, max_size=3), max_size=4))
def test_cider_d_written_out(data: Any, others: Any) -> None:
    candidates, references = [c for c, _ in data], [r for _, r in data]
    assert cider_d(candidates, references) == pytest.approx(plain_cider_d(candidates, references, references))
    corpus = [*references, *others]
    assert cider_d(candidates, references, corpus) == pytest.approx(plain_cider_d(candidates, references, corpus))


@given(clips)
def test_bleu_written_out(data: Any) -> None:
    candidates, references = [c for c, _ in data], [r for _, r in data]
    ours = bleu_from_counts(bleu_counts(candidates, references))
    assert ours == pytest.approx(np.array([plain_bleu(c, r) for c, r in data]), abs=1e-12)


@given(words, words)
def test_longest_common_subsequence_written_out(a: list[str], b: list[str]) -> None:
    assert longest_common_subsequence(a, b) == plain_lcs(a, b)


@given(st.integers(0, 2**32))
def test_longest_common_subsequence_of_long_texts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 6, rng.integers(0, 200)).astype(str).tolist() for _ in range(2))
    assert longest_common_subsequence(a, b) == plain_lcs(a, b)


# -- people against people --------------------------------------------------------------------------------------------


def leave_one_out(references: list[list[str]]) -> dict[str, float]:
    """What `evalkit.systems.captions.Human` asks for: reference k against the others, mean over k."""
    predictions = [{"rounds": [{"candidate": t, "left_out": [k]} for k, t in enumerate(r)]} for r in references]
    out = defaultdict(list)
    for one in rounds_of(predictions, [{"captions": r} for r in references]):
        out["cider_d"].append(np.mean(values("cider_d", one.candidates, one.references, one.corpus)))
        out["rouge_l"].append(np.mean(values("rouge_l", one.candidates, one.references)))
        for n in (1, 4):
            out[f"bleu_{n}"].append(whole(f"bleu_{n}", one.candidates, one.references))
    return {name: float(np.mean(v)) for name, v in out.items()}


def random_human(references: list[list[str]], seed: int, draws: int = 5) -> float:
    rng = np.random.default_rng(seed)
    n = len(references)
    each = []
    for _ in range(draws):
        other = (np.arange(n) + rng.integers(1, n, n)) % n
        drawn = [references[i][rng.integers(len(references[i]))] for i in other]
        each.append(np.mean(values("cider_d", drawn, references)))
    return float(np.mean(each))


def test_people_on_clotho(shared: Path) -> None:
    with (shared / "data" / "clotho" / "clotho_captions_evaluation.csv").open(encoding="utf-8", newline="") as f:
        references = [[row[f"caption_{k}"] for k in range(1, 6)] for row in csv.DictReader(f)]
    assert len(references) == 1045
    found = leave_one_out(references)
    published = {"cider_d": 0.906, "rouge_l": 0.510, "bleu_1": 0.655, "bleu_4": 0.321}
    assert found == {name: pytest.approx(value, abs=6e-4) for name, value in published.items()}
    assert random_human(references, 0) == pytest.approx(0.026, abs=0.004)


def test_people_on_audiocaps(shared: Path) -> None:
    with (shared / "data" / "audiocaps" / "test.csv").open(encoding="utf-8", newline="") as f:
        of_clip: dict[str, list[str]] = defaultdict(list)
        for row in csv.DictReader(f):
            of_clip[row["youtube_id"]].append(row["caption"])
    assert len(of_clip) == 975
    with (shared / "reference" / "captions" / "aac_metrics_example_2.csv").open(encoding="utf-8", newline="") as f:
        chosen = {tuple(sorted(row[f"caption_{k}"] for k in range(1, 6))) for row in csv.DictReader(f)}
    plain = [tuple(sorted(" ".join(ptb_tokens(t)) for t in several)) for several in of_clip.values()]
    kept = [several for several, key in zip(of_clip.values(), plain, strict=True) if key in chosen]
    assert len(kept) == len(chosen) == 912  # the clips whose audio there still was
    assert leave_one_out(kept)["cider_d"] == pytest.approx(0.909, abs=5e-4)
    # published references have lost their hyphens
    split = [[text.replace("-", " ") for text in several] for several in kept]
    assert leave_one_out(split)["cider_d"] == pytest.approx(0.911, abs=5e-4)
    assert random_human(kept, 0) == pytest.approx(0.038, abs=0.005)
    assert leave_one_out(list(of_clip.values()))["cider_d"] == pytest.approx(0.908, abs=5e-4)


# -- properties -------------------------------------------------------------------------------------------------------

pool = ["dogs", "bark", "loudly", "while", "rain", "falls", "over", "there"]
text = st.lists(st.sampled_from(pool), max_size=8).map(" ".join)
task = st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=4)), min_size=2, max_size=6)
SAMPLE = [name for name in (*CAPTIONS, *VOCABULARY) if registry.get("metrics", name).level == "sample"]
CORPUS = [name for name in (*CAPTIONS, *VOCABULARY) if registry.get("metrics", name).level == "corpus"]


def plain_values(name: str, candidates: list[str], references: list[list[str]]) -> list[Any]:
    """Reasons as text, so that they compare."""
    found = values(name, candidates, references)
    return [str(v) if isinstance(v, NotApplicable) else round(v, 12) for v in found]


@given(task)
def test_every_value_is_in_its_range(data: Any) -> None:
    candidates, references = [c for c, _ in data], [r for _, r in data]
    for name in SAMPLE:
        low, high = registry.get("metrics", name).range
        for value in values(name, candidates, references):
            assert isinstance(value, NotApplicable) or (isinstance(value, float) and low <= value <= high), name
    for name in CORPUS:
        low, high = registry.get("metrics", name).range
        try:
            assert low <= whole(name, candidates, references) <= high
        except NotApplicable as error:
            assert "no word" in str(error)


@settings(max_examples=20)
@given(task, st.randoms(use_true_random=False))
def test_order_of_references_and_clips_does_not_matter(data: Any, rng: Any) -> None:
    candidates, references = [c for c, _ in data], [r for _, r in data]
    shuffled = [rng.sample(r, len(r)) for r in references]
    order = rng.sample(range(len(data)), len(data))
    for name in SAMPLE:
        found = plain_values(name, candidates, references)
        assert plain_values(name, candidates, shuffled) == found
        moved = plain_values(name, [candidates[i] for i in order], [references[i] for i in order])
        assert moved == [found[i] for i in order]


@given(task)
def test_a_reference_as_candidate_scores_best(data: Any) -> None:
    references = [[f"{r[0]} and nothing else moves", *r[1:]] for _, r in data]
    candidates = [r[0] for r in references]
    for n in range(1, 5):
        assert values(f"sentence_bleu_{n}", candidates, references) == pytest.approx([1.0] * len(data), abs=1e-8)
        assert whole(f"bleu_{n}", candidates, references) == pytest.approx(1.0, abs=1e-8)
    assert values("rouge_l", candidates, references) == pytest.approx([1.0] * len(data))
    best = values("cider_d", candidates, references)
    assert all(b >= o for b, o in zip(best, values("cider_d", ["x"] * len(data), references), strict=True))


def test_cider_d_is_10_for_the_only_reference() -> None:
    references = [["a dog barks loudly twice"], ["rain falls on some roof"]]
    assert values("cider_d", [r[0] for r in references], references) == pytest.approx([10.0, 10.0])
    # with fewer than four words there are no 4-grams, and their part is 0
    assert values("cider_d", ["dogs bark loudly", "rain"], [["dogs bark loudly"], ["rain"]]) == [7.5, 2.5]


@settings(max_examples=20)
@given(task, st.integers(1, 3))
def test_clips_that_are_there_several_times(data: Any, times: int) -> None:
    """Pooled values keep; so does CIDEr-D, whose frequencies and number of clips grow alike."""
    candidates, references = [c for c, _ in data], [r for _, r in data]
    for name in ("bleu_1", "bleu_4"):
        assert whole(name, candidates * times, references * times) == pytest.approx(
            whole(name, candidates, references),
            rel=1e-6,
            abs=1e-5,  # the constants of coco-caption do not grow
        )
        assert whole(name, candidates, references, np.full(len(data), times)) == pytest.approx(
            whole(name, candidates * times, references * times)
        )
    within = [r[0] for r in references]  # no n-gram that is in no reference
    assert values("cider_d", within * times, references * times) == pytest.approx(
        values("cider_d", within, references) * times
    )


@pytest.mark.parametrize("name", CORPUS)
def test_weights_of_two_dimensions(name: str) -> None:
    rng = np.random.default_rng(0)
    pool = ["a", "dog", "cat", "barks", "runs", "loudly", "in", "the", "rain", "on", "and", "off"]
    made = [" ".join(rng.choice(pool, rng.integers(1, 9))) for _ in range(80)]
    candidates, references = made[:20], [made[20 + 3 * i : 23 + 3 * i] for i in range(20)]
    weights = rng.integers(0, 3, (7, 20))
    weights[0] = 1
    together = whole(name, candidates, references, weights)
    assert together.shape == (7,)
    assert together == pytest.approx([whole(name, candidates, references, row) for row in weights])
    # a weight is how often a clip counts; what the references' words are keeps
    if name != "vocabulary_share":
        often = np.repeat(np.arange(20), weights[1])
        again = whole(name, [candidates[i] for i in often], [references[i] for i in often])
        assert together[1] == pytest.approx(again)


# -- vocabulary -------------------------------------------------------------------------------------------------------


def test_vocabulary() -> None:
    candidates = ["A dog barks, a dog!", "a dog barks a dog", "birds sing beautifully"]
    references = [["a dog barks"], ["the dog is barking"], ["birds sing", "a bird sings"]]
    assert whole("vocabulary", candidates, references) == 6
    assert whole("vocabulary", candidates, references, np.array([1, 1, 0])) == 3
    assert whole("distinct_captions", candidates, references) == pytest.approx(2 / 3)
    known = {"a", "dog", "barks", "the", "is", "barking", "birds", "sing", "bird", "sings"}
    assert whole("vocabulary_share", candidates, references) == pytest.approx(5 / len(known))
    assert values("novel_words", candidates, references) == [0.0, 0.0, pytest.approx(1 / 3)]
    assert values("novel_words", candidates, references, [*references, ["beautifully"]])[2] == 0.0
    assert values("caption_words", candidates, references) == [5.0, 5.0, 3.0]
    assert values("length_ratio", candidates, references) == pytest.approx([5 / 3, 5 / 4, 3 / 2.5])
    assert values("sentence_div_1", candidates, references) == [0.6, 0.6, 1.0]
    assert values("sentence_div_2", candidates, references) == [0.75, 0.75, 1.0]


# -- what has no value ------------------------------------------------------------------------------------------------


def test_empty_candidate() -> None:
    candidates, references = ["", "a dog barks at night"], [["a dog barks"], ["a cat sleeps all day"]]
    for name in ("sentence_bleu_1", "sentence_bleu_4", "rouge_l", "cider_d", "caption_words", "length_ratio"):
        assert values(name, candidates, references)[0] == 0.0
    for name, why in (("novel_words", "no word"), ("sentence_div_1", "0 words"), ("sentence_div_2", "0 words")):
        value = values(name, candidates, references)[0]
        assert isinstance(value, NotApplicable) and why in str(value)
    assert whole("bleu_1", ["", ""], references) == 0.0
    assert whole("vocabulary", ["", ""], references) == 0.0


def test_reference_without_words() -> None:
    references = [["...", "a dog"], ["!"]]
    assert values("rouge_l", ["a dog", "a dog"], references) == [1.0, 0.0]
    assert values("sentence_bleu_1", ["a dog", "a dog"], references)[1] < 1e-8
    value = values("length_ratio", ["a dog", "a dog"], [["..."], ["a"]])[0]
    assert isinstance(value, NotApplicable) and "no word" in str(value)


def test_clip_without_references() -> None:
    candidates, references = ["a dog", "a cat sits", "rain"], [["a dog"], [], ["rain"]]
    for name in [n for n in SAMPLE if "references" in registry.get("metrics", n).needs]:
        found = values(name, candidates, references)
        assert isinstance(found[1], NotApplicable) and "no reference" in str(found[1])
        assert all(isinstance(v, float) for v in (found[0], found[2]))
    with pytest.raises(NotApplicable, match="1 of 3 clips have no reference"):
        whole("bleu_4", candidates, references)
    with pytest.raises(NotApplicable, match="no word"):
        whole("vocabulary_share", candidates, [[], ["."], []])
    # the clip without references is no document of the two others
    pair = values("cider_d", ["a dog", "rain"], [["a dog"], ["rain"]])
    assert [v for v in values("cider_d", candidates, references) if isinstance(v, float)] == pytest.approx(pair)


def test_one_clip_has_no_document_frequencies() -> None:
    with pytest.raises(NotApplicable, match="the task has 1"):
        values("cider_d", ["a dog"], [["a dog"]])
    with pytest.raises(ValueError, match="there are 1"):
        cider_d([["a"]], [[["a"]]])
    assert values("cider_d", ["a dog"], [["a dog"]], [["a dog"], ["rain"]]) == pytest.approx([5.0])


def test_hostile_captions() -> None:
    candidates = ["word " * 500, "😀😀", "<b>loud</b>\nand\n\nlong", "a" * 20_000, "\u200b", "' '' ' -- \" ("]
    references = [["a dog barks", "a word"]] * len(candidates)
    corpus = [*references, ["rain"]]
    for name in SAMPLE:
        for value in values(name, candidates, references, corpus):
            assert isinstance(value, NotApplicable) or math.isfinite(value)


# -- in the harness ---------------------------------------------------------------------------------------------------


def test_values_of_two_rounds() -> None:
    """Human captions: each reference against the other, with document frequencies of what remains."""
    references = [["a dog barks loudly", "dogs bark"], ["rain falls", "it rains hard"], ["a car", "cars pass by"]]
    predictions = [{"rounds": [{"candidate": t, "left_out": [k]} for k, t in enumerate(r)]} for r in references]
    rounds = rounds_of(predictions, [{"captions": r} for r in references])
    clusters = ["x", "y", "z"]
    result = text_values(registry.get("metrics", "cider_d"), rounds, clusters, 0)
    split = [[ptb_tokens(text) for text in several] for several in references]
    each = [cider_d([w[k] for w in split], [[w[1 - k]] for w in split]) for k in (0, 1)]
    assert [c["value"] for c in result["clips"]] == pytest.approx(np.mean(each, axis=0).tolist())
    result = text_values(registry.get("metrics", "bleu_1"), rounds, clusters, 0)
    assert 0 <= result["corpus"]["low"] <= result["corpus"]["value"] <= result["corpus"]["high"] <= 1


def test_tokeniser_is_part_of_the_identity() -> None:
    for name in (*CAPTIONS, *VOCABULARY):
        info = registry.get("metrics", name)
        assert info.extra_identity is not None and info.extra_identity() == {"tokeniser": VERSION}
        assert info.group in ("captions", "vocabulary") and info.summary.count(".") <= 2


def test_importing_is_cheap() -> None:
    import subprocess
    import sys

    code = f"import sys, {captions.__name__}; sys.exit('scipy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
