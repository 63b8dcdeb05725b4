"""`evalkit doctor` tests what it reports: for every finding there is a fault here that turns it."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit import doctor, registry
from evalkit.doctor import Finding, examine
from evalkit.errors import Unavailable


def found(name: str) -> Finding:
    """One finding, without the rest of the examination."""
    findings = [doctor._try(*check) for check in doctor._checks() if check[0] == name]
    for section in (doctor._names, doctor._plugins, doctor._data):
        findings += [f for f in section() if f.name == name] if not findings else []
    assert len(findings) == 1, name
    return findings[0]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVALKIT_DATA", raising=False)


def test_a_sound_installation_has_no_failure() -> None:
    findings = {f.name: f for f in examine()}
    assert {n: f for n, f in findings.items() if f.mark == "FAIL"} == {}
    assert set(findings) >= {
        "python",
        "evalkit-audio",
        "package evalkit",
        "package tasks",
        "package tokenizer",
        "package llm",
        "soundfile",
        "soxr",
        "pyloudnorm",
        "PyAV opus",
        "PyAV mp3",
        "worker processes",
        "file locks",
        "codec2 (extra)",
        "torch (not needed yet)",
        "tasks",
        "systems",
        "metrics",
        "datasets",
        "data root",
    }
    assert findings["evalkit-audio"].detail == importlib.metadata.version("evalkit-audio")
    assert os.listdir() == []  # nothing is left behind


# -- libraries --------------------------------------------------------------------------------------------------------


def _raises(error: Exception) -> Callable[..., Any]:
    def f(*_: Any, **__: Any) -> Any:
        raise error

    return f


def test_soundfile_that_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soundfile.write", _raises(OSError("cannot load library 'libsndfile.so'")))
    assert found("soundfile") == Finding("FAIL", "soundfile", "OSError: cannot load library 'libsndfile.so'")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_soundfile_that_writes_something_else(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    import soundfile

    write = soundfile.write

    def quieter(path: Any, samples: np.ndarray, *arguments: Any, **more: Any) -> None:
        write(path, samples * (0.8 if os.fsdecode(path).endswith(suffix) else 1.0), *arguments, **more)

    monkeypatch.setattr(soundfile, "write", quieter)
    result = found("soundfile")
    assert result.mark == "FAIL"
    assert f"{suffix} does not survive writing and reading (error 0.1" in result.detail


def test_soxr_that_resamples_badly(monkeypatch: pytest.MonkeyPatch) -> None:
    import soxr

    monkeypatch.setattr(soxr, "resample", lambda x, a, b, **_: np.repeat(x, 2, axis=0)[: round(len(x) * b / a)])
    result = found("soxr")
    assert result.mark == "FAIL" and "a tone does not survive 16 -> 24 -> 16 kHz" in result.detail


def test_soxr_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    result = found("soxr")
    assert result.mark == "FAIL" and "import of soxr halted" in result.detail


def test_pyloudnorm_that_measures_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyloudnorm

    measure = pyloudnorm.Meter.integrated_loudness
    monkeypatch.setattr(pyloudnorm.Meter, "integrated_loudness", lambda self, x: measure(self, x) + 3.0)
    assert found("pyloudnorm") == Finding(
        "FAIL", "pyloudnorm", "EvalkitError: a half-scale tone of 440 Hz measures -6.8 LUFS; it has -9.7"
    )


@pytest.mark.parametrize(("name", "codec"), [("PyAV opus", "libopus"), ("PyAV mp3", "libmp3lame")])
def test_ffmpeg_without_an_encoder(monkeypatch: pytest.MonkeyPatch, name: str, codec: str) -> None:
    from evalkit.systems import ffmpeg

    encode = ffmpeg._encode

    def without(clip: Any, wanted: str, *more: Any) -> Any:
        return encode(clip, "no_such_codec" if wanted == codec else wanted, *more)

    monkeypatch.setattr(ffmpeg, "_encode", without)
    result = found(name)
    assert result.mark == "FAIL" and "no_such_codec" in result.detail


@pytest.mark.parametrize("name", ["PyAV opus", "PyAV mp3"])
def test_a_codec_that_decodes_to_silence(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from evalkit.systems import ffmpeg

    planar = ffmpeg._planar
    monkeypatch.setattr(ffmpeg, "_planar", lambda frame: 0 * planar(frame))
    result = found(name)
    assert result.mark == "FAIL" and "turns a tone of level 0.35 into one of 0" in result.detail


def test_a_codec_that_loses_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.systems import ffmpeg

    monkeypatch.setattr(ffmpeg, "_exact", lambda y, delay, length: y[:, delay : delay + length - 100])
    result = found("PyAV opus")
    assert result.mark == "FAIL" and "decode must restore the exact length" in result.detail


def test_codec2_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycodec2", None)
    result = found("codec2 (extra)")
    assert result.mark == "warn" and "pip install" in result.detail


# -- processes and files ----------------------------------------------------------------------------------------------


def test_workers_that_run_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit import execute

    class Fake(execute.Serial):
        def __init__(self, workers: int) -> None:
            pass

        def submit(self, function: Any, argument: Any, timeout: float | None = None) -> Any:
            if function is doctor._die:
                function = _raises(execute.Crashed("pretended"))
            return super().submit(function, argument, timeout)

    monkeypatch.setattr(execute, "Pool", Fake)
    assert found("worker processes") == Finding(
        "FAIL", "worker processes", "EvalkitError: units run in the main process"
    )


def test_workers_whose_death_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_die", doctor._pid)
    assert "a worker that ended itself was not noticed" in found("worker processes").detail


def test_workers_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit import execute

    monkeypatch.setattr(execute, "Pool", _raises(OSError("[Errno 38] no semaphores here")))
    assert found("worker processes").mark == "FAIL"
    assert "no semaphores here" in found("worker processes").detail


def test_locks_that_are_granted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    monkeypatch.setattr(filelock, "FileLock", filelock.SoftFileLock)
    assert found("file locks").mark == "ok"  # another kind of lock is as good ...

    class NoLock:  # ... none is not
        def __init__(self, path: str) -> None: ...
        def acquire(self, timeout: float) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: Any) -> None: ...

    monkeypatch.setattr(filelock, "FileLock", NoLock)
    result = found("file locks")
    assert result.mark == "FAIL" and "grants one lock twice" in result.detail


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a user without permission; root writes anywhere, so that the folder is taken away instead."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert doctor._try("file locks", doctor._locks, True).mark == "FAIL"


# -- names ------------------------------------------------------------------------------------------------------------


def _distribution(site: Path, name: str, package: str, files: dict[str, str] | None = None) -> None:
    """An installed distribution that owns a top-level package."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "top_level.txt").write_text(package + "\n")
    (info / "RECORD").write_text("".join(f"{f},,\n" for f in files or ()) + f"{info.name}/RECORD,,\n")
    for path, text in (files or {}).items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)


