"""Training: one visible loop for the three stages, resumable to the same bits.

    audio -> corpus of log-mels -> [vae] -> cached latents -> [codes] -> cached codes -> [fm], [mse] -> saved tokenizers

Every draw of a step (crops, augmentation, noise, times) comes from ``(seed, stage, step)`` and is made for the whole
batch of all processes, each of which takes its rows: so two processes see what one would see, and a run that was killed
goes on from its last checkpoint as if nothing had happened. Several GPUs: ``accelerate launch -m evalkit train
tokenizer ...``; several processes on CPUs: ``ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m
evalkit train tokenizer ...`` (``--cpu`` alone starts one process).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evalkit import __version__
from evalkit.errors import EvalkitError, Unavailable, UsageError
from evalkit.identity import difference, digest
from tokenizer.codec import Sampler, SoundTokenizer, noise
from tokenizer.data import (
    Corpus,
    augment,
    build_corpus,
    cached_latents,
    draw_changes,
    draw_places,
    rng_of,
    stream_latents,
)
from tokenizer.flow import Solver, keep_condition, path, sample_times, target
from tokenizer.network import DecoderConfig, DecoderNetwork, mse
from tokenizer.pictures import mel_panels
from tokenizer.quantizer import Quantizer, gathered, usage
from tokenizer.recipe import Recipe, Stage
from tokenizer.vae import VAE

Batch = dict[str, Tensor]

PICTURES = 6
"""Held-out clips of which validation draws the spectrograms."""


@dataclass
class Validation:
    """What a stage makes of the held-out clips: figures, and spectrograms of a few."""

    values: dict[str, float]
    pictures: list[tuple[str, dict[str, Any]]]


INITIAL_CROPS = 512
"""Crops whose latents start the codebooks by k-means and give the statistics that are stored."""

LEAST_STD = 0.5
"""Channels that the KL term has all but switched off (means near 0 with a posterior near N(0, 1)) are not blown up."""


# -- what is trained: each stage is a module whose forward gives the loss ---------------------------------------------


class VAEStage(nn.Module):
    """Batch: ``mel`` ``[batch, bands, frames]``, ``noise`` ``[batch, frames / patch, latent]``."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.vae.loss(batch["mel"], batch["noise"])


class TokenStage(nn.Module):
    """Batch: ``latent`` and ``noise`` ``[batch, frames, latent]``, ``time`` and ``keep`` ``[batch]``; ``codes`` where
    the quantizer is frozen (computed once). A quantizer that is trained gets its gradient from the decoder's loss.
    """

    def __init__(self, quantizer: Quantizer, decoder: DecoderNetwork, train_quantizer: bool) -> None:
        super().__init__()
        self.quantizer, self.decoder, self.train_quantizer = quantizer, decoder, train_quantizer
        if not train_quantizer:
            self.quantizer.requires_grad_(False)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.train_quantizer:
            quantized = self.quantizer(batch["latent"])
            condition, extra = quantized.vectors, quantized.loss
        else:
            condition, extra = self.quantizer.vectors(batch["codes"]), batch["latent"].new_zeros(())
        loss, parts = decoder_loss(self.decoder, batch, condition)
        if self.train_quantizer:
            parts["quantizer"] = extra.detach()
            used = usage(gathered(quantized.codes[..., 0]), self.quantizer.config.sizes[0])
            parts |= {"used": torch.tensor(used.used), "entropy_bits": torch.tensor(used.entropy)}
            parts["perplexity"] = torch.tensor(used.perplexity)
        return loss + extra, parts


def decoder_loss(network: DecoderNetwork, batch: Batch, condition: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a decoder's objective: flow matching, the mean, or both (``prior``)."""
    c, x1 = network.config, batch["latent"]
    parts: dict[str, Tensor] = {}
    loss = x1.new_zeros(())
    if c.objective in ("fm", "prior"):
        x0, t = batch["noise"], batch["time"]
        made = network(path(x0, x1, t, c.sigma_min), t, condition, batch["keep"])
        flow = mse(made, target(x0, x1, c.sigma_min))
        loss, parts["fm"] = loss + flow, flow.detach()
    if c.objective in ("mse", "prior"):
        mean = mse(network.mean(condition), x1)
        loss, parts["mse"] = loss + mean, mean.detach()
    return loss, parts


# -- the loop ---------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What the stages of one run share."""

    recipe: Recipe
    folder: Path
    accelerator: Any
    tell: Callable[[str], None]
    bar: Callable[[str, int, int], None]

    @property
    def main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def rows(self, batch: int) -> slice:
        """This process's part of a global batch."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        if batch % world:
            raise UsageError(f"a batch of {batch} cannot be shared by {world} processes: make it a multiple")
        return slice(rank * batch // world, (rank + 1) * batch // world)


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up, then a cosine to 0."""
    rise = max(1, round(stage.warmup * stage.steps))
    if step < rise:
        return stage.lr * (step + 1) / rise
    return stage.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, stage.steps - rise)))


