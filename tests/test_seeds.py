"""Several noise seeds: stochastic systems decoded with each, one row a system, noise apart from clips.

The system `Shifted` gives back its clip plus a constant that its seed decides, on a grid that float32 holds exactly, so
that every clip's error, and from it every mean and deviation, is known without evalkit.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit import cli, leaderboard, registry, work
from evalkit.audio import Clip, write_clip
from evalkit.errors import UsageError
from evalkit.forecast import forecast
from evalkit.identity import digest
from evalkit.markdown import render_task
from evalkit.plan import Request, request_from_json, request_json
from evalkit.record import RunDirectory
from evalkit.results import file_name
from evalkit.run import Outcome, command, default_directory, rescore, run
from evalkit.seeds import combine
from evalkit.statistics import cluster_bootstrap, holm, sign_flip_p
from evalkit.table import Row, Table, build_table

CLIPS = tuple("abcdefgh")

MINE = '''
import numpy as np
from evalkit import Clip, NotApplicable, Task, Tokens, corpus_metric, metric, task
from evalkit.work import clip_seed

def weighted(statistics, weights):
    return weights @ np.array([s["d"] for s in statistics]) / weights.sum(-1)

@corpus_metric("test_seeds_bias", unit="FS", direction="lower", combine=weighted)
def bias(reference, estimate):
    """Mean of output minus input."""
    return {"d": np.float64(np.mean(estimate.samples - reference.samples))}

@metric("test_seeds_peak", unit="FS", direction="lower")
def peak(reference, estimate):
    """Largest absolute error."""
    return np.abs(estimate.samples - reference.samples).max()

@task
def few():
    return Task("seeds-reconstruction", "folder:grid", metrics=("mse", "mine.py:bias", "nominal_kbps", "decode_rtf"),
                headline=("mse", "test_seeds_bias"))

class Shifted:
    """Adds a constant that the seed decides."""
    stochastic = True
    def encode(self, clip):
        codes = np.round((clip.samples + 1) * 1024).astype(np.int64)
        return Tokens(codes, (2048,) * clip.channels, clip.sample_rate, clip.length, clip.sample_rate)
    def decode(self, tokens, seed):
        return Clip(tokens.codes / 1024 - 1 + (seed % 64 + 1) / 1024, tokens.sample_rate)

class Fails(Shifted):
    """Fails on the clip b with noise seed 1; on c it has nothing with seed 0 and fails with seed 2."""
    def decode(self, tokens, seed):
        if seed == clip_seed(1, "b"):
            raise RuntimeError("boom")
        if seed == clip_seed(0, "c"):
            raise NotApplicable("too quiet")
        if seed == clip_seed(2, "c"):
            raise RuntimeError("bang")
        return super().decode(tokens, seed)

class Dies(Shifted):
    """Has nothing at all with noise seed 1."""
    def decode(self, tokens, seed):
        if seed in {clip_seed(1, c) for c in "abcdefgh"}:
            raise RuntimeError("boom")
        return super().decode(tokens, seed)
'''


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Eight clips on a grid of 1/1024, and a user's file; it is the cwd."""
    (tmp_path / "grid").mkdir()
    for i, name in enumerate(CLIPS):
        x = np.random.default_rng(i).integers(-200, 200, 800) / 1024
        write_clip(Clip(x, 8_000), tmp_path / "grid" / f"{name}.wav")
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVALKIT_DATA", raising=False)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    yield tmp_path
    # The next test's mine.py is another file: forget what this one registered in this process.
    for kind in ("metrics", "tasks"):
        known = registry._registries[kind]  # type: ignore[index]
        for name in [n for n, origin in known.origin.items() if origin.startswith("evalkit_user_")]:
            del known.entries[name], known.origin[name]
    for path in registry.user_files():
        sys.modules.pop(registry._user_files.pop(path), None)
    work.load_metric.cache_clear()
    work._systems.clear()


def request(*systems: str, **options: Any) -> Request:
    return Request(("mine.py:few",), systems or ("mine.py:Shifted", "pcm:8"), **options)


