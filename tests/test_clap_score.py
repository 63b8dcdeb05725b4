"""The CLAP score on a small random CLAP: text and sound meet in one space, the same value every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evalkit.audio import Clip
from evalkit.embedders import embedding
from evalkit.errors import NotApplicable
from evalkit.metrics import clap_score as C
from evalkit.registry import get
from evalkit.work import measure


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("weights")
    folder = root / C.MODEL
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "dog", "barks", "rain"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.ClapConfig(
            text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
            | {"vocab_size": len(words), "initializer_factor": 20.0, "pad_token_id": 1},
            audio_config={"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2]}
            | {"hidden_size": 16},
        )
        transformers.ClapModel(config).save_pretrained(folder)
    transformers.ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc").save_pretrained(folder)
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", model_max_length=64
    ).save_pretrained(folder)
    return root


@pytest.fixture
def ready(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit import embedders

    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tiny))
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path))
    for cached in (C._model, C._text, *(f for f in vars(embedders).values() if hasattr(f, "cache_clear"))):
        cached.cache_clear()


def clip(seconds: float) -> Clip:
    return Clip(0.1 * np.random.default_rng(0).standard_normal(int(48_000 * seconds)), 48_000)


def test_it_is_the_cosine_of_the_two_embeddings(ready: None) -> None:
    sound = clip(3.0)
    values = [C.clap_score(sound, text) for text in ("a dog barks", "rain", "a dog barks")]
    assert values[0] == values[2] != values[1] and all(-1 <= v <= 1 for v in values)
    audio, text = embedding(sound, "clap").mean(axis=0), C._text("a dog barks")
    assert values[0] == pytest.approx(float(audio @ text / np.linalg.norm(audio) / np.linalg.norm(text)), abs=1e-6)


def test_a_long_clip_has_one_value(ready: None) -> None:
    """Upstream crops at random above 10 s."""
    assert len({C.clap_score(clip(21.0), "a dog barks") for _ in range(2)}) == 1


def test_without_weights_or_a_caption_it_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    C._model.cache_clear()
    C._text.cache_clear()
    with pytest.raises(NotApplicable, match="hf download laion/clap-htsat-unfused"):
        C._text("rain")
    made = measure(get("metrics", C.CLAP_SCORE), {"reference": clip(1.0), "candidate": None, "labels": {}}, "sound")
    assert made["status"] == "n/a" and "no candidate here" in made["reason"]
