"""Corpus metrics that evaluate themselves, flags, and what tables make of them: details, floors, worst clips."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evalkit import registry
from evalkit.audio import Clip, write_clip
from evalkit.catalogue import explain_metric, matrix
from evalkit.errors import EvalkitError, NotApplicable, UsageError
from evalkit.flags import flags_of
from evalkit.leaderboard import check, update
from evalkit.plan import Request
from evalkit.registry import CorpusValue
from evalkit.results import Statistics
from evalkit.run import run
from evalkit.weights import find_weights, hub_folder
from evalkit.work import load_metric, metric_id

MINE = '''
import numpy as np
from evalkit import Clip, CorpusValue, NotApplicable, Tokens, corpus_metric, metric, system

def spread(statistics, clusters, seed):
    """Mean absolute difference of levels; every clip's share is its own difference."""
    each = [float(abs(s["reference"] - s["estimate"]).mean()) for s in statistics]
    return CorpusValue(sum(each) / len(each), low=0.0, high=max(each), note="made up", floor=0.25,
                       floor_detail="halves of 2 | clips", contributions=each,
                       detail={"n": 40 * len(each), "d": 4, "reference set": "abc|def"})

@corpus_metric("test_spread@mine", evaluate=spread, unit="FS", direction="lower", group="distribution",
               trained_on=("folder",), range=(0, 10))
def test_spread(reference, estimate):
    """A distance."""
    return {"reference": reference.samples[0, :40].reshape(10, 4), "estimate": estimate.samples[0, :40].reshape(10, 4)}

def refuses(statistics, clusters, seed):
    raise NotApplicable(f"{len(statistics)} clips are too few")

@corpus_metric("test_refuses@mine", evaluate=refuses, unit="", direction="lower", group="distribution")
def test_refuses(reference, estimate):
    """Never has a value."""
    return {"reference": reference.samples[0, :4], "estimate": estimate.samples[0, :4]}

def broken(statistics, clusters, seed):
    return CorpusValue(float("nan"))

@corpus_metric("test_broken@mine", evaluate=broken, unit="", direction="lower", group="distribution")
def test_broken(reference, estimate):
    """Gives NaN."""
    return {"reference": reference.samples[0, :4], "estimate": estimate.samples[0, :4]}

@metric("test_speech_only", unit="", direction="higher", group="other", domains=("speech",))
def speech_only(reference):
    """Speech only."""
    return 1.0

class Half:
    """Halves the level."""
    def encode(self, clip):
        return Tokens(np.zeros((1, 1), int), (2,), 1.0, clip.length, clip.sample_rate, side={"x": clip.samples})
    def decode(self, tokens, seed):
        return Clip(tokens.side["x"] / 2, tokens.sample_rate)