def shifts(seeds: range, clips: tuple[str, ...] = CLIPS) -> np.ndarray:
    """What `Shifted` adds: [seeds, clips], from the documented rule for a clip's seed."""

    def one(seed: int, clip: str) -> float:
        drawn = int.from_bytes(hashlib.sha256(f"{seed}:{clip}".encode()).digest()[:4], "little")
        return (drawn % 64 + 1) / 1024

    return np.array([[one(s, c) for c in clips] for s in seeds])


def rows(table: Table) -> dict[str, Row]:
    return {r.label.removeprefix("mine.py:"): r for r in table.rows}


def predictions(out: str = "out") -> Counter[tuple[str, int]]:
    """Lines of predictions by system and seed."""
    lines = [json.loads(line) for line in Path(out, "predictions.jsonl").read_text().splitlines()]
    return Counter((p["system"].rpartition(":")[2] if "mine" in p["system"] else "pcm:8", p["seed"]) for p in lines)


def three(*systems: str) -> Outcome:
    return run(request(*systems, seeds=3), out="out", jobs=0)


# -- what is computed -------------------------------------------------------------------------------------------------


def test_stochastic_systems_are_decoded_with_every_seed_and_others_once(bench: Path) -> None:
    outcome = three()
    assert outcome.exit_code == 0
    assert (outcome.predicted, outcome.scored) == (4 * 8, 4 * 8)
    assert predictions() == {("Shifted", 0): 8, ("Shifted", 1): 8, ("Shifted", 2): 8, ("pcm:8", 0): 8}
    assert [(r["system"]["spec"], r["seed"]) for r in outcome.results] == [
        ("mine.py:Shifted", 0),
        ("mine.py:Shifted", 1),
        ("mine.py:Shifted", 2),
        ("pcm:8", 0),
    ]
    assert (three().predicted, three().scored) == (0, 0)
    from_five = run(request(seed=5, seeds=2), out="five", jobs=0)
    assert [r["seed"] for r in from_five.results] == [5, 6, 5]


def test_raising_the_number_reuses_what_is_there(bench: Path) -> None:
    first = run(request(), out="out", jobs=0)
    page = render_task(build_table(first.results))
    more = three()
    assert (more.predicted, more.scored) == (2 * 8, 2 * 8)
    assert more.results[0]["metrics"]["mse"] == first.results[0]["metrics"]["mse"]
    fewer = run(request(), out="out", jobs=0)
    assert fewer.predicted == 0
    assert render_task(build_table(fewer.results)) == page


def test_scoring_again_has_every_seed(bench: Path) -> None:
    three()
    outcome = rescore("out", metrics=["mine.py:peak"], jobs=0)
    assert (outcome.exit_code, outcome.predicted, outcome.scored) == (0, 0, 4 * 8)
    cell = rows(build_table(outcome.results))["Shifted"].cells["test_seeds_peak"]
    assert cell.value == pytest.approx(shifts(range(3)).mean(), rel=1e-6)


def test_fewer_than_one_seed_is_refused(bench: Path) -> None:
    with pytest.raises(UsageError, match="seeds is 0, expected at least 1"):
        run(request(seeds=0), out="out", jobs=0)


# -- the numbers, against numpy ---------------------------------------------------------------------------------------


def test_values_are_means_over_seeds_and_both_variances_are_told(bench: Path) -> None:
    found = rows(build_table(three().results))
    errors = shifts(range(3)) ** 2  # the mean squared error of a constant, [seeds, clips]
    clips = errors.mean(axis=0)
    cell = found["Shifted"].cells["mse"]
    assert found["Shifted"].seeds == (0, 1, 2) and found["pcm:8"].seeds == (0,)
    assert cell.coverage == (8, 0, 0, 0)
    near = {"rel": 1e-6}  # records keep 7 digits
    assert cell.value == pytest.approx(clips.mean(), **near)
    drawn = cluster_bootstrap(clips, CLIPS, seed=0)
    assert (cell.low, cell.high) == (pytest.approx(drawn.low, **near), pytest.approx(drawn.high, **near))
    assert cell.noise is not None and cell.noise.seeds == 3
    assert cell.noise.of_mean == pytest.approx(np.std(errors.mean(axis=1), ddof=1), **near)
    assert cell.noise.within_clip == pytest.approx(np.std(errors, axis=0, ddof=1).mean(), **near)
    assert cell.noise.over_clips == pytest.approx(np.std(clips, ddof=1), **near)
    assert len({cell.noise.of_mean, cell.noise.within_clip, cell.noise.over_clips}) == 3
    assert found["pcm:8"].cells["mse"].noise is None
    time = found["Shifted"].cells["decode_rtf"]  # what differs by itself is averaged too
    assert time.value is not None and time.coverage == (8, 0, 0, 0)


