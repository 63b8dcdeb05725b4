"""Training data: what is held out, what is cached, what is drawn and how it is augmented."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evalkit.audio import Clip, read_clip, write_clip
from evalkit.datasets import scenes
from evalkit.errors import DataError, EvalkitError, UsageError
from tokenizer.codec import SoundTokenizer
from tokenizer.data import (
    STREAMS,
    Augmentation,
    Corpus,
    Part,
    Source,
    augment,
    build_corpus,
    cached_latents,
    clip_log_mel,
    draw_changes,
    draw_places,
    rng_of,
    shift_pitch,
    stream_latents,
)
from tokenizer.mel import LogMel, MelConfig

MEL = MelConfig()
PATCH = 4
FLOOR = float(np.log(MEL.floor))
SCENES = Source("scenes@split=train@clips=5", 1.0, (), "scenes@split=validation@clips=2")
NOTHING = Augmentation(0.0, 0.0, 0.0)


def tone(hz: float, seconds: float = 1.0, seed: int = 0, rate: int = 24_000) -> Clip:
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.01, t.size)
    return Clip(0.3 * np.sin(2 * np.pi * hz * t) + noise, rate)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Twelve readable files in four folders of three, one of them at another rate, and one that is no audio."""
    folder = tmp_path / "data" / "mine"
    for i in range(12):
        place = folder / "abcd"[i // 3]
        place.mkdir(parents=True, exist_ok=True)
        write_clip(tone(200 + 50 * i, 0.5 + 0.1 * i, i, 16_000 if i == 7 else 24_000), place / f"{i:02}.wav")
    (folder / "a" / "broken.wav").write_bytes(b"this is no audio")
    return folder


def build(tmp_path: Path, *sources: Source, **options: Any) -> Corpus:
    return build_corpus(sources, MEL, PATCH, tmp_path / "cache", str(tmp_path / "data"), **options)


def ids(corpus: Corpus, name: str = "folder") -> set[str]:
    return {i for c in corpus.about["trained_on"].get(name, {}).values() for i in c}


def holds(stream: np.ndarray, mel: np.ndarray) -> bool:
    """Whether a clip's log-mel is somewhere in a stream, to the bit."""
    starts = np.flatnonzero((stream[: len(stream) - len(mel) + 1] == mel[0]).all(1))
    return any(np.array_equal(stream[s : s + len(mel)], mel) for s in starts)


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_a_corpus_of_scenes_holds_its_clips_and_no_other(tmp_path: Path) -> None:
    corpus = build(tmp_path, SCENES)
    extract = LogMel(MEL)
    train = {f"train-{i:04}": clip_log_mel(scenes.make_clip("train", i), extract, PATCH) for i in range(5)}
    assert ids(corpus, "scenes") == set(train) and corpus.about["training_clips"] == {"scenes": 5}
    assert len(corpus.train) == sum(len(m) for m in train.values()) == corpus.parts[0].stop
    assert all(len(m) % PATCH == 0 for m in train.values())
    for mel in train.values():
        assert holds(corpus.train, mel) and not holds(corpus.validation, mel)
    for name, clip, cluster, start, frames in corpus.clips:
        made = clip_log_mel(scenes.make_clip("validation", int(clip[-4:])), extract, PATCH)
        assert (name, cluster) == ("scenes", clip)
        assert np.array_equal(corpus.validation[start : start + frames], made) and not holds(corpus.train, made)
    seconds = sum(scenes.scene("train", i)[0] for i in range(5))
    assert corpus.about["training_seconds"] == pytest.approx(seconds, abs=5 * 0.05)


def test_an_unreadable_file_is_listed_and_costs_only_itself(tmp_path: Path, clips: Path) -> None:
    elsewhere = tmp_path / "elsewhere.wav"
    write_clip(tone(300), elsewhere)
    (clips / "d" / "link.wav").symlink_to(elsewhere)  # known to be unreadable before reading
    corpus = build(tmp_path, Source("folder:mine", 1.0, ("cluster=b/04",)))
    found = sorted(text.partition(":")[0] for text in corpus.about["unreadable"])
    assert found == ["a/broken", "d/link"]
    assert len(ids(corpus)) == 11 and not ids(corpus) & {"a/broken", "d/link", "b/04"}


def test_held_out_clips_that_cannot_be_read_are_no_crash(tmp_path: Path, clips: Path) -> None:
    (clips / "a" / "link.wav").symlink_to(tmp_path)
    with pytest.raises(EvalkitError, match="none of the held-out clips can be read: a/broken"):
        build(tmp_path, Source("folder:mine", 1.0, ("cluster=a/broken",)))
    with pytest.raises(EvalkitError, match="none of the held-out clips can be read: a/link"):
        build(tmp_path, Source("folder:mine", 1.0, ("cluster=a/link",)))
    for file in clips.rglob("*.wav"):
        if file.name != "00.wav":
            file.unlink()
    (clips / "only.wav").write_bytes(b"no audio")
    with pytest.raises(EvalkitError, match="folder:mine: none of its 1 clips can be read: only"):
        build(tmp_path, Source("folder:mine", 1.0, ("cluster=a/00",)))


def test_a_path_of_ones_own_is_absolute_or_under_the_data_root(tmp_path: Path, clips: Path) -> None:
    here = build(tmp_path, Source("folder:mine@cluster=parent", 1.0, ("cluster=a",)))
    there = build(tmp_path, Source(f"folder:{clips}@cluster=parent", 1.0, ("cluster=a",)))
    assert np.array_equal(np.sort(here.train, axis=None), np.sort(there.train, axis=None))
    held = build(tmp_path, Source("folder:mine/b", 1.0, (), "folder:mine/c"))
    assert {c[1] for c in held.clips} == {"06", "07", "08"} and ids(held) == {"03", "04", "05"}
    with pytest.raises(DataError, match="no such folder"):
        build(tmp_path, Source("folder:absent", 1.0, ("share=1/3",)))


# -- what is held out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "held"),
    [
        (Source("folder:mine@cluster=parent", 1.0, ("cluster=b",)), {"b"}),
        (Source("folder:mine@cluster=parent", 1.0, ("cluster=b", "cluster=d")), {"b", "d"}),
        (Source("folder:mine@cluster=parent", 1.0, ("share=1/3",)), 1),
        (Source("folder:mine@cluster=parent", 1.0, ("share=1/2",)), 2),
        (Source("folder:mine@cluster=parent", 1.0, ("share=1/100",)), 1),
        (Source("folder:mine", 1.0, ("share=1/3",)), 4),
    ],
)
def test_held_out_clusters_are_never_trained_on(tmp_path: Path, clips: Path, source: Source, held: Any) -> None:
    corpus = build(tmp_path, source)
    out, trained = corpus.about["held_out"]["folder"], corpus.about["trained_on"]["folder"]
    assert not set(out["clusters"]) & set(trained)
    assert not set(out["clips"]) & ids(corpus)
    assert set(out["clips"]) | ids(corpus) | {"a/broken"} == {f"{'abcd'[i // 3]}/{i:02}" for i in range(12)} | {
        "a/broken"
    }
    assert len(out["clusters"]) == held if isinstance(held, int) else set(out["clusters"]) == held
    extract = LogMel(MEL)
    for name in [*out["clips"], *ids(corpus)]:
        if name != "a/broken":
            mel = clip_log_mel(read_clip(clips / f"{name}.wav"), extract, PATCH)
            assert holds(corpus.train, mel) is (name in ids(corpus)), name
            assert holds(corpus.validation, mel) is (name in out["clips"]), name
    assert {c[1] for c in corpus.clips} == set(out["clips"]) - {"a/broken"}


