"""Registries: what is registered, what is refused, and plug-ins that break without taking the rest along."""

from __future__ import annotations

import copy
import re
import sys
import types
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from evalkit import registry
from evalkit.audio import Prepare
from evalkit.errors import EvalkitError, UsageError
from evalkit.registry import Kind, MetricInfo, PluginWarning, SystemInfo, Task

KINDS: tuple[Kind, ...] = registry.KINDS


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Every test registers what it likes; the registries are put back afterwards."""
    for kind in KINDS:
        registry.names(kind)
    before = {
        k: copy.copy(vars(r)) | {"entries": dict(r.entries), "origin": dict(r.origin), "loaded": set(r.loaded)}
        for k, r in registry._registries.items()
    }
    files = dict(registry._user_files)
    yield
    for k, r in registry._registries.items():
        vars(r).update(before[k])
    registry._user_files.clear()
    registry._user_files.update(files)


# -- built-ins --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        (
            "tasks",
            {
                "esc50-reconstruction",
                "vctk-reconstruction",
                "fma-reconstruction",
                "librispeech-reconstruction",
                "fsdd-reconstruction",
                "scenes-reconstruction",
            },
        ),
        (
            "systems",
            {"identity", "silence", "noise", "pcm", "mulaw", "resample", "mdct", "opus", "mp3", "codec2", "files"},
        ),
        ("metrics", {"mse", "snr", "si_sdr"}),
        ("datasets", {"esc50", "vctk", "fma", "librispeech", "fsdd", "scenes", "folder"}),
    ],
)
def test_built_ins_are_there(kind: Kind, some: set[str]) -> None:
    found = registry.names(kind)
    assert some <= set(found)
    assert len(found) == len(set(found))
    for name in some:
        assert registry.get(kind, name).name == name
        assert registry.origin(kind, name).partition(".")[0] in ("evalkit", "tasks")


def test_every_task_names_things_that_exist() -> None:
    from evalkit.spec import parse_spec

    for name in registry.names("tasks"):
        task = registry.get("tasks", name)
        assert registry.get("datasets", parse_spec(task.dataset).name)
        assert set(task.headline) <= set(task.metrics)
        for metric in task.metrics:
            registry.get("metrics", metric)
        assert task.kind in ("reconstruction", "captioning", "classification")


def test_every_metric_says_what_it_is() -> None:
    for name in registry.names("metrics"):
        info: MetricInfo = registry.get("metrics", name)
        assert info.summary and info.direction in ("lower", "higher", "none")
        assert set(info.needs) <= set(registry.TEXT_FIELDS if info.of_text else registry.SAMPLE_FIELDS) and info.needs
        assert info.range[0] < info.range[1]
        assert (info.level == "corpus") == ((info.combine or info.evaluate) is not None)


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("systems", "opuss", "did you mean opus"),
        ("tasks", "esc50-reconstructoin", "did you mean esc50-reconstruction"),
        ("metrics", "snrr", "did you mean snr"),
        ("datasets", "librispeach", "did you mean librispeech"),
        ("systems", "zzzzz", "`evalkit list systems` shows what there is"),
        ("metrics", "", "`evalkit list metrics`"),
    ],
)
def test_an_unknown_name_gets_near_ones(kind: Kind, name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"no {kind[:-1]} named {name!r}: {re.escape(hint)}"):
        registry.get(kind, name)


# -- decorators -------------------------------------------------------------------------------------------------------


def test_a_system_is_registered_as_declared() -> None:
    @registry.system("test-sys", summary="nothing", role="floor", domains=("speech",), stochastic=True)
    class Nothing:
        pass

    info = registry.get("systems", "test-sys")
    assert info == SystemInfo("test-sys", Nothing, "nothing", "floor", ("speech",), stochastic=True)
    assert vars(Nothing)["info"] is info
    assert registry.origin("systems", "test-sys").endswith("Nothing")
    assert registry.names("systems")[-1] == "test-sys"  # after the built-ins


def test_a_metric_takes_its_summary_and_needs_from_the_function() -> None:
    @registry.metric("test_metric", unit="dB", direction="higher", range=(0, 5))
    def m(estimate, reference, window=3):  # type: ignore[no-untyped-def]
        """First line.

        More.
        """
        return 1.0

    info = registry.get("metrics", "test_metric")
    assert (info.summary, info.needs, info.level, info.unit, info.version) == (
        "First line",
        ("estimate", "reference"),
        "sample",
        "dB",
        "1",
    )


def test_a_corpus_metric_has_a_combination() -> None:
    @registry.corpus_metric("test_corpus", unit="", direction="lower", combine=lambda stats, weights: 0.0)
    def m(reference):  # type: ignore[no-untyped-def]
        return {}

    assert registry.get("metrics", "test_corpus").level == "corpus"
    assert registry.get("metrics", "test_corpus").summary == ""


def test_one_function_may_give_several_tasks() -> None:
    @registry.task
    def many() -> list[Task]:
        return [Task(f"test{i}-reconstruction", "scenes", ("mse",), Prepare()) for i in range(2)]

    assert {"test0-reconstruction", "test1-reconstruction"} <= set(registry.names("tasks"))
    assert [t.name for t in many.tasks] == ["test0-reconstruction", "test1-reconstruction"]

    @registry.task()
    def one() -> Task:
        return Task("test-x-other", "scenes", ("mse",))

    assert registry.get("tasks", "test-x-other").kind == "other"


def test_two_things_of_one_name_are_refused() -> None:
    def first() -> None: ...

    def second() -> None: ...

    registry.system("test-twice", summary="")(first)
    registry.system("test-twice", summary="again")(first)  # the same thing, imported again
    with pytest.raises(
        EvalkitError, match=r"system 'test-twice' of .*second is already registered by .*first: rename one"
    ):
        registry.system("test-twice", summary="")(second)
    assert registry.get("systems", "test-twice").factory is first
    with pytest.raises(
        EvalkitError, match=r"system 'opus' of .* is already registered by evalkit\.systems\.ffmpeg\.Opus"
    ):
        registry.system("opus", summary="")(second)


def _metric(f: Any, **more: Any) -> Any:
    return registry.metric("test_bad", **{"unit": "", "direction": "lower", **more})(f)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (
            lambda: _metric(lambda reference, speaker: 0.0),
            "metric 'test_bad' asks for 'speaker'; a sample offers reference, ",
        ),
        (lambda: _metric(lambda *clips: 0.0), "asks for 'clips'"),
        (lambda: _metric(lambda reference: 0.0, direction="up"), "direction='up' is none of lower, higher, none"),
        (lambda: registry.task(lambda: None), "returned NoneType, expected Task"),
        (lambda: registry.task(lambda: [Task("a-b", "scenes", ("mse",)), "a"]), "returned str"),
        (lambda: registry.task(lambda: Task("a-b", "scenes", ())), "task 'a-b' names no metric"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_at_once(declare: Any, message: str) -> None:
    with pytest.raises(EvalkitError, match=message):
        declare()
    assert "test_bad" not in registry.names("metrics")


# -- users' files -----------------------------------------------------------------------------------------------------


def test_a_file_is_imported_once_under_a_name_that_its_path_decides(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from evalkit import system\nloaded = []\n@system('test-mine', summary='x')\nclass Mine: pass\n")
    module = registry.load_file(path)
    assert registry.load_file(str(path)) is module
    assert registry.load_file(tmp_path / "." / "mine.py") is module
    assert sys.modules[module.__name__] is module and module.__name__.startswith("evalkit_user_mine_")
    assert str(path.resolve()) in registry.user_files()
    assert registry.get("systems", "test-mine").factory is module.Mine
    other = tmp_path / "sub"
    other.mkdir()
    (other / "mine.py").write_text("x = 1")
    assert registry.load_file(other / "mine.py") is not module


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('no weights')", "cannot be imported: RuntimeError: no weights"),
        ("import no_such_module", "cannot be imported: ModuleNotFoundError"),
        ("def broken(:", "cannot be imported: SyntaxError"),
        ("import sys\nsys.exit('usage: mine.py DIR')", "cannot be imported: SystemExit: usage: mine.py DIR"),
        ("from evalkit import task\n@task\ndef t(): pass", "returned NoneType, expected Task"),
        ("x = b'\\xff'.decode()", "cannot be imported: UnicodeDecodeError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_a_usage_error(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(UsageError, match=message) as caught:
        registry.load_file(path)
    assert str(path) in str(caught.value)
    assert str(path) not in registry.user_files()
    path.write_text("fine = True")  # mended, it loads: nothing of the failure is kept
    assert registry.load_file(path).fine


def test_ctrl_c_while_importing_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        registry.load_file(tmp_path / "mine.py")


def test_no_file_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.py", tmp_path):
        with pytest.raises(UsageError, match="no such file"):
            registry.load_file(path)


# -- plug-ins ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Install plug-ins: ``plugins("systems", name="source of a module")``."""
    points: dict[str, list[EntryPoint]] = {}
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", lambda group: tuple(points.get(group, ())))
    made: list[str] = []

    def install(kind: Kind, **sources: str) -> None:
        for name, source in sources.items():
            module = f"test_plugin_{kind}_{name}"
            (tmp_path / f"{module}.py").write_text(source)
            made.append(module)
            points.setdefault(f"evalkit.{kind}", []).append(EntryPoint(name, module, f"evalkit.{kind}"))

    yield install
    for module in made:
        sys.modules.pop(module, None)


