"""Predicted opinion scores whose networks are fetched apart: NISQA, UTMOS, SCOREQ, Audiobox Aesthetics, SQUIM.

Each is a network trained on listeners' ratings (SQUIM's three: on computed measures). None sees the original unless its
docstring says so: what sounds well and is something else scores well. Each is given the mean of the channels.
None of the weights could be had when this was written: every adapter was run on random weights of the real
architecture, or of a smaller one of the same code (docs/mos.md says which), and none on the published weights.

Silent estimates are n/a: nobody rates silence, and SQUIM divides by its power.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.audio import Clip, mono, resample
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.metrics.alignment import require_sound
from evalkit.registry import metric

NISQA = ("nisqa_mos", "nisqa_noisiness", "nisqa_discontinuity", "nisqa_coloration", "nisqa_loudness")
UTMOS = ("utmos",)
SCOREQ = ("scoreq_natural", "scoreq_synthetic", "scoreq_natural_ref", "scoreq_synthetic_ref")
AUDIOBOX = ("audiobox_ce", "audiobox_cu", "audiobox_pc", "audiobox_pq")
SQUIM = ("squim_stoi", "squim_pesq", "squim_si_sdr", "squim_mos")
MOS = (*NISQA, *UTMOS, *SCOREQ, *AUDIOBOX, *SQUIM)

NISQA_WEIGHTS = "nisqa/nisqa.tar"
UTMOS_HUB = "Blinorot/UTMOS-PyTorch"
SCOREQ_WEIGHTS = {
    "natural": "scoreq/adapt_nr_telephone.onnx",
    "synthetic": "scoreq/adapt_nr_synthetic.onnx",
    "natural_ref": "scoreq/fixed_nmr_telephone.onnx",
    "synthetic_ref": "scoreq/fixed_nmr_synthetic.onnx",
}
AUDIOBOX_HUB = "facebook/audiobox-aesthetics"
SQUIM_OBJECTIVE = "torchaudio/squim_objective_dns2020.pth"
SQUIM_SUBJECTIVE = "torchaudio/squim_subjective_bvcc_daps.pth"

_SPEECH_16K: dict[str, Any] = {
    "group": "mos",
    "domains": ("speech",),
    "min_sample_rate": 16000,
    "min_seconds": 1.0,
    "short_clips": "taken whole; the ratings it was trained on are of utterances of several seconds",
}


def _at(clip: Clip, sample_rate: int) -> np.ndarray:
    """Mono float32 ``[samples]`` at a rate, for a clip with sound; remembered, since several models share 16 kHz."""
    require_sound(clip, "estimate")
    return clip.memo(("mono", sample_rate), lambda: resample(mono(clip), sample_rate).samples[0])


# -- NISQA ------------------------------------------------------------------------------------------------------------

_NISQA_SHARED: dict[str, Any] = {
    "unit": "MOS",
    "direction": "higher",
    "group": "mos",
    "domains": ("speech",),
    "min_sample_rate": 8000,
    "min_seconds": 1.0,
    "max_seconds": 52.0,
    "short_clips": "taken whole; the rated samples it was trained on have 6 to 12 s",
    "requires": ("torchmetrics", "librosa", "torch"),
    "weights": (NISQA_WEIGHTS,),
}


def nisqa(estimate: Clip) -> Mapping[str, float]:
    """The five predictions of NISQA v2.0 by name (`NISQA`), at 48 kHz. Remembered on the clip.

    By torchmetrics' copy of the model, given the authors' file ``nisqa.tar``. Mel bands up to 20 kHz: audio of a lower
    rate is judged as what it is to a listener, dull.

    Raises:
        NotApplicable: package or weights absent; silent.
        EvalkitError: the file is not NISQA's.
    """

    def predict() -> Mapping[str, float]:
        import torch

        samples = _at(estimate, 48000)
        found = _nisqa(_file(NISQA_WEIGHTS, "weights/nisqa.tar of github.com/gabrielmittag/NISQA, CC BY-NC-SA 4.0"))(
            torch.from_numpy(samples), 48000
        )
        return dict(zip(NISQA, map(float, found), strict=True))

    return estimate.memo("nisqa", predict)


@functools.cache
def _nisqa(path: Path) -> Any:
    module = _package(
        "torchmetrics.functional.audio.nisqa", "torchmetrics", "pip install torchmetrics librosa requests"
    )
    module.NISQA_DIR = str(path.parent)  # where it looks before it would download
    module._load_nisqa_model.cache_clear()
    try:
        module._load_nisqa_model()
    except Exception as error:
        raise EvalkitError(f"{path}: not the weights of NISQA v2.0 ({type(error).__name__}: {error})") from error
    return module.non_intrusive_speech_quality_assessment


@metric("nisqa_mos", **_NISQA_SHARED)
def nisqa_mos(estimate: Clip) -> float:
    """Overall quality of speech by NISQA v2.0, 48 kHz, about 1 to 5.

    Mittag et al., Interspeech 2021. A linear output: not bounded to 1..5. See `nisqa`.
    """
    return nisqa(estimate)["nisqa_mos"]


@metric("nisqa_noisiness", **_NISQA_SHARED)
def nisqa_noisiness(estimate: Clip) -> float:
    """Freedom from noise by NISQA v2.0, about 1 (noisy) to 5."""
    return nisqa(estimate)["nisqa_noisiness"]


@metric("nisqa_discontinuity", **_NISQA_SHARED)
def nisqa_discontinuity(estimate: Clip) -> float:
    """Freedom from interruptions by NISQA v2.0, about 1 (broken up) to 5."""
    return nisqa(estimate)["nisqa_discontinuity"]


@metric("nisqa_coloration", **_NISQA_SHARED)
def nisqa_coloration(estimate: Clip) -> float:
    """Freedom from colouration by NISQA v2.0, about 1 (dull, distorted) to 5."""
    return nisqa(estimate)["nisqa_coloration"]


@metric("nisqa_loudness", **_NISQA_SHARED)
def nisqa_loudness(estimate: Clip) -> float:
    """Fitness of the level by NISQA v2.0, about 1 to 5; it moves with the clip's gain."""
    return nisqa(estimate)["nisqa_loudness"]


