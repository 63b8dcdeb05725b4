"""From a request to a plan: which clips, which systems, which metrics, and the identity of everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit import registry
from evalkit.audio import Prepare, read_clip
from evalkit.datasets import Item
from evalkit.datasets.load import load_dataset
from evalkit.datasets.manifest import manifest
from evalkit.errors import EvalkitError, UsageError
from evalkit.execute import CannotStart, Executor
from evalkit.identity import digest, source_hash
from evalkit.registry import Task
from evalkit.spec import Spec, parse_spec
from evalkit.work import describe, load_metric, metric_id, reason


@dataclass(frozen=True)
class Request:
    """What the user asked for. Everything that decides a result is in here or in the files it names.

    Attributes:
        tasks: task names, or data set names that stand for all their tasks.
        systems: system specs.
        data_root: folder of data sets; None uses EVALKIT_DATA.
        limit: at most so many clips a task, evenly spaced in id order; None for all.
        clips: ``unseen`` leaves out what any of the systems was trained on, for all of them, so that the rows of a
            table stay comparable; ``all`` keeps it and says so in the table.
        seed: of every random draw.
        seeds: noise seeds, 1 or more: a stochastic system is decoded with ``seed``, ``seed + 1``, ... and its clips'
            values are averaged; others are run once.
        metrics: extra metrics (names or ``path.py:function``) beside each task's own.
        baseline: spec of the system that paired differences are taken against; None for the first codec.
        keep_audio: keep decoded audio in the run.
        backend: isolated backend whose own implementation, where there is one, takes the place of each task's metrics:
            ``NAME@<backend>`` of ``NAME``.
    """

    tasks: tuple[str, ...]
    systems: tuple[str, ...]
    data_root: str | None = None
    limit: int | None = None
    seed: int = 0
    metrics: tuple[str, ...] = ()
    baseline: str | None = None
    keep_audio: bool = False
    seeds: int = 1
    clips: str = "unseen"
    backend: str | None = None


@dataclass(frozen=True)
class TaskPlan:
    """A task with its clips, or the reason why it cannot run."""

    name: str
    task: Task | None = None
    items: tuple[Item, ...] = ()
    sources: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    """Metric names (or ``path.py:function``), the headline first."""
    domain: str = ""
    identity: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def version(self) -> str:
        """Hash over task, metrics, data and preparation: rows of different versions never mix."""
        return digest(self.identity)


@dataclass(frozen=True)
class Cell:
    """One system on one task with one seed: a row of a table, or one noise seed of it."""

    task: TaskPlan
    system: dict[str, Any]
    seed: int
    keys: tuple[str, ...]
    """Content key of each clip's prediction."""
    parts: dict[str, str]
    """What the keys are made of, beside each clip's source."""
    identity: dict[str, Any]
    not_applicable: str = ""
    error: str = ""


@dataclass(frozen=True)
class Plan:
    tasks: tuple[TaskPlan, ...]
    systems: tuple[dict[str, Any], ...]
    cells: tuple[Cell, ...]


def make_plan(request: Request, executor: Executor, *, timeout: float | None = 600.0) -> Plan:
    """Resolve everything. A task or a system that cannot be had is in the plan with its reason.

    Raises:
        UsageError: an unknown task or system name, a malformed spec, a baseline that is not run, fewer seeds than one:
            the request is wrong.
    """
    if request.seeds < 1:
        raise UsageError(f"seeds is {request.seeds}, expected at least 1")
    if request.backend:
        registry.get("backends", request.backend)
        if not any(m.endswith(f"@{request.backend}") for m in registry.names("metrics")):
            raise UsageError(f"backend {request.backend!r} has no metrics that could take the place of a task's own")
    if request.clips not in ("unseen", "all"):
        raise UsageError(f"clips is {request.clips!r}, expected unseen or all")
    chosen = expand_tasks(request.tasks)
    systems = resolve_systems(request.systems, executor, timeout)
    chosen = _with_a_system(chosen, request.tasks, systems)
    trained_on = {s["name"]: s.pop("trained_on") for s in systems if s.get("trained_on")}
    tasks = tuple(plan_task(task, request, trained_on) for task in chosen)
    if request.baseline and not any(request.baseline in (s["spec"], s["name"]) for s in systems):
        raise UsageError(f"baseline {request.baseline!r} is not among the systems: {', '.join(request.systems)}")
    cells = tuple(
        make_cell(t, s, seed) for t in tasks if not t.error for s in systems for seed in noise_seeds(s, request)
    )
    return Plan(tasks, systems, cells)


