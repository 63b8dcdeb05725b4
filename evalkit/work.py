"""The units of work: what a worker process does for one clip. Everything a unit needs travels with it.

`describe` resolves a system, `predict` runs it on clips, `score` measures one prediction. All three are plain functions
of picklable values, so that any executor can run them (`evalkit.execute`); none of them raises for a fault of a system,
a clip or a metric: the fault is the result.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import traceback
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalkit import registry
from evalkit.applicability import why_not
from evalkit.audio import Clip, Prepare, fit_length, read_clip, resample, resampled_length
from evalkit.cost import Cost, now, peak_memory, reset_peak_memory
from evalkit.datasets import Item
from evalkit.errors import AudioError, ContractError, EvalkitError, NotApplicable, UsageError
from evalkit.identity import digest, source_hash, versions
from evalkit.record import RunDirectory
from evalkit.registry import MetricInfo
from evalkit.systems.load import Loaded, load_system
from evalkit.tokens import Tokens
from evalkit.weights import present

REFERENCE_CLIPS_KEPT = 6
OUTPUT_CLIPS_KEPT = 4
SYSTEMS_KEPT = 2


@dataclass(frozen=True)
class PredictUnit:
    """One system on some clips: self-contained, with the content keys of its results."""

    run: str
    system: str
    items: tuple[Item, ...]
    keys: tuple[str, ...]
    prepare: Prepare
    seed: int
    keep_audio: bool = False
    capability: str = "reconstruct"
    all_items: tuple[Item, ...] = ()
    """All clips of the task, for systems that caption from the whole set (`evalkit.captioning`)."""


@dataclass(frozen=True)
class ScoreUnit:
    """Some metrics on one prediction."""

    run: str
    system: str
    item: Item
    key: str
    prepare: Prepare
    seed: int
    domain: str
    prediction: dict[str, Any]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Output:
    """What a system made of one clip, at the clip's own rate and length."""

    clip: Clip
    tokens: Tokens | None
    cost: Cost


# -- describe ---------------------------------------------------------------------------------------------------------


def describe(spec: str) -> dict[str, Any]:
    """Resolve a system spec: full name, fingerprint and declaration as JSON values, or ``{"error": reason}``."""
    try:
        loaded = _system(spec)
        system, info = loaded.system, loaded.info
        capabilities = [
            c
            for c in ("encode", "decode", "reconstruct", "caption", "captions", "answer", "generate")
            if callable(getattr(system, c, None))
        ]
        extra = system.fingerprint() if callable(getattr(system, "fingerprint", None)) else None
        fingerprint = {
            "name": loaded.name,
            "source": source_hash(info.factory),
            "harness": source_hash(run_system),
            "requires": versions(info.requires),
            "content": None if extra is None else digest(extra),
        }
        return {
            "name": loaded.name,
            "spec": spec,
            "fingerprint": fingerprint,
            "digest": digest(fingerprint),
            "capabilities": capabilities,
            "summary": info.summary,
            "role": info.role,
            "domains": list(info.domains) if info.domains else None,
            "licence": info.licence,
            "citation": info.citation,
            "stochastic": info.stochastic,
            "trained_with": list(info.trained_with),
            "sample_rate": getattr(system, "sample_rate", None),
            "parameters": getattr(system, "parameters", None),
            "declared_kbps": getattr(system, "declared_kbps", None),
            "trained_on": getattr(system, "trained_on", None),
            "batch_size": int(getattr(system, "batch_size", 1)),
        }
    except Exception as error:
        return {"spec": spec, "error": reason(error), "usage": isinstance(error, UsageError)}


def reason(error: BaseException) -> str:
    """One line for a fault: our own messages as they are, a stranger's exception with its type and place."""
    if isinstance(error, (EvalkitError, NotApplicable)):
        return _one_line(str(error))
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return _one_line(f"{type(error).__name__}: {error}{place}")


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 500 else text[:497] + "..."


# -- predict ----------------------------------------------------------------------------------------------------------


