"""Isolated backends: workers that misbehave, installation from a folder of wheels, and frechet-audio-distance."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit import registry
from evalkit import weights as weights_module
from evalkit.backends import client as client_module
from evalkit.backends import install as install_module
from evalkit.backends import protocol
from evalkit.backends.client import Backend, BackendError, check
from evalkit.errors import NotApplicable, UsageError
from evalkit.registry import BackendInfo

WORKER = """
import __main__, os, signal, subprocess, sys, threading, time
import numpy as np

class NotApplicable(Exception):
    pass

def echo(**values):
    return values

def describe(x):
    return {"dtype": str(x.dtype), "shape": list(x.shape), "sum": float(x.sum())}

def pid():
    return os.getpid()

def hang(seconds=60.0):
    time.sleep(seconds)

def spin():
    while True:
        pass

def leave(code):
    sys.stderr.write("first word\\nthe last thing it said\\n")
    sys.stderr.flush()
    os._exit(code)

def kill(number):
    os.kill(os.getpid(), number)

def system_exit():
    sys.exit(3)

def child():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid

def child_then_leave(path):
    with open(path, "w") as f:
        f.write(str(child()))
    os._exit(1)

def raw(text, repeat=1):
    __main__.replies.write(text.encode() * repeat)
    __main__.replies.flush()

def raw_then_nothing(text, repeat=1):
    raw(text, repeat)
    time.sleep(60)

def long(characters):
    return "x" * characters

def pollute():
    print("printed")
    sys.stdout.flush()
    sys.stdout.write('{"id": 99, "result": 1}\\n')
    os.write(1, b"written to fd 1\\n")
    os.system("echo from a child")
    return [sys.stdin.read(), subprocess.run(["cat"], capture_output=True, text=True).stdout]

def number(kind):
    return {"nan": float("nan"), "inf": float("inf"), "array": np.array([1.0, np.nan]), "object": object(),
            "objects": np.array([object()]), "complex": np.array([1j]), "set": {1}, "text": np.array(["a"]),
            "key": {1: 2}, "float32": np.float32(0.5), "int64": np.int64(7),
            "empty": np.zeros((0, 4), np.float32)}[kind]

def bad():
    raise ValueError("the parameter is wrong")

def not_here():
    raise NotApplicable("no weights: put them there")

def imports(name):
    __import__(name)
    return "imported"

def variables():
    return [sorted(k for k in os.environ if k.startswith("PYTHON")), os.getcwd(), sys.path[:1]]

METHODS = {k: v for k, v in list(globals().items()) if callable(v) and v is not NotApplicable}
"""


@pytest.fixture
def declare(tmp_path: Path) -> Callable[..., BackendInfo]:
    """A declaration of a backend whose worker is given as text; it runs in this interpreter."""

    def made(text: str = WORKER, **fields: Any) -> BackendInfo:
        path = tmp_path / "worker.py"
        path.write_text(textwrap.dedent(text))
        return BackendInfo(
            **{"name": "fake", "worker": str(path), "version": "1", "packages": (), "summary": "fake", **fields}
        )

    return made


@pytest.fixture
def worker(declare: Callable[..., BackendInfo]) -> Iterator[Backend]:
    with Backend(declare(), timeout=20) as backend:
        yield backend


def gone(number: int, seconds: float = 10) -> bool:
    """Whether a process ends within a time; one that nobody has waited for yet counts as ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


# -- what goes well ---------------------------------------------------------------------------------------------------


def test_values_and_arrays_come_back_as_they_were_sent(worker: Backend) -> None:
    values = {
        "text": 'Füße 音 🎧 \u2028\x00 \\ "quoted"\n',
        "numbers": [0, -1, 1 << 60, 0.1, 1e-300, True, None],
        "nested": {"a": {"b": []}, "": {}},
    }
    assert worker.request("echo", **values) == values
    for dtype in ("float32", "float64", "int16", "uint8", "bool", ">f4"):
        x = np.arange(12).reshape(3, 4).astype(dtype)
        got = worker.request("echo", one=x, more=[x[:, ::2], x.T])
        np.testing.assert_array_equal(got["one"], x)
        assert got["one"].dtype == x.dtype
        np.testing.assert_array_equal(got["more"][1], x.T)
    assert worker.request("describe", x=np.ones((2, 3), np.float32)) == {"dtype": "float32", "shape": [2, 3], "sum": 6}
    assert worker.request("number", kind="float32") == 0.5
    assert worker.request("number", kind="int64") == 7
    assert worker.request("number", kind="empty").shape == (0, 4)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_packing_is_undone_by_unpacking(value: Any) -> None:
    packed = protocol.pack(value, "", "in")
    assert protocol.unpack(json.loads(json.dumps(packed, allow_nan=False)), "") == value


