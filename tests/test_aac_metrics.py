"""aac-metrics as the reference: refusals and what it is given (a stand-in worker), and parity where it is installed."""

from __future__ import annotations

import ast
import csv
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit import registry
from evalkit.backends import install as install_module
from evalkit.backends.aac_metrics import AAC_METRICS
from evalkit.backends.client import Backend, BackendError, pins
from evalkit.captioning import rounds_of
from evalkit.errors import NotApplicable
from evalkit.metrics import aac_metrics as A
from evalkit.results import text_values

REASONS = "`evalkit backend install aac-metrics`"


def values(name: str, candidates: list[str], references: list[list[str]], corpus: Any = None) -> list[Any]:
    info = registry.get("metrics", name)
    offered = {"candidates": candidates, "references": references, "corpus": references if corpus is None else corpus}
    return list(info.function(**{key: offered[key] for key in info.needs}))


def whole(name: str, candidates: list[str], references: list[list[str]], weights: Any = None) -> Any:
    made = values(name, candidates, references)
    return registry.get("metrics", name).combine(made, np.ones(len(candidates)) if weights is None else weights)


# -- without the package ----------------------------------------------------------------------------------------------


@pytest.fixture
def absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    A.worker.cache_clear()
    yield
    A.worker.cache_clear()


def test_the_declaration() -> None:
    found = pins(AAC_METRICS)
    assert AAC_METRICS.version == found["aac-metrics"] == "0.6.0" and found["pythonwrench"] == "0.6.8"
    assert len(found) == len(AAC_METRICS.packages)  # every one is pinned
    last = install_module.groups(AAC_METRICS.packages)[-1]
    assert last == (["--no-deps"], ["pythonwrench==0.6.8", "aac-metrics==0.6.0"])
    assert "msclap" not in found


@pytest.mark.parametrize("name", A.NAMES)
def test_every_twin_is_declared_as_ours_is(name: str) -> None:
    import evalkit.metrics.spice  # noqa: F401 - registers meteor

    twin, own = registry.get("metrics", f"{name}@aac-metrics"), registry.get("metrics", name)
    for key in ("unit", "direction", "group", "range", "level", "needs"):
        assert getattr(twin, key) == getattr(own, key), key


@pytest.mark.parametrize("name", A.NAMES)
@pytest.mark.usefixtures("absent")
def test_not_installed(name: str) -> None:
    given = (["a dog barks", ""], [["a dog"], []])
    with pytest.raises(NotApplicable, match=f"backend aac-metrics is not installed: {REASONS}"):
        values(f"{name}@aac-metrics", *given)
    with pytest.raises(NotApplicable, match="is not installed"):
        A.scores([name], *given)


@pytest.mark.usefixtures("absent")
def test_whether_it_is_installed_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = registry.get("metrics", "cider_d@aac-metrics").extra_identity
    before = identity()
    monkeypatch.setattr(install_module, "installed", lambda info: True)
    assert before != identity() and before["installed"] is False


def test_the_worker_refuses_what_it_does_not_know() -> None:
    bare = dataclasses.replace(AAC_METRICS, packages=())  # in this interpreter, where the package need not be
    with Backend(bare, timeout=60) as worker:
        with pytest.raises(BackendError, match=r"no measure 'bleu_5'; there are bleu_1, .*, fense"):
            worker.request("scores", names=["bleu_5"], candidates=[], references=[])
        with pytest.raises(BackendError, match="2 candidates and the references of 1 clips"):
            worker.request("scores", names=["bleu_1"], candidates=["a", "b"], references=[["a"]])
        assert worker.hello()["methods"] == ["bleu_counts", "bleu_of_counts", "check", "ptb", "scores"]


