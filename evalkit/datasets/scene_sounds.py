"""The sounds of `scenes`: what an event of each class may be, and its synthesis (24 kHz, numpy and scipy.signal).

An `Event` says everything that is known about one sound before a sample is computed; `synthesise` turns it into audio
and `render` places several in one room over a noise floor. All randomness comes from the generator that is passed in.
Timbre, tempo, modulation and room vary within a class; the labelled properties do not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

SAMPLE_RATE = 24_000
"""Hz, of every scene."""

LOUDNESS_DB = (-34.0, -18.0)
"""Range of event levels: RMS of the loudest 50 ms of the dry event, in dB re full scale."""

COUNTS = (1, 5)

CREST = 4.0
"""Peaks above this multiple of the loudest 50 ms' RMS are rounded off, so that sums of events stay in range."""

Pitch = Literal["high", "low"]


@dataclass(frozen=True)
class Event:
    """One sound of a scene; all times in seconds, exact to the sample (multiples of 1 ms).

    Attributes:
        sound: class name, a key of `SOUNDS`.
        onset: start of the dry sound within the clip.
        duration: from the onset to the end of the dry sound; the room adds a tail of up to 0.3 s.
        pitch: "high" or "low" within the class; None for classes without a pitch.
        pitch_hz: nominal fundamental (geometric centre where it moves), None without a pitch.
        loudness_db: RMS of the loudest 50 ms of the dry sound, dB re full scale.
        count: repetitions (strokes, barks, knocks, ...); 1 for classes that are not counted.
        spacing: between the starts of repetitions, on average; None for one repetition.
    """

    sound: str
    onset: float
    duration: float
    pitch: Pitch | None
    pitch_hz: float | None
    loudness_db: float
    count: int = 1
    spacing: float | None = None

    @property
    def end(self) -> float:
        return self.onset + self.duration

    def label(self) -> dict[str, Any]:
        """The event as JSON values; the class name is under ``class``."""
        values = asdict(self)
        return {"class": values.pop("sound"), **values}


@dataclass(frozen=True)
class Sound:
    """A class: its synthesis and the ranges its events are drawn from (Hz and seconds).

    ``low`` and ``high`` are ranges of the pitch, None without one. A counted class has ``spacing`` (between starts)
    and ``length`` of one repetition; the others have ``length`` of the whole event.
    """

    synth: Callable[[np.random.Generator, int, float, list[int]], np.ndarray]
    length: tuple[float, float]
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    spacing: tuple[float, float] | None = None


def draw_event(
    rng: np.random.Generator, sound: str, *, longest: float = 4.0, pitch: Pitch | None = None, count: int | None = None
) -> Event:
    """An event of class ``sound`` at onset 0, at most ``longest`` (>= 2.0) seconds long; given properties are kept."""
    kind = SOUNDS[sound]
    if pitch is None and kind.low:
        pitch = "high" if rng.random() < 0.5 else "low"
    hz = _log_uniform(rng, *(kind.high if pitch == "high" else kind.low)) if kind.low and kind.high else None
    spacing = None
    n = 1
    if kind.spacing:
        n = int(rng.integers(COUNTS[0], COUNTS[1] + 1)) if count is None else count
        between = float(rng.uniform(kind.spacing[0], min(kind.spacing[1], longest / n)))
        duration = float(rng.uniform(kind.length[0], min(kind.length[1], between if n > 1 else longest)))
        if n > 1:
            spacing = round(between, 3)
            duration += (n - 1) * spacing
    else:
        duration = float(rng.uniform(kind.length[0], min(kind.length[1], longest)))
    return Event(
        sound,
        0.0,
        round(min(duration, longest), 3),
        pitch if kind.low else None,
        round(hz, 1) if hz else None,
        round(float(rng.uniform(*LOUDNESS_DB)), 1),
        n,
        spacing,
    )


def synthesise(event: Event, rng: np.random.Generator) -> np.ndarray:
    """The dry event, float64 ``[round(duration * 24000)]``, at its level."""
    n = round(event.duration * SAMPLE_RATE)
    starts = [0]
    if event.count > 1:
        assert event.spacing is not None
        jitter = rng.uniform(-0.06, 0.06, event.count) * event.spacing
        jitter[[0, -1]] = 0.0
        starts = [round((i * event.spacing + j) * SAMPLE_RATE) for i, j in enumerate(jitter)]
    x = SOUNDS[event.sound].synth(rng, n, event.pitch_hz or 0.0, starts)
    x = x * (_edges(n, 0.002, 0.012) / _loudest(x))
    x = CREST * np.tanh(x / CREST)
    return x * (10 ** (event.loudness_db / 20) / _loudest(x))


