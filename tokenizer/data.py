"""Training data: log-mels of any registered data sets, computed once, and crops drawn from them by step.

A corpus is a cache folder: ``train.f16`` and ``validation.f16`` (raw float16, ``[frames, bands]``, clips one after
another, each a whole number of latent frames) and ``corpus.json`` (where each stands, what is held out or unreadable).
Crops are windows anywhere in the stream of a source, so that short clips need no padding: a crop may hold several.

Every draw comes from ``(seed, stage, step)``: any step can be made alone, and a resumed run draws the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalkit.audio import Clip, mono, read_clip, resample
from evalkit.datasets import Item
from evalkit.datasets.load import load_dataset
from evalkit.datasets.manifest import manifest
from evalkit.errors import AudioError, EvalkitError, UsageError
from evalkit.identity import digest
from evalkit.metrics.spectral import hz_to_mel, mel_to_hz
from evalkit.plan import select
from tokenizer.mel import LogMel, MelConfig
from tokenizer.vae import VAE

STREAMS = ("train.f16", "validation.f16")

VERSION = 1
"""Of the cache: raised when the same clips would give other frames."""


@dataclass(frozen=True)
class Source:
    """A data set in the mixture.

    Attributes:
        data: its spec; the path of ``folder:PATH`` is relative to the data root.
        weight: its share of the crops, relative to the others'.
        held_out: what is kept for validation and never trained on: ``split=5``, ``cluster=p228``, or ``share=1/3`` of
            the clusters (those with the smallest sha256 of their name).
        held_out_data: a spec of its own for validation clips, where there is one (``scenes@split=validation``).
    """

    data: str
    weight: float = 1.0
    held_out: tuple[str, ...] = ()
    held_out_data: str = ""


@dataclass(frozen=True)
class Augmentation:
    """Changes of a crop's log-mel, each drawn per crop.

    Attributes:
        gain_db: level by up to so many dB either way. pitch: shift along frequency by up to so many semitones.
        mix: probability that another crop is added, 0 to 12 dB below (powers add).
    """

    gain_db: float = 6.0
    pitch: float = 1.0
    mix: float = 0.2


@dataclass(frozen=True)
class Part:
    """A source's clips in the stream: mel frames ``start`` to ``stop`` of them are for training."""

    name: str
    weight: float
    start: int
    stop: int


@dataclass(frozen=True)
class Corpus:
    """Cached log-mels. ``train`` and ``validation`` are ``[frames, bands]`` float16; ``clips`` are
    ``(data set, id, cluster, start, frames)`` of the validation stream; ``about`` is what goes into the record."""

    config: MelConfig
    train: np.ndarray
    validation: np.ndarray
    parts: tuple[Part, ...]
    clips: tuple[tuple[str, str, str, int, int], ...]
    about: dict[str, Any]

    def crops(self, places: Sequence[int], frames: int) -> Tensor:
        """Windows ``[len(places), frames, bands]`` float32 of the training stream."""
        return torch.from_numpy(np.stack([self.train[p : p + frames] for p in places]).astype(np.float32))


