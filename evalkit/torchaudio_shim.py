"""torchaudio beside a CPU build of torch.

torchaudio 2.11 (the only release the extra ``torchaudio`` takes, ``torchaudio==2.11.*``) has one Linux wheel, linked to
CUDA libraries. Beside a CPU torch it installs and cannot be imported, and its presence takes transformers and peft with
it, which import it when they find it. torchaudio has a state of its own for "no native library"; `install` gives it
that state where the library cannot be loaded, and changes nothing anywhere else. See docs/torchaudio.md.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from evalkit.errors import NotApplicable

RELEASE = "2.11"
"""The state is an internal of torchaudio, and was tried on this release: others are left alone."""

REMEDY = "pip install 'evalkit-audio[torchaudio]' (torchaudio==2.11.*)"
EXTENSION = "torchaudio._extension"


def import_torchaudio() -> ModuleType:
    """The module torchaudio, with `install` done first.

    Beside a CPU torch without the native library, ``forced_align``, ``rnnt_loss`` and the CUDA decoder raise, and IIR
    filters are slow Python loops; the rest is ordinary torch.

    Raises:
        NotApplicable: absent, or it cannot be imported; the message has the remedy.
    """
    install()
    try:
        return importlib.import_module("torchaudio")
    except ModuleNotFoundError as error:
        if error.name not in ("torchaudio", "torch"):
            raise NotApplicable(f"torchaudio cannot be imported ({error}): {REMEDY}") from error
        raise NotApplicable(f"{error.name} is not installed: {REMEDY}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise NotApplicable(
            f"torchaudio {_version() or ''} cannot be imported beside this torch ({_brief(error)}): {REMEDY}"
        ) from error


def install() -> None:
    """Put the import hook in place, once a process; costs nothing until torchaudio is imported.

    To be called before anything is taken from transformers or peft: they import torchaudio on the way, where it is
    installed.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ``torchaudio._extension`` where Python finds it, and has it executed by `_Loader`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != EXTENSION or not (_version() or "").startswith(f"{RELEASE}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._loader.exec_module(module)
        except OSError:  # what the dynamic linker says; the real library is always tried first
            import torch

            if torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None:
                raise  # there it is a broken installation, which must be seen
            _without_native_library(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # what inspect and importlib.resources ask a loader


def _without_native_library(module: Any) -> None:
    """What ``torchaudio/_extension/__init__.py`` sets where it finds no library."""
    fail_with_message = importlib.import_module("torchaudio._internal.module_utils").fail_with_message
    module._IS_TORCHAUDIO_EXT_AVAILABLE = False
    module._IS_ALIGN_AVAILABLE = False
    module.fail_if_no_align = fail_with_message(
        "Requires torchaudio's native library, which cannot be loaded beside a CPU build of torch."
    )


def _version() -> str | None:
    try:
        return importlib.metadata.version("torchaudio")
    except importlib.metadata.PackageNotFoundError:
        return None


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