class StandIn:
    """Keeps what it was asked, and answers with 0, 1, 2, ... a clip."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def request(self, method: str, **params: Any) -> Any:
        self.asked.append((method, params))
        if method == "scores":
            count = np.arange(len(params["candidates"]), dtype=float)
            return {"clips": {name: count for name in params["names"]}, "corpus": {}}
        rows = len(params["length"])
        return np.arange(4.0 * rows).reshape(rows, 4)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(A, "worker", lambda: made)
    return made


def test_captions_are_tokenised_first(stand_in: StandIn) -> None:
    assert values("rouge_l@aac-metrics", ["A dog, barking!"], [["It's a dog."]]) == [0.0]
    asked = stand_in.asked[0][1]
    assert asked["candidates"] == ["a dog barking"] and asked["references"] == [["it 's a dog"]]
    assert asked["names"] == ["rouge_l"] and asked["tokenize"] is False


def test_clips_without_references_have_the_reason(stand_in: StandIn) -> None:
    given = (["a", "b", "c", "d"], [["a"], [], ["x", "..."], ["d"]])
    bleu = values("sentence_bleu_4@aac-metrics", *given)
    assert [bleu[0], bleu[2], bleu[3]] == [0.0, 1.0, 2.0] and "no reference" in str(bleu[1])
    rouge = values("rouge_l@aac-metrics", *given)
    assert [rouge[0], rouge[3]] == [0.0, 1.0] and isinstance(rouge[1], NotApplicable)
    assert "1 of the clip's 2 references have no word" in str(rouge[2])
    assert [len(p["candidates"]) for _, p in stand_in.asked] == [3, 2]
    with pytest.raises(NotApplicable, match="1 of 4 clips have no reference"):
        values("bleu_4@aac-metrics", *given)


def test_document_frequencies_are_of_all_clips(stand_in: StandIn) -> None:
    corpus = [["a dog"], ["rain"], [], ["a dog"], ["wind", "a storm"]]
    assert values("cider_d@aac-metrics", ["a", "b"], [["a dog"], ["wind", "a storm"]], corpus) == [0.0, 1.0]
    asked = stand_in.asked[0][1]
    assert asked["candidates"] == ["a", "b", "", ""]
    assert sorted(asked["references"]) == sorted(several for several in corpus if several)
    with pytest.raises(NotApplicable, match="references of 1 of 1 clips are not among the corpus' 4"):
        values("cider_d@aac-metrics", ["a"], [["a cat"]], corpus)
    with pytest.raises(NotApplicable, match="references of two clips, the task has 1"):
        values("cider_d@aac-metrics", ["a"], [["a"]])
    with pytest.raises(NotApplicable, match="references of the 2 clips have no word"):
        values("cider_d@aac-metrics", ["a", "b"], [["..."], [""]])


def test_rounding_above_ten_is_cut_off_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(A, "worker", lambda: None)
    monkeypatch.setattr(A, "_each", lambda name, candidates, references: [10.000000000000002, 10.1, 3.0])
    assert values("cider_d@aac-metrics", ["a"] * 3, [["a"]] * 3) == [10.0, 10.1, 3.0]


def test_pooled_counts_are_of_weighted_clips(stand_in: StandIn) -> None:
    clip = {"correct": np.array([3, 2, 1, 0]), "guess": np.array([4, 3, 2, 1]), "length": 4, "closest": 5}
    combine = registry.get("metrics", "bleu_2@aac-metrics").combine
    assert combine([clip, clip], np.array([1, 2])) == 1.0
    assert combine([clip, clip], np.array([[1, 2], [0, 1]])).tolist() == [1.0, 5.0]
    asked = stand_in.asked[1][1]
    assert asked["correct"].tolist() == [[9, 6, 3, 0], [3, 2, 1, 0]] and asked["closest"].tolist() == [15, 5]


# -- with the package -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed() -> None:
    if not install_module.installed(AAC_METRICS):
        pytest.skip(f"{REASONS} has not been run (1.4 GB)")
    A.worker.cache_clear()


@pytest.fixture(scope="module")
def published(shared: Path) -> tuple[list[dict[str, str]], list[str], list[list[str]]]:
    csv.field_size_limit(10_000_000)
    with (shared / "reference" / "captions" / "conette_clotho_evaluation.csv").open(encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    return rows, [r["cands"] for r in rows], [ast.literal_eval(r["mrefs"]) for r in rows]


def random_task(seed: int, clips: int = 60) -> tuple[list[str], list[list[str]]]:
    """Captions of few words, so that n-grams of every order recur; some are empty, some repeat a reference."""
    rng = np.random.default_rng(seed)

    def caption(least: int) -> str:
        return " ".join(rng.choice(list("abcdef"), rng.integers(least, 12)))

    references = [[caption(1) for _ in range(rng.integers(1, 6))] for _ in range(clips)]
    return [several[0] if rng.random() < 0.1 else caption(0) for several in references], references


def assert_same(candidates: list[str], references: list[list[str]], corpus: Any = None) -> None:
    for name in ("cider_d", "rouge_l", *(f"sentence_bleu_{n}" for n in range(1, 5))):
        theirs = values(f"{name}@aac-metrics", candidates, references, corpus)
        mine = values(name, candidates, references, corpus)
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12), name
    for n in range(1, 5):
        name, weights = f"bleu_{n}", np.random.default_rng(n).integers(0, 4, (7, len(candidates)))
        theirs = whole(f"{name}@aac-metrics", candidates, references)
        assert whole(name, candidates, references) == pytest.approx(theirs, rel=1e-12), name
        given = [A.words(c) for c in candidates], [[A.words(r) for r in several] for several in references]
        assert theirs == pytest.approx(A.scores([name], *given)["corpus"][name], rel=1e-12), name
        resampled = whole(f"{name}@aac-metrics", candidates, references, weights)
        assert whole(name, candidates, references, weights) == pytest.approx(resampled, rel=1e-12), name


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_the_example_of_its_readme() -> None:
    candidates = ["a man is speaking", "rain falls"]
    references = [
        ["a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"],
        ["rain is falling hard on a surface"],
    ]
    theirs = values("cider_d@aac-metrics", candidates, references)
    assert np.round(theirs, 4).tolist() == [1.3641, 0.5587] and np.mean(theirs) == pytest.approx(0.9614, abs=5e-5)
    assert np.round(values("cider_d", candidates, references), 4).tolist() == [1.3641, 0.5587]
    assert whole("bleu_1@aac-metrics", candidates, references) == pytest.approx(0.4278, abs=5e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_parity_on_clotho(published: Any) -> None:
    rows, candidates, references = published
    assert_same(candidates, references)
    assert_same(candidates[100:160], references[100:160])
    for name in ("cider_d", "rouge_l"):
        theirs = values(f"{name}@aac-metrics", candidates, references)
        assert theirs == pytest.approx([float(r[f"best_fense.cands.{name}"]) for r in rows], rel=1e-12, abs=1e-12)
    # candidates of some clips only, with the document frequencies of all
    part = values("cider_d@aac-metrics", candidates[:50], references[:50], references)
    assert part == pytest.approx(values("cider_d", candidates, references)[:50], rel=1e-9, abs=1e-12)
    vocabulary = A.scores(["vocab"], candidates, references)["corpus"]["vocab.cands"]
    assert whole("vocabulary", candidates, references) == vocabulary == 636


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("seed", range(3))
def test_parity_on_random_captions(seed: int) -> None:
    candidates, references = random_task(seed)
    assert "" in candidates
    assert_same(candidates, references)


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_table_has_the_same_value_and_interval() -> None:
    candidates, references = random_task(7)
    predictions = [{"rounds": [{"candidate": c, "left_out": []}]} for c in candidates]
    rounds = rounds_of(predictions, [{"captions": several} for several in references])
    clusters = [str(i) for i in range(len(candidates))]
    for name in ("bleu_4", "cider_d"):
        mine = text_values(registry.get("metrics", name), rounds, clusters, 1)
        theirs = text_values(registry.get("metrics", f"{name}@aac-metrics"), rounds, clusters, 1)
        of_all, reference = mine["corpus"] or {}, theirs["corpus"] or {}
        assert of_all == {k: pytest.approx(v) if isinstance(v, float) else v for k, v in reference.items()}
        each, references_each = ([clip.get("value", 0.0) for clip in one["clips"]] for one in (mine, theirs))
        assert each == pytest.approx(references_each, rel=1e-9, abs=1e-12)
        assert (of_all.get("low") is not None) if name == "bleu_4" else (max(each) > 0)


HOSTILE = [
    "A dog barks, loudly! And it's <b>big</b>.",
    "",
    'two\nlines - of 3.5 things; "quoted"',
    "¿qué? 😀",
    "a ||| b",
    "...",
    "word " * 400,
]


@pytest.fixture(scope="module")
def programs(installed: None) -> None:
    if A.programs() is None or A.java() is None:
        pytest.skip("pycocoevalcap and Java are absent: pip install 'evalkit-audio[captions]'")


@pytest.mark.slow
@pytest.mark.usefixtures("programs")
def test_its_own_tokeniser() -> None:
    made = A.worker().request("ptb", texts=HOSTILE, programs=A.programs(), java=A.java())
    assert made == [A.words(text) for text in HOSTILE]
    raw = (["A man is speaking.", "Rain falls!"], [["A man speaks."], ["rain, falling"]])
    tokenised = A.scores(["cider_d"], *raw, tokenize=True)["clips"]["cider_d"]
    assert tokenised.tolist() == pytest.approx(values("cider_d@aac-metrics", *raw), rel=1e-12)
    assert tokenised.tolist() != A.scores(["cider_d"], *raw)["clips"]["cider_d"].tolist()


@pytest.mark.slow
@pytest.mark.usefixtures("programs")
def test_its_meteor(published: Any) -> None:
    rows, candidates, references = published
    found = A.scores(["meteor"], candidates, references)
    assert found["clips"]["meteor"].tolist() == [float(r["best_fense.cands.meteor"]) for r in rows]
    assert found["corpus"]["meteor"] == pytest.approx(0.1919939, abs=5e-8)


@pytest.mark.slow
@pytest.mark.usefixtures("programs")
def test_its_meteor_takes_odd_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    references = [[text, "a dog barks"] for text in HOSTILE]
    made = values("meteor@aac-metrics", HOSTILE, references)
    assert [type(v) for v in made] == [float] * len(HOSTILE) and made[1] == 0 and made[0] == pytest.approx(1)
    with pytest.raises(NotApplicable, match=r"meteor needs meteor-1\.5\.jar, which pycocoevalcap has"):
        A.worker().request("scores", names=["meteor"], candidates=["a"], references=[["a"]])
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(NotApplicable, match="meteor needs Java: "):
        A.scores(["meteor"], ["a"], [["a"]])


def fake_java(home: Path, version: str) -> None:
    """A program that answers as Java does to -version, and as SPICE does to anything else."""
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    result = '[{"scores": {"All": {"f": 0.25}}}, {"scores": {"All": {"f": 0.5}}}]'
    program.write_text(
        f"""#!/bin/sh
