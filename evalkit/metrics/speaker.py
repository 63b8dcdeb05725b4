"""Speaker similarity: the angle between speaker embeddings of the original and of the decoded speech."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from evalkit.audio import Clip, mono, resample
from evalkit.errors import ContractError, EvalkitError, NotApplicable
from evalkit.metrics.alignment import require_sound
from evalkit.registry import EmbedderInfo, embedder, metric

SPEAKER = ("speaker_similarity@wavlm-sv",)

MIN_SECONDS = 1.0
"""Verification systems are built for several seconds; their errors grow quickly below two."""

HUB_ID = "microsoft/wavlm-base-plus-sv"


class WavLMSpeaker:
    """A speaker encoder of transformers (WavLM with an x-vector head) by hub id, float32 on the CPU.

    Raises:
        NotApplicable: transformers or the weights are absent.
        EvalkitError: the folder holds another kind of model.
    """

    def __init__(self, hub_id: str) -> None:
        from evalkit.torchaudio_shim import install
        from evalkit.weights import from_folder, hub_folder

        folder = hub_folder(hub_id)
        install()  # transformers imports torchaudio where it finds it
        try:
            from transformers import AutoFeatureExtractor, WavLMForXVector
        except ImportError as error:
            raise NotApplicable("transformers is not installed: pip install 'evalkit-audio[encodec]'") from error
        import torch

        self.extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        model, report = from_folder(WavLMForXVector, folder, dtype=torch.float32, output_loading_info=True)
        absent = sorted(k for k in report["missing_keys"] if not k.startswith("objective."))  # training's alone
        if absent:
            raise EvalkitError(f"{folder}: not a WavLM with an x-vector head ({absent[0]} is absent): fetch {hub_id}")
        self.model = model.eval()

    def embed(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """``[1, dimension]`` a clip, from mono float32 ``[samples]`` at 16 kHz; one by one, so that none is padded."""
        import torch

        found = []
        for samples in clips:
            values = self.extractor(samples, sampling_rate=16000, return_tensors="pt").input_values
            with torch.inference_mode():
                found.append(self.model(values).embeddings.numpy())
        return found


@embedder(
    "wavlm-sv",
    version="1",
    sample_rate=16000,
    dimension=512,
    weights=(HUB_ID,),
    requires=("transformers", "torch"),
    licence="CC BY-SA 3.0 (weights, as UniSpeech's repository says)",
    citation="S. Chen et al., WavLM, IEEE JSTSP 2022, doi:10.1109/JSTSP.2022.3188113",
)
def wavlm_sv() -> WavLMSpeaker:
    """WavLM base+ with an x-vector head, trained on VoxCeleb1 for speaker verification; one embedding a clip."""
    return WavLMSpeaker(HUB_ID)


def speaker_embedding(clip: Clip, name: str) -> np.ndarray:
    """The clip's embedding by an encoder, float64 ``[dimension]`` of length 1. Remembered on the clip.

    The mean of the channels, resampled to the encoder's rate (soxr), whole.

    Raises:
        NotApplicable: weights or package absent.
        UsageError: no embedder of that name.
        ContractError: not one finite, non-zero embedding of the declared dimension.
    """

    def compute() -> np.ndarray:
        from evalkit import registry  # not global: what a function reads globally is part of its metric's identity

        info: EmbedderInfo = registry.get("embedders", name)
        found = np.asarray(_loaded(name).embed([resample(mono(clip), info.sample_rate).samples[0]])[0], np.float64)
        if found.shape != (1, info.dimension):
            raise ContractError(f"embedder {name!r} gave shape {found.shape}, expected (1, {info.dimension})")
        length = float(np.linalg.norm(found))
        if not 0 < length < np.inf:
            raise ContractError(f"embedder {name!r} gave an embedding of length {length}")
        return found[0] / length

    return clip.memo(("speaker", name), compute)


@functools.cache
def _loaded(name: str) -> Any:
    from evalkit import registry

    return registry.get("embedders", name).load()


def speaker_metric(encoder: str) -> str:
    """Register ``speaker_similarity@NAME`` for an embedder that gives one embedding a clip, and return its name.

    Raises:
        UsageError: no embedder of that name.
        EvalkitError: it embeds windows.
    """
    from evalkit import registry

    info: EmbedderInfo = registry.get("embedders", encoder)
    if info.window_s is not None:
        raise EvalkitError(f"embedder {encoder!r} embeds windows of {info.window_s:g} s: a speaker has one embedding")

    @metric(
        f"speaker_similarity@{encoder}",
        unit="1",
        direction="higher",
        group="speaker",
        range=(-1, 1),
        domains=("speech",),
        min_sample_rate=info.sample_rate,
        min_seconds=MIN_SECONDS,
        short_clips="taken whole, without padding; the shorter, the less the embedding tells",
        requires=info.requires,
        weights=info.weights,
        trained_on=info.trained_on,
        extra_identity=functools.partial(_identity, encoder),
    )
    def speaker_similarity(reference: Clip, estimate: Clip) -> float:
        """Cosine of the speaker embeddings of original and decoded speech; 1 for a copy.

        Means differ between encoders: what two recordings of one speaker and of two speakers score is the scale to
        read it on. The whole clip counts, its noise and its room as well as its voice.

        Raises:
            NotApplicable: silent reference or estimate; weights or package absent.
        """
        require_sound(reference, "reference")
        require_sound(estimate, "estimate")
        cosine = float(speaker_embedding(reference, encoder) @ speaker_embedding(estimate, encoder))
        return min(1.0, max(-1.0, cosine))

    return f"speaker_similarity@{encoder}"


def _identity(encoder: str) -> list[Any]:
    from evalkit import registry
    from evalkit.identity import source_hash

    info = registry.get("embedders", encoder)
    return [info.name, info.version, info.sample_rate, info.dimension, info.weights_id, source_hash(info.load)]


speaker_metric("wavlm-sv")
