"""Flow matching against its deterministic twin on the same codes, measured before any vocoder.

    python -m tokenizer.compare --fm A/vqfm,B/vqfm --mse A/vqmse,B/vqmse --data-root data -o out

A and B are runs that differ in the decoders' seed alone. On held-out clips this measures latent and log-mel errors,
texture (variance, modulation spectrum) and the Fréchet distance of log-mel frames, for every training seed and noise
seed; the mean of N samples; and curves over function evaluations and guidance. It writes ``comparison.json``,
``comparison.md``, ``curves.png`` and ``mels.png`` (what every stage makes of a few clips, after the vocoder).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalkit.audio import Clip, mono, read_clip, resample
from evalkit.datasets.load import load_dataset
from evalkit.errors import EvalkitError, NotApplicable, Unavailable, UsageError
from evalkit.metrics import texture
from evalkit.statistics import cluster_bootstrap, paired_difference
from tokenizer.codec import Sampler, SoundTokenizer, noise
from tokenizer.pictures import mel_panels
from tokenizer.quantizer import usage

HELD_OUT = ("scenes", "esc50@subset=esc10@fold=5", "vctk", "librispeech", "fma", "fsdd")
"""Data sets of which the clips that no model was trained on are taken, at most `CLIPS` of each, evenly spaced."""

CLIPS = 60

MEASURES = {
    "latent_mse": ("mean squared error of standardised latents", "lower", 0.0),
    "mel_l1": ("mean absolute error of log-mels, Np", "lower", 0.0),
    "mel_mse": ("mean squared error of log-mels, Np^2", "lower", 0.0),
    "gv_ratio": ("temporal variance of log-mels over the original's", "near 1", 1.0),
    "gv_log_error": ("error of that ratio, dB", "lower", 0.0),
    "delta_time": ("energy of frame-to-frame differences over the original's", "near 1", 1.0),
    "delta_freq": ("energy of band-to-band differences over the original's", "near 1", 1.0),
    "modulation_distance": ("distance of modulation spectra, dB", "lower", 0.0),
}
"""What is measured on each clip, which way is better, and the value of a perfect copy."""

EVALUATIONS = (1, 2, 4, 8, 16, 32)
GUIDANCE = (0.5, 1.0, 1.5, 2.0, 3.0)
PICTURES = 8
"""Clips of which every stage's spectrogram is drawn."""
MEANS_OF = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Original:
    """A held-out clip: standardised latents ``[1, frames, latent]``, codes, log-mel ``[1, bands, mel frames]``."""

    name: str
    cluster: str
    latent: Tensor
    codes: Tensor
    mel: Tensor


