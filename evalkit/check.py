"""The conformance kit: does a system keep the contract of `evalkit.systems`? For plug-ins' own tests and the CLI.

In a test of your own::

    from evalkit.check import assert_conforms

    def test_my_codec():
        assert_conforms("path/to/mine.py:MyCodec:6")

Everything runs through the same call as in a real run (`evalkit.work.run_system`): resampled in, encoded, decoded,
resampled out, checked.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from evalkit.audio import Clip
from evalkit.errors import ContractError, NotApplicable, UsageError
from evalkit.registry import Domain, SystemInfo
from evalkit.systems.load import Loaded, load_system
from evalkit.tokens import Tokens
from evalkit.work import reason, run_system

SHORT_SECONDS = 0.05
ODD_CLIPS = ((8_000, 4_001), (16_000, 9_973), (22_050, 11_027), (44_100, 30_011), (48_000, 24_113))
"""(sample rate, samples): lengths that no frame size divides."""


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether the system passed, and what was seen."""

    name: str
    ok: bool
    detail: str


def assert_conforms(system: Any, *, domain: Domain | None = None, seconds: float = 1.0) -> None:
    """Raise AssertionError with every finding unless `check_system` is content with all of them."""
    findings = check_system(system, domain=domain, seconds=seconds)
    if not all(f.ok for f in findings):
        lines = [f"{'ok  ' if f.ok else 'FAIL'} {f.name}: {f.detail}" for f in findings]
        raise AssertionError("the system does not conform:\n" + "\n".join(lines))


def check_system(system: Any, *, domain: Domain | None = None, seconds: float = 1.0) -> list[Finding]:
    """Try a system on synthetic clips and say what holds.

    A `NotApplicable` on an unusual clip (two channels, silence, 0.05 s) passes and is shown; on the ordinary clip it
    fails. Where the ordinary clip fails the kit stops there: the rest would repeat it.

    Args:
        system: a spec string, a `Loaded`, or a built object.
        domain: "speech", "music" or "sound": kind of test signal; None takes the system's own first domain.
        seconds: length of the ordinary clip, at least 0.2.

    Raises:
        UsageError: the spec names nothing, or the system does not declare ``domain``.
        Unavailable: something optional that the system needs is not installed.
    """
    if seconds < 0.2:
        raise UsageError(f"seconds={seconds:g}: the kit needs at least 0.2 s")
    loaded = _load(system)
    domains = loaded.info.domains
    if domain is not None and domains and domain not in domains:
        raise UsageError(f"{loaded.name} declares the domains {', '.join(domains)}, not {domain}")
    kind = domain or (domains[0] if domains else "sound")
    if kind not in get_args(Domain):
        return [Finding("declaration", False, f"domain {kind!r} is none of {', '.join(get_args(Domain))}")]
    kit = _Kit(loaded, isinstance(system, (str, Loaded)) and bool(loaded.spec), kind, seconds)
    findings = []
    for name, check in kit.checks():
        try:
            findings.append(Finding(name, True, check() or "yes"))
        except _Broken as broken:
            findings.append(Finding(name, False, str(broken)))
        except Exception as error:  # the system's own code: whatever it raises is the finding
            findings.append(Finding(name, False, reason(error)))
        if not findings[-1].ok and name in ("capabilities", "ordinary clip"):
            break
    return findings


class _Broken(Exception):
    """A check that ran to its end and found the contract broken."""


def _load(system: Any) -> Loaded:
    if isinstance(system, Loaded):
        return system
    if isinstance(system, str):
        return load_system(system)
    info = getattr(system, "info", None)
    name = type(system).__name__
    if not isinstance(info, SystemInfo):
        info = SystemInfo(name=name, factory=type(system), summary="")
    return Loaded(name, "", system, info)