def _evalkit(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evalkit", *arguments],
        cwd=site.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )


@pytest.mark.parametrize(
    ("name", "package"),
    [("evalkit", "evalkit"), ("llm", "llm"), ("taskset", "tasks"), ("other-tokenizer", "tokenizer")],
)
def test_another_distribution_that_owns_our_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    _distribution(tmp_path / "site", name, package)
    monkeypatch.syspath_prepend(tmp_path / "site")
    result = found(f"package {package}")
    assert result.mark == "FAIL"
    assert f"also owned by the unrelated {name}: pip uninstall {name}, then reinstall evalkit-audio" in result.detail
    others = {"evalkit", "llm", "tasks", "tokenizer"} - {package}
    assert all(found(f"package {other}").mark == "ok" for other in others)


def test_another_distributions_package_that_comes_first(tmp_path: Path) -> None:
    """The command itself, with an unrelated `llm` in front of ours."""
    _distribution(tmp_path / "site", "llm", "llm", {"llm/__init__.py": "raise RuntimeError('imported')\n"})
    done = _evalkit(tmp_path / "site", "doctor")
    assert done.returncode == 1
    shown = " ".join(done.stdout.split())
    assert "FAIL package llm the package 'llm' of evalkit-audio is shadowed by" in shown
    assert "imported" not in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_not_installed_as_a_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == "evalkit-audio":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    result = found("evalkit-audio")
    assert result.mark == "FAIL" and "pip install -e ." in result.detail


