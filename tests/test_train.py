"""Training: from a command to tokenizers, killed and resumed to the same bytes, and on several processes."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evalkit.audio import Clip
from evalkit.datasets.scenes import make_clip
from evalkit.errors import EvalkitError, UsageError
from tokenizer import train as training
from tokenizer.codec import SoundTokenizer
from tokenizer.data import Source
from tokenizer.network import DecoderConfig, DecoderNetwork
from tokenizer.quantizer import Quantizer, QuantizerConfig
from tokenizer.recipe import PRESETS, Recipe, Stage, recipe
from tokenizer.train import TokenStage, learning_rate, train

STEPS = ("vae.steps=12", "codes.steps=12", "decoder.steps=12", "checkpoint_every=4")
FEW = ("vae.steps=2", "codes.steps=3", "decoder.steps=2", "validate_every=1000")
SMALL = (
    "sources=scenes@split=train@clips=5",
    *(f"tokenizer.{k}" for k in ("vae.width=16", "vae.blocks=1", "vae.latent=6", "quantizer.size=16")),
    *(f"tokenizer.{k}" for k in ("quantizer.width=12", "quantizer.dim=4", "decoder.width=16", "decoder.blocks=1")),
    *(f"{stage}.{k}" for stage in ("vae", "codes", "decoder") for k in ("batch=4", "crop=16")),
)
"""Overrides of `tiny` with which a step takes milliseconds."""
REVIVING = ("tokenizer.quantizer.revive=0.9", "tokenizer.quantizer.decay=0.3")
"""Codes are replaced from about the fifth step on."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("cache")


def command(out: Path, cache: Path, *overrides: str) -> list[str]:
    evalkit = ["-m", "evalkit", "train", "tokenizer", "--preset", "tiny", "--out", str(out), "--cache", str(cache)]
    return [sys.executable, *evalkit, *overrides]


def quiet(made: Recipe, out: Path, cache: Path, **options: Any) -> dict[str, Path]:
    return train(made, out, cache=cache, tell=lambda text: None, **options)


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path, stage: str) -> list[float]:
    return [e["loss"] for e in log(folder) if e["stage"] == stage and "loss" in e]


