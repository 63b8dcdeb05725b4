"""The caller's side of an isolated backend: `Backend` starts its worker, asks it, and starts it again when lost."""

from __future__ import annotations

import collections
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from evalkit.backends import protocol
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.registry import BackendInfo

STDERR_TAIL = 4_000
"""Bytes of a worker's stderr that are kept for messages."""


class BackendError(EvalkitError):
    """A request to an isolated backend failed: its worker died, hung, or answered nonsense, or the method raised."""


class Backend:
    """A worker process of an isolated backend, started with the first request.

    A request that fails costs itself: a worker that died, hung or answered nonsense is ended with all that it started,
    and the next request gets a new one. Requests of several threads wait for each other. The worker is ended by
    `close`, at the end of a ``with`` block, when the object is dropped, and when the process ends.

    Args:
        backend: registered name, or a declaration.
        timeout: seconds a request may take, where `request` says nothing else.
        start_timeout: seconds that start and handshake may take.
        python: interpreter to run it with, in the place of the installed environment's.

    Raises:
        NotApplicable: not installed; the message says how. UsageError: no backend of that name.
    """

    def __init__(
        self,
        backend: str | BackendInfo,
        *,
        timeout: float = 600.0,
        start_timeout: float = 120.0,
        python: str | os.PathLike[str] | None = None,
    ) -> None:
        from evalkit import registry
        from evalkit.backends.install import interpreter

        self.info: BackendInfo = registry.get("backends", backend) if isinstance(backend, str) else backend
        self.timeout = timeout
        self.start_timeout = start_timeout
        self._python = Path(python) if python else interpreter(self.info)
        self._worker: _Worker | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(self, method: str, /, *, timeout: float | None = None, **params: Any) -> Any:
        """Call a method of the worker.

        Args:
            timeout: seconds; None is the object's own.
            params: JSON values (no NaN) and numpy arrays of numbers, nested as you like. Paths of files must be
                absolute: the worker runs in a folder of its own.

        Returns:
            What the method returned, with numpy arrays where it returned arrays.

        Raises:
            NotApplicable: the method said so. BackendError: everything else; it names backend, method and reason.
        """
        with self._lock:
            return self._started().ask(method, params, self.timeout if timeout is None else timeout)

    def hello(self) -> dict[str, Any]:
        """What the worker said of itself: protocol, name, version, python, packages, methods."""
        with self._lock:
            return self._started().hello

    def close(self) -> None:
        """End the worker; a later request starts a new one."""
        with self._lock:
            if self._worker is not None:
                self._worker.end()
                self._worker = None

    def _started(self) -> _Worker:
        if self._worker is not None and self._worker.owner != os.getpid():
            self._worker = None  # a fork of the process that started it: not ours to ask or to end
        if self._worker is not None and self._worker.lost():
            self._worker.end()
            self._worker = None
        if self._worker is None:
            self._worker = _Worker(self.info, self._python, self.start_timeout)
            # Not a method of the worker: that would keep it alive.
            weakref.finalize(self._worker, _end, self._worker.process, self._worker.folder, self._worker.owner)
        return self._worker


