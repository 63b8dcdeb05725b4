"""The command line. Every command is a thin wrapper of a documented Python call; every option is also an environment
variable (``EVALKIT_RUN_JOBS`` for ``evalkit run --jobs``; ``EVALKIT_DATA`` for the data root)."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evalkit import __version__
from evalkit.errors import EvalkitError, UsageError
from evalkit.registry import KINDS
from evalkit.spec import split_specs

if TYPE_CHECKING:
    from evalkit.plan import Request

DATA_ROOT = click.option(
    "--data-root",
    metavar="DIR",
    envvar="EVALKIT_DATA",
    default=None,
    help="Folder of data sets (default: $EVALKIT_DATA).",
)


def _finite(context: Any, parameter: Any, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a time")
    return value


JOBS = click.option(
    "--jobs",
    "-j",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Worker processes; 0 works in this process, without isolation from crashes and hangs.",
)
TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(0, 86_400 * 365, min_open=True),
    callback=_finite,
    default=300.0,
    show_default=True,
    help="Seconds a clip may take in one system or metric.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of a table.")


class _Lists(click.ParamType):
    """Comma-separated specs; the option may be repeated."""

    name = "spec,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> list[str]:
        return value if isinstance(value, list) else split_specs(value)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "EVALKIT"})
@click.version_option(__version__, prog_name="evalkit")
def cli() -> None:
    """Evaluate ultra-low-bitrate audio tokenizers, and LLMs that read and write their tokens."""


def main() -> None:
    """Entry point. Exit codes: 0 all scored, 1 usage, 2 some samples failed, 3 a system or task failed whole."""
    import warnings

    warnings.showwarning = _warn
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without UTF-8 shows what it can
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = 1
    except EvalkitError as error:
        from evalkit.text import printable

        print(f"evalkit: {printable(str(error))}", file=sys.stderr)
        code = 1
    except OSError as error:  # a full disk, a folder that may not be written: no fault of this program
        from evalkit.text import printable

        print(f"evalkit: {printable(str(error))}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("evalkit: interrupted", file=sys.stderr)
        code = 130
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # the reader (`| head`) has had enough; nothing is left to say at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code if isinstance(code, int) else 0)


def _warn(message: Any, category: Any, *_: Any, **__: Any) -> None:
    from evalkit.registry import PluginWarning
    from evalkit.text import printable

    if issubclass(category, PluginWarning):
        print(f"evalkit: warning: {printable(str(message))}", file=sys.stderr)


def _joined(values: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(v for group in values for v in group))


def _request_options(command: Any) -> Any:
    for option in reversed(
        [
            click.option(
                "--task",
                "-t",
                "tasks",
                type=_Lists(),
                multiple=True,
                required=True,
                help="Task names, or data set names that stand for all their tasks.",
            ),
            click.option(
                "--system",
                "-s",
                "systems",
                type=_Lists(),
                multiple=True,
                required=True,
                help="System specs, such as identity,opus:6,files:DIR@kbps=1.5,mine.py:MyCodec.",
            ),
            DATA_ROOT,
            click.option(
                "--limit",
                type=click.IntRange(1),
                default=None,
                help="At most so many clips a task, evenly spaced in id order.",
            ),
            click.option(
                "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every random draw."
            ),
            click.option(
                "--seeds",
                type=click.IntRange(1),
                default=1,
                show_default=True,
                help="Noise seeds, from --seed on: stochastic systems are decoded with each, others once.",
            ),
            click.option(
                "--metric",
                "metrics",
                type=_Lists(),
                multiple=True,
                help="Further metrics beside each task's own (names or mine.py:function).",
            ),
            click.option("--baseline", default=None, help="System that paired differences are taken against."),
            click.option(
                "--clips",
                type=click.Choice(["unseen", "all"]),
                default="unseen",
                show_default=True,
                help="Leave out the clips that any of the systems was trained on, or keep all and say so.",
            ),
            click.option(
                "--backend",
                metavar="NAME",
                default=None,
                help="Score with this isolated backend's own measures where it has them (aac-metrics).",
            ),
            click.option("--keep-audio", is_flag=True, help="Keep the decoded audio in the run directory."),
        ]
    ):
        command = option(command)
    return command


def _request(options: dict[str, Any]) -> Request:
    from evalkit.plan import Request

    lists = {k: _joined(options[k]) for k in ("tasks", "systems", "metrics")}
    return Request(**{**options, **lists})


@cli.command()
@_request_options
@click.option(
    "--out",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Run directory (default: runs/<tasks>-<hash of the request>).",
)
@JOBS
@TIMEOUT
@click.option("--retry-failed", is_flag=True, help="Try again what failed before.")
@click.option("--dry-run", is_flag=True, help="Print clips x systems x metrics, what is cached, and a forecast.")
@JSON
def run(
    out: Path | None, jobs: int, timeout: float, retry_failed: bool, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Run systems on tasks, and print and write the comparison tables.

    Issuing the same command again finishes what is unfinished and computes nothing twice.
    """
    from evalkit import progress
    from evalkit.run import run as run_it

    request = _request(options)
    if dry_run:
        _dry_run(request, out, as_json)
        return
    shown = progress.make()
    outcome = run_it(request, out=out, jobs=jobs, timeout=timeout, retry_failed=retry_failed, progress=shown)
    _finish(outcome, as_json)


