"""Leaderboards: rebuilt byte for byte, stale ones found, versions never mixed, strangers' text inert."""

from __future__ import annotations

import copy
import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.audio import Clip, write_clip
from evalkit.errors import EvalkitError, UsageError
from evalkit.leaderboard import check, read_published, rebuild, update, write_record
from evalkit.plan import Request
from evalkit.results import counts
from evalkit.run import run
from evalkit.table import build_table


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A finished run of four systems on twelve short clips."""
    folder = tmp_path_factory.mktemp("board")
    (folder / "clips").mkdir()
    for i in range(12):
        noise = np.random.default_rng(i).normal(0, 0.05, 6000)
        write_clip(
            Clip(noise + 0.3 * np.sin(np.arange(6000) * 0.1 * (1 + i)), 16_000), folder / "clips" / f"{i:02}.wav"
        )
    outcome = run(
        Request((f"folder:{folder / 'clips'}",), ("identity", "silence", "pcm:4", "pcm:8")), out=folder / "run", jobs=0
    )
    assert outcome.exit_code == 0
    return folder / "run", outcome.results


def test_rebuilt_byte_for_byte_and_check(finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    update([finished[0]], tmp_path)
    assert check(tmp_path) == []
    first = {p: p.read_bytes() for p in tmp_path.glob("*.*")}
    update([], tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.glob("*.*")} == first
    page = next(p for p in first if p.suffix == ".md" and p.name != "README.md" and ".cost" not in p.name)
    page.write_text(page.read_text().replace("pcm:8", "pcm:9"))
    assert check(tmp_path) == [page.name]
    page.unlink()
    assert check(tmp_path) == [page.name]


def test_ranks_ties_and_differences(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    table = build_table(finished[1], baseline="pcm:4")
    cells = {r.label: r.cells["mse"] for r in table.rows}
    assert table.rows[0].label == "identity"
    assert [cells[s].rank for s in ("identity", "pcm:8", "pcm:4", "silence")] == ["1", "2", "3", "4"]
    assert cells["pcm:8"].diff == pytest.approx(cells["pcm:8"].value - cells["pcm:4"].value)  # type: ignore[operator]
    assert cells["pcm:8"].p is not None and cells["pcm:8"].p < 0.05
    assert {c.coverage_text for c in cells.values()} == {"12/0/0/0"}
    same = build_table([*finished[1], _renamed(finished[1][2], "pcm:4-again")])
    assert {r.label: r.cells["mse"].letters for r in same.rows}["pcm:4"] == "c"
    assert {r.label: r.cells["mse"].rank for r in same.rows}["pcm:4"] == "3-4"


def _renamed(result: dict[str, Any], name: str) -> dict[str, Any]:
    other = copy.deepcopy(result)
    other["system"] |= {"name": name, "spec": name}
    return other


def test_coverage_counts_every_clip_once() -> None:
    """Scored, failed, not applicable, missing: each clip is in one of them, by the reasons that stand for it."""
    reasons = {"failed": {"x": [6, 7]}, "n/a": {"y": [8], "z": [9, 10]}, "missing": {"w": [11, 12, 13, 14]}}
    result = {
        "clips": {"id": [str(i) for i in range(15)]},
        "metrics": {"m": {"reasons": reasons}, "n": {"reasons": {}}},
    }
    assert counts(result, "m") == (6, 2, 3, 4)
    assert counts(result, "n") == (15, 0, 0, 0)


def test_rows_of_other_data_are_refused_and_other_metric_versions_noted(
    finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    other_data = _renamed(finished[1][3], "elsewhere")
    other_data["task"]["identity"]["selection"]["limit"] = 10
    other_metric = _renamed(finished[1][3], "older")
    other_metric["metrics"]["mse"]["id"] = "mse-v0-00000000"
    table = build_table([*finished[1], other_data, other_metric])
    assert table.refused == (("elsewhere", "selection.limit (none -> 10)"),)
    cells = {r.label: r.cells for r in table.rows}
    assert cells["older"]["mse"].value is None
    assert "another version of the metric: mse-v0-00000000" in cells["older"]["mse"].reason
    assert cells["older"]["snr"].value == cells["pcm:8"]["snr"].value
    for r in (*finished[1], other_data, other_metric):
        write_record(r, tmp_path / "records")
    page = next(
        v
        for k, v in rebuild(tmp_path).items()
        if (k.startswith("folder") and k.endswith("}.md")) or k.endswith("clips.md")
    )
    assert "## Refused rows" in page.decode()


def test_strangers_text_is_inert_everywhere(finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    evil = _renamed(finished[1][3], "=cmd|'x'!A1 <script>alert(1)</script> `a` | b\n# c")
    evil["metrics"]["mse"]["values"] = [None] * 12
    evil["metrics"]["mse"]["reasons"] = {"failed": {"</td><img src=x> [l](javascript:x) | \x1b[2J": list(range(12))}}
    write_record(evil, tmp_path / "records")
    write_record(finished[1][2], tmp_path / "records")
    files = rebuild(tmp_path)
    for name, content in files.items():
        text = content.decode()
        if name.endswith(".md"):
            outside = "".join(part for i, part in enumerate(text.split("`")) if i % 2 == 0)
            assert "<script" not in outside and "<img" not in text and "\x1b" not in text
            assert re.search(r"(?<!\\)\]\(javascript", text) is None
            assert "\n# c" not in text
        if name.endswith(".csv"):
            assert all(not row["system"].startswith("=") for row in csv.DictReader(text.splitlines()))
    assert all(
        ".." not in p.name and p.parent.parent == tmp_path / "records" for p in (tmp_path / "records").rglob("*.json")
    )


def test_published_numbers_have_their_own_marked_columns(
    finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    update([finished[0]], tmp_path)
    task = finished[1][0]["task"]["name"]
    (tmp_path / "published.toml").write_text(
        f'[[published]]\ntask = {json.dumps(task)}\nsystem = "pcm:8"\nmetric = "mel distance (elsewhere)"\n'
        "value = 1.25\n"
        'citation = "A. Uthor, 2025"\n'
        f'[[published]]\ntask = {json.dumps(task)}\nsystem = "LM-MSN"\nmetric = "mel distance (elsewhere)"\n'
        'value = "not available"\ncitation = "Make Some Noise"\n'
    )
    page = next(
        v.decode() for k, v in rebuild(tmp_path).items() if k.endswith(".md") and k != "README.md" and ".cost" not in k
    )
    head = next(line for line in page.splitlines() if line.startswith("| system"))
    assert head.endswith("| *published:* mel distance (elsewhere) |")
    assert "A. Uthor, 2025" in page
    assert "| *LM-MSN* (published) |" in page and "not available [2] |" in page
    with_rate = next(line for line in page.splitlines() if line.startswith("| `pcm:8`"))
    assert with_rate.endswith("| 1.25 [1] |")


def test_published_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "published.toml"
    path.write_text('[[published]]\ntask = "x"\n')
    with pytest.raises(EvalkitError, match="entry 1 has no 'system'"):
        read_published(path)


def test_unfinished_runs_and_foreign_records_are_refused(
    finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not a run directory"):
        update([tmp_path], tmp_path / "board")
    (tmp_path / "board/records/x").mkdir(parents=True)
    (tmp_path / "board/records/x/y.json").write_text("[]")
    with pytest.raises(EvalkitError, match="not a result record"):
        rebuild(tmp_path / "board")


def test_the_committed_leaderboards_are_fresh() -> None:
    folder = Path(__file__).resolve().parent.parent / "leaderboards"
    assert check(folder) == []


def test_the_table_in_the_readme_is_the_leaderboard() -> None:
    """Each column and row of README's table is copied from the page that it names."""

    def cells(line: str) -> list[str]:
        return [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]

    root = Path(__file__).resolve().parent.parent
    found = re.search(r"<!-- table: (\S+) -->\n+((?:\|.*\n)+)", (root / "README.md").read_text())
    assert found
    shown = [cells(line) for line in found[2].splitlines()]
    page = (root / found[1]).read_text().splitlines()
    start = next(i for i, line in enumerate(page) if line.startswith("| system | kbps |"))
    table = [cells(line) for line in page[start : page.index("", start)] if "(published)" not in line]
    columns = [table[0].index(name) for name in shown[0]]
    assert shown == [[row[c] for c in columns] for row in table]
