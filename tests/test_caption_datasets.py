"""Captioned data sets: layouts, what is absent, damaged files; ESC-50's sentences; classification by caption."""

from __future__ import annotations

import ast
import csv
import hashlib
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

import evalkit.datasets.audiocaps as audiocaps
import evalkit.datasets.clotho as clotho
from evalkit.datasets.download import archive_name, download
from evalkit.datasets.esc50 import SENTENCES
from evalkit.datasets.load import load_dataset
from evalkit.datasets.manifest import UNREADABLE, manifest
from evalkit.errors import DataError, NotApplicable, UsageError
from evalkit.metrics.caption_labels import CLASSES, answer, label_accuracy, stem, unparsable

HEAD = ["file_name", *clotho.CAPTIONS]


def tone(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(1600) / 10), 16000)


def write(path: Path, rows: list[list[str]], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as f:
        csv.writer(f).writerows(rows)
    return path


def captions(name: str) -> list[str]:
    return [f"{name} said {k}" for k in range(5)]


def make_clotho(root: Path, names: list[str], split: str = "evaluation", folder: str = "") -> Path:
    rows = [HEAD, *([n, *captions(n)] for n in names)]
    return write(root / "clotho" / folder / f"clotho_captions_{split}.csv", rows)


# -- Clotho -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [f.format(split="evaluation") for f in clotho.AUDIO_FOLDERS])
@pytest.mark.parametrize("csv_folder", clotho.CSV_FOLDERS)
def test_clotho_layouts(tmp_path: Path, place: str, csv_folder: str) -> None:
    make_clotho(tmp_path, ["b c.wav", "a.wav", "gone.wav"], folder=csv_folder)
    tone(tmp_path / "clotho" / place / "b c.wav")
    tone(tmp_path / "clotho" / place / "a.flac")  # converted
    loaded = load_dataset("clotho", tmp_path)
    a, b, gone = loaded.layout.items
    assert [i.id for i in loaded.layout.items] == ["evaluation/a", "evaluation/b c", "evaluation/gone"]
    assert a.path is not None and a.path.name == "a.flac" and b.path is not None and not a.error and not b.error
    assert gone.path is None and "no audio of this clip here" in gone.error and "download clotho" in gone.error
    assert a.labels == {"captions": captions("a.wav"), "file_name": "a.wav"} and a.cluster == a.id
    assert loaded.coverage == "3 of 1,045 clips" and "2 of 3 clips have audio here" in loaded.layout.notes[0]
    assert loaded.name == "clotho@split=evaluation@audio=any@cluster=file"
    present = load_dataset("clotho@audio=present", tmp_path)
    assert [i.id for i in present.layout.items] == [a.id, b.id] and present.coverage == "2 of 1,045 clips"


def test_clotho_splits_options_and_absence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no such folder.*evalkit download clotho --data-root"):
        load_dataset("clotho", tmp_path)
    make_clotho(tmp_path, ["a.wav"], split="development")
    assert load_dataset("clotho@split=development", tmp_path).layout.expected == 3839
    with pytest.raises(DataError, match=r"no clotho_captions_evaluation\.csv in"):
        load_dataset("clotho", tmp_path)
    with pytest.raises(DataError, match="audio=present: none of the 1 clips"):
        load_dataset("clotho@split=development@audio=present", tmp_path)
    for bad in ("clotho@split=test", "clotho@audio=no", "clotho@cluster=clip", "clotho@subset=x"):
        with pytest.raises(UsageError):
            load_dataset(bad, tmp_path)


def test_clotho_names_with_spaces_around_them(tmp_path: Path) -> None:
    """Three published names begin with a space, which archivers and file systems may drop."""
    make_clotho(tmp_path, [" kept.wav", " dropped.wav", "UPPER.WAV"])
    tone(tmp_path / "clotho/evaluation/ kept.wav")
    tone(tmp_path / "clotho/evaluation/dropped.wav")
    tone(tmp_path / "clotho/evaluation/UPPER.WAV")
    items = {i.labels["file_name"]: i for i in load_dataset("clotho", tmp_path).layout.items}
    assert [i.path.name if i.path else None for i in items.values()] == [
        " dropped.wav".strip(),
        " kept.wav",
        "UPPER.WAV",
    ]


def test_clotho_clusters_by_uploader(tmp_path: Path) -> None:
    names = ["a.wav", "b.wav", "c.wav", "d.wav", " e.wav"]
    make_clotho(tmp_path, names)
    with pytest.raises(DataError, match=r"no clotho_metadata_evaluation\.csv"):
        load_dataset("clotho@cluster=uploader", tmp_path)
    head = ["file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license"]
    who = ["josé", "josé", "Not found", "", "eve"]
    rows = [head, *([n.strip(), "k", "1", "x", "[0, 1]", w, "cc0"] for n, w in zip(names, who, strict=True))]
    path = write(tmp_path / "clotho/clotho_metadata_evaluation.csv", rows, "latin-1")
    items = {i.labels["file_name"]: i for i in load_dataset("clotho@cluster=uploader", tmp_path).layout.items}
    assert items["a.wav"].cluster == items["b.wav"].cluster == "uploader josé"
    assert items["c.wav"].cluster == "evaluation/c" and items["d.wav"].cluster == "evaluation/d"
    assert items[" e.wav"].cluster == "uploader eve"
    labels = load_dataset("clotho", tmp_path).layout.items[1].labels
    assert set(labels) == {"captions", "file_name"}, "metadata beside it does not change what is scored"
    write(path, [["file_name", "x"], ["a.wav", "1"]])
    with pytest.raises(DataError, match="manufacturer"):
        load_dataset("clotho@cluster=uploader", tmp_path)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([HEAD[:5], ["a.wav", "1", "2", "3", "4"]], r"no column 'caption_5'"),
        ([HEAD, ["a.wav", "1", "2", "3", "4"]], r"line 2: caption_5 is empty"),
        ([HEAD, ["a.wav", "1", "2", " ", "4", "5"]], r"line 2: caption_3 is empty"),
        ([HEAD, ["a.wav", *"12345"], ["a.wav", *"12345"]], r"line 3: file_name 'a\.wav' is also that of line 2"),
        ([HEAD, ["a.wav", *"123456"]], r"line 2: more cells"),
        ([HEAD], r"no rows"),
        ([[]], r"no column 'file_name'"),
    ],
)
def test_damaged_caption_files(tmp_path: Path, rows: list[list[str]], what: str) -> None:
    path = write(tmp_path / "clotho/clotho_captions_evaluation.csv", rows)
    with pytest.raises(DataError, match=what) as caught:
        load_dataset("clotho", tmp_path)
    assert str(path) in str(caught.value)


