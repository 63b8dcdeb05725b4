"""Spec strings: how a system, a data set or a metric is named on the command line and in records.

Grammar: ``NAME[:ARGUMENT][@key=value[@key=value ...]]``, for example ``opus:6``, ``opus:6@complexity=5``,
``files:decoded/encodec@kbps=1.5``, ``mine.py:MyCodec``, ``mine.py:MyCodec:6``. A list of specs is separated by commas;
a comma inside a spec is written ``\\,``.
"""

from __future__ import annotations

import inspect
import os
import re
import typing
from dataclasses import dataclass
from typing import Any

from evalkit.errors import UsageError


@dataclass(frozen=True)
class Spec:
    """A parsed spec string. ``name`` is a registry name or ``path.py:Attribute``."""

    name: str
    argument: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        head = self.name if self.argument is None else f"{self.name}:{self.argument}"
        return "@".join([head, *(f"{k}={v}" for k, v in self.options)])


def split_specs(text: str) -> list[str]:
    r"""Split a comma-separated list; ``\,`` is a literal comma.

    >>> split_specs(r"opus:6, files:a\,b ,identity")
    ['opus:6', 'files:a,b', 'identity']
    """
    return [part.replace("\\,", ",").strip() for part in re.split(r"(?<!\\),", text) if part.strip()]


def parse_spec(text: str) -> Spec:
    """Parse one spec string.

    >>> parse_spec("files:../out/encodec@kbps=1.5")
    Spec(name='files', argument='../out/encodec', options=(('kbps', '1.5'),))
    >>> parse_spec("lib/mine.py:MyCodec:6").name
    'lib/mine.py:MyCodec'

    Raises:
        UsageError: an empty name or an option given twice.
    """
    head, *options = re.split(r"@(?=[A-Za-z_]\w*=)", text.strip())
    pairs = tuple((o.split("=", 1)[0], o.split("=", 1)[1]) for o in options)
    if len({k for k, _ in pairs}) < len(pairs):
        raise UsageError(f"spec {text!r}: an option is given twice")
    found = re.fullmatch(r"(.*\.py):([A-Za-z_]\w*)(?::(.*))?", head, re.DOTALL)
    if found:
        return Spec(f"{found[1]}:{found[2]}", found[3], pairs)
    name, colon, argument = head.partition(":")
    if not name:
        raise UsageError(f"spec {text!r}: no name; expected NAME[:ARGUMENT][@key=value]")
    return Spec(name, argument if colon else None, pairs)


def build(factory: Any, spec: Spec) -> Any:
    """Call ``factory`` (a class or function) with the spec's argument as its first parameter and its options by name.

    Texts are converted to the annotated type (str, int, float, bool, or one of these ``| None``).

    Raises:
        UsageError: an unknown option, a missing argument, a value of the wrong type; the message lists what is known.
    """
    parameters = _parameters(factory)
    values: dict[str, Any] = {}
    if spec.argument is not None:
        if not parameters:
            raise UsageError(f"{spec}: {spec.name} takes no argument")
        first = next(iter(parameters.values()))
        values[first.name] = _convert(spec, first, spec.argument)
    for key, text in spec.options:
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise UsageError(f"{spec}: {spec.name} has no option {key!r} (known: {known})")
        if key in values:
            raise UsageError(f"{spec}: {key!r} is given twice")
        values[key] = _convert(spec, parameters[key], text)
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in values]
    if missing:
        raise UsageError(f"{spec}: {spec.name} needs {missing[0]}: write {spec.name}:{missing[0].upper()}")
    return factory(**values)


def full_name(name: str, built: Any, factory: Any, spec: Spec) -> str:
    """The spec with every parameter written out, defaults included: ``opus:6@complexity=10@frame_ms=20``.

    Values are read back from attributes of the built object where it keeps plain ones under the parameter's name
    (dataclasses do), so that a default resolved at construction is shown resolved.
    """
    parameters = _parameters(factory)
    texts = dict(spec.options)
    if spec.argument is not None:
        texts[next(iter(parameters))] = spec.argument
    given = {key: _convert(spec, parameters[key], text) for key, text in texts.items()}
    options = []
    argument = spec.argument
    for i, p in enumerate(parameters.values()):
        value = getattr(built, p.name, None)
        if not isinstance(value, (str, int, float, os.PathLike)):  # a model loaded from the path of that name, perhaps
            value = given.get(p.name, p.default)
        # Two values that differ have names that differ: results are kept under them.
        short = isinstance(value, float) and float(f"{value:g}") == value
        text = f"{value:g}" if short else str(value)
        if i == 0 and (value is not None or argument is not None):
            argument = text
        elif value is not None:
            options.append((p.name, text))
    return str(Spec(name, argument, tuple(options)))


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    signature = inspect.signature(factory)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = {p.name: p for p in signature.parameters.values() if p.kind in kinds}
    hints = _hints(vars(factory).get("__init__", factory) if inspect.isclass(factory) else factory)
    return {n: p.replace(annotation=hints.get(n, p.annotation)) for n, p in parameters.items()}


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return {}


def _convert(spec: Spec, parameter: inspect.Parameter, text: str) -> Any:
    annotation = parameter.annotation
    choices = [a for a in typing.get_args(annotation) if a is not type(None)] or [annotation]
    if annotation is parameter.empty and parameter.default not in (parameter.empty, None):
        choices = [type(parameter.default)]
    try:
        if bool in choices:
            if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
                raise ValueError
            return text.lower() in ("true", "1", "yes")
        if int in choices:
            return int(text)
        if float in choices:
            return float(text)
    except ValueError as error:
        kind = next(c.__name__ for c in choices if c in (bool, int, float))
        raise UsageError(f"{spec}: {parameter.name}={text!r} is not a {kind}") from error
    return text
