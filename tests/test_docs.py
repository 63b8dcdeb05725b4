"""The documentation is executed: every fenced block of README.md and docs/**/*.md, in order, in a fresh folder a page.

``python`` blocks share one namespace a page and run in a process of their own (``python -c``); ``sh`` blocks run line
by line under ``bash -euo pipefail`` with the environment's commands first on PATH. A block that begins with a comment
``# name.ext`` (or whose fence says ``title=name.ext``) is written to that file instead. ``# exit 2`` at the end of a
line declares its exit code. A fence ``text output`` holds the output of the command before it, ``...`` standing for
anything. Other ``text`` blocks are prose; ``toml`` and ``json`` must parse.

Not run, but checked: ``make`` lines by ``make -n``; ``pip install`` lines for the extras and files they name;
``git clone`` (nothing to clone here) and the ``cd`` after it; ``evalkit download`` lines for options, data set and
archives, since there may be no network. ``evalkit run`` without a ``--limit`` gets one of `CLIPS`, so that this file
takes seconds. Pages that read real data do so from a folder ``data``, which is linked to the shared audio, and from
``decoded/mimi``, linked to real decodings of it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent
PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
NAMES = [str(p.relative_to(REPO)) for p in PAGES]

CLIPS = 2
HEADLINES = {"docs/add-a-task.md": 15, "docs/add-a-codec.md": 12, "docs/add-a-metric.md": 15}
PROSE = {
    "docs/design/statistics.md": "formulae and tables; its numbers are printed by tests/test_statistics.py",
    "docs/datasets.md": "its download lines are checked and not run",
    "docs/tokenizer/comparison.md": "written by tokenizer/compare.py; tests/test_compare.py runs it",
}
SLOW = {"README.md"}
ON_DATA = re.compile(r"data_root=\"data\"|--data-root data\b|EVALKIT_DATA=data\b")

DRIVER = r"""
import doctest, json, os, re, subprocess, sys, time
steps = json.load(sys.stdin)
namespace = {"__name__": "docs"}
output = ""
for step in steps:
    place, text = step["place"], step["text"]
    started = time.monotonic()
    try:
        if step["kind"] == "file":
            with open(step["name"], "w") as f:
                f.write(text)
        elif step["kind"] == "python":
            exec(compile(text, place, "exec"), namespace)
        elif step["kind"] == "output":
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            if not doctest.OutputChecker().check_output(text, output, flags):
                raise AssertionError("the page shows\n" + text + "\nthe command printed\n" + output)
        else:
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
            output = done.stdout
            if done.returncode != step["exit"] or "Traceback (most recent call last)" in output:
                what = f"ended with {done.returncode}, expected {step['exit']}"
                raise AssertionError(f"{text}\n{what}:\n{output[-3000:]}")
    except BaseException as error:
        print(f"\n{place}: {type(error).__name__}: {error}", flush=True)
        raise
    print(f"{place}: {step['kind']}, {time.monotonic() - started:.1f} s", flush=True)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words after it, its text and where it begins."""

    language: str
    words: tuple[str, ...]
    text: str
    place: str

    @property
    def file(self) -> str:
        """The file it is to be written to, or ""."""
        titles = [w.removeprefix("title=") for w in self.words if w.startswith("title=")]
        first = re.match(r"# ([\w.-]+\.\w+)\n", self.text)
        return titles[0] if titles else first[1] if first and self.language in ("python", "toml") else ""


def blocks(name: str) -> list[Block]:
    found: list[Block] = []
    lines = iter(enumerate((REPO / name).read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if line.startswith("```"):
            language, *words = line.removeprefix("```").split() or [""]
            body: list[str] = []
            for _, inner in lines:
                if inner == "```":
                    break
                body.append(inner)
            else:
                raise AssertionError(f"{name}:{number}: a fence that is not closed")
            found.append(Block(language, tuple(words), "\n".join(body) + "\n", f"{name}:{number}"))
    return found


def steps(name: str) -> Iterator[dict[str, Any]]:
    """What the driver does for a page; lines that are checked and not run are checked here."""
    for block in blocks(name):
        if block.file:
            yield {"kind": "file", "name": block.file, "text": block.text, "place": block.place}
        elif block.language == "python":
            yield {"kind": "python", "text": block.text, "place": block.place}
        elif block.language == "text" and "output" in block.words:
            yield {"kind": "output", "text": block.text, "place": block.place}
        elif block.language in ("sh", "bash", "console", "shell"):
            assert block.language == "sh", f"{block.place}: write ```sh, so that it is run"
            cloned = False
            for line in commands(block.text):
                cloned = cloned or line.startswith("git clone ")
                if not (checked(line, block.place) or (cloned and line.startswith("cd "))):
                    declared = re.search(r"#\s*exit (\d+)$", line)
                    yield {
                        "kind": "sh",
                        "text": limited(line),
                        "exit": int(declared[1]) if declared else 0,
                        "place": block.place,
                    }
        else:
            assert block.language in ("text", "toml", "json"), f"{block.place}: what is a {block.language!r} block?"


def commands(text: str) -> list[str]:
    """The lines of a block; a backslash at the end continues a line, comments alone on a line are none."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def limited(line: str) -> str:
    """``evalkit run`` with a limit where it says none."""
    if "--limit" in line or "_LIMIT=" in line or "--help" in line:
        return line
    return re.sub(r"\bevalkit run\b", f"evalkit run --limit {CLIPS}", line)


