"""Environments of isolated backends: a virtual environment each, with pinned packages, in evalkit's cache folder."""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evalkit.backends.client import BackendError, check, environment
from evalkit.datasets.manifest import cache_folder
from evalkit.errors import NotApplicable, UsageError
from evalkit.registry import BackendInfo

READY = ".ready"
"""Written last, so that what a killed install leaves behind is not taken for an environment."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def folder(info: BackendInfo) -> Path:
    """``<cache>/backends/NAME-VERSION``.

    Raises:
        UsageError: a name or a version that is not a plain word, and could lead out of the folder.
    """
    for word in (info.name, info.version):
        if not NAME.fullmatch(word):
            raise UsageError(
                f"backend {info.name!r} {info.version!r}: name and version are letters, digits, '.', '_', '-'"
            )
    return cache_folder() / "backends" / f"{info.name}-{info.version}"


def named(path: str) -> Any:
    """The function that a declaration names as ``module:function``."""
    import importlib

    module, _, function = path.partition(":")
    return getattr(importlib.import_module(module), function)


def installed(info: BackendInfo) -> bool:
    """Whether it can be asked: an environment of just these pins is there, or none is needed; and what it fetches."""
    if info.fetched:
        try:
            named(info.fetched)()
        except NotApplicable:
            return False
    if not info.packages:
        return True
    try:
        ready = json.loads((folder(info) / READY).read_text())
    except (OSError, ValueError):
        return False
    return bool(ready.get("packages") == list(info.packages)) and _python(folder(info)).exists()


def interpreter(info: BackendInfo) -> Path:
    """The Python that runs the worker: the environment's, or this one for a backend without packages.

    Raises:
        NotApplicable: not installed.
    """
    if not info.packages:
        return Path(sys.executable)
    if not installed(info):
        raise NotApplicable(f"backend {info.name} is not installed: `evalkit backend install {info.name}`")
    return _python(folder(info))


def install(
    info: BackendInfo,
    *,
    python: str | None = None,
    wheels: Path | None = None,
    source: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Build the environment of a backend by ``venv`` and ``pip``; pip's own configuration decides where it looks.

    Args:
        python: interpreter to build it with; None: this one.
        wheels: folder of wheels to install from, and nothing else (no index is asked).
        source: folder or archive of what is no package, for a backend that fetches something.
        tell: is given pip's lines as they come.

    Returns:
        The folder. An environment that is there already is left alone.

    Raises:
        UsageError: no such interpreter, or one of a version that the pins are not for; no such folder of wheels.
        BackendError: it failed; the message names the package and pip's last lines, and nothing is left behind.
    """
    import filelock

    target = folder(info)
    if source is not None and not info.fetch:
        raise UsageError(f"backend {info.name} fetches nothing: --from has no meaning for it")
    if info.fetch and (source is not None or not installed(info)):
        target = named(info.fetch)(source)
    if not info.packages:
        return target
    exe = python or sys.executable
    version = _version_of(exe)
    if not allows(info.python, version):
        raise UsageError(
            f"backend {info.name} is for Python {info.python}, {exe} is {'.'.join(map(str, version))}: give another by "
            f"--python"
        )
    if wheels is not None and not wheels.is_dir():
        raise UsageError(f"{wheels}: no such folder of wheels")
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.parent / f".{target.name}.lock"):
        if installed(info):  # by another process, while this one waited
            return target
        shutil.rmtree(target, ignore_errors=True)
        try:
            _build(info, target, exe, wheels, tell)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    return target


