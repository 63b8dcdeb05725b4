"""Captioning: what a system is asked for, and what is kept of its answers.

A system that hears has ``caption(clip) -> str``. One that does not (captions made elsewhere, and the rows that
calibrate a table: `evalkit.systems.captions`) has ``captions(items, seed) -> list``, one entry an item: a `Caption`,
several of them, or the exception that says why there is none. Several candidates of a clip are rounds: measures are
taken of each round over all clips, and a clip's value is the mean over the rounds. A round may leave out references: a
human caption is compared with the others, never with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalkit.audio import Clip
from evalkit.datasets import Item
from evalkit.errors import ContractError, NotApplicable

MAX_CHARACTERS = 20_000
"""A longer caption is a fault of its system."""


@dataclass(frozen=True)
class Caption:
    """One candidate. ``left_out``: indices of the clip's references that it may not be compared with."""

    text: str
    left_out: tuple[int, ...] = ()


def caption_records(
    system: Any,
    items: Sequence[Item],
    every: Sequence[Item],
    seed: int,
    read: Callable[[Item], Clip],
) -> list[dict[str, Any] | Exception]:
    """Captions of ``items`` as JSON values for the record, or the exception of each that has none.

    Args:
        every: all items of the task; what a system that captions from the whole set is given.
        read: gives the prepared clip of an item.
    """
    if callable(getattr(system, "captions", None)):
        try:
            made = list(system.captions(every, seed))
            if len(made) != len(every):
                raise ContractError(f"captions returned {len(made)} entries for {len(every)} items")
        except Exception as error:
            return [error] * len(items)
        by_id = {item.id: one for item, one in zip(every, made, strict=True)}
        return [_checked(by_id[item.id]) for item in items]
    return [_checked(_heard(system, item, read)) for item in items]


def _heard(system: Any, item: Item, read: Callable[[Item], Clip]) -> Any:
    try:
        if item.path is None and item.make is None:
            raise NotApplicable(item.error or "no audio of this clip here")
        return Caption(system.caption(read(item)))
    except Exception as error:
        return error


def _checked(made: Any) -> dict[str, Any] | Exception:
    if isinstance(made, Exception):
        return made
    rounds = [made] if isinstance(made, Caption) else made
    if not isinstance(rounds, Sequence) or not rounds or not all(isinstance(r, Caption) for r in rounds):
        return ContractError(f"expected a Caption or several, got {type(made).__name__}")
    for r in rounds:
        if not isinstance(r.text, str):
            return ContractError(f"the caption is {type(r.text).__name__}, expected str")
        if len(r.text) > MAX_CHARACTERS:
            return ContractError(f"the caption has {len(r.text):,} characters, at most {MAX_CHARACTERS:,} are taken")
    return {"rounds": [{"candidate": r.text, "left_out": list(r.left_out)} for r in rounds]}


# -- scoring ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """One candidate of each clip, as metrics of text take them (`evalkit.registry.TEXT_FIELDS`).

    ``at``: the indices of the clips that have a candidate; ``corpus`` is over all clips.
    """

    at: tuple[int, ...]
    candidates: list[str]
    references: list[list[str]]
    corpus: list[list[str]]
    labels: list[Mapping[str, Any]]


def rounds_of(predictions: Sequence[Mapping[str, Any]], labels: Sequence[Mapping[str, Any]]) -> list[Round]:
    """The rounds of a system's predictions.

    Clips without a candidate, or with fewer rounds than others, have no part. The references that a clip's candidate
    leaves out are left out of the corpus as well.
    """
    count = max((len(p.get("rounds", ())) for p in predictions), default=0)
    out = []
    for r in range(count):
        has = [len(p.get("rounds", ())) == count for p in predictions]
        corpus = []
        for prediction, about, there in zip(predictions, labels, has, strict=True):
            gone = set(prediction["rounds"][r]["left_out"]) if there else ()
            corpus.append([text for k, text in enumerate(about.get("captions", ())) if k not in gone])
        at = tuple(i for i, there in enumerate(has) if there)
        candidates = [predictions[i]["rounds"][r]["candidate"] for i in at]
        out.append(Round(at, candidates, [corpus[i] for i in at], corpus, [labels[i] for i in at]))
    return out


def mean_over_rounds(each: Sequence[Sequence[float | Exception]]) -> list[float | Exception]:
    """One value a clip from one list a round; a clip that lacks a value in some round has that round's reason."""
    out: list[float | Exception] = []
    for values in zip(*each, strict=True):
        fault = next((v for v in values if isinstance(v, Exception)), None)
        first = values[0]
        if fault is not None or isinstance(first, Exception):
            out.append(fault or first)
        else:  # centred, so that equal values keep their bits
            out.append(first + sum(v - first for v in values if not isinstance(v, Exception)) / len(values))
    return out
