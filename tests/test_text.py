"""Strangers' text in tables is inert, and numbers show the digits that their intervals justify."""

from __future__ import annotations

import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.text import code, decimals_for, escape_markdown, number, printable, with_interval

HOSTILE = st.text(max_size=40) | st.text(
    st.sampled_from("a|\\<>&`*_[]()#~!\n\r\t\x00\x1b\x7f\x9b\u2028\u202e\udce9 \u00a0")
)


@given(HOSTILE)
def test_escaped_text_is_one_inert_line(text: str) -> None:
    out = escape_markdown(text)
    assert out.isprintable()
    out.encode("utf-8")
    assert "<" not in out and ">" not in out
    assert not re.search(r"&(?!amp;|lt;|gt;)", out)
    # Every character that markdown could take for its own is behind an odd number of backslashes.
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*_\[\]#~]", out)


@given(HOSTILE)
def test_code_breaks_neither_its_span_nor_a_table(text: str) -> None:
    out = code(text)
    assert out.isprintable()
    out.encode("utf-8")
    assert not re.search(r"(?<!\\)\|", out)
    if out.startswith("`") and "`" not in text:
        assert out.count("`") == 2 and out.endswith("`")
    else:
        assert not re.search(r"(?<!\\)(?:\\\\)*`", out)


@given(HOSTILE)
def test_printable_is_printable_and_keeps_what_was(text: str) -> None:
    out = printable(text)
    assert out.isprintable()
    out.encode("utf-8")
    assert printable(out) == out
    if text.isprintable():
        assert out == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain name.wav", "plain name.wav"),
        ("Grüße 音.wav", "Grüße 音.wav"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines", "two\\nlines"),
        ("caf\udce9.wav", "caf\\xe9.wav"),  # a file name that is not UTF-8, as os.fsdecode gives it
        ("right\u202eto left", "right\\u202eto left"),
    ],
)
def test_printable_examples(text: str, expected: str) -> None:
    assert printable(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<script>", "&lt;script&gt;"),
        ("a&b", "a&amp;b"),
        ("a\\", "a\\\\"),
        ("x | y", "x \\| y"),
        ("  a   b ", "a b"),
    ],
)
def test_escape_markdown_examples(text: str, expected: str) -> None:
    assert escape_markdown(text) == expected


def test_code_examples() -> None:
    assert code("opus:6") == "`opus:6`"
    assert code("a|b") == "`a\\|b`"
    assert code("a`b|c") == "a\\`b\\|c"
    assert code("<b>") == "`<b>`"


@pytest.mark.parametrize(
    ("value", "decimals", "expected"),
    [
        (0.0, None, "0"),
        (0.0, 2, "0"),
        (-0.0, 3, "0"),
        (12.3456, 2, "12.35"),
        (-0.001, 2, "-0.001"),
        (1234.5, 0, "1234"),
        (0.00012346, None, "0.0001235"),
        (float("inf"), None, "inf"),
        (1e-12, 3, "1e-12"),
        (99.999, 1, "100.0"),
    ],
)
def test_number_examples(value: float, decimals: int | None, expected: str) -> None:
    assert number(value, decimals) == expected


@given(st.floats(allow_nan=False, allow_infinity=False), st.none() | st.integers(0, 6))
def test_a_number_is_never_shown_as_zero_unless_it_is(value: float, decimals: int | None) -> None:
    shown = float(number(value, decimals))
    assert (shown == 0) == (value == 0)
    assert shown == 0 or (shown < 0) == (value < 0)
    if decimals is None:
        assert shown == pytest.approx(value, rel=6e-4, abs=5e-324)
    elif abs(value) >= 10**-decimals and abs(value) < 1e12:
        assert abs(shown - value) <= 0.5000001 * 10**-decimals


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_an_interval_shows_two_digits_of_its_width(value: float, below: float, above: float) -> None:
    low, high = value - below, value + above
    d = decimals_for(value, low, high)
    assert d is None or 0 <= d <= 6
    text = with_interval(value, low, high)
    found = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", text)
    assert found
    shown = [float(g) for g in found.groups()]
    if d is not None:
        width = high - low
        assert all(
            abs(a - b) <= max(0.5 * 10**-d, 0.06 * abs(b)) + 1e-9
            for a, b in zip(shown, (value, low, high), strict=True)
        )
        assert 10**-d <= 0.1 * width * 1.0000001 or d == 0
    assert shown[1] <= shown[0] <= shown[2]


def test_without_an_interval_there_is_only_the_value() -> None:
    assert with_interval(12.3456, None, None) == "12.35"
    assert with_interval(12.3456, 12.0, None) == "12.35"
    assert with_interval(3.0, 3.0, 3.0) == "3 [3, 3]"
    assert decimals_for(1.0, 2.0, 1.0) is None
    assert math.isfinite(float(number(1.0, decimals_for(1.0, 0.5, 1.5))))


# -- progress and terminal show the same inert text -------------------------------------------------------------------


def test_progress_lines_are_plain_and_few() -> None:
    from evalkit.progress import NOTES_SHOWN, Lines

    stream = io.StringIO()
    lines = Lines(stream)
    lines.start(1_000, 200)
    for i in range(NOTES_SHOWN + 10):
        lines.note(f"\x1b[31mbad\nname {i}")
    for i in range(800):
        lines.step(f"clip\x07 {i}")
    lines.close()
    shown = stream.getvalue().splitlines()
    assert shown[0] == "1,000 results to have, 200 there already"
    assert shown[1] == "note: \\x1b[31mbad\\nname 0"
    assert sum(s.startswith("note: ") for s in shown) == NOTES_SHOWN + 1
    assert shown[-1].startswith("1,000/1,000 clip\\x07 799 (")
    assert len(shown) <= NOTES_SHOWN + 4


def test_progress_lines_come_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit import progress

    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stream = io.StringIO()
    lines = progress.Lines(stream)
    lines.start(100, 0)
    for _ in range(30):
        now += 1.0
        lines.step("x")
    assert [s.split()[0] for s in stream.getvalue().splitlines()[1:]] == ["10/100", "20/100", "30/100"]


def test_progress_is_a_bar_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit import progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    assert isinstance(progress.make(), progress.Lines)
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    bar = progress.make()
    assert isinstance(bar, progress.Bar)
    bar.start(3, 1)
    bar.note("[bold]x\x1b]0;title\x07")
    bar.step("[red]y")
    bar.close()
    shown = terminal.getvalue()
    assert "[bold]x\\x1b]0;title\\x07" in shown
    assert "\x1b]0;" not in shown


def test_listings_show_text_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from evalkit.terminal import show_columns

    long = "word " * 60
    show_columns("a\x1b title", ("name", "what"), [("[red]x[/red]", "a\x1b[2Jb\nc"), ("[/nonsense]", long)])
    shown = capsys.readouterr().out
    title, head, first, *rest = shown.splitlines()
    assert (title, head.split()) == ("a\\x1b title", ["name", "what"])
    assert first.split() == ["[red]x[/red]", "a\\x1b[2Jb\\nc"]
    assert " ".join(" ".join(rest).split()) == f"[/nonsense] {long}".strip()
    column = head.index("what")
    assert all(line[:column].strip() in ("", "[/nonsense]") and line[column:].startswith("word") for line in rest)
    assert all(len(line) <= 160 for line in shown.splitlines())
    show_columns("", ("name", "what"), [])
    assert capsys.readouterr().out.split() == ["name", "what"]
