"""Weights that evalkit does not ship: where they are looked for, how they are checked, what is said when absent.

The weights root is the folder named by ``EVALKIT_WEIGHTS``. A hub id (``org/name``) is looked for there as well, then
in the hub's own cache. Nothing is downloaded here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit.errors import EvalkitError, NotApplicable

ROOT_VARIABLE = "EVALKIT_WEIGHTS"


def root() -> Path | None:
    """The weights root, or None where the variable is not set."""
    value = os.environ.get(ROOT_VARIABLE)
    return Path(value).expanduser() if value else None


def find_weights(name: str, *, source: str, sha256: str | None = None) -> Path:
    """The file or folder ``name`` under the weights root.

    Args:
        name: relative path such as ``yamnet/yamnet.tflite``.
        source: where it can be had, as a short phrase for the message.
        sha256: hex digest (or the first digits of it) that the file must have.

    Raises:
        NotApplicable: absent; the message names the variable, the file and the source.
        EvalkitError: another file than expected.
    """
    base = root()
    path = base / name if base else None
    if path is None or not path.exists():
        where = f"not in {base}" if base else f"{ROOT_VARIABLE} is not set"
        raise NotApplicable(f"weights {name} absent ({where}): put them there ({source})")
    if sha256 and not file_sha256(path).startswith(sha256):
        raise EvalkitError(
            f"{path}: not the expected weights (sha256 {file_sha256(path)[:12]}, expected {sha256[:12]}): fetch them "
            f"again ({source})"
        )
    return path


def hub_folder(hub_id: str, *, revision: str | None = None) -> Path:
    """The folder of a model of the hub: under the weights root, or in the hub's cache.

    Raises:
        NotApplicable: absent; the message says how to fetch it.
    """
    base = root()
    if base and (base / hub_id).is_dir():
        return base / hub_id
    snapshots = hub_cache() / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    if snapshots.is_dir():
        wanted = [snapshots / revision] if revision else sorted(snapshots.iterdir())
        for folder in wanted:
            if folder.is_dir():
                return folder
    at = f" --revision {revision}" if revision else ""
    raise NotApplicable(
        f"weights of {hub_id} absent: `hf download {hub_id}{at}` fetches them, or put the model's files into "
        f"{base / hub_id if base else '$' + ROOT_VARIABLE + '/' + hub_id}"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, and with the import hook that its import needs where torchaudio is."""
    from evalkit.torchaudio_shim import install

    install()
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def from_folder(model: Any, folder: str | os.PathLike[str], **keywords: Any) -> Any:
    """``model.from_pretrained`` of a local folder; nothing is fetched or printed."""
    with quiet():
        return model.from_pretrained(str(folder), local_files_only=True, **keywords)


def hub_cache() -> Path:
    """The hub's cache folder, found without importing its library."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser() / "hub"


def present(names: tuple[str, ...]) -> dict[str, bool]:
    """For each of a metric's ``weights``, whether it is there: part of the metric's identity."""
    return {name: _is_there(name) for name in names}


def _is_there(name: str) -> bool:
    base = root()
    if base and (base / name).exists():
        return True
    return (hub_cache() / f"models--{name.replace('/', '--')}").is_dir()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file; of a folder, over the names and digests of its files."""
    if path.is_dir():
        h = hashlib.sha256()
        for child in sorted(p for p in path.rglob("*") if p.is_file()):
            h.update(f"{child.relative_to(path).as_posix()}:{file_sha256(child)};".encode())
        return h.hexdigest()
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