def checked(line: str, place: str) -> bool:
    """True for a line that is checked here and not run."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        done = subprocess.run(["make", "-n", "-C", str(REPO), *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, f"{place}: {line}: {done.stderr}"
        return True
    if words[0] == "pip" or words[1:3] == ["-m", "pip"]:
        check_pip(words[words.index("install") + 1 :], place)
        return True
    if words[:2] == ["git", "clone"]:
        assert len(words) in (3, 4), f"{place}: {line}"
        return True
    if words[:2] == ["evalkit", "download"]:
        check_download(words[2:], place)
        return True
    return False


def check_pip(words: list[str], place: str) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    for word in words:
        if word.startswith("-"):
            continue
        wanted = re.fullmatch(r"([\w./-]+?)(?:\[([\w,-]+)\])?", word)
        assert wanted, f"{place}: pip install {word}"
        if wanted[1] == "." or wanted[1] == project["name"]:
            unknown = set(filter(None, (wanted[2] or "").split(","))) - set(project["optional-dependencies"])
            assert not unknown, f"{place}: pyproject.toml has no extra {unknown}"
        else:
            assert wanted[1].startswith("./my") or (REPO / wanted[1]).exists(), f"{place}: there is no {wanted[1]}"


def check_download(words: list[str], place: str) -> None:
    from evalkit import registry
    from evalkit.cli import cli
    from evalkit.datasets.download import select

    command = cli.commands["download"]
    sources = [words[i + 1] for i, w in enumerate(words[:-1]) if w == "--from"]
    with_files = ["." if w in sources else w for w in words]  # the file it would take them from need not be here
    context = command.make_context("download", with_files)
    info = registry.get("datasets", context.params["name"])
    assert select(info, context.params["only"]), place
    assert all(s in {a.filename for a in info.archives} or "/" in s for s in sources), f"{place}: {sources}"


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES])
def test_page(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every block of the page does what the page says."""
    todo = list(steps(name))
    if not any(s["kind"] in ("python", "sh") for s in todo):
        assert name in PROSE, f"{name} executes nothing; say why in PROSE"
        return
    assert name not in PROSE, f"{name} executes something now: take it off PROSE"
    cwd = tmp_path / "here"
    cwd.mkdir()
    absent = None
    on_data = {s["place"] for s in todo if ON_DATA.search(s["text"])}
    if on_data:
        try:
            shared: Path = request.getfixturevalue("shared")
        except pytest.skip.Exception as skip:
            absent = skip
            todo = [s for s in todo if s["place"] not in on_data]
        else:
            (cwd / "data").symlink_to(shared / "data")
            (cwd / "decoded").mkdir()
            (cwd / "decoded" / "mimi").symlink_to(shared / "reference/codec_pairs/librispeech/mimi_1.1kbps")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EVALKIT_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        "EVALKIT_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=cwd,
        env=environment,
        input=json.dumps(todo),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    print(done.stdout)
    if absent:  # the rest of the page has passed
        raise absent


@pytest.mark.parametrize("name", NAMES)
def test_data_blocks_parse_and_no_code_hides_from_the_tests(name: str) -> None:
    for block in blocks(name):
        if block.language == "json":
            json.loads(block.text)
        if block.language == "toml":
            check_entry_points(tomllib.loads(block.text), block.place)
    outside = re.sub(r"^```.*?^```$", "", (REPO / name).read_text(encoding="utf-8"), flags=re.M | re.S)
    indented = re.findall(r"\n\n(    [^ \n-].*)", outside)
    assert not indented, f"{name}: a code block without a fence is not executed: {indented[0]}"
    assert "```" not in outside, f"{name}: a fence that is indented is not executed"


