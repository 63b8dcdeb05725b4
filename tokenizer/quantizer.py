"""The quantizers: standardised latents to codes, and codes to the vectors that condition the decoders.

A few ConvNeXt blocks come first (none for ``kmeans``), so that a code sees its neighbourhood; then one of

* ``vq``: a codebook learned by moving averages with k-means initialisation and revival of dead codes (van den Oord et
  al. 2017, arXiv 1711.00937, by vector-quantize-pytorch);
* ``rvq``: ``levels`` of them on one another's residual (Zeghidour et al. 2021, arXiv 2107.03312);
* ``fsq``: finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505), nothing learned;
* ``kmeans``: centroids of the frozen latents themselves;
* ``variational``: a posterior over the codes with an entropy term and an annealed temperature, the reading of
  "variational quantization" as an evidence lower bound. How the paper defines the term is not known here.

Codes are ``[batch, frames, books]``, always computed in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from tokenizer.blocks import reach, stack

KINDS = ("vq", "rvq", "fsq", "kmeans", "variational")


@dataclass(frozen=True)
class QuantizerConfig:
    """What is quantised, and how.

    Attributes:
        kind: one of `KINDS`. size: codes a codebook (K). levels: codebooks of ``rvq``.
        fsq: steps of each dimension of ``fsq``; their product is K.
        dim: dimensions in which codes are searched (``kmeans``: those of the latent; ``fsq``: one a step count).
        width, blocks, expand: of the network before it.
        decay: of the moving averages. commitment: weight of the commitment loss.
        revive: a code used less than this share of uniform use is replaced by a vector of the batch.
        kmeans_iterations: of the initialisation. entropy: weight of the entropy term of ``variational``, in nats.
        temperature: of ``variational``, first and last; it falls geometrically with training.
    """

    kind: str = "vq"
    size: int = 1024
    levels: int = 1
    fsq: tuple[int, ...] = (8, 5, 5, 5)
    dim: int = 16
    width: int = 160
    blocks: int = 2
    expand: int = 3
    decay: float = 0.99
    commitment: float = 0.25
    revive: float = 0.1
    kmeans_iterations: int = 50
    entropy: float = 0.01
    temperature: tuple[float, float] = (2.0, 0.1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each codebook."""
        if self.kind == "fsq":
            return (math.prod(self.fsq),)
        return (self.size,) * (self.levels if self.kind == "rvq" else 1)

    @property
    def bits(self) -> float:
        """Bits a frame: the sum of log2 K."""
        return sum(math.log2(k) for k in self.sizes)


class Quantized(NamedTuple):
    """``vectors`` ``[batch, frames, dim]`` with a gradient to the input, ``codes`` and the quantizer's own ``loss``."""

    vectors: Tensor
    codes: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """See the module's docstring. Input: standardised latents ``[batch, frames, latent]``.

    Raises:
        ValueError: an unknown kind, or a size that cannot be.
    """

    def __init__(self, config: QuantizerConfig, latent: int) -> None:
        super().__init__()
        if config.kind not in KINDS:
            raise ValueError(f"quantizer {config.kind!r}: expected {', '.join(KINDS)}")
        if not config.sizes or min(config.sizes) < 2:
            raise ValueError(f"quantizer sizes {config.sizes}: each must be at least 2")
        if config.kind == "fsq" and min(config.fsq) < 3:
            raise ValueError(f"fsq steps {config.fsq}: each must be at least 3")
        self.config = config
        c = config
        self.dim = {"kmeans": latent, "fsq": len(c.fsq)}.get(c.kind, c.dim)
        self.enter = nn.Identity() if c.kind == "kmeans" else nn.Linear(latent, c.width)
        self.blocks = stack(0 if c.kind == "kmeans" else c.blocks, c.width, c.expand)
        self.leave = (
            nn.Identity() if c.kind == "kmeans" else nn.Sequential(nn.LayerNorm(c.width), nn.Linear(c.width, self.dim))
        )
        self.core = CORES[c.kind](config, self.dim)

    @property
    def context(self) -> int:
        """Frames to either side that a code sees."""
        return reach(self.blocks)

    def project(self, latent: Tensor) -> Tensor:
        """What is searched for in the codebook, ``[batch, frames, dim]`` float32."""
        x = self.enter(latent)
        for block in self.blocks:
            x = block(x)
        return self.leave(x).float()

    def forward(self, latent: Tensor) -> Quantized:
        projected = self.project(latent)
        with torch.autocast(latent.device.type, enabled=False):
            return self.core(projected)

    def encode(self, latent: Tensor) -> Tensor:
        """Codes ``[batch, frames, books]``; nothing is learned or revived."""
        return self.core.search(self.project(latent))

    def vectors(self, codes: Tensor) -> Tensor:
        """The vectors that codes ``[batch, frames, books]`` stand for, ``[batch, frames, dim]``."""
        return self.core.vectors(codes)

    def prepare_training(self, tokens_per_batch: int) -> None:
        """Tell the quantizer how many codes a global batch holds: revival is relative to uniform use."""
        self.core.prepare_training(tokens_per_batch)

    @torch.no_grad()
    def initialise(self, latent: Tensor) -> None:
        """Start the codebooks by k-means on ``[frames, latent]``, at least K and better 10 K frames.

        Raises:
            ValueError: fewer frames than codes (k-means would start from duplicates).
        """
        if len(latent) < max(self.config.sizes) and self.config.kind != "fsq":
            raise ValueError(f"k-means for {max(self.config.sizes)} codes needs as many frames, got {len(latent)}")
        self.core.initialise(self.project(latent[None]))

    def anneal(self, progress: float) -> None:
        """Say how far training is, 0 to 1: sets the temperature of ``variational``."""
        self.core.progress = progress