def test_arrays_leave_no_files_behind(worker: Backend) -> None:
    worker.request("echo", x=np.ones(1000))
    _, folder, path = worker.request("variables")
    assert list(Path(folder).iterdir()) == []
    assert path != [str(Path(protocol.__file__).parent)]
    worker.close()
    assert not Path(folder).exists()


def test_one_worker_answers_many_requests_and_threads(worker: Backend) -> None:
    numbers = {worker.request("pid") for _ in range(5)}
    assert len(numbers) == 1
    found: list[Any] = []
    threads = [threading.Thread(target=lambda i=i: found.append(worker.request("echo", i=i)["i"])) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(found) == list(range(8))


def test_what_libraries_print_does_not_reach_the_protocol(worker: Backend) -> None:
    assert worker.request("pollute") == ["", ""]  # and nothing it starts reads the requests
    assert worker.request("echo", a=1) == {"a": 1}


def test_the_worker_sees_neither_evalkit_nor_python_variables(
    worker: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hidden_module.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("evalkit", "evalkit.audio", "hidden_module", "client"):
        with pytest.raises(BackendError, match=r"imports failed: (ModuleNotFound|Import)Error"):
            worker.request("imports", name=name)
    variables = worker.request("variables")[0]
    assert variables == ["PYTHONHASHSEED", "PYTHONNOUSERSITE", "PYTHONSAFEPATH", "PYTHONUTF8"]


def test_check_reports_versions_and_runs_the_workers_own(declare: Callable[..., BackendInfo]) -> None:
    found = check(declare("def check():\n    return {'fine': True}\nMETHODS = {'check': check}"))
    assert found["check"] == {"fine": True} and found["methods"] == ["check"] and found["protocol"] == 1
    assert found["seconds"] > 0
    assert check(declare("METHODS = {}"))["check"] is None


# -- what goes wrong within a request ---------------------------------------------------------------------------------


def test_an_exception_costs_neither_the_worker_nor_its_reason(worker: Backend) -> None:
    number = worker.request("pid")
    with pytest.raises(BackendError, match="backend fake: bad failed: ValueError: the parameter is wrong"):
        worker.request("bad")
    with pytest.raises(NotApplicable, match=r"^no weights: put them there$"):
        worker.request("not_here")
    with pytest.raises(BackendError, match="no method 'absent'; there are "):
        worker.request("absent")
    with pytest.raises(BackendError, match=r"unexpected keyword argument 'y'"):
        worker.request("describe", y=1)
    assert worker.request("pid") == number


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("nan", "result is nan"),
        ("inf", "result is inf"),
        ("array", "1 of 2 numbers are NaN or infinite"),
        ("object", "which is no JSON value"),
        ("set", "result is a set"),
        ("objects", "array of object"),
        ("complex", "array of complex128"),
        ("text", "array of <U1"),
        ("key", "keys of objects are strings"),
    ],
)
def test_a_result_that_is_no_json_is_an_error_of_that_request(worker: Backend, kind: str, why: str) -> None:
    number = worker.request("pid")
    with pytest.raises(BackendError, match=why):
        worker.request("number", kind=kind)
    assert worker.request("pid") == number


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("-inf"), np.array([np.inf]), np.array([object()]), object(), {"__npy__": "x"}, {1: 2}, b"x"],
    ids=["nan", "-inf", "array of inf", "array of objects", "object", "our own key", "number as key", "bytes"],
)
def test_a_request_that_is_no_json_is_not_sent(worker: Backend, value: Any) -> None:
    with pytest.raises(BackendError, match=r"backend fake: echo cannot be asked: params\.x"):
        worker.request("echo", x=value)
    assert worker.request("echo", x=1) == {"x": 1}