def test_what_the_seed_does_not_touch_stays_to_the_bit(bench: Path) -> None:
    outcome = three()
    cell = rows(build_table(outcome.results))["Shifted"].cells["nominal_kbps"]
    assert cell.value == rows(build_table(outcome.results[:1]))["Shifted"].cells["nominal_kbps"].value == 88.0
    assert cell.noise is not None and cell.noise.none and cell.noise.within_clip == 0
    odd = copy.deepcopy(outcome.results[:3])
    for r in odd:
        r["metrics"]["mse"]["values"] = [0.1] * 8  # (0.1 + 0.1 + 0.1) / 3 is not 0.1
    (one,) = combine(odd)
    assert one["metrics"]["mse"]["values"] == [0.1] * 8 and one["metrics"]["mse"]["noise"].none


def test_paired_tests_are_of_the_means_over_seeds(bench: Path) -> None:
    outcome = three()
    cells = rows(build_table(outcome.results, baseline="pcm:8"))
    other = np.array(next(r for r in outcome.results if r["system"]["spec"] == "pcm:8")["metrics"]["mse"]["values"])
    differences = np.mean(shifts(range(3)) ** 2, axis=0) - other
    cell = cells["Shifted"].cells["mse"]
    assert cell.diff == pytest.approx(differences.mean(), rel=1e-6)
    assert cell.p == pytest.approx(holm(sign_flip_p(differences[None], seed=0))[0])
    assert cell.p == pytest.approx(2 / 2**8)  # one pair, all clips worse: no seed adds a system to Holm's family
    assert (cells["pcm:8"].cells["mse"].rank, cell.rank) == ("1", "2")


def test_a_corpus_metric_is_averaged_with_its_ends(bench: Path) -> None:
    outcome = three()
    cell = rows(build_table(outcome.results))["Shifted"].cells["test_seeds_bias"]
    values = shifts(range(3)).mean(axis=1)
    assert cell.value == pytest.approx(values.mean(), rel=1e-6)
    assert cell.noise is not None and (cell.noise.within_clip, cell.noise.over_clips) == (None, None)
    assert cell.noise.of_mean == pytest.approx(np.std(values, ddof=1), rel=1e-5)
    each = [r["metrics"]["test_seeds_bias"]["corpus"] for r in outcome.results[:3]]
    assert len({c["low"] for c in each}) == 3
    assert cell.low == pytest.approx(np.mean([c["low"] for c in each]), rel=1e-12)
    assert cell.high == pytest.approx(np.mean([c["high"] for c in each]), rel=1e-12)
    assert cell.note == "mean of 3 noise seeds, and of the ends of their intervals; " + each[0]["note"]
    assert "few clusters (8)" in each[0]["note"]


# -- what has no value ------------------------------------------------------------------------------------------------


def test_a_clip_that_fails_with_one_seed_only_keeps_its_reason(bench: Path) -> None:
    outcome = three("mine.py:Fails", "pcm:8")
    assert outcome.exit_code == 2
    table = build_table(outcome.results)
    cell = rows(table)["Fails"].cells["mse"]
    left = tuple(c for c in CLIPS if c not in "bc")
    assert cell.coverage == (6, 2, 0, 0)
    assert cell.value == pytest.approx(np.mean(shifts(range(3), left) ** 2), rel=1e-6)
    assert cell.noise is not None
    assert cell.noise.of_mean == pytest.approx(np.std(np.mean(shifts(range(3), left) ** 2, axis=1), ddof=1), rel=1e-6)
    found = rows(table)["Fails"].result["metrics"]["mse"]["reasons"]["failed"]
    boom, bang = sorted(found, key=lambda why: found[why])
    assert boom.startswith("RuntimeError: boom at mine.py:") and boom.endswith(" (noise seed 1)")
    assert bang.startswith("RuntimeError: bang at mine.py:")
    assert bang.endswith(" (noise seed 2); n/a: too quiet (noise seed 0)")
    assert found[boom] == [1] and found[bang] == [2]
    corpus = rows(table)["Fails"].cells["test_seeds_bias"]
    assert corpus.coverage == (6, 2, 0, 0) and "each over the clips that it has" in corpus.note
    page = render_task(table)
    assert "| `mine.py:Fails` | failed | `b` | all | RuntimeError: boom" in page
    assert "| `mine.py:Fails` | failed | `c` | all | RuntimeError: bang" in page


