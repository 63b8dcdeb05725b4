"""The residual blocks that the VAE, the quantizer and the decoders are made of. All work on ``[batch, frames, width]``.

Every block is local in time (ConvNeXt) or declares that it is not (attention), and none normalises over time: so a long
file cut into overlapping chunks gives the same result away from the seams.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 7


class ConvNeXtBlock(nn.Module):
    """ConvNeXt in one dimension (Liu et al. 2022, arXiv 2201.03545; Vocos, arXiv 2306.00814), with optional adaLN.

    Depthwise convolution over 7 frames, layer norm, two linear layers with GELU, layer scale, residual. ``modulation``
    is ``[batch, 3, width]`` (shift, scale, gate) as in DiT (Peebles & Xie 2023, arXiv 2212.09748), or None.
    """

    modulations = 3

    def __init__(self, width: int, expand: int, layer_scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, expand * width)
        self.down = nn.Linear(expand * width, width)
        self.gamma = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        y = self.norm(self.depthwise(x.transpose(1, 2)).transpose(1, 2))
        gate: Tensor = self.gamma
        if modulation is not None:
            shift, scale, extra = modulation[:, :, None].unbind(1)
            y, gate = y * (1 + scale) + shift, self.gamma * (1 + extra)
        return x + gate * self.down(F.gelu(self.up(y)))


class DiTBlock(nn.Module):
    """Transformer block with adaLN (DiT), rotary positions (Su et al. 2021, arXiv 2104.09864).

    ``modulation`` is ``[batch, 6, width]``: shift, scale, gate of the attention, then of the feed-forward part. The
    attention sees ``reach`` frames to either side, so that the block is local as well.

    Raises:
        ValueError: a width that does not divide into heads of about 64 channels, an even number each.
    """

    modulations = 6
    reach = 128

    def __init__(self, width: int, expand: int, layer_scale: float) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        if width % (2 * self.heads):
            raise ValueError(f"width {width} of a dit block: must divide into {self.heads} heads of even width")
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, expand * width)
        self.down = nn.Linear(expand * width, width)
        self.gamma1 = nn.Parameter(torch.full((width,), layer_scale))
        self.gamma2 = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        if modulation is None:
            modulation = x.new_zeros(x.shape[0], 6, x.shape[2])
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, :, None].unbind(1)
        y = self._attention(self.norm1(x) * (1 + scale1) + shift1)
        x = x + self.gamma1 * (1 + gate1) * y
        y = self.down(F.gelu(self.up(self.norm2(x) * (1 + scale2) + shift2)))
        return x + self.gamma2 * (1 + gate2) * y

    def _attention(self, x: Tensor) -> Tensor:
        batch, frames, width = x.shape
        q, k, v = self.qkv(x).view(batch, frames, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        at = torch.arange(frames, device=x.device)
        near = (at[:, None] - at[None]).abs() <= self.reach
        y = F.scaled_dot_product_attention(rotate(q).to(v.dtype), rotate(k).to(v.dtype), v, attn_mask=near)
        return self.out(y.transpose(1, 2).reshape(batch, frames, width))


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding of ``[..., frames, channels]``, base 10,000."""
    frames, half = x.shape[-2], x.shape[-1] // 2
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, device=x.device) / half)
    angle = torch.arange(frames, device=x.device)[:, None] * frequency
    a, b = x[..., :half].float(), x[..., half : 2 * half].float()
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


BLOCKS: dict[str, type[ConvNeXtBlock] | type[DiTBlock]] = {"convnext": ConvNeXtBlock, "dit": DiTBlock}


def stack(count: int, width: int, expand: int, kind: str = "convnext") -> nn.ModuleList:
    """``count`` blocks; the layer scale starts at ``1 / count`` (Vocos), so that depth does not change the variance.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in BLOCKS:
        raise ValueError(f"block {kind!r}: expected {' or '.join(BLOCKS)}")
    return nn.ModuleList(BLOCKS[kind](width, expand, 1.0 / max(1, count)) for _ in range(count))


def reach(blocks: nn.ModuleList) -> int:
    """Frames to either side that a stack sees."""
    return sum(b.reach if isinstance(b, DiTBlock) else KERNEL // 2 for b in blocks)
