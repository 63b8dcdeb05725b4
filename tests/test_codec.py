"""The codec: rates, lengths, seeds, long files in pieces, options of sampling, saving and everything refused."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evalkit.audio import Clip, resample
from evalkit.errors import ContractError, EvalkitError, Unavailable, UsageError
from evalkit.tokens import Tokens
from tokenizer import codec
from tokenizer.blocks import DiTBlock
from tokenizer.codec import SoundTokenizer, TokenizerConfig, find_folder, noise
from tokenizer.mel import MelConfig
from tokenizer.quantizer import QuantizerConfig
from tokenizer.vocoder import Vocoder

Make = Callable[..., SoundTokenizer]
RATE = 24_000
HOP = 1024
LENGTHS = (1, 240, 1023, 1024, 1025, 23_999, 48_000)


def sound(length: int, channels: int = 1, seed: int = 0, rate: int = RATE) -> Clip:
    """A gliding tone with bursts of noise, whose level changes all the time."""
    rng = np.random.default_rng(seed)
    t = np.arange(length) / rate
    tone = np.sin(2 * np.pi * (200 * t + 150 * t**2) * (1 + np.arange(channels)[:, None]))
    bursts = rng.standard_normal((channels, length)) * (np.sin(2 * np.pi * 3.1 * t + seed) > 0.4)
    return Clip(0.3 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * t)) + 0.1 * bursts, rate)


def blocks_of(samples: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return np.split(samples, sorted(c % (samples.shape[1] + 1) for c in cuts), axis=1)


# -- rates ------------------------------------------------------------------------------------------------------------


def test_the_rate_follows_from_the_configuration() -> None:
    config = TokenizerConfig()
    assert config.hop == config.mel.hop * config.vae.patch == HOP
    assert config.frame_rate == RATE / HOP == 23.4375
    assert config.bitrate == config.frame_rate * math.log2(1024) == 234.375
    half = dataclasses.replace(config, quantizer=QuantizerConfig(size=32), mel=MelConfig(hop=512, n_fft=2048))
    assert half.bitrate == RATE / 2048 * 5
    assert dataclasses.replace(config, quantizer=QuantizerConfig("rvq", size=64, levels=3)).bitrate == 23.4375 * 18
    assert dataclasses.replace(config, quantizer=None, decoder=None).bitrate == 23.4375 * 32 * config.vae.latent


def test_the_tokens_have_that_rate(tiny: Make) -> None:
    for tokenizer, channels in ((tiny(), 1), (tiny(), 2), (tiny({"kind": "rvq"}), 2)):
        tokens = tokenizer.encode(sound(48_000, channels))
        assert tokens.nominal_kbps * 1000 == pytest.approx(channels * tokenizer.config.bitrate)
        assert tokens.codes.shape[1] == -(-48_000 // HOP) and tokens.side_bits == tokens.container_bits == 0


# -- encoding and decoding --------------------------------------------------------------------------------------------


def test_encoding_is_deterministic_and_does_not_depend_on_its_batch(tiny: Make) -> None:
    tokenizer = tiny()
    clips = [sound(48_000, seed=1), sound(47_500, seed=2), sound(30_000, 2, seed=3), sound(48_000, seed=4)]
    alone = [tokenizer.encode(c) for c in clips]
    for one, other in zip(alone, tokenizer.encode_batch(clips), strict=True):
        assert np.array_equal(one.codes, other.codes) and one.samples == other.samples
    for clip, one in zip(clips, alone, strict=True):
        assert np.array_equal(tokenizer.encode(clip).codes, one.codes)
    assert len(np.unique(alone[0].codes)) > 4, "codes that never change would pass everything"
    left = tokenizer.encode(Clip(clips[2].samples[:1], RATE))
    assert np.array_equal(alone[2].codes[:1], left.codes)


@pytest.mark.parametrize("objective", ["fm", "mse"])
def test_lengths_are_exact_and_the_seed_decides(tiny: Make, objective: str) -> None:
    tokenizer = tiny(objective=objective)
    for length in LENGTHS:
        for channels in (1, 2):
            clip = sound(length, channels)
            tokens = tokenizer.encode(clip)
            one, same, other = (tokenizer.decode(tokens, s) for s in (5, 5, 6))
            assert one.samples.shape == (channels, length) and one.sample_rate == RATE
            assert np.isfinite(one.samples).all()
            assert one.samples.tobytes() == same.samples.tobytes()
            assert not np.array_equal(one.samples, other.samples)
        left = tokenizer.decode(tokenizer.encode(Clip(clip.samples[:1], RATE)), 5)
        assert np.array_equal(left.samples[0], one.samples[0])
        if length > HOP:
            assert not np.array_equal(one.samples[0], one.samples[1])


def test_the_flow_is_what_the_seed_changes(tiny: Make) -> None:
    """Latents of the flow differ with the seed; the twin's and the mean's do not (their phases alone do)."""
    for options, differs in (({"objective": "fm"}, True), ({"objective": "mse"}, False)):
        tokenizer = tiny(**options)
        codes = torch.from_numpy(tokenizer.encode(sound(48_000)).codes.astype(np.int64).T.copy())[None]
        assert tokenizer.quantizer is not None
        condition = tokenizer.quantizer.vectors(codes)
        made = [tokenizer.sampler()(condition, noise(s, 0, codes.shape[1], 8)[None]) for s in (1, 2)]
        assert torch.equal(*made) is not differs


def test_a_batch_decodes_as_its_clips_do(tiny: Make) -> None:
    """To the byte on the CPU: the harness decodes in batches, and again alone when it scores a run anew."""
    tokenizer = tiny()
    tokens = [tokenizer.encode(sound(n, c, seed=n)) for n, c in ((40_000, 1), (40_500, 2), (9_000, 1), (40_000, 1))]
    made = tokenizer.decode_batch(tokens, [3, 4, 5, 6])
    for clip, one, seed in zip(made, tokens, (3, 4, 5, 6), strict=True):
        assert clip.samples.tobytes() == tokenizer.decode(one, seed).samples.tobytes()


def test_extreme_signals(tiny: Make) -> None:
    n = 24_100
    square = np.where(np.arange(n) * 440 // RATE % 2, 1.0, -1.0)
    for objective in ("fm", "mse"):
        tokenizer = tiny(objective=objective)
        for x in (np.zeros(n), np.full(n, 0.5), square, 40 * square, np.full(n, 1e-30)):
            made = tokenizer.decode(tokenizer.encode(Clip(x[None], RATE)), 0)
            assert made.samples.shape == (1, n) and np.isfinite(made.samples).all()


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_another_sample_rate_is_resampled(tiny: Make, rate: int) -> None:
    tokenizer = tiny()
    clip = sound(rate + 77, 2, rate=rate)
    tokens = tokenizer.encode(clip)
    there = resample(clip, RATE)
    assert (tokens.sample_rate, tokens.samples) == (RATE, there.length)
    assert np.array_equal(tokens.codes, tokenizer.encode(there).codes)
    assert tokenizer.decode(tokens, 0).samples.shape == there.samples.shape


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": (64,)},
        {"sizes": (16,), "codes": np.zeros((1, 47), dtype=int)},
        {"sizes": (32, 16), "codes": np.zeros((2, 47), dtype=int)},
        {"sample_rate": 16_000},
        {"frame_rate": 12.5},
        {"samples": 47_000},
        {"codes": np.zeros((1, 46), dtype=int)},
    ],
)
def test_tokens_of_another_codec_are_refused(tiny: Make, change: dict[str, Any]) -> None:
    tokenizer = tiny()
    tokens = tokenizer.encode(sound(48_000))
    tokenizer.decode(tokens, 0)
    with pytest.raises(ContractError, match="this tokenizer"):
        tokenizer.decode(dataclasses.replace(tokens, **change), 0)
    with pytest.raises(ContractError, match="this tokenizer"):
        tokenizer.decode_blocks(dataclasses.replace(tokens, **change), 0)


def test_rvq_tokens_are_refused_by_one_codebook_short(tiny: Make) -> None:
    two, one = tiny({"kind": "rvq"}), tiny()
    stereo = one.encode(sound(9_000, 3))
    with pytest.raises(ContractError):
        two.decode(stereo, 0)  # three codebooks, two a channel


def test_parts_that_are_absent(tiny: Make) -> None:
    config = tiny().config
    vae = SoundTokenizer(dataclasses.replace(config, quantizer=None, decoder=None))
    with pytest.raises(UsageError, match="no quantizer"):
        vae.encode(sound(9_000))
    codes_only = SoundTokenizer(dataclasses.replace(config, decoder=None))
    tokens = tiny().encode(sound(9_000))
    assert tokens.codes.shape == (1, 9)
    with pytest.raises(UsageError, match="no decoder"):
        codes_only.decode(tokens, 0)
    with pytest.raises(ValueError, match="needs a quantizer"):
        SoundTokenizer(dataclasses.replace(config, quantizer=None))


# -- long files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "CHUNK_SECONDS", 2.0)


@pytest.fixture(scope="module")
def long(tiny: Make) -> tuple[Clip, np.ndarray]:
    """20 seconds, and their codes in one piece."""
    clip = sound(20 * RATE + 333, 2)
    return clip, tiny().encode(clip).codes


def test_codes_of_pieces_are_those_of_the_whole(tiny: Make, long: tuple[Clip, np.ndarray], two_seconds: None) -> None:
    """Every code: the context is exact, and nothing here is so near a tie that rounding decides."""
    clip, whole = long
    tokenizer = tiny()
    assert np.array_equal(tokenizer.encode(clip).codes, whole)
    pieces = list(tokenizer.encode_blocks([clip.samples]))
    assert len(pieces) > 8 and np.array_equal(np.concatenate(pieces, axis=1), whole)


@given(cuts=st.lists(st.integers(0, 6 * RATE), max_size=40))
@hypothesis_settings(max_examples=12)
def test_any_blocks_give_the_same_codes(tiny: Make, cuts: list[int]) -> None:
    clip = sound(6 * RATE + 11, seed=4)
    tokenizer = tiny()
    with pytest.MonkeyPatch.context() as patch:
        whole = tokenizer.encode(clip).codes
        latents = np.concatenate(list(tokenizer.latent_blocks([clip.samples])), axis=-1)
        patch.setattr(codec, "CHUNK_SECONDS", 2.0)
        blocks = blocks_of(clip.samples, cuts)
        assert np.array_equal(np.concatenate(list(tokenizer.encode_blocks(blocks)), axis=1), whole)
        again = np.concatenate(list(tokenizer.latent_blocks(blocks)), axis=-1)
    assert np.abs(again - latents).max() < 1e-4


def test_one_frame_less_of_context_is_not_enough(
    tiny: Make, long: tuple[Clip, np.ndarray], two_seconds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the equality above rests on, less the frame for the window that rarely matters."""
    clip, _ = long
    tokenizer = tiny()
    whole = np.concatenate(list(tokenizer.latent_blocks([clip.samples])), axis=-1)
    exact = list(tokenizer._pieces([clip.samples], tokenizer.vae.context[0], tokenizer._latents))
    short = list(tokenizer._pieces([clip.samples], tokenizer.vae.context[0] - 2, tokenizer._latents))
    assert np.abs(np.concatenate(exact, axis=-1) - whole).max() < 1e-4
    assert np.abs(np.concatenate(short, axis=-1) - whole).max() > 1e-3