# -- UTMOS ------------------------------------------------------------------------------------------------------------


@metric(
    "utmos",
    unit="MOS",
    direction="higher",
    requires=("utmos-pytorch", "torch"),
    weights=(UTMOS_HUB,),
    trained_on=("librispeech",),  # its wav2vec 2.0, without labels
    **_SPEECH_16K,
)
def utmos(estimate: Clip) -> float:
    """Naturalness of speech by UTMOS (strong learner), 16 kHz, about 1 to 5.

    Saeki et al., Interspeech 2022; trained on the ratings of synthetic speech of the VoiceMOS Challenge 2022. By the
    package utmos-pytorch, a port without fairseq, and its converted weights: listener 288, domain 0, the mean over
    frames times 2 plus 3, as the authors' demonstration has it. Not bounded to 1..5.

    Raises:
        NotApplicable: package or weights absent; silent.
        EvalkitError: the weights are of another model.
    """
    import torch

    samples = _at(estimate, 16000)
    with torch.inference_mode():
        return float(_utmos(_hub_file(UTMOS_HUB, "utmos_state_dict.pt")).score(torch.from_numpy(samples)))


@functools.cache
def _utmos(path: Path) -> Any:
    utmos_torch = _package("utmos_pytorch.utmos_torch", "utmos-pytorch", "pip install utmos-pytorch")
    # The package passes over what a file lacks and would answer with random weights: check first.
    _check_keys(utmos_torch.UTMOSModel().state_dict().keys(), path, "UTMOS")
    return utmos_torch.UTMOSScoreTorch(str(path))


def _check_keys(wanted: Any, path: Path, what: str) -> None:
    import torch

    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        absent = sorted(set(wanted) - set(held))
    except Exception as error:
        raise EvalkitError(f"{path}: no state dict that can be read ({error}): fetch the weights of {what}") from error
    if absent:
        raise EvalkitError(f"{path}: not the weights of {what}: {absent[0]} and {len(absent) - 1} others are absent")


# -- SCOREQ -----------------------------------------------------------------------------------------------------------

_SCOREQ_SHARED: dict[str, Any] = _SPEECH_16K | {
    "requires": ("onnxruntime",),
    "trained_on": ("librispeech",),  # its wav2vec 2.0, without labels
}


