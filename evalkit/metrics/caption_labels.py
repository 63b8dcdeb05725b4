"""Classification by caption: which of ESC-50's 50 classes a caption names, by a stated rule, or none.

The rule: a caption is lower-cased and cut into words; each word loses a plural, third-person or possessive ending, -ing
or -ed, a final e and a doubled last consonant (`stem`). Phrases of `CLASSES` are looked for as whole words, from the
left, the longest first; the words of a phrase that was found are used up ("alarm clock" is no "clock"). Exactly one
class found is the answer. None or several is unparsable: never a guess. All 50 classes are candidates, whichever a data
set holds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from evalkit.errors import EvalkitError, NotApplicable
from evalkit.registry import metric

CAPTION_LABELS = ("label_accuracy", "unparsable")

RULE = 1
"""Raised with every change of the rule or of `CLASSES`."""

CLASSES: dict[str, tuple[str, ...]] = {
    "dog": ("dog", "puppy", "bark", "woof"),
    "rooster": ("rooster", "cockerel", "rooster crow", "rooster is crowing", "rooster crows", "crowing rooster",
                "cockerel crows", "cockerel is crowing", "cock crows", "cock is crowing"),
    "pig": ("pig", "piglet", "hog", "swine", "oink"),
    "cow": ("cow", "cattle", "moo"),
    "frog": ("frog", "toad", "ribbit"),
    "cat": ("cat", "kitten", "meow", "purr"),
    "hen": ("hen", "chicken", "cluck"),
    "insects": ("insect", "bee", "mosquito", "housefly", "fly buzzes", "fly is buzzing", "flies are buzzing",
                "buzzing fly", "insects chirp", "insects are chirping"),
    "sheep": ("sheep", "lamb", "bleat"),
    "crow": ("crow", "raven", "caw"),
    "rain": ("rain", "rainfall", "raindrop", "rain pours", "rain is pouring", "pouring rain", "rain drops"),
    "sea_waves": ("sea", "ocean", "sea waves", "ocean waves", "wave", "surf"),
    "crackling_fire": ("fire", "campfire", "fireplace", "bonfire", "crackling fire", "crackle"),
    "crickets": ("cricket", "cricket chirps", "crickets are chirping", "chirping crickets"),
    "chirping_birds": ("bird", "songbird", "tweet", "birdsong"),
    "water_drops": ("water drop", "drops of water", "drips", "droplet"),
    "wind": ("wind", "windy"),
    "pouring_water": ("pouring water", "water pours", "water is pouring", "water is being poured", "water is poured",
                      "pours"),
    "toilet_flush": ("toilet", "flush"),
    "thunderstorm": ("thunderstorm", "thunder"),
    "crying_baby": ("crying baby", "baby cries", "baby is crying", "infant cries", "infant is crying", "cry"),
    "sneezing": ("sneeze",),
    "clapping": ("clap", "applause", "applaud"),
    "breathing": ("breath", "breathe"),
    "coughing": ("cough",),
    "footsteps": ("footstep", "step", "walk"),
    "laughing": ("laugh", "laughter", "giggle", "chuckle"),
    "brushing_teeth": ("brushing teeth", "tooth", "teeth", "toothbrush"),
    "snoring": ("snore",),
    "drinking_sipping": ("drinks", "sips", "slurps", "gulps"),
    "door_wood_knock": ("knock", "door wood knock", "door knock"),
    "mouse_click": ("mouse click", "mouse", "clicking mouse", "computer mouse"),
    "keyboard_typing": ("keyboard", "keyboard typing", "typing on", "is typing", "are typing", "someone types",
                        "person types", "man types", "woman types", "typewriter"),
    "door_wood_creaks": ("creak", "door wood creaks", "door creaks"),
    "can_opening": ("can opening", "opening a can", "opens a can", "drink can", "soda can", "beer can", "tin can",
                    "can of soda", "can of beer", "can is opened", "can is being opened", "drink can is opened",
                    "pull tab"),
    "washing_machine": ("washing machine", "washer"),
    "vacuum_cleaner": ("vacuum cleaner", "vacuum", "hoover"),
    "clock_alarm": ("clock alarm", "alarm clock", "alarm"),
    "clock_tick": ("clock tick", "clock", "tick", "clock is ticking"),
    "glass_breaking": ("glass breaking", "glass is breaking", "breaking glass", "broken glass", "shatter",
                       "glass shatters", "glass is shattering", "glass smashes", "smashing glass"),
    "helicopter": ("helicopter", "chopper"),
    "chainsaw": ("chainsaw", "chain saw"),
    "siren": ("siren", "ambulance"),
    "car_horn": ("car horn", "horn", "honk"),
    "engine": ("engine", "motor"),
    "train": ("train", "locomotive", "train horn", "train whistle"),
    "church_bells": ("church bell", "bell"),
    "airplane": ("airplane", "aeroplane", "plane", "aircraft", "jet"),
    "fireworks": ("firework", "fireworks"),
    "hand_saw": ("hand saw", "handsaw", "saw", "sawing wood"),
}  # fmt: skip
"""Words and phrases of each class. Words that several classes share alone (chirp, buzz, click, beep, water, door) are
in none."""

_WORD = re.compile(r"[a-z]+(?:['’]s)?")


def answer(caption: str) -> tuple[str, ...]:
    """The classes that a caption names, in the order of `CLASSES`; the rule's answer where it is exactly one.

    >>> answer("Two dogs barked loudly."), answer("an alarm clock rings"), answer("a dog and a cat"), answer("noise")
    (('dog',), ('clock_alarm',), ('dog', 'cat'), ())
    """
    words = [stem(w) for w in _WORD.findall(caption.lower())]
    phrases = _phrases()
    longest = max(map(len, phrases))
    named: set[str] = set()
    at = 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            found = phrases.get(tuple(words[at : at + length]))
            if found:
                named.add(found)
                at += length
                break
        else:
            at += 1
    return tuple(c for c in CLASSES if c in named)


def stem(word: str) -> str:
    """A lower-case English word without its simple ending; no dictionary, so that some stems are no words.

    >>> [stem(w) for w in ("dogs", "barking", "cries", "clapped", "purring", "sneeze", "glass", "dog's")]
    ['dog', 'bark', 'cry', 'clap', 'pur', 'sneez', 'glass', 'dog']
    """
    word = re.sub(r"['’]s$", "", word)
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes", "zzes")):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    elif len(word) > 4 and word.endswith("ied"):
        word = word[:-3] + "y"
    elif len(word) > 5 and word.endswith("ing"):
        word = word[:-3]
    elif len(word) > 4 and word.endswith("ed"):
        word = word[:-2]
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] in "bdgkmnprt" else word


@functools.cache
def _phrases() -> dict[tuple[str, ...], str]:
    """Class by stemmed phrase, class names included; a phrase of two classes is a fault of the table."""
    out: dict[tuple[str, ...], str] = {}
    for name, listed in CLASSES.items():
        for phrase in (name.replace("_", " "), *listed):
            key = tuple(stem(w) for w in _WORD.findall(phrase))
            if out.setdefault(key, name) != name:
                raise EvalkitError(f"caption_labels: {phrase!r} is listed for {out[key]} and for {name}")
    return out


def _each(candidates: Sequence[str], labels: Sequence[Mapping[str, Any]]) -> list[tuple[str, tuple[str, ...]] | None]:
    """Class and answer of each clip; None where the clip's class is none of the 50."""
    return [
        (about["class"], answer(text)) if about.get("class") in CLASSES else None
        for text, about in zip(candidates, labels, strict=True)
    ]


