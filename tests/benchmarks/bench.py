"""Speed and memory, as ratios measured in one run: ``make bench`` or ``python tests/benchmarks/bench.py [NAME ...]``.

Nothing here is a test: machines differ and are busy. It prints what it measured beside the goal.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from evalkit.audio import Clip, Prepare, read_clip, write_clip
from evalkit.plan import expand_tasks
from evalkit.systems.load import load_system
from evalkit.work import load_metric, measure, run_system


def clips(folder: Path, count: int, seconds: float, sample_rate: int = 44_100) -> Path:
    """``count`` seeded noisy tones as wav files."""
    folder.mkdir(parents=True)
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    for i in range(count):
        rng = np.random.default_rng(i)
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 4000) * t) * (np.sin(2 * np.pi * rng.uniform(1, 4) * t) > 0)
        write_clip(Clip(tone + rng.normal(0, 0.01, t.size), sample_rate), folder / f"{i:05}.wav")
    return folder


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def bare_loop(data: Path, spec: str) -> None:
    """What a careful script would do: predict and measure the same, record nothing, isolate nothing."""
    metrics = [load_metric(m) for m in expand_tasks([f"folder:{data}"])[0].metrics]
    system = load_system(spec).system
    prepare = Prepare()
    for path in sorted(data.iterdir()):
        reference = prepare(read_clip(path))
        output = run_system(system, reference, 0)
        sample = {
            "reference": reference,
            "estimate": output.clip,
            "tokens": output.tokens,
            "cost": output.cost,
            "labels": {},
        }
        for info in metrics:
            measure(info, sample, "sound")


def overhead(scratch: Path) -> tuple[str, str, str]:
    """The runner (one isolated worker, everything recorded, tables written) over a bare loop, as whole processes."""
    data = clips(scratch / "overhead", 150, 5.0)
    bare = [sys.executable, __file__, "--bare", str(data), "mdct:6"]
    ratios = []
    for i in range(-1, 4):
        runner = [
            sys.executable,
            "-m",
            "evalkit",
            "run",
            "--task",
            f"folder:{data}",
            "--system",
            "mdct:6",
            "--jobs",
            "1",
            "--out",
            str(scratch / f"overhead-run{i}"),
        ]
        b = timed(lambda: subprocess.run(bare, check=True, capture_output=True))
        r = timed(lambda c=runner: subprocess.run(c, check=True, capture_output=True))  # type: ignore[misc]
        if i >= 0:  # the first round warms the disk cache
            ratios.append(r / b)
            print(f"  overhead, round {i + 1}: bare loop {b:.2f} s, runner {r:.2f} s, ratio {r / b:.3f}", flush=True)
    return (
        "runner over the bare loop, 150 clips of 5 s, mdct:6, whole processes",
        f"{statistics.median(ratios):.3f}",
        "<= 1.03",
    )


def resume(scratch: Path) -> tuple[str, str, str]:
    """Re-issuing a finished command, as a whole process."""
    data = clips(scratch / "resume", 400, 0.5, 16_000)
    command = [
        sys.executable,
        "-m",
        "evalkit",
        "run",
        "--task",
        f"folder:{data}",
        "--system",
        "identity,silence,pcm:8,mulaw,noise",
        "--out",
        str(scratch / "resume-run"),
        "--jobs",
        "2",
    ]
    subprocess.run(command, check=True, capture_output=True)
    seconds = [timed(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(5)]
    return (
        "re-issuing a finished run, 400 clips x 5 systems, tables rebuilt",
        f"{statistics.median(seconds):.2f} s",
        "<= 2 s",
    )


def memory(scratch: Path) -> tuple[str, str, str]:
    """Peak resident memory of all processes of a run at 2,000 clips over 200 clips."""
    peaks = []
    for count in (200, 2000):
        data = clips(scratch / f"memory{count}", count, 0.5, 16_000)
        command = [
            sys.executable,
            "-m",
            "evalkit",
            "run",
            "--task",
            f"folder:{data}",
            "--system",
            "pcm:8,opus:6",
            "--out",
            str(scratch / f"memory-run{count}"),
            "--jobs",
            "1",
        ]
        peaks.append(peak_of(command))
        print(f"  memory, {count} clips: peak {peaks[-1] / 2**20:.0f} MiB over all processes", flush=True)
    return "peak memory at 2,000 clips over 200 clips, pcm:8 and opus:6", f"{peaks[1] / peaks[0]:.3f}", "<= 1.1"


def peak_of(command: list[str]) -> int:
    """Highest sum of resident bytes of a process and its children, sampled every 20 ms."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0

    def watch() -> None:
        nonlocal peak
        me = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            try:
                for p in (me, *me.children(recursive=True)):
                    total += p.memory_info().rss
            except psutil.Error:
                continue
            peak = max(peak, total)
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    process.wait()
    thread.join()
    assert process.returncode == 0, process.returncode
    return peak


def listing(scratch: Path) -> tuple[str, str, str]:
    """`evalkit list`, as a whole process, and whether it imports torch."""
    seconds = []
    for kind in ("tasks", "systems", "metrics", "datasets"):
        command = [sys.executable, "-m", "evalkit", "list", kind]
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(
            statistics.median(
                timed(lambda c=command: subprocess.run(c, check=True, capture_output=True))  # type: ignore[misc]
                for _ in range(5)
            )
        )
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "evalkit", "list", "metrics"],
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    torch = any(line.rpartition("|")[2].strip().partition(".")[0] == "torch" for line in shown.splitlines())
    return (
        "`evalkit list`, slowest of the four kinds" + (", TORCH IMPORTED" if torch else ", torch not imported"),
        f"{max(seconds):.2f} s",
        "<= 0.3 s",
    )


def pairs(scratch: Path) -> tuple[str, str, str]:
    """One column of 15 systems on 400 clips, all pairs at once, over the same pairs one by one."""
    from itertools import combinations

    from evalkit.statistics import compare_all, paired_difference

    rng = np.random.default_rng(0)
    table = {f"s{k:02}": {str(i): float(v) for i, v in enumerate(rng.normal(0.01 * k, 1, 400))} for k in range(15)}
    clusters = {str(i): str(i // 10) for i in range(400)}
    labels = list(clusters.values())
    flips = 10 * 105 * 20  # as many as compare_all takes for 105 pairs
    ratios = []
    for _ in range(3):
        together = timed(lambda: compare_all(table, clusters, direction="lower", seed=0))
        single = timed(
            lambda: [
                paired_difference([*table[a].values()], [*table[b].values()], labels, seed=0, flips=flips)
                for a, b in combinations(table, 2)
            ]
        )
        ratios.append(together / single)
    return "all 105 pairs of a column at once over one by one", f"{statistics.median(ratios):.3f}", "< 1"


BENCHMARKS = {"overhead": overhead, "resume": resume, "memory": memory, "listing": listing, "pairs": pairs}


def main() -> None:
    if sys.argv[1:2] == ["--bare"]:
        bare_loop(Path(sys.argv[2]), sys.argv[3])
        return
    wanted = sys.argv[1:] or list(BENCHMARKS)
    rows = []
    for name in wanted:
        print(f"{name} ...", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["EVALKIT_CACHE"] = str(Path(scratch) / "cache")
            rows.append(BENCHMARKS[name](Path(scratch)))
    print("\n| what | measured | goal |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