@metric("scoreq_natural", unit="MOS", direction="higher", weights=(SCOREQ_WEIGHTS["natural"],), **_SCOREQ_SHARED)
def scoreq_natural(estimate: Clip) -> float:
    """Quality of coded or transmitted speech by SCOREQ, without the original, 16 kHz, about 1 to 5.

    Ragano et al., NeurIPS 2024 (arXiv 2410.06675): the "natural" domain, no-reference mode, by the authors' ONNX file.
    Padded with zeros at the end to a multiple of 320 samples, as theirs. Not bounded to 1..5.

    Raises:
        NotApplicable: package or weights absent; silent.
        EvalkitError: the file is another network.
    """
    return float(_scoreq("natural", estimate)[0])


@metric("scoreq_synthetic", unit="MOS", direction="higher", weights=(SCOREQ_WEIGHTS["synthetic"],), **_SCOREQ_SHARED)
def scoreq_synthetic(estimate: Clip) -> float:
    """Quality of machine-made speech by SCOREQ, without the original, 16 kHz, about 1 to 5.

    The "synthetic" domain of `scoreq_natural`: for decoders that make speech up rather than code it.
    """
    return float(_scoreq("synthetic", estimate)[0])


@metric(
    "scoreq_natural_ref",
    unit="1",
    direction="lower",
    range=(0, 2),
    weights=(SCOREQ_WEIGHTS["natural_ref"],),
    **_SCOREQ_SHARED,
)
def scoreq_natural_ref(reference: Clip, estimate: Clip) -> float:
    """Distance of SCOREQ's embeddings of decoded speech and of the original ("natural" domain); 0 for a copy.

    Euclidean distance of two vectors of length 1: mode "ref" of the authors' code. It takes any clean utterance as the
    reference; here it is the original.
    """
    return _scoreq_distance("natural_ref", reference, estimate)


@metric(
    "scoreq_synthetic_ref",
    unit="1",
    direction="lower",
    range=(0, 2),
    weights=(SCOREQ_WEIGHTS["synthetic_ref"],),
    **_SCOREQ_SHARED,
)
def scoreq_synthetic_ref(reference: Clip, estimate: Clip) -> float:
    """Distance of SCOREQ's embeddings of decoded speech and of the original ("synthetic" domain); 0 for a copy."""
    return _scoreq_distance("synthetic_ref", reference, estimate)


def _scoreq_distance(which: str, reference: Clip, estimate: Clip) -> float:
    require_sound(reference, "reference")
    a, b = (_scoreq(which, clip).astype(np.float64) for clip in (estimate, reference))
    return min(2.0, float(np.linalg.norm(a - b)))  # float32 rounding of the vectors' lengths


def _scoreq(which: str, clip: Clip) -> np.ndarray:
    """What the network gives for a clip: ``[1]`` without a reference, ``[dimension]`` with one."""
    samples = _at(clip, 16000)
    path = _file(SCOREQ_WEIGHTS[which], "ONNX models of SCOREQ, zenodo.org/records/15739280")
    padded = np.pad(samples, (0, -len(samples) % 320))[None]

    def run() -> np.ndarray:
        session = _session(path)
        found = np.asarray(session.run(None, {session.get_inputs()[0].name: padded})[0]).ravel()
        if (found.size == 1) == which.endswith("_ref"):
            raise EvalkitError(f"{path}: gives {found.size} numbers a clip: not the SCOREQ network of that name")
        return found

    return clip.memo(("scoreq", which), run)


@functools.cache
def _session(path: Path) -> Any:
    onnxruntime = _package("onnxruntime", "onnxruntime", "pip install 'evalkit-audio[speech]'")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # runs side by side in worker processes
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EvalkitError(f"{path}: no ONNX network that can be read ({error}): fetch it again") from error


# -- Audiobox Aesthetics ----------------------------------------------------------------------------------------------

AUDIOBOX_WINDOW = 10 * 16000
_AUDIOBOX_SHARED: dict[str, Any] = {
    "unit": "1",
    "group": "mos",
    "min_sample_rate": 16000,
    "min_seconds": 0.5,
    "short_clips": "padded with zeros to its window of 10 s; the padding is masked",
    "requires": ("audiobox_aesthetics", "torch"),
    "weights": (AUDIOBOX_HUB,),
}


