"""Words of a caption, as caption evaluation counts them.

The published scores of captioning (COCO, DCASE) are of text that went through the Stanford PTB tokenizer with
``-preserveLines -lowerCase`` and lost its punctuation (coco-caption's ``PTBTokenizer``, CoreNLP 3.4.1). `ptb_tokens`
does the same in Python. Its rules are our own, fitted to what that program answers; how far the two agree
is in docs/caption-measures.md, and tested where Java is there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

VERSION = "ptb-python 1"
"""Part of the identity of every measure that counts these words; raise it when any token changes."""

PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
"""coco-caption's list of tokens that are dropped. Lower-casing makes ``-lrb-`` of a bracket, which is not on the list
and stays; so do square brackets, ``!!``, ``&`` and the rest of what is not listed."""


def ptb_tokens(text: str) -> list[str]:
    """The words of a caption in lower case: PTB tokens without punctuation.

    Contractions and possessives are split (``do n't``, ``dog 's``), hyphenated words and ``and/or`` are not. A line
    break is a space. Characters that the tokenizer knows nothing of (emoji, control characters) are dropped. A token
    with a space in it (an HTML tag, ``1 1/2``) counts as its parts, as it does in the measures that read its output.

    Args:
        text: one caption, any length; may be empty.

    Returns:
        Words; empty if there are none.

    >>> print(*ptb_tokens("A man's dog doesn't bark, while high-pitched bells ring (twice)..."))
    a man 's dog does n't bark while high-pitched bells ring -lrb- twice -rrb-
    """
    return list(_cached(text))


# -- characters -------------------------------------------------------------------------------------------------------

# Code points by how the tokenizer takes them, found by giving it every character of the basic plane in several
# surroundings. Letters and digits go by Unicode's categories; these are the others that it knows, all else is dropped.
_MARKS = """2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7
615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e 951-955 962-963 981-983
9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03
c3e-c56 d3e-d44 d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd"""
_SYMBOLS = """a1-a9 ab-ac ae-b4 b6-b9 bb-bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60c 614 61b 61e-61f
66a-66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2013-2026 2030-2042 2044 2070 2074-207e 2080-208e 20a0 20a4 20ac
2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f 2153-215e
2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6"""

_HYPHENS = "\u00ad\u058a\u2010\u2011"
"""Soft and unbreakable hyphens: part of a word, and left out of it."""

_WINDOWS = {0x80: "€", 0x85: "…", 0x91: "‘", 0x92: "’", 0x93: "“", 0x94: "”", 0x96: "–", 0x97: "—"}


@functools.lru_cache(maxsize=1 << 16)
def _cached(text: str) -> tuple[str, ...]:
    return tuple(word for token in _tokens(text) if token not in PUNCTUATION for word in token.split())


def _points(ranges: str) -> Iterator[int]:
    for r in ranges.split():
        first, _, last = r.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


@functools.cache
def _replacements() -> dict[int, str]:
    """What `str.translate` makes of characters outside ASCII that are not letters: themselves, or a space."""
    known = {*_points(_MARKS), *_points(_SYMBOLS), *map(ord, _HYPHENS)}
    table = {c: " " for c in (*range(0x20), 0x7F)}
    for c in range(0x80, 0x10000):
        if c not in known and not (chr(c).isalpha() or chr(c).isdecimal()):
            table[c] = _WINDOWS.get(c, " ")
    return table


# -- rules ------------------------------------------------------------------------------------------------------------

# Lists found by giving the tokenizer every string of up to four letters, and the words of 80,000 captions, with a full
# stop behind them: what comes before a name, what may end a sentence (in lower case not the ones that are words), and
# what is short only before a number.
_TITLES = """adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft
gen gov govs hon insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof profs pvt
rep reps rev sen sens sfc sgt spc st ste supt supts vs wm"""
_ABBREVIATIONS = """al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec ed.d esq
est etc ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla
penn ph.d plc ppte ppty pte ptes pty ptys rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis
wisc wyo"""
_CAPITAL_ABBREVIATIONS = "ark az del ill la mass miss ore pa tex wash"
_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
_SENTENCE_STARTS = """a about according additionally after an as at but earlier he her here however if in it last many
more now once one other our she since so some such that the their then there these they this we what when while yet
you"""
"""A single letter before one of these, with a capital, is not an initial."""
_APOSTROPHE_WORDS = "ma'am ne'er e'er nor'easter c'est li'l nat'l cap'n ev'ry s'more s'mores somethin' dunkin'"
_TICKS = "'’`‘‛&"
_PAIRS = ("can-not", "gon-na", "got-ta", "lem-me", "gim-me", "wan-na")

_PLAIN = re.compile(r"(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna),? )[A-Za-z]+(?=,? )")
"""A word that no other rule could take further, most of a caption."""


def _any(words: str) -> str:
    return "|".join(re.escape(w).replace("'", "['’]") for w in sorted(words.split(), key=len, reverse=True))


def _capitalised(words: str) -> str:
    """Alternatives for each of the words with a capital or in capitals."""
    return "|".join(f"{word.upper()}|{word.capitalize()}" for word in words.split())


@functools.cache
def _rules() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Patterns, one a kind of token, each with characters of which the text must have one for it to be tried.

    The longest match wins, with all that it looks at; of equals the first. Where a pattern has a group, the group is
    the token, and what follows in the match only had to be there.
    """
    marks = "".join(map(chr, _points(_MARKS)))
    symbols = "".join(chr(c) for c in _points(_SYMBOLS) if re.match(r"\w", chr(c)))  # superscripts, fractions
    alnum = rf"(?:[^\W_{marks}{symbols}]|\u00ad)"
    letter = rf"(?:[^\W\d_{symbols}]|[{marks}\u00ad])"
    part = rf"{letter}(?:{letter}|\d)*"
    word = rf"{part}(?:[.!?]{part})*"
    apostrophe = "(?:['’]|&apos;)"
    tick = "(?:['’`‘‛]|&apos;)"
    suffix = "(?i:s|d|m|re|ve|ll)"
    thing = rf"(?:[dDoOlL]{tick}(?=[^\W\d_]{{2}}))?{alnum}+(?:[-_\u058a\u2010\u2011]{alnum}+)*"
    plain = "[A-Za-z0-9\u00ad]+(?:-[A-Za-z0-9\u00ad]+)*"
    name = "[A-Za-z][A-Za-z0-9_:.-]*"
    attribute = rf"{name}(?: *= *(?:\"[^\"]*\"|'[^']*'))?"
    in_url = r"[^ \"<>|(){}]"
    path = rf"{in_url}+[^ \"<>|(){{}}.!?,;:-]"
    pairs = "|".join("{}(?={})".format(*pair.split("-")) for pair in _PAIRS)
    rules = {
        # words in two
        rf"((?i:{pairs}))(?i:not|na|ta|me)": "",
        r"('[tT])(?i:is|was)": "'",
        rf"([A-Za-z]*[A-MO-Za-mo-z])(?i:n{tick}t)": _TICKS,
        rf"(?i:n{tick}t)": _TICKS,
        rf"({word}){apostrophe}{suffix}(?:[^A-Za-z]|$)": _TICKS,
        rf"({apostrophe}{suffix})(?:[^A-Za-z]|$)": _TICKS,
        rf"’{suffix}": "’",
        rf"([yY]{apostrophe})[A-Za-z]": _TICKS,
        # words with an apostrophe
        rf"(?i:{apostrophe}(?:em|cause|till?|n{apostrophe}?))": _TICKS,
        rf"{apostrophe}(?:\d\d|[2-9]0s)(?=[ .,;:!?)]|$)": _TICKS,
        rf"[dDjJlL]{apostrophe}|(?i:ol{apostrophe})(?![A-Za-z])|(?i:c'mon)": _TICKS,
        rf"(?i:{_any(_APOSTROPHE_WORDS)})": _TICKS,
        rf"[A-HJ-XZn]{tick}{letter}{letter}+": _TICKS,
        rf"{letter}+[aeiouyAEIOUY]{tick}[aeiouA-Z][A-Za-z]*": _TICKS,
        # abbreviations, and the words that they may be part of
        rf"((?:(?i:{_any(_ABBREVIATIONS)})|{_capitalised(_CAPITAL_ABBREVIATIONS)})\.)(?:.|$)": ".",
        word: "",
        thing: "",
        rf"{plain}(?:/{plain}){{1,2}}": "/",
        r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\u00ad]+))+": "-",
        r"[A-Z]+(?:(?:[&+]|&amp;)[A-Z]+)+": "&+",
        r"[CcFf]#|[Cc]\+\+|[A-Z]{1,2}\$": "#+$",
        r"[A-Za-z](?:\.[A-Za-z])*\.": ".",
        rf"([A-Za-z])\. +(?:{_capitalised(_SENTENCE_STARTS)})(?![A-Za-z])": ".",
        rf"(?i:{_any(_TITLES)})\.": ".",
        rf"((?i:{_any(_BEFORE_NUMBERS)})\.) *\d": ".",
        rf"({word}\.)[,;:\u3001]": ".",
        # numbers
        r"[+-]?(?:\d*(?:[.,:]\d+)+|\d+)": "",
        r"(?:\d{1,4}[- ])?\d{1,4}[/\u2044]\d{1,4}": "/\u2044",
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}": "-/",
        # the web
        rf"</?{name}(?: +{attribute})* */?>|<[!?][A-Za-z-][^>]*>": "<",
        r"&(?:#\d+|[A-Za-z]+);": "&",
        rf"https?://{path}": "/",
        rf"(?:{part}\.)+(?:com|net|org|edu)(?:/{path})?": ".",
        rf"www\.(?:[^ \"<>|(){{}}.!?,]+\.)+[a-zA-Z]{{2,4}}(?:/{path})?": ".",
        r"<?[A-Za-z0-9][^ \"<>|()]*@(?:[^ \"<>|(){}.]+\.)*[^ \"<>|(){}.]+>?": "@",
        rf"@[A-Za-z_][A-Za-z_0-9]*|#{letter}+": "@#",
        # marks
        r"[<>]?[:;=][-o']?[)(\]\[{|\\@DPpdO](?![A-Za-z0-9])|\(?[\^x=~<>-]_[\^x=~<>-]\)?": ":;=_",
        r"-{2,}|[!?]+|_+|#+|@+|\*+|\\\*|\.{3,}|''|<<|>>|-(?i:[lr][rsc]b)-": "",
        r"[`‘’‛‹›“”«»]{1,2}": "",
        r"(')[A-Za-z][^ ]": "'",
        r"\S": "",
    }
    return tuple((needs, re.compile(rule)) for rule, needs in rules.items())