def held_out(model: SoundTokenizer, data: Sequence[str], data_root: str | None, limit: int = CLIPS) -> list[Original]:
    """Clips of ``data`` that the model was not trained on, as its own encoder sees them.

    Raises:
        UsageError: a data set of which nothing is unseen.
    """
    trained = model.card.get("data", {}).get("trained_on", {})
    out = []
    for spec in data:
        found = load_dataset(spec, data_root)
        seen = {i for ids in trained.get(found.info.name, {}).values() for i in ids}
        items = [i for i in found.layout.items if i.id not in seen and not i.error]
        if not items:
            raise UsageError(f"{spec}: the model was trained on every clip of it")
        if len(items) > limit:
            items = [items[n * len(items) // limit] for n in range(limit)]
        for item in items:
            if item.make is not None:
                clip: Clip = item.make()
            else:
                assert item.path is not None
                clip = read_clip(item.path, start=item.start, seconds=item.seconds, id=item.id, cluster=item.cluster)
            clip = resample(mono(clip), model.sample_rate)
            audio = np.pad(clip.samples, ((0, 0), (0, -clip.length % model.config.hop)))
            mel = model.log_mel(audio)
            with torch.inference_mode():
                latent = model.vae.standardise(model.vae.encode(mel)[0])
                assert model.quantizer is not None
                codes = model.quantizer.encode(latent)
            out.append(
                Original(f"{found.info.name}/{item.id}", f"{found.info.name}/{item.cluster}", latent, codes, mel)
            )
    return out


@torch.inference_mode()
def sampled(model: SoundTokenizer, sampler: Sampler, seed: int, clip: Original) -> Tensor:
    """Standardised latents of a clip's codes."""
    assert model.quantizer is not None
    x0 = noise(seed, 0, clip.latent.shape[1], clip.latent.shape[2])[None]
    return sampler(model.quantizer.vectors(clip.codes), x0)


def measure(clip: Original, latent: Tensor, mel: Tensor) -> dict[str, float]:
    """`MEASURES` of one decoded clip; those that mean nothing on it are left out."""
    wanted, made = (np.asarray(m.transpose(1, 2).numpy(), dtype=np.float64) for m in (clip.mel, mel))
    out = {
        "latent_mse": float(((latent - clip.latent) ** 2).mean()),
        "mel_l1": float(np.abs(made - wanted).mean()),
        "mel_mse": float(((made - wanted) ** 2).mean()),
    }
    try:
        variance = texture.energy_ratio(texture.temporal_variance(wanted), texture.temporal_variance(made), "variance")
        out["gv_ratio"] = variance
        if variance > 0:
            out["gv_log_error"] = abs(10 * math.log10(variance))
        for name, axis in (("delta_time", 1), ("delta_freq", 2)):
            out[name] = texture.energy_ratio(texture.delta_energy(wanted, axis), texture.delta_energy(made, axis), name)
        powers = (texture.modulation_power(wanted), texture.modulation_power(made))
        out["modulation_distance"] = texture.modulation_distance_db(*powers)
    except NotApplicable:  # constant or too short a clip
        pass
    return out


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to two sets of vectors ``[n, d]`` (Dowson & Landau 1982), float64.

    >>> round(frechet(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]])), 6)
    9.0
    """
    means, covariances = [], []
    for x in (first.astype(np.float64), second.astype(np.float64)):
        means.append(x.mean(axis=0))
        covariances.append(np.atleast_2d(np.cov(x.T)))
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0)).sum()
    spread = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross
    return float(((means[0] - means[1]) ** 2).sum() + max(0.0, spread))


def frames_of(mel: Tensor) -> np.ndarray:
    """What the Fréchet distance is taken of: each log-mel frame ``[frames, bands]`` in nepers."""
    return mel[0].T.numpy()


# -- the comparison ---------------------------------------------------------------------------------------------------


def decoded(
    model: SoundTokenizer, clips: Sequence[Original], latents: Callable[[Original], Tensor]
) -> tuple[list[dict[str, float]], float]:
    """Measures of every clip, and the Fréchet distance of all frames to the originals'."""
    found, made_frames = [], []
    for clip in clips:
        latent = latents(clip)
        mel = model.mel_of(latent)
        found.append(measure(clip, latent, mel))
        made_frames.append(frames_of(mel))
    return found, frechet(np.concatenate([frames_of(c.mel) for c in clips]), np.concatenate(made_frames))


