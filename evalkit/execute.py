"""Executors: where units of work run.

An executor has ``submit(function, argument, timeout) -> Future`` and ``close(now)``. A unit that takes its process down
or runs past its timeout ends in `Crashed` or `TimedOut`; the executor goes on. The two here need nothing but this
machine; one on an existing engine needs the same two methods and a file system that it shares with the runner.
"""

from __future__ import annotations

import pickle
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from evalkit.errors import EvalkitError, UsageError


class Crashed(EvalkitError):
    """The worker process died."""


class TimedOut(EvalkitError):
    """The unit ran past its timeout and its worker was ended."""


class CannotStart(UsageError):
    """No worker process comes up at all: nothing can be run, and no system is to blame."""


class Executor(Protocol):
    """The contract; see the module's docstring."""

    workers: int

    def submit(self, function: Callable[[Any], Any], argument: Any, timeout: float | None) -> Future[Any]: ...

    def close(self, now: bool = False) -> None: ...


class Serial:
    """Runs each unit at once in this process: simplest to debug, but a crash or a hang takes the run with it."""

    workers = 1

    def submit(self, function: Callable[[Any], Any], argument: Any, timeout: float | None = None) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(argument))
        except SystemExit as error:
            future.set_exception(Crashed(_how_it_died(error.code)))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self, now: bool = False) -> None:
        pass


class Pool:
    """Worker processes (pebble): each unit is isolated, a dead or hung worker is replaced.

    Workers start fresh (spawn), so that neither locks nor threads of the parent are copied; the Python files in
    ``preload`` are imported first, so that what they define can be unpickled.
    """

    def __init__(self, workers: int = 1, preload: tuple[str, ...] = ()) -> None:
        import multiprocessing

        from pebble import ProcessPool

        self.workers = workers
        self._pool = ProcessPool(
            max_workers=workers,
            context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=[preload],
        )

    def submit(self, function: Callable[[Any], Any], argument: Any, timeout: float | None = None) -> Future[Any]:
        return _translated(self._pool.schedule(_in_worker, args=(function, argument), timeout=timeout), timeout)

    def close(self, now: bool = False) -> None:
        if now:
            self._pool.stop()
        else:
            self._pool.close()
        self._pool.join()


def _start_worker(preload: tuple[str, ...]) -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what to do with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from evalkit.registry import load_file

    for path in preload:
        try:
            load_file(path)
        except UsageError as error:  # what needs the file will fail with its own reason; the worker must start
            print(f"evalkit: worker: {error}", file=sys.stderr)


def _in_worker(function: Callable[[Any], Any], argument: Any) -> tuple[bool, bytes, str]:
    """Whether it returned, the pickled result or exception, and the exception in words.

    Pickled here, because an object that cannot be pickled or unpickled would take the whole pool down.
    """
    try:
        return True, pickle.dumps(function(argument)), ""
    except SystemExit as error:
        fault: BaseException = Crashed(_how_it_died(error.code))
    except BaseException as error:
        fault = error
    words = f"{type(fault).__name__}: {fault}"
    try:
        return False, pickle.dumps(fault), words
    except Exception:
        return False, b"", words


def _unpacked(returned: bool, pickled: bytes, words: str) -> Any:
    try:
        value = pickle.loads(pickled)
    except Exception as error:
        why = words or f"the worker's result cannot be unpickled: {type(error).__name__}: {error}"
        raise EvalkitError(why) from error
    if returned:
        return value
    raise value if isinstance(value, Exception) else EvalkitError(words)


def _translated(inner: Any, timeout: float | None) -> Future[Any]:
    """A future that ends in `Crashed` or `TimedOut` instead of pebble's own exceptions."""
    from pebble import ProcessExpired

    outer: Future[Any] = Future()

    def done(finished: Any) -> None:
        if finished.cancelled():
            outer.cancel()
            outer.set_running_or_notify_cancel()
            return
        error = finished.exception()
        if error is None:
            try:
                outer.set_result(_unpacked(*finished.result()))
            except Exception as fault:
                outer.set_exception(fault)
        elif isinstance(error, ProcessExpired):
            outer.set_exception(Crashed(_how_it_died(error.exitcode)))
        elif isinstance(error, BrokenProcessPool):
            outer.set_exception(
                CannotStart(
                    "worker processes cannot start. A script that calls evalkit must do so under "
                    "`if __name__ == '__main__':`, since workers import it; or use jobs=0"
                )
            )
        elif isinstance(error, TimeoutError):
            outer.set_exception(TimedOut(f"timed out after {timeout or 0:g} s"))
        else:
            outer.set_exception(error)

    inner.add_done_callback(done)
    return outer


def _how_it_died(exitcode: Any) -> str:
    if isinstance(exitcode, int) and exitcode < 0:
        try:
            return f"crashed the interpreter ({signal.Signals(-exitcode).name})"
        except ValueError:
            pass
    return f"ended the interpreter (exit code {exitcode})"


def make(jobs: int) -> Executor:
    """``jobs`` worker processes, or none at all (`Serial`) for 0. Users' files loaded by now are loaded there too."""
    from evalkit.registry import user_files

    return Serial() if jobs == 0 else Pool(jobs, user_files())
