"""Speed of embeddings, as ratios in one run: ``python tests/benchmarks/bench_embeddings.py [CLIPS]``.

Batches against one file at a time, the store against computing, and what a second metric on the same embeddings costs,
on seeded clips of 5 s at 44.1 kHz, one thread. yamnet needs its weights (``EVALKIT_WEIGHTS``); clap and encodec are at
full width with random weights, which time the same. Nothing here is a test: machines differ and are busy.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evalkit import embedders
from evalkit.audio import Clip
from evalkit.embedders import embed, embedding, find
from evalkit.embedders.store import EmbeddingStore
from evalkit.errors import NotApplicable

ROUNDS = 5
SECONDS = 5.0


def clips(count: int, first: int = 0) -> list[Clip]:
    """Fresh objects, so that nothing is remembered on them; the same audio for the same numbers."""
    t = np.arange(round(SECONDS * 44_100)) / 44_100
    made = []
    for i in range(first, first + count):
        rng = np.random.default_rng(i)
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 4000) * t) * (np.sin(2 * np.pi * rng.uniform(1, 4) * t) > 0)
        made.append(Clip(tone + rng.normal(0, 0.01, t.size), 44_100))
    return made


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def median(function: Callable[[], object]) -> float:
    return statistics.median(timed(function) for _ in range(ROUNDS))


def random_models(root: Path) -> None:
    import torch
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, EncodecConfig, EncodecModel

    torch.manual_seed(0)
    text = {"num_hidden_layers": 1, "hidden_size": 12, "intermediate_size": 12}  # is not run
    ClapModel(ClapConfig(text_config=text)).save_pretrained(root / "laion/clap-htsat-unfused")
    ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc").save_pretrained(root / "laion/clap-htsat-unfused")
    EncodecModel(EncodecConfig()).save_pretrained(root / "facebook/encodec_24khz")


def measure(name: str, count: int, folder: Path) -> None:
    empty = EmbeddingStore(folder / "file" / "not-a-folder")  # keeps nothing, so that everything is computed
    embed(clips(1, 1000), name, empty)  # load and warm
    together, single = [], []
    for _ in range(ROUNDS):
        given = clips(count)
        together.append(timed(lambda g=given: embed(g, name, empty)))  # type: ignore[misc]
        given = clips(count)
        single.append(timed(lambda g=given: [embed([c], name, empty) for c in g]))  # type: ignore[misc]
    computed = statistics.median(single)
    print(
        f"{name}: {1000 * computed / count:.1f} ms a clip; batched v one at a time "
        f"{statistics.median(s / t for s, t in zip(single, together, strict=True)):.2f} x",
        flush=True,
    )

    store = EmbeddingStore(folder / "store")
    embed(clips(count), name, store)
    hits = []
    for _ in range(ROUNDS):
        given = clips(count)
        hits.append(timed(lambda g=given: [embed([c], name, store) for c in g]))  # type: ignore[misc]
    hit = statistics.median(hits)
    info = find(name)
    size = store.stats()[embedders._store_key(info)]["bytes"] / count
    print(
        f"  store: {1000 * hit / count:.2f} ms a clip with its content hash, {computed / hit:.1f} x as fast as "
        f"computing; {size / 1000:.0f} kB a clip",
        flush=True,
    )

    given = clips(count)
    first = timed(lambda: [embedding(c, name) for c in given])
    second = median(lambda: [embedding(c, name) for c in given])
    print(
        f"  second metric of a clip: its embeddings cost {100 * second / first:.3f} % of the first's (goal < 2)",
        flush=True,
    )


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "file").write_text("in the way of a store")
        weights = os.environ.get("EVALKIT_WEIGHTS", "")
        random_models(folder / "models")
        for name in ("mel-stats", "yamnet", "tokenizer-latent", "encodec", "clap"):
            os.environ["EVALKIT_CACHE"] = str(folder / "cache")
            os.environ["EVALKIT_WEIGHTS"] = str(folder / "models") if name in ("clap", "encodec") else weights
            try:
                measure(name, count if name != "clap" else max(2, count // 4), folder)
            except NotApplicable as error:
                print(f"{name}: not measured: {error}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
