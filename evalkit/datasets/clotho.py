"""Clotho 2.1: Freesound recordings of 15 to 30 s with five captions each, in three splits.

Facts from the data set's page (https://zenodo.org/record/4783391) and its caption files: 3,839 / 1,045 / 1,045 clips in
development / validation / evaluation; mono, 44.1 kHz. Two pairs of splits share file names (of different recordings),
so that ids carry the split.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from evalkit.datasets import Archive, DatasetInfo, Item, Layout
from evalkit.datasets.folder import clip_ids
from evalkit.errors import DataError, UsageError
from evalkit.registry import dataset

CLIPS = {"development": 3839, "validation": 1045, "evaluation": 1045}
CAPTIONS = tuple(f"caption_{k}" for k in range(1, 6))
SUFFIXES = (".wav", ".flac", ".ogg")
CSV_FOLDERS = ("", "clotho_csv_files", "CLOTHO_v2.1/clotho_csv_files")
AUDIO_FOLDERS = (
    "{split}",
    "clotho_audio_{split}",
    "clotho_audio_{split}/{split}",
    "clotho_audio_files/{split}",
    "CLOTHO_v2.1/clotho_audio_files/{split}",
)


def read(root: Path, *, split: str = "evaluation", audio: str = "any", cluster: str = "file") -> Layout:
    """List the clips of ``clotho_captions_<split>.csv``, with their captions and, where it is here, their audio.

    A clip without audio stays a clip (``path`` None, ``error`` says so): captions made elsewhere are scored on all of
    them, a system that hears has no value for it. Labels: ``captions`` (five, as they stand in the file) and
    ``file_name``.

    Args:
        root: holds the caption files and one of `AUDIO_FOLDERS`.
        split: development, validation or evaluation.
        audio: ``any``, or ``present`` for the clips whose audio is here, alone.
        cluster: ``file``, or ``uploader``: the Freesound user of ``clotho_metadata_<split>.csv``, which must be there.

    Raises:
        UsageError: unknown option value. DataError: no caption file, or a damaged one.
    """
    _one_of("split", split, CLIPS)
    _one_of("audio", audio, ("any", "present"))
    _one_of("cluster", cluster, ("file", "uploader"))
    rows = table_rows(_csv(root, f"clotho_captions_{split}.csv"), ("file_name", *CAPTIONS), "file_name")
    names = [row["file_name"] for row in rows]
    folder, listed = _audio(root, split)
    uploaders = _uploaders(root, split) if cluster == "uploader" else {}
    absent = f"no audio of this clip here: evalkit download clotho --only clotho_audio_{split}"
    items = []
    for row, id in zip(rows, clip_ids(names), strict=True):
        name = row["file_name"]
        found = _found(name, listed) if plain_name(name) else None
        error = "" if found else absent
        if not plain_name(name):
            error = "its name in the caption file is no plain file name: not read"
        items.append(
            Item(
                f"{split}/{id}",
                uploaders.get(name.strip(), f"{split}/{id}"),
                folder / found if found else None,
                labels={"captions": [row[c] for c in CAPTIONS], "file_name": name},
                split=split,
                error=error,
            )
        )
    items.sort(key=lambda i: i.id)
    return with_audio("clotho", items, audio, f"Clotho 2.1 {split}", CLIPS[split], str(folder))


def with_audio(
    name: str, items: list[Item], audio: str, layout: str, expected: int, where: str, notes: Sequence[str] = ()
) -> Layout:
    """The layout of a captioned set, with a note on how many of its clips have audio here.

    Raises:
        DataError: ``audio`` is ``present`` and no clip has any.
    """
    heard = [i for i in items if i.path is not None]
    if audio == "present" and not heard:
        raise DataError(f"audio=present: none of the {len(items):,} clips has audio in {where}")
    about = f"{len(heard):,} of {len(items):,} clips have audio here"
    if audio == "present":
        about += "; the others are left out (audio=present)"
    elif len(heard) < len(items):
        about += "; systems that hear have no value for the others"
    return Layout(heard if audio == "present" else items, layout, expected, (about, *notes))


def table_rows(path: Path, columns: Sequence[str], key: str) -> list[dict[str, str]]:
    """The rows of a CSV file in UTF-8, none of whose ``columns`` is empty and whose ``key`` never repeats.

    Raises:
        DataError: unreadable, a column or a cell is missing, a repeated key; with the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            reader = csv.DictReader(f)
            missing = [c for c in columns if c not in (reader.fieldnames or [])]
            if missing:
                raise DataError(f"{path}: no column {missing[0]!r}; expected {', '.join(columns)}")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    first: dict[str, int] = {}
    for line, row in rows:
        empty = [c for c in columns if not (row[c] or "").strip()]
        if empty or None in row:  # DictReader keeps cells beyond the header under None
            what = f"{empty[0]} is empty" if empty else "more cells than the header has columns"
            raise DataError(f"{path}, line {line}: {what}: the file is damaged, fetch it again")
        if row[key] in first:
            raise DataError(f"{path}, line {line}: {key} {row[key]!r} is also that of line {first[row[key]]}")
        first[row[key]] = line
    if not rows:
        raise DataError(f"{path}: no rows below the header")
    return [row for _, row in rows]


