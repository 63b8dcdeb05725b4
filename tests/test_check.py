"""The conformance kit: our systems pass it, and each breach of the contract is found by the check meant for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evalkit.audio import Clip
from evalkit.check import Finding, assert_conforms, check_system, synthetic
from evalkit.errors import NotApplicable, UsageError
from evalkit.systems.load import load_system
from evalkit.tokens import Tokens


class Good:
    """One 4-bit code every 100 samples: the first of them, held. Subclasses break one thing each."""

    block = 100

    def encode(self, clip: Clip) -> Tokens:
        codes = np.clip(np.round(clip.samples[:, :: self.block] * 7 + 7), 0, 15).astype(int)
        return Tokens(codes, (16,) * clip.channels, clip.sample_rate / self.block, clip.length, clip.sample_rate)

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        x = np.repeat((tokens.codes.astype(float) - 7) / 7, self.block, axis=1)
        return Clip(x[:, : tokens.samples], tokens.sample_rate)


class WrongLength(Good):
    def decode(self, tokens: Tokens, seed: int) -> Clip:
        return Clip(np.repeat((tokens.codes - 7.0) / 7, self.block, axis=1), tokens.sample_rate)


class NaNs(Good):
    def decode(self, tokens: Tokens, seed: int) -> Clip:
        return Clip(np.full((1, tokens.samples), np.nan), tokens.sample_rate)


class NaNsOnSilence(Good):
    def encode(self, clip: Clip) -> Tokens:
        with np.errstate(invalid="ignore"):
            return super().encode(clip.with_samples(clip.samples / np.abs(clip.samples).max()))


class BareArray(Good):
    def decode(self, tokens: Tokens, seed: int) -> Clip:
        return np.zeros(tokens.samples)  # type: ignore[return-value]


class OtherRate(Good):
    def decode(self, tokens: Tokens, seed: int) -> Clip:
        return Clip(super().decode(tokens, seed).samples, 2 * tokens.sample_rate)


class MixesDown(Good):
    def decode(self, tokens: Tokens, seed: int) -> Clip:
        made = super().decode(tokens, seed)
        return Clip(made.samples.mean(axis=0), made.sample_rate)


class HiddenSeed(Good):
    def decode(self, tokens: Tokens, seed: int) -> Clip:
        made = super().decode(tokens, seed)
        return made.with_samples(made.samples + 0.01 * np.random.default_rng(seed).standard_normal(made.samples.shape))


class Unseeded(Good):
    def decode(self, tokens: Tokens, seed: int) -> Clip:
        made = super().decode(tokens, seed)
        return made.with_samples(made.samples + 0.01 * np.random.default_rng().standard_normal(made.samples.shape))


class RandomCodes(Good):
    def encode(self, clip: Clip) -> Tokens:
        noise = np.random.default_rng().standard_normal(clip.samples.shape)
        return super().encode(clip.with_samples(clip.samples + noise))


class Remembers(Good):
    def __init__(self) -> None:
        self.calls = 0

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        self.calls += 1
        made = super().decode(tokens, seed)
        return made.with_samples(made.samples * (1 + 0.01 * self.calls))


class Smuggles(Good):
    """Keeps the clip in the instance and decodes to it: a perfect codec at any rate."""

    def encode(self, clip: Clip) -> Tokens:
        self.kept = clip
        return super().encode(clip)

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        kept = getattr(self, "kept", None)
        return kept if kept is not None and kept.length == tokens.samples else super().decode(tokens, seed)


class FreeSide(Good):
    def encode(self, clip: Clip) -> Tokens:
        t = super().encode(clip)
        return Tokens(t.codes, t.sizes, t.frame_rate, t.samples, t.sample_rate, side={"clip": clip.samples})


class FlatteringRate(Good):
    def encode(self, clip: Clip) -> Tokens:
        t = super().encode(clip)
        return Tokens(t.codes, t.sizes, t.frame_rate / 2, t.samples, t.sample_rate)


class Overwrites(Good):
    def encode(self, clip: Clip) -> Tokens:
        clip.samples[:] *= 0.5
        return super().encode(clip)


class NeedsASecond(Good):
    def encode(self, clip: Clip) -> Tokens:
        if clip.seconds < 0.1:
            raise ValueError("kernel size can't be greater than input size")
        return super().encode(clip)


class NeverApplies(Good):
    def encode(self, clip: Clip) -> Tokens:
        raise NotApplicable("not today")


class EncodeOnly:
    def encode(self, clip: Clip) -> Tokens:
        return Good().encode(clip)


class Raises(Good):
    def encode(self, clip: Clip) -> Tokens:
        raise RuntimeError("out of cheese")


class LastLength(Good):
    """Right on the lengths one tries by hand, wrong on odd ones."""

    def decode(self, tokens: Tokens, seed: int) -> Clip:
        made = super().decode(tokens, seed)
        return made.with_samples(made.samples[:, : tokens.samples // 2 * 2])


def failures(findings: list[Finding]) -> dict[str, str]:
    return {f.name: f.detail for f in findings if not f.ok}


@pytest.mark.parametrize(
    "spec",
    [
        "identity",
        "silence",
        "noise",
        "resample:8000",
        "pcm:8",
        "mulaw",
        "mdct:6",
        "opus:6",
        "opus:24@vbr=on",
        "mp3:8",
    ],
)
def test_built_in_systems_conform(spec: str) -> None:
    assert_conforms(spec, seconds=0.5)


def test_codec2_conforms() -> None:
    pytest.importorskip("pycodec2")
    findings = check_system("codec2:700", seconds=0.3)
    assert not failures(findings)
    assert "takes mono" in next(f.detail for f in findings if f.name == "two channels")
    with pytest.raises(UsageError, match="declares the domains speech, not music"):
        check_system("codec2:700", domain="music")


def test_a_good_object_conforms() -> None:
    for domain in ("speech", "music", "sound"):
        findings = check_system(Good(), domain=domain)
        assert not failures(findings)
        assert {"encode is deterministic", "exact length", "silence", "two channels", "rate adds up"} <= {
            f.name for f in findings
        }
    assert_conforms(load_system("pcm:4"))


@pytest.mark.parametrize(
    ("broken", "check", "says"),
    [
        (WrongLength, "exact length", "expected"),
        (LastLength, "exact length", "decode must restore the exact length"),
        (NaNs, "ordinary clip", "NaN"),
        (NaNsOnSilence, "silence", "NaN"),
        (BareArray, "ordinary clip", "returned ndarray, expected evalkit.Clip"),
        (OtherRate, "ordinary clip", "32000 Hz"),
        (MixesDown, "two channels", "1 channels, expected 2"),
        (HiddenSeed, "seed decides", "declare stochastic=True"),
        (Unseeded, "seed decides", "same clip and seed differ"),
        (RandomCodes, "encode is deterministic", "codes differ"),
        (Remembers, "keeps no state", "carried over"),
        (Smuggles, "tokens are enough", "to other audio"),
        (FreeSide, "tokens are enough", "side holds"),
        (FlatteringRate, "rate adds up", "not what was emitted"),
        (Overwrites, "input untouched", "work on a copy"),
        (NeedsASecond, "0.05 s", "kernel size"),
        (NeverApplies, "ordinary clip", "not today"),
        (EncodeOnly, "capabilities", "come together"),
        (Raises, "ordinary clip", "RuntimeError: out of cheese"),
    ],
)
def test_each_breach_is_found(broken: Callable[[], object], check: str, says: str) -> None:
    found = failures(check_system(broken()))
    assert check in found, found
    assert says in found[check]


def test_breaches_do_not_spread() -> None:
    """A fault in one place leaves the other findings as they were."""
    assert set(failures(check_system(NaNsOnSilence()))) == {"silence"}
    assert set(failures(check_system(NeedsASecond()))) == {"0.05 s"}
    assert set(failures(check_system(MixesDown()))) == {"two channels"}
    assert set(failures(check_system(FlatteringRate()))) == {"rate adds up"}


def test_assert_conforms_shows_all_findings() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_conforms(FlatteringRate())
    text = str(caught.value)
    assert "FAIL rate adds up" in text and "ok   silence" in text


def test_a_plug_in_file_conforms_or_not(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from evalkit.registry import system\n"
        "import numpy as np\n"
        "@system('dither', summary='adds noise', stochastic=True)\n"
        "@dataclass(frozen=True)\n"
        "class Dither:\n"
        "    level: float = 0.01\n"
        "    def reconstruct(self, clip, seed):\n"
        "        noise = np.random.default_rng(seed).standard_normal(clip.samples.shape)\n"
        "        return clip.with_samples(clip.samples + self.level * noise)\n"
        "class Drifts:\n"
        "    def __init__(self, level: float = 1.0):\n"
        "        self.level = level + 1\n"
        "    def reconstruct(self, clip, seed):\n"
        "        return clip.with_samples(clip.samples * self.level)\n"
    )
    assert_conforms(f"{path}:Dither:0.1")
    found = failures(check_system(f"{path}:Drifts"))
    assert set(found) == {"built again"} and "full name" in found["built again"]


def test_usage() -> None:
    with pytest.raises(UsageError, match="no system named"):
        check_system("nosuch")
    with pytest.raises(UsageError, match=r"at least 0\.2"):
        check_system("identity", seconds=0.1)
    with pytest.raises(UsageError, match="no test signal"):
        synthetic("smell", 16_000, 100)
