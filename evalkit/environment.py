"""What a run ran on: code state, versions, hardware, threads. Recorded once a run, shown in footers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from evalkit import __version__
from evalkit.identity import versions

LIBRARIES = ("numpy", "scipy", "soundfile", "soxr", "av", "pyloudnorm", "pycodec2", "torch", "transformers")


def capture() -> dict[str, Any]:
    """The environment as JSON values. Nothing personal: no user, host or absolute path."""
    return {
        "evalkit": __version__,
        "git": git_state(Path(__file__).resolve().parent.parent),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.machine()}",
        "libraries": {k: v for k, v in versions(LIBRARIES).items() if v != "absent"},
        "hardware": hardware(),
        "threads": {k: os.environ[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ},
    }


def hardware() -> dict[str, Any]:
    """CPU model, logical cores this process may use, memory in GiB."""
    model = platform.processor() or platform.machine()
    memory = None
    if sys.platform.startswith("linux"):
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    model = line.partition(":")[2].strip()
                    break
            memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
        except (OSError, ValueError):
            pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores, "memory_gib": memory}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a checkout or without git."""
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