def test_caption_files_of_other_encodings(tmp_path: Path) -> None:
    path = make_clotho(tmp_path, ["naïve.wav"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_dataset("clotho", tmp_path).layout.items[0].labels["file_name"] == "naïve.wav"
    path.write_bytes("file_name,caption_1\nna\xefve.wav,x\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read as CSV"):
        load_dataset("clotho", tmp_path)


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/passwd", "C:\\x.wav", "a/b.wav", ".."])
def test_names_that_lead_elsewhere_are_not_read(tmp_path: Path, name: str) -> None:
    make_clotho(tmp_path, [name])
    tone(tmp_path / "clotho" / "secret.wav")
    tone(tmp_path / "clotho/evaluation/b.wav")
    (item,) = load_dataset("clotho", tmp_path).layout.items
    assert item.path is None and "no plain file name" in item.error


def test_clotho_as_published(shared: Path) -> None:
    sizes = {s: load_dataset(f"clotho@split={s}", shared / "data").layout for s in clotho.CLIPS}
    assert {s: len(layout.items) for s, layout in sizes.items()} == clotho.CLIPS
    evaluation = sizes["evaluation"]
    assert "12 of 1,045 clips have audio here" in evaluation.notes[0]
    assert all(len(i.labels["captions"]) == 5 for i in evaluation.items)
    present = load_dataset("clotho@audio=present", shared / "data").layout
    assert len(present.items) == 12 and all(i.path and i.path.is_file() for i in present.items)
    # An independent reading of the same references, published with a model's outputs (tokenised, in lower case).
    with (shared / "reference/captions/conette_clotho_evaluation.csv").open(encoding="utf-8", newline="") as f:
        published = {row["fname"]: ast.literal_eval(row["mrefs"]) for row in csv.DictReader(f)}
    ours = {i.labels["file_name"]: i.labels["captions"] for i in evaluation.items}
    assert published.keys() == ours.keys()
    letters = {n: ["".join(filter(str.isalpha, c.lower())) for c in texts] for n, texts in ours.items()}
    theirs = {n: ["".join(filter(str.isalpha, c)) for c in texts] for n, texts in published.items()}
    assert sum(letters[n] != theirs[n] for n in ours) == 0


def test_clotho_checksums(shared: Path) -> None:
    """The published md5 of the caption files, two of which have lost their carriage returns where they are here."""
    for a in clotho.INFO.archives:
        path = shared / "data/clotho" / a.filename
        if path.exists():
            content = path.read_bytes()
            if "evaluation" not in a.filename:
                content = content.replace(b"\n", b"\r\n")
            assert a.checksum == "md5:" + hashlib.md5(content).hexdigest() and a.bytes == len(content)


# -- AudioCaps --------------------------------------------------------------------------------------------------------

ROWS = [["1", "aaaaaaaaaaa", "30", "one"], ["2", "-bbbbbbbbbb", "0", "two"], ["3", "aaaaaaaaaaa", "30", "three"]]


def make_audiocaps(root: Path, rows: list[list[str]] = ROWS, split: str = "test", folder: str = "") -> Path:
    return write(root / "audiocaps" / folder / f"{split}.csv", [list(audiocaps.COLUMNS), *rows])


@pytest.mark.parametrize("place", [f.format(split="test") for f in audiocaps.AUDIO_FOLDERS])
@pytest.mark.parametrize(
    "name", ["aaaaaaaaaaa.wav", "aaaaaaaaaaa_30.flac", "aaaaaaaaaaa_30_40.wav", "Yaaaaaaaaaaa.ogg", "3.wav",
             "aaaaaaaaaaa_30000_40000.wav"],
)  # fmt: skip
def test_audiocaps_layouts(tmp_path: Path, place: str, name: str) -> None:
    make_audiocaps(tmp_path, folder="dataset")
    tone(tmp_path / "audiocaps" / place / name)
    loaded = load_dataset("audiocaps", tmp_path)
    absent, here = loaded.layout.items
    assert (here.id, here.cluster, here.path and here.path.name) == ("aaaaaaaaaaa", "aaaaaaaaaaa", name)
    assert here.labels["captions"] == ["one", "three"] and here.labels["audiocap_ids"] == ["1", "3"]
    assert absent.id == "-bbbbbbbbbb" and absent.path is None and "no audio of this clip here" in absent.error
    assert "1 of 2 clips have audio here" in loaded.layout.notes[0]
    assert "2 clips have other than 5 captions" in loaded.layout.notes
    assert all(str(n) in loaded.layout.notes[-1] for n in (975, 957, 912, 883))


def test_which_clips_had_audio_is_in_the_identity(tmp_path: Path) -> None:
    make_audiocaps(tmp_path)
    seen = []
    for name in (None, "aaaaaaaaaaa.wav", "-bbbbbbbbbb.wav"):
        if name:
            tone(tmp_path / "audiocaps/test" / name)
        seen.append(manifest(load_dataset("audiocaps", tmp_path).layout.items, tmp_path / "cache"))
    assert len({m.sha256 for m in seen}) == 3
    assert [sum(s.startswith(UNREADABLE) for s in m.sources.values()) for m in seen] == [2, 1, 0]


def test_audiocaps_options(tmp_path: Path) -> None:
    make_audiocaps(tmp_path)
    chosen = tmp_path / "ids.txt"
    chosen.write_text("-bbbbbbbbbb\n\n")
    loaded = load_dataset(f"audiocaps@ids={chosen}", tmp_path)
    assert [i.id for i in loaded.layout.items] == ["-bbbbbbbbbb"] and loaded.coverage == "1 of 975 clips"
    chosen.write_text("-bbbbbbbbbb\nzzz\n")
    with pytest.raises(UsageError, match=r"1 of 2 ids are not in test\.csv"):
        load_dataset(f"audiocaps@ids={chosen}", tmp_path)
    chosen.write_text("")
    for bad in (f"audiocaps@ids={chosen}", "audiocaps@ids=/nowhere", "audiocaps@split=evaluation", "audiocaps@audio=x"):
        with pytest.raises(UsageError):
            load_dataset(bad, tmp_path)
    with pytest.raises(DataError, match="audio=present"):
        load_dataset("audiocaps@audio=present", tmp_path)
    with pytest.raises(DataError, match=r"no val\.csv"):
        load_dataset("audiocaps@split=val", tmp_path)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([["1", "a", "30", "x"], ["2", "a", "40", "y"]], r"'a' starts at 30 s \(audiocap_id 1\) and at 40 s \(2\)"),
        ([["1", "a", "30", "x"], ["1", "b", "40", "y"]], r"line 3: audiocap_id '1' is also that of line 2"),
        ([["1", "a", "soon", "x"]], r"start_time 'soon' is no number"),
        ([["1", "a", "30", ""]], r"line 2: caption is empty"),
        ([["1", "a"]], r"line 2: start_time is empty"),
    ],
)
def test_damaged_audiocaps_files(tmp_path: Path, rows: list[list[str]], what: str) -> None:
    make_audiocaps(tmp_path, rows)
    with pytest.raises(DataError, match=what):
        load_dataset("audiocaps", tmp_path)


