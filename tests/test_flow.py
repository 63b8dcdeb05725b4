"""Flow matching against closed forms (Gaussian flows), torchdiffeq and scipy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from tokenizer.codec import Sampler
from tokenizer.flow import (
    SOLVERS,
    TIMES,
    Counted,
    Solver,
    euler,
    guided,
    keep_condition,
    midpoint,
    path,
    sample_times,
    target,
    time_embedding,
)
from tokenizer.network import DecoderConfig, DecoderNetwork

Velocity = Callable[[Tensor, Tensor], Tensor]
METHODS: dict[str, Callable[[Velocity, Tensor, int], Tensor]] = {"euler": euler, "midpoint": midpoint}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# -- path and target --------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from([0.0, 1e-4, 0.1, 1.0]))
def test_path_is_the_optimal_transport_path(seed: int, t: float, sigma: float) -> None:
    x0, x1 = normal(seed, 2, 3, 4, 5)
    times = torch.tensor([t, 1 - t, 0.0], dtype=torch.float64)
    made = path(x0, x1, times, sigma)
    for i, at in enumerate(times.tolist()):
        assert torch.allclose(made[i], (1 - (1 - sigma) * at) * x0[i] + at * x1[i], rtol=0, atol=1e-12)


@given(st.integers(0, 10**6), st.floats(0, 0.9), st.sampled_from([0.0, 1e-4, 0.1]))
def test_target_is_the_derivative_of_the_path(seed: int, t: float, sigma: float) -> None:
    """The path is a straight line: any difference quotient is the velocity, whatever the time."""
    x0, x1 = normal(seed, 2, 4, 3)
    a, b = torch.full((4,), t, dtype=torch.float64), torch.full((4,), t + 0.1, dtype=torch.float64)
    slope = (path(x0, x1, b, sigma) - path(x0, x1, a, sigma)) / (b - a)[:, None]
    assert torch.allclose(slope, target(x0, x1, sigma), rtol=0, atol=1e-10)


def test_ends_of_the_path() -> None:
    """t = 0 is noise, t = 1 is data with ``sigma_min`` of the noise left."""
    x0, x1 = normal(0, 2, 4, 3)
    zero, one = torch.zeros(4), torch.ones(4)
    assert torch.equal(path(x0, x1, zero, 0.1), x0)
    assert torch.equal(path(x0, x1, one), x1)
    assert torch.allclose(path(x0, x1, one, 0.1), x1 + 0.1 * x0)
    assert torch.equal(target(x0, x1), x1 - x0)


def test_times_are_one_a_clip_in_any_number_of_dimensions() -> None:
    x1 = torch.ones(3, 2, 5, 7)
    made = path(torch.zeros_like(x1), x1, torch.tensor([0.0, 0.25, 1.0]))
    assert made.shape == x1.shape and made.dtype == x1.dtype
    assert [float(m.mean()) for m in made] == [0.0, 0.25, 1.0]


# -- Gaussian flows in closed form ------------------------------------------------------------------------------------


def gaussian(mu: float, std: float, sigma: float) -> tuple[Velocity, Callable[[Tensor], Tensor]]:
    """E[u | x_t = x] for data N(mu, std^2) and noise N(0, 1), and the exact map from t = 0 to t = 1.

    x_t and u are jointly Gaussian: x_t ~ N(t mu, a^2 + t^2 std^2) with a = 1 - (1 - sigma) t, and
    cov(u, x_t) = t std^2 - (1 - sigma) a. The flow keeps the quantile: (x - t mu) / deviation(t) is constant.
    """

    def variance(t: Tensor) -> Tensor:
        return (1 - (1 - sigma) * t) ** 2 + t**2 * std**2

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t.view(-1, *[1] * (x.ndim - 1))
        covariance = t * std**2 - (1 - sigma) * (1 - (1 - sigma) * t)
        return mu + covariance / variance(t) * (x - t * mu)

    def exact(x: Tensor) -> Tensor:
        return mu + math.sqrt(sigma**2 + std**2) * x

    return velocity, exact


@pytest.mark.parametrize("sigma", [0.0, 0.2])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.8])
def test_regression_of_the_target_finds_the_marginal_velocity(t: float, sigma: float) -> None:
    """What training does: the least-squares line of u over x_t has the slope and intercept of the closed form."""
    mu, std, n = 1.5, 0.4, 200_000
    x0, x1 = normal(1, n, 1), mu + std * normal(2, n, 1)
    x, u = path(x0, x1, torch.full((n,), t, dtype=torch.float64), sigma), target(x0, x1, sigma)
    slope, intercept = np.polyfit(x[:, 0].numpy(), u[:, 0].numpy(), 1)
    velocity, _ = gaussian(mu, std, sigma)
    at = torch.full((2,), t, dtype=torch.float64)
    low, high = velocity(torch.tensor([[0.0], [1.0]], dtype=torch.float64), at)[:, 0].tolist()
    assert slope == pytest.approx(high - low, abs=0.02) and intercept == pytest.approx(low, abs=0.02)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("mu", "std", "sigma"), [(0.7, 0.5, 0.0), (-2.0, 1.7, 1e-4), (0.0, 0.2, 0.1)])
def test_solvers_carry_noise_to_the_data_distribution(name: str, mu: float, std: float, sigma: float) -> None:
    velocity, exact = gaussian(mu, std, sigma)
    x0 = normal(3, 64, 3)
    made = Solver(name, 2000)(velocity, x0)
    assert float((made - exact(x0)).abs().max()) < (2e-2 if name == "euler" else 2e-5)


def orders(name: str, velocity: Velocity, x0: Tensor, exact: Tensor) -> list[float]:
    """log2 of how much smaller the error becomes whenever the step is halved."""
    errors = [float((METHODS[name](velocity, x0, n) - exact).abs().max()) for n in (32, 64, 128, 256)]
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2)])
def test_order_of_convergence(name: str, order: int) -> None:
    """Half the step, half the error (Euler) or a quarter (midpoint): dx/dt = -2 t x^2 is x = 1 / (1 / x0 + t^2)."""
    x0 = 0.5 + normal(4, 64, 3).abs()
    found = orders(name, lambda x, t: -2 * t[:, None] * x**2, x0, 1 / (1 / x0 + 1))
    assert found == pytest.approx([order] * 3, abs=0.1)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 3)])
@pytest.mark.parametrize("std", [0.3, 1.7])
def test_order_of_convergence_on_gaussian_flows(name: str, order: int, std: float) -> None:
    """Midpoint is of third order there: with l = q' / (2 q) and q the variance, quadratic in t, the term in h^2 of its
    error, the integral of l'' / 24 + l l' / 4 + l^3 / 6, is zero."""
    velocity, exact = gaussian(0.7, std, 1e-4)
    x0 = normal(4, 64, 3)
    assert orders(name, velocity, x0, exact(x0)) == pytest.approx([order] * 3, abs=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_constant_velocity_is_exact_in_one_step(name: str) -> None:
    """One condition, one target: the flow is straight and any solver ends on it."""
    x0 = normal(5, 4, 3)
    assert torch.allclose(Solver(name, 2)(lambda x, t: torch.full_like(x, 3.0), x0), x0 + 3, rtol=0, atol=1e-12)


def test_midpoint_integrates_a_linear_rate_exactly_and_euler_from_the_left() -> None:
    """dx/dt = t gives 1/2; Euler's left Riemann sum with n steps gives (n - 1) / (2 n)."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return t[:, None].expand_as(x)

    zero = torch.zeros(2, 1, dtype=torch.float64)
    for n in (1, 2, 5):
        assert float(midpoint(velocity, zero, n)[0]) == pytest.approx(0.5, abs=1e-12)
        assert float(euler(velocity, zero, n)[0]) == pytest.approx((n - 1) / (2 * n), abs=1e-12)


# -- against torchdiffeq ----------------------------------------------------------------------------------------------


def nonlinear() -> Velocity:
    """A small random network of x and t, in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    net.requires_grad_(False)
    for layer in (net[0], net[2]):
        layer.weight.mul_(2)
    return lambda x, t: net(torch.cat([x, t[:, None]], dim=1))


def odeint(velocity: Velocity, x0: Tensor, times: Tensor, method: str) -> Tensor:
    torchdiffeq = pytest.importorskip("torchdiffeq", reason="torchdiffeq (a second implementation) is not installed")
    return torchdiffeq.odeint(
        lambda t, x: velocity(x, t.expand(len(x))), x0, times.double(), method=method, rtol=1e-10, atol=1e-12
    )[-1]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_fixed_steps_equal_torchdiffeq(name: str, steps: int) -> None:
    velocity, x0 = nonlinear(), normal(6, 16, 3)
    theirs = odeint(velocity, x0, torch.linspace(0, 1, steps + 1, dtype=torch.float64), name)
    assert torch.allclose(METHODS[name](velocity, x0, steps), theirs, rtol=0, atol=1e-6)


def test_solvers_converge_to_dormand_prince() -> None:
    velocity, x0 = nonlinear(), normal(7, 16, 3)
    exact = odeint(velocity, x0, torch.tensor([0.0, 1.0]), "dopri5")
    assert float((exact - x0).abs().max()) > 0.1  # not a flow that stands still
    assert float((midpoint(velocity, x0, 512) - exact).abs().max()) < 1e-5
    assert float((euler(velocity, x0, 2048) - exact).abs().max()) < 5e-3
    equal_cost = [float((Solver(name, 32)(velocity, x0) - exact).abs().max()) for name in SOLVERS]
    assert equal_cost[1] < equal_cost[0]


# -- evaluations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "evaluations"), [("euler", 1), ("euler", 7), ("midpoint", 2), ("midpoint", 8)])
def test_evaluations_are_what_is_asked_for(name: str, evaluations: int) -> None:
    counted = Counted(lambda x, t: -x)
    Solver(name, evaluations)(counted, normal(8, 5, 3))
    assert counted.evaluations == evaluations


def test_times_of_the_evaluations() -> None:
    """Euler looks at the left of each step, midpoint at the left and at the middle; one time a clip, never t = 1."""
    seen: dict[str, list[float]] = {}
    for name in SOLVERS:
        times: list[Tensor] = []
        Solver(name, 4)(lambda x, t, times=times: (times.append(t), x)[1], torch.zeros(3, 2))  # type: ignore[misc]
        assert all(t.shape == (3,) and len(set(t.tolist())) == 1 for t in times)
        seen[name] = [float(t[0]) for t in times]
    assert seen == {"euler": [0, 0.25, 0.5, 0.75], "midpoint": [0, 0.25, 0.5, 0.75]}


@pytest.mark.parametrize(
    ("name", "evaluations", "message"),
    [("heun", 8, "euler or midpoint"), ("midpoint", 7, "even"), ("midpoint", 0, "even"), ("euler", 0, "at least 1")],
)
def test_solvers_that_cannot_be(name: str, evaluations: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Solver(name, evaluations)


def small_network() -> DecoderNetwork:
    torch.manual_seed(0)
    network = DecoderNetwork(DecoderConfig(width=16, blocks=1, expand=2), latent=3, condition=4).eval()
    network.requires_grad_(False)
    for p in (network.leave.weight, network.empty):
        p.normal_(generator=generator(1))
    return network


@pytest.mark.parametrize(("weight", "times"), [(1.0, 1), (0.0, 1), (2.0, 2), (1.5, 2), (-1.0, 2)])
@pytest.mark.parametrize("name", SOLVERS)
def test_guidance_doubles_the_evaluations(name: str, weight: float, times: int) -> None:
    sample = Sampler(small_network(), Solver(name, 6), weight)
    assert sample.counted(torch.ones(2, 5, 4), torch.zeros(2, 5, 3))[1] == 6 * times


def test_the_mean_takes_one_evaluation_and_no_noise() -> None:
    network, condition = small_network(), normal(9, 2, 5, 4).float()
    sample = Sampler(network, None, 1.0)
    made, evaluations = sample.counted(condition, torch.full((2, 5, 3), 9.0))
    assert evaluations == 1 and torch.equal(made, network.mean(condition))


def test_sampler_equals_euler_by_hand() -> None:
    """Guidance of weight 2 on a network: two steps written out, with the empty condition in place of the given one."""
    network, condition, x0 = small_network(), normal(10, 2, 5, 4).float(), normal(11, 2, 5, 3).float()
    x = x0
    for t in (0.0, 0.5):
        time = torch.full((2,), t)
        given, free = network(x, time, condition), network(x, time, network.empty.expand(2, 5, 4))
        x = x + 0.5 * (2 * given - free)
    made = Sampler(network, Solver("euler", 2), 2.0)(condition, x0)
    assert torch.allclose(made, x, atol=1e-5)


# -- guidance ---------------------------------------------------------------------------------------------------------


@given(st.floats(-3, 5, allow_nan=False), st.integers(0, 10**6))
def test_guidance_is_linear_extrapolation(weight: float, seed: int) -> None:
    a, b, x = normal(seed, 3, 2, 4)
    made = guided(lambda x, t: a + x, lambda x, t: b - x, weight)(x, torch.zeros(2))
    assert torch.allclose(made, (1 - weight) * (b - x) + weight * (a + x), rtol=0, atol=1e-9)


def test_guidance_weights_0_1_2() -> None:
    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return x + 1

    def free(x: Tensor, t: Tensor) -> Tensor:
        return 3 * x

    x, t = normal(12, 2, 4), torch.zeros(2)
    assert guided(conditional, free, 1.0) is conditional and guided(conditional, free, 0.0) is free
    assert torch.allclose(guided(conditional, free, 2.0)(x, t), 2 * (x + 1) - 3 * x)


@given(st.floats(-3, 5, allow_nan=False))
def test_guidance_of_a_condition_that_does_nothing_does_nothing(weight: float) -> None:
    x = normal(13, 2, 4)
    assert torch.allclose(guided(lambda x, t: 2 * x, lambda x, t: 2 * x, weight)(x, torch.zeros(2)), 2 * x)


# -- what is drawn in training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uniform", "stratified"])
def test_times_of_each_clip_are_uniform(kind: str) -> None:
    g = generator(0)
    first = torch.stack([sample_times(8, g, kind)[[0, 5]] for _ in range(2000)])
    assert first.min() >= 0 and first.max() <= 1
    for column in first.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3
    assert float(first.mean()) == pytest.approx(0.5, abs=0.02)


def test_stratified_times_have_one_in_each_interval() -> None:
    g, batch = generator(1), 32
    drawn = torch.stack([sample_times(batch, g, "stratified") for _ in range(200)]).double()
    assert torch.equal((drawn * batch).floor().long().sort(dim=1).values, torch.arange(batch).expand(200, -1))
    # the mean of a batch has the variance 1 / (12 batch^3), against 1 / (12 batch) of independent times
    assert float(drawn.mean(1).var()) * 12 * batch**3 == pytest.approx(1, abs=0.35)
    independent = torch.stack([sample_times(batch, g, "uniform") for _ in range(2000)]).mean(1)
    assert float(independent.var()) * 12 * batch == pytest.approx(1, abs=0.15)


def test_stratified_is_the_default_and_in_random_order() -> None:
    assert torch.equal(sample_times(16, generator(2)), sample_times(16, generator(2), "stratified"))
    ranks = torch.stack([sample_times(16, generator(s)).argsort() for s in range(50)])
    assert len(ranks[:, 0].unique()) > 10


def test_logit_normal_quantiles() -> None:
    drawn = sample_times(20_000, generator(3), "logit-normal").double().numpy()
    assert drawn.min() > 0 and drawn.max() < 1
    assert stats.kstest(drawn, lambda t: stats.norm.cdf(np.log(t / (1 - t)))).pvalue > 1e-3
    for q in (0.05, 0.25, 0.5, 0.9):
        assert np.quantile(drawn, q) == pytest.approx(1 / (1 + math.exp(-stats.norm.ppf(q))), abs=0.01)


def test_unknown_times() -> None:
    with pytest.raises(ValueError, match="uniform, stratified, logit-normal"):
        sample_times(4, kind="cosine")


@given(st.integers(1, 64), st.sampled_from(TIMES), st.integers(0, 10**6))
def test_what_is_drawn_is_by_the_generator_alone(batch: int, kind: str, seed: int) -> None:
    before = torch.get_rng_state()
    times = [sample_times(batch, generator(seed), kind) for _ in range(2)]
    kept = [keep_condition(batch, 0.4, generator(seed)) for _ in range(2)]
    assert torch.equal(*times) and torch.equal(*kept) and times[0].shape == kept[0].shape == (batch,)
    assert torch.equal(before, torch.get_rng_state())


def test_conditions_are_dropped_clip_by_clip() -> None:
    """Numbers dropped a batch are binomial: one draw a batch would have the variance batch^2 p (1 - p)."""
    g, batch, p = generator(4), 32, 0.1
    kept = torch.stack([keep_condition(batch, p, g) for _ in range(5000)])
    assert kept.dtype == torch.bool
    dropped = (~kept).double()
    assert float(dropped.mean()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / dropped.numel()))
    assert float(dropped.sum(1).var()) == pytest.approx(batch * p * (1 - p), rel=0.1)
    assert stats.kstest(dropped.mean(0).numpy(), stats.norm(p, math.sqrt(p * (1 - p) / 5000)).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, True), (1.0, False)])