# -- the kinds --------------------------------------------------------------------------------------------------------


class _Core(nn.Module):
    """What the kinds share: searching and looking up in ``codebooks`` ``[books, K, dim]``, residual by residual."""

    progress = 0.0

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def codebooks(self) -> Tensor:
        raise NotImplementedError  # pragma: no cover - every kind but fsq has them

    def search(self, x: Tensor) -> Tensor:
        """The nearest codes. In float64: how frames are batched must not decide between two near codes."""
        rest, codes = x.double(), []
        for book in self.codebooks.double():
            near = ((book**2).sum(1) - 2 * rest @ book.T).argmin(-1)
            codes.append(near)
            rest = rest - book[near]
        return torch.stack(codes, dim=-1)

    def vectors(self, codes: Tensor) -> Tensor:
        return torch.stack([book[codes[..., i]] for i, book in enumerate(self.codebooks)]).sum(0)

    def prepare_training(self, tokens_per_batch: int) -> None: ...

    def initialise(self, x: Tensor) -> None: ...


def _library_arguments(config: QuantizerConfig) -> dict[str, Any]:
    """Every argument of vector-quantize-pytorch's quantizers that changes a result, spelled out."""
    return {
        "decay": config.decay,
        "eps": 1e-5,
        "kmeans_init": True,
        "kmeans_iters": config.kmeans_iterations,
        "sync_kmeans": False,  # every process starts the codebooks from the same vectors
        "sync_codebook": False,  # set by prepare_training, where several processes train
        "use_cosine_sim": False,
        "threshold_ema_dead_code": 0,  # set by prepare_training, relative to uniform use
        "commitment_weight": config.commitment,
        "commitment_use_cross_entropy_loss": False,
        "orthogonal_reg_weight": 0.0,
        "codebook_diversity_loss_weight": 0.0,
        "stochastic_sample_codes": False,
        "straight_through": True,
        "rotation_trick": False,
        "learnable_codebook": False,
        "ema_update": True,
        "affine_param": False,
        "heads": 1,
    }


def processes() -> tuple[int, int]:
    """How many processes train together, and the rank of this one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1, 0
    return distributed.get_world_size(), distributed.get_rank()


def gathered(x: Tensor, dim: int = 0) -> Tensor:
    """``x`` of all processes, one after another along ``dim``: as one process with the whole batch has it."""
    if processes()[0] == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(processes()[0])]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts, dim=dim)


def _sample_of_all(vectors: Tensor, count: int) -> Tensor:
    """``count`` of the vectors ``[1, vectors, dim]`` of all processes: those that one process with the whole batch
    would draw, since torch's generators stand alike in all of them."""
    from vector_quantize_pytorch.vector_quantize_pytorch import batched_sample_vectors

    return batched_sample_vectors(gathered(vectors, dim=1), count)


def _gumbel(like: Tensor) -> Tensor:
    """Gumbel noise for this process's rows of the batch, drawn for the whole batch as `_sample_of_all` does."""
    (world, rank), rows = processes(), len(like)
    drawn = like.new_empty(world * rows, *like.shape[1:]).exponential_()
    return -drawn[rank * rows : (rank + 1) * rows].log()


