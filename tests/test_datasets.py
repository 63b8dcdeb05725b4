"""Readers against small official layouts and the real partial copies; specs to clips; content manifests."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from evalkit import registry
from evalkit.audio import read_clip
from evalkit.datasets import DatasetInfo, Item
from evalkit.datasets.esc50 import COLUMNS
from evalkit.datasets.fma import CORRUPT, IN_SMALL, duration
from evalkit.datasets.folder import clip_ids
from evalkit.datasets.load import Loaded, load_dataset
from evalkit.datasets.manifest import FileFacts, file_sha256, manifest, source_hash
from evalkit.errors import AudioError, DataError, UsageError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVALKIT_DATA", raising=False)
    return tmp_path / "cache"


def tone(path: Path, seconds: float = 0.1, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.sin(np.arange(round(seconds * rate)) * 0.3).astype(np.float32)
    kind = {"format": "WAV"} if path.suffix.lower() == ".wav" else {}
    soundfile.write(path, samples, rate, **kind)
    return path


def ids(loaded: Loaded) -> list[str]:
    return [i.id for i in loaded.layout.items]


# -- ESC-50 -----------------------------------------------------------------------------------------------------------


def esc50_rows() -> list[dict[str, str]]:
    rows = []
    for fold, src, take, target, name, ten in (
        ("1", "100032", "A", "0", "dog", "True"),
        ("1", "100038", "A", "14", "chirping_birds", "False"),
        ("2", "50667", "A", "41", "chainsaw", "True"),
        ("2", "50667", "B", "41", "chainsaw", "True"),
        ("5", "9032", "A", "0", "dog", "True"),
    ):
        rows.append(
            {
                "filename": f"{fold}-{src}-{take}-{target}.wav",
                "fold": fold,
                "target": target,
                "category": name,
                "esc10": ten,
                "src_file": src,
                "take": take,
            }
        )
    return rows


def make_esc50(root: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> None:
    (root / "meta").mkdir(parents=True)
    (root / "audio").mkdir()
    with (root / "meta" / "esc50.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("top", ["", "ESC-50-master"])
def test_esc50_official_layout(tmp_path: Path, top: str) -> None:
    make_esc50(tmp_path / "esc50" / top, esc50_rows())
    for row in esc50_rows()[:4]:  # the fifth clip is absent
        tone(tmp_path / "esc50" / top / "audio" / row["filename"])
    loaded = load_dataset("esc50", tmp_path)
    assert ids(loaded) == ["1-100032-A-0", "1-100038-A-14", "2-50667-A-41", "2-50667-B-41"]
    assert loaded.coverage == "4 of 2,000 clips"
    assert loaded.name == "esc50@subset=esc50"
    first = loaded.layout.items[0]
    assert (first.cluster, first.split) == ("100032", "1")
    assert first.labels["class"] == first.labels["category"] == "dog"
    assert (first.labels["target"], first.labels["fold"], first.labels["esc10"]) == (0, 1, True)
    assert loaded.layout.items[2].cluster == loaded.layout.items[3].cluster == "50667"


def test_esc50_options(tmp_path: Path) -> None:
    make_esc50(tmp_path / "esc50", esc50_rows())
    for row in esc50_rows():
        tone(tmp_path / "esc50" / "audio" / row["filename"])
    assert load_dataset("esc50@subset=esc10", tmp_path).coverage == "4 of 400 clips"
    some = load_dataset("esc50@fold=2@subset=esc10", tmp_path)
    assert ids(some) == ["2-50667-A-41", "2-50667-B-41"]
    assert some.coverage == "2 of 80 clips"
    assert some.name == "esc50@subset=esc10@fold=2"
    assert load_dataset(some.name, tmp_path).layout == some.layout
    for bad in ("esc50@fold=6", "esc50@subset=esc20", "esc50@folds=1"):
        with pytest.raises(UsageError, match=r"fold|subset"):
            load_dataset(bad, tmp_path)


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/x.wav", "sub/x.wav", "..", "..\\x.wav", "C:x.wav"])
def test_esc50_name_that_leaves_the_folder_is_an_error_item(tmp_path: Path, name: str) -> None:
    rows = esc50_rows()
    rows[0]["filename"] = name
    make_esc50(tmp_path / "esc50", rows)
    tone(tmp_path / "esc50" / "secret.wav")
    for row in rows[1:]:
        tone(tmp_path / "esc50" / "audio" / row["filename"])
    items = load_dataset("esc50", tmp_path).layout.items
    bad = [i for i in items if i.error]
    assert len(items) == 5 and len(bad) == 1
    assert bad[0].path is None and "plain file name" in bad[0].error


def test_esc50_foreign_csv(tmp_path: Path) -> None:
    for number, (rows, columns, says) in enumerate(
        (
            (esc50_rows(), COLUMNS[:-2], "no column 'src_file'"),
            ([*esc50_rows(), esc50_rows()[0]], COLUMNS, "row 7: .*listed twice"),
            ([esc50_rows()[0] | {"fold": "9"}], COLUMNS, "row 2: "),
        )
    ):
        root = tmp_path / str(number)
        make_esc50(root / "esc50", rows, columns)
        with pytest.raises(DataError, match=says):
            load_dataset("esc50", root)
    (tmp_path / "bytes" / "esc50" / "meta").mkdir(parents=True)
    (tmp_path / "bytes" / "esc50" / "meta" / "esc50.csv").write_bytes(b"\xff\xfe\x00filename")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        load_dataset("esc50", tmp_path / "bytes")


def test_esc50_csv_without_audio_is_absent(tmp_path: Path) -> None:
    make_esc50(tmp_path / "esc50", esc50_rows())
    with pytest.raises(DataError, match="none of the 5 clips"):
        load_dataset("esc50", tmp_path)


def test_esc50_real(shared: Path) -> None:
    loaded = load_dataset("esc50", shared / "data")
    assert loaded.coverage == "400 of 2,000 clips"
    ten = load_dataset("esc50@subset=esc10", shared / "data").layout
    assert (len(ten.items), ten.expected) == (400, 400)
    assert Counter(i.split for i in ten.items) == dict.fromkeys("12345", 80)
    assert set(Counter(i.labels["class"] for i in ten.items).values()) == {40}
    folds: dict[str, set[str]] = {}
    for i in ten.items:
        folds.setdefault(i.cluster, set()).add(i.split)
        assert i.labels["src_file"] == i.id.split("-")[1] and i.path is not None
    assert all(len(f) == 1 for f in folds.values())  # a source recording never straddles folds
    lengths = [duration(i.path) for i in ten.items if i.path]
    assert min(lengths) < 4.9 and max(lengths) > 7.2  # hence the explicit crop/pad rule


# -- VCTK -------------------------------------------------------------------------------------------------------------


def make_vctk(root: Path) -> None:
    for speaker, numbers in (("p225", "001 002"), ("p315", "003"), ("s5", "004")):
        for number in numbers.split():
            for mic in (1, 2) if speaker != "p315" else (1,):
                tone(root / "wav48_silence_trimmed" / speaker / f"{speaker}_{number}_mic{mic}.flac")
    (root / "txt" / "p225").mkdir(parents=True)
    (root / "txt" / "p225" / "p225_001.txt").write_text("Please call Stella.\n")


@pytest.mark.parametrize("top", ["", "VCTK-Corpus-0.92"])
def test_vctk_092(tmp_path: Path, top: str) -> None:
    make_vctk(tmp_path / "vctk" / top)
    one = load_dataset("vctk", tmp_path)
    assert one.name == "vctk@mic=1" and one.layout.name == "VCTK 0.92, mic1"
    assert ids(one) == ["p225_001", "p225_002", "p315_003", "s5_004"]
    assert one.coverage == "4 of 44,455 clips"
    assert one.layout.items[0].labels == {"speaker": "p225", "transcript": "Please call Stella."}
    assert "transcript" not in one.layout.items[2].labels
    two = load_dataset("vctk@mic=2", tmp_path)
    assert ids(two) == ["p225_001", "p225_002", "s5_004"]
    assert two.coverage == "3 of 43,873 clips"
    assert all(i.path is not None and i.path.stem.endswith("_mic2") for i in two.layout.items)
    for bad in ("vctk@mic=3", "vctk@mic=one"):
        with pytest.raises(UsageError, match="mic"):
            load_dataset(bad, tmp_path)


def test_vctk_080(tmp_path: Path) -> None:
    tone(tmp_path / "vctk" / "VCTK-Corpus" / "wav48" / "p226" / "p226_010.wav")
    tone(tmp_path / "vctk" / "VCTK-Corpus" / "wav48" / "p226" / "notes.wav")
    loaded = load_dataset("vctk", tmp_path)
    assert ids(loaded) == ["p226_010"] and loaded.layout.name == "VCTK 0.80"
    assert "unconfirmed" in loaded.layout.notes[0]
    with pytest.raises(UsageError, match="first microphone only"):
        load_dataset("vctk@mic=2", tmp_path)


def test_vctk_real(shared: Path) -> None:
    loaded = load_dataset("vctk", shared / "data")
    assert loaded.layout.name == "VCTK flat 16 kHz" and len(loaded.layout.items) == 40
    assert Counter(i.cluster for i in loaded.layout.items) == dict.fromkeys(("p225", "p226", "p227", "p228"), 10)
    assert all(i.labels["transcript"] for i in loaded.layout.items)


# -- LibriSpeech ------------------------------------------------------------------------------------------------------


def test_librispeech(tmp_path: Path) -> None:
    chapter = tmp_path / "librispeech" / "LibriSpeech" / "dev-clean" / "84" / "121123"
    for number in ("0000", "0001"):
        tone(chapter / f"84-121123-{number}.flac")
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\n")
    loaded = load_dataset("librispeech@subset=dev-clean", tmp_path)
    assert ids(loaded) == ["84-121123-0000", "84-121123-0001"]
    assert loaded.coverage == "2 of 2,703 clips"
    assert loaded.layout.items[0].labels == {"speaker": "84", "chapter": "121123", "transcript": "GO DO YOU HEAR"}
    assert loaded.layout.items[1].labels == {"speaker": "84", "chapter": "121123"}
    with pytest.raises(UsageError, match="train-other-500"):
        load_dataset("librispeech@subset=test", tmp_path)


def test_librispeech_real(shared: Path) -> None:
    loaded = load_dataset("librispeech", shared / "data")
    assert loaded.coverage == "30 of 2,620 clips"
    assert len({i.cluster for i in loaded.layout.items}) == 24
    assert all(i.labels["transcript"].isupper() for i in loaded.layout.items)


# -- FSDD -------------------------------------------------------------------------------------------------------------


def test_fsdd(tmp_path: Path) -> None:
    home = tmp_path / "fsdd" / "free-spoken-digit-dataset-1.0.10" / "recordings"
    for name in ("7_jackson_32.wav", "7_jackson_4.wav", "readme.wav"):
        tone(home / name)
    loaded = load_dataset("fsdd", tmp_path)
    assert {i.id: i.split for i in loaded.layout.items} == {"7_jackson_32": "train", "7_jackson_4": "test"}
    assert loaded.layout.notes == ("1 other files in recordings/ passed over",)


def test_fsdd_real(shared: Path) -> None:
    layout = load_dataset("fsdd", shared / "data").layout
    assert len(layout.items) == layout.expected == 3000 and layout.notes == ()
    assert set(Counter(i.cluster for i in layout.items).values()) == {500}
    assert Counter(i.split for i in layout.items) == {"test": 300, "train": 2700}


# -- FMA --------------------------------------------------------------------------------------------------------------


def test_fma_excerpts(tmp_path: Path) -> None:
    root = tmp_path / "fma"
    tone(root / "a" / "long.wav", 3.45)
    tone(root / "exact.wav", 3.0)
    tone(root / "brief.wav", 0.4)
    (root / "broken.mp3").write_bytes(b"no audio at all")
    (root / "folder.wav").mkdir()
    loaded = load_dataset("fma@excerpt=1@most=30", tmp_path)
    assert {i.id: (i.start, i.seconds) for i in loaded.layout.items} == {
        "a/long#0": (0, 1),
        "a/long#1": (1, 1),
        "a/long#2": (2, 1),
        "brief#0": (0, None),
        "broken#0": (0, None),
        "exact#0": (0, 1),
        "exact#1": (1, 1),
        "exact#2": (2, 1),
        "folder#0": (0, None),
    }
    assert loaded.name == "fma@excerpt=1@most=30"
    assert any("excerpts of 1 s" in n for n in loaded.layout.notes)
    assert "1 tracks shorter than 1 s are taken whole" in loaded.layout.notes
    assert {i.cluster for i in loaded.layout.items} == {"a/long", "brief", "broken", "exact", "folder"}
    for i in loaded.layout.items:
        assert i.path is not None
        if i.cluster in ("broken", "folder"):
            with pytest.raises(AudioError):
                read_clip(i.path, start=i.start, seconds=i.seconds)
        else:
            assert read_clip(i.path, start=i.start, seconds=i.seconds).length == (8000 if i.seconds else 3200)
    assert len(load_dataset("fma@excerpt=1@most=2", tmp_path).layout.items) == 7
    for bad in ("fma@excerpt=0", "fma@excerpt=nan", "fma@most=0", "fma@subset=tiny"):
        with pytest.raises(UsageError):
            load_dataset(bad, tmp_path)


def test_fma_official_layout_leaves_out_the_corrupt_by_name(tmp_path: Path) -> None:
    home = tmp_path / "fma" / "fma_small"
    for name in ("000/000002", "000/000005", "133/133297", "098/098565"):
        tone(home / f"{name}.mp3", 2.1)
    tone(home / "001" / "000777.mp3", 2.1)  # in the wrong folder
    tone(tmp_path / "fma" / "fma_full" / "133" / "133297.mp3", 2.1)
    loaded = load_dataset("fma@excerpt=1", tmp_path)
    assert ids(loaded) == ["000002#0", "000002#1", "000005#0", "000005#1"]
    assert loaded.layout.name == "fma_small"
    assert "2 of 7,994 tracks" in loaded.layout.notes
    assert any("133297" in n and "excluded by name" in n for n in loaded.layout.notes)
    assert loaded.layout.expected == 4 + 7992 * 29
    full = load_dataset("fma@subset=full@excerpt=1", tmp_path)  # whole recordings were not cut at a wrong place
    assert ids(full) == ["133297#0", "133297#1"]
    with pytest.raises(DataError, match="holds no fma_large/"):
        load_dataset("fma@subset=large", tmp_path)
    assert IN_SMALL < CORRUPT and len(CORRUPT) == 21


def test_fma_last_excerpt_of_a_real_mp3_can_be_read(shared: Path, tmp_path: Path) -> None:
    source = sorted((shared / "data" / "fma").glob("*Vibe*.ogg"))[0]
    samples, rate = soundfile.read(source, stop=44100 * 31)
    soundfile.write(tmp_path / "x.mp3", samples, rate)
    (tmp_path / "fma").mkdir()
    (tmp_path / "x.mp3").rename(tmp_path / "fma" / "x.mp3")
    items = load_dataset("fma", tmp_path).layout.items
    assert [i.start for i in items] == [0, 10, 20]
    assert items[2].path and read_clip(items[2].path, start=20, seconds=10).length == 441000


def test_fma_real(shared: Path) -> None:
    layout = load_dataset("fma", shared / "data").layout
    assert Counter(i.cluster.split("_")[-1] for i in layout.items) == {"Fishin.hq": 13, "Fairy.hq": 11, "Ace.hq": 6}
    assert layout.name == "plain folder of tracks" and any("no official subset" in n for n in layout.notes)


# -- folder -----------------------------------------------------------------------------------------------------------


def test_folder(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    names = ["a.wav", "b.WAV", "sub/c.flac", "sub/two\nlines.wav", "sub/$(rm -rf) ; 'x' \\.wav", "sub/-rf.wav"]
    for name in names:
        tone(root / name)
    (root / "empty.wav").touch()
    (root / "text.wav").write_text("not audio")
    (root / "notes.txt").write_text("not listed")
    (root / "dir.wav").mkdir()
    tone(root / "dir.wav" / "inside.wav")
    tone(root / ".hidden.wav")
    loaded = load_dataset(f"folder:{root}")
    assert ids(loaded) == sorted(
        [
            "a",
            "b",
            "sub/c",
            "sub/two\nlines",
            "sub/$(rm -rf) ; 'x' \\",
            "sub/-rf",
            "empty",
            "text",
            "dir",
        ]
    )
    assert loaded.layout.notes == ("1 hidden files or folders passed over",)
    assert [i.cluster for i in loaded.layout.items] == ids(loaded)
    assert loaded.info.domain == "sound"
    assert loaded.name == f"folder:{root}@domain=sound@cluster=file"
    readable = 0
    for item in loaded.layout.items:
        assert item.path is not None and not item.error
        try:
            readable += read_clip(item.path).length == 800
        except AudioError:
            assert item.id in ("dir", "empty", "text")
    assert readable == len(names)
    music = load_dataset(f"folder:{root}@domain=music@cluster=parent")
    assert music.info.domain == "music" and {i.cluster for i in music.layout.items} == {".", "sub"}
    assert registry.get("datasets", "folder").domain == "sound"


def test_folder_duplicate_stems_keep_their_suffix(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac", "a.wav.ogg", "b.wav"):
        tone(tmp_path / name)
    assert ids(load_dataset(f"folder:{tmp_path}")) == ["a.flac", "a.wav", "a.wav.ogg", "b"]


@given(st.lists(st.text("ab.wavogmp3/", min_size=1, max_size=9), unique=True, max_size=12))
def test_clip_ids_are_unique(stems: list[str]) -> None:
    names = sorted({s + e for s in stems for e in ("", ".wav", ".OGG")})
    assert len(set(clip_ids(names))) == len(names)


def test_folder_links(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    tone(root / "a.wav")
    tone(root / "sub" / "b.wav")
    tone(tmp_path / "mine-not" / "secret.wav")  # its path begins with the folder's own
    (root / "out.wav").symlink_to("../mine-not/secret.wav")
    (root / "outdir").symlink_to("../mine-not")
    (root / "in.wav").symlink_to("a.wav")
    (root / "loop").symlink_to(".")
    (root / "broken.wav").symlink_to("nothing.wav")
    (tmp_path / "alias").symlink_to("mine")
    for place in (root, tmp_path / "alias"):
        items = {i.id: i for i in load_dataset(f"folder:{place}").layout.items}
        assert set(items) == {"a", "sub/b", "out", "outdir", "in", "broken"}
        assert [i for i in items if items[i].error] == ["out", "outdir"]
        assert items["out"].path is None and "leaves the folder" in items["out"].error
        with pytest.raises(AudioError, match="No such file"):
            read_clip(items["broken"].path or "")


def test_folder_that_cannot_be_listed_is_an_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tone(tmp_path / "a.wav")
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def scandir(path: os.PathLike[str]) -> object:
        if os.fspath(path).rstrip("/").endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    items = load_dataset(f"folder:{tmp_path}").layout.items
    assert [(i.id, i.error) for i in items] == [("a", ""), ("locked", "folder cannot be listed (Permission denied)")]


def test_folder_names_that_are_not_utf8(tmp_path: Path) -> None:
    try:
        tone(tmp_path / "a.wav").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    items = load_dataset(f"folder:{tmp_path}").layout.items
    assert [i.id for i in items] == ["\\xff"]
    json.dumps(items[0].id, ensure_ascii=False).encode()
    assert len(manifest(items).sources["\\xff"]) == 64


def test_folder_errors(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    for spec, says in (
        (f"folder:{tmp_path}", "no audio file in it"),
        (f"folder:{tmp_path}/y", "no such folder"),
        (f"folder:{tmp_path}/x.txt", "is a file"),
    ):
        with pytest.raises(DataError, match=says):
            load_dataset(spec)
    with pytest.raises(UsageError, match="needs path"):
        load_dataset("folder")
    with pytest.raises(UsageError, match="domain='noise'"):
        load_dataset(f"folder:{tmp_path}@domain=noise")


# -- load_dataset -----------------------------------------------------------------------------------------------------


def test_absent_data_says_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("librispeech@subset=dev-other", tmp_path / "my data")
    text = str(caught.value)
    assert f"{tmp_path}/my data/librispeech: no such folder" in text
    assert f"evalkit download librispeech --only dev-other --data-root '{tmp_path}/my data'" in text
    assert "curl -L -C - -o dev-other.tar.gz https://www.openslr.org/resources/12/dev-other.tar.gz" in text
    assert "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365" in text
    assert "--from dev-other.tar.gz" in text and "314 MB" in text and "CC BY 4.0" in text


def test_data_root_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="--data-root DIR or set EVALKIT_DATA"):
        load_dataset("fsdd")
    tone(tmp_path / "fsdd" / "recordings" / "0_theo_0.wav")
    monkeypatch.setenv("EVALKIT_DATA", str(tmp_path))
    assert load_dataset("fsdd").root == tmp_path / "fsdd"
    with pytest.raises(DataError, match="no such folder"):
        load_dataset("fsdd", tmp_path / "elsewhere")


def test_user_file_with_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from evalkit.datasets import DatasetInfo, Item, Layout\n"
        "def read(root, *, n: int = 2, level: float = 0.5, loud: bool = False):\n"
        "    assert isinstance(n, int) and isinstance(level, float) and isinstance(loud, bool)\n"
        "    return Layout([Item(str(i), 'c', make=lambda: None, make_key=f'{i}:{level}') for i in range(n)], 'x', 5)\n"
        "INFO = DatasetInfo('mine', '1', '', 'sound', '', '', '', read, generated=True)\n"
        "TWICE = DatasetInfo('t', '1', '', 'sound', '', '', '', lambda r: Layout([Item('a', 'c')] * 2, 'x', 2),"
        " generated=True)\nOTHER = 1\n"
    )
    loaded = load_dataset(f"{tmp_path}/mine.py:INFO@n=3@loud=yes")
    assert loaded.name == f"{tmp_path}/mine.py:INFO@n=3@level=0.5@loud=true" and loaded.coverage == "3 of 5 clips"
    assert load_dataset(loaded.name).name == loaded.name
    with pytest.raises(UsageError, match="n='x' is not a int"):
        load_dataset(f"{tmp_path}/mine.py:INFO@n=x")
    with pytest.raises(UsageError, match="not a DatasetInfo"):
        load_dataset(f"{tmp_path}/mine.py:OTHER")
    with pytest.raises(DataError, match="two clips share the id 'a'"):
        load_dataset(f"{tmp_path}/mine.py:TWICE")


@pytest.mark.parametrize("name", ["esc50", "vctk", "fma", "librispeech", "fsdd"])
def test_declarations_are_complete(name: str) -> None:
    info: DatasetInfo = registry.get("datasets", name)
    assert info.archives and info.licence and info.citation and info.homepage.startswith("https://") and info.version
    lengths = {"sha256": 64, "sha1": 40, "md5": 32}
    for archive in info.archives:
        assert archive.url.startswith("https://") and archive.filename
        if archive.checksum:
            kind, _, value = archive.checksum.partition(":")
            assert len(value) == lengths[kind] and int(value, 16)


# -- manifest ---------------------------------------------------------------------------------------------------------


def test_manifest_identity(tmp_path: Path) -> None:
    a, b, c = tone(tmp_path / "a.wav"), tone(tmp_path / "b.wav"), tone(tmp_path / "c.wav", 0.2)
    items = [Item("a", "x", a), Item("b", "y", b), Item("c", "z", c), Item("c#1", "z", c, start=0.1, seconds=0.1)]
    m = manifest(items)
    assert m.sources["a"] == m.sources["b"] and len(set(m.sources.values())) == 3
    assert (m.files, m.bytes) == (3, sum(p.stat().st_size for p in (a, b, c)))
    assert manifest(reversed(items)).sha256 == m.sha256
    assert manifest(items[:3]).sha256 != m.sha256
    assert manifest([Item("other", "x", a), *items[1:]]).sha256 != m.sha256
    moved = tmp_path / "elsewhere" / "a.wav"
    moved.parent.mkdir()
    moved.write_bytes(a.read_bytes())
    assert manifest([Item("a", "x", moved), *items[1:]]).sha256 == m.sha256
    moved.write_bytes(a.read_bytes()[:-1] + b"\x01")
    assert manifest([Item("a", "x", moved), *items[1:]]).sha256 != m.sha256


def test_manifest_of_generated_and_unreadable(tmp_path: Path) -> None:
    (tmp_path / "dir.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    items = [
        Item("g1", "c", make=lambda: None, make_key="scenes-1:7"),
        Item("g2", "c", make=lambda: None, make_key="scenes-1:8"),
        Item("gone", "c", tmp_path / "gone.wav"),
        Item("dir", "c", tmp_path / "dir.wav"),
        Item("pipe", "c", tmp_path / "pipe.wav"),
        Item("nul", "c", tmp_path / "a\0b.wav"),
        Item("bad", "c", error="leads out"),
        Item("long", "c", tmp_path / ("x" * 300)),
    ]
    sources = manifest(items).sources
    assert sources["g1"] != sources["g2"] and len(sources["g1"]) == 64
    assert {k: v for k, v in sources.items() if v.startswith("unreadable:")} == {
        "gone": "unreadable:No such file or directory",
        "dir": "unreadable:is a directory",
        "pipe": "unreadable:is not a regular file",
        "nul": "unreadable:not a file name",
        "bad": "unreadable:leads out",
        "long": "unreadable:File name too long",
    }


def test_file_hash_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert source_hash(Item("a", "c", path), "ff") == hashlib.sha256(b'["file", "ff", 0.0, null]').hexdigest()


def test_facts_are_kept_until_the_file_changes(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    calls = []

    def compute(p: Path) -> str:
        calls.append(p)
        return p.read_text()

    def ask() -> str:
        with FileFacts(own_cache) as facts:
            return facts.get(path, "text", compute)

    assert [ask(), ask()] == ["one", "one"] and len(calls) == 2  # too fresh to be kept
    monkeypatch.setattr("evalkit.datasets.manifest._SETTLED_NS", -(10**12))
    assert [ask(), ask(), ask()] == ["one"] * 3 and len(calls) == 3
    path.write_bytes(b"two")
    assert ask() == "two"  # same size, another time


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes files made just now for old ones: the change time of a file cannot be set."""
    monkeypatch.setattr("evalkit.datasets.manifest._SETTLED_NS", -(10**12))


@pytest.mark.parametrize("trouble", ["file in the way", "corrupt", "locked"])
def test_cache_trouble_changes_no_answer(tmp_path: Path, settled: None, trouble: str) -> None:
    path = tone(tmp_path / "a.wav")
    want = manifest([Item("a", "c", path)], tmp_path / "good").sha256
    folder = tmp_path / "bad"
    if trouble == "file in the way":
        folder.write_text("")
    else:
        folder.mkdir()
        (folder / "files.sqlite").write_bytes(b"this is not a database, not at all" * 100)
    if trouble == "locked":
        (folder / "files.sqlite").unlink()
        manifest([Item("a", "c", path)], folder)
        holder = sqlite3.connect(folder / "files.sqlite", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")  # readers may go on
    assert manifest([Item("a", "c", path)], folder).sha256 == want


def test_second_manifest_reads_nothing(tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tone(tmp_path / f"{i}.wav", 0.1 + i / 100) for i in range(5)]
    items = [Item(p.stem, "c", p) for p in paths]
    first = manifest(items)
    monkeypatch.setattr("evalkit.datasets.manifest._hash", lambda path: pytest.fail(f"{path} was read again"))
    assert manifest(items) == first
