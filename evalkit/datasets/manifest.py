"""What the content of a selection of clips is: hashes of files, clips and of the whole.

File hashes are kept in a small SQLite file (path, size, modification and change time), so that naming 93 GB twice reads
them once. Without a writable cache folder everything works, only slower.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evalkit.datasets import Item

UNREADABLE = "unreadable:"
_SETTLED_NS = 2_000_000_000
"""A file changed less than this ago may change again within the clock's grain: its facts are not kept."""


@dataclass(frozen=True)
class Manifest:
    """Content identity of a selection.

    Attributes:
        sources: clip id -> `source_hash`: equal content has an equal hash, whatever its name.
        sha256: over the sorted pairs (id, source hash).
        files, bytes: distinct files that were read, and their size.
    """

    sources: dict[str, str]
    sha256: str
    files: int
    bytes: int


def manifest(
    items: Iterable[Item], cache: Path | None = None, progress: Callable[[int], None] | None = None
) -> Manifest:
    """Hash what ``items`` are made of; each distinct file is read once.

    Args:
        items: with unique ids.
        cache: folder for file hashes; None is `cache_folder`.
        progress: called with the number of items done.
    """
    sources: dict[str, str] = {}
    hashes: dict[Path, str] = {}
    size = 0
    with FileFacts(cache) as facts:
        for done, item in enumerate(items, start=1):
            file_hash = ""
            if item.path is not None and not item.error:
                if item.path not in hashes:
                    hashes[item.path] = file_sha256(item.path, facts)
                    with contextlib.suppress(OSError):
                        size += 0 if hashes[item.path].startswith(UNREADABLE) else item.path.stat().st_size
                file_hash = hashes[item.path]
            sources[item.id] = source_hash(item, file_hash)
            if progress:
                progress(done)
    total = hashlib.sha256(json.dumps(sorted(sources.items())).encode()).hexdigest()
    return Manifest(sources, total, len(hashes), size)


def source_hash(item: Item, file_hash: str) -> str:
    """Content key of a clip: sha256 over its file's hash (or its ``make_key``) and the excerpt taken from it.

    A clip that cannot be read has ``unreadable:<reason>``.

    >>> a, b, later = (Item("x", "c", Path(n), start=s) for n, s in (("a.wav", 0), ("b.wav", 0), ("a.wav", 1)))
    >>> source_hash(a, "00ff") == source_hash(b, "00ff") != source_hash(later, "00ff")
    True
    """
    if item.error:
        return UNREADABLE + item.error
    if file_hash.startswith(UNREADABLE):
        return file_hash
    origin = ["make", item.make_key] if item.path is None else ["file", file_hash]
    text = json.dumps([*origin, float(item.start), None if item.seconds is None else float(item.seconds)])
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path, facts: FileFacts | None = None) -> str:
    """sha256 (hex) of a file's bytes, or ``unreadable:<reason>``; never raises for a bad file."""
    try:
        return facts.get(path, "sha256", _hash) if facts else _hash(path)
    except OSError as error:
        return UNREADABLE + (error.strerror or type(error).__name__)
    except ValueError:
        return UNREADABLE + "not a file name"


def _hash(path: Path) -> str:
    # Opening a pipe waits for a writer, so look first.
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(0, "is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def cache_folder() -> Path:
    """``EVALKIT_CACHE``, else ``$XDG_CACHE_HOME/evalkit``, else ``~/.cache/evalkit``."""
    if os.environ.get("EVALKIT_CACHE"):
        return Path(os.environ["EVALKIT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "evalkit"


class FileFacts:
    """Things worked out from files (hash, duration), kept until a file's size or times change.

    Several processes may share one folder. Anything wrong with the store turns it off, never the caller.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._db: sqlite3.Connection | None = None

    def __enter__(self) -> FileFacts:
        folder = self._folder or cache_folder()
        with self._guard(), contextlib.suppress(OSError, RuntimeError):
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(folder / "files.sqlite", timeout=2, isolation_level=None)
            self._db.execute("PRAGMA synchronous=OFF")  # losing facts in a power cut only costs time
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS facts (path TEXT, kind TEXT, size INTEGER, mtime INTEGER, ctime INTEGER,"
                " value TEXT, PRIMARY KEY (path, kind)) WITHOUT ROWID"
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def get(self, path: Path, kind: str, compute: Callable[[Path], str]) -> str:
        """``compute(path)``, or what it gave when the file was last seen, unchanged since. Raises what it raises."""
        before = os.stat(path)
        key = os.fsencode(os.path.abspath(path)).decode("utf-8", "backslashreplace")
        times = (before.st_size, before.st_mtime_ns, before.st_ctime_ns)
        if self._db is not None:
            row = None
            with self._guard():
                row = self._db.execute(
                    "SELECT value FROM facts WHERE path=? AND kind=? AND size=? AND mtime=? AND ctime=?",
                    (key, kind, *times),
                ).fetchone()
            if row:
                return str(row[0])
        value = compute(path)
        after = os.stat(path)
        settled = time.time_ns() - max(times[1:]) > _SETTLED_NS
        if self._db is not None and settled and times == (after.st_size, after.st_mtime_ns, after.st_ctime_ns):
            with self._guard():
                self._db.execute("INSERT OR REPLACE INTO facts VALUES (?,?,?,?,?,?)", (key, kind, *times, value))
        return value

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error:
            if self._db is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
            self._db = None
