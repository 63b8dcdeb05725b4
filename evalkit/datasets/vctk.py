"""VCTK: about 400 English sentences by each of 110 speakers, in three layouts.

0.92: ``wav48_silence_trimmed/p225/p225_001_mic1.flac`` (two microphones); 0.80: ``wav48/p225/p225_001.wav``; flat:
``wav16/p225/*.flac``, a 16 kHz copy. Transcripts are in ``txt/p225/p225_001.txt``; those of p315 were lost.
"""

from __future__ import annotations

import re
from pathlib import Path

from evalkit.datasets import Archive, DatasetInfo, Item, Layout
from evalkit.errors import DataError, UsageError
from evalkit.registry import dataset

CLIPS_092 = {1: 44455, 2: 43873}
"""Files of each microphone, all speakers, with or without a transcript (catalogue of TensorFlow Datasets, vctk). The
second microphone failed for p280 and p315."""

CLIPS_080 = 44242
"""Commonly cited for version 0.80; no publisher's page that states it was found."""

HOMES = ("", "VCTK-Corpus-0.92", "VCTK-Corpus")
_UTTERANCE = re.compile(r"([ps][0-9]+_[0-9]+)(?:_mic[12])?")


def read(root: Path, *, mic: int = 1) -> Layout:
    """List the utterances; clusters are speakers. Where several layouts lie side by side, 0.92 comes before 0.80.

    Args:
        root: the folder that holds ``wav48_silence_trimmed/``, ``wav48/`` or ``wav16/``, or ``VCTK-Corpus/`` with it.
        mic: microphone of the 0.92 layout, 1 or 2; the others have only the first.

    Raises:
        UsageError: no such microphone. DataError: nothing of the data set is there.
    """
    if mic not in (1, 2):
        raise UsageError(f"vctk: mic={mic}: expected 1 or 2")
    layouts = {
        "wav48_silence_trimmed": ("0.92", f"*_mic{mic}.flac"),
        "wav48": ("0.80", "*.wav"),
        "wav16": ("flat 16 kHz", "*.flac"),
    }
    found = next(((root / h, f) for h in HOMES for f in layouts if (root / h / f).is_dir()), None)
    if found is None:
        raise DataError(f"no VCTK in {root}: it holds none of {', '.join(f + '/' for f in layouts)}")
    home, folder = found
    layout, pattern = layouts[folder]
    if mic == 2 and layout != "0.92":
        raise UsageError(f"vctk: mic=2: the {layout} layout in {home} holds the first microphone only")
    items = []
    for speaker in sorted(p for p in (home / folder).iterdir() if p.is_dir()):
        for path in sorted(speaker.glob(pattern)):
            match = _UTTERANCE.fullmatch(path.stem)
            if not match:
                continue
            labels = {"speaker": speaker.name}
            text = _transcript(home / "txt" / speaker.name / f"{match[1]}.txt")
            if text:
                labels["transcript"] = text
            items.append(Item(match[1], speaker.name, path, labels=labels))
    if not items:
        raise DataError(f"no utterance in {home / folder}: expected <speaker>/{pattern.replace('*', '<utterance>')}")
    items.sort(key=lambda i: i.id)
    if layout == "0.92":
        return Layout(items, f"VCTK 0.92, mic{mic}", CLIPS_092[mic])
    note = f"the size of the whole, {CLIPS_080:,}, is commonly cited but unconfirmed"
    return Layout(items, f"VCTK {layout}", CLIPS_080, (note,))


def _transcript(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


INFO = dataset(
    DatasetInfo(
        name="vctk",
        version="0.92",
        summary="English sentences by 110 speakers of various accents, 48 kHz (layouts 0.92, 0.80 and flat 16 kHz)",
        domain="speech",
        licence="CC BY 4.0 (version 0.80: ODC-By 1.0)",
        citation="J. Yamagishi, C. Veaux, K. MacDonald, CSTR VCTK Corpus (version 0.92), 2019, doi:10.7488/ds/2645",
        homepage="https://doi.org/10.7488/ds/2645",
        read=read,
        folder="vctk",
        # Bytes and sha256: url_checksums/vctk.txt of TensorFlow Datasets; the sha256 stands in torchaudio as well.
        archives=(
            Archive(
                "https://datashare.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip",
                "VCTK-Corpus-0.92.zip",
                "sha256:f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c",
                11747302977,
            ),
        ),
        remedy="version 0.92 is at https://doi.org/10.7488/ds/2645, version 0.80 at https://doi.org/10.7488/ds/1994",
    )
)