def test_audiocaps_as_published(shared: Path) -> None:
    for split, size in audiocaps.CLIPS.items():
        layout = load_dataset(f"audiocaps@split={split}", shared / "data").layout
        assert len(layout.items) == layout.expected == size
        assert Counter(len(i.labels["captions"]) for i in layout.items) == {audiocaps.CAPTIONS[split]: size}
        assert not any("other than" in n for n in layout.notes)
    for a in audiocaps.INFO.archives:
        content = (shared / "data/audiocaps" / a.filename).read_bytes()
        assert a.checksum == "sha256:" + hashlib.sha256(content).hexdigest() and a.bytes == len(content)


# -- downloads --------------------------------------------------------------------------------------------------------


def test_caption_files_are_put_in_place_as_they_are(shared: Path, tmp_path: Path) -> None:
    (done,) = download(clotho.INFO, tmp_path, source=shared / "data/clotho")
    assert done.verified and done.files == 1
    assert len(load_dataset("clotho", tmp_path).layout.items) == 1045
    fetched = download(audiocaps.INFO, tmp_path, only=["all"], source=shared / "data/audiocaps")
    assert [f.verified for f in fetched] == [True] * 3
    assert load_dataset("audiocaps@split=val", tmp_path).coverage == "495 of 495 clips"
    assert archive_name(clotho.INFO.archives[0]) == "clotho_captions_evaluation"
    with pytest.raises(DataError, match="wrong checksum"):  # here it has lost its carriage returns
        download(clotho.INFO, tmp_path, only=["clotho_captions_validation"], source=shared / "data/clotho")


