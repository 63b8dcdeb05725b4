"""The captioning path through the harness: systems that hear and that do not, bad captions, what is absent, re-runs."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import evalkit.datasets.clotho
from evalkit import registry
from evalkit.audio import Clip, write_clip
from evalkit.cache import explain
from evalkit.datasets.esc50 import SENTENCES
from evalkit.datasets.load import load_dataset
from evalkit.execute import make
from evalkit.forecast import forecast
from evalkit.plan import Request, make_plan
from evalkit.record import RunDirectory
from evalkit.report import write_report
from evalkit.results import counts
from evalkit.run import Outcome, run

FLOORS = ("human", "random-human", "constant", "permuted")

MINE = '''
import os, time
import numpy as np
from evalkit import NotApplicable, Prepare, Task, corpus_metric, metric, task
from evalkit.metrics.captions import CAPTIONS

@metric("shared_words", unit="", direction="higher", group="captions", range=(0, 1))
def shared_words(candidates, references):
    """Share of a candidate's words that its nearest reference has; no reference, no value."""
    def one(c, rs):
        words = set(c.lower().split())
        if not rs:
            return NotApplicable("no reference")
        return max(len(words & set(r.lower().split())) for r in rs) / max(1, len(words))
    return [one(c, rs) for c, rs in zip(candidates, references)]

@corpus_metric("mean_words", unit="words", direction="none", group="captions",
               combine=lambda s, w: float(np.dot(w, [x["n"] for x in s]) / np.sum(w)))
def mean_words(candidates):
    """Words a caption."""
    return [{"n": len(c.split())} for c in candidates]

@metric("references_seen", unit="", direction="none", group="captions")
def references_seen(candidates, references, corpus):
    """References of the clip, and a thousandth for each of the whole set."""
    return [len(r) + sum(map(len, corpus)) / 1000 for r in references]

METRICS = tuple(f"{__file__}:{n}" for n in ("shared_words", "mean_words", "references_seen"))

@task
def toy():
    return [
        Task("toy-scenes", "scenes@clips=6", METRICS, Prepare(sample_rate=24_000), "caption"),
        Task("toy-clotho", "clotho", METRICS, Prepare(), "caption"),
        Task("ngrams-scenes", "scenes@clips=8", CAPTIONS, Prepare(sample_rate=24_000), "caption"),
        Task("ngrams-clotho", "clotho", CAPTIONS, Prepare(), "caption"),
    ]

class Toy:
    """Says how loud the clip is."""
    def caption(self, clip):
        if "EVALKIT_TEST_LOG" in os.environ:
            with open(os.environ["EVALKIT_TEST_LOG"], "a") as f:
                f.write(clip.id + chr(10))
        level = float(np.sqrt(np.mean(np.square(clip.samples))))
        return f"a {'loud' if level > 0.05 else 'quiet'} sound of {clip.seconds:.0f} seconds"

class OnOne(Toy):
    def caption(self, clip):
        return self.bad() if clip.id == "test-0003" else super().caption(clip)

class Raises(OnOne):
    def bad(self):
        raise ValueError("boom | <b>bold</b>" + chr(10) + "`x`")

class Refuses(OnOne):
    def bad(self):
        raise NotApplicable("too quiet to say")

class Nothing(OnOne):
    def bad(self):
        return None

class Endless(OnOne):
    def bad(self):
        return "a" * 1_000_000

class Empty(OnOne):
    def bad(self):
        return ""

class Odd(OnOne):
    def bad(self):
        return "\\U0001f415 <b onload=x>a</b> | a" + chr(10) + "[a](b) `c` \\x1b[31m \\ud800"

class Crashes(OnOne):
    def bad(self):
        import ctypes
        ctypes.string_at(0)

class Hangs(OnOne):
    def bad(self):
        time.sleep(60)

class Deaf:
    """Captions of a set, one entry too few."""
    def captions(self, items, seed):
        return []
