"""Spec strings: grammar, round trip, building, and full names that tell configurations apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import UsageError
from evalkit.spec import Spec, build, full_name, parse_spec, split_specs

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
# Any text, but not what the grammar itself is made of, and nothing that strip() removes from the ends.
TEXTS = st.text(st.characters(exclude_characters="@"), max_size=12).filter(lambda t: t == t.strip())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("identity", Spec("identity")),
        ("opus:6", Spec("opus", "6")),
        ("opus:", Spec("opus", "")),
        (" opus:6 ", Spec("opus", "6")),
        ("opus:6@complexity=5@vbr=on", Spec("opus", "6", (("complexity", "5"), ("vbr", "on")))),
        ("esc50@subset=esc10", Spec("esc50", None, (("subset", "esc10"),))),
        ("files:a:b/c d@kbps=1.5", Spec("files", "a:b/c d", (("kbps", "1.5"),))),
        ("files:me@home/x", Spec("files", "me@home/x")),  # not an option: no key=value follows
        ("files:x@a=b=c", Spec("files", "x", (("a", "b=c"),))),
        ("files:x@a=", Spec("files", "x", (("a", ""),))),
        ("mine.py:MyCodec", Spec("mine.py:MyCodec")),
        ("../lib/mine.py:MyCodec:6@q=1", Spec("../lib/mine.py:MyCodec", "6", (("q", "1"),))),
        ("mine.py:MyCodec:a:b", Spec("mine.py:MyCodec", "a:b")),
        ("mine.py", Spec("mine.py")),
        ("mine.py:MyCodec:two\nlines", Spec("mine.py:MyCodec", "two\nlines")),
    ],
)
def test_grammar(text: str, expected: Spec) -> None:
    assert parse_spec(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no name"),
        ("  ", "no name"),
        (":6", "no name"),
        ("@a=1", "no name"),
        ("opus:6@q=1@q=2", "given twice"),
    ],
)
def test_bad_specs_are_usage_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_spec(text)


@given(NAMES, st.none() | TEXTS, st.dictionaries(KEYS, TEXTS, max_size=3))
def test_what_is_written_is_read_back(name: str, argument: str | None, options: dict[str, str]) -> None:
    spec = Spec(name, argument, tuple(options.items()))
    assert parse_spec(str(spec)) == spec


@given(st.text(max_size=30) | st.text(st.sampled_from("ab.py:@=\\, \n6"), max_size=20))
def test_any_text_parses_to_itself_or_is_a_usage_error(text: str) -> None:
    try:
        spec = parse_spec(text)
    except UsageError:
        return
    assert str(spec) == text.strip()
    assert parse_spec(str(spec)) == spec


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\\"), min_size=1, max_size=8).filter(lambda t: t == t.strip()),
        max_size=5,
    )
)
def test_lists_split_where_commas_are_not_escaped(parts: list[str]) -> None:
    assert split_specs(",".join(p.replace(",", "\\,") for p in parts)) == parts


def test_lists_ignore_empty_parts_and_space() -> None:
    assert split_specs(" opus:6 ,, mdct:6 , ") == ["opus:6", "mdct:6"]


class Codec:
    def __init__(
        self, kbps: float, quality: int = 3, fast: bool = False, mode: str = "audio", top: int | None = None
    ) -> None:
        self.given = (kbps, quality, fast, mode, top)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("c:6", (6.0, 3, False, "audio", None)),
        ("c@kbps=1e1", (10.0, 3, False, "audio", None)),
        ("c:6@quality=-2@fast=yes@mode=7@top=5", (6.0, -2, True, "7", 5)),
        ("c:6@fast=FALSE", (6.0, 3, False, "audio", None)),
        ("c:6@fast=1", (6.0, 3, True, "audio", None)),
    ],
)
def test_texts_become_the_annotated_types(text: str, expected: tuple[Any, ...]) -> None:
    made = build(Codec, parse_spec(text)).given
    assert made == expected
    assert [type(v) for v in made] == [type(v) for v in expected]


def test_types_come_from_defaults_where_nothing_is_annotated() -> None:
    def bare(a, b=1, c=0.5, d=True, e="x", f=None):  # type: ignore[no-untyped-def]
        return a, b, c, d, e, f

    assert build(bare, parse_spec("bare:9@b=2@c=2@d=no@e=3@f=4")) == ("9", 2, 2.0, False, "3", "4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c", "c needs kbps: write c:KBPS"),
        ("c:six", "kbps='six' is not a float"),
        ("c:6@quality=2.5", "quality='2.5' is not a int"),
        ("c:6@top=none", "top='none' is not a int"),
        ("c:6@fast=maybe", "fast='maybe' is not a bool"),
        ("c:6@quick=1", r"has no option 'quick' \(known: kbps, quality, fast, mode, top\)"),
        ("c:6@kbps=7", "'kbps' is given twice"),
    ],
)
def test_building_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(Codec, parse_spec(text))


def test_no_parameters_means_no_argument_and_no_options() -> None:
    class Plain:
        pass

    assert isinstance(build(Plain, parse_spec("plain")), Plain)
    with pytest.raises(UsageError, match="plain takes no argument"):
        build(Plain, parse_spec("plain:6"))
    with pytest.raises(UsageError, match="known: none"):
        build(Plain, parse_spec("plain@a=1"))


def test_an_error_of_the_factory_itself_is_not_hidden() -> None:
    def broken() -> None:
        raise TypeError("from inside")

    with pytest.raises(TypeError, match="from inside"):
        build(broken, parse_spec("broken"))


# -- full names -------------------------------------------------------------------------------------------------------


@dataclass
class Resolves:
    kbps: float
    frame_ms: float = 20.0
    rate: int | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        self.rate = self.rate or 48_000


class Hides:
    """Keeps its parameters under other names, as much research code does."""

    def __init__(self, kbps: float, quality: int = 3) -> None:
        self._kbps = kbps


class Loads:
    """Keeps something else under a parameter's name."""

    def __init__(self, model: str = "small.pt", scale: float = 1.0) -> None:
        self.model = object()


