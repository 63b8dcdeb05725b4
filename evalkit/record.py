"""The run directory: ``run.json``, append-only JSONL, content-addressed arrays. See docs/design/record.md.

::

    RUN/run.json            request, identities, environment, status; replaced atomically
        predictions.jsonl   one line a prediction, appended and flushed as it comes
        scores.jsonl        one line a scored prediction (several lines add metrics)
        corpus.jsonl        values of corpus metrics, texts.jsonl of caption measures; kept when tables are made
        objects/ab/...      tokens, corpus statistics, clip lists, kept audio; named by content
        scratch/            decoded audio between predict and score; safe to delete
        run.lock            held while a process works here
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.audio import Clip
from evalkit.errors import EvalkitError, UsageError
from evalkit.identity import array_digest, canonical_json, digest
from evalkit.tokens import Tokens

FORMAT = 1


class RunDirectory:
    """Reader and writer of one run directory. Readers need no lock; a writer holds `lock`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    # -- run.json

    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    def read(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            UsageError: not a run directory, or of another format version.
        """
        try:
            value = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UsageError(f"{self.path}: not a run directory (no run.json)") from error
        except NotADirectoryError as error:
            raise UsageError(f"{self.path}: a file, not a run directory") from error
        except ValueError as error:
            raise UsageError(
                f"{self.path / 'run.json'}: damaged ({error}); remove it and issue the run again"
            ) from error
        written = value.get("format") if isinstance(value, dict) else None
        if written != FORMAT:
            raise UsageError(f"{self.path}: written in record format {written}, this evalkit reads {FORMAT}")
        absent = [k for k in ("request", "tasks", "systems", "cells", "status") if k not in value]
        if absent:
            raise UsageError(f"{self.path / 'run.json'}: damaged (no {absent[0]!r}); remove it and issue the run again")
        return value

    def write(self, value: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, **value}, indent=1, sort_keys=True, allow_nan=False)
        _replace(self.path / "run.json", text.encode("utf-8", "surrogateescape"))

    def lock(self) -> Any:
        """Acquire the directory for writing; use as a context manager. Released by the kernel if the process dies.

        Raises:
            UsageError: another process is working in this directory.
        """
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(self.path / "run.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(
                f"{self.path}: another process is working in this run directory; wait for it, or choose another --out"
            ) from error
        return lock

    # -- lines

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Append one record to ``<name>.jsonl`` in a single write, so that a killed process leaves whole lines."""
        line = (canonical_json(record) + "\n").encode("utf-8", "surrogatepass")
        with open(self.path / f"{name}.jsonl", "ab", buffering=0) as f:
            f.write(line)

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The records of ``<name>.jsonl``; a partial last line, left by a killed writer, is passed over."""
        try:
            f = open(self.path / f"{name}.jsonl", "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            return
        with f:
            for number, line in enumerate(f, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield json.loads(line.decode("utf-8", "surrogatepass"))
                except ValueError as error:
                    raise EvalkitError(f"{self.path}/{name}.jsonl line {number} is damaged: {error}") from error

    def repair(self) -> None:
        """Cut a partial last line off each JSONL file and remove half-written files. Call with the lock held."""
        for leftover in [*self.path.glob(".*.tmp"), *self.path.glob("objects/*/.*.tmp")]:
            leftover.unlink(missing_ok=True)
        for path in self.path.glob("*.jsonl"):
            with open(path, "r+b") as f:
                f.seek(0, os.SEEK_END)
                at = end = f.tell()
                while at:
                    f.seek(max(0, at - 65536))
                    block = f.read(at - max(0, at - 65536))
                    cut = block.rfind(b"\n")
                    at = max(0, at - 65536)
                    if cut >= 0:
                        at += cut + 1
                        break
                if at < end:
                    f.truncate(at)

    def predictions(self) -> dict[str, dict[str, Any]]:
        """Prediction records by key; where a key was predicted again (``--retry-failed``), the last counts."""
        return {r["key"]: r for r in self.lines("predictions")}

    def scores(self) -> dict[str, dict[str, Any]]:
        """Metric results by prediction key and metric id, merged over lines; the last counts."""
        merged: dict[str, dict[str, Any]] = {}
        for record in self.lines("scores"):
            merged.setdefault(record["key"], {}).update(record["metrics"])
        return merged

    # -- objects

    def object_path(self, name: str) -> Path:
        return self.path / "objects" / name[:2] / name

    def put_json(self, value: Any) -> str:
        name = f"{digest(value)}.json"
        if not self.object_path(name).exists():
            _replace(self.object_path(name), canonical_json(value).encode("utf-8", "surrogatepass"))
        return name

    def get_json(self, name: str) -> Any:
        return json.loads(self.object_path(name).read_bytes().decode("utf-8", "surrogatepass"))

    def put_arrays(self, arrays: Mapping[str, np.ndarray]) -> str:
        name = f"{array_digest(arrays)}.npz"
        path = self.object_path(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _temporary(path) as f:
                np.savez_compressed(f, **arrays)  # type: ignore[arg-type]
        return name

    def get_arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.object_path(name), allow_pickle=False) as z:
            return {k: z[k] for k in z.files}

    def put_tokens(self, tokens: Tokens) -> str:
        scalars = np.array([tokens.frame_rate, tokens.side_bits, tokens.container_bits])
        counts = np.array([tokens.samples, tokens.sample_rate], dtype=np.int64)
        sizes = np.array(tokens.sizes, dtype=np.int64)
        side = {f"side.{k}": np.asarray(v) for k, v in tokens.side.items()}
        return self.put_arrays({"codes": tokens.codes, "sizes": sizes, "scalars": scalars, "counts": counts, **side})

    def get_tokens(self, name: str) -> Tokens:
        a = self.get_arrays(name)
        frame_rate, side_bits, container_bits = a["scalars"].tolist()
        samples, sample_rate = a["counts"].tolist()
        side = {k.removeprefix("side."): v for k, v in a.items() if k.startswith("side.")}
        return Tokens(
            a["codes"], tuple(a["sizes"].tolist()), frame_rate, samples, sample_rate, side_bits, container_bits, side
        )

    def put_audio(self, clip: Clip) -> str:
        """Keep decoded audio as float32 wav (exact, and playable)."""
        name = f"{clip.content_hash}.wav"
        path = self.object_path(name)
        if not path.exists():
            import soundfile

            with _temporary(path) as f:
                soundfile.write(f, clip.samples.T, clip.sample_rate, format="WAV", subtype="FLOAT")
        return name

    # -- scratch: decoded audio on its way from predict to score

    def _scratch(self, key: str) -> Path:
        return self.path / "scratch" / f"{key}.npy"

    def put_scratch(self, key: str, clip: Clip) -> None:
        path = self._scratch(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as f:
            np.save(f, clip.samples)

    def get_scratch(self, key: str) -> np.ndarray | None:
        try:
            return np.load(self._scratch(key), allow_pickle=False)
        except (OSError, ValueError):
            return None

    def drop_scratch(self, key: str) -> None:
        self._scratch(key).unlink(missing_ok=True)

    def clear_scratch(self) -> None:
        shutil.rmtree(self.path / "scratch", ignore_errors=True)


class _temporary:
    """A file beside ``path`` that takes its place when the block ends well."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp"), "wb")
        return self.file

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.file.close()
        if kind is None:
            os.replace(self.file.name, self.path)
        else:
            os.unlink(self.file.name)


def _replace(path: Path, content: bytes) -> None:
    with _temporary(path) as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
