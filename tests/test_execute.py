"""Executors: order, faults, crashes, hangs; each costs one unit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from evalkit import execute
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.execute import Crashed, Pool, Serial, TimedOut

# Workers import these from a file of their own, as they import a user's.
UNITS = '''
import os, signal, sys, time

class Odd(Exception):
    """Pickles, but cannot be unpickled: a trap of exceptions with two arguments."""
    def __init__(self, a, b):
        super().__init__(f"odd {a}")

class Stubborn:
    def __reduce__(self):
        return (int, ("not a number",))

def double(x): return 2 * x
def pid(_): return os.getpid()
def ppid(_): return os.getppid()
def slow_double(x): time.sleep(x); return 2 * x
def hang(_): time.sleep(3600)
def busy(_):
    while True: pass
def raises(x): raise ValueError(x)
def raises_odd(x): raise Odd(x, 2)
def raises_timeout(x): raise TimeoutError(x)
def interrupts(_): raise KeyboardInterrupt
def not_applicable(x):
    from evalkit.errors import NotApplicable
    raise NotApplicable(x)
def leaves(code): sys.exit(code)
def dies(code): os._exit(code)
def kills(number): os.kill(os.getpid(), number)
def segfaults(_):
    import ctypes
    ctypes.string_at(0)
def unpicklable(_): return lambda: 1
def stubborn(_): return Stubborn()
def prints(x): print(x); return x
def ignores_sigint(_): return signal.getsignal(signal.SIGINT) == signal.SIG_IGN
def start_method(_):
    import multiprocessing
    return multiprocessing.get_start_method(allow_none=True), len(sys.modules)
def log(x):
    path, text = x
    with open(path, "a") as f: f.write(text + chr(10))
'''


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from evalkit.registry import load_file

    path = tmp_path_factory.mktemp("units") / "units.py"
    path.write_text(UNITS)
    return load_file(path)


@pytest.fixture(scope="module")
def pool(units: Any) -> Iterator[Pool]:
    made = Pool(1, (units.__file__,))
    yield made
    made.close(now=True)


@pytest.fixture(scope="module")
def pool2(units: Any) -> Iterator[Pool]:
    made = Pool(2, (units.__file__,))
    made.submit(units.pid, None, 60).result()
    yield made
    made.close(now=True)


def test_units_run_elsewhere_and_give_their_results(pool: Pool, units: Any) -> None:
    assert pool.submit(units.double, 21, 60).result(60) == 42
    assert pool.submit(units.double, "ab", None).result(60) == "abab"
    there = pool.submit(units.pid, None, 60).result(60)
    assert there != os.getpid()
    assert pool.submit(units.pid, None, 60).result(60) == there  # a worker is kept between units


def test_results_belong_to_their_units_in_whatever_order_they_end(pool2: Pool, units: Any) -> None:
    futures = [pool2.submit(units.slow_double, x, 60) for x in (0.5, 0.0, 0.1, 0.02, 0.3)]
    done, _ = wait(futures, timeout=60, return_when="FIRST_COMPLETED")
    assert futures[0] not in done
    assert [f.result(60) for f in futures] == [1.0, 0.0, 0.2, 0.04, 0.6]


def test_one_worker_takes_units_in_order(pool: Pool, units: Any, tmp_path: Path) -> None:
    futures = [pool.submit(units.log, (str(tmp_path / "log"), str(i)), 60) for i in range(20)]
    for f in futures:
        f.result(60)
    assert (tmp_path / "log").read_text().split() == [str(i) for i in range(20)]


@pytest.mark.parametrize(
    ("name", "argument", "error", "message"),
    [
        ("raises", "boom", ValueError, "^boom$"),
        ("not_applicable", "too short", NotApplicable, "^too short$"),
        ("raises_timeout", "socket", TimeoutError, "^socket$"),  # a unit's own TimeoutError is not ours
        ("raises_odd", 1, EvalkitError, "Odd: odd 1"),
        ("unpicklable", None, Exception, "pickle"),
        ("stubborn", None, EvalkitError, "cannot be unpickled"),
        ("interrupts", None, EvalkitError, "KeyboardInterrupt"),
        ("leaves", 3, Crashed, r"^ended the interpreter \(exit code 3\)$"),
        ("leaves", "bye", Crashed, r"^ended the interpreter \(exit code bye\)$"),
        ("dies", 7, Crashed, r"^ended the interpreter \(exit code 7\)$"),
        ("segfaults", None, Crashed, r"^crashed the interpreter \(SIGSEGV\)$"),
        ("kills", signal.SIGKILL, Crashed, r"^crashed the interpreter \(SIGKILL\)$"),
        ("kills", signal.SIGABRT, Crashed, r"^crashed the interpreter \(SIGABRT\)$"),
    ],
)
def test_a_fault_is_the_units_own(pool: Pool, units: Any, name: str, argument: Any, error: type, message: str) -> None:
    future = pool.submit(getattr(units, name), argument, 60)
    with pytest.raises(error, match=message):
        future.result(60)
    assert not isinstance(future.exception(), TimedOut)
    assert pool.submit(units.double, 1, 60).result(60) == 2


def test_a_worker_that_leaves_as_if_all_were_well_costs_its_timeout(pool: Pool, units: Any) -> None:
    """``os._exit(0)`` looks like a worker's ordinary end, so only the timeout tells."""
    future, next_one = pool.submit(units.dies, 0, 1.0), pool.submit(units.double, 1, 60)
    with pytest.raises(TimedOut):
        future.result(60)
    assert next_one.result(60) == 2