def audiobox(estimate: Clip) -> Mapping[str, float]:
    """The four axes of Audiobox Aesthetics by name (`AUDIOBOX`), at 16 kHz. Remembered on the clip.

    Windows of 10 s without overlap, the last one padded and masked; the mean over windows, weighted by their length, as
    the authors' `AesPredictor` does it. Their package is used for the network alone (its predictor needs torchaudio).

    Raises:
        NotApplicable: package or weights absent; silent.
        EvalkitError: the folder is not that model.
    """

    def predict() -> Mapping[str, float]:
        import torch

        from evalkit.weights import hub_folder

        samples = torch.from_numpy(_at(estimate, 16000))
        model = _audiobox(hub_folder(AUDIOBOX_HUB))
        sums, total = dict.fromkeys(AUDIOBOX, 0.0), 0
        for part in samples.split(AUDIOBOX_WINDOW):
            mask = torch.arange(AUDIOBOX_WINDOW) < len(part)
            wav = torch.nn.functional.pad(part, (0, AUDIOBOX_WINDOW - len(part)))
            with torch.inference_mode():
                found = model({"wav": wav[None, None], "mask": mask[None, None]})
            for name in AUDIOBOX:
                axis = name.removeprefix("audiobox_").upper()
                scale = model.target_transform[axis]
                sums[name] += (float(found[axis]) * scale["std"] + scale["mean"]) * len(part)
            total += len(part)
        return {name: value / total for name, value in sums.items()}

    return estimate.memo("audiobox", predict)


