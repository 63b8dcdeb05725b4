"""The embedding store: float32 arrays on disk, named by what computed them and by the content of the clip.

::

    CACHE/embeddings/yamnet-v1-687f226c147a-1f0c2d3e/ab/abcd....npy

Losing it, or not being able to write it, costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np

from evalkit.datasets.manifest import cache_folder

MARK_BYTES = 32
"""Every file ends in the sha256 of its key and its array: one that was cut, changed or moved is not believed."""


class EmbeddingStore:
    """Embeddings by key (embedder) and content (`Clip.content_hash`). Several processes may share one folder.

    Args:
        folder: None is ``embeddings`` under the cache folder (``EVALKIT_CACHE``).
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder: Path | None = None
        with contextlib.suppress(RuntimeError):  # there is no home, so no cache
            self.folder = Path(folder) if folder is not None else cache_folder() / "embeddings"

    def get(self, key: str, content: str, dimension: int) -> np.ndarray | None:
        """Float32 ``[frames, dimension]`` as it was put; None where there is none, or none that can be believed."""
        try:
            data = self._path(key, content).read_bytes()
            body = data[:-MARK_BYTES]
            if data[-MARK_BYTES:] != _mark(key, content, body):
                return None
            found: np.ndarray = np.load(io.BytesIO(body), allow_pickle=False)
        except (OSError, ValueError):
            return None
        whole = found.dtype == np.float32 and found.ndim == 2 and found.shape[1] == dimension and len(found) > 0
        return found if whole and np.isfinite(found).all() else None

    def put(self, key: str, content: str, embeddings: np.ndarray) -> None:
        """Keep an array. A disk that is full or may not be written keeps nothing, and says nothing."""
        out = io.BytesIO()
        np.save(out, np.ascontiguousarray(embeddings, dtype=np.float32), allow_pickle=False)
        body = out.getvalue()
        temporary = ""
        try:
            path = self._path(key, content)
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as f:
                temporary = f.name
                f.write(body)
                f.write(_mark(key, content, body))
            os.replace(temporary, path)
        except OSError:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def stats(self) -> dict[str, dict[str, int]]:
        """For each key: ``entries`` and ``bytes`` on disk."""
        out: dict[str, dict[str, int]] = {}
        for path in self._files("*.npy"):
            with contextlib.suppress(OSError):  # removed meanwhile
                size = path.stat().st_size
                one = out.setdefault(path.parent.parent.name, {"entries": 0, "bytes": 0})
                one["entries"] += 1
                one["bytes"] += size
        return out

    def clear(self, key: str | None = None) -> int:
        """Remove the entries of a key, or all; how many bytes that freed. Files of others are left alone."""
        freed = 0
        for pattern in ("*.npy", ".*.tmp"):
            for path in self._files(pattern, key or "*"):
                with contextlib.suppress(OSError):
                    size = path.stat().st_size
                    path.unlink()
                    freed += size
        return freed

    def _path(self, key: str, content: str) -> Path:
        if self.folder is None:
            raise OSError("no cache folder")
        return self.folder / key / content[:2] / f"{content}.npy"

    def _files(self, pattern: str, key: str = "*") -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob(f"{key}/??/{pattern}"))


def _mark(key: str, content: str, body: bytes) -> bytes:
    h = hashlib.sha256(f"{key}/{content}:".encode())
    h.update(body)
    return h.digest()
