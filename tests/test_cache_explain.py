"""Why a prediction is reused or computed again: the verdicts agree with what the runner then does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit import registry, work
from evalkit.audio import Clip, write_clip
from evalkit.cache import Explanation, explain
from evalkit.execute import Serial
from evalkit.plan import Request, make_plan
from evalkit.record import RunDirectory
from evalkit.run import run

CODEC = '''
import numpy as np
from evalkit import Clip, Tokens, NotApplicable, metric

STEP = 64

class Codec:
    """Rounds."""
    def __init__(self, levels: int = 64, only: str = ""):
        self.levels, self.only = levels, only
    def encode(self, clip):
        if self.only and clip.id != self.only:
            raise (NotApplicable if clip.id == "c" else RuntimeError)("not this one")
        codes = (np.clip(clip.samples, -1, 0.99) * self.levels / 2 + self.levels / 2).astype(np.int64)
        return Tokens(codes, (self.levels,) * clip.channels, clip.sample_rate, clip.length, clip.sample_rate)
    def decode(self, tokens, seed):
        return Clip(tokens.codes * 2.0 / self.levels - 1, tokens.sample_rate)

@metric("test_cache_peak", unit="FS", direction="lower")
def peak(reference, estimate):
    """Largest absolute error."""
    return np.abs(reference.samples - estimate.samples).max()
'''


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "clips").mkdir()
    for i, name in enumerate("abc"):
        _clip(tmp_path, name, i)
    (tmp_path / "mine.py").write_text(CODEC)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    # The next test's mine.py is another file: forget what this one registered in this process.
    metrics = registry._registries["metrics"]
    for name in [n for n, origin in metrics.origin.items() if origin.startswith("evalkit_user_")]:
        del metrics.entries[name], metrics.origin[name]
    work.load_metric.cache_clear()
    work._systems.clear()
    registry._user_files.clear()


def _clip(folder: Path, name: str, seed: int) -> None:
    write_clip(Clip(np.random.default_rng(seed).normal(0, 0.1, 4_000), 16_000), folder / "clips" / f"{name}.wav")


def request(*systems: str, **more: Any) -> Request:
    return Request(("folder:clips",), systems or ("pcm:8",), **more)


def explained(wanted: Request) -> list[Explanation]:
    return explain(RunDirectory("out"), make_plan(wanted, Serial()))


def carried_out(wanted: Request) -> Any:
    return run(wanted, out="out", jobs=0)


def verdicts(found: list[Explanation]) -> dict[str, str]:
    return {e.clip: e.verdict for e in found}


def whys(found: list[Explanation]) -> set[str]:
    return {e.why for e in found}


def test_before_the_first_run_everything_misses(bench: Path) -> None:
    found = explained(request())
    assert verdicts(found) == {"a": "miss", "b": "miss", "c": "miss"}
    assert whys(found) == {"never predicted here"}


def test_after_the_run_everything_hits(bench: Path) -> None:
    carried_out(request("pcm:8", "silence"))
    found = explained(request("pcm:8", "silence"))
    assert Counter(e.verdict for e in found) == {"hit": 6}
    assert all(e.why.startswith("same key ") for e in found)
    assert {e.system for e in found} == {"pcm:8", "silence"}
    assert {e.task for e in found} == {"folder-reconstruction:clips"}
    again = carried_out(request("pcm:8", "silence"))
    assert (again.predicted, again.scored) == (0, 0)


@pytest.mark.parametrize(
    ("change", "why", "hits"),
    [
        (lambda bench: request("pcm:9"), "parameters pcm:8 -> pcm:9", 0),
        (lambda bench: request("silence"), "never predicted here", 0),
        (lambda bench: request(limit=2), "same key", 2),
        (lambda bench: request(seed=1), "same key", 3),  # pcm draws nothing
    ],
)
def test_a_changed_request_names_what_changed(
    bench: Path, change: Callable[[Path], Request], why: str, hits: int
) -> None:
    carried_out(request("pcm:8"))
    found = explained(change(bench))
    assert all(why in e.why for e in found)
    assert sum(e.verdict == "hit" for e in found) == hits
    assert {e.verdict for e in found} == ({"hit"} if hits else {"miss"})
    # The runner does what was said.
    assert carried_out(change(bench)).predicted == len(found) - hits


def test_another_seed_misses_where_a_seed_matters(bench: Path) -> None:
    carried_out(request("noise"))
    found = explained(request("noise", seed=1))
    assert {e.verdict for e in found} == {"miss"}
    assert all("seed" in e.why and "system" not in e.why for e in found)


def test_a_changed_clip_misses_alone(bench: Path) -> None:
    carried_out(request())
    _clip(bench, "b", 99)
    _clip(bench, "d", 3)
    found = {e.clip: e for e in explained(request())}
    assert {c: e.verdict for c, e in found.items()} == {"a": "hit", "b": "miss", "c": "hit", "d": "miss"}
    assert found["b"].why.startswith("differs from the nearest record in audio ")
    assert found["d"].why == "never predicted here"
    assert carried_out(request()).predicted == 2


def test_the_same_clip_touched_and_rewritten_hits(bench: Path) -> None:
    carried_out(request())
    content = (bench / "clips" / "b.wav").read_bytes()
    (bench / "clips" / "b.wav").write_bytes(content)
    os.utime(bench / "clips" / "b.wav", (1, 1))
    assert set(verdicts(explained(request())).values()) == {"hit"}


def test_an_extra_metric_is_unscored_and_names_itself(bench: Path) -> None:
    carried_out(request())
    wanted = request(metrics=("mine.py:peak",))
    found = explained(wanted)
    assert {e.verdict for e in found} == {"unscored"}
    assert all(e.why.startswith("prediction reused; not scored yet: test_cache_peak-v1-") for e in found)
    done = carried_out(wanted)
    assert (done.predicted, done.scored) == (0, 3)
    assert set(verdicts(explained(wanted)).values()) == {"hit"}


def test_failures_are_kept_and_say_how_to_try_again(bench: Path) -> None:
    wanted = request("mine.py:Codec@only=a")
    carried_out(wanted)
    found = {e.clip: e for e in explained(wanted)}
    assert {c: e.verdict for c, e in found.items()} == {"a": "hit", "b": "failed", "c": "n/a"}
    assert "not this one" in found["b"].why and "(--retry-failed tries again)" in found["b"].why


def test_what_does_not_run_at_all_is_one_line(bench: Path) -> None:
    found = explained(request("codec2:700", "pcm:8"))
    one = [e for e in found if e.clip == "*"]
    assert len(one) == 1 and one[0].verdict == "n/a" and "codec2 is made for speech" in one[0].why
    (bench / "breaks.py").write_text(
        "class Breaks:\n    def __init__(self): raise OSError('weights.bin: no such file')\n"
    )
    broken = explained(request("breaks.py:Breaks"))
    assert [(e.clip, e.verdict) for e in broken] == [("*", "failed")]
    assert "weights.bin: no such file" in broken[0].why


# -- code that changes, in processes of their own ---------------------------------------------------------------------


def evalkit(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("EVALKIT_")}
    return subprocess.run(
        [sys.executable, "-m", "evalkit", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**env, **environment},
        timeout=120,
    )


def explained_by_command(cwd: Path, *more: str, **environment: str) -> list[dict[str, str]]:
    done = evalkit(cwd, "cache", "explain", "out", "--json", *more, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


RUN = (
    "run",
    "--task",
    "folder:clips",
    "--system",
    "mine.py:Codec,pcm:8",
    "--metric",
    "mine.py:peak",
    "--out",
    "out",
    "-j",
    "0",
)


def test_only_code_that_matters_makes_a_miss(bench: Path) -> None:
    assert evalkit(bench, *RUN).returncode == 0
    assert Counter(e["verdict"] for e in explained_by_command(bench)) == {"hit": 6}
    # A comment, a docstring and the layout are not what a result is made of.
    (bench / "mine.py").write_text(
        "# changed\n" + CODEC.replace("Rounds.", "Rounds well.").replace("    def decode", "\n    def decode")
    )
    assert Counter(e["verdict"] for e in explained_by_command(bench)) == {"hit": 6}
    # The codec's code is: its own predictions miss, nobody else's.
    (bench / "mine.py").write_text(CODEC.replace("0.99", "0.98"))
    found = explained_by_command(bench)
    assert Counter((e["system"].partition("@")[0], e["verdict"]) for e in found) == {
        ("mine.py:Codec:64", "miss"): 3,
        ("pcm:8", "hit"): 3,
    }
    assert all("system " in e["why"] for e in found if e["verdict"] == "miss")


def test_a_changed_metric_is_unscored_for_everybody(bench: Path) -> None:
    assert evalkit(bench, *RUN).returncode == 0
    (bench / "mine.py").write_text(CODEC.replace(".max()", ".mean()"))
    found = explained_by_command(bench)
    assert {e["verdict"] for e in found} == {"unscored"}
    assert all(
        "prediction reused; metric changed: test_cache_peak-v1-" in e["why"] and " -> " in e["why"] for e in found
    )


def test_the_command_filters_and_tallies(bench: Path) -> None:
    assert evalkit(bench, *RUN).returncode == 0
    assert {e["system"] for e in explained_by_command(bench, "--system", "pcm")} == {"pcm:8"}
    one = explained_by_command(bench, "--clip", "b")
    assert [e["clip"] for e in one] == ["b", "b"] and set(one[0]) == {"task", "system", "clip", "verdict", "why"}
    shown = evalkit(bench, "cache", "explain", "out").stdout
    assert "\x1b" not in shown
    assert all(line.split()[-4:] == ["3", "hit", "same", "key"] for line in shown.splitlines()[1:])
    assert len(shown.splitlines()) == 3
    listed = evalkit(bench, "cache", "explain", "out", "--clip", "b").stdout
    assert [line.split()[2:4] for line in listed.splitlines()[1:]] == [["b", "hit"], ["b", "hit"]]


IDENTITIES = """
import json
from evalkit import registry
from evalkit.datasets.load import load_dataset
from evalkit.identity import digest, source_hash
from evalkit.plan import reader_hash
from evalkit.work import describe, load_metric, metric_id