def test_messages_have_a_greatest_length(worker: Backend) -> None:
    number = worker.request("pid")
    with pytest.raises(BackendError, match=r"the request echo has [\d,]+ bytes, at most 16,777,216"):
        worker.request("echo", x="x" * protocol.MAX_LINE)
    with pytest.raises(BackendError, match=r"the result of long has [\d,]+ bytes, at most 16,777,216"):
        worker.request("long", characters=protocol.MAX_LINE)
    assert len(worker.request("long", characters=5_000_000)) == 5_000_000
    assert worker.request("pid") == number


# -- what costs the worker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hang", "spin"])
def test_a_hang_is_ended_and_the_next_request_works(worker: Backend, method: str) -> None:
    number = worker.request("pid")
    started = time.monotonic()
    with pytest.raises(BackendError, match=f"backend fake: {method} took longer than 0.5 s and was ended"):
        worker.request(method, timeout=0.5)
    assert time.monotonic() - started < 5
    assert gone(number)
    assert worker.request("pid") != number


@pytest.mark.parametrize(
    ("method", "params", "why"),
    [
        (
            "leave",
            {"code": 7},
            r"its worker ended with exit code 7 during leave; its last words: .*the last thing it said",
        ),
        ("kill", {"number": int(signal.SIGKILL)}, r"its worker was killed by SIGKILL during kill"),
        ("kill", {"number": int(signal.SIGSEGV)}, r"its worker was killed by SIGSEGV during kill"),
        ("system_exit", {}, r"its worker ended with exit code 3 during system_exit"),
    ],
)
def test_a_death_costs_one_request(worker: Backend, method: str, params: dict[str, Any], why: str) -> None:
    number = worker.request("pid")
    with pytest.raises(BackendError, match=why):
        worker.request(method, **params)
    assert gone(number)
    assert worker.request("echo", a=1) == {"a": 1}


def test_a_death_between_requests_costs_none(worker: Backend) -> None:
    number = worker.request("pid")
    os.kill(number, signal.SIGKILL)
    assert gone(number)
    time.sleep(0.3)  # its first thread is a zombie before the other has let go of the pipe
    assert worker.request("pid") != number


@pytest.mark.parametrize(
    ("text", "repeat", "why"),
    [
        ("garbage\n", 1, "nonsense in reply to raw: .*'garbage'"),
        ("\n", 1, "nonsense in reply to raw"),
        ("[1, 2]\n", 1, "neither a result nor an error"),
        ('{"id": 3}\n', 1, "neither a result nor an error"),
        ('{"id": 3, "result": 1, "error": {"message": ""}}\n', 1, "neither a result nor an error"),
        ('{"id": 3, "error": "text"}\n', 1, "an error without a message"),
        ('{"id": 3, "error": null}\n', 1, "an error without a message"),
        ('{"id": 99, "result": 1}\n', 1, "it answers request 99, not 3"),
        ('{"id": 3, "result": NaN}\n', 1, "NaN is not JSON"),
        ('{"id": 3, "result": -Infinity}\n', 1, "-Infinity is not JSON"),
        ('{"id": 3, "result": {"__npy__": "../../secret.npy"}}\n', 1, "names no array"),
        ('{"id": 3, "result": {"__npy__": "absent.npy"}}\n', 1, "is not in the request's folder"),
        ('{"id": 3, "result": {"__npy__": 7}}\n', 1, "names no array"),
        ("\xff\xfe\n", 1, "nonsense in reply to raw"),
        ("[" * 100_000 + "\n", 1, "nonsense in reply to raw"),
    ],
)
def test_nonsense_is_one_clear_error_and_the_next_request_works(
    worker: Backend, text: str, repeat: int, why: str
) -> None:
    number = worker.request("pid")
    with pytest.raises(BackendError, match=why) as caught:
        worker.request("raw", text=text, repeat=repeat)
    assert len(str(caught.value)) < 1500
    assert gone(number)
    assert worker.request("echo", a=1) == {"a": 1}


def test_a_number_too_large_for_a_float_is_refused(worker: Backend) -> None:
    with pytest.raises(BackendError, match="a number is inf"):
        worker.request("raw", text='{"id": 2, "result": [1e999]}\n')


def test_a_line_without_end_is_cut_off(worker: Backend) -> None:
    with pytest.raises(BackendError, match="a line longer than 16,777,216 bytes"):
        worker.request("raw_then_nothing", text="x" * 1_000_000, repeat=20)
    with pytest.raises(BackendError, match=r"raw_then_nothing took longer than 0\.5 s"):
        worker.request("raw_then_nothing", text='{"id": 1, ', timeout=0.5)
    assert worker.request("echo", a=1) == {"a": 1}


