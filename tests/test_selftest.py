"""The self-test of measures: what breaks its word is caught and named; verdicts are kept and looked up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from evalkit import registry, selftest
from evalkit.cli import cli
from evalkit.datasets import Item
from evalkit.datasets.scenes import item, make_clip
from evalkit.errors import EvalkitError, UsageError
from evalkit.registry import MetricInfo
from evalkit.selftest import Check, Material, MaterialResult, MetricResult, Selftest, Series, keep, verdict
from evalkit.selftest_page import html_page, markdown, panel, ticks
from evalkit.work import load_metric, metric_id

METRICS = '''
import os, time
import numpy as np
from evalkit import corpus_metric, metric
from evalkit.errors import NotApplicable


def error(reference, estimate):
    return float(np.mean(np.square(estimate.samples - reference.samples, dtype=np.float64)))


@metric("honest", unit="1", direction="lower", worsens_with=("noise", "packet_loss"))
def honest(reference, estimate):
    """Error."""
    return error(reference, estimate)


@metric("backwards", unit="1", direction="higher", worsens_with=("noise",))
def backwards(reference, estimate):
    """Says that more is better."""
    return error(reference, estimate)


@metric("turning", unit="1", direction="lower", worsens_with=("noise",))
def turning(reference, estimate):
    """Grows and then falls."""
    share = error(reference, estimate) / error(reference, reference.with_samples(0 * reference.samples))
    return share if share < 0.05 else 0.0


@metric("still", unit="1", direction="lower", worsens_with=("gain",))
def still(reference, estimate):
    """Never moves."""
    return 4.0


@metric("not_invariant", unit="1", direction="lower", worsens_with=("noise",), invariant_to=("gain",))
def not_invariant(reference, estimate):
    """Moves with the level."""
    return error(reference, estimate)


@metric("only_over_noise", unit="1", direction="lower", invariant_to=("gain",))
def only_over_noise(reference, estimate):
    """No value for copies that differ in level alone."""
    r, e = reference.samples.ravel().astype(float), estimate.samples.ravel().astype(float)
    rho = np.dot(r, e) / np.sqrt(np.dot(r, r) * np.dot(e, e))
    if 1 - rho < 1e-6:
        raise NotApplicable("a scaled copy")
    return 1 - rho


@metric("raising", unit="1", direction="lower", worsens_with=("noise",))
def raising(reference, estimate):
    """Raises when there is much noise."""
    if error(reference, estimate) > 0.5 * error(reference, reference.with_samples(0 * reference.samples)):
        raise RuntimeError("boom")
    return error(reference, estimate)


@metric("nan", unit="1", direction="lower", worsens_with=("noise",))
def nan(reference, estimate):
    """Not a number."""
    return float("nan")


@metric("hanging", unit="1", direction="lower", worsens_with=("noise",))
def hanging(reference, estimate):
    """Never returns, from some error on."""
    if error(reference, estimate):
        time.sleep(1000)
    return 0.0


@metric("dying", unit="1", direction="lower", worsens_with=("noise",))
def dying(reference, estimate):
    """Takes its process down."""
    os._exit(3)


@metric("unknown_ladder", unit="1", direction="lower", worsens_with=("nosie",), invariant_to=("gian",))
def unknown_ladder(reference, estimate):
    """Misspelt."""
    return error(reference, estimate)


@metric("absent", unit="1", direction="lower", worsens_with=("noise",))
def absent(reference, estimate):
    """Weights that are not there."""
    raise NotApplicable("weights of absent are not here: fetch them")


@metric("speech_only", unit="1", direction="lower", domains=("speech",), worsens_with=("noise",))
def speech_only(reference, estimate):
    """For speech."""
    return error(reference, estimate)


@metric("either_side", unit="1", direction="none", worsens_with=("gain",), invariant_to=("polarity",))
def either_side(reference, estimate):
    """Level difference."""
    return float(np.log(np.mean(np.abs(estimate.samples)) / np.mean(np.abs(reference.samples))))


@metric("labelled", unit="1", direction="lower", worsens_with=("noise",))
def labelled(estimate, labels):
    """Uses a label and no reference."""
    return float(np.mean(np.abs(estimate.samples))) * len(labels["events"])


@metric("of_tokens", unit="1", direction="lower")
def of_tokens(tokens):
    """No audio."""
    return 1.0


def pooled(statistics, weights):
    return float(weights @ [s["error"][0] for s in statistics] / (weights @ [s["power"][0] for s in statistics]))


@corpus_metric(
    "pooled", combine=pooled, unit="1", direction="lower", worsens_with=("noise",), invariant_to=("polarity",)
)
def pooled_error(reference, estimate):
    """A corpus metric that is not blind to the sign."""
    zero = reference.with_samples(0 * reference.samples)
    return {"error": np.array([error(reference, estimate)]), "power": np.array([error(reference, zero)])}


def few(statistics, clusters, seed):
    raise NotApplicable(f"{len(statistics)} embeddings of 1,024 dimensions")


@corpus_metric("refusing", evaluate=few, unit="1", direction="lower", worsens_with=("noise",))
def refusing(reference, estimate):
    """A corpus metric that wants more clips."""
    return {"x": np.zeros(1)}


@corpus_metric("no_statistics", combine=pooled, unit="1", direction="lower")
def no_statistics(reference, estimate):
    """Gives no mapping."""
    return 3.0
'''
SCENES = Material("two scenes", "sound", (item("test", 3), item("test", 8)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVALKIT_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("mine") / "bad.py"
    path.write_text(METRICS)
    yield str(path)
    names = set(re.findall(r'metric\("(\w+)"', METRICS))
    for name in names & registry._registries["metrics"].entries.keys():  # no other test shall see them
        del registry._registries["metrics"].entries[name], registry._registries["metrics"].origin[name]


def run(mine: str, *names: str, ladders: Sequence[str] = ("noise", "gain", "polarity"), **how: Any) -> list[Any]:
    how = {"clips": [SCENES], "jobs": 0, **how}
    return list(selftest.selftest([f"{mine}:{n}" for n in names], ladders=ladders, **how).metrics)


# -- what is caught ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "backwards",
            r"worsens_with noise: 0 at clean, \S+ at 0 dB: better again by 100 % of its span \(two scenes, 2",
        ),
        ("turning", r"worsens_with noise: \S+ at 20 dB, 0 at 10 dB: better again by 100 % of its span"),
        ("still", r"worsens_with gain: does not move: 4 at clean, 4 at -20 dB"),
        ("not_invariant", r"invariant_to gain: .* at clean, \S+ at -20 dB: moves by \d\d\.\d % of the span"),
        ("raising", r"fails at noise, 0 dB: RuntimeError: boom at bad.py:\d+; 8 times in all"),
        ("nan", r"fails at clean: the metric returned nan"),
        ("unknown_ladder", r"worsens_with nosie: there is no ladder 'nosie' .*; and 1 more"),
        (
            "pooled_error",
            r"invariant_to polarity: 0.01 at noise 20 dB, 4.011 at flipped on it: moves by 400.1 % of the span",
        ),
        ("no_statistics", r"fails at clean: its statistics are no mapping of arrays"),
    ],
)
def test_a_broken_promise_is_caught_and_named(mine: str, name: str, why: str) -> None:
    (found,) = run(mine, name)
    assert found.verdict == "FAIL", found.reason
    assert re.search(why, found.reason), found.reason


@pytest.mark.parametrize(
    ("name", "verdict", "why"),
    [
        ("honest", "pass", "1 declarations on two scenes"),  # packet_loss is not among the ladders that are run
        ("only_over_noise", "pass", "1 declarations"),
        ("either_side", "pass", "2 declarations"),
        ("labelled", "pass", "1 declarations"),
        ("absent", "not run", "weights of absent are not here: fetch them"),
        ("speech_only", "not run", "speech_only is defined for speech, this is sound"),
        ("of_tokens", "not run", "not an audio measure: needs tokens"),
        ("refusing", "not run", "2 embeddings of 1,024 dimensions"),
    ],
)
def test_what_is_honest_passes_and_what_cannot_be_tested_says_why(mine: str, name: str, verdict: str, why: str) -> None:
    (found,) = run(mine, name)
    assert (found.verdict, found.failures) == (verdict, [])
    assert why in found.reason


def test_values_are_means_over_clips_and_invariance_is_tested_over_noise_too(mine: str) -> None:
    (found,) = run(mine, "only_over_noise", ladders=["gain"])
    (t,) = found.tested
    series = {(s.ladder, s.over): s for s in t.series}
    assert set(series) == {("noise", ""), ("gain", ""), ("gain", "noise 20 dB")}  # noise is the yardstick
    assert series["gain", ""].values == (None,) * 6 and series["gain", ""].reasons[0] == "a scaled copy"
    over = series["gain", "noise 20 dB"]
    assert over.levels == ("noise 20 dB", "-1 dB", "-3 dB", "-6 dB", "-12 dB", "-20 dB")
    info = load_metric(f"{mine}:only_over_noise")
    clips = [make_clip("test", i) for i in (3, 8)]
    from evalkit.degradations import LADDERS
    from evalkit.work import clip_seed

    noisy = [LADDERS["noise"].apply(c, 20, clip_seed(0, c.id)) for c in clips]
    expected = np.mean([info.function(c, d) for c, d in zip(clips, noisy, strict=True)])
    assert over.values[0] == pytest.approx(expected, rel=1e-9) and over.clips[0] == 2


@pytest.mark.slow
def test_one_that_hangs_or_dies_costs_only_itself(mine: str) -> None:
    one = Material("a scene", "sound", SCENES.items[:1])
    made = run(mine, "honest", "hanging", "dying", ladders=["noise"], clips=[one], jobs=1, timeout=10.0)
    found = {m.name: m for m in made}
    assert {n: m.verdict for n, m in found.items()} == {"honest": "pass", "hanging": "FAIL", "dying": "FAIL"}
    assert "timed out after 10 s (noise, clip test-0003); not tried again" in found["hanging"].reason
    assert "ended the interpreter (exit code 3) (clean, clip test-0003); not tried again" in found["dying"].reason
    assert all(v is not None for s in found["honest"].tested[0].series for v in s.values)


def test_workers_give_what_this_process_gives(mine: str) -> None:
    names = ("honest", "pooled_error", "refusing")
    here, there = (run(mine, *names, ladders=["noise", "polarity"], jobs=jobs) for jobs in (0, 1))
    assert here == there


def test_a_clip_that_cannot_be_read_is_no_fault_of_a_metric(mine: str, tmp_path: Path) -> None:
    broken = Item("gone", "gone", path=tmp_path / "gone.wav")
    (found,) = run(mine, "honest", clips=[Material("with a gap", "sound", (broken, *SCENES.items))])
    assert found.verdict == "pass"
    assert {s.clips[0] for s in found.tested[0].series} == {2}
    assert "1 of 3: " in found.tested[0].series[0].reasons[0] and "gone.wav" in found.tested[0].series[0].reasons[0]


def test_unknown_names_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="no ladder named 'nosie'; there are noise"):
        selftest.selftest(["mse"], [SCENES], ["nosie"], jobs=0)
    with pytest.raises(UsageError, match="no metric named 'mes'"):
        selftest.selftest(["mes"], [SCENES], jobs=0)


# -- judging ----------------------------------------------------------------------------------------------------------


def step_back(values: list[float]) -> str:
    return selftest._step_back([(str(i), v, v) for i, v in enumerate(values)])


def test_the_tolerance_is_two_percent_of_the_span_from_the_largest_so_far() -> None:
    assert step_back([0, 50, 49, 100]) == step_back([0, 1, 1, 1]) == ""
    assert step_back([0, 50, 47.9, 100]) == "50 at 1, 47.9 at 2: better again by 2 % of its span"
    assert "100 at 1, 97 at 4" in step_back([0, 100, 99, 98, 97])  # small steps that add up
    assert "does not move" in step_back([5, 5, 5]) and "does not move" in step_back([1e6, 1e6 + 1e-5])


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=7))
def test_growth_passes_and_its_reverse_does_not(values: list[float]) -> None:
    grown = sorted(values)
    moved = grown[-1] - grown[0] > 1e-9 * max(map(abs, grown))
    assert (not step_back(grown)) == moved
    assert step_back(grown[::-1])


def test_levels_are_compared_on_the_same_clips() -> None:
    na: Any = {"status": "n/a", "reason": "too quiet"}
    value: Any = [{"value": float(v)} for v in (1, 2, 9)]
    rows = [[*value], [value[0], value[1], na], [na, na, value[2]]]
    (a, b, c) = selftest._means(rows)
    assert a == (1.5, 2, "") and b == (1.5, 2, "1 of 3: too quiet")
    assert c == (None, 0, "1 of 3 clips have a value; 2 of 3: too quiet")


# -- verdicts that are kept -------------------------------------------------------------------------------------------


def outcome(identifier: str, *checks: Check, material: str = "scenes", name: str = "mse") -> Selftest:
    tested = MaterialResult(material, "sound", 12, checks, (Series("noise", "", ("clean",), (0.0,), (12,), ("",)),))
    one = MetricResult(identifier, name, "1", "lower", "g", "sample", ("noise",), (), "pass", "", (tested,))
    return Selftest(0, ((material, "sound", 12),), (one,))


def test_verdicts_by_metric_id_and_data_set(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(selftest, "SHIPPED", tmp_path / "shipped.json")
    mse = metric_id(registry.get("metrics", "mse"))
    assert verdict(mse) == verdict("nonsense") == ""
    bad, good = Check("worsens_with noise", "FAIL", "falls"), Check("worsens_with noise", "pass")
    keep(outcome(mse, bad), selftest.SHIPPED)
    assert verdict(mse) == "worsens_with noise: falls (scenes, 12 clips)"
    keep(outcome(mse, bad, Check("", "FAIL", "raises"), material="fma"), selftest.own_verdicts())
    assert verdict(mse) == "worsens_with noise: falls (scenes, 12 clips); and 2 more"
    keep(outcome(mse, good), selftest.own_verdicts())  # a later run of one's own counts for what it tested
    assert verdict(mse) == "worsens_with noise: falls (fma, 12 clips); and 1 more"
    keep(outcome(mse, good, material="fma"), selftest.own_verdicts())
    assert verdict(mse) == ""
    keep(outcome("mse-v9-00000000", bad), selftest.own_verdicts())  # another version: the old one is dropped
    assert list(json.loads(selftest.own_verdicts().read_text())["metrics"]) == ["mse-v9-00000000"]
    before = selftest.own_verdicts().read_bytes()
    keep(outcome("mse-v9-00000000", bad), selftest.own_verdicts())
    assert selftest.own_verdicts().read_bytes() == before


def test_a_declaration_that_is_no_longer_made_is_no_failure(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "SHIPPED", cache / "none.json")
    mse = metric_id(registry.get("metrics", "mse"))
    keep(outcome(mse, Check("invariant_to delay", "FAIL", "moves")), selftest.own_verdicts())
    assert verdict(mse) == ""
    keep(
        outcome("mine-v1-00000000", Check("invariant_to delay", "FAIL", "moves"), name="mine"), selftest.own_verdicts()
    )
    assert verdict("mine-v1-00000000").startswith("invariant_to delay: moves")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": 9, "metrics": {}}', '{"format": 1, "metrics": {"a": {"b": [{}]}}}']
)
def test_a_damaged_file_of_verdicts_is_named(cache: Path, text: str) -> None:
    cache.mkdir()
    (cache / "selftest.json").write_text(text)
    with pytest.raises(EvalkitError, match=r"selftest\.json: no file of self-test verdicts .* delete it and run"):
        verdict("mse-v1-00000000")


def test_the_verdicts_that_are_shipped_can_be_read(cache: Path) -> None:
    assert selftest.SHIPPED.is_file()
    for identifier, by_material in selftest._read(selftest.SHIPPED).items():
        assert re.fullmatch(r".+-v.+-[0-9a-f]{8}", identifier) and by_material
        assert isinstance(verdict(identifier), str)


# -- the page ---------------------------------------------------------------------------------------------------------

HOSTILE = "\"><script>alert(1)</script>|`'\x1b[31m\nx"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def hostile() -> Selftest:
    series = Series(HOSTILE, HOSTILE, (HOSTILE, "b"), (1.0, None), (2, 0), ("", HOSTILE), HOSTILE)
    tested = MaterialResult(HOSTILE, HOSTILE, 2, (Check(HOSTILE, "FAIL", HOSTILE),), (series,))
    one = MetricResult(
        HOSTILE, HOSTILE, HOSTILE, "lower", HOSTILE, "sample", (HOSTILE,), (), "FAIL", HOSTILE, (tested,)
    )
    return Selftest(0, ((HOSTILE, HOSTILE, 2),), (one,), (HOSTILE,))


def test_the_page_escapes_everything_and_needs_nothing_from_elsewhere() -> None:
    page = html_page(hostile())
    tags = Tags()
    tags.feed(page)
    assert not tags.open and "script" not in tags.seen and {"svg", "polyline", "details", "table"} <= tags.seen
    assert not [v for k, v in tags.attributes if k in ("src", "onerror", "onclick")]
    assert all((v or "").startswith("#") for k, v in tags.attributes if k == "href")
    assert "http" not in page and "\x1b" not in page and "url(" not in page and "@import" not in page


def test_the_markdown_is_inert() -> None:
    text = markdown(hostile())
    assert "<script>" not in text and "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", r)) in (6, 7) for r in rows), rows


def test_a_panel_draws_values_where_they_belong() -> None:
    series = Series("noise", "", ("clean", "40 dB", "0 dB"), (0.0, None, 10.0), (1, 0, 1), ("", "no", ""))
    svg = panel([(0, "scenes", series)], 0.0, 10.0)
    (points,) = re.findall(r'points="([^"]+)"', svg)
    (x0, y0), (x1, y1) = ([float(v) for v in p.split(",")] for p in points.split())
    assert x0 < x1 and y0 > y1 and svg.count("<circle") == 2
    assert "scenes, 0 dB: 10" in svg and ">clean<" in svg and ">0 dB<" in svg


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_lie_within_and_are_few(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert len(found) <= 6 and all(low - 1e-6 * width - 1e-6 <= t <= low + width * (1 + 1e-6) + 1e-6 for t in found)


# -- the command ------------------------------------------------------------------------------------------------------


def invoke(*words: str) -> Any:
    return CliRunner().invoke(cli, ["selftest", "--jobs", "0", *words])


def test_the_command_writes_its_files_and_keeps_no_verdicts_of_a_trial(cache: Path, tmp_path: Path) -> None:
    words = ("--metric", "mse_db,tokens_per_s", "--limit", "1", "--out", str(tmp_path / "st"))
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert re.search(r"mse_db +pass +\d declarations on scenes", done.output)
    assert re.search(r"tokens_per_s +not run +not an audio measure: needs tokens", done.output)
    assert "note: generated clips only" in done.output
    files = {p.name: p.read_bytes() for p in (tmp_path / "st").iterdir()}
    assert set(files) == {"selftest.json", "selftest.md", "selftest.html"}
    document = json.loads(files["selftest.json"])
    assert [m["verdict"] for m in document["metrics"]] == ["pass", "not run"]
    assert document["materials"] == [{"name": "scenes", "domain": "sound", "clips": 1}]
    assert not (cache / "selftest.json").exists()
    assert invoke(*words).exit_code == 0
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "st").iterdir()}
    refused = invoke(*words, "--record")
    assert isinstance(refused.exception, UsageError) and "leave out --limit" in str(refused.exception)


def test_the_command_ends_with_2_and_tables_learn_of_it(
    cache: Path, tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "SHIPPED", tmp_path / "shipped.json")
    done = invoke(
        "--metric", f"{mine}:still,{mine}:honest", "--clips", "scenes", "--out", str(tmp_path / "st"), "--record"
    )
    assert done.exit_code == 2, done.output
    assert re.search(r"still +FAIL +worsens_with gain: does not move", done.output)
    still, honest = (metric_id(load_metric(f"{mine}:{n}")) for n in ("still", "honest"))
    for path in (cache / "selftest.json", tmp_path / "shipped.json"):
        found = json.loads(path.read_text())["metrics"]
        assert found[honest] == {"scenes": []} and found[still]["scenes"][0]["declaration"] == "worsens_with gain"
    assert verdict(still).startswith("worsens_with gain: does not move") and verdict(honest) == ""


# -- this package's own measures --------------------------------------------------------------------------------------


def declared(module: str) -> list[MetricInfo]:
    infos = [registry.get("metrics", n) for n in registry.names("metrics")]
    return [i for i in infos if i.function.__module__.endswith(module)]


@pytest.mark.parametrize("module", ["waveform", "spectral", "texture"])
def test_measures_without_models_keep_their_declarations_on_scenes(module: str, cache: Path) -> None:
    names = [i.name for i in declared(module)]
    found = selftest.selftest(names, ["scenes"], limit=2, jobs=0)
    assert {m.name: m.reason for m in found.metrics if m.verdict != "pass"} == {}


def test_real_speech_is_used_where_there_is_a_data_root(shared: Path, cache: Path) -> None:
    found = selftest.selftest(["mse_db"], ladders=["noise"], data_root=shared / "data", limit=1, jobs=0)
    assert [m[:2] for m in found.materials] == [
        ("scenes", "sound"),
        ("librispeech", "speech"),
        ("vctk", "speech"),
        ("esc50", "sound"),
        ("fma", "music"),
    ]
    assert found.metrics[0].verdict == "pass"
    assert not found.notes


def test_snr_along_the_noise_ladder_is_the_ladder() -> None:
    (found,) = selftest.selftest(["snr"], [SCENES], ["noise"], jobs=0).metrics
    assert found.tested[0].series[0].values[1:] == pytest.approx([40, 30, 20, 10, 0], abs=0.01)
