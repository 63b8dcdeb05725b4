"""The four registries (tasks, systems, metrics, datasets), their decorators, and lazy loading of plug-ins.

Built-ins are modules named below by string and imported when first asked for. Third-party packages declare entry points
in the groups ``evalkit.tasks``, ``evalkit.systems``, ``evalkit.metrics`` and ``evalkit.datasets``; an entry point names
a module (its decorators register) or a decorated object. A plug-in that fails to import is a warning that names it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_args

from evalkit.audio import Prepare
from evalkit.errors import EvalkitError, UsageError

Kind = Literal["tasks", "systems", "metrics", "datasets"]
Domain = Literal["speech", "music", "sound"]
Direction = Literal["lower", "higher", "none"]

BUILTIN: dict[Kind, tuple[str, ...]] = {
    "systems": (
        "evalkit.systems.controls",
        "evalkit.systems.pcm",
        "evalkit.systems.mdct",
        "evalkit.systems.ffmpeg",
        "evalkit.systems.codec2",
        "evalkit.systems.encodec",
        "evalkit.systems.files",
        "tokenizer.systems",
    ),
    "metrics": (
        "evalkit.metrics.waveform",
        "evalkit.metrics.spectral",
        "evalkit.metrics.texture",
        "evalkit.metrics.rate",
        "evalkit.metrics.cost",
        "tokenizer.metrics",
    ),
    "datasets": (
        "evalkit.datasets.scenes",
        "evalkit.datasets.esc50",
        "evalkit.datasets.vctk",
        "evalkit.datasets.fma",
        "evalkit.datasets.librispeech",
        "evalkit.datasets.fsdd",
        "evalkit.datasets.folder",
    ),
    "tasks": ("tasks.reconstruction",),
}

TRAINERS = {"tokenizer": "tokenizer.command:train"}
"""What `evalkit train NAME` calls."""

OWN_PACKAGES = ("tasks", "tokenizer", "llm")
"""Top-level packages of this distribution whose names other distributions use as well."""


class PluginWarning(UserWarning):
    """A plug-in could not be loaded; the message names it and the reason."""


# -- declarations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SystemInfo:
    """Declaration of a system. ``factory(**parameters)`` gives an object with the capabilities of `evalkit.systems`."""

    name: str
    factory: Callable[..., Any]
    summary: str
    role: Literal["codec", "ceiling", "floor", "anchor"] = "codec"
    domains: tuple[Domain, ...] | None = None
    licence: str = ""
    citation: str = ""
    requires: tuple[str, ...] = ()
    """Distributions whose version is part of the fingerprint (``av``, ``pycodec2``)."""
    stochastic: bool = False
    """True where ``decode`` or ``reconstruct`` depends on the seed."""


@dataclass(frozen=True)
class MetricInfo:
    """Declaration of a metric.

    A *sample* metric is ``function(...) -> float`` for one clip. A *corpus* metric is ``function(...) -> dict of
    arrays`` (the statistics of one clip) with ``combine(statistics, weights) -> float``; weights are how often each
    clip counts, so that a bootstrap needs no second pass. Parameters are taken by name from what a sample offers:
    ``reference`` and ``estimate`` (Clip), ``tokens`` (Tokens), ``cost`` (Cost), ``labels`` (mapping).
    """

    name: str
    function: Callable[..., Any]
    version: str
    unit: str
    direction: Direction
    group: str
    summary: str
    level: Literal["sample", "corpus"] = "sample"
    combine: Callable[[list[Mapping[str, Any]], Any], float] | None = None
    domains: tuple[Domain, ...] | None = None
    sample_rates: tuple[int, ...] | None = None
    min_seconds: float = 0.0
    max_seconds: float | None = None
    range: tuple[float, float] = (float("-inf"), float("inf"))
    deterministic: bool = True
    requires: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """What the function asks of a sample, from its parameter names without a default."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.default is p.empty)