class _Learned(_Core):
    """``vq`` and ``rvq``: codebooks by moving averages; ``kmeans``: the same, frozen after its initialisation."""

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config)
        from vector_quantize_pytorch import ResidualVQ, VectorQuantize

        arguments = _library_arguments(config)
        if config.kind == "rvq":
            self.library = ResidualVQ(
                dim=dim,
                num_quantizers=config.levels,
                codebook_size=config.size,
                shared_codebook=False,
                quantize_dropout=False,
                **arguments,
            )
        else:
            self.library = VectorQuantize(dim=dim, codebook_size=config.size, codebook_dim=dim, **arguments)

    @property
    def _books(self) -> list[Any]:
        layers = self.library.layers if self.config.kind == "rvq" else [self.library]
        return [layer._codebook for layer in layers]

    @property
    def codebooks(self) -> Tensor:
        return torch.cat([book.embed for book in self._books])

    def forward(self, x: Tensor) -> Quantized:
        if self.config.kind == "kmeans" or not self.training:  # by the same search as `encode`, to the last bit
            codes = self.search(x)
            return Quantized(self.vectors(codes), codes, x.new_zeros(()))
        made, codes, loss = self.library(x)
        if (
            self.config.kind == "rvq"
        ):  # the library's gradient is that of one straight-through estimate a level, added up
            made = x + (made - x).detach()
        return Quantized(made, codes if codes.ndim == 3 else codes[..., None], loss.sum())

    def prepare_training(self, tokens_per_batch: int) -> None:
        # The library takes an absolute count; the moshi rule is relative: below `revive` of uniform use a code is
        # replaced, and starts as one of uniform use.
        for book in self._books:
            uniform = tokens_per_batch / self.config.size
            book.threshold_ema_dead_code = self.config.revive * uniform
            book.reset_cluster_size = uniform
            book.has_dead_code_replacement = self.config.revive > 0
            if processes()[0] > 1:
                book.all_reduce_fn, book.replace_sample_fn = distributed.all_reduce, _sample_of_all

    def initialise(self, x: Tensor) -> None:
        was_training = self.training
        self.train()
        self.library(x)
        self.train(was_training)
        for buffer in self.buffers():  # one that the library marked would be no leaf after a move to a GPU
            buffer.requires_grad_(False)
        if not all(bool(book.initted) for book in self._books):
            raise RuntimeError("the codebooks did not initialise")


class _Finite(_Core):
    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config)
        from vector_quantize_pytorch import FSQ

        self.library = FSQ(
            levels=list(config.fsq),
            dim=dim,
            num_codebooks=1,
            return_indices=True,
            force_quantization_f32=True,
            preserve_symmetry=False,
            noise_dropout=0.0,
            bound_hard_clamp=False,
        )

    def forward(self, x: Tensor) -> Quantized:
        made, codes = self.library(x)
        return Quantized(made, codes[..., None].long(), x.new_zeros(()))

    def search(self, x: Tensor) -> Tensor:
        return self.library(x)[1][..., None].long()

    def vectors(self, codes: Tensor) -> Tensor:
        return self.library.indices_to_codes(codes[..., 0])


class _Variational(_Core):
    """q(k | x) = softmax(-|x - e_k|^2 / (dim T)); trained through a straight-through Gumbel-softmax sample.

    Loss: ``commitment`` E_q |x - e_k|^2 / dim + ``entropy`` KL(q || uniform), that is, minus the posterior's entropy up
    to a constant: a lower bound of the evidence with a uniform prior. T falls from the first to the last temperature.
    """

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config)
        self.codebook = nn.Parameter(torch.randn(config.size, dim))

    @property
    def codebooks(self) -> Tensor:
        return self.codebook[None]

    def forward(self, x: Tensor) -> Quantized:
        first, last = self.config.temperature
        temperature = first * (last / first) ** self.progress
        distance = torch.cdist(x, self.codebook.expand(len(x), -1, -1)) ** 2 / x.shape[-1]
        logits = -distance / temperature
        posterior = logits.softmax(-1)
        if self.training:  # a sample, with the gradient of the softmax that it was taken from
            soft = (logits + _gumbel(logits)).softmax(-1)
            chosen = F.one_hot(soft.argmax(-1), self.config.size) - soft.detach() + soft
        else:
            chosen = F.one_hot(self.search(x)[..., 0], self.config.size).to(x)
        divergence = (posterior * (logits.log_softmax(-1) + math.log(self.config.size))).sum(-1).mean()
        distortion = (posterior * distance).sum(-1).mean()
        loss = self.config.commitment * distortion + self.config.entropy * divergence
        return Quantized(chosen @ self.codebook, chosen.argmax(-1)[..., None], loss)

    def initialise(self, x: Tensor) -> None:
        from vector_quantize_pytorch import VectorQuantize

        start = VectorQuantize(dim=x.shape[-1], codebook_size=self.config.size, **_library_arguments(self.config)).to(x)
        start.train()
        start(x)
        self.codebook.copy_(start._codebook.embed[0])


CORES: dict[str, type[Any]] = {
    "vq": _Learned, "rvq": _Learned, "kmeans": _Learned, "fsq": _Finite, "variational": _Variational,
}  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """How codes are used. ``used``: share of the K codes seen; ``entropy``: in bits; ``perplexity``: 2 ** entropy;
    ``balance``: entropy / log2 K."""

    used: float
    entropy: float
    perplexity: float
    balance: float


def usage(codes: Tensor, size: int) -> Usage:
    """`Usage` of the codes of one codebook (any shape, integers below ``size``)."""
    share = torch.bincount(codes.reshape(-1).long(), minlength=size).double()
    share = share / share.sum().clamp_min(1)
    entropy = -float((share * share.clamp_min(1e-300).log2()).sum())
    return Usage(float((share > 0).double().mean()), entropy, 2.0**entropy, entropy / math.log2(size))
