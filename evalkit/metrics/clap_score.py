"""The CLAP score of a caption: how near text and sound lie in the space of LAION's CLAP."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from evalkit.audio import Clip
from evalkit.embedders.clap import MODEL
from evalkit.errors import EvalkitError
from evalkit.registry import metric
from evalkit.weights import from_folder, hub_folder

CLAP_SCORE = f"clap_score@{MODEL.rpartition('/')[2]}"


@metric(
    CLAP_SCORE,
    unit="1",
    direction="higher",
    group="semantic",
    range=(-1, 1),
    requires=("torch", "transformers"),
    weights=(MODEL,),
    trained_on=("clotho", "audiocaps", "esc50"),
)
def clap_score(reference: Clip, candidate: str) -> float:
    """Cosine of the caption's text embedding with the clip's audio embedding, by CLAP; no reference caption is read.

    The audio embedding is the mean over windows of 10 s (`evalkit.embedders.clap`: nothing is cut at random), so that a
    clip has one value. CLAP was trained on Clotho and AudioCaps and selected on ESC-50: flagged there, and circular
    for captioners that were trained with it.

    Raises:
        NotApplicable: transformers or the weights are absent.

    Source: Wu et al. 2023, arXiv:2211.06687.
    """
    from evalkit.embedders import embedding

    audio = embedding(reference, "clap").astype(np.float64).mean(axis=0)
    text = _text(candidate)
    lengths = float(np.linalg.norm(audio) * np.linalg.norm(text))
    if not lengths > 0:
        raise EvalkitError("an embedding has no length")
    return float(np.clip(audio @ text / lengths, -1, 1))


@functools.lru_cache(maxsize=4096)
def _text(caption: str) -> np.ndarray:
    import torch

    tokenizer, net = _model()
    tokens = tokenizer(caption, truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt")
    with torch.inference_mode():
        made = net.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return np.asarray(getattr(made, "pooler_output", made))[0].astype(np.float64)


@functools.cache
def _model() -> tuple[Any, Any]:
    import torch
    from transformers import AutoTokenizer, ClapModel

    from evalkit.embedders import one_thread

    one_thread()
    folder = hub_folder(MODEL)
    net, report = from_folder(ClapModel, folder, dtype=torch.float32, output_loading_info=True)
    missing = sorted(k for k in report["missing_keys"] if k.startswith("text_"))
    if missing:  # from_pretrained has filled them with random numbers
        raise EvalkitError(f"{folder} lacks {len(missing)} tensors, {missing[0]} among them: fetch it again")
    return from_folder(AutoTokenizer, folder), net.eval()