def test_a_seed_without_any_value_leaves_the_row_without_one(bench: Path) -> None:
    outcome = three("mine.py:Dies")
    assert outcome.exit_code == 3
    table = build_table(outcome.results)
    (row,) = table.rows
    for name in ("mse", "test_seeds_bias"):
        cell = row.cells[name]
        assert (cell.value, cell.noise, cell.coverage) == (None, None, (0, 8, 0, 0))
        assert "boom" in cell.reason and "noise seed 1" in cell.reason
    assert "No metric that has a value with every seed differs between them." in render_task(table)


# -- which records are one row ----------------------------------------------------------------------------------------


def test_only_records_that_differ_in_the_seed_alone_are_one_row(bench: Path) -> None:
    outcome = three()
    changed = copy.deepcopy(outcome.results[0])
    changed["system"]["fingerprint"]["source"] = "0" * 64
    again = {**outcome.results[3], "seed": 1}  # a deterministic system of a run with another seed
    table = build_table([changed, *outcome.results[1:], again])
    names = {r.label.rpartition("mine.py:")[2] for r in table.rows}
    assert names == {
        "Shifted (seed 0)",
        "Shifted (seeds 1, 2)",
        f"{_pcm(outcome)} (seed 0)",
        f"{_pcm(outcome)} (seed 1)",
    }
    table = build_table([*outcome.results[::-1]])  # in any order
    assert rows(table)["Shifted"].seeds == (0, 1, 2)
    assert combine(outcome.results)[1] is outcome.results[3]


def _pcm(outcome: Outcome) -> str:
    return str(outcome.results[3]["system"]["name"])


def test_a_combined_row_counts_once_where_versions_are_told_apart(bench: Path) -> None:
    """Three noise seeds on old data are one row, not a majority of three."""
    outcome = three()
    old = [copy.deepcopy(r) for r in outcome.results[:3]]
    for r in old:
        r["task"]["identity"]["selection"]["limit"] = 10
        r["task"]["version"] = "old"
    new = [copy.deepcopy(outcome.results[3]) for _ in range(2)]
    new[1]["system"] |= {"name": "other", "spec": "other"}
    table = build_table([*old, *new])
    assert [r.label for r in table.rows] == ["other", "pcm:8"]
    assert table.refused == (("mine.py:Shifted", "selection.limit (none -> 10)"),)


# -- pages, exports, terminal -----------------------------------------------------------------------------------------


def test_the_page_has_one_row_a_system_and_a_section_of_noise(bench: Path) -> None:
    table = build_table(three().results)
    page = render_task(table)
    assert "(seed" not in page
    assert page.count("\n| `mine.py:Shifted`<br>3 noise seeds |") == 4  # headline, and three groups
    section = page.split("## Variation over noise seeds\n")[1].split("\n## ")[0]
    head, _, *lines = [line for line in section.splitlines() if line.startswith("|")]
    assert head == "| system | metric | seeds | SD of the mean over seeds | mean within-clip SD | SD over clips |"
    e = shifts(range(3)) ** 2
    expected = [np.std(e.mean(1), ddof=1), np.std(e, axis=0, ddof=1).mean(), np.std(e.mean(0), ddof=1)]
    bias = np.std(shifts(range(3)).mean(1), ddof=1)
    assert lines == [
        "| `mine.py:Shifted` | mse | 3 | " + " | ".join(f"{x:.4g}" for x in expected) + " |",
        f"| `mine.py:Shifted` | test\\_seeds\\_bias | 3 | {bias:.4g} | – | – |",
    ]
    assert "\n- seed 0, 1, 2; intervals" in page
    assert "--seeds 3" in page.split("## Provenance")[1]