if [ "$1" = -version ]; then echo 'openjdk version "{version}" 2019-01-15' >&2; exit 0; fi
while [ "$1" != -out ]; do shift; done
echo '{result}' > "$2"
"""
    )
    program.chmod(0o755)


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_its_spice_only_where_its_conditions_are_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = (["a dog", "rain"], [["a dog"], ["rain"]])
    fake_java(tmp_path / "new", "17.0.15")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "new"))
    with pytest.raises(NotApplicable, match=r"SPICE needs Java 8 to 13, .* is 17\.0\.15"):
        A.scores(["spice"], *given)
    fake_java(tmp_path / "old", "11.0.2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    with pytest.raises(NotApplicable, match="aac-metrics-download"):
        A.scores(["spice"], *given)
    with pytest.raises(NotApplicable, match=r"Cannot find JAR file '.*spice-1\.0\.jar'"):
        A.scores(["spice"], *given, spice_cache=tmp_path)
    jars = install_module.interpreter(AAC_METRICS).parent.parent.rglob("aac_metrics/functional/spice.py")
    text = next(jars).read_text()
    folder = tmp_path / "aac-metrics" / "spice"
    for part in ("cache", "lib"):
        (folder / part).mkdir(parents=True)
    (folder / "spice-1.0.jar").touch()
    for name in ast.literal_eval(text.partition("expected_jar_in_lib = ")[2].partition("]")[0] + "]"):
        (folder / "lib" / name).touch()
    assert A.scores(["spice"], *given, spice_cache=tmp_path)["clips"]["spice"].tolist() == [0.25, 0.5]


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_sentence_similarity_is_the_same_with_the_same_model(published: Any) -> None:
    from evalkit.metrics import semantic

    try:
        folder = semantic.encoder_folder("all-MiniLM-L6-v2")
    except NotApplicable as error:
        pytest.skip(str(error))
    _, candidates, references = published
    given = (candidates[:20], references[:20])
    found = A.scores(["sbert_sim"], *given, models={"sentence_encoder": folder})
    assert found["clips"]["sbert_sim"].tolist() == pytest.approx(values("sbert_sim@all-MiniLM-L6-v2", *given), abs=2e-6)
    with pytest.raises(NotApplicable, match=r"sbert_sim needs models\['sentence_encoder'\]: not given"):
        A.scores(["sbert_sim"], *given)
    with pytest.raises(NotApplicable, match=r"fense needs models\['detector'\]: .*none\.ckpt is not there"):
        A.scores(["fense"], *given, models={"sentence_encoder": folder, "detector": "none.ckpt"})


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_fense_is_the_same_with_the_same_models(tmp_path: Path, make_detector: Callable[[Path], Path]) -> None:
    from evalkit.metrics import semantic

    try:
        folder = semantic.encoder_folder("all-MiniLM-L6-v2")
    except NotApplicable as error:
        pytest.skip(str(error))
    checkpoint = make_detector(tmp_path)
    candidates = ["a dog barks", "rain falls loudly loudly", "the", "a dog is barking loudly"] * 12
    references = [["a dog is barking"]] * len(candidates)
    bert = tmp_path / "bert"
    models = {"sentence_encoder": folder, "detector": checkpoint, "detector_encoder": bert}
    theirs = A.scores(["fense"], candidates, references, models=models)["clips"]
    flagged = semantic.flags(semantic.FluencyDetector(checkpoint, bert).probabilities(candidates))
    assert theirs["fer"].tolist() == flagged and 0 < sum(flagged) < len(flagged)
    similar = semantic.sbert_similarity(candidates, references, semantic.SentenceTransformerEncoder(folder))
    assert theirs["fense"].tolist() == pytest.approx(semantic.penalised(similar, flagged), abs=2e-6)


@pytest.fixture
def make_detector() -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        """A fluency detector of random weights in the authors' format, and ``bert/``, what it was built on."""
        import torch
        from transformers import BertConfig, BertModel, BertTokenizerFast

        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            "a",
            "dog",
            "barks",
            "barking",
            "loudly",
            "rain",
            "falls",
        ]
        (folder / "bert").mkdir()
        (folder / "bert" / "vocab.txt").write_text("\n".join(words))
        BertTokenizerFast(str(folder / "bert" / "vocab.txt")).save_pretrained(folder / "bert")
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        bert = BertModel(BertConfig(vocab_size=len(words), initializer_range=0.5, **sizes))
        bert.config.save_pretrained(folder / "bert")
        state = {f"encoder.{k}": v for k, v in bert.state_dict().items()}
        state |= {"clf.weight": 3 * torch.randn(6, 16), "clf.bias": torch.zeros(6)}
        state["encoder.embeddings.position_ids"] = torch.arange(4)[None]  # kept by old versions of transformers
        kept = {"model_type": "prajjwal1/bert-medium", "num_classes": 6, "state_dict": state}
        torch.save(kept, folder / "detector.ckpt")
        return folder / "detector.ckpt"

    return make
