"""The mel front end and the VAE against closed forms, the harness's own log-mel and torch.distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evalkit.audio import Clip
from evalkit.metrics.spectral import log_mel
from tokenizer.mel import LogMel, MelConfig
from tokenizer.vae import LEAST_SCALE, VAE, VAEConfig

MEL = LogMel(MelConfig())


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vae(seed: int = 0, bands: int = 20, **options: int) -> VAE:
    torch.manual_seed(seed)
    sizes = {"patch": 4, "latent": 6, "width": 16, "blocks": 2, "expand": 2} | options
    return VAE(VAEConfig(**sizes), bands).eval()


# -- log-mel ----------------------------------------------------------------------------------------------------------


def test_geometry() -> None:
    config = MelConfig()
    assert config.frame_rate == 93.75 and config.scale == 4 / 1024
    assert config.vocoder_offset == pytest.approx(math.log(256))
    assert MEL(torch.zeros(3, 256 * 10)).shape == (3, 100, 10)
    assert not MEL.state_dict()  # window and filters are made anew, not stored


@pytest.mark.parametrize("samples", [24_064, 1024, 256 * 7])
def test_log_mel_equals_the_harness(samples: int) -> None:
    """The spectrogram that is trained on is the one that is measured; all frames but the one centred on the end."""
    audio = 0.1 * noise(0, 2, samples)
    audio[1] *= torch.linspace(0, 1, samples) ** 4  # down to the floor
    theirs = log_mel(Clip(audio.numpy(), 24_000))[:, : samples // 256]
    assert np.abs(MEL(audio).numpy() - theirs.transpose(0, 2, 1)).max() < 1e-4


def test_filters_equal_transformers() -> None:
    utils = pytest.importorskip("transformers.audio_utils", reason="transformers (another mel bank) is not installed")
    theirs = utils.mel_filter_bank(513, 100, 0.0, 12_000.0, 24_000, norm=None, mel_scale="htk")
    assert np.abs(MEL.filters.numpy() - theirs.T).max() < 1e-6


def test_silence_is_the_floor_exactly() -> None:
    made = MEL(torch.zeros(1, 4096))
    assert torch.equal(made, torch.full_like(made, 1e-5).log()) and made.unique().numel() == 1
    assert float(made[0, 0, 0]) == pytest.approx(math.log(1e-5), abs=1e-6)


@pytest.mark.parametrize("k", [8, 100, 400])
def test_full_scale_sine_on_a_bin_has_magnitude_1(k: int) -> None:
    """And half of it in the two bins beside it (a periodic Hann window), nothing elsewhere."""
    audio = torch.sin(2 * math.pi * k * torch.arange(8192, dtype=torch.float64) / 1024).float()
    made = MEL.magnitudes(audio[None])[0, :, 4:-4]
    wanted = torch.zeros(513, 1)
    wanted[[k - 1, k, k + 1]] = torch.tensor([0.5, 1.0, 0.5])[:, None]
    assert torch.allclose(made, wanted.expand_as(made), atol=2e-5)


def test_frames_are_centred() -> None:
    """A click at sample 20 * 256 is loudest in frame 20 and reaches those less than half a window away."""
    audio = torch.zeros(1, 256 * 40)
    audio[0, 20 * 256] = 1
    level = MEL.magnitudes(audio)[0].mean(0)
    assert int(level.argmax()) == 20 and level.nonzero()[:, 0].tolist() == [19, 20, 21]
    assert level[20] == pytest.approx(4 / 1024, rel=1e-5) and level[19] == pytest.approx(2 / 1024, rel=1e-5)


@given(st.floats(0.01, 100))
def test_gain_is_an_offset(gain: float) -> None:
    audio = noise(1, 1, 4096).clamp(-3, 3)
    assert torch.allclose(MEL(gain * audio), MEL(audio) + math.log(gain), atol=1e-3)


# -- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [2, 4, 6])
@pytest.mark.parametrize("frames", [1, 2, 9])
@torch.no_grad()
def test_shapes(patch: int, frames: int) -> None:
    """`patch` mel frames a latent frame, exactly, from one latent frame on."""
    model = vae(patch=patch)
    mean, std = model.encode(noise(2, 3, 20, frames * patch))
    assert mean.shape == std.shape == (3, frames, 6)
    assert model.decode(mean).shape == (3, 20, frames * patch)


@pytest.mark.parametrize("patch", [0, 1, 3])
def test_odd_patches_are_refused(patch: int) -> None:
    with pytest.raises(ValueError, match="even"):
        vae(patch=patch)


@pytest.mark.parametrize("patch", [2, 4])
@torch.no_grad()
def test_patch_arithmetic(patch: int) -> None:
    """Latent frame i starts from mel frames i * patch - patch / 2 ... i * patch + 3 patch / 2, and the way back is the
    mirror image: without blocks, a mel frame reaches the latents whose patch holds it or ends beside it."""
    model = vae(patch=patch, blocks=0)
    base = noise(3, 1, 20, 10 * patch)
    latent = noise(4, 1, 10, 6)
    for at in range(10 * patch):
        moved = base.clone()
        moved[0, :, at] += 1
        changed = (model.encode(moved)[0] != model.encode(base)[0]).any(2)[0].nonzero()[:, 0].tolist()
        assert changed == [i for i in range(10) if i * patch - patch // 2 <= at < i * patch + 3 * patch // 2]
    for i in range(10):
        moved = latent.clone()
        moved[0, i] += 1
        changed = (model.decode(moved) != model.decode(latent)).any(1)[0].nonzero()[:, 0].tolist()
        first = i * patch - patch // 2
        assert changed == list(range(max(0, first), min(10 * patch, first + 2 * patch)))


@torch.no_grad()
def test_frames_beyond_the_context_do_not_matter() -> None:
    """What chunks rely on: a moved mel frame or latent stays within `context` latent frames."""
    model = vae()
    assert model.context == (7, 7)
    mel, at = noise(5, 1, 20, 160), torch.arange(40)
    moved = mel.clone()
    moved[0, :, 80:84] += 5
    changed = (model.encode(moved)[0] - model.encode(mel)[0]).abs().amax(2)[0]
    assert float(changed[(at - 20).abs() > 7].max()) < 1e-6 < float(changed[13]) and float(changed[27]) > 1e-6
    latent = noise(6, 1, 40, 6)
    moved = latent.clone()
    moved[0, 20] += 5
    changed = (model.decode(moved) - model.decode(latent)).abs().amax(1)[0].view(40, 4).amax(1)
    assert float(changed[(at - 20).abs() > 7].max()) < 1e-5 < float(changed[13]) and float(changed[27]) > 1e-5


@torch.no_grad()
def test_a_piece_with_its_context_equals_the_whole() -> None:
    model, mel = vae(), noise(7, 2, 20, 160)
    whole = model.encode(mel)[0]
    piece = model.encode(mel[:, :, (15 - 7) * 4 : (25 + 7) * 4])[0][:, 7:-7]
    assert torch.allclose(piece, whole[:, 15:25], atol=1e-5)
    piece = model.decode(whole[:, 15 - 7 : 25 + 7])[:, :, 28:-28]
    assert torch.allclose(piece, model.decode(whole)[:, :, 60:100], atol=1e-5)


@torch.no_grad()
def test_a_batch_equals_its_clips() -> None:
    model, mel = vae(), noise(8, 4, 20, 40)
    for i in range(4):
        assert torch.allclose(model.encode(mel)[0][i], model.encode(mel[i : i + 1])[0][0], atol=1e-5)


# -- posterior --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_encoding_is_the_mean_and_draws_nothing() -> None:
    """In training mode as well, whatever the state of the generator (stable-audio-tools' bottleneck samples)."""
    model, mel = vae().train(), noise(9, 2, 20, 40)
    before = torch.get_rng_state()
    first = model.encode(mel)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    again = model.encode(mel)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert torch.equal(first[0], vae().encode(mel)[0])
    hidden = model.patchify(mel).transpose(1, 2)
    for block in model.encoder:
        hidden = block(hidden)
    mean, scale = model.posterior(model.encoder_norm(hidden)).split(6, dim=2)
    assert torch.equal(first[0], mean) and torch.allclose(first[1], (1 + scale.exp()).log() + 1e-4)


@torch.no_grad()
def test_posterior_scale_has_a_floor() -> None:
    model = vae()
    model.posterior.bias[6:] = -200.0
    std = model.encode(noise(10, 1, 20, 40))[1]
    assert torch.equal(std, torch.full_like(std, LEAST_SCALE)) and LEAST_SCALE == 1e-4
    assert math.isfinite(float(model.loss(noise(10, 1, 20, 40), noise(11, 1, 10, 6))[0]))


@torch.no_grad()
def test_loss_against_torch_distributions() -> None:
    from torch.distributions import Normal, kl_divergence

    model, mel, drawn = vae(), noise(12, 3, 20, 40), noise(13, 3, 10, 6)
    mean, std = model.encode(mel)
    kl = kl_divergence(Normal(mean, std), Normal(torch.zeros(()), torch.ones(()))).mean()
    l1 = (model.decode(Normal(mean, std).icdf(Normal(0.0, 1.0).cdf(drawn.double()).float())) - mel).abs().mean()
    loss, parts = model.loss(mel, drawn)
    assert float(parts["kl"]) == pytest.approx(float(kl), rel=1e-5) and float(kl) > 0.01
    assert float(parts["l1"]) == pytest.approx(float(l1), rel=1e-3)
    assert float(loss) == pytest.approx(float(parts["l1"] + 3e-3 * parts["kl"]), rel=1e-6)


def test_kl_of_the_prior_is_zero_and_pulls_to_it() -> None:
    model, mel = vae(), noise(14, 1, 20, 40)
    with torch.no_grad():
        model.posterior.weight.zero_()
        model.posterior.bias.zero_()
        model.posterior.bias[6:] = math.log(math.expm1(1 - LEAST_SCALE))
        assert float(model.loss(mel, torch.zeros(1, 10, 6))[1]["kl"]) == pytest.approx(0, abs=1e-6)
        model.posterior.bias[:6] = 2.0
        assert float(model.loss(mel, torch.zeros(1, 10, 6))[1]["kl"]) == pytest.approx(2.0, rel=1e-5)  # mean^2 / 2


def test_gradients_reach_everything_but_the_statistics() -> None:
    model = vae().train()
    model.loss(noise(15, 2, 20, 40), noise(16, 2, 10, 6))[0].backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    assert {k for k, _ in model.named_buffers()} == {"mel_mean", "mel_std", "latent_mean", "latent_std"}
    assert {"mel_mean", "mel_std", "latent_mean", "latent_std"} <= set(model.state_dict())


def test_a_few_steps_lower_the_loss() -> None:
    model, mel = vae().train(), noise(17, 4, 20, 32).cumsum(2) / 4
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for step in range(60):
        loss = model.loss(mel, noise(100 + step, 4, 8, 6))[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# -- statistics -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.floats(-5, 5), st.floats(0.01, 20))
def test_restore_inverts_standardise(seed: int, mean: float, std: float) -> None:
    model, latent = vae(), noise(seed, 2, 5, 6)
    model.latent_mean.copy_(mean + torch.arange(6))
    model.latent_std.copy_(std * (1 + torch.arange(6)))
    assert torch.allclose(model.restore(model.standardise(latent)), latent, atol=1e-4)
    assert torch.allclose(model.standardise(model.restore(latent)), latent, atol=1e-2)


def test_standardised_by_its_statistics_a_channel_is_standard() -> None:
    model, latent = vae(), 3 * noise(18, 4, 500, 6) * torch.arange(1, 7) + torch.arange(6)
    assert torch.equal(model.standardise(latent), latent)  # fresh: zero and one
    model.latent_mean.copy_(latent.mean((0, 1)))
    model.latent_std.copy_(latent.std((0, 1)))
    made = model.standardise(latent)
    assert made.mean((0, 1)).abs().max() < 1e-5 and torch.allclose(made.std((0, 1)), torch.ones(6))


@torch.no_grad()
def test_mel_statistics_shift_and_scale_both_ends() -> None:
    """With statistics (m, s) the VAE of s * mel + m is the VAE of mel, shifted and scaled back."""
    plain, shifted, mel = vae(), vae(), noise(19, 1, 20, 40)
    m, s = torch.linspace(-5, 1, 20), torch.linspace(0.5, 2, 20)
    shifted.mel_mean.copy_(m)
    shifted.mel_std.copy_(s)
    latent = plain.encode(mel)[0]
    assert torch.allclose(shifted.encode(mel * s[:, None] + m[:, None])[0], latent, atol=1e-4)
    assert torch.allclose(shifted.decode(latent), plain.decode(latent) * s[:, None] + m[:, None], atol=1e-5)
