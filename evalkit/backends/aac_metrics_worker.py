"""Worker of the backend `aac-metrics`. Run in its environment by protocol.py: nothing of evalkit here.

What is worked around, all of aac-metrics 0.6.0:

* importing it imports msclap (CLAP similarity and MACE), which is not installed: an empty module takes its place;
* it downloads models when they are asked for. Nothing is downloaded here: folders and files are named by the caller;
* its METEOR and its PTB tokenizer refuse Java 14 and newer, on which both run: the limit is raised for those two. Its
  SPICE does need Java 8 to 13 and keeps the limit;
* its functions do not tokenise, and split at spaces: ``tokenize`` asks for its own PTB tokenizer.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
NAMES = (*BLEU, "rouge_l", "cider_d", "vocab", "meteor", "spice", "sbert_sim", "fense")
MODELS = {"sbert_sim": ("sentence_encoder",), "fense": ("sentence_encoder", "detector", "detector_encoder")}
NEWEST_JAVA = 99


class NotApplicable(Exception):
    """Reported as n/a; the protocol goes by the name."""


# -- methods ----------------------------------------------------------------------------------------------------------


def scores(
    names: list[str],
    candidates: list[str],
    references: list[list[str]],
    tokenize: bool = False,
    programs: str | None = None,
    java: str | None = None,
    spice_cache: str | None = None,
    models: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Values of the package's functions, each called with all clips and its defaults.

    Args:
        names: of `NAMES`.
        candidates, references: captions, tokens separated by spaces; raw ones with ``tokenize``.
        tokenize: let the package's PTB tokenizer (Java) make tokens first.
        programs: folder of the ``pycocoevalcap`` package, which has the jars of METEOR and the tokenizer.
        java: the program; None is ``java`` on the PATH.
        spice_cache: the folder that ``aac-metrics-download`` filled, for SPICE.
        models: ``sentence_encoder``, a folder; ``detector``, FENSE's checkpoint; ``detector_encoder``, the folder of
            its BERT (configuration and vocabulary).

    Returns:
        ``clips``: float64 [clips] each, and ``corpus``: a number each, under the package's own names.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(f"no measure {unknown[0]!r}; there are {', '.join(NAMES)}")
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates and the references of {len(references)} clips")
    functional = _package()
    with _java(java, programs) as place:
        if tokenize:
            candidates, references = _tokenized(place, candidates, references)
        clips: dict[str, Any] = {}
        corpus: dict[str, float] = {}
        for name in names:
            if name == "spice":
                options = _spice_options(java, spice_cache)
            elif name == "meteor":
                _need(place, "meteor")
                options = {"cache_path": place, "java_path": java or "java"}
            elif name in MODELS:
                options = _models(name, tuple(sorted((models or {}).items())))
            else:
                options = {}
            of_all, of_each = getattr(functional, name)(candidates, references, **options)
            corpus |= {key: float(value) for key, value in of_all.items()}
            clips |= {key: value.numpy().astype("float64") for key, value in of_each.items()}
    return {"clips": clips, "corpus": corpus}


def ptb(texts: list[str], programs: str | None, java: str | None = None) -> list[str]:
    """The package's PTB tokenizer: lower case, without punctuation, tokens separated by spaces."""
    _package()
    with _java(java, programs) as place:
        return _tokenized(place, texts, [])[0]


def bleu_counts(candidates: list[str], references: list[list[str]]) -> dict[str, Any]:
    """What the package's BLEU is computed from, int64: ``correct`` and ``guess`` [clips, 4], ``length`` and ``closest``
    [clips]."""
    import numpy as np

    _package()
    bleu = importlib.import_module("aac_metrics.functional.bleu")
    closest = getattr(bleu, "__single_reflen")
    cooked = bleu._bleu_update(candidates, references, 4, str.split, [], [])[0]
    return {
        "correct": np.array([c["correct"] for c in cooked], np.int64),
        "guess": np.array([c["guess"] for c in cooked], np.int64),
        "length": np.array([c["testlen"] for c in cooked], np.int64),
        "closest": np.array([closest(c["reflen"], "closest", c["testlen"]) for c in cooked], np.int64),
    }


def bleu_of_counts(correct: Any, guess: Any, length: Any, closest: Any) -> Any:
    """BLEU-1 to BLEU-4, float64 [rows, 4], of one corpus a row, by its pooled counts.

    The package computes a corpus from the sums over its clips: one clip with those sums has the same value.
    """
    import numpy as np

    _package()
    compute = importlib.import_module("aac_metrics.functional.bleu")._bleu_compute
    cooked = [
        {"correct": c, "guess": g, "testlen": n, "reflen": [r]}
        for c, g, n, r in zip(correct.tolist(), guess.tolist(), length.tolist(), closest.tolist(), strict=True)
    ]
    found = compute(cooked, [], True, 4, "closest", 0, True)[1]["bleu_1_to_4"]
    return np.ascontiguousarray(found.numpy().T)


def check() -> dict[str, Any]:
    """Import the package; its CIDEr-D of the example in its README (0.9614)."""
    a, b = "a man is speaking", "rain falls"
    own = ["a man speaks", "someone speaks", "a man is speaking while a bird is chirping in the background"]
    got = scores(["cider_d"], [a, b], [own, ["rain is falling hard on a surface"]])["corpus"]["cider_d"]
    if abs(got - 0.9614) > 5e-5:
        raise ValueError(f"cider_d of the package's README gives {got}, expected 0.9614")
    return {"cider_d": got, "expected": 0.9614}