def test_a_unit_that_cannot_be_sent_is_an_error_of_its_own(pool: Pool, units: Any) -> None:
    with pytest.raises(Exception, match="pickle"):
        pool.submit(units.double, lambda: 1, 60).result(60)
    assert pool.submit(units.double, 1, 60).result(60) == 2


@pytest.mark.parametrize("name", ["hang", "busy"])
def test_a_hang_ends_at_its_timeout_and_its_worker_is_replaced(pool2: Pool, units: Any, name: str) -> None:
    before = pool2.submit(units.pid, None, 60).result(60)
    started = time.monotonic()
    hanging = pool2.submit(getattr(units, name), None, 1.0)
    beside = [pool2.submit(units.double, x, 60) for x in range(3)]
    assert [f.result(60) for f in beside] == [0, 2, 4]
    assert not hanging.done()
    with pytest.raises(TimedOut, match=r"^timed out after 1 s$"):
        hanging.result(60)
    assert 0.9 < time.monotonic() - started < 20
    assert pool2.submit(units.pid, None, 60).result(60) is not None
    assert before != os.getpid()


def test_waiting_for_a_worker_does_not_count(pool: Pool, units: Any) -> None:
    """The timeout is for the unit's own work, not for the queue before it."""
    futures = [pool.submit(units.slow_double, 0.4, 1.0) for _ in range(5)]
    assert [f.result(60) for f in futures] == [0.8] * 5


def test_a_dead_worker_is_replaced_by_another(pool: Pool, units: Any) -> None:
    first = pool.submit(units.pid, None, 60).result(60)
    with pytest.raises(Crashed):
        pool.submit(units.kills, signal.SIGKILL, 60).result(60)
    second = pool.submit(units.pid, None, 60).result(60)
    assert first != second
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_units_queued_behind_a_crash_still_run(pool2: Pool, units: Any) -> None:
    futures = [
        pool2.submit(units.dies, 9, 60),
        *(pool2.submit(units.double, x, 60) for x in range(6)),
        pool2.submit(units.segfaults, None, 60),
        *(pool2.submit(units.double, x, 60) for x in range(6)),
    ]
    results = [f.exception(60) or f.result() for f in futures]
    assert isinstance(results[0], Crashed) and isinstance(results[7], Crashed)
    assert results[1:7] == results[8:] == [0, 2, 4, 6, 8, 10]


def test_workers_leave_ctrl_c_to_the_parent(pool: Pool, units: Any) -> None:
    assert pool.submit(units.ignores_sigint, None, 60).result(60) is True


def test_closing_now_ends_what_runs(units: Any) -> None:
    pool = Pool(1, (units.__file__,))
    worker = pool.submit(units.pid, None, 60).result(60)
    pool.submit(units.hang, None, None)
    pool.submit(units.double, 1, None)
    time.sleep(0.3)
    started = time.monotonic()
    pool.close(now=True)
    assert time.monotonic() - started < 20
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_closing_finishes_what_was_given(units: Any) -> None:
    pool = Pool(1, (units.__file__,))
    futures = [pool.submit(units.slow_double, 0.1, 60) for _ in range(3)]
    pool.close()
    assert [f.result(0) for f in futures] == [0.2] * 3


def test_a_preloaded_file_that_is_broken_does_not_stop_the_workers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, source in (("raises.py", "raise RuntimeError('no weights')"), ("leaves.py", "import sys; sys.exit(4)")):
        (tmp_path / name).write_text(source)
    pool = Pool(1, (str(tmp_path / "raises.py"), str(tmp_path / "leaves.py"), str(tmp_path / "absent.py")))
    try:
        assert pool.submit(os.path.basename, "a/b", 60).result(60) == "b"
    finally:
        pool.close()
    said = capfd.readouterr().err
    assert "no weights" in said and "SystemExit: 4" in said and "no such file" in said


# -- Serial and make --------------------------------------------------------------------------------------------------


def test_serial_works_here_and_at_once(units: Any) -> None:
    serial = Serial()
    future = serial.submit(units.pid, None)
    assert future.done() and future.result() == os.getpid()
    with pytest.raises(ValueError, match=r"^boom$"):
        serial.submit(units.raises, "boom").result()
    with pytest.raises(Crashed, match=r"ended the interpreter \(exit code 3\)"):
        serial.submit(units.leaves, 3).result()
    assert serial.submit(units.unpicklable, None).result()() == 1  # nothing is pickled
    with pytest.raises(KeyboardInterrupt):  # Ctrl-C is the user's
        serial.submit(units.interrupts, None)
    serial.close()


def test_make_gives_workers_what_the_user_loaded(units: Any) -> None:
    assert isinstance(execute.make(0), Serial)
    made = execute.make(1)
    try:
        assert isinstance(made, Pool) and made.workers == 1
        assert (
            made.submit(units.double, 4, 60).result(60) == 8
        )  # the file was preloaded, or this could not be unpickled
    finally:
        made.close(now=True)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-11, "crashed the interpreter (SIGSEGV)"),
        (-9, "crashed the interpreter (SIGKILL)"),
        (-250, "ended the interpreter (exit code -250)"),
        (1, "ended the interpreter (exit code 1)"),
        (None, "ended the interpreter (exit code None)"),
    ],
)
def test_how_it_died(code: int | None, words: str) -> None:
    assert execute._how_it_died(code) == words