@cli.command()
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--metric", "metrics", type=_Lists(), multiple=True, help="Further metrics (names or mine.py:function).")
@JOBS
@TIMEOUT
@JSON
def score(directory: Path, metrics: Any, jobs: int, timeout: float, as_json: bool) -> None:
    """Score the kept predictions of a run again: new or changed metrics, nothing predicted anew."""
    from evalkit import progress
    from evalkit.run import rescore

    outcome = rescore(directory, metrics=_joined(metrics), jobs=jobs, timeout=timeout, progress=progress.make())
    _finish(outcome, as_json)


def _finish(outcome: Any, as_json: bool) -> None:
    from evalkit.report import write_report

    report = write_report(outcome)
    if as_json:
        print(
            json.dumps(
                {
                    "run": str(outcome.directory),
                    "exit_code": outcome.exit_code,
                    "errors": outcome.errors,
                    "files": [str(p) for p in report.files],
                    "rows": report.rows,
                },
                indent=1,
            )
        )
    else:
        from evalkit.terminal import console, show_table
        from evalkit.text import printable

        out = console()
        for table in report.tables:
            show_table(table, out)
        for error in outcome.errors:
            out.print(f"failed whole: {printable(error)}", markup=False, highlight=False, style="red", soft_wrap=True)
        if outcome.interrupted:
            out.print("interrupted: issue the same command to finish", style="yellow")
        for path in report.files:
            if path.suffix == ".md":
                out.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(outcome.exit_code)


def _dry_run(request: Request, out: Path | None, as_json: bool) -> None:
    from evalkit.forecast import forecast
    from evalkit.terminal import show_columns

    plan = forecast(request, out)
    if as_json:
        print(json.dumps(plan.as_json(), indent=1))
    else:
        show_columns(
            f"{plan.directory}", ("task", "system", "clips", "metrics", "cached", "to do", "forecast"), plan.lines()
        )
        print(plan.summary())


@cli.command()
@click.argument("runs", nargs=-1, metavar="RUNS...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("leaderboards"),
    show_default=True,
    help="Leaderboard folder.",
)
@click.option("--check", is_flag=True, help="Write nothing; fail when a file differs from what the records give.")
def leaderboard(runs: tuple[Path, ...], out: Path, check: bool) -> None:
    """Add runs to a leaderboard folder and rebuild its markdown, CSV and JSON; without RUNS only rebuild."""
    from evalkit import leaderboard as board

    if check:
        stale = board.check(out)
        for name in stale:
            print(f"stale: {out / name}")
        if stale:
            raise UsageError(f"{len(stale)} files of {out} are stale; `evalkit leaderboard -o {out}` rebuilds them")
        print(f"{out} is fresh")
        return
    for path in board.update(runs, out):
        print(f"wrote {path}")


@cli.command()
@click.argument("source", metavar="INPUT")
@click.option("--system", "-s", default="vqfm", show_default=True, help="Spec of the system that makes the tokens.")
@click.option("--out", "-o", metavar="FILE", default=None, help="Token file (default: INPUT with .tok); - is stdout.")
@click.option("--mono", is_flag=True, help="Mix the channels down to their mean first.")
def encode(source: str, system: str, out: str | None, mono: bool) -> None:
    """Encode a recording into a token file.

    INPUT is an audio file, or - for stdin. It is resampled to the system's rate where it has one, and that is what the
    tokens stand for. Long files take no more memory than short ones with systems that work in blocks (vqfm, vqmse).
    """
    from evalkit.coding import encode_file

    _say(encode_file(_input(source), _output(source, out), system, mono=mono))