def weights(folder: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in sorted(folder.glob("models/*/model.safetensors"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """What the command makes, uninterrupted."""
    out = tmp_path_factory.mktemp("finished") / "run"
    started = time.monotonic()
    done = subprocess.run(command(out, cache, *STEPS), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 30
    assert done.stdout.splitlines() == [f"{n}: {out}/models/{n}" for n in ("vae", "vqfm", "vqmse")]
    return out


# -- what comes of it -------------------------------------------------------------------------------------------------


def test_the_command_trains_what_encodes_and_decodes(finished: Path) -> None:
    assert {p.name for p in (finished / "models").iterdir()} == {"vae", "vqfm", "vqmse"}
    for stage in ("vae", "codes", "fm", "mse"):
        first, *_, last = losses(finished, stage)
        assert last < 0.95 * first, stage
        assert list((finished / "tensorboard" / stage).glob("events*"))
        assert (finished / "validation" / f"{stage}-000012.png").stat().st_size > 10_000
    clip = make_clip("test", 0)
    vqfm, vqmse = (SoundTokenizer.from_pretrained(finished / "models" / n) for n in ("vqfm", "vqmse"))
    tokens = vqfm.encode(clip)
    assert np.array_equal(vqmse.encode(clip).codes, tokens.codes) and len(np.unique(tokens.codes)) > 1
    for tokenizer in (vqfm, vqmse):
        made = tokenizer.decode(tokens, 0)
        assert made.samples.shape == clip.samples.shape and np.isfinite(made.samples).all()
    with pytest.raises(UsageError, match="no quantizer"):
        SoundTokenizer.from_pretrained(finished / "models" / "vae").encode(clip)


def test_the_card_says_what_it_was_made_of(finished: Path) -> None:
    card = SoundTokenizer.from_pretrained(finished / "models" / "vqfm").card
    assert card["model"] == "vqfm" and card["recipe"]["vae"]["steps"] == 12
    trained = card["data"]["trained_on"]["scenes"]
    assert sorted(i for ids in trained.values() for i in ids) == [f"train-{i:04}" for i in range(24)]
    assert set(card["validation"]) == {"vae", "codes", "fm", "mse"}
    assert card["validation"]["fm"]["step"] == 12 and card["validation"]["vae"]["validation_l1"] > 0


def test_the_twins_differ_in_their_objective_alone(
    finished: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fm, mse = (SoundTokenizer.from_pretrained(finished / "models" / n) for n in ("vqfm", "vqmse"))
    assert fm.parameters_count == mse.parameters_count
    assert fm.config.decoder == dataclasses.replace(mse.config.decoder, objective="fm")
    for name, value in fm.state_dict().items():
        same = torch.equal(value, mse.state_dict()[name])
        assert same or name.startswith("decoder."), name

    seen: list[list[str]] = []
    real = training.token_batches

    def recorded(*args: Any) -> Callable[[int], training.Batch]:
        batch_of, mine = real(*args), []
        seen.append(mine)

        def recording(step: int) -> training.Batch:
            batch = batch_of(step)
            assert step == len(mine)
            mine.append(hashlib.sha256(b"".join(batch[k].numpy().tobytes() for k in sorted(batch))).hexdigest())
            return batch

        return recording

    monkeypatch.setattr(training, "token_batches", recorded)
    quiet(recipe("tiny", [*SMALL, *FEW]), tmp_path / "run", cache)
    codes, first, second = seen
    assert first == second and len(set(first)) == 2 and len(codes) == 3
    assert not set(codes) & set(first)


def test_what_is_kept_is_the_average_with_the_newest_codebook(finished: Path) -> None:
    state = torch.load(finished / "codes" / "checkpoint.pt", weights_only=True)
    raw, averaged = state["module"], {k.removeprefix("module."): v for k, v in state["averaged"].items()}
    assert int(averaged.pop("n_averaged")) == state["step"] == 12
    assert set(raw) == set(averaged)
    moved = {k for k in raw if not torch.equal(raw[k], averaged[k])}
    buffers = {k for k in raw if "_codebook" in k}
    assert len(buffers) == 4 and not moved & buffers
    assert "quantizer.enter.weight" in moved and "decoder.leave.weight" in moved
    stored = load_file(finished / "models" / "vqfm" / "model.safetensors")
    assert torch.equal(stored["quantizer.enter.weight"], averaged["quantizer.enter.weight"])


def test_learning_rate() -> None:
    stage = Stage(100, lr=1.0, warmup=0.1)
    rates = [learning_rate(stage, s) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and 0 < rates[99] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize(
    ("overrides", "models"),
    [
        (("tokenizer.quantizer.kind=rvq", "tokenizer.quantizer.levels=2"), {"vae", "vqfm", "vqmse"}),
        (("tokenizer.quantizer.kind=fsq", "tokenizer.quantizer.fsq=4,4,3"), {"vae", "vqfm", "vqmse"}),
        (("tokenizer.quantizer.kind=kmeans",), {"vae", "vqfm", "vqmse"}),
        (("tokenizer.quantizer.kind=variational",), {"vae", "vqfm", "vqmse"}),
        (("mode=joint",), {"vae", "vqfm", "vqmse"}),
        (("mode=joint", "tokenizer.quantizer.kind=variational", "objectives=fm"), {"vae", "vqfm"}),
        (("mode=prior",), {"vae", "vqprior"}),
        (("tokenizer.decoder.block=dit",), {"vae", "vqfm", "vqmse"}),
        (("objectives=mse", "copies=2", "decoder_seed=3"), {"vae", "vqmse"}),
        (("precision=bf16",), {"vae", "vqfm", "vqmse"}),
        (("precision=bf16", "tokenizer.decoder.block=dit", "tokenizer.quantizer.kind=rvq"), {"vae", "vqfm", "vqmse"}),
    ],
)
def test_every_kind_mode_and_block(cache: Path, tmp_path: Path, overrides: tuple[str, ...], models: set[str]) -> None:
    made = quiet(recipe("tiny", [*SMALL, *FEW, *overrides]), tmp_path / "run", cache)
    assert set(made) == models
    clip = make_clip("test", 1)
    short = Clip(clip.samples[:, :30_001], clip.sample_rate)
    for name in models - {"vae"}:
        tokenizer = SoundTokenizer.from_pretrained(made[name])
        tokens = tokenizer.encode(short)
        assert tokenizer.config.quantizer is not None and tokenizer.config.decoder is not None
        assert tokens.sizes == tokenizer.config.quantizer.sizes
        assert name == f"vq{tokenizer.config.decoder.objective}"
        audio = tokenizer.decode(tokens, 0).samples
        assert audio.shape == short.samples.shape and np.isfinite(audio).all()


def test_bf16_is_another_precision_of_the_same_training(finished: Path, cache: Path, tmp_path: Path) -> None:
    quiet(recipe("tiny", [*STEPS, "precision=bf16"]), tmp_path / "run", cache)
    for stage in ("vae", "codes", "fm", "mse"):
        here, there = losses(tmp_path / "run", stage), losses(finished, stage)
        assert here != there and here == pytest.approx(there, rel=0.05), stage


def test_a_loss_that_is_no_number_stops_it(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(EvalkitError, match=r"vae, step \d+: the loss is (nan|inf): lower lr"):
        quiet(recipe("tiny", [*SMALL, *FEW, "vae.steps=30", "vae.lr=1e30"]), tmp_path / "run", cache)


# -- starting from what is there --------------------------------------------------------------------------------------


def test_decoders_on_a_saved_tokenizer(finished: Path, cache: Path, tmp_path: Path) -> None:
    """VAE and quantizer as they are, whatever sizes the recipe names; the clips of both trainings are recorded."""
    source = "scenes@split=train@clips=30"
    overrides = [*SMALL, *FEW, f"sources={source}", f"start={finished / 'models' / 'vqfm'}"]
    made = quiet(recipe("tiny", overrides), tmp_path / "run", cache)
    before, after = (
        SoundTokenizer.from_pretrained(finished / "models/vqfm"),
        SoundTokenizer.from_pretrained(made["vqfm"]),
    )
    for name, value in before.state_dict().items():
        if not name.startswith("decoder."):
            assert torch.equal(value, after.state_dict()[name]), name
    assert after.config.decoder is not None and after.config.decoder.width == 16
    trained = {i for ids in after.card["data"]["trained_on"]["scenes"].values() for i in ids}
    held = set(after.card["data"]["held_out"]["scenes"]["clips"])
    assert trained == {f"train-{i:04}" for i in range(24)} | ({f"train-{i:04}" for i in range(30)} - held)
    assert not (tmp_path / "run" / "vae").exists() and not (tmp_path / "run" / "codes").exists()


@pytest.mark.parametrize("mode", ["shared", "joint"])
def test_codes_on_a_saved_vae(finished: Path, cache: Path, tmp_path: Path, mode: str) -> None:
    overrides = [*SMALL, *FEW, f"mode={mode}", f"start={finished / 'models' / 'vae'}", "objectives=mse"]
    made = quiet(recipe("tiny", overrides), tmp_path / "run", cache)
    tokenizer = SoundTokenizer.from_pretrained(made["vqmse"])
    assert tokenizer.config.vae.latent == 32
    assert tokenizer.config.quantizer is not None and tokenizer.config.quantizer.size == 16
    stored = load_file(finished / "models" / "vae" / "model.safetensors")
    assert all(torch.equal(v, tokenizer.state_dict()[k]) for k, v in stored.items())


# -- killed and resumed -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_several_points_it_finishes_the_same(finished: Path, cache: Path, tmp_path: Path) -> None:
    """SIGKILL, then the same command: weights to the byte, and a log with the same lines."""
    out = tmp_path / "run"

    def logged(stage: str, step: int) -> bool:
        path = out / "log.jsonl"
        return path.is_file() and f'"stage": "{stage}", "step": {step}' in path.read_text()

    moments: Sequence[Callable[[], bool]] = (
        lambda: logged("vae", 5),
        lambda: (out / "codes" / "checkpoint.pt").is_file(),
        lambda: logged("fm", 10),
        lambda: logged("mse", 12),
    )
    killed = 0
    for reached in moments:
        process = subprocess.Popen(command(out, cache, *STEPS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not reached() and process.poll() is None:
            assert time.monotonic() < until, "waited in vain"
            time.sleep(0.002)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 3
    subprocess.run(command(out, cache, *STEPS), check=True, capture_output=True)
    assert weights(out) == weights(finished) and len(weights(out)) == 3
    assert log(out) == log(finished)


@pytest.mark.parametrize("kind", ["vq", "variational"])
def test_stopped_at_any_step_it_goes_on_the_same(cache: Path, tmp_path: Path, kind: str) -> None:
    """With codes revived and noise drawn inside the quantizer, which must not depend on what was drawn before."""
    overrides = [*SMALL, "vae.steps=7", "codes.steps=9", "decoder.steps=6", "checkpoint_every=2", "validate_every=3"]
    made = recipe("tiny", [*overrides, f"tokenizer.quantizer.kind={kind}", *REVIVING])
    quiet(made, tmp_path / "whole", cache)

    class Stopped(Exception):
        pass

    for stage, step in (("vae", 1), ("vae", 6), ("codes", 3), ("codes", 9), ("fm", 5), ("mse", 1), ("mse", 4)):

        def stop(name: str, done: int, steps: int, at: tuple[str, int] = (stage, step)) -> None:
            if (name, done) == at:
                torch.rand(3)  # a process of another past
                raise Stopped

        with pytest.raises(Stopped):
            quiet(made, tmp_path / "parts", cache, bar=stop)
    quiet(made, tmp_path / "parts", cache)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_a_finished_run_only_writes_its_models_again(finished: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "models")
    with (out / "log.jsonl").open("a") as f:
        f.write("")
    steps: list[str] = []
    quiet(recipe("tiny", STEPS), out, cache, bar=lambda stage, done, of: steps.append(stage))
    assert not steps and weights(out) == weights(finished) and log(out) == log(finished)


def test_a_log_cut_off_by_a_kill_is_mended(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    made = recipe("tiny", [*SMALL, "vae.steps=10", "codes.steps=5", "decoder.steps=5"])
    quiet(made, out, cache)
    before = (out / "log.jsonl").read_text()
    (out / "mse" / "checkpoint.pt").unlink()
    (out / "log.jsonl").write_text(before[:-40])
    quiet(made, out, cache)
    assert (out / "log.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("decoder.lr=0.001", "decoder.lr"),
        ("seed=1", "seed"),
        ("tokenizer.vae.kl=0.1", "tokenizer.vae.kl"),
        ("objectives=fm", "objectives"),
        ("sources=scenes@split=train@clips=7", "sources"),
    ],
)
def test_another_recipe_in_the_same_folder_is_refused(finished: Path, cache: Path, override: str, field: str) -> None:
    before = (finished / "log.jsonl").read_bytes()
    with pytest.raises(UsageError, match="a run of another recipe") as caught:
        quiet(recipe("tiny", [*STEPS, override]), finished, cache)
    assert field in str(caught.value) and str(finished) in str(caught.value)
    assert (finished / "log.jsonl").read_bytes() == before


def test_how_often_it_writes_may_change(finished: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    quiet(recipe("tiny", [*STEPS, "checkpoint_every=3", "validate_every=9", "note=x"]), tmp_path / "run", cache)


def _of_another_size(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["module"]["decoder.empty"] = torch.zeros(99)
    torch.save(state, path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(p.read_bytes()[:-1000]),
        lambda p: p.write_bytes(p.read_bytes()[:100]),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"garbage" * 1000),
        lambda p: torch.save({"step": 3}, p),
        lambda p: torch.save([1, 2], p),
        lambda p: torch.save(Path("x"), p),  # code, which is not run
        lambda p: shutil.copy(p.parents[1] / "vae" / "checkpoint.pt", p),
        _of_another_size,
    ],
)
def test_a_bad_checkpoint_is_one_clear_error(
    finished: Path, cache: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    path = out / "codes" / "checkpoint.pt"
    damage(path)
    with pytest.raises(
        EvalkitError, match=r"not a checkpoint of this stage.*delete it to start the stage anew"
    ) as caught:
        quiet(recipe("tiny", STEPS), out, cache)
    assert str(path) in str(caught.value)
    path.unlink()
    quiet(recipe("tiny", STEPS), out, cache)
    assert weights(out) == weights(finished)


def test_a_damaged_recipe_is_one_clear_error(finished: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "recipe.json").write_text('{"name": ')
    with pytest.raises(EvalkitError, match=r"recipe.json: damaged"):
        quiet(recipe("tiny", STEPS), out, cache)


# -- several processes ------------------------------------------------------------------------------------------------


def on_two(out: Path, cache: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """``ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m evalkit train tokenizer ...``"""
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    python, *rest = command(out, cache, *overrides)
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run([python, *launch, *rest], capture_output=True, text=True, env=env, timeout=200)


@pytest.mark.parametrize("kind", ["vq", "variational"])
def test_two_processes_train_as_one(cache: Path, tmp_path: Path, kind: str) -> None:
    """The same losses but for the order of sums, also where codes are revived or sampled; codes may differ at ties."""
    overrides = [*SMALL, "vae.steps=10", "codes.steps=10", "decoder.steps=10", "checkpoint_every=5"]
    overrides += [f"tokenizer.quantizer.kind={kind}", *REVIVING]
    quiet(recipe("tiny", overrides), tmp_path / "one", cache)
    done = on_two(tmp_path / "two", cache, *overrides)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{n}: {tmp_path / 'two' / 'models' / n}" for n in ("vae", "vqfm", "vqmse")]
    assert done.stderr.count("wrote ") == 1
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) == 12
    for a, b in zip(one, two, strict=True):
        stage = a.pop("stage")
        assert stage == b.pop("stage") and a["step"] == b["step"]
        tolerance = 1e-4 if stage == "vae" else 1e-3
        if "loss" in a:
            assert b == pytest.approx(a, rel=tolerance, abs=1e-6)
    files = [
        sorted(str(p.relative_to(tmp_path / n)) for p in (tmp_path / n / "models").rglob("*")) for n in ("one", "two")
    ]
    assert files[0] == files[1]
    stored = [load_file(tmp_path / n / "models" / "vqfm" / "model.safetensors") for n in ("one", "two")]
    for name, value in stored[0].items():
        assert torch.allclose(stored[1][name].float(), value.float(), rtol=1e-2, atol=1e-3), name


def test_two_processes_say_what_is_wrong(cache: Path, tmp_path: Path) -> None:
    done = on_two(tmp_path / "run", cache, *SMALL, *FEW, "decoder.batch=5")
    assert done.returncode != 0
    assert "evalkit: a batch of 5 cannot be shared by 2 processes: make it a multiple" in done.stderr
    assert not (tmp_path / "run").exists()


def test_rows_of_a_batch() -> None:
    def rows(batch: int, world: int, rank: int) -> slice:
        accelerator = SimpleNamespace(num_processes=world, process_index=rank, is_main_process=rank == 0)
        return training.Run(recipe("tiny"), Path(), accelerator, print, print).rows(batch)  # type: ignore[arg-type]

    assert [rows(12, 3, r) for r in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(UsageError, match="a batch of 7 cannot be shared by 2 processes"):
        rows(7, 2, 0)


def test_processes_that_do_not_know_of_each_other_are_stopped(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate without a GPU and without ACCELERATE_USE_CPU: each would train the whole in the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="ACCELERATE_USE_CPU=true"):
        quiet(recipe("tiny", [*SMALL, *FEW]), tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["vq", "rvq", "fsq", "kmeans", "variational"])
def test_a_started_quantizer_can_be_moved_and_copied(kind: str) -> None:
    """A buffer that requires a gradient is no leaf on its new device, and cannot be averaged there."""
    import copy

    quantizer = Quantizer(QuantizerConfig(kind, size=8, levels=2, fsq=(4, 3), dim=4, width=8, blocks=1), 6)
    quantizer.initialise(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)))
    assert not any(b.requires_grad for b in quantizer.buffers())
    copy.deepcopy(quantizer.double())


@pytest.mark.parametrize("objective", ["fm", "mse", "prior"])
def test_every_trained_parameter_has_a_gradient(objective: str) -> None:
    """As several processes need it."""
    torch.manual_seed(0)
    quantizer = Quantizer(QuantizerConfig(size=8, dim=4, width=8, blocks=1), 6)
    quantizer.initialise(torch.randn(50, 6))
    quantizer.prepare_training(20)
    batch = {"latent": torch.randn(2, 10, 6), "noise": torch.randn(2, 10, 6), "time": torch.rand(2)}
    batch |= {"keep": torch.ones(2, dtype=torch.bool), "codes": torch.zeros(2, 10, 1, dtype=torch.long)}
    for trained in (True, False):
        stage = TokenStage(
            quantizer, DecoderNetwork(DecoderConfig(width=8, blocks=1, objective=objective), 6, 4), trained
        )
        stage(batch)[0].backward()
        assert all(p.grad is not None for p in stage.parameters() if p.requires_grad)
        assert all(p.requires_grad is trained for p in stage.quantizer.parameters())


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_hold_together(preset: str) -> None:
    made = recipe(preset)
    assert made.name == preset
    assert made.tokenizer.bitrate == pytest.approx(made.tokenizer.frame_rate * math.log2(made.tokenizer.quantizer.size))  # type: ignore[union-attr]
    if preset != "tiny":
        assert made.tokenizer.bitrate == 234.375


def test_overrides_reach_every_kind_of_field() -> None:
    made = recipe(
        "tiny",
        [
            "decoder.steps=7",
            "vae.lr=1e-3",
            "tokenizer.quantizer.fsq=8,6,5",
            "tokenizer.quantizer.temperature=1.5,0.2",
            "tokenizer.vocoder=griffin-lim:4",
            "augmentation.mix=0.5",
            "objectives=fm",
            "decoder_seed=4",
            "sources=esc50@subset=esc10,folder:mine@domain=music",
            "note=a=b, c",
        ],
    )
    assert (made.decoder.steps, made.vae.lr, made.augmentation.mix) == (7, 1e-3, 0.5)
    assert made.tokenizer.quantizer is not None and made.tokenizer.quantizer.fsq == (8, 6, 5)
    assert made.tokenizer.quantizer.temperature == (1.5, 0.2)
    assert made.tokenizer.vocoder == "griffin-lim:4" and made.objectives == ("fm",) and made.decoder_seed == 4
    assert made.sources == (
        Source("esc50@subset=esc10", 1.0, ("share=1/10",)),
        Source("folder:mine@domain=music", 1.0, ("share=1/10",)),
    )
    assert made.note == "a=b, c"
    assert recipe("tiny", ["decoder_seed=4", "decoder_seed=none"]) == recipe("tiny")
    assert recipe("tiny", ["tokenizer.decoder.evaluations=3", "tokenizer.decoder.solver=euler"]).check() is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decoder.stepz=7", "no 'stepz' here; known: steps, batch, crop, lr, warmup"),
        ("decodr.steps=7", "no 'decodr' here; known: name, tokenizer, sources"),
        ("decoder=7", "decoder has parts, set one of decoder.steps, decoder.batch"),
        ("seed.x=1", "seed has no parts"),
        ("seed", "expected key=value"),
        ("seed=one", "'one' is not of the kind int"),
        ("vae.lr=fast", "not of the kind float"),
        ("decoder_seed=1.5", "not of the kind int"),
        ("tokenizer.quantizer.fsq=8,x", "not of the kind int"),
        ("tokenizer.quantizer.temperature=1", "expected 2 values"),
        ("betas=0.9,0.99,0.999", "expected 2 values"),
        ("mode=both", "mode=both: expected shared, joint, prior"),
        ("objectives=fm,l1", "expected fm, mse or both"),
        ("precision=fp8", "expected bf16, no"),
        ("tokenizer.quantizer.kind=lfq", "kind=lfq: expected vq, rvq, fsq"),
        ("tokenizer.quantizer.size=1", "at least 2"),
        ("tokenizer.decoder.block=mamba", "expected convnext, dit"),
        ("tokenizer.decoder.times=late", "expected uniform, stratified"),
        ("tokenizer.decoder.solver=heun", "heun"),
        ("tokenizer.decoder.evaluations=5", "even number"),
        ("decoder.steps=0", "decoder.steps=0: at least 1"),
        ("copies=0", "copies=0: at least 1"),
        ("checkpoint_every=0", "at least 1"),
    ],
)
def test_overrides_that_cannot_be(override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe("tiny", [override])
    assert message in str(caught.value)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no preset 'huge': tiny, cpu, gpu, paper"):
        recipe("huge")
    with pytest.raises(UsageError, match="at least 1"):
        train(dataclasses.replace(recipe("tiny"), copies=0), "never")
