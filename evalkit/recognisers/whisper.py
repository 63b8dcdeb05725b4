"""Whisper by transformers, from a folder of the hub."""

from __future__ import annotations

import numpy as np

from evalkit.errors import NotApplicable
from evalkit.registry import recogniser

MAX_SECONDS = 30
"""Whisper's window. Longer audio would need its long-form decoding, whose cuts depend on what it hears."""

MAX_TOKENS = 440
"""Whisper's decoder has 448 positions; the first few hold its prompt."""


class Whisper:
    """A Whisper model by hub id: greedy decoding, float32 on the CPU, no timestamps, no temperature fallback.

    Args:
        hub_id: an English-only (``.en``) or multilingual model; the latter is told that it hears English.

    Raises:
        NotApplicable: transformers or the weights are absent.
    """

    def __init__(self, hub_id: str) -> None:
        from evalkit.torchaudio_shim import install
        from evalkit.weights import from_folder, hub_folder

        folder = hub_folder(hub_id)
        install()  # transformers imports torchaudio where it finds it
        try:
            import torch
            from transformers import WhisperForConditionalGeneration, WhisperProcessor
        except ImportError as error:
            raise NotApplicable("transformers is not installed: pip install 'evalkit-audio[encodec]'") from error
        self.processor = WhisperProcessor.from_pretrained(folder, local_files_only=True)
        self.model = from_folder(WhisperForConditionalGeneration, folder, dtype=torch.float32).eval()

    def transcribe(self, samples: np.ndarray) -> str:
        """The text as Whisper writes it (case, punctuation, digits) for mono float32 ``[samples]`` at 16 kHz.

        Raises:
            NotApplicable: more than 30 s.
        """
        import torch

        seconds = len(samples) / 16000
        if seconds > MAX_SECONDS:
            raise NotApplicable(f"whisper takes at most {MAX_SECONDS} s at once, the clip has {seconds:.3g} s")
        features = self.processor(samples, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        # An English-only model refuses to be told its language.
        multilingual = getattr(self.model.generation_config, "is_multilingual", False)
        spoken = {"language": "en", "task": "transcribe"} if multilingual else {}
        room = self.model.config.max_target_positions - 8
        with torch.inference_mode():
            tokens = self.model.generate(
                features.input_features,
                attention_mask=features.attention_mask,
                do_sample=False,
                num_beams=1,
                max_new_tokens=min(MAX_TOKENS, room),
                **spoken,
            )
        return self.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


HUB_ID = "openai/whisper-tiny.en"


@recogniser(
    "whisper",
    version="1",
    sample_rate=16000,
    weights=(HUB_ID,),
    requires=("transformers", "torch"),
    licence="MIT (as OpenAI released it; the hub's card says Apache-2.0)",
    citation="A. Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, ICML 2023",
)
def whisper() -> Whisper:
    """Whisper tiny.en by transformers: greedy, at most 30 s a clip.

    For another size register a function of your own that returns ``Whisper("openai/whisper-small.en")``.
    """
    return Whisper(HUB_ID)