def _build(info: BackendInfo, target: Path, exe: str, wheels: Path | None, tell: Callable[[str], None]) -> None:
    code, said = _run([exe, "-m", "venv", str(target)], tell)
    if code:
        raise BackendError(f"backend {info.name}: {exe} -m venv failed: {_last(said)}")
    offline = ["--no-index", "--find-links", str(wheels.resolve())] if wheels else []
    for options, requirements in groups(info.packages):
        pip = [str(_python(target)), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        code, said = _run([*pip, *offline, *options, *requirements], tell)
        if code:
            which = failed_package(said) or ", ".join(requirements[:3]) + (" ..." if requirements[3:] else "")
            raise BackendError(f"backend {info.name}: {which} could not be installed; pip: {_last(said)}")
    check(info, python=_python(target))
    (target / READY).write_text(json.dumps({"packages": list(info.packages)}, indent=1) + "\n")


def groups(packages: tuple[str, ...]) -> list[tuple[list[str], list[str]]]:
    """pip's options and requirements, one pair a call: neighbours are resolved together; ``--no-deps NAME==VERSION``
    is for a package whose declared dependencies cannot be had together, and is a call of its own kind."""
    out: list[tuple[list[str], list[str]]] = []
    for package in packages:
        options = ["--no-deps"] if package.startswith("--no-deps ") else []
        requirement = package.removeprefix("--no-deps ").strip()
        if requirement.startswith("-"):
            raise UsageError(f"{package!r} is no requirement")
        if out and out[-1][0] == options:
            out[-1][1].append(requirement)
        else:
            out.append((options, [requirement]))
    return out


FAILURES = (
    r"No matching distribution found for (\S+)",
    r"Could not find a version that satisfies the requirement (\S+)",
    r"Failed building wheel for (\S+)",
    r"Failed to build (?:installable wheels for some pyproject\.toml based projects \()?['\"]?([\w.-]+)",
    r"Cannot install (.+?) because these package versions have conflicting dependencies",
    r"Requested (\S+) from \S+ has inconsistent",
    r"ERROR: (\S+\.whl) is not a (?:supported|valid) wheel",
    r"Invalid requirement: ['\"]?([^'\"\n]+)",
)


def failed_package(lines: list[str]) -> str | None:
    """The package that pip's output blames, where it blames one."""
    text = "\n".join(lines)
    for pattern in FAILURES:
        if found := re.findall(pattern, text):
            return str(found[-1]).rstrip(",:")
    return None


def remove(info: BackendInfo) -> bool:
    """Delete the environment of a backend, in whatever state it is; False where there is none."""
    import filelock

    target = folder(info)
    if not target.parent.is_dir():
        return False
    with filelock.FileLock(target.parent / f".{target.name}.lock"):
        there = target.exists()
        (target / READY).unlink(missing_ok=True)  # first: what is half deleted is not ready
        shutil.rmtree(target, ignore_errors=True)
        if target.exists():
            raise BackendError(f"{target} could not be removed altogether: delete it by hand")
    return there


def _run(command: list[str], tell: Callable[[str], None]) -> tuple[int, list[str]]:
    """Exit code and the last lines of a command, stdout and stderr as they come."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise UsageError(f"{command[0]} cannot be run ({error.strerror})") from error
    lines: collections.deque[str] = collections.deque(maxlen=200)
    try:
        assert process.stdout
        for line in process.stdout:
            lines.append(line.rstrip())
            tell(line.rstrip())
        return process.wait(), list(lines)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _last(lines: list[str]) -> str:
    """The last lines that say something; addresses of indexes may carry credentials and are left out."""
    told = [re.sub(r"\b\w+://\S+", "<address>", line).strip() for line in lines if line.strip(" ╰─>\t")]
    return " | ".join(told[-5:]) or "it said nothing"


def _python(environment_folder: Path) -> Path:
    return environment_folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _version_of(exe: str) -> tuple[int, int]:
    code, said = _run([exe, "-c", "import sys; print(*sys.version_info[:2])"], lambda line: None)
    match = re.fullmatch(r"(\d+) (\d+)", said[-1]) if said else None
    if code or not match:
        raise UsageError(f"{exe} is no Python interpreter: {_last(said)}")
    return int(match[1]), int(match[2])


def allows(spec: str, version: tuple[int, int]) -> bool:
    """Whether a specifier such as ``>=3.11,<3.13`` (>= and < only) allows a version."""
    for part in filter(None, spec.replace(" ", "").split(",")):
        match = re.fullmatch(r"(>=|<)(\d+)\.(\d+)", part)
        if not match:
            raise UsageError(f"{spec!r}: write it with >= and <, such as >=3.11,<3.13")
        limit = (int(match[2]), int(match[3]))
        if not (version >= limit if match[1] == ">=" else version < limit):
            return False
    return True


def status(info: BackendInfo) -> dict[str, Any]:
    """A declaration and whether it is installed, as JSON."""
    return {
        "name": info.name,
        "version": info.version,
        "state": ("installed" if installed(info) else "not installed") if info.packages or info.fetch else "built in",
        "folder": str(folder(info)) if info.packages or info.fetch else None,
        "python": info.python,
        "packages": list(info.packages),
        "summary": info.summary,
        "needs": info.needs,
        "licence": info.licence,
    }
