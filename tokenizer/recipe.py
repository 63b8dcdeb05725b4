"""Recipes: everything that decides a training run, as frozen dataclasses; the presets; and ``key=value`` overrides."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalkit.errors import UsageError
from tokenizer.blocks import BLOCKS
from tokenizer.codec import TokenizerConfig
from tokenizer.data import Augmentation, Source
from tokenizer.flow import TIMES, Solver
from tokenizer.network import DecoderConfig
from tokenizer.quantizer import KINDS, QuantizerConfig
from tokenizer.vae import VAEConfig

MODES = ("shared", "joint", "prior")


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        steps, batch: optimiser steps, and crops a step over all processes. crop: latent frames of a crop.
        lr: peak learning rate; it rises linearly over ``warmup`` (a share of the steps) and falls to 0 by a cosine.
    """

    steps: int
    batch: int = 32
    crop: int = 64
    lr: float = 1e-4
    warmup: float = 0.03


@dataclass(frozen=True)
class Recipe:
    """A training run of three stages: VAE, codes, decoders.

    Attributes:
        mode: what the decoders of ``objectives`` share. ``shared``: one VAE and one quantizer, so identical codes: the
            decoder's objective alone differs. ``joint``: quantizer and decoder are trained together, once an objective.
            ``prior``: one decoder with a mean head (x = 0, t = 0) and a flow.
        objectives: ``fm`` and ``mse``. start: a saved tokenizer whose VAE, and quantizer where it has one, are taken as
            they are.
        copies: of the cached latents, the first clean, the others augmented.
        seed: of everything drawn; decoder_seed: of the decoders' stage where it is another.
        ema: decay of the averaged weights that are kept; clip: of the gradient's norm. precision: ``bf16`` or ``no``.
        threads: of torch on a CPU; 0 leaves them. Other numbers of threads give other last bits.
        checkpoint_every, validate_every: steps between checkpoints, and between validations.
    """

    name: str
    tokenizer: TokenizerConfig
    sources: tuple[Source, ...]
    vae: Stage
    codes: Stage
    decoder: Stage
    mode: str = "shared"
    objectives: tuple[str, ...] = ("fm", "mse")
    start: str = ""
    augmentation: Augmentation = field(default_factory=Augmentation)
    copies: int = 8
    seed: int = 0
    decoder_seed: int | None = None
    ema: float = 0.999
    clip: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    precision: str = "bf16"
    threads: int = 0
    checkpoint_every: int = 250
    validate_every: int = 1000
    note: str = ""

    def check(self) -> None:
        """
        Raises:
            UsageError: a value that training would only trip over later.
        """
        quantizer, decoder = self.tokenizer.quantizer, self.tokenizer.decoder
        if quantizer is None or decoder is None:
            raise UsageError("a recipe needs a quantizer and a decoder")
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("precision", self.precision, ("bf16", "no")),
            ("tokenizer.quantizer.kind", quantizer.kind, KINDS),
            ("tokenizer.decoder.block", decoder.block, BLOCKS),
            ("tokenizer.decoder.times", decoder.times, TIMES),
        ):
            if value not in known:
                raise UsageError(f"{name}={value}: expected {', '.join(known)}")
        if not self.objectives or not set(self.objectives) <= {"fm", "mse"}:
            raise UsageError(f"objectives={','.join(self.objectives)}: expected fm, mse or both")
        if not self.sources:
            raise UsageError("sources: none given")
        for name in ("vae", "codes", "decoder"):
            for key in ("steps", "batch", "crop"):
                _at_least_1(f"{name}.{key}", getattr(getattr(self, name), key))
        for name in ("copies", "checkpoint_every", "validate_every"):
            _at_least_1(name, getattr(self, name))
        if min(quantizer.sizes) < 2:
            raise UsageError(f"tokenizer.quantizer: codebooks of {quantizer.sizes} codes, at least 2 each")
        try:
            Solver(decoder.solver, decoder.evaluations)
        except ValueError as error:
            raise UsageError(f"tokenizer.decoder: {error}") from error


