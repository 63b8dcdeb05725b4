"""Cost measures, from what the harness timed around the calls: they depend on the machine and vary from run to run."""

from __future__ import annotations

import math

from evalkit.cost import Cost
from evalkit.errors import NotApplicable
from evalkit.registry import metric

COST = ("encode_rtf", "decode_rtf", "peak_memory_mb", "parameters_m")


@metric("encode_rtf", unit="s/s", direction="lower", group="cost", range=(0, math.inf), deterministic=False)
def encode_rtf(cost: Cost) -> float:
    """Encoding time: seconds of wall time per second of audio, on this machine.

    One clip at a time, or its share of a batch. Below 1 is faster than real time.

    >>> encode_rtf(Cost(encode_s=0.5, decode_s=0.1, audio_s=5.0, peak_bytes=None))
    0.1

    Raises:
        NotApplicable: the system has no encoder; no audio.
    """
    if cost.encode_s is None:
        raise NotApplicable("the system has no encoder")
    return cost.encode_s / _seconds(cost)


@metric("decode_rtf", unit="s/s", direction="lower", group="cost", range=(0, math.inf), deterministic=False)
def decode_rtf(cost: Cost) -> float:
    """Decoding (or reconstruction) time: seconds of wall time per second of audio, on this machine.

    >>> decode_rtf(Cost(encode_s=None, decode_s=10.0, audio_s=5.0, peak_bytes=None))
    2.0

    Raises:
        NotApplicable: no audio.
    """
    return cost.decode_s / _seconds(cost)


@metric("peak_memory_mb", unit="MB", direction="lower", group="cost", range=(0, math.inf), deterministic=False)
def peak_memory_mb(cost: Cost) -> float:
    """Peak resident memory of the worker while it encoded and decoded the clip, in MB of 10^6 bytes.

    The whole process counts: interpreter, libraries, weights, and what earlier clips left behind.

    >>> peak_memory_mb(Cost(encode_s=None, decode_s=1.0, audio_s=5.0, peak_bytes=250_000_000))
    250.0

    Raises:
        NotApplicable: the operating system does not tell.
    """
    if cost.peak_bytes is None:
        raise NotApplicable("peak memory cannot be measured on this system")
    return cost.peak_bytes / 1e6


@metric("parameters_m", unit="M", direction="lower", group="cost", range=(0, math.inf))
def parameters_m(cost: Cost) -> float:
    """Trained parameters of the system in millions, as it states them; 0 for a codec without any.

    >>> parameters_m(Cost(encode_s=None, decode_s=1.0, audio_s=5.0, peak_bytes=None, parameters=14_850_000))
    14.85

    Raises:
        NotApplicable: the system does not say.
    """
    if cost.parameters is None:
        raise NotApplicable("the system does not state its parameters")
    return cost.parameters / 1e6


def _seconds(cost: Cost) -> float:
    if not cost.audio_s > 0:
        raise NotApplicable("no audio was processed")
    return cost.audio_s
