"""`evalkit doctor`: tests what it reports. Every finding comes from doing the thing, not from looking for a package."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalkit import registry
from evalkit.errors import EvalkitError, Unavailable

DISTRIBUTION = "evalkit-audio"


@dataclass(frozen=True)
class Finding:
    """``mark``: ok, warn (an optional part does not work), FAIL (the main job would not work)."""

    mark: str
    name: str
    detail: str


def examine() -> list[Finding]:
    """Run every check; a check that raises is a finding, not an error."""
    findings = [Finding("ok", "python", f"{sys.version.split()[0]} at {sys.prefix}")]
    findings += _names()
    findings += [_try(*check) for check in _checks()]
    findings += _plugins()
    findings += _data()
    return findings


def _checks() -> list[tuple[str, Callable[[], str], bool]]:
    """Name, check, and whether the main job needs it."""
    return [
        ("soundfile", _soundfile, True),
        ("soxr", _soxr, True),
        ("pyloudnorm", _loudness, True),
        ("PyAV opus", _opus, True),
        ("PyAV mp3", _mp3, True),
        ("worker processes", _workers, True),
        ("file locks", _locks, True),
        ("codec2 (extra)", _codec2, False),
        ("torch (not needed yet)", _torch, False),
    ]


def _try(name: str, check: Callable[[], str], essential: bool) -> Finding:
    try:
        return Finding("ok", name, check())
    except Unavailable as error:
        return Finding("FAIL" if essential else "warn", name, str(error))
    except Exception as error:
        return Finding("FAIL" if essential else "warn", name, f"{type(error).__name__}: {error}")


def _names() -> Iterator[Finding]:
    """The distribution and the four top-level packages: ours, and nobody else's."""
    try:
        yield Finding("ok", DISTRIBUTION, importlib.metadata.version(DISTRIBUTION))
    except importlib.metadata.PackageNotFoundError:
        why = "not installed as a distribution, so no plug-in or command works: pip install -e ."
        yield Finding("FAIL", DISTRIBUTION, why)
    owners = importlib.metadata.packages_distributions()
    for package in ("evalkit", *registry.OWN_PACKAGES):
        others = sorted(set(owners.get(package, ())) - {DISTRIBUTION})
        try:
            if package != "evalkit":
                registry.check_own_package(package)
            if others:
                remedy = f"pip uninstall {others[0]}, then reinstall {DISTRIBUTION}"
                who = ", ".join(others)
                yield Finding("FAIL", f"package {package}", f"also owned by the unrelated {who}: {remedy}")
            else:
                yield Finding("ok", f"package {package}", "this distribution's own")
        except EvalkitError as error:
            yield Finding("FAIL", f"package {package}", str(error))


def _tone(sample_rate: int = 16_000) -> Any:
    from evalkit.audio import Clip

    return Clip(0.5 * np.sin(2 * np.pi * 440 * np.arange(sample_rate, dtype=np.float64) / sample_rate), sample_rate)


def _soundfile() -> str:
    import soundfile

    from evalkit.audio import read_clip, write_clip

    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("wav", "flac", "ogg", "mp3"):
            path = Path(folder) / f"tone.{suffix}"
            write_clip(_tone(), path)
            error = float(np.abs(read_clip(path).samples[:, :16_000] - _tone().samples).max())
            if error > (1e-7 if suffix == "wav" else 0.05):
                raise EvalkitError(f"{suffix} does not survive writing and reading (error {error:.2g})")
    return f"{soundfile.__version__}, {soundfile.__libsndfile_version__}: wav, flac, ogg and mp3 written and read"


def _soxr() -> str:
    from evalkit.audio import resample

    back = resample(resample(_tone(), 24_000), 16_000)
    error = float(np.abs(back.samples - _tone().samples)[:, 2000:-2000].max())
    if error > 1e-3:
        raise EvalkitError(f"a tone does not survive 16 -> 24 -> 16 kHz (error {error:.2g})")
    return f"{importlib.metadata.version('soxr')}: 16 -> 24 -> 16 kHz, error {error:.1e}"