class _Worker:
    """One process. After a failure of the process itself it is ended, and `lost` is true."""

    def __init__(self, info: BackendInfo, python: Path, timeout: float) -> None:
        self.info = info
        self.owner = os.getpid()
        self.number = 0
        self._pending = bytearray()
        self.folder = tempfile.mkdtemp(prefix="evalkit-backend-")
        try:
            self.process = subprocess.Popen(
                [
                    str(python),
                    protocol.__file__,
                    str(Path(info.worker).resolve()),
                    info.name,
                    info.version,
                    self.folder,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.folder,
                env=environment(),
                start_new_session=True,  # a group of its own, which is ended as a whole
            )
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise BackendError(f"backend {info.name}: {python} cannot be run ({error.strerror})") from error
        self.tail: collections.deque[bytes] = collections.deque()
        self._listener = threading.Thread(target=_listen, args=(self.process.stderr, self.tail), daemon=True)
        self._listener.start()
        try:
            self.hello = self.ask("hello", {"distributions": sorted(pins(info))}, timeout)
            self._check(self.hello)
        except BaseException:
            self.end()
            raise

    def _check(self, hello: Any) -> None:
        """The handshake: protocol, name, version and pinned packages are what is expected."""
        expected = {"protocol": protocol.PROTOCOL, "name": self.info.name, "version": self.info.version}
        found: dict[str, Any] = hello if isinstance(hello, dict) else {}
        wrong = [f"{k} {found.get(k)!r}, expected {v!r}" for k, v in expected.items() if found.get(k) != v]
        have = found.get("packages")
        for name, version in pins(self.info).items() if not wrong else ():
            got = have.get(name) if isinstance(have, dict) else None
            if got is None or got.partition("+")[0] != version.partition("+")[0]:
                wrong.append(f"{name} {got or 'absent'}, expected {version}")
        if wrong:
            raise BackendError(
                f"backend {self.info.name}: its worker is not the one expected ({'; '.join(wrong[:5])}): "
                f"`evalkit backend remove {self.info.name}` and install it again"
            )

    def ask(self, method: str, params: dict[str, Any], timeout: float) -> Any:
        self.number += 1
        folder = os.path.join(self.folder, str(self.number))
        os.mkdir(folder)
        try:
            try:
                message = {"id": self.number, "method": method, "folder": folder}
                message["params"] = protocol.pack(params, folder, "in")
                line = json.dumps(message, allow_nan=False).encode() + b"\n"
            except ValueError as error:
                raise BackendError(f"backend {self.info.name}: {method} cannot be asked: {error}") from error
            if len(line) > protocol.MAX_LINE:
                raise BackendError(
                    f"backend {self.info.name}: the request {method} has {len(line):,} bytes, at most "
                    f"{protocol.MAX_LINE:,} are sent: give long lists as arrays"
                )
            return self._result(method, self._exchange(line, method, timeout), folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _exchange(self, line: bytes, method: str, timeout: float) -> bytes:
        """Send a line and read one. A timer ends the process, so that neither writing nor reading lasts for ever."""
        assert self.process.stdin and self.process.stdout
        self._pending.clear()
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            _kill(self.process)

        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        reply = b""
        timer.start()
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
            reply = self._line(self.process.stdout.fileno())
        except OSError:  # the pipe is broken: the process is gone, and said below
            pass
        except BaseException:  # interrupted: what the worker does now is not known
            self.end()
            raise
        finally:
            timer.cancel()
            timer.join()
        if expired.is_set():
            raise self._lost(f"{method} took longer than {timeout:g} s and was ended")
        if not reply:
            raise self._lost(f"its worker {self._how_it_ended()} during {method}")
        if len(reply) > protocol.MAX_LINE:
            raise self._lost(f"nonsense in reply to {method}: a line longer than {protocol.MAX_LINE:,} bytes")
        return reply

    def _line(self, pipe: int) -> bytes:
        """The next line with its end, b"" where there is none; longer than it may be, it is cut off and has no end.

        Read without Python's buffer, so that `lost` sees what is left over.
        """
        searched = 0
        while (end := self._pending.find(b"\n", searched)) < 0:
            searched = len(self._pending)
            chunk = os.read(pipe, 1 << 20) if searched <= protocol.MAX_LINE else b""
            if not chunk:
                return bytes(self._pending) if searched > protocol.MAX_LINE else b""
            self._pending += chunk
        line = bytes(self._pending[: end + 1])
        del self._pending[: end + 1]
        return line

    def _result(self, method: str, line: bytes, folder: str) -> Any:
        try:
            reply = json.loads(line, parse_constant=_not_json)
            if not isinstance(reply, dict) or not ("result" in reply) ^ ("error" in reply):
                raise ValueError("neither a result nor an error")
            if reply.get("id") != self.number:
                raise ValueError(f"it answers request {reply.get('id')!r}, not {self.number}")
            error = reply.get("error")
            if "error" in reply and not (isinstance(error, dict) and isinstance(error.get("message"), str)):
                raise ValueError("an error without a message")
            value = None if error else protocol.unpack(reply["result"], folder)
        except (ValueError, OSError, EOFError, RecursionError) as wrong:
            shown = line[:200].decode(errors="backslashreplace").strip()
            raise self._lost(f"nonsense in reply to {method}: {wrong}: {shown!r}") from wrong
        if error:
            if error.get("not_applicable"):
                raise NotApplicable(error["message"])
            raise BackendError(f"backend {self.info.name}: {method} failed: {error.get('type')}: {error['message']}")
        try:
            _check_finite(value)
        except ValueError as wrong:
            raise BackendError(f"backend {self.info.name}: nonsense in reply to {method}: {wrong}") from wrong
        return value

    def _lost(self, why: str) -> BackendError:
        """End the process; the error that says why, with what it last wrote to stderr."""
        self.end()
        self._listener.join(1)  # what it wrote before it ended is still on its way
        said = b"".join(self.tail)[-STDERR_TAIL:].decode(errors="replace").strip().splitlines()
        text = "; its last words: " + " | ".join(said[-6:]) if said else ""
        return BackendError(f"backend {self.info.name}: {why}{text}")

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return "closed its output"
        _signal_group(self.process)  # its number has just been given back: what it started still carries it
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def lost(self) -> bool:
        """Whether it has died, or said something that nobody asked for, since the last request."""
        if self._pending or self.process.stdout is None or self.process.stdout.closed:
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return bool(selector.select(0))

    def end(self) -> None:
        _end(self.process, self.folder, self.owner)


def _end(process: subprocess.Popen[bytes], folder: str, owner: int) -> None:
    if owner != os.getpid():
        return
    _kill(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe:
                pipe.close()
        except OSError:  # what was not yet written has no reader any more
            pass
    shutil.rmtree(folder, ignore_errors=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started. Nothing where it has been waited for: its number may be another's by now."""
    if process.returncode is None:
        _signal_group(process)


def _signal_group(process: subprocess.Popen[bytes]) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):  # gone (on macOS a group of zombies may not be signalled)
        pass


def _listen(stream: Any, tail: collections.deque[bytes]) -> None:
    kept = 0
    with stream:
        while chunk := os.read(stream.fileno(), 65536):
            tail.append(chunk[-STDERR_TAIL:])
            kept += len(tail[-1])
            while kept - len(tail[0]) >= STDERR_TAIL:
                kept -= len(tail.popleft())


def _not_json(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _check_finite(value: Any) -> None:
    """JSON cannot hold NaN; arrays can, and so can numbers such as 1e999."""
    if isinstance(value, dict):
        for v in value.values():
            _check_finite(v)
    elif isinstance(value, list):
        for v in value:
            _check_finite(v)
    elif isinstance(value, float):
        if value - value != 0:
            raise ValueError(f"a number is {value}")
    elif hasattr(value, "dtype"):
        import numpy as np

        if value.dtype.kind not in "biuf":
            raise ValueError(f"an array of {value.dtype}, not of numbers")
        bad = int(value.size - np.isfinite(value).sum())
        if bad:
            raise ValueError(f"{bad} of {value.size} numbers of an array are NaN or infinite")


def environment() -> dict[str, str]:
    """The caller's environment variables without those that would lead an interpreter to other packages."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
    return kept | {"PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}


PIN = re.compile(r"(?:--no-deps )?([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?==([^;\s]+)")


def pins(info: BackendInfo) -> dict[str, str]:
    """Distribution and version of each package that is pinned by ``==``."""
    return {m[1]: m[2] for p in info.packages if (m := PIN.match(p))}


def check(backend: str | BackendInfo, *, python: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Start a backend, make the handshake, and let it check itself where it offers a method ``check``.

    Returns:
        ``hello``'s answer, with ``seconds`` (start and check) and ``check`` (what the method returned, or None).

    Raises:
        NotApplicable, BackendError: as `Backend.request`.
    """
    started = time.monotonic()
    with Backend(backend, python=python) as worker:
        found = dict(worker.hello())
        found["check"] = worker.request("check") if "check" in found["methods"] else None
    return found | {"seconds": round(time.monotonic() - started, 3)}
