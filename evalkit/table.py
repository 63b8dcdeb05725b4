"""From result records to one comparison table a task: which rows may stand together, and what the statistics say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evalkit.errors import UsageError
from evalkit.identity import difference
from evalkit.results import counts, system_label
from evalkit.seeds import Noise, by_seed, combine
from evalkit.statistics import Comparison, compare_all

STATISTICS_SEED = 0
REPLICATES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Cell:
    """One value of a table, or the reason why there is none; coverage always."""

    value: float | None
    low: float | None = None
    high: float | None = None
    rank: str = ""
    letters: str = ""
    coverage: tuple[int, int, int, int] = (0, 0, 0, 0)
    reason: str = ""
    note: str = ""
    diff: float | None = None
    diff_low: float | None = None
    diff_high: float | None = None
    p: float | None = None
    """Holm-adjusted p value of the difference to the baseline."""
    noise: Noise | None = None
    """How far the noise seed moves it; None for one seed."""
    flags: tuple[str, ...] = ()
    """Why the value is not to be trusted as it stands: circular, trained on the data, failed its self-test."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """What the value of a corpus metric is of: numbers of embeddings, dimension, reference set."""
    floor: float | None = None
    floor_detail: str = ""
    contributions: Sequence[float | None] | None = None
    """What each clip adds to it; None at clips that have no part in it."""

    @property
    def coverage_text(self) -> str:
        return "/".join(map(str, self.coverage))


@dataclass(frozen=True)
class Column:
    name: str
    unit: str
    direction: str
    group: str
    level: str
    deterministic: bool
    identifier: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    label: str
    result: Mapping[str, Any]
    cells: Mapping[str, Cell]

    @property
    def contaminated(self) -> int:
        """How many of the clips the system was trained on."""
        return int(self.result["task"]["about"].get("contaminated", {}).get(self.result["system"]["name"], 0))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that it is made of; more than one for a stochastic system only."""
        return tuple(r["seed"] for r in by_seed(self.result))


@dataclass(frozen=True)
class Table:
    """One task's comparison. ``refused`` are rows that may not stand beside the others, with the fields that differ."""

    task: Mapping[str, Any]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    refused: tuple[tuple[str, str], ...]
    baseline: str | None

    @property
    def headline(self) -> list[Column]:
        wanted = self.task["about"].get("headline", [])
        return [c for n in wanted for c in self.columns if c.name == n]


def build_tables(results: Sequence[Mapping[str, Any]], baseline: str | None = None) -> list[Table]:
    """One table a task, tasks in order of first appearance."""
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for r in results:
        tasks.setdefault(r["task"]["name"], []).append(r)
    return [build_table(rs, baseline) for rs in tasks.values()]


def build_table(results: Sequence[Mapping[str, Any]], baseline: str | None = None) -> Table:
    """Compare the results of one task.

    The records of one stochastic system with several noise seeds are one row (`evalkit.seeds.combine`); its paired
    differences, ranks and intervals are of the clips' means over the seeds.

    Rows stand together when data, selection, preparation, reader and task are the same; the version that most rows have
    is kept, the others are refused with the fields that differ. A metric in another version than the majority's is
    left out of its column with a note.

    Raises:
        UsageError: the baseline is not among the rows.
    """
    kept, refused = _same_version(combine(results))
    labels = _labels(kept)
    base = _baseline(kept, labels, baseline)
    columns, by_column = [], {}
    for name in dict.fromkeys(m for r in kept for m in r["order"] if m in r["metrics"]):
        column, cells = _column(name, kept, labels, base)
        columns.append(column)
        by_column[name] = cells
    rows = [Row(label, r, {n: by_column[n][label] for n in by_column}) for label, r in zip(labels, kept, strict=True)]
    table = Table(kept[0]["task"], tuple(columns), tuple(rows), tuple(refused), base)
    if table.headline:
        rows = _sorted(rows, table.headline[0])
    return Table(table.task, table.columns, tuple(rows), table.refused, base)


def _comparable(result: Mapping[str, Any]) -> dict[str, Any]:
    """The identity that rows of one table share: everything but metrics, system and seed."""
    return {k: v for k, v in result["task"]["identity"].items() if k != "metrics"}


def _same_version(results: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[tuple[str, str]]]:
    versions = [repr(sorted(_flat(_comparable(r)).items())) for r in results]
    tally = Counter(versions)
    chosen = max(sorted(tally), key=lambda v: tally[v])
    reference = next(r for r, v in zip(results, versions, strict=True) if v == chosen)
    kept, refused = [], []
    for r, v in zip(results, versions, strict=True):
        if v == chosen:
            kept.append(r)
        else:
            fields = difference(_comparable(reference), _comparable(r))
            refused.append((system_label(r), "; ".join(fields)))
    return kept, refused


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for k, v in value.items():
        if isinstance(v, Mapping):
            out |= _flat(v, f"{prefix}{k}.")
        else:
            out[prefix + k] = v
    return out


