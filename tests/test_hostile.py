"""A folder of hostile files beside good ones: each bad one has its reason, the good ones' results are unchanged."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.audio import Clip, write_clip

GOOD = (
    "good one.wav",
    "good two.flac",
    "eight channels.wav",
    "192 kHz.wav",
    "new\nline.wav",
    "a..b%2e%2e%2f.wav",
    "$(touch pwned);`id`|&.wav",
    "<img src=x onerror=alert(1)>.wav",
    "\x1b[31mred.wav",
)


def _noise(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> Clip:
    return Clip(np.random.default_rng(seed).normal(0, 0.1, (channels, round(seconds * rate))), rate)


def _wav_header(data_bytes: int, rate: int = 16_000, channels: int = 1, kind: int = 1, bits: int = 16) -> bytes:
    block = channels * bits // 8
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        (data_bytes + 36) & 0xFFFFFFFF,
        b"WAVE",
        b"fmt ",
        16,
        kind,
        channels,
        rate,
        rate * block & 0xFFFFFFFF,
        block & 0xFFFF,
        bits,
        b"data",
        data_bytes & 0xFFFFFFFF,
    )


def _fill_good(folder: Path) -> None:
    folder.mkdir()
    write_clip(_noise(0.5, 16_000), folder / "good one.wav")
    write_clip(_noise(0.6, 22_050, seed=1), folder / "good two.flac")
    write_clip(_noise(0.5, 16_000, channels=8, seed=2), folder / "eight channels.wav")
    write_clip(_noise(0.5, 192_000, seed=3), folder / "192 kHz.wav")
    for i, name in enumerate(GOOD[4:]):
        write_clip(_noise(0.5, 16_000, seed=10 + i), folder / name)


def _float_wav(samples: np.ndarray) -> bytes:
    data = samples.astype("<f4").tobytes()
    return _wav_header(len(data), kind=3, bits=32) + data


def _fill_bad(folder: Path) -> dict[str, str]:
    """Bad files, and a piece of the reason that each must get."""
    write_clip(_noise(2.0, 16_000), folder / "cut.ogg")
    whole = (folder / "cut.ogg").read_bytes()
    (folder / "cut.ogg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "zero.wav").write_bytes(b"")
    (folder / "one sample.wav").write_bytes(_wav_header(2) + b"\0\1")
    nan, infinite = np.zeros(8000), np.zeros(8000)
    nan[100], infinite[100:103] = np.nan, np.inf
    (folder / "nan.wav").write_bytes(_float_wav(nan))
    (folder / "inf.wav").write_bytes(_float_wav(infinite))
    (folder / "text.wav").write_text("This is not audio, whatever its name says.\n" * 50)
    (folder / "directory.wav").mkdir()
    (folder / "4 GB.wav").write_bytes(_wav_header(4_000_000_000))
    (folder / "cut.wav").write_bytes(_wav_header(32_000) + b"\1\0" * 4000)
    (folder / "rate.wav").write_bytes(_wav_header(16_000, rate=2_000_000_000) + b"\1\0" * 8000)
    (folder / "channels.wav").write_bytes(_wav_header(60_000, channels=30_000) + b"\1\0" * 30_000)
    (folder / "outside.wav").symlink_to("/etc/hostname")
    (folder / "dangling.wav").symlink_to("nowhere.wav")
    return {
        "cut.ogg": "truncated",
        "zero.wav": "is empty",
        "one sample.wav": "too short: 1 samples",
        "nan.wav": "1 of 8000 samples are NaN",
        "inf.wav": "3 of 8000 samples are NaN or infinite",
        "text.wav": "not",
        "directory.wav": "is a directory",
        "4 GB.wav": "header promises 4,000,000,000 bytes",
        "cut.wav": "truncated",
        "rate.wav": "",
        "channels.wav": "",
        "outside.wav": "leaves",
        "dangling.wav": "",
    }


def _run(cwd: Path, folder: str, out: str) -> tuple[int, dict[str, Any]]:
    from evalkit.record import RunDirectory
    from evalkit.results import collect

    command = [
        sys.executable,
        "-m",
        "evalkit",
        "run",
        "--task",
        f"folder:{folder}",
        "--system",
        "pcm:8,noise",
        "--out",
        out,
        "--jobs",
        "2",
        "--json",
    ]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    json.loads(done.stdout)
    results = collect(RunDirectory(cwd / out))
    return done.returncode, {r["system"]["spec"]: r for r in results}


def _values(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    ids = result["clips"]["id"]
    return {
        name: {i: v for i, v in zip(ids, m["values"], strict=True) if v is not None}
        for name, m in result["metrics"].items()
        if m["level"] == "sample" and m["deterministic"]
    }


def test_hostile_files_beside_good_ones(tmp_path: Path) -> None:
    _fill_good(tmp_path / "good")
    _fill_good(tmp_path / "mixed")
    expected = _fill_bad(tmp_path / "mixed")
    code, alone = _run(tmp_path, "good", "run-good")
    assert code == 0
    n_good = len(alone["pcm:8"]["clips"]["id"])
    assert n_good == len(GOOD)
    code, mixed = _run(tmp_path, "mixed", "run-mixed")
    assert code == 2
    for system in ("pcm:8", "noise"):
        assert _values(mixed[system]) == _values(alone[system])
        ids = mixed[system]["clips"]["id"]
        assert len(ids) == n_good + len(expected)
        why = {ids[i]: w for w, at in mixed[system]["metrics"]["mse"]["reasons"]["failed"].items() for i in at}
        found = {
            name: next((w for i, w in why.items() if i in (name, name.rpartition(".")[0])), None) for name in expected
        }
        assert None not in found.values(), found
        for name, piece in expected.items():
            assert piece in str(found[name]), (name, found[name])
    assert not list(tmp_path.rglob("pwned"))
    page = (tmp_path / "run-mixed" / "tables").glob("*.md").__next__().read_text()
    assert "<img" not in re.sub(r"`[^`\n]*`", "", page)  # inside a code span it is text
    assert "\x1b" not in page
    json.loads((tmp_path / "run-mixed" / "run.json").read_text())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.wav"
    write_clip(_noise(0.5, 16_000), path)
    path.chmod(0)
    tmp_path.chmod(0o755)
    code = (
        "import os, sys\n"
        "from evalkit.audio import read_clip\n"
        "import soundfile\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"  # root reads everything: become nobody
        "try: read_clip(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    relative = path.name
    done = subprocess.run([sys.executable, "-c", code, relative], capture_output=True, text=True, cwd=tmp_path)
    assert "AudioError" in done.stdout and "Permission denied" in done.stdout, done.stdout + done.stderr


def test_names_in_a_table_of_contents_cannot_leave_the_folder(tmp_path: Path) -> None:
    """`../` in a data set's own list of clips is that clip's failure, not a read outside."""
    root = tmp_path / "esc50"
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    write_clip(_noise(5.0, 44_100), root / "audio" / "1-1-A-0.wav")
    write_clip(_noise(5.0, 44_100), tmp_path / "outside.wav")
    rows = [
        "filename,fold,target,category,esc10,src_file,take",
        "1-1-A-0.wav,1,0,dog,True,1,A",
        "../../outside.wav,1,0,dog,True,2,A",
    ]
    (root / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    from evalkit.plan import Request
    from evalkit.run import run

    outcome = run(Request(("esc50",), ("pcm:8",), data_root=str(tmp_path)), out=tmp_path / "out", jobs=0)
    assert outcome.exit_code == 2
    reasons = outcome.results[0]["metrics"]["mse"]["reasons"]["failed"]
    assert sum(len(v) for v in reasons.values()) == 1
    assert outcome.results[0]["metrics"]["mse"]["values"].count(None) == 1
