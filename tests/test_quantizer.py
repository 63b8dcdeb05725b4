"""Quantizers against brute force, scipy and one step by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from torch import Tensor

from tokenizer.codec import TokenizerConfig
from tokenizer.quantizer import KINDS, Quantizer, QuantizerConfig, usage

LATENT = 6


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(kind: str, seed: int = 0, initialise: bool = True, **options: Any) -> Quantizer:
    """A small one, its codebooks started on 2,000 latents of three sizes a channel."""
    torch.manual_seed(seed)
    sizes = {"size": 32, "levels": 3, "dim": 4, "width": 16, "blocks": 1, "expand": 2, "kmeans_iterations": 20}
    made = Quantizer(QuantizerConfig(kind=kind, **sizes | options), LATENT)
    if initialise:
        made.initialise(latents()[0])
    return made.eval()


def latents(batch: int = 1, frames: int = 2000, seed: int = 1) -> Tensor:
    return noise(seed, batch, frames, LATENT) * torch.tensor([2.0, 2.0, 1.0, 1.0, 0.5, 0.5])


def core(kind: str, codebook: Tensor, **options: Any) -> Any:
    """The bare codebook of a quantizer with these codes ``[K, dim]``, each with an average use of 1."""
    made = quantizer(kind, initialise=False, size=len(codebook), dim=codebook.shape[1], **options).core
    book = made.library._codebook
    book.embed.copy_(codebook[None])
    book.embed_avg.copy_(codebook[None])
    book.cluster_size.fill_(1)
    book.initted.fill_(True)
    return made


# -- sizes and bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sizes", "bits"),
    [
        ({}, (1024,), 10),
        ({"kind": "kmeans", "size": 512}, (512,), 9),
        ({"kind": "variational"}, (1024,), 10),
        ({"kind": "vq", "levels": 4}, (1024,), 10),
        ({"kind": "rvq", "levels": 3, "size": 256}, (256, 256, 256), 24),
        ({"kind": "fsq"}, (1000,), math.log2(1000)),
        ({"kind": "fsq", "fsq": (4, 4, 4, 4, 4)}, (1024,), 10),
    ],
)
def test_sizes_and_bits(options: dict[str, Any], sizes: tuple[int, ...], bits: float) -> None:
    config = QuantizerConfig(**options)
    assert config.sizes == sizes and config.bits == pytest.approx(bits, abs=1e-12)
    assert TokenizerConfig(quantizer=config).bitrate == pytest.approx(23.4375 * bits)


def test_the_default_bitrate() -> None:
    assert TokenizerConfig().bitrate == 234.375
    assert TokenizerConfig(quantizer=QuantizerConfig(kind="fsq")).bitrate == pytest.approx(233.573, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lfq"}, "vq, rvq, fsq, kmeans, variational"),
        ({"size": 1}, "at least 2"),
        ({"kind": "rvq", "levels": 0}, "at least 2"),
        ({"kind": "fsq", "fsq": ()}, "at least 2"),
        ({"kind": "fsq", "fsq": (8, 2)}, "at least 3"),
    ],
)
def test_configurations_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantizer(QuantizerConfig(**options), LATENT)


# -- what all kinds have in common ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_codes_and_vectors(kind: str) -> None:
    made, x = quantizer(kind), latents(3, 50, seed=2)
    before = torch.get_rng_state()
    codes = made.encode(x)
    out = made(x)
    assert torch.equal(before, torch.get_rng_state())  # nothing random
    sizes = made.config.sizes
    assert codes.shape == (3, 50, len(sizes)) and codes.dtype == torch.int64
    assert int(codes.min()) >= 0 and all(int(codes[..., i].max()) < k for i, k in enumerate(sizes))
    assert len(codes[..., 0].unique()) > 10
    assert torch.equal(codes, made.encode(x)) and torch.equal(codes, out.codes)
    assert out.vectors.shape == (3, 50, made.dim) and out.vectors.dtype == torch.float32
    assert torch.allclose(made.vectors(codes), out.vectors, atol=1e-6)
    assert out.loss.shape == ()


@pytest.mark.parametrize("kind", ["vq", "kmeans", "variational"])
@torch.no_grad()
def test_the_search_of_vectors_that_are_codes_finds_them(kind: str) -> None:
    """Not of `fsq`, which bounds its input first, nor `rvq`: a sum of residual codes may have a nearer one."""
    made = quantizer(kind)
    k = torch.arange(32)[None, :, None]
    assert torch.equal(made.core.search(made.vectors(k)), k)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_eval_changes_no_state(kind: str) -> None:
    made = quantizer(kind)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    for seed in range(3):
        made(latents(2, 100, seed))
        made.encode(latents(2, 100, seed))
    after = made.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_encode_learns_nothing_in_training_either(kind: str) -> None:
    made = quantizer(kind).train()
    made.prepare_training(200)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    made.encode(latents(2, 100))
    assert all(torch.equal(before[k], v) for k, v in made.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_codes_do_not_depend_on_the_batch(kind: str) -> None:
    made, x = quantizer(kind), latents(4, 60, seed=3)
    together = made.encode(x)
    for i in range(4):
        assert torch.equal(made.encode(x[i : i + 1])[0], together[i])
    assert torch.equal(made.encode(x.flip(0)), together.flip(0))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_code_sees_its_context_and_no_more(kind: str) -> None:
    made, x = quantizer(kind, blocks=2), latents(1, 60, seed=4)
    assert made.context == (0 if kind == "kmeans" else 6)
    moved = x.clone()
    moved[0, 30] += 3
    changed = (made.project(moved) != made.project(x)).any(2)[0].nonzero()[:, 0].tolist()
    assert changed == list(range(30 - made.context, 30 + made.context + 1))
    piece = made.encode(x[:, 20 - made.context : 40 + made.context])
    assert torch.equal(piece[:, made.context : made.context + 20], made.encode(x)[:, 20:40])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_gives_the_same_codes(kind: str) -> None:
    made, fresh, x = quantizer(kind), quantizer(kind, seed=5, initialise=False), latents(1, 100, seed=6)
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(made.encode(x), fresh.encode(x))
    fresh.train()
    assert torch.equal(fresh(x).codes, made.encode(x)) or kind == "variational"  # not started anew on this batch


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "fsq"])
def test_too_few_frames_for_k_means_are_refused(kind: str) -> None:
    made = quantizer(kind, initialise=False)
    with pytest.raises(ValueError, match="needs as many frames, got 31"):
        made.initialise(latents()[0, :31])
    made.initialise(latents()[0, :32])
    assert len(made.encode(latents()[:, :32])[..., 0].unique()) > 16


def test_finite_scalars_need_no_start() -> None:
    made = quantizer("fsq", initialise=False)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    made.initialise(latents()[0, :3])
    assert all(torch.equal(before[k], v) for k, v in made.state_dict().items())


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "kmeans"])
def test_gradients_pass_to_the_network_before_it(kind: str) -> None:
    made, x = quantizer(kind).train(), latents(2, 40)
    x.requires_grad_()
    out = made(x)
    ((out.vectors - 1) ** 2).sum().backward(retain_graph=True)
    assert x.grad is not None and bool(x.grad.any())
    assert bool(made.enter.weight.grad.any())
    if kind != "fsq":
        x.grad = None
        out.loss.backward()
        assert bool(x.grad.any()) and out.loss.item() > 0  # type: ignore[attr-defined]


# -- nearest codes ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 6))
def test_search_is_brute_force(seed: int, size: int, dim: int) -> None:
    codebook, x = noise(seed, size, dim), noise(seed + 1, 2, 20, dim)
    codes = core("vq", codebook).search(x)[..., 0]
    distances = cdist(x.reshape(-1, dim).double(), codebook.double(), "sqeuclidean")
    assert np.array_equal(codes.reshape(-1).numpy(), distances.argmin(1))


def test_of_equal_distances_the_first_code_wins_far_from_the_origin() -> None:
    """1e4 away, float32 would not tell codes apart that are 1e-3 from one another."""
    codebook = torch.tensor([[1e4, 0.0], [1e4, 2e-3], [1e4, 0.0]])
    x = torch.tensor([[[1e4, 0.0], [1e4, 1.9e-3], [1e4, 1.1e-3]]])
    assert core("vq", codebook).search(x)[0, :, 0].tolist() == [0, 1, 1]


@torch.no_grad()
def test_residual_codes_by_hand_and_with_falling_error() -> None:
    made, x = quantizer("rvq", levels=4), latents(1, 300, seed=7)
    projected, codes = made.project(x)[0].double().numpy(), made.encode(x)[0].numpy()
    books = made.core.codebooks.double().numpy()
    assert books.shape == (4, 32, 4)
    rest, errors = projected, [float((projected**2).mean())]
    for level, book in enumerate(books):
        nearest = cdist(rest, book).argmin(1)
        assert np.array_equal(codes[:, level], nearest)
        rest = rest - book[nearest]
        errors.append(float((rest**2).mean()))
    assert all(b < 0.8 * a for a, b in itertools.pairwise(errors))
    assert np.allclose(made.vectors(torch.from_numpy(codes)[None])[0].numpy(), projected - rest, atol=1e-5)


@torch.no_grad()
def test_finite_scalars_by_hand() -> None:
    """Mentzer et al., algorithm 1: a shifted tanh, rounded; codes are digits in the mixed base of the steps."""
    made, x = quantizer("fsq"), noise(8, 1, 500, 4) * 2
    steps = np.array([8, 5, 5, 5])
    half = (steps - 1) * (1 + 1e-3) / 2
    offset = np.where(steps % 2 == 0, 0.5, 0.0)
    digits = np.round(np.tanh(x[0].double().numpy() + np.arctanh(offset / half)) * half - offset) + steps // 2
    assert np.array_equal(made.core.search(x)[0, :, 0].numpy(), digits @ np.array([1, 8, 40, 200]))
    every = made.vectors(torch.arange(1000)[None, :, None])[0]
    assert len(every.unique(dim=0)) == 1000
    assert [len(column.unique()) for column in every.T] == [8, 5, 5, 5]
    assert torch.allclose(
        every[made.core.search(x)[0, :, 0]], torch.from_numpy((digits - steps // 2) / (steps // 2)).float()
    )


# -- learning by moving averages --------------------------------------------------------------------------------------


def test_one_step_of_the_moving_averages_by_hand() -> None:
    codebook = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    made = core("vq", codebook, decay=0.9).train()
    x = torch.tensor([[[1.0, 0.0], [1.0, 2.0], [12.0, 0.0]]])
    out = made(x)
    assert out.codes[0, :, 0].tolist() == [0, 0, 1]
    assert torch.equal(out.vectors, codebook[out.codes[..., 0]])  # those before the step
    distances = np.array([1.0, 5.0, 4.0])
    assert out.loss.item() == pytest.approx(0.25 * distances.sum() / 6)  # commitment x mean square a dimension

    counts = 0.9 * 1 + 0.1 * np.array([2, 1, 0])
    sums = 0.9 * codebook.numpy() + 0.1 * np.array([[2, 2], [12, 0], [0, 0]])
    smoothed = (counts + 1e-5) / (counts.sum() + 3e-5) * counts.sum()
    book = made.library._codebook
    assert np.allclose(book.cluster_size[0].numpy(), counts, atol=1e-6)
    assert np.allclose(book.embed_avg[0].numpy(), sums, atol=1e-5)
    assert np.allclose(made.codebooks[0].numpy(), sums / smoothed[:, None], atol=1e-4)


@pytest.mark.parametrize("kind", ["vq", "rvq"])
def test_straight_through_gradient_is_the_identity(kind: str) -> None:
    """Whatever the number of levels (the library's own is `levels` times that: encodec's issue 25)."""
    made = quantizer(kind).train()
    x = noise(9, 1, 20, 4).requires_grad_()
    weight = noise(10, 1, 20, 4)
    (made.core(x).vectors * weight).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, weight, atol=1e-6)


def test_codebooks_follow_data_that_moves() -> None:
    made = core("vq", torch.tensor([[-1.0], [1.0]]), decay=0.5).train()
    for _ in range(30):
        made(torch.tensor([[[-3.0], [-3.0], [5.0]]]))
    assert made.codebooks[0, :, 0].tolist() == pytest.approx([-3, 5], abs=1e-3)


# -- revival of dead codes --------------------------------------------------------------------------------------------


def revivable(counts: list[int], decay: float = 0.5, revive: float = 0.1) -> tuple[Any, Tensor, list[int]]:
    """Codes far apart, a batch ``[1, tokens, 1]`` that uses code k ``counts[k]`` times, and a log of replaced codes."""
    codebook = 100 * torch.arange(len(counts), dtype=torch.float32)[:, None]
    made = core("vq", codebook, decay=decay, revive=revive).train()
    tokens = sum(counts)
    made.prepare_training(tokens)
    book = made.library._codebook
    book.cluster_size.fill_(tokens / len(counts))  # uniform use until now
    book.embed_avg.copy_(codebook[None] * tokens / len(counts))
    replaced: list[int] = []
    original = book.replace

    def replace(samples: Tensor, batch_mask: Tensor, seq_mask: Tensor | None = None) -> None:
        replaced.extend(batch_mask[0].nonzero()[:, 0].tolist())
        original(samples, batch_mask=batch_mask, seq_mask=seq_mask)

    book.replace = replace
    return made, codebook.repeat_interleave(torch.tensor(counts), 0)[None], replaced


@pytest.mark.parametrize("scale", [1, 50])
def test_unused_codes_are_revived_below_a_tenth_of_uniform_use(scale: int) -> None:
    """Unused, the average falls by half a step: 0.125 of uniform use after three steps, 0.0625 after four, whatever
    the batch. An absolute threshold (the usual 2) would act otherwise for either batch."""
    made, x, replaced = revivable([3 * scale, 3 * scale, 2 * scale, 0])
    book = made.library._codebook
    assert book.threshold_ema_dead_code == pytest.approx(0.1 * 8 * scale / 4)
    for _ in range(3):
        made(x)
        assert not replaced
    made(x)
    assert replaced == [3]
    assert float(book.cluster_size[0, 3]) == pytest.approx(2 * scale)  # starts as one of uniform use
    assert float(made.codebooks[0, 3, 0]) in (0.0, 100.0, 200.0)  # a vector of the batch
    assert torch.allclose(book.embed_avg[0, 3], made.codebooks[0, 3] * 2 * scale)


def test_codes_in_uniform_use_are_never_replaced() -> None:
    made, x, replaced = revivable([5, 5, 5, 5])
    before = made.codebooks.clone()
    for _ in range(40):
        made(x)
    assert not replaced and torch.allclose(made.codebooks, before, atol=1e-2)


@pytest.mark.parametrize(("count", "dead"), [(1, True), (3, False)])
def test_the_threshold_is_relative(count: int, dead: bool) -> None:
    """Of 80 tokens and 4 codes a tenth of uniform use is 2: a code used once a batch is replaced, thrice not."""
    made, x, replaced = revivable([26, 26, 28 - count, count])
    for step in range(20):
        made(x)
        if replaced:  # the average of a code used once is 1 + 19 / 2^n: below 2 after five steps
            assert step == 4
            break
    assert replaced == ([3] if dead else [])


def test_no_revival_where_none_is_asked_for_or_in_eval() -> None:
    made, x, replaced = revivable([4, 4, 0], revive=0.0)
    for _ in range(30):
        made(x)
    assert not replaced
    made, x, replaced = revivable([4, 4, 0])
    made.eval()
    for _ in range(30):
        made(x)
    assert not replaced


def test_revival_of_each_level() -> None:
    made = quantizer("rvq", levels=2)
    made.prepare_training(640)
    for layer in made.core.library.layers:
        assert layer._codebook.threshold_ema_dead_code == pytest.approx(0.1 * 640 / 32)
        assert layer._codebook.reset_cluster_size == 20 and layer._codebook.has_dead_code_replacement


def test_training_uses_the_whole_codebook() -> None:
    """Started on a corner of the data, the codes spread over all of it."""
    made = quantizer("vq", initialise=False, decay=0.8)
    made.initialise(latents()[0] * 0.05 + 3)
    made.prepare_training(800)
    made.train()
    for seed in range(60):
        with torch.no_grad():
            made(latents(4, 200, seed))
    made.eval()
    assert usage(made.encode(latents(4, 500, seed=99)), 32).balance > 0.9


# -- k-means ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_k_means_is_frozen_and_searches_the_latents_themselves() -> None:
    made, x = quantizer("kmeans"), latents(2, 200, seed=11)
    assert not list(made.parameters()) and made.dim == LATENT
    codebook = made.core.codebooks[0].clone()
    codes = made.encode(x)[..., 0].reshape(-1).numpy()
    assert np.array_equal(codes, cdist(x.reshape(-1, LATENT).double(), codebook.double()).argmin(1))
    made.train()
    made.prepare_training(400)
    for _ in range(3):
        made(x)
    assert torch.equal(made.core.codebooks[0], codebook)


@torch.no_grad()
def test_k_means_lowers_the_distortion_as_far_as_scipy_does() -> None:
    x = latents()[0]

    def distortion(codebook: np.ndarray) -> float:
        return float((cdist(x.double(), codebook).min(1) ** 2).mean())

    ours = distortion(quantizer("kmeans", kmeans_iterations=50).core.codebooks[0].double().numpy())
    drawn = distortion(x[torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:32]].double().numpy())
    theirs = distortion(kmeans2(x.double().numpy(), 32, iter=50, minit="points", rng=0)[0])
    assert ours < 0.8 * drawn and ours == pytest.approx(theirs, rel=0.05)


@torch.no_grad()
def test_centroids_are_the_means_of_their_cells() -> None:
    """At rest, one more round of Lloyd's algorithm moves nothing."""
    x = torch.cat([noise(12, 100, LATENT) * 0.1 + 10 * centre for centre in noise(13, 4, LATENT)])
    torch.manual_seed(1)
    made = Quantizer(QuantizerConfig(kind="kmeans", size=8, kmeans_iterations=100), LATENT)
    made.initialise(x)
    codes = made.encode(x[None])[0, :, 0]
    for k in codes.unique():
        assert torch.allclose(made.core.codebooks[0, k], x[codes == k].mean(0), atol=5e-3)  # one step of averages later