def test_exports_have_the_seeds_and_their_deviation(bench: Path) -> None:
    table = build_table(three().results)
    files = {name.rpartition(".")[2]: content.decode() for name, content in leaderboard.task_files(table).items()}
    sd = np.std(np.mean(shifts(range(3)) ** 2, axis=1), ddof=1)
    for made in (json.loads(files["json"])["rows"], list(csv.DictReader(io.StringIO(files["csv"])))):
        by = {(r["system"], r["metric"]): r for r in made}
        one = by["mine.py:Shifted", "mse"]
        assert one["seeds"] in ([0, 1, 2], "0 1 2")
        assert float(one["seed_sd"]) == pytest.approx(sd, rel=1e-6)
        assert float(one["within_clip_sd"]) > float(one["seed_sd"]) and float(one["clip_sd"]) > 0
        assert float(by["mine.py:Shifted", "nominal_kbps"]["seed_sd"]) == 0
        assert by["mine.py:Shifted", "test_seeds_bias"]["clip_sd"] in (None, "")
        other = by["pcm:8", "mse"]
        assert other["seeds"] in ([0], "0") and other["seed_sd"] in (None, "")
        assert len(made) == 2 * 3


def test_one_seed_is_told_as_before(bench: Path) -> None:
    asked = request()
    before = {  # what a request was before there were seeds
        "tasks": ["mine.py:few"],
        "systems": ["mine.py:Shifted", "pcm:8"],
        "data_root": None,
        "limit": None,
        "seed": 0,
        "metrics": [],
        "baseline": None,
        "keep_audio": False,
    }
    assert request_from_json(before) == asked
    assert "seeds" not in request_json(asked) and "--seeds" not in command(asked)
    assert default_directory(asked).name == "mine.py:few-" + digest(before)[:8]
    assert request_from_json(request_json(asked)) == asked
    several = request(seeds=3)
    assert request_from_json(json.loads(json.dumps(request_json(several)))) == several
    assert command(several).endswith(" --seeds 3")
    table = build_table(run(asked, out="out", jobs=0).results)
    files = leaderboard.task_files(table)
    assert "seeds" not in RunDirectory("out").read()["request"]
    for name, content in files.items():
        assert b"noise seed" not in content and b"seed_sd" not in content and b"<br>1 " not in content, name
    head = files["seeds-reconstruction.csv"].decode().splitlines()[0].split(",")
    assert head[:6] == ["task", "system", "full_name", "role", "seed", "metric"] and head[-1] == "floor"


# -- leaderboard ------------------------------------------------------------------------------------------------------


def test_a_leaderboard_keeps_a_record_a_seed_and_gains_seeds(bench: Path) -> None:
    outcome = three()
    leaderboard.update(["out"], "board")
    folder = Path("board/records/seeds-reconstruction")
    assert {p.name for p in folder.glob("*.json")} >= {file_name(r) for r in outcome.results}
    assert len([p for p in folder.glob("*.json") if ".cost." not in p.name]) == 4
    assert leaderboard.check("board") == []
    page = Path("board/seeds-reconstruction.md").read_text()
    assert page == render_task(build_table(leaderboard.read_records(Path("board/records"))))
    assert "3 noise seeds" in page and "(seed" not in page
    assert "3 noise seeds" in Path("board/seeds-reconstruction.cost.md").read_text()
    assert "| all 8 clips | 2 |" in Path("board/README.md").read_text()

    run(request("mine.py:Shifted", seed=3), out="later", jobs=0)
    leaderboard.update(["later"], "board")
    page = Path("board/seeds-reconstruction.md").read_text()
    assert "4 noise seeds" in page and "\n- seed 0, 1, 2, 3; intervals" in page
    assert "--seeds 3`" in page and "--seed 3`" in page  # both commands
    (row,) = [r for r in json.loads(Path("board/seeds-reconstruction.json").read_text())["rows"]
              if (r["system"], r["metric"]) == ("mine.py:Shifted", "mse")]  # fmt: skip
    errors = shifts(range(4)) ** 2
    assert row["value"] == pytest.approx(errors.mean(), rel=1e-6)
    assert row["seed_sd"] == pytest.approx(np.std(errors.mean(axis=1), ddof=1), rel=1e-6)


