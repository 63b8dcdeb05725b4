"""`clap`: LAION's CLAP, by transformers' `ClapModel`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.embedders import files_hash, one_thread
from evalkit.errors import EvalkitError, NotApplicable
from evalkit.registry import embedder
from evalkit.weights import hub_folder

MODEL = "laion/clap-htsat-unfused"
RATE = 48_000
WINDOW = 10 * RATE
DIMENSION = 512
CONFIGURATION = ("config.json", "preprocessor_config.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The first that is there is taken, as transformers does."""


@embedder(
    "clap",
    version="1",
    sample_rate=RATE,
    dimension=DIMENSION,
    window_s=10.0,
    hop_s=10.0,
    weights=(MODEL,),
    trained_on=("clotho", "audiocaps", "esc50"),
    requires=("torch", "transformers"),
    licence="Apache-2.0",
    citation="Wu et al. (2023), Large-scale contrastive language-audio pretraining, ICASSP, arXiv:2211.06687",
)
class Clap:
    """CLAP's audio embedding (LAION, HTS-AT, unfused): 512 values of unit length for every 10 s, at 48 kHz.

    Nothing random: upstream cuts what is longer than 10 s at random, or fuses random crops, and so gives one file two
    embeddings. Here a longer clip is cut into windows of 10 s one after the other, the last moved back so that it ends
    with the clip. A clip shorter than 10 s is repeated as often as it fits and then zero-padded (``repeatpad``,
    upstream's default). Windows go through the network one by one.

    Trained on Clotho and AudioCaps among others, and selected by its zero-shot accuracy on ESC-50: flagged there.

    Raises:
        NotApplicable: transformers or the weights are absent.
        EvalkitError: files that are not a whole unfused CLAP model.
    """

    def __init__(self) -> None:
        try:
            import transformers  # noqa: F401 - absent is to be said here, not at the first clip
        except ImportError as error:
            raise NotApplicable(
                f"embedder clap needs transformers: pip install 'evalkit-audio[encodec]' ({error})"
            ) from error
        self._folder = hub_folder(MODEL)
        paths = [self._folder / name for name in CONFIGURATION]
        paths.append(next((p for w in WEIGHTS if (p := self._folder / w).exists()), self._folder / WEIGHTS[0]))
        absent = [p.name for p in paths if not p.exists()]
        if absent:
            raise NotApplicable(f"{self._folder} has no {absent[0]}: `hf download {MODEL}` fetches it")
        self.weights_id = files_hash(*paths)

    @functools.cached_property
    def _model(self) -> tuple[Any, Any]:
        """The feature extractor and the network."""
        one_thread()
        return _load(self._folder)

    def embed(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.concatenate([self._window(w) for w in windows(samples)]) for samples in clips]

    def _window(self, samples: np.ndarray) -> np.ndarray:
        import torch

        extract, net = self._model
        # Never longer than a window, so nothing is truncated.
        given = extract(samples, sampling_rate=RATE, truncation="rand_trunc", padding="repeatpad", return_tensors="pt")
        with torch.inference_mode():
            made = net.get_audio_features(input_features=given["input_features"].float())
        return np.asarray(made.pooler_output)


def windows(samples: np.ndarray) -> list[np.ndarray]:
    """Stretches of 10 s that cover ``[samples]``, the last ending with it; a shorter clip is one by itself.

    >>> [[len(w) for w in windows(np.zeros(n, np.float32))] for n in (100, 480_000, 480_001)]
    [[100], [480000], [480000, 480000]]
    """
    starts = [min(s, len(samples) - WINDOW) for s in range(0, len(samples), WINDOW)]
    return [samples[max(0, s) : max(0, s) + WINDOW] for s in starts]


def _load(folder: Path) -> tuple[Any, Any]:
    """Feature extractor and `ClapModel` in float32, every tensor of the audio side taken from the file."""
    import torch
    from transformers import ClapFeatureExtractor, ClapModel

    try:
        extract = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        with torch.random.fork_rng(devices=[]):
            made: Any = ClapModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
            net, report = made
    except Exception as error:  # each format, and each way of being cut short, has its own type
        brief = " ".join(str(error).split())[:200]
        raise EvalkitError(
            f"{folder} cannot be read as CLAP ({type(error).__name__}: {brief}): fetch it again"
        ) from error
    if net.config.audio_config.enable_fusion:
        raise EvalkitError(f"{folder} is a fused CLAP, whose long inputs are random crops: put {MODEL} there")
    missing = sorted(k for k in report["missing_keys"] if k.startswith("audio_"))
    if missing:  # from_pretrained has filled them with random numbers
        raise EvalkitError(f"{folder} lacks {len(missing)} tensors, {missing[0]} among them: fetch it again")
    found = (extract.sampling_rate, extract.nb_max_samples, net.config.projection_dim)
    if found != (RATE, WINDOW, DIMENSION):
        raise EvalkitError(f"{folder}: rate, samples and dimension are {found}, expected {(RATE, WINDOW, DIMENSION)}")
    return extract, net.eval()
