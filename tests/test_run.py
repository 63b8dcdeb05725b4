"""The runner: failures cost only themselves, nothing is computed twice, killed runs finish the same."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit import registry, work
from evalkit.audio import Clip, write_clip
from evalkit.leaderboard import update
from evalkit.plan import Request
from evalkit.record import RunDirectory
from evalkit.results import counts
from evalkit.run import Outcome, run

SYSTEMS = '''
import os, time
from pathlib import Path
import numpy as np
from evalkit import Clip, NotApplicable, Tokens, corpus_metric, metric, system

class Rounding:
    """Rounds to 1/64, and writes down what it encodes."""
    def encode(self, clip):
        if "EVALKIT_TEST_LOG" in os.environ:
            with open(os.environ["EVALKIT_TEST_LOG"], "a") as f:
                f.write(clip.id + chr(10))
            time.sleep(0.02)
        codes = (np.clip(clip.samples, -1, 0.98) * 64 + 64).astype(np.int64)
        return Tokens(codes, (128,) * clip.channels, clip.sample_rate, clip.length, clip.sample_rate)
    def decode(self, tokens, seed):
        return Clip((tokens.codes / 64.0 - 1), tokens.sample_rate)

class OnOne(Rounding):
    """Does something bad on the clip b."""
    def encode(self, clip):
        if clip.id == "b":
            return self.bad(clip)
        return super().encode(clip)

class Raises(OnOne):
    def bad(self, clip):
        raise RuntimeError("boom | <b>bold</b>")

class Segfaults(OnOne):
    def bad(self, clip):
        import ctypes
        ctypes.string_at(0)

class Hangs(OnOne):
    def bad(self, clip):
        time.sleep(3600)

class WrongTokens(OnOne):
    def bad(self, clip):
        return [1, 2, 3]

class WrongLength(Rounding):
    def decode(self, tokens, seed):
        return Clip(np.zeros((1, tokens.samples // 2)), tokens.sample_rate)

class NotANumber(Rounding):
    def decode(self, tokens, seed):
        return Clip(np.full((1, tokens.samples), np.nan), tokens.sample_rate)

class WrongType(Rounding):
    def decode(self, tokens, seed):
        return Clip(np.zeros((1, tokens.samples), dtype=np.int16), tokens.sample_rate)

class WrongRate(Rounding):
    def decode(self, tokens, seed):
        return Clip(np.zeros((1, tokens.samples)), tokens.sample_rate * 2)

class Bare(Rounding):
    def decode(self, tokens, seed):
        return np.zeros(tokens.samples)

class Unbuildable:
    def __init__(self):
        raise OSError("weights.bin: no such file")

class Capricious(Rounding):
    """Not deterministic for its seed."""
    def decode(self, tokens, seed):
        return Clip(np.random.default_rng().normal(0, 0.1, (1, tokens.samples)), tokens.sample_rate)

@metric("test_raises", unit="", direction="lower")
def raises(reference, estimate):
    """Raises on the clip b."""
    if reference.id == "b":
        raise ZeroDivisionError("metric boom")
    return 1.0

@metric("test_nan", unit="", direction="lower")
def nan(reference):
    """Returns NaN."""
    return float("nan")

@metric("test_dies", unit="", direction="lower")
def dies(reference):
    """Takes the interpreter down on the clip c."""
    if reference.id == "c":
        os._exit(7)
    return 2.0

@metric("test_speech", unit="", direction="lower", domains=("speech",))
def speech_only(reference):
    """Speech only."""
    return 3.0

@corpus_metric("test_broken_corpus", unit="", direction="lower", combine=lambda stats, weights: 1 / 0)
def broken_corpus(reference):
    """Its combination fails."""
    return {"n": np.ones(1)}
'''


SLOW = """
import time
class Slow:
    def reconstruct(self, clip, seed):
        time.sleep(SECONDS)
        return clip
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with four clips, a.wav to d.wav, and a file of misbehaving systems and metrics; it is the cwd."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for i, name in enumerate("abcd"):
        t = np.arange(8000 + 801 * i) / 16_000
        noise = np.random.default_rng(i).normal(0, 0.02, t.size)
        write_clip(Clip(0.4 * np.sin(2 * np.pi * (300 + 100 * i) * t) + noise, 16_000), folder / f"{name}.wav")
    (tmp_path / "mine.py").write_text(SYSTEMS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    # The next test's mine.py is another file: forget what this one registered in this process.
    metrics = registry._registries["metrics"]
    for name in [n for n, origin in metrics.origin.items() if origin.startswith("evalkit_user_")]:
        del metrics.entries[name], metrics.origin[name]
    work.load_metric.cache_clear()
    work._systems.clear()
    registry._user_files.clear()


def _request(*systems: str, metrics: tuple[str, ...] = (), **options: Any) -> Request:
    return Request(("folder:clips",), systems, metrics=metrics, **options)


def _by_system(outcome: Outcome) -> dict[str, dict[str, Any]]:
    return {r["system"]["spec"]: r for r in outcome.results}


def _reasons(result: dict[str, Any], metric: str = "mse") -> dict[str, list[str]]:
    """Clip ids by reason."""
    ids = result["clips"]["id"]
    found = result["metrics"][metric]["reasons"]
    return {why: [ids[i] for i in at] for whys in found.values() for why, at in whys.items()}


def test_self_tests_of_the_controls(bench: Path) -> None:
    outcome = run(_request("identity", "silence", "pcm:8"), out="out", jobs=0)
    assert outcome.exit_code == 0
    rows = _by_system(outcome)
    assert rows["identity"]["metrics"]["mse"]["values"] == [0.0] * 4
    assert rows["silence"]["metrics"]["mse_db"]["values"] == [0.0] * 4
    assert rows["pcm:8"]["metrics"]["nominal_kbps"]["values"] == [128.0] * 4


@pytest.mark.parametrize(
    ("system", "reason", "only_b"),
    [
        ("Raises", "RuntimeError: boom | <b>bold</b> at mine.py:", True),
        ("Segfaults", "crashed the interpreter (SIGSEGV)", True),
        ("Hangs", "timed out after 3 s", True),
        ("WrongTokens", "encode returned list, expected evalkit.Tokens", True),
        ("WrongLength", "samples, expected", False),
        ("NotANumber", "are NaN or infinite", False),
        ("WrongType", "samples are int16, not float", False),
        ("WrongRate", "audio at 32000 Hz, it was given 16000 Hz", False),
        ("Bare", "returned ndarray, expected evalkit.Clip", False),
    ],
)
def test_a_bad_system_costs_only_itself(bench: Path, system: str, reason: str, only_b: bool) -> None:
    spec = f"mine.py:{system}"
    outcome = run(_request(spec, "pcm:8"), out="out", jobs=1, timeout=3)
    rows = _by_system(outcome)
    assert counts(rows["pcm:8"], "mse") == (4, 0, 0, 0)
    why = _reasons(rows[spec])
    assert sorted(i for r, ids in why.items() if reason in r for i in ids) == (["b"] if only_b else [*"abcd"]), why
    assert outcome.exit_code == (2 if only_b else 3)
    alone = run(_request("pcm:8"), out="alone", jobs=0)
    assert _by_system(alone)["pcm:8"]["metrics"]["mse"]["values"] == rows["pcm:8"]["metrics"]["mse"]["values"]


def test_a_system_that_cannot_be_built_fails_whole_and_alone(bench: Path) -> None:
    outcome = run(_request("mine.py:Unbuildable", "pcm:8"), out="out", jobs=0)
    assert outcome.exit_code == 3
    assert any("weights.bin: no such file" in e for e in outcome.errors)
    assert counts(_by_system(outcome)["pcm:8"], "mse") == (4, 0, 0, 0)


def test_bad_metrics_cost_only_themselves(bench: Path) -> None:
    metrics = tuple(f"mine.py:{m}" for m in ("raises", "nan", "dies", "speech_only", "broken_corpus"))
    outcome = run(_request("pcm:8", metrics=metrics), out="out", jobs=1)
    row = _by_system(outcome)["pcm:8"]
    assert outcome.exit_code == 2
    assert counts(row, "mse") == (4, 0, 0, 0)
    assert counts(row, "test_raises") == (3, 1, 0, 0)
    assert list(_reasons(row, "test_raises").values()) == [["b"]]
    assert counts(row, "test_nan") == (0, 4, 0, 0)
    assert list(_reasons(row, "test_nan")) == ["the metric returned nan"]
    assert counts(row, "test_dies") == (3, 1, 0, 0)
    assert _reasons(row, "test_dies") == {"the metric ended the interpreter (exit code 7)": ["c"]}
    assert counts(row, "test_speech") == (0, 0, 4, 0)
    assert row["metrics"]["test_broken_corpus"]["corpus"]["value"] is None
    assert "ZeroDivisionError" in row["metrics"]["test_broken_corpus"]["corpus"]["note"]


def test_gives_up_on_a_system_that_always_crashes(bench: Path) -> None:
    for i in range(8):
        write_clip(Clip(np.random.default_rng(i).normal(0, 0.1, 8000), 16_000), bench / "clips" / f"e{i}.wav")
    (bench / "fatal.py").write_text(
        "import os\nclass Fatal:\n    def reconstruct(self, clip, seed):\n        os._exit(3)\n"
    )
    outcome = run(_request("fatal.py:Fatal", "pcm:8"), out="out", jobs=1)
    why = _reasons(_by_system(outcome)["fatal.py:Fatal"])
    assert sum(len(v) for v in why.values()) == 12
    assert any("not tried: the system crashed or hung on 5 clips in a row" in w for w in why)
    assert counts(_by_system(outcome)["pcm:8"], "mse") == (12, 0, 0, 0)
    assert outcome.exit_code == 3


def test_the_same_command_recomputes_nothing(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = bench / "log"
    monkeypatch.setenv("EVALKIT_TEST_LOG", str(log))
    first = run(_request("mine.py:Rounding"), out="out", jobs=1)
    assert (first.predicted, first.scored) == (4, 4)
    again = run(_request("mine.py:Rounding"), out="out", jobs=1)
    assert (again.predicted, again.scored) == (0, 0)
    assert log.read_text().split() == ["a", "b", "c", "d"]
    assert again.results == first.results


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def start(self, total: int, already: int) -> None: ...

    def step(self, what: str) -> None: ...

    def close(self) -> None: ...


def _change_selection(bench: Path) -> Request:
    return _request("mine.py:Rounding")


def _change_audio(bench: Path) -> Request:
    write_clip(Clip(np.random.default_rng(9).normal(0, 0.1, 8000), 16_000), bench / "clips" / "b.wav")
    return _request("mine.py:Rounding", limit=2)


def _change_code(bench: Path) -> Request:
    path = bench / "mine.py"
    path.write_text(path.read_text().replace("0.98) * 64", "0.97) * 64"))
    return _request("mine.py:Rounding", limit=2)


@pytest.mark.parametrize(
    ("change", "field", "predicted"),
    [
        (_change_selection, "selection.limit (2 -> none)", 2),
        (_change_audio, "selection.content", 0),
        (_change_code, "system.source", 2),
    ],
)
def test_a_changed_identity_is_named_and_only_what_changed_is_computed(
    bench: Path, change: Callable[[Path], Request], field: str, predicted: int
) -> None:
    """In fresh processes, since a process imports mine.py once. ``limit=2`` takes clips a and c."""
    command = [
        sys.executable,
        "-m",
        "evalkit",
        "run",
        "--task",
        "folder:clips",
        "--system",
        "mine.py:Rounding",
        "--out",
        "out",
    ]
    subprocess.run([*command, "--limit", "2"], check=True, capture_output=True)
    request = change(bench)
    limit = ["--limit", str(request.limit)] if request.limit else []
    before = len(RunDirectory("out").predictions())
    done = subprocess.run([*command, *limit], check=True, capture_output=True, text=True)
    if change is not _change_audio:  # b is not among the clips that limit=2 selects: the same identity
        assert field in done.stderr, done.stderr
    assert len(RunDirectory("out").predictions()) - before == predicted


def test_rescoring_adds_a_metric_without_predicting(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.run import rescore

    log = bench / "log"
    monkeypatch.setenv("EVALKIT_TEST_LOG", str(log))
    run(_request("mine.py:Rounding"), out="out", jobs=1)
    outcome = rescore("out", metrics=("mine.py:raises",), jobs=1)
    assert (outcome.predicted, outcome.scored) == (0, 4)
    assert log.read_text().split() == ["a", "b", "c", "d"]
    assert counts(_by_system(outcome)["mine.py:Rounding"], "test_raises") == (3, 1, 0, 0)


def test_rescoring_a_system_that_decodes_otherwise_the_second_time_is_refused(bench: Path) -> None:
    from evalkit.run import rescore

    run(_request("mine.py:Capricious"), out="out", jobs=1)
    outcome = rescore("out", metrics=("mine.py:raises",), jobs=1)
    why = _reasons(_by_system(outcome)["mine.py:Capricious"], "test_raises")
    assert len(why) == 1 and "not deterministic for its seed" in next(iter(why))
    run(_request("mine.py:Capricious", keep_audio=True), out="kept", jobs=1)
    outcome = rescore("kept", metrics=("mine.py:raises",), jobs=1)
    assert counts(_by_system(outcome)["mine.py:Capricious"], "test_raises") == (3, 1, 0, 0)


def test_scoring_again_keeps_the_predictions_of_changed_code(bench: Path) -> None:
    """`evalkit score` predicts nothing anew: same code as recorded or other, absent predictions stay missing."""
    command = [sys.executable, "-m", "evalkit"]
    done = subprocess.run([*command, "run", "--task", "folder:clips", "--system", "mine.py:Rounding", "--out", "out"])
    assert done.returncode == 0
    path = bench / "mine.py"
    path.write_text(path.read_text().replace("0.98) * 64", "0.90) * 64"))  # encodes otherwise, decodes the same
    done = subprocess.run(
        [*command, "score", "out", "--metric", "mine.py:raises", "--json"], capture_output=True, text=True
    )
    assert len(RunDirectory("out").predictions()) == 4
    values = {r["metric"]: r["scored"] for r in json.loads(done.stdout)["rows"]}
    assert (values["mse"], values["test_raises"]) == (4, 3)


def test_keep_audio_on_a_finished_run_keeps_it(bench: Path) -> None:
    run(_request("pcm:8"), out="out", jobs=0)
    again = run(_request("pcm:8", keep_audio=True), out="out", jobs=0)
    assert (again.predicted, again.scored) == (4, 0)
    assert len(list(Path("out/objects").glob("*/*.wav"))) == 4
    assert run(_request("pcm:8", keep_audio=True), out="out", jobs=0).predicted == 0


def test_a_plugin_task_with_an_unknown_metric_fails_alone(bench: Path) -> None:
    (bench / "odd.py").write_text(
        "from evalkit import Task, task\n@task\n"
        "def odd():\n    return Task('odd-reconstruction', 'scenes', ('no_such',))\n"
    )
    outcome = run(Request(("odd.py:odd", "folder:clips"), ("pcm:8",)), out="out", jobs=0)
    assert outcome.exit_code == 3
    assert outcome.errors == [
        "odd-reconstruction: no metric named 'no_such': `evalkit list metrics` shows what there is"
    ]
    assert counts(outcome.results[0], "mse") == (4, 0, 0, 0)


def test_retry_failed_tries_again(bench: Path) -> None:
    run(_request("mine.py:Raises"), out="out", jobs=0)
    assert run(_request("mine.py:Raises"), out="out", jobs=0).predicted == 0
    assert run(_request("mine.py:Raises"), out="out", jobs=0, retry_failed=True).predicted == 1


def test_a_missing_data_set_fails_its_task_only(bench: Path) -> None:
    outcome = run(Request(("esc50", "folder:clips"), ("pcm:8",), data_root=str(bench)), out="out", jobs=0)
    assert outcome.exit_code == 3
    assert len(outcome.errors) == 1 and "evalkit download esc50" in outcome.errors[0]
    assert [r["task"]["name"] for r in outcome.results] == ["folder-reconstruction:clips"]


def test_noise_is_seeded(bench: Path) -> None:
    def values(seed: int, out: str) -> list[float]:
        return _by_system(run(_request("noise", seed=seed), out=out, jobs=0))["noise"]["metrics"]["mse"]["values"]

    one = values(1, "one")
    assert one == values(1, "again")
    assert one != values(2, "two")


@pytest.mark.slow
def test_killed_at_20_random_moments_it_finishes_the_same(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL, then the same command: a byte-identical leaderboard, and no flushed prediction computed again."""
    for i in range(16):
        write_clip(Clip(np.random.default_rng(i).normal(0, 0.1, 4000 + i), 16_000), bench / "clips" / f"k{i:02}.wav")
    command = [
        sys.executable,
        "-m",
        "evalkit",
        "run",
        "--task",
        "folder:clips",
        "--system",
        "identity,mine.py:Rounding,noise,pcm:6",
        "--jobs",
        "2",
    ]
    subprocess.run([*command, "--out", "undisturbed"], check=True, capture_output=True)
    log = bench / "log"
    log.write_text("")
    monkeypatch.setenv("EVALKIT_TEST_LOG", str(log))
    moments = random.Random(3)
    killed = 0
    for _ in range(20):
        flushed = {r["clip"] for r in RunDirectory("killed").predictions().values() if "Rounding" in r["system"]}
        log.write_text("")
        process = subprocess.Popen(
            [*command, "--out", "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(moments.uniform(0.2, 1.6))
        if process.poll() is None:
            killed += 1
        process.kill()
        process.wait()
        time.sleep(0.3)  # let orphaned workers notice
        assert not flushed & set(log.read_text().split())
    log.write_text("")
    flushed = {r["clip"] for r in RunDirectory("killed").predictions().values() if "Rounding" in r["system"]}
    subprocess.run([*command, "--out", "killed"], check=True, capture_output=True)
    assert not flushed & set(log.read_text().split())
    assert killed >= 10, f"only {killed} of 20 runs were killed at work"
    boards = []
    for name in ("undisturbed", "killed"):
        update([name], f"board-{name}")
        folder = Path(f"board-{name}")
        boards.append(
            {
                str(p.relative_to(folder)): p.read_bytes()
                for p in sorted(folder.rglob("*"))
                if p.is_file() and ".cost." not in p.name
            }
        )
    assert boards[0] == boards[1]
    assert len(boards[0]) == 8  # index, md, csv, json, four records


def test_workers_do_not_outlive_a_killed_parent(bench: Path) -> None:
    (bench / "slow.py").write_text(
        "import os, time\nclass Slow:\n    def reconstruct(self, clip, seed):\n"
        "        open('pid', 'w').write(str(os.getpid()))\n        time.sleep(1.0)\n        return clip\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "evalkit", "run", "--task", "folder:clips", "--system", "slow.py:Slow", "--out", "out"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pid_file = bench / "pid"
    _wait_for(lambda: pid_file.exists() and bool(pid_file.read_text()), 30)
    process.kill()
    process.wait()
    worker = int(pid_file.read_text())
    _wait_for(lambda: not _alive(worker), 20)


def test_ctrl_c_stops_cleanly_and_says_how_to_finish(bench: Path) -> None:
    (bench / "slow.py").write_text(SLOW.replace("SECONDS", "0.5"))
    command = [
        sys.executable,
        "-m",
        "evalkit",
        "run",
        "--task",
        "folder:clips",
        "--system",
        "slow.py:Slow",
        "--out",
        "out",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    _wait_for(lambda: Path("out/predictions.jsonl").exists(), 30)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "issue the same command to finish" in out
    assert "Traceback" not in err
    assert json.loads(Path("out/run.json").read_text())["status"] == "interrupted"
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert json.loads(Path("out/run.json").read_text())["status"] == "finished"


def test_two_processes_on_one_directory(bench: Path) -> None:
    """The second is refused with exit code 1; the first is undisturbed."""
    (bench / "slow.py").write_text(SLOW.replace("SECONDS", "0.7"))
    command = [
        sys.executable,
        "-m",
        "evalkit",
        "run",
        "--task",
        "folder:clips",
        "--system",
        "slow.py:Slow",
        "--out",
        "out",
    ]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(lambda: Path("out/predictions.jsonl").exists(), 30)
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 1
    assert "another process is working in this run directory" in second.stderr
    assert first.wait(timeout=30) == 0
    assert len(RunDirectory("out").predictions()) == 4


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Threads:
    """An executor on another engine: all that the runner asks of one."""

    workers = 3

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.pool = ThreadPoolExecutor(self.workers)
        self.closed = False

    def submit(self, function: Callable[[Any], Any], argument: Any, timeout: float | None) -> Any:
        return self.pool.submit(function, pickle.loads(pickle.dumps(argument)))  # units travel by value

    def close(self, now: bool = False) -> None:
        self.closed = True


def test_an_executor_of_ones_own_gives_the_same_results(bench: Path) -> None:
    engine = Threads()
    with engine.pool:
        elsewhere = run(_request("pcm:8", "noise"), out="elsewhere", executor=engine)
    here = run(_request("pcm:8", "noise"), out="here", jobs=1)
    assert not engine.closed  # it is the caller's
    for a, b in zip(elsewhere.results, here.results, strict=True):
        steady = [{n: m for n, m in r["metrics"].items() if m["deterministic"]} for r in (a, b)]
        assert steady[0].keys() == steady[1].keys()
        for name, column in steady[0].items():
            other = steady[1][name]
            assert column["reasons"] == other["reasons"] and column["id"] == other["id"], name
            # Threads of one process share a BLAS, which splits its sums by how many ask: last digits may differ.
            one, two = (
                [v for v in (c["values"] if c["level"] == "sample" else [c["corpus"]["value"]]) if v is not None]
                for c in (column, other)
            )
            assert one == pytest.approx(two, rel=1e-5), name


BATCHED = """
import numpy as np
from evalkit import Clip, Tokens

class Batched:
    batch_size = 3
    def encode(self, clip):
        return self.encode_batch([clip])[0]
    def decode(self, tokens, seed):
        return self.decode_batch([tokens], [seed])[0]
    def encode_batch(self, clips):
        open("batches", "a").write(f"{len(clips)} ")
        if len(clips) > 1 and any(c.id == "b" for c in clips):
            raise RuntimeError("b spoils its batch")
        if any(c.id == "b" for c in clips):
            raise RuntimeError("b alone")
        return [Tokens((c.samples > 0).astype(int), (2,), c.sample_rate, c.length, c.sample_rate) for c in clips]
    def decode_batch(self, tokens, seeds):
        return [Clip(t.codes * 0.2 - 0.1, t.sample_rate) for t in tokens]
"""


def test_a_bad_clip_does_not_spoil_its_batch(bench: Path) -> None:
    (bench / "batched.py").write_text(BATCHED)
    outcome = run(_request("batched.py:Batched"), out="out", jobs=1)
    row = outcome.results[0]
    assert counts(row, "mse") == (3, 1, 0, 0)
    assert [w.partition(" at ")[0] for w in _reasons(row)] == ["RuntimeError: b alone"]
    assert (bench / "batches").read_text().split()[0] == "3"


def test_a_script_without_a_main_guard_is_one_clear_error(bench: Path) -> None:
    """Workers import the script that started them; nothing may be recorded as some system's failure."""
    (bench / "script.py").write_text(
        "from evalkit.run import Request, run\nrun(Request(('folder:clips',), ('pcm:8',)), out='out', jobs=1)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "CannotStart: worker processes cannot start" in done.stderr
    assert not Path("out/run.json").exists()