def test_a_reply_that_nobody_asked_for_is_not_taken_for_the_next_one(worker: Backend) -> None:
    assert worker.request("raw", text='{"id": 2, "result": "mine"}\n') == "mine"
    time.sleep(0.2)  # and then the protocol's own follows
    assert worker.request("echo", a=2) == {"a": 2}


def test_what_the_worker_started_ends_with_it(worker: Backend, tmp_path: Path) -> None:
    child = worker.request("child")
    with pytest.raises(BackendError, match="took longer"):
        worker.request("hang", timeout=0.5)
    assert gone(child)
    with pytest.raises(BackendError, match="exit code 1"):
        worker.request("child_then_leave", path=str(tmp_path / "pid"))
    assert gone(int((tmp_path / "pid").read_text()))


def test_an_interrupt_ends_the_worker(worker: Backend) -> None:
    number = worker.request("pid")
    timer = threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        worker.request("hang")
    assert gone(number)
    assert worker.request("echo", a=1) == {"a": 1}


# -- start and end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise RuntimeError('no such library')", "exit code 1 during hello; its last words: .*no such library"),
        ("x = 1", "exit code 1 during hello; .*METHODS"),
        ("import os; os._exit(0)", "exit code 0 during hello"),
        ("def (", "SyntaxError"),
        ("import time; time.sleep(60)", "hello took longer than 1 s"),
    ],
)
def test_a_worker_that_does_not_start_says_why(declare: Callable[..., BackendInfo], text: str, why: str) -> None:
    backend = Backend(declare(text), start_timeout=1 if "sleep" in text else 20)
    for _ in range(2):
        with pytest.raises(BackendError, match=why):
            backend.request("echo")