def _labels(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The spec as typed; the full name (and the seeds) where two rows would otherwise look alike."""
    specs = Counter(system_label(r) for r in results)
    names = Counter(r["system"]["name"] for r in results)
    labels = []
    for r in results:
        label = system_label(r) if specs[system_label(r)] == 1 else r["system"]["name"]
        seeds = [s["seed"] for s in by_seed(r)]
        which = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        labels.append(label if names[r["system"]["name"]] == 1 else f"{label} ({which})")
    return labels


def _baseline(results: Sequence[Mapping[str, Any]], labels: list[str], wanted: str | None) -> str | None:
    if wanted is not None:
        for label, r in zip(labels, results, strict=True):
            if wanted in (label, r["system"]["spec"], r["system"]["name"]):
                return label
        raise UsageError(f"baseline {wanted!r} is not among the systems: {', '.join(labels)}")
    for label, r in zip(labels, results, strict=True):
        if r["system"]["role"] == "codec" and any(counts(r, m)[0] for m in r["metrics"]):
            return label
    return None


def _column(
    name: str, results: Sequence[Mapping[str, Any]], labels: list[str], baseline: str | None
) -> tuple[Column, dict[str, Cell]]:
    having = [r for r in results if name in r["metrics"]]
    tally = Counter(r["metrics"][name]["id"] for r in having)
    identifier = max(sorted(tally), key=lambda i: tally[i])
    first = next(r["metrics"][name] for r in having if r["metrics"][name]["id"] == identifier)
    cells: dict[str, Cell] = {}
    scores: dict[str, dict[str, float]] = {}
    clusters: dict[str, str] = {}
    for label, r in zip(labels, results, strict=True):
        metric = r["metrics"].get(name)
        if metric is None:
            n = len(r["clips"]["id"])
            cells[label] = Cell(None, coverage=(0, 0, 0, n), reason="missing: not measured in that run")
        elif metric["id"] != identifier:
            note = f"another version of the metric: {metric['id']}, the column is {identifier}"
            cells[label] = Cell(None, coverage=counts(r, name), reason=f"n/a: {note}", note=note)
        elif metric["level"] == "corpus":
            c = metric["corpus"]
            cells[label] = Cell(
                c["value"],
                c["low"],
                c["high"],
                coverage=counts(r, name),
                note=c["note"] if c["value"] is not None else "",
                reason="" if c["value"] is not None else _corpus_reason(metric),
                noise=metric.get("noise"),
                detail=c.get("detail", {}),
                floor=c.get("floor"),
                floor_detail=c.get("floor_detail", ""),
                contributions=c.get("contributions"),
            )
        else:
            found = {i: v for i, v in zip(r["clips"]["id"], metric["values"], strict=True) if v is not None}
            if found:
                scores[label] = found
                clusters |= dict(zip(r["clips"]["id"], r["clips"]["cluster"], strict=True))
            cells[label] = Cell(None, coverage=counts(r, name), reason=_reason(metric), noise=metric.get("noise"))
    notes: tuple[str, ...] = ()
    if scores:
        comparison = compare_all(
            scores,
            clusters,
            direction=first["direction"],
            seed=STATISTICS_SEED,
            baseline=baseline if baseline in scores else None,
            replicates=REPLICATES,
            level=LEVEL,
        )
        notes = comparison.notes
        cells |= _compared(comparison, cells)
    for label, r in zip(labels, results, strict=True):
        if name in r["metrics"] and cells[label].value is not None:
            cells[label] = replace(cells[label], flags=tuple(r["metrics"][name].get("flags", ())))
    column = Column(
        name,
        first["unit"],
        first["direction"],
        first["group"],
        first["level"],
        first["deterministic"],
        identifier,
        notes,
    )
    return column, cells


def _compared(comparison: Comparison, cells: Mapping[str, Cell]) -> dict[str, Cell]:
    from evalkit.statistics import rank_text

    out = {}
    for s in comparison.standings:
        d = s.versus.difference if s.versus else None
        out[s.system] = Cell(
            s.mean.estimate,
            s.mean.low,
            s.mean.high,
            rank=rank_text(s.rank) if s.rank else "",
            letters=s.letters,
            coverage=cells[s.system].coverage,
            note="; ".join(n for n in (s.mean.note, s.note) if n),
            diff=d.estimate if d else None,
            diff_low=d.low if d else None,
            diff_high=d.high if d else None,
            p=s.versus.p_adjusted if s.versus else None,
            noise=cells[s.system].noise,
        )
    return out


def _reason(metric: Mapping[str, Any]) -> str:
    """Why a column has no value at all: the most frequent reason, and how many others."""
    every = [(len(v), status, why) for status, whys in metric["reasons"].items() for why, v in whys.items()]
    if not every:
        return "missing"
    _, status, why = max(every, key=lambda e: (e[0], e[2]))
    more = f" (and {len(every) - 1} other reasons)" if len(every) > 1 else ""
    return f"{status}: {why}{more}"


def _corpus_reason(metric: Mapping[str, Any]) -> str:
    c = metric["corpus"]
    return f"{c['status']}: {c['note']}" if "status" in c else _reason(metric)


def _sorted(rows: list[Row], by: Column) -> list[Row]:
    sign = -1.0 if by.direction == "higher" else 1.0

    def key(row: Row) -> tuple[bool, float, str]:
        value = row.cells[by.name].value
        return (value is None, 0.0 if value is None else sign * value, row.label)

    return sorted(rows, key=key)