SYSTEMS = ("identity", "silence", "noise", "pcm:8", "mulaw", "resample:16000", "mdct:6", "opus:6", "mp3:8",
           "codec2:700")
print(json.dumps({
    "reader": reader_hash(),
    **{f"metric {m}": metric_id(load_metric(m)) for m in registry.names("metrics")},
    **{f"system {s}": describe(s).get("digest", "absent") for s in SYSTEMS},
    **{f"clip {i.id}": digest([i.make_key, source_hash(i.make)]) for i in load_dataset("scenes").layout.items[:2]},
}))
"""


@pytest.fixture(scope="module")
def identities() -> list[dict[str, str]]:
    """The identity of everything shipped, in two processes whose memory and sets are laid out differently."""
    out = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", IDENTITIES],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.returncode == 0, done.stderr
        out.append(json.loads(done.stdout))
    return out


@pytest.mark.parametrize("what", ["reader", "metric", "system", "clip"])
def test_identities_are_the_same_in_every_process(identities: list[dict[str, str]], what: str) -> None:
    """Otherwise a run is never continued, whatever `cache explain` says about why."""
    first, second = ({k: v for k, v in one.items() if k.startswith(what)} for one in identities)
    assert first and first == second
    assert "absent" not in [v for k, v in first.items() if "codec2" not in k]


def test_the_embedded_data_set_hits_in_another_process(tmp_path: Path) -> None:
    command = ("run", "--task", "scenes", "--system", "pcm:8", "--limit", "2", "--out", "out", "-j", "0")
    assert evalkit(tmp_path, *command).returncode == 0
    assert [e["verdict"] for e in explained_by_command(tmp_path)] == ["hit", "hit"]
    assert "2 results to have, 2 there already" in evalkit(tmp_path, *command).stderr