def test_a_worker_of_another_version_is_refused(
    declare: Callable[..., BackendInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = declare(
        """
        import __main__
        __main__.PROTOCOL = 2
        METHODS = {"echo": lambda: 1}
        """
    )
    with pytest.raises(
        BackendError, match=r"not the one expected \(protocol 2, expected 1\): `evalkit backend remove fake`"
    ):
        Backend(info).request("echo")
    info = declare("import __main__; __main__._hello = lambda *a, **k: [1]\nMETHODS = {}")
    with pytest.raises(BackendError, match="protocol None, expected 1"):
        Backend(info).request("echo")


@pytest.mark.parametrize(
    ("packages", "why"),
    [
        (("numpy==0.1",), rf"numpy {np.__version__}, expected 0.1"),
        (("no-such-thing==1.0",), "no-such-thing absent, expected 1.0"),
        ((f"numpy=={np.__version__}", "--no-deps click==0.0.1"), r"click [\d.]+, expected 0.0.1"),
    ],
)
def test_packages_of_other_versions_are_refused(
    declare: Callable[..., BackendInfo], packages: tuple[str, ...], why: str
) -> None:
    with pytest.raises(BackendError, match=why):
        Backend(declare(packages=packages), python=sys.executable).request("echo")
    good = declare(packages=(f"numpy=={np.__version__}", "click>=8"))
    with Backend(good, python=sys.executable) as backend:
        assert backend.request("echo", a=1) == {"a": 1}


def test_the_worker_ends_with_its_object_and_with_its_process(declare: Callable[..., BackendInfo]) -> None:
    info = declare()
    backend = Backend(info)
    number = backend.request("pid")
    del backend
    gc.collect()
    assert gone(number)
    for ending in ("", "os._exit(0)", "os.kill(os.getpid(), 9)"):
        code = f"""
import os
from evalkit.backends.client import Backend
from evalkit.registry import BackendInfo
backend = Backend(BackendInfo(name="fake", worker={info.worker!r}, version="1", packages=(), summary=""))
print(backend.request("pid"), backend.request("variables")[1], flush=True)
{ending}
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        number, folder = done.stdout.split()
        assert gone(int(number)) and not Path(folder).exists(), (ending, done.stderr)


def test_a_busy_worker_ends_some_time_after_its_client_was_killed(declare: Callable[..., BackendInfo]) -> None:
    code = f"""
import os, threading, time
from evalkit.backends.client import Backend
from evalkit.registry import BackendInfo
backend = Backend(BackendInfo(name="fake", worker={declare().worker!r}, version="1", packages=(), summary=""))
print(backend.request("pid"), backend.request("variables")[1], flush=True)
threading.Timer(0.5, os.kill, (os.getpid(), 9)).start()
backend.request("hang")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    number, folder = done.stdout.split()
    assert gone(int(number), protocol.GRACE + 5) and not Path(folder).exists()


def test_a_fork_gets_a_worker_of_its_own(worker: Backend) -> None:
    number = worker.request("pid")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            os.write(write, str(worker.request("pid")).encode())
            worker.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(read, 100)) != number
    assert worker.request("pid") == number


# -- installation -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "backends"


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with wheels of two small packages: tinything 1.0, and needy 1.0, which needs what is not there."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, needs in (("tinything", ""), ("needy", "Requires-Dist: no-such-thing-anywhere\n")):
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as z:
            info = f"{name}-1.0.dist-info"
            z.writestr(f"{name}.py", f"def answer():\n    return 'from {name}'\n")
            z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
            z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            z.writestr(f"{info}/RECORD", "")
    return folder


TINY = """
import sys
import tinything

def answer():
    return [tinything.answer(), sys.prefix]

METHODS = {"answer": answer}
"""


def test_install_ask_and_remove(
    declare: Callable[..., BackendInfo], cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line, and asked by the client."""
    from click.testing import CliRunner

    from evalkit.cli import cli

    info = declare(TINY, name="tiny", packages=("tinything==1.0", "--no-deps needy==1.0"), summary="a tiny thing")
    registry.names("backends")
    monkeypatch.setitem(registry._registries["backends"].entries, "tiny", info)

    def run(*words: str) -> str:
        done = CliRunner().invoke(cli, ["backend", *words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    def state() -> str:
        return {b["name"]: b["state"] for b in json.loads(run("list", "--json"))}["tiny"]

    assert state() == "not installed" and "a tiny thing" in run("list")
    assert run("list", "--pins", "tiny") == "tinything==1.0\nneedy==1.0\n"
    with pytest.raises(UsageError, match="evalkit backend install tiny"):
        run("check", "tiny")
    with pytest.raises(UsageError, match="did you mean tiny"):
        run("install", "tinny")
    with pytest.raises(NotApplicable, match="backend tiny is not installed: `evalkit backend install tiny`"):
        Backend("tiny")
    assert run("install", "tiny", "--wheels", str(wheels)) == f"tiny 1: ready in {cache / 'tiny-1'}\n"
    assert state() == "installed"
    with Backend("tiny") as backend:
        answer, prefix = backend.request("answer")
        assert answer == "from tinything" and Path(prefix).samefile(cache / "tiny-1")
        assert backend.hello()["packages"] == {"tinything": "1.0", "needy": "1.0"}
    told: list[str] = []
    assert install_module.install(info, wheels=wheels, tell=told.append) == cache / "tiny-1" and told == []
    assert run("check", "tiny").startswith("tiny 1: ok in ")
    assert json.loads(run("check", "tiny", "--json"))["methods"] == ["answer"]
    other = declare(TINY, name="tiny", packages=("tinything==1.1",))  # the same version, other pins
    assert not install_module.installed(other)
    assert run("remove", "tiny") == "tiny: removed\n"
    assert run("remove", "tiny") == "tiny: was not installed\n"
    assert state() == "not installed" and not (cache / "tiny-1").exists()


@pytest.mark.parametrize(
    ("packages", "why"),
    [
        (("tinything==1.0", "absentthing==2.0"), r"absentthing==2.0 could not be installed; pip: .*absentthing"),
        (
            ("--no-deps tinything==1.0", "needy==1.0"),
            r"no-such-thing-anywhere could not be installed; pip: .*no-such-thing-anywhere",
        ),
    ],
)
def test_a_failed_installation_names_the_package_and_leaves_nothing(
    declare: Callable[..., BackendInfo], cache: Path, wheels: Path, packages: tuple[str, ...], why: str
) -> None:
    info = declare(TINY, packages=packages)
    with pytest.raises(BackendError, match=why) as caught:
        install_module.install(info, wheels=wheels)
    assert "://" not in str(caught.value)
    assert not (cache / "fake-1").exists()
    assert not install_module.installed(info)


def test_an_environment_whose_worker_does_not_start_is_not_kept(
    declare: Callable[..., BackendInfo], cache: Path, wheels: Path
) -> None:
    info = declare("import needy, numpy\nMETHODS = {}", packages=("tinything==1.0",))
    with pytest.raises(BackendError, match="No module named 'needy'"):
        install_module.install(info, wheels=wheels)
    assert not (cache / "fake-1").exists()


def test_two_installations_at_once_are_one_and_replace_what_a_killed_one_left(
    declare: Callable[..., BackendInfo], cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = declare(TINY, packages=("tinything==1.0",))
    (cache / "fake-1" / "bin").mkdir(parents=True)
    (cache / "fake-1" / "bin" / "python").write_text("half written")
    assert not install_module.installed(info)
    built: list[int] = []
    real = install_module._build

    def counted(*arguments: Any) -> None:
        built.append(1)
        real(*arguments)

    monkeypatch.setattr(install_module, "_build", counted)
    threads = [threading.Thread(target=install_module.install, args=(info,), kwargs={"wheels": wheels}) for _ in "ab"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert built == [1] and install_module.installed(info)
    assert check(info)["packages"] == {"tinything": "1.0"}


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".", "..", "-x", "a b", "a\n", "/abs"])
def test_names_cannot_leave_the_folder(declare: Callable[..., BackendInfo], cache: Path, name: str) -> None:
    for fields in ({"name": name}, {"version": name}):
        info = declare(packages=("tinything==1.0",), **fields)
        for call in (install_module.install, install_module.remove, install_module.installed):
            with pytest.raises(UsageError, match="name and version are letters"):
                call(info)


def test_interpreters_and_folders_that_will_not_do(
    declare: Callable[..., BackendInfo], cache: Path, tmp_path: Path
) -> None:
    old = declare(packages=("tinything==1.0",), python=">=3.5,<3.6")
    with pytest.raises(UsageError, match=r"is for Python >=3.5,<3.6, .* is 3\.\d+: give another by --python"):
        install_module.install(old)
    info = declare(packages=("tinything==1.0",))
    with pytest.raises(UsageError, match="cannot be run"):
        install_module.install(info, python=str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="is no Python interpreter"):
        install_module.install(info, python="true")
    with pytest.raises(UsageError, match="no such folder of wheels"):
        install_module.install(info, wheels=tmp_path / "absent")
    with pytest.raises(UsageError, match="is no requirement"):
        install_module.groups(("--index-url=x",))


def test_versions_of_python_are_compared_as_numbers() -> None:
    assert install_module.allows(">=3.9,<3.13", (3, 12)) and not install_module.allows(">=3.9,<3.13", (3, 13))
    assert not install_module.allows(">=3.11", (3, 9))
    assert install_module.allows("", (3, 11))
    with pytest.raises(UsageError, match="write it with >= and <"):
        install_module.allows("~=3.11", (3, 11))


def test_addresses_are_kept_out_of_messages() -> None:
    shown = install_module._last(["Looking in indexes: https://user:secret@host/simple, file:///x", "", "ERROR: no"])
    assert "secret" not in shown and shown.endswith("ERROR: no")


# -- frechet-audio-distance -------------------------------------------------------------------------------------------


def test_every_package_of_the_shipped_backend_is_pinned() -> None:
    info = registry.get("backends", "frechet-audio-distance")
    assert len(client_module.pins(info)) == len(info.packages) == len(set(info.packages))
    assert client_module.pins(info)["frechet_audio_distance"] == "0.3.4"
    assert install_module.allows(info.python, (3, 11)) and not install_module.allows(info.python, (3, 13))
    assert Path(info.worker).is_file()


def test_embedders_without_weights_or_backend_are_not_applicable(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, file in (("vggish", "checkpoints/vggish-10086976.pth"), ("pann", "Cnn14_mAP=0.431.pth")):
        info = registry.get("embedders", name)
        monkeypatch.delenv("EVALKIT_WEIGHTS", raising=False)
        with pytest.raises(NotApplicable, match=f"weights frechet_audio_distance/{file} absent"):
            info.load()
        path = tmp_path / "weights" / "frechet_audio_distance" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path / "weights"))
        with pytest.raises(NotApplicable, match="evalkit backend install frechet-audio-distance"):
            info.load()


@pytest.fixture(scope="session")
def reference_backend() -> Iterator[Backend]:
    info = registry.get("backends", "frechet-audio-distance")
    if not install_module.installed(info):
        pytest.skip("`evalkit backend install frechet-audio-distance` has not been run (6 GB)")
    with Backend(info) as backend:
        yield backend


def ill_conditioned(rng: np.random.Generator, n: int, d: int, smallest: float) -> np.ndarray:
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return rng.standard_normal((n, d)) * np.geomspace(1, smallest, d) @ basis + rng.standard_normal(d)


@pytest.mark.slow
def test_our_distance_is_that_of_frechet_audio_distance(reference_backend: Backend) -> None:
    from evalkit.distribution import frechet, moments

    rng = np.random.default_rng(0)
    for d, smallest in ((2, 1.0), (8, 1.0), (64, 1e-2), (128, 1e-3)):
        x, y = (ill_conditioned(rng, 4 * d + 10, d, smallest) for _ in range(2))
        theirs = reference_backend.request("frechet", x=x, y=y)
        assert frechet(moments(x), moments(y)) == pytest.approx(theirs, rel=1e-6)
    x = ill_conditioned(rng, 600, 128, 1e-2)
    shifted = reference_backend.request("frechet", x=x, y=x + 0.5)
    assert shifted == pytest.approx(0.25 * 128, rel=1e-6)
    assert frechet(moments(x), moments(x + 0.5)) == pytest.approx(shifted, rel=1e-6)


@pytest.mark.slow
def test_the_reference_backend_says_what_it_cannot_do(reference_backend: Backend, tmp_path: Path) -> None:
    ask = reference_backend.request
    for x, y, why in (
        (np.ones((1, 4)), np.ones((5, 4)), "x has shape"),
        (np.ones(4), np.ones((5, 4)), "x has shape"),
        (np.ones((5, 4)), np.ones((5, 3)), "dimensions differ: 4 and 3"),
    ):
        with pytest.raises(BackendError, match=why):
            ask("frechet", x=x, y=y)
    sound = np.zeros(32_000, np.float32)
    with pytest.raises(NotApplicable, match="issue 37"):
        ask("embed", model="pann", sample_rate=16_000, arrays=[sound])
    with pytest.raises(BackendError, match="vggish is for 16000 Hz, not 44100"):
        ask("embed", model="vggish", sample_rate=44_100, weights=str(tmp_path), arrays=[sound])
    with pytest.raises(BackendError, match="no model 'x'"):
        ask("embed", model="x", sample_rate=16_000, weights=str(tmp_path), arrays=[sound])
    with pytest.raises(NotApplicable, match="weights of vggish absent: no folder given"):
        ask("embed", model="vggish", sample_rate=16_000, arrays=[sound])
    where = str(tmp_path)
    for model, rate, missing in (
        ("vggish", 16_000, "code of vggish absent: put a checkout of the repository harritaylor/torchvggish"),
        ("clap", 48_000, "put 630k-audioset-best.pt into"),
        ("encodec", 24_000, "put encodec_24khz-d7cc33bc.th into .*checkpoints"),
        ("encodec", 48_000, "put encodec_48khz-7e698e3e.th into .*checkpoints"),
    ):
        with pytest.raises(NotApplicable, match=missing):
            ask("embed", model=model, sample_rate=rate, weights=where, arrays=[sound])
    with pytest.raises(NotApplicable, match=r"put Cnn14_mAP=0\.431\.pth into"):
        ask("pann", sample_rate=32_000, weights=where, arrays=[sound])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "encodec_24khz-d7cc33bc.th").write_bytes(b"something else")
    with pytest.raises(BackendError, match="not the file its name promises"):
        ask("embed", model="encodec", sample_rate=24_000, weights=where, arrays=[sound])
    with pytest.raises(BackendError, match="no folder with audio files"):
        ask("score", model="vggish", sample_rate=16_000, reference=where + "/x", estimate=where, weights=where)


def in_its_environment(code: str) -> None:
    """Run code by the installed environment's own Python."""
    python = install_module.interpreter(registry.get("backends", "frechet-audio-distance"))
    done = subprocess.run(
        [str(python), "-W", "ignore", "-c", code], env=client_module.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


HUBCONF = """
import torch

class Net(torch.nn.Module):
    # The interface of harritaylor/torchvggish: preprocessing, post-processing, and a rectifier at the end.
    def __init__(self):
        super().__init__()
        self.embeddings = torch.nn.Sequential(torch.nn.Linear(15360, 128), torch.nn.ReLU())
        self.load_state_dict(torch.hub.load_state_dict_from_url("x://host/net-{hash}.pth"))
        self.postprocess = True

    def forward(self, x, fs):
        assert fs == 16000
        n = 1 + (len(x) - 15600) // 15360
        y = self.embeddings(torch.from_numpy(x[: n * 15360].reshape(n, 15360)))
        return y.round() if self.postprocess else y

def vggish():
    return Net()
"""


@pytest.fixture
def network_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALKIT_WEIGHTS", str(tmp_path / "weights"))
    folder = tmp_path / "weights" / "frechet_audio_distance"
    (folder / "checkpoints").mkdir(parents=True)
    return folder


@pytest.mark.slow
def test_vggish_is_read_from_the_folder_without_post_processing(
    reference_backend: Backend, network_weights: Path
) -> None:
    """A small network in the place of the port's: what is tested is which parts of it are used, and where from."""
    import torch

    from evalkit.audio import Clip
    from evalkit.embedders import embed
    from evalkit.embedders.store import EmbeddingStore

    store = EmbeddingStore(network_weights.parent / "store")
    torch.manual_seed(0)
    layer = torch.nn.Linear(15360, 128)
    state = {f"embeddings.0.{k}": v.detach() for k, v in layer.named_parameters()}
    checkpoints = network_weights / "checkpoints"
    torch.save(state, checkpoints / "net.pth")
    name = weights_module.file_sha256(checkpoints / "net.pth")[:8]
    (checkpoints / "net.pth").rename(checkpoints / f"net-{name}.pth")
    (checkpoints / "vggish-10086976.pth").write_bytes(b"stand-in")  # what says that weights are there
    checkout = network_weights / "harritaylor_torchvggish_master"
    checkout.mkdir()
    (checkout / "hubconf.py").write_text(HUBCONF.replace("{hash}", name))
    sound = np.random.default_rng(0).standard_normal(40_000).astype(np.float32) / 10
    (got,) = embed([Clip(sound, 16_000)], "vggish", store)
    want = layer(torch.from_numpy(sound[: 2 * 15360].reshape(2, 15360))).detach().numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert (got < 0).any()  # before the rectifier
    with pytest.raises(NotApplicable, match=r"too short for vggish: it needs at least 0\.975 s"):
        embed([Clip(sound[:15_599], 16_000)], "vggish", store)


@pytest.mark.slow
def test_pann_keeps_a_row_for_each_clip(reference_backend: Backend, network_weights: Path, tmp_path: Path) -> None:
    """The package's network with random weights, asked as a backend and directly."""
    from evalkit.audio import Clip
    from evalkit.embedders import embed
    from evalkit.embedders.store import EmbeddingStore

    store = EmbeddingStore(tmp_path / "store")
    rng = np.random.default_rng(0)
    sounds = [rng.standard_normal(n).astype(np.float32) / 10 for n in (32_000, 48_000)]
    np.savez(tmp_path / "sounds.npz", *sounds)
    in_its_environment(f"""
import sys, types, numpy as np, torch
sys.modules["laion_clap"] = types.ModuleType("laion_clap")
from frechet_audio_distance.models.pann import Cnn14
torch.manual_seed(0)
torch.set_num_threads(1)
net = Cnn14(sample_rate=32000, window_size=1024, hop_size=320, mel_bins=64, fmin=50, fmax=16000, classes_num=527).eval()
torch.save({{"model": net.state_dict(), "sampler": {{"random": np.arange(4)}}, "best": np.float64(1)}},
           {str(network_weights / "Cnn14_mAP=0.431.pth")!r})
with np.load({str(tmp_path / "sounds.npz")!r}) as sounds, torch.no_grad():
    np.save({str(tmp_path / "want.npy")!r}, np.concatenate([net(torch.from_numpy(sounds[k])[None])["embedding"].numpy()
                                                           for k in sounds]))
""")
    got = embed([Clip(s, 32_000) for s in sounds], "pann", store)
    assert [g.shape for g in got] == [(1, 2048), (1, 2048)]
    np.testing.assert_allclose(np.concatenate(got), np.load(tmp_path / "want.npy"), rtol=1e-5, atol=1e-6)
    with pytest.raises(NotApplicable, match=r"too short for pann: it needs at least 0\.31 s"):
        embed([Clip(sounds[0][:9_900], 32_000)], "pann", store)
