"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evalkit.errors import UsageError


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a place where no file can be written, before the work is done.

    Raises:
        UsageError: a folder, or a file in one that is absent, or one that may not be written.
    """
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise UsageError(f"{str(path)!r} is a folder: name a file")
    if not final.parent.is_dir():
        raise UsageError(f"{str(path)!r}: there is no folder {str(final.parent)!r}: make it first")
    if not os.access(final if final.exists() else final.parent, os.W_OK):
        raise UsageError(f"{str(path)!r} may not be written: choose another place")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the name of a file beside ``path``, with its suffix, that takes its place when the block ends well.

    A symbolic link stays one: what it leads to is replaced. A device or a pipe is written to as it is.

    Raises:
        UsageError: where `check_target` does.
    """
    check_target(path)
    final = Path(os.path.realpath(path))
    if final.exists() and not final.is_file():
        yield final
        return
    half = final.with_name(f".{os.getpid()}.{final.name}")
    try:
        yield half
        os.replace(half, final)
    finally:
        half.unlink(missing_ok=True)
