"""Recognisers and word error rates. jiwer is the oracle for the distance and the rates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit import registry
from evalkit.audio import Clip, read_clip
from evalkit.errors import ContractError, NotApplicable, UsageError
from evalkit.metrics.words import WORDS, edits, error_counts, error_rate, normalise, transcript, word_metrics
from evalkit.recognisers import transcribe
from evalkit.recognisers.wav2vec2 import ctc_text
from evalkit.recognisers.whisper import HUB_ID, Whisper
from evalkit.work import measure, metric_id

jiwer = pytest.importorskip("jiwer")

WORD = st.sampled_from(["a", "b", "it's", "sea", "see"])
TEXT = st.lists(WORD, max_size=12).map(" ".join)


# -- texts ------------------------------------------------------------------------------------------------------------


@given(reference=st.lists(WORD, min_size=1, max_size=12).map(" ".join), hypothesis=TEXT)
def test_errors_are_jiwers(reference: str, hypothesis: str) -> None:
    errors, words = error_counts(reference, hypothesis)
    assert errors / words == pytest.approx(jiwer.wer(reference, hypothesis), abs=1e-12)
    errors, characters = error_counts(reference, hypothesis, characters=True)
    assert errors / characters == pytest.approx(jiwer.cer(reference, hypothesis), abs=1e-12)


@given(a=st.text("abc", max_size=15), b=st.text("abc", max_size=15), c=st.text("abc", max_size=15))
def test_the_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edits(a, b) == edits(b, a)
    assert (edits(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= edits(a, b) <= max(len(a), len(b))
    assert edits(a, c) <= edits(a, b) + edits(b, c)


def test_the_pooled_rate_is_jiwers_and_takes_weights() -> None:
    pairs = [("a b c d", "a c d"), ("one two", "one two three four five"), ("x", "")]
    stats = []
    for reference, hypothesis in pairs:
        errors, length = error_counts(reference, hypothesis)
        stats.append({"errors": np.array([errors]), "length": np.array([length])})
    assert error_rate(stats, np.ones(3)) == pytest.approx(jiwer.wer([r for r, _ in pairs], [h for _, h in pairs]))
    weights = np.array([[1, 1, 1], [0, 2, 0], [3, 0, 1]])
    assert error_rate(stats, weights) == pytest.approx([5 / 7, 6 / 4, 4 / 13])
    again = [pairs[0]] * 3 + [pairs[2]]
    assert error_rate(stats, weights[2]) == pytest.approx(jiwer.wer([r for r, _ in again], [h for _, h in again]))


def test_empty_and_endless_hypotheses() -> None:
    assert error_counts("one two three", "") == (3, 3)
    assert error_counts("one", "a b c d") == (4, 1)  # a rate of 4
    with pytest.raises(NotApplicable, match="no words"):
        error_counts("... -- !", "one")
    with pytest.raises(NotApplicable, match="no transcript"):
        transcript({"speaker": "7"})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  MR. QUILTER'S manner\n", "mr quilter's manner"),
        ("don’t; 'tis ``quoted''", "don't tis quoted"),
        ("mother-in-law — ﬁne", "mother in law fine"),
        ("ÉTÉ 5 o'clock", "été 5 o'clock"),
        ("e\N{COMBINING ACUTE ACCENT}te", "éte"),
        ("'''", ""),
    ],
)
def test_normalisation(text: str, wanted: str) -> None:
    assert normalise(text) == wanted
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(max_size=40))
def test_normalisation_holds_for_any_text(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert once == " ".join(once.split())


# -- recognisers ------------------------------------------------------------------------------------------------------


class _Counting:
    """A recogniser of one's own: says how long the audio is."""

    calls = 0

    def transcribe(self, samples: np.ndarray) -> Any:
        type(self).calls += 1
        assert samples.ndim == 1 and samples.dtype == np.float32
        return f"{len(samples)} samples" if len(samples) > 400 else None


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> str:
    for kind in ("recognisers", "metrics"):
        registry.names(kind)  # type: ignore[arg-type]
        there = registry._registries[kind]  # type: ignore[index]
        monkeypatch.setattr(there, "entries", dict(there.entries))
    registry.recogniser("counting", version="1", sample_rate=8000)(_Counting)
    _Counting.calls = 0
    return "counting"


