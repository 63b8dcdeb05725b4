"""DNSMOS: opinion scores of speech predicted from the decoded audio alone, by the networks of the DNS Challenge.

Two networks at 16 kHz: P.835 rates signal, background and overall quality (Reddy et al., "DNSMOS P.835: a
non-intrusive perceptual objective speech quality metric to evaluate noise suppressors", ICASSP 2022), P.808 overall
quality (Reddy et al., ICASSP 2021). Both were trained on noisy conversational speech and what noise suppressors make of
it, and see windows of 9.01 s, one a second, whose scores are averaged.

They never see the original: fluent speech with other words scores well, and the original itself does not get 5. Read
them against the row of the original. The computation is that of ``speechmos.dnsmos.run`` (and of the challenge's script
it was taken from) without librosa, quirks included, since published figures have them:

* A shorter clip is doubled until it has 9.01 s: a clip of 5 s becomes one window with a seam, one of 4 s seven windows.
* 9.01 s are counted in floating point, which makes 21 of the windows (those that begin 7 to 23 s and 119 to 122 s from
  the start) one sample short, and these are passed over: what is heard of a clip of 16 to 33 s are its first 15.01 s.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.audio import Clip, mono, resample
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.metrics.alignment import require_sound
from evalkit.registry import metric
from evalkit.weights import file_sha256, find_weights, root

DNSMOS = ("dnsmos_ovr", "dnsmos_sig", "dnsmos_bak", "dnsmos_p808")

RATE = 16000
WINDOW = 144160
"""Samples that the P.835 network sees, 9.01 s; the P.808 network is given the first 144,000."""

MIN_SECONDS = 4.0
"""Of 8 clips of 10 s (4 originals, 4 decoded by EnCodec at 1.5 kbps) excerpts cut at pauses and doubled until they fill
a window got, against the whole clip, -0.33 (2 s), -0.29 (3 s), -0.06 (4 s) and -0.05 (6 s) on the overall scale, and
-0.4 to -0.2 by P.808. What is shorter than 4 s is scored for its seams."""

P835, P808 = "sig_bak_ovr.onnx", "model_v8.onnx"
SHA256 = {
    P835: "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
    P808: "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
}

POLYNOMIALS = {
    "dnsmos_ovr": (-0.06766283, 1.11546468, 0.04602535),
    "dnsmos_sig": (-0.08397278, 1.22083953, 0.0052439),
    "dnsmos_bak": (-0.13166888, 1.60915514, -0.39604546),
}
"""From the network's output to the scale of the listening test, highest power first; from the challenge's script."""

FFT, HOP, MELS = 321, 160, 120
"""Of the P.808 network's log-mel spectrogram, in samples and bands. 321 is odd in the original as well."""