def clip_seed(seed: int, clip_id: str) -> int:
    """The seed of one clip: from the run's seed and the clip's id, so that neither order nor selection matters."""
    text = f"{seed}:{clip_id}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "little")


def predict(unit: PredictUnit) -> list[dict[str, Any]]:
    """Run a system on the unit's clips; one record a clip, in order. Decoded audio is left in the run's scratch."""
    if unit.capability == "caption":
        return _predict_captions(unit)
    run = RunDirectory(unit.run)
    records: list[dict[str, Any] | None] = [None] * len(unit.items)
    clips: dict[int, Clip] = {}
    for i, item in enumerate(unit.items):
        try:
            clips[i] = _reference(item, unit.prepare)
        except Exception as error:
            records[i] = {"status": "failed", "stage": "read", "reason": reason(error)}
    indices = list(clips)
    seeds = [clip_seed(unit.seed, unit.items[i].id) for i in indices]
    if indices:
        try:
            loaded = _system(unit.system)
        except Exception as error:
            outputs: list[Output | Exception] = [error] * len(indices)
        else:
            outputs = _run_batch(loaded, [clips[i] for i in indices], seeds)
        for i, output in zip(indices, outputs, strict=True):
            try:
                if isinstance(output, Exception):
                    raise output
                records[i] = _keep(run, unit, i, clips[i], output)
            except NotApplicable as error:
                records[i] = {"status": "n/a", "stage": "predict", "reason": reason(error)}
            except Exception as error:
                records[i] = {"status": "failed", "stage": "predict", "reason": reason(error)}
    return [{"key": k, **r} for k, r in zip(unit.keys, records, strict=True) if r is not None]


def _predict_captions(unit: PredictUnit) -> list[dict[str, Any]]:
    """Caption the unit's clips: from their audio, or from the whole set of items (`evalkit.captioning`)."""
    from evalkit.captioning import caption_records

    try:
        system = _system(unit.system).system
    except Exception as error:
        fault = {"status": "failed", "stage": "predict", "reason": reason(error)}
        return [{"key": k, **fault} for k in unit.keys]
    every = unit.all_items or unit.items
    made = caption_records(system, unit.items, every, unit.seed, lambda item: _reference(item, unit.prepare))
    records: list[dict[str, Any]] = []
    for key, one in zip(unit.keys, made, strict=True):
        if isinstance(one, Exception):
            status = "n/a" if isinstance(one, NotApplicable) else "failed"
            records.append({"key": key, "status": status, "stage": "predict", "reason": reason(one)})
        else:
            records.append({"key": key, "status": "ok", **one})
    notes = list(getattr(system, "notes", ()))
    if notes:  # they are of the system on the whole set: the first record carries them
        records[0]["notes"] = notes
    return records


def _keep(run: RunDirectory, unit: PredictUnit, i: int, reference: Clip, output: Output) -> dict[str, Any]:
    record: dict[str, Any] = {
        "status": "ok",
        "output": output.clip.content_hash,
        "reference": reference.content_hash,
        "sample_rate": reference.sample_rate,
        "samples": reference.length,
        "channels": reference.channels,
        "cost": {
            "encode_s": output.cost.encode_s,
            "decode_s": output.cost.decode_s,
            "peak_bytes": output.cost.peak_bytes,
            "parameters": output.cost.parameters,
        },
        "tokens": run.put_tokens(output.tokens) if output.tokens is not None else None,
        "audio": None,
    }
    if unit.keep_audio:
        record["audio"] = run.put_audio(output.clip)
    else:
        run.put_scratch(unit.keys[i], output.clip)
    _outputs[unit.keys[i]] = output.clip
    while len(_outputs) > OUTPUT_CLIPS_KEPT:
        _outputs.popitem(last=False)
    return record