def test_a_recogniser_hears_a_mono_mix_at_its_rate_once_a_clip(counting: str) -> None:
    clip = Clip(np.zeros((2, 4000)), 16000)
    assert transcribe(clip, counting) == transcribe(clip, counting) == "2000 samples"
    assert _Counting.calls == 1
    with pytest.raises(ContractError, match="NoneType, expected str"):
        transcribe(Clip(np.zeros(400), 8000), counting)
    with pytest.raises(UsageError, match="did you mean counting"):
        transcribe(clip, "countin")


def test_metrics_of_a_recogniser_of_ones_own(counting: str) -> None:
    names = word_metrics(counting)
    assert names == ("wer@counting", "cer@counting", "dwer@counting", "clip_wer@counting")
    reference = Clip(np.full(16000, 0.1), 16000)
    sample = {"reference": reference, "estimate": reference, "labels": {"transcript": "8000 and 1 samples"}}
    infos = {n: registry.get("metrics", n) for n in names}
    assert measure(infos["clip_wer@counting"], sample, "speech") == {"value": 0.5}
    stats = {n: measure(infos[n], sample, "speech")["stats"] for n in names[:3]}
    assert [float(stats[n]["errors"][0]) for n in names[:3]] == [2, 6, 0]
    assert [float(stats[n]["length"][0]) for n in names[:3]] == [4, 18, 2]


def test_where_word_metrics_do_not_apply(counting: str) -> None:
    word_metrics(counting)
    info = registry.get("metrics", "wer@counting")
    clip = Clip(np.full(16000, 0.1), 16000)
    sample = {"reference": clip, "estimate": clip, "labels": {}}
    assert "no transcript" in measure(info, sample, "speech")["reason"]
    assert measure(info, sample, "music")["status"] == "n/a"
    low = Clip(np.full(4000, 0.1), 4000)
    assert "at least 8000 Hz" in measure(info, {**sample, "reference": low}, "speech")["reason"]
    short = Clip(np.full(1600, 0.1), 16000)
    assert "at least 0.5 s" in measure(info, {**sample, "reference": short}, "speech")["reason"]


def test_every_recogniser_has_its_metrics_and_its_own_identity() -> None:
    assert set(WORDS) == {f"{kind}@pocketsphinx" for kind in ("wer", "cer", "dwer", "clip_wer")}
    infos = [registry.get("metrics", f"wer@{name}") for name in ("pocketsphinx", "whisper", "wav2vec2")]
    assert len({metric_id(i).partition("-")[2] for i in infos}) == 3  # not by name alone
    assert infos[2].trained_on == ("librispeech",)


def test_identities_do_not_depend_on_what_is_loaded() -> None:
    code = (
        "import sys; from evalkit import registry; from evalkit.work import metric_id\n"
        "if len(sys.argv) > 1: [registry.names(k) for k in registry.KINDS]\n"
        "print([metric_id(registry.get('metrics', n)) for n in ('wer@pocketsphinx', 'speaker_similarity@wavlm-sv')])"
    )
    runs = [[sys.executable, "-c", code], [sys.executable, "-c", code, "all"]]
    assert len({subprocess.run(r, capture_output=True, text=True, check=True).stdout for r in runs}) == 1


# -- pocketsphinx -----------------------------------------------------------------------------------------------------


def utterances(shared: Path) -> list[tuple[Clip, str]]:
    from evalkit.datasets import librispeech

    items = librispeech.read(shared / "data/librispeech").items
    return [(read_clip(str(i.path), id=i.id), i.labels["transcript"]) for i in items]