METHODS: dict[str, Callable[..., Any]] = {
    "bleu_counts": bleu_counts,
    "bleu_of_counts": bleu_of_counts,
    "check": check,
    "ptb": ptb,
    "scores": scores,
}


# -- the package ------------------------------------------------------------------------------------------------------


@functools.cache
def _package() -> Any:
    stand_in = types.ModuleType("msclap")
    stand_in.CLAP = None  # type: ignore[attr-defined]
    sys.modules["msclap"] = stand_in
    import torch

    torch.set_num_threads(1)
    return importlib.import_module("aac_metrics.functional")


# -- its Java programs ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _java(java: str | None, programs: str | None) -> Iterator[str]:
    """A cache folder as the package wants it, with those of ``programs``; its limit for Java is raised meanwhile."""
    checks: Any = importlib.import_module("aac_metrics.utils.checks")
    settings = importlib.import_module("aac_metrics.utils.globals")
    limit = checks.MAX_JAVA_MAJOR_VERSION
    with tempfile.TemporaryDirectory(prefix="evalkit-aac-metrics-") as place:
        own = os.path.join(place, "aac-metrics")
        os.mkdir(own)
        if programs:
            os.symlink(os.path.join(programs, "meteor"), os.path.join(own, "meteor"))
            os.symlink(os.path.join(programs, "tokenizer"), os.path.join(own, "stanford_nlp"))
        settings.set_default_java_path(java)
        settings.set_default_tmp_path(place)
        checks.MAX_JAVA_MAJOR_VERSION = NEWEST_JAVA
        try:
            yield place
        finally:
            checks.MAX_JAVA_MAJOR_VERSION = limit
            settings.set_default_java_path(None)
            settings.set_default_tmp_path(None)


def _need(place: str, program: str) -> None:
    jar = {"meteor": "meteor/meteor-1.5.jar", "tokenizer": "stanford_nlp/stanford-corenlp-3.4.1.jar"}[program]
    if not os.path.isfile(os.path.join(place, "aac-metrics", jar)):
        raise NotApplicable(f"aac-metrics' {program} needs {jar.rpartition('/')[2]}, which pycocoevalcap has")
    try:
        importlib.import_module("aac_metrics.utils.checks").check_java_path(
            importlib.import_module("aac_metrics.utils.globals").get_default_java_path()
        )
    except ValueError as error:
        raise NotApplicable(f"aac-metrics' {program} needs Java: {error}") from error


def _tokenized(place: str, candidates: list[str], references: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Both in one call: the tokenizer is a Java program. A line break is a space: it reads lines."""
    _need(place, "tokenizer")
    tokens = importlib.import_module("aac_metrics.utils.tokenization").preprocess_mult_sents
    every = [[" ".join(text.split()) for text in several] for several in (candidates, *references)]
    if not any(every):
        return candidates, references
    own, *others = tokens(every, cache_path=place)
    return own, others


def _spice_options(java: str | None, cache: str | None) -> dict[str, Any]:
    """Arguments of the package's SPICE, where its own conditions are met."""
    checks = importlib.import_module("aac_metrics.utils.checks")
    program = java or "java"
    try:
        version = checks._get_java_version(program)
    except ValueError as error:
        raise NotApplicable(f"aac-metrics' SPICE needs Java 8 to 13: {error}") from error
    if not checks._check_java_version(version, 8, 13):
        raise NotApplicable(
            f"aac-metrics' SPICE needs Java 8 to 13, {program} is {version}: evalkit's own `spice` runs on that"
        )
    if cache is None:
        raise NotApplicable("aac-metrics' SPICE needs the folder that `aac-metrics-download` fills: give spice_cache")
    try:
        importlib.import_module("aac_metrics.functional.spice").check_spice_install(cache)
    except OSError as error:
        raise NotApplicable(f"aac-metrics' SPICE: {error}") from error
    return {"cache_path": cache, "java_path": program}


# -- models -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _models(name: str, given: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Arguments of a measure that reads meaning: models loaded from where the caller says."""
    paths = dict(given)
    for key in MODELS[name]:
        if not os.path.exists(paths.get(key, "")):
            where = f"{paths[key]} is not there" if key in paths else "not given"
            raise NotApplicable(f"aac-metrics' {name} needs models[{key!r}]: {where}; nothing is downloaded")
    import sentence_transformers

    folder = paths["sentence_encoder"]
    encoder = sentence_transformers.SentenceTransformer(folder, device="cpu", local_files_only=True)
    options: dict[str, Any] = {"sbert_model": encoder, "device": "cpu"}
    if name == "fense":
        options["echecker"], options["echecker_tokenizer"] = _detector(paths["detector"], paths["detector_encoder"])
    return options


def _detector(checkpoint: str, folder: str) -> tuple[Any, Any]:
    """The package's own class with the checkpoint's weights; its BERT is built from its configuration alone."""
    import torch
    import transformers

    fer: Any = importlib.import_module("aac_metrics.functional.fer")
    kept = torch.load(checkpoint, map_location="cpu", weights_only=True)

    class Untrained:
        @staticmethod
        def from_pretrained(path: str) -> Any:
            return transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(path))

    original = fer.AutoModel
    fer.AutoModel = Untrained
    try:
        detector = fer.BERTFlatClassifier(model_type=folder, num_classes=kept["num_classes"])
    finally:
        fer.AutoModel = original
    detector.load_state_dict({k: v for k, v in kept["state_dict"].items() if not k.endswith("position_ids")})
    return detector.eval(), transformers.AutoTokenizer.from_pretrained(folder)
