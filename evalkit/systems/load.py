"""`load_system`: from a spec string to a built system, its full name and its declaration."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from evalkit import registry
from evalkit.errors import UsageError
from evalkit.registry import SystemInfo
from evalkit.spec import Spec, build, full_name, parse_spec

CLASS_DECLARATION = ("summary", "role", "domains", "licence", "citation", "requires", "stochastic")


@dataclass(frozen=True)
class Loaded:
    """A built system.

    Attributes:
        name: the spec with every default written out; it identifies the configuration in records.
        spec: the spec as typed.
        system: an object with the capabilities of `evalkit.systems`.
        info: its declaration.
    """

    name: str
    spec: str
    system: Any
    info: SystemInfo


def load_system(text: str) -> Loaded:
    """Build the system that a spec names: a registered name, or ``path.py:Attribute`` of a user's file.

    >>> load_system("pcm:8").name
    'pcm:8'

    Raises:
        UsageError: unknown name, absent file or attribute, wrong argument or option.
        Unavailable: an optional package or weights that the system needs are not installed.
    """
    spec = parse_spec(text)
    info = _from_file(spec) if ".py:" in spec.name else registry.get("systems", spec.name)
    system = build(info.factory, spec)
    return Loaded(full_name(spec.name, system, info.factory, spec), text, system, info)


def _from_file(spec: Spec) -> SystemInfo:
    path, _, attribute = spec.name.rpartition(":")
    module = registry.load_file(path)
    factory = getattr(module, attribute, None)
    if factory is None:
        own = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise UsageError(f"{path} has no {attribute!r}; it defines {', '.join(own) or 'no class or function'}")
    if not callable(factory):
        raise UsageError(f"{spec.name} is a {type(factory).__name__}, not a class or a function that builds a system")
    if isinstance(getattr(factory, "info", None), SystemInfo):
        return factory.info
    declared = {key: getattr(factory, key) for key in CLASS_DECLARATION if hasattr(factory, key)}
    declared.setdefault("summary", (inspect.getdoc(factory) or "").split("\n", 1)[0].rstrip("."))
    return SystemInfo(name=attribute, factory=factory, **declared)