def test_pocketsphinx_on_real_speech(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pocketsphinx")
    chosen = sorted(utterances(shared), key=lambda u: u[0].length)[:3]
    heard = [transcribe(clip, "pocketsphinx") for clip, _ in chosen]
    counts = [error_counts(text, h) for (_, text), h in zip(chosen, heard, strict=True)]
    rate = sum(e for e, _ in counts) / sum(n for _, n in counts)
    assert 0.05 < rate < 0.5, (rate, heard)
    # The order in which clips are heard plays no part, nor does what was heard before.
    again = [transcribe(clip.with_samples(clip.samples), "pocketsphinx") for clip, _ in reversed(chosen)]
    assert again[::-1] == heard
    assert capfd.readouterr() == ("", "")


def test_pocketsphinx_hears_nothing_in_silence_and_survives_anything() -> None:
    pytest.importorskip("pocketsphinx")
    rng = np.random.default_rng(0)
    silence = Clip(np.zeros(8000), 16000)
    assert transcribe(silence, "pocketsphinx") == ""
    assert isinstance(transcribe(Clip(np.array([1e30, -1e30] * 400), 16000), "pocketsphinx"), str)
    assert isinstance(transcribe(Clip(rng.standard_normal(1), 16000), "pocketsphinx"), str)
    sample = {"reference": silence, "estimate": silence, "labels": {"transcript": "one two"}}
    assert measure(registry.get("metrics", "clip_wer@pocketsphinx"), sample, "speech") == {"value": 1.0}
    assert "hears no words" in measure(registry.get("metrics", "dwer@pocketsphinx"), sample, "speech")["reason"]


def test_pocketsphinx_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(NotApplicable, match=r"pip install 'evalkit-audio\[speech\]'"):
        registry.get("recognisers", "pocketsphinx").load()


@pytest.mark.slow
def test_word_error_rates_of_all_utterances_and_of_real_decodings(shared: Path) -> None:
    """577 words. Codecs of falling fidelity in the order that listeners and PESQ give them."""
    pytest.importorskip("pocketsphinx")
    spoken = {clip.id: text for clip, text in utterances(shared)}
    info = registry.get("metrics", "wer@pocketsphinx")

    def rate(files: dict[str, Path]) -> float:
        stats = []
        for name, path in sorted(files.items()):
            clip = read_clip(path)
            sample = {"reference": clip, "estimate": clip, "labels": {"transcript": spoken[name]}}
            stats.append(measure(info, sample, "speech")["stats"])
        return error_rate(stats, np.ones(len(stats)))

    pairs = shared / "reference/codec_pairs/librispeech"
    decoded = {p.name: {f.stem: f for f in p.iterdir() if f.stem in spoken} for p in pairs.iterdir()}
    originals = {p.stem: p for p in (shared / "data/librispeech").rglob("*.flac")}
    assert rate(originals) == pytest.approx(0.286, abs=0.02)
    fine, coarse = rate(decoded["mimi_1.1kbps"]), rate(decoded["semanticodec_0.34kbps"])
    assert fine == pytest.approx(0.322, abs=0.02)
    assert coarse == pytest.approx(0.614, abs=0.02)


# -- whisper ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["english only", "multilingual"])
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder as the hub has it: a small Whisper of random weights, its tokenizer, its feature extractor."""
    transformers = pytest.importorskip("transformers")
    import torch

    folder = tmp_path_factory.mktemp("weights") / HUB_ID
    folder.mkdir(parents=True)
    letters = sorted(set(bytes_to_unicode()))
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|en|>", "<|transcribe|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate([*letters, *special])}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    at = {t: len(letters) + i for i, t in enumerate(special)}
    tokenizer = transformers.WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=20).save_pretrained(folder)
    config = transformers.WhisperConfig(
        vocab_size=len(letters) + len(special),
        num_mel_bins=20,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_target_positions=32,
        pad_token_id=at["<|endoftext|>"],
        bos_token_id=at["<|endoftext|>"],
        eos_token_id=at["<|endoftext|>"],
        decoder_start_token_id=at["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(3)
    model = transformers.WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.4)
    model.save_pretrained(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    generation |= {"is_multilingual": False, "no_timestamps_token_id": at["<|notimestamps|>"]}
    if request.param == "multilingual":
        ids = {"lang_to_id": {"<|en|>": at["<|en|>"]}, "task_to_id": {"transcribe": at["<|transcribe|>"]}}
        generation |= {"is_multilingual": True, **ids}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder.parent.parent


def bytes_to_unicode() -> list[str]:
    """The 256 characters that GPT-2's byte-level tokenizer starts from."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(256 - len(kept))]


def test_whisper_loads_and_is_deterministic(
    tiny_whisper: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tiny_whisper))
    loaded = registry.get("recognisers", "whisper").load()
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(n).astype(np.float32) * 0.1 for n in (16000, 40000))
    first = loaded.transcribe(x)
    assert isinstance(first, str) and first
    loaded.transcribe(y)
    assert loaded.transcribe(x) == first
    assert Whisper(HUB_ID).transcribe(x) == first
    assert capfd.readouterr() == ("", "")
    with pytest.raises(NotApplicable, match="at most 30 s at once, the clip has 31 s"):
        loaded.transcribe(np.zeros(31 * 16000, np.float32))