def plain_name(name: str) -> bool:
    """No folder part in the notation of either system."""
    return "\0" not in name and name not in (".", "..") and PureWindowsPath(name).name == name


def listing(folder: Path) -> dict[str, str]:
    """Names in a folder, each also without spaces around it (some file systems and archivers drop them)."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    return {n.strip(): n for n in names} | {n: n for n in names}


def _found(name: str, listed: dict[str, str]) -> str | None:
    stem = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in SUFFIXES else name
    tried = [name, *(stem + s for s in SUFFIXES)]
    return next((listed[n] for t in tried for n in (t, t.strip()) if n in listed), None)


def _audio(root: Path, split: str) -> tuple[Path, dict[str, str]]:
    """The first folder that holds audio (or the first of all), and what is in it."""
    folders = [root / f.format(split=split) for f in AUDIO_FOLDERS]
    for folder in folders:
        listed = listing(folder)
        if any(Path(n).suffix.lower() in SUFFIXES for n in listed):
            return folder, listed
    return folders[0], {}


def _csv(root: Path, name: str) -> Path:
    found = next((p for f in CSV_FOLDERS if (p := root / f / name).is_file()), None)
    if found is None:
        raise DataError(f"no {name} in {root} (nor in {' or '.join(f for f in CSV_FOLDERS if f)} there)")
    return found


def _uploaders(root: Path, split: str) -> dict[str, str]:
    """Freesound user by file name; clips of unknown origin are left out."""
    path = _csv(root, f"clotho_metadata_{split}.csv")
    try:
        # The published metadata is not UTF-8 throughout: a few names are in Latin-1.
        with path.open(encoding="latin-1", newline="") as f:
            reader = csv.DictReader(f)
            if not {"file_name", "manufacturer"} <= set(reader.fieldnames or ()):
                raise DataError(f"{path}: no column 'file_name' or 'manufacturer'")
            pairs = [((row["file_name"] or "").strip(), (row["manufacturer"] or "").strip()) for row in reader]
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    return {name: f"uploader {who}" for name, who in pairs if who and who.lower() != "not found"}


def _one_of(option: str, value: str, known: Sequence[str] | dict[str, int]) -> None:
    if value not in known:
        raise UsageError(f"clotho: {option}={value!r}: expected {' or '.join(known)}")


def _archive(filename: str, md5: str, size: int | None) -> Archive:
    return Archive(f"https://zenodo.org/records/4783391/files/{filename}", filename, f"md5:{md5}", size, ".")


INFO = dataset(
    DatasetInfo(
        name="clotho",
        version="2.1",
        summary="Freesound recordings of 15 to 30 s with five captions each; split=development, validation, evaluation",
        domain="sound",
        licence="captions: Tampere University, non-commercial with attribution; audio: Freesound, CC licence per clip",
        citation="K. Drossos, S. Lipping, T. Virtanen, Clotho: An Audio Captioning Dataset, ICASSP 2020, "
        "doi:10.1109/ICASSP40776.2020.9052990; version 2.1: doi:10.5281/zenodo.4783391",
        homepage="https://zenodo.org/records/4783391",
        read=read,
        folder="clotho",
        # The first is what captions made elsewhere need. Checksums: docs/captioning.md says which were met.
        archives=(
            _archive("clotho_captions_evaluation.csv", "1b16b9e57cf7bdb7f13a13802aeb57e2", 361_995),
            _archive("clotho_captions_validation.csv", "5879e023032b22a2c930aaa0528bead4", 367_649),
            _archive("clotho_captions_development.csv", "d4090b39ce9f2491908eebf4d5b09bae", 1_336_762),
            _archive("clotho_metadata_evaluation.csv", "13946f054d4e1bf48079813aac61bf77", None),
            _archive("clotho_metadata_validation.csv", "2e010427c56b1ce6008b0f03f41048ce", 224_803),
            _archive("clotho_metadata_development.csv", "170d20935ecfdf161ce1bb154118cda5", 830_797),
            _archive("clotho_audio_evaluation.7z", "4569624ccadf96223f19cb59fe4f849f", None),
            _archive("clotho_audio_validation.7z", "7dba730be08bada48bd15dc4e668df59", 1_260_701_425),
            _archive("clotho_audio_development.7z", "c8b05bc7acdb13895bb3c6a29608667e", 4_541_582_263),
        ),
        remedy="put clotho_captions_<split>.csv and the folder <split>/ of its audio archive into clotho/",
    )
)