def test_no_blocks_are_no_codes(tiny: Make) -> None:
    assert list(tiny().encode_blocks([])) == []
    assert list(tiny().encode_blocks([np.zeros((1, 0))])) == []


@pytest.mark.parametrize(
    "decoder",
    [
        {"objective": "fm", "solver": "midpoint"},
        {"objective": "fm", "solver": "euler", "evaluations": 3},
        {"objective": "mse"},
        {"objective": "fm", "block": "dit", "evaluations": 2},
    ],
)
def test_audio_of_pieces_is_that_of_the_whole(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, decoder: dict[str, Any]
) -> None:
    """Within what Griffin-Lim carries over its own context; the latents' context is exact."""
    monkeypatch.setattr(DiTBlock, "reach", 6)
    tokenizer = tiny(**decoder)
    tokens = tokenizer.encode(sound(12 * RATE + 345, 2, seed=9))
    whole = tokenizer.decode(tokens, 7).samples
    monkeypatch.setattr(codec, "CHUNK_SECONDS", 2.0)
    pieces = list(tokenizer.decode_blocks(tokens, 7))
    assert len(pieces) == 6 and max(p.shape[1] for p in pieces) <= 2 * RATE + HOP
    joined = np.concatenate(pieces, axis=1)
    assert joined.shape == whole.shape
    assert np.abs(joined - whole).max() < 1e-3 * np.abs(whole).max()