def test_whisper_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    clip = Clip(np.full(16000, 0.1), 16000)
    sample = {"reference": clip, "estimate": clip, "labels": {"transcript": "one"}}
    result = measure(registry.get("metrics", "wer@whisper"), sample, "speech")
    assert result["status"] == "n/a" and f"hf download {HUB_ID}" in result["reason"]


# -- wav2vec2 ---------------------------------------------------------------------------------------------------------


def test_greedy_ctc() -> None:
    labels = ("-", "|", "E", "T", "A")
    assert ctc_text([0, 3, 3, 0, 3, 2, 1, 1, 0, 1, 4, 4, 0], labels) == "TTE A"
    assert ctc_text([1, 0, 1], labels) == "" == ctc_text([], labels)


WAV2VEC2 = """
import sys, os
sys.path.append(sys.argv[1])
from pathlib import Path
import numpy as np
from evalkit.torchaudio_shim import import_torchaudio
from evalkit.errors import NotApplicable, EvalkitError
torchaudio = import_torchaudio()
import torch
torch.set_num_threads(1)
from evalkit import registry
from evalkit.audio import Clip
from evalkit.recognisers import transcribe
from evalkit.recognisers.wav2vec2 import CHECKPOINT
bundle = torchaudio.pipelines.WAV2VEC2_ASR_BASE_960H
bundle._params = {**bundle._params, "extractor_conv_layer_config": [(8, 10, 5), (8, 8, 8), (8, 4, 4), (8, 2, 2)],
    "encoder_embed_dim": 16, "encoder_num_layers": 1, "encoder_num_heads": 2, "encoder_ff_interm_features": 16,
    "encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 2}
torch.manual_seed(0)
model = torchaudio.models.wav2vec2_model(**bundle._params).eval()
with torch.no_grad():
    for p in model.parameters(): p.normal_(0, 0.5)
    model.aux.weight.mul_(10)
weights = model.state_dict()
for key in ("aux.weight", "aux.bias"):  # the published file has three rows that are cut out
    weights[key] = torch.cat([weights[key][:1], torch.full_like(weights[key][:3], 9e9), weights[key][1:]])
path = Path(os.environ["EVALKIT_WEIGHTS"]) / CHECKPOINT
path.parent.mkdir(parents=True)
torch.save(weights, path)
x = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
heard = transcribe(Clip(x, 16000), "wav2vec2")
with torch.no_grad():
    best = model(torch.from_numpy(x)[None])[0][0].argmax(-1).tolist()
letters, last = "", None
for i in best:
    letters += bundle.get_labels()[i] if i != last and i else ""
    last = i
assert heard == " ".join(letters.replace("|", " ").split()) and len(heard) > 3, heard
try:
    registry.get("recognisers", "wav2vec2").load().transcribe(x[:399])
    raise SystemExit("a clip shorter than a frame was taken")
except NotApplicable as error:
    assert "at least 400 samples" in str(error)
path.write_bytes(b"not a checkpoint")
try:
    registry.get("recognisers", "wav2vec2").load()
    raise SystemExit("a bad file was taken")
except EvalkitError as error:
    assert str(path) in str(error) and "WAV2VEC2_ASR_BASE_960H" in str(error)
path.unlink()
try:
    registry.get("recognisers", "wav2vec2").load()
    raise SystemExit("no file was taken")
except NotApplicable as error:
    assert CHECKPOINT in str(error) and "378 MB" in str(error)
print("done")
"""


def test_wav2vec2_loads_what_the_published_file_would_be(tmp_path: Path, torchaudio_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WAV2VEC2, str(torchaudio_folder)],
        env={**os.environ, "EVALKIT_WEIGHTS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout + done.stderr[-3000:]


@pytest.fixture(scope="module")
def torchaudio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchaudio in a folder of its own: not in the environment, where its mere presence changes transformers."""
    folder = tmp_path_factory.mktemp("torchaudio")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*pip, "torchaudio==2.11.0"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"torchaudio 2.11.0 cannot be installed: {done.stderr[-200:]}")
    return folder


def test_wav2vec2_without_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(NotApplicable, match="torchaudio"):
        registry.get("recognisers", "wav2vec2").load()