def _with_a_system(tasks: list[Task], asked: Sequence[str], systems: Sequence[Mapping[str, Any]]) -> list[Task]:
    """Leave out tasks that no system can do, where only their data set was named: the others of it are meant."""
    by_name = {parse_spec(text).name for text in asked}
    able = [s for s in systems if "error" not in s]
    kept = []
    for task in tasks:
        own = parse_spec(task.name).name
        siblings = [t for t in tasks if parse_spec(t.name).name.rpartition("-")[0] == own.rpartition("-")[0]]
        others = any(_able(s, t.capability) for s in able for t in siblings)
        if own in by_name or not others or any(_able(s, task.capability) for s in able):
            kept.append(task)
    return kept


def load_user_files(request: Request) -> None:
    """Import the files that tasks, their data sets and metrics come from, before workers start."""
    for name in request.metrics:
        load_metric(name)
    for task in expand_tasks(request.tasks):
        for name in (parse_spec(task.dataset).name, *task.metrics):
            path, _, _ = name.rpartition(":")
            if path.endswith(".py"):
                try:
                    registry.load_file(path)
                except UsageError:
                    pass  # the task's own failure, recorded when it is planned


def expand_tasks(specs: Sequence[str]) -> list[Task]:
    """Tasks in order; a data set name stands for all its tasks, ``mine.py:function`` for those that it returns.

    An argument or options go to the data set: ``folder:DIR``, ``scenes@split=validation``,
    ``esc50-reconstruction@subset=esc10``; they become part of the task's name.

    Raises:
        UsageError: neither a task nor a data set with tasks.
    """
    if not specs:
        raise UsageError("no task given; `evalkit list tasks` shows what there is")
    known = registry.names("tasks")
    out: dict[str, Task] = {}
    for text in specs:
        spec = parse_spec(text)
        path, _, attribute = spec.name.rpartition(":")
        if path.endswith(".py"):
            made = getattr(getattr(registry.load_file(path), attribute, None), "tasks", None)
            if made is None:
                raise UsageError(f"{text}: {path} has no function {attribute!r} decorated with @task")
            found = [t.name for t in made]
        else:
            found = [spec.name] if spec.name in known else [t for t in known if spec.name == t.rpartition("-")[0]]
        if not found:
            registry.get("tasks", spec.name)  # raises, with near names
        for name in found:
            task: Task = registry.get("tasks", name)
            if spec.argument is not None or spec.options:
                data = parse_spec(task.dataset)
                argument = data.argument if spec.argument is None else spec.argument
                options = tuple((dict(data.options) | dict(spec.options)).items())
                task = dataclasses.replace(
                    task,
                    name=str(Spec(name, spec.argument, spec.options)),
                    dataset=str(Spec(data.name, argument, options)),
                )
            out.setdefault(task.name, task)
    return list(out.values())


def plan_task(task: Task, request: Request, trained_on: Mapping[str, Mapping[str, Sequence[str]]]) -> TaskPlan:
    """Find a task's data and select its clips; what goes wrong is in ``error``.

    ``trained_on``: by system, the ids of the clips that it was trained on, by data set.
    """
    metrics = tuple(dict.fromkeys((*(_twin(m, request.backend) for m in task.metrics), *request.metrics)))
    try:
        infos = [load_metric(m) for m in metrics]
    except EvalkitError as error:
        return TaskPlan(task.name, task, error=reason(error))
    try:
        root = Path(request.data_root) if request.data_root else None
        data = load_dataset(task.dataset, root)
        seen = {name: set(ids.get(data.info.name, ())) for name, ids in trained_on.items()}
        known = [i for i in data.layout.items if any(i.id in ids for ids in seen.values())]
        who = ", ".join(name for name, ids in seen.items() if any(i.id in ids for i in known))
        found = data.layout.items
        if known and request.clips == "unseen":
            left_out = {i.id for i in known}
            found = [i for i in found if i.id not in left_out]
            if not found:
                raise EvalkitError(
                    f"{data.info.name}: {who} trained on every clip of it; --clips all scores them all the same"
                )
        items = select(found, request.limit)
        if not items:
            raise EvalkitError(f"{data.info.name}: no clips in {data.root}")
        content = manifest(items)
        sources = [
            content.sources[i.id] if i.make is None else digest([content.sources[i.id], source_hash(i.make)])
            for i in items
        ]
        if task.capability == "caption":  # what is scored is the references: they are part of the content
            sources = [digest([s, dict(i.labels)]) for i, s in zip(items, sources, strict=True)]
    except UsageError:
        raise
    except Exception as error:
        return TaskPlan(task.name, task, error=reason(error))
    present, expected = len(data.layout.items), data.layout.expected
    notes = list(data.layout.notes)
    if known and request.clips == "unseen":
        notes.append(f"{len(known):,} of {len(data.layout.items):,} clips left out: training data of {who}")
    elif known:
        notes.append(f"contaminated: {len(known):,} of {len(data.layout.items):,} clips are training data of {who}")
    identity = {
        "task": {"name": task.name, "version": task.version, "capability": task.capability},
        "metrics": {i.name: metric_id(i) for i in infos},
        "dataset": {
            "name": data.name,
            "version": data.info.version,
            "layout": data.layout.name,
            "present": present,
            "expected": expected,
        },
        "selection": {
            "limit": request.limit,
            "clips": len(items),
            "content": digest([[i.id, s] for i, s in zip(items, sources, strict=True)]),
        },
        "prepare": task.prepare.identity(),
        "reader": reader_hash(),
    }
    contaminated = {} if request.clips == "unseen" else {n: sum(i.id in ids for i in items) for n, ids in seen.items()}
    about = {
        "contaminated": {name: count for name, count in contaminated.items() if count},
        "summary": task.summary,
        "dataset": data.info.name,
        "dataset_summary": data.info.summary,
        "domain": data.info.domain,
        "licence": data.info.licence,
        "citation": data.info.citation,
        "notes": notes,
        "prepare": task.prepare.describe(),
        "generated": data.info.generated,
        "headline": [_twin(m, request.backend) for m in task.headline or task.metrics[:3]],
    }
    return TaskPlan(task.name, task, tuple(items), tuple(sources), metrics, data.info.domain, identity, about)


