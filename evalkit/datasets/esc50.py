"""ESC-50: 2,000 environmental recordings of 5 s in 50 classes and 5 folds, with the ESC-10 subset.

Facts from the data set's README and ``meta/esc50.csv`` (https://github.com/karolpiczak/ESC-50): 40 clips a class, 8 of
them in each fold; fragments of one Freesound recording (``src_file``) share a fold; ESC-10 is 10 of the classes.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path, PureWindowsPath
from typing import Any

from evalkit.datasets import Archive, DatasetInfo, Item, Layout
from evalkit.datasets.folder import clip_ids
from evalkit.errors import DataError, UsageError
from evalkit.registry import dataset

CLIPS = {"esc50": 2000, "esc10": 400}
FOLDS = ("1", "2", "3", "4", "5")
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
SUFFIXES = (".wav", ".ogg", ".flac")

SENTENCES = {
    "dog": "a dog is barking",
    "rooster": "a rooster is crowing",
    "pig": "a pig is grunting",
    "cow": "a cow is mooing",
    "frog": "a frog is croaking",
    "cat": "a cat is meowing",
    "hen": "a hen is clucking",
    "insects": "insects are buzzing",
    "sheep": "a sheep is bleating",
    "crow": "a crow is cawing",
    "rain": "rain is falling",
    "sea_waves": "sea waves are breaking on the shore",
    "crackling_fire": "a fire is crackling",
    "crickets": "crickets are chirping",
    "chirping_birds": "birds are chirping",
    "water_drops": "drops of water are falling",
    "wind": "the wind is blowing",
    "pouring_water": "water is being poured",
    "toilet_flush": "a toilet is being flushed",
    "thunderstorm": "thunder is rumbling in a thunderstorm",
    "crying_baby": "a baby is crying",
    "sneezing": "a person is sneezing",
    "clapping": "people are clapping",
    "breathing": "a person is breathing",
    "coughing": "a person is coughing",
    "footsteps": "footsteps can be heard as a person walks",
    "laughing": "a person is laughing",
    "brushing_teeth": "a person is brushing their teeth",
    "snoring": "a person is snoring",
    "drinking_sipping": "a person is drinking in sips",
    "door_wood_knock": "someone is knocking on a wooden door",
    "mouse_click": "a computer mouse is being clicked",
    "keyboard_typing": "someone is typing on a keyboard",
    "door_wood_creaks": "a wooden door is creaking",
    "can_opening": "a drink can is being opened",
    "washing_machine": "a washing machine is running",
    "vacuum_cleaner": "a vacuum cleaner is running",
    "clock_alarm": "an alarm clock is ringing",
    "clock_tick": "a clock is ticking",
    "glass_breaking": "glass is breaking",
    "helicopter": "a helicopter is flying overhead",
    "chainsaw": "a chainsaw is cutting wood",
    "siren": "a siren is wailing",
    "car_horn": "a car horn is honking",
    "engine": "an engine is running",
    "train": "a train is passing by",
    "church_bells": "church bells are ringing",
    "airplane": "an airplane is flying overhead",
    "fireworks": "fireworks are exploding",
    "hand_saw": "someone is cutting wood with a hand saw",
}
"""The one reference caption of each class, in the order of ``target``. ESC-50 has no captions of its own: a caption
score on it depends on the sentence chosen, so that these are fixed."""


def read(root: Path, *, subset: str = "esc50", fold: str | None = None) -> Layout:
    """List the clips of ``meta/esc50.csv`` that are in ``audio/``; clusters are source recordings.

    A clip may be stored as wav (official), ogg (the original upload) or flac. Clips that the CSV lists and ``audio/``
    does not hold are no items: they are what makes a copy partial. A listed name that leads out of ``audio/``, or is
    no plain file name, is an item with an error.

    Args:
        root: the folder that holds ``audio/`` and ``meta/``, or ``ESC-50-master/`` with them.
        subset: ``esc50`` (all) or ``esc10``.
        fold: ``1`` to ``5``; None is all.

    Raises:
        UsageError: unknown subset or fold. DataError: nothing there, or a CSV that is not the official one.
    """
    if subset not in CLIPS:
        raise UsageError(f"esc50: subset={subset!r}: expected {' or '.join(CLIPS)}")
    if fold is not None and fold not in FOLDS:
        raise UsageError(f"esc50: fold={fold!r}: expected one of {', '.join(FOLDS)}")
    homes = [root, root / "ESC-50-master"]
    home = next((h for h in homes if (h / "meta" / "esc50.csv").is_file()), None)
    if home is None:
        raise DataError(f"no ESC-50 in {root}: it holds neither meta/esc50.csv nor ESC-50-master/meta/esc50.csv")
    rows = _rows(home / "meta" / "esc50.csv")
    audio = home / "audio"
    items, suffixes = [], set()
    for row, id in zip(rows, clip_ids([r["filename"] for r in rows]), strict=True):
        if (subset == "esc10" and row["esc10"] != "True") or (fold is not None and row["fold"] != fold):
            continue
        labels: dict[str, Any] = {
            "class": row["category"],
            "category": row["category"],
            "target": int(row["target"]),
            "fold": int(row["fold"]),
            "esc10": row["esc10"] == "True",
            "src_file": row["src_file"],
            "take": row["take"],
        }
        if row["category"] in SENTENCES:
            labels["captions"] = [SENTENCES[row["category"]]]
        if row.get("clip_licence"):
            labels["licence"] = row["clip_licence"]
        error = "" if _plain(row["filename"]) else "its name in esc50.csv is no plain file name in audio/: not read"
        path = None if error else _file(audio, row["filename"])
        if path is None and not error:
            continue
        items.append(Item(id, row["src_file"], path, labels=labels, split=row["fold"], error=error))
        if path is not None:
            suffixes.add(path.suffix.lower())
    if not items:
        raise DataError(f"no ESC-50 audio in {audio}: none of the {len(rows):,} clips of meta/esc50.csv is there")
    items.sort(key=lambda i: i.id)
    expected = CLIPS[subset] if fold is None else CLIPS[subset] // len(FOLDS)
    return Layout(items, f"ESC-50 ({', '.join(sorted(suffixes))})", expected)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as f:
            reader = csv.DictReader(f)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
            if missing:
                raise DataError(f"{path}: no column {missing[0]!r}; expected {', '.join(COLUMNS)}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        if any(row[c] is None for c in COLUMNS) or not row["target"].isdigit() or row["fold"] not in FOLDS:
            raise DataError(f"{path}, row {number}: incomplete, or its fold or target is not a number of the data set")
        if row["filename"] in seen or not row["filename"]:
            raise DataError(f"{path}, row {number}: filename {row['filename']!r} is empty or listed twice")
        seen.add(row["filename"])
    return rows


def _plain(name: str) -> bool:
    """No folder part in the notation of either system."""
    return "\0" not in name and name not in (".", "..") and PureWindowsPath(name).name == name


def _file(audio: Path, name: str) -> Path | None:
    stem = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in SUFFIXES else name
    return next((p for n in (name, *(stem + s for s in SUFFIXES)) if os.path.lexists(p := audio / n)), None)


INFO = dataset(
    DatasetInfo(
        name="esc50",
        version="2015",
        summary="2,000 environmental recordings of 5 s in 50 classes; subset=esc10: 400 in 10 classes",
        domain="sound",
        licence="CC BY-NC 3.0 (the ESC-10 subset: CC BY 3.0)",
        citation="K. J. Piczak, ESC: Dataset for Environmental Sound Classification, ACM Multimedia 2015, "
        "doi:10.1145/2733373.2806390",
        homepage="https://github.com/karolpiczak/ESC-50",
        read=read,
        folder="esc50",
        # GitHub makes this archive on demand and publishes no checksum; projects list differing ones. Size: README.
        archives=(
            Archive("https://github.com/karolpiczak/ESC-50/archive/master.zip", "ESC-50-master.zip", bytes=600_000_000),
        ),
        remedy="git clone https://github.com/karolpiczak/ESC-50 and name the clone esc50",
    )
)
