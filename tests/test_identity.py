"""Identity: canonical JSON, source hashes and what moves them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.identity import array_digest, canonical_json, difference, digest, source_hash

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_digest_does_not_depend_on_key_order(value: object) -> None:
    def reverse(v: object) -> object:
        if isinstance(v, dict):
            return {k: reverse(v[k]) for k in reversed(list(v))}
        return [reverse(x) for x in v] if isinstance(v, list) else v

    assert digest(value) == digest(reverse(value))


def test_nan_has_no_identity() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json({"x": float("nan")})


def test_array_digest_sees_dtype_shape_and_values() -> None:
    a = np.arange(6)
    digests = {array_digest({"a": v}) for v in (a, a.reshape(2, 3), a.astype(np.int32), a + 1)} | {
        array_digest({"b": a})
    }
    assert len(digests) == 5
    assert array_digest({"a": a}) == array_digest({"a": a.astype(">i8")})


def _module(tmp_path: Path, name: str, source: str) -> ModuleType:
    path = tmp_path / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


BASE = """
LIMIT = 3

def helper(x):
    return x + LIMIT

def metric(x):
    return helper(x)

class System:
    def encode(self, x):
        return helper(x)
"""


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        (("x + LIMIT", "x - LIMIT"), True),  # a helper's code
        (("LIMIT = 3", "LIMIT = 4"), True),  # a constant that it reads
        (("def helper(x):", 'def helper(x):\n    """A docstring."""'), False),
        (("return x + LIMIT", "# why\n    return (x\n            + LIMIT)"), False),
        (("LIMIT = 3", "LIMIT = 3\nUNRELATED = 5"), False),
    ],
)
@pytest.mark.parametrize("what", ["metric", "System"])
def test_source_hash_moves_with_meaning_only(
    tmp_path: Path, change: tuple[str, str], moves: bool, what: str, request: pytest.FixtureRequest
) -> None:
    name = f"probe_{abs(hash(request.node.name))}"
    before = source_hash(getattr(_module(tmp_path, name, BASE), what))
    (tmp_path / "again").mkdir()
    changed = BASE.replace(*change)
    assert changed != BASE
    # The same module name, so that only the source differs; linecache reads by path, hence another folder.
    after = source_hash(getattr(_module(tmp_path / "again", name, changed), what))
    assert (before != after) is moves


def test_source_hash_follows_modules_and_imports_inside_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(folder: str, value: int) -> str:
        package = tmp_path / folder / "probe_package"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "deep.py").write_text(f"def g():\n    return {value}\n")
        (package / "late.py").write_text("def f():\n    from probe_package.deep import g\n    return g()\n")
        (package / "top.py").write_text("from probe_package import deep\ndef f():\n    return deep.g()\n")
        monkeypatch.syspath_prepend(str(package.parent))
        for name in [n for n in sys.modules if n.startswith("probe_package")]:
            del sys.modules[name]
        import importlib

        late, top = (importlib.import_module(f"probe_package.{m}") for m in ("late", "top"))
        return source_hash(late.f) + " " + source_hash(top.f)

    one, same, other = build("a", 1).split(), build("b", 1).split(), build("c", 2).split()
    assert one == same
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_difference_names_nested_fields() -> None:
    old = {"dataset": {"present": 400, "layout": "a"}, "seed": 0, "gone": 1}
    new = {"dataset": {"present": 2000, "layout": "a"}, "seed": 0, "new": None}
    assert difference(old, new) == ["dataset.present (400 -> 2000)", "gone (1 -> none)"]


def test_source_hash_follows_closures_and_constants_that_hold_functions(tmp_path: Path) -> None:
    """The same in another process (no memory addresses), and moved by what a closure or a table of functions calls."""
    source = (
        "def one(x):\n    return x + 1\n"
        "def two(x):\n    return x + 2\n"
        "TABLE = {'a': one, 'b': (two, 3.0)}\n"
        "def wrap(f):\n    def inner(x):\n        return f(x)\n    return inner\n"
        "by_closure = wrap(one)\nother = wrap(two)\n"
        "def by_table(x):\n    return TABLE['a'](x)\n"
    )
    first = _module(tmp_path, "probe_closure", source)
    before = [source_hash(first.by_closure), source_hash(first.by_table), source_hash(first.other)]
    assert before[0] != before[2]
    (tmp_path / "again").mkdir()
    same = _module(tmp_path / "again", "probe_closure", source)
    assert [source_hash(same.by_closure), source_hash(same.by_table), source_hash(same.other)] == before
    (tmp_path / "changed").mkdir()
    changed = _module(tmp_path / "changed", "probe_closure", source.replace("x + 1", "x + 9"))
    after = [source_hash(changed.by_closure), source_hash(changed.by_table), source_hash(changed.other)]
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, True, False]