def run_stage(
    run: Run,
    name: str,
    module: nn.Module,
    stage: Stage,
    batch_of: Callable[[int], Batch],
    validate: Callable[[nn.Module], Validation],
    seed: int,
    before_step: Callable[[float], None] = lambda progress: None,
) -> nn.Module:
    """Train ``module`` for ``stage.steps`` steps, or go on from the stage's checkpoint; its averaged weights."""
    r, accelerator = run.recipe, run.accelerator
    folder = run.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    module = module.to(accelerator.device)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(r.ema))
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=stage.lr, betas=r.betas, weight_decay=r.weight_decay)
    first = load_checkpoint(folder / "checkpoint.pt", module, averaged, optimizer)
    if first >= stage.steps:
        return averaged.module
    wrapped = module if accelerator.num_processes == 1 else nn.parallel.DistributedDataParallel(module)
    log = Log(run, name, first)
    started = time.perf_counter()
    for step in range(first, stage.steps):
        module.train()
        before_step(step / stage.steps)
        torch.manual_seed(int(rng_of(seed, f"{name}:torch", step).integers(2**62)))  # what libraries draw on their own
        rate = learning_rate(stage, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = {k: v.to(accelerator.device) for k, v in batch_of(step).items()}
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=r.precision == "bf16"):
            loss, parts = wrapped(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, r.clip)
        optimizer.step()
        averaged.update_parameters(module)
        run.bar(name, step + 1, stage.steps)
        log.step(step, loss, {**parts, "gradient": norm}, rate, time.perf_counter() - started)
        done = step + 1
        if done % r.validate_every == 0 or done == stage.steps:
            averaged.eval()
            if run.main:
                log.validation(done, validate(averaged.module))
        if (done % r.checkpoint_every == 0 or done == stage.steps) and run.main:
            save_checkpoint(folder / "checkpoint.pt", module, averaged, optimizer, done)
    log.close()
    accelerator.wait_for_everyone()
    return averaged.module