def _run_batch(loaded: Loaded, clips: list[Clip], seeds: list[int]) -> list[Output | Exception]:
    if len(clips) > 1 and callable(getattr(loaded.system, "encode_batch", None)):
        try:
            return list(_run_together(loaded.system, clips, seeds))
        except Exception:  # one clip spoils the batch: run them one by one to find which
            pass
    outputs: list[Output | Exception] = []
    for clip, seed in zip(clips, seeds, strict=True):
        try:
            outputs.append(run_system(loaded.system, clip, seed))
        except Exception as error:
            outputs.append(error)
    return outputs


def run_system(system: Any, clip: Clip, seed: int) -> Output:
    """One clip through one system: resample in, encode and decode (or reconstruct), resample out, check.

    Raises:
        ContractError: the system's output is not a clip of the right rate and length.
    """
    given = _at_system_rate(system, clip)
    memory = reset_peak_memory()
    tokens: Tokens | None = None
    encode_s: float | None = None
    started = now()
    if callable(getattr(system, "encode", None)):
        tokens = system.encode(given)
        encode_s = now() - started
        _check_tokens(tokens, given)
        started = now()
        made = system.decode(tokens, seed)
    elif callable(getattr(system, "reconstruct", None)):
        made = system.reconstruct(given, seed)
    else:
        raise NotApplicable("the system has neither encode/decode nor reconstruct")
    decode_s = now() - started
    peak = peak_memory() if memory else None
    cost = Cost(encode_s, decode_s, clip.seconds, peak, getattr(system, "parameters", None))
    return Output(_at_clip_rate(made, given, clip), tokens, cost)


def _run_together(system: Any, clips: list[Clip], seeds: list[int]) -> list[Output]:
    """A batch through ``encode_batch`` and ``decode_batch``; its time is shared out by length."""
    given = [_at_system_rate(system, clip) for clip in clips]
    memory = reset_peak_memory()
    started = now()
    tokens = system.encode_batch(given)
    encoded = now()
    for one, clip in zip(tokens, given, strict=True):
        _check_tokens(one, clip)
    decoding = now()
    made = system.decode_batch(tokens, seeds)
    decoded = now()
    peak = peak_memory() if memory else None
    total = sum(c.seconds for c in clips)
    outputs = []
    for clip, before, one, after in zip(clips, given, tokens, made, strict=True):
        share = clip.seconds / total
        cost = Cost(
            (encoded - started) * share,
            (decoded - decoding) * share,
            clip.seconds,
            peak,
            getattr(system, "parameters", None),
        )
        outputs.append(Output(_at_clip_rate(after, before, clip), one, cost))
    return outputs


def decode_again(system: Any, clip: Clip, tokens: Tokens | None, seed: int) -> Clip:
    """The output once more, from kept tokens where there are any."""
    given = _at_system_rate(system, clip)
    made = system.decode(tokens, seed) if tokens is not None else system.reconstruct(given, seed)
    return _at_clip_rate(made, given, clip)


def _at_system_rate(system: Any, clip: Clip) -> Clip:
    if getattr(system, "channels", None) == 1 and clip.channels > 1:
        raise NotApplicable(f"the system takes mono, the clip has {clip.channels} channels")
    return resample(clip, getattr(system, "sample_rate", None) or clip.sample_rate)


def _check_tokens(tokens: Any, given: Clip) -> None:
    if not isinstance(tokens, Tokens):
        raise ContractError(f"encode returned {type(tokens).__name__}, expected evalkit.Tokens")
    if (tokens.samples, tokens.sample_rate) != (given.length, given.sample_rate):
        raise ContractError(
            f"encode returned tokens for {tokens.samples} samples at {tokens.sample_rate} Hz, "
            f"it was given {given.length} at {given.sample_rate} Hz"
        )


