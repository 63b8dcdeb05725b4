"""The registries (tasks, systems, metrics, datasets, and what metrics are made with: embedders, recognisers, backends),
their decorators, and lazy loading of plug-ins.

Built-ins are modules named below by string and imported when first asked for. Third-party packages declare entry points
in the groups ``evalkit.tasks``, ``evalkit.systems``, ``evalkit.metrics``, ``evalkit.datasets``, ``evalkit.embedders``,
``evalkit.recognisers`` and ``evalkit.backends``; an entry point names a module (its decorators register) or a decorated
object. A plug-in that fails to import is a warning that names it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_args

from evalkit.audio import Prepare
from evalkit.errors import EvalkitError, UsageError

Kind = Literal["tasks", "systems", "metrics", "datasets", "embedders", "recognisers", "backends"]
KINDS: tuple[Kind, ...] = get_args(Kind)
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
        "evalkit.systems.captions",
        "tokenizer.systems",
    ),
    "metrics": (
        "evalkit.metrics.waveform",
        "evalkit.metrics.spectral",
        "evalkit.metrics.texture",
        "evalkit.metrics.speech",
        "evalkit.metrics.dnsmos",
        "evalkit.metrics.mos",
        "evalkit.metrics.visqol",
        "evalkit.metrics.words",
        "evalkit.metrics.speaker",
        "evalkit.metrics.distribution",
        "evalkit.metrics.captions",
        "evalkit.metrics.spice",
        "evalkit.metrics.aac_metrics",
        "evalkit.metrics.semantic",
        "evalkit.metrics.clap_score",
        "evalkit.metrics.caption_labels",
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
        "evalkit.datasets.clotho",
        "evalkit.datasets.audiocaps",
        "evalkit.datasets.folder",
    ),
    "tasks": ("tasks.reconstruction", "tasks.captioning"),
    "embedders": (
        "evalkit.embedders.mel_stats",
        "evalkit.embedders.yamnet",
        "evalkit.embedders.clap",
        "evalkit.embedders.encodec",
        "evalkit.embedders.isolated",
        "evalkit.metrics.speaker",
        "tokenizer.embedder",
    ),
    "recognisers": (
        "evalkit.recognisers.pocketsphinx",
        "evalkit.recognisers.whisper",
        "evalkit.recognisers.wav2vec2",
    ),
    "backends": (
        "evalkit.backends.frechet_audio_distance",
        "evalkit.backends.spice",
        "evalkit.backends.aac_metrics",
    ),
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
    trained_with: tuple[str, ...] = ()
    """What its training made small: metric names or groups, embedders as ``embedder:NAME``. Such a measure is circular
    for the system, and tables say so."""


@dataclass(frozen=True)
class CorpusValue:
    """What a corpus metric with ``evaluate`` gives.

    Attributes:
        value, low, high: in the metric's unit; ``low`` and ``high`` None where there is no interval.
        note: why there is no interval, or a warning.
        detail: what the value is of, in table order: numbers of embeddings, dimension, reference-set id, fit quality.
        floor: the same measure between two halves of the reference; None where it cannot be had.
        floor_detail: what the floor is of.
        contributions: one number a clip (in the metric's unit): what it adds to the value; None where undefined.
    """

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    detail: Mapping[str, str | int | float] = field(default_factory=dict)
    floor: float | None = None
    floor_detail: str = ""
    contributions: Sequence[float] | None = None


@dataclass(frozen=True)
class MetricInfo:
    """Declaration of a metric.

    A *sample* metric is ``function(...) -> float`` for one clip. A *corpus* metric is ``function(...) -> dict of
    arrays`` (the statistics of one clip) with ``combine(statistics, weights) -> float``; weights are how often each
    clip counts, so that a bootstrap needs no second pass. Parameters are taken by name from what a sample offers:
    ``reference`` and ``estimate`` (Clip), ``tokens`` (Tokens), ``cost`` (Cost), ``labels`` (mapping).

    A metric of text takes the plural ``candidates`` and ``references`` (and ``corpus``, ``labels``) of all clips at
    once: see `TEXT_FIELDS`. It gives one value a clip, or as a corpus metric one clip's statistics each.

    A corpus metric that needs more than weighted sums (distances between distributions) has ``evaluate(statistics,
    clusters, seed) -> CorpusValue`` in the place of ``combine``; statistics are then read from disk clip by clip.

    Attributes:
        min_sample_rate: Hz; audio of a lower rate lacks the band that is judged.
        min_seconds, max_seconds: durations for which it is defined; ``short_clips`` says what it does with clips
            shorter than its model's window.
        weights: files or folders under the weights root, or hub ids, that it cannot do without; whether each is there
            is part of the metric's identity, so that a value is computed once the weights are there.
        trained_on: data sets that its model was trained or selected on, by their names here.
        worsens_with: degradations (`evalkit.degradations`) that must move it away from the clean value, step by step.
        invariant_to: degradations that must leave it as it is.
        no_interval: why a corpus metric has no interval by bootstrap: a count of distinct things, say, which any
            resample makes smaller.
        extra_identity: gives further JSON values of its identity (an embedder's, say).
    """

    name: str
    function: Callable[..., Any]
    version: str
    unit: str
    direction: Direction
    group: str
    summary: str
    level: Literal["sample", "corpus"] = "sample"
    """Whether it has a value a clip, or one for all."""
    combine: Callable[[list[Mapping[str, Any]], Any], float] | None = None
    evaluate: Callable[[Sequence[Mapping[str, Any]], Sequence[str], int], CorpusValue] | None = None
    domains: tuple[Domain, ...] | None = None
    sample_rates: tuple[int, ...] | None = None
    min_sample_rate: int = 0
    min_seconds: float = 0.0
    max_seconds: float | None = None
    short_clips: str = ""
    range: tuple[float, float] = (float("-inf"), float("inf"))
    deterministic: bool = True
    requires: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()
    worsens_with: tuple[str, ...] = ()
    invariant_to: tuple[str, ...] = ()
    no_interval: str = ""
    extra_identity: Callable[[], Any] | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """What the function asks of a sample, from its parameter names without a default."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.default is p.empty)

    @property
    def of_text(self) -> bool:
        """Whether it scores all captions of a system at once."""
        return "candidates" in self.needs


@dataclass(frozen=True)
class Task:
    """A task plug-in.

    Attributes:
        name: ``<dataset>-<kind>``; the bare data set name on the command line stands for all its tasks.
        dataset: data set spec (``esc50``, ``esc50@subset=esc10``, ``folder:DIR``).
        capability: what it asks of a system: ``reconstruct`` (encode and decode, or reconstruct), or ``caption``
            (``caption``, or ``captions`` for what makes them without audio: `evalkit.captioning`).
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


SAMPLE_FIELDS = ("reference", "estimate", "candidate", "tokens", "cost", "labels")
"""What a sample offers; ``estimate`` and ``tokens`` of a reconstruction, ``candidate`` (text) of a captioning task."""

TEXT_FIELDS = ("candidates", "references", "corpus", "labels")
"""What a captioning task offers a metric of text, as lists over the clips that have a candidate: the candidate, its
references (strings), the clip's labels; ``corpus`` are the references of all clips of the task, with a candidate or
without, so that what depends on the whole set (document frequencies) is the same for all systems."""


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


_registries: dict[Kind, _Registry] = {k: _Registry(k) for k in KINDS}


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
        offered = TEXT_FIELDS if info.of_text else SAMPLE_FIELDS
        unknown = [n for n in info.needs if n not in offered]
        if unknown:
            raise EvalkitError(f"metric {name!r} asks for {unknown[0]!r}; a sample offers {', '.join(offered)}")
        _registries["metrics"].add(name, info, f"{function.__module__}.{function.__qualname__}")
        function.info = info
        return function

    return register


def corpus_metric(
    name: str,
    *,
    combine: Callable[[list[Mapping[str, Any]], Any], float] | None = None,
    evaluate: Callable[[Sequence[Mapping[str, Any]], Sequence[str], int], CorpusValue] | None = None,
    **declaration: Any,
) -> Callable[[Any], Any]:
    """Register a corpus metric; the decorated function gives one clip's statistics, ``combine`` the value of many.

    Or ``evaluate`` in the place of ``combine``: see `MetricInfo`.
    """
    if (combine is None) == (evaluate is None):
        raise EvalkitError(f"corpus metric {name!r}: give combine or evaluate, one of them")
    return metric(name, level="corpus", combine=combine, evaluate=evaluate, **declaration)


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


@dataclass(frozen=True)
class EmbedderInfo:
    """Declaration of an embedder: what turns audio into vectors whose distribution, or angle, is compared.

    ``load()`` gives an object with ``embed(clips) -> list of float32 [frames, dimension]``, one array a clip, for a
    list of mono float32 ``[samples]`` at ``sample_rate`` Hz. The result for a clip must not depend on the others of the
    list. It raises `NotApplicable` with the remedy where weights or a package are absent.

    Attributes:
        version: raise it when values change; with ``weights_id`` it names the embeddings in the store.
        window_s, hop_s: seconds of audio that one embedding sees, and from one to the next; None: the whole clip.
        weights: as in `MetricInfo`; ``weights_id`` is a hash of the weights that are expected ("" without weights, or
            where any checkpoint may be given: then `load`'s object has an attribute ``weights_id``).
        trained_on: data sets it was trained or selected on, by their names here.
    """

    name: str
    load: Callable[[], Any]
    version: str
    sample_rate: int
    dimension: int
    summary: str
    window_s: float | None = None
    hop_s: float | None = None
    weights: tuple[str, ...] = ()
    weights_id: str = ""
    trained_on: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""


def embedder(name: str, **declaration: Any) -> Callable[[Any], Any]:
    """Register a class or function that makes an embedder; keywords: the fields of `EmbedderInfo`."""

    def register(load: Any) -> Any:
        info = EmbedderInfo(name=name, load=load, summary=_first_line(load), **declaration)
        _registries["embedders"].add(name, info, f"{load.__module__}.{load.__qualname__}")
        load.info = info
        return load

    return register


@dataclass(frozen=True)
class RecogniserInfo:
    """Declaration of a speech recogniser. ``load()`` gives an object with ``transcribe(samples) -> str`` for mono
    float32 ``[samples]`` at ``sample_rate`` Hz; it raises `NotApplicable` where weights or a package are absent."""

    name: str
    load: Callable[[], Any]
    version: str
    sample_rate: int
    summary: str
    language: str = "en"
    weights: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""


def recogniser(name: str, **declaration: Any) -> Callable[[Any], Any]:
    """Register a class or function that makes a recogniser; keywords: the fields of `RecogniserInfo`."""

    def register(load: Any) -> Any:
        info = RecogniserInfo(name=name, load=load, summary=_first_line(load), **declaration)
        _registries["recognisers"].add(name, info, f"{load.__module__}.{load.__qualname__}")
        load.info = info
        return load

    return register


@dataclass(frozen=True)
class BackendInfo:
    """Declaration of an isolated backend: packages that live in an environment of their own (`evalkit.backends`).

    Attributes:
        worker: path of a Python file that is run there and speaks the protocol; standard library and ``packages`` only.
        version: of worker and pins together; a worker of another version is refused.
        packages: pinned requirements, as pip takes them, in the order in which they are installed.
        python: the Python versions that the pins were tried on, such as ``>=3.11,<3.13``.
        needs: what else the user must fetch, and how; shown by `evalkit backend list`.
    """

    name: str
    worker: str
    version: str
    packages: tuple[str, ...]
    summary: str
    python: str = ">=3.11"
    needs: str = ""
    licence: str = ""
    fetch: str = ""
    """``module:function`` that brings what is no package: called with a path or None at the end of an installation."""
    fetched: str = ""
    """``module:function`` that raises `NotApplicable` where that is absent."""


def backend(info: BackendInfo) -> BackendInfo:
    """Register a `BackendInfo`."""
    _registries["backends"].add(info.name, info, info.worker)
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