@dataclass(frozen=True)
class Task:
    """A task plug-in.

    Attributes:
        name: ``<dataset>-<kind>``; the bare data set name on the command line stands for all its tasks.
        dataset: data set spec (``esc50``, ``esc50@subset=esc10``, ``folder:DIR``).
        capability: what it asks of a system; ``reconstruct`` (encode and decode, or reconstruct).
        metrics: names, in table order.
        headline: the few of them in the first table; its first sorts the rows. Empty: the first three.
        prepare: what is done to every clip before any system sees it.
        summary: one line for lists and table headings.
        version: raise it when the meaning of the task changes in a way that its parts do not show.
    """

    name: str
    dataset: str
    metrics: tuple[str, ...]
    prepare: Prepare = Prepare()  # noqa: RUF009 - frozen
    capability: str = "reconstruct"
    summary: str = ""
    version: str = "1"
    headline: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The last part of the name: ``reconstruction``."""
        return self.name.rpartition("-")[2]


SAMPLE_FIELDS = ("reference", "estimate", "tokens", "cost", "labels")


@dataclass
class _Registry:
    kind: Kind
    entries: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)

    def add(self, name: str, info: Any, origin: str) -> None:
        if name in self.entries and self.origin[name] != origin:
            raise EvalkitError(
                f"{self.kind[:-1]} {name!r} of {origin} is already registered by {self.origin[name]}: rename one"
            )
        self.entries[name] = info
        self.origin[name] = origin


_registries: dict[Kind, _Registry] = {k: _Registry(k) for k in ("tasks", "systems", "metrics", "datasets")}


# -- decorators -------------------------------------------------------------------------------------------------------


def system(name: str, *, summary: str, **declaration: Any) -> Callable[[Any], Any]:
    """Register a class or function that builds a system. Further keywords: the fields of `SystemInfo`."""

    def register(factory: Any) -> Any:
        info = SystemInfo(name=name, factory=factory, summary=summary, **declaration)
        _registries["systems"].add(name, info, f"{factory.__module__}.{factory.__qualname__}")
        factory.info = info
        return factory

    return register


def metric(
    name: str,
    *,
    unit: str,
    direction: Direction,
    version: str = "1",
    group: str = "other",
    **declaration: Any,
) -> Callable[[Any], Any]:
    """Register a sample metric: a pure function of named parts of a sample that returns one float.

    It raises `NotApplicable` where the value would be meaningless. Further keywords: the fields of `MetricInfo`.
    """

    def register(function: Any) -> Any:
        info = MetricInfo(
            name=name,
            function=function,
            version=version,
            unit=unit,
            direction=direction,
            group=group,
            summary=_first_line(function),
            **declaration,
        )
        if direction not in get_args(Direction):
            raise EvalkitError(f"metric {name!r}: direction={direction!r} is none of {', '.join(get_args(Direction))}")
        unknown = [n for n in info.needs if n not in SAMPLE_FIELDS]
        if unknown:
            raise EvalkitError(f"metric {name!r} asks for {unknown[0]!r}; a sample offers {', '.join(SAMPLE_FIELDS)}")
        _registries["metrics"].add(name, info, f"{function.__module__}.{function.__qualname__}")
        function.info = info
        return function

    return register


def corpus_metric(
    name: str, *, combine: Callable[[list[Mapping[str, Any]], Any], float], **declaration: Any
) -> Callable[[Any], Any]:
    """Register a corpus metric; the decorated function gives one clip's statistics, ``combine`` the value of many."""
    return metric(name, level="corpus", combine=combine, **declaration)


def task(function: Callable[[], Any] | None = None) -> Any:
    """Register the `Task` (or the several) that a function returns."""

    def register(f: Any) -> Any:
        made = f()
        f.tasks = tuple(made) if isinstance(made, (list, tuple)) else (made,)
        for one in f.tasks:
            if not isinstance(one, Task):
                raise EvalkitError(f"@task {f.__qualname__}: returned {type(one).__name__}, expected Task or several")
            if not one.metrics:
                raise EvalkitError(f"task {one.name!r} names no metric")
            _registries["tasks"].add(one.name, one, f"{f.__module__}.{f.__qualname__}")
        return f

    return register(function) if function is not None else register


