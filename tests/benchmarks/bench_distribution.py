"""Speed and memory of distances between distributions: ``python tests/benchmarks/bench_distribution.py [NAME ...]``.

Ratios measured in one run, on one BLAS thread, in CPU time of this process, since machines differ and are busy. Nothing
here is a test.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from evalkit import distribution as maths
from evalkit.metrics import distribution as metrics


def cpu(function: Callable[[], object], repeats: int = 3) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def embeddings(n: int, d: int, seed: int) -> np.ndarray:
    """Embeddings with a spectrum that falls as that of a real embedder: amplitudes over e^5."""
    return np.random.default_rng(seed).normal(size=(n, d)) * np.exp(-np.arange(d) / d * 5)


def frechet() -> Iterator[tuple[str, str, str]]:
    """The distance from moments, over the sqrtm route (mean, cov and product known to both)."""
    from scipy.linalg import sqrtm

    for d in (512, 2048):
        x = embeddings(2 * d, d, 0)
        a, b = maths.moments(x), maths.moments(0.8 * x + 0.3 * embeddings(2 * d, d, 1))
        ca, cb = a.covariance, b.covariance

        def reference(a=a, b=b, ca=ca, cb=cb) -> float:
            root = sqrtm(ca @ cb)
            return float(np.sum((a.mean - b.mean) ** 2) + np.trace(ca) + np.trace(cb) - 2 * np.trace(root).real)

        ready = maths.gaussian(a)
        ours, known = cpu(lambda a=a, b=b: maths.frechet(a, b)), cpu(lambda r=ready, b=b: maths.frechet(r, b))
        theirs = cpu(reference, 1 if d > 1000 else 3)
        error = abs(maths.frechet(a, b) / reference() - 1)
        yield (
            f"Fréchet distance, d={d}: sqrtm over ours ({ours:.3f} s; values differ by {error:.0e})",
            f"{theirs / ours:.1f}",
            ">= 5",
        )
        yield f"the same with the reference's root known ({known:.3f} s)", f"{theirs / known:.1f}", "-"


def memory() -> Iterator[tuple[str, str, str]]:
    """Peak memory of moments over synthetic embeddings x 512, in processes of their own."""
    peaks = {}
    for n in (1000, 10_000, 100_000):
        done = subprocess.run([sys.executable, __file__, "--peak", str(n)], check=True, capture_output=True, text=True)
        peaks[n] = float(done.stdout)
    first = f"{peaks[1000]:.0f}, {peaks[10_000]:.0f} and {peaks[100_000]:.0f} MB at 1k, 10k and 100k"
    yield (
        f"peak memory of moments, 100k embeddings x 512 over 1k ({first})",
        f"{peaks[100_000] / peaks[1000]:.2f}",
        "flat",
    )
    yield "the same, 100k over 10k", f"{peaks[100_000] / peaks[10_000]:.2f}", "1"


def peak(n: int) -> float:
    """MB resident at the peak, imports included; embeddings are made a clip of 10 at a time."""
    import psutil

    rng = np.random.default_rng(0)
    process = psutil.Process()
    process.memory_info()
    warm = maths.frechet(maths.moments(rng.normal(size=(600, 512))), maths.moments(rng.normal(size=(600, 512))))
    assert warm > 0
    highest = 0

    def clips() -> Iterator[np.ndarray]:
        nonlocal highest
        for i in range(n // 10):
            yield rng.normal(size=(10, 512)).astype(np.float32)
            if i % 100 == 0 or i == n // 10 - 1:
                highest = max(highest, process.memory_info().rss)

    maths.moments_of(clips())
    return max(highest, process.memory_info().rss) / 1e6


def kernel() -> Iterator[tuple[str, str, str]]:
    """Kernel distance of 4,000 x 1,024 paired embeddings, over the Fréchet distance of the same."""
    x = embeddings(4000, 1024, 0)
    y = 0.8 * x + 0.3 * embeddings(4000, 1024, 1)
    groups = np.repeat(np.arange(400), 10)
    both = {"reference_groups": groups, "estimate_groups": groups, "paired": True}
    kad = cpu(lambda: maths.kernel_distance(x, y, **both))
    fad = cpu(lambda: maths.frechet(maths.moments(x), maths.moments(y)))
    cover = cpu(lambda: maths.density_coverage(x, y, **both))
    yield f"KAD of 4,000 x 1,024 ({kad:.2f} s) over FAD with its moments ({fad:.2f} s)", f"{kad / fad:.1f}", "-"
    yield f"density and coverage of the same ({cover:.2f} s) over FAD", f"{cover / fad:.1f}", "-"


def cell() -> Iterator[tuple[str, str, str]]:
    """What one more system costs a table: 400 clips of 10 embeddings x 1,024, of full and of deficient rank."""
    for rank, what in ((1024, "full rank"), (870, "rank 870")):
        x = (
            embeddings(4000, rank, 0) @ np.linalg.qr(embeddings(1024, rank, 2))[0].T
            if rank < 1024
            else embeddings(4000, rank, 0)
        )
        clusters = [str(i // 2) for i in range(400)]
        seconds = []
        for system in range(3):
            y = (0.8 + 0.05 * system) * x + 0.3 * (embeddings(4000, rank, 3 + system) @ np.eye(rank, 1024))
            sets = [
                {"reference": x[i : i + 10].astype("f4"), "estimate": y[i : i + 10].astype("f4")}
                for i in range(0, 4000, 10)
            ]
            clips = metrics.Clips(sets, clusters)
            times = [
                cpu(lambda m=m, c=clips: m(c, 0, False), 1)
                for m in (metrics.fad, metrics.fad_inf, metrics.kad, metrics.density)
            ]
            seconds.append(times)
        fad, infinite, kad, density = seconds[-1]
        first = sum(seconds[0][:2])
        yield f"FAD and FAD-infinity with interval, d=1,024, {what}: s a system", f"{fad + infinite:.2f}", "< 3"
        yield f"- of the first system, with the work on the reference and the floors ({what})", f"{first:.2f}", "-"
        yield f"KAD, density and coverage with interval ({what}): s a system", f"{kad + density:.2f}", "-"


BENCHMARKS = {"frechet": frechet, "memory": memory, "kernel": kernel, "cell": cell}


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        print(peak(int(sys.argv[2])))
        return
    print("| what | measured | goal |\n|---|---|---|")
    for name in sys.argv[1:] or BENCHMARKS:
        for row in BENCHMARKS[name]():
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