def _full(factory: Any, text: str) -> str:
    spec = parse_spec(text)
    return full_name(spec.name, build(factory, spec), factory, spec)


@pytest.mark.parametrize(
    ("factory", "text", "expected"),
    [
        (Resolves, "r:6", "r:6@frame_ms=20@rate=48000"),
        (Resolves, "r:6.0@rate=8000", "r:6@frame_ms=20@rate=8000"),
        (Resolves, "r@kbps=1.5@note=x", "r:1.5@frame_ms=20@rate=48000@note=x"),
        (Hides, "h:6", "h:6@quality=3"),
        (Hides, "h:7.0@quality=4", "h:7@quality=4"),
        (Hides, "h@kbps=7", "h:7@quality=3"),
        (Loads, "l", "l:small.pt@scale=1"),
        (Loads, "l:big.pt@scale=0.5", "l:big.pt@scale=0.5"),
    ],
)
def test_full_names_write_out_every_default(factory: Any, text: str, expected: str) -> None:
    assert _full(factory, text) == expected
    assert _full(factory, expected) == expected


def test_a_first_parameter_that_is_none_is_left_out() -> None:
    def make(path: str | None = None, n: int = 2) -> object:
        return object()

    assert _full(make, "make") == "make@n=2"
    assert _full(make, "make:x") == "make:x@n=2"


@given(st.floats(0.5, 500), st.floats(0.5, 500))
def test_configurations_that_differ_have_names_that_differ(a: float, b: float) -> None:
    """Results are kept and merged under the full name, so two rates must never share one."""
    for factory in (Resolves, Hides):
        assert (_full(factory, f"x:{a!r}") == _full(factory, f"x:{b!r}")) == (a == b)


def test_every_shipped_system_has_a_full_name_that_builds_it_again(tmp_path: Path) -> None:
    from evalkit.systems.load import load_system

    for text in (
        "identity",
        "silence",
        "noise",
        "pcm:8",
        "mulaw",
        "resample:16000",
        "mdct:6",
        "mdct:1.2345678",
        "opus:6",
        "mp3:8",
        "opus:6@vbr=on@frame_ms=40",
    ):
        name = load_system(text).name
        assert load_system(name).name == name
        assert parse_spec(name).name == parse_spec(text).name
    assert load_system("mdct:1.2345678").name != load_system("mdct:1.2345679").name