def _twin(name: str, backend: str | None) -> str:
    twin = f"{name}@{backend}"
    return twin if backend and twin in registry.names("metrics") else name


def select(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` items, evenly spaced in order (so that classes and speakers stay represented)."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def reader_hash() -> str:
    """Hash of the code that turns a file into a prepared clip."""
    return digest([source_hash(read_clip), source_hash(Prepare)])


def resolve_systems(specs: Sequence[str], executor: Executor, timeout: float | None) -> tuple[dict[str, Any], ...]:
    """Describe each system in a worker (its import may crash); one row a full name.

    Raises:
        UsageError: no system, an unknown name, a malformed spec.
    """
    if not specs:
        raise UsageError("no system given; `evalkit list systems` shows what there is")
    for spec in specs:
        name = parse_spec(spec).name
        if not name.rpartition(":")[0].endswith(".py"):
            registry.get("systems", name)
    futures = [(spec, executor.submit(describe, spec, timeout)) for spec in specs]
    out: dict[str, dict[str, Any]] = {}
    for spec, future in futures:
        try:
            described = future.result()
        except CannotStart:
            raise
        except Exception as error:
            described = {"spec": spec, "error": reason(error)}
        if described.get("usage"):
            raise UsageError(described["error"])
        described.setdefault("name", spec)
        out.setdefault(described["name"], described)
    return tuple(out.values())


def noise_seeds(system: dict[str, Any], request: Request) -> range:
    """The seeds that a system is run with: several where they matter, else the first."""
    return range(request.seed, request.seed + (request.seeds if system.get("stochastic") else 1))


def make_cell(task: TaskPlan, system: dict[str, Any], seed: int) -> Cell:
    assert task.task is not None
    if "error" in system:
        return Cell(task, system, seed, (), {}, {}, error=system["error"])
    whole_set = "captions" in system["capabilities"] and task.task.capability == "caption"
    parts = {
        **({"set": digest(list(task.sources))} if whole_set else {}),
        "prepare": digest(task.identity["prepare"]),
        "reader": task.identity["reader"],
        "capability": task.task.capability,
        "system": system["digest"],
        "seed": str(seed) if system["stochastic"] else "-",
    }
    keys = tuple(digest({**parts, "clip": [i.id, s]}) for i, s in zip(task.items, task.sources, strict=True))
    identity = {**task.identity, "system": system["fingerprint"], "seed": seed}
    return Cell(task, system, seed, keys, parts, identity, not_applicable=_why_not(task, system, task.task.capability))


def _able(system: Mapping[str, Any], capability: str) -> bool:
    has = set(system["capabilities"])
    if capability == "reconstruct":
        return {"encode", "decode"} <= has or "reconstruct" in has
    return bool(has & {"caption", "captions"}) if capability == "caption" else capability in has


def _why_not(task: TaskPlan, system: dict[str, Any], capability: str) -> str:
    has = set(system["capabilities"])
    if not _able(system, capability):
        return f"{system['name']} cannot {capability} (it can: {', '.join(sorted(has)) or 'nothing'})"
    if system["domains"] and task.domain not in system["domains"]:
        return f"{parse_spec(system['spec']).name} is made for {' and '.join(system['domains'])}, this is {task.domain}"
    return ""


def request_json(request: Request) -> dict[str, Any]:
    """The request as JSON values. ``seeds``, ``clips`` and ``backend`` are there where they are not the default:
    requests without them keep their directory's name."""
    value = dataclasses.asdict(request)
    for name in ("seeds", "clips", "backend"):
        if value[name] == Request.__dataclass_fields__[name].default:
            del value[name]
    return value


def request_from_json(value: dict[str, Any]) -> Request:
    names = {f.name for f in dataclasses.fields(Request)}
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k in names}
    return Request(**fields)