def dataset(info: Any) -> Any:
    """Register an `evalkit.datasets.DatasetInfo`."""
    _registries["datasets"].add(info.name, info, f"{info.read.__module__}.{info.name}")
    return info


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").split("\n", 1)[0].rstrip(".")


# -- look-up ----------------------------------------------------------------------------------------------------------


def names(kind: Kind) -> list[str]:
    """All registered names, built-ins first in their own order, then plug-ins."""
    _load_builtin(kind)
    for point in _points(kind):
        _load_point(kind, point)
    return list(_registries[kind].entries)


def get(kind: Kind, name: str) -> Any:
    """The declaration registered under ``name``.

    Raises:
        UsageError: unknown; the message suggests near names.
    """
    registry = _registries[kind]
    if name not in registry.entries:
        _load_builtin(kind)
    if name not in registry.entries:
        for point in sorted(_points(kind), key=lambda p: p.name != name):
            _load_point(kind, point)
            if name in registry.entries:
                break
    if name not in registry.entries:
        import difflib

        known = [*registry.entries, *({t.rpartition("-")[0] for t in registry.entries} if kind == "tasks" else ())]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"`evalkit list {kind}` shows what there is"
        raise UsageError(f"no {kind[:-1]} named {name!r}: {hint}")
    return registry.entries[name]


def origin(kind: Kind, name: str) -> str:
    """Where a declaration was made, as ``module.object``."""
    get(kind, name)
    return _registries[kind].origin[name]


def load_file(path: str | os.PathLike[str]) -> Any:
    """Import a user's .py file (its decorators register); the same file is imported once.

    Raises:
        UsageError: absent, or it raises while being imported.
    """
    import importlib.util

    path = Path(path).resolve()
    # The same name in every process, so that what the file defines can be pickled to workers.
    module_name = f"evalkit_user_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UsageError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    _user_files[str(path)] = module_name
    return module


_user_files: dict[str, str] = {}


def user_files() -> tuple[str, ...]:
    """Paths loaded by `load_file` so far; workers load them before they start."""
    return tuple(_user_files)


def _load_builtin(kind: Kind) -> None:
    registry = _registries[kind]
    for module in BUILTIN[kind]:
        if module not in registry.loaded:
            top = module.partition(".")[0]
            if top in OWN_PACKAGES:
                check_own_package(top)
            importlib.import_module(module)
            registry.loaded.add(module)


def _points(kind: Kind) -> Iterable[EntryPoint]:
    return entry_points(group=f"evalkit.{kind}")


def _load_point(kind: Kind, point: EntryPoint) -> None:
    registry = _registries[kind]
    key = f"{point.name}={point.value}"
    if key in registry.loaded:
        return
    registry.loaded.add(key)
    try:
        point.load()
    except (Exception, SystemExit) as error:  # a plug-in may raise anything; it must not take the harness down
        owner = point.dist.name if point.dist else "unknown distribution"
        warnings.warn(
            f"plug-in {point.name!r} ({point.value}, of {owner}) was not loaded: {type(error).__name__}: {error}",
            PluginWarning,
            stacklevel=2,
        )


def check_own_package(name: str) -> None:
    """Make sure that the top-level package ``name`` is this distribution's own.

    Raises:
        EvalkitError: another distribution's package of that name comes first on the import path.
    """
    import importlib.util

    here = Path(__file__).resolve().parent.parent
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # a bare module put into sys.modules
        found = None
    where = Path(found.origin).resolve() if found and found.origin else None
    if where is None or where.parent != here / name:
        raise EvalkitError(
            f"the package {name!r} of evalkit-audio is shadowed by {where or 'nothing importable'}: another "
            f"distribution owns that name here. Use a fresh virtual environment, or uninstall the other one; "
            f"`evalkit doctor` names it"
        )
