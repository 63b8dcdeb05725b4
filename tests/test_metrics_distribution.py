"""The distribution metrics as tables see them: values with what they are of, floors, refusals, and shared work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit import distribution as maths
from evalkit import registry
from evalkit.audio import Clip, write_clip
from evalkit.errors import ContractError, NotApplicable
from evalkit.metrics import distribution as metrics
from evalkit.registry import CorpusValue

D = 8


@registry.embedder("test_blocks", version="1", sample_rate=8000, dimension=D)
class Blocks:
    """Level and slope of blocks of 800 samples; made up."""

    def embed(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        made = []
        for x in clips:
            blocks = x[: len(x) // 800 * 800].reshape(-1, D, 100)
            made.append(np.log(1e-3 + np.abs(blocks).mean(axis=2)).astype(np.float32))
        return made


FUNCTIONS = {f.info.name: f for f in metrics.distribution_metrics("test_blocks")}
NAMES = tuple(FUNCTIONS)


class Stored(Sequence[Mapping[str, np.ndarray]]):
    """Statistics that count how often they are read; ``names`` as those of a run have them."""

    def __init__(self, clips: Sequence[Mapping[str, np.ndarray]], label: str) -> None:
        self.clips, self.reads = clips, 0
        self.names = [{"reference": f"{label} {i}", "estimate": f"{label} {i}"} for i in range(len(clips))]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: Any) -> Any:
        self.reads += 1
        return self.clips[i]


def statistics(clips: int, noise: float, seed: int = 0, d: int = D, frames: int = 5) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(clips):
        x = (rng.normal(size=d) + rng.normal(size=(frames, d))).astype(np.float32)
        y = (x + noise * (rng.normal(size=x.shape) + 0.3)).astype(np.float32)
        made.append({"reference": x, "estimate": y})
    return made


def value(name: str, clips: Sequence[Any], clusters: Sequence[str] | None = None, seed: int = 0) -> CorpusValue:
    evaluate = FUNCTIONS[
        f"{name.partition('-')[0]}@test_blocks{'-any-n' if name.endswith('-any-n') else ''}"
    ].info.evaluate
    found: CorpusValue = evaluate(clips, clusters or [str(i // 2) for i in range(len(clips))], seed)
    return found


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    metrics._sets.clear()
    metrics._references.clear()
    yield


# -- values -----------------------------------------------------------------------------------------------------------


def test_every_embedder_has_its_metrics_and_what_is_shown_by_default_exists() -> None:
    assert set(metrics.DISTRIBUTION) <= set(registry.names("metrics"))
    assert {"mel-stats", "yamnet", "clap", "encodec"} <= set(registry.names("embedders"))
    for name in ("mel-stats", "yamnet", "clap", "encodec", "tokenizer-latent"):
        for made in NAMES:
            info = registry.get("metrics", made.replace("test_blocks", name))
            assert (
                info.group == "distribution" and info.level == "corpus" and info.evaluate is not None and info.summary
            )


def test_values_are_those_of_the_functions() -> None:
    clips = statistics(60, 0.7)
    x, y = ([c[s] for c in clips] for s in ("reference", "estimate"))
    groups = np.repeat(np.arange(60), 5)
    both = {"reference_groups": groups, "estimate_groups": groups, "paired": True}
    fad = value("fad", clips)
    assert fad.value == pytest.approx(maths.frechet(maths.moments_of(x), maths.moments_of(y)), rel=1e-7)
    infinite = maths.frechet_infinity(x, y, paired=True, seed=0)
    assert value("fad_inf", clips).value == pytest.approx(infinite.value)
    assert value("fad_inf", clips).detail["R²"] == round(infinite.r2, 3)
    kad = maths.kernel_distance(np.concatenate(x), np.concatenate(y), **both)
    assert value("kad", clips).value == pytest.approx(kad, abs=1e-5)
    density, coverage = maths.density_coverage(np.concatenate(x), np.concatenate(y), **both)
    assert value("density", clips).value == pytest.approx(density) and value("coverage", clips).value == coverage


@pytest.mark.parametrize("name", ["fad", "fad_inf", "kad", "density", "coverage"])
def test_what_stands_beside_a_value(name: str) -> None:
    clips = statistics(60, 0.7)
    found = value(name, clips)
    assert found.low is not None and found.high is not None and found.low <= found.value <= found.high
    assert (
        found.note == ""
        and found.floor is not None
        and "halves by cluster, 150 and 150 embeddings" in found.floor_detail
    )
    detail = dict(found.detail)
    assert (detail["n"], detail["d"], detail["clips"], detail["embedder"]) == (300, D, 60, "test_blocks-v1")
    assert len(str(detail["reference set"])) == 12
    assert value(name, clips) == found and vars(value(name, clips, seed=1)) != vars(found)
    others = value(name, statistics(60, 0.7, seed=1))
    assert others.detail["reference set"] != detail["reference set"]
    shuffled = value(name, clips[::-1])
    assert shuffled.detail["reference set"] == detail["reference set"]


def test_more_noise_is_further_and_identity_is_nothing() -> None:
    far = {
        n: [value(n, statistics(60, noise)).value for noise in (0.0, 0.4, 0.8, 1.6)]
        for n in ("fad", "fad_inf", "kad", "coverage")
    }
    for name in ("fad", "fad_inf", "kad"):
        assert far[name][0] == 0 and far[name] == sorted(far[name])
    assert far["coverage"][0] == 1 and far["coverage"] == sorted(far["coverage"], reverse=True)
    same = value("fad", statistics(60, 0.0))
    assert (same.low, same.high) == (0, 0) and same.contributions == [0.0] * 60
    assert value("density", statistics(60, 0.0)).value == pytest.approx(1)


def test_the_clip_that_went_wrong_adds_most() -> None:
    clips = statistics(60, 0.3)
    clips[23]["estimate"] = clips[23]["estimate"] + np.float32(4)
    for name in ("fad", "kad"):
        each = value(name, clips).contributions
        assert each is not None and len(each) == 60 and int(np.argmax(each)) == 23


def test_the_floor_is_near_nothing_where_it_is_unbiased_and_above_it_where_it_is_not() -> None:
    clips = statistics(200, 0.5)
    assert value("fad", clips).floor > 0.02  # type: ignore[operator]
    infinite, kad = value("fad_inf", clips).floor, value("kad", clips)
    assert infinite is not None and infinite < 0.6 * value("fad", clips).floor  # type: ignore[operator]
    assert kad.floor is not None and abs(kad.floor) < 0.1 * kad.value and "SD" in kad.floor_detail
    assert value("coverage", clips).floor == pytest.approx(0.95, abs=0.05)


# -- what has no value, and why ---------------------------------------------------------------------------------------


def test_fewer_embeddings_than_dimensions() -> None:
    clips = statistics(12, 0.5, d=96)
    for name in ("fad", "fad_inf"):
        with pytest.raises(NotApplicable, match="60 embeddings of 96 dimensions: mostly bias"):
            value(name, clips)
        found = value(f"{name}-any-n", clips)
        assert found.value > 0
    assert "60 embeddings of 96 dimensions: mostly bias" in value("fad-any-n", clips).note
    clips = statistics(30, 0.5, d=96)  # 150: enough for a distance, not for an extrapolation, nor for a floor
    assert value("fad", clips).value > 0
    assert value("fad", clips).floor is None and "80 embeddings of 96 dimensions" in value("fad", clips).floor_detail
    with pytest.raises(NotApplicable, match="150 embeddings of 96 dimensions: an extrapolation in 1/n"):
        value("fad_inf", clips)
    assert value("kad", clips).value > 0


def test_a_value_at_any_n_is_the_usual_one_where_there_is_one() -> None:
    clips = statistics(60, 0.7)
    for name in ("fad", "fad_inf"):
        assert value(f"{name}-any-n", clips).value == value(name, clips).value


def test_one_clip_and_one_cluster() -> None:
    one = statistics(1, 0.5, frames=40)
    assert value("fad", one).note == "one cluster: no interval" and value("fad", one).low is None
    assert (
        value("fad", one).floor is None
        and "one cluster: the reference cannot be split" in value("fad", one).floor_detail
    )
    with pytest.raises(NotApplicable, match="1 clips: an extrapolation"):
        value("fad_inf", one)
    with pytest.raises(NotApplicable, match="pairs of one clip do not count"):
        value("kad", one)
    for name in ("density", "coverage"):
        with pytest.raises(NotApplicable, match="40 reference embeddings of 1 clips: 5 neighbours in other clips"):
            value(name, one)
    for name in ("fad", "fad_inf", "kad", "density", "coverage"):
        alike = value(name, statistics(20, 0.5), clusters=["a"] * 20)
        assert alike.note == "one cluster: no interval" and alike.floor is None
    with pytest.raises(NotApplicable, match="no clip"):
        value("fad", [])


def test_silence_is_a_point_and_a_silent_reference_is_no_distribution() -> None:
    clips = statistics(40, 0.5)
    silent = [{**c, "estimate": np.zeros_like(c["estimate"])} for c in clips]
    for name in ("fad", "fad_inf", "kad", "density", "coverage"):
        found = value(name, silent)
        assert np.isfinite(found.value) and "all 200 embeddings of the estimate are equal" in found.note
    assert value("fad", silent).value > value("fad", clips).value
    for name in ("fad", "fad_inf", "kad", "density", "coverage"):
        with pytest.raises(NotApplicable, match="all 200 reference embeddings are equal"):
            value(name, [{**c, "reference": np.zeros_like(c["reference"])} for c in clips])


@pytest.mark.parametrize("name", ["fad", "fad_inf", "kad", "density", "coverage"])
def test_broken_statistics_are_faults_that_name_the_clip(name: str) -> None:
    clips = statistics(20, 0.5)
    clips[6]["estimate"][2, 5] = np.nan
    with pytest.raises(
        ContractError, match=r"1 of 5 estimate embeddings of clip 7 of 20 hold NaN .* number 2 \(dimension 5\)"
    ):
        value(name, clips)
    clips = statistics(20, 0.5)
    clips[6]["reference"] = clips[6]["reference"][:, :5]
    with pytest.raises(ContractError, match="reference embeddings of clip 7 of 20 have 5 dimensions, those before 8"):
        value(name, clips)
    clips[6]["reference"] = np.zeros((0, D), np.float32)
    with pytest.raises(ContractError, match="clip 7 of 20 has no reference embeddings"):
        value(name, clips)


def test_an_extrapolation_below_0_is_said() -> None:
    found = [value("fad_inf", statistics(10, 0.02, seed=s, frames=4), seed=s) for s in range(30)]
    below = [f for f in found if f.value == 0]
    assert below and all("extrapolates to -" in f.note and "given as 0" in f.note for f in below)
    assert all(f.low is None or f.low >= 0 for f in found)


# -- shared work ------------------------------------------------------------------------------------------------------


def test_the_metrics_of_an_embedder_read_the_clips_once() -> None:
    stored = Stored(statistics(30, 0.5), "once")
    for name in ("fad", "fad-any-n", "fad_inf", "kad", "density", "coverage"):
        value(name, stored)
    assert stored.reads == 30


def test_what_does_not_fit_in_memory_is_read_again_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = statistics(30, 0.5)
    kept = [value(name, Stored(clips, "kept")) for name in ("fad", "fad_inf", "kad", "density", "coverage")]
    monkeypatch.setattr(metrics, "KEPT_BYTES", 1000)
    nothing_is_kept = Stored(clips, "not kept")
    again = [value(name, nothing_is_kept) for name in ("fad", "fad_inf", "kad", "density", "coverage")]
    assert again == kept and nothing_is_kept.reads > 60


def test_systems_share_the_work_on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("median_distance", "balls", "frechet", "density_coverage"):
        whole = getattr(maths, name)
        monkeypatch.setattr(maths, name, lambda *a, _f=whole, _n=name, **k: (calls.append(_n), _f(*a, **k))[1])
    for noise in (0.3, 0.6, 0.9):
        for name in ("fad", "kad", "density"):
            value(name, Stored(statistics(30, noise), f"system {noise}"))
    assert calls.count("median_distance") == 1 and calls.count("balls") == 1 + metrics.SPLITS
    assert calls.count("frechet") == calls.count("density_coverage") == metrics.SPLITS


def test_other_clusters_or_another_reference_share_nothing() -> None:
    clips = statistics(30, 0.5)
    coarse = value("kad", Stored(clips, "x"), clusters=[str(i // 10) for i in range(30)])
    fine = value("kad", Stored(clips, "x"), clusters=[str(i) for i in range(30)])
    assert coarse.value == pytest.approx(fine.value) and (coarse.low, coarse.floor) != (fine.low, fine.floor)


# -- from audio to a record -------------------------------------------------------------------------------------------


def test_from_clips_to_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalkit.plan import Request
    from evalkit.run import run

    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "clips").mkdir()
    for i in range(16):
        rng = np.random.default_rng(i)
        level = np.repeat(rng.uniform(0.01, 0.3, 40), 200)
        write_clip(Clip(rng.normal(size=8000) * level, 8000), tmp_path / "clips" / f"{i}.wav")
    request = Request((f"folder:{tmp_path / 'clips'}@domain=sound",), ("identity", "pcm:4", "silence"), metrics=NAMES)
    outcome = run(request, out=tmp_path / "out", jobs=0)
    rows = {r["system"]["spec"]: {n: r["metrics"][n]["corpus"] for n in NAMES} for r in outcome.results}
    assert outcome.exit_code == 0
    for name in NAMES:
        found = rows["pcm:4"][name]
        assert found["detail"]["n"] == 160 and found["detail"]["d"] == D and found["floor"] is not None, name
    assert rows["identity"]["fad@test_blocks"]["value"] == 0 == rows["identity"]["kad@test_blocks"]["value"]
    assert 0 < rows["pcm:4"]["fad@test_blocks"]["value"] < rows["silence"]["fad@test_blocks"]["value"]
    assert len(rows["pcm:4"]["fad@test_blocks"]["contributions"]) == 16
    again = run(request, out=tmp_path / "out2", jobs=0)
    assert {r["system"]["spec"]: {n: r["metrics"][n]["corpus"] for n in NAMES} for r in again.results} == rows
