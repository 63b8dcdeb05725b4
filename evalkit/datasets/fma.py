"""FMA: tracks of the Free Music Archive, cut into stated excerpts; official subsets or a plain folder of tracks."""

from __future__ import annotations

import math
import re
from pathlib import Path

from evalkit.datasets import Archive, DatasetInfo, Item, Layout
from evalkit.datasets.folder import Entry, clip_ids, scan
from evalkit.datasets.manifest import FileFacts
from evalkit.errors import DataError, UsageError
from evalkit.registry import dataset

TRACKS = {"small": 8000, "medium": 25000, "large": 106574, "full": 106574}

CORRUPT = frozenset(
    (
        "001486",
        "005574",
        "065753",
        "080391",
        "098558",
        "098559",
        "098560",
        "098565",
        "098566",
        "098567",
        "098568",
        "098569",
        "098571",
        "099134",
        "105247",
        "108924",
        "108925",
        "126981",
        "127336",
        "133297",
        "143992",
    )
)
"""Tracks whose 30 s clip was cut at a wrong place, beyond the end of the recording, so that little or nothing is left:
the author's list in https://github.com/mdeff/fma/issues/8, repeated as "excerpts shorter than 30s" in the project's
wiki. The whole tracks of fma_full are not affected. Other unreadable tracks are on no list that was checked and show up
as failures."""

IN_SMALL = frozenset(("098565", "098567", "098569", "099134", "108925", "133297"))
"""Those of `CORRUPT` that fma_small holds (same wiki page); fma_medium and fma_large hold all."""

_TRACK = re.compile(r"[0-9]{3}/([0-9]{6})\.mp3", re.IGNORECASE)
_TRIMMED_SECONDS = 29.9  # the official clips last 29.98 to 30.04 s
_LEAST = 0.05


def read(root: Path, *, subset: str | None = None, excerpt: float = 10.0, most: int = 30) -> Layout:
    """List the excerpts of all tracks; clusters are tracks.

    A track is cut into consecutive excerpts of ``excerpt`` seconds from its start, without overlap, at most ``most``;
    what is left at the end is dropped. A track shorter than one excerpt is taken whole. A track whose length cannot be
    found out is one item, whole, so that reading it tells why. Ids are ``track#start``.

    Args:
        root: the folder that holds ``fma_small/`` (medium, large, full) with ``000/000002.mp3``, or any tracks.
        subset: small, medium, large or full; None is the first of these that is there, else all audio in ``root``.
        excerpt: seconds.
        most: excerpts a track.

    Raises:
        UsageError: a bad option. DataError: nothing of the data set is there.
    """
    if subset is not None and subset not in TRACKS:
        raise UsageError(f"fma: subset={subset!r}: expected one of {', '.join(TRACKS)}")
    if not _LEAST <= excerpt < math.inf:
        raise UsageError(f"fma: excerpt={excerpt}: expected seconds, at least {_LEAST}")
    if most < 1:
        raise UsageError(f"fma: most={most}: expected at least 1")
    official = subset or next((s for s in TRACKS if (root / f"fma_{s}").is_dir()), None)
    notes = [
        f"excerpts of {excerpt:g} s, consecutive from the start of each track, at most {most} a track; "
        "a shorter rest is dropped"
    ]
    if official is None:
        if not root.is_dir():
            raise DataError(f"no FMA in {root}: no such folder")
        entries, _ = scan(root)
        tracks = list(zip(clip_ids([e.name for e in entries]), entries, strict=True))
        missing, name = 0, "plain folder of tracks"
        notes.append(f"{len(tracks)} tracks in a plain folder, no official subset of FMA")
    else:
        home = root / f"fma_{official}"
        if not home.is_dir():
            raise DataError(f"no FMA subset {official!r} in {root}: it holds no fma_{official}/")
        excluded = {"small": IN_SMALL, "full": frozenset[str]()}.get(official, CORRUPT)
        found = [(m[1], e) for e in scan(home)[0] if (m := _TRACK.fullmatch(e.name)) and m[1][:3] == e.name[:3]]
        tracks = [(id, e) for id, e in found if id not in excluded]
        whole = TRACKS[official] - len(excluded)
        missing, name = max(0, whole - len(tracks)), f"fma_{official}"
        notes.append(f"{len(tracks):,} of {whole:,} tracks")
        if excluded:
            notes.append(f"{len(excluded)} known corrupt tracks excluded by name: {', '.join(sorted(excluded))}")
    if not tracks:
        raise DataError(f"no FMA track in {root if official is None else home}")
    items, short = [], 0
    with FileFacts() as facts:
        for id, entry in tracks:
            seconds = None if entry.error else _seconds(entry, facts)
            if seconds is not None and seconds < excerpt:
                short += 1
            items += _cut(id, entry, seconds, excerpt, most)
    items.sort(key=lambda i: (i.cluster, i.start))
    if short:
        notes.append(f"{short} tracks shorter than {excerpt:g} s are taken whole")
    # How many excerpts an absent track would give is known for the trimmed subsets only; elsewhere one is counted.
    each = 1 if official == "full" else max(1, min(most, int(_TRIMMED_SECONDS / excerpt)))
    if missing:
        notes.append(f"the size of the whole counts {each} for each absent track")
    return Layout(items, name, 0 if official is None else len(items) + missing * each, tuple(notes))