def _at_clip_rate(made: Any, given: Clip, clip: Clip) -> Clip:
    if not isinstance(made, Clip):
        raise ContractError(f"the system returned {type(made).__name__}, expected evalkit.Clip")
    if made.sample_rate != given.sample_rate:
        raise ContractError(f"the system returned audio at {made.sample_rate} Hz, it was given {given.sample_rate} Hz")
    if made.length != given.length:
        raise ContractError(
            f"the system returned {made.length} samples, expected {given.length}: decode must restore the exact length"
        )
    if made.channels != given.channels:
        raise ContractError(f"the system returned {made.channels} channels, expected {given.channels}")
    back = resample(Clip(made.samples, made.sample_rate), clip.sample_rate)
    if abs(back.length - clip.length) > 2 + clip.sample_rate // max(1, given.sample_rate):
        expected = resampled_length(given.length, given.sample_rate, clip.sample_rate)
        raise ContractError(f"length lost in resampling: {back.length} samples, expected {expected}")
    return clip.with_samples(fit_length(back.samples, clip.length))


# -- score ------------------------------------------------------------------------------------------------------------


def score(unit: ScoreUnit) -> dict[str, Any]:
    """Measure one prediction: ``{"key": ..., "metrics": {metric id: result}}``.

    A result is ``{"value": x}``, ``{"stats": object}`` (corpus metrics), or ``{"status": "n/a" | "failed",
    "reason": text}``.
    """
    run = RunDirectory(unit.run)
    results: dict[str, Any] = {}
    infos = [load_metric(m) for m in unit.metrics]
    try:
        sample = _sample(run, unit)
    except Exception as error:
        fault = {"status": "n/a" if isinstance(error, NotApplicable) else "failed", "reason": reason(error)}
        return {"key": unit.key, "metrics": {metric_id(i): fault for i in infos}}
    for info in infos:
        results[metric_id(info)] = measure(info, sample, unit.domain, run)
    return {"key": unit.key, "metrics": results}


def measure(info: MetricInfo, sample: dict[str, Any], domain: str, run: RunDirectory | None = None) -> dict[str, Any]:
    """One metric on one sample (`SAMPLE_FIELDS` by name): its result as it goes into the record."""
    try:
        reference: Clip = sample["reference"]
        cause = why_not(info, domain, reference.sample_rate, reference.seconds)
        if cause:
            raise NotApplicable(cause)
        lacking = [n for n in info.needs if sample.get(n) is None]
        if lacking == ["tokens"]:
            raise NotApplicable("the system emits no tokens")
        if lacking:
            raise NotApplicable(f"no {lacking[0]} here: another kind of task, or several candidates a clip")
        value = info.function(**{n: sample[n] for n in info.needs})
        if info.level == "corpus":
            if run is None:
                return {"stats": value}
            if info.evaluate is not None:  # each array on its own: a reference's is shared by all systems
                return {"stats": {k: run.put_arrays({k: np.asarray(v)}) for k, v in value.items()}}
            return {"stats": run.put_arrays({k: np.asarray(v) for k, v in value.items()})}
        value = float(value)
        if not math.isfinite(value):
            raise ContractError(f"the metric returned {value}")
        low, high = info.range
        if not low <= value <= high:
            raise ContractError(f"the metric returned {value:g}, outside its declared range {low:g}..{high:g}")
        return {"value": value}
    except NotApplicable as error:
        return {"status": "n/a", "reason": reason(error)}
    except Exception as error:
        return {"status": "failed", "reason": reason(error)}


def _sample(run: RunDirectory, unit: ScoreUnit) -> dict[str, Any]:
    record = unit.prediction
    if "rounds" in record:
        if unit.item.path is None and unit.item.make is None:
            raise NotApplicable(unit.item.error or "no audio of this clip here")
        candidate = record["rounds"][0]["candidate"] if len(record["rounds"]) == 1 else None
        return {"reference": _reference(unit.item, unit.prepare), "candidate": candidate, "labels": unit.item.labels}
    reference = _reference(unit.item, unit.prepare)
    if reference.content_hash != record["reference"]:
        raise EvalkitError("the clip is no longer the one that was predicted from: its audio has changed")
    tokens = run.get_tokens(record["tokens"]) if record["tokens"] else None
    cost = Cost(audio_s=reference.seconds, **record["cost"])
    return {
        "reference": reference,
        "estimate": _estimate(run, unit, reference, tokens),
        "tokens": tokens,
        "cost": cost,
        "labels": unit.item.labels,
    }


