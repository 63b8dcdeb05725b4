"""The decoders' network: one class for both objectives, local, and able to sample where its twin averages."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tokenizer.blocks import BLOCKS, ConvNeXtBlock, DiTBlock, reach, rotate, stack
from tokenizer.flow import Solver, path, sample_times, target
from tokenizer.network import DecoderConfig, DecoderNetwork, mse

KINDS = tuple(BLOCKS)


def network(kind: str = "convnext", seed: int = 0, **options: object) -> DecoderNetwork:
    """A small one with an output layer that is not zero, so that its output shows what goes in."""
    torch.manual_seed(seed)
    config = dataclasses.replace(DecoderConfig(block=kind, width=16, blocks=2, expand=2), **options)  # type: ignore[arg-type]
    made = DecoderNetwork(config, latent=3, condition=5).eval()
    with torch.no_grad():
        made.leave.weight.normal_()
        made.leave.bias.normal_()
        made.empty.normal_()
    return made


def inputs(frames: int = 12, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, condition = torch.randn(batch, frames, 3, generator=g), torch.randn(batch, frames, 5, generator=g)
    return x, torch.rand(batch, generator=g), condition


# -- twins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_twins_are_one_class_with_the_same_parameters(kind: str) -> None:
    """Names, shapes, numbers and, from one seed, values are equal: only the objective differs."""
    made = []
    for objective in ("fm", "mse", "prior"):
        torch.manual_seed(0)
        made.append(DecoderNetwork(DecoderConfig(block=kind, width=64, blocks=2, objective=objective), 32, 16))
    states = [m.state_dict() for m in made]
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(torch.equal(state[k], states[0][k]) for k in state)
    assert len({sum(p.numel() for p in m.parameters()) for m in made}) == 1
    assert len({type(m) for m in made}) == 1


def test_the_output_starts_at_zero() -> None:
    fresh = DecoderNetwork(DecoderConfig(width=16, blocks=2), latent=3, condition=5)
    x, t, condition = inputs()
    assert not fresh(x, t, condition).any() and not fresh.mean(condition).any()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_mean_is_the_network_at_zero_noise_and_time(kind: str) -> None:
    net, (x, t, condition) = network(kind), inputs()
    zero = net(torch.zeros_like(x), torch.zeros_like(t), condition)
    assert torch.equal(net.mean(condition), zero)
    assert net.mean(condition).shape == x.shape and net.mean(condition).dtype == torch.float32
    assert not torch.allclose(net(x, torch.zeros_like(t), condition), zero)
    assert not torch.allclose(net(torch.zeros_like(x), torch.ones_like(t), condition), zero)


def test_mse_is_a_mean_over_everything() -> None:
    a, b = inputs()[0], inputs(seed=1)[0]
    assert float(mse(a, b)) == pytest.approx(float(((a - b) ** 2).sum() / a.numel()))
    assert mse(a.bfloat16(), b.bfloat16()).dtype == torch.float32


# -- condition --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_dropped_condition_is_not_seen(kind: str) -> None:
    net, (x, t, condition) = network(kind), inputs()
    keep = torch.tensor([True, False])
    made, other = net(x, t, condition, keep), net(x, t, condition + 3, keep)
    assert not torch.allclose(made[0], other[0]) and torch.equal(made[1], other[1])
    assert torch.equal(made[0], net(x, t, condition)[0])
    assert torch.allclose(made, net(x, t, torch.stack([condition[0], net.empty.expand(12, 5)])), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_input_changes_the_output(kind: str) -> None:
    net, (x, t, condition) = network(kind), inputs()
    made = net(x, t, condition)
    for other in (net(x + 1, t, condition), net(x, 1 - t, condition), net(x, t, -condition)):
        assert not torch.allclose(made, other, atol=1e-3)


# -- locality and batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_frames_beyond_the_context_do_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame changed: exactly the frames within `context` of it change, at both of its edges."""
    monkeypatch.setattr(DiTBlock, "reach", 2)
    net, (x, t, condition) = network(kind), inputs(frames=41, batch=1)
    assert net.context == {"convnext": 6, "dit": 4}[kind]
    for moved in ("x", "condition"):
        a, b = x.clone(), condition.clone()
        (a if moved == "x" else b)[0, 20] += 10
        changed = (net(a, t, b) - net(x, t, condition)).abs().amax(dim=2)[0]
        inside = (torch.arange(41) - 20).abs() <= net.context
        assert float(changed[~inside].max()) < 1e-5
        assert float(changed[20 - net.context]) > 1e-4 and float(changed[20 + net.context]) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_piece_with_its_context_equals_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long files are worked on in pieces: attention by relative positions, no normalisation over time."""
    monkeypatch.setattr(DiTBlock, "reach", 2)
    net, (x, t, condition) = network(kind), inputs(frames=60)
    whole, (a, b) = net(x, t, condition), (20 - net.context, 30 + net.context)
    piece = net(x[:, a:b], t, condition[:, a:b])[:, net.context : -net.context]
    assert torch.allclose(piece, whole[:, 20:30], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_batch_equals_its_clips(kind: str) -> None:
    net, (x, t, condition) = network(kind), inputs(batch=4)
    keep = torch.tensor([True, False, True, True])
    made = net(x, t, condition, keep)
    for i in range(4):
        alone = net(x[i : i + 1], t[i : i + 1], condition[i : i + 1], keep[i : i + 1])
        assert torch.allclose(made[i], alone[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 2, 300])
def test_any_number_of_frames(kind: str, frames: int) -> None:
    x, t, condition = inputs(frames)
    made = network(kind)(x, t, condition)
    assert made.shape == x.shape and bool(torch.isfinite(made).all())


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_all_parameters_learn_after_the_first_step(kind: str) -> None:
    """The output layer starts at zero, so only it has a gradient at the very first step; then everything has."""
    torch.manual_seed(0)
    net = DecoderNetwork(DecoderConfig(block=kind, width=16, blocks=2, expand=2), latent=3, condition=5)
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    (x, t, condition), keep = inputs(), torch.tensor([True, False])
    for step in range(2):
        optimiser.zero_grad()
        mse(net(x, t, condition, keep), torch.ones_like(x)).backward()
        moved = {n for n, p in net.named_parameters() if p.grad is not None and bool(p.grad.any())}
        assert moved == ({"leave.weight", "leave.bias"} if step == 0 else {n for n, _ in net.named_parameters()})
        optimiser.step()
    every = [*net.modulation.weight.grad.chunk(BLOCKS[kind].modulations), *net.final.weight.grad.chunk(2)]  # type: ignore[union-attr]
    assert all(bool(part.any()) for part in every)  # each shift, scale and gate on its own


@pytest.mark.parametrize("kind", KINDS)
def test_the_twin_gives_every_parameter_a_gradient(kind: str) -> None:
    """Of zero where it has no part (the empty condition): on several devices none may be missing."""
    net = network(kind)
    mse(net.mean(inputs()[2]), inputs()[0]).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not net.empty.grad.any() and not net.enter.weight.grad[:, :3].any()  # type: ignore[union-attr,index]
    assert net.enter.weight.grad[:, 3:].any()  # type: ignore[index]


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_modulation_of_zero_is_none(kind: str) -> None:
    torch.manual_seed(0)
    block, x = BLOCKS[kind](16, 2, 0.5), torch.randn(2, 9, 16)
    assert torch.allclose(block(x, torch.zeros(2, BLOCKS[kind].modulations, 16)), block(x), atol=1e-6)


@torch.no_grad()
def test_a_gate_of_minus_one_shuts_the_block() -> None:
    x = torch.randn(2, 9, 16)
    shut = torch.zeros(2, 3, 16)
    shut[:, 2] = -1
    assert torch.equal(ConvNeXtBlock(16, 2, 0.5)(x, shut), x)
    shut = torch.zeros(2, 6, 16)
    shut[:, [2, 5]] = -1
    assert torch.equal(DiTBlock(16, 2, 0.5)(x, shut), x)


@torch.no_grad()
def test_convnext_by_hand() -> None:
    """Loops over frames and channels, with adaLN."""
    torch.manual_seed(0)
    block, x, m = ConvNeXtBlock(4, 2, 0.3), torch.randn(1, 9, 4), torch.randn(1, 3, 4)
    kernel, bias = block.depthwise.weight[:, 0], block.depthwise.bias
    padded = torch.cat([torch.zeros(3, 4), x[0], torch.zeros(3, 4)])
    for i in range(9):
        y = torch.stack([(padded[i : i + 7, c] * kernel[c]).sum() + bias[c] for c in range(4)])  # type: ignore[index]
        y = (y - y.mean()) / (y.var(unbiased=False) + 1e-6).sqrt() * block.norm.weight + block.norm.bias
        y = y * (1 + m[0, 1]) + m[0, 0]
        hidden = block.up.weight @ y + block.up.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        y = x[0, i] + block.gamma * (1 + m[0, 2]) * (block.down.weight @ hidden + block.down.bias)
        assert torch.allclose(block(x, m)[0, i], y, atol=1e-5)


@torch.no_grad()
def test_attention_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heads, loops over frames and over the frames that each sees."""
    monkeypatch.setattr(DiTBlock, "reach", 2)
    torch.manual_seed(0)
    block, x = DiTBlock(128, 2, 0.5), torch.randn(1, 7, 128)
    assert block.heads == 2
    q, k, v = (x[0] @ block.qkv.weight.T + block.qkv.bias).split(128, dim=1)
    made = torch.zeros(7, 128)
    for head in (slice(0, 64), slice(64, 128)):
        rq, rk = rotate(q[:, head]), rotate(k[:, head])
        for i in range(7):
            seen = slice(max(0, i - 2), i + 3)
            made[i, head] = (rk[seen] @ rq[i] / 8).softmax(0) @ v[seen, head]
    assert torch.allclose(block._attention(x)[0], made @ block.out.weight.T + block.out.bias, atol=1e-5)


