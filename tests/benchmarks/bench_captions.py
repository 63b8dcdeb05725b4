"""CIDEr-D and the caption tokeniser beside the programs they follow, in one run.

``python tests/benchmarks/bench_captions.py [--aac-metrics DIR] [--java JAVA --jar stanford-corenlp-3.4.1.jar]``

``DIR`` is where aac-metrics can be imported from, if it is not installed: ``pip install --no-deps --target DIR
aac-metrics==0.6.0 pythonwrench==0.6.8 torchmetrics lightning-utilities``. It imports msclap, which CIDEr-D does not
need: an empty module stands for it here where it is absent. Nothing here is a test: machines differ and are busy.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evalkit.caption_tokens import ptb_tokens
from evalkit.metrics.captions import cider_d

CLIPS, REFERENCES, ROUNDS = 1000, 5, 5


def captions(count: int, seed: int) -> list[str]:
    """Captions of 5 to 17 words of a vocabulary of about 1,500, the common ones often, as in real ones."""
    rng = random.Random(seed)
    words = [f"{a}{b}" for a in ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru") for b in range(150)]
    rng.shuffle(words)
    share = [1 / (i + 2) for i in range(len(words))]
    return [" ".join(rng.choices(words, share, k=rng.randint(5, 17))) for _ in range(count)]


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def beside(name: str, goal: str, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    """The median of rounds in which the two take turns."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
    a, b = (statistics.median(p[k] for p in pairs) for k in (0, 1))
    ratio = statistics.median(y / x for x, y in pairs)
    print(f"{name}: ours {a:.3f} s, theirs {b:.3f} s, {ratio:.1f} times as fast ({goal})", flush=True)


def aac_cider_d(folder: str | None) -> Callable[..., Any] | str:
    """aac-metrics' own function, or why it is not here."""
    if folder:
        sys.path.append(folder)
    if importlib.util.find_spec("msclap") is None:
        sys.modules["msclap"] = stub = ModuleType("msclap")
        stub.CLAP = object  # type: ignore[attr-defined]
    try:
        from aac_metrics.functional.cider_d import cider_d as function
    except ImportError as error:
        return str(error)
    return function  # type: ignore[no-any-return]


def bench_cider_d(folder: str | None) -> None:
    name = f"CIDEr-D, {CLIPS:,} x {REFERENCES}"
    text = captions(CLIPS * (REFERENCES + 1), 0)
    candidates, flat = text[:CLIPS], text[CLIPS:]
    references = [flat[i : i + REFERENCES] for i in range(0, len(flat), REFERENCES)]
    theirs = aac_cider_d(folder)

    def ours() -> np.ndarray:  # splitting into words is within theirs as well
        return cider_d([c.split() for c in candidates], [[r.split() for r in several] for several in references])

    if isinstance(theirs, str):
        print(f"{name}: ours {statistics.median(seconds(ours) for _ in range(ROUNDS)):.3f} s, theirs n/a ({theirs})")
        return
    values = theirs(candidates, references)[1]["cider_d"].numpy()
    print(f"{name}: greatest difference {np.abs(ours() - values).max():.1e}")
    beside(name, "goal: 10", ours, lambda: theirs(candidates, references))


def bench_tokeniser(java: str | None, jar: str | None) -> None:
    count = CLIPS * REFERENCES
    name = f"PTB tokens of {count:,} captions"
    rounds = [[t.capitalize() + "." for t in captions(count, 1 + i)] for i in range(ROUNDS)]  # none is cached
    ours = [seconds(lambda r=r: [ptb_tokens(t) for t in r]) for r in rounds]  # type: ignore[misc]
    if not (java and jar):
        print(f"{name}: ours {statistics.median(ours):.3f} s, theirs n/a (--java and --jar were not given)")
        return
    theirs = []
    for r in rounds:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "captions.txt"
            file.write_text("\n".join(r) + "\n", encoding="utf-8")
            command = [java, "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", file]
            theirs.append(seconds(lambda c=command: subprocess.run(c, check=True, capture_output=True)))  # type: ignore[misc]
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"{name}: ours {a:.3f} s, Java with its start {b:.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--aac-metrics")
    parser.add_argument("--java")
    parser.add_argument("--jar")
    arguments = parser.parse_args()
    bench_cider_d(arguments.aac_metrics)
    bench_tokeniser(arguments.java, arguments.jar)