@cli.command()
@click.argument("source", metavar="INPUT")
@click.option("--system", "-s", default=None, help="Spec of the system to decode with (default: the one that made it).")
@click.option("--out", "-o", metavar="FILE", default=None, help="Audio file (default: INPUT with .wav); - is stdout.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the system's noise.")
@click.option("--force", is_flag=True, help="Decode with another system or other weights than made the tokens.")
def decode(source: str, system: str | None, out: str | None, seed: int, force: bool) -> None:
    """Decode a token file into audio of exactly the encoded length, at the system's sample rate.

    INPUT is a file that `evalkit encode` wrote, or - for stdin. The suffix of the result names its format; .wav, and
    what goes to stdout, is 32-bit float.
    """
    from evalkit.coding import decode_file

    _say(decode_file(_input(source), _output(source, out), system, seed=seed, force=force))


def _input(name: str) -> Any:
    return sys.stdin.buffer if name == "-" else name


def _output(source: str, name: str | None) -> Any:
    """A file name, or the binary stdout: for ``-``, and where the input is stdin and nothing is said."""
    if name != "-" and not (name is None and source == "-"):
        return name
    if sys.stdout.isatty():
        raise UsageError("standard output is a terminal: name a file with --out, or pipe the result on")
    return sys.stdout.buffer


def _say(outcome: Any) -> None:
    from evalkit.text import printable

    sys.stderr.write(printable(str(outcome)) + "\n")  # in one piece: the other end of a pipe has its line as well


@cli.command("list")
@click.argument("kind", type=click.Choice([*KINDS, "applicability"]))
@JSON
def list_(kind: Any, as_json: bool) -> None:
    """What there is, plug-ins included: tasks, systems, metrics, datasets, embedders, recognisers, backends.

    applicability: where each metric applies, by domain, sample rate and duration.
    """
    from evalkit import catalogue

    matrix = kind == "applicability"
    head, found = (catalogue.MATRIX, catalogue.matrix()) if matrix else (catalogue.head(kind), catalogue.rows(kind))
    if as_json:
        print(json.dumps([dict(zip(head, r, strict=True)) for r in found], indent=1))
    else:
        from evalkit.terminal import show_columns

        show_columns("", head, found)


@cli.command()
@click.argument("name", metavar="METRIC")
@click.option("--task", "-t", default=None, help="Say whether and how it applies to this task.")
def explain(name: str, task: str | None) -> None:
    """What a metric is, where it is defined, and whether it applies to a task."""
    from evalkit.catalogue import explain_metric

    print(explain_metric(name, task))


@cli.command()
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--metric",
    "metrics",
    type=_Lists(),
    multiple=True,
    help="Per-clip metrics of captions (default: those of the captioning tasks).",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the bootstrap.")
def agreement(file: Path, metrics: Any, seed: int) -> None:
    """How often caption measures prefer what people preferred.

    FILE is audiocaps_eval.json or clotho_eval.json of FENSE's benchmark.
    """
    from evalkit.agreement import agreement as measure
    from evalkit.terminal import show_columns
    from evalkit.text import with_interval

    if not metrics:
        from evalkit import registry

        own = registry.get("tasks", "clotho-captioning").metrics
        infos = [registry.get("metrics", m) for m in own]
        metrics = [[i.name for i in infos if i.of_text and i.level == "sample" and i.direction != "none"]]
    rows = []
    for row in measure(file, _joined(metrics), seed=seed):
        found = row.interval
        value = with_interval(found.estimate, found.low, found.high) if found and found.estimate is not None else "n/a"
        rows.append((row.metric, row.kind, str(row.pairs), value, row.reason))
    show_columns("", ("metric", "pairs", "n", "agreement", ""), rows)


@cli.command()
def doctor() -> None:
    """Test what this installation can really do; exit code 1 when something essential is broken."""
    from evalkit.doctor import examine
    from evalkit.terminal import show_columns

    findings = examine()
    show_columns("", ("", "what", "finding"), [(f.mark, f.name, f.detail) for f in findings])
    sys.exit(1 if any(f.mark == "FAIL" for f in findings) else 0)