# -- plug-ins, data, torch --------------------------------------------------------------------------------------------


def test_a_broken_plugin_is_counted_and_named(tmp_path: Path) -> None:
    kinds = ("tasks", "systems", "metrics", "datasets")
    _distribution(
        tmp_path / "site", "acme", "acme", {"acme.py": "raise RuntimeError('no licence file')\n", "fine.py": "x = 1\n"}
    )
    (tmp_path / "site" / "acme-1.0.dist-info" / "entry_points.txt").write_text(
        "".join(f"[evalkit.{kind}]\nacme = acme\nfine = fine\n" for kind in kinds)
    )
    done = _evalkit(tmp_path / "site", "doctor")
    assert done.returncode == 0, done.stdout  # the rest works
    lines = done.stdout.splitlines()
    for kind in kinds:
        assert any(line.split()[:2] == ["ok", kind] and "1 of 2 plug-ins loaded" in line for line in lines)
        assert any(
            line.startswith(f"warn  plug-in ({kind})")
            and "'acme' (acme, of acme) was not loaded" in line
            and "RuntimeError: no licence file" in line
            for line in lines
        )


def test_built_ins_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "metrics", (*registry.BUILTIN["metrics"], "evalkit.metrics.no_such_module"))
    result = found("metrics")
    assert result.mark == "FAIL" and "no_such_module" in result.detail


def test_data_sets_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path) -> None:
    assert found("data root").mark == "warn"
    monkeypatch.setenv("EVALKIT_DATA", str(tmp_path / "nowhere"))
    assert found("data esc50").mark == "warn" and "no such folder" in found("data esc50").detail
    monkeypatch.setenv("EVALKIT_DATA", str(shared / "data"))
    assert found("data esc50").detail.startswith("400 of 2,000 clips")
    assert found("data fsdd") == Finding("ok", "data fsdd", "3,000 of 3,000 clips, layout FSDD")


def _fake_torch(site: Path, monkeypatch: pytest.MonkeyPatch, **packages: str) -> Finding:
    _distribution(site, "torch", "torch", {"torch.py": ""})
    for name, source in packages.items():
        _distribution(site, name, name, {f"{name}.py": source})
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    return found("torch (not needed yet)")


def test_torch_absent_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a))
    assert found("torch (not needed yet)") == Finding(
        "warn", "torch (not needed yet)", "not installed; nothing needs it yet"
    )


def test_torchaudio_that_does_not_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = _fake_torch(tmp_path / "site", monkeypatch, torchaudio="raise OSError('undefined symbol')")
    assert result.mark == "warn"
    assert "torchaudio does not import (OSError: undefined symbol)" in result.detail
    assert "pip uninstall torchaudio" in result.detail


def test_torch_that_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = _fake_torch(tmp_path / "site", monkeypatch, torchaudio="", torchvision="")
    assert (result.mark, result.detail) == ("ok", "torch 1.0")


# -- the rules of marking ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (Unavailable("needs x: pip install x"), "needs x: pip install x"),
        (ValueError("bad"), "ValueError: bad"),
    ],
)
def test_only_what_is_essential_fails(error: Exception, detail: str) -> None:
    assert doctor._try("x", _raises(error), True) == Finding("FAIL", "x", detail)
    assert doctor._try("x", _raises(error), False) == Finding("warn", "x", detail)
    assert doctor._try("x", lambda: "fine", True) == Finding("ok", "x", "fine")


def test_the_environment_of_a_run_holds_nothing_personal() -> None:
    import getpass
    import json
    import platform

    from evalkit.environment import capture, git_state

    text = json.dumps(capture())
    assert json.loads(text)["libraries"]["numpy"] == np.__version__
    assert str(Path.home()) not in text and os.getcwd() not in text
    assert platform.node() not in text or len(platform.node()) < 4
    assert f'"{getpass.getuser()}"' not in text
    assert git_state(Path.cwd()) is None


def test_the_code_state_is_that_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.environment import git_state

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    git("init", "-q")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "--no-verify", "-m", "one")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "untracked").write_text("x")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None
