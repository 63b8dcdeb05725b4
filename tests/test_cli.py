"""The command line, as people and scripts meet it: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from evalkit.audio import Clip, read_clip, write_clip

MINE = '''
import numpy as np
from evalkit import Clip, Tokens, metric, system, task, Task

class Codec:
    """One code a sample."""
    def __init__(self, levels: int = 64):
        self.levels = levels
    def encode(self, clip):
        codes = (np.clip(clip.samples, -1, 0.99) * self.levels / 2 + self.levels / 2).astype(np.int64)
        return Tokens(codes, (self.levels,) * clip.channels, clip.sample_rate, clip.length, clip.sample_rate)
    def decode(self, tokens, seed):
        return Clip(tokens.codes * 2.0 / self.levels - 1, tokens.sample_rate)

class Short(Codec):
    def decode(self, tokens, seed):
        return Clip(np.zeros((1, tokens.samples - 1)), tokens.sample_rate)

class Fussy(Codec):
    def encode(self, clip):
        if clip.id.startswith("b"):
            raise RuntimeError("not this one")
        return super().encode(clip)

@metric("test_cli_peak", unit="FS", direction="lower", domains=("speech",), min_seconds=0.2)
def peak(reference, estimate):
    """Largest absolute error."""
    return np.abs(reference.samples - estimate.samples).max()
'''


def evalkit(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("EVALKIT_")}
    return subprocess.run(
        [sys.executable, "-m", "evalkit", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="replace",  # a test asks for other encodings
        env={**env, **environment},
        timeout=120,
    )


def plain(text: str) -> str:
    """The words, wherever lines were broken."""
    assert "\x1b" not in text
    return " ".join(text.split())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of half a second, a user's file, and one finished run of them."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "clips").mkdir()
    import numpy as np

    for i, name in enumerate("abcde"):
        x = np.random.default_rng(i).normal(0, 0.1, 8_000)
        write_clip(Clip(x, 16_000), folder / "clips" / f"{name}.wav")
    (folder / "mine.py").write_text(MINE)
    done = evalkit(
        folder, "run", "--task", "folder:clips", "--system", "pcm:8,mine.py:Codec:64", "--out", "run", "-j", "0"
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.fixture
def main(bench: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """The command in this process, for the many cases that are quick: ``(exit code, stdout, stderr)``."""
    from evalkit import cli

    monkeypatch.chdir(bench)
    monkeypatch.delenv("EVALKIT_DATA", raising=False)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evalkit", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out, err

    yield run
    # The next test's files are others: forget what these registered in this process.
    from evalkit import registry, work

    for kind in ("metrics", "tasks"):
        known = registry._registries[kind]
        for name in [n for n, origin in known.origin.items() if origin.startswith("evalkit_user_")]:
            del known.entries[name], known.origin[name]
    for path in registry.user_files():
        sys.modules.pop(registry._user_files.pop(path), None)
    work.load_metric.cache_clear()
    work._systems.clear()


# -- usage errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run --task nope --system pcm:8", "evalkit: no task named 'nope': `evalkit list tasks` shows what there is"),
        ("run --task esc51 --system pcm:8", "evalkit: no task named 'esc51': did you mean "),
        ("run --task folder:clips --system nope", "evalkit: no system named 'nope': did you mean noise?"),
        ("run --task folder:clips --system pcm", "evalkit: pcm: pcm needs bits: write pcm:BITS"),
        ("run --task folder:clips --system pcm:x", "evalkit: pcm:x: bits='x' is not a int"),
        ("run --task folder:clips --system pcm:8@q=1", "evalkit: pcm:8@q=1: pcm has no option 'q' (known: bits)"),
        ("run --task folder:clips --system pcm:8@bits=1@bits=2", "an option is given twice"),
        ("run --task folder:clips@nope=1 --system pcm:8", "folder has no option 'nope'"),
        ("run --task folder:clips --system pcm:8 --metric nope", "evalkit: no metric named 'nope'"),
        ("run --task folder:clips --system pcm:8 --metric absent.py:f", "absent.py: no such file"),
        ("run --task folder:clips --system absent.py:Codec", "absent.py: no such file"),
        (
            "run --task folder:clips --system mine.py:Nothing",
            "mine.py has no 'Nothing'; it defines Codec, Short, Fussy",
        ),
        ("run --task mine.py:Codec --system pcm:8", "mine.py has no function 'Codec' decorated with @task"),
        ("run --task , --system pcm:8", "evalkit: no task given"),
        ("run --task folder:clips --system ,", "evalkit: no system given"),
        ("run --task scenes", "Error: Missing option '--system' / '-s'."),
        ("run --system pcm:8", "Error: Missing option '--task' / '-t'."),
        (
            "run --task folder:clips --system pcm:8 --limit 0",
            "Error: Invalid value for '--limit': 0 is not in the range x>=1.",
        ),
        ("run --task folder:clips --system pcm:8 --jobs -1", "Error: Invalid value for '--jobs' / '-j'"),
        ("run --task folder:clips --system pcm:8 --seed -1", "Error: Invalid value for '--seed'"),
        ("run --task folder:clips --system pcm:8 --out mine.py", "Error: Invalid value for '--out' / '-o'"),
        ("run --task folder:clips --system pcm:8 --nope", "Error: No such option"),
        ("nope", "Error: No such command 'nope'."),
        ("list nope", "Error: Invalid value"),
        ("list", "Error: Missing argument"),
        ("explain nope", "evalkit: no metric named 'nope'"),
        ("explain mse --task nope", "evalkit: no task named 'nope'"),
        ("score nowhere", "evalkit: nowhere: not a run directory (no run.json)"),
        ("score clips", "evalkit: clips: not a run directory (no run.json)"),
        ("cache explain nowhere", "evalkit: nowhere: not a run directory (no run.json)"),
        ("leaderboard nowhere -o board", "evalkit: nowhere: not a run directory (no run.json)"),
        ("check system nope", "evalkit: no system named 'nope'"),
        ("check system codec2:700 --domain music", "codec2:700 declares the domains speech, not music"),
        ("download esc50", "evalkit: say where to: --data-root DIR or EVALKIT_DATA"),
        ("download nope --data-root .", "evalkit: no dataset named 'nope'"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_1(main: Any, bench: Path, command: str, message: str) -> None:
    before = sorted(os.listdir(bench))
    code, out, err = main(*shlex.split(command))
    assert code == 1
    assert message in err
    assert out == ""
    ours = [line for line in err.splitlines() if line.startswith(("evalkit: ", "Error: "))]
    assert len(ours) == 1
    if ours[0].startswith("evalkit: "):
        assert err.strip() == ours[0]  # nothing else: neither a traceback nor a hint of work done
    assert sorted(os.listdir(bench)) == before


@pytest.mark.parametrize(
    "command",
    [
        "download fsdd --data-root mine.py",
        *(
            command
            for command in (
                "score mine.py",
                "cache explain mine.py",
                "leaderboard mine.py -o board",
                "leaderboard -o mine.py/board",
                "run --task folder:clips --system pcm:8 --limit 1 -j 0 --out mine.py/run",
                "score shapeless",
                "score keyless",
                "cache explain keyless",
                "leaderboard keyless -o board",
            )
        ),
    ],
)
def test_what_the_file_system_refuses_is_one_line_too(main: Any, bench: Path, command: str) -> None:
    for name, text in (("shapeless", "[]"), ("keyless", '{"format": 1}')):
        (bench / name).mkdir(exist_ok=True)
        (bench / name / "run.json").write_text(text)
    code, _, err = main(*shlex.split(command))
    assert code == 1
    assert len([line for line in err.splitlines() if line.startswith(("evalkit: ", "Error: "))]) == 1


def test_a_baseline_that_is_not_there_is_said_before_the_work(main: Any) -> None:
    code, _, err = main(
        "run", "--task", "folder:clips", "--system", "pcm:8", "--baseline", "nope", "--out", "r-b", "-j", "0"
    )
    assert code == 1 and "baseline 'nope' is not among the systems" in err
    assert "results to have" not in err


@pytest.mark.parametrize("value", ["-1", "0", "nan"])
def test_a_timeout_must_be_a_time(main: Any, value: str) -> None:
    code, _, err = main(
        "run",
        "--task",
        "folder:clips",
        "--system",
        "pcm:8",
        "--timeout",
        value,
        "--out",
        f"r-t{value}",
        "--limit",
        "1",
        "-j",
        "0",
    )
    assert code == 1 and "--timeout" in err


def test_errors_in_a_real_process_have_no_traceback(bench: Path) -> None:
    done = evalkit(bench, "run", "--task", "scenes", "--system", "no\x1b[31m\nsuch")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("evalkit: no system named 'no") and "\x1b" not in done.stderr


def test_help_and_version(main: Any) -> None:
    code, out, _ = main("--version")
    assert (code, out) == (0, "evalkit, version 0.1.0\n")
    code, out, _ = main("-h")
    assert code == 0
    assert set(re.findall(r"^  (\w+)  ", out, re.MULTILINE)) == {
        "agreement",
        "backend",
        "cache",
        "check",
        "decode",
        "doctor",
        "download",
        "encode",
        "explain",
        "leaderboard",
        "list",
        "run",
        "score",
        "selftest",
        "train",
    }
    for command in (
        *("run", "score", "leaderboard", "list", "explain", "doctor", "download", "check", "cache", "train"),
        *("encode", "decode", "selftest", "backend", "agreement"),
    ):
        code, out, _ = main(command, "--help")
        assert code == 0 and out.startswith("Usage: ")


# -- list and explain -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("tasks", "scenes-reconstruction"),
        ("systems", "opus:KBPS"),
        ("metrics", "si_sdr"),
        ("datasets", "librispeech"),
    ],
)
def test_list_is_a_table_or_json(main: Any, kind: str, some: str) -> None:
    from evalkit import registry

    code, out, err = main("list", kind)
    assert (code, err) == (0, "")
    assert some in out.split()
    assert "\x1b" not in out
    code, text, _ = main("list", kind, "--json")
    rows = json.loads(text)
    assert len(rows) == len(registry.names(kind))  # type: ignore[arg-type]
    assert some in [next(iter(r.values())) for r in rows]
    for row in rows:  # the table says the same
        assert next(iter(row.values())) in out


def test_list_imports_nothing_heavy(bench: Path) -> None:
    code = (
        "import sys\nfrom evalkit.cli import main\n"
        "for kind in ('tasks', 'systems', 'metrics', 'datasets'):\n"
        "    sys.argv = ['evalkit', 'list', kind]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=bench, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    heavy = {
        "torch",
        "scipy",
        "soundfile",
        "soxr",
        "av",
        "pyloudnorm",
        "matplotlib",
        "pandas",
        "rich",
        "pebble",
        "pycodec2",
    }
    assert heavy & set(done.stderr.split()) == set()
    assert "numpy" in done.stderr.split()  # the list is a real one


def test_explain_says_what_a_metric_is(main: Any) -> None:
    code, out, _ = main("explain", "snr")
    assert code == 0
    assert out.startswith("snr (snr-v1-")
    for piece in (
        "Signal-to-noise ratio",
        "unit         dB",
        "higher is better",
        "needs        reference, estimate",
        "domains      all",
        "the same value on every run",
    ):
        assert piece in out
    assert (
        "neither direction" in main("explain", "parameters_m")[1]
        or "lower is better" in main("explain", "parameters_m")[1]
    )


def test_explain_says_whether_a_metric_applies(main: Any) -> None:
    code, out, _ = main("explain", "snr", "--task", "scenes")
    told = {line.partition(": ")[0]: line for line in out.splitlines()[-2:]}
    assert code == 0 and told["scenes-reconstruction"].startswith(
        "scenes-reconstruction: applies to sound, mean of channels, "
    )
    assert told["scenes-captioning"] == "scenes-captioning: n/a: snr compares audio, this task asks for text"
    code, out, _ = main("explain", "mine.py:peak", "--task", "esc50")
    assert code == 0
    assert "domains      speech" in out and "durations    from 0.2 s" in out
    last = next(line for line in out.splitlines() if line.startswith("esc50-reconstruction"))
    assert last.startswith("esc50-reconstruction: n/a: ") and "speech" in last and "sound" in last
    code, out, _ = main("explain", "mine.py:peak", "--task", "vctk-reconstruction")
    assert "vctk-reconstruction: applies to speech" in out
    assert "not among the task's own metrics; --metric mine.py:peak adds it" in out


# -- run --------------------------------------------------------------------------------------------------------------


def test_a_run_prints_its_table_on_stdout_and_its_progress_on_stderr(bench: Path) -> None:
    out, err = (bench / "stdout").read_text(), (bench / "stderr").read_text()
    assert "\x1b" not in out + err
    assert "pcm:8" in out and "mine.py:Codec:64" in out and "5/0/0/0" in out
    assert "wrote run/tables/folder-reconstruction_clips.md" in out or re.search(r"wrote run/tables/.*\.md", out)
    assert all(len(line) <= 160 for line in out.splitlines())
    assert err.splitlines()[0] == "10 results to have, 0 there already"
    assert err.splitlines()[-1].startswith("10/10 ")
    for path in re.findall(r"wrote (\S+)", out):
        assert (bench / path).is_file()


def test_issuing_it_again_computes_nothing(bench: Path) -> None:
    before = {p: p.read_bytes() for p in (bench / "run").glob("*.jsonl")}
    assert {p.name for p in before} >= {"predictions.jsonl", "scores.jsonl"}
    done = evalkit(
        bench, "run", "--task", "folder:clips", "--system", "pcm:8,mine.py:Codec:64", "--out", "run", "-j", "0"
    )
    assert done.returncode == 0
    assert "10 results to have, 10 there already" in done.stderr
    assert done.stdout == (bench / "stdout").read_text()
    assert {p: p.read_bytes() for p in (bench / "run").glob("*.jsonl")} == before


def test_json_is_all_that_is_on_stdout(main: Any) -> None:
    command = (
        "run",
        "--task",
        "folder:clips",
        "--system",
        "pcm:8,mine.py:Codec:64",
        "--out",
        "run",
        "-j",
        "0",
        "--json",
    )
    code, out, _ = main(*command)
    value = json.loads(out)
    assert code == 0
    assert (value["run"], value["exit_code"], value["errors"]) == ("run", 0, [])
    assert all(Path(f).is_file() for f in value["files"])
    mine = {r["metric"]: r for r in value["rows"] if r["system"].startswith("mine.py")}
    assert mine["mse"]["scored"] == 5 and mine["mse"]["value"] > 0
    assert mine["mse"]["low"] <= mine["mse"]["value"] <= mine["mse"]["high"]


@pytest.mark.parametrize(
    ("system", "code", "words"),
    [
        ("mine.py:Fussy", 2, "not this one"),
        ("mine.py:Short", 3, "decode must restore the exact length"),
    ],
)
def test_exit_codes_tell_some_from_all(main: Any, tmp_path: Path, system: str, code: int, words: str) -> None:
    out = str(tmp_path / "out")
    got, text, err = main(
        "run", "--task", "folder:clips", "--system", f"pcm:8,{system}", "--out", out, "-j", "0", "--json"
    )
    assert got == code == json.loads(text)["exit_code"]
    assert words in err


def test_a_task_without_data_fails_whole_and_says_how_to_get_it(main: Any, tmp_path: Path) -> None:
    code, out, _ = main(
        "run",
        "--task",
        "folder:clips,esc50",
        "--system",
        "pcm:8",
        "--out",
        str(tmp_path / "o"),
        "-j",
        "0",
        "--data-root",
        str(tmp_path),
    )
    assert code == 3
    said = plain(out)
    assert "failed whole: esc50-reconstruction: esc50: " in said and "no such folder" in said
    assert "evalkit download esc50" in said
    assert "5/0/0/0" in said  # the other task has its table


@pytest.mark.parametrize("where", ["option", "variable"])
def test_the_data_root_is_an_option_or_a_variable(
    main: Any, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    data = str(shared / "data")
    more = ["--data-root", data] if where == "option" else []
    monkeypatch.setenv("EVALKIT_DATA", data if where == "variable" else str(tmp_path))  # the option comes first
    code, out, err = main(
        "run", "--task", "fsdd", "--system", "pcm:8", "--limit", "2", "--out", str(tmp_path / "o"), "-j", "0", *more
    )
    assert code == 0, err
    assert "2 selected from" in plain(out) or "2 of 3,000 clips" in plain(out)


def test_every_option_is_a_variable(main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("LIMIT", "2"),
        ("JOBS", "0"),
        ("SEED", "7"),
        ("OUT", str(tmp_path / "o")),
        ("TASKS", "folder:clips"),
        ("SYSTEMS", "pcm:8,silence"),
    ):
        monkeypatch.setenv(f"EVALKIT_RUN_{name}", value)
    code, _, err = main("run")
    assert code == 0, err
    recorded = json.loads((tmp_path / "o" / "run.json").read_text())["request"]
    assert (recorded["limit"], recorded["seed"]) == (2, 7)
    assert (recorded["tasks"], recorded["systems"]) == (["folder:clips"], ["pcm:8", "silence"])
    code, _, err = main("run", "--limit", "1", "--out", str(tmp_path / "p"))
    assert json.loads((tmp_path / "p" / "run.json").read_text())["request"]["limit"] == 1  # the option comes first
    monkeypatch.setenv("EVALKIT_RUN_LIMIT", "none")
    code, _, err = main("run")
    assert code == 1 and "'none' is not a valid integer" in err


def test_limit_takes_evenly_spaced_clips(main: Any, tmp_path: Path) -> None:
    for limit, expected in (
        (1, ["a"]),
        (2, ["a", "c"]),
        (4, ["a", "b", "c", "d"]),
        (5, list("abcde")),
        (9, list("abcde")),
    ):
        out = tmp_path / str(limit)
        assert (
            main("run", "-t", "folder:clips", "-s", "silence", "--limit", str(limit), "-o", str(out), "-j", "0")[0] == 0
        )
        clips = [json.loads(line)["clip"] for line in (out / "predictions.jsonl").read_text().splitlines()]
        assert sorted(clips) == expected


def test_options_may_be_repeated_or_joined(main: Any, tmp_path: Path) -> None:
    out = tmp_path / "o"
    code, _, _ = main(
        "run",
        "-t",
        "folder:clips",
        "-s",
        "pcm:8,silence",
        "-s",
        "pcm:4",
        "-s",
        "pcm:8",
        "--limit",
        "1",
        "-o",
        str(out),
        "-j",
        "0",
    )
    assert code == 0
    assert json.loads((out / "run.json").read_text())["request"]["systems"] == ["pcm:8", "silence", "pcm:4"]


def test_keep_audio_keeps_it(main: Any, tmp_path: Path) -> None:
    out = tmp_path / "o"
    assert (
        main("run", "-t", "folder:clips", "-s", "silence", "--limit", "1", "--keep-audio", "-o", str(out), "-j", "0")[0]
        == 0
    )
    kept = list(out.glob("objects/*/*.wav"))
    assert len(kept) == 1 and not read_clip(kept[0]).samples.any()


# -- dry run ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_forecasts(bench: Path) -> None:
    done = evalkit(
        bench, "run", "--task", "folder:clips", "--system", "pcm:8,opus:6,mine.py:Fussy", "--out", "dry", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "dry"
    assert lines[1].split() == ["task", "system", "clips", "metrics", "cached", "to", "do", "forecast"]
    opus = next(line.split() for line in lines if "opus:6" in line)
    assert opus[2] == "5" and opus[4:6] == ["0", "5"] and re.fullmatch(r"\d+", opus[6]) and opus[7] == "s"
    assert lines[-1].startswith("15 of 15 results to compute, about ")
    assert not (bench / "dry").exists()


def test_a_dry_run_says_what_is_there_already(main: Any, bench: Path) -> None:
    before = {p: p.read_bytes() for p in sorted((bench / "run").rglob("*")) if p.is_file()}
    code, out, _ = main(
        "run",
        "-t",
        "folder:clips",
        "-s",
        "pcm:8,silence,codec2:700,mine.py:Codec:64",
        "-o",
        "run",
        "--dry-run",
        "--json",
    )
    assert code == 0
    value = json.loads(out)
    cells = {c["system"].partition("@")[0]: c for c in value["cells"]}
    assert (cells["pcm:8"]["cached"], cells["pcm:8"]["todo"], cells["pcm:8"]["seconds"]) == (5, 0, 0.0)
    assert (cells["silence"]["cached"], cells["silence"]["todo"]) == (0, 5)
    assert cells["silence"]["seconds"] > 0
    assert cells["codec2:700"]["seconds"] is None and cells["codec2:700"]["why"].startswith(
        "n/a: codec2 is made for speech"
    )
    assert value["errors"] == []
    assert {p: p.read_bytes() for p in sorted((bench / "run").rglob("*")) if p.is_file()} == before


def test_a_dry_run_of_what_cannot_be_had_says_why(main: Any) -> None:
    code, out, _ = main("run", "-t", "esc50", "-s", "pcm:8", "--dry-run", "--json")
    assert code == 0
    assert "where is the data?" in json.loads(out)["errors"][0]


# -- score, leaderboard, check ----------------------------------------------------------------------------------------


def test_score_adds_a_metric_and_predicts_nothing(bench: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bench / "run", bench / "run-score")
    predictions = (bench / "run-score" / "predictions.jsonl").read_bytes()
    mine = bench / "louder.py"
    mine.write_text(MINE.replace('domains=("speech",), ', "").replace("test_cli_peak", "test_cli_all"))
    done = evalkit(bench, "score", "run-score", "--metric", "louder.py:peak", "--json", "-j", "1")
    assert done.returncode == 0, done.stderr
    rows = [r for r in json.loads(done.stdout)["rows"] if r["metric"] == "test_cli_all"]
    assert [r["scored"] for r in rows] == [5, 5]
    assert {r["system"]: r["value"] for r in rows}["mine.py:Codec:64"] <= 2 / 64 + 1e-6
    assert (bench / "run-score" / "predictions.jsonl").read_bytes() == predictions


def test_a_leaderboard_is_fresh_until_it_is_touched(main: Any, bench: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    code, out, _ = main("leaderboard", "run", "-o", str(board))
    assert code == 0
    written = [Path(p) for p in re.findall(r"wrote (.+)", out)]
    assert written and all(p.is_file() for p in written)
    code, out, _ = main("leaderboard", "--check", "-o", str(board))
    assert (code, out) == (0, f"{board} is fresh\n")
    page = next(p for p in written if p.suffix == ".md" and "pcm:8" in p.read_text())
    good = page.read_bytes()
    page.write_bytes(good.replace(b"pcm:8", b"pcm:9", 1))
    code, out, err = main("leaderboard", "--check", "-o", str(board))
    assert code == 1 and out == f"stale: {page}\n"
    assert err == f"evalkit: 1 files of {board} are stale; `evalkit leaderboard -o {board}` rebuilds them\n"
    assert main("leaderboard", "-o", str(board))[0] == 0
    assert page.read_bytes() == good
    page.unlink()
    assert main("leaderboard", "--check", "-o", str(board))[0] == 1


def test_check_system_passes_the_good_and_fails_the_bad(main: Any) -> None:
    code, out, _ = main("check", "system", "mine.py:Codec")
    assert code == 0 and "FAIL" not in out
    code, out, _ = main("check", "system", "mine.py:Short")
    assert code == 2
    assert any(line.split()[:2] == ["FAIL", "ordinary"] and "exact length" in line for line in out.splitlines())


def test_doctor_exits_by_what_it_found(main: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit import doctor
    from evalkit.doctor import Finding

    for marks, expected in ((("ok", "warn"), 0), (("ok", "FAIL"), 1)):
        monkeypatch.setattr(doctor, "examine", lambda marks=marks: [Finding(m, f"thing {m}", "because") for m in marks])
        code, out, err = main("doctor")
        assert (code, err) == (expected, "")
        assert [line.split()[0] for line in out.splitlines()[1:]] == list(marks)


# -- names with shell characters, other terminals ---------------------------------------------------------------------

NASTY = "a b;$(touch pwned)&|'q\"\\n*?<i>`id`"


def test_names_with_shell_characters_stay_names(bench: Path) -> None:
    import shutil

    folder = bench / NASTY
    folder.mkdir()
    shutil.copy(bench / "clips" / "a.wav", folder / "$HOME;`touch pwned`.wav")
    done = evalkit(
        bench, "run", "--task", f"folder:{NASTY}", "--system", "pcm:8", "--out", "out $(touch pwned)", "-j", "1"
    )
    assert done.returncode == 0, done.stderr
    assert not list(bench.rglob("pwned"))
    recorded = json.loads((bench / "out $(touch pwned)" / "run.json").read_text())
    assert recorded["request"]["tasks"] == [f"folder:{NASTY}"]
    # What the record offers to copy is safe to paste, and is the same request.
    assert shlex.split(recorded["command"]) == ["evalkit", "run", "--task", f"folder:{NASTY}", "--system", "pcm:8"]
    shown = subprocess.run(
        ["bash", "-c", f"evalkit() {{ printf '%s\\0' \"$@\"; }}; {recorded['command']}"],
        cwd=bench,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.split("\0")[2] == f"folder:{NASTY}"
    assert not list(bench.rglob("pwned"))


def test_a_comma_in_a_name_is_escaped(main: Any, bench: Path, tmp_path: Path) -> None:
    import shutil

    (bench / "a,b").mkdir()
    shutil.copy(bench / "clips" / "a.wav", bench / "a,b")
    code, _, err = main("run", "-t", r"folder:a\,b", "-s", "pcm:8", "-o", str(tmp_path / "o"), "-j", "0")
    assert code == 0, err
    recorded = json.loads((tmp_path / "o" / "run.json").read_text())
    assert recorded["request"]["tasks"] == ["folder:a,b"]
    assert r"folder:a\,b" in shlex.split(recorded["command"])


def test_a_reader_that_stops_reading_is_no_error(bench: Path) -> None:
    for command in (["list", "metrics"], ["explain", "mse"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "evalkit", *command],
            cwd=bench,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        os.close(writer)
        assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_is_no_error(bench: Path, encoding: str) -> None:
    done = evalkit(
        bench,
        "run",
        "--task",
        "folder:clips",
        "--system",
        "pcm:8,mine.py:Codec:64",
        "--out",
        "run",
        "-j",
        "0",
        PYTHONIOENCODING=encoding,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 and "5/0/0/0" in done.stdout
    done = evalkit(bench, "list", "metrics", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs pseudo-terminals")
def test_on_a_terminal_there_is_colour_but_no_markup_of_others(bench: Path) -> None:
    import pty

    parent, child = pty.openpty()
    done = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "evalkit",
            "run",
            "--task",
            "folder:clips",
            "--system",
            "pcm:8,mine.py:Codec:64",
            "--out",
            "run",
            "-j",
            "0",
        ],
        cwd=bench,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
    )
    os.close(child)
    shown = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(parent)
    assert done.wait(60) == 0
    assert b"\x1b[" in shown and b"10 of 10 results are there already" in shown and b"5/0/0/0" in shown
