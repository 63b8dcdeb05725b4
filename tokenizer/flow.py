"""Conditional flow matching, apart from any network: path, target, times, condition dropout, guidance and samplers.

Direction: t = 0 is noise, t = 1 is data. The path is the optimal-transport one of Lipman et al. (2023, arXiv
2210.02747, eq. 22-23), as in Matcha-TTS::

    x_t = (1 - (1 - s) t) x_0 + t x_1        u = x_1 - (1 - s) x_0        x_0 ~ N(0, 1)

with s = ``sigma_min``. At x_0 = 0 and t = 0 the best prediction of u is E[x_1 | condition]: a network called there is
the deterministic twin, and a flow-matching network called there gives its own mean.

A velocity is any function ``velocity(x, t) -> tensor like x`` with ``t`` of shape ``[batch]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]

TIMES = ("uniform", "stratified", "logit-normal")
SOLVERS = ("euler", "midpoint")


def path(x0: Tensor, x1: Tensor, t: Tensor, sigma_min: float = 0.0) -> Tensor:
    """The point x_t between noise ``x0`` and data ``x1`` (``[batch, ...]``) at times ``t`` (``[batch]``, 0 to 1)."""
    t = _like(t, x1)
    return (1 - (1 - sigma_min) * t) * x0 + t * x1


def target(x0: Tensor, x1: Tensor, sigma_min: float = 0.0) -> Tensor:
    """The velocity u of the path: what the network learns to predict."""
    return x1 - (1 - sigma_min) * x0


def sample_times(batch: int, generator: torch.Generator | None = None, kind: str = "stratified") -> Tensor:
    """Training times ``[batch]`` between 0 and 1.

    ``uniform``: independent. ``stratified``: one in each of ``batch`` equal intervals, in random order: the same
    distribution for each clip with less variance in the loss. ``logit-normal``: sigmoid of a standard normal (Esser et
    al. 2024, arXiv 2403.03206).

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "uniform":
        return torch.rand(batch, generator=generator)
    if kind == "stratified":
        order = torch.randperm(batch, generator=generator)
        return (order + torch.rand(batch, generator=generator)) / batch
    if kind == "logit-normal":
        return torch.sigmoid(torch.randn(batch, generator=generator))
    raise ValueError(f"times {kind!r}: expected {', '.join(TIMES)}")


def keep_condition(batch: int, dropout: float, generator: torch.Generator | None = None) -> Tensor:
    """Which clips of a batch keep their condition, bool ``[batch]``: each is dropped on its own with ``dropout``."""
    return torch.rand(batch, generator=generator) >= dropout


def guided(conditional: Velocity, unconditional: Velocity, weight: float) -> Velocity:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): ``v_0 + weight (v_c - v_0)``.

    Weight 1 is the conditional velocity itself and costs one evaluation; any other weight costs two.
    """
    if weight == 1:
        return conditional
    if weight == 0:
        return unconditional

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        free = unconditional(x, t)
        return free + weight * (conditional(x, t) - free)

    return velocity


class Counted:
    """A network's velocity that counts how often it is evaluated (on a whole batch)."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity = velocity
        self.evaluations = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.evaluations += 1
        return self.velocity(x, t)


@dataclass(frozen=True)
class Solver:
    """How the ordinary differential equation is solved from t = 0 to t = 1.

    Attributes:
        name: ``euler`` (one evaluation a step) or ``midpoint`` (two).
        evaluations: of the velocity, so that solvers compare at equal cost: ``midpoint`` takes half as many steps.

    Raises:
        ValueError: an unknown solver, or a number of evaluations that it cannot make.
    """

    name: str = "midpoint"
    evaluations: int = 8

    def __post_init__(self) -> None:
        if self.name not in SOLVERS:
            raise ValueError(f"solver {self.name!r}: expected {' or '.join(SOLVERS)}")
        if self.evaluations < 1 or (self.name == "midpoint" and self.evaluations % 2):
            kind = "an even number" if self.name == "midpoint" else "at least 1"
            raise ValueError(f"{self.name} takes {kind} of evaluations, not {self.evaluations}")

    def __call__(self, velocity: Velocity, x0: Tensor) -> Tensor:
        """Carry ``x0`` (``[batch, ...]``, noise) to t = 1."""
        if self.name == "euler":
            return euler(velocity, x0, self.evaluations)
        return midpoint(velocity, x0, self.evaluations // 2)


def euler(velocity: Velocity, x0: Tensor, steps: int) -> Tensor:
    """Euler's method with ``steps`` equal steps from t = 0 to 1: first order, one evaluation a step."""
    x, h = x0, 1 / steps
    for i in range(steps):
        x = x + h * velocity(x, _times(x, i * h))
    return x


def midpoint(velocity: Velocity, x0: Tensor, steps: int) -> Tensor:
    """The explicit midpoint method with ``steps`` equal steps: second order, two evaluations a step."""
    x, h = x0, 1 / steps
    for i in range(steps):
        half = x + 0.5 * h * velocity(x, _times(x, i * h))
        x = x + h * velocity(half, _times(x, (i + 0.5) * h))
    return x


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of times ``[batch]`` in 0..1 as ``[batch, width]``, of 1000 to about 0.1 radians a unit (as in DiT).

    Raises:
        ValueError: an odd width.
    """
    if width % 2:
        raise ValueError(f"width {width} of a time embedding: must be even")
    half = width // 2
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, device=t.device) / half)
    angle = 1000.0 * t[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _times(x: Tensor, t: float) -> Tensor:
    return x.new_full((x.shape[0],), t)


def _like(t: Tensor, x: Tensor) -> Tensor:
    return t.to(x).view(-1, *[1] * (x.ndim - 1))