def render(events: Sequence[Event], seconds: float, rng: np.random.Generator) -> np.ndarray:
    """The events in one small random room over a noise floor: float32 ``[samples]``, peak below 0.99."""
    from scipy.signal import oaconvolve

    n = round(seconds * SAMPLE_RATE)
    x = np.zeros(n)
    for event in events:
        start = round(event.onset * SAMPLE_RATE)
        y = synthesise(event, rng)
        x[start : start + len(y)] += y[: n - start]
    x = oaconvolve(x, _room(rng))[:n]
    tilt = rng.uniform(0.2, 0.6)
    floor = _shaped_noise(rng, n, lambda f, t: (1 + f / 60) ** -tilt)
    x += floor * (10 ** (rng.uniform(-64, -54) / 20) / _rms(floor))
    peak = np.abs(x).max()
    if peak > 0.98:  # no clip of version 1 comes here; it keeps the promise for any seed
        x *= 0.98 / peak
    return x.astype(np.float32)


def isolated_event(
    sound: str, seed: int, *, pitch: Pitch | None = None, count: int | None = None
) -> tuple[np.ndarray, Event]:
    """One event alone in a room, 0.2 s after the start and 0.3 s before the end: float32 ``[samples]`` and its truth.

    >>> x, event = isolated_event("dog", 0, count=3)
    >>> event.sound, event.onset, event.count, x.dtype.name
    ('dog', 0.2, 3, 'float32')
    """
    rng = np.random.default_rng([list(SOUNDS).index(sound), seed])
    event = draw_event(rng, sound, pitch=pitch, count=count)
    event = Event(**{**asdict(event), "onset": 0.2})
    return render([event], event.end + 0.3, rng), event


# -- parts ------------------------------------------------------------------------------------------------------------


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x * x)))


def _loudest(x: np.ndarray) -> float:
    """RMS of the loudest 50 ms (hop 5 ms); shorter sounds count as if padded to 50 ms."""
    width, hop = SAMPLE_RATE // 20, SAMPLE_RATE // 200
    energy = np.concatenate([[0.0], np.cumsum(x * x)])
    ends = np.arange(width, max(len(x), width) + hop, hop).clip(max=len(x))
    return float(np.sqrt((energy[ends] - energy[(ends - width).clip(min=0)]).max() / width))


