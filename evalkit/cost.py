"""`Cost`: what one prediction took, as measured around the calls to the system."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Wall time in seconds, and memory in bytes, of one clip through one system.

    Attributes:
        encode_s: inside ``encode``; None where the system has none.
        decode_s: inside ``decode`` or ``reconstruct``.
        audio_s: seconds of audio.
        peak_bytes: peak resident memory of the worker during the calls; None where the system cannot tell.
        parameters: the system's trained parameters, 0 for none, None where it does not say.
    """

    encode_s: float | None
    decode_s: float
    audio_s: float
    peak_bytes: int | None
    parameters: int | None = None


def reset_peak_memory() -> bool:
    """Start a new peak measurement (Linux: /proc/self/clear_refs). False where the system cannot."""
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
        return True
    except OSError:
        return False


def peak_memory() -> int | None:
    """Peak resident bytes since `reset_peak_memory`; None off Linux."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        with open("/proc/self/status") as f:
            for line in f:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def now() -> float:
    return time.perf_counter()