def test_dropout_of_none_and_all(dropout: float, kept: bool) -> None:
    assert (keep_condition(1000, dropout, generator(5)) == kept).all()


# -- the mean ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 1e-4, 0.3])
def test_best_prediction_at_zero_noise_and_time_is_the_conditional_mean(sigma: float) -> None:
    """Least squares on a discrete condition: at t = 0, u falls by (1 - sigma) of the noise and is E[x1 | c] at 0."""
    rng = np.random.default_rng(0)
    n, means = 60_000, np.array([-2.0, 0.5, 3.0])
    c = rng.integers(3, size=n)
    x1 = torch.from_numpy(means[c] + rng.choice([-1.0, 1.0], size=n))[:, None]  # two modes, so never equal to its mean
    zero, x0 = torch.zeros(n, dtype=torch.float64), normal(14, n, 1)
    one_hot = np.eye(3)[c]

    assert torch.equal(path(0 * x0, x1, zero, sigma), 0 * x0) and torch.equal(target(0 * x0, x1, sigma), x1)
    at_zero = np.linalg.lstsq(one_hot, target(0 * x0, x1, sigma).numpy(), rcond=None)[0][:, 0]
    assert at_zero == pytest.approx([float(x1[c == k].mean()) for k in range(3)], abs=1e-9)

    inputs = np.hstack([one_hot, path(x0, x1, zero, sigma).numpy()])
    found = np.linalg.lstsq(inputs, target(x0, x1, sigma).numpy(), rcond=None)[0][:, 0]
    assert found == pytest.approx([*means, -(1 - sigma)], abs=0.03)


# -- embedding of the time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 16, 192])
def test_time_embedding(width: int) -> None:
    t = torch.tensor([0.0, 0.1, 0.5, 1.0])
    made = time_embedding(t, width)
    assert made.shape == (4, width) and made.dtype == torch.float32
    half = width // 2
    for i in range(half):
        angle = 1000 * t.double() * 10_000 ** (-i / half)
        assert torch.allclose(made[:, i].double(), angle.cos(), atol=1e-3)
        assert torch.allclose(made[:, half + i].double(), angle.sin(), atol=1e-3)
    assert torch.allclose((made**2).sum(1), torch.full((4,), half * 1.0), rtol=1e-4)


def test_time_embedding_tells_near_times_apart() -> None:
    made = time_embedding(torch.linspace(0, 1, 1001), 64)
    assert float((made[1:] - made[:-1]).norm(dim=1).min()) > 0.5


def test_time_embedding_of_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        time_embedding(torch.zeros(1), 7)