def draw_places(rng: np.random.Generator, parts: Sequence[Part], count: int, frames: int, step: int) -> list[int]:
    """First frames of ``count`` windows: a source by weight, then a place in it, a multiple of ``step``.

    Raises:
        UsageError: a source is shorter than a window.
    """
    short = [p.name for p in parts if p.stop - p.start < frames]
    if short:
        raise UsageError(f"{short[0]}: its training clips hold fewer than the {frames} frames of a crop: lower `crop`")
    weights = np.array([p.weight for p in parts], dtype=np.float64)
    chosen = rng.choice(len(parts), size=count, p=weights / weights.sum())
    places = rng.random(count)
    return [
        parts[i].start + step * int(u * ((parts[i].stop - parts[i].start - frames) // step + 1))
        for i, u in zip(chosen, places, strict=True)
    ]


def rng_of(seed: int, stage: str, step: int) -> np.random.Generator:
    """The generator of everything that is drawn at one step of one stage."""
    code = int.from_bytes(hashlib.sha256(stage.encode()).digest()[:4], "little")
    return np.random.default_rng([seed, code, step])


# -- augmentation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Changes:
    """What `augment` does to each crop: gain in nepers, semitones, level of the other crop, whether mixed."""

    gain: np.ndarray
    semitones: np.ndarray
    below: np.ndarray
    mixed: np.ndarray

    def rows(self, which: slice) -> Changes:
        return Changes(self.gain[which], self.semitones[which], self.below[which], self.mixed[which])


def draw_changes(rng: np.random.Generator, batch: int, how: Augmentation) -> Changes:
    neper = np.log(10) / 20
    return Changes(
        rng.uniform(-how.gain_db, how.gain_db, batch).astype(np.float32) * np.float32(neper),
        rng.uniform(-how.pitch, how.pitch, batch),
        rng.uniform(-12.0, 0.0, batch).astype(np.float32) * np.float32(neper),
        rng.random(batch) < how.mix,
    )


def augment(mel: Tensor, other: Tensor, changes: Changes, config: MelConfig) -> Tensor:
    """Augmented log-mels of ``mel`` ``[batch, frames, bands]``; ``other`` of the same shape is what may be mixed in."""

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(mel.device)[:, None, None]

    out = shift_pitch(mel, changes.semitones, config) if changes.semitones.any() else mel
    if changes.mixed.any():
        both = 0.5 * torch.logaddexp(2 * out, 2 * (other + column(changes.below)))
        out = torch.where(column(changes.mixed), both, out)
    return (out + column(changes.gain)).clamp_min(float(np.log(config.floor)))


def shift_pitch(mel: Tensor, semitones: np.ndarray, config: MelConfig) -> Tensor:
    """Log-mels ``[batch, frames, bands]`` moved along frequency, by interpolation between bands.

    An approximation: harmonics keep their width in bands; what would come from above half the sample rate is the floor.
    """
    top = float(hz_to_mel(np.array(config.sample_rate / 2)))
    centres = np.linspace(0.0, top, config.bands + 2)[1:-1]
    sources = hz_to_mel(mel_to_hz(centres)[None] / 2 ** (semitones[:, None] / 12)) / top * (config.bands + 1) - 1
    low = np.clip(np.floor(sources), 0, config.bands - 1).astype(np.int64)
    high = np.minimum(low + 1, config.bands - 1)
    share = torch.from_numpy(np.clip(sources - low, 0, 1).astype(np.float32))[:, None].to(mel.device)

    def at(bands: np.ndarray) -> Tensor:
        return mel.gather(2, torch.from_numpy(bands)[:, None].expand(-1, mel.shape[1], -1).to(mel.device))

    moved = at(low) * (1 - share) + at(high) * share
    beyond = torch.from_numpy(sources > config.bands - 0.5)[:, None].to(mel.device)
    return moved.masked_fill(beyond, float(np.log(config.floor)))


# -- building the cache -----------------------------------------------------------------------------------------------


def build_corpus(
    sources: Sequence[Source],
    config: MelConfig,
    patch: int,
    cache: Path,
    data_root: str | None = None,
    *,
    validation_clips: int = 24,
    tell: Callable[[str], None] = lambda text: None,
) -> Corpus:
    """Read all sources into ``cache`` (a folder a mixture, found again by a hash of its contents), or find them there.

    Clips that cannot be read are left out and listed in ``about``. At most ``validation_clips`` held-out clips a source
    are kept for validation; all held-out clips stay untrained.

    Raises:
        DataError: a data set is absent. UsageError: a rule of `Source.held_out` that selects nothing, or everything.
    """
    root = data_root if data_root is not None else os.environ.get("EVALKIT_DATA", "")
    found = [_split(source, root) for source in sources]
    key = digest(
        {
            "version": VERSION,
            "mel": asdict(config),
            "patch": patch,
            "sources": [asdict(s) for s in sources],
            "content": [manifest([*train, *held]).sources for _, train, held in found],
            "validation": validation_clips,
        }
    )
    folder = cache / f"mels-{key[:16]}"
    if not (folder / "corpus.json").is_file():
        _write(folder, sources, found, config, patch, validation_clips, tell)
    about = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    train, validation = (
        np.memmap(folder / name, dtype=np.float16, mode="r").reshape(-1, config.bands) for name in STREAMS
    )
    return Corpus(
        config,
        train,
        validation,
        tuple(Part(**p) for p in about["parts"]),
        tuple(tuple(c) for c in about["clips"]),
        about["about"],
    )


def _split(source: Source, root: str) -> tuple[str, list[Item], list[Item]]:
    """The data set's name, its training items and its held-out items; no cluster is in both."""
    name, items = _items(source.data, root)
    ids = {i.id for rule in source.held_out for i in _selected(items, rule, source.data)}
    held = [i for i in items if i.id in ids]
    if source.held_out_data:
        other, more = _items(source.held_out_data, root)
        if other != name:
            raise UsageError(f"{source.data}: held_out_data={source.held_out_data} is another data set")
        held += [i for i in more if i.id not in ids]
    clusters = {i.cluster for i in held}
    train = [i for i in items if i.cluster not in clusters]
    if not train:
        rules = " and ".join(filter(None, (*source.held_out, source.held_out_data)))
        raise UsageError(f"{source.data}: nothing is left to train on after holding out {rules}")
    return name, train, held


def _items(spec: str, root: str) -> tuple[str, list[Item]]:
    """A data set's name and its clips, those that are known to be unreadable included."""
    if spec.startswith("folder:"):
        spec = f"folder:{Path(root) / Path(spec.removeprefix('folder:')).expanduser()}"
    data = load_dataset(spec, root or None)
    return data.info.name, data.layout.items


def _selected(items: Sequence[Item], rule: str, name: str) -> list[Item]:
    kind, _, value = rule.partition("=")
    clusters = sorted({i.cluster for i in items}, key=lambda c: hashlib.sha256(c.encode()).hexdigest())
    if kind == "share":
        try:
            share = Fraction(value)
        except (ValueError, ZeroDivisionError) as error:
            raise UsageError(f"{name}: held_out {rule!r}: expected share=N/M") from error
        chosen = set(clusters[: max(1, round(len(clusters) * share))])
        found = [i for i in items if i.cluster in chosen]
    elif kind in ("split", "cluster"):
        found = [i for i in items if getattr(i, kind) == value]
    else:
        raise UsageError(f"{name}: held_out {rule!r}: expected split=NAME, cluster=NAME or share=N/M")
    if not found:
        raise UsageError(f"{name}: held_out {rule!r} selects no clip")
    return found


def _write(
    folder: Path,
    sources: Sequence[Source],
    found: Sequence[tuple[str, list[Item], list[Item]]],
    config: MelConfig,
    patch: int,
    validation_clips: int,
    tell: Callable[[str], None],
) -> None:
    if not any(held for _, _, held in found):
        raise UsageError("nothing is held out for validation: give at least one source `held_out` or `held_out_data`")
    extract = LogMel(config)
    parts: list[dict[str, Any]] = []
    clips: list[tuple[str, str, str, int, int]] = []
    unreadable: list[str] = []
    trained: dict[str, dict[str, list[str]]] = {}
    temporary = folder.with_name(folder.name + f".{os.getpid()}")
    temporary.mkdir(parents=True, exist_ok=True)
    at = held_at = 0
    with (temporary / STREAMS[0]).open("wb") as train_file, (temporary / STREAMS[1]).open("wb") as held_file:
        for source, (name, train, held) in zip(sources, found, strict=True):
            tell(f"log-mels of {source.data}: {len(train)} training clips, {len(held)} held out")
            start = at
            order = rng_of(0, f"order:{source.data}", 0).permutation(len(train))
            for item, mel in _log_mels([train[i] for i in order], extract, patch, unreadable):
                train_file.write(mel.tobytes())
                at += len(mel)
                trained.setdefault(name, {}).setdefault(item.cluster, []).append(item.id)
            if at == start:
                raise EvalkitError(f"{source.data}: none of its {len(train)} clips can be read: {unreadable[-1]}")
            parts.append({"name": source.data, "weight": source.weight, "start": start, "stop": at})
            for item, mel in _log_mels(select(held, validation_clips), extract, patch, unreadable):
                held_file.write(mel.tobytes())
                clips.append((name, item.id, item.cluster, held_at, len(mel)))
                held_at += len(mel)
    if not held_at:
        raise EvalkitError(f"none of the held-out clips can be read: {unreadable[-1]}")
    about = {
        "sources": [asdict(s) for s in sources],
        "training_seconds": round(at / config.frame_rate, 1),
        "training_clips": {n: sum(len(ids) for ids in c.values()) for n, c in trained.items()},
        "trained_on": {n: {c: sorted(ids) for c, ids in sorted(cs.items())} for n, cs in trained.items()},
        "held_out": {
            name: {
                "clusters": sorted({i.cluster for n, _, held in found for i in held if n == name}),
                "clips": sorted(i.id for n, _, held in found for i in held if n == name),
            }
            for name in dict.fromkeys(name for name, _, held in found if held)
        },
        "unreadable": unreadable,
    }
    text = json.dumps({"parts": parts, "clips": clips, "about": about})
    (temporary / "corpus.json").write_text(text, encoding="utf-8")
    try:
        temporary.rename(folder)
    except OSError:  # another process was first
        if not (folder / "corpus.json").is_file():
            raise


def _log_mels(
    items: Sequence[Item], extract: LogMel, patch: int, unreadable: list[str]
) -> Iterator[tuple[Item, np.ndarray]]:
    for item in items:
        try:
            mel = clip_log_mel(_read(item), extract, patch)
        except EvalkitError as error:
            unreadable.append(f"{item.id}: {error}")
        else:
            yield item, mel


def _read(item: Item) -> Clip:
    if item.error:
        raise AudioError(item.error)
    if item.make is not None:
        return item.make()
    assert item.path is not None
    return read_clip(item.path, start=item.start, seconds=item.seconds, id=item.id, cluster=item.cluster)


@torch.inference_mode()
def clip_log_mel(clip: Clip, extract: LogMel, patch: int) -> np.ndarray:
    """Log-mel ``[frames, bands]`` float16 of a clip as the codec sees it: mono, resampled, zeros to whole patches."""
    clip = resample(mono(clip), extract.config.sample_rate)
    hop = extract.config.hop * patch
    audio = np.pad(clip.samples, ((0, 0), (0, -clip.length % hop)))
    return extract(torch.from_numpy(audio))[0].T.numpy().astype(np.float16)


# -- latents ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def stream_latents(vae: VAE, mel: np.ndarray, patch: int, chunk: int = 1024) -> Tensor:
    """Standardised latents ``[frames / patch, latent]`` of a stream of log-mels ``[frames, bands]``."""
    frames, context = len(mel) // patch, vae.context[0]
    device = vae.latent_mean.device
    out = []
    for start in range(0, frames, chunk):
        a, b = max(0, start - context), min(frames, start + chunk + context)
        piece = torch.from_numpy(mel[a * patch : b * patch].astype(np.float32)).T[None].to(device)
        out.append(vae.standardise(vae.encode(piece)[0])[0, start - a : start - a + chunk].cpu())
    return torch.cat(out)


def cached_latents(
    vae: VAE, corpus: Corpus, patch: int, copies: int, seed: int, how: Augmentation, crop: int = 512
) -> Tensor:
    """Latents of the training stream, ``[copies, frames / patch, latent]`` float16.

    The first copy is of the clips as they are. The others are of augmented ones: each piece of ``crop`` mel frames is
    changed on its own, mixed with a piece of the stream elsewhere.
    """
    made = [stream_latents(vae, corpus.train, patch).half()]
    for copy in range(1, copies):
        changed = np.empty_like(corpus.train)
        for number, start in enumerate(range(0, len(corpus.train), crop)):
            rng = rng_of(seed, f"latents:{copy}", number)
            piece = torch.from_numpy(corpus.train[start : start + crop].astype(np.float32))[None]
            other = corpus.crops(draw_places(rng, corpus.parts, 1, piece.shape[1], 1), piece.shape[1])
            made_of = augment(piece, other, draw_changes(rng, 1, how), corpus.config)
            changed[start : start + crop] = made_of[0].half().numpy()
        made.append(stream_latents(vae, changed, patch).half())
    return torch.stack(made)