@cli.command()
@click.option(
    "--metric", "metrics", type=_Lists(), multiple=True, help="Metrics (names or mine.py:function; default: all)."
)
@click.option(
    "--clips",
    type=_Lists(),
    multiple=True,
    help="Data sets to draw clips from (default: scenes and what the data root holds of the others).",
)
@DATA_ROOT
@click.option(
    "--limit", type=click.IntRange(1), default=None, help="Clips of each data set (default: 12 scenes, else 6)."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the degradations.")
@click.option(
    "--out",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/selftest"),
    show_default=True,
    help="Folder of selftest.json, selftest.md and selftest.html.",
)
@JOBS
@TIMEOUT
@click.option("--record", is_flag=True, help="Write the verdicts into the package, where they are shipped from.")
def selftest(
    metrics: Any,
    clips: Any,
    data_root: str | None,
    limit: int | None,
    seed: int,
    out: Path,
    jobs: int,
    timeout: float,
    record: bool,
) -> None:
    """Hold every metric against what it declares, on degradations of known severity.

    Exit code 2 when a metric fails its own declaration. Tables flag it from then on; a run with a --limit below the
    default number of clips is a trial, whose verdicts are not kept.
    """
    from evalkit import progress
    from evalkit import selftest as tests
    from evalkit.terminal import show_columns

    outcome = tests.selftest(
        _joined(metrics) or None,
        _joined(clips) or None,
        seed=seed,
        data_root=data_root,
        limit=limit,
        jobs=jobs,
        timeout=timeout,
        progress=progress.make(),
    )
    show_columns("", ("metric", "verdict", "why"), [(m.name, m.verdict, m.reason) for m in outcome.metrics])
    for note in outcome.notes:
        print(f"note: {note}")
    for path in tests.write(outcome, out):
        print(f"wrote {path}")
    if limit is None or limit >= max(tests.DEFAULT_CLIPS.values()):
        for path in (tests.own_verdicts(), *([tests.SHIPPED] if record else [])):
            tests.keep(outcome, path)
    elif record:
        raise UsageError(f"verdicts on {limit} clips are not recorded: leave out --limit")
    sys.exit(outcome.exit_code)


@cli.command()
@click.argument("name", metavar="DATASET")
@DATA_ROOT
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, path_type=Path),
    default=None,
    help="Take the archives from this folder or file instead of the network.",
)
@click.option("--only", multiple=True, metavar="ARCHIVE", help="Archives by name (default: the first; 'all' for all).")
def download(name: str, data_root: str | None, source: Path | None, only: tuple[str, ...]) -> None:
    """Download a data set into the data root: resumed, checked by checksum, safely unpacked."""
    from evalkit import registry
    from evalkit.datasets.download import download as fetch
    from evalkit.progress import bytes_progress

    if not data_root:
        raise UsageError("say where to: --data-root DIR or EVALKIT_DATA")
    info = registry.get("datasets", name)
    with bytes_progress() as tell:
        for got in fetch(info, Path(data_root), tell, only=only, source=source):
            print(f"{got.filename}: {got.files:,} files in {got.folder}; {got.note}")


@cli.group()
def train() -> None:
    """Train models."""


@train.command("tokenizer")
@click.option("--preset", default="cpu", show_default=True, help="tiny, cpu, gpu or paper: see docs/tokenizer.md.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--out",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder of the run (default: runs/tokenizer-PRESET). One that holds a killed run is finished.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder of cached spectrograms, to share between runs (default: OUT/cache).",
)
@DATA_ROOT
def train_tokenizer(
    preset: str, overrides: tuple[str, ...], out: Path | None, cache: Path | None, data_root: str | None
) -> None:
    """Train the sound tokenizer: VAE, quantizer and decoders, each resumable.

    For many processes: accelerate launch -m evalkit train tokenizer ...
    """
    made = _trainer("tokenizer")(preset, overrides, out, data_root, cache)
    for name, folder in made.items():
        print(f"{name}: {folder}")


def _trainer(name: str) -> Any:
    import importlib

    from evalkit.registry import TRAINERS, check_own_package

    module, _, function = TRAINERS[name].partition(":")
    check_own_package(module.partition(".")[0])
    return getattr(importlib.import_module(module), function)


@cli.group()
def check() -> None:
    """Conformance checks for plug-ins."""


@check.command("system")
@click.argument("spec")
@click.option(
    "--domain",
    type=click.Choice(["speech", "music", "sound"]),
    default=None,
    help="Test signal (default: the system's own first domain).",
)
def check_system(spec: str, domain: Any) -> None:
    """Test that a system keeps the contract of docs/add-a-codec.md; exit code 2 when it does not."""
    from evalkit.check import check_system as examine
    from evalkit.terminal import show_columns

    findings = examine(spec, domain=domain) if domain else examine(spec)
    show_columns(spec, ("", "check", "detail"), [("ok" if f.ok else "FAIL", f.name, f.detail) for f in findings])
    sys.exit(0 if all(f.ok for f in findings) else 2)