@torch.no_grad()
def test_rotary_positions_are_relative_and_keep_length() -> None:
    q, k = torch.randn(2, 1, 1, 8).double()
    rows = rotate(q.expand(1, 40, 8)), rotate(k.expand(1, 40, 8))
    assert torch.allclose(rows[0].norm(dim=-1), q.norm().float().expand(1, 40))
    product = (rows[0] @ rows[1].transpose(1, 2))[0]
    for lag in (-7, 0, 7):
        along = product.diagonal(lag)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-4)
    assert not torch.allclose(product[0, 0], product[0, 7], atol=1e-3)


def test_stacks() -> None:
    blocks = stack(4, 16, 2)
    assert reach(blocks) == 12 and reach(stack(2, 16, 2, "dit")) == 256 and reach(stack(0, 16, 2)) == 0
    assert all(torch.equal(b.gamma, torch.full((16,), 0.25)) for b in blocks)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="convnext or dit"):
        stack(1, 16, 2, "lstm")
    with pytest.raises(ValueError, match="3 heads"):
        stack(1, 200, 2, "dit")
    with pytest.raises(ValueError, match="convnext or dit"):
        DecoderNetwork(DecoderConfig(block="lstm"), 3, 5)


# -- what it is for ---------------------------------------------------------------------------------------------------