def check_entry_points(content: dict[str, Any], place: str) -> None:
    groups = content.get("project", {}).get("entry-points", {})
    ours = {f"evalkit.{kind}" for kind in ("tasks", "systems", "metrics", "datasets")}
    assert set(groups) <= ours, f"{place}: evalkit has no entry-point group {set(groups) - ours}"


@pytest.mark.parametrize(("name", "most"), HEADLINES.items())
def test_the_headline_is_as_short_as_it_says(name: str, most: int) -> None:
    title = (REPO / name).read_text(encoding="utf-8").splitlines()[0]
    assert f"in {most} lines" in title
    first = next(b for b in blocks(name) if b.language == "python")
    assert first.file == "mine.py"
    lines = [line for line in first.text.splitlines() if line.strip()]
    assert len(lines) <= most, f"{len(lines)} lines"
    assert max(map(len, lines)) <= 120


LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Relative links of a page outside its code, as (target, anchor)."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, flags=re.M)}


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_and_named_files_exist(name: str) -> None:
    for target, anchor in links(REPO / name):
        assert target.exists(), f"{name}: broken link to {target}"
        assert target.is_relative_to(REPO), f"{name}: {target} is outside the repository"
        assert not anchor or anchor in anchors(target), f"{name}: {target.name} has no heading #{anchor}"
    text = (REPO / name).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:evalkit|tasks|tests|docs|leaderboards)/[\w/.-]+\.\w+)`", text):
        assert (REPO / path).exists(), f"{name} names {path}, which does not exist"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, pending = set(), [PAGES[0]]
    while pending:
        page = pending.pop()
        if page not in reached and page.suffix == ".md" and page.exists():  # broken links are the test above's
            reached.add(page)
            pending += [target for target, _ in links(page)]
    assert not set(PAGES) - reached, f"no link leads to {sorted(str(p) for p in set(PAGES) - reached)}"


def test_the_command_line_page_names_every_command_option_and_variable() -> None:
    import click

    from evalkit.cli import cli

    page = (REPO / "docs/command-line.md").read_text(encoding="utf-8")
    sections = {m[1]: m[2] for m in re.finditer(r"^## `evalkit ([a-z ]+)`\n(.*?)(?=^## |\Z)", page, flags=re.M | re.S)}

    def leaves(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from leaves(command, f"{prefix}{name} ")
            else:
                yield prefix + name, command

    found = dict(leaves(cli))
    assert sections.keys() == found.keys()
    for name, command in found.items():
        documented = set(re.findall(r"^\| `(--[\w-]+)", sections[name], flags=re.M))
        actual = {max(o.opts, key=len) for o in command.params if isinstance(o, click.Option)}
        assert documented == actual, name
        for option in command.params:
            if isinstance(option, click.Option):
                variable = option.envvar or f"EVALKIT_{name}_{option.name}".replace(" ", "_").upper()
                assert f"`{variable}`" in sections[name], f"{name} {option.opts}: {variable}"


def test_the_dependencies_page_names_every_dependency() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    page = (REPO / "docs/design/dependencies.md").read_text(encoding="utf-8")
    table = page.partition("## What every installation gets")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)`", table, flags=re.M)) == {
        re.split(r"[<>=\[]", d)[0] for d in project["dependencies"]
    }
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in page


def test_the_driver_notices_what_is_wrong(tmp_path: Path) -> None:
    """The harness itself: a wrong exit code, a wrong output, a raising block and a traceback all fail."""
    place = {"place": "page:1"}
    for bad in (
        {"kind": "sh", "text": "exit 2", "exit": 0},
        {"kind": "sh", "text": "false | true", "exit": 0},
        {"kind": "python", "text": "assert 1 == 2"},
        {"kind": "output", "text": "nothing was run"},
        {"kind": "sh", "text": "echo 'Traceback (most recent call last)'", "exit": 0},
    ):
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            cwd=tmp_path,
            input=json.dumps([{**bad, **place}]),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and "page:1" in done.stdout, bad
    good = [
        {"kind": "sh", "text": "echo 12.345 seconds; exit 2  # exit 2", "exit": 2, **place},
        {"kind": "output", "text": "12... seconds\n", **place},
    ]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=tmp_path, input=json.dumps(good), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