'''


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The path of mine.py, whose tasks and metrics are registered while this module's tests run."""
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    module = registry.load_file(str(path))
    yield str(path)
    for own in registry._registries.values():
        for name in [n for n, origin in own.origin.items() if origin.startswith(f"{module.__name__}.")]:
            del own.entries[name], own.origin[name]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def go(mine: str, tmp_path: Path) -> Callable[..., Outcome]:
    """``go(system, ...)`` runs systems (``Toy`` is that of mine.py) on a task of mine.py."""

    def do(
        *systems: str, task: str = "toy-scenes", jobs: int = 0, out: str = "run", timeout: float = 60.0, **more: Any
    ) -> Outcome:
        names = tuple(f"{mine}:{s}" if s[0].isupper() else s for s in systems)
        return run(Request((task,), names, **more), out=tmp_path / out, jobs=jobs, timeout=timeout)

    return do


def column(outcome: Outcome, system: str, metric: str = "shared_words") -> dict[str, Any]:
    """A column of the row of a system: its name, its class in mine.py or its file."""
    (result,) = [r for r in outcome.results if re.fullmatch(rf"(.*[/:])?{re.escape(system)}", r["system"]["spec"])]
    return dict(result["metrics"][metric])


def reasons(outcome: Outcome, system: str, metric: str = "shared_words") -> dict[str, dict[str, int]]:
    found = column(outcome, system, metric)["reasons"]
    return {status: {why: len(at) for why, at in about.items()} for status, about in found.items()}


# -- systems that hear, and that do not -------------------------------------------------------------------------------


def test_floors_and_a_captioner(go: Callable[..., Outcome]) -> None:
    outcome = go(*FLOORS, "Toy")
    assert outcome.exit_code == 0 and not outcome.errors
    for system in (*FLOORS, "Toy"):
        assert reasons(outcome, system) == {} and None not in column(outcome, system)["values"]
        assert column(outcome, system, "mean_words")["corpus"]["value"] > 0

    def mean(system: str) -> float:
        return float(np.mean(column(outcome, system)["values"]))

    assert mean("human") > mean("random-human") and mean("human") > mean("permuted")
    # 6 clips of 5 references: the human row leaves one out of its own and of the corpus, in each round.
    assert set(column(outcome, "human", "references_seen")["values"]) == {4 + 0.024}
    assert set(column(outcome, "Toy", "references_seen")["values"]) == {5 + 0.03}


def test_a_captioner_hears_the_prepared_clip(go: Callable[..., Outcome]) -> None:
    outcome = go("Toy", out="heard")
    records = RunDirectory(outcome.directory).predictions().values()
    items = {i.id: i for i in load_dataset("scenes@clips=6").layout.items}
    for record in records:
        clip: Clip = items[record["clip"]].make()  # type: ignore[misc]
        loud = "loud" if np.sqrt(np.mean(np.square(clip.samples))) > 0.05 else "quiet"
        expected = f"a {loud} sound of {clip.seconds:.0f} seconds"
        assert record["rounds"] == [{"candidate": expected, "left_out": []}]


BAD = {
    "Raises": ("failed", "ValueError: boom | <b>bold</b> `x` at mine.py:"),
    "Refuses": ("n/a", "too quiet to say"),
    "Nothing": ("failed", "the caption is NoneType, expected str"),
    "Endless": ("failed", "the caption has 1,000,000 characters, at most 20,000 are taken"),
}


def test_a_bad_caption_costs_only_itself(go: Callable[..., Outcome]) -> None:
    outcome = go(*BAD, "Empty", "Odd", "Toy")
    assert outcome.exit_code == 2
    good = column(outcome, "Toy")["values"]
    for system, (status, why) in BAD.items():
        ((found, count),) = reasons(outcome, system)[status].items()
        assert found.startswith(why) and count == 1, system
        assert column(outcome, system)["values"] == [None if i == 3 else v for i, v in enumerate(good)]
        assert column(outcome, system, "mean_words")["corpus"]["n"] == 5
    assert column(outcome, "Empty")["values"][3] == 0 and reasons(outcome, "Empty") == {}
    assert reasons(outcome, "Odd") == {} and column(outcome, "Odd", "mean_words")["corpus"]["n"] == 6
    write_report(outcome)
    pages = [p.read_text(encoding="utf-8") for p in Path(outcome.directory).rglob("*.md")]
    assert any("boom \\| &lt;b&gt;bold" in page for page in pages), "the reason is there, escaped"
    assert not any(bad in page for page in pages for bad in ("<b>", "<b onload", "\x1b"))


def test_an_odd_caption_is_kept_as_it_is(go: Callable[..., Outcome]) -> None:
    outcome = go("Odd")
    texts = {r["clip"]: r["rounds"][0]["candidate"] for r in RunDirectory(outcome.directory).predictions().values()}
    assert texts["test-0003"] == "\U0001f415 <b onload=x>a</b> | a\n[a](b) `c` \x1b[31m \ud800"


def test_crashes_and_hangs_cost_only_themselves(go: Callable[..., Outcome]) -> None:
    outcome = go("Crashes", "Hangs", jobs=1, timeout=15.0)  # starting a worker anew takes part of it
    assert outcome.exit_code == 2
    for system in ("Crashes", "Hangs"):
        assert sum(v is not None for v in column(outcome, system)["values"]) == 5
        assert list(reasons(outcome, system)) == ["failed"]


def test_a_system_of_the_whole_set_must_answer_for_all_of_it(go: Callable[..., Outcome]) -> None:
    outcome = go("Deaf")
    assert outcome.exit_code == 3
    assert reasons(outcome, "Deaf") == {"failed": {"captions returned 0 entries for 6 items": 6}}


# -- captions made elsewhere ------------------------------------------------------------------------------------------


def table(path: Path, rows: list[tuple[str, str]], head: tuple[str, str] = ("id", "candidate")) -> str:
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([head, *rows])
    return f"predictions:{path}"


def test_predictions_missing_duplicate_and_unknown(go: Callable[..., Outcome], tmp_path: Path) -> None:
    rows = [("test-0000", "a dog barks"), ("test-0000", "a dog barks"), ("test-0001", "rain"), ("test-0001", "wind"),
            ("test-0002", "multi\nline, \"quoted\" 🐕"), ("nonsense", "x"), ("test-0099", "y")]  # fmt: skip
    outcome = go(table(tmp_path / "p.csv", rows))
    assert outcome.exit_code == 2
    found = reasons(outcome, "p.csv")
    assert found == {
        "failed": {
            "2 different captions for this clip in p.csv (lines 4, 5)": 1,
            "no row for this clip in p.csv": 3,
        }
    }
    assert [v is not None for v in column(outcome, "p.csv")["values"]] == [True, False, True, False, False, False]
    (notes,) = [r["notes"] for r in outcome.results]
    assert notes == ["p.csv: 2 rows are of no clip of this task (nonsense, test-0099)"]
    write_report(outcome)
    (page,) = (p.read_text(encoding="utf-8") for p in Path(outcome.directory).rglob("*.md"))
    assert "p.csv: 2 rows are of no clip of this task" in page and "no row for this clip in p.csv" in page


def test_a_changed_file_is_another_system(go: Callable[..., Outcome], tmp_path: Path) -> None:
    rows = [(f"test-{k:04d}", "a dog barks") for k in range(6)]
    spec = table(tmp_path / "p.csv", rows)
    assert go(spec).predicted == 6
    assert go(spec).predicted == 0
    table(tmp_path / "p.csv", [*rows[:5], (rows[5][0], "rain falls")])
    assert go(spec).predicted == 6


# -- what is computed, and what is not --------------------------------------------------------------------------------


def test_nothing_is_computed_twice(go: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("EVALKIT_TEST_LOG", str(log))
    first = go(*FLOORS, "Toy")
    assert first.predicted == 30 and len(log.read_text().split()) == 6
    before = {p: p.read_bytes() for p in Path(first.directory).glob("*.jsonl")}
    again = go(*FLOORS, "Toy")
    assert (again.predicted, again.scored) == (0, 0) and len(log.read_text().split()) == 6
    assert again.results == first.results
    assert {p: p.read_bytes() for p in Path(first.directory).glob("*.jsonl")} == before


def test_a_limit_evaluates_a_smaller_set(go: Callable[..., Outcome]) -> None:
    """The whole set decides (document frequencies, whose caption is drawn): with a limit, those rows are made anew."""
    whole = go(*FLOORS, "Toy")
    part = go(*FLOORS, "Toy", limit=3)
    assert part.predicted == 3 * 4, "what hears is not heard again"
    assert set(column(part, "Toy", "references_seen")["values"]) == {5 + 0.015}
    assert column(part, "Toy")["values"] == column(whole, "Toy")["values"][::2]
    assert go(*FLOORS, "Toy").predicted == 0, "the whole set is still there"


def test_an_interrupted_run_goes_on(
    go: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go("human", "Toy", out="whole")
    log = tmp_path / "log"
    monkeypatch.setenv("EVALKIT_TEST_LOG", str(log))
    cut = go("human", "Toy", out="cut")
    path = Path(cut.directory) / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]) + lines[9][:20])  # killed in the middle of a record
    log.unlink()
    finished = go("human", "Toy", out="cut")
    assert len(log.read_text().split()) == finished.predicted == 3
    assert [r["metrics"] for r in finished.results] == [r["metrics"] for r in whole.results]


# -- clips without audio ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_clotho(tmp_path: Path) -> Path:
    """A Clotho of six clips, two of them with audio."""
    home = tmp_path / "data" / "clotho"
    home.mkdir(parents=True)
    with (home / "clotho_captions_evaluation.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["file_name", *evalkit.datasets.clotho.CAPTIONS])
        for k in range(6):
            writer.writerow([f"{k}.wav", *(f"sound {k} {w}" for w in ("here", "there", "near", "far", "on"))])
    (home / "evaluation").mkdir()
    for k in (1, 4):
        write_clip(Clip(np.full((1, 16000), 0.1, np.float32), 16000), home / "evaluation" / f"{k}.wav")
    return tmp_path / "data"


def test_text_is_scored_on_all_clips_and_hearing_on_those_with_audio(
    go: Callable[..., Outcome], small_clotho: Path
) -> None:
    outcome = go(*FLOORS, "Toy", task="toy-clotho", data_root=str(small_clotho))
    assert outcome.exit_code == 0
    for system in FLOORS:
        assert reasons(outcome, system) == {}
    ((why, count),) = reasons(outcome, "Toy")["n/a"].items()
    assert count == 4 and "no audio of this clip here" in why
    assert set(column(outcome, "Toy", "references_seen")["values"]) == {None, 5 + 0.03}, "all clips are the corpus"
    assert column(outcome, "Toy", "mean_words")["corpus"]["n"] == 2
    assert "2 of 6 clips have audio here" in " ".join(outcome.results[0]["task"]["about"]["notes"])
    present = go(*FLOORS, "Toy", task="toy-clotho@audio=present", data_root=str(small_clotho), out="present")
    assert reasons(present, "Toy") == {} and len(column(present, "human")["values"]) == 2


def test_audio_that_appears_changes_the_task(go: Callable[..., Outcome], small_clotho: Path) -> None:
    first = go("human", "Toy", task="toy-clotho", data_root=str(small_clotho))
    home = small_clotho / "clotho/evaluation"
    (home / "0.wav").write_bytes((home / "1.wav").read_bytes())
    second = go("human", "Toy", task="toy-clotho", data_root=str(small_clotho))
    assert first.results[0]["task"]["version"] != second.results[0]["task"]["version"]
    assert second.predicted == 6 + 1, "the clip that is heard now, and the rows of the whole set"
    assert sum(v is not None for v in column(second, "Toy")["values"]) == 3


def test_plans_forecasts_and_explanations_of_clips_without_audio(
    go: Callable[..., Outcome], mine: str, small_clotho: Path, tmp_path: Path
) -> None:
    go("human", "Toy", task="toy-clotho", data_root=str(small_clotho))
    request = Request(("toy-clotho",), ("human", f"{mine}:Toy"), data_root=str(small_clotho))
    plan = make_plan(request, make(0))
    verdicts = {(e.system.rpartition(":")[2], e.clip): e.verdict for e in explain(RunDirectory(tmp_path / "run"), plan)}
    assert verdicts["Toy", "evaluation/0"] == "n/a"
    assert verdicts["Toy", "evaluation/1"] == verdicts["human", "evaluation/0"] == "hit"
    lines = forecast(request, tmp_path / "run").cells
    assert [(line.todo, line.seconds) for line in lines] == [(0, 0.0), (0, 0.0)]


def test_a_metric_that_hears_has_no_value_without_audio(
    go: Callable[..., Outcome], small_clotho: Path, tmp_path: Path
) -> None:
    (tmp_path / "hears.py").write_text(
        "from evalkit import metric\n"
        "@metric('hears', unit='s', direction='none', group='captions')\n"
        "def hears(reference, candidate):\n"
        '    """Seconds a word."""\n'
        "    return reference.seconds / len(candidate.split())\n"
    )
    more = {"data_root": str(small_clotho), "metrics": (f"{tmp_path / 'hears.py'}:hears",)}
    outcome = go("constant", task="toy-clotho", **more)
    assert [v is not None for v in column(outcome, "constant", "hears")["values"]] == [k in (1, 4) for k in range(6)]
    ((why, count),) = reasons(outcome, "constant", "hears")["n/a"].items()
    assert count == 4 and "no audio of this clip here" in why and outcome.exit_code == 0


# -- real measures, real data -----------------------------------------------------------------------------------------


def test_ngrams_on_scenes(go: Callable[..., Outcome]) -> None:
    outcome = go(*FLOORS, "Toy", task="ngrams-scenes")
    assert outcome.exit_code == 0
    means = {s: float(np.mean(column(outcome, s, "cider_d")["values"])) for s in (*FLOORS, "Toy")}
    assert means["human"] > 1 and all(means[s] < means["human"] / 2 for s in (*FLOORS[1:], "Toy"))


def test_esc50_by_caption(tmp_path: Path, shared: Path) -> None:
    """A file of right and of unparsable captions, and one sentence for all."""
    items = load_dataset("esc50@subset=esc10", shared / "data").layout.items
    said = [SENTENCES[i.labels["class"]] for i in items]
    said[:100] = ["a dog and a cat"] * 60 + ["noise"] * 40
    spec = table(tmp_path / "p.csv", [(i.id, text) for i, text in zip(items, said, strict=True)])
    systems = (spec, "constant", "human")
    request = Request(("esc50-classification@subset=esc10",), systems, data_root=str(shared / "data"))
    outcome = run(request, out=tmp_path / "run", jobs=0)
    assert outcome.exit_code == 0 and not outcome.errors
    accuracy, none = (column(outcome, "p.csv", m)["values"] for m in ("label_accuracy", "unparsable"))
    assert np.mean(accuracy) == 0.75 and np.mean(none) == 0.25
    assert np.mean(column(outcome, "constant", "label_accuracy")["values"]) == 0.1
    ((why, count),) = reasons(outcome, "human", "label_accuracy")["n/a"].items()
    assert "leave-one-out needs two references" in why and count == 400


def test_clotho_with_published_captions_and_real_clips(go: Callable[..., Outcome], shared: Path) -> None:
    data = str(shared / "data")
    published = shared / "reference/captions/conette_clotho_evaluation.csv"
    outcome = go(f"predictions:{published}", "human", "Toy", task="ngrams-clotho", data_root=data)
    assert outcome.exit_code == 0
    assert [counts(r, "cider_d") for r in outcome.results] == [(1045, 0, 0, 0), (1045, 0, 0, 0), (12, 0, 1033, 0)]
    with published.open(encoding="utf-8", newline="") as f:
        theirs = {row["fname"]: float(row["best_fense.cands.cider_d"]) for row in csv.DictReader(f)}
    files = {i.id: i.labels["file_name"] for i in load_dataset("clotho", data).layout.items}
    names = [files[i] for i in outcome.results[0]["clips"]["id"]]
    ours = column(outcome, published.name, "cider_d")["values"]
    # Records keep 7 digits; the measure itself is compared to 1e-9 in test_metrics_captions.py. One clip differs: the
    # model's authors wrote "walkie talkie" for Clotho's "walkie-talkie".
    differ = [n for n, v in zip(names, ours, strict=True) if abs(v - theirs[n]) > 1e-6 * theirs[n] + 1e-12]
    assert differ == ["Radio Garble.wav"]
    assert round(float(np.mean(column(outcome, "human", "cider_d")["values"])), 3) == 0.906
    real = go(*FLOORS, "Toy", task="ngrams-clotho@audio=present", data_root=data, out="real")
    assert real.exit_code == 0 and all(counts(r, "cider_d") == (12, 0, 0, 0) for r in real.results)


# -- the shipped tasks ------------------------------------------------------------------------------------------------

SHIPPED = ("clotho-captioning", "audiocaps-captioning", "esc50-captioning", "esc50-classification", "scenes-captioning")


def test_every_shipped_task_can_be_planned(shared: Path, mine: str) -> None:
    request = Request(SHIPPED, (*FLOORS, f"{mine}:Toy"), data_root=str(shared / "data"))
    plan = make_plan(request, make(0))
    assert [(t.name, t.error) for t in plan.tasks] == [(name, "") for name in SHIPPED]
    assert {t.name: len(t.items) for t in plan.tasks}["audiocaps-captioning"] == 975
    assert not any(c.error or c.not_applicable for c in plan.cells)
    for task in plan.tasks:
        assert all(i.labels.get("captions") for i in task.items) and set(task.about["headline"]) <= set(task.metrics)


def test_a_data_set_stands_for_its_captioning_tasks(shared: Path) -> None:
    data = str(shared / "data")
    for name, tasks_ in {"clotho": SHIPPED[:1], "esc50@subset=esc10": SHIPPED[2:4], "scenes": SHIPPED[4:]}.items():
        plan = make_plan(Request((name,), ("human",), data_root=data), make(0))
        assert [t.name.partition("@")[0] for t in plan.tasks] == list(tasks_)


def test_the_command_line_plans(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.cli import cli

    monkeypatch.chdir(tmp_path)
    words = ["run", "--task", "clotho", "--system", "human,constant", "--dry-run", "--data-root", str(shared / "data")]
    planned = CliRunner().invoke(cli, words)
    assert planned.exit_code == 0 and "2,090 of 2,090 results to compute" in planned.output


@pytest.mark.slow
def test_real_clips_through_every_measure(tmp_path: Path, shared: Path, mine: str) -> None:
    """The 12 real clips with the floors: each measure has a value for all of them or says why not."""
    request = Request(("clotho@audio=present",), (*FLOORS, f"{mine}:Toy"), data_root=str(shared / "data"))
    outcome = run(request, out=tmp_path / "run", jobs=0)
    assert outcome.exit_code == 0 and not outcome.errors
    for result in outcome.results:
        for name, about in result["metrics"].items():
            scored, failed, absent, missing = counts(result, name)
            assert scored + absent == 12 and not failed and not missing, name
            assert all(about["reasons"]["n/a"]) if absent else True