@pytest.mark.parametrize(("solver", "evaluations"), [("midpoint", 4), ("euler", 3), ("mean", None)])
def test_the_context_of_a_sampler_is_what_it_sees(tiny: Make, solver: str, evaluations: int | None) -> None:
    """A code changed in the middle changes latents as far away as the context says, and no further."""
    tokenizer = tiny()
    assert tokenizer.quantizer is not None and tokenizer.decoder is not None
    sampler = tokenizer.sampler(evaluations, None, solver)
    assert sampler.context == tokenizer.decoder.context * (evaluations or 1)
    condition, x0 = torch.randn(1, 121, 6), noise(0, 0, 121, 8)[None]
    changed = condition.clone()
    changed[0, 60] += 1000
    with torch.inference_mode():
        seen = (sampler(changed, x0) != sampler(condition, x0))[0].any(1).nonzero()[:, 0] - 60
    last = max(tokenizer.decoder.context * ((evaluations or 1) - 1), 3)
    assert last < int(seen.max()) <= sampler.context and last < -int(seen.min()) <= sampler.context


class Level(Vocoder):
    """Each frame's level, held for a hop: no context of its own, so that nothing hides what pieces do to the mel."""

    def __init__(self, mel: MelConfig) -> None:
        super().__init__("level", mel, 0, 0, "")

    def _decode(self, log_mel: torch.Tensor, seeds: Sequence[int], first_frame: int) -> torch.Tensor:
        return log_mel.mean(1).repeat_interleave(self.mel.hop, dim=1)


