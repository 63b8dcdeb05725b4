"""Worker of the backend `frechet-audio-distance`. Run in its environment by protocol.py: nothing of evalkit here.

What is worked around, all of frechet-audio-distance 0.3.4:

* its constructor downloads weights. Nothing is downloaded here: files are looked for in a folder, their names' hash is
  checked as torch.hub would, and they are read with ``weights_only``; what is absent is n/a with its name;
* importing it imports laion_clap, which fetches three tokenizers of language models while it is imported. What does not
  use CLAP gets an empty module in its place;
* ``score`` returns -1, and ``get_embeddings`` leaves out clips, where something raised: here it raises;
* ``pann`` is refused: its embeddings ``[2048]`` a file are joined end to end, so that the "distribution" is one of
  single numbers (issue 37 of its repository). `pann` below keeps them as ``[1, 2048]``.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import importlib
import io
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

RATES = {"vggish": (16_000,), "clap": (48_000,), "encodec": (24_000, 48_000)}
CLAP_MODELS = {  # submodel: file, and file with fusion
    "630k-audioset": ("630k-audioset-best.pt", "630k-audioset-fusion-best.pt"),
    "630k": ("630k-best.pt", "630k-fusion-best.pt"),
    "music_audioset": ("music_audioset_epoch_15_esc_90.14.pt",) * 2,
    "music_speech": ("music_speech_epoch_15_esc_89.25.pt",) * 2,
    "music_speech_audioset": ("music_speech_audioset_epoch_15_esc_89.98.pt",) * 2,
}
PANN = {  # rate: class, STFT window, hop, highest frequency, file
    8_000: ("Cnn14_8k", 256, 80, 4_000, "Cnn14_8k_mAP=0.416.pth"),
    16_000: ("Cnn14_16k", 512, 160, 8_000, "Cnn14_16k_mAP=0.438.pth"),
    32_000: ("Cnn14", 1024, 320, 16_000, "Cnn14_mAP=0.431.pth"),
}
PANN_FRAMES = 32
"""STFT frames that five halvings in time need."""
VGGISH_SAMPLES = 15_600
"""96 STFT frames of 25 ms every 10 ms, at 16 kHz."""


class NotApplicable(Exception):
    """Reported as n/a; the protocol goes by the name."""


# -- methods ----------------------------------------------------------------------------------------------------------


def frechet(x: Any, y: Any) -> float:
    """The package's own distance of two sets of embeddings ``[n, d]``: ``np.cov`` (n - 1) and scipy's ``sqrtm``."""
    import numpy as np

    for name, one in (("x", x), ("y", y)):
        if one.ndim != 2 or len(one) < 2:
            raise ValueError(f"{name} has shape {one.shape}; a covariance needs [n, d] with n of at least 2")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"dimensions differ: {x.shape[1]} and {y.shape[1]}")
    tool = _bare()
    with _its_words() as words:
        value = tool.calculate_frechet_distance(*tool.calculate_embd_statistics(x), *tool.calculate_embd_statistics(y))
    if not np.isfinite(value):
        raise ValueError(f"the package gives {value} {words.getvalue().strip()}")
    return float(np.real(value))


def embed(
    model: str,
    sample_rate: int,
    weights: str | None = None,
    arrays: list[Any] | None = None,
    files: list[str] | None = None,
    submodel: str = "630k-audioset",
    fusion: bool = False,
) -> list[Any]:
    """Embeddings as the package computes them, float32 ``[frames, d]`` a clip: vggish 128, clap 512, encodec 128.

    Args:
        weights: folder of the weights, see docs/backends.md.
        arrays: mono float ``[samples]`` at ``sample_rate`` Hz, the model's own rate. Or files, which the package reads
            and resamples (resampy).

    A clip of which vggish makes no frame (under 15,600 samples) gives ``[0, 128]``. CLAP crops what is longer than 10 s
    at random; the draw is seeded anew for every clip.
    """
    import numpy as np

    if (arrays is None) == (files is None):
        raise ValueError("give arrays or files, one of them")
    tool = _model(model, sample_rate, weights, submodel, fusion)
    if files is not None:
        load = importlib.import_module("frechet_audio_distance.utils").load_audio_task
        arrays = [load(path, tool.sample_rate, tool.channels, "float32") for path in files]
    out = []
    for number, samples in enumerate(arrays or []):
        if model == "vggish" and len(samples) < VGGISH_SAMPLES:
            out.append(np.zeros((0, 128), np.float32))
            continue
        out.append(_embed_one(tool, samples, f"clip {number}"))
    return out


def score(
    model: str,
    sample_rate: int,
    reference: str,
    estimate: str,
    weights: str | None = None,
    submodel: str = "630k-audioset",
    fusion: bool = False,
) -> float:
    """The package's own FAD of two folders of audio files, for comparison with what others have published with it."""
    import numpy as np

    for folder in (reference, estimate):
        if not os.path.isdir(folder) or not os.listdir(folder):
            raise ValueError(f"{folder}: no folder with audio files")
    tool = _model(model, sample_rate, weights, submodel, fusion)
    np.random.seed(0)  # noqa: NPY002 - what laion_clap draws from
    with _its_words() as words:
        value = tool.score(reference, estimate)
    if "exception" in words.getvalue() or "error" in words.getvalue() or value == -1 or not np.isfinite(value):
        raise ValueError(f"the package gives {value}: {words.getvalue().strip() or 'it does not say why'}")
    return float(np.real(value))


