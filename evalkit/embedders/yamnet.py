"""`yamnet`: YAMNet's 1,024 values before its classifier, from its tflite file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evalkit.errors import EvalkitError, NotApplicable
from evalkit.registry import embedder
from evalkit.weights import find_weights

WEIGHTS = "yamnet/yamnet.tflite"
SHA256 = "687f226c147a2caab4706fbbab5e9cecb14b9a368264bf61108078b1fddf68f5"
RATE = 16_000
WINDOW = 15_600
"""Samples of a window: 96 spectral frames of 25 ms every 10 ms, 0.975 s."""
HOP = 7_680
POOLING = "global_average_pooling"
"""Part of the name of the tensor that is read."""


@embedder(
    "yamnet",
    version="1",
    sample_rate=RATE,
    dimension=1024,
    window_s=WINDOW / RATE,
    hop_s=HOP / RATE,
    weights=(WEIGHTS,),
    weights_id=SHA256,
    trained_on=("audiocaps",),
    requires=("ai-edge-litert",),
    licence="Apache-2.0",
    citation="Plakal, Ellis (2020), YAMNet, TensorFlow Model Garden, research/audioset/yamnet",
)
class Yamnet:
    """YAMNet (MobileNet v1 trained on AudioSet): its 1,024 values before the classifier, windows of 0.975 s.

    16 kHz, one window of 15,600 samples every 0.48 s. The end is padded with zeros to a whole number of windows, and a
    clip shorter than one to one, as YAMNet's own code pads (`features.pad_waveform`): every clip has a frame.

    The values are the tensor of the global average pooling, which the file does not give as an output: all tensors are
    kept and it is found by name and shape. The file's weights are int8, and activations are rounded to 8 bits on the
    way, the spectrum before the logarithm among them: values do not compare with those of the float model. The built-in
    kernels run without a delegate, on one thread, window by window: the file permits no other input length.

    Raises:
        NotApplicable: the weights or ai-edge-litert are absent. EvalkitError: another file than expected.
    """

    def __init__(self) -> None:
        path = find_weights(
            WEIGHTS, source="YAMNet as tflite with the input 'waveform' of 15,600 samples and 521 scores", sha256=SHA256
        )
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise NotApplicable(
                f"yamnet needs ai-edge-litert: pip install 'evalkit-audio[yamnet]' ({error})"
            ) from error
        self.interpreter: Any = Interpreter(
            model_path=str(path),
            num_threads=1,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self.interpreter.allocate_tensors()
        self._input = self.interpreter.get_input_details()[0]["index"]
        found = [
            d["index"]
            for d in self.interpreter.get_tensor_details()
            if POOLING in d["name"] and list(d["shape"]) == [1, 1024]
        ]
        if len(found) != 1:
            raise EvalkitError(f"{path}: {len(found)} tensors are named *{POOLING}* and of shape [1, 1024], expected 1")
        self._pooled = found[0]

    def embed(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.stack([self._window(w) for w in windows(samples)]) for samples in clips]

    def _window(self, samples: np.ndarray) -> np.ndarray:
        self.interpreter.set_tensor(self._input, np.ascontiguousarray(samples))
        self.interpreter.invoke()
        value: np.ndarray = self.interpreter.get_tensor(self._pooled)[0]
        return value


def windows(samples: np.ndarray) -> np.ndarray:
    """``[windows, 15600]`` of ``[samples]``, zero-padded at the end so that every sample is in one.

    >>> [len(windows(np.zeros(n, np.float32))) for n in (1, 15_600, 15_601, 23_280, 80_000)]
    [1, 1, 2, 2, 10]
    """
    count = 1 + -(-max(0, len(samples) - WINDOW) // HOP)
    padded = np.pad(samples, (0, (count - 1) * HOP + WINDOW - len(samples)))
    return np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