def trained(objective: str, steps: int = 500) -> DecoderNetwork:
    """A tiny decoder of clips that are +1 or -1 throughout, both under the same code."""
    torch.manual_seed(0)
    config = DecoderConfig(width=32, blocks=1, expand=2, objective=objective)
    net = DecoderNetwork(config, latent=1, condition=2)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    g, condition = torch.Generator().manual_seed(0), torch.ones(128, 2, 2)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        x1 = (torch.randint(2, (128, 1, 1), generator=g) * 2.0 - 1).expand(128, 2, 1)
        if objective == "mse":
            loss = mse(net.mean(condition), x1)
        else:
            x0, t = torch.randn(x1.shape, generator=g), sample_times(128, g)
            loss = mse(net(path(x0, x1, t, config.sigma_min), t, condition), target(x0, x1, config.sigma_min))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


@torch.no_grad()
def test_flow_matching_samples_where_the_twin_averages() -> None:
    """Two modes under one code: the twin gives their mean, which is neither; the flow gives one or the other."""
    with torch.enable_grad():
        flow, twin = trained("fm"), trained("mse")
    condition = torch.ones(2000, 2, 2)
    x0 = torch.randn(2000, 2, 1, generator=torch.Generator().manual_seed(1))
    samples = Solver("midpoint", 32)(lambda x, t: flow(x, t, condition), x0)
    average = twin.mean(condition[:1])
    assert float(average.abs().max()) < 0.15  # the twin: over-averaged
    assert float(samples.var()) == pytest.approx(1, abs=0.2)
    assert float(((samples.abs() - 1).abs() < 0.35).float().mean()) > 0.85  # on a mode
    assert float((samples[:, 0] * samples[:, 1] > 0).float().mean()) > 0.9  # both frames on the same one
    assert torch.allclose(samples.mean(0), average[0], atol=0.15)  # the mean of many samples is the twin's output
    assert torch.allclose(flow.mean(condition[:1]), average, atol=0.2)  # and so is the flow's own mean