def _loudness() -> str:
    from evalkit.audio import loudness

    value = loudness(_tone(48_000))
    if abs(value + 9.7) > 0.2:  # -3.01 for a full-scale sine, -6.02 for half of it, -0.7 for the K weighting at 440 Hz
        raise EvalkitError(f"a half-scale tone of 440 Hz measures {value:.1f} LUFS; it has -9.7")
    return f"{importlib.metadata.version('pyloudnorm')}: a half-scale tone has {value:.1f} LUFS"


def _codec(spec: str) -> str:
    from evalkit.systems.load import load_system
    from evalkit.work import run_system

    output = run_system(load_system(spec).system, _tone(), seed=0)
    assert output.tokens is not None
    level = float(np.sqrt(np.mean(output.clip.samples.astype(np.float64) ** 2)))
    if not 0.01 < level < 1:  # the tone has 0.35, a speech codec makes 0.04 of it
        raise EvalkitError(f"{spec} turns a tone of level 0.35 into one of {level:.2g}")
    return f"{spec}: 1 s in {output.tokens.code_bits / 1000:.2f} kbit, decoded to {output.clip.length} samples"


def _opus() -> str:
    return f"av {importlib.metadata.version('av')}, {_codec('opus:6')}"


def _mp3() -> str:
    return _codec("mp3:8")


def _codec2() -> str:
    return _codec("codec2:700")


def _workers() -> str:
    from evalkit.execute import Crashed, Pool

    pool = Pool(1)
    try:
        try:
            pool.submit(_die, 3, timeout=60).result()
            raise EvalkitError("a worker that ended itself was not noticed")
        except Crashed:
            pass
        pid = pool.submit(_pid, None, timeout=60).result()
    finally:
        pool.close(now=True)
    if pid == os.getpid():
        raise EvalkitError("units run in the main process")
    return "a crashed worker was noticed and replaced"


def _die(code: int) -> None:
    os._exit(code)


def _pid(_: Any) -> int:
    return os.getpid()


def _locks() -> str:
    from evalkit.errors import UsageError
    from evalkit.record import RunDirectory

    with tempfile.TemporaryDirectory(dir=".") as folder, RunDirectory(folder).lock():
        try:
            RunDirectory(folder).lock()
        except UsageError:
            return "a locked run directory refuses a second writer here"
    raise EvalkitError("this file system grants one lock twice; two runs on one directory would mix")


def _torch() -> str:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise Unavailable("not installed; nothing needs it yet")
    import subprocess

    version = importlib.metadata.version("torch")
    for package in ("torchaudio", "torchvision"):
        if importlib.util.find_spec(package):
            command = [sys.executable, "-c", f"import {package}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode:
                last = done.stderr.strip().rpartition("\n")[2]
                raise Unavailable(
                    f"torch {version}, but {package} does not import ({last}) and its presence breaks "
                    f"transformers: pip uninstall {package}"
                )
    return f"torch {version}"


def _plugins() -> Iterator[Finding]:
    kind: registry.Kind
    for kind in registry.KINDS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                count = len(registry.names(kind))
            except Exception as error:
                yield Finding("FAIL", kind, f"{type(error).__name__}: {error}")
                continue
        plugins = importlib.metadata.entry_points(group=f"evalkit.{kind}")
        broken = [w for w in caught if issubclass(w.category, registry.PluginWarning)]
        yield Finding("ok", kind, f"{count} registered, {len(plugins) - len(broken)} of {len(plugins)} plug-ins loaded")
        for w in broken:
            yield Finding("warn", f"plug-in ({kind})", str(w.message))


def _data() -> Iterator[Finding]:
    from evalkit.datasets.load import load_dataset

    root = os.environ.get("EVALKIT_DATA")
    if not root:
        yield Finding("warn", "data root", "EVALKIT_DATA is not set; only generated data and --data-root work")
        return
    for name in registry.names("datasets"):
        info = registry.get("datasets", name)
        if info.generated or name == "folder":
            continue
        try:
            found = load_dataset(name, Path(root))
            yield Finding("ok", f"data {name}", f"{found.coverage}, layout {found.layout.name}")
        except EvalkitError as error:
            yield Finding("warn", f"data {name}", str(error).partition("\n")[0])
