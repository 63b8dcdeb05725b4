"""Identity: canonical JSON, digests, and the hash of the code that decides a value.

Two results may share a row or a cache entry only when their identities are equal. See docs/design/identity.md.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text.

    >>> canonical_json({"b": 1, "a": (1.5, None)})
    '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def short(hexdigest: str) -> str:
    """The first 12 hex digits: enough to tell versions apart in a table."""
    return hexdigest[:12]


def array_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, dtypes, shapes and bytes of several arrays."""
    h = hashlib.sha256()
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        a = a.astype(a.dtype.newbyteorder("<"), copy=False)
        h.update(f"{name}:{a.dtype.str}:{a.shape};".encode())
        h.update(a.tobytes())
    return h.hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two nested mappings differ, as ``path (old -> new)``.

    >>> difference({"selection": {"limit": 10}, "seed": 0}, {"selection": {"limit": None}, "seed": 0})
    ['selection.limit (10 -> none)']
    """

    def show(v: Any) -> str:
        text = "none" if v is None else str(v)
        return text if len(text) <= 40 else text[:12] + "..."

    out = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key} ({show(a)} -> {show(b)})")
    return out


# -- code -------------------------------------------------------------------------------------------------------------


@functools.cache
def source_hash(obj: Any) -> str:
    """Hash of the source of a function or class and of everything of its own package that it refers to.

    Docstrings, comments, layout and decorators do not count; module-level constants it reads do. References are
    followed through functions, classes, modules and imports inside functions, within the same top-level package.
    """
    seen: dict[str, Any] = {}
    _collect(obj, seen)
    return digest(seen)


def _collect(obj: Any, seen: dict[str, Any]) -> None:
    if isinstance(obj, functools.partial):
        obj = obj.func
    found = inspect.unwrap(obj)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return
    obj = found
    key = f"{obj.__module__}.{obj.__qualname__}"
    source = _normalised_source(obj)
    closure = getattr(obj, "__closure__", None) or ()
    if closure:  # several closures share one name and source: tell them apart by content
        key += ":" + ",".join(_name_of(cell) for cell in closure)
    if key in seen:
        return
    seen[key] = source
    package = obj.__module__.partition(".")[0]
    if inspect.isclass(obj):
        for base in obj.__bases__:
            if base.__module__.partition(".")[0] == package:
                _collect(base, seen)
    for function in _functions(obj):
        names = set(_names(function.__code__))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                _collect_value(cell.cell_contents, f"{key}:{name}", package, names, seen)
            except ValueError:  # an empty cell: the name was never bound
                seen[f"{key}:{name}"] = "unbound"
        scopes = [function.__globals__]
        for name in names:  # imports inside the function
            if name.partition(".")[0] == package and "." in name:
                scopes.append(vars(sys.modules.get(name) or importlib.import_module(name)))
        for scope in scopes:
            for name in sorted(names & scope.keys()):
                _collect_value(scope[name], f"{function.__module__}:{name}", package, names, seen)


def _collect_value(value: Any, key: str, package: str, names: set[str], seen: dict[str, Any]) -> None:
    if isinstance(value, types.ModuleType):
        if value.__name__.partition(".")[0] == package:
            for name in sorted(names & vars(value).keys()):
                attribute = vars(value)[name]
                if not isinstance(attribute, types.ModuleType):
                    _collect_value(attribute, f"{value.__name__}:{name}", package, names, seen)
    elif inspect.isclass(value) or callable(value):
        if (getattr(value, "__module__", None) or "").partition(".")[0] == package:
            _collect(value, seen)
    elif isinstance(value, (dict, list, set)) and _is_state(key.rpartition(":")[2]):
        pass  # a cache or a registry fills up while the program runs: it is no constant
    elif isinstance(value, (np.ndarray, str, int, float, bool, bytes, tuple, list, dict, frozenset, set, type(None))):
        seen[key] = _constant(value, package, seen)


def _is_state(name: str) -> bool:
    """
    >>> _is_state("_loaded"), _is_state("_BANDS"), _is_state("levels")
    (True, False, False)
    """
    return name.startswith("_") and not name.isupper()


def _constant(value: Any, package: str, seen: dict[str, Any]) -> Any:
    """A module-level constant as JSON values, equal in every process: functions within it by name and by source."""
    if isinstance(value, np.ndarray):
        return array_digest({"": value})
    if isinstance(value, Mapping):
        return [[_constant(k, package, seen), _constant(v, package, seen)] for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [_constant(v, package, seen) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_constant(v, package, seen) for v in value), key=repr)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [_constant(getattr(value, f.name), package, seen) for f in dataclasses.fields(value)]
        return [type(value).__qualname__, *fields]
    if inspect.isclass(value) or callable(value):
        if (getattr(value, "__module__", None) or "").partition(".")[0] == package:
            _collect(value, seen)
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    plain = isinstance(value, (str, int, float, bool, bytes, type(None)))
    return repr(value) if plain else type(value).__qualname__


def _name_of(cell: Any) -> str:
    try:
        return str(getattr(cell.cell_contents, "__qualname__", type(cell.cell_contents).__name__))
    except ValueError:
        return "unbound"


def _functions(obj: Any) -> Iterator[types.FunctionType]:
    if inspect.isfunction(obj):
        yield obj
        return
    for value in vars(obj).values():
        for candidate in (
            value,
            getattr(value, "fget", None),
            getattr(value, "__func__", None),
            getattr(value, "func", None),
            getattr(value, "__wrapped__", None),
        ):
            if inspect.isfunction(candidate):
                yield candidate


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@functools.cache
def _normalised_source(obj: Any) -> Any:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    except (OSError, TypeError, SyntaxError, IndentationError):
        # No source to read (a frozen app, a REPL): fall back on the bytecode, which is stricter.
        return [hashlib.sha256(f.__code__.co_code).hexdigest() for f in _functions(obj)]
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            node.decorator_list = []
            body = [
                s
                for s in node.body
                if not (
                    isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str)
                )
            ]
            node.body = body
    return _canonical_ast(tree)


def _canonical_ast(node: Any) -> Any:
    """Nested lists without positions and empty fields, equal across the Python versions that we support."""
    if isinstance(node, ast.AST):
        fields = {f: _canonical_ast(v) for f, v in ast.iter_fields(node) if v not in (None, []) and f != "type_comment"}
        return [type(node).__name__, fields]
    if isinstance(node, list):
        return [_canonical_ast(n) for n in node]
    return node if isinstance(node, str) else repr(node)


def versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of distributions; ``absent`` where one is not installed."""
    out = {}
    for name in distributions:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "absent"
    return out