def windows(samples: np.ndarray) -> list[np.ndarray]:
    """The windows ``[144160]`` of a signal ``[samples]`` at 16 kHz that the reference implementation takes.

    >>> [len(windows(np.ones(n * 16000))) for n in (4, 5, 10, 12, 16, 30, 40)]
    [7, 1, 1, 3, 7, 7, 14]

    Raises:
        NotApplicable: no samples (speechmos would double them for ever).
    """
    if not len(samples):
        raise NotApplicable("no audio")
    while len(samples) < WINDOW:
        samples = np.concatenate([samples, samples])
    count = int(len(samples) // RATE - 9.01) + 1
    whole = (i for i in range(count) if int((i + 9.01) * RATE) - i * RATE == WINDOW)  # see the module's docstring
    return [samples[i * RATE : i * RATE + WINDOW] for i in whole]


def log_mel(samples: np.ndarray) -> np.ndarray:
    """The P.808 network's input ``[frames, 120]`` of a signal at 16 kHz: dB below its largest value, over 40, plus 1.

    As ``librosa.feature.melspectrogram(n_fft=321, hop_length=160, n_mels=120)`` and ``power_to_db(ref=max)``: periodic
    Hann window, zeros around the signal, Slaney's mel scale and area, values more than 80 dB below the largest raised.
    """
    x = np.pad(samples.astype(np.float64), FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(x, FFT)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)
    power = np.square(np.abs(np.fft.rfft(frames * hann, axis=1)))
    mel = np.maximum(power @ mel_filters().T, 1e-10)
    db = 10 * np.log10(mel / mel.max())
    return (np.maximum(db, -80.0) + 40) / 40


@functools.cache
def mel_filters() -> np.ndarray:
    """Triangles ``[120, 161]`` between 0 and 8 kHz, equally wide on Slaney's mel scale, of equal area.

    The scale is linear below 1 kHz (200/3 Hz a mel) and logarithmic above (27 mels from 1 to 6.4 kHz).
    """
    bend, step = 15.0, np.log(6.4) / 27  # mel of 1 kHz; natural logarithm of frequency a mel above it
    top = bend + np.log(8.0) / step
    mel = np.linspace(0, top, MELS + 2)
    hz = np.where(mel < bend, mel * 200 / 3, 1000 * np.exp(step * (mel - bend)))
    bins = np.arange(FFT // 2 + 1) * RATE / FFT
    low, centre, high = (hz[i : i + MELS, None] for i in range(3))
    triangles = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    return 2 / (high - low) * triangles


def p835(estimate: Clip) -> Mapping[str, float]:
    """``dnsmos_ovr``, ``dnsmos_sig`` and ``dnsmos_bak`` of a clip; remembered on it.

    Raises:
        NotApplicable: silent; package or weights absent.
        EvalkitError: other weights than expected.
    """
    samples, network = _samples(estimate), _network(P835)

    def predict() -> Mapping[str, float]:
        inputs = (w[None] for w in windows(samples))  # one by one: a batch is no faster
        sig, bak, ovr = _outputs(network, inputs, samples).T
        raw = {"dnsmos_ovr": ovr, "dnsmos_sig": sig, "dnsmos_bak": bak}
        return {name: float(np.mean(np.polyval(POLYNOMIALS[name], raw[name]))) for name in raw}

    return estimate.memo("dnsmos-p835", predict)


def _outputs(network: Any, inputs: Iterable[np.ndarray], samples: np.ndarray) -> np.ndarray:
    rows = np.array([network.run(None, {"input_1": x})[0][0] for x in inputs], np.float64)
    if not np.isfinite(rows).all():
        raise NotApplicable(f"samples reach {np.abs(samples).max():.3g} times full scale: DNSMOS gives no number")
    return rows


def _samples(clip: Clip) -> np.ndarray:
    require_sound(mono(clip), "estimate" if clip.channels == 1 else "mean of the estimate's channels")
    return clip.memo(("mono", RATE), lambda: resample(mono(clip), RATE).samples[0])


def _network(name: str) -> Any:
    try:
        import onnxruntime  # noqa: F401 - asked for before the weights, whose absence has another remedy
    except ImportError as error:
        raise NotApplicable(f"onnxruntime is not installed: pip install 'evalkit-audio[speech]' ({error})") from error
    return _session(_weights(name, root()))


@functools.cache
def _session(path: Path) -> Any:
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # workers run side by side
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@functools.cache
def _weights(name: str, base: Path | None) -> Path:
    """The network's file: under the weights root, else in the speechmos package."""
    packaged = _packaged(name)
    if packaged is None or (base is not None and (base / "dnsmos/DNSMOS" / name).exists()):
        source = "github.com/microsoft/DNS-Challenge, folder DNSMOS/DNSMOS; or pip install speechmos"
        return find_weights(f"dnsmos/DNSMOS/{name}", source=source, sha256=SHA256[name])
    found = file_sha256(packaged)
    if found != SHA256[name]:
        raise EvalkitError(
            f"{packaged}: not the expected weights (sha256 {found[:12]}, expected {SHA256[name][:12]}): "
            "install speechmos 0.0.1.1, or put the expected file under EVALKIT_WEIGHTS"
        )
    return packaged


def _packaged(name: str) -> Path | None:
    from importlib.util import find_spec

    spec = find_spec("speechmos")  # found without importing it, which would import librosa
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "dnsmos_models" / name
    return path if path.is_file() else None


def _identity() -> dict[str, bool]:
    """Whether the package has the networks: part of the identity, as the presence of weights is."""
    return {name: _packaged(name) is not None for name in SHA256}


_SHARED: dict[str, Any] = {
    "unit": "MOS",
    "direction": "higher",
    "group": "dnsmos",
    "domains": ("speech",),
    "min_sample_rate": RATE,
    "min_seconds": MIN_SECONDS,
    "short_clips": "doubled until they have 9.01 s, as the reference implementation does: seams are heard as speech",
    "requires": ("onnxruntime",),
    "extra_identity": _identity,
}
_P835: dict[str, Any] = {**_SHARED, "weights": (f"dnsmos/DNSMOS/{P835}",), "invariant_to": ("polarity",)}
_SEEN = ("noise", "bit_depth", "packet_loss")
"""What P.835 was found to hear; clipping at a tenth of the peak, a low-pass at 2 kHz and 4 semitones it hardly does."""


@metric("dnsmos_ovr", worsens_with=_SEEN, **_P835)
def dnsmos_ovr(estimate: Clip) -> float:
    """Overall quality of speech predicted by DNSMOS P.835, 16 kHz, about 1 to 4.5; no reference.

    See the module and `p835`. Channels are averaged. Of the three values the one to rank by.

    Raises:
        NotApplicable: silent; package or weights absent.
    """
    return p835(estimate)["dnsmos_ovr"]


@metric("dnsmos_sig", worsens_with=_SEEN, **_P835)
def dnsmos_sig(estimate: Clip) -> float:
    """Quality of the speech signal predicted by DNSMOS P.835, 16 kHz, about 1 to 4.5; no reference.

    What is left of the speech itself, noise in the background aside.

    Raises:
        NotApplicable: silent; package or weights absent.
    """
    return p835(estimate)["dnsmos_sig"]


@metric("dnsmos_bak", worsens_with=("noise",), **_P835)
def dnsmos_bak(estimate: Clip) -> float:
    """Freedom from background noise predicted by DNSMOS P.835, 16 kHz, about 1 to 4.5; no reference.

    High for any quiet background: it says nothing of the speech.

    Raises:
        NotApplicable: silent; package or weights absent.
    """
    return p835(estimate)["dnsmos_bak"]


@metric(
    "dnsmos_p808",
    weights=(f"dnsmos/DNSMOS/{P808}",),
    worsens_with=("noise", "lowpass", "clipping", "bit_depth", "packet_loss"),
    invariant_to=("gain", "polarity"),
    **_SHARED,
)
def dnsmos_p808(estimate: Clip) -> float:
    """Overall quality of speech predicted by DNSMOS P.808 (``model_v8``), 16 kHz, about 1 to 4.5; no reference.

    From a log-mel spectrogram relative to its largest value: level does not count. Channels are averaged.

    Raises:
        NotApplicable: silent; package or weights absent.
    """
    samples, network = _samples(estimate), _network(P808)
    inputs = (log_mel(w[:-HOP]).astype(np.float32)[None] for w in windows(samples))
    return float(np.mean(_outputs(network, inputs, samples)))