@system("test_circular", summary="trained on the measure", trained_with=("embedder:mine",))
class Circular(Half):
    pass
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all tests: a file that registers metrics can be loaded from one place only."""
    tmp_path = tmp_path_factory.mktemp("corpus")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "clips").mkdir()
    rng = np.random.default_rng(0)
    for i, name in enumerate("abcd"):
        write_clip(Clip(rng.normal(0, 0.1 * (i + 1), (1, 8000)), 8000), tmp_path / "clips" / f"{name}.wav")
    yield tmp_path
    for one in registry._registries.values():  # what these files registered is forgotten
        for name in [n for n, origin in one.origin.items() if origin.startswith("evalkit_user_")]:
            del one.entries[name], one.origin[name]
    registry._user_files.clear()
    load_metric.cache_clear()


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EVALKIT_CACHE", str(folder / "cache"))
    return folder


METRICS = tuple(f"mine.py:{m}" for m in ("test_spread", "test_refuses", "test_broken", "speech_only"))


def test_a_metric_that_evaluates_itself_goes_from_clips_to_the_page(place: Path) -> None:
    request = Request(("folder:clips@domain=sound",), ("mine.py:Half", "mine.py:Circular", "identity"), metrics=METRICS)
    outcome = run(request, out=place / "out4", jobs=0)
    rows = {r["system"]["spec"]: r for r in outcome.results}
    column = rows["mine.py:Half"]["metrics"]["test_spread@mine"]
    found = column["corpus"]
    assert found["detail"] == {"n": 160, "d": 4, "reference set": "abc|def"} and found["floor"] == 0.25
    each = found["contributions"]
    assert len(each) == 4 and each[3] == max(each) and found["value"] == pytest.approx(np.mean(each), rel=1e-6)
    assert rows["identity"]["metrics"]["test_spread@mine"]["corpus"]["value"] == 0
    assert rows["mine.py:Half"]["metrics"]["test_refuses@mine"]["corpus"]["status"] == "n/a"
    broken = rows["mine.py:Half"]["metrics"]["test_broken@mine"]["corpus"]
    assert broken["status"] == "failed" and "nan" in broken["note"]
    assert outcome.exit_code == 2  # a corpus metric that fails is a failure of the run

    update([place / "out4"], place / "boards4")
    assert check(place / "boards4") == []
    page = next(p for p in (place / "boards4").glob("folder*.md") if ".cost" not in p.name).read_text()
    assert "*reference v. reference* | " in page and "0.25<br>halves" in page
    assert "n 160, d 4" in page and "abc\\|def" in page and "halves of 2 \\| clips" in page
    assert "## Clips that add most to the distance" in page and "| `mine.py:Half` | `" in page
    assert "all systems, test\\_spread@mine: contaminated: its model was trained or selected on folder" in page
    assert (
        "`mine.py:Circular`, test\\_spread@mine: circular: the system's training made distances in the space of mine"
        in page
    )
    assert "- test\\_speech\\_only: n/a: it is defined for speech, this is sound" in page
    assert "| test\\_speech\\_only" not in page  # a column without any value is a line below the grid
    table = json.loads(next((place / "boards4").glob("folder*.json")).read_text())
    row = next(r for r in table["rows"] if r["metric"] == "test_spread@mine" and r["system"] == "mine.py:Circular")
    assert "circular" in row["flags"] and "n 160" in row["detail"] and row["floor"] == 0.25


def test_statistics_of_references_are_kept_once_for_all_systems(place: Path) -> None:
    (place / "few.py").write_text(
        "from evalkit import Task, task\n@task\ndef few():\n"
        "    return Task('few-reconstruction', 'folder:clips', ('mine.py:test_spread',))\n"
    )
    outcome = run(Request(("few.py:few",), ("mine.py:Half", "identity")), out=place / "out5", jobs=0)
    kept = [p for p in (place / "out5" / "objects").rglob("*.npz") if set(np.load(p).files) == {"reference"}]
    assert len(kept) == 4 and outcome.exit_code == 0


def test_the_clips_a_system_was_trained_on_flag_its_row(place: Path) -> None:
    (place / "seen.py").write_text(
        MINE.split("@metric")[0].split("def spread")[0] + "class Seen:\n    trained_on = {'folder': ['a', 'c']}\n"
        "    def reconstruct(self, clip, seed):\n        return clip\n"
    )
    systems = ("seen.py:Seen", "identity")
    left = run(Request(("folder:clips@domain=sound",), systems), out=place / "unseen", jobs=0)
    assert left.results[0]["clips"]["id"] == ["b", "d"] and not left.results[0]["task"]["about"]["contaminated"]
    kept = run(Request(("folder:clips@domain=sound",), systems, clips="all"), out=place / "all", jobs=0)
    update([place / "all"], place / "boards6")
    page = next(p for p in (place / "boards6").glob("folder*.md") if ".cost" not in p.name).read_text()
    assert len(kept.results[0]["clips"]["id"]) == 4
    assert "| `seen.py:Seen` ⚠ |" in page and "contaminated: trained on 2 of the clips" in page
    assert "`identity` ⚠" not in page


def test_statistics_are_read_one_clip_at_a_time(place: Path) -> None:
    from evalkit.record import RunDirectory

    directory = RunDirectory(place / "run")
    names = [{"reference": directory.put_arrays({"reference": np.full(3, i)})} for i in range(5)]
    statistics = Statistics(directory, names)
    assert len(statistics) == 5 and statistics[2]["reference"].tolist() == [2, 2, 2]
    assert [int(s["reference"][0]) for s in statistics[1:4]] == [1, 2, 3]
    with pytest.raises(IndexError):
        statistics[5]


def test_flags_are_of_the_metric_the_system_and_the_data() -> None:
    info = load_metric("latent_mse")
    ours, other = {"trained_with": ["latent_mse"]}, {"trained_with": []}
    assert flags_of(info, "x", ours, "scenes") == [
        "circular: the system's training made latent_mse (or its like) small"
    ]
    assert flags_of(info, "x", other, "scenes") == [] == flags_of(info, "x", {}, "scenes")
    mel = load_metric("logmel_mse@n1024-h256-m100")
    assert "circular" in flags_of(mel, "x", {"trained_with": ["logmel_mse"]}, "esc50")[0]


def test_a_corpus_metric_has_one_way_to_its_value() -> None:
    with pytest.raises(EvalkitError, match="give combine or evaluate"):
        registry.corpus_metric("test_neither", unit="", direction="lower")
    with pytest.raises(EvalkitError, match="give combine or evaluate"):
        registry.corpus_metric(
            "test_both", unit="", direction="lower", combine=lambda s, w: 0.0, evaluate=lambda s, c, n: CorpusValue(0.0)
        )


# -- weights ----------------------------------------------------------------------------------------------------------


def test_absent_weights_are_a_reason_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVALKIT_WEIGHTS", raising=False)
    with pytest.raises(NotApplicable, match=r"a/b\.onnx absent \(EVALKIT_WEIGHTS is not set\).*from its authors"):
        find_weights("a/b.onnx", source="from its authors")
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path))
    with pytest.raises(NotApplicable, match="not in"):
        find_weights("a/b.onnx", source="from its authors")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.onnx").write_bytes(b"abc")
    assert find_weights("a/b.onnx", source="", sha256="ba7816bf") == tmp_path / "a" / "b.onnx"
    with pytest.raises(EvalkitError, match=r"b\.onnx: not the expected weights"):
        find_weights("a/b.onnx", source="from its authors", sha256="00")


def test_a_hub_model_is_found_in_the_root_and_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(NotApplicable, match="hf download org/name --revision 12ab"):
        hub_folder("org/name", revision="12ab")
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "12ab"
    snapshot.mkdir(parents=True)
    assert hub_folder("org/name", revision="12ab") == snapshot == hub_folder("org/name")
    (tmp_path / "weights" / "org" / "name").mkdir(parents=True)
    assert hub_folder("org/name") == tmp_path / "weights" / "org" / "name"


def test_a_value_is_computed_once_its_weights_are_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """n/a for want of weights is no final result: the same command computes it when they have come."""
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(place / "weights"))
    (place / "needs.py").write_text(
        "from evalkit import metric\nfrom evalkit.weights import find_weights\n"
        "@metric('test_needs', unit='', direction='lower', weights=('m/x.bin',))\n"
        "def needs(reference):\n    '''Needs weights.'''\n"
        "    return float(find_weights('m/x.bin', source='from m').read_bytes()[0])\n"
    )
    request = Request(("folder:clips@domain=sound",), ("identity",), metrics=("needs.py:needs",))
    first = run(request, out=place / "out12", jobs=0)
    column = first.results[0]["metrics"]["test_needs"]
    assert column["values"] == [None] * 4 and "m/x.bin absent" in next(iter(column["reasons"]["n/a"]))
    (place / "weights" / "m").mkdir(parents=True)
    (place / "weights" / "m" / "x.bin").write_bytes(b"\x05")
    second = run(request, out=place / "out12", jobs=0)
    assert second.results[0]["metrics"]["test_needs"]["values"] == [5.0] * 4
    assert second.results[0]["metrics"]["test_needs"]["id"] != column["id"]


# -- what people can ask ----------------------------------------------------------------------------------------------


def test_the_matrix_says_where_each_metric_applies() -> None:
    rows = {r[0]: r for r in matrix()}
    assert set(rows) == set(registry.names("metrics"))
    assert rows["pesq_wb"][2:5] == ("yes", "no", "no") and rows["mse"][2:5] == ("yes", "yes", "yes")


def test_explain_takes_a_group_or_the_start_of_names() -> None:
    text = explain_metric("dnsmos", "esc50")
    assert text.count("esc50-reconstruction: n/a: dnsmos_") == 4 and "is defined for speech, this is sound" in text
    assert "fad@yamnet" in explain_metric("fad") and "kad@" not in explain_metric("fad")
    with pytest.raises(UsageError, match="no metric named"):
        explain_metric("nothing_like_it")


def test_identity_of_a_metric_holds_what_it_lets_through() -> None:
    import dataclasses

    info = load_metric("mse")
    for change in ({"min_sample_rate": 16_000}, {"extra_identity": lambda: "other"}, {"weights": ("x",)}):
        assert metric_id(dataclasses.replace(info, **change)) != metric_id(info)  # type: ignore[arg-type]


def test_the_page_of_measures_has_the_matrix_of_now() -> None:
    code = "from evalkit.catalogue import matrix_markdown; print(matrix_markdown(), end='')"
    now = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    page = Path(__file__).resolve().parent.parent / "docs" / "measures.md"
    shown = page.read_text(encoding="utf-8").partition("<!-- matrix -->\n\n")[2]
    assert shown == now, "docs/measures.md: put evalkit.catalogue.matrix_markdown() after its mark"


def test_a_text_metric_without_its_program_is_tried_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installing what a caption measure lacked is enough: its n/a is not kept."""
    from evalkit.metrics import spice

    request = Request(("scenes-captioning",), ("constant:a dog barks",), limit=2)
    for what, expected in (("raised", [None, None]), ("given", [0.25, 0.5])):

        def scores(candidates: list[str], references: list[list[str]], what: str = what) -> list[float]:
            if what == "raised":
                raise NotApplicable("not installed")
            return [0.25, 0.5]

        monkeypatch.setattr(spice, "spice_scores", scores)
        monkeypatch.setattr(spice, "meteor_counts", lambda c, r: [NotApplicable("no Java")] * len(c))
        outcome = run(request, out=place / "again", jobs=0)
        assert outcome.results[0]["metrics"]["spice"]["values"] == expected