# -- command line -----------------------------------------------------------------------------------------------------


def evalkit(capfd: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    """A command in this process: exit code, stdout, stderr."""
    before, sys.argv = sys.argv, ["evalkit", *line.split()]
    capfd.readouterr()
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = before
    assert isinstance(stop.value.code, int)
    return stop.value.code, *capfd.readouterr()


def test_the_command(bench: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base = "run -t mine.py:few -s mine.py:Shifted,pcm:8 -o out -j 0"
    code, out, _ = evalkit(capfd, f"{base} --seeds 3")
    words = " ".join(out.split())
    assert code == 0 and "3 noise seeds" in words and "(seed" not in words
    code, out, _ = evalkit(capfd, f"{base} --seeds 3 --json")
    made = {(r["system"], r["metric"]): r for r in json.loads(out)["rows"]}
    assert made["mine.py:Shifted", "mse"]["seeds"] == [0, 1, 2]
    assert RunDirectory("out").read()["request"]["seeds"] == 3
    code, out, _ = evalkit(capfd, "score out -j 0 --json")
    assert code == 0 and {(r["system"], r["metric"]): r for r in json.loads(out)["rows"]} == made
    monkeypatch.setenv("EVALKIT_RUN_SEEDS", "2")
    assert evalkit(capfd, base)[0] == 0
    assert RunDirectory("out").read()["request"]["seeds"] == 2
    code, _, err = evalkit(capfd, f"{base} --seeds 0")
    assert code == 1 and "Invalid value for '--seeds'" in err


def test_a_failure_and_a_change_name_the_seed_and_the_system_once(
    bench: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = evalkit(capfd, "run -t mine.py:few -s mine.py:Fails -o out -j 0 --seeds 3")
    assert code == 2
    told = [line for line in err.splitlines() if "failed: " in line]
    assert len(told) == 2 and "(seed 1) on b: RuntimeError: boom" in told[0] and "(seed 2) on c: " in told[1]
    code, _, err = evalkit(capfd, "run -t mine.py:few -s mine.py:Fails -o out -j 0 --seeds 3 --limit 4")
    changed = [line for line in err.splitlines() if "selection.limit (none -> 4)" in line]
    assert len(changed) == 1 and changed[0].endswith("Fails]")


def test_the_dry_run_counts_every_seed(bench: Path) -> None:
    run(request(limit=4), out="out", jobs=0)
    coming = forecast(request(seeds=3, limit=4), out="out")
    assert [(c.clips, c.seeds, c.cached, c.todo) for c in coming.cells] == [(4, 3, 4, 8), (4, 1, 4, 0)]
    assert coming.cells[0].seconds is not None and coming.cells[0].seconds > 0
    assert [line[2] for line in coming.lines()] == ["4 x 3 seeds", "4"]
    assert coming.summary().startswith("8 of 16 results to compute")
    assert [c["seeds"] for c in coming.as_json()["cells"]] == [3, 1]
    assert not any("seeds" in c for c in forecast(request(limit=4), out="out").as_json()["cells"])


def test_explain_tells_the_seeds_apart(bench: Path, capfd: pytest.CaptureFixture[str]) -> None:
    three()
    kept = [line for line in Path("out/predictions.jsonl").read_text().splitlines() if json.loads(line)["seed"] != 2]
    Path("out/predictions.jsonl").write_text("".join(line + "\n" for line in kept))
    _, out, _ = evalkit(capfd, "cache explain out")
    lines = [line.split() for line in out.splitlines()[1:]]
    assert [(line[2:4] if line[2] == "(seed" else [], "miss" in line) for line in lines] == [
        (["(seed", "0)"], False),
        (["(seed", "1)"], False),
        (["(seed", "2)"], True),
        ([], False),
    ]
    assert "differs from the nearest record in seed " in out
    _, out, _ = evalkit(capfd, "cache explain out --clip a --json")
    assert [(e["seed"], e["verdict"]) for e in json.loads(out)] == [(0, "hit"), (1, "hit"), (2, "miss"), (None, "hit")]