GOOD_PLUGIN = "from evalkit import system\n@system('test-{0}', summary='plug-in')\nclass Plug: pass\n"


def test_a_plugin_is_found_by_name_and_listed_last(plugins: Any) -> None:
    plugins("systems", a=GOOD_PLUGIN.format("a"), b=GOOD_PLUGIN.format("b"))
    assert registry.get("systems", "test-b").summary == "plug-in"
    assert registry.names("systems")[-2:] == ["test-b", "test-a"] or registry.names("systems")[-2:] == [
        "test-a",
        "test-b",
    ]


def test_a_built_in_needs_no_plugin_to_load(plugins: Any) -> None:
    plugins("systems", broken="raise RuntimeError('must not be imported')")
    assert registry.get("systems", "opus")  # no PluginWarning, which would be an error here


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('no licence file')", "RuntimeError: no licence file"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        (GOOD_PLUGIN.format("x").replace("test-x", "opus"), "already registered by evalkit.systems.ffmpeg.Opus"),
        (
            "from evalkit import metric\n@metric('m', unit='', direction='lower')\ndef m(speaker): pass",
            "asks for 'speaker'",
        ),
    ],
)
def test_a_broken_plugin_is_one_warning_that_names_it(plugins: Any, source: str, message: str) -> None:
    before = registry.names("systems")
    plugins("systems", broken=source, good=GOOD_PLUGIN.format("good"))
    with pytest.warns(PluginWarning) as caught:
        after = registry.names("systems")
    assert after == [*before, "test-good"]
    assert len(caught) == 1
    said = str(caught[0].message)
    assert said.startswith("plug-in 'broken' (test_plugin_systems_broken, of unknown distribution) was not loaded: ")
    assert message in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.names("systems") == after  # said once


