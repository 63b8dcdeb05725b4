"""PocketSphinx with the US English models that its package carries: small, old, offline, and the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from evalkit.errors import NotApplicable
from evalkit.registry import recogniser


@recogniser(
    "pocketsphinx",
    version="1",
    sample_rate=16000,
    requires=("pocketsphinx",),
    licence="BSD-2-Clause (code and models)",
    citation="D. Huggins-Daines et al., PocketSphinx, ICASSP 2006, doi:10.1109/ICASSP.2006.1659988",
)
class PocketSphinx:
    """PocketSphinx 5, en-us models of its package: no other weights; 29 % of words wrong on clean read speech.

    Semi-continuous HMMs, CMU dictionary (134,000 words), trigram language model of general English; default beams and
    two passes with best path. Words outside the dictionary cannot be recognised. The 29 % are 30 utterances of
    LibriSpeech test-clean (577 words), where current recognisers have 2 to 5 %.

    Raises:
        NotApplicable: the package is not installed.
    """

    def __init__(self) -> None:
        try:
            import pocketsphinx
        except ImportError as error:
            raise NotApplicable("pocketsphinx is not installed: pip install 'evalkit-audio[speech]'") from error
        self._module: Any = pocketsphinx

    def transcribe(self, samples: np.ndarray) -> str:
        """Lower-case words for mono float32 ``[samples]`` at 16 kHz; "" where nothing is heard.

        Samples are rounded to 16 bit and clipped; where all are then zero nothing is heard (the decoder itself hears
        "dog" in half a second of digital silence). The decoder is made anew for every utterance (0.2 s): a used one
        keeps the state of its noise tracker, and its words then depend on what came before (2 clips of 14 tried).
        """
        pcm = np.clip(np.round(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
        if not pcm.any():
            return ""
        decoder = self._module.Decoder(loglevel="FATAL")
        decoder.start_utt()
        decoder.process_raw(pcm.tobytes(), no_search=False, full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""
