"""Free Spoken Digit Dataset: English digits, 8 kHz, 6 speakers, ``recordings/{digit}_{speaker}_{index}.wav``."""

from __future__ import annotations

import re
from pathlib import Path

from evalkit.datasets import Archive, DatasetInfo, Item, Layout
from evalkit.errors import DataError
from evalkit.registry import dataset

CLIPS = 3000
"""6 speakers x 10 digits x 50 recordings (README of v1.0.10)."""

HOMES = ("", "free-spoken-digit-dataset-1.0.10", "free-spoken-digit-dataset-master", "free-spoken-digit-dataset")
_NAME = re.compile(r"([0-9])_([^_]+)_([0-9]+)")


def read(root: Path) -> Layout:
    """List ``recordings/*.wav`` (or ``.flac``); clusters are speakers.

    Splits are the official ones: recordings 0 to 4 of each digit and speaker are ``test``, the others ``train``.

    Raises:
        DataError: no recording is there.
    """
    homes = [root / h / "recordings" for h in HOMES]
    home = next((h for h in homes if h.is_dir()), None)
    if home is None:
        raise DataError(f"no FSDD in {root}: it holds no recordings/ folder")
    found: dict[str, Item] = {}
    others = 0
    for path in sorted(home.iterdir()):
        name = _NAME.fullmatch(path.stem)
        if path.suffix.lower() not in (".wav", ".flac") or not name or path.stem in found:
            others += 1
            continue
        labels = {"digit": int(name[1]), "class": name[1], "speaker": name[2], "index": int(name[3])}
        split = "test" if int(name[3]) < 5 else "train"
        found[path.stem] = Item(path.stem, name[2], path, labels=labels, split=split)
    if not found:
        raise DataError(f"no recording in {home}: expected names like 7_jackson_32.wav")
    notes = (f"{others} other files in recordings/ passed over",) if others else ()
    return Layout([found[id] for id in sorted(found)], "FSDD", CLIPS, notes)


INFO = dataset(
    DatasetInfo(
        name="fsdd",
        version="1.0.10",
        summary="3,000 recordings of spoken English digits by 6 speakers, 8 kHz",
        domain="speech",
        licence="CC BY-SA 4.0",
        citation="Z. Jackson et al., Free Spoken Digit Dataset v1.0.10, doi:10.5281/zenodo.1342401",
        homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
        read=read,
        folder="fsdd",
        # GitHub makes this archive on demand and publishes no checksum.
        archives=(
            Archive(
                "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.10.zip",
                "free-spoken-digit-dataset-1.0.10.zip",
            ),
        ),
        remedy="git clone --branch v1.0.10 https://github.com/Jakobovski/free-spoken-digit-dataset fsdd",
    )
)