def seven_zip(path: Path, members: dict[str, bytes]) -> Path:
    py7zr = pytest.importorskip("py7zr")
    with py7zr.SevenZipFile(path, "w") as z:
        for name, content in members.items():
            z.writestr(content, name)
    return path


def test_7z_archives_are_unpacked(tmp_path: Path) -> None:
    from evalkit.datasets.download import unpack

    path = seven_zip(tmp_path / "a.7z", {"evaluation/x y.wav": b"RIFF" * 9, "evaluation/é.wav": b""})
    home = tmp_path / "out"
    home.mkdir()
    assert unpack(path, home) == 2
    assert (home / "evaluation/x y.wav").read_bytes() == b"RIFF" * 9 and (home / "evaluation/é.wav").exists()
    damaged = bytearray(path.read_bytes())
    damaged[40] ^= 255
    path.write_bytes(damaged)
    shutil.rmtree(home)
    home.mkdir()
    with pytest.raises(DataError, match=r"a\.7z: cannot be unpacked"):
        unpack(path, home)
    bomb = seven_zip(tmp_path / "bomb.7z", {"zeros": b"\0" * (65 * 2**20)})
    with pytest.raises(DataError, match="refused"):
        unpack(bomb, home)


def test_7z_links_and_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    from evalkit.datasets.download import unpack

    py7zr = pytest.importorskip("py7zr")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with py7zr.SevenZipFile(tmp_path / "l.7z", "w") as z:
        z.write(tmp_path / "link", "link")
    inside = seven_zip(tmp_path / "n.7z", {"aa/evil": b"x"})  # the name is in a header with checksums: forge it
    with py7zr.SevenZipFile(tmp_path / "n.7z", "w") as z:
        z.writestr(b"x", "aa/evil")
        z.header.files_info.files[0]["filename"] = "../evil"
    home = tmp_path / "home"
    home.mkdir()
    for path in (tmp_path / "l.7z", inside):
        with pytest.raises(DataError, match="refused"):
            unpack(path, home)
        assert not list(home.iterdir())
    assert not (tmp_path / "evil").exists()


def test_7z_without_the_package_says_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.datasets.download import unpack

    monkeypatch.setitem(sys.modules, "py7zr", None)
    path = tmp_path / "a b.7z"
    path.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(40))
    with pytest.raises(DataError, match=r"pip install 'evalkit-audio\[7z\]'.*7z x '"):
        unpack(path, tmp_path)


# -- ESC-50 -----------------------------------------------------------------------------------------------------------


def test_every_class_has_one_sentence_of_its_own() -> None:
    assert len(SENTENCES) == len(set(SENTENCES.values())) == 50
    assert list(SENTENCES) == list(CLASSES)
    assert all(
        text == text.lower() and text[-1].isalpha() and 3 <= len(text.split()) <= 9 for text in SENTENCES.values()
    )


