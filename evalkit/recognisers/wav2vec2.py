"""torchaudio's wav2vec 2.0 recogniser, behind the import shim for CPU builds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from evalkit.errors import EvalkitError, NotApplicable
from evalkit.registry import recogniser

CHECKPOINT = "torchaudio/wav2vec2_fairseq_base_ls960_asr_ls960.pth"
SOURCE = "https://download.pytorch.org/torchaudio/models/wav2vec2_fairseq_base_ls960_asr_ls960.pth, 378 MB"
MIN_SAMPLES = 400
"""One frame: the receptive field of the feature extractor at 16 kHz."""


@recogniser(
    "wav2vec2",
    version="1",
    sample_rate=16000,
    weights=(CHECKPOINT,),
    trained_on=("librispeech",),
    requires=("torchaudio", "torch"),
    licence="MIT (weights), BSD-2-Clause (torchaudio)",
    citation="A. Baevski et al., wav2vec 2.0, NeurIPS 2020",
)
class Wav2Vec2:
    """wav2vec 2.0 base, fine-tuned on LibriSpeech 960 h (torchaudio's WAV2VEC2_ASR_BASE_960H), greedy CTC.

    No language model: spellings are its own. Trained on the training subsets of LibriSpeech, test-clean not among them.

    Raises:
        NotApplicable: torchaudio or the checkpoint is absent.
        EvalkitError: the file is not that checkpoint.
    """

    def __init__(self) -> None:
        from evalkit.torchaudio_shim import import_torchaudio
        from evalkit.weights import find_weights

        torchaudio = import_torchaudio()
        path = find_weights(CHECKPOINT, source=SOURCE)
        bundle = torchaudio.pipelines.WAV2VEC2_ASR_BASE_960H
        try:
            # The file is there, so that torch.hub takes it and downloads nothing.
            self.model = bundle.get_model(dl_kwargs={"model_dir": str(path.parent), "weights_only": True})
        except Exception as error:
            raise EvalkitError(f"{path}: not the checkpoint of WAV2VEC2_ASR_BASE_960H ({error}): {SOURCE}") from error
        self.labels: Sequence[str] = bundle.get_labels()

    def transcribe(self, samples: np.ndarray) -> str:
        """Upper-case words for mono float32 ``[samples]`` at 16 kHz.

        Raises:
            NotApplicable: shorter than one frame (25 ms).
        """
        import torch

        if len(samples) < MIN_SAMPLES:
            raise NotApplicable(f"wav2vec2 needs at least {MIN_SAMPLES} samples at 16 kHz, the clip has {len(samples)}")
        with torch.inference_mode():
            emissions, _ = self.model(torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None])
        return ctc_text(emissions[0].argmax(-1).tolist(), self.labels)


def ctc_text(best: Sequence[int], labels: Sequence[str]) -> str:
    """Greedy CTC: repeats merged, then blanks (label 0) dropped; ``|`` ends a word.

    >>> ctc_text([1, 1, 0, 2, 2, 3, 1, 0, 1], "-ab|")
    'ab aa'
    """
    merged = [label for label, _ in itertools.groupby(best)]
    return " ".join("".join(labels[i] for i in merged if i != 0).replace("|", " ").split())