@pytest.mark.parametrize(
    "decoder",
    [
        {"objective": "fm", "solver": "midpoint"},
        {"objective": "fm", "solver": "euler", "evaluations": 3},
        {"objective": "mse"},
        {"objective": "fm", "block": "dit", "evaluations": 2},
    ],
)
def test_mels_of_pieces_are_those_of_the_whole(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, decoder: dict[str, Any]
) -> None:
    monkeypatch.setattr(DiTBlock, "reach", 6)
    tokenizer = tiny(**decoder)
    monkeypatch.setattr(tokenizer, "vocoder", Level(tokenizer.config.mel))
    tokens = tokenizer.encode(sound(12 * RATE + 345, seed=9))
    whole = tokenizer.decode(tokens, 7).samples
    monkeypatch.setattr(codec, "CHUNK_SECONDS", 1.0)
    joined = np.concatenate(list(tokenizer.decode_blocks(tokens, 7)), axis=1)
    assert whole.std() > 0.01 and np.abs(joined - whole).max() < 2e-5


def test_options_of_decode_blocks(tiny: Make) -> None:
    tokenizer = tiny()
    tokens = tokenizer.encode(sound(9_000))
    made = np.concatenate(list(tokenizer.decode_blocks(tokens, 1, guidance=2.0)), axis=1)
    assert np.array_equal(made, tokenizer.decode(tokens, 1, guidance=2.0).samples)
    with pytest.raises(TypeError):
        tokenizer.decode_blocks(tokens, 1, guidence=2.0)


