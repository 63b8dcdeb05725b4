"""The run directory: atomic, append-only, content-addressed, one writer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evalkit.audio import Clip, read_clip
from evalkit.errors import EvalkitError, UsageError
from evalkit.record import RunDirectory
from evalkit.tokens import Tokens


def _tokens() -> Tokens:
    return Tokens(
        np.array([[0, 5, 1023], [1, 2, 3]]), (1024, 4), 75.0, 960, 24_000, 3.5, 16.0, {"scale": np.array([0.5])}
    )


def test_a_partial_last_line_is_passed_over_and_cut_off(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append("predictions", {"key": "a", "status": "ok"})
    with (tmp_path / "predictions.jsonl").open("ab") as f:
        f.write(b'{"key":"b","sta')  # a writer killed within its write
    assert list(run.predictions()) == ["a"]
    run.repair()
    run.append("predictions", {"key": "c", "status": "ok"})
    assert list(run.predictions()) == ["a", "c"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"a":1}\n{"b"', b"x" * 200_000, b'{"a":1}\n' + b"x" * 70_000])
def test_repair_leaves_whole_lines(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scores.jsonl").write_bytes(content)
    RunDirectory(tmp_path).repair()
    left = (tmp_path / "scores.jsonl").read_bytes()
    assert content.startswith(left)
    assert left == content[: content.rfind(b"\n") + 1]


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_bytes(b'{"key":"a","metrics":{}}\nnot json\n{"key":"b","metrics":{}}\n')
    with pytest.raises(EvalkitError, match=r"scores.jsonl line 2"):
        RunDirectory(tmp_path).scores()


def test_tokens_survive_and_are_named_by_content(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    name = run.put_tokens(_tokens())
    assert run.put_tokens(_tokens()) == name
    back = run.get_tokens(name)
    assert np.array_equal(back.codes, _tokens().codes)
    assert (back.sizes, back.frame_rate, back.samples, back.sample_rate) == ((1024, 4), 75.0, 960, 24_000)
    assert (back.side_bits, back.container_bits, back.side["scale"].tolist()) == (3.5, 16.0, [0.5])
    assert len(list(tmp_path.glob("objects/*/*"))) == 1


def test_kept_audio_is_exact_and_playable(tmp_path: Path) -> None:
    clip = Clip(np.random.default_rng(0).normal(0, 0.3, (1, 2400)), 24_000)
    run = RunDirectory(tmp_path)
    name = run.put_audio(clip)
    assert read_clip(run.object_path(name)).content_hash == clip.content_hash == name.removesuffix(".wav")


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from evalkit.record import RunDirectory\n"
            "lock = RunDirectory(sys.argv[1]).lock(); print('held', flush=True); time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another process is working"):
            RunDirectory(tmp_path).lock()
    finally:
        holder.kill()
        holder.wait()
    with RunDirectory(tmp_path).lock():
        pass


def test_foreign_and_damaged_run_files_are_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(UsageError, match="not a run directory"):
        run.read()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        run.read()
    (tmp_path / "run.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UsageError, match="format 99"):
        run.read()