# -- variational ------------------------------------------------------------------------------------------------------


def posterior_entropy(made: Quantizer, x: Tensor, progress: float) -> float:
    """In nats, by the loss: with weights 0 and 1 it is log K - H."""
    made.anneal(progress)
    return math.log(32) - float(made.core(x).loss)


@torch.no_grad()
def test_the_posterior_by_hand_and_annealed() -> None:
    made, x = quantizer("variational", commitment=0.0, entropy=1.0, temperature=(2.0, 0.1)), noise(14, 1, 50, 4)
    squared = cdist(x[0].double(), made.core.codebook.detach().double(), "sqeuclidean") / 4
    found = []
    for progress, temperature in ((0.0, 2.0), (0.5, math.sqrt(2.0 * 0.1)), (1.0, 0.1)):
        q = np.exp(-squared / temperature)
        found.append(posterior_entropy(made, x, progress))
        assert found[-1] == pytest.approx(float(entropy(q, axis=1).mean()), abs=1e-4)
    assert found[0] > found[1] + 0.1 and found[1] > found[2] + 0.1
    assert found[0] < math.log(32)


@torch.no_grad()
def test_its_loss_is_distortion_and_divergence() -> None:
    made, x = quantizer("variational", commitment=0.25, entropy=0.01), noise(15, 1, 50, 4)
    squared = cdist(x[0].double(), made.core.codebook.detach().double(), "sqeuclidean") / 4
    q = np.exp(-squared / 2.0)
    q /= q.sum(1, keepdims=True)
    wanted = 0.25 * (q * squared).sum(1).mean() + 0.01 * entropy(q, np.full_like(q, 1 / 32), axis=1).mean()
    assert float(made.core(x).loss) == pytest.approx(wanted, rel=1e-4)


