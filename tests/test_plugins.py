"""A separate, pip-installed package adds a task, a system, a metric and a data set; a broken one is a warning."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PLUGIN = '''
import numpy as np
from functools import partial
from evalkit import Clip, DatasetInfo, Item, Layout, Prepare, Task, Tokens, dataset, metric, system, task

def make(i):
    t = np.arange(8000) / 16000
    return Clip(0.5 * np.sin(2 * np.pi * (200 + 50 * i) * t), 16000, f"tone-{i}", f"tone-{i}")

def read(root, *, clips: int = 12):
    items = [Item(f"tone-{i}", f"tone-{i}", make=partial(make, i), make_key=f"tones-1:{i}") for i in range(clips)]
    return Layout(items, "generated", clips)

dataset(DatasetInfo(name="acme-tones", version="1", summary="plug-in tones", domain="sound", licence="CC0",
                    citation="Acme", homepage="", read=read, generated=True))

@task
def tones():
    return Task("acme-tones-reconstruction", "acme-tones", ("acme_peak_error", "mse", "code_kbps"), Prepare())

@system("acme-sign", summary="one bit a sample")
class Sign:
    sample_rate = 8000
    def encode(self, clip):
        codes = (clip.samples > 0).astype(int)
        return Tokens(codes, (2,) * clip.channels, clip.sample_rate, clip.length, clip.sample_rate)
    def decode(self, tokens, seed):
        return Clip(0.3 * (tokens.codes * 2.0 - 1), tokens.sample_rate)

@metric("acme_peak_error", unit="FS", direction="lower", group="acme")
def peak_error(reference, estimate):
    """Largest absolute error."""
    return np.abs(reference.samples - estimate.samples).max()
'''


def _wheel(folder: Path, name: str, module: str, source: str, entry_points: str) -> Path:
    """A pure-Python wheel written by hand, so that pip installs it with no build back end and no network."""
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entry_points,
    }
    record = "".join(f"{f},,\n" for f in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as z:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            z.writestr(file, text)
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the good and the broken plug-in installed by pip."""
    folder = tmp_path_factory.mktemp("plugins")
    groups = "".join(f"[evalkit.{kind}]\nacme = acme_evalkit\n" for kind in ("tasks", "systems", "metrics", "datasets"))
    good = _wheel(folder, "acme_evalkit", "acme_evalkit", PLUGIN, groups)
    broken = _wheel(
        folder,
        "broken_evalkit",
        "broken_evalkit",
        "raise RuntimeError('no licence file')\n",
        "[evalkit.systems]\nbroken = broken_evalkit\n",
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--target",
            str(folder / "site"),
            str(good),
            str(broken),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


def _evalkit(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evalkit", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )


def test_a_plugin_adds_a_task_a_system_a_metric_and_a_data_set(site: Path, tmp_path: Path) -> None:
    done = _evalkit(
        site, tmp_path, "run", "--task", "acme-tones", "--system", "acme-sign,pcm:8", "--out", "out", "-j", "2"
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out/tables/acme-tones-reconstruction.md").read_text()
    assert "acme\\_peak\\_error" in page and "`acme-sign`" in page
    assert "| `acme-sign` | 8 |" in page  # one bit at 8 kHz


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("tasks", "acme-tones-reconstruction"),
        ("systems", "acme-sign"),
        ("metrics", "acme_peak_error"),
        ("datasets", "acme-tones"),
    ],
)
def test_plugins_are_listed_beside_builtins(site: Path, tmp_path: Path, kind: str, name: str) -> None:
    done = _evalkit(site, tmp_path, "list", kind)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout


def test_a_broken_plugin_is_a_warning_that_names_it(site: Path, tmp_path: Path) -> None:
    done = _evalkit(site, tmp_path, "list", "systems")
    assert done.returncode == 0
    assert "opus:KBPS" in done.stdout
    assert "warning: plug-in 'broken' (broken_evalkit, of broken_evalkit) was not loaded" in done.stderr
    assert "no licence file" in done.stderr
    doctor = _evalkit(site, tmp_path, "doctor")
    assert "no licence file" in " ".join(doctor.stdout.split())


def test_a_foreign_package_of_our_name_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("print('somebody else')\n")
    done = _evalkit(tmp_path, tmp_path, "list", "tasks")
    assert done.returncode == 1
    assert "the package 'tasks' of evalkit-audio is shadowed by" in done.stderr
    assert "Traceback" not in done.stderr
    doctor = _evalkit(tmp_path, tmp_path, "doctor")
    assert doctor.returncode == 1
    assert "package tasks" in doctor.stdout and "FAIL" in doctor.stdout
