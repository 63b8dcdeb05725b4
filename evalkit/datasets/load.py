"""From a data set's spec to its clips: `load_dataset`."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shlex
import typing
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit import registry
from evalkit.datasets import Archive, DatasetInfo, Layout
from evalkit.errors import DataError, UsageError
from evalkit.spec import Spec, build, parse_spec


@dataclass(frozen=True)
class Loaded:
    """A data set that was found.

    Attributes:
        info: its declaration; ``domain`` is what the option of that name says, where the data set has one.
        name: the spec with every option written out, defaults included.
        layout: the clips.
        root: the folder looked in.
    """

    info: DatasetInfo
    name: str
    layout: Layout
    root: Path

    @property
    def coverage(self) -> str:
        """``400 of 2,000 clips``."""
        present, expected = len(self.layout.items), self.layout.expected
        return f"{present:,} of {expected:,} clips" if expected else f"{present:,} clips (of no official set)"


def load_dataset(spec_text: str, data_root: str | os.PathLike[str] | None = None) -> Loaded:
    """Find a data set and list its clips; nothing is decoded.

    Args:
        spec_text: ``esc50``, ``esc50@subset=esc10``, ``folder:DIR@domain=music``, ``mine.py:INFO``.
        data_root: the folder that holds the data sets' folders; None is ``EVALKIT_DATA``.

    Raises:
        UsageError: unknown name or option. DataError: absent or laid out unlike its official form; the message says how
            to get it.
    """
    spec = parse_spec(spec_text)
    info = find(spec.name)
    values = options(info, spec)
    place = _data_root(data_root)
    needs_root = not info.generated and bool(info.folder or info.archives)
    if needs_root and place is None:
        remedy = how_to_get(info, None, values)
        raise DataError(f"{spec.name}: where is the data? Give --data-root DIR or set EVALKIT_DATA.\n{remedy}")
    root = (place or Path()) / info.folder if needs_root else Path()
    try:
        if needs_root and not root.is_dir():
            raise DataError(f"{root}: no such folder")
        layout = info.read(root, **values)
    except DataError as error:
        if not needs_root:
            raise
        raise DataError(f"{spec.name}: {error}\n{how_to_get(info, place, values)}") from error
    twice = [id for id, n in Counter(i.id for i in layout.items).items() if n > 1]
    if twice:
        raise DataError(f"{spec.name}: two clips share the id {twice[0]!r}: rename one of the files")
    if values.get("domain") in typing.get_args(registry.Domain):
        info = dataclasses.replace(info, domain=values["domain"])
    return Loaded(info, full_name(spec.name, info, values), layout, root)


def find(name: str) -> DatasetInfo:
    """The declaration of a registered data set, or the attribute of a user's file (``mine.py:INFO``)."""
    path, colon, attribute = name.rpartition(":")
    if not (colon and path.endswith(".py")):
        found = registry.get("datasets", name)
    else:
        found = getattr(registry.load_file(path), attribute, None)
        if not isinstance(found, DatasetInfo):
            raise UsageError(f"{name}: {attribute} of {path} is not a DatasetInfo")
    return found


def options(info: DatasetInfo, spec: Spec) -> dict[str, Any]:
    """All parameters of ``info.read`` after the folder, from the spec's texts and the defaults, in their types.

    Raises:
        UsageError: an unknown option, a missing one, a value of the wrong type.
    """
    parameters = _parameters(info)

    def given(**values: Any) -> dict[str, Any]:
        return values

    given.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    given.__annotations__ = {}
    values = build(given, spec)
    return {name: values.get(name, p.default) for name, p in parameters.items()}


def full_name(name: str, info: DatasetInfo, values: dict[str, Any]) -> str:
    """The spec with every option written out; only a parameter without a default is the argument after the colon."""
    argument, rest = None, []
    for i, (key, p) in enumerate(_parameters(info).items()):
        text = _text(values[key])
        if i == 0 and p.default is p.empty:
            argument = text
        elif values[key] is not None:
            rest.append((key, text))
    return str(Spec(name, argument, tuple(rest)))


def how_to_get(info: DatasetInfo, data_root: Path | None, values: dict[str, Any] | None = None) -> str:
    """Where a data set comes from and how to put it in place, as lines of text."""
    from evalkit.datasets.download import archive_name, by_hand, size_text

    archives = _wanted(info, values or {})
    where = "DIR" if data_root is None else shlex.quote(str(data_root))
    lines = []
    for a in archives:
        only = "" if a is info.archives[0] else f" --only {archive_name(a)}"
        about = f"{size_text(a.bytes)}; licence: {info.licence}"
        lines.append(f"Get it: evalkit download {info.name}{only} --data-root {where}   ({about})")
        lines.append(by_hand(info, a, data_root))
    if info.remedy:
        lines.append(f"Or: {info.remedy}.")
    return "\n".join(lines)


def _wanted(info: DatasetInfo, values: dict[str, Any]) -> tuple[Archive, ...]:
    """The archives that an option names (``subset=dev-clean``), else the first."""
    from evalkit.datasets.download import archive_name

    texts = {t for v in values.values() if isinstance(v, str) for t in (v, f"{info.name}_{v}")}
    ends = tuple(f"_{t}" for t in texts)
    named = [a for a in info.archives if archive_name(a) in texts or archive_name(a).endswith(ends)]
    return tuple(named) or info.archives[:1]


def _data_root(given: str | os.PathLike[str] | None) -> Path | None:
    text = given if given is not None else os.environ.get("EVALKIT_DATA") or None
    return None if text is None else Path(text).expanduser()


def _parameters(info: DatasetInfo) -> dict[str, inspect.Parameter]:
    try:
        hints = typing.get_type_hints(info.read)
    except (NameError, TypeError, AttributeError):
        hints = {}
    _, *rest = inspect.signature(info.read).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.replace(annotation=hints.get(p.name, p.annotation)) for p in rest if p.kind in kinds}


def _text(value: Any) -> str:
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
