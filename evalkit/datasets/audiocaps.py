"""AudioCaps v1: captions of 10 s YouTube excerpts of AudioSet; audio that must be obtained by one's own means.

Facts from https://github.com/cdjkim/audiocaps (``dataset/``): 49,838 / 495 / 975 clips in train / val / test, one
caption a clip in train and five in the others. Videos vanish, so that "AudioCaps test" is 957, 912, 883 or some other
number of the 975 clips in the literature: see `SIZES`.
"""

from __future__ import annotations

from pathlib import Path

from evalkit.datasets import Archive, DatasetInfo, Item, Layout
from evalkit.datasets.clotho import SUFFIXES, listing, table_rows, with_audio
from evalkit.errors import DataError, UsageError
from evalkit.registry import dataset

CLIPS = {"train": 49838, "val": 495, "test": 975}
CAPTIONS = {"train": 1, "val": 5, "test": 5}
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
CSV_FOLDERS = ("", "dataset", "AUDIOCAPS")
AUDIO_FOLDERS = (
    "{split}",
    "audio/{split}",
    "wav/{split}",
    "waveforms/{split}",
    "AUDIOCAPS/audio_32000Hz/{split}",
    "audio_32000Hz/{split}",
    "audio",
    "wav",
)
NAMES = ("{id}", "{id}_{start}", "{id}_{start}_{end}", "{id}_{start_ms}_{end_ms}", "Y{id}", "Y{id}_{start}")
"""Names of a clip's file without its suffix; besides them, any of its audiocap ids."""

SIZES = {975: "test.csv as published", 957: "EnCLAP", 912: "CoNeTTE", 883: "AudioCapBench"}
"""Clips of the test split that published results are over, and whose."""

ABSENT = "no audio of this clip here: AudioCaps publishes captions only, its clips are YouTube excerpts"


def read(root: Path, *, split: str = "test", audio: str = "any", ids: str | None = None) -> Layout:
    """List the clips of ``<split>.csv``, with their captions and, where it is here, their audio; clusters are videos.

    A clip without audio stays a clip (``path`` None, ``error`` says so). Which clips have audio is part of the content
    that a run is identified by. Labels: ``captions``, ``youtube_id``, ``start_time`` (seconds), ``audiocap_ids`` and
    ``file_name`` (as aac-datasets names the clip, whatever the file here is called).

    Args:
        root: holds the caption files (or ``dataset/`` with them) and one of `AUDIO_FOLDERS` with files named as in
            `NAMES`.
        split: train, val or test.
        audio: ``any``, or ``present`` for the clips whose audio is here, alone.
        ids: a text file of YouTube ids, one a line: those clips alone (to score the 957, 912 or 883 of a publication).

    Raises:
        UsageError: unknown option value, an unreadable list of ids. DataError: no caption file, or a damaged one.
    """
    if split not in CLIPS:
        raise UsageError(f"audiocaps: split={split!r}: expected {' or '.join(CLIPS)}")
    if audio not in ("any", "present"):
        raise UsageError(f"audiocaps: audio={audio!r}: expected any or present")
    path = next((p for f in CSV_FOLDERS if (p := root / f / f"{split}.csv").is_file()), None)
    if path is None:
        raise DataError(f"no {split}.csv in {root} (nor in {' or '.join(f for f in CSV_FOLDERS if f)} there)")
    clips = _clips(path)
    if ids is not None:
        clips = _chosen(clips, Path(ids), path)
    where, files = _files(root, split)
    items = [_item(id, rows, split, files) for id, rows in sorted(clips.items())]
    notes = []
    other = sum(len(rows) != CAPTIONS[split] for rows in clips.values())
    if other:
        notes.append(f"{other:,} clips have other than {CAPTIONS[split]} captions")
    if split == "test":
        known = ", ".join(f"{n} ({who})" for n, who in SIZES.items())
        notes.append(
            f"published results on AudioCaps test are over {known} clips, those whose video was still there: "
            "values over different sets do not compare"
        )
    return with_audio("audiocaps", items, audio, f"AudioCaps v1 {split}", CLIPS[split], where, notes)


