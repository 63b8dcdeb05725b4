"""evalkit: evaluation of ultra-low-bitrate audio tokenizers and of LLMs that read and write their tokens."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Clip": "evalkit.audio",
    "Prepare": "evalkit.audio",
    "read_clip": "evalkit.audio",
    "write_clip": "evalkit.audio",
    "Tokens": "evalkit.tokens",
    "Cost": "evalkit.cost",
    "Task": "evalkit.registry",
    "Item": "evalkit.datasets",
    "Layout": "evalkit.datasets",
    "DatasetInfo": "evalkit.datasets",
    "NotApplicable": "evalkit.errors",
    "EvalkitError": "evalkit.errors",
    "system": "evalkit.registry",
    "metric": "evalkit.registry",
    "corpus_metric": "evalkit.registry",
    "CorpusValue": "evalkit.registry",
    "embedder": "evalkit.registry",
    "recogniser": "evalkit.registry",
    "task": "evalkit.registry",
    "dataset": "evalkit.registry",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import evalkit` stays light."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'evalkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]


if importlib.util.find_spec("torchaudio") is not None:
    # Beside a CPU build of torch its presence breaks transformers and peft, unless this comes before them.
    from evalkit import torchaudio_shim

    torchaudio_shim.install()

if TYPE_CHECKING:
    from evalkit.audio import Clip, Prepare, read_clip, write_clip
    from evalkit.cost import Cost
    from evalkit.datasets import DatasetInfo, Item, Layout
    from evalkit.errors import EvalkitError, NotApplicable
    from evalkit.registry import CorpusValue, Task, corpus_metric, dataset, embedder, metric, recogniser, system, task
    from evalkit.tokens import Tokens

__all__ = [
    "Clip",
    "CorpusValue",
    "Cost",
    "DatasetInfo",
    "EvalkitError",
    "Item",
    "Layout",
    "NotApplicable",
    "Prepare",
    "Task",
    "Tokens",
    "__version__",
    "corpus_metric",
    "dataset",
    "embedder",
    "metric",
    "read_clip",
    "recogniser",
    "system",
    "task",
    "write_clip",
]