def compare(
    fm: Sequence[SoundTokenizer],
    mse: Sequence[SoundTokenizer],
    clips: Sequence[Original],
    noise_seeds: int,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """All figures of the comparison as JSON values. ``fm[i]`` and ``mse[i]`` share a training seed, all share codes.

    Raises:
        UsageError: models that do not share VAE and codebook.
    """
    _same_codes([*fm, *mse])
    clusters = [c.cluster for c in clips]
    per_clip: dict[str, dict[str, np.ndarray]] = {}
    distances: dict[str, Any] = {}
    for name, models in (("fm", fm), ("mse", mse)):
        seeds = range(noise_seeds) if name == "fm" else range(1)
        values = {m: np.full((len(models), len(seeds), len(clips)), np.nan) for m in MEASURES}
        distances[name] = []
        for i, model in enumerate(models):
            sampler, row = model.sampler(), []
            for j in seeds:
                found, distance = decoded(model, clips, partial(sampled, model, sampler, j))
                row.append(distance)
                for k, one in enumerate(found):
                    for m, value in one.items():
                        values[m][i, j, k] = value
            distances[name].append(row)
            tell(f"{name}, training seed {i}: Fréchet {np.mean(row):.4g}")
        per_clip[name] = values
    vae, vae_distance = decoded(fm[0], clips, lambda c: c.latent)
    mean_head, mean_distance = decoded(fm[0], clips, partial(sampled, fm[0], fm[0].sampler(solver="mean"), 0))
    out: dict[str, Any] = {
        "clips": len(clips),
        "clusters": len(set(clusters)),
        "training_seeds": len(fm),
        "noise_seeds": noise_seeds,
        "measures": {},
        "frechet": {**distances, "vae": vae_distance, "fm mean (x=0, t=0)": mean_distance},
    }
    for m in MEASURES:
        ok = np.isfinite(per_clip["fm"][m]).all((0, 1)) & np.isfinite(per_clip["mse"][m]).all((0, 1))
        labels = [c for c, keep in zip(clusters, ok, strict=True) if keep]
        a, b = per_clip["fm"][m][:, :, ok], per_clip["mse"][m][:, :, ok]
        out["measures"][m] = {
            "clips": int(ok.sum()),
            "fm": _summary(a, labels),
            "mse": _summary(b, labels),
            "vae": float(np.mean([v[m] for v, keep in zip(vae, ok, strict=True) if keep])),
            "fm_mean_head": float(np.mean([v[m] for v, keep in zip(mean_head, ok, strict=True) if keep])),
            "difference": _difference(a, b, labels, m),
        }
    out["frechet"]["difference_by_training_seed"] = [
        float(np.mean(f) - np.mean(g)) for f, g in zip(distances["fm"], distances["mse"], strict=True)
    ]
    out["frechet"]["difference_interval"] = _student(out["frechet"]["difference_by_training_seed"])
    out["codes"] = code_statistics(fm[0], clips)
    return out


def _same_codes(models: Sequence[SoundTokenizer]) -> None:
    for model in models:
        assert model.quantizer is not None and models[0].quantizer is not None
        for part in ("vae", "quantizer"):
            first, other = getattr(models[0], part).state_dict(), getattr(model, part).state_dict()
            if any(not torch.equal(first[k], other[k]) for k in first):
                raise UsageError(
                    f"the models do not share their {part}: the comparison is of decoders on the same codes"
                )


def _summary(values: np.ndarray, clusters: Sequence[str]) -> dict[str, Any]:
    """``values`` ``[training seeds, noise seeds, clips]``: mean, interval over clips, parts of the variation."""
    over_clips = cluster_bootstrap(values.mean((0, 1)), clusters, seed=0)
    many_noise, many_train = values.shape[1] > 1, values.shape[0] > 1
    return {
        "mean": float(values.mean()),
        "interval_over_clips": [over_clips.low, over_clips.high],
        "by_training_seed": [float(v) for v in values.mean((1, 2))],
        "sd_over_training_seeds": float(values.mean((1, 2)).std(ddof=1)) if many_train else None,
        "sd_over_noise_seeds": float(values.mean(2).std(axis=1, ddof=1).mean()) if many_noise else None,
        "sd_over_noise_within_clip": float(values.std(axis=1, ddof=1).mean()) if many_noise else None,
        "sd_over_clips": float(values.mean((0, 1)).std(ddof=1)),
    }


def _difference(a: np.ndarray, b: np.ndarray, clusters: Sequence[str], name: str) -> dict[str, Any]:
    """FM minus MSE, of the distance from the perfect value: below 0 FM is better."""
    best = MEASURES[name][2]
    error = (np.abs(x.mean(1) - best) for x in (a, b))  # [training seeds, clips]
    delta = np.subtract(*error)
    over_clips = cluster_bootstrap(delta.mean(0), clusters, seed=0)
    paired = paired_difference(delta.mean(0), np.zeros(delta.shape[1]), clusters, seed=0)
    by_seed = [float(v) for v in delta.mean(1)]
    seeds = _student(by_seed)
    lows, highs = ((over_clips.low, seeds[0]), (over_clips.high, seeds[1]))
    fm = all(x is not None and x < 0 for x in highs)
    mse = all(x is not None and x > 0 for x in lows)
    return {
        "mean": float(delta.mean()),
        "interval_over_clips": [over_clips.low, over_clips.high],
        "p_over_clips": paired.p,
        "by_training_seed": by_seed,
        "interval_over_training_seeds": seeds,
        "verdict": "FM" if fm else "MSE" if mse else "open",
    }


def _student(values: Sequence[float]) -> list[float | None]:
    """95 % interval of the mean of a few independent values (Student's t)."""
    from scipy.stats import t

    x = np.asarray(values)
    if len(x) < 2:
        return [None, None]
    half = float(t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return [float(x.mean() - half), float(x.mean() + half)]


def code_statistics(model: SoundTokenizer, clips: Sequence[Original]) -> dict[str, Any]:
    """Use of the codes on the clips: nominal rate, and that of an ideal entropy coder without context."""
    assert model.quantizer is not None
    rate, books = model.config.frame_rate, []
    for number, size in enumerate(model.quantizer.config.sizes):
        books.append(usage(torch.cat([c.codes[0, :, number] for c in clips]), size))
    return {
        "frames": int(sum(c.codes.shape[1] for c in clips)),
        "nominal_bps": model.config.bitrate,
        "entropy_bps": rate * sum(b.entropy for b in books),
        "books": [asdict(b) for b in books],
    }


def mean_of_samples(fm: SoundTokenizer, mse: SoundTokenizer, clips: Sequence[Original]) -> list[dict[str, float]]:
    """The mean of N samples, for N in `MEANS_OF`: with growing N it should become what the deterministic twin puts out.

    ``to_mse``: mean squared distance of the latents from the twin's; the other figures as in `MEASURES`.
    """
    totals = [torch.zeros_like(c.latent) for c in clips]
    twin = [sampled(mse, mse.sampler(), 0, c) for c in clips]
    done, out, sampler = 0, [], fm.sampler()
    for n in MEANS_OF:
        for seed in range(done, n):
            for k, clip in enumerate(clips):
                totals[k] += sampled(fm, sampler, seed, clip)
        done = n
        means = {c.name: total / n for c, total in zip(clips, totals, strict=True)}
        found, distance = decoded(fm, clips, lambda c: means[c.name])  # noqa: B023 - used at once
        to_mse = float(np.mean([float(((means[c.name] - z) ** 2).mean()) for c, z in zip(clips, twin, strict=True)]))
        out.append({"n": n, "to_mse": to_mse, "frechet": distance, **_means(found)})
    return out


def curves(fm: SoundTokenizer, clips: Sequence[Original]) -> dict[str, list[dict[str, Any]]]:
    """Figures over the number of function evaluations (both solvers, without guidance) and over the guidance weight."""
    out: dict[str, list[dict[str, Any]]] = {"evaluations": [], "guidance": []}
    for solver in ("euler", "midpoint"):
        for evaluations in EVALUATIONS:
            if solver == "midpoint" and evaluations % 2:
                continue
            sampler = fm.sampler(evaluations, 1.0, solver)
            found, distance = decoded(fm, clips, partial(sampled, fm, sampler, 0))
            out["evaluations"].append(
                {"solver": solver, "evaluations": evaluations, "frechet": distance, **_means(found)}
            )
    for weight in GUIDANCE:
        sampler = fm.sampler(None, weight, None)
        found, distance = decoded(fm, clips, partial(sampled, fm, sampler, 0))
        out["guidance"].append({"guidance": weight, "frechet": distance, **_means(found)})
    return out


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {m: float(np.mean([f[m] for f in found if m in f])) for m in MEASURES}


def pictures(
    fm: SoundTokenizer, mse: SoundTokenizer, clips: Sequence[Original]
) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Log-mels ``[frames, bands]`` of the audio of every stage, each after the vocoder, for `mel_panels`."""
    rows = []
    for clip in clips:
        stages = {
            "copy-synthesis": clip.mel,
            "vae": fm.mel_of(clip.latent),
            "vqmse": mse.mel_of(sampled(mse, mse.sampler(), 0, clip)),
            "vqfm": fm.mel_of(sampled(fm, fm.sampler(), 0, clip)),
        }
        panels = {"original": frames_of(clip.mel)}
        for name, mel in stages.items():
            audio = fm.vocoder(mel, mel.shape[2] * fm.config.mel.hop, [0])
            panels[name] = frames_of(fm.log_mel(audio.numpy()))
        rows.append((clip.name, panels))
    return rows


# -- what is written --------------------------------------------------------------------------------------------------


def write(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """``comparison.json``, ``comparison.md`` and, where matplotlib is installed, ``curves.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.6g}"))
    (folder / "comparison.json").write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
    (folder / "comparison.md").write_text("\n".join(_markdown(rounded)) + "\n", encoding="utf-8")
    paths = [folder / "comparison.json", folder / "comparison.md"]
    try:
        _plot(rounded, folder / "curves.png")
        paths.append(folder / "curves.png")
    except Unavailable:
        pass
    return paths


def _markdown(result: Mapping[str, Any]) -> Iterator[str]:
    yield "# Flow matching against its MSE twin on the same codes"
    yield ""
    yield (
        f"{result['clips']} held-out clips ({result['clusters']} clusters) of {', '.join(result['data'])}; "
        f"{result['training_seeds']} training seeds of each decoder, {result['noise_seeds']} noise seeds of flow "
        f"matching ({result['solver']}). Measured on latents and log-mels, before any vocoder. Written by `python -m "
        "tokenizer.compare`; every figure is in `comparison.json`."
    )
    yield ""
    yield (
        "Intervals are 95 %. Over clips: bootstrap over clusters of the clips' means over seeds. Over training seeds: "
        "Student's t on one figure a seed. The difference is of the distance from the perfect value, below 0 flow "
        "matching is nearer; the last column names a side only if both intervals exclude 0."
    )
    yield ""
    yield "| measure | better | vae (no codes) | FM | MSE | FM - MSE, over clips | over training seeds | nearer |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, found in result["measures"].items():
        d = found["difference"]
        yield (
            f"| {name}: {MEASURES[name][0]} | {MEASURES[name][1]} | {_g(found['vae'])} "
            f"| {_g(found['fm']['mean'])} {_between(found['fm']['interval_over_clips'])} "
            f"| {_g(found['mse']['mean'])} {_between(found['mse']['interval_over_clips'])} "
            f"| {_g(d['mean'])} {_between(d['interval_over_clips'])} | {_between(d['interval_over_training_seeds'])} "
            f"| {d['verdict']} |"
        )
    f = result["frechet"]
    low, high = f["difference_interval"]
    verdict = "open" if low is None or low <= 0 <= high else "FM" if high < 0 else "MSE"
    yield (
        f"| Fréchet distance of log-mel frames, Np^2 | lower | {_g(f['vae'])} | {_g(np.mean(f['fm']))} "
        f"| {_g(np.mean(f['mse']))} | {_g(np.mean(f['difference_by_training_seed']))} (no interval over clips) "
        f"| {_between(f['difference_interval'])} | {verdict} |"
    )
    yield ""
    yield "## What varies"
    yield ""
    yield "Standard deviations of flow matching: of the mean over training seeds and over noise seeds, and of clips."
    yield ""
    yield "| measure | training seeds | noise seeds | noise seeds, within a clip | clips | MSE: training seeds |"
    yield "|---|---|---|---|---|---|"
    for name, found in result["measures"].items():
        a, b = found["fm"], found["mse"]
        yield (
            f"| {name} | {_g(a['sd_over_training_seeds'])} | {_g(a['sd_over_noise_seeds'])} "
            f"| {_g(a['sd_over_noise_within_clip'])} | {_g(a['sd_over_clips'])} | {_g(b['sd_over_training_seeds'])} |"
        )
    c = result["codes"]
    yield ""
    yield "## Codes"
    yield ""
    yield (
        f"On {c['frames']:,} held-out frames: nominal {c['nominal_bps']:.1f} bits/s, entropy {c['entropy_bps']:.1f} "
        "bits/s; "
        + "; ".join(
            f"{100 * b['used']:.1f} % of the codes used, entropy {b['entropy']:.2f} bits ({b['balance']:.3f} of "
            f"log2 K), perplexity {b['perplexity']:.0f}"
            for b in c["books"]
        )
        + "."
    )
    columns = ("latent_mse", "mel_l1", "mel_mse", "gv_ratio", "delta_time", "modulation_distance", "frechet")
    for title, key, heads in (
        ("The mean of N samples", "mean_of_n", ("n", "to_mse")),
        ("Function evaluations", "evaluations", ("solver", "evaluations")),
        ("Guidance", "guidance", ("guidance",)),
    ):
        yield ""
        yield f"## {title}"
        yield ""
        if key == "mean_of_n":
            yield "`to_mse`: mean squared distance of the latents from what the MSE twin puts out for the same codes."
            yield ""
        yield "| " + " | ".join((*heads, *columns)) + " |"
        yield "|" + "---|" * (len(heads) + len(columns))
        for line in result[key]:
            yield "| " + " | ".join(_g(line[h]) for h in (*heads, *columns)) + " |"
        if key == "mean_of_n":
            twin = {m: result["measures"][m]["mse"]["by_training_seed"][0] for m in columns if m != "frechet"}
            twin["frechet"] = float(np.mean(result["frechet"]["mse"][0]))
            yield "| MSE twin | 0 | " + " | ".join(_g(twin[m]) for m in columns) + " |"


def _g(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def _between(ends: Sequence[float | None]) -> str:
    return "–" if ends[0] is None else f"[{_g(ends[0])}, {_g(ends[1])}]"


def _plot(result: Mapping[str, Any], path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable("plots need matplotlib: pip install 'evalkit-audio[train]'") from error
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    for line, measure_name in zip(axes, ("mel_mse", "gv_ratio"), strict=True):
        twin = result["measures"][measure_name]["mse"]["by_training_seed"][0]
        for axis, key, x in zip(
            line, ("mean_of_n", "evaluations", "guidance"), ("n", "evaluations", "guidance"), strict=True
        ):
            rows = result[key]
            for solver in dict.fromkeys(r.get("solver", "") for r in rows):
                some = [r for r in rows if r.get("solver", "") == solver]
                axis.plot([r[x] for r in some], [r[measure_name] for r in some], "o-", label=solver or "FM")
            axis.axhline(twin, color="k", linestyle="--", linewidth=1, label="MSE twin")
            if key != "guidance":
                axis.set_xscale("log", base=2)
            axis.set_xlabel(
                {"n": "mean of N samples", "evaluations": "function evaluations", "guidance": "guidance"}[x]
            )
            axis.set_ylabel(measure_name)
            axis.legend(fontsize=7)
    figure.savefig(path, dpi=80)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m tokenizer.compare", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--fm", required=True, help="folders of flow-matching tokenizers, one a training seed, comma-separated"
    )
    parser.add_argument("--mse", required=True, help="their twins, in the same order")
    parser.add_argument("--data", default=",".join(HELD_OUT), help="data set specs, comma-separated")
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--clips", type=int, default=CLIPS, help="at most so many clips a data set")
    parser.add_argument("--noise-seeds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        fm, mse = ([SoundTokenizer.from_pretrained(p) for p in text.split(",")] for text in (given.fm, given.mse))
        if len(fm) != len(mse):
            raise UsageError(f"{len(fm)} flow-matching models and {len(mse)} twins: give as many")
        data = given.data.split(",")
        clips = held_out(fm[0], data, given.data_root, given.clips)
        result = compare(fm, mse, clips, given.noise_seeds, print)
        c = fm[0].config.decoder
        assert c is not None
        result |= {"data": data, "solver": f"{c.solver}, {c.evaluations} evaluations, guidance {c.guidance:g}"}
        result["mean_of_n"] = mean_of_samples(fm[0], mse[0], clips)
        result |= curves(fm[0], clips)
        paths = write(result, given.out)
        try:
            some = [clips[(2 * i + 1) * len(clips) // (2 * PICTURES)] for i in range(PICTURES)]
            mel_panels(pictures(fm[0], mse[0], some), given.out / "mels.png")
            paths.append(given.out / "mels.png")
        except Unavailable as error:
            print(f"no pictures: {error}")
        for path in paths:
            print(f"wrote {path}")
    except EvalkitError as error:
        parser.exit(1, f"evalkit: {error}\n")


if __name__ == "__main__":
    main()
