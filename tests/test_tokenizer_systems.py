"""The tokenizer as systems of the harness: conformance, rates, what they were trained on, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit import registry, work
from evalkit.audio import Clip, write_clip
from evalkit.check import check_system, synthetic
from evalkit.datasets.scenes import make_clip
from evalkit.errors import ContractError, Unavailable, UsageError
from evalkit.leaderboard import update
from evalkit.plan import Request
from evalkit.results import counts
from evalkit.run import rescore, run
from evalkit.systems.load import load_system
from tokenizer import codec
from tokenizer.codec import SoundTokenizer

RATE = 24_000
LATENT = 8


@pytest.fixture(scope="module")
def models(tiny: Callable[..., SoundTokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``fm``, ``mse``, ``prior``, ``vae`` and ``codes`` (no decoder), trained, they say, on three clips of scenes."""
    folder = tmp_path_factory.mktemp("models")
    clips = {f"test-{i:04}": [f"test-{i:04}"] for i in (0, 2, 3)}
    card = {"data": {"trained_on": {"scenes": clips, "esc50": {"c1": ["1-x", "1-y"], "c2": ["2-z"]}}}}
    for objective in ("fm", "mse", "prior"):
        tiny(objective=objective).save_pretrained(folder / objective, card)
    for name, parts in (("vae", ("quantizer", "decoder")), ("codes", ("decoder",))):
        smaller = SoundTokenizer(dataclasses.replace(tiny().config, **dict.fromkeys(parts)))
        smaller.load_state_dict(tiny().state_dict(), strict=False)
        smaller.save_pretrained(folder / name, card)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    work._systems.clear()
    yield
    metrics = registry._registries["metrics"]
    for name in [n for n, origin in metrics.origin.items() if origin.startswith("evalkit_user_")]:
        del metrics.entries[name], metrics.origin[name]
    work.load_metric.cache_clear()
    work._systems.clear()
    registry._user_files.clear()


def sound(seconds: float = 1.0, channels: int = 1, seed: int = 0) -> Clip:
    rows = [synthetic("sound", RATE, round(RATE * seconds), seed + c) for c in range(channels)]
    return Clip(np.stack(rows), RATE)


@pytest.mark.parametrize(
    "spec",
    [
        "vqfm:{}/fm",
        "vqfm:{}/fm@solver=euler@evaluations=3@guidance=1.5",
        "vqfm:{}/fm@solver=mean",
        "vqfm:{}/prior",
        "vqmse:{}/mse",
        "vae:{}/vae",
        "vae:{}/fm",
        "copy-synthesis@vocoder=griffin-lim:4",
    ],
)
def test_conformance(models: Path, spec: str) -> None:
    findings = check_system(spec.format(models))
    assert len(findings) > 12
    assert not [f for f in findings if not f.ok], findings


@pytest.mark.parametrize("spec", ["vqfm:{}/fm", "vqmse:{}/mse"])
def test_a_batch_gives_what_its_clips_give(models: Path, spec: str) -> None:
    """To the byte: the harness runs batches, and decodes alone what it scores again."""
    system: Any = load_system(spec.format(models)).system
    clips = [sound(1.0), sound(0.7, 2), sound(1.0), sound(1.01)]
    tokens = [system.encode(c) for c in clips]
    for one, other in zip(tokens, system.encode_batch(clips), strict=True):
        assert np.array_equal(one.codes, other.codes)
    for i, made in enumerate(system.decode_batch(tokens, [4, 5, 6, 7])):
        assert made.samples.tobytes() == system.decode(tokens[i], 4 + i).samples.tobytes()


def test_scoring_a_run_again_decodes_the_same(models: Path) -> None:
    """Clips of one length go through the networks together the first time, one by one the second."""
    Path("mine.py").write_text(
        "from evalkit import metric\n@metric('test_peak', unit='', direction='none')\n"
        "def peak(reference, estimate):\n    'Peak.'\n    return float(abs(estimate.samples).max())\n"
    )
    Path("clips").mkdir()
    for i in range(5):
        write_clip(sound(1.0, seed=i), f"clips/{i}.wav")
    specs = (f"vqfm:{models}/fm", f"vqmse:{models}/mse", f"vae:{models}/vae")
    assert run(Request(("folder:clips",), specs), out="out", jobs=0).exit_code == 0
    work._outputs.clear()
    assert not list(Path("out").glob("scratch/*"))
    again = rescore("out", metrics=("mine.py:peak",), jobs=0)
    assert (again.predicted, again.scored) == (0, 15)
    for result in again.results:
        assert counts(result, "test_peak") == (5, 0, 0, 0), result["metrics"]["test_peak"]["reasons"]


