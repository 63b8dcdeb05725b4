"""Outputs decoded elsewhere: how codecs that cannot run here are scored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from evalkit.audio import Clip, fit_length, mono, read_clip, resample
from evalkit.datasets.folder import SUFFIXES
from evalkit.datasets.manifest import FileFacts, file_sha256
from evalkit.errors import DataError, UsageError
from evalkit.registry import system

ROUNDING = 2
"""Samples by which a file may be longer or shorter than the clip without a word: resampling rounds."""


@system("files", role="codec", licence="of the files", summary="audio decoded elsewhere, one file a clip")
@dataclass(frozen=True)
class Files:
    """A folder with one decoded file a clip, matched by name.

    The clip ``test-clean/61/70970/61-70970-0024`` is matched by ``61-70970-0024.<audio suffix>`` anywhere below the
    folder; an excerpt ``track#10`` by ``track#10.<audio suffix>``, never by a cut of the whole track. Files are mixed
    down if the clip is mono, resampled to the clip's rate, and must have its length up to rounding. The bit rate is
    declared, not measured, and shown so.

    Args:
        folder: where the files are.
        kbps: the bit rate they were coded at, as their maker says.
        length: ``exact``, or ``fit`` to cut or zero-pad at the end.
    """

    folder: str
    kbps: float | None = None
    length: str = "exact"
    _index: dict[str, list[Path]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.length not in ("exact", "fit"):
            raise UsageError(f"files@length={self.length}: exact or fit")
        root = Path(self.folder)
        if not root.is_dir():
            raise UsageError(f"files:{self.folder}: no such folder")
        for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
            if path.name.startswith("."):
                continue
            for name in {path.stem, path.name}:  # ids keep a suffix where two files differ in nothing else
                self._index.setdefault(name, []).append(path)
        if not self._index:
            raise UsageError(f"files:{self.folder}: no audio file in or below the folder ({', '.join(SUFFIXES)})")

    @property
    def declared_kbps(self) -> float | None:
        return self.kbps

    def fingerprint(self) -> str:
        """sha256 over the names and contents of all files."""
        h = hashlib.sha256()
        with FileFacts(None) as facts:
            for path in sorted({p for paths in self._index.values() for p in paths}):
                line = f"{path.relative_to(self.folder)}\0{file_sha256(path, facts)}\0"
                h.update(line.encode("utf-8", "surrogateescape"))
        return h.hexdigest()

    def reconstruct(self, clip: Clip, seed: int) -> Clip:
        name = clip.id.rpartition("/")[2]
        found = self._index.get(name, [])
        if not found:
            track = name.rpartition("#")[0]
            hint = f": {self._index[track][0].name} is the whole track, cut it first" if track in self._index else ""
            raise DataError(f"no file named {name}.* below {self.folder}{hint}")
        if len(found) > 1:
            raise DataError(f"two files for {name}: {found[0]} and {found[1]}; keep one")
        made = read_clip(found[0])
        made = resample(mono(made) if clip.channels == 1 else made, clip.sample_rate)
        if self.length == "exact" and abs(made.length - clip.length) > ROUNDING:
            raise DataError(
                f"{found[0].name} has {made.length} samples at {clip.sample_rate} Hz, the clip {clip.length}: "
                "if the codec pads, @length=fit cuts or zero-pads at the end"
            )
        return clip.with_samples(fit_length(made.samples, clip.length))