def pann(sample_rate: int, weights: str | None, arrays: list[Any]) -> list[Any]:
    """PANN's CNN14 embedding of a whole clip, float32 ``[1, 2048]`` each, by the package's network and this file's
    pooling of clips; ``[0, 2048]`` for a clip too short for one (31 hops of 10 ms)."""
    import numpy as np
    import torch

    net, hop = _pann(sample_rate, _folder("pann", weights))
    out = []
    for samples in arrays:
        if 1 + len(samples) // hop < PANN_FRAMES:
            out.append(np.zeros((0, 2048), np.float32))
            continue
        with torch.no_grad():
            out.append(
                net(torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))[None])["embedding"].numpy()
            )
    return out


def check() -> dict[str, Any]:
    """Import the package, and its distance of two small sets against the closed form of their covariances."""
    import numpy as np

    x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    got = frechet(x, 3 * x + np.array([1.0, 2.0]))
    want = 5 + 4 * float(np.trace(np.cov(x, rowvar=False)))  # |mu|^2 + (3 - 1)^2 tr C
    if abs(got - want) > 1e-6 * want:
        raise ValueError(f"frechet gives {got}, expected {want}")
    return {"frechet": got, "expected": want}


METHODS: dict[str, Callable[..., Any]] = {
    "check": check,
    "embed": embed,
    "frechet": frechet,
    "pann": pann,
    "score": score,
}


# -- the package ------------------------------------------------------------------------------------------------------


def _package(clap: bool) -> Any:
    """The module, with the real laion_clap only for what uses it."""
    if clap and getattr(sys.modules.get("laion_clap"), "stand_in", False):
        for name in [m for m in sys.modules if m.partition(".")[0] in ("laion_clap", "frechet_audio_distance")]:
            del sys.modules[name]
    if not clap and "laion_clap" not in sys.modules:
        stand_in = types.ModuleType("laion_clap")
        stand_in.stand_in = True  # type: ignore[attr-defined]
        sys.modules["laion_clap"] = stand_in
    try:
        return importlib.import_module("frechet_audio_distance")
    except OSError as error:
        raise NotApplicable(
            "laion_clap needs tokenizers when it is imported: `hf download bert-base-uncased`, `hf download "
            f"roberta-base` (with its weights) and `hf download facebook/bart-base` put them into the hub's cache "
            f"({str(error).splitlines()[0][:200]})"
        ) from error


def _bare() -> Any:
    """An object of the package's class without a model: its arithmetic needs none."""
    kind = _package(clap=False).FrechetAudioDistance
    return kind.__new__(kind)


def _model(model: str, sample_rate: int, weights: str | None, submodel: str, fusion: bool) -> Any:
    if model == "pann":
        raise NotApplicable(
            "pann of frechet-audio-distance 0.3.4 is wrong: it joins the embeddings [2048] of all files into one row "
            "of numbers, and compares two distributions of single numbers (its issue 37). evalkit's embedder `pann` "
            "uses the same network with a row for each clip"
        )
    if model not in RATES:
        raise ValueError(f"no model {model!r}; there are {', '.join(RATES)}")
    if sample_rate not in RATES[model]:
        raise ValueError(f"{model} is for {' or '.join(map(str, RATES[model]))} Hz, not {sample_rate}")
    if model == "clap" and submodel not in CLAP_MODELS:
        raise ValueError(f"no CLAP submodel {submodel!r}; there are {', '.join(CLAP_MODELS)}")
    return _made(model, sample_rate, _folder(model, weights), submodel, fusion)


@functools.lru_cache(maxsize=1)  # models are large
def _made(model: str, sample_rate: int, weights: str, submodel: str, fusion: bool) -> Any:
    import torch

    torch.set_num_threads(1)
    if model == "clap":
        _there(os.path.join(weights, CLAP_MODELS[submodel][fusion]), "from the hub, lukewys/laion_clap")
    kind = _package(model == "clap").FrechetAudioDistance
    with _no_downloads(weights), _its_words():
        return kind(
            ckpt_dir=weights,
            model_name=model,
            submodel_name=submodel,
            sample_rate=sample_rate,
            channels=2 if sample_rate == 48_000 and model == "encodec" else 1,
            enable_fusion=fusion,
            audio_load_worker=1,
        )