def test_the_rate_of_continuous_latents(models: Path) -> None:
    system: Any = load_system(f"vae:{models}/vae").system
    for channels in (1, 2):
        clip = sound(1.0, channels)
        tokens = system.encode(clip)
        assert tokens.nominal_kbps * 1000 == channels * 32 * LATENT * 23.4375
        assert tokens.code_bits == channels * 32 * LATENT * -(-clip.length // 1024)
        made = system.decode(tokens, 1)
        assert made.samples.shape == clip.samples.shape
        assert np.array_equal(made.samples, system.decode(tokens, 1).samples)
    for change in (
        {"samples": 20_000},
        {"codes": tokens.codes[:, :-4]},
        {"codes": np.full_like(tokens.codes, 255)},  # NaN
    ):
        with pytest.raises(ContractError, match="vae: "):
            system.decode(dataclasses.replace(tokens, **change), 0)


def test_the_vae_of_any_tokenizer_is_that_vae(models: Path) -> None:
    alone, inside = (load_system(f"vae:{models}/{n}").system for n in ("vae", "fm"))
    assert alone.parameters == inside.parameters > 0
    assert load_system(f"vqfm:{models}/fm").system.parameters > inside.parameters
    clip = sound()
    tokens = alone.encode(clip)
    assert np.array_equal(tokens.codes, inside.encode(clip).codes)
    assert np.array_equal(alone.decode(tokens, 0).samples, inside.decode(tokens, 0).samples)


def test_the_same_codes_for_both_decoders(models: Path, tmp_path: Path) -> None:
    """They differ where their weights differ; here only the objective's name does."""
    fm, mse = load_system(f"vqfm:{models}/fm").system, load_system(f"vqmse:{models}/mse").system
    clip = sound()
    assert np.array_equal(fm.encode(clip).codes, mse.encode(clip).codes)
    mean: Any = load_system(f"vqfm:{models}/fm@solver=mean").system
    tokens = mean.encode(clip)
    assert np.array_equal(mean.decode(tokens, 3).samples, mse.decode(tokens, 3).samples)
    assert not np.array_equal(fm.decode(tokens, 3).samples, mse.decode(tokens, 3).samples)


def test_a_name_is_complete_and_the_folders_name_does_not_matter(models: Path, tmp_path: Path) -> None:
    loaded = load_system(f"vqfm:{models}/fm@guidance=2")
    assert "evaluations=4" in loaded.name and "guidance=2" in loaded.name and "solver=midpoint" in loaded.name
    assert "griffin-lim:8" in loaded.name
    assert "evaluations" not in load_system(f"vqfm:{models}/fm@solver=mean").name
    shutil.copytree(models / "fm", tmp_path / "moved")
    moved: Any = load_system(f"vqfm:{tmp_path / 'moved'}").system
    original: Any = load_system(f"vqfm:{models}/fm").system
    assert moved.fingerprint() == original.fingerprint()
    others: list[Any] = [load_system(f"vqfm:{models}/fm@vocoder=griffin-lim:3"), load_system(f"vqmse:{models}/mse")]
    assert len({o.system.fingerprint() for o in others} | {original.fingerprint()}) == 3


# -- what they were trained on ----------------------------------------------------------------------------------------


def test_trained_on(models: Path) -> None:
    system: Any = load_system(f"vqfm:{models}/fm").system
    assert system.trained_on == {"scenes": ["test-0000", "test-0002", "test-0003"], "esc50": ["1-x", "1-y", "2-z"]}
    unknown = SoundTokenizer.from_pretrained(models / "fm")
    unknown.card = {}
    unknown.save_pretrained("bare")
    bare: Any = load_system("vqfm:bare").system
    assert bare.trained_on == {}


def _ids(outcome: Any) -> list[list[str]]:
    return [r["clips"]["id"] for r in outcome.results]


def test_training_clips_are_left_out_for_every_system(models: Path) -> None:
    systems = ("identity", f"vqmse:{models}/mse")
    outcome = run(Request(("scenes@clips=6",), systems), out="out", jobs=0)
    assert outcome.exit_code == 0
    assert _ids(outcome) == [["test-0001", "test-0004", "test-0005"]] * 2
    for result in outcome.results:
        assert [n for n in result["task"]["about"]["notes"] if "left out" in n] == [
            f"3 of 6 clips left out: training data of {outcome.results[1]['system']['name']}"
        ]
    update(["out"], "board")
    assert "3 of 6 clips left out: training data of vqmse" in "".join(p.read_text() for p in Path("board").glob("*.md"))
    alone = run(Request(("scenes@clips=6",), ("identity",)), out="alone", jobs=0)
    assert len(_ids(alone)[0]) == 6 and not [n for n in alone.results[0]["task"]["about"]["notes"] if "training" in n]


def test_all_clips_are_kept_on_request_and_the_table_says_so(models: Path) -> None:
    outcome = run(Request(("scenes@clips=6",), (f"vqmse:{models}/mse",), clips="all"), out="out", jobs=0)
    assert outcome.exit_code == 0 and len(_ids(outcome)[0]) == 6
    (note,) = [n for n in outcome.results[0]["task"]["about"]["notes"] if "training data" in n]
    assert note.startswith("contaminated: 3 of 6 clips are training data of vqmse")


def test_a_limit_counts_what_is_left(models: Path) -> None:
    outcome = run(Request(("scenes@clips=6",), (f"vqmse:{models}/mse",), limit=2), out="out", jobs=0)
    assert _ids(outcome) == [["test-0001", "test-0004"]]


def test_where_every_clip_was_trained_on_the_task_fails_with_the_remedy(models: Path) -> None:
    outcome = run(Request(("scenes@clips=1",), (f"vqmse:{models}/mse",)), out="out", jobs=0)
    assert outcome.exit_code == 3 and not outcome.results
    assert len(outcome.errors) == 1
    assert "trained on every clip of it; --clips all scores them all the same" in outcome.errors[0]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vqmse:{}/fm", "its decoder is fm, expected mse"),
        ("vqfm:{}/mse", "its decoder is mse, expected fm or prior"),
        ("vqmse:{}/vae", "its decoder is absent, expected mse"),
        ("vqfm:{}/codes", "its decoder is absent"),
        ("vqfm:{}/fm@evaluations=3", "even number"),
        ("vqfm:{}/fm@evaluations=0", "even number"),
        ("vqfm:{}/fm@solver=heun", "heun"),
        ("vqfm:{}/fm@solver=mean@evaluations=4", "takes no evaluations"),
        ("vqfm:{}/fm@guidance=nan", "must be finite"),
        ("vqfm:{}/fm@vocoder=wavenet", "wavenet"),
        ("vqmse:{}/mse@guidance=2", "guidance"),
    ],
)
def test_what_cannot_be_is_a_usage_error(models: Path, spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_system(spec.format(models))


def test_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(codec, "SHIPPED", tmp_path / "none")
    for spec in ("vqfm", "vqmse", "vae"):
        with pytest.raises(Unavailable, match=f"no tokenizer '{spec}': shipped here: none"):
            load_system(spec)


def test_listing_systems_does_not_import_torch() -> None:
    script = (
        "import sys, json, evalkit, tokenizer, tokenizer.systems\n"
        "from evalkit import registry\n"
        "names = registry.names('systems')\n"
        "heavy = {'torch', 'safetensors', 'vector_quantize_pytorch', 'huggingface_hub'} & set(sys.modules)\n"
        "print(json.dumps([sorted(set(names) & {'vqfm', 'vqmse', 'vae', 'copy-synthesis'}), sorted(heavy)]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [["copy-synthesis", "vae", "vqfm", "vqmse"], []]


def test_copy_synthesis_of_a_long_clip_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    system: Any = load_system("copy-synthesis@vocoder=griffin-lim:8").system
    clip = Clip(np.tile(make_clip("test", 1).samples, 3)[:, : 9 * RATE + 5], RATE)
    whole = system.reconstruct(clip, 2).samples
    monkeypatch.setattr(codec, "CHUNK_SECONDS", 2.0)
    pieces = system.reconstruct(clip, 2).samples
    assert pieces.shape == whole.shape == clip.samples.shape
    assert np.abs(pieces - whole).max() < 1e-3 * np.abs(whole).max()