@functools.cache
def _audiobox(folder: Path) -> Any:
    aes = _package(
        "audiobox_aesthetics.model.aes",
        "audiobox_aesthetics",
        "pip install --no-deps audiobox_aesthetics (of its requirements torchaudio and some more are not used here)",
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces where it loads from
            model = aes.AesMultiOutput.from_pretrained(str(folder), local_files_only=True, strict=True)
        if not {"CE", "CU", "PC", "PQ"} <= set(model.target_transform or {}):
            raise EvalkitError("its configuration has no target_transform of the four axes")
    except Exception as error:
        raise EvalkitError(f"{folder}: not {AUDIOBOX_HUB} ({type(error).__name__}: {error}): fetch it again") from error
    return model.eval()


@metric("audiobox_pq", direction="higher", **_AUDIOBOX_SHARED)
def audiobox_pq(estimate: Clip) -> float:
    """Production quality by Audiobox Aesthetics: clarity, fidelity, balance; about 1 to 10. Speech, music and sound.

    Tjandra et al., arXiv 2502.05139. A linear output, not bounded. See `audiobox`.
    """
    return audiobox(estimate)["audiobox_pq"]


@metric("audiobox_pc", direction="none", **_AUDIOBOX_SHARED)
def audiobox_pc(estimate: Clip) -> float:
    """Production complexity by Audiobox Aesthetics: how many components; about 1 to 10, neither end better.

    To be compared with the original's.
    """
    return audiobox(estimate)["audiobox_pc"]


@metric("audiobox_ce", direction="higher", **_AUDIOBOX_SHARED)
def audiobox_ce(estimate: Clip) -> float:
    """Content enjoyment by Audiobox Aesthetics, about 1 to 10; it speaks of the content as much as of the decoder."""
    return audiobox(estimate)["audiobox_ce"]


@metric("audiobox_cu", direction="higher", **_AUDIOBOX_SHARED)
def audiobox_cu(estimate: Clip) -> float:
    """Content usefulness by Audiobox Aesthetics: as source material for others; about 1 to 10."""
    return audiobox(estimate)["audiobox_cu"]


# -- SQUIM ------------------------------------------------------------------------------------------------------------

_SQUIM_SHARED: dict[str, Any] = _SPEECH_16K | {"requires": ("torchaudio", "torch")}
_SQUIM_OBJECTIVE: dict[str, Any] = _SQUIM_SHARED | {"weights": (SQUIM_OBJECTIVE,), "direction": "higher"}


def squim(estimate: Clip) -> Mapping[str, float]:
    """The three predictions of torchaudio's SQUIM_OBJECTIVE by name, at 16 kHz. Remembered on the clip.

    Kumar et al., ICASSP 2023. The network scales its input to one power, so that gain does not count.

    Raises:
        NotApplicable: torchaudio or weights absent; silent.
        EvalkitError: the file is another network's.
    """

    def predict() -> Mapping[str, float]:
        import torch

        samples = _at(estimate, 16000)
        with torch.inference_mode():
            found = _squim("squim_objective_base", _squim_file(SQUIM_OBJECTIVE))(torch.from_numpy(samples)[None])
        return dict(zip(SQUIM[:3], map(float, found), strict=True))

    return estimate.memo("squim", predict)


def _squim_file(name: str) -> Path:
    return _file(name, f"https://download.pytorch.org/torchaudio/models/{Path(name).name}")


@functools.cache
def _squim(builder: str, path: Path) -> Any:
    import torch

    from evalkit.torchaudio_shim import import_torchaudio

    model = getattr(import_torchaudio().models, builder)()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise EvalkitError(f"{path}: not the weights of torchaudio's {builder} ({error}): fetch them again") from error
    return model.eval()


@metric("squim_stoi", unit="1", range=(0, 1), **_SQUIM_OBJECTIVE)
def squim_stoi(estimate: Clip) -> float:
    """STOI as SQUIM guesses it without the original, 0 to 1; see `squim`."""
    return squim(estimate)["squim_stoi"]


@metric("squim_pesq", unit="MOS", range=(1, 4.5), **_SQUIM_OBJECTIVE)
def squim_pesq(estimate: Clip) -> float:
    """PESQ (wide-band) as SQUIM guesses it without the original, 1 to 4.5; see `squim`."""
    return squim(estimate)["squim_pesq"]


@metric("squim_si_sdr", unit="dB", **_SQUIM_OBJECTIVE)
def squim_si_sdr(estimate: Clip) -> float:
    """SI-SDR as SQUIM guesses it without the original, in dB.

    Trained on speech with additive noise and its enhancement. A decoder that makes up its phases has a real SI-SDR far
    below what sounds as clean as this says: not in the place of `si_sdr`.
    """
    return squim(estimate)["squim_si_sdr"]


@metric(
    "squim_mos",
    unit="MOS",
    direction="higher",
    range=(1, 5),
    weights=(SQUIM_SUBJECTIVE,),
    trained_on=("librispeech",),  # its wav2vec 2.0, without labels
    **_SQUIM_SHARED,
)
def squim_mos(reference: Clip, estimate: Clip) -> float:
    """Opinion score by torchaudio's SQUIM_SUBJECTIVE, against clean speech; 1 to 5.

    Manocha and Kumar, Interspeech 2022 (NORESQA-MOS). The network takes any clean utterance as the standard; here the
    clip's own original, so that it is the same for all systems. Weights CC BY-NC 4.0.

    Raises:
        NotApplicable: torchaudio or weights absent; silent reference or estimate.
        EvalkitError: the file is another network's.
    """
    import torch

    require_sound(reference, "reference")
    e, r = (torch.from_numpy(_at(clip, 16000))[None] for clip in (estimate, reference))
    with torch.inference_mode():
        value = float(_squim("squim_subjective_base", _squim_file(SQUIM_SUBJECTIVE))(e, r))
    return min(5.0, max(1.0, value))  # 5 less a mean of 0 to 4, in float32


# -- packages and weights ---------------------------------------------------------------------------------------------


def _package(module: str, distribution: str, remedy: str) -> Any:
    import importlib

    from evalkit.torchaudio_shim import install

    install()  # some of them import torchaudio where they find it
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotApplicable(f"{distribution} cannot be imported ({error}): {remedy}") from error


def _file(name: str, source: str) -> Path:
    from evalkit.weights import find_weights

    return find_weights(name, source=source)


def _hub_file(hub_id: str, name: str) -> Path:
    from evalkit.weights import hub_folder

    path = hub_folder(hub_id) / name
    if not path.exists():
        raise EvalkitError(f"{path} is absent from the model's folder: `hf download {hub_id} {name}`")
    return path