def _mapping() -> dict[str, Any]:
    """What the answer depends on, for the metrics' identity."""
    return {"rule": RULE, "classes": {name: list(listed) for name, listed in CLASSES.items()}}


def _no_class() -> NotApplicable:
    return NotApplicable("the clip has no class of ESC-50's 50, that captions are matched with")


@metric(
    "label_accuracy",
    unit="",
    direction="higher",
    group="labels",
    range=(0, 1),
    extra_identity=_mapping,
)
def label_accuracy(candidates: list[str], labels: list[Mapping[str, Any]]) -> list[float | NotApplicable]:
    """Share of clips whose caption names their ESC-50 class, and no other; an unparsable caption counts as wrong.

    Per clip 1 or 0. Chance is 1/50 for a guesser; a constant caption scores its class's share. See `answer`.
    """
    return [_no_class() if e is None else float(e[1] == (e[0],)) for e in _each(candidates, labels)]


@metric(
    "unparsable",
    unit="",
    direction="lower",
    group="labels",
    range=(0, 1),
    extra_identity=_mapping,
)
def unparsable(candidates: list[str], labels: list[Mapping[str, Any]]) -> list[float | NotApplicable]:
    """Share of clips whose caption names no ESC-50 class, or several: the rule of `label_accuracy` has no answer.

    Per clip 1 or 0. Accuracy among the parsable captions is label_accuracy / (1 - unparsable).
    """
    return [_no_class() if e is None else float(len(e[1]) != 1) for e in _each(candidates, labels)]