@cli.group()
def cache() -> None:
    """What is reused, and why."""


@cache.command("explain")
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--system", default=None, help="Only systems whose name contains this.")
@click.option("--clip", default=None, help="Only clips whose id contains this.")
@JSON
def cache_explain(directory: Path, system: str | None, clip: str | None, as_json: bool) -> None:
    """Why issuing a run's command again would reuse or recompute each of its predictions."""
    from collections import Counter

    from evalkit import execute
    from evalkit.cache import Explanation
    from evalkit.cache import explain as explain_run
    from evalkit.plan import load_user_files, make_plan, request_from_json
    from evalkit.record import RunDirectory
    from evalkit.terminal import show_columns

    recorded = RunDirectory(directory)
    request = request_from_json(recorded.read()["request"])
    load_user_files(request)
    workers = execute.make(1)
    try:
        found = explain_run(recorded, make_plan(request, workers))
    finally:
        workers.close(now=True)
    found = [e for e in found if (system or "") in e.system and (clip or "") in e.clip]

    def who(e: Explanation) -> str:
        return e.system if e.seed is None else f"{e.system} (seed {e.seed})"

    if as_json:
        hidden = {"seed"} if all(e.seed is None for e in found) else set()
        print(json.dumps([{k: v for k, v in vars(e).items() if k not in hidden} for e in found], indent=1))
    elif clip:
        show_columns(
            "",
            ("task", "system", "clip", "verdict", "why"),
            [(e.task, who(e), e.clip, e.verdict, e.why) for e in found],
        )
    else:
        tally = Counter((e.task, who(e), e.verdict, e.why if e.verdict != "hit" else "same key") for e in found)
        show_columns(
            "",
            ("task", "system", "clips", "verdict", "why"),
            [(t, s, str(n), v, w) for (t, s, v, w), n in tally.items()],
        )


@cli.group()
def backend() -> None:
    """Isolated environments for packages that cannot share this one."""


@backend.command("list")
@JSON
@click.option("--pins", metavar="NAME", default=None, help="Only print the pinned requirements of NAME, one a line.")
def backend_list(as_json: bool, pins: str | None) -> None:
    """The backends there are, and which are installed."""
    from evalkit import registry
    from evalkit.backends.install import status
    from evalkit.terminal import show_columns

    if pins is not None:
        for package in registry.get("backends", pins).packages:
            print(package.removeprefix("--no-deps "))  # a requirements file takes no such option
        return
    found = [status(registry.get("backends", name)) for name in registry.names("backends")]
    if as_json:
        print(json.dumps(found, indent=1))
        return
    rows = [(s["name"], s["version"], s["state"], s["python"], s["summary"], s["needs"]) for s in found]
    show_columns("", ("backend", "version", "state", "Python", "summary", "needs"), rows)


@backend.command("install")
@click.argument("name")
@click.option("--python", metavar="EXE", default=None, help="Interpreter to build it with (default: this one).")
@click.option(
    "--wheels",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Install from this folder of wheels and ask no index.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, path_type=Path),
    default=None,
    help="Folder or archive with what is no package (spice: CoreNLP 3.6.0) instead of the network.",
)
def backend_install(name: str, python: str | None, wheels: Path | None, source: Path | None) -> None:
    """Build the environment of a backend, or leave it alone where it is there."""
    from evalkit import registry
    from evalkit.backends.install import install

    info = registry.get("backends", name)
    tell = lambda line: print(line, file=sys.stderr)  # noqa: E731
    folder = install(info, python=python, wheels=wheels, source=source, tell=tell)
    print(f"{name} {info.version}: ready in {folder}")


@backend.command("check")
@click.argument("name")
@JSON
def backend_check(name: str, as_json: bool) -> None:
    """Start a backend, compare its versions with the pins, and let it check itself."""
    from evalkit.backends.client import check as check_backend
    from evalkit.errors import NotApplicable

    try:
        found = check_backend(name)
    except NotApplicable as error:
        raise UsageError(str(error)) from error
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(f"{name} {found['version']}: ok in {found['seconds']:.1f} s, Python {found['python']}")
    print(f"methods: {', '.join(found['methods'])}")
    if found["check"] is not None:
        print(f"its own check: {json.dumps(found['check'])}")


@backend.command("remove")
@click.argument("name")
def backend_remove(name: str) -> None:
    """Delete the environment of a backend."""
    from evalkit import registry
    from evalkit.backends.install import remove

    print(f"{name}: {'removed' if remove(registry.get('backends', name)) else 'was not installed'}")
