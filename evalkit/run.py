"""The runner: carries out a plan, records every result as it comes, and finishes what an earlier run left.

Flow: plan -> predict (one unit a clip, or a batch) -> record -> score -> record. Predictions and scores that the run
directory already holds under the same content key are not computed again.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from evalkit import execute
from evalkit.environment import capture
from evalkit.identity import difference, digest, short
from evalkit.plan import Cell, Plan, Request, load_user_files, make_plan, request_from_json, request_json
from evalkit.record import RunDirectory
from evalkit.work import PredictUnit, ScoreUnit, load_metric, metric_id, predict, reason, score

DEFAULT_TIMEOUT = 300.0
GIVE_UP_AFTER = 5

EXIT_OK, EXIT_USAGE, EXIT_SAMPLES_FAILED, EXIT_WHOLE_FAILED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


class Progress(Protocol):
    """What the runner tells while it works; `evalkit.progress` shows it."""

    def note(self, text: str) -> None: ...

    def start(self, total: int, already: int) -> None: ...

    def step(self, what: str) -> None: ...

    def close(self) -> None: ...


class Quiet:
    """Tells nothing."""

    def note(self, text: str) -> None: ...

    def start(self, total: int, already: int) -> None: ...

    def step(self, what: str) -> None: ...

    def close(self) -> None: ...


@dataclass
class Outcome:
    """How a run ended. ``results`` are the records that tables are made of (`evalkit.results`)."""

    directory: Path
    exit_code: int
    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    predicted: int = 0
    scored: int = 0
    interrupted: bool = False


def default_directory(request: Request) -> Path:
    """``runs/<tasks>-<hash of the request>``: the same command finds its directory again."""
    label = "+".join(t.replace("/", "_") for t in request.tasks)[:60]
    return Path("runs") / f"{label}-{digest(request_json(request))[:8]}"


def run(
    request: Request,
    *,
    out: str | Path | None = None,
    jobs: int = 1,
    timeout: float = DEFAULT_TIMEOUT,
    retry_failed: bool = False,
    predict_missing: bool = True,
    progress: Progress | None = None,
    executor: execute.Executor | None = None,
) -> Outcome:
    """Run systems on tasks and record everything in a run directory.

    Args:
        request: what to run.
        out: run directory; by default `default_directory`. An existing one is continued.
        jobs: worker processes; 0 runs in this process, without isolation.
        timeout: seconds a clip may take in one system or metric.
        retry_failed: predict and score again what failed before.
        predict_missing: False scores the predictions that the directory holds, whatever code made them, and makes none.
        executor: instead of ``jobs``, an executor of your own; it is not closed.

    Returns:
        Outcome with exit code 0 (all scored), 2 (some samples failed), 3 (a system or a task failed whole) or
        130 (interrupted; issue the same command to finish).

    Raises:
        UsageError: unknown names, malformed specs, a directory in use.
    """
    from evalkit.results import collect

    progress = progress or Quiet()
    directory = RunDirectory(out or default_directory(request))
    own = executor is None
    load_user_files(request)
    workers = executor or execute.make(jobs)
    finished = False
    try:
        plan = make_plan(request, workers)
        with directory.lock():
            if not predict_missing:
                plan = _as_predicted(plan, directory)
            _tell_differences(directory, plan, progress)
            directory.repair()
            header = describe_run(request, plan, directory)
            directory.write({**header, "status": "started"})
            work = _Work(directory, plan, request, timeout, retry_failed, predict_missing, progress)
            try:
                work.carry_out(workers)
                status = "finished"
            except KeyboardInterrupt:
                status = "interrupted"
            directory.write({**header, "status": status})
            if status == "finished":
                directory.clear_scratch()
        finished = status == "finished"
    finally:
        if own:
            workers.close(now=not finished)
        progress.close()
    outcome = Outcome(
        directory.path,
        EXIT_INTERRUPTED,
        predicted=work.predicted,
        scored=work.scored,
        interrupted=status == "interrupted",
    )
    outcome.results = collect(directory)
    outcome.errors = [f"{t.name}: {t.error}" for t in plan.tasks if t.error]
    outcome.errors += [f"{s['name']}: {s['error']}" for s in plan.systems if "error" in s]
    if not outcome.interrupted:
        outcome.exit_code = exit_code(outcome)
    return outcome


def rescore(
    out: str | Path,
    *,
    metrics: Sequence[str] = (),
    jobs: int = 1,
    timeout: float = DEFAULT_TIMEOUT,
    progress: Progress | None = None,
) -> Outcome:
    """Score the kept predictions of a run again, with further ``metrics``, without predicting anything anew."""
    recorded = request_from_json(RunDirectory(out).read()["request"])
    request = Request(**{**vars(recorded), "metrics": tuple(dict.fromkeys((*recorded.metrics, *metrics)))})
    return run(request, out=out, jobs=jobs, timeout=timeout, predict_missing=False, progress=progress)


def _as_predicted(plan: Plan, directory: RunDirectory) -> Plan:
    """The plan with the prediction keys, and the systems' identities, that the directory recorded.

    A system whose code has changed since is scored as it was. What is not kept is decoded again, and refused where
    that gives other audio than was recorded.
    """
    run_ = directory.read()
    recorded = {(c["task"], c["system"], c["seed"]): c for c in run_["cells"]}
    cells = []
    for cell in plan.cells:
        before = recorded.get((cell.task.name, cell.system["name"], cell.seed))
        if before and cell.keys:
            clips = directory.get_json(run_["tasks"][cell.task.name]["clips"])
            keys = dict(zip((c[0] for c in clips), directory.get_json(before["keys"]), strict=False))
            cell = dataclasses.replace(
                cell,
                keys=tuple(keys.get(i.id, k) for i, k in zip(cell.task.items, cell.keys, strict=True)),
                parts=before["parts"] or cell.parts,
                identity={**cell.identity, "system": before["identity"].get("system", cell.identity["system"])},
            )
        cells.append(cell)
    return dataclasses.replace(plan, cells=tuple(cells))


def describe_run(request: Request, plan: Plan, directory: RunDirectory) -> dict[str, Any]:
    """The static part of run.json: request, environment, tasks, systems, and the identity of every cell.

    Clip lists and keys go among the objects, so that tables need neither the data set nor the systems.
    """
    tasks = {}
    for t in plan.tasks:
        rows = [[i.id, i.cluster, s] for i, s in zip(t.items, t.sources, strict=True)]
        tasks[t.name] = {
            "identity": t.identity,
            "version": t.version,
            "about": t.about,
            "error": t.error,
            "metrics": list(t.metrics),
            "domain": t.domain,
            "clips": directory.put_json(rows),
        }
        if t.task is not None and t.task.capability == "caption":
            tasks[t.name]["labels"] = directory.put_json([dict(i.labels) for i in t.items])
    cells = [
        {
            "task": c.task.name,
            "system": c.system["name"],
            "seed": c.seed,
            "identity": c.identity,
            "digest": digest(c.identity),
            "parts": c.parts,
            "not_applicable": c.not_applicable,
            "error": c.error,
            "keys": directory.put_json(list(c.keys)),
        }
        for c in plan.cells
    ]
    return {
        "request": request_json(request),
        "command": command(request),
        "environment": capture(),
        "tasks": tasks,
        "systems": list(plan.systems),
        "cells": cells,
    }


def command(request: Request) -> str:
    """The command line that issues this request."""

    def joined(values: Sequence[str]) -> str:
        return shlex.quote(",".join(v.replace(",", "\\,") for v in values))

    parts = ["evalkit run", "--task", joined(request.tasks), "--system", joined(request.systems)]
    if request.data_root:
        parts += ["--data-root", shlex.quote(request.data_root)]
    if request.limit is not None:
        parts += ["--limit", str(request.limit)]
    if request.metrics:
        parts += ["--metric", joined(request.metrics)]
    if request.baseline:
        parts += ["--baseline", shlex.quote(request.baseline)]
    if request.seed:
        parts += ["--seed", str(request.seed)]
    if request.seeds != 1:
        parts += ["--seeds", str(request.seeds)]
    if request.clips != "unseen":
        parts += ["--clips", request.clips]
    if request.backend:
        parts += ["--backend", shlex.quote(request.backend)]
    if request.keep_audio:
        parts.append("--keep-audio")
    return " ".join(parts)


def exit_code(outcome: Outcome) -> int:
    """0 all scored, 2 some samples failed, 3 a system or a task failed whole. ``n/a`` is no failure."""
    from evalkit.results import failed_whole, some_failed

    if outcome.errors or any(failed_whole(r) for r in outcome.results):
        return EXIT_WHOLE_FAILED
    return EXIT_SAMPLES_FAILED if any(some_failed(r) for r in outcome.results) else EXIT_OK


def _tell_differences(directory: RunDirectory, plan: Plan, progress: Progress) -> None:
    """Say which identity fields differ from what the directory holds for the same task and system."""
    if not directory.exists():
        return
    old = {(c["task"], c["system"], c["seed"]): c for c in directory.read().get("cells", ())}
    told: dict[str, dict[str, None]] = {}
    for cell in plan.cells:
        before = old.get((cell.task.name, cell.system["name"], cell.seed))
        if before and cell.identity and before["digest"] != digest(cell.identity):
            for change in difference(before["identity"], cell.identity):
                told.setdefault(f"{cell.task.name}: {change}", {})[cell.system["name"]] = None
    for change, systems in told.items():
        who = f"{len(systems)} systems" if len(systems) > 1 else next(iter(systems))
        progress.note(f"identity differs from the recorded run: {change} [{who}]")


def _state(prediction: Mapping[str, Any]) -> str:
    return "ok, audio kept" if prediction.get("audio") else sys.intern(prediction["status"])


def predict_unit(run: str, cell: Cell, indices: Sequence[int], keep_audio: bool = False) -> PredictUnit:
    """The unit of work that predicts some clips of a cell."""
    assert cell.task.task is not None
    return PredictUnit(
        run=run,
        system=cell.system["spec"],
        items=tuple(cell.task.items[i] for i in indices),
        keys=tuple(cell.keys[i] for i in indices),
        prepare=cell.task.task.prepare,
        seed=cell.seed,
        keep_audio=keep_audio,
        capability=cell.task.task.capability,
        all_items=cell.task.items if "set" in cell.parts else (),
    )


class _Work:
    """The loop's state: what is pending, what is in flight, what is recorded."""

    def __init__(
        self,
        directory: RunDirectory,
        plan: Plan,
        request: Request,
        timeout: float,
        retry_failed: bool,
        predict_missing: bool,
        progress: Progress,
    ) -> None:
        self.directory, self.plan, self.timeout, self.progress = directory, plan, timeout, progress
        self.keep_audio, self.seeds = request.keep_audio, request.seeds
        self.predict_missing = predict_missing
        self.positions = {id(c): {k: i for i, k in enumerate(c.keys)} for c in plan.cells}
        self.retry_failed = retry_failed
        self.metric_ids = {m: metric_id(load_metric(m)) for t in plan.tasks for m in t.metrics if not t.error}
        # Metrics of text are taken of all captions of a system at once, when tables are made (`evalkit.results`).
        self.of_text = {m for m in self.metric_ids if load_metric(m).of_text}
        # Of what is recorded only this much stays in memory, so that it hardly grows with the clips.
        self.state = {r["key"]: _state(r) for r in directory.lines("predictions")}
        self.settled: dict[str, frozenset[str]] = {}
        self.sets: dict[frozenset[str], frozenset[str]] = {}
        for record in directory.lines("scores"):
            self._settle(record)
        self.urgent: deque[tuple[Cell, Any]] = deque()
        self.in_flight: dict[Future[Any], tuple[Cell, Any]] = {}
        self.parts_left: dict[str, int] = {}
        self.deaths: dict[tuple[str, str], int] = {}
        self.predicted = self.scored = 0

    def carry_out(self, workers: execute.Executor) -> None:
        total = sum(len(c.keys) for c in self.plan.cells if not c.not_applicable)
        already = sum(1 for c in self.plan.cells if not c.not_applicable for k in c.keys if self._is_done(c, k))
        self.progress.start(total, already)
        pending = self._pending()
        window = 2 * workers.workers + 1
        more = True
        while True:
            while len(self.in_flight) < window:
                unit = self.urgent.popleft() if self.urgent else next(pending, None) if more else None
                if unit is None:
                    more = False
                    break
                self._submit(workers, *unit)
            if not self.in_flight and not self.urgent:
                return
            done, _ = wait(self.in_flight, return_when=FIRST_COMPLETED)
            for future in done:
                cell, unit = self.in_flight.pop(future)
                if isinstance(unit, PredictUnit):
                    self._predicted(cell, unit, future)
                else:
                    self._scored(cell, unit, future)

    def _submit(self, workers: execute.Executor, cell: Cell, unit: PredictUnit | ScoreUnit) -> None:
        if isinstance(unit, PredictUnit):
            if self.deaths.get((cell.task.name, cell.system["name"]), 0) >= GIVE_UP_AFTER:
                why = f"not tried: the system crashed or hung on {GIVE_UP_AFTER} clips in a row"
                for key in unit.keys:
                    self._record_prediction(
                        cell, unit, {"key": key, "status": "failed", "stage": "predict", "reason": why}
                    )
                return
            future = workers.submit(predict, unit, self.timeout * len(unit.items))
        else:
            future = workers.submit(score, unit, self.timeout)
        self.in_flight[future] = (cell, unit)

    # -- what is left to do

    def _to_predict(self, key: str) -> bool:
        state = self.state.get(key)
        if state is None:
            return self.predict_missing
        if state == "failed":
            return self.retry_failed
        return self.predict_missing and self.keep_audio and state == "ok"

    def _is_done(self, cell: Cell, key: str) -> bool:
        if self._to_predict(key):
            return False
        return self.state.get(key) not in ("ok", "ok, audio kept") or not self._missing_metrics(cell, key)

    def _missing_metrics(self, cell: Cell, key: str) -> tuple[str, ...]:
        settled = self.settled.get(key, frozenset())
        return tuple(m for m in cell.task.metrics if self.metric_ids[m] not in settled and m not in self.of_text)

    def _settle(self, record: dict[str, Any]) -> None:
        """Note which metrics of a clip need no further work: one set for all clips that have the same."""
        again = {i for i, r in record["metrics"].items() if self.retry_failed and r.get("status") == "failed"}
        merged = self.settled.get(record["key"], frozenset()).union(record["metrics"]) - again
        self.settled[record["key"]] = self.sets.setdefault(merged, merged)

    def _pending(self) -> Iterator[tuple[Cell, PredictUnit | ScoreUnit]]:
        unscored = {
            key
            for cell in self.plan.cells
            for key in cell.keys
            if not self._to_predict(key) and not self._is_done(cell, key)
        }
        records = {r["key"]: r for r in self.directory.lines("predictions") if r["key"] in unscored} if unscored else {}
        for cell in self.plan.cells:
            if cell.not_applicable or cell.error:
                continue
            batch: list[int] = []
            size = max(1, len(cell.keys) if "set" in cell.parts else cell.system["batch_size"])
            for i, key in enumerate(cell.keys):
                if self._is_done(cell, key):
                    continue
                if not self._to_predict(key):
                    yield cell, self._score_unit(cell, i, records[key])
                    continue
                batch.append(i)
                if len(batch) == size:
                    yield cell, self._predict_unit(cell, batch)
                    batch = []
            if batch:
                yield cell, self._predict_unit(cell, batch)

    def _predict_unit(self, cell: Cell, indices: Sequence[int]) -> PredictUnit:
        return predict_unit(str(self.directory.path), cell, indices, self.keep_audio)

    def _score_unit(self, cell: Cell, i: int, record: dict[str, Any]) -> ScoreUnit:
        assert cell.task.task is not None
        return ScoreUnit(
            run=str(self.directory.path),
            system=cell.system["spec"],
            item=cell.task.items[i],
            key=cell.keys[i],
            prepare=cell.task.task.prepare,
            seed=cell.seed,
            domain=cell.task.domain,
            prediction=record,
            metrics=self._missing_metrics(cell, cell.keys[i]),
        )

    # -- results

    def _predicted(self, cell: Cell, unit: PredictUnit, future: Future[Any]) -> None:
        who = (cell.task.name, cell.system["name"])
        try:
            records = future.result()
            self.deaths[who] = 0
        except (execute.Crashed, execute.TimedOut) as error:
            if len(unit.items) > 1:  # find the culprit
                for item, key in zip(unit.items, unit.keys, strict=True):
                    self.urgent.append((cell, PredictUnit(**{**vars(unit), "items": (item,), "keys": (key,)})))
                return
            self.deaths[who] = self.deaths.get(who, 0) + 1
            records = [{"key": unit.keys[0], "status": "failed", "stage": "predict", "reason": f"the system {error}"}]
        except execute.CannotStart:
            raise
        except Exception as error:
            records = [{"key": k, "status": "failed", "stage": "predict", "reason": reason(error)} for k in unit.keys]
        for record in records:
            self._record_prediction(cell, unit, record)

    def _record_prediction(self, cell: Cell, unit: PredictUnit, record: dict[str, Any]) -> None:
        i = self.positions[id(cell)][record["key"]]
        item = cell.task.items[i]
        record = {
            **record,
            "clip": item.id,
            "task": cell.task.name,
            "system": cell.system["name"],
            "seed": cell.seed,
            "source": short(cell.task.sources[i]),
            "parts": {k: short(v) for k, v in cell.parts.items()},
        }
        self.directory.append("predictions", record)
        self.state[record["key"]] = _state(record)
        self.predicted += 1
        if record["status"] == "ok" and self._missing_metrics(cell, record["key"]):
            self.urgent.append((cell, self._score_unit(cell, i, record)))
        else:
            self.progress.step(f"{cell.task.name} x {cell.system['name']}")
            if record["status"] == "failed":
                self.progress.note(f"failed: {self._who(cell)} on {item.id}: {record['reason']}")

    def _scored(self, cell: Cell, unit: ScoreUnit, future: Future[Any]) -> None:
        try:
            record = future.result()
        except (execute.Crashed, execute.TimedOut) as error:
            if len(unit.metrics) > 1:  # find the culprit
                self.parts_left[unit.key] = len(unit.metrics)
                for name in unit.metrics:
                    self.urgent.append((cell, ScoreUnit(**{**vars(unit), "metrics": (name,)})))
                return
            record = self._all_failed(unit, f"the metric {error}")
        except execute.CannotStart:
            raise
        except Exception as error:
            record = self._all_failed(unit, reason(error))
        self.directory.append("scores", record)
        self._settle(record)
        for identifier, result in record["metrics"].items():
            if result.get("status") == "failed":
                self.progress.note(f"failed: {identifier} for {self._who(cell)} on {unit.item.id}: {result['reason']}")
        left = self.parts_left.get(unit.key, 1) - 1
        self.parts_left[unit.key] = left
        if left <= 0:
            self.parts_left.pop(unit.key, None)
            self.directory.drop_scratch(unit.key)
            self.scored += 1
            self.progress.step(f"{cell.task.name} x {cell.system['name']}")

    def _who(self, cell: Cell) -> str:
        name = str(cell.system["name"])
        return f"{name} (seed {cell.seed})" if self.seeds > 1 and cell.system["stochastic"] else name

    def _all_failed(self, unit: ScoreUnit, why: str) -> dict[str, Any]:
        return {
            "key": unit.key,
            "metrics": {self.metric_ids[m]: {"status": "failed", "reason": why} for m in unit.metrics},
        }


__all__ = ["Outcome", "Progress", "Quiet", "Request", "command", "rescore", "run"]