def _embed_one(tool: Any, samples: Any, name: str) -> Any:
    import numpy as np
    import torch

    np.random.seed(0)  # noqa: NPY002 - what laion_clap draws from
    torch.manual_seed(0)
    with _its_words() as words:
        try:
            found = tool.get_embeddings([samples], tool.sample_rate)
        except ValueError as error:  # nothing to concatenate: it has swallowed the reason and printed it
            raise ValueError(f"{name}: {words.getvalue().strip() or error}") from error
    return np.ascontiguousarray(found, dtype=np.float32)


@functools.lru_cache(maxsize=1)
def _pann(sample_rate: int, weights: str) -> tuple[Any, int]:
    import torch

    if sample_rate not in PANN:
        raise ValueError(f"pann is for {' or '.join(map(str, PANN))} Hz, not {sample_rate}")
    torch.set_num_threads(1)
    kind, window, hop, highest, file = PANN[sample_rate]
    quoted = os.path.join(weights, file.replace("=", "%3D"))  # as the package names what it downloads
    path = quoted if os.path.isfile(quoted) else os.path.join(weights, file)
    _there(path, "record 3987831 of Zenodo")
    _package(clap=False)
    models = importlib.import_module("frechet_audio_distance.models.pann")
    net = getattr(models, kind)(
        sample_rate=sample_rate,
        window_size=window,
        hop_size=hop,
        mel_bins=64,
        fmin=50,
        fmax=highest,
        classes_num=527,
    )
    net.load_state_dict(_read(path)["model"])
    return net.eval(), hop


# -- weights ----------------------------------------------------------------------------------------------------------


def _folder(model: str, weights: str | None) -> str:
    if not weights or not os.path.isdir(weights):
        where = f"{weights} is no folder" if weights else "no folder given"
        raise NotApplicable(f"weights of {model} absent: {where} (docs/backends.md lists the files)")
    return weights


def _there(path: str, source: str) -> None:
    if not os.path.isfile(path):
        raise NotApplicable(f"weights absent: put {os.path.basename(path)} into {os.path.dirname(path)} ({source})")


def _read(path: str, **options: Any) -> Any:
    """``torch.load`` of numbers only; numpy's arrays and scalars, which some of these files hold, are numbers."""
    import numpy as np
    import torch

    core: Any = importlib.import_module("numpy.core.multiarray")
    kinds = {type(np.dtype(t)) for t in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u4", "u8", "?")}
    numbers = [core._reconstruct, core.scalar, np.ndarray, np.dtype, *kinds]
    with torch.serialization.safe_globals(numbers):
        return _torch_load(path, **{"map_location": "cpu", **options, "weights_only": True})


def _torch_load(*arguments: Any, **options: Any) -> Any:
    import torch

    return getattr(torch.load, "original", torch.load)(*arguments, **options)


@contextlib.contextmanager
def _no_downloads(weights: str) -> Iterator[None]:
    """torch.hub reads from ``weights`` and from nowhere else, and checkpoints are read as numbers only."""
    torch: Any = importlib.import_module("torch")
    saved = torch.load, torch.hub.load, torch.hub.load_state_dict_from_url

    def from_checkout(repo_or_dir: str, model: str, **options: Any) -> Any:
        owner, _, name = repo_or_dir.partition("/")
        checkouts = glob.glob(os.path.join(glob.escape(weights), f"{owner}_{name}_*", "hubconf.py"))
        if not checkouts:
            raise NotApplicable(
                f"code of {model} absent: put a checkout of the repository {repo_or_dir} (the folder with hubconf.py) "
                f"into {os.path.join(weights, f'{owner}_{name}_master')}"
            )
        return saved[1](os.path.dirname(checkouts[0]), model, source="local", **options)

    def from_folder(url: str, *_: Any, **options: Any) -> Any:
        path = os.path.join(weights, "checkpoints", os.path.basename(url))
        _there(path, url)
        promised = re.search(r"-([a-f0-9]{8,})\.", os.path.basename(path))  # torch.hub's convention
        if promised:
            with open(path, "rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
            if not found.startswith(promised[1]):
                raise ValueError(
                    f"{path}: not the file its name promises (sha256 {found[:12]}): fetch it again ({url})"
                )
        return _read(path, map_location=options.get("map_location") or "cpu")

    def careful(path: Any, map_location: Any = None, **_: Any) -> Any:
        return _read(path, map_location=map_location or "cpu")

    careful.original = saved[0]  # type: ignore[attr-defined]
    torch.load, torch.hub.load, torch.hub.load_state_dict_from_url = careful, from_checkout, from_folder
    try:
        yield
    finally:
        torch.load, torch.hub.load, torch.hub.load_state_dict_from_url = saved


@contextlib.contextmanager
def _its_words() -> Iterator[io.StringIO]:
    """What the package prints in the place of raising."""
    words = io.StringIO()
    with contextlib.redirect_stdout(words):
        yield words
    sys.stderr.write(words.getvalue())