def _estimate(run: RunDirectory, unit: ScoreUnit, reference: Clip, tokens: Tokens | None) -> Clip:
    wanted = unit.prediction["output"]
    here = _outputs.pop(unit.key, None)
    if here is not None and here.content_hash == wanted:
        return here
    if unit.prediction["audio"]:
        kept = read_clip(run.object_path(unit.prediction["audio"]))
        if kept.content_hash == wanted:
            return kept
    samples = run.get_scratch(unit.key)
    if samples is not None:
        found = reference.with_samples(samples)
        if found.content_hash == wanted:
            return found
    seed = clip_seed(unit.seed, unit.item.id)
    again = decode_again(_system(unit.system).system, reference, tokens, seed)
    if again.content_hash != wanted:
        raise EvalkitError(
            "decoding again gave other audio than was recorded, so the system is not deterministic for its seed; "
            "run with --keep-audio to score what was decoded first"
        )
    return again


@functools.cache
def load_metric(name: str) -> MetricInfo:
    """A metric by registry name or as ``path.py:function``."""
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        function = getattr(registry.load_file(path), attribute, None)
        info = getattr(function, "info", None)
        if not isinstance(info, MetricInfo):
            raise EvalkitError(f"{name}: {path} has no function {attribute!r} decorated with @metric")
        return info
    return registry.get("metrics", name)


def metric_id(info: MetricInfo) -> str:
    """``name-v<version>-<hash of source, combine, what its declaration lets through, and which weights are there>``."""
    return _metric_id(info, tuple(present(info.weights).items()))


@functools.cache
def _metric_id(info: MetricInfo, weights: tuple[tuple[str, bool], ...]) -> str:
    combine = info.combine or info.evaluate
    parts: list[Any] = [
        source_hash(info.function),
        source_hash(combine) if combine else None,
        info.level,
        info.domains,
        info.sample_rates,
        info.min_seconds,
        info.max_seconds,
        list(map(str, info.range)),
        info.unit,
        versions(info.requires),
        info.min_sample_rate,
        weights,
        info.extra_identity() if info.extra_identity else None,
    ]
    return f"{info.name}-v{info.version}-{digest(parts)[:8]}"


# -- what a worker keeps between units ---------------------------------------------------------------------------------

_references: OrderedDict[tuple[Any, ...], Clip] = OrderedDict()
_outputs: OrderedDict[str, Clip] = OrderedDict()
"""Decoded clips that this very worker may be asked to score next; others come from the run's scratch."""
_systems: OrderedDict[str, Loaded] = OrderedDict()


def _reference(item: Item, prepare: Prepare) -> Clip:
    """The prepared clip; the last few are kept, with what metrics memoised on them."""
    if item.error:
        raise AudioError(item.error)
    path = os.path.abspath(item.path) if item.path is not None else ""  # the working folder may change meanwhile
    key = (item.id, path, item.make_key, item.start, item.seconds, prepare)
    if key not in _references:
        if item.make is not None:
            clip = item.make()
        else:
            assert item.path is not None
            clip = read_clip(item.path, start=item.start, seconds=item.seconds, id=item.id, cluster=item.cluster)
        _references[key] = prepare(clip)
        while len(_references) > REFERENCE_CLIPS_KEPT:
            _references.popitem(last=False)
    _references.move_to_end(key)
    return _references[key]


def _system(spec: str) -> Loaded:
    if spec not in _systems:
        while len(_systems) >= SYSTEMS_KEPT:
            _, old = _systems.popitem(last=False)
            if callable(getattr(old.system, "close", None)):
                old.system.close()
        _systems[spec] = load_system(spec)
    _systems.move_to_end(spec)
    return _systems[spec]


__all__ = ["Output", "PredictUnit", "ScoreUnit", "describe", "measure", "predict", "run_system", "score"]
