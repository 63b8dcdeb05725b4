"""Captions without listening: made elsewhere, and the rows that calibrate every captioning table."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evalkit.captioning import Caption
from evalkit.datasets import Item
from evalkit.datasets.manifest import FileFacts, file_sha256
from evalkit.errors import DataError, NotApplicable, UsageError
from evalkit.registry import system

ID_COLUMNS = ("id", "file_name", "fname", "audio_id", "audiocap_id", "youtube_id")
CAPTION_COLUMNS = ("candidate", "cands", "caption_predicted", "caption", "prediction")

Answer = Caption | list[Caption] | Exception


@system("human", role="ceiling", summary="each human caption against the clip's other references; mean over them")
@dataclass(frozen=True)
class Human:
    """Leave-one-out: round k takes reference k of every clip as candidate, and the others as its references.

    A clip's value is the mean over the rounds. With five references a system is scored against five and this row
    against four, so it lies a little low (about 0.3 points of CIDEr-D on Clotho for a model scored both ways).
    """

    def captions(self, items: Sequence[Item], seed: int) -> list[Answer]:
        most = max((len(_references(i)) for i in items), default=0)
        return [self._of(item, most) for item in items]

    def _of(self, item: Item, rounds: int) -> Answer:
        given = _references(item)
        if len(given) < 2:
            return NotApplicable(f"leave-one-out needs two references, the clip has {len(given)}")
        if len(given) < rounds:
            return NotApplicable(f"the clip has {len(given)} references, others have {rounds}: no whole set of rounds")
        return [Caption(text, (k,)) for k, text in enumerate(given)]


@system(
    "random-human",
    role="floor",
    stochastic=True,
    summary="a human caption of another clip, drawn at random: fluent, and about something else",
)
@dataclass(frozen=True)
class RandomHuman:
    """For each clip a caption of a clip of another cluster (where there is one), drawn from the seed.

    Args:
        draws: rounds; a clip's value is the mean over them.
    """

    draws: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= 100:
            raise UsageError(f"random-human@draws={self.draws}: 1 to 100")

    def captions(self, items: Sequence[Item], seed: int) -> list[Answer]:
        rng = np.random.default_rng([seed, len(items)])
        out: list[Answer] = []
        for item in items:
            others = [o for o in items if o.cluster != item.cluster] or [o for o in items if o.id != item.id]
            others = [o for o in others if _references(o)]
            if not others:
                out.append(NotApplicable("there is no other clip to take a caption of"))
                continue
            drawn = []
            for _ in range(self.draws):
                texts = _references(others[int(rng.integers(len(others)))])
                drawn.append(Caption(texts[int(rng.integers(len(texts)))]))
            out.append(drawn)
        return out


@system("constant", role="floor", summary="the same caption for every clip: the most frequent of the references")
@dataclass(frozen=True)
class Constant:
    """Says the same of everything.

    Args:
        text: what it says; None is the most frequent reference of the evaluated clips, in lower case and without
            punctuation (the first in alphabetical order of several).
    """

    text: str | None = None

    def captions(self, items: Sequence[Item], seed: int) -> list[Answer]:
        if self.text is not None:
            return [Caption(self.text) for _ in items]
        counts = Counter(_plain(text) for item in items for text in _references(item))
        if not counts:
            raise NotApplicable("no clip has a reference to take the most frequent of")
        best = min(counts, key=lambda text: (-counts[text], text))
        return [Caption(best) for _ in items]


class _Table:
    """Captions of a CSV file by clip."""

    def __init__(self, file: str, id_column: str | None, caption_column: str | None) -> None:
        path = Path(file)
        try:
            with path.open(encoding="utf-8-sig", newline="") as f:
                reader = csv.DictReader(f)
                head = list(reader.fieldnames or ())
                id_at = self._column(path, head, id_column, ID_COLUMNS, "ids", "id_column")
                text_at = self._column(path, head, caption_column, CAPTION_COLUMNS, "captions", "caption_column")
                rows = [(row[id_at], row[text_at], reader.line_num) for row in reader]
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{path}: not a CSV file in UTF-8 ({error})") from error
        self.rows: dict[str, list[tuple[str, int]]] = {}
        for name, text, line in rows:
            if name is None or text is None:
                raise UsageError(f"{path} line {line}: fewer cells than the header has columns")
            self.rows.setdefault(name, []).append((text, line))
        if not self.rows:
            raise UsageError(f"{path}: no rows below the header")
        self.path = path
        self.unknown: tuple[str, ...] = ()

    @staticmethod
    def _column(path: Path, head: list[str], wanted: str | None, known: tuple[str, ...], what: str, option: str) -> str:
        found = [c for c in ([wanted] if wanted else known) if c in head]
        if not found:
            raise UsageError(
                f"{path}: no column of {what} ({wanted or ', '.join(known)}); it has {', '.join(head) or 'none'}: "
                f"name it with @{option}=..."
            )
        return found[0]

    def look_up(self, items: Sequence[Item]) -> list[Answer]:
        """One answer an item; rows that belong to none are kept in ``unknown``."""
        used: set[str] = set()
        out: list[Answer] = []
        for item in items:
            names = [n for n in _names(item) if n in self.rows]
            used.update(names)
            found = [row for n in names for row in self.rows[n]]
            if not found:
                out.append(DataError(f"no row for this clip in {self.path.name}"))
            elif len({text for text, _ in found}) > 1:
                lines = ", ".join(str(line) for _, line in found)
                out.append(
                    DataError(f"{len(found)} different captions for this clip in {self.path.name} (lines {lines})")
                )
            else:
                out.append(Caption(found[0][0]))
        self.unknown = tuple(n for n in self.rows if n not in used)
        return out


@dataclass(frozen=True)
class _FromFile:
    """A CSV file with a header and one row a clip, in UTF-8.

    Args:
        file: the CSV file.
        id_column: column of clip ids, by default the first there is of ``id``, ``file_name``, ``fname``, ``audio_id``,
            ``audiocap_id``, ``youtube_id``. A file name matches with or without its suffix.
        caption_column: by default the first there is of ``candidate``, ``cands``, ``caption_predicted``, ``caption``,
            ``prediction``.
    """

    file: str
    id_column: str | None = None
    caption_column: str | None = None
    _notes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _Table(self.file, self.id_column, self.caption_column)  # a bad file is told before anything runs

    @property
    def notes(self) -> tuple[str, ...]:
        """What is wrong with the file as a whole, after `captions`."""
        return tuple(self._notes)

    def fingerprint(self) -> str:
        """sha256 of the file."""
        with FileFacts(None) as facts:
            return file_sha256(Path(self.file), facts)

    def _read(self, items: Sequence[Item]) -> list[Answer]:
        table = _Table(self.file, self.id_column, self.caption_column)
        answers = table.look_up(items)
        self._notes.clear()
        if table.unknown:
            shown = ", ".join(table.unknown[:3]) + (", ..." if len(table.unknown) > 3 else "")
            self._notes.append(f"{table.path.name}: {len(table.unknown):,} rows are of no clip of this task ({shown})")
        return answers


@system("predictions", licence="of the captions", summary="captions made elsewhere, from a CSV file")
class Predictions(_FromFile):
    """Scores a file of captions. A clip without a row, or with several that differ, fails with its reason."""

    def captions(self, items: Sequence[Item], seed: int) -> list[Answer]:
        return self._read(items)


@system("permuted", role="floor", stochastic=True, summary="every caption at the place of another clip")
@dataclass(frozen=True)
class Permuted:
    """A set of captions moved over the clips so that none stays at its own: the same words, all of them wrong.

    Args:
        file: a CSV file as `predictions` takes it; None permutes the first reference of each clip.
    """

    file: str | None = None
    id_column: str | None = None
    caption_column: str | None = None

    def __post_init__(self) -> None:
        if self.file is not None:
            _Table(self.file, self.id_column, self.caption_column)

    def fingerprint(self) -> str | None:
        """sha256 of the file, if there is one."""
        return Predictions(self.file, self.id_column, self.caption_column).fingerprint() if self.file else None

    def captions(self, items: Sequence[Item], seed: int) -> list[Answer]:
        answers: list[Answer]
        if self.file is not None:
            answers = _Table(self.file, self.id_column, self.caption_column).look_up(items)
        else:
            answers = [
                Caption(_references(i)[0]) if _references(i) else NotApplicable("the clip has no reference")
                for i in items
            ]
        able = [i for i, a in enumerate(answers) if isinstance(a, Caption)]
        if len(able) < 2:
            raise NotApplicable(f"{len(able)} captions cannot be permuted")
        order = np.random.default_rng([seed, len(items)]).permutation(able)
        out = list(answers)
        for here, there in zip(order, np.roll(order, 1), strict=True):  # one cycle: nothing stays in its place
            out[int(here)] = answers[int(there)]
        return out


def _references(item: Item) -> list[str]:
    return list(item.labels.get("captions", ()))


def _names(item: Item) -> list[str]:
    """What a row may call this clip."""
    names = [item.id, item.id.rpartition("/")[2]]
    for key in ("file_name", "youtube_id"):
        if item.labels.get(key) is not None:
            names += [str(item.labels[key]), str(item.labels[key]).rpartition(".")[0] or str(item.labels[key])]
    names += map(str, item.labels.get("audiocap_ids", ()))
    if item.path is not None:
        names.append(item.path.name)
    return list(dict.fromkeys(names))


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())