def _at_least_1(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{name}={value}: at least 1")


OPEN_DATA = (
    Source("esc50@subset=esc10", 3.0, ("split=5",)),
    Source("scenes@split=train@clips=1000", 3.0, (), "scenes@split=validation@clips=24"),
    Source("fsdd", 1.0, ("cluster=yweweler",)),
    Source("vctk", 1.0, ("cluster=p228",)),
    Source("librispeech", 1.0, ("share=1/3",)),
    Source("folder:ljspeech@domain=speech", 1.0),
    Source("fma", 1.0, ("share=1/3",)),
    Source("folder:music@domain=music", 1.0),
)
"""Clearly licensed audio of several data sets, each with its held-out part (see docs/tokenizer.md)."""


def tiny() -> Recipe:
    """Seconds, on generated scenes: shows that everything runs. What it makes is not worth hearing."""
    return Recipe(
        "tiny",
        TokenizerConfig(
            vae=VAEConfig(latent=32, width=64, blocks=2, expand=2),
            quantizer=QuantizerConfig(size=64, dim=8, width=48, blocks=1, expand=2, kmeans_iterations=10),
            decoder=DecoderConfig(width=48, blocks=3, expand=2),
        ),
        (Source("scenes@split=train@clips=24", 1.0, (), "scenes@split=validation@clips=4"),),
        vae=Stage(80, batch=8, crop=32, lr=2e-3),
        codes=Stage(60, batch=8, crop=32, lr=2e-3),
        decoder=Stage(60, batch=8, crop=32, lr=2e-3),
        copies=1,
        ema=0.95,
        precision="no",
        threads=1,
        checkpoint_every=20,
        validate_every=1000,
    )


def cpu() -> Recipe:
    """About an hour on two cores, on `OPEN_DATA`: what is shipped."""
    return Recipe(
        "cpu",
        # Revival at half of uniform use, not at a tenth: entropy 0.875 of log2 K on validation clips, not 0.855.
        TokenizerConfig(quantizer=QuantizerConfig(revive=0.5)),
        OPEN_DATA,
        vae=Stage(6000, lr=1e-3),
        codes=Stage(4000, lr=1e-3),
        decoder=Stage(5000, lr=1e-3),
        threads=1,
    )


def gpu() -> Recipe:
    """About a quarter of an hour on one large GPU (estimated, not run)."""
    return Recipe(
        "gpu",
        TokenizerConfig(
            vae=VAEConfig(latent=64, width=384, blocks=8),
            quantizer=QuantizerConfig(width=384, blocks=4),
            decoder=DecoderConfig(width=512, blocks=12),
        ),
        OPEN_DATA,
        vae=Stage(6000, batch=128, crop=96, lr=5e-4),
        codes=Stage(5000, batch=256, crop=96, lr=5e-4),
        decoder=Stage(6000, batch=256, crop=160, lr=3e-4),
        copies=16,
        note="sizes and times are estimates: this preset has not been run",
    )


def paper() -> Recipe:
    """The scale that is described for LM-MSN; everything marked unknown is our choice, not the paper's."""
    return Recipe(
        "paper",
        TokenizerConfig(
            vae=VAEConfig(latent=64, width=512, blocks=12),
            quantizer=QuantizerConfig(width=512, blocks=4),
            decoder=DecoderConfig(block="dit", width=768, blocks=16),
        ),
        OPEN_DATA,
        vae=Stage(200_000, batch=256, crop=160),
        codes=Stage(200_000, batch=256, crop=160),
        decoder=Stage(400_000, batch=256, crop=234),
        copies=1,
        note="known of the paper: 0.23 kbps, VQ with conditional flow matching against MSE, AdamW at 1e-4. Unknown, "
        "and chosen here: sample rate, mel geometry, VAE, K, network, steps, batch, data and hours, solver, "
        "guidance. Give your own data by sources=",
    )


PRESETS: dict[str, Callable[[], Recipe]] = {"tiny": tiny, "cpu": cpu, "gpu": gpu, "paper": paper}


def recipe(preset: str, overrides: Sequence[str] = ()) -> Recipe:
    """A preset with overrides, each ``key=value`` with a dotted key: ``decoder.steps=100``,
    ``tokenizer.quantizer.kind=rvq``, ``seed=1``, ``sources=esc50@subset=esc10,folder:mine`` (held out: a tenth).

    Raises:
        UsageError: an unknown preset or key, or a value of the wrong kind; the message lists what is known.
    """
    if preset not in PRESETS:
        raise UsageError(f"no preset {preset!r}: {', '.join(PRESETS)}")
    made = PRESETS[preset]()
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r}: expected key=value, such as decoder.steps=1000")
        made = _replaced(made, key.split("."), value, text)
    made.check()
    return made


def _replaced(part: Any, path: list[str], value: str, whole: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(part)}
    if path[0] not in known:
        raise UsageError(f"{whole}: no {path[0]!r} here; known: {', '.join(known)}")
    old = getattr(part, path[0])
    if dataclasses.is_dataclass(old):
        if len(path) == 1:
            inside = ", ".join(f"{path[0]}.{f.name}" for f in dataclasses.fields(old))
            raise UsageError(f"{whole}: {path[0]} has parts, set one of {inside}")
        return dataclasses.replace(part, **{path[0]: _replaced(old, path[1:], value, whole)})
    if len(path) > 1:
        raise UsageError(f"{whole}: {path[0]} has no parts")
    kind = typing.get_type_hints(type(part))[path[0]]
    return dataclasses.replace(part, **{path[0]: _value(kind, value, whole)})


def _value(kind: Any, text: str, whole: str) -> Any:
    if kind == tuple[Source, ...]:
        from evalkit.spec import split_specs

        return tuple(Source(spec, 1.0, ("share=1/10",)) for spec in split_specs(text))
    arguments = typing.get_args(kind)
    choices = [a for a in arguments if a not in (type(None), Ellipsis)]
    if typing.get_origin(kind) is tuple:
        values = tuple(_value(choices[0], t, whole) for t in text.split(","))
        if Ellipsis not in arguments and len(values) != len(choices):
            raise UsageError(f"{whole}: expected {len(choices)} values with commas between them, got {len(values)}")
        return values
    if type(None) in arguments:
        if text.lower() == "none":
            return None
        kind = choices[0]
    try:
        return kind(text)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{whole}: {text!r} is not of the kind {getattr(kind, '__name__', kind)}") from error