_AS = {
    "(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-",
    "‘": "`", "‛": "`", "‹": "`", "’": "'", "›": "'", "“": "``", "«": "``", "”": "''", "»": "''", '"': "''",
    "…": "...", "–": "--", "—": "--", "―": "--", "---": "--", "----": "--", "\u00ad": "-",
    "€": "$", "¤": "$", "₠": "$", "£": "#", "¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": "",
    "\u058a": "", "\u2010": "", "\u2011": "",
}  # fmt: skip
"""What the tokenizer writes for a token. (Opening and closing quotes, both dropped later, are not told apart.)"""


def _tokens(text: str) -> Iterator[str]:
    """All tokens in lower case, but not the full stop that the program adds to an abbreviation before a capital."""
    if not (text.isascii() and text.isprintable()):
        text = re.sub("[\U00010000-\U0010ffff]", " ", text).translate(_replacements())
    rules = [rule for needs, rule in _rules() if not needs or any(c in text for c in needs)]
    at = len(text) - len(text.lstrip(" "))
    while at < len(text):
        if plain := _PLAIN.match(text, at):
            token = plain[0]
        else:
            best = max((m for rule in rules if (m := rule.match(text, at))), key=re.Match.end)  # the first of equals
            token = best[best.lastindex or 0]
        yield _written(token).lower()
        at += len(token)
        while at < len(text) and text[at] == " ":
            at += 1


def _written(token: str) -> str:
    if token.lower() in _AS:
        return _AS[token.lower()]
    if set(token) == {"."}:
        return "..."
    if len(token) == 2 and set(token) <= set("`‘’‛‹›“”«»"):
        return "".join(_AS.get(c, c) for c in token)
    if re.fullmatch("(?i:[’](?:s|d|m|re|ve|ll)|n[’‘‛]t)", token):
        token = token.replace("’", "'").replace("‘", "`").replace("‛", "`")
    for entity, character in (("&amp;", "&"), ("&apos;", "'"), ("(", "-LRB-"), (")", "-RRB-"), ("\u00ad", "")):
        token = token.replace(entity, character)
    return token