@given(st.integers(0, 2**32 - 1), st.integers(0, 1000), st.integers(1, 600), st.data())
def test_noise_depends_on_the_place_alone(seed: int, first: int, frames: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, frames - 1))
    whole = noise(seed, first, frames, 3)
    assert whole.shape == (frames, 3)
    assert torch.equal(whole[cut:], noise(seed, first + cut, frames - cut, 3))


def test_noise_is_standard_normal() -> None:
    x = noise(3, 100, 20_000, 4)
    assert abs(float(x.mean())) < 0.02 and abs(float(x.std()) - 1) < 0.02
    assert abs(float((x[:-256] * x[256:]).mean())) < 0.02  # blocks are independent


def test_an_hour_is_encoded_in_bounded_memory(tiny: Make, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "model")
    script = textwrap.dedent(
        f"""
        import resource, sys
        import numpy as np, torch
        from tokenizer import SoundTokenizer
        torch.set_num_threads(1)
        tokenizer = SoundTokenizer.from_pretrained({str(tmp_path / "model")!r})
        def blocks(seconds):
            rng = np.random.default_rng(0)
            for _ in range(seconds):
                yield rng.standard_normal((1, {RATE}), dtype=np.float32)
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        frames = sum(c.shape[1] for c in tokenizer.encode_blocks(blocks(150)))
        before = peak()
        frames = sum(c.shape[1] for c in tokenizer.encode_blocks(blocks(3600)))
        print(frames, peak() - before)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    frames, grown = done.stdout.split()
    assert int(frames) == -(-3600 * RATE // HOP)
    assert float(grown) < 60, f"{grown} MiB more for an hour than for 150 s (an hour of samples is 330 MiB)"


# -- options of sampling ----------------------------------------------------------------------------------------------


def test_evaluations_are_what_they_say(tiny: Make) -> None:
    tokenizer = tiny()
    assert tokenizer.quantizer is not None and tokenizer.decoder is not None
    condition = tokenizer.quantizer.vectors(torch.arange(30)[None, :, None])
    x0 = noise(0, 0, 30, 8)[None]
    for options, expected in (
        ({}, 4),
        ({"evaluations": 6}, 6),
        ({"solver": "euler", "evaluations": 5}, 5),
        ({"guidance": 2.0}, 8),
        ({"guidance": 0.0}, 4),
        ({"solver": "mean"}, 1),
    ):
        with torch.inference_mode():
            made, count = tokenizer.sampler(**options).counted(condition, x0)
        assert count == expected and made.shape == x0.shape, options
    with torch.inference_mode():
        assert torch.equal(tokenizer.sampler(solver="mean")(condition, x0), tokenizer.decoder.mean(condition))
        ways = [{}, {"evaluations": 8}, {"solver": "euler"}, {"guidance": 2.0}, {"guidance": 0.0}, {"solver": "mean"}]
        made = [tokenizer.sampler(**w)(condition, x0) for w in ways]
    for i, a in enumerate(made):
        for b in made[:i]:
            assert (a - b).abs().max() > 1e-4


def test_the_twin_is_one_evaluation_of_the_mean(tiny: Make) -> None:
    twin = tiny(objective="mse")
    tokens = twin.encode(sound(9_000))
    assert twin.sampler().solver is None and twin.sampler(solver="mean").solver is None
    assert np.array_equal(twin.decode(tokens, 1).samples, twin.decode(tokens, 1, solver="mean").samples)


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("fm", {"evaluations": 3}),
        ("fm", {"evaluations": 0}),
        ("fm", {"evaluations": -2}),
        ("fm", {"solver": "heun"}),
        ("fm", {"guidance": math.nan}),
        ("fm", {"guidance": math.inf}),
        ("fm", {"solver": "mean", "evaluations": 4}),
        ("fm", {"solver": "mean", "guidance": 2.0}),
        ("mse", {"evaluations": 4}),
        ("mse", {"guidance": 1.5}),
        ("mse", {"solver": "euler"}),
    ],
)
def test_options_that_cannot_be(tiny: Make, objective: str, options: dict[str, Any]) -> None:
    tokenizer = tiny(objective=objective)
    with pytest.raises(UsageError):
        tokenizer.decode(tokenizer.encode(sound(2_000)), 0, **options)


# -- saving and loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vq", "rvq", "fsq", "kmeans", "variational"])
def test_saved_and_loaded_it_is_the_same(tiny: Make, tmp_path: Path, kind: str) -> None:
    tokenizer = tiny({"kind": kind})
    tokenizer.save_pretrained(tmp_path / "model", {"data": {"trained_on": {"x": {"c": ["1"]}}}})
    again = SoundTokenizer.from_pretrained(tmp_path / "model")
    assert again.config == tokenizer.config and not again.training
    assert again.card == {"data": {"trained_on": {"x": {"c": ["1"]}}}}
    clip = sound(50_001, 2)
    tokens = tokenizer.encode(clip)
    assert np.array_equal(again.encode(clip).codes, tokens.codes)
    assert again.decode(tokens, 3).samples.tobytes() == tokenizer.decode(tokens, 3).samples.tobytes()
    assert SoundTokenizer.from_pretrained(tmp_path / "model", vocoder="griffin-lim:2").config.vocoder == "griffin-lim:2"


def test_half_precision(tiny: Make, tmp_path: Path) -> None:
    tokenizer = tiny()
    tokenizer.save_pretrained(tmp_path / "half", half=True)
    tokenizer.save_pretrained(tmp_path / "full")
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("half", "full")]
    assert sizes[0] < 0.7 * sizes[1]
    stored = load_file(tmp_path / "half" / "model.safetensors")
    trained = {name for name, _ in tokenizer.named_parameters()}
    assert {k for k, v in stored.items() if v.dtype == torch.float16} == trained
    again = SoundTokenizer.from_pretrained(tmp_path / "half")
    for name, value in again.state_dict().items():
        before = tokenizer.state_dict()[name]
        assert value.dtype == before.dtype
        if name in trained:
            assert torch.equal(value, before.half().float())
        else:
            assert torch.equal(value, before), name
    clip = sound(48_000)
    same = np.mean(again.encode(clip).codes == tokenizer.encode(clip).codes)
    assert same > 0.8
    assert np.isfinite(again.decode(again.encode(clip), 0).samples).all()


@pytest.fixture
def folder(tiny: Make, tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    value = load_file(path)
    change(value)
    save_file(value, path)


def poison(value: dict[str, torch.Tensor], number: float) -> None:
    value["vae.posterior.weight"][0, 0] = number


BAD_WEIGHTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "damaged or incomplete"),
    "cut in its header": (lambda p: p.write_bytes(p.read_bytes()[:50]), "damaged or incomplete"),
    "empty": (lambda p: p.write_bytes(b""), "damaged or incomplete"),
    "garbage": (lambda p: p.write_bytes(b"\xff" * 5000), "damaged or incomplete"),
    "absent": (lambda p: p.unlink(), "cannot be read"),
    "other shapes": (
        lambda p: tensors(p.parent, lambda v: v.update({"decoder.empty": torch.zeros(3)})),
        r"1 tensors missing or of another shape.*decoder.empty: \(3,\) in the file, \(6,\) in the model",
    ),
    "unknown tensors": (
        lambda p: tensors(p.parent, lambda v: v.update({"encoder.layer1": torch.zeros(3)})),
        "1 unknown; first encoder.layer1",
    ),
    "missing tensors": (lambda p: tensors(p.parent, lambda v: v.pop("decoder.empty")), "decoder.empty: absent"),
    "another network": (lambda p: save_file({"a": torch.zeros(2)}, p), "not the weights of this configuration"),
    "not a number": (lambda p: tensors(p.parent, lambda v: poison(v, math.nan)), "posterior.weight holds NaN"),
    "infinite": (lambda p: tensors(p.parent, lambda v: poison(v, math.inf)), "posterior.weight holds NaN or inf"),
}


@pytest.mark.parametrize("what", BAD_WEIGHTS)
def test_bad_weights_are_one_clear_error(folder: Path, what: str) -> None:
    damage, message = BAD_WEIGHTS[what]
    damage(folder / "model.safetensors")
    with pytest.raises(EvalkitError, match=message) as caught:
        SoundTokenizer.from_pretrained(folder)
    assert str(folder / "model.safetensors") in str(caught.value)


BAD_CONFIGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (lambda p: p.unlink(), "cannot be read"),
    "no JSON": (lambda p: p.write_text("{"), "cannot be read as JSON"),
    "bytes": (lambda p: p.write_bytes(b"\xff\xfe\x00"), "cannot be read as JSON"),
    "a list": (lambda p: p.write_text("[1]"), "not the file of a sound tokenizer"),
    "of something else": (lambda p: p.write_text('{"model_type": "bert"}'), "no `config` in it"),
    "another format": (lambda p: edit(p.parent, lambda v: v.update(format=99)), "format 99, this version reads"),
    "no format": (lambda p: edit(p.parent, lambda v: v.pop("format")), "format None"),
    "unknown field": (lambda p: edit(p.parent, lambda v: v["config"]["vae"].update(colour=1)), "colour"),
    "unknown part": (lambda p: edit(p.parent, lambda v: v["config"].update(prosody={})), "prosody"),
    "missing part": (lambda p: edit(p.parent, lambda v: v["config"].pop("vae")), "vae"),
    "a part of no kind": (lambda p: edit(p.parent, lambda v: v["config"].update(vae=3)), "not the configuration"),
    "unknown quantizer": (lambda p: edit(p.parent, lambda v: v["config"]["quantizer"].update(kind="lfq")), "lfq"),
    "unknown block": (lambda p: edit(p.parent, lambda v: v["config"]["decoder"].update(block="mamba")), "mamba"),
    "a width in words": (lambda p: edit(p.parent, lambda v: v["config"]["vae"].update(width="big")), "built from it"),
    "decoder alone": (lambda p: edit(p.parent, lambda v: v["config"].update(quantizer=None)), "needs a quantizer"),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_bad_configurations_are_one_clear_error(folder: Path, what: str) -> None:
    damage, message = BAD_CONFIGS[what]
    damage(folder / "config.json")
    with pytest.raises(EvalkitError, match=message) as caught:
        SoundTokenizer.from_pretrained(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_an_unknown_vocoder_is_a_usage_error(folder: Path) -> None:
    with pytest.raises(UsageError, match="vocoder 'wavenet'"):
        SoundTokenizer.from_pretrained(folder, vocoder="wavenet")


def test_finding_a_tokenizer(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped"
    folder.parent.mkdir(exist_ok=True)
    monkeypatch.setattr(codec, "SHIPPED", shipped)
    with pytest.raises(Unavailable, match="no tokenizer 'vqfm': shipped here: none"):
        find_folder("vqfm")
    for name in ("vqfm", "vae"):
        (shipped / name).mkdir(parents=True)
        (shipped / name / "config.json").write_text("{}")
    (shipped / "notes").mkdir()
    assert find_folder("vqfm") == shipped / "vqfm"
    assert find_folder(folder) == find_folder(str(folder)) == folder
    for name in ("vqfn", "./nowhere/at", "/no/where", "a/b/c"):
        with pytest.raises(Unavailable, match="shipped here: vae, vqfm; or name a folder"):
            find_folder(name)


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"no tokenizer 'someone/model' here.*Name or service not known"):
        SoundTokenizer.from_pretrained("someone/model")
    assert time.monotonic() - started < 2
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path))
    assert find_folder("someone/model") == tmp_path
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Unavailable, match="pip install huggingface_hub"):
        find_folder("someone/model")


def test_tokens_hold_no_more_than_codes(tiny: Make) -> None:
    """What a file would keep decodes to the same audio: nothing passes by another way."""
    tokenizer = tiny()
    tokens = tokenizer.encode(sound(30_000))
    copy = Tokens(tokens.codes.astype(np.int64), (32,), 23.4375, 30_000, RATE)
    assert np.array_equal(tokenizer.decode(copy, 2).samples, tokenizer.decode(tokens, 2).samples)