def _cut(id: str, entry: Entry, seconds: float | None, excerpt: float, most: int) -> list[Item]:
    labels = {"track": id}
    if seconds is None or seconds < excerpt:
        path = None if entry.error else entry.path
        return [Item(f"{id}#0", id, path, labels=labels, error=entry.error)]
    count = min(most, int(seconds / excerpt + 1e-9))
    starts = [round(i * excerpt, 6) for i in range(count)]
    return [Item(f"{id}#{s:.12g}", id, entry.path, start=s, seconds=excerpt, labels=labels) for s in starts]


def _seconds(entry: Entry, facts: FileFacts) -> float | None:
    try:
        return float(facts.get(entry.path, "seconds-1", lambda path: repr(duration(path))))
    except (OSError, ValueError):
        return None


def duration(path: Path) -> float:
    """Length of an audio file in seconds, without decoding it where its format allows.

    Raises:
        ValueError: it cannot be found out. OSError: the file cannot be opened.
    """
    import soundfile

    if not path.is_file():
        raise ValueError(f"{path}: not a file")
    try:
        info = soundfile.info(str(path))
        if info.frames > 0 and info.samplerate > 0:
            return info.frames / info.samplerate
    except soundfile.LibsndfileError:
        pass
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if container.streams.audio and container.duration:
                # Container durations include the codec's padding, which is not decoded.
                return max(0.0, container.duration / 1e6 - 0.1)
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    raise ValueError(f"{path}: no duration")


def _archive(name: str, gib: float, sha1: str) -> Archive:
    return Archive(f"https://os.unil.cloud.switch.ch/fma/{name}.zip", f"{name}.zip", f"sha1:{sha1}", int(gib * 2**30))


INFO = dataset(
    DatasetInfo(
        name="fma",
        version="rc1 (2017-05-09)",
        summary="tracks of the Free Music Archive in excerpts; subset=small: 8,000 clips of 30 s",
        domain="music",
        licence="per track, chosen by the artist (Creative Commons); metadata CC BY 4.0",
        citation="M. Defferrard et al., FMA: A Dataset for Music Analysis, ISMIR 2017, arXiv:1612.01840",
        homepage="https://github.com/mdeff/fma",
        read=read,
        folder="fma",
        # URLs, sizes (rounded) and sha1: README of https://github.com/mdeff/fma.
        archives=(
            _archive("fma_small", 7.2, "ade154f733639d52e35e32f5593efe5be76c6d70"),
            _archive("fma_medium", 22, "c67b69ea232021025fca9231fc1c7c1a063ab50b"),
            _archive("fma_large", 93, "497109f4dd721066b5ce5e5f250ec604dc78939e"),
            _archive("fma_full", 879, "0f0ace23fbe9ba30ecb7e95f763e435ea802b8ab"),
        ),
        remedy="any folder of music tracks in the place of fma is read as well, and said to be no official subset",
    )
)