def test_an_absent_object_of_a_plugin_is_a_warning(plugins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins("metrics", fine="x = 1")
    point = EntryPoint("gone", "test_plugin_metrics_fine:nothing", "evalkit.metrics")
    monkeypatch.setattr(registry, "entry_points", lambda group: (point,) if group == "evalkit.metrics" else ())
    with pytest.warns(PluginWarning, match=r"plug-in 'gone' \(test_plugin_metrics_fine:nothing, .*AttributeError"):
        registry.names("metrics")


def test_a_broken_plugin_does_not_hide_that_a_name_is_unknown(plugins: Any) -> None:
    plugins("systems", broken="raise RuntimeError('x')")
    with pytest.warns(PluginWarning, match="'broken'"), pytest.raises(UsageError, match="no system named 'nothing'"):
        registry.get("systems", "nothing")


# -- our own packages -------------------------------------------------------------------------------------------------


def test_our_packages_are_ours() -> None:
    for name in registry.OWN_PACKAGES:
        registry.check_own_package(name)


@pytest.mark.parametrize("name", registry.OWN_PACKAGES)
def test_a_foreign_package_of_our_name_is_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EvalkitError, match=f"the package '{name}' of evalkit-audio is shadowed by .*{name}") as caught:
        registry.check_own_package(name)
    assert str(tmp_path / name) in str(caught.value) and "`evalkit doctor`" in str(caught.value)


def test_a_module_in_place_of_a_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm.py").write_text("")
    monkeypatch.delitem(sys.modules, "llm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EvalkitError, match=r"shadowed by .*llm\.py"):
        registry.check_own_package("llm")


def test_no_package_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EvalkitError, match="shadowed by nothing importable"):
        registry.check_own_package("tokenizer")


def test_a_stub_in_place_of_a_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other test suites put bare modules into ``sys.modules``; they have no spec."""
    monkeypatch.setitem(sys.modules, "llm", types.ModuleType("llm"))
    with pytest.raises(EvalkitError, match="'llm' of evalkit-audio is shadowed"):
        registry.check_own_package("llm")