def test_a_held_out_split_takes_its_clusters_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A speaker who is in both parts is in neither: validation would hear a voice that was trained on."""
    real = scenes.item

    def item(split: str, index: int) -> Any:
        return dataclasses.replace(real(split, index), cluster=f"speaker {index % 3}", split="ab"[index == 1])

    monkeypatch.setattr(scenes, "item", item)
    corpus = build(tmp_path, Source("scenes@split=train@clips=6", 1.0, ("split=b",)))
    assert corpus.about["held_out"]["scenes"] == {"clusters": ["speaker 1"], "clips": ["train-0001"]}
    assert ids(corpus, "scenes") == {"train-0000", "train-0002", "train-0003", "train-0005"}


def test_at_most_so_many_validation_clips_a_source_and_all_stay_untrained(tmp_path: Path, clips: Path) -> None:
    corpus = build(tmp_path, Source("folder:mine", 1.0, ("share=1/2",)), validation_clips=2)
    assert len(corpus.clips) == 2 and len(corpus.about["held_out"]["folder"]["clips"]) == 6
    assert len(ids(corpus)) <= 7


def test_two_folders_are_both_recorded(tmp_path: Path, clips: Path) -> None:
    corpus = build(
        tmp_path, Source("folder:mine/b", 1.0, ("cluster=04",)), Source("folder:mine/c", 2.0, ("cluster=07",))
    )
    assert corpus.about["held_out"]["folder"]["clips"] == ["04", "07"]
    assert ids(corpus) == {"03", "05", "06", "08"}
    first, second = corpus.parts
    assert (first.start, first.stop, second.stop) == (0, second.start, len(corpus.train))
    assert (first.weight, second.weight) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source("folder:mine", 1.0, ("cluster=nobody",)), "selects no clip"),
        (Source("folder:mine", 1.0, ("split=test",)), "selects no clip"),
        (Source("folder:mine", 1.0, ("speaker=x",)), "expected split=NAME, cluster=NAME or share=N/M"),
        (Source("folder:mine", 1.0, ("share=third",)), "expected share=N/M"),
        (Source("folder:mine", 1.0, ("share=1/0",)), "expected share=N/M"),
        (Source("folder:mine", 1.0, ("share=1/1",)), "nothing is left to train on"),
        (Source("folder:mine", 1.0), "nothing is held out for validation"),
        (Source("folder:mine", 1.0, (), "scenes@split=validation"), "another data set"),
        (Source("scenes@split=train@clips=2", 1.0, (), "scenes@split=train@clips=2"), "nothing is left to train on"),
        (Source("no-such-set", 1.0, ("share=1/3",)), "no-such-set"),
    ],
)
def test_rules_that_cannot_be(tmp_path: Path, clips: Path, source: Source, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(tmp_path, source)


# -- the cache --------------------------------------------------------------------------------------------------------


def test_the_cache_is_found_again_and_made_anew_when_a_file_changes(tmp_path: Path, clips: Path) -> None:
    source = Source("folder:mine", 1.0, ("cluster=a/00",))
    told: list[str] = []
    first = build(tmp_path, source, tell=told.append)
    folders = list((tmp_path / "cache").iterdir())
    assert len(folders) == 1 and len(told) == 1
    times = {p.name: p.stat().st_mtime_ns for p in folders[0].iterdir()}
    assert set(times) == {*STREAMS, "corpus.json"}
    again = build(tmp_path, source, tell=told.append)
    assert {p.name: p.stat().st_mtime_ns for p in folders[0].iterdir()} == times and len(told) == 1
    assert (again.parts, again.clips, again.about) == (first.parts, first.clips, first.about)
    assert np.array_equal(again.train, first.train)
    write_clip(tone(999, 0.7), clips / "d" / "10.wav")
    changed = build(tmp_path, source, tell=told.append)
    assert len(told) == 2 and len(list((tmp_path / "cache").iterdir())) == 2
    assert not np.array_equal(changed.train, first.train)
    build(tmp_path, source)  # both stay
    build(tmp_path, dataclasses.replace(source, weight=2.0))
    build_corpus([source], dataclasses.replace(MEL, floor=1e-4), PATCH, tmp_path / "cache", str(tmp_path / "data"))
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_a_half_written_cache_is_not_taken(tmp_path: Path, clips: Path) -> None:
    source = Source("folder:mine", 1.0, ("cluster=a/00",))
    first = build(tmp_path, source)
    (folder,) = (tmp_path / "cache").iterdir()
    folder.rename(folder.with_name(f"{folder.name}.12345"))  # as a process that was killed leaves it
    again = build(tmp_path, source)
    assert np.array_equal(again.train, first.train)
    assert json.loads((folder / "corpus.json").read_text())["about"] == first.about


# -- what is drawn ----------------------------------------------------------------------------------------------------

PARTS = (Part("one", 1.0, 0, 1000), Part("two", 3.0, 1000, 1100), Part("three", 0.5, 1100, 4000))


@pytest.mark.parametrize("step", [1, 4])
def test_crops_lie_within_a_source_and_follow_the_weights(step: int) -> None:
    count = 9000
    places = np.array(draw_places(rng_of(0, "test", step), PARTS, count, 96, step))
    seen = []
    for part in PARTS:
        mine = places[(places >= part.start) & (places < part.stop)]
        seen.append(len(mine))
        assert (mine + 96 <= part.stop).all() and ((mine - part.start) % step == 0).all()
        assert mine.min() == part.start or len(mine) < part.stop - part.start
        last = part.start + (part.stop - part.start - 96) // step * step
        assert mine.max() > last - 0.02 * (part.stop - part.start) - 1
    expected = count * np.array([p.weight for p in PARTS]) / 4.5
    assert ((np.array(seen) - expected) ** 2 / expected).sum() < 13.8  # chi-square of 2 degrees, p = 0.001


def test_a_source_shorter_than_a_crop_is_a_usage_error(tmp_path: Path, clips: Path) -> None:
    with pytest.raises(UsageError, match="two: its training clips hold fewer than the 101 frames"):
        draw_places(rng_of(0, "test", 0), PARTS, 1, 101, 1)
    assert draw_places(rng_of(0, "test", 0), PARTS[1:2], 3, 100, 1) == [1000] * 3
    corpus = build(tmp_path, Source("folder:mine/b", 1.0, ("cluster=04",)))
    with pytest.raises(UsageError, match="lower `crop`"):
        draw_places(rng_of(0, "vae", 0), corpus.parts, 1, len(corpus.train) + 1, 1)


def test_a_step_can_be_drawn_alone() -> None:
    def batch(seed: int, stage: str, step: int) -> list[int]:
        return draw_places(rng_of(seed, stage, step), PARTS, 16, 32, 1)

    assert batch(1, "vae", 7) == batch(1, "vae", 7)
    others = [batch(1, "vae", 8), batch(1, "codes", 7), batch(2, "vae", 7)]
    assert all(o != batch(1, "vae", 7) for o in others)


def test_crops_are_windows_of_the_stream(tmp_path: Path) -> None:
    corpus = build(tmp_path, SCENES)
    got = corpus.crops([0, 37, 100], 12)
    assert got.dtype == torch.float32 and got.shape == (3, 12, MEL.bands)
    assert np.array_equal(got[1].numpy(), corpus.train[37:49].astype(np.float32))


# -- augmentation -----------------------------------------------------------------------------------------------------


def mels(*clips: Clip) -> torch.Tensor:
    return torch.stack([torch.from_numpy(clip_log_mel(c, LogMel(MEL), PATCH).astype(np.float32)) for c in clips])


def test_no_augmentation_changes_nothing() -> None:
    mel = mels(tone(440), tone(880, seed=1))
    other = mels(tone(2000, seed=2), tone(3000, seed=3))
    changes = draw_changes(rng_of(0, "a", 0), 2, NOTHING)
    assert torch.equal(augment(mel, other, changes, MEL), mel.clamp_min(FLOOR))


def test_gain_is_exact_in_nepers_above_the_floor() -> None:
    quiet = tone(440)
    quiet = Clip(np.concatenate([quiet.samples, np.zeros((1, 24_000))], axis=1), 24_000)
    mel = mels(quiet, quiet, quiet)
    changes = draw_changes(rng_of(0, "a", 1), 3, Augmentation(6.0, 0.0, 0.0))
    made = augment(mel, mel.flip(0), changes, MEL)
    assert (np.abs(changes.gain) <= 6 / 20 * np.log(10) + 1e-6).all() and len(set(changes.gain)) == 3
    wanted = (mel + torch.from_numpy(changes.gain)[:, None, None]).clamp_min(FLOOR)
    assert torch.allclose(made, wanted, atol=1e-6)
    assert float(made.min()) >= FLOOR - 1e-6
    louder = mels(Clip(quiet.samples * np.exp(changes.gain[0]), 24_000))  # the same as turning up the audio
    loud = mel[:1] > FLOOR + 2.0
    assert (made[:1] - louder)[loud].abs().max() < 0.02  # float16


def test_mixing_adds_powers() -> None:
    mel, other = mels(tone(440)), mels(tone(3000, seed=5))
    changes = draw_changes(rng_of(0, "a", 2), 1, Augmentation(0.0, 0.0, 1.0))
    assert changes.mixed.all() and -12 / 20 * np.log(10) - 1e-6 <= changes.below[0] <= 0
    made = augment(mel, other, changes, MEL)
    power = (2 * mel.double()).exp() + (2 * (other.double() + float(changes.below[0]))).exp()
    assert torch.allclose(made.double(), 0.5 * power.log(), atol=1e-5)
    never = dataclasses.replace(changes, mixed=np.zeros(1, dtype=bool))
    assert torch.equal(augment(mel, other, never, MEL), mel.clamp_min(FLOOR))
    often = draw_changes(rng_of(0, "a", 3), 4000, Augmentation(mix=0.2))
    assert 0.17 < often.mixed.mean() < 0.23


@pytest.mark.parametrize("semitones", [-12.0, -3.0, 1.0, 5.0, 12.0])
@pytest.mark.parametrize("hz", [500.0, 1500.0, 4000.0])
def test_a_pitch_shift_moves_a_sine_where_the_sine_would_be(hz: float, semitones: float) -> None:
    there = hz * 2 ** (semitones / 12)
    moved = shift_pitch(mels(tone(hz)), np.array([semitones]), MEL)[0, 20:60].mean(0)
    wanted = mels(tone(there))[0, 20:60].mean(0)
    assert abs(int(moved.argmax()) - int(wanted.argmax())) <= 1
    if hz > 1000:  # bands are narrower than an octave's change is exact below
        weights = (2 * moved.double()).exp(), (2 * wanted.double()).exp()
        centres = [float((w * torch.arange(MEL.bands)).sum() / w.sum()) for w in weights]
        assert abs(centres[0] - centres[1]) < 1.0


def test_what_a_pitch_shift_has_no_sound_for_is_the_floor() -> None:
    white = torch.zeros(2, 4, MEL.bands)
    made = shift_pitch(white, np.array([-12.0, 12.0]), MEL)
    assert float(made[0, 0, -1]) == pytest.approx(FLOOR) and float(made[0, 0, 0]) == 0.0
    assert float((made[0, 0] < -1).float().mean()) > 0.2  # the upper octave
    assert (made[1] == 0).all()
    assert torch.equal(shift_pitch(white, np.zeros(2), MEL), white)
    rng = np.random.default_rng(0)
    any_mel = torch.from_numpy(rng.normal(-4, 2, (1, 5, MEL.bands)).astype(np.float32)).clamp_min(FLOOR)
    assert torch.allclose(shift_pitch(any_mel, np.zeros(1), MEL), any_mel, atol=1e-4)


def test_rows_of_changes_are_those_of_the_batch() -> None:
    rng = np.random.default_rng(1)
    mel = torch.from_numpy(rng.normal(-5, 2, (6, 8, MEL.bands)).astype(np.float32))
    changes = draw_changes(rng_of(3, "a", 4), 6, Augmentation(mix=0.5))
    whole = augment(mel, mel.flip(0), changes, MEL)
    for rows in (slice(0, 3), slice(3, 6)):
        assert torch.allclose(augment(mel[rows], mel.flip(0)[rows], changes.rows(rows), MEL), whole[rows], atol=1e-5)


# -- latents ----------------------------------------------------------------------------------------------------------


def test_cached_latents_begin_with_those_of_the_clips(tmp_path: Path, tiny: Callable[..., SoundTokenizer]) -> None:
    corpus = build(tmp_path, SCENES)
    vae = tiny().vae
    made = cached_latents(vae, corpus, PATCH, 3, 5, Augmentation(mix=0.5))
    assert made.shape == (3, len(corpus.train) // PATCH, 8) and made.dtype == torch.float16
    with torch.inference_mode():
        mel = torch.from_numpy(corpus.train.astype(np.float32)).T[None]
        whole = vae.standardise(vae.encode(mel)[0])[0]
    assert torch.allclose(made[0].float(), whole, atol=5e-3, rtol=2e-3)
    assert torch.allclose(stream_latents(vae, corpus.train, PATCH, chunk=37), whole, atol=1e-4)
    assert (made[1] - made[0]).abs().mean() > 0.05 and (made[1] - made[2]).abs().mean() > 0.05
    assert torch.equal(made, cached_latents(vae, corpus, PATCH, 3, 5, Augmentation(mix=0.5)))
    assert torch.equal(cached_latents(vae, corpus, PATCH, 2, 5, NOTHING)[1], made[0])


def test_latents_of_the_stream_are_what_the_codec_encodes(tmp_path: Path, tiny: Callable[..., SoundTokenizer]) -> None:
    """Training sees what encoding gives: the first clip of the stream, but for float16 and its right neighbour."""
    corpus = build(tmp_path, SCENES)
    tokenizer = tiny()
    first = scenes.make_clip("train", int(rng_of(0, "order:scenes@split=train@clips=5", 0).permutation(5)[0]))
    latents = np.concatenate(list(tokenizer.latent_blocks([first.samples])), axis=-1)[0].T
    stream = cached_latents(tokenizer.vae, corpus, PATCH, 1, 0, NOTHING)[0, : len(latents)].float().numpy()
    inner = slice(0, len(latents) - tokenizer.vae.context[0])
    assert np.abs(stream[inner] - latents[inner]).max() < 0.05
    assert np.corrcoef(stream.ravel(), latents.ravel())[0, 1] > 0.999
