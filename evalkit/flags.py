"""Flags: what a reader must know before believing a number. Kept in the records, shown in every table.

Circular: the system was trained to make this very measure small, or in the space that it is taken in. Contaminated: the
measure's model was trained or selected on this data set. Self-test: the measure failed its own declaration. (Clips that
a system was trained on are left out, or noted, when a run is planned: `evalkit.plan`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalkit.registry import MetricInfo


def flags_of(info: MetricInfo, identifier: str, system: Mapping[str, Any], dataset: str) -> list[str]:
    """The flags of one metric of one system on one data set, as short sentences; those of all systems first.

    Args:
        identifier: the metric's id (`evalkit.work.metric_id`): self-test verdicts are of one version.
        system: its description in the run record; ``trained_with`` names metrics, groups, or ``embedder:NAME``.
        dataset: name of the data set.
    """
    from evalkit.selftest import verdict

    flags = []
    if dataset in info.trained_on:
        flags.append(f"contaminated: its model was trained or selected on {dataset}")
    failed = verdict(identifier)
    if failed:
        flags.append(f"self-test failed: {failed}")
    _, at, variant = info.name.partition("@")
    space = f"embedder:{variant.removesuffix('-any-n')}" if at else ""
    hit = [
        t for t in system.get("trained_with", ()) if t in (info.name, info.group, info.name.partition("@")[0], space)
    ]
    if hit:
        flags.append(f"circular: the system's training made {_measure(hit[0])} small")
    return flags


def _measure(name: str) -> str:
    """
    >>> _measure("embedder:encodec"), _measure("logmel_l1")
    ('distances in the space of encodec', 'logmel_l1 (or its like)')
    """
    if name.startswith("embedder:"):
        return f"distances in the space of {name.removeprefix('embedder:')}"
    return f"{name} (or its like)"
