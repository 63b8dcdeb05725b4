"""Captions and questions of `scenes`, from the event list alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from evalkit.datasets.scene_sounds import Event

T = TypeVar("T")

LOUD_DB, FAINT_DB = -21.0, -31.0
"""Events at or above the first are called loud in captions, at or below the second faint."""

NUMBERS = ("zero", "one", "two", "three", "four", "five")
TIMES = ("", "once", "twice", "three times", "four times", "five times")


@dataclass(frozen=True)
class Words:
    """How a class is spoken of.

    Attributes:
        nouns: (singular, plural) with the article's place first: "a" takes a/an, "the" and "" are kept as they are.
        clauses: ``{loud}`` and ``{pitch}`` take adverbs, ``{times}`` "twice", ``{n}`` and ``{s}`` "two" and "s".
        name: singular noun of questions, after "the".
    """

    name: str
    nouns: tuple[tuple[str, str, str], ...]
    clauses: tuple[str, ...]
    counted: bool = False


WORDS: dict[str, Words] = {
    "tone": Words("tone", (("a", "tone", ""), ("a", "steady tone", ""), ("a", "held note", "")),
                  ("a tone sounds{loud}{pitch}", "a steady note is held{loud}{pitch}")),
    "sweep": Words("sweep", (("a", "sweep", ""), ("a", "sweeping tone", ""), ("a", "gliding tone", "")),
                   ("a gliding tone plays{loud}{pitch}", "a tone sweeps{loud}{pitch}")),
    "bell": Words("bell", (("a", "bell stroke", "bell strokes"), ("a", "ring of a bell", "rings of a bell"),
                           ("a", "bell chime", "bell chimes")),
                  ("a bell rings{loud} {times}{pitch}", "a bell is struck{loud} {times}{pitch}"), True),
    "siren": Words("siren", (("a", "siren", ""), ("a", "wailing siren", ""), ("the", "wail of a siren", "")),
                   ("a siren wails{loud}{pitch}", "a siren sounds{loud}{pitch}")),
    "engine": Words("engine", (("an", "engine", ""), ("a", "running engine", ""), ("the", "hum of an engine", "")),
                    ("an engine runs{loud}{pitch}", "an engine hums{loud}{pitch}")),
    "rain": Words("rain", (("", "rain", ""), ("", "falling rain", ""), ("the", "patter of rain", "")),
                  ("rain falls{loud}{pitch}", "rain patters down{loud}{pitch}")),
    "wind": Words("wind", (("", "wind", ""), ("", "blowing wind", ""), ("a", "gust of wind", "")),
                  ("the wind blows{loud}{pitch}", "wind gusts{loud}{pitch}")),
    "footsteps": Words("walking", (("a", "footstep", "footsteps"),
                                      ("a", "step of a walking person", "steps of a walking person")),
                       ("someone takes {n} step{s}{loud}", "a person walks {n} step{s}{loud}"), True),
    "knocks": Words("knocking", (("a", "knock on wood", "knocks on wood"), ("a", "knock on a door", "knocks on a door"),
                                 ("a", "door knock", "door knocks")),
                    ("someone knocks{loud} {times}{pitch}", "a person knocks on a door{loud} {times}{pitch}"), True),
    "bird": Words("bird", (("a", "bird chirp", "bird chirps"), ("a", "chirp of a bird", "chirps of a bird")),
                  ("a bird chirps{loud} {times}{pitch}", "a small bird calls{loud} {times}{pitch}"), True),
    "dog": Words("dog", (("a", "dog bark", "dog barks"), ("a", "bark of a dog", "barks of a dog")),
                 ("a dog barks{loud} {times}{pitch}", "a barking dog is heard{loud} {times}{pitch}"), True),
    "clock": Words("clock", (("a", "ticking clock", ""), ("the", "ticking of a clock", "")),
                   ("a clock ticks{loud}{pitch}", "a clock keeps ticking{loud}{pitch}")),
    "alarm": Words("alarm", (("an", "alarm beep", "alarm beeps"), ("a", "beep of an alarm", "beeps of an alarm")),
                   ("an alarm beeps{loud} {times}{pitch}",
                    "an electronic alarm goes off{loud} with {n} beep{s}{pitch}"), True),
    "thunder": Words("thunder", (("", "thunder", ""), ("a", "roll of thunder", ""), ("a", "rumble of thunder", "")),
                     ("thunder rumbles{loud}{pitch}", "thunder rolls{loud}{pitch}")),
    "drips": Words("dripping", (("a", "water drip", "water drips"), ("a", "drop of water", "drops of water")),
                   ("water drips{loud} {times}{pitch}", "a tap drips{loud} {times}{pitch}"), True),
    "voice": Words("voice", (("a", "voice holding a vowel", ""), ("a", "sung vowel", ""), ("a", "human voice", "")),
                   ("a voice sings a vowel{loud}{pitch}", "a person holds a vowel{loud}{pitch}")),
}  # fmt: skip

PITCH_ADJECTIVES = {"high": ("high", "high-pitched"), "low": ("low", "low-pitched")}
FAINT_ADJECTIVES = ("faint", "quiet")


def captions(events: Sequence[Event], rng: np.random.Generator) -> list[str]:
    """Five different English captions of the events (in order of onset), one per template, in random order.

    All five name every event, its count and the order; loudness words appear in some.

    >>> e = [Event("dog", 0.3, 1.2, "low", 200.0, -25.0, 3, 0.5), Event("rain", 2.0, 2.0, None, None, -25.0)]
    >>> captions(e, np.random.default_rng(0))[0]
    'A dog barks three times at a low pitch, then rain falls.'
    """
    made = _single(events[0], rng) if len(events) == 1 else _several(events, rng)
    sentences = [text[0].upper() + text[1:] + "." for text in made]
    return [sentences[i] for i in rng.permutation(len(sentences))]


def _single(event: Event, rng: np.random.Generator) -> list[str]:
    def noun() -> str:
        return _noun(event, rng)

    first = noun()
    return [
        first,
        _clause(event, rng),
        f"there {_be(event)} {noun()} and nothing else",
        f"only {noun()} can be heard",
        f"against a quiet background, {_clause(event, rng)}",
    ]


def _several(events: Sequence[Event], rng: np.random.Generator) -> list[str]:
    def nouns() -> list[str]:
        return [_noun(e, rng) for e in events]

    def clauses() -> list[str]:
        return [_clause(e, rng) for e in events]

    n = nouns()
    ending = {2: "", 3: " and then {}", 4: ", then {} and finally {}"}[len(n)].format(*n[2:])
    followed = f"{n[0]} followed by {n[1]}{ending}"
    c = clauses()
    told = ", then ".join(c[:-1]) + (", then " if len(c) == 2 else ", and finally ") + c[-1]
    n = nouns()
    last = "then" if len(n) == 2 else "at the end"
    first = f"first there {_be(events[0])} {', then '.join(n[:-1])}, and {last} {n[-1]}"
    n = nouns()
    middle = f", continues with {' and then '.join(n[1:-1])}" if len(n) > 2 else ""
    begins = f"the recording begins with {n[0]}{middle} and ends with {n[-1]}"
    n = nouns()
    before = ", ".join(n[:-2]) + (" and then " if len(n) > 2 else "") + n[-2]
    after = f"after {before}, {_clause(events[-1], rng)}"
    return [followed, told, first, begins, after]


def _noun(event: Event, rng: np.random.Generator) -> str:
    article, singular, plural = _pick(WORDS[event.sound].nouns, rng)
    adjectives = []
    if rng.random() < 0.5 and event.loudness_db >= LOUD_DB:
        adjectives.append("loud")
    if rng.random() < 0.5 and event.loudness_db <= FAINT_DB:
        adjectives.append(_pick(FAINT_ADJECTIVES, rng))
    if event.pitch:
        adjectives.append(_pick(PITCH_ADJECTIVES[event.pitch], rng))
    if event.count > 1:
        return " ".join([NUMBERS[event.count], *adjectives, plural])
    words = [*adjectives, singular]
    if WORDS[event.sound].counted:
        return " ".join([_pick(("one", "a single"), rng), *words])
    if article in ("a", "an"):
        article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words] if article else words)


def _clause(event: Event, rng: np.random.Generator) -> str:
    loud = ""
    if rng.random() < 0.5 and event.loudness_db >= LOUD_DB:
        loud = " loudly"
    if rng.random() < 0.5 and event.loudness_db <= FAINT_DB:
        loud = _pick((" faintly", " quietly"), rng)
    return _pick(WORDS[event.sound].clauses, rng).format(
        loud=loud,
        pitch=f" at a {event.pitch} pitch" if event.pitch else "",
        times=TIMES[event.count],
        n=NUMBERS[event.count],
        s="" if event.count == 1 else "s",
    )


def _be(event: Event) -> str:
    return "is" if event.count == 1 else "are"


def _pick(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def questions(events: Sequence[Event], rng: np.random.Generator) -> list[dict[str, str]]:
    """Questions with one right answer each: dicts of ``question``, ``answer`` and ``kind``.

    Kinds and answers: ``which`` (a class name), ``count`` ("1" to "5"; only counted classes that occur once),
    ``order`` ("first" or "second", of two different classes), ``higher-lower`` ("high" or "low" of one event, or
    "higher" or "lower" of the second of two events of one class). Which event is asked about is random, so that the
    question alone does not tell the answer.
    """
    asked = [_which(events, rng)]
    once = [e for e in events if sum(o.sound == e.sound for o in events) == 1]
    for event in once:
        if WORDS[event.sound].counted:
            plural = _pick(WORDS[event.sound].nouns, rng)[2]
            form = _pick(("How many {} are there?", "How many {} are heard?", "How many {} can you count?"), rng)
            asked.append(_question(form.format(plural), str(event.count), "count"))
    if len(once) > 1:
        i, j = (int(k) for k in rng.choice(len(once), 2, replace=False))
        names = WORDS[once[i].sound].name, WORDS[once[j].sound].name
        form = _pick((
            "Of the {} and the {}, is the {} first or second?",
            "Comparing the {} with the {}, does the {} come first or second?",
        ), rng)  # fmt: skip
        mentioned = names if rng.random() < 0.5 else names[::-1]
        asked.append(_question(form.format(*mentioned, names[0]), "first" if i < j else "second", "order"))
    for event in once:
        if event.pitch:
            form = _pick(("Is the pitch of the {} high or low?", "Is the {} high or low in pitch?"), rng)
            asked.append(_question(form.format(WORDS[event.sound].name), event.pitch, "higher-lower"))
    for i, a in enumerate(events):
        for b in events[i + 1 :]:
            if a.sound == b.sound and a.pitch and a.pitch != b.pitch:
                form = _pick((
                    "The {} comes back later: is it higher or lower in pitch the second time?",
                    "The {} is heard on two occasions: is the second higher or lower in pitch than the first?",
                ), rng)  # fmt: skip
                answer = "higher" if b.pitch == "high" else "lower"
                asked.append(_question(form.format(WORDS[a.sound].name), answer, "higher-lower"))
    return asked


def _which(events: Sequence[Event], rng: np.random.Generator) -> dict[str, str]:
    if len(events) == 1:
        return _question(_pick(("Which sound is heard?", "What makes the sound?"), rng), events[0].sound, "which")
    i = int(rng.integers(len(events)))
    places = ["first", "second", "third", "fourth"]
    place = "last" if i == len(events) - 1 and rng.random() < 0.5 else places[i]
    form = _pick(("Which sound is heard {}?", "Which sound comes {}?"), rng)
    return _question(form.format(place), events[i].sound, "which")


def _question(question: str, answer: str, kind: str) -> dict[str, str]:
    return {"question": question, "answer": answer, "kind": kind}
