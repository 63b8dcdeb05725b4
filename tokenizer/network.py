"""The decoders' network: one class for flow matching and for its deterministic twin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.blocks import BLOCKS, reach, stack
from tokenizer.flow import time_embedding


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder, and how it is trained and sampled.

    Attributes:
        block: ``convnext`` or ``dit``. width, blocks, expand: of the stack.
        objective: ``fm`` (flow matching), ``mse`` (the deterministic twin) or ``prior`` (flow matching with a mean
            head: the same network trained at x = 0, t = 0 as well).
        sigma_min: of the path. dropout: probability of training without the condition, for guidance.
        times: distribution of training times (`tokenizer.flow.sample_times`).
        solver, evaluations, guidance: defaults of sampling.
    """

    block: str = "convnext"
    width: int = 192
    blocks: int = 8
    expand: int = 3
    objective: str = "fm"
    sigma_min: float = 1e-4
    dropout: float = 0.1
    times: str = "stratified"
    solver: str = "midpoint"
    evaluations: int = 8
    guidance: float = 1.0


class DecoderNetwork(nn.Module):
    """``velocity(x_t, t, condition)`` on latent frames.

    Shapes: x ``[batch, frames, latent]``, t ``[batch]`` in 0..1, condition ``[batch, frames, condition]`` (the vectors
    of the codes), keep ``[batch]`` bool (False: the learned empty condition), to ``[batch, frames, latent]``.

    The time enters every block by adaptive layer norm: one shared projection and a learned offset a block (PixArt,
    Chen et al. 2023, arXiv 2310.00426, "adaLN-single"). The last layer starts at zero.

    The MSE twin is this class called at x = 0 and t = 0 (`mean`): same parameters, same cost of one evaluation.
    """

    def __init__(self, config: DecoderConfig, latent: int, condition: int) -> None:
        super().__init__()
        self.config = config
        self.latent = latent
        c = config
        m = BLOCKS[c.block].modulations if c.block in BLOCKS else 0
        self.empty = nn.Parameter(torch.zeros(condition))
        self.enter = nn.Linear(latent + condition, c.width)
        self.time = nn.Sequential(nn.Linear(c.width, c.width), nn.SiLU(), nn.Linear(c.width, c.width), nn.SiLU())
        self.blocks = stack(c.blocks, c.width, c.expand, c.block)
        self.modulation = nn.Linear(c.width, m * c.width)
        self.offsets = nn.Parameter(torch.randn(c.blocks, m, c.width) / c.width**0.5)
        self.norm = nn.LayerNorm(c.width, elementwise_affine=False)
        self.final = nn.Linear(c.width, 2 * c.width)
        self.leave = nn.Linear(c.width, latent)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @property
    def context(self) -> int:
        """Frames to either side that one evaluation sees."""
        return reach(self.blocks)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, keep: Tensor | None = None) -> Tensor:
        if keep is not None:
            condition = torch.where(keep[:, None, None], condition, self.empty.to(condition))
        time = self.time(time_embedding(t, self.config.width).to(x))
        shared = self.modulation(time).view(len(x), -1, self.config.width)
        y = self.enter(torch.cat([x, condition], dim=-1))
        for block, offset in zip(self.blocks, self.offsets, strict=True):
            y = block(y, shared + offset)
        shift, scale = self.final(time)[:, None].chunk(2, dim=-1)
        return self.leave(self.norm(y) * (1 + scale) + shift).float()

    def mean(self, condition: Tensor) -> Tensor:
        """The deterministic output: the network at x = 0, t = 0."""
        x = condition.new_zeros(*condition.shape[:2], self.latent)
        keep = torch.ones(len(x), dtype=torch.bool, device=x.device)  # said, so that `empty` has a gradient (of 0): on
        return self(x, x.new_zeros(len(x)), condition, keep)  # several devices every parameter must have one


def mse(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error a latent dimension."""
    return F.mse_loss(made.float(), wanted.float())
