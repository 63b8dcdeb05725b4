"""`encodec`: EnCodec's encoder before its quantizer, by transformers' `EncodecModel`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from evalkit.embedders import files_hash, one_thread
from evalkit.errors import EvalkitError, NotApplicable, Unavailable
from evalkit.registry import embedder
from evalkit.systems.encodec import find_model, load_network, read_config
from evalkit.weights import hub_folder

MODEL = "facebook/encodec_24khz"
RATE = 24_000
DIMENSION = 128


@embedder(
    "encodec",
    version="1",
    sample_rate=RATE,
    dimension=DIMENSION,
    hop_s=320 / RATE,
    weights=(MODEL,),
    trained_on=("audiocaps",),
    requires=("torch", "transformers"),
    licence="MIT (code); weights as their publisher states",
    citation="Défossez, Copet, Synnaeve, Adi (2022), High Fidelity Neural Audio Compression, arXiv:2210.13438",
)
class EncodecLatent:
    """EnCodec's latents before quantisation, 128 values 75 times a second, at 24 kHz.

    Raw frames, as frechet-audio-distance takes them: nothing is pooled, and the frames of a clip are far from
    independent. A frame is 320 samples; convolutions and an LSTM carry what came before into it. A clip of any length
    has one, and the last may be partly beyond its end. Clips go through the network one by one (batches give other last
    bits), and need some 740 MB for each minute.

    Trained on AudioSet, of which AudioCaps is a part, and on DNS, Common Voice, FSD50K and Jamendo.

    **Circular** for the system `encodec`, and near to it for codecs of its kind.

    Raises:
        NotApplicable: transformers or the weights are absent.
        EvalkitError: files that are not a whole 24 kHz model.
    """

    def __init__(self) -> None:
        try:
            import transformers  # noqa: F401 - absent is to be said here, not at the first clip

            self._config, self._weights = find_model(str(hub_folder(MODEL)))
        except (ImportError, Unavailable) as error:
            raise NotApplicable(f"embedder encodec: {error}; pip install 'evalkit-audio[encodec]'") from error
        self.weights_id = files_hash(self._config, self._weights)

    @functools.cached_property
    def _net(self) -> Any:
        config = read_config(self._config)
        if (config.sampling_rate, config.audio_channels, config.hidden_size) != (RATE, 1, DIMENSION):
            raise EvalkitError(
                f"{self._config}: {config.sampling_rate} Hz, {config.audio_channels} channels and {config.hidden_size} "
                f"values a frame; the embedder is of the model with {RATE} Hz, 1 channel, {DIMENSION} values"
            )
        one_thread()
        return load_network(config, self._weights)

    def embed(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        import torch

        with torch.inference_mode():
            return [self._net.encoder(torch.tensor(x)[None, None])[0].T.numpy() for x in clips]