def _clips(path: Path) -> dict[str, list[dict[str, str]]]:
    """Rows by YouTube id."""
    clips: dict[str, list[dict[str, str]]] = {}
    for row in table_rows(path, COLUMNS, "audiocap_id"):
        if not row["start_time"].isdecimal():
            raise DataError(
                f"{path}, audiocap_id {row['audiocap_id']}: start_time {row['start_time']!r} is no number of seconds"
            )
        rows = clips.setdefault(row["youtube_id"], [])
        if rows and rows[0]["start_time"] != row["start_time"]:
            raise DataError(
                f"{path}: youtube_id {row['youtube_id']!r} starts at {rows[0]['start_time']} s (audiocap_id "
                f"{rows[0]['audiocap_id']}) and at {row['start_time']} s ({row['audiocap_id']}): not AudioCaps v1, "
                "whose videos have one clip each"
            )
        rows.append(row)
    return clips


def _chosen(clips: dict[str, list[dict[str, str]]], ids: Path, csv: Path) -> dict[str, list[dict[str, str]]]:
    try:
        wanted = [line.strip() for line in ids.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"audiocaps: ids={ids}: cannot be read as text ({error})") from error
    unknown = [i for i in wanted if i not in clips]
    if unknown or not wanted:
        what = f"{len(unknown):,} of {len(wanted):,} ids are not in {csv.name} ({unknown[0]!r})" if unknown else "empty"
        raise UsageError(f"audiocaps: ids={ids}: {what}; expected YouTube ids, one a line")
    return {i: clips[i] for i in wanted}


def _files(root: Path, split: str) -> tuple[str, dict[str, Path]]:
    """Audio files by name without suffix; a name in several folders is that of the first."""
    found: dict[str, Path] = {}
    where = []
    for folder in (root / f.format(split=split) for f in AUDIO_FOLDERS):
        for name in listing(folder).values():
            path = folder / name
            if path.suffix.lower() in SUFFIXES:
                found.setdefault(path.stem, path)
        if folder.is_dir():
            where.append(str(folder))
    return ", ".join(where) or str(root / split), found


def _item(id: str, rows: list[dict[str, str]], split: str, files: dict[str, Path]) -> Item:
    start = int(rows[0]["start_time"])
    own = [row["audiocap_id"] for row in rows]
    stems = [
        n.format(id=id, start=start, end=start + 10, start_ms=1000 * start, end_ms=1000 * (start + 10)) for n in NAMES
    ]
    path = next((files[s] for s in (*stems, *own) if s in files), None)
    labels = {
        "captions": [row["caption"] for row in rows],
        "youtube_id": id,
        "start_time": start,
        "audiocap_ids": own,
        "file_name": f"{id}_{start}.wav",
    }
    return Item(id, id, path, labels=labels, split=split, error="" if path else ABSENT)


_COMMIT = "d004db3ea1b01cf4fd0347dd8d27db90cadc8809"


def _archive(split: str, sha256: str, size: int) -> Archive:
    url = f"https://raw.githubusercontent.com/cdjkim/audiocaps/{_COMMIT}/dataset/{split}.csv"
    return Archive(url, f"{split}.csv", f"sha256:{sha256}", size, ".")


INFO = dataset(
    DatasetInfo(
        name="audiocaps",
        version="1",
        summary="YouTube excerpts of 10 s with one (train) or five captions each (val, test); published without audio",
        domain="sound",
        licence="captions: academic purposes only (its README); audio: that of each video",
        citation="C. D. Kim, B. Kim, H. Lee, G. Kim, AudioCaps: Generating Captions for Audios in The Wild, "
        "NAACL 2019, doi:10.18653/v1/N19-1011",
        homepage="https://github.com/cdjkim/audiocaps",
        read=read,
        folder="audiocaps",
        # Hashes of the files of that commit, computed from them: the authors publish none.
        archives=(
            _archive("test", "b91c4b7ded2f4f6e7db5b9c4983dc1e1dca3d556f505b61e3fd65cac7e1c638a", 402_246),
            _archive("val", "dab1c96641d5f3053ddb99dca3949450da9a75737bda53e11cc0aa8b102be0c3", 171_918),
            _archive("train", "c0c5223db682b3bf724ce7e7ce58d5b36929f74572e8526a7211f92d2eef7c8e", 3_576_723),
        ),
        remedy="git clone https://github.com/cdjkim/audiocaps audiocaps (captions, in dataset/); audio of your own "
        "goes into audiocaps/<split>/<youtube_id>.wav",
    )
)