def save_checkpoint(path: Path, module: nn.Module, averaged: nn.Module, optimizer: Any, step: int) -> None:
    """Everything that the next step depends on, in one file that is replaced as a whole."""
    state = {
        "step": step,
        "module": module.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Replace a file as a whole: a process that is killed leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def load_checkpoint(path: Path, module: nn.Module, averaged: nn.Module, optimizer: Any) -> int:
    """Take up a checkpoint where there is one; the number of steps that it has behind it.

    Raises:
        EvalkitError: a damaged file, or one of another model.
    """
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(state["module"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except Exception as error:  # torch raises a dozen kinds for a damaged or foreign file
        why = (str(error).splitlines() or [""])[0]
        raise EvalkitError(
            f"{path}: not a checkpoint of this stage ({type(error).__name__}: {why[:200]}): delete it to start "
            "the stage anew, or give another --out"
        ) from error


class Log:
    """JSON lines, TensorBoard where it is installed, and a line or a bar for the person who waits."""

    def __init__(self, run: Run, name: str, first: int) -> None:
        self.run, self.name = run, name
        self.every = 20 if run.recipe.vae.steps > 500 else 5
        self.writer: Any = None
        if not run.main:
            return
        path = run.folder / "log.jsonl"
        kept = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # a line cut off by a kill
                    entry = json.loads(line)
                    if entry["stage"] != name or entry["step"] <= first:
                        kept.append(line)
        write_whole(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a", encoding="utf-8")
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(run.folder / "tensorboard" / name), purge_step=first)

    def step(self, step: int, loss: Tensor, parts: dict[str, Tensor], rate: float, seconds: float) -> None:
        done = step + 1
        if not torch.isfinite(loss):
            raise EvalkitError(
                f"{self.name}, step {done}: the loss is {float(loss.detach())}: lower lr, or precision=no"
            )
        if done % self.every:
            return
        values = self._mean({"loss": float(loss.detach()), **{k: float(v) for k, v in parts.items()}})
        if self.run.main:
            self._write({"stage": self.name, "step": done, **values, "lr": rate}, values, done)
            if done % (10 * self.every) == 0:
                shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
                self.run.tell(f"{self.name} {done}  {shown}  ({seconds:.0f} s)")

    def validation(self, done: int, found: Validation) -> None:
        named = {f"validation_{k}": v for k, v in found.values.items()}
        self._write({"stage": self.name, "step": done, **named}, named, done)
        self.run.tell(f"{self.name} {done}  " + "  ".join(f"{k} {v:.4g}" for k, v in named.items()))
        folder = self.run.folder / "validation"
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(Unavailable):  # without matplotlib the numbers must do
            mel_panels(
                found.pictures,
                folder / f"{self.name}-{done:06d}.png",
                frame_rate=self.run.recipe.tokenizer.mel.frame_rate,
            )

    def _mean(self, values: dict[str, float]) -> dict[str, float]:
        """Over the processes: each saw its own rows."""
        accelerator = self.run.accelerator
        if accelerator.num_processes == 1:
            return values
        total = accelerator.reduce(torch.tensor(list(values.values()), device=accelerator.device), "mean")
        return dict(zip(values, total.tolist(), strict=True))

    def _write(self, entry: dict[str, Any], values: dict[str, float], done: int) -> None:
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        if self.writer is not None:
            for key, value in values.items():
                self.writer.add_scalar(key, value, done)

    def close(self) -> None:
        if self.run.main:
            self.file.close()
            if self.writer is not None:
                self.writer.close()


# -- the three stages -------------------------------------------------------------------------------------------------


def train_vae(run: Run, corpus: Corpus) -> VAE:
    """Stage 1: the VAE on augmented crops of log-mels, then the statistics of its latents."""
    r = run.recipe
    stage, config, patch = r.vae, r.tokenizer.vae, r.tokenizer.vae.patch
    torch.manual_seed(r.seed)
    vae = VAE(config, r.tokenizer.mel.bands)
    frames = stage.crop * patch
    places = draw_places(rng_of(r.seed, "statistics", 0), corpus.parts, INITIAL_CROPS, frames, 1)
    sample = corpus.crops(places, frames).flatten(0, 1)
    vae.mel_mean.copy_(sample.mean(0))
    vae.mel_std.copy_(sample.std(0).clamp_min(0.1))
    rows = run.rows(stage.batch)

    def batch_of(step: int) -> Batch:
        rng = rng_of(r.seed, "vae", step)
        places = draw_places(rng, corpus.parts, 2 * stage.batch, frames, 1)
        changes = draw_changes(rng, stage.batch, r.augmentation).rows(rows)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        mel, other = (corpus.crops(p[rows], frames) for p in (places[: stage.batch], places[stage.batch :]))
        noise = torch.randn(stage.batch, stage.crop, config.latent, generator=generator)[rows]
        return {"mel": augment(mel, other, changes, corpus.config).transpose(1, 2), "noise": noise}

    def validate(module: nn.Module) -> Validation:
        assert isinstance(module, VAEStage)
        errors, weight, pictures = 0.0, 0, []
        with torch.inference_mode():
            for number, (name, mel) in enumerate(validation_mels(corpus)):
                mel = mel.to(module.vae.mel_mean.device)
                made = module.vae.decode(module.vae.encode(mel)[0])
                errors += float((made - mel).abs().sum())
                weight += mel.numel()
                if shown(corpus, number):
                    pictures.append((name, {"original": mel[0].T.cpu().numpy(), "vae": made[0].T.cpu().numpy()}))
        return Validation({"l1": errors / weight}, pictures)

    trained = run_stage(run, "vae", VAEStage(vae), stage, batch_of, validate, r.seed)
    assert isinstance(trained, VAEStage)
    vae = trained.vae.to("cpu").eval()
    latents = torch.cat([stream_latents(vae, corpus.train[p : p + frames], patch) for p in places[::2]])
    latents = vae.restore(latents)  # the means themselves: the stored statistics are still 0 and 1
    vae.latent_mean.copy_(latents.mean(0))
    vae.latent_std.copy_(latents.std(0).clamp_min(LEAST_STD))
    return vae


def train_codes(run: Run, corpus: Corpus, vae: VAE, latents: Tensor, name: str, decoder: DecoderConfig) -> TokenStage:
    """Stage 2: a quantizer, by the loss of a decoder at its other end (the mean; in mode ``joint`` the objective)."""
    r = run.recipe
    assert r.tokenizer.quantizer is not None
    torch.manual_seed(r.seed)
    quantizer = Quantizer(r.tokenizer.quantizer, r.tokenizer.vae.latent)
    network = DecoderNetwork(decoder, r.tokenizer.vae.latent, quantizer.dim)
    rng = rng_of(r.seed, "codebooks", 0)
    places = draw_places(rng, latent_parts(corpus, r), INITIAL_CROPS, r.codes.crop, 1)
    torch.manual_seed(r.seed)
    quantizer.initialise(torch.cat([latents[0, p : p + r.codes.crop] for p in places]).float())
    quantizer.prepare_training(r.codes.batch * r.codes.crop)
    stage = TokenStage(quantizer, network, train_quantizer=r.tokenizer.quantizer.kind not in ("kmeans",))
    if not stage.train_quantizer:  # centroids of frozen latents: nothing to train
        return stage.eval()
    batch_of = token_batches(run, corpus, latents, None, r.codes, name, r.seed)
    validate = token_validation(run, corpus, vae)
    trained = run_stage(run, name, stage, r.codes, batch_of, validate, r.seed, before_step=quantizer.anneal)
    assert isinstance(trained, TokenStage)
    return trained.to("cpu").eval()


def train_decoder(
    run: Run, corpus: Corpus, vae: VAE, quantizer: Quantizer, latents: Tensor, codes: Tensor, config: DecoderConfig
) -> TokenStage:
    """Stage 3: one decoder on frozen codes."""
    r = run.recipe
    seed = r.seed if r.decoder_seed is None else r.decoder_seed
    torch.manual_seed(seed)
    network = DecoderNetwork(config, r.tokenizer.vae.latent, quantizer.dim)
    stage = TokenStage(quantizer, network, train_quantizer=False)
    batch_of = token_batches(run, corpus, latents, codes, r.decoder, "decoder", seed)
    trained = run_stage(run, config.objective, stage, r.decoder, batch_of, token_validation(run, corpus, vae), seed)
    assert isinstance(trained, TokenStage)
    return trained.to("cpu").eval()


def latent_parts(corpus: Corpus, r: Recipe) -> list[Any]:
    """The sources' places in the stream of latents."""
    patch = r.tokenizer.vae.patch
    return [dataclasses.replace(p, start=p.start // patch, stop=p.stop // patch) for p in corpus.parts]


def token_batches(
    run: Run, corpus: Corpus, latents: Tensor, codes: Tensor | None, stage: Stage, name: str, seed: int
) -> Callable[[int], Batch]:
    """Batches of cached latents ``[copies, frames, latent]`` (and codes). The name is the same for both objectives, so
    that both decoders see the same crops in the same order."""
    r = run.recipe
    parts, rows = latent_parts(corpus, r), run.rows(stage.batch)
    assert r.tokenizer.decoder is not None
    decoder = r.tokenizer.decoder

    def batch_of(step: int) -> Batch:
        rng = rng_of(seed, name, step)
        places = draw_places(rng, parts, stage.batch, stage.crop, 1)[rows]
        copies = rng.integers(len(latents), size=stage.batch)[rows]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        at = [(int(c), slice(p, p + stage.crop)) for c, p in zip(copies, places, strict=True)]
        batch = {
            "latent": torch.stack([latents[i] for i in at]).float(),
            "noise": torch.randn(stage.batch, stage.crop, latents.shape[-1], generator=generator)[rows],
            "time": sample_times(stage.batch, generator, decoder.times)[rows],
            "keep": keep_condition(stage.batch, decoder.dropout, generator)[rows],
        }
        if codes is not None:
            batch["codes"] = torch.stack([codes[i] for i in at]).long()
        return batch

    return batch_of


# -- validation -------------------------------------------------------------------------------------------------------


def validation_mels(corpus: Corpus) -> Iterator[tuple[str, Tensor]]:
    """Names and log-mels ``[1, bands, frames]`` of the held-out clips."""
    for data, clip, _, start, frames in corpus.clips:
        yield f"{data} {clip}", torch.from_numpy(corpus.validation[start : start + frames].astype("float32")).T[None]


def shown(corpus: Corpus, number: int) -> bool:
    """Whether the clip is one of `PICTURES` evenly spaced ones."""
    return number % max(1, len(corpus.clips) // PICTURES) == 0


def token_validation(run: Run, corpus: Corpus, vae: VAE) -> Callable[[nn.Module], Validation]:
    """Held-out clips through quantizer and decoder: latent error, variance, and use of the codes."""

    def validate(module: nn.Module) -> Validation:
        assert isinstance(module, TokenStage)
        network, quantizer = module.decoder, module.quantizer
        c = network.config
        device = next(network.parameters()).device
        solver = None if c.objective == "mse" else Solver(c.solver, c.evaluations)
        sampler = Sampler(network, solver, c.guidance)
        squared, power, made_power, count, seen, pictures = 0.0, 0.0, 0.0, 0, [], []
        with torch.inference_mode():
            for number, (name, mel) in enumerate(validation_mels(corpus)):
                wanted = vae.standardise(vae.encode(mel)[0]).to(device)
                codes = quantizer.encode(wanted)
                made = sampler(quantizer.vectors(codes), noise(0, 0, wanted.shape[1], wanted.shape[2])[None].to(device))
                seen.append(codes[0, :, 0].cpu())
                squared += float(((made - wanted) ** 2).sum())
                power += float(wanted.var(1, unbiased=False).sum()) * wanted.shape[1]
                made_power += float(made.var(1, unbiased=False).sum()) * wanted.shape[1]
                count += wanted.numel()
                if shown(corpus, number):
                    decoded = {
                        "original": mel,
                        **{k: vae.decode(vae.restore(z.cpu())) for k, z in (("vae", wanted), (c.objective, made))},
                    }
                    pictures.append((name, {k: m[0].T.numpy() for k, m in decoded.items()}))
        used = usage(torch.cat(seen), quantizer.config.sizes[0])
        values = {
            "latent_mse": squared / count,
            "variance_ratio": made_power / power,
            "codes_used": used.used,
            "code_balance": used.balance,
        }
        return Validation(values, pictures)

    return validate


# -- the whole run ----------------------------------------------------------------------------------------------------


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    data_root: str | None = None,
    cache: str | Path | None = None,
    tell: Callable[[str], None] = print,
    bar: Callable[[str, int, int], None] = lambda stage, done, steps: None,
) -> dict[str, Path]:
    """Train a recipe in the folder ``out``, or finish what a killed run left there; the folders of the tokenizers.

    ``out/models/`` gets ``vae``, ``vqfm``, ``vqmse`` (or ``vqprior``), each for `SoundTokenizer.from_pretrained`;
    ``out/log.jsonl`` and ``out/tensorboard`` the logs.

    Raises:
        UsageError: ``out`` holds a run of another recipe. Unavailable: accelerate is not installed.
        DataError: a data set is absent.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise Unavailable("training needs accelerate: pip install 'evalkit-audio[train]'") from error
    recipe.check()
    start = None
    if recipe.start:
        start = SoundTokenizer.from_pretrained(recipe.start)
        mel, vae_config = start.config.mel, start.config.vae
        quantizer_config = start.config.quantizer or recipe.tokenizer.quantizer
        sizes = dataclasses.replace(recipe.tokenizer, mel=mel, vae=vae_config, quantizer=quantizer_config)
        recipe = dataclasses.replace(recipe, tokenizer=sizes)
    r = recipe
    if r.threads:
        torch.set_num_threads(r.threads)
    # Mixed precision is set in the loop, where it can be read; accelerate starts and counts the processes.
    accelerator = Accelerator(mixed_precision="no")
    if accelerator.num_processes == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "several processes were started, but accelerate sees no GPU: on CPUs, set ACCELERATE_USE_CPU=true"
        )
    folder = Path(out)
    run = Run(r, folder, accelerator, tell, bar)
    if not run.main:
        run = Run(r, folder, accelerator, lambda text: None, lambda stage, done, steps: None)
    for batch in (r.vae.batch, r.codes.batch, r.decoder.batch):
        run.rows(batch)  # an error now, not after hours
    with accelerator.main_process_first():
        folder.mkdir(parents=True, exist_ok=True)
        _check_recipe(folder, r, run.main)
        corpus = build_corpus(
            r.sources,
            r.tokenizer.mel,
            r.tokenizer.vae.patch,
            Path(cache) if cache is not None else folder / "cache",
            data_root,
            tell=run.tell,
        )
    started = time.perf_counter()
    vae = train_vae(run, corpus) if start is None else start.vae
    latents = cached_latents(vae, corpus, r.tokenizer.vae.patch, r.copies, r.seed, r.augmentation)
    run.tell(f"latents: {tuple(latents.shape)} ({time.perf_counter() - started:.0f} s)")
    assert r.tokenizer.decoder is not None
    configs = {o: dataclasses.replace(r.tokenizer.decoder, objective=o) for o in r.objectives}
    decoders: dict[str, TokenStage] = {}
    if r.mode == "joint":
        for objective, config in configs.items():
            decoders[objective] = train_codes(run, corpus, vae, latents, f"joint-{objective}", config)
    else:
        if start is not None and start.quantizer is not None:
            quantizer = start.quantizer
        else:
            mean = dataclasses.replace(r.tokenizer.decoder, objective="mse")
            quantizer = train_codes(run, corpus, vae, latents, "codes", mean).quantizer
        codes = stream_codes(quantizer, latents)
        if r.mode == "prior":
            configs = {"prior": dataclasses.replace(r.tokenizer.decoder, objective="prior")}
        for objective, config in configs.items():
            decoders[objective] = train_decoder(run, corpus, vae, quantizer, latents, codes, config)
    models: dict[str, Path] = {}
    if run.main:
        card = describe(run, corpus, start, time.perf_counter() - started)
        for name, stage in [("vae", None), *((f"vq{o}", s) for o, s in decoders.items())]:
            models[name] = folder / "models" / name
            assemble(r, vae, stage).save_pretrained(models[name], {**card, "model": name})
        tell(f"wrote {', '.join(map(str, models.values()))}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return models


@torch.inference_mode()
def stream_codes(quantizer: Quantizer, latents: Tensor, chunk: int = 4096) -> Tensor:
    """Codes ``[copies, frames, books]`` int32 of latents ``[copies, frames, latent]``, in pieces with context."""
    context, out = quantizer.context, []
    for start in range(0, latents.shape[1], chunk):
        a = max(0, start - context)
        piece = quantizer.encode(latents[:, a : start + chunk + context].float())
        out.append(piece[:, start - a : start - a + chunk].to(torch.int32))
    return torch.cat(out, dim=1)


def assemble(r: Recipe, vae: VAE, stage: TokenStage | None) -> SoundTokenizer:
    """A tokenizer of trained parts; without ``stage`` the VAE alone."""
    config = dataclasses.replace(
        r.tokenizer,
        vae=vae.config,
        quantizer=None if stage is None else stage.quantizer.config,
        decoder=None if stage is None else stage.decoder.config,
    )
    tokenizer = SoundTokenizer(config)
    tokenizer.vae.load_state_dict(vae.state_dict())
    if stage is not None:
        assert tokenizer.quantizer is not None and tokenizer.decoder is not None
        tokenizer.quantizer.load_state_dict(stage.quantizer.state_dict())
        tokenizer.decoder.load_state_dict(stage.decoder.state_dict())
    return tokenizer.eval()


def _union(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Clip ids by data set and cluster, of both."""
    return {
        name: {
            cluster: sorted({*a.get(name, {}).get(cluster, ()), *b.get(name, {}).get(cluster, ())})
            for cluster in sorted({*a.get(name, {}), *b.get(name, {})})
        }
        for name in dict.fromkeys((*a, *b))
    }


def _check_recipe(folder: Path, recipe: Recipe, main: bool) -> None:
    """A folder belongs to one recipe: how often it validates or writes may change, what decides the weights may not."""
    value = json.loads(json.dumps(dataclasses.asdict(recipe)))
    for free in ("checkpoint_every", "validate_every", "note"):
        value.pop(free)
    path = folder / "recipe.json"
    if path.is_file():
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EvalkitError(f"{path}: damaged ({error}): give another --out") from error
        if digest(recorded) != digest(value):
            changes = "; ".join(difference(recorded, value)[:4])
            raise UsageError(
                f"{folder} holds a run of another recipe ({changes}): give another --out, or the same recipe"
            )
    elif main:
        write_whole(path, json.dumps(value, indent=1) + "\n")


def describe(run: Run, corpus: Corpus, start: SoundTokenizer | None, seconds: float) -> dict[str, Any]:
    """What goes with the weights: recipe, data, machine, time, and the last validation of every stage."""
    last: dict[str, Any] = {}
    for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if any(k.startswith("validation_") for k in entry):
            last[entry["stage"]] = {k: v for k, v in entry.items() if k != "stage"}
    data = corpus.about
    if start is not None:  # its clips were trained on as well
        earlier = start.card.get("data", {}).get("trained_on", {})
        data = {**data, "trained_on": _union(earlier, data["trained_on"])}
    return {
        "recipe": dataclasses.asdict(run.recipe),
        "data": data,
        "validation": last,
        "seconds_of_this_session": round(seconds),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {run.accelerator.device.type} x {run.accelerator.num_processes}",
        "versions": {"evalkit-audio": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