@dataclass
class _Kit:
    loaded: Loaded
    from_spec: bool
    domain: str
    seconds: float

    def __post_init__(self) -> None:
        self.unused: bytes | str = "built from a spec"
        if not self.from_spec:
            try:  # now, before anything is kept in the instance
                self.unused = pickle.dumps(self.loaded.system)
            except Exception as error:
                self.unused = reason(error)

    def checks(self) -> Iterator[tuple[str, Callable[[], str | None]]]:
        yield "capabilities", self.capabilities
        yield "declaration", self.declaration
        yield "built again", self.built_again
        yield "fingerprint", self.fingerprint
        yield "ordinary clip", self.ordinary
        yield "input untouched", self.input_untouched
        if self.tokenizer:
            yield "encode is deterministic", self.encode_deterministic
            yield "tokens are enough", self.tokens_are_enough
            yield "rate adds up", self.rate
        yield "seed decides", self.seed
        yield "keeps no state", self.no_state
        yield "exact length", self.exact_length
        yield "two channels", self.stereo
        yield f"{SHORT_SECONDS} s", lambda: self.unusual(self.clip(seconds=SHORT_SECONDS))
        n = round(self.rate_hz * self.seconds)
        yield "silence", lambda: self.unusual(Clip(np.zeros((1, n)), self.rate_hz, "silence"))
        yield "constant 0.5 (DC)", lambda: self.unusual(Clip(np.full((1, n), 0.5), self.rate_hz, "dc"))
        square = np.where(np.arange(n) * 440 // self.rate_hz % 2, 1.0, -1.0)
        yield "full-scale square wave", lambda: self.unusual(Clip(square, self.rate_hz, "square"))
        yield "beyond full scale", lambda: self.unusual(self.clip(gain=4.0))

    # -- what the checks share

    @property
    def system(self) -> Any:
        return self.loaded.system

    @property
    def tokenizer(self) -> bool:
        return callable(getattr(self.system, "encode", None))

    @property
    def rate_hz(self) -> int:
        return int(getattr(self.system, "sample_rate", None) or 16_000)

    def clip(
        self,
        rate: int | None = None,
        length: int | None = None,
        *,
        seconds: float | None = None,
        gain: float = 1.0,
        seed: int = 0,
    ) -> Clip:
        rate = rate or self.rate_hz
        length = length or round(rate * (seconds or self.seconds))
        return Clip(gain * synthetic(self.domain, rate, length, seed), rate, f"check-{rate}-{length}-{seed}")

    def run(self, clip: Clip, seed: int = 0, system: Any = None) -> tuple[Clip, Tokens | None]:
        output = run_system(system or self.system, clip, seed)
        return output.clip, output.tokens

    def again(self) -> Any:
        """Another instance of the same system, as another worker would have it."""
        if self.from_spec:
            return load_system(self.loaded.spec).system
        if isinstance(self.unused, str):
            raise _Broken(f"cannot be pickled ({self.unused}): hand the kit a spec instead")
        return pickle.loads(self.unused)

    # -- the checks: each returns what it saw, or raises

    def capabilities(self) -> str:
        found = [c for c in ("encode", "decode", "reconstruct") if callable(getattr(self.system, c, None))]
        if ("encode" in found) != ("decode" in found):
            raise _Broken(f"has {found[0]} alone: encode and decode come together")
        if not found:
            raise _Broken("has neither encode and decode nor reconstruct")
        return ", ".join(found)

    def declaration(self) -> str:
        info = self.loaded.info
        for d in info.domains or ():
            if d not in get_args(Domain):
                raise _Broken(f"domain {d!r} is none of {', '.join(get_args(Domain))}")
        if info.role not in ("codec", "ceiling", "floor", "anchor"):
            raise _Broken(f"role {info.role!r} is none of codec, ceiling, floor, anchor")
        rate = getattr(self.system, "sample_rate", None)
        if rate is not None and (not isinstance(rate, (int, np.integer)) or rate < 1000):
            raise _Broken(f"sample_rate is {rate!r}; expected Hz as an int, or None for any")
        if getattr(self.system, "channels", None) not in (None, 1):
            raise _Broken(f"channels is {self.system.channels!r}; expected 1 for mono only, or None for any")
        return ", ".join(
            [
                info.role,
                *(info.domains or ["every domain"]),
                f"{rate} Hz" if rate else "any sample rate",
                "stochastic" if info.stochastic else "deterministic",
            ]
        )

    def built_again(self) -> str:
        if not self.from_spec:
            self.again()
            return "pickled and back"
        for spec in (self.loaded.spec, self.loaded.name):
            name = load_system(spec).name
            if name != self.loaded.name:
                raise _Broken(f"{spec} has the full name {name}, before it was {self.loaded.name}")
        return self.loaded.name

    def fingerprint(self) -> str:
        if not callable(getattr(self.system, "fingerprint", None)):
            return "none: the spec and the code decide the output"
        first, second = self.system.fingerprint(), self.again().fingerprint()
        if first != second:
            raise _Broken(f"differs between two instances: {first!r} and {second!r}")
        return f"{first!r}"[:60]

    def ordinary(self) -> str:
        clip = self.clip()
        try:
            _, tokens = self.run(clip)
        except NotApplicable as error:
            raise _Broken(f"n/a on an ordinary {self.domain} clip of {clip.seconds:g} s: {error}") from error
        rate = "" if tokens is None else f", {tokens.nominal_kbps:.3g} kbps"
        return f"{clip.seconds:g} s of {self.domain} at {clip.sample_rate} Hz{rate}"

    def input_untouched(self) -> str:
        clip = self.clip()
        before = clip.samples.copy()
        self.run(clip)
        if not np.array_equal(before, clip.samples):
            raise _Broken("changed the samples of the clip it was given: work on a copy")
        return "yes"

    def encode_deterministic(self) -> str:
        clip = self.clip()
        tokens = self.system.encode(clip)
        for other, what in ((self.system, "twice"), (self.again(), "by a second instance")):
            difference = _token_difference(tokens, other.encode(clip))
            if difference:
                raise _Broken(f"encoded {what}, {difference}")
        return f"{tokens.codes.shape[0]} x {tokens.codes.shape[1]} codes, the same every time"

    def tokens_are_enough(self) -> str:
        """Decoding elsewhere, from what a file would hold, gives the same audio: nothing passed by another way."""
        tokens = self.system.encode(self.clip())
        here = self.system.decode(tokens, 0)
        side = {k: np.array(v) for k, v in tokens.side.items()}
        copy = replace(tokens, codes=tokens.codes.astype(np.int64), side=side)
        there = self.again().decode(copy, 0)
        if not np.array_equal(here.samples, there.samples):
            raise _Broken("a second instance decodes a copy of the tokens to other audio")
        held = sum(np.asarray(v).nbytes for v in tokens.side.values())
        if held and not tokens.side_bits + tokens.container_bits:
            raise _Broken(f"side holds {held} bytes ({', '.join(tokens.side)}), side_bits and container_bits are 0")
        return f"{tokens.code_bits:g} bits of codes, {tokens.side_bits:g} of side information"

    def rate(self) -> str:
        clip = self.clip(seconds=2 * self.seconds)
        tokens = self.system.encode(clip)
        frames, expected = tokens.codes.shape[1], tokens.frame_rate * clip.seconds
        slack = max(4.0, 0.1 * tokens.frame_rate)
        if not expected - 1.5 <= frames <= expected + slack:
            raise _Broken(
                f"{frames} frames for {clip.seconds:g} s, frame_rate {tokens.frame_rate:g} stands for {expected:.1f}: "
                "the nominal rate is not what was emitted"
            )
        return f"{tokens.nominal_kbps:.4g} kbps nominal, {tokens.code_bits / clip.seconds / 1000:.4g} kbps emitted"

    def seed(self) -> str:
        clip = self.clip()
        first, same, other = (self.run(clip, s)[0].samples for s in (1, 1, 2))
        if not np.array_equal(first, same):
            raise _Broken("two outputs of the same clip and seed differ")
        declared, differs = self.loaded.info.stochastic, not np.array_equal(first, other)
        if differs and not declared:
            raise _Broken("the output depends on the seed: declare stochastic=True")
        if declared and not differs:
            raise _Broken("declared stochastic, but two seeds give the same output")
        return "same seed, same output" + ("; another seed, another" if differs else "; the seed does not matter")

    def no_state(self) -> str:
        clip = self.clip()
        first = self.run(clip)[0].samples
        self.run(self.clip(seed=1))
        if not np.array_equal(first, self.run(clip)[0].samples):
            raise _Broken("the output changes after another clip has been processed: something is carried over")
        return "the same before and after another clip"

    def exact_length(self) -> str:
        skipped = []
        for rate, length in ODD_CLIPS:
            try:
                made, _ = self.run(self.clip(rate, length))
            except NotApplicable as error:
                skipped.append(f"{rate} Hz n/a: {error}")
                continue
            except ContractError as error:
                raise _Broken(f"{length} samples at {rate} Hz: {error}") from error
            if (made.length, made.sample_rate) != (length, rate):
                raise _Broken(f"{length} samples at {rate} Hz became {made.length} at {made.sample_rate} Hz")
        if len(skipped) == len(ODD_CLIPS):
            raise _Broken("; ".join(skipped))
        return "; ".join([f"{len(ODD_CLIPS) - len(skipped)} odd lengths at 8 to 48 kHz", *skipped])

    def stereo(self) -> str:
        left, right = self.clip().samples[0], self.clip(seed=1).samples[0]
        return self.unusual(Clip(np.stack([left, right]), self.rate_hz, "stereo"))

    def unusual(self, clip: Clip) -> str:
        try:
            made, tokens = self.run(clip)
        except NotApplicable as error:
            return f"n/a: {error}"
        if made.channels != clip.channels:
            raise _Broken(f"{clip.channels} channels became {made.channels}")
        level = float(np.sqrt(np.mean(made.samples.astype(np.float64) ** 2)))
        rate = "" if tokens is None else f", {tokens.code_bits / clip.seconds / 1000:.3g} kbps"
        return f"rms {level:.3g}{rate}"


def _token_difference(a: Tokens, b: Tokens) -> str:
    for name in ("sizes", "frame_rate", "samples", "sample_rate", "side_bits", "container_bits"):
        if getattr(a, name) != getattr(b, name):
            return f"{name} differs: {getattr(a, name)} and {getattr(b, name)}"
    if a.codes.shape != b.codes.shape:
        return f"codes have shape {a.codes.shape} and {b.codes.shape}"
    if not np.array_equal(a.codes, b.codes):
        return f"{int((a.codes != b.codes).sum())} of {a.codes.size} codes differ"
    if sorted(a.side) != sorted(b.side) or not all(np.array_equal(a.side[k], b.side[k]) for k in a.side):
        return "side information differs"
    return ""


def synthetic(domain: str, sample_rate: int, samples: int, seed: int = 0) -> np.ndarray:
    """A test signal of a domain, ``[samples]``, peak 0.5: voiced syllables, decaying chords, or noises and a chirp.

    >>> float(abs(synthetic("music", 16_000, 8_000)).max())
    0.5
    """
    rng = np.random.default_rng([seed, samples])
    t = np.arange(samples) / sample_rate
    top = 0.45 * sample_rate
    if domain == "speech":
        pitch = 110 + 40 * seed + 15 * np.sin(2 * np.pi * 1.3 * t)
        phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
        x = sum(
            np.sin(k * phase) * np.exp(-(((k * 120 - f) / 250) ** 2))
            for k in range(1, 30)
            if k * 180 < top
            for f in (600, 1200, 2500)
        )
        x = (x + 0.05 * rng.standard_normal(samples)) * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * t))
    elif domain == "music":
        notes = (220.0, 277.2, 329.6) if seed == 0 else (196.0, 246.9, 293.7)
        decay = np.exp(-3 * (t % 0.5))
        x = decay * sum(np.sin(2 * np.pi * f * k * t) / k for f in notes for k in range(1, 8) if f * k < top)
    elif domain == "sound":
        chirp = np.sin(2 * np.pi * (300 * t + 0.5 * (top - 300) / max(t[-1], 1e-3) * t**2))
        x = (chirp if seed == 0 else chirp[::-1]) + 0.3 * rng.standard_normal(samples) * (t % 0.3 < 0.1)
    else:
        raise UsageError(f"no test signal for the domain {domain!r}: speech, music or sound")
    x = np.asarray(x, dtype=np.float64)
    return 0.5 * x / max(float(np.abs(x).max()), 1e-9)
