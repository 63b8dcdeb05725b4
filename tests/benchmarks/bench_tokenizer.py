"""Speed of the sound tokenizer, as ratios in one run: ``python tests/benchmarks/bench_tokenizer.py [SECONDS]``.

Against transformers' `EncodecModel` at full width with random weights (they time the same), one clip at a time, all
threads that torch takes, in turn A B A B. Training is measured against the bf16 matrix peak of this machine, which is
measured as well. Nothing here is a test: machines differ and are busy.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from evalkit.audio import Clip
from tokenizer.codec import SoundTokenizer, TokenizerConfig
from tokenizer.recipe import cpu
from tokenizer.train import TokenStage, VAEStage

ROUNDS = 7


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def ratio(name: str, ours: Callable[[], object], theirs: Callable[[], object], goal: str) -> None:
    """Median over rounds of theirs / ours: how many times as fast ours is."""
    ours(), theirs()  # warm
    pairs = [(timed(ours), timed(theirs)) for _ in range(ROUNDS)]
    ratios = [b / a for a, b in pairs]
    a, b = (statistics.median(x) for x in zip(*pairs, strict=True))
    print(
        f"{name}: {statistics.median(ratios):.2f} x (rounds {min(ratios):.2f} to {max(ratios):.2f}; "
        f"ours {1000 * a:.1f} ms, theirs {1000 * b:.1f} ms; goal {goal})",
        flush=True,
    )


def against_encodec(seconds: float) -> None:
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    theirs = EncodecModel(EncodecConfig()).eval()  # the 24 kHz model's sizes
    ours = SoundTokenizer(TokenizerConfig()).eval()
    assert ours.quantizer is not None and ours.decoder is not None
    ours.quantizer.initialise(torch.randn(4096, ours.config.vae.latent))
    ours.eval()
    samples = np.random.default_rng(0).normal(0, 0.1, (1, round(24_000 * seconds))).astype(np.float32)
    clip, audio = Clip(samples, 24_000), torch.from_numpy(samples)[None]
    tokens = ours.encode(clip)
    codes = torch.from_numpy(tokens.codes.astype(np.int64).T.copy())[None]
    sample = ours.sampler()

    @torch.inference_mode()
    def our_mel() -> object:
        assert ours.quantizer is not None
        x0 = torch.randn(1, codes.shape[1], ours.config.vae.latent)
        return ours.mel_of(sample(ours.quantizer.vectors(codes), x0))

    with torch.inference_mode():
        for kbps in (1.5, 6.0):
            their_codes = theirs.encode(audio, bandwidth=kbps)
            ratio(
                f"encode, {seconds:g} s, EnCodec at {kbps:g} kbps",
                lambda: ours.encode(clip),
                lambda k=kbps: theirs.encode(audio, bandwidth=k),  # type: ignore[misc]
                ">= 10",
            )
            ratio(
                f"decode to mel (8 evaluations) v EnCodec's decode to audio at {kbps:g} kbps",
                our_mel,
                lambda c=their_codes: theirs.decode(c.audio_codes, c.audio_scales),  # type: ignore[misc]
                ">= 1",
            )
        ratio(
            "decode to audio (8 evaluations, Griffin-Lim) v EnCodec's decode to audio",
            lambda: ours.decode(tokens, 0),
            lambda: theirs.decode(their_codes.audio_codes, their_codes.audio_scales),
            "none",
        )


def training() -> None:
    """Achieved bf16 arithmetic of a training step over that of a large matrix product (2 x multiply-adds)."""
    size = 2048
    a, b = (torch.randn(size, size).bfloat16() for _ in range(2))
    a @ b
    peak = max(2 * size**3 / timed(lambda: a @ b) for _ in range(10)) / 1e9
    print(f"bf16 matrix peak, {size} x {size}: {peak:.0f} GFLOP/s, {torch.get_num_threads()} threads", flush=True)
    recipe = cpu()
    t = SoundTokenizer(recipe.tokenizer)
    assert t.quantizer is not None and t.decoder is not None
    t.quantizer.initialise(torch.randn(4096, t.config.vae.latent))
    batch, crop, latent = recipe.decoder.batch, recipe.decoder.crop, t.config.vae.latent
    stages = {
        "vae": (VAEStage(t.vae), {"mel": torch.randn(batch, t.config.mel.bands, crop * t.config.vae.patch)}),
        "decoder (fm)": (
            TokenStage(t.quantizer, t.decoder, False),
            {
                "latent": torch.randn(batch, crop, latent),
                "codes": torch.randint(t.config.quantizer.size if t.config.quantizer else 2, (batch, crop, 1)),
                "time": torch.rand(batch),
                "keep": torch.rand(batch) > 0.1,
            },
        ),
    }
    for name, (stage, given) in stages.items():
        stage.train()
        given["noise"] = torch.randn(batch, crop, latent)
        optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad])

        def step(
            stage: torch.nn.Module = stage, given: dict[str, torch.Tensor] = given, opt: object = optimizer
        ) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = stage(given)
            opt.zero_grad()  # type: ignore[attr-defined]
            loss.backward()
            opt.step()  # type: ignore[attr-defined]

        step()
        seconds = statistics.median(timed(step) for _ in range(10))
        frames = batch * crop
        weights = sum(p.numel() for p in stage.parameters() if p.requires_grad and p.ndim > 1)
        done = 6 * weights * frames / seconds / 1e9  # forward 2, backward 4 a weight and frame
        print(
            f"training {name}: {frames / seconds:,.0f} latent frames/s, {done:.0f} GFLOP/s, "
            f"{done / peak:.2f} of the matrix peak",
            flush=True,
        )


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads; ratios are theirs / ours: above 1 ours is faster")
    against_encodec(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
    training()
