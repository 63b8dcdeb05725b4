"""The worker's side of an isolated backend. Run by path in the backend's environment: standard library only (and numpy,
where that environment has it), and nothing of evalkit.

``python protocol.py WORKER.py NAME VERSION FOLDER`` reads requests on stdin, a JSON object a line, and answers each by
one line. The worker file is a module with ``METHODS``, a dictionary of functions that take keyword arguments and return
JSON values; numpy arrays may stand anywhere in both. A method raises an exception whose class is called
``NotApplicable`` for what must be reported as n/a with its reason; any other exception is a failure of that request,
and the worker lives on. ``hello`` is answered here.

    {"id": 7, "method": "frechet", "folder": "/tmp/x/7", "params": {"x": {"__npy__": "in-0.npy"}}}
    {"id": 7, "result": 1.25}          or          {"id": 7, "error": {"type": "ValueError", "message": "..."}}

Arrays travel as .npy files in the request's folder, not as text within the line: embeddings of a data set are many MB,
.npy keeps type, shape and every bit, and a line stays short enough to be shown when something is wrong.

File descriptor 1 becomes stderr before the worker file is imported, and 0 is emptied, so that nothing a library (or a
program that it starts) prints or reads can get between request and reply.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import queue
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

PROTOCOL = 1
"""Raised with every change of the messages; a client refuses a worker of another number."""

MAX_LINE = 16 << 20
"""Bytes of the longest request or reply."""

ARRAY = "__npy__"
GRACE = 5.0
"""Seconds a busy worker has, after its client is gone, before it ends itself."""

replies: BinaryIO


def main(arguments: list[str]) -> None:
    """Serve until stdin ends."""
    global replies
    path, name, version, folder = arguments
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    sys.modules["evalkit"] = None  # type: ignore[assignment]  # an import of it fails, also where it is installed
    methods = _load(path)
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read, args=(requests, lines, folder), daemon=True).start()
    while (line := lines.get()) is not None:
        replies.write(_answer(line, methods, name, version))
        replies.flush()
    shutil.rmtree(folder, ignore_errors=True)


def _load(path: str) -> dict[str, Callable[..., Any]]:
    spec = importlib.util.spec_from_file_location("backend_worker", path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    sys.modules["backend_worker"] = module
    spec.loader.exec_module(module)
    return dict(module.METHODS)


def _read(requests: BinaryIO, lines: queue.Queue[bytes | None], folder: str) -> None:
    """Reads in a thread of its own, so that a busy worker notices that its client is gone.

    A client that was killed cannot delete the folder of the arrays, so it is deleted here.
    """
    while line := requests.readline(MAX_LINE + 1):
        lines.put(line)
    lines.put(None)
    threading.Event().wait(GRACE)
    shutil.rmtree(folder, ignore_errors=True)
    if os.name == "posix" and os.getpgrp() == os.getpid():  # what the worker has started goes as well
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _answer(line: bytes, methods: dict[str, Callable[..., Any]], name: str, version: str) -> bytes:
    number: Any = None
    try:
        request = json.loads(line, parse_constant=_not_json)
        number, method, folder = request["id"], request["method"], request.get("folder", "")
        if method == "hello":
            value: Any = _hello(name, version, methods, **request["params"])
        elif method not in methods:
            raise ValueError(f"no method {method!r}; there are {', '.join(sorted(methods))}")
        else:
            value = methods[method](**unpack(request["params"], folder))
        reply = {"id": number, "result": pack(value, folder, "out")}
        encoded = json.dumps(reply, allow_nan=False, ensure_ascii=True).encode() + b"\n"
        if len(encoded) > MAX_LINE:
            raise ValueError(f"the result of {method} has {len(encoded):,} bytes, at most {MAX_LINE:,} are sent")
        return encoded
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
        kind = type(error).__name__
        known = {"type": kind, "message": str(error)[:20_000], "not_applicable": kind == "NotApplicable"}
        return json.dumps({"id": number, "error": known}).encode() + b"\n"


def _hello(name: str, version: str, methods: Iterable[str], distributions: list[str]) -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for distribution in distributions:
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[distribution] = None
    return {
        "protocol": PROTOCOL,
        "name": name,
        "version": version,
        "python": platform.python_version(),
        "packages": versions,
        "methods": sorted(methods),
    }


def _not_json(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


# -- arrays; the client uses these two as well -------------------------------------------------------------------------


def pack(value: Any, folder: str, prefix: str) -> Any:
    """A JSON value in which every numpy array is saved to ``folder/PREFIX-N.npy`` and replaced by its name.

    Raises:
        ValueError: NaN or infinite numbers, an array of objects, or something that is not JSON.
    """
    count = 0

    def walk(x: Any, where: str) -> Any:
        nonlocal count
        if type(x).__module__ == "numpy":
            if not hasattr(x, "ndim"):
                raise ValueError(f"{where} is a {type(x).__name__}, not an array or a number")
            if x.ndim == 0:
                return walk(x.item(), where)
            import numpy as np

            if x.dtype.hasobject or x.dtype.kind not in "biuf":
                raise ValueError(f"{where} is an array of {x.dtype}, not of numbers")
            if x.dtype.kind == "f" and not np.isfinite(x).all():
                bad = int(x.size - np.isfinite(x).sum())
                raise ValueError(f"{where}: {bad} of {x.size} numbers are NaN or infinite")
            file = f"{prefix}-{count}.npy"
            count += 1
            np.save(os.path.join(folder, file), np.ascontiguousarray(x), allow_pickle=False)
            return {ARRAY: file}
        if isinstance(x, dict):
            if ARRAY in x or not all(isinstance(k, str) for k in x):
                raise ValueError(f"{where}: keys of objects are strings other than {ARRAY!r}")
            return {k: walk(v, f"{where}.{k}") for k, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [walk(v, f"{where}[{i}]") for i, v in enumerate(x)]
        if isinstance(x, float) and (x != x or x in (float("inf"), float("-inf"))):
            raise ValueError(f"{where} is {x}")
        if x is None or isinstance(x, (str, bool, int, float)):
            return x
        raise ValueError(f"{where} is a {type(x).__name__}, which is no JSON value")

    return walk(value, "result" if prefix == "out" else "params")


def unpack(value: Any, folder: str) -> Any:
    """The inverse of `pack`. A name that is not a plain .npy file of ``folder`` is refused (ValueError)."""
    if isinstance(value, dict):
        if ARRAY in value:
            import numpy as np

            file = value[ARRAY]
            path = os.path.join(folder, str(file))
            if len(value) > 1 or os.path.basename(str(file)) != file or not file.endswith(".npy"):
                raise ValueError(f"{value!r} names no array")
            if os.path.islink(path) or not os.path.isfile(path):
                raise ValueError(f"the array {file} is not in the request's folder")
            return np.load(path, allow_pickle=False)
        return {k: unpack(v, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [unpack(v, folder) for v in value]
    return value


if __name__ == "__main__":
    main(sys.argv[1:])