def test_its_gradient_reaches_the_codebook_by_vectors_and_by_the_loss() -> None:
    made = quantizer("variational").train()
    for part in ("vectors", "loss"):
        made.zero_grad()
        out = made(latents(2, 40))
        ((out.vectors - 1) ** 2).mean().backward() if part == "vectors" else out.loss.backward()
        assert made.core.codebook.grad is not None and bool(made.core.codebook.grad.any())


@torch.no_grad()
def test_it_samples_codes_in_training_and_not_after() -> None:
    made, x = quantizer("variational").train(), latents(1, 200)
    torch.manual_seed(0)
    first, second = made(x), made(x)
    assert not torch.equal(first.codes, second.codes)
    assert torch.allclose(first.vectors, made.vectors(first.codes), atol=1e-5)  # one code each, not a mixture
    made.anneal(1.0)
    agree = [float((made(x).codes == made.encode(x)).float().mean())]
    made.anneal(0.0)
    agree.append(float((made(x).codes == made.encode(x)).float().mean()))
    assert agree[0] > agree[1]  # colder, nearer to the nearest code
    made.eval()
    assert torch.equal(made(x).codes, made.encode(x)) and torch.equal(made(x).codes, made(x).codes)


def test_its_codebook_starts_on_the_data() -> None:
    made, x = quantizer("variational"), latents()
    with torch.no_grad():
        projected = made.project(x)[0]
        started = (made.core.vectors(made.encode(x))[0] - projected).square().mean()
        assert float(started) < 0.5 * float(projected.var(0).mean())


# -- usage ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 20), min_size=2, max_size=16).filter(any))
def test_usage_of_known_histograms(counts: list[int]) -> None:
    codes = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    made = usage(codes[torch.randperm(len(codes))], len(counts))
    bits = float(entropy(counts, base=2))
    assert made.used == pytest.approx(np.count_nonzero(counts) / len(counts))
    assert made.entropy == pytest.approx(bits, abs=1e-9)
    assert made.perplexity == pytest.approx(2**bits) and made.balance == pytest.approx(bits / math.log2(len(counts)))


def test_usage_at_its_ends() -> None:
    even = usage(torch.arange(1024).view(2, 16, 32, 1), 1024)
    assert (even.used, even.entropy, even.perplexity, even.balance) == pytest.approx((1, 10, 1024, 1))
    one = usage(torch.full((50,), 7), 1024)
    assert (one.used, one.entropy, one.perplexity, one.balance) == pytest.approx((1 / 1024, 0, 1, 0))
    assert usage(torch.tensor([0, 1]), 1024).perplexity == pytest.approx(2)
    assert usage(torch.tensor([0, 0, 0, 1]), 4).entropy == pytest.approx(0.811278, abs=1e-6)
