"""The shipped weights: whole, small, on the same codes, honest about their data, and better than the floors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from evalkit.audio import Clip, mono, read_clip, resample
from evalkit.datasets.load import load_dataset
from evalkit.datasets.scenes import make_clip
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.metrics.spectral import log_mel
from evalkit.systems.load import load_system
from evalkit.work import run_system
from tokenizer import codec, metrics
from tokenizer.codec import SHIPPED, SoundTokenizer
from tokenizer.quantizer import usage

NAMES = ("vqfm", "vqmse", "vae")


@pytest.fixture(scope="module")
def shipped() -> dict[str, SoundTokenizer]:
    return {name: SoundTokenizer.from_pretrained(name) for name in NAMES}


def test_they_are_small_and_each_has_a_card() -> None:
    folders = [SHIPPED / name for name in NAMES]
    assert sum((f / "model.safetensors").stat().st_size for f in folders) < 24e6
    for folder in folders:
        card = (folder / "README.md").read_text(encoding="utf-8")
        for what in ("Licence", "Command", "seed", "Held out", "Results", "Limits", "cores"):
            assert what in card, f"{folder.name}: {what}"


def test_the_decoders_are_twins_on_the_same_codes(shipped: dict[str, SoundTokenizer]) -> None:
    fm, twin = shipped["vqfm"], shipped["vqmse"]
    for part in ("vae", "quantizer"):
        a, b = getattr(fm, part).state_dict(), getattr(twin, part).state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert fm.decoder is not None and twin.decoder is not None
    sizes = [[(n, p.shape) for n, p in m.decoder.named_parameters()] for m in (fm, twin)]  # type: ignore[union-attr]
    assert sizes[0] == sizes[1]
    assert (fm.decoder.config.objective, twin.decoder.config.objective) == ("fm", "mse")
    assert fm.config.bitrate == twin.config.bitrate == 234.375
    recipes = [m.card["recipe"] for m in (fm, twin)]
    assert recipes[0] == recipes[1]


def test_the_measured_rate_is_the_nominal_one(shipped: dict[str, SoundTokenizer]) -> None:
    clip = Clip(make_clip("test", 3).samples[:, : 24_000 * 4 // 1024 * 1024], 24_000)  # whole frames: no padding
    tokens = shipped["vqfm"].encode(clip)
    assert tokens.code_bits / clip.seconds == pytest.approx(234.375)


def test_what_is_held_out_was_not_trained_on(shipped: dict[str, SoundTokenizer]) -> None:
    for tokenizer in shipped.values():
        data = tokenizer.card["data"]
        trained = {(d, i) for d, clusters in data["trained_on"].items() for ids in clusters.values() for i in ids}
        held = {(d, i) for d, what in data["held_out"].items() for i in what["clips"]}
        assert held and not trained & held
        for name in ("esc50", "vctk", "librispeech", "fsdd", "fma"):
            assert not set(data["trained_on"][name]) & set(data["held_out"][name]["clusters"])
        assert data["held_out"]["vctk"]["clusters"] == ["p228"]
        assert data["held_out"]["fsdd"]["clusters"] == ["yweweler"]
        assert all(i.startswith("5-") for i in data["held_out"]["esc50"]["clips"])  # fold 5
        assert all(i.startswith("train-") for ids in data["trained_on"]["scenes"].values() for i in ids)


def error(reference: Clip, estimate: Clip) -> float:
    return float(np.abs(log_mel(reference) - log_mel(estimate)).mean())


def losses(clips: list[Clip]) -> dict[str, float]:
    """Mean log-mel L1 in nepers of each system."""
    names = ("copy-synthesis", "vae", "vqmse", "vqfm", "noise", "silence")
    systems = {n: load_system(n).system for n in names}
    return {n: float(np.mean([error(c, run_system(s, c, 0).clip) for c in clips])) for n, s in systems.items()}


def test_every_stage_loses_something_and_none_is_as_bad_as_a_floor() -> None:
    found = losses([make_clip("test", i) for i in range(0, 60, 10)])
    assert found["copy-synthesis"] < found["vae"] < found["vqmse"] < found["vqfm"] < found["noise"] < found["silence"]


def test_real_held_out_sounds_are_kept(shared: Path) -> None:
    items = load_dataset("esc50@subset=esc10@fold=5", shared / "data").layout.items[::8]
    clips = []
    for item in items:
        assert item.path is not None
        clips.append(resample(mono(read_clip(item.path)), 24_000))
    found = losses(clips)
    assert found["copy-synthesis"] < found["vae"] < found["vqmse"] < found["noise"] < found["silence"]
    assert found["vqfm"] < found["noise"]


def test_codes_of_held_out_scenes_are_spread(shipped: dict[str, SoundTokenizer]) -> None:
    codes = [shipped["vqfm"].encode(make_clip("test", i)).codes[0] for i in range(0, 200, 4)]
    found = usage(torch.from_numpy(np.concatenate(codes).astype(np.int64)), 1024)
    assert found.balance > 0.6


def test_guidance_and_few_evaluations_change_the_sound(shipped: dict[str, SoundTokenizer]) -> None:
    clip = make_clip("test", 1)
    tokens = shipped["vqfm"].encode(clip)
    plain = shipped["vqfm"].decode(tokens, 0)
    for options in ({"evaluations": 2}, {"guidance": 2.0}, {"solver": "euler"}, {"solver": "mean"}):
        assert not np.array_equal(plain.samples, shipped["vqfm"].decode(tokens, 0, **options).samples)


# -- latent_mse -------------------------------------------------------------------------------------------------------


def test_latent_mse_grows_with_noise_and_is_0_for_a_copy() -> None:
    clip = make_clip("test", 0)
    noise = np.random.default_rng(0).standard_normal(clip.samples.shape)
    values = [metrics.latent_mse(clip, clip.with_samples(clip.samples + g * noise)) for g in (0.0, 0.003, 0.03, 0.3)]
    assert values[0] == 0 and values == sorted(values) and values[-1] > 0.5


def test_latent_mse_is_of_standardised_means(shipped: dict[str, SoundTokenizer]) -> None:
    a, b = (Clip(make_clip("test", i).samples[:, :49_152], 24_000) for i in (0, 1))
    vae = shipped["vae"]
    with torch.inference_mode():
        first, second = (vae.vae.encode(vae.mel(torch.from_numpy(c.samples)))[0] for c in (a, b))
        wanted = float((((first - second) / vae.vae.latent_std) ** 2).mean())
    assert metrics.latent_mse(a, b) == pytest.approx(wanted, rel=1e-4)


def test_latent_mse_knows_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: object) -> None:
    clip = make_clip("test", 0)
    metrics._vae.cache_clear()
    try:
        monkeypatch.setattr(metrics, "WEIGHTS", "f" * 16)
        with pytest.raises(EvalkitError, match="not the weights of this version"):
            metrics.latent_mse(clip, clip)
        monkeypatch.setattr(codec, "SHIPPED", tmp_path)
        with pytest.raises(NotApplicable, match="no tokenizer 'vae'"):
            metrics.latent_mse(clip, clip)
    finally:
        metrics._vae.cache_clear()


def test_the_weights_are_finite_and_in_half_precision() -> None:
    from safetensors.torch import load_file

    for name in NAMES:
        tensors = load_file(SHIPPED / name / "model.safetensors")
        assert all(bool(torch.isfinite(v).all()) for v in tensors.values() if v.is_floating_point())
        halves = sum(v.numel() for v in tensors.values() if v.dtype == torch.float16)
        assert halves > 0.9 * sum(v.numel() for v in tensors.values())
    assert math.isclose(SoundTokenizer.from_pretrained("vae").config.bitrate, 24_000)