def test_esc50_captions(shared: Path) -> None:
    layout = load_dataset("esc50@subset=esc10", shared / "data").layout
    order = list(SENTENCES)
    for item in layout.items:
        assert item.labels["captions"] == [SENTENCES[item.labels["class"]]]
        assert order[item.labels["target"]] == item.labels["class"], "the table's order is that of the targets"


def test_scenes_have_five_captions() -> None:
    items = load_dataset("scenes").layout.items
    assert all(len(i.labels["captions"]) == 5 and all(i.labels["captions"]) for i in items)


# -- classification by caption ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_is_found_by_its_sentence_name_and_phrases(name: str) -> None:
    for text in (SENTENCES[name], name.replace("_", " "), *CLASSES[name]):
        assert answer(text) == (name,), text
        assert answer(f"A recording in which {text.upper()}, somewhere!") == (name,), text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Two dogs barked loudly at each other.", ("dog",)),
        ("A man's dog's bark", ("dog",)),
        ("A dog barks while a cat meows", ("dog", "cat")),
        ("an alarm clock goes off", ("clock_alarm",)),
        ("a clock ticks, then an alarm rings", ("clock_alarm", "clock_tick")),
        ("rain is pouring on a roof", ("rain",)),
        ("a crowing rooster", ("rooster",)),
        ("a rooster and a crow", ("rooster", "crow")),
        ("someone cuts wood with a chain saw", ("chainsaw",)),
        ("crickets are chirping at night", ("crickets",)),
        ("something is chirping", ()),
        ("the category of catalogues, a doghouse, a cathedral", ()),
        ("a bird can be heard as the door opens", ("chirping_birds",)),
        ("music", ()),
        ("", ()),
        ("🐕 <b>犬</b>\n\x00", ()),
    ],
)  # fmt: skip
def test_answers(text: str, named: tuple[str, ...]) -> None:
    assert answer(text) == named


def test_what_is_unparsable_counts_as_wrong() -> None:
    texts = ["a dog barks", "a cat meows", "a dog and a cat", "noise"]
    labels = [{"class": "dog"}] * 4
    assert label_accuracy(texts, labels) == [1, 0, 0, 0]
    assert unparsable(texts, labels) == [0, 0, 1, 1]


def test_clips_without_a_class_have_no_value() -> None:
    for function in (label_accuracy, unparsable):
        first, second, third = function(["a dog barks"] * 3, [{"class": "dog"}, {}, {"class": "jackhammer"}])
        assert not isinstance(first, NotApplicable)
        assert isinstance(second, NotApplicable) and isinstance(third, NotApplicable)


NEUTRAL = st.lists(
    st.sampled_from(["a", "the", "loud", "of", "and", "near", "while", "12", ",", "!", "-", "("]), max_size=6
)


@given(st.lists(st.sampled_from(sorted(CLASSES)), max_size=4), st.data())
def test_classes_named_apart_are_all_found(names: list[str], data: st.DataObject) -> None:
    """Class names with other words between them: the answer is their set, in any order, any case."""
    parts = [" ".join(["x", *data.draw(NEUTRAL), "x"])]
    for name in names:
        parts += [name.replace("_", " "), " ".join(["x", *data.draw(NEUTRAL), "x"])]
    text = " ".join(parts)
    found = answer(data.draw(st.sampled_from([text, text.upper(), text.title()])))
    assert set(found) == set(names)
    labels = [{"class": data.draw(st.sampled_from(sorted(CLASSES)))}]
    (right,), (none,) = label_accuracy([text], labels), unparsable([text], labels)
    assert none == float(len(set(names)) != 1) and right == float(set(names) == {labels[0]["class"]})


@given(st.text())
def test_any_text_has_an_answer(text: str) -> None:
    assert set(answer(text)) <= set(CLASSES)


@given(st.from_regex(r"[a-z]{2,12}", fullmatch=True))
def test_stems_are_never_empty_nor_longer(word: str) -> None:
    assert 0 < len(stem(word)) <= len(word)


def test_the_rule_is_in_the_metrics_identity() -> None:
    from evalkit import work

    info = label_accuracy.info
    before = work._metric_id.__wrapped__(info, ())
    table = CLASSES["dog"]
    try:
        CLASSES["dog"] = (*table, "hound")
        assert work._metric_id.__wrapped__(info, ()) != before
    finally:
        CLASSES["dog"] = table
    assert work._metric_id.__wrapped__(info, ()) == before


def test_the_page_has_the_table_of_the_rule() -> None:
    page = (Path(__file__).parent.parent / "docs/captioning.md").read_text(encoding="utf-8")
    for name, phrases in CLASSES.items():
        assert f"| {name} | {SENTENCES[name]} | {', '.join(phrases)} |" in page
