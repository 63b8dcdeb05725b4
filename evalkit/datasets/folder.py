"""``folder:DIR``: any folder of audio files, and the directory scan that other plain layouts share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalkit.datasets import DatasetInfo, Item, Layout
from evalkit.errors import DataError, UsageError
from evalkit.registry import dataset

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aiff", ".aif", ".wma")
DOMAINS = ("sound", "speech", "music")

LEAVES = "symbolic link that leaves the folder: copy what it points to into the folder, or give that place itself"


@dataclass(frozen=True)
class Entry:
    """One thing found by `scan`: ``name`` relative to the folder, with ``/``; ``error`` where it must not be read."""

    name: str
    path: Path
    error: str = ""


def scan(root: Path) -> tuple[list[Entry], int]:
    """All audio files under ``root``, sorted by name, and the number of hidden files and folders passed over.

    Audio is what has one of `SUFFIXES`, in any case. Whatever has such a name is listed even if it cannot be read (a
    directory, an empty file), so that the failure shows. Names that begin with a dot are passed over (``._a.wav`` of
    macOS is no audio). Symbolic links that leave the folder and folders that cannot be listed are entries with an
    error; links to folders inside are not followed, since their files are listed where they lie.

    Raises:
        DataError: ``root`` itself cannot be listed.
    """
    real_root = os.path.realpath(root)
    found: list[Entry] = []
    hidden = 0
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            children = list(os.scandir(root / prefix))
        except OSError as error:
            if not prefix:
                raise DataError(f"{root}: cannot be listed ({error.strerror})") from error
            found.append(Entry(prefix.rstrip("/"), root / prefix, f"folder cannot be listed ({error.strerror})"))
            continue
        for child in children:
            name = prefix + child.name
            is_audio = os.path.splitext(child.name)[1].lower() in SUFFIXES
            if child.name.startswith("."):
                hidden += 1
            elif child.is_symlink() and not _inside(os.path.realpath(child.path), real_root):
                if is_audio or child.is_dir():
                    found.append(Entry(name, Path(child.path), LEAVES))
            elif is_audio:
                found.append(Entry(name, Path(child.path)))
            elif child.is_dir() and not child.is_symlink():
                pending.append(name + "/")
    return sorted(found, key=lambda e: e.name), hidden


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def clip_ids(names: Sequence[str]) -> list[str]:
    """Ids from file names: the name without its audio suffix; names that would share an id keep theirs.

    Everything else is kept verbatim; bytes that are not UTF-8 are written ``\\xff``.

    >>> clip_ids(["a.wav", "b.wav", "b.mp3", "c.d.flac"])
    ['a', 'b.wav', 'b.mp3', 'c.d']
    """
    full = [os.fsencode(n).decode("utf-8", "backslashreplace") for n in names]
    ids = [n[: -len(s)] if (s := os.path.splitext(n)[1]).lower() in SUFFIXES else n for n in full]
    while True:
        count = Counter(ids)
        longer = [n if count[i] > 1 else i for n, i in zip(full, ids, strict=True)]
        if longer == ids:
            return ids
        ids = longer


def read(root: Path, path: str, *, domain: str = "sound", cluster: str = "file") -> Layout:
    """List a folder of audio files, recursively.

    Args:
        root: not used: ``path`` stands on its own.
        path: the folder, relative to the working directory.
        domain: what the audio is: sound, speech or music; decides which metrics apply.
        cluster: ``file`` (clips are independent) or ``parent`` (files of one folder belong together).

    Raises:
        UsageError: unknown ``domain`` or ``cluster``. DataError: no such folder, or no audio file in it.
    """
    if domain not in DOMAINS:
        raise UsageError(f"folder: domain={domain!r}: expected one of {', '.join(DOMAINS)}")
    if cluster not in ("file", "parent"):
        raise UsageError(f"folder: cluster={cluster!r}: expected file or parent")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file; give the folder that holds it" if folder.exists() else "no such folder"
        raise DataError(f"folder:{path}: {what}")
    entries, hidden = scan(folder)
    if not entries:
        raise DataError(f"folder:{path}: no audio file in it (looked for {' '.join(SUFFIXES)}, recursively)")
    items = []
    for entry, id in zip(entries, clip_ids([e.name for e in entries]), strict=True):
        group = id if cluster == "file" else (id.rpartition("/")[0] or ".")
        items.append(Item(id, group, path=None if entry.error else entry.path, error=entry.error))
    items.sort(key=lambda i: i.id)
    notes = (f"{hidden} hidden files or folders passed over",) if hidden else ()
    return Layout(items, "folder", len(items), notes)


INFO = dataset(
    DatasetInfo(
        name="folder",
        version="1",
        summary="any folder of audio files, recursively: folder:DIR",
        domain="sound",
        licence="that of the files",
        citation="",
        homepage="",
        read=read,
    )
)
