"""Embedders and the store: what is computed against independent routes, and what happens when something is amiss."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit import embedders, registry
from evalkit.audio import Clip, mono, read_clip, resample
from evalkit.embedders import embed, embedder_id, embedding, find, identity
from evalkit.embedders.store import EmbeddingStore
from evalkit.errors import EvalkitError, NotApplicable, UsageError
from evalkit.registry import EmbedderInfo

CLAP_ID, ENCODEC_ID = "laion/clap-htsat-unfused", "facebook/encodec_24khz"
ALL = ("mel-stats", "yamnet", "clap", "encodec", "tokenizer-latent")


def sound(seconds: float, rate: int = 24_000, channels: int = 1, seed: int = 0) -> Clip:
    """Noise under a slow envelope, and a tone."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    x = 0.1 * rng.standard_normal((channels, t.size)) * (1.2 + np.sin(2 * np.pi * rng.uniform(0.5, 3) * t))
    return Clip(x + 0.2 * np.sin(2 * np.pi * rng.uniform(200, 2000) * t), rate, id=f"s{seed}")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights root with CLAP and EnCodec of few parameters at random, where the real ones would be."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="the extra 'encodec' is not installed")
    root = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.ClapConfig(
            text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
            | {"vocab_size": 16},
            audio_config={"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2]}
            | {"hidden_size": 16},
        )
        transformers.ClapModel(config).save_pretrained(root / CLAP_ID)
        extract = transformers.ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
        extract.save_pretrained(root / CLAP_ID)
        net = transformers.EncodecModel(transformers.EncodecConfig(num_filters=4, num_lstm_layers=1))
        with torch.no_grad():  # louder, so that the audio counts and not the biases
            for name, weight in net.named_parameters():
                if "conv" in name:
                    weight.mul_(0.0 if name.endswith("bias") else 1.6)
        net.save_pretrained(root / ENCODEC_ID)
    return root


@pytest.fixture
def ready(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes an embedder's weights available, or skips: gives its name."""

    def make(name: str) -> str:
        if name == "yamnet":
            pytest.importorskip("ai_edge_litert", reason="the extra 'yamnet' is not installed")
            monkeypatch.setenv("EVALKIT_WEIGHTS", str(request.getfixturevalue("shared") / "weights"))
        elif name in ("clap", "encodec"):
            monkeypatch.setenv("EVALKIT_WEIGHTS", str(request.getfixturevalue("tiny_models")))
        return name

    return make


class Counting:
    """Mean and peak of quarter seconds, and a count of the calls."""

    min_seconds = 0.25

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []

    def embed(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.lengths.append([len(x) for x in clips])
        return [self.one(x) for x in clips]

    def one(self, x: np.ndarray) -> Any:
        rows = x[: len(x) // 2000 * 2000].reshape(-1, 2000)
        return np.stack([rows.mean(1), abs(rows).max(1, initial=0)], axis=1).astype(np.float32)


def register(monkeypatch: pytest.MonkeyPatch, embedder: Any, **declaration: Any) -> EmbedderInfo:
    """An embedder ``test`` of dimension 2 at 8 kHz, for this test alone."""
    values: dict[str, Any] = {
        "name": "test",
        "version": "1",
        "sample_rate": 8000,
        "dimension": 2,
        "summary": "",
    } | declaration
    info = EmbedderInfo(load=embedder if isinstance(embedder, type) else lambda: embedder, **values)
    monkeypatch.setitem(registry._registries["embedders"].entries, info.name, info)
    return info


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    made = Counting()
    register(monkeypatch, made)
    return made


# -- the store --------------------------------------------------------------------------------------------------------

CONTENT = "ab" * 32


def test_store_gives_back_what_was_put_and_nothing_else(tmp_path: Path) -> None:
    store, x = EmbeddingStore(tmp_path), np.arange(6, dtype=np.float32).reshape(3, 2)
    assert store.get("e-v1", CONTENT, 2) is None
    store.put("e-v1", CONTENT, x)
    found = store.get("e-v1", CONTENT, 2)
    assert found is not None and found.dtype == np.float32
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(EmbeddingStore(tmp_path).get("e-v1", CONTENT, 2), x)
    assert store.get("e-v2", CONTENT, 2) is None
    assert store.get("e-v1", "cd" * 32, 2) is None
    assert store.get("e-v1", CONTENT, 3) is None  # declared otherwise
    path = next(tmp_path.rglob("*.npy"))
    np.testing.assert_array_equal(np.load(path), x)  # readable by anyone
    assert store.stats() == {"e-v1": {"entries": 1, "bytes": path.stat().st_size}}


def _cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def _one_bit(path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-40] ^= 1  # in the last number: finite, plausible and wrong
    path.write_bytes(bytes(data))


def _zeros(path: Path, other: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))  # what a power cut can leave


def _plain(path: Path, other: Path) -> None:
    np.save(path, np.ones((3, 2), dtype=np.float32))


def _of_another_clip(path: Path, other: Path) -> None:
    shutil.copy(other, path)


def _directory(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_cut, _empty, _one_bit, _zeros, _plain, _of_another_clip, _directory])
def test_damaged_entries_are_computed_again(
    damage: Callable[[Path, Path], None], tmp_path: Path, counting: Counting
) -> None:
    store, clips = EmbeddingStore(tmp_path), [sound(1), sound(1, seed=1)]
    first = embed(clips, "test", store)
    path, other = (next(tmp_path.rglob(f"{c.content_hash}.npy")) for c in clips)
    damage(path, other)
    again = embed(clips, "test", store)
    np.testing.assert_array_equal(again[0], first[0])
    assert counting.lengths == [[8000, 8000], [8000]]
    if damage is not _directory:  # and the entry is whole again
        embed(clips, "test", store)
        assert len(counting.lengths) == 2


def test_an_entry_with_nan_is_not_believed(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    store.put("e", CONTENT, np.array([[1, np.nan]], dtype=np.float32))
    assert store.get("e", CONTENT, 2) is None
    store.put("e", CONTENT, np.empty((0, 2), dtype=np.float32))
    assert store.get("e", CONTENT, 2) is None


def test_readers_see_whole_entries_while_several_processes_write(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from evalkit.embedders.store import EmbeddingStore\n"
        "s = EmbeddingStore(sys.argv[1]); print('up', flush=True)\n"
        f"for i in range(150): s.put('e', '{CONTENT}', np.full((500 + 700 * (i % 2), 2), i % 2, np.float32))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    for w in writers:
        assert w.stdout and w.stdout.readline() == b"up\n"
    store, seen = EmbeddingStore(tmp_path), 0
    while any(w.poll() is None for w in writers) or not seen:
        found = store.get("e", CONTENT, 2)
        if found is not None:
            seen += 1
            assert found.shape[0] == (1200 if found[0, 0] else 500)
            assert (found == found[0, 0]).all()
        else:
            assert not seen, "an entry vanished while it was replaced"
    assert seen > 10 and [w.wait() for w in writers] == [0, 0, 0]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, counting: Counting) -> None:
    (tmp_path / "file").write_text("in the way")
    store = EmbeddingStore(tmp_path / "file")
    for _ in range(2):
        assert embed([sound(1)], "test", store)[0].shape == (4, 2)
    assert len(counting.lengths) == 2
    assert store.stats() == {} and store.clear() == 0


def test_a_full_disk_leaves_neither_an_entry_nor_a_rest(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    code = (
        "import resource, sys, numpy as np; from evalkit.embedders.store import EmbeddingStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"s = EmbeddingStore(sys.argv[1]); s.put('e', '{CONTENT}', np.ones((5000, 2), np.float32))\n"
        f"assert s.get('e', '{CONTENT}', 2) is None; print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "went on\n", done.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_without_a_home_there_is_no_store_and_no_fault(monkeypatch: pytest.MonkeyPatch, counting: Counting) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("evalkit.embedders.store.cache_folder", no_home)
    assert embed([sound(1)], "test")[0].shape == (4, 2)
    assert EmbeddingStore().stats() == {}


def test_clear_takes_entries_and_rests_of_killed_writers_and_nothing_else(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    for key in ("a", "b"):
        store.put(key, CONTENT, np.ones((1, 2), np.float32))
    rest = tmp_path / "a" / CONTENT[:2] / ".x.tmp"
    rest.write_text("half")
    mine = tmp_path / "a" / "notes.txt"
    mine.write_text("not ours")
    sizes = {k: v["bytes"] for k, v in store.stats().items()}
    assert store.clear("a") == sizes["a"] + 4
    assert set(store.stats()) == {"b"} and mine.exists() and not rest.exists()
    assert store.clear() == sizes["b"] and store.stats() == {}


# -- once a clip, whatever the company --------------------------------------------------------------------------------


def test_each_content_is_computed_once(counting: Counting) -> None:
    a, b = sound(1), sound(1, seed=1)
    twin = Clip(a.samples.copy(), a.sample_rate, id="another name")
    first = embed([a, b, twin], "test")
    assert counting.lengths == [[8000, 8000]]
    np.testing.assert_array_equal(first[0], first[2])
    again = embed([b, sound(1)], "test")  # another object, as in a later run
    assert len(counting.lengths) == 1
    np.testing.assert_array_equal(again[0], first[1])
    np.testing.assert_array_equal(again[1], first[0])
    assert embedding(a, "test") is embedding(a, "test")
    assert len(counting.lengths) == 1
    with pytest.raises(ValueError, match="read-only"):
        first[0][0] = 0


def test_batches_are_bounded(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "BATCH_SECONDS", 3.0)
    clips = [sound(s, seed=i) for i, s in enumerate((1, 1, 1, 1, 5, 1))]
    made = embed(clips, "test")
    assert [len(b) for b in counting.lengths] == [3, 1, 1, 1]
    assert [len(m) for m in made] == [4, 4, 4, 4, 20, 4]


@pytest.mark.parametrize("name", ALL)
def test_a_clip_gives_the_same_bits_in_any_company(
    name: str, ready: Callable[[str], str], shared: Path, tmp_path: Path
) -> None:
    name = ready(name)
    paths = sorted((shared / "data/esc50/audio").glob("*.ogg"))[20:400:180]
    clips = [*(read_clip(p) for p in paths), sound(1.3, 8000), sound(2.2, 44_100, 2, seed=2), sound(1.3, 8000, seed=3)]
    together = embed(clips, name, EmbeddingStore(tmp_path / "a"))
    backwards = embed(clips[::-1], name, EmbeddingStore(tmp_path / "b"))[::-1]
    for i, clip in enumerate(clips):
        alone = embed([clip], name, EmbeddingStore(tmp_path / "c"))[0]
        assert alone.dtype == np.float32 and alone.shape[1] == find(name).dimension
        np.testing.assert_array_equal(together[i], alone)
        np.testing.assert_array_equal(backwards[i], alone)
    embedders._load.cache_clear()  # a fresh process' embedder
    for one, again in zip(together, embed(clips, name, EmbeddingStore(tmp_path / "d")), strict=True):
        np.testing.assert_array_equal(one, again)
    assert not np.array_equal(together[-1], together[-3])


@pytest.mark.parametrize("name", ALL)
def test_stereo_is_its_mean_and_rates_are_soxrs(name: str, ready: Callable[[str], str]) -> None:
    name = ready(name)
    clip = sound(1.5, 44_100, 2)
    given = resample(mono(clip), find(name).sample_rate)
    np.testing.assert_array_equal(embedding(clip, name), embedding(given, name))


@pytest.mark.parametrize("name", ALL)
def test_silence_and_the_shortest_clip(name: str, ready: Callable[[str], str]) -> None:
    name = ready(name)
    silent = embedding(Clip(np.zeros(48_000), 24_000), name)
    assert np.isfinite(silent).all() and len(silent) >= 1
    shortest = Clip(0.1 * np.random.default_rng(0).standard_normal(400), 8000)  # 50 ms: what is refused when read
    if name == "mel-stats":
        with pytest.raises(NotApplicable, match=r"0\.050 s of audio are too short for mel-stats.*at least 0\.25 s"):
            embedding(shortest, name)
    else:
        assert len(embedding(shortest, name)) >= 1


def test_a_short_clip_is_na_and_its_neighbours_are_kept(counting: Counting) -> None:
    with pytest.raises(NotApplicable, match=r"0\.100 s of audio are too short for test: it needs at least 0\.25 s"):
        embed([sound(1), sound(0.1), sound(2)], "test")
    embed([sound(1), sound(2)], "test")
    assert len(counting.lengths) == 1
    with pytest.raises(NotApplicable):  # not remembered as an entry
        embed([sound(0.1)], "test")


# -- what a stranger's embedder may do --------------------------------------------------------------------------------

A = np.ones((3, 2), np.float32)
WRONG = {
    "nan": (lambda x: A * np.nan, "returned 6 of 6 values that are NaN or infinite for clip 's0'"),
    "infinite": (lambda x: np.array([[1, np.inf]], np.float32), "returned 1 of 2 values that are NaN or infinite"),
    "dimension": (lambda x: np.ones((3, 5), np.float32), r"returned float32 \[3, 5\] for clip 's0', expected .*, 2\]"),
    "flat": (lambda x: A[0], r"returned float32 \[2\] for clip 's0', expected float32 \[frames, 2\]"),
    "cube": (lambda x: A[None], r"returned float32 \[1, 3, 2\]"),
    "half": (lambda x: A.astype(np.float16), r"returned float16 \[3, 2\]"),
    "double": (lambda x: A.astype(np.float64), r"returned float64 \[3, 2\]"),
    "list": (lambda x: A.tolist(), "returned a list, not an array, for clip 's0'"),
    "none": (lambda x: None, "returned a NoneType, not an array,"),
    "raises": (lambda x: 1 / 0, "embedder 'test' failed on clip 's0': ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_broken_embedder_is_one_clear_error(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, message = WRONG[what]
    embedder = Counting()
    embedder.one = lambda x: bad(x) if len(x) == 8000 else Counting.one(embedder, x)  # type: ignore[method-assign]
    register(monkeypatch, embedder)
    with pytest.raises(EvalkitError, match=message) as error:
        embed([sound(2, seed=1), sound(1)], "test")
    assert "\n" not in str(error.value)
    assert EmbeddingStore().get(embedders._store_key(find("test")), sound(1).content_hash, 2) is None
    assert embed([sound(2, seed=1)], "test")[0].shape == (8, 2)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda clips: [A], "returned 1 arrays for 2 clips"),
        (lambda clips: [A] * 3, "returned 3 arrays for 2 clips"),
        (lambda clips: np.ones((2, 3, 2), np.float32), "returned a ndarray for 2 clips"),
        (lambda clips: None, "returned a NoneType for 2 clips"),
    ],
)
def test_the_wrong_number_of_arrays(made: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Counting()
    embedder.embed = made  # type: ignore[method-assign]
    register(monkeypatch, embedder)
    with pytest.raises(EvalkitError, match=message):
        embed([sound(1), sound(1, seed=1)], "test")


def test_an_embedder_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self) -> None:
            raise ImportError("no module named nothing")

    register(monkeypatch, Broken)
    with pytest.raises(EvalkitError, match="embedder 'test' cannot be loaded: ImportError: no module named nothing"):
        embed([sound(1)], "test")
    register(monkeypatch, dict)
    with pytest.raises(EvalkitError, match=r"what it loads \(dict\) has no method embed"):
        embed([sound(1)], "test")
    with pytest.raises(UsageError, match=r"no embedder named 'mel-stat'.*mel-stats"):
        embed([sound(1)], "mel-stat")


def test_a_users_embedder_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\nfrom evalkit.registry import embedder\n"
        "@embedder('test-level', version='1', sample_rate=8000, dimension=1)\n"
        "class Level:\n"
        "    'Level in dB.'\n"
        "    def embed(self, clips):\n"
        "        return [np.float32([[10 * np.log10(np.mean(x**2))]]) for x in clips]\n"
    )
    try:
        made = embedding(sound(1, 8000), f"{path}:Level")
        x = sound(1, 8000).samples
        np.testing.assert_allclose(made, [[10 * np.log10(np.mean(x**2))]], rtol=1e-5)
        assert find(f"{path}:Level").summary == "Level in dB"
        with pytest.raises(EvalkitError, match="has no 'Loudness' decorated with @embedder"):
            find(f"{path}:Loudness")
    finally:
        registry._registries["embedders"].entries.pop("test-level", None)


# -- identity ---------------------------------------------------------------------------------------------------------


def test_what_changes_values_changes_the_name_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(Counting):
        def embed(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [2 * x for x in super().embed(clips)]

    info = register(monkeypatch, Counting)
    others = [
        dataclasses.replace(info, version="2"),
        dataclasses.replace(info, weights_id="c0ffee"),
        dataclasses.replace(info, load=Scaled),  # edited, and its version forgotten
        dataclasses.replace(info, sample_rate=16_000),
        dataclasses.replace(info, dimension=3),
        dataclasses.replace(info, requires=("numpy",)),
        dataclasses.replace(info, name="other"),
    ]
    keys = {embedders._key(i) for i in (info, *others)}
    assert len(keys) == 1 + len(others)
    assert embedder_id(others[1]) == "test-v1-c0ffee"
    assert embedders._key(dataclasses.replace(info, summary="said better", licence="MIT")) == embedders._key(info)
    json.dumps(identity(info))


def test_weights_given_by_the_user_are_part_of_the_identity(
    tiny_models: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    info = find("encodec")
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path / "w"))
    assert identity(info)["weights"] == "absent" and embedder_id(info) == "encodec-v1-absent"
    shutil.copytree(tiny_models / ENCODEC_ID, tmp_path / "w" / ENCODEC_ID)
    here = identity(info)
    assert len(here["weights"]) == 64 and embedder_id(info) == f"encodec-v1-{here['weights'][:12]}"
    before = embedding(sound(0.5), "encodec")
    weights = tmp_path / "w" / ENCODEC_ID / "model.safetensors"
    state = {k: v * (1.1 if "conv.weight" in k or "original1" in k else 1.0) for k, v in load_file(weights).items()}
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "w", other)
    save_file(state, other / ENCODEC_ID / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(other))
    assert identity(info)["weights"] != here["weights"]
    assert not np.allclose(embedding(sound(0.5), "encodec"), before)
    assert torch.get_num_threads() == 1


def test_the_source_hash_does_not_depend_on_what_else_is_registered() -> None:
    """A worker that has loaded one metric and a process that has listed all must name a result alike."""
    code = (
        "import sys; from evalkit import registry; from evalkit.identity import source_hash\n"
        "from evalkit.embedders import embed, embedder_id, embedding\n"
        "[registry.names(k) for k in sys.argv[1:]]\n"
        "print([source_hash(f) for f in (embed, embedding, embedder_id)])"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code, *kinds], capture_output=True, text=True, check=True).stdout
        for kinds in ((), ("embedders",), ("tasks", "systems", "datasets"))
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("name", ["yamnet", "clap", "encodec"])
def test_absent_weights_are_na_with_the_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ai_edge_litert" if name == "yamnet" else "transformers")
    for root in ("", str(tmp_path)):
        monkeypatch.setenv("EVALKIT_WEIGHTS", root)
        with pytest.raises(NotApplicable, match="put them there" if name == "yamnet" else "hf download") as reason:
            embedding(sound(1), name)
        assert find(name).weights[0] in str(reason.value)


@pytest.mark.parametrize(("name", "module"), [("yamnet", "ai_edge_litert.interpreter"), ("clap", "transformers")])
def test_an_absent_package_is_na_with_the_remedy(
    name: str, module: str, ready: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(name)
    embedders._load.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NotApplicable, match=r"pip install 'evalkit-audio\["):
        embedding(sound(1), name)


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from evalkit import registry\n"
        "for n in ('mel_stats', 'yamnet', 'clap', 'encodec'): __import__(f'evalkit.embedders.{n}')\n"
        "import tokenizer.embedder\n"
        "print([m for m in ('torch', 'transformers', 'ai_edge_litert', 'scipy', 'soxr') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    assert set(ALL) <= set(registry.names("embedders"))


# -- mel-stats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.25, 0.7, 0.96, 1.43, 1.44, 3.0])
def test_mel_stats_by_torch_and_transformers(seconds: float) -> None:
    torch = pytest.importorskip("torch")
    tools = pytest.importorskip("transformers.audio_utils")
    clip = sound(seconds)
    spectrum = torch.stft(
        torch.from_numpy(clip.samples[0]), 1024, 256, window=torch.hann_window(1024), pad_mode="reflect",
        return_complex=True,
    )  # fmt: skip
    filters = tools.mel_filter_bank(513, 32, 0.0, 12_000.0, 24_000, norm=None, mel_scale="htk")
    power = filters.T @ spectrum.abs().numpy() ** 2
    log_mel = np.log(np.maximum(power * (2 / 512) ** 2, 1e-10)).T
    count = max(1, 1 + int((seconds - 0.96) / 0.48 + 1e-9))
    expected = [np.r_[w.mean(0), w.std(0)] for w in (log_mel[45 * i : 45 * i + 90] for i in range(count))]
    np.testing.assert_allclose(embedding(clip, "mel-stats"), expected, atol=2e-4)


def test_mel_stats_of_a_gain_and_of_silence() -> None:
    clip = sound(2)
    quiet = embedding(clip.with_samples(clip.samples / 4), "mel-stats")
    moved = quiet - embedding(clip, "mel-stats")
    np.testing.assert_allclose(moved[:, :32], np.log(1 / 16), atol=1e-3)
    np.testing.assert_allclose(moved[:, 32:], 0, atol=1e-3)
    silent = embedding(Clip(np.zeros(30_000), 24_000), "mel-stats")
    np.testing.assert_allclose(silent[:, :32], np.log(1e-10), rtol=1e-6)
    assert not silent[:, 32:].any()


# -- yamnet -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def yamnet(ready: Callable[[str], str]) -> Any:
    return embedders._loaded(find(ready("yamnet")))


def _tensor(yamnet: Any, name: str, shape: list[int]) -> dict[str, Any]:
    found = [d for d in yamnet.interpreter.get_tensor_details() if name in d["name"] and list(d["shape"]) == shape]
    assert len(found) == 1, (name, shape)
    return dict(found[0])


def test_the_pooled_tensor_is_what_the_classifier_reads(yamnet: Any, shared: Path) -> None:
    """The mean of the last convolution, and through the dense layer (as tflite computes it: activations rounded to 8
    bits, asymmetric) the file's own scores."""
    get = yamnet.interpreter.get_tensor
    dense = _tensor(yamnet, "dense/MatMul", [521, 1024])
    weights = get(dense["index"]).astype(np.float64) * dense["quantization_parameters"]["scales"]
    bias = get(_tensor(yamnet, "15480", [521])["index"])
    last = _tensor(yamnet, "layer14/pointwise_conv/relu", [1, 3, 2, 1024])["index"]
    score = yamnet.interpreter.get_output_details()[0]["index"]
    for path in sorted((shared / "data/esc50/audio").glob("*.ogg"))[5::80]:
        window = embedders._samples(read_clip(path), 16_000)[:15_600]
        e = yamnet.embed([window])[0][-1]
        np.testing.assert_allclose(e, get(last).mean(axis=(0, 1, 2)), atol=1e-5)
        step = e.max() / 255  # e >= 0 after the ReLU
        logits = weights @ (np.round(e / step) * step) + bias
        np.testing.assert_allclose(get(score)[0], 1 / (1 + np.exp(-logits)), atol=2e-5)


def test_yamnet_hears_what_the_clips_are_of(yamnet: Any, shared: Path) -> None:
    expected = {
        "dog": {"Dog", "Bark", "Yip", "Bow-wow"},
        "rooster": {"Chicken, rooster", "Crowing, cock-a-doodle-doo"},
        "crying_baby": {"Baby cry, infant cry", "Crying, sobbing"},
        "sneezing": {"Sneeze"},
    }
    with open(shared / "weights/yamnet/yamnet_class_map.csv", newline="") as f:
        names = [row["display_name"] for row in csv.DictReader(f)]
    dense = _tensor(yamnet, "dense/MatMul", [521, 1024])
    weights = yamnet.interpreter.get_tensor(dense["index"]) * dense["quantization_parameters"]["scales"]
    bias = yamnet.interpreter.get_tensor(_tensor(yamnet, "15480", [521])["index"])
    with open(shared / "data/esc50/meta/esc50.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    right, confused = 0, 0
    for category, wanted in expected.items():
        for row in [r for r in rows if r["category"] == category][:5]:
            logits = embedding(read_clip(shared / "data/esc50/audio" / row["filename"]), "yamnet") @ weights.T + bias
            top = {names[i] for i in np.argsort(logits.max(axis=0))[-5:]}
            right += bool(top & wanted)
            confused += bool(top & set().union(*(w for c, w in expected.items() if c != category)))
    # 15 and 1 of the 20 when this was written; blind guesses would get less than one.
    assert right >= 12 and confused <= 3, (right, confused)


@pytest.mark.parametrize("n", [800, 15_599, 15_600, 15_601, 23_280, 23_281, 80_000])
def test_yamnet_windows_are_those_of_its_own_code(n: int) -> None:
    """`pad_waveform` of features.py in TensorFlow's model garden, then patches of 96 frames every 48."""
    from evalkit.embedders.yamnet import windows

    x = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    least = int((0.96 + 0.025 - 0.010) * 16_000)
    padding = max(0, least - n)
    after_first = max(n, least) - least
    hops = int(np.ceil(after_first / (0.48 * 16_000)))
    padding += int(0.48 * 16_000) * hops - after_first
    padded = np.pad(x, (0, padding))
    frames = 1 + (len(padded) - 400) // 160
    patches = 1 + (frames - 96) // 48
    made = windows(x)
    assert made.shape == (patches, 15_600)
    for i, window in enumerate(made):
        np.testing.assert_array_equal(window, padded[48 * 160 * i : 48 * 160 * i + 15_600])


def test_another_file_in_yamnets_place_is_a_fault(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "yamnet").mkdir()
    whole = (shared / "weights/yamnet/yamnet.tflite").read_bytes()
    (tmp_path / "yamnet/yamnet.tflite").write_bytes(whole[:-1])
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path))
    with pytest.raises(EvalkitError, match=r"yamnet\.tflite: not the expected weights \(sha256"):
        embedding(sound(1), "yamnet")


# -- clap -------------------------------------------------------------------------------------------------------------


def test_clap_is_upstreams_features_without_the_draws(ready: Callable[[str], str], tiny_models: Path) -> None:
    ready("clap")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    net = transformers.ClapModel.from_pretrained(tiny_models / CLAP_ID).eval()
    extract = transformers.ClapFeatureExtractor.from_pretrained(tiny_models / CLAP_ID)

    def upstream(x: np.ndarray) -> np.ndarray:
        given = extract(x, sampling_rate=48_000, return_tensors="pt")["input_features"]
        with torch.inference_mode():
            return net.get_audio_features(input_features=given.float()).pooler_output.numpy()

    for seconds in (0.4, 4.0, 10.0):
        clip = sound(seconds, 48_000)
        np.testing.assert_allclose(embedding(clip, "clap"), upstream(clip.samples[0]), atol=1e-6)
    clip = sound(23.0, 48_000)
    x = clip.samples[0]
    expected = np.concatenate([upstream(x[a : a + 480_000]) for a in (0, 480_000, 13 * 48_000)])
    made = embedding(clip, "clap")
    np.testing.assert_allclose(made, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)


def test_clap_gives_a_file_one_embedding(ready: Callable[[str], str], tmp_path: Path) -> None:
    """LAION-AI/CLAP issue 166: the cosine of a file with itself was 0.30 to 0.99."""
    ready("clap")
    made = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002 - the generator that upstream draws its crops from
        made.append(
            embed([sound(12.0, 48_000), sound(3.0, 48_000, seed=1)], "clap", EmbeddingStore(tmp_path / f"{seed}"))
        )
    for a, b in zip(*made, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(np.sum(a * b, axis=1), 1, rtol=1e-5)


def test_incomplete_and_fused_claps_are_refused(tiny_models: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from safetensors.torch import load_file, save_file

    def put(name: str) -> Path:
        monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path / name))
        return Path(shutil.copytree(tiny_models / CLAP_ID, tmp_path / name / CLAP_ID))

    folder = put("lacking")
    state = load_file(folder / "model.safetensors")
    name = next(k for k in state if k.startswith("audio_projection"))
    save_file({k: v for k, v in state.items() if k != name}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EvalkitError, match=f"lacks 1 tensors, {name} among them"):
        embedding(sound(1), "clap")

    folder = put("cut")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(EvalkitError, match="cannot be read as CLAP"):
        embedding(sound(1), "clap")

    folder = put("fused")
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["enable_fusion"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EvalkitError, match="is a fused CLAP"):
        embedding(sound(1), "clap")

    folder = put("partly")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(NotApplicable, match=r"has no preprocessor_config\.json: `hf download"):
        embedding(sound(1), "clap")


# -- encodec, tokenizer-latent ----------------------------------------------------------------------------------------


def test_encodec_is_the_encoder_before_the_quantizer(ready: Callable[[str], str], tiny_models: Path) -> None:
    ready("encodec")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    net = transformers.EncodecModel.from_pretrained(tiny_models / ENCODEC_ID).eval()
    for n in (24_000, 24_001, 1_500):
        clip = sound(n / 24_000)
        with torch.inference_mode():
            expected = net.encoder(torch.from_numpy(clip.samples)[None])[0].T.numpy()
        made = embedding(clip, "encodec")
        np.testing.assert_array_equal(made, expected)
        assert made.shape == (-(-n // 320), 128)


def test_a_48_khz_encodec_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.EncodecConfig(num_filters=4, num_lstm_layers=1, sampling_rate=48_000, audio_channels=2)
    transformers.EncodecModel(config).save_pretrained(tmp_path / ENCODEC_ID)
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path))
    with pytest.raises(EvalkitError, match="48000 Hz, 2 channels and 128 values a frame; the embedder is of the model"):
        embedding(sound(1), "encodec")


def test_tokenizer_latent_is_latent_mses_space(shared: Path) -> None:
    metrics = importlib.import_module("tokenizer.metrics")
    from tokenizer.embedder import CONTEXT, HOP

    clip = mono(read_clip(next((shared / "data/librispeech").rglob("*.flac"))))
    np.testing.assert_array_equal(embedding(clip, "tokenizer-latent"), metrics._latents(clip)[0].T)
    vae = metrics._vae()
    info = find("tokenizer-latent")
    assert (vae.encode_context, vae.config.hop, vae.config.vae.latent) == (CONTEXT, HOP, info.dimension)
    assert set(vae.card["data"]["trained_on"]) - {"folder"} == set(info.trained_on)


def test_systems_of_our_own_declare_that_tokenizer_latent_is_circular() -> None:
    for name in ("vae", "vqfm", "vqmse"):
        assert "embedder:tokenizer-latent" in registry.get("systems", name).trained_with
    assert "embedder:encodec" in registry.get("systems", "encodec").trained_with
