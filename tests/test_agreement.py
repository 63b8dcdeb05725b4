"""Agreement of caption measures with people: the file's form, the references of each score, and the counting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalkit.agreement import KINDS, agreement, read_pairs
from evalkit.errors import UsageError

FIVE = ["a dog barks", "a dog is barking", "the dog barks loudly", "a barking dog", "dog barking"]


def clip(**changes: Any) -> dict[str, Any]:
    return {
        "references": FIVE,
        "HC": [FIVE[0], FIVE[4], [1, 1, -1]],
        "HI": [FIVE[0], "rain falls on a roof", [1, 1, 1]],
        "HM": ["a man speaks", FIVE[1], [-1, -1, -1]],
        "MM_1": ["a dog barks at night", "a car passes", [1, 1, 1]],
        "MM_2": ["a car passes", "a dog barks at night", [1, 1, 1]],
        "MM_3": ["a", "b", [1, -1]],  # undecided
        "MM_4": [],
    } | changes


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def to_file(value: Any) -> Path:
        path = tmp_path / "bench.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return to_file


def test_pairs_are_scored_against_four_references(write: Callable[[Any], Path]) -> None:
    pairs = {p.kind + str(i): p for i, p in enumerate(read_pairs(write([clip()])))}
    assert [k[:2] for k in pairs] == ["HC", "HI", "HM", "MM", "MM"]
    hc, hi, _, mm, _ = pairs.values()
    assert FIVE[0] not in hc.references[0][0] and FIVE[4] not in hc.references[1][0]
    assert hi.references[0] == hi.references[1] and FIVE[0] not in hi.references[0][0]
    assert len(mm.references[0]) == 5 and all(len(r) == 4 for r in mm.references[0])
    assert hc.votes == 1 and hi.votes == 3


def test_the_share_counts_what_people_preferred(write: Callable[[Any], Path]) -> None:
    rows = {r.kind: r for r in agreement(write([clip(), clip()]), ["rouge_l"])}
    shares = {k: r.interval.estimate for k, r in rows.items() if r.interval}
    assert list(rows) == [*KINDS, "all"]
    assert shares["HI"] == 1 and shares["HM"] == 1
    assert shares["MM"] == 0.5  # people voted once against all sense
    assert rows["all"].pairs == 10 and shares["all"] == pytest.approx((2 * shares["HC"] + 2 + 2 + 2) / 10)


def test_an_absent_model_is_a_row_with_its_reason(
    write: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (row,) = agreement(write([clip()]), ["fense@paraphrase-TinyBERT-L6-v2"])
    assert row.interval is None and "hf download" in row.reason


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("not json", "cannot be read as JSON"),
        ({"a": 1}, "expected a list of clips, it holds a dict"),
        ([{"HC": ["a", "b", [1]]}], "clip 0 is not as FENSE's benchmark has it"),
        ([clip(HC=["a", "b", "votes"])], "clip 0 is not as FENSE's benchmark has it"),
        ([{"references": FIVE}], "no pair of captions"),
        ([], "no pair of captions"),
    ],
)
def test_another_file_is_refused(write: Callable[[Any], Path], content: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        agreement(write(content), ["rouge_l"])


def test_only_per_clip_measures_of_captions_are_asked(write: Callable[[Any], Path]) -> None:
    for name in ("mse", "bleu_4", "novel_words"):
        with pytest.raises(UsageError, match="no per-clip metric of captions"):
            agreement(write([clip()]), [name])
