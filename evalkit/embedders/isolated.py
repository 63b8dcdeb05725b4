"""`vggish` and `pann`: embedders whose code runs in the isolated backend `frechet-audio-distance`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evalkit.backends.client import Backend
from evalkit.backends.frechet_audio_distance import FRECHET_AUDIO_DISTANCE as BACKEND
from evalkit.embedders import files_hash
from evalkit.registry import embedder
from evalkit.weights import find_weights

FOLDER = "frechet_audio_distance"
"""Under the weights root."""
VGGISH = f"{FOLDER}/checkpoints/vggish-10086976.pth"
PANN = f"{FOLDER}/Cnn14_mAP=0.431.pth"


@embedder(
    "vggish",
    version=BACKEND.version,
    sample_rate=16_000,
    dimension=128,
    window_s=0.96,
    hop_s=0.96,
    weights=(VGGISH,),
    weights_id="10086976",
    licence="Apache-2.0",
    citation="Hershey et al. (2017), CNN architectures for large-scale audio classification, ICASSP, arXiv:1609.09430",
)
class Vggish:
    """VGGish as frechet-audio-distance uses it: 128 values every 0.96 s, without post-processing, at 16 kHz.

    No PCA, no 8-bit quantisation, and the value before the last rectifier: what that package calls ``use_pca=False,
    use_activation=False``, and what most published FAD figures are made with. The distance of post-processed embeddings
    is another number. The network is the PyTorch port ``harritaylor/torchvggish``. What is left at the end of a clip
    after the last whole window is dropped, as VGGish does; a clip under 0.975 s has no frame.

    Raises:
        NotApplicable: backend or weights are absent.
    """

    min_seconds = 15_600 / 16_000

    def __init__(self) -> None:
        find_weights(VGGISH, source="the release v0.1 of harritaylor/torchvggish; docs/backends.md lists the rest")
        self._backend = Backend(BACKEND)

    def embed(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        weights = str(find_weights(FOLDER, source="docs/backends.md").resolve())
        return list(
            self._backend.request("embed", model="vggish", sample_rate=16_000, weights=weights, arrays=list(clips))
        )


@embedder(
    "pann",
    version=BACKEND.version,
    sample_rate=32_000,
    dimension=2048,
    weights=(PANN,),
    licence="MIT; weights CC BY 4.0",
    citation="Kong et al. (2020), PANNs: large-scale pretrained audio neural networks, IEEE/ACM TASLP 28, "
    "arXiv:1912.10211",
)
class Pann:
    """PANN's CNN14: one embedding of 2,048 values for a whole clip, at 32 kHz.

    The network is that of frechet-audio-distance, the pooling is not: the package flattens the embeddings of all files
    into one row of numbers (its issue 37), so distances published with it do not compare. Here a clip is one row, the
    sum of mean and maximum over time after the rectifier of the last layer but one. A distribution of them needs more
    clips than 2,048. A clip under 0.31 s has none.

    Raises:
        NotApplicable: backend or weights are absent.
    """

    min_seconds = 0.31

    def __init__(self) -> None:
        path = find_weights(PANN, source="record 3987831 of Zenodo")
        self._backend: Any = Backend(BACKEND)
        self.weights_id = files_hash(path)
        self._folder = str(path.parent.resolve())

    def embed(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(self._backend.request("pann", sample_rate=32_000, weights=self._folder, arrays=list(clips)))
