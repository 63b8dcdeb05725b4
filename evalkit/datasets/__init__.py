"""Data sets: declarations and readers of the official layouts, one data set a file.

`DatasetInfo` says what a data set is; its ``read`` lists the `Item` s that are on disk. Nothing is decoded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.registry import Domain


@dataclass(frozen=True)
class Item:
    """One clip of a data set, before it is read.

    Attributes:
        id: unique within the data set, stable across machines (relative path, no suffix, ``#start`` of excerpts).
        path: the file; None for generated clips.
        cluster: recording, speaker or track; the unit of resampling in statistics.
        start, seconds: the excerpt of the file, in seconds; None is to the end.
        labels: class, speaker, transcript, captions, ...: JSON values only.
        split: train / validation / test / fold name, "" where the data set has none.
        make: for generated clips, a function that gives the clip; None otherwise.
        make_key: for generated clips, what identifies the content (version, seed).
        error: known before reading (a name that leaves the folder, a listed file that is absent): becomes the reason.
    """

    id: str
    cluster: str
    path: Path | None = None
    start: float = 0.0
    seconds: float | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    split: str = ""
    make: Callable[[], Any] | None = None
    make_key: str = ""
    error: str = ""


@dataclass(frozen=True)
class Archive:
    """A file to download. ``checksum`` is ``sha256:...`` (``md5:`` or ``sha1:`` where only that is published) or ""."""

    url: str
    filename: str
    checksum: str = ""
    bytes: int | None = None
    folder: str = ""
    """Where it is unpacked, relative to the data set's folder; archives that bring their own top folder say "."."""


@dataclass(frozen=True)
class Layout:
    """What a reader found.

    ``items`` in a stable order; ``name`` of the recognised layout; ``expected`` clips of the whole, 0 where what was
    found is no official set (a folder of one's own); ``notes`` for the tables.
    """

    items: list[Item]
    name: str
    expected: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetInfo:
    """Declaration of a data set.

    ``read(root, **options) -> Layout`` lists what is under ``root`` (``<data root>/<folder>``); options come from the
    spec (``esc50@subset=esc10``) by keyword. It raises DataError, naming the folder looked in and the remedy, when
    nothing of the data set is there.
    """

    name: str
    version: str
    summary: str
    domain: Domain
    licence: str
    citation: str
    homepage: str
    read: Callable[..., Layout]
    folder: str = ""
    archives: tuple[Archive, ...] = ()
    generated: bool = False
    remedy: str = ""
    """How to obtain it by hand, for the error where it is absent."""


__all__ = ["Archive", "DatasetInfo", "Item", "Layout"]