def _edges(n: int, rise: float, fall: float) -> np.ndarray:
    """Raised-cosine fades of ``rise`` and ``fall`` seconds (each at most half of the sound)."""
    y = np.ones(n)
    for seconds, part in ((rise, slice(None)), (fall, slice(None, None, -1))):
        m = min(round(seconds * SAMPLE_RATE), n // 2)
        y[part][:m] *= 0.5 - 0.5 * np.cos(np.pi * (np.arange(m) + 0.5) / m)
    return y


def _time(n: int) -> np.ndarray:
    return np.arange(n) / SAMPLE_RATE


def _wander(rng: np.random.Generator, n: int, rate: float) -> np.ndarray:
    """A smooth random curve around 0 with unit spread, new every ``1 / rate`` seconds."""
    points = max(4, int(n / SAMPLE_RATE * rate) + 3)
    knots = rng.standard_normal(points)
    at = np.linspace(0, points - 1, n)
    i = at.astype(int).clip(max=points - 2)
    u = 0.5 - 0.5 * np.cos(np.pi * (at - i))
    return knots[i] * (1 - u) + knots[i + 1] * u


def _periodic(hz: np.ndarray | float, n: int, harmonics: np.ndarray) -> np.ndarray:
    """A periodic sound of instantaneous frequency ``hz`` from the complex amplitudes of its harmonics, by wavetable."""
    size = 4096
    spectrum = np.zeros(size // 2 + 1, dtype=complex)
    spectrum[1 : len(harmonics) + 1] = harmonics
    table = np.fft.irfft(spectrum) * size / 2
    table = np.append(table, table[0])
    cycles = np.cumsum(np.broadcast_to(np.asarray(hz, dtype=float), (n,))) / SAMPLE_RATE
    at = (cycles % 1.0) * size
    i = at.astype(int).clip(max=size - 1)
    return table[i] + (table[i + 1] - table[i]) * (at - i)


def _harmonics(hz: np.ndarray | float, n: int, amplitudes: np.ndarray) -> np.ndarray:
    """These harmonic amplitudes (those below 10.5 kHz), in phases that spread the energy over the period."""
    kept = amplitudes[: max(1, int(10_500 / np.max(hz)))]
    k = np.arange(1, len(kept) + 1)
    return _periodic(hz, n, kept * np.exp(1j * np.pi * k * (k - 1) / len(kept)))


def _pulses(hz: np.ndarray, n: int, slope: float) -> np.ndarray:
    """A glottal-like pulse train: harmonics in cosine phase with amplitude ``k ** -slope``."""
    return _periodic(hz, n, np.arange(1, max(1, int(10_500 / hz.max())) + 1) ** -slope)


def _resonance(x: np.ndarray, hz: float, bandwidth: float) -> np.ndarray:
    """A two-pole resonance with unit gain at its peak."""
    from scipy.signal import lfilter

    r = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
    w = 2 * np.pi * hz / SAMPLE_RATE
    gain = (1 - r) * np.sqrt(1 - 2 * r * np.cos(2 * w) + r * r)
    return lfilter([gain], [1, -2 * r * np.cos(w), r * r], x)


def _band(x: np.ndarray, low: float | None, high: float | None, order: int = 2) -> np.ndarray:
    """Butterworth band-, high- or low-pass (Hz)."""
    from scipy.signal import butter, sosfilt

    if low and high:
        sos = butter(order, [low, high], "bandpass", fs=SAMPLE_RATE, output="sos")
    else:
        sos = butter(order, low or high, "highpass" if low else "lowpass", fs=SAMPLE_RATE, output="sos")
    return sosfilt(sos, x)


def _shaped_noise(rng: np.random.Generator, n: int, gain: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Gaussian noise whose spectrum is ``gain(f [1, bins] in Hz, t [frames, 1] in 0..1)``, by overlap-add."""
    size, hop = 1024, 512
    frames = n // hop + 2
    white = rng.standard_normal((frames + 1) * hop)
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size)
    f = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)[None, :]
    t = np.linspace(0, 1, frames)[:, None]
    blocks = np.lib.stride_tricks.sliding_window_view(white, size)[::hop][:frames] * window
    shaped = np.fft.irfft(np.fft.rfft(blocks) * gain(f, t), size) * window
    y = np.zeros((frames + 1) * hop)
    halves = y.reshape(-1, hop)
    halves[:-1] += shaped[:, :hop]
    halves[1:] += shaped[:, hop:]
    return y[hop : hop + n]


def _modes(n: int, hz: np.ndarray, decay: np.ndarray, level: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Damped sinusoids: ``decay`` is the time in seconds to 1/e."""
    n = min(n, round(7 * float(decay.max()) * SAMPLE_RATE) + 1)
    t = _time(n)[None, :]
    return (level[:, None] * np.exp(-t / decay[:, None]) * np.sin(2 * np.pi * hz[:, None] * t + phase[:, None])).sum(0)


def _burst(rng: np.random.Generator, n: int, decay: float, low: float | None, high: float | None) -> np.ndarray:
    """A decaying burst of band-limited noise with a spread of 1 at its start."""
    n = min(n, round(7 * decay * SAMPLE_RATE) + 1)
    y = _band(rng.standard_normal(n), low, high)
    return y / (_rms(y) + 1e-12) * np.exp(-_time(n) / decay)


def _place(n: int, parts: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """Add each part at its start, cut at ``n``."""
    y = np.zeros(n)
    for start, part in parts:
        part = part[: max(0, n - start)]
        y[start : start + len(part)] += part
    return y


def _room(rng: np.random.Generator) -> np.ndarray:
    """Impulse response of a small room and a plain microphone: direct sound, early echoes, a short diffuse tail."""
    reverberation = _log_uniform(rng, 0.06, 0.3)
    n = round(reverberation * SAMPLE_RATE)
    t = _time(n)
    tail = rng.standard_normal(n) * 10 ** (-3 * t / reverberation)
    tail[: round(0.004 * SAMPLE_RATE)] = 0
    tail = _band(tail, 150, _log_uniform(rng, 3000, 9000), 1)
    h = tail * (10 ** (rng.uniform(-26, -13) / 20) / np.sqrt((tail * tail).sum()))
    h[0] += 1.0
    for _ in range(int(rng.integers(2, 6))):
        h[int(rng.uniform(0.0015, 0.02) * SAMPLE_RATE)] += rng.uniform(0.04, 0.16) * rng.choice([-1.0, 1.0])
    colour = rng.uniform(-0.12, 0.22)  # a gentle tilt, up or down, of the microphone
    h = np.convolve(h, np.array([1.0, colour]) / (1 + abs(colour)))
    return _band(h, _log_uniform(rng, 25, 45), None, 1)


# -- the classes: synth(rng, samples, pitch in Hz, starts of the repetitions in samples) -------------------------------


def _tone(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """A steady tone: sine, organ-like, reed-like or hollow; slight vibrato or tremolo; soft or hard edges."""
    k = np.arange(1, 13)
    kind = rng.integers(4)
    if kind == 0:
        amplitudes = (k == 1) + 0.02 * rng.random(12)
    elif kind == 1:
        amplitudes = rng.uniform(0.1, 1, 12) * np.isin(k, (1, 2, 3, 4, 6, 8)) / k**0.7
    elif kind == 2:
        amplitudes = k ** -rng.uniform(1.0, 1.8)
    else:
        amplitudes = (k % 2) / k ** rng.uniform(1.0, 1.8)
    amplitudes[0] = amplitudes.max() * rng.uniform(1.0, 1.5)
    t = _time(n)
    vibrato = rng.uniform(0, 0.006) * np.sin(2 * np.pi * (rng.uniform(3, 7) * t + rng.random()))
    tremolo = 1 + rng.uniform(0, 0.35) * np.sin(2 * np.pi * (rng.uniform(2, 8) * t + rng.random()))
    y = _harmonics(hz * (1 + vibrato), n, amplitudes) * tremolo
    return y * _edges(n, _log_uniform(rng, 0.005, 0.08), _log_uniform(rng, 0.02, 0.3))


def _sweep(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """A glide of 0.8 to 1.8 octaves around the pitch, up or down, one or two strokes, few harmonics."""
    u = np.linspace(0, 1, n)
    if rng.random() < 0.3:
        u = (2 * u) % 1.0 if rng.random() < 0.5 else 1 - np.abs(2 * u - 1)
    u = u ** _log_uniform(rng, 0.7, 1.4)
    if rng.random() < 0.5:
        u = 1 - u
    octaves = rng.uniform(0.8, 1.8)
    amplitudes = np.arange(1, 7) ** -rng.uniform(1.5, 4.0)
    y = _harmonics(hz * 2 ** (octaves * (u - 0.5)), n, amplitudes)
    return y * _edges(n, _log_uniform(rng, 0.005, 0.06), _log_uniform(rng, 0.02, 0.2))


def _bell(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """Partials of a bell (hum, prime, tierce, quint, nominal, ...), each a beating pair, and the strike."""
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.52, 2.66, 3.01, 4.17, 5.43])
    ratios = ratios * (1 + 0.012 * rng.standard_normal(len(ratios)))
    ratios[1] = 1.0
    level = np.array([0.35, 1.0, 0.5, 0.3, 0.8, 0.35, 0.3, 0.35, 0.25, 0.15]) * rng.uniform(0.4, 1.3, len(ratios))
    level[1] = 1.0
    brightness = rng.uniform(-0.6, 0.3)
    partials = hz * np.concatenate([ratios, ratios * (1 + rng.uniform(0.0005, 0.003, len(ratios)))])
    level = np.concatenate([level, level * rng.uniform(0.2, 0.8, len(level))]) * (partials / hz) ** brightness
    decay = _log_uniform(rng, 0.25, 0.8) * (partials / hz) ** -rng.uniform(0.5, 0.9)
    keep = partials < 10_500
    phase = rng.uniform(0, 2 * np.pi, len(partials))
    ring = _modes(n, partials[keep], decay[keep], level[keep], phase[keep])
    parts = []
    for start in starts:
        strength = 10 ** (rng.uniform(-3, 0) / 20)
        strike = _burst(rng, n - start, rng.uniform(0.004, 0.012), 1500, 9000) * rng.uniform(0.1, 0.6) * strength
        parts += [(start, strength * ring), (start, strike)]
    return _place(n, parts) * _edges(n, 0.001, 0.15)


def _siren(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """A wail (slow), a yelp (fast) or a two-tone horn, through a resonant horn."""
    t = _time(n)
    kind = rng.integers(3)
    if kind == 0:
        octaves = rng.uniform(0.35, 0.6) * -np.cos(2 * np.pi * (rng.uniform(0.3, 0.7) * t + rng.random()))
    elif kind == 1:
        saw = (rng.uniform(2.0, 4.0) * t + rng.random()) % 1.0
        octaves = rng.uniform(0.4, 0.6) * (1 - 2 * np.abs(2 * saw - 1) if rng.random() < 0.5 else 2 * saw - 1)
    else:
        half = rng.uniform(0.2, 0.27)
        octaves = half * np.tanh(30 * np.sin(2 * np.pi * (rng.uniform(0.8, 1.6) * t + rng.random() / 2)))
    k = np.arange(1, 30)
    amplitudes = k ** -rng.uniform(0.8, 1.5) * np.where(k % 2 == 0, rng.uniform(0.2, 1.0), 1.0)
    y = _harmonics(hz * 2**octaves, n, amplitudes)
    y = y + rng.uniform(0.5, 2.0) * _resonance(y, rng.uniform(1000, 2500), rng.uniform(400, 1000))
    swell = 1 + rng.uniform(0, 0.4) * _wander(rng, n, 1.0).clip(-1.5, 1.5)
    return y * swell * _edges(n, _log_uniform(rng, 0.02, 0.3), _log_uniform(rng, 0.05, 0.4))


def _engine(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """Firing pulses of unequal cylinders at the pitch, exhaust resonances and noise that breathes with the firing."""
    rate = hz * 2 ** (rng.uniform(0.01, 0.05) * _wander(rng, n, 2.0) + rng.uniform(-0.12, 0.12) * np.linspace(-1, 1, n))
    cylinders = int(rng.choice([2, 3, 4, 6]))
    fired = np.cumsum(rate) / SAMPLE_RATE
    unequal = 1 + rng.uniform(0.05, 0.25) * rng.standard_normal(cylinders)
    strength = unequal[fired.astype(int) % cylinders] * (1 + 0.08 * _wander(rng, n, 30.0))
    pulse = _pulses(rate, n, rng.uniform(0.3, 0.7)) * strength
    open_valve = np.exp(-(fired % 1.0) * rng.uniform(2, 6))
    noise = rng.standard_normal(n) * open_valve * rng.uniform(0.3, 1.0)
    source = pulse / _rms(pulse) + noise
    y = 0.6 * _band(source, None, rng.uniform(150, 350))
    for low, high in ((70, 160), (180, 450), (500, 1100)):
        y += rng.uniform(0.3, 1.0) * _resonance(source, rng.uniform(low, high), rng.uniform(0.3, 0.6) * low)
    y += rng.uniform(0.04, 0.2) * _band(source, 800, rng.uniform(2500, 6000), 1)
    y = np.tanh(rng.uniform(0.4, 1.2) * y / _rms(y))
    return y * _edges(n, _log_uniform(rng, 0.05, 0.3), _log_uniform(rng, 0.1, 0.5))


def _rain(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """The hiss of many far drops and a Poisson crowd of near ones on a random surface."""
    low, high = _log_uniform(rng, 300, 1200), _log_uniform(rng, 4000, 9500)
    slope = rng.uniform(0.3, 1.2)
    hiss = _shaped_noise(rng, n, lambda f, t: (1 + (low / (f + 1)) ** 2) ** -1 * (1 + f / high) ** (-2 * slope))
    hiss = hiss / _rms(hiss) * (1 + 0.12 * _wander(rng, n, 1.5))
    crowd = np.zeros(n)
    for _ in range(3):
        drops = np.zeros(n)
        many = rng.poisson(n / SAMPLE_RATE * _log_uniform(rng, 15, 120))
        drops[rng.integers(0, n, many)] = rng.lognormal(0, 0.7, many) * rng.choice([-1.0, 1.0], many)
        crowd += _resonance(drops, _log_uniform(rng, 1200, 7500), _log_uniform(rng, 600, 2500))
    crowd = crowd / (_rms(crowd) + 1e-12)
    y = hiss + rng.uniform(0.3, 1.2) * crowd
    return y * _edges(n, _log_uniform(rng, 0.05, 0.4), _log_uniform(rng, 0.1, 0.6))


def _wind(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """Noise in a band that rises and widens with each gust, sometimes with a howl."""
    frames = n // 512 + 2
    gust = _wander(rng, frames * 512, _log_uniform(rng, 0.8, 2.5))[::512][:, None].clip(-1.6, 1.8)
    depth = rng.uniform(2.0, 5.0)
    centre = _log_uniform(rng, 180, 600) * 2 ** (rng.uniform(0.3, 0.7) * gust)
    width = rng.uniform(0.5, 1.1)
    howl, howling = _log_uniform(rng, 350, 1100), rng.uniform(0, 2.5) * (rng.random() < 0.5)

    def gain(f: np.ndarray, t: np.ndarray) -> np.ndarray:
        octaves = np.log2((f + 10) / centre)
        body = np.exp(-0.5 * (octaves / width) ** 2) + 0.25 * (1 + f / 150) ** -1.2
        pipe = howling * np.exp(-0.5 * (np.log2((f + 10) / (howl * 2 ** (0.25 * gust))) / 0.07) ** 2)
        return (body + pipe) * 10 ** (depth * gust / 20) * (f > 30)

    return _shaped_noise(rng, n, gain) * _edges(n, _log_uniform(rng, 0.1, 0.4), _log_uniform(rng, 0.15, 0.6))


def _thunder(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """A crack (or none, when far), then rolling claps whose spectrum sinks into a rumble."""
    t = _time(n)
    cutoff, sinks = _log_uniform(rng, 250, 1100), rng.uniform(1.0, 2.6)
    slope = rng.uniform(1.2, 2.0)
    rumble = _shaped_noise(
        rng, n, lambda f, u: (f > 20) * (1 + (f / (60 + cutoff * np.exp(-sinks * u))) ** 2) ** -slope
    )
    claps = int(rng.integers(3, 8))
    roll = np.zeros(n)
    for i, at in enumerate(np.sort(rng.uniform(0, 0.6, claps)) * t[-1]):
        at = 0.0 if i == 0 else at
        since = (t - at).clip(min=0)
        strength = rng.uniform(0.4, 1.0) if i else 1.0
        roll += (t >= at) * strength * (1 - np.exp(-since / 0.012)) * np.exp(-since / rng.uniform(0.12, 0.5))
    y = rumble / _rms(rumble) * (roll + rng.uniform(0.08, 0.3) * np.exp(-t / t[-1]))
    if rng.random() < 0.6:
        crack = np.concatenate([_burst(rng, n, rng.uniform(0.02, 0.07), 250, 5000), [0.0]])
        y += _place(n, [(0, crack * rng.uniform(0.3, 1.2))])
    return np.tanh(0.5 * y) * _edges(n, 0.004, 0.4)


def _footsteps(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """Heel thud then sole scuff on wood, stone or gravel; left and right foot differ."""
    surface = rng.integers(3)
    body = _log_uniform(rng, 60, 140)
    boards = np.array([rng.uniform(150, 260), rng.uniform(300, 500), rng.uniform(600, 1000)])
    scuff_after = rng.uniform(0.05, 0.11)
    feet = rng.uniform(0.85, 1.15, 2)
    parts = []
    length = n - starts[-1]
    for i, start in enumerate(starts):
        strength = 10 ** (rng.uniform(-3, 0) / 20)
        foot = feet[i % 2] * rng.uniform(0.97, 1.03)
        m = min(length, n - start)
        thud = _modes(
            m, np.array([body, 1.7 * body]) * foot, np.array([0.035, 0.02]), np.array([1.0, 0.5]), np.zeros(2)
        )
        parts.append((start, strength * thud))
        if surface == 0:
            wood = _modes(m, boards * foot, np.array([0.03, 0.02, 0.012]), np.array([0.7, 0.6, 0.4]), np.zeros(3))
            parts.append((start, strength * wood))
            heel, scuff = (0.006, 600, 4000, 0.35), (0.02, 300, 3000, 0.18)
        elif surface == 1:
            heel, scuff = (0.005, 1500, 8000, 0.7), (0.018, 1000, 6000, 0.25)
        else:
            heel, scuff = (0.03, 800, 9000, 0.45), (0.05, 1000, 9500, 0.4)
        for after, (decay, low, high, level) in ((0.0, heel), (scuff_after, scuff)):
            late = round(after * SAMPLE_RATE)
            if late >= m:
                continue
            noise = _burst(rng, m - late, decay * rng.uniform(0.8, 1.2), low, high)
            if surface == 2:  # stones that grind one by one
                noise = noise * (rng.random(len(noise) // 60 + 1) ** 3).repeat(60)[: len(noise)] * 2
            parts.append((start + late, strength * level * rng.uniform(0.7, 1.3) * noise))
    return _place(n, parts)


def _knocks(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """Knuckles on one door: short wooden modes with a contact click; every knock a little different."""
    modes = _log_uniform(rng, 140, 330) * np.array([1.0, 1.7, 2.4, 3.6, 5.3]) * (1 + 0.06 * rng.standard_normal(5))
    decay = _log_uniform(rng, 0.018, 0.045) * np.array([1.0, 0.8, 0.6, 0.4, 0.3])
    level = np.array([1.0, 0.9, 0.7, 0.5, 0.35]) * rng.uniform(0.5, 1.3, 5)
    click = rng.uniform(0.15, 0.7)
    parts = []
    for start in starts:
        strength = 10 ** (rng.uniform(-3, 0) / 20)
        tone = _modes(
            n - start, modes * rng.uniform(0.985, 1.015), decay, level * rng.uniform(0.85, 1.15, 5), np.zeros(5)
        )
        contact = _burst(rng, n - start, 0.004, 700, rng.uniform(3000, 6000)) * click
        parts += [(start, strength * tone), (start, strength * contact)]
    return _place(n, parts)


def _bird(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """Whistled chirps: one contour (up, down, arch, trill) per bird, repeated with small changes."""
    length = n - starts[-1]
    u = np.linspace(0, 1, length)
    kind = rng.integers(4)
    span = rng.uniform(0.15, 0.45)
    trill = 0.5 * np.sin(2 * np.pi * rng.uniform(15, 30) * _time(length))
    contour = [u - 0.5, 0.5 - u, np.sin(np.pi * u) - 0.6, trill]
    overtone = np.array([1.0, rng.uniform(0.02, 0.25), rng.uniform(0, 0.05)])
    flutter = rng.uniform(0, 0.6)
    parts = []
    for start in starts:
        octaves = span * contour[kind] * rng.uniform(0.85, 1.15) + rng.uniform(-0.04, 0.04)
        chirp = _harmonics(hz * 2**octaves, length, overtone)
        chirp *= 1 - flutter * (0.5 + 0.5 * np.cos(2 * np.pi * rng.uniform(25, 45) * _time(length)))
        chirp *= np.sin(np.pi * u) ** rng.uniform(0.4, 0.8) * 10 ** (rng.uniform(-3, 0) / 20)
        parts.append((start, chirp))
    y = _place(n, parts)
    return y + _band(np.abs(y) * rng.standard_normal(n), 1500, None) * rng.uniform(0.02, 0.08)


def _dog(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """Barks: a rough voice with an arched pitch through throat and mouth resonances that scale with the dog."""
    length = n - starts[-1]
    size = (hz / 350) ** 0.35 * rng.uniform(0.9, 1.1)
    formants = np.array([rng.uniform(550, 800), rng.uniform(1150, 1700), rng.uniform(2300, 3200)]) * size
    rough = rng.uniform(0.05, 0.4)
    arch = rng.uniform(0.25, 0.55)
    decay = rng.uniform(0.25, 0.45) * length / SAMPLE_RATE
    u = np.linspace(0, 1, length)
    parts = []
    for start in starts:
        octaves = arch * (np.sin(np.pi * u ** rng.uniform(0.5, 0.8)) - 0.64) + 0.03 * _wander(rng, length, 60.0)
        voice = _pulses(hz * 2**octaves * rng.uniform(0.96, 1.04), length, rng.uniform(0.6, 1.0))
        voice = voice / _rms(voice) * (1 + rough * _wander(rng, length, 90.0))
        voice = voice + rng.uniform(0.1, 0.5) * rng.standard_normal(length)
        bark = 0.25 * voice
        for i, formant in enumerate(formants):
            bark = bark + (1.0, 0.8, 0.4)[i] * _resonance(
                voice, formant * rng.uniform(0.96, 1.04), 90.0 + 0.1 * formant
            )
        t = _time(length)
        bark = np.tanh(1.5 * bark / _rms(bark)) * (1 - np.exp(-t / 0.008)) * np.exp(-((t / decay) ** 1.5))
        parts.append((start, bark * _edges(length, 0.004, 0.03) * 10 ** (rng.uniform(-3, 0) / 20)))
    return _band(_place(n, parts), 120, None)


def _clock(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """Tick and tock at a steady 1.5 to 5 a second: two or three metal clicks each, on a small wooden case."""
    period = 1 / _log_uniform(rng, 1.5, 5.0)
    metal = np.sort(np.exp(rng.uniform(np.log(1800), np.log(8500), 4)))
    case = rng.uniform(350, 900)
    uneven = rng.uniform(-0.06, 0.06) * period
    tock, bright = rng.uniform(0.75, 0.95), rng.uniform(0.3, 1.0)
    clicks = [
        (0.0, 1.0),
        (rng.uniform(0.006, 0.014), rng.uniform(0.3, 0.8)),
        (rng.uniform(0.018, 0.03), rng.uniform(0, 0.4)),
    ]
    decay = rng.uniform(0.002, 0.008, 5)
    decay[4] = rng.uniform(0.008, 0.02)
    parts = []
    for i in range(int(n / SAMPLE_RATE / period) + 1):
        scale = tock if i % 2 else 1.0
        at = i * period + (uneven if i % 2 else 0.0)
        for after, level in clicks:
            start = round((at + after) * SAMPLE_RATE)
            if start < n - 200:
                strength = np.append(bright * rng.uniform(0.6, 1.0, 4), 0.8) * level * rng.uniform(0.85, 1.0)
                parts.append((start, _modes(n - start, np.append(metal, case) * scale, decay, strength, np.zeros(5))))
    return _place(n, parts)


def _alarm(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """Electronic beeps with hard edges: square-like piezo tone, sometimes split into a quick double or two notes."""
    length = n - starts[-1]
    k = np.arange(1, 12)
    amplitudes = np.where(k % 2 == 1, 1.0, rng.uniform(0.0, 0.5)) * k ** -rng.uniform(0.4, 1.0)
    t = _time(length)
    kind = rng.integers(3)
    pitch = np.full(length, hz)
    gate = np.ones(length)
    if kind == 1:
        pitch = hz * np.where(t < t[-1] / 2, 1.0, rng.choice([0.8, 1.25])) * 0.98
    elif kind == 2:
        gate = 0.5 + 0.5 * np.tanh(8 * np.sin(2 * np.pi * rng.uniform(18, 30) * t + 1.0))
    beep = _harmonics(pitch, length, amplitudes) * gate * _edges(length, 0.003, 0.006)
    y = _place(n, [(start, beep) for start in starts])
    return y + rng.uniform(0.3, 1.5) * _resonance(y, rng.uniform(2000, 4500), 500)


def _drips(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """Drops into water: a faint impact, then a bubble whose tone rises as it shrinks; sometimes a second bubble."""
    parts = []
    rise, decay = rng.uniform(1.0, 5.0), _log_uniform(rng, 0.015, 0.05)
    second = rng.random() < 0.5
    hollow = hz * rng.uniform(0.45, 0.7)
    for start in starts:
        strength = 10 ** (rng.uniform(-3, 0) / 20)
        m = min(n - start, round(0.35 * SAMPLE_RATE))
        t = _time(m)
        for after, ratio, level in ((0.0, 1.0, 1.0), (rng.uniform(0.03, 0.07), rng.uniform(1.1, 1.5), 0.5 * second)):
            late = round(after * SAMPLE_RATE)
            s = t[: max(0, m - late)]
            tone = hz * ratio * rng.uniform(0.95, 1.05) * (1 + rise * s.clip(max=0.1))
            bubble = np.sin(2 * np.pi * np.cumsum(tone) / SAMPLE_RATE) * (1 - np.exp(-s / 0.0015)) * np.exp(-s / decay)
            parts.append((start + late, strength * level * bubble))
        parts.append((start, strength * _burst(rng, m, 0.003, 1500, 9000) * rng.uniform(0.05, 0.3)))
    y = _place(n, parts)
    return y + rng.uniform(0, 0.5) * _resonance(y, hollow, 40)


_FORMANTS = {  # Hz, adult male averages (Peterson and Barney 1952, rounded); the third formant and a fixed fourth
    "a": (730, 1090, 2440, 3400), "e": (530, 1840, 2480, 3500), "i": (270, 2290, 3010, 3600),
    "o": (570, 840, 2410, 3300), "u": (300, 870, 2240, 3300),
}  # fmt: skip


def _voice(rng: np.random.Generator, n: int, hz: float, starts: list[int]) -> np.ndarray:
    """A held vowel (a, e, i, o, u): glottal pulses with vibrato and jitter, breath, four formants."""
    t = _time(n)
    tract = (hz / 130) ** 0.18 * rng.uniform(0.94, 1.08)
    formants = np.array(_FORMANTS[str(rng.choice(list(_FORMANTS)))]) * tract * rng.uniform(0.95, 1.05, 4)
    formants[0] = max(formants[0], 1.05 * hz)
    vibrato = rng.uniform(0, 0.3) * np.sin(2 * np.pi * (rng.uniform(4.5, 6.5) * t + rng.random()))
    vibrato *= (t / 0.4).clip(max=1)
    drift = rng.uniform(-0.8, 0.8) * np.linspace(-1, 1, n) + 0.12 * _wander(rng, n, 25.0)
    pitch = hz * 2 ** ((vibrato + drift) / 12)
    source = _pulses(pitch, n, rng.uniform(0.7, 1.1))
    source = source / _rms(source) + rng.uniform(0.01, 0.12) * rng.standard_normal(n)
    y = 0.03 * source
    for formant, level in zip(formants, (1.0, rng.uniform(0.35, 0.8), rng.uniform(0.15, 0.4), 0.12), strict=True):
        y = y + level * _resonance(source, formant, 50 + 0.04 * formant)
    swell = 1 + 0.08 * _wander(rng, n, 3.0)
    return y * swell * _edges(n, _log_uniform(rng, 0.03, 0.12), _log_uniform(rng, 0.06, 0.25))


SOUNDS: dict[str, Sound] = {
    "tone": Sound(_tone, (0.6, 3.0), low=(220, 400), high=(800, 1500)),
    "sweep": Sound(_sweep, (0.6, 2.5), low=(350, 550), high=(1300, 2200)),
    "bell": Sound(_bell, (0.38, 1.2), low=(300, 480), high=(850, 1450), spacing=(0.39, 1.0)),
    "siren": Sound(_siren, (1.5, 4.0), low=(330, 520), high=(950, 1500)),
    "engine": Sound(_engine, (1.2, 4.0), low=(28, 45), high=(85, 140)),
    "rain": Sound(_rain, (1.2, 4.0)),
    "wind": Sound(_wind, (1.5, 4.0)),
    "footsteps": Sound(_footsteps, (0.2, 0.35), spacing=(0.39, 0.7)),
    "knocks": Sound(_knocks, (0.12, 0.25), spacing=(0.2, 0.38)),
    "bird": Sound(_bird, (0.08, 0.2), low=(1900, 2700), high=(4300, 6500), spacing=(0.2, 0.4)),
    "dog": Sound(_dog, (0.18, 0.32), low=(150, 260), high=(520, 850), spacing=(0.36, 0.7)),
    "clock": Sound(_clock, (1.6, 4.0)),
    "alarm": Sound(_alarm, (0.12, 0.3), low=(700, 1050), high=(1900, 3000), spacing=(0.36, 0.6)),
    "thunder": Sound(_thunder, (1.5, 4.0)),
    "drips": Sound(_drips, (0.2, 0.35), low=(450, 800), high=(1600, 2800), spacing=(0.39, 0.8)),
    "voice": Sound(_voice, (0.5, 2.5), low=(85, 140), high=(230, 400)),
}
"""The sixteen classes, in a fixed order."""
